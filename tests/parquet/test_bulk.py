"""Files and datasets encrypted and decrypted as streams; all else is unchanged; all or nothing is written."""

import dataclasses
import datetime as dt
import errno
import functools
import gc
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kmsdata
from kmsdata.keys.data_key import Secret
from kmsdata.parquet import column_chunks as chunks
from kmsdata.parquet import locations as places
from kmsdata.parquet.bulk import column_batches, column_decryptor, column_encryptor, decrypt, encrypt
from kmsdata.parquet.bulk.csv_reader import CsvFormat
from kmsdata.parquet.bulk.plan import plan_decryption, plan_encryption
from kmsdata.parquet.footer import read_metadata
from kmsdata.parquet.thrift import decode, encode

fsspec = pytest.importorskip("fsspec")

KEY = "local://demo"
QUICK = settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))


def people(rows=3000, start=0):
    """Return a table with every kind of column that a file may have, three of them secret."""
    numbers = range(start, start + rows)
    return pa.table(
        {
            "id": pa.array(numbers, pa.int64()),
            "ssn": pa.array([f"078-05-{n:05d}" if n % 7 else None for n in numbers]),
            "email": pa.array([f"person{n % 40}@example.org" for n in numbers]),
            "salary": pa.array([n * 7919 + 123_456_789_012 for n in numbers], pa.int64()),
            "city": pa.array([f"city-{n % 5}" for n in numbers]).dictionary_encode(),
            "when": pa.array(
                [dt.datetime(2026, 1, 1) + dt.timedelta(n) for n in numbers], pa.timestamp("us", "UTC")
            ),
            "nested": pa.array([{"tags": [str(n), None], "n": n} if n % 3 else None for n in numbers]),
        },
    )


RICH = {
    "row_group_size": 700,
    "write_page_index": True,
    "write_page_checksum": True,
    "sorting_columns": [pq.SortingColumn(0), pq.SortingColumn(3)],
}
if int(pa.__version__.split(".")[0]) >= 24:
    RICH["bloom_filter_options"] = {"id": True, "ssn": True}
SECRETS = {"columns": ["ssn", "salary"], "deterministic": ["email"], "key": KEY}
HIDDEN = ["ssn", "salary", "email"]


def write(table, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def leaves(path):
    """Return everything in a footer about each plain leaf of each row group, except file offsets."""
    metadata = pq.read_metadata(path)
    found = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for leaf in range(group.num_columns):
            chunk = group.column(leaf).to_dict()
            if chunk["path_in_schema"] not in HIDDEN:
                found.append({k: v for k, v in chunk.items() if not k.endswith("offset")})
    return found


def clear(table, name):
    """Return the bytes by which a column's values would be found in a file."""
    for value in table[name].unique().to_pylist():
        if value is not None:
            yield value.encode() if isinstance(value, str) else value.to_bytes(8, "little")


def without_checksums(path, rows):
    """Write a file again, so that a changed page is not found by its checksum: an attacker corrects it."""
    pq.write_table(pq.read_table(path), path, row_group_size=rows, use_dictionary=False, compression="none")


def snapshot(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def in_parts_of(part, batch, monkeypatch):
    """Process columns in parts, and read them in batches, of this many bytes."""
    for module in (column_batches, encrypt, column_decryptor):
        monkeypatch.setattr(module, "PART", part)
    monkeypatch.setattr(column_batches, "_BATCH", batch)


# --- one file -------------------------------------------------------------------------------------


def test_a_file_there_and_back(tmp_path):
    table = people().replace_schema_metadata({"source": "survey of 2026"})
    source, sealed, back = (tmp_path / f"{name}.parquet" for name in ("a", "b", "c"))
    write(table, source, **RICH)
    done = kmsdata.encrypt_parquet(source, sealed, **SECRETS)
    assert (done.rows, done.files, done.kms_calls) == (3000, 1, 1)
    assert sorted(done.columns) == sorted(HIDDEN)
    assert done.bytes == sealed.stat().st_size
    assert kmsdata.inspect(sealed).encrypted == ["ssn", "email", "salary"]
    seen = pq.read_table(source)
    assert kmsdata.decrypt_table(pq.read_table(sealed)).equals(seen)
    done = kmsdata.decrypt_parquet(sealed, back)
    assert (done.rows, done.kms_calls, done.bytes) == (3000, 1, back.stat().st_size)
    returned = pq.read_table(back)
    assert returned.equals(seen)
    assert returned.schema.equals(seen.schema, check_metadata=True)
    assert snapshot(tmp_path).keys() == {"a.parquet", "b.parquet", "c.parquet", "keystore/keystore.json"} | {
        name for name in snapshot(tmp_path) if name.startswith("keystore/")
    }


def test_plain_columns_stay_byte_for_byte(tmp_path):
    source, sealed = write(people(), tmp_path / "a.parquet", **RICH), tmp_path / "b.parquet"
    kmsdata.encrypt_parquet(source, sealed, **SECRETS)
    one, two = pq.read_metadata(source), pq.read_metadata(sealed)
    assert leaves(source) == leaves(sealed)
    assert [one.row_group(n).num_rows for n in range(5)] == [two.row_group(n).num_rows for n in range(5)]
    assert one.num_row_groups == two.num_row_groups == 5
    assert two.created_by == one.created_by
    # Still sorted by id, but no longer by salary, whose cells are random.
    assert two.row_group(0).sorting_columns == (pq.SortingColumn(0),)
    before, after = source.read_bytes(), sealed.read_bytes()
    for number in range(5):
        for leaf in range(one.num_columns):
            chunk, moved = one.row_group(number).column(leaf), two.row_group(number).column(leaf)
            pages = [
                data[min(c.data_page_offset, c.dictionary_page_offset or c.data_page_offset) :][
                    : c.total_compressed_size
                ]
                for c, data in ((chunk, before), (moved, after))
            ]
            assert (pages[0] == pages[1]) == (chunk.path_in_schema not in HIDDEN)
            if chunk.path_in_schema in HIDDEN:
                assert not moved.is_stats_set
                assert not moved.has_column_index
                assert not moved.has_offset_index
            elif chunk.has_column_index:
                assert moved.has_column_index
                assert moved.has_offset_index


def test_indexes_and_bloom_filters_move_with_their_pages(tmp_path):
    source, sealed = write(people(), tmp_path / "a.parquet", **RICH), tmp_path / "b.parquet"
    kmsdata.encrypt_parquet(source, sealed, **SECRETS)
    data = sealed.read_bytes()
    footer = read_metadata(pa.BufferReader(data), len(data), "")
    seen = 0
    for group in footer.groups:
        for chunk in chunks.value(group, 1)[1]:
            meta = chunks.value(chunk, 3)
            if 4 in chunk:
                index, _ = decode(data[chunk[4][1] :])
                pages = chunks.value(index, 1)[1]
                assert chunks.value(pages[0], 1) == meta[9][1]  # the first data page
                for page in pages:
                    header, used = decode(data[page[1][1] :])
                    assert used + header[3][1] == page[2][1]  # header and page are as long as it says
                    seen += 1
            if 14 in meta:
                header, used = decode(data[meta[14][1] :])
                assert used + header[1][1] == meta[15][1]
                seen += 1000
    assert seen % 1000 == 5 * 5  # pages of the leaves that stayed: id, city, when, and two of nested
    assert seen // 1000 == (5 if "bloom_filter_options" in RICH else 0)


def test_nothing_of_the_secrets_is_left_in_the_file(tmp_path):
    table = people()
    plain = {"compression": "none", "use_dictionary": False, **RICH}
    source, sealed = write(table, tmp_path / "a.parquet", **plain), tmp_path / "b.parquet"
    kmsdata.encrypt_parquet(source, sealed, ["ssn", "salary", "city"], deterministic="email", key=KEY)
    raw = sealed.read_bytes()
    for name in (*HIDDEN, "city"):
        found = [value for value in clear(table, name) if value in source.read_bytes()]
        assert found  # else the test could not fail
        assert [value for value in found if value in raw] == []
    # Metadata is base64 in part.
    schema = pq.read_schema(sealed).serialize().to_pybytes() + str(pq.read_metadata(sealed).metadata).encode()
    assert [v for name in (*HIDDEN, "city") for v in clear(table, name) if v in schema] == []


@pytest.mark.newest
def test_other_readers_agree(tmp_path):
    import duckdb
    import fastparquet
    import polars

    table = people()
    source, sealed, back = (tmp_path / f"{name}.parquet" for name in ("a", "b", "c"))
    write(table, source, **RICH)
    kmsdata.encrypt_parquet(source, sealed, **SECRETS)
    kmsdata.decrypt_parquet(sealed, back)
    for path in (source, sealed, back):
        question = (
            f"select count(*), sum(id), max(nested.n) from '{path}' where id >= 1000 and city = 'city-2'"  # noqa: S608
        )
        assert duckdb.sql(question).fetchall() == [(400, 799_800, 2992)]
        assert duckdb.sql(f"select id from '{path}' where id = 1234").fetchall() == [(1234,)]  # noqa: S608
        frame = polars.read_parquet(path, columns=["id", "when", "city"])
        assert frame["id"].to_list() == list(range(3000))
        assert frame.filter(polars.col("id") == 7)["city"].to_list() == ["city-2"]
        with path.open("rb") as file:
            assert fastparquet.ParquetFile(file).to_pandas(columns=["id"])["id"].tolist() == list(range(3000))
    assert duckdb.sql(f"select ssn from '{sealed}' limit 1 offset 1").fetchall()[0][0][:1] == b"\x01"  # noqa: S608
    assert duckdb.sql(f"select email from '{back}' where id = 3").fetchall() == [("person3@example.org",)]  # noqa: S608


@pytest.mark.newest
@pytest.mark.parametrize("writer", ["duckdb", "polars", "fastparquet"])
def test_files_of_other_writers(tmp_path, writer):
    frame = people(900).select(["id", "ssn", "email", "salary"]).to_pandas()
    source, sealed, back = (tmp_path / f"{name}.parquet" for name in ("a", "b", "c"))
    if writer == "duckdb":
        import duckdb

        duckdb.sql(f"copy frame to '{source}' (format parquet, row_group_size 2048)")
    elif writer == "polars":
        import polars

        polars.from_pandas(frame).write_parquet(source, row_group_size=200)
    else:
        import fastparquet

        fastparquet.write(str(source), frame)
    kmsdata.encrypt_parquet(source, sealed, **SECRETS)
    raw = sealed.read_bytes()
    assert not any(ssn.encode() in raw for ssn in frame["ssn"].dropna())
    seen = pq.read_table(source)
    assert kmsdata.decrypt_table(pq.read_table(sealed)).equals(seen)
    kmsdata.decrypt_parquet(sealed, back)
    assert pq.read_table(back).equals(seen)
    pd.testing.assert_frame_equal(pd.read_parquet(back), pd.read_parquet(source))


def test_pandas_metadata_and_index(tmp_path):
    frame = people(500).select(["id", "ssn", "salary", "city"]).to_pandas().set_index("id")
    frame["salary"] = frame["salary"].astype("Int64")
    frame.attrs = {"survey": 2026}
    source, sealed, back = (tmp_path / f"{name}.parquet" for name in ("a", "b", "c"))
    frame.to_parquet(source)
    kmsdata.encrypt_parquet(source, sealed, ["ssn", "salary", "city"], key=KEY)
    seen = pd.read_parquet(source)
    pd.testing.assert_frame_equal(kmsdata.read_parquet(sealed, decrypt=True), seen)
    kmsdata.decrypt_parquet(sealed, back)
    pd.testing.assert_frame_equal(pd.read_parquet(back), seen)
    assert pd.read_parquet(back).attrs == seen.attrs == {"survey": 2026}
    # Exit at once: some versions of pyarrow sometimes abort while the interpreter shuts down.
    code = f"import os, pandas as pd; kind = pd.read_parquet({str(sealed)!r})['ssn'].map(type).iloc[1]"
    code += "; print(kind, flush=True); os._exit(0)"
    without = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert without.stdout.strip() == "<class 'bytes'>"


def test_frames_that_were_encrypted_in_pandas(tmp_path, titanic):
    columns = ["name", "age", "fare", "cabin", "survived"]
    frame = titanic.assign(survived=titanic["survived"].astype("Int8"), sex=titanic["sex"].astype("category"))
    frame.to_parquet(tmp_path / "plain.parquet")
    frame.kms.encrypt(columns, deterministic="sex", key=KEY).kms.to_parquet(tmp_path / "sealed.parquet")
    done = kmsdata.decrypt_parquet(tmp_path / "sealed.parquet", tmp_path / "back.parquet")
    assert sorted(done.columns) == sorted([*columns, "sex"])
    back, seen = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("back", "plain"))
    pd.testing.assert_frame_equal(back, seen)


def test_decrypting_some_leaves_the_others_encrypted(tmp_path):
    source, sealed, back = (tmp_path / f"{name}.parquet" for name in ("a", "b", "c"))
    write(people(), source, **RICH)
    kmsdata.encrypt_parquet(source, sealed, **SECRETS)
    assert kmsdata.decrypt_parquet(sealed, back, "ssn").columns == ("ssn",)
    assert kmsdata.inspect(back).encrypted == ["email", "salary"]
    assert json.loads(pq.read_metadata(back).metadata[b"kmsdata"])["columns"].keys() == {"email", "salary"}
    assert kmsdata.decrypt_table(pq.read_table(back)).equals(pq.read_table(source))
    again = tmp_path / "d.parquet"
    kmsdata.encrypt_parquet(back, again, "ssn", key=kmsdata.data_key(back))
    assert kmsdata.decrypt_table(pq.read_table(again)).equals(pq.read_table(source))


def test_field_ids_and_required_columns_stay(tmp_path):
    schema = pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False, metadata={"PARQUET:field_id": "7"}),
            pa.field(
                "ssn", pa.string(), nullable=False, metadata={"PARQUET:field_id": "9", "note": "the number"}
            ),
        ]
    )
    source, sealed, back = (tmp_path / f"{name}.parquet" for name in ("a", "b", "c"))
    write(pa.table({"id": [1, 2], "ssn": ["078-05-1120", "219-09-9999"]}, schema=schema), source)
    kmsdata.encrypt_parquet(source, sealed, "ssn", key=KEY)
    kmsdata.decrypt_parquet(sealed, back)
    for path in (sealed, back):
        for field in pq.read_schema(path):
            was = pq.read_schema(source).field(field.name)
            assert field.metadata[b"PARQUET:field_id"] == was.metadata[b"PARQUET:field_id"]
            assert field.nullable is was.nullable is False
    assert pq.read_table(back).equals(pq.read_table(source))
    assert pq.read_schema(back).equals(pq.read_schema(source), check_metadata=True)


def test_no_row_groups_and_empty_ones(tmp_path):
    table = people(10)
    for number, rows in enumerate([[], [0], [0, 10, 0]]):
        source, sealed, back = (tmp_path / f"{name}{number}.parquet" for name in "abc")
        with pq.ParquetWriter(source, table.schema) as writer:
            for count in rows:
                writer.write_table(table.slice(0, count))
        kmsdata.encrypt_parquet(source, sealed, **SECRETS)
        kmsdata.decrypt_parquet(sealed, back)
        for path in (sealed, back):
            metadata = pq.read_metadata(path)
            assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == rows
        assert pq.read_table(back).equals(pq.read_table(source))
        assert kmsdata.decrypt_table(pq.read_table(sealed)).equals(pq.read_table(source))


def test_large_row_groups_go_through_in_parts(tmp_path, monkeypatch):
    """Parts of a few kilobytes instead of 64 MB: pages of several parts make one chunk."""
    in_parts_of(20_000, 8_000, monkeypatch)
    source, sealed, back = (tmp_path / f"{name}.parquet" for name in ("a", "b", "c"))
    write(people(), source, row_group_size=2000)
    everything = ["ssn", "salary", "city", "nested", "when"]
    kmsdata.encrypt_parquet(source, sealed, everything, deterministic="email", key=KEY)
    kmsdata.decrypt_parquet(sealed, back)
    for path in (sealed, back):
        metadata = pq.read_metadata(path)
        assert [metadata.row_group(n).num_rows for n in range(2)] == [2000, 1000]
        assert not metadata.row_group(0).column(1).has_dictionary_page
    assert kmsdata.decrypt_table(pq.read_table(sealed)).equals(pq.read_table(source))
    assert pq.read_table(back).equals(pq.read_table(source))
    cells = pq.read_table(sealed)["ssn"].to_pandas().dropna()
    assert len({bytes(cell) for cell in cells}) == len(cells)


def test_categories_of_all_row_groups_stand_in_one_header(tmp_path):
    schema = pa.schema([("c", pa.dictionary(pa.int32(), pa.string()))])
    parts = [["a", "b"], ["b", "c", None], ["d"]]
    folder = tmp_path / "in"
    for number in range(2):
        with pq.ParquetWriter(write(pa.table({"x": [1]}), folder / f"{number}.parquet"), schema) as writer:
            for part in parts[number:]:
                writer.write_table(pa.table({"c": pa.array(part).dictionary_encode()}, schema=schema))
    kmsdata.encrypt_parquet(folder, tmp_path / "out", "c", key=KEY)
    frame = kmsdata.read_parquet(tmp_path / "out")
    assert len(frame["c"].dtype.header.columns) == 1
    back = frame.kms.decrypt()["c"]
    assert back.dtype.categories.tolist() == ["a", "b", "c", "d"]
    assert back.astype(object).where(back.notna(), None).tolist() == [
        x for p in (*parts, *parts[1:]) for x in p
    ]
    kmsdata.decrypt_parquet(tmp_path / "out", tmp_path / "back")
    for number in range(2):
        seen, returned = (pq.read_table(f / f"{number}.parquet")["c"] for f in (folder, tmp_path / "back"))
        assert returned.type == seen.type
        assert returned.to_pylist() == seen.to_pylist()


VALUES = {
    "i": (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    "f": (pa.float64(), st.floats(width=64, allow_nan=False)),
    "s": (pa.string(), st.text(max_size=9)),
    "b": (pa.large_binary(), st.binary(max_size=9)),
    "t": (pa.bool_(), st.booleans()),
    "d": (pa.date32(), st.dates()),
    "l": (pa.list_(pa.int8()), st.lists(st.integers(-128, 127), max_size=3)),
    "n": (
        pa.struct([("x", pa.int16()), ("y", pa.list_(pa.string()))]),
        st.fixed_dictionaries({"x": st.integers(-9, 9), "y": st.lists(st.text(max_size=3), max_size=2)}),
    ),
    "c": (pa.decimal128(20, 2), st.decimals(-(10**6), 10**6, places=2)),
}


@st.composite
def tables(draw):
    rows = draw(st.integers(0, 30))
    names = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=2, unique=True))
    arrays = {}
    for name in names:
        kind, values = VALUES[name]
        arrays[name] = pa.array(draw(st.lists(st.none() | values, min_size=rows, max_size=rows)), kind)
    secret = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    exact = [name for name in secret if name in "isbtd" and draw(st.booleans())]
    return pa.table(arrays), secret, exact, draw(st.integers(1, 40)), draw(st.sampled_from(["1.0", "2.0"]))


@QUICK
@given(case=tables())
def test_round_trips(case, tmp_path_factory):
    table, secret, exact, group, pages = case
    folder = tmp_path_factory.mktemp("trip")
    source, sealed, back = (folder / f"{name}.parquet" for name in ("a", "b", "c"))
    write(table, source, row_group_size=group, data_page_version=pages)
    kmsdata.encrypt_parquet(source, sealed, secret, deterministic=exact, key=KEY)
    seen = pq.read_table(source)
    assert kmsdata.decrypt_table(pq.read_table(sealed)).equals(seen)
    kmsdata.decrypt_parquet(sealed, back)
    returned = pq.read_table(back)
    assert returned.equals(seen)
    assert returned.schema.equals(seen.schema, check_metadata=True)


def test_footers_are_written_as_they_were(tmp_path):
    data = write(people(), tmp_path / "a.parquet", **RICH).read_bytes()
    body = data[-8 - int.from_bytes(data[-8:-4], "little") : -8]
    assert encode(decode(body)[0]) == body


# --- datasets and filesystems ---------------------------------------------------------------------


def dataset(folder, files=4, rows=50):
    for number in range(files):
        path = folder / f"year={2020 + number % 2}" / f"part-{number}.parquet"
        write(people(rows, start=number * rows), path, row_group_size=max(20, rows // 3))
    (folder / "_SUCCESS").write_bytes(b"")
    (folder / ".part.crc").write_bytes(b"crc")
    return folder


def test_a_partitioned_dataset(tmp_path):
    source = dataset(tmp_path / "in")
    before = kmsdata.usage().calls
    done = kmsdata.encrypt_parquet(source, tmp_path / "out", **SECRETS)
    assert (done.rows, done.files, done.kms_calls) == (200, 4, 1)
    assert kmsdata.usage().calls - before == 1
    assert snapshot(tmp_path / "out").keys() == {f"year={2020 + n % 2}/part-{n}.parquet" for n in range(4)}
    assert done.bytes == sum(map(len, snapshot(tmp_path / "out").values()))
    frame = kmsdata.read_parquet(tmp_path / "out", decrypt=True)
    pd.testing.assert_frame_equal(frame, pd.read_parquet(source))
    done = kmsdata.decrypt_parquet(tmp_path / "out", tmp_path / "back")
    assert (done.files, done.kms_calls) == (4, 1)
    assert (
        ds.dataset(tmp_path / "back", partitioning="hive")
        .to_table()
        .equals(ds.dataset(source, partitioning="hive").to_table())
    )


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("year=2020/*.parquet", {"year=2020/part-0.parquet", "year=2020/part-2.parquet"}),
        ("*/part-[01].parquet", {"year=2020/part-0.parquet", "year=2021/part-1.parquet"}),
        ("**/part-3.*", {"year=2021/part-3.parquet"}),
        ("**", {f"year={2020 + n % 2}/part-{n}.parquet" for n in range(4)}),
    ],
)
def test_patterns(tmp_path, pattern, found):
    source = dataset(tmp_path / "in")
    kmsdata.encrypt_parquet(f"{source}/{pattern}", tmp_path / "out", "ssn", key=KEY)
    fixed = pattern.split("*")[0].rpartition("/")[0]
    wanted = {name.removeprefix(f"{fixed}/") for name in found}
    assert snapshot(tmp_path / "out").keys() == wanted


def test_one_file_into_a_folder(tmp_path):
    source = write(people(10), tmp_path / "a.parquet")
    (tmp_path / "out").mkdir()
    kmsdata.encrypt_parquet(source, tmp_path / "out", "ssn", key=KEY)
    assert kmsdata.inspect(tmp_path / "out" / "a.parquet").encrypted == ["ssn"]


@pytest.fixture
def memory():
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


def test_an_error_removes_only_what_was_written(tmp_path, memory, monkeypatch):
    """Another process may write to the same new folder of an object store meanwhile."""
    source = tmp_path / "in"
    source.mkdir()
    for name in ("a", "b"):
        pq.write_table(pa.table({"k": [1], "s": ["x"]}), source / f"{name}.parquet")
    usual, calls = encrypt.rewrite, []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            memory.pipe("/shared/other.parquet", b"not ours")
            raise OSError(errno.EIO, "I/O error")
        return usual(*arguments)

    monkeypatch.setattr(encrypt, "rewrite", failing)
    with pytest.raises(OSError, match="I/O error"):
        kmsdata.encrypt_parquet(source, "memory://shared", "s", key="local://demo")
    assert set(memory.store) == {"/shared/other.parquet"}


def test_urls_and_filesystems(tmp_path, memory):
    source = dataset(tmp_path / "in")
    kmsdata.encrypt_parquet(source, "memory://sealed", **SECRETS)
    assert set(memory.store) == {f"/sealed/year={2020 + n % 2}/part-{n}.parquet" for n in range(4)}
    kmsdata.decrypt_parquet("memory://sealed/*/*.parquet", "memory://back")
    back = ds.dataset("/back", filesystem=memory, partitioning="hive").to_table()
    assert back.equals(ds.dataset(source, partitioning="hive").to_table())
    kmsdata.decrypt_parquet("/sealed/year=2020/part-0.parquet", "/one.parquet", filesystem=memory)
    kmsdata.decrypt_parquet(
        "sealed/year=2020",
        str(tmp_path / "local"),
        filesystem=memory,
        target_filesystem=pafs.LocalFileSystem(),
    )
    assert snapshot(tmp_path / "local").keys() == {"part-0.parquet", "part-2.parquet"}
    arrow = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    kmsdata.encrypt_parquet("in/year=2020/part-0.parquet", "x.parquet", "ssn", key=KEY, filesystem=arrow)
    assert kmsdata.inspect(tmp_path / "x.parquet").encrypted == ["ssn"]
    kmsdata.encrypt_parquet(f"file://{source}", f"file://{tmp_path}/url", "ssn", key=KEY)
    assert len(snapshot(tmp_path / "url")) == 4


@pytest.mark.slow
def test_many_small_files(tmp_path):
    for number in range(200):
        write(people(3, start=number), tmp_path / "in" / f"{number}.parquet")
    done = kmsdata.encrypt_parquet(tmp_path / "in", tmp_path / "out", **SECRETS)
    assert (done.files, done.rows, done.kms_calls) == (200, 600, 1)
    assert kmsdata.decrypt_parquet(tmp_path / "out", tmp_path / "back").kms_calls == 1
    read = [ds.dataset(tmp_path / name).to_table().sort_by("id") for name in ("in", "back")]
    assert read[0].equals(read[1])


# --- CSV ------------------------------------------------------------------------------------------


def test_csv(tmp_path):
    rows = 100_000
    lines = [
        f"{n},0{n:08d},{n / 4},2026-01-{n % 28 + 1:02d},{'' if n % 3 else chr(34) + 'a, b' + chr(34)}"
        for n in range(rows)
    ]
    source = tmp_path / "people.csv"
    source.write_text("\n".join(["id,phone,amount,day,note", *lines]))
    done = kmsdata.encrypt_parquet(
        source, tmp_path / "p.parquet", ["phone", "day"], deterministic="id", key=KEY
    )
    assert done.bytes == (tmp_path / "p.parquet").stat().st_size
    table = kmsdata.decrypt_table(pq.read_table(tmp_path / "p.parquet"))
    assert table.schema.types == [pa.int64(), pa.string(), pa.float64(), pa.date32(), pa.string()]
    assert table["phone"].to_pylist() == [f"0{n:08d}" for n in range(rows)]  # a number would lose its zero
    assert table["id"].to_pylist() == list(range(rows))
    assert table["note"].to_pylist() == [None if n % 3 else "a, b" for n in range(rows)]
    assert b"000000123" not in (tmp_path / "p.parquet").read_bytes()


def test_csv_folders_become_parquet(tmp_path):
    (tmp_path / "in" / "year=2026").mkdir(parents=True)
    (tmp_path / "in" / "a.csv").write_text("id,ssn\n1,078\n")
    (tmp_path / "in" / "year=2026" / "b.csv").write_text("id,ssn\n2,x\n3,y\n")
    kmsdata.encrypt_parquet(tmp_path / "in", tmp_path / "out", "ssn", key=KEY)
    assert snapshot(tmp_path / "out").keys() == {"a.parquet", "year=2026/b.parquet"}
    frame = kmsdata.read_parquet(tmp_path / "out", decrypt=True)
    assert sorted(frame["ssn"]) == ["078", "x", "y"]


def test_csv_files_of_more_columns_than_the_first(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("id,ssn\n1,078\n")
    (tmp_path / "in" / "b.csv").write_text("id,ssn,city\n2,079,Ulm\n")
    kmsdata.encrypt_parquet(tmp_path / "in", tmp_path / "out", "ssn", key=KEY)
    tables = [kmsdata.decrypt_table(pq.read_table(tmp_path / "out" / f"{name}.parquet")) for name in "ab"]
    assert tables[0].to_pylist() == [{"id": 1, "ssn": "078"}]
    assert tables[1].to_pylist() == [{"id": 2, "ssn": "079", "city": "Ulm"}]


@pytest.mark.parametrize("late", ["abc-secret", "007", "+5", "1.5"])
def test_csv_whose_later_rows_are_of_another_type(tmp_path, late):
    source = tmp_path / "a.csv"
    source.write_text("id,pin\n" + "".join(f"{n},{n + 100000}\n" for n in range(500_000)) + f"1,{late}\n")
    with pytest.raises(
        kmsdata.FormatError, match=r"'pin' is int64 .* row \d+ .* types=\{'pin': 'string'\}"
    ) as caught:
        kmsdata.encrypt_parquet(source, tmp_path / "b.parquet", "pin", key=KEY)
    error = caught.value
    while error is not None:
        assert late not in str(error) or late == "007"
        error = error.__cause__ or error.__context__
    assert not (tmp_path / "b.parquet").exists()
    kmsdata.encrypt_parquet(source, tmp_path / "b.parquet", "pin", key=KEY, types={"pin": "string"})
    assert kmsdata.decrypt_table(pq.read_table(tmp_path / "b.parquet"))["pin"][-1].as_py() == late


@pytest.mark.parametrize("text", ["姓名,ssn\nAda,1\n", "name,ssn\n张三,1\n"])
def test_csv_that_is_not_utf8_is_refused(tmp_path, text):
    (tmp_path / "a.csv").write_bytes(text.encode("gb18030"))
    with pytest.raises(kmsdata.FormatError, match=r"not UTF-8\. Pass its encoding"):
        kmsdata.encrypt_parquet(tmp_path / "a.csv", tmp_path / "b.parquet", "ssn", key=KEY)


def test_a_target_called_csv_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("id,ssn\n1,2\n")
    with pytest.raises(ValueError, match="would be a Parquet file"):
        kmsdata.encrypt_parquet(tmp_path / "a.csv", tmp_path / "b.csv", "ssn", key=KEY)
    with pytest.raises(KeyError, match=r"no column 'zzz'\. .* it has 2 fields, none of"):
        kmsdata.encrypt_parquet(tmp_path / "a.csv", tmp_path / "b.parquet", "zzz", key=KEY)
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_csv_without_rows(tmp_path):
    (tmp_path / "a.csv").write_text("id,ssn\n")
    assert kmsdata.encrypt_parquet(tmp_path / "a.csv", tmp_path / "b.parquet", "ssn", key=KEY).rows == 0
    assert kmsdata.decrypt_table(pq.read_table(tmp_path / "b.parquet")).schema.types == [pa.string()] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,b\n1,2,3\n", "same name"),
        ("", "empty"),
        ("a,b\n1,2\n3\n", "as many fields"),
        ("a,b\n1,\xff\n", "UTF-8"),
    ],
)
def test_csv_that_is_none(tmp_path, text, message):
    (tmp_path / "a.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(kmsdata.FormatError, match=message):
        kmsdata.encrypt_parquet(
            tmp_path / "a.csv", tmp_path / "b.parquet", "a", key=KEY, types={"b": "string"}
        )


# --- refused --------------------------------------------------------------------------------------


def refused(tmp_path, error, match, source, *arguments, **options):
    """Check that the call is refused, that no key was made for it, and that nothing was written."""
    before, calls = snapshot(tmp_path), kmsdata.usage().calls
    options = {"key": KEY, **options}
    with pytest.raises(error, match=match):
        kmsdata.encrypt_parquet(source, tmp_path / "target", *arguments, **options)
    assert snapshot(tmp_path) == before
    assert kmsdata.usage().calls == calls


def test_columns_whose_values_stand_elsewhere(tmp_path):
    refused(
        tmp_path,
        ValueError,
        "values would stay unencrypted in the paths",
        dataset(tmp_path / "in"),
        ["year", "ssn"],
    )
    one = tmp_path / "in" / "year=2020" / "part-0.parquet"
    refused(tmp_path, ValueError, "values would stay unencrypted in the paths", one, "year")
    people(20).to_pandas().set_index("ssn").to_parquet(tmp_path / "index.parquet")
    refused(tmp_path, ValueError, "is the pandas index", tmp_path / "index.parquet", "ssn")
    frame = people(20).select(["id", "ssn"]).to_pandas()
    frame.attrs = {"examples": ["078-05-00003"]}
    frame.to_parquet(tmp_path / "attrs.parquet")
    with pytest.raises(ValueError, match=r"metadata contains values of column 'ssn', unencrypted"):
        kmsdata.encrypt_parquet(tmp_path / "attrs.parquet", tmp_path / "target", "ssn", key=KEY)
    assert not (tmp_path / "target").exists()


def test_names(tmp_path):
    source = write(people(20), tmp_path / "a.parquet")
    refused(tmp_path, KeyError, "did you mean 'ssn'", source, "sn")
    refused(tmp_path, KeyError, "nested.n", source, "nested.n")
    refused(tmp_path, ValueError, "no column to encrypt", source)
    refused(tmp_path, ValueError, "no key", source, "ssn", key=None)
    refused(tmp_path, FileNotFoundError, "no-such", tmp_path / "no-such.parquet", "ssn")
    refused(tmp_path, FileNotFoundError, r"\*", f"{tmp_path}/*.csv", "ssn")


def test_what_is_encrypted_already(tmp_path):
    source, sealed = write(people(20), tmp_path / "a.parquet"), tmp_path / "b.parquet"
    kmsdata.encrypt_parquet(source, sealed, "ssn", key=KEY)
    refused(tmp_path, ValueError, "'ssn' is encrypted already", sealed, ["ssn", "email"])
    with pytest.raises(kmsdata.FormatError, match="has no kmsdata header"):
        kmsdata.decrypt_parquet(source, tmp_path / "target")
    with pytest.raises(kmsdata.FormatError, match="column 'email' is not encrypted"):
        kmsdata.decrypt_parquet(sealed, tmp_path / "target", ["ssn", "email"])
    with pytest.raises(KeyError, match="no column 'x'"):
        kmsdata.decrypt_parquet(sealed, tmp_path / "target", "x")
    assert not (tmp_path / "target").exists()


def test_types_that_parquet_does_not_have(tmp_path):
    table = pa.table({"span": pa.array([(1, 2, 3)], pa.month_day_nano_interval())})
    write(kmsdata.encrypt_table(table, "span", key=KEY), tmp_path / "a.parquet")
    with pytest.raises(kmsdata.UnsupportedTypeError, match="which Parquet does not support") as caught:
        kmsdata.decrypt_parquet(tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert caught.value.column == "span"
    assert not (tmp_path / "b.parquet").exists()


@pytest.mark.parametrize("column", ["ssn", "id"])
def test_mixed_schemas(tmp_path, column):
    folder = dataset(tmp_path / "in")
    table = people(20)
    other = pa.array(list(range(20)), pa.int16())
    write(table.set_column(table.column_names.index(column), column, other), folder / "zzz.parquet")
    match = rf"part-0.parquet and .*zzz.parquet differ: column '{column}' is \w+ in the first and int16"
    refused(tmp_path, kmsdata.FormatError, match, folder, "ssn")


def test_a_file_without_the_column(tmp_path):
    folder = dataset(tmp_path / "in")
    write(people(20).drop_columns(["ssn"]), folder / "zzz.parquet")
    refused(
        tmp_path, kmsdata.FormatError, r"part-0.* and .*zzz.* the second has no column 'ssn'", folder, "ssn"
    )


def test_targets(tmp_path):
    source = write(people(20), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="is or contains the source"):
        kmsdata.encrypt_parquet(source, source, "ssn", key=KEY, overwrite=True)
    (tmp_path / "link.parquet").symlink_to(source)
    with pytest.raises(ValueError, match="is or contains the source"):
        kmsdata.encrypt_parquet(source, tmp_path / "link.parquet", "ssn", key=KEY, overwrite=True)
    folder = dataset(tmp_path / "in")
    for target in (folder, folder / "out", tmp_path):
        with pytest.raises(ValueError, match="the source"):
            kmsdata.encrypt_parquet(folder, target, "ssn", key=KEY, overwrite=True)
    other = write(people(5), tmp_path / "other.parquet")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        kmsdata.encrypt_parquet(source, other, "ssn", key=KEY)
    assert pq.read_metadata(other).num_rows == 5
    kmsdata.encrypt_parquet(source, other, "ssn", key=KEY, overwrite=True)
    assert kmsdata.inspect(other).rows == 20


def test_folders_that_are_there(tmp_path):
    folder = dataset(tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()
    kmsdata.encrypt_parquet(folder, out, "ssn", key=KEY)  # an empty folder is accepted
    first = snapshot(out)
    assert len(first) == 4
    with pytest.raises(FileExistsError, match="overwrite=True replaces"):
        kmsdata.encrypt_parquet(folder, out, "ssn", key=KEY)
    assert snapshot(out) == first
    kmsdata.encrypt_parquet(folder, out, "ssn", key=KEY, overwrite=True)
    assert snapshot(out).keys() == first.keys()
    assert all(snapshot(out)[name] != first[name] for name in first)
    write(people(5), out / "more.parquet")
    with pytest.raises(FileExistsError, match=r"such as more\.parquet"):
        kmsdata.encrypt_parquet(folder, out, "ssn", key=KEY, overwrite=True)


def test_dry_runs(tmp_path):
    source = dataset(tmp_path / "in", rows=2000)
    calls = kmsdata.usage().calls
    planned = kmsdata.encrypt_parquet(source, tmp_path / "out", **SECRETS, dry_run=True)
    assert kmsdata.usage().calls == calls
    assert not (tmp_path / "out").exists()
    done = kmsdata.encrypt_parquet(source, tmp_path / "out", **SECRETS)
    assert planned.dry_run
    assert (planned.rows, planned.files, planned.columns, planned.kms_calls) == (
        done.rows,
        done.files,
        done.columns,
        done.kms_calls,
    )
    assert (
        done.bytes < planned.bytes < 1.6 * done.bytes
    )  # cells of deterministic columns repeat, which the estimate does not take into account
    planned = kmsdata.decrypt_parquet(tmp_path / "out", tmp_path / "back", dry_run=True)
    assert kmsdata.usage().calls == calls + 1
    assert not (tmp_path / "back").exists()
    done = kmsdata.decrypt_parquet(tmp_path / "out", tmp_path / "back")
    assert (planned.rows, planned.files, planned.kms_calls) == (done.rows, done.files, done.kms_calls)
    assert "would write about 8,000 rows in 4 files" in str(planned)
    assert json.loads(done.json())["bytes"] == done.bytes


# --- plans ----------------------------------------------------------------------------------------


def plan_of(source, target, columns=None, deterministic=(), *, key=KEY, decrypting=False, types=None):
    """Return the plan of a call with these arguments."""
    places = {"filesystem": None, "target_filesystem": None, "overwrite": False}
    if decrypting:
        return plan_decryption(source, target, columns, **places)
    return plan_encryption(
        source, target, columns, deterministic, None, key=key, types=types, csv=CsvFormat(), **places
    )


def parts_of(thing):
    """Return everything that a plan contains."""
    yield thing
    if dataclasses.is_dataclass(thing):
        thing = [getattr(thing, field.name) for field in dataclasses.fields(thing)]
    elif isinstance(thing, Mapping):
        thing = [*thing.keys(), *thing.values()]
    if isinstance(thing, (list, tuple)):
        for part in thing:
            yield from parts_of(part)


def test_a_plan_can_be_printed_and_holds_no_value_and_no_key(tmp_path):
    folder = dataset(tmp_path / "in", files=12)
    write(people(50).replace_schema_metadata({"example": "078-05-00003"}), folder / "zzz.parquet")
    data_key = kmsdata.new_data_key(KEY)
    plan = plan_of(folder, tmp_path / "out", ["ssn", "city"], "email", key=data_key)
    kmsdata.encrypt_parquet(folder / "year=2020", tmp_path / "sealed", **SECRETS)
    undone = plan_of(tmp_path / "sealed", tmp_path / "back", decrypting=True)
    for each in (plan, undone):
        assert repr(each) == str(each)
        assert str(tmp_path / ("out" if each is plan else "back")) in str(each)
        assert "part-0.parquet" in str(each)
        for text in ("078-05", "@example", "city-", *(wrap.wrapped for wrap in data_key.wraps)):
            assert text not in str(each)
        assert not any(isinstance(part, (Secret, pa.Array, pa.ChunkedArray)) for part in parts_of(each))
        with pytest.raises(dataclasses.FrozenInstanceError):
            each.single = True
    assert "650 rows in 13 files; 1,950 cells; at most 0 KMS calls; " in str(plan)
    assert "columns 'ssn', 'city', 'email'\n" in str(plan)
    assert "-> year=2020/part-0.parquet: 50 rows\n" in str(plan)
    assert str(plan).endswith("3 more files>")
    assert "300 rows in 6 files; 900 cells; at most 1 KMS call; " in str(undone)


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_dry_run_progress_and_calls_are_those_of_the_plan(tmp_path, monkeypatch, kind):
    source = dataset(tmp_path / "in")
    if kind == "csv":
        source = tmp_path / "people.csv"
        source.write_text("ssn,email\n" + "".join(f"0{n:05d},person{n:05d}\n" for n in range(900)))
    totals, cells = [], []
    for module in (encrypt, decrypt):
        progress = module.Progress
        monkeypatch.setattr(
            module, "Progress", lambda *given, p=progress: (totals.append(given[1]), p(*given))[1]
        )
    new_key = encrypt.data_key_for
    monkeypatch.setattr(encrypt, "data_key_for", lambda *given: (cells.append(given[2]), new_key(*given))[1])
    for number, key in enumerate((KEY, [KEY, "local://other"], kmsdata.new_data_key(KEY))):
        out, back = tmp_path / f"out-{number}", tmp_path / f"back-{number}"
        plan = plan_of(source, out, "ssn", "email", key=key)
        arguments = {"columns": "ssn", "deterministic": "email", "key": key}
        dry = kmsdata.encrypt_parquet(source, out, **arguments, dry_run=True)
        done = kmsdata.encrypt_parquet(source, out, **arguments)
        undoing = plan_of(out, back, decrypting=True)
        dry_back = kmsdata.decrypt_parquet(out, back, dry_run=True)
        undone = kmsdata.decrypt_parquet(out, back)
        assert plan.kms_calls == dry.kms_calls == done.kms_calls == [1, 2, 0][number]
        assert undoing.kms_calls == dry_back.kms_calls == undone.kms_calls == 1
        assert (plan.rows, plan.columns, len(plan.files)) == (dry.rows, dry.columns, dry.files)
        assert (undoing.rows, undoing.columns, len(undoing.files)) == (undone.rows, done.columns, done.files)
        assert totals == [plan.rows, undone.rows]
        assert cells == [plan.cells] == [2 * plan.rows]
        # For CSV it is an estimate from the first block.
        assert done.rows / 2 < plan.rows < done.rows * 2 if kind == "csv" else plan.rows == done.rows
        totals.clear(), cells.clear()


@pytest.mark.parametrize("verb", ["encrypt", "decrypt"])
def test_a_source_that_changes_after_the_plan(tmp_path, monkeypatch, verb):
    """The changed file may have other columns, categories and headers, which are not read again."""
    folder = dataset(tmp_path / "in")
    if verb == "decrypt":
        kmsdata.encrypt_parquet(folder, tmp_path / "sealed", **SECRETS)
        folder = tmp_path / "sealed"
    victim = folder / "year=2021" / "part-1.parquet"
    module = encrypt if verb == "encrypt" else decrypt
    original = getattr(module, f"column_{verb}ors")

    def meddle(*arguments):
        victim.write_bytes(victim.read_bytes())
        os.utime(victim, ns=(1, 1))
        return original(*arguments)

    monkeypatch.setattr(module, f"column_{verb}ors", meddle)
    arguments = {"key": KEY, "columns": "ssn"}
    with pytest.raises(OSError, match="changed while it was read") as caught:
        getattr(kmsdata, f"{verb}_parquet")(folder, tmp_path / "out", **arguments)
    assert caught.value.filename == str(victim)
    assert not (tmp_path / "out").exists()


# --- tampering ------------------------------------------------------------------------------------


def test_a_cell_that_was_changed_fails_all(tmp_path):
    source, sealed = write(people(), tmp_path / "a.parquet", row_group_size=700), tmp_path / "b.parquet"
    kmsdata.encrypt_parquet(source, sealed, **SECRETS)
    without_checksums(sealed, 700)
    data = bytearray(sealed.read_bytes())
    cell = bytes(pq.read_table(sealed)["ssn"].combine_chunks().storage[2346].as_py())
    place = data.index(cell)
    data[place + len(cell) - 1] ^= 1
    sealed.write_bytes(data)
    before = snapshot(tmp_path)
    with pytest.raises(
        kmsdata.TamperedError, match=r"b.parquet: column 'ssn': 1 cell \(row 2346\)"
    ) as caught:
        kmsdata.decrypt_parquet(sealed, tmp_path / "back.parquet")
    assert (caught.value.rows, caught.value.count, caught.value.column) == ((2346,), 1, "ssn")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("part", [1 << 20, 30_000, 1000])
def test_an_error_keeps_no_plaintext(tmp_path, monkeypatch, part):
    in_parts_of(part, 4000, monkeypatch)
    source, sealed = write(people(), tmp_path / "a.parquet", row_group_size=1500), tmp_path / "b.parquet"
    kmsdata.encrypt_parquet(source, sealed, ["ssn", "email"], key=KEY)
    without_checksums(sealed, 1500)
    data = bytearray(sealed.read_bytes())
    place = data.index(bytes(pq.read_table(sealed)["email"].combine_chunks().storage[2900].as_py()))
    data[place + 20] ^= 1
    sealed.write_bytes(data)
    with pytest.raises(kmsdata.TamperedError) as caught:
        kmsdata.decrypt_parquet(sealed, tmp_path / "back.parquet")
    seen, trace = [], caught.value.__traceback__
    while trace is not None:
        if "/kmsdata/" in trace.tb_frame.f_code.co_filename:
            seen += [
                text
                for text in map(told, trace.tb_frame.f_locals.values())
                if "078-05-" in text or "@example" in text
            ]
        trace = trace.tb_next
    assert seen == []


@pytest.mark.parametrize("part", [1 << 20, 30_000, 1000])
@pytest.mark.parametrize("failing", [2, 5, 9])
def test_a_full_disk_keeps_no_plaintext(tmp_path, monkeypatch, part, failing):
    """The frames of the error, and everything that they refer to, hold no page and no value."""
    in_parts_of(part, 4000, monkeypatch)
    source, sealed = write(people(), tmp_path / "a.parquet", row_group_size=1500), tmp_path / "b.parquet"
    kmsdata.encrypt_parquet(source, sealed, ["ssn", "email"], key=KEY)
    monkeypatch.setattr(chunks._Output, "write", full_after(failing, chunks._Output.write))
    with pytest.raises(OSError, match="No space left") as caught:
        kmsdata.decrypt_parquet(sealed, tmp_path / "back.parquet")
    monkeypatch.undo()
    assert reachable_plaintext(caught.value) == []


def full_after(count, original):
    """Return a version of a method that fails after it was called a number of times with decrypted pages."""
    left = [count]

    def write(self, data):
        if b"078-05-" in bytes(data) or b"@example" in bytes(data):
            left[0] -= 1
            if left[0] < 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, data)

    return write


def reachable_plaintext(error):
    """Return what holds plaintext among everything that the frames of an error refer to."""
    waiting, seen, found = [], set(), []
    errors = [error]
    while errors:
        one = errors.pop()
        errors += [other for other in (one.__cause__, one.__context__) if other is not None]
        trace = one.__traceback__
        while trace is not None:
            if "/kmsdata/" in trace.tb_frame.f_code.co_filename:
                waiting += trace.tb_frame.f_locals.values()
            trace = trace.tb_next
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, (type, type(os), type(told))):
            continue
        seen.add(id(thing))
        if isinstance(thing, (pa.Array, pa.ChunkedArray, pa.RecordBatch, pa.Table)):
            raw = str(thing.to_pylist()).encode()
        elif isinstance(thing, (bytes, bytearray, memoryview, pa.Buffer)):
            raw = bytes(thing)
        else:
            raw = thing.encode("utf-8", "replace") if isinstance(thing, str) else b""
            waiting += gc.get_referents(thing)
        if b"078-05-" in raw or b"@example" in raw:
            found.append((type(thing), raw[:80]))
    return found


def told(thing):
    """Return the full contents of an object of a stack frame, arrays included."""
    if isinstance(thing, (pa.Array, pa.ChunkedArray)):
        return str(thing.to_pylist())
    if isinstance(thing, dict):
        return "".join(map(told, thing.values()))
    if isinstance(thing, (list, tuple)):
        return "".join(map(told, thing))
    if isinstance(thing, functools.partial):
        return told(thing.args)
    return str(thing)


@pytest.mark.parametrize("part", [None, 3000])
def test_all_of_a_row_group_is_opened_before_any_of_it_is_written(tmp_path, monkeypatch, part):
    if part:
        in_parts_of(part, 2000, monkeypatch)
    source, sealed = write(people(), tmp_path / "a.parquet", row_group_size=1500), tmp_path / "b.parquet"
    kmsdata.encrypt_parquet(source, sealed, ["id", "ssn"], key=KEY)  # id comes first in the file
    without_checksums(sealed, 1500)
    data = bytearray(sealed.read_bytes())
    place = data.index(bytes(pq.read_table(sealed)["ssn"].combine_chunks().storage[2999].as_py()))
    data[place + 20] ^= 1
    sealed.write_bytes(data)
    written = []
    original = chunks._Output.write
    monkeypatch.setattr(
        chunks._Output, "write", lambda out, data: (written.append(bytes(data)), original(out, data))
    )
    with pytest.raises(kmsdata.TamperedError):
        kmsdata.decrypt_parquet(sealed, tmp_path / "back.parquet")
    size = pq.read_metadata(source).row_group(0).total_byte_size
    assert 0 < sum(map(len, written)) < size * 1.5 + 1000  # the first row group and no more


# --- faults ---------------------------------------------------------------------------------------


def child(code, tmp_path, **options):
    """Run code in a separate process with the same keystore."""
    lines = ["import kmsdata, resource, sys, os, signal", textwrap.dedent(code)]
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize("verb", ["encrypt", "decrypt"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_disk_full(tmp_path, verb, kind):
    """Limit files to 20 kB: writing more fails with an OSError, as on a full disk."""
    source = write(people(), tmp_path / "in" / "a.parquet")
    write(people(2), tmp_path / "in" / "A.parquet")
    kmsdata.LocalKeystore().create_key("demo", quiet=True)
    if verb == "decrypt":
        kmsdata.encrypt_parquet(tmp_path / "in", tmp_path / "sealed", **SECRETS)
        source = tmp_path / "sealed" / "a.parquet"
    start = source if kind == "file" else source.parent
    before = snapshot(tmp_path)
    arguments = "['ssn'], key='local://demo'" if verb == "encrypt" else ""
    done = child(
        f"""
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            kmsdata.{verb}_parquet({str(start)!r}, 'target', {arguments})
        except OSError as error:
            print(error.errno, error.filename)
        """,
        tmp_path,
    )
    out, err = done.communicate(timeout=60)
    full = tmp_path / "target" if kind == "file" else tmp_path / "target" / "a.parquet"
    assert out.split() == [str(errno.EFBIG), str(full)], err
    after = snapshot(tmp_path)
    assert {name for name in after if not name.startswith("keystore")} == {
        name for name in before if not name.startswith("keystore")
    }
    assert not (tmp_path / "target").exists()
    assert not any(".kmsdata" in path.name for path in tmp_path.rglob("*"))


def test_a_folder_that_another_process_made_meanwhile_is_named(tmp_path):
    target = tmp_path / "out"

    def write_meanwhile():
        with places.whole_folder(places.Place.of(target)) as opened:
            with opened("a.parquet") as sink:
                sink.write(b"mine")
            target.mkdir()
            (target / "a.parquet").write_bytes(b"theirs")

    with pytest.raises(OSError) as caught:
        write_meanwhile()
    assert caught.value.filename == str(target)
    assert snapshot(tmp_path) == {"out/a.parquet": b"theirs"}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_small_tmpfs_that_is_full(tmp_path, kind):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk],  # noqa: S607
        capture_output=True,
        check=False,
    )
    if mounted.returncode:  # not root, or not allowed to mount: the limit above tests the same
        return
    try:
        folder = dataset(tmp_path / "in", rows=2000)
        source = folder if kind == "folder" else folder / "year=2020" / "part-0.parquet"
        target = disk / "out" if kind == "folder" else disk / "out.parquet"
        with pytest.raises(OSError) as caught:
            kmsdata.encrypt_parquet(source, target, **SECRETS)
        assert caught.value.errno == errno.ENOSPC
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)  # noqa: S607


def test_permission_denied(tmp_path):
    source = dataset(tmp_path / "in")
    locked = tmp_path / "locked"
    locked.mkdir()
    before = snapshot(tmp_path)
    kmsdata.LocalKeystore().create_key("demo", quiet=True)
    done = child(
        f"""
        if os.geteuid() == 0:
            import pathlib
            for path in pathlib.Path({str(tmp_path)!r}).rglob("*"):
                os.chown(path, 65534, 65534)
            for path in [pathlib.Path({str(tmp_path)!r}), *pathlib.Path({str(tmp_path)!r}).parents][:-2]:
                path.chmod(0o755)
            os.chown({str(tmp_path)!r}, 65534, 65534)
            os.setuid(65534)
        os.chmod({str(locked)!r}, 0o500)
        for target in ("out", "out.parquet"):
            start = {str(source)!r} + ("" if target == "out" else "/year=2020/part-0.parquet")
            try:
                kmsdata.encrypt_parquet(start, "locked/" + target, "ssn", key="local://demo")
            except PermissionError as error:
                print(error.filename)
        """,
        tmp_path,
    )
    out, err = done.communicate(timeout=60)
    assert out.split() == [str(locked / "out"), str(locked / "out.parquet")], err
    assert {k: v for k, v in snapshot(tmp_path).items() if "keystore" not in k} == before


@pytest.mark.parametrize(
    ("how", "kind"), [(signal.SIGKILL, "file"), (signal.SIGKILL, "folder"), (signal.SIGINT, "folder")]
)
def test_killed_at_any_point(tmp_path, how, kind):
    """What a killed process leaves is hidden: readers ignore it, and the next run succeeds."""
    folder = dataset(tmp_path / "in", files=3, rows=300)
    source = folder if kind == "folder" else folder / "year=2020" / "part-0.parquet"
    name = "out" if kind == "folder" else "out.parquet"
    before = snapshot(folder)
    kmsdata.new_data_key(KEY)
    code = f"""
        import time
        from kmsdata.parquet import column_chunks as chunks
        original = chunks._Output.write
        count = 0
        def slow(out, data):
            global count
            count += 1
            if count == int(sys.argv[1]):
                print("now", flush=True)
                time.sleep(60)
            original(out, data)
        chunks._Output.write = slow
        kmsdata.encrypt_parquet({str(source)!r}, {name!r}, ['ssn', 'email'], key='local://demo')
        """
    for point in (1, 30):
        process = subprocess.Popen(
            [sys.executable, "-c", "import kmsdata, sys\n" + textwrap.dedent(code), str(point)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                assert process.stdout.readline() == "now\n"
                process.send_signal(how)
                _, err = process.communicate(timeout=60)
            finally:
                process.kill()  # after a failed assertion it may still run, and the block would wait for it
        assert process.returncode == (-how if how == signal.SIGKILL else process.returncode), err
        assert process.returncode != 0
        left = [path for path in tmp_path.rglob("*") if ".kmsdata" in path.name]
        assert not (tmp_path / name).exists()
        assert bool(left) == (how == signal.SIGKILL)
        assert all(path.name.startswith(".kmsdata-") for path in left)
        assert snapshot(folder) == before
    kmsdata.encrypt_parquet(source, tmp_path / name, "ssn", key=KEY)
    assert kmsdata.inspect(tmp_path / name).encrypted == ["ssn"]
    assert not any(
        ".kmsdata" in path.name for path in tmp_path.rglob("*")
    )  # files that the killed processes left are removed


def test_a_source_that_changes_meanwhile(tmp_path, monkeypatch):
    folder = dataset(tmp_path / "in")
    victim = folder / "year=2021" / "part-1.parquet"
    original = encrypt.rewrite

    def meddle(file, path, *rest):
        size = original(file, path, *rest)
        if path == str(victim):
            data = victim.read_bytes()
            os.utime(victim, ns=(1, 1))
            victim.write_bytes(data)
        return size

    monkeypatch.setattr(encrypt, "rewrite", meddle)
    for source in (folder, victim):
        with pytest.raises(OSError, match="changed while it was read") as caught:
            kmsdata.encrypt_parquet(source, tmp_path / "out", "ssn", key=KEY)
        assert caught.value.filename == str(victim)
        assert not (tmp_path / "out").exists()
        assert not any(".kmsdata" in path.name for path in tmp_path.rglob("*"))


def test_truncated_and_damaged_files(tmp_path):
    good = write(people(300), tmp_path / "good.parquet", **RICH | {"row_group_size": 200}).read_bytes()
    bad = tmp_path / "bad.parquet"
    sealed = tmp_path / "sealed.parquet"
    random = np.random.default_rng(1)
    cuts = [0, 3, 8, 100, len(good) // 2, len(good) - 1]
    cases = [good[:cut] for cut in cuts]
    footer = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    for _ in range(120):
        data = bytearray(good)
        data[random.integers(footer, len(good))] ^= 1 << random.integers(8)
        cases.append(bytes(data))
    for _ in range(30):
        data = bytearray(good)
        data[random.integers(4, footer)] ^= 1 << random.integers(8)
        cases.append(bytes(data))
    failed = 0
    for number, data in enumerate(cases):
        bad.write_bytes(data)
        sealed.unlink(missing_ok=True)
        try:
            kmsdata.encrypt_parquet(bad, sealed, **SECRETS)
        except (kmsdata.KmsDataError, ValueError, KeyError):
            failed += 1
            assert not sealed.exists()
        else:
            assert number >= len(cuts)
            pq.ParquetFile(sealed)
    assert failed > 40
    assert not any(".kmsdata" in path.name for path in tmp_path.rglob("*"))


def test_modular_encryption_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PARE" + bytes(100) + (50).to_bytes(4, "little") + b"PARE")
    refused(tmp_path, kmsdata.FormatError, "Parquet Modular Encryption", tmp_path / "a.parquet", "ssn")
    data = write(people(5), tmp_path / "a.parquet").read_bytes()
    size = int.from_bytes(data[-8:-4], "little")
    signed = data[:-8] + bytes(28) + (size + 28).to_bytes(4, "little") + b"PAR1"
    (tmp_path / "a.parquet").write_bytes(signed)
    refused(
        tmp_path, kmsdata.FormatError, "signed by Parquet Modular Encryption", tmp_path / "a.parquet", "ssn"
    )


def failing(store):
    """A filesystem whose n-th call fails, and optionally every later one."""
    base = fsspec.filesystem("memory")
    made = {"count": 0, "fail": None, "stay": False}

    def step():
        made["count"] += 1
        if made["fail"] is not None and (
            made["count"] == made["fail"] or (made["stay"] and made["count"] > made["fail"])
        ):
            raise OSError(errno.EIO, "the storage failed")

    class File:
        def __init__(self, inner):
            self._inner = inner

        def read(self, *arguments):
            step()
            return self._inner.read(*arguments)

        def write(self, data):
            step()
            return self._inner.write(data)

        def __getattr__(self, name):
            return getattr(self._inner, name)

    class Failing(type(base)):
        cachable = False
        protocol = "memory"

        def _open(self, *arguments, **options):
            step()
            return File(super()._open(*arguments, **options))

        def info(self, *arguments, **options):
            step()
            return super().info(*arguments, **options)

        def mv(self, *arguments, **options):
            step()
            return super().mv(*arguments, **options)

        def cp_file(self, *arguments, **options):
            step()
            return super().cp_file(*arguments, **options)

    return Failing(), made


@pytest.mark.parametrize("stay", [False, True])
@pytest.mark.parametrize("verb", ["encrypt", "decrypt"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_filesystem_that_fails_at_call_n(memory, verb, kind, stay):
    filesystem, state = failing(memory)
    for number in range(2):
        with memory.open(f"/in/{number}.parquet", "wb") as file:
            pq.write_table(people(40), file, row_group_size=25)
    if verb == "decrypt":
        kmsdata.encrypt_parquet("memory://in", "memory://sealed", "ssn", key=KEY)
        memory.rm("/in", recursive=True)
        memory.mv("/sealed", "/in", recursive=True)
    before = {name: bytes(file.getvalue()) for name, file in memory.store.items()}
    source, target = ("/in", "/out") if kind == "folder" else ("/in/0.parquet", "/out.parquet")

    def run():
        if verb == "encrypt":
            return kmsdata.encrypt_parquet(source, target, "ssn", key=KEY, filesystem=filesystem)
        return kmsdata.decrypt_parquet(source, target, filesystem=filesystem)

    wanted = {"/out/0.parquet", "/out/1.parquet"} if kind == "folder" else {"/out.parquet"}
    n = failed = 0
    while n == 0 or state["count"] >= n:
        n += 1
        state |= {"count": 0, "fail": n, "stay": stay}
        try:
            run()
        except (OSError, kmsdata.FormatError):
            failed += 1
            state["fail"] = None
            now = {name: bytes(file.getvalue()) for name, file in memory.store.items()}
            if stay:  # the cleanup failed too
                now = {name: data for name, data in now.items() if "/.kmsdata-" not in name}
                assert kind == "folder" or now == before, n
                now = {name: data for name, data in now.items() if name not in wanted}
            assert now == before, n
        else:  # fsspec itself treats some failures as a result
            assert set(memory.store) - set(before) == wanted
        for name in set(memory.store) - set(before):
            del memory.store[name]
        memory.pseudo_dirs[:] = [""]
    assert failed > 20


def test_keyboard_interrupt_leaves_nothing(tmp_path, monkeypatch, memory):
    folder = dataset(tmp_path / "in")
    original = column_encryptor.seal
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) % 5 == 0:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(column_encryptor, "seal", interrupted)
    for target in (str(tmp_path / "out"), "memory://out"):
        with pytest.raises(KeyboardInterrupt):
            kmsdata.encrypt_parquet(folder, target, "ssn", key=KEY)
    assert not (tmp_path / "out").exists()
    assert not any(".kmsdata" in path.name for path in tmp_path.rglob("*"))
    assert memory.store == {}


def test_reports_hold_no_secret(tmp_path):
    source = write(people(30), tmp_path / "a.parquet")
    done = kmsdata.encrypt_parquet(source, tmp_path / "b.parquet", **SECRETS)
    assert re.search(r"(?s)wrote 30 rows, .*\n\ncolumns +ssn, salary, email\nKMS calls +1", str(done))
    assert "078-05" not in repr(done) + str(done) + done.json()


def test_an_entry_that_stands_in_the_footer_alone(tmp_path):
    """Write an entry as other software does: the file's Arrow schema, if there is one, does not show it."""
    df = pd.DataFrame({"name": ["Ada", None, "Bo"], "age": [36, 41, 29], "city": ["Ulm", "Ulm", "Bonn"]})
    enc = df.kms.encrypt("name", deterministic="age", key="local://demo")
    enc.kms.to_parquet(tmp_path / "own.parquet")
    entry = pq.read_metadata(tmp_path / "own.parquet").metadata[b"kmsdata"]
    plain = pa.table(
        {
            name: pa.array([None if pd.isna(v) else bytes(v) for v in enc[name]], pa.binary())
            for name in ("name", "age")
        }
        | {"city": df["city"].tolist()}
    )
    path = tmp_path / "other.parquet"
    with pq.ParquetWriter(path, plain.schema) as writer:
        writer.write_table(plain)
        writer.add_key_value_metadata({"kmsdata": entry.decode()})
    assert kmsdata.inspect(path).encrypted == ["name", "age"]
    assert kmsdata.verify(path, encrypted=["name", "age"]).ok
    back = kmsdata.read_parquet(path, decrypt=True)
    assert back["age"].tolist() == [36, 41, 29]
    found = kmsdata.read_parquet(path, filters=[("age", "==", 41)], decrypt=True)
    assert found["city"].tolist() == ["Ulm"]
    kmsdata.encrypt_parquet(path, tmp_path / "more.parquet", "city", key="local://demo")
    kmsdata.decrypt_parquet(tmp_path / "more.parquet", tmp_path / "all.parquet")
    assert pd.read_parquet(tmp_path / "all.parquet")["name"].tolist()[0] == "Ada"
    kmsdata.decrypt_parquet(path, tmp_path / "one.parquet", "age")
    assert kmsdata.read_parquet(tmp_path / "one.parquet", decrypt=True)["name"][0] == "Ada"
