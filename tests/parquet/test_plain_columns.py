"""Plain columns look the same to every reader, and decrypted ones get their Parquet schema back."""

import datetime as dt
import decimal
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kmsdata
from kmsdata.parquet.bulk.original import types
from kmsdata.parquet.bulk.original.entry import ORIGINAL
from kmsdata.parquet.column_chunks import MAGIC
from kmsdata.parquet.footer import ending
from kmsdata.parquet.thrift import BINARY, BOOL, I32, I64, LIST, STRUCT, encode, value
from tests.parquet.footers import differences, entries, footer

KEY = "local://demo"
SQL = """
select 'person ' || i as name, i::decimal(4,1) d4, i::decimal(9,2) d9, (-i)::decimal(18,3) d18,
  case when i % 3 > 0 then (-i)::decimal(25,3) end d25, i::decimal(38,3) d38,
  timestamp '2020-01-01' + interval (i) hour as naive, timestamptz '2020-01-01 00:00:00+00' as zoned,
  '{"a": 1}'::json as doc, uuid() as id, [i, i + 1] as list, {'a': i, 'b': 'x'} as struct,
  map {'k': i} as map, interval (i) month as span, time '01:02:03' as clock, i::utinyint as small,
  'x'::blob as raw, 'sad'::enum('sad', 'ok') as mood from range(10) t(i)
"""


def there_and_back(source, columns, tmp_path):
    """Encrypt and decrypt; return both files."""
    sealed, back = tmp_path / "sealed.parquet", tmp_path / "back.parquet"
    kmsdata.encrypt_parquet(source, sealed, columns, key=KEY, overwrite=True)
    assert kmsdata.verify(sealed).ok
    kmsdata.decrypt_parquet(sealed, back, overwrite=True)
    return sealed, back


def each_and_all(source, tmp_path):
    """Encrypt each column, then all of them; nothing else changes, and everything comes back."""
    names = [name for name, _ in footer(source).columns]
    for columns in [*([name] for name in names), names]:
        sealed, back = there_and_back(source, columns, tmp_path)
        assert differences(source, sealed, columns) == []
        assert differences(source, back, columns) == []
        assert pq.read_schema(back).equals(pq.read_schema(source), check_metadata=True)
        assert pq.read_table(back).equals(pq.read_table(source))


def arrow_made(path, **options):
    table = pa.table(
        {
            "text": ["a", None, "c"],
            "naive": pa.array([dt.datetime(2020, 1, n) for n in (1, 2, 3)], pa.timestamp("us")),
            "zoned": pa.array([dt.datetime(2020, 1, n) for n in (1, 2, 3)], pa.timestamp("ms", "UTC")),
            "list": pa.array([[1, None], None, []], pa.list_(pa.field("item", pa.int64()))),
            "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
            "deep": pa.array([{"x": [{"y": "z"}]}, None, {"x": None}]),
            "money": pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("-2.25")], pa.decimal128(9, 2)),
            "small": pa.array([1, 2, 3], pa.int8()),
            "n": pa.nulls(3),
        }
    ).replace_schema_metadata({"z": "last", "a": "first"})
    with pq.ParquetWriter(path, table.schema, **options) as writer:
        writer.write_table(table)
        if not options.get("store_schema", True):  # pyarrow then leaves out the metadata of the schema
            writer.add_key_value_metadata({"z": "last", "a": "first"})


@pytest.mark.parametrize(
    "options",
    [
        {"store_schema": False},
        {},
        {"store_schema": False, "use_deprecated_int96_timestamps": True},
        {"store_schema": False, "use_compliant_nested_type": False},
        {"version": "1.0", "store_schema": False},
    ],
    ids=str,
)
def test_files_of_pyarrow(tmp_path, options):
    source = tmp_path / "source.parquet"
    if "use_deprecated_int96_timestamps" in options:  # Arrow reads them without a time zone
        moments = [dt.datetime(2020, 1, 1, 1, 2, 3, 4), None]
        table = pa.table({"t": pa.array(moments, pa.timestamp("us")), "n": [1, 2]})
        table = table.append_column("in_list", pa.array([moments, None], pa.list_(pa.timestamp("us"))))
        pq.write_table(table, source, **options)
    else:
        arrow_made(source, **options)
    assert (b"ARROW:schema" in dict(entries(source))) == options.get("store_schema", True)
    each_and_all(source, tmp_path)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("year", [1500, 1677, 2263, 9999])
def test_int96_timestamps_that_arrow_would_change_are_refused(tmp_path, year, nested):
    moments = [dt.datetime(2020, 1, 1), None, dt.datetime(year, 1, 1)]
    values, kind = (moments, pa.timestamp("us")), pa.list_(pa.timestamp("us"))
    column = pa.array([{"t": moments}, None], pa.struct([("t", kind)])) if nested else pa.array(*values)
    table = pa.table({"t": column, "n": range(len(column))})
    pq.write_table(table, tmp_path / "a", use_deprecated_int96_timestamps=True, store_schema=False)
    with pytest.raises(
        kmsdata.UnsupportedTypeError, match="'t' has INT96 timestamps before 1678 or after 2261"
    ):
        kmsdata.encrypt_parquet(tmp_path / "a", tmp_path / "b", "t", key=KEY)
    assert not (tmp_path / "b").exists()
    _, back = there_and_back(tmp_path / "a", "n", tmp_path)
    assert differences(tmp_path / "a", back, ["n"]) == []


def test_decimals_as_integers_in_lists(tmp_path):
    table = pa.table({"m": pa.array([[decimal.Decimal("1.5")], None], pa.list_(pa.decimal128(9, 1)))})
    try:
        pq.write_table(table, tmp_path / "a", store_schema=False, store_decimal_as_integer=True)
    except TypeError:
        return  # this version of pyarrow cannot write such a file, and therefore not restore it
    each_and_all(tmp_path / "a", tmp_path)


def test_no_arrow_schema_is_added(tmp_path):
    source = tmp_path / "source.parquet"
    arrow_made(source, store_schema=False)
    for path in there_and_back(source, ["text", "list"], tmp_path):
        assert b"ARROW:schema" not in dict(entries(path))
        assert list(dict(entries(path)))[:2] == [b"z", b"a"]


def test_an_arrow_schema_changes_only_in_the_encrypted_columns(tmp_path):
    source = tmp_path / "source.parquet"
    fields = [
        pa.field("plain", pa.large_string(), metadata={"note": "kept"}),
        pa.field("cut", pa.dictionary(pa.int8(), pa.string()), metadata={"PARQUET:field_id": "7"}),
        pa.field("secret", pa.large_string(), metadata={"note": "kept too"}),
    ]
    table = pa.table(
        [pa.array(["a"], pa.large_string()), pa.array(["x"]).dictionary_encode().cast(fields[1].type), ["s"]],
        schema=pa.schema(fields, {"b": "1", "a": "2"}),
    )
    pq.write_table(table, source)
    sealed, back = there_and_back(source, "secret", tmp_path)
    schemas = [pq.read_schema(path) for path in (source, sealed)]
    for name in ("plain", "cut"):
        assert schemas[0].field(name).equals(schemas[1].field(name), check_metadata=True)
    assert not schemas[1].field("secret").metadata  # it may contain values, and comes back
    assert entries(back) == entries(source)


def test_extension_types_that_are_not_registered(tmp_path):
    source = tmp_path / "source.parquet"
    metadata = {"ARROW:extension:name": "geoarrow.wkb", "ARROW:extension:metadata": '{"crs": 1}', "own": "x"}
    field = pa.field("shape", pa.binary(), metadata=metadata)
    pq.write_table(pa.table([[b"a", None], [1, 2]], schema=pa.schema([field, ("n", pa.int64())])), source)
    sealed, _ = there_and_back(source, "shape", tmp_path)
    assert not pq.read_schema(sealed).field("shape").metadata
    each_and_all(source, tmp_path)


@pytest.mark.newest
def test_files_of_duckdb_and_what_every_reader_sees(tmp_path):
    import duckdb
    import polars

    source = tmp_path / "source.parquet"
    duckdb.sql(f"copy ({SQL}) to '{source}' (format parquet, row_group_size 2048)")
    each_and_all(source, tmp_path)
    # Polars cannot read intervals.
    duckdb.sql(SQL.replace("interval (i) month as span, ", "")).write_parquet(str(source))
    columns = ["name", "d25", "doc", "naive", "list"]
    sealed, back = there_and_back(source, columns, tmp_path)

    def seen(path, hidden):
        names = [name for name, _ in footer(source).columns if name not in hidden]
        frame = polars.read_parquet(path, columns=names)
        rows = duckdb.read_parquet(str(path)).select(*names)
        table, pandas = pq.read_table(path, columns=names), pd.read_parquet(path, columns=names)
        polars_seen = (frame.select(names).schema, frame.select(names).rows())
        return (
            polars_seen,
            rows.types,
            rows.fetchall(),
            table.schema.types,
            table.to_pylist(),
            pandas.dtypes.to_dict(),
        )

    assert seen(source, columns) == seen(sealed, columns)
    assert seen(source, []) == seen(back, [])
    assert polars.read_parquet_schema(sealed)["name"] == polars.Binary  # not shown as text


@pytest.mark.newest
def test_files_of_polars(tmp_path):
    import polars as pl

    source = tmp_path / "source.parquet"
    frame = pl.DataFrame(
        {
            "text": ["a", "b"],
            "kind": pl.Series(["x", "y"], dtype=pl.Categorical),
            "money": pl.Series(["1.5", "2.5"]).cast(pl.Decimal(20, 2)),
            "naive": pl.Series([1, 2]).cast(pl.Datetime("us")),
            "span": pl.Series([1, 2]).cast(pl.Duration("us")),
            "list": [[1], [2]],
            "struct": [{"a": 1}, {"a": 2}],
            "raw": [b"x", b"y"],
        }
    )
    frame.write_parquet(source)
    names = [name for name, _ in footer(source).columns]
    for column in names:
        sealed, back = there_and_back(source, column, tmp_path)
        assert differences(source, sealed, [column]) == []
        assert differences(source, back, [column]) == []
        assert pq.read_schema(back).equals(pq.read_schema(source), check_metadata=True)
        before, after = pl.read_parquet(source), pl.read_parquet(back)
        assert after.equals(before)
        assert after.schema == before.schema
        rest = [name for name in names if name != column]
        assert pl.read_parquet(sealed, columns=rest).schema == before.select(rest).schema


@pytest.mark.newest
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves files open
def test_files_of_fastparquet(tmp_path):
    import fastparquet

    source = tmp_path / "source.parquet"
    frame = pd.DataFrame(
        {"a": ["x", "y"], "b": [1, 2], "c": [1.5, np.nan], "t": pd.to_datetime(["2020-01-01", "2021-01-01"])}
    )
    frame["a"] = frame["a"].astype(object)
    fastparquet.write(str(source), frame)
    for column in frame:
        sealed, back = there_and_back(source, column, tmp_path)
        assert differences(source, sealed, [column]) == []
        assert [d for d in differences(source, back, [column]) if d != "entry b'pandas'"] == []
        documents = [json.loads(dict(entries(path))[b"pandas"]) for path in (source, back)]
        assert documents[0] == documents[1]
        rest = [name for name in frame if name != column]
        read = fastparquet.ParquetFile(str(sealed)).to_pandas(columns=rest)
        pd.testing.assert_frame_equal(read, fastparquet.ParquetFile(str(source)).to_pandas(columns=rest))


@pytest.mark.engine("pyspark")
@pytest.mark.newest
@pytest.mark.slow
def test_files_of_spark(tmp_path, spark):
    query = (
        "select id, cast(id as string) s, cast(id as decimal(9,2)) d9, cast(id as decimal(15,2)) d15,"
        " cast(id as decimal(30,2)) d30, timestamp '2020-01-01 00:00:00' t, array(id) l, map('k', id) m"
    )
    spark.sql(query + " from range(5)").coalesce(1).write.parquet(str(tmp_path / "spark"))
    (source,) = (tmp_path / "spark").glob("*.parquet")
    for column in ("s", "d9", "d15", "d30", "t", "l", "m"):
        sealed, back = there_and_back(source, column, tmp_path)
        assert differences(source, sealed, [column]) == []
        assert differences(source, back, [column]) == []


# --- the types of Parquet that Arrow does not have ------------------------------------------------


def with_logical_type(path, column, logical, converted=None):
    """Write a logical type over that of a column, as other software does."""
    found = footer(path)
    for (name, _), elements in zip(found.columns, found.elements, strict=True):
        if name == column:
            elements[0].pop(6, None)
            if logical is not None:
                elements[0][10] = STRUCT, logical
            if converted is not None:
                elements[0][6] = I32, converted
    schema = [value(found.fields, 2)[1][0], *(part for elements in found.elements for part in elements)]
    with_footer(path, {**found.fields, 2: (LIST, (STRUCT, schema))})


def with_footer(path, fields):
    body = encode(fields)
    data = path.read_bytes()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    assert data.endswith(MAGIC)
    path.write_bytes(data[:start] + ending(body))


NEW = ("geometry", "geography", "unknown")
LOGICAL = {
    "geometry": ({17: (STRUCT, {1: (BINARY, b"srid:5070")})}, None),
    "geography": ({18: (STRUCT, {1: (BINARY, b"OGC:CRS84"), 2: (I32, 4)})}, None),
    "enum": ({4: (STRUCT, {})}, 4),
    "enum of old writers": (None, 4),
    "bson": ({13: (STRUCT, {})}, 20),
    "unknown": ({2555: (STRUCT, {1: (BOOL, True)})}, None),
}


@pytest.mark.parametrize(
    "kind",
    # Older versions of pyarrow cannot open files with these types.
    [pytest.param(kind, marks=pytest.mark.newest if kind in NEW else ()) for kind in LOGICAL],
)
def test_logical_types(tmp_path, kind):
    source = tmp_path / "source.parquet"
    table = pa.table({"n": [1, 2, 3], "v": pa.array([b"\x01\x02", None, b"q"], pa.binary())})
    pq.write_table(table, source, store_schema=False)
    with_logical_type(source, "v", *LOGICAL[kind])
    for column in ("n", "v"):
        sealed, back = there_and_back(source, column, tmp_path)
        assert differences(source, sealed, [column]) == []
        assert differences(source, back, [column]) == []
        assert pq.read_table(back).equals(table)


@pytest.mark.newest
def test_types_that_pyarrow_cannot_read_are_named(tmp_path):
    import polars

    polars.DataFrame({"n": [1], "huge": polars.Series([1], dtype=polars.Int128)}).write_parquet(
        tmp_path / "a"
    )
    with pytest.raises(kmsdata.FormatError, match=r"does not support: Integers with more than 64 bits"):
        kmsdata.encrypt_parquet(tmp_path / "a", tmp_path / "b", "n", key=KEY)
    assert not (tmp_path / "b").exists()


@pytest.mark.newest
def test_variant(tmp_path):
    source = tmp_path / "source.parquet"
    kind = pa.struct([pa.field("metadata", pa.binary(), nullable=False), ("value", pa.binary())])
    table = pa.table({"v": pa.array([{"metadata": b"\x01\0\0", "value": b"\0"}] * 2, kind), "n": [1, 2]})
    pq.write_table(table, source, store_schema=False)
    with_logical_type(source, "v", {16: (STRUCT, {1: (3, 1)})})
    for column in ("n", "v"):
        sealed, back = there_and_back(source, column, tmp_path)
        assert differences(source, sealed, [column]) == []
        assert differences(source, back, [column]) == []
        assert pq.read_table(back).equals(table)


@pytest.mark.newest
def test_variant_in_a_layout_that_pyarrow_does_not_write(tmp_path, monkeypatch):
    source = tmp_path / "source.parquet"
    kind = pa.struct(
        [pa.field("metadata", pa.binary(), nullable=False), ("typed_value", pa.decimal128(38, 9))]
    )
    rows = [{"metadata": b"\x01\0\0", "typed_value": decimal.Decimal("1.5")}] * 2
    pq.write_table(pa.table({"v": pa.array(rows, kind)}), source, store_schema=False)
    with_logical_type(source, "v", {16: (STRUCT, {1: (3, 1)})})
    # As if a field of the struct had another physical type than pyarrow writes.
    monkeypatch.setattr(types, "_ways", lambda *_: [])
    _, back = there_and_back(source, "v", tmp_path)
    assert differences(source, back, ["v"]) == []
    monkeypatch.setattr(types, "_with_leaves", lambda *_: None)
    types._decrypted.cache_clear()
    with pytest.raises(kmsdata.UnsupportedTypeError, match="column 'v' is VARIANT in a layout"):
        kmsdata.encrypt_parquet(source, tmp_path / "b", "v", key=KEY)
    assert not (tmp_path / "b").exists()
    types._decrypted.cache_clear()


def test_fields_of_dremio_under_the_number_of_another(tmp_path):
    source = tmp_path / "source.parquet"
    pq.write_table(pa.table({"n": [1, 2], "v": ["a", "b"]}), source, store_schema=False)
    found = footer(source)
    value(value(found.groups[0], 1)[1][0], 3)[15] = LIST, (STRUCT, [{2: (I32, 22)}])
    with_footer(source, found.fields)
    for column in ("n", "v"):
        sealed, back = there_and_back(source, column, tmp_path)
        assert differences(source, sealed, [column]) == []
        assert differences(source, back, [column]) == []


# --- reading files without an Arrow schema --------------------------------------------------------


@pytest.fixture
def sealed(tmp_path):
    """Return an encrypted file without Arrow schema, and its plain table."""
    table = pa.table({"ssn": ["1", "2", None], "mail": ["a", "b", "a"], "n": [10, 20, 30]})
    pq.write_table(table, tmp_path / "plain.parquet", store_schema=False)
    path = tmp_path / "sealed.parquet"
    kmsdata.encrypt_parquet(tmp_path / "plain.parquet", path, ["ssn", "n"], deterministic="mail", key=KEY)
    assert b"ARROW:schema" not in dict(entries(path))
    return path, table


def test_readers_of_kmsdata(sealed, tmp_path):
    path, table = sealed
    frame = table.to_pandas()
    pd.testing.assert_frame_equal(kmsdata.read_parquet(path, decrypt=True), frame)
    found = kmsdata.read_parquet(path, filters=[("mail", "==", "a")]).kms.decrypt()
    assert found["ssn"].tolist()[0] == "1"
    assert found["n"].tolist() == [10, 30]
    assert kmsdata.verify(path).ok
    assert set(kmsdata.inspect(path).columns) == {"ssn", "mail", "n"} or "ssn" in str(kmsdata.inspect(path))
    kmsdata.use(kmsdata.LocalKeystore(create=True))
    kmsdata.rewrap(path, "local://other")
    assert kmsdata.verify(path).ok
    pd.testing.assert_frame_equal(kmsdata.read_parquet(path, decrypt=True), frame)


def test_folders_of_both_kinds(sealed, tmp_path):
    path, table = sealed
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.parquet").write_bytes(path.read_bytes())
    other = kmsdata.encrypt_table(table, ["ssn", "n"], deterministic="mail", key=kmsdata.read_parquet(path))
    pq.write_table(other, folder / "b.parquet")
    frame = kmsdata.read_parquet(folder, decrypt=True)
    assert frame["ssn"].tolist()[:2] * 2 == ["1", "2"] * 2
    assert frame["n"].tolist() == [10, 20, 30] * 2


def test_tables_that_pyarrow_reads(sealed):
    path, table = sealed
    assert kmsdata.decrypt_table(pq.read_table(path)).equals(table)
    assert kmsdata.decrypt_table(pq.read_table(path), "n")["n"].equals(table["n"])
    assert kmsdata.verify(pq.read_table(path)).ok


def test_frames_that_pandas_reads(sealed):
    path, _ = sealed
    with pytest.raises(kmsdata.FormatError, match=r"call kmsdata\.read_parquet\(\)"):
        pd.read_parquet(path).kms.decrypt()


def test_an_original_schema_is_authenticated(tmp_path):
    source = tmp_path / "source.parquet"
    pq.write_table(pa.table({"v": [b"\x01\x02", None]}), source, store_schema=False)
    with_logical_type(source, "v", *LOGICAL["bson"])
    sealed, _ = there_and_back(source, "v", tmp_path)
    text = json.loads(dict(entries(sealed))[ORIGINAL])
    data, start = sealed.read_bytes(), text["columns"]["v"]["sealed"]
    changed = start[:-6] + ("A" if start[-6] != "A" else "B") + start[-5:]
    assert data.count(start.encode()) == 1
    sealed.write_bytes(data.replace(start.encode(), changed.encode()))
    with pytest.raises(kmsdata.TamperedError, match=r"'v'.*not authentic"):
        kmsdata.decrypt_parquet(sealed, tmp_path / "back.parquet", overwrite=True)


def test_no_original_schema_where_pyarrow_writes_the_same(tmp_path):
    pq.write_table(pa.table({"v": ["a"], "n": [1]}), tmp_path / "source.parquet")
    sealed, _ = there_and_back(tmp_path / "source.parquet", ["v", "n"], tmp_path)
    assert ORIGINAL not in dict(entries(sealed))


@pytest.mark.newest
@pytest.mark.parametrize("schema_version", ["0.4.0", "1.1.0"])
def test_files_of_geopandas(tmp_path, schema_version):
    import geopandas

    source = tmp_path / "source.parquet"
    points = geopandas.GeoSeries.from_wkt(["POINT (1 2)", "POINT (3 4)"], crs="EPSG:4326")
    geopandas.GeoDataFrame({"name": ["a", "b"]}, geometry=points).to_parquet(
        source, schema_version=schema_version
    )
    sealed, back = there_and_back(source, "name", tmp_path)
    assert differences(source, sealed, ["name"]) == []
    assert differences(source, back, ["name"]) == []
    assert geopandas.read_parquet(sealed, columns=["geometry"]).geometry.equals(points)
    assert geopandas.read_parquet(back).equals(geopandas.read_parquet(source))


@pytest.mark.parametrize("created_by", [b"parquet-mr", b"parquet-mr version 1.2.8"])
def test_sizes_without_the_header_of_the_dictionary(created_by, tmp_path):
    """Old writers left it out; a copy of so few bytes would cut off the end of each plain column."""
    source, sealed, back = (tmp_path / name for name in ("a.parquet", "b.parquet", "c.parquet"))
    table = pa.table({"k": ["x", "y", "x"], "secret": ["1", "2", "1"], "t": ["ü", "v", "ü"]})
    pq.write_table(table, source, store_schema=False, compression="none", write_statistics=False)
    found = footer(source)
    found.fields[6] = BINARY, created_by
    for chunk in value(found.groups[0], 1)[1]:
        meta = value(chunk, 3)
        meta[9], meta[7] = meta.pop(11), (I64, value(meta, 7) - 15)
    data = source.read_bytes()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    source.write_bytes(data[:start] + ending(encode(found.fields)))
    kmsdata.encrypt_parquet(source, sealed, "secret", key=KEY)
    kmsdata.decrypt_parquet(sealed, back)
    assert pq.read_table(sealed, columns=["k", "t"]).equals(table.select(["k", "t"]))
    assert pq.read_table(back).equals(table)
