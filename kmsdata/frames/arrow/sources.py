"""Take Arrow data of any library by the PyCapsule interface, and return results in its kind of object.

No dataframe library is imported: an object of Polars or narwhals can only exist if its library is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pandas as pd
import pyarrow as pa

from kmsdata.codec.null_arrays import null_rows
from kmsdata.errors import CallerTypeError, CallerValueError, FormatError, UnsupportedTypeError
from kmsdata.frames.arrow_storage import validated

__all__ = [
    "empty_table",
    "is_arrow",
    "native",
    "next_batch",
    "received",
    "refuse_unknown_to_arrow",
    "schema_of",
    "tables_of",
    "wrapped_like",
]

_MOST = 300  # characters of a message of Arrow


def is_arrow(x: object) -> bool:
    """Return whether this is Arrow data: of pyarrow, or of any library with Arrow's PyCapsule interface.

    Frames and series of pandas are not, though they have the interface: it loses dtypes.
    """
    if isinstance(x, (pd.DataFrame, pd.Series, pd.Index, str)):
        return False
    return isinstance(x, pa.Table) or any(
        hasattr(x, name) for name in ("__arrow_c_stream__", "__arrow_c_array__")
    )


def native(x: Any) -> Any:
    """Return the frame that a frame of narwhals wraps; return anything else unchanged."""
    return x.to_native() if _is_of(x, "narwhals", "DataFrame", "LazyFrame", "Series") else x


def wrapped_like(x: Any, result: Any) -> Any:
    """Return a frame as a frame of narwhals if ``x`` is one, otherwise unchanged."""
    if native(x) is x:
        return result
    module = type(x).__module__  # the results of narwhals.stable.v1 are of that module too
    name = module if module.startswith("narwhals.stable") else "narwhals"
    return sys.modules[name].from_native(result)


def received(x: Any, taker: str, frames: str) -> tuple[pa.Table | pa.RecordBatchReader, Callable[[Any], Any]]:
    """Return Arrow data as a table, or as a reader if it is one, and a function that returns a result.

    Args:
        x: the data that a caller passed.
        taker: what takes it, such as ``"encrypt_table()"``, for errors.
        frames: what to call for frames of pandas, for errors.

    Returns:
        The data; and the function, which takes the resulting table or reader and returns it as the kind of
        object that ``x`` is, where that is possible, otherwise unchanged.

    Raises:
        TypeError: it is not Arrow data, or a single column. FormatError: Arrow cannot import it.
    """
    if (inner := native(x)) is not x:
        data, give_back = received(inner, taker, frames)
        return data, lambda result: wrapped_like(x, give_back(result))
    if isinstance(x, (pd.DataFrame, pd.Series, pd.Index)):
        raise CallerTypeError(
            f"{taker} takes an Arrow table, not {type(x).__name__}. For a frame, use {frames}"
        )
    if isinstance(x, (pa.Table, pa.RecordBatchReader)):
        return x, _unchanged
    if _is_of(x, "polars", "LazyFrame"):
        raise CallerTypeError(
            f"{taker} takes data, not a query that has not run (LazyFrame). Call .collect() first"
        )
    if _is_of(x, "polars", "DataFrame"):
        return _polars_table(x, taker), lambda result: _to_polars(x, result)
    if hasattr(x, "__arrow_c_stream__") and not isinstance(x, pa.RecordBatch):
        reader = _reader(x, taker)
        tables = list(_tables(reader))
        return pa.concat_tables(tables) if tables else empty_table(reader.schema), _unchanged
    if hasattr(x, "__arrow_c_array__"):
        return pa.Table.from_batches([_batch(x, taker)]), _to_batch
    raise CallerTypeError(
        f"{taker} takes an Arrow table, or another object with the method __arrow_c_stream__, not "
        f"{type(x).__name__}"
    )


def refuse_unknown_to_arrow(schema: Mapping[str, Any]) -> None:
    """Raise an error if Arrow has no such name or type: Polars would end with a panic, or another's message.

    Args:
        schema: the types of a frame of Polars by column.

    Raises:
        ValueError: a name contains a NUL character. UnsupportedTypeError: integers of 128 bits.
    """
    for column, dtype in schema.items():
        for name, kind in _polars_types(column, dtype):
            if "\0" in name:
                raise CallerValueError(
                    f"column {column!r}: the name {name!r} contains a NUL character, which Arrow does not "
                    "allow. Rename it first"
                )
            if (what := type(kind).__name__) in ("Int128", "UInt128"):
                raise UnsupportedTypeError(
                    f"column {column!r} has integers of 128 bits ({what}), which Arrow does not have. Cast "
                    "them to pl.Decimal(38, 0) or pl.String first, or leave the column out",
                    column=column,
                    dtype=what,
                )


def _polars_types(name: str, dtype: Any) -> Iterator[tuple[str, Any]]:
    """Yield a type of Polars and those inside of it, with the name of the column or field."""
    yield name, dtype
    for field in getattr(dtype, "fields", None) or ():
        yield from _polars_types(field.name, field.dtype)
    if (inner := getattr(dtype, "inner", None)) is not None:
        yield from _polars_types("", inner)


def schema_of(x: Any, taker: str) -> pa.Schema:
    """Return the schema of Arrow data; a reader is not read."""
    x = native(x)
    if isinstance(x, (pa.Table, pa.RecordBatch, pa.RecordBatchReader)):
        return x.schema
    if hasattr(x, "__arrow_c_stream__"):
        return _reader(x, taker).schema
    return received(x, taker, "its own methods")[0].schema


def tables_of(x: Any, taker: str) -> tuple[pa.Schema, Iterator[pa.Table]]:
    """Return the schema of Arrow data, and its tables: one, or one for each batch of a stream.

    Raises:
        FormatError: a batch has another schema than the stream.
    """
    x = native(x)
    streams = hasattr(x, "__arrow_c_stream__") and not isinstance(x, (pa.Table, pa.RecordBatch))
    if not streams or _is_of(x, "polars", "DataFrame"):
        table, _ = received(x, taker, "its own methods")
        return table.schema, iter([table])
    reader = _reader(x, taker)
    return reader.schema, _tables(reader)


def empty_table(schema: pa.Schema) -> pa.Table:
    """Return a table of no rows; `pyarrow.Schema.empty_table` fails for extension types inside of others."""
    return pa.Table.from_arrays([null_rows(kind, 0) for kind in schema.types], schema=schema)


def next_batch(reader: pa.RecordBatchReader, rows: int) -> pa.RecordBatch | None:
    """Read a batch, and check that it has the reader's schema and as many rows in each column; None: no more.

    Args:
        reader: any reader. Its batches may come from software that Arrow trusts without a check.
        rows: the number of rows before this batch, for errors.

    Raises:
        FormatError: it has not. Errors of the source pass, with a note about the number of rows.
    """
    try:
        batch = reader.read_next_batch()
    except StopIteration:
        return None
    except BaseException as error:
        error.add_note(f"The source of the stream failed after {rows:,} rows.")
        raise
    if not batch.schema.equals(reader.schema):
        raise FormatError(
            f"the batch after {rows:,} rows of the stream has another schema than the stream. Write it again "
            "with batches of one schema"
        )
    return validated(batch, full=False)


def _tables(reader: pa.RecordBatchReader) -> Iterator[pa.Table]:
    rows = 0
    while (batch := next_batch(reader, rows)) is not None:
        rows += len(batch)
        yield pa.Table.from_batches([batch])


def _unchanged(result: Any) -> Any:
    return result


class _Exported:
    """A capsule that a library has made already, so that its own errors and Arrow's can be told apart."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __arrow_c_stream__(self, requested_schema: object = None) -> Any:
        return self._capsule


def _reader(x: Any, taker: str) -> pa.RecordBatchReader:
    """Return a reader of the object's stream."""
    if isinstance(x, pa.RecordBatchReader):
        return x
    capsule = x.__arrow_c_stream__()
    try:
        return pa.RecordBatchReader.from_stream(_Exported(capsule))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise _not_imported(x, taker, error) from None


def _batch(x: Any, taker: str) -> pa.RecordBatch:
    if isinstance(x, pa.RecordBatch):
        return x
    try:
        return validated(pa.record_batch(x), full=False)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise _not_imported(x, taker, error) from None


def _not_imported(x: object, taker: str, error: Exception) -> Exception:
    """Return the error for data that Arrow cannot import. Its message is about types, not about values."""
    if "non-struct" in str(error):
        return CallerTypeError(
            f"{taker} takes a table, not a single column ({type(x).__name__}). Make a table of it first: "
            ".to_frame(), or pyarrow.table({name: column})"
        )
    return FormatError(f"Arrow cannot import the data of this {type(x).__name__}: {str(error)[:_MOST]}")


def _is_of(x: object, library: str, *names: str) -> bool:
    """Return whether this is an object of a class of a library, which is not imported for that."""
    return any(
        base.__name__ in names and base.__module__.partition(".")[0] == library for base in type(x).__mro__
    )


def _to_batch(table: pa.Table) -> Any:
    """Return a table as one batch, or unchanged if Arrow needs several (more than 2 GiB in one column)."""
    batches = table.combine_chunks().to_batches()
    if not batches:
        return pa.RecordBatch.from_arrays(
            [null_rows(kind, 0) for kind in table.schema.types], schema=table.schema
        )
    return batches[0] if len(batches) == 1 else table


def _polars_table(frame: Any, taker: str) -> pa.Table:
    refuse_unknown_to_arrow(frame.schema)
    # The oldest form has no views, whose type old versions of Arrow, and Spark, do not know.
    oldest = sys.modules["polars"].CompatLevel.oldest()
    try:
        return frame.to_arrow(compat_level=oldest)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise _not_imported(frame, taker, error) from None


def _to_polars(frame: Any, table: pa.Table) -> Any:
    """Return a frame of Polars with the columns of a table; those of the same type are kept.

    Returns the table itself if this version of Polars drops the headers of encrypted columns.
    """
    polars = sys.modules["polars"]
    before = frame.head(0).to_arrow(compat_level=polars.CompatLevel.oldest()).schema
    made = {}
    for name, values, old in zip(table.column_names, table.columns, before.types, strict=True):
        kind = values.type
        if kind.equals(old):
            continue
        column = polars.from_arrow(pa.table({name: values})).to_series()
        if isinstance(kind, pa.BaseExtensionType) and column.dtype == polars.Binary:
            return table
        if (
            pa.types.is_dictionary(kind) and kind.ordered
        ):  # only an Enum is ordered; from_arrow() ignores that
            entries = values.chunk(0).dictionary if values.num_chunks else []
            column = column.cast(polars.Enum(polars.Series(entries, dtype=polars.String)))
        made[name] = column
    return frame.with_columns(**made)
