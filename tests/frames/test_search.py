"""Equality on ciphertext: what is found, what is refused; and files give the rows that decryption gives."""

import datetime as dt
import decimal
import uuid

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kmsdata
from kmsdata.keys.envelope import Wrap
from kmsdata.parquet.filters import FileSearch

KEY = "local://demo"
D = decimal.Decimal
ZONE = "Asia/Shanghai"
QUICK = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
moments = st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1))
seconds = moments.map(lambda moment: moment.replace(microsecond=0))
whole = st.integers(-(2**40), 2**40)
small = st.integers(0, 9)
places = st.decimals(-1000, 1000, places=2, allow_nan=False).map(lambda d: d + 0)
spans = st.timedeltas(dt.timedelta(-(9**5)), dt.timedelta(9**5))
months = st.integers(-99, 99).map(lambda n: pd.Period(ordinal=n, freq="M"))
days = seconds.map(lambda m: pd.Interval(pd.Timestamp(m), pd.Timestamp(m) + pd.Timedelta("1D")))
objects = st.one_of(texts, st.integers(2, 9), st.dates(), st.integers(2**64, 2**66))


def of(dtype):
    """What makes a Series of this dtype."""
    return lambda values: pd.Series(
        values, dtype=pd.ArrowDtype(dtype) if isinstance(dtype, pa.DataType) else dtype
    )


def with_zone(values):
    return pd.Series(values, dtype="datetime64[us]").dt.tz_localize("UTC").dt.tz_convert(ZONE)


def intervals(dtype):
    return lambda values: pd.Series(pd.arrays.IntervalArray(values, dtype=f"interval[{dtype}, right]"))


# Name -> a strategy of values, what makes a Series of them, whether it may hold None.
COLUMNS = {
    "int64": (whole, of("int64"), False),
    "int8": (st.integers(-128, 127), of("int8"), False),
    "uint64": (st.integers(0, 2**64 - 1), of("uint64"), False),
    "Int32": (small, of("Int32"), True),
    "int64[pyarrow]": (whole, of(pa.int64()), True),
    "object int": (whole, of(object), True),
    "bool": (st.booleans(), of(bool), False),
    "boolean": (st.booleans(), of("boolean"), True),
    "object text": (texts, of(object), True),
    "string": (texts, of("string"), True),
    "string[pyarrow]": (texts, of(pa.string()), True),
    "category": (texts, lambda values: of(object)(values).astype("category"), True),
    "category of ints": (small, lambda values: of("int64")(values).astype("category"), False),
    "bytes": (st.binary(max_size=4), of(object), True),
    "binary[pyarrow]": (st.binary(max_size=4), of(pa.binary()), True),
    "datetime64[ns]": (moments, of("datetime64[ns]"), True),
    "datetime64[s]": (seconds, of("datetime64[s]"), True),
    "with a zone": (moments, with_zone, True),
    "timestamp[pyarrow]": (moments, of(pa.timestamp("us")), True),
    "dates": (st.dates(), of(object), True),
    "date32": (st.dates(), of(pa.date32()), True),
    "decimals": (places, of(object), True),
    "decimal128": (places, of(pa.decimal128(12, 2)), True),
    "uuids": (st.uuids(), of(object), True),
    "timedelta": (spans, of("timedelta64[ns]"), True),
    "time": (st.times(), of(pa.time64("us")), True),
    "period": (months, of("period[M]"), True),
    "interval": (whole.map(lambda n: pd.Interval(n, n + 5)), intervals("int64"), False),
    "interval of times": (days, intervals("datetime64[us]"), False),
    "mixed": (objects, lambda values: of(object)(["x", 3, *values]), True),
}


@pytest.mark.parametrize("name", COLUMNS)
@QUICK
@given(data=st.data())
def test_isin_finds_what_pandas_finds(name, data):
    values, make, nullable = COLUMNS[name]
    pool = data.draw(st.lists(values, min_size=1, max_size=6, unique_by=repr))
    cells = st.sampled_from([*pool, None] if nullable else pool)
    plain = make(data.draw(st.lists(cells, max_size=8))).rename("c")
    wanted = data.draw(st.lists(st.one_of(st.sampled_from(pool), values), max_size=5))
    encrypted = plain.to_frame().kms.encrypt(deterministic="c", key=KEY)
    # As the column itself would give them: Timestamps in its zone, and so on.
    wanted = make(wanted).tolist()[-len(wanted) :] if wanted else []
    found = encrypted.kms.isin("c", wanted)
    assert found.tolist() == [not is_null(value) and value in wanted for value in plain.tolist()]
    assert (found.name, found.dtype) == ("c", bool)
    assert encrypted.kms.isin("c", [*wanted, None]).tolist() == (found | plain.isna()).tolist()


def is_null(value):
    return pd.api.types.is_scalar(value) and pd.isna(value)


FIVES = [5, np.int32(5), np.uint8(5), 5.0, [5], (5,), {5}, {5: 1}, pd.Series([5]), pd.Index([5])]
FIVES += [
    np.array([5], "int16"),
    pd.array([5], "Int64"),
    pa.array([5]),
    pa.chunked_array([[5]]),
    pa.scalar(5),
]


@pytest.mark.parametrize("dtype", ["int64", "int16", "Int8", "int32[pyarrow]", "uint8", object])
def test_five_is_five(dtype):
    frame = pd.DataFrame({"n": pd.Series([4, 5, 6], dtype=dtype).array}, index=list("abc"))
    enc = frame.kms.encrypt(deterministic="n", key=KEY)
    for five in FIVES:
        wanted = pd.Series([False, True, False], index=list("abc"), name="n")
        pd.testing.assert_series_equal(enc.kms.isin("n", five), wanted)


def test_what_fits_but_cannot_be_there_is_not_there():
    frame = pd.DataFrame(
        {
            "int": [1, 2],
            "uint": pd.array([1, 2], "UInt8"),
            "text": ["a", "b"],
            "time": pd.to_datetime(["2024-01-01", "2024-01-02"]),
            "decimal": [D("1.50"), D("2.00")],
            "span": pd.to_timedelta([1, 2], "s"),
        }
    )
    enc = frame.kms.encrypt(deterministic=list(frame), key=KEY)
    for column, values in {
        "int": [2**70, 5.5, float("inf"), -(2**63) - 1],
        "uint": [-1, 2**64],
        "text": ["\ud800"],
        "time": [dt.datetime(1, 1, 1), np.datetime64("300000-01-01"), pd.Timestamp("3000-01-01")],
        "decimal": [D("Infinity"), D("1.5000001")],
        "span": [dt.timedelta.max],
    }.items():
        assert not enc.kms.isin(column, values).any(), column
    assert enc.kms.isin("decimal", [2, D("1.5")]).all()
    assert not enc.kms.isin("int", []).any()


MISFITS = {
    "int": ["5", True, D(5), b"5", np.array([5]).view("m8")[0]],  # NumPy 2.5 deprecates np.timedelta64(5)
    "text": [5, b"a", dt.date(2024, 1, 1)],
    "bytes": ["a", 5],
    "bool": [1, "True"],
    "naive": [pd.Timestamp("2024-01-01", tz="UTC"), "2024-01-01", dt.date(2024, 1, 1), 5],
    "aware": [pd.Timestamp("2024-01-01"), dt.datetime(2024, 1, 1), np.datetime64("2024-01-01")],
    "date": [pd.Timestamp("2024-01-01"), "2024-01-01"],
    "decimal": [1.5, "1.5", D("1E+2000000")],
    "uuid": [str(uuid.UUID(int=5)), 5],
    "span": [5, dt.time(1)],
    "clock": [dt.time(1, tzinfo=dt.UTC), "01:00"],
    "period": [pd.Period("2024", "Y"), "2024-01"],
    "interval": [pd.Interval(1, 2, "both"), 1],
    "mixed": [1.5, [1], object()],
}


@pytest.mark.parametrize("column", MISFITS)
def test_what_the_column_cannot_hold_is_a_mistake(column):
    at = pd.to_datetime(["2024-01-01", "2024-01-02"])
    frame = pd.DataFrame(
        {
            "int": [1, 2],
            "text": ["a", "b"],
            "bytes": [b"a", b"b"],
            "bool": [True, False],
            "naive": at,
            "aware": at.tz_localize(ZONE),
            "date": at.date,
            "decimal": [D("1.5"), D("2.5")],
            "uuid": [uuid.UUID(int=5), uuid.UUID(int=6)],
            "span": pd.to_timedelta([1, 2], "s"),
            "clock": pd.array([dt.time(1), dt.time(2)], pd.ArrowDtype(pa.time64("us"))),
            "period": at.to_period("M"),
            "interval": pd.interval_range(0, 2),
            "mixed": ["a", 1],
        }
    )
    enc = frame.kms.encrypt(deterministic=column, key=KEY)
    good = frame[column].tolist()
    assert enc.kms.isin(column, good).all()
    for value in MISFITS[column]:
        with pytest.raises(
            TypeError, match=f"column '{column}' .*cannot contain the value to find"
        ) as caught:
            enc.kms.isin(column, [good[0], value])
        assert "2024" not in str(caught.value)  # no value in a message


def test_among_mixed_objects_type_counts():
    values = ["1", 1, 2**70, None, pd.NaT, dt.date(2024, 1, 1)]
    frame = pd.DataFrame({"c": pd.Series(values, dtype=object)})
    enc = frame.kms.encrypt(deterministic="c", key=KEY)
    assert enc.kms.isin("c", ["1"]).tolist() == [True, False, False, False, False, False]
    assert enc.kms.isin("c", np.int32(1)).tolist() == [False, True, False, False, False, False]
    assert enc.kms.isin("c", [2**70, np.nan]).tolist() == [False, False, True, True, True, False]


def test_a_column_of_objects_that_is_empty_has_no_type_to_refuse_by():
    enc = pd.DataFrame({"c": pd.Series([None], dtype=object)}).kms.encrypt(deterministic="c", key=KEY)
    assert enc.kms.isin("c", [5]).tolist() == [False]
    assert enc.kms.isin("c", None).tolist() == [True]


def test_in_every_shape_that_pandas_gives_a_column():
    frame = pd.DataFrame({"a": ["x", "y", None], "b": [1, 2, 3]})
    enc = frame.kms.encrypt(deterministic=["a", "b"], key=KEY)
    for name, shape in {
        "objects": enc.astype({"a": object}),
        "Arrow": pa.Table.from_pandas(enc).to_pandas(types_mapper=pd.ArrowDtype),
        "index": enc.set_index("a"),
        "levels": enc.set_index(["b", "a"]),
        "categories": enc.assign(a=enc["a"].astype(object).astype("category")),
    }.items():
        found = shape.kms.isin("a", ["x", None])
        assert found.tolist() == [True, False, True], name
        assert found.index.equals(shape.index), name


def test_a_column_under_several_data_keys():
    one = pd.DataFrame({"a": pd.Series([1, 2], dtype="int32")})
    two = pd.DataFrame({"a": pd.Series([2, 3], dtype="int64")})
    both = pd.concat([f.kms.encrypt(deterministic="a", key=KEY) for f in (one, two)], ignore_index=True)
    before = kmsdata.usage()
    assert both.kms.isin("a", [2]).tolist() == [False, True, True, False]
    assert kmsdata.usage().unwrap - before.unwrap == 2
    words = pd.DataFrame({"a": ["2"]}).kms.encrypt(deterministic="a", key=KEY)
    mixed = pd.concat([both, words], ignore_index=True)
    assert mixed.kms.isin("a", [2, "2"]).tolist() == [False, True, True, False, True]
    with pytest.raises(TypeError, match="cannot contain"):
        mixed.kms.isin("a", [dt.date(2024, 1, 1)])


def test_what_cannot_be_searched():
    frame = pd.DataFrame({"a": ["x", "y"], "b": ["x", "y"], "plain": ["x", "y"]})
    enc = frame.kms.encrypt("a", deterministic="b", key=KEY)
    with pytest.raises(TypeError, match=r"randomised.*deterministic=\['a'\]"):
        enc.kms.isin("a", "x")
    with pytest.raises(kmsdata.FormatError, match="not encrypted"):
        enc.kms.isin("plain", "x")
    with pytest.raises(KeyError, match="did you mean 'plain'"):
        enc.kms.isin("plane", "x")
    for cells in (enc["b"], enc["b"].iloc[0], [enc["b"].iloc[0]], enc["b"].array.__arrow_array__()):
        with pytest.raises(TypeError, match="cells, not values"):
            enc.kms.isin("b", cells)
    with pytest.raises(TypeError, match="not a table"):
        enc.kms.isin("b", frame)
    with pytest.raises(kmsdata.WrongKeyError):
        enc.kms.isin("b", "x", key=kmsdata.new_data_key("local://other"))
    half = enc.astype({"b": object})
    half.loc[0, "b"] = "x"
    with pytest.raises(TypeError, match="plain values as well as cells"):
        half.kms.isin("b", "x")
    twice = pd.concat([enc[["b"]], enc[["b"]]], axis=1)
    with pytest.raises(ValueError, match="2 columns are named 'b'"):
        twice.kms.isin("b", "x")


def test_pandas_own_comparisons_name_the_way():
    enc = pd.DataFrame({"a": ["x"], "b": ["x"]}).kms.encrypt("a", deterministic="b", key=KEY)
    for call in (lambda: enc["b"] == "x", lambda: enc["b"].isin(["x"]), lambda: enc["b"] != "x"):
        with pytest.raises(TypeError, match=r"df\.kms\.isin\(column, values\)"):
            call()
    with pytest.raises(TypeError, match="not with values: decrypt it first"):
        enc["a"] == "x"  # noqa: B015


def test_cells_of_another_key_are_never_just_not_found():
    frame = pd.DataFrame({"b": ["x", "y"]})
    enc, other = (frame.kms.encrypt(deterministic="b", key=KEY) for _ in range(2))
    storage = pa.concat_arrays([enc["b"].array.storage, other["b"].array.storage])
    with pytest.raises(kmsdata.WrongKeyError) as caught:
        pd.DataFrame({"b": kmsdata.EncryptedArray(storage, enc["b"].dtype)}).kms.isin("b", "x")
    assert caught.value.rows == (2, 3)
    short = kmsdata.EncryptedArray(pa.array([b"\x01"], pa.large_binary()), enc["b"].dtype)
    with pytest.raises(kmsdata.TamperedError):
        pd.DataFrame({"b": short}).kms.isin("b", "x")


def test_a_changed_header_is_noticed_before_anything_is_looked_for():
    enc = pd.DataFrame({"b": [1, 2]}).kms.encrypt(deterministic="b", key=KEY)
    text = enc["b"].dtype.text.replace('"domain":"b"', '"domain":"c"')
    array = kmsdata.EncryptedArray(enc["b"].array.storage, kmsdata.EncryptedDtype(text))
    with pytest.raises(kmsdata.FormatError, match="MAC differs"):
        pd.DataFrame({"b": array}).kms.isin("b", 1)


# --- files ----------------------------------------------------------------------------------------


def rows(frame):
    return frame.reset_index(drop=True)


def column_filters(column, pool):
    """Terms on a column whose values are from the pool, None among them."""
    one = st.tuples(st.just(column), st.sampled_from(["==", "=", "!="]), st.sampled_from([*pool, None]))
    # A list of nulls alone has no type that pyarrow could compare plain values with.
    several = st.lists(st.sampled_from([*pool, None]), min_size=1, max_size=3).filter(any)
    return one | st.tuples(st.just(column), st.sampled_from(["in", "not in"]), several)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """One table, plain; encrypted in one file by kmsdata, by pandas (with statistics), and in a dataset."""
    folder = tmp_path_factory.mktemp("searched")
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "city": random.choice(["Ulm", "Bonn", "深圳", None], 300),
            "n": pd.array(random.choice([1, 2, 3, pd.NA], 300), "Int64"),
            "when": random.choice([dt.datetime(2024, 1, day) for day in (1, 2, 3)], 300),
            "free": random.integers(0, 5, 300),
            "secret": random.random(300),
            "year": np.repeat([2021, 2022, 2023], 100),
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KMSDATA_KEYSTORE", str(folder / "keystore.json"))
        kmsdata.LocalKeystore().create_key("demo", quiet=True)
        key = kmsdata.new_data_key(KEY)
        how = {"columns": "secret", "deterministic": ["city", "n", "when"]}
        enc = frame.kms.encrypt(**how, key=key)
        frame.to_parquet(folder / "plain.parquet")
        enc.kms.to_parquet(folder / "one.parquet", row_group_size=70)
        enc.to_parquet(folder / "pandas.parquet", row_group_size=70)  # which writes statistics of cells
        for year, part in frame.groupby("year"):
            for name, under in {"same": key, "several": KEY}.items():
                target = folder / name / f"year={year}" / "part.parquet"
                target.parent.mkdir(parents=True)
                sealed = rows(part).drop(columns="year").kms.encrypt(**how, key=under)
                sealed.kms.to_parquet(target, row_group_size=30)
    return folder, key, frame


@pytest.mark.parametrize("name", ["one.parquet", "pandas.parquet", "same", "several"])
@QUICK
@given(data=st.data())
def test_filters_give_the_rows_that_decryption_gives(name, searched, data):
    folder, _, _ = searched
    term = st.one_of(
        column_filters("city", ["Ulm", "深圳", "nowhere"]),
        column_filters("n", [1, 3, 99]),
        column_filters("when", [pd.Timestamp("2024-01-02"), dt.datetime(1999, 1, 1)]),
        st.tuples(st.just("free"), st.sampled_from(["<", ">=", "==", "!="]), st.integers(0, 5)),
        st.tuples(st.just("year"), st.sampled_from(["==", "!="]), st.sampled_from([2021, 2023])),
    )
    filters = data.draw(st.lists(st.lists(term, min_size=1, max_size=3), min_size=1, max_size=3))
    wanted = pd.read_parquet(folder / "plain.parquet", filters=filters)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KMSDATA_KEYSTORE", str(folder / "keystore.json"))
        found = kmsdata.read_parquet(folder / name, filters=filters, decrypt=True)
        sealed = kmsdata.read_parquet(folder / name, filters=filters, columns=["secret"])
    found["year"] = found["year"].astype(wanted["year"].dtype)  # a category, where folders say it
    pd.testing.assert_frame_equal(found[list(wanted)], wanted)
    assert (list(sealed), len(sealed)) == (["secret"], len(wanted))


def test_a_filter_keeps_index_attrs_order_and_dtypes(tmp_path):
    frame = pd.DataFrame(
        {
            "b": pd.array(["x", "y", "x"], "string"),
            "a": pd.array([1, None, 3], "Int8"),
            "c": pd.Categorical(["u", "v", "u"], ["w", "v", "u"]),
            "plain": pd.to_datetime(["2024-01-01", None, "2024-01-03"]).tz_localize(ZONE),
        },
        index=pd.Index([7, 8, 9], name="row"),
    )
    frame.attrs = {"from": "here"}
    enc = frame.kms.encrypt(deterministic=["b", "a", "c"], key=KEY)
    enc.kms.to_parquet(tmp_path / "f.parquet")
    for filters in ([("b", "==", "x")], [("a", "in", [1, 3])], [[("c", "==", "u"), ("b", "!=", "y")]]):
        found = kmsdata.read_parquet(tmp_path / "f.parquet", filters=filters, decrypt=True)
        whole = kmsdata.read_parquet(tmp_path / "f.parquet", decrypt=True)
        pd.testing.assert_frame_equal(found, whole[whole["b"] == "x"])
        assert found.attrs == {"from": "here"}
        some = kmsdata.read_parquet(tmp_path / "f.parquet", columns=["plain", "a"], filters=filters)
        pd.testing.assert_frame_equal(some.kms.decrypt(), found[["plain", "a"]])
    none = kmsdata.read_parquet(tmp_path / "f.parquet", filters=[("b", "==", "z")], decrypt=True)
    pd.testing.assert_frame_equal(none, whole.iloc[:0])


def test_no_more_than_the_matching_rows_is_decrypted(tmp_path):
    """So a changed cell elsewhere is not detected, while a match is authentic."""
    frame = pd.DataFrame({"who": ["a", "b", "a", "c"], "what": ["1", "2", "3", "4"]})
    enc = frame.kms.encrypt("what", deterministic="who", key=KEY)
    cells = enc["what"].array.storage.to_pylist()
    cells[1] = cells[1][:-1] + bytes([cells[1][-1] ^ 1])
    enc["what"] = kmsdata.EncryptedArray(pa.array(cells, pa.large_binary()), enc["what"].dtype)
    enc.kms.to_parquet(tmp_path / "f.parquet")
    found = kmsdata.read_parquet(tmp_path / "f.parquet", filters=[("who", "==", "a")], decrypt=True)
    assert found["what"].tolist() == ["1", "3"]
    with pytest.raises(kmsdata.TamperedError) as caught:
        kmsdata.read_parquet(tmp_path / "f.parquet", filters=[("who", "in", ["b", "c"])], decrypt=True)
    assert caught.value.rows == (0,)


def test_row_groups_without_a_match_are_not_read(tmp_path):
    frame = pd.DataFrame({"who": np.repeat(["a", "b", "c"], 100), "what": range(300)})
    enc = frame.kms.encrypt("what", deterministic="who", key=KEY)
    enc.kms.to_parquet(tmp_path / "f.parquet", row_group_size=100)
    raw = bytearray((tmp_path / "f.parquet").read_bytes())
    for group in (0, 2):
        chunk = pq.read_metadata(tmp_path / "f.parquet").row_group(group).column(1)
        raw[chunk.data_page_offset : chunk.data_page_offset + chunk.total_compressed_size] = bytes(
            chunk.total_compressed_size
        )
    (tmp_path / "f.parquet").write_bytes(raw)
    found = kmsdata.read_parquet(tmp_path / "f.parquet", filters=[("who", "==", "b")], decrypt=True)
    assert found["what"].tolist() == list(range(100, 200))


def test_one_call_of_the_key_service_at_most(tmp_path):
    class Provider:
        scheme = "memory"

        def generate_data_key(self, key, context):
            return kmsdata.DataKey(bytes(range(32)), [Wrap(key, "w")], context=context)

        def unwrap(self, *_):
            return bytes(range(32))

        def wrap(self, *_):
            raise NotImplementedError

    frame = pd.DataFrame({"who": ["a", "b"], "year": [1, 2]})
    with kmsdata.using(Provider()):
        enc = frame.kms.encrypt(deterministic="who", key="memory://k")
        enc.to_parquet(tmp_path / "set", partition_cols=["year"])
        before = kmsdata.usage()
        found = kmsdata.read_parquet(tmp_path / "set", filters=[("who", "==", "a")], decrypt=True)
        assert kmsdata.usage().unwrap - before.unwrap == 1
    assert found["who"].tolist() == ["a"]


def test_filters_that_ciphertext_cannot_answer(tmp_path):
    frame = pd.DataFrame({"who": ["a", "b"], "what": [1, 2], "free": [1, 2]})
    path = tmp_path / "f.parquet"
    frame.kms.encrypt("what", deterministic="who", key=KEY).kms.to_parquet(path)
    for filters, error, says in (
        ([("what", "==", 1)], TypeError, "randomised"),
        ([("who", ">", "a")], TypeError, "has no order"),
        ([("who", "==", 5)], TypeError, "cannot contain the value to find: int, not text"),
        ([[("free", "==", 1)], [("who", "in", ["a", 5])]], TypeError, "cannot contain"),
        ([("who", "==", ["a"])], TypeError, "'in'"),
        ([("who", "in", "a")], TypeError, "list of values"),
        ([("who", "like", "a")], ValueError, "not a valid operator"),
        (ds.field("who") == "a", TypeError, "Pass filters as a list"),
        ([], ValueError, "list of terms"),
        ([[("who", "=="), ("free", "==", 1)]], ValueError, "list of terms"),
        ([("who", "==", "a"), ("fee", "==", 1)], KeyError, "did you mean 'free'"),
    ):
        for columns in (None, ["free"]):
            with pytest.raises(error, match=says):
                kmsdata.read_parquet(path, filters=filters, columns=columns)
    with pytest.raises(KeyError, match="did you mean 'free'"):
        kmsdata.read_parquet(path, filters=[("who", "==", "a")], columns=["fre"])
    with pytest.raises(kmsdata.WrongKeyError):
        kmsdata.read_parquet(path, filters=[("who", "==", "a")], key="local://other")
    with pytest.raises(kmsdata.FormatError, match="must be encrypted"):
        kmsdata.read_parquet(path, filters=[("who", "==", "a")], encrypted=["free"])


def test_in_files_too_cells_of_another_key_are_never_just_not_found(tmp_path):
    frame = pd.DataFrame({"b": ["x", "y"], "n": [1, 2]})
    for column in ("b", "n"):  # of any length, and of one
        enc, other = (frame.kms.encrypt(deterministic=["b", "n"], key=KEY) for _ in range(2))
        storage = pa.concat_arrays([enc[column].array.storage, other[column].array.storage])
        moved = pd.DataFrame({column: kmsdata.EncryptedArray(storage, enc[column].dtype)})
        moved.kms.to_parquet(tmp_path / "f.parquet", row_group_size=2)
        with pytest.raises(kmsdata.WrongKeyError) as caught:
            kmsdata.read_parquet(tmp_path / "f.parquet", filters=[(column, "==", frame[column][0])])
        assert caught.value.rows == (2, 3)


def test_a_dataset_of_unlike_files(tmp_path):
    """Other keys, a plain file, a file without the column, one whose header other software dropped."""
    frame = pd.DataFrame({"who": ["a", "b", None], "n": [1, 2, 3]})
    enc = frame.kms.encrypt(deterministic="who", key=KEY)
    folder = tmp_path / "set"
    folder.mkdir()
    enc.kms.to_parquet(folder / "1.parquet")
    frame.kms.encrypt(deterministic="who", key=KEY).kms.to_parquet(folder / "2.parquet")
    frame.to_parquet(folder / "3.parquet")
    frame[["n"]].to_parquet(folder / "4.parquet")
    table = pq.read_table(folder / "1.parquet")
    bare = table.set_column(0, "who", pa.chunked_array([c.storage for c in table["who"].chunks]))
    pq.write_table(bare, folder / "5.parquet")  # the file's entry is still there
    for filters, wanted in (
        ([("who", "==", "a")], [1] * 4),
        ([("who", "in", ["a", None])], [1, 3, 1, 3, 1, 3, 1, 2, 3, 1, 3]),
        ([("who", "not in", ["a"])], [2, 3, 2, 3, 2, 3, 1, 2, 3, 2, 3]),
        ([[("who", "!=", "a"), ("n", ">", 0)]], [2] * 4),
    ):
        found = kmsdata.read_parquet(folder, filters=filters, columns=["n"])
        assert found["n"].tolist() == wanted, filters


def test_a_file_without_the_column(tmp_path):
    frame = pd.DataFrame({"a": [1, 2], "n": [1, 2]})
    folder = tmp_path / "set"
    folder.mkdir()
    frame.kms.encrypt(deterministic="a", key=KEY).kms.to_parquet(folder / "1.parquet")
    frame[["n"]].to_parquet(folder / "2.parquet")
    for filters, wanted in (
        ([("a", "==", 1)], [1]),
        ([("a", "in", [1, None])], [1, 1, 2]),
        ([("a", "not in", [1])], [2, 1, 2]),
        ([("a", "!=", 1)], [2]),
        ([[("a", "==", 2)], [("n", "==", 1)]], [1, 2, 1]),
    ):
        found = kmsdata.read_parquet(folder, filters=filters, columns=["n"])
        assert found["n"].tolist() == wanted, filters


def test_objects_of_which_a_file_has_none(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for name, values in (("1", [None, None]), ("2", [dt.date(2024, 1, 1), None])):
        frame = pd.DataFrame({"day": pd.Series(values, dtype=object)})
        frame.kms.encrypt(deterministic="day", key=KEY).kms.to_parquet(folder / f"{name}.parquet")
    day = [("day", "==", dt.date(2024, 1, 1))]
    assert len(kmsdata.read_parquet(folder, filters=day)) == 1
    assert len(kmsdata.read_parquet(folder / "1.parquet", filters=day)) == 0
    with pytest.raises(TypeError, match="cannot contain"):
        kmsdata.read_parquet(folder / "2.parquet", filters=[("day", "==", 5)])
    words = pd.DataFrame({"day": pd.Series(["x"], dtype=object)}).kms.encrypt(deterministic="day", key=KEY)
    words.kms.to_parquet(folder / "3.parquet")
    with pytest.raises(TypeError, match="cannot contain"):
        kmsdata.read_parquet(folder / "3.parquet", filters=day)


def test_a_file_that_is_rewrapped_meanwhile_is_searched_and_one_that_is_replaced_is_not(
    tmp_path, monkeypatch
):
    frame = pd.DataFrame({"email": ["a", "b", "a"], "age": [1, 2, 3]})
    path = tmp_path / "people.parquet"
    frame.kms.encrypt("age", deterministic="email", key=KEY).kms.to_parquet(path)
    rows = FileSearch.rows

    def after(meanwhile):
        def changed(self, fragment, *rest):
            meanwhile()
            return rows(self, fragment, *rest)

        monkeypatch.setattr(FileSearch, "rows", changed)
        return kmsdata.read_parquet(path, filters=[("email", "==", "a")], decrypt=True)

    for key in ("local://next", "local://last"):
        kmsdata.LocalKeystore().create_key(key.removeprefix("local://"), quiet=True)
        found = after(lambda key=key: kmsdata.rewrap(path, key))
        pd.testing.assert_frame_equal(found, frame[frame["email"] == "a"].reset_index(drop=True))
    other = frame.kms.encrypt("age", deterministic="email", key=KEY)
    with pytest.raises(kmsdata.FormatError, match="Try again"):
        after(lambda: other.kms.to_parquet(path))
