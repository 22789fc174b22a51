"""What can be said of encrypted data: as text, as HTML that survives untrusted notebooks, as JSON."""

from __future__ import annotations

import html
import io
import json
import shutil
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["ColumnReport", "DataKeyReport", "Inspection", "printable", "size"]

_UNVERIFIED = "As the headers say; nothing was decrypted or verified."
_EQUAL = "AES-256-SIV is deterministic: equal values are equal cells, within a domain under one data key."
_NOT_JOINED = "Columns under different data keys cannot be joined: give the second key= the first frame."

_HOW = {"AES-256-GCM": "randomised", "AES-256-SIV": "deterministic"}

_MARKS = {"encrypted": "[x]", "plain": "[ ]", "partly plain": "[~]"}
# Background and colour together: a notebook that is not trusted drops style sheets and variables, and either
# alone could be unreadable in the dark. GitHub drops both: the glyph and the word remain.
_PILL = "padding:1px 6px;border-radius:4px;white-space:nowrap"
_PILLS = {
    "encrypted": ("background:#d7f0dd;color:#0b4f26", "&#128274;"),
    "plain": ("background:#eceff1;color:#37474f", "&#9675;"),
    "partly plain": ("background:#ffe8b3;color:#5f3b00", "&#9888;"),
}


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
        return printable(
            f"{self.what}: {self.rows:,} rows{files}, {size(self.bytes)}; {len(self.encrypted)} of "
            f"{len(self.columns)} columns encrypted"
        )

    def _notes(self) -> list[str]:
        more = [_EQUAL] if any(column.domain is not None for column in self.columns) else []
        more += [_NOT_JOINED] if len(self.data_keys) > 1 else []
        return [printable(note) for note in (*self.notes, *more, _UNVERIFIED)]

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """The headings, and a row for each column; what is empty throughout, or the same, is left out."""
        rows = [_row(column) for column in self.columns]
        used = [number for number in range(len(_HEADINGS)) if any(row[number] for row in rows)]
        if len(self.data_keys) < 2:
            used = [number for number in used if _HEADINGS[number] != "data key"]
        return [_HEADINGS[number] for number in used], [[row[number] for number in used] for row in rows]

    def _keys(self) -> list[tuple[str, list[str], str]]:
        """Of each data key its id, its master keys, and its context as text."""
        return [
            (
                printable(key.id),
                [printable(uri) for uri in key.keys],
                ", ".join(printable(f"{name}={text}") for name, text in key.context.items()),
            )
            for key in self.data_keys
        ]

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        # Long names are folded, never cut: two of them could differ in the end only.
        table = Table(box=None, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
        headings, rows = self._table()
        table.add_column("", no_wrap=True)
        for number, heading in enumerate(headings):
            short = all(len(row[number]) <= 11 for row in rows)
            table.add_column(
                heading,
                justify="right" if heading in _RIGHT else "left",
                overflow="fold",
                no_wrap=short and heading not in ("column", "type", "domain"),
            )
        for column, row in zip(self.columns, rows, strict=True):
            table.add_row(*(Text(text) for text in (_MARKS[_state(column)], *row)))
        text = io.StringIO()
        width = max(shutil.get_terminal_size((120, 24)).columns, 40)
        out = Console(file=text, width=width, color_system=None, force_jupyter=False)
        out.print(Text(self._title), "", table, sep="\n")
        for key_id, uris, context in self._keys():
            out.print("", Text(f"data key {key_id}"), Text(f"  opened by  {' or '.join(uris)}"), sep="\n")
            if context:
                out.print(Text(f"  context    {context}"))
        out.print("", *(Text(note) for note in self._notes()), sep="\n")
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        headings, rows = self._table()

        def look(heading: str) -> str:
            # Notebooks align to the right what does not say otherwise.
            side = "right" if heading in _RIGHT else "left"
            fold = "" if heading in ("column", "type", "domain") else ";white-space:nowrap"
            return f"text-align:{side};padding:3px 10px{fold}"

        body = []
        for column, row in zip(self.columns, rows, strict=True):
            cells = []
            for heading, text in zip(headings, row, strict=True):
                shown, tag, style = html.escape(text), "td", look(heading)
                if heading == "column":
                    tag = 'th scope="row"'
                    style += ";max-width:24em;overflow-wrap:break-word"
                elif heading == "state":
                    colours, glyph = _PILLS[text]
                    shown = f'<span style="{colours};{_PILL}">{glyph} {shown}</span>'
                elif heading == "algorithm" and column.algorithm in _HOW:
                    shown += f" {_HOW[column.algorithm]}"
                cells.append(f'<{tag} style="{style}">{shown}</{tag.split()[0]}>')
            body.append(f"<tr>{''.join(cells)}</tr>")
        head = "".join(f'<th scope="col" style="{look(name)}">{name}</th>' for name in headings)
        keys = []
        for key_id, uris, context in self._keys():
            opened = " or ".join(f"<code>{html.escape(uri)}</code>" for uri in uris)
            said = f"; context <code>{html.escape(context)}</code>" if context else ""
            keys.append(f"<li>data key <code>{html.escape(key_id)}</code>, opened by {opened}{said}</li>")
        notes = "<br>".join(html.escape(note) for note in self._notes())
        return (
            f"<div><strong>{html.escape(self._title)}</strong>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
            f"{'<ul>' if keys else ''}{''.join(keys)}{'</ul>' if keys else ''}"
            f"<p><small>{notes}</small></p></div>"
        )


_HEADINGS = ("column", "state", "type", "algorithm", "domain", "nulls", "size", "data key")
_RIGHT = ("nulls", "size")


def _state(column: ColumnReport) -> str:
    if column.encrypted:
        return "encrypted"
    return "plain" if column.algorithm is None else "partly plain"


def _row(column: ColumnReport) -> list[str]:
    return [
        printable(column.name),
        _state(column),
        printable(column.type),
        column.algorithm or "",
        printable(column.domain or ""),
        "not counted" if column.nulls is None else f"{column.nulls:,}",
        size(column.bytes),
        " ".join(column.data_keys),
    ]


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


def printable(text: str) -> str:
    """Text without letters that move a terminal or turn a line around, as names in a file may hold.

    Example:
        >>> printable("身份证 \x1b[2J")
        '身份证 \\\\x1b[2J'
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )
