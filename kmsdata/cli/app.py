"""The command line: it parses, calls, and says in a sentence what went wrong."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import kmsdata
from kmsdata.cli import demo as _demo
from kmsdata.cli.file_commands import files, in_options
from kmsdata.emulator import Emulator
from kmsdata.keys.key_uri import parse_key
from kmsdata.keys.session import provider_of

__all__ = ["app", "main"]

_EXAMPLES = "\n\n".join(
    [
        "[bold]Examples[/bold]",
        "kmsdata demo",
        "kmsdata demo --input people.csv --columns name,ssn --deterministic email",
        "kmsdata keys create payroll",
        "kmsdata keys create tencent-kms://ap-guangzhou/payroll",
        "kmsdata keys list --json",
        "kmsdata emulator --port 8600",
        "kmsdata encrypt people.parquet sealed.parquet -c name,ssn -k local://payroll",
        "kmsdata inspect sealed.parquet",
    ]
)
_EXIT_CODES = (
    "[bold]Exit codes[/bold]\n\n0 done; 1 refused or failed; 2 wrong usage; 3 not authentic (verify); "
    "130 interrupted"
)
_HINTS = {
    "KeyExists": "keys are never overwritten: choose another name; 'kmsdata keys list' shows those there are",
}

app = typer.Typer(
    help="Column-level encryption for pandas, Arrow and Parquet.",
    epilog=f"{_EXAMPLES}\n\n{_EXIT_CODES}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
keys = typer.Typer(
    help="Master keys, in the local keystore or in Tencent Cloud KMS: make, list, disable, rotate them.",
    no_args_is_help=True,
    epilog="A KEY is NAME or local://NAME in the local keystore (the file in KMSDATA_KEYSTORE, else one in "
    "your folder for user data; KMSDATA_PASSPHRASE seals a new one), or tencent-kms://REGION/KEYID-OR-ALIAS "
    "in Tencent Cloud KMS (credentials: TENCENTCLOUD_SECRET_ID and TENCENTCLOUD_SECRET_KEY, a profile, or a "
    "role).",
)
app.add_typer(files)
app.add_typer(keys, name="keys")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 refused, 2 wrong usage, 3 not authentic, 130 interrupted.

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
    except ImportError as error:
        _fail(str(error), "", 1)
    except kmsdata.KmsDataError as error:
        hint = _HINTS.get(getattr(error, "code", None) or "", "")
        if isinstance(error, kmsdata.CredentialsError) and error.code == "NoCredentials":
            hint = f"looked for, in this order: {'; '.join(error.tried[1:])}"
        _fail(in_options(str(error)), hint, 1)
    except FileNotFoundError as error:
        text = in_options(str(error)) if error.filename is None else f"there is no file: {error.filename}"
        _fail(text if " " in text else f"there is no file: {text}", "", 1)
    except OSError as error:
        named = f": {error.filename}" if error.filename else ""
        _fail(in_options(f"{error.strerror or str(error) or type(error).__name__}{named}"), "", 1)


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


@app.command("emulator", epilog="kmsdata emulator --port 8600 --state kms.json")
def emulate(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where to listen on 127.0.0.1; 0: anywhere.")
    ] = 0,
    state: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep keys and credentials in FILE; else they go when it stops."),
    ] = None,
) -> None:
    """Run a Tencent Cloud KMS on this machine, for trying, offline work and tests, until Ctrl-C.

    Prints the variables that let kmsdata, or the official SDK, use it. It protects nothing.
    """
    with Emulator(state, port=port) as emulator:
        typer.echo(
            f"# Tencent Cloud KMS, emulated at {emulator.url}; Ctrl-C stops it. In another terminal:\n"
            f"export KMSDATA_TENCENT_ENDPOINT={emulator.url}\n"
            f"export TENCENTCLOUD_SECRET_ID={emulator.secret_id}\n"
            f"export TENCENTCLOUD_SECRET_KEY={emulator.secret_key}"
        )
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    typer.echo("# Stopped.", err=True)


_KEY = Annotated[
    str,
    typer.Argument(metavar="KEY", help="NAME, local://NAME, or tencent-kms://REGION/KEYID-OR-ALIAS."),
]
_JSON = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]


@keys.command("create", epilog="kmsdata keys create tencent-kms://ap-guangzhou/payroll")
def create(
    key: Annotated[
        str,
        typer.Argument(
            metavar="KEY",
            help="NAME or local://NAME (1 to 64 letters, digits or '_.-'), or tencent-kms://REGION/ALIAS.",
        ),
    ],
    as_json: _JSON = False,
) -> None:
    """Make a master key. Keys are never overwritten."""
    uri = _uri(key)
    provider = _provider(uri)
    name = uri.rpartition("/")[2]
    if isinstance(provider, kmsdata.LocalKeystore):
        made = provider.create_key(name, quiet=True)
        where = f"{provider.path}, {_guard(provider)}"
        now = "back that file up: without it, what the key encrypts is lost"
    else:
        made = provider.create_key(name)
        where = f"{provider.region}, as {name}, with {provider.account}"
        now = f"df.kms.encrypt([...], key={made!r})"
    if as_json:
        typer.echo(json.dumps({"key": made}))
        return
    _say("Made", made)
    _say("In", where)
    _say("Now", now)


@keys.command("list", epilog="kmsdata keys list ap-guangzhou")
def list_(
    where: Annotated[
        str,
        typer.Argument(metavar="[local|REGION]", help="The local keystore, or a region of Tencent Cloud."),
    ] = "local",
    as_json: _JSON = False,
) -> None:
    """List the master keys of the local keystore or of a region, without their secrets."""
    place = where.removeprefix("tencent-kms://").rstrip("/*")
    if where in ("local", "local://", "local://*"):
        store = kmsdata.LocalKeystore()
        found = store.list_keys()
        about: dict[str, object] = {"keystore": str(store.path), "passphrase": store.sealed}
        source = f"{store.path}, {_guard(store)}"
        rows = [item | {"id": item["id"][:8]} for item in found]
        fields = ["key", "id", "state", "rotation", "created"]
        fold = "key"
    else:
        kms = _provider(_uri(f"tencent-kms://{place}/any"))
        if not isinstance(kms, kmsdata.TencentKMS):
            raise _demo.Refusal(f"{where} is no region", "a region is called ap-guangzhou, say", usage=True)
        found = kms.list_keys()
        about = {"region": kms.region, "endpoint": kms.endpoint}
        source = f"{kms.region} at {kms.endpoint}, with {kms.account}"
        rows = [item | {"KeyId": item["key"].rpartition("/")[2]} for item in found]
        fields = ["KeyId", "alias", "state", "rotation"]
        fold = "alias"
    if as_json:
        typer.echo(json.dumps({**about, "keys": found}, indent=1))
        return
    if found:
        _table(fields, fold, rows)
    else:
        _say("Keys", "none so far")
        _say("Now", f"kmsdata keys create {'NAME' if place == 'local' else f'tencent-kms://{place}/ALIAS'}")
    _say("In", source)
    if found and place != "local":
        _say("Key", f"tencent-kms://{place}/KEYID-OR-ALIAS")


@keys.command("describe")
def describe(key: _KEY, as_json: _JSON = False) -> None:
    """Say what is known of a master key: its state, when it was made, how it is rotated."""
    uri = _uri(key)
    if as_json:
        _json_of(uri)
        return
    for name, text in _provider(uri).describe_key(uri).items():
        _say(name.capitalize(), text or "none", 10)


@keys.command("disable")
def disable(key: _KEY, as_json: _JSON = False) -> None:
    """Let a key be used no more until it is enabled: what it wrapped cannot be read meanwhile."""
    uri = _uri(key)
    _provider(uri).disable_key(uri)
    _done(uri, f"is disabled: 'kmsdata keys enable {uri}' lets it be used again", as_json)


@keys.command("enable")
def enable(key: _KEY, as_json: _JSON = False) -> None:
    """Let a disabled key be used again."""
    uri = _uri(key)
    _provider(uri).enable_key(uri)
    _done(uri, "is enabled", as_json)


@keys.command("rotate", epilog="kmsdata keys rotate tencent-kms://ap-guangzhou/payroll --every 90")
def rotate(
    key: _KEY,
    every: Annotated[
        int | None,
        typer.Option(
            metavar="DAYS", help="In Tencent Cloud KMS: from now on every 7 to 365 days; 0: no more."
        ),
    ] = None,
    as_json: _JSON = False,
) -> None:
    """Give a key new material, now or regularly. What it wrapped before still opens."""
    uri = _uri(key)
    provider = _provider(uri)
    if every is None:
        provider.rotate_key(uri)
        _done(uri, "has new material; what it wrapped before still opens", as_json)
        return
    if isinstance(provider, kmsdata.LocalKeystore):
        raise _demo.Refusal(
            "a local key is not rotated by itself", "leave --every out to rotate it now", usage=True
        )
    if every and not 7 <= every <= 365:
        raise _demo.Refusal("--every takes 7 to 365 days, or 0", "such as --every 90", usage=True)
    if every:
        provider.enable_rotation(uri, every)
    else:
        provider.disable_rotation(uri)
    _done(uri, f"is rotated {f'every {every} days' if every else 'no more'}", as_json)


def _uri(key: str) -> str:
    uri = key if "://" in key else f"local://{key}"
    parse_key(uri)
    return uri


def _provider(uri: str) -> kmsdata.LocalKeystore | kmsdata.TencentKMS:
    # A keystore of its own at each command: the one of a session has asked for its passphrase already.
    provider = kmsdata.LocalKeystore() if uri.startswith("local:") else provider_of(uri)
    if isinstance(provider, (kmsdata.LocalKeystore, kmsdata.TencentKMS)):
        return provider
    raise _demo.Refusal(f"{uri}: its keys are not managed here", "name a local:// or tencent-kms:// key")


def _done(uri: str, what: str, as_json: bool) -> None:
    if as_json:
        _json_of(uri)
    else:
        _say("Done", f"{uri} {what}")


def _json_of(uri: str) -> None:
    typer.echo(json.dumps(_provider(uri).describe_key(uri), indent=1))


def _table(fields: list[str], fold: str, rows: list[dict[str, str]]) -> None:
    """A table of 80 columns: one field is folded where it is long, and times are cut to days."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for field in fields:
        table.add_column(field, overflow="fold", no_wrap=field != fold)
    for row in rows:
        table.add_row(
            Text(row[fields[0]], "bold"),
            *(row[field][: 10 if field == "created" else None] for field in fields[1:]),
        )
    console = Console(highlight=False)
    if not console.is_terminal:  # in a pipe nothing is folded: a program reads it
        console = Console(highlight=False, width=400)
    console.print(table)


def _say(label: str, text: str, width: int = 5) -> None:
    Console(highlight=False).print(Text.assemble((f"{label:{width}}", "bold green"), text), soft_wrap=True)


def _guard(store: kmsdata.LocalKeystore) -> str:
    return "sealed by a passphrase" if store.sealed else "without a passphrase: the file's mode guards it"


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
