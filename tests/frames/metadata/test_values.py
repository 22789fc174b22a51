"""Values of columns that are encrypted are found in metadata of any form, in files and in tables."""

import base64
import datetime as dt
import decimal
import json
import time
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kmsdata
from kmsdata.frames.metadata.values import metadata_texts, refuse_statistics, refuse_values_in_metadata

KEY = "local://demo"
UTC = dt.UTC


def nested(document, times):
    for _ in range(times):
        document = json.dumps(document)
    return document


FOUND = [
    ("Ulm-12345", nested({"a": ["Ulm-12345"]}, 3)),
    ("Ulm-12345", "stats=" + nested({"a": ["Ulm-12345"]}, 2)),
    ('the "old" mill', nested({"a": ['the "old" mill']}, 3)),
    ("Müller", json.dumps({"name": "Müller"})),
    ("Müller", "name:M\\u00fcller"),
    ("Müller", "x=" + json.dumps({"name": "Müller"})),
    ("Anna Maria 12", "name=Anna Maria 12; other=1"),
    ("Anna Maria 12", "name: 'Anna Maria 12', other: 1"),
    ("a very long name that Iceberg cuts", json.dumps({"min": "a very long name"})),
    ("a very long name that Delta Lake cuts", json.dumps({"min": "a very long name that Delta Lake"})),
    (dt.date(2026, 1, 2), "min=2026-01-02"),
    (dt.date(2026, 1, 2), '{"a": "2026-01-02T00:00:00Z"}'),
    (dt.datetime(2026, 1, 2, 3, 4, 5), "min=2026-01-02T03:04:05;max=1"),
    (dt.datetime(2026, 1, 2, 3, 4, 5, 120000), '{"min": "2026-01-02 03:04:05.12"}'),
    (dt.datetime(2026, 1, 2), "since 2026-01-02"),
    (dt.datetime(2026, 1, 2, 3, 4, tzinfo=UTC), "min=2026-01-02T03:04Z"),
    (dt.datetime(2026, 1, 2, 3, 4, tzinfo=UTC), "min=2026-01-02T04:04:00.000+01:00"),
    (decimal.Decimal("1234.50"), '{"max": 1234.5}'),
    (decimal.Decimal("1234.50"), "max=1234.500"),
    (12.3456789, '{"bbox": [12.3456789, 1]}'),
    (-1234567.0, '{"max": -1.234567e6}'),
    (1234567, '{"max": 1234567}'),
    (b"\x01binary", "\x01binary"),
    (["Ulm-12345", None], "Ulm-12345"),
    ({"city": "Ulm-12345"}, "Ulm-12345"),
]


@pytest.mark.parametrize(("value", "text"), FOUND, ids=str)
def test_values_are_found(value, text):
    texts = metadata_texts([b"other", text.encode()], ["v"])
    with pytest.raises(ValueError, match=r"here contains values of column 'v', unencrypted") as error:
        refuse_values_in_metadata(pa.array([None, value]), texts, "v", "here")
    assert "Ulm" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Ulm-1234", "Ulm-12345"),
        ("Ulm", "Ulm"),  # found by chance
        (1.0, '{"version": "1.000"}'),
        (True, "true, false"),
        (dt.date(2026, 1, 2), "2026-01-03"),
        (dt.date(2026, 1, 2), "created 2026-01-02T03:04:05Z"),
        ("a very long", json.dumps({"min": "a very long name"})),
        (b"\xff\xfe", "binary"),
        (uuid.UUID(int=1).bytes, "text"),
    ],
    ids=str,
)
def test_other_values_are_not(value, text):
    refuse_values_in_metadata(pa.array([value]), metadata_texts([text.encode()], ["v"]), "v", "here")


STATISTICS = [
    {"numRecords": 1, "minValues": {"v": 1}, "maxValues": {"v": 2}},
    {"lower_bounds": {"7": "AQ=="}},
    {"lower-bounds": {"keys": [1, 7], "values": ["00", "01"]}},
    {"stats": json.dumps({"maxValues": {"v": 2}})},
    {"files": [{"min": {"v": 1}}]},
]


@pytest.mark.parametrize("document", STATISTICS, ids=str)
def test_statistics_of_table_formats_are_refused(keystore, tmp_path, document):
    text = json.dumps(document)
    with pytest.raises(ValueError, match=r"here contains statistics of column 'v'"):
        refuse_statistics([text.encode()], {"v": 7}, "here")
    refuse_statistics([text.encode()], {"w": 8}, "here")
    field = pa.field("v", pa.int64(), metadata={"PARQUET:field_id": "7"})
    schema = pa.schema([field, ("w", pa.int64())], {"own": text})
    pq.write_table(pa.table([[1, 2], [1, 2]], schema=schema), tmp_path / "a")
    with pytest.raises(ValueError, match=r"key-value metadata contains statistics of column 'v'"):
        kmsdata.encrypt_parquet(tmp_path / "a", tmp_path / "b", "v", key=KEY)
    assert not (tmp_path / "b").exists()
    kmsdata.encrypt_parquet(tmp_path / "a", tmp_path / "b", "w", key=KEY)


LARGE = {
    "words": b"abc:def " * 130_000,
    "backslashes": b"\\" * 1_000_000,
    "escapes": b"\\u0041" * 170_000,
    "quotes": b'"' * 1_000_000,
    "brackets": b"[" * 1_000_000,
    "digits": b"1" * 1_000_000,
    "nested": nested({"a": ["b"] * 3_000}, 6).encode(),
    "times": b"2026-01-02T03:04:05+01:00 " * 40_000,
    "deep": b'{"a":' * 900 + b"[" + b'"abcdef",' * 100_000 + b"1]" + b"}" * 900,
}


@pytest.mark.parametrize("kind", LARGE)
def test_the_cost_is_linear(kind):
    def cost(data):
        start = time.process_time()
        refuse_values_in_metadata(pa.array(["x" * 9]), metadata_texts([data], []), "v", "here")
        refuse_statistics([data], {"v": 1}, "here")
        return time.process_time() - start

    assert cost(LARGE[kind]) < 3  # at most 0.7 seconds; processor time, since tests run in parallel


# --- tables ---------------------------------------------------------------------------------------


def test_documents_of_other_software_lose_the_column_in_tables(keystore):
    geo = {"primary_column": "g", "columns": {"g": {"bbox": [12.3456789, 1]}, "h": {"encoding": "WKB"}}}
    spark = {"type": "struct", "fields": [{"name": "g", "type": "double", "metadata": {"x": "12.3456789"}}]}
    metadata = {
        "geo": json.dumps(geo),
        "org.apache.spark.sql.parquet.row.metadata": json.dumps(spark),
        "own": "stays",
    }
    table = pa.table({"g": [12.3456789], "h": [b""]}).replace_schema_metadata(metadata)
    sealed = kmsdata.encrypt_table(table, "g", key=KEY)
    assert b"12.3456789" not in sealed.schema.serialize().to_pybytes()
    assert json.loads(sealed.schema.metadata[b"geo"])["primary_column"] == "h"
    assert sealed.schema.metadata[b"own"] == b"stays"
    assert kmsdata.decrypt_table(sealed).equals(table)


@pytest.mark.parametrize("place", ["schema", "own field", "other field"])
def test_values_in_the_metadata_of_tables_are_refused(keystore, place):
    fields = [
        pa.field("name", pa.string(), metadata={"note": "Ulm-12345"} if place == "own field" else None),
        pa.field("n", pa.int64(), metadata={"note": "Ulm-12345"} if place == "other field" else None),
    ]
    schema = pa.schema(fields, {"note": "city=Ulm-12345"} if place == "schema" else {"x": "y"})
    table = pa.table([["Ulm-12345"], [1]], schema=schema)
    with pytest.raises(ValueError, match=r"the table's schema contains values of column 'name'"):
        kmsdata.encrypt_table(table, "name", key=KEY)
    kmsdata.encrypt_table(table, "n", key=KEY)


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    "nested",
    [
        lambda field: pa.struct([field]),
        lambda field: pa.list_(pa.struct([field])),
        lambda field: pa.list_(field),
        lambda field: pa.list_(field, 2),
        lambda field: pa.map_(pa.string(), pa.struct([field])),
        lambda field: pa.dictionary(pa.int32(), pa.struct([field])),
    ],
)
def test_values_in_the_metadata_of_fields_inside_of_other_columns_are_refused(keystore, nested, streams):
    kind = nested(pa.field("f", pa.int64(), metadata={"note": "city=Ulm-12345"}))
    schema = pa.schema([pa.field("name", pa.string()), pa.field("n", kind)])
    batch = pa.record_batch([pa.array(["Ulm-12345"]), pa.nulls(1, kind)], schema=schema)
    data = pa.RecordBatchReader.from_batches(schema, [batch]) if streams else pa.Table.from_batches([batch])
    with pytest.raises(ValueError, match=r"the table's schema contains values of column 'name'"):
        list(kmsdata.encrypt_table(data, "name", key=KEY))


def test_metadata_of_fields_inside_of_an_encrypted_column_is_encrypted_too(keystore):
    kind = pa.struct([pa.field("f", pa.string(), metadata={"note": "city=Ulm-12345"})])
    table = pa.table({"n": pa.array([{"f": "Ulm-12345"}], kind)})
    sealed = kmsdata.encrypt_table(table, "n", key=KEY)
    assert b"Ulm-12345" not in sealed.schema.serialize().to_pybytes()
    assert kmsdata.decrypt_table(sealed).to_pylist() == table.to_pylist()


def test_extension_types_that_are_not_registered_do_not_hide_the_header(keystore, tmp_path):
    metadata = {"ARROW:extension:name": "geoarrow.wkb", "ARROW:extension:metadata": "{}", "own": "x"}
    table = pa.table([[b"abc"]], schema=pa.schema([pa.field("g", pa.binary(), metadata=metadata)]))
    sealed = kmsdata.encrypt_table(table, "g", key=KEY)
    assert sealed.schema.field("g").metadata == {b"own": b"x"}
    pq.write_table(sealed, tmp_path / "a.parquet")
    assert kmsdata.decrypt_table(pq.read_table(tmp_path / "a.parquet")).equals(table)


@pytest.mark.newest
def test_frames_of_geopandas(keystore, tmp_path):
    import geopandas

    points = geopandas.GeoSeries.from_wkt(["POINT (12.3456789 2)", "POINT (3 45.6789123)"], crs="EPSG:4326")
    frame = geopandas.GeoDataFrame({"name": ["a", "b"]}, geometry=points)
    with pytest.raises(kmsdata.UnsupportedTypeError, match="'geometry' has dtype geometry"):
        frame.kms.encrypt("geometry", key=KEY)
    sealed = frame.to_wkb().kms.encrypt("geometry", key=KEY)
    sealed.kms.to_parquet(tmp_path / "a.parquet")
    assert b"12.345" not in (tmp_path / "a.parquet").read_bytes()
    assert b"geo" not in pq.read_metadata(tmp_path / "a.parquet").metadata
    back = kmsdata.read_parquet(tmp_path / "a.parquet", decrypt=True)
    assert geopandas.GeoSeries.from_wkb(back["geometry"], crs="EPSG:4326").equals(points)


# --- absence --------------------------------------------------------------------------------------

SECRETS = [f"secret-{number:04}-value" for number in range(2000)]


def absent(path):
    """Return whether no value is in a file's bytes, in its Arrow schema, or in its bloom filters."""
    data = path.read_bytes()
    arrow = base64.b64decode(pq.read_metadata(path).metadata.get(b"ARROW:schema", b""))
    return b"secret-" not in data + arrow


def sealed_without(source, tmp_path, name="s"):
    target = tmp_path / "sealed"
    assert any(b"secret-" in path.read_bytes() for path in sorted(tmp_path.rglob("*.parquet")))
    kmsdata.encrypt_parquet(source, target, name, key=KEY)
    files = [target] if target.is_file() else sorted(target.rglob("*.parquet"))
    assert files
    for path in files:
        assert absent(path)
        group = pq.read_metadata(path).row_group(0)
        chunk = next(
            group.column(n) for n in range(group.num_columns) if group.column(n).path_in_schema == name
        )
        assert chunk.statistics is None
        assert not chunk.has_column_index
        assert not chunk.has_offset_index


@pytest.mark.newest
def test_nothing_is_left_in_files_of_pyarrow(keystore, tmp_path):
    table = pa.table({"s": SECRETS, "n": range(len(SECRETS))})
    more = {"bloom_filter_options": {"s": {"ndv": 2000}}}
    options = {"write_page_index": True, "compression": "none", "write_statistics": True}
    try:
        pq.write_table(table, tmp_path / "a.parquet", **options, **more)
    except TypeError:  # pyarrow before version 24
        pq.write_table(table, tmp_path / "a.parquet", **options)
    sealed_without(tmp_path / "a.parquet", tmp_path)


@pytest.mark.newest
def test_nothing_is_left_in_files_of_duckdb(keystore, tmp_path):
    import duckdb

    query = "select printf('secret-%04d-value', i % 50) as s, i as n from range(2000) t(i)"
    # DuckDB writes bloom filters of columns with a dictionary.
    duckdb.sql(f"copy ({query}) to '{tmp_path}/a.parquet' (format parquet, compression uncompressed)")
    filters = "select bloom_filter_length from parquet_metadata(?) where path_in_schema = 's'"
    assert duckdb.execute(filters, [str(tmp_path / "a.parquet")]).fetchall()[0][0] is not None
    sealed_without(tmp_path / "a.parquet", tmp_path)
    assert duckdb.execute(filters, [str(tmp_path / "sealed")]).fetchall()[0][0] is None


@pytest.mark.newest
def test_nothing_is_left_in_files_of_polars(keystore, tmp_path):
    import polars

    frame = polars.DataFrame({"s": SECRETS, "n": range(len(SECRETS))})
    frame.write_parquet(tmp_path / "a.parquet", statistics="full", compression="uncompressed")
    sealed_without(tmp_path / "a.parquet", tmp_path)


@pytest.mark.engine("pyspark")
@pytest.mark.newest
@pytest.mark.slow
def test_nothing_is_left_in_files_of_spark(keystore, tmp_path, spark):
    frame = spark.createDataFrame([(text, n) for n, text in enumerate(SECRETS)], "s string, n int")
    writer = frame.coalesce(1).write.option("parquet.bloom.filter.enabled#s", "true")
    writer.option("compression", "none").parquet(str(tmp_path / "spark"))
    sealed_without(tmp_path / "spark", tmp_path)
