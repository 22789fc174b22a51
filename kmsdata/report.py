"""What can be said of encrypted data: as text, as HTML that survives untrusted notebooks, as JSON."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["ColumnReport", "DataKeyReport", "Inspection", "StreamReport", "size"]

_UNVERIFIED = "As the headers say; nothing was decrypted or verified."
_NOT_JOINED = "Columns under different data keys cannot be joined: give the second key= the first frame."

# Background and colour together: a notebook that is not trusted drops style sheets and variables, and either
# alone could be unreadable in the dark.
_ENCRYPTED = "background:#e6f4ea;color:#0b5c2c;padding:1px 6px"
_PLAIN = "background:#eceff1;color:#37474f;padding:1px 6px"


@dataclass(frozen=True)
class ColumnReport:
    """One column.

    Attributes:
        name: its label.
        encrypted: whether it is.
        algorithm: ``AES-256-GCM`` (randomised), ``AES-256-SIV`` (deterministic), or None.
        domain: of a deterministic column: what it may be joined across.
        type: the original type, as pandas or Arrow write it.
        nulls: how many cells are null; None where that was not counted.
        bytes: what its cells take, in memory or in the file.
        data_keys: ids of the data keys that it is under.
    """

    name: str
    encrypted: bool
    type: str
    bytes: int
    algorithm: str | None = None
    domain: str | None = None
    nulls: int | None = None
    data_keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataKeyReport:
    """One data key.

    Attributes:
        id: the first eight hexadecimal digits of its commitment.
        keys: URIs of the master keys, any one of which opens it.
        context: the pairs that opening it takes, which stand in clear.
    """

    id: str
    keys: tuple[str, ...]
    context: dict[str, str]


@dataclass(frozen=True)
class Inspection:
    """What can be said of a frame, a table or a file without any key; see `kmsdata.inspect`.

    Shows itself as a table: text in a terminal, HTML in a notebook.

    Attributes:
        what: what was looked at, such as a path.
        rows: how many.
        bytes: what the columns take in memory, or the files on disk.
        columns: every column, in order.
        data_keys: every data key.
        files: how many files; 0 for what is in memory.
        notes: what is odd, in sentences.
    """

    what: str
    rows: int
    bytes: int
    columns: tuple[ColumnReport, ...]
    data_keys: tuple[DataKeyReport, ...]
    files: int = 0
    notes: tuple[str, ...] = ()

    @property
    def encrypted(self) -> list[str]:
        """Names of the encrypted columns."""
        return [column.name for column in self.columns if column.encrypted]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain Python, for programs."""
        return asdict(self) | {"verified": False}

    def json(self) -> str:
        """All of it as JSON.

        Example:
            >>> import json
            >>> json.loads(Inspection("x", 0, 0, (), ()).json())["verified"]
            False
        """
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1)

    @property
    def _title(self) -> str:
        files = f" in {self.files:,} files" if self.files > 1 else ""
        return (
            f"{self.what}: {self.rows:,} rows{files}, {size(self.bytes)}; {len(self.encrypted)} of "
            f"{len(self.columns)} columns encrypted"
        )

    def _notes(self) -> list[str]:
        more = [_NOT_JOINED] if len(self.data_keys) > 1 else []
        return [*self.notes, *more, _UNVERIFIED]

    def _cells(self, column: ColumnReport) -> list[str]:
        how = {"AES-256-GCM": "randomised", "AES-256-SIV": "deterministic", None: ""}
        return [
            column.name,
            "encrypted" if column.encrypted else "plain",
            column.type,
            f"{column.algorithm} {how.get(column.algorithm, '')}".strip() if column.algorithm else "",
            column.domain or "",
            "not counted" if column.nulls is None else f"{column.nulls:,}",
            size(column.bytes),
            " ".join(column.data_keys),
        ]

    def __str__(self) -> str:
        lines = [self._title, ""]
        rows = [["", *_HEADINGS]]
        rows += [["[x]" if c.encrypted else "[ ]", *self._cells(c)] for c in self.columns]
        lines += _aligned(rows, right={6, 7})
        for key in self.data_keys:
            context = ", ".join(f"{name}={text}" for name, text in key.context.items())
            lines += ["", f"data key {key.id}", f"  opened by  {' or '.join(key.keys)}"]
            lines += [f"  context    {context}"] if context else []
        return "\n".join([*lines, "", *self._notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def cell(text: str, tag: str = "td", style: str = "") -> str:
            styled = f' style="{style}"' if style else ""
            return f"<{tag}{styled}>{html.escape(text)}</{tag}>"

        heading = "".join(f'<th scope="col">{name}</th>' for name in _HEADINGS)
        rows = []
        for column in self.columns:
            name, state, *rest = self._cells(column)
            mark = f'<span style="{_ENCRYPTED if column.encrypted else _PLAIN}">'
            mark += f"{'&#128274;' if column.encrypted else '&#9675;'} {state}</span>"
            cells = "".join(
                cell(text, style="text-align:right" if number in (3, 4) else "")
                for number, text in enumerate(rest)
            )
            rows.append(f'<tr><th scope="row">{html.escape(name)}</th><td>{mark}</td>{cells}</tr>')
        keys = []
        for key in self.data_keys:
            context = ", ".join(f"{name}={text}" for name, text in key.context.items())
            opened = " or ".join(f"<code>{html.escape(uri)}</code>" for uri in key.keys)
            said = f"; context {html.escape(context)}" if context else ""
            keys.append(f"<li>data key <code>{key.id}</code>, opened by {opened}{said}</li>")
        notes = "<br>".join(html.escape(note) for note in self._notes())
        return (
            f'<table class="kmsdata-inspection"><caption>{html.escape(self._title)}</caption>'
            f"<thead><tr>{heading}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
            f"{'<ul>' if keys else ''}{''.join(keys)}{'</ul>' if keys else ''}<p><small>{notes}</small></p>"
        )


@dataclass(frozen=True)
class StreamReport:
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

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain Python, for programs."""
        return asdict(self)

    def json(self) -> str:
        """All of it as JSON.

        Example:
            >>> json.loads(StreamReport("out.parquet", 3, 1, 4096, ("ssn",), 1).json())["rows"]
            3
        """
        return json.dumps(self.to_dict(), ensure_ascii=False)

    def __str__(self) -> str:
        would = "would write about" if self.dry_run else "wrote"
        files = f" in {self.files:,} files" if self.files > 1 else ""
        calls = "1 call" if self.kms_calls == 1 else f"{self.kms_calls} calls"
        return (
            f"{would} {self.rows:,} rows{files}, {size(self.bytes)}, to {self.target}; columns "
            f"{', '.join(self.columns)}; {calls} of the key service"
        )


_HEADINGS = ("column", "state", "type", "algorithm", "domain", "nulls", "size", "data key")


def size(count: int) -> str:
    """A number of bytes for people.

    Example:
        >>> size(999), size(1_234_567)
        ('999 B', '1.2 MB')
    """
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def _aligned(rows: Sequence[Sequence[str]], right: set[int]) -> list[str]:
    """Lines of a table; Chinese letters take two places in a terminal."""
    from rich.cells import cell_len

    used = [number for number in range(len(rows[0])) if any(row[number] for row in rows[1:])]
    widths = {number: max(cell_len(row[number]) for row in rows) for number in used}
    lines = []
    for row in rows:
        cells = []
        for number in used:
            pad = " " * (widths[number] - cell_len(row[number]))
            cells.append(pad + row[number] if number in right else row[number] + pad)
        lines.append("  ".join(cells).rstrip())
    return lines
