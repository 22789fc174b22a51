"""Cells go through other software, which drops their headers, and come back by attach()."""

import io
import subprocess
import sys

import pandas as pd
import pandas.testing as tm
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import kmsdata
from kmsdata import EncryptedDtype, FormatError

KEY = "local://demo"
ALL = ["name", "age", "score", "void", "city", "zip"]


@pytest.fixture
def df():
    return pd.DataFrame(
        {
            "id": range(6),
            "name": ["Ada", "Bo", "张伟", None, "", "Zoë"],
            "age": [36, 41, -1, 2**53 + 1, 0, 7],
            "score": pd.array([1, None, 3, 4, None, 6], "Int64"),
            "void": pd.Series([None] * 6, dtype="str"),
            "city": pd.Categorical(
                ["Oslo", "Rome", None, "Oslo", "Bern", "Rome"], ["Rome", "Oslo", "Bern", "X"]
            ),
            "zip": [150, 184, 184, 150, 3000, 184],
        }
    )


@pytest.fixture
def enc(df):
    return df.kms.encrypt(ALL[:4], deterministic=ALL[4:], key=KEY)


@pytest.fixture
def file(enc, tmp_path):
    enc.kms.to_parquet(tmp_path / "original.parquet")
    return tmp_path / "original.parquet"


def in_python(code, *arguments):
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, capture_output=True)


def through_pandas(file, out):
    code = (
        "import sys, pandas as pd\n"
        "pd.read_parquet(sys.argv[1]).sort_values('id').to_parquet(sys.argv[2])\n"
        "assert 'kmsdata' not in sys.modules\n"
    )
    in_python(code, file, out)
    return pd.read_parquet(out)


def through_duckdb(file, out):
    import duckdb

    duckdb.read_parquet(str(file)).order("id").write_parquet(str(out))  # its COPY
    return kmsdata.read_parquet(out)


def through_polars(file, out):
    import polars as pl

    # Polars keeps extension types that it does not know; a cast to their storage drops the header.
    table = pq.read_table(file)
    for position, field in enumerate(table.schema):
        if isinstance(field.type, kmsdata.EncryptedType):
            storage = pa.chunked_array([part.storage for part in table.column(position).chunks])
            table = table.set_column(position, field.name, storage)
    pl.from_arrow(table).sort("id").write_parquet(out)
    return kmsdata.read_parquet(out)


def through_spark(file, out):
    """What Spark writes: no Arrow schema, no entry of ours, plain binary columns."""
    table = pq.read_table(file)
    columns = {}
    for field in table.schema:
        column = table.column(field.name)
        if isinstance(field.type, kmsdata.EncryptedType):
            column = pa.chunked_array([part.storage.cast(pa.binary()) for part in column.chunks])
        columns[field.name] = column
    pq.write_table(pa.table(columns), out, store_schema=False)
    return kmsdata.read_parquet(out)


def through_csv(file, out):
    kmsdata.read_parquet(file).to_csv(out, index=False)
    return pd.read_csv(out)


def through_arrow_csv(file, out):
    kmsdata.read_parquet(file).to_csv(out, index=False)
    options = pyarrow.csv.ConvertOptions(strings_can_be_null=True)
    return pyarrow.csv.read_csv(out, convert_options=options).to_pandas(types_mapper=pd.ArrowDtype)


WAYS = [through_pandas, through_duckdb, through_polars, through_spark, through_csv, through_arrow_csv]


@pytest.mark.newest
@pytest.mark.parametrize("way", WAYS)
def test_a_way_through_other_software_and_back(way, file, enc, df, tmp_path):
    lost = way(file, tmp_path / "out")
    with pytest.raises(FormatError, match="attach"):
        lost.kms.decrypt()
    before = kmsdata.usage().calls
    for like in (file, str(file), enc, pa.Table.from_pandas(enc), [enc.iloc[:2], file]):
        attached = lost.kms.attach(like)
        assert attached.kms.encrypted == ALL
        tm.assert_frame_equal(kmsdata.attach(lost, like), attached)
    assert kmsdata.usage().calls == before
    tm.assert_frame_equal(attached.kms.decrypt().astype({"id": "int64"}), df)
    assert not any(isinstance(dtype, EncryptedDtype) for dtype in lost.dtypes)  # new data
    assert kmsdata.verify(attached, encrypted=ALL).ok


def test_tables_and_other_dataframes(file, enc, df, tmp_path):
    lost = pa.Table.from_pandas(through_csv(file, tmp_path / "x.csv"))
    attached = kmsdata.attach(lost, file)
    assert kmsdata.decrypt_table(attached).column("age").to_pylist() == df["age"].tolist()
    assert kmsdata.inspect(attached).encrypted == ALL

    class Frame:
        def __arrow_c_stream__(self, requested_schema=None):
            return lost.__arrow_c_stream__(requested_schema)

    assert kmsdata.attach(Frame(), enc).equals(attached)
    with pytest.raises(TypeError, match="takes a frame or an Arrow table"):
        kmsdata.attach(3, enc)


def test_every_form_of_bytes_and_text(enc, df):
    raw, text = enc["name"].array.storage.to_pylist(), enc["name"].astype(str).tolist()
    text = [None if cell is None else value for cell, value in zip(raw, text, strict=True)]
    forms = {
        "bytes": pd.Series(raw, dtype=object),
        "memoryview": pd.Series([None if cell is None else memoryview(cell) for cell in raw], dtype=object),
        "text": pd.Series(text, dtype=object),
        "string": pd.Series(text, dtype="string"),
        "binary": pd.Series(raw, dtype=pd.ArrowDtype(pa.binary())),
        "large binary": pd.Series(raw, dtype=pd.ArrowDtype(pa.large_binary())),
        "category": pd.Series(raw, dtype=object).astype("category"),
        "category of text": pd.Series(text).astype("category"),
    }
    for name, form in forms.items():
        lost = enc.assign(name=form)
        tm.assert_series_equal(lost.kms.attach(enc).kms.decrypt()["name"], df["name"])
        if "category" not in name:
            cast = form.astype(enc["name"].dtype)
            tm.assert_series_equal(cast.rename("name").kms.decrypt(), df["name"])
    lost = enc.assign(zip=enc["zip"].array.storage.to_pylist()).set_index(["id", "zip"])
    assert lost.kms.attach(enc).kms.encrypted == ["name", "age", "score", "void", "city", "zip"]
    assert lost.kms.attach(enc).kms.decrypt().index.get_level_values("zip").tolist() == df["zip"].tolist()
    back = enc.assign(name=forms["bytes"]).set_index("name").kms.attach(enc).kms.decrypt()
    assert back.index.tolist()[:3] == ["Ada", "Bo", "张伟"]


def test_astype_takes_no_other_bytes(enc):
    for value in (b"plain", b"\x01" * 20, b"\x02" * 40):
        with pytest.raises(TypeError, match="not a cell"):
            pd.Series([value], dtype=object).astype(enc["name"].dtype)


def test_columns(enc, df):
    lost = enc.assign(**{name: enc[name].array.storage.to_pylist() for name in ("name", "zip")})
    assert lost.kms.attach(enc, "zip").kms.encrypted == ["age", "score", "void", "city", "zip"]
    renamed = lost.rename(columns={"zip": "code"})
    attached = renamed.kms.attach(enc, {"code": "zip"})
    assert attached.kms.decrypt(["code"])["code"].tolist() == df["zip"].tolist()
    assert lost.kms.attach(enc, ["age", "zip"])["age"].array is not None  # age has its header: left alone
    assert kmsdata.attach(lost, enc["zip"]).kms.encrypted == ["age", "score", "void", "city", "zip"]
    plain = df.assign(name=enc["name"].array.storage.to_pylist())
    assert plain.kms.attach(enc).kms.encrypted == ["name", "void"]  # a column of nulls may be one of cells
    for use, error, text in (
        (lambda: lost.kms.attach(enc, "nme"), KeyError, "nme"),
        (lambda: renamed.kms.attach(enc, "code"), KeyError, "like has no encrypted column 'code'"),
        (lambda: df.kms.attach(enc, "age"), FormatError, "does not contain cells"),
        (lambda: df.kms.attach(enc, "name"), FormatError, "does not contain cells"),
        (lambda: df.drop(columns="void").kms.attach(enc), ValueError, "contain no cells here"),
        (lambda: lost.kms.attach(df), FormatError, "nothing in like is encrypted"),
        (lambda: lost.kms.attach(enc, []), ValueError, "names no column"),
        (lambda: lost.kms.attach(3), TypeError, "int"),
    ):
        with pytest.raises(error, match=text):
            use()


@pytest.mark.parametrize("value", ["unknown", "enc:AZz"])
def test_one_value_that_is_no_cell_does_not_hide_a_column(enc, df, value):
    """Otherwise the other columns would be decrypted, and this one returned as it is, without a word."""
    lost = pd.read_csv(io.StringIO(enc.to_csv(index=False)))
    lost["name"] = [value, *lost["name"][1:]]
    with pytest.raises(FormatError, match="'name' is encrypted in the original, but not all"):
        lost.kms.attach(enc)
    decrypted = enc.kms.decrypt("name")
    assert decrypted.kms.attach(enc)["name"].tolist() == df["name"].tolist()  # plain on purpose


def test_text_that_other_software_made_of_cells_is_named(enc):
    lost = pd.DataFrame({"name": [str(bytes(cell)) for cell in enc["name"].dropna()]})
    with pytest.raises(FormatError, match="a CSV file contains cells only if"):
        lost.kms.attach(enc)


def test_cells_of_another_key_are_refused_without_a_kms_call(enc, df, tmp_path):
    other = df.kms.encrypt(ALL[:4], deterministic=ALL[4:], key="local://other")
    other.kms.to_parquet(tmp_path / "other.parquet")
    lost = enc.assign(name=enc["name"].array.storage.to_pylist())
    before = kmsdata.usage().calls
    for like in (other, tmp_path / "other.parquet", pa.Table.from_pandas(other)):
        with pytest.raises(FormatError, match=r"'name' has cells with 1 key ids") as caught:
            lost.kms.attach(like)
        assert caught.value.column == "name"
    with pytest.raises(FormatError, match="key ids"):
        lost.kms.attach(enc, {"name": "age"})
    assert kmsdata.usage().calls == before
    assert lost.kms.attach([other, enc]).kms.decrypt()["name"].tolist() == df["name"].tolist()
    # A frame that holds no cells has no key ids to compare with.
    assert lost.kms.attach(enc.iloc[:0]).kms.decrypt()["name"].tolist() == df["name"].tolist()


def test_headers_of_several_are_united(enc, df):
    other = df.kms.encrypt(ALL[:4], deterministic=ALL[4:], key="local://other")
    both = pd.concat([enc, other], ignore_index=True)
    lost = both.assign(name=both["name"].array.storage.to_pylist())
    attached = lost.kms.attach([enc, other], "name")
    assert attached["name"].dtype == both["name"].dtype
    assert attached.kms.decrypt(["name"])["name"].tolist() == [*df["name"], *df["name"]]
    with pytest.raises(FormatError, match="key ids"):
        lost.kms.attach(enc, "name")


def test_headers_that_cannot_be_united(enc, df):
    domain = df.kms.encrypt(deterministic="zip", key=enc, domain="elsewhere")
    lost = enc.assign(zip=enc["zip"].array.storage.to_pylist())
    with pytest.raises(FormatError, match="'zip' in like cannot be united"):
        lost.kms.attach([enc, domain])


def test_a_table_that_was_read_before_the_import(file, tmp_path):
    code = """
import sys, pyarrow as pa, pyarrow.parquet as pq
table = pq.read_table(sys.argv[1])
import kmsdata, pandas as pd
assert pa.types.is_binary(table.schema.field("name").type), table.schema
assert kmsdata.inspect(table).encrypted == ["name", "age", "score", "void", "city", "zip"]
assert kmsdata.verify(table, encrypted=["name", "zip"]).ok
opened = kmsdata.decrypt_table(table)
assert opened.column("age").to_pylist() == [36, 41, -1, 2**53 + 1, 0, 7]
assert not any(key.startswith(b"ARROW:") for f in opened.schema for key in f.metadata or {})
assert kmsdata.decrypt_table(table, "age").column("age").to_pylist()[0] == 36
assert kmsdata.data_key(table) is not None
try:
    kmsdata.encrypt_table(table, "name", key="local://demo")
except ValueError as error:
    assert "already encrypted" in str(error)
else:
    raise SystemExit("encrypted twice")
frame = table.to_pandas()
try:
    frame.kms.decrypt()
except kmsdata.FormatError as error:
    assert "attach" in str(error)
else:
    raise SystemExit("ciphertext was returned")
assert frame.kms.attach(table).kms.decrypt()["name"].tolist()[:2] == ["Ada", "Bo"]
assert kmsdata.attach(table, sys.argv[1]).schema.field("name").type.dtype
"""
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
