"""Equality on ciphertext: what is found, what is refused, and that files give the rows that decryption gives."""

import datetime as dt
import decimal
import uuid
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kmsdata

KEY = "local://demo"
D = decimal.Decimal
ZONE = "Asia/Shanghai"
QUICK = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
moments = st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1))
seconds = moments.map(lambda moment: moment.replace(microsecond=0))
whole = st.integers(-(2**40), 2**40)
places = st.decimals(-1000, 1000, places=2, allow_nan=False).map(lambda d: d + 0)

# Name -> (a strategy of values, how a Series of them is made, whether it may hold None).
COLUMNS = {
    "int64": (whole, lambda v: pd.Series(v, dtype="int64"), False),
    "int8": (st.integers(-128, 127), lambda v: pd.Series(v, dtype="int8"), False),
    "uint64": (st.integers(0, 2**64 - 1), lambda v: pd.Series(v, dtype="uint64"), False),
    "Int32": (st.integers(-9, 9), lambda v: pd.Series(v, dtype="Int32"), True),
    "int64[pyarrow]": (whole, lambda v: pd.Series(v, dtype="int64[pyarrow]"), True),
    "object int": (whole, lambda v: pd.Series(v, dtype=object), True),
    "bool": (st.booleans(), lambda v: pd.Series(v, dtype=bool), False),
    "boolean": (st.booleans(), lambda v: pd.Series(v, dtype="boolean"), True),
    "object text": (texts, lambda v: pd.Series(v, dtype=object), True),
    "string": (texts, lambda v: pd.Series(v, dtype="string"), True),
    "string[pyarrow]": (texts, lambda v: pd.Series(v, dtype=pd.ArrowDtype(pa.string())), True),
    "category": (texts, lambda v: pd.Series(v, dtype=object).astype("category"), True),
    "category of ints": (st.integers(0, 9), lambda v: pd.Series(pd.Categorical(v)), False),
    "bytes": (st.binary(max_size=4), lambda v: pd.Series(v, dtype=object), True),
    "binary[pyarrow]": (st.binary(max_size=4), lambda v: pd.Series(v, dtype=pd.ArrowDtype(pa.binary())), True),
    "datetime64[ns]": (moments, lambda v: pd.Series(v, dtype="datetime64[ns]"), True),
    "datetime64[s]": (seconds, lambda v: pd.Series(v, dtype="datetime64[s]"), True),
    "with a zone": (moments, lambda v: pd.Series(v, dtype="datetime64[us]").dt.tz_localize("UTC").dt.tz_convert(ZONE), True),
    "timestamp[pyarrow]": (moments, lambda v: pd.Series(v, dtype=pd.ArrowDtype(pa.timestamp("us"))), True),
    "dates": (st.dates(), lambda v: pd.Series(v, dtype=object), True),
    "date32": (st.dates(), lambda v: pd.Series(v, dtype=pd.ArrowDtype(pa.date32())), True),
    "decimals": (places, lambda v: pd.Series(v, dtype=object), True),
    "decimal128": (places, lambda v: pd.Series(v, dtype=pd.ArrowDtype(pa.decimal128(12, 2))), True),
    "uuids": (st.uuids(), lambda v: pd.Series(v, dtype=object), True),
    "timedelta": (st.timedeltas(dt.timedelta(-9**5), dt.timedelta(9**5)), lambda v: pd.Series(v, dtype="timedelta64[ns]"), True),
    "time": (st.times(), lambda v: pd.Series(v, dtype=pd.ArrowDtype(pa.time64("us"))), True),
    "period": (st.integers(-99, 99).map(lambda n: pd.Period(ordinal=n, freq="M")), lambda v: pd.Series(v, dtype="period[M]"), True),
    "interval": (whole.map(lambda n: pd.Interval(n, n + 5)), lambda v: pd.Series(pd.arrays.IntervalArray(v)) if v else pd.Series([], dtype="interval[int64, right]"), False),
    "interval of times": (seconds.map(lambda m: pd.Interval(pd.Timestamp(m), pd.Timestamp(m) + pd.Timedelta("1D"))), lambda v: pd.Series(pd.arrays.IntervalArray(v)) if v else pd.Series([], dtype="interval[datetime64[ns], right]"), False),
    "mixed": (st.one_of(texts, st.integers(2, 9), st.dates(), st.integers(2**64, 2**66)), lambda v: pd.Series(v, dtype=object), True),
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS)
@QUICK
@given(data=st.data())
def test_isin_finds_what_pandas_finds(name, data):
    values, make, nullable = COLUMNS[name]
    pool = data.draw(st.lists(values, min_size=1, max_size=6, unique_by=repr))
    cells = st.sampled_from([*pool, None] if nullable else pool)
    plain = make(data.draw(st.lists(cells, max_size=8)))
    plain.name = "c"
    wanted = data.draw(st.lists(st.one_of(st.sampled_from(pool), values), max_size=5))
    encrypted = plain.to_frame().kms.encrypt(deterministic="c", key=KEY)
    # An element of the column itself is what pandas would compare (Timestamps in the column's zone).
    typed = make(wanted).tolist()
    found = encrypted.kms.isin("c", typed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pandas, about what it compares
        expected = plain.map(lambda value: not _null(value) and value in typed, na_action=None)
    assert found.tolist() == expected.tolist()
    assert found.name == "c"
    assert found.dtype == bool
    with_null = encrypted.kms.isin("c", [*typed, None])
    assert with_null.tolist() == (found | plain.isna()).tolist()


def _null(value):
    return pd.api.types.is_scalar(value) and pd.isna(value)
