"""Describe, pack and unpack columns: the four main functions of the codec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from kmsdata.ciphers.cells import Cells, Ints
from kmsdata.codec import arrow_arrays as arrow
from kmsdata.codec import deterministic as kinds
from kmsdata.codec import pandas_arrays as frames
from kmsdata.codec import python_objects as objects
from kmsdata.codec.arrow_types import arrow_type, core, print_arrow
from kmsdata.codec.types import kind_of, label, width
from kmsdata.errors import FormatError, UnsupportedTypeError

__all__ = ["Description", "describe", "is_ordered", "pack", "through_pandas", "unpack", "unpack_arrow"]


@dataclass(frozen=True)
class Description:
    """The type of a column, without its data.

    Attributes:
        type: the header's ``type`` (grammar: ``types.py``); contains nothing secret.
        kind: the kind of a deterministic column (``deterministic.py``), None for a randomised one.
        categories: the category list of a categorical or an Arrow dictionary, not encrypted: the caller
            encrypts it. None for other columns.
    """

    type: dict[str, Any]
    kind: str | None
    categories: bytes | None

    def __repr__(self) -> str:
        return f"Description({label(self.type)}, kind={self.kind!r})"  # never the categories


def describe(
    values: pd.Series[Any] | pa.ChunkedArray | pa.Array, *, column: str, deterministic: bool = False
) -> Description:
    """Describe a column. Equal dtypes have equal descriptions, except category lists and object columns.

    Args:
        values: the column.
        column: its name, for messages.
        deterministic: whether equal values must have equal cells.

    Raises:
        UnsupportedTypeError: a dtype that cannot be restored exactly, or cannot be deterministic.

    Example:
        >>> describe(pd.Series([1, 2], dtype="Int64"), column="n", deterministic=True).type
        {'arrow': 'int64', 'pandas': {'masked': 'Int64'}}
    """
    if isinstance(values, pd.Series):
        type_ = frames.describe(values, column=column, deterministic=deterministic)
    else:
        type_ = {"arrow": print_arrow(values.type)}
    kind = kind_of(type_) if deterministic else None
    if deterministic and kind is None:
        floats = _is_float(type_)
        hint = (
            "floats are not supported. Convert it to Int64 if every value is an integer, or to decimals or "
            "text, or encrypt it randomised."
            if floats
            else "this type is not supported. Encrypt it randomised."
        )
        raise UnsupportedTypeError(
            f"column {column!r} ({label(type_)}) cannot be deterministic: {hint}",
            column=column,
            dtype=label(type_),
        )
    # A column with a list has one cell per row too: the list restores only the order and unused entries.
    categories = None
    if _has_list(type_):
        categories = arrow.write_list(_list_and_codes(values, column, deterministic)[0])
    return Description(type_, kind, categories)


def _is_float(type_: dict[str, Any]) -> bool:
    inside = type_.get("pandas", {}).get("category", {}).get("values", type_)
    return "float" in str(inside.get("arrow"))


def _has_list(type_: dict[str, Any]) -> bool:
    if "category" in type_.get("pandas", {}):
        return True
    return "arrow" in type_ and pa.types.is_dictionary(core(arrow_type(type_["arrow"])))


def is_ordered(type_: dict[str, Any]) -> bool:
    """Return whether an Arrow type without a pandas dtype is an ordered dictionary."""
    t: Any = core(arrow_type(type_["arrow"])) if "arrow" in type_ else None
    return t is not None and pa.types.is_dictionary(t) and bool(t.ordered)


def _list_and_codes(values: Any, column: str, deterministic: bool) -> tuple[Cells, Ints]:
    if isinstance(values, pd.Series) and isinstance(values.dtype, pd.CategoricalDtype):
        return frames.categorical(values, column=column, deterministic=deterministic)
    array: Any = values.array if isinstance(values, pd.Series) else values
    return arrow.dictionary(
        array.__arrow_array__() if isinstance(values, pd.Series) else array, column=column
    )


def _list_type(type_: dict[str, Any]) -> dict[str, Any]:
    """Return the type of a category list."""
    if "category" in type_.get("pandas", {}):
        inside: dict[str, Any] = type_["pandas"]["category"]["values"]
        return inside
    t: Any = core(arrow_type(type_["arrow"]))
    return {"arrow": print_arrow(t.value_type)}


def pack(
    description: Description, values: pd.Series[Any] | pa.ChunkedArray | pa.Array, *, column: str
) -> Cells:
    """Make the cells of a column. Rows that are null have no bytes.

    Args:
        description: what ``describe`` returned for these values, or for others of the same type.
        values: the column; it is not changed, and the cells may share its memory.
        column: its name, for messages.

    Raises:
        UnsupportedTypeError: a value that cannot be restored exactly, or has another type than described.

    Example:
        >>> series = pd.Series(["a", None, "b"], dtype="string")
        >>> pack(describe(series, column="s"), series, column="s").rows()
        [b'a', None, b'b']
    """
    type_, kind = description.type, description.kind
    _check_same(description, values, column)
    if not _has_list(type_):
        plain = _pack_plain(type_, values, column, deterministic=kind is not None)
        return plain if kind is None else kinds.canonical(type_, kind, plain, column=column)
    entries, codes = _list_and_codes(values, column, kind is not None)
    if arrow.write_list(entries) != description.categories:
        known = set(arrow.read_list(description.categories or b"", column=column).rows())
        rows = entries.rows()
        if any(rows[code] not in known for code in np.unique(codes[codes >= 0]).tolist()):
            raise _not_as_described(column, type_)
    list_type = _list_type(type_)
    if kind is not None:
        entries = kinds.canonical(list_type, kind, entries, column=column)
    return arrow.take(entries, codes, width(list_type, kind))


def _pack_plain(type_: dict[str, Any], values: Any, column: str, deterministic: bool) -> Cells:
    if "pandas" in type_:
        return frames.pack(values, type_["pandas"], column=column, deterministic=deterministic)
    return arrow.pack(values, column=column)


def _check_same(description: Description, values: Any, column: str) -> None:
    type_ = description.type
    entry = type_.get("pandas")
    if (entry is not None) != isinstance(values, pd.Series):
        raise _not_as_described(column, type_)
    if entry is None or "object" not in entry or values.dtype != np.dtype(object):
        if isinstance(values, pd.Series):
            found = frames.describe(values, column=column, deterministic=description.kind is not None)
        else:
            found = {"arrow": print_arrow(values.type)}
        if found != type_:
            raise _not_as_described(column, type_)
        return
    # Objects are compared by their values: a batch without any value or null fits any description.
    kind, null = objects.scan(values.to_numpy())
    if entry["object"] != "tagged" and (kind or entry["object"], null or entry["null"]) != (
        entry["object"],
        entry["null"],
    ):
        raise _not_as_described(column, type_)
    if "exponent" in entry and objects.exponent_of(values.to_numpy(), column=column) != entry["exponent"]:
        raise _not_as_described(column, type_)


def _not_as_described(column: str, type_: dict[str, Any]) -> UnsupportedTypeError:
    return UnsupportedTypeError(
        f"column {column!r} has values that do not fit {label(type_)}, the type determined from other values",
        column=column,
        dtype=label(type_),
    )


def unpack(
    type: dict[str, Any],  # noqa: A002 - the header's own word
    cells: Cells,
    *,
    kind: str | None = None,
    categories: bytes | None = None,
    column: str,
) -> Any:
    """Restore the pandas array of a column's cells, with exactly the recorded dtype.

    Args:
        type: the header's ``type``, checked.
        cells: what ``pack`` made. Do not use them afterwards: the array may reuse their memory.
        kind: the header's ``kind``.
        categories: the category list, decrypted.
        column: its name, for messages.

    Returns:
        A writable extension array or numpy array; for a column that came from Arrow, the one that pandas
        makes of it. Make a Series with ``pd.Series(made, dtype=made.dtype)``: without the dtype, pandas 3
        infers ``str`` for text objects.

    Raises:
        FormatError: cells that do not match the type.
        UnsupportedTypeError: the installed pandas has neither this dtype nor a similar one.

    Example:
        >>> series = pd.Series([1, None], dtype="Int64")
        >>> described = describe(series, column="n")
        >>> unpack(described.type, pack(described, series, column="n"), column="n")
        <IntegerArray>
        [1, <NA>]
        Length: 2, dtype: Int64
    """
    entry = type.get("pandas")
    if entry is None:
        return frames.from_arrow(unpack_arrow(type, cells, kind=kind, categories=categories, column=column))
    if "arrow" in entry:
        made = unpack_arrow(type, cells, kind=kind, categories=categories, column=column)
        return pd.arrays.ArrowExtensionArray(made)
    if "category" not in entry:
        plain = cells if kind is None else kinds.restore(type, kind, cells, column=column)
        return frames.unpack(type, plain, column=column)
    entries, codes = _codes(type, cells, kind, categories, column)
    if len(set(entries.rows())) < len(entries):
        raise FormatError(
            f"column {column!r} has duplicates in its category list", column=column, field="categories"
        )
    values = frames.unpack(_list_type(type), entries, column=column)
    return frames.from_codes(values, codes, ordered=entry["category"]["ordered"])


def _codes(
    type_: dict[str, Any], cells: Cells, kind: str | None, categories: bytes | None, column: str
) -> tuple[Cells, Ints]:
    """Return the category list as plain cells, and the position of each row in it."""
    if categories is None:
        raise FormatError(
            f"column {column!r} has no category list in its header", column=column, field="categories"
        )
    list_type = _list_type(type_)
    entries = arrow.read_list(categories, column=column)
    if (size := width(list_type)) is not None:
        entries = Cells(arrow.sized(entries, size, column), width=size, valid=_all_valid(entries, size))
    known = entries if kind is None else kinds.canonical(list_type, kind, entries, column=column)
    return entries, arrow.codes_of(known, cells, column=column)


def _all_valid(entries: Cells, size: int) -> Any:
    return np.ones(len(entries), np.bool_) if not size and entries.valid is None else entries.valid


def unpack_arrow(
    type: dict[str, Any],  # noqa: A002
    cells: Cells,
    *,
    kind: str | None = None,
    categories: bytes | None = None,
    column: str,
) -> Any:
    """Restore the Arrow array of a column's cells, with exactly the recorded Arrow type.

    A type without an ``arrow`` entry (categories, periods, intervals, mixed objects) becomes what
    ``pa.array`` makes of the pandas array.

    Args:
        type: the header's ``type``, checked.
        cells: what ``pack`` made. Do not use them afterwards: the array may reuse their memory.
        kind: the header's ``kind``.
        categories: the category list, decrypted.
        column: its name, for messages.

    Returns:
        An Array, or a ChunkedArray if 32-bit offsets or different dictionaries need several chunks.

    Raises:
        FormatError: cells that do not match the type.
        UnsupportedTypeError: there is no such Arrow type, or the installed pyarrow does not have it.

    Example:
        >>> unpack_arrow({"arrow": "string"}, Cells.of([b"a", None]), column="s").to_pylist()
        ['a', None]
    """
    if "arrow" not in type:
        return through_pandas(
            type, unpack(type, cells, kind=kind, categories=categories, column=column), column
        )
    t = arrow_type(type["arrow"])
    if not _has_list(type):
        plain = cells if kind is None else kinds.restore(type, kind, cells, column=column)
        return arrow.unpack(t, plain, column=column)
    entries, codes = _codes(type, cells, kind, categories, column)
    return arrow.from_codes(t, entries, codes, column=column)


def through_pandas(type_: dict[str, Any], values: Any, column: str) -> Any:
    """Make the Arrow array of a pandas array whose ``type`` has no ``arrow`` entry.

    Raises:
        UnsupportedTypeError: there is no such Arrow type.
    """
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, ValueError, TypeError, OverflowError, NotImplementedError):
        pass  # raise below, so that no error with values in its text is chained
    raise UnsupportedTypeError(
        f"column {column!r} ({label(type_)}) has no equivalent Arrow type. Decrypt it to a pandas DataFrame.",
        column=column,
        dtype=label(type_),
    )
