"""Long work: how far it is (HTML without JavaScript, or text, or nothing in a pipe), and interrupts."""

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
from kmsdata.errors import Interrupted

__all__ = ["Interruptible", "Progress"]

_PATIENCE = 1.0  # seconds before a bar appears: short work shows none
_EVERY = 0.25  # seconds between two updates


class Interruptible:
    """A context manager of work that a KeyboardInterrupt ends with one block, which says what was stopped.

    Args:
        title: the work, such as ``"read_parquet"``.

    Example:
        >>> with Interruptible("read_parquet"):
        ...     pass
    """

    def __init__(self, title: str) -> None:
        self._title = title

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyboardInterrupt) and not isinstance(error, Interrupted):
            error.__traceback__ = None  # the frames of the work contain keys and plaintext
            del trace
            raise Interrupted(f"{self._title} was stopped{self._where()}") from None

    def _where(self) -> str:
        return ""


class Progress(Interruptible):
    """A context manager that shows the progress of work.

    In a notebook it is one output, whose updates replace each other, so that a saved notebook contains only
    the final state. It shows a title and numbers, never the data. A thread updates it, also during a long
    step.

    Args:
        title: what is done, such as ``"encrypt"``.
        total: the amount of work.
        unit: the unit of ``total``, such as ``"rows"``.
        wanted: True: show it at once; False: never; None: in a terminal or notebook, after one second.

    Example:
        >>> with Progress("encrypt", 100, "rows", wanted=False) as progress:
        ...     progress.step(100)
    """

    def __init__(self, title: str, total: int, unit: str, wanted: bool | None = None) -> None:
        super().__init__(title)
        self._total, self._unit = total, unit
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
            # ipykernel finds the cell to show output below in context variables, which a new thread does not
            # inherit by default: without a copy the bar might appear below another cell.
            tick = functools.partial(contextvars.copy_context().run, self._tick)
            # A daemon, so that it cannot keep an interrupted process alive.
            self._clock = threading.Thread(target=tick, name="kmsdata progress", daemon=True)
            self._clock.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._clock is not None:
            self._over.set()
            self._clock.join()
            self._state = "done" if error is None else "stopped"
            if error is None:
                self._total = self._done  # the total of CSV files was an estimate
            if self._shown or not self._patience:
                self._show()
        try:
            super().__exit__(kind, error, trace)
        finally:
            del trace

    def _where(self) -> str:
        return f" at {self._part:.0%} of {self._total:,} {self._unit}"

    @property
    def done(self) -> int:
        """The amount that is done."""
        return self._done

    def step(self, count: int) -> None:
        """Add to the amount that is done."""
        self._done += count

    def _tick(self) -> None:
        wait = self._patience
        while not self._over.wait(wait):
            self._shown = True
            self._show()
            wait = _EVERY

    def _show(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # a closed terminal must not stop the work
            if self._notebook:
                self._handle = show(self, self._handle)
            else:
                # A line that is wider than the terminal wraps, and "\r" returns only to its last part.
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
        return f"{text}, {max(self._total - self._done, 0) / rate:.0f} s left" if rate else text

    @property
    def _part(self) -> float:
        return min(1.0, self._done / self._total) if self._total else 1.0

    def __str__(self) -> str:
        filled = int(12 * self._part)
        return f"{self._title} [{'#' * filled}{'.' * (12 - filled)}] {self._figures}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        # JupyterLab keeps <progress> in a notebook that is not trusted, and screen readers announce it.
        return (
            f'{html.escape(self._title)} <progress value="{self._part:.3f}" max="1" '
            f'style="vertical-align:middle"></progress> {html.escape(self._figures)}'
        )


def _short(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f}"
