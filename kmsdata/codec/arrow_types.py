"""Parse and print Arrow types: the ``arrow`` entry of a column's ``type``.

==================================================  ==================================================
``arrow``                                           Arrow type
==================================================  ==================================================
``"null"`` ``"bool"`` ``"int8"`` … ``"uint64"``     by their names
``"float16"`` ``"float32"`` ``"float64"``           half float, float, double
``"string"`` ``"large_string"`` ``"string_view"``   text, UTF-8
``"binary"`` ``"large_binary"`` ``"binary_view"``   bytes
``"fixed_size_binary[n]"``                          bytes, n each
``"decimal32(p, s)"`` …64, …128, …256               decimals of precision p and scale s
``"date32"`` ``"date64"``                           days; milliseconds
``"time32[s|ms]"`` ``"time64[us|ns]"``              time of day
``"timestamp[u]"`` ``"timestamp[u, tz=…]"``         u: s, ms, us or ns; the zone ends at the last ``]``
``"duration[u]"`` ``"month_day_nano_interval"``     by their names
``{"ipc": base64}``                                 any other: the Arrow IPC schema message of a field "c"
==================================================  ==================================================

A registered extension type is restored as itself; an unregistered one as its storage type, as Arrow does.
"""

from __future__ import annotations

import base64
import binascii
import functools
import re
from typing import Any

import pyarrow as pa

from kmsdata.codec.time_zones import malformed
from kmsdata.errors import UnsupportedTypeError

__all__ = [
    "TEXT",
    "VARIABLE",
    "arrow_kind",
    "arrow_type",
    "arrow_width",
    "core",
    "inner",
    "is_rows",
    "print_arrow",
    "value_type",
]

_SIMPLE = {
    **{name: getattr(pa, name)() for name in ("null", "int8", "int16", "int32", "int64", "string", "binary")},
    **{name: getattr(pa, name)() for name in ("uint8", "uint16", "uint32", "uint64", "float16", "float32")},
    **{name: getattr(pa, name)() for name in ("float64", "large_string", "large_binary", "date32", "date64")},
    **{name: getattr(pa, name)() for name in ("string_view", "binary_view", "month_day_nano_interval")},
    "bool": pa.bool_(),
}
_NAMES = {t: name for name, t in _SIMPLE.items()}
_BY_UNIT = {
    "time32": pa.types.is_time32,
    "time64": pa.types.is_time64,
    "timestamp": pa.types.is_timestamp,
    "duration": pa.types.is_duration,
}
_TEMPORAL = re.compile(r"(time32\[(?:s|ms)|time64\[(?:us|ns)|(?:timestamp|duration)\[(?:s|ms|us|ns))\]")
_ZONED = re.compile(r"timestamp\[(s|ms|us|ns), tz=(.+)\]", re.DOTALL)
_DECIMAL = re.compile(r"(decimal(?:32|64|128|256))\((\d{1,2}), (-?\d{1,3})\)")
_FIXED = re.compile(r"fixed_size_binary\[(\d{1,9})\]")
TEXT = {pa.string(), pa.large_string(), pa.string_view()}
VARIABLE = TEXT | {pa.binary(), pa.large_binary(), pa.binary_view()}
_KINDS = {
    "bool": (pa.types.is_boolean,),
    "int": (pa.types.is_signed_integer,),
    "uint": (pa.types.is_unsigned_integer,),
    "timestamp": (pa.types.is_timestamp,),
    "date": (pa.types.is_date,),
    "decimal": (pa.types.is_decimal,),
    "tagged": (pa.types.is_time, pa.types.is_duration),
}


def print_arrow(t: pa.DataType) -> str | dict[str, str]:
    """Return the ``arrow`` entry of an Arrow type.

    Raises:
        UnsupportedTypeError: Arrow writes the type, but does not read it back.

    Example:
        >>> print_arrow(pa.timestamp("ms", tz="UTC")), print_arrow(pa.float64())
        ('timestamp[ms, tz=UTC]', 'float64')
    """
    if t in _NAMES:
        return _NAMES[t]
    if pa.types.is_fixed_size_binary(t):
        return f"fixed_size_binary[{t.byte_width}]"
    if pa.types.is_decimal(t):
        return f"decimal{t.bit_width}({t.precision}, {t.scale})"
    for name, test in _BY_UNIT.items():
        if test(t):
            zone = f", tz={t.tz}" if name == "timestamp" and t.tz is not None else ""
            return f"{name}[{t.unit}{zone}]"
    message = pa.schema([("c", t)]).serialize()
    try:
        pa.ipc.read_schema(message)
    except (pa.ArrowException, ValueError, TypeError, KeyError):  # a dictionary of an extension type
        raise UnsupportedTypeError(
            f"values of the type {t} cannot be encrypted, because Arrow does not read the type back. Convert "
            "dictionaries with extension types inside to plain values (dictionary_decode) first",
            dtype=str(t),
        ) from None
    return {"ipc": base64.b64encode(message.to_pybytes()).decode("ascii")}


def arrow_type(entry: Any) -> pa.DataType:
    """Return the Arrow type of an ``arrow`` entry.

    Raises:
        FormatError: the entry does not match the grammar.
        UnsupportedTypeError: the installed pyarrow has no such type.

    Example:
        >>> arrow_type("decimal128(10, 2)")
        Decimal128Type(decimal128(10, 2))
    """
    if isinstance(entry, str):
        return _parse(entry)
    match entry:
        case {"ipc": str(text)} if len(entry) == 1:
            return _read_ipc(text).type
    raise malformed("invalid Arrow type")


@functools.lru_cache(maxsize=1024)  # bounded: the texts come from files
def _parse(text: str) -> pa.DataType:
    if text in _SIMPLE:
        return _SIMPLE[text]
    if found := _TEMPORAL.fullmatch(text):
        name, unit = found[1].split("[")
        return getattr(pa, name)(unit)
    if found := _ZONED.fullmatch(text):
        return pa.timestamp(found[1], tz=found[2])
    if found := _FIXED.fullmatch(text):
        return pa.binary(int(found[1]))
    if found := _DECIMAL.fullmatch(text):
        make = getattr(pa, found[1], None)
        if make is None:  # pyarrow 17 has neither decimal32 nor decimal64
            raise UnsupportedTypeError(
                f"pyarrow {pa.__version__} does not support {found[1]}. Upgrade pyarrow.", dtype=text
            )
        try:
            return make(int(found[2]), int(found[3]))
        except (ValueError, pa.ArrowException):
            raise malformed("invalid precision or scale of a decimal") from None
    raise malformed("invalid Arrow type")


def _read_ipc(text: str) -> pa.Field:
    try:
        raw = base64.b64decode(text, validate=True)
        schema = pa.ipc.read_schema(pa.py_buffer(raw))
    except (binascii.Error, ValueError, TypeError, OSError, KeyError, pa.ArrowException):
        raise malformed("invalid Arrow IPC schema") from None
    if schema.names != ["c"]:
        raise malformed("invalid Arrow IPC schema")
    return schema.field(0)


def core(t: pa.DataType) -> pa.DataType:
    """Return the storage type below all extension types: it determines the cells."""
    while isinstance(t, pa.BaseExtensionType):  # the storage of an extension may be an extension
        t = t.storage_type
    return t


def inner(t: pa.DataType) -> list[pa.DataType]:
    """Return the types directly inside a type."""
    if isinstance(t, pa.BaseExtensionType):
        return [t.storage_type]
    if pa.types.is_dictionary(t) or pa.types.is_run_end_encoded(t):
        return [t.value_type]
    return [t.field(i).type for i in range(t.num_fields)]


def is_rows(t: pa.DataType) -> bool:
    """Return whether cells of a core type are one-row Arrow IPC messages: nested types, and runs of them."""
    if pa.types.is_run_end_encoded(t):
        value = core(t.value_type)
        return pa.types.is_dictionary(value) or pa.types.is_run_end_encoded(value) or is_rows(value)
    return (
        pa.types.is_struct(t) or pa.types.is_union(t) or (t.num_fields > 0 and not pa.types.is_dictionary(t))
    )


def arrow_width(t: pa.DataType) -> int | None:
    """Return the bytes of each randomised cell if the type fixes them, otherwise None."""
    t = core(t)
    if is_rows(t):
        return None
    if pa.types.is_dictionary(t) or pa.types.is_run_end_encoded(t):
        return arrow_width(t.value_type)
    if pa.types.is_null(t):
        return 0
    if pa.types.is_boolean(t):
        return 1
    if t in VARIABLE:
        return None
    return t.bit_width // 8


def arrow_kind(entry: Any) -> str | None:
    """Return the kind of a deterministic column with this ``arrow`` entry; None if it cannot be one."""
    found = _kind(arrow_type(entry))
    return "uuid" if found == "bytes" and _is_foreign_uuid(entry) else found


def _is_foreign_uuid(entry: Any) -> bool:
    """Return whether this is Arrow's UUID type. pyarrow 17 does not know it and reads its storage type."""
    if not isinstance(entry, dict):
        return False
    metadata = _read_ipc(entry["ipc"]).metadata or {}
    return metadata.get(b"ARROW:extension:name") == b"arrow.uuid"


def _kind(t: pa.DataType) -> str | None:
    if isinstance(t, pa.BaseExtensionType) and t.extension_name == "arrow.uuid":
        return "uuid"
    t = core(t)
    if is_rows(t):
        return None
    if pa.types.is_dictionary(t) or pa.types.is_run_end_encoded(t):
        return _kind(t.value_type)
    if t in TEXT or pa.types.is_null(t):
        return "text"
    if t in VARIABLE or pa.types.is_fixed_size_binary(t):
        return "bytes"
    for kind, tests in _KINDS.items():
        if any(test(t) for test in tests):
            return "instant" if kind == "timestamp" and t.tz is not None else kind
    return None


def value_type(t: pa.DataType) -> pa.DataType:
    """Return the type of the values in the cells: below extensions, dictionaries and runs."""
    t = core(t)
    while pa.types.is_dictionary(t) or pa.types.is_run_end_encoded(t):
        t = core(t.value_type)
    return t
