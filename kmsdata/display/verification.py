"""Reports on the authentication of every encrypted cell."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from kmsdata.display.report import MOST_SHOWN, Report
from kmsdata.display.tables import in_files

__all__ = ["ColumnCheck", "Failure", "Verification"]

_NOT_SHOWN = (
    "Not detected: rows removed, repeated or reordered, cells set to null or exchanged within their column, "
    "changes to plain columns, replacement by older data under the same data key."
)


@dataclass(frozen=True)
class Failure:
    """A check that failed.

    Attributes:
        what: a sentence that describes the failure.
        file: the file, for a dataset or file.
        column: the column; None if it concerns the whole file.
        row_group: the row group.
        rows: positions (in the file, frame or table) of the first cells concerned.
        count: number of cells concerned; 0 if the failure is not about cells.
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
            what += f": {self.count:,} cell{'' if one else 's'}"
            if self.rows:  # those of Spark have no position
                what += f" (row{'' if one else 's'} {some}" + (", ...)" if self.count > 5 else ")")
        return ": ".join(filter(None, [", ".join(filter(None, where)), what]))


@dataclass(frozen=True)
class ColumnCheck:
    """The result for one column.

    Attributes:
        name: its label.
        state: ``authentic``: every cell is; ``failed``: a check failed; ``not encrypted``, ``missing``: it
            must be encrypted, but is not, or is not there; ``not verified``: the key was refused, so the
            cells could not be checked.
        algorithm: ``AES-256-GCM``, ``AES-256-SIV``, or None without a header.
        cells: number of cells that are authentic.
        nulls: number of nulls. An original null cannot be distinguished from a cell that was set to null.
        bad: number of cells that are not authentic.
    """

    name: str
    state: str
    algorithm: str | None
    cells: int
    nulls: int
    bad: int


@dataclass(frozen=True, repr=False)
class Verification(Report):
    """The result of authenticating every encrypted cell; see `kmsdata.verify`.

    Displays as a table: text in a terminal, HTML in a notebook. Contains no plaintext.

    Attributes:
        what: what was verified, such as a path.
        rows: number of rows.
        columns: the encrypted columns, and columns that should be encrypted but are not.
        failures: every check that failed, and every column that could not be verified.
        files: number of files; 0 for data in memory.
        notes: remarks, such as on other files in a folder, which were skipped.
    """

    what: str
    rows: int
    columns: tuple[ColumnCheck, ...]
    failures: tuple[Failure, ...]
    files: int = 0
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there are encrypted columns, and every cell of them is authentic."""
        return (
            bool(self.columns)
            and not self.failures
            and all(column.state == "authentic" for column in self.columns)
        )

    @property
    def exit_status(self) -> int:
        """Exit status for pipelines: 0 if every cell is authentic, 3 if not.

        1 if the only failures are refused keys, so that the cells could not be checked.
        """
        if self.ok:
            return 0
        state = {column.name: column.state for column in self.columns}
        refused = all(state.get(failure.column or "") == "not verified" for failure in self.failures)
        return 1 if self.failures and refused else 3

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain Python objects."""
        return super().to_dict() | {"ok": self.ok}

    @property
    def _title(self) -> str:
        verdict = {0: "authentic", 1: "COULD NOT BE CHECKED: keys were refused", 3: "FAILED"}
        title = f"{self.what}: {verdict[self.exit_status]}; {self.rows:,} rows{in_files(self.files)}"
        if not self.columns:
            return f"{title}, nothing is encrypted"
        counts = Counter(column.state for column in self.columns)
        good = counts.pop("authentic", 0)
        others = "".join(f", {count:,} {state}" for state, count in counts.items())
        return f"{title}, {good} of {len(self.columns)} columns authentic{others}"

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
        return [*self.notes, _NOT_SHOWN]
