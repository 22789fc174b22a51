"""A bar for long work: live in a notebook without JavaScript, plain in a terminal, silent in a pipe."""

from __future__ import annotations

import html
import os
import sys
import time
from types import TracebackType
from typing import Any, Self

__all__ = ["Progress"]

_PATIENCE = 1.0  # seconds of silence: short work shows no bar
_EVERY = 0.2  # seconds between two looks of it


class Progress:
    """Shows how far work is, as a context manager.

    In a notebook it is one output that is replaced by its final state, so that the saved file holds that and
    nothing else. It holds numbers and a title, and none of the data.

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
        self._notebook = _in_notebook() and wanted is not False
        terminal = sys.stderr is not None and sys.stderr.isatty()
        self._terminal = not self._notebook and (wanted is True or (wanted is None and terminal))
        self._after = 0.0 if wanted else _PATIENCE
        self._done, self._began, self._shown = 0, time.monotonic(), 0.0
        self._state = ""
        self._handle: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._state = "done" if error is None else "stopped"
        if self._shown or (self._after == 0.0 and (self._notebook or self._terminal)):
            self._show()
            if self._terminal:
                print(file=sys.stderr)

    @property
    def done(self) -> int:
        """How much is done."""
        return self._done

    def step(self, count: int) -> None:
        """So much more is done."""
        self._done += count
        now = time.monotonic()
        if (
            (self._notebook or self._terminal)
            and now - self._began >= self._after
            and now - self._shown >= _EVERY
        ):
            self._shown = now
            self._show()

    def _show(self) -> None:
        if self._notebook:
            from IPython.display import display

            if self._handle is None:
                self._handle = display(self, display_id=True)  # type: ignore[no-untyped-call]
            else:
                self._handle.update(self)
        else:
            print(f"\r{self._line(_width())}\x1b[K", end="", file=sys.stderr, flush=True)

    @property
    def _figures(self) -> str:
        seconds = time.monotonic() - self._began
        rate = self._done / seconds if seconds else 0
        amount = _short if self._unit == "bytes" else "{:,}".format
        text = (
            f"{amount(self._done)} of {amount(self._total)} {self._unit}, {seconds:.0f} s, "
            f"{_short(rate)} {self._unit}/s"
        )
        if self._state:
            return f"{text}, {self._state}"
        left = (self._total - self._done) / rate if rate else 0
        return f"{text}, {left:.0f} s left"

    def _line(self, width: int) -> str:
        """Not longer than a line of the terminal, which would stay when the next is written over it."""
        figures = self._figures
        bar = max(4, min(20, width - 1 - len(f"{self._title} [] {figures}")))
        filled = int(bar * min(1.0, self._done / self._total)) if self._total else bar
        return f"{self._title} [{'#' * filled}{'.' * (bar - filled)}] {figures}"[: width - 1]

    def __str__(self) -> str:
        return self._line(1000)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        # <progress> is kept in a notebook that is not trusted, and says its state to screen readers.
        return (
            f'{html.escape(self._title)} <progress value="{self._done}" max="{max(self._total, 1)}">'
            f"</progress> {html.escape(self._figures)}"
        )


def _short(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f}"


def _width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80


def _in_notebook() -> bool:
    """Whether this runs in a kernel, whose output is a page. IPython is never loaded to find out."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and getattr(shell, "kernel", None) is not None
