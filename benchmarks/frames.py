"""Measure how much of the time of `df.kms.encrypt` and `decrypt` is AES, and how much is the rest.

Run with ``python benchmarks/frames.py [rows]``, on one core. A figure is the median of its rounds in
milliseconds; rounds of all columns are interleaved.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict

import numpy as np
import pandas as pd

import kmsdata
from kmsdata.ciphers import gcm, siv

ROUNDS = 7


def columns(rows):
    """Make one column of each kind that is measured."""
    random = np.random.default_rng(0)
    text = pd.Series(np.char.add("person-", random.integers(0, 10**9, rows).astype(str)))
    return pd.DataFrame(
        {
            "int64": random.integers(-(2**62), 2**62, rows),
            "float64": random.random(rows),
            "timestamp": pd.to_datetime(random.integers(0, 2**60, rows), utc=True),
            "string": text.astype("string[pyarrow]"),
            "object text": text.astype(object),
        }
    )


class Inside:
    """Time spent in the ciphers since the last call of `take`."""

    def __init__(self):
        self.spent = 0.0
        for cipher in (gcm, siv):
            for verb in ("seal_cells", "open_cells"):
                setattr(cipher, verb, self.timed(getattr(cipher, verb)))

    def timed(self, function):
        """Wrap a function to add up its time."""

        def run(*arguments):
            start = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.spent += time.perf_counter() - start

        return run

    def take(self):
        """Return the seconds since the last call."""
        spent, self.spent = self.spent, 0.0
        return spent


def main(rows):
    """Print the table."""
    frame, key, inside = columns(rows), kmsdata.new_data_key("local://benchmark"), Inside()
    times = defaultdict(list)
    for _ in range(ROUNDS):
        for name in frame:
            for exact in (False, True):
                if exact and name == "float64":
                    continue  # floats are never deterministic
                start = time.perf_counter()
                sealed = frame[[name]].kms.encrypt(name, deterministic=exact, key=key)
                times[name, exact, "encrypt"].append((time.perf_counter() - start, inside.take()))
                start = time.perf_counter()
                sealed.kms.decrypt(key=key)
                times[name, exact, "decrypt"].append((time.perf_counter() - start, inside.take()))
    print(f"{rows} rows, ms{'':37}{'total':>10}{'ciphers':>10}{'rest':>10}   rest of total")
    for (name, exact, verb), runs in times.items():
        whole, cipher = (1000 * statistics.median(run[place] for run in runs) for place in (0, 1))
        label = f"{name} {'deterministic' if exact else 'randomised'} {verb}"
        print(
            f"{label:50}{whole:>10.1f}{cipher:>10.1f}{whole - cipher:>10.1f}{(whole - cipher) / whole:>12.0%}"
        )


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KMSDATA_KEYSTORE"] = f"{folder}/keystore/keystore.json"
        kmsdata.use(kmsdata.LocalKeystore(create=True))
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
