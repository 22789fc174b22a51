"""Options that several commands share, and the parsing of their values: names, key URIs, pairs."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

import kmsdata
from kmsdata.cli.errors import Refusal

__all__ = [
    "AllowedKeys",
    "ContextPairs",
    "CreateKey",
    "DataPath",
    "Delimiter",
    "DryRun",
    "Encoding",
    "Force",
    "Json",
    "SourcePath",
    "TargetPath",
    "creating_keys",
    "examples",
    "key_uri",
    "key_uris",
    "names",
    "new_key_uris",
    "one_or_list",
    "pairs",
]

SourcePath = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE",
        help="A Parquet file, a folder, a pattern such as 'data/**/*.parquet', a URL, or - for standard "
        "input. Several go into a folder.",
    ),
]
TargetPath = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="The file to write; for a folder, pattern or several files, the folder; or - for standard "
        "output.",
    ),
]
DataPath = Annotated[
    list[str],
    typer.Argument(metavar="PATH", help="Parquet files, folders of datasets, patterns, or URLs."),
]
ContextPairs = Annotated[
    list[str] | None,
    typer.Option("--context", metavar="NAME=TEXT", help="A pair that the context must contain. Repeatable."),
]
AllowedKeys = Annotated[
    list[str] | None,
    typer.Option("--key", "-k", metavar="KEY", help="Use only this master key. Repeatable."),
]
CreateKey = Annotated[
    bool,
    typer.Option("--create-key", help="Create local:// keys of --key that do not exist."),
]
Delimiter = Annotated[
    str, typer.Option("--delimiter", metavar="CHARACTER", help="Between the fields of CSV; \\t for a tab.")
]
Encoding = Annotated[
    str, typer.Option("--encoding", metavar="NAME", help="Encoding of CSV, such as gb18030 or cp1252.")
]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace existing files.")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", "-n", help="Write nothing and make no KMS call; show what would happen."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def examples(*lines: str) -> str:
    """Return the examples at the end of a command's help."""
    return "\n\n".join(["[bold]Examples[/bold]", *lines])


@contextmanager
def creating_keys(wanted: bool) -> Iterator[None]:
    """Create local keys that do not exist, if wanted."""
    with kmsdata.using(kmsdata.LocalKeystore(create=True)) if wanted else nullcontext():
        yield


def key_uri(key: str) -> str:
    """Return the URI of a key; a name without a scheme is a key of the local keystore."""
    return key if ":" in key else f"local://{key}"


def new_key_uris(keys: list[str] | None) -> list[str] | None:
    """Return the URIs of keys for new data; None if there are none.

    Raises:
        Refusal: a name is that of a file or folder, and of no key: a new key is not meant.
    """
    for key in keys or ():
        if ":" in key or not Path(key).exists():
            continue
        if key in [item["key"].removeprefix("local://") for item in kmsdata.LocalKeystore().list_keys()]:
            continue
        raise Refusal(
            f"--key {key}: this is a file or folder, not a master key",
            f"to use its data key, pass --data-key-of {key}; for a new master key of this name, run "
            f"'kmsdata keys create NAME' first",
            usage=True,
        )
    return key_uris(keys)


def key_uris(keys: list[str] | None) -> list[str] | None:
    """Return the URIs of keys; None if there are none."""
    return [key_uri(key) for key in keys] if keys else None


def names(texts: list[str] | None) -> list[str] | None:
    """Return the names in comma-separated lists, quoted as in CSV; None for no lists."""
    if not texts:
        return None
    try:
        rows = [row for text in texts for row in csv.reader([text], skipinitialspace=True)]
    except csv.Error:
        raise Refusal("a name contains a line break", "put the name in quotes", usage=True) from None
    return [name for row in rows for name in row if name]


def one_or_list(paths: list[str]) -> str | list[str]:
    """Return the path if it is the only one: a file or folder is not the same as a list of it."""
    return paths[0] if len(paths) == 1 else paths


def pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    """Return the pairs of an option whose values are NAME=TEXT."""
    found: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise Refusal(f"{option} takes NAME=TEXT", f"such as {option} {name or 'name'}=text", usage=True)
        if name in found:
            raise Refusal(f"{option} names {name!r} twice", usage=True)
        found[name] = value
    return found
