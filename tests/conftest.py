"""Selection of tests, failures for skipped tests in CI, and fixtures: a keystore and a session per test."""

import contextlib
import importlib.resources
import importlib.util
import os
import signal
import sys
import threading
import warnings
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from pytest_timeout import Settings

import kmsdata
from kmsdata.cli.app import main
from kmsdata.keys import fork_lock as forks
from kmsdata.keys import session
from kmsdata.keys.local import keystore as local

IN_CI = bool(os.environ.get("CI"))

# Tests that `pytest` alone leaves out.

LONG = ("slow", "browser")  # marks
LONG_LIMIT = 600  # seconds that one such test may take; `timeout` in pyproject.toml is for all others
TEARDOWN_LIMIT = 120  # seconds
LEFT_OUT = pytest.StashKey[Counter]()
MISSING = "that need "  # before the package that is missing: tests of engines


def missing_engine(item):
    """Return the first package that a test of an engine needs and this environment lacks."""
    needed = [name for mark in item.iter_markers("engine") for name in mark.args]
    return next((name for name in needed if importlib.util.find_spec(name) is None), None)


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help=f"run the tests marked {' or '.join(LONG)} too")


@pytest.hookimpl(trylast=True)  # after the deselection by -m and -k
def pytest_collection_modifyitems(config, items):
    """Leave out long tests, except where the command line selects tests by mark, by file or by name.

    Outside CI, tests of an engine that is not installed are left out too; in CI they fail.
    """
    marks = {item: next((mark for mark in LONG if item.get_closest_marker(mark)), None) for item in items}
    for item, mark in marks.items():
        if mark and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LONG_LIMIT))
    config.stash[LEFT_OUT] = Counter()
    missing = {} if IN_CI else {item: name for item in items if (name := missing_engine(item))}
    if missing:
        items[:] = [item for item in items if item not in missing]
        config.hook.pytest_deselected(items=list(missing))
        config.stash[LEFT_OUT].update(MISSING + name for name in missing.values())
    option = config.option
    folders_only = all(Path(argument).is_dir() for argument in config.args)
    if option.all or option.markexpr or option.collectonly or not folders_only:
        return
    left_out = [item for item in items if marks[item]]
    items[:] = [item for item in items if not marks[item]]
    config.hook.pytest_deselected(items=left_out)
    config.stash[LEFT_OUT].update(marks[item] for item in left_out)


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # a worker of pytest-xdist: only the controller prints
        session.config.workeroutput["left_out"] = dict(session.config.stash.get(LEFT_OUT, {}))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Take the count from a worker of pytest-xdist: each worker collects all tests, the controller none."""
    if left_out := getattr(node, "workeroutput", {}).get("left_out"):
        node.config.stash[LEFT_OUT] = Counter(left_out)


def pytest_terminal_summary(terminalreporter, config):
    left_out = config.stash.get(LEFT_OUT, Counter())
    if needed := [f"{left_out[mark]} {mark}" for mark in left_out if mark.startswith(MISSING)]:
        terminalreporter.write_line(
            f'Left out: {", ".join(needed)}. To run them: pip install -e ".[engines]"'
        )
    if any(left_out[mark] for mark in LONG):
        counted = ", ".join(f"{left_out[mark]} marked {mark}" for mark in LONG if left_out[mark])
        terminalreporter.write_line(f"Left out: {counted}. To run everything: pytest --all")


# Nothing passes in CI by being skipped.


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """In CI a skipped test fails, except those that pandas' own test suite skips for a dtype like ours."""
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        where, _, reason = report.longrepr
        if "site-packages" not in str(where):
            report.outcome, report.longrepr = "failed", f"skipped in CI: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """In CI a file without tests is an error: for example one that skips itself where an extra is missing."""
    report = yield
    if IN_CI and isinstance(collector, pytest.Module) and not report.failed and not report.result:
        reason = report.longrepr[2] if report.skipped else "it contains no tests"
        report.outcome, report.longrepr = "failed", f"vanished in CI: {reason}"
    return report


# Time limits and signals.


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item):
    """Limit the time of each teardown: pytest-timeout stops its timer, for debuggers, when a test fails."""
    limit = Settings(TEARDOWN_LIMIT, "signal", func_only=False, disable_debugger_detection=False)
    item.ihook.pytest_timeout_cancel_timer(item=item)
    item.ihook.pytest_timeout_set_timer(item=item, settings=limit)
    return (yield)


@pytest.fixture(scope="session", autouse=True)
def sigint_is_not_ignored():
    """Handle SIGINT as in the foreground. A shell starts background jobs with SIGINT ignored, and child
    processes inherit this: tests that send SIGINT would wait for a process that does not stop."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# A keystore and a session for each test.


@pytest.fixture(autouse=True)
def keystore(tmp_path, monkeypatch):
    path = tmp_path / "keystore" / "keystore.json"
    monkeypatch.setenv("KMSDATA_KEYSTORE", str(path))
    monkeypatch.delenv("KMSDATA_KEY", raising=False)
    monkeypatch.delenv("KMSDATA_PASSPHRASE", raising=False)
    monkeypatch.setattr(session, "_process", session._State())
    monkeypatch.setattr(session, "_keystores", {})
    monkeypatch.setattr(session, "_services", {})
    monkeypatch.setattr(session, "_cache", kmsdata.KeyCache())
    monkeypatch.setattr(session, "_installed", {})
    monkeypatch.setattr(session, "_held", [])
    # As in a terminal: the first use of a key creates it. Tests of the rule itself take this back.
    monkeypatch.setattr(local, "_interactive", lambda: True)
    return path


@pytest.fixture
def run(capsys):
    """Run a command; return its exit code, output and errors."""

    def call(*arguments):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def locked():
    """A block during which another thread holds every lock of kmsdata, as can happen at a fork."""

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


@pytest.fixture(scope="session")
def spark_session(tmp_path_factory):
    """Return a Spark session in this process: its Java process starts once."""
    folder = tmp_path_factory.mktemp("spark")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ["PYSPARK_PYTHON"] = sys.executable
        from pyspark.sql import SparkSession

        session = (
            SparkSession.builder.master("local[1]")
            .config("spark.ui.enabled", "false")
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.driver.bindAddress", "127.0.0.1")
            .config("spark.driver.memory", "700m")
            .config("spark.sql.session.timeZone", "UTC")
            .config("spark.sql.shuffle.partitions", "1")
            .config("spark.sql.warehouse.dir", str(folder / "warehouse"))
            .config("spark.driver.extraJavaOptions", f"-Dderby.system.home={folder}")
            .getOrCreate()
        )
    # Python workers live longer than a test, so they keep one keystore.
    session.sparkContext.environment["KMSDATA_KEYSTORE"] = str(folder / "keystore.json")
    yield session
    session.stop()
    del os.environ["PYSPARK_PYTHON"]


@pytest.fixture
def spark(spark_session, keystore, monkeypatch):
    """Return the Spark session; its driver, this process, has the keystore of its workers."""
    monkeypatch.setenv("KMSDATA_KEYSTORE", spark_session.sparkContext.environment["KMSDATA_KEYSTORE"])
    return spark_session
