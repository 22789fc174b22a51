"""What can be said of encrypted data: as text, as HTML that survives untrusted notebooks, as JSON."""

from __future__ import annotations

import html
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = [
    "ColumnCheck",
    "ColumnReport",
    "DataKeyReport",
    "Failure",
    "Inspection",
    "RewrapReport",
    "StreamReport",
    "Verification",
    "printable",
    "size",
]

_UNVERIFIED = "As the headers say; nothing was decrypted or verified."
_EQUAL = "AES-256-SIV is deterministic: equal values are equal cells, within a domain under one data key."
_NOT_JOINED = "Columns under different data keys cannot be joined: give the second key= the first frame."

_NOT_SHOWN = (
    "Not noticed: rows removed, repeated or reordered, cells set to null or exchanged within their column, "
    "plain columns changed, older data under the same data key."
)
_MOST_SHOWN = 20

_HOW = {"AES-256-GCM": " randomised", "AES-256-SIV": " deterministic"}

_NUMBERS = ("authentic", "bad", "nulls", "size")  # headings of what is aligned to the right
_FOLDED = ("column", "type", "domain")  # and of what may be long
# Each state has a mark for text; a glyph and colours for HTML. Background and colour together: a notebook
# that is not trusted drops style sheets and variables, and either alone could be unreadable in the dark.
# GitHub drops both: the glyph and the word remain.
_STATES = {
    "encrypted": ("[x]", "&#128274;", "background:#d7f0dd;color:#0b4f26"),
    "plain": ("[ ]", "&#9675;", "background:#eceff1;color:#37474f"),
    "partly plain": ("[~]", "&#9888;", "background:#ffe8b3;color:#5f3b00"),
    "authentic": ("[x]", "&#10003;", "background:#d7f0dd;color:#0b4f26"),
    "failed": ("[!]", "&#10007;", "background:#fce8e6;color:#8a0c0c"),
    "not verified": ("[?]", "&#9888;", "background:#ffe8b3;color:#5f3b00"),
}
_PILL = "padding:1px 6px;border-radius:4px;white-space:nowrap"


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
        more = [_EQUAL] if any(column.domain is not None for column in self.columns) else []
        more += [_NOT_JOINED] if len(self.data_keys) > 1 else []
        return [*self.notes, *more, _UNVERIFIED]

    def _rows(self, how: Mapping[str, str]) -> list[dict[str, str]]:
        """Of each column what is shown below each heading."""
        return [
            {
                "column": column.name,
                "state": _state(column),
                "type": column.type,
                "algorithm": f"{column.algorithm}{how.get(column.algorithm, '')}" if column.algorithm else "",
                "domain": column.domain or "",
                "nulls": "not counted" if column.nulls is None else f"{column.nulls:,}",
                "size": size(column.bytes),
                "data key": " ".join(column.data_keys) if len(self.data_keys) > 1 else "",
            }
            for column in self.columns
        ]

    def __str__(self) -> str:
        lines = []
        for key in self.data_keys:
            lines += ["", f"data key {key.id}", f"  opened by  {' or '.join(key.keys)}"]
            lines += [f"  context    {_pairs(key.context)}"] if key.context else []
        return _as_text(self._title, self._rows({}), [*lines, "", *self._notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        keys = []
        for key in self.data_keys:
            opened = " or ".join(f"<code>{_escaped(uri)}</code>" for uri in key.keys)
            said = f"; context <code>{_escaped(_pairs(key.context))}</code>" if key.context else ""
            keys.append(f"data key <code>{_escaped(key.id)}</code>, opened by {opened}{said}")
        return _as_html(self._title, self._rows(_HOW), keys, self._notes())


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


@dataclass(frozen=True)
class Verification:
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
        return asdict(self) | {"ok": self.ok}

    def json(self) -> str:
        """All of it as JSON.

        Example:
            >>> import json
            >>> json.loads(Verification("x", 0, (), ()).json())["ok"]
            False
        """
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1)

    @property
    def _title(self) -> str:
        files = f" in {self.files:,} files" if self.files > 1 else ""
        good = sum(column.state == "authentic" for column in self.columns)
        verdict = "authentic" if self.ok else "NOT VERIFIED"
        return (
            f"{self.what}: {verdict}; {self.rows:,} rows{files}, {good} of {len(self.columns)} encrypted "
            "columns authentic"
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

    @property
    def _said(self) -> list[str]:
        hidden = len(self.failures) - _MOST_SHOWN
        more = [f"... and {hidden:,} more, in .failures"] if hidden > 0 else []
        return [*map(str, self.failures[:_MOST_SHOWN]), *more]

    def __str__(self) -> str:
        said = [f"- {text}" for text in self._said]
        return _as_text(self._title, self._rows(), [*([""] if said else []), *said, "", _NOT_SHOWN])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return _as_html(self._title, self._rows(), list(map(_escaped, self._said)), [_NOT_SHOWN])


@dataclass(frozen=True)
class RewrapReport:
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

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain Python, for programs."""
        return asdict(self)

    def json(self) -> str:
        """All of it as JSON.

        Example:
            >>> import json
            >>> json.loads(RewrapReport("people.parquet", 1, 1).json())["rewrapped"]
            1
        """
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1)

    def _lines(self) -> list[str]:
        counts = [
            (self.rewrapped, "would be rewrapped" if self.dry_run else "rewrapped"),
            (self.already, "as asked already"),
            (self.other, "under other keys, left alone"),
            (self.plain, "without encrypted columns"),
            (len(self.failed), "failed"),
        ]
        said = [f"{count:,} {what}" for count, what in counts if count]
        lines = [f"{self.what}: {self.files:,} {'file' if self.files == 1 else 'files'}: {', '.join(said)}"]
        opens = "would open {:,}" if self.dry_run else "opens {:,} now"
        lines += [f"{key} {opens.format(count)}" for key, count in self.keys.items()]
        if self.dry_run:
            calls = "1 call" if self.kms_calls == 1 else f"{self.kms_calls:,} calls"
            lines += [f"{calls} of the key service"]
        lines += [f"{sentence} ({count:,} files)" for sentence, count in self.left.items()]
        failed = list(self.failed.items())[:20]
        lines += [why if name in why else f"{name}: {why}" for name, why in failed]
        return lines + ([f"and {len(self.failed) - 20:,} more"] if len(self.failed) > 20 else [])

    def __str__(self) -> str:
        return printable("\n  ".join(self._lines()), "\n")

    __repr__ = __str__

    def _repr_html_(self) -> str:
        title, *items = self._lines()
        return _as_html(title, [], list(map(_escaped, items)), [])


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
        return printable(
            f"{would} {self.rows:,} rows{files}, {size(self.bytes)}, to {self.target}; columns "
            f"{', '.join(self.columns)}; {calls} of the key service"
        )


def _state(column: ColumnReport) -> str:
    if column.encrypted:
        return "encrypted"
    return "plain" if column.algorithm is None else "partly plain"


def _pairs(context: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={text}" for name, text in context.items())


# How reports look. Rows are texts by heading, of the same headings; what is empty throughout is left out.


def _used(rows: Sequence[Mapping[str, str]]) -> list[str]:
    return [heading for heading in (rows[0] if rows else ()) if any(row[heading] for row in rows)]


def _as_text(title: str, rows: Sequence[Mapping[str, str]], more: Sequence[str]) -> str:
    """A title, a table no wider than the terminal, and further lines. Folded, never cut."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    headings = _used(rows)
    table = Table(box=None, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for heading in headings:
        table.add_column(
            heading,
            justify="right" if heading in _NUMBERS else "left",
            overflow="fold",
            no_wrap=heading not in _FOLDED and all(len(row[heading]) <= 11 for row in rows),
        )
    for row in rows:
        table.add_row(_STATES[row["state"]][0], *(Text(printable(row[heading])) for heading in headings))
    text = io.StringIO()
    width = max(shutil.get_terminal_size((120, 24)).columns, 40)
    out = Console(file=text, width=width, color_system=None, force_jupyter=False, markup=False)
    out.print(
        Text(printable(title)),
        *(["", table] if rows else []),
        *(Text(printable(line)) for line in more),
        sep="\n",
    )
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _as_html(
    title: str, rows: Sequence[Mapping[str, str]], items: Sequence[str], notes: Sequence[str]
) -> str:
    """The same as HTML; items are HTML already."""

    def cell(heading: str, text: str, tag: str) -> str:
        # Notebooks align to the right what does not say otherwise.
        style = f"text-align:{'right' if heading in _NUMBERS else 'left'};padding:3px 10px;"
        style += "max-width:24em;overflow-wrap:break-word" if heading in _FOLDED else "white-space:nowrap"
        return f'<{tag} style="{style}">{text}</{tag.split()[0]}>'

    headings = _used(rows)
    body = []
    for row in rows:
        cells = []
        for heading in headings:
            text = _escaped(row[heading])
            if heading == "state":
                _, glyph, colours = _STATES[row["state"]]
                text = f'<span style="{colours};{_PILL}">{glyph} {text}</span>'
            cells.append(cell(heading, text, 'th scope="row"' if heading == "column" else "td"))
        body.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(cell(heading, heading, 'th scope="col"') for heading in headings)
    listed = "".join(f"<li>{item}</li>" for item in items)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>" if rows else ""
    listed = f"<ul>{listed}</ul>" if items else ""
    said = f"<p><small>{'<br>'.join(map(_escaped, notes))}</small></p>" if notes else ""
    return f"<div><strong>{_escaped(title)}</strong>{table}{listed}{said}</div>"


def _escaped(text: str) -> str:
    return html.escape(printable(text))


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


def printable(text: str, kept: str = "") -> str:
    """Text without letters that move a terminal or turn a line around, as names in a file may hold.

    Args:
        text: any.
        kept: letters that stay as they are, such as the ends of lines.

    Example:
        >>> printable("身份证 \x1b[2J")
        '身份证 \\\\x1b[2J'
    """
    return "".join(
        letter if letter.isprintable() or letter in kept else letter.encode("unicode_escape").decode()
        for letter in text
    )
