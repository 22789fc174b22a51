"""Read CSV in blocks, with column types that are the same for every row."""

from __future__ import annotations

import codecs
import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from kmsdata.errors import CallerKeyError, CallerValueError, FormatError, did_you_mean
from kmsdata.parquet.locations import Place, open_file

__all__ = ["CsvFormat", "CsvLayout", "Types", "csv_batches", "csv_layout", "is_csv", "missing_column"]

Types: TypeAlias = "Mapping[str, str | pa.DataType]"

_BLOCK = 4 << 20
_CODECS = {"gz": "gzip", "bz2": "bz2", "zst": "zstd", "lz4": "lz4"}


def is_csv(name: str) -> bool:
    """Tell whether a file's name is that of a CSV file, compressed or not."""
    return re.search(r"\.csv(\.(gz|bz2|zst|lz4))?$", name, re.IGNORECASE) is not None


@dataclass(frozen=True)
class CsvFormat:
    """How a CSV file is written.

    Args:
        delimiter: the character between fields.
        encoding: its encoding, one of Python.

    Raises:
        ValueError: the delimiter is not one ASCII character, or there is no such encoding.
    """

    delimiter: str = ","
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        if len(self.delimiter) != 1 or not self.delimiter.isascii() or self.delimiter in '"\r\n\0':
            raise CallerValueError(
                "delimiter= must be one ASCII character that is no quote and no line break, such as ';' or "
                "a tab"
            )
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise CallerValueError(
                f"encoding={self.encoding!r} is not an encoding of Python. Pass one such as 'utf-8', "
                "'gb18030' or 'cp1252'"
            ) from None


@dataclass(frozen=True)
class CsvLayout:
    """The columns of a CSV file, found in its first block.

    Attributes:
        schema: its columns.
        rows: the number of rows; an estimate if the file is larger than the first block.
        headless: whether the first line looks like values instead of names of columns.
    """

    schema: pa.Schema
    rows: int
    headless: bool


_DEFAULT = CsvFormat()


def csv_layout(place: Place, types: Types | None = None, csv: CsvFormat = _DEFAULT) -> CsvLayout:
    """Infer the columns of a CSV file, which has a header line.

    The type of a column is that in ``types``, otherwise that of its values in the first block (4 MB):
    numbers, dates, times, true and false, otherwise text. Empty fields are null, unless they are quoted. A
    column is text if its digits would change as a number (a leading zero).

    Raises:
        FormatError: the file is not CSV, or a value of the first block is not of its column's type.
        KeyError: ``types`` names a column that the file does not have.
    """
    given = {name: _arrow_type(kind, name) for name, kind in (types or {}).items()}
    with _opened(place) as file:
        first = _reader(file, place, {}, csv).schema
    try:
        names: list[str] = first.names
    except UnicodeDecodeError:  # Arrow checks the values for UTF-8, but not the header line
        names = []
    if not names:
        raise _unreadable(place, "UTF-8", [], 0, csv)
    if len(set(names)) < len(names):
        raise FormatError(
            f"{place}: several columns have the same name. Give them distinct names first", path=str(place)
        )
    for name in given:
        if name not in names:
            raise missing_column(f"types= names {name!r}, but {place} has no such column", names, name, csv)
    with _opened(place) as file:
        reader = _reader(file, place, dict.fromkeys(names, pa.string()), csv)
        plain = _next_batch(reader, place, names, 0, csv)
        whole = plain is None or plain.num_rows == 0 or _ended(reader)
        read = _BLOCK if file.tell() >= _BLOCK and not _compressed(place) else None
    types_found: dict[str, pa.DataType] = {}
    for field in first:
        kind = given.get(field.name, field.type)
        if field.name not in given and pa.types.is_null(kind):
            kind = pa.string()  # the first block has only nulls: text can represent every later value
        if field.name not in given and pa.types.is_integer(kind) and plain is not None:
            kind = kind if _integers(plain.column(field.name), kind) is not None else pa.string()
        types_found[field.name] = kind
    rows = 0 if plain is None else plain.num_rows
    if not whole:
        size = place.filesystem.get_file_info(place.path).size
        # Of a compressed file, only the size is known: text is assumed to be four times as large.
        rows = int(rows * (size / read if read else 4 * size / _BLOCK))
    headless = any(_is_value(field) for field in first) and plain is not None
    return CsvLayout(pa.schema(list(types_found.items())), rows, headless)


def missing_column(said: str, names: list[str], name: str, csv: CsvFormat) -> KeyError:
    """Return the error for a column that a CSV file does not have, with no other name than a similar one.

    Without a line of names, the first line would be values, which an error must not show.
    """
    if len(names) == 1:
        counts = {mark: names[0].count(mark) for mark in ",;|\t" if mark != csv.delimiter}
        mark = max(counts, key=lambda mark: counts[mark])
        if counts[mark]:
            return CallerKeyError(
                f"{said}. The first line contains no {csv.delimiter!r}, but {mark!r}: pass delimiter={mark!r}"
            )
    if question := did_you_mean(name, names, 0.8):
        return CallerKeyError(f"{said}{question}")
    fields = "1 field" if len(names) == 1 else f"{len(names):,} fields"
    return CallerKeyError(
        f"{said}. The first line must be the names of the columns: it has {fields}, none of this name"
    )


def csv_batches(place: Place, schema: pa.Schema, csv: CsvFormat = _DEFAULT) -> Iterator[pa.RecordBatch]:
    """Read the rows of a CSV file in order, block by block, as the columns of its layout.

    Raises:
        FormatError: a value is not of its column's type, or would change as one; the error shows no value.
    """
    row, names = 0, schema.names
    integers = {field.name for field in schema if pa.types.is_integer(field.type)}
    # Arrow would read "007" and "+5" as integers, so these columns are read as text and converted here.
    read_as = {field.name: pa.string() if field.name in integers else field.type for field in schema}
    with _opened(place) as file:
        reader = _reader(file, place, read_as, csv)
        while (batch := _next_batch(reader, place, names, row, csv)) is not None:
            columns = []
            for field, values in zip(schema, batch.columns, strict=True):
                converted = _integers(values, field.type) if field.name in integers else values
                if converted is None:
                    raise _mistyped(place, field.name, field.type, row)
                columns.append(converted)
            row += batch.num_rows
            yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _ended(reader: Any) -> bool:
    """Return whether there are no more rows. Reads the next block."""
    try:
        return bool(reader.read_next_batch().num_rows == 0)
    except StopIteration:
        return True
    except (pa.ArrowInvalid, UnicodeError):  # reported once the rows are read
        return False


def _compressed(place: Place) -> bool:
    return re.search(r"\.(gz|bz2|zst|lz4)$", place.path, re.IGNORECASE) is not None


def _is_value(field: pa.Field) -> bool:
    """Return whether a name is a value such as those of its column, which is not text."""
    kind = field.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_temporal(kind)):
        return False
    if re.fullmatch(r"(19|20)\d\d", field.name):  # years are common names
        return False
    try:
        return bool(pa.array([field.name], pa.string()).cast(kind)[0].is_valid)
    except pa.ArrowException:
        return False


def _reader(file: pa.NativeFile, place: Place, types: Mapping[str, pa.DataType], csv: CsvFormat) -> Any:
    try:
        return pyarrow.csv.open_csv(
            file,
            read_options=pyarrow.csv.ReadOptions(
                block_size=_BLOCK, use_threads=False, encoding=_encoding_name(csv.encoding)
            ),
            parse_options=pyarrow.csv.ParseOptions(delimiter=csv.delimiter),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=types,
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        problem = str(error)
    except UnicodeError:  # its text contains bytes of the file
        problem = "UTF-8"
    raise _unreadable(place, problem, list(types), 0, csv)


def _encoding_name(name: str) -> str:
    """Return an encoding's name as Arrow knows it: it reads UTF-8 itself, others through Python."""
    found = codecs.lookup(name).name
    return "utf8" if found == "utf-8" else found


@contextlib.contextmanager
def _opened(place: Place) -> Iterator[pa.NativeFile]:
    """Open a CSV file, which is compressed if its name says so."""
    found = re.search(r"\.(gz|bz2|zst|lz4)$", place.path, re.IGNORECASE)
    with open_file(place) as file:
        yield pa.CompressedInputStream(file, _CODECS[found[1].lower()]) if found else file


def _next_batch(
    reader: Any, place: Place, names: list[str], row: int, csv: CsvFormat
) -> pa.RecordBatch | None:
    try:
        return reader.read_next_batch()
    except StopIteration:
        return None
    except pa.ArrowInvalid as error:
        problem = str(error)
    except UnicodeError:  # its text contains bytes of the file
        problem = "UTF-8"
    raise _unreadable(place, problem, names, row, csv)


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
        raise CallerValueError(
            f"types= says {kind!r} for {name!r}, which is not an Arrow type. Use a name such as 'string', "
            "'int64' or 'date32', or a pyarrow type"
        ) from None


def _unreadable(place: Place, problem: str, names: list[str], row: int, csv: CsvFormat) -> FormatError:
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
        what = (
            "not all rows have as many fields as the first line. If another character than "
            f"{csv.delimiter!r} is between the fields, pass delimiter="
        )
    elif problem == "UTF-8":
        what = f"it is not {csv.encoding.upper()}. Pass its encoding, such as encoding='gb18030' or 'cp1252'"
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
