"""Encrypt and decrypt one column: values and a data key to header and cells, and back.

This module knows neither frames nor files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from kmsdata import codec
from kmsdata.ciphers import gcm, siv
from kmsdata.ciphers.aes import keystream
from kmsdata.ciphers.cells import Bools, Cells, Ints
from kmsdata.errors import FormatError, TamperedError, UnsupportedTypeError, WrongKeyError
from kmsdata.frames.arrow_storage import from_storage, to_storage
from kmsdata.frames.dtype import EncryptedArray, EncryptedDtype
from kmsdata.keys.data_key import CellKey, DataKey, random_bytes
from kmsdata.keys.envelope import GCM, SIV, ColumnHeader, Header, base64_bytes, base64_text, canonical

__all__ = [
    "NOTHING_DECRYPTED",
    "ROWS_NAMED",
    "arrow_types",
    "bad_cells",
    "blank_arrow",
    "blank_pandas",
    "check_key_ids",
    "check_one_arrow_type",
    "check_type_of_parts",
    "encrypt_column",
    "header_key_ids",
    "open_arrow",
    "open_pandas",
    "plan",
    "same_dtype",
    "seal",
]

NOTHING_DECRYPTED = "Nothing of the column was decrypted"  # in the errors of cells
ROWS_NAMED = 100  # an error lists at most this many rows; its count may be higher
_MOST_CATEGORIES = 1 << 20
_NO_LIST = b""  # a category list without entries
_T = TypeVar("_T")


def plan(
    values: pd.Series[Any] | pa.ChunkedArray,
    name: str,
    data_key: DataKey,
    *,
    domain: str | None = None,
    dtype: Any = None,
) -> tuple[ColumnHeader, codec.Description]:
    """Build the header of a column, and the codec's description of how to pack it.

    Args:
        values: the column. Only its type is used, except for category lists and object columns.
        name: the column's name.
        data_key: the data key that will encrypt it.
        domain: None for a randomised column; for a deterministic one its domain: columns of one domain can
            be joined.
        dtype: for an Arrow column that was a pandas column: its pandas dtype.

    Returns:
        The authenticated column object, and the description that `seal` takes.

    Raises:
        UnsupportedTypeError: the values could not be restored exactly.
    """
    described = codec.describe(values, column=name, deterministic=domain is not None)
    recorded = dict(described.type)
    if dtype is not None and dtype != np.dtype(object):
        was = codec.describe(pd.Series([], dtype=dtype), column=name).type
        recorded = codec.retyped(recorded, was) or recorded
    if described.categories is not None:
        recorded["categories"] = _seal_categories(described.categories, name, data_key)
    if domain is None:
        header = ColumnHeader(GCM, data_key.commitment, recorded, name=name)
    else:
        header = ColumnHeader(SIV, data_key.commitment, recorded, domain=domain, kind=described.kind)
    return replace(header, mac=data_key.mac(header)), described


def seal(
    header: ColumnHeader,
    described: codec.Description,
    values: pd.Series[Any] | pa.ChunkedArray,
    name: str,
    data_key: DataKey,
) -> pa.Array:
    """Encrypt a column.

    Returns:
        Its cells: fixed-size binary if the type gives all of them the same length, otherwise large binary;
        null for null values.

    Raises:
        UnsupportedTypeError: the values could not be restored exactly.
        ValueError: more than 2^32 randomised cells under one data key and name.
    """
    plain = codec.pack(described, values, column=name)
    key = data_key.cell_key(header)
    if header.deterministic:
        return to_storage(siv.seal_cells(key.key, key.prefix, plain))
    data_key.count(name, plain.count)
    # A new seed for each call, never stored: no retry, thread or process can use the same IVs again.
    ivs = keystream(random_bytes(32), 12 * plain.count).reshape(-1, 12)
    return to_storage(gcm.seal_cells(key.key, key.prefix, plain, ivs))


def encrypt_column(
    values: pd.Series[Any] | pa.ChunkedArray,
    name: str,
    data_key: DataKey,
    domain: str | None = None,
    dtype: Any = None,
) -> EncryptedArray:
    """Encrypt a column, and return its cells with their header; see `plan` and `seal`."""
    header, described = plan(values, name, data_key, domain=domain, dtype=dtype)
    storage = seal(header, described, values, name, data_key)
    return EncryptedArray(storage, EncryptedDtype(Header.of([header], [data_key.record])))


def open_pandas(
    header: Header, data_keys: Mapping[bytes, DataKey], storage: pa.Array, column: str, *, first: int = 0
) -> pd.Series[Any]:
    """Decrypt a column into pandas. Its header must have been authenticated.

    Args:
        header: the column's.
        data_keys: by commitment.
        storage: its cells, as `seal` returns them, or any other binary array.
        column: its name, for errors.
        first: if the cells are a part of a column: its first row, for errors.

    Returns:
        The values with the recorded dtype and a RangeIndex; objects if the header has several dtypes.

    Raises:
        TamperedError: cells fail authentication; nothing of the column is returned.
        WrongKeyError: the key id of a cell is in no object of the header.
        UnsupportedTypeError: this version of pandas lacks the dtype.
    """

    def unpack(item: ColumnHeader, cells: Cells, categories: bytes | None) -> pd.Series[Any]:
        values = codec.unpack(item.codec_type, cells, kind=item.kind, categories=categories, column=column)
        # The dtype is explicit, since pandas 3 would infer str for object arrays of text.
        return pd.Series(values, dtype=values.dtype, copy=False)

    return _open(header, data_keys, storage, column, unpack, _joined, first)


def _joined(
    blanks: list[pd.Series[Any]], parts: list[pd.Series[Any]], order: Ints, *_: object
) -> pd.Series[Any]:
    """Put the parts of a column together without a change of any value: int64 and float64 become objects.

    Args:
        blanks: for each object of the header one null of its type; none if the column has no nulls.
        parts: for each object that has cells, its values.
        order: for each row the position of its value in all parts together, or that after the last: a null.
    """
    alike = all(same_dtype(values, parts[0]) for values in parts[1:]) if parts else False
    if parts and alike and parts[0].dtype != np.dtype(object):
        # A type that has no cells here does not count: a part that is all null often has another dtype.
        blank = next((blank for blank in blanks if blank.dtype == parts[0].dtype), None)
        if blank is not None or not blanks:
            every = pd.concat([*parts, *([] if blank is None else [blank])], ignore_index=True)
            return every.take(order).reset_index(drop=True)
    if not parts and all(blank.dtype == blanks[0].dtype for blank in blanks):
        return blanks[0].take(order).reset_index(drop=True)
    # The null is the one that all types share, otherwise NA. A type without a null has NA after a join.
    nulls = [value if pd.isna(value) else pd.NA for blank in blanks for value in blank.astype(object)]
    objects = np.empty(sum(map(len, parts)) + 1, object)
    objects[-1] = nulls[0] if len(set(map(type, nulls))) == 1 else pd.NA
    if parts:
        objects[:-1] = np.concatenate([values.astype(object).to_numpy() for values in parts])
    return pd.Series(objects[order], dtype=object)


def same_dtype(one: pd.Series[Any], two: pd.Series[Any]) -> bool:
    """Return whether two columns can be concatenated without a change of any value.

    pandas takes category lists for equal whose values are equal, such as 1 and True, and keeps the first.
    """
    if one.dtype != two.dtype:
        return False
    if not isinstance(one.dtype, pd.CategoricalDtype):
        return True
    lists = [list(values.cat.categories) for values in (one, two)]
    return [(type(value), repr(value)) for value in lists[0]] == [
        (type(value), repr(value)) for value in lists[1]
    ]


def open_arrow(
    header: Header, data_keys: Mapping[bytes, DataKey], storage: pa.Array, column: str, *, first: int = 0
) -> pa.Array | pa.ChunkedArray:
    """Decrypt a column into Arrow, like `open_pandas`, but with the Arrow type.

    Raises:
        UnsupportedTypeError: there is no such Arrow type, or the header has objects of several types.
    """
    types = [item.codec_type for item in header.columns]
    if len(types) > 1 and not any("arrow" in type_ or "category" in type_["pandas"] for type_ in types):
        # The Arrow type of Python objects depends on the values: so it is inferred from all of them.
        values = open_pandas(header, data_keys, storage, column, first=first)
        return codec.through_pandas(types[0], values.array, column)

    def unpack(item: ColumnHeader, cells: Cells, categories: bytes | None) -> pa.Array | pa.ChunkedArray:
        return codec.unpack_arrow(
            item.codec_type, cells, kind=item.kind, categories=categories, column=column
        )

    def join(
        blanks: list[pa.Array | pa.ChunkedArray],
        parts: list[pa.Array | pa.ChunkedArray],
        order: Ints,
        items: list[ColumnHeader],
        lists: list[bytes | None],
    ) -> pa.Array | pa.ChunkedArray:
        _check_one_type(items, column)
        every = parts or blanks
        if not parts and len(arrow_types(header)) > 1:
            return pa.nulls(len(order))  # no value says which type is meant
        t = every[0].type
        if pa.types.is_dictionary(t) and len(set(lists)) > 1:
            # The order of several lists is none, and more codes may need a wider type.
            wide = t.index_type if t.index_type.bit_width >= 32 else pa.int32()
            t = pa.dictionary(wide, t.value_type)
        chunks = [
            chunk if chunk.type == t else chunk.cast(t)
            for part in parts
            for chunk in (part.chunks if isinstance(part, pa.ChunkedArray) else [part])
        ]
        return _taken(pa.chunked_array(chunks, type=t), pa.array(order, mask=order == sum(map(len, parts))))

    return _open(header, data_keys, storage, column, unpack, join, first)


def _taken(values: pa.ChunkedArray, rows: pa.Array) -> pa.ChunkedArray:
    """Return the values at these rows, null for null, also for types that Arrow cannot take from."""
    t = values.type
    if pa.types.is_run_end_encoded(t):
        plain = pa.chunked_array([pc.run_end_decode(chunk) for chunk in values.chunks], type=t.value_type)
        return pa.chunked_array(
            [pc.run_end_encode(chunk, t.run_end_type) for chunk in plain.take(rows).chunks], type=t
        )
    views = {"string_view": pa.large_string(), "binary_view": pa.large_binary()}
    if str(t) in views:
        return values.cast(views[str(t)]).take(rows).cast(t)
    return values.take(rows)


def blank_pandas(header: Header, column: str) -> pd.Series[Any]:
    """Return a column without rows of the dtype that `open_pandas` gives, but without categories.

    No key is needed, and the header need not have been authenticated.
    """
    parts: list[pd.Series[Any]] = []
    for item in header.columns:
        codec.check(item.codec_type, item.kind)
        values = codec.unpack(
            item.codec_type, Cells.of([]), kind=item.kind, categories=_NO_LIST, column=column
        )
        parts.append(pd.Series(values, dtype=values.dtype))
    alike = all(same_dtype(values, parts[0]) for values in parts[1:])
    return parts[0] if alike else pd.Series([], dtype=object)


def blank_arrow(header: Header, column: str) -> pa.Array | pa.ChunkedArray:
    """Return a column without rows of the type that `open_arrow` gives; see `blank_pandas`.

    Raises:
        UnsupportedTypeError: there is no such Arrow type, or it depends on the values.
    """
    for item in header.columns:
        codec.check(item.codec_type, item.kind)
        if "arrow" not in item.codec_type:
            label = codec.label(item.codec_type)
            raise UnsupportedTypeError(
                f"column {column!r} ({label}): its Arrow type depends on its values. Decrypt it in pandas",
                column=column,
                dtype=label,
            )
    _check_one_type(header.columns, column)
    item = header.columns[0]
    return codec.unpack_arrow(
        item.codec_type, Cells.of([]), kind=item.kind, categories=_NO_LIST, column=column
    )


def check_type_of_parts(header: Header, column: str) -> None:
    """Check that `open_arrow` gives one Arrow type for every part of a column, with any values.

    Raises:
        UnsupportedTypeError: parts may have several types.
    """
    for item in header.columns:
        codec.check(item.codec_type, item.kind)
    _check_one_type(header.columns, column)
    type_ = header.columns[0].codec_type
    if "arrow" not in type_ and "object" in type_["pandas"]:
        label = codec.label(type_)
        raise UnsupportedTypeError(
            f"column {column!r} ({label}): its Arrow type depends on all of its values, so it cannot be "
            "decrypted batch by batch. Pass the data as a table (RecordBatchReader.read_all)",
            column=column,
            dtype=label,
        )
    categories = "category" in type_.get("pandas", {})
    if len(header.columns) > 1 and (categories or pa.types.is_dictionary(blank_arrow(header, column).type)):
        raise _several(header.columns, "categories of several lists", column)


def check_one_arrow_type(header: Header, storage: pa.Array, column: str) -> None:
    """Check that the values of a column will have one Arrow type, so that a table or file can hold them.

    The types of objects without cells do not matter. Which object a cell belongs to is not known without the
    data key, but cells of one key id belong to one object.

    Raises:
        UnsupportedTypeError: they may have several.
    """
    if len(header.columns) == 1 or len(np.unique(_identified(storage)[2])) < 2:
        return
    for item in header.columns:
        codec.check(item.codec_type, item.kind)
    _check_one_type(header.columns, column)
    # Equal lists under one data key are equal text: under several data keys they may be equal.
    lists = {(item.data_key, item.type.get("categories")) for item in header.columns}
    if _is_ordered(header.columns[0]) and len(lists) > len({data_key for data_key, _ in lists}):
        raise _several(header.columns, "ordered categories of several lists", column)


def arrow_types(header: Header) -> set[str]:
    """Return what the Arrow types of a header's objects are made from: one text for each type."""
    return {_arrow_part_text(item) for item in header.columns}


def _check_one_type(items: Sequence[ColumnHeader], column: str) -> None:
    if len({_arrow_part_text(item) for item in items}) > 1:
        raise _several(items, "cells of several types", column)


def _several(items: Sequence[ColumnHeader], what: str, column: str) -> UnsupportedTypeError:
    types = " | ".join(dict.fromkeys(codec.label(item.type) for item in items))
    return UnsupportedTypeError(
        f"column {column!r} has {what} ({types}), for which there is no common Arrow type. Decrypt it in "
        "pandas, convert it to one dtype, and encrypt it again",
        column=column,
        dtype=types,
    )


def _is_ordered(item: ColumnHeader) -> bool:
    type_ = item.codec_type
    if "category" in type_.get("pandas", {}):
        return bool(type_["pandas"]["category"]["ordered"])
    return codec.is_ordered(type_)


def _arrow_part_text(item: ColumnHeader) -> str:
    """Return what determines the Arrow type, as text: not the dtype in pandas, nor its null value."""
    type_ = item.codec_type
    pandas = {key: value for key, value in type_.get("pandas", {}).items() if key != "null"}
    return canonical(type_.get("arrow", pandas))


def _open(
    header: Header,
    data_keys: Mapping[bytes, DataKey],
    storage: pa.Array,
    column: str,
    unpack: Callable[[ColumnHeader, Cells, bytes | None], _T],
    join: Callable[[list[_T], list[_T], Ints, list[ColumnHeader], list[bytes | None]], _T],
    first: int = 0,
) -> _T:
    """Decrypt every cell with the key of its object, in order; release nothing unless all are authentic."""
    keys, sealed, present, ids = _sorted_out(header, data_keys, storage, column, first)
    opened: list[tuple[ColumnHeader, Ints, Cells]] = []
    pending = np.ones(len(ids), np.bool_)
    plain, parts, blanks, lists = None, [], [], []
    try:
        for item, key in zip(header.columns, keys, strict=True):
            mine = np.arange(len(ids)) if len(keys) == 1 else np.flatnonzero(pending & (ids == _key_id(key)))
            plain, bad = _open_cells(item, key, sealed if len(keys) == 1 else _rows(storage, present[mine]))
            if plain is None and len(keys) == 1:
                pending[:] = False
                pending[bad] = True
            elif plain is None:
                # Key ids have only four bytes, so two objects may have the same: try the next object as well.
                mine = np.delete(mine, bad)
                plain, _ = _open_cells(item, key, _rows(storage, present[mine]))
            if plain is not None:
                pending[mine] = False
                opened.append((item, present[mine], plain))
        if pending.any():
            _tampered(column, first + present[pending])
        if len(keys) == 1:
            return unpack(opened[0][0], opened[0][2], _categories(opened[0][0], data_keys, column))
        nulls = np.setdiff1d(np.arange(len(sealed)), present)
        blank = Cells.of([None] if len(nulls) else [])
        blanks = [unpack(item, blank, _categories(item, data_keys, column)) for item in header.columns]
        opened = [(item, rows, cells) for item, rows, cells in opened if len(rows)]
        lists = [_categories(item, data_keys, column) for item, _, _ in opened]
        parts = [unpack(item, cells, given) for (item, _, cells), given in zip(opened, lists, strict=True)]
        placed = np.concatenate([*(rows for _, rows, _ in opened), nulls])
        order = np.empty(len(placed), np.int64)
        order[placed] = np.minimum(np.arange(len(placed)), len(present))
        return join(blanks, parts, order, [item for item, _, _ in opened], lists)
    except BaseException as error:  # noqa: BLE001 - raised again, without the frames below
        # No frame below this one, and no variable here, may keep plaintext of the column.
        opened, plain, parts, blanks, lists = [], None, [], [], []
        error.__cause__ = error.__context__ = None
        raise error.with_traceback(None) from None


def header_key_ids(header: Header, data_keys: Mapping[bytes, DataKey]) -> list[int]:
    """Return the key ids that cells of a column can have. They are public: each cell begins with one."""
    return [_key_id(data_keys[item.data_key].cell_key(item)) for item in header.columns]


def check_key_ids(ids: Sequence[int], storage: pa.Array, column: str) -> None:
    """Check that every cell can belong to one of the objects of its column's header.

    Args:
        ids: the key ids of these objects, from `header_key_ids`.
        storage: the cells.
        column: its name, for errors.

    Raises:
        TamperedError: a value cannot be a cell.
        WrongKeyError: the key id of a cell is in no object of the header.
    """
    _checked(ids, storage, column, 0)


def bad_cells(header: Header, data_keys: Mapping[bytes, DataKey], storage: pa.Array) -> tuple[Ints, Ints]:
    """Find the cells of a column that are not authentic. Releases no plaintext.

    Args:
        header: the column's; it must have been authenticated.
        data_keys: by commitment.
        storage: its cells.

    Returns:
        The positions of cells that fail authentication, and of cells whose key id is in no object of the
        header.
    """
    keys = [data_keys[item.data_key].cell_key(item) for item in header.columns]
    sealed, present, ids, broken = _identified(storage)
    strangers = ~broken & ~np.isin(ids, [_key_id(key) for key in keys])
    pending = ~broken & ~strangers
    for item, key in zip(header.columns, keys, strict=True):
        mine = np.flatnonzero(pending & (ids == _key_id(key)))
        cells = sealed if len(mine) == len(sealed) else _rows(storage, present[mine])
        _, wrong = _open_cells(item, key, cells)
        pending[np.delete(mine, wrong)] = False
    return present[broken | pending], present[strangers]


def _sorted_out(
    header: Header, data_keys: Mapping[bytes, DataKey], storage: pa.Array, column: str, first: int = 0
) -> tuple[list[CellKey], Cells, Ints, npt.NDArray[np.uint32]]:
    """Return the keys of the objects, the cells, the positions that are not null, and their key ids."""
    keys = [data_keys[item.data_key].cell_key(item) for item in header.columns]
    return keys, *_checked([_key_id(key) for key in keys], storage, column, first)


def _checked(
    known: Sequence[int], storage: pa.Array, column: str, first: int
) -> tuple[Cells, Ints, npt.NDArray[np.uint32]]:
    """Return the cells, the positions that are not null, and their key ids, which must be known."""
    sealed, present, ids, broken = _identified(storage)
    if broken.any():
        _tampered(column, first + present[broken])
    strangers = ~np.isin(ids, known)
    if strangers.any():
        _wrong_key(column, first + present[strangers])
    return sealed, present, ids


def _open_cells(item: ColumnHeader, key: CellKey, cells: Cells) -> tuple[Cells | None, Ints]:
    return (siv if item.deterministic else gcm).open_cells(key.key, cells)


def _rows(storage: pa.Array, rows: Ints) -> Cells:
    return from_storage(storage.take(pa.array(rows)))


def _key_id(key: CellKey) -> int:
    return int.from_bytes(key.prefix[1:], "big")


def _identified(storage: pa.Array) -> tuple[Cells, Ints, npt.NDArray[np.uint32], Bools]:
    """Return the cells, the positions that are not null, and for those: key ids, and which are malformed."""
    cells = from_storage(storage)
    present = np.arange(len(cells)) if cells.valid is None else np.flatnonzero(cells.valid)
    shortest = min(siv.OVERHEAD, gcm.OVERHEAD)
    if cells.width is not None and cells.width >= shortest:
        heads = cells.data.reshape(-1, cells.width)[:, : gcm.PREFIX]
        broken = heads[:, 0] != 1
    elif len(cells.data) < shortest:
        return cells, present, np.zeros(cells.count, np.uint32), np.ones(cells.count, np.bool_)
    else:
        bounds = cells.bounds()
        last = len(cells.data) - gcm.PREFIX
        # A view of all substrings of 5 bytes: it selects the prefixes of cells of any length without a loop.
        window = np.ndarray((last + 1,), f"V{gcm.PREFIX}", cells.data.data, 0, (1,))
        heads = window[np.minimum(bounds[:-1], last)].view(np.uint8).reshape(-1, gcm.PREFIX)
        broken = (np.diff(bounds) < shortest) | (heads[:, 0] != 1)
    ids = np.ascontiguousarray(heads[:, 1:]).view(">u4").ravel().astype(np.uint32)
    return cells, present, ids, broken


def _seal_categories(plain: bytes, name: str, data_key: DataKey) -> str:
    """Encrypt a category list as one AES-SIV message, padded so that its length reveals little."""
    padded = len(plain).to_bytes(8, "little") + plain
    padded += bytes(-len(padded) % 256)
    if len(padded) > _MOST_CATEGORIES:
        raise UnsupportedTypeError(
            f"column {name!r}: its category list is larger than 1 MiB, too large for a header. Convert the "
            "column first, e.g. .astype(df[column].cat.categories.dtype)",
            column=name,
            dtype="category",
        )
    key = data_key.categories_key()
    sealed = siv.seal_cells(key.key, key.prefix, Cells.of([padded]))
    return base64_text(sealed.data[siv.PREFIX :].tobytes())


def _categories(item: ColumnHeader, data_keys: Mapping[bytes, DataKey], column: str) -> bytes | None:
    text = item.type.get("categories")
    if text is None:
        return None
    key = data_keys[item.data_key].categories_key()
    sealed = base64_bytes(text, any_spelling=True) or b""
    plain, _ = siv.open_cells(key.key, Cells.of([key.prefix + sealed]))
    padded = b"" if plain is None else plain.data.tobytes()
    size = int.from_bytes(padded[:8], "little")
    if len(padded) < 8 + size or len(padded) % 256 or not padded:
        raise FormatError(
            f"column {column!r}: its category list fails authentication: the header was changed",
            column=column,
            field="categories",
        )
    return padded[8 : 8 + size]


def _some(rows: Ints) -> str:
    if len(rows) == 1:
        return f"1 cell (row {rows[0]})"
    first = ", ".join(map(str, rows[:5].tolist()))
    return f"{len(rows)} cells (rows {first}{', ...' if len(rows) > 5 else ''})"


def _tampered(column: str, rows: Ints) -> NoReturn:
    verb = "fails" if len(rows) == 1 else "fail"
    raise TamperedError(
        f"column {column!r}: {_some(rows)} {verb} authentication: changed, truncated, or moved here from "
        f"elsewhere. {NOTHING_DECRYPTED}. Restore it from a copy",
        column=column,
        rows=tuple(rows[:ROWS_NAMED].tolist()),
        count=len(rows),
    )


def _wrong_key(column: str, rows: Ints) -> NoReturn:
    raise WrongKeyError(
        f"column {column!r}: {_some(rows)} with a key id that is not in the header: moved here from another "
        f"column or file, or changed in the first bytes. {NOTHING_DECRYPTED}. Restore it from a copy",
        column=column,
        rows=tuple(rows[:ROWS_NAMED].tolist()),
    )
