"""The commands for files: each parses its options, calls one library function, and shows the report."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

import kmsdata
from kmsdata.cli.errors import Refusal, guarded_call, in_options
from kmsdata.cli.options import (
    AllowedKeys,
    ContextPairs,
    CreateKey,
    DataPath,
    Delimiter,
    DryRun,
    Encoding,
    Force,
    Json,
    SourcePath,
    TargetPath,
    creating_keys,
    examples,
    key_uri,
    key_uris,
    names,
    new_key_uris,
    one_or_list,
    pairs,
)
from kmsdata.cli.output import say, show_report
from kmsdata.cli.standard_streams import STANDARD, source_file, target_file
from kmsdata.display.file_reports import RewrapReport, StreamReport
from kmsdata.display.report import Report
from kmsdata.display.tables import in_files, size
from kmsdata.errors import printable
from kmsdata.keys.data_key import random_bytes
from kmsdata.keys.envelope import Wrap
from kmsdata.keys.session import session_key

__all__ = ["files"]

files = typer.Typer(rich_markup_mode="rich")


@files.command(
    epilog=examples(
        "kmsdata encrypt people.parquet sealed.parquet -c name,ssn -k local://payroll",
        "kmsdata encrypt people.csv sealed.parquet -c ssn -d email --type ssn=string",
        "kmsdata encrypt data/ sealed/ -c name --context purpose=payroll --dry-run",
        "kmsdata encrypt people.csv new.parquet -d email --data-key-of old.parquet",
        "cat people.csv | kmsdata encrypt - - -c ssn -k payroll > sealed.parquet",
    )
)
def encrypt(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="A Parquet or CSV file, a folder, a pattern such as 'data/*', a URL, or - (standard input). "
            "Several go into a folder.",
        ),
    ],
    target: TargetPath,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--columns",
            "-c",
            metavar="A,B",
            help="Columns to encrypt. Quote names that contain commas. Repeatable.",
        ),
    ] = None,
    deterministic: Annotated[
        list[str] | None,
        typer.Option(
            "--deterministic",
            "-d",
            metavar="C,D",
            help="Columns to encrypt so that equal values have equal cells, for joins and grouping.",
        ),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(
            "--key",
            "-k",
            metavar="KEY",
            help="NAME, local://NAME or tencent-kms://REGION/KEYID-OR-ALIAS; default: KMSDATA_KEY. "
            "Repeatable: each key can open the file.",
        ),
    ] = None,
    data_key_of: Annotated[
        str | None,
        typer.Option(
            "--data-key-of",
            metavar="PATH",
            help="Use the data key of this encrypted file, so that deterministic columns of both can be "
            "joined. --key and --context then limit which master keys and contexts may open it.",
        ),
    ] = None,
    domain: Annotated[
        list[str] | None,
        typer.Option(
            "--domain", metavar="C=TEXT", help="Domain of a deterministic column: joins need equal domains."
        ),
    ] = None,
    context: Annotated[
        list[str] | None,
        typer.Option(
            "--context", metavar="NAME=TEXT", help="Stored unencrypted, required to decrypt. Repeatable."
        ),
    ] = None,
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--type", metavar="A=TYPE", help="Type of a CSV column, such as string or int64. Repeatable."
        ),
    ] = None,
    delimiter: Delimiter = ",",
    encoding: Encoding = "utf-8",
    create_key: CreateKey = False,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Encrypt columns of a file or dataset of any size, and write a new one.

    The other columns are copied unchanged. TARGET is written completely or not at all. With - as TARGET, the
    report goes to standard error.
    """
    keys = new_key_uris(key)
    if data_key_of is not None and create_key:
        raise Refusal("--data-key-of makes no key", "leave out --create-key", usage=True)
    if data_key_of is None and keys is None and session_key() is None:
        raise Refusal(
            "no key to encrypt with",
            "pass --key local://NAME (a key in a local file) or --key tencent-kms://REGION/ALIAS (a key in "
            "Tencent Cloud KMS), or set the variable KMSDATA_KEY",
            usage=True,
        )
    if not columns and not deterministic:
        raise Refusal(
            "no column to encrypt", "name columns: --columns A,B or --deterministic C,D", usage=True
        )
    if both := [name for name in names(columns) or () if name in (names(deterministic) or ())]:
        raise Refusal(
            f"{both[0]!r} is named by --columns and by --deterministic",
            "name it once: --deterministic for joins and grouping, otherwise --columns",
            usage=True,
        )
    with (
        guarded_call(),
        creating_keys(create_key),
        source_file(source) as start,
        target_file(target, dry_run=dry_run) as end,
    ):
        before = kmsdata.usage().calls
        used = None if data_key_of is None else _data_key_of(data_key_of, keys, context, dry_run=dry_run)
        opened = kmsdata.usage().calls - before
        report = kmsdata.encrypt_parquet(
            start,
            end,
            names(columns) or (),
            deterministic=names(deterministic) or (),
            key=keys if used is None else used,
            domain=pairs(domain, "--domain") or None,
            context=None if used is not None else pairs(context, "--context") or None,
            types=pairs(types, "--type") or None,
            delimiter="\t" if delimiter == "\\t" else delimiter,
            encoding=encoding,
            overwrite=force,
            dry_run=dry_run,
        )
        calls = report.kms_calls + (1 if used is not None and dry_run else opened)
    _show_stream(replace(report, kms_calls=calls), "Encrypted", target, as_json=as_json)


@files.command(
    epilog=examples(
        "kmsdata decrypt sealed.parquet plain.parquet",
        "kmsdata decrypt sealed/ plain/ -c name -k local://payroll --dry-run",
    )
)
def decrypt(
    source: SourcePath,
    target: TargetPath,
    columns: Annotated[
        list[str] | None,
        typer.Option("--columns", "-c", metavar="A,B", help="Only these columns. Repeatable."),
    ] = None,
    key: AllowedKeys = None,
    context: ContextPairs = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Decrypt columns of a file or dataset of any size, and write a new one.

    Fails if any cell is not authentic. TARGET is written completely or not at all. With - as TARGET, the
    report goes to standard error.
    """
    with (
        guarded_call(),
        source_file(source) as start,
        target_file(target, dry_run=dry_run) as end,
    ):
        report = kmsdata.decrypt_parquet(
            start,
            end,
            names(columns),
            key=key_uris(key),
            context=pairs(context, "--context") or None,
            overwrite=force,
            dry_run=dry_run,
        )
    _show_stream(report, "Decrypted", target, as_json=as_json)


@files.command(epilog=examples("kmsdata inspect sealed.parquet", "kmsdata inspect sealed/ --json"))
def inspect(path: DataPath, as_json: Json = False) -> None:
    """Show what is encrypted, how, and which keys open it. Needs no key and verifies nothing."""
    with guarded_call():
        report = kmsdata.inspect(one_or_list(path))
    _show(report, as_json=as_json)


@files.command(
    epilog=examples(
        "kmsdata verify sealed.parquet --encrypted name,ssn",
        "kmsdata verify sealed/ -k local://payroll --json",
    )
    + "\n\n[bold]Exit codes[/bold]\n\n0 authentic; 1 not verified, for example because a key was "
    "refused; 2 wrong usage; 3 not authentic; 130 interrupted"
)
def verify(
    path: DataPath,
    encrypted: Annotated[
        list[str] | None,
        typer.Option(
            "--encrypted",
            "-e",
            metavar="A,B",
            help="Columns that must be encrypted. Without it, a column without its header counts as plain.",
        ),
    ] = None,
    key: AllowedKeys = None,
    context: ContextPairs = None,
    as_json: Json = False,
) -> None:
    """Authenticate every cell of every encrypted column. Shows and keeps no plaintext."""
    with guarded_call():
        report = kmsdata.verify(
            one_or_list(path),
            encrypted=names(encrypted),
            key=key_uris(key),
            context=pairs(context, "--context") or None,
        )
    _show(report, as_json=as_json, good=report.ok)
    raise typer.Exit(report.exit_status)


@files.command(
    epilog=examples(
        "kmsdata rewrap sealed.parquet -k local://next",
        "kmsdata rewrap sealed/ -k local://next --source local://payroll --dry-run",
        "kmsdata rewrap sealed/ -k local://recovery --add",
        "kmsdata rewrap sealed/ --retire local://recovery",
    )
)
def rewrap(
    path: DataPath,
    key: Annotated[
        str | None,
        typer.Option("--key", "-k", metavar="NEW", help="The new master key."),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            metavar="OLD",
            help="The master key to replace; default: KMSDATA_KEY, or the only one. Repeatable.",
        ),
    ] = None,
    add: Annotated[bool, typer.Option("--add", help="Add NEW and keep the other master keys.")] = False,
    retire: Annotated[
        list[str] | None,
        typer.Option("--retire", metavar="KEY", help="Remove the access of KEY. Repeatable."),
    ] = None,
    create_key: CreateKey = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Wrap the data keys of files with another master key. Only footers change, no cells.

    After an interruption, every file opens with the old or the new key. Run the command again to finish.
    """
    if (key is None) == (not retire) or (add and retire):
        raise Refusal(
            "name the new key, or one to retire",
            "--key NEW replaces the old key, --key NEW --add keeps it, --retire OLD removes it; to add one "
            "key and retire another, run it twice",
            usage=True,
        )
    try:
        with guarded_call(), creating_keys(create_key):
            report = kmsdata.rewrap(
                one_or_list(path),
                None if key is None else key_uri(key),
                source=key_uris(source),
                add=add,
                retire=key_uris(retire),
                dry_run=dry_run,
            )
    except kmsdata.KmsDataError as error:
        # Some files of a dataset failed: show what happened to the others before the error.
        if isinstance(partial := getattr(error, "report", None), RewrapReport):
            _show(partial, as_json=as_json, good=not partial.failed)
        raise
    _show(report, as_json=as_json, good=not report.failed)


def _show(report: Report, *, as_json: bool, good: bool = True) -> None:
    if as_json:
        typer.echo(report.json())
    else:
        show_report(in_options(str(report)), good=good)


def _data_key_of(
    path: str, keys: list[str] | None, context: list[str] | None, *, dry_run: bool
) -> kmsdata.DataKey:
    """Unwrap the data key of a file; a dry run makes no KMS call and returns another one."""
    if not dry_run:
        return kmsdata.data_key(path, key=keys, context=pairs(context, "--context") or None)
    found = kmsdata.inspect(path).data_keys
    if len(found) != 1:
        raise Refusal(f"--data-key-of {path}: it has {len(found)} data keys, not one")
    return kmsdata.DataKey(random_bytes(32), [Wrap("local://none", "")])


def _show_stream(report: StreamReport, done: str, target: str, *, as_json: bool) -> None:
    piped = target == STANDARD  # then standard output has the data, and standard error the report
    if piped:
        report = replace(report, target="standard output")
    if as_json:
        typer.echo(report.json(), err=piped)
        return
    dry = report.dry_run
    about = "about " if dry else ""
    calls = "1 KMS call" if report.kms_calls == 1 else f"{report.kms_calls:,} KMS calls"
    written = f"{about}{report.rows:,} rows{in_files(report.files)}, {about}{size(report.bytes)}"
    for label, text, colour in (
        ("Dry run" if dry else done, printable(", ".join(report.columns)), "yellow" if dry else "green"),
        ("Size" if dry else "Wrote", written, "green"),
        ("To", report.target, "green"),
        ("Cost", f"{calls}{', at most' if dry else ''}", "green"),
    ):
        say(label, f" {text}", width=9, colour=colour, to_errors=piped)
    for note in report.notes:
        say("Note", f" {note}", width=9, colour="yellow", to_errors=piped)
