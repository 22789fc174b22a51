"""A password field whose text is never stored where the notebook could save it."""

from __future__ import annotations

from typing import Any

import ipywidgets as w
import traitlets

from kmsdata.keys.data_key import Secret

__all__ = ["WipingPassword"]

_INVISIBLE = "\u200b\u2060\ufeff"  # zero-width characters from web pages, which str.strip() keeps


class _Typed(Secret):
    """The typed text. Its repr is hidden, so a traceback that shows local variables does not reveal it."""

    __slots__ = ("text",)

    def __init__(self, text: str = "") -> None:
        self.text = text

    @property
    def plausible(self) -> bool:
        """Whether it contains only characters that a key can have."""
        return self.text.isascii() and self.text.isprintable()

    def equals(self, other: _Typed) -> bool:
        """Return whether the other text is the same."""
        return self.text == other.text


class WipingPassword(w.Password):
    """A field that moves its value to ``typed`` when it arrives; the value that can be saved is always empty.

    Args:
        exact: True: blanks around the text are part of it, as in a passphrase. False: they are removed.
        named: whether to show the first and last four characters, so that the user can recognise the text.
        options: of `ipywidgets.Password`.
    """

    # ipywidgets 8 would echo the value to every other window that shows the notebook.
    value = traitlets.Unicode("").tag(sync=True, echo_update=False)

    def __init__(self, *, exact: bool = False, named: bool = False, **options: Any) -> None:
        # By default each character is sent at once: part of a secret would be in the state when it is saved.
        super().__init__(continuous_update=False, **options)
        self._exact, self._named, self._hint = exact, named, options.get("placeholder", "")
        self.typed = _Typed()
        self.observe(self._take, "value")

    def _take(self, change: dict[str, Any]) -> None:
        if not change["new"]:
            return
        typed = _Typed(change["new"])
        self.value = change["new"] = ""
        stripped = typed.text.strip().strip(_INVISIBLE).strip()
        if not (self._exact and stripped):  # blanks alone clear the field
            typed.text = stripped
        del stripped
        self.typed = typed
        self._show()

    def clear(self) -> None:
        """Forget what was typed."""
        self.typed = _Typed()
        self._show()

    def _show(self) -> None:
        text = self.typed.text
        mask = f": {text[:4]}…{text[-4:]}" if self._named and len(text) > 16 else ""
        self.placeholder = f"received{mask} (type to replace it, a blank to clear it)" if text else self._hint
