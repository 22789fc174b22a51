"""The closed grammar of a column's ``type`` in its header: everything else is rejected.

``type`` is a JSON object of text, integers, booleans, null, lists and objects, with one or both of two keys.
``arrow`` is the Arrow type whose cell encoding the column has (entry: ``arrow_types.py``, cells:
``arrow_arrays.py``); it is absent if there is none. ``pandas`` is the pandas dtype of a column that comes
from pandas.

==================================================  ==================================================
``pandas``                                          dtype
==================================================  ==================================================
``{"numpy": "<i8"}``                                numpy: b1, i1-i8, u1-u8, f2-f8, c8, c16, M8[u], m8[u]
``{"masked": "Int64"}``                             Int8-64, UInt8-64, Float32, Float64, boolean
``{"string": [storage, na]}``                       storage "python" or "pyarrow", na "NA" or "nan"
``{"datetime": [u, zone]}``                         with a time zone (``time_zones.py``)
``{"period": "M"}``                                 the frequency as pandas writes it
``{"interval": [closed, dtype]}``                   closed: left, right, both, neither; dtype: numpy,
                                                    masked or datetime
``{"category": {"ordered": …, "values": type}}``    type: the whole ``type`` of the category list
``{"arrow": true}``                                 ArrowDtype of ``arrow``
``{"object": kind, "null": null}``                  kind: text, bytes, bool, int, date, uuid, decimal,
                                                    tagged; null, the null value: None, NaN, NA, NaT
``{…, "object": "decimal", "exponent": -2}``        deterministic: the exponent that all cells share
==================================================  ==================================================

For a dtype that is not ArrowDtype, ``arrow`` is what ``arrow_of`` returns: the type of the same name for
numpy, masked and datetime columns, ``"large_string"`` for text (for a string dtype that came through Arrow,
any of Arrow's three string types: their cells are the same), ``"large_binary"`` for bytes, ``"date32"`` for
date objects and ``"fixed_size_binary[16]"`` for UUID objects. There is no ``arrow`` for complex numbers,
periods, intervals, categories, zones whose offset is not whole minutes, decimal objects and tagged objects.
"""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa

from kmsdata.codec.arrow_types import arrow_kind, arrow_type, arrow_width, print_arrow, value_type
from kmsdata.codec.time_zones import is_zone, malformed, zone_name
from kmsdata.errors import FormatError, UnsupportedTypeError

__all__ = ["MASKED", "UNITS", "arrow_of", "check", "kind_of", "label", "retyped", "width"]

MASKED = {
    **{name: name.lower() for name in ("Int8", "Int16", "Int32", "Int64")},
    **{name: name.lower() for name in ("UInt8", "UInt16", "UInt32", "UInt64", "Float32", "Float64")},
    "boolean": "bool",
}
NUMPY = re.compile(r"\|b1|\|[iu]1|[<>](?:[iu][248]|f[248]|c8|c16|[mM]8\[(?:s|ms|us|ns)\])")
UNITS = ("s", "ms", "us", "ns")
OBJECTS = {  # kind of objects -> the Arrow type with the same cells
    "text": "large_string",
    "bytes": "large_binary",
    "bool": "bool",
    "int": "int64",
    "date": "date32",
    "uuid": "fixed_size_binary[16]",
    "decimal": None,
    "tagged": None,
}


def arrow_of(pandas: dict[str, Any]) -> str | None:
    """Return the ``arrow`` entry of a ``pandas`` entry (not ArrowDtype): the type with the same cells."""
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
    """Return whether an ``arrow`` and a ``pandas`` entry match: both types have the same cells."""
    return arrow == arrow_of(pandas) or ("string" in pandas and arrow in ("string", "string_view"))


def retyped(arrow: dict[str, Any], pandas: dict[str, Any]) -> dict[str, Any] | None:
    """Combine the ``type`` of an Arrow column with that of its pandas column; None if impossible.

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
    """Return whether this is a ``pandas`` entry (the type of a category list is checked separately)."""
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
    """Check the ``type`` and the ``kind`` of a header; call this before they are used.

    Args:
        type: the header's ``type``.
        kind: the header's ``kind``, None for a randomised column.

    Raises:
        FormatError: malformed, unknown, or of another kind; ``field`` is "type" or "kind".
        UnsupportedTypeError: well-formed, but the installed pyarrow has no such type.

    Example:
        >>> check({"arrow": "int64", "pandas": {"masked": "Int64"}}, "int")
    """
    if not isinstance(type, dict) or not type or not set(type) <= {"arrow", "pandas"}:
        raise malformed("missing or unknown keys")
    if "arrow" in type:
        t = arrow_type(type["arrow"])
        # One type must have one text, so that equal types have equal headers.
        if isinstance(type["arrow"], str) and print_arrow(t) != type["arrow"]:
            raise malformed("the Arrow type is not in canonical form")
    if "pandas" in type:
        pandas = type["pandas"]
        if not _is_dtype(pandas):
            raise malformed("invalid pandas dtype")
        if ("arrow" in type) if "arrow" not in pandas and arrow_of(pandas) is None else "arrow" not in type:
            raise malformed("missing or unknown keys")
        if "arrow" not in pandas and not _fit(type.get("arrow"), pandas):
            raise malformed("the Arrow type does not match the pandas dtype")
        if "category" in pandas:
            check(pandas["category"]["values"], kind)
            if "category" in pandas["category"]["values"].get("pandas", {}):
                raise malformed("a category list cannot itself be categorical")
        # Deterministic cells have no trailing zeros: only the exponent can restore them.
        if pandas.get("object") == "decimal" and ("exponent" in pandas) != (kind is not None):
            raise malformed("missing or unexpected exponent of decimals")
    if kind is not None and (not isinstance(kind, str) or kind != kind_of(type)):
        raise FormatError("the header is malformed: the kind does not match the column type", field="kind")


def kind_of(type: dict[str, Any]) -> str | None:  # noqa: A002
    """Return the kind of a deterministic column of this type; None if impossible (floats, nested types)."""
    match type.get("pandas"):
        case {"category": {"values": values}}:
            return kind_of(values)
        case {"object": str(kind)}:
            return kind
        case {"period": _}:
            return "tagged"
        case {"datetime": _}:
            return "instant"
        case {"interval": [_, sub]}:
            return None if arrow_of(sub) in ("float32", "float64") else "tagged"
    if "arrow" not in type:
        return None
    return arrow_kind(type["arrow"])


def width(type: dict[str, Any], kind: str | None = None) -> int | None:  # noqa: A002
    """Return the bytes of each cell if the type fixes them, otherwise None.

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
    if kind in ("int", "uint", "timestamp", "instant"):
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
            if "datetime" in sub:
                return _INTERVAL["instant"]
            return next(n for name, n in _INTERVAL.items() if name in str(arrow_of(sub)))
    return arrow_width(arrow_type(type["arrow"])) if "arrow" in type else None


# Bytes of a deterministic interval: 2 + 2 * (4 + bytes of a tagged end), see tagged_objects.py.
_INTERVAL = {"int": 28, "duration": 32, "timestamp": 52, "instant": 82}


def label(type: Any) -> str:  # noqa: A002
    """Return a short name of a type for messages and reports. Never raises, for any argument.

    Example:
        >>> label({"arrow": "timestamp[ns, tz=UTC]", "pandas": {"datetime": ["ns", ["zoneinfo", "UTC"]]}})
        'timestamp[ns, UTC]'
        >>> label({"arrow": "large_string", "pandas": {"string": ["pyarrow", "nan"]}}), label(["?"])
        ('str', 'unknown')
    """
    try:
        return _label(type)[:100]
    except (  # a label is made before the type is checked, also for messages about malformed types
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
