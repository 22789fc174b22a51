"""Frames of Polars, narwhals, DuckDB, DataFusion and Daft go in by Arrow's interface."""

import datetime as dt
import decimal
import subprocess
import sys

import pandas as pd
import pyarrow as pa
import pytest

import kmsdata
from kmsdata import EncryptedType, FormatError, UnsupportedTypeError

KEY = "local://demo"


@pytest.fixture
def table():
    return pa.table({"id": [1, 2, 3], "name": ["Ada", None, "Bo"], "plain": [0.5, 1.5, 2.5]})


@pytest.fixture
def polars_frame():
    import polars as pl

    return pl.DataFrame(
        {
            "text": ["a", None, "c"],
            "int": [1, 2, None],
            "category": pl.Series(["x", "y", "x"], dtype=pl.Categorical),
            "enum": pl.Series(["high", None, "lower"], dtype=pl.Enum(["lower", "high", "never used"])),
            "date": [dt.date(2026, 1, 1)] * 3,
            "time": pl.Series([dt.datetime(2026, 1, 1)] * 3, dtype=pl.Datetime("ns", "Asia/Shanghai")),
            "bytes": [b"x", b"", None],
            "list": [[1], [2, None], None],
            "struct": [{"a": 1}, {"a": None}, None],
            "decimal": pl.Series([decimal.Decimal("1.50")] * 3),
            "clock": [dt.time(1)] * 3,
            "duration": [dt.timedelta(1)] * 3,
            "array": pl.Series([[1, 2]] * 3, dtype=pl.Array(pl.Int8, 2)),
            "bool": [True, None, False],
            "float": [0.5, float("nan"), None],
        }
    )


@pytest.mark.engine("polars")
def test_polars_in_and_out(polars_frame):
    import polars as pl

    df = polars_frame
    sealed = kmsdata.encrypt_table(df, df.columns, key=KEY)
    assert isinstance(sealed, pl.DataFrame)
    assert {dtype.ext_name() for dtype in sealed.dtypes} == {"kmsdata.encrypted"}
    opened = kmsdata.decrypt_table(sealed)
    assert isinstance(opened, pl.DataFrame)
    assert opened.schema == df.schema
    assert opened.equals(df)
    for part in (sealed.slice(1, 1), sealed.clear(), pl.concat([sealed, sealed], rechunk=False)):
        assert kmsdata.decrypt_table(part).schema == df.schema
    assert kmsdata.decrypt_table(sealed.filter(sealed["text"].is_null())).equals(
        df.filter(df["text"].is_null())
    )
    one = kmsdata.encrypt_table(df, "text", deterministic="int", key=KEY)
    assert one.drop("text", "int").equals(df.drop("text", "int"))
    assert kmsdata.decrypt_table(one, "int").drop("text").equals(df.drop("text"))
    assert kmsdata.verify(one, encrypted=["text", "int"]).ok
    assert kmsdata.inspect(one).encrypted == ["text", "int"]
    again = kmsdata.encrypt_table(df, deterministic="int", key=one)
    assert again["int"].ext.storage().equals(one["int"].ext.storage())


@pytest.mark.engine("polars")
def test_categories_of_polars_do_not_stay_in_metadata(polars_frame):
    import polars as pl

    oldest = pl.CompatLevel.oldest()
    for data in (polars_frame, polars_frame.to_arrow(compat_level=oldest), polars_frame.to_arrow()):
        sealed = kmsdata.encrypt_table(data, ["enum", "category"], key=KEY)
        text = sealed.to_arrow().schema.to_string() if data is polars_frame else sealed.schema.to_string()
        assert "lower" not in text
        assert b"never used" not in pa.table(sealed).slice(0, 0).schema.serialize().to_pybytes()


@pytest.mark.engine("polars")
def test_attach_to_polars(polars_frame):
    import polars as pl

    df = polars_frame.select("text", "int", "bool")
    sealed = kmsdata.encrypt_table(df, ["text", "int"], key=KEY)
    without = sealed.with_columns(pl.col("text", "int").ext.storage())
    with pytest.raises(FormatError, match=r"'int' has no kmsdata header|'text' has no kmsdata header"):
        kmsdata.decrypt_table(without)
    attached = kmsdata.attach(without, sealed)
    assert isinstance(attached, pl.DataFrame)
    assert kmsdata.decrypt_table(attached).equals(df)


@pytest.mark.engine("polars")
def test_what_polars_cannot_give(polars_frame):
    import polars as pl

    for use in (lambda x: kmsdata.encrypt_table(x, "text", key=KEY), kmsdata.decrypt_table):
        with pytest.raises(
            TypeError, match=r"a query that has not run \(LazyFrame\). Call .collect\(\) first"
        ):
            use(polars_frame.lazy())
        with pytest.raises(TypeError, match=r"takes a table, not a single column \(Series\).*\.to_frame\(\)"):
            use(polars_frame["text"])
    wide = polars_frame.with_columns(pl.lit(1, pl.Int128).alias("wide"))
    with pytest.raises(UnsupportedTypeError, match=r"column 'wide' has integers of 128 bits.*Cast"):
        kmsdata.encrypt_table(wide, "text", key=KEY)


@pytest.mark.engine("polars")
def test_a_polars_that_drops_headers_gets_a_table(polars_frame, monkeypatch):
    import polars as pl

    def from_arrow(table):
        column = table.column(0)
        return pl.DataFrame({table.column_names[0]: column.combine_chunks().storage.to_pylist()})

    monkeypatch.setattr(pl, "from_arrow", from_arrow)
    sealed = kmsdata.encrypt_table(polars_frame, "text", key=KEY)
    assert isinstance(sealed, pa.Table)
    assert isinstance(sealed.schema.field("text").type, EncryptedType)


@pytest.mark.engine("polars", "narwhals")
@pytest.mark.parametrize("module", ["narwhals", "narwhals.stable.v1", "narwhals.stable.v2"])
def test_narwhals(table, module):
    import importlib

    import polars as pl

    nw = importlib.import_module(module)
    for native in (table, pl.from_arrow(table)):
        df = nw.from_native(native)
        sealed = kmsdata.encrypt_table(df, "name", key=KEY)
        assert type(sealed) is type(df)
        assert type(sealed.to_native()) is type(native)
        opened = kmsdata.decrypt_table(sealed)
        assert type(opened) is type(df)
        assert opened.to_native().equals(native)
        assert kmsdata.verify(sealed).ok
        assert kmsdata.inspect(sealed).encrypted == ["name"]
        assert kmsdata.decrypt_table(sealed, key=sealed).to_native().equals(native)
        kinds = pa.table(sealed.to_native())
        storage = kinds.column("name").combine_chunks().storage
        without = nw.from_native(kinds.set_column(1, "name", storage))
        assert type(kmsdata.attach(without, sealed)) is nw.DataFrame
    wrapped = nw.from_native(table.to_pandas())
    with pytest.raises(TypeError, match=r"For a frame, use df.kms.encrypt"):
        kmsdata.encrypt_table(wrapped, "name", key=KEY)
    frame = table.to_pandas().kms.encrypt("name", key=KEY)
    assert kmsdata.verify(nw.from_native(frame)).ok
    assert kmsdata.inspect(nw.from_native(frame)).encrypted == ["name"]
    lost = nw.from_native(frame.assign(name=frame["name"].astype(object).map(bytes, na_action="ignore")))
    attached = kmsdata.attach(lost, frame)
    assert type(attached) is nw.DataFrame
    pd.testing.assert_frame_equal(attached.to_native().kms.decrypt(), table.to_pandas())


@pytest.mark.engine("duckdb")
def test_duckdb(table):
    import duckdb

    con = duckdb.connect()
    con.register("t", table)
    relation = con.sql("select id, name, plain from t where id < 3 order by id")
    sealed = kmsdata.encrypt_table(relation, "name", key=KEY)
    assert isinstance(sealed, pa.Table)
    assert kmsdata.decrypt_table(sealed).equals(table.slice(0, 2))
    reader = kmsdata.encrypt_table(con.sql("select * from t order by id").to_arrow_reader(), "name", key=KEY)
    assert isinstance(reader, pa.RecordBatchReader)
    assert kmsdata.decrypt_table(reader).read_all().equals(table)
    assert kmsdata.verify(con.sql("select 1 as x")).ok is False
    failing = con.sql(
        "select case when i = 150000 then error('no ' || i) else 'x' end as s from range(200000) r(i)"
    )
    with pytest.raises(OSError, match="no 150000") as caught:
        kmsdata.encrypt_table(failing, "s", key=KEY)
    assert "The source of the stream failed after" in caught.value.__notes__[0]


@pytest.mark.engine("datafusion")
def test_datafusion(table):
    import datafusion

    context = datafusion.SessionContext()
    sealed = kmsdata.encrypt_table(context.from_arrow(table), "name", key=KEY)
    assert isinstance(sealed, pa.Table)
    back = context.from_arrow(sealed)
    assert kmsdata.decrypt_table(back).equals(table)
    assert kmsdata.verify(back, encrypted="name").ok


@pytest.mark.engine("daft")
def test_daft(table):
    import daft

    sealed = kmsdata.encrypt_table(daft.from_arrow(table), "name", key=KEY)
    assert isinstance(sealed, pa.Table)
    back = daft.from_arrow(sealed)
    opened = kmsdata.decrypt_table(back)
    assert opened.cast(table.schema).equals(table)
    assert kmsdata.inspect(back).encrypted == ["name"]


def test_no_library_is_imported():
    code = (
        "import sys, pyarrow as pa, kmsdata\n"
        "kmsdata.inspect(pa.table({'a': [1]}).to_reader())\n"
        "kmsdata.verify(pa.table({'a': [1]}))\n"
        "print([m for m in ('polars', 'narwhals', 'duckdb', 'datafusion', 'daft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
