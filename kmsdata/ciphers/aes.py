"""AES-256 of many blocks at once (ECB, CTR), and the memory that those blocks are in."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from kmsdata.ciphers.cells import Bytes

__all__ = ["TILE", "Aes", "Blocks", "Room", "Voids", "field", "keystream", "xor"]

TILE = 1 << 15  # blocks in lock-step: many for numpy, few for the cache of one core

Blocks: TypeAlias = npt.NDArray[np.uint64]  # [..., 2]: blocks of 16 bytes as they lie in memory
Voids: TypeAlias = npt.NDArray[np.void]  # byte strings of one length as elements


class Room:
    """Memory for the blocks of one tile after another: new pages for each would cost as much time as AES."""

    def __init__(self) -> None:
        self._used = 0

    @cached_property
    def _memory(self) -> Blocks:
        return np.empty((16 * TILE, 2), np.uint64)  # the system gives pages when they are written to

    def clear(self) -> None:
        """Give all of it back."""
        self._used = 0

    def blocks(self, *shape: int) -> Blocks:
        """Blocks that hold anything: uint64[*shape, 2]."""
        start, self._used = self._used, self._used + math.prod(shape)
        return self._memory[start : self._used].reshape(*shape, 2)


class Aes:
    """AES-256 of many blocks in one call (ECB, NIST SP 800-38A section 6.1), to build modes of."""

    def __init__(self, key: bytes, room: Room) -> None:
        self._key, self._room = key, room

    @cached_property  # small columns never need it
    def _encryptor(self) -> CipherContext:
        return Cipher(algorithms.AES256(self._key), modes.ECB()).encryptor()  # noqa: S305 - of single blocks

    def encrypt(self, blocks: Blocks) -> Blocks:
        """Each block encrypted: uint64[..., 2], C-contiguous, to another array of that shape."""
        out = self._room.blocks(blocks.size // 2 + 1)  # update_into asks for 15 bytes that it does not use
        self._encryptor.update_into(
            blocks.reshape(-1).view(np.uint8).data, out.reshape(-1).view(np.uint8).data
        )
        return out[:-1].reshape(blocks.shape)

    def stream(self, first: Blocks, count: int) -> Blocks:
        """CTR, E(first), E(inc32(first)), ... (SP 800-38D section 6.5): uint64[n, count, 2] of [n, 2]."""
        blocks = self._room.blocks(len(first), count)
        last = first.view(">u4")[:, 3].astype(np.uint32)
        for step in range(count):
            field(blocks, 16, 16 * step)[:] = field(first, 16)
            if step:
                blocks.view(">u4")[:, step, 3] = last + np.uint32(step)
        return self.encrypt(blocks)


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
    out, zeros = np.empty(size + 15, np.uint8), bytes(1 << 16)
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    for start in range(0, size, len(zeros)):
        encryptor.update_into(zeros[: size - start], out[start:].data)
    return out[:size]


def field(blocks: Blocks, width: int, skip: int = 0) -> Voids:
    """Some bytes of each row of blocks, writable: V{width}[n] of uint64[n, ..., 2], C-contiguous."""
    return np.ndarray((len(blocks),), f"V{width}", blocks, skip, blocks.strides[:1])


def xor(blocks: Blocks, others: Blocks) -> None:
    """Add blocks, uint64[n, 2] or one uint64[2], to others in place; a word at a time is numpy's fast way."""
    blocks[:, 0] ^= others[..., 0]
    blocks[:, 1] ^= others[..., 1]
