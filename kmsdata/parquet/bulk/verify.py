"""Verify Parquet files: every cell, and the copies of the headers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from kmsdata.display.progress import Progress
from kmsdata.display.verification import Verification
from kmsdata.errors import FormatError, TamperedError, did_you_mean
from kmsdata.frames.arrow_storage import plain_binary, validated
from kmsdata.frames.dtype import EncryptedType
from kmsdata.frames.encrypted_columns import check_names, lost_header
from kmsdata.frames.verify import MISSING, NO_HEADER, NOT_ENCRYPTED, Findings
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import ENTRY, Header, parse_file
from kmsdata.parquet.bulk.column_batches import OpenParquet, column_batches, open_parquet
from kmsdata.parquet.bulk.original.entry import opened_part, sealed_columns
from kmsdata.parquet.bulk.original.types import types_in
from kmsdata.parquet.headers import headers_in
from kmsdata.parquet.locations import Readable, Refused, dataset_files, paths_text, skipped_note
from kmsdata.parquet.lost_headers import file_without_header

_NOT_THERE = "it must be encrypted, but the file has no such column"


# --- files ----------------------------------------------------------------------------------------


def verify_path(path: Readable, filesystem: Any, findings: Findings, progress: bool | None) -> Verification:
    """Authenticate every cell of a Parquet file or dataset; see `kmsdata.verify`."""
    refused: Refused = {}
    skipped: list[str] = []
    files, _ = dataset_files(path, filesystem, refused=refused, skipped=skipped)
    for name, error in sorted(refused.items()):
        findings.fail(_said(error), file=name)
    sizes = [place.filesystem.get_file_info(place.path).size or 0 for place in files.values()]
    rows = 0
    with Progress("verify", sum(sizes), "bytes", progress) as bar:
        for (name, place), size in zip(files.items(), sizes, strict=True):
            before = bar.done
            try:
                with open_parquet(place, name) as parquet:
                    rows += _file(name, parquet, findings, bar)
            except (FormatError, OSError) as error:
                findings.fail(_said(error), file=name)
            bar.step(before + size - bar.done)
    return findings.result(paths_text(path), rows, len(files) + len(refused), skipped_note(skipped))


def _said(error: FormatError | OSError) -> str:
    if isinstance(error, OSError):
        return f"it cannot be read: {error.strerror or error}"
    return str(error)


def _file(name: str, parquet: OpenParquet, findings: Findings, bar: Progress) -> int:
    """Verify one file; return its number of rows."""
    schema, metadata = parquet.schema, parquet.reader.metadata
    before = len(findings.failures)
    failed: dict[str, FormatError] = {}
    headers = headers_in(schema, name, footer=metadata.metadata, failed=failed)
    for column, error in failed.items():
        findings.fail(str(error), column, file=name)
    malformed = {failure.column for failure in findings.failures[before:]}
    for column in findings.wanted:
        if column not in headers and column not in malformed:
            there = column in schema.names
            question = "" if there else did_you_mean(column, headers)
            findings.fail(
                NO_HEADER if there else f"{_NOT_THERE}{question}",
                column,
                file=name,
                absent=NOT_ENCRYPTED if there else MISSING,
            )
    if not headers and len(findings.failures) == before:
        findings.fail("nothing in it is encrypted: the file has no kmsdata header", file=name)
    _compare(name, schema, metadata, headers, findings)
    if not findings.wanted:
        try:
            lost = file_without_header(parquet.file, schema, headers, name)
        except (pa.ArrowException, OSError, ValueError):
            findings.fail("a column without header cannot be read: its pages are damaged", file=name)
        else:
            for column in lost:
                findings.fail(str(lost_header(column, path=name)), column, file=name)
    try:
        check_names(headers, path=name)
    except FormatError as error:
        findings.fail(str(error), error.column, file=name)
    keys_of = {column: findings.open(header, column, name) for column, header in headers.items()}
    _check_original(name, (metadata.metadata, schema.metadata), headers, keys_of, findings)
    start = 0
    for number in range(parquet.groups):
        size = parquet.rows(number)
        for column, keys in keys_of.items():
            if keys is not None:
                where = {"file": name, "row_group": number}
                batches = column_batches(parquet, number, column)
                _group(batches, headers[column], keys, column, findings, range(start, start + size), where)
        start += size
        bar.step(metadata.row_group(number).total_byte_size)
    return start


def _check_original(
    name: str,
    copies: Iterable[Mapping[bytes, bytes] | None],
    headers: Mapping[str, Header],
    keys: Mapping[str, Mapping[bytes, DataKey] | None],
    findings: Findings,
) -> None:
    """Authenticate what the file keeps of each column from before it was encrypted."""
    for copy in copies:
        try:
            parts = sealed_columns(copy or {}, name)
        except FormatError as error:
            findings.fail(str(error), file=name)
            continue
        for column in parts.keys() & headers.keys():
            if (data_keys := keys[column]) is not None:
                try:
                    part = opened_part(column, parts[column], headers[column], data_keys, name)
                    types_in({column: part or {}}, name)
                except (FormatError, TamperedError) as error:
                    findings.fail(str(error), column, file=name)


def _group(
    batches: Iterable[pa.Array],
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
        for batch in batches:
            cells = plain_binary(validated(batch, column))
            findings.look(header, keys, cells, column, rows[done : done + len(cells)], **where)
            done += len(cells)
    except (OSError, ValueError):
        findings.fail(f"{len(rows) - done:,} rows cannot be read: their pages are damaged", column, **where)
    else:
        if done != len(rows):
            findings.fail(f"{len(rows):,} rows are expected, but {done:,} were found", column, **where)


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
    for text in (raw,) if raw == inner else (raw, inner):
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
