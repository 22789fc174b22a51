"""Encrypt columns of files and datasets of any size, a row group or a block of CSV at a time.

Of a Parquet file only the columns concerned are decoded; the others are copied byte for byte.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kmsdata.display.file_reports import StreamReport
from kmsdata.display.progress import Progress
from kmsdata.frames.arguments import Columns
from kmsdata.frames.encrypted_columns import Encrypted
from kmsdata.frames.key_argument import data_key_for
from kmsdata.keys.session import Key
from kmsdata.keys.usage import usage
from kmsdata.parquet.bulk.column_batches import open_parquet
from kmsdata.parquet.bulk.column_encryptor import ColumnEncryptor, column_encryptors, encrypted_group
from kmsdata.parquet.bulk.csv_reader import Types, csv_batches
from kmsdata.parquet.bulk.estimate import encrypted_size
from kmsdata.parquet.bulk.file_schema import (
    encrypted_schema,
    metadata_texts,
    replacement,
)
from kmsdata.parquet.bulk.plan import FilePlan, plan_encryption
from kmsdata.parquet.bulk.target_files import open_targets
from kmsdata.parquet.column_chunks import PART, rewrite
from kmsdata.parquet.locations import FilePath
from kmsdata.parquet.write import settings_for

__all__ = ["encrypt_parquet"]

_GROUP_ROWS = 1 << 20  # of the row groups that CSV becomes: as many as pyarrow writes by default


def encrypt_parquet(
    source: FilePath,
    target: FilePath,
    columns: Columns = (),
    *,
    deterministic: Columns | bool = (),
    key: Key | Encrypted | None = None,
    domain: str | Mapping[str, str] | None = None,
    context: Mapping[str, str] | None = None,
    filesystem: Any = None,
    target_filesystem: Any = None,
    types: Types | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: bool | None = None,
) -> StreamReport:
    """Encrypt columns of a file or dataset of any size into another one, under one data key.

    Plain columns are copied byte for byte, with their encodings, statistics and indexes; row groups,
    key-value metadata, field ids and the layout of folders stay. Of the encrypted columns nothing is left
    in clear.

    Args:
        source: a Parquet or CSV file; a folder of them, with folders such as ``year=2026`` too; a pattern
            with ``*`` or ``**``; or a URL of any such, for which fsspec has a filesystem.
        target: the file; of a folder or pattern the folder, which has the same files in the same places
            (``.csv`` becomes ``.parquet``).
        columns: name or names of the columns to encrypt with random IVs.
        deterministic: names of those to encrypt so that equal values have equal cells; True for all of
            ``columns``.
        key: as `FrameAccessor.encrypt` takes it. However many files there are, it is asked once.
        domain: what deterministic columns may be joined across: by column, or one text for one column.
        context: pairs that stand in clear beside the wrapped key, and that opening it takes.
        filesystem: of the source: pyarrow's or fsspec's; else by the path.
        target_filesystem: of the target; else that of the source if it was given, else by the path.
        types: of CSV columns, as Arrow types or their names, where the first 4 MB do not tell.
        overwrite: replace files that are there.
        dry_run: write nothing and ask no key service, but report what would be written, about.
        progress: show a bar; None: where it takes longer than a second and somebody may be looking.

    Returns:
        What was written: rows, files, bytes, columns, and calls of the key service.

    Raises:
        KeyError: no such column.
        ValueError: a column whose values would stay in clear elsewhere: its values name folders, or it is the
            index of pandas; or one that is encrypted already.
        FormatError: a file that is damaged, or that differs from the others in a column's type.
        FileExistsError: there is something at the target.
        OSError: a file cannot be read or written, or was changed while it was read.
        UnsupportedTypeError, KeyServiceError: as for frames.

    Whatever is raised, nothing is left of what was written; what was at the target is as it was.

    Example:
        >>> import pandas as pd, kmsdata
        >>> pd.DataFrame({"ssn": ["078-05-1120", None], "city": ["Ulm", "Bonn"]}).to_parquet("plain.parquet")
        >>> done = kmsdata.encrypt_parquet("plain.parquet", "sealed.parquet", "ssn", key="local://demo")
        >>> done.rows, done.files, done.columns, done.kms_calls
        (2, 1, ('ssn',), 1)
        >>> kmsdata.read_parquet("sealed.parquet", decrypt=True)["ssn"][0]
        '078-05-1120'
    """
    plan = plan_encryption(
        source,
        target,
        columns,
        deterministic,
        domain,
        key=key,
        filesystem=filesystem,
        target_filesystem=target_filesystem,
        types=types,
        overwrite=overwrite,
    )
    if dry_run:
        return plan.report(plan.rows, encrypted_size(plan), plan.kms_calls, dry_run=True)
    before = usage().calls
    data_key = data_key_for(key, context, plan.cells)
    calls = usage().calls - before
    encryptors = column_encryptors(plan, data_key)
    with Progress("encrypt", plan.rows, "rows", progress) as bar, open_targets(plan) as targets:
        for file in plan.files:
            with targets.open(file) as sink:
                if file.is_csv:
                    _encrypt_csv(file, sink, encryptors, bar.step)
                else:
                    _encrypt_parquet(file, sink, encryptors, bar.step)
    return plan.report(bar.done, targets.bytes, calls)


def _encrypt_parquet(
    file: FilePlan, sink: Any, encryptors: Mapping[str, ColumnEncryptor], add_rows: Callable[[int], None]
) -> None:
    """Write a Parquet file with its columns encrypted, and all else copied."""
    headers = {**file.headers, **{name: item.dtype.header for name, item in encryptors.items()}}
    with open_parquet(file.source) as parquet:
        fields = {name: parquet.schema.field(name).with_type(item.type) for name, item in encryptors.items()}
        schema, entries = encrypted_schema(parquet.schema, parquet.entries, fields, headers)
        texts = metadata_texts(schema, entries)
        rewrite(
            parquet.file,
            parquet.path,
            parquet.footer,
            sink,
            {name: replacement(field) for name, field in fields.items()},
            functools.partial(encrypted_group, parquet, encryptors, texts),
            schema,
            entries,
            add_rows,
        )


def _encrypt_csv(
    file: FilePlan, sink: Any, encryptors: Mapping[str, ColumnEncryptor], add_rows: Callable[[int], None]
) -> None:
    """Write the Parquet file that a CSV file becomes."""
    headers = {name: item.dtype.header for name, item in encryptors.items()}
    fields = {name: file.schema.field(name).with_type(item.type) for name, item in encryptors.items()}
    schema, _ = encrypted_schema(file.schema, {}, fields, headers)
    with pq.ParquetWriter(sink, schema, **settings_for(schema, {})) as writer:
        held: list[pa.Table] = []

        def write_row_group() -> None:
            table = pa.concat_tables(held)
            writer.write_table(table, row_group_size=max(len(table), 1))
            held.clear()

        for batch in csv_batches(file.source, file.schema):
            columns = [
                encryptors[name].encrypt(values) if name in encryptors else values
                for name, values in zip(batch.schema.names, batch.columns, strict=True)
            ]
            held.append(pa.Table.from_arrays(columns, schema=schema))
            add_rows(len(batch))
            if sum(table.nbytes for table in held) >= PART or sum(map(len, held)) >= _GROUP_ROWS:
                write_row_group()
        if held:
            write_row_group()
