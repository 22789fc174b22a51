"""One column: values and a data key in, header and cells out, and back. Knows no frames and no files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from kmsdata import codec
from kmsdata.ciphers import gcm, siv
from kmsdata.ciphers.aes import keystream
from kmsdata.ciphers.cells import Bools, Cells, Ints
from kmsdata.errors import FormatError, TamperedError, UnsupportedTypeError, WrongKeyError
from kmsdata.frames.arrow_storage import from_storage, to_storage
from kmsdata.frames.dtype import EncryptedArray, EncryptedDtype
from kmsdata.keys.data_key import CellKey, DataKey, random_bytes
from kmsdata.keys.envelope import GCM, SIV, ColumnHeader, Header, base64_bytes, base64_text

__all__ = [
    "ROWS_NAMED",
    "bad_cells",
    "check_key_ids",
    "encrypt_column",
    "open_arrow",
    "open_pandas",
    "plan",
    "seal",
]

ROWS_NAMED = 100  # the most rows that an error lists; it may count more
_MOST_CATEGORIES = 1 << 20
_T = TypeVar("_T")


def plan(
    values: pd.Series[Any] | pa.ChunkedArray,
    name: str,
    data_key: DataKey,
    *,
    domain: str | None = None,
    dtype: Any = None,
) -> tuple[ColumnHeader, codec.Description]:
    """The header of a column, and how the codec packs it.

    Args:
        values: the column. Only its type is looked at, but for category lists and object columns.
        name: the column's name.
        data_key: what it will be encrypted under.
        domain: None for a randomised column; for a deterministic one what it may be joined across.
        dtype: of an Arrow column that pandas made: the pandas dtype that it had.

    Returns:
        The authenticated column object, and the description that `seal` takes.

    Raises:
        UnsupportedTypeError: values that could not come back exactly.
    """
    described = codec.describe(values, column=name, deterministic=domain is not None)
    recorded = dict(described.type)
    if dtype is not None and not pd.api.types.is_object_dtype(dtype):
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
        Its cells: fixed-size binary where all are equally long by type, else large binary; null where the
        value is.

    Raises:
        UnsupportedTypeError: values that could not come back exactly.
        ValueError: more than 2^32 randomised cells under one data key and name.
    """
    plain = codec.pack(described, values, column=name)
    key = data_key.cell_key(header)
    if header.deterministic:
        data_key.count(None, plain.count)
        return to_storage(siv.seal_cells(key.key, key.prefix, plain))
    data_key.count(name, plain.count)
    # The seed lives in this call alone: no retry, thread or process ever sees it again.
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
    header: Header, data_keys: Mapping[bytes, DataKey], storage: pa.Array, column: str
) -> pd.Series[Any]:
    """Decrypt a column, whose header was authenticated, into pandas.

    Args:
        header: the column's.
        data_keys: by commitment.
        storage: its cells, as `seal` made them or any other binary array.
        column: its name, for errors.

    Returns:
        The values with the recorded dtype and a RangeIndex.

    Raises:
        TamperedError: cells that fail authentication; nothing of the column is returned then.
        WrongKeyError: cells whose key id is in no object of the header.
        UnsupportedTypeError: a dtype that this version of pandas lacks.
    """

    def unpack(item: ColumnHeader, cells: Cells, categories: bytes | None) -> pd.Series[Any]:
        values = codec.unpack(item.codec_type, cells, kind=item.kind, categories=categories, column=column)
        # The dtype is said, since pandas 3 would make str of objects that are text.
        return pd.Series(values, dtype=values.dtype, copy=False)

    def join(parts: list[pd.Series[Any]], order: Ints) -> pd.Series[Any]:
        return pd.concat(parts, ignore_index=True).take(order).reset_index(drop=True)

    return _open(header, data_keys, storage, column, unpack, join)


def open_arrow(
    header: Header, data_keys: Mapping[bytes, DataKey], storage: pa.Array, column: str, *, first: int = 0
) -> pa.Array | pa.ChunkedArray:
    """Decrypt a column, whose header was authenticated, into Arrow: as `open_pandas`, of the Arrow type.

    Of a part of a column, ``first`` says at which row it begins, for errors.
    """

    def unpack(item: ColumnHeader, cells: Cells, categories: bytes | None) -> pa.Array | pa.ChunkedArray:
        return codec.unpack_arrow(
            item.codec_type, cells, kind=item.kind, categories=categories, column=column
        )

    def join(parts: list[pa.Array | pa.ChunkedArray], order: Ints) -> pa.Array | pa.ChunkedArray:
        types = {part.type for part in parts}
        if len(types) > 1:
            raise UnsupportedTypeError(
                f"column {column!r}: its cells are of {len(types)} Arrow types; decrypt the tables before "
                "they are put together",
                column=column,
                dtype=" | ".join(sorted(map(str, types))),
            )
        chunks = [
            chunk
            for part in parts
            for chunk in (part.chunks if isinstance(part, pa.ChunkedArray) else [part])
        ]
        return pa.chunked_array(chunks, type=types.pop()).take(pa.array(order))

    return _open(header, data_keys, storage, column, unpack, join, first)


def _open(
    header: Header,
    data_keys: Mapping[bytes, DataKey],
    storage: pa.Array,
    column: str,
    unpack: Callable[[ColumnHeader, Cells, bytes | None], _T],
    join: Callable[[list[_T], Ints], _T],
    first: int = 0,
) -> _T:
    """Open every cell under its object, release nothing unless all are authentic, and keep their order."""
    keys, sealed, present, ids = _sorted_out(header, data_keys, storage, column, first)
    if len(keys) == 1:
        plain, bad = _open_cells(header.columns[0], keys[0], sealed)
        if plain is None:
            _tampered(column, first + present[bad])
        return unpack(header.columns[0], plain, _categories(header.columns[0], data_keys, column))

    opened: list[tuple[ColumnHeader, Ints, Cells]] = []
    pending = np.ones(len(ids), np.bool_)
    for item, key in zip(header.columns, keys, strict=True):
        mine = np.flatnonzero(pending & (ids == _key_id(key)))
        plain, bad = _open_cells(item, key, _rows(storage, present[mine]))
        if plain is None:
            # Key ids have four bytes: another object's may be the same by chance, so it gets its turn.
            mine = np.delete(mine, bad)
            plain, _ = _open_cells(item, key, _rows(storage, present[mine]))
        pending[mine] = False
        if plain is not None and len(mine):
            opened.append((item, present[mine], plain))
    if pending.any():
        opened.clear()  # so that no frame of the error holds what was authentic either
        plain = None
        _tampered(column, first + present[pending])
    nulls = np.setdiff1d(np.arange(len(sealed)), present)
    if len(nulls) or not opened:
        opened.append((header.columns[0], nulls, Cells.of([None] * len(nulls))))
    parts = [unpack(item, cells, _categories(item, data_keys, column)) for item, _, cells in opened]
    return join(parts, np.argsort(np.concatenate([rows for _, rows, _ in opened]), kind="stable"))


def check_key_ids(header: Header, data_keys: Mapping[bytes, DataKey], storage: pa.Array, column: str) -> None:
    """Check that every cell can be of one of the objects of its column, whose header was authenticated.

    Raises:
        TamperedError: what cannot be a cell.
        WrongKeyError: cells whose key id is in no object of the header.
    """
    _sorted_out(header, data_keys, storage, column)


def bad_cells(header: Header, data_keys: Mapping[bytes, DataKey], storage: pa.Array) -> tuple[Ints, Ints]:
    """Which cells of a column, whose header was authenticated, are not authentic. Releases no plaintext.

    Args:
        header: the column's.
        data_keys: by commitment.
        storage: its cells.

    Returns:
        Positions of those that fail authentication, and of those whose key id is in no object of the header.
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
    """The keys of the objects; the cells, which of them are not null, and the key id of each of those."""
    keys = [data_keys[item.data_key].cell_key(item) for item in header.columns]
    sealed, present, ids, broken = _identified(storage)
    if broken.any():
        _tampered(column, first + present[broken])
    strangers = ~np.isin(ids, [_key_id(key) for key in keys])
    if strangers.any():
        _wrong_key(column, first + present[strangers])
    return keys, sealed, present, ids


def _open_cells(item: ColumnHeader, key: CellKey, cells: Cells) -> tuple[Cells | None, Ints]:
    return (siv if item.deterministic else gcm).open_cells(key.key, cells)


def _rows(storage: pa.Array, rows: Ints) -> Cells:
    return from_storage(storage.take(pa.array(rows)))


def _key_id(key: CellKey) -> int:
    return int.from_bytes(key.prefix[1:], "big")


def _identified(storage: pa.Array) -> tuple[Cells, Ints, npt.NDArray[np.uint32], Bools]:
    """The cells; which of them are not null; of those the key ids, and which cannot be cells at all."""
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
        window = np.ndarray((last + 1,), f"V{gcm.PREFIX}", cells.data.data, 0, (1,))
        heads = window[np.minimum(bounds[:-1], last)].view(np.uint8).reshape(-1, gcm.PREFIX)
        broken = (np.diff(bounds) < shortest) | (heads[:, 0] != 1)
    ids = np.ascontiguousarray(heads[:, 1:]).view(">u4").ravel().astype(np.uint32)
    return cells, present, ids, broken


def _seal_categories(plain: bytes, name: str, data_key: DataKey) -> str:
    """A category list as one AES-SIV message, padded so that its length says little."""
    padded = len(plain).to_bytes(8, "little") + plain
    padded += bytes(-len(padded) % 256)
    if len(padded) > _MOST_CATEGORIES:
        raise UnsupportedTypeError(
            f"column {name!r}: its category list takes more than 1 MiB, too much for a header; convert it "
            "first, e.g. .astype(df[column].cat.categories.dtype)",
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
            f"column {column!r}: its category list does not open", column=column, field="categories"
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
        f"column {column!r}: {_some(rows)} {verb} authentication: changed, cut short, or moved here from "
        "elsewhere. Nothing of the column was decrypted: restore it from a copy",
        column=column,
        rows=tuple(rows[:ROWS_NAMED].tolist()),
        count=len(rows),
    )


def _wrong_key(column: str, rows: Ints) -> NoReturn:
    raise WrongKeyError(
        f"column {column!r}: {_some(rows)} with the id of a key that its header does not name: from another "
        "column or file, or changed in the first bytes. Nothing of the column was decrypted",
        column=column,
        rows=tuple(rows[:ROWS_NAMED].tolist()),
    )
