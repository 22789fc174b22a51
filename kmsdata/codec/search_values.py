"""Convert values to search for to deterministic cells: the bytes that equal values in a column have.

A value of the wrong type (text in a column of integers) is a mistake of the caller, and is reported. A value
of the right type that no cell can have (2**70 or 5.5 in a column of integers) is simply not found.

==========================  =============================================================================
kind                        values
==========================  =============================================================================
text, bytes, bool, uuid     str; bytes, bytearray, memoryview; bool; UUID; and numpy's scalars of these
int, uint                   integers, and floats (1.0 is the integer 1)
timestamp                   datetime, pandas Timestamp, datetime64, without a time zone
instant                     datetime, pandas Timestamp, with a time zone
date                        date, datetime64[D]
decimal                     Decimal, integers
tagged                      timedelta; time; Period of the same frequency; Interval closed on the same sides;
                            in a column of mixed objects any of them, if type, unit and zone are equal
==========================  =============================================================================
"""

from __future__ import annotations

import datetime as dt
import decimal
import struct
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from kmsdata.ciphers.cells import Cells
from kmsdata.codec.arrow_types import arrow_type, value_type
from kmsdata.codec.deterministic import plain_decimal
from kmsdata.codec.tagged_objects import RefusedError, encode
from kmsdata.codec.types import arrow_of

__all__ = ["literals"]

_DAY = dt.date(1970, 1, 1)
_MOST_DIGITS = 1 << 20


class _MisfitError(Exception):
    """A value whose type does not match the kind. Never leaves this file."""


def literals(
    type: dict[str, Any],  # noqa: A002 - the header's own word
    kind: str,
    values: Iterable[Any],
    *,
    null: bool = False,
) -> tuple[Cells, dict[int, str]]:
    """Make deterministic cells of values to search for.

    Args:
        type: the header's ``type``, checked.
        kind: its kind.
        values: Python objects, numpy scalars or pandas scalars; none of them null.
        null: whether to search for null, too: in mixed objects, some nulls are stored as cells.

    Returns:
        The cells, in no order, of the values that such a column can contain; and, by position, each value of
        the wrong type: its Python type, and what is expected.

    Example:
        >>> cells, misfits = literals({"arrow": "int32"}, "int", [5, np.int8(6), 2**70, "7"])
        >>> [int.from_bytes(cell, "little") for cell in cells.rows()], misfits
        ([5, 6], {3: 'str, not an integer'})
    """
    inside = type.get("pandas", {}).get("category", {}).get("values", type)
    convert = _converter(inside, kind)
    mixed = kind == "tagged" and "object" in inside.get("pandas", {})
    found = dict.fromkeys(map(encode, (None, pd.NA, pd.NaT))) if null and mixed else {}
    misfits: dict[int, str] = {}
    for position, value in enumerate(values):
        try:
            found.update(dict.fromkeys(convert(value)))
        except _MisfitError as error:
            misfits[position] = f"{value.__class__.__name__}, not {error}"
        except RefusedError as error:
            name, why = error.args
            misfits[position] = f"{name} {why or 'that a column of Python objects cannot store'}"
        except UnicodeEncodeError:  # a lone surrogate: no cell can contain it
            continue
    return Cells.of(list(found)), misfits


def _converter(type_: dict[str, Any], kind: str) -> Callable[[Any], list[bytes]]:
    simple = {
        "text": _text,
        "bytes": _bytes,
        "bool": _bool,
        "date": _date,
        "decimal": _decimal,
        "uuid": _uuid,
        "timestamp": lambda value: _timestamp(value, aware=False),
        "instant": lambda value: _timestamp(value, aware=True),
        "int": lambda value: _int(value, signed=True),
        "uint": lambda value: _int(value, signed=False),
    }
    if kind in simple:
        return simple[kind]
    pandas = type_.get("pandas", {})
    if "object" in pandas:
        return _mixed
    if "period" in pandas:
        return lambda value: _period(value, pandas["period"])
    if "interval" in pandas:
        return lambda value: _interval(value, type_)
    return _duration if pa.types.is_duration(value_type(arrow_type(type_["arrow"]))) else _time


def _text(value: Any) -> list[bytes]:
    if not isinstance(value, str):
        raise _MisfitError("text")
    return [value.encode()]


def _bytes(value: Any) -> list[bytes]:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise _MisfitError("bytes")
    return [bytes(value)]


def _bool(value: Any) -> list[bytes]:
    if not isinstance(value, bool | np.bool_):
        raise _MisfitError("a boolean")
    return [bytes([bool(value)])]


def _is_integer(value: Any) -> bool:
    # np.timedelta64 is a subclass of np.signedinteger.
    return isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64)


def _int(value: Any, *, signed: bool) -> list[bytes]:
    if not _is_integer(value) and not isinstance(value, float | np.floating):
        raise _MisfitError("an integer")
    if isinstance(value, float | np.floating):
        if not np.isfinite(value) or value != np.trunc(value):
            return []
        value = int(value)
    try:
        return [int(value).to_bytes(8, "little", signed=signed)]
    except OverflowError:  # no cell can have this value
        return []


def _timestamp(value: Any, *, aware: bool) -> list[bytes]:
    if not isinstance(value, dt.datetime | np.datetime64):
        raise _MisfitError("a datetime. Convert it with pd.Timestamp(...).")
    if (getattr(value, "tzinfo", None) is not None) != aware:
        raise _MisfitError("a datetime with a time zone" if aware else "a datetime without a time zone")
    return _nanoseconds(pd.Timestamp, value)


def _nanoseconds(make: Any, value: Any) -> list[bytes]:
    """Return the int64 nanoseconds of a point in time or a duration; nothing if they do not fit."""
    try:
        return [struct.pack("<q", make(value).as_unit("ns").value)]
    except (ValueError, OverflowError):  # pandas' OutOfBounds errors are ValueErrors
        return []


def _date(value: Any) -> list[bytes]:
    if isinstance(value, np.datetime64) and np.datetime_data(value.dtype)[0] == "D":
        days = int(value.astype("i8"))
    elif isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        days = (value - _DAY).days
    else:
        raise _MisfitError("a date. Convert it with .date().")
    return [struct.pack("<i", days)] if -(2**31) <= days < 2**31 else []


def _decimal(value: Any) -> list[bytes]:
    if _is_integer(value):
        value = decimal.Decimal(int(value))
    if not isinstance(value, decimal.Decimal):
        raise _MisfitError("a Decimal or an integer")
    if not value.is_finite():
        return []
    if abs(value.adjusted()) > _MOST_DIGITS or len(value.as_tuple().digits) > _MOST_DIGITS:
        raise _MisfitError("one with fewer than a million digits")
    return [b"0" if value.is_zero() else plain_decimal(value).encode("ascii")]


def _uuid(value: Any) -> list[bytes]:
    if not isinstance(value, uuid.UUID):
        raise _MisfitError("a uuid.UUID")
    return [value.bytes]


def _duration(value: Any) -> list[bytes]:
    if not isinstance(value, dt.timedelta | np.timedelta64):
        raise _MisfitError("a timedelta")
    return [b"q" + nanos + b"ns" for nanos in _nanoseconds(pd.Timedelta, value)]


def _time(value: Any) -> list[bytes]:
    if not isinstance(value, dt.time):
        raise _MisfitError("a time of day")
    if value.tzinfo is not None:
        raise _MisfitError("a time of day without a time zone")
    return [encode(value.replace(fold=0))]


def _period(value: Any, frequency: str) -> list[bytes]:
    if not isinstance(value, pd.Period) or value.freq != pd.PeriodDtype(frequency).freq:
        raise _MisfitError(f"a Period of frequency {frequency}")
    return [b"r" + struct.pack("<q", value.ordinal) + frequency.encode("ascii")]


def _interval(value: Any, type_: dict[str, Any]) -> list[bytes]:
    closed, sub = type_["pandas"]["interval"]
    if not isinstance(value, pd.Interval) or value.closed != closed:
        raise _MisfitError(f"an Interval, closed: {closed}")
    name = arrow_of(sub) or "timestamp"
    ends: list[Any] = []
    for end in (value.left, value.right):
        if "int" in name:
            ends += [struct.unpack("<q", raw)[0] for raw in _int(end, signed=True)]
        elif name.startswith("duration"):
            # In nanoseconds, as in the cells: the tagged form of a Timedelta includes its unit.
            ends += [pd.Timedelta(np.frombuffer(raw[1:9], "m8[ns]")[0]) for raw in _duration(end)]
        else:
            zone = dt.UTC if "datetime" in sub else None
            ends += [
                pd.Timestamp(np.frombuffer(raw, "M8[ns]")[0]).tz_localize(zone)
                for raw in _timestamp(end, aware=zone is not None)
            ]
    if len(ends) < 2:
        return []
    left, right = ends
    return [encode(pd.Interval(left, right, closed=closed))]


def _mixed(value: Any) -> list[bytes]:
    """Return the tagged object; for a numpy scalar, also that of the equal Python object."""
    found = [encode(value, deterministic=True)]
    if isinstance(value, np.generic) and (_is_integer(value) or isinstance(value, np.bool_)):
        found.append(encode(value.item()))
    return found
