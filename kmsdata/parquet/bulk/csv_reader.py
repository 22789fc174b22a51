"""CSV in blocks, with types that hold for every row."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from kmsdata.errors import FormatError
from kmsdata.parquet.locations import Place

__all__ = ["CsvFile", "Types", "is_csv", "open_csv"]

Types: TypeAlias = "Mapping[str, str | pa.DataType]"

_BLOCK = 4 << 20


def is_csv(name: str) -> bool:
    """Whether a file's name says that it is CSV, compressed or not."""
    return re.search(r"\.csv(\.(gz|bz2|zst|lz4))?$", name, re.IGNORECASE) is not None


@dataclass(frozen=True)
class CsvFile:
    """An open CSV file.

    Attributes:
        schema: its columns.
        batches: its rows, in order.
        width: bytes of a row in the first block, about.
    """

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    width: float


def open_csv(place: Place, types: Types | None = None) -> CsvFile:
    """Read CSV in blocks: UTF-8, a header line, commas.

    A column's type is the one of ``types``, else what its values in the first block (4 MB) are: numbers,
    dates, times, true and false, else text. Empty fields are null, unless they are quoted. Digits
    that would change as a number (a leading zero) make a column text.

    Raises:
        FormatError: a row of a later block is not of the column's type; no value is shown.
        KeyError: ``types`` names a column that is not there.
    """
    given = {name: _type(kind, name) for name, kind in (types or {}).items()}
    first = _reader(place, {})
    try:
        names: list[str] = first.schema.names
    except UnicodeDecodeError:  # Arrow checks values, and not the header line
        names = []
    if not names:
        raise _refusal(place, "UTF-8", [], 0)
    if len(set(names)) < len(names):
        raise FormatError(f"{place}: columns of the same name: rename them apart first", path=str(place))
    for name in given:
        if name not in names:
            raise KeyError(f"types= names {name!r}, and {place} has no such column")
    plain = _next(_reader(place, dict.fromkeys(names, pa.string())), place, names, 0)
    wanted: dict[str, pa.DataType] = {}
    for field in first.schema:
        kind = given.get(field.name, field.type)
        if field.name not in given and pa.types.is_null(kind):
            kind = pa.string()  # nothing is known of it yet, and text takes all
        if field.name not in given and pa.types.is_integer(kind) and plain is not None:
            kind = kind if _numbers(plain.column(field.name), kind) is not None else pa.string()
        wanted[field.name] = kind
    width = plain.nbytes / plain.num_rows if plain is not None and plain.num_rows else 1.0
    return CsvFile(pa.schema(list(wanted.items())), _blocks(place, wanted), max(width, 1.0))


def _reader(place: Place, types: Mapping[str, pa.DataType]) -> Any:
    try:
        return pyarrow.csv.open_csv(
            place.filesystem.open_input_stream(place.path),
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
    raise _refusal(place, problem, list(types), 0)


def _next(reader: Any, place: Place, names: list[str], row: int) -> pa.RecordBatch | None:
    try:
        return reader.read_next_batch()
    except StopIteration:
        return None
    except pa.ArrowInvalid as error:
        problem = str(error)
    raise _refusal(place, problem, names, row)


def _blocks(place: Place, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    row, names = 0, list(types)
    exact = {name for name, kind in types.items() if pa.types.is_integer(kind)}
    reader = _reader(place, {name: pa.string() if name in exact else kind for name, kind in types.items()})
    while (batch := _next(reader, place, names, row)) is not None:
        columns = []
        for name, values in zip(names, batch.columns, strict=True):
            made = _numbers(values, types[name]) if name in exact else values
            if made is None:
                raise _mistyped(place, name, types[name], row)
            columns.append(made)
        row += batch.num_rows
        yield pa.RecordBatch.from_arrays(columns, schema=pa.schema(list(types.items())))


def _numbers(text: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """Text as whole numbers; None where they would not say all that it did: a zero in front, a sign."""
    try:
        numbers = text.cast(kind)
    except pa.ArrowInvalid:
        return None
    same = pc.all(pc.equal(numbers.cast(pa.string()), text)).as_py()
    return None if same is False else numbers


def _type(kind: str | pa.DataType, name: str) -> pa.DataType:
    if isinstance(kind, pa.DataType):
        return kind
    try:
        return pa.type_for_alias(kind)
    except ValueError:
        raise ValueError(
            f"types= says {kind!r} for {name!r}: name an Arrow type, such as 'string', 'int64' or 'date32', "
            "or pass one"
        ) from None


def _refusal(place: Place, problem: str, names: list[str], row: int) -> FormatError:
    """Say what is wrong. Arrow's own message shows the value: this one does not."""
    if "UTF8" in problem or "UTF-8" in problem:
        problem = "UTF-8"
    if found := re.search(
        r"In CSV column #(\d+).*?CSV conversion error to ([\w\[\], ]+)", problem, re.DOTALL
    ):
        number = int(found[1])
        return _mistyped(place, names[number] if number < len(names) else f"#{number}", found[2], row)
    what = "it is malformed"
    if "columns, got" in problem:
        what = "its rows do not all have as many fields as its first line"
    elif problem == "UTF-8":
        what = "it is not UTF-8: convert it first, as by iconv -f GB18030 -t UTF-8"
    elif "Empty CSV" in problem:
        what = "it is empty"
    return FormatError(f"{place} cannot be read as CSV: {what} (at or after row {row})", path=str(place))


def _mistyped(place: Place, column: str, kind: object, row: int) -> FormatError:
    return FormatError(
        f"{place}: column {column!r} is {kind} in its first rows, but at or after row {row} a value is not, "
        f"or would change as one: say what it is, e.g. types={{{column!r}: 'string'}}",
        path=str(place),
        column=column,
    )
