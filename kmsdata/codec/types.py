"""The closed grammar of a column's ``type``: what stands in the header, and what may not.

``type`` is a JSON object of text, integers, booleans, null, lists and objects, with one or both of two keys.
``arrow`` is the Arrow type whose cell encoding the column has (``arrow.py``); it is absent where there is
none. ``pandas`` is the pandas dtype of a column that comes from pandas.

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
``"timestamp[u]"`` ``"timestamp[u, tz=…]"``         u: s, ms, us or ns; all up to the last ``]``: the zone
``"duration[u]"`` ``"month_day_nano_interval"``     by their names
``{"ipc": base64}``                                 any other: the Arrow IPC schema message of a field "c"
==================================================  ==================================================

==================================================  ==================================================
``pandas``                                          dtype
==================================================  ==================================================
``{"numpy": "<i8"}``                                numpy: b1, i1-i8, u1-u8, f2-f8, c8, c16, M8[u], m8[u]
``{"masked": "Int64"}``                             Int8-64, UInt8-64, Float32, Float64, boolean
``{"string": [storage, na]}``                       storage "python" or "pyarrow", na "NA" or "nan"
``{"datetime": [u, zone]}``                         with a time zone (``zones.py``)
``{"period": "M"}``                                 pandas' own frequency text
``{"interval": [closed, dtype]}``                   closed: left, right, both, neither; dtype: numpy,
                                                    masked or datetime
``{"category": {"ordered": …, "values": type}}``    type: the whole ``type`` of the category list
``{"arrow": true}``                                 ArrowDtype of ``arrow``
``{"object": kind, "null": null}``                  kind: text, bytes, bool, int, date, uuid, decimal,
                                                    tagged; null, what a null is: None, NaN, NA, NaT
``{…, "object": "decimal", "exponent": -2}``        deterministic: the exponent that all cells share
==================================================  ==================================================

What is not ArrowDtype has the ``arrow`` that ``arrow_of`` gives it, or none: numpy, masked and datetime
columns the type of the same name, text ``"large_string"`` (a string dtype that came through Arrow: any of
Arrow's three, as their cells are the same), bytes ``"large_binary"``, objects that are dates ``"date32"``
and UUIDs ``"fixed_size_binary[16]"``. Complex numbers, periods, intervals, categories, zones
with odd seconds, decimal and tagged objects have none.

A registered extension type comes back as itself; one that is not registered as its storage type, as in Arrow.
"""

from __future__ import annotations

import base64
import binascii
import functools
import re
from typing import Any

import pyarrow as pa

from kmsdata.codec.time_zones import is_zone, malformed, zone_name
from kmsdata.errors import FormatError, UnsupportedTypeError

__all__ = [
    "MASKED",
    "arrow_of",
    "arrow_type",
    "check",
    "core",
    "inner",
    "is_rows",
    "kind_of",
    "label",
    "print_arrow",
    "retyped",
    "value_type",
    "width",
]

MASKED = {
    **{name: name.lower() for name in ("Int8", "Int16", "Int32", "Int64")},
    **{name: name.lower() for name in ("UInt8", "UInt16", "UInt32", "UInt64", "Float32", "Float64")},
    "boolean": "bool",
}
NUMPY = re.compile(r"\|b1|\|[iu]1|[<>](?:[iu][248]|f[248]|c8|c16|[mM]8\[(?:s|ms|us|ns)\])")
UNITS = ("s", "ms", "us", "ns")
OBJECTS = {  # kind of objects -> the Arrow type of the same cells
    "text": "large_string",
    "bytes": "large_binary",
    "bool": "bool",
    "int": "int64",
    "date": "date32",
    "uuid": "fixed_size_binary[16]",
    "decimal": None,
    "tagged": None,
}

_SIMPLE = {
    **{name: getattr(pa, name)() for name in ("null", "int8", "int16", "int32", "int64", "string", "binary")},
    **{name: getattr(pa, name)() for name in ("uint8", "uint16", "uint32", "uint64", "float16", "float32")},
    **{name: getattr(pa, name)() for name in ("float64", "large_string", "large_binary", "date32", "date64")},
    **{name: getattr(pa, name)() for name in ("string_view", "binary_view", "month_day_nano_interval")},
    "bool": pa.bool_(),
}
_NAMES = {t: name for name, t in _SIMPLE.items()}
_TEMPORAL = re.compile(r"(time32\[(?:s|ms)|time64\[(?:us|ns)|(?:timestamp|duration)\[(?:s|ms|us|ns))\]")
_ZONED = re.compile(r"timestamp\[(s|ms|us|ns), tz=(.+)\]", re.DOTALL)
_DECIMAL = re.compile(r"(decimal(?:32|64|128|256))\((\d{1,2}), (-?\d{1,3})\)")
_FIXED = re.compile(r"fixed_size_binary\[(\d{1,9})\]")


# --- Arrow types ----------------------------------------------------------------------------------


def print_arrow(t: pa.DataType) -> str | dict[str, str]:
    """The ``arrow`` entry of an Arrow type.

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
    return {"ipc": base64.b64encode(pa.schema([("c", t)]).serialize().to_pybytes()).decode("ascii")}


_BY_UNIT = {
    "time32": pa.types.is_time32,
    "time64": pa.types.is_time64,
    "timestamp": pa.types.is_timestamp,
    "duration": pa.types.is_duration,
}


def arrow_type(entry: Any) -> pa.DataType:
    """The Arrow type of an ``arrow`` entry.

    Raises:
        FormatError: the entry is not of the grammar.
        UnsupportedTypeError: the running pyarrow has no such type.

    Example:
        >>> arrow_type("decimal128(10, 2)")
        Decimal128Type(decimal128(10, 2))
    """
    if isinstance(entry, str):
        return _parse(entry)
    match entry:
        case {"ipc": str(text)} if len(entry) == 1:
            return _read_ipc(text)
    raise malformed("its Arrow type")


@functools.lru_cache(maxsize=1024)
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
        if make is None:
            raise UnsupportedTypeError(f"pyarrow {pa.__version__} has no {found[1]}: upgrade it", dtype=text)
        try:
            return make(int(found[2]), int(found[3]))
        except (ValueError, pa.ArrowException):
            raise malformed("precision and scale of a decimal") from None
    raise malformed("its Arrow type")


def _read_ipc(text: str) -> pa.DataType:
    try:
        raw = base64.b64decode(text, validate=True)
        schema = pa.ipc.read_schema(pa.py_buffer(raw))
    except (binascii.Error, ValueError, TypeError, OSError, KeyError, pa.ArrowException):
        raise malformed("the IPC schema of its Arrow type") from None
    if schema.names != ["c"]:
        raise malformed("the IPC schema of its Arrow type")
    return schema.field(0).type


def core(t: pa.DataType) -> pa.DataType:
    """The type below extension types, which decides the cells."""
    while isinstance(t, pa.BaseExtensionType):
        t = t.storage_type
    return t


def inner(t: pa.DataType) -> list[pa.DataType]:
    """The types directly inside a type."""
    if isinstance(t, pa.BaseExtensionType):
        return [t.storage_type]
    if pa.types.is_dictionary(t) or pa.types.is_run_end_encoded(t):
        return [t.value_type]
    return [t.field(i).type for i in range(t.num_fields)]


def is_rows(t: pa.DataType) -> bool:
    """Whether the cells of a core type are one-row Arrow IPC messages: nested types, and runs of such."""
    if pa.types.is_run_end_encoded(t):
        value = core(t.value_type)
        return pa.types.is_dictionary(value) or pa.types.is_run_end_encoded(value) or is_rows(value)
    return (
        pa.types.is_struct(t) or pa.types.is_union(t) or (t.num_fields > 0 and not pa.types.is_dictionary(t))
    )


def _arrow_width(t: pa.DataType) -> int | None:
    t = core(t)
    if is_rows(t):
        return None
    if pa.types.is_dictionary(t) or pa.types.is_run_end_encoded(t):
        return _arrow_width(t.value_type)
    if pa.types.is_null(t):
        return 0
    if pa.types.is_boolean(t):
        return 1
    if t in _VARIABLE:
        return None
    return t.bit_width // 8


_TEXT = {pa.string(), pa.large_string(), pa.string_view()}
_VARIABLE = _TEXT | {pa.binary(), pa.large_binary(), pa.binary_view()}


def _arrow_kind(t: pa.DataType) -> str | None:
    if isinstance(t, pa.BaseExtensionType) and t.extension_name == "arrow.uuid":
        return "uuid"
    t = core(t)
    if is_rows(t):
        return None
    if pa.types.is_dictionary(t) or pa.types.is_run_end_encoded(t):
        return _arrow_kind(t.value_type)
    if t in _TEXT or pa.types.is_null(t):
        return "text"
    if t in _VARIABLE or pa.types.is_fixed_size_binary(t):
        return "bytes"
    for kind, tests in _KINDS.items():
        if any(test(t) for test in tests):
            return kind
    return None


_KINDS = {
    "bool": (pa.types.is_boolean,),
    "int": (pa.types.is_signed_integer,),
    "uint": (pa.types.is_unsigned_integer,),
    "timestamp": (pa.types.is_timestamp,),
    "date": (pa.types.is_date,),
    "decimal": (pa.types.is_decimal,),
    "tagged": (pa.types.is_time, pa.types.is_duration),
}


# --- the whole type -------------------------------------------------------------------------------


def arrow_of(pandas: dict[str, Any]) -> str | None:
    """The ``arrow`` entry of a ``pandas`` entry (not ArrowDtype): the type with the same cells."""
    match pandas:
        case {"numpy": str(code)}:
            kind, size = code[1], code[2:]
            if kind in "mM":
                return ("timestamp" if kind == "M" else "duration") + size[1:]
            if kind in "bc":
                return "bool" if kind == "b" else None
            return {"i": "int", "u": "uint", "f": "float"}[kind] + str(8 * int(size))
        case {"masked": str(name)}:
            return MASKED[name]
        case {"string": _}:
            return "large_string"
        case {"datetime": [unit, zone]}:
            written = zone_name(zone)
            return None if written is None else f"timestamp[{unit}, tz={written}]"
        case {"object": str(kind)}:
            return OBJECTS[kind]
    return None


def _fit(arrow: Any, pandas: dict[str, Any]) -> bool:
    """Whether a column of this ``arrow`` entry and this ``pandas`` entry can be: its cells are both's."""
    return arrow == arrow_of(pandas) or ("string" in pandas and arrow in ("string", "string_view"))


def retyped(arrow: dict[str, Any], pandas: dict[str, Any]) -> dict[str, Any] | None:
    """The ``type`` of an Arrow column that pandas made of a column of that ``type``; None if it cannot be.

    Example:
        >>> retyped({"arrow": "string"}, {"arrow": "large_string", "pandas": {"string": ["python", "NA"]}})
        {'arrow': 'string', 'pandas': {'string': ['python', 'NA']}}
    """
    if "pandas" not in pandas or "arrow" not in arrow or "arrow" not in pandas:
        return None
    if pandas["arrow"] == arrow["arrow"]:
        return dict(pandas)
    return {**pandas, **arrow} if _fit(arrow["arrow"], pandas["pandas"]) else None


def _is_dtype(entry: Any) -> bool:
    """Whether this is a ``pandas`` entry (the categories of a category are checked by themselves)."""
    if not isinstance(entry, dict):
        return False
    match entry:
        case {"numpy": str(code)} if len(entry) == 1:
            return NUMPY.fullmatch(code) is not None
        case {"masked": str(name)} if len(entry) == 1:
            return name in MASKED
        case {"string": ["python" | "pyarrow", "NA" | "nan"]} if len(entry) == 1:
            return True
        case {"datetime": [unit, zone]} if len(entry) == 1:
            return unit in UNITS and is_zone(zone)
        case {"period": str(name)} if len(entry) == 1:
            return re.fullmatch(r"[A-Za-z0-9-]{1,32}", name) is not None
        case {"interval": ["left" | "right" | "both" | "neither", sub]} if len(entry) == 1:
            return _is_endpoint(sub) and _is_dtype(sub)
        case {"category": {"ordered": bool(), "values": dict()} as spec} if len(entry) == 1:
            return len(spec) == 2 and "pandas" in spec["values"]
        case {"arrow": True} if len(entry) == 1:
            return entry["arrow"] is True
        case {"object": "decimal", "exponent": int(exponent), "null": "None" | "NaN" | "NA" | "NaT"}:
            return len(entry) == 3 and type(exponent) is int and abs(exponent) <= 1000
        case {"object": str(kind), "null": "None" | "NaN" | "NA" | "NaT"} if len(entry) == 2:
            return kind in OBJECTS
    return False


def _is_endpoint(sub: Any) -> bool:
    match sub:
        case {"numpy": str(code)}:
            return code[1:2] in "iufmM"
        case {"masked": str(name)}:
            return name != "boolean"
        case {"datetime": _}:
            return True
    return False


def check(type: dict[str, Any], kind: str | None = None) -> None:  # noqa: A002 - the header's own word
    """Check the ``type`` of a header, and its ``kind``, before anything is done with them.

    Args:
        type: the header's ``type``.
        kind: the header's ``kind``, None for a randomised column.

    Raises:
        FormatError: malformed, unknown, or of another kind; ``field`` is "type" or "kind".
        UnsupportedTypeError: well-formed, but the running pyarrow has no such type.

    Example:
        >>> check({"arrow": "int64", "pandas": {"masked": "Int64"}}, "int")
    """
    if not isinstance(type, dict) or not type or not set(type) <= {"arrow", "pandas"}:
        raise malformed("its keys")
    if "arrow" in type:
        t = arrow_type(type["arrow"])
        if isinstance(type["arrow"], str) and print_arrow(t) != type["arrow"]:
            raise malformed("its Arrow type is not as it would be written")
    if "pandas" in type:
        pandas = type["pandas"]
        if not _is_dtype(pandas):
            raise malformed("its pandas dtype")
        if ("arrow" in type) if "arrow" not in pandas and arrow_of(pandas) is None else "arrow" not in type:
            raise malformed("its keys")
        if "arrow" not in pandas and not _fit(type.get("arrow"), pandas):
            raise malformed("its Arrow type is not that of its pandas dtype")
        if "category" in pandas:
            check(pandas["category"]["values"], kind)
            if "category" in pandas["category"]["values"].get("pandas", {}):
                raise malformed("categories of categories")
        if pandas.get("object") == "decimal" and ("exponent" in pandas) != (kind is not None):
            raise malformed("the exponent of its decimals")
    if kind is not None and (not isinstance(kind, str) or kind != kind_of(type)):
        raise FormatError("a kind that is not that of the column type", field="kind")


def kind_of(type: dict[str, Any]) -> str | None:  # noqa: A002
    """The kind of a deterministic column of this type, None where it cannot be one (floats, nested types)."""
    match type.get("pandas"):
        case {"category": {"values": values}}:
            return kind_of(values)
        case {"object": str(kind)}:
            return kind
        case {"period": _}:
            return "tagged"
        case {"datetime": _}:
            return "timestamp"
        case {"interval": [_, sub]}:
            return None if arrow_of(sub) in ("float32", "float64") else "tagged"
    if "arrow" not in type:
        return None
    found = _arrow_kind(arrow_type(type["arrow"]))
    return "uuid" if found == "bytes" and _is_foreign_uuid(type["arrow"]) else found


def _is_foreign_uuid(entry: Any) -> bool:
    """Whether this is Arrow's UUID type, which older pyarrow sees as its storage."""
    if not isinstance(entry, dict):
        return False
    raw = base64.b64decode(entry["ipc"])
    metadata = pa.ipc.read_schema(pa.py_buffer(raw)).field(0).metadata or {}
    return metadata.get(b"ARROW:extension:name") == b"arrow.uuid"


def width(type: dict[str, Any], kind: str | None = None) -> int | None:  # noqa: A002
    """Bytes of each cell where all are equally long by type alone, else None.

    Args:
        type: the header's ``type``, checked.
        kind: the header's ``kind``, None for a randomised column.

    Example:
        >>> width({"arrow": "int16"}), width({"arrow": "int16"}, "int"), width({"arrow": "string"})
        (2, 8, None)
    """
    pandas = type.get("pandas", {})
    if "category" in pandas:
        return width(pandas["category"]["values"], kind)
    if kind in ("int", "uint", "timestamp"):
        return 8
    if kind in ("date", "decimal"):
        return 4 if kind == "date" else None
    if kind == "tagged" and ("arrow" in type or "period" in pandas):
        t = None if "arrow" not in type else value_type(arrow_type(type["arrow"]))
        return 9 + (len(pandas["period"]) if t is None else 2 * pa.types.is_duration(t))
    match pandas:
        case {"numpy": str(code)}:
            return int(re.sub(r"\[.*", "", code[2:]))
        case {"datetime": _} | {"period": _}:
            return 8
        case {"interval": [_, sub]}:
            each = width({"pandas": sub, "arrow": arrow_of(sub)})
            if each is None:
                return None
            if kind is None:
                return 2 * each
            return next(
                (n for name, n in _INTERVAL.items() if name in str(arrow_of(sub))), _INTERVAL["timestamp"]
            )
    return _arrow_width(arrow_type(type["arrow"])) if "arrow" in type else None


_INTERVAL = {"int": 28, "duration": 32, "timestamp": 52}  # deterministic: two tagged ends, see tags.py


def value_type(t: pa.DataType) -> pa.DataType:
    """The type of the values in the cells: below extensions, dictionaries and runs."""
    t = core(t)
    while pa.types.is_dictionary(t) or pa.types.is_run_end_encoded(t):
        t = core(t.value_type)
    return t


def label(type: Any) -> str:  # noqa: A002
    """A short name of a type for people. Never raises, whatever it is given.

    Example:
        >>> label({"arrow": "timestamp[ns, tz=UTC]", "pandas": {"datetime": ["ns", ["zoneinfo", "UTC"]]}})
        'timestamp[ns, UTC]'
        >>> label({"arrow": "large_string", "pandas": {"string": ["pyarrow", "nan"]}}), label(["?"])
        ('str', 'unknown')
    """
    try:
        return _label(type)[:100]
    except (
        KeyError,
        ValueError,
        TypeError,
        IndexError,
        AttributeError,
        RecursionError,
        UnsupportedTypeError,
    ):
        return "unknown"


def _label(entry: Any) -> str:
    match entry.get("pandas"):
        case {"numpy": str(code)} if code[1] == "c":
            return f"complex{8 * int(code[2:])}"
        case {"masked": str(name)} | {"object": str(name)}:
            return name if "masked" in entry["pandas"] else f"object ({name})"
        case {"string": [_, str(na)]}:
            return "str" if na == "nan" else "string"
        case {"datetime": [str(unit), list(zone)]}:
            return f"timestamp[{unit}, {zone_name(zone) or zone[0]}]"
        case {"period": str(name)}:
            return f"period[{name}]"
        case {"interval": [str(closed), dict(sub)]}:
            return f"interval[{_label({'pandas': sub, 'arrow': arrow_of(sub)})}, {closed}]"
        case {"category": _}:
            return "category"
    t = entry["arrow"]
    return str(arrow_type(t)) if isinstance(t, dict) else str(t).replace("tz=", "")
