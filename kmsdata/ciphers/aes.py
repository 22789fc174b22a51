"""What GCM and SIV share: AES-256 over many blocks at once, and the bookkeeping of a column of cells."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from kmsdata.cells import Bytes, Cells, Ints

__all__ = ["each_row", "keystream"]


def keystream(key: bytes, size: int) -> Bytes:
    """The first bytes of AES-256-CTR under a key that is used for nothing else.

    Args:
        key: 32 bytes, drawn for this call.
        size: how many bytes.

    Returns:
        uint8[size]; the counter starts at 0 (NIST SP 800-38A section 6.5).

    Example:
        >>> keystream(bytes(32), 4).tobytes().hex()
        'dc95c078'
    """
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(encryptor.update(bytes(size)), np.uint8)


def each_row(
    cells: Cells,
    associated: bytes | Cells,
    change: int,
    one: Callable[[int, memoryview, bytes], bytes],
) -> tuple[Cells | None, Ints]:
    """Run a one-shot cipher over every cell.

    Args:
        cells: m cells that are not null.
        associated: associated data, one for the column or m cells of it.
        change: how much longer (or shorter, if negative) each cell gets.
        one: called with the row's number, its bytes and its associated data; returns the new
            bytes, or raises InvalidTag.

    Returns:
        The new cells and int64[0]; or None and int64[k], the rows that raised InvalidTag or are too short.

    Raises:
        ValueError: associated data that does not fit the cells.
    """
    if isinstance(associated, bytes):
        extra = [associated]
    elif associated.valid is None and associated.count == cells.count:
        extra = [row for row in associated.rows() if row is not None]
    else:
        raise ValueError("associated data per row: one for each cell that is not null")
    bounds, data = cells.bounds(), cells.data.data
    parts: list[bytes] = []
    bad: list[int] = []
    for row, (start, end) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        try:
            if end - start + change < 0:
                raise InvalidTag
            parts.append(one(row, data[start:end], extra[row % len(extra)]))
        except InvalidTag:
            bad.append(row)
    if bad:
        return None, np.array(bad, np.int64)
    done, none = np.frombuffer(b"".join(parts), np.uint8), np.empty(0, np.int64)
    if cells.width is not None and cells.width + change > 0:
        return Cells(done, width=cells.width + change, valid=cells.valid), none
    return Cells(done, bounds + change * np.arange(len(bounds), dtype=np.int64), valid=cells.valid), none
