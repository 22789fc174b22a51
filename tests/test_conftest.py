"""The test configuration: which tests a run leaves out and reports, what fails in CI, and time limits."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent

LONG = """
import pytest

def test_short(): pass

@pytest.mark.slow
@pytest.mark.parametrize("x", [1, 2])
def test_slow(x): pass

@pytest.mark.browser
def test_in_a_browser(): pass
"""
SUMMARY = "Left out: 2 marked slow, 1 marked browser. To run everything: pytest --all"


@pytest.fixture
def pytest_run(tmp_path):
    """Run pytest with this project's configuration on other test files; return exit code and output."""
    shutil.copy(TESTS / "conftest.py", tmp_path)

    def run(*arguments, ci=False, **options):
        environment = {name: value for name, value in os.environ.items() if name != "CI"}
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--rootdir={tmp_path}"]
        done = subprocess.run(
            [*command, "-c", str(TESTS.parent / "pyproject.toml"), *arguments],
            cwd=tmp_path,
            env=environment | ({"CI": "true"} if ci else {}),
            capture_output=True,
            text=True,
            check=False,
            **options,
        )
        return done.returncode, done.stdout + done.stderr

    run.folder = tmp_path
    return run


ENGINE = """
import pytest

@pytest.mark.engine("pytest", "missing_one")
def test_one(): import missing_one

@pytest.mark.engine("pytest")
def test_two(): pass
"""


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "two workers"])
def test_tests_of_an_engine_that_is_missing_are_left_out_by_name(pytest_run, workers):
    (pytest_run.folder / "test_engine.py").write_text(ENGINE)
    for arguments in ((".",), ("--all", "test_engine.py"), ("-m", "engine", ".")):
        code, out = pytest_run(*arguments, *workers)
        assert code == 0, out
        assert 'Left out: 1 that need missing_one. To run them: pip install -e ".[engines]"' in out
        assert "1 passed" in out


def test_in_ci_a_missing_engine_fails(pytest_run):
    (pytest_run.folder / "test_engine.py").write_text(ENGINE)
    code, out = pytest_run(".", ci=True)
    assert code == 1
    assert "1 failed, 1 passed" in out


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "two workers"])
def test_a_run_of_folders_leaves_out_long_tests_and_says_so(pytest_run, workers):
    (pytest_run.folder / "test_long.py").write_text(LONG)
    code, out = pytest_run(".", *workers)
    assert code == 0, out
    assert SUMMARY in out.splitlines()
    assert "1 passed" in out


ASKED = {
    "all": ([".", "--all"], 4),
    "mark": ([".", "-m", "slow"], 2),
    "file": (["test_long.py"], 4),
    "test": (["test_long.py::test_slow"], 2),
}


@pytest.mark.parametrize("how", ASKED)
def test_what_is_asked_for_runs(pytest_run, how):
    arguments, passed = ASKED[how]
    (pytest_run.folder / "test_long.py").write_text(LONG)
    code, out = pytest_run(*arguments)
    assert code == 0, out
    assert "Left out" not in out
    assert f"{passed} passed" in out


def test_what_is_skipped_or_empty_fails_in_ci(pytest_run):
    (pytest_run.folder / "test_extra.py").write_text(
        "import pytest\npytest.importorskip('missing_extra')\ndef test_it(): pass\n"
    )
    (pytest_run.folder / "test_none.py").write_text("def tset_it(): pass\n")
    (pytest_run.folder / "test_skipped.py").write_text("import pytest\ndef test_it(): pytest.skip('why')\n")
    code, out = pytest_run(".", "--continue-on-collection-errors", ci=True)
    assert code == 1
    assert "vanished in CI: Skipped: could not import 'missing_extra'" in out
    assert "vanished in CI: it contains no tests" in out
    assert "skipped in CI: Skipped: why" in out
    assert "1 failed, 2 errors" in out
    code, out = pytest_run(".", "-n", "2", ci=True)
    assert code == 1
    code, out = pytest_run(".")
    assert code == 0, out
    assert "2 skipped" in out


def test_time_limits_and_sigint(pytest_run):
    """A test or teardown that hangs fails, and the run continues. SIGINT works if the parent ignores it."""
    conftest = (pytest_run.folder / "conftest.py").read_text()
    short = conftest.replace("TEARDOWN_LIMIT = 120", "TEARDOWN_LIMIT = 1")
    assert short != conftest
    (pytest_run.folder / "conftest.py").write_text(short)
    (pytest_run.folder / "test_hanging.py").write_text(
        "import os, pytest, signal, threading\n"
        "@pytest.mark.timeout(1)\n"
        "def test_hangs(): threading.Event().wait()\n"
        "@pytest.fixture\n"
        "def hanging():\n"
        "    yield\n"
        "    threading.Event().wait()\n"
        "def test_teardown_hangs_after_a_failure(hanging): raise ValueError\n"
        "def test_sigint():\n"
        "    with pytest.raises(KeyboardInterrupt):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
    )
    ignored = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    code, out = pytest_run(".", timeout=60, **ignored)
    assert code == 1
    assert "2 failed, 1 passed, 1 error" in out, out
    assert out.count("Failed: Timeout (>1") >= 2, out
