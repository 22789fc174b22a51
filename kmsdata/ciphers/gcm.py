"""AES-256-GCM (NIST SP 800-38D) over whole columns, in Tink's layout.

A sealed cell is ``prefix (5) ‖ IV (12) ‖ ciphertext ‖ tag (16)``: 33 bytes more than its plaintext.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kmsdata.cells import Bytes, Cells, Ints
from kmsdata.ciphers.aes import each_row

__all__ = ["OVERHEAD", "PREFIX", "open_cells", "seal_cells"]

PREFIX = 5
OVERHEAD = PREFIX + 12 + 16


def seal_cells(key: bytes, prefix: bytes, cells: Cells, ivs: Bytes, associated: bytes | Cells = b"") -> Cells:
    """Encrypt every cell (NIST SP 800-38D section 7.1).

    Args:
        key: 32 bytes.
        prefix: 5 bytes that begin every sealed cell (version and key id).
        cells: m cells that are not null; any lengths.
        ivs: uint8[m, 12], unique under the key.
        associated: associated data, one for the column or m cells of it.

    Returns:
        m sealed cells with the same ``valid``; of the same width + 33, or offsets where the lengths differ.

    Raises:
        ValueError: sizes that do not fit each other.

    Example:
        >>> import numpy as np
        >>> sealed = seal_cells(bytes(32), b"\\1abcd", Cells.of([b"hello"]), np.zeros((1, 12), np.uint8))
        >>> sealed.data.size
        38
    """
    if len(key) != 32 or len(prefix) != PREFIX or ivs.shape != (cells.count, 12):
        raise ValueError("AES-256-GCM takes a key of 32 bytes, a prefix of 5 and an IV of 12 for each cell")
    cipher, nonces = AESGCM(key), ivs.tobytes()

    def one(row: int, plain: memoryview, extra: bytes) -> bytes:
        iv = nonces[12 * row : 12 * row + 12]
        return prefix + iv + cipher.encrypt(iv, plain, extra)

    sealed, _ = each_row(cells, associated, OVERHEAD, one)
    if sealed is None:
        raise ValueError("sealing cannot fail")  # each_row reports failures of opening only
    return sealed


def open_cells(key: bytes, cells: Cells, associated: bytes | Cells = b"") -> tuple[Cells | None, Ints]:
    """Decrypt and authenticate every cell (NIST SP 800-38D section 7.2).

    Args:
        key: 32 bytes.
        cells: m sealed cells that are not null. Their first 5 bytes are skipped: the caller has read them.
        associated: associated data, one for the column or m cells of it.

    Returns:
        The plaintext cells and an empty int64[0]; or, if any cell fails, None and int64[k], the positions
        (among the m) of the cells that fail. Nothing of a batch with a failing cell is released.

    Raises:
        ValueError: sizes that do not fit each other.

    Example:
        >>> import numpy as np
        >>> sealed = seal_cells(bytes(32), b"\\1abcd", Cells.of([b"hello"]), np.zeros((1, 12), np.uint8))
        >>> plain, bad = open_cells(bytes(32), sealed)
        >>> plain.data.tobytes(), bad.tolist()
        (b'hello', [])
    """
    if len(key) != 32:
        raise ValueError("AES-256-GCM takes a key of 32 bytes")
    cipher = AESGCM(key)

    def one(_: int, sealed: memoryview, extra: bytes) -> bytes:
        return cipher.decrypt(sealed[PREFIX : PREFIX + 12], sealed[PREFIX + 12 :], extra)

    return each_row(cells, associated, -OVERHEAD, one)
