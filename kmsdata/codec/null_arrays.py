"""Make Arrow arrays of null rows, or of no rows, of any type.

pyarrow (26) makes none of a type with an extension type inside. In what it does make, parts that are declared
as not null are null, which Parquet cannot store.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from kmsdata.codec.arrow_types import TEXT, VARIABLE

__all__ = ["null_rows"]


def null_rows(t: pa.DataType, n: int) -> Any:
    """Return n null rows; their parts that are declared as not null are zero or empty.

    Example:
        >>> null_rows(pa.struct([pa.field("a", pa.int64(), nullable=False)]), 2).field(0).null_count
        0
    """
    return _filled(t, n, null=True)


def _filled(t: Any, n: int, *, null: bool) -> Any:
    """Return n rows that are null, or zero or empty."""
    if isinstance(t, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(t, _filled(t.storage_type, n, null=null))
    bitmap = pa.py_buffer(bytes(-(-n // 8))) if null else None
    if pa.types.is_struct(t):
        return _nested(t, n, [bitmap], [_part(t.field(k), n) for k in range(t.num_fields)])
    if pa.types.is_fixed_size_list(t):
        return _nested(t, n, [bitmap], [_part(t.value_field, n * t.list_size)])
    if pa.types.is_map(t):
        pairs = pa.struct([t.key_field, t.item_field])
        return _nested(t, n, [bitmap, _zeros(4, n + 1)], [_filled(pairs, 0, null=False)])
    if pa.types.is_list(t) or pa.types.is_large_list(t):
        width = 8 if pa.types.is_large_list(t) else 4
        return _nested(t, n, [bitmap, _zeros(width, n + 1)], [_part(t.value_field, 0)])
    if null or pa.types.is_null(t):
        return pa.nulls(n, t)
    if pa.types.is_dictionary(t):
        codes = pa.Array.from_buffers(t.index_type, n, [None, _zeros(t.index_type.bit_width // 8, n)])
        return pa.DictionaryArray.from_arrays(codes, _filled(t.value_type, 1, null=False), ordered=t.ordered)
    if t in VARIABLE:
        return pa.array([""] * n if t in TEXT else [b""] * n, t)
    if pa.types.is_primitive(t) or pa.types.is_decimal(t) or pa.types.is_fixed_size_binary(t):
        return pa.Array.from_buffers(t, n, [None, _zeros(max(t.bit_width // 8, 1), n)])
    return pa.nulls(n, t)  # unions and runs, which have no bitmap, and are no types of Parquet


def _part(field: pa.Field, n: int) -> Any:
    return _filled(field.type, n, null=field.nullable)


def _nested(t: pa.DataType, n: int, buffers: list[Any], children: list[Any]) -> Any:
    nulls = n if buffers[0] is not None else 0
    return pa.Array.from_buffers(t, n, buffers, null_count=nulls, children=children)


def _zeros(width: int, n: int) -> pa.Buffer:
    return pa.py_buffer(np.zeros(width * n, np.uint8))
