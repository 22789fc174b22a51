"""What was done to files: rewrapped, or written with encrypted or decrypted columns."""

from __future__ import annotations

from dataclasses import dataclass, field

from kmsdata.display.report import MOST_SHOWN, Report
from kmsdata.display.tables import in_files, printable, size

__all__ = ["RewrapReport", "StreamReport"]


@dataclass(frozen=True, repr=False)
class RewrapReport(Report):
    """What became of the files of a path; see `kmsdata.rewrap`.

    Attributes:
        what: the path.
        files: how many files there are, ``_metadata`` and the like among them.
        rewrapped: how many have other wraps now.
        already: how many were as they were asked to be, and were skipped.
        other: how many are under other master keys than the one to be replaced, and were left alone.
        plain: how many have no encrypted column.
        keys: by master key that opens files now, how many.
        left: by sentence on a wrap that does not open and so was left alone, in how many files.
        failed: by file, why it could not be rewrapped; such a file is as it was.
        kms_calls: calls of key services.
        dry_run: whether nothing was done, so that all of this is what would be.
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

    @property
    def exit_status(self) -> int:
        """For pipelines: 0 where every file is as asked, 1 where some failed."""
        return 1 if self.failed else 0

    @property
    def _title(self) -> str:
        counts = [
            (self.rewrapped, "would be rewrapped" if self.dry_run else "rewrapped"),
            (self.already, "as asked already"),
            (self.other, "under other keys, left alone"),
            (self.plain, "without encrypted columns"),
            (len(self.failed), "failed"),
        ]
        said = [f"{count:,} {what}" for count, what in counts if count]
        return f"{self.what}: {self.files:,} {'file' if self.files == 1 else 'files'}: {', '.join(said)}"

    def _items(self) -> list[str]:
        opens = "would open {:,}" if self.dry_run else "opens {:,} now"
        items = [f"{key} {opens.format(count)}" for key, count in self.keys.items()]
        if self.dry_run:
            calls = "1 call" if self.kms_calls == 1 else f"{self.kms_calls:,} calls"
            items += [f"{calls} of the key service"]
        items += [f"{sentence} ({count:,} files)" for sentence, count in self.left.items()]
        failed = list(self.failed.items())[:MOST_SHOWN]
        items += [why if name in why else f"{name}: {why}" for name, why in failed]
        hidden = len(self.failed) - MOST_SHOWN
        return items + ([f"and {hidden:,} more"] if hidden > 0 else [])


@dataclass(frozen=True, repr=False)
class StreamReport(Report):
    """What was written to a file or folder, or would be; see `kmsdata.encrypt_parquet`.

    Attributes:
        target: where to.
        rows: how many; of a dry run over CSV, about.
        files: how many.
        bytes: what they take; of a dry run, about.
        columns: those that were encrypted or decrypted.
        kms_calls: calls of key services; of a dry run, at most.
        dry_run: whether nothing was written.
    """

    target: str
    rows: int
    files: int
    bytes: int
    columns: tuple[str, ...]
    kms_calls: int
    dry_run: bool = False

    _indent = None

    @property
    def _title(self) -> str:
        would = "would write about" if self.dry_run else "wrote"
        calls = "1 call" if self.kms_calls == 1 else f"{self.kms_calls} calls"
        return printable(
            f"{would} {self.rows:,} rows{in_files(self.files)}, {size(self.bytes)}, to {self.target}; "
            f"columns {', '.join(self.columns)}; {calls} of the key service"
        )
