"""Encrypt many AES-256 blocks in one call (ECB, CTR), in memory that is reused between calls."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from kmsdata.ciphers.cells import Bytes
from kmsdata.lazy_property import lazy_property

__all__ = ["TILE", "Aes", "Blocks", "Room", "Voids", "field", "keystream", "xor"]

TILE = 1 << 15  # blocks per tile: enough to hide numpy's cost per call, few enough for the cache of one core

Blocks: TypeAlias = npt.NDArray[np.uint64]  # [..., 2]: blocks of 16 bytes in memory order
Voids: TypeAlias = npt.NDArray[np.void]  # byte strings of one length, one per element


class Room:
    """Reusable memory for the blocks of a tile: new pages for each tile would take as much time as AES."""

    def __init__(self) -> None:
        self._used = 0

    @lazy_property
    def _memory(self) -> Blocks:
        return np.empty((16 * TILE, 2), np.uint64)  # the system allocates pages on first write

    def clear(self) -> None:
        """Mark all blocks as free."""
        self._used = 0

    def blocks(self, *shape: int) -> Blocks:
        """Return uninitialised blocks: uint64[*shape, 2]."""
        start, self._used = self._used, self._used + math.prod(shape)
        return self._memory[start : self._used].reshape(*shape, 2)


class Aes:
    """AES-256 of many blocks in one call (ECB, NIST SP 800-38A section 6.1), from which modes are built."""

    def __init__(self, key: bytes, room: Room) -> None:
        self._key, self._room = key, room

    @lazy_property  # small columns never need it
    def _encryptor(self) -> CipherContext:
        return Cipher(algorithms.AES256(self._key), modes.ECB()).encryptor()  # noqa: S305 - modes need raw blocks

    def encrypt(self, blocks: Blocks) -> Blocks:
        """Encrypt each block, uint64[..., 2], C-contiguous, into another array of that shape."""
        out = self._room.blocks(blocks.size // 2 + 1)  # update_into requires 15 bytes that it never writes
        self._encryptor.update_into(
            blocks.reshape(-1).view(np.uint8).data, out.reshape(-1).view(np.uint8).data
        )
        return out[:-1].reshape(blocks.shape)

    def stream(self, first: Blocks, count: int) -> Blocks:
        """Return E(first), E(inc32(first)), ... (SP 800-38D section 6.5): uint64[n, count, 2] of [n, 2]."""
        blocks = self._room.blocks(len(first), count)
        last = first.view(">u4")[:, 3].astype(np.uint32)
        for step in range(count):
            field(blocks, 16, 16 * step)[:] = field(first, 16)
            if step:
                blocks.view(">u4")[:, step, 3] = last + np.uint32(step)
        return self.encrypt(blocks)


def keystream(key: bytes, size: int) -> Bytes:
    """Return the first bytes of AES-256-CTR under a key that is used for nothing else.

    Args:
        key: 32 random bytes, generated for this call.
        size: number of bytes.

    Returns:
        uint8[size]; the counter starts at 0 (NIST SP 800-38A section 6.5).

    Example:
        >>> keystream(bytes(32), 4).tobytes().hex()
        'dc95c078'
    """
    out, zeros = np.empty(size + 15, np.uint8), bytes(1 << 16)
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    for start in range(0, size, len(zeros)):
        encryptor.update_into(zeros[: size - start], out[start:].data)
    return out[:size]


def field(blocks: Blocks, width: int, skip: int = 0) -> Voids:
    """Return a writable view of some bytes of each row: V{width}[n] of uint64[n, ..., 2], C-contiguous."""
    return np.ndarray((len(blocks),), f"V{width}", blocks, skip, blocks.strides[:1])


def xor(blocks: Blocks, others: Blocks) -> None:
    """XOR others, uint64[n, 2] or one uint64[2], into blocks, uint64[n, 2], in place."""
    # Word by word is faster: where the shapes broadcast, numpy's inner loop would have a length of 2.
    blocks[:, 0] ^= others[..., 0]
    blocks[:, 1] ^= others[..., 1]
