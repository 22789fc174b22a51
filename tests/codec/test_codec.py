"""Test the codec: every column is restored exactly, bit for bit, and with the type of each null."""

import base64
import collections
import datetime as dt
import decimal
import enum
import io
import itertools
import json
import struct
import uuid
import zoneinfo
from decimal import Decimal

import dateutil.tz
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import pytz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kmsdata import codec
from kmsdata.ciphers.cells import Cells
from kmsdata.codec import arrow_arrays as arrow
from kmsdata.codec import tagged_objects as tags
from kmsdata.codec import time_zones as zones
from kmsdata.codec.arrow_types import arrow_type, print_arrow, value_type
from kmsdata.errors import FormatError, UnsupportedTypeError

PANDAS_3 = hasattr(pd.StringDtype("python"), "_na_value")
NAN = float("nan")
NAT = -(2**63)  # the int64 that NumPy reads as NaT
DATEUTIL_FILES = True
try:
    pd.Timestamp("2020-01-01", tz=dateutil.tz.gettz("Asia/Shanghai"))
except AttributeError:  # pandas 2.2 cannot read those of dateutil 3
    DATEUTIL_FILES = False
ZONES = {
    "zoneinfo": zoneinfo.ZoneInfo("Europe/Berlin"),
    "zoneinfo utc": zoneinfo.ZoneInfo("UTC"),
    "pytz": pytz.timezone("America/New_York"),
    "pytz utc": pytz.utc,
    "pytz offset": pytz.FixedOffset(-90),
    "dateutil": dateutil.tz.gettz("Asia/Shanghai"),
    "dateutil utc": dateutil.tz.UTC,
    "dateutil offset": dateutil.tz.tzoffset("X", 3600),
    "timezone utc": dt.UTC,
    "timezone offset": dt.timezone(dt.timedelta(hours=5, minutes=30)),
    "timezone named": dt.timezone(dt.timedelta(hours=-3), "BRT"),
    "timezone odd": dt.timezone(dt.timedelta(hours=1, seconds=7)),
}
if not DATEUTIL_FILES:
    del ZONES["dateutil"]


# --- what exact means -----------------------------------------------------------------------------


def same(a, b):
    """Check that two objects have the same type and are equal bit for bit."""
    assert type(a) is type(b)
    if isinstance(a, float):
        assert struct.pack("<d", a) == struct.pack("<d", b)
    elif isinstance(a, complex):
        assert struct.pack("<2d", a.real, a.imag) == struct.pack("<2d", b.real, b.imag)
    elif isinstance(a, np.ndarray) and a.dtype == object:
        same(a.tolist(), b.tolist())
    elif isinstance(a, np.ndarray):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    elif isinstance(a, np.generic):
        assert (a.dtype, a.tobytes()) == (b.dtype, b.tobytes())
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, set | frozenset):
        same(sorted(a, key=repr), sorted(b, key=repr))
    elif isinstance(a, dict):
        same(list(a.items()), list(b.items()))
    elif isinstance(a, pd.Interval):
        assert a.closed == b.closed
        same([a.left, a.right], [b.left, b.right])
    elif a is pd.NA or a is pd.NaT or a is None:
        assert a is b
    elif isinstance(a, Decimal):
        assert a.as_tuple() == b.as_tuple()
    elif isinstance(a, dt.datetime | dt.time):
        assert a.replace(tzinfo=None) == b.replace(tzinfo=None)
        assert a.fold == b.fold or "pytz" in type(a.tzinfo).__module__  # where fold has no meaning
        assert getattr(a, "unit", None) == getattr(b, "unit", None)
        same_zone(a.tzinfo, b.tzinfo)
    else:
        assert a == b
        assert getattr(a, "unit", None) == getattr(b, "unit", None)
        assert getattr(a, "freqstr", None) == getattr(b, "freqstr", None)


def same_zone(a, b):
    assert type(a) is type(b)
    assert a == b
    assert repr(a) == repr(b)


def same_arrow(a, b):
    assert a.type.equals(b.type)
    assert a.type == b.type
    if a.type.num_fields:
        schemas = [pa.schema([("c", x.type)]) for x in (a, b)]
        assert schemas[0].equals(schemas[1], check_metadata=True)
    one, other = a.to_pylist(), b.to_pylist()
    same(one, other)


def same_series(a, b):
    """Check that two Series have equal dtypes (all parts of them), equal bits and equal nulls."""
    assert len(a) == len(b)
    dtype = a.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        assert isinstance(b.dtype, pd.CategoricalDtype)
        assert dtype.ordered == b.dtype.ordered
        index = [pd.Series(x.array.categories, dtype=x.array.categories.dtype) for x in (a, b)]
        same_series(*index)
        assert a.cat.codes.tolist() == b.cat.codes.tolist()
        return
    assert dtype == b.dtype
    assert repr(dtype) == repr(b.dtype)
    x, y = a.array, b.array
    assert type(x) is type(y)
    if isinstance(dtype, np.dtype):
        assert dtype.str == b.dtype.str
        if dtype.kind == "O":
            same(a.tolist(), b.tolist())
        else:
            assert a.to_numpy().tobytes() == b.to_numpy().tobytes()
    elif isinstance(dtype, pd.ArrowDtype):
        same_arrow(x.__arrow_array__(), y.__arrow_array__())
    elif isinstance(dtype, pd.IntervalDtype):
        for left, right in ((x.left, y.left), (x.right, y.right)):
            same_series(pd.Series(left, dtype=left.dtype), pd.Series(right, dtype=right.dtype))
    elif isinstance(dtype, pd.DatetimeTZDtype | pd.PeriodDtype):
        assert x.asi8.tolist() == y.asi8.tolist()
        if isinstance(dtype, pd.DatetimeTZDtype):
            same_zone(dtype.tz, b.dtype.tz)
    elif isinstance(dtype, pd.StringDtype):
        assert dtype.storage == b.dtype.storage
        same(dtype.na_value, b.dtype.na_value)
        same(a.tolist(), b.tolist())
    else:  # masked
        assert x._mask.tolist() == y._mask.tolist()
        assert x._data[~x._mask].tobytes() == y._data[~y._mask].tobytes()


# --- the cases ------------------------------------------------------------------------------------


def bits(code, *values):
    return np.array(values, code.replace("f", "u")).view(code)


def without_unit(code, ticks):
    """Make a datetime or timedelta scalar without a unit. NumPy 2.5 deprecates only the constructor."""
    return np.array([ticks]).view(code)[0]


def obj(*values, dtype=object):
    made = np.empty(len(values), object)
    for i, value in enumerate(values):
        made[i] = value
    return pd.Series(made, dtype=dtype)


def ext(array):
    return pd.Series(
        pd.arrays.ArrowExtensionArray(pa.chunked_array([array]) if isinstance(array, pa.Array) else array)
    )


def tick(unit, zone=None, *values):
    made = pd.Series(np.array([*(values or (0, 1577836800, -5)), "NaT"], f"M8[{unit}]"))
    return made if zone is None else made.dt.tz_localize("UTC").dt.tz_convert(zone)


def cat(values, categories, ordered=False):
    return pd.Series(pd.Categorical(values, categories=categories, ordered=ordered))


def code_cat(codes, categories, ordered=False):
    return pd.Series(pd.Categorical.from_codes(codes, dtype=pd.CategoricalDtype(categories, ordered)))


def pandas_cases():
    for code in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"):
        info = np.iinfo(code)
        yield code, pd.Series(np.array([info.min, 0, 1, info.max, 7], code))
        name = {"i": "Int", "u": "UInt"}[code[0]] + str(8 * int(code[1]))
        yield name, pd.Series([int(info.max), None, 0, int(info.min)], dtype=name)
    for code in (">i8", ">i2", ">u4", ">f8", ">f4", ">c16"):
        yield code, pd.Series(np.array([1, 2, 300 % 127, 4], code))
    yield "big-endian nan", pd.Series(np.array([1, NAN, 2], ">f8"))
    nans = {
        "f2": (0x7E00, 0x7E01, 0xFE00, 0x7D01, 0x8000, 0x7C00, 1),
        "f4": (0x7FC00000, 0x7FC00001, 0xFFC00000, 0x7F800001, 0x80000000, 0x7F800000, 1),
        "f8": (0x7FF8 << 48, (0x7FF8 << 48) + 1, 0xFFF8 << 48, (0x7FF0 << 48) + 1, 1 << 63, 0x7FF0 << 48, 1),
    }
    for code, values in nans.items():
        yield code, pd.Series(bits(code, *values))
        yield code + " plain", pd.Series(np.array([1.5, -2.5, 0.0], code))
    yield (
        "c8",
        pd.Series(
            np.array([1 + 2j, complex(NAN, 0), complex(0, NAN), complex(NAN, NAN), complex(NAN, -0.0)], "c8")
        ),
    )
    yield (
        "c16",
        pd.Series(np.array([1 + 2j, complex(NAN, 0), complex(-0.0, 1), complex(NAN, NAN), 3j], "c16")),
    )
    yield "bool", pd.Series([True, False, True])
    yield "boolean", pd.Series([True, None, False], dtype="boolean")
    yield (
        "Float64",
        pd.Series(
            pd.arrays.FloatingArray(np.array([1.5, NAN, -0.0, 2]), np.array([False, False, False, True]))
        ),
    )
    yield (
        "Float32",
        pd.Series(pd.arrays.FloatingArray(bits("f4", 0x7FC00001, 0, 1), np.array([False, True, False]))),
    )
    yield "Int64 without null", pd.Series([1, 2, 3], dtype="Int64")
    yield "strided", pd.Series(np.arange(20, dtype="i8")[::3])
    yield "reversed", pd.Series(np.arange(20, dtype="f4")[::-1])
    yield "column of a block", pd.DataFrame(np.arange(12.0).reshape(4, 3))[1]
    for unit in ("s", "ms", "us", "ns"):
        yield f"datetime {unit}", tick(unit)
        yield f"timedelta {unit}", pd.Series(np.array([0, 5, -7, "NaT"], f"m8[{unit}]"))
        yield f"datetime {unit} tz", tick(unit, ZONES["zoneinfo"])
    yield "datetime far", tick("s", None, -(10**12), 10**12)
    yield "datetime big-endian-free", pd.Series(pd.date_range("2020", periods=4))
    for name, zone in ZONES.items():
        yield f"zone {name}", tick("ns", zone)
    for freq in ("M", "2D", "Q-MAR", "h", "W-SUN", "Y", "15min", "ns"):
        yield f"period {freq}", pd.Series(pd.PeriodIndex(["2020-01-01", None, "2021-05-07"], freq=freq))

    texts = ["a", None, "", "é\0x", "😀汉字", "x" * 300]
    yield "string pyarrow", pd.Series(texts, dtype=pd.StringDtype("pyarrow"))
    yield "string python", pd.Series(texts, dtype=pd.StringDtype("python"))
    if PANDAS_3:
        yield "str pyarrow", pd.Series(texts, dtype=pd.StringDtype("pyarrow", na_value=np.nan))
        yield "str python", pd.Series(texts, dtype=pd.StringDtype("python", na_value=np.nan))
    else:
        yield "string pyarrow_numpy", pd.Series(texts, dtype=pd.StringDtype("pyarrow_numpy"))
    yield "string 1 MB", pd.Series(["é" * 2**19, "b", None], dtype="string")
    yield "string without null", pd.Series(["a", "b"], dtype="string")

    for closed in ("left", "right", "both", "neither"):
        yield f"interval {closed}", pd.Series(pd.interval_range(0, 4, closed=closed))
    nan_ends = (np.array([0.5, NAN, 2]), np.array([1.5, NAN, np.inf]))
    yield "interval float", pd.Series(pd.arrays.IntervalArray.from_arrays(*nan_ends))
    nan_ends = (bits("f8", (0x7FF8 << 48) + 1, 0x7FF8 << 48), bits("f8", 0x7FF8 << 48, 0x7FF8 << 48))
    yield "interval nan", pd.Series(pd.arrays.IntervalArray.from_arrays(*nan_ends))
    yield (
        "interval uint",
        pd.Series(pd.arrays.IntervalArray.from_arrays(np.array([1, 2], "u8"), np.array([3, 4], "u8"))),
    )
    if PANDAS_3:
        ends = (np.array([1, 2], "i4"), np.array([3, 4], "i4"))
        yield "interval int32", pd.Series(pd.arrays.IntervalArray.from_arrays(*ends))
        ends = (pd.array([1, None], dtype="Int64"), pd.array([3, None], dtype="Int64"))
        yield "interval Int64", pd.Series(pd.arrays.IntervalArray.from_arrays(*ends))
    days = pd.date_range("2020-01-01", periods=4)
    yield "interval datetime", pd.Series(pd.IntervalIndex.from_breaks(days)).reindex([0, 9, 1])
    yield (
        "interval tz",
        pd.Series(pd.IntervalIndex.from_breaks(days.tz_localize("Europe/Berlin"))).reindex([0, 9, 1]),
    )
    yield "interval timedelta", pd.Series(pd.IntervalIndex.from_breaks(days - days[0])).reindex([0, 9, 1])

    yield "category text", cat(["b", None, "a", "b"], ["z", "b", "a"], ordered=True)
    yield "category object text", code_cat([0, 1, -1], pd.Index(["x", "é"], dtype=object))
    yield "category string", code_cat([1, 0, -1], pd.Index(["x", "é"], dtype="string"))
    yield "category string python", code_cat([1, 0, -1], pd.Index(["x", "é"], dtype="string[python]"))
    yield "category int", cat([3, 1, None], [9, 3, 1])
    yield "category int8", code_cat([1, 0, -1], pd.Index(np.array([5, -5], "i1")))
    yield "category Int64", code_cat([1, 0, -1], pd.Index(pd.array([5, -5], dtype="Int64")))
    yield "category float", cat([0.5, None], [0.5, np.inf, 1.5])
    yield "category bool", cat([True, None, False], [True, False])
    yield "category datetime", cat([days[1], None], days)
    yield "category tz", cat([days[1].tz_localize("UTC"), None], days.tz_localize("UTC"))
    yield "category timedelta", code_cat([0, -1, 1], days[:2] - days[0])
    yield "category period", code_cat([0, -1, 1], pd.period_range("2020", periods=3, freq="M"))
    yield "category cut", pd.Series(pd.cut([1, 5, 99, NAN], [0, 2, 100]))
    yield "category cut float", pd.Series(pd.cut([1, 5, 99, NAN], 3))
    yield "category mixed", code_cat([0, 1, 2, -1], pd.Index([1, "a", 2.5], dtype=object))
    yield (
        "category tuples",
        code_cat([0, 1, -1], pd.Index([(1, "a"), (2, "b")], dtype=object, tupleize_cols=False)),
    )
    yield "category dates", code_cat([0, -1], pd.Index([dt.date(2020, 1, 1)], dtype=object))
    yield "category decimals", code_cat([0, -1], pd.Index([Decimal("1.20"), Decimal("7.00")], dtype=object))
    yield "category empty", cat([None, None], [])
    yield "category empty text", code_cat([-1], pd.Index([], dtype="string"))
    yield "category arrow", code_cat([1, -1], pd.Index(pd.arrays.ArrowExtensionArray(pa.array(["a", "b"]))))
    yield "category 300", cat([str(i) for i in range(300)], [str(i) for i in range(299, -1, -1)])

    yield "object text", obj("a", None, "", "é", "😀\0")
    yield "object text NaN", obj("a", NAN, "b")
    yield "object text NA", obj("a", pd.NA, "b")
    yield "object text NaT", obj("a", pd.NaT, "b")
    yield "object text mixed nulls", obj("a", pd.NA, None, NAN, pd.NaT, "b")
    yield "object nulls", obj(NAN, None)
    yield "object None", obj(None, None)
    yield "object NaT", obj(pd.NaT, pd.NaT)
    yield "object bytes", obj(b"a", None, b"", b"\0\xff")
    yield "object bool", obj(True, None, False)
    yield "object int", obj(1, NAN, -(2**63), 2**63 - 1)
    yield "object big int", obj(1, None, 2**63, -(2**63) - 1, 10**40, -(2**70), -1, 255, -256, 2**71)
    yield "object date", obj(dt.date(1, 1, 1), None, dt.date(9999, 12, 31), dt.date(2020, 2, 29))
    yield "object uuid", obj(uuid.UUID(int=7), None, uuid.UUID(int=2**128 - 1))
    yield (
        "object decimal",
        obj(Decimal("1.20"), None, Decimal("-0.00"), Decimal("1E+5"), Decimal("Infinity"), Decimal("1" * 60)),
    )
    yield "object decimal nan", obj(Decimal("1.2"), Decimal("NaN"), Decimal("-NaN12"), None)
    yield "object float", obj(1.5, NAN, -0.0, struct.unpack("<d", struct.pack("<Q", (0xFFF8 << 48) + 3))[0])
    yield "object complex", obj(1 + 2j, None, complex(-0.0, NAN))
    yield "object mixed", obj(1, "a", b"b", bytearray(b"c"), True, 2.5, None, NAN, pd.NA, pd.NaT)
    yield (
        "object time",
        obj(dt.time(1, 2, 3, 4), dt.time(0, fold=1), dt.time(5, tzinfo=dt.UTC), None),
    )
    berlin = ZONES["zoneinfo"]
    fold = dt.datetime(2020, 10, 25, 2, 30, tzinfo=berlin)
    yield (
        "object datetime",
        obj(
            dt.datetime(1, 1, 1), dt.datetime.max, fold, fold.replace(fold=1), dt.datetime(2020, 1, 1, fold=1)
        ),
    )
    for name, zone in ZONES.items():
        localise = getattr(zone, "localize", None)
        moment = localise(dt.datetime(2020, 7, 1)) if localise else dt.datetime(2020, 7, 1, tzinfo=zone)
        values = (moment, pd.Timestamp("2020-07-01", tz=zone), dt.datetime(2020, 7, 1, tzinfo=zone), None)
        yield f"object zone {name}", obj(*values)
    new_york = ZONES["pytz"]
    autumn = [new_york.localize(dt.datetime(2020, 11, 1, 1, 30), is_dst=dst) for dst in (True, False)]
    yield "object pytz autumn", obj(*autumn, *map(pd.Timestamp, autumn))
    yield "object timedelta", obj(dt.timedelta(1, 2, 3), dt.timedelta.max, dt.timedelta.min, None)
    stamps = [pd.Timestamp("2020-01-01").as_unit(u) for u in ("s", "ms", "us", "ns")]
    autumn = [pd.Timestamp(fold.replace(fold=f)) for f in (0, 1)]
    yield (
        "object Timestamp",
        obj(*stamps, *autumn, pd.Timestamp("2020-01-01 00:00:00.123456789", tz="UTC"), pd.NaT),
    )
    yield "object Timestamp fold", obj(pd.Timestamp(dt.datetime(2020, 1, 1, fold=1)), None)
    yield "object Timedelta", obj(*(pd.Timedelta(7, "s").as_unit(u) for u in ("s", "ms", "us", "ns")), None)
    yield "object Period", obj(pd.Period("2020", "Y"), pd.Period("2020-01", "M"), None)
    yield (
        "object Interval",
        obj(pd.Interval(1, 2), pd.Interval(0.5, 1.5, "both"), pd.Interval(stamps[0], stamps[0]), None),
    )
    scalars = (
        np.float32(1.5),
        np.int8(3),
        np.uint64(2**64 - 1),
        np.bool_(True),
        np.float64(NAN),
        np.complex64(1j),
    )
    yield (
        "object numpy",
        obj(
            *scalars,
            np.float16(2),
            without_unit("M8", NAT),
            np.datetime64("2020-01", "M"),
            np.timedelta64(3, "h"),
        ),
    )
    nulls = np.datetime64("NaT", "ns"), without_unit("m8", NAT), np.float32(NAN), None
    yield "object numpy nulls", obj(*nulls)
    nested = ([1, [2, (3, None)]], (), {1, "a"}, frozenset({2.5}), {"b": [1], "a": {}, 3: NAN})
    yield "object containers", obj(*nested, None)
    yield "object lists", obj([1, 2], [3], None, [])
    yield "object same lists", obj([1, 2], [3, 4])
    yield (
        "object arrays",
        obj(np.arange(3), np.zeros((2, 0, 3), "f4"), np.array(5, "M8[s]"), np.array([True]), None),
    )
    yield "object arrays in lists", obj([np.arange(2.0)], {"k": np.arange(6).reshape(2, 3).T})

    for name, array in arrow_cases():
        if not isinstance(array.type, pa.BaseExtensionType):
            yield f"ArrowDtype {name}", ext(array)


def plain_arrow():
    for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"):
        t = getattr(pa, name)()
        yield name, pa.array([0, None, 1, 2 ** (t.bit_width - 1) - 1], t)
    for name, code in (("float16", "f2"), ("float32", "f4"), ("float64", "f8")):
        yield name, pa.array(np.array([1, NAN, -0.0, 2], code), mask=np.array([False, False, False, True]))
    yield "bool", pa.array([True, None, False] * 7)
    texts = ["a", None, "", "é\0", "😀" * 9, "x" * 50]
    for name in ("string", "large_string", "string_view"):
        yield name, pa.array(texts, getattr(pa, name)())
    for name in ("binary", "large_binary", "binary_view"):
        yield name, pa.array([b"a", None, b"", b"\xff" * 40], getattr(pa, name)())
    yield "fixed_size_binary", pa.array([b"abc", None, b"\0\0\0"], pa.binary(3))
    yield "fixed_size_binary 0", pa.array([b"", None, b""], pa.binary(0))
    yield "fixed_size_binary 0 full", pa.array([b"", b""], pa.binary(0))
    yield (
        "decimal128",
        pa.array([Decimal("1.50"), None, Decimal("-0.01"), Decimal("0")], pa.decimal128(38, 2)),
    )
    yield "decimal128 negative scale", pa.array([Decimal("1200"), None, Decimal("0")], pa.decimal128(5, -2))
    yield "decimal128 small", pa.array([Decimal("1E-20"), None, Decimal("0")], pa.decimal128(30, 20))
    yield "decimal256", pa.array([Decimal("1.50"), None, -Decimal("9" * 70)], pa.decimal256(76, 5))
    for width in (32, 64):
        if hasattr(pa, f"decimal{width}"):
            yield (
                f"decimal{width}",
                pa.array([Decimal("1.50"), None, Decimal("-7")], getattr(pa, f"decimal{width}")(8, 3)),
            )
    yield "date32", pa.array([0, None, -719162], pa.date32())
    yield "date64", pa.array([0, None, 86_400_000], pa.date64())
    for name, units in (
        ("time32", "s ms"),
        ("time64", "us"),
        ("timestamp", "s ms us ns"),
        ("duration", "s ms us ns"),
    ):
        for unit in units.split():
            yield f"{name} {unit}", pa.array([0, None, 1, 43_200], getattr(pa, name)(unit))
    yield "time64 ns", pa.array([0, None, 43_200_000], pa.time64("ns"))
    for zone in ("UTC", "Europe/Berlin", "+01:30"):
        yield f"timestamp {zone}", pa.array([0, None, 10**9], pa.timestamp("us", zone))
    yield "month_day_nano", pa.array([(1, -2, 3), None, (0, 0, 0)], pa.month_day_nano_interval())
    yield "null", pa.nulls(3)


def nested_arrow():
    yield "list", pa.array([[1, None], None, [], [3]], pa.list_(pa.int64()))
    yield "list of text", pa.array([["a", None], None, ["é" * 40]])
    yield "large_list", pa.array([[1, None], None, []], pa.large_list(pa.int8()))
    yield "fixed list", pa.array([[1, 2], None, [None, 3]], pa.list_(pa.float32(), 2))
    field = pa.field("x", pa.int32(), nullable=False, metadata={"a": "b"})
    yield (
        "struct",
        pa.array(
            [{"x": 1, "y": ["a"]}, None, {"x": 2, "y": None}],
            pa.struct([field, ("y", pa.list_(pa.string()))]),
        ),
    )
    yield "struct empty", pa.array([{}, None], pa.struct([]))
    yield "list named", pa.array([[1], None], pa.list_(pa.field("element", pa.int8(), nullable=False)))
    yield "map", pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int32()))
    yield "list of decimal", pa.array([[Decimal("1.5")], None], pa.list_(pa.decimal128(5, 2)))
    yield "dictionary", pa.array(["a", None, "b", "a"]).dictionary_encode()
    codes = pa.array([1, None, 0], pa.uint8())
    yield (
        "dictionary ordered",
        pa.DictionaryArray.from_arrays(codes, pa.array([b"x", b"y", b"z"]), ordered=True),
    )
    yield "dictionary int", pa.DictionaryArray.from_arrays(codes, pa.array([5, 6], pa.int16()))
    yield "dictionary bool", pa.DictionaryArray.from_arrays(codes, pa.array([True, False]))
    yield (
        "dictionary decimal",
        pa.DictionaryArray.from_arrays(codes, pa.array([Decimal("1.5"), Decimal("2.5")])),
    )
    yield "dictionary struct", pa.DictionaryArray.from_arrays(codes, pa.array([{"a": 1}, {"a": None}]))
    yield (
        "list of dictionary",
        pa.ListArray.from_arrays([0, 2, 2, 3], pa.array(["a", "b", "a"]).dictionary_encode()),
    )


def arrow_cases():
    yield from plain_arrow()
    yield from nested_arrow()


def rare_arrow():
    yield "list of views", pa.array([["x" * 50], None, ["a", None]], pa.list_(pa.string_view()))
    yield "list_view", pa.array([[1, 2], None, [3]], pa.list_view(pa.int64()))
    yield "large_list_view", pa.array([[1, 2], None, [3]], pa.large_list_view(pa.int64()))
    ends = pa.array([2, 3, 5, 6], pa.int32())
    zeros = pa.array([0.0, None, -0.0, NAN])
    for name, values in {
        "float": zeros,
        "text": pa.array(["a", None, "", "b"]),
        "view": pa.array(["a", None, "", "b" * 20], pa.string_view()),
        "bool": pa.array([True, None, False, True]),
        "one": pa.array([1, None, 1, None]),
        "list": pa.array([[1], None, [2, 3], []]),
        "struct": pa.array([{"a": 1}, None, {"a": 2}, {"a": None}]),
    }.items():
        yield f"runs of {name}", pa.RunEndEncodedArray.from_arrays(ends, values)
    yield "runs int16", pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int16()), pa.array([1, 2]))
    kinds = pa.array([0, 1, 0], pa.int8())
    yield (
        "sparse union",
        pa.UnionArray.from_sparse(kinds, [pa.array([1, None, None]), pa.array(["a", "b", None])]),
    )
    offsets = pa.array([0, 0, 1], pa.int32())
    children = [pa.array([1, None]), pa.array(["b"])]
    yield "dense union", pa.UnionArray.from_dense(kinds, offsets, children, ["i", "s"], [0, 1])
    yield (
        "list of union",
        pa.ListArray.from_arrays([0, 2, 3], pa.UnionArray.from_dense(kinds, offsets, children)),
    )
    null_inside = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 1]), pa.array(["a", None]))
    yield "dictionary with null entry", null_inside
    null_first = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 2]), pa.array([None, "a", "b"]))
    yield "dictionary with null entry first", null_first
    twice = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 2]), pa.array(["a", "b", "a"]))
    yield "dictionary with an entry twice", twice
    tensor = pa.fixed_shape_tensor(pa.int32(), [2])
    yield (
        "tensor",
        pa.ExtensionArray.from_storage(tensor, pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2))),
    )
    if hasattr(pa, "uuid"):
        yield (
            "uuid",
            pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"x" * 16, None, b"y" * 16], pa.binary(16))),
        )
        yield "bool8", pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, None, 0], pa.int8()))
        yield "json", pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a":1}', None]))
        yield (
            "opaque",
            pa.ExtensionArray.from_storage(pa.opaque(pa.int32(), "t", "v"), pa.array([1, None], pa.int32())),
        )
        storage = pa.array(["a", None, "b"]).dictionary_encode()
        yield "opaque dictionary", pa.ExtensionArray.from_storage(pa.opaque(storage.type, "t", "v"), storage)
        text = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"x" * 16, b"y" * 16], pa.binary(16)))
        yield "list of uuid", pa.ListArray.from_arrays([0, 1, 2], text)


PANDAS = dict(pandas_cases())
ARROW = dict(itertools.chain(arrow_cases(), rare_arrow()))


def test_there_are_many_cases():
    assert len(PANDAS) + len(ARROW) > 240


# --- there and back -------------------------------------------------------------------------------


def trip(values, *, deterministic=False, to=codec.unpack, described=None):
    """Describe, pack and unpack, and check on the way what must be true for every type."""
    described = described or codec.describe(values, column="身份证", deterministic=deterministic)
    text = json.dumps(
        described.type, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    type_ = json.loads(text)
    assert type_ == described.type
    codec.check(type_, described.kind)
    assert codec.label(type_) != "unknown"
    cells = codec.pack(described, values, column="身份证")
    assert len(cells) == len(values)
    assert cells.data.flags.c_contiguous
    assert cells.width == codec.width(type_, described.kind)
    if cells.offsets is not None:
        assert cells.offsets[0] == 0
        assert cells.offsets[-1] == len(cells.data)
    assert cells.count == (len(values) if cells.valid is None else int(cells.valid.sum()))
    made = to(type_, mine(cells), kind=described.kind, categories=described.categories, column="身份证")
    return described, cells, made


def mine(cells):
    """Copy cells, as a cipher returns them: memory and offsets that are not shared."""
    offsets = None if cells.offsets is None else cells.offsets.copy()
    valid = None if cells.valid is None else cells.valid.copy()
    return Cells(cells.data.copy(), offsets, cells.width, valid)


def series_of(array):
    return pd.Series(array, dtype=array.dtype)


def slices(values):
    if "view" in str(values.dtype if isinstance(values, pd.Series) else ""):
        yield values.iloc[1:]  # pandas itself supports nothing else for them
    elif isinstance(values, pd.Series):
        yield from (values.iloc[1:], values.iloc[:0], values.iloc[::2], values.iloc[::-1], values.iloc[:1])
        yield values[values.isna()]
        if values.dtype != np.float16:  # pandas has no index of float16
            yield pd.Series(pd.Index(values.iloc[:2], dtype=values.dtype), dtype=values.dtype)
    else:
        yield from (values.slice(1), values.slice(0, 0), values.slice(1, 1), values.slice(len(values) - 1))


@pytest.mark.parametrize("name", PANDAS)
def test_pandas_values_come_back(name):
    values = PANDAS[name]
    before = values.copy(deep=True)
    for part in (values, *slices(values)):
        part = part.reset_index(drop=True)
        _, _, made = trip(part)
        same_series(series_of(made), part)
    same_series(values, before)


@pytest.mark.parametrize("name", ARROW)
def test_arrow_values_come_back(name):
    values = ARROW[name]
    for part in (values, *slices(values)):
        _, _, made = trip(part, to=codec.unpack_arrow)
        same_arrow(made, part)
        made.validate(full=True)
    chunked = pa.chunked_array([values.slice(1), values.slice(0, 0), values], type=values.type)
    _, _, made = trip(chunked, to=codec.unpack_arrow)
    same_arrow(made, chunked)
    empty = pa.chunked_array([], type=values.type)
    _, _, made = trip(empty, to=codec.unpack_arrow)
    same_arrow(made, empty)


@pytest.mark.parametrize("name", [n for n in ARROW if "union" not in n and "runs" not in n])
def test_arrow_columns_of_nulls_come_back(name):
    values = pa.nulls(3, ARROW[name].type)
    _, cells, made = trip(values, to=codec.unpack_arrow)
    assert cells.count == 0
    same_arrow(made, values)


@pytest.mark.parametrize("name", ARROW)
def test_arrow_columns_become_what_pandas_makes_of_them(name):
    values = ARROW[name]
    _, _, made = trip(values)
    try:
        again = trip(values, to=codec.unpack_arrow)[2]
        expected = pa.table({"c": again}).to_pandas()["c"] if name == "json" else pd.Series(again.to_pandas())
    except (pa.ArrowException, TypeError, ValueError):
        expected = ext(values)
    if name in ("int64", "uint64"):  # with nulls, and values that a float64 would change
        dtype = {"int64": pd.Int64Dtype(), "uint64": pd.UInt64Dtype()}[name]
        expected = pd.Series(dtype.__from_arrow__(again))
    same_series(series_of(made), expected)


@pytest.mark.parametrize("name", PANDAS)
def test_pandas_values_become_arrow(name):
    values = PANDAS[name]
    described = codec.describe(values, column="c")
    if name in NOT_ARROW:
        with pytest.raises(UnsupportedTypeError, match=r"'身份证'.*Arrow"):
            trip(values, to=codec.unpack_arrow)
        return
    _, _, made = trip(values, to=codec.unpack_arrow)
    assert len(made) == len(values)
    if "arrow" not in described.type:
        return
    assert made.type == arrow_type(described.type["arrow"])
    expected = values.tolist()
    if isinstance(values.dtype, np.dtype | pd.DatetimeTZDtype) and values.dtype.kind in "mM":
        assert made.cast(pa.int64()).fill_null(np.iinfo("i8").min).to_pylist() == values.astype("i8").tolist()
    elif values.dtype == object and isinstance(expected[0], uuid.UUID):
        assert made.to_pylist() == [value and value.bytes for value in expected]
    elif values.dtype == object:
        assert made.to_pylist() == [None if pd.isna(value) else value for value in expected]
    elif isinstance(values.dtype, np.dtype):
        if values.dtype == np.float16:  # which older pyarrow cannot fill
            made, values = made.cast(pa.float32()), values.astype("f4")
        raw = (made.fill_null(NAN) if values.dtype.kind == "f" else made).to_numpy(zero_copy_only=False)
        assert raw.tobytes() == values.to_numpy().astype(raw.dtype).tobytes() or "f4" in name or "f2" in name
    elif not isinstance(values.dtype, pd.ArrowDtype):
        assert [v is None for v in made.to_pylist()] == values.array.isna().tolist()


@pytest.mark.parametrize("name", PANDAS)
def test_headers_are_equal_for_equal_dtypes(name):
    values = PANDAS[name]
    if values.dtype == object or isinstance(values.dtype, pd.CategoricalDtype):
        return
    whole = codec.describe(values, column="a")
    assert all(codec.describe(part, column="b") == whole for part in slices(values))


@pytest.mark.parametrize("name", PANDAS)
def test_results_are_writable_and_alias_nothing(name):
    values = PANDAS[name]
    if isinstance(
        values.dtype, pd.ArrowDtype | pd.IntervalDtype
    ):  # immutable memory; not settable in all pandas versions
        return
    values = values.dropna().reset_index(drop=True)
    if values.empty or isinstance(values.iloc[0], set | dict | list | np.ndarray | tuple | frozenset):
        return
    before = values.copy(deep=True)
    described = codec.describe(values, column="c")
    cells = codec.pack(described, values, column="c")  # not copied: it may be the caller's memory
    cells.data.flags.writeable = False
    made = codec.unpack(described.type, cells, categories=described.categories, column="c")
    made[0] = made[-1]
    same_series(values, before)
    if isinstance(made, np.ndarray):
        assert made.flags.writeable


def test_writable_cells_are_taken_over_and_unaligned_ones_copied():
    type_ = {"arrow": "int64", "pandas": {"numpy": "<i8"}}
    data = np.arange(24, dtype=np.uint8)
    assert np.shares_memory(codec.unpack(type_, Cells(data, width=8), column="c"), data)
    odd = np.arange(25, dtype=np.uint8)[1:]
    made = codec.unpack(type_, Cells(odd, width=8), column="c")
    assert made.flags.aligned
    assert not np.shares_memory(made, odd)


def test_no_copy_where_none_is_needed():
    for values in (np.arange(5), np.arange(5.0), np.array([0, 1], "M8[s]")):
        series = pd.Series(values, copy=False)
        cells = codec.pack(codec.describe(series, column="c"), series, column="c")
        assert np.shares_memory(cells.data, values)
    text = pa.array(["a" * 10**5, "b" * 10**5], pa.large_string())
    before = pa.total_allocated_bytes()
    cells = codec.pack(codec.describe(text, column="c"), text, column="c")
    assert pa.total_allocated_bytes() - before < 1024
    assert np.shares_memory(cells.data, np.frombuffer(text.buffers()[2], np.uint8))


def test_runs_are_as_long_as_can_be():
    ends = pa.array([1, 2, 3, 4, 5, 6], pa.int32())
    values = pa.RunEndEncodedArray.from_arrays(ends, pa.array([0.0, 0.0, None, None, 0.0, -0.0]))
    _, _, made = trip(values, to=codec.unpack_arrow)
    assert made.run_ends.to_pylist() == [2, 4, 5, 6]
    same(made.values.to_pylist(), [0.0, None, 0.0, -0.0])


def test_sets_have_one_encoding():
    values = [{1, 9, 17, "a"}, {17, "a", 9, 1}, {"a", 17, 9, 1}]
    assert len({tags.encode(value) for value in values}) == 1
    assert [item[:1] for item in tags._items(tags.encode(values[0])[1:])] == [b"i", b"i", b"i", b"s"]
    small = frozenset(range(100))
    assert tags.encode(small) == tags.encode(frozenset(reversed(range(100))))
    items = list(tags._items(tags.encode(frozenset(["b", "a", 3]))[1:]))
    assert items == sorted(items)


def test_dictionaries_fill_their_index_type():
    for size in (128, 129):
        parts = [pa.array(np.arange(64)), pa.array(np.arange(64, size))]
        made = [part.dictionary_encode() for part in parts]
        narrow = [pa.DictionaryArray.from_arrays(x.indices.cast(pa.int8()), x.dictionary) for x in made]
        if size == 128:
            assert trip(pa.chunked_array(narrow), to=codec.unpack_arrow)[2].to_pylist() == list(range(128))
            continue
        with pytest.raises(UnsupportedTypeError, match=r"'c'.*exceed its index type"):
            codec.describe(pa.chunked_array(narrow), column="c")


def test_dictionaries_that_differ_by_chunk_become_one():
    chunks = [pa.array(["a", "b"]).dictionary_encode(), pa.array(["c", "a", None]).dictionary_encode()]
    values = pa.chunked_array(chunks)
    described, cells, made = trip(values, to=codec.unpack_arrow)
    assert made.to_pylist() == ["a", "b", "c", "a", None]
    assert made.type == values.type
    assert cells.rows() == [b"a", b"b", b"c", b"a", None]
    assert described.categories == b"\1\0\0\0a\1\0\0\0b\1\0\0\0c"


def test_text_of_more_than_2_gib_comes_in_chunks(monkeypatch):
    monkeypatch.setattr(arrow, "MOST_BYTES", 10)
    for t in (pa.string(), pa.binary()):
        values = pa.array(["abcd", "efgh", None, "ijkl", "x" * 10, ""], pa.string()).cast(t)
        _, _, made = trip(values, to=codec.unpack_arrow)
        assert made.num_chunks > 1
        assert made.type == t
        assert made.combine_chunks().equals(values) or made.to_pylist() == values.to_pylist()


# --- the bytes themselves -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pd.Series([1, -2], dtype="int16"), ["0100", "feff"]),
        (pd.Series([1, None], dtype="Int32"), ["01000000", None]),
        (pd.Series(np.array([1], ">i4")), ["01000000"]),
        (pd.Series([1.5, NAN]), ["000000000000f83f", None]),
        (pd.Series(bits("f8", 0xFFF8 << 48)), ["000000000000f8ff"]),
        (pd.Series([True, False]), ["01", "00"]),
        (pd.Series(["é", None], dtype="string"), ["c3a9", None]),
        (pd.Series(np.array([1, "NaT"], "M8[s]")), ["0100000000000000", None]),
        (pd.Series(np.array([1 + 2j], "c8")), ["0000803f00000040"]),
        (pd.Series(pd.period_range("1970-02", periods=1, freq="M")), ["0100000000000000"]),
        (pd.Series(pd.interval_range(1, 2)), ["01000000000000000200000000000000"]),
        (cat(["é", None], ["x", "é"]), ["c3a9", None]),
        (obj(Decimal("1.20"), None), ["312e3230", None]),
        (obj(uuid.UUID(int=1)), ["00" * 15 + "01"]),
        (obj(dt.date(1970, 1, 2)), ["01000000"]),
        (obj(1, "a", None, pd.NA), ["690100000000000000", "7361", None, "41"]),
        (obj(2**63, "a"), ["49" + "00" * 7 + "8000", "7361"]),
        (obj(-(2**71), "a"), ["49" + "00" * 8 + "80", "7361"]),
        (obj([1], "a"), ["6c09000000690100000000000000", "7361"]),
        (obj(dt.time(0, 0, 1), "a"), ["7400ca9a3b00000000", "7361"]),
        (
            obj(pd.Timestamp(1, unit="ns"), 0.0),
            ["50010000000000000000" + b'["ns",null]'.hex(), "66" + "00" * 8],
        ),
        (obj(np.float32(1)), ["23033c66340000803f"]),
        (pa.array([Decimal("1.5")], pa.decimal128(5, 2)), ["96" + "00" * 15]),
        (pa.array([(1, 2, 3)], pa.month_day_nano_interval()), ["01000000020000000300000000000000"]),
    ],
)
def test_cells_are_the_values_own_bytes(values, expected):
    cells = codec.pack(codec.describe(values, column="c"), values, column="c")
    assert [row if row is None else row.hex() for row in cells.rows()] == expected


def test_nested_cells_are_one_row_arrow_messages():
    values = ARROW["list of text"]
    cells = codec.pack(codec.describe(values, column="c"), values, column="c")
    rows = [
        row
        and pa.ipc.read_record_batch(pa.py_buffer(row), pa.schema([("c", values.type)])).column(0)[0].as_py()
        for row in cells.rows()
    ]
    assert rows == values.to_pylist()
    values = ARROW["list of dictionary"]
    cells = codec.pack(codec.describe(values, column="c"), values, column="c")
    rows = [pa.ipc.open_stream(row).read_all().column(0).to_pylist() for row in cells.rows()]
    assert [row for [row] in rows] == values.to_pylist()


def test_a_nested_cell_holds_no_text_of_other_rows():
    for t in (pa.string(), pa.string_view()):
        values = pa.array([["secret" * 9], ["b"]], pa.list_(t))
        cells = codec.pack(codec.describe(values, column="c"), values, column="c")
        assert b"secret" not in cells.rows()[1]


# --- deterministic columns ------------------------------------------------------------------------

FLOATS = (
    ">f8 >f4 >c16 f2 f4 f8 c8 c16 Float64 Float32 reversed|big-endian nan|f2 plain|f4 plain|f8 plain|"
    "column of a block|interval float|"
    "interval nan|category float|category cut float|category mixed|object text mixed nulls|object float|"
    "object complex|object mixed|object Interval|object numpy|object numpy nulls|ArrowDtype float16|"
    "ArrowDtype float32|ArrowDtype float64"
)
NESTED = (
    "category tuples|object containers|object lists|object same lists|object arrays|object arrays in lists|"
    "ArrowDtype month_day_nano|ArrowDtype list|ArrowDtype list of text|ArrowDtype large_list|"
    "ArrowDtype fixed list|"
    "ArrowDtype struct|ArrowDtype struct empty|ArrowDtype list named|ArrowDtype map|"
    "ArrowDtype list of decimal|"
    "ArrowDtype dictionary struct|ArrowDtype list of dictionary"
)
NOT_DETERMINISTIC = {*FLOATS.split("|")[0].split(), *FLOATS.split("|")[1:], *NESTED.split("|")}
NOT_DETERMINISTIC |= {"object decimal", "datetime far"}  # an infinity; beyond nanoseconds
# What pa.array cannot make of pandas' values; older pyarrow can less.
NOT_ARROW = {">c16", "c8", "c16", "zone timezone odd", "interval Int64", "category mixed", "category tuples"}
NOT_ARROW |= {f"object {name}" for name in ("big int", "decimal", "complex", "mixed", "timedelta", "Period")}
NOT_ARROW |= {f"object {name}" for name in ("Interval", "numpy", "numpy nulls", "containers", "arrays")}
NOT_ARROW |= {"object zone timezone odd", "object arrays in lists"}
NOT_ARROW |= set() if PANDAS_3 else {"interval tz", "category period"}


def deterministic_cells(values):
    described, cells, made = trip(values, deterministic=True)
    same_series(series_of(made), values)
    return described.kind, cells.rows()


@pytest.mark.parametrize("name", PANDAS)
def test_deterministic_columns_come_back(name):
    values = PANDAS[name]
    if name in NOT_DETERMINISTIC:
        with pytest.raises(UnsupportedTypeError, match="'c'"):
            codec.pack(codec.describe(values, column="c", deterministic=True), values, column="c")
        return
    for part in (values, values.iloc[1:], values.iloc[:0]):
        part = part.reset_index(drop=True)
        _, _, made = trip(part, deterministic=True)
        same_series(series_of(made), part)


@pytest.mark.parametrize("name", ARROW)
def test_deterministic_arrow_columns_come_back(name):
    values = ARROW[name]
    try:
        codec.describe(values, column="c", deterministic=True)
    except UnsupportedTypeError:
        t = value_type(values.type)
        assert pa.types.is_floating(t) or t.num_fields or pa.types.is_interval(t) or pa.types.is_struct(t)
        return
    for part in (values, *slices(values)):
        _, _, made = trip(part, deterministic=True, to=codec.unpack_arrow)
        same_arrow(made, part)


def text_columns():
    yield obj("é", None, "b")
    yield pd.Series(["é", None, "b"], dtype="string[python]")
    yield pd.Series(["é", None, "b"], dtype="string[pyarrow]")
    yield cat(["é", None, "b"], ["b", "x", "é"])
    yield code_cat([0, -1, 1], pd.Index(["é", "b"], dtype="string"))
    for t in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())):
        yield ext(pa.array(["é", None, "b"], t))
    if PANDAS_3:
        yield pd.Series(["é", None, "b"], dtype="str")


def int_columns():
    for name in ("Int8", "Int16", "Int32", "Int64"):
        yield pd.Series([1, None, -5], dtype=name)
    yield obj(1, None, -5)
    yield cat([1, None, -5], [-5, 7, 1])
    yield ext(pa.array([1, None, -5], pa.int16()))


def naive_columns():
    for unit in ("s", "ms", "us", "ns"):
        made = pd.Series(np.array([0, 1577836800, "NaT"], "M8[s]").astype(f"M8[{unit}]"))
        yield made
        yield made.astype("category")
        yield ext(pa.array(made))


def zoned_columns():
    for naive in naive_columns():
        if naive.dtype.kind == "M":
            made = naive.dt.tz_localize("UTC").dt.tz_convert("Europe/Berlin")
            yield made
            yield made.astype("category")
            yield ext(pa.array(naive).cast(pa.timestamp(made.dt.unit, "Europe/Berlin")))  # the same instants


def day_columns():
    days = [dt.date(1970, 1, 2), None, dt.date(1960, 1, 1)]
    yield obj(*days)
    yield ext(pa.array(days, pa.date32()))
    yield ext(pa.array(days, pa.date64()))
    yield code_cat([0, -1, 1], pd.Index([days[0], days[2]], dtype=object))


def decimal_columns():
    values = [Decimal("1.50"), None, Decimal("-20.00"), Decimal("0.00")]
    yield obj(*values)
    for t in (pa.decimal128(10, 2), pa.decimal128(38, 9), pa.decimal256(60, 30)):
        yield ext(pa.array(values, t))
    yield ext(pa.array(values, pa.decimal128(10, 2)).dictionary_encode())


def span_columns():
    for unit in ("s", "ms", "us", "ns"):
        made = pd.Series(np.array([0, -7, "NaT"], "m8[s]").astype(f"m8[{unit}]"))
        yield made
        yield ext(pa.array(made))


def time_columns():
    times = [dt.time(1, 2, 3), None, dt.time(0)]
    yield obj(*times)
    for t in (pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")):
        yield ext(pa.array(times, t))


def bytes_columns():
    values = [b"ab", None, b"\0\xff"]
    yield obj(*values)
    for t in (pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2)):
        yield ext(pa.array(values, t))


def uint_columns():
    yield pd.Series([1, None, 2], dtype="UInt8")
    yield pd.Series([1, None, 2], dtype="UInt64")
    yield ext(pa.array([1, None, 2], pa.uint32()))


def bool_columns():
    yield pd.Series([True, None, False], dtype="boolean")
    yield obj(True, None, False)
    yield ext(pa.array([True, None, False]))
    yield cat([True, None, False], [False, True])


SAME = {
    "text": (text_columns, ["c3a9", None, "62"]),
    "int": (int_columns, ["0100000000000000", None, "fbffffffffffffff"]),
    "uint": (uint_columns, ["0100000000000000", None, "0200000000000000"]),
    "timestamp": (naive_columns, ["00" * 8, (1577836800 * 10**9).to_bytes(8, "little").hex(), None]),
    "instant": (zoned_columns, ["00" * 8, (1577836800 * 10**9).to_bytes(8, "little").hex(), None]),
    "date": (day_columns, ["01000000", None, struct.pack("<i", -3653).hex()]),
    "decimal": (decimal_columns, [b"1.5".hex(), None, b"-20".hex(), b"0".hex()]),
    "bytes": (bytes_columns, ["6162", None, "00ff"]),
    "bool": (bool_columns, ["01", None, "00"]),
}


@pytest.mark.parametrize("kind", SAME)
def test_equal_values_have_equal_cells_whatever_the_dtype(kind):
    make, expected = SAME[kind]
    for values in make():
        found, rows = deterministic_cells(values)
        assert (found, [row and row.hex() for row in rows]) == (kind, expected), values.dtype


HARD = {  # values that some types of the kind cannot store exactly
    "int": [pd.Series([127, 128, -(2**63), 2**63 - 1]), *(pd.Series([1], dtype=f"i{n}") for n in (1, 2, 4))],
    "uint": [
        pd.Series([2**64 - 1, 255, 256], dtype="u8"),
        pd.Series([1], dtype="u1"),
        ext(pa.array([1], "u4")),
    ],
    "timestamp": [
        pd.Series(np.array(["2020-01-01T00:00:00.000000001"], "M8[ns]")),
        ext(pa.array([-(2**63), 5], pa.timestamp("ns"))),
        *naive_columns(),
    ],
    "instant": [
        pd.Series(np.array(["2020-01-01T00:00:00.000001"], "M8[us]")).dt.tz_localize("Asia/Tokyo"),
        *zoned_columns(),
    ],
    "date": [ext(pa.array([2**31 - 1, -(2**31), 0], pa.date32())), *day_columns()],
    "decimal": [
        obj(Decimal("10.99")),
        obj(Decimal("11")),
        obj(Decimal("1E+3")),
        ext(pa.array([Decimal("0.001")], pa.decimal128(4, 3))),
        ext(pa.array([Decimal("100")], pa.decimal128(3, -2))),
        *decimal_columns(),
    ],
    "text": [obj("a", None), pd.Series(["b"], dtype="string"), cat(["x", None], ["x", "y"]), *text_columns()],
    "bytes": [obj(b"abc"), *bytes_columns()],
    "bool": [*bool_columns()],
    "tagged": [
        obj(1, "a"),
        obj(dt.time(1, 2, 3, 4)),
        ext(pa.array([3 * 2**31 * 10**6], pa.time64("ns"))),
        pd.Series(pd.to_timedelta([1], unit="ns")),
        ext(pa.array([-(2**63)], pa.duration("ns"))),
        pd.Series(pd.arrays.IntervalArray.from_arrays(np.array([1], "i8"), np.array([300], "i8"))),
        pd.Series(pd.arrays.IntervalArray.from_arrays(np.array([1], "i1"), np.array([3], "i1"))),
        pd.Series(pd.arrays.IntervalArray.from_arrays(np.array([1], "u8"), np.array([3], "u8"))),
        pd.Series(pd.arrays.IntervalArray.from_arrays(np.array([-1], "i8"), np.array([3], "i8"))),
        pd.Series(pd.IntervalIndex.from_breaks(pd.date_range("2020", periods=2))),
        pd.Series(pd.IntervalIndex.from_breaks(pd.date_range("2020", periods=2, tz="Asia/Tokyo"))),
        pd.Series(pd.period_range("2020-01", periods=1, freq="M")),
        *span_columns(),
        *time_columns(),
    ],
}


@pytest.mark.parametrize("kind", HARD)
def test_cells_of_another_type_of_the_kind_come_back_exactly_or_not_at_all(kind):
    refused = 0
    for written in HARD[kind]:
        one = codec.describe(written, column="c", deterministic=True)
        cells = codec.pack(one, written, column="c").rows()
        for read in HARD[kind]:
            two = codec.describe(read, column="c", deterministic=True)
            assert (one.kind, two.kind) == (kind, kind)
            how = {"kind": kind, "categories": two.categories, "column": "c"}
            try:
                found = series_of(codec.unpack(two.type, Cells.of(cells), **how))
                again = codec.describe(found, column="c", deterministic=True)
                back = codec.pack(again, found, column="c").rows()
            except FormatError:
                refused += 1
                continue
            assert (again.kind, back) == (kind, cells), (one, two)
    assert refused or kind in ("bool",)


@pytest.mark.parametrize("make", [span_columns, time_columns])
def test_equal_times_have_equal_tagged_cells(make):
    made = [deterministic_cells(values) for values in make()]
    assert all(one == made[0] for one in made)
    assert made[0][0] == "tagged"


def test_tagged_columns_hold_tagged_objects():
    columns = {
        "td": (pd.Series(pd.to_timedelta([5], unit="s")).dt.as_unit("s"), pd.Timedelta(5, "s").as_unit("ns")),
        "period": (pd.Series(pd.period_range("2020-01", periods=1, freq="M")), pd.Period("2020-01", "M")),
        "interval": (pd.Series(pd.interval_range(1, 2, closed="both")), pd.Interval(1, 2, "both")),
        "time": (ext(pa.array([dt.time(1, 2)])), dt.time(1, 2)),
        "interval of time": (
            pd.Series(
                pd.IntervalIndex.from_breaks(pd.date_range("2020", periods=2, tz="Asia/Tokyo").as_unit("s"))
            ),
            pd.Interval(
                pd.Timestamp("2019-12-31 15:00", tz=dt.UTC).as_unit("ns"),
                pd.Timestamp("2020-01-01 15:00", tz=dt.UTC).as_unit("ns"),
            ),
        ),
        "interval of spans": (
            pd.Series(pd.IntervalIndex.from_breaks(pd.to_timedelta([1, 2], unit="s"))),
            pd.Interval(pd.Timedelta(1, "s").as_unit("ns"), pd.Timedelta(2, "s").as_unit("ns")),
        ),
    }
    for values, expected in columns.values():
        _, [row] = deterministic_cells(values)
        assert row == tags.encode(expected)
        same(tags.decode(row), expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.50", "1.5"),
        ("-0", None),
        ("1E+3", "1000"),
        ("0E-8", "0"),
        ("1E-8", "0.00000001"),
        ("-12.000", "-12"),
        ("100", "100"),
    ],
)
def test_decimals_have_their_shortest_text(text, expected):
    values = obj(Decimal(text))
    if expected is None:
        with pytest.raises(UnsupportedTypeError, match="negative zero"):
            codec.describe(values, column="c", deterministic=True)
        return
    assert deterministic_cells(values) == ("decimal", [expected.encode()])


# --- refusals -------------------------------------------------------------------------------------


class Colour(enum.IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


class Half(np.float64):
    pass


def foreign_zone():
    """A zone file that has the name Berlin, but is another zone."""
    with zoneinfo._common.load_tzdata("Asia/Tokyo") as file:
        return dateutil.tz.tzfile(io.BytesIO(file.read()), filename="Europe/Berlin")


def cyclic():
    made = []
    made.append(made)
    return made


def deep(n):
    made = []
    for _ in range(n):
        made = [made]
    return made


SECRET = "topsecret"
REFUSALS = {
    "sparse": (
        lambda: pd.Series([1, 0], dtype="Sparse[int]"),
        False,
        ["Sparse[int64, 0]", ".sparse.to_dense()"],
    ),
    "longdouble": (lambda: pd.Series(np.array([1], np.longdouble)), False, ["float128", "float64"]),
    "third party": (lambda: pd.Series(Odd()), False, ["odd", "Convert"]),
    "tzlocal": (lambda: tick("ns", dateutil.tz.tzlocal()), False, ["tzlocal", "tz_convert"]),
    "surrogate": (
        lambda: obj("a", SECRET + "\ud800", "b", "\udfff"),
        False,
        ["rows [1, 3]", "surrogatepass"],
    ),
    "surrogate null": (lambda: obj(None, "a", SECRET + "\ud800"), False, ["rows [2]", "surrogatepass"]),
    "surrogate python": (
        lambda: pd.Series(["a", None, SECRET + "\ud800"], dtype="string[python]"),
        False,
        ["rows [2]", "surrogatepass"],
    ),
    "surrogate mixed": (lambda: obj(1, SECRET + "\ud800"), False, ["row 1", "surrogates"]),
    "surrogate category": (
        lambda: code_cat([0], pd.Index(["\ud800" + SECRET], dtype=object)),
        False,
        ["surrogatepass"],
    ),
    "enum": (lambda: obj(1, None, Colour.RED), False, ["row 2", "Colour", "Convert"]),
    "np.str_": (lambda: obj("a", np.str_(SECRET)), False, ["row 1", "numpy.str_"]),
    "str subclass": (lambda: obj("a", Text(SECRET)), False, ["row 1", "Text"]),
    "all str subclass": (lambda: obj(Text(SECRET)), False, ["row 0", "Text"]),
    "OrderedDict": (lambda: obj(collections.OrderedDict(a=SECRET)), False, ["row 0", "OrderedDict"]),
    "namedtuple": (lambda: obj([(collections.namedtuple("P", "x")(SECRET))]), False, ["row 0", "P"]),  # noqa: PYI024
    "object": (lambda: obj(1, object()), False, ["row 1", "builtins.object"]),
    "function": (lambda: obj(len), False, ["row 0", "builtin_function_or_method"]),
    "cycle": (lambda: obj(cyclic()), False, ["row 0", "deep"]),
    "deep": (lambda: obj(deep(100)), False, ["row 0", "deep"]),
    "numpy subclass": (lambda: obj(Half(1)), False, ["row 0", "Half"]),
    "masked array": (lambda: obj(np.ma.masked_array([1], [True])), False, ["row 0", "MaskedArray"]),
    "big-endian array": (lambda: obj(np.array([1], ">i4")), False, ["row 0", "ndarray"]),
    "foreign zone file": (
        lambda: obj(dt.datetime(2020, 1, 1, tzinfo=foreign_zone())),
        False,
        ["row 0", "tzfile"],
    ),
    "longdouble scalar": (lambda: obj(np.longdouble(1)), False, ["row 0", "longdouble"]),
    "object array": (lambda: obj(np.array([SECRET], object)), False, ["row 0", "ndarray"]),
    "text array": (lambda: obj(np.array([SECRET])), False, ["row 0", "ndarray"]),
    "local time": (
        lambda: obj(dt.datetime(2020, 1, 1, tzinfo=dateutil.tz.tzlocal())),
        False,
        ["row 0", "tzlocal"],
    ),
    "bad utf-8": (
        lambda: pa.array([b"\xff" + SECRET.encode()]).view(pa.string()),
        False,
        ["UTF-8", "binary"],
    ),
    "float": (lambda: pd.Series([1.0]), True, ["float64", "Int64"]),
    "Float64": (lambda: pd.Series([1.0], dtype="Float64"), True, ["Float64", "Int64"]),
    "complex": (lambda: pd.Series([1j]), True, ["complex128"]),
    "half": (lambda: pa.array([np.float16(1)]), True, ["float16", "Int64"]),
    "float category": (lambda: cat([1.5], [1.5]), True, ["category", "Int64"]),
    "float interval": (lambda: pd.Series(pd.interval_range(0.5, 1.5)), True, ["interval", "randomised"]),
    "list": (lambda: pa.array([[1]]), True, ["list", "randomised"]),
    "object list": (lambda: obj([SECRET]), True, ["row 0", "list", "text"]),
    "object NaN": (lambda: obj("a", None, NAN), True, ["row 2", "nulls"]),
    "object float": (lambda: obj("a", 1.5), True, ["row 1", "float", "Decimal"]),
    "object np float": (lambda: obj("a", np.float32(1.5)), True, ["row 1", "float32"]),
    "object interval": (lambda: obj("a", pd.Interval(0.5, 1.5)), True, ["row 1", "float"]),
    "decimal scales": (lambda: obj(Decimal("77.5"), None, Decimal("77.25")), True, ["row 2", "quantize"]),
    "decimal infinity": (lambda: obj(Decimal("Infinity")), True, ["row 0", "infinity"]),
    "decimal huge": (lambda: obj(Decimal("1E+9999")), True, ["row 0", "exponent"]),
    "far time": (lambda: tick("s", None, 0, 10**12), True, ["rows [1]", "nanoseconds", "randomised"]),
    "far past": (
        lambda: tick("s", None, 0, -(10**12)),
        True,
        ["rows [1]", "nanoseconds", "randomised"],
    ),
    "far span": (lambda: pd.Series(np.array([0, 10**12], "m8[s]")), True, ["rows [1]", "nanoseconds"]),
    "date64 with time": (
        lambda: pa.array([0, None, 5], pa.int64()).view(pa.date64()),
        True,
        ["rows [2]", "timestamps"],
    ),
    "interval uint": (
        lambda: pd.Series(pd.arrays.IntervalArray.from_arrays(np.array([1], "u8"), np.array([2**63], "u8"))),
        True,
        ["rows [0]", "randomised"],
    ),
}


class OddDtype(pd.api.extensions.ExtensionDtype):
    name = "odd"
    type = str

    @classmethod
    def construct_array_type(cls):
        return Odd


class Odd(pd.api.extensions.ExtensionArray):
    dtype = OddDtype()

    @classmethod
    def _from_sequence(cls, *_, **__):
        return cls()

    def __len__(self):
        return 1

    def __getitem__(self, item):
        return self if isinstance(item, slice) else "x"

    def copy(self):
        return self

    def isna(self):
        return np.zeros(1, bool)


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_name_column_and_way_out_but_no_value(name):
    make, deterministic, words = REFUSALS[name]
    values = make()
    with pytest.raises(UnsupportedTypeError) as caught:
        codec.pack(
            codec.describe(values, column="身份证", deterministic=deterministic), values, column="身份证"
        )
    error = caught.value
    assert error.column == "身份证"
    assert error.dtype
    assert "'身份证'" in str(error)
    for word in words:
        assert word in str(error), str(error)
    assert SECRET not in str(error)
    assert "77" not in str(error)
    while error is not None:  # and no chained error contains the value
        assert not isinstance(error, UnicodeError | pa.ArrowException | decimal.DecimalException)
        error = error.__cause__ or error.__context__


def test_values_of_another_type_than_described_are_refused():
    described = codec.describe(pd.Series([1, 2]), column="c")
    for other in (pd.Series([1.5]), pd.Series([1], dtype="Int64"), pa.array([1]), obj("a")):
        with pytest.raises(UnsupportedTypeError, match=r"'c'.*int64"):
            codec.pack(described, other, column="c")
    described = codec.describe(obj("a", None), column="c")
    assert codec.pack(described, obj("b"), column="c").rows() == [b"b"]
    assert codec.pack(described, obj(), column="c").rows() == []
    assert codec.pack(described, obj(None), column="c").rows() == [None]
    for other in (obj("a", NAN), obj(1), obj("a", 1), pd.Series(["a"], dtype="string")):
        with pytest.raises(UnsupportedTypeError, match=r"'c'.*text"):
            codec.pack(described, other, column="c")
    described = codec.describe(obj("a", 1), column="c")
    assert codec.pack(described, obj("b"), column="c").rows() == [b"sb"]
    described = codec.describe(cat(["a", "b"], ["a", "b"]), column="c")
    assert codec.pack(described, cat(["b", None], ["b"]), column="c").rows() == [b"b", None]
    assert codec.pack(described, cat(["b"], ["b", "z"]), column="c").rows() == [b"b"]
    with pytest.raises(UnsupportedTypeError, match=r"'c'.*category"):
        codec.pack(described, cat(["z"], ["z"]), column="c")
    described = codec.describe(obj(Decimal("1.50")), column="c", deterministic=True)
    with pytest.raises(UnsupportedTypeError, match=r"'c'.*decimal"):
        codec.pack(described, obj(Decimal("1.5")), column="c")


def test_descriptions_show_no_categories():
    assert SECRET not in repr(codec.describe(cat([SECRET], [SECRET]), column="c"))
    assert SECRET not in json.dumps(codec.describe(cat([SECRET], [SECRET]), column="c").type)


# --- headers and cells that are malformed ---------------------------------------------------------

MALFORMED = [
    None,
    [],
    "int64",
    {},
    {"arrow": "int65"},
    {"arrow": "int64", "x": 1},
    {"arrow": "int64 "},
    {"arrow": 5},
    {"arrow": {"ipc": "!!"}},
    {"arrow": {"ipc": "AAAA"}},
    {"arrow": {"ipc": ""}},
    {"arrow": {"ipc": "AAAA", "x": 1}},
    {"arrow": "timestamp[s, tz=]"},
    {"arrow": "decimal128(99, 1)"},
    {"arrow": "decimal128(0, 0)"},
    {"arrow": "time32[ns]"},
    {"arrow": "decimal128(05, 2)"},
    {"arrow": "fixed_size_binary[03]"},
    {"arrow": {"ipc": base64.b64encode(pa.schema([("d", pa.int8())]).serialize()).decode()}},
    {"pandas": {"datetime": ["ns", ["timezone", True, None]]}},
    {
        "arrow": "timestamp[ns, tz=/etc/localtime]",
        "pandas": {"datetime": ["ns", ["dateutil", "/etc/localtime"]]},
    },
    {"arrow": "timestamp[ns, tz=../x]", "pandas": {"datetime": ["ns", ["zoneinfo", "../x"]]}},
    {"arrow": "timestamp[ns, tz=]", "pandas": {"datetime": ["ns", ["pytz", ""]]}},
    {"pandas": None},
    {"pandas": {}},
    {"pandas": {"numpy": "<i8"}},
    {"arrow": "int32", "pandas": {"numpy": "<i8"}},
    {"arrow": "int64", "pandas": {"numpy": "<i8", "x": 1}},
    {"arrow": "float64", "pandas": {"numpy": "<f16"}},
    {"arrow": "int64", "pandas": {"numpy": "O"}},
    {"arrow": "int64", "pandas": {"numpy": ["<i8"]}},
    {"arrow": "int64", "pandas": {"masked": "Int65"}},
    {"arrow": "large_string", "pandas": {"string": ["python"]}},
    {"arrow": "large_string", "pandas": {"string": ["c", "NA"]}},
    {"arrow": "binary", "pandas": {"string": ["python", "NA"]}},
    {"arrow": "timestamp[ns, tz=UTC]", "pandas": {"datetime": ["ns", ["zoneinfo", "../../etc/passwd"]]}},
    {"arrow": "timestamp[ns, tz=UTC]", "pandas": {"datetime": ["ns", ["dateutil", "/etc/localtime"]]}},
    {"arrow": "timestamp[ns, tz=UTC]", "pandas": {"datetime": ["ns", ["zoneinfo"]]}},
    {"arrow": "timestamp[ns, tz=UTC]", "pandas": {"datetime": ["D", ["zoneinfo", "UTC"]]}},
    {"arrow": "timestamp[ns, tz=UTC]", "pandas": {"datetime": ["ns", ["os", "system"]]}},
    {"arrow": "timestamp[ns, tz=UTC]", "pandas": {"datetime": ["ns", ["timezone", True, None]]}},
    {"arrow": "timestamp[ns, tz=UTC]", "pandas": {"datetime": [["ns"], ["zoneinfo", "UTC"]]}},
    {"pandas": {"period": 5}},
    {"pandas": {"period": "M; x"}},
    {"arrow": "int64", "pandas": {"period": "M"}},
    {"pandas": {"interval": ["up", {"numpy": "<i8"}]}},
    {"pandas": {"interval": ["left", {"numpy": "|b1"}]}},
    {"pandas": {"interval": ["left", {"string": ["python", "NA"]}]}},
    {"pandas": {"interval": ["left", {"interval": ["left", {"numpy": "<i8"}]}]}},
    {"pandas": {"category": {"ordered": 1, "values": {"arrow": "int64"}}}},
    {"pandas": {"category": {"ordered": False, "values": {"arrow": "int64"}}}},
    {"pandas": {"category": {"ordered": False, "values": {}}}},
    {"pandas": {"category": {"ordered": False, "values": {"arrow": "x"}, "y": 1}}},
    {
        "pandas": {
            "category": {
                "ordered": False,
                "values": {"pandas": {"category": {"ordered": False, "values": {}}}},
            }
        }
    },
    {"pandas": {"arrow": True}},
    {"arrow": "int64", "pandas": {"arrow": 1}},
    {"arrow": "int64", "pandas": {"arrow": False}},
    {"pandas": {"object": "pickle", "null": "None"}},
    {"pandas": {"object": "tagged"}},
    {"pandas": {"object": "tagged", "null": None}},
    {"pandas": {"object": "decimal", "null": "None", "exponent": True}},
    {"pandas": {"object": "decimal", "null": "None", "exponent": 10**9}},
    {"arrow": "int64", "pandas": {"object": "int", "null": "None", "exponent": 1}},
]


@pytest.mark.parametrize("entry", MALFORMED, ids=repr)
def test_malformed_types_are_refused(entry):
    with pytest.raises(FormatError) as caught:
        codec.check(entry)
    assert caught.value.field == "type"
    assert isinstance(codec.label(entry), str)


@pytest.mark.parametrize("kind", ["int", "text", "pickle", "", 5, []])
def test_kinds_must_fit_their_type(kind):
    type_ = {"arrow": "bool"}
    with pytest.raises(FormatError) as caught:
        codec.check(type_, kind)
    assert caught.value.field == "kind"
    with pytest.raises(FormatError):
        codec.check({"arrow": "float64"}, kind)
    with pytest.raises(FormatError):  # a deterministic decimal needs its exponent, a randomised one has none
        codec.check({"pandas": {"object": "decimal", "null": "None"}}, "decimal")
    with pytest.raises(FormatError):
        codec.check({"pandas": {"object": "decimal", "null": "None", "exponent": 0}})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.sampled_from(["arrow", "pandas", "numpy", "ipc", "<i8"]),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["arrow", "pandas", "numpy", "category", "values", "object", "datetime", "interval"]
            ),
            inside,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(json_values)
@settings(max_examples=300, deadline=None)
def test_any_json_has_a_label_and_a_verdict(entry):
    assert isinstance(codec.label(entry), str)
    try:
        codec.check(entry)
    except FormatError as error:
        assert error.field == "type"  # noqa: PT017


BAD_CELLS = [
    ({"arrow": "int64"}, [b"short"]),
    ({"arrow": "int64", "pandas": {"numpy": "<i8"}}, [b"12345678", b"1"]),
    ({"arrow": "bool"}, [b"\x02"]),
    ({"arrow": "bool", "pandas": {"numpy": "|b1"}}, [b"\x02"]),
    ({"arrow": "bool", "pandas": {"object": "bool", "null": "None"}}, [b"\x02"]),
    ({"arrow": "string"}, [b"\xff"]),
    ({"arrow": "null"}, [b"x"]),
    ({"arrow": "large_string", "pandas": {"object": "text", "null": "None"}}, [b"\xff"]),
    ({"arrow": "large_string", "pandas": {"string": ["python", "NA"]}}, [b"\xff"]),
    ({"arrow": "date32", "pandas": {"object": "date", "null": "None"}}, [b"\xff\xff\xff\x7f"]),
    ({"arrow": "fixed_size_binary[16]", "pandas": {"object": "uuid", "null": "None"}}, [b"x"]),
    ({"arrow": "date32", "pandas": {"object": "date", "null": "None"}}, [struct.pack("<i", -719163)]),
    ({"pandas": {"object": "decimal", "null": "None"}}, [b"x"]),
    ({"pandas": {"object": "decimal", "null": "None"}}, ["१".encode()]),
    ({"pandas": {"interval": ["left", {"numpy": "<i8"}]}}, [b"x" * 15]),
    ({"arrow": print_arrow(pa.list_(pa.int8()))}, [b"x" * 40]),
    ({"arrow": print_arrow(pa.list_(pa.int8()))}, [b""]),
    ({"arrow": print_arrow(pa.list_(pa.int8()))}, [pa.record_batch([[[1], [2]]], ["c"]).serialize()]),
    ({"arrow": print_arrow(ARROW["list of dictionary"].type)}, [b"x" * 40]),
]
BAD_TAGGED = [
    b"",
    b"Z",
    b"\0",
    b"Nx",
    b"s\xff",
    b"?\x02",
    b"?",
    b"i1",
    b"f123",
    b"c1",
    b"dx",
    b"D\xff\xff\xff\x7f",
    b"u1",
    b"t\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"t\x01" + b"\0" * 7,
    b"p\xff\xff\xff\xff\xff\xff\xff\x7f\0",
    b"p" + b"\0" * 9 + b"x",
    b"p" + b"\0" * 9 + b'["os","system"]',
    b"p" + b"\0" * 8 + b"\x05",
    b"w1",
    b"w\xff\xff\xff\x7f" + b"\0" * 8,
    b"P" + b"\0" * 9 + b"[]",
    b"P" + b"\0" * 9 + b'["D",null]',
    b"P" + b"\0" * 9 + b'["ns",["zoneinfo","No/Where"]]',
    b"P" + b"\0" * 7 + b"\x80\0" + b'["ns",null]',
    b"q" + b"\0" * 8 + b"D",
    b"r" + b"\0" * 8 + b"nothing",
    b"v",
    b"vl",
    b"vx" + b"\1\0\0\0N" * 2,
    b"vl" + (b"\x09\0\0\0i" + b"\1" + b"\0" * 7) + (b"\x09\0\0\0i" + b"\0" * 8),
    b"#",
    b"#\x03|O8" + b"\0" * 8,
    b"#\x03<f4abc",
    b"#\x03<U1aaaa",
    b"#\x50<f4",
    b"a\x03<f4\x01" + b"\xff" * 8,
    b"a\x03<f4\x09",
    b"l\x05\0\0\0N",
    b"l\x05",
    b"{\x01\0\0\0l",
    b"m\x01\0\0\0N",
    b"m\x01\0\0\0l\x01\0\0\0N",
    b"#\x03|V8" + b"\0" * 8,
]


@pytest.mark.parametrize(("type_", "rows"), BAD_CELLS, ids=map(str, range(len(BAD_CELLS))))
def test_malformed_cells_are_refused(type_, rows):
    codec.check(type_)
    for unpack in (codec.unpack, codec.unpack_arrow):
        with pytest.raises(FormatError) as caught:
            unpack(type_, Cells.of(rows), column="c")
        assert caught.value.field == "cell"
        assert caught.value.column == "c"
        if "object" in type_.get("pandas", {}):
            break


@pytest.mark.parametrize("raw", BAD_TAGGED, ids=repr)
def test_malformed_objects_are_refused(raw):
    with pytest.raises(FormatError) as caught:
        codec.unpack({"pandas": {"object": "tagged", "null": "None"}}, Cells.of([raw]), column="c")
    assert caught.value.field == "cell"
    assert caught.value.__context__ is None


@given(st.binary(max_size=40))
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_an_object_or_refused(raw):
    try:
        codec.unpack({"pandas": {"object": "tagged", "null": "None"}}, Cells.of([raw]), column="c")
    except FormatError as error:
        assert error.field == "cell"  # noqa: PT017


def test_malformed_category_lists_are_refused():
    type_ = {
        "pandas": {"category": {"ordered": False, "values": {"arrow": "int64", "pandas": {"numpy": "<i8"}}}}
    }
    codec.check(type_)
    one = b"\x08\0\0\0" + b"\1" + b"\0" * 7
    for raw in (None, b"x", one[:-1], one + b"\0", b"\x01\0\0\0x", one + one):
        with pytest.raises(FormatError) as caught:
            codec.unpack(type_, Cells(np.frombuffer(one[4:], np.uint8), width=8), categories=raw, column="c")
        assert caught.value.field in ("categories", "cell")
    with pytest.raises(FormatError, match="not in its category list"):
        codec.unpack(type_, Cells(np.full(8, 7, np.uint8), width=8), categories=one, column="c")


@pytest.mark.parametrize(
    ("type_", "kind", "raw"),
    [
        ({"arrow": "int8"}, "int", struct.pack("<q", 300)),
        ({"arrow": "timestamp[s]"}, "timestamp", struct.pack("<q", 5)),
        ({"arrow": "decimal128(5, 2)"}, "decimal", b"x"),
        ({"arrow": "decimal128(5, 2)"}, "decimal", b"1.234"),
        ({"arrow": "decimal128(5, 2)"}, "decimal", b"123456"),
        ({"arrow": "duration[s]"}, "tagged", b"q" + b"\0" * 8 + b"us"),
        ({"arrow": "duration[s]"}, "tagged", b"q\1" + b"\0" * 7 + b"ns"),
        ({"arrow": "time32[s]"}, "tagged", b"q" + b"\0" * 8),
        ({"pandas": {"period": "M"}}, "tagged", b"r" + b"\0" * 8 + b"D"),
        ({"pandas": {"interval": ["left", {"numpy": "<i8"}]}}, "tagged", b"x" * 28),
        ({"pandas": {"object": "decimal", "null": "None", "exponent": -2}}, "decimal", b"NaN?"),
    ],
)
def test_deterministic_cells_that_do_not_fit_are_refused(type_, kind, raw):
    codec.check(type_, kind)
    with pytest.raises(FormatError) as caught:
        codec.unpack(type_, Cells.of([raw]), kind=kind, column="c")
    assert caught.value.field == "cell"


def test_zones_with_odd_seconds_have_no_arrow_name():
    assert zones.zone_name(["timezone", 5, None]) is None
    assert zones.zone_name(["timezone", 5 * 10**6, None]) is None
    assert zones.zone_name(["timezone", -5400 * 10**6, None]) == "-01:30"


def test_objects_too_deep_are_refused():
    raw = b"l"
    for _ in range(100):
        raw = b"l" + len(raw).to_bytes(4, "little") + raw
    with pytest.raises(FormatError):
        codec.unpack({"pandas": {"object": "tagged", "null": "None"}}, Cells.of([raw]), column="c")
    there_and_back(obj(deep(63)))  # 64 lists
    with pytest.raises(UnsupportedTypeError, match="deep"):
        there_and_back(obj(deep(64)))


def test_a_uuid_type_that_is_not_registered_keeps_its_kind():
    metadata = {"ARROW:extension:name": "arrow.uuid", "ARROW:extension:metadata": ""}
    schema = pa.schema([pa.field("c", pa.binary(16), metadata=metadata)])
    type_ = {"arrow": {"ipc": base64.b64encode(schema.serialize()).decode()}}
    codec.check(type_, "uuid")
    assert codec.width(type_, "uuid") == 16
    made = codec.unpack_arrow(type_, Cells(np.zeros(16, np.uint8), width=16), kind="uuid", column="c")
    assert made.type == (pa.uuid() if hasattr(pa, "uuid") else pa.binary(16))
    with pytest.raises(FormatError):
        codec.check({"arrow": print_arrow(pa.binary(16))}, "uuid")


def test_a_missing_zone_is_named():
    type_ = {"arrow": "timestamp[s, tz=No/Where]", "pandas": {"datetime": ["s", ["zoneinfo", "No/Where"]]}}
    codec.check(type_)
    with pytest.raises(UnsupportedTypeError, match=r"No/Where.*tzdata"):
        codec.unpack(type_, Cells(np.zeros(8, np.uint8), width=8), column="c")


def test_what_this_pandas_lacks_is_nearly_there_or_refused():
    cells = Cells.of([b"a", None])
    for storage in ("python", "pyarrow"):
        made = codec.unpack(
            {"arrow": "large_string", "pandas": {"string": [storage, "nan"]}}, cells, column="c"
        )
        assert made.dtype.na_value is not pd.NA
        assert made.dtype.storage == (storage if PANDAS_3 else "pyarrow_numpy")
    narrow = {"pandas": {"interval": ["left", {"numpy": "<i4"}]}}
    made = codec.unpack(narrow, Cells.of([struct.pack("<2i", 1, 2)]), column="c")
    assert str(made.dtype) == ("interval[int32, left]" if PANDAS_3 else "interval[int64, left]")
    masked = {"pandas": {"interval": ["left", {"masked": "Int64"}]}}
    if not PANDAS_3:
        with pytest.raises(UnsupportedTypeError, match=pd.__version__):
            codec.unpack(masked, Cells.of([struct.pack("<2q", 1, 2), None]), column="c")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pd.Series([1]), "int64"),
        (pd.Series([1], dtype="Int64"), "Int64"),
        (pd.Series([1.0]), "float64"),
        (pd.Series([1j]), "complex128"),
        (pd.Series(["a"], dtype="string"), "string"),
        (obj("a"), "object (text)"),
        (cat(["a"], ["a"]), "category"),
        (tick("ns"), "timestamp[ns]"),
        (tick("ns", dt.UTC), "timestamp[ns, UTC]"),
        (pd.Series(pd.period_range("2020", periods=1, freq="M")), "period[M]"),
        (pd.Series(pd.interval_range(0, 1)), "interval[int64, right]"),
        (pa.array([[1]]), "list<item: int64>"),
        (pa.array([Decimal("1.5")]), "decimal128(2, 1)"),
    ],
)
def test_labels(values, expected):
    assert codec.label(codec.describe(values, column="c").type) == expected


# --- hypothesis -----------------------------------------------------------------------------------

plain_text = st.text(st.characters(exclude_categories=["Cs"]))
plain_floats = st.integers(0, 2**64 - 1).map(lambda n: struct.unpack("<d", struct.pack("<Q", n))[0])
moments = st.datetimes(
    timezones=st.none() | st.sampled_from([dt.UTC, ZONES["zoneinfo"], ZONES["timezone named"]])
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**80), 2**80),
    plain_floats,
    plain_text,
    st.binary(),
    st.decimals(),
    st.dates(),
    st.times(),
    moments,
    st.timedeltas(),
    st.uuids(),
    st.complex_numbers(),
    st.sampled_from([pd.NA, pd.NaT, np.int8(5), np.float32(1.5)]),
)
hashable = st.integers() | plain_text | st.booleans() | st.none() | st.tuples(st.integers(), plain_text)
nested_values = st.recursive(
    scalars,
    lambda inside: (
        st.lists(inside, max_size=4)
        | st.lists(inside, max_size=3).map(tuple)
        | st.dictionaries(hashable, inside, max_size=3)
        | st.frozensets(hashable, max_size=3)
    ),
    max_leaves=10,
)
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def there_and_back(values, **options):
    _, _, made = trip(values, **options)
    same_series(series_of(made), values)


@given(st.lists(plain_text | st.none()))
@quick
def test_any_text(values):
    for deterministic in (False, True):
        there_and_back(obj(*values), deterministic=deterministic)
        there_and_back(pd.Series(values, dtype="string"), deterministic=deterministic)


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.none()))
@quick
def test_any_ints(values):
    for deterministic in (False, True):
        there_and_back(obj(*values), deterministic=deterministic)
        there_and_back(pd.Series(values, dtype="Int64"), deterministic=deterministic)


@given(st.lists(st.integers(0, 2**64 - 1)))
@quick
def test_any_floats(values):
    there_and_back(pd.Series(np.array(values, "u8").view("f8")))
    there_and_back(pd.Series(np.array(values, "u8").astype("u4").view("f4")))
    there_and_back(pd.Series(np.array(values, "u8").astype("u2").view("f2")))
    there_and_back(pd.Series(np.array(values[: len(values) // 2 * 2], "u8").view("c16")))


@given(st.lists(nested_values, max_size=6))
@quick
def test_any_objects(values):
    there_and_back(obj(*values))


@given(st.lists(st.decimals(allow_nan=False, allow_infinity=False, places=4) | st.none()))
@quick
def test_any_decimals(values):
    values = [value if value is None or value else Decimal("0.0000") for value in values]
    there_and_back(obj(*values))
    there_and_back(obj(*values), deterministic=True)
    fits = [value for value in values if value is None or abs(value) < 10**30]
    column = ext(pa.array(fits, pa.decimal128(38, 4)))
    there_and_back(column, deterministic=True)
    _, cells, _ = trip(column, deterministic=True)
    _, others, _ = trip(obj(*fits), deterministic=True)
    assert cells.rows() == others.rows()


@given(st.integers(-(10**38) + 1, 10**38 - 1), st.integers(-5, 38))
@quick
def test_any_arrow_decimal(digits, scale):
    raw = digits.to_bytes(16, "little", signed=True)
    t = pa.decimal128(38, scale)
    values = pa.Array.from_buffers(t, 1, [None, pa.py_buffer(raw)])
    _, cells, made = trip(values, deterministic=True, to=codec.unpack_arrow)
    assert made.buffers()[1].to_pybytes()[:16] == raw
    exact = format(Decimal(digits).scaleb(-scale, decimal.Context(prec=99)), "f")
    exact = exact.rstrip("0").rstrip(".") if "." in exact else exact
    assert cells.rows() == [exact.encode() if digits else b"0"]


@given(
    st.lists(
        st.lists(st.none() | st.lists(plain_text | st.none(), max_size=3), max_size=3) | st.none(), max_size=6
    )
)
@quick
def test_any_nested_lists(values):
    made = pa.array(values, pa.list_(pa.list_(pa.string())))
    same_arrow(trip(made, to=codec.unpack_arrow)[2], made)
