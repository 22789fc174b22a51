"""Run the steps of one file in a separate process: a crash or a hang ends only that file."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import tempfile
import time
import warnings
from pathlib import Path

import kmsdata
from tests.corpus.round_trip import FAILED, Step, steps

__all__ = ["run"]

LIMIT = 300  # seconds for one file
PRELOADED = ["tests.corpus.one_process", "duckdb", "polars", "fastparquet"]


def _work(path: Path, pipe: multiprocessing.connection.Connection) -> None:
    warnings.simplefilter("ignore")
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KMSDATA_KEYSTORE"] = str(Path(folder) / "keystore.json")
        store = kmsdata.LocalKeystore(create=True)
        for name in ("corpus", "corpus-2"):
            store.create_key(name)
        for step in steps(path, Path(folder)):
            pipe.send(step)
    pipe.send(None)  # it came to the end


def run(path: Path) -> list[Step]:
    """Return the steps of one file; a crash or a hang is a FAILED step."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(path, sending))
    process.start()
    sending.close()
    found: list[Step] = []
    end = time.monotonic() + LIMIT
    try:
        while receiving.poll(max(end - time.monotonic(), 0)):
            if (step := receiving.recv()) is None:
                process.join()
                return found
            found.append(step)
        found.append(Step("time", FAILED, f"more than {LIMIT} s"))
        process.kill()
    except EOFError:
        pass
    process.join()
    if process.exitcode:
        found.append(
            Step(
                "process",
                FAILED,
                f"ended with {process.exitcode} after {found[-1].name if found else 'no step'}",
            )
        )
    return found
