"""The command that turns data of the vendor's guide into an encrypted Parquet file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import typer

import kmsdata
from kmsdata.cli.errors import Refusal, guarded_call
from kmsdata.cli.options import (
    CreateKey,
    Delimiter,
    Encoding,
    creating_keys,
    examples,
    key_uri,
    names,
    new_key_uris,
    pairs,
)
from kmsdata.cli.output import say
from kmsdata.keys.session import session_key
from kmsdata.parquet.bulk.csv_reader import CsvFormat, csv_batches, csv_layout, is_csv
from kmsdata.parquet.locations import Place

__all__ = ["migration"]

migration = typer.Typer(rich_markup_mode="rich")
_MOST_WRAPPED = 1 << 16  # bytes of the file with the wrapped data key


@migration.command(
    epilog=examples(
        "kmsdata migrate old.csv sealed.parquet -c ssn --wrapped key.txt --guide-key "
        "tencent-kms://ap-guangzhou/payroll -k tencent-kms://ap-guangzhou/payroll",
    )
)
def migrate(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A Parquet or CSV file.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The Parquet file to write.")],
    columns: Annotated[
        list[str],
        typer.Option(
            "--columns", "-c", metavar="A,B", help="The columns with cells of the guide: AES-ECB in base64."
        ),
    ],
    wrapped: Annotated[
        Path,
        typer.Option(
            "--wrapped",
            metavar="FILE",
            help="A file with the wrapped data key (CiphertextBlob).",
        ),
    ],
    guide_key: Annotated[
        str, typer.Option("--guide-key", metavar="KEY", help="The master key that wrapped this data key.")
    ],
    key: Annotated[
        list[str] | None,
        typer.Option(
            "--key",
            "-k",
            metavar="KEY",
            help="The master key for the new file; default: KMSDATA_KEY. Repeatable.",
        ),
    ] = None,
    guide_context: Annotated[
        list[str] | None,
        typer.Option(
            "--guide-context",
            metavar="NAME=TEXT",
            help="The encryption context with which the data key was wrapped, if any. Repeatable.",
        ),
    ] = None,
    delimiter: Delimiter = ",",
    encoding: Encoding = "utf-8",
    create_key: CreateKey = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing file.")] = False,
) -> None:
    """Encrypt a file again whose cells were encrypted as in the vendor's guide (AES-ECB).

    The cells are decrypted in memory and encrypted with AES-GCM under a new data key. The other columns keep
    their values. SOURCE must fit into memory, and is unchanged.
    """
    keys = new_key_uris(key)
    if keys is None and session_key() is None:
        raise Refusal("no key to encrypt with", "pass --key, or set KMSDATA_KEY", usage=True)
    if is_csv(target):
        raise Refusal("the target would be a Parquet file", "name it .parquet, not .csv", usage=True)
    with guarded_call(), creating_keys(create_key):
        end = Place.of(target)
        if end.kind != pafs.FileType.NotFound and not (force and end.kind == pafs.FileType.File):
            raise Refusal(f"{target} exists already", "--force replaces a file")
        frame = _read(source, CsvFormat("\t" if delimiter == "\\t" else delimiter, encoding))
        chosen = list(dict.fromkeys(names(columns) or ()))
        for name in chosen:
            if list(frame.columns).count(name) != 1:
                raise Refusal(f"{source} has no column {name!r}, or several")
        blob = _wrapped(wrapped)
        plain = {
            name: kmsdata.migrate_guide_column(
                frame[name],
                blob,
                key=key_uri(guide_key),
                context=pairs(guide_context, "--guide-context") or None,
            )
            for name in chosen
        }
        frame.assign(**plain).kms.encrypt(chosen, key=keys).kms.to_parquet(target, encrypted=chosen)
    say("Migrated", f" {', '.join(chosen)}", width=9)
    say("Wrote", f" {len(frame):,} rows", width=9)
    say("To", f" {target}", width=9)
    say("Now", f" kmsdata verify {target} --encrypted {','.join(chosen)}; then delete {source}", width=9)


def _read(source: str, csv: CsvFormat) -> pd.DataFrame:
    """Read a file. Without dtypes of pandas in it, Arrow's are used: integers with nulls stay integers."""
    place = Place.of(source)
    if is_csv(source):
        schema = csv_layout(place, None, csv).schema
        table = pa.Table.from_batches(csv_batches(place, schema, csv), schema)
    else:
        table = pq.read_table(source)
    if table.schema.pandas_metadata:
        return table.to_pandas()
    return table.to_pandas(types_mapper=pd.ArrowDtype)


def _wrapped(path: Path) -> str:
    with path.open(encoding="ascii", errors="replace") as file:
        text = file.read(_MOST_WRAPPED).strip()
    if not text:
        raise Refusal(f"{path} is empty", "write the wrapped data key (CiphertextBlob) into it")
    return text
