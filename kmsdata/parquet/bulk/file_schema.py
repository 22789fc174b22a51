"""Make the schema and the key-value metadata of a file whose columns were encrypted or decrypted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from kmsdata.errors import FormatError
from kmsdata.frames.metadata.documents import restored, without_columns
from kmsdata.frames.metadata.pandas_entry import (
    in_pandas_metadata,
    kept_entries,
    pandas_attributes,
    with_entries,
)
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import ENTRY, Header, file_text
from kmsdata.parquet.bulk.original.entry import ORIGINAL, seal, sealed_columns, with_sealed

__all__ = [
    "check_pandas_metadata",
    "decrypted_schema",
    "encrypted_schema",
    "original_entries",
    "texts_beside",
]

Metadata = Mapping[bytes, bytes]


def encrypted_schema(
    schema: pa.Schema,
    entries: Metadata,
    fields: Mapping[str, pa.Field],
    headers: Mapping[str, Header],
    data_keys: Mapping[str, DataKey],
    types: Mapping[str, Mapping[str, str]],
    path: str = "",
) -> tuple[pa.Schema, dict[bytes, bytes]]:
    """Return the schema and the key-value metadata of a file after some of its columns were encrypted.

    Args:
        schema: its Arrow schema.
        entries: its key-value metadata.
        fields: the newly encrypted columns, with the types of their cells.
        headers: the headers of all columns that are encrypted in the result.
        data_keys: the data keys of the newly encrypted columns.
        types: the original types of these columns, to keep in the entry ``kmsdata.original``.
        path: the file's path, for errors.

    Raises:
        ValueError: metadata about a column is not in the form that its format prescribes.
    """
    rest, parts = without_columns(entries, data_keys)
    inner, inner_parts = without_columns(schema.metadata or {}, data_keys)
    sealed = {name: part for name, part in _sealed(schema, entries, path).items() if name not in data_keys}
    for name, data_key in data_keys.items():
        members = {**types.get(name, {}), **parts.get(name, {})}
        if _without_position(inner_parts.get(name, {})) != _without_position(parts.get(name, {})):
            members["schema"] = inner_parts.get(name, {})
        if members:
            sealed[name] = seal(name, members, data_key)
    # Sealed once: two copies of a part would differ. Tables that pyarrow reads have the one in the schema.
    rest, inner = with_sealed(rest, sealed), with_sealed(inner, sealed)
    rest, inner = (
        in_pandas_metadata(_with_headers(one, headers), list(data_keys)) or {} for one in (rest, inner)
    )
    return _with_fields(schema, fields).with_metadata(inner or None), rest


def decrypted_schema(
    schema: pa.Schema,
    entries: Metadata,
    fields: Mapping[str, pa.Field],
    headers: Mapping[str, Header],
    pandas: Mapping[str, dict[str, Any] | None],
    parts: Mapping[str, Mapping[str, Any]],
    path: str = "",
) -> tuple[pa.Schema, dict[bytes, bytes]]:
    """Return the schema and the key-value metadata of a file after some of its columns were decrypted.

    Args:
        schema: its Arrow schema.
        entries: its key-value metadata.
        fields: the decrypted columns, with the types that Arrow will show.
        headers: the headers of the columns that stay encrypted.
        pandas: the entry of each decrypted column in the pandas metadata; None: the one from before it was
            encrypted.
        parts: the authenticated parts of the decrypted columns in the entry ``kmsdata.original``.
        path: the file's path, for errors.

    Raises:
        FormatError: the entry ``kmsdata.original`` is malformed.
    """
    sealed = {name: part for name, part in _sealed(schema, entries, path).items() if name in headers}
    inner_parts = {name: members.get("schema", members) for name, members in parts.items()}
    rest = restored(with_sealed(entries, sealed), parts)
    inner = restored(with_sealed(schema.metadata or {}, sealed), inner_parts)
    rest, inner = (
        with_entries(
            in_pandas_metadata(_with_headers(one, headers), list(pandas), back=True) or {},
            {name: entry for name, entry in pandas.items() if name not in kept_entries(one)},
        )
        for one in (rest, inner)
    )
    return _with_fields(schema, fields).with_metadata(inner or None), rest


def original_entries(schema: pa.Schema, entries: Metadata) -> Metadata:
    """Return the metadata with the entry ``kmsdata.original``: the file's, otherwise the schema's.

    Software that reads tables with pyarrow, and writes other files, may write only the latter.
    """
    return entries if ORIGINAL in entries else schema.metadata or {}


def _sealed(schema: pa.Schema, entries: Metadata, path: str) -> dict[str, dict[str, str]]:
    return sealed_columns(original_entries(schema, entries), path)


def _without_position(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was removed of a column, except for the position of entries in the metadata."""
    geo = {key: item for key, item in part.get("geo", {}).items() if key != "following"}
    return {**part, "geo": geo}


def _with_fields(schema: pa.Schema, fields: Mapping[str, pa.Field]) -> pa.Schema:
    for name, field in fields.items():
        schema = schema.set(schema.get_field_index(name), field)
    return schema


# --- metadata -------------------------------------------------------------------------------------


def _with_headers(metadata: Metadata | None, headers: Mapping[str, Header]) -> dict[bytes, bytes]:
    """Return key-value metadata whose ``kmsdata`` entry contains these headers and no others."""
    out = {key: text for key, text in (metadata or {}).items() if key != ENTRY}
    return out | ({ENTRY: file_text(headers).encode()} if headers else {})


def check_pandas_metadata(metadata: Metadata | None, path: str) -> None:
    """Raise FormatError unless the pandas entry of key-value metadata has the form that pandas reads."""
    try:
        document = json.loads((metadata or {}).get(b"pandas") or b"{}")
        columns = document.get("columns", [])
        fine = (
            isinstance(document.get("index_columns", []), list)
            and isinstance(columns, list)
            and all(isinstance(entry, dict) for entry in columns)
            and all(isinstance(entry.get("field_name", ""), (str, type(None))) for entry in columns)
            and all(isinstance(entry.get("kmsdata", {}), dict) for entry in columns)
        )
    except (ValueError, RecursionError, AttributeError):
        fine = False
    if not fine:
        raise FormatError(f"{path}: the entry 'pandas' of its metadata is damaged", path=path)


def texts_beside(schema: pa.Schema, entries: Metadata) -> list[bytes]:
    """Return the metadata of a file that may contain values of its columns."""
    known = (b"ARROW:schema", b"pandas", ORIGINAL, ENTRY)
    every = {**entries, b"pandas attributes": json.dumps(pandas_attributes(schema.metadata)).encode()}
    raw = [text for key, text in [*every.items(), *(schema.metadata or {}).items()] if key not in known]
    return raw + [text for field in schema for text in (field.metadata or {}).values()]
