"""Writing plain data by mistake, operations that mean nothing, and text that is not authenticated."""

import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import kmsdata
from kmsdata import EncryptedDtype, EncryptedType, FormatError

KEY = "local://demo"


@pytest.fixture
def df():
    return pd.DataFrame({"a": [1.5, 2.25, None], "t": ["x", "y", "x"], "r": ["p", "q", "r"]})


@pytest.fixture
def enc(df):
    return df.kms.encrypt(["a", "r"], deterministic="t", key=KEY)


# Writing.


def test_a_frame_without_encrypted_columns_is_not_written(df, tmp_path):
    df.kms.encrypt("a", key=KEY)  # the result is forgotten
    with pytest.raises(
        ValueError, match=r"nothing in this frame is encrypted.*df\.kms\.encrypt\(\) returned"
    ):
        df.kms.to_parquet(tmp_path / "x.parquet")
    assert not list(tmp_path.glob("x*"))


def test_columns_that_must_be_encrypted(df, enc, tmp_path):
    path = tmp_path / "x.parquet"
    enc.kms.to_parquet(path, encrypted=["a", "t"])
    before = path.read_bytes()
    some = df.kms.encrypt("a", key=KEY)
    with pytest.raises(FormatError, match="'t' is not encrypted") as caught:
        some.kms.to_parquet(path, encrypted=["a", "t"])
    assert caught.value.column == "t"
    lost = enc.assign(r=enc["r"].array.storage.to_pylist())
    with pytest.raises(FormatError, match="'r' has no kmsdata header, but looks like cells"):
        lost.kms.to_parquet(path, encrypted="r")
    with pytest.raises(KeyError, match="no column 'ssn'"):
        enc.kms.to_parquet(path, encrypted="ssn")
    with pytest.raises(ValueError, match="names no column"):
        enc.kms.to_parquet(path, encrypted=[])
    assert path.read_bytes() == before
    enc.set_index("t").kms.to_parquet(path, encrypted=["t", "a"])
    assert kmsdata.verify(path, encrypted=["t", "a"]).ok


def test_tables_name_what_must_be_encrypted(df, enc):
    table = pa.Table.from_pandas(df)
    before = kmsdata.usage().calls
    with pytest.raises(FormatError, match="'t' must be encrypted, but is not among") as caught:
        kmsdata.encrypt_table(table, "a", key=KEY, encrypted=["a", "t"])
    assert (caught.value.column, kmsdata.usage().calls) == ("t", before)
    some = kmsdata.encrypt_table(table, "a", key=KEY, encrypted="a")
    both = kmsdata.encrypt_table(some, deterministic="t", key=KEY, encrypted=["a", "t"])  # a is already
    assert kmsdata.verify(both, encrypted=["a", "t"]).ok


# Operations.

REFUSED = {
    "map len": lambda f: f["r"].map(len),
    "apply len": lambda f: f["r"].apply(len),
    "frame map len": lambda f: f.map(len),
    "map float": lambda f: f["a"].map(float),
    "map a part": lambda f: f["r"].map(lambda value: value[:2]),
    "map a mapping": lambda f: f["r"].map({"p": 1}),
    "get_dummies": lambda f: pd.get_dummies(f["t"]),
    "get_dummies columns": lambda f: pd.get_dummies(f, columns=["t"]),
    "get_dummies randomised": lambda f: pd.get_dummies(f["r"]),
    "to_numeric": lambda f: pd.to_numeric(f["a"]),
    "to_datetime": lambda f: pd.to_datetime(f["r"]),
    "cut": lambda f: pd.cut(f["a"], 2),
    "clip": lambda f: f["a"].clip(0, 1),
    "fillna": lambda f: f["a"].fillna(0),
    "one value": lambda f: f["r"].iloc[0] == "p",
    "map a comparison": lambda f: f["t"].map(lambda value: value != "u"),
    "apply a comparison": lambda f: f.apply(lambda row: row["a"] == 1, axis=1),
    "numpy": lambda f: f["a"].to_numpy(object) == 1,
    "in a list": lambda f: "p" in list(f["r"]),
}


@pytest.mark.parametrize("operation", REFUSED)
def test_operations_that_mean_nothing(operation, df, enc):
    REFUSED[operation](
        df.assign(r=pd.to_datetime(["2024"] * 3)) if operation == "to_datetime" else plain(df, operation)
    )
    with pytest.raises(TypeError):
        REFUSED[operation](enc)


def plain(df, operation):
    """Return the frame on which the operation works unencrypted."""
    return df[["r", "t"]] if operation == "frame map len" else df


def test_operations_that_only_move_cells_still_work(enc, df):
    assert enc["a"].copy().equals(enc["a"])
    assert enc["r"].map(str).str.startswith("enc:").all()
    # pandas rounds numbers only, and gives no hook to refuse: round() returns the same cells.
    assert np.round(enc["a"], 1).equals(enc["a"])
    with_number = enc.assign(n=[1.26, 2.0, 3.0])
    assert with_number.round(1)["n"].tolist() == [1.3, 2.0, 3.0]
    assert with_number.round(1).kms.decrypt()["a"].equals(df["a"])
    dummies = pd.get_dummies(enc.assign(plain=["u", "v", "u"]))
    assert "plain_u" in dummies.columns
    assert dummies.kms.decrypt()["t"].tolist() == df["t"].tolist()


def test_concat_with_plain_rows_warns_once_for_each_column(df, enc):
    with pytest.warns(UserWarning, match="concatenated with plain values") as said:
        mixed = pd.concat([enc, df])
    assert len(said) == 3
    assert {warning.filename for warning in said} == {__file__}
    assert mixed["a"].dtype == object
    with pytest.warns(UserWarning, match="concatenated with plain values"):
        pd.concat([df["r"], enc["r"]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pd.concat([enc, enc])
        pd.concat([enc, df.kms.encrypt(["a", "r"], deterministic="t", key=enc)])
        pd.concat([enc, df.drop(columns=["a", "r", "t"]).assign(more=1)])
        if not pd.__version__.startswith("2."):  # it warns about empty frames
            pd.concat([enc, df.iloc[:0]])
        pd.concat([enc, df.add_prefix("other_")], axis=1)


MIXING = {
    "map": lambda f: f["a"].map(lambda cell: 0 if cell is pd.NA else cell),
    "map of a frame": lambda f: f[["a"]].map(lambda cell: 0 if cell is pd.NA else cell),
    "apply": lambda f: f["a"].apply(lambda cell: 0 if cell is pd.NA else cell),
    "index": lambda f: f.set_index("t").index.map(lambda cell, first=f["t"][1]: 0 if cell == first else cell),
}


@pytest.mark.parametrize("mix", MIXING)
def test_map_to_cells_and_plain_values_warns(mix, enc):
    with pytest.warns(UserWarning, match=r"map made cells and plain values of .*'(a|t)'") as said:
        MIXING[mix](enc)
    assert [warning.filename for warning in said] == [__file__]


def test_map_to_cells_or_to_plain_values_does_not_warn(enc):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert enc["a"].map(lambda cell: cell).tolist() == enc["a"].tolist()
        assert enc["a"].map(bool, na_action="ignore").tolist() == [True, True, pd.NA]
        assert enc["a"].map(lambda cell: [cell]).str.len().tolist() == [1, 1, 1]


def test_fillna_along_rows_is_refused_where_it_would_mix(df, enc):
    for fill in (lambda: enc.fillna(0, axis=1), lambda: enc.fillna("x", axis="columns")):
        with pytest.raises(TypeError, match=r"fillna\(axis=1\).*'a'.*without axis=1"):
            fill()
    assert enc.drop(columns="a").assign(n=[1, None, 2]).fillna(0, axis=1)["n"].tolist() == [1, 0, 2]
    assert enc.fillna(enc["a"][0], axis=1)["a"].tolist()[2] == enc["a"][0]
    assert enc.T.fillna(0).shape == (3, 3)


# Text that is not authenticated.


def test_a_type_that_moves_the_cursor_is_printed_escaped(enc):
    header = enc["a"].dtype.header
    evil = header.text.replace('"arrow":"double"', '"arrow":"\\u001b[2J"').replace(
        "float64", "\\u001b[2J\\u202e"
    )
    assert evil != header.text
    dtype = EncryptedDtype(evil)
    for text in (repr(dtype), str(dtype), dtype.name, dtype.called, str(EncryptedType(pa.binary(), dtype))):
        assert text.isprintable(), ascii(text)
    frame = enc.assign(a=kmsdata.EncryptedArray(enc["a"].array.storage, dtype))
    for text in (repr(frame.dtypes), repr(frame), str(frame["a"])):
        assert "\x1b" not in text
    for use in (
        lambda: frame["a"].sum(),
        lambda: frame["a"] < 1,
        lambda: frame["a"].astype(int),
        frame.kms.decrypt,
    ):
        with pytest.raises((TypeError, kmsdata.KmsDataError)) as caught:
            use()
        assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        '{"a":' * 100_000,
        "\udc80",
        '"\\ud800"',
        "9" * 100_000,
        "\x00",
        "null",
        "[]",
        "nan",
    ],
)
def test_malformed_headers_are_format_errors(text):
    dtype = EncryptedDtype(text)
    with pytest.raises(FormatError):
        _ = dtype.header
    assert dtype.parsed is None
    assert (repr(dtype), dtype.deterministic) == ("encrypted[?]", False)
    assert dtype == EncryptedDtype(text)
    assert hash(dtype) == hash(EncryptedDtype(text))
    kind = EncryptedType(pa.binary(), dtype)
    assert EncryptedType.__arrow_ext_deserialize__(pa.binary(), kind.__arrow_ext_serialize__()) == kind
    array = pa.ExtensionArray.from_storage(kind, pa.array([b"\x01aaaa" + bytes(30)] * 2))
    table = pa.table({"c": array})
    frame = table.to_pandas()
    for use in (
        lambda: kmsdata.decrypt_table(table),
        lambda: kmsdata.inspect(table),
        lambda: frame.kms.decrypt(),
        lambda: frame.kms.inspect(),
        lambda: frame.kms.to_parquet("never.parquet"),
        lambda: kmsdata.attach(frame, frame),
    ):
        with pytest.raises(FormatError, match="'c'"):
            use()
    for data in (table, frame):
        found = kmsdata.verify(data)
        assert [failure.column for failure in found.failures] == ["c"]


def test_malformed_pandas_metadata_is_a_format_error(enc):
    table = pa.Table.from_pandas(enc.assign(plain=1))
    for text in (b"{", b"\xff\xfe", b"[" * 100_000, b"[1]", b'{"columns": 3}', b'{"columns": [3]}'):
        broken = table.replace_schema_metadata({b"pandas": text})
        for use in (kmsdata.decrypt_table, lambda table: kmsdata.encrypt_table(table, "plain", key=KEY)):
            with pytest.raises(FormatError, match="pandas"):
                use(broken)


def test_what_would_be_misread_is_said(tmp_path):
    enc = pd.DataFrame({"x": ["a", "b", "c"], "n": [1, 2, 3]}).kms.encrypt("x", key="local://demo")
    enc.kms.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(TypeError, match="decrypt= must be True or False"):
        kmsdata.read_parquet(tmp_path / "x.parquet", decrypt=["x"])
    enc.to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(kmsdata.FormatError, match="only Parquet files can be decrypted"):
        kmsdata.decrypt_parquet(tmp_path / "x.csv", tmp_path / "y.parquet")
    with pytest.raises(kmsdata.FormatError, match="attach"):
        pd.read_csv(tmp_path / "x.csv").kms.to_parquet(tmp_path / "z.parquet")
    mixed = enc.assign(x=[*enc["x"][:2], "plain"])
    assert "not encrypted in 1 of 3 rows" in str(kmsdata.inspect(mixed))
