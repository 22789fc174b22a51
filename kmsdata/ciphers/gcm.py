"""AES-256-GCM (NIST SP 800-38D) over whole columns, in Tink's layout.

A sealed cell is ``prefix (5) ‖ IV (12) ‖ ciphertext ‖ tag (16)``: 33 bytes more than its plaintext.

GHASH is the sum of all blocks, each times a power of the hash subkey H. For ciphertext the products come from
tables, which are indexed by ciphertext bytes: in public. Products of anything else are made of masks, so that
associated data may be secret (the clear value of another encrypted column).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kmsdata.cells import Bools, Bytes, Cells, Ints
from kmsdata.ciphers.aes import PREFIX, Aes, Blocks, Column, Span, field, masked, run

__all__ = ["OVERHEAD", "PREFIX", "open_cells", "seal_cells"]

OVERHEAD = PREFIX + 12 + 16


def _times_x(v: Blocks, power: int) -> Blocks:
    """Times x^power, 1 to 32, in GF(2^128) (SP 800-38D section 6.3): uint64[..., 2], high word first."""
    high, low = v[..., 0], v[..., 1]
    left, right = np.uint64(64 - power), np.uint64(power)
    over = low << left  # what is shifted out, times x^128 = x^7 + x^2 + x + 1; it is added whether 0 or not
    out = np.empty_like(v)
    out[..., 0] = (
        (high >> right) ^ over ^ (over >> np.uint64(1)) ^ (over >> np.uint64(2)) ^ (over >> np.uint64(7))
    )
    out[..., 1] = (low >> right) ^ (high << left)
    out[..., 1] ^= (over << np.uint64(63)) ^ (over << np.uint64(62)) ^ (over << np.uint64(57))
    return out


def multiples(blocks: Blocks) -> Blocks:
    """Each block times x^0 to x^127 in GF(2^128): uint64[n, 128, 2] of uint64[n, 2]."""
    v = blocks.view(">u8").astype(np.uint64)[:, None]
    for power in (1, 2, 4, 8, 16, 32):
        v = np.concatenate([v, _times_x(v, power)], axis=1)
    v = np.concatenate([v, _times_x(_times_x(v, 32), 32)], axis=1)
    return v.astype(">u8").view(np.uint64)


def product(blocks: Blocks, factor: Blocks) -> Blocks:
    """Blocks times a factor in GF(2^128), by masks: no branch and no address depends on either.

    Args:
        blocks: uint64[n, 2].
        factor: uint64[128, 2], the `multiples` of the factor.

    Returns:
        uint64[n, 2], the sum over the bits of a block that are 1 (SP 800-38D section 6.3, algorithm 1).
    """
    out = np.empty_like(blocks)
    left = np.arange(64, dtype=np.uint64)[:, None]
    for start in range(0, len(blocks), 512):  # 128 masks of 8 bytes for each block should stay in cache
        words = np.ascontiguousarray(blocks[start : start + 512].T).view(">u8").astype(np.uint64)
        bits = (words[:, None, :] << left).view(np.int64) >> np.int64(63)
        masks = bits.view(np.uint64).reshape(128, -1)
        for word in (0, 1):
            out[start : start + 512, word] = np.bitwise_xor.reduce(masks & factor[:, word, None], axis=0)
    return out


def tables(factors: Blocks) -> Blocks:
    """Factors times each value of each byte: uint64[n, 16, 256, 2] of their `multiples` uint64[n, 128, 2]."""
    bits = factors.reshape(-1, 16, 8, 1, 2)
    out = np.zeros((len(factors), 16, 256, 2), np.uint64)
    for bit in range(8):
        np.bitwise_xor(out[:, :, : 1 << bit], bits[:, :, 7 - bit], out=out[:, :, 1 << bit : 2 << bit])
    return out


def look_up(products: Blocks, index: Bytes, out: Blocks) -> None:
    """Copy products[index], uint64[n, 2]: the one place where a table is read. Index uint8[n] is public."""
    products.take(index, 0, out, "clip")  # no index can be out of range; "clip" spares a copy


class Gcm:
    """AES-256-GCM under one key; see `kmsdata.ciphers.aes.Mode`."""

    iv, tag_first, longest, least = 12, False, 144, (1400, 350, 20)

    def __init__(self, key: bytes) -> None:
        self._cipher, self._aes = AESGCM(key), Aes(key)
        self._times: list[Blocks] = []

    def _powers(self, last: int) -> None:
        """Make the powers of H (SP 800-38D section 7.1, step 1) up to H^last ready for multiplication."""
        if not self._times:
            self._power = self._aes.encrypt(np.zeros((1, 2), np.uint64))
            self._times = [self._power[0], multiples(self._power)[0]]
            self._tables = [self._power[0]] * 2  # those of H^0 and H^1 are not needed
        powers = [self._power]
        for _ in range(len(self._times), last + 1):
            powers.append(product(powers[-1], self._times[1]))
        if len(powers) > 1:
            self._power = powers[-1]
            self._times += list(factors := multiples(np.concatenate(powers[1:])))
            self._tables += list(tables(factors))

    def digests(self, associated: bytes | Column) -> Blocks | None:
        """uint64[1 or n, a + 1, 2]: blocks that lack a power of H, the last H^(k+2), and lengths times H."""
        if isinstance(associated, bytes):
            if len(associated) > 1024:
                return None
            self._powers(1)
            padded = np.frombuffer(associated + bytes(-len(associated) % 16), np.uint64).reshape(-1, 1, 2)
            y: Blocks = np.zeros((1, 2), np.uint64)
            for block in padded:
                y = product(y, self._times[1]) ^ block  # section 6.4, but for the last multiplication
            return np.stack([y, self._lengths(np.array([len(associated)]), 0)], axis=1)
        top = int(associated.lengths.max(initial=0))
        if top > 32 or len(associated.lengths) < self.least[0]:
            return None
        self._powers(1)
        associated = associated.padded()
        count = (top + 15) // 16
        out = np.empty((len(associated.lengths), count + 1, 2), np.uint64)
        shift = 16 * ((associated.lengths + 15) // 16 - count)  # blocks of 0 in front leave GHASH as it is
        for at in range(count):
            skip = shift + 16 * at
            left = np.where(skip < 0, 0, associated.lengths - skip)
            out[:, at] = masked(associated, associated.starts + skip, left)
        out[:, count] = self._lengths(np.arange(top + 1), 0)[associated.lengths]
        return out

    def _lengths(self, lengths: Ints, word: int) -> Blocks:
        """The block of lengths, with bytes of associated data (word 0) or text (1) in it, times H."""
        block = np.zeros((len(lengths), 2), ">u8")
        block[:, word] = 8 * lengths
        return product(block.view(np.uint64), self._times[1])

    def _tags(self, text: Blocks, spans: list[Span], digests: Blocks, masks: Blocks) -> Blocks:
        """GHASH of ciphertext and associated data (section 6.4), under the masks E(K, J0): uint64[n, 2]."""
        blocks, count = len(text), spans[-1].stop
        start = digests[:, -1]
        for step, block in enumerate(range(digests.shape[1] - 2, -1, -1)):
            start = start ^ product(digests[:, block], self._times[blocks + 2 + step])
        by_length = self._lengths(np.array([span.length for span in spans]), 1)
        if len(start) == 1:
            by_length = by_length ^ start
        tags = np.empty((count, 2), np.uint64)
        for span, block in zip(spans, field(by_length, 16), strict=True):
            field(tags, 16)[span.start : span.stop] = block
        tags ^= masks
        if len(start) > 1:
            tags ^= start
        found = np.empty((count, 2), np.uint64)
        for at, cipher in enumerate(text.view(np.uint8).reshape(blocks, count, 16)):
            reach = len(spans)
            for byte in range(16):
                while reach and spans[reach - 1].length <= 16 * at + byte:
                    reach -= 1  # these rows end before this byte
                if reach:
                    rows = slice(0, spans[reach - 1].stop)
                    look_up(self._tables[blocks + 1 - at][byte], cipher[rows, byte], found[rows])
                    tags[rows] ^= found[rows]
        return tags

    def _stream(self, text: Blocks, ivs: Blocks, digests: Blocks) -> Blocks:
        """E(K, J0) and the key stream of each block (section 7.1, steps 2 and 3): uint64[1 + k, n, 2]."""
        self._powers(len(text) + digests.shape[1])
        ivs.view(">u4")[:, 3] = 1
        return self._aes.stream(ivs, 1 + len(text))

    def seal(self, text: Blocks, spans: list[Span], ivs: Blocks, digests: Blocks, /) -> Blocks:
        """See `Mode`; SP 800-38D section 7.1."""
        stream = self._stream(text, ivs, digests)
        text ^= stream[1:]
        return self._tags(text, spans, digests, stream[0])

    def open(self, text: Blocks, spans: list[Span], ivs: Blocks, digests: Blocks, tags: Blocks, /) -> Bools:
        """See `Mode`; SP 800-38D section 7.2."""
        stream = self._stream(text, ivs, digests)
        wrong = self._tags(text, spans, digests, stream[0]) ^ tags
        text ^= stream[1:]
        return np.equal(wrong[:, 0] | wrong[:, 1], 0)

    def wrap(self, associated: bytes | memoryview) -> Any:
        """See `Mode`."""
        return associated or None

    def one_shot(self, sealing: bool, *columns: Iterable[Any]) -> Iterator[Any]:
        """See `Mode`."""
        name = ("encrypt" if sealing else "decrypt") + ("_into" if len(columns) > 3 else "")
        return map(getattr(self._cipher, name), *columns)


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
    sealed, _ = run(Gcm(key), True, cells, associated, prefix, ivs)
    if sealed is None:
        raise ValueError("sealing cannot fail")  # only opening reports rows
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
    return run(Gcm(key), False, cells, associated)
