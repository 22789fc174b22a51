"""A lock that is released in the child after ``fork()``.

A child has only the thread that called ``fork()``; a plain lock that another thread held would stay locked.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from types import TracebackType

__all__ = ["Lock"]


class Lock:
    """A reentrant lock for ``with`` blocks.

    Args:
        then: called in the child right after ``fork()``, for example to drop connections.
    """

    def __init__(self, then: Callable[[], None] | None = None) -> None:
        self._lock = threading.RLock()
        self._then = then
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Replace the lock: the threads that held it, or waited for it, do not exist in this process."""
        self._lock = threading.RLock()
        if self._then is not None:
            self._then()


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


def _forked() -> None:
    for lock in list(_locks):
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
