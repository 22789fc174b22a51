"""Encrypt columns of files and datasets of any size, one row group or block of CSV at a time.

Only the encrypted columns of a Parquet file are decoded; the others are copied byte for byte.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kmsdata.display.file_reports import StreamReport
from kmsdata.display.progress import Progress
from kmsdata.frames.arguments import Columns
from kmsdata.frames.encrypted_columns import Encrypted
from kmsdata.frames.key_argument import data_key_for
from kmsdata.frames.metadata.values import metadata_texts, refuse_statistics
from kmsdata.keys.session import Key
from kmsdata.keys.usage import usage
from kmsdata.parquet.bulk.column_batches import open_parquet
from kmsdata.parquet.bulk.column_encryptor import ColumnEncryptor, column_encryptors, encrypted_group
from kmsdata.parquet.bulk.csv_reader import CsvFormat, Types, csv_batches
from kmsdata.parquet.bulk.estimate import encrypted_size
from kmsdata.parquet.bulk.file_schema import encrypted_schema, texts_beside
from kmsdata.parquet.bulk.original.types import original_types
from kmsdata.parquet.bulk.plan import FilePlan, plan_encryption
from kmsdata.parquet.bulk.target_files import open_targets
from kmsdata.parquet.column_chunks import PART, arrow_field, arrow_schema, rewrite
from kmsdata.parquet.locations import FilePath, Paths
from kmsdata.parquet.thrift import value
from kmsdata.parquet.write import replacement, settings_for

__all__ = ["encrypt_parquet"]

_GROUP_ROWS = 1 << 20  # rows per row group of a converted CSV file: pyarrow's default row_group_size


def encrypt_parquet(
    source: Paths,
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
    delimiter: str = ",",
    encoding: str = "utf-8",
    overwrite: bool = False,
    dry_run: bool = False,
    progress: bool | None = None,
) -> StreamReport:
    """Encrypt columns of a file or dataset of any size into another one, under one data key.

    Plain columns are copied byte for byte, with their encodings, statistics and indexes. Row groups,
    key-value metadata, field ids and the layout of folders stay the same. Nothing of the encrypted columns is
    left unencrypted.

    Args:
        source: a Parquet or CSV file; a folder of them, also with folders such as ``year=2026``; a pattern
            with ``*`` or ``**``; a URL of these on a filesystem that fsspec supports; or a list of these.
        target: the file to write; for a folder, pattern or list the folder to write, which gets the same
            files at the same relative paths (``.csv`` becomes ``.parquet``). Those of a list keep their path
            below the folder that contains all of them.
        columns: name or names of the columns to encrypt with random IVs.
        deterministic: names of the columns to encrypt so that equal values have equal cells; True for all of
            ``columns``.
        key: as for `FrameAccessor.encrypt`. It is used once, however many files there are.
        domain: name of a set of deterministic columns that can be joined: by column, or one string for one
            column.
        context: pairs of strings, stored unencrypted with the wrapped key, and required to unwrap it.
        filesystem: filesystem of the source, of pyarrow or fsspec; None: inferred from the path.
        target_filesystem: filesystem of the target; None: ``filesystem`` if given, otherwise inferred from
            the path.
        types: types of CSV columns that cannot be inferred from the first 4 MB, as Arrow types or their
            names.
        delimiter: the character between the fields of a CSV file.
        encoding: the encoding of a CSV file, such as ``"gb18030"``.
        overwrite: replace existing files.
        dry_run: write nothing and make no KMS call, but estimate what would be written.
        progress: show a progress bar; None: in a terminal or notebook, if it takes longer than a second.

    Returns:
        What was written: rows, files, bytes, columns, and the number of KMS calls.

    Raises:
        KeyError: no such column.
        ValueError: the values of a column would stay unencrypted elsewhere, because they name folders, or
            because it is the pandas index; or a column is encrypted already.
        FormatError: a file is damaged, or differs from the others in a column's type.
        FileExistsError: the target exists.
        OSError: a file cannot be read or written, or was changed while it was read; or a folder contains a
            link, device or pipe. Links are followed only where the caller names them.
        UnsupportedTypeError, KeyServiceError: as for frames.

    After an error, nothing that was written is left, and the target is unchanged.

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
        csv=CsvFormat(delimiter, encoding),
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
    """Write a Parquet file with its columns encrypted; copy everything else."""
    headers = {**file.headers, **{name: item.dtype.header for name, item in encryptors.items()}}
    with open_parquet(file.source) as parquet:
        stored = arrow_schema(parquet.footer, parquet.path)
        fields, shown = {}, {}
        for name, item in encryptors.items():
            fields[name] = arrow_field(stored, parquet.schema.field(name), item.type, encrypted=True)
            # Without an Arrow schema, readers see cells as bytes, and find the header in the entry.
            shown[name] = (
                fields[name] if stored is not None else fields[name].with_type(item.type.storage_type)
            )
        data_keys = {name: item.data_key for name, item in encryptors.items()}
        originals = original_types(parquet.footer, parquet.schema, data_keys.keys(), parquet.path)
        schema, entries = encrypted_schema(
            parquet.schema,
            parquet.footer.metadata,
            shown,
            headers,
            data_keys,
            {name: item.members for name, item in originals.items()},
            parquet.path,
        )
        beside = texts_beside(schema, entries)
        ids = {
            name: value(elements[0], 9)
            for (name, _), elements in zip(parquet.footer.columns, parquet.footer.elements, strict=True)
            if name in encryptors
        }
        refuse_statistics(beside, ids, f"{parquet.path}: the file's key-value metadata")
        texts = metadata_texts(beside, schema.names)
        rewrite(
            parquet.file,
            parquet.path,
            parquet.footer,
            sink,
            {name: replace(replacement(field), arrow=field) for name, field in fields.items()},
            functools.partial(encrypted_group, parquet, encryptors, texts),
            schema,
            entries,
            add_rows,
        )


def _encrypt_csv(
    file: FilePlan, sink: Any, encryptors: Mapping[str, ColumnEncryptor], add_rows: Callable[[int], None]
) -> None:
    """Convert a CSV file to a Parquet file with its columns encrypted."""
    headers = {name: item.dtype.header for name, item in encryptors.items()}
    fields = {name: file.schema.field(name).with_type(item.type) for name, item in encryptors.items()}
    data_keys = {name: item.data_key for name, item in encryptors.items()}
    schema, _ = encrypted_schema(file.schema, {}, fields, headers, data_keys, {})
    with pq.ParquetWriter(sink, schema, **settings_for(schema, {})) as writer:
        held: list[pa.Table] = []

        def write_row_group() -> None:
            table = pa.concat_tables(held)
            writer.write_table(table, row_group_size=max(len(table), 1))
            held.clear()

        for batch in csv_batches(file.source, file.schema, file.csv or CsvFormat()):
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
