"""AES-256-SIV (RFC 5297) over whole columns, in Tink's layout, with exactly one associated-data component.

A sealed cell is ``prefix (5) ‖ SIV (16) ‖ ciphertext``: 21 bytes more than its plaintext.

CMAC is a chain of AES blocks in each cell: block j of all cells goes through AES at once. No table is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import algorithms
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.cmac import CMAC

from kmsdata.cells import Bools, Cells, Ints
from kmsdata.ciphers.aes import (
    PREFIX,
    Aes,
    Blocks,
    Column,
    Span,
    field,
    masked,
    run,
    spread,
)

__all__ = ["OVERHEAD", "PREFIX", "open_cells", "seal_cells"]

OVERHEAD = PREFIX + 16


def double(blocks: Blocks) -> Blocks:
    """dbl(), x · S in GF(2^128) (RFC 5297 section 2.3), by masks: uint64[n, 2]."""
    words = blocks.view(">u8").astype(np.uint64)
    top, one = words >> np.uint64(63), np.uint64(1)
    out = words << one
    out[:, 0] |= top[:, 1]
    out[:, 1] ^= -top[:, 0] & np.uint64(0x87)
    return out.astype(">u8").view(np.uint64)


class Siv:
    """AES-256-SIV under one key; see `kmsdata.ciphers.aes.Mode`."""

    iv, tag_first, longest, least = 0, True, 512, (200, 16, 10)

    def __init__(self, key: bytes) -> None:
        self._key, self._cipher = key, AESSIV(key)
        self._mac, self._ctr = Aes(key[:32]), Aes(key[32:])

    @cached_property
    def _subkeys(self) -> tuple[Blocks, Blocks]:
        """CMAC's subkeys for a last block that is whole, and for a padded one (SP 800-38B section 6.1)."""
        whole = double(self._mac.encrypt(np.zeros((1, 2), np.uint64)))
        return whole, double(whole)

    def digests(self, associated: bytes | Column) -> Blocks | None:
        """uint64[1 or n, 2], S2V before the plaintext, dbl(CMAC(0)) ^ CMAC(data) (RFC 5297 section 2.4)."""
        whole, padded = self._subkeys
        start = double(self._mac.encrypt(whole))  # dbl(CMAC(a block of zeros))
        if isinstance(associated, bytes):
            chain = CMAC(algorithms.AES256(self._key[:32]))
            chain.update(associated)
            return start ^ np.frombuffer(chain.finalize(), np.uint64)
        if (top := int(associated.lengths.max())) > 256:
            return None
        associated = associated.padded()
        pads = 128 * np.eye(17, 16, dtype=np.uint8)  # by length: one bit behind the last byte
        ends = pads.view(np.uint64) ^ np.concatenate([padded] * 16 + [whole])
        state = np.zeros((len(associated.starts), 2), np.uint64)
        for at in range(0, max(top, 1), 16):
            left = associated.lengths - at
            block = masked(associated, associated.starts + at, left)
            block ^= np.where((left <= 16)[:, None], ends[left.clip(0, 16)], np.uint64(0))
            # Rows that have ended keep their state. Only lengths decide, which are public.
            state = np.where(((left > 0) | (at == 0))[:, None], self._mac.encrypt(state ^ block), state)
        return start ^ state

    def _tags(self, text: Blocks, spans: list[Span], digests: Blocks) -> Blocks:
        """S2V of the plaintexts, behind what the digests hold (RFC 5297 section 2.4): uint64[n, 2]."""
        blocks, count = len(text), spans[-1].stop
        whole, padded = self._subkeys
        doubled = spread(double(digests), count) if blocks < 2 else digests
        digests = spread(digests, count)
        last = text[-1].copy() if blocks else np.empty((count, 2), np.uint64)
        before = text[-2].copy() if blocks > 1 else None
        keys = np.empty((count, 2), np.uint64)
        for start, stop, length in spans:
            rows, size = slice(start, stop), length - 16 * (blocks - 1) if blocks else 0
            field(keys, 16)[rows] = field(whole if blocks < 2 or size == 16 else padded, 16)
            if size < 16:
                padding = b"\x80".ljust(16 - size, b"\0")
                field(last, 16 - size, size)[rows] = np.array(padding, f"V{16 - size}")
            if length < 16:
                last[rows] ^= doubled[rows]
            elif before is None or size == 16:
                last[rows] ^= digests[rows]
            else:  # the last 16 bytes stand in two blocks
                shifted = np.zeros((2, stop - start, 2), np.uint64)
                field(shifted[0], 16 - size, size)[:] = field(digests, 16 - size)[rows]
                field(shifted[1], size)[:] = field(digests, size, 16 - size)[rows]
                before[rows] ^= shifted[0]
                last[rows] ^= shifted[1]
        last ^= keys
        chain = [*text[:-2], before, last] if before is not None else [last]
        state = self._mac.encrypt(chain[0])
        for block in chain[1:]:
            state = self._mac.encrypt(state ^ block)
        return state

    def _stream(self, tags: Blocks, count: int) -> Blocks:
        """The key stream: uint64[count, n, 2] (RFC 5297 section 2.5)."""
        keep = np.frombuffer(bytes.fromhex("ffffffffffffffff7fffffff7fffffff"), np.uint64)
        return self._ctr.stream(tags & keep, count)

    def seal(self, text: Blocks, spans: list[Span], _ivs: Blocks, digests: Blocks, /) -> Blocks:
        """See `Mode`; RFC 5297 section 2.6."""
        tags = self._tags(text, spans, digests)
        text ^= self._stream(tags, len(text))
        return tags

    def open(self, text: Blocks, spans: list[Span], _ivs: Blocks, digests: Blocks, tags: Blocks, /) -> Bools:
        """See `Mode`; RFC 5297 section 2.7."""
        text ^= self._stream(tags, len(text))
        wrong = self._tags(text, spans, digests) ^ tags
        return np.equal(wrong[:, 0] | wrong[:, 1], 0)

    def wrap(self, associated: bytes | memoryview) -> Any:
        """See `Mode`."""
        return [associated]

    def one_shot(self, sealing: bool, *columns: Iterable[Any]) -> Iterator[Any]:
        """See `Mode`."""
        _, texts, extras, *outs = columns
        name = ("encrypt" if sealing else "decrypt") + "_into" * len(outs)
        return map(getattr(self._cipher, name), texts, extras, *outs)


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
    sealed, _ = run(Siv(key), True, cells, associated, prefix)
    if sealed is None:
        raise ValueError("sealing cannot fail")  # only opening reports rows
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
    return run(Siv(key), False, cells, associated)
