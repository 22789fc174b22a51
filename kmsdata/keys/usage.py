"""Count the KMS calls of this process: they are billed, and count against quotas."""

from __future__ import annotations

from typing import NamedTuple

from kmsdata.display.panel import Panel, shows_panel
from kmsdata.display.tables import Fact
from kmsdata.keys.fork_lock import Lock

__all__ = ["Usage", "count", "usage"]


@shows_panel
class Usage(NamedTuple):
    """KMS calls of this process so far.

    Attributes:
        generate_data_key: data keys generated.
        unwrap: data keys unwrapped by their provider.
        wrap: data keys wrapped by an additional master key.
        cached: data keys found in the cache, without a KMS call.
        retried: requests sent again after throttling or a fault; they are not included in `calls`.
    """

    generate_data_key: int = 0
    unwrap: int = 0
    wrap: int = 0
    cached: int = 0
    retried: int = 0

    @property
    def calls(self) -> int:
        """The number of KMS calls in total."""
        return self.generate_data_key + self.unwrap + self.wrap

    def _panel(self) -> Panel:
        return Panel(
            f"{self.calls:,} KMS {'call' if self.calls == 1 else 'calls'} of this process so far",
            [
                Fact("data keys generated", f"{self.generate_data_key:,}"),
                Fact("data keys unwrapped", f"{self.unwrap:,}"),
                Fact("wrapped by another key", f"{self.wrap:,}"),
                Fact("found in the cache", f"{self.cached:,} (no KMS call)"),
                Fact("requests sent again", f"{self.retried:,} (not counted above)"),
            ],
        )

    def __str__(self) -> str:
        return str(self._panel())


_lock = Lock()
_so_far: list[Usage] = [Usage()]


def count(field: str) -> None:
    """Add one to a field."""
    with _lock:
        _so_far[0] = _so_far[0]._replace(**{field: getattr(_so_far[0], field) + 1})


def usage() -> Usage:
    """Return how many KMS calls this process made, and how many the cache saved.

    Example:
        >>> import kmsdata
        >>> before = kmsdata.usage()
        >>> key = kmsdata.new_data_key("local://demo")
        >>> kmsdata.usage().calls - before.calls
        1
    """
    with _lock:
        return _so_far[0]
