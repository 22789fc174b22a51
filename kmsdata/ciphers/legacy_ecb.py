"""Decrypt AES-ECB cells written as in Tencent's guide. Never used to encrypt: ECB has no integrity."""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from kmsdata.ciphers.cells import Cells

__all__ = ["open_cells"]

_BLOCK = 16


def open_cells(key: bytes, cells: Cells) -> Cells:
    """Decrypt cells of whole blocks (NIST SP 800-38A section 6.1) and remove trailing zero bytes.

    Args:
        key: 16 or 32 bytes.
        cells: each a multiple of 16 bytes.

    Returns:
        The plaintexts. Trailing zero bytes are removed: padding cannot be told from zeros of the value.

    Raises:
        ValueError: the length of a cell is not a multiple of 16 bytes.
    """
    if len(cells.data) % _BLOCK or (cells.bounds() % _BLOCK).any():
        raise ValueError("the length of a cell is not a multiple of 16 bytes")
    decryptor = Cipher(algorithms.AES(key), modes.ECB()).decryptor()  # noqa: S305 - reads legacy data
    plain = decryptor.update(cells.data.tobytes()) + decryptor.finalize()
    padded = Cells(np.frombuffer(plain, np.uint8), cells.bounds())
    return Cells.of([row.rstrip(b"\0") for row in padded.present()]).with_valid(cells.valid)
