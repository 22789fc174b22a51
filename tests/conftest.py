"""Each test has a keystore of its own, and a session without a key."""

import contextlib
import importlib.resources
import os
import threading

import pandas as pd
import pytest

import kmsdata
from kmsdata.cli.app import main
from kmsdata.keys import fork_lock as forks
from kmsdata.keys import session


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """In CI nothing passes by skipping, but for what pandas' own suite skips for a dtype like ours."""
    report = yield
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        where = str(report.longrepr[0])
        if "site-packages" not in where:
            report.outcome, report.longrepr = "failed", f"skipped in CI: {report.longrepr[2]}"
    return report


@pytest.fixture(autouse=True)
def keystore(tmp_path, monkeypatch):
    path = tmp_path / "keystore" / "keystore.json"
    monkeypatch.setenv("KMSDATA_KEYSTORE", str(path))
    monkeypatch.delenv("KMSDATA_KEY", raising=False)
    monkeypatch.delenv("KMSDATA_PASSPHRASE", raising=False)
    monkeypatch.setattr(session, "_process", [])
    monkeypatch.setattr(session, "_keystores", {})
    monkeypatch.setattr(session, "_services", {})
    monkeypatch.setattr(session, "_cache", kmsdata.KeyCache())
    monkeypatch.setattr(session, "_held", [])
    return path


@pytest.fixture
def run(capsys):
    """A command's exit code, output and errors."""

    def call(*arguments):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def locked():
    """A block while which another thread holds every lock of kmsdata: a fork may come at any moment."""

    @contextlib.contextmanager
    def block():
        ready, over = threading.Event(), threading.Event()

        def hold():
            with contextlib.ExitStack() as stack:
                for lock in list(forks._locks):
                    stack.enter_context(lock)
                ready.set()
                over.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        ready.wait()
        try:
            yield
        finally:
            over.set()
            thread.join()

    return block


@pytest.fixture(scope="session")
def titanic():
    with (importlib.resources.files("kmsdata") / "data" / "titanic.csv").open() as file:
        return pd.read_csv(file)
