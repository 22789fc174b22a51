"""AES-256-SIV (RFC 5297) over whole columns, in Tink's layout, with exactly one associated-data component.

A sealed (encrypted) cell is ``prefix (5) ‖ SIV (16) ‖ ciphertext``: 21 bytes more than its plaintext.

CMAC chains the AES blocks of a cell, so one AES call encrypts block j of all cells. No lookup table is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import algorithms
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.cmac import CMAC

from kmsdata.ciphers.aes import Aes, Blocks, Room, field, xor
from kmsdata.ciphers.batches import PREFIX, Column, run, seal, tiles
from kmsdata.ciphers.cells import Cells, Ints
from kmsdata.lazy_property import lazy_property

__all__ = ["OVERHEAD", "PREFIX", "open_cells", "seal_cells"]

OVERHEAD = PREFIX + 16

# Indexed by the number of bytes in a last block, uint64[17, 2]: a mask of its text, and the padding bit.
_TEXT = (255 * (np.arange(16) < np.arange(17)[:, None])).astype(np.uint8).view(np.uint64)
_PAD = (128 * np.eye(17, 16)).astype(np.uint8).view(np.uint64)
# RFC 5297 section 2.5 clears bits 31 and 63 of the IV, so that incrementing 32 bits never carries over.
_CLEARED = np.frombuffer(bytes.fromhex("ffffffffffffffff7fffffff7fffffff"), np.uint64)


def double(blocks: Blocks) -> Blocks:
    """Return dbl(), x · S in GF(2^128) (RFC 5297 section 2.3): uint64[..., 2]. Masks replace branches."""
    words = blocks.view(">u8").astype(np.uint64)
    top, one = words >> np.uint64(63), np.uint64(1)
    out = words << one
    out[..., 0] |= top[..., 1]
    out[..., 1] ^= -top[..., 0] & np.uint64(0x87)
    return out.astype(">u8").view(np.uint64)


class Siv:
    """AES-256-SIV under one key; see `kmsdata.ciphers.batches.Mode`."""

    iv, tag_first, longest, least, setup = 0, True, 512, (80, 1), (80, 5)

    def __init__(self, key: bytes) -> None:
        self.room, self._key, self._cipher = Room(), key, AESSIV(key)
        self._mac, self._ctr = Aes(key[:32], self.room), Aes(key[32:], self.room)

    @lazy_property
    def _subkeys(self) -> tuple[Blocks, Blocks]:
        """CMAC subkeys for a complete last block and for a padded one (SP 800-38B section 6.1)."""
        whole = double(self._mac.encrypt(np.zeros(2, np.uint64)))
        return whole, double(whole)

    def _cmac(self, blocks: Blocks, size: int, key: Blocks) -> Blocks:
        """Return the CMAC (SP 800-38B section 6.2) of blocks uint64[n, k, 2], changed in place: uint64[n, 2].

        The last block has ``size`` bytes of text, and any bytes after them are ignored. The key, uint64[2] or
        [n, 2], is XORed into it.
        """
        state = self.room.blocks(len(blocks))
        for word in (0, 1):
            last = blocks[:, -1, word]
            if size < 16:
                last &= _TEXT[size, word]
            last ^= key[..., word] ^ _PAD[size, word]
        field(state, 16)[:] = field(blocks, 16)
        state = self._mac.encrypt(state)
        for block in range(1, blocks.shape[1]):
            xor(state, blocks[:, block])
            state = self._mac.encrypt(state)
        return state

    def digests(self, associated: bytes | Column) -> Blocks | None:
        """Return S2V before the plaintext: dbl(CMAC(0)) ^ CMAC(data) (RFC 5297 section 2.4).

        Returns:
            uint64[2], or uint64[n, 2] for a column; None if the rows have too many or too large lengths.
        """
        whole, padded = self._subkeys
        start = double(self._mac.encrypt(whole))  # dbl(CMAC(a block of zeros))
        if isinstance(associated, bytes):
            chain = CMAC(algorithms.AES256(self._key[:32]))
            chain.update(associated)
            return start ^ np.frombuffer(chain.finalize(), np.uint64)
        if not associated.alike(256):
            return None
        out = np.empty((len(associated.lengths), 2), np.uint64)
        for rows, length in tiles(associated.lengths, 256, (0, 0), (0, 0))[0]:
            self.room.clear()
            count = max(1, -(-length // 16))
            blocks = self.room.blocks(len(associated.starts[rows]), count)
            if length:
                field(blocks, length)[:] = associated.cells(rows, length)
            size = length - 16 * (count - 1)
            out[rows] = self._cmac(blocks, size, whole if size == 16 else padded)
        xor(out, start)
        return out

    def _tags(self, text: Blocks, length: int, digests: Blocks) -> Blocks:
        """Return S2V of plaintexts, continued from the digests (RFC 5297 section 2.4): uint64[n, 2]."""
        (count, size), (whole, padded) = text.shape[:2], self._subkeys
        blocks = self.room.blocks(count, max(1, size))
        if size:
            blocks[:] = text
        if length < 16:
            return self._cmac(blocks, length, whole ^ double(digests))
        xor(np.ndarray((count, 2), np.uint64, blocks, length - 16, (16 * size, 8)), digests)  # xorend
        last = length - 16 * (size - 1)
        return self._cmac(blocks, last, whole if last == 16 else padded)

    def kernel(self, sealing: bool, text: Blocks, length: int, ivs: Blocks, digests: Blocks) -> Blocks:
        """See `Mode`; RFC 5297 sections 2.6 and 2.7."""
        tags = self._tags(text, length, digests) if sealing else ivs
        first = self.room.blocks(len(tags))
        for word in (0, 1):
            np.bitwise_and(tags[:, word], _CLEARED[word], out=first[:, word])
        text ^= self._ctr.stream(first, text.shape[1])  # section 2.5
        return tags if sealing else self._tags(text, length, digests)

    def one_shot(
        self,
        sealing: bool,
        _ivs: Iterable[bytes],
        texts: Iterable[Any],
        associated: bytes | Iterable[Any],
        *outs: Iterable[memoryview],
    ) -> Iterator[Any]:
        """See `Mode`."""
        extras = repeat([associated]) if isinstance(associated, bytes) else map(list, zip(associated))
        name = ("encrypt" if sealing else "decrypt") + "_into" * len(outs)
        return map(getattr(self._cipher, name), texts, extras, *outs)


def seal_cells(key: bytes, prefix: bytes, cells: Cells, associated: bytes | Cells = b"") -> Cells:
    """Encrypt every cell (RFC 5297 section 2.6).

    Args:
        key: 64 bytes; the first half is the key of S2V (RFC 5297 section 2.2; Tink uses the same order).
        prefix: 5 bytes that begin every sealed cell (version and key id).
        cells: m cells that are not null; any lengths.
        associated: the associated-data component: bytes for the column (may be empty), or m cells.

    Returns:
        m sealed cells with the same ``valid``; 21 bytes wider, or with offsets if the lengths differ.

    Raises:
        ValueError: the sizes of the arguments do not match.

    Example:
        >>> sealed = seal_cells(bytes(64), b"\\1abcd", Cells.of([b"hello", b"hello"]))
        >>> a, b = sealed.rows()
        >>> a == b, len(a)
        (True, 26)
    """
    if len(key) != 64 or len(prefix) != PREFIX:
        raise ValueError("AES-256-SIV requires a key of 64 bytes and a prefix of 5")
    return seal(Siv(key), cells, associated, prefix)


def open_cells(key: bytes, cells: Cells, associated: bytes | Cells = b"") -> tuple[Cells | None, Ints]:
    """Decrypt and authenticate every cell (RFC 5297 section 2.7).

    Args:
        key: 64 bytes.
        cells: m sealed cells that are not null. The first 5 bytes of each are ignored: the caller reads them.
        associated: the associated-data component: bytes for the column, or m cells.

    Returns:
        The plaintext cells and an empty int64[0]; or, if any cell fails, None and int64[k], the positions
        (among the m) of the cells that fail. If a cell fails, no plaintext is returned.

    Raises:
        ValueError: the sizes of the arguments do not match.

    Example:
        >>> plain, bad = open_cells(bytes(64), seal_cells(bytes(64), b"\\1abcd", Cells.of([b"hello"])))
        >>> plain.data.tobytes(), bad.tolist()
        (b'hello', [])
    """
    if len(key) != 64:
        raise ValueError("AES-256-SIV requires a key of 64 bytes")
    return run(Siv(key), False, cells, associated)
