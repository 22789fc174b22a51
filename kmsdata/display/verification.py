"""What authenticating every encrypted cell has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kmsdata.display.report import MOST_SHOWN, Report
from kmsdata.display.tables import in_files

__all__ = ["ColumnCheck", "Failure", "Verification"]

_NOT_SHOWN = (
    "Not noticed: rows removed, repeated or reordered, cells set to null or exchanged within their column, "
    "plain columns changed, older data under the same data key."
)


@dataclass(frozen=True)
class Failure:
    """Something that does not hold.

    Attributes:
        what: a sentence.
        file: where, in a dataset or file.
        column: of which column; None where it is the file's.
        row_group: of which row group.
        rows: positions (in the file, frame or table) of the first cells concerned.
        count: how many cells are concerned; 0 where it is none's.
    """

    what: str
    file: str | None = None
    column: str | None = None
    row_group: int | None = None
    rows: tuple[int, ...] = ()
    count: int = 0

    def __str__(self) -> str:
        where = [self.file, None if self.column is None else f"column {self.column!r}"]
        where += [None if self.row_group is None else f"row group {self.row_group}"]
        what = self.what
        if self.count:
            some = ", ".join(map(str, self.rows[:5]))
            one = self.count == 1
            what += f": {self.count:,} cell{'' if one else 's'} (row{'' if one else 's'} {some}"
            what += ", ...)" if self.count > 5 else ")"
        return ": ".join(filter(None, [", ".join(filter(None, where)), what]))


@dataclass(frozen=True)
class ColumnCheck:
    """What was found of one column.

    Attributes:
        name: its label.
        state: ``authentic``: every cell is; ``failed``: something is not; ``not verified``: its key was
            refused, so nothing can be said.
        algorithm: ``AES-256-GCM``, ``AES-256-SIV``, or None where no header says it.
        cells: how many cells were found to be authentic.
        nulls: how many are null, and so cannot be told from those that were set to null.
        bad: how many cells are not authentic.
    """

    name: str
    state: str
    algorithm: str | None
    cells: int
    nulls: int
    bad: int


@dataclass(frozen=True, repr=False)
class Verification(Report):
    """What was found when every encrypted cell was authenticated; see `kmsdata.verify`.

    Shows itself as a table: text in a terminal, HTML in a notebook. Holds no plaintext.

    Attributes:
        what: what was looked at, such as a path.
        rows: how many.
        columns: the encrypted columns, and those that should have been.
        failures: everything that does not hold, and every column that could not be verified.
        files: how many files; 0 for what is in memory.
    """

    what: str
    rows: int
    columns: tuple[ColumnCheck, ...]
    failures: tuple[Failure, ...]
    files: int = 0

    @property
    def ok(self) -> bool:
        """Whether there is something encrypted, and all of it is authentic."""
        return (
            bool(self.columns)
            and not self.failures
            and all(column.state == "authentic" for column in self.columns)
        )

    @property
    def exit_status(self) -> int:
        """For pipelines: 0 where all is authentic, 3 where something is not.

        1 where all that is wrong is that keys were refused, so that nothing can be said.
        """
        if self.ok:
            return 0
        state = {column.name: column.state for column in self.columns}
        refused = all(state.get(failure.column or "") == "not verified" for failure in self.failures)
        return 1 if self.failures and refused else 3

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain Python, for programs."""
        return super().to_dict() | {"ok": self.ok}

    @property
    def _title(self) -> str:
        good = sum(column.state == "authentic" for column in self.columns)
        verdict = "authentic" if self.ok else "NOT VERIFIED"
        return (
            f"{self.what}: {verdict}; {self.rows:,} rows{in_files(self.files)}, {good} of "
            f"{len(self.columns)} encrypted columns authentic"
        )

    def _rows(self) -> list[dict[str, str]]:
        return [
            {
                "column": column.name,
                "state": column.state,
                "algorithm": column.algorithm or "",
                "authentic": f"{column.cells:,}",
                "bad": f"{column.bad:,}",
                "nulls": f"{column.nulls:,}",
            }
            for column in self.columns
        ]

    def _items(self) -> list[str]:
        hidden = len(self.failures) - MOST_SHOWN
        more = [f"... and {hidden:,} more, in .failures"] if hidden > 0 else []
        return [*map(str, self.failures[:MOST_SHOWN]), *more]

    def _notes(self) -> list[str]:
        return [_NOT_SHOWN]
