"""From frame to file and back, exactly; and with other readers of the standard."""

import datetime as dt
import decimal
import json
import subprocess
import sys
import uuid

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kmsdata
from kmsdata.frames import column as column_module
from kmsdata.keys.envelope import parse_file

KEY = "local://demo"
SECRETS = ["name", "ticket", "age", "fare"]


def through_pandas(frame, encrypted, path):
    """Return what a file should restore: encrypted columns exactly, plain ones as in pandas' own Parquet."""
    frame.to_parquet(path)
    out = pd.read_parquet(path)
    path.unlink()
    for name in encrypted:
        out[name] = frame[name].set_axis(out.index)
    return out


def test_the_main_job(titanic, tmp_path):
    enc = titanic.kms.encrypt(SECRETS, deterministic=["home.dest"], key=KEY)
    assert list(enc.columns) == list(titanic.columns)
    assert sorted(enc.kms.encrypted) == sorted([*SECRETS, "home.dest"])
    enc.kms.to_parquet(tmp_path / "t.parquet")
    wanted = through_pandas(titanic, [*SECRETS, "home.dest"], tmp_path / "plain.parquet")
    back = kmsdata.read_parquet(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(back.kms.decrypt(), wanted)
    pd.testing.assert_frame_equal(kmsdata.read_parquet(tmp_path / "t.parquet", decrypt=True), wanted)
    pd.testing.assert_frame_equal(enc.kms.decrypt(), titanic)
    raw = (tmp_path / "t.parquet").read_bytes()
    for name in titanic["name"].head(50):
        assert name.encode() not in raw
    assert sum(np.float64(age).tobytes() in raw for age in titanic["age"].dropna().unique() if age % 1) == 0


def test_every_cell_has_an_iv_of_its_own(monkeypatch):
    frame = pd.DataFrame({"a": ["same"] * 5000, "b": ["same"] * 5000})
    key = kmsdata.new_data_key(KEY)
    drawn = []
    original = column_module.random_bytes
    monkeypatch.setattr(column_module, "random_bytes", lambda size: drawn.append(original(size)) or drawn[-1])
    cells = [
        bytes(cell) for _ in range(2) for name in frame for cell in frame.kms.encrypt(name, key=key)[name]
    ]
    assert len({cell[5:17] for cell in cells}) == len(cells) == 20_000
    assert len(set(drawn)) == len(drawn) == 4  # a seed for each column of each call
    exact = frame.kms.encrypt(list(frame), deterministic=True, key=key)
    assert exact["a"].nunique() == 1
    assert exact["a"].iloc[0] != exact["b"].iloc[0]  # another domain
    assert len(drawn) == 4


def test_one_wrapped_data_key_wherever_it_stands(titanic, tmp_path):
    titanic.kms.encrypt(SECRETS, key=KEY).kms.to_parquet(tmp_path / "t.parquet")
    entry = json.loads(pq.read_metadata(tmp_path / "t.parquet").metadata[b"kmsdata"])
    assert len(entry["data_keys"]) == 1
    assert len(entry["data_keys"][0]["wraps"]) == 1
    headers = [
        field.type.dtype.header
        for field in pq.read_schema(tmp_path / "t.parquet")
        if hasattr(field.type, "dtype")
    ]
    assert len(headers) == 4
    assert {wrap.wrapped for header in headers for record in header.records for wrap in record.wraps} == {
        entry["data_keys"][0]["wraps"][0]["wrapped"]
    }


def test_plain_pandas_round_trips_too(titanic, tmp_path):
    enc = titanic.kms.encrypt(SECRETS, key=KEY)
    enc.to_parquet(tmp_path / "t.parquet")
    wanted = through_pandas(titanic, SECRETS, tmp_path / "plain.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet").kms.decrypt(), wanted)
    pd.testing.assert_frame_equal(kmsdata.read_parquet(tmp_path / "t.parquet").kms.decrypt(), wanted)


INDEXES = [
    pd.RangeIndex(5, 20, 5, name="r"),
    pd.Index(["x", "y", "x"]),
    pd.DatetimeIndex(["2024-01-01", None, "2024-03-01"], tz="Asia/Shanghai", name="when"),
    pd.MultiIndex.from_arrays([["a", "a", "b"], [1, 2, 1]], names=["k", None]),
    pd.IntervalIndex.from_breaks([0, 1, 2, 3]),
    pd.PeriodIndex(["2024-01", "2024-02", "2024-03"], freq="M"),
    pd.CategoricalIndex(["u", "v", "u"]),
    pd.Index([1.5, 2.5, np.nan]),
]


@pytest.mark.parametrize("index", INDEXES, ids=lambda index: type(index).__name__ + str(index.dtype))
def test_index_order_names_and_attrs_come_through(index, tmp_path):
    frame = pd.DataFrame(
        {"z": [1, 2, 3], "身份证": ["a", None, "c"], "a b.c": [1.5, np.nan, 2.5]}, index=index
    )
    frame.attrs = {"source": "survey", "year": 2024}
    before = frame.copy()
    enc = frame.kms.encrypt(["身份证", "a b.c"], deterministic=["z"], key=KEY)
    pd.testing.assert_index_equal(enc.index, index, exact=True)
    assert enc.attrs == frame.attrs
    back = enc.kms.decrypt()
    pd.testing.assert_frame_equal(back, frame)
    assert back.attrs == frame.attrs
    pd.testing.assert_frame_equal(frame, before)
    enc.kms.to_parquet(tmp_path / "e.parquet")
    frame.to_parquet(tmp_path / "p.parquet")
    through = kmsdata.read_parquet(tmp_path / "e.parquet", decrypt=True)
    pandas = pd.read_parquet(tmp_path / "p.parquet")
    pd.testing.assert_index_equal(through.index, pandas.index, exact=True)
    pd.testing.assert_frame_equal(through, pandas)
    assert through.attrs == frame.attrs


def test_the_callers_frame_is_his_own(titanic):
    before = titanic.copy()
    enc = titanic.kms.encrypt(SECRETS, key=KEY)
    back = enc.kms.decrypt()
    back["age"] = 0.0
    back.loc[:, "fare"] = -1.0
    back.iloc[0, 0] = 99
    enc.iloc[0, 0] = 77
    pd.testing.assert_frame_equal(titanic, before)
    pd.testing.assert_frame_equal(enc.drop(columns="pclass").kms.decrypt(), before.drop(columns="pclass"))


def test_series(titanic):
    for deterministic in (False, True):
        enc = titanic["name"].kms.encrypt(deterministic=deterministic, key=KEY)
        pd.testing.assert_series_equal(enc.kms.decrypt(), titanic["name"])


def test_columns_and_filters(titanic, tmp_path):
    path = tmp_path / "t.parquet"
    titanic.kms.encrypt(SECRETS, key=KEY).kms.to_parquet(path, row_group_size=100)
    some = kmsdata.read_parquet(path, columns=["age", "sex"], filters=[("sex", "==", "female")])
    wanted = titanic.loc[titanic["sex"] == "female", ["age", "sex"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(some.kms.decrypt(), wanted)
    some = kmsdata.read_parquet(path, columns=["age"], filters=ds.field("pclass") == 1, decrypt=True)
    pd.testing.assert_frame_equal(some, titanic.loc[titanic["pclass"] == 1, ["age"]].reset_index(drop=True))


def test_ciphertext_has_its_own_settings_and_plain_columns_the_users(titanic, tmp_path):
    frame = titanic.assign(nested=[{"a": i} for i in range(len(titanic))])
    enc = frame.kms.encrypt(["age", "name"], deterministic=["home.dest"], key=KEY)
    enc.kms.to_parquet(tmp_path / "t.parquet", compression="zstd")
    group = pq.read_metadata(tmp_path / "t.parquet").row_group(0)
    chunks = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    for name in ("age", "name", "home.dest"):
        assert chunks[name].compression == "UNCOMPRESSED"
        assert not chunks[name].is_stats_set
        assert chunks[name].has_dictionary_page == (name == "home.dest")
    assert chunks["age"].physical_type == "FIXED_LEN_BYTE_ARRAY"
    for name in ("pclass", "sex", "nested.a"):
        assert chunks[name].compression == "ZSTD"
        assert chunks[name].is_stats_set
    enc.kms.to_parquet(
        tmp_path / "t.parquet", compression=None, write_statistics=False, use_dictionary=["sex"]
    )
    group = pq.read_metadata(tmp_path / "t.parquet").row_group(0)
    chunks = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert chunks["sex"].compression == "UNCOMPRESSED"
    assert [name for name in chunks if chunks[name].has_dictionary_page] == ["sex", "home.dest"]
    assert not chunks["sex"].is_stats_set


def test_filesystems(titanic, tmp_path):
    enc = titanic.kms.encrypt("age", key=KEY)
    enc.kms.to_parquet("t.parquet", filesystem=pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()))
    enc.kms.to_parquet(f"file://{tmp_path}/u.parquet")
    wanted = through_pandas(titanic, ["age"], tmp_path / "plain.parquet")
    for name in ("t.parquet", "u.parquet"):
        back = kmsdata.read_parquet(tmp_path / name, decrypt=True)
        pd.testing.assert_frame_equal(back, wanted)
    assert sorted(path.name for path in tmp_path.glob("*.parquet*")) == ["t.parquet", "u.parquet"]


def test_a_folder_of_files_under_one_and_under_several_data_keys(titanic, tmp_path):
    parts = [titanic.iloc[:500], titanic.iloc[500:900], titanic.iloc[900:]]
    same = kmsdata.new_data_key(KEY)
    for kind, keys in {"one": [same] * 3, "several": [KEY] * 3}.items():
        folder = tmp_path / kind
        folder.mkdir()
        for number, (part, key) in enumerate(zip(parts, keys, strict=True)):
            part.reset_index(drop=True).kms.encrypt(SECRETS, key=key).kms.to_parquet(
                folder / f"{number}.parquet"
            )
        back = kmsdata.read_parquet(folder)
        assert len({record.commitment for record in back["age"].dtype.header.records}) == (
            1 if kind == "one" else 3
        )
        wanted = through_pandas(titanic, SECRETS, tmp_path / "plain.parquet")
        pd.testing.assert_frame_equal(back.kms.decrypt().reset_index(drop=True), wanted)


def test_a_folder_of_files_that_were_encrypted_otherwise_keeps_its_dtypes(tmp_path):
    frame = pd.DataFrame(
        {
            "text": pd.array(["a", None, ""], "string"),
            "int64": [1, -2, 2**60 + 1],
            "Int64": pd.array([1, None, 2**60 + 1], "Int64"),
            "bool": [True, False, True],
            "when": pd.to_datetime(["2024-01-01", None, "2024-03-01"]).as_unit("us"),
            "zoned": pd.to_datetime(["2024-01-01", None, "2024-03-01"]).as_unit("us").tz_localize("UTC"),
            "kind": pd.Categorical(["a", None, "b"], categories=["b", "a", "unused"]),
            "object": pd.Series([b"x", b"y", b"z"], dtype=object),
        }
    )
    names, folder = list(frame), tmp_path / "folder"
    folder.mkdir()
    frame.kms.encrypt(names, key=KEY).kms.to_parquet(folder / "1.parquet")
    frame.kms.encrypt(deterministic=names, key=KEY).kms.to_parquet(folder / "2.parquet")
    twice = pd.concat([frame, frame], ignore_index=True)
    mixed = kmsdata.read_parquet(folder)
    pd.testing.assert_frame_equal(mixed.kms.decrypt(), twice)
    pd.testing.assert_frame_equal(mixed[::-1].kms.decrypt(), twice[::-1])
    shifted = mixed[["int64", "bool", "text"]].shift(1).kms.decrypt()
    pd.testing.assert_frame_equal(
        shifted, twice[["int64", "bool", "text"]].astype({"int64": "Int64", "bool": "boolean"}).shift(1)
    )


def test_tables(titanic):
    table = pa.table(
        {
            "i": pa.array([1, None, 3], pa.int16()),
            "s": pa.array(["a", None, "c"]),
            "l": pa.array([[1], [], None], pa.list_(pa.int32())),
            "d": pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("2.00")], pa.decimal128(9, 2)),
            "t": pa.array(
                [dt.datetime(2024, 1, 1), None, dt.datetime(2024, 2, 1)], pa.timestamp("ms", "UTC")
            ),
            "plain": [1, 2, 3],
        }
    ).replace_schema_metadata({"owner": "hr"})
    enc = kmsdata.encrypt_table(table, ["i", "l", "d"], deterministic=["s", "t"], key=KEY)
    assert [str(enc.schema.field(name).type) for name in ("i", "plain")] == ["encrypted[int16]", "int64"]
    back = kmsdata.decrypt_table(enc)
    assert back.equals(table)
    assert back.schema.equals(table.schema, check_metadata=True)
    assert kmsdata.decrypt_table(enc, ["s"]).column("s").equals(table.column("s"))
    with pytest.raises(ValueError, match="already"):
        kmsdata.encrypt_table(enc, "i", key=KEY)
    with pytest.raises(kmsdata.FormatError, match="not encrypted"):
        kmsdata.decrypt_table(enc, "plain")
    frame = pa.Table.from_pandas(titanic)
    sealed = kmsdata.encrypt_table(frame, SECRETS, key=KEY)
    assert kmsdata.decrypt_table(sealed).equals(frame)
    pd.testing.assert_frame_equal(sealed.to_pandas().kms.decrypt(), frame.to_pandas())
    pd.testing.assert_frame_equal(kmsdata.decrypt_table(sealed).to_pandas(), frame.to_pandas())


def test_tables_that_pandas_made_keep_its_dtypes():
    frame = pd.DataFrame(
        {
            "Int64": pd.array([1, None, 2**60 + 1], "Int64"),
            "boolean": pd.array([True, None, False], "boolean"),
            "string": pd.array(["a", None, ""], "string"),
            "when": pd.to_datetime(["2024-01-01", None, "2024-03-01"]),
            "zoned": pd.to_datetime(["2024-01-01", None, "2024-03-01"]).tz_localize("Asia/Shanghai"),
            "kind": pd.Categorical(["a", None, "b"]),
        }
    )
    table = pa.Table.from_pandas(frame)
    sealed = kmsdata.encrypt_table(table, list(frame), key=KEY)
    back = kmsdata.decrypt_table(sealed)
    assert back.schema.equals(table.schema, check_metadata=False)
    assert json.loads(back.schema.metadata[b"pandas"]) == json.loads(table.schema.metadata[b"pandas"])
    pd.testing.assert_frame_equal(back.to_pandas(), frame)
    pd.testing.assert_frame_equal(
        sealed.to_pandas().kms.decrypt()[["Int64", "boolean"]], frame[["Int64", "boolean"]]
    )
    assert (
        kmsdata.decrypt_table(kmsdata.encrypt_table(pa.table({"a": [1]}), "a", key=KEY)).schema.metadata
        is None
    )


def test_frames_and_tables_read_each_other():
    frame = pd.DataFrame({"n": [1, 2, 3], "s": ["a", "b", None], "c": pd.Categorical(["u", "v", "u"])})
    enc = frame.kms.encrypt(list(frame), key=KEY)
    table = kmsdata.decrypt_table(pa.Table.from_pandas(enc))
    assert table.column("n").to_pylist() == [1, 2, 3]
    assert table.column("s").to_pylist() == ["a", "b", None]
    assert table.column("c").to_pylist() == ["u", "v", "u"]


def test_a_frames_file_read_by_arrow_decrypts_to_its_dtypes_and_is_written_as_plain(tmp_path):
    frame = pd.DataFrame(
        {
            "n": pd.array([2**60 + 1, None, 3], "Int64"),
            "raw": [b"a", None, b"ccc"],
            "text": pd.array(["a", None, ""], "string"),
            "kept": [1, 2, 3],
        }
    )
    frame.kms.encrypt(list(frame), key=KEY).kms.to_parquet(tmp_path / "enc.parquet")
    sealed = pq.read_table(tmp_path / "enc.parquet")
    back = kmsdata.decrypt_table(sealed)
    pd.testing.assert_frame_equal(back.to_pandas(), frame)
    # A file that other software writes from it is plain: no entry remains that would declare cells.
    pq.write_table(back, tmp_path / "plain.parquet")
    pd.testing.assert_frame_equal(kmsdata.read_parquet(tmp_path / "plain.parquet", decrypt=True), frame)
    assert b"kmsdata" not in back.schema.metadata
    # After partial decryption: the entry names the columns still encrypted, and those encrypted again.
    pq.write_table(kmsdata.decrypt_table(sealed, ["raw", "kept"]), tmp_path / "part.parquet")
    assert kmsdata.verify(tmp_path / "part.parquet", encrypted=["n", "text"]).exit_status == 0
    again = kmsdata.encrypt_table(pq.read_table(tmp_path / "part.parquet"), ["kept"], key=KEY)
    pq.write_table(again, tmp_path / "again.parquet")
    assert list(parse_file(again.schema.metadata[b"kmsdata"].decode())) == ["kept", "n", "text"]
    for path in ("part.parquet", "again.parquet"):
        pd.testing.assert_frame_equal(kmsdata.read_parquet(tmp_path / path, decrypt=True), frame)


# Joins.


def test_two_frames_join_where_they_share_data_key_domain_and_kind(titanic):
    left = titanic[["ticket", "name"]].kms.encrypt("name", deterministic="ticket", key=KEY)
    right = titanic[["ticket", "fare"]].rename(columns={"ticket": "no"})
    right = right.kms.encrypt("fare", deterministic="no", key=left, domain="ticket")
    joined = left.merge(right, left_on="ticket", right_on="no").kms.decrypt()
    plain = titanic[["ticket", "name"]].merge(
        titanic[["ticket", "fare"]].rename(columns={"ticket": "no"}), left_on="ticket", right_on="no"
    )
    pd.testing.assert_frame_equal(joined, plain)


def test_a_uri_makes_a_new_data_key_at_each_call(titanic):
    one, two = (titanic.kms.encrypt(deterministic="ticket", key=KEY) for _ in range(2))
    with pytest.raises(TypeError, match="different data keys"):
        one.merge(two, on="ticket")
    key = kmsdata.data_key(one)
    assert len(one.merge(titanic.kms.encrypt(deterministic="ticket", key=key), on="ticket")) == len(
        titanic.merge(titanic, on="ticket")
    )


def test_data_key_of_what_is_encrypted(titanic, tmp_path):
    enc = titanic.kms.encrypt("age", key=KEY)
    enc.kms.to_parquet(tmp_path / "t.parquet")
    keys = [
        kmsdata.data_key(x)
        for x in (
            enc,
            enc["age"],
            pa.Table.from_pandas(enc),
            tmp_path / "t.parquet",
            str(tmp_path / "t.parquet"),
        )
    ]
    assert len({key.commitment for key in keys}) == 1
    with pytest.raises(ValueError, match="2 data keys"):
        kmsdata.data_key(enc.kms.encrypt("fare", key=KEY))
    with pytest.raises(ValueError, match="nothing in the data"):
        kmsdata.data_key(titanic)


# Every value, through everything.


def values():
    day = dt.date(2024, 2, 29)
    return {
        "int8": pd.Series([1, -2, 3], dtype="int8"),
        "nan payload": pd.Series(np.array([0x7FF8000000000001, 0xFFF8000000000000, 0], "u8").view("f8")),
        "Float64": pd.Series(
            pd.arrays.FloatingArray(np.array([np.nan, 1, 2]), np.array([False, False, True]))
        ),
        "boolean": pd.Series([True, None, False], dtype="boolean"),
        "object nulls": pd.Series(["a", None, np.nan], dtype=object),
        "category": pd.Series(
            pd.Categorical(["b", None, "a"], categories=["a", "b", "unused"], ordered=True)
        ),
        "tz": pd.Series(pd.to_datetime(["2024-01-01", None, "2024-07-01"]).tz_localize("Asia/Shanghai")),
        "timedelta": pd.Series(pd.to_timedelta([1, None, 3], unit="s")),
        "period": pd.Series(pd.PeriodIndex(["2024-01", None, "2024-03"], freq="M")),
        "interval": pd.Series(pd.IntervalIndex.from_tuples([(0, 1), None, (1, 2)], closed="both")),
        "decimal": pd.Series([decimal.Decimal("2.50"), None, decimal.Decimal("1E+3")], dtype=object),
        "date": pd.Series([day, None, day], dtype=object),
        "uuid": pd.Series([uuid.UUID(int=5), None, uuid.UUID(int=7)], dtype=object),
        "mixed": pd.Series([1, "one", (1, 2.5)], dtype=object),
        "bytes": pd.Series([b"\x00", b"", None], dtype=object),
        "arrow list": pd.Series([[1], None, []], dtype=pd.ArrowDtype(pa.list_(pa.int64()))),
        "arrow struct": pd.Series(
            [{"a": 1}, None, {"a": 2}], dtype=pd.ArrowDtype(pa.struct([("a", pa.int8())]))
        ),
    }


@pytest.mark.parametrize("name", values())
def test_every_kind_of_value_through_a_file(name, tmp_path):
    frame = pd.DataFrame({"v": values()[name]})
    enc = frame.kms.encrypt("v", key=KEY)
    for back in (enc.kms.decrypt(), _through_file(enc, tmp_path / "x.parquet")):
        pd.testing.assert_frame_equal(back, frame)
        if frame["v"].dtype == object:
            for one, two in zip(back["v"], frame["v"], strict=True):
                assert type(one) is type(two)
                assert repr(one) == repr(two)
        if frame["v"].dtype == "float64":
            assert back["v"].to_numpy().tobytes() == frame["v"].to_numpy().tobytes()


def _through_file(enc, path):
    enc.kms.to_parquet(path)
    return kmsdata.read_parquet(path, decrypt=True)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]))),
            st.integers(-(2**63), 2**63 - 1),
            st.floats(),
            st.one_of(st.none(), st.binary(max_size=40)),
        ),
        max_size=30,
    ),
    st.booleans(),
)
def test_any_values(tmp_path, rows, deterministic):
    frame = pd.DataFrame(
        {
            "t": pd.Series([row[0] for row in rows], dtype=object),
            "i": pd.Series([row[1] for row in rows], dtype="int64"),
            "f": pd.Series([row[2] for row in rows], dtype="float64"),
            "b": pd.Series([row[3] for row in rows], dtype=object),
        }
    )
    enc = frame.kms.encrypt(list("tifb"), deterministic=list("tib") if deterministic else (), key=KEY)
    back = _through_file(enc, tmp_path / "x.parquet")
    pd.testing.assert_frame_equal(back, frame)
    assert back["f"].to_numpy().tobytes() == frame["f"].to_numpy().tobytes()
    for column in "tb":
        assert [*back[column]] == [*frame[column]]


# Other readers.


def test_cells_are_standard_ciphertexts(titanic):
    """As Spark's aes_decrypt(substring(cell, 6), ...) would read them: IV, ciphertext, tag."""
    enc = titanic.kms.encrypt(["name", "age"], deterministic="ticket", key=KEY)
    keys = {name: json.loads(kmsdata.export_keyset(enc, name).json())["key"][0] for name in enc.kms.encrypted}
    import base64

    for name in ("name", "age"):
        key = base64.b64decode(keys[name]["keyData"]["value"])[-32:]
        for cell, value in list(zip(enc[name].dropna(), titanic[name].dropna(), strict=True))[:20]:
            raw = bytes(cell)
            assert raw[0] == 1
            assert int.from_bytes(raw[1:5], "big") == keys[name]["keyId"]
            plain = AESGCM(key).decrypt(raw[5:17], raw[17:], b"")
            assert plain == (value.encode() if name == "name" else np.float64(value).tobytes())
    key = base64.b64decode(keys["ticket"]["keyData"]["value"])[-64:]
    assert AESSIV(key).decrypt(bytes(enc["ticket"].iloc[0])[5:], [b""]).decode() == titanic["ticket"].iloc[0]


@pytest.mark.newest
def test_tink_reads_and_writes_cells(titanic, tmp_path):
    import tink
    from tink import aead, cleartext_keyset_handle, daead

    aead.register()
    daead.register()
    enc = titanic.kms.encrypt("name", deterministic="ticket", key=KEY)
    enc.kms.to_parquet(tmp_path / "t.parquet")

    def handle(column):
        text = kmsdata.export_keyset(tmp_path / "t.parquet", column).json()
        return cleartext_keyset_handle.read(tink.JsonKeysetReader(text))

    randomised = handle("name").primitive(aead.Aead)
    exact = handle("ticket").primitive(daead.DeterministicAead)
    for row in range(50):
        assert randomised.decrypt(bytes(enc["name"].iloc[row]), b"").decode() == titanic["name"].iloc[row]
        ticket = titanic["ticket"].iloc[row]
        assert exact.decrypt_deterministically(bytes(enc["ticket"].iloc[row]), b"").decode() == ticket
        assert exact.encrypt_deterministically(ticket.encode(), b"") == bytes(enc["ticket"].iloc[row])
    written = kmsdata.Cell(randomised.encrypt("Müller, Frau Eva".encode(), b""), enc["name"].dtype)
    enc.loc[0, "name"] = written
    assert enc.kms.decrypt()["name"].iloc[0] == "Müller, Frau Eva"


WITHOUT = """
import sys, pandas as pd
frame = pd.read_parquet(sys.argv[1])
assert "kmsdata" not in sys.modules
assert type(frame["name"].iloc[0]) is bytes and frame["name"].iloc[0][0] == 1
assert frame["pclass"].sum() > 0 and frame["name"].notna().all() and frame["age"].isna().sum() == 263
import os; os._exit(0)  # threads of pyarrow 17 may abort an interpreter that is leaving
"""


@pytest.mark.parametrize("plain", [False, True])
def test_pandas_without_kmsdata_sees_bytes(titanic, tmp_path, plain):
    enc = titanic.kms.encrypt(["name", "age"], deterministic="sex", key=KEY)
    path = tmp_path / "t.parquet"
    enc.to_parquet(path) if plain else enc.kms.to_parquet(path)
    subprocess.run([sys.executable, "-c", WITHOUT, str(path)], check=True)


@pytest.mark.newest
def test_duckdb_and_polars_see_bytes_and_what_they_write_back_decrypts(titanic, tmp_path):
    import duckdb
    import polars

    enc = titanic.kms.encrypt(["name", "age"], deterministic="ticket", key=KEY)
    path = tmp_path / "t.parquet"
    enc.kms.to_parquet(path)
    counted = duckdb.sql(f"select ticket, count(*) n from '{path}' group by 1 order by n desc limit 1")  # noqa: S608
    ((ticket, most),) = counted.fetchall()
    assert (type(ticket), most) == (bytes, int(titanic["ticket"].value_counts().iloc[0]))
    frame = polars.read_parquet(path)
    assert frame.height == len(titanic)
    frame.filter(polars.col("pclass") == 1).write_parquet(tmp_path / "p.parquet")
    back = kmsdata.read_parquet(tmp_path / "p.parquet", decrypt=True)
    wanted = titanic[titanic["pclass"] == 1].reset_index(drop=True)
    pd.testing.assert_frame_equal(back[["name", "age", "ticket"]], wanted[["name", "age", "ticket"]])


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string()], ids=str)
@pytest.mark.parametrize("deterministic", [False, True])
def test_strings_of_pandas_in_any_text_type_of_arrow_come_back_in_both(type_, deterministic, tmp_path):
    """pandas 2 writes its strings as ``string``, pandas 3 as ``large_string``."""
    frame = pd.DataFrame({"text": pd.Series(["a", None, "ß"], dtype="string")})
    table = pa.Table.from_pandas(frame)
    table = table.set_column(0, pa.field("text", type_), table.column("text").cast(type_))
    sealed = kmsdata.encrypt_table(table, "text", deterministic=deterministic, key=KEY)
    pq.write_table(sealed, tmp_path / "sealed.parquet")
    back = kmsdata.read_parquet(tmp_path / "sealed.parquet").kms.decrypt()
    pd.testing.assert_frame_equal(back, frame)
    assert kmsdata.decrypt_table(sealed).equals(table)
    pq.write_table(table, tmp_path / "plain.parquet")
    kmsdata.encrypt_parquet(tmp_path / "plain.parquet", tmp_path / "file.parquet", ["text"], key=KEY)
    pd.testing.assert_frame_equal(kmsdata.read_parquet(tmp_path / "file.parquet").kms.decrypt(), frame)
    kmsdata.decrypt_parquet(tmp_path / "file.parquet", tmp_path / "back.parquet")
    assert pq.read_schema(tmp_path / "back.parquet").field("text").type == type_
