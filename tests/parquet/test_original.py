"""What other software wrote about a column is hidden by encryption, and is the same after decryption."""

import base64
import datetime as dt
import decimal
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kmsdata
from kmsdata.frames.metadata.documents import GEO, SPARK
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import Wrap
from kmsdata.parquet.bulk import file_schema
from kmsdata.parquet.bulk.file_schema import decrypted_schema, encrypted_schema
from kmsdata.parquet.bulk.original.entry import ORIGINAL, opened, seal
from kmsdata.parquet.bulk.original.types import types_in
from tests.parquet.footers import entries as footer_entries

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


class HeaderOf:
    """What the entry needs of a header."""

    def __init__(self, *keys):
        self.records = [key.record for key in keys]


def without_columns(entries, keys):
    """Return the metadata after the encryption of columns under their keys."""
    return encrypted_schema(pa.schema([]), entries, {}, {}, keys, {})[1]


def restored(entries, names, keys):
    """Return the metadata after the decryption of columns; all columns are under any of the keys."""
    header = HeaderOf(*keys.values())
    parts = opened(entries, dict.fromkeys(names, header), keys, "a.parquet")
    left = {} if ORIGINAL not in entries else json.loads(entries[ORIGINAL])["columns"].keys() - set(names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_schema, "_with_headers", lambda metadata, _: metadata)
        return decrypted_schema(pa.schema([]), entries, {}, dict.fromkeys(left, header), {}, parts)[1]


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
    assert list(out.items()) == list(ENTRIES.items())


def test_other_readers_find_a_valid_document_without_the_column(data_key):
    out = without_columns(ENTRIES, {"home": data_key})
    geo, before = json.loads(out[GEO]), json.loads(GEO_TEXT)
    assert geo["primary_column"] == "work"
    assert geo["columns"] == {name: before["columns"][name] for name in ("work", "ü")}
    assert restored(out, ["home"], {data_key.commitment: data_key}) == ENTRIES


def test_a_column_that_is_encrypted_later_is_not_kept_under_the_first_key(data_key):
    second = DataKey(bytes(32), [Wrap(KEY, "AAAA")])
    out = without_columns(without_columns(ENTRIES, {"home": data_key}), {"work": second})
    sealed = base64.b64decode(json.loads(out[ORIGINAL])["columns"]["home"]["sealed"])
    assert b"3.50" not in data_key._open_original("home", sealed)
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
    document = json.loads(out[ORIGINAL])
    columns = document["columns"]
    sealed = bytearray(base64.b64decode(columns["home"]["sealed"]))
    sealed[-1] ^= 1
    for other in (columns["work"]["sealed"], base64.b64encode(sealed).decode(), "", "?", "AAAA"):
        columns["home"]["sealed"] = other
        with pytest.raises(kmsdata.TamperedError, match=r"'home'.*kmsdata\.original"):
            restored({**out, ORIGINAL: json.dumps(document).encode()}, ["home"], keys)


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
    with pytest.raises(kmsdata.FormatError, match=r"kmsdata\.original"):
        restored({ORIGINAL: text}, ["home"], {})


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
    assert footer_entries(plain) == footer_entries(source)
    assert pq.read_schema(plain).equals(pq.read_schema(source), check_metadata=True)


@pytest.mark.engine("pyspark")
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
    kmsdata.encrypt_parquet(f"{source}/*.parquet", sealed, ["s", "a"], key=KEY, overwrite=True)
    rest = ["d", "f", "i", "t", "m", "p"]
    between = spark.read.parquet(str(sealed)).select(*rest)
    assert between.dtypes == frame.select(*rest).dtypes
    assert tuple(between.first()) == tuple(frame.select(*rest).first())


FORMS = ["name:{}", "name={}", "name='{}'", 'name:"{}";', '{{\\"a\\":\\"{}\\"}}']


@pytest.mark.parametrize("form", FORMS)
def test_values_in_unknown_metadata_are_found_in_every_form(keystore, tmp_path, form):
    table = pa.table({"name": ["Ulm-12345"]}).replace_schema_metadata({"x": form.format("Ulm-12345")})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="contains values of column 'name'"):
        kmsdata.encrypt_parquet(tmp_path / "x.parquet", tmp_path / "y.parquet", "name", key=KEY)


def sealed_file(tmp_path, *columns):
    """Encrypt columns of a file with the entries above; return its path."""
    table = pa.table({"home": [b"\1" * 21], "work": [b"\2" * 21], "n": [1]})
    pq.write_table(table.replace_schema_metadata(ENTRIES), tmp_path / "source.parquet")
    kmsdata.encrypt_parquet(tmp_path / "source.parquet", tmp_path / "sealed.parquet", columns, key=KEY)
    return tmp_path / "sealed.parquet"


def test_a_part_is_sealed_once(keystore, tmp_path):
    path = sealed_file(tmp_path, "home", "work")
    texts = [pq.read_metadata(path).metadata[ORIGINAL], pq.read_schema(path).metadata[ORIGINAL]]
    assert texts[0] == texts[1]
    assert json.loads(texts[0])["columns"].keys() == {"home", "work"}


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("store_schema", [True, False])
def test_the_order_of_entries_comes_back(keystore, tmp_path, position, store_schema):
    others = {b"first": b"1", b"second": b"2", b"third": b"3"}
    pairs = [*others.items()]
    pairs.insert(position, (GEO, b'{"columns": {"home": {"bbox": [12.3456789]}}, "primary_column": "home"}'))
    table = pa.table({"home": [b"\1" * 21], "n": [1]}).replace_schema_metadata(dict(pairs))
    source, sealed, plain = (tmp_path / f"{name}.parquet" for name in ("source", "sealed", "plain"))
    with pq.ParquetWriter(source, table.schema, store_schema=store_schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(dict(pairs))
    kmsdata.encrypt_parquet(source, sealed, "home", key=KEY)
    assert GEO not in dict(footer_entries(sealed))
    kmsdata.decrypt_parquet(sealed, plain)
    assert footer_entries(plain) == footer_entries(source)


@pytest.mark.parametrize("inside", [True, False])
def test_entries_in_one_place_only_come_back_there(keystore, tmp_path, inside):
    geo = {GEO: GEO_TEXT.encode()}
    table = pa.table({"home": [b"\1" * 21], "work": [b""], "n": [1]})
    source, sealed, plain = (tmp_path / f"{name}.parquet" for name in ("source", "sealed", "plain"))
    schema = table.schema.with_metadata({**geo, "x": "1"} if inside else {"x": "1"})
    with pq.ParquetWriter(source, schema) as writer:
        writer.write_table(table.cast(schema))
        writer.add_key_value_metadata({GEO: b"{}"} if inside else geo)
    kmsdata.encrypt_parquet(source, sealed, ["home", "work"], key=KEY)
    assert box_is_hidden({**pq.read_metadata(sealed).metadata, **pq.read_schema(sealed).metadata})
    kmsdata.decrypt_parquet(sealed, plain)
    assert footer_entries(plain) == footer_entries(source)


def test_verify_authenticates_each_part(keystore, tmp_path):
    path = sealed_file(tmp_path, "home", "work")
    assert kmsdata.verify(path).ok
    data = path.read_bytes()
    part = json.loads(pq.read_metadata(path).metadata[ORIGINAL])["columns"]["work"]["sealed"]
    changed = part[:-6] + ("A" if part[-6] != "A" else "B") + part[-5:]
    assert data.count(part.encode()) == 1  # the other is in ARROW:schema, which is base64
    path.write_bytes(data.replace(part.encode(), changed.encode()))
    found = kmsdata.verify(path)
    assert [(failure.column, "kmsdata.original" in failure.what) for failure in found.failures] == [
        ("work", True)
    ]
    with pytest.raises(kmsdata.TamperedError, match=r"'work'.*kmsdata\.original"):
        kmsdata.decrypt_parquet(path, tmp_path / "plain.parquet")
    assert not (tmp_path / "plain.parquet").exists()


GEO_PART = {"following": [], "order": ["home"], "part": "", "primary": None, "rest": "{"}
STRANGE = [
    [],
    {"spark": 1},
    {"spark": "\ud800"},
    {"geo": []},
    {"geo": {}},
    {"geo": GEO_PART | {"order": [1]}},
    {"geo": GEO_PART | {"more": 1}},
    {"schema": 1},
    {"schema": {"geo": 1}},
    {"elements": 1},
    {"elements": "?"},
    {"elements": ""},
    {"elements": "AAAA"},
    {"elements": "GRwA"},
    {"elements": base64.b64encode(b"\x19\x1c\x48\x01x\x15\x04\x00\x00").decode(), "field": "AAAA"},
]


@pytest.mark.parametrize("members", STRANGE, ids=str)
def test_a_malformed_part_that_is_authentic_is_refused(data_key, members):
    sealed = data_key._seal_original("home", json.dumps(members).encode())
    item = {
        "data_key": base64.b64encode(data_key.commitment).decode(),
        "sealed": base64.b64encode(sealed).decode(),
    }
    entry = json.dumps({"columns": {"home": item}, "version": 1}).encode()
    keys = {data_key.commitment: data_key}
    with pytest.raises(kmsdata.FormatError, match=r"a\.parquet: column 'home'.*malformed"):
        types_in(opened({ORIGINAL: entry}, {"home": HeaderOf(data_key)}, keys, "a.parquet"), "a.parquet")


def test_texts_that_are_no_documents_are_restored_without_raw_errors(data_key):
    keys = {data_key.commitment: data_key}
    for text in ("{", "", "[" * 100_000, '{"columns": 1}', '{"columns": {'):
        item = seal("home", {"geo": GEO_PART | {"rest": text}, "spark": text}, data_key)
        entry = json.dumps({"columns": {"home": item}, "version": 1}).encode()
        assert GEO in restored({ORIGINAL: entry, SPARK: b"{}"}, ["home"], keys)


def test_a_part_of_a_column_that_was_replaced_is_ignored(data_key):
    out = without_columns(ENTRIES, {"home": data_key})
    another = DataKey(bytes(32), [Wrap(KEY, "AAAA")])
    assert opened(out, {"home": HeaderOf(another)}, {}, "a.parquet") == {}


@pytest.mark.newest
@pytest.mark.parametrize("columns", [["geometry"], ["work", "geometry"], ["geometry", "work"]], ids=str)
def test_files_of_geopandas_show_no_bounding_box(keystore, tmp_path, columns):
    import duckdb
    import geopandas
    import pandas as pd

    source, sealed, plain = (tmp_path / f"{name}.parquet" for name in ("source", "sealed", "plain"))
    home, work = (
        geopandas.GeoSeries.from_wkt(texts, crs="EPSG:4326")
        for texts in (["POINT (12.3456789 45.6789123)", "POINT (13 46)"], ["POINT (1 2)", "POINT (3 4)"])
    )
    frame = geopandas.GeoDataFrame({"name": ["a", "b"], "work": work}, geometry=home)
    frame.to_parquet(source)
    assert not box_is_hidden(pq.read_metadata(source).metadata)
    kmsdata.encrypt_parquet(source, sealed, columns, key=KEY)
    schema = pq.read_schema(sealed)
    assert box_is_hidden({b"file": sealed.read_bytes(), b"arrow": schema.serialize().to_pybytes()})
    assert duckdb.sql(f"select name from '{sealed}'").fetchall() == [("a",), ("b",)]  # noqa: S608
    assert pq.read_table(sealed, columns=["name"])["name"].to_pylist() == ["a", "b"]
    assert pd.read_parquet(sealed, columns=["name"])["name"].tolist() == ["a", "b"]
    if columns == ["geometry"]:  # without any geometry, geopandas refuses the file, and names pandas
        found = geopandas.read_parquet(sealed, columns=["name", "work"])
        assert found["work"].equals(frame["work"])
    kmsdata.decrypt_parquet(sealed, plain)
    assert footer_entries(plain) == footer_entries(source)
    assert geopandas.read_parquet(plain).equals(geopandas.read_parquet(source))


def entry_of(path):
    return pq.read_metadata(path).metadata


@pytest.mark.newest
def test_categories_of_polars_are_in_no_metadata(tmp_path):
    import polars as pl

    source, sealed, opened = (tmp_path / name for name in ("a.parquet", "b.parquet", "c.parquet"))
    few = pl.Enum(["hiv", "tb", "flu"])
    nested = pl.Series([["payroll dept"]] * 2, dtype=pl.List(pl.Enum(["payroll dept", "other dept"])))
    frame = pl.DataFrame({"few": pl.Series(["tb", "flu"], dtype=few), "nested": nested, "k": [1, 2]})
    frame.write_parquet(source)
    kmsdata.encrypt_parquet(source, sealed, ["few", "nested"], key=KEY)
    texts = b"".join(entry_of(sealed).values())
    schema = base64.b64decode(entry_of(sealed)[b"ARROW:schema"])
    for word in (b"hiv", b"payroll dept", b"other dept"):
        assert word not in texts
        assert word not in schema
        assert word not in sealed.read_bytes()
    kmsdata.decrypt_parquet(sealed, opened)
    back = pl.read_parquet(opened)
    assert back.schema == frame.schema
    assert back.equals(frame)


def test_each_file_keeps_its_pandas_dtypes(tmp_path):
    (tmp_path / "in").mkdir()
    frames = {
        "a": pd.DataFrame({"a": [1, 2]}),
        "b": pd.DataFrame({"a": pd.array([2**53 + 1, None], "Int64")}),
    }
    for name, frame in frames.items():
        frame.to_parquet(tmp_path / "in" / f"{name}.parquet")
    kmsdata.encrypt_parquet(tmp_path / "in", tmp_path / "out", "a", key=KEY)
    kmsdata.decrypt_parquet(tmp_path / "out", tmp_path / "back")
    for name, frame in frames.items():
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "back" / f"{name}.parquet"), frame)


@pytest.mark.parametrize("order", [["g", "h"], ["h", "g"], None])
def test_the_primary_column_comes_back_whatever_is_decrypted_first(order, tmp_path):
    names = ["g", "h"]
    geo = {"version": "1.0.0", "primary_column": "g", "columns": {n: {"encoding": "WKB"} for n in names}}
    table = pa.table({n: [b"\x01\x02"] for n in names}).replace_schema_metadata({"geo": json.dumps(geo)})
    files = [tmp_path / f"{k}.parquet" for k in range(6)]
    pq.write_table(table, files[0])
    kmsdata.encrypt_parquet(files[0], files[1], "g", key=KEY)
    kmsdata.encrypt_parquet(files[1], files[2], "h", key=KEY)
    steps = [None] if order is None else order
    for number, columns in enumerate(steps, 2):
        kmsdata.decrypt_parquet(files[number], files[number + 1], columns)
    last = files[2 + len(steps)]
    assert json.loads(entry_of(last)[b"geo"])["primary_column"] == "g"


def test_a_column_that_the_entry_names_must_be_encrypted(tmp_path):
    source, sealed, forged = (tmp_path / name for name in ("a.parquet", "b.parquet", "c.parquet"))
    pq.write_table(pa.table({"a": ["1"], "b": ["2"]}), source, store_schema=False)
    kmsdata.encrypt_parquet(source, sealed, ["a", "b"], key=KEY)
    table = pq.read_table(sealed)
    forged_table = table.set_column(1, "b", pa.array(["FORGED"]))
    pq.write_table(forged_table, forged, store_schema=False)
    with pq.ParquetWriter(forged, forged_table.schema.remove_metadata(), store_schema=False) as writer:
        writer.write_table(forged_table.replace_schema_metadata(None))
        writer.add_key_value_metadata({"kmsdata": table.schema.metadata[b"kmsdata"].decode()})
    for action in (
        lambda: kmsdata.read_parquet(forged, decrypt=True),
        lambda: kmsdata.decrypt_parquet(forged, tmp_path / "d.parquet"),
    ):
        with pytest.raises(kmsdata.FormatError, match="says that it is encrypted"):
            action()


def test_a_folder_in_the_place_of_a_file_leaves_no_plaintext(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "z"):
        pd.DataFrame({"a": ["secret"]}).to_parquet(tmp_path / "in" / f"{name}.parquet")
    kmsdata.encrypt_parquet(tmp_path / "in", tmp_path / "out", "a", key=KEY)
    (tmp_path / "back" / "z.parquet").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match="cannot replace this folder"):
        kmsdata.decrypt_parquet(tmp_path / "out", tmp_path / "back", overwrite=True)
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["z.parquet"]
