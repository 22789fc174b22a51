"""One encrypted value in pandas, and which cells may be put or compared together.

pandas joins, aligns and concatenates columns of unequal dtypes by making objects of both. That is right for
cells of one key and silently finds nothing for cells of two, so this file also tells which function of pandas
is calling.
"""

from __future__ import annotations

import hashlib
import sys
from types import FrameType
from typing import Any, Protocol, cast

import pandas as pd
from pandas.api.extensions import ExtensionDtype

from kmsdata.keys.envelope import Header, base64_bytes, base64_text

__all__ = [
    "MARK",
    "Cell",
    "CellDtype",
    "bytes_of",
    "check_comparable",
    "encryptions",
    "fits",
    "is_null",
    "refuse_foreign_meeting",
    "within",
]

MARK = "enc:"


class CellDtype(Protocol):
    """What a cell knows of its `EncryptedDtype`. A protocol, since that class and `Cell` name each other."""

    @property
    def name(self) -> str:
        """What pandas shows."""

    @property
    def called(self) -> str:
        """What errors call the column."""

    @property
    def header(self) -> Header:
        """The parsed header; FormatError where it is malformed."""

    @property
    def parsed(self) -> Header | None:
        """The parsed header; None where it is malformed."""


class Cell:
    """One encrypted value: its bytes, and the dtype that says how to decrypt them.

    Equal and hashed by its bytes. ``str()`` is the whole ciphertext as text, ``enc:`` and base64; ``repr`` is
    short; ``bytes()`` gives the bytes.
    """

    __slots__ = ("_data", "dtype")

    def __init__(self, data: bytes, dtype: CellDtype) -> None:
        self._data = data
        self.dtype = dtype

    def __bytes__(self) -> bytes:
        return self._data

    def __len__(self) -> int:
        return len(self._data)

    def __eq__(self, other: object) -> bool:
        return self._data == other._data if isinstance(other, Cell) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._data)

    def __lt__(self, other: Cell) -> bool:
        # For pandas alone, which sorts group keys. The order means nothing; the array refuses it.
        return self._data < other._data if isinstance(other, Cell) else NotImplemented

    def __str__(self) -> str:
        return MARK + base64_text(self._data)

    def __repr__(self) -> str:
        # A fingerprint, so that equal cells look equal, in letters that every terminal can show.
        return "enc#" + hashlib.blake2b(self._data, digest_size=4).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return Cell, (self._data, self.dtype)

    def toDict(self) -> dict[str, str]:  # noqa: N802 - pandas' JSON writer asks for this name
        """What stands in JSON for a cell in a column of objects; an encrypted column is plain text there."""
        return {"cell": str(self)}


def fits(inner: CellDtype, outer: CellDtype) -> bool:
    """Whether cells of a dtype can be decrypted as cells of another one."""
    if inner is outer or inner == outer:
        return True
    if inner.parsed is None or outer.parsed is None:
        return False
    return set(inner.parsed.columns) <= set(outer.parsed.columns)


def bytes_of(value: Any, dtype: CellDtype, *, text: bool = False) -> bytes | None:
    """Return the bytes of a value that may stand in a column of cells; None for null.

    Args:
        value: anything.
        dtype: the column's.
        text: accept cells as text, as they come from CSV and JSON.

    Raises:
        TypeError: the value is no cell, or a cell that was encrypted otherwise.
    """
    if isinstance(value, Cell):
        if not fits(value.dtype, dtype):
            raise TypeError(
                f"this cell was encrypted otherwise than {dtype.name}, and could not be decrypted there"
            )
        return bytes(value)
    if is_null(value):
        return None
    if text and isinstance(value, str) and value.startswith(MARK):
        data = base64_bytes(value[len(MARK) :], any_spelling=True)
        if data is None:
            raise TypeError(f"text that begins with {MARK!r} but is no cell: it was changed or cut short")
        return data
    raise TypeError(
        f"a column of {dtype.name} takes cells and nulls only, not {type(value).__name__}: encrypt the "
        "values first, under the same data key (series.kms.encrypt(key=df))"
    )


def is_null(value: Any) -> bool:
    """Whether a value is null: None, or a scalar that pandas takes for null."""
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def check_comparable(left: CellDtype, right: CellDtype) -> None:
    """Cells of two columns compare only under one key: else equal values would just never be found equal."""
    a = {item.identity for item in left.header.columns}
    b = {item.identity for item in right.header.columns}
    if a == b and len(a) == 1:
        return
    if len({item[0] for item in a | b}) > 1:
        why = "they are under different data keys; encrypt both with key= one DataKey or the other frame"
    else:
        why = "they differ in domain, kind or algorithm; encrypt both with deterministic= and one domain="
    raise TypeError(
        f"{left.called} and {right.called} cannot be compared or joined: equal values would not be found; "
        f"{why}"
    )


def within(*functions: str) -> FrameType | None:
    """The frame of one of these functions of pandas, if this is called from within it."""
    frame = sys._getframe(2)
    for _ in range(16):
        if frame.f_code.co_name in functions and frame.f_globals.get("__name__", "").startswith("pandas."):
            return frame
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return None


def refuse_foreign_meeting() -> None:
    """Refuse to join cells with plain values, or with cells of another key.

    pandas asks nobody before it joins keys or aligns indexes of unequal dtypes: it makes objects of both,
    which is right for cells of one key, but silently finds nothing for two. So this looks at who is asking.
    """
    frame = within("_maybe_coerce_merge_keys", "_factorize_keys", "_find_common_type_compat")
    if frame is None:
        return
    names = ("self", "target") if frame.f_code.co_name == "_find_common_type_compat" else ("lk", "rk")
    (left, plain), (right, other) = (encryptions(frame.f_locals.get(name)) for name in names)
    if (left and other) or (right and plain):
        dtype = next(iter(left or right))
        raise TypeError(
            f"{dtype.called} cannot be joined with plain values: none would be found. Encrypt both sides "
            "under one data key (key= the other frame), or decrypt (df.kms.decrypt())"
        )
    for one in left:
        for two in right:
            check_comparable(one, two)


def encryptions(values: Any) -> tuple[set[CellDtype], bool]:
    """How the cells among these values were encrypted; and whether there are plain values among them."""
    dtype = getattr(values, "dtype", None)
    if isinstance(dtype, ExtensionDtype) and dtype.type is Cell:
        return {cast(CellDtype, dtype)}, False
    items = values if pd.api.types.is_list_like(values) else [values]
    cells = {item.dtype for item in items if isinstance(item, Cell)}
    return cells, not all(isinstance(item, Cell) or is_null(item) for item in items)
