"""The command line: keys, help, version, and errors without tracebacks."""

import json
import os
import signal
import subprocess
import sys
import warnings

import pandas as pd
import pytest

import kmsdata
from kmsdata.cli import errors as cli_errors
from kmsdata.cli import output
from kmsdata.keys.local import keystore as local


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    path = tmp_path / "keys" / "keystore.json"
    monkeypatch.setenv("KMSDATA_KEYSTORE", str(path))
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("KMSDATA_KEY", "KMSDATA_PASSPHRASE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return path


def test_version(run):
    assert run("--version") == (0, f"kmsdata {kmsdata.__version__}\n", "")


@pytest.mark.parametrize(
    "command", [[], ["demo"], ["keys"], ["keys", "create"], ["keys", "list"]], ids=" ".join
)
def test_every_command_has_help(run, command):
    code, out, err = run(*command, "--help")
    assert (code, err) == (0, "")
    assert " ".join(["Usage: kmsdata", *command]) in out
    for word in ("--input", "--columns", "--deterministic", "--force") if command == ["demo"] else ():
        assert word in out
    if not command:
        assert "kmsdata demo --input people.csv" in out


def test_create_and_list(run, store):
    code, out, err = run("keys", "create", "payroll")
    assert (code, err) == (0, "")
    assert "local://payroll" in out
    assert str(store) in out
    assert "without a passphrase" in out
    assert "back that file up" in out
    assert run("keys", "create", "local://hr")[0] == 0
    code, out, _ = run("keys", "list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[:3]] == ["key", "local://hr", "local://payroll"]
    assert str(store) in out
    listed = json.loads(run("keys", "list", "--json")[1])
    assert listed["keystore"] == str(store)
    assert listed["passphrase"] is False
    assert [sorted(item) for item in listed["keys"]] == [["created", "id", "key", "rotation", "state"]] * 2


def test_no_secret_is_shown(run, store):
    shown = [*run("keys", "create", "payroll"), *run("keys", "list"), *run("keys", "list", "--json")]
    (entry,) = json.loads(store.read_text())["keys"].values()
    assert entry["secret"] not in " ".join(map(str, shown))


def test_a_passphrase_seals_and_is_said(run, monkeypatch):
    monkeypatch.setenv("KMSDATA_PASSPHRASE", "correct horse")
    code, out, _ = run("keys", "create", "payroll")
    assert code == 0
    assert "protected by a passphrase" in out
    assert "correct horse" not in out
    assert json.loads(run("keys", "list", "--json")[1])["passphrase"] is True
    monkeypatch.setenv("KMSDATA_PASSPHRASE", "wrong horse")
    code, _, err = run("keys", "create", "hr")
    assert code == 1
    assert err.startswith("error: the passphrase (from KMSDATA_PASSPHRASE, or passed in) is wrong for ")


def test_an_empty_list_says_how_to_make_one(run, store):
    code, out, _ = run("keys", "list")
    assert code == 0
    assert "kmsdata keys create NAME" in out
    assert not store.exists()
    assert json.loads(run("keys", "list", "--json")[1])["keys"] == []


def test_keys_are_never_overwritten(run, store):
    run("keys", "create", "payroll")
    before = store.read_bytes()
    code, out, err = run("keys", "create", "local://payroll")
    assert (code, out) == (1, "")
    assert err.startswith("error: local://payroll already exists in ")
    assert "\nhint: " in err
    assert store.read_bytes() == before


@pytest.mark.parametrize("name", ["", "a/b", "a b", "x" * 65, "local://a/b"])
def test_names_that_are_none(run, store, name):
    code, _, err = run("keys", "create", name)
    assert code == 1
    assert err.startswith("error: not a local key URI. It must be local://<name>")
    assert not store.exists()


def test_a_damaged_keystore_is_one_sentence(run, store):
    store.parent.mkdir(mode=0o700)
    store.touch(mode=0o600)
    store.write_text('{"secret": "hush')
    for command in (["keys", "list"], ["keys", "create", "a"], ["demo"]):
        code, _, err = run(*command)
        assert code == 1
        assert err.startswith(f"error: {store} is not a keystore")
        assert len(err.splitlines()) == 1
        assert "hush" not in err


@pytest.mark.parametrize("command", [["nonsense"], ["demo", "--nonsense"], ["keys", "create"]], ids=" ".join)
def test_wrong_usage_exits_2(run, command):
    code, out, err = run(*command)
    assert (code, out) == (2, "")
    assert "--help" in err or "-h" in err
    assert "Traceback" not in err


def test_as_a_module_without_a_traceback(tmp_path):
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-m", "kmsdata.cli", "keys", "create", "a"],
        env=os.environ | {"KMSDATA_KEYSTORE": str(tmp_path / "file" / "keystore.json")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_an_interruption_is_quiet():
    waiting = (
        "import time, kmsdata.cli.app as cli\n"
        "cli._demo.run = lambda *_, **__: (print('ready', flush=True), time.sleep(30))\n"
        "cli.main(['demo'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", waiting], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=20) == ("", "")
            assert process.returncode == 130
        finally:
            process.kill()  # if the test failed it may still run, and the end of the block would wait for it


# Text that a file may contain.

HOSTILE = "a\x1b[2J\x9b31m\u202ename"


def test_nothing_that_a_file_says_controls_the_terminal(run, tmp_path, monkeypatch):
    """Names of columns and files, in reports, tables, JSON, warnings and errors."""
    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame({HOSTILE: [1, 2], "b": [1, 2]})
    enc = frame.kms.encrypt([HOSTILE, "b"], key="local://demo", context={HOSTILE: HOSTILE})
    path = tmp_path / f"{HOSTILE}.parquet"
    enc.kms.to_parquet(path)
    runs = [
        ("inspect", path),
        ("inspect", path, "--json"),
        ("verify", path),
        ("verify", path, "--json"),
        ("verify", path, "-e", "c"),
        ("verify", path, "-k", "other"),
        ("decrypt", path, f"{HOSTILE}.plain.parquet"),
        ("decrypt", path, "c.parquet", "--json"),
        ("decrypt", path, "d.parquet", "-k", "other"),
        ("decrypt", path, "e.parquet", "--context", f"{HOSTILE}=x"),
        ("decrypt", f"{HOSTILE}.missing", "f.parquet"),
        ("decrypt", path, f"{HOSTILE}.plain.parquet"),
        ("encrypt", path, "g.parquet", "-c", HOSTILE, "-k", "demo"),
        ("encrypt", path, "g.parquet", "-c", f"{HOSTILE}!", "-k", "demo"),
        ("rewrap", path, "-k", "demo", "--dry-run"),
        ("rewrap", path, "-k", "none", "--json"),
        ("rewrap", f"{HOSTILE}.missing", "-k", "next"),
        ("demo", "--input", path, "--columns", "b"),
    ]
    for arguments in runs:
        _, out, errors = run(*map(str, arguments))
        shown = (out + errors).replace("\n", "")
        assert shown
        assert shown.isprintable(), (arguments, shown)


def test_json_of_hostile_names_is_read_back(run, tmp_path):
    path = tmp_path / "a.parquet"
    astral = f"{HOSTILE}\U000e0001"
    pd.DataFrame({astral: [1]}).kms.encrypt(astral, key="local://demo").kms.to_parquet(path)
    _, out, _ = run("inspect", str(path), "--json")
    assert json.loads(out)["columns"][0]["name"] == astral


@pytest.mark.parametrize(
    ("show", "arguments"),
    [
        ("say", ("Label", HOSTILE)),
        ("show_report", (f"{HOSTILE}\n{HOSTILE}",)),
        ("show_error", (HOSTILE, HOSTILE)),
        ("show_warning", (HOSTILE,)),
        ("show_table", (["key", "b"], "b", [{"key": HOSTILE, "b": HOSTILE}])),
    ],
)
def test_each_way_to_print_escapes_what_controls_the_terminal(capsys, show, arguments):
    getattr(output, show)(*arguments)
    captured = capsys.readouterr()
    shown = (captured.out + captured.err).replace("\n", "")
    assert r"\x1b[2J" in shown
    assert shown.isprintable()


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line(capsys):
    with cli_errors.guarded_call():
        warnings.warn("pass key=, \x1b[2J", stacklevel=1)
    assert capsys.readouterr().err == "warning: pass --key, \\x1b[2J\n"


# Keys that do not exist.


@pytest.fixture
def no_terminal(monkeypatch):
    monkeypatch.setattr(local, "_interactive", lambda: False)


def test_a_mistyped_key_makes_no_key(run, tmp_path, monkeypatch, no_terminal, store):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"a": [1]}).to_parquet("plain.parquet")
    run("keys", "create", "payroll")
    before = store.read_bytes()
    code, _, errors = run("encrypt", "plain.parquet", "a.parquet", "-c", "a", "-k", "payrol")
    assert code == 1
    assert "Did you mean local://payroll?" in errors
    assert "--create-key" in errors
    assert "LocalKeystore(" not in errors
    assert not (tmp_path / "a.parquet").exists()
    assert run("encrypt", "plain.parquet", "a.parquet", "-c", "a", "-k", "payroll")[0] == 0
    for more in ((), ("--add",)):
        code, _, errors = run("rewrap", "a.parquet", "-k", "nxt", *more)
        assert (code, "there is no local://nxt" in errors) == (1, True)
    assert store.read_bytes() == before


def test_create_key_creates_it_and_says_so(run, tmp_path, monkeypatch, no_terminal):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"a": [1]}).to_parquet("plain.parquet")
    code, _, errors = run("encrypt", "plain.parquet", "a.parquet", "-c", "a", "-k", "one", "--create-key")
    assert (code, "created the key local://one" in errors) == (0, True)
    code, _, errors = run("rewrap", "a.parquet", "-k", "two", "--create-key")
    assert (code, "created the key local://two" in errors) == (0, True)
    assert run("decrypt", "a.parquet", "b.parquet", "-k", "two")[0] == 0
    # --create-key was for those commands only.
    assert run("encrypt", "plain.parquet", "c.parquet", "-c", "a", "-k", "three")[0] == 1


def test_a_key_in_the_environment_without_its_scheme(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"a": [1], "b": [2]}).to_parquet("plain.parquet")
    monkeypatch.setenv("KMSDATA_KEY", "payroll")
    code, _, errors = run("encrypt", "plain.parquet", "a.parquet", "-c", "a")
    assert (code, "created the key local://payroll" in errors) == (0, True)
    assert kmsdata.inspect("a.parquet").data_keys[0].keys == ("local://payroll",)
    monkeypatch.setenv("KMSDATA_KEY", "AKIDz8krbsJ5yKBZQpn74WFkmLPx3gnPhESA")
    assert "AKID" not in "".join(run("encrypt", "plain.parquet", "a.parquet", "-c", "a")[1:])


def test_verify_tells_failed_from_could_not_be_checked(run, tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    pd.DataFrame({"a": [1], "b": [1]}).kms.encrypt("a", key="local://demo").kms.to_parquet(path)
    monkeypatch.setenv("COLUMNS", "400")
    code, out, _ = run("verify", str(path), "-k", "other")
    assert (code, "COULD NOT BE CHECKED" in out, "FAILED" in out) == (1, True, False)
    code, out, _ = run("verify", str(path), "-e", "b")
    assert (code, "COULD NOT BE CHECKED" in out, "FAILED" in out) == (3, False, True)
