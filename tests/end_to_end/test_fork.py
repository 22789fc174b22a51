"""A process that is forked while threads encrypt and decrypt works on."""

import subprocess
import sys

import pytest

FORKS = 50
PROGRAM = """
import faulthandler, os, sys, threading, time, warnings
import pandas as pd
import kmsdata

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks with threads
path, forks = sys.argv[1], int(sys.argv[2])
df = pd.DataFrame({"a": [1, 2, None], "b": ["x", None, "z"]})
kmsdata.use(kmsdata.LocalKeystore(create=True))
sys.setswitchinterval(1e-4)  # fork at more places of the other threads
key = kmsdata.new_data_key("local://demo")

def work():
    sealed = df.kms.encrypt("a", deterministic="b", key=key)
    dtype = sealed["a"].dtype
    for _ in range(50):  # as for every file that is read: parse the header
        assert type(dtype)(dtype.text).name == dtype.name
    assert sealed.kms.decrypt().equals(df)

df.kms.encrypt("a", deterministic="b", key=key).kms.to_parquet(path)
over = threading.Event()

def load():
    while not over.is_set():
        work()

threads = [threading.Thread(target=load, daemon=True) for _ in range(4)]
for thread in threads:
    thread.start()
for number in range(forks):
    time.sleep(0.002 * (number % 7))
    child = os.fork()
    if not child:
        faulthandler.dump_traceback_later(10, exit=True)  # a child that hangs says where
        status = 1
        try:
            work()
            assert kmsdata.read_parquet(path, decrypt=True).equals(df)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status == 0, f"child {number} ended with {status}"
over.set()
for thread in threads:  # Python 3.11 aborts if it ends while a daemon thread is in Arrow's C++
    thread.join()
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_a_child_forked_under_load_does_not_hang(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "a.parquet"), str(FORKS)],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
