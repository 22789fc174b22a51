"""Text and HTML tables, and readable sizes."""

from __future__ import annotations

import html
import io
import shutil
from collections.abc import Mapping, Sequence

from kmsdata.errors import printable

__all__ = ["as_html", "as_text", "escaped", "in_files", "size"]

_NUMBERS = ("authentic", "bad", "nulls", "size")  # headings of columns that are aligned to the right
_FOLDED = ("column", "type", "domain")  # headings of columns whose texts may be long
# Each state has a mark for text, and a glyph and colours for HTML. Background and text colour are set
# together, since one alone could be unreadable in a dark theme, and Jupyter removes style sheets and CSS
# variables from notebooks that are not trusted. GitHub removes both colours: glyph and word remain.
_STATES = {
    "encrypted": ("[x]", "&#128274;", "background:#d7f0dd;color:#0b4f26"),
    "plain": ("[ ]", "&#9675;", "background:#eceff1;color:#37474f"),
    "partly plain": ("[~]", "&#9888;", "background:#ffe8b3;color:#5f3b00"),
    "authentic": ("[x]", "&#10003;", "background:#d7f0dd;color:#0b4f26"),
    "failed": ("[!]", "&#10007;", "background:#fce8e6;color:#8a0c0c"),
    "not verified": ("[?]", "&#9888;", "background:#ffe8b3;color:#5f3b00"),
}
_PILL = "padding:1px 6px;border-radius:4px;white-space:nowrap"


def _used(rows: Sequence[Mapping[str, str]]) -> list[str]:
    return [heading for heading in (rows[0] if rows else ()) if any(row[heading] for row in rows)]


def as_text(title: str, rows: Sequence[Mapping[str, str]], more: Sequence[str]) -> str:
    """Return a title, a table that fits the terminal, and further lines. Long texts are folded, never cut.

    Each row is a mapping of texts by heading; all rows have the same headings. A heading without text in any
    row is left out.
    """
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
            # 11: the length of "AES-256-GCM". Longer texts, such as several ids of data keys, may be folded.
            no_wrap=heading not in _FOLDED and all(len(row[heading]) <= 11 for row in rows),
        )
    for row in rows:
        table.add_row(_STATES[row["state"]][0], *(Text(printable(row[heading])) for heading in headings))
    text = io.StringIO()
    width = max(shutil.get_terminal_size((120, 24)).columns, 40)
    # In a notebook rich would display the table in the cell instead of writing it to the file.
    out = Console(file=text, width=width, color_system=None, force_jupyter=False, markup=False)
    out.print(
        Text(printable(title)),
        *(["", table] if rows else []),
        *(Text(printable(line)) for line in more),
        sep="\n",
    )
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def as_html(title: str, rows: Sequence[Mapping[str, str]], items: Sequence[str], notes: Sequence[str]) -> str:
    """Return the same as HTML with inline styles only, which untrusted notebooks keep. Items are HTML."""

    def cell(heading: str, text: str, tag: str) -> str:
        # Jupyter's style sheet aligns table cells to the right by default.
        style = f"text-align:{'right' if heading in _NUMBERS else 'left'};padding:3px 10px;"
        style += "max-width:24em;overflow-wrap:break-word" if heading in _FOLDED else "white-space:nowrap"
        return f'<{tag} style="{style}">{text}</{tag.split()[0]}>'

    headings = _used(rows)
    body = []
    for row in rows:
        cells = []
        for heading in headings:
            text = escaped(row[heading])
            if heading == "state":
                _, glyph, colours = _STATES[row["state"]]
                text = f'<span style="{colours};{_PILL}">{glyph} {text}</span>'
            cells.append(cell(heading, text, 'th scope="row"' if heading == "column" else "td"))
        body.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(cell(heading, heading, 'th scope="col"') for heading in headings)
    listed = "".join(f"<li>{item}</li>" for item in items)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>" if rows else ""
    listed = f"<ul>{listed}</ul>" if items else ""
    said = f"<p><small>{'<br>'.join(map(escaped, notes))}</small></p>" if notes else ""
    return f"<div><strong>{escaped(title)}</strong>{table}{listed}{said}</div>"


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
