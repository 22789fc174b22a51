"""Data keys at hand, so that a key service is asked once and not for every file."""

from __future__ import annotations

import copy
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, TypeVar

from kmsdata.errors import KmsDataError
from kmsdata.keys.data_key import DataKey, Secret
from kmsdata.keys.fork_lock import Lock
from kmsdata.keys.usage import count

__all__ = ["Flights", "KeyCache", "forget_keys"]

_T = TypeVar("_T")


class Flights:
    """Work that is done once for all threads that ask for it at the same time.

    Args:
        keep: whether results, and refusals of kmsdata, are kept for those that ask later.
    """

    def __init__(self, *, keep: bool = False) -> None:
        self._keep = keep
        self._lock = Lock()
        self._futures: dict[Hashable, Future[Any]] = {}

    def do(self, by: Hashable, work: Callable[[], _T]) -> _T:
        """Return what ``work`` returns, or raise what it raises, whichever thread came first for ``by``.

        What interrupted another thread (Ctrl-C, a bug) is not raised here: the work is done again.
        """
        while True:
            with self._lock:
                future: Future[_T] | None = self._futures.get(by)
                if mine := future is None:
                    future = self._futures[by] = Future()
            if mine:
                return self._fly(by, work, future)
            error = future.exception()
            if error is None:
                return future.result()
            if isinstance(error, KmsDataError):  # each thread its own, since it adds frames to it
                raise copy.copy(error) from None

    def _fly(self, by: Hashable, work: Callable[[], _T], future: Future[_T]) -> _T:
        try:
            result = work()
        except BaseException as error:
            if not (self._keep and isinstance(error, KmsDataError)):
                self._futures.pop(by, None)
            future.set_exception(error)
            raise
        if not self._keep:
            self._futures.pop(by, None)
        future.set_result(result)
        return result


class _Entry(Secret):
    """A data key at hand, until when, and what it was handed out for: times, or cells."""

    __slots__ = ("data_key", "end", "used")

    def __init__(self, data_key: DataKey, age: float, used: int) -> None:
        self.data_key, self.end, self.used = data_key, time.monotonic() + age, used


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
        self._lock = Lock(self.clear)  # a forked process has none of the threads that are asking
        self.clear()
        _caches.add(self)

    def clear(self) -> None:
        """Forget every key."""
        with self._lock:
            self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
            self._flights = Flights()

    def unwrapped(self, by: Hashable, load: Callable[[], DataKey | None]) -> DataKey | None:
        """The key that was unwrapped for ``by``, or what ``load`` brings; None is not kept."""
        return self._get(("unwrapped", by), self.age, self.uses, 1, load) if self.age else load()

    def generated(self, by: Hashable, cells: int, make: Callable[[], DataKey]) -> DataKey:
        """A data key to encrypt so many cells with: one that is shared for ``by``, or what ``make`` makes."""
        shared = None
        if self.reuse_age:
            shared = self._get(("generated", by), self.reuse_age, self.reuse_cells, cells, make)
        return shared or make()

    def _get(
        self, by: Hashable, age: float, most: int | None, use: int, load: Callable[[], DataKey | None]
    ) -> DataKey | None:
        while True:
            data_key, mine = self._looked_up(by, age, most, use, load)
            if mine or data_key is None:
                return data_key
            # Another thread loaded it, and its uses are limited: look again.

    def _looked_up(
        self, by: Hashable, age: float, most: int | None, use: int, load: Callable[[], DataKey | None]
    ) -> tuple[DataKey | None, bool]:
        """The key, and whether it was handed out here, and counted; else another thread has loaded it."""
        with self._lock:  # what is loaded while `clear` is called goes where nobody looks any more
            entries, flights = self._entries, self._flights
        if (kept := self._kept(entries, by, most, use)) is not None:
            return kept, True
        mine = False

        def loaded() -> DataKey | None:
            nonlocal mine
            mine = True
            # Another thread's work may have ended since the look above.
            if (kept := self._kept(entries, by, most, use)) is not None:
                return kept
            data_key = load()
            if data_key is not None:
                self._keep(entries, by, _Entry(data_key, age, use))
            return data_key

        return flights.do(by, loaded), mine

    def _kept(
        self, entries: OrderedDict[Hashable, _Entry], by: Hashable, most: int | None, use: int
    ) -> DataKey | None:
        with self._lock:
            entry = entries.get(by)
            if entry is None or time.monotonic() >= entry.end:
                return None
            if most is not None and entry.used + use > most:
                return None
            entry.used += use
            entries.move_to_end(by)
            count("cached")
            return entry.data_key

    def _keep(self, entries: OrderedDict[Hashable, _Entry], by: Hashable, new: _Entry) -> None:
        with self._lock:
            for old in [old for old, entry in entries.items() if time.monotonic() >= entry.end]:
                del entries[old]
            entries[by] = new
            entries.move_to_end(by)
            while len(entries) > self.number:
                entries.popitem(last=False)


_caches: weakref.WeakSet[KeyCache] = weakref.WeakSet()


def forget_keys() -> None:
    """Empty every cache there is."""
    for cache in list(_caches):
        cache.clear()
