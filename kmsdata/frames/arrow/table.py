"""Encrypt and decrypt Arrow tables and streams: columns under one data key. Nothing is changed in place."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from kmsdata import codec
from kmsdata.errors import FormatError, KmsDataError, UnsupportedTypeError
from kmsdata.frames.arguments import (
    Columns,
    chosen_columns,
    column_names,
    refuse_encrypted,
    refuse_repeated,
    require,
    required_names,
)
from kmsdata.frames.arrow.sources import empty_table, received
from kmsdata.frames.arrow.streams import changed_stream
from kmsdata.frames.arrow_storage import is_bytes_or_text, looks_like_cells, plain_binary, validated
from kmsdata.frames.column import NOTHING_DECRYPTED, check_type_of_parts, open_arrow, plan, seal
from kmsdata.frames.dtype import EncryptedArray, EncryptedDtype, EncryptedType
from kmsdata.frames.encrypted_columns import (
    Encrypted,
    HeaderSearch,
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
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import ENTRY, ColumnHeader, Header, file_text, parse_file
from kmsdata.keys.session import Key
from kmsdata.keys.unwrap import open_keys

__all__ = ["decrypt_table", "encrypt_table"]

_WHERE = "the metadata of the table's schema"


def encrypt_table(
    table: Any,
    columns: Columns = (),
    *,
    deterministic: Columns | bool = (),
    key: Key | Encrypted | None = None,
    domain: str | Mapping[str, str] | None = None,
    context: Mapping[str, str] | None = None,
    encrypted: Columns | None = None,
) -> Any:
    """Encrypt columns of an Arrow table, or of the data of any library that has Arrow's interface.

    Args:
        table: an Arrow table, record batch or reader, or any object with ``__arrow_c_stream__`` or
            ``__arrow_c_array__``, such as a frame of Polars or narwhals, or a relation of DuckDB; it is not
            changed.
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
        The data, with those columns of the extension type ``kmsdata.encrypted``: a table, record batch, or
        frame of Polars or narwhals if that came in, otherwise an Arrow table. A `pyarrow.RecordBatchReader`
        gives another one, which encrypts each batch when it is read; all batches have one data key.

        What GeoParquet's and Spark's metadata say about the columns (such as bounding boxes), the name of an
        extension type that is not registered, and the categories that Polars writes are removed; unlike
        `decrypt_parquet`, `decrypt_table` does not restore them.

    Raises:
        KeyError: no such column. TypeError, ValueError: see the message, also where other metadata of the
            schema contains values of the columns.
        FormatError: a column of ``encrypted`` would stay unencrypted, or the table's Arrow data is malformed.
        UnsupportedTypeError: the values could not be restored exactly; or a reader has a column of
            dictionaries, whose values may differ from batch to batch.
        KeyServiceError: a KMS call failed.

    Example:
        >>> import pyarrow as pa, kmsdata
        >>> table = pa.table({"name": ["Ada", "Bo"], "age": [36, 41]})
        >>> sealed = kmsdata.encrypt_table(table, ["age"], key="local://demo")
        >>> kmsdata.decrypt_table(sealed).equals(table)
        True
        >>> reader = kmsdata.encrypt_table(table.to_reader(), ["age"], key="local://demo")
        >>> kmsdata.decrypt_table(reader).read_all().equals(table)
        True
    """
    source, give_back = received(table, "encrypt_table()", "df.kms.encrypt()")
    streams = isinstance(source, pa.RecordBatchReader)
    # The schema of a stream decides before its first batch is read; a table is checked with its values.
    data = with_arrow_types(empty_table(source.schema) if streams else source)
    chosen = chosen_columns(data.column_names, columns, deterministic, domain, [])
    for name in chosen:
        kind = data.schema.field(name).type
        refuse_encrypted(name, isinstance(kind, EncryptedType))
        if streams and pa.types.is_dictionary(kind):
            raise _of_dictionaries(name, kind)
        validated(data.column(name), name)
    _check_required(data, chosen, encrypted)
    check_new_names(chosen, parsed_headers(data))
    metadata, texts = _metadata_without(data, list(chosen))
    for name in chosen:
        refuse_values_in_metadata(data.column(name), texts, name, _WHERE)
    data_key = data_key_for(key, context, None if streams else data.num_rows * len(chosen))
    change = _Encryption.of(data, chosen, data_key, metadata, texts)
    if not streams:
        return give_back(change.encrypt(data))
    return give_back(changed_stream(source, change.schema, change))


def decrypt_table(
    table: Any,
    columns: Columns | None = None,
    *,
    key: Key | Encrypted | None = None,
    context: Mapping[str, str] | None = None,
) -> Any:
    """Decrypt columns of an Arrow table, or of the data of any library that has Arrow's interface.

    Args:
        table: data with columns of the extension type ``kmsdata.encrypted``: of each kind that
            `encrypt_table` takes.
        columns: names of the columns to decrypt; None for all.
        key: the only keys that may be used: a URI, several, a `DataKey`, or encrypted data; None: keys of the
            session key's provider.
        context: pairs that the authenticated context must contain.

    Returns:
        The data, with those columns of their original Arrow type; of the same kinds as for `encrypt_table`.
        A reader gives another one, which decrypts each batch when it is read. Every cell of a batch is
        authenticated before the batch is returned, but later batches may still fail: do not use what you have
        read as complete before the stream has ended.

    Raises:
        FormatError: a named column is not encrypted, or a header was changed; or, without ``columns``, a
            column looks like cells whose header was dropped (see `kmsdata.attach`).
        TamperedError: cells fail authentication; in a stream, ``rows`` are positions in the whole stream.
        WrongKeyError: not the key of the data.
        UnsupportedTypeError: a reader has a column whose Arrow type depends on its values.
        KeyServiceError: a KMS call failed.
    """
    source, give_back = received(table, "decrypt_table()", "df.kms.decrypt()")
    streams = isinstance(source, pa.RecordBatchReader)
    data = with_arrow_types(empty_table(source.schema) if streams else source)
    wanted = None if columns is None else column_names(columns)
    headers = table_headers(data.schema, wanted)
    names = list(headers) if wanted is None else wanted
    for name in names:
        require(data.column_names, name)
        refuse_repeated(data.column_names, name)
        if name not in headers:
            if looks_like_cells(data.column(name).chunks, name):
                raise lost_header(name, named=True)
            lost = streams and is_bytes_or_text(data.schema.field(name).type)
            raise FormatError(
                f"column {name!r} is not encrypted: it has no kmsdata header"
                + (". If it contains cells, attach the header with kmsdata.attach()" if lost else ""),
                column=name,
            )
    if wanted is None and (found := table_without_header(data)):
        raise lost_header(found[0])
    if streams:
        for name in names:
            check_type_of_parts(headers[name], name)
    keys = open_keys([(name, headers[name]) for name in names], resolve_key(key), context)
    check_names(headers, beside=parsed_headers(data))
    # Before anything is decrypted: errors about metadata must not find plaintext in this frame.
    metadata = in_pandas_metadata(data.schema.metadata, names, back=True)
    if metadata is not None:
        metadata = with_entries(metadata, pandas_entries({name: headers[name] for name in names}, keys))
    search = HeaderSearch() if wanted is None and streams else None
    change = _Decryption(
        {name: headers[name] for name in names}, keys, _with_columns(metadata, names, {}), search
    )
    decrypted = change.decrypt(data)
    if not streams:
        return give_back(decrypted)
    at_end = None if search is None else search.warn_of_single_values
    return give_back(changed_stream(source, decrypted.schema, change, at_end))


@dataclass(frozen=True)
class _Encryption:
    """Encrypts columns of a table, or of each batch of a stream, with the same headers.

    Attributes:
        schema: that of the result.
    """

    schema: pa.Schema
    _columns: Mapping[str, tuple[ColumnHeader, codec.Description]] = field(repr=False)
    _data_key: DataKey = field(repr=False)
    _texts: pa.Array = field(repr=False)

    @classmethod
    def of(
        cls,
        data: pa.Table,
        chosen: Mapping[str, str | None],
        data_key: DataKey,
        metadata: Mapping[bytes, bytes] | None,
        texts: pa.Array,
    ) -> _Encryption:
        """Make the headers, and the schema with them."""
        schema, dtypes = data.schema, pandas_dtypes(data.schema)
        columns: dict[str, tuple[ColumnHeader, codec.Description]] = {}
        headers: dict[str, Header] = {}
        for name, scope in chosen.items():
            columns[name] = plan(data.column(name), name, data_key, domain=scope, dtype=dtypes.get(name))
            headers[name] = Header.of([columns[name][0]], [data_key.record])
            dtype, position = EncryptedDtype(headers[name]), schema.get_field_index(name)
            kind = EncryptedArray(pa.array([], dtype._storage_type), dtype).__arrow_array__().type
            schema = schema.set(position, _encrypted_field(schema.field(position), kind))
        described = _with_columns(in_pandas_metadata(metadata, list(chosen)), (), headers)
        # pyarrow 26 makes {} of None in with_metadata().
        schema = schema.remove_metadata() if described is None else schema.with_metadata(described)
        return cls(schema, columns, data_key, texts)

    def __call__(self, batch: pa.Table, _: int) -> pa.Table:
        """Check and encrypt a batch."""
        batch = with_arrow_types(batch)
        for name in self._columns:
            values = validated(batch.column(name), name)
            refuse_values_in_metadata(values, self._texts, name, _WHERE)
        return self.encrypt(batch)

    def encrypt(self, table: pa.Table) -> pa.Table:
        """Encrypt a table that was checked."""
        arrays = table.columns
        for name, (header, described) in self._columns.items():
            position = table.schema.get_field_index(name)
            cells = seal(header, described, arrays[position], name, self._data_key)
            arrays[position] = EncryptedArray(cells, self.schema.field(position).type.dtype).__arrow_array__()
        return pa.Table.from_arrays(arrays, schema=self.schema)


@dataclass(frozen=True)
class _Decryption:
    """Decrypts columns of a table, or of each batch of a stream.

    Attributes:
        headers: of the columns to decrypt.
        keys: the data keys, by commitment.
        metadata: of the result's schema.
        search: for columns that look like cells without their header, in a stream; None: not wanted.
    """

    headers: Mapping[str, Header] = field(repr=False)
    keys: Mapping[bytes, DataKey] = field(repr=False)
    metadata: Mapping[bytes, bytes] | None = field(repr=False)
    search: HeaderSearch | None = None

    def __call__(self, batch: pa.Table, first: int) -> pa.Table:
        """Check and decrypt a batch."""
        batch = with_arrow_types(batch)
        if self.search is not None and (found := self.search.add(batch)):
            raise lost_header(found[0])
        try:
            return self.decrypt(batch, first)
        except KmsDataError as error:
            text = str(error).replace(
                NOTHING_DECRYPTED, "Nothing of this batch was decrypted, the batches before it were"
            )
            raise type(error)(text, **vars(error)) from None

    def decrypt(self, table: pa.Table, first: int = 0) -> pa.Table:
        """Decrypt a table that was checked; ``first`` is the position of its first row, for errors."""
        done: dict[str, Any] = {}
        try:
            for name, header in self.headers.items():
                done[name] = open_arrow(
                    header, self.keys, plain_binary(table.column(name)), name, first=first
                )
        except BaseException:
            done.clear()
            raise
        for name, values in done.items():
            position = table.schema.get_field_index(name)
            table = table.set_column(position, table.schema.field(position).with_type(values.type), values)
        return table.replace_schema_metadata(self.metadata)


def _of_dictionaries(name: str, kind: pa.DataType) -> UnsupportedTypeError:
    return UnsupportedTypeError(
        f"column {name!r} is {kind}: each batch of a stream may have another list of values, which the "
        f"header of the column contains. Cast the column to {kind.value_type} (RecordBatchReader.cast), "
        "or pass the data as a table (RecordBatchReader.read_all)",
        column=name,
        dtype=str(kind),
    )


def _metadata_without(table: pa.Table, names: list[str]) -> tuple[dict[bytes, bytes] | None, pa.Array]:
    """Return the schema metadata without what other software wrote about columns to encrypt, and its texts.

    Raises:
        ValueError: other metadata contains statistics of a column.
    """
    rest, _ = without_columns(table.schema.metadata or {}, names)
    beside = [text for key, text in rest.items() if key not in (b"pandas", ENTRY)]
    beside += [json.dumps(pandas_attributes(rest)).encode()]
    for item in table.schema:
        for inner in _kept_fields(item, encrypted=item.name in names):
            beside += (_encrypted_field(inner, inner.type).metadata or {}).values()
    refuse_statistics(beside, dict.fromkeys(names), _WHERE)
    texts = metadata_texts(beside, table.schema.names)
    return (rest if table.schema.metadata is not None else None), texts


def _kept_fields(column: pa.Field, *, encrypted: bool) -> Iterator[pa.Field]:
    """Yield the field of a column, and those inside of its type, which an encrypted column does not keep."""
    waiting = [column]
    while waiting:
        yield (one := waiting.pop())
        if not encrypted:
            kind = one.type.storage_type if isinstance(one.type, pa.BaseExtensionType) else one.type
            if pa.types.is_dictionary(kind):  # its values may be structs
                kind = kind.value_type
            waiting += [kind.field(at) for at in range(kind.num_fields)]


def _encrypted_field(old: pa.Field, kind: pa.DataType) -> pa.Field:
    """Return the field of an encrypted column.

    The metadata of an extension type that is not registered would contradict the new type: readers would not
    find the header. Polars writes the categories of an Enum, which are values, into entries ``_PL_...``.
    """
    drop = (b"ARROW:extension:", b"_PL_")
    kept = {key: text for key, text in (old.metadata or {}).items() if not key.startswith(drop)}
    new = old.with_type(kind)
    return new.with_metadata(kept) if kept else new.remove_metadata()


def _check_required(table: pa.Table, chosen: Collection[str], encrypted: Columns | None) -> None:
    """Raise FormatError if one of the columns that must be encrypted would stay unencrypted."""
    for name in required_names(encrypted):
        require(table.column_names, name)
        types = [item.type for item in table.schema if item.name == name]
        if name not in chosen and not all(isinstance(kind, EncryptedType) for kind in types):
            raise FormatError(
                f"column {name!r} must be encrypted, but is not among the columns to encrypt", column=name
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
