"""Authenticating every encrypted cell of frames, tables and files, without returning plaintext."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from kmsdata.display.progress import Progress
from kmsdata.display.tables import ColumnCheck, Failure, Verification
from kmsdata.errors import FormatError, KeyServiceError, KmsDataError
from kmsdata.frames.arrow_storage import plain_binary
from kmsdata.frames.column import authenticate, bad_cells
from kmsdata.frames.dtype import EncryptedArray, EncryptedType
from kmsdata.frames.table import (
    Columns,
    Encrypted,
    check_context,
    check_names,
    encrypted_columns,
    required_names,
    the_data_key,
)
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import ENTRY, DataKeyRecord, Header, parse_file
from kmsdata.keys.session import Key, unwrap
from kmsdata.parquet.journal import what_mends
from kmsdata.parquet.read import FilePath, files_of, headers_in

__all__ = ["verify"]

_BATCH = 1 << 18  # cells that are looked at together
_ROWS_NAMED = 100
_NO_HEADER = "it must be encrypted, but has no kmsdata header"
_NOT_THERE = "it must be encrypted, but there is no such column in the file"


def verify(
    x: Encrypted | FilePath,
    *,
    encrypted: Columns | None = None,
    key: Key | Encrypted | None = None,
    context: Mapping[str, str] | None = None,
    filesystem: Any = None,
    progress: bool | None = None,
) -> Verification:
    """Authenticate every cell of every encrypted column. No plaintext is returned, nor kept.

    What is wrong does not raise: it is reported, so that one damaged file of a thousand says which it is.
    Files are read a batch of one column at a time. Of a file, also the copies of its headers are compared:
    the types of its columns, and its key-value metadata.

    Args:
        x: a frame, series, Arrow table, or path of a Parquet file or dataset.
        encrypted: name or names that must be encrypted, in every file. Without it, a column whose header was
            stripped is taken for a plain one.
        key: only these may open it: a URI, several, or a `DataKey`; None: as for decryption.
        context: pairs that the authenticated context must hold.
        filesystem: for a path: pyarrow or fsspec filesystem; else by the path.
        progress: show a bar; None: where it takes longer than a second and somebody may be looking.

    Returns:
        An object that shows itself as text or HTML; ``.ok`` and ``.exit_status`` are for pipelines,
        ``.failures`` names files, columns, row groups and rows. A column whose key is refused is not
        verified, and so the whole is not ok; nor is data in which nothing is encrypted.

    Raises:
        FileNotFoundError: there is no such file.

    Example:
        >>> import pandas as pd, kmsdata
        >>> enc = pd.DataFrame({"age": [36, 41, None]}).kms.encrypt("age", key="local://demo")
        >>> found = kmsdata.verify(enc, encrypted="age")
        >>> found.ok, found.columns[0].cells, found.columns[0].nulls
        (True, 2, 1)
    """
    if isinstance(key, (pd.DataFrame, pd.Series, pa.Table)):
        key = the_data_key(key)
    work = _Work(_Keys(key, context), required_names(encrypted))
    if isinstance(x, (str, os.PathLike)):
        return _path(x, filesystem, work, progress)
    if isinstance(x, pa.Table):
        parts = {
            name: [(None, EncryptedArray(x.column(name), field.type.dtype))]
            for name, field in zip(x.column_names, x.schema, strict=True)
            if isinstance(field.type, EncryptedType)
        }
        return _memory("table", x.num_rows, parts, x.column_names, work, progress)
    if isinstance(x, (pd.DataFrame, pd.Series)):
        frame = x.to_frame() if isinstance(x, pd.Series) else x
        places = {str(item.name): list(item.parts) for item in encrypted_columns(frame)}
        labels = [*map(str, frame.columns), *map(str, frame.index.names)]
        what = "series" if isinstance(x, pd.Series) else "frame"
        return _memory(what, len(frame), places, labels, work, progress)
    raise TypeError("verify() takes a frame, a series, an Arrow table, or a path")


class _Keys:
    """Data keys, each asked for once, whether its service gives it or refuses."""

    def __init__(self, key: Any, context: Mapping[str, str] | None) -> None:
        self._key, self._context = key, context
        self._known: dict[DataKeyRecord, DataKey | KmsDataError] = {}

    def of(self, header: Header, column: str) -> dict[bytes, DataKey]:
        """The data keys of a header, which is authenticated.

        Raises:
            KeyServiceError, WrongKeyError: they cannot be had.
            FormatError: the header was changed, or its context is not the one that is asked for.
        """
        keys: dict[bytes, DataKey] = {}
        for record in header.records:
            if record not in self._known:
                try:
                    self._known[record] = unwrap(record, self._key)
                except KmsDataError as error:
                    self._known[record] = error
            found = self._known[record]
            if isinstance(found, KmsDataError):
                raise found
            keys[record.commitment] = found
        authenticate(header, keys, column)
        for record in header.records:
            check_context(record, keys[record.commitment], self._context, column)
        return keys


@dataclass
class _Counts:
    algorithm: str | None = None
    cells: int = 0
    nulls: int = 0
    bad: int = 0
    failed: bool = False
    denied: bool = False


@dataclass
class _Work:
    """What was found so far."""

    keys: _Keys
    wanted: list[str]
    columns: dict[str, _Counts] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def column(self, name: str, header: Header | None = None) -> _Counts:
        counts = self.columns.setdefault(name, _Counts())
        if header is not None:
            counts.algorithm = counts.algorithm or header.columns[0].algorithm
        return counts

    def fail(
        self,
        what: str,
        column: str | None = None,
        *,
        file: str | None = None,
        denied: bool = False,
        **at: Any,
    ) -> None:
        # What errors say of the place stands beside them already.
        what = what.removeprefix(f"{file}: ").removeprefix(f"column {column!r}: ")
        self.failures.append(Failure(what, file, column, **at))
        if column is not None:
            counts = self.column(column)
            counts.failed, counts.denied = counts.failed or not denied, counts.denied or denied

    def open(self, header: Header, column: str, file: str | None) -> dict[bytes, DataKey] | None:
        """The keys of a column's cells; None, and a failure, where there are none or the header is bad."""
        self.column(column, header)
        try:
            return self.keys.of(header, column)
        except KmsDataError as error:
            denied = isinstance(error, KeyServiceError) or getattr(error, "allowed", True) is False
            self.fail(f"not verified: {error}" if denied else str(error), column, file=file, denied=denied)
        return None

    def look(
        self,
        header: Header,
        keys: Mapping[bytes, DataKey],
        storage: pa.Array,
        column: str,
        rows: Any,
        **where: Any,
    ) -> None:
        """Authenticate cells that stand in these rows."""
        counts = self.column(column, header)
        tampered, strange = bad_cells(header, keys, storage)
        counts.nulls += storage.null_count
        counts.bad += len(tampered) + len(strange)
        counts.cells += len(storage) - storage.null_count - len(tampered) - len(strange)
        for bad, what in (
            (tampered, "authentication fails: changed, cut short, or moved here from elsewhere"),
            (strange, "of a key that the header does not name: moved here from elsewhere, or changed"),
        ):
            if len(bad):
                named = tuple(np.asarray(rows)[bad[:_ROWS_NAMED]].tolist())
                self.fail(what, column, rows=named, count=len(bad), **where)

    def result(self, what: str, rows: int, files: int = 0) -> Verification:
        if not self.columns and not self.failures:
            self.fail("nothing is encrypted: there is no kmsdata header")
        checks = [
            ColumnCheck(
                name,
                "failed" if c.failed else "not verified" if c.denied else "authentic",
                c.algorithm,
                c.cells,
                c.nulls,
                c.bad,
            )
            for name, c in self.columns.items()
        ]
        return Verification(what, rows, tuple(checks), tuple(_merged(self.failures)), files)


def _merged(failures: Iterable[Failure]) -> Iterator[Failure]:
    """Failures of one kind in one place as one, which batches have cut."""
    by_place: dict[tuple[Any, ...], Failure] = {}
    for one in failures:
        place = (one.what, one.file, one.column, one.row_group)
        if (seen := by_place.get(place)) is not None:
            rows = (*seen.rows, *one.rows)[:_ROWS_NAMED]
            one = replace(one, rows=rows, count=seen.count + one.count)
        by_place[place] = one
    yield from by_place.values()


# --- in memory ------------------------------------------------------------------------------------


def _memory(
    what: str,
    rows: int,
    columns: Mapping[str, Iterable[tuple[Any, EncryptedArray]]],
    labels: Iterable[str],
    work: _Work,
    progress: bool | None,
) -> Verification:
    headers: dict[str, Header] = {}
    for name in work.wanted:
        if name not in columns:
            work.fail(
                _NO_HEADER if name in labels else "it must be encrypted, but there is no such column", name
            )
    with Progress("verify", rows * len(columns), "cells", progress) as bar:
        for name, parts in columns.items():
            for positions, array in parts:
                try:
                    header = headers[name] = array.dtype.header
                except FormatError as error:
                    work.fail(str(error), name)
                    continue
                if (keys := work.open(header, name, None)) is None:
                    continue
                at = np.arange(len(array)) if positions is None else np.asarray(positions)
                for start in range(0, len(array), _BATCH):
                    storage = array.storage.slice(start, _BATCH)
                    work.look(header, keys, storage, name, at[start : start + _BATCH])
            bar.step(rows)
    try:
        check_names(headers)
    except FormatError as error:
        work.fail(str(error), error.column)
    return work.result(what, rows)


# --- files ----------------------------------------------------------------------------------------


def _path(path: FilePath, filesystem: Any, work: _Work, progress: bool | None) -> Verification:
    files = files_of(path, filesystem)
    sizes = [fragment.filesystem.get_file_info(fragment.path).size or 0 for _, fragment in files]
    rows = 0
    with Progress("verify", sum(sizes), "bytes", progress) as bar:
        for (name, fragment), size in zip(files, sizes, strict=True):
            before = bar.done
            rows += _file(name, fragment, work, bar)
            bar.step(before + size - bar.done)
    return work.result(str(path), rows, len(files))


def _file(name: str, fragment: Any, work: _Work, bar: Progress) -> int:
    """Look at one file; how many rows it has."""
    try:
        schema, metadata = fragment.physical_schema, fragment.metadata
        _ = schema.names  # read here: they may be no UTF-8
    except (pa.ArrowException, OSError, ValueError):
        work.fail(f"no Parquet file, or its footer was damaged or cut off{what_mends(name)}", file=name)
        return 0
    before = len(work.failures)
    headers = _headers(name, schema, work, metadata.metadata)
    malformed = {failure.column for failure in work.failures[before:]}
    for column in work.wanted:
        if column not in headers and column not in malformed:
            work.fail(_NO_HEADER if column in schema.names else _NOT_THERE, column, file=name)
    if not headers and len(work.failures) == before:
        work.fail("nothing in it is encrypted: it has no kmsdata header", file=name)
    _compare(name, schema, metadata, headers, work)
    try:
        check_names(headers, path=name)
    except FormatError as error:
        work.fail(str(error), error.column, file=name)
    opened = {column: work.open(header, column, name) for column, header in headers.items()}
    start = 0
    for number, group in enumerate(fragment.split_by_row_group()):
        size = metadata.row_group(number).num_rows
        for column, keys in opened.items():
            if keys is not None:
                where = {"file": name, "row_group": number}
                _group(group, headers[column], keys, column, work, range(start, start + size), where)
        start += size
        bar.step(metadata.row_group(number).total_byte_size)
    return start


def _group(
    group: Any,
    header: Header,
    keys: Mapping[bytes, DataKey],
    column: str,
    work: _Work,
    rows: range,
    where: Mapping[str, Any],
) -> None:
    """Look at one column of a row group, a batch at a time."""
    done = 0
    try:
        for batch in group.to_batches(columns=[column], batch_size=_BATCH, batch_readahead=1):
            cells = plain_binary(batch.column(0))
            work.look(header, keys, cells, column, rows[done : done + len(cells)], **where)
            done += len(cells)
    except (pa.ArrowException, OSError, ValueError):
        work.fail(f"{len(rows) - done:,} rows cannot be read: their pages are damaged", column, **where)
    else:
        if done != len(rows):
            work.fail(f"{len(rows):,} rows are promised, and {done:,} are there", column, **where)


def _headers(
    name: str, schema: pa.Schema, work: _Work, entries: Mapping[bytes, bytes] | None
) -> dict[str, Header]:
    """The headers that a reader would obey; a malformed one is a failure of its column alone."""
    headers: dict[str, Header] = {}
    for column in dict.fromkeys(schema.names):
        try:
            headers |= headers_in(schema, name, {column}, footer=entries)
        except FormatError as error:
            work.fail(str(error), column, file=name)
    return headers


def _compare(name: str, schema: pa.Schema, metadata: Any, headers: Mapping[str, Header], work: _Work) -> None:
    """Compare what the columns' types say with what the file's key-value metadata says, for other readers."""
    raw = (metadata.metadata or {}).get(ENTRY)
    inner = (schema.metadata or {}).get(ENTRY)
    if raw is None and inner is None:
        return  # other writers of the type leave it out
    if None not in (raw, inner) and raw != inner:
        work.fail(
            "the copies of its entry kmsdata differ: in the key-value metadata, and in ARROW:schema",
            file=name,
        )
    entry: dict[str, Header] = {}
    for text in {raw, inner}:
        if text is None:
            continue
        try:
            entry |= parse_file(text.decode("utf-8", "surrogateescape"))
        except FormatError as error:
            work.fail(f"its entry kmsdata: {error}", file=name)
    typed = {
        field.name: headers[field.name]
        for field in schema
        if isinstance(field.type, EncryptedType) and field.name in headers
    }
    for column in entry.keys() & set(schema.names) - headers.keys():
        stored = schema.field(column).type
        if not isinstance(stored, EncryptedType):
            work.fail(
                f"the file's entry says that it is encrypted, but it is stored as {stored}", column, file=name
            )
    if not entry:
        return
    said, meant = _wraps(entry.values()), _wraps(typed.values())
    for column, header in typed.items():
        if column not in entry:
            work.fail("the file's entry kmsdata lacks it", column, file=name)
        elif entry[column].columns != header.columns:
            work.fail("its type and the file's entry say different things of it", column, file=name)
        elif any(said[item.data_key] != meant[item.data_key] for item in header.columns):
            work.fail("its type and the file's entry hold different wrapped keys", column, file=name)


def _wraps(headers: Iterable[Header]) -> dict[bytes, set[Any]]:
    """The wraps of each data key, with its context."""
    found: dict[bytes, set[Any]] = {}
    for header in headers:
        for record in header.records:
            found.setdefault(record.commitment, set()).update((record.context, wrap) for wrap in record.wraps)
    return found
