"""Spark with two executors on a real JVM: KMS calls, killed processes, a failing KMS, no secret anywhere."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.engine("pyspark", "tencentcloud"), pytest.mark.slow]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What `spark_cluster.py` saw: it starts one cluster for all tests here."""
    folder = tmp_path_factory.mktemp("cluster")
    script = Path(__file__).with_name("spark_cluster.py")
    done = subprocess.run(
        [sys.executable, script, folder], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_values_and_types_are_exact_on_executors(seen):
    assert seen["round trip"]
    assert seen["time"] == "1970-01-01 08:00:00"
    # The zone of the session, though the executors have another local zone.
    assert set(seen["recorded types"]) == {"timestamp[us, tz=Asia/Shanghai]"}
    assert seen["found"] == 8
    assert seen["verified"]


def test_kms_calls_are_constant(seen):
    assert seen["generated"] == 1
    # One for each Python worker: they are reused, so the second job needs none.
    assert 1 <= seen["decrypts of two workers"] <= 2
    assert seen["decrypts of two jobs"] <= 2


@pytest.mark.parametrize("what", ["worker", "executor"])
def test_a_killed_process_costs_only_time(seen, what):
    complete, killed = seen[f"{what} killed"]
    assert complete
    assert killed


def test_a_failing_kms_is_a_clear_error_on_the_driver(seen):
    assert seen["denied"].startswith("PythonException")
    assert (
        "kmsdata.KeyAccessError: in a worker process, which has its own environment: tenc" in seen["denied"]
    )
    assert "Ask for kms:Decrypt on this key" in seen["denied"]
    assert seen["after the fault"]


def test_no_secret_in_plans_pages_event_logs_and_errors(seen):
    assert seen["leaks"] == []
    read = {name for name, size in seen["read"].items() if size}
    assert {"environment", "sql", "pages", "error", "plan of enc", "plan of dec", "plan of found"} <= read
    assert any(name.startswith("stages/") for name in read)
    assert any(name.startswith("events/") for name in read)
    assert any(name.endswith("stderr") for name in read)
    assert {"plan of dec", "sql"} < set(seen["steps"])
    assert any(name.startswith("events/") for name in seen["steps"])
