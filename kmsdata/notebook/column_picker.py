"""The table that ``df.kms.pick()`` shows, to choose the columns to encrypt.

The page gets labels, dtypes, counts and shapes: no value of the data is in the widget's state, nor in a
message.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from kmsdata.display.column_profile import CHOICES, SHAPES, ColumnProfile, FrameProfile
from kmsdata.display.ipython import (
    cell_number,
    in_marimo,
    in_notebook,
    show_bundle,
    thread_class,
    variable_name,
)
from kmsdata.errors import CallerError, KmsDataError, printable
from kmsdata.notebook.browser import texts

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ColumnPicker"]


class ColumnPicker(anywidget.AnyWidget):
    """The picker. Each call of ``df.kms.pick()`` makes one.

    Args:
        profile: what to show of each column.
        encrypt: called with the labels of the randomised and of the deterministic columns; returns the
            encrypted frame, and the URIs of the master keys that open what was encrypted.
        frame: the frame's name in the user's code.
        key: the argument ``key=...`` in the user's code; empty for the session's key.
        hint: what to say before the button is pressed.

    Attributes:
        columns: what the page shows of each column, as plain data. Never a value.
        view: the rest of what the page shows, as plain data.
        choices: the choice for each column, as the page last said; only for showing it again.
    """

    _esm = texts("theme.js", "kernel_link.js", "column_picker.js")
    _css = texts("theme.css", "column_picker.css")
    columns: traitlets.List[dict[str, Any]] = traitlets.List().tag(sync=True)
    view = traitlets.Dict().tag(sync=True)
    choices: traitlets.List[str] = traitlets.List().tag(sync=True)

    def __init__(
        self,
        profile: FrameProfile,
        encrypt: Callable[[list[str], list[str]], tuple[pd.DataFrame, Sequence[str]]],
        *,
        frame: str = "df",
        key: str = "",
        hint: str = "",
    ) -> None:
        self._profile, self._encrypt, self._frame, self._key = profile, encrypt, frame, key
        self._result: pd.DataFrame | None = None
        self._said = "ask", ""  # or busy, good, bad
        self._lock = threading.RLock()
        self._worker: threading.Thread | None = None
        self._cell: object = None  # the cell that it was last shown in
        super().__init__(
            columns=[self._shown(column) for column in profile.columns],
            choices=["plain"] * len(profile.columns),
        )
        self.on_msg(self._receive)
        if profile.columns:
            self._say("ask", hint)
        else:
            self._say("bad", "The frame has no columns, so there is nothing to encrypt.")

    @property
    def result(self) -> pd.DataFrame:
        """The encrypted frame that the last press of the button made; waits while it is being made.

        Raises:
            KmsDataError: the button was not pressed yet, or the encryption failed.
        """
        worker = self._worker
        if worker is not None:
            worker.join()
        if self._result is not None:
            return self._result
        kind, text = self._said
        if kind == "bad":
            raise KmsDataError(f"there is no result, because the encryption failed: {text}")
        raise KmsDataError(
            "there is no result yet: choose columns in the picker above and press Encrypt, then run again "
            "from here"
        )

    # Display.

    def __repr__(self) -> str:
        state = "nothing encrypted yet" if self._result is None else "the encrypted frame is in .result"
        return f"<df.kms.pick(): {len(self._profile.columns)} columns, {self._profile.rows:,} rows; {state}>"

    def __str__(self) -> str:
        return str(self._profile)

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        bundle, metadata = super()._repr_mimebundle_() or ({}, {})
        # Without a kernel (in a mail, on GitHub, in an export) only these representations are shown.
        said = "<p><b>kmsdata</b>: run this cell to choose the columns to encrypt.</p>"
        return bundle | {
            "text/plain": repr(self),
            "text/html": said + self._profile._repr_html_(),
        }, metadata

    def display(self) -> None:
        """Display the picker in a notebook, once per cell.

        ``df.kms.pick()`` displays it, and IPython does so again for a cell that ends with it.
        """
        if in_marimo():
            import marimo

            marimo.output.append(self)
            return
        if not in_notebook():
            return
        cell = cell_number()
        if cell is None or cell != self._cell:
            show_bundle(self._repr_mimebundle_()[0])
        self._cell = cell

    def _ipython_display_(self) -> None:
        if not in_notebook():
            raise NotImplementedError  # for IPython in a terminal this means: show the repr
        self.display()

    def _shown(self, column: ColumnProfile) -> dict[str, Any]:
        """Return what the page shows of a column."""
        return {
            "label": printable(str(column.name)) or "''",
            "literal": repr(column.name) if isinstance(column.name, str) else "",
            "dtype": printable(column.dtype),
            "nulls": f"{column.nulls:,}",
            "distinct": self._profile.distinct(column),
            "shape": column.shape,
            "encrypted": column.encrypted or "",
            "refused": {said.choice: printable(said.text) for said in column.refused},
            "warnings": [[said.choice, said.text, said.why] for said in column.warnings],
        }

    def _say(self, kind: str, text: str) -> None:
        """Send the page what to show. What the page sends back as ``view`` or ``choices`` is never read."""
        self._said = kind, text
        self.view = {
            "id": self.model_id,
            "frame": self._frame,
            "key": self._key,
            "rows": f"{self._profile.rows:,}",
            "scope": self._profile.scope,
            "shapes": SHAPES if any(column.shape for column in self._profile.columns) else "",
            "busy": kind == "busy",
            "status": [kind, text],
        }

    # Messages of the page. Jupyter does not show errors of a handler in the cell, so the picker shows them.

    def _receive(self, _: object, content: object, __: list[Any] | None) -> None:
        """Handle a message, in any thread: with ipykernel's subshells, while a cell runs."""
        if not isinstance(content, dict):
            return
        with self._lock:
            if content.get("type") == "encrypt" and self._said[0] != "busy":
                self._start(content.get("choices"))
        # An answer names the page that asked: several windows can show this picker.
        self.send({"type": "answer", "link": content.get("link"), "number": content.get("number")})

    def _start(self, choices: object) -> None:
        """Encrypt in a thread, so that the kernel answers meanwhile."""
        # A result must never be of other choices than those that were confirmed last.
        self._result = None
        chosen: dict[str, list[str]] = {choice: [] for choice in CHOICES}
        if not isinstance(choices, list) or len(choices) != len(self._profile.columns):
            choices = []
        for column, choice in zip(self._profile.columns, choices, strict=False):
            refused = [said.choice for said in column.refused]
            if choice in CHOICES[1:] and choice not in refused and isinstance(column.name, str):
                chosen[choice].append(column.name)
        count = len(chosen["randomised"]) + len(chosen["deterministic"])
        if not count:
            self._say("bad", "Choose at least one column.")
            return
        try:
            self._say("busy", f"Encrypting {count} {'column' if count == 1 else 'columns'} …")
            worker = thread_class()(
                target=self._carry_out,
                args=(chosen["randomised"], chosen["deterministic"]),
                name="kmsdata-pick",
                daemon=True,
            )
            worker.start()
        except BaseException as error:  # noqa: BLE001 - in every case, the button must work again
            self._say("bad", f"this could not start ({type(error).__name__}). Press Encrypt again.")
        else:
            self._worker = worker

    def _carry_out(self, randomised: list[str], deterministic: list[str]) -> None:
        try:
            said = "good", self._encrypted(randomised, deterministic)
        except (KmsDataError, CallerError) as error:
            said = "bad", str(error)
        except BaseException as error:  # noqa: BLE001 - its text may contain values; SystemExit ends the thread
            said = "bad", f"this failed ({type(error).__name__}). Run the call above in a cell to see where."
        self._say(*said)

    def _encrypted(self, randomised: list[str], deterministic: list[str]) -> str:
        """Encrypt, keep the result, and say where it is and which keys open it."""
        self._result, keys = self._encrypt(randomised, deterministic)
        count = len(randomised) + len(deterministic)
        name = variable_name(self)
        where = (
            f"The encrypted frame is {name}.result."
            if name
            else "The encrypted frame is the picker's .result: write picked = df.kms.pick() to keep it."
        )
        done = f"{count} {'column' if count == 1 else 'columns'} encrypted. {where}"
        return f"{done} It is opened by {' or '.join(keys)}."
