"""Find the columns of a Parquet file whose cells lost their header."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kmsdata.frames.arrow_storage import is_bytes_or_text, looks_like_cells
from kmsdata.frames.cell import MARK
from kmsdata.frames.encrypted_columns import warn_of_single_value
from kmsdata.keys.envelope import Header

__all__ = ["file_without_header"]

_ROWS = 1 << 12  # rows that are decoded at once to look for cells
_FEW_ROWS = 1 << 6


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

    Raises:
        pyarrow.ArrowException, OSError: the file is damaged.
    """
    try:
        return _without_header(source, schema, headers, path)
    except UnicodeDecodeError:
        raise pa.ArrowInvalid("a name in the footer is not UTF-8") from None


def _without_header(source: Any, schema: pa.Schema, headers: Mapping[str, Header], path: str) -> list[str]:
    names = [field.name for field in schema if field.name not in headers and is_bytes_or_text(field.type)]
    if not names:
        return []
    metadata = pq.read_metadata(source)
    names = [name for name in names if not _ruled_out(metadata, name)]
    if not names:
        return []
    # As dictionaries, repeated values take no memory, however often they are repeated. Arrow cannot read the
    # delta encodings as dictionaries: of such columns, few rows are decoded at once.
    deltas = {name for name in names if _delta_encoded(metadata, name)}
    reader = pq.ParquetFile(
        source,
        read_dictionary=[name for name in names if name not in deltas],
        buffer_size=1 << 20,
        pre_buffer=False,
        page_checksum_verification=True,
    )
    found = []
    for name in names:
        rows = _FEW_ROWS if name in deltas else _ROWS
        batches = reader.iter_batches(rows, columns=[name], use_threads=False)
        count = looks_like_cells(batch.column(0) for batch in batches if batch.num_columns == 1)
        if count == 1:
            warn_of_single_value(name, path=path)
        elif count:
            found.append(name)
    return found


def _chunks(metadata: Any, name: str) -> Iterator[Any]:
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for position in range(group.num_columns):
            chunk = group.column(position)
            if chunk.path_in_schema == name:
                yield chunk


def _delta_encoded(metadata: Any, name: str) -> bool:
    return any("DELTA" in encoding for chunk in _chunks(metadata, name) for encoding in chunk.encodings)


def _ruled_out(metadata: Any, name: str) -> bool:
    """Return whether the statistics of a file show that a column has other values than cells."""
    for chunk in _chunks(metadata, name):
        statistics = chunk.statistics if chunk.is_stats_set else None
        if statistics is not None and statistics.has_min_max:
            smallest = statistics.min_raw
            if isinstance(smallest, bytes) and not smallest.startswith((b"\x01", MARK.encode())):
                return True
    return False
