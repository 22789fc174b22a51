"""The closed grammar of a column's ``type``: what stands in the header, and what may not.

``type`` is a JSON object of text, integers, booleans, null, lists and objects, with one or both of two keys.
``arrow`` is the Arrow type whose cell encoding the column has; it is absent where there is none.
``pandas`` is the pandas dtype of a column that comes from pandas.

======================================================  ==================================================
``arrow``                                               Arrow type
======================================================  ==================================================
``"null"`` ``"bool"`` ``"int8"`` … ``"uint64"``         by their names
``"float16"`` ``"float32"`` ``"float64"``               half float, float, double
``"string"`` ``"large_string"`` ``"string_view"``       text, UTF-8
``"binary"`` ``"large_binary"`` ``"binary_view"``       bytes
``"fixed_size_binary[n]"``                              bytes, n each
``"decimal32(p, s)"`` …64, …128, …256                   decimals of precision p and scale s
``"date32"`` ``"date64"``                               days; milliseconds
``"time32[s|ms]"`` ``"time64[us|ns]"``                  time of day
``"timestamp[u]"`` ``"timestamp[u, tz=…]"``             u is s, ms, us or ns; the rest up to ``]`` is the zone
``"duration[u]"`` ``"month_day_nano_interval"``         by their names
``{"ipc": base64}``                                     any other: the Arrow IPC schema message of one field "c"
======================================================  ==================================================

======================================================  ==================================================
``pandas``                                              dtype
======================================================  ==================================================
``{"numpy": "<i8"}``                                    numpy: b1, i1-i8, u1-u8, f2-f8, c8, c16, M8[u], m8[u]
``{"masked": "Int64"}``                                 Int8-64, UInt8-64, Float32, Float64, boolean
``{"string": [storage, na]}``                           storage "python" or "pyarrow", na "NA" or "nan"
``{"datetime": [u, zone]}``                             with a time zone (next table)
``{"period": "M"}``                                     pandas' own frequency text
``{"interval": [closed, dtype]}``                       closed is left, right, both or neither
``{"category": {"ordered": …, "values": type}}``        type is the whole ``type`` of the category list
``{"arrow": true}``                                     ArrowDtype of ``arrow``
``{"object": kind, "null": null}``                      kind text, bytes, bool, int, date, uuid, decimal, tagged;
                                                        null (what a null cell is) None, NaN, NA or NaT
``{… "object": "decimal", "exponent": -2}``             deterministic: the exponent that all cells share
======================================================  ==================================================

=======================================  =================================================================
zone                                     object
=======================================  =================================================================
``["zoneinfo", name]``                   ``zoneinfo.ZoneInfo(name)``
``["pytz", name]``                       ``pytz.timezone(name)``
``["pytz-offset", minutes]``             ``pytz.FixedOffset(minutes)``
``["dateutil", name]``                   ``dateutil.tz.gettz(name)``
``["dateutil-utc"]``                     ``dateutil.tz.UTC``
``["dateutil-offset", name, seconds]``   ``dateutil.tz.tzoffset(name, seconds)``
``["timezone", microseconds, name]``     ``datetime.timezone(offset, name)``; name null where none was given
=======================================  =================================================================
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import functools
import importlib
import re
import zoneinfo
from typing import Any

import pyarrow as pa

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
    "value_type",
    "width",
    "zone_json",
    "zone_object",
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
# Zone names reach functions that open files (dateutil takes any path), so their form is fixed here.
ZONE = re.compile(r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*")

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


def malformed(what: str, *, column: str | None = None) -> FormatError:
    """The error of a header whose ``type`` is not of this grammar."""
    return FormatError(f"malformed or unknown column type: {what}", column=column, field="type")


# --- Arrow types ---------------------------------------------------------------------------------------------


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


@functools.lru_cache(maxsize=1024)
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
    return not pa.types.is_dictionary(t) and t.num_fields > 0 or pa.types.is_struct(t) or pa.types.is_union(t)


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


# --- time zones ----------------------------------------------------------------------------------------------


def zone_json(zone: dt.tzinfo | None) -> list[Any] | None:
    """The JSON of a time zone object; None if it is not one of the closed set.

    Example:
        >>> zone_json(zoneinfo.ZoneInfo("Europe/Berlin")), zone_json(dt.timezone.utc)
        (['zoneinfo', 'Europe/Berlin'], ['timezone', 0, None])
    """
    entry: list[Any] | None = None
    module, name = type(zone).__module__, type(zone).__name__
    if type(zone) is zoneinfo.ZoneInfo:
        entry = ["zoneinfo", zone.key]
    elif type(zone) is dt.timezone:
        offset, *rest = zone.__reduce__()[1]
        entry = ["timezone", offset // dt.timedelta(microseconds=1), rest[0] if rest else None]
    elif module.split(".")[0] == "pytz":
        made: Any = zone
        entry = ["pytz-offset", made._minutes] if made.zone is None else ["pytz", str(made.zone)]
    elif module.startswith("dateutil.tz."):
        made = zone
        if name == "tzutc":
            entry = ["dateutil-utc"]
        elif name == "tzoffset":
            entry = ["dateutil-offset", made._name, made.utcoffset(None) // dt.timedelta(seconds=1)]
        elif name == "tzfile":
            entry = ["dateutil", _dateutil_name(made)]
    return entry if _is_zone(entry) else None


def _dateutil_name(zone: Any) -> str:
    """The name of a zone that dateutil read from a file; before dateutil 3 only the file says it."""
    path = str(zone._filename)
    module = importlib.import_module("dateutil.tz")
    folders = getattr(module, "TZPATH", None) or importlib.import_module("dateutil.tz.tz").TZPATHS
    below = [path.removeprefix(f"{folder}/") for folder in folders if path.startswith(f"{folder}/")]
    return str(getattr(zone, "_key", None) or min(below, key=len, default=path))


def _is_zone(entry: Any) -> bool:
    match entry:
        case ["zoneinfo" | "pytz" | "dateutil", str(name)]:
            return ZONE.fullmatch(name) is not None
        case ["pytz-offset", int(minutes)]:
            return type(minutes) is int and abs(minutes) < 1440
        case ["dateutil-utc"]:
            return True
        case ["dateutil-offset", str() | None as name, int(seconds)]:
            return type(seconds) is int and abs(seconds) < 86400 and _is_text(name or "")
        case ["timezone", int(offset), str() | None as name]:
            return type(offset) is int and abs(offset) < 86400 * 10**6 and _is_text(name or "")
    return False


def _is_text(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


@functools.lru_cache(maxsize=256)
def _zone(kind: str, *args: Any) -> dt.tzinfo:
    if kind == "zoneinfo":
        return zoneinfo.ZoneInfo(args[0])
    if kind == "timezone":
        offset = dt.timedelta(microseconds=args[0])
        return dt.timezone(offset) if args[1] is None else dt.timezone(offset, args[1])
    if kind.startswith("pytz"):
        pytz = importlib.import_module("pytz")
        made: dt.tzinfo = pytz.timezone(args[0]) if kind == "pytz" else pytz.FixedOffset(args[0])
        return made
    dateutil = importlib.import_module("dateutil.tz")
    made = (
        dateutil.UTC
        if kind == "dateutil-utc"
        else dateutil.gettz(args[0])
        if kind == "dateutil"
        else dateutil.tzoffset(*args)
    )
    if kind == "dateutil" and not isinstance(made, dateutil.tzfile):
        raise KeyError(args[0])
    return made


def zone_object(entry: Any) -> dt.tzinfo:
    """The time zone object of its JSON.

    Raises:
        FormatError: not of the grammar.
        UnsupportedTypeError: this machine has no such zone, or lacks pytz.
    """
    if not _is_zone(entry):
        raise malformed("its time zone")
    try:
        return _zone(*entry)
    except (KeyError, ImportError, OSError, ValueError) as error:
        hint = "pip install pytz" if isinstance(error, ImportError) else "pip install tzdata"
        raise UnsupportedTypeError(
            f"this machine has no time zone {entry[-1]!r} of {entry[0]}: {hint}", dtype=f"{entry[0]}"
        ) from None


def _zone_name(entry: list[Any]) -> str | None:
    """The zone's name in an Arrow timestamp, or None where Arrow has none (offsets of odd seconds)."""
    match entry:
        case ["zoneinfo" | "pytz" | "dateutil", str(name)]:
            return name
        case ["pytz-offset", int(minutes)]:
            seconds = minutes * 60
        case ["dateutil-offset", _, int(seconds)]:
            pass
        case ["timezone", int(micros), _]:
            if micros % 10**6:
                return None
            seconds = micros // 10**6
        case _:
            return "UTC"
    if seconds % 60:
        return None
    sign, minutes = "-" if seconds < 0 else "+", abs(seconds) // 60
    return f"{sign}{minutes // 60:02}:{minutes % 60:02}" if minutes else "UTC"


# --- the whole type ------------------------------------------------------------------------------------------


def arrow_of(pandas: dict[str, Any]) -> str | None:
    """The ``arrow`` entry that goes with a ``pandas`` entry (but ArrowDtype): the type with the same cells."""
    match pandas:
        case {"numpy": str(code)}:
            kind, size = code[1], code[2:]
            if kind in "mM":
                return ("timestamp" if kind == "M" else "duration") + size[1:]
            names = {"b": "bool", "i": "int", "u": "uint", "f": "float"}
            return None if kind == "c" else names[kind] + ("" if kind == "b" else str(8 * int(size)))
        case {"masked": str(name)}:
            return MASKED[name]
        case {"string": _}:
            return "large_string"
        case {"datetime": [unit, zone]}:
            name = _zone_name(zone)
            return None if name is None else f"timestamp[{unit}, tz={name}]"
        case {"object": str(kind)}:
            return OBJECTS[kind]
    return None


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
            return unit in UNITS and _is_zone(zone)
        case {"period": str(name)} if len(entry) == 1:
            return re.fullmatch(r"[A-Za-z0-9-]{1,32}", name) is not None
        case {"interval": ["left" | "right" | "both" | "neither", sub]} if len(entry) == 1:
            return _is_dtype(sub) and _is_endpoint(sub)
        case {"category": {"ordered": bool(), "values": dict()} as spec} if len(entry) == 1:
            return len(spec) == 2 and "pandas" in spec["values"]
        case {"arrow": True} if len(entry) == 1:
            return entry["arrow"] is True
        case {"object": "decimal", "exponent": int(exponent), "null": "None" | "NaN" | "NA" | "NaT"}:
            return len(entry) == 3 and type(exponent) is int and abs(exponent) <= 1000
        case {"object": str(kind), "null": "None" | "NaN" | "NA" | "NaT"} if len(entry) == 2:
            return kind in OBJECTS
    return False


def _is_endpoint(sub: dict[str, Any]) -> bool:
    match sub:
        case {"numpy": str(code)}:
            return code[1] in "iufmM"
        case {"masked": str(name)}:
            return name != "boolean"
    return "datetime" in sub


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
        arrow_type(type["arrow"])
    if "pandas" in type:
        pandas = type["pandas"]
        if not _is_dtype(pandas):
            raise malformed("its pandas dtype")
        if ("arrow" in type) if "arrow" not in pandas and arrow_of(pandas) is None else "arrow" not in type:
            raise malformed("its keys")
        if "arrow" not in pandas and type.get("arrow") != arrow_of(pandas):
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
    return _arrow_kind(arrow_type(type["arrow"])) if "arrow" in type else None


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


_INTERVAL = {"int": 28, "duration": 32, "timestamp": 52}  # deterministic: two tagged ends, see objects.py


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
            return f"timestamp[{unit}, {_zone_name(zone) or zone[0]}]"
        case {"period": str(name)}:
            return f"period[{name}]"
        case {"interval": [str(closed), dict(sub)]}:
            return f"interval[{_label({'pandas': sub, 'arrow': arrow_of(sub)})}, {closed}]"
        case {"category": _}:
            return "category"
    t = entry["arrow"]
    return str(arrow_type(t)) if isinstance(t, dict) else str(t).replace("tz=", "")
