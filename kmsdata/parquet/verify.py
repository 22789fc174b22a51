"""Verify Parquet files: every cell, and the copies of the headers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kmsdata.display.progress import Progress
from kmsdata.display.verification import Verification
from kmsdata.errors import FormatError
from kmsdata.frames.arrow_storage import is_bytes_or_text, looks_like_cells, plain_binary, validated
from kmsdata.frames.cell import MARK
from kmsdata.frames.dtype import EncryptedType
from kmsdata.frames.encrypted_columns import check_names, lost_header, warn_of_single_value
from kmsdata.frames.verify import BATCH, NO_HEADER, Findings
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import ENTRY, Header, parse_file
from kmsdata.parquet.headers import files_of, headers_in
from kmsdata.parquet.read import FilePath

_ROWS = 1 << 12  # rows that are decoded at once to look for cells
_NOT_THERE = "it must be encrypted, but the file has no such column"


# --- files ----------------------------------------------------------------------------------------


def verify_path(path: FilePath, filesystem: Any, findings: Findings, progress: bool | None) -> Verification:
    """Authenticate every cell of a Parquet file or dataset; see `kmsdata.verify`."""
    files = files_of(path, filesystem)
    sizes = [fragment.filesystem.get_file_info(fragment.path).size or 0 for _, fragment in files]
    rows = 0
    with Progress("verify", sum(sizes), "bytes", progress) as bar:
        for (name, fragment), size in zip(files, sizes, strict=True):
            before = bar.done
            rows += _file(name, fragment, findings, bar)
            bar.step(before + size - bar.done)
    return findings.result(str(path), rows, len(files))


def _file(name: str, fragment: Any, findings: Findings, bar: Progress) -> int:
    """Verify one file; return its number of rows."""
    try:
        schema, metadata = fragment.physical_schema, fragment.metadata
        _ = schema.names  # decoded only here: names that are not UTF-8 raise
    except (pa.ArrowException, OSError, ValueError):
        findings.fail("not a Parquet file, or its footer is damaged or cut short", file=name)
        return 0
    before = len(findings.failures)
    headers = _headers(name, schema, findings, metadata.metadata)
    malformed = {failure.column for failure in findings.failures[before:]}
    for column in findings.wanted:
        if column not in headers and column not in malformed:
            findings.fail(NO_HEADER if column in schema.names else _NOT_THERE, column, file=name)
    if not headers and len(findings.failures) == before:
        findings.fail("nothing in it is encrypted: the file has no kmsdata header", file=name)
    _compare(name, schema, metadata, headers, findings)
    if not findings.wanted:
        try:
            with fragment.open() as source:
                lost = file_without_header(source, schema, headers, name)
        except (pa.ArrowException, OSError, ValueError):
            findings.fail("a column without header cannot be read: its pages are damaged", file=name)
        else:
            for column in lost:
                findings.fail(str(lost_header(column, path=name)), column, file=name)
    try:
        check_names(headers, path=name)
    except FormatError as error:
        findings.fail(str(error), error.column, file=name)
    opened = {column: findings.open(header, column, name) for column, header in headers.items()}
    start = 0
    for number, group in enumerate(fragment.split_by_row_group()):
        size = metadata.row_group(number).num_rows
        for column, keys in opened.items():
            if keys is not None:
                where = {"file": name, "row_group": number}
                _group(group, headers[column], keys, column, findings, range(start, start + size), where)
        start += size
        bar.step(metadata.row_group(number).total_byte_size)
    return start


def file_without_header(
    source: Any, schema: pa.Schema, headers: Mapping[str, Header], path: str
) -> list[str]:
    """Return the columns of a Parquet file that look like cells without their header.

    Of most columns nothing is read: their type, or the smallest value in the footer, rules cells out.

    Args:
        source: the file, open for reading.
        schema: its Arrow schema.
        headers: its headers; these columns are left out.
        path: for the warning about a column with a single value.
    """
    names = [field.name for field in schema if field.name not in headers and is_bytes_or_text(field.type)]
    if not names:
        return []
    # As dictionaries, repeated values take no memory, however often they are repeated.
    reader = pq.ParquetFile(source, read_dictionary=names, buffer_size=1 << 20, pre_buffer=False)
    found = []
    for name in names:
        if _ruled_out(reader.metadata, name):
            continue
        batches = reader.iter_batches(_ROWS, columns=[name], use_threads=False)
        count = looks_like_cells(batch.column(0) for batch in batches if batch.num_columns == 1)
        if count == 1:
            warn_of_single_value(name, path=path)
        elif count:
            found.append(name)
    return found


def _ruled_out(metadata: Any, name: str) -> bool:
    """Return whether the statistics of a file show that a column has other values than cells."""
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for position in range(group.num_columns):
            chunk = group.column(position)
            statistics = chunk.statistics if chunk.path_in_schema == name and chunk.is_stats_set else None
            if statistics is not None and statistics.has_min_max:
                smallest = statistics.min_raw
                if isinstance(smallest, bytes) and not smallest.startswith((b"\x01", MARK.encode())):
                    return True
    return False


def _group(
    group: Any,
    header: Header,
    keys: Mapping[bytes, DataKey],
    column: str,
    findings: Findings,
    rows: range,
    where: Mapping[str, Any],
) -> None:
    """Verify one column of a row group, batch by batch."""
    done = 0
    try:
        for batch in group.to_batches(columns=[column], batch_size=BATCH, batch_readahead=1):
            cells = plain_binary(validated(batch.column(0), column))
            findings.look(header, keys, cells, column, rows[done : done + len(cells)], **where)
            done += len(cells)
    except (pa.ArrowException, OSError, ValueError):
        findings.fail(f"{len(rows) - done:,} rows cannot be read: their pages are damaged", column, **where)
    else:
        if done != len(rows):
            findings.fail(f"{len(rows):,} rows are expected, but {done:,} were found", column, **where)


def _headers(
    name: str, schema: pa.Schema, findings: Findings, entries: Mapping[bytes, bytes] | None
) -> dict[str, Header]:
    """Return the headers that a reader would use; a malformed one is a failure of its column only."""
    headers: dict[str, Header] = {}
    for column in dict.fromkeys(schema.names):
        try:
            headers |= headers_in(schema, name, {column}, footer=entries)
        except FormatError as error:
            findings.fail(str(error), column, file=name)
    return headers


def _compare(
    name: str, schema: pa.Schema, metadata: Any, headers: Mapping[str, Header], findings: Findings
) -> None:
    """Compare the headers in the columns' types with those in the key-value metadata: readers use either."""
    raw = (metadata.metadata or {}).get(ENTRY)
    inner = (schema.metadata or {}).get(ENTRY)
    if raw is None and inner is None:
        return  # not a failure: other software that writes the extension type leaves the entry out
    if None not in (raw, inner) and raw != inner:
        findings.fail(
            "the two copies of the 'kmsdata' entry differ: in the key-value metadata and in ARROW:schema",
            file=name,
        )
    entry: dict[str, Header] = {}
    for text in {raw, inner}:
        if text is None:
            continue
        try:
            entry |= parse_file(text.decode("utf-8", "surrogateescape"))
        except FormatError as error:
            findings.fail(f"the 'kmsdata' entry: {error}", file=name)
    typed = {
        field.name: headers[field.name]
        for field in schema
        if isinstance(field.type, EncryptedType) and field.name in headers
    }
    for column in entry.keys() & set(schema.names) - headers.keys():
        stored = schema.field(column).type
        if not isinstance(stored, EncryptedType):
            findings.fail(
                f"the file's 'kmsdata' entry says that it is encrypted, but it is stored as {stored}",
                column,
                file=name,
            )
    if not entry:
        return
    said, meant = _wraps(entry.values()), _wraps(typed.values())
    for column, header in typed.items():
        if column not in entry:
            findings.fail("it is missing in the file's 'kmsdata' entry", column, file=name)
        elif entry[column].columns != header.columns:
            findings.fail(
                "its type and the file's 'kmsdata' entry describe it differently", column, file=name
            )
        elif any(said[item.data_key] != meant[item.data_key] for item in header.columns):
            findings.fail(
                "its type and the file's 'kmsdata' entry contain different wrapped keys", column, file=name
            )


def _wraps(headers: Iterable[Header]) -> dict[bytes, set[Any]]:
    """Return the wrapped keys of each data key, with its context."""
    found: dict[bytes, set[Any]] = {}
    for header in headers:
        for record in header.records:
            found.setdefault(record.commitment, set()).update((record.context, wrap) for wrap in record.wraps)
    return found
