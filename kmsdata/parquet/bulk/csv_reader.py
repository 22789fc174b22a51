"""Read CSV in blocks, with column types that are the same for every row."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from kmsdata.errors import FormatError
from kmsdata.parquet.locations import Place, open_file

__all__ = ["CsvLayout", "Types", "csv_batches", "csv_layout", "is_csv"]

Types: TypeAlias = "Mapping[str, str | pa.DataType]"

_BLOCK = 4 << 20
_CODECS = {"gz": "gzip", "bz2": "bz2", "zst": "zstd", "lz4": "lz4"}


def is_csv(name: str) -> bool:
    """Tell whether a file's name is that of a CSV file, compressed or not."""
    return re.search(r"\.csv(\.(gz|bz2|zst|lz4))?$", name, re.IGNORECASE) is not None


@dataclass(frozen=True)
class CsvLayout:
    """The columns of a CSV file, found in its first block.

    Attributes:
        schema: its columns.
        row_bytes: the average size of a row.
    """

    schema: pa.Schema
    row_bytes: float


def csv_layout(place: Place, types: Types | None = None) -> CsvLayout:
    """Infer the columns of a CSV file: UTF-8, a header line, commas.

    The type of a column is that in ``types``, otherwise that of its values in the first block (4 MB):
    numbers, dates, times, true and false, otherwise text. Empty fields are null, unless they are quoted. A
    column is text if its digits would change as a number (a leading zero).

    Raises:
        FormatError: the file is not CSV, or a value of the first block is not of its column's type.
        KeyError: ``types`` names a column that the file does not have.
    """
    given = {name: _arrow_type(kind, name) for name, kind in (types or {}).items()}
    with _opened(place) as file:
        first = _reader(file, place, {}).schema
    try:
        names: list[str] = first.names
    except UnicodeDecodeError:  # Arrow checks the values for UTF-8, but not the header line
        names = []
    if not names:
        raise _unreadable(place, "UTF-8", [], 0)
    if len(set(names)) < len(names):
        raise FormatError(
            f"{place}: several columns have the same name. Give them distinct names first", path=str(place)
        )
    for name in given:
        if name not in names:
            raise KeyError(f"types= names {name!r}, but {place} has no such column")
    with _opened(place) as file:
        plain = _next_batch(_reader(file, place, dict.fromkeys(names, pa.string())), place, names, 0)
    types_found: dict[str, pa.DataType] = {}
    for field in first:
        kind = given.get(field.name, field.type)
        if field.name not in given and pa.types.is_null(kind):
            kind = pa.string()  # the first block has only nulls: text can represent every later value
        if field.name not in given and pa.types.is_integer(kind) and plain is not None:
            kind = kind if _integers(plain.column(field.name), kind) is not None else pa.string()
        types_found[field.name] = kind
    row_bytes = plain.nbytes / plain.num_rows if plain is not None and plain.num_rows else 1.0
    return CsvLayout(pa.schema(list(types_found.items())), max(row_bytes, 1.0))


def csv_batches(place: Place, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Read the rows of a CSV file in order, block by block, as the columns of its layout.

    Raises:
        FormatError: a value is not of its column's type, or would change as one; the error shows no value.
    """
    row, names = 0, schema.names
    integers = {field.name for field in schema if pa.types.is_integer(field.type)}
    # Arrow would read "007" and "+5" as integers, so these columns are read as text and converted here.
    read_as = {field.name: pa.string() if field.name in integers else field.type for field in schema}
    with _opened(place) as file:
        reader = _reader(file, place, read_as)
        while (batch := _next_batch(reader, place, names, row)) is not None:
            columns = []
            for field, values in zip(schema, batch.columns, strict=True):
                converted = _integers(values, field.type) if field.name in integers else values
                if converted is None:
                    raise _mistyped(place, field.name, field.type, row)
                columns.append(converted)
            row += batch.num_rows
            yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _reader(file: pa.NativeFile, place: Place, types: Mapping[str, pa.DataType]) -> Any:
    try:
        return pyarrow.csv.open_csv(
            file,
            read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK, use_threads=False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=types,
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        problem = str(error)
    raise _unreadable(place, problem, list(types), 0)


@contextlib.contextmanager
def _opened(place: Place) -> Iterator[pa.NativeFile]:
    """Open a CSV file, which is compressed if its name says so."""
    found = re.search(r"\.(gz|bz2|zst|lz4)$", place.path, re.IGNORECASE)
    with open_file(place) as file:
        yield pa.CompressedInputStream(file, _CODECS[found[1].lower()]) if found else file


def _next_batch(reader: Any, place: Place, names: list[str], row: int) -> pa.RecordBatch | None:
    try:
        return reader.read_next_batch()
    except StopIteration:
        return None
    except pa.ArrowInvalid as error:
        problem = str(error)
    raise _unreadable(place, problem, names, row)


def _integers(text: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """Convert text to integers; None if a text would change: a leading zero, a plus sign."""
    try:
        numbers = text.cast(kind)
    except pa.ArrowInvalid:
        return None
    same = pc.all(pc.equal(numbers.cast(pa.string()), text)).as_py()
    return None if same is False else numbers


def _arrow_type(kind: str | pa.DataType, name: str) -> pa.DataType:
    if isinstance(kind, pa.DataType):
        return kind
    try:
        return pa.type_for_alias(kind)
    except ValueError:
        raise ValueError(
            f"types= says {kind!r} for {name!r}, which is not an Arrow type. Use a name such as 'string', "
            "'int64' or 'date32', or a pyarrow type"
        ) from None


def _unreadable(place: Place, problem: str, names: list[str], row: int) -> FormatError:
    """Return an error that says what is wrong with a CSV file, without the values in Arrow's message."""
    # Arrow's messages contain a value of the file or a whole row, so no part of their text is shown.
    if "UTF8" in problem or "UTF-8" in problem:
        problem = "UTF-8"
    if found := re.search(
        r"In CSV column #(\d+).*?CSV conversion error to ([\w\[\], ]+)", problem, re.DOTALL
    ):
        number = int(found[1])
        return _mistyped(place, names[number] if number < len(names) else f"#{number}", found[2], row)
    what = "it is malformed"
    if "columns, got" in problem:
        what = "not all rows have as many fields as the first line"
    elif problem == "UTF-8":
        what = "it is not UTF-8: convert it first, for example with iconv -f GB18030 -t UTF-8"
    elif "Empty CSV" in problem:
        what = "it is empty"
    return FormatError(f"{place} cannot be read as CSV: {what} (at or after row {row})", path=str(place))


def _mistyped(place: Place, column: str, kind: object, row: int) -> FormatError:
    return FormatError(
        f"{place}: column {column!r} is {kind} in its first rows, but at or after row {row} a value is not, "
        f"or would change as one. Give the type of the column, for example types={{{column!r}: 'string'}}",
        path=str(place),
        column=column,
    )
