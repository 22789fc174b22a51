"""The base of every result object: text, HTML, JSON and an exit status."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from kmsdata.display.tables import as_html, as_text, escaped, printable

__all__ = ["MOST_SHOWN", "Report"]

MOST_SHOWN = 20  # items of a long list, such as failures


@dataclass(frozen=True, repr=False)
class Report(ABC):
    """A result that shows itself: text in a terminal, HTML in a notebook, JSON for programs.

    A subclass is a frozen dataclass. Its fields are the JSON document; it says its title, and the table rows,
    items and notes that it has.
    """

    _indent: ClassVar[int | None] = 1  # of the JSON document; None: all on one line

    @property
    def exit_status(self) -> int:
        """For pipelines: 0 where nothing is wrong."""
        return 0

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain Python, for programs."""
        return asdict(self)

    def json(self) -> str:
        """All of it as JSON.

        Example:
            >>> import json, kmsdata
            >>> json.loads(kmsdata.RewrapReport("people.parquet", 1, 1).json())["rewrapped"]
            1
        """
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=self._indent)

    @property
    @abstractmethod
    def _title(self) -> str:
        """The first line."""

    def _rows(self) -> Sequence[Mapping[str, str]] | None:
        """Return the rows of the table: texts by heading; None for a report without a table."""
        return None

    def _html_rows(self) -> Sequence[Mapping[str, str]] | None:
        """Return the rows of the table in HTML, which has room for more words."""
        return self._rows()

    def _items(self) -> list[str]:
        """Return the sentences listed below the table."""
        return []

    def _text_items(self) -> list[str]:
        """Return the items as lines of text."""
        return [f"- {item}" for item in self._items()]

    def _html_items(self) -> list[str]:
        """Return the items as HTML."""
        return [escaped(item) for item in self._items()]

    def _notes(self) -> list[str]:
        """Return the remarks at the end."""
        return []

    def __str__(self) -> str:
        rows = self._rows()
        if rows is None:  # nothing to align, so nothing is folded
            return printable("\n  ".join([self._title, *self._items()]), "\n")
        items = self._text_items()
        return as_text(self._title, rows, [*([""] if items else []), *items, "", *self._notes()])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return as_html(self._title, self._html_rows() or [], self._html_items(), self._notes())
