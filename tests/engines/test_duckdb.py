"""DuckDB: functions for encrypted columns, and files that keep their headers."""

# ruff: noqa: S608 - SQL text is made of names and paths

import datetime as dt
import decimal
import doctest
import importlib
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kmsdata

pytestmark = [pytest.mark.newest, pytest.mark.engine("duckdb")]

KEY = "local://demo"
GUIDE = Path(__file__).parents[2] / "docs" / "duckdb.md"


@pytest.fixture(scope="module")
def kd():
    return importlib.import_module("kmsdata.duckdb")


@pytest.fixture
def con(kd):
    with importlib.import_module("duckdb").connect() as connection:
        yield connection


@pytest.fixture(scope="module")
def errors(kd):
    return importlib.import_module("duckdb")


@pytest.fixture
def df():
    return pd.DataFrame(
        {
            "ssn": ["078-05-1120", None, "219-09-9999", "457-55-5462"],
            "email": ["a@x.org", "b@x.org", None, "a@x.org"],
            "age": [36, 29, 41, 50],
            "city": ["Ulm", "Bonn", "Ulm", "Köln"],
        }
    )


@pytest.fixture
def enc(df):
    return df.kms.encrypt(["ssn", "age"], deterministic="email", key=KEY)


@pytest.fixture
def file(enc, tmp_path):
    enc.kms.to_parquet(tmp_path / "p.parquet")
    return str(tmp_path / "p.parquet")


def rows(con, query, *values):
    return con.execute(query, list(values)).fetchall()


# --- functions --------------------------------------------------------------------------------------


def test_functions_decrypt_and_encrypt(kd, con, df, file):
    before = kmsdata.usage().calls
    names = kd.register(con, like=file)
    assert names == {
        "ssn": ("kms_decrypt_ssn", "kms_encrypt_ssn"),
        "email": ("kms_decrypt_email", "kms_encrypt_email"),
        "age": ("kms_decrypt_age", "kms_encrypt_age"),
    }
    got = rows(
        con,
        f"SELECT kms_decrypt_ssn(ssn), kms_decrypt_email(email), kms_decrypt_age(age), city FROM '{file}'",
    )
    assert got == [tuple(None if pd.isna(x) else x for x in row) for row in df.itertuples(index=False)]
    where = f"SELECT kms_decrypt_age(age) FROM '{file}' WHERE email = kms_encrypt_email(?)"
    assert rows(con, where, "a@x.org") == [(36,), (50,)]
    assert rows(con, where, "no@x.org") == []
    assert rows(
        con, "SELECT kms_decrypt_age(kms_encrypt_age(7)), kms_encrypt_ssn(NULL), kms_decrypt_ssn(NULL)"
    ) == [(7, None, None)]
    assert kmsdata.usage().calls == before + 1


def test_a_constant_gets_another_cell_in_each_row(kd, con, enc, tmp_path):
    kd.register(con, like=enc)
    query = "SELECT count(DISTINCT {}) FROM range(5000)"
    assert rows(con, query.format("kms_encrypt_ssn('x')")) == [(5000,)]
    assert rows(con, query.format("kms_encrypt_age(1)")) == [(5000,)]
    assert rows(con, query.format("kms_encrypt_email('x')")) == [(1,)]
    con.execute("CREATE TABLE t AS SELECT 'x' AS v FROM range(5000)")
    con.execute(f"COPY t TO '{tmp_path}/t.parquet'")  # a dictionary of one entry
    for table in ("t", f"'{tmp_path}/t.parquet'"):
        assert rows(con, f"SELECT count(DISTINCT kms_encrypt_ssn(v)) FROM {table}") == [(5000,)]
    kinds = dict(
        rows(con, "SELECT function_name, stability FROM duckdb_functions() WHERE function_name LIKE 'kms_%'")
    )
    assert kinds.pop("kms_encrypt_email") == "CONSISTENT"
    assert set(kinds.values()) == {"VOLATILE"}


def test_a_plan_shows_no_plaintext(kd, con, enc, file):
    kd.register(con, like=enc)
    cell = "".join(f"\\x{byte:02x}" for byte in bytes(enc["ssn"].iloc[0]))
    query = f"SELECT kms_decrypt_ssn('{cell}'::BLOB) FROM range(3)"
    assert rows(con, query) == [("078-05-1120",)] * 3
    assert "078" not in str(rows(con, f"EXPLAIN {query}"))
    assert "078" not in str(rows(con, f"EXPLAIN ANALYZE SELECT kms_decrypt_ssn(ssn) FROM '{file}'"))


def test_joins_of_deterministic_columns(kd, con, df, enc):
    other = pd.DataFrame({"email": ["a@x.org", "z@x.org"], "n": [1, 2]}).kms.encrypt(
        deterministic="email", key=enc
    )
    con.register("one", pa.table(enc))
    con.register("two", pa.table(other))
    kd.register(con, like=enc)
    query = "SELECT kms_decrypt_email(email), n FROM one JOIN two USING (email)"
    assert rows(con, query) == [("a@x.org", 1)] * 2
    query = "SELECT kms_decrypt_email(email), count(*) FROM one GROUP BY email HAVING count(*) > 1"
    assert rows(con, query) == [("a@x.org", 2)]


@pytest.mark.parametrize("kind", ["frame", "series", "table", "reader", "dataset"])
def test_like_is_anything_with_headers(kd, con, df, enc, tmp_path, kind):
    table = pa.table(enc)
    enc.kms.to_parquet(tmp_path / "set", partition_cols="city")
    like = {
        "frame": enc,
        "series": enc["age"],
        "table": table,
        "reader": pa.RecordBatchReader.from_batches(table.schema, table.to_batches()),
        "dataset": str(tmp_path / "set"),
    }[kind]
    assert kd.register(con, like=like, columns="age") == {"age": ("kms_decrypt_age", "kms_encrypt_age")}
    con.register("one", table)
    assert rows(con, "SELECT kms_decrypt_age(age) FROM one") == [(36,), (29,), (41,), (50,)]


@pytest.mark.engine("polars")
def test_like_is_a_frame_of_polars(kd, con, df, enc):
    frame = importlib.import_module("polars").from_arrow(pa.table(enc))
    kd.register(con, like=frame)
    con.register("one", frame)
    assert rows(con, "SELECT kms_decrypt_age(age) FROM one") == [(36,), (29,), (41,), (50,)]


def test_arguments_are_checked(kd, con, df, enc):
    with pytest.raises(KeyError, match="did you mean 'age'"):
        kd.register(con, like=enc, columns=["agee"])
    with pytest.raises(kmsdata.FormatError, match="nothing in like is encrypted"):
        kd.register(con, like=df)
    with pytest.raises(TypeError, match="not int"):
        kd.register(con, like=5)
    with pytest.raises(kmsdata.FormatError, match="exchanged"):
        kd.register(con, like=enc.rename(columns={"ssn": "age", "age": "ssn"}))
    with pytest.raises(kmsdata.WrongKeyError):
        kd.register(con, like=enc, key=kmsdata.LocalKeystore().create_key("other", quiet=True))
    assert rows(con, "SELECT count(*) FROM duckdb_functions() WHERE function_name LIKE 'kms_%'") == [(0,)]
    kd.register(con, like=enc, key=kmsdata.data_key(enc))


def test_arguments_of_other_types_are_refused(kd, con, enc, file, tmp_path):
    for use in (lambda x: kd.register(x, like=enc), kd.unregister):
        for wrong in (5, None, "a.db"):
            with pytest.raises(TypeError, match=r"con takes a connection, .* not " + type(wrong).__name__):
                use(wrong)
    with pytest.raises(TypeError, match=r"relation takes .* not int"):
        kd.to_parquet(5, tmp_path / "o.parquet", like=enc)
    for query in ("SELECT ssn, ssn FROM f", "SELECT ssn, 1 AS n, 2 AS n FROM f"):
        with pytest.raises(ValueError, match="2 columns are named"):
            kd.to_parquet(
                con.sql(query.replace("FROM f", f"FROM '{file}'")), tmp_path / "o.parquet", like=file
            )
    assert not (tmp_path / "o.parquet").exists()


def test_a_closed_connection_is_called_closed(kd, errors, enc):
    with errors.connect() as closed:
        pass
    with pytest.raises(errors.ConnectionException, match="closed"):
        kd.register(closed, like=enc)


def test_a_column_without_a_name_is_refused_for_copy(kd, con):
    enc = pd.DataFrame({"": ["x"], "n": [1]}).kms.encrypt(["", "n"], key=KEY)
    with pytest.raises(ValueError, match=r"without a name \(''\)"):
        kd.copy_options(enc)
    assert "kmsdata" in kd.copy_options(enc, "n")


def test_registering_again_replaces_and_unregister_removes(kd, con, errors, df, enc):
    kd.register(con, like=enc)
    other = df.kms.encrypt("age", key=KEY)
    kd.register(con, like=other)
    con.register("one", pa.table(enc))
    con.register("two", pa.table(other))
    assert rows(con, "SELECT kms_decrypt_age(age) FROM two LIMIT 1") == [(36,)]
    with pytest.raises(errors.InvalidInputException, match="WrongKeyError: column 'age'"):
        rows(con, "SELECT kms_decrypt_age(age) FROM one")
    assert rows(con, "SELECT kms_decrypt_ssn(ssn) FROM one LIMIT 1") == [("078-05-1120",)]
    with con.cursor() as cursor:
        assert rows(cursor, "SELECT kms_decrypt_age(kms_encrypt_age(5))") == [(5,)]
        with pytest.raises(ValueError, match="kms_decrypt_age exists already"):
            kd.register(cursor, like=other)
        with pytest.raises(ValueError, match="another connection or cursor"):
            kd.unregister(cursor)
    kd.unregister(con)
    kd.unregister(con)
    with pytest.raises(errors.CatalogException):
        rows(con, "SELECT kms_decrypt_age(age) FROM two")


HOSTILE = [
    "first name", 'quo"te', "it's", "身份证", "a;DROP TABLE t;--", "'); DROP TABLE t; --", "select", "1",
    "a.b", "x\ny", "\x1b[2J", "é", "{kmsdata: 'x'}", "$$", "\\",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(kd, con, tmp_path, name):
    path = str(tmp_path / "a.parquet")
    con.execute("CREATE TABLE t AS SELECT 1 AS v")
    enc = pd.DataFrame({name: ["x", None], "n": [1, 2]}).kms.encrypt(name, deterministic="n", key=KEY)
    enc.kms.to_parquet(path)
    found = kd.register(con, like=path)[name]
    assert re.fullmatch(r"kms_decrypt_\w*", found.decrypt)
    quoted = '"' + name.replace('"', '""') + '"'
    assert rows(con, f"SELECT {found.decrypt}({quoted}) FROM '{path}'") == [("x",), (None,)]
    assert rows(con, f"SELECT {found.decrypt}({found.encrypt}('y'))") == [("y",)]
    out = str(tmp_path / "b.parquet")
    con.execute(f"COPY (FROM '{path}') TO '{out}' ({kd.copy_options(path)})")
    assert kmsdata.read_parquet(out, decrypt=True)[name].iloc[0] == "x"
    assert kmsdata.verify(out, encrypted=[name, "n"]).ok
    kd.to_parquet(con.sql(f"FROM '{path}'"), out, like=enc)
    assert kmsdata.read_parquet(out, decrypt=True)[name].iloc[0] == "x"
    assert rows(con, "SELECT * FROM t") == [(1,)]


def test_names_that_would_be_equal_are_refused(kd, con):
    for one, two in (("first name", "first-name"), ("Age", "age"), ("ß", "SS")):
        enc = pd.DataFrame({one: [1], two: [2]}).kms.encrypt([one, two], key=KEY)
        with pytest.raises(ValueError, match=re.escape(repr(one)) + ".*" + re.escape(repr(two))):
            kd.register(con, like=enc)
        assert rows(con, "SELECT count(*) FROM duckdb_functions() WHERE function_name LIKE 'kms_%'") == [(0,)]
        assert len(kd.register(con, like=enc, columns=one)) == 1
        kd.unregister(con)


# --- errors --------------------------------------------------------------------------------------------


def test_errors_are_clear_and_hold_no_plaintext(kd, con, errors, enc, file):
    kd.register(con, like=enc)
    wrong = {
        "SELECT kms_decrypt_ssn(email) FROM f": "WrongKeyError: column 'ssn'",
        "SELECT kms_decrypt_ssn(ssn[1:25]) FROM f": "TamperedError: column 'ssn'",
        "SELECT kms_decrypt_ssn('abc'::BLOB)": "column 'ssn'",
    }
    for query, message in wrong.items():
        with pytest.raises(errors.InvalidInputException, match=message) as caught:
            rows(con, query.replace("FROM f", f"FROM '{file}'"))
        assert not re.search("078|219|x.org", str(caught.value))
        assert caught.value.__context__ is None
    with pytest.raises(errors.BinderException, match="BLOB"):
        rows(con, f"SELECT kms_decrypt_ssn(city) FROM '{file}'")


# --- threads ---------------------------------------------------------------------------------------------


def test_functions_run_in_several_threads(kd, con, tmp_path, monkeypatch):
    df = pd.DataFrame({"ssn": [f"078-{n:07}" for n in range(200_000)]})
    df.kms.encrypt("ssn", key=KEY).kms.to_parquet(tmp_path / "p.parquet", row_group_size=10_000)
    kd.register(con, like=tmp_path / "p.parquet")
    seen, call = set(), kd._Decrypt.__call__
    monkeypatch.setattr(
        kd._Decrypt, "__call__", lambda self, cells: seen.add(threading.get_ident()) or call(self, cells)
    )
    con.execute("SET threads = 4")
    found = rows(
        con,
        f"SELECT count(DISTINCT kms_decrypt_ssn(ssn)), max(kms_decrypt_ssn(ssn)) FROM '{tmp_path}/p.parquet'",
    )
    assert found == [(200_000, "078-0199999")]
    assert len(seen) > 1


def test_functions_use_the_session_in_which_they_were_registered(kd, con, tmp_path):
    mine = kmsdata.LocalKeystore(tmp_path / "mine.json")
    mine.create_key("mine", quiet=True)
    con.execute("SET threads = 4")
    with kmsdata.using(mine):
        enc = pd.DataFrame({"ssn": ["1", "2"]}).kms.encrypt("ssn", key="local://mine")
        enc.kms.to_parquet(tmp_path / "p.parquet")
        kd.register(con, like=enc)
    query = f"SELECT kms_decrypt_ssn(ssn), kms_decrypt_ssn(kms_encrypt_ssn('x')) FROM '{tmp_path}/p.parquet'"
    assert rows(con, query) == [("1", "x"), ("2", "x")]


# --- types -----------------------------------------------------------------------------------------------


def columns():
    null, D = None, decimal.Decimal  # noqa: N806
    moment = dt.datetime(2026, 2, 3, 4, 5, 6)
    yield from ((t, [1, null, 0]) for t in (pa.int8(), pa.int16(), pa.int32(), pa.int64()))
    yield from ((t, [1, null, 0]) for t in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()))
    yield pa.int64(), [-(2**63), 2**63 - 1]
    yield pa.uint64(), [2**64 - 1]
    yield from ((t, [1.5, null, -0.0]) for t in (pa.float32(), pa.float64()))
    yield pa.bool_(), [True, null]
    yield from ((t, ["a", null, "", "ü\0x"]) for t in (pa.string(), pa.large_string(), pa.string_view()))
    yield from ((t, [b"a", null, b"", b"\0\xff"]) for t in (pa.binary(), pa.large_binary()))
    yield pa.binary(3), [b"abc", null]
    yield pa.date32(), [dt.date(2026, 1, 1), null, dt.date(1, 1, 1)]
    yield pa.time32("s"), [dt.time(1, 2, 3), null]
    yield pa.time32("ms"), [dt.time(1, 2, 3, 4000), null]
    yield pa.time64("us"), [dt.time(1, 2, 3, 4), null]
    yield pa.time64("ns"), [1234567890123, null]
    for zone in (None, "UTC", "Europe/Berlin"):
        yield from (
            (pa.timestamp(unit, zone), [moment, null, dt.datetime(1900, 1, 1)])
            for unit in ("s", "ms", "us", "ns")
        )
    yield pa.decimal128(10, 2), [D("1.50"), null]
    yield pa.decimal128(38, 0), [D(10) ** 37, null]
    yield pa.decimal128(38, 38), [D("0.5"), null]
    yield pa.list_(pa.int64()), [[1, null], null, []]
    yield pa.large_list(pa.large_string()), [["x"], null]
    yield pa.list_(pa.int8(), 2), [[1, 2], null]
    yield pa.struct([("a", pa.int64()), ('B "c"', pa.large_string())]), [{"a": 1, 'B "c"': "x"}, null]
    yield pa.map_(pa.string(), pa.int64()), [[("k", 1)], null]
    inner = pa.struct([("d", pa.date32()), ("t", pa.timestamp("us", "Europe/Berlin"))])
    yield pa.list_(inner), [[{"d": dt.date(2020, 1, 1), "t": moment}], null]


def test_every_type_is_exact_in_both_directions(kd, con):
    arrays = [pa.array(values, kind) for kind, values in columns()]
    arrays.append(pa.array(["x", None, "y", "x"]).dictionary_encode())
    arrays.append(
        pa.DictionaryArray.from_arrays(pa.array([1, None, 0], pa.int8()), ["b", "a", "u"], ordered=True)
    )
    both = 0
    for values in arrays:
        plain = pa.table({"c": values})
        for arguments in ({"columns": "c"}, {"deterministic": "c"}):
            try:
                enc = kmsdata.encrypt_table(plain, **arguments, key=KEY)
            except kmsdata.UnsupportedTypeError:
                assert "deterministic" in arguments
                continue
            names = kd.register(con, like=enc)["c"]
            con.register("enc", enc)
            con.register("plain", plain)
            opened = con.sql(f"SELECT {names.decrypt}(c) AS c FROM enc").to_arrow_table()
            assert opened == con.sql("FROM plain").to_arrow_table(), values.type
            sealed = con.sql(f"SELECT {names.encrypt}(c) AS c FROM plain").to_arrow_table()
            back = kmsdata.decrypt_table(kmsdata.attach(sealed, enc))
            assert back.column("c").combine_chunks().equals(values), values.type
            assert back.schema.field("c").type == values.type
            both += 1
    assert both > 60


REFUSED = {
    "half float": pa.array([np.float16(1.5)], pa.float16()),
    "duration": pa.array([dt.timedelta(1)], pa.duration("us")),
    "interval": pa.array([pa.MonthDayNano([1, 2, 3])]),
    "wide decimal": pa.array([decimal.Decimal(1)], pa.decimal256(50, 2)),
    "negative scale": pa.array([decimal.Decimal(100)], pa.decimal128(5, -2)),
    "null": pa.nulls(2),
    "64-bit date": pa.array([dt.date(2020, 1, 1)], pa.date64()),
    "empty struct": pa.array([{}], pa.struct([])),
    "fields alike": pa.array([{"a": 1, "A": 2}], pa.struct([("a", pa.int8()), ("A", pa.int8())])),
    "categories of integers": pa.array([1, 2]).dictionary_encode(),
    "list view": pa.array([[1]], pa.list_view(pa.int64())),
    "nested": pa.array([[dt.timedelta(1)]], pa.list_(pa.duration("us"))),
}


@pytest.mark.parametrize("what", REFUSED)
def test_types_that_duckdb_cannot_hold_are_refused_by_name(kd, con, what):
    enc = kmsdata.encrypt_table(
        pa.table({"odd": REFUSED[what], "n": REFUSED[what].is_null()}), ["odd", "n"], key=KEY
    )
    with pytest.raises(kmsdata.UnsupportedTypeError, match="'odd' is of the type"):
        kd.register(con, like=enc)
    assert rows(con, "SELECT count(*) FROM duckdb_functions() WHERE function_name LIKE 'kms_%'") == [(0,)]
    assert kd.register(con, like=enc, columns="n")


PANDAS = {
    "text": pd.Series(["a", None]),
    "objects": pd.Series(["a", None], dtype=object),
    "objects with nan": pd.Series(["a", np.nan], dtype=object),
    "integers": pd.Series([1, 2]),
    "nullable": pd.Series([1, None], dtype="Int32"),
    "booleans": pd.Series([True, None], dtype="boolean"),
    "moments": pd.Series(pd.to_datetime(["2026-01-02 03:04:05.678", None])),
    "zoned": pd.Series(pd.to_datetime(["2026-01-02 03:04", None])).dt.tz_localize("Asia/Tokyo"),
    "categories": pd.Series(pd.Categorical(["a", None], ["b", "a"])),
    "floats": pd.Series([1.5, 0.25]),
}


@pytest.mark.parametrize("what", PANDAS)
def test_columns_of_pandas_get_cells_of_their_own_header(kd, con, what):
    enc = PANDAS[what].rename("c").to_frame().kms.encrypt("c", key=KEY)
    names = kd.register(con, like=enc)["c"]
    con.register("enc", pa.table(enc))
    sealed = con.sql(f"SELECT {names.encrypt}({names.decrypt}(c)) AS c FROM enc").to_arrow_table()
    back = kmsdata.attach(sealed.to_pandas(), enc).kms.decrypt()
    pd.testing.assert_series_equal(back["c"], PANDAS[what].rename("c"))


def test_objects_that_are_not_text(kd, con, errors):
    enc = pd.DataFrame({"c": ["text", 7]}, dtype=object).kms.encrypt("c", key=KEY)
    kd.register(con, like=enc)
    con.register("enc", pa.table(enc))
    assert rows(con, "SELECT kms_decrypt_c(c) FROM enc LIMIT 1") == [("text",)]
    for query in ("FROM enc", "FROM (FROM enc OFFSET 1)"):
        with pytest.raises(errors.InvalidInputException, match="'c'"):
            rows(con, f"SELECT kms_decrypt_c(c) {query}")


def test_a_value_that_is_no_category_is_refused(kd, con, errors):
    enc = pd.Series(pd.Categorical(["a"]), name="c").to_frame().kms.encrypt("c", key=KEY)
    kd.register(con, like=enc)
    with pytest.raises(errors.InvalidInputException, match="none of the column's categories") as caught:
        rows(con, "SELECT kms_encrypt_c('secret')")
    assert "secret" not in str(caught.value)


def test_cells_of_several_data_keys_are_decrypted_but_not_made(kd, con, df, tmp_path):
    one, two = (df.kms.encrypt("age", key=KEY) for _ in range(2))
    both = pd.concat([one, two], ignore_index=True)
    assert kd.register(con, like=both) == {"age": ("kms_decrypt_age", None)}
    con.register("all_rows", pa.table(both))
    assert rows(con, "SELECT sum(kms_decrypt_age(age)) FROM all_rows") == [(2 * df["age"].sum(),)]


# --- files ------------------------------------------------------------------------------------------------


def test_a_file_of_copy_keeps_its_headers(kd, con, df, enc, file, tmp_path):
    out = str(tmp_path / "o.parquet")
    con.execute(
        f"COPY (FROM '{file}' WHERE city = 'Ulm') TO '{out}' ({kd.copy_options(file)}, COMPRESSION zstd)"
    )
    back = kmsdata.read_parquet(out, decrypt=True)
    assert back["ssn"].tolist() == ["078-05-1120", "219-09-9999"]
    assert kmsdata.verify(out, encrypted=["ssn", "age", "email"]).ok
    assert kmsdata.inspect(out).data_keys[0].keys == (KEY,)
    assert kmsdata.read_parquet(out, filters=[("email", "==", "a@x.org")], decrypt=True)["age"].tolist() == [
        36
    ]
    kd.register(con, like=out)
    assert rows(con, f"SELECT kms_decrypt_ssn(ssn) FROM '{out}' LIMIT 1") == [("078-05-1120",)]


def test_a_decrypted_column_under_its_old_name_is_refused_by_readers(kd, con, enc, file, tmp_path):
    kd.register(con, like=file)
    out = str(tmp_path / "o.parquet")
    query = f"COPY (SELECT kms_decrypt_ssn(ssn) AS ssn, email FROM '{file}') TO '{out}'"
    con.execute(f"{query} ({kd.copy_options(file)})")
    with pytest.raises(kmsdata.FormatError, match="'ssn' is string"):
        kmsdata.read_parquet(out)
    con.execute(f"{query} ({kd.copy_options(file, 'email')})")
    assert kmsdata.read_parquet(out, decrypt=True)["ssn"].iloc[0] == "078-05-1120"
    with pytest.raises(KeyError, match="did you mean 'email'"):
        kd.copy_options(file, "mail")


def test_to_parquet_writes_the_file_that_kmsdata_writes(kd, con, enc, file, tmp_path):
    out = tmp_path / "o.parquet"
    for like in (file, enc, pa.table(enc)):
        kd.to_parquet(con.sql(f"FROM '{file}'"), out, like=like)
        pd.testing.assert_frame_equal(kmsdata.read_parquet(out).kms.decrypt(), enc.kms.decrypt())
        ours, theirs = pq.read_metadata(out), pq.read_metadata(file)
        assert ours.metadata[b"kmsdata"] == theirs.metadata[b"kmsdata"]
        assert [ours.row_group(0).column(n).is_stats_set for n in range(4)] == [False, False, False, True]
        assert pq.read_schema(out).types[:3] == pq.read_schema(file).types[:3]
    kd.register(con, like=file)
    kd.to_parquet(con.sql(f"SELECT kms_decrypt_ssn(ssn) AS ssn, age FROM '{file}'"), out, like=file)
    assert kmsdata.inspect(out).columns[0].encrypted is False
    assert kmsdata.read_parquet(out, decrypt=True)["age"].tolist() == [36, 29, 41, 50]


def test_to_parquet_refuses_what_is_no_cell(kd, con, errors, enc, file, tmp_path):
    out = tmp_path / "o.parquet"
    out.write_bytes(b"before")
    with pytest.raises(kmsdata.FormatError, match="'ssn' does not contain cells"):
        kd.to_parquet(con.sql("SELECT 'plain'::BLOB AS ssn"), out, like=file)
    with pytest.raises(ValueError, match="no column of the relation is encrypted"):
        kd.to_parquet(con.sql("SELECT 1 AS n"), out, like=file)
    with pytest.raises(KeyError, match="'ssn'"):
        kd.to_parquet(con.sql(f"SELECT age FROM '{file}'"), out, like=file, columns="ssn")
    assert out.read_bytes() == b"before"
    swapped = con.sql(f"SELECT ssn AS email, email AS ssn FROM '{file}'")
    kd.to_parquet(swapped, out, like=file)
    assert not kmsdata.verify(out).ok


# --- documents ----------------------------------------------------------------------------------------------


def test_examples_of_the_module(kd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = doctest.testmod(kd, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted > 10
    assert results.failed == 0


def test_examples_of_the_guide(kd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL):
        exec(compile(code, GUIDE.name, "exec"), names)  # noqa: S102
    assert names


def test_a_missing_duckdb_says_the_pip_line(monkeypatch):
    monkeypatch.delitem(sys.modules, "kmsdata.duckdb", raising=False)
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ImportError, match=r'pip install "kmsdata\[duckdb\]"'):
        importlib.import_module("kmsdata.duckdb")
