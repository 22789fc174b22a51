"""The headers of Parquet files and datasets; needs no key."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from kmsdata.errors import FormatError, KeyServiceError, WrongKeyError, located
from kmsdata.frames.arguments import Columns, column_names
from kmsdata.frames.dtype import EncryptedType
from kmsdata.keys.envelope import ENTRY, Header, parse_file
from kmsdata.parquet.locations import FilePath, Place, dataset_files

__all__ = ["DataFile", "dataset_headers", "files_of", "headers_in", "naming_the_file", "read_headers"]


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
        raise located(error, f"{under[0]}{others}", path=under[0]) from None


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
    for name, file in dataset_headers(path, filesystem, names).items():
        for column, header in file.headers.items():
            both = merged.get(column, header).union(header)
            if both is None:
                raise FormatError(
                    f"{name}: column {column!r} was encrypted otherwise than in other files: read it alone",
                    path=name,
                    column=column,
                )
            merged[column] = both
    return merged


def files_of(path: FilePath, filesystem: Any) -> list[tuple[str, Any]]:
    """The files of a dataset by path, none of them opened yet: whatever is wrong with one is its own."""
    files, _ = dataset_files(path, filesystem)
    parquet = ds.ParquetFileFormat()
    return [(name, parquet.make_fragment(file.path, file.filesystem)) for name, file in files.items()]


@dataclass(frozen=True)
class DataFile:
    """A file of a dataset, of which the footer alone was read.

    Attributes:
        fragment: the file, of a pyarrow dataset.
        partition: the fields that its folders' names say.
        headers: of its encrypted columns.
    """

    fragment: Any
    partition: list[pa.Field]
    headers: dict[str, Header]

    @property
    def schema(self) -> pa.Schema:
        """Its columns, without those that its folders' names say."""
        return self.fragment.physical_schema


def dataset_headers(
    path: FilePath, filesystem: Any, columns: Collection[str] | None = None
) -> dict[str, DataFile]:
    """The files of a dataset by name, with the headers of these columns (None: all).

    Raises:
        FileNotFoundError: there is none.
        FormatError: a file that is no Parquet file, or a header that is malformed.
    """
    files, single = dataset_files(path, filesystem)
    hive = ds.HivePartitioning.discover(infer_dictionary=True)  # as pandas reads it
    names = {file.path: name for name, file in files.items()}
    found = {}
    try:
        dataset = ds.dataset(
            list(names),
            format="parquet",
            filesystem=next(iter(files.values())).filesystem,
            partitioning=hive,
            partition_base_dir=None if single else Place.of(path, filesystem).path,
        )
        for fragment in dataset.get_fragments():
            inside = fragment.physical_schema.names
            keys = [key for key in ds.get_partition_keys(fragment.partition_expression) if key not in inside]
            found[names[fragment.path]] = fragment, [dataset.schema.field(key) for key in keys]
    except pa.ArrowInvalid as error:
        if not re.search("magic|footer|Parquet file size|not a Parquet", str(error)):
            raise
        bad = _unreadable(path, filesystem)
        raise FormatError(f"{bad} is not a Parquet file, or was cut short", path=bad) from error
    return {
        name: DataFile(
            fragment,
            partition,
            headers_in(fragment.physical_schema, name, columns, footer=fragment.metadata.metadata),
        )
        for name, (fragment, partition) in found.items()
    }


def _unreadable(path: FilePath, filesystem: Any) -> str:
    """The first file of a dataset that cannot be read."""
    for name, fragment in files_of(path, filesystem):
        try:
            fragment.physical_schema  # noqa: B018 - read here
        except (pa.ArrowException, OSError):
            return name
    return str(path)


def headers_in(
    schema: pa.Schema,
    path: str,
    columns: Collection[str] | None = None,
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
        where = f"{path}: column {error.column!r}" if error.column else path
        raise located(error, where, path=path) from None
    return headers


def _is_binary(dtype: pa.DataType) -> bool:
    return (
        pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype) or pa.types.is_fixed_size_binary(dtype)
    )
