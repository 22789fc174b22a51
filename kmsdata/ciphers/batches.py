"""Seal and open columns of cells in batches of rows: the part that GCM and SIV share.

A sealed (encrypted) cell is ``lead ‖ text ‖ tag`` (GCM) or ``lead ‖ tag ‖ text`` (SIV): the lead is the
5-byte prefix and, in GCM, the IV; the tag has 16 bytes; the text is as long as the plaintext. `run` processes
a column in batches of rows. If a batch has enough cells of one length, they go in lock-step: a tile is
gathered into blocks, processed by the mode's kernel, and scattered to its places. All other cells go through
the one-shot cipher. Which way a cell goes depends only on the lengths in its batch.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, Protocol, TypeAlias

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kmsdata.ciphers.aes import TILE, Blocks, Room, Voids, field
from kmsdata.ciphers.cells import Bytes, Cells, Ints

__all__ = ["PREFIX", "Column", "Mode", "run", "seal", "tiles"]

PREFIX, TAG = 5, 16
BATCH = 1 << 18  # rows: enough to have many of each length, few enough to gather and scatter quickly
RUN = 350_000  # bytes copied per pass of the one-shot cipher: many for numpy, few for the cache
LONG = 2_500  # bytes of text: longer ones are cheaper to process in place than to copy
VARIED = 100  # rows needed for each length of associated data, if it differs per row
IN_PLACE = hasattr(AESGCM, "encrypt_into")  # from cryptography 47 on
Rows: TypeAlias = Ints | slice


@dataclass(frozen=True, slots=True, eq=False, repr=False)  # its bytes may be plaintext
class Column:
    """Rows of bytes: ``data`` uint8[B], and where each row begins and how long it is, int64[n] each."""

    data: Bytes
    starts: Ints
    lengths: Ints

    @classmethod
    def of(cls, cells: Cells, start: int, stop: int) -> Column:
        """Select a range of the rows of cells that are not null."""
        if cells.offsets is not None:
            bounds = cells.offsets[start : stop + 1]
            return cls(cells.data, bounds[:-1], bounds[1:] - bounds[:-1])
        width, count = cells.width or 0, stop - start
        starts = np.arange(start, stop)
        starts *= width
        return cls(cells.data, starts, np.broadcast_to(np.int64(width), count))

    def alike(self, longest: int) -> bool:
        """Return whether no row is longer than ``longest`` and each length has many rows (on average)."""
        if self.lengths.max() > longest:
            return False
        return bool(VARIED * np.count_nonzero(np.bincount(self.lengths)) <= len(self.lengths))

    def window(self, width: int) -> Voids:
        """View every run of ``width`` bytes as an element, without copying: V{width}[B - width + 1]."""
        # Elements overlap (stride 1), so that rows can be gathered and scattered by where they begin.
        return np.ndarray((len(self.data) - width + 1,), f"V{width}", self.data, 0, (1,))

    def cells(self, rows: Rows, width: int) -> Voids:
        """Return rows of ``width`` > 0 bytes: V{width}[n], a view if the rows are a slice (so end to end)."""
        if isinstance(rows, slice):
            return self.data[self.starts[rows.start] :][: (rows.stop - rows.start) * width].view(f"V{width}")
        return self.window(width)[self.starts[rows]]

    def put(self, rows: Rows, cells: Voids) -> None:
        """Write rows, V{width}[n], to their places."""
        if isinstance(rows, slice):
            self.cells(rows, cells.dtype.itemsize)[:] = cells
        else:
            self.window(cells.dtype.itemsize)[self.starts[rows]] = cells

    def views(self, rows: Rows, skip: int = 0) -> Iterator[memoryview]:
        """Return views of rows, to read or to write, without their first ``skip`` bytes."""
        starts = self.starts[rows]
        bounds = starts + skip, starts + self.lengths[rows]
        steps = range(0, len(starts), 4096)  # Python integers for all rows at once take 80 bytes per row
        slices = (map(slice, *(bound[at : at + 4096].tolist() for bound in bounds)) for at in steps)
        return map(self.data.data.__getitem__, chain.from_iterable(slices))


class Mode(Protocol):
    """A mode of AES under one key: a kernel for tiles, and the one-shot cipher with the same output.

    Attributes:
        room: memory for the kernel's blocks.
        iv: bytes of IV in a sealed cell, 12 or 0.
        tag_first: whether the tag comes before the text.
        longest: bytes; longer texts never go in lock-step.
        least: rows of one length from which lock-step is faster: a constant, plus a number per byte of text.
        setup: cost of the first tile, in rows: a constant, plus a number per block.
    """

    room: Room
    iv: int
    tag_first: bool
    longest: int
    least: tuple[int, int]
    setup: tuple[int, int]

    def digests(self, associated: bytes | Column) -> Blocks | None:
        """Digest associated data for the kernel, per row for a column; None if the kernel cannot use it."""

    def kernel(self, sealing: bool, text: Blocks, length: int, ivs: Blocks, digests: Blocks) -> Blocks:
        """Encrypt or decrypt n texts of equal length; return their expected tags, uint64[n, 2].

        Text is uint64[n, k, 2], changed in place; the bytes after its end in the last block are arbitrary.
        ``ivs`` is uint64[n, 2]: 12 bytes of IV, and 4 that the kernel may use; or the tags, when opening
        cells of a mode without IVs.
        """

    def one_shot(
        self,
        sealing: bool,
        ivs: Iterable[bytes],
        texts: Iterable[Any],
        associated: bytes | Iterable[Any],
        *outs: Iterable[memoryview],
    ) -> Iterator[Any]:
        """Encrypt or decrypt row by row, to ``outs`` if given; decrypting may raise InvalidTag."""


def tiles(
    lengths: Ints, longest: int, least: tuple[int, int], setup: tuple[int, int]
) -> tuple[list[tuple[Rows, int]], Ints]:
    """Group the rows of a batch by their lengths, int64[n]; for the other arguments see `Mode`.

    Returns:
        Tiles, longest first, each as (rows, their length); and the rows that are in no tile, in order.
    """
    count, order = len(lengths), None
    if count < setup[0] + least[0]:
        return [], np.arange(count)
    need = np.maximum(least[0] + least[1] * np.arange(longest + 1), 1)
    clipped = np.minimum(lengths, longest + 1)
    counts = np.bincount(clipped, minlength=longest + 2)[:-1]
    pays = counts >= need
    chosen, ends = np.flatnonzero(pays).tolist(), np.cumsum(counts[pays])
    done = int(ends[-1]) if chosen else 0
    gain = 2 * done - count - need[pays].sum()  # the others become slower: they are copied in pieces
    if not chosen or gain < setup[0] + setup[1] * (chosen[-1] // 16):
        return [], np.arange(count)
    if counts[chosen[0]] < count:  # otherwise all rows have one length and need no sorting
        rank = np.where(pays, np.arange(longest + 1), longest + 1).astype(np.uint16)
        order = np.argsort(np.append(rank, np.uint16(longest + 1))[clipped], kind="stable")  # radix sort
    found: list[tuple[Rows, int]] = []
    start = 0
    for length, end in zip(chosen, ends.tolist(), strict=True):
        size = max(1, TILE // (2 + length // 16))
        for at in range(start, end, size):
            rows = slice(at, min(at + size, end))
            found.append((rows if order is None else order[rows], length))
        start = end
    return found[::-1], np.arange(0) if order is None else order[done:]  # longest first: its setup serves all


def _drain(shots: Iterator[Any]) -> tuple[list[Any], list[int]]:
    """Return all results, b"" where InvalidTag was raised, and the positions of those."""
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


def _each(associated: bytes | Column, rows: Rows) -> bytes | Iterator[Any]:
    """Return the associated data of rows in the form that the one-shot cipher takes."""
    if isinstance(associated, bytes):
        return associated
    if isinstance(rows, slice) and rows.stop > rows.start:
        lengths, start = associated.lengths[rows], associated.starts[rows.start]
        if (size := int(lengths.sum())) <= 1 << 24:  # the cipher takes bytes faster than views
            return map(io.BytesIO(associated.data[start:][:size].data).read, lengths.tolist())
    return associated.views(rows)


def _copied(
    mode: Mode,
    sealing: bool,
    data: Bytes,
    lengths: list[int],
    width: int | None,
    prefix: bytes,
    ivs: Voids | None,
    extras: bytes | Iterator[Any],
) -> tuple[bytearray, list[int]]:
    """Seal or open copies of cells that are end to end, with one width or with lengths.

    Returns:
        New cells end to end, and the positions of those that are not authentic.
    """
    # BytesIO.read is the fastest way to cut bytes into pieces: no slice objects, no bounds in Python.
    skip, read = 0 if sealing else PREFIX + mode.iv, io.BytesIO(data.data).read
    heads = [b""] * len(lengths) if ivs is None else ivs.tolist()
    if width is not None and width > skip:
        cells = data.view(f"V{width}")
        texts = cells.getfield(f"V{width - skip}", skip).tolist()
        heads = heads if sealing else cells.getfield(f"V{mode.iv}", PREFIX).tolist()
    elif sealing:
        texts = map(read, lengths)
    else:
        steps = [PREFIX, mode.iv, 0] * len(lengths)
        steps[2::3] = [length - skip for length in lengths]
        pieces = list(map(read, steps))
        heads, texts = pieces[1::3], pieces[2::3]
    done, failed = _drain(mode.one_shot(sealing, heads, texts, extras))
    parts = done
    if sealing:
        parts = [prefix] * (3 * len(done))
        parts[1::3], parts[2::3] = heads, done
    return bytearray().join(parts), failed


@dataclass(slots=True, repr=False)
class _Batch:
    """A batch of rows: ``plain`` and ``sealed`` are the same n rows; `work` reads one and writes the other.

    When sealing, ``prefix`` is as in `run`, and ``ivs`` V12[n] or None. ``associated`` is bytes for all rows,
    or n rows.
    """

    mode: Mode
    sealing: bool
    plain: Column
    sealed: Column
    prefix: bytes
    ivs: Voids | None
    associated: bytes | Column

    def work(self) -> Iterator[Ints]:
        """Seal or open all rows; yield those that are not authentic."""
        mode, short = self.mode, self.sealed.lengths < PREFIX + self.mode.iv + TAG
        if short.any():
            yield np.flatnonzero(short)
            if not short.all():
                yield self.in_place(np.flatnonzero(~short))
            return
        found, others = tiles(self.plain.lengths, mode.longest, mode.least, mode.setup)
        digests = mode.digests(self.associated) if found else None
        if digests is None:
            yield from self.one_by_one()
            return
        for rows, length in found:
            own = digests if isinstance(self.associated, bytes) else digests[rows]
            yield self.lock_step(rows, length, own)
        if len(others):
            yield self.in_place(others)

    def lock_step(self, rows: Rows, length: int, digests: Blocks) -> Ints:
        """Seal or open rows of one length; if some are not authentic, return them and write nothing."""
        mode, room, lead = self.mode, self.mode.room, PREFIX + self.mode.iv
        room.clear()
        count, width = rows.stop - rows.start if isinstance(rows, slice) else len(rows), lead + length + TAG
        text, ivs, tags = room.blocks(count, -(-length // 16)), room.blocks(count), room.blocks(count)
        parts = [(lead if mode.tag_first else lead + length, field(tags, TAG))]  # (offset in a cell, part)
        parts += [(PREFIX, field(ivs, mode.iv))] if mode.iv else []
        parts += [(lead + TAG if mode.tag_first else lead, field(text, length))] if length else []
        if not self.sealing:
            cells = self.sealed.cells(rows, width)
            for offset, part in parts:
                part[:] = cells.getfield(part.dtype, offset)
            wrong = mode.kernel(False, text, length, ivs if mode.iv else tags, digests)
            wrong ^= tags
            if (failed := (wrong[:, 0] | wrong[:, 1]) != 0).any():
                return np.arange(len(self.plain.starts))[rows][failed]
            if length:
                self.plain.put(rows, field(text, length))
            return np.arange(0)
        if length:
            field(text, length)[:] = self.plain.cells(rows, length)
        if self.ivs is not None:
            field(ivs, mode.iv)[:] = self.ivs[rows]
        tags[:] = mode.kernel(True, text, length, ivs, digests)
        in_order = isinstance(rows, slice)
        cells = self.sealed.cells(rows, width) if in_order else np.empty(count, f"V{width}")
        for offset, part in [(0, np.array(self.prefix, f"V{PREFIX}")), *parts]:
            cells.setfield(part, part.dtype, offset)
        if not in_order:
            self.sealed.put(rows, cells)
        return np.arange(0)

    def one_by_one(self) -> Iterator[Ints]:
        """Seal or open all rows through the one-shot cipher; yield those that are not authentic."""
        source, target = (self.plain, self.sealed) if self.sealing else (self.sealed, self.plain)
        count, stop, ends = len(source.starts), 0, source.starts + source.lengths
        if int(ends[-1] - source.starts[0]) > LONG * count:
            yield self.in_place(slice(0, count))
            return
        width = int(source.lengths[0]) if (source.lengths == source.lengths[0]).all() else None
        while (start := stop) < count:
            first = int(source.starts[start])
            stop = int(np.searchsorted(ends[: start + RUN // 4], first + RUN, "right"))  # few rows, too
            if stop == start:  # one text is longer than RUN
                stop += 1
                yield self.in_place(slice(start, stop))
                continue
            rows, data = slice(start, stop), source.data[first : int(ends[stop - 1])]
            lengths, extras = source.lengths[rows].tolist(), _each(self.associated, rows)
            ivs = None if self.ivs is None else self.ivs[rows]
            made, failed = _copied(self.mode, self.sealing, data, lengths, width, self.prefix, ivs, extras)
            if not failed:
                target.data[target.starts[start] :][: len(made)] = np.frombuffer(made, np.uint8)
            yield start + np.array(failed, np.int64)

    def in_place(self, rows: Rows) -> Ints:
        """Seal or open rows one by one without copying them; return those that are not authentic."""
        mode, lead, window = self.mode, PREFIX + self.mode.iv, self.sealed.window(PREFIX + self.mode.iv)
        starts = self.sealed.starts[rows]
        if self.sealing:
            heads = np.empty(len(starts), window.dtype)
            heads.setfield(np.array(self.prefix, f"V{PREFIX}"), f"V{PREFIX}", 0)
            if self.ivs is not None:
                heads.setfield(self.ivs[rows], f"V{mode.iv}", PREFIX)
            window[starts] = heads
        ivs = window[starts].getfield(f"V{mode.iv}", PREFIX).tolist()
        views = [self.plain.views(rows), self.sealed.views(rows, lead)]
        texts, outs = views if self.sealing else reversed(views)
        extras = _each(self.associated, rows)
        if IN_PLACE:
            shots = mode.one_shot(self.sealing, ivs, texts, extras, outs)
        else:
            made = mode.one_shot(self.sealing, ivs, texts, extras)
            shots = map(memoryview.__setitem__, outs, repeat(slice(None)), made)
        return np.arange(len(self.plain.starts))[rows][_drain(shots)[1]]


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
        mode: the mode with its key.
        sealing: True to seal, False to open.
        cells: m cells that are not null.
        associated: associated data: bytes for the column, or m cells.
        prefix: 5 bytes that begin each sealed cell, when sealing.
        ivs: uint8[m, 12], when sealing with a mode that has IVs.

    Returns:
        The new cells and int64[0]; or None and int64[k], the rows that are too short or not authentic.

    Raises:
        ValueError: the associated data does not have one value for each cell.
    """
    count, change = cells.count, (PREFIX + mode.iv + TAG) * (1 if sealing else -1)
    if not isinstance(associated, bytes) and (associated.valid is not None or associated.count != count):
        raise ValueError("associated data per row must have exactly one value for each cell that is not null")
    width, offsets, few = cells.width, None, count < mode.setup[0] + mode.least[0] and len(cells.data) <= RUN
    if width is not None and (width := width + change) < 0 and count:
        return None, np.arange(count)
    if width is None or width <= 0:
        width, offsets = None, np.arange(count + 1)
        offsets *= 0 if cells.offsets is None else change  # in place: int64 for a whole column is large
        if cells.offsets is not None:
            offsets += cells.offsets
            if not sealing and (offsets[1:] < offsets[:-1]).any():  # rows that are too short
                few, steps = False, np.diff(offsets)
                np.cumsum(np.maximum(steps, 0, out=steps), out=offsets[1:])
    given = None if ivs is None else np.ascontiguousarray(ivs).view(f"V{mode.iv}")[:, 0]
    if few:  # for a small column, the numpy calls of a batch would take most of the time
        extra = associated if isinstance(associated, bytes) else Column.of(associated, 0, count)
        bounds, every = cells.offsets, _each(extra, slice(0, count))
        lengths = [cells.width or 0] * count if bounds is None else (bounds[1:] - bounds[:-1]).tolist()
        made, failed = _copied(mode, sealing, cells.data, lengths, cells.width, prefix, given, every)
        done = Cells(np.frombuffer(made, np.uint8), offsets, width, cells.valid)
        return None if failed else done, np.array(failed, np.int64)
    data = np.empty(count * (width or 0) if offsets is None else int(offsets[-1]), np.uint8)
    done, bad = Cells(data, offsets, width, cells.valid), []
    for start in range(0, count, BATCH):
        stop = min(start + BATCH, count)
        source, target = Column.of(cells, start, stop), Column.of(done, start, stop)
        plain, sealed = (source, target) if sealing else (target, source)
        own = None if given is None else given[start:stop]
        extra = associated if isinstance(associated, bytes) else Column.of(associated, start, stop)
        bad += [start + rows for rows in _Batch(mode, sealing, plain, sealed, prefix, own, extra).work()]
    if any(map(len, bad)):
        data.fill(0)  # erase the plaintext of the cells that were authentic
        return None, np.sort(np.concatenate(bad))
    return done, np.empty(0, np.int64)


def seal(
    mode: Mode, cells: Cells, associated: bytes | Cells, prefix: bytes, ivs: Bytes | None = None
) -> Cells:
    """Seal a column; see `run`, which reports rows only when it opens cells."""
    sealed, _ = run(mode, True, cells, associated, prefix, ivs)
    if sealed is None:
        raise ValueError("sealing cannot fail")
    return sealed
