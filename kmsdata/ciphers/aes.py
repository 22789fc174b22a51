"""What GCM and SIV share: AES-256 over many blocks at once, and the way of a column of cells through a mode.

A sealed cell is ``lead ‖ text ‖ tag`` (GCM) or ``lead ‖ tag ‖ text`` (SIV). The lead is 5 bytes of prefix and the IV, if
the mode has one; the tag has 16 bytes; the text is as long as the plaintext. A column goes through `run` in batches of
rows. Those cells of a batch that have equally many AES blocks, and are numerous enough, go in lock-step: a tile of them
is gathered into blocks, goes through the mode's kernel, and is scattered to its places. All others go through the
one-shot cipher. Which way a cell goes depends on the lengths in its batch and on nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise, repeat
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kmsdata.cells import Bools, Bytes, Cells, Ints

__all__ = [
    "PREFIX",
    "Aes",
    "Blocks",
    "Column",
    "Mode",
    "Span",
    "column",
    "counters",
    "keystream",
    "masked",
    "run",
    "spread",
]

PREFIX, TAG = 5, 16
BATCH = 1 << 16  # rows of a batch: few enough that gather and scatter find their memory in cache
TILE = 1 << 13  # rows in lock-step: enough to make numpy's calls cheap, few enough for the cache of one core
MOST = 1 << 16  # AES blocks in lock-step: 1 MB
RUN = 1 << 9  # rows that the one-shot cipher takes in one go
LONG = 1 << 12  # from so many bytes on, pointing at a text is cheaper than copying it
IN_PLACE = hasattr(AESGCM, "encrypt_into")  # cryptography 47 and later

Blocks: TypeAlias = npt.NDArray[np.uint64]  # [..., 2]: blocks of 16 bytes as they lie in memory
Rows: TypeAlias = Ints | slice
Voids: TypeAlias = npt.NDArray[np.void]  # byte strings of one length, as elements


class Column(NamedTuple):
    """Some rows of bytes: ``data`` uint8[B], and int64[n] each, where they begin and how long they are."""

    data: Bytes
    starts: Ints
    lengths: Ints

    @classmethod
    def of(cls, cells: Cells, rows: slice) -> Column:
        """Some rows of cells."""
        if cells.offsets is not None:
            bounds = cells.offsets[rows.start : rows.stop + 1]
            return cls(cells.data, bounds[:-1], np.diff(bounds))
        numbers, width = np.arange(rows.start, rows.stop), np.int64(cells.width or 0)
        return cls(cells.data, numbers * width, np.full(len(numbers), width))

    def pick(self, rows: Rows) -> Column:
        """Some of these rows."""
        return Column(self.data, self.starts[rows], self.lengths[rows])

    def padded(self) -> tuple[Bytes, Ints]:
        """The bytes from the first row to the last, which are in order, and 16 more; and where rows begin in them."""
        first, last = int(self.starts[0]), int(self.starts[-1] + self.lengths[-1])
        return np.concatenate([self.data[first:last], np.zeros(16, np.uint8)]), self.starts - first

    def views(self) -> list[memoryview]:
        """Each row where it stands; to read from or to write to."""
        pairs = zip(self.starts.tolist(), (self.starts + self.lengths).tolist(), strict=True)
        return [self.data.data[start:stop] for start, stop in pairs]

    def copies(self) -> list[bytes]:
        """Each row as bytes. The rows are in order, and not far apart."""
        width = int(self.lengths[0])
        if width and (self.lengths == width).all():
            return _window(self.data, width)[_places(self.starts)].tolist()  # type: ignore[no-any-return]
        first, last = int(self.starts[0]), int(self.starts[-1] + self.lengths[-1])
        raw, starts = self.data[first:last].tobytes(), self.starts - first
        return [raw[a:b] for a, b in zip(starts.tolist(), (starts + self.lengths).tolist(), strict=True)]


class Span(NamedTuple):
    """Rows ``start`` to ``stop`` of a tile, all of the same length. Lengths fall from span to span."""

    start: int
    stop: int
    length: int


class Tile(NamedTuple):
    """Rows of a batch that go in lock-step, the longest first, of ``blocks`` AES blocks each (the last one partial)."""

    rows: Rows
    blocks: int
    spans: list[Span]


class Mode(Protocol):
    """A mode of AES under one key: a kernel for cells in lock-step and a one-shot cipher with the same output.

    In the kernel, text is uint64[k, n, 2], block by block, changed in place; what lies behind a text in its last block
    is arbitrary, before and after. ``ivs`` is uint64[n, 2], each IV in its first 12 bytes, and may be overwritten.

    Attributes:
        iv: bytes of IV in a sealed cell, 12 or 0.
        tag_first: whether the tag stands before the text.
        longest: texts of more bytes never go in lock-step.
        least: how many rows make lock-step pay: so many, so many more for each block, so many more for each length.
    """

    iv: int
    tag_first: bool
    longest: int
    least: tuple[int, int, int]

    def digests(self, associated: bytes | Column) -> Blocks | None:
        """uint64[1 or n, ..., 2], what the kernel needs of associated data; None if only the one-shot cipher will do."""

    def seal(self, text: Blocks, spans: list[Span], ivs: Blocks, digests: Blocks) -> Blocks:
        """Encrypt; returns the tags, uint64[n, 2]."""

    def open(self, text: Blocks, spans: list[Span], ivs: Blocks, digests: Blocks, tags: Blocks) -> Bools:
        """Decrypt; returns bool[n], which rows are authentic. The text means nothing unless all are."""

    def one_shot(
        self,
        sealing: bool,
        ivs: Iterable[bytes],
        texts: Iterable[Any],
        extras: Iterable[Any],
        outs: Any = None,
    ) -> Iterator[Any]:
        """Seal or open texts (tags included) one after the other, into ``outs`` if given; may raise InvalidTag at each."""


class Aes:
    """AES-256 of many independent blocks in one call (ECB, NIST SP 800-38A section 6.1): the building material."""

    def __init__(self, key: bytes) -> None:
        self._encryptor = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()

    def encrypt(self, blocks: Blocks) -> Blocks:
        """Each block encrypted; blocks uint64[..., 2], C-contiguous; returns a new array of that shape."""
        out = np.empty(blocks.nbytes + 15, np.uint8)  # update_into asks for 15 bytes that it does not use
        self._encryptor.update_into(blocks.reshape(-1).view(np.uint8), out)
        return out[: blocks.nbytes].view(np.uint64).reshape(blocks.shape)


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
    out, zeros = np.empty(size + 15, np.uint8), bytes(min(size, 1 << 16))
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    for start in range(0, size, 1 << 16):
        encryptor.update_into(zeros[: size - start], out[start:])
    return out[:size]


def counters(first: Blocks, count: int) -> Blocks:
    """Counter blocks of CTR mode: uint64[count, n, 2] from uint64[n, 2], inc32 (NIST SP 800-38D section 6.2)."""
    out = np.empty((count, *first.shape), np.uint64)
    last = first.view(">u4")[:, 3]
    for step in range(count):
        out[step] = first
        out[step].view(">u4")[:, 3] = last + np.uint32(step)
    return out


def column(blocks: Blocks, width: int, skip: int = 0) -> Voids:
    """Some bytes of each block, writable: V{width}[n] of uint64[n, 2]."""
    return np.ndarray((len(blocks),), f"V{width}", blocks, skip, (16,))


def spread(block: Blocks, count: int) -> Blocks:
    """uint64[count, 2] of uint64[1, 2], or what has that shape already. (numpy adds pairs to pairs slowly.)"""
    if len(block) == count:
        return block
    out = np.empty((count, 2), np.uint64)
    column(out, 16)[:] = column(block, 16)
    return out


def masked(data: Bytes, starts: Ints, lengths: Ints) -> Blocks:
    """One block of each row: uint64[n, 2], up to 16 bytes from ``starts`` on, zero behind ``lengths`` (which may be < 0).

    ``data`` ends with 16 bytes that belong to no row. Only lengths are used as an index.
    """
    masks = (np.arange(16) < np.arange(17)[:, None]) * np.uint8(255)
    block = np.ndarray((len(data) - 15,), "V16", data, 0, (1,))[starts.clip(0, len(data) - 16)]
    return block.view(np.uint64).reshape(-1, 2) & masks.view(np.uint64)[lengths.clip(0, 16)]


def tiles(lengths: Ints, longest: int, least: tuple[int, int, int]) -> tuple[list[Tile], Ints]:
    """Sort the rows of a batch into tiles.

    Args:
        lengths: int64[n].
        longest: no longer rows.
        least: see `Mode`.

    Returns:
        The tiles, and int64[r], ascending: the rows in none of them.
    """
    count = len(lengths)
    if count < least[0]:
        return [], np.arange(count)
    counts = np.bincount(np.minimum(lengths, longest + 1), minlength=longest + 2)[: longest + 1]
    shortest = np.array(
        [0, *range(1, longest + 1, 16)]
    )  # of each number of blocks: 0, 1 to 16, 17 to 32, ...
    rows, kinds = np.add.reduceat(counts, shortest), np.add.reduceat(counts > 0, shortest, dtype=np.int64)
    pay = (rows > 0) & (rows >= least[0] + least[1] * np.arange(len(rows)) + least[2] * kinds)
    if pay.any() and kinds.sum() == 1 and rows.sum() == count:
        order = None  # all rows have one length: they are in order as they stand
    else:
        chosen = np.flatnonzero(np.repeat(pay, np.diff(shortest, append=longest + 1)))
        rank = np.full(longest + 2, longest + 1, np.uint16)
        rank[chosen] = longest - chosen
        order = np.argsort(rank[np.minimum(lengths, longest + 1)], kind="stable")
    found: list[Tile] = []
    at = 0
    for blocks in np.flatnonzero(pay)[::-1].tolist():
        here = [n for n in range(16 * blocks, max(16 * blocks - 16, -1), -1) if n <= longest and counts[n]]
        edges = (at + np.cumsum([0, *counts[here]])).tolist()
        for start in range(at, edges[-1], size := min(TILE, MOST // (blocks + 1))):
            stop = min(start + size, edges[-1])
            spans = [
                Span(max(a, start) - start, min(b, stop) - start, length)
                for (a, b), length in zip(pairwise(edges), here, strict=True)
                if a < stop and b > start
            ]
            found.append(Tile(slice(start, stop) if order is None else order[start:stop], blocks, spans))
        at = edges[-1]
    return found, np.arange(0) if order is None else order[at:]


def _window(data: Bytes, width: int) -> Voids:
    """Every run of ``width`` bytes as an element, without copying: V{width}[B - width + 1] of uint8[B]."""
    return np.ndarray((len(data) - width + 1,), f"V{width}", data, 0, (1,))


def _places(starts: Ints) -> Rows:
    """Where rows begin, as an index into a window: a slice if they are equidistant, which is faster."""
    steps = np.diff(starts)
    if len(steps) and steps[0] > 0 and (steps == steps[0]).all():
        return slice(int(starts[0]), int(starts[-1]) + 1, int(steps[0]))
    return starts


def _part(places: Rows, span: Span) -> Rows:
    """The places of a span."""
    if not isinstance(places, slice):
        return places[span.start : span.stop]
    return slice(
        places.start + span.start * places.step, places.start + (span.stop - 1) * places.step + 1, places.step
    )


def _drain(shots: Iterator[Any]) -> tuple[list[Any], list[int]]:
    """All results, b"" in place of those that raised InvalidTag, and the numbers of these."""
    done: list[Any] = []
    failed: list[int] = []
    while True:
        try:
            done.extend(shots)
        except InvalidTag:
            failed.append(len(done))
            done.append(b"")
        else:
            return done, failed


@dataclass(slots=True, repr=False)
class _Batch:
    """Rows on their way: ``plain`` and ``sealed`` are the same n rows on both sides, one of which is yet to be written.

    ``prefix`` is V5[], ``ivs`` V12[n] if they are to be written, ``associated`` as in `run` but n rows of it.
    """

    mode: Mode
    sealing: bool
    plain: Column
    sealed: Column
    prefix: Voids
    ivs: Voids | None
    associated: bytes | Column

    def work(self) -> list[int]:
        """Seal or open all rows; returns those that are not authentic."""
        found, others = tiles(self.plain.lengths, self.mode.longest, self.mode.least)
        digests = self.mode.digests(self.associated) if found else None
        if digests is None:
            found, others = [], np.arange(len(self.plain.lengths))
        bad = (
            self.one_by_one(others) if len(others) else []
        )  # first: it may write over places between its rows
        for tile in found:
            bad += self.lock_step(tile, digests)
        return bad

    def _parts(
        self, span: Span, sealed: bool, text: Blocks, ivs: Blocks, tags: Blocks
    ) -> Iterator[tuple[int, Voids]]:
        """What a plain or sealed cell is made of: offsets in it, and what stands there in the rows of a span, writable."""
        rows, skip = slice(span.start, span.stop), 0
        if sealed:
            skip = PREFIX + self.mode.iv
            if self.mode.iv:
                yield PREFIX, column(ivs, self.mode.iv)[rows]
            yield skip + (0 if self.mode.tag_first else span.length), column(tags, TAG)[rows]
            skip += TAG if self.mode.tag_first else 0
        for at in range(0, span.length, 16):
            yield skip + at, column(text[at // 16], min(16, span.length - at))[rows]

    def lock_step(self, tile: Tile, digests: Blocks) -> list[int]:
        """Seal or open a tile; returns the rows that are not authentic, and writes nothing if there are any."""
        mode, sealing, count = self.mode, self.sealing, tile.spans[-1].stop
        source, target = (self.plain, self.sealed) if sealing else (self.sealed, self.plain)
        over = PREFIX + mode.iv + TAG
        text = np.empty((tile.blocks, count, 2), np.uint64)
        ivs, tags = np.empty((count, 2), np.uint64), np.empty((count, 2), np.uint64)
        if sealing and self.ivs is not None:
            column(ivs, mode.iv)[:] = self.ivs[tile.rows]
        places = _places(source.starts[tile.rows])
        for span in tile.spans:
            if width := span.length + (0 if sealing else over):
                cells = _window(source.data, width)[_part(places, span)]
                for offset, part in self._parts(span, not sealing, text, ivs, tags):
                    part[:] = cells.getfield(part.dtype, offset)
        digests = digests if len(digests) == 1 else digests[tile.rows]
        if sealing:
            tags = mode.seal(text, tile.spans, ivs, digests)
        elif not (authentic := mode.open(text, tile.spans, ivs, digests, tags)).all():
            return np.arange(len(source.starts))[tile.rows][~authentic].tolist()  # type: ignore[no-any-return]
        places = _places(target.starts[tile.rows])
        for span in tile.spans:
            if width := span.length + (over if sealing else 0):
                window, where = _window(target.data, width), _part(places, span)
                cells = window[where] if isinstance(where, slice) else np.empty(len(where), window.dtype)
                if sealing:
                    cells.setfield(self.prefix, self.prefix.dtype, 0)
                for offset, part in self._parts(span, sealing, text, ivs, tags):
                    cells.setfield(part, part.dtype, offset)
                if not isinstance(where, slice):
                    window[where] = cells
        return []

    def one_by_one(self, rows: Ints) -> list[int]:
        """Seal or open rows, ascending, with the one-shot cipher; returns those that are not authentic."""
        lead = PREFIX + self.mode.iv
        plain, sealed = self.plain.pick(rows), self.sealed.pick(rows)
        body = Column(sealed.data, sealed.starts + lead, sealed.lengths - lead)
        source, target = (plain, body) if self.sealing else (body, plain)
        stops = target.starts + target.lengths
        # A run ends at a text too long to be copied, and where copying what lies between two rows would take long.
        far = (
            (plain.lengths[1:] > LONG) | (plain.lengths[:-1] > LONG) | (target.starts[1:] - stops[:-1] > LONG)
        )
        far[RUN - 1 :: RUN] = True
        bad: list[int] = []
        for start, stop in pairwise([0, *(np.flatnonzero(far) + 1).tolist(), len(rows)]):
            here = slice(start, stop)
            leads = np.empty(stop - start, f"V{lead}")
            ivs: Iterable[bytes] = repeat(b"")
            if self.mode.iv:
                taken = (
                    _window(sealed.data, 12)[sealed.starts[here] + PREFIX]
                    if self.ivs is None
                    else self.ivs[rows[here]]
                )
                leads.setfield(taken, taken.dtype, PREFIX)
                ivs = taken.tolist()
            extras = (
                repeat(self.associated)
                if isinstance(self.associated, bytes)
                else self.associated.pick(rows[here]).copies()
            )
            if stop - start < 8:
                texts, outs = source.pick(here).views(), target.pick(here).views()
                _, failed = _drain(self.mode.one_shot(self.sealing, ivs, texts, extras, outs))
            else:
                done, failed = _drain(
                    self.mode.one_shot(self.sealing, ivs, source.pick(here).copies(), extras)
                )
                if not failed:
                    between = target.starts[start + 1 : stop] - stops[start : stop - 1]
                    if (between == between[0]).all():
                        joined = bytes(int(between[0])).join(done)
                    else:
                        parts = [b""] * (2 * len(done) - 1)
                        parts[::2], parts[1::2] = done, map(bytes, between.tolist())
                        joined = b"".join(parts)
                    target.data[target.starts[start] : stops[stop - 1]] = np.frombuffer(joined, np.uint8)
            if self.sealing:
                leads.setfield(self.prefix, self.prefix.dtype, 0)
                _window(sealed.data, lead)[sealed.starts[here]] = leads
            bad += rows[here][failed].tolist()
        return bad


def run(
    mode: Mode,
    sealing: bool,
    cells: Cells,
    associated: bytes | Cells,
    prefix: bytes = bytes(PREFIX),
    ivs: Bytes | None = None,
) -> tuple[Cells | None, Ints]:
    """Seal or open a column.

    Args:
        mode: the mode under its key.
        sealing: which of the two.
        cells: m cells that are not null.
        associated: associated data, one for the column or m cells of it.
        prefix: 5 bytes that begin each sealed cell.
        ivs: uint8[m, 12] when sealing with a mode that has IVs.

    Returns:
        The new cells and int64[0]; or None and int64[k], the rows that are too short or not authentic.

    Raises:
        ValueError: associated data that does not fit the cells.
    """
    count, change = cells.count, (PREFIX + mode.iv + TAG) * (1 if sealing else -1)
    if not isinstance(associated, bytes) and (associated.valid is not None or associated.count != count):
        raise ValueError("associated data per row: one for each cell that is not null")
    if cells.width is None or cells.width + change == 0:
        offsets = np.zeros(count + 1, np.int64)
        if cells.offsets is not None:  # step by step in place: a column of offsets is no small temporary
            np.subtract(cells.offsets[1:], cells.offsets[:-1], out=offsets[1:])
            offsets[1:] += change
            np.cumsum(offsets.clip(0, out=offsets), out=offsets)
        done = Cells(np.empty(int(offsets[-1]), np.uint8), offsets, valid=cells.valid)
    elif cells.width + change > 0:
        done = Cells(
            np.empty(count * (cells.width + change), np.uint8), width=cells.width + change, valid=cells.valid
        )
    else:
        return None, np.arange(count)
    heads = None if ivs is None else np.ascontiguousarray(ivs).view("V12").ravel()
    bad: list[Ints] = []
    for start in range(0, count, BATCH):
        rows = slice(start, min(start + BATCH, count))
        source, target = Column.of(cells, rows), Column.of(done, rows)
        extra = associated if isinstance(associated, bytes) else Column.of(associated, rows)
        fit = np.flatnonzero(source.lengths + change >= 0)
        if len(fit) < len(source.lengths):
            bad.append(start + np.flatnonzero(source.lengths + change < 0))
            source, target = source.pick(fit), target.pick(fit)
            extra = extra if isinstance(extra, bytes) else extra.pick(fit)
        plain, sealed = (source, target) if sealing else (target, source)
        iv = None if heads is None else heads[rows]
        found = _Batch(mode, sealing, plain, sealed, np.array(prefix, f"V{PREFIX}"), iv, extra).work()
        bad.append(start + fit[np.array(found, np.int64)])
    wrong = np.sort(np.concatenate(bad)) if bad else np.empty(0, np.int64)
    if len(wrong):
        done.data.fill(0)  # what was opened before the first failure
        return None, wrong
    return done, wrong
