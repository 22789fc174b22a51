"""Wrap the data keys of a frame, an Arrow table or a path with other master keys."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, cast, overload

import pandas as pd
import pyarrow as pa

from kmsdata.display.file_reports import RewrapReport
from kmsdata.errors import CallerTypeError, CallerValueError
from kmsdata.frames.dtype import EncryptedType
from kmsdata.frames.encrypted_columns import encrypted_columns, with_headers
from kmsdata.keys.envelope import DataKeyRecord, Header
from kmsdata.keys.rewrap import Change, not_meant
from kmsdata.parquet.header_copies import Copy, schema_with
from kmsdata.parquet.locations import Paths, is_file_object, is_path
from kmsdata.parquet.rewrap import rewrap_path

__all__ = ["rewrap", "rewrap_frame", "rewrap_table"]


_D = TypeVar("_D", pd.DataFrame, pa.Table)


@overload
def rewrap(
    x: Paths,
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
    """Wrap the data keys with another master key; the cells are not changed.

    Each data key is unwrapped, checked against its commitment and the headers' MACs, and wrapped again: one
    KMS call to unwrap and one to wrap it, for all files under it. This does not revoke access: a user who has
    an older copy of the file can open it until the old master key is disabled or deleted; a user who has the
    data key can always open it.

    A file is replaced by a copy with another footer. On a filesystem with reflinks this takes almost no time;
    otherwise it is a full copy, which needs as much disk space as the file.

    An interrupted run leaves every file readable with the old or the new key. Run it again to finish; files
    that need no change are skipped.

    Args:
        x: path of a Parquet file or of a dataset's folder; a pattern such as ``data/*.parquet``, or a list of
            these, always with the ``_metadata`` files in their folders; or a frame or Arrow table.
        key: URI of the new master key.
        source: URIs of the master keys to replace, which must open the data (``"tencent-kms://region/*"``
            means all keys of a region). Default: the session's key; without one, the only master key of a
            data key. Wrapped keys under other master keys are kept.
        add: add the new master key and keep the others.
        retire: instead of ``key``: URIs of master keys whose wrapped keys to remove. Another master key,
            which is kept, must open the data.
        dry_run: for a path: report what would happen to the files, but change and unwrap nothing.
        filesystem: for a path: pyarrow or fsspec filesystem; otherwise inferred from the path.
        progress: show a progress bar; None: in a terminal or notebook, after one second.

    Returns:
        For a path: a report. For a frame or table: a new one with the same cells.

    Raises:
        FormatError: the file is not a Parquet file, has no encrypted columns, has a signed or encrypted
            footer, has a header that was changed, or has copies of a header that disagree.
        KeyServiceError: a KMS call failed.
        WrongKeyError: the data is not under the master key to replace, or the key does not match the
            commitment.
        ValueError: arguments contradict each other, the last wrapped key would be removed, or there are
            several master keys and ``source`` names none.
        KmsDataError: some files of a dataset failed; all others are done. Its ``report`` says which.
        OSError: the file cannot be written; it is unchanged.

    Example:
        >>> import pandas as pd, kmsdata
        >>> enc = pd.DataFrame({"age": [36, 41]}).kms.encrypt("age", key="local://demo")
        >>> enc.kms.to_parquet("ages.parquet")
        >>> kmsdata.LocalKeystore().create_key("next", quiet=True)
        'local://next'
        >>> kmsdata.rewrap("ages.parquet", "local://next").keys
        {'local://next': 1}
        >>> kmsdata.read_parquet("ages.parquet", decrypt=True, key="local://next")["age"].tolist()
        [36, 41]
    """
    change = Change(key, source=source, add=add, retire=retire, dry_run=dry_run)
    if dry_run and not is_path(x):
        raise CallerValueError("dry_run=True is for paths: frames and tables are never changed in place")
    if isinstance(x, pd.DataFrame):
        return rewrap_frame(x, change)
    if isinstance(x, pa.Table):
        return rewrap_table(x, change)
    if is_path(x):
        return rewrap_path(cast("Paths", x), change, filesystem, progress)
    if is_file_object(x):
        raise CallerTypeError("rewrap() replaces files: write the file object to a file and pass its path")
    raise CallerTypeError("rewrap() takes a path, a frame, or an Arrow table")


def rewrap_frame(frame: pd.DataFrame, change: Change) -> pd.DataFrame:
    """Rewrap a frame. See `kmsdata.api.accessor.FrameAccessor.rewrap`."""
    headers = [(str(item.name), header) for item in encrypted_columns(frame) for header in item.headers]
    records = _records(headers, change)
    return with_headers(frame, lambda header: header.under(records))


def rewrap_table(table: pa.Table, change: Change) -> pa.Table:
    """Rewrap an Arrow table: exchange the wrapped keys wherever its schema holds them."""
    copies: list[Copy] = []

    def look(copy: Copy) -> Header:
        copies.append(copy)
        return copy.header

    schema_with(table.schema, look)
    top = [field for field in table.schema if isinstance(field.type, EncryptedType)]
    if any(copy.nested for copy in copies):
        raise CallerTypeError(
            "the table has cells inside of lists, structs or maps: rewrap changes those in files only. "
            "Write the table to a Parquet file and rewrap that"
        )
    records = _records([(copy.column or copy.place, copy.header) for copy in copies], change)
    schema = schema_with(table.schema, lambda copy: copy.header.under(records))
    # The header is part of an Arrow extension type, so each column gets a new type; the cells are shared.
    for field in top:
        position = table.schema.get_field_index(field.name)
        new = schema.field(position)
        chunks = [pa.ExtensionArray.from_storage(new.type, c.storage) for c in table.column(position).chunks]
        table = table.set_column(position, new, pa.chunked_array(chunks, type=new.type))
    return table.replace_schema_metadata(schema.metadata)


def _records(headers: Sequence[tuple[str, Header]], change: Change) -> dict[bytes, DataKeyRecord]:
    """Return the records that change, of data in memory."""
    if not headers:
        raise CallerValueError("no column is encrypted: there is no wrapped key to exchange")
    changed = change(headers)
    if changed.other and not changed.records and not changed.already:
        raise not_meant(headers)
    for sentence in changed.left:
        warnings.warn(sentence, stacklevel=4)  # the caller of rewrap() or df.kms.rewrap()
    return changed.records
