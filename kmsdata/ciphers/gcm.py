"""AES-256-GCM (NIST SP 800-38D) over whole columns, in Tink's layout.

A sealed (encrypted) cell is ``prefix (5) ‖ IV (12) ‖ ciphertext ‖ tag (16)``: 33 bytes more than plaintext.

GHASH is the sum of all blocks, each times a power of the hash subkey H. The products come from tables that
are indexed by public bytes only: ciphertext, and associated data that the caller declares public. All other
products are computed with masks, so that no memory address depends on a secret (cache-timing attacks).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kmsdata.ciphers.aes import Aes, Blocks, Room, xor
from kmsdata.ciphers.batches import PREFIX, Column, run, seal, tiles
from kmsdata.ciphers.cells import Bytes, Cells, Ints

__all__ = ["OVERHEAD", "PREFIX", "open_cells", "seal_cells"]

OVERHEAD = PREFIX + 12 + 16


def times_x(v: Blocks, power: int) -> Blocks:
    """Multiply by x^1 to x^32 in GF(2^128) (SP 800-38D section 6.3): uint64[..., 2], high word first."""
    high, low = v[..., 0], v[..., 1]
    left, right = np.uint64(64 - power), np.uint64(power)
    # The bits that are shifted out are reduced by x^128 = x^7 + x^2 + x + 1, without a branch if they are 0.
    over = low << left
    out = np.empty_like(v)
    out[..., 0] = (
        (high >> right) ^ over ^ (over >> np.uint64(1)) ^ (over >> np.uint64(2)) ^ (over >> np.uint64(7))
    )
    out[..., 1] = (low >> right) ^ (high << left)  # power <= 32, so ``over`` has no bits for the low word
    return out


def multiples(blocks: Blocks) -> Blocks:
    """Multiply each block by x^0 to x^127 in GF(2^128): uint64[n, 128, 2] of uint64[n, 2]."""
    v = blocks.view(">u8").astype(np.uint64)[:, None]
    for power in (1, 2, 4, 8, 16, 32):
        v = np.concatenate([v, times_x(v, power)], axis=1)
    v = np.concatenate([v, times_x(times_x(v, 32), 32)], axis=1)
    return v.astype(">u8").view(np.uint64)


def product(blocks: Blocks, factor: Blocks) -> Blocks:
    """Multiply blocks by a factor in GF(2^128) with masks: no branch and no address depends on either.

    Args:
        blocks: uint64[n, 2], few: each takes 4 kB of memory.
        factor: uint64[128, 2], the `multiples` of the factor.

    Returns:
        uint64[n, 2], the sum over the bits of a block that are 1 (SP 800-38D section 6.3, algorithm 1).
    """
    words = blocks.view(">u8").astype(np.uint64)[..., None]
    bits = words >> np.arange(63, -1, -1, dtype=np.uint64) & np.uint64(1)  # np.unpackbits reads a table
    return np.bitwise_xor.reduce(factor & -bits.reshape(-1, 128, 1), axis=1)


def tables(factor: Blocks) -> Blocks:
    """Multiply a factor by each value of each byte: uint64[16, 256, 2] of its `multiples`, uint64[128, 2]."""
    bits = factor.reshape(16, 8, 1, 2)
    out = np.zeros((16, 256, 2), np.uint64)
    for bit in range(8):
        np.bitwise_xor(out[:, : 1 << bit], bits[:, 7 - bit], out=out[:, 1 << bit : 2 << bit])
    return out


def look_up(products: Blocks, index: Bytes, out: Blocks) -> None:
    """Copy products[index], uint64[n, 2], to out: the only table lookup. Index uint8[n] must be public."""
    # No uint8 is out of range, but the default mode "raise" would make take() copy through a buffer.
    products.take(index, 0, out, "clip")


class Gcm:
    """AES-256-GCM under one key; see `kmsdata.ciphers.batches.Mode`. ``clear``: see `seal_cells`."""

    iv, tag_first, longest, least, setup = 12, False, 128, (150, 10), (900, 250)

    def __init__(self, key: bytes, clear: bool) -> None:
        self.room, self._cipher, self._clear = Room(), AESGCM(key), clear
        self._aes = Aes(key, self.room)
        self._multiples: list[Blocks] = []  # of H, H^2, ...
        self._tables: dict[int, Blocks] = {}

    def _times(self, power: int) -> Blocks:
        """Return the multiples of H^power, power >= 1 (SP 800-38D section 7.1, step 1): uint64[128, 2]."""
        if not self._multiples:
            self._multiples = [*multiples(self._aes.encrypt(np.zeros((1, 2), np.uint64)))]
        blocks = [self._multiples[-1][:1]]
        for _ in range(len(self._multiples), power):
            blocks.append(product(blocks[-1], self._multiples[0]))
        if len(blocks) > 1:
            self._multiples.extend(multiples(np.concatenate(blocks[1:])))
        return self._multiples[power - 1]

    def _lengths(self, lengths: Ints, word: int) -> Blocks:
        """Return H times the block of lengths: bytes of associated data (word 0) or of text (word 1)."""
        block = np.zeros((len(lengths), 2), ">u8")
        block[:, word] = 8 * lengths
        return product(block.view(np.uint64), self._times(1))

    def digests(self, associated: bytes | Column) -> Blocks | None:
        """Return blocks of associated data, then their lengths times H.

        Returns:
            uint64[2, 2] for bytes: their GHASH, without the last multiplication by a power of H.
            uint64[n, a + 1, 2] for a column: its bytes, which are used as indices of tables.
            None if the kernel cannot use them.
        """
        if isinstance(associated, bytes):
            if len(associated) > 1024:
                return None
            y: Blocks = np.zeros((1, 2), np.uint64)
            padded = associated + bytes(-len(associated) % 16)
            for block in np.frombuffer(padded, np.uint64).reshape(-1, 1, 2):
                y = product(y, self._times(1)) ^ block  # section 6.4, except the last multiplication
            return np.concatenate([y, self._lengths(np.array([len(associated)]), 0)])
        if not self._clear or not associated.alike(64):
            return None
        top, count = int(associated.lengths.max()), len(associated.lengths)
        size = (top + 15) // 16
        out = np.zeros((count, size + 1, 2), np.uint64)
        for rows, length in tiles(associated.lengths, top, (0, 0), (0, 0))[0]:
            if length:  # leading blocks of 0 do not change GHASH
                skip = 16 * (size - (length + 15) // 16)
                octets = associated.cells(rows, length).view(np.uint8).reshape(-1, length)
                out.view(np.uint8).reshape(count, -1)[rows, skip : skip + length] = octets
        out[:, size] = self._lengths(np.arange(top + 1), 0)[associated.lengths]
        return out

    def _add(self, tags: Blocks, octets: Bytes, power: int) -> None:
        """Add public bytes, uint8[n, b]: the first 16 times H^power, the next times H^(power - 1), ..."""
        found = self.room.blocks(len(tags))
        for at in range(octets.shape[1]):
            here = power - at // 16
            if here not in self._tables:
                self._tables[here] = tables(self._times(here))
            look_up(self._tables[here][at % 16], octets[:, at], found)
            tags ^= found

    def kernel(self, sealing: bool, text: Blocks, length: int, ivs: Blocks, digests: Blocks) -> Blocks:
        """See `Mode`; SP 800-38D sections 7.1 and 7.2."""
        count, size = text.shape[:2]
        self._times(size + digests.shape[-2])  # the highest power first computes all others
        ivs.view(">u4")[:, 3] = 1
        tags = self._aes.encrypt(ivs)
        ivs.view(">u4")[:, 3] = 2
        stream = self._aes.stream(ivs, size)
        if sealing:
            text ^= stream
        self._add(tags, text.view(np.uint8).reshape(count, -1)[:, :length], size + 1)
        start = self._lengths(np.array([length]), 1) ^ digests[..., -1, :]
        if digests.ndim == 2:
            start ^= product(digests[:1], self._times(size + 2))
            xor(tags, start)
        else:
            tags ^= start
            self._add(tags, digests[:, :-1].reshape(count, -1).view(np.uint8), size + digests.shape[1])
        if not sealing:
            text ^= stream
        return tags

    def one_shot(
        self,
        sealing: bool,
        ivs: Iterable[bytes],
        texts: Iterable[Any],
        associated: bytes | Iterable[Any],
        *outs: Iterable[memoryview],
    ) -> Iterator[Any]:
        """See `Mode`."""
        extras = repeat(associated or None) if isinstance(associated, bytes) else associated
        name = ("encrypt" if sealing else "decrypt") + "_into" * len(outs)
        return map(getattr(self._cipher, name), ivs, texts, extras, *outs)


def seal_cells(
    key: bytes,
    prefix: bytes,
    cells: Cells,
    ivs: Bytes,
    associated: bytes | Cells = b"",
    clear: bool = False,
) -> Cells:
    """Encrypt every cell (NIST SP 800-38D section 7.1).

    Args:
        key: 32 bytes.
        prefix: 5 bytes that begin every sealed cell (version and key id).
        cells: m cells that are not null; any lengths.
        ivs: uint8[m, 12], unique under the key.
        associated: associated data: bytes for the column, or m cells.
        clear: whether such m cells are public (stored unencrypted); if not, cells go one by one.

    Returns:
        m sealed cells with the same ``valid``; 33 bytes wider, or with offsets if the lengths differ.

    Raises:
        ValueError: the sizes of the arguments do not match.

    Example:
        >>> import numpy as np
        >>> sealed = seal_cells(bytes(32), b"\\1abcd", Cells.of([b"hello"]), np.zeros((1, 12), np.uint8))
        >>> sealed.data.size
        38
    """
    if len(key) != 32 or len(prefix) != PREFIX or ivs.shape != (cells.count, 12) or ivs.dtype != np.uint8:
        raise ValueError("AES-256-GCM requires a key of 32 bytes, a prefix of 5, and an IV of 12 per cell")
    return seal(Gcm(key, clear), cells, associated, prefix, ivs)


def open_cells(
    key: bytes, cells: Cells, associated: bytes | Cells = b"", clear: bool = False
) -> tuple[Cells | None, Ints]:
    """Decrypt and authenticate every cell (NIST SP 800-38D section 7.2).

    Args:
        key: 32 bytes.
        cells: m sealed cells that are not null. The first 5 bytes of each are ignored: the caller reads them.
        associated: associated data: bytes for the column, or m cells.
        clear: as in `seal_cells`.

    Returns:
        The plaintext cells and an empty int64[0]; or, if any cell fails, None and int64[k], the positions
        (among the m) of the cells that fail. If a cell fails, no plaintext is returned.

    Raises:
        ValueError: the sizes of the arguments do not match.

    Example:
        >>> import numpy as np
        >>> sealed = seal_cells(bytes(32), b"\\1abcd", Cells.of([b"hello"]), np.zeros((1, 12), np.uint8))
        >>> plain, bad = open_cells(bytes(32), sealed)
        >>> plain.data.tobytes(), bad.tolist()
        (b'hello', [])
    """
    if len(key) != 32:
        raise ValueError("AES-256-GCM requires a key of 32 bytes")
    return run(Gcm(key, clear), False, cells, associated)
