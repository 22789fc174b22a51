"""Python objects <-> cells: columns of one plain type, and the tagged encoding of everything else.

A tagged cell is one tag byte and a payload. Numbers are little-endian; JSON is ASCII without spaces; a *nested* item
is its length (4 bytes) and the item, which is tagged itself. The set is closed, and types must match exactly: an
``IntEnum`` is not an ``int``.

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
``i``  int                 int64, where it fits
``I``  int                 else two's complement, as few bytes as hold it
``f``  float               float64, bit by bit
``c``  complex             two float64: real, imaginary
``d``  Decimal             ``str(value)``, ASCII
``D``  date                int32 days since 1970-01-01
``t``  time                int64 nanoseconds since midnight ‖ fold (1 byte) and zone JSON, unless both are absent
``p``  datetime            int64 microseconds from 1970-01-01 to the wall time ‖ fold (1 byte) ‖ zone JSON or nothing
``w``  timedelta           int32 days ‖ int32 seconds ‖ int32 microseconds
``u``  UUID                16 bytes, big-endian as RFC 9562 has them
``P``  pd.Timestamp        int64 since 1970-01-01 UTC (naive: as if UTC) ‖ fold (1 byte; 0 where a zone gives it)
                           ‖ JSON ``[unit,zone or null]``
``q``  pd.Timedelta        int64 ‖ unit
``r``  pd.Period           int64 ordinal ‖ frequency
``v``  pd.Interval         closed (1 byte: l, r, b or n) ‖ nested left ‖ nested right
``#``  numpy scalar        length of the dtype text (1 byte) ‖ dtype text (as ``<f4``) ‖ little-endian bytes
``a``  numpy array         dtype text as in ``#`` ‖ dimensions (1 byte) ‖ int64 each ‖ little-endian bytes, C order
``l``  list                nested items
``(``  tuple               nested items
``{``  set                 nested items, sorted by their bytes
``F``  frozenset           nested items, sorted by their bytes
``m``  dict                nested key, nested value, and so on, in order
=====  ==================  ==========================================================================

Zone JSON is that of ``types.py``; a datetime or time that pytz has localised adds its UTC offset in seconds:
``["pytz","Europe/Berlin",3600]``. Containers nest at most 64 deep.
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
import pyarrow as pa

from kmsdata.cells import Bools, Cells
from kmsdata.codec import arrow
from kmsdata.codec.types import zone_json, zone_object
from kmsdata.errors import UnsupportedTypeError

__all__ = ["NULLS", "decode", "encode", "exponent_of", "pack", "scan", "unpack"]

NULLS: dict[str, Any] = {"None": None, "NaN": float("nan"), "NA": pd.NA, "NaT": pd.NaT}
_NULL_TYPES = {type(None): "None", type(pd.NA): "NA", type(pd.NaT): "NaT"}
_PLAIN = {
    str: "text",
    bytes: "bytes",
    bool: "bool",
    int: "int",
    dt.date: "date",
    uuid.UUID: "uuid",
    decimal.Decimal: "decimal",
}
_NAN = struct.pack("<d", float("nan"))
_DEPTH = 64
_DAY = dt.date(1970, 1, 1)
_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - wall time
_TICK = dt.timedelta(microseconds=1)
_CLOSED = {"left": b"l", "right": b"r", "both": b"b", "neither": b"n"}
_UNITS = ("s", "ms", "us", "ns")


class Refused(Exception):
    """A value outside the closed set: its Python type, and why. Never leaves the codec."""

    def __init__(self, value: Any, why: str = "") -> None:
        super().__init__(f"{type(value).__module__}.{type(value).__qualname__}", why)


# --- columns -------------------------------------------------------------------------------------------------


def scan(values: np.ndarray[Any, Any]) -> tuple[str, str]:
    """What an object array holds: (kind, null), as in its ``pandas`` entry; "" for either where there is none.

    Example:
        >>> scan(np.array(["a", None], object)), scan(np.array(["a", 1], object))
        (('text', 'None'), ('tagged', ''))
    """
    types = set(map(type, values))
    nulls = {name for made, name in _NULL_TYPES.items() if made in types}
    if float in types:
        nan = [struct.pack("<d", v) == _NAN for v in values.tolist() if type(v) is float]
        nulls |= {"NaN"} if any(nan) else set()
        types -= {float} if all(nan) else set()
    types -= set(_NULL_TYPES)
    kind = (_PLAIN.get(next(iter(types)), "tagged") if len(types) == 1 else "tagged") if types else ""
    if len(nulls) > 1:  # the first one met is the null; the others are tagged cells
        return "tagged", next(filter(None, map(_null_name, values.tolist())))
    if (kind == "int" and not _fits(values)) or (kind == "decimal" and _has_nan(values)):
        kind = "tagged"
    return kind, next(iter(nulls), "")


def _null_name(value: Any) -> str | None:
    if type(value) is float:
        return "NaN" if struct.pack("<d", value) == _NAN else None
    return _NULL_TYPES.get(type(value))


def _fits(values: np.ndarray[Any, Any]) -> bool:
    ints = [v for v in values.tolist() if type(v) is int]
    return -(2**63) <= min(ints) and max(ints) < 2**63


def _has_nan(values: np.ndarray[Any, Any]) -> bool:
    return any(type(v) is decimal.Decimal and v.is_nan() for v in values.tolist())


def pack(
    kind: str, null: str, values: np.ndarray[Any, Any], *, column: str, deterministic: bool = False
) -> Cells:
    """Cells of an object array whose ``scan`` gave this kind and null.

    Args:
        kind: kind of its objects.
        null: the null that has no bytes.
        values: object[n].
        column: for messages.
        deterministic: refuse floats and containers in tagged cells.

    Raises:
        UnsupportedTypeError: an object outside the closed set, or text with a lone surrogate.
    """
    null_at = _nulls(null, values, tagged=kind == "tagged")
    valid = None if null_at is None else ~null_at
    present = values if valid is None else values[valid]
    if kind == "tagged":
        rows = np.arange(len(values)) if valid is None else np.flatnonzero(valid)
        return _joined(_encode_all(present, rows, column, deterministic), valid)
    if kind == "text":
        return _with(text_cells(present, valid, column), valid)
    if kind == "bytes":
        return _with(arrow.pack(pa.array(present, pa.large_binary()), column=column), valid)
    if kind == "decimal":
        return _with(arrow.pack(pa.array(list(map(str, present)), pa.large_string()), column=column), valid)
    if kind == "uuid":
        raw = b"".join([v.bytes for v in present.tolist()])
        return Cells(np.frombuffer(raw, np.uint8), width=16, valid=valid)
    if kind == "date":
        made = arrow.pack(pa.array(present, pa.date32()), column=column)
        return Cells(made.data, width=4, valid=valid)
    data = present.astype("<i8" if kind == "int" else np.bool_)
    return Cells(data.view(np.uint8), width=data.itemsize, valid=valid)


def _nulls(null: str, values: np.ndarray[Any, Any], *, tagged: bool) -> Bools | None:
    if tagged:  # nulls of other kinds than the recorded one are values
        mask = np.fromiter((_null_name(v) == null for v in values), np.bool_, len(values))
    else:
        mask = np.asarray(pd.isna(values), np.bool_)
    return mask if mask.any() else None


def _with(cells: Cells, valid: Bools | None) -> Cells:
    return Cells(cells.data, cells.offsets, valid=valid)


def _joined(rows: list[bytes], valid: Bools | None) -> Cells:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=offsets[1:])
    return Cells(np.frombuffer(b"".join(rows), np.uint8), offsets, valid=valid)


def text_cells(present: np.ndarray[Any, Any], valid: Bools | None, column: str) -> Cells:
    """Cells of str objects, none of them null; ``valid`` only tells their rows, for the message."""
    try:
        made = pa.array(present, pa.large_string())
    except UnicodeEncodeError:  # the error holds the text, so it must not be chained
        made = None
    if made is not None:
        return arrow.pack(made, column=column, trusted=True)
    bad = np.flatnonzero([any("\ud800" <= c <= "\udfff" for c in text) for text in present.tolist()])
    rows = (bad if valid is None else np.flatnonzero(valid)[bad])[:5].tolist()
    raise UnsupportedTypeError(
        f"column {column!r} holds text with lone surrogates, which UTF-8 cannot encode, in rows {rows}: repair it, "
        f'or make it bytes first: .str.encode("utf-8", "surrogatepass")',
        column=column,
        dtype="text",
        rows=tuple(rows),
    )


def _encode_all(
    values: np.ndarray[Any, Any], rows: np.ndarray[Any, Any], column: str, deterministic: bool
) -> list[bytes]:
    made: list[bytes] = []
    failed: tuple[str, str] | None = None
    try:
        for value in values:
            made.append(encode(value, deterministic=deterministic))  # noqa: PERF401 - its length tells the row
    except Refused as error:
        failed = error.args
    except UnicodeEncodeError:  # it holds the text: raise outside
        failed = ("str", "with lone surrogates, which UTF-8 cannot encode: repair it, or make it bytes first")
    if failed is None:
        return made
    name, why = failed
    row = int(rows[len(made)])
    raise UnsupportedTypeError(
        f"column {column!r} (object) holds, in row {row}, a {name} "
        + (
            why
            or "that cannot come back exactly: convert it to a plain Python, pandas or numpy value, text or bytes"
        ),
        column=column,
        dtype="object",
        rows=(row,),
    )


def unpack(kind: str, null: str, cells: Cells, *, column: str) -> np.ndarray[Any, Any]:
    """The object array of its cells.

    Raises:
        FormatError: cells that are not of this kind.
    """
    if kind == "tagged":
        found = [_decode_cell(raw, column) for raw in _spans(cells)]
        made = np.fromiter(found, object, len(found))
    elif kind in ("text", "bytes"):
        t = pa.large_string() if kind == "text" else pa.large_binary()
        whole = arrow.unpack(t, cells, column=column).to_numpy(zero_copy_only=False)
        if null != "None" and cells.valid is not None:
            whole[~cells.valid] = NULLS[null]
        return _writable(whole)
    elif kind == "decimal":
        made = np.fromiter(_decimals(cells, column), object, cells.count)
    elif kind == "uuid":
        raw = arrow.sized(cells, 16, column).tobytes()
        made = np.fromiter(
            (uuid.UUID(bytes=raw[i : i + 16]) for i in range(0, len(raw), 16)), object, cells.count
        )
    elif kind == "date":
        days = arrow.unpack(pa.date32(), Cells(arrow.sized(cells, 4, column), width=4), column=column)
        try:
            made = np.fromiter(days.to_pylist(), object, cells.count)
        except (OverflowError, ValueError):
            raise arrow.bad_cells(column, "a date out of range") from None
    else:
        raw_ints = arrow.sized(cells, 8 if kind == "int" else 1, column)
        if kind == "bool" and raw_ints.size and raw_ints.max() > 1:
            raise arrow.bad_cells(column, "a boolean that is neither 0 nor 1")
        made = raw_ints.view("<i8" if kind == "int" else np.bool_).astype(object)
    if cells.valid is None:
        return _writable(made)
    whole = np.full(len(cells), NULLS[null], object)
    whole[cells.valid] = made
    return whole


def _writable(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return values if values.flags.writeable else values.copy()


def _spans(cells: Cells) -> Iterator[bytes]:
    raw, bounds = cells.data.tobytes(), cells.bounds().tolist()
    return (raw[a:b] for a, b in zip(bounds, bounds[1:], strict=False))


def _decimals(cells: Cells, column: str) -> list[decimal.Decimal]:
    try:
        return [decimal.Decimal(raw.decode("ascii")) for raw in _spans(cells)]
    except (ArithmeticError, ValueError):
        pass
    raise arrow.bad_cells(column, "a decimal that is none")


def exponent_of(values: np.ndarray[Any, Any], *, column: str) -> int:
    """The one exponent of an array of finite Decimals (0 if there are none), for deterministic columns.

    Raises:
        UnsupportedTypeError: they have several, or one is infinite, a negative zero, or beyond 10^±1000.
    """
    found: int | None = None
    why = ""
    for row, value in enumerate(values.tolist()):
        if type(value) is not decimal.Decimal:
            continue
        exponent = value.as_tuple().exponent
        if not isinstance(exponent, int):
            why = "an infinity"
        elif value.is_zero() and value.is_signed():
            why = "a negative zero, which joins with zero and could not come back: add 0 to it"
        elif abs(exponent) > 1000:
            why = "an exponent beyond 1000"
        elif found not in (None, exponent):
            why = 'another number of decimal places than those before it: .map(lambda d: d.quantize(Decimal("0.01")))'
        if why:
            raise UnsupportedTypeError(
                f"deterministic column {column!r} (object of Decimal) holds, in row {row}, {why}",
                column=column,
                dtype="object",
                rows=(row,),
            )
        found = int(exponent)
    return found or 0


# --- one object ----------------------------------------------------------------------------------------------


def encode(value: Any, *, deterministic: bool = False, depth: int = 0) -> bytes:
    """The tagged bytes of an object.

    Raises:
        Refused: outside the closed set.
        UnicodeEncodeError: text with a lone surrogate.

    Example:
        >>> encode([True, "é"])
        b'l\\x02\\x00\\x00\\x00?\\x01\\x03\\x00\\x00\\x00s\\xc3\\xa9'
    """
    kind = type(value)
    made = _ENCODE.get(kind)
    if made is not None:
        if deterministic and kind in (float, complex):
            raise Refused(value, "which a deterministic column cannot hold: convert it to int or Decimal")
        return made(value)
    if isinstance(value, np.generic | np.ndarray):
        if deterministic and (value.dtype.kind in "fc" or isinstance(value, np.ndarray)):
            raise Refused(value, "which a deterministic column cannot hold: convert it to int or text")
        return _encode_numpy(value)
    if kind is pd.Interval:
        ends = [
            encode(end, deterministic=deterministic, depth=depth + 1) for end in (value.left, value.right)
        ]
        return b"v" + _CLOSED[value.closed] + _nested(ends)
    if kind not in (list, tuple, set, frozenset, dict):
        raise Refused(value)
    if deterministic:
        raise Refused(value, "which a deterministic column cannot hold: convert it to text")
    if depth >= _DEPTH:
        raise Refused(value, f"nested more than {_DEPTH} deep")
    items = [x for pair in value.items() for x in pair] if kind is dict else value
    inside = [encode(item, depth=depth + 1) for item in items]
    return _CONTAINERS[kind] + _nested(sorted(inside) if kind in (set, frozenset) else inside)


_CONTAINERS: dict[type, bytes] = {list: b"l", tuple: b"(", set: b"{", frozenset: b"F", dict: b"m"}


def _nested(items: list[bytes]) -> bytes:
    if any(len(item) >= 2**32 for item in items):
        raise Refused(items, "with an item of 4 GiB or more")
    return b"".join([len(item).to_bytes(4, "little") + item for item in items])


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _encode_int(value: int) -> bytes:
    if -(2**63) <= value < 2**63:
        return b"i" + value.to_bytes(8, "little", signed=True)
    return b"I" + value.to_bytes(
        (value if value >= 0 else ~value).bit_length() // 8 + 1, "little", signed=True
    )


def _zone_bytes(value: dt.datetime | dt.time) -> bytes:
    if value.tzinfo is None:
        return b""
    entry = zone_json(value.tzinfo)
    if entry is None:
        raise Refused(value.tzinfo, "as time zone, which cannot come back exactly: use zoneinfo")
    if entry[0] == "pytz" and zone_object(entry) is not value.tzinfo:
        offset = value.utcoffset()
        if not isinstance(value, dt.datetime) or offset is None or offset % dt.timedelta(seconds=1):
            raise Refused(value.tzinfo, "as time zone, which cannot come back exactly: use zoneinfo")
        entry = [*entry, offset // dt.timedelta(seconds=1)]
        if _localised(entry, value.replace(tzinfo=None)) is not value.tzinfo:
            raise Refused(value.tzinfo, "as time zone, which cannot come back exactly: use zoneinfo")
    return _json(entry)


def _localised(entry: list[Any], wall: dt.datetime) -> dt.tzinfo | None:
    """The instance that pytz gives to a wall time with this offset."""
    zone: Any = zone_object(entry[:2])
    found: dt.tzinfo | None = zone.fromutc(wall - dt.timedelta(seconds=entry[2])).tzinfo
    return found


def _encode_time(value: dt.time) -> bytes:
    seconds = (value.hour * 60 + value.minute) * 60 + value.second
    zone = _zone_bytes(value)
    tail = bytes([value.fold]) + zone if value.fold or zone else b""
    return b"t" + struct.pack("<q", (seconds * 10**6 + value.microsecond) * 1000) + tail


def _encode_datetime(value: dt.datetime) -> bytes:
    wall = (value.replace(tzinfo=None, fold=0) - _EPOCH) // _TICK
    return b"p" + struct.pack("<qB", wall, value.fold) + _zone_bytes(value)


def _encode_timestamp(value: pd.Timestamp) -> bytes:
    zone = None if value.tzinfo is None else zone_json(value.tzinfo)
    if value.tzinfo is not None and zone is None:
        raise Refused(value.tzinfo, "as time zone, which cannot come back exactly: use zoneinfo")
    ticks = int(value.to_datetime64().view("i8"))
    return b"P" + struct.pack("<qB", ticks, value.fold if zone is None else 0) + _json([value.unit, zone])


def _encode_timedelta(value: pd.Timedelta) -> bytes:
    return b"q" + struct.pack("<q", int(value.to_timedelta64().view("i8"))) + value.unit.encode("ascii")


def _encode_numpy(value: Any) -> bytes:
    small = value.dtype.newbyteorder("<")
    text = small.str.encode("ascii")
    if value.dtype.kind not in "biufcmM" or value.dtype.itemsize > (16 if value.dtype.kind == "c" else 8):
        raise Refused(value)
    head = bytes([len(text)]) + text
    if isinstance(value, np.generic):
        if np.dtype(small.str).type is not type(value):
            raise Refused(value)
        return b"#" + head + np.asarray(value).astype(small).tobytes()
    if type(value) is not np.ndarray or value.dtype != small:
        raise Refused(value)
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


def _decode_cell(raw: bytes, column: str) -> Any:
    try:
        return decode(raw)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, ArithmeticError, struct.error):
        pass  # those errors may hold values
    raise arrow.bad_cells(column, "an object that is malformed")


def decode(raw: bytes, depth: int = 0) -> Any:
    """The object of its tagged bytes.

    Raises:
        ValueError and others: malformed.

    Example:
        >>> decode(encode((1, 2.5, None)))
        (1, 2.5, None)
    """
    if depth > _DEPTH:
        raise ValueError("too deep")
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
            raise ValueError("bytes too many")
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
        raise ValueError("no time of day")
    plain = (dt.datetime.min + dt.timedelta(microseconds=nanos // 1000)).time()
    tail = body[8:]
    return plain.replace(fold=tail[0], tzinfo=_zone_of(tail[1:])) if tail else plain


def _decode_datetime(body: bytes) -> dt.datetime:
    micros, fold = struct.unpack_from("<qB", body)
    wall = _EPOCH + dt.timedelta(microseconds=micros)
    return wall.replace(fold=fold, tzinfo=_zone_of(body[9:], wall))


def _decode_timestamp(body: bytes) -> pd.Timestamp:
    ticks, fold = struct.unpack_from("<qB", body)
    unit, zone = json.loads(body[9:])
    if unit not in _UNITS or ticks == -(2**63):
        raise ValueError("no timestamp")
    made = pd.Timestamp(np.datetime64(ticks, unit))
    if zone is not None:
        return made.tz_localize("UTC").tz_convert(zone_object(zone))
    return made.replace(fold=fold) if fold else made


def _decode_timedelta(body: bytes) -> pd.Timedelta:
    (ticks,) = struct.unpack_from("<q", body)
    unit = body[8:].decode("ascii")
    if unit not in _UNITS or ticks == -(2**63):
        raise ValueError("no timedelta")
    return pd.Timedelta(np.timedelta64(ticks, unit))


def _decode_dtype(body: bytes) -> tuple[np.dtype[Any], bytes]:
    size = body[0]
    text = body[1 : 1 + size].decode("ascii")
    if len(text) < 3 or text[1] not in "biufcmM":
        raise ValueError("no dtype of this set")
    return np.dtype(text), body[1 + size :]


def _decode_scalar(body: bytes) -> Any:
    dtype, raw = _decode_dtype(body)
    (value,) = np.frombuffer(raw, dtype)
    return value


def _decode_array(body: bytes) -> np.ndarray[Any, Any]:
    dtype, rest = _decode_dtype(body)
    shape = struct.unpack_from(f"<{rest[0]}q", rest, 1)
    if any(side < 0 for side in shape):
        raise ValueError("a negative dimension")
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
