"""Compare a row filter on ciphertext with reading, decrypting and filtering.

Run with ``python benchmarks/search.py [rows]``. A file with four encrypted columns is searched for 0.01 %
of its rows (by values of a deterministic column, spread over all row groups), in both ways. Both must return
the same rows; once with all columns, once with two. Rounds are interleaved; a figure is the median of its
rounds, in seconds of wall clock and of CPU.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

import kmsdata

ROUNDS = 3
GROUP = 1 << 20
SHARE = 1e-4
EACH = 10  # rows of one person


def people(random, rows, persons):
    """Make rows of the table that is searched."""
    who = random.integers(0, persons, rows)
    number = random.integers(0, 10**9, rows)
    return pa.table(
        {
            "id": random.integers(0, 2**40, rows),
            "email": pa.array(who).cast(pa.string()).to_pandas().radd("person-").add("@example.org"),
            "name": pa.array(who * 7919).cast(pa.string()).to_pandas().radd("name-"),
            "phone": pa.array(number).cast(pa.string()).to_pandas().radd("+86-"),
            "salary": random.random(rows) * 1e5,
            "city": pa.array(np.array(["Shenzhen", "Chengdu", "Beijing"])[who % 3]),
        }
    )


def write(path, rows):
    """Write the file by row groups, as `df.kms.to_parquet` would; return the values to search for."""
    random, persons = np.random.default_rng(0), max(rows // EACH, 1)
    key, writer = kmsdata.new_data_key("local://benchmark"), None
    for start in range(0, rows, GROUP):
        plain = people(random, min(GROUP, rows - start), persons)
        table = kmsdata.encrypt_table(plain, ["name", "phone", "salary"], deterministic=["email"], key=key)
        if writer is None:
            sealed = ["name", "phone", "salary", "email"]
            others = [name for name in table.column_names if name not in sealed]
            writer = pq.ParquetWriter(
                path,
                table.schema,
                use_dictionary=["city", "email"],
                write_statistics=others,
                compression=dict.fromkeys(sealed, "none") | dict.fromkeys(others, "snappy"),
            )
        writer.write_table(table, row_group_size=GROUP)
    writer.close()
    wanted = random.choice(persons, max(int(rows * SHARE) // EACH, 1), replace=False)
    return [f"person-{number}@example.org" for number in wanted]


def timed(function, argument):
    """Call a function; return its result and the seconds it took: wall clock and CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function(argument)
    return result, (time.perf_counter() - wall, time.process_time() - cpu)


def main(rows):
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KMSDATA_KEYSTORE"] = str(Path(folder) / "keystore.json")
        kmsdata.use(kmsdata.LocalKeystore(create=True))
        path = Path(folder) / "people.parquet"
        wanted = write(path, rows)
        print(f"{rows:,} rows in {path.stat().st_size / 1e9:.2f} GB, {len(wanted)} values searched for")

        def decrypted(columns):
            frame = kmsdata.read_parquet(path, columns=columns, decrypt=True)
            return frame[frame["email"].isin(wanted)].reset_index(drop=True)

        def searched(columns):
            filters = [("email", "in", wanted)]
            return kmsdata.read_parquet(path, columns=columns, filters=filters, decrypt=True)

        for columns in (None, ["email", "name"]):
            times = {decrypted: [], searched: []}
            for _ in range(ROUNDS):
                found = {}
                for way, spent in times.items():
                    found[way], seconds = timed(way, columns)
                    spent.append(seconds)
                pd.testing.assert_frame_equal(found[searched], found[decrypted])
            whole = found[decrypted]
            print(f"\n{len(whole):,} rows ({len(whole) / rows:.4%}), {whole.shape[1]} columns: equal")
            medians = {
                way: [statistics.median(side) for side in zip(*spent, strict=True)]
                for way, spent in times.items()
            }
            for way, name in ((decrypted, "read, decrypt, filter"), (searched, "filters= on ciphertext")):
                wall, cpu = medians[way]
                ratio = f"{medians[decrypted][0] / wall:6.1f} x {medians[decrypted][1] / cpu:6.1f} x"
                print(f"{name:24} {wall:8.2f} s wall {cpu:8.2f} s CPU   {ratio}")


if __name__ == "__main__":
    main(int(float(sys.argv[1])) if len(sys.argv) > 1 else 10_000_000)
