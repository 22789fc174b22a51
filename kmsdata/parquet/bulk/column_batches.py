"""Columns of Parquet files that others replace: found, read in batches, and what metadata says thereafter."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kmsdata.errors import FormatError
from kmsdata.frames.pandas_metadata import in_pandas_metadata
from kmsdata.keys.envelope import ENTRY, Header, file_text
from kmsdata.parquet.bulk.csv_reader import Types, is_csv, open_csv
from kmsdata.parquet.bulk.plan import Job
from kmsdata.parquet.column_chunks import PART, Replacement
from kmsdata.parquet.footer import NOT_PARQUET, FileMetaData, read_metadata
from kmsdata.parquet.headers import headers_in
from kmsdata.parquet.locations import Place
from kmsdata.parquet.write import settings_for

__all__ = [
    "Survey",
    "column_batches",
    "edited_metadata",
    "in_parts",
    "open_parquet",
    "replacement",
    "with_type",
]

_SPARK = b"org.apache.spark.sql.parquet.row.metadata"
_BATCH = 8 << 20  # bytes of a column that are decoded at once
_MOST_ROWS = 1 << 17


@contextlib.contextmanager
def _reading(path: str, column: str | None = None) -> Iterator[None]:
    """Arrow's errors about what it reads, as ours. The system's own pass."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        where = f"{path}: column {column!r}" if column else path
        raise FormatError(
            f"{where} cannot be read: the file is damaged or was cut short", path=path, column=column
        ) from error


@contextlib.contextmanager
def open_parquet(place: Place) -> Iterator[tuple[pa.NativeFile, pq.ParquetFile, FileMetaData]]:
    """A file, its columns to be read, and its footer. FormatError where it is none that can be replaced."""
    path = str(place)
    with place.filesystem.open_input_file(place.path) as file:
        try:
            footer = read_metadata(file, file.size(), path)
        except FormatError as error:
            if NOT_PARQUET not in str(error):
                raise
            raise FormatError(f"{error} (CSV files have names ending in .csv)", path=path) from None
        with _reading(path):
            # Pages come one by one: a chunk may be larger than memory.
            parquet = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        if parquet.schema_arrow.names != [name for name, _ in footer.columns]:
            raise FormatError(f"{path}: its schema and its Arrow schema differ", path=path)
        yield file, parquet, footer


@dataclass
class Survey:
    """What the footers of all files say.

    Attributes:
        total: rows; of CSV about.
        schemas: by file.
        headers: by file, of its encrypted columns.
        types: of CSV columns: one for all files, as the first file says.
    """

    total: int
    schemas: dict[str, pa.Schema]
    headers: dict[str, dict[str, Header]]
    types: Types | None

    @classmethod
    def of(cls, job: Job, types: Types | None) -> Survey:
        """Read the footer of each file, and the first block of each CSV."""
        survey = cls(0, {}, {}, types)
        seen: dict[bytes, pa.Schema] = {}  # thousands of files share few schemas
        for name, place in job.files.items():
            if is_csv(name):
                csv = open_csv(place, survey.types)
                survey.types = {field.name: field.type for field in csv.schema}
                survey.total += int(place.filesystem.get_file_info(place.path).size / csv.width)
                schema, headers = csv.schema, {}
            else:
                with open_parquet(place) as (_, parquet, _):
                    schema = parquet.schema_arrow
                    survey.total += parquet.metadata.num_rows
                headers = headers_in(schema, str(place), footer=parquet.metadata.metadata)
            survey.schemas[name] = seen.setdefault(schema.serialize().to_pybytes(), schema)
            survey.headers[name] = headers
        return survey


def column_batches(parquet: pq.ParquetFile, group: int, name: str, path: str) -> Iterator[Any]:
    """A column of a row group, in arrays of some megabytes; one of no rows where there is none."""
    rows = parquet.metadata.row_group(group).num_rows
    if not rows:
        yield pa.array([], parquet.schema_arrow.field(name).type)
        return
    size = _rows_at_once(parquet, group, name, rows, path)
    with _reading(path, name):
        reader = parquet.iter_batches(size, row_groups=[group], columns=[name], use_threads=False)
        batches = iter(reader)
    while True:
        with _reading(path, name):
            batch = next(batches, None)
        if batch is None:
            return
        if batch.schema.names != [name]:
            raise ValueError(
                f"{path}: {name!r} is a column, and so is a part of another one: rename it first"
            )
        yield batch.column(0)


def _rows_at_once(parquet: pq.ParquetFile, group: int, name: str, rows: int, path: str) -> int:
    metadata = parquet.metadata.row_group(group)
    if rows <= 256 and metadata.total_byte_size < _BATCH:
        return rows
    average = 1.0
    for number in range(metadata.num_columns):
        chunk = metadata.column(number)
        if chunk.path_in_schema.split(".")[0] == name.split(".")[0]:
            average += chunk.total_uncompressed_size / rows
    few = max(1, min(256, int(_BATCH / average)))
    with _reading(path, name):
        first = next(iter(parquet.iter_batches(few, row_groups=[group], columns=[name], use_threads=False)))
    values = first.column(0)
    width = values.nbytes / max(len(values), 1)
    if pa.types.is_dictionary(values.type):
        width = values.dictionary.nbytes / max(len(values.dictionary), 1) + 4
    return max(1, min(_MOST_ROWS, int(_BATCH / max(average, width, 1.0))))


def in_parts(arrays: Iterable[Any]) -> Iterator[pa.ChunkedArray]:
    """Arrays, put together until they are some `PART` bytes."""
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
        held.clear()  # no error keeps plaintext in its frames


def with_type(schema: pa.Schema, name: str, kind: pa.DataType) -> pa.Schema:
    """The schema with another type of a column."""
    position = schema.get_field_index(name)
    return schema.set(position, schema.field(position).with_type(kind))


@functools.lru_cache(256)  # for thousands of small files
def _replaced_by(name: str, kind: pa.DataType, nullable: bool) -> Replacement:
    field = pa.field(name, kind, nullable)
    return Replacement(field, settings_for(pa.schema([field]), {}))


def replacement(field: pa.Field) -> Replacement:
    """What is to be written of this column."""
    return _replaced_by(field.name, field.type, field.nullable)


def edited_metadata(
    metadata: Mapping[bytes, bytes] | None,
    names: list[str],
    headers: Mapping[str, Header],
    *,
    back: bool = False,
) -> dict[bytes, bytes]:
    """Key-value metadata of a file with other columns encrypted than before."""
    out = dict(in_pandas_metadata(metadata or {}, names, back=back) or {})
    if _SPARK in out and not back:
        out[_SPARK] = _spark_metadata(out[_SPARK], names)
    out.pop(ENTRY, None)
    if headers:
        out[ENTRY] = file_text(headers).encode()
    return out


def _spark_metadata(text: bytes, names: list[str]) -> bytes:
    """Spark reads columns by the types that it has written here, and keeps lists of values beside them."""
    try:
        document = json.loads(text)
        for field in document["fields"]:
            if field["name"] in names:
                field |= {"type": "binary", "metadata": {}}
    except (ValueError, TypeError, KeyError, AttributeError):
        return text
    return json.dumps(document, separators=(",", ":")).encode()
