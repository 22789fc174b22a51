"""A bar for long work: live in a notebook without JavaScript, plain in a terminal, silent in a pipe."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import html
import shutil
import sys
import threading
import time
from typing import Any, Self

from kmsdata.display.ipython import in_notebook, show

__all__ = ["Progress"]

_PATIENCE = 1.0  # seconds of silence: short work shows no bar
_EVERY = 0.25  # seconds between two looks of it


class Progress:
    """Shows how far work is, as a context manager.

    In a notebook it is one output that is replaced by its final state, so that the saved file holds that and
    nothing else. It holds numbers and a title, and none of the data. A thread shows it while a long step is
    at work.

    Args:
        title: what is done, such as ``"encrypt"``.
        total: how much there is.
        unit: of what, such as ``"rows"``.
        wanted: True: always; False: never; None: where somebody may be looking, and it takes longer than a
            second.

    Example:
        >>> with Progress("encrypt", 100, "rows", wanted=False) as progress:
        ...     progress.step(100)
    """

    def __init__(self, title: str, total: int, unit: str, wanted: bool | None = None) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._notebook = in_notebook() and wanted is not False
        terminal = sys.stderr is not None and sys.stderr.isatty()
        self._terminal = not self._notebook and (wanted is True or (wanted is None and terminal))
        self._patience = 0.0 if wanted else _PATIENCE
        self._done, self._began, self._shown = 0, time.monotonic(), False
        self._state = ""
        self._handle: Any = None
        self._over = threading.Event()
        self._clock: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._notebook or self._terminal:
            # In this cell's context, or a kernel might show it below another one.
            tick = functools.partial(contextvars.copy_context().run, self._tick)
            self._clock = threading.Thread(target=tick, name="kmsdata progress", daemon=True)
            self._clock.start()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._clock is None:
            return
        self._over.set()
        self._clock.join()
        self._state = "done" if error is None else "stopped"
        if self._shown or not self._patience:
            self._show()

    @property
    def done(self) -> int:
        """How much is done."""
        return self._done

    def step(self, count: int) -> None:
        """So much more is done."""
        self._done += count

    def _tick(self) -> None:
        wait = self._patience
        while not self._over.wait(wait):
            self._shown = True
            self._show()
            wait = _EVERY

    def _show(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # a terminal that was closed does not stop the work
            if self._notebook:
                self._handle = show(self, self._handle)
            else:
                # A line that is longer than the terminal would not be overwritten by the next one.
                most = shutil.get_terminal_size().columns - 1
                end = "\n" if self._state else ""
                print(f"\r{str(self)[:most]}\x1b[K", end=end, file=sys.stderr, flush=True)

    @property
    def _figures(self) -> str:
        seconds = time.monotonic() - self._began
        rate = self._done / seconds if seconds else 0
        text = f"{self._part:.0%} of {self._total:,} {self._unit}, {seconds:.0f} s, {_short(rate)}/s"
        if self._state:
            return f"{text}, {self._state}"
        return f"{text}, {(self._total - self._done) / rate:.0f} s left" if rate else text

    @property
    def _part(self) -> float:
        return min(1.0, self._done / self._total) if self._total else 1.0

    def __str__(self) -> str:
        filled = int(12 * self._part)
        return f"{self._title} [{'#' * filled}{'.' * (12 - filled)}] {self._figures}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        # <progress> is kept in a notebook that is not trusted, and says its state to screen readers.
        return (
            f'{html.escape(self._title)} <progress value="{self._part:.3f}" max="1" '
            f'style="vertical-align:middle"></progress> {html.escape(self._figures)}'
        )


def _short(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f}"
