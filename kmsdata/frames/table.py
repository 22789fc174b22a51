"""Encrypt and decrypt Arrow tables: several columns, one data key. Nothing is changed in place."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pyarrow as pa

from kmsdata.errors import CallerTypeError, FormatError
from kmsdata.frames.arguments import (
    Columns,
    chosen_columns,
    column_names,
    refuse_encrypted,
    refuse_repeated,
    require,
    required_names,
)
from kmsdata.frames.arrow_storage import looks_like_cells, plain_binary, validated
from kmsdata.frames.column import encrypt_column, open_arrow
from kmsdata.frames.dtype import EncryptedType
from kmsdata.frames.encrypted_columns import (
    Encrypted,
    check_names,
    check_new_names,
    lost_header,
    parsed_headers,
    table_headers,
    table_without_header,
    with_arrow_types,
)
from kmsdata.frames.key_argument import data_key_for, resolve_key
from kmsdata.frames.metadata.documents import without_columns
from kmsdata.frames.metadata.pandas_entry import (
    in_pandas_metadata,
    pandas_attributes,
    pandas_dtypes,
    pandas_entries,
    with_entries,
)
from kmsdata.frames.metadata.values import metadata_texts, refuse_statistics, refuse_values_in_metadata
from kmsdata.keys.envelope import ENTRY, Header, file_text, parse_file
from kmsdata.keys.session import Key
from kmsdata.keys.unwrap import open_keys

__all__ = ["decrypt_table", "encrypt_table"]


def encrypt_table(
    table: pa.Table,
    columns: Columns = (),
    *,
    deterministic: Columns | bool = (),
    key: Key | Encrypted | None = None,
    domain: str | Mapping[str, str] | None = None,
    context: Mapping[str, str] | None = None,
    encrypted: Columns | None = None,
) -> pa.Table:
    """Encrypt columns of an Arrow table.

    Args:
        table: any table; it is not changed.
        columns: name or names of the columns to encrypt with random IVs.
        deterministic: names of the columns to encrypt so that equal values have equal cells; True for all of
            ``columns``.
        key: a key URI, several, a `DataKey`, or encrypted data whose data key to use; None: the session's.
        domain: deterministic columns of one domain can be joined: a mapping by column, or one text for one
            column.
        context: pairs that are stored unencrypted next to the wrapped key, and are required to unwrap it.
        encrypted: name or names of the columns that must be encrypted in the result; checked before a key
            is made.

    Returns:
        The table, with those columns of the extension type ``kmsdata.encrypted``. What GeoParquet's and
        Spark's metadata say about them (such as bounding boxes) and the name of an extension type that is not
        registered are removed; unlike `decrypt_parquet`, `decrypt_table` does not restore them.

    Raises:
        KeyError: no such column. TypeError, ValueError: see the message, also where other metadata of the
            schema contains values of the columns.
        FormatError: a column of ``encrypted`` would stay unencrypted, or the table's Arrow data is malformed.
        UnsupportedTypeError: the values could not be restored exactly.
        KeyServiceError: a KMS call failed.

    Example:
        >>> import pyarrow as pa, kmsdata
        >>> table = pa.table({"name": ["Ada", "Bo"], "age": [36, 41]})
        >>> sealed = kmsdata.encrypt_table(table, ["age"], key="local://demo")
        >>> kmsdata.decrypt_table(sealed).equals(table)
        True
    """
    _require_table(table, "encrypt_table", "df.kms.encrypt()")
    table = with_arrow_types(table)
    chosen = chosen_columns(table.column_names, columns, deterministic, domain, [])
    for name in chosen:
        refuse_encrypted(name, isinstance(table.schema.field(name).type, EncryptedType))
        validated(table.column(name), name)
    _check_required(table, chosen, encrypted)
    check_new_names(chosen, parsed_headers(table))
    metadata = _metadata_without(table, list(chosen))
    data_key = data_key_for(key, context, table.num_rows * len(chosen))
    schema, dtypes = table.schema, pandas_dtypes(table.schema)
    new: dict[str, Header] = {}
    for name, scope in chosen.items():
        cells = encrypt_column(table.column(name), name, data_key, scope, dtypes.get(name))
        array, new[name] = cells.__arrow_array__(), cells.dtype.header
        position = schema.get_field_index(name)
        table = table.set_column(position, _encrypted_field(schema.field(position), array.type), array)
    metadata = in_pandas_metadata(metadata, list(chosen))
    return table.replace_schema_metadata(_with_columns(metadata, (), new))


def decrypt_table(
    table: pa.Table,
    columns: Columns | None = None,
    *,
    key: Key | Encrypted | None = None,
    context: Mapping[str, str] | None = None,
) -> pa.Table:
    """Decrypt columns of an Arrow table.

    Args:
        table: a table with columns of the extension type ``kmsdata.encrypted``.
        columns: names of the columns to decrypt; None for all.
        key: the only keys that may be used: a URI, several, or a `DataKey`; None: keys of the session key's
            provider.
        context: pairs that the authenticated context must contain.

    Returns:
        The table, with those columns of their original Arrow type.

    Raises:
        FormatError: a named column is not encrypted, or a header was changed; or, without ``columns``, a
            column looks like cells whose header was dropped (see `kmsdata.attach`).
        TamperedError: cells fail authentication. WrongKeyError: not the key of the data.
        KeyServiceError: a KMS call failed.
    """
    _require_table(table, "decrypt_table", "df.kms.decrypt()")
    table = with_arrow_types(table)
    wanted = None if columns is None else column_names(columns)
    headers = table_headers(table, wanted)
    names = list(headers) if wanted is None else wanted
    for name in names:
        require(table.column_names, name)
        refuse_repeated(table.column_names, name)
        if name not in headers:
            if looks_like_cells(table.column(name).chunks, name):
                raise lost_header(name, named=True)
            raise FormatError(f"column {name!r} is not encrypted: it has no kmsdata header", column=name)
    if wanted is None and (lost := table_without_header(table)):
        raise lost_header(lost[0])
    keys = open_keys([(name, headers[name]) for name in names], resolve_key(key), context)
    check_names(headers, beside=parsed_headers(table))
    # Before anything is decrypted: errors about metadata must not find plaintext in this frame.
    metadata = in_pandas_metadata(table.schema.metadata, names, back=True)
    if metadata is not None:
        metadata = with_entries(metadata, pandas_entries({name: headers[name] for name in names}, keys))
    metadata = _with_columns(metadata, names, {})
    done: dict[str, Any] = {}
    try:
        for name in names:
            done[name] = open_arrow(headers[name], keys, plain_binary(table.column(name)), name)
    except BaseException:
        done.clear()
        raise
    for name, values in done.items():
        position = table.schema.get_field_index(name)
        table = table.set_column(position, table.schema.field(position).with_type(values.type), values)
    return table.replace_schema_metadata(metadata)


def _metadata_without(table: pa.Table, names: list[str]) -> dict[bytes, bytes] | None:
    """Return the schema metadata without what other software wrote about columns to encrypt.

    Raises:
        ValueError: other metadata contains values of a column.
    """
    rest, _ = without_columns(table.schema.metadata or {}, names)
    where = "the metadata of the table's schema"
    beside = [text for key, text in rest.items() if key not in (b"pandas", ENTRY)]
    beside += [json.dumps(pandas_attributes(rest)).encode()]
    for field in table.schema:
        beside += (_encrypted_field(field, field.type).metadata or {}).values()
    refuse_statistics(beside, dict.fromkeys(names), where)
    texts = metadata_texts(beside, table.schema.names)
    for name in names:
        refuse_values_in_metadata(table.column(name), texts, name, where)
    return rest if table.schema.metadata is not None else None


def _encrypted_field(field: pa.Field, kind: pa.DataType) -> pa.Field:
    """Return the field of an encrypted column.

    The metadata of an extension type that is not registered would contradict the new type: readers would not
    find the header.
    """
    kept = {
        key: text for key, text in (field.metadata or {}).items() if not key.startswith(b"ARROW:extension:")
    }
    field = field.with_type(kind)
    return field.with_metadata(kept) if kept else field.remove_metadata()


def _check_required(table: pa.Table, chosen: Collection[str], encrypted: Columns | None) -> None:
    """Raise FormatError if one of the columns that must be encrypted would stay unencrypted."""
    for name in required_names(encrypted):
        require(table.column_names, name)
        if name not in chosen and not isinstance(table.schema.field(name).type, EncryptedType):
            raise FormatError(
                f"column {name!r} must be encrypted, but is not among the columns to encrypt", column=name
            )


def _require_table(table: object, function: str, frames: str) -> None:
    if not isinstance(table, pa.Table):
        raise CallerTypeError(
            f"{function}() takes an Arrow table, not {type(table).__name__}. For a frame, use {frames}"
        )


def _with_columns(
    metadata: dict[bytes, bytes] | None, gone: Iterable[str], new: Mapping[str, Header]
) -> dict[bytes, bytes] | None:
    """Update the entry ``kmsdata`` in schema metadata: which columns are encrypted now.

    A table that was read from a file keeps the entry, and so does a file that is written from the table. Its
    readers treat the columns that the entry names as cells, so it must not name decrypted columns.
    """
    if metadata is None or ENTRY not in metadata:
        return metadata
    try:
        before = parse_file(metadata[ENTRY].decode("utf-8", "surrogateescape"))
    except FormatError:  # malformed: it stays unchanged, and readers that need it raise the error
        return metadata
    after = {name: header for name, header in before.items() if name not in gone} | dict(new)
    rest = {key: text for key, text in metadata.items() if key != ENTRY}
    return rest | ({ENTRY: file_text(after).encode()} if after else {})
