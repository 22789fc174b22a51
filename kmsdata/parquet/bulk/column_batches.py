"""Read one column of a Parquet file at a time, in batches of some megabytes."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kmsdata.codec.null_arrays import null_rows
from kmsdata.errors import CallerValueError, FormatError, UnsupportedTypeError
from kmsdata.lazy_property import lazy_property
from kmsdata.parquet.bulk.csv_reader import is_csv
from kmsdata.parquet.column_chunks import PART
from kmsdata.parquet.footer import NOT_PARQUET, FileMetaData, check_footer, page_range, read_metadata
from kmsdata.parquet.headers import damaged
from kmsdata.parquet.locations import Place, open_file
from kmsdata.parquet.thrift import I64, Struct, decode, value

__all__ = [
    "OpenParquet",
    "categories",
    "column_batches",
    "in_parts",
    "open_parquet",
    "refuse_lost_timestamps",
]

_BATCH = 8 << 20  # bytes of a column that are usually decoded at once
_MOST = 32 << 20  # bytes of a column that are at most decoded at once, if a dictionary has long values
_MOST_ROWS = 1 << 17  # rows that are decoded at once, also of columns whose values take almost no bytes
_LARGE = 1 << 20  # of a smaller file, decoding the footer in Python takes no time, and says what is wrong
_MOST_WALKED = 1 << 16  # values of a dictionary that compresses better than by `_MOST_RATIO`
_MOST_RATIO = 100  # how much larger a page of more than `_MOST` may become when it is decompressed
_HEADER = 4 << 10  # bytes of a page that are read to find its header

# What Arrow says about a schema with a type of a later Parquet version, or of other software.
_NEWER = ("LogicalType that is not recognized", "not implemented")

_INT96, _BYTE_ARRAY = 3, 6
_MOST_MS = (1 << 63) // 1_000_000 - 1  # milliseconds that fit into 64 bits of nanoseconds
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3  # types of pages
_DELTA_BYTE_ARRAY = 7
_SHORT_SIZES = re.compile(rb"parquet-mr(?: version (\d+)\.(\d+)\.(\d+))?")
_CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}


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

    @lazy_property
    def schema(self) -> pa.Schema:
        """The schema that Arrow shows."""
        return self.reader.schema_arrow

    @lazy_property
    def leaves(self) -> dict[str, range]:
        """The numbers of the leaves of each column."""
        return dict(self.footer.columns)

    @lazy_property
    def leaf_elements(self) -> list[Struct]:
        """The schema elements of the leaves."""
        return [part for elements in self.footer.elements for part in elements if not value(part, 5, 0)]

    @property
    def entries(self) -> dict[bytes, bytes]:
        """The key-value metadata, without the Arrow schema."""
        return {key: text for key, text in self.footer.metadata.items() if key != b"ARROW:schema"}

    @property
    def groups(self) -> int:
        """The number of row groups."""
        return int(self.reader.num_row_groups)

    @lazy_property
    def first_rows(self) -> list[int]:
        """The position in the file of the first row of each row group."""
        return list(itertools.accumulate(map(self.rows, range(self.groups)), initial=0))

    def rows(self, group: int) -> int:
        """Return the number of rows of a row group."""
        return int(self.reader.metadata.row_group(group).num_rows)


@contextlib.contextmanager
def open_parquet(place: Place, name: str | None = None) -> Iterator[OpenParquet]:
    """Open a Parquet file; ``name`` is its name in errors, if not its path.

    Raises:
        FormatError: it is not a Parquet file, or not one whose columns can be replaced.
    """
    path = name or str(place)
    with open_file(place) as file:
        try:
            check_footer(file, file.size(), path)
            if file.size() > _LARGE:
                _refuse_what_arrow_refuses(file, path)
            footer = read_metadata(file, file.size(), path)
            _correct_sizes(file, footer)
        except FormatError as error:
            if NOT_PARQUET not in str(error) or is_csv(path):
                raise
            raise FormatError(f"{error} (the name of a CSV file must end in .csv)", path=path) from None
        with _arrow_errors(path):
            # With pre_buffer Arrow would read whole column chunks, which may be larger than memory.
            reader = pq.ParquetFile(
                file, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True
            )
            names = reader.schema_arrow.names  # decoded only here
        if names != [name for name, _ in footer.columns]:
            raise FormatError(
                f"{path}: its Parquet schema and its Arrow schema have different columns", path=path
            )
        yield OpenParquet(path, file, reader, footer)


def _refuse_what_arrow_refuses(file: pa.NativeFile, path: str) -> None:
    """Raise FormatError for a damaged footer that Arrow refuses at once, before it is decoded in Python."""
    try:
        pq.read_metadata(file)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise damaged(path) from None


def _correct_sizes(file: pa.NativeFile, footer: FileMetaData) -> None:
    """Correct the sizes of column chunks that leave out the header of the dictionary page.

    parquet-mr before 1.2.9 wrote such sizes (PARQUET-816). Readers of these files read on until they have all
    values, but a copy of so few bytes would cut off the end of a column.
    """
    written_by = _SHORT_SIZES.match(value(footer.fields, 6, b""))
    if not written_by or (written_by[1] and tuple(map(int, written_by.groups())) >= (1, 2, 9)):
        return
    metas = [value(chunk, 3) for group in footer.groups for chunk in value(group, 1)[1]]
    metas.sort(key=lambda meta: page_range(meta)[0])
    for meta, after in itertools.zip_longest(metas, metas[1:]):
        start, length = page_range(meta)
        stop = page_range(after)[0] if after else file.size()
        at, left = start, value(meta, 5)
        with contextlib.suppress(_PageError):  # a damaged page is found where the column is decoded
            while left > 0 and at < stop:
                kind, _, packed, page, used = _page_header(file, at, stop)
                left -= value(page, 1, 0) if kind in (_DATA, _DATA_V2) else 0
                at += used + packed
            if start + length < at <= stop:
                meta[7] = I64, at - start


def column_batches(parquet: OpenParquet, group: int, name: str) -> Iterator[Any]:
    """Read a column of a row group in arrays of some megabytes; an empty one if the group has no rows.

    Raises:
        FormatError: the column cannot be read.
        ValueError: the name is also that of a part of another column.
    """
    rows = parquet.rows(group)
    if not rows:
        yield null_rows(parquet.schema.field(name).type, 0)
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
            raise CallerValueError(
                f"{parquet.path}: {name!r} is the name of a column and of a part of another column. Rename "
                "one of them first"
            )
        yield batch.column(0)


def refuse_lost_timestamps(parquet: OpenParquet, group: int, name: str) -> None:
    """Raise UnsupportedTypeError for INT96 timestamps that Arrow's nanoseconds cannot hold.

    Arrow reads INT96 as nanoseconds since 1970 in 64 bits, without an error for years before 1678 or after
    2261: those become other moments.
    """
    if not any(value(parquet.leaf_elements[leaf], 1) == _INT96 for leaf in parquet.leaves[name]):
        return
    with _arrow_errors(parquet.path, name):
        reader = pq.ParquetFile(parquet.file, pre_buffer=False, coerce_int96_timestamp_unit="ms")
        for batch in reader.iter_batches(_MOST_ROWS, row_groups=[group], columns=[name], use_threads=False):
            for values in _leaf_values(batch.column(0)):
                if pa.types.is_timestamp(values.type) and len(values):
                    least, most = pc.min_max(values.cast(pa.int64())).values()
                    if least.is_valid and not -_MOST_MS <= least.as_py() <= most.as_py() <= _MOST_MS:
                        raise UnsupportedTypeError(
                            f"{parquet.path}: column {name!r} has INT96 timestamps before 1678 or after "
                            "2261, which Arrow cannot read exactly. Write the file with INT64 timestamps "
                            "first (in Spark: spark.sql.parquet.outputTimestampType=TIMESTAMP_MICROS)",
                            column=name,
                            dtype="INT96",
                        )


def _leaf_values(values: pa.Array) -> Iterator[pa.Array]:
    if pa.types.is_struct(values.type):
        for part in values.flatten():
            yield from _leaf_values(part)
    elif pa.types.is_map(values.type):
        yield from _leaf_values(values.keys)
        yield from _leaf_values(values.items)
    elif pa.types.is_nested(values.type):
        yield from _leaf_values(values.flatten())
    else:
        yield values


def categories(places: Iterable[Place], name: str, kind: pa.DataType) -> pa.Array:
    """Return the distinct categories of a dictionary column in all these files."""
    found = null_rows(kind, 0)
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
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        # Arrow raises OSError for damaged data too, but only an error of the system has an errno.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        where = f"{path}: column {column!r}" if column else path
        if column is None and any(text in str(error) for text in _NEWER):
            raise FormatError(
                f"{path} has a column of a type that pyarrow {pa.__version__} does not support: {error}. "
                "Install a newer version, or write the file again without this column",
                path=path,
            ) from error
        raise FormatError(
            f"{where} cannot be read: the file is damaged or was cut short", path=path, column=column
        ) from error


def _batches(parquet: OpenParquet, group: int, name: str, rows: int) -> Iterator[pa.RecordBatch]:
    reader = parquet.reader.iter_batches(rows, row_groups=[group], columns=[name], use_threads=False)
    return iter(reader)


def _rows_at_once(parquet: OpenParquet, group: int, name: str, rows: int) -> int:
    """Return how many rows of a column can be decoded at once, by the sizes of its pages and their values.

    The footer's sizes are not used: they are those before dictionaries and prefixes are expanded, and a
    hostile file may contain others.
    """
    limit = _MOST_ROWS
    chunks = value(parquet.footer.groups[group], 1)[1]
    for leaf in parquet.leaves[name]:
        meta = value(chunks[leaf], 3)
        try:
            with _arrow_errors(parquet.path, name):
                usual, longest = _widths(parquet.file, meta, parquet.leaf_elements[leaf])
        except _PageError as error:
            raise FormatError(
                f"{parquet.path}: column {name!r} cannot be read: {error}", path=parquet.path, column=name
            ) from None
        per_row = max(1.0, value(meta, 5) / rows)  # values of a row of a list
        limit = min(limit, int(_BATCH / (usual * per_row)), int(_MOST / (longest * per_row)))
    return max(1, limit)


class _PageError(Exception):
    """A damaged page."""


def _widths(file: pa.NativeFile, meta: Struct, element: Struct) -> tuple[float, float]:
    """Return how many bytes a value of a column chunk takes: on average, and at most if pages share values.

    Raises:
        _PageError: a page is damaged, or would take far more memory than it has bytes.
    """
    if value(element, 1) != _BYTE_ARRAY:
        fixed = max(float(value(element, 2, 1)), 16.0)
        return fixed, fixed
    usual = longest = 1.0
    at, length = page_range(meta)
    stop, left = at + length, value(meta, 5)
    first = True
    while at < stop and left > 0:
        kind, size, packed, page, used = _page_header(file, at, stop)
        count = value(page, 1, 0)
        if kind == _DICTIONARY:
            if not first:
                raise _PageError("a dictionary comes after the pages that use it")
            longest = max(longest, _longest(file, value(meta, 4), at + used, packed, size, count))
        elif kind in (_DATA, _DATA_V2):
            left -= count
            usual = max(usual, size / max(count, 1))
            if value(page, 2 if kind == _DATA else 4) == _DELTA_BYTE_ARRAY:
                longest = max(longest, size)  # each value may repeat almost all of the one before it
        first = False
        at += used + packed
    return usual + 4, longest + 4


def _page_header(file: pa.NativeFile, at: int, stop: int) -> tuple[int, int, int, Struct, int]:
    """Return type, uncompressed and compressed size, and details of a page; and the size of its header."""
    for most in (_HEADER, _HEADER << 10):  # statistics of long values make a header longer
        try:
            header, used = decode(bytes(file.read_at(min(most, stop - at), at)))
            break
        except FormatError:
            continue
    else:
        raise _PageError("the header of a page is damaged")
    kind, size, packed = (value(header, number) for number in (1, 2, 3))
    if not all(isinstance(number, int) and number >= 0 for number in (kind, size, packed)):
        raise _PageError("the header of a page is damaged")
    page = value(header, kind + 5, {})  # each type of page has its own field, in the order of the types
    count = value(page, 1, 0) if isinstance(page, dict) else -1
    if not isinstance(count, int) or count < 0 or at + used + packed > stop:
        raise _PageError("the header of a page is damaged")
    # The values of a dictionary differ, so it does not compress well; a hostile one would take long to walk.
    large = size > _MOST or (kind == _DICTIONARY and count > _MOST_WALKED)
    if large and size > _MOST_RATIO * packed:
        raise _PageError(f"a page of {packed:,} bytes would take {size:,} bytes uncompressed")
    return kind, size, packed, page, used


def _longest(file: pa.NativeFile, codec: int, at: int, packed: int, size: int, count: int) -> float:
    """Return the size of the longest value of a dictionary page, or an upper limit of it."""
    most = size - 4.0 * max(count - 1, 0)
    if most * _MOST_ROWS <= _MOST or (codec and codec not in _CODECS):
        return max(most, 1.0)
    data = bytes(file.read_at(packed, at))
    if codec:
        data = pa.decompress(data, size, _CODECS[codec], asbytes=True)
    found = position = 0
    for _ in range(count):
        length = int.from_bytes(data[position : position + 4], "little")
        found, position = max(found, length), position + 4 + length
        if position > len(data):
            raise _PageError("a dictionary is damaged")
    return float(max(found, 1))
