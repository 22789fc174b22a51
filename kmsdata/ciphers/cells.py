"""Cells: byte strings end to end, the form in which codec, ciphers and columns exchange values."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Bools", "Bytes", "Cells", "Ints"]

Bytes: TypeAlias = npt.NDArray[np.uint8]
Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Cells:
    """Rows of bytes. Only rows that are not null have bytes, so ciphers never see a null.

    Attributes:
        data: uint8[B], C-contiguous; the bytes of the rows that are not null, end to end.
        offsets: int64[m + 1], where each of the m rows that are not null begins and the last one ends
            (``offsets[0] == 0``, ``offsets[m] == B``); None if all have the same width.
        width: bytes of each row that is not null, where the type fixes it; otherwise None.
            Exactly one of ``offsets`` and ``width`` is given; with width 0 ``valid`` must be given.
        valid: bool[n], False where a row is null; None if no row is (then n = m).

    Example:
        >>> import numpy as np
        >>> cells = Cells.of([b"ab", None, b"c"])
        >>> len(cells), cells.count, cells.data.tobytes(), cells.offsets.tolist()
        (3, 2, b'abc', [0, 2, 3])
    """

    data: Bytes
    offsets: Ints | None = None
    width: int | None = None
    valid: Bools | None = None

    def __post_init__(self) -> None:
        if (self.offsets is None) == (self.width is None):
            raise ValueError("cells take either offsets or a width")
        if self.width == 0 and self.valid is None:
            raise ValueError("cells of width 0 require valid: only valid tells how many there are")

    @classmethod
    def of(cls, rows: list[bytes | None]) -> Cells:
        """Make cells from Python bytes; None is null. Loops over the rows: use it for few."""
        present = [row for row in rows if row is not None]
        offsets = np.zeros(len(present) + 1, np.int64)
        np.cumsum([len(row) for row in present], out=offsets[1:])
        data = np.frombuffer(b"".join(present), np.uint8)
        valid = None if len(present) == len(rows) else np.array([row is not None for row in rows], np.bool_)
        return cls(data, offsets, valid=valid)

    @property
    def count(self) -> int:
        """Number of rows that are not null (m)."""
        if self.offsets is not None:
            return len(self.offsets) - 1
        if self.width:
            return len(self.data) // self.width
        return 0 if self.valid is None else int(np.count_nonzero(self.valid))

    def __len__(self) -> int:
        return self.count if self.valid is None else len(self.valid)

    def bounds(self) -> Ints:
        """Return the offsets, int64[m + 1]; computed from the width if there are none."""
        if self.offsets is not None:
            return self.offsets
        return np.arange(self.count + 1, dtype=np.int64) * np.int64(self.width or 0)

    def with_valid(self, valid: Bools | None) -> Cells:
        """Return cells with the same bytes and another set of null rows."""
        return Cells(self.data, self.offsets, self.width, valid)

    def present(self) -> Iterator[bytes]:
        """Return the rows that are not null, one by one, as Python bytes."""
        bounds, raw = self.bounds().tolist(), self.data.tobytes()
        return (raw[a:b] for a, b in itertools.pairwise(bounds))

    def rows(self) -> list[bytes | None]:
        """Return the cells as Python bytes, None for null. Loops over the rows: use it for few."""
        present = self.present()
        if self.valid is None:
            return list(present)
        return [next(present) if ok else None for ok in self.valid.tolist()]

    def __repr__(self) -> str:
        return f"<{len(self)} cells>"  # never the bytes: they may be plaintext
