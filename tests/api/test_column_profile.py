"""Profiles of columns: figures, shapes and warnings that reveal no value, in bounded time."""

import datetime as dt
import decimal
import json
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from kmsdata.api import column_profile
from kmsdata.api.column_profile import profile_frame


def profile_of(values, **dtype):
    """Return the profile of one column."""
    (column,) = profile_frame(pd.DataFrame({"c": pd.Series(values, **dtype)})).columns
    return column


def warned(column, choice=None):
    return [said.text for said in column.warnings if choice in (None, said.choice)]


def refused(column):
    return {said.choice: said.text for said in column.refused}


# Figures.


def test_nulls_and_distinct_values():
    column = profile_of(["a", None, "b", "a", None])
    assert (column.nulls, column.distinct) == (2, 2)
    column = profile_of(pd.Categorical(["a", "b", "a"], categories=["a", "b", "unused"]))
    assert (column.nulls, column.distinct) == (0, 2)
    column = profile_of(pd.array([[1], None], pd.ArrowDtype(pa.list_(pa.int64()))))
    assert (column.nulls, column.distinct) == (1, None)  # pandas cannot count lists of Arrow
    for odd in ([1, 2], {"a": 1}, (1, 2), {1}):
        assert profile_of([odd] * 3, dtype=object).distinct is None
    assert profile_of([decimal.Decimal(1), "a", b"b", None, dt.date(2026, 1, 1)], dtype=object).distinct == 4


class Hostile:
    """A value that raises an error when it is counted; its text must not be shown."""

    def __hash__(self):
        raise RuntimeError("secret-in-an-error")

    def __repr__(self):
        return "secret-in-a-repr"


def test_values_that_cannot_be_hashed():
    column = profile_of([Hostile(), Hostile()], dtype=object)
    assert column.distinct is None
    assert column.shape == ""
    assert set(refused(column)) == {"randomised", "deterministic"}
    assert "secret" not in str(column)


@pytest.mark.parametrize("value", ["sNaN", "NaN", "1E+500", "Infinity"])
def test_decimals_that_cannot_be_compared_or_hashed(value):
    """pandas' own isna() fails for a frame with one signaling NaN."""
    odd = pd.Series([decimal.Decimal(value), *["x"] * 5], dtype=object)
    frame = pd.DataFrame({"a": ["x", None, *"abcd"], "odd": odd})
    a, odd_profile = profile_frame(frame).columns
    assert (a.nulls, a.distinct) == (1, 5)
    assert odd_profile.nulls == (value in ("sNaN", "NaN"))
    for text in (str(frame.kms), str(frame["odd"].kms), frame.kms._repr_html_()):
        assert "not encrypted" in text or "0 of 2 columns encrypted" in text


def test_frames_without_columns_or_rows():
    empty = profile_frame(pd.DataFrame())
    assert (empty.rows, empty.columns) == (0, ())
    assert str(empty).strip() == "0 rows, 0 columns"
    column = profile_of([], dtype="int64")
    assert (column.nulls, column.distinct, column.shape, column.warnings) == (0, 0, "", ())
    frame = pd.DataFrame({"a": [1], "b": ["x"]}).iloc[:0]
    assert [column.name for column in profile_frame(frame).columns] == ["a", "b"]


def test_large_frames_are_sampled(monkeypatch):
    monkeypatch.setattr(column_profile, "_MOST_ROWS", 1000)
    count = 49_000
    frame = pd.DataFrame({
        "week": np.arange(count) % 7,  # every 49th row is the same day
        "late": np.where(np.arange(count) < count - 9, 1.0, np.nan),
    })  # fmt: skip
    profile = profile_frame(frame)
    assert (profile.rows, profile.examined, profile.sampled) == (count, 1000, True)
    week, late = profile.columns
    assert profile.distinct(week) == "≥ 7"
    assert "few distinct values (7)" in warned(week)
    assert late.nulls == 9  # counted in all rows
    assert "a sample of 1,000 rows" in " ".join(str(profile).split())  # it is folded
    rows = column_profile._sampled_rows(count, 1000)
    assert rows.min() < 100
    assert rows.max() > count - 100
    assert np.bincount(rows * 10 // count).min() >= 95  # even
    assert "sample" not in str(profile_frame(frame.head(1000)))


@pytest.mark.slow
def test_the_time_is_bounded():
    """Measured: 0.4 s for 3 million rows and 11 columns, 1.7 s for 200 columns of text."""
    count = 1_000_000
    numbers = np.random.default_rng(1).integers(0, 10**9, count)
    text = pd.Series(numbers.astype(str))
    frame = pd.DataFrame({"number": numbers, "text": text, "objects": text.astype(object)})
    # pandas needs minutes to count the lists of such a column, since all of them have one hash value.
    frame["lists"] = pd.Series([[n] for n in range(count)], dtype=object)
    frame["categories"] = pd.Categorical(frame["text"])
    begin = time.process_time()
    profile_frame(frame)
    assert time.process_time() - begin < 15
    wide = pd.concat([frame[["objects"]].head(50_000).add_suffix(str(n)) for n in range(200)], axis=1)
    begin = time.process_time()
    assert profile_frame(wide).examined == 10_000
    assert time.process_time() - begin < 20


def test_thousands_of_columns():
    """Measured: 0.4 s for the panel, 1.3 s for the profile."""
    frame = pd.DataFrame({f"c{n}": ["a", "b", None] for n in range(3000)})
    begin = time.process_time()
    assert "0 of 3,000 columns encrypted" in str(frame.kms)
    assert time.process_time() - begin < 4
    begin = time.process_time()
    assert len(profile_frame(frame).columns) == 3000
    assert time.process_time() - begin < 8


# Shapes.

MANY = range(10, 30)


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        ([f"{n}1-{n}-{n}99" for n in MANY], "999-99-9999"),
        ([f"B{n}x" for n in MANY], "A99a"),
        ([f"身份{n}" for n in MANY], "xx99"),
        ([f"~{n}\t€" for n in MANY], "#99##"),
        ([f"{n} \u202e" for n in MANY], "99 #"),  # no control or bidirectional character
        (["x" * n for n in MANY], "a*"),
        ([f"user{'x' * (n % 9)}{n}@mail.org" for n in MANY], "a*9*@a*.a*"),
        ([f"{'ab-' * 30}{n}" for n in MANY], "aa-aa-aa-aa-aa-aa-aa-aa-…"),
        ([1000 + n for n in MANY], "9999"),
        ([-1000 - n for n in MANY], "9999"),
        ([None, *(13800000000.0 + n for n in MANY)], "99999999999"),
        ([n + 0.5 for n in MANY], ""),
        ([*map(float, MANY), 0.5], ""),
        (pd.array([1000 + n for n in MANY], dtype="Int64"), "9999"),
        (pd.Categorical([f"B{n}" for n in MANY]), "A99"),
        ([True, False] * 10, ""),
        (pd.date_range("2026-01-01", periods=20), ""),
        ([n.to_bytes(2, "big") for n in MANY], ""),
    ],
)
def test_shapes(values, shape):
    assert profile_of(values).shape == shape


@pytest.mark.parametrize(
    "values",
    [
        ["yes"] * 90 + ["no"] * 10,  # "aaa" would say which one is frequent
        ["+"] * 60 + ["-"] * 40,
        ["A+"] * 50 + ["B-", "O+", "AB-"],
        ["male"] * 30 + ["female"] * 30,
        ["only one"] * 50,
        ["a@x.org", "bo@x.org"],
    ],
)
def test_a_shape_that_few_values_have_is_not_shown(values):
    assert profile_of(values).shape == ""


def test_a_profile_contains_no_value():
    secrets = [f"Zqj{n}kvw@Xyz.org" for n in MANY]
    frame = pd.DataFrame({
        "text": secrets,
        "object": pd.Series(secrets, dtype=object),
        "category": pd.Categorical(secrets),
        "mixed": pd.Series([*secrets[:-1], decimal.Decimal("73519.25")], dtype=object),
        "number": [73519000 + n for n in MANY],
        "refused": pd.Series([*secrets[:-1], object()], dtype=object),
        "surrogate": pd.Series([*secrets[:-1], "Zqj\ud800"], dtype=object),
        "far": pd.Series([dt.datetime(9999, 3, 5)] * len(secrets), dtype="datetime64[s]"),
    })  # fmt: skip
    profile = profile_frame(frame)
    for text in (str(profile), profile._repr_html_(), profile.json(), repr(profile.columns)):
        for part in ("Zqj", "kvw", "Xyz", "73519", "9999-"):
            assert part not in text, part


# Warnings.


@pytest.mark.parametrize(
    ("values", "form"),
    [
        (["ada@x.org", "bo.b@mail.example.com", "c+d@y.co"], "an e-mail address"),
        (["078-05-1120", "219-09-9999", None], "an ID number"),
        (["11010519491231002X", "440524188001010014"], "an ID number"),
        ([110105194912310021, 440524188001010014], "an ID number"),
        (["4111 1111 1111 1111", "5500-0000-0000-0004"], "a payment card number"),
        ([4111111111111111, 5500000000000004], "a payment card number"),
        (["13812345678", "159 0000 1111", "186-2222-3333"], "a phone number"),
        ([13812345678.0, np.nan, 15900001111.0], "a phone number"),
        (["+49 30 901820", "+1 (555) 010-9999"], "a phone number"),
        (["(555) 010-9999", "555-010-9999"], "a phone number"),
        (["030 901820", "089/2180-0"], "a phone number"),
        ([f"E{n}123456" for n in range(6)], "an ID number"),  # passports
    ],
)
def test_personal_data_is_noticed(values, form):
    assert warned(profile_of(values), "plain") == [f"looks like {form}"]


@pytest.mark.parametrize(
    "values",
    [
        ["Ada", "Bo", "Cy"],
        ["ada@x.org", "none", "unknown", "n/a"],  # most are not
        [f"2026-01-{n}" for n in MANY],
        [f"2026-01-{n} 10:00:00" for n in MANY],
        [f"{n}/01/2026" for n in MANY],
        [f"{n}.5" for n in MANY],
        [1700000000 + n for n in MANY],  # seconds since 1970
        [36.6, 41.0],
        [True, False],
        ["x" * 200],
        [],
        [None, None],
    ],
)
def test_other_columns_do_not_look_like_personal_data(values):
    assert warned(profile_of(values), "plain") == []


def test_few_distinct_values_and_one_that_dominates():
    column = profile_of(["yes"] * 90 + ["no"] * 10)
    assert warned(column, "randomised") == ["few distinct values (2)"]  # lengths differ
    assert warned(column, "deterministic") == [
        "few distinct values (2)", "one value makes up 90% of the values",
    ]  # fmt: skip
    assert warned(profile_of(["Aa", "Bb"] * 9), "randomised") == []  # one length
    assert warned(profile_of([7] * 9), "deterministic") == ["only one distinct value"]
    half = profile_of([*["a"] * 50, *list("bcdefghijklmnopqrstuvwxyz") * 2])
    assert warned(half) == ["few distinct values (26)"]  # "a" is not more than half of the values
    assert warned(profile_of(["a"] * 99_999 + ["b"]), "deterministic")[1:] == [
        "one value makes up 99.9% of the values"  # not 100
    ]
    assert warned(profile_of(["Ada", "Bo", "Cy"])) == []  # each once
    assert warned(profile_of([1.5] * 9), "deterministic") == []  # floats cannot be deterministic


# What cannot be chosen.


def test_columns_that_cannot_be_deterministic():
    floats = refused(profile_of([1.5, 2.5]))
    assert list(floats) == ["deterministic"]
    assert floats["deterministic"].startswith("cannot be deterministic: floats are not supported")
    assert list(refused(profile_of([[1], [2]]))) == ["deterministic"]
    assert list(refused(profile_of([1j]))) == ["deterministic"]
    assert refused(profile_of(["a", None])) == refused(profile_of([1, 2])) == {}


def test_columns_that_cannot_be_encrypted():
    sparse = refused(profile_of(pd.arrays.SparseArray([0, 1])))
    assert set(sparse) == {"randomised", "deterministic"}
    assert "to_dense" in sparse["randomised"]
    frame = pd.DataFrame([[1, 2, 3, 4, 5]], columns=["twice", "twice", 3, ("a", "b"), "bad\ud800"])
    reasons = [refused(column) for column in profile_frame(frame).columns]
    assert all(set(reason) == {"randomised", "deterministic"} for reason in reasons)
    for reason, part in zip(
        reasons, ["2 columns have this label"] * 2 + ["int, not text", "tuple, not text", "lone surrogate"],
        strict=True,
    ):  # fmt: skip
        assert part in reason["randomised"]


def test_what_can_be_chosen_can_be_encrypted():
    """The picker offers nothing that fails, and refuses nothing that works."""
    frame = pd.DataFrame({
        "int": [1, 2],
        "float": [1.5, 2.0],
        "text": ["a", None],
        "bool": [True, False],
        "date": [dt.date(2026, 1, 1)] * 2,
        "when": pd.date_range("2026-01-01", periods=2, tz="UTC"),
        "category": pd.Categorical(["a", "b"]),
        "period": pd.period_range("2026", periods=2, freq="M"),
        "interval": pd.interval_range(0, 2),
        "decimal": [decimal.Decimal("1.5")] * 2,
        "list": [[1], None],
        "complex": [1j, 2j],
        "nothing": pd.Series([None, None], dtype=object),
        "object": [object(), object()],
        "sparse": pd.arrays.SparseArray([0, 1]),
        "arrow": pd.array([[1], None], pd.ArrowDtype(pa.list_(pa.int64()))),
        "seconds": pd.Series([dt.datetime(9999, 1, 1)] * 2, dtype="datetime64[s]"),
    })  # fmt: skip
    for column in profile_frame(frame).columns:
        for choice, arguments in [("randomised", {}), ("deterministic", {"deterministic": True})]:
            try:
                frame.kms.encrypt(column.name, key="local://demo", **arguments)
            except TypeError:
                assert choice in refused(column), column.name
            else:
                assert choice not in refused(column), column.name


def test_encrypted_columns():
    frame = pd.DataFrame({"a": ["x", None], "b": ["y", "z"], "c": [1, 2]})
    frame = frame.kms.encrypt("a", deterministic="b", key="local://demo")
    a, b, c = profile_frame(frame).columns
    assert (a.encrypted, b.encrypted, c.encrypted) == ("randomised", "deterministic", None)
    assert (a.nulls, a.distinct, a.shape, warned(a)) == (1, None, "", [])
    assert set(refused(a)) == {"plain", "randomised", "deterministic"}
    mixed = pd.DataFrame({"a": pd.Series([*frame["a"], "plain"], dtype=object)})
    (column,) = profile_frame(mixed).columns
    assert column.encrypted == "randomised"
    assert column.dtype == "object with cells"


def test_cells_without_their_header():
    frame = pd.DataFrame({"a": ["x", "y", "z"], "b": [1, 2, 3]})
    lost = frame.kms.encrypt("a", key="local://demo").astype({"a": str})
    a, b = profile_frame(lost).columns
    assert set(warned(a)) == {"looks like cells without their header"}
    assert a.shape == ""
    assert b.warnings == ()


def test_the_frame_is_not_changed():
    frame = pd.DataFrame({"a": ["x", "y"], "b": [[1], [2]]}, index=[5, 5])
    before = frame.copy(deep=True)
    profile_frame(frame)
    pd.testing.assert_frame_equal(frame, before)


def test_a_profile_as_text_html_and_json():
    frame = pd.DataFrame({"mail": ["a@x.org", "b@x.org"], "<b>&": [1.5, None], 3: ["p", "q"]})
    profile = profile_frame(frame)
    assert str(profile).splitlines()[0] == "2 rows, 3 columns"
    assert "looks like an e-mail address" in str(profile)
    assert "&lt;b&gt;&amp;" in profile._repr_html_()
    assert [column["name"] for column in json.loads(profile.json())["columns"]] == ["mail", "<b>&", "3"]
