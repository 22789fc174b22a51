"""The commands for files: what they write and print, their help, their exit codes, and how they stop."""

import fcntl
import json
import os
import pty
import re
import resource
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kmsdata
from kmsdata.cli import file_commands as cli_files

ROOT = Path(kmsdata.__file__).parent.parent
COMMANDS = ["encrypt", "decrypt", "inspect", "verify", "rewrap"]
KEY = ["--key", "local://payroll"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    kmsdata.LocalKeystore().create_key("payroll", quiet=True)
    kmsdata.LocalKeystore().create_key("next", quiet=True)
    return folder


@pytest.fixture
def plain(here, titanic):
    titanic.to_parquet(here / "titanic.parquet", index=False)
    return "titanic.parquet"


@pytest.fixture
def sealed(plain):
    kmsdata.encrypt_parquet(
        plain, "sealed.parquet", "name", deterministic="ticket", key="local://payroll", progress=False
    )
    return "sealed.parquet"


@pytest.fixture
def tampered(here):
    frame = pd.DataFrame({"name": ["Ada", "Bo", "Cy"], "city": ["Ulm", "Bonn", "Ulm"]})
    enc = frame.kms.encrypt("name", key="local://payroll")
    cells = enc["name"].array.storage.to_pylist()
    cells[1] = cells[1][:-1] + bytes([cells[1][-1] ^ 1])
    bad = kmsdata.EncryptedArray(pa.array(cells, pa.large_binary()), enc["name"].dtype)
    enc.assign(name=bad).kms.to_parquet("tampered.parquet")
    return "tampered.parquet"


def everything(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Round trips.


def test_a_file_there_and_back(run, plain, titanic):
    code, out, err = run("encrypt", plain, "sealed.parquet", "-c", "name", "-d", "ticket", *KEY)
    assert (code, err) == (0, "")
    assert "name, ticket" in out
    assert "1,309 rows" in out
    assert "1 KMS call" in out
    assert kmsdata.inspect("sealed.parquet").encrypted == ["name", "ticket"]
    assert run("decrypt", "sealed.parquet", "back.parquet")[0] == 0
    pd.testing.assert_frame_equal(pd.read_parquet("back.parquet"), pd.read_parquet(plain))


def test_one_column_of_several_is_decrypted(run, sealed):
    code, out, _ = run("decrypt", sealed, "half.parquet", "--columns", "ticket", "--json")
    assert (code, json.loads(out)["columns"]) == (0, ["ticket"])
    assert kmsdata.inspect("half.parquet").encrypted == ["name"]


def test_csv_with_types(run, here, titanic):
    titanic.to_csv("titanic.csv", index=False)
    arguments = ("encrypt", "titanic.csv", "sealed.parquet", "-c", "name", *KEY, "--type", "age=string")
    assert json.loads(run(*arguments, "--json")[1])["files"] == 1
    assert pq.read_schema("sealed.parquet").field("age").type == pa.string()
    assert kmsdata.read_parquet("sealed.parquet", decrypt=True)["name"].tolist() == titanic["name"].tolist()


def test_a_hive_dataset(run, titanic):
    titanic.to_parquet("hive", index=False, partition_cols=["pclass"])
    code, out, _ = run("encrypt", "hive", "sealed/", "-c", "name", *KEY)
    assert code == 0
    assert "1,309 rows in 3 files" in out
    assert run("verify", "sealed", "--encrypted", "name")[0] == 0
    assert "local://next now opens 3 file(s)" in run("rewrap", "sealed", "-k", "next")[1]
    assert run("decrypt", "sealed", "back")[0] == 0
    pd.testing.assert_frame_equal(pd.read_parquet("back"), pd.read_parquet("hive"))
    code, _, err = run("encrypt", "hive", "other", "-c", "pclass", *KEY)
    assert (code, "its values would stay unencrypted in the paths" in err) == (1, True)


def test_names_with_commas_and_domains_and_context(run):
    pd.DataFrame({"last, first": ["Ada"], "id": ["1"], "x": [1]}).to_parquet("odd.parquet", index=False)
    arguments = ["-c", '"last, first",x', "-d", "id", "--domain", "id=people", "--context", "for=a=b"]
    assert run("encrypt", "odd.parquet", "sealed.parquet", *arguments, *KEY, "-k", "next")[0] == 0
    found = kmsdata.inspect("sealed.parquet")
    assert found.encrypted == ["last, first", "id", "x"]
    assert found.columns[1].domain == "people"
    assert found.data_keys[0].context == {"for": "a=b"}
    assert found.data_keys[0].keys == ("local://payroll", "local://next")
    assert run("decrypt", "sealed.parquet", "p.parquet", "--context", "for=other")[0] == 1
    assert run("decrypt", "sealed.parquet", "p.parquet", "--context", "for=a=b")[0] == 0


# What they show.


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_one_document_and_nothing_else(run, sealed, command):
    arguments = {
        "encrypt": ["titanic.parquet", "other.parquet", "-c", "name", *KEY],
        "decrypt": [sealed, "plain.parquet"],
        "rewrap": [sealed, "--key", "local://next"],
    }.get(command, [sealed])
    code, out, err = run(command, *arguments, "--json")
    assert (code, err) == (0, "")
    assert isinstance(json.loads(out), dict)


def test_a_dry_run_writes_nothing_and_is_about_right(run, plain, here):
    before = everything(here)
    calls = kmsdata.usage().calls
    arguments = ["encrypt", plain, "sealed.parquet", "-c", "name", *KEY]
    dry = json.loads(run(*arguments, "--dry-run", "--json")[1])
    code, out, _ = run(*arguments, "--dry-run")
    assert (code, "Dry run" in out, "1 KMS call, at most" in out) == (0, True, True)
    assert everything(here) == before
    assert kmsdata.usage().calls == calls
    done = json.loads(run(*arguments, "--json")[1])
    assert (dry["dry_run"], done["dry_run"]) == (True, False)
    assert (dry["rows"], dry["kms_calls"], dry["columns"]) == (done["rows"], done["kms_calls"], ["name"])
    assert 0.5 < dry["bytes"] / done["bytes"] < 2
    code, out, _ = run("decrypt", "sealed.parquet", "back.parquet", "--dry-run")
    assert (code, "about 1,309 rows" in out, Path("back.parquet").exists()) == (0, True, False)


@pytest.mark.parametrize(
    ("arguments", "keys", "calls"),
    [
        (["-k", "next"], {"local://next": 3}, 2),
        (["-k", "next", "--add"], {"local://next": 3, "local://payroll": 3}, 2),
        (["-k", "payroll", "--add"], {"local://payroll": 3}, 0),
        (["-k", "payroll", "--source", "payroll"], {"local://payroll": 3}, 2),
    ],
)
def test_a_dry_run_of_rewrap_says_what_comes(run, titanic, here, arguments, keys, calls):
    titanic.to_parquet("hive", index=False, partition_cols=["pclass"])
    run("encrypt", "hive", "sealed", "-c", "name", *KEY)
    before, counted = everything(here), kmsdata.usage().calls
    dry = json.loads(run("rewrap", "sealed", *arguments, "--dry-run", "--json")[1])
    assert "would " in run("rewrap", "sealed", "-k", "next", "--dry-run")[1]
    assert everything(here) == before
    assert kmsdata.usage().calls == counted
    done = json.loads(run("rewrap", "sealed", *arguments, "--json")[1])
    assert (dry.pop("dry_run"), done.pop("dry_run")) == (True, False)
    assert dry == done
    assert (done["keys"], done["kms_calls"]) == (keys, calls)
    assert kmsdata.usage().calls - counted == calls
    code, _, err = run("rewrap", "sealed", "--retire", "next", "--retire", "payroll", "--dry-run")
    assert (code, "could never be decrypted again" in err) == (1, True)


def test_a_dry_run_is_for_paths(sealed):
    enc = kmsdata.read_parquet(sealed)
    for x in (enc, pq.read_table(sealed)):
        with pytest.raises(ValueError, match="dry_run=True is for paths"):
            kmsdata.rewrap(x, "local://next", dry_run=True)


def test_inspect_takes_no_key(run, sealed, keystore):
    keystore.unlink()
    code, out, err = run("inspect", sealed)
    assert (code, err) == (0, "")
    assert "2 of 14 columns encrypted" in out
    assert "local://payroll" in out


def test_in_a_terminal_it_fits_and_has_colours(sealed):
    code, shown = in_terminal("inspect", sealed)
    assert code == 0
    assert "\x1b[35m" in shown
    lines = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", shown).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 24
    assert any(line.split()[:3] == ["[x]", "ticket", "encrypted"] for line in lines)


def in_terminal(*arguments, before=""):
    """Return a command's exit code, and what it writes to a terminal of 80 columns."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    code = f"{before}\nfrom kmsdata.cli.app import main\nmain({list(arguments)!r})"
    environment = {name: text for name, text in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=its,
        stdout=its,
        stderr=its,
        env=environment | {"TERM": "xterm", "PYTHONPATH": str(ROOT)},
    ) as process:
        os.close(its)
        shown = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # Linux raises EIO when the other end is closed
                break
            if not part:
                break
            shown += part
    os.close(ours)
    return process.returncode, shown.decode()


def large(path, rows=600_000, **options):
    frame = pd.DataFrame({"ssn": np.arange(rows).astype(str), "part": np.arange(rows) % 2})
    frame.to_parquet(path, index=False, **options)


def test_progress_in_a_terminal_stays_on_its_line(here):
    large("big.parquet", row_group_size=10_000)
    at_once = "import kmsdata.display.progress as p\np._PATIENCE = p._EVERY = 0.02"
    code, shown = in_terminal("encrypt", "big.parquet", "out.parquet", "-c", "ssn", *KEY, before=at_once)
    assert code == 0
    bars = re.findall(r"\r(encrypt \[[^\r\x1b]*)\x1b\[K", shown)
    assert len(bars) > 2
    assert all(len(bar) < 80 for bar in bars)
    assert any(all(word in bar for word in ("% of 600,000 rows", "/s", "s left")) for bar in bars)
    assert bars[-1].endswith("done")


def test_no_progress_in_a_pipe(here):
    large("big.parquet", row_group_size=10_000)
    code = (
        "import kmsdata.display.progress as p\np._PATIENCE = p._EVERY = 0.02\n"
        f"from kmsdata.cli.app import main\n"
        f"main({['encrypt', 'big.parquet', 'o.parquet', '-c', 'ssn', *KEY]!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "\r" not in done.stdout
    assert "\x1b" not in done.stdout


# Exit codes.


def test_verify_tells_data_that_is_bad_from_keys_that_are_refused(run, sealed, tampered):
    assert run("verify", sealed, "-e", "name,ticket")[0] == 0
    code, out, err = run("verify", tampered)
    assert (code, err) == (3, "")
    assert "FAILED" in out
    assert "1 cell (row 1)" in out
    assert run("verify", sealed, "-e", "age")[0] == 3  # a header that was removed
    assert run("verify", "titanic.parquet")[0] == 3  # nothing is encrypted
    code, out, _ = run("verify", sealed, "-k", "local://next")
    assert (code, "not verified" in out, "pass that URI as --key" in out) == (1, True, True)
    run("keys", "disable", "payroll")
    assert run("verify", sealed)[0] == 1
    assert json.loads(run("verify", sealed, "--json")[1])["ok"] is False
    assert run("verify", "nothing.parquet")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said", "hint"),
    [
        (["encrypt", "none.parquet", "x.parquet", "-c", "a", *KEY], 1, "there is no file: ", ""),
        (["inspect", "none.parquet"], 1, "there is no file: ", ""),
        (["decrypt", "none.parquet", "x.parquet"], 1, "there is no file: ", ""),
        (["rewrap", "none.parquet", *KEY], 1, "there is no file: none.parquet", ""),
        (["encrypt", "text.parquet", "x.parquet", "-c", "a", *KEY], 1, "text.parquet", ""),
        (["inspect", "text.parquet"], 1, "text.parquet is not a Parquet file", ""),
        (["encrypt", "titanic.parquet", "x.parquet", "-c", "nmae", *KEY], 1, "did you mean 'name'?", ""),
        (["decrypt", "sealed.parquet", "x.parquet", "-c", "tickets"], 1, "did you mean 'ticket'?", ""),
        (["encrypt", "titanic.parquet", "x.parquet", "-c", "name"], 2, "no key", "KMSDATA_KEY"),
        (["encrypt", "titanic.parquet", "x.parquet", *KEY], 2, "no column", "--columns A,B"),
        (["encrypt", "titanic.parquet", "x.parquet", "-c", "name", "-k", "a b"], 1, "local://<name>", ""),
        (["encrypt", "titanic.parquet", "x.parquet", "-c", "name", "-k", "foo://a"], 1, "foo", ""),
        (["encrypt", "titanic.parquet", "sealed.parquet", "-c", "name", *KEY], 1, "--force replaces it", ""),
        (["encrypt", "titanic.parquet", "titanic.parquet", "-c", "name", *KEY, "-f"], 1, "the source", ""),
        (["encrypt", "sealed.parquet", "x.parquet", "-c", "name", *KEY], 1, "encrypted already", ""),
        (
            ["encrypt", "titanic.parquet", "x.parquet", "-c", "name", *KEY, "--context", "a"],
            2,
            "NAME=T",
            "a=",
        ),
        (["encrypt", "t.csv", "x.parquet", "-c", "a", *KEY, "--type", "b=string"], 1, "--type names 'b'", ""),
        (["encrypt", "t.csv", "x.parquet", "-c", "a", *KEY, "--type", "a=nought"], 1, "--type says", ""),
        (["decrypt", "titanic.parquet", "x.parquet"], 1, "has no kmsdata header", ""),
        (["decrypt", "tampered.parquet", "x.parquet"], 1, "tampered.parquet", ""),
        pytest.param(
            *(["decrypt", "sealed.parquet", "x.parquet", "-k", "next"], 1, "pass that URI as --key", ""),
            id="arguments20-1-pass --key with that URI-",
        ),
        (["rewrap", "titanic.parquet", *KEY], 1, "nothing in it is encrypted", ""),
        (["rewrap", "sealed.parquet"], 2, "name the new key, or one to retire", "--retire"),
        (["rewrap", "sealed.parquet", "-k", "next", "--source", "local://x"], 1, "(--source), or --add", ""),
        pytest.param(
            *(
                ["rewrap", "sealed.parquet", "--retire", "payroll"],
                1,
                "Add another master key first (--add)",
                "",
            ),
            id="arguments24-1-add another wrap first (--add)-",
        ),
        (["rewrap", "sealed.parquet", "-k", "local://missing*"], 1, "local://<name>", ""),
    ],
)
def test_errors_are_one_line(run, sealed, tampered, here, arguments, code, said, hint):
    Path("text.parquet").write_text("this is no Parquet file, though it is called one")
    Path("t.csv").write_text("a\n1\n")
    before = everything(here)
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    lines = err.splitlines()
    assert len(lines) == (2 if hint else 1), err
    assert lines[0].startswith("error: ")
    assert said in lines[0]
    assert not hint or (lines[1].startswith("hint: ") and hint in lines[1])
    assert not re.search(r"\w=True|key=|Traceback|\bErrno\b", err)
    assert everything(here) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_urls_that_nobody_knows(run, command):
    more = {"encrypt": ["x.parquet", "-c", "a", *KEY], "decrypt": ["x.parquet"], "rewrap": KEY}
    code, out, err = run(command, "foo://a", *more.get(command, []))
    assert (code, out) == (1, "")
    assert err.startswith("error: Protocol not known: foo. Install the fsspec package for this protocol\n")
    assert len(err.splitlines()) == 1


def test_a_denied_key(run, sealed, here):
    run("keys", "disable", "payroll")
    before = everything(here)
    for arguments in (
        ["decrypt", sealed, "x.parquet"],
        ["rewrap", sealed, "-k", "next"],
        ["encrypt", "titanic.parquet", "x.parquet", "-c", "name", *KEY],
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (1, "")
        assert err.startswith("error: ")
        assert "local://payroll" in err
    assert everything(here) == before


def test_a_full_disk(run, plain, here):
    before, limits = everything(here), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        code, out, err = run("encrypt", plain, "sealed.parquet", "-c", "name", *KEY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, out) == (1, "")
    assert err.startswith("error: File too large")
    assert everything(here) == before


def test_force_replaces(run, sealed):
    before = Path(sealed).read_bytes()
    assert run("encrypt", "titanic.parquet", sealed, "-c", "name", *KEY, "--force")[0] == 0
    assert Path(sealed).read_bytes() != before


def test_a_dataset_of_which_some_failed_says_which(run, titanic):
    titanic.to_parquet("hive", index=False, partition_cols=["pclass"])
    run("encrypt", "hive", "sealed", "-c", "name", *KEY)
    (bad,) = Path("sealed/pclass=2").glob("*")
    bad.write_bytes(b"PAR1 cut short")
    code, out, err = run("rewrap", "sealed", "-k", "next", "--json")
    report = json.loads(out)
    assert (code, report["rewrapped"], len(report["failed"])) == (1, 2, 1)
    assert err.startswith("error: 1 of 3 files")


def test_rewrap_adds_and_retires(run, sealed):
    assert "local://next now opens 1 file(s)" in run("rewrap", sealed, "-k", "next", "--add")[1]
    assert kmsdata.inspect(sealed).data_keys[0].keys == ("local://payroll", "local://next")
    assert run("rewrap", sealed, "--retire", "payroll")[0] == 0
    assert kmsdata.inspect(sealed).data_keys[0].keys == ("local://next",)
    assert run("rewrap", sealed, "--key", "payroll", "--source", "next")[0] == 0
    assert kmsdata.inspect(sealed).data_keys[0].keys == ("local://payroll",)


def test_a_bug_is_not_called_a_mistake_of_the_users(run, sealed, monkeypatch):
    for broken in (lambda *_, **__: {}["column"], lambda *_, **__: int("x"), lambda *_, **__: len(5)):
        monkeypatch.setattr(kmsdata, "inspect", broken)
        with pytest.raises((KeyError, ValueError, TypeError)):
            cli_files.inspect(sealed)


# Stopping.


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("kind", ["file", "folder", "decrypt"])
def test_a_stopped_run_leaves_nothing_behind(here, stop, kind):
    if kind == "folder":
        large("big", partition_cols=["part"])
        arguments = ["encrypt", "big", "out/big", "-c", "ssn", *KEY]
    else:
        large("big.parquet", row_group_size=10_000)
        arguments = ["encrypt", "big.parquet", "out/big.parquet", "-c", "ssn", *KEY]
    if kind == "decrypt":
        kmsdata.encrypt_parquet("big.parquet", "sealed.parquet", "ssn", key="local://payroll")
        arguments = ["decrypt", "sealed.parquet", "out/big.parquet"]
    Path("out").mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "kmsdata.cli", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            while not any(Path("out").iterdir()):
                assert process.poll() is None, process.communicate()
                time.sleep(0.001)
            process.send_signal(stop)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()  # if the test failed it may still run, and the end of the block would wait for it
    assert process.returncode == 128 + stop
    assert (out, err) == ("", "")
    assert list(Path("out").iterdir()) == []


# Help.


def example_lines(text):
    return [line.strip() for line in text.splitlines() if line.strip().startswith("kmsdata ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_the_help_run(run, command, monkeypatch):
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    examples = example_lines(out)
    assert examples
    monkeypatch.setenv("KMSDATA_KEY", "local://payroll")
    for number, example in enumerate(examples):
        folder = Path(f"example{number}").absolute()
        folder.mkdir()
        with monkeypatch.context() as inside:
            inside.chdir(folder)
            people(folder, sealed=command != "encrypt")
            arguments = shlex.split(example)
            assert arguments[:2] == ["kmsdata", command]
            assert run(*arguments[1:])[0] == 0, example


def people(folder, *, sealed):
    frame = pd.DataFrame(
        {"name": ["Ada", "Bo"], "ssn": ["1", "2"], "email": ["a@x.org", "b@x.org"], "year": [2025, 2026]}
    )
    frame.to_csv(folder / "people.csv", index=False)
    frame.to_parquet(folder / "people.parquet", index=False)
    frame.to_parquet(folder / "data", index=False, partition_cols=["year"])
    frame.kms.encrypt(deterministic="email", key="local://payroll").kms.to_parquet(folder / "old.parquet")
    if sealed:
        both = {"key": ["local://payroll", "local://recovery"]}
        kmsdata.encrypt_parquet(folder / "people.parquet", folder / "sealed.parquet", ["name", "ssn"], **both)
        kmsdata.encrypt_parquet(folder / "data", folder / "sealed", ["name", "ssn"], **both)


def test_exit_codes_are_in_the_help(run):
    for arguments in (["--help"], ["verify", "--help"]):
        out = " ".join(run(*arguments)[1].split())
        assert "Exit codes" in out
        for word in ("0 ", "1 ", "2 wrong usage", "3 not authentic", "130 interrupted"):
            assert word in out


@pytest.mark.slow
def test_the_readme_lines_run(here):
    section = (ROOT / "docs" / "command-line.md").read_text()
    lines = "".join(re.findall(r"```bash\n(.*?)```", section, re.DOTALL))
    people(here, sealed=False)
    script = f'kmsdata() {{ {shlex.quote(sys.executable)} -m kmsdata.cli "$@"; }}\n{lines}'
    done = subprocess.run(
        ["bash", "-e", "-c", script],  # noqa: S607
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # Before pandas 3, text from Parquet has None for a null, and text from CSV has NaN.
    back, given = (
        frame.astype(object).where(frame.notna(), None)
        for frame in (pd.read_parquet("plain.parquet"), pd.read_csv("people.csv", dtype={"ssn": "str"}))
    )
    pd.testing.assert_frame_equal(back, given)
    for command in COMMANDS:
        assert f"kmsdata {command} " in lines
    for word in ("0", "1", "2", "3", "130"):
        assert f"`{word}`" in section


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(here, shell):
    script = 'import sys, kmsdata.cli.app as cli; sys.argv[0] = "kmsdata"; cli.main()'
    environment = os.environ | {"PYTHONPATH": str(ROOT), "_KMSDATA_COMPLETE": f"source_{shell}"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert f"complete_{shell}" in done.stdout
    assert "kmsdata" in done.stdout


def test_bash_completes_a_command(here):
    script = "import kmsdata.cli.app as cli; cli.main()"
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "_KMSDATA_COMPLETE": "complete_bash",
        "COMP_WORDS": "kmsdata re",
        "COMP_CWORD": "1",
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["rewrap"]
    asked = environment | {"_KMSDATA_COMPLETE": ""}
    shown = subprocess.run(
        ["bash", "-c", f"{shlex.quote(sys.executable)} -m kmsdata.cli --show-completion; true"],  # noqa: S607
        env=asked,
        capture_output=True,
        text=True,
    )
    assert "_KMSDATA_COMPLETE=complete_bash" in shown.stdout
