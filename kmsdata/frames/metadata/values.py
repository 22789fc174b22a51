"""Find values of columns in metadata, which has no fixed form: any text in it may be a value."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kmsdata.errors import CallerValueError

__all__ = ["metadata_texts", "refuse_statistics", "refuse_values_in_metadata"]

_SHORTEST_TEXT = 5  # characters: shorter values are found in metadata by chance
_DEEPEST = 8  # levels of JSON in strings of JSON
_CUT = (16, 32)  # characters to which Iceberg and Delta shorten texts in statistics
_NOT_VALUES = {"string", "integer", "binary", "double", "float", "boolean", "timestamp"}
_STATISTICS = {"minvalues", "maxvalues", "lowerbounds", "upperbounds", "min", "max"}

_WORDS = re.compile(r"[\s,;|\"'\[\]{}()]+")
_PARTS = re.compile(r"[\s,;|\"'\[\]{}():=\\]+")
_ITEMS = re.compile(r"[,;|&\t\r\n]")
_QUOTED = re.compile(r"\"([^\"\\]*)\"|'([^'\\]*)'")
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(:\d\d)?(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?)?", re.ASCII
)
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d{1,3})?", re.ASCII)


def metadata_texts(entries: Iterable[bytes], names: Iterable[str]) -> pa.Array:
    """Return the texts in metadata that may be values: words, quoted texts, strings of JSON at any depth.

    The cost grows linearly with the size of the metadata.

    Args:
        entries: values of key-value metadata.
        names: the names of the columns, which schemas contain, and which are not values.
    """
    texts: set[str] = set()
    for data in dict.fromkeys(entries):
        for text in _decoded(data.decode("utf-8", "replace")):
            texts.update((text, *_WORDS.split(text), *_PARTS.split(text)))
            texts.update(one or other for one, other in _QUOTED.findall(text))
            texts.update(re.split("[:=]", item, maxsplit=1)[-1].strip() for item in _ITEMS.split(text))
            for match in _TIME.finditer(text):
                texts.update(_times(match))
    texts -= {*names, *_NOT_VALUES}
    # JSON may contain half of a surrogate pair, which no value of a column does.
    known = (text.encode("utf-8", "replace").decode() for text in texts)
    return pa.array([text for text in known if len(text) >= _SHORTEST_TEXT], pa.large_string())


def refuse_values_in_metadata(values: Any, texts: pa.Array, name: str, where: str) -> None:
    """Raise ValueError if a value of a column is among the texts of metadata.

    Args:
        values: an Arrow array of the column's values.
        texts: the result of `metadata_texts`.
        name: the column's name.
        where: what contains the metadata, for the error.
    """
    if not len(texts):
        return
    for leaf in _leaves(values):
        # Arrow cannot convert some types to text: their values are not found as text.
        with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
            if _contains(texts, leaf):
                raise CallerValueError(
                    f"{where} contains values of column {name!r}, unencrypted. Remove them first (see "
                    "df.attrs, Table.replace_schema_metadata)"
                )


def refuse_statistics(entries: Iterable[bytes], columns: dict[str, int | None], where: str) -> None:
    """Raise ValueError if metadata contains statistics of columns in the form of Iceberg or Delta.

    Args:
        entries: values of key-value metadata.
        columns: the columns, with their field ids.
        where: what contains the metadata, for the error.
    """
    for data in dict.fromkeys(entries):
        for document in _documents(data.decode("utf-8", "replace")):
            described = set(_described(document))
            for name, number in columns.items():
                if name in described or str(number) in described:
                    raise CallerValueError(
                        f"{where} contains statistics of column {name!r}, which are values, unencrypted. "
                        "Remove them first (see Table.replace_schema_metadata)"
                    )


# --- texts ----------------------------------------------------------------------------------------


def _decoded(text: str) -> Iterator[str]:
    """Yield a text, the same without escapes, and all strings of JSON in it."""
    waiting = [(text, 0)]
    while waiting:
        text, depth = waiting.pop()
        yield text
        if (plain := _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text)) != text:
            yield plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if depth < _DEEPEST:
            waiting += [(inner, depth + 1) for inner in _strings(_parsed(text)) if inner != text]


def _documents(text: str) -> Iterator[Any]:
    """Yield the JSON of a text, and that of each string in it."""
    waiting = [(text, 0)]
    while waiting:
        text, depth = waiting.pop()
        if (document := _parsed(text)) is not None:
            yield document
            if depth < _DEEPEST:
                waiting += [(inner, depth + 1) for inner in _strings(document)]


def _parsed(text: str) -> Any:
    if text.lstrip()[:1] not in ("{", "[", '"'):
        return None
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text, parse_int=str, parse_float=str)
    return None


def _items(document: Any) -> Iterator[Any]:
    """Yield each part of JSON, at any depth."""
    waiting = [document]
    while waiting:
        yield (part := waiting.pop())
        if isinstance(part, dict):
            waiting += part.keys()
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def _strings(document: Any) -> Iterator[str]:
    return (part for part in _items(document) if isinstance(part, str))


def _described(document: Any) -> Iterator[str]:
    """Yield the names and numbers of columns whose least and greatest values are in a JSON document."""
    for part in _items(document):
        for key, bounds in part.items() if isinstance(part, dict) else ():
            if re.sub("[-_]", "", key.lower()) in _STATISTICS and isinstance(bounds, dict):
                yield from bounds
                keys = bounds.get("keys")
                yield from map(str, keys if isinstance(keys, list) else ())


def _times(match: re.Match[str]) -> Iterator[str]:
    """Yield a date or time in ISO form as Arrow writes it: in UTC, without zeros after the last decimal."""
    date, minutes, seconds, fraction, zone = match.groups()
    if (minutes or "00:00") == "00:00" and (seconds or ":00") == ":00":
        yield date  # the day of any other moment, such as when a file was made, is no value of dates
    text = f"{date} {minutes or '00:00'}{seconds or ':00'}"
    if zone and zone != "Z":
        with contextlib.suppress(ValueError, OverflowError):
            moment = dt.datetime.fromisoformat(text + zone)
            text = str(moment.astimezone(dt.UTC).replace(tzinfo=None))
    fraction = (fraction or "").rstrip("0")
    yield f"{text}.{fraction}" if fraction else text


# --- values ---------------------------------------------------------------------------------------


def _leaves(values: Any) -> Iterator[Any]:
    """Yield the parts of values that are neither nested nor dictionaries."""
    for chunk in getattr(values, "chunks", [values]):
        kind = chunk.type
        if isinstance(kind, pa.BaseExtensionType):
            yield from _leaves(chunk.storage)
        elif pa.types.is_dictionary(kind):
            yield from _leaves(chunk.dictionary)
        elif pa.types.is_map(kind):
            yield from _leaves(chunk.keys)
            yield from _leaves(chunk.items)
        elif pa.types.is_struct(kind):
            for part in chunk.flatten():
                yield from _leaves(part)
        elif pa.types.is_nested(kind):
            if hasattr(chunk, "flatten"):
                yield from _leaves(chunk.flatten())
        elif not pa.types.is_boolean(kind):  # any JSON may contain "true" and "false"
            yield chunk


def _contains(texts: pa.Array, values: Any) -> bool:
    kind = values.type
    if _is_binary(kind):
        return _any_in(values.cast(pa.binary()).cast(pa.large_binary()), texts.cast(pa.large_binary()))
    if pa.types.is_floating(kind):
        numbers = {float(text) for text in texts.to_pylist() if _NUMBER.fullmatch(text)}
        numbers = {number for number in numbers if len(f"{number:.17g}") >= _SHORTEST_TEXT}
        return _any_in(values.cast(pa.float64()), pa.array(numbers, pa.float64()))
    if pa.types.is_timestamp(kind):
        values = values.cast(pa.timestamp(kind.unit))  # in UTC
    as_text = values.cast(pa.large_string())
    if _any_in(as_text, texts):
        return True
    if pa.types.is_timestamp(kind) or pa.types.is_decimal(kind):
        return _any_in(_without_zeros(as_text), _without_zeros(texts, _SHORTEST_TEXT))
    if _is_text(kind):
        return any(
            _begins(as_text, texts.filter(pc.equal(pc.utf8_length(texts), size)), size) for size in _CUT
        )
    return False


def _begins(values: Any, texts: pa.Array, size: int) -> bool:
    """Return whether a text is the beginning of a value."""
    return len(texts) > 0 and _any_in(pc.utf8_slice_codeunits(values, 0, size), texts)


def _any_in(values: Any, texts: pa.Array) -> bool:
    return bool(pc.any(pc.is_in(values, texts)).as_py())


def _without_zeros(texts: Any, shortest: int = 0) -> Any:
    """Remove zeros at the end of decimals: 1.50 is 1.5."""
    out = pc.replace_substring_regex(texts, r"(\.[0-9]*[1-9])0+$", r"\1")
    out = pc.replace_substring_regex(out, r"\.0*$", "")
    return out.filter(pc.greater_equal(pc.utf8_length(out), shortest)) if shortest else out


def _is_binary(kind: pa.DataType) -> bool:
    views = [getattr(pa.types, "is_binary_view", lambda _: False)]
    checks = [pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, *views]
    return any(check(kind) for check in checks)


def _is_text(kind: pa.DataType) -> bool:
    views = [getattr(pa.types, "is_string_view", lambda _: False)]
    return any(check(kind) for check in [pa.types.is_string, pa.types.is_large_string, *views])
