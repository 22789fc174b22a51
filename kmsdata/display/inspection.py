"""Reports on what the headers of encrypted data say, without a key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kmsdata.display.report import Report
from kmsdata.display.tables import escaped, in_files, size

__all__ = ["ColumnReport", "DataKeyReport", "Inspection"]

_UNVERIFIED = "This repeats what the headers say; nothing was decrypted or verified."
_EQUAL = "AES-256-SIV is deterministic: equal values have equal cells within one domain and data key."
_NOT_JOINED = "Columns under different data keys cannot be joined: encrypt both frames with one data key."

_HOW = {"AES-256-GCM": " randomised", "AES-256-SIV": " deterministic"}


@dataclass(frozen=True)
class ColumnReport:
    """One column.

    Attributes:
        name: its label.
        encrypted: whether it is encrypted.
        algorithm: ``AES-256-GCM`` (randomised), ``AES-256-SIV`` (deterministic), or None.
        domain: domain of a deterministic column; columns of the same domain and data key can be joined.
        type: the original type, as pandas or Arrow name it.
        nulls: number of null cells; None if they were not counted.
        bytes: size of its cells, in memory or in the file; None if it was not computed.
        data_keys: ids of the data keys that encrypt it.
    """

    name: str
    encrypted: bool
    type: str
    bytes: int | None
    algorithm: str | None = None
    domain: str | None = None
    nulls: int | None = None
    data_keys: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """``encrypted``, ``plain`` or, in a dataset, ``partly plain``."""
        if self.encrypted:
            return "encrypted"
        return "plain" if self.algorithm is None else "partly plain"


@dataclass(frozen=True)
class DataKeyReport:
    """One data key.

    Attributes:
        id: the first eight hexadecimal digits of its commitment.
        keys: URIs of the master keys; any one of them can unwrap it.
        context: the pairs that are required to unwrap it; they are stored unencrypted.
    """

    id: str
    keys: tuple[str, ...]
    context: dict[str, str]


@dataclass(frozen=True, repr=False)
class Inspection(Report):
    """What the headers of a frame, a table or a file say; see `kmsdata.inspect`.

    Displays as a table: text in a terminal, HTML in a notebook.

    Attributes:
        what: what was inspected, such as a path.
        rows: number of rows; None if they were not counted.
        bytes: size of the columns in memory, or of their data in the files; None if it was not computed.
        columns: every column, in order.
        data_keys: every data key.
        files: number of files; 0 for data in memory.
        notes: remarks on inconsistencies, and on other files in a folder, which were skipped.
    """

    what: str
    rows: int | None
    bytes: int | None
    columns: tuple[ColumnReport, ...]
    data_keys: tuple[DataKeyReport, ...]
    files: int = 0
    notes: tuple[str, ...] = ()

    @property
    def encrypted(self) -> list[str]:
        """Names of the encrypted columns."""
        return [column.name for column in self.columns if column.encrypted]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain Python objects."""
        return super().to_dict() | {"verified": False}

    @property
    def _title(self) -> str:
        rows = "rows not counted" if self.rows is None else f"{self.rows:,} rows"
        known = "" if self.bytes is None else f", {size(self.bytes)}"
        return (
            f"{self.what}: {rows}{in_files(self.files)}{known}; "
            f"{len(self.encrypted)} of {len(self.columns)} columns encrypted"
        )

    def _rows(self) -> list[dict[str, str]]:
        return [
            {
                "column": column.name,
                "state": column.state,
                "type": column.type,
                "algorithm": column.algorithm or "",
                "domain": column.domain or "",
                "nulls": "not counted" if column.nulls is None else f"{column.nulls:,}",
                "size": "not known" if column.bytes is None else size(column.bytes),
                "data key": " ".join(column.data_keys) if len(self.data_keys) > 1 else "",
            }
            for column in self.columns
        ]

    def _html_rows(self) -> list[dict[str, str]]:
        return [
            row | {"algorithm": row["algorithm"] + _HOW.get(row["algorithm"], "")} for row in self._rows()
        ]

    def _text_items(self) -> list[str]:
        lines: list[str] = []
        for key in self.data_keys:
            lines += [*([""] if lines else []), f"data key {key.id}", f"  opened by  {' or '.join(key.keys)}"]
            lines += [f"  context    {_pairs(key.context)}"] if key.context else []
        return lines

    def _html_items(self) -> list[str]:
        items = []
        for key in self.data_keys:
            opened = " or ".join(f"<code>{escaped(uri)}</code>" for uri in key.keys)
            said = f"; context <code>{escaped(_pairs(key.context))}</code>" if key.context else ""
            items.append(f"data key <code>{escaped(key.id)}</code>, opened by {opened}{said}")
        return items

    def _notes(self) -> list[str]:
        more = [_EQUAL] if any(column.domain is not None for column in self.columns) else []
        more += [_NOT_JOINED] if len(self.data_keys) > 1 else []
        return [*self.notes, *more, _UNVERIFIED]


def _pairs(context: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={text}" for name, text in context.items())
