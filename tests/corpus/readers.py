"""How other software reads a Parquet file, and whether two files read the same."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


class DifferenceError(Exception):
    """Something came back otherwise than it was."""


class UnreadableError(Exception):
    """This software does not read the original file, so there is nothing to compare."""


def same_schema(one: pa.Schema, two: pa.Schema) -> None:
    """Raise DifferenceError unless two schemas are equal, with their metadata."""
    if one.names != two.names:
        raise DifferenceError(f"columns {one.names} came back as {two.names}")
    for a, b in zip(one, two, strict=True):
        if not a.equals(b, check_metadata=True):
            raise DifferenceError(f"column {_of(a)} came back as {_of(b)}")
    if (one.metadata or {}) != (two.metadata or {}):
        keys = {*(one.metadata or {}), *(two.metadata or {})}
        changed = [k.decode() for k in keys if (one.metadata or {}).get(k) != (two.metadata or {}).get(k)]
        raise DifferenceError(f"schema metadata {', '.join(sorted(changed))} came back changed")


def _of(field: pa.Field) -> str:
    return f"{field.name!r} ({field.type}{'' if field.nullable else ' not null'}, metadata {field.metadata})"


def same_values(one: pa.ChunkedArray | pa.Array, two: pa.ChunkedArray | pa.Array, name: str) -> None:
    """Raise DifferenceError unless two arrays hold the same values, bit for bit."""
    if not _same(_one(one), _one(two)):
        raise DifferenceError(f"values of column {name!r} came back changed")


def _one(array: pa.ChunkedArray | pa.Array) -> pa.Array:
    if not isinstance(array, pa.ChunkedArray):
        return array
    return pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)


def _same(one: pa.Array, two: pa.Array) -> bool:
    if one.type != two.type or len(one) != len(two):
        return False
    if isinstance(one, pa.ExtensionArray):
        return _same(one.storage, two.storage)
    if pa.types.is_dictionary(one.type):
        return _same(one.dictionary_decode(), two.dictionary_decode())
    if re.search("_view|extension", str(one.type)):  # Arrow takes no rows from them
        return repr(one.to_pylist()) == repr(two.to_pylist())
    if not one.is_valid().equals(two.is_valid()):
        return False
    one, two = one.drop_null(), two.drop_null()
    if pa.types.is_floating(one.type):
        unsigned = {16: pa.uint16(), 32: pa.uint32(), 64: pa.uint64()}[one.type.bit_width]
        return one.view(unsigned).equals(two.view(unsigned))
    if pa.types.is_struct(one.type):
        return all(_same(a, b) for a, b in zip(one.flatten(), two.flatten(), strict=True))
    if pa.types.is_map(one.type):
        return _lengths(one) == _lengths(two) and _same(one.keys, two.keys) and _same(one.items, two.items)
    if (
        pa.types.is_list(one.type)
        or pa.types.is_large_list(one.type)
        or pa.types.is_fixed_size_list(one.type)
    ):
        return _lengths(one) == _lengths(two) and _same(one.flatten(), two.flatten())
    return one.equals(two)


def _lengths(array: pa.Array) -> list[int]:
    if pa.types.is_map(array.type):
        offsets = array.offsets.to_pylist()
        return [b - a for a, b in zip(offsets, offsets[1:], strict=False)]
    return pc.list_value_length(array).to_pylist()


# --- readers --------------------------------------------------------------------------------------


def _pyarrow(path: Path, columns: list[str] | None) -> pa.Table:
    return pq.read_table(path, columns=columns)


def _duckdb(path: Path, columns: list[str] | None) -> pa.Table:
    import duckdb

    what = "*" if columns is None else ", ".join('"' + name.replace('"', '""') + '"' for name in columns)
    with duckdb.connect() as connection:
        found = connection.execute(f"SELECT {what} FROM read_parquet(?)", [str(path)])  # noqa: S608
        types = [str(item[1]) for item in found.description]
        table = found.to_arrow_table()
    return table.replace_schema_metadata({"types": str(types)})


def _polars(path: Path, columns: list[str] | None) -> pa.Table:
    import polars as pl

    frame = pl.read_parquet(path, columns=columns)
    return frame.to_arrow().replace_schema_metadata({"types": str(frame.schema)})


def _pandas(path: Path, columns: list[str] | None) -> pd.DataFrame:
    return pd.read_parquet(path, columns=columns)


def _fastparquet(path: Path, columns: list[str] | None) -> pd.DataFrame:
    import fastparquet

    # It reads nested columns in part only, and one file of one column differently from another.
    flat = [field.name for field in pq.read_schema(path) if not pa.types.is_nested(field.type)]
    wanted = [name for name in flat if columns is None or name in columns]

    def read() -> pd.DataFrame:
        with path.open("rb") as file:  # of a path it leaves files open
            return fastparquet.ParquetFile(file).to_pandas(columns=wanted)

    if not _survives(read):
        raise UnreadableError("fastparquet crashes")
    # It reads an integer as Int32 or int32, depending on statistics, which encryption removes.
    return read().convert_dtypes()


def _survives(action: Callable[[], Any]) -> bool:
    """Try this in a child process, and return False if it is killed by a signal."""
    if child := os.fork():
        return not os.WIFSIGNALED(os.waitpid(child, 0)[1])
    with contextlib.suppress(BaseException):
        action()
    os._exit(0)


def _compared(
    read: Callable[[Path, list[str] | None], Any],
    check: Callable[[Path, list[str] | None, Any], None] | None = None,
) -> Callable[[Path, list[str] | None, Path], None]:
    def compare(before: Path, columns: list[str] | None, after: Path) -> None:
        try:
            one = read(before, columns)
        except BaseException as error:  # Polars' panics are no Exceptions
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise UnreadableError(f"{type(error).__name__}: {error}"[:200]) from None
        if check is not None:
            check(before, columns, one)
        try:
            two = read(after, columns)
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise DifferenceError(
                f"it read the original, but now: {type(error).__name__}: {error}"[:300]
            ) from None
        if isinstance(one, pd.DataFrame):
            _same_frames(one, two)
            return
        if columns is not None:  # the metadata of the file is another, as it should be
            one, two = one.replace_schema_metadata(None), two.replace_schema_metadata(None)
        same_schema(one.schema, two.schema)
        for name, a, b in zip(one.column_names, one.columns, two.columns, strict=True):
            same_values(a, b, name)

    return compare


def _misread_by_fastparquet(path: Path, columns: list[str] | None, read: pd.DataFrame) -> None:
    """Raise UnreadableError if it reads other values of the original than pandas does."""
    right = pd.read_parquet(path, columns=columns).reset_index().convert_dtypes()
    for name in read.columns:
        try:
            same = name not in right or list(map(str, read[name])) == list(map(str, right[name]))
        except ValueError:  # a year that Python does not have
            same = False
        if not same:
            raise UnreadableError(f"fastparquet reads other values of column {name!r} than pandas")


def _same_frames(one: pd.DataFrame, two: pd.DataFrame) -> None:
    try:
        pd.testing.assert_frame_equal(one, two, check_exact=True)
    except AssertionError as error:
        raise DifferenceError(" ".join(str(error).split())[:300]) from None
    except (TypeError, ValueError):  # nested values that pandas cannot compare
        if repr(one) != repr(two):
            raise DifferenceError("the frames differ") from None


READERS = {
    "pyarrow": _compared(_pyarrow),
    "pandas": _compared(_pandas),
    "DuckDB": _compared(_duckdb),
    "Polars": _compared(_polars),
    "fastparquet": _compared(_fastparquet, _misread_by_fastparquet),
}
