"""Run Spark with two executors against the emulator, kill processes, and print what was seen, as JSON.

A process can have only one SparkContext, so `test_spark_cluster.py` runs this in another process.
"""

import base64
import json
import os
import signal
import sys
import threading
import time
import urllib.request
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import kmsdata
from kmsdata.emulator import Emulator, Fault

ROWS = 400
NAMES = [f"plaintext-of-row-{number:04d}" for number in range(ROWS)]
SSNS = [f"plaintext-of-ssn-{number % 100}" for number in range(ROWS)]


def below(root):
    """The processes that this one, or a child of it, started: id -> command line."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "stat").read_text()
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            parents[int(entry.name)] = int(text.rpartition(")")[2].split()[1]), command
    found, level = {}, {root}
    while level:
        level = {pid for pid, (parent, _) in parents.items() if parent in level}
        found |= {pid: parents[pid][1] for pid in level}
    return found, {parent for parent, _ in parents.values()}


def kill(what):
    """Kill the Python workers, or one executor, of this process's cluster; return how many."""
    found, parents = below(os.getpid())
    if what == "worker":  # not the daemon that forks them
        chosen = [pid for pid, line in found.items() if "pyspark.daemon" in line and pid not in parents]
    else:
        chosen = [pid for pid, line in found.items() if "CoarseGrainedExecutorBackend" in line][:1]
    for pid in chosen:
        os.kill(pid, signal.SIGKILL)
    return len(chosen)


def fetch(url):
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:  # noqa: S310 - loopback
            return answer.read().decode()
    except OSError:
        return ""


def pages(spark):
    """Everything that Spark's web interface says: the REST API, and the pages."""
    base, app = spark.sparkContext.uiWebUrl, spark.sparkContext.applicationId
    api = f"{base}/api/v1/applications/{app}"
    texts = {path: fetch(f"{api}/{path}") for path in ("environment", "jobs", "stages", "allexecutors")}
    texts["sql"] = fetch(f"{api}/sql?details=true&planDescription=true&length=1000")
    for stage in json.loads(texts["stages"]):
        path = f"stages/{stage['stageId']}/{stage['attemptId']}"
        texts[path] = fetch(f"{api}/{path}?details=true") + fetch(f"{api}/{path}/taskList?length=1000")
    for number in range(len(json.loads(texts["sql"]))):
        texts[f"SQL/{number}"] = fetch(f"{base}/SQL/execution/?id={number}")
    texts["pages"] = "".join(fetch(f"{base}/{name}/") for name in ("jobs", "stages", "SQL", "environment"))
    return texts


def spark_home(folder):
    """A home whose folder `work`, into which executors write their logs, is not that of the installation."""
    import pyspark

    home = folder / "home"
    home.mkdir()
    for entry in Path(pyspark.__file__).parent.iterdir():
        (home / entry.name).symlink_to(entry)
    return home


def session(folder):
    from pyspark.sql import SparkSession

    (folder / "events").mkdir()
    options = {
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.memory": "600m",
        "spark.executor.memory": "512m",
        "spark.task.maxFailures": "2",
        "spark.ui.port": "0",
        "spark.ui.showConsoleProgress": "false",
        "spark.eventLog.enabled": "true",
        "spark.eventLog.compress": "false",
        "spark.eventLog.dir": f"file://{folder}/events",
        "spark.sql.session.timeZone": "Asia/Shanghai",
        "spark.executorEnv.TZ": "America/New_York",
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.warehouse.dir": f"{folder}/warehouse",
    }
    builder = SparkSession.builder.master("local-cluster[2,1,1024]")
    for name, value in options.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def during(emulator, what, job):
    """Run a job, and kill while its workers wait for the KMS; return its result and the number of killed."""
    emulator.fail(Fault.latency(4), action="Decrypt", times=2)
    before, done = emulator.calls["Decrypt"], []
    thread = threading.Thread(target=lambda: done.append(job()))
    thread.start()
    end = time.monotonic() + 60
    while emulator.calls["Decrypt"] == before and time.monotonic() < end:
        time.sleep(0.05)
    killed = kill(what)
    thread.join()
    emulator.heal()
    return done[0], killed


def run(folder, emulator, seen):
    key = emulator_key(emulator)
    os.environ["SPARK_HOME"] = str(spark_home(folder))
    os.environ["PYSPARK_PYTHON"] = sys.executable
    warnings.simplefilter("ignore")
    spark = session(folder)
    import kmsdata.spark

    times = pa.array(range(ROWS), pa.timestamp("us", tz="UTC"))
    table = pa.table({"id": range(ROWS), "name": NAMES, "ssn": SSNS, "at": times})
    for number in range(4):
        (folder / "plain").mkdir(exist_ok=True)
        pq.write_table(table.slice(number * 100, 100), folder / "plain" / f"{number}.parquet")
    sdf = spark.read.parquet(f"file://{folder}/plain").repartition(4)

    def new():
        return kmsdata.spark.encrypt(sdf, ["name", "at"], deterministic="ssn", key=key)

    def complete(frame):
        rows = frame.collect()
        return sorted((row.id, row.name) for row in rows) == list(enumerate(NAMES))

    # KMS calls: the driver makes the data key; two executors with one core have one Python worker each.
    enc = new()
    seen["generated"] = emulator.calls["GenerateDataKey"]
    enc.write.parquet(f"file://{folder}/enc")
    seen["decrypts of two workers"] = emulator.calls["Decrypt"]
    back = kmsdata.spark.read(spark, f"file://{folder}/enc")
    dec = kmsdata.spark.decrypt(back, key=key)
    seen["round trip"] = complete(dec)
    seen["decrypts of two jobs"] = emulator.calls["Decrypt"]
    seen["time"] = dec.where("id = 0").selectExpr("cast(at as string)").collect()[0][0]
    condition = kmsdata.spark.isin(back, "ssn", SSNS[7:9], key=key)
    seen["found"] = back.filter(condition).count()
    seen["verified"] = kmsdata.spark.verify(back, key=key).ok
    headers = [kmsdata.read_parquet(file)["at"].dtype.header for file in (folder / "enc").glob("*.parquet")]
    seen["recorded types"] = [header.columns[0].type["arrow"] for header in headers]

    for what in ("worker", "executor"):
        fresh = kmsdata.spark.decrypt(new(), key=key)
        seen[f"{what} killed"] = during(emulator, what, lambda frame=fresh: complete(frame))

    texts = {}
    emulator.fail(Fault.error("UnauthorizedOperation"), action="Decrypt", times=None)
    try:
        new().write.parquet(f"file://{folder}/never")
    except Exception as error:  # noqa: BLE001 - it is what the test looks at
        seen["denied"] = f"{type(error).__name__}: {error}"
        texts["error"] = seen["denied"] + repr(vars(error))
    emulator.heal()
    seen["after the fault"] = complete(kmsdata.spark.decrypt(new(), key=key))

    for name, frame in {"enc": enc, "dec": dec, "found": back.filter(condition)}.items():
        texts[f"plan of {name}"] = frame._jdf.queryExecution().toString()
        texts[f"plan of {name}, formatted"] = frame._jdf.queryExecution().explainString(
            spark._jvm.org.apache.spark.sql.execution.ExplainMode.fromString("formatted")
        )
    texts |= pages(spark)
    secret = kmsdata.data_key(kmsdata.read_parquet(folder / "enc"), key=key)._secret.reveal()
    spark.stop()
    for file in [*(folder / "events").rglob("*"), *(folder / "home" / "work").rglob("*")]:
        if file.is_file() and file.suffix != ".jar":
            texts[str(file.relative_to(folder))] = file.read_bytes().decode("latin-1")
    secrets = {
        "plaintext": b"plaintext-of-", "secret id": emulator.secret_id.encode(),
        "secret key": emulator.secret_key.encode(), "data key": secret,
    }  # fmt: skip
    seen["read"] = {name: len(text) for name, text in texts.items()}
    seen["leaks"] = [
        f"{what} in {where}" for where, text in texts.items() for what, form in forms(secrets) if form in text
    ]
    # The search itself works: the name of the step, which is no secret, is found in each kind of text.
    seen["steps"] = [where for where, text in texts.items() if "kmsdata_decrypt" in text]


def forms(secrets):
    for what, secret in secrets.items():
        yield what, secret.decode("latin-1")
        yield what, secret.hex()
        yield what, secret.hex().upper()
        yield what, base64.b64encode(secret).decode()[: len(secret) * 4 // 3 - 1]


def emulator_key(emulator):
    os.environ |= {
        "TENCENTCLOUD_SECRET_ID": emulator.secret_id,
        "TENCENTCLOUD_SECRET_KEY": emulator.secret_key,
        "KMSDATA_TENCENT_ENDPOINT": emulator.url,
    }
    return kmsdata.TencentKMS("ap-guangzhou", endpoint=emulator.url).create_key("payroll")


def main(folder):
    seen = {}
    with Emulator() as emulator:
        run(Path(folder), emulator, seen)
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
