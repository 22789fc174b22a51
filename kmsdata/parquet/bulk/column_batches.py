"""Read one column of a Parquet file at a time, in batches of some megabytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kmsdata.errors import FormatError
from kmsdata.parquet.column_chunks import PART
from kmsdata.parquet.footer import NOT_PARQUET, FileMetaData, read_metadata
from kmsdata.parquet.locations import Place

__all__ = ["OpenParquet", "categories", "column_batches", "in_parts", "open_parquet"]

_BATCH = 8 << 20  # bytes of a column that are decoded at once
_MOST_ROWS = 1 << 17  # rows that are decoded at once, also of columns whose values take almost no bytes


@dataclass(frozen=True, repr=False)  # statistics are plaintext
class OpenParquet:
    """A Parquet file that is open for reading.

    Attributes:
        path: its path, for errors.
        file: the Arrow file, to read bytes from.
        reader: the Parquet reader, to read columns from.
        footer: its decoded footer.
    """

    path: str
    file: pa.NativeFile
    reader: pq.ParquetFile
    footer: FileMetaData

    @property
    def schema(self) -> pa.Schema:
        """The schema that Arrow shows."""
        return self.reader.schema_arrow

    @property
    def entries(self) -> dict[bytes, bytes]:
        """The key-value metadata, without the Arrow schema."""
        return {key: text for key, text in self.footer.metadata.items() if key != b"ARROW:schema"}

    @property
    def groups(self) -> int:
        """The number of row groups."""
        return int(self.reader.num_row_groups)

    def rows(self, group: int) -> int:
        """Return the number of rows of a row group."""
        return int(self.reader.metadata.row_group(group).num_rows)


@contextlib.contextmanager
def open_parquet(place: Place) -> Iterator[OpenParquet]:
    """Open a Parquet file.

    Raises:
        FormatError: it is not a Parquet file, or not one whose columns can be replaced.
    """
    path = str(place)
    with place.filesystem.open_input_file(place.path) as file:
        try:
            footer = read_metadata(file, file.size(), path)
        except FormatError as error:
            if NOT_PARQUET not in str(error):
                raise
            raise FormatError(f"{error} (the name of a CSV file must end in .csv)", path=path) from None
        with _arrow_errors(path):
            # With pre_buffer Arrow would read whole column chunks, which may be larger than memory.
            reader = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        if reader.schema_arrow.names != [name for name, _ in footer.columns]:
            raise FormatError(
                f"{path}: its Parquet schema and its Arrow schema have different columns", path=path
            )
        yield OpenParquet(path, file, reader, footer)


def column_batches(parquet: OpenParquet, group: int, name: str) -> Iterator[Any]:
    """Read a column of a row group in arrays of some megabytes; an empty one if the group has no rows.

    Raises:
        FormatError: the column cannot be read.
        ValueError: the name is also that of a part of another column.
    """
    rows = parquet.rows(group)
    if not rows:
        yield pa.array([], parquet.schema.field(name).type)
        return
    size = _rows_at_once(parquet, group, name, rows)
    with _arrow_errors(parquet.path, name):
        batches = _batches(parquet, group, name, size)
    while True:
        with _arrow_errors(parquet.path, name):
            batch = next(batches, None)
        if batch is None:
            return
        # pyarrow selects by path: "a.b" means a column of this name, and the field b of a column a as well.
        if batch.schema.names != [name]:
            raise ValueError(
                f"{parquet.path}: {name!r} is the name of a column and of a part of another column. Rename "
                "one of them first"
            )
        yield batch.column(0)


def categories(places: Iterable[Place], name: str, kind: pa.DataType) -> pa.Array:
    """Return the distinct categories of a dictionary column in all these files."""
    found = pa.array([], kind)
    for place in places:
        with open_parquet(place) as parquet:
            for group in range(parquet.groups):
                for array in column_batches(parquet, group, name):
                    new = array.dictionary
                    if not new.equals(found.slice(0, len(new))):
                        found = pa.chunked_array([found, new]).unique() if len(found) else new
    return found


def in_parts(arrays: Iterable[Any]) -> Iterator[pa.ChunkedArray]:
    """Combine arrays to chunked arrays of about `PART` bytes."""
    held: list[Any] = []
    size = rows = 0
    try:
        for array in arrays:
            held += array.chunks if isinstance(array, pa.ChunkedArray) else [array]
            size += array.nbytes
            rows += len(array)
            del array
            if size >= PART or rows >= 32 << 20:
                full, held, size, rows = pa.chunked_array(held), [], 0, 0
                yield full
                del full
        if held:
            yield pa.chunked_array(held)
    finally:
        held.clear()  # the traceback of an error must not keep plaintext in memory


@contextlib.contextmanager
def _arrow_errors(path: str, column: str | None = None) -> Iterator[None]:
    """Raise FormatError for Arrow's errors about damaged data. Errors of the system are not changed."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        # Arrow raises OSError for damaged data too, but only an error of the system has an errno.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        where = f"{path}: column {column!r}" if column else path
        raise FormatError(
            f"{where} cannot be read: the file is damaged or was cut short", path=path, column=column
        ) from error


def _batches(parquet: OpenParquet, group: int, name: str, rows: int) -> Iterator[pa.RecordBatch]:
    reader = parquet.reader.iter_batches(rows, row_groups=[group], columns=[name], use_threads=False)
    return iter(reader)


def _rows_at_once(parquet: OpenParquet, group: int, name: str, rows: int) -> int:
    """Estimate how many rows of a column have about `_BATCH` bytes, from the footer and the first values."""
    metadata = parquet.reader.metadata.row_group(group)
    if rows <= 256 and metadata.total_byte_size < _BATCH:
        return rows
    average = 1.0
    for number in range(metadata.num_columns):
        chunk = metadata.column(number)
        if chunk.path_in_schema.split(".")[0] == name.split(".")[0]:
            average += chunk.total_uncompressed_size / rows
    few = max(1, min(256, int(_BATCH / average)))
    with _arrow_errors(parquet.path, name):
        first = next(_batches(parquet, group, name, few))
    values = first.column(0)
    # Sizes in the footer are those before dictionaries are expanded: measure the first values as well.
    width = values.nbytes / max(len(values), 1)
    if pa.types.is_dictionary(values.type):
        width = values.dictionary.nbytes / max(len(values.dictionary), 1) + 4
    return max(1, min(_MOST_ROWS, int(_BATCH / max(average, width, 1.0))))
