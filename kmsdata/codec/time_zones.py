"""Time zone objects <-> JSON, so that the very kind of object comes back.

=======================================  ============================================================
zone                                     object
=======================================  ============================================================
``["zoneinfo", name]``                   ``zoneinfo.ZoneInfo(name)``
``["pytz", name]``                       ``pytz.timezone(name)``
``["pytz-offset", minutes]``             ``pytz.FixedOffset(minutes)``
``["dateutil", name]``                   ``dateutil.tz.gettz(name)``
``["dateutil-utc"]``                     ``dateutil.tz.UTC``
``["dateutil-offset", name, seconds]``   ``dateutil.tz.tzoffset(name, seconds)``; name may be null
``["timezone", microseconds, name]``     ``datetime.timezone(offset, name)``; name null where none is given
=======================================  ============================================================

A name comes back as the zone that the reading machine knows by it, with that machine's rules.
"""

from __future__ import annotations

import datetime as dt
import functools
import importlib
import re
import zoneinfo
from typing import Any

from kmsdata.errors import FormatError, UnsupportedTypeError

__all__ = ["is_unicode", "is_zone", "malformed", "zone_json", "zone_name", "zone_object"]

# Zone names reach functions that open files (dateutil takes any path), so their form is fixed here.
ZONE = re.compile(r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*")


def malformed(what: str, *, column: str | None = None) -> FormatError:
    """The error of a header whose ``type`` is not of this grammar."""
    return FormatError(f"malformed or unknown column type: {what}", column=column, field="type")


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
        parts: Any = zone
        offset, *rest = parts.__getinitargs__()
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
    if entry is None or not is_zone(entry):
        return None
    return None if entry[0] == "dateutil" and not _is_named(entry, zone) else entry


def _is_named(entry: list[Any], zone: dt.tzinfo | None) -> bool:
    """Whether a zone read from a file is the one of that name: it may have been any file."""
    try:
        return zone_object(entry) == zone
    except UnsupportedTypeError:
        return False


def _dateutil_name(zone: Any) -> str:
    """The name of a zone that dateutil read from a file; before dateutil 3 only the file says it."""
    path = str(zone._filename)
    module = importlib.import_module("dateutil.tz")
    folders = getattr(module, "TZPATH", None) or importlib.import_module("dateutil.tz.tz").TZPATHS
    below = [path.removeprefix(f"{folder}/") for folder in folders if path.startswith(f"{folder}/")]
    return str(getattr(zone, "_key", None) or min(below, key=len, default=path))


def is_zone(entry: Any) -> bool:
    """Whether this is the JSON of a time zone."""
    match entry:
        case ["zoneinfo" | "pytz" | "dateutil", str(name)]:
            return ZONE.fullmatch(name) is not None
        case ["pytz-offset", int(minutes)]:
            return type(minutes) is int and abs(minutes) < 1440
        case ["dateutil-utc"]:
            return True
        case ["dateutil-offset", str() | None as name, int(seconds)]:
            return type(seconds) is int and abs(seconds) < 86400 and is_unicode(name or "")
        case ["timezone", int(offset), str() | None as name]:
            return type(offset) is int and abs(offset) < 86400 * 10**6 and is_unicode(name or "")
    return False


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can encode a text: it has no lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


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
    if not is_zone(entry):
        raise malformed("its time zone")
    try:
        return _zone(*entry)
    except (KeyError, ImportError, OSError, ValueError) as error:
        hint = "pip install pytz" if isinstance(error, ImportError) else "pip install tzdata"
        raise UnsupportedTypeError(
            f"this machine has no time zone {entry[-1]!r} of {entry[0]}: {hint}", dtype=f"{entry[0]}"
        ) from None


def zone_name(entry: list[Any]) -> str | None:
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
