"""Parquet files with encrypted columns: written whole or not at all, read without any key.

What stands where in a file::

    schema   ARROW:extension:name = kmsdata.encrypted, ARROW:extension:metadata = the column's header
    footer   key-value metadata "kmsdata" = the headers of all encrypted columns
    pages    cells as byte arrays (of fixed length where all are equally long by type), no statistics
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from kmsdata.dtype import EncryptedArray, EncryptedDtype, EncryptedType
from kmsdata.envelope import Header, file_text, parse_file
from kmsdata.errors import FormatError
from kmsdata.files import whole_file
from kmsdata.session import Key
from kmsdata.table import check_names, decrypt_frame, encrypted_columns, in_extension_dtype

__all__ = ["FilePath", "read_headers", "read_parquet", "write_parquet"]

FilePath: TypeAlias = "str | os.PathLike[str]"

_ENTRY = b"kmsdata"


def write_parquet(
    frame: pd.DataFrame, path: FilePath, *, index: bool | None = None, filesystem: Any = None, **options: Any
) -> None:
    """See `kmsdata.accessor.FrameAccessor.to_parquet`."""
    if unknown := options.keys() & {"partition_cols", "engine", "path"}:
        raise TypeError(
            f"to_parquet writes one file by pyarrow and takes no {min(unknown)}: for a partitioned dataset "
            "call df.to_parquet(), which keeps encrypted columns too"
        )
    frame = in_extension_dtype(frame)
    headers = {str(item.name): item.headers[0] for item in encrypted_columns(frame)}
    check_names(headers, path=str(path))
    table = pa.Table.from_pandas(frame, preserve_index=index, schema=options.pop("schema", None))
    metadata = dict(table.schema.metadata or {})
    if frame.attrs:
        metadata[b"PANDAS_ATTRS"] = json.dumps(frame.attrs).encode()  # as DataFrame.to_parquet does
    if headers:
        metadata[_ENTRY] = file_text(headers).encode()
    table = table.replace_schema_metadata(metadata)
    settings = _settings(table, options)
    if filesystem is None and "://" in str(path):
        filesystem, inner = pafs.FileSystem.from_uri(str(path))
        path = str(inner)
    if filesystem is None or isinstance(filesystem, pafs.LocalFileSystem):
        with whole_file(path) as file:
            pq.write_table(table, file, **settings)
        return
    if not isinstance(filesystem, pafs.FileSystem):
        filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(filesystem))
    temporary = f"{path}.tmp"
    try:
        with filesystem.open_output_stream(temporary) as stream:
            pq.write_table(table, stream, **settings)
        filesystem.move(temporary, str(path))
    except BaseException:
        if filesystem.get_file_info(temporary).type == pafs.FileType.File:
            filesystem.delete_file(temporary)
        raise


def read_parquet(
    path: FilePath,
    *,
    columns: Iterable[str] | None = None,
    filters: Any = None,
    filesystem: Any = None,
    decrypt: bool = False,
    encrypted: Iterable[str] | None = None,
    key: Key | None = None,
) -> pd.DataFrame:
    """Read a Parquet file or dataset; its encrypted columns stay encrypted, and no key is needed.

    Args:
        path: file, or folder of a dataset.
        columns: names of the columns to read; None for all.
        filters: row filters on plain columns, as `pandas.read_parquet` takes them.
        filesystem: pyarrow or fsspec filesystem; else by the path.
        decrypt: decrypt as well.
        encrypted: names that must be encrypted, so that a file whose header was stripped is noticed.
        key: only these may open it (for ``decrypt``): a URI, several, or a `DataKey`.

    Returns:
        A frame; plain columns, index and attrs as pandas' own Parquet brings them.

    Raises:
        FormatError: a header that is malformed, or a column of ``encrypted`` that is not.
        TypeError: a filter on an encrypted column.

    Example:
        >>> import pandas as pd, kmsdata
        >>> df = pd.DataFrame({"ssn": ["078-05-1120"], "city": ["Lewiston"]})
        >>> df.kms.encrypt("ssn", key="local://demo").kms.to_parquet("people.parquet")
        >>> kmsdata.read_parquet("people.parquet", decrypt=True).equals(df)
        True
    """
    schemas = _schemas(path, filesystem)
    files = {name: _headers(schema, name) for name, schema in schemas.items()}
    _check_filters(filters, {column for headers in files.values() for column in headers})
    for name, headers in files.items():
        check_names(headers, path=name)
        for column in encrypted or ():
            if column not in headers:
                raise FormatError(
                    f"{name}: column {column!r} must be encrypted, but has no kmsdata header",
                    path=name,
                    column=column,
                )
    wanted = None if columns is None else list(columns)
    # One read where all files agree; else each by itself, since Arrow would put one's cells under the
    # header of another, or refuse.
    alike = (
        len({tuple((c, EncryptedDtype(h)) for c, h in headers.items()) for headers in files.values()}) == 1
    )
    sources: list[FilePath] = [path] if alike else [*files]
    parts = []
    for source in sources:
        part = pd.read_parquet(
            source, columns=wanted, filters=filters, filesystem=filesystem, engine="pyarrow"
        )
        parts.append(_restored(part, next(iter(files.values())) if alike else files[str(source)]))
    frame = parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=_is_default(parts))
    return decrypt_frame(frame, key=key) if decrypt else frame


def read_headers(path: FilePath, filesystem: Any = None) -> dict[str, Header]:
    """The headers of a file or dataset, by column; needs no key.

    Raises:
        FormatError: a header that is malformed.
    """
    merged: dict[str, Header] = {}
    for name, schema in _schemas(path, filesystem).items():
        for column, header in _headers(schema, name).items():
            merged[column] = merged[column].union(header) or header if column in merged else header
    return merged


def _schemas(path: FilePath, filesystem: Any) -> dict[str, pa.Schema]:
    """The schema of each file."""
    try:
        dataset = ds.dataset(path, format="parquet", filesystem=filesystem, partitioning="hive")
        found = {fragment.path: fragment.physical_schema for fragment in dataset.get_fragments()}
    except pa.ArrowInvalid as error:
        raise FormatError(f"{path} is not a Parquet file, or was cut short", path=str(path)) from error
    if not found:
        raise FileNotFoundError(f"no Parquet file in {path}")
    return found if len(found) > 1 else {str(path): next(iter(found.values()))}


def _headers(schema: pa.Schema, path: str) -> dict[str, Header]:
    headers: dict[str, Header] = {}
    try:
        for field in schema:
            if isinstance(field.type, EncryptedType):
                try:
                    headers[field.name] = field.type.dtype.header
                except FormatError as error:
                    raise error.with_facts(column=field.name) from None
        entry = (schema.metadata or {}).get(_ENTRY)
        lost = [field.name for field in schema if _is_binary(field.type)]
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


def _is_default(frames: list[pd.DataFrame]) -> bool:
    return all(isinstance(frame.index, pd.RangeIndex) for frame in frames)


def _check_filters(filters: Any, encrypted: set[str]) -> None:
    if filters is None:
        return
    if isinstance(filters, ds.Expression):
        used = {name for name in encrypted if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", str(filters))}
    else:
        groups = filters if filters and isinstance(filters[0], list) else [filters]
        used = {term[0] for group in groups for term in group} & encrypted
    if used:
        raise TypeError(
            f"column {min(used)!r} is encrypted and cannot be filtered by value while it is read: decrypt, "
            "then filter"
        )


def _settings(table: pa.Table, options: dict[str, Any]) -> dict[str, Any]:
    """Random bytes neither compress nor repeat: no dictionary, no codec; and no statistics on cells.

    Statistics of an extension type would also break every dataset filter of Arrow that meets them.
    """
    sealed = {field.name: field.type.dtype for field in table.schema if isinstance(field.type, EncryptedType)}
    sink = pa.BufferOutputStream()
    pq.write_table(table.slice(0, 0), sink)
    schema = pq.read_metadata(pa.BufferReader(sink.getvalue())).schema
    leaves = [schema.column(number).path for number in range(len(schema.names))]
    plain = [leaf for leaf in leaves if leaf not in sealed]

    def chosen(option: str) -> list[str]:
        given = options.get(option, True)
        return plain if given is True else [] if given is False else [leaf for leaf in given if leaf in plain]

    repeating = [name for name, dtype in sealed.items() if dtype.deterministic]
    codec = options.get("compression", "snappy")
    by_leaf = codec if isinstance(codec, dict) else dict.fromkeys(plain, codec or "none")
    return options | {
        "use_dictionary": chosen("use_dictionary") + repeating,
        "write_statistics": chosen("write_statistics"),
        "compression": by_leaf | dict.fromkeys(sealed, "none"),
    }
