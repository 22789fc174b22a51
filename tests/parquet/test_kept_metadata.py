"""What other software wrote about a column is hidden by encryption, and is the same after decryption."""

import base64
import datetime as dt
import decimal
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kmsdata
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import Wrap
from kmsdata.parquet.bulk.kept_metadata import GEO, KEPT, SPARK, restored, without_columns

KEY = "local://demo"
BOX = [12.3456789, 45.6789123]

GEO_TEXT = """{ "version": "1.1.0", "primary_column" : "home",
 "columns": {"home": {"encoding": "WKB", "geometry_types": [],
 "bbox": [12.3456789, 45.6789123, 13.0, 46]},
   "work" : {"bbox":[12.3456789,1,2,3.50],"encoding":"WKB","geometry_types":["Point"]}
 , "\\u00fc": {"encoding":"WKB","geometry_types":[]}
 }, "creator": {"a": [1e5]} }"""
SPARK_TEXT = """{"type":"struct", "fields":[
 {"name":"home","type":"string","nullable":true,"metadata":{"values":["Ulm-12.3456789"]}},
 {"metadata":{},"name":"work","type":{"type":"array","elementType":"double","containsNull":true},"nullable":true}
 ]}"""
ENTRIES = {b"first": b"1", SPARK: SPARK_TEXT.encode(), GEO: GEO_TEXT.encode()}


@pytest.fixture
def data_key():
    return DataKey(bytes(range(32)), [Wrap(KEY, "AAAA")])


def box_is_hidden(entries):
    return all(str(number).encode() not in text for text in entries.values() for number in BOX)


@pytest.mark.parametrize("order", [("home", "work", "ü"), ("ü", "work", "home"), ("work", "home", "ü")])
@pytest.mark.parametrize("together", [True, False])
def test_all_bytes_come_back_in_any_order(data_key, order, together):
    keys = {data_key.commitment: data_key}
    out = dict(ENTRIES)
    for names in [order] if together else [(name,) for name in order]:
        out = without_columns(out, dict.fromkeys(names, data_key))
    assert GEO not in out
    assert box_is_hidden(out)
    fields = json.loads(out[SPARK])["fields"]
    assert [(field["type"], field["metadata"]) for field in fields] == [("binary", {})] * 2
    for name in ("work", "home", "ü") if together else reversed(order):
        out = restored(out, [name], keys)
        geo = json.loads(out[GEO])
        assert geo["primary_column"] in geo["columns"]
    assert out == ENTRIES


def test_other_readers_find_a_valid_document_without_the_column(data_key):
    out = without_columns(ENTRIES, {"home": data_key})
    geo, before = json.loads(out[GEO]), json.loads(GEO_TEXT)
    assert geo["primary_column"] == "work"
    assert geo["columns"] == {name: before["columns"][name] for name in ("work", "ü")}
    assert restored(out, ["home"], {data_key.commitment: data_key}) == ENTRIES


def test_a_column_that_is_encrypted_later_is_not_kept_under_the_first_key(data_key):
    second = DataKey(bytes(32), [Wrap(KEY, "AAAA")])
    out = without_columns(without_columns(ENTRIES, {"home": data_key}), {"work": second})
    sealed = base64.b64decode(json.loads(out[KEPT])["columns"]["home"]["sealed"])
    assert b"3.50" not in data_key.open_kept("home", sealed)
    first = restored(out, ["home"], {data_key.commitment: data_key})
    assert set(json.loads(first[GEO])["columns"]) == {"home", "ü"}
    back = restored(first, ["work"], {second.commitment: second})
    assert json.loads(back[GEO])["columns"] == json.loads(GEO_TEXT)["columns"]


def test_what_was_changed_in_between_stays(data_key):
    out = without_columns(ENTRIES, {"home": data_key})
    geo = json.loads(out[GEO])
    geo["creator"] = "another"
    back = restored({**out, GEO: json.dumps(geo).encode()}, ["home"], {data_key.commitment: data_key})
    assert json.loads(back[GEO]) == json.loads(GEO_TEXT) | {"creator": "another"}
    assert restored({b"x": b"1"}, ["home"], {data_key.commitment: data_key}) == {b"x": b"1"}


def test_kept_metadata_that_was_changed_or_moved_is_refused(data_key):
    keys = {data_key.commitment: data_key}
    out = without_columns(ENTRIES, {"home": data_key, "work": data_key})
    document = json.loads(out[KEPT])
    columns = document["columns"]
    sealed = bytearray(base64.b64decode(columns["home"]["sealed"]))
    sealed[-1] ^= 1
    for other in (columns["work"]["sealed"], base64.b64encode(sealed).decode(), "", "?", "AAAA"):
        columns["home"]["sealed"] = other
        with pytest.raises(kmsdata.TamperedError, match=r"'home'.*kmsdata\.kept"):
            restored({**out, KEPT: json.dumps(document).encode()}, ["home"], keys)


MALFORMED = [
    b"",
    b"\xff",
    b"[]",
    b"1",
    b"[" * 100_000,
    b'{"columns": {}, "version": 2}',
    b'{"columns": [], "version": 1}',
    b'{"columns": {"home": 1}, "version": 1}',
    b'{"columns": {"home": {"sealed": 1, "data_key": 2}}, "version": 1}',
]


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_entry_is_refused(data_key, text):
    with pytest.raises(kmsdata.FormatError, match=r"kmsdata\.kept"):
        restored({KEPT: text}, ["home"], {})


@pytest.mark.parametrize(
    "text", [b"", b"[]", b'{"columns": {}}', b'{"fields": 3}', b'{"columns": {"x": 1}}', b"\xff"]
)
def test_documents_of_another_form_stay(data_key, text):
    before = {GEO: text or b"{}", SPARK: text}
    assert without_columns(before, {"home": data_key}) == before


def test_a_document_that_names_a_column_twice_is_refused(data_key):
    twice = b'{"columns": {"home": {"bbox": [1]}, "home": {"bbox": [2]}}}'
    with pytest.raises(ValueError, match=r"'geo'.*'home'"):
        without_columns({GEO: twice}, {"home": data_key})


@pytest.mark.newest
def test_files_keep_it_through_rewrap_and_decryption(keystore, tmp_path):
    import duckdb

    table = pa.table({"home": [b"\1" * 21], "work": [b"\2" * 21], "n": [1]})
    source, sealed, plain = (tmp_path / f"{name}.parquet" for name in ("source", "sealed", "plain"))
    pq.write_table(table.replace_schema_metadata(ENTRIES), source)
    kmsdata.encrypt_parquet(source, sealed, ["home", "work"], key=KEY)
    assert box_is_hidden({b"file": sealed.read_bytes()})
    assert duckdb.sql(f"select n from '{sealed}'").fetchall() == [(1,)]  # noqa: S608
    kmsdata.rewrap(sealed, KEY)
    kmsdata.decrypt_parquet(sealed, plain)
    before, after = (pq.read_metadata(path).metadata for path in (source, plain))
    assert {key: after.get(key) for key in ENTRIES} == ENTRIES == {key: before[key] for key in ENTRIES}
    assert set(after) == set(before)
    assert pq.read_schema(plain).equals(pq.read_schema(source), check_metadata=True)


@pytest.mark.newest
@pytest.mark.slow
def test_spark_reads_the_types_that_it_wrote(keystore, tmp_path, spark):
    row = ("Ulm-1", decimal.Decimal("12.50"), 1.5, 7, [1, 2], dt.date(2026, 1, 2), {"a": 1}, "plain")
    columns = "s string, d decimal(10,2), f double, i int, a array<int>, t date, m map<string,int>, p string"
    source, sealed, plain = (tmp_path / name for name in ("source", "sealed", "plain"))
    frame = spark.createDataFrame([row], columns)
    frame.write.option("parquet.bloom.filter.enabled#s", "true").parquet(str(source))
    secret = ["s", "d", "f", "i", "a", "t", "m"]
    kmsdata.encrypt_parquet(f"{source}/*.parquet", sealed, secret, key=KEY)
    between = spark.read.parquet(str(sealed))
    assert {name: kind for name, kind in between.dtypes if kind != "binary"} == {"p": "string"}
    assert between.first()["p"] == "plain"
    assert not any(b"Ulm-1" in path.read_bytes() for path in sealed.rglob("*") if path.is_file())
    kmsdata.decrypt_parquet(sealed, plain)
    back = spark.read.parquet(str(plain))
    assert back.dtypes == frame.dtypes
    assert tuple(back.first()) == row


FORMS = ["name:{}", "name={}", "name='{}'", 'name:"{}";', '{{\\"a\\":\\"{}\\"}}']


@pytest.mark.parametrize("form", FORMS)
def test_values_in_unknown_metadata_are_found_in_every_form(keystore, tmp_path, form):
    table = pa.table({"name": ["Ulm-12345"]}).replace_schema_metadata({"x": form.format("Ulm-12345")})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="contains values of column 'name'"):
        kmsdata.encrypt_parquet(tmp_path / "x.parquet", tmp_path / "y.parquet", "name", key=KEY)
