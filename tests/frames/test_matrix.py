"""What pandas, Arrow and their neighbours do with encrypted columns: it comes back exactly, or is refused.

The strongest form wherever there is one: do it to the encrypted frame and decrypt, and it is what doing it to
the plain frame gives.
"""

import copy
import io
import json
import multiprocessing
import pickle
import re
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pandas.testing as tm
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

import kmsdata
from kmsdata import Cell, EncryptedArray, EncryptedDtype, EncryptedType, FormatError, LocalKeystore
from kmsdata.frames import arrow_storage as storage_module

KEY = "local://demo"
DETERMINISTIC = ["city", "zip"]
RANDOMISED = ["name", "age", "score", "seen"]
PANDAS_2 = pd.__version__.startswith("2.")


def people():
    return pd.DataFrame(
        {
            "id": range(10, 18),
            "group": list("aabbabab"),
            "city": ["Oslo", "Rome", None, "Oslo", "Bern", "Rome", None, "Oslo"],
            "zip": [150, 184, 184, 150, 3000, 184, 0, 150],
            "name": ["Ada", "Bo", "张伟", None, "", "Bo", "Zoë", "Ada"],
            "age": [36, 41, -1, 2**53 + 1, 0, 7, 8, 9],
            "score": pd.array([1, None, 3, 4, None, 6, 7, 8], "Int64"),
            "seen": pd.date_range("2024-02-28", periods=8, tz="Europe/Oslo"),
        }
    )


@pytest.fixture
def df():
    return people()


@pytest.fixture
def enc(df):
    return df.kms.encrypt(RANDOMISED, deterministic=DETERMINISTIC, key=KEY)


@pytest.fixture
def unwraps():
    """Record the data keys that are unwrapped from here on."""
    seen = []

    class Counting(LocalKeystore):
        def unwrap(self, wrapped, key, context):
            seen.append(wrapped)
            return super().unwrap(wrapped, key, context)

    kmsdata.use(Counting())
    return seen


def one_null(frame):
    """Return objects with one kind of null: pandas chooses the kind of the nulls that it inserts itself."""
    frame = frame.copy()
    for position, kind in enumerate(frame.dtypes):
        if kind == np.dtype(object):
            values = frame.iloc[:, position].to_numpy(object, copy=True)
            values[pd.isna(values)] = None
            frame.isetitem(position, pd.Series(values, frame.index, dtype=object))
    return frame


def check(result, expected, **options):
    tm.assert_frame_equal(one_null(result.kms.decrypt()), one_null(expected), **options)


def by_values(frame):
    return frame.sort_values(list(frame.columns)).reset_index(drop=True)


def in_process(code, *arguments):
    """Run a program in a new interpreter, and return its output."""
    # Threads of pyarrow 17 may abort the interpreter during its shutdown: so it exits without one.
    code += "\nimport os, sys; sys.stdout.flush(); os._exit(0)"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# pandas: what moves cells.

MOVES = {
    "nothing": lambda f: f,
    "filter": lambda f: f[f["id"] > 12],
    "filter by null": lambda f: f[f["city"].notna()],
    "query": lambda f: f.query("id > 12 and group == 'a'"),
    "loc": lambda f: f.loc[[5, 1], ["city", "age"]],
    "iloc": lambda f: f.iloc[1:7:2],
    "iloc from the end": lambda f: f.iloc[[-1, 0, -1]],
    "reverse": lambda f: f[::-1],
    "empty": lambda f: f[:0],
    "sort by another column": lambda f: f.sort_values("id", ascending=False),
    "sort by two others": lambda f: f.sort_values(["group", "id"], ascending=[False, True]),
    "sample": lambda f: f.sample(5, random_state=1),
    "take": lambda f: f.take([3, 3, 0]),
    "drop": lambda f: f.drop(columns="zip").drop(index=2),
    "insert": lambda f: f.assign(id2=f["id"] * 2, city2=f["city"]),
    "setitem": lambda f: f.assign(city=f["city"].array[::-1]),
    "dropna": lambda f: f.dropna(subset=["city", "name"]),
    "copy": lambda f: f.copy(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda f: pickle.loads(pickle.dumps(f)),  # noqa: S301
    "convert_dtypes": lambda f: f[["group", "city", "score"]].convert_dtypes()[["score"]],
    "concat": lambda f: pd.concat([f[:3], f[3:]]),
    "concat with itself": lambda f: pd.concat([f, f], ignore_index=True),
    "concat with keys": lambda f: pd.concat({"x": f[:2], "y": f[5:]}),
    "concat with an empty one": lambda f: pd.concat([f, f[:0]]),
    "concat of columns": lambda f: pd.concat([f[["city", "age"]], f[["name"]]], axis=1),
    "merge on a plain key": lambda f: f.merge(pd.DataFrame({"id": [11, 12, 12], "more": [1.0, 2.0, 3.0]})),
    "merge from the right": lambda f: pd.DataFrame({"id": [17, 11]}).merge(f, how="left", on="id"),
    "join on the index": lambda f: f[["city", "name"]].join(f[["age", "seen"]]),
    "first of a group": lambda f: f.groupby("group").first(),
    "last of a group": lambda f: f.groupby("group").last(),
    "nth of a group": lambda f: f.groupby("group").nth(1),
    "head of a group": lambda f: f.groupby("group").head(2),
    "agg of a group": lambda f: f.groupby("group").agg(
        {"name": "first", "age": "count", "city": "last", "id": "sum"}
    ),
    "transform of a group": lambda f: f.assign(city=f.groupby("group")["city"].transform("first")),
    "apply to groups": lambda f: f.groupby("group")[["city", "age"]].apply(lambda part: part.iloc[:2]),
    "count": lambda f: f.drop(columns="score").groupby("group").count(),
    "nunique": lambda f: f.groupby("group")[DETERMINISTIC].nunique(),
    "value_counts": lambda f: f["city"].value_counts().reset_index(),
    "value_counts with nulls": lambda f: f["city"].value_counts(dropna=False).reset_index(),
    "value_counts of rows": lambda f: f["zip"].value_counts(normalize=True).reset_index(),
    "drop_duplicates": lambda f: f.drop_duplicates(["city", "zip"]),
    "drop the last duplicates": lambda f: f.drop_duplicates("city", keep="last"),
    "unique": lambda f: pd.DataFrame({"city": f["city"].unique()}),
    "set_index": lambda f: f.set_index("city"),
    "set and reset_index": lambda f: f.set_index("name").reset_index(),
    "MultiIndex": lambda f: f.set_index(["city", "id"]),
    "MultiIndex and back": lambda f: f.set_index(["zip", "city"]).reset_index(),
    "group unsorted": lambda f: f.groupby("city", sort=False)["id"].sum().reset_index(),
    "pivot": lambda f: f.pivot(index="id", columns="group", values="city"),
    "melt": lambda f: f.melt("id", ["city"]),
    "unstack": lambda f: f.set_index(["id", "group"])["city"].unstack("group"),
    "stack": lambda f: f.set_index("id")[["city"]].rename(columns=str).stack().dropna().to_frame("city"),
    "explode": lambda f: f.explode("city"),
    "repeat": lambda f: f.loc[f.index.repeat(2)],
    "filter by equality": lambda f: f[f["city"] == f["city"].iloc[0]],
    "filter by difference": lambda f: f[(f["city"] != f["city"].iloc[0]).fillna(True).astype(bool)],
    "isin": lambda f: f[f["city"].isin(f["city"].iloc[[0, 4]])],
    "set a cell": lambda f: with_item(f, "name", 2, f["name"].iloc[0]),
    "set cells": lambda f: with_item(f, "city", [1, 2], f["city"].array[[0, 4]]),
}  # fmt: skip


def with_item(frame, column, rows, value):
    frame = frame.copy()
    frame.loc[rows, column] = value
    return frame


@pytest.mark.parametrize("move", MOVES)
def test_moves(move, df, enc):
    check(MOVES[move](enc), MOVES[move](df))


# Operations that insert nulls; integers without nulls are tested below.
NULLS = {
    "shift": lambda f: f.shift(2),
    "where": lambda f: f.where(f["group"] == "a"),
    "mask": lambda f: f.mask(f["group"] == "a"),
    "reindex": lambda f: f.reindex([7, 99, 1]),
    "set None": lambda f: with_item(f, "name", 1, None),
    "set NA": lambda f: with_item(f, "city", slice(None), pd.NA),
    "ffill": lambda f: f.ffill(),
    "bfill": lambda f: f.bfill(),
    "ffill in groups": lambda f: f.assign(city=f.groupby("group")["city"].ffill()),
    "left merge": lambda f: pd.DataFrame({"group": ["z", "a"]}).merge(f, how="left"),
    "outer merge": lambda f: f.merge(pd.DataFrame({"group": ["z", "a"]}), how="outer"),
    "concat without a column": lambda f: pd.concat([f, f.drop(columns=["city", "seen"])]),
    "combine_first": lambda f: f.where(f["group"] == "a").combine_first(f),
    "pivot": lambda f: f.reset_index().pivot(index="index", columns="group", values="city"),
}


@pytest.mark.parametrize("move", NULLS)
def test_moves_that_make_nulls(move, df, enc):
    columns = ["group", "city", "name", "score", "seen"]
    with warnings.catch_warnings():
        # pandas 2 warns about a future change of concat for columns that are all null.
        warnings.filterwarnings("ignore", "The behavior of (DataFrame|array) concatenation", FutureWarning)
        check(NULLS[move](enc[columns]), NULLS[move](df[columns]))


def test_nulls_among_integers_keep_every_value():
    plain = pd.DataFrame(
        {"n": [2**53 + 1, 2], "u": np.array([255, 0], "uint8"), "b": [True, False], "i": [1, 2]}
    )
    encrypted = plain.kms.encrypt(["n", "u", "b"], deterministic="i", key=KEY)
    expected = plain.astype({"n": "Int64", "u": "UInt8", "b": "boolean", "i": "Int64"}).shift(1)
    tm.assert_frame_equal(encrypted.shift(1).kms.decrypt(), expected)
    other = plain.kms.encrypt(["n", "u", "b"], deterministic="i", key=KEY)
    two_keys = pd.concat([encrypted.shift(1), other], ignore_index=True)
    expected = pd.concat([expected, plain.astype(expected.dtypes)], ignore_index=True)
    tm.assert_frame_equal(two_keys.kms.decrypt(), expected)


# Operations after which columns have other labels, or are combined in one: a warning names the original.

RENAMES = {
    "rename": lambda f: f.rename(columns={"name": "called"}),
    "melt one": lambda f: f.melt("id", ["name"]),
    "pivot": lambda f: f.pivot(index="id", columns="group", values="name"),
    "to_frame": lambda f: f["name"].to_frame("x"),
}


@pytest.mark.parametrize("move", RENAMES)
def test_moves_under_another_name_say_so(move, df, enc):
    with pytest.warns(UserWarning, match="cells are authentic, its label is not"):
        check(RENAMES[move](enc), RENAMES[move](df))


# Operations that convert everything to objects: cells stay cells.

OBJECTS = {
    "T": lambda f: f.T,
    "T.T": lambda f: f.T.T,
    "apply by row": lambda f: f.apply(lambda row: row, axis=1),
    "iterrows": lambda f: pd.DataFrame([row for _, row in f.iterrows()]),
    "itertuples": lambda f: pd.DataFrame(list(f.itertuples(index=False))),
    "iloc": lambda f: f.iloc[3].to_frame(),
    "records": lambda f: pd.DataFrame(f.to_dict("records")),
    "astype": lambda f: f.astype(object),
    "stack": lambda f: f[["id", "city", "age"]].stack().dropna().to_frame("cells"),
    "melt two types": lambda f: f.melt("id", ["name", "age"]),
    "melt with plain ones": lambda f: f.melt("group", ["id", "city", "score"]),
    "numpy": lambda f: pd.DataFrame(f.to_numpy(), columns=f.columns),
}


@pytest.mark.filterwarnings("ignore:.* was concatenated with plain values")
@pytest.mark.parametrize("move", OBJECTS)
def test_moves_to_objects(move, df, enc):
    result = one_null(OBJECTS[move](enc).kms.decrypt().astype(object))
    tm.assert_frame_equal(result, one_null(OBJECTS[move](df).astype(object)))


def test_a_row_decrypts(df, enc):
    row = enc.iloc[0]
    assert row.dtype == object
    assert isinstance(row["name"], Cell)
    tm.assert_series_equal(row.kms.decrypt(), df.iloc[0])


def test_an_object_column_of_cells_is_encrypted(df, enc):
    loose = enc.astype(object)
    assert loose.kms.encrypted == [*DETERMINISTIC, *RANDOMISED]
    assert loose.kms.decrypt("name")["name"].tolist() == df["name"].tolist()


# Keys of groups and of joins.


def test_groups_have_the_plain_groups_values(df, enc):
    result = enc.groupby("city")["id"].agg(["sum", "size"]).reset_index().kms.decrypt()
    tm.assert_frame_equal(
        by_values(result), by_values(df.groupby("city")["id"].agg(["sum", "size"]).reset_index())
    )
    result = enc.groupby(["group", "zip"], as_index=False)["id"].sum().kms.decrypt()
    tm.assert_frame_equal(
        by_values(result), by_values(df.groupby(["group", "zip"], as_index=False)["id"].sum())
    )
    table = {"index": "zip", "columns": "group", "values": "id", "aggfunc": "sum", "fill_value": 0}
    result = enc.pivot_table(**table).reset_index().kms.decrypt()
    tm.assert_frame_equal(by_values(result), by_values(df.pivot_table(**table).reset_index()))
    result = pd.crosstab(enc["zip"], enc["group"]).reset_index().kms.decrypt()
    tm.assert_frame_equal(by_values(result), by_values(pd.crosstab(df["zip"], df["group"]).reset_index()))


def test_codes_and_duplicates_are_the_plain_ones(df, enc):
    for column in DETERMINISTIC:
        codes, uniques = pd.factorize(enc[column])
        expected, _ = pd.factorize(df[column])
        assert codes.tolist() == expected.tolist()
        assert len(uniques) == df[column].nunique()
        for keep in ("first", "last", False):
            assert enc.duplicated(column, keep=keep).equals(df.duplicated(column, keep=keep))
        assert enc[column].is_unique == df[column].is_unique
        assert enc[column].nunique(dropna=False) == df[column].nunique(dropna=False)
    assert enc["city"].mode().to_frame().kms.decrypt()["city"].tolist() == ["Oslo"]
    assert enc[[*DETERMINISTIC]].drop_duplicates().index.equals(df[[*DETERMINISTIC]].drop_duplicates().index)


def other_frame():
    return pd.DataFrame(
        {"city": ["Rome", "Oslo", None, "Kyiv"], "zip": [184, 150, 184, 1], "more": [1, 2, 3, 4]}
    )


@pytest.mark.parametrize("how", ["inner", "left", "right", "outer"])
@pytest.mark.parametrize("on", ["city", "zip", ["city", "zip"]])
def test_joins_under_one_data_key(how, on, df, enc):
    columns = ["group", "city", "zip"]
    right = other_frame()
    sealed = right.kms.encrypt(deterministic=DETERMINISTIC, key=enc)
    options = {"how": how, "on": on, "suffixes": ("", "_right")}
    result = enc[columns].merge(sealed, **options).kms.decrypt()
    expected = df[columns].merge(right, **options)
    expected = expected.astype({c: t for c, t in result.dtypes.items() if str(t) == "Int64"})
    tm.assert_frame_equal(by_values(one_null(result)), by_values(one_null(expected)))


def test_joins_of_every_other_shape(df, enc):
    right = other_frame().dropna()
    sealed = right.kms.encrypt(deterministic=DETERMINISTIC, key=enc)
    shapes = {
        "keys of two names": lambda a, b: a.merge(
            b[["city", "more"]].rename(columns={"city": "town"}), left_on="city", right_on="town"
        ),
        "index on the right": lambda a, b: a.merge(
            b.set_index("city")[["more"]], left_on="city", right_index=True
        ),
        "join on": lambda a, b: a.join(b.set_index("city")["more"], on="city", how="inner"),
        "two indexes": lambda a, b: (
            a.dropna().set_index("city").join(b.set_index("city")["more"]).reset_index()
        ),
        "map": lambda a, b: a.assign(more=a["zip"].map(b.set_index("zip")["more"])),
        "isin": lambda a, b: a[a["city"].isin(b["city"])],
    }
    for shape in shapes.values():
        columns = ["group", "city", "zip"]
        result = shape(enc[columns], sealed).kms.decrypt()
        tm.assert_frame_equal(by_values(result), by_values(shape(df[columns], right)))


def test_int32_joins_int64(enc, df):
    right = pd.DataFrame({"zip": np.array([184, 3000, 9], "int32"), "more": [1, 2, 3]})
    sealed = right.kms.encrypt(deterministic="zip", key=enc)
    assert sealed["zip"].dtype != enc["zip"].dtype
    result = enc[["id", "zip"]].merge(sealed, on="zip").kms.decrypt()
    tm.assert_frame_equal(result, df[["id", "zip"]].merge(right, on="zip"), check_dtype=False)
    outer = sealed.merge(enc[["id", "zip"]], on="zip", how="outer").kms.decrypt()
    assert sorted(outer["zip"]) == sorted(right.merge(df[["id", "zip"]], on="zip", how="outer")["zip"])
    assert (sealed["zip"][:1] == enc["zip"].iloc[1]).all()


def refused_joins():
    def merge(left, right):
        return left.merge(right, on="city")

    def merge_index(left, right):
        return left.merge(right.set_index("city"), left_on="city", right_index=True)

    def merge_two(left, right):
        return left.merge(right, on=["city", "zip"])

    def merge_arrays(left, right):
        return left.merge(right, left_on=[left["city"].array], right_on=[right["city"].array])

    def indexes(function):
        def on_indexes(left, right):
            unique = [side.dropna().drop_duplicates("city").set_index("city") for side in (left, right)]
            return function(*unique)

        return on_indexes

    return [
        merge,
        merge_index,
        merge_two,
        merge_arrays,
        lambda left, right: left.join(right.set_index("city")[["more"]], on="city"),
        lambda left, right: right.set_index("city").join(left.set_index("city")[["id"]]),
        indexes(lambda left, right: left.join(right[["more"]])),
        indexes(lambda left, right: left.reindex(right.index)),
        indexes(lambda left, right: left.assign(more=right["more"])),
        indexes(lambda left, right: left["id"] + right["more"]),
        indexes(lambda left, right: pd.concat([left, right], axis=1)),
        indexes(lambda left, right: left.loc[list(right.index)]),
        indexes(lambda left, right: left.index.intersection(right.index)),
        indexes(lambda left, right: left.index.union(right.index)),
        indexes(lambda left, right: left.index.difference(right.index)),
        lambda left, right: left[left["city"].isin(right["city"])],
    ]


@pytest.mark.parametrize("join", refused_joins())
@pytest.mark.parametrize("side", ["another data key", "another domain", "plain", "categories"])
def test_joins_that_would_find_nothing_raise(join, side, enc):
    right = other_frame()
    sealed = {
        "another data key": lambda: right.kms.encrypt(deterministic=DETERMINISTIC, key=KEY),
        "another domain": lambda: right.kms.encrypt(
            deterministic=DETERMINISTIC, key=enc, domain={"city": "place", "zip": "code"}
        ),
        "plain": lambda: right,
        "categories": lambda: right.astype({"city": "category"}),
    }[side]()
    message = {
        "another data key": "different data keys|under 2 keys",
        "another domain": "domain, kind or algorithm|under 2 keys",
        "plain": "plain values|not values",
        "categories": "plain values|not values",
    }[side]
    with pytest.raises(TypeError, match=message):
        join(enc, sealed)


def test_objects_of_cells_join_by_the_same_rules(enc, df):
    right = other_frame()
    foreign = right.kms.encrypt(deterministic=DETERMINISTIC, key=KEY).astype({"city": object})
    with pytest.raises(TypeError, match="data key"):
        enc.merge(foreign, on="city")
    own = right.kms.encrypt(deterministic=DETERMINISTIC, key=enc).astype({"city": object})
    result = enc[["id", "city"]].merge(own[["city", "more"]], on="city").kms.decrypt()
    tm.assert_frame_equal(result, df[["id", "city"]].merge(right[["city", "more"]], on="city"))


def test_randomised_columns_are_no_keys(enc):
    uses = [
        lambda: enc.groupby("name").size(),
        lambda: enc.groupby(["group", "age"]).size(),
        lambda: enc.merge(enc[["name"]], on="name"),
        lambda: enc["name"].value_counts(),
        lambda: enc["name"].unique(),
        lambda: enc["name"].nunique(),
        lambda: enc["name"].mode(),
        lambda: enc.drop_duplicates("name"),
        lambda: enc.drop_duplicates(),
        lambda: enc["name"].duplicated(),
        lambda: enc.pivot(index="name", columns="id", values="group"),
        lambda: enc.set_index(["name", "id"]),
        lambda: enc.set_index("age").reindex(enc.set_index("age").index[:2]),
        lambda: pd.factorize(enc["name"]),
        lambda: pd.get_dummies(enc["name"]),
        lambda: pd.util.hash_pandas_object(enc["name"]),
    ]
    for use in uses:
        with pytest.raises(TypeError, match=r"randomised.*deterministic="):
            use()


def test_cells_of_two_data_keys_are_no_key_either(enc, df):
    both = pd.concat([enc, df.kms.encrypt(RANDOMISED, deterministic=DETERMINISTIC, key=KEY)])
    for use in (
        lambda: both.groupby("city").size(),
        lambda: both["zip"].unique(),
        lambda: both.merge(both, on="city"),
    ):
        with pytest.raises(TypeError, match="under 2 keys"):
            use()


# Several data keys, several types.


def test_concat_of_two_data_keys(enc, df, unwraps):
    other = df.kms.encrypt(RANDOMISED, deterministic=DETERMINISTIC, key=KEY)
    both = pd.concat([enc, other, enc[:2]], ignore_index=True)
    assert all(isinstance(both[name].dtype, EncryptedDtype) for name in (*DETERMINISTIC, *RANDOMISED))
    assert len(both["name"].dtype.header.columns) == 2
    check(both.sample(frac=1, random_state=3).sort_index(), pd.concat([df, df, df[:2]], ignore_index=True))
    assert len(unwraps) == len(set(unwraps)) == 2
    unwraps.clear()
    check(both[both.index < len(df)], df)  # its dtype still names both keys
    assert len(unwraps) == 2
    unwraps.clear()
    check(pd.concat([enc, enc]), pd.concat([df, df]))
    assert len(unwraps) == 1


def test_concat_of_two_types_under_one_data_key(enc, df):
    later = pd.DataFrame({"name": [1.5, 2.5], "age": ["old", "young"]})
    sealed = later.kms.encrypt(["name", "age"], key=enc)
    both = pd.concat([enc[["name", "age"]], sealed], ignore_index=True)
    assert isinstance(both["name"].dtype, kmsdata.EncryptedDtype)
    assert {type(cell) for cell in both["name"].dropna()} == {Cell}
    expected = pd.concat([df[["name", "age"]].astype(object), later.astype(object)], ignore_index=True)
    check(both, expected.assign(name=expected["name"].astype(object).where(expected["name"].notna(), pd.NA)))


def test_a_column_set_from_another_data_key(enc, df):
    other = df.kms.encrypt("name", key=KEY)
    mixed = enc.assign(name=other["name"])
    check(mixed, df)
    assert mixed["name"].dtype == other["name"].dtype != enc["name"].dtype


# What is refused.


def set_iloc(frame, value):
    frame.iloc[0, frame.columns.get_loc("name")] = value


def set_at(frame, value):
    frame.at[0, "name"] = value


PLAIN = {
    "setitem": lambda f, v: with_item(f, "name", 0, v),
    "iloc": lambda f, v: set_iloc(f.copy(), v),
    "at": lambda f, v: set_at(f.copy(), v),
    "mask of rows": lambda f, v: with_item(f, "name", f["group"] == "a", v),
    "array": lambda f, v: f["name"].array.copy().__setitem__(0, v),
    "fillna": lambda f, v: f["name"].fillna(v),
    "where": lambda f, v: f["name"].where(f["group"] == "a", v),
    "mask": lambda f, v: f["name"].mask(f["group"] == "a", v),
    "shift": lambda f, v: f["name"].shift(1, fill_value=v),
    "reindex": lambda f, v: f["name"].reindex([0, 99], fill_value=v),
    "insert": lambda f, v: f["name"].array.insert(0, v),
}


@pytest.mark.parametrize("put", PLAIN)
@pytest.mark.parametrize("value", ["text", 5, 1.5, b"\x01bytes", "foreign"])
def test_plain_values_and_foreign_cells_do_not_get_in(put, value, enc, df):
    match = "takes cells and nulls only"
    if value == "foreign":
        value = df.kms.encrypt("name", key=KEY)["name"].iloc[0]
        match = "could not be decrypted: (it has|they have) another data key"
    with pytest.raises(TypeError, match=match):
        PLAIN[put](enc, value)


def test_plain_frames_do_not_get_in(enc):
    for fill in (lambda: enc.where(enc["id"] > 12, 0), lambda: enc.mask(enc["id"] > 12, "?")):
        with pytest.raises(TypeError, match="takes cells and nulls only"):
            fill()


VALUES = {
    "==": lambda f: f["city"] == "Oslo",
    "!=": lambda f: f["city"] != "Oslo",
    "== None": lambda f: f["city"] == None,  # noqa: E711
    "== of all": lambda f: f == "Oslo",
    "== a list": lambda f: f["city"] == ["Oslo"] * 8,
    "== an array": lambda f: f["city"] == np.array(["Oslo"] * 8, object),
    "isin": lambda f: f["city"].isin(["Oslo"]),
    "isin of all": lambda f: f.isin(["Oslo"]),
    "query": lambda f: f.query("city == 'Oslo'"),
    "replace": lambda f: f["city"].replace("Oslo", "Rome"),
    "map": lambda f: f["city"].map({"Oslo": 1}),
    "reindex": lambda f: f.drop_duplicates("city").set_index("city").reindex(["Oslo"]),
    "loc": lambda f: f.set_index("city").loc[["Oslo"]],
    "in": lambda f: "Oslo" in f["city"].array,
}


@pytest.mark.parametrize("compare", VALUES)
def test_plain_values_are_not_looked_for(compare, enc):
    with pytest.raises(TypeError, match=r"not with values|not values|plain values"):
        VALUES[compare](enc)


def test_cells_compare_with_cells(enc, df):
    expected = (df["city"] == "Oslo").astype("boolean").mask(df["city"].isna())
    tm.assert_series_equal(enc["city"] == enc["city"].iloc[0], expected, check_names=False)
    tm.assert_series_equal(enc["city"] != enc["city"].iloc[0], ~expected, check_names=False)
    tm.assert_series_equal(np.equal(enc["city"], enc["city"].iloc[0]), expected, check_names=False)
    again = df.kms.encrypt(RANDOMISED, deterministic=DETERMINISTIC, key=enc)
    assert (enc["city"] == again["city"]).dropna().all()
    assert enc["city"].isin([enc["city"].iloc[0]]).equals(df["city"] == "Oslo")
    assert enc["city"].isin([None]).equals(df["city"].isna())
    assert not enc["city"].isin([]).any()
    assert enc.equals(enc.copy())
    assert not enc.equals(again)  # the randomised ones differ
    assert not enc["city"].equals(df["city"])
    foreign = df.kms.encrypt(deterministic=DETERMINISTIC, key=KEY)
    for compare in (
        lambda: enc["city"] == foreign["city"],
        lambda: enc["city"] == foreign["city"].iloc[0],
        lambda: enc["city"].isin(foreign["city"]),
        lambda: enc["city"].isin([foreign["city"].iloc[0]]),
    ):
        with pytest.raises(TypeError, match="different data keys"):
            compare()
    with pytest.raises(TypeError, match="domain, kind or algorithm"):
        enc["city"] == enc["zip"]  # noqa: B015
    with pytest.raises(ValueError, match="Lengths"):
        enc["city"].array == enc["city"].array[:2]  # noqa: B015


CALCULATIONS = {
    "+": lambda s: s + 1,
    "right +": lambda s: 1 + s,
    "+ itself": lambda s: s + s,
    "-": lambda s: -s,
    "~": lambda s: ~s,
    "&": lambda s: s & True,
    "frame +": lambda s: s.to_frame() + 1,
    "**": lambda s: s**2,
    "divmod": lambda s: divmod(s, 2),
    "<": lambda s: s < s.iloc[0],
    ">= itself": lambda s: s >= s,
    "between": lambda s: s.between(s.iloc[0], s.iloc[1]),
    "sum": lambda s: s.sum(),
    "min": lambda s: s.min(),
    "max": lambda s: s.max(),
    "mean": lambda s: s.mean(),
    "median": lambda s: s.median(),
    "std": lambda s: s.std(),
    "any": lambda s: s.any(),
    "frame sum": lambda s: s.to_frame().sum(),
    "quantile": lambda s: s.quantile(),
    "cumsum": lambda s: s.cumsum(),
    "cummax": lambda s: s.cummax(),
    "diff": lambda s: s.diff(),
    "clip": lambda s: s.clip(1, 2),
    "rank": lambda s: s.rank(),
    "idxmax": lambda s: s.idxmax(),
    "argmin": lambda s: s.argmin(),
    "searchsorted": lambda s: s.searchsorted(s.iloc[0]),
    "interpolate": lambda s: s.interpolate(),
    "sort_values": lambda s: s.sort_values(),
    "frame sort_values": lambda s: s.to_frame().sort_values(s.name),
    "sort_values of two": lambda s: s.to_frame().assign(x=1).sort_values(["x", s.name]),
    "sort_index": lambda s: s.to_frame().assign(x=1).set_index(s.name).sort_index(),
    "groupby sum": lambda s: s.groupby([0, 1] * 4).sum(),
    "groupby max": lambda s: s.groupby([0, 1] * 4).max(),
    "groupby mean": lambda s: s.groupby([0, 1] * 4).mean(),
    "groupby cumsum": lambda s: s.groupby([0, 1] * 4).cumsum(),
    "groupby rank": lambda s: s.groupby([0, 1] * 4).rank(),
    "numpy log": lambda s: np.log(s),
    "numpy add": lambda s: np.add(s, 1),
    "numpy isnan": lambda s: np.isnan(s),
    "numpy max": lambda s: np.max(s),
    "int": lambda s: s.astype("int64"),
    "Float64": lambda s: s.astype("Float64"),
    "bool": lambda s: s.astype(bool),
    "datetime": lambda s: s.astype("datetime64[ns]"),
    "category": lambda s: s.astype("category"),
    "numpy float": lambda s: s.to_numpy(float),
}


@pytest.mark.parametrize("calculate", CALCULATIONS)
@pytest.mark.parametrize("column", ["zip", "age"])
def test_ciphertext_is_not_calculated_with(calculate, column, enc):
    with pytest.raises(TypeError, match=r"[Dd]ecrypt it first"):
        CALCULATIONS[calculate](enc[column])


def test_other_columns_are_calculated_with_as_ever(df, enc):
    tm.assert_series_equal(enc.sum(numeric_only=True), df[["id"]].sum())
    tm.assert_frame_equal(enc.describe(), df[["id"]].describe())
    assert list(enc.select_dtypes("number")) == ["id"]
    assert enc.count().equals(df.count())
    assert enc.isna().equals(df.isna())
    assert enc["city"].describe()["unique"] == 3
    assert enc["city"].hasnans


# What it looks like, and what it is as text.


def test_marks_on_screen(enc):
    buffer = io.StringIO()
    enc.info(buf=buffer)
    shown = [
        repr(enc),
        enc.to_string(),
        enc._repr_html_(),
        enc.to_html(),
        repr(enc["city"]),
        repr(enc["name"].array),
    ]
    for text in shown:
        assert re.search(r"enc#[0-9a-f]{8}", text)
        assert "<NA>" in text or "&lt;NA&gt;" in text
    for text in [
        *shown,
        buffer.getvalue(),
        repr(enc.dtypes),
        repr(enc.iloc[0]),
        repr(enc.set_index("city").index),
    ]:
        assert "b'" not in text
        assert "\\x" not in text
    assert "encrypted[int64]" in repr(enc.dtypes)
    assert "encrypted[int64]" in buffer.getvalue()
    marks = enc["city"].map(repr)
    assert marks[0] == marks[3] == marks[7] != marks[1]
    names = enc["name"].map(repr)
    assert names[0] != names[7]  # the same name, under another IV


@pytest.mark.newest
def test_styler(enc):
    assert "\\x" not in enc.style.to_html()


def test_text_is_the_whole_ciphertext(enc, df, tmp_path):
    cell = enc["name"].iloc[0]
    assert str(cell).startswith("enc:")
    assert len(str(cell)) > len(bytes(cell))
    for text in (enc["name"].astype(str), enc["name"].astype("string")):
        assert text.iloc[0] == str(cell)
        assert text.astype(object).iloc[1] == str(enc["name"].iloc[1])
    assert enc["name"].astype("string").isna().equals(df["name"].isna())

    enc.to_csv(tmp_path / "f.csv", index=False)
    raw = pd.read_csv(tmp_path / "f.csv", dtype=object)
    assert raw["name"][0] == str(cell)
    dtypes = {name: enc[name].dtype for name in (*DETERMINISTIC, *RANDOMISED)}
    for engine in ("c", "python"):
        back = pd.read_csv(tmp_path / "f.csv", dtype=dtypes, engine=engine)
        check(back, df)
    check(raw[list(dtypes)].astype(dtypes), df[list(dtypes)])
    with pytest.raises(TypeError, match="is not a cell"):
        raw[["name"]].replace(raw["name"][0], raw["name"][0][:-3]).astype({"name": dtypes["name"]})
    with pytest.raises(TypeError, match="takes cells"):
        df["name"].astype(dtypes["name"])


def test_functions_that_make_text_keep_text(enc):
    text = enc["name"].map(str, na_action="ignore")
    assert not isinstance(text.dtype, EncryptedDtype)
    assert text[0] == str(enc["name"][0])
    assert enc["name"].map(lambda cell: cell).to_frame().kms.encrypted == ["name"]
    nothing = enc["name"].map(lambda _: None)
    assert not isinstance(nothing.dtype, EncryptedDtype)
    first = enc["name"][0]
    with pytest.warns(UserWarning, match="map made cells and plain values"):
        some = enc["name"].map(lambda cell: cell if cell is pd.NA or cell == first else str(cell))
    assert some[0] == first
    assert some[1] == str(enc["name"][1])


def test_json(enc, df):
    data = json.loads(enc.to_json(orient="columns", date_format="iso"))
    assert data["name"]["0"] == str(enc["name"][0])
    assert data["city"]["2"] is None
    back = pd.DataFrame(
        {name: pd.Series(list(data[name].values()), dtype=object) for name in ("city", "name", "age")}
    )
    check(back.astype(enc[["city", "name", "age"]].dtypes), df[["city", "name", "age"]])


def test_json_does_not_crash_the_interpreter():
    code = (
        "import pandas as pd, kmsdata\n"
        "kmsdata.LocalKeystore().create_key('demo', quiet=True)\n"
        "df = pd.DataFrame({'a': ['x', None], 'b': [1, 2], 'c': [1.5, 2.5]})\n"
        "enc = df.kms.encrypt('b', deterministic='a', key='local://demo')\n"
        "for orient in ('columns', 'records', 'index', 'split', 'table', 'values'):\n"
        "    for data in (enc, enc[['b']], enc.astype(object), enc.iloc[0].to_frame()):\n"
        "        assert 'enc:' in data.to_json(orient=orient), orient\n"
        "text = enc['a'].to_json()\n"
        "assert __import__('json').loads(text) == {'0': str(enc['a'][0]), '1': None}, text\n"
        "assert 'enc:' in enc.set_index('a')['b'].to_json(orient='split')\n"
    )
    in_process(code)


# Memory, copies, pickles.


def test_the_callers_frames_are_untouched(df, enc):
    before, sealed = df.copy(), enc.copy()
    df.kms.encrypt(RANDOMISED, deterministic=DETERMINISTIC, key=KEY)
    enc.kms.decrypt()
    view = enc["name"][:4]
    changed = enc.copy(deep=PANDAS_2)  # pandas 2 lets a shallow copy write through
    changed.loc[0, "name"] = None
    changed["city"] = changed["city"].shift(1)
    tm.assert_frame_equal(df, before)
    assert enc.equals(sealed)
    assert view[0] == sealed["name"][0]
    array = enc["name"].array
    slice_ = array[:3]
    slice_[0] = None
    assert array[0] == sealed["name"][0]


def test_read_only_arrays_stay_so(enc):
    array = enc["name"].array.copy()
    array._readonly = True
    for view in (array, array[:], array[1:3], array.view()):
        with pytest.raises(ValueError, match="read-only"):
            view[0] = None
    array.copy()[0] = None


def test_attrs_stay(df):
    df.attrs["source"] = "survey"
    sealed = df.kms.encrypt("name", key=KEY)
    assert (
        sealed.attrs == sealed[sealed["id"] > 12].attrs == sealed.kms.decrypt().attrs == {"source": "survey"}
    )


def test_a_slice_shares_memory_and_pickles_small():
    big = pd.DataFrame({"n": np.arange(1_000_000)}).kms.encrypt("n", key=KEY)["n"]
    text = pd.DataFrame({"n": np.arange(200_000).astype(str)}).kms.encrypt("n", key=KEY)["n"]
    for column in (big, text):
        array = column.array
        assert array.copy().storage.buffers()[-1].address == array.storage.buffers()[-1].address
        assert array[10:].storage.buffers()[-1].address == array.storage.buffers()[-1].address
        header = len(column.dtype.text)
        assert len(pickle.dumps(column[5000:5010])) < 10_000 + header
        assert len(pickle.dumps(column[:0])) < 10_000 + header
        assert len(pickle.dumps(array)) < array.nbytes + 10_000 + header
        assert pickle.loads(pickle.dumps(column[5000:5010])).equals(column[5000:5010])  # noqa: S301


def identity(frame):
    return frame.iloc[::-1]


def test_other_processes(enc, df):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        back = pool.apply(identity, (enc,))
    check(back, df.iloc[::-1])
    assert back["name"].dtype == enc["name"].dtype


def test_dtypes_are_equal_by_their_column_objects(enc, df):
    again = df.kms.encrypt(RANDOMISED, deterministic=DETERMINISTIC, key=enc)
    other = df.kms.encrypt(RANDOMISED, deterministic=DETERMINISTIC, key=KEY)
    rewrapped = EncryptedDtype(enc["name"].dtype.text.replace('"local://demo"', '"local://elsewhere"'))
    for same in (again["name"].dtype, rewrapped, pickle.loads(pickle.dumps(enc["name"].dtype))):  # noqa: S301
        assert same == enc["name"].dtype
        assert hash(same) == hash(enc["name"].dtype)
    assert rewrapped.text != enc["name"].dtype.text
    for unlike in (other["name"].dtype, enc["age"].dtype, "encrypted[int64]", enc["name"].dtype.name, None):
        assert unlike != enc["name"].dtype
    # In Python True == 1, in JSON not.
    text = enc["name"].dtype.text
    one, true = (text.replace('"type":{', f'"type":{{"a":{value},') for value in ("1", "true"))
    assert EncryptedDtype(one) != EncryptedDtype(true)
    again = pd.Series(EncryptedArray(enc["name"].array.storage, rewrapped))
    joined = pd.concat([enc["name"], again])
    assert [wrap.key for wrap in joined.dtype.header.records[0].wraps] == [KEY, "local://elsewhere"]


# Arrow.


@pytest.mark.parametrize(
    "storage",
    [pa.binary(), pa.large_binary(), "fixed", *([pa.binary_view()] if hasattr(pa, "binary_view") else [])],
    ids=str,
)
@pytest.mark.parametrize("column", ["city", "age"])
def test_any_binary_storage_is_cells(storage, column, df, enc):
    array = enc[column].array
    if storage == "fixed":
        if column == "city":
            return  # of several lengths
        storage = array.storage.type
    raw = pa.array(array.storage.to_pylist(), storage)
    ext = pa.ExtensionArray.from_storage(EncryptedType(storage, array.dtype), raw)
    for given in (raw, ext, pa.chunked_array([ext[:3], ext[3:]]), pa.chunked_array([], ext.type)):
        column_again = EncryptedArray(given, array.dtype)
        assert column_again.storage.type == array.storage.type
        check(pd.DataFrame({column: column_again}), df[[column]][: len(given)])


def test_storage_is_decided_by_type_alone(enc):
    array = enc["age"].array
    assert pa.types.is_fixed_size_binary(array.storage.type)
    several = [
        EncryptedArray._from_sequence(list(array)),
        pd.concat([enc["age"], enc["age"].astype(object).astype(array.dtype)]).array,
        with_item(enc, "age", 1, array[0])["age"].array,
        enc["age"].shift(1).array,
        enc["age"][:0].array,
    ]
    for one in several:
        assert one.storage.type == array.storage.type
        assert one.__arrow_array__().type == array.__arrow_array__().type


def test_tables(df, enc):
    table = pa.Table.from_pandas(enc)
    assert isinstance(table.schema.field("name").type, EncryptedType)
    assert table.schema.field("name").type.storage_type == pa.binary()
    check(table.to_pandas(), df)
    check(
        table.filter(pa.compute.greater(table["id"], 12)).to_pandas(),
        df[df["id"] > 12].reset_index(drop=True),
    )
    check(table.take([7, 0]).to_pandas(), df.iloc[[7, 0]].reset_index(drop=True))
    check(table.sort_by([("id", "descending")]).to_pandas(), df[::-1].reset_index(drop=True))
    check(pa.concat_tables([table, table]).to_pandas(), pd.concat([df, df], ignore_index=True))
    assert table.group_by("group").aggregate([("id", "sum")]).num_rows == 2
    right = pa.table({"id": [11, 17], "more": ["x", "y"]})
    joined = table.select(["id", "name", "city", "age"]).join(right, "id", join_type="inner").sort_by("id")
    check(joined.to_pandas(), df[["id", "name", "city", "age"]].merge(right.to_pandas(), on="id"))
    assert kmsdata.decrypt_table(joined).column("age").to_pylist() == [41, 9]
    assert pickle.loads(pickle.dumps(table)).equals(table)  # noqa: S301
    for batch in table.to_batches(3):
        assert isinstance(batch.schema.field("name").type, EncryptedType)


def test_headers_never_change_places(df, enc, tmp_path):
    """Two tables with different headers: the cells of one cannot be decrypted under the other's header."""
    other = df.kms.encrypt(RANDOMISED, deterministic=DETERMINISTIC, key=KEY)
    table, foreign = pa.Table.from_pandas(enc), pa.Table.from_pandas(other)
    assert table.schema.field("name").type != foreign.schema.field("name").type
    refused = (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError)
    for put in (
        lambda: pa.concat_tables([table, foreign]),
        lambda: pa.concat_tables([table, foreign], promote_options="permissive"),
        lambda: pa.unify_schemas([table.schema, foreign.schema]),
        lambda: table.cast(foreign.schema),
        lambda: pa.chunked_array([table["name"].chunk(0), foreign["name"].chunk(0)]),
        lambda: table["name"].cast(foreign.schema.field("name").type),
        lambda: pa.Table.from_batches([*table.to_batches(), *foreign.to_batches()]),
        lambda: pa.Table.from_pandas(enc, schema=foreign.schema),
        lambda: pa.RecordBatch.from_pandas(enc, schema=foreign.schema),
        lambda: pa.array(enc["name"], type=foreign.schema.field("name").type),
        lambda: pa.table({"name": enc["name"]}, schema=pa.schema([foreign.schema.field("name")])),
        lambda: enc.to_parquet(tmp_path / "x.parquet", schema=foreign.schema),
    ):
        with pytest.raises(refused):
            put()
    with pq.ParquetWriter(tmp_path / "w.parquet", table.schema) as writer:
        writer.write_table(table)
        with pytest.raises(refused):
            writer.write_table(foreign)
    # Under its own header, and as plain bytes on request, all this works.
    again = pa.Table.from_pandas(enc[:2], schema=table.schema)
    assert again.schema.field("name").type == table.schema.field("name").type
    check(again.to_pandas(), df[:2])
    plain = pa.Table.from_pandas(enc, schema=pa.schema([("id", pa.int64()), ("name", pa.binary())]))
    assert plain["name"].to_pylist() == enc["name"].array.storage.to_pylist()
    with pytest.raises(TypeError, match="lose its header"):
        pa.array(enc["name"].array, type=pa.binary())


def test_a_header_put_over_other_cells_is_noticed(df, enc):
    """No library can prevent a caller from putting another header on the storage."""
    other = df.kms.encrypt(RANDOMISED, deterministic=DETERMINISTIC, key=KEY)
    for column in ("name", "city", "age"):
        swapped = pd.DataFrame({column: EncryptedArray(enc[column].array.storage, other[column].dtype)})
        with pytest.raises(kmsdata.WrongKeyError) as caught:
            swapped.kms.decrypt()
        assert caught.value.column == column


def test_long_columns_leave_in_chunks(monkeypatch, df, enc):
    longest = max(len(bytes(cell)) for cell in enc["name"].dropna())
    monkeypatch.setattr(storage_module, "MOST_BYTES", 2 * longest)
    for part in (enc["name"], enc["name"][1:7], enc["name"][3:4], enc["name"][:0]):
        chunks = storage_module.chunks(part.array.storage)
        assert sum(map(len, chunks)) == len(part)
        assert all(sum(len(cell or b"") for cell in chunk.to_pylist()) <= 2 * longest for chunk in chunks)
        assert [cell for chunk in chunks for cell in chunk.to_pylist()] == part.array.storage.to_pylist()
    table = pa.Table.from_pandas(enc)
    assert table["name"].num_chunks > 1
    assert table["name"].type.storage_type == pa.binary()
    check(table.to_pandas(), df)
    monkeypatch.setattr(storage_module, "MOST_BYTES", 1)  # shorter than any cell: one each
    check(pa.Table.from_pandas(enc).to_pandas(), df)


# Files.


@pytest.fixture
def file(enc, tmp_path):
    path = tmp_path / "people.parquet"
    enc.kms.to_parquet(path)
    return path


WRITERS = {
    "kms": lambda frame, path: frame.kms.to_parquet(path),
    "pandas": lambda frame, path: frame.to_parquet(path),
    "pandas without index": lambda frame, path: frame.to_parquet(path, index=False),
    "pyarrow": lambda frame, path: pq.write_table(pa.Table.from_pandas(frame), path),
    "row groups": lambda frame, path: pq.write_table(pa.Table.from_pandas(frame), path, row_group_size=3),
}


@pytest.mark.parametrize("write", WRITERS)
def test_files_of_every_writer(write, df, enc, tmp_path):
    path = tmp_path / "f.parquet"
    WRITERS[write](enc, path)
    for back in (pd.read_parquet(path), kmsdata.read_parquet(path), pq.read_table(path).to_pandas()):
        assert back.kms.encrypted == [*DETERMINISTIC, *RANDOMISED]
        check(back, df)
    for back in (
        pd.read_parquet(path, columns=["name", "id"]),
        kmsdata.read_parquet(path, columns=["name", "id"]),
    ):
        check(back, df[["name", "id"]])
    if write == "kms":  # the others write statistics, which Arrow cannot compare for extension types
        filtered = pd.read_parquet(path, filters=[("id", ">", 13)])
        check(filtered, df[df["id"] > 13].reset_index(drop=True))


def test_indexes_in_files(df, enc, tmp_path):
    for number, frame in enumerate(
        [enc.set_index("city"), enc.set_index(["zip", "city"]), enc.set_index("name")]
    ):
        path = tmp_path / f"{number}.parquet"
        frame.to_parquet(path)
        expected = df.set_index(frame.index.names if number == 1 else frame.index.name)
        check(pd.read_parquet(path), expected)


def test_feather(df, enc, tmp_path):
    enc.to_feather(tmp_path / "f.feather")
    check(pd.read_feather(tmp_path / "f.feather"), df)
    check(pyarrow.feather.read_table(tmp_path / "f.feather").to_pandas(), df)


def test_arrow_backed_frames(df, file):
    frame = pd.read_parquet(file, dtype_backend="pyarrow")
    assert isinstance(frame["name"].dtype, pd.ArrowDtype)
    assert frame.kms.encrypted == [*DETERMINISTIC, *RANDOMISED]
    opened = frame.kms.decrypt()
    for column in (*DETERMINISTIC, *RANDOMISED):
        tm.assert_series_equal(opened[column], df[column])


def test_folders_of_one_data_key(df, enc, tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for number, part in enumerate([enc[:3], enc[3:3], enc[3:]]):
        part.to_parquet(folder / f"{number}.parquet")
    check(ds.dataset(folder).to_table().to_pandas(), df)
    check(pd.read_parquet(folder), df)
    check(kmsdata.read_parquet(folder), df)


def test_folders_of_two_data_keys(df, enc, tmp_path, unwraps):
    folder = tmp_path / "parts"
    folder.mkdir()
    enc.to_parquet(folder / "1.parquet")
    df.kms.encrypt(RANDOMISED, deterministic=DETERMINISTIC, key=KEY).to_parquet(folder / "2.parquet")
    for read in (lambda: ds.dataset(folder).to_table(), lambda: pd.read_parquet(folder)):
        with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
            read()
    unwraps.clear()
    both = kmsdata.read_parquet(folder)
    assert len(both["name"].dtype.header.columns) == 2
    check(both, pd.concat([df, df], ignore_index=True))
    assert len(unwraps) == 2


def test_partitions(df, enc, tmp_path):
    enc.to_parquet(tmp_path / "parts", partition_cols=["group"])
    expected = df.sort_values(["group", "id"]).reset_index(drop=True)
    for read in (pd.read_parquet, kmsdata.read_parquet):
        back = read(tmp_path / "parts").kms.decrypt()
        back = back.astype({"group": expected["group"].dtype})[list(df)]
        tm.assert_frame_equal(back.sort_values(["group", "id"]).reset_index(drop=True), expected)


def test_a_malformed_header_spoils_its_own_column_only(df, enc, tmp_path):
    table = pa.Table.from_pandas(enc[["id", "name", "city"]])
    storage = pa.chunked_array([chunk.storage for chunk in table["name"].chunks])
    good = enc["name"].dtype.text
    texts = [
        "",
        "no JSON",
        "{}",
        good[:-1],
        good.replace(":1}", ":2}"),
        good.replace("AES-256-GCM", "ROT13"),
        "\udcff",
    ]
    for number, text in enumerate(texts):
        ext = EncryptedType(pa.binary(), EncryptedDtype(text))
        column = pa.chunked_array([pa.ExtensionArray.from_storage(ext, chunk) for chunk in storage.chunks])
        path = tmp_path / f"{number}.parquet"
        pq.write_table(table.set_column(1, "name", column), path)
        frame = pd.read_parquet(path)
        assert frame["id"].tolist() == df["id"].tolist()
        assert "encrypted[?]" in repr(frame.dtypes)
        assert len(repr(frame[frame["id"] > 12])) > 0
        check(frame[["id", "city"]], df[["id", "city"]])
        accessor = frame.kms
        city = accessor.decrypt("city")["city"]
        tm.assert_series_equal(city, df["city"])
        assert accessor.encrypted == ["name", "city"]
        for columns in (None, "name"):
            with pytest.raises(FormatError, match="'name'") as caught:
                accessor.decrypt(columns)
            assert caught.value.column == "name"
        with pytest.raises(FormatError):
            frame["name"].unique()
        with pytest.raises(FormatError) as caught:
            kmsdata.read_parquet(path)
        assert caught.value.column == "name"
        assert str(path) in str(caught.value)


def test_readers_without_kmsdata_see_bytes(file, enc, tmp_path):
    enc.to_feather(tmp_path / "f.feather")
    code = (
        "import sys, pandas as pd\n"
        "for frame in (pd.read_parquet(sys.argv[1]), pd.read_feather(sys.argv[2])):\n"
        "    assert 'kmsdata' not in sys.modules\n"
        "    assert frame['name'].dtype == object and type(frame['name'][0]) is bytes, frame.dtypes\n"
        "    assert frame['name'][3] is None\n"
        "    assert frame['id'].tolist() == list(range(10, 18))\n"
        "    print(frame['city'][0].hex())\n"
    )
    assert in_process(code, file, tmp_path / "f.feather").split() == [bytes(enc["city"][0]).hex()] * 2


def test_kmsdata_imported_too_late_says_so(file):
    code = (
        "import sys, pandas as pd\n"
        "frame = pd.read_parquet(sys.argv[1])\n"
        "import kmsdata\n"
        "assert frame.kms.encrypted == []\n"
        "try:\n"
        "    frame.kms.decrypt('name')\n"
        "except kmsdata.FormatError as error:\n"
        "    print(error)\n"
        "print(kmsdata.read_parquet(sys.argv[1]).kms.decrypt()['name'].tolist()[0])\n"
    )
    said, name = in_process(code, file).splitlines()
    assert "'name' has no kmsdata header" in said
    assert name == "Ada"


# Others that read and write Parquet.


def rewritten(path, df, *, header):
    """Read a file that other software read and wrote: either it decrypts, or an error is raised."""
    frame = kmsdata.read_parquet(path)
    if header:
        assert frame.kms.encrypted == [*DETERMINISTIC, *RANDOMISED]
        opened = frame.kms.decrypt()
        for column in (*DETERMINISTIC, *RANDOMISED):
            tm.assert_series_equal(opened[column], df[column], check_index=False)
        return
    assert frame.kms.encrypted == []
    assert type(frame["name"][0]) is bytes
    with pytest.raises(FormatError, match="no kmsdata header"):
        frame.kms.decrypt("name")
    with pytest.raises(FormatError, match="must be encrypted") as caught:
        kmsdata.read_parquet(path, encrypted=["name"])
    assert caught.value.column == "name"


@pytest.mark.newest
def test_duckdb(file, df, enc, tmp_path):
    duckdb = pytest.importorskip("duckdb")
    source = duckdb.read_parquet(str(file))
    assert str(dict(zip(source.columns, source.types, strict=True))["name"]) == "BLOB"
    rows = source.filter("id > 12").order("id").project("name").fetchall()
    assert [row for (row,) in rows] == enc["name"][enc["id"] > 12].array.storage.to_pylist()
    groups = source.aggregate("count(*)", "city").fetchall()
    assert sorted(count for (count,) in groups) == sorted(df["city"].value_counts(dropna=False))
    source.write_parquet(str(tmp_path / "d.parquet"))
    rewritten(tmp_path / "d.parquet", df, header=False)


@pytest.mark.newest
def test_polars(file, df, enc, tmp_path):
    pl = pytest.importorskip("polars")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it does not know the type, and keeps it
        frame = pl.read_parquet(file)
        assert frame["name"].to_list() == enc["name"].array.storage.to_pylist()
        assert (
            frame.filter(pl.col("id") > 12)["city"].to_list()
            == enc["city"][enc["id"] > 12].array.storage.to_pylist()
        )
        frame.write_parquet(tmp_path / "p.parquet")
        frame.filter(pl.col("id") > 12).write_parquet(tmp_path / "some.parquet")
        check(frame.to_arrow().to_pandas()[list(df)].drop(columns="group"), df.drop(columns="group"))
        other = df.kms.encrypt(RANDOMISED, deterministic=DETERMINISTIC, key=KEY)
        other.kms.to_parquet(tmp_path / "other.parquet")
        with pytest.raises(pl.exceptions.PolarsError):
            pl.concat([frame, pl.read_parquet(tmp_path / "other.parquet")])
    rewritten(tmp_path / "p.parquet", df, header=True)
    rewritten(tmp_path / "some.parquet", df[df["id"] > 12].reset_index(drop=True), header=True)


@pytest.mark.newest
@pytest.mark.filterwarnings("ignore:The 'fastparquet' engine is deprecated")
def test_fastparquet(file, df, enc, tmp_path):
    pytest.importorskip("fastparquet")
    frame = pd.read_parquet(file, engine="fastparquet", columns=["id", "name", "city"])
    assert frame["name"].tolist()[:3] == enc["name"].array.storage.to_pylist()[:3]
    frame.to_parquet(tmp_path / "fp.parquet", engine="fastparquet")
    rewritten(tmp_path / "fp.parquet", df, header=False)
    with pytest.raises((TypeError, ValueError)):
        enc.to_parquet(tmp_path / "x.parquet", engine="fastparquet")


# Dask's own operations, with and without `kmsdata.dask`: the result is correct, or an error is raised.


@pytest.fixture
def dd():
    dask = pytest.importorskip("dask")
    dd = pytest.importorskip("dask.dataframe")
    with dask.config.set({"dataframe.convert-string": False, "scheduler": "sync"}):
        yield dd


@pytest.mark.newest
def test_dask_moves(dd, df, enc):
    parts = dd.from_pandas(enc, npartitions=3)
    assert parts.dtypes["name"] == enc["name"].dtype
    check(parts.compute(), df)
    check(parts[parts["id"] > 12].compute(), df[df["id"] > 12])
    check(parts.map_partitions(lambda part: part.kms.decrypt(), meta=df[:0]).compute(), df)
    right_or_loud(lambda: None, lambda: dd.concat([parts, parts]).compute(), pd.concat([df, df]))


@pytest.mark.newest
@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame:DeprecationWarning")  # of Dask 2026.8
def test_dask_files(dd, df, enc, tmp_path):
    parts = dd.from_pandas(enc, npartitions=3)
    right_or_loud(
        lambda: parts.to_parquet(tmp_path / "own"), lambda: kmsdata.read_parquet(tmp_path / "own"), df
    )
    enc[:4].to_parquet(tmp_path / "1.parquet")
    enc[4:].to_parquet(tmp_path / "2.parquet")
    right_or_loud(
        lambda: None, lambda: dd.read_parquet([tmp_path / "1.parquet", tmp_path / "2.parquet"]).compute(), df
    )
    other = df.kms.encrypt(RANDOMISED, deterministic=DETERMINISTIC, key=KEY)
    two = [parts, dd.from_pandas(other, npartitions=1)]
    both = pd.concat([df, df])
    right_or_loud(lambda: None, lambda: dd.concat(two).compute(), both)
    right_or_loud(
        lambda: dd.concat(two).to_parquet(tmp_path / "two"),
        lambda: kmsdata.read_parquet(tmp_path / "two"),
        both,
    )


@pytest.mark.newest
def test_dask_joins(dd, df, enc):
    parts = dd.from_pandas(enc[["id", "city"]], npartitions=3)
    right = other_frame()[["city", "more"]]
    sealed = dd.from_pandas(right.kms.encrypt(deterministic="city", key=enc), npartitions=2)
    foreign = dd.from_pandas(right.kms.encrypt(deterministic="city", key=KEY), npartitions=2)
    expected = df[["id", "city"]].merge(right, on="city")
    right_or_loud(lambda: None, lambda: parts.merge(sealed, on="city").compute(), expected, sort=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Dask's own, that the dtypes differ
        with pytest.raises(TypeError, match=r"data key|Cannot interpret"):
            parts.merge(foreign, on="city").compute()
    counts = df.groupby("city")["id"].sum().reset_index()
    right_or_loud(
        lambda: None, lambda: parts.groupby("city")["id"].sum().compute().reset_index(), counts, sort=True
    )


def right_or_loud(write, read, expected, *, sort=False):
    try:
        write()
        result = read()
    except TypeError as error:
        assert "Cannot interpret 'encrypted[" in str(error)  # noqa: PT017 - this, or all that follows
        return
    result, expected = result.kms.decrypt(), expected.reset_index(drop=True)
    if sort:
        result, expected = by_values(result), by_values(expected)
    tm.assert_frame_equal(one_null(result.reset_index(drop=True)), one_null(expected), check_like=True)
