"""Measure encryption on Dask and Spark: rows per second, memory per worker, KMS calls, and the overhead.

Run with ``python benchmarks/engines.py [rows] [engines] [folder]``, such as ``50000000 dask,spark``. Writes
Parquet files of an int64 and a text of 11 characters, and then runs three jobs with 1 and with 2 worker
processes of one thread each: copy the files without encryption, encrypt both columns, decrypt them. The KMS
is the emulator, with real requests. Memory is the peak (VmHWM) of each worker process at the end of a job;
for Spark it is that of Python processes that Spark may have started afterwards, so it says nothing yet.

Each job has its own process, and is timed without the start of the cluster: a small job runs before it, so
that workers have imported what they need. The KMS calls are those of both.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FILE = 500_000  # rows of a file: a partition of Dask, at least one of Spark
COLUMNS = ["id", "ssn"]


def make(folder, rows):
    """Write the plain files."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, rows, FILE)):
        count = min(FILE, rows - start)
        digits = random.integers(48, 58, (count, 11), np.uint8)
        digits[:, [3, 6]] = ord("-")
        offsets = pa.py_buffer(np.arange(count + 1, dtype=np.int32) * 11)
        text = pa.Array.from_buffers(pa.string(), count, [None, offsets, pa.py_buffer(digits.tobytes())])
        ids = pa.array(random.integers(0, 1 << 40, count))
        pq.write_table(pa.table({"id": ids, "ssn": text}), folder / f"part-{number:05d}.parquet")


def peak():
    """Return the peak memory of this process, in MB."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) // 1000
    return 0


def with_dask(job, source, target, key, workers):
    """Run a job on Dask; yield when the time begins, then return the peaks of the workers."""
    import dask.dataframe as dd
    from dask.distributed import Client, LocalCluster

    import kmsdata.dask

    def run(files, folder):
        if job == "copy":
            dd.read_parquet(files).to_parquet(folder)
        elif job == "encrypt":
            dd.read_parquet(files).kms.encrypt(COLUMNS, key=key).kms.to_parquet(folder)
        else:
            kmsdata.dask.read_parquet(files).kms.decrypt(key=key).to_parquet(folder)

    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, memory_limit="3GB", dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        small = [str(path) for path in sorted(pathlib.Path(source).glob("*.parquet"))[:workers]]
        run(small, f"{target}-small")
        yield
        run(source, target)
        yield list(client.run(peak).values())


def with_spark(job, source, target, key, workers):
    """Run a job on Spark, in local mode: its worker processes are Python's, beside one Java process."""
    from pyspark.sql import SparkSession

    import kmsdata.spark

    spark = (
        SparkSession.builder.master(f"local[{workers}]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.memory", "2g")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .getOrCreate()
    )

    def run(files, folder):
        if job == "copy":  # through Python too: the overhead is then that of encryption alone
            read = spark.read.parquet(*files)
            read.mapInArrow(lambda batches: batches, read.schema).write.parquet(folder)
        elif job == "encrypt":
            kmsdata.spark.encrypt(spark.read.parquet(*files), COLUMNS, key=key).write.parquet(folder)
        else:
            sdf = kmsdata.spark.read(spark, files[0] if len(files) == 1 else files)
            kmsdata.spark.decrypt(sdf, key=key).write.parquet(folder)

    small = sorted(map(str, pathlib.Path(source).glob("*.parquet")))[0]
    run([small], f"{target}-small")
    yield
    run([source], target)
    rows = spark.range(workers * 2, numPartitions=workers * 2)
    peaks = rows.rdd.mapPartitionsWithIndex(lambda *_: [(os.getpid(), peak())]).collect()
    yield list(dict(peaks).values())
    spark.stop()


def one(engine, job, source, target, key, workers):
    """Run one job and print its time and the workers' peaks as JSON."""
    steps = {"dask": with_dask, "spark": with_spark}[engine](job, source, target, key, int(workers))
    next(steps)
    start = time.perf_counter()
    peaks = next(steps)
    print("RESULT", json.dumps([time.perf_counter() - start, sorted(peaks)]))
    for _ in steps:  # end the cluster
        pass


def measure(rows, engines, folder):
    """Run all jobs and print a table."""
    from kmsdata import TencentKMS
    from kmsdata.emulator import Emulator

    plain = folder / "plain"
    make(plain, rows)
    print(f"{rows:,} rows, {sum(path.stat().st_size for path in plain.iterdir()) / 1e6:,.0f} MB")
    print(f"{'engine':7}{'job':9}{'workers':>8}{'seconds':>9}{'rows/s':>12}{'ratio':>7}  {'MB each':10}KMS")
    with Emulator() as emulator:
        pair = emulator.secret_id, emulator.secret_key
        key = TencentKMS("ap-guangzhou", credential=pair, endpoint=emulator.url).create_key("benchmark")
        own = {
            "KMSDATA_TENCENT_ENDPOINT": emulator.url,
            "TENCENTCLOUD_SECRET_ID": emulator.secret_id,
            "TENCENTCLOUD_SECRET_KEY": emulator.secret_key,
            "PYSPARK_PYTHON": sys.executable,
        }
        for engine in engines:
            for workers in (1, 2):
                base = None
                for job in ("copy", "encrypt", "decrypt"):
                    source = plain if job != "decrypt" else folder / f"{engine}-{workers}-encrypt"
                    target = folder / f"{engine}-{workers}-{job}"
                    before = emulator.calls.copy()
                    line = [__file__, "one", engine, job, str(source), str(target), key, str(workers)]
                    done = subprocess.run(
                        [sys.executable, *line],
                        env=os.environ | own,
                        stdout=subprocess.PIPE,
                        check=True,
                        text=True,
                    )
                    (result,) = [text for text in done.stdout.splitlines() if text.startswith("RESULT ")]
                    seconds, peaks = json.loads(result.removeprefix("RESULT "))
                    base = base or seconds
                    made = emulator.calls - before
                    calls = ", ".join(f"{count} {name}" for name, count in made.items())
                    print(
                        f"{engine:7}{job:9}{workers:8}{seconds:9.1f}{rows / seconds:12,.0f}"
                        f"{seconds / base:7.2f}  {', '.join(map(str, peaks)):10}{calls}",
                        flush=True,
                    )
                    shutil.rmtree(f"{target}-small")
                    if job != "encrypt":
                        shutil.rmtree(target)
                shutil.rmtree(folder / f"{engine}-{workers}-encrypt")


def main():
    """Read the command line."""
    if sys.argv[1:2] == ["one"]:
        one(*sys.argv[2:])
        return
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000_000
    engines = sys.argv[2].split(",") if len(sys.argv) > 2 else ["dask", "spark"]
    with tempfile.TemporaryDirectory(dir=sys.argv[3] if len(sys.argv) > 3 else None) as folder:
        measure(rows, engines, pathlib.Path(folder))


if __name__ == "__main__":
    main()
