"""Read the headers of Parquet files and datasets; no key is needed."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from kmsdata.errors import FormatError, KeyServiceError, WrongKeyError, located, printable
from kmsdata.frames.arguments import Columns, column_names
from kmsdata.frames.arrow_storage import is_plain_binary
from kmsdata.frames.dtype import EncryptedType
from kmsdata.frames.encrypted_columns import check_names
from kmsdata.frames.metadata.documents import SPARK, spark_column_headers
from kmsdata.keys.envelope import ENTRY, Header, parse_file
from kmsdata.parquet.footer import NOT_PARQUET, check_footer, read_footer
from kmsdata.parquet.locations import FilePath, Place, Readable, dataset_files, open_file

__all__ = [
    "DataFile",
    "common_headers",
    "damaged",
    "dataset_headers",
    "headers_in",
    "naming_the_file",
    "read_headers",
]


@contextlib.contextmanager
def naming_the_file(files: Mapping[str, Mapping[str, Header]]) -> Iterator[None]:
    """Name the file in an error about a data key, when those of several files are unwrapped together."""
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
        others = f" and {more:,} more with the same data key" if more else ""
        raise located(error, f"{under[0]}{others}", path=under[0]) from None


def read_headers(
    path: FilePath, filesystem: Any = None, *, columns: Columns | None = None
) -> dict[str, Header]:
    """Return the headers of a file or dataset, by column; no key is needed.

    Args:
        path: file, or folder of a dataset.
        filesystem: pyarrow or fsspec filesystem; None: inferred from the path.
        columns: names of the columns to read headers of; None for all.

    Raises:
        FormatError: a header is malformed, or the headers of a column in several files do not fit together.
    """
    merged: dict[str, Header] = {}
    names = None if columns is None else set(column_names(columns))
    for name, file in dataset_headers(path, filesystem, names).items():
        for column, header in file.headers.items():
            merged[column] = _united(merged.get(column, header), header, name, column)
    return merged


def _united(header: Header, other: Header, path: str, column: str) -> Header:
    """Return one header for the cells of both; raise FormatError, which names the file, if there is none."""
    both = header.union(other)
    if both is None:
        raise FormatError(
            f"{path}: column {column!r} was encrypted differently in other files. Read this file separately",
            path=path,
            column=column,
        )
    return both


@dataclass(frozen=True)
class DataFile:
    """A file of a dataset, of which only the footer was read.

    Attributes:
        fragment: the file, a fragment of a pyarrow dataset.
        partition: the columns whose values are in the names of its folders.
        headers: the headers of its encrypted columns, or of those that were asked for.
        beside: the headers of all its encrypted columns, without those that are malformed.
    """

    fragment: Any
    partition: list[pa.Field]
    headers: dict[str, Header]
    beside: dict[str, Header]

    @property
    def schema(self) -> pa.Schema:
        """The columns stored in the file, without those of ``partition``."""
        return self.fragment.physical_schema


def dataset_headers(
    path: Readable,
    filesystem: Any,
    columns: Collection[str] | None = None,
    skipped: list[str] | None = None,
) -> dict[str, DataFile]:
    """Return the files of a dataset by name, with the headers of these columns (None: all).

    Files that are neither Parquet nor CSV are left out, and ``skipped`` collects their names.

    Raises:
        FileNotFoundError: there is no file.
        FormatError: a file is not a Parquet file, or a header is malformed.
    """
    files, _ = dataset_files(path, filesystem, skipped=skipped)
    lengths = {}
    for name, file in files.items():
        with open_file(file) as opened:
            try:
                lengths[name] = check_footer(opened, opened.size(), name)
            except FormatError as error:
                if NOT_PARQUET not in str(error):
                    raise
                raise FormatError(f"{name} is {NOT_PARQUET}", path=name) from None
    # pandas.read_parquet reads names of folders as dictionaries (categories), so this does too.
    hive = ds.HivePartitioning.discover(infer_dictionary=True)
    names = {file.path: name for name, file in files.items()}
    found = {}
    try:
        dataset = ds.dataset(
            list(names),
            format="parquet",
            filesystem=next(iter(files.values())).filesystem,
            partitioning=hive,
            partition_base_dir=_base_of(files, path),
        )
        for fragment in dataset.get_fragments():
            name = names[fragment.path]
            if fragment.metadata.serialized_size != lengths[name]:
                # Bytes after the FileMetaData are a signature of Parquet Modular Encryption. pyarrow (26)
                # ends the process when it is asked about an encrypted column.
                with open_file(files[name]) as opened:
                    read_footer(opened, opened.size(), name)
            inside = fragment.physical_schema.names
            keys = [key for key in ds.get_partition_keys(fragment.partition_expression) if key not in inside]
            found[name] = fragment, [dataset.schema.field(key) for key in keys]
    except FormatError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        if (bad := _unreadable(files)) is None:
            if "duplicate field names" in str(error):
                raise FormatError(
                    f"{next(iter(files))}: several columns have the same name. Give them distinct names and "
                    "write the file again",
                    path=next(iter(files)),
                ) from None
            first = next(iter(files))
            if "Unable to merge" in str(error):
                raise FormatError(
                    f"{first}: a name of a folder has the form column=value, but the files have this column "
                    "with another type. Rename the folder",
                    path=first,
                ) from None
            if "No non-null segments" in str(error):
                raise FormatError(
                    f"{first}: all names of folders mean null (__HIVE_DEFAULT_PARTITION__) for some column, "
                    "whose type is therefore not known. Rename the folder",
                    path=first,
                ) from None
            raise
        raise FormatError(
            f"{bad} is not a Parquet file, or its footer is damaged or was cut short", path=bad
        ) from error
    every = {}
    for name, (fragment, partition) in found.items():
        schema, footer = fragment.physical_schema, fragment.metadata.metadata
        headers = headers_in(schema, name, columns, footer=footer)
        beside = headers if columns is None else headers_in(schema, name, footer=footer, failed={})
        every[name] = DataFile(fragment, partition, headers, beside)
    return every


def common_headers(files: Mapping[str, DataFile], encrypted: Collection[str] = ()) -> dict[str, Header]:
    """Return one header for each encrypted column of files that are read as one table.

    Args:
        files: from `dataset_headers`, with all headers.
        encrypted: names of columns that must be encrypted in every file.

    Raises:
        FormatError: one of these is not encrypted; the files have other columns or types; or a column was
            encrypted so differently that a cell could belong to either.
    """
    first, types = "", dict[str, str]()
    headers: dict[str, Header] = {}
    for name, file in files.items():
        check_names(file.headers, beside=file.beside, path=name)
        for column in encrypted:
            if column not in file.headers:
                raise FormatError(
                    f"{name}: column {column!r} must be encrypted, but has no kmsdata header",
                    path=name,
                    column=column,
                )
        own = {field.name: str(field.type) for field in [*file.schema, *file.partition]}
        own |= dict.fromkeys(file.headers, "encrypted")
        first, types = first or name, types or own
        for column in own | types:
            if own.get(column) != types.get(column):
                raise FormatError(
                    f"{name}: column {column!r} is {own.get(column, 'missing')}, but in {first} it is "
                    f"{types.get(column, 'missing')}. Read these files separately",
                    path=name,
                    column=column,
                )
        for column, header in file.headers.items():
            headers[column] = _united(headers.get(column, header), header, name, column)
    return headers


def damaged(path: str) -> FormatError:
    """Return the error for a file whose pages or metadata cannot be read."""
    return FormatError(
        f"{printable(path)} cannot be read: the file is damaged or was cut short. Restore it from a copy; "
        "kmsdata.verify() says which columns are affected",
        path=path,
    )


def _base_of(files: Mapping[str, Place], path: Readable) -> str | None:
    """Return the folder's path as the filesystem lists it: some leave out the slash at its beginning."""
    folder = next(iter(files.values())).root
    if folder is None or isinstance(path, (list, tuple)):
        return None
    listed = next(iter(files.values())).path
    return folder if listed.startswith(folder) else folder.lstrip("/")


def _unreadable(files: Mapping[str, Place]) -> str | None:
    """Return the name of the first file whose footer cannot be read: Arrow's error does not say which one."""
    for name, file in files.items():
        try:
            with open_file(file) as opened:
                pq.ParquetFile(opened).schema_arrow.names  # noqa: B018 - decodes the names
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # an error of the system: Arrow raises OSError for damaged data too
            return name
    return None


def headers_in(
    schema: pa.Schema,
    path: str,
    columns: Collection[str] | None = None,
    *,
    footer: Mapping[bytes, bytes] | None = None,
    failed: dict[str, FormatError] | None = None,
) -> dict[str, Header]:
    """Return the headers of these columns (None: all), from the columns' types, otherwise from the metadata.

    Arrow shows the file's ``kmsdata`` entry only if the Arrow schema contains it. Other writers store it only
    in the footer. Spark stores the headers of columns that it writes in its own schema, which is another
    entry (see `kmsdata.frames.metadata.documents.SPARK`).

    Args:
        schema: the file's Arrow schema.
        path: its name, for errors.
        columns: names of columns.
        footer: its key-value metadata.
        failed: collects the errors by column; None: raise the first.

    Raises:
        FormatError: a header is malformed, or the copies of a column's header differ.
    """
    headers: dict[str, Header] = {}
    bad: dict[str, FormatError] = {}
    fields = [field for field in schema if columns is None or field.name in columns]
    for field in fields:
        if isinstance(field.type, EncryptedType):
            try:
                headers[field.name] = field.type.dtype.header
            except FormatError as error:
                bad[field.name] = located(
                    error, f"{path}: column {field.name!r}", path=path, column=field.name
                )
    lost = {field.name for field in fields if is_plain_binary(field.type)}
    for key, text in _documents(schema.metadata, footer):
        if not (lost or headers or key == SPARK):
            continue
        # A verification compares the entry with the columns' types itself, but not Spark's schema.
        reported = failed is not None and key == ENTRY
        other, name = "its type", "the file's 'kmsdata' entry"
        if key == SPARK:
            other, name = "its type or the file's 'kmsdata' entry", "its metadata in Spark's schema"
        try:
            recorded = _parsed(key, text)
        except FormatError as error:
            where = f"{path}: column {error.column!r}" if error.column else path
            # A verification reports a malformed entry itself, and the columns whose types have headers too.
            concerned = lost if reported else [*headers, *lost]
            bad |= {name: located(error, where, path=path) for name in concerned}
            continue
        for field in [] if reported else fields:
            if field.name in recorded and field.name not in {*headers, *lost, *bad}:
                bad[field.name] = FormatError(
                    f"{path}: column {field.name!r} is {field.type}, but {name} says "
                    "that it is encrypted: other software replaced it, and its values are not authenticated. "
                    "Remove the column or the entry, or restore the file from a copy",
                    path=path,
                    column=field.name,
                )
        for column in recorded.keys() & {*headers, *lost}:
            if headers.setdefault(column, recorded[column]).columns != recorded[column].columns:
                bad[column] = FormatError(
                    f"{path}: column {column!r}: {other} and {name} describe it differently",
                    path=path,
                    column=column,
                )
    if bad and failed is None:
        raise next(iter(bad.values()))
    if failed is not None:
        failed |= bad
    return {name: header for name, header in headers.items() if name not in bad}


def _documents(*every: Mapping[bytes, bytes] | None) -> Iterator[tuple[bytes, bytes]]:
    """Yield the entries that may contain headers, the file's own before Spark's, each text once."""
    for key in (ENTRY, SPARK):
        texts = [metadata[key] for metadata in every if metadata and metadata.get(key)]
        yield from ((key, text) for text in dict.fromkeys(texts))


def _parsed(key: bytes, text: bytes) -> dict[str, Header]:
    if key == ENTRY:
        return parse_file(text.decode("utf-8", "surrogateescape"))
    headers = {}
    for name, header in spark_column_headers(text).items():
        try:
            headers[name] = Header.parse(header)
        except FormatError as error:
            raise error.with_facts(column=name) from None
    return headers
