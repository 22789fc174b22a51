"""Measure what `kmsdata.rewrap` costs compared with copying a file and with rewriting it with Arrow.

Run with ``python benchmarks/rewrap.py [MB] [small files]``. Rounds of all methods are interleaved, so that a
busy disk slows all of them; a figure is the median of its rounds in milliseconds: of wall clock, and of CPU
time of this process. Waiting for the disk counts only in the first.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

import kmsdata
from kmsdata.atomic_files import whole_file
from kmsdata.parquet import rewrap as rewrapping

ROUNDS = 5
KEYS = ("local://one", "local://two")


def frame(rows):
    """Make two encrypted columns, and plain ones of random numbers: 60 bytes or more per row."""
    random = np.random.default_rng(0)
    out = pd.DataFrame({f"x{number}": random.random(rows) for number in range(4)})
    out["id"] = random.integers(0, 2**62, rows)
    out["ssn"] = random.integers(0, 2**62, rows)
    return out.kms.encrypt("ssn", deterministic="id", key=KEYS[0])


class Writing:
    """Time spent in copying, syncing and renaming files, which is subtracted from the total."""

    def __init__(self):
        self.clock = self.cpu = 0.0
        write = rewrapping._replace

        def timed(*arguments):
            clock, cpu = time.perf_counter(), time.process_time()
            try:
                write(*arguments)
            finally:
                self.clock += time.perf_counter() - clock
                self.cpu += time.process_time() - cpu

        rewrapping._replace = timed

    def take(self):
        """Return the seconds since the last call: wall clock, and CPU time of the process."""
        spent, self.clock, self.cpu = (self.clock, self.cpu), 0.0, 0.0
        return spent


def copied(path):
    """Replace the file atomically by a copy of itself: the lower limit of a rewrap."""
    size = path.stat().st_size
    with path.open("rb") as source, whole_file(path) as target:
        rewrapping._copy(source, target, size, str(path))


def rewritten(path):
    """Read and atomically write the file with Arrow: a rewrap that does not edit the footer in place."""
    table = pq.read_table(path)
    with whole_file(path) as target:
        pq.write_table(table, target, compression="none", use_dictionary=False, write_statistics=False)


def timed(times, name, work):
    """Add the time that the work takes."""
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    times[name].append((time.perf_counter() - clock, time.process_time() - cpu))


def other(path):
    """Return the master key that does not yet protect the file."""
    return KEYS[kmsdata.inspect(path).data_keys[0].keys == KEYS[:1]]


def table(title, times, count=1):
    """Print the medians."""
    print(f"\n{title:58}{'clock':>12}{'CPU':>12}   ms{' per file' if count > 1 else ''}")
    for name, runs in times.items():
        clock, cpu = (1000 / count * statistics.median(run[place] for run in runs) for place in (0, 1))
        print(f"{name:58}{clock:>12.2f}{cpu:>12.2f}")


def one_file(folder, megabytes):
    """Measure one large file."""
    path, times, writing = folder / "large.parquet", defaultdict(list), Writing()
    frame(megabytes * 1_000_000 // 105).kms.to_parquet(path, row_group_size=200_000, compression="none")
    clean = folder / "clean.parquet"
    shutil.copy(path, clean)
    for _ in range(ROUNDS):
        timed(times, "copy, fsync, rename", lambda: copied(path))
        key = other(path)
        timed(times, "rewrap", lambda key=key: kmsdata.rewrap(path, key))
        (clock, cpu), (all_clock, all_cpu) = writing.take(), times["rewrap"][-1]
        times["  of that: footer edit, deletion of old file"].append((all_clock - clock, all_cpu - cpu))
        timed(times, "read and write with Arrow", lambda: rewritten(path))
        shutil.copy(clean, path)
    size = path.stat().st_size / 1e6
    groups = pq.read_metadata(path).num_row_groups
    table(f"one file of {size:.0f} MB, {groups} row groups", times)


def many_files(folder, count):
    """Measure many small files under one data key, each with its own metadata."""
    key, times = kmsdata.new_data_key(KEYS[0]), defaultdict(list)
    parts = folder / "small"
    parts.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        part = pd.DataFrame({"ssn": random.integers(0, 2**62, number + 1), "x": 1.0})
        part.kms.encrypt("ssn", key=key).kms.to_parquet(parts / f"{number}.parquet")
    files = list(parts.iterdir())
    for number in range(ROUNDS):
        timed(times, "copy, fsync, rename, one by one", lambda: [copied(path) for path in files])
        before = kmsdata.usage().calls
        new = KEYS[1 - number % 2]
        timed(times, "rewrap", lambda new=new: kmsdata.rewrap(parts, new))
        calls = kmsdata.usage().calls - before
        timed(times, "rewrap again (nothing to do)", lambda new=new: kmsdata.rewrap(parts, new))
        timed(times, "read and write with Arrow, one by one", lambda: [rewritten(path) for path in files])
    table(f"{count} small files, {calls} KMS calls", times, count)


def main(megabytes, count):
    """Print both tables."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        os.environ["KMSDATA_KEYSTORE"] = str(folder / "keystore" / "keystore.json")
        kmsdata.use(kmsdata.LocalKeystore(create=True))
        one_file(folder, megabytes)
        many_files(folder, count)


if __name__ == "__main__":
    main(*(int(argument) for argument in (sys.argv[1:3] + ["400", "1000"][len(sys.argv[1:3]) :])))
