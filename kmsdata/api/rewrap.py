"""Other master keys for a frame, an Arrow table or a path; no cell is touched."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, overload

import pandas as pd
import pyarrow as pa

from kmsdata.display.file_reports import RewrapReport
from kmsdata.frames.dtype import EncryptedType
from kmsdata.frames.encrypted_columns import encrypted_columns, with_headers
from kmsdata.keys.envelope import DataKeyRecord, Header
from kmsdata.keys.rewrap import Change, not_meant
from kmsdata.parquet.header_copies import Copy, schema_with
from kmsdata.parquet.locations import FilePath
from kmsdata.parquet.rewrap import rewrap_path

__all__ = ["rewrap", "rewrap_frame", "rewrap_table"]


_D = TypeVar("_D", pd.DataFrame, pa.Table)


@overload
def rewrap(
    x: FilePath,
    key: str | None = None,
    *,
    source: str | Iterable[str] | None = None,
    add: bool = False,
    retire: str | Iterable[str] | None = None,
    dry_run: bool = False,
    filesystem: Any = None,
    progress: bool | None = None,
) -> RewrapReport: ...


@overload
def rewrap(
    x: _D,
    key: str | None = None,
    *,
    source: str | Iterable[str] | None = None,
    add: bool = False,
    retire: str | Iterable[str] | None = None,
) -> _D: ...


def rewrap(
    x: Any,
    key: str | None = None,
    *,
    source: str | Iterable[str] | None = None,
    add: bool = False,
    retire: str | Iterable[str] | None = None,
    dry_run: bool = False,
    filesystem: Any = None,
    progress: bool | None = None,
) -> Any:
    """Put data under another master key: the wrapped data keys are exchanged, and no cell is touched.

    Each data key is unwrapped, checked against its commitment and the headers' MACs, and wrapped anew: one
    call of each key service for all files under it. It takes no right away: whoever has an older copy of the
    file, or the data key, opens the data for as long as the old master key lives, or for good.

    A file is replaced by a copy of itself under another footer: at once where the filesystem has reflinks,
    otherwise a full copy, which needs as much space on the disk as the file takes.

    A run that was stopped, or killed, leaves every file readable with the old or the new key; run it again
    for the rest. Files that are as they were asked to be are skipped.

    Args:
        x: path of a Parquet file or of a dataset's folder, with its ``_metadata``; or a frame or Arrow table.
        key: URI of the new master key.
        source: URIs of the master keys to be replaced, which must open the data (``"tencent-kms://region/*"``
            stands for all such); default: the session's key; without one, the only key that a data key is
            under. Wraps under other keys stay.
        add: add the new key beside the others, and replace none.
        retire: in place of ``key``: URIs of master keys whose wraps to remove. Another that stays must
            open the data.
        dry_run: for a path: change nothing, and open nothing, but report what would become of the files.
        filesystem: for a path: pyarrow or fsspec filesystem; else by the path.
        progress: show a bar; None: where it takes longer than a second and somebody may be looking.

    Returns:
        For a path a report; for a frame or table a new one with the same cells.

    Raises:
        FormatError: no Parquet file, one without encrypted columns, with a signed or encrypted footer, or
            with a header that was changed, or of which copies disagree.
        KeyServiceError: a key service refused.
        WrongKeyError: under other keys than the one to be replaced, or not the key that was committed to.
        ValueError: arguments that do not go together, a last wrap that would go, or several keys of which
            none was named.
        KmsDataError: of a dataset, some files failed, after all others were done; its ``report`` says which.
        OSError: it cannot be written; it is then as it was.

    Example:
        >>> import pandas as pd, kmsdata
        >>> enc = pd.DataFrame({"age": [36, 41]}).kms.encrypt("age", key="local://demo")
        >>> enc.kms.to_parquet("ages.parquet")
        >>> kmsdata.rewrap("ages.parquet", "local://next").keys
        {'local://next': 1}
        >>> kmsdata.read_parquet("ages.parquet", decrypt=True, key="local://next")["age"].tolist()
        [36, 41]
    """
    change = Change(key, source=source, add=add, retire=retire, dry_run=dry_run)
    if dry_run and not isinstance(x, (str, os.PathLike)):
        raise ValueError("dry_run=True is for paths: in memory nothing is changed in place")
    if isinstance(x, pd.DataFrame):
        return rewrap_frame(x, change)
    if isinstance(x, pa.Table):
        return rewrap_table(x, change)
    if isinstance(x, (str, os.PathLike)):
        return rewrap_path(x, change, filesystem, progress)
    raise TypeError("rewrap() takes a path, a frame, or an Arrow table")


def rewrap_frame(frame: pd.DataFrame, change: Change) -> pd.DataFrame:
    """See `kmsdata.api.accessor.FrameAccessor.rewrap`."""
    headers = [(str(item.name), header) for item in encrypted_columns(frame) for header in item.headers]
    records = _records(headers, change)
    return with_headers(frame, lambda header: header.under(records))


def rewrap_table(table: pa.Table, change: Change) -> pa.Table:
    """An Arrow table with other wraps on its data keys, wherever its schema holds them."""
    copies: list[Copy] = []

    def look(copy: Copy) -> Header:
        copies.append(copy)
        return copy.header

    schema_with(table.schema, look)
    top = [field for field in table.schema if isinstance(field.type, EncryptedType)]
    if any(copy.nested for copy in copies):
        raise TypeError(
            "cells inside of lists, structs or maps: write the table to a Parquet file, and rewrap that"
        )
    records = _records([(copy.column or copy.place, copy.header) for copy in copies], change)
    schema = schema_with(table.schema, lambda copy: copy.header.under(records))
    for field in top:
        position = table.schema.get_field_index(field.name)
        new = schema.field(position)
        chunks = [pa.ExtensionArray.from_storage(new.type, c.storage) for c in table.column(position).chunks]
        table = table.set_column(position, new, pa.chunked_array(chunks, type=new.type))
    return table.replace_schema_metadata(schema.metadata)


def _records(headers: Sequence[tuple[str, Header]], change: Change) -> dict[bytes, DataKeyRecord]:
    """The records that are changed, of data in memory."""
    if not headers:
        raise ValueError("nothing in it is encrypted, so there is no wrapped key")
    changed = change(headers)
    if changed.other and not changed.records and not changed.already:
        raise not_meant(headers)
    for sentence in changed.left:
        warnings.warn(sentence, stacklevel=4)
    return changed.records
