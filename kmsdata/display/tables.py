"""Text and HTML of reports: a title, facts, a table, items, calls and notes; and readable sizes."""

from __future__ import annotations

import html
import io
import shutil
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kmsdata.errors import printable

__all__ = ["Call", "Fact", "as_html", "as_text", "escaped", "in_files", "size"]

# Headings of columns that are aligned to the right, and of those whose texts may be long.
_NUMBERS = ("authentic", "bad", "distinct", "nulls", "size")
_FOLDED = ("column", "type", "domain", "key", "alias", "remarks")
_GREEN = "background:#d7f0dd;color:#0b4f26"
_GREY = "background:#eceff1;color:#37474f"
_AMBER = "background:#ffe8b3;color:#5f3b00"
_RED = "background:#fce8e6;color:#8a0c0c"
# Each state has a mark for text, and a mark and colours for HTML. Background and text colour are set
# together, since one alone could be unreadable in a dark theme, and Jupyter removes style sheets and CSS
# variables from notebooks that are not trusted. GitHub removes both colours: mark and word remain. The marks
# are in the fonts of every system (the list WGL4): a padlock, and check marks, are empty boxes in some.
_STATES = {
    "encrypted": ("[x]", "●", _GREEN),
    "plain": ("[ ]", "○", _GREY),
    "partly plain": ("[~]", "!", _AMBER),
    "authentic": ("[x]", "●", _GREEN),
    "failed": ("[!]", "×", _RED),
    "not encrypted": ("[!]", "×", _RED),
    "missing": ("[!]", "×", _RED),
    "not verified": ("[?]", "?", _AMBER),
    "can be opened": ("[x]", "●", _GREEN),
    "cannot be opened": ("[!]", "×", _RED),
    "not known": ("[?]", "?", _AMBER),
    "Enabled": ("[x]", "●", _GREEN),
    "Disabled": ("[ ]", "○", _GREY),
}
_OTHER_STATE = ("[~]", "!", _AMBER)  # of a key, such as PendingDelete
_PILL = "padding:1px 6px;border-radius:4px;white-space:nowrap"


class Fact(NamedTuple):
    """A labelled text, which may begin with a state."""

    label: str
    text: str
    state: str = ""


class Call(NamedTuple):
    """A call that makes sense next, and what it does."""

    code: str
    what: str


def _used(rows: Sequence[Mapping[str, str]]) -> list[str]:
    return [heading for heading in (rows[0] if rows else ()) if any(row[heading] for row in rows)]


def _marks(state: str) -> tuple[str, str, str]:
    return _STATES.get(state, _OTHER_STATE)


def as_text(
    title: str,
    *,
    facts: Sequence[Fact] = (),
    rows: Sequence[Mapping[str, str]] = (),
    items: Sequence[str] = (),
    calls: Sequence[Call] = (),
    notes: Sequence[str] = (),
) -> str:
    """Return all parts as text. Below the title it fits the terminal: long texts are folded, never cut.

    Each row is a mapping of texts by heading; all rows have the same headings. A heading without text in any
    row is left out.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def clean(text: str) -> Text:
        return Text(printable(text))

    headings = _used(rows)
    table = Table(box=None, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for heading in headings:
        table.add_column(
            heading,
            justify="right" if heading in _NUMBERS else "left",
            overflow="fold",
            # 11: the length of "AES-256-GCM". Longer texts, such as several ids of data keys, may be folded.
            no_wrap=heading not in _FOLDED and all(len(row[heading]) <= 11 for row in rows),
        )
    for row in rows:
        table.add_row(_marks(row["state"])[0], *(clean(row[heading]) for heading in headings))

    def pairs(pairs: Sequence[tuple[str, str]]) -> Table:
        grid = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for left, right in pairs:
            grid.add_row(clean(left), clean(right))
        return grid

    said = [
        (fact.label, f"{_marks(fact.state)[0]} {fact.state}: {fact.text}" if fact.state else fact.text)
        for fact in facts
    ]
    parts: list[Table | Text] = []
    parts += [Text(), table] if rows else []
    parts += [Text(), pairs(said)] if said else []
    parts += [Text(), *map(clean, items)] if items else []
    parts += [Text(), pairs(calls)] if calls else []
    parts += [Text(), *map(clean, notes)] if notes else []
    text = io.StringIO()
    width = max(shutil.get_terminal_size((120, 24)).columns, 40)
    # In a notebook rich would display the table in the cell instead of writing it to the file.
    out = Console(file=text, width=width, color_system=None, force_jupyter=False, markup=False)
    out.print(clean(title), soft_wrap=True)  # it may contain a path, which can be copied if it is one line
    if parts:
        out.print(*parts, sep="\n")
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def as_html(
    title: str,
    *,
    facts: Sequence[Fact] = (),
    rows: Sequence[Mapping[str, str]] = (),
    items: Sequence[str] = (),
    calls: Sequence[Call] = (),
    notes: Sequence[str] = (),
) -> str:
    """Return the same as HTML with inline styles only, which untrusted notebooks keep. Items are HTML."""

    def cell(content: str, tag: str, *, folded: bool = False, number: bool = False) -> str:
        # Jupyter's style sheet aligns table cells to the right by default.
        style = f"text-align:{'right' if number else 'left'};vertical-align:top;padding:3px 10px;"
        style += "max-width:24em;overflow-wrap:break-word" if folded else "white-space:nowrap"
        return f'<{tag} style="{style}">{content}</{tag.split()[0]}>'

    def wide(content: str) -> str:
        style = "text-align:left;vertical-align:top;padding:3px 10px;max-width:60em;overflow-wrap:anywhere"
        return f'<td style="{style}">{content}</td>'

    def pill(state: str, text: str) -> str:
        _, mark, colours = _marks(state)
        return f'<span style="{colours};{_PILL}">{mark} {text}</span>'

    def table(body: Sequence[str], head: str = "") -> str:
        head = f"<thead><tr>{head}</tr></thead>" if head else ""
        return f"<table>{head}<tbody>{''.join(f'<tr>{row}</tr>' for row in body)}</tbody></table>"

    headings = _used(rows)
    first = next(iter(headings), "")
    body = []
    for row in rows:
        cells = []
        for heading in headings:
            text = escaped(row[heading])
            cells.append(
                cell(
                    pill(row["state"], text) if heading == "state" else text,
                    'th scope="row"' if heading == first else "td",
                    folded=heading in _FOLDED,
                    number=heading in _NUMBERS,
                )
            )
        body.append("".join(cells))
    head = "".join(cell(heading, 'th scope="col"', number=heading in _NUMBERS) for heading in headings)
    parts = [f"<strong>{escaped(title)}</strong>"]
    parts += [table(body, head)] if body else []
    if facts:
        said = [
            (
                escaped(fact.label),
                (pill(fact.state, fact.state) + ": " if fact.state else "") + escaped(fact.text),
            )
            for fact in facts
        ]
        parts.append(table([cell(label, 'th scope="row"') + wide(text) for label, text in said]))
    if items:
        parts.append(f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>")
    if calls:
        parts.append(
            table([cell(f"<code>{escaped(code)}</code>", "td") + wide(escaped(what)) for code, what in calls])
        )
    if notes:
        parts.append(f"<p><small>{'<br>'.join(map(escaped, notes))}</small></p>")
    return f"<div>{''.join(parts)}</div>"


def escaped(text: str) -> str:
    """Return text escaped for HTML, and without control and bidirectional characters."""
    return html.escape(printable(text))


def size(count: int) -> str:
    """Return a number of bytes with a unit.

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


def in_files(count: int) -> str:
    """Return the number of files as words, or an empty text for one file.

    Example:
        >>> in_files(1), in_files(1200)
        ('', ' in 1,200 files')
    """
    return f" in {count:,} files" if count > 1 else ""
