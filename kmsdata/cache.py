"""Data keys at hand, so that a key service is asked once and not for every file."""

from __future__ import annotations

import copy
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future

from kmsdata.calls import count
from kmsdata.errors import KmsDataError
from kmsdata.keys import DataKey, Secret

__all__ = ["KeyCache"]


class _Entry(Secret):
    """A data key at hand, since when, and how often it was handed out."""

    __slots__ = ("born", "data_key", "uses")

    def __init__(self, data_key: DataKey) -> None:
        self.data_key, self.born, self.uses = data_key, time.monotonic(), 0


class KeyCache(Secret):
    """Keeps data keys in memory for a while; hand one to `kmsdata.use` to set other limits than these.

    Unwrapped keys and generated ones are kept apart: a key that was unwrapped to read never encrypts
    anything new, unless it is passed as ``key=``.

    Args:
        age: seconds for which an unwrapped key opens data without asking its service again, and so the time
            that a revocation may take to be noticed; 0: every call asks.
        uses: how often an unwrapped key is handed out before its service is asked again; None: no limit.
        number: how many keys are kept; those not used for longest go first.
        reuse_age: seconds for which calls of ``encrypt`` that name the same key and context share one
            generated data key; 0, unless set: each call has a fresh one.
        reuse_cells: cells that one generated data key may be shared for; None: 2^32.

    May be shared by threads: a hundred that need one key make one call. A forked process begins with none.

    Raises:
        ValueError: a limit that is negative.

    Example:
        >>> import kmsdata
        >>> with kmsdata.use(kmsdata.KeyCache(age=60, reuse_age=600, reuse_cells=1_000_000)):
        ...     pass  # many small encrypt calls, one GenerateDataKey in ten minutes
    """

    __slots__ = (
        "__weakref__", "_entries", "_flights", "_lock", "age", "number", "reuse_age", "reuse_cells", "uses",
    )  # fmt: skip

    def __init__(
        self,
        *,
        age: float = 300.0,
        uses: int | None = None,
        number: int = 1000,
        reuse_age: float = 0.0,
        reuse_cells: int | None = None,
    ) -> None:
        for limit in (age, uses, number, reuse_age, reuse_cells):
            if limit is not None and not limit >= 0:
                raise ValueError("the limits of a KeyCache are not negative")
        self.age, self.uses, self.number = age, uses, number
        self.reuse_age, self.reuse_cells = reuse_age, 1 << 32 if reuse_cells is None else reuse_cells
        self.clear()
        _caches.add(self)

    def clear(self) -> None:
        """Forget every key."""
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._flights: dict[Hashable, Future[DataKey | None]] = {}

    def unwrapped(self, by: Hashable, load: Callable[[], DataKey | None]) -> DataKey | None:
        """The key that was unwrapped for ``by``, or what ``load`` brings; None is not kept."""

        def good(entry: _Entry) -> bool:
            fresh = time.monotonic() - entry.born < self.age
            return fresh and (self.uses is None or entry.uses < self.uses)

        return self._get(("unwrapped", by), good, load) if self.age else load()

    def generated(self, by: Hashable, cells: int, make: Callable[[], DataKey]) -> DataKey:
        """A data key to encrypt so many cells with: one that is shared for ``by``, or what ``make`` makes."""

        def good(entry: _Entry) -> bool:
            fresh = time.monotonic() - entry.born < self.reuse_age
            return fresh and entry.data_key.sealed + cells <= self.reuse_cells

        data_key = self._get(("generated", by), good, make) if self.reuse_age else None
        return data_key or make()

    def _get(
        self, by: Hashable, good: Callable[[_Entry], bool], load: Callable[[], DataKey | None]
    ) -> DataKey | None:
        while True:
            lock, entries, flights = self._lock, self._entries, self._flights
            with lock:
                entry = entries.get(by)
                if entry is not None and good(entry):
                    entry.uses += 1
                    entries.move_to_end(by)
                    count("cached")
                    return entry.data_key
                flight = flights.get(by)
                if mine := flight is None:
                    flight = flights[by] = Future()
            if mine:
                return self._load(by, load, flight, entries, flights)
            error = flight.exception()
            if isinstance(error, KmsDataError):  # what one thread was told, all that waited for it are
                raise copy.copy(error) from None
            if error is None and flight.result() is None:
                return None

    def _load(
        self,
        by: Hashable,
        load: Callable[[], DataKey | None],
        flight: Future[DataKey | None],
        entries: OrderedDict[Hashable, _Entry],
        flights: dict[Hashable, Future[DataKey | None]],
    ) -> DataKey | None:
        try:
            data_key = load()
        except BaseException as error:
            flights.pop(by, None)
            flight.set_exception(error)
            raise
        with self._lock:
            if data_key is not None and self.number:
                entries[by] = entry = _Entry(data_key)
                entry.uses = 1
                entries.move_to_end(by)
                while len(entries) > self.number:
                    entries.popitem(last=False)
            flights.pop(by, None)
        flight.set_result(data_key)
        return data_key


_caches: weakref.WeakSet[KeyCache] = weakref.WeakSet()


def _forked() -> None:
    """The child has none of the parent's threads: their locks and calls are void."""
    for cache in _caches:
        cache.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
