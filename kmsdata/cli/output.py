"""Print labelled lines, tables, reports, warnings and errors, for every command.

Names of files and columns, types and messages can come from a file that anyone wrote. So every function here
escapes what could control the terminal or reverse a line, and no command prints text in another way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kmsdata.errors import printable

__all__ = ["clean", "say", "show_error", "show_report", "show_table", "show_warning"]


def say(label: str, text: str, *, width: int = 5, colour: str = "green", to_errors: bool = False) -> None:
    """Print a line: a label in bold, padded to a width, and a text; on request to standard error."""
    line = Text.assemble((f"{label:{width}}", f"bold {colour}"), printable(text))
    Console(highlight=False, stderr=to_errors).print(line, soft_wrap=True)


def show_table(fields: Sequence[str], fold: str, rows: Sequence[Mapping[str, str]]) -> None:
    """Print a table of 80 columns: one field is folded if it is long, and times are shortened to dates."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for field in fields:
        table.add_column(field, overflow="fold", no_wrap=field != fold)
    for row in rows:
        table.add_row(
            Text(printable(row[fields[0]]), "bold"),
            *(Text(printable(row[field][: 10 if field == "created" else None])) for field in fields[1:]),
        )
    console = Console(highlight=False)
    if not console.is_terminal:  # a program reads the pipe, so nothing is folded
        console = Console(highlight=False, width=400)
    console.print(table)


def show_report(text: str, *, good: bool = True) -> None:
    """Print the text of a report, which already fits the terminal, in colours."""
    console = Console(highlight=False)
    title, *lines = printable(text, "\n").split("\n")
    console.print(Text(title, "bold green" if good else "bold red"), soft_wrap=True)
    for line in lines:
        style = "red" if line.startswith(("[!]", "- ")) else "magenta" if line.startswith("[x]") else ""
        console.print(Text(line, style), soft_wrap=True)


def show_error(message: str, hint: str) -> None:
    """Print an error and a hint to standard error."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble(("error: ", "bold red"), printable(message)))
    if hint:
        console.print(Text.assemble(("hint: ", "bold"), printable(hint)))


def show_warning(message: str) -> None:
    """Print a warning to standard error."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble(("warning: ", "bold yellow"), printable(message)))


def clean(text: str, most: int | None = None) -> str:
    """Return text for the terminal: no control characters, and no longer than a limit."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if most is None or len(text) <= most else text[: most - 2] + ".."
