"""Read and edit the entries that pandas writes into schema metadata.

Arrow schemas of frames, and Parquet files, have an entry ``pandas``: a JSON document with the dtype of each
column, the columns of the index, and ``df.attrs``. ``DataFrame.to_parquet`` writes ``df.attrs`` to an entry
``PANDAS_ATTRS`` as well.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

from kmsdata.errors import FormatError, UnsupportedTypeError
from kmsdata.frames.column import open_pandas
from kmsdata.frames.dtype import EncryptedDtype
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import Header

__all__ = [
    "dtype_names",
    "frame_attrs",
    "in_pandas_metadata",
    "index_columns",
    "kept_entries",
    "pandas_attributes",
    "pandas_dtypes",
    "pandas_entries",
    "to_frame",
    "unreadable_dtypes",
    "with_entries",
    "with_frame_attrs",
]

_PANDAS, _ATTRS = b"pandas", b"PANDAS_ATTRS"


def _document(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    document = _parsed((metadata or {}).get(_PANDAS) or b"{}", "pandas")
    columns = document.get("columns", [])
    if not (isinstance(columns, list) and all(isinstance(entry, dict) for entry in columns)):
        raise FormatError(
            "the entry 'pandas' of the schema metadata is malformed: its columns are not a list"
        )
    for entry in columns:
        named = isinstance(entry.get("field_name"), (str, type(None)))
        if not (named and isinstance(entry.get("kmsdata", {}), dict)):
            raise FormatError(
                "the entry 'pandas' of the schema metadata is malformed: a column's name is not text"
            )
    return document


def _parsed(text: bytes, entry: str) -> dict[str, Any]:
    """Parse an entry of schema metadata, which any software may have written."""
    document: Any = None
    with contextlib.suppress(ValueError, RecursionError):  # ValueError: not JSON, or not UTF-8
        document = json.loads(text)
    if not isinstance(document, dict):
        raise FormatError(f"the entry {entry!r} of the schema metadata is malformed: it is not a JSON object")
    return document


def _with_document(metadata: Mapping[bytes, bytes], document: Mapping[str, Any]) -> dict[bytes, bytes]:
    return {**metadata, _PANDAS: json.dumps(document).encode()}


def in_pandas_metadata(
    metadata: Mapping[bytes, bytes] | None, columns: Sequence[str], *, back: bool = False
) -> dict[bytes, bytes] | None:
    """Return schema metadata that declares these columns as bytes: readers without kmsdata fail otherwise.

    The original entry of a column is kept under ``kmsdata``, and restored when the column is decrypted.
    """
    if metadata is None or _PANDAS not in metadata:
        return None if metadata is None else dict(metadata)
    document = _document(metadata)
    for entry in document.get("columns", []):
        if entry.get("field_name", entry.get("name")) in columns:
            if back:
                entry |= entry.pop("kmsdata", {})
            else:
                was = {key: entry.get(key) for key in ("pandas_type", "numpy_type", "metadata")}
                entry |= {"pandas_type": "bytes", "numpy_type": "object", "metadata": None, "kmsdata": was}
    return _with_document(metadata, document)


def kept_entries(metadata: Mapping[bytes, bytes] | None) -> set[Any]:
    """Return the columns whose entry from before the encryption is kept in schema metadata."""
    entries = _document(metadata).get("columns", [])
    return {entry.get("field_name", entry.get("name")) for entry in entries if entry.get("kmsdata")}


def pandas_entries(headers: Mapping[str, Header], keys: Mapping[bytes, DataKey]) -> dict[str, dict[str, Any]]:
    """Build the pandas metadata of columns that were encrypted in pandas, from the types in their headers."""
    entries = {}
    for name, header in headers.items():
        if not all("pandas" in item.type for item in header.columns):
            continue
        # pandas and pyarrow write the entry for an empty column of the same dtype: no cell is decrypted.
        empty = pa.array([], EncryptedDtype(header)._storage_type)
        with contextlib.suppress(UnsupportedTypeError, pa.ArrowException, TypeError, ValueError):
            frame = pd.DataFrame({name: open_pandas(header, keys, empty, name)})
            entry = _document(pa.Schema.from_pandas(frame, preserve_index=False).metadata)["columns"][0]
            if (
                entry["pandas_type"] != "empty"
            ):  # "empty": an object column, whose type follows from its values
                entries[name] = entry
    return entries


def with_entries(metadata: dict[bytes, bytes], entries: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Set these entries of columns in the pandas metadata."""
    if _PANDAS not in metadata:
        return metadata
    document = _document(metadata)
    unreadable = [entry.get("field_name") for entry in _unreadable(document)]  # Arrow's type tells the dtype
    for entry in document.get("columns", []):
        if (was := entries.get(entry.get("field_name"))) and entry.get("field_name") not in unreadable:
            entry |= {key: was[key] for key in ("pandas_type", "numpy_type", "metadata")}
    return _with_document(metadata, document)


def pandas_dtypes(schema: pa.Schema) -> dict[str, Any]:
    """Return the pandas dtypes of a schema's columns, of those that its metadata names."""
    dtypes: dict[str, Any] = {}
    for entry in _document(schema.metadata).get("columns", []):
        with contextlib.suppress(TypeError, ValueError, KeyError, NotImplementedError):
            dtypes[entry["field_name"]] = pd.api.types.pandas_dtype(entry["numpy_type"])
    return dtypes | unreadable_dtypes(schema)


def unreadable_dtypes(schema: pa.Schema) -> dict[str, pd.ArrowDtype]:
    """Return the Arrow dtypes whose names pandas writes but cannot read, by column: nested types, and others.

    Example:
        >>> frame = pd.DataFrame({"c": pd.Series([[1]], dtype=pd.ArrowDtype(pa.list_(pa.int64())))})
        >>> unreadable_dtypes(pa.Schema.from_pandas(frame))
        {'c': list<item: int64>[pyarrow]}
    """
    names = [str(entry.get("field_name")) for entry in _unreadable(_document(schema.metadata))]
    single = [name for name in names if schema.names.count(name) == 1]
    return {name: pd.ArrowDtype(schema.field(name).type) for name in single}


def _unreadable(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of columns with a dtype name that pandas cannot read."""
    found = []
    for entry in document.get("columns", []):
        name = entry.get("numpy_type")
        if isinstance(name, str) and name.endswith("[pyarrow]"):
            try:
                pd.api.types.pandas_dtype(name)
            except (TypeError, ValueError, NotImplementedError):
                found.append(entry)
    return found


def to_frame(table: pa.Table) -> pd.DataFrame:
    """Convert a table as pandas does, but columns whose dtype names pandas cannot read to these dtypes."""
    document = _document(table.schema.metadata)
    if not (entries := _unreadable(document)):
        return table.to_pandas()
    levels = index_columns(table.schema.metadata)  # their values become objects
    columns = {name: table.column(name) for name in unreadable_dtypes(table.schema) if name not in levels}
    for name in columns:
        table = table.set_column(table.schema.get_field_index(name), name, pa.nulls(len(table)))
    for entry in entries:
        entry["numpy_type"] = "object"
    frame = table.replace_schema_metadata(_with_document(table.schema.metadata, document)).to_pandas()
    for position, label in enumerate(frame.columns):
        if label in columns:
            frame.isetitem(position, pd.arrays.ArrowExtensionArray(columns[label]))
    return frame


def dtype_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    """Return the pandas dtype names by column, for display; empty if the document is malformed."""
    names: dict[str, str] = {}
    with contextlib.suppress(ValueError, KeyError, TypeError):  # any software may have written it
        for entry in _document(metadata)["columns"]:
            if entry["pandas_type"] == "categorical":
                names[entry["field_name"]] = "category"
            elif entry["pandas_type"] != "datetimetz":  # numpy_type lacks the zone: Arrow's type has it
                names[entry["field_name"]] = str(entry["numpy_type"])
    return names


def index_columns(metadata: Mapping[bytes, bytes] | None) -> list[str]:
    """Return the columns that contain the index."""
    return [level for level in _document(metadata).get("index_columns", []) if isinstance(level, str)]


def pandas_attributes(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """Return ``df.attrs`` from the entry ``pandas``."""
    attributes: dict[str, Any] = _document(metadata).get("attributes", {})
    return attributes


def frame_attrs(metadata: Mapping[bytes, bytes] | None) -> dict[Any, Any]:
    """Return ``df.attrs`` from the entry ``PANDAS_ATTRS``."""
    return _parsed((metadata or {}).get(_ATTRS, b"{}"), "PANDAS_ATTRS")


def with_frame_attrs(metadata: Mapping[bytes, bytes], frame: pd.DataFrame) -> dict[bytes, bytes]:
    """Add ``df.attrs`` of a frame, if there are any, as ``DataFrame.to_parquet`` does."""
    return {**metadata} | ({_ATTRS: json.dumps(frame.attrs).encode()} if frame.attrs else {})
