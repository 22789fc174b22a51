"""The command line: its entry point, the version, and the commands demo and emulator."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import kmsdata
from kmsdata.cli import demo as _demo
from kmsdata.cli.errors import Refusal, explain
from kmsdata.cli.file_commands import files
from kmsdata.cli.key_commands import keys
from kmsdata.cli.migrate_command import migration
from kmsdata.cli.options import examples, names
from kmsdata.cli.output import show_error
from kmsdata.emulator import Emulator

__all__ = ["app", "main"]

_EXAMPLES = examples(
    "kmsdata demo",
    "kmsdata demo --input people.csv --columns name,ssn --deterministic email",
    "kmsdata keys create payroll",
    "kmsdata keys create tencent-kms://ap-guangzhou/payroll",
    "kmsdata keys list --json",
    "kmsdata emulator --port 8600",
    "kmsdata encrypt people.parquet sealed.parquet -c name,ssn -k local://payroll",
    "kmsdata inspect sealed.parquet",
)
_EXIT_CODES = (
    "[bold]Exit codes[/bold]\n\n0 success; 1 refused or failed; 2 wrong usage; 3 not authentic (verify); "
    "130 interrupted"
)

app = typer.Typer(
    help="Column-level encryption for pandas, Arrow and Parquet.",
    epilog=f"{_EXAMPLES}\n\n{_EXIT_CODES}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a bug shows Python's own traceback
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(files)
app.add_typer(migration)
app.add_typer(keys, name="keys")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 success, 1 refused, 2 wrong usage, 3 not authentic, 130 interrupted.

    Args:
        arguments: the arguments without the program's name; None: those of the process.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not an error for characters that the terminal cannot show
    try:
        app(args=arguments, prog_name="kmsdata")
    except (Refusal, ImportError, kmsdata.KmsDataError, OSError) as error:
        message, hint, code = explain(error)
        show_error(message, hint)
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
            "--input", metavar="FILE", help="Your CSV or Parquet file, instead of the Titanic list."
        ),
    ] = None,
    columns: Annotated[
        str, typer.Option(metavar="A,B", help="The columns of FILE to encrypt, separated by commas.")
    ] = "",
    deterministic: Annotated[
        str,
        typer.Option(
            metavar="C,D",
            help="Columns of FILE to encrypt so that equal values have equal cells, for grouping and joins.",
        ),
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite the encrypted file of an earlier run.")
    ] = False,
) -> None:
    """Encrypt a table, save it, read it, decrypt it, and show each step on one screen.

    Writes one file into the current folder: titanic.encrypted.parquet, or the encrypted form of FILE.
    """
    if path is None and (columns or deterministic):
        raise Refusal("--columns and --deterministic need your own file", "add --input FILE", usage=True)
    _demo.run(path, _names(columns), _names(deterministic), force=force)


@app.command("emulator", epilog="kmsdata emulator --port 8600 --state kms.json")
def emulate(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen on at 127.0.0.1; 0: any free port.")
    ] = 0,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Save keys and credentials to FILE; otherwise a stop deletes them."
        ),
    ] = None,
) -> None:
    """Run an emulator of Tencent Cloud KMS on this machine, for trials, offline work and tests.

    Prints the environment variables that make kmsdata or the official SDK use it. Stops at Ctrl-C. The
    emulator does not protect keys.
    """
    with Emulator(state, port=port) as emulator:
        typer.echo(
            f"# Emulator of Tencent Cloud KMS at {emulator.url}. Stop it with Ctrl-C. In another terminal:\n"
            f"export KMSDATA_TENCENT_ENDPOINT={emulator.url}\n"
            f"export TENCENTCLOUD_SECRET_ID={emulator.secret_id}\n"
            f"export TENCENTCLOUD_SECRET_KEY={emulator.secret_key}"
        )
        sys.stdout.flush()  # a script that reads the variables through a pipe gets them at once
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    typer.echo("# Stopped.", err=True)


def _names(text: str) -> list[str]:
    return [stripped for name in names([text]) or () if (stripped := name.strip())]
