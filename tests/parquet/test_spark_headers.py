"""Headers in Spark's schema, as Spark writes them; the files are made here, without Spark."""

import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kmsdata

KEY = "local://demo"
SPARK = "org.apache.spark.sql.parquet.row.metadata"


@pytest.fixture
def enc():
    frame = pd.DataFrame({"id": [1, 2], "name": ["Ada", "Bo"], "age": [36, 41]})
    return frame.kms.encrypt(["name", "age"], key=KEY)


def field(name, kind="binary", **metadata):
    return {"name": name, "type": kind, "nullable": True, "metadata": metadata}


def fields_of(enc):
    return [
        field("id", "long"),
        *(field(name, kmsdata=enc[name].dtype.text) for name in enc.kms.encrypted),
    ]


def write(path, enc, document, **entries):
    """Write what Spark writes: plain binary columns, no Arrow schema, the headers in Spark's schema."""
    columns = {"id": pa.array(enc["id"])}
    columns |= {name: enc[name].array.storage.cast(pa.binary()) for name in enc.kms.encrypted}
    table = pa.table(columns)
    if isinstance(document, list):
        document = json.dumps({"type": "struct", "fields": document}, separators=(",", ":"))
    with pq.ParquetWriter(path, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({SPARK: document, **entries})
    return path


def everywhere(path):
    """What each reader of kmsdata says about a file: the name of the error, or None."""
    calls = {
        "read": lambda: kmsdata.read_parquet(path, decrypt=True),
        "inspect": lambda: kmsdata.inspect(path),
        "decrypt": lambda: kmsdata.decrypt_parquet(path, path.with_suffix(".plain"), overwrite=True),
        "encrypt": lambda: kmsdata.encrypt_parquet(path, path.with_suffix(".enc"), "id", key=KEY),
        "keyset": lambda: kmsdata.export_keyset(path, "name"),
    }
    said = {}
    for name, call in calls.items():
        try:
            call()
            said[name] = None
        except (kmsdata.KmsDataError, KeyError) as error:
            said[name] = str(error)
    return said


def test_every_reader_finds_them(enc, tmp_path):
    path = write(tmp_path / "x.parquet", enc, fields_of(enc))
    assert set(everywhere(path).values()) == {None}
    assert kmsdata.verify(path, encrypted=["name", "age"]).ok
    pd.testing.assert_frame_equal(kmsdata.read_parquet(path, decrypt=True), enc.kms.decrypt())
    plain = pq.read_metadata(path.with_suffix(".plain")).metadata or {}
    assert SPARK.encode() not in plain
    again = kmsdata.read_parquet(path.with_suffix(".enc"))
    assert again.kms.encrypted == ["id", "name", "age"]
    pd.testing.assert_frame_equal(again.kms.decrypt(), enc.kms.decrypt())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:-20], "is damaged: it is not a schema of Spark"),
        (lambda text: text.replace('"fields"', '"field"'), "is damaged: it is not a schema of Spark"),
        (lambda _: '["kmsdata"]', "is damaged: it is not a schema of Spark"),
        (lambda _: '{"kmsdata":' + "[" * 100_000, "is damaged: it is not a schema of Spark"),
        (lambda text: text.replace('"name":"age"', '"name":"name"'), "several columns 'name'"),
        (lambda text: text.replace('"id"', '"n"').replace('"age"', '"id"'), "column 'id' is int64, but its"),
        (lambda text: text.replace('{\\"column\\"', '{ \\"column\\"'), "not in canonical form"),
        (lambda text: text.replace('"kmsdata":"', '"kmsdata":7,"was":"'), "it is not a schema of Spark"),
        (lambda text: text.replace('\\"version\\":1', '\\"version\\":2'), "unsupported version"),
    ],
)
def test_hostile_schemas_are_refused(enc, tmp_path, change, said):
    document = json.dumps({"type": "struct", "fields": fields_of(enc)}, separators=(",", ":"))
    assert change(document) != document
    path = write(tmp_path / "x.parquet", enc, change(document))
    errors = everywhere(path)
    del errors["keyset"]  # of one column: a change of another one does not concern it
    assert {reader for reader, error in errors.items() if said in str(error)} == set(errors)
    found = kmsdata.verify(path)
    assert not found.ok
    assert any(said in failure.what for failure in found.failures)


def test_a_header_of_another_column_is_refused(enc, tmp_path):
    fields = fields_of(enc)
    fields[1]["metadata"], fields[2]["metadata"] = fields[2]["metadata"], fields[1]["metadata"]
    path = write(tmp_path / "x.parquet", enc, fields)
    with pytest.raises(kmsdata.FormatError, match="exchanged"):
        kmsdata.read_parquet(path, decrypt=True)
    fields = fields_of(enc)
    fields[1]["metadata"] = {}
    path = write(tmp_path / "y.parquet", enc, fields)
    with pytest.raises(kmsdata.FormatError, match="'name' must be encrypted, but has no"):
        kmsdata.read_parquet(path, encrypted="name")


def test_places_must_agree(enc, tmp_path):
    frame = enc.kms.decrypt()
    other = frame.kms.encrypt(["name", "age"], key=KEY)
    enc.kms.to_parquet(tmp_path / "own.parquet")
    entry = pq.read_metadata(tmp_path / "own.parquet").metadata[b"kmsdata"].decode()
    both = write(tmp_path / "both.parquet", enc, fields_of(enc), kmsdata=entry)
    assert set(everywhere(both).values()) == {None}
    kmsdata.LocalKeystore(create=True).ensure_key("local://new")
    kmsdata.rewrap(both, "local://new")
    metadata = pq.read_metadata(both).metadata
    for place in (b"kmsdata", SPARK.encode()):
        assert b"local://demo" not in metadata[place]
        assert b"local://new" in metadata[place]
    pd.testing.assert_frame_equal(kmsdata.read_parquet(both, decrypt=True), frame)
    differ = write(tmp_path / "differ.parquet", enc, fields_of(other), kmsdata=entry)
    for reader, error in everywhere(differ).items():
        assert "its metadata in Spark's schema describe it differently" in str(error), reader
    assert not kmsdata.verify(differ).ok
    with pytest.raises(kmsdata.KmsDataError, match="copies of the header disagree about column"):
        kmsdata.rewrap(differ, "local://new")


def test_many_fields_of_spark_take_linear_time(enc, tmp_path):
    fields = fields_of(enc)[:2] + [field(f"c{number}", kmsdata="x") for number in range(40_000)]
    path = write(tmp_path / "x.parquet", enc, fields)
    with pytest.raises(kmsdata.FormatError):
        kmsdata.read_parquet(path)
