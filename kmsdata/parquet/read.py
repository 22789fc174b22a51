"""Parquet files with encrypted columns: written whole or not at all, read without any key.

What stands where in a file::

    schema   ARROW:extension:name = kmsdata.encrypted, ARROW:extension:metadata = the column's header
    footer   key-value metadata "kmsdata" = the headers of all encrypted columns
    pages    cells as byte arrays (of fixed length where all are equally long by type), no statistics
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from kmsdata.errors import FormatError, KeyServiceError, WrongKeyError
from kmsdata.frames.dtype import EncryptedArray, EncryptedDtype, EncryptedType
from kmsdata.frames.search import FileSearch, filter_terms
from kmsdata.frames.table import (
    Columns,
    Encrypted,
    check_names,
    column_names,
    decrypt_frame,
    encrypted_columns,
    in_extension_dtype,
    require,
    required_names,
    with_headers,
)
from kmsdata.keys.envelope import ENTRY, DataKeyRecord, Header, file_text, parse_file
from kmsdata.keys.session import Key
from kmsdata.parquet.journal import what_mends
from kmsdata.parquet.locations import FilePath, Place, from_url, whole

__all__ = [
    "FilePath",
    "files_of",
    "fragments_of",
    "headers_in",
    "naming_the_file",
    "read_headers",
    "read_parquet",
    "settings_for",
    "write_parquet",
]


def write_parquet(
    frame: pd.DataFrame, path: FilePath, *, index: bool | None = None, filesystem: Any = None, **options: Any
) -> None:
    """See `kmsdata.api.accessor.FrameAccessor.to_parquet`."""
    _check_options(options)
    frame = _in_agreement(in_extension_dtype(frame))
    headers = {str(item.name): item.headers[0] for item in encrypted_columns(frame)}
    check_names(headers, path=str(path))
    table = pa.Table.from_pandas(frame, preserve_index=index, schema=options.pop("schema", None))
    metadata = dict(table.schema.metadata or {})
    if frame.attrs:
        metadata[b"PANDAS_ATTRS"] = json.dumps(frame.attrs).encode()  # as DataFrame.to_parquet does
    if headers:
        metadata[ENTRY] = file_text(headers).encode()
    table = table.replace_schema_metadata(metadata)
    settings = settings_for(table.schema, options)
    with whole(Place.of(path, filesystem)) as file:
        pq.write_table(table, file, **settings)


def _in_agreement(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with one record of each data key: parts of it may have been rewrapped before they met."""
    every = [record for item in encrypted_columns(frame) for record in item.headers[0].records]
    records = _records_of_all(every)
    if all(records[record.commitment] == record for record in every):
        return frame
    return with_headers(frame, lambda header: header.under(records))


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse what would write no file of ours, or one that nobody could ever decrypt."""
    if unknown := options.keys() & {"partition_cols", "engine", "path"}:
        raise TypeError(
            f"to_parquet writes one file by pyarrow and takes no {min(unknown)}: for a partitioned dataset "
            "call df.to_parquet(), which keeps encrypted columns too"
        )
    if not options.get("store_schema", True):
        raise ValueError("store_schema=False would leave out the headers: nobody could decrypt the file")
    if options.get("flavor") == "spark":
        raise ValueError(
            "flavor='spark' renames columns, and a column is bound to its name: rename them before "
            "encrypting, and leave it out"
        )


def read_parquet(
    path: FilePath,
    *,
    columns: Columns | None = None,
    filters: Any = None,
    filesystem: Any = None,
    decrypt: bool = False,
    encrypted: Columns | None = None,
    key: Key | Encrypted | None = None,
) -> pd.DataFrame:
    """Read a Parquet file or dataset; its encrypted columns stay encrypted, and no key is needed.

    Args:
        path: file, or folder of a dataset.
        columns: name or names of the columns to read; None for all.
        filters: row filters, as `pandas.read_parquet` takes them. Those on deterministic columns (``==``,
            ``!=``, ``in``, ``not in``, in lists of terms) are answered on ciphertext, which takes the key: no
            more than the matching rows is ever decrypted. Nulls are as in any filter: ``!=`` leaves them out,
            ``in`` and ``not in`` take a null for a value.
        filesystem: pyarrow or fsspec filesystem; else by the path.
        decrypt: decrypt as well.
        encrypted: name or names that must be encrypted, so that a file whose header was stripped is noticed.
        key: only these may open it (for ``decrypt``, and filters on encrypted columns): a URI, several,
            or a `DataKey`.

    Returns:
        A frame; plain columns, index and attrs as pandas' own Parquet brings them.

    Raises:
        FormatError: a header that is malformed, or a column of ``encrypted`` that is not.
        TypeError: a filter on a randomised column, or one that compares ciphertext by more than equality;
            a value that the column cannot hold.

    Example:
        >>> import pandas as pd, kmsdata
        >>> df = pd.DataFrame({"ssn": ["078-05-1120"], "city": ["Lewiston"]})
        >>> df.kms.encrypt("ssn", key="local://demo").kms.to_parquet("people.parquet")
        >>> kmsdata.read_parquet("people.parquet", decrypt=True).equals(df)
        True
    """
    wanted = None if columns is None else column_names(columns)
    asked = required_names(encrypted)
    fragments = fragments_of(path, filesystem)
    looked_at = None
    if wanted is not None and not isinstance(filters, ds.Expression):
        filtered = [] if filters is None else [term[0] for group in filter_terms(filters) for term in group]
        looked_at = {*wanted, *asked, *filtered}
    files = {
        name: headers_in(
            fragment.physical_schema,
            name,
            looked_at,
            footer=fragment.metadata.metadata,
        )
        for name, (fragment, _) in fragments.items()
    }
    on_cells = _on_cells(filters, {column for headers in files.values() for column in headers})
    for name, headers in files.items():
        check_names(headers, path=name)
        for column in asked:
            if column not in headers:
                raise FormatError(
                    f"{name}: column {column!r} must be encrypted, but has no kmsdata header",
                    path=name,
                    column=column,
                )
    if on_cells:
        with naming_the_file(files):
            search = FileSearch(filters, files.values(), key)
        frame = _under_all_wraps(_searched(fragments, files, wanted, search), files)
        return _decrypted(frame, files, key) if decrypt else frame
    first = next(iter(files.values()))
    # One read where all files agree; else each by itself, since Arrow would put one's cells under the
    # header of another, or refuse.
    if all(_dtypes(headers) == _dtypes(first) for headers in files.values()):
        frame = _under_all_wraps(_restored(_read(path, wanted, filters, filesystem), first), files)
    else:
        frame = _each(fragments, files, wanted, filters)
    for column in asked:
        if column in frame and not isinstance(frame[column].dtype, EncryptedDtype):
            raise FormatError(f"{path}: column {column!r} changed while it was read", column=column)
    return _decrypted(frame, files, key) if decrypt else frame


def _decrypted(
    frame: pd.DataFrame, files: Mapping[str, Mapping[str, Header]], key: Key | Encrypted | None
) -> pd.DataFrame:
    with naming_the_file(files):
        return decrypt_frame(frame, key=key)


@contextlib.contextmanager
def naming_the_file(files: Mapping[str, Mapping[str, Header]]) -> Iterator[None]:
    """A data key that is refused, of those of several files: the error says which file is under it."""
    try:
        yield
    except (KeyServiceError, WrongKeyError) as error:
        under = [
            name
            for name, headers in files.items()
            for header in headers.values()
            if any(record.commitment.hex()[:8] == vars(error).get("data_key") for record in header.records)
        ]
        if len(files) == 1 or not under:
            raise
        more = len(set(under)) - 1
        others = f" and {more:,} more under its data key" if more else ""
        raise type(error)(f"{under[0]}{others}: {error}", **{**vars(error), "path": under[0]}) from None


def _under_all_wraps(frame: pd.DataFrame, files: Mapping[str, Mapping[str, Header]]) -> pd.DataFrame:
    """The frame with the wraps of all files: where some were rewrapped, Arrow takes those of one."""
    every = [record for headers in files.values() for header in headers.values() for record in header.records]
    records = _records_of_all(every)
    if all(records[record.commitment] == record for record in every):
        return frame
    return with_headers(frame, lambda header: header.under(records))


def _records_of_all(every: list[DataKeyRecord]) -> dict[bytes, DataKeyRecord]:
    """One record of each data key, with the wraps of all."""
    records: dict[bytes, DataKeyRecord] = {}
    for record in every:
        records[record.commitment] = records.get(record.commitment, record).with_wraps(record.wraps)
    return records


def read_headers(
    path: FilePath, filesystem: Any = None, *, columns: Columns | None = None
) -> dict[str, Header]:
    """The headers of a file or dataset, by column; needs no key.

    Args:
        path: file, or folder of a dataset.
        filesystem: pyarrow or fsspec filesystem; else by the path.
        columns: names of those to look at; None for all.

    Raises:
        FormatError: a header that is malformed, or headers that do not go together.
    """
    merged: dict[str, Header] = {}
    names = None if columns is None else set(column_names(columns))
    for name, (fragment, _) in fragments_of(path, filesystem).items():
        entries = fragment.metadata.metadata
        for column, header in headers_in(fragment.physical_schema, name, names, footer=entries).items():
            both = merged.get(column, header).union(header)
            if both is None:
                raise FormatError(
                    f"{name}: column {column!r} was encrypted otherwise than in other files: read it alone",
                    path=name,
                    column=column,
                )
            merged[column] = both
    return merged


def _read(path: FilePath, columns: list[str] | None, filters: Any, filesystem: Any) -> pd.DataFrame:
    try:
        return pd.read_parquet(
            path, columns=columns, filters=filters, filesystem=filesystem, engine="pyarrow"
        )
    except pa.ArrowInvalid as error:
        if columns is None or "FieldRef" not in str(error):
            raise
        for fragment, partition in fragments_of(path, filesystem).values():
            for name in columns:
                require([*fragment.physical_schema.names, *(field.name for field in partition)], name)
        raise


def _each(
    fragments: Mapping[str, Any],
    files: Mapping[str, Mapping[str, Header]],
    columns: list[str] | None,
    filters: Any,
) -> pd.DataFrame:
    """Files whose headers differ: each is read by itself, and their columns are united."""
    condition = None if filters is None else pq.filters_to_expression(filters)
    parts = []
    for name, (fragment, partition) in fragments.items():
        schema = fragment.physical_schema
        index = _index_levels(schema)
        for field in partition:
            schema = schema.append(field)
        chosen = None if columns is None else list(dict.fromkeys([*columns, *index]))
        table = fragment.to_table(schema=schema, columns=chosen, filter=condition)
        parts.append(_framed(table, files[name]))
    return _united(parts)


def _index_levels(schema: pa.Schema) -> list[str]:
    """The columns that hold the index, as pandas' metadata says."""
    stored = (schema.metadata or {}).get(b"pandas")
    if not stored:
        return []
    return [level for level in json.loads(stored)["index_columns"] if isinstance(level, str)]


def _framed(table: pa.Table, headers: Mapping[str, Header]) -> pd.DataFrame:
    """A table that was read from a file, as pandas makes a frame of it."""
    frame = _restored(table.to_pandas(), headers)
    frame.attrs = json.loads((table.schema.metadata or {}).get(b"PANDAS_ATTRS", b"{}"))
    return frame


def _united(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """The frames of several files as one."""
    parts = [part for part in parts if len(part)] or parts[:1]  # what has no rows must not sway the dtypes
    default = all(isinstance(part.index, pd.RangeIndex) for part in parts)
    return pd.concat(parts, ignore_index=default)


def files_of(path: FilePath, filesystem: Any) -> list[tuple[str, Any]]:
    """The files of a dataset by path, none of them opened yet: whatever is wrong with one is its own."""
    if filesystem is None and "://" in str(path):
        filesystem, path = from_url(str(path))
    elif filesystem is None:
        path = Path(path).expanduser()
    dataset = ds.dataset(path, pa.schema([]), format="parquet", filesystem=filesystem)
    found = [(fragment.path, fragment) for fragment in dataset.get_fragments()]
    if not found:
        raise FileNotFoundError(f"no Parquet file in {path}")
    return found if len(found) > 1 else [(str(path), found[0][1])]


def fragments_of(path: FilePath, filesystem: Any) -> dict[str, tuple[Any, list[pa.Field]]]:
    """The files of a dataset by path, each with the fields that its folders' names say."""
    hive = ds.HivePartitioning.discover(infer_dictionary=True)  # as pandas reads it
    try:
        if filesystem is None and "://" in str(path):
            filesystem, path = from_url(str(path))
        elif filesystem is None:
            path = Path(path).expanduser()
        dataset = ds.dataset(path, format="parquet", filesystem=filesystem, partitioning=hive)
        found = {}
        for fragment in dataset.get_fragments():
            inside = fragment.physical_schema.names
            keys = [key for key in ds.get_partition_keys(fragment.partition_expression) if key not in inside]
            found[fragment.path] = fragment, [dataset.schema.field(key) for key in keys]
    except pa.ArrowInvalid as error:
        if not re.search("magic|footer|Parquet file size|not a Parquet", str(error)):
            raise
        bad = _unreadable(path, filesystem)
        raise FormatError(
            f"{bad} is not a Parquet file, or was cut short{what_mends(bad)}", path=bad
        ) from error
    if not found:
        raise FileNotFoundError(f"no Parquet file in {path}")
    return found if len(found) > 1 else {str(path): next(iter(found.values()))}


def _unreadable(path: FilePath, filesystem: Any) -> str:
    """The first file of a dataset that cannot be read."""
    for name, fragment in files_of(path, filesystem):
        try:
            fragment.physical_schema  # noqa: B018 - read here
        except (pa.ArrowException, OSError):
            return name
    return str(path)


def _dtypes(headers: Mapping[str, Header]) -> dict[str, EncryptedDtype]:
    return {name: EncryptedDtype(header) for name, header in headers.items()}


def headers_in(
    schema: pa.Schema,
    path: str,
    columns: set[str] | None = None,
    *,
    footer: Mapping[bytes, bytes] | None = None,
) -> dict[str, Header]:
    """The headers of these columns (None: all), by the columns' own types, else by the file's entry.

    Arrow shows the entry where the Arrow schema holds it; other writers put it in the footer alone.
    """
    headers: dict[str, Header] = {}
    fields = [field for field in schema if columns is None or field.name in columns]
    try:
        for field in fields:
            if isinstance(field.type, EncryptedType):
                try:
                    headers[field.name] = field.type.dtype.header
                except FormatError as error:
                    raise error.with_facts(column=field.name) from None
        entry = (schema.metadata or {}).get(ENTRY) or (footer or {}).get(ENTRY)
        lost = [field.name for field in fields if _is_binary(field.type)]
        if entry is not None and lost:
            recorded = parse_file(entry.decode("utf-8", "surrogateescape"))
            headers |= {name: header for name, header in recorded.items() if name in lost}
    except FormatError as error:
        column = error.column
        where = f"{path}: column {column!r}: " if column else f"{path}: "
        raise FormatError(f"{where}{error}", path=path, column=column, field=error.field) from None
    return headers


def _restored(frame: pd.DataFrame, headers: Mapping[str, Header]) -> pd.DataFrame:
    """Columns that other software wrote back as plain bytes get their dtype again."""
    for position, label in enumerate(frame.columns):
        if label in headers and not isinstance(frame.dtypes.iloc[position], EncryptedDtype):
            storage = pa.array(frame.iloc[:, position].to_numpy(), pa.large_binary(), from_pandas=True)
            frame.isetitem(position, EncryptedArray(storage, EncryptedDtype(headers[label])))
    return frame


def _is_binary(dtype: pa.DataType) -> bool:
    return (
        pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype) or pa.types.is_fixed_size_binary(dtype)
    )


def _searched(
    fragments: Mapping[str, Any],
    files: Mapping[str, Mapping[str, Header]],
    columns: list[str] | None,
    search: FileSearch,
) -> pd.DataFrame:
    """The rows that match filters on encrypted columns: of one read where all files agree, else united."""
    first = next(iter(fragments.values()))[0].physical_schema
    kinds = [
        {
            column: (EncryptedDtype(header), fragments[name][0].physical_schema.field(column).type)
            for column, header in headers.items()
        }
        for name, headers in files.items()
    ]
    agree = all(kind == kinds[0] for kind in kinds)
    tables = []
    for name, (fragment, partition) in fragments.items():
        own = fragment.physical_schema
        kept = own.names if not agree else files[name]
        fields = [own.field(field.name) if field.name in kept else field for field in first]
        schema = pa.schema(fields, metadata=own.metadata)
        for field in (*(() if agree else own), *partition):
            if field.name not in schema.names:
                schema = schema.append(field)
        levels = _index_levels(own)
        chosen = schema.names if columns is None else list(dict.fromkeys([*columns, *levels]))
        for column in (*chosen, *search.columns):
            require(schema.names, column)
        tables.append(search.rows(fragment, schema, files[name], chosen))
    if agree:
        return _framed(pa.concat_tables(tables), next(iter(files.values())))
    return _united([_framed(table, files[name]) for table, name in zip(tables, files, strict=True)])


def _on_cells(filters: Any, encrypted: set[str]) -> bool:
    """Whether there are filters on encrypted columns."""
    if filters is None:
        return False
    if isinstance(filters, ds.Expression):
        # Arrow does not say which fields an expression names; what stands in quotes is a value.
        outside = re.sub(r'"(?:[^"\\]|\\.)*"', '""', str(filters))
        used = {name for name in encrypted if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", outside)}
    else:
        return bool({term[0] for group in filter_terms(filters) for term in group} & encrypted)
    if used:
        raise TypeError(
            f"column {min(used)!r} is encrypted, and ciphertext cannot answer an expression of Arrow: pass "
            "filters as a list, such as [(column, '==', value)], or decrypt, then filter"
        )
    return False


def settings_for(schema: pa.Schema, options: dict[str, Any]) -> dict[str, Any]:
    """How to write encrypted columns: no dictionary, no codec, no statistics; and plain ones as usual.

    Random bytes neither compress nor repeat. Statistics of an extension type would also break every dataset
    filter of Arrow that meets them.
    """
    sealed = {field.name: field.type.dtype for field in schema if isinstance(field.type, EncryptedType)}
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    written = pq.read_metadata(pa.BufferReader(sink.getvalue())).schema
    leaves = [written.column(number).path for number in range(len(written.names))]
    plain = [leaf for leaf in leaves if leaf not in sealed]

    def chosen(option: str) -> list[str]:
        given = options.get(option, True)
        return plain if given is True else [] if given is False else [leaf for leaf in given if leaf in plain]

    repeating = [name for name, dtype in sealed.items() if dtype.deterministic]
    codec = options.get("compression", "snappy")
    by_leaf = codec if isinstance(codec, dict) else dict.fromkeys(plain, codec or "none")
    level = options.get("compression_level")
    if isinstance(level, int):
        options = options | {"compression_level": dict.fromkeys(plain, level)}
    if options.get("use_byte_stream_split") is True:
        options = options | {"use_byte_stream_split": plain}
    return options | {
        "use_dictionary": chosen("use_dictionary") + repeating,
        "write_statistics": chosen("write_statistics"),
        "compression": by_leaf | dict.fromkeys(sealed, "none"),
    }
