"""Remove what other software wrote about a column from a file's metadata, and put it back.

Two entries say things about columns that encryption must change: Spark's schema (types, and metadata that
may list values) and GeoParquet's ``geo`` (the bounding box). Documents are changed as text, so that all other
bytes of them stay.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from kmsdata.errors import CallerValueError, FormatError

__all__ = [
    "GEO",
    "SPARK",
    "SPARK_COLUMN_ENTRY",
    "restored",
    "spark_column_headers",
    "without_columns",
    "without_spark_headers",
]

SPARK = b"org.apache.spark.sql.parquet.row.metadata"
SPARK_COLUMN_ENTRY = "kmsdata"  # in the metadata of a column in Spark: the text of its header
GEO = b"geo"

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()

Entries = dict[bytes, bytes]


def without_columns(
    entries: Mapping[bytes, bytes], names: Iterable[str]
) -> tuple[Entries, dict[str, dict[str, Any]]]:
    """Remove what other software wrote about columns; return the rest, and what restores each column.

    Args:
        entries: key-value metadata, in its order.
        names: the columns.

    Raises:
        ValueError: the entry `geo` names a column, but has another form than GeoParquet prescribes.
    """
    out = dict(entries)
    parts: dict[str, dict[str, Any]] = {}
    geo: dict[str, Any] = {}
    for name in names:
        found: dict[str, Any] = {}
        if (text := _text(out, SPARK)) is not None:
            changed, part = _spark_without(text, name)
            if part is not None:
                out[SPARK], found["spark"] = changed.encode(), part
        if (text := _text(out, GEO)) is not None:
            rest, removed = _geo_without(text, name)
            if removed is not None:
                # Of all columns that are encrypted together, the first knows the original order and primary.
                geo = geo or {key: removed[key] for key in ("order", "primary")}
                following = [key.decode("latin-1") for key in [*entries][[*entries].index(GEO) + 1 :]]
                found["geo"] = removed | geo | {"following": following}
                if rest is None:
                    del out[GEO]
                else:
                    out[GEO] = rest.encode()
        if found:
            parts[name] = found
    return out, parts


def restored(entries: Mapping[bytes, bytes], parts: Mapping[str, Mapping[str, Any]]) -> Entries:
    """Put back what was removed of these columns, in the order of the original entries."""
    out = dict(entries)
    for name, found in parts.items():
        if "spark" in found and (text := _text(out, SPARK)) is not None:
            out[SPARK] = _spark_with(text, name, found["spark"]).encode()
        if "geo" in found:
            document = _geo_with(_text(out, GEO), name, found["geo"]).encode()
            if GEO in out:
                out[GEO] = document
            else:
                later = {key.encode("latin-1", "replace") for key in found["geo"]["following"]}
                at = next((at for at, key in enumerate(out) if key in later), len(out))
                pairs = [*out.items()]
                out = dict([*pairs[:at], (GEO, document), *pairs[at:]])
    return out


def _text(entries: Mapping[bytes, bytes], key: bytes) -> str | None:
    try:
        return entries[key].decode() if key in entries else None
    except UnicodeDecodeError:
        return None


# --- Spark ----------------------------------------------------------------------------------------


def _spark_without(text: str, name: str) -> tuple[str, str | None]:
    span = _spark_field(text, name)
    if span is None:
        return text, None
    start, end = span
    part = text[start:end]
    field = json.loads(part) | {"type": "binary", "metadata": {}}
    return text[:start] + json.dumps(field, separators=(",", ":"), ensure_ascii=False) + text[end:], part


def _spark_with(text: str, name: str, part: str) -> str:
    span = _spark_field(text, name)
    return text if span is None else text[: span[0]] + part + text[span[1] :]


def _spark_field(text: str, name: str) -> tuple[int, int] | None:
    """Return where the column's field is in Spark's schema; None if it is not there."""
    try:
        if (fields := _member(text, 0, "fields")) is None:
            return None
        for start, end in _items(text, fields[0]):
            field = json.loads(text[start:end])
            if isinstance(field, dict) and field.get("name") == name:
                return _after_space(text, start), start + len(text[start:end].rstrip())
    except (ValueError, RecursionError, IndexError):
        pass
    return None


def spark_column_headers(document: bytes) -> dict[str, str]:
    """Return the texts of the headers in Spark's schema, by column, not validated.

    Raises:
        FormatError: the document has headers, but not the form that Spark gives it.
    """
    text = document.decode("utf-8", "surrogateescape")
    if f'"{SPARK_COLUMN_ENTRY}"' not in text:
        return {}
    try:
        fields = json.loads(text)["fields"]
        counts = Counter(field["name"] for field in fields)
        found = {
            field["name"]: field["metadata"][SPARK_COLUMN_ENTRY]
            for field in fields
            if SPARK_COLUMN_ENTRY in field["metadata"]
        }
        if not all(isinstance(part, str) for pair in found.items() for part in pair):
            raise TypeError
    except (ValueError, RecursionError, KeyError, TypeError):
        raise FormatError(f"the entry {SPARK.decode()!r} is damaged: it is not a schema of Spark") from None
    for name in found:
        if counts[name] > 1:
            raise FormatError(f"Spark's schema has several columns {name!r}", column=name)
    for field in fields:
        if field["name"] in found and field.get("type") != "binary":
            raise FormatError(
                f"Spark's schema says that column {field['name']!r} is encrypted, but not that it is binary: "
                "other software changed the schema. Restore the file from a copy",
                column=field["name"],
            )
    return found


def without_spark_headers(entries: Mapping[bytes, bytes], names: Iterable[str]) -> Entries:
    """Remove Spark's schema if it says that one of these columns, which were decrypted, is encrypted.

    It says also that they are binary. Without it, Spark reads the types of the Parquet columns.
    """
    out = dict(entries)
    if SPARK in out and any(name in spark_column_headers(out[SPARK]) for name in names):
        del out[SPARK]
    return out


# --- GeoParquet -----------------------------------------------------------------------------------


def _geo_without(text: str, name: str) -> tuple[str | None, dict[str, Any] | None]:
    """Return the document without a column (None if no geometry is left), and what restores the column."""
    try:
        document = json.loads(text)
        if not isinstance(document, dict) or name not in document.get("columns", {}):
            return text, None
        start, end = _member(text, 0, "columns") or (0, 0)
        names, parts = _members(text, start)
        if len(set(names)) != len(names):
            raise ValueError
        at = names.index(name)
        skeleton = text[: start + 1] + text[end - 1 :]
        part = {
            "order": names,
            "part": parts[at],
            "primary": document.get("primary_column"),
            "rest": skeleton,
        }
        left = names[:at] + names[at + 1 :]
        if not left:
            return None, part
        rest = text[: start + 1] + ",".join(parts[:at] + parts[at + 1 :]) + text[end - 1 :]
        return (_geo_primary(rest, left[0]) if document.get("primary_column") == name else rest), part
    except (ValueError, RecursionError, IndexError, TypeError, AttributeError):
        raise CallerValueError(
            "the entry 'geo' of the file's metadata is not as GeoParquet prescribes, and may contain values "
            f"of column {name!r}, unencrypted. Write the file without it first"
        ) from None


def _geo_with(text: str | None, name: str, kept: Mapping[str, Any]) -> str:
    """Put a column back into the document; leave a document of a form that is not understood."""
    try:
        out = kept["rest"] if text is None else text
        start, end = _member(out, 0, "columns") or (0, 0)
        names, parts = _members(out, start)
        if name in names:
            return out
        order: list[str] = kept["order"]
        # A column that was encrypted before this one knows the primary column from before both.
        earlier = not set(names) <= set(order)
        here = order.index(name)
        after = [names.index(other) + 1 for other in order[:here] if other in names]
        before = [names.index(other) for other in order[here:] if other in names]
        at = max(after) if after else min(before, default=len(names))
        parts.insert(at, kept["part"])
        names.insert(at, name)
        out = out[: start + 1] + ",".join(parts) + out[end - 1 :]
        primary = kept["primary"] if kept["primary"] in names else name if text is None else None
        if earlier:
            return out
        return out if primary is None else _geo_primary(out, primary)
    except (ValueError, RecursionError, IndexError):
        return text if text is not None else str(kept["rest"])


def _geo_primary(text: str, name: str) -> str:
    span = _member(text, 0, "primary_column")
    if span is None or json.loads(text[slice(*span)]) == name:
        return text
    return text[: span[0]] + json.dumps(name) + text[span[1] :]


# --- JSON as text ---------------------------------------------------------------------------------


def _after_space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]


def _member(text: str, at: int, key: str) -> tuple[int, int] | None:
    """Return where the value of a member of the object at this position is."""
    at = _after_space(text, at)
    found = [(a, b) for name, a, b in _walk(text, at) if name == key]
    if len(found) > 1:
        raise ValueError
    return found[0] if found else None


def _members(text: str, at: int) -> tuple[list[str], list[str]]:
    """Return the names of an object's members, and their texts: what is between the commas."""
    names = [name for name, _, _ in _walk(text, at)]
    return names, [text[start:end] for start, end in _items(text, at)]


def _walk(text: str, at: int) -> Iterable[tuple[str, int, int]]:
    if text[at] != "{":
        raise ValueError
    at = _after_space(text, at + 1)
    while text[at] != "}":
        name, at = _DECODER.raw_decode(text, at)
        at = _after_space(text, _after_space(text, at) + 1)
        _, end = _DECODER.raw_decode(text, at)
        yield name, at, end
        at = _after_space(text, end)
        if text[at] == ",":
            at = _after_space(text, at + 1)


def _items(text: str, at: int) -> Iterable[tuple[int, int]]:
    """Yield where the items of the list or object at this position are, with the space around them."""
    if text[at] not in "[{":
        raise ValueError
    is_object, start = text[at] == "{", at + 1
    at = _after_space(text, start)
    while text[at] not in "]}":
        _, at = _DECODER.raw_decode(text, at)
        if is_object:
            at = _after_space(text, _after_space(text, at) + 1)
            _, at = _DECODER.raw_decode(text, at)
        at = _after_space(text, at)
        yield start, at
        if text[at] == ",":
            start = at + 1
            at = _after_space(text, start)
