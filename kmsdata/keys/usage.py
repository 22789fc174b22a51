"""How often key services were called: what is paid for, and what quotas count."""

from __future__ import annotations

from typing import NamedTuple

from kmsdata.keys.fork_lock import Lock

__all__ = ["Usage", "count", "usage"]


class Usage(NamedTuple):
    """Calls in this process so far.

    Attributes:
        generate_data_key: new data keys made.
        unwrap: data keys unwrapped by their provider.
        wrap: data keys wrapped by a further master key.
        cached: data keys that were at hand, so that no provider was asked.
        retried: requests sent again after throttling or a fault; they come on top of the calls.
    """

    generate_data_key: int = 0
    unwrap: int = 0
    wrap: int = 0
    cached: int = 0
    retried: int = 0

    @property
    def calls(self) -> int:
        """Calls of providers in all."""
        return self.generate_data_key + self.unwrap + self.wrap


_lock = Lock()
_so_far: list[Usage] = [Usage()]


def count(field: str) -> None:
    """Count one more of a field."""
    with _lock:
        _so_far[0] = _so_far[0]._replace(**{field: getattr(_so_far[0], field) + 1})


def usage() -> Usage:
    """How often this process asked key providers, and how often it had no need to.

    Example:
        >>> import kmsdata
        >>> before = kmsdata.usage()
        >>> key = kmsdata.new_data_key("local://demo")
        >>> kmsdata.usage().calls - before.calls
        1
    """
    with _lock:
        return _so_far[0]
