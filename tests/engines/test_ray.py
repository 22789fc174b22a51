"""Ray Data: the same words on a `ray.data.Dataset`, with worker processes that have their own credentials."""

import base64
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kmsdata
from kmsdata.emulator import Emulator
from kmsdata.keys import session

pytestmark = [
    pytest.mark.engine("ray", "tencentcloud"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

ROWS = 4000


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    """The KMS, and a Ray cluster on this machine whose workers have its credentials in their environment."""
    import ray

    with Emulator() as emulator, pytest.MonkeyPatch.context() as patch:
        patch.setenv("KMSDATA_TENCENT_ENDPOINT", emulator.url)
        patch.setenv("TENCENTCLOUD_SECRET_ID", emulator.secret_id)
        patch.setenv("TENCENTCLOUD_SECRET_KEY", emulator.secret_key)
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            object_store_memory=150 << 20,
        )
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield emulator
        ray.shutdown()


@pytest.fixture(scope="module")
def key(emulator):
    pair = emulator.secret_id, emulator.secret_key
    return kmsdata.TencentKMS("ap-guangzhou", credential=pair, endpoint=emulator.url).create_key("ray")


@pytest.fixture
def table():
    return pa.table(
        {
            "n": pa.array(range(ROWS), pa.int32()),
            "email": [f"u{row % 50}@example.org" for row in range(ROWS)],
            "ssn": [None if row % 7 == 0 else f"078-05-{row:04d}" for row in range(ROWS)],
            "at": pa.array([row * 10**6 for row in range(ROWS)], pa.timestamp("us", "Asia/Shanghai")),
            "tags": [[row, None] for row in range(ROWS)],
        }
    )


@pytest.fixture
def source(table, tmp_path):
    """Four files with plain data, in a folder."""
    folder = tmp_path / "source"
    folder.mkdir()
    for part in range(4):
        pq.write_table(table.slice(part * 1000, 1000), folder / f"{part}.parquet")
    return str(folder)


def collected(ds):
    """The dataset as one table, in the order of n if that is plain."""
    import ray

    tables = [kmsdata.ray._typed(found) for found in ray.get(ds.to_arrow_refs())]
    return pa.concat_tables(tables)


def encrypted(source, key, **options):
    import ray

    import kmsdata.ray as kray

    return kray.encrypt(
        ray.data.read_parquet(source, override_num_blocks=2),
        ["ssn", "at", "tags"],
        deterministic="email",
        key=key,
        **options,
    )


def test_the_whole_trip(emulator, key, table, source, tmp_path):
    import ray

    import kmsdata.ray as kray

    before = emulator.calls.copy()
    out = tmp_path / "out"
    encrypted(source, key, context={"team": "a"}).write_parquet(str(out), max_rows_per_file=1000)
    calls = emulator.calls - before
    assert calls["GenerateDataKey"] == 1
    assert calls["Decrypt"] <= 3  # one for each worker process, and none here
    paths = sorted(out.glob("*.parquet"))
    assert len(paths) > 1
    assert kmsdata.verify(out, key=key).ok
    assert b"078-05-" not in b"".join(path.read_bytes() for path in paths)
    assert len({pq.read_schema(path).field("ssn").type for path in paths}) == 1
    back = kmsdata.read_parquet(out, decrypt=True, key=key).sort_values("n", ignore_index=True)
    pd.testing.assert_frame_equal(back, table.to_pandas())
    read = ray.data.read_parquet(str(out))
    assert read.schema().base_schema.field("ssn").type.extension_name == "kmsdata.encrypted"
    plain = collected(kray.decrypt(read, key=key, context={"team": "a"})).sort_by("n")
    assert plain.equals(table)
    part = collected(kray.decrypt(read, "at", key=key))
    assert part.schema.field("at").type == table.schema.field("at").type
    assert part.schema.field("ssn").type.extension_name == "kmsdata.encrypted"


def test_operations_of_ray_keep_the_headers(emulator, key, table):
    import ray

    import kmsdata.ray as kray

    one = kmsdata.encrypt_table(table.slice(0, 3000), ["ssn", "tags"], deterministic="email", key=key)
    two = kmsdata.encrypt_table(table.slice(3000), ["ssn", "tags"], deterministic="email", key=one)
    enc = ray.data.from_arrow([one, two]).random_shuffle(seed=1).union(ray.data.from_arrow(two.slice(0, 0)))
    plain = collected(kray.decrypt(enc, key="tencent-kms://ap-guangzhou/*"))
    assert plain["n"].to_pylist() != table["n"].to_pylist()
    assert plain.sort_by("n").equals(table)


def test_several_data_keys(emulator, key, table, tmp_path):
    import ray

    import kmsdata.ray as kray

    halves = [table.slice(0, 3000), table.slice(3000)]
    columns = ["ssn", "at", "tags"]
    made = [kmsdata.encrypt_table(half, columns, deterministic="email", key=key) for half in halves]
    one, two = map(ray.data.from_arrow, made)
    both = kray.union(one, two)
    for moved in (both.random_shuffle(seed=1), both.repartition(1)):
        assert collected(kray.decrypt(moved, key=key)).sort_by("n").equals(table)
    assert kray.isin(both, "email", "u7@example.org", key=key).count() == ROWS // 50
    with pytest.raises(ValueError, match=r"'email': a block has another data key.*kmsdata\.ray\.union"):
        kray.isin(one.union(two), "email", "u7@example.org", key=key).materialize()
    with pytest.raises(ValueError, match="has another data key"):
        kray.union(one.union(two), one).materialize()
    with pytest.raises(kmsdata.FormatError, match=r"is encrypted in some of the datasets only"):
        kray.union(one, ray.data.from_arrow(halves[1]))
    other = kmsdata.encrypt_table(halves[1], ["email", *columns], key=key)
    with pytest.raises(kmsdata.FormatError, match=r"'email' was encrypted differently in dataset 1"):
        kray.union(one, ray.data.from_arrow(other))

    for number, part in enumerate(made):
        (tmp_path / f"year={number}").mkdir()
        pq.write_table(part, tmp_path / f"year={number}" / "part.parquet")
    read = kray.read_parquet(tmp_path, encrypted=["ssn", "email"])
    plain = collected(kray.decrypt(read.repartition(1), key=key)).sort_by("n")
    assert plain.drop_columns("year").equals(table)
    assert set(plain["year"].to_pylist()) == {"0", "1"}
    assert kray.isin(read, "email", "u7@example.org", key=key).count() == ROWS // 50
    some = kray.read_parquet([str(tmp_path / "year=1")], columns="at")
    assert collected(kray.decrypt(some, key=key)).equals(halves[1].select(["at"]))
    with pytest.raises(kmsdata.FormatError, match="'n' must be encrypted"):
        kray.read_parquet(tmp_path, encrypted="n")
    with pytest.raises(KeyError, match="did you mean 'ssn'"):
        kray.read_parquet(tmp_path, columns="snn")
    with pytest.raises(ValueError, match="schema="):
        kray.read_parquet(tmp_path, schema=table.schema)
    # A file that is replaced by plaintext after the footers were read.
    pq.write_table(
        table.set_column(2, "ssn", pa.array(["0" * 40] * ROWS)).select(["ssn"]), tmp_path / "a.parquet"
    )
    pq.write_table(made[0].select(["ssn"]), tmp_path / "b.parquet")
    lazy = kray.read_parquet(tmp_path / "b.parquet")
    (tmp_path / "a.parquet").replace(tmp_path / "b.parquet")
    with pytest.raises(kmsdata.FormatError, match="'ssn' is not encrypted in a block"):
        lazy.materialize()


@pytest.mark.filterwarnings("ignore:Use 'expr' instead:UserWarning")
def test_blocks_without_values(emulator, key):
    import ray

    import kmsdata.ray as kray

    for values in (["a", None], [None, "a"]):
        ds = ray.data.from_items([{"s": value} for value in values], override_num_blocks=2)
        back = kray.decrypt(kray.encrypt(ds, "s", key=key), key=key)
        assert [row["s"] for row in back.take_all()] == values
    none = ray.data.from_arrow(pa.table({"s": ["a"], "n": [1]})).filter(lambda row: row["n"] > 1)
    enc = kray.encrypt(none, deterministic="s", key=key)
    assert enc.count() == 0
    assert kray.decrypt(enc, key=key).take_all() == []
    assert kray.isin(enc, "s", "a", key=key).count() == 0
    with pytest.raises(ValueError, match="had no rows when this was planned"):
        kray._no_rows(pa.table({"s": ["a"]}), None)


def test_the_context_of_the_caller_is_unchanged(emulator, key):
    import ray

    import kmsdata.ray as kray

    ds = ray.data.from_arrow(pa.table({"s": ["a"]}))
    assert kray.encrypt(ds, "s", key=key).context.raise_original_map_exception
    assert not ds.context.raise_original_map_exception


def test_search(emulator, key, table):
    import ray

    import kmsdata.ray as kray

    enc = ray.data.from_arrow(kmsdata.encrypt_table(table, "ssn", deterministic="email", key=key))
    before = emulator.calls.copy()
    found = kray.isin(enc, "email", ["u7@example.org", "none"], key=key)
    assert (emulator.calls - before)["GenerateDataKey"] == 0
    assert sorted(row["n"] for row in found.take_all()) == list(range(7, ROWS, 50))
    with pytest.raises(TypeError, match="randomised"):
        kray.isin(enc, "ssn", "x", key=key)
    with pytest.raises((KeyError, kmsdata.FormatError)):
        kray.isin(enc, "nmae", "x", key=key)


def test_nothing_secret_is_in_the_plan(emulator, key, source):
    from ray import cloudpickle

    import kmsdata.ray as kray

    data_key = kmsdata.new_data_key(key)
    (wrap,) = data_key.wraps
    secret = session.provider_of(key, pinned=True).unwrap(wrap.wrapped, key, {})
    enc = encrypted(source, data_key)
    for ds in (enc, kray.isin(enc, "email", "u7@example.org", key=key), kray.decrypt(enc, key=key)):
        plan = cloudpickle.dumps(ds._logical_plan) + ds.serialize_lineage() + repr(ds).encode()
        assert wrap.wrapped.encode() in plan
        for form in (secret, secret.hex().encode(), base64.b64encode(secret)):
            assert form not in plan
        for text in (emulator.secret_key, emulator.secret_id, "u7@example.org", "078-05-"):
            assert text.encode() not in plan
    with pytest.raises(TypeError, match="secret"):
        kray.decrypt(enc, key=data_key)


def test_errors_of_workers_are_those_of_kmsdata(emulator, key, table, source):
    import ray

    import kmsdata.ray as kray

    enc = kmsdata.encrypt_table(table, "ssn", key=key)
    position = enc.schema.get_field_index("ssn")
    cells = enc.column("ssn").combine_chunks().storage.to_pylist()
    cells[5] = cells[5][:-1] + bytes([cells[5][-1] ^ 1])
    kind = enc.schema.field("ssn").type
    changed = enc.set_column(
        position, "ssn", pa.ExtensionArray.from_storage(kind, pa.array(cells, kind.storage_type))
    )
    with pytest.raises(kmsdata.TamperedError) as caught:
        kray.decrypt(ray.data.from_arrow(changed), key=key).materialize()
    assert (caught.value.cause.column, caught.value.cause.rows) == ("ssn", (5,))
    assert "078-05-" not in f"{caught.value} {caught.value.cause!r}"
    other = kmsdata.TencentKMS("ap-guangzhou").create_key("disabled")
    denied = kray.encrypt(ray.data.read_parquet(source), "ssn", key=other)
    kmsdata.TencentKMS("ap-guangzhou").disable_key(other)
    with pytest.raises(kmsdata.KeyAccessError, match="disabled"):
        denied.materialize()


def test_types_are_those_that_were_planned(emulator, key):
    import ray

    import kmsdata.ray as kray

    frame = pd.DataFrame({"text": ["a", None], "n": pd.array([1, None], "Int64"), "x": [1.5, np.nan]})
    back = kray.decrypt(kray.encrypt(ray.data.from_pandas(frame), ["text", "n", "x"], key=key), key=key)
    rows = collected(back).to_pydict()
    assert (rows["text"], rows["n"]) == (["a", None], [1, None])
    parts = [pa.table({"a": pa.array([1], kind)}) for kind in (pa.int64(), pa.int32())]
    with pytest.raises(ValueError, match=r"column 'a': a block has the type int32, but int64 was planned"):
        kray.encrypt(ray.data.from_arrow(parts), "a", key=key).materialize()
    with pytest.raises(ValueError, match="empty"):
        kray.encrypt(ray.data.from_items([]), "a", key=key)
    with pytest.raises(TypeError, match=r"takes a ray.data.Dataset, not DataFrame"):
        kray.encrypt(frame, "text", key=key)
    with pytest.raises(KeyError, match="no column"):
        kray.encrypt(ray.data.from_pandas(frame), "txt", key=key)


def test_blocks_that_arrived_before_the_import(emulator, key, table):
    """Arrow makes plain binary of a type that is not registered; the field's metadata keeps the header."""
    import kmsdata.ray as kray

    enc = kmsdata.encrypt_table(table, "ssn", key=key)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, enc.schema) as writer:
        writer.write_table(enc)
    kind = enc.schema.field("ssn").type
    pa.unregister_extension_type("kmsdata.encrypted")
    try:
        lost = pa.ipc.open_stream(sink.getvalue()).read_all()
    finally:
        pa.register_extension_type(kind)
    assert pa.types.is_binary(lost.schema.field("ssn").type) or pa.types.is_large_binary(
        lost.schema.field("ssn").type
    )
    assert kray._typed(lost).equals(enc)


def test_without_ray_the_error_names_the_extra():
    code = "import sys; sys.modules['ray'] = None; import kmsdata.ray"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ
    )
    assert 'ImportError: kmsdata.ray needs Ray. Run: pip install "kmsdata[ray]"' in done.stderr
