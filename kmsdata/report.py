"""What can be said of encrypted data: as text, as HTML that survives untrusted notebooks, as JSON."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
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
    "size",
]

_UNVERIFIED = "As the headers say; nothing was decrypted or verified."
_NOT_JOINED = "Columns under different data keys cannot be joined: give the second key= the first frame."
_NOT_SHOWN = (
    "Not noticed: rows removed, repeated or reordered, cells set to null or exchanged within their column, "
    "plain columns changed, older data under the same data key."
)
_MOST_SHOWN = 20

# Background and colour together: a notebook that is not trusted drops style sheets and variables, and either
# alone could be unreadable in the dark.
_ENCRYPTED = "background:#e6f4ea;color:#0b5c2c;padding:1px 6px"
_BAD = "background:#fce8e6;color:#a50e0e;padding:1px 6px"
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

    def _cells(self, column: ColumnCheck) -> list[str]:
        numbers = [f"{number:,}" for number in (column.cells, column.bad, column.nulls)]
        return [column.name, column.state, column.algorithm or "", *numbers]

    @property
    def _more(self) -> str:
        hidden = len(self.failures) - _MOST_SHOWN
        return f"... and {hidden:,} more, in .failures" if hidden > 0 else ""

    def __str__(self) -> str:
        rows = [["", *_CHECKED]]
        rows += [["[x]" if c.state == "authentic" else "[!]", *self._cells(c)] for c in self.columns]
        lines = [self._title, "", *(_aligned(rows, right={4, 5, 6}) if self.columns else [])]
        shown = [f"- {failure}" for failure in self.failures[:_MOST_SHOWN]]
        lines += ["", *shown, *filter(None, [self._more])] if shown else []
        return "\n".join([*filter(None, lines[:1]), *lines[1:], "", _NOT_SHOWN])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        heading = "".join(f'<th scope="col">{name}</th>' for name in _CHECKED)
        rows = []
        for column in self.columns:
            name, state, algorithm, *numbers = self._cells(column)
            good = state == "authentic"
            mark = (
                f'<span style="{_ENCRYPTED if good else _BAD}">{"&#10003;" if good else "&#10007;"} {state}'
            )
            cells = "".join(f'<td style="text-align:right">{number}</td>' for number in numbers)
            rows.append(
                f'<tr><th scope="row">{html.escape(name)}</th><td>{mark}</span></td>'
                f"<td>{html.escape(algorithm)}</td>{cells}</tr>"
            )
        shown = [str(failure) for failure in self.failures[:_MOST_SHOWN]] + [self._more]
        items = "".join(f"<li>{html.escape(text)}</li>" for text in shown if text)
        return (
            f'<table class="kmsdata-verification"><caption>{html.escape(self._title)}</caption>'
            f"<thead><tr>{heading}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
            f"{f'<ul>{items}</ul>' if items else ''}<p><small>{_NOT_SHOWN}</small></p>"
        )


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
        lines += [f"{name}: {why}" for name, why in list(self.failed.items())[:20]]
        return lines + ([f"and {len(self.failed) - 20:,} more"] if len(self.failed) > 20 else [])

    def __str__(self) -> str:
        return "\n  ".join(self._lines())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        title, *more = (html.escape(line) for line in self._lines())
        items = "".join(f"<li>{line}</li>" for line in more)
        return f'<div class="kmsdata-rewrap"><p>{title}</p>{f"<ul>{items}</ul>" if items else ""}</div>'


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


_CHECKED = ("column", "state", "algorithm", "authentic", "bad", "nulls")
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
