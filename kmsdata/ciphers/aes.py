"""What GCM and SIV share: AES-256 over many blocks at once, and the way of a column of cells through a mode.

A sealed cell is ``lead ‖ text ‖ tag`` (GCM) or ``lead ‖ tag ‖ text`` (SIV): the lead is 5 bytes of prefix
and, in GCM, the IV; the tag has 16 bytes; the text is as long as the plaintext. `run` takes a column in
batches of rows. Cells of equally many AES blocks, if numerous enough, go in lock-step: a tile of them is
gathered into blocks, goes through the mode's kernel, and is scattered to its places. All others go through
the one-shot cipher. Which way a cell goes depends on the lengths in its batch and on nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, repeat
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kmsdata.cells import Bools, Bytes, Cells, Ints

__all__ = [
    "PREFIX",
    "Aes",
    "Blocks",
    "Column",
    "Mode",
    "Span",
    "field",
    "keystream",
    "masked",
    "run",
    "spread",
]

PREFIX, TAG = 5, 16
FEW = 1 << 17  # bytes up to which cells too few for lock-step are all copied: numpy's calls would cost more
BATCH = 1 << 16  # rows: few enough that gather and scatter find their memory in cache
TILE = 1 << 13, 1 << 15  # rows, and blocks, in lock-step: many for numpy, few for the cache of one core
RUN = 300_000  # bytes that are copied to go through the one-shot cipher: many for numpy, few for the cache
LONG = 800  # bytes of text from which on it is cheaper to point at them than to copy them
IN_PLACE = hasattr(AESGCM, "encrypt_into")  # cryptography 47

Blocks: TypeAlias = npt.NDArray[np.uint64]  # [..., 2]: blocks of 16 bytes as they lie in memory
Rows: TypeAlias = Ints | slice
Voids: TypeAlias = npt.NDArray[np.void]  # byte strings of one length as elements


class Column(NamedTuple):
    """Some rows of bytes: ``data`` uint8[B], and int64[n] each, where they begin and how long they are."""

    data: Bytes
    starts: Ints
    lengths: Ints

    @classmethod
    def of(cls, cells: Cells, start: int, stop: int) -> Column:
        """Some of the rows of cells that are not null."""
        if cells.offsets is not None:
            bounds = cells.offsets[start : stop + 1]
            return cls(cells.data, bounds[:-1], bounds[1:] - bounds[:-1])
        width = cells.width or 0
        return cls(cells.data, np.arange(start, stop) * width, np.full(stop - start, width))

    def pick(self, rows: Rows) -> Column:
        """Some of these rows."""
        return Column(self.data, self.starts[rows], self.lengths[rows])

    def padded(self) -> Column:
        """A copy of what lies between the first row and the last, which are in order, and 16 bytes more."""
        first, last = int(self.starts[0]), int(self.starts[-1] + self.lengths[-1])
        data = np.concatenate([self.data[first:last], np.zeros(16, np.uint8)])
        return Column(data, self.starts - first, self.lengths)

    def views(self) -> list[memoryview]:
        """Each row where it stands, to read from or to write to."""
        data, stops = self.data.data, (self.starts + self.lengths).tolist()
        return [data[start:stop] for start, stop in zip(self.starts.tolist(), stops, strict=True)]


class Span(NamedTuple):
    """Rows ``start`` to ``stop`` of a tile, all of one length. Lengths fall from span to span."""

    start: int
    stop: int
    length: int


class Tile(NamedTuple):
    """Rows of a batch in lock-step, longest first, of so many AES blocks each (the last may be partial)."""

    rows: Rows
    blocks: int
    spans: list[Span]


class Mode(Protocol):
    """A mode of AES under one key: a kernel for tiles, and the one-shot cipher with the same output.

    In the kernel, text is uint64[k, n, 2], block by block, changed in place; behind the end of a text its
    last block holds anything. ``ivs`` is uint64[n, 2], the IV in 12 bytes and 4 for the kernel to use.

    Attributes:
        iv: bytes of IV in a sealed cell, 12 or 0.
        tag_first: whether the tag stands before the text.
        longest: texts of more bytes never go in lock-step.
        least: rows from which lock-step pays: so many, more for each block, and for each length.
    """

    iv: int
    tag_first: bool
    longest: int
    least: tuple[int, int, int]

    def digests(self, associated: bytes | Column) -> Blocks | None:
        """uint64[1 or n, ...], what the kernel needs of associated data; None if only one-shot will do."""

    def seal(self, text: Blocks, spans: list[Span], ivs: Blocks, digests: Blocks, /) -> Blocks:
        """Encrypt; returns the tags, uint64[n, 2]."""

    def open(self, text: Blocks, spans: list[Span], ivs: Blocks, digests: Blocks, tags: Blocks, /) -> Bools:
        """Decrypt; returns bool[n], which rows are authentic. The text means nothing unless all are."""

    def wrap(self, associated: bytes | memoryview) -> Any:
        """Associated data as `one_shot` takes it."""

    def one_shot(self, sealing: bool, *columns: Iterable[Any]) -> Iterator[Any]:
        """Text and tag of each row's IV, text, associated data (and where to write); may raise InvalidTag."""


class Aes:
    """AES-256 of many blocks in one call (ECB, NIST SP 800-38A section 6.1), to build modes of."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @cached_property  # small columns never need it
    def _encryptor(self) -> CipherContext:
        return Cipher(algorithms.AES256(self._key), modes.ECB()).encryptor()  # noqa: S305 - of single blocks

    def encrypt(self, blocks: Blocks) -> Blocks:
        """Each block encrypted: uint64[..., 2], C-contiguous, to a new array of that shape."""
        out = np.empty(blocks.nbytes + 15, np.uint8)  # update_into asks for 15 bytes that it does not use
        self._encryptor.update_into(blocks.reshape(-1).view(np.uint8).data, out.data)
        return out[:-15].view(np.uint64).reshape(blocks.shape)

    def stream(self, first: Blocks, count: int) -> Blocks:
        """CTR, E(first), E(inc32(first)), ... (SP 800-38D section 6.5): uint64[count, n, 2] of [n, 2]."""
        blocks = np.empty((count, *first.shape), np.uint64)
        blocks[:] = first
        last = first.view(">u4")[:, 3].astype(np.uint32)
        blocks.view(">u4")[:, :, 3] = last + np.arange(count, dtype=np.uint32)[:, None]
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
    """Some bytes of each block, writable: V{width}[n] of uint64[n, 2]."""
    return np.ndarray((len(blocks),), f"V{width}", blocks, skip, (16,))


def spread(block: Blocks, count: int) -> Blocks:
    """uint64[count, 2] of uint64[1, 2], unless it has that shape: numpy adds one pair to many slowly."""
    if len(block) == count:
        return block
    out = np.empty((count, 2), np.uint64)
    field(out, 16)[:] = field(block, 16)
    return out


def masked(rows: Column, starts: Ints, lengths: Ints) -> Blocks:
    """A block of each row, uint64[n, 2]: bytes from ``starts`` on, zeros from ``lengths`` (any sign) on.

    The rows are `padded`. What they hold does not matter to where memory is read.
    """
    ends = (np.arange(16) < np.arange(17)[:, None]).astype(np.uint8) * np.uint8(255)
    found: Blocks = _window(rows.data, 16)[starts.clip(0, len(rows.data) - 16)].view(np.uint64).reshape(-1, 2)
    found &= ends.view(np.uint64)[lengths.clip(0, 16)]
    return found


def tiles(lengths: Ints, longest: int, least: tuple[int, int, int]) -> tuple[list[Tile], Ints]:
    """Sort the rows of a batch into tiles, by their lengths int64[n]; see `Mode` for longest and least.

    Returns:
        The tiles; and, if there are any, the rows in none of them, ascending: int64[r].
    """
    if len(lengths) < least[0]:
        return [], np.arange(0)
    clipped = np.minimum(lengths, longest + 1)
    counts = np.bincount(clipped, minlength=longest + 2)[: longest + 1]
    shortest = np.array([0, *range(1, longest + 1, 16)])  # of the lengths of 0, 1, 2, ... blocks
    rows, kinds = np.add.reduceat(counts, shortest), np.add.reduceat(counts > 0, shortest, dtype=np.int64)
    pays = (rows > 0) & (2 * rows >= least[1] * np.arange(1, len(rows) + 1) + 2 * least[2] * kinds)
    others = len(lengths) - rows[pays].sum()
    cost = least[0] + least[1] * np.flatnonzero(pays).max(initial=0) + least[2] * kinds[pays].sum()
    if len(lengths) - others < cost + others // 2:  # rows left over cost more than all do one by one
        return [], np.arange(0)
    alike = kinds.sum() == 1 and rows.sum() == len(lengths)  # then the rows are in order as they stand
    rank = np.full(longest + 2, longest + 1, np.uint16)
    chosen = np.flatnonzero(np.repeat(pays, np.diff(shortest, append=longest + 1)))
    rank[chosen] = longest - chosen
    order = np.arange(len(lengths)) if alike else np.argsort(rank[clipped], kind="stable")
    found: list[Tile] = []
    at = 0
    for blocks in np.flatnonzero(pays)[::-1].tolist():
        kind = [n for n in range(min(16 * blocks, longest), max(16 * blocks - 16, -1), -1) if counts[n]]
        edges = list(zip(pairwise((at + np.cumsum([0, *counts[kind]])).tolist()), kind, strict=True))
        end, size = at + int(rows[blocks]), min(TILE[0], TILE[1] // (blocks + 1))
        for start, stop in pairwise([*range(at, end, size), end]):
            spans = [
                Span(max(a, start) - start, min(b, stop) - start, n)
                for (a, b), n in edges
                if a < stop and b > start
            ]
            found.append(Tile(slice(start, stop) if alike else order[start:stop], blocks, spans))
        at = end
    return found, order[at:]


def _window(data: Bytes, width: int) -> Voids:
    """Every run of ``width`` bytes as an element, without copying: V{width}[B - width + 1] of uint8[B]."""
    return np.ndarray((len(data) - width + 1,), f"V{width}", data, 0, (1,))


def _places(starts: Ints) -> Rows:
    """Where rows begin, as an index into a window: a slice if they are equidistant, which is faster."""
    steps = starts[1:] - starts[:-1]
    if len(steps) and steps[0] > 0 and (steps == steps[0]).all():
        return slice(int(starts[0]), int(starts[-1]) + 1, int(steps[0]))
    return starts


def _part(places: Rows, span: Span) -> Rows:
    """The places of a span."""
    if isinstance(places, slice):
        first, step = places.start, places.step
        return slice(first + span.start * step, first + (span.stop - 1) * step + 1, step)
    return places[span.start : span.stop]


def _drain(shots: Iterator[Any]) -> tuple[list[Any], list[int]]:
    """All results, b"" for those that raised InvalidTag, and the numbers of these."""
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
    """Rows on their way: ``plain`` and ``sealed`` are the same n rows, on one side yet to be written.

    ``prefix`` as in `run`, ``ivs`` V12[n] if IVs are yet to be written, ``associated`` one for all or n rows.
    """

    mode: Mode
    sealing: bool
    plain: Column
    sealed: Column
    prefix: bytes
    ivs: Voids | None
    associated: bytes | Column

    def work(self) -> Iterator[Ints]:
        """Seal or open all rows; yields those that are not authentic."""
        over = PREFIX + self.mode.iv + TAG
        if not self.sealing and self.sealed.lengths.min() < over:  # whose text would have less than 0 bytes
            yield from self.joined()
            return
        found, others = tiles(self.plain.lengths, self.mode.longest, self.mode.least)
        digests = self.mode.digests(self.associated) if found else None
        if digests is not None:
            for tile in found:
                yield self.lock_step(tile, digests if len(digests) == 1 else digests[tile.rows])
            if len(others):
                yield self.pointed(others)
        elif self.plain.lengths.sum() > LONG * len(self.plain.lengths):
            yield self.pointed(slice(None))
        else:
            yield from self.joined()

    def _parts(self, span: Span, sealed: bool, *parts: Blocks) -> Iterator[tuple[int, Voids]]:
        """What cells of a span consist of, plain or sealed: offsets, and what stands there, writable."""
        text, ivs, tags = parts
        rows, skip = slice(span.start, span.stop), 0
        if sealed:
            skip = PREFIX + self.mode.iv
            if self.mode.iv:
                yield PREFIX, field(ivs, self.mode.iv)[rows]
            yield skip + (0 if self.mode.tag_first else span.length), field(tags, TAG)[rows]
            skip += TAG if self.mode.tag_first else 0
        for at in range(0, span.length, 16):
            yield skip + at, field(text[at // 16], min(16, span.length - at))[rows]

    def lock_step(self, tile: Tile, digests: Blocks) -> Ints:
        """Seal or open a tile; returns rows that are not authentic, and writes nothing if there are any."""
        mode, count, over = self.mode, tile.spans[-1].stop, PREFIX + self.mode.iv + TAG
        source, target = (self.plain, self.sealed) if self.sealing else (self.sealed, self.plain)
        text = np.empty((tile.blocks, count, 2), np.uint64)
        ivs, tags = np.empty((count, 2), np.uint64), np.empty((count, 2), np.uint64)
        places = _places(source.starts[tile.rows])
        for span in tile.spans:
            if width := span.length + (0 if self.sealing else over):
                cells = _window(source.data, width)[_part(places, span)]
                for offset, part in self._parts(span, not self.sealing, text, ivs, tags):
                    part[:] = cells.getfield(part.dtype, offset)
        if self.sealing:
            if self.ivs is not None:
                field(ivs, mode.iv)[:] = self.ivs[tile.rows]
            tags = mode.seal(text, tile.spans, ivs, digests)
        elif not (authentic := mode.open(text, tile.spans, ivs, digests, tags)).all():
            return np.arange(len(source.starts))[tile.rows][~authentic]
        places = _places(target.starts[tile.rows])
        for span in tile.spans:
            if width := span.length + (over if self.sealing else 0):
                window, where = _window(target.data, width), _part(places, span)
                cells = window[where] if isinstance(where, slice) else np.empty(len(where), window.dtype)
                if self.sealing:
                    cells.setfield(np.array(self.prefix, f"V{PREFIX}"), f"V{PREFIX}", 0)
                for offset, part in self._parts(span, self.sealing, text, ivs, tags):
                    cells.setfield(part, part.dtype, offset)
                if not isinstance(where, slice):
                    window[where] = cells
        return np.empty(0, np.int64)

    def extras(self, rows: Rows) -> Iterator[Any]:
        """Associated data of rows, as the one-shot cipher takes it."""
        if isinstance(self.associated, bytes):
            return repeat(self.mode.wrap(self.associated))
        return map(self.mode.wrap, self.associated.pick(rows).views())

    def pointed(self, rows: Rows) -> Ints:
        """Seal or open rows one by one, where they stand; returns those that are not authentic."""
        mode, lead = self.mode, PREFIX + self.mode.iv
        plain, sealed = self.plain.pick(rows), self.sealed.pick(rows)
        body = Column(sealed.data, sealed.starts + lead, sealed.lengths - lead)
        source, target = (plain, body) if self.sealing else (body, plain)
        if self.sealing:
            cells = np.empty(len(plain.starts), f"V{lead}")
            cells.setfield(np.array(self.prefix, f"V{PREFIX}"), f"V{PREFIX}", 0)
            if self.ivs is not None:
                cells.setfield(self.ivs[rows], self.ivs.dtype, PREFIX)
            _window(sealed.data, lead)[_places(sealed.starts)] = cells
        ivs = _window(sealed.data, lead)[_places(sealed.starts)].getfield(f"V{mode.iv}", PREFIX).tolist()
        outs = target.views()
        if IN_PLACE:
            _, failed = _drain(mode.one_shot(self.sealing, ivs, source.views(), self.extras(rows), outs))
        else:
            shots = mode.one_shot(self.sealing, ivs, source.views(), self.extras(rows))
            _, failed = _drain(map(memoryview.__setitem__, outs, repeat(slice(None)), shots))
        return np.arange(len(self.plain.starts))[rows][failed]

    def joined(self) -> Iterator[Ints]:
        """Seal or open all rows one by one, copied in runs; yields those that are not authentic."""
        source, target = (self.plain, self.sealed) if self.sealing else (self.sealed, self.plain)
        ends, start, count = source.starts + source.lengths, 0, len(source.starts)
        width = int(source.lengths[0]) if (source.lengths == source.lengths[0]).all() else 0
        while start < count:
            stop = int(np.searchsorted(ends, source.starts[start] + RUN, "right"))
            if stop <= start:  # a text that is so long
                yield self.pointed(np.array([start]))
                start += 1
                continue
            here, first = slice(start, stop), int(source.starts[start])
            raw = source.data[first : ends[stop - 1]].tobytes()
            bounds = [*(source.starts[here] - first).tolist(), len(raw)]
            ivs, extras = None if self.ivs is None else self.ivs[here], self.extras(here)
            done, failed = _join(self.mode, self.sealing, raw, bounds, width, ivs, extras, self.prefix)
            if not failed:
                target.data[target.starts[start] :][: len(done)] = np.frombuffer(done, np.uint8)
            yield np.arange(start, stop)[failed]
            start = stop


def _join(
    mode: Mode,
    sealing: bool,
    raw: bytes,
    bounds: list[int],
    width: int,
    ivs: Voids | None,
    extras: Iterable[Any],
    prefix: bytes,
) -> tuple[bytearray, list[int]]:
    """Seal or open cells end to end, of one width or in bounds; returns new bytes, and which failed."""
    skip = 0 if sealing else PREFIX + mode.iv
    if width > skip:
        cells = np.frombuffer(raw, f"V{width}")
        texts = cells.getfield(f"V{width - skip}", skip).tolist()
    else:
        texts = [raw[a + skip : b] for a, b in pairwise(bounds)]
    if ivs is not None:
        heads = ivs.tolist()
    elif not sealing and mode.iv and width > skip:
        heads = cells.getfield(f"V{mode.iv}", PREFIX).tolist()
    else:
        raw += bytes(skip)  # for a cell that is too short to hold an IV; having no tag, it fails with any
        heads = [raw[a + PREFIX : a + skip] for a in bounds[:-1]]
    done, failed = _drain(mode.one_shot(sealing, heads, texts, extras))
    parts = done
    if sealing:
        parts = [prefix] * (3 * len(done))
        parts[1::3], parts[2::3] = heads, done
    return bytearray().join(parts), failed


def run(
    mode: Mode,
    sealing: bool,
    cells: Cells,
    associated: bytes | Cells,
    prefix: bytes = b"",
    ivs: Bytes | None = None,
) -> tuple[Cells | None, Ints]:
    """Seal or open a column.

    Args:
        mode: the mode under its key.
        sealing: which of the two.
        cells: m cells that are not null.
        associated: associated data, one for the column or m cells of it.
        prefix: 5 bytes that begin each sealed cell, when sealing.
        ivs: uint8[m, 12], when sealing with a mode that has IVs.

    Returns:
        The new cells and int64[0]; or None and int64[k], the rows that are too short or not authentic.

    Raises:
        ValueError: associated data that does not fit the cells.
    """
    count, change = cells.count, (PREFIX + mode.iv + TAG) * (1 if sealing else -1)
    if not isinstance(associated, bytes) and (associated.valid is not None or associated.count != count):
        raise ValueError("associated data per row: one for each cell that is not null")
    width, offsets = None if cells.width is None else cells.width + change, None
    if width is not None and width < 0:
        return None, np.arange(count)
    if not width:
        width, offsets = None, np.zeros(count + 1, np.int64)
        if cells.offsets is not None:  # step by step and in place: a column of offsets is no small temporary
            np.subtract(cells.offsets[1:], cells.offsets[:-1], out=offsets[1:])
            offsets[1:] += change
            np.cumsum(np.maximum(offsets, 0, out=offsets), out=offsets)
    heads = None if ivs is None else np.ascontiguousarray(ivs).view("V12").ravel()
    bad: list[Ints] = []
    if count < mode.least[0] and len(cells.data) <= FEW:
        own = [] if isinstance(associated, bytes) else [mode.wrap(row or b"") for row in associated.rows()]
        extras = repeat(mode.wrap(associated)) if isinstance(associated, bytes) else own
        whole, bounds, w = cells.data.tobytes(), cells.bounds().tolist(), cells.width or 0
        raw, failed = _join(mode, sealing, whole, bounds, w, heads, extras, prefix)
        data, bad = np.frombuffer(raw, np.uint8), [np.array(failed, np.int64)] if failed else []
        count = 0  # that are left
    else:
        data = np.empty(count * (width or 0) if offsets is None else int(offsets[-1]), np.uint8)
    done = Cells(data, offsets, width, cells.valid)
    for start in range(0, count, BATCH):
        stop = min(start + BATCH, count)
        source, target = Column.of(cells, start, stop), Column.of(done, start, stop)
        plain, sealed = (source, target) if sealing else (target, source)
        iv = None if heads is None else heads[start:stop]
        extra = associated if isinstance(associated, bytes) else Column.of(associated, start, stop)
        bad += [start + rows for rows in _Batch(mode, sealing, plain, sealed, prefix, iv, extra).work()]
    if any(map(len, bad)):
        data.fill(0)  # what was opened before the first failure
        return None, np.sort(np.concatenate(bad))
    return done, np.empty(0, np.int64)
