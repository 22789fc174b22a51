"""Inspect encrypted frames, tables and files without a key."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import pandas as pd
import pyarrow as pa

from kmsdata.codec import label
from kmsdata.display.inspection import ColumnReport, DataKeyReport, Inspection
from kmsdata.errors import CallerTypeError, FormatError
from kmsdata.frames.arrow_storage import validated
from kmsdata.frames.cell import nulls_of
from kmsdata.frames.dtype import EncryptedType
from kmsdata.frames.encrypted_columns import (
    Encrypted,
    columns_without_header,
    encrypted_columns,
    header_of,
    lost_header,
    table_without_header,
    with_arrow_types,
)
from kmsdata.frames.metadata.pandas_entry import dtype_names
from kmsdata.keys.envelope import Header
from kmsdata.parquet.footer import read_metadata
from kmsdata.parquet.headers import damaged, dataset_headers
from kmsdata.parquet.locations import Readable, is_readable, paths_text, skipped_note
from kmsdata.parquet.lost_headers import file_without_header

__all__ = ["inspect"]


def inspect(x: Encrypted | Readable, *, filesystem: Any = None) -> Inspection:
    """Describe what is encrypted, how, and by which master keys. Needs no key and makes no KMS call.

    Of a file only the footer is read, and a few values of columns that may be cells without their header. The
    result repeats what the headers say; nothing is verified.

    Args:
        x: a frame, series, Arrow table, or path of a Parquet file or dataset (or list of paths);
            or an open file, such as `io.BytesIO`.
        filesystem: for a path: pyarrow or fsspec filesystem; otherwise inferred from the path.

    Returns:
        A report that displays as text or HTML, with ``.to_dict()`` and ``.json()``.

    Raises:
        FormatError: the file is not a Parquet file; a header is malformed; or a column looks like cells
            without their header (see `kmsdata.attach`).

    Example:
        >>> import pandas as pd, kmsdata
        >>> enc = pd.DataFrame({"age": [36, None], "city": ["Ulm", "Ulm"]}).kms.encrypt("age", key="local://demo")
        >>> found = kmsdata.inspect(enc)
        >>> found.encrypted, found.columns[0].algorithm, found.columns[0].type, found.columns[0].nulls
        (['age'], 'AES-256-GCM', 'float64', 1)
    """
    if is_readable(x):
        return _path(cast("Readable", x), filesystem)
    if isinstance(x, pa.Table):
        return _table(x)
    if isinstance(x, pd.Series):
        return _frame(x.to_frame(), "series")
    if isinstance(x, pd.DataFrame):
        return _frame(x, "frame")
    raise CallerTypeError("inspect() takes a frame, a series, an Arrow table, a path, or an open file")


def _frame(frame: pd.DataFrame, what: str) -> Inspection:
    columns: dict[int, ColumnReport] = {}
    levels: list[ColumnReport] = []
    headers: list[Header] = []
    notes: list[str] = []
    known = encrypted_columns(frame)
    if lost := columns_without_header(frame, known):
        raise lost_header(lost[0])
    for item in known:
        headers += item.headers
        nbytes = sum(array.nbytes for _, array in item.parts)
        nulls = sum(int(array.isna().sum()) for _, array in item.parts)
        # A column of dtype object mixes cells with nulls and other values, so the parts hold no nulls.
        if item.others is not None:
            nulls = int(nulls_of(item.others).sum())
            plain = len(frame) - nulls - sum(len(array) for _, array in item.parts)
            if plain:
                notes.append(f"column {item.name!r} is not encrypted in {plain:,} of {len(frame):,} rows")
        if item.level is None:
            columns[item.position] = _encrypted(str(item.name), item.headers, nbytes, nulls)
        else:
            levels.append(_encrypted(f"{item.name} (index)", item.headers, nbytes, nulls))
    for position, name in enumerate(frame.columns):
        if position not in columns:
            series = frame.iloc[:, position]
            columns[position] = ColumnReport(
                str(name),
                False,
                str(series.dtype),
                int(series.memory_usage(index=False)),
                nulls=int(nulls_of(series).sum()),
            )
    every = (*(columns[position] for position in sorted(columns)), *levels)
    size = sum(column.bytes or 0 for column in every)
    return Inspection(what, len(frame), size, every, _data_keys(headers), notes=tuple(notes[:5]))


def _table(table: pa.Table) -> Inspection:
    columns: list[ColumnReport] = []
    headers: list[Header] = []
    table = with_arrow_types(table)
    for name, column in zip(table.column_names, table.columns, strict=True):
        validated(column, name)
    if lost := table_without_header(table):
        raise lost_header(lost[0])
    for field, values in zip(table.schema, table.columns, strict=True):
        if isinstance(field.type, EncryptedType):
            header = header_of(field.type.dtype, field.name)
            headers.append(header)
            columns.append(_encrypted(field.name, [header], values.nbytes, values.null_count))
        else:
            columns.append(
                ColumnReport(field.name, False, str(field.type), values.nbytes, nulls=values.null_count)
            )
    return Inspection("table", table.num_rows, table.nbytes, tuple(columns), _data_keys(headers))


def _path(path: Readable, filesystem: Any) -> Inspection:
    found: dict[str, ColumnReport] = {}
    every: list[Header] = []
    notes: list[str] = []
    rows = total = 0
    skipped: list[str] = []
    files = dataset_headers(path, filesystem, skipped=skipped)
    first: set[str] = set()
    for name, file in files.items():
        fragment, headers = file.fragment, file.headers
        try:
            with fragment.open() as source:
                read_metadata(source, source.size(), name)  # finds what would end the process in pyarrow
                lost = file_without_header(source, fragment.physical_schema, headers, name)
        except pa.ArrowException:
            raise FormatError(f"{name}: a column cannot be read: its pages are damaged", path=name) from None
        if lost:
            raise lost_header(lost[0], path=name)
        every += headers.values()
        try:
            sizes, nulls = _chunks(fragment.metadata, fragment.physical_schema.names)
        except UnicodeDecodeError:  # names of columns in a damaged footer
            raise damaged(name) from None
        rows += fragment.metadata.num_rows
        total += sum(sizes.values())
        if first and set(headers) != first:
            notes.append(f"{name}: the encrypted columns differ from those of the first file")
        first = first or set(headers)
        types = dtype_names(fragment.physical_schema.metadata)
        for field in fragment.physical_schema:
            seen = found.get(field.name)
            size, null = sizes.get(field.name, 0), nulls.get(field.name)
            if field.name in headers:
                report = _encrypted(field.name, [headers[field.name]], size, null)
            else:
                report = ColumnReport(
                    field.name, False, types.get(field.name, str(field.type)), size, nulls=null
                )
            found[field.name] = report if seen is None else _both(seen, report)
        for field in file.partition:
            # pyarrow gives the values of folder names as a dictionary, as pandas reads them.
            told = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
            found.setdefault(field.name, ColumnReport(field.name, False, f"{told} (in folder names)", 0))
    columns = tuple(found.values())
    shown = (*notes[:5], *skipped_note(skipped))
    return Inspection(paths_text(path), rows, total, columns, _data_keys(every), len(files), shown)


def _chunks(metadata: Any, names: list[str]) -> tuple[dict[str, int], dict[str, int | None]]:
    """Return each column's bytes in the file, and its nulls where the footer counts them."""
    sizes: dict[str, int] = {}
    nulls: dict[str, int | None] = {}
    known = set(names)
    column_of: dict[str, str] = {}
    types = [metadata.schema.column(position).physical_type for position in range(metadata.num_columns)]
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for position in range(group.num_columns):
            chunk = group.column(position)
            path = chunk.path_in_schema
            # The path of a nested column's leaf is "column.field". Names may contain dots too, so the longest
            # name that fits is the column: "p.q.x" belongs to "p.q", not to "p".
            if path not in column_of:
                parts = path.split(".")
                prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
                column_of[path] = next((prefix for prefix in prefixes if prefix in known), path)
            name = column_of[path]
            sizes[name] = sizes.get(name, 0) + chunk.total_compressed_size
            # The nulls of a nested column's leaf are not those of the column.
            # pyarrow 26 ends the process for statistics of a chunk whose type is not that of the schema.
            sound = chunk.physical_type == types[position]
            counted = chunk.statistics.null_count if sound and chunk.is_stats_set and path == name else None
            before = nulls.get(name, 0)
            nulls[name] = None if counted is None or before is None else before + counted
    return sizes, nulls


def _encrypted(name: str, headers: list[Header], nbytes: int, nulls: int | None) -> ColumnReport:
    objects = [item for header in headers for item in header.columns]
    return ColumnReport(
        name,
        True,
        " | ".join(dict.fromkeys(label(item.type) for item in objects)),
        nbytes,
        " | ".join(dict.fromkeys(item.algorithm for item in objects)),
        " | ".join(dict.fromkeys(item.domain for item in objects if item.domain is not None)) or None,
        nulls,
        tuple(dict.fromkeys(item.data_key.hex()[:8] for item in objects)),
    )


def _both(one: ColumnReport, two: ColumnReport) -> ColumnReport:
    """Combine the reports on one column of two files."""

    def joined(first: str | None, second: str | None) -> str | None:
        return (
            " | ".join(dict.fromkeys(part for text in (first, second) if text for part in text.split(" | ")))
            or None
        )

    return ColumnReport(
        one.name,
        one.encrypted and two.encrypted,
        joined(one.type, two.type) or "",
        (one.bytes or 0) + (two.bytes or 0),
        joined(one.algorithm, two.algorithm),
        joined(one.domain, two.domain),
        None if one.nulls is None or two.nulls is None else one.nulls + two.nulls,
        tuple(dict.fromkeys((*one.data_keys, *two.data_keys))),
    )


def _data_keys(headers: Iterable[Header]) -> tuple[DataKeyReport, ...]:
    seen: dict[bytes, DataKeyReport] = {}
    for header in headers:
        for record in header.records:
            keys = tuple(wrap.key for wrap in record.wraps)
            known = seen.get(record.commitment)
            # A data key may be in several files, wrapped with different master keys in each.
            if known is not None:
                keys = tuple(dict.fromkeys((*known.keys, *keys)))
            seen[record.commitment] = DataKeyReport(record.commitment.hex()[:8], keys, dict(record.context))
    return tuple(seen.values())
