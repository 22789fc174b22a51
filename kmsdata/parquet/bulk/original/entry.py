"""Read and write the entry ``kmsdata.original``: what a file said of its columns before they were encrypted.

Each column has one part, encrypted under its data key: a JSON object whose members are all optional::

    elements   its part of the Parquet schema, as a Thrift struct      see `types`
    field      its field in the Arrow schema, as an IPC message
    spark      its field in Spark's schema                             see `kmsdata.frames.metadata.documents`
    geo        its member of GeoParquet's document
    schema     spark and geo in the metadata of the Arrow schema, if they differ from those of the file
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kmsdata.errors import FormatError, TamperedError
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import Header, base64_bytes, base64_text, canonical

__all__ = [
    "ORIGINAL",
    "malformed",
    "opened",
    "opened_part",
    "seal",
    "sealed_columns",
    "with_sealed",
]

ORIGINAL = b"kmsdata.original"

Members = dict[str, Any]
Sealed = dict[str, str]


def seal(name: str, members: Mapping[str, Any], data_key: DataKey) -> Sealed:
    """Return a column's part of the entry, encrypted."""
    sealed = data_key._seal_original(name, canonical(dict(members)).encode())
    return {"data_key": base64_text(data_key.commitment), "sealed": base64_text(sealed)}


def opened(
    entries: Mapping[bytes, bytes],
    headers: Mapping[str, Header],
    data_keys: Mapping[bytes, DataKey],
    path: str,
) -> dict[str, Members]:
    """Return the decrypted parts of these columns, of those that have one.

    Args:
        entries: key-value metadata.
        headers: the headers of the columns.
        data_keys: their data keys, by commitment.
        path: the file's name, for errors.

    Raises:
        FormatError: the entry is malformed.
        TamperedError: the part of a column was changed, or moved here from another column. A part of the
            same column and data key from another file is not noticed (see SECURITY.md).
    """
    found = {}
    for name, item in sealed_columns(entries, path).items():
        if name in headers and (part := opened_part(name, item, headers[name], data_keys, path)) is not None:
            found[name] = part
    return found


def opened_part(
    name: str, sealed: Sealed, header: Header, data_keys: Mapping[bytes, DataKey], path: str
) -> Members | None:
    """Return the decrypted part of a column.

    Returns:
        None if it is under a data key that the column's header does not have: some software replaced the
        column, but not the metadata.
    """
    commitment = base64_bytes(sealed["data_key"]) or b""
    if commitment not in [record.commitment for record in header.records]:
        return None
    plain = data_keys[commitment]._open_original(name, base64_bytes(sealed["sealed"]) or b"")
    if plain is None:
        raise TamperedError(
            f"{path}: column {name!r}: its part of the metadata entry 'kmsdata.original' is not authentic. "
            "Restore the file from a copy, or decrypt it with kmsdata.read_parquet, which does not use "
            "this entry",
            path=path,
            column=name,
        )
    return _parsed(plain, name, path)


def _parsed(plain: bytes, name: str, path: str) -> Members:
    """Parse a decrypted part; the members that are bytes are decoded."""
    try:
        members = json.loads(plain)
        json.dumps(members, ensure_ascii=False).encode()  # UnicodeEncodeError, a ValueError: lone surrogates
        fine = isinstance(members, dict) and _are_documents(members)
        fine = fine and _are_documents(members.get("schema", {}))
        for key in {"elements", "field"} & members.keys() if fine else ():
            members[key] = base64_bytes(members[key])
            fine = fine and members[key] is not None
    except (ValueError, RecursionError):
        fine = False
    if not fine:
        raise malformed(name, path)
    return members


def malformed(name: str, path: str) -> FormatError:
    """Return the error for a part that is authentic, but in a form that this version does not know."""
    return FormatError(
        f"{path}: column {name!r}: its part of the metadata entry 'kmsdata.original' is malformed: it was "
        "written by other software, or by a later version of kmsdata",
        path=path,
        column=name,
    )


def _are_documents(members: Any) -> bool:
    if not isinstance(members, dict) or not isinstance(members.get("spark", ""), str):
        return False
    geo = members.get("geo", {"order": [], "following": [], "part": "", "primary": None, "rest": ""})
    return (
        isinstance(geo, dict)
        and geo.keys() == {"following", "order", "part", "primary", "rest"}
        and all(isinstance(geo[key], str) for key in ("part", "rest"))
        and isinstance(geo["primary"], (str, type(None)))
        and all(isinstance(geo[key], list) for key in ("following", "order"))
        and all(isinstance(name, str) for name in [*geo["following"], *geo["order"]])
    )


def sealed_columns(entries: Mapping[bytes, bytes], path: str) -> dict[str, Sealed]:
    """Return the encrypted part of each column.

    Raises:
        FormatError: the entry is malformed.
    """
    if (text := entries.get(ORIGINAL)) is None:
        return {}
    try:
        document = json.loads(text)
        columns: dict[str, Sealed] = document["columns"]
        fine = (
            document.keys() == {"columns", "version"}
            and document["version"] == 1
            and all(
                item.keys() == {"data_key", "sealed"} and all(isinstance(part, str) for part in item.values())
                for item in columns.values()
            )
        )
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        fine = False
    if not fine:
        raise FormatError(f"{path}: its metadata entry 'kmsdata.original' is damaged", path=path)
    return columns


def with_sealed(entries: Mapping[bytes, bytes], columns: Mapping[str, Sealed]) -> dict[bytes, bytes]:
    """Return key-value metadata whose entry has these parts and no others; no entry if there are none."""
    out = {key: text for key, text in entries.items() if key != ORIGINAL}
    if columns:
        out[ORIGINAL] = canonical({"columns": dict(columns), "version": 1}).encode()
    return out
