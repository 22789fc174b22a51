"""What a new user meets on the command line: pipes, CSV dialects, data keys of other files, wrong uses."""

import base64
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

import kmsdata
from kmsdata.display.progress import Progress
from kmsdata.keys.tencent import transport

ROOT = Path(kmsdata.__file__).parent.parent
PEOPLE = "name,ssn,email,age\nAda,078-05-1120,a@x.org,36\nBo,,b@x.org,29\n"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("KMSDATA_KEY", raising=False)
    (folder / "people.csv").write_text(PEOPLE)
    kmsdata.LocalKeystore().create_key("payroll", quiet=True)
    kmsdata.LocalKeystore().create_key("next", quiet=True)
    return folder


def piped(*arguments, given=b"", **options):
    """Run the real command with bytes on standard input."""
    command = [sys.executable, "-m", "kmsdata.cli", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, input=given, env=environment, check=False, **({"capture_output": True} | options)
    )


# Standard input and output.


def test_csv_and_parquet_through_pipes(here):
    done = piped("encrypt", "-", "-", "-c", "ssn", "-k", "payroll", given=PEOPLE.encode())
    assert done.returncode == 0
    assert b"Encrypted ssn" in done.stderr
    assert pq.read_metadata(io.BytesIO(done.stdout)).num_rows == 2
    back = piped("decrypt", "-", "-", "--json", given=done.stdout)
    assert json.loads(back.stderr)["target"] == "standard output"
    assert pd.read_parquet(io.BytesIO(back.stdout))["ssn"].tolist()[0] == "078-05-1120"
    assert piped("encrypt", "-", "x.parquet", "-c", "age", "-k", "payroll", given=done.stdout).returncode == 0
    assert kmsdata.inspect("x.parquet").encrypted == ["ssn", "age"]


@pytest.mark.parametrize("given", [b"", b"a,b\n1\n", b"PAR1 and no more"])
def test_nothing_on_standard_output_after_an_error(given, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    done = piped("encrypt", "-", "-", "-c", "a", "-k", "payroll", given=given)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"error: ")
    assert list((tmp_path / "temporary").iterdir()) == []


def test_binary_is_not_written_to_a_terminal():
    master, slave = pty.openpty()
    done = piped(
        "encrypt", "people.csv", "-", "-c", "ssn", "-k", "payroll", stdout=slave, stderr=subprocess.PIPE,
        capture_output=False,
    )  # fmt: skip
    os.close(slave)
    os.close(master)
    assert done.returncode == 2
    assert b"standard output is a terminal" in done.stderr


# CSV of other programs.


def test_delimiter_and_encoding(run, here):
    (here / "g.csv").write_bytes("姓名;ssn\n张三;1\n".encode("gb18030"))
    arguments = ("encrypt", "g.csv", "g.parquet", "-c", "姓名", "-k", "payroll")
    code, _, err = run(*arguments, "--delimiter", ";")
    assert (code, "--encoding 'gb18030'" in err) == (1, True)
    assert run(*arguments, "--delimiter", ";", "--encoding", "gb18030")[0] == 0
    back = kmsdata.read_parquet("g.parquet", decrypt=True)
    assert (list(back), back["姓名"].tolist()) == (["姓名", "ssn"], ["张三"])
    (here / "t.csv").write_text("a\tb\n1,5\t2\n")
    assert run("encrypt", "t.csv", "t.parquet", "-c", "a", "-k", "payroll", "--delimiter", "\\t")[0] == 0
    assert kmsdata.read_parquet("t.parquet", decrypt=True)["a"].tolist() == ["1,5"]


@pytest.mark.parametrize("wrong", [("--delimiter", ";;"), ("--delimiter", '"'), ("--encoding", "klingon")])
def test_a_wrong_delimiter_or_encoding(run, wrong):
    code, _, err = run("encrypt", "people.csv", "x.parquet", "-c", "ssn", "-k", "payroll", *wrong)
    assert (code, err.startswith(f"error: {wrong[0]}")) == (1, True)


def test_invalid_text_in_an_encoding_shows_none_of_it(run, here):
    (here / "bad.csv").write_bytes(b"name,b\nSecret\xff\xff,1\n")
    for encoding in ("utf-8", "gb18030"):
        code, _, err = run("encrypt", "bad.csv", "x.parquet", "-c", "b", "-k", "next", "--encoding", encoding)
        assert (code, "Secret" in err, f"not {encoding.upper()}" in err) == (1, False, True)


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize(("text", "warned"), [("Ada,12.5\nBo,13.5\n", True), ("id,2019\n1,2\n", False)])
def test_a_file_without_header_line(run, here, text, warned):
    (here / "h.csv").write_text(text)
    code, _, err = run("encrypt", "h.csv", "h.parquet", "-c", text.partition(",")[0], "-k", "payroll")
    assert code == 0
    assert ("looks like values" in err) is warned
    assert "12.5" not in err


def test_the_estimate_for_a_small_csv_file(run, here):
    frame = pd.DataFrame({"n": range(344), "t": [f"text {number % 7}" for number in range(344)]})
    frame.to_csv("s.csv", index=False)
    arguments = ("encrypt", "s.csv", "s.parquet", "-c", "t", "-k", "payroll", "--json")
    dry, done = (json.loads(run(*arguments, *more)[1]) for more in (["--dry-run"], []))
    assert dry["estimated"] == ["rows", "bytes", "kms_calls"]
    assert done["estimated"] == []
    assert dry["rows"] == done["rows"] == 344
    assert abs(dry["bytes"] - done["bytes"]) < done["bytes"] * 0.1


# Data keys.


def test_nightly_files_join(run, monkeypatch):
    assert run("encrypt", "people.csv", "mon.parquet", "-d", "email", "-k", "payroll")[0] == 0
    again = ("encrypt", "people.csv", "tue.parquet", "-d", "email", "--data-key-of", "mon.parquet")
    calls = kmsdata.usage().calls
    assert json.loads(run(*again, "--dry-run", "--json")[1])["kms_calls"] == 1
    assert kmsdata.usage().calls == calls
    assert json.loads(run(*again, "--json")[1])["kms_calls"] == 1
    one, two = (kmsdata.read_parquet(f"{day}.parquet") for day in ("mon", "tue"))
    assert len(one.merge(two, on="email")) == 2
    assert kmsdata.verify("tue.parquet").ok


def test_limits_of_the_data_key(run):
    first = ("encrypt", "people.csv", "mon.parquet", "-d", "email", "-k", "payroll", "--context", "a=b")
    assert run(*first)[0] == 0
    again = ("encrypt", "people.csv", "tue.parquet", "-d", "email", "--data-key-of", "mon.parquet")
    code, _, err = run(*again, "-k", "next")
    assert (code, "--key allows only local://next" in err) == (1, True)
    code, _, err = run(*again, "--context", "a=c")
    assert (code, "its context" in err) == (1, True)
    assert run(*again, "--create-key")[0] == 2
    assert not Path("tue.parquet").exists()
    assert run(*again, "-k", "payroll", "--context", "a=b")[0] == 0
    assert kmsdata.inspect("tue.parquet").data_keys[0].context == {"a": "b"}


@pytest.mark.parametrize("name", ["sealed", "sealed.parquet"])
def test_a_file_is_not_taken_for_a_new_master_key(run, name):
    Path(name).mkdir()
    code, _, err = run("encrypt", "people.csv", "x.parquet", "-c", "ssn", "-k", name, "--create-key")
    assert (code, f"--data-key-of {name}" in err) == (2, True)
    names = [item["key"] for item in kmsdata.LocalKeystore().list_keys()]
    assert names == ["local://next", "local://payroll"]
    kmsdata.LocalKeystore().create_key(name, quiet=True)
    assert run("encrypt", "people.csv", "x.parquet", "-c", "ssn", "-k", name)[0] == 0


def test_a_column_is_named_once(run):
    code, _, err = run("encrypt", "people.csv", "x.parquet", "-c", "ssn,age", "-d", "ssn", "-k", "payroll")
    assert (code, "named by --columns and by --deterministic" in err) == (2, True)


# The vendor's guide.


class Guide:
    """The key service that wrapped the guide's key."""

    scheme = "guide"

    def generate_data_key(self, key, context):
        raise NotImplementedError

    wrap = generate_data_key

    def unwrap(self, wrapped, key, context):
        assert (wrapped, key, context) == ("blob", "guide://k", {"a": "b"})
        return bytes(32)


@pytest.mark.filterwarnings("always:column")
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_migrate(run, here, kind):
    encryptor = Cipher(algorithms.AES(bytes(32)), modes.ECB()).encryptor()  # noqa: S305
    cell = base64.b64encode(encryptor.update(b"078-05-1120".ljust(16, b"\0"))).decode()
    frame = pd.DataFrame({"zip": ["01234", "02345"], "ssn": [cell, None], "n": [None, 1]})
    frame = frame.astype({"n": "Int64"})
    frame.to_csv("old.csv", index=False)
    frame.to_parquet("old.parquet", index=False)
    (here / "key.txt").write_text("blob\n")
    kmsdata.use(Guide())
    arguments = ["migrate", f"old.{kind}", "new.parquet", "-c", "ssn", "--wrapped", "key.txt"]
    arguments += ["--guide-key", "guide://k", "-k", "payroll", "--guide-context", "a=b"]
    code, out, err = run(*arguments)
    assert (code, "no integrity" in err, "kmsdata verify new.parquet" in out) == (0, True, True)
    back = kmsdata.read_parquet("new.parquet", decrypt=True)
    assert back["zip"].tolist() == ["01234", "02345"]
    assert str(back["n"].dtype).lower().startswith("int64")
    assert back["ssn"].tolist()[0] == "078-05-1120"
    assert kmsdata.inspect("new.parquet").encrypted == ["ssn"]
    assert run(*arguments)[0] == 1
    arguments[4] = "zip"
    assert run(*arguments, "--force")[0] == 1
    assert kmsdata.inspect("new.parquet").encrypted == ["ssn"]


# Keys.


def test_the_sdk_is_named_as_in_the_extra():
    requirement = f'"{transport._SDK}"'
    assert requirement in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("key", ["tencent-kms://ap-guangzhou/payroll", "both"])
def test_without_the_sdk_it_is_named_first(key, tmp_path, monkeypatch):
    for name in ("requests", "tencentcloud"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('it is not installed')")
    keys = (
        ["-k", "fresh", "-k", "tencent-kms://ap-guangzhou/payroll", "--create-key"]
        if key == "both"
        else ["-k", key]
    )
    command = [sys.executable, "-m", "kmsdata.cli", "encrypt", "people.csv", "x.parquet", "-c", "ssn", *keys]
    # Half of a pair of credentials would be another error, if it were looked at first.
    more = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "TENCENTCLOUD_SECRET_ID": "AKIDexample"}
    done = subprocess.run(command, env=os.environ | more, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "error: tencent-kms:// keys need the official SDK, which is not installed: "
        'pip install "tencentcloud-sdk-python-kms>=3.0.1459,<4"'
    )
    assert len(kmsdata.LocalKeystore().list_keys()) == 2


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("tencent-kms://guangzhou/payroll", "'guangzhou' is no region, such as ap-guangzhou"),
        ("tencent-kms://payroll", "'payroll' needs a region before it"),
        ("tencent-kms:payroll", "Did you mean 'tencent-kms://ap-guangzhou/payroll'?"),
        ("local:/payroll", "Did you mean 'local://payroll'?"),
        ("demo", "'demo' is not a key URI"),
    ],
)
def test_wrong_key_uris(key, message):
    with pytest.raises(kmsdata.FormatError) as caught:
        kmsdata.use(key)
    assert message in str(caught.value)


def test_a_long_text_is_not_shown_as_a_key():
    with pytest.raises(kmsdata.FormatError) as caught:
        kmsdata.use("AKIDz8krbsJ5yKBZQpn74WFkmLPx3gnPhESA")
    assert "AKID" not in str(caught.value)


def test_an_endpoint_of_this_machine_without_scheme():
    with pytest.raises(ValueError, match=r"Write http://127\.0\.0\.1:8600 for an emulator"):
        kmsdata.TencentKMS("ap-guangzhou", endpoint="127.0.0.1:8600")


def test_a_new_key_is_compared_with_the_others(capsys):
    kmsdata.LocalKeystore().create_key("payrol")
    assert "similar keys  local://payroll\n" in capsys.readouterr().err


@pytest.mark.newest
def test_an_alias_without_permission_to_list(monkeypatch):
    kms = kmsdata.TencentKMS("ap-guangzhou", credential=("AKIDexample", "secret"))

    def denied(search):
        raise kmsdata.KeyAccessError("kms in ap-guangzhou: no permission", code="UnauthorizedOperation")

    monkeypatch.setattr(kms, "_details", denied)
    with pytest.raises(kmsdata.KeyAccessError, match="or name the KeyId: tencent-kms://ap-guangzhou/<KeyId>"):
        kms.resolve("tencent-kms://ap-guangzhou/payroll")


def test_the_last_state_of_a_progress_bar_has_the_real_total(capsys):
    with Progress("encrypt", 229, "rows", wanted=True) as bar:
        bar.step(344)
    assert "100% of 344 rows" in capsys.readouterr().err.replace("\x1b[K", "").split("\r")[-1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name;ssn\nAda;078\n", "pass --delimiter ';'"),
        ("name\tssn\nAda\t078\n", "pass --delimiter '\\t'"),
        ("Ada,078-05-1120\nBo,219-09-9999\n", "it has 2 fields, none of this name"),
        ("Ada;078-05-1120\nBo;219-09-9999\n", "pass --delimiter ';'"),
        ("078-05-1120\n219-09-9999\n", "it has 1 field, none of this name"),
        ("name,SSN\nAda,078\n", "did you mean 'SSN'?"),
        ("name,social\nAda,078\n", "it has 2 fields, none of this name"),
        ("name,ssn_\nAda,078\n", "did you mean 'ssn_'?"),
    ],
)
def test_a_missing_csv_column_shows_no_value(run, here, text, said):
    (here / "p.csv").write_text(text)
    for more in [], ["--type", "ssn=string"]:
        code, out, err = run("encrypt", "p.csv", "p.parquet", "-c", "ssn", "-k", "payroll", *more)
        assert code == 1
        shown = " ".join((out + err).split())
        assert said in shown
        assert "Ada" not in shown
        assert "1120" not in shown
