"""Find and replace every copy of a header in a file: in its schema and in all of its key-value metadata.

One file may contain the same wrapped key in these places::

    kmsdata                                     canonical JSON, all columns
    ARROW:schema                                base64 of an Arrow schema: the type of each encrypted column,
                                                and the schema's metadata, a copy of the other entries
    pandas, PANDAS_ATTRS                        JSON, if a frame's attrs contained a header
    org.apache.spark.sql.parquet.row.metadata   JSON: a column's metadata in Spark has its header, quoted

Some reader prefers each of them to the others, so all must be equal.
"""

from __future__ import annotations

import base64
import binascii
import json
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import pyarrow as pa

from kmsdata.errors import FormatError
from kmsdata.frames.dtype import EncryptedDtype, EncryptedType
from kmsdata.frames.metadata.documents import SPARK, spark_column_headers
from kmsdata.keys.envelope import ENTRY, DataKeyRecord, Header, canonical, file_text, parse_file

__all__ = ["Copy", "agree", "copies_in", "entry_with", "schema_with"]

_SCHEMA = b"ARROW:schema"
_MARK = "data_keys"  # in the text of every header, also if it was quoted as a JSON string several times
_DEEPEST = 8


class Copy(NamedTuple):
    """One copy of a column's header.

    Attributes:
        header: the header.
        place: where it was found, for messages.
        column: the column that it belongs to, if the place tells.
        nested: whether it is the type of a part of a column.
    """

    header: Header
    place: str
    column: str | None = None
    nested: bool = False


Visit: TypeAlias = Callable[[Copy], Header]
"""Takes a copy, and returns the header to store in its place."""


def copies_in(entries: Iterable[tuple[bytes, bytes | None]]) -> list[Copy]:
    """Return every copy of a header in key-value metadata.

    Raises:
        FormatError: a header is malformed.
    """
    found: list[Copy] = []

    def look(copy: Copy) -> Header:
        found.append(copy)
        return copy.header

    for key, value in entries:
        if value is not None:
            entry_with(key, value, look)
    return found


def agree(copies: Iterable[Copy]) -> dict[bytes, DataKeyRecord]:
    """Check that copies of headers agree; return their data keys by commitment.

    Raises:
        FormatError: two copies differ about a column or about a data key.
    """
    records: dict[bytes, tuple[DataKeyRecord, str]] = {}
    columns: dict[str, tuple[str, str]] = {}
    for header, place, column, _ in copies:
        for record in header.records:
            known, where = records.setdefault(record.commitment, (record, place))
            if (known.context, set(known.wraps)) != (record.context, set(record.wraps)):
                what = f"data key {record.commitment.hex()[:8]}"
                one, two = ("+".join(wrap.key for wrap in item.wraps) for item in (known, record))
                said = f", wrapped by {one} in the first and by {two} in the second" if one != two else ""
                raise FormatError(
                    f"copies of the header disagree about {what}: {where} and {place}{said}. Some software "
                    "changed only one of them. Restore the file, or write it again from a copy that can be "
                    "decrypted",
                    field="data_keys",
                )
        if column is not None:
            text = canonical([item.to_json() for item in header.columns])
            known_text, where = columns.setdefault(column, (text, place))
            if known_text != text:
                raise FormatError(
                    f"copies of the header disagree about column {column!r}: {where} and {place}",
                    column=column,
                    field="columns",
                )
    return {commitment: record for commitment, (record, _) in records.items()}


def entry_with(key: bytes, value: bytes, visit: Visit, inside: str = "") -> bytes:
    """Replace each header in an entry of key-value metadata by what ``visit`` returns.

    The result is the same bytes if nothing changes.

    Raises:
        FormatError: a header is malformed.
    """
    place = f"{inside}entry {key.decode('utf-8', 'replace')!r}"
    if key == _SCHEMA and not inside:
        return _arrow_with(value, visit)
    text = value.decode("utf-8", "surrogateescape")
    if key == ENTRY:
        return _file_with(text, visit, place).encode()
    if key == SPARK:
        for name, header in spark_column_headers(value).items():
            # Only this place says which column such a header belongs to; `agree` compares it with the others.
            visit(Copy(Header.parse(header), place, name))
    changed = _text_with(text, visit, place, 0)
    return value if changed is text else changed.encode("utf-8", "surrogateescape")


def schema_with(schema: pa.Schema, visit: Visit, inside: str = "") -> pa.Schema:
    """Replace each header in an Arrow schema by what ``visit`` returns."""
    fields = [_field_with(field, visit, inside, field.name) for field in schema]
    return pa.schema(fields, _metadata_with(schema.metadata, visit, inside))


def _arrow_with(value: bytes, visit: Visit) -> bytes:
    try:
        raw = base64.b64decode(value)
        if _MARK.encode() not in raw:
            return value
        schema = pa.ipc.read_schema(pa.py_buffer(raw))
        before = schema.serialize()
        # Compare bytes, not schemas: EncryptedType is equal to one that differs only in the wrapped keys.
        after = schema_with(schema, visit, "ARROW:schema, ").serialize()
    except FormatError:
        raise
    except (binascii.Error, UnicodeError, pa.ArrowException, OSError) as error:
        raise FormatError("the entry 'ARROW:schema' is damaged: it is not an Arrow schema") from error
    return value if after.equals(before) else base64.b64encode(after.to_pybytes())


def _field_with(field: pa.Field, visit: Visit, inside: str, column: str | None) -> pa.Field:
    field = field.with_type(_type_with(field.type, visit, inside, column))
    if field.metadata:
        place = f"{inside}metadata of {field.name!r}, "
        field = field.with_metadata(_metadata_with(field.metadata, visit, place))
    return field


def _type_with(dtype: pa.DataType, visit: Visit, inside: str, column: str | None) -> pa.DataType:
    """Replace each header in a type, at any depth."""
    if isinstance(dtype, EncryptedType):
        nested = column is None
        place = f"{inside}a nested type" if nested else f"{inside}type of column {column!r}"
        try:
            header = dtype.dtype.header
        except FormatError as error:
            raise error.with_facts(column=column) from None
        return EncryptedType(dtype.storage_type, EncryptedDtype(visit(Copy(header, place, column, nested))))
    if not pa.types.is_nested(dtype):
        return dtype
    if pa.types.is_struct(dtype):
        fields = [dtype.field(number) for number in range(dtype.num_fields)]
        return pa.struct([_field_with(field, visit, inside, None) for field in fields])
    if pa.types.is_map(dtype):
        parts = [_field_with(field, visit, inside, None) for field in (dtype.key_field, dtype.item_field)]
        return pa.map_(*parts, dtype.keys_sorted)
    if not hasattr(dtype, "value_field"):
        return dtype  # a union: an old wrapped key that stays in it is found by the check after a rewrap
    item = _field_with(dtype.value_field, visit, inside, None)
    if pa.types.is_fixed_size_list(dtype):
        return pa.list_(item, dtype.list_size)
    return pa.large_list(item) if pa.types.is_large_list(dtype) else pa.list_(item)


def _metadata_with(
    metadata: Mapping[bytes, bytes] | None, visit: Visit, inside: str
) -> dict[bytes, bytes] | None:
    if metadata is None:
        return None
    return {key: entry_with(key, value, visit, inside or "schema, ") for key, value in metadata.items()}


def _text_with(text: str, visit: Visit, place: str, depth: int) -> str:
    """Replace each header in a JSON text, quoted or not; return any other text unchanged."""
    if _MARK not in text:
        return text
    if depth > _DEEPEST:
        raise FormatError(f"{place}: headers are quoted more than {_DEEPEST} levels deep")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if (document := _document_with(data, visit, place)) is not None:
        return document if document != canonical(data) else text
    changed = _json_with(data, visit, place, depth)
    return text if changed is data else json.dumps(changed)


def _json_with(data: Any, visit: Visit, place: str, depth: int) -> Any:
    """Replace each header in parsed JSON; return the same object if nothing changes."""
    if depth > 4 * _DEEPEST:
        raise FormatError(f"{place}: headers are nested too deep")
    if isinstance(data, str):
        return _text_with(data, visit, place, depth + 1)
    if isinstance(data, list):
        items = [_json_with(item, visit, place, depth + 1) for item in data]
        return data if all(map(operator.is_, items, data)) else items
    if not isinstance(data, dict):
        return data
    if (document := _document_with(data, visit, place)) is not None:
        return data if document == canonical(data) else json.loads(document)
    values = {key: _json_with(value, visit, place, depth + 1) for key, value in data.items()}
    return data if all(values[key] is data[key] for key in data) else values


def _document_with(data: Any, visit: Visit, place: str) -> str | None:
    """Return the new text of a header of a column or a file; None if this is not a header."""
    kinds = data.keys() if isinstance(data, dict) else set()
    if kinds == {"column", "data_keys", "version"}:
        return visit(Copy(Header.parse(canonical(data)), place)).text
    if kinds == {"columns", "data_keys", "version"}:
        return _file_with(canonical(data), visit, place)
    return None


def _file_with(text: str, visit: Visit, place: str) -> str:
    return file_text({name: visit(Copy(header, place, name)) for name, header in parse_file(text).items()})
