"""A password field that keeps nothing of what was typed where the notebook could save it."""

from __future__ import annotations

from typing import Any

import ipywidgets as w
import traitlets

from kmsdata.keys.data_key import Secret

__all__ = ["WipingPassword"]

_INVISIBLE = "\u200b\u2060\ufeff"  # pasted along from web pages; `strip` knows the other blanks


class _Typed(Secret):
    """What was typed. A frame may hold it, since it shows nothing."""

    __slots__ = ("text",)

    def __init__(self, text: str = "") -> None:
        self.text = text

    @property
    def plausible(self) -> bool:
        """Whether it holds nothing but what keys are made of."""
        return self.text.isascii() and self.text.isprintable()

    def equals(self, other: _Typed) -> bool:
        """Whether the same was typed."""
        return self.text == other.text


class WipingPassword(w.Password):
    """A field whose value is moved out as it comes; what the notebook could save of it is always empty.

    Args:
        exact: whether blanks around it are part of it, as in a passphrase; pasted ones are none of a key.
        named: whether its first and last four letters are shown, so that one sees which it was.
        options: of `ipywidgets.Password`.
    """

    value = traitlets.Unicode("").tag(sync=True, echo_update=False)  # nor is it sent to other windows

    def __init__(self, *, exact: bool = False, named: bool = False, **options: Any) -> None:
        # With every letter sent by itself, half a secret would be on its way whenever somebody saves.
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
        if not (self._exact and stripped):  # nothing but blanks takes back what was typed before
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
