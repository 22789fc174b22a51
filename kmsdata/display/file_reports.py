"""Reports on files that were rewrapped, or written with encrypted or decrypted columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kmsdata.display.report import MOST_SHOWN, Report
from kmsdata.display.tables import Fact, in_files, size

__all__ = ["RewrapReport", "StreamReport"]


@dataclass(frozen=True, repr=False)
class RewrapReport(Report):
    """The result of rewrapping the files of a path; see `kmsdata.rewrap`.

    Attributes:
        what: the path.
        files: number of files, including ``_metadata`` and ``_common_metadata``.
        rewrapped: number of files whose wrapped keys were exchanged.
        already: number of files that needed no change and were skipped.
        other: number of files under master keys other than the one to replace; they were skipped.
        plain: number of files without encrypted columns.
        keys: number of files that each master key can open now, by URI.
        left: number of files for each message about a wrapped key that could not be unwrapped and was kept.
        failed: why a file could not be rewrapped, by file; such a file is unchanged.
        kms_calls: number of KMS calls.
        dry_run: True: nothing was changed, and the report says what would happen.
        notes: remarks, such as on other files in a folder, which were skipped.
    """

    what: str
    files: int
    rewrapped: int
    already: int = 0
    other: int = 0
    plain: int = 0
    keys: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    kms_calls: int = 0
    dry_run: bool = False
    notes: tuple[str, ...] = ()

    @property
    def exit_status(self) -> int:
        """Exit status for pipelines: 0 if no file failed, otherwise 1."""
        return 1 if self.failed else 0

    @property
    def _title(self) -> str:
        counts = [
            (self.rewrapped, "would be rewrapped" if self.dry_run else "rewrapped"),
            (self.already, "already up to date"),
            (self.other, "under other keys, skipped"),
            (self.plain, "without encrypted columns"),
            (len(self.failed), "failed"),
        ]
        said = [f"{count:,} {what}" for count, what in counts if count]
        return f"{self.what}: {self.files:,} {'file' if self.files == 1 else 'files'}: {', '.join(said)}"

    def _items(self) -> list[str]:
        opens = "would open {:,} file(s)" if self.dry_run else "now opens {:,} file(s)"
        items = [f"{key} {opens.format(count)}" for key, count in self.keys.items()]
        if self.dry_run:
            calls = "1 KMS call" if self.kms_calls == 1 else f"{self.kms_calls:,} KMS calls"
            items += [f"{calls} would be made"]
        items += [f"{sentence} ({count:,} file(s))" for sentence, count in self.left.items()]
        items += self.notes
        failed = list(self.failed.items())[:MOST_SHOWN]
        items += [why if name in why else f"{name}: {why}" for name, why in failed]
        hidden = len(self.failed) - MOST_SHOWN
        return items + ([f"and {hidden:,} more"] if hidden > 0 else [])


@dataclass(frozen=True, repr=False)
class StreamReport(Report):
    """The result of writing a file or folder, or of its dry run; see `kmsdata.encrypt_parquet`.

    Attributes:
        target: the file or folder.
        rows: number of rows; an estimate in a dry run over CSV.
        files: number of files.
        bytes: size of the files; an estimate in a dry run.
        columns: the columns that were encrypted or decrypted.
        kms_calls: number of KMS calls; the maximum in a dry run.
        dry_run: True: nothing was written.
        notes: remarks, such as on other files in a folder, which were skipped.
    """

    target: str
    rows: int
    files: int
    bytes: int
    columns: tuple[str, ...]
    kms_calls: int
    dry_run: bool = False
    notes: tuple[str, ...] = ()

    _indent = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain Python objects; ``estimated`` names the numbers that are estimates."""
        estimated = ["rows", "bytes", "kms_calls"] if self.dry_run else []
        return super().to_dict() | {"estimated": estimated}

    @property
    def _title(self) -> str:
        would = "would write about" if self.dry_run else "wrote"
        return f"{would} {self.rows:,} rows{in_files(self.files)}, {size(self.bytes)}, to {self.target}"

    def _facts(self) -> list[Fact]:
        most = "at most " if self.dry_run else ""
        shown, hidden = self.columns[:MOST_SHOWN], len(self.columns) - MOST_SHOWN
        return [
            Fact("columns", ", ".join(shown) + (f" and {hidden:,} more" if hidden > 0 else "")),
            Fact("KMS calls", f"{most}{self.kms_calls:,}"),
        ]

    def _notes(self) -> list[str]:
        return list(self.notes)
