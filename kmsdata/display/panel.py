"""Panels: what an object is, and which calls make sense next, as text and HTML."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from kmsdata.display.ipython import in_notebook, show
from kmsdata.display.tables import Call, Fact, as_html, as_text
from kmsdata.errors import printable

__all__ = ["KeyList", "Notice", "Panel", "shows_panel"]


_SHORTENED = {"id": 8, "created": len("2026-01-31")}  # characters that the table shows
_LONGEST = 1000  # characters of a text: an error with its remedy has fewer


def _bounded(text: str) -> str:
    """Leave out the middle of a long text: labels, and what a service sends, may have any length."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"


@dataclass(frozen=True, repr=False)
class Panel:
    """A panel: `str` is its text. Control characters are escaped; very long texts lose their middle."""

    title: str
    facts: Sequence[Fact] = ()
    rows: Sequence[Mapping[str, str]] = ()
    calls: Sequence[Call] = ()
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        return as_text(**self._shown())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return as_html(**self._shown())

    def _shown(self) -> dict[str, Any]:
        return {
            "title": _bounded(self.title),
            "facts": [fact._replace(text=_bounded(fact.text)) for fact in self.facts],
            "rows": [{heading: _bounded(text) for heading, text in row.items()} for row in self.rows],
            "calls": [Call(_bounded(code), what) for code, what in self.calls],
            "notes": list(map(_bounded, self.notes)),
        }


@dataclass(frozen=True, repr=False)
class Notice:
    """A title with facts, whose text is never folded: paths and commands in it can be copied."""

    title: str
    facts: Sequence[Fact]

    def __str__(self) -> str:
        width = max(len(fact.label) for fact in self.facts)
        lines = [self.title, *(f"  {fact.label:{width}}  {fact.text}" for fact in self.facts)]
        return "\n".join(map(printable, lines))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return as_html(self.title, facts=self.facts)

    def show(self) -> None:
        """Show it: below the cell in a notebook, otherwise on standard error."""
        if in_notebook():
            show(self)
        else:
            print(self, file=sys.stderr)


class _HasPanel(Protocol):
    def _panel(self) -> Panel: ...


_ClassT = TypeVar("_ClassT", bound=type[_HasPanel])


def shows_panel(cls: _ClassT) -> _ClassT:
    """Decorate a class with a method ``_panel``: IPython shows an object that is displayed alone as a panel.

    Its repr stays one line: for messages, logs, and objects in containers. A class decorator and not a base
    class: IPython uses the ``_repr_pretty_`` of a base class only if the class itself has no ``__repr__``.
    """

    def in_html(self: _HasPanel) -> str:
        return self._panel()._repr_html_()

    def in_text(self: _HasPanel, printer: Any, _: bool) -> None:
        alone = len(printer.stack) == 1  # the objects that IPython is printing, from the outermost
        printer.text(str(self._panel()) if alone else repr(self))

    cls._repr_html_ = in_html  # type: ignore[attr-defined]
    cls._repr_pretty_ = in_text  # type: ignore[attr-defined]
    return cls


class KeyList(list[dict[str, str]]):
    """The keys of a provider: a list of dicts that displays as a table.

    The table shortens ids and times. A copy by `copy`, `pickle` or a slice is a plain list.

    Args:
        keys: each with ``key`` and ``state``.
        where: the provider in words, for the title.
    """

    def __init__(self, keys: Iterable[dict[str, str]], where: str) -> None:
        super().__init__(keys)
        self._where = where

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)

    def _panel(self) -> Panel:
        rows = [{name: text[: _SHORTENED.get(name)] for name, text in key.items()} for key in self]
        calls = [] if self else [Call("provider.create_key('name')", "create one")]
        return Panel(
            f"{len(self):,} {'key' if len(self) == 1 else 'keys'} in {self._where}", rows=rows, calls=calls
        )

    def __repr__(self) -> str:
        return str(self._panel())

    def _repr_html_(self) -> str:
        return self._panel()._repr_html_()
