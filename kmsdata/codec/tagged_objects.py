"""Convert one Python object to its tagged bytes and back.

A tagged cell is one tag byte and a payload. Numbers are little-endian; JSON is ASCII without spaces; a
*nested* item is its length (4 bytes) and the item, which is tagged itself. The set of types is closed, and
types must match exactly: an ``IntEnum`` is not an ``int``.

=====  ==================  ==========================================================================
tag    object              payload
=====  ==================  ==========================================================================
``N``  None                nothing
``A``  pd.NA               nothing
``T``  pd.NaT              nothing
``s``  str                 UTF-8
``b``  bytes               the bytes
``B``  bytearray           the bytes
``?``  bool                0 or 1 (1 byte)
``i``  int                 int64, if it fits
``I``  int                 otherwise two's complement, in as few bytes as possible
``f``  float               float64, bit for bit
``c``  complex             two float64: real, imaginary
``d``  Decimal             ``str(value)``, ASCII
``D``  date                int32 days since 1970-01-01
``t``  time                int64 nanoseconds since midnight; if fold is 1 or there is a zone:
                           ‖ fold (1 byte) ‖ zone JSON or nothing
``p``  datetime            int64 microseconds from 1970-01-01 to the wall time ‖ fold (1 byte)
                           ‖ zone JSON or nothing
``w``  timedelta           int32 days ‖ int32 seconds ‖ int32 microseconds
``u``  UUID                16 bytes, big-endian as in RFC 9562
``P``  pd.Timestamp        int64 since 1970-01-01 UTC (naive: as if UTC)
                           ‖ fold (1 byte; 0 if there is a zone, which determines it)
                           ‖ JSON ``[unit,zone or null]``
``q``  pd.Timedelta        int64 ‖ unit
``r``  pd.Period           int64 ordinal ‖ frequency
``v``  pd.Interval         closed (1 byte: l, r, b or n) ‖ nested left ‖ nested right
``#``  numpy scalar        length of the dtype text (1 byte) ‖ dtype text (as ``<f4``) ‖ little-endian bytes
``a``  numpy array         dtype text as in ``#`` ‖ dimensions (1 byte) ‖ int64 each
                           ‖ little-endian bytes in C order
``l``  list                nested items
``(``  tuple               nested items
``{``  set                 nested items, sorted by their bytes
``F``  frozenset           nested items, sorted by their bytes
``m``  dict                nested key, nested value, and so on, in order
=====  ==================  ==========================================================================

Zone JSON is that of ``time_zones.py``; a datetime or time that pytz has localised adds its UTC offset in
seconds: ``["pytz","Europe/Berlin",3600]``. Containers nest at most 64 deep.
Not stored, because they do not change the value: a UUID's ``is_safe``, an array's memory order, a pytz
Timestamp's ``fold``.
"""

from __future__ import annotations

import datetime as dt
import decimal
import json
import struct
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from kmsdata.codec.time_zones import zone_json, zone_object
from kmsdata.codec.types import UNITS

__all__ = ["RefusedError", "decode", "encode"]

_DEPTH = 64
_DAY = dt.date(1970, 1, 1)
_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - wall time
_TICK = dt.timedelta(microseconds=1)
_CLOSED = {"left": b"l", "right": b"r", "both": b"b", "neither": b"n"}
_NO_ZONE = "as time zone, which cannot be restored exactly. Use zoneinfo."


class RefusedError(Exception):
    """A value outside the closed set: its Python type, and the reason. Never leaves the codec."""

    def __init__(self, value: Any, why: str = "") -> None:
        super().__init__(f"{type(value).__module__}.{type(value).__qualname__}", why)


def encode(value: Any, *, deterministic: bool = False, depth: int = 0) -> bytes:
    """Return the tagged bytes of an object.

    Raises:
        RefusedError: its type is outside the closed set.
        UnicodeEncodeError: text with a lone surrogate.

    Example:
        >>> encode([True, "é"])
        b'l\\x02\\x00\\x00\\x00?\\x01\\x03\\x00\\x00\\x00s\\xc3\\xa9'
    """
    kind = type(value)
    made = _ENCODE.get(kind)
    if made is not None:
        if deterministic and kind in (float, complex):
            # Only NaN differs from itself; it is a value here if the column's null is another one.
            hint = "Make all nulls None." if value != value else "Convert it to int or Decimal."
            raise RefusedError(value, f"that a deterministic column cannot store. {hint}")
        return made(value)
    if isinstance(value, np.generic | np.ndarray):
        if deterministic and (value.dtype.kind in "fc" or isinstance(value, np.ndarray)):
            raise RefusedError(value, "that a deterministic column cannot store. Convert it to int or text.")
        return _encode_numpy(value)
    if kind is pd.Interval:
        ends = [
            encode(end, deterministic=deterministic, depth=depth + 1) for end in (value.left, value.right)
        ]
        return b"v" + _CLOSED[value.closed] + _nested(ends)
    if kind not in (list, tuple, set, frozenset, dict):
        raise RefusedError(value)
    if deterministic:
        raise RefusedError(value, "that a deterministic column cannot store. Convert it to text.")
    if depth >= _DEPTH:
        raise RefusedError(value, f"that is nested more than {_DEPTH} levels deep")
    items = [x for pair in value.items() for x in pair] if kind is dict else value
    inside = [encode(item, depth=depth + 1) for item in items]
    return _CONTAINERS[kind] + _nested(sorted(inside) if kind in (set, frozenset) else inside)


_CONTAINERS: dict[type, bytes] = {list: b"l", tuple: b"(", set: b"{", frozenset: b"F", dict: b"m"}


def _nested(items: list[bytes]) -> bytes:
    if any(len(item) >= 2**32 for item in items):
        raise RefusedError(items, "with an item of 4 GiB or more")
    return b"".join([len(item).to_bytes(4, "little") + item for item in items])


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _encode_int(value: int) -> bytes:
    if -(2**63) <= value < 2**63:
        return b"i" + value.to_bytes(8, "little", signed=True)
    # One bit more than bit_length() for the sign; ~value because -128 fits into 8 bits and 128 does not.
    return b"I" + value.to_bytes(
        (value if value >= 0 else ~value).bit_length() // 8 + 1, "little", signed=True
    )


def _zone_bytes(value: dt.datetime | dt.time) -> bytes:
    if value.tzinfo is None:
        return b""
    entry = zone_json(value.tzinfo)
    if entry is None:
        raise RefusedError(value.tzinfo, _NO_ZONE)
    if entry[0] == "pytz" and zone_object(entry) is not value.tzinfo:
        offset = value.utcoffset()
        if not isinstance(value, dt.datetime) or offset is None or offset % dt.timedelta(seconds=1):
            raise RefusedError(value.tzinfo, _NO_ZONE)
        entry = [*entry, offset // dt.timedelta(seconds=1)]
        if _localised(entry, value.replace(tzinfo=None)) is not value.tzinfo:
            raise RefusedError(value.tzinfo, _NO_ZONE)
    return _json(entry)


def _localised(entry: list[Any], wall: dt.datetime) -> dt.tzinfo | None:
    """Return the instance that pytz gives to a wall time with this offset."""
    # pytz has one tzinfo instance per zone and offset; fromutc() selects it, replace(tzinfo=...) would not.
    zone: Any = zone_object(entry[:2])
    found: dt.tzinfo | None = zone.fromutc(wall - dt.timedelta(seconds=entry[2])).tzinfo
    return found


def _encode_time(value: dt.time) -> bytes:
    seconds = (value.hour * 60 + value.minute) * 60 + value.second
    zone = _zone_bytes(value)
    tail = bytes([value.fold]) + zone if value.fold or zone else b""
    return b"t" + struct.pack("<q", (seconds * 10**6 + value.microsecond) * 1000) + tail


def _encode_datetime(value: dt.datetime) -> bytes:
    # The wall time, not UTC: a time in a fold or gap of the zone must be restored exactly.
    wall = (value.replace(tzinfo=None, fold=0) - _EPOCH) // _TICK
    return b"p" + struct.pack("<qB", wall, value.fold) + _zone_bytes(value)


def _encode_timestamp(value: pd.Timestamp) -> bytes:
    zone = None if value.tzinfo is None else zone_json(value.tzinfo)
    if value.tzinfo is not None and zone is None:
        raise RefusedError(value.tzinfo, _NO_ZONE)
    ticks = int(value.to_datetime64().view("i8"))  # in its own unit: Timestamp.value is always nanoseconds
    return b"P" + struct.pack("<qB", ticks, value.fold if zone is None else 0) + _json([value.unit, zone])


def _encode_timedelta(value: pd.Timedelta) -> bytes:
    return b"q" + struct.pack("<q", int(value.to_timedelta64().view("i8"))) + value.unit.encode("ascii")


def _encode_numpy(value: Any) -> bytes:
    small = value.dtype.newbyteorder("<")
    text = small.str.encode("ascii")
    if value.dtype.kind not in "biufcmM" or value.dtype.itemsize > (16 if value.dtype.kind == "c" else 8):
        raise RefusedError(value)
    head = bytes([len(text)]) + text
    if isinstance(value, np.generic):
        if np.dtype(small.str).type is not type(value):  # np.longlong: its text "<i8" restores np.int64
            raise RefusedError(value)
        return b"#" + head + np.asarray(value).astype(small).tobytes()
    if type(value) is not np.ndarray or value.dtype != small:
        raise RefusedError(value)
    return b"a" + head + bytes([value.ndim]) + struct.pack(f"<{value.ndim}q", *value.shape) + value.tobytes()


_ENCODE: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"N",
    type(pd.NA): lambda _: b"A",
    type(pd.NaT): lambda _: b"T",
    str: lambda v: b"s" + v.encode("utf-8"),
    bytes: lambda v: b"b" + v,
    bytearray: lambda v: b"B" + bytes(v),
    bool: lambda v: b"?" + bytes([v]),
    int: _encode_int,
    float: lambda v: b"f" + struct.pack("<d", v),
    complex: lambda v: b"c" + struct.pack("<2d", v.real, v.imag),
    decimal.Decimal: lambda v: b"d" + str(v).encode("ascii"),
    dt.date: lambda v: b"D" + struct.pack("<i", (v - _DAY).days),
    dt.time: _encode_time,
    dt.datetime: _encode_datetime,
    dt.timedelta: lambda v: b"w" + struct.pack("<3i", v.days, v.seconds, v.microseconds),
    uuid.UUID: lambda v: b"u" + v.bytes,
    pd.Timestamp: _encode_timestamp,
    pd.Timedelta: _encode_timedelta,
    pd.Period: lambda v: b"r" + struct.pack("<q", v.ordinal) + v.freqstr.encode("ascii"),
}


def decode(raw: bytes, depth: int = 0) -> Any:
    """Return the object of its tagged bytes.

    Raises:
        ValueError and others: the bytes are malformed.

    Example:
        >>> decode(encode((1, 2.5, None)))
        (1, 2.5, None)
    """
    if depth > _DEPTH:
        raise ValueError("nested too deep")
    tag, body = raw[:1], raw[1:]
    simple = _DECODE.get(tag)
    if simple is not None:
        return simple(body)
    items = [decode(item, depth + 1) for item in _items(body[1:] if tag == b"v" else body)]
    if tag == b"v":
        left, right = items
        return pd.Interval(left, right, {v: k for k, v in _CLOSED.items()}[body[:1]])  # type: ignore[arg-type]
    if tag == b"m":
        if len(items) % 2:
            raise ValueError("a key without a value")
        return dict(zip(items[::2], items[1::2], strict=True))
    return {b"l": list, b"(": tuple, b"{": set, b"F": frozenset}[tag](items)


def _items(body: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(body):
        (size,) = struct.unpack_from("<I", body, at)
        at += 4 + size
        if at > len(body):
            raise ValueError("cut short")
        yield body[at - size : at]


def _constant(value: Any) -> Callable[[bytes], Any]:
    def read(body: bytes) -> Any:
        if body:
            raise ValueError("too many bytes")
        return value

    return read


def _one(form: str) -> Callable[[bytes], Any]:
    return lambda body: struct.unpack(form, body)[0]


def _decode_bool(body: bytes) -> bool:
    return {b"\0": False, b"\1": True}[body]


def _zone_of(raw: bytes, wall: dt.datetime | None = None) -> dt.tzinfo | None:
    if not raw:
        return None
    entry = json.loads(raw)
    if wall is not None and isinstance(entry, list) and entry[:1] == ["pytz"] and len(entry) == 3:
        return _localised(entry, wall)
    return zone_object(entry)


def _decode_time(body: bytes) -> dt.time:
    (nanos,) = struct.unpack_from("<q", body)
    if not 0 <= nanos < 86400 * 10**9 or nanos % 1000:
        raise ValueError("not a time of day")
    plain = (_EPOCH + dt.timedelta(microseconds=nanos // 1000)).time()
    tail = body[8:]
    return plain.replace(fold=tail[0], tzinfo=_zone_of(tail[1:])) if tail else plain


def _decode_datetime(body: bytes) -> dt.datetime:
    micros, fold = struct.unpack_from("<qB", body)
    wall = _EPOCH + dt.timedelta(microseconds=micros)
    return wall.replace(fold=fold, tzinfo=_zone_of(body[9:], wall))


def _decode_timestamp(body: bytes) -> pd.Timestamp:
    ticks, fold = struct.unpack_from("<qB", body)
    unit, zone = json.loads(body[9:])
    if unit not in UNITS or ticks == -(2**63):  # -(2**63) is NaT, which has its own tag
        raise ValueError("not a timestamp")
    exact: Any = np.datetime64  # pd.Timestamp(ticks, unit="s") has unit "us" in pandas 3.1
    made = pd.Timestamp(exact(ticks, unit))
    if zone is not None:
        return made.tz_localize("UTC").tz_convert(zone_object(zone))
    return made.replace(fold=fold) if fold else made


def _decode_timedelta(body: bytes) -> pd.Timedelta:
    (ticks,) = struct.unpack_from("<q", body)
    unit = body[8:].decode("ascii")
    if unit not in UNITS or ticks == -(2**63):
        raise ValueError("not a timedelta")
    exact: Any = np.timedelta64  # pd.Timedelta(ticks, unit="s") has unit "ns" in pandas 2.2
    return pd.Timedelta(exact(ticks, unit))


def _decode_dtype(body: bytes) -> tuple[np.dtype[Any], bytes]:
    size = body[0]
    text = body[1 : 1 + size].decode("ascii")
    if len(text) < 3 or text[1] not in "biufcmM":
        raise ValueError("not a supported dtype")
    return np.dtype(text), body[1 + size :]


def _decode_scalar(body: bytes) -> Any:
    dtype, raw = _decode_dtype(body)
    (value,) = np.frombuffer(raw, dtype)
    return value


def _decode_array(body: bytes) -> np.ndarray[Any, Any]:
    dtype, rest = _decode_dtype(body)
    shape = struct.unpack_from(f"<{rest[0]}q", rest, 1)
    if any(side < 0 for side in shape):
        raise ValueError("a negative dimension")  # reshape() would compute -1 from the size
    return np.frombuffer(rest[1 + 8 * rest[0] :], dtype).reshape(shape).copy()


_DECODE: dict[bytes, Callable[[bytes], Any]] = {
    b"N": _constant(None),
    b"A": _constant(pd.NA),
    b"T": _constant(pd.NaT),
    b"s": lambda b: b.decode("utf-8"),
    b"b": lambda b: b,
    b"B": bytearray,
    b"?": _decode_bool,
    b"i": _one("<q"),
    b"I": lambda b: int.from_bytes(b, "little", signed=True),
    b"f": _one("<d"),
    b"c": lambda b: complex(*struct.unpack("<2d", b)),
    b"d": lambda b: decimal.Decimal(b.decode("ascii")),
    b"D": lambda b: _DAY + dt.timedelta(days=_one("<i")(b)),
    b"t": _decode_time,
    b"p": _decode_datetime,
    b"w": lambda b: dt.timedelta(*struct.unpack("<3i", b)),
    b"u": lambda b: uuid.UUID(bytes=b),
    b"P": _decode_timestamp,
    b"q": _decode_timedelta,
    b"r": lambda b: pd.Period(ordinal=_one("<q")(b[:8]), freq=b[8:].decode("ascii")),
    b"#": _decode_scalar,
    b"a": _decode_array,
}
