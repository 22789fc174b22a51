"""What a column picker says about the columns of a frame: figures, shapes and warnings, never a value."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Literal

from kmsdata.display.report import Report

__all__ = ["CHOICES", "SHAPES", "Choice", "ColumnProfile", "FrameProfile", "Warned"]

Choice = Literal["plain", "randomised", "deterministic"]
CHOICES: tuple[Choice, ...] = ("plain", "randomised", "deterministic")
SHAPES = (
    "Shapes: 9 is a digit, A is upper case, a is lower case, x is a character without case, # is another "
    "character, * is a repetition."
)


@dataclass(frozen=True)
class Warned:
    """What to think of before a choice, or why it cannot be made.

    Attributes:
        choice: the choice that it concerns.
        text: the fact.
        why: what follows from it for this choice.
    """

    choice: Choice
    text: str
    why: str = ""


@dataclass(frozen=True)
class ColumnProfile:
    """Figures of one column. They contain no value of it.

    Attributes:
        name: its label.
        dtype: its dtype, as text.
        nulls: number of nulls, in all rows.
        distinct: number of distinct values in the rows that were examined; None if they cannot be counted.
        shape: the most frequent shape of its texts and whole numbers, such as ``999-99-9999``; empty if there
            is none, or if so few values have it that it could reveal one.
        warnings: what to think of before the choice.
        refused: why it cannot be encrypted in one of the two ways, by choice.
        encrypted: how it is encrypted already; None if it is not.
    """

    name: Hashable
    dtype: str
    nulls: int
    distinct: int | None = None
    shape: str = ""
    warnings: tuple[Warned, ...] = ()
    refused: tuple[Warned, ...] = ()
    encrypted: Choice | None = None


@dataclass(frozen=True, repr=False)
class FrameProfile(Report):
    """The profiles of all columns of a frame.

    Attributes:
        rows: number of rows.
        examined: number of rows that distinct values, shapes and warnings are from.
        columns: every column, in order.
    """

    rows: int
    examined: int
    columns: tuple[ColumnProfile, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as plain Python objects, with labels as text."""
        made = super().to_dict()
        for column in made["columns"]:
            column["name"] = str(column["name"])
        return made

    @property
    def sampled(self) -> bool:
        """Whether only some of the rows were examined."""
        return self.examined < self.rows

    def distinct(self, column: ColumnProfile) -> str:
        """Return the number of distinct values as text."""
        if column.distinct is None:
            return ""
        return f"{'≥ ' if self.sampled and column.distinct else ''}{column.distinct:,}"

    @property
    def scope(self) -> str:
        """What the figures are from, in words; empty if from all rows."""
        if not self.sampled:
            return ""
        return (
            f"Nulls are counted in all {self.rows:,} rows; everything else is from a sample of "
            f"{self.examined:,} rows."
        )

    @property
    def _title(self) -> str:
        return f"{self.rows:,} rows, {len(self.columns)} columns"

    def _rows(self) -> list[dict[str, str]]:
        return [
            {
                "column": str(column.name),
                "state": "plain" if column.encrypted is None else "encrypted",
                "type": column.dtype,
                "nulls": f"{column.nulls:,}",
                "distinct": self.distinct(column),
                "shape": column.shape,
                "remarks": "; ".join(
                    dict.fromkeys(said.text for said in (*column.warnings, *column.refused))
                ),
            }
            for column in self.columns
        ]

    def _notes(self) -> list[str]:
        shapes = [SHAPES] if any(column.shape for column in self.columns) else []
        return [*([self.scope] if self.sampled else []), *shapes]
