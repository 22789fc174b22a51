"""Cells in Arrow: convert binary arrays to `Cells` and back, and to the binary types that Arrow requires.

In memory an encrypted column is one array: fixed-size binary if its type gives all cells the same length,
otherwise large binary (64-bit offsets). Arrow tables and files get chunks with 32-bit offsets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kmsdata.ciphers import gcm
from kmsdata.ciphers.cells import Bools, Cells
from kmsdata.codec.arrow_arrays import MOST_BYTES, chunk_ranges, null_bitmap, pack
from kmsdata.errors import FormatError, printable
from kmsdata.frames.cell import MARK, SHORTEST
from kmsdata.keys.envelope import base64_bytes

__all__ = [
    "binary",
    "cells_in",
    "chunks",
    "concatenated",
    "exported",
    "fitted",
    "from_storage",
    "is_bytes_or_text",
    "is_count_of_cells",
    "is_plain_binary",
    "key_ids",
    "looks_like_cells",
    "plain_binary",
    "seen_cells",
    "to_storage",
    "validated",
]

_ArrayT = TypeVar("_ArrayT")


def validated(values: _ArrayT, column: str | None = None, *, full: bool = True) -> _ArrayT:
    """Return an Arrow array after a check of all its buffers.

    Arrow itself trusts offsets, sizes and indices of IPC data, pickles and the C interface: with a single
    wrong one it reads outside of the buffers, which ends the process.

    Args:
        values: an Array or ChunkedArray of any type.
        column: its name, for the error.
        full: check every value, in about half a nanosecond each; otherwise only the sizes of the buffers.

    Raises:
        FormatError: an offset, a size, an index or a validity bitmap is wrong, or text is not UTF-8.
    """
    array: Any = values
    try:
        array.validate(full=full)
    except pa.ArrowException as error:
        where = "" if column is None else f"column {printable(column)!r}: "
        what = "text that is not UTF-8" if "UTF8" in str(error) else "an offset, size or index out of range"
        # Not chained: Arrow's message may contain values.
        raise FormatError(
            f"{where}malformed Arrow data: {what}. It was damaged, or written by faulty software. Read it "
            "from the original again",
            column=column,
        ) from None
    return values


def from_storage(storage: pa.Array) -> Cells:
    """Read the bytes of a binary array (of any binary type), without a copy if there are no nulls."""
    if not pa.types.is_fixed_size_binary(storage.type):
        return pack(storage.cast(pa.large_binary()), column="")
    valid: Bools | None = None
    if storage.null_count:
        valid = storage.is_valid().to_numpy(zero_copy_only=False)
        storage = storage.drop_null()  # several times faster than numpy's boolean selection for odd widths
    width, buffer = storage.type.byte_width, storage.buffers()[1]
    raw = np.frombuffer(buffer, np.uint8) if buffer is not None else np.empty(0, np.uint8)
    start = storage.offset * width
    return Cells(raw[start : start + len(storage) * width], width=width, valid=valid)


def to_storage(cells: Cells) -> pa.Array:
    """Return the cells as fixed-size binary if they have one width, otherwise as large binary.

    Bytes are copied only for fixed-size binary with nulls, which take space there.
    """
    validity, rows = null_bitmap(cells.valid), len(cells)
    if cells.width is not None:
        data = cells.data
        if cells.valid is not None:
            data = np.zeros((rows, cells.width), np.uint8)
            data[cells.valid] = cells.data.reshape(-1, cells.width)
        return pa.Array.from_buffers(pa.binary(cells.width), rows, [validity, pa.py_buffer(data)])
    bounds = cells.bounds()
    if cells.valid is not None:
        # Arrow stores an offset for null rows as well: they repeat the end of the row before.
        bounds = bounds[np.concatenate(([0], np.cumsum(cells.valid)))]
    buffers = [validity, pa.py_buffer(np.ascontiguousarray(bounds)), pa.py_buffer(cells.data)]
    return pa.Array.from_buffers(pa.large_binary(), rows, buffers)


def fitted(storage: pa.Array, wanted: pa.DataType) -> pa.Array:
    """Cast cells to the storage of their type; return them unchanged if they do not fit: decryption fails."""
    if storage.type == wanted:
        return storage
    try:
        return storage.cast(wanted)
    except pa.ArrowInvalid:
        return storage


def plain_binary(storage: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Convert any array of cells to one array of large or fixed-size binary."""
    if isinstance(storage, pa.ChunkedArray):
        parts = [plain_binary(chunk) for chunk in storage.chunks]
        if parts:
            return concatenated(parts)
        storage = pa.array(
            [], storage.type.storage_type if isinstance(storage.type, pa.BaseExtensionType) else storage.type
        )
    if isinstance(storage.type, pa.BaseExtensionType):
        storage = storage.storage
    if pa.types.is_fixed_size_binary(storage.type) or pa.types.is_large_binary(storage.type):
        return storage
    if pa.types.is_dictionary(storage.type):
        storage = storage.dictionary_decode()
    try:
        return storage.cast(pa.large_binary())
    except pa.ArrowNotImplementedError:
        if "view" not in str(storage.type):
            raise FormatError(
                f"an encrypted column must contain bytes, not {printable(str(storage.type))}", field="type"
            ) from None
        return pa.array(storage.to_pylist(), pa.large_binary())  # pyarrow 17 cannot cast views


def concatenated(parts: Sequence[pa.Array]) -> pa.Array:
    """Concatenate binary arrays, as large binary if their types differ."""
    if len(parts) == 1:
        return parts[0]
    if len({part.type for part in parts}) > 1:
        parts = [part.cast(pa.large_binary()) for part in parts]
    return pa.concat_arrays(parts)


def binary(cells: list[bytes | None]) -> pa.Array:
    """Convert Python bytes to large binary; None is null."""
    return pa.array(cells, pa.large_binary())


def chunks(storage: pa.Array) -> list[pa.Array]:
    """Split an array into slices whose offsets fit into 32 bits."""
    if pa.types.is_fixed_size_binary(storage.type) or not len(storage):
        return [storage]
    bounds = np.frombuffer(storage.buffers()[1], np.int64)[storage.offset : storage.offset + len(storage) + 1]
    return [storage.slice(start, stop - start) for start, stop in chunk_ranges(bounds, MOST_BYTES)]


def exported(storage: pa.Array) -> pa.Array:
    """Return binary with 32-bit offsets: Arrow's joins crash on an extension type over large binary."""
    return storage if pa.types.is_fixed_size_binary(storage.type) else storage.cast(pa.binary())


# --- cells without a header -----------------------------------------------------------------------


def looks_like_cells(chunks: Iterable[pa.Array], column: str | None = None) -> int:
    """Return the number of values of a column if they look like cells, otherwise 0.

    They do if every value that is not null has the form of a cell, and there are at most half as many key ids
    as values. The second rule does not apply to a single value: the result is 1, and callers only warn. The
    first value is looked at alone, so other columns cost almost nothing.

    Args:
        chunks: the column, which has no header; read only as far as necessary.
        column: its name, for errors.

    Raises:
        FormatError: the first value has the form of a cell, but the column is malformed.
    """
    count, ids = seen_cells(chunks, column) or (0, set())
    return count if is_count_of_cells(count, ids) else 0


def seen_cells(chunks: Iterable[pa.Array], column: str | None = None) -> tuple[int, set[int]] | None:
    """Return the number of values that are not null, and their key ids; None if one has not a cell's form.

    See `looks_like_cells` for the arguments and errors.
    """
    count, ids = 0, set[int]()
    for chunk in chunks:
        if not is_bytes_or_text(chunk.type):
            return None
        if not count:
            first = _first_value(chunk, column)
            if first is None:
                continue
            if cells_in(first) is None:
                return None
        validated(chunk, column)
        if pa.types.is_dictionary(chunk.type):  # expanded, a few bytes could be gigabytes
            distinct = chunk.dictionary.take(chunk.indices.unique().drop_null())
        else:
            distinct = chunk
        if (cells := cells_in(distinct)) is None:
            return None
        count += len(chunk) - chunk.null_count
        ids |= key_ids(cells)
    return count, ids


def is_count_of_cells(count: int, ids: set[int]) -> bool:
    """Return whether values of the form of cells are cells: at most half as many key ids as values."""
    return count == 1 or 2 * len(ids) <= count


def is_plain_binary(kind: pa.DataType) -> bool:
    """Return whether an Arrow type is one in which files store cells."""
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def is_bytes_or_text(kind: pa.DataType) -> bool:
    """Return whether an Arrow type is one of bytes or text, or a dictionary of them."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return _is_text(kind) or (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def cells_in(values: pa.Array) -> pa.Array | None:
    """Return bytes, or ``enc:`` text, as the cells they may be; None if one of them cannot be a cell.

    Args:
        values: validated, of any type of bytes or text; nulls stay null.

    Returns:
        Large or fixed-size binary, of which each value has at least 21 bytes, begins with 0x01 (Tink's
        version), and has no zero in bytes 1 to 4 (the key id), as WKB geometry has.
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if _is_text(values.type):
        cells: list[bytes | None] = []
        for text in values.to_pylist():
            if text is None:
                cells.append(None)
                continue
            cell = base64_bytes(text[len(MARK) :], any_spelling=True) if text.startswith(MARK) else None
            if cell is None:
                return None
            cells.append(cell)
        values = binary(cells)
    values = plain_binary(values)
    heads = _heads(values)
    return values if heads is not None and (heads[:, 0] == 1).all() and heads[:, 1:].all() else None


def key_ids(cells: pa.Array) -> set[int]:
    """Return the key ids of what `cells_in` returned: bytes 1 to 4 of each cell."""
    heads = _heads(cells)
    if heads is None:
        return set()
    return set(np.unique(np.ascontiguousarray(heads[:, 1:]).view(">u4")).tolist())


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _first_value(values: pa.Array, column: str | None) -> pa.Array | None:
    """Return the first value that is not null, as an array; None if all are null."""
    validated(values, column, full=False)
    if values.null_count == len(values):
        return None
    first = values.slice(values.is_valid().index(True).as_py(), 1)
    try:
        return validated(first, column)
    except FormatError:
        if _is_text(values.type):  # not UTF-8: no cell, and what other columns contain is not checked here
            return pa.array([b""])
        raise


def _heads(cells: pa.Array) -> npt.NDArray[np.uint8] | None:
    """Return the first 5 bytes of each cell that is not null, uint8[m, 5]; None if one is too short."""
    packed = from_storage(cells)
    if packed.width is not None:
        if packed.count and packed.width < SHORTEST:
            return None
        return packed.data.reshape(-1, max(packed.width, 1))[:, : gcm.PREFIX]
    bounds = packed.bounds()
    if not packed.count:
        return np.empty((0, gcm.PREFIX), np.uint8)
    if np.diff(bounds).min() < SHORTEST:
        return None
    # A view of all substrings of 5 bytes: it selects the prefixes of cells of any length without a loop.
    window = np.ndarray((len(packed.data) - gcm.PREFIX + 1,), f"V{gcm.PREFIX}", packed.data.data, 0, (1,))
    return window[bounds[:-1]].view(np.uint8).reshape(-1, gcm.PREFIX)
