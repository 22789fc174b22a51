"""Write Parquet files with encrypted columns, completely or not at all.

The parts of a file::

    schema   ARROW:extension:name = kmsdata.encrypted, ARROW:extension:metadata = the column's header
    footer   key-value metadata "kmsdata" = the headers of all encrypted columns
    pages    cells as byte arrays (of fixed length if the column's type has one), no statistics; all pages
             have checksums
"""

from __future__ import annotations

import errno
import functools
import io
import os
from collections.abc import Mapping
from typing import Any, BinaryIO
from urllib.parse import quote

import pandas as pd
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from kmsdata.atomic_files import sweep
from kmsdata.codec.null_arrays import null_rows
from kmsdata.errors import CallerFileExistsError, CallerTypeError, CallerValueError
from kmsdata.frames.arguments import Columns, column_names, refuse_repeated, require, required_names
from kmsdata.frames.column import check_one_arrow_type
from kmsdata.frames.dtype import EncryptedType
from kmsdata.frames.encrypted_columns import (
    check_names,
    columns_without_header,
    encrypted_columns,
    in_extension_dtype,
    lost_header,
    not_encrypted,
    with_headers,
)
from kmsdata.frames.metadata.pandas_entry import with_frame_attrs
from kmsdata.keys.envelope import ENTRY, file_text, merged_records
from kmsdata.parquet.column_chunks import Replacement
from kmsdata.parquet.locations import FilePath, Place, files_at, paths_text, whole, whole_folder

__all__ = ["replacement", "settings_for", "write_parquet"]


def write_parquet(
    frame: pd.DataFrame,
    path: FilePath | BinaryIO,
    *,
    index: bool | None = None,
    filesystem: Any = None,
    encrypted: Columns | None = None,
    partition_cols: Columns | None = None,
    engine: str = "pyarrow",
    **options: Any,
) -> pa.Schema:
    """Write, and return the schema of the table; see `kmsdata.api.accessor.FrameAccessor.to_parquet`."""
    if engine not in ("pyarrow", "auto"):
        raise CallerValueError(
            f"engine={engine!r} cannot write encrypted columns: only pyarrow keeps their type, which holds "
            "the wrapped data key. Leave engine= out"
        )
    _check_options(options)
    folders = [] if partition_cols is None else column_names(partition_cols)
    _check_folders(frame, folders)
    _check_encrypted(frame, required_names(encrypted))
    frame = _in_agreement(in_extension_dtype(frame))
    headers = {str(item.name): item.headers[0] for item in encrypted_columns(frame)}
    check_names(headers, path=paths_text(path))
    for item in encrypted_columns(frame):  # otherwise no table or file could ever hold its values
        check_one_arrow_type(item.headers[0], item.parts[0][1].storage, str(item.name))
    table = pa.Table.from_pandas(frame, preserve_index=index, schema=options.pop("schema", None))
    metadata = with_frame_attrs(table.schema.metadata or {}, frame)
    if headers:
        metadata[ENTRY] = file_text(headers).encode()
    table = table.replace_schema_metadata(metadata)
    if not isinstance(path, (str, os.PathLike)):
        _write_to_object(table, path, folders, filesystem, options)
        return table.schema
    if folders:
        _write_folders(table, folders, Place.of(path, filesystem), options)
        return table.schema
    settings = settings_for(table.schema, options)
    place = Place.of(path, filesystem)
    if place.local:
        sweep(place.path, beside=True)
    with whole(place) as file:
        pq.write_table(table, file, **settings)
    return table.schema


def _write_to_object(
    table: pa.Table, file: BinaryIO, folders: list[str], filesystem: Any, options: dict[str, Any]
) -> None:
    """Write to an open file, all at once: nothing is written if the table cannot be."""
    if not hasattr(file, "write"):
        raise CallerTypeError(f"to_parquet() takes a path or an open file, not {type(file).__name__}")
    if isinstance(file, io.TextIOBase):
        raise CallerTypeError("the file is open for text: open it in binary mode, such as open(path, 'wb')")
    if folders or filesystem is not None:
        raise CallerTypeError(
            "partition_cols= and filesystem= are for paths: leave them out for an open file"
        )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **settings_for(table.schema, options))
    file.write(sink.getvalue())


def _check_folders(frame: pd.DataFrame, names: list[str]) -> None:
    """Refuse columns that cannot name folders."""
    labels = list(frame.columns)
    for name in names:
        require(labels, name)
        refuse_repeated(labels, name)
        if name in [item.name for item in encrypted_columns(frame)]:
            raise CallerValueError(
                f"partition_cols= names {name!r}, which is encrypted: its cells would be names of folders. "
                "Name plain columns"
            )
    if names and not set(labels) - set(names):
        raise CallerValueError(
            "partition_cols= names every column, so the files would have none. Leave one out"
        )


def _write_folders(table: pa.Table, names: list[str], place: Place, options: dict[str, Any]) -> None:
    """Write one file in a folder for each combination of values, as `pyarrow.parquet.write_to_dataset`."""
    if place.kind == pafs.FileType.File or (place.kind == pafs.FileType.Directory and _has_files(place)):
        raise CallerFileExistsError(
            errno.EEXIST, "the target of partition_cols= must be a folder without files", str(place)
        )
    keys = [_folder_names(table.column(name), name) for name in names]
    paths = ["/".join(parts) for parts in zip(*keys, strict=True)]
    rows: dict[str, list[int]] = {}
    for row, path in enumerate(paths):
        rows.setdefault(path, []).append(row)
    rest = table.drop_columns(names)
    settings = settings_for(rest.schema, options)
    with whole_folder(place) as open_file:
        for path, positions in rows.items():
            with open_file(f"{path}/part-0.parquet") as file:
                pq.write_table(rest.take(pa.array(positions, pa.int64())), file, **settings)


def _has_files(place: Place) -> bool:
    try:
        return bool(files_at(place)[0])
    except FileNotFoundError:
        return False


def _folder_names(values: pa.ChunkedArray, name: str) -> list[str]:
    """Return ``name=value`` for each value, with the escapes of Hive."""
    try:
        texts = values.cast(pa.string()).to_pylist()
    except pa.ArrowException:
        raise CallerTypeError(
            f"partition_cols= names {name!r}, whose values ({values.type}) cannot be names of folders"
        ) from None
    if None in texts:  # pyarrow cannot read folders of text in which some are null
        raise CallerValueError(
            f"partition_cols= names {name!r}, which contains nulls: they cannot be read back. Fill them "
            "first (df.fillna)"
        )
    return [f"{quote(name, safe='')}={quote(text, safe='')}" for text in texts]


def _in_agreement(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with one record per data key: only some columns may have been rewrapped before."""
    every = [record for item in encrypted_columns(frame) for record in item.headers[0].records]
    records = merged_records(every)
    if all(records[record.commitment] == record for record in every):
        return frame
    return with_headers(frame, lambda header: header.under(records))


def _check_encrypted(frame: pd.DataFrame, names: list[str]) -> None:
    """Refuse a frame that would be written unencrypted, in whole or in a column that must be encrypted."""
    found = [item.name for item in encrypted_columns(frame)]
    for name in names:
        require([*frame.columns, *frame.index.names], name)
        if name not in found:
            raise not_encrypted(frame, name)
    if not found and (lost := columns_without_header(frame, [])):
        raise lost_header(lost[0])
    if not found:
        raise CallerValueError(
            "nothing in this frame is encrypted. Write the frame that df.kms.encrypt() returned: it does not "
            "change df. A file without encrypted columns is written with df.to_parquet()"
        )


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that would make a file impossible to decrypt."""
    if not options.get("store_schema", True):
        raise CallerValueError(
            "store_schema=False would omit the headers: the file could never be decrypted. Do not pass it"
        )
    if options.get("flavor") == "spark":
        raise CallerValueError(
            "flavor='spark' renames columns, but an encrypted column is bound to its name. Rename the "
            "columns before encrypting, and do not pass flavor"
        )


def settings_for(schema: pa.Schema, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options to write encrypted columns without codec and statistics, and plain ones as usual.

    Random bytes neither compress nor repeat, so only deterministic columns get a dictionary. Statistics of an
    extension type would make every Arrow dataset filter on such a file fail.
    """
    sealed = {field.name: field.type.dtype for field in schema if isinstance(field.type, EncryptedType)}
    sink = pa.BufferOutputStream()
    empty = pa.Table.from_arrays([null_rows(kind, 0) for kind in schema.types], schema=schema)
    pq.write_table(empty, sink)
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
    return (
        {"write_page_checksum": True}
        | options
        | {
            "use_dictionary": chosen("use_dictionary") + repeating,
            "write_statistics": chosen("write_statistics"),
            "compression": by_leaf | dict.fromkeys(sealed, "none"),
        }
    )


def replacement(field: pa.Field) -> Replacement:
    """Return the new version of the column of this name in a file that is rewritten."""
    return _replacement(field.name, field.type, field.nullable)


@functools.lru_cache(256)  # thousands of small files often have the same columns
def _replacement(name: str, kind: pa.DataType, nullable: bool) -> Replacement:
    field = pa.field(name, kind, nullable)
    return Replacement.of(field, settings_for(pa.schema([field]), {}))
