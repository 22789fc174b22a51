"""Keep, encrypted, what other software wrote about a column in a file's metadata, and restore it.

Two entries say things about columns that encryption must change: Spark's schema (types, and metadata that
may list values) and GeoParquet's ``geo`` (the bounding box). The original texts are encrypted into the entry
``kmsdata.kept``. Documents are changed as text, so that all other bytes of them stay.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from kmsdata.errors import FormatError, TamperedError
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import base64_bytes, base64_text, canonical

__all__ = ["GEO", "KEPT", "SPARK", "restored", "without_columns"]

KEPT = b"kmsdata.kept"
SPARK = b"org.apache.spark.sql.parquet.row.metadata"
GEO = b"geo"

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()

Entries = dict[bytes, bytes]


def without_columns(entries: Mapping[bytes, bytes], data_keys: Mapping[str, DataKey]) -> Entries:
    """Remove what other software wrote about newly encrypted columns, and keep it encrypted.

    Args:
        entries: key-value metadata.
        data_keys: the data key of each newly encrypted column.

    Raises:
        ValueError: the entry `geo` names a column, but has another form than GeoParquet prescribes.
    """
    out, kept = dict(entries), _parse(entries)
    geo: dict[str, Any] = {}
    for name, data_key in data_keys.items():
        found: dict[str, Any] = {}
        if (text := _text(out, SPARK)) is not None:
            changed, part = _spark_without(text, name)
            if part is not None:
                out[SPARK], found["spark"] = changed.encode(), part
        if (text := _text(out, GEO)) is not None:
            rest, removed = _geo_without(text, name)
            if removed is not None:
                # Of all columns that are encrypted together, the first knows the original order and primary.
                found["geo"] = removed | geo if geo else removed
                geo = geo or {key: removed[key] for key in ("order", "primary")}
                if rest is None:
                    del out[GEO]
                else:
                    out[GEO] = rest.encode()
        kept.pop(name, None)
        if found:
            kept[name] = {
                "data_key": base64_text(data_key.commitment),
                "sealed": base64_text(data_key.seal_kept(name, canonical(found).encode())),
            }
    return _with_kept(out, kept)


def restored(
    entries: Mapping[bytes, bytes], columns: Iterable[str], keys: Mapping[bytes, DataKey]
) -> Entries:
    """Put back what was kept of decrypted columns.

    Args:
        entries: key-value metadata.
        columns: the decrypted columns.
        keys: data keys by commitment.

    Raises:
        FormatError: the entry ``kmsdata.kept`` is malformed.
        TamperedError: what was kept of a column was changed.
    """
    out, kept = dict(entries), _parse(entries)
    for name in columns:
        if (item := kept.pop(name, None)) is None:
            continue
        commitment, sealed = base64_bytes(item["data_key"]), base64_bytes(item["sealed"])
        data_key = keys.get(commitment or b"")
        plain = data_key.open_kept(name, sealed) if data_key and sealed else None
        if plain is None:
            raise TamperedError(
                f"column {name!r}: its part of the entry 'kmsdata.kept' of the file's metadata was changed. "
                "Restore the file from a copy",
                column=name,
            )
        found = json.loads(plain)
        if "spark" in found and (text := _text(out, SPARK)) is not None:
            out[SPARK] = _spark_with(text, name, found["spark"]).encode()
        if "geo" in found:
            out[GEO] = _geo_with(_text(out, GEO), name, found["geo"]).encode()
    return _with_kept(out, kept)


def _parse(entries: Mapping[bytes, bytes]) -> dict[str, dict[str, str]]:
    if KEPT not in entries:
        return {}
    try:
        document = json.loads(entries[KEPT])
        fine = set(document) == {"columns", "version"} and document["version"] == 1
        columns: dict[str, dict[str, str]] = document["columns"] if fine else {}
        for item in columns.values():
            fine = (
                fine
                and set(item) == {"data_key", "sealed"}
                and all(isinstance(x, str) for x in item.values())
            )
    except (ValueError, RecursionError, TypeError, AttributeError):
        fine = False
    if not fine:
        raise FormatError("the entry 'kmsdata.kept' of the file's metadata is damaged")
    return columns


def _with_kept(entries: Entries, kept: Mapping[str, Any]) -> Entries:
    out = {key: value for key, value in entries.items() if key != KEPT}
    return out | ({KEPT: canonical({"columns": kept, "version": 1}).encode()} if kept else {})


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
        raise ValueError(
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
        here = order.index(name)
        after = [names.index(other) + 1 for other in order[:here] if other in names]
        before = [names.index(other) for other in order[here:] if other in names]
        at = max(after) if after else min(before, default=len(names))
        parts.insert(at, kept["part"])
        names.insert(at, name)
        out = out[: start + 1] + ",".join(parts) + out[end - 1 :]
        primary = kept["primary"] if kept["primary"] in names else name if text is None else None
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
