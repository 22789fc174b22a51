"""AES-256-SIV (RFC 5297) over whole columns, in Tink's layout, with exactly one associated-data component.

A sealed cell is ``prefix (5) ‖ SIV (16) ‖ ciphertext``: 21 bytes more than its plaintext.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from kmsdata.cells import Cells, Ints
from kmsdata.ciphers.aes import each_row

__all__ = ["OVERHEAD", "PREFIX", "open_cells", "seal_cells"]

PREFIX = 5
OVERHEAD = PREFIX + 16


def seal_cells(key: bytes, prefix: bytes, cells: Cells, associated: bytes | Cells = b"") -> Cells:
    """Encrypt every cell (RFC 5297 section 2.6).

    Args:
        key: 64 bytes, the half for S2V first (RFC 5297 section 2.2; Tink's order too).
        prefix: 5 bytes that begin every sealed cell (version and key id).
        cells: m cells that are not null; any lengths.
        associated: the one associated-data component, empty or not, one for the column or m cells of it.

    Returns:
        m sealed cells with the same ``valid``; of the same width + 21, or offsets where the lengths differ.

    Raises:
        ValueError: sizes that do not fit each other.

    Example:
        >>> sealed = seal_cells(bytes(64), b"\\1abcd", Cells.of([b"hello", b"hello"]))
        >>> a, b = sealed.rows()
        >>> a == b, len(a)
        (True, 26)
    """
    if len(key) != 64 or len(prefix) != PREFIX:
        raise ValueError("AES-256-SIV takes a key of 64 bytes and a prefix of 5")
    cipher = AESSIV(key)
    sealed, _ = each_row(
        cells, associated, OVERHEAD, lambda _, plain, extra: prefix + cipher.encrypt(plain, [extra])
    )
    if sealed is None:
        raise ValueError("sealing cannot fail")  # each_row reports failures of opening only
    return sealed


def open_cells(key: bytes, cells: Cells, associated: bytes | Cells = b"") -> tuple[Cells | None, Ints]:
    """Decrypt and authenticate every cell (RFC 5297 section 2.7).

    Args:
        key: 64 bytes.
        cells: m sealed cells that are not null. Their first 5 bytes are skipped: the caller has read them.
        associated: the one associated-data component, one for the column or m cells of it.

    Returns:
        The plaintext cells and an empty int64[0]; or, if any cell fails, None and int64[k], the positions
        (among the m) of the cells that fail. Nothing of a batch with a failing cell is released.

    Raises:
        ValueError: sizes that do not fit each other.

    Example:
        >>> plain, bad = open_cells(bytes(64), seal_cells(bytes(64), b"\\1abcd", Cells.of([b"hello"])))
        >>> plain.data.tobytes(), bad.tolist()
        (b'hello', [])
    """
    if len(key) != 64:
        raise ValueError("AES-256-SIV takes a key of 64 bytes")
    cipher = AESSIV(key)
    return each_row(
        cells, associated, -OVERHEAD, lambda _, sealed, extra: cipher.decrypt(sealed[PREFIX:], [extra])
    )
