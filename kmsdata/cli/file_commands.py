"""The commands for files: each parses its options, makes one call of the library, and shows the report."""

from __future__ import annotations

import csv
import dis
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

import kmsdata
from kmsdata.cli.demo import Refusal
from kmsdata.display.file_reports import RewrapReport, StreamReport
from kmsdata.display.tables import printable, size
from kmsdata.keys.session import session_key

__all__ = ["files", "in_options"]

files = typer.Typer(rich_markup_mode="rich")


def _examples(*lines: str) -> str:
    return "\n\n".join(["[bold]Examples[/bold]", *lines])


_Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="A Parquet file, a folder, a pattern such as 'data/**/*.parquet', or a URL."
    ),
]
_Target = Annotated[
    str, typer.Argument(metavar="TARGET", help="The file to write; for a folder or pattern, the folder.")
]
_Path = Annotated[str, typer.Argument(metavar="PATH", help="A Parquet file, a dataset's folder, or a URL.")]
_Context = Annotated[
    list[str] | None,
    typer.Option("--context", metavar="NAME=TEXT", help="What the context must say. Repeatable."),
]
_Allowed = Annotated[
    list[str] | None,
    typer.Option("--key", "-k", metavar="KEY", help="Only this master key may open it. Repeatable."),
]
_Force = Annotated[bool, typer.Option("--force", "-f", help="Replace files that are there.")]
_DryRun = Annotated[
    bool,
    typer.Option("--dry-run", "-n", help="Write nothing, call no key service; say what would happen."),
]
_Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


@files.command(
    epilog=_examples(
        "kmsdata encrypt people.parquet sealed.parquet -c name,ssn -k local://payroll",
        "kmsdata encrypt people.csv sealed.parquet -c ssn -d email --type ssn=string",
        "kmsdata encrypt data/ sealed/ -c name --context purpose=payroll --dry-run",
    )
)
def encrypt(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A Parquet or CSV file, a folder, a pattern such as 'data/*', or a URL."
        ),
    ],
    target: _Target,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--columns",
            "-c",
            metavar="A,B",
            help="Columns to encrypt, quoted where they hold commas. Repeatable.",
        ),
    ] = None,
    deterministic: Annotated[
        list[str] | None,
        typer.Option(
            "--deterministic",
            "-d",
            metavar="C,D",
            help="Those to encrypt so that equal values look equal: for joins and groups.",
        ),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(
            "--key",
            "-k",
            metavar="KEY",
            help="NAME, local://NAME or tencent-kms://REGION/KEYID-OR-ALIAS; else KMSDATA_KEY. Repeatable: "
            "any of them opens it.",
        ),
    ] = None,
    domain: Annotated[
        list[str] | None,
        typer.Option("--domain", metavar="C=TEXT", help="What a deterministic column joins across."),
    ] = None,
    context: Annotated[
        list[str] | None,
        typer.Option(
            "--context", metavar="NAME=TEXT", help="Stands in clear, and opening takes it. Repeatable."
        ),
    ] = None,
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--type", metavar="A=TYPE", help="Of a CSV column, such as string or int64. Repeatable."
        ),
    ] = None,
    force: _Force = False,
    dry_run: _DryRun = False,
    as_json: _Json = False,
) -> None:
    """Encrypt columns of a file or dataset of any size into another one.

    The other columns are copied as they are. TARGET appears whole or not at all.
    """
    keys = _uris(key)
    if keys is None and session_key() is None:
        raise Refusal(
            "no key to encrypt under",
            "--key local://NAME (in a file of yours), --key tencent-kms://REGION/ALIAS (in Tencent Cloud "
            "KMS), or either in the variable KMSDATA_KEY",
            usage=True,
        )
    if not columns and not deterministic:
        raise Refusal("no column to encrypt", "name some: --columns A,B, or --deterministic C,D", usage=True)
    with _about_input():
        report = kmsdata.encrypt_parquet(
            source,
            target,
            _names(columns) or (),
            deterministic=_names(deterministic) or (),
            key=keys,
            domain=_pairs(domain, "--domain") or None,
            context=_pairs(context, "--context") or None,
            types=_pairs(types, "--type") or None,
            overwrite=force,
            dry_run=dry_run,
        )
    _show_stream(report, "Encrypted", as_json=as_json)


@files.command(
    epilog=_examples(
        "kmsdata decrypt sealed.parquet plain.parquet",
        "kmsdata decrypt sealed/ plain/ -c name -k local://payroll --dry-run",
    )
)
def decrypt(
    source: _Source,
    target: _Target,
    columns: Annotated[
        list[str] | None,
        typer.Option("--columns", "-c", metavar="A,B", help="Only these columns. Repeatable."),
    ] = None,
    key: _Allowed = None,
    context: _Context = None,
    force: _Force = False,
    dry_run: _DryRun = False,
    as_json: _Json = False,
) -> None:
    """Decrypt columns of a file or dataset of any size into another one.

    A cell that is not authentic fails all of it. TARGET appears whole or not at all.
    """
    with _about_input():
        report = kmsdata.decrypt_parquet(
            source,
            target,
            _names(columns),
            key=_uris(key),
            context=_pairs(context, "--context") or None,
            overwrite=force,
            dry_run=dry_run,
        )
    _show_stream(report, "Decrypted", as_json=as_json)


@files.command(epilog=_examples("kmsdata inspect sealed.parquet", "kmsdata inspect sealed/ --json"))
def inspect(path: _Path, as_json: _Json = False) -> None:
    """Say what is encrypted, how, and which keys open it. Takes no key, verifies nothing."""
    with _about_input():
        report = kmsdata.inspect(path)
    if as_json:
        typer.echo(report.json())
    else:
        _show(str(report))


@files.command(
    epilog=_examples(
        "kmsdata verify sealed.parquet --encrypted name,ssn",
        "kmsdata verify sealed/ -k local://payroll --json",
    )
    + "\n\n[bold]Exit codes[/bold]\n\n0 authentic; 1 it could not be verified, such as for a key that is "
    "refused; 2 wrong usage; 3 not authentic; 130 interrupted"
)
def verify(
    path: _Path,
    encrypted: Annotated[
        list[str] | None,
        typer.Option(
            "--encrypted",
            "-e",
            metavar="A,B",
            help="Columns that must be encrypted: else one whose header was removed passes for a plain one.",
        ),
    ] = None,
    key: _Allowed = None,
    context: _Context = None,
    as_json: _Json = False,
) -> None:
    """Authenticate every cell of every encrypted column. No plaintext is shown or kept."""
    with _about_input():
        report = kmsdata.verify(
            path,
            encrypted=_names(encrypted),
            key=_uris(key),
            context=_pairs(context, "--context") or None,
        )
    if as_json:
        typer.echo(report.json())
    else:
        _show(str(report), report.ok)
    raise typer.Exit(report.exit_status)


@files.command(
    epilog=_examples(
        "kmsdata rewrap sealed.parquet -k local://next",
        "kmsdata rewrap sealed/ -k local://next --source local://payroll --dry-run",
        "kmsdata rewrap sealed/ -k local://recovery --add",
        "kmsdata rewrap sealed/ --retire local://recovery",
    )
)
def rewrap(
    path: _Path,
    key: Annotated[
        str | None,
        typer.Option("--key", "-k", metavar="NEW", help="The master key that is to open it from now on."),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            metavar="OLD",
            help="The one to be replaced; else KMSDATA_KEY, or the only one that there is. Repeatable.",
        ),
    ] = None,
    add: Annotated[bool, typer.Option("--add", help="Let NEW open it as well, and replace none.")] = False,
    retire: Annotated[
        list[str] | None,
        typer.Option("--retire", metavar="KEY", help="Let KEY open it no more. Repeatable."),
    ] = None,
    dry_run: _DryRun = False,
    as_json: _Json = False,
) -> None:
    """Put files under another master key. Only their footers change; no cell is touched.

    After an interruption every file opens by the old or the new key: the same command finishes.
    """
    if (key is None) == (not retire) or (add and retire):
        raise Refusal(
            "name the new key, or one to retire",
            "--key NEW replaces the old one, --key NEW --add keeps it, --retire OLD removes it; to add and "
            "to retire are two runs",
            usage=True,
        )
    try:
        with _about_input():
            report = kmsdata.rewrap(
                path,
                None if key is None else _uri(key),
                source=_uris(source),
                add=add,
                retire=_uris(retire),
                dry_run=dry_run,
            )
    except kmsdata.KmsDataError as error:
        if isinstance(partial := getattr(error, "report", None), RewrapReport):
            _show_rewrap(partial, as_json=as_json)
        raise
    _show_rewrap(report, as_json=as_json)


# --- options ------------------------------------------------------------------------------------------


def _uri(key: str) -> str:
    return key if "://" in key else f"local://{key}"


def _uris(keys: list[str] | None) -> list[str] | None:
    return [_uri(key) for key in keys] if keys else None


def _names(texts: list[str] | None) -> list[str] | None:
    """Names from lists with commas, as CSV has them."""
    if not texts:
        return None
    return [
        name for text in texts for row in csv.reader([text], skipinitialspace=True) for name in row if name
    ]


def _pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise Refusal(f"{option} takes NAME=TEXT", f"such as {option} {name or 'name'}=text", usage=True)
        if name in pairs:
            raise Refusal(f"{option} names {name!r} twice", usage=True)
        pairs[name] = value
    return pairs


_OPTIONS = {
    "overwrite=True": "--force",
    "add=True": "--add",
    "types=": "--type",
    **{f"{name}=": f"--{name}" for name in ("source", "retire", "deterministic", "domain", "context", "key")},
    "encrypted=": "--encrypted",
}


def in_options(message: str) -> str:
    """A sentence of the library, with options in place of Python's arguments."""
    message = message.replace(", or pass filesystem=", "")
    message = re.sub(r"types=\{'([^']*)': '(\w+)'\}", r"--type \1=\2", message)
    message = re.sub(r"\bdomain=\{column: text\}", "--domain COLUMN=TEXT", message)
    return re.sub(
        r"(?<![\w.-])(?:" + "|".join(map(re.escape, _OPTIONS)) + r")(?=[\s,.;:)]|$)",
        lambda found: _OPTIONS[found[0]],
        message,
    )


# --- what goes wrong ----------------------------------------------------------------------------------


@contextmanager
def _about_input() -> Iterator[None]:
    """What the library refuses is one sentence, a bug keeps its traceback; and being stopped leaves nothing.

    KeyError, TypeError and ValueError are both: of the library's own ``raise`` statements they are about the
    input, out of anything else they are a bug.
    """

    def stop(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)  # an exception, so that temporary files go, as they do after Ctrl-C

    stops = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, stop) for number in stops if signal.getsignal(number) == 0}
    try:
        yield
    except kmsdata.KmsDataError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        if not _raised_here(error):
            raise
        raise Refusal(in_options(str(error.args[0]))) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raised_here(error: BaseException) -> bool:
    """Whether a ``raise`` statement of kmsdata has raised it."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or not str(last.tb_frame.f_globals.get("__name__")).startswith("kmsdata."):
        return False
    return dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] == "RAISE_VARARGS"


# --- what is shown ------------------------------------------------------------------------------------


def _say(label: str, text: str, colour: str = "green") -> None:
    Console(highlight=False).print(Text.assemble((f"{label:9}", f"bold {colour}"), " ", text), soft_wrap=True)


def _show_stream(report: StreamReport, done: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(report.json())
        return
    about = "about " if report.dry_run else ""
    in_files = f" in {report.files:,} files" if report.files > 1 else ""
    calls = "1 call" if report.kms_calls == 1 else f"{report.kms_calls:,} calls"
    _say(
        "Dry run" if report.dry_run else done,
        printable(", ".join(report.columns)),
        "yellow" if report.dry_run else "green",
    )
    _say(
        "Would be" if report.dry_run else "Wrote",
        f"{about}{report.rows:,} rows{in_files}, {about}{size(report.bytes)}",
    )
    _say("To", report.target)
    _say("Cost", f"{calls} of the key service{', at most' if report.dry_run else ''}")


def _show(text: str, good: bool = True) -> None:
    """A report's own text, which is no wider than the terminal; and colours."""
    console = Console(highlight=False)
    title, *lines = in_options(text).split("\n")
    console.print(Text(title, "bold green" if good else "bold red"), soft_wrap=True)
    for line in lines:
        style = "red" if line.startswith(("[!]", "- ")) else "magenta" if line.startswith("[x]") else ""
        console.print(Text(line, style), soft_wrap=True)


def _show_rewrap(report: RewrapReport, *, as_json: bool) -> None:
    if as_json:
        typer.echo(report.json())
    else:
        _show(str(report), not report.failed)
