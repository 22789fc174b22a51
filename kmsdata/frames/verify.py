"""Authenticate every cell of encrypted columns, and report the findings; releases no plaintext."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from kmsdata.display.progress import Progress
from kmsdata.display.verification import ColumnCheck, Failure, Verification
from kmsdata.errors import FormatError, KeyServiceError, KmsDataError, did_you_mean
from kmsdata.frames.arrow.sources import empty_table
from kmsdata.frames.column import ROWS_NAMED, bad_cells
from kmsdata.frames.dtype import EncryptedArray, EncryptedDtype, EncryptedType
from kmsdata.frames.encrypted_columns import HeaderSearch, check_names, lost_header, with_arrow_types
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import Header
from kmsdata.keys.unwrap import DataKeys

BATCH = 1 << 18  # cells that are authenticated together
NO_HEADER = "it must be encrypted, but has no kmsdata header"
NOT_ENCRYPTED, MISSING = "not encrypted", "missing"  # states of a column that must be encrypted


@dataclass
class _Counts:
    algorithm: str | None = None
    cells: int = 0
    nulls: int = 0
    bad: int = 0
    failed: bool = False
    denied: bool = False
    absent: str = ""

    @property
    def state(self) -> str:
        """The most serious finding."""
        if self.failed:
            return "failed"
        return self.absent or ("not verified" if self.denied else "authentic")


@dataclass
class Findings:
    """The findings so far."""

    keys: DataKeys
    wanted: list[str]
    columns: dict[str, _Counts] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def column(self, name: str, header: Header | None = None) -> _Counts:
        """Return the counts of a column, which start at zero if the column is new."""
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
        absent: str = "",
        **at: Any,
    ) -> None:
        """Record a failed check; ``absent`` is the state of a column that must be encrypted and is not."""
        # The report already shows file and column: remove the prefixes that `located` put before the message.
        what = what.removeprefix(f"{file}: ").removeprefix(f"column {column!r}: ")
        self.failures.append(Failure(what, file, column, **at))
        if column is not None:
            counts = self.column(column)
            counts.absent = counts.absent or absent
            counts.failed = counts.failed or not (denied or absent)
            counts.denied = counts.denied or denied

    def open(self, header: Header, column: str, file: str | None) -> Mapping[bytes, DataKey] | None:
        """Unwrap the keys of a column and authenticate its header; on failure record it and return None."""
        self.column(column, header)
        try:
            return self.keys.authenticated(header, column)
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
        """Authenticate the cells of these rows."""
        counts = self.column(column, header)
        tampered, strange = bad_cells(header, keys, storage)
        counts.nulls += storage.null_count
        counts.bad += len(tampered) + len(strange)
        counts.cells += len(storage) - storage.null_count - len(tampered) - len(strange)
        for bad, what in (
            (tampered, "authentication fails: changed, truncated, or moved here from elsewhere"),
            (strange, "the key id is not in the header: moved here from elsewhere, or changed"),
        ):
            if len(bad):
                named = tuple(np.asarray(rows)[bad[:ROWS_NAMED]].tolist())
                self.fail(what, column, rows=named, count=len(bad), **where)

    def result(self, what: str, rows: int, files: int = 0, notes: tuple[str, ...] = ()) -> Verification:
        """Return the report of all findings."""
        if not self.columns and not self.failures:
            self.fail("nothing is encrypted: there is no kmsdata header")
        checks = [
            ColumnCheck(
                name,
                c.state,
                c.algorithm,
                c.cells,
                c.nulls,
                c.bad,
            )
            for name, c in self.columns.items()
        ]
        return Verification(what, rows, tuple(checks), tuple(_merged(self.failures)), files, notes)


def _merged(failures: Iterable[Failure]) -> Iterator[Failure]:
    """Merge equal failures of one place, which were recorded separately for each batch."""
    by_place: dict[tuple[Any, ...], Failure] = {}
    for one in failures:
        place = (one.what, one.file, one.column, one.row_group)
        if (seen := by_place.get(place)) is not None:
            rows = (*seen.rows, *one.rows)[:ROWS_NAMED]
            one = replace(one, rows=rows, count=seen.count + one.count)
        by_place[place] = one
    yield from by_place.values()


# --- in memory ------------------------------------------------------------------------------------


def verify_cells(
    what: str,
    rows: int,
    columns: Mapping[str, Iterable[tuple[Any, EncryptedArray]]],
    labels: Iterable[str],
    findings: Findings,
    progress: bool | None,
) -> Verification:
    """Authenticate the cells of columns in memory.

    Args:
        what: the kind of data, such as ``"frame"``.
        rows: its number of rows.
        columns: the parts of each column: the rows (None for all), and the cells.
        labels: of all columns, encrypted or not.
        findings: where to record the findings.
        progress: show a bar; see `kmsdata.verify`.
    """
    headers: dict[str, Header] = {}
    _find_missing(findings, columns, labels)
    with Progress("verify", rows * len(columns), "cells", progress) as bar:
        for name, parts in columns.items():
            for positions, array in parts:
                try:
                    header = headers[name] = array.dtype.header
                except FormatError as error:
                    findings.fail(str(error), name)
                    continue
                if (keys := findings.open(header, name, None)) is None:
                    continue
                at = np.arange(len(array)) if positions is None else np.asarray(positions)
                for start in range(0, len(array), BATCH):
                    storage = array.storage.slice(start, BATCH)
                    findings.look(header, keys, storage, name, at[start : start + BATCH])
            bar.step(rows)
    try:
        check_names(headers)
    except FormatError as error:
        findings.fail(str(error), error.column)
    return findings.result(what, rows)


def verify_tables(
    what: str,
    schema: pa.Schema,
    tables: Iterable[pa.Table],
    findings: Findings,
    progress: bool | None,
    total: int | None,
) -> Verification:
    """Authenticate the cells of an Arrow table, or of a stream batch by batch.

    Args:
        what: the kind of data, such as ``"table"``.
        schema: the schema of the tables.
        tables: the table, or that of each batch.
        findings: where to record the findings.
        progress: show a bar; see `kmsdata.verify`.
        total: the number of rows, if it is known; otherwise no bar is shown.
    """
    headers: dict[str, Header] = {}
    opened: list[tuple[int, str, EncryptedDtype, Mapping[bytes, DataKey]]] = []
    rows = 0
    search = None if findings.wanted else HeaderSearch()
    lost: dict[str, None] = {}
    try:
        fields = list(enumerate(with_arrow_types(empty_table(schema)).schema))
    except FormatError as error:
        findings.fail(str(error), error.column)
        return findings.result(what, total or 0)
    found = {item.name: item.type.dtype for _, item in fields if isinstance(item.type, EncryptedType)}
    _find_missing(findings, found, [item.name for _, item in fields])
    for position, item in fields:
        if not isinstance(item.type, EncryptedType):
            if item.name in findings.wanted and item.name in found:
                findings.fail(f"{NO_HEADER} in one of the columns of this name", item.name)
            continue
        try:
            header = headers[item.name] = item.type.dtype.header
        except FormatError as error:
            findings.fail(str(error), item.name)
            continue
        if (keys := findings.open(header, item.name, None)) is not None:
            opened.append((position, item.name, item.type.dtype, keys))
    try:
        shown = progress if total is not None else False
        with Progress("verify", (total or 0) * len(opened), "cells", shown) as bar:
            for table in tables:
                table = with_arrow_types(table)
                if search is not None:
                    lost |= dict.fromkeys(search.add(table))
                for position, name, dtype, keys in opened:
                    cells = EncryptedArray(table.column(position), dtype).storage
                    for start in range(0, len(cells), BATCH):
                        part = cells.slice(start, BATCH)
                        at = np.arange(rows + start, rows + start + len(part))
                        findings.look(dtype.header, keys, part, name, at)
                    bar.step(len(table))
                rows += len(table)
    except FormatError as error:
        after = f" (after {rows:,} rows)" if rows else ""
        findings.fail(f"{error}{after}", error.column)
    except (pa.ArrowException, OSError) as error:  # its message may contain values
        findings.fail(f"the source of the stream failed after {rows:,} rows ({type(error).__name__})")
    if search is not None:
        search.warn_of_single_values()
    for name in lost:
        findings.fail(str(lost_header(name)), name)
    try:
        check_names(headers)
    except FormatError as error:
        findings.fail(str(error), error.column)
    return findings.result(what, rows if total is None else total)


def _find_missing(findings: Findings, columns: Iterable[str], labels: Iterable[str]) -> None:
    """Record the columns that must be encrypted and are not."""
    known = list(columns)
    for name in findings.wanted:
        if name not in known and name in labels:
            findings.fail(NO_HEADER, name, absent=NOT_ENCRYPTED)
        elif name not in known:
            question = did_you_mean(name, known)
            findings.fail(
                f"it must be encrypted, but there is no such column{question}", name, absent=MISSING
            )
