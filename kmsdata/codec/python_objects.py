"""Convert object columns to cells and back: values of one plain type, or tagged values.

=========  ==================================================================================
kind       bytes of a cell
=========  ==================================================================================
text       UTF-8
bytes      the bytes
bool       1: 0 or 1
int        8: int64, little-endian; a column with larger integers is tagged
date       4: int32 days since 1970-01-01, little-endian
uuid       16, big-endian as in RFC 9562
decimal    ``str(value)``, ASCII: with trailing zeros and exponent; a column with NaN is tagged
tagged     everything else, and mixed types (``tagged_objects.py``)
=========  ==================================================================================

Null is None, NaN (the canonical one), NA or NaT: the one that comes first in the column. Every other kind of
null is stored as a tagged cell, and so is a value that only ``pd.isna`` regards as null, like
``Decimal("NaN")``.
"""

from __future__ import annotations

import datetime as dt
import decimal
import struct
import uuid
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from kmsdata.ciphers.cells import Bools, Cells
from kmsdata.codec import arrow_arrays as arrow
from kmsdata.codec.tagged_objects import RefusedError, decode, encode
from kmsdata.codec.time_zones import is_unicode
from kmsdata.errors import UnsupportedTypeError

__all__ = ["exponent_of", "pack", "scan", "text_cells", "unpack"]

_NULLS: dict[str, Any] = {"None": None, "NaN": float("nan"), "NA": pd.NA, "NaT": pd.NaT}
_NULL_TYPES = {type(None): "None", type(pd.NA): "NA", type(pd.NaT): "NaT"}
_NAN = struct.pack("<d", float("nan"))
_PLAIN = {
    str: "text",
    bytes: "bytes",
    bool: "bool",
    int: "int",
    dt.date: "date",
    uuid.UUID: "uuid",
    decimal.Decimal: "decimal",
}
_DAYS = [day.toordinal() - dt.date(1970, 1, 1).toordinal() for day in (dt.date.min, dt.date.max)]


def scan(values: np.ndarray[Any, Any]) -> tuple[str, str]:
    """Return (kind, null) of an object array, as in its ``pandas`` entry; "" if it has no value or no null.

    Example:
        >>> scan(np.array(["a", None], object)), scan(np.array(["a", 1], object))
        (('text', 'None'), ('tagged', ''))
    """
    types = set(map(type, values))  # exact types, not isinstance: a bool is not an int here
    nulls = {name for made, name in _NULL_TYPES.items() if made in types}
    if float in types:
        # By bits: only the canonical NaN is null, any other NaN is a float and keeps its payload.
        nan = [struct.pack("<d", v) == _NAN for v in values.tolist() if type(v) is float]
        nulls |= {"NaN"} if any(nan) else set()
        types -= {float} if all(nan) else set()
    types -= set(_NULL_TYPES)
    kind = (_PLAIN.get(next(iter(types)), "tagged") if len(types) == 1 else "tagged") if types else ""
    if len(nulls) > 1:  # the first one is the null; the others are tagged cells
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
    return min(ints) >= -(2**63) and max(ints) < 2**63


def _has_nan(values: np.ndarray[Any, Any]) -> bool:
    return any(type(v) is decimal.Decimal and v.is_nan() for v in values.tolist())


def pack(
    kind: str, null: str, values: np.ndarray[Any, Any], *, column: str, deterministic: bool = False
) -> Cells:
    """Make cells of an object array for which ``scan`` returned this kind and null.

    Args:
        kind: kind of its objects.
        null: the null that has no bytes.
        values: object[n].
        column: for messages.
        deterministic: whether to reject floats and containers in tagged cells.

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
        return text_cells(present, valid, column).with_valid(valid)
    if kind == "bytes":
        return arrow.pack(pa.array(present, pa.large_binary()), column=column).with_valid(valid)
    if kind == "decimal":
        texts = pa.array(list(map(str, present)), pa.large_string())
        return arrow.pack(texts, column=column).with_valid(valid)
    if kind == "uuid":
        raw = b"".join([v.bytes for v in present.tolist()])
        return Cells(np.frombuffer(raw, np.uint8), width=16, valid=valid)
    if kind == "date":
        return arrow.pack(pa.array(present, pa.date32()), column=column).with_valid(valid)
    data = present.astype("<i8" if kind == "int" else np.bool_)
    return Cells(data.view(np.uint8), width=data.itemsize, valid=valid)


def _nulls(null: str, values: np.ndarray[Any, Any], *, tagged: bool) -> Bools | None:
    if tagged:  # nulls of a kind other than the recorded one are values
        mask = np.fromiter((_null_name(v) == null for v in values), np.bool_, len(values))
    else:
        mask = np.asarray(pd.isna(values), np.bool_)
    return mask if mask.any() else None


def _joined(rows: list[bytes], valid: Bools | None) -> Cells:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=offsets[1:])
    return Cells(np.frombuffer(b"".join(rows), np.uint8), offsets, valid=valid)


def text_cells(present: np.ndarray[Any, Any], valid: Bools | None, column: str) -> Cells:
    """Make cells of str objects, none of them null; ``valid`` is used only for row numbers in messages."""
    try:
        made = pa.array(present, pa.large_string())
    except UnicodeEncodeError:  # the error contains the text, so it must not be chained
        made = None
    if made is not None:
        return arrow.pack(made, column=column, trusted=True)
    bad = np.flatnonzero([not is_unicode(text) for text in present.tolist()])
    rows = (bad if valid is None else np.flatnonzero(valid)[bad])[:5].tolist()
    raise UnsupportedTypeError(
        f"column {column!r} has text with lone surrogates, which UTF-8 cannot encode, in rows {rows}. "
        'Repair the text, or convert it to bytes: .str.encode("utf-8", "surrogatepass")',
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
            made.append(encode(value, deterministic=deterministic))
    except RefusedError as error:
        failed = error.args
    except UnicodeEncodeError:  # the error contains the text: raise below, without chaining it
        failed = ("str", "with lone surrogates, which UTF-8 cannot encode. Repair it or convert it to bytes.")
    if failed is None:
        return made
    name, why = failed
    row = int(rows[len(made)])
    raise UnsupportedTypeError(
        f"column {column!r} (object) cannot be encrypted: row {row} has a {name} "
        + (why or "that cannot be restored exactly. Convert it to a plain Python or numpy value or to text."),
        column=column,
        dtype="object",
        rows=(row,),
    )


def unpack(kind: str, null: str, cells: Cells, *, column: str) -> np.ndarray[Any, Any]:
    """Restore the object array of its cells.

    Raises:
        FormatError: the cells do not match this kind.
    """
    if kind == "tagged":
        found = [_decode_cell(raw, column) for raw in cells.present()]
        made = np.fromiter(found, object, len(found))
    elif kind in ("text", "bytes"):
        t = pa.large_string() if kind == "text" else pa.large_binary()
        whole = arrow.unpack(t, cells, column=column).to_numpy(zero_copy_only=False)
        if null != "None" and cells.valid is not None:
            whole[~cells.valid] = _NULLS[null]
        return _writable(whole)
    elif kind == "decimal":
        made = np.fromiter(_decimals(cells, column), object, cells.count)
    elif kind == "uuid":
        raw = arrow.sized(cells, 16, column).tobytes()
        made = np.fromiter(
            (uuid.UUID(bytes=raw[i : i + 16]) for i in range(0, len(raw), 16)), object, cells.count
        )
    elif kind == "date":
        days = arrow.sized(cells, 4, column).view("<i4")
        # numpy returns integers, not dates, for days that datetime.date cannot represent.
        if days.size and (days.min() < _DAYS[0] or days.max() > _DAYS[1]):
            raise arrow.bad_cells(column, "a date out of range")
        made = days.astype("M8[D]").astype(object)
    else:
        raw_ints = arrow.sized(cells, 8 if kind == "int" else 1, column)
        made = (raw_ints.view("<i8") if kind == "int" else arrow.booleans(raw_ints, column)).astype(object)
    if cells.valid is None:
        return _writable(made)
    whole = np.full(len(cells), _NULLS[null], object)
    whole[cells.valid] = made
    return whole


def _decode_cell(raw: bytes, column: str) -> Any:
    try:
        return decode(raw)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, ArithmeticError, struct.error):
        pass  # raise below: those errors may contain values
    raise arrow.bad_cells(column, "a malformed object")


def _writable(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return values if values.flags.writeable else values.copy()


def _decimals(cells: Cells, column: str) -> list[decimal.Decimal]:
    try:
        return [decimal.Decimal(raw.decode("ascii")) for raw in cells.present()]
    except (ArithmeticError, ValueError):
        pass
    raise arrow.bad_cells(column, "text that is not a decimal")


def exponent_of(values: np.ndarray[Any, Any], *, column: str) -> int:
    """Return the exponent that an array of finite Decimals shares (0 if empty), for deterministic columns.

    Raises:
        UnsupportedTypeError: the exponents differ, or a Decimal is infinite, a negative zero, or has an
            exponent beyond ±1000.
    """
    found: int | None = None
    why = ""
    for row, value in enumerate(values.tolist()):
        if type(value) is not decimal.Decimal:
            continue
        exponent = value.as_tuple().exponent
        if not isinstance(exponent, int):  # "F", "n" or "N", for an infinity or NaN
            why = "an infinity"
        elif value.is_zero() and value.is_signed():
            why = "a negative zero, which equals zero and could not be restored. Add 0 to it."
        elif abs(exponent) > 1000:
            why = "an exponent beyond ±1000"
        elif found not in (None, exponent):
            why = "a number of decimal places that differs from earlier rows. Make them equal: "
            why += '.map(lambda d: d.quantize(Decimal("0.01")))'
        if why:
            raise UnsupportedTypeError(
                f"column {column!r} (object of Decimal) cannot be deterministic: row {row} has {why}",
                column=column,
                dtype="object",
                rows=(row,),
            )
        found = int(exponent)
    return found or 0
