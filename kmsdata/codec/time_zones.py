"""Convert time zone objects to JSON and back, so that the same class of object is restored.

=======================================  ============================================================
zone                                     object
=======================================  ============================================================
``["zoneinfo", name]``                   ``zoneinfo.ZoneInfo(name)``
``["pytz", name]``                       ``pytz.timezone(name)``
``["pytz-offset", minutes]``             ``pytz.FixedOffset(minutes)``
``["dateutil", name]``                   ``dateutil.tz.gettz(name)``
``["dateutil-utc"]``                     ``dateutil.tz.UTC``
``["dateutil-offset", name, seconds]``   ``dateutil.tz.tzoffset(name, seconds)``; name may be null
``["timezone", microseconds, name]``     ``datetime.timezone(offset, name)``; name null if not given
=======================================  ============================================================

A name is restored as the zone of that name on the reading machine, with that machine's rules.
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

# Zone names are passed to functions that open files (dateutil takes any path), so paths are excluded here.
ZONE = re.compile(r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*")


def malformed(what: str, *, column: str | None = None) -> FormatError:
    """Make the error of a header whose ``type`` does not match the grammar."""
    return FormatError(
        f"the header has a malformed or unknown column type ({what}). If a newer kmsdata wrote it, upgrade.",
        column=column,
        field="type",
    )


def zone_json(zone: dt.tzinfo | None) -> list[Any] | None:
    """Return the JSON of a time zone object; None if it is not one of the closed set.

    Example:
        >>> zone_json(zoneinfo.ZoneInfo("Europe/Berlin")), zone_json(dt.timezone.utc)
        (['zoneinfo', 'Europe/Berlin'], ['timezone', 0, None])
    """
    entry: list[Any] | None = None
    module, name = type(zone).__module__, type(zone).__name__
    if type(zone) is zoneinfo.ZoneInfo:
        entry = ["zoneinfo", zone.key]
    elif type(zone) is dt.timezone:
        parts: Any = zone  # no public attribute tells whether a name was given
        offset, *rest = parts.__getinitargs__()
        entry = ["timezone", offset // dt.timedelta(microseconds=1), rest[0] if rest else None]
    elif module.split(".")[0] == "pytz":
        made: Any = zone
        # FixedOffset has no public attribute for its minutes; its zone is None.
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
    """Return whether a zone read from a file equals the zone of that name: dateutil reads any file."""
    try:
        return zone_object(entry) == zone
    except UnsupportedTypeError:
        return False


def _dateutil_name(zone: Any) -> str:
    """Return the name of a zone that dateutil read from a file; before dateutil 3 only the path has it."""
    path = str(zone._filename)
    module = importlib.import_module("dateutil.tz")
    folders = getattr(module, "TZPATH", None) or importlib.import_module("dateutil.tz.tz").TZPATHS
    below = [path.removeprefix(f"{folder}/") for folder in folders if path.startswith(f"{folder}/")]
    return str(getattr(zone, "_key", None) or min(below, key=len, default=path))


def is_zone(entry: Any) -> bool:
    """Return whether this is the JSON of a time zone."""
    match entry:
        case ["zoneinfo" | "pytz" | "dateutil", str(name)]:
            return ZONE.fullmatch(name) is not None
        case ["pytz-offset", int(minutes)]:
            return type(minutes) is int and abs(minutes) < 1440  # type(): int() also matches True
        case ["dateutil-utc"]:
            return True
        case ["dateutil-offset", str() | None as name, int(seconds)]:
            return type(seconds) is int and abs(seconds) < 86400 and is_unicode(name or "")
        case ["timezone", int(offset), str() | None as name]:
            return type(offset) is int and abs(offset) < 86400 * 10**6 and is_unicode(name or "")
    return False


def is_unicode(text: str) -> bool:
    """Return whether UTF-8 can encode a text: it has no lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


# Cached, because every cell of a column of objects may have a zone.
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
    """Return the time zone object of its JSON.

    Raises:
        FormatError: it does not match the grammar.
        UnsupportedTypeError: this machine has no such zone, or pytz is not installed.
    """
    if not is_zone(entry):
        raise malformed("invalid time zone")
    try:
        return _zone(*entry)
    except (KeyError, ImportError, OSError, ValueError) as error:
        hint = "pip install pytz" if isinstance(error, ImportError) else "pip install tzdata"
        raise UnsupportedTypeError(
            f"time zone {entry[-1]!r} of {entry[0]} is not available on this machine. Run: {hint}",
            dtype=f"{entry[0]}",
        ) from None


def zone_name(entry: list[Any]) -> str | None:
    """Return the zone's name in an Arrow timestamp; None for offsets that are not whole minutes."""
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
