"""The base class of reports: text, HTML, JSON and an exit status."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from kmsdata.display.tables import Fact, as_html, as_text, escaped
from kmsdata.errors import printable

__all__ = ["MOST_SHOWN", "Report"]

MOST_SHOWN = 20  # items of a long list, such as failures, that text and HTML show


@dataclass(frozen=True, repr=False)
class Report(ABC):
    """A result that displays as text in a terminal and as HTML in a notebook, and converts to JSON.

    A subclass is a frozen dataclass. Its fields are the JSON document. It defines a title, and optionally
    table rows, facts, items and notes.
    """

    _indent: ClassVar[int | None] = 1  # indentation of the JSON document; None: one line

    @property
    def exit_status(self) -> int:
        """Exit status for pipelines: 0 if nothing is wrong."""
        return 0

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain Python objects."""
        return asdict(self)

    def json(self) -> str:
        """Return the report as JSON.

        Example:
            >>> import json, kmsdata
            >>> json.loads(kmsdata.RewrapReport("people.parquet", 1, 1).json())["rewrapped"]
            1
        """
        text = json.dumps(self.to_dict(), ensure_ascii=False, indent=self._indent)
        # JSON escapes only some of what could control a terminal; outside of strings there is none of it.
        return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)

    @property
    @abstractmethod
    def _title(self) -> str:
        """The first line."""

    def _rows(self) -> Sequence[Mapping[str, str]] | None:
        """Return the rows of the table, each as texts by heading; None for a report without a table."""
        return None

    def _html_rows(self) -> Sequence[Mapping[str, str]] | None:
        """Return the rows of the HTML table, which has room for more words."""
        return self._rows()

    def _facts(self) -> list[Fact]:
        """Return labelled texts."""
        return []

    def _items(self) -> list[str]:
        """Return the sentences to list below the table."""
        return []

    def _text_items(self) -> list[str]:
        """Return the items as lines of text."""
        return [f"- {item}" for item in self._items()]

    def _html_items(self) -> list[str]:
        """Return the items as HTML."""
        return [escaped(item) for item in self._items()]

    def _notes(self) -> list[str]:
        """Return the remarks to put at the end."""
        return []

    def __str__(self) -> str:
        rows, facts = self._rows(), self._facts()
        if rows is None and not facts:  # nothing to align, so long lines are not folded
            return printable("\n  ".join([self._title, *self._items()]), "\n")
        return as_text(
            self._title, facts=facts, rows=rows or (), items=self._text_items(), notes=self._notes()
        )

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return as_html(
            self._title,
            facts=self._facts(),
            rows=self._html_rows() or (),
            items=self._html_items(),
            notes=self._notes(),
        )
