"""Decrypt columns of files and datasets of any size, one row group at a time."""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from kmsdata.display.file_reports import StreamReport
from kmsdata.display.progress import Progress
from kmsdata.frames.arguments import Columns
from kmsdata.frames.encrypted_columns import Encrypted
from kmsdata.frames.key_argument import resolve_key
from kmsdata.frames.metadata.pandas_entry import dtype_names
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.session import Key
from kmsdata.keys.unwrap import open_keys
from kmsdata.keys.usage import usage
from kmsdata.parquet.bulk.column_batches import open_parquet
from kmsdata.parquet.bulk.column_decryptor import ColumnDecryptor, column_decryptors, decrypted_group
from kmsdata.parquet.bulk.estimate import decrypted_size
from kmsdata.parquet.bulk.file_schema import decrypted_schema, original_entries
from kmsdata.parquet.bulk.original.entry import opened
from kmsdata.parquet.bulk.original.types import decrypted_column, types_in
from kmsdata.parquet.bulk.plan import FilePlan, plan_decryption
from kmsdata.parquet.bulk.target_files import open_targets
from kmsdata.parquet.column_chunks import Replacement, arrow_schema, rewrite
from kmsdata.parquet.headers import naming_the_file
from kmsdata.parquet.locations import FilePath, Paths

__all__ = ["decrypt_parquet"]


def decrypt_parquet(
    source: Paths,
    target: FilePath,
    columns: Columns | None = None,
    *,
    key: Key | Encrypted | None = None,
    context: Mapping[str, str] | None = None,
    filesystem: Any = None,
    target_filesystem: Any = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: bool | None = None,
) -> StreamReport:
    """Decrypt columns of a file or dataset of any size into another one.

    Every cell of a row group is authenticated before any of it is written. If one fails, nothing is written.

    Args:
        source: a Parquet file, a folder, a pattern, a URL of these, or a list, as for `encrypt_parquet`.
        target: the file to write; for a folder, pattern or list the folder to write.
        columns: name or names of columns, which must be encrypted in every file; None: every encrypted
            column.
        key: the only keys that may decrypt, as for `FrameAccessor.decrypt`. Used once for each data key.
        context: pairs that the authenticated context must contain.
        filesystem: filesystem of the source, of pyarrow or fsspec; None: inferred from the path.
        target_filesystem: filesystem of the target; None: ``filesystem`` if given, otherwise inferred from
            the path.
        overwrite: replace existing files.
        dry_run: write nothing and make no KMS call, but estimate what would be written at most.
        progress: show a progress bar; None: in a terminal or notebook, if it takes longer than a second.

    Returns:
        What was written: rows, files, bytes, columns, and the number of KMS calls.

    Raises:
        FormatError: a file is damaged, has no encrypted column, or not all of ``columns``.
        TamperedError: cells fail authentication; ``rows`` are positions in the file.
        WrongKeyError, KeyServiceError: as for frames.
        FileExistsError: the target exists.
        OSError: a file cannot be read or written, or was changed while it was read; or a folder contains a
            link, device or pipe. Links are followed only where the caller names them.

    After an error, nothing that was written is left, and the target is unchanged. New local files have the
    permissions of the file that they replace, otherwise of their source, less the umask; until they are
    complete, only their owner can read them. What a killed process left is removed by the next run.

    Example:
        >>> import pandas as pd, kmsdata
        >>> df = pd.DataFrame({"age": [36, 41]})
        >>> df.kms.encrypt("age", key="local://demo").kms.to_parquet("ages.parquet")
        >>> kmsdata.decrypt_parquet("ages.parquet", "plain.parquet").columns
        ('age',)
        >>> pd.read_parquet("plain.parquet")["age"].tolist()
        [36, 41]
    """
    plan = plan_decryption(
        source,
        target,
        columns,
        filesystem=filesystem,
        target_filesystem=target_filesystem,
        overwrite=overwrite,
    )
    if dry_run:
        return plan.report(plan.rows, decrypted_size(plan), plan.kms_calls, dry_run=True)
    before = usage().calls
    with naming_the_file({file.path: file.column_headers for file in plan.files}):
        data_keys = open_keys(plan.headers, resolve_key(key), context)
    calls = usage().calls - before
    decryptors = column_decryptors(plan, data_keys)
    with Progress("decrypt", plan.rows, "rows", progress) as bar, open_targets(plan) as targets:
        for file in plan.files:
            own = {name: decryptors[name, header] for name, header in file.column_headers.items()}
            with targets.open(file) as sink, _no_plaintext_in_frames():
                _decrypt_file(file, sink, own, bar.step)
    return plan.report(bar.done, targets.bytes, calls)


@contextlib.contextmanager
def _no_plaintext_in_frames() -> Iterator[None]:
    """Clear the frames of an error: their variables are the pages that were being written, not encrypted."""
    try:
        yield
    except BaseException as error:
        waiting: list[BaseException | None] = [error]
        while waiting:
            if (one := waiting.pop()) is not None:
                traceback.clear_frames(one.__traceback__)
                waiting += [one.__cause__, one.__context__]
        raise


def _decrypt_file(
    file: FilePlan, sink: Any, decryptors: Mapping[str, ColumnDecryptor], add_rows: Callable[[int], None]
) -> None:
    """Write a Parquet file with its columns decrypted; copy everything else."""
    with open_parquet(file.source) as parquet:
        stored = arrow_schema(parquet.footer, parquet.path)
        data_keys: dict[bytes, DataKey] = {}
        for item in decryptors.values():
            data_keys |= item.data_keys
        metadata = original_entries(parquet.schema, parquet.entries)
        parts = opened(metadata, file.column_headers, data_keys, parquet.path)
        originals = types_in(parts, parquet.path)
        columns, fields = {}, {}
        for name, item in decryptors.items():
            shown = parquet.schema.field(name)
            columns[name], fields[name] = decrypted_column(
                originals.get(name), shown.with_type(item.type), shown, stored
            )
        headers = {name: header for name, header in file.headers.items() if name not in decryptors}
        pandas = {name: item.pandas_entry for name, item in decryptors.items()}
        schema, entries = decrypted_schema(
            parquet.schema, parquet.footer.metadata, fields, headers, pandas, parts, parquet.path
        )
        for name, dtype in dtype_names(entries).items():
            if dtype == "category" and name in columns:
                columns[name] = _without_dictionary(columns[name])
        rewrite(
            parquet.file,
            parquet.path,
            parquet.footer,
            sink,
            columns,
            functools.partial(decrypted_group, parquet, decryptors),
            schema,
            entries,
            add_rows,
        )


def _without_dictionary(column: Replacement) -> Replacement:
    """Write a column that is categorical only in pandas' metadata as plain values, as its type in Arrow is.

    fastparquet reads the codes of all row groups with the dictionary of the first one. Without a dictionary
    it refuses the column, unless it is told to read no categories, instead of showing other values.
    """
    if pa.types.is_dictionary(column.field.type):
        return column
    return replace(column, settings={**column.settings, "use_dictionary": False})
