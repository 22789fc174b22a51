"""The command line: it parses, calls, and says in a sentence what went wrong."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import kmsdata
from kmsdata import demo as _demo

__all__ = ["app", "main"]

_EXAMPLES = "\n".join(
    [
        "[bold]Examples[/bold]",
        "kmsdata demo",
        "kmsdata demo --input people.csv --columns name,ssn --deterministic email",
        "kmsdata keys create payroll",
        "kmsdata keys list --json",
    ]
)
_HINTS = {
    "KeyExists": "keys are never overwritten: choose another name; 'kmsdata keys list' shows those there are",
}

app = typer.Typer(
    help="Column-level encryption for pandas, Arrow and Parquet.",
    epilog=_EXAMPLES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
keys = typer.Typer(
    help="The master keys of the local keystore: make them, list them.",
    no_args_is_help=True,
    epilog="The keystore is the file in KMSDATA_KEYSTORE, else one in your folder for user data. "
    "KMSDATA_PASSPHRASE seals a new one.",
)
app.add_typer(keys, name="keys")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 refused, 2 wrong usage, 130 interrupted.

    Args:
        arguments: without the program's name; None for those of the process.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a letter that the terminal cannot show is no error
    try:
        app(args=arguments, prog_name="kmsdata")
    except _demo.Refusal as error:
        _fail(str(error), error.hint, 2 if error.usage else 1)
    except kmsdata.KmsDataError as error:
        _fail(str(error), _HINTS.get(getattr(error, "code", None) or "", ""), 1)
    except OSError as error:
        named = f": {error.filename}" if error.filename else ""
        _fail(f"{error.strerror or type(error).__name__}{named}", "", 1)


def _fail(message: str, hint: str, code: int) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble(("error: ", "bold red"), message))
    if hint:
        console.print(Text.assemble(("hint: ", "bold"), hint))
    sys.exit(code)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"kmsdata {kmsdata.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Column-level encryption for pandas, Arrow and Parquet."""


@app.command(
    epilog="kmsdata demo --input people.csv --columns name,ssn --deterministic email",
)
def demo(
    path: Annotated[
        Path | None,
        typer.Option(
            "--input", metavar="FILE", help="A CSV or Parquet file of yours instead of the Titanic."
        ),
    ] = None,
    columns: Annotated[
        str, typer.Option(metavar="A,B", help="The columns of FILE to encrypt, separated by commas.")
    ] = "",
    deterministic: Annotated[
        str,
        typer.Option(
            metavar="C,D",
            help="Columns of FILE to encrypt so that equal values look equal: for groups and joins.",
        ),
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite the encrypted file of an earlier run.")
    ] = False,
) -> None:
    """Show a frame's trip into an encrypted file and back, on one screen.

    Writes one file into the current folder: titanic.encrypted.parquet, or that of FILE.
    """
    if path is None and (columns or deterministic):
        raise _demo.Refusal(
            "--columns and --deterministic name columns of your own file", "add --input FILE", usage=True
        )
    _demo.run(path, _names(columns), _names(deterministic), force=force)


@keys.command("create")
def create(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="1 to 64 letters, digits or '_.-'; local://NAME is the same."),
    ],
) -> None:
    """Make a master key in the local keystore. Keys are never overwritten."""
    store = kmsdata.LocalKeystore()
    uri = store.create_key(name.removeprefix("local://"), quiet=True)
    _say("Made", uri)
    _say("In", f"{store.path}, {_guard(store)}")
    _say("Now", "back that file up: without it, what the key encrypts is lost")


@keys.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """List the master keys of the local keystore, without their secrets."""
    store = kmsdata.LocalKeystore()
    found = store.list_keys()
    if as_json:
        typer.echo(
            json.dumps({"keystore": str(store.path), "passphrase": store.sealed, "keys": found}, indent=1)
        )
        return
    if not found:
        _say("Keys", f"none in {store.path}")
        _say("Now", "kmsdata keys create NAME")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("key", "id", "made"):
        table.add_column(heading, no_wrap=True)
    for item in found:
        table.add_row(Text(item["key"], "bold"), item["id"][:8], item["created"])
    Console(highlight=False).print(table)
    _say("In", f"{store.path}, {_guard(store)}")


def _say(label: str, text: str) -> None:
    Console(highlight=False).print(Text.assemble((f"{label:5}", "bold green"), text), soft_wrap=True)


def _guard(store: kmsdata.LocalKeystore) -> str:
    return "sealed by a passphrase" if store.sealed else "without a passphrase: the file's mode guards it"


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


if __name__ == "__main__":
    main()
