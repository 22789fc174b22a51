"""In-memory cache of data keys, limited by age, uses and number.

With it, many files under one data key take one KMS call.
"""

from __future__ import annotations

import copy
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, TypeVar

from kmsdata.errors import CallerValueError, KmsDataError
from kmsdata.keys.data_key import DataKey, Secret
from kmsdata.keys.fork_lock import Lock
from kmsdata.keys.usage import count

__all__ = ["Flights", "KeyCache", "forget_keys"]

_T = TypeVar("_T")


class Flights:
    """Work that is done once for all threads that request it at the same time.

    Args:
        keep: whether results and errors of kmsdata are kept for later requests.
    """

    def __init__(self, *, keep: bool = False) -> None:
        self._keep = keep
        self._lock = Lock()
        self._futures: dict[Hashable, Future[Any]] = {}

    def do(self, by: Hashable, work: Callable[[], _T]) -> _T:
        """Return what ``work`` returns, or raise what it raises. For each ``by``, one thread runs it.

        If another thread was interrupted (Ctrl-C, a bug), its error is not raised here: the work is repeated.
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
            if isinstance(
                error, KmsDataError
            ):  # a copy for each thread: raising adds frames to the traceback
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
    """A cached data key, the time when it expires, and how often (or for how many cells) it was used."""

    __slots__ = ("data_key", "end", "used")

    def __init__(self, data_key: DataKey, age: float, used: int) -> None:
        self.data_key, self.end, self.used = data_key, time.monotonic() + age, used


class KeyCache(Secret):
    """Cache of data keys in memory. To set other limits, pass one to `kmsdata.use` or `kmsdata.using`.

    Unwrapped keys and generated keys are kept separately: a key that was unwrapped for reading never encrypts
    new data, unless it is passed as ``key=``.

    Args:
        age: seconds for which an unwrapped key decrypts data without another KMS call. A revoked key can
            therefore be used for as long as this; 0: one KMS call each time.
        uses: how often an unwrapped key is used before the next KMS call; None: no limit.
        number: how many keys are kept; the least recently used ones are removed first.
        reuse_age: seconds for which calls of ``encrypt`` that name the same key and context share one
            generated data key; 0 (the default): each call has a new one.
        reuse_cells: how many cells one shared generated data key may encrypt; None: 2^32.

    Threads may share it: a hundred that need one key make one KMS call. A forked process starts with an empty
    cache.

    Raises:
        ValueError: a limit is negative.

    Example:
        >>> import kmsdata
        >>> with kmsdata.using(kmsdata.KeyCache(age=60, reuse_age=600, reuse_cells=1_000_000)):
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
                raise CallerValueError("a limit of the KeyCache is negative: limits must be 0 or more")
        self.age, self.uses, self.number = age, uses, number
        self.reuse_age, self.reuse_cells = reuse_age, 1 << 32 if reuse_cells is None else reuse_cells
        # A forked process has only one thread, so work that other threads had begun would never end there.
        self._lock = Lock(self.clear)
        self.clear()
        _caches.add(self)

    def clear(self) -> None:
        """Remove every key from the cache."""
        with self._lock:
            self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
            self._flights = Flights()

    def unwrapped(self, by: Hashable, load: Callable[[], DataKey | None]) -> DataKey | None:
        """Return the key that was unwrapped for ``by``, or what ``load`` returns; None is not cached."""
        return self._get(("unwrapped", by), self.age, self.uses, 1, load) if self.age else load()

    def _has(self, by: Hashable) -> bool:
        """Return whether the key that was unwrapped for ``by`` is cached. This is not counted as a use."""
        with self._lock:
            entry = self._entries.get(("unwrapped", by))
            return (
                entry is not None
                and time.monotonic() < entry.end
                and (self.uses is None or entry.used < self.uses)
            )

    def generated(self, by: Hashable, cells: int, make: Callable[[], DataKey]) -> DataKey:
        """Return a data key that may encrypt this many cells: the one shared for ``by``, or a new one."""
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
            # Another thread loaded it, and its uses are limited: look up again, so that this use is counted.

    def _looked_up(
        self, by: Hashable, age: float, most: int | None, use: int, load: Callable[[], DataKey | None]
    ) -> tuple[DataKey | None, bool]:
        """Return the key, and whether this call counted its use; False if another thread loaded it."""
        # Both are taken together: if `clear` is called meanwhile, this load fills the old, unused dictionary.
        with self._lock:
            entries, flights = self._entries, self._flights
        if (kept := self._kept(entries, by, most, use)) is not None:
            return kept, True
        mine = False

        def loaded() -> DataKey | None:
            nonlocal mine
            mine = True
            # Another thread may have loaded it since the check above.
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
    """Empty every cache of this process."""
    for cache in list(_caches):
        cache.clear()
