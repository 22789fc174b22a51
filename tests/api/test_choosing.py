"""Columns chosen by pattern and function, datasets in folders, databases, and the search of a series."""

import re
import sqlite3

import pandas as pd
import pytest

import kmsdata

KEY = "local://demo"


@pytest.fixture
def df():
    return pd.DataFrame(
        {"id": [1, 2, 3], "pii_email": ["a", "b", None], "pii_x": [1.5, 2.0, 3.0], "year": [2025, 2026, 2026]}
    )


def test_columns_by_regular_expression(df):
    assert df.kms.encrypt(regex="^pii_", key=KEY).kms.encrypted == ["pii_email", "pii_x"]
    enc = df.kms.encrypt(regex="email", deterministic=True, key=KEY)
    assert enc["pii_email"].dtype.deterministic
    enc = df.kms.encrypt(regex="^pii_", deterministic="pii_email", key=KEY)
    assert [enc[name].dtype.deterministic for name in enc.kms.encrypted] == [True, False]
    pd.testing.assert_frame_equal(enc.kms.decrypt(), df)


def test_columns_by_function(df):
    enc = df.kms.encrypt(lambda name: name.endswith("x"), deterministic=lambda name: "email" in name, key=KEY)
    assert [enc[name].dtype.deterministic for name in enc.kms.encrypted] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"regex": "zzz"}, "regex='zzz' matches no column: the columns are 'id', "),
        ({"regex": "("}, "regex= is not a regular expression"),
        ({"regex": "x", "columns": "id"}, "columns and regex= were both passed"),
        ({"columns": lambda _: False}, "columns is a function that chooses no column"),
        ({"columns": "id", "deterministic": lambda _: False}, "deterministic= is a function that chooses no"),
    ],
)
def test_choices_of_nothing_are_refused(df, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        df.kms.encrypt(**arguments, key=KEY)


def test_a_series_is_searched(df):
    enc = df.set_index("id").kms.encrypt(deterministic="pii_email", key=KEY)
    found = enc["pii_email"].kms.isin(["b", None])
    pd.testing.assert_series_equal(found, enc.kms.isin("pii_email", ["b", None]))
    assert found.tolist() == [False, True, True]
    assert enc["pii_email"].rename(None).kms.isin("a").tolist() == [True, False, False]


def test_a_dataset_in_folders(df, tmp_path):
    df.loc[0, "id"] = 2**40
    enc = df.assign(city=["Ulm/1", "Bonn", "Ulm/1"]).kms.encrypt(regex="pii", key=KEY)
    enc.kms.to_parquet(tmp_path / "out", partition_cols=["year", "city"], compression="zstd")
    names = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.parquet"))
    assert names == [
        "year=2025/city=Ulm%2F1/part-0.parquet",
        "year=2026/city=Bonn/part-0.parquet",
        "year=2026/city=Ulm%2F1/part-0.parquet",
    ]
    assert kmsdata.verify(tmp_path / "out", encrypted=["pii_email", "pii_x"]).ok
    back = kmsdata.read_parquet(tmp_path / "out", decrypt=True).sort_values("pii_x")
    assert back["pii_x"].tolist() == [1.5, 2.0, 3.0]
    assert back["city"].tolist() == ["Ulm/1", "Bonn", "Ulm/1"]
    with pytest.raises(ValueError, match="contains nulls"):
        enc.assign(city=["a", None, "b"]).kms.to_parquet(tmp_path / "other", partition_cols="city")
    with pytest.raises(FileExistsError, match="without files"):
        enc.kms.to_parquet(tmp_path / "out", partition_cols="year")
    with pytest.raises(ValueError, match="'pii_x', which is encrypted"):
        enc.kms.to_parquet(tmp_path / "other", partition_cols="pii_x")
    with pytest.raises(ValueError, match="names every column"):
        enc[["year"]].kms.to_parquet(tmp_path / "other", partition_cols=["year"])
    assert not (tmp_path / "other").exists()


def test_engines(df, tmp_path):
    enc = df.kms.encrypt("pii_x", key=KEY)
    enc.kms.to_parquet(tmp_path / "a.parquet", engine="pyarrow")
    with pytest.raises(ValueError, match="engine='fastparquet' cannot write encrypted columns"):
        enc.kms.to_parquet(tmp_path / "b.parquet", engine="fastparquet")
    assert not (tmp_path / "b.parquet").exists()


def through_database(enc, connection):
    enc.to_sql("people", connection, index=False)
    lost = pd.read_sql("select * from people", connection)
    assert lost["pii_x"].str.startswith("enc:").all()
    return lost.kms.attach(enc).kms.decrypt()


def test_sqlite3(df):
    enc = df.kms.encrypt("pii_x", deterministic="pii_email", key=KEY)
    connection = sqlite3.connect(":memory:")
    pd.testing.assert_frame_equal(through_database(enc, connection), df)
    kind = connection.execute("select typeof(pii_x), typeof(pii_email) from people order by id").fetchall()
    assert kind == [("text", "text"), ("text", "text"), ("text", "null")]
    connection.close()


@pytest.mark.newest
def test_sqlalchemy(df):
    import sqlalchemy

    engine = sqlalchemy.create_engine("sqlite://")
    enc = df.kms.encrypt("pii_x", deterministic="pii_email", key=KEY)
    pd.testing.assert_frame_equal(through_database(enc, engine), df)
    engine.dispose()


def test_a_guide_column_must_be_a_series(df):
    with pytest.raises(TypeError, match=r"takes one column .* Pass df.name., where name is one of 'id'"):
        kmsdata.migrate_guide_column(df, "wrapped", key=KEY)
    with pytest.raises(TypeError, match="wrapped= takes"):
        kmsdata.migrate_guide_column(df["pii_email"], b"wrapped", key=KEY)
