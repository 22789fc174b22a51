"""Frames and files with Arrow dtypes that pandas cannot read, print or compare."""

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kmsdata
from tests.corpus.readers import same_values

KEY = "local://demo"
OLD = int(pa.__version__.split(".")[0]) < 20  # fewer types of Parquet; no null rows in fixed-size lists


def not_in_parquet(frame):
    """Fail if Parquet has the type of this column."""
    assert OLD or str(frame["c"].dtype).startswith(("month_day_nano_interval", "run_end_encoded"))


def arrays():
    yield pa.array([[1, 2], [3, 4] if OLD else None], pa.list_(pa.int64(), 2))
    yield pa.array([b"ab", None], pa.binary(2))
    yield pa.array([b"a", None], pa.binary())
    yield pa.array([1, None], pa.decimal256(40, 0))
    yield pa.array(["a", None], pa.string_view())
    yield pa.array([b"a", None], pa.binary_view())
    yield pa.array([pa.MonthDayNano((1, 2, 3)), None], pa.month_day_nano_interval())
    yield pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64()))
    yield pa.array([{"a": 2**53 + 1}, None])
    yield pa.array([[1], None])
    yield pa.array(["a", None]).dictionary_encode()
    yield pa.RunEndEncodedArray.from_arrays([1, 2], pa.array(["a", None]))


@pytest.fixture(params=arrays(), ids=lambda array: str(array.type))
def frame(request):
    values = pd.Series(pd.arrays.ArrowExtensionArray(request.param))
    return pd.DataFrame({"c": values, "k": [1, 2], "t": ["a", "b"]})


def same(one, two):
    # pandas cannot compare some of these dtypes.
    assert list(one.columns) == list(two.columns)
    for name in one.columns:
        if isinstance(one[name].dtype, pd.ArrowDtype):
            assert isinstance(two[name].dtype, pd.ArrowDtype)
            same_values(one[name].array.__arrow_array__(), two[name].array.__arrow_array__(), name)
        else:
            pd.testing.assert_series_equal(one[name], two[name])


@pytest.mark.parametrize("column", ["c", "k"])
def test_frames(frame, column):
    same(frame, frame.kms.encrypt(column, key=KEY).kms.decrypt())


@pytest.mark.parametrize("column", ["c", "k"])
def test_files_of_frames(frame, column, tmp_path):
    try:
        frame.drop(columns=column).to_parquet(tmp_path / "plain.parquet")
    except pa.ArrowNotImplementedError:
        not_in_parquet(frame)
        return
    frame.kms.encrypt(column, key=KEY).kms.to_parquet(tmp_path / "a.parquet")
    back = kmsdata.read_parquet(tmp_path / "a.parquet", decrypt=True)
    if column == "c" or isinstance(back["c"].dtype, pd.ArrowDtype):  # pandas makes objects of some
        same(frame, back)


@pytest.mark.parametrize("column", ["c", "k"])
def test_files_of_pandas(frame, column, tmp_path):
    source, sealed, opened = (tmp_path / name for name in ("a.parquet", "b.parquet", "c.parquet"))
    try:
        frame.to_parquet(source)
    except pa.ArrowNotImplementedError:
        not_in_parquet(frame)
        return
    kmsdata.encrypt_parquet(source, sealed, column, key=KEY)
    assert kmsdata.verify(sealed).ok
    kmsdata.inspect(sealed)
    kmsdata.decrypt_parquet(sealed, opened)
    before, after = pq.read_table(source), pq.read_table(opened)
    assert after.schema.equals(before.schema, check_metadata=True)
    same_values(before["c"], after["c"], "c")
    back = kmsdata.read_parquet(sealed, decrypt=True)
    if isinstance(back["c"].dtype, pd.ArrowDtype):  # pandas writes decimals as objects
        same(frame, back)
    assert back["k"].tolist() == [1, 2]
    assert list(kmsdata.read_parquet(sealed, columns=["t", "k"], decrypt=True)) == ["t", "k"]
    if "view" not in str(before["c"].type):  # Arrow filters no views
        assert len(kmsdata.read_parquet(sealed, filters=[("t", "==", "a")], decrypt=True)) == 1


def test_an_index_of_such_a_dtype(tmp_path):
    values = pd.Index([[1], [2]], dtype=pd.ArrowDtype(pa.list_(pa.int64())), name="i")
    pd.DataFrame({"k": [1, 2]}, index=values).to_parquet(tmp_path / "a.parquet")
    kmsdata.encrypt_parquet(tmp_path / "a.parquet", tmp_path / "b.parquet", "k", key=KEY)
    back = kmsdata.read_parquet(tmp_path / "b.parquet", decrypt=True)
    assert back["k"].tolist() == [1, 2]
    assert [list(value) for value in back.index] == [[1], [2]]


@pytest.mark.parametrize("kind", ["int64", "uint64"])
def test_large_integers_beside_nulls_keep_every_digit(keystore, tmp_path, kind):
    table = pa.table({"n": pa.array([2**53 + 1, None, 3], kind), "small": pa.array([1, None, 3], kind)})
    path = tmp_path / "n.parquet"
    pq.write_table(kmsdata.encrypt_table(table, ["n", "small"], key="local://demo"), path)
    for back in (kmsdata.read_parquet(path, decrypt=True), kmsdata.read_parquet(path).kms.decrypt()):
        assert back["n"].dtype == kind.replace("int", "Int").replace("uI", "UI")
        assert back["n"].tolist() == [2**53 + 1, pd.NA, 3]
        assert back["small"].dtype == "float64"  # as pandas reads a plain file
