"""Measure the time and memory to encrypt and decrypt a large file.

Run with ``python benchmarks/files.py [rows] [rows of a row group] [folder]``. Writes a Parquet file of 24
million rows (4.5 GB uncompressed) into a temporary folder, encrypts three of its 20 columns, and decrypts
them again, each in a separate process. Memory is the peak of that process minus its peak after the imports.
"""

from __future__ import annotations

import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NUMBERS = [f"x{number}" for number in range(16)]
GOAL = 600  # MB


def text(prefix, digits):
    """Make texts of a prefix and digits from bytes, because numpy's strings would be slow."""
    rows, width = digits.shape
    data = np.empty((rows, len(prefix) + width), np.uint8)
    data[:, : len(prefix)] = np.frombuffer(prefix, np.uint8)
    data[:, len(prefix) :] = digits
    offsets = np.arange(rows + 1, dtype=np.int32) * data.shape[1]
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(data))]
    return pa.Array.from_buffers(pa.string(), rows, buffers)


def make(path, rows, group):
    """Write a file by row groups; only one of them is in memory."""
    random = np.random.default_rng(0)
    schema = pa.schema(
        [("id", pa.int64()), ("ssn", pa.string()), ("email", pa.string()), ("city", pa.string())]
        + [(name, pa.float64()) for name in NUMBERS]
    )
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, group):
            count = min(group, rows - start)
            cities = random.integers(0, 1000, count)
            columns = [
                pa.array(np.arange(start, start + count)),
                text(b"078-05-", random.integers(48, 58, (count, 9), np.uint8)),
                text(b"person", random.integers(48, 58, (count, 18), np.uint8)),
                text(b"city-of-", 48 + cities[:, None] // np.array([100, 10, 1]) % 10),
                *(pa.array(random.random(count)) for _ in NUMBERS),
            ]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=group)


def same(one, two):
    """Return whether two files are equal, row group by row group."""
    files = pq.ParquetFile(one), pq.ParquetFile(two)
    count = files[0].num_row_groups
    return count == files[1].num_row_groups and all(
        files[0]
        .read_row_group(number, columns=[name])
        .equals(files[1].read_row_group(number, columns=[name]))
        for number in range(count)
        for name in files[0].schema_arrow.names
    )


def child(verb, source, target):
    """Encrypt or decrypt the file, and print the time and memory as JSON."""
    import kmsdata

    kmsdata.use(kmsdata.LocalKeystore(create=True))
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    if verb == "encrypt":
        done = kmsdata.encrypt_parquet(
            source, target, ["ssn", "email"], deterministic=["city"], key="local://bench"
        )
    else:
        done = kmsdata.decrypt_parquet(source, target)
    spent = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    figures = {
        "peak": (after.ru_maxrss - before.ru_maxrss) / 1024 * 1.048576,
        "imports": before.ru_maxrss / 1024 * 1.048576,
        "seconds": spent,
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "rows": done.rows,
        "calls": done.kms_calls,
    }
    print(json.dumps(figures))


def alone(code):
    """Run code of this file in a separate process; return its output."""
    line = [sys.executable, "-c", f"from files import *; {code}"]
    folder = pathlib.Path(__file__).parent
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=True).stdout


def run(verb, source, target, folder):
    """Encrypt or decrypt in a separate process; return its peak memory."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", verb, source, target],
        env={**os.environ, "KMSDATA_KEYSTORE": str(folder / "keys" / "keystore.json")},
        capture_output=True,
        text=True,
        check=True,
    )
    figures = json.loads(done.stdout)
    rate, size = figures["rows"] / figures["seconds"], pathlib.Path(source).stat().st_size
    print(
        f"{verb}: {figures['peak']:.0f} MB above the imports' {figures['imports']:.0f} MB (goal {GOAL}), "
        f"{figures['seconds']:.1f} s ({figures['cpu']:.1f} s of CPU), {rate / 1e6:.2f} M rows/s, "
        f"{size / 1e6 / figures['seconds']:.0f} MB/s of file, KMS calls: {figures['calls']}"
    )
    return figures["peak"]


def main(rows=24_000_000, group=1 << 20, where=None):
    """Make the file and measure."""
    with tempfile.TemporaryDirectory(dir=where) as name:
        folder = pathlib.Path(name)
        paths = [folder / f"{what}.parquet" for what in ("plain", "sealed", "back")]
        # A child process inherits its parent's peak memory, so this process must stay small.
        alone(f"make({str(paths[0])!r}, {int(rows)}, {int(group)})")
        metadata = pq.read_metadata(paths[0])
        whole = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
        print(
            f"{metadata.num_rows:,} rows in {metadata.num_row_groups} row groups, {whole / 1e9:.2f} GB "
            f"uncompressed, {paths[0].stat().st_size / 1e9:.2f} GB on disk; 3 of "
            f"{metadata.num_columns} columns"
        )
        peaks = [run("encrypt", *paths[:2], folder), run("decrypt", *paths[1:], folder)]
        back = alone(f"print(same({str(paths[0])!r}, {str(paths[2])!r}))") == "True\n"
        print("the decrypted file equals the original" if back else "THE DECRYPTED FILE IS DIFFERENT")
        return max(peaks) > GOAL or not back


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        sys.exit(main(*sys.argv[1:]))
