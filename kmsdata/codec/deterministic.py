"""Convert plain cells to deterministic ones (equal bytes for equal values of any dtype) and back.

===========  ==========================================================================================
kind         bytes of a cell
===========  ==========================================================================================
text         UTF-8
bytes        the bytes
bool         1: 0 or 1
int          8: int64, little-endian; signed integers and objects that fit
uint         8: uint64, little-endian; unsigned integers
timestamp    8: int64 nanoseconds since 1970-01-01 00:00 without a time zone, little-endian
instant      8: int64 nanoseconds since 1970-01-01 UTC, little-endian; timestamps with a time zone
date         4: int32 days since 1970-01-01, little-endian
decimal      ASCII, shortest: no exponent, no zeros at the end of the decimal places, no point without
             places, no "-0"
uuid         16
tagged       a tagged object (``tagged_objects.py``), in a form that depends on the dtype:
             durations ``q`` in nanoseconds; times of day ``t`` without fold and zone; periods ``r``;
             intervals ``v`` of ``i``, of ``q`` in nanoseconds, or of ``P`` in nanoseconds, without zone or
             in UTC;
             mixed objects unchanged (floats and containers are not allowed), so they are equal only if
             type, unit, zone and scale are equal
===========  ==========================================================================================

All functions work on whole columns of cells; the meaning of a value's bytes comes from its ``type``. Cells
that another type of the same kind made are restored exactly, or not at all.
"""

from __future__ import annotations

import decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kmsdata.ciphers.cells import Cells
from kmsdata.codec import arrow_arrays as arrow
from kmsdata.codec.arrow_types import arrow_type, value_type
from kmsdata.codec.types import arrow_of, label
from kmsdata.errors import UnsupportedTypeError

__all__ = ["canonical", "plain_decimal", "restore"]

_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_DAY_MS = 86_400_000
_LIMITS = np.iinfo(np.int64)


def canonical(type: dict[str, Any], kind: str, cells: Cells, *, column: str) -> Cells:  # noqa: A002
    """Convert plain cells to deterministic cells.

    Args:
        type: the column's type.
        kind: its kind.
        cells: its plain cells.
        column: for messages.

    Raises:
        UnsupportedTypeError: values that the kind cannot store (timestamps beyond int64 nanoseconds).
    """
    pandas = type.get("pandas", {})
    where = _Where(cells, column, type)
    if kind in ("int", "uint"):
        t = _storage(type)
        data = arrow.sized(cells, t.bit_width // 8, column).view(f"<{kind[0]}{t.bit_width // 8}")
        return _fixed(data.astype(f"<{kind[0]}8", copy=False), cells)
    if kind in ("timestamp", "instant"):
        return _fixed(_nanoseconds(_int64(cells, column), _unit(type), where), cells)
    if kind == "date" and _storage(type) == pa.date64():
        millis = _int64(cells, column)
        where.refuse(millis % _DAY_MS != 0, "dates with a time of day. Cast them to timestamps.")
        return _fixed((millis // _DAY_MS).astype("<i4"), cells)
    if kind == "decimal":
        return (
            _shortest(cells, column) if "object" in pandas else _decimal_text(_storage(type), cells, column)
        )
    if kind != "tagged" or "object" in pandas:
        return cells
    if "period" in pandas:
        return _fixed(_tagged(b"r", _int64(cells, column), pandas["period"].encode("ascii")), cells)
    if "interval" in pandas:
        return _fixed(_intervals(pandas["interval"], cells, column, where), cells)
    t = _storage(type)
    if pa.types.is_duration(t):
        return _fixed(_tagged(b"q", _nanoseconds(_int64(cells, column), t.unit, where), b"ns"), cells)
    ticks = arrow.sized(cells, t.bit_width // 8, column).view(f"<i{t.bit_width // 8}").astype(np.int64)
    return _fixed(_tagged(b"t", _nanoseconds(ticks, t.unit, where), b""), cells)


def restore(type: dict[str, Any], kind: str, cells: Cells, *, column: str) -> Cells:  # noqa: A002
    """Convert deterministic cells to plain cells: the inverse of ``canonical``.

    Raises:
        FormatError: cells that ``canonical`` cannot have made for this type.
    """
    pandas = type.get("pandas", {})
    if kind in ("int", "uint"):
        wide = arrow.sized(cells, 8, column).view(f"<{kind[0]}8")
        return _fixed(_narrowed(wide, f"<{kind[0]}{_storage(type).bit_width // 8}", column), cells)
    if kind in ("timestamp", "instant"):
        return _fixed(
            _ticks(_int64(cells, column), _unit(type), column, nat=bool(pandas.keys() - {"arrow"})), cells
        )
    if kind == "date" and _storage(type) == pa.date64():
        days = arrow.sized(cells, 4, column).view("<i4").astype("<i8")
        return _fixed(days * _DAY_MS, cells)
    if kind == "decimal":
        if "object" not in pandas:
            return _decimal_bytes(_storage(type), cells, column)
        return _with_exponent(cells, pandas["exponent"], column)
    if kind == "text" and type.get("arrow") == "null":
        _expect(not cells.count, column, "a value, but the type has only nulls")
    if kind != "tagged" or "object" in pandas:
        return cells
    if "period" in pandas:
        return _fixed(_untagged(b"r", pandas["period"].encode("ascii"), cells, column), cells)
    if "interval" in pandas:
        return _fixed(_ends(pandas["interval"], cells, column), cells)
    t = _storage(type)
    tag, tail = (b"q", b"ns") if pa.types.is_duration(t) else (b"t", b"")
    ticks = _ticks(_untagged(tag, tail, cells, column), t.unit, column, nat="numpy" in pandas)
    return _fixed(_narrowed(ticks, f"<i{t.bit_width // 8}", column), cells)


def _narrowed(wide: np.ndarray[Any, Any], dtype: str, column: str) -> np.ndarray[Any, Any]:
    narrow = wide.astype(dtype, copy=False)
    _expect(bool((narrow == wide).all()), column, "an integer out of range")
    return narrow


def _storage(type: dict[str, Any]) -> Any:  # noqa: A002
    return value_type(arrow_type(type["arrow"]))


def _unit(type: dict[str, Any]) -> str:  # noqa: A002
    match type.get("pandas"):
        case {"datetime": [str(unit), _]}:
            return unit
    unit = _storage(type).unit
    return str(unit)


def _int64(cells: Cells, column: str) -> np.ndarray[Any, Any]:
    return arrow.sized(cells, 8, column).view("<i8")


def _fixed(values: np.ndarray[Any, Any], cells: Cells) -> Cells:
    raw = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
    width = values.dtype.itemsize if values.ndim == 1 else values.shape[1]
    return Cells(raw, width=width, valid=cells.valid)


def _expect(fine: bool, column: str, what: str) -> None:
    if not fine:
        raise arrow.bad_cells(column, what)


class _Where:
    """The row numbers of cells, for messages."""

    def __init__(self, cells: Cells, column: str, type: dict[str, Any]) -> None:  # noqa: A002
        self.cells, self.column, self.type = cells, column, type

    def refuse(self, bad: Any, what: str) -> None:
        rows = np.flatnonzero(bad)
        if not len(rows):
            return
        if self.cells.valid is not None:
            rows = np.flatnonzero(self.cells.valid)[rows]
        first = rows[:5].tolist()
        raise UnsupportedTypeError(
            f"column {self.column!r} ({label(self.type)}) cannot be deterministic: rows {first} have {what}",
            column=self.column,
            dtype=label(self.type),
            rows=tuple(first),
        )


# --- time -----------------------------------------------------------------------------------------


def _nanoseconds(ticks: np.ndarray[Any, Any], unit: str, where: _Where) -> np.ndarray[Any, Any]:
    factor = 10**9 // _PER_SECOND[unit]
    if factor == 1:
        return ticks
    high = _LIMITS.max // factor  # checked before: an int64 product would overflow without an error
    where.refuse(
        (ticks > high) | (ticks < -high),
        "values that do not fit into int64 nanoseconds. Encrypt the column randomised.",
    )
    return ticks * factor


def _ticks(nanos: np.ndarray[Any, Any], unit: str, column: str, *, nat: bool = False) -> np.ndarray[Any, Any]:
    """Convert nanoseconds to a unit; with ``nat``, refuse the int64 that is NaT in pandas."""
    _expect(not nat or bool((nanos != _LIMITS.min).all()), column, "a time that pandas takes for NaT")
    factor = 10**9 // _PER_SECOND[unit]
    if factor == 1:
        return nanos
    ticks = nanos // factor
    _expect(bool((ticks * factor == nanos).all()), column, "a time that is not a multiple of its unit")
    return ticks


# --- tagged columns -------------------------------------------------------------------------------


def _tagged(tag: bytes, values: np.ndarray[Any, Any], tail: bytes) -> np.ndarray[Any, Any]:
    """Return tag ‖ int64 ‖ tail in each row: uint8[m, 9 + len(tail)]."""
    made = np.empty((len(values), 9 + len(tail)), np.uint8)
    made[:, :1] = np.frombuffer(tag, np.uint8)
    made[:, 1:9] = np.ascontiguousarray(values, "<i8").view(np.uint8).reshape(-1, 8)
    made[:, 9:] = np.frombuffer(tail, np.uint8)
    return made


def _untagged(tag: bytes, tail: bytes, cells: Cells, column: str) -> np.ndarray[Any, Any]:
    raw = arrow.sized(cells, 9 + len(tail), column).reshape(-1, 9 + len(tail))
    fine = (raw[:, :1] == np.frombuffer(tag, np.uint8)).all() and (
        raw[:, 9:] == np.frombuffer(tail, np.uint8)
    ).all()
    _expect(bool(fine), column, "a malformed tagged value")
    return np.ascontiguousarray(raw[:, 1:9]).view("<i8").reshape(-1)


def _end_form(sub: dict[str, Any]) -> tuple[str, str, bytes, bytes]:
    """Return how the ends of an interval are stored: (numpy code, unit, tag, tail)."""
    match sub:
        case {"datetime": [str(unit), _]}:
            return "<i8", unit, b"P", b'\0["ns",["timezone",0,null]]'
    name = arrow_of(sub) or ""
    if "int" in name:
        size = int(name.strip("uint")) // 8
        return f"<{name[0]}{size}", "ns", b"i", b""
    unit = name.split("[")[1].rstrip("]")
    return "<i8", unit, *((b"q", b"ns") if name.startswith("duration") else (b"P", b'\0["ns",null]'))


def _intervals(spec: list[Any], cells: Cells, column: str, where: _Where) -> np.ndarray[Any, Any]:
    code, unit, tag, tail = _end_form(spec[1])
    size = np.dtype(code).itemsize
    both = arrow.sized(cells, 2 * size, column).view(code).reshape(-1, 2)
    if code == "<u8":
        where.refuse(
            (both > _LIMITS.max).any(axis=1),
            "ends that do not fit into int64. Encrypt the column randomised.",
        )
    parts = [np.broadcast_to(np.frombuffer(b"v" + spec[0][:1].encode("ascii"), np.uint8), (len(both), 2))]
    for side in (0, 1):
        end = _tagged(tag, _nanoseconds(both[:, side].astype("<i8"), unit, where), tail)
        head = np.frombuffer(end.shape[1].to_bytes(4, "little"), np.uint8)
        parts += [np.broadcast_to(head, (len(both), 4)), end]
    return np.concatenate(parts, axis=1)


def _ends(spec: list[Any], cells: Cells, column: str) -> np.ndarray[Any, Any]:
    code, unit, tag, tail = _end_form(spec[1])
    size = 9 + len(tail)
    raw = arrow.sized(cells, 2 + 2 * (4 + size), column).reshape(-1, 2 + 2 * (4 + size))
    head = np.frombuffer(b"v" + spec[0][:1].encode("ascii"), np.uint8)
    length = np.frombuffer(size.to_bytes(4, "little"), np.uint8)
    fine = (
        (raw[:, :2] == head).all()
        and (raw[:, 2:6] == length).all()
        and (raw[:, 6 + size : 10 + size] == length).all()
    )
    _expect(bool(fine), column, "a malformed tagged value")
    made = []
    for at in (6, 10 + size):
        one = Cells(np.ascontiguousarray(raw[:, at : at + size]).reshape(-1), width=size)
        ticks = _ticks(_untagged(tag, tail, one, column), unit, column)
        _expect(code != "<u8" or bool((ticks >= 0).all()), column, "an integer out of range")
        made.append(_narrowed(ticks, code, column))
    both = np.ascontiguousarray(np.stack(made, axis=1))
    return both.view(np.uint8).reshape(len(raw), 2 * both.itemsize)


# --- decimals -------------------------------------------------------------------------------------


def _decimal_text(t: Any, cells: Cells, column: str) -> Cells:
    """Return the shortest text of Arrow decimals."""
    # They are read as decimals of scale 0, whose text never has an exponent; the point is inserted below.
    plain = Cells(arrow.sized(cells, t.bit_width // 8, column), width=t.bit_width // 8)
    wide = pa.decimal128 if t.bit_width <= 128 else pa.decimal256
    digits = arrow.unpack(_integer_type(t), plain, column=column)
    text = digits.cast(wide(t.precision, 0)).cast(pa.large_string())
    if t.scale < 0:
        text = pc.if_else(pc.equal(text, "0"), text, _join(text, _text("0" * -t.scale)))
    if t.scale > 0:
        sign = pc.if_else(pc.starts_with(text, "-"), _text("-"), _text(""))
        padded = pc.utf8_lpad(pc.utf8_ltrim(text, "-"), t.scale + 1, "0")
        whole = pc.utf8_slice_codeunits(padded, 0, -t.scale)
        places = pc.utf8_rtrim(pc.utf8_slice_codeunits(padded, -t.scale), "0")
        point = pc.if_else(pc.equal(places, ""), _text(""), _text("."))
        text = _join(sign, whole, point, places)
    return arrow.pack(text, column=column, trusted=True).with_valid(cells.valid)


def _text(value: str) -> Any:
    return pa.scalar(value, pa.large_string())


def _join(*parts: Any) -> Any:
    return pc.binary_join_element_wise(*parts, _text(""))


def _integer_type(t: Any) -> Any:
    make: Any = getattr(pa, f"decimal{t.bit_width}")
    return make(t.precision, 0)


def _decimal_bytes(t: Any, cells: Cells, column: str) -> Cells:
    """Return Arrow decimals of their shortest text."""
    # By way of decimals of scale 0: a cast to the scale itself may overflow.
    text = arrow.unpack(pa.large_string(), Cells(cells.data, cells.bounds()), column=column)
    zeros, scale = max(-t.scale, 0), max(t.scale, 0)
    form = rf"^(?P<sign>-?)(?:(?P<whole>[0-9]+)0{{{zeros}}}|0)(?:\.(?P<places>[0-9]{{0,{scale}}}))?$"
    parts = pc.extract_regex(text, form)
    sign, whole, places = (parts.field(i) for i in range(3))
    digits = _join(sign, whole, pc.utf8_rpad(places, scale, "0"))
    made = None
    # Counted before the cast: beyond 38 digits, Arrow's cast of text wraps modulo 2^128 without an error.
    longest = pc.max(pc.utf8_length(pc.utf8_ltrim(digits, "-0"))).as_py() or 0
    if not parts.null_count and longest <= t.precision:
        wide = (pa.decimal128 if t.bit_width <= 128 else pa.decimal256)(t.precision, 0)
        try:
            made = pc.if_else(pc.equal(digits, ""), _text("0"), digits).cast(wide).cast(_integer_type(t))
        except pa.ArrowInvalid:  # too many digits; the error contains them, so it must not be chained
            made = None
    if made is None:
        raise arrow.bad_cells(column, "a decimal that does not fit its type")
    return arrow.pack(made, column=column).with_valid(cells.valid)


def _shortest(cells: Cells, column: str) -> Cells:
    rows = [plain_decimal(decimal.Decimal(text)) for text in _texts(cells, column)]
    return arrow.pack(pa.array(rows, pa.large_string()), column=column).with_valid(cells.valid)


def plain_decimal(value: decimal.Decimal) -> str:
    """Return the shortest plain text of a finite Decimal that is not a negative zero."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _with_exponent(cells: Cells, exponent: int, column: str) -> Cells:
    # quantize() fails beyond the precision of its context, which is 28 digits by default.
    context = decimal.Context(prec=decimal.MAX_PREC, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)
    scale = decimal.Decimal((0, (1,), exponent))
    values: list[decimal.Decimal] = []
    scaled: list[decimal.Decimal] | None = None
    try:
        values = [decimal.Decimal(text) for text in _texts(cells, column)]
        scaled = [value.quantize(scale, context=context) for value in values]
    except ArithmeticError:
        pass
    if scaled is None:
        raise arrow.bad_cells(column, "text that is not a decimal")
    if scaled != values:
        raise arrow.bad_cells(column, f"a decimal that an exponent of {exponent} cannot store exactly")
    rows = [str(value) for value in scaled]
    return arrow.pack(pa.array(rows, pa.large_string()), column=column).with_valid(cells.valid)


def _texts(cells: Cells, column: str) -> list[str]:
    present = Cells(cells.data, cells.bounds())
    texts: list[str] = arrow.unpack(pa.large_string(), present, column=column).to_pylist()
    return texts
