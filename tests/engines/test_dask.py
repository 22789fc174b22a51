"""Dask: the words of df.kms on Dask DataFrames, lazily, under one data key, on threads and on processes."""

import base64
import contextlib
import datetime
import decimal
import doctest
import io
import itertools
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import traceback
import types
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pandas.testing as tm
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kmsdata
from kmsdata.api import parts
from kmsdata.emulator import Emulator, Fault
from kmsdata.errors import FormatError, KeyAccessError, KeyServiceError, UnsupportedTypeError, WrongKeyError

pytestmark = [
    pytest.mark.newest,
    pytest.mark.engine("dask.dataframe", "distributed"),
    # Dask 2026.8 reads files without an Arrow schema in a way that pandas 3.1 deprecates.
    pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame:DeprecationWarning"),
]

KEY = "local://demo"
ROWS = 12
SSN = [f"078-05-{number:04d}" for number in range(1120, 1120 + ROWS)]


@pytest.fixture
def dask():
    import dask

    import kmsdata.dask  # noqa: F401 - registers ddf.kms

    with dask.config.set(scheduler="sync"):
        yield dask


@pytest.fixture
def dd(dask):
    import dask.dataframe as dd

    return dd


@pytest.fixture
def df():
    return pd.DataFrame(
        {
            "number": np.arange(ROWS),
            "ssn": SSN,
            "email": [f"person{number % 4}@example.org" for number in range(ROWS)],
            "age": np.arange(20, 20 + ROWS),
        }
    )


def every_dtype():
    two, six = ROWS // 2, ROWS // 6
    mixed = [1, "a", None, decimal.Decimal("1.5"), datetime.date(2026, 1, 1), b"x"]
    return pd.DataFrame(
        {
            "number": np.arange(ROWS),
            "text": pd.Series([None, *SSN[1:]], dtype="str"),
            "arrow_text": pd.array(SSN, dtype="string[pyarrow]"),
            "int8": np.arange(ROWS, dtype="int8"),
            "nullable": pd.array([1, None] * two, dtype="Int64"),
            "bool": [True, False] * two,
            "boolean": pd.array([True, None] * two, dtype="boolean"),
            "float": np.linspace(0, 1, ROWS),
            "category": pd.Categorical(
                ["a", "b", None] * (ROWS // 3), categories=["b", "a", "z"], ordered=True
            ),
            "naive": pd.date_range("2026", periods=ROWS),
            "zoned": pd.date_range("2026", periods=ROWS, tz="Europe/Berlin"),
            "delta": pd.to_timedelta(range(ROWS), unit="s"),
            "period": pd.period_range("2026", periods=ROWS, freq="M"),
            "dicts": pd.Series([{"a": number} for number in range(ROWS)], dtype=object),
            "lists": pd.Series([[number] for number in range(ROWS)], dtype=object),
            "mixed": pd.Series(mixed * six, dtype=object),
            "texts": pd.Series(SSN, dtype=object),
            "decimal": pd.array([decimal.Decimal("1.10")] * ROWS, dtype=pd.ArrowDtype(pa.decimal128(10, 2))),
        }
    )


def partitions(frame):
    return [part.compute() for part in frame.to_delayed()]


def calls():
    used = kmsdata.usage()
    return used.generate_data_key, used.unwrap


# Types.


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
@pytest.mark.parametrize("convert", [True, False])
def test_every_dtype_comes_back(dask, dd, convert, scheduler):
    df = every_dtype()
    names = list(df.columns[1:])
    with dask.config.set({"dataframe.convert-string": convert, "scheduler": scheduler}):
        enc = dd.from_pandas(df, npartitions=3).kms.encrypt(names, key=KEY)
        back = enc.kms.decrypt()
        assert enc.kms.encrypted == names
        assert back._meta["category"].cat.categories.tolist() == [
            "__UNKNOWN_CATEGORIES__"
        ]  # they are encrypted
        for frame, expected in ((enc, enc._meta), (back, df.astype(back.dtypes.drop("category").to_dict()))):
            for part in partitions(frame):
                assert part.dtypes.drop("category").to_dict() == expected.dtypes.drop("category").to_dict()
        for part in partitions(enc):
            tm.assert_frame_equal(part[:0].reset_index(drop=True), enc._meta.reset_index(drop=True))
        tm.assert_frame_equal(back.compute(), df)
        tm.assert_frame_equal(enc.compute().kms.decrypt(), df)


def test_the_dtype_is_that_of_the_source_but_plain_columns_are_converted(dask, dd, df):
    with dask.config.set({"dataframe.convert-string": True}):
        ddf = dd.from_pandas(df, npartitions=2)
        enc = ddf.kms.encrypt("ssn", key=KEY)
        for frame in (enc, ddf[["email", "ssn"]].kms.encrypt("ssn", key=KEY)):
            assert frame.dtypes["email"] == ddf.dtypes["email"] == pd.StringDtype(na_value=pd.NA)
            assert frame.kms.decrypt().dtypes["ssn"] == df.dtypes["ssn"] == "str"
            tm.assert_series_equal(frame.kms.decrypt().compute()["ssn"], df["ssn"])
        ages = dd.from_pandas(pd.Series(SSN, name="ssn"), npartitions=2)
        for series in (ages, ddf["ssn"]):
            assert series.kms.encrypt(key=KEY).kms.decrypt().compute().dtype == "str"
        # An operation of the caller may rely on the dtype that Dask shows.
        later = ddf.assign(ssn=ddf["ssn"] + "x").kms.encrypt("ssn", key=KEY).kms.decrypt()
        assert later.dtypes["ssn"] == later.compute()["ssn"].dtype == pd.StringDtype(na_value=pd.NA)


def test_unknown_categories(dask, dd, df):
    ddf = dd.from_pandas(df.assign(kind=pd.Categorical(["a", "b"] * 6)), npartitions=2)
    unknown = ddf.assign(kind=ddf["kind"].cat.as_unknown())
    before = calls()
    with pytest.raises(UnsupportedTypeError, match=r"column 'kind' has unknown categories.*categorize"):
        unknown.kms.encrypt("kind", key=KEY)
    assert calls() == before
    known = unknown.categorize("kind").kms.encrypt("kind", key=KEY)
    assert known.kms.decrypt().compute()["kind"].tolist() == ["a", "b"] * 6


def test_a_part_with_other_categories_than_planned(dask, dd):
    def other(part):
        return part.assign(kind=pd.Categorical(["x"] * len(part)))

    ddf = dd.from_pandas(pd.DataFrame({"kind": pd.Categorical(["a", "b"] * 6)}), npartitions=2)
    with pytest.raises(ValueError, match=r"column 'kind': a part has other categories"):
        ddf.map_partitions(other, meta=ddf._meta).kms.encrypt("kind", key=KEY).compute()


# Laziness, and one data key.


def test_lazy_and_one_data_key(dask, dd, df):
    def never(part):
        raise AssertionError("computed")

    ddf = dd.from_pandas(df, npartitions=4)
    lazy = ddf.map_partitions(never, meta=ddf._meta)
    before = calls()
    enc = lazy.kms.encrypt("ssn", deterministic="email", key=KEY)
    back = enc.kms.decrypt()
    hits = enc[enc.kms.isin("email", ["person1@example.org"])]
    assert enc.kms.inspect().encrypted == ["ssn", "email"]
    assert repr(enc.kms) == "<ddf.kms: encrypted: 'ssn', 'email'>"
    assert calls() == (before[0] + 1, before[1] + 1)  # isin() unwraps, to encrypt the values
    for frame in (enc, back, hits):
        with pytest.raises(AssertionError, match="computed"):
            frame.compute()
    before = calls()
    enc = ddf.kms.encrypt("ssn", deterministic="email", key=KEY)
    headers = {part["ssn"].dtype.text for part in partitions(enc)}
    assert headers == {enc["ssn"].dtype.text}
    assert calls()[0] == before[0] + 1
    cells = np.concatenate([part["ssn"].array.storage.to_pylist() for part in partitions(enc)])
    assert len({cell[5:17] for cell in cells}) == ROWS  # no IV twice


def test_two_calls_are_two_names(dask, dd, df):
    ddf = dd.from_pandas(df, npartitions=2)
    one, two = (ddf.kms.encrypt("ssn", key=KEY) for _ in range(2))
    assert one._name != two._name
    assert one.kms.decrypt()._name != two.kms.decrypt()._name
    assert one["ssn"].dtype != two["ssn"].dtype
    assert dask.base.tokenize(one["ssn"].dtype) != dask.base.tokenize(two["ssn"].dtype)
    for frame in (one, two):
        assert frame.compute()["ssn"].dtype == frame["ssn"].dtype
    cells = df.kms.encrypt("ssn", key=KEY)["ssn"].array
    assert dask.base.tokenize(cells) == dask.base.tokenize(cells[:])
    assert dask.base.tokenize(cells) != dask.base.tokenize(cells[1:])


# Arguments.


def test_the_arguments_of_encrypt(dask, dd, df):
    ddf = dd.from_pandas(df, npartitions=2)
    assert ddf.kms.encrypt(regex="^s", key=KEY).kms.encrypted == ["ssn"]
    assert ddf.kms.encrypt(lambda name: name != "number", key=KEY).kms.encrypted == ["ssn", "email", "age"]
    every = ddf.kms.encrypt(
        ["ssn", "age"], deterministic=True, domain={"ssn": "people"}, context={"a": "b"}, key=KEY
    )
    about = every.kms.inspect()
    assert [(column.name, column.domain) for column in about.columns if column.encrypted] == [
        ("ssn", "people"), ("age", "age")
    ]  # fmt: skip
    assert about.data_keys[0].context == {"a": "b"}
    same = ddf.kms.encrypt("email", key=every)
    assert same.kms.inspect().data_keys == about.data_keys
    held = ddf.kms.encrypt("email", key=kmsdata.new_data_key(KEY))
    tm.assert_frame_equal(held.kms.decrypt().compute()[["email"]], df[["email"]])
    for arguments, error, message in (
        ({"columns": "snn"}, KeyError, "did you mean 'ssn'"),
        ({"columns": ()}, ValueError, "no column to encrypt"),
        ({"columns": "ssn", "regex": "s"}, ValueError, "both passed"),
        ({"columns": lambda _: False}, ValueError, "chooses no column"),
        ({"columns": "ssn", "domain": "x"}, ValueError, "single deterministic column"),
    ):
        with pytest.raises(error, match=message):
            ddf.kms.encrypt(**arguments, key=KEY)
    with pytest.raises(ValueError, match="already encrypted"):
        same.kms.encrypt("email", key=KEY)
    with pytest.raises(UnsupportedTypeError, match="floats"):
        ddf.assign(f=1.5).kms.encrypt(deterministic="f", key=KEY)
    with pytest.raises(ValueError, match="no key was given"):
        ddf.kms.encrypt("ssn")
    with kmsdata.using(KEY):
        assert ddf.kms.encrypt("ssn").kms.encrypted == ["ssn"]


def test_the_arguments_of_decrypt(dask, dd, df):
    enc = dd.from_pandas(df, npartitions=2).kms.encrypt(["ssn", "age"], context={"a": "b"}, key=KEY)
    assert enc.kms.decrypt("age").kms.encrypted == ["ssn"]
    assert enc.kms.decrypt(key=enc, context={"a": "b"}).compute()["ssn"].tolist() == SSN
    data_key = kmsdata.data_key(enc.compute())
    with pytest.raises(TypeError, match=r"DataKey is secret.*URI") as caught:
        enc.kms.decrypt(key=data_key)
    assert "DataKey" in str(caught.value)
    with pytest.raises(TypeError, match="DataKey is secret"):
        enc.kms.verify(key=data_key)
    with pytest.raises(WrongKeyError, match="local://other"):
        enc.kms.decrypt(key="local://other").compute()
    with pytest.raises(FormatError, match="context"):
        enc.kms.decrypt(context={"a": "c"}).compute()
    with pytest.raises(KeyError, match="no column") as missing:
        enc.kms.decrypt("zz")
    assert "'zz'" in str(missing.value)
    assert "None" not in str(missing.value)  # the index has no name
    with pytest.raises(FormatError, match="not encrypted"):
        enc.kms.decrypt("email")
    with pytest.raises(ValueError, match="on_denied="):
        enc.kms.decrypt(on_denied="null")
    kmsdata.LocalKeystore().create_key("second", quiet=True)
    with kmsdata.using("tencent-kms://ap-guangzhou/k"):
        pinned = enc.kms.decrypt()
    with pytest.raises(WrongKeyError):  # the session of the client decides, also if a worker has none
        pinned.compute()


def test_denied_columns_stay_encrypted(dask, dd, df):
    keystore = kmsdata.LocalKeystore()
    keystore.create_key("other", quiet=True)
    ddf = dd.from_pandas(df, npartitions=2)
    enc = ddf.kms.encrypt("ssn", key=KEY).kms.encrypt("age", key="local://other").persist()
    keystore.disable_key("local://other")
    kept = enc.kms.decrypt(on_denied="keep")
    assert kept.kms.encrypted == ["age"]
    got = kept.compute()
    assert got["ssn"].tolist() == SSN
    assert got["age"].dtype == enc["age"].dtype == kept["age"].dtype
    assert enc.kms.decrypt("age", on_denied="keep").compute().kms.encrypted == ["ssn", "age"]
    with pytest.raises(KeyAccessError):
        enc.kms.decrypt().compute()


# Operations on encrypted columns.


@pytest.fixture
def enc(dask, dd, df):
    return dd.from_pandas(df, npartitions=3).kms.encrypt("ssn", deterministic="email", key=KEY)


def test_operations(dask, dd, df, enc):
    assert enc["email"].nunique().compute() == 4
    assert len(enc.drop_duplicates("email")) == 4
    sums = enc.groupby("email")["age"].sum().to_frame()
    expected = df.groupby("email")[["age"]].sum()
    tm.assert_frame_equal(sums.kms.decrypt().compute().sort_index(), expected)
    means = enc.groupby("email").agg({"age": "mean", "number": "count"}).reset_index().kms.decrypt().compute()
    assert sorted(means["email"]) == sorted(expected.index)
    counts = enc["email"].value_counts().to_frame().kms.decrypt().compute()
    assert counts["count"].to_dict() == df["email"].value_counts().to_dict()
    right = dd.from_pandas(df[["email"]].drop_duplicates().assign(x=range(4)), npartitions=2)
    joined = enc.merge(right.kms.encrypt(deterministic="email", key=enc), on="email").kms.decrypt().compute()
    both = df.merge(right.compute(), on="email")
    tm.assert_frame_equal(
        joined.sort_values("number").reset_index(drop=True)[["number", "ssn", "x"]],
        both[["number", "ssn", "x"]],
    )
    for column in ("email", "number"):
        moved = enc.shuffle(column).kms.decrypt().compute().sort_values("number")
        tm.assert_frame_equal(moved[["ssn", "age"]], df[["ssn", "age"]])
    twice = dd.concat([enc, enc])
    assert twice["ssn"].dtype == enc["ssn"].dtype
    assert twice.kms.decrypt().compute()["ssn"].tolist() == SSN * 2
    moved = enc.repartition(npartitions=5).persist()
    assert moved.npartitions == 5
    tm.assert_frame_equal(moved.kms.decrypt().compute()[["ssn", "email"]], df[["ssn", "email"]])
    indexed = enc.set_index("number").kms.decrypt().compute()
    assert indexed["ssn"].tolist() == SSN
    assert enc[enc["age"] > 25].kms.decrypt().compute()["ssn"].tolist() == SSN[6:]


def test_refused_operations(dask, dd, df, enc):
    for operation in (
        lambda: enc.set_index("email").compute(),
        lambda: enc.set_index("email", sorted=True).compute(),
        lambda: enc.sort_values("email").compute(),
        lambda: enc["email"].max().compute(),
        lambda: enc.groupby("ssn")["age"].sum().compute(),
        lambda: enc["ssn"].nunique().compute(),
        lambda: enc.shuffle("ssn").compute(),
        lambda: enc.merge(enc, on="ssn").compute(),
    ):
        with pytest.raises((TypeError, ValueError), match=r"[Dd]ecrypt (it|the column)"):
            operation()
    foreign = dd.from_pandas(df, npartitions=2).kms.encrypt(deterministic="email", key=KEY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Dask's own, that the dtypes differ
        with pytest.raises(TypeError, match="data key"):
            enc.merge(foreign, on="email").compute()


def test_isin(dask, dd, df, enc):
    wanted = ["person1@example.org", "person3@example.org"]
    found = enc.kms.isin("email", wanted)
    tm.assert_series_equal(found.compute(), df["email"].isin(wanted))
    assert found.dtype == bool
    assert enc[found].kms.decrypt().compute()["ssn"].tolist() == [
        ssn for ssn, email in zip(SSN, df["email"], strict=True) if email in wanted
    ]
    series = enc["email"].kms.isin(wanted[0])
    tm.assert_series_equal(series.compute(), df["email"] == wanted[0])
    data_key = kmsdata.data_key(enc.compute())
    assert enc.kms.isin("email", wanted, key=data_key).sum().compute() == 6  # it stays on the client
    with pytest.raises(TypeError, match="randomised"):
        enc.kms.isin("ssn", SSN[0])
    with pytest.raises(TypeError, match="integer"):
        dd.from_pandas(df, npartitions=2).kms.encrypt(deterministic="age", key=KEY).kms.isin("age", "20")
    with pytest.raises(FormatError, match="not encrypted"):
        enc.kms.isin("age", 20)

    objects = pd.DataFrame({"n": pd.Series([1, 2, 3, None], dtype=object)})
    numbers = dd.from_pandas(objects.kms.encrypt(deterministic="n", key=KEY), npartitions=2)
    assert numbers.kms.isin("n", [2, None]).compute().tolist() == [False, True, False, True]
    with pytest.raises(TypeError, match="cannot"):  # an object column without values could contain any
        numbers.kms.isin("n", "a").compute()

    def mixed(part):
        return part.assign(n=[*part["n"][:-1], "plain"])

    def several(part):
        again = part.kms.decrypt().kms.encrypt(deterministic="n", key=KEY)
        return part.assign(n=pd.Series([again["n"].iloc[0], *part["n"][1:]], part.index, dtype=object))

    with pytest.raises(TypeError, match="plain values as well as cells"):
        numbers.map_partitions(mixed, meta=numbers._meta).kms.isin("n", 2).compute()
    with pytest.raises(WrongKeyError):
        numbers.map_partitions(several, meta=numbers._meta).kms.isin("n", 2).compute()

    other = df.kms.encrypt("ssn", deterministic="email", key=KEY)

    def foreign(part):
        storage = other["email"].array.storage[: len(part)]
        return part.assign(email=kmsdata.EncryptedArray(storage, part["email"].dtype))

    with pytest.raises(WrongKeyError, match="column 'email'"):
        enc.map_partitions(foreign, meta=enc._meta).kms.isin("email", wanted).compute()


def test_series(dask, dd):
    ages = dd.from_pandas(pd.Series([1, 2, 3, 4], name="age"), npartitions=2)
    enc = ages.kms.encrypt(deterministic=True, key=KEY, domain="years", context={"a": "b"})
    assert repr(enc.kms) == "<series.kms: 'age' is encrypted[int64]>"
    tm.assert_series_equal(enc.kms.decrypt(context={"a": "b"}).compute(), ages.compute())
    assert enc.kms.isin([2, 4]).compute().tolist() == [False, True, False, True]
    with pytest.raises(TypeError, match="needs a name"):
        ages.rename(None).kms.encrypt(key=KEY)
    with pytest.raises(FormatError, match="not encrypted"):
        ages.kms.decrypt().compute()


def test_attach(dask, dd, df, tmp_path):
    enc = df.kms.encrypt("ssn", deterministic="email", key=KEY)
    enc.to_csv(tmp_path / "people.csv", index=False)
    enc.kms.to_parquet(tmp_path / "people.parquet")
    for convert in (True, False):
        with dask.config.set({"dataframe.convert-string": convert}):
            lost = dd.read_csv(tmp_path / "people.csv", blocksize=600)
            assert lost.npartitions > 1
            with pytest.raises(FormatError, match="no kmsdata header"):
                lost.kms.decrypt().compute()
            for like in (enc, tmp_path / "people.parquet"):
                found = lost.kms.attach(like)
                assert found.dtypes["ssn"] == enc.dtypes["ssn"]
                assert {part["ssn"].dtype for part in partitions(found)} == {enc["ssn"].dtype}
                assert found.kms.decrypt().compute()["ssn"].tolist() == SSN
            assert lost.kms.attach(enc, "ssn").kms.encrypted == ["ssn"]
            renamed = lost.rename(columns={"ssn": "id"}).kms.attach(enc, {"id": "ssn"})
            assert renamed.kms.encrypted == ["id"]
    ddf = dd.from_pandas(df, npartitions=2)
    with pytest.raises(FormatError, match="does not contain cells"):
        ddf.kms.attach(enc, "ssn").compute()
    with pytest.raises(ValueError, match="contain no cells here"):
        ddf[["age"]].kms.attach(enc)
    with pytest.raises(KeyError, match="no column"):
        lost.kms.attach(enc, "snn")
    with pytest.raises(TypeError, match="save it first"):
        lost.kms.attach(ddf)
    assert found.kms.attach(enc) is not None


# Reports.


def test_inspect(enc):
    found = enc.kms.inspect()
    assert (found.rows, found.bytes, found.columns[0].bytes) == (None, None, None)
    assert "Dask frame of 3 partitions: rows not counted; 2 of 4 columns encrypted" in str(found)
    assert found.to_dict()["rows"] is None
    assert "not counted" in found._repr_html_()


def test_verify(dask, dd, df, enc):
    found = enc.kms.verify(encrypted=["ssn", "email"])
    assert (found.ok, found.rows, found.exit_status) == (True, ROWS, 0)
    assert [(column.name, column.cells, column.nulls) for column in found.columns] == [
        ("ssn", ROWS, 0), ("email", ROWS, 0)
    ]  # fmt: skip
    assert "Dask frame of 3 partitions: authentic; 12 rows" in str(found)

    def changed(part, partition_info=None):
        if partition_info is None or partition_info["number"] != 1:
            return part
        cells = part["ssn"].array.storage.to_pylist()
        cells[2] = cells[2][:-1] + bytes([cells[2][-1] ^ 1])
        return part.assign(ssn=kmsdata.EncryptedArray(pa.array(cells, pa.large_binary()), part["ssn"].dtype))

    bad = enc.map_partitions(changed, meta=enc._meta)
    found = bad.kms.verify(encrypted="age")
    states = {column.name: (column.state, column.cells, column.bad) for column in found.columns}
    assert states == {
        "age": ("not encrypted", 0, 0),
        "ssn": ("failed", ROWS - 1, 1),
        "email": ("authentic", ROWS, 0),
    }
    assert [(one.file, one.column, one.rows) for one in found.failures if one.count] == [
        ("partition 1", "ssn", (2,))
    ]
    with pytest.raises(kmsdata.TamperedError, match="column 'ssn'"):
        bad.kms.decrypt().compute()
    refused = enc.kms.verify(key="local://other")
    assert refused.exit_status == 1


def test_verify_waits_before_the_first_call(dask, enc, monkeypatch):
    waited = []
    monkeypatch.setattr(parts, "_wait_before_first", lambda headers, n: waited.append((set(headers), n)))
    assert enc.kms.verify().ok
    # Three partitions are encrypted, and then verified.
    assert waited == [({"ssn", "email"}, min(3, dask.system.CPU_COUNT))] * 6


# Files.


def test_files_are_those_of_kmsdata(dask, dd, df, tmp_path):
    duckdb = pytest.importorskip("duckdb")
    enc = df.kms.encrypt("ssn", deterministic="email", key=KEY)
    with dask.config.set({"dataframe.convert-string": False}):
        parts = dd.from_pandas(enc, npartitions=3)
        parts.kms.to_parquet(tmp_path / "out", encrypted=(name for name in ("ssn", "email")))
        with dask.config.set({"dataframe.convert-string": True}):
            dd.from_pandas(df, npartitions=3).kms.encrypt("ssn", key=KEY).kms.to_parquet(tmp_path / "other")
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == [f"part-{number:05d}.parquet" for number in range(3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keystore", "other", "out"]
    for number, file in enumerate(files):
        enc[4 * number : 4 * number + 4].kms.to_parquet(tmp_path / "one.parquet")
        mine, its = pq.read_metadata(file).metadata, pq.read_metadata(tmp_path / "one.parquet").metadata
        assert mine == its
        assert file.read_bytes() == (tmp_path / "one.parquet").read_bytes()
        assert b"kmsdata" in mine
    tm.assert_frame_equal(kmsdata.read_parquet(tmp_path / "out", decrypt=True), df)
    tm.assert_frame_equal(pd.read_parquet(tmp_path / "out").kms.decrypt(), df)
    assert kmsdata.verify(tmp_path / "out", encrypted=["ssn", "email"]).ok
    assert kmsdata.inspect(tmp_path / "out").files == 3
    counted = duckdb.read_parquet(f"{tmp_path}/out/*.parquet").aggregate("count(*), sum(age)")
    assert counted.fetchall() == [(12, 306)]
    tm.assert_frame_equal(kmsdata.read_parquet(tmp_path / "other", decrypt=True)[["ssn"]], df[["ssn"]])


def test_an_existing_folder(dask, dd, df, enc, tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    enc.kms.to_parquet(path)
    before = (path / "part-00000.parquet").read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        enc.kms.to_parquet(path)
    assert (path / "part-00000.parquet").read_bytes() == before
    again = kmsdata.dask.read_parquet(path).repartition(npartitions=2)
    again.kms.to_parquet(path, overwrite=True)  # also the folder that is read
    assert len(list(path.iterdir())) == 2
    assert {one.name for one in tmp_path.iterdir()} == {"keystore", "out"}
    assert kmsdata.read_parquet(path, decrypt=True)["ssn"].tolist() == SSN
    (path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        enc.kms.to_parquet(path, overwrite=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file"):
        enc.kms.to_parquet(tmp_path / "file", overwrite=True)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        enc.kms.to_parquet(tmp_path / "missing" / "out")
    (tmp_path / ".kmsdata-1-2-3.tmp").mkdir()  # of a client that was killed
    enc.kms.to_parquet(tmp_path / "other")
    assert not (tmp_path / ".kmsdata-1-2-3.tmp").exists()


@pytest.mark.parametrize("overwrite", [True, False])
def test_nothing_is_left_of_a_failed_write(dask, dd, df, enc, tmp_path, overwrite):
    def fails(part, partition_info=None):
        if partition_info is not None and partition_info["number"] == 2:
            raise ZeroDivisionError
        return part

    path = tmp_path / "out"
    if overwrite:
        enc.kms.to_parquet(path)
    before = {file.name: file.read_bytes() for file in path.iterdir()} if overwrite else None
    with pytest.raises(ZeroDivisionError):
        enc.map_partitions(fails, meta=enc._meta).kms.to_parquet(path, overwrite=overwrite)
    assert [one.name for one in tmp_path.iterdir() if one.name != "keystore"] == (
        ["out"] if overwrite else []
    )
    assert before is None or before == {file.name: file.read_bytes() for file in path.iterdir()}


def test_what_to_parquet_refuses(dask, dd, df, enc, tmp_path):
    ddf = dd.from_pandas(df, npartitions=2)

    def never(part):
        raise AssertionError("computed")

    enc = enc.map_partitions(never, meta=enc._meta)
    for frame, options, error, message in (
        (ddf, {}, ValueError, "nothing in this frame is encrypted"),
        (enc, {"encrypted": "age"}, FormatError, "'age' is not encrypted"),
        (enc, {"engine": "fastparquet"}, ValueError, "only pyarrow"),
        (enc, {"partition_cols": "age"}, ValueError, "partition_cols= is for pandas"),
        (enc.rename(columns={"ssn": "id"}), {}, FormatError, "was encrypted as 'ssn'"),
    ):
        with pytest.raises(error, match=message):
            frame.kms.to_parquet(tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()


def test_indexes_and_objects_in_files(dask, dd, df, tmp_path):
    with dask.config.set({"dataframe.convert-string": False}):
        objects = pd.Series([None] * 4 + ["a"] * 8, dtype=object)
        df = df.assign(note=objects)
        enc = dd.from_pandas(df, npartitions=3).kms.encrypt("ssn", key=KEY)
        enc.kms.to_parquet(tmp_path / "objects")
        back = kmsdata.read_parquet(tmp_path / "objects", decrypt=True)
        assert back["note"].isna().tolist() == objects.isna().tolist()
        # A filter leaves a RangeIndex in some partitions only; the files must be alike.
        enc[enc["age"].isin([20, 21, 22, 23, 24, 25, 27, 31])].kms.to_parquet(tmp_path / "some")
        assert "__index_level_0__" not in pq.ParquetDataset(tmp_path / "some").schema.names
        assert (
            kmsdata.read_parquet(tmp_path / "some", decrypt=True)["ssn"].tolist()
            == SSN[:6] + SSN[7:8] + SSN[11:]
        )
        enc.set_index("number").kms.to_parquet(tmp_path / "named")
        assert kmsdata.read_parquet(tmp_path / "named").index.name == "number"
        enc.kms.to_parquet(tmp_path / "stored", index=True)
        assert kmsdata.read_parquet(tmp_path / "stored").index.tolist() == list(range(ROWS))

        def other(part, partition_info=None):
            number = 0 if partition_info is None else partition_info["number"]
            return part.assign(
                note=pd.Series([(number and "a") or 1] * len(part), index=part.index, dtype=object)
            )

        with pytest.raises(
            TypeError, match=r"column 'note' is string in partition 1, but int64 in partition 0"
        ):
            enc.map_partitions(other, meta=enc._meta).kms.to_parquet(tmp_path / "mixed")
        assert not (tmp_path / "mixed").exists()


def test_names_of_files_sort_by_partition_and_tasks_do_not_list_them(dask, dd, df, tmp_path, monkeypatch):
    for count in (1, 3, 100_000, 100_001, 1_000_001):
        numbers = sorted({0, 1, 9, 99_999, 100_000, 999_999, 1_000_000} & set(range(count)))
        names = [kmsdata.dask._file_name(number, count) for number in numbers]
        assert sorted(names) == names
    assert kmsdata.dask._file_name(7, 100_000) == "part-00007.parquet"
    sizes = []

    def sized(frame, function, *arguments, **options):
        sizes.append(len(pickle.dumps((arguments, options))))
        return map_partitions(frame, function, *arguments, **options)

    map_partitions = dd.DataFrame.map_partitions
    for count in (2, 100):
        enc = dd.from_pandas(pd.concat([df] * 9), npartitions=count).kms.encrypt("ssn", key=KEY)
        with monkeypatch.context() as patch:
            patch.setattr(dd.DataFrame, "map_partitions", sized)
            enc.kms.to_parquet(tmp_path / str(count))
    assert abs(sizes[0] - sizes[1]) < 20


# Reading.


def test_dask_reads_files_of_kmsdata(dask, dd, df, tmp_path):
    df.kms.encrypt("ssn", deterministic="email", key=KEY).kms.to_parquet(tmp_path / "people.parquet")
    for read in (dd.read_parquet, kmsdata.dask.read_parquet):
        frame = read(tmp_path / "people.parquet")
        assert frame.kms.encrypted == ["ssn", "email"]
        tm.assert_frame_equal(frame.kms.decrypt().compute(), df)
        assert (
            frame[frame.kms.isin("email", "person1@example.org")].kms.decrypt().compute()["ssn"].tolist()
            == SSN[1::4]
        )
        assert frame[["age"]].compute()["age"].tolist() == df["age"].tolist()


def test_read_parquet(dask, dd, df, tmp_path):
    df = every_dtype()
    folder = tmp_path / "data"
    folder.mkdir()
    names = [name for name in df if name not in ("number", "arrow_text", "category", "naive", "nullable")]
    for number in range(3):  # each under its own data key
        part = df[4 * number : 4 * number + 4]
        part.kms.encrypt(names, key=KEY).kms.to_parquet(folder / f"{number}.parquet", row_group_size=1)
    for convert in (True, False):
        with dask.config.set({"dataframe.convert-string": convert}):
            frame = kmsdata.dask.read_parquet(folder, encrypted=names)
            assert (frame.npartitions, frame.kms.encrypted) == (3, names)
            assert frame._meta["category"].cat.categories.tolist() == ["__UNKNOWN_CATEGORIES__"]
            back = frame.kms.decrypt()
            for one in (frame, back):
                for part in partitions(one):
                    assert (
                        part.drop(columns="category").dtypes.to_dict()
                        == one.drop(columns="category").dtypes.to_dict()
                    )
            tm.assert_frame_equal(back.compute().reset_index(drop=True), df)
            for columns in ("text", ["text", "naive"]):
                some = kmsdata.dask.read_parquet(folder, columns=columns).kms.decrypt().compute()
                tm.assert_frame_equal(
                    some.reset_index(drop=True), df[[columns] if isinstance(columns, str) else columns]
                )
            assert frame["number"].sum().compute() == df["number"].sum()
    theirs = dd.read_parquet(folder)  # Dask shows the dtypes of the first file
    assert theirs.kms.decrypt().compute()["texts"].tolist() == SSN
    assert kmsdata.dask.read_parquet(str(folder / "*.parquet")).npartitions == 3
    assert kmsdata.dask.read_parquet(folder.as_uri()).kms.decrypt().compute()["texts"].tolist() == SSN
    with pytest.raises(FormatError, match="column 'number' must be encrypted"):
        kmsdata.dask.read_parquet(folder, encrypted="number")
    with pytest.raises(KeyError, match="no column"):
        kmsdata.dask.read_parquet(folder, columns="nothing")
    with pytest.raises(TypeError, match="takes a path"):
        kmsdata.dask.read_parquet(io.BytesIO((folder / "0.parquet").read_bytes()))
    df[:4].kms.encrypt([*names, "nullable"], key=KEY).kms.to_parquet(folder / "3.parquet")
    with pytest.raises(FormatError, match=r"'nullable' is encrypted, but in .*0\.parquet it is int64"):
        kmsdata.dask.read_parquet(folder)


def test_files_with_several_dtypes_of_pandas(dask, dd, tmp_path):
    frames = [pd.DataFrame({"n": [1, 2], "s": ["x", "y"]})]
    frames.append(frames[0].astype({"n": "Int64"}))
    for column in ("n", "s"):
        folder = tmp_path / column
        folder.mkdir()
        for number, frame in enumerate(frames):
            frame.kms.encrypt(column, key=KEY).kms.to_parquet(folder / f"{number}.parquet")
    back = kmsdata.dask.read_parquet(tmp_path / "n").kms.decrypt()
    for part in partitions(back):
        assert part.dtypes.to_dict() == back.dtypes.to_dict()
    assert back.compute()["n"].tolist() == [1, 2, 1, 2]
    with pytest.raises(
        FormatError, match=r"1\.parquet: column 'n' is Int64, but in .*0\.parquet it is int64"
    ):
        kmsdata.dask.read_parquet(tmp_path / "s")
    assert kmsdata.dask.read_parquet(tmp_path / "s", columns="s").npartitions == 2


def test_encrypting_a_plain_file_keeps_the_dtypes_of_pandas(dask, dd, df, tmp_path):
    df.to_parquet(tmp_path / "plain.parquet")
    with dask.config.set({"dataframe.convert-string": True}):
        plain = kmsdata.dask.read_parquet(tmp_path / "plain.parquet")
        assert plain.kms.encrypted == []
        enc = plain.kms.encrypt("ssn", deterministic="email", key=KEY)
        tm.assert_frame_equal(enc.kms.decrypt().compute(), df)
        # Dask's own reader converts; what it shows is what comes back.
        theirs = dd.read_parquet(tmp_path / "plain.parquet")
        back = theirs.kms.encrypt("ssn", key=KEY).kms.decrypt()
        assert back.dtypes["ssn"] == theirs.dtypes["ssn"] == pd.StringDtype(na_value=pd.NA)
        tm.assert_series_equal(back.compute()["ssn"], theirs.compute()["ssn"])


def test_large_files_have_several_partitions(dask, dd, df, tmp_path, monkeypatch):
    df.kms.encrypt("ssn", key=KEY).kms.to_parquet(tmp_path / "people.parquet", row_group_size=2)
    size = pq.read_metadata(tmp_path / "people.parquet").row_group(0).total_byte_size
    monkeypatch.setattr(kmsdata.dask, "_BYTES_OF_PARTITION", 2 * size + 10)
    frame = kmsdata.dask.read_parquet(tmp_path / "people.parquet")
    assert frame.npartitions == 3
    tm.assert_frame_equal(frame.kms.decrypt().compute().reset_index(drop=True), df)


def test_headers_that_only_the_entry_has(dask, dd, df, tmp_path):
    df.kms.encrypt("ssn", key=KEY).kms.to_parquet(tmp_path / "people.parquet")
    table = pq.read_table(tmp_path / "people.parquet")
    plain = pa.table({name: column if name != "ssn" else pa.chunked_array([c.storage for c in column.chunks])
                      for name, column in zip(table.column_names, table.columns, strict=True)})  # fmt: skip
    with pq.ParquetWriter(tmp_path / "lost.parquet", plain.schema, store_schema=False) as writer:
        writer.write_table(plain)
        writer.add_key_value_metadata({"kmsdata": table.schema.metadata[b"kmsdata"].decode()})
    assert kmsdata.dask.read_parquet(tmp_path / "lost.parquet").kms.decrypt().compute()["ssn"].tolist() == SSN
    with pytest.raises(FormatError, match="no kmsdata header"):  # never ciphertext without a word
        dd.read_parquet(tmp_path / "lost.parquet").kms.decrypt().compute()


def test_folder_names_and_projection(dask, dd, df, tmp_path):
    df = df.assign(year=["2025", "2026"] * 6)
    df.kms.encrypt("ssn", key=KEY).kms.to_parquet(tmp_path / "years", partition_cols="year")
    frame = kmsdata.dask.read_parquet(tmp_path / "years")
    got = frame.kms.decrypt().compute().sort_values("number").reset_index(drop=True)
    tm.assert_frame_equal(got[["ssn", "age"]], df[["ssn", "age"]])
    assert got["year"].astype(str).tolist() == df["year"].tolist()
    plan = str(frame[["age"]].optimize(fuse=False).expr.tree_repr())
    assert "columns=['age']" in plan


def test_files_that_cannot_be_read(dask, dd, df, tmp_path, monkeypatch):
    enc = df.kms.encrypt("ssn", key=KEY)
    path = tmp_path / "people.parquet"
    enc.kms.to_parquet(path, row_group_size=2)
    monkeypatch.setattr(kmsdata.dask, "_BYTES_OF_PARTITION", 10)
    frame = kmsdata.dask.read_parquet(path)
    enc.kms.to_parquet(path, row_group_size=ROWS)
    with pytest.raises(FormatError, match=r"people\.parquet was replaced .*fewer row groups"):
        frame.compute()
    for folder, message in (
        ("ssn=1", r"a name of a folder has the form .*, but the files have this column"),
        ("kind=__HIVE_DEFAULT_PARTITION__", r"kind=__HIVE_DEFAULT_PARTITION__.*null"),
    ):
        (tmp_path / "hive" / folder).mkdir(parents=True)
        enc.kms.to_parquet(tmp_path / "hive" / folder / "part.parquet")
        with pytest.raises(FormatError, match=message):
            kmsdata.dask.read_parquet(tmp_path / "hive").compute()
        (tmp_path / "hive" / "kind=x").mkdir()
        enc.kms.to_parquet(tmp_path / "hive" / "kind=x" / "part.parquet")
        with pytest.raises(FormatError, match=message):
            kmsdata.dask.read_parquet(tmp_path / "hive").compute()
        (tmp_path / "hive").rename(tmp_path / folder.replace("=", ""))


def test_other_filesystems(dask, dd, df, enc, tmp_path):
    import fsspec

    store = fsspec.filesystem("memory")
    store.store.clear()
    enc.kms.to_parquet("memory://bucket/people")
    assert sorted(store.ls("/bucket/people", detail=False)) == [
        f"/bucket/people/part-{number:05d}.parquet" for number in range(3)
    ]
    for path, options in (("memory://bucket/people", {}), ("/bucket/people", {"filesystem": store})):
        back = kmsdata.dask.read_parquet(path, **options).kms.decrypt().compute()
        tm.assert_frame_equal(back[["ssn", "age"]].reset_index(drop=True), df[["ssn", "age"]])
    enc.kms.to_parquet("/bucket/again", filesystem=store)
    assert kmsdata.verify("/bucket/again", filesystem=store).ok
    with pytest.raises(FileExistsError, match="contains files"):
        enc.kms.to_parquet("memory://bucket/people")
    with pytest.raises(ValueError, match="needs a local filesystem"):
        enc.kms.to_parquet("memory://bucket/people", overwrite=True)

    ran = []

    def fails(part):
        ran.append(part)
        if len(ran) == 3:
            raise ZeroDivisionError
        return part

    with pytest.raises(ZeroDivisionError):
        enc.map_partitions(fails, meta=enc._meta).kms.to_parquet("memory://bucket/failed")
    assert not [path for path in store.find("/bucket") if "failed" in path]


def test_what_killed_workers_left_is_removed(dask, tmp_path):
    place = kmsdata.dask.Place.of(tmp_path / "out")
    names = ["part-00000.parquet"]
    with kmsdata.dask._folder(place, tmp_path / "out", None, names, overwrite=False) as folder:
        for name in (*names, ".kmsdata-1-2-3.tmp", "part-00001.parquet.tmp"):
            (Path(folder.path) / name).touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == names


def test_a_search_in_files_under_several_data_keys(dask, dd, df, tmp_path):
    for number in range(2):
        part = df[6 * number : 6 * number + 6].kms.encrypt("ssn", deterministic="email", key=KEY)
        part.kms.to_parquet(tmp_path / f"{number}.parquet")
    frame = kmsdata.dask.read_parquet(tmp_path / "*.parquet")
    found = frame[frame.kms.isin("email", "person1@example.org")].kms.decrypt().compute()
    assert found["ssn"].tolist() == SSN[1::4]
    with pytest.raises(TypeError, match="cells under 2 keys"):
        frame["email"].nunique()
    frame.kms.to_parquet(tmp_path / "out")
    assert kmsdata.read_parquet(tmp_path / "out", decrypt=True)["ssn"].tolist() == SSN
    assert kmsdata.verify(tmp_path / "out").ok
    theirs = dd.read_parquet([tmp_path / "0.parquet", tmp_path / "1.parquet"])
    with pytest.raises(WrongKeyError, match="column 'email'"):  # not merely no match
        theirs.kms.isin("email", "person1@example.org").compute()


# Nothing secret in a graph.


def walked(thing, seen=None):
    """Yield every text and all bytes in an object, in what it contains, and in its pickle."""
    seen = {} if seen is None else seen
    if id(thing) in seen or isinstance(thing, (types.ModuleType, type, types.BuiltinFunctionType)):
        return
    seen[id(thing)] = thing  # kept, so that no other object has its id
    if isinstance(thing, str):
        yield thing.encode("utf-8", "surrogatepass")
    elif isinstance(thing, (bytes, bytearray)):
        yield bytes(thing)
    elif isinstance(thing, (pa.Array, pa.ChunkedArray, pa.Table)):
        yield from walked(thing.to_pylist(), seen)
        yield pickle.dumps(thing)
    elif isinstance(thing, dict):
        yield from walked(list(thing.items()), seen)
    elif isinstance(thing, (list, tuple, set, frozenset)):
        for one in thing:
            yield from walked(one, seen)
    elif isinstance(thing, types.FunctionType):
        yield from walked([thing.__defaults__, thing.__kwdefaults__], seen)
        yield from walked([cell.cell_contents for cell in thing.__closure__ or ()], seen)
    elif isinstance(thing, (pd.DataFrame, pd.Series, pd.Index)):
        frame = thing if isinstance(thing, pd.DataFrame) else thing.to_frame()
        yield from walked(
            [frame.iloc[:, position].astype(object).tolist() for position in range(frame.shape[1])], seen
        )
        yield from walked(list(frame.dtypes), seen)
        yield pickle.dumps(thing)
    else:
        yield from walked(vars(thing) if hasattr(thing, "__dict__") else {}, seen)
        for kind in type(thing).__mro__:
            slots = kind.__dict__.get("__slots__", ())
            for name in [slots] if isinstance(slots, str) else slots:
                yield from walked(getattr(thing, name, None), seen)
        yield repr(thing).encode()


def forms(secret):
    """Yield a secret as bytes, hexadecimal and base64, wherever it begins in a group of base64."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    for before in range(3):
        text = base64.b64encode(bytes(before) + secret)
        inner = text[(0, 2, 3)[before] : (before + len(secret)) * 8 // 6]
        yield inner
        yield inner.translate(bytes.maketrans(b"+/", b"-_"))


def leaks(content, secrets):
    """Return the names of the secrets in some content, as they are, in hexadecimal or in base64."""
    return {name for name, secret in secrets.items() for form in forms(secret) if form in content}


def nodes(frame):
    """Return every node of an optimised graph, and what a worker would receive: its pickle, read back."""
    from distributed.protocol.pickle import dumps, loads

    graph = dict(frame.optimize().__dask_graph__())
    for key, node in graph.items():
        content = dumps((key, node))
        yield content, loads(content)


def test_nothing_secret_in_graphs_that_begin_with_a_file(dask, dd, tmp_path, monkeypatch):
    from kmsdata.keys.data_key import DataKey

    made = []
    inside = DataKey.__init__

    def spied(self, secret, *arguments, **options):
        made.append(bytes(secret))
        inside(self, secret, *arguments, **options)

    monkeypatch.setattr(DataKey, "__init__", spied)
    people = pd.DataFrame({
        "ssn": [f"secret-value-{number}" for number in range(8)],
        "email": [f"secret-email-{number % 2}@example.org" for number in range(8)],
        "kind": pd.Categorical(["secret-kind-1", "secret-kind-2"] * 4),
        "age": range(8),
    })  # fmt: skip
    people.to_parquet(tmp_path / "plain.parquet", row_group_size=4)
    with Emulator() as emulator:
        monkeypatch.setenv("KMSDATA_TENCENT_ENDPOINT", emulator.url)
        monkeypatch.setenv("TENCENTCLOUD_SECRET_ID", emulator.secret_id)
        monkeypatch.setenv("TENCENTCLOUD_SECRET_KEY", emulator.secret_key)
        key = kmsdata.TencentKMS("ap-guangzhou").create_key("payroll")
        people.kms.encrypt(["ssn", "kind"], deterministic="email", key=key).kms.to_parquet(
            tmp_path / "people.parquet"
        )
        plain = dd.read_parquet(tmp_path / "plain.parquet", split_row_groups=True).drop(columns="kind")
        sealed = plain.kms.encrypt("ssn", deterministic="email", key=key)
        for source in (dd.read_parquet, kmsdata.dask.read_parquet):
            read = source(tmp_path / "people.parquet")
            graphs = [
                sealed,
                sealed.kms.decrypt(),
                sealed.merge(sealed[["email"]], on="email").kms.decrypt(),
                sealed[sealed.kms.isin("email", "secret-email-1@example.org")],
                read.kms.decrypt(),
                read.kms.decrypt("ssn", key=read, on_denied="keep"),
                read[read.kms.isin("email", ["secret-email-0@example.org"], key=key)].kms.decrypt(),
                plain.kms.encrypt("ssn", key=read),
                read.groupby("email")["age"].sum().to_frame().kms.decrypt(),
                read["ssn"].kms.decrypt(),
            ]
            for number, frame in enumerate(graphs):
                assert len(frame.compute()) > 0
                secrets = {f"data key {number}": secret for number, secret in enumerate(made)}
                secrets |= {
                    "SecretId": emulator.secret_id.encode(), "SecretKey": emulator.secret_key.encode(),
                    "plaintext": b"secret-value-", "email": b"secret-email-", "category": b"secret-kind-",
                }  # fmt: skip
                for content, node in nodes(frame):
                    found = leaks(content, secrets)
                    for part in walked(node):
                        found |= leaks(part, secrets)
                    assert not found, (source, number)
    assert made


def test_the_search_for_secrets_finds_them(dask, dd, df, tmp_path):
    df.kms.encrypt("ssn", key=KEY).kms.to_parquet(tmp_path / "people.parquet")
    read = dd.read_parquet(tmp_path / "people.parquet")
    secret = bytes(range(32))
    for hidden in (
        secret,
        secret.hex(),
        {"key": [base64.b64encode(b"ab" + secret).decode()]},
        types.SimpleNamespace(a=secret),
    ):
        frame = read.map_partitions(lambda part, _: part, hidden, meta=read._meta, enforce_metadata=False)
        found = set()
        for content, node in nodes(frame):
            found |= leaks(content, {"it": secret})
            for part in walked(node):
                found |= leaks(part, {"it": secret})
        assert found == {"it"}


# Dask's bar and dashboard.


def test_names_of_tasks(dask, dd, df, tmp_path):
    from dask.utils import key_split

    df = df.rename(columns={"age": "years_1"})
    df.to_parquet(tmp_path / "plain.parquet")
    ddf = dd.read_parquet(tmp_path / "plain.parquet")

    def names(frame):
        return {key_split(key) for key in frame.__dask_graph__()}

    enc = ddf.kms.encrypt(["ssn", "years_1"], deterministic="email", key=KEY)
    assert "kmsencrypt-ssn-email" in names(enc)
    assert names(enc.optimize()) == {"read_parquet-kmsencrypt"}
    assert "kmsdecrypt-ssn-email" in names(enc.kms.decrypt())
    assert "kmsisin-email" in names(enc.kms.isin("email", "x"))


def test_progress_bar(dask, enc, capsys):
    from dask.diagnostics import ProgressBar

    with ProgressBar(minimum=0):
        enc.kms.decrypt().compute()
    assert "100% Completed" in capsys.readouterr().out


def test_doctests(dask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    import kmsdata.dask

    assert doctest.testmod(kmsdata.dask).failed == 0


def test_a_missing_package_names_the_pip_line():
    code = """
import sys
sys.modules["dask"] = None
try:
    import kmsdata.dask
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "kmsdata[dask]"' in done.stdout


# Processes.


def test_the_scheduler_of_processes(dask, dd, df):
    ddf = dd.from_pandas(df, npartitions=3)
    with dask.config.set({"scheduler": "processes", "num_workers": 2}):
        enc = ddf.kms.encrypt("ssn", deterministic="email", key=KEY)
        assert enc.kms.verify().ok
        tm.assert_frame_equal(enc.kms.decrypt().compute()[["ssn", "email"]], df[["ssn", "email"]])
        with pytest.raises(WrongKeyError):
            enc.kms.decrypt(key="local://other").compute()


@pytest.fixture(scope="module")
def emulator():
    with Emulator() as emulator:
        yield emulator


@contextlib.contextmanager
def started(workers, environment):
    """Start a cluster of processes that are spawned, with this environment; yield its client."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=2,
            processes=True,
            dashboard_address="127.0.0.1:0",
            memory_limit="600MiB",
            env=environment,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def client(emulator, tmp_path_factory):
    """Return a client of a cluster of two processes with their credentials."""
    environment = {
        "KMSDATA_KEYSTORE": str(tmp_path_factory.mktemp("cluster") / "keystore.json"),
        "KMSDATA_TENCENT_ENDPOINT": emulator.url,
        "TENCENTCLOUD_SECRET_ID": emulator.secret_id,
        "TENCENTCLOUD_SECRET_KEY": emulator.secret_key,
    }
    with started(2, environment) as client:
        client.environment = environment
        yield client


@pytest.fixture
def cluster(dd, client, emulator, monkeypatch):
    """Compute on the cluster, with the same keys and credentials here as there."""
    for name, text in client.environment.items():
        monkeypatch.setenv(name, text)
    emulator.heal()
    import dask

    with dask.config.set({"scheduler": None}), client.as_current():
        yield client


_numbers = itertools.count()


@pytest.fixture
def master(cluster):
    return kmsdata.TencentKMS("ap-guangzhou").create_key(f"key-{next(_numbers)}")


def wrap_of(frame):
    return frame["ssn"].dtype.header.records[0].wraps[0]


def made(emulator, wrap):
    """Return the calls for one data key: other tests may leave tasks that still retry theirs."""
    asked = [(request.action, request.params.get("CiphertextBlob")) for request in emulator.requests]
    id_ = wrap.key.rpartition("/")[2]
    generated = [r for r in emulator.requests if r.action == "GenerateDataKey" and r.params["KeyId"] == id_]
    return len(generated), asked.count(("Decrypt", wrap.wrapped))


def test_a_cluster_of_processes(dd, df, cluster, emulator, master, tmp_path):
    assert len({cluster.run(os.getpid)[worker] for worker in cluster.run(os.getpid)} - {os.getpid()}) == 2
    ddf = dd.from_pandas(df, npartitions=8)
    enc = ddf.kms.encrypt("ssn", deterministic="email", key=master).persist()
    tm.assert_frame_equal(enc.kms.decrypt().compute()[["ssn", "email"]], df[["ssn", "email"]])
    found = enc[enc.kms.isin("email", "person1@example.org")]
    assert found.kms.decrypt().compute()["ssn"].tolist() == SSN[1::4]
    enc.kms.to_parquet(tmp_path / "out")
    assert enc.kms.verify(encrypted=["ssn", "email"]).ok
    read = kmsdata.dask.read_parquet(tmp_path / "out").kms.decrypt().compute().reset_index(drop=True)
    tm.assert_frame_equal(read[["ssn", "age"]], df[["ssn", "age"]])
    generated, unwrapped = made(emulator, wrap_of(enc))
    assert generated == 1
    assert 1 < unwrapped <= 3  # one for each worker process, and one of this process for isin()
    assert kmsdata.verify(tmp_path / "out").ok
    tm.assert_frame_equal(kmsdata.read_parquet(tmp_path / "out", decrypt=True)[["ssn"]], df[["ssn"]])


@pytest.mark.parametrize("method", ["tasks", "p2p"])
def test_shuffles_of_a_cluster(dask, dd, df, cluster, method):
    with dask.config.set({"dataframe.shuffle.method": method}):
        enc = dd.from_pandas(df, npartitions=4).kms.encrypt("ssn", deterministic="email", key=KEY)
        for column in ("email", "number"):
            moved = enc.shuffle(column, shuffle_method=method)
            assert {part.dtypes["ssn"] for part in partitions(moved)} == {enc.dtypes["ssn"]}
            tm.assert_frame_equal(moved.kms.decrypt().compute().sort_values("number")[["ssn"]], df[["ssn"]])
        right = dd.from_pandas(df[["email"]].drop_duplicates().assign(x=range(4)), npartitions=3)
        joined = enc.merge(right.kms.encrypt(deterministic="email", key=enc), on="email")
        got = joined.kms.decrypt().compute().sort_values("number")
        assert got["ssn"].tolist() == SSN
        assert got["x"].tolist() == [0, 1, 2, 3] * 3
        sums = enc.groupby("email")["age"].sum(split_out=2).to_frame().kms.decrypt().compute()
        assert sums["age"].to_dict() == df.groupby("email")["age"].sum().to_dict()
        assert enc.set_index("number").kms.decrypt().compute()["ssn"].tolist() == SSN


def test_workers_read_files_before_they_know_kmsdata(dask, dd, df, tmp_path, keystore):
    enc = df.kms.encrypt("ssn", deterministic="email", key=KEY)
    enc.kms.to_parquet(tmp_path / "people.parquet", row_group_size=3)
    read = dd.read_parquet(tmp_path / "people.parquet", split_row_groups=True)
    assert read.npartitions == 4
    with (
        started(1, {"KMSDATA_KEYSTORE": str(keystore)}) as client,
        dask.config.set({"scheduler": None}),
        client.as_current(),
    ):
        assert not any(client.run(lambda: "kmsdata" in __import__("sys").modules).values())
        assert {str(part.dtypes["ssn"]) for part in partitions(read.persist())} == {"encrypted[str]"}
        tm.assert_frame_equal(read.kms.decrypt().compute()[["ssn"]].reset_index(drop=True), df[["ssn"]])
        assert read["email"].nunique().compute() == 4


@pytest.mark.parametrize(
    "code", ["UnauthorizedOperation", "ResourceUnavailable.CmkDisabled", "InternalError"]
)
def test_kms_fails_while_dask_computes(dd, df, cluster, emulator, master, code):
    ddf = dd.from_pandas(df, npartitions=8)
    enc = ddf.kms.encrypt("ssn", key=master)
    emulator.fail(Fault.error(code), action="Decrypt", times=None)
    with pytest.raises(KeyServiceError, match=re.escape(master)) as caught:
        enc.compute()
    error = caught.value
    assert (error.code, error.operation, error.provider) == (code, "unwrap", "tencent-kms")
    assert isinstance(error, KeyAccessError) == (code != "InternalError")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
    assert (type(again), str(again), again.code) == (type(error), str(error), code)
    said = "".join(traceback.format_exception(error)) + repr(vars(error)) + str(cluster.get_worker_logs())
    said += str(cluster.get_scheduler_logs())
    for secret in (emulator.secret_id, emulator.secret_key, wrap_of(enc).wrapped, *SSN):
        assert secret not in said
    with pytest.raises(KeyServiceError):
        enc.kms.decrypt().compute()
    assert {column.state for column in ddf.kms.encrypt("ssn", key=KEY).kms.verify().columns} == {"authentic"}
    emulator.heal()
    tm.assert_frame_equal(enc.kms.decrypt().compute()[["ssn"]], df[["ssn"]])  # nothing bad is kept


def test_a_killed_worker_costs_only_time(dd, df, cluster, emulator, master, tmp_path):
    killed = tmp_path / "killed"

    def once(part):
        import os
        import pathlib

        with contextlib.suppress(FileExistsError):
            pathlib.Path(killed).touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        return part

    ddf = dd.from_pandas(df, npartitions=6)
    enc = ddf.kms.encrypt("ssn", deterministic="email", key=master)
    again = enc.map_partitions(once, meta=enc._meta).kms.decrypt().compute()
    assert killed.exists()
    tm.assert_frame_equal(again[["ssn", "email"]], df[["ssn", "email"]])
    generated, unwrapped = made(emulator, wrap_of(enc))
    assert generated == 1
    assert 1 < unwrapped <= 3  # two workers, and one that was started again


def test_a_worker_killed_while_it_writes(dd, df, cluster, tmp_path):
    killed, folder = tmp_path / "killed", tmp_path / "out"

    def kill_while_writing(killed):
        """Write half of a file, once, then end this process."""
        import os
        import pathlib

        import pyarrow.parquet as pq

        inside = pq.write_table

        def write_table(table, file, **settings):
            inside(table, file, **settings)
            if isinstance(file, io.BufferedWriter) and not pathlib.Path(killed).exists():
                pathlib.Path(killed).touch()
                file.flush()
                os.truncate(file.fileno(), os.fstat(file.fileno()).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        write_table.inside = inside
        pq.write_table = write_table

    def write_again():
        import pyarrow.parquet as pq

        pq.write_table = getattr(pq.write_table, "inside", pq.write_table)

    cluster.run(kill_while_writing, str(killed))
    enc = dd.from_pandas(df, npartitions=6).kms.encrypt("ssn", key=KEY)
    try:
        enc.kms.to_parquet(folder)
    finally:
        cluster.run(write_again)
    assert killed.exists()
    assert sorted(path.name for path in folder.iterdir()) == [
        f"part-{number:05d}.parquet" for number in range(6)
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "out"]
    assert kmsdata.verify(folder).ok
    tm.assert_frame_equal(kmsdata.read_parquet(folder, decrypt=True)[["ssn"]], df[["ssn"]])
