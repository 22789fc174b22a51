"""Schema metadata: what pandas, and the entry of a file, say there of columns that are encrypted or were."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

from kmsdata.errors import FormatError, UnsupportedTypeError
from kmsdata.frames.column import open_pandas
from kmsdata.frames.dtype import EncryptedDtype
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import ENTRY, Header, file_text, parse_file

__all__ = [
    "in_pandas_metadata",
    "index_columns",
    "pandas_attributes",
    "pandas_dtypes",
    "pandas_entries",
    "with_columns",
    "with_entries",
]


def in_pandas_metadata(
    metadata: Mapping[bytes, bytes] | None, columns: Sequence[str], *, back: bool = False
) -> dict[bytes, bytes] | None:
    """Schema metadata in which pandas takes these columns for bytes: readers without kmsdata fail else.

    What stood there is kept beside it, and put back where the columns are decrypted.
    """
    if metadata is None or b"pandas" not in metadata:
        return None if metadata is None else dict(metadata)
    document = json.loads(metadata[b"pandas"])
    for entry in document.get("columns", []):
        if entry.get("field_name", entry.get("name")) in columns:
            if back:
                entry |= entry.pop("kmsdata", {})
            else:
                was = {key: entry.get(key) for key in ("pandas_type", "numpy_type", "metadata")}
                entry |= {"pandas_type": "bytes", "numpy_type": "object", "metadata": None, "kmsdata": was}
    return {**metadata, b"pandas": json.dumps(document).encode()}


def pandas_entries(headers: Mapping[str, Header], keys: Mapping[bytes, DataKey]) -> dict[str, dict[str, Any]]:
    """What pandas' metadata says of columns that were encrypted in pandas: their headers know it."""
    entries = {}
    for name, header in headers.items():
        if not all("pandas" in item.type for item in header.columns):
            continue
        empty = pa.array([], EncryptedDtype(header)._storage_type)
        with contextlib.suppress(UnsupportedTypeError, pa.ArrowException, TypeError, ValueError):
            frame = pd.DataFrame({name: open_pandas(header, keys, empty, name)})
            made = pa.Schema.from_pandas(frame, preserve_index=False).metadata[b"pandas"]
            entry = json.loads(made)["columns"][0]
            if entry["pandas_type"] != "empty":  # objects, of which none is at hand
                entries[name] = entry
    return entries


def with_entries(metadata: dict[bytes, bytes], entries: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Schema metadata in which pandas' own says this of these columns."""
    if b"pandas" not in metadata:
        return metadata
    document = json.loads(metadata[b"pandas"])
    for entry in document.get("columns", []):
        if was := entries.get(entry.get("field_name")):
            entry |= {key: was[key] for key in ("pandas_type", "numpy_type", "metadata")}
    return {**metadata, b"pandas": json.dumps(document).encode()}


def with_columns(
    metadata: dict[bytes, bytes] | None, gone: Iterable[str], new: Mapping[str, Header]
) -> dict[bytes, bytes] | None:
    """Schema metadata whose entry of a file says which columns are encrypted now.

    Whoever writes the table writes the entry along, and readers take bytes that it names for cells.
    """
    if metadata is None or ENTRY not in metadata:
        return metadata
    try:
        before = parse_file(metadata[ENTRY].decode("utf-8", "surrogateescape"))
    except FormatError:  # no entry of ours: readers say so where they need it
        return metadata
    after = {name: header for name, header in before.items() if name not in gone} | dict(new)
    rest = {key: text for key, text in metadata.items() if key != ENTRY}
    return rest | ({ENTRY: file_text(after).encode()} if after else {})


def pandas_dtypes(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """The pandas dtypes that schema metadata names, by column, where the name alone says the dtype."""
    document = json.loads((metadata or {}).get(b"pandas", b"{}"))
    dtypes = {}
    for entry in document.get("columns", []):
        with contextlib.suppress(TypeError, ValueError, KeyError):
            dtypes[entry["field_name"]] = pd.api.types.pandas_dtype(entry["numpy_type"])
    return dtypes


def index_columns(metadata: Mapping[bytes, bytes] | None) -> list[str]:
    """Return the columns that pandas takes for levels of the index."""
    document = json.loads((metadata or {}).get(b"pandas", b"{}"))
    return [level for level in document.get("index_columns", []) if isinstance(level, str)]


def pandas_attributes(metadata: Mapping[bytes, bytes] | None) -> Any:
    """Return what ``DataFrame.attrs`` held when pandas wrote this metadata."""
    return json.loads((metadata or {}).get(b"pandas", b"{}")).get("attributes", {})
