"""Convert Arrow arrays to cells and back, directly from and to their buffers.

======================================================  ====================================================
Arrow type                                              bytes of a cell (little-endian)
======================================================  ====================================================
bool                                                    1: 0 or 1
ints, floats, dates, times, timestamps, durations       1, 2, 4 or 8, as Arrow stores them
decimal32, 64, 128, 256                                 4, 8, 16, 32: two's complement, without the scale
month_day_nano_interval                                 16: int32 months ‖ int32 days ‖ int64 nanoseconds
string, large_string, string_view                       UTF-8
binary, large_binary, binary_view, fixed_size_binary    the bytes
null                                                    none: every row is null
extension                                               as its storage type
dictionary, run_end_encoded                             as the value, never its code
list…, struct, map, union; runs of these                one RecordBatch of one row and one column "c", as an
                                                        encapsulated Arrow IPC message (no schema)
nested types with a dictionary inside                   a whole Arrow IPC stream of that one row
======================================================  ====================================================

A null row has no bytes. A union has no null bitmap, so each of its rows has bytes. The list of a dictionary
or category is stored outside the cells: per entry its length (4 bytes, 0xFFFFFFFF if null) and its bytes.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kmsdata.ciphers.cells import Bools, Bytes, Cells, Ints
from kmsdata.codec.arrow_types import TEXT, VARIABLE, inner, is_rows
from kmsdata.codec.null_arrays import null_rows
from kmsdata.errors import FormatError, UnsupportedTypeError

__all__ = [
    "MOST_BYTES",
    "bad_cells",
    "booleans",
    "chunk_ranges",
    "codes_of",
    "dense",
    "dictionary",
    "fixed",
    "from_codes",
    "null_bitmap",
    "pack",
    "read_list",
    "sized",
    "take",
    "unpack",
    "write_list",
]

MOST_BYTES = 2**31 - 1  # of an array with 32-bit offsets
_LANES = {1: "u1", 2: "<u2", 4: "<u4", 8: "<u8", 16: "<c16"}
_NULL = 2**32 - 1


def bad_cells(column: str, what: str) -> FormatError:
    """Make the error of cells that are authentic but do not match their type."""
    return FormatError(
        f"column {column!r} does not match the type in its header: it contains {what}",
        column=column,
        field="cell",
    )


# --- numpy ----------------------------------------------------------------------------------------


def fixed(values: np.ndarray[Any, Any], null: Bools | None = None) -> Cells:
    """Make cells of a little-endian fixed-width array, without its null rows. No copy if none is null.

    Args:
        values: any fixed-width dtype [n].
        null: bool[n], or None if no row is null.
    """
    valid = None if null is None or not null.any() else ~null
    if valid is not None:
        values = values[valid]
    return Cells(np.ascontiguousarray(values).view(np.uint8), width=values.dtype.itemsize, valid=valid)


def sized(cells: Cells, width: int, column: str) -> Bytes:
    """Return the bytes of cells that must all have this width.

    Raises:
        FormatError: a cell has another width.
    """
    lengths = (cells.width is not None and cells.width == width) or (
        cells.offsets is not None and bool((np.diff(cells.offsets) == width).all())
    )
    if not lengths or len(cells.data) != cells.count * width:
        raise bad_cells(column, f"cells that are not {width} bytes long")
    return cells.data


def dense(cells: Cells, dtype: np.dtype[Any] | str, fill: Any, column: str) -> np.ndarray[Any, Any]:
    """Return one value per row, in a writable, aligned array; ``fill`` where a row is null."""
    dtype = np.dtype(dtype)
    data = sized(cells, dtype.itemsize, column)
    if cells.valid is None:
        if not data.flags.writeable or data.ctypes.data % max(dtype.alignment, 8):
            data = data.copy()
        return data.view(dtype)
    whole = np.full(len(cells), fill, dtype)
    whole[cells.valid] = data.view(dtype)
    return whole


def booleans(data: Bytes, column: str) -> Bools:
    """View bytes, each 0 or 1, as booleans, without copying.

    Raises:
        FormatError: a byte is neither 0 nor 1.
    """
    if data.size and data.max() > 1:
        raise bad_cells(column, "a boolean that is neither 0 nor 1")
    return data.view(np.bool_)


def _lane(width: int) -> str:
    return _LANES.get(width, f"V{width}")


# --- pack -----------------------------------------------------------------------------------------


def pack(values: pa.Array | pa.ChunkedArray, *, column: str, trusted: bool = False) -> Cells:
    """Make plain cells of an Arrow array that is not a dictionary (see ``dictionary``).

    Args:
        values: the array; its buffers are read in place, so the cells may share its memory.
        column: for messages.
        trusted: whether text is known to be valid UTF-8 and need not be checked.

    Raises:
        UnsupportedTypeError: text that is not UTF-8.
    """
    chunks, t = _storage(values)
    if is_rows(t):
        return _pack_rows(chunks, t)
    if pa.types.is_run_end_encoded(t):
        decoded = [_decode_runs(chunk) for chunk in chunks] or [pa.nulls(0, t.value_type)]
        return pack(pa.chunked_array(decoded), column=column)
    n = sum(map(len, chunks))
    if pa.types.is_null(t):
        return Cells(np.empty(0, np.uint8), width=0, valid=np.zeros(n, np.bool_))
    valid = _valid(chunks)
    if t in VARIABLE:
        return _pack_variable(chunks, t, valid, column, trusted)
    width = 1 if pa.types.is_boolean(t) else t.bit_width // 8
    if pa.types.is_boolean(t):  # Arrow stores bits, a cell is a byte
        chunks = [chunk.cast(pa.uint8()) for chunk in chunks]
    parts = [_slots(chunk, width) for chunk in chunks if len(chunk)]
    # np.concatenate fails for an empty list, which an array without rows would give.
    data = parts[0] if len(parts) == 1 else np.concatenate([*parts, np.empty(0, np.uint8)])
    if valid is not None and width:
        data = data.view(_lane(width))[valid].view(np.uint8)
    if not width and valid is None:
        valid = np.ones(n, np.bool_)
    return Cells(data, width=width, valid=valid)


def _storage(values: pa.Array | pa.ChunkedArray) -> tuple[list[Any], Any]:
    """Return the chunks of an array below extension types, and their type."""
    chunks = values.chunks if isinstance(values, pa.ChunkedArray) else [values]
    t = values.type
    while isinstance(t, pa.BaseExtensionType):
        chunks, t = [chunk.storage for chunk in chunks], t.storage_type
    return chunks, t


def _large(t: pa.DataType) -> pa.DataType:
    """Return the text or bytes type with 64-bit offsets."""
    return pa.large_string() if t in TEXT else pa.large_binary()


def _valid(chunks: list[Any]) -> Bools | None:
    if not any(chunk.null_count for chunk in chunks):
        return None
    return np.concatenate([chunk.is_valid().to_numpy(zero_copy_only=False) for chunk in chunks])


def _slots(chunk: Any, width: int) -> Bytes:
    raw = chunk.buffers()[1]  # of the unsliced array: its offset counts from the start of the buffer
    whole = np.empty(0, np.uint8) if raw is None else np.frombuffer(raw, np.uint8)
    return whole[chunk.offset * width : (chunk.offset + len(chunk)) * width]


def _pack_variable(
    chunks: list[Any], t: pa.DataType, valid: Bools | None, column: str, trusted: bool
) -> Cells:
    parts = [_widen(chunk, _large(t)) for chunk in chunks] or [pa.nulls(0, _large(t))]
    wide = parts[0] if len(parts) == 1 else pa.concat_arrays(parts)
    if t in TEXT and not trusted:
        _check_utf8(wide, column, t)
    if valid is not None:
        wide = wide.drop_null()
    _, offsets_buffer, data_buffer = wide.buffers()
    if offsets_buffer is None or not len(wide):  # Arrow allows an array without rows to have no offsets
        return Cells(np.empty(0, np.uint8), np.zeros(1, np.int64), valid=valid)
    offsets = np.frombuffer(offsets_buffer, np.int64)[wide.offset : wide.offset + len(wide) + 1]
    data = np.empty(0, np.uint8) if data_buffer is None else np.frombuffer(data_buffer, np.uint8)
    data = data[offsets[0] : offsets[-1]]
    return Cells(data, offsets - offsets[0] if offsets[0] else offsets, valid=valid)


def _widen(chunk: Any, large: pa.DataType) -> Any:
    try:
        return chunk.cast(large)
    except pa.ArrowNotImplementedError:  # pyarrow 17 has no casts from or to string_view and binary_view
        return pa.array(chunk.to_pylist(), large)


def _check_utf8(values: Any, column: str, t: pa.DataType) -> None:
    try:  # Arrow does not check text that is read from a file or viewed as text; this does
        values.validate(full=True)
    except pa.ArrowInvalid:
        pass  # raise below: the error may contain the text
    else:
        return
    raise UnsupportedTypeError(
        f"column {column!r} ({t}) has text that is not valid UTF-8. Cast it to binary before encrypting.",
        column=column,
        dtype=str(t),
    )


def _decode_runs(chunk: Any) -> Any:
    ends = chunk.run_ends.to_numpy()
    at = np.searchsorted(ends, np.arange(chunk.offset, chunk.offset + len(chunk)), side="right")
    values = chunk.values
    if _is_view(values.type):  # take() has no kernel for view types, as of pyarrow 26
        values = _widen(values, _large(values.type))
    return values.take(pa.array(at))


def _pack_rows(chunks: list[Any], t: pa.DataType) -> Cells:
    schema = pa.schema([("c", t)])
    # Unions and runs have no null bitmap: all of their rows are written.
    unions, views = pa.types.is_union(t) or pa.types.is_run_end_encoded(t), _inside(t, _is_view)
    write = _stream if _inside(t, pa.types.is_dictionary) else _message
    rows: list[bytes | None] = []
    for chunk in chunks:
        present = itertools.repeat(True) if unions else chunk.is_valid().to_pylist()
        for i, ok in zip(range(len(chunk)), present, strict=False):
            row = chunk.slice(i, 1)
            rows.append(write(schema, _compact(row) if views else row) if ok else None)
    return Cells.of(rows)


def _message(schema: pa.Schema, row: Any) -> bytes:
    made: bytes = pa.record_batch([row], schema=schema).serialize().to_pybytes()
    return made


def _stream(schema: pa.Schema, row: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch([row], schema=schema))
    made: bytes = sink.getvalue().to_pybytes()
    return made


def _inside(t: pa.DataType, test: Any) -> bool:
    return bool(test(t)) or any(_inside(child, test) for child in inner(t))


def _is_view(t: pa.DataType) -> bool:
    return t in (pa.string_view(), pa.binary_view())


def _compact(row: Any) -> Any:
    """Return the row with only its own text, if Python objects represent it exactly; otherwise unchanged."""
    # Serialising a slice of a view type writes the text of the whole column (pyarrow 26).
    try:
        small = pa.array(row.to_pylist(), row.type)
        # Below a null, pyarrow (26) makes codes of an empty dictionary where the code must not be null.
        small.validate(full=True)
    except (pa.ArrowException, ValueError, TypeError, KeyError):
        return row
    return small if small.equals(row) else row


# --- dictionaries ---------------------------------------------------------------------------------


def dictionary(values: pa.Array | pa.ChunkedArray, *, column: str) -> tuple[Cells, Ints]:
    """Return the list of a dictionary array as plain cells, one for all chunks, and its codes.

    Codes are int64[n], -1 for null.
    """
    chunks, t = _storage(values)
    entries: list[bytes | None] = []
    place: dict[bytes | None, int] = {}
    codes: list[Ints] = []
    for chunk in chunks:  # each chunk of an Arrow array may have another dictionary
        rows = pack(chunk.dictionary, column=column).rows()
        if rows != entries:
            fresh = rows if not entries else [row for row in dict.fromkeys(rows) if row not in place]
            for i, row in enumerate(fresh, len(entries)):
                place.setdefault(row, i)
            entries = entries + fresh
        place_of = np.array([place[row] for row in rows] or [0], np.int64)
        indices = chunk.indices.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        at = place_of[indices]
        if chunk.indices.null_count:
            at[chunk.indices.is_null().to_numpy(zero_copy_only=False)] = -1
        codes.append(at)
    if len(entries) - 1 > np.iinfo(str(t.index_type)).max:
        raise UnsupportedTypeError(
            f"column {column!r} ({t}) cannot be encrypted: the dictionaries of its chunks together "
            "exceed its index type. Cast it to a dictionary with a wider index type.",
            column=column,
            dtype=str(t),
        )
    listed = Cells.of(entries) if entries else pack(pa.nulls(0, t.value_type), column=column)
    return listed, np.concatenate([*codes, np.empty(0, np.int64)])


def take(entries: Cells, codes: Ints, width: int | None) -> Cells:
    """Select cells from a list by their codes; -1, and codes of null entries, become null.

    Args:
        entries: the list.
        codes: int64[n].
        width: bytes of each cell, if the type fixes them.
    """
    null = codes < 0
    if entries.valid is not None:
        place = np.cumsum(entries.valid) - 1
        place[~entries.valid] = -1
        codes = np.where(null, -1, place[codes]) if len(place) else codes
        null = codes < 0
    valid = ~null if null.any() else None
    present = codes if valid is None else codes[valid]
    if width is not None:
        data = entries.data.view(_lane(width))[present].view(np.uint8) if width else entries.data
        return Cells(
            data, width=width, valid=np.ones(len(codes), np.bool_) if valid is None and not width else valid
        )
    return pack(_binary(entries).take(pa.array(present)), column="").with_valid(valid)


def _binary(cells: Cells) -> Any:
    """Return the cells that are not null as an Arrow array of bytes, without copying."""
    return pa.Array.from_buffers(
        pa.large_binary(), cells.count, [None, pa.py_buffer(cells.bounds()), pa.py_buffer(cells.data)]
    )


def codes_of(entries: Cells, cells: Cells, *, column: str) -> Ints:
    """Return the position of each cell in a list of cells: int64[n]; -1 for null.

    Raises:
        FormatError: a cell that is not in the list.
    """
    found = pc.index_in(_binary(cells), value_set=_binary(entries))
    if found.null_count:
        raise bad_cells(column, "a value that is not in its category list")
    codes = found.to_numpy().astype(np.int64)
    if entries.valid is not None:
        codes = np.flatnonzero(entries.valid)[codes]
    if cells.valid is None:
        return codes
    whole = np.full(len(cells), -1, np.int64)
    whole[cells.valid] = codes
    return whole


def from_codes(t: Any, entries: Cells, codes: Ints, *, column: str) -> Any:
    """Make a dictionary array (or an extension type over one) of its list and codes."""
    if isinstance(t, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(t, from_codes(t.storage_type, entries, codes, column=column))
    indices = pa.array(codes, mask=codes < 0).cast(t.index_type)
    values = unpack(t.value_type, entries, column=column)
    return pa.DictionaryArray.from_arrays(indices, values, ordered=t.ordered)


def write_list(entries: Cells) -> bytes:
    """Serialise a category list: per entry its length (4 bytes; 0xFFFFFFFF if null) and its bytes."""
    return b"".join(
        [
            _NULL.to_bytes(4, "little") if row is None else len(row).to_bytes(4, "little") + row
            for row in entries.rows()
        ]
    )


def read_list(raw: bytes, *, column: str) -> Cells:
    """Parse a category list that ``write_list`` wrote.

    Raises:
        FormatError: the list is malformed.
    """
    rows: list[bytes | None] = []
    at = 0
    try:
        while at < len(raw):
            (size,) = struct.unpack_from("<I", raw, at)
            at += 4
            rows.append(None if size == _NULL else bytes(raw[at : at + size]))
            at += 0 if size == _NULL else size
    except struct.error:
        at = -1
    if at != len(raw):
        raise FormatError(
            f"column {column!r} has a malformed category list", column=column, field="categories"
        )
    return Cells.of(rows)


# --- unpack ---------------------------------------------------------------------------------------


def unpack(t: pa.DataType, cells: Cells, *, column: str) -> Any:
    """Restore the Arrow array of plain cells, of a type that is not a dictionary.

    Returns:
        An Array; a ChunkedArray if text or bytes with 32-bit offsets need several chunks.

    Raises:
        FormatError: the cells do not match the type.
    """
    if isinstance(t, pa.BaseExtensionType):
        made = unpack(t.storage_type, cells, column=column)
        if isinstance(made, pa.ChunkedArray):
            return pa.chunked_array(
                [pa.ExtensionArray.from_storage(t, chunk) for chunk in made.chunks], type=t
            )
        return pa.ExtensionArray.from_storage(t, made)
    if is_rows(t):
        return _unpack_rows(t, cells, column)
    if pa.types.is_run_end_encoded(t):
        return _encode_runs(t, cells, column)
    n = len(cells)
    if pa.types.is_null(t):
        sized(cells, 0, column)
        return pa.nulls(n)
    if t in VARIABLE:
        return _unpack_variable(t, cells, column)
    width = 1 if pa.types.is_boolean(t) else t.bit_width // 8
    if width:
        data = dense(cells, _lane(width), np.zeros((), _lane(width)), column)
    else:
        data = sized(cells, 0, column)
    if pa.types.is_boolean(t):
        data = np.packbits(booleans(data, column), bitorder="little")
    return pa.Array.from_buffers(
        t, n, [null_bitmap(cells.valid), pa.py_buffer(np.ascontiguousarray(data).view(np.uint8))]
    )


def null_bitmap(valid: Bools | None) -> pa.Buffer | None:
    """Return Arrow's bitmap of the rows that are not null; None if no row is null."""
    return None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))


def _unpack_variable(t: pa.DataType, cells: Cells, column: str) -> Any:
    bounds = cells.bounds()
    if cells.valid is not None:
        lengths = np.zeros(len(cells), np.int64)
        lengths[cells.valid] = np.diff(bounds)
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    elif not bounds.flags.writeable or cells.offsets is bounds:
        bounds = bounds.copy()
    data = cells.data if cells.data.flags.writeable else cells.data.copy()
    large = _large(t)
    wide = pa.Array.from_buffers(
        large, len(cells), [null_bitmap(cells.valid), pa.py_buffer(bounds), pa.py_buffer(data)]
    )
    if t in TEXT:
        try:
            wide.validate(full=True)
            fine = True
        except pa.ArrowInvalid:  # raise below: the error may contain the text
            fine = False
        if not fine:
            raise bad_cells(column, "text that is not UTF-8")
    if t == large:
        return wide
    if _is_view(t):
        try:
            return wide.cast(t)
        except pa.ArrowNotImplementedError:  # pyarrow 17, as in _widen
            return pa.array(wide.to_pylist(), t)
    if bounds[-1] <= MOST_BYTES:
        return wide.cast(t)
    # A slice keeps offsets into the whole array, which do not fit 32 bits; concat_arrays() rebases them to 0.
    slices = [wide.slice(start, stop - start) for start, stop in chunk_ranges(bounds, MOST_BYTES)]
    return pa.chunked_array([pa.concat_arrays([part]).cast(t) for part in slices], type=t)


def chunk_ranges(bounds: Ints, most: int) -> Iterator[tuple[int, int]]:
    """Divide rows into ranges of at most ``most`` bytes; a longer row is a range by itself.

    Args:
        bounds: int64[n + 1], where each row begins and the last one ends.
        most: largest number of bytes of a range.
    """
    start, rows = 0, len(bounds) - 1
    while start < rows:
        stop = max(int(np.searchsorted(bounds, bounds[start] + most, side="right")) - 1, start + 1)
        yield start, stop
        start = stop


def _encode_runs(t: Any, cells: Cells, column: str) -> Any:
    """Encode runs of values that are equal bit for bit."""
    # Cells are compared, not values: as numbers, 0.0 equals -0.0 and NaN does not equal NaN.
    n = len(cells)
    valid = np.ones(n, np.bool_) if cells.valid is None else cells.valid
    starts = np.ones(n, np.bool_)
    if cells.count > 1:
        raw = _binary(cells)
        at = np.flatnonzero(valid)
        starts[at[1:]] = pc.not_equal(raw[1:], raw[:-1]).to_numpy(zero_copy_only=False)
    starts[1:] |= valid[1:] != valid[:-1]
    starts[1:] &= valid[1:] | valid[:-1]  # nulls in a row are one run
    first = np.flatnonzero(starts)
    ends = pa.array(np.append(first[1:], n)[: len(first)], pa.int64()).cast(t.run_end_type)
    runs = take(cells, first, cells.width)
    return pa.RunEndEncodedArray.from_arrays(ends, unpack(t.value_type, runs, column=column), type=t)


def _unpack_rows(t: pa.DataType, cells: Cells, column: str) -> Any:
    schema = pa.schema([("c", t)])
    made: Any = None
    try:
        if _inside(t, pa.types.is_dictionary):
            tables = (pa.ipc.open_stream(pa.py_buffer(raw)).read_all() for raw in cells.present())
            # pyarrow (26) casts some structs with nulls wrongly, even to the type that they have.
            rows = [table if table.schema.equals(schema) else table.cast(schema) for table in tables]
            parts = [chunk for row in rows for chunk in row.column(0).chunks]
        else:  # a schema followed by all messages is one IPC stream: much faster than row by row
            stream = b"".join([schema.serialize().to_pybytes(), cells.data.tobytes()])
            parts = pa.ipc.open_stream(pa.py_buffer(stream)).read_all().column(0).chunks
        if len(parts) == cells.count and all(len(part) == 1 for part in parts):
            made = _gather(parts, cells.valid, t)
            made.validate(full=True)
    except (pa.ArrowException, OSError, ValueError):
        made = None
    if made is None:
        raise bad_cells(column, "a malformed nested value")
    return made


def _gather(parts: list[Any], valid: Bools | None, t: pa.DataType) -> Any:
    """Join one-row arrays to one array, and insert the nulls."""
    if valid is not None:
        null, present = null_rows(t, 1), iter(parts)
        parts = [next(present) if ok else null for ok in valid.tolist()]
    if not parts:
        return null_rows(t, 0)
    try:
        return pa.concat_arrays(parts)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # nested dictionaries that differ
        return pa.chunked_array(parts, type=t)
