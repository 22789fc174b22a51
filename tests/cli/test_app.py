"""The command line: keys, help, version, and errors without tracebacks."""

import json
import os
import signal
import subprocess
import sys

import pytest

import kmsdata


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
