"""Cells in Arrow: convert binary arrays to `Cells` and back, and to the binary types that Arrow requires.

In memory an encrypted column is one array: fixed-size binary if its type gives all cells the same length,
otherwise large binary (64-bit offsets). Arrow tables and files get chunks with 32-bit offsets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from kmsdata.ciphers.cells import Bools, Cells
from kmsdata.codec.arrow_arrays import MOST_BYTES, chunk_ranges, null_bitmap, pack
from kmsdata.errors import FormatError

__all__ = [
    "binary",
    "chunks",
    "concatenated",
    "exported",
    "fitted",
    "from_storage",
    "plain_binary",
    "to_storage",
]


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
                f"an encrypted column must contain bytes, not {storage.type}", field="type"
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
