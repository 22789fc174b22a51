"""Find the columns of a Parquet file whose cells lost their header."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kmsdata.frames.arrow_storage import is_bytes_or_text, looks_like_cells
from kmsdata.frames.cell import MARK
from kmsdata.frames.encrypted_columns import warn_of_single_value
from kmsdata.keys.envelope import Header

__all__ = ["file_without_header"]

_ROWS = 1 << 12  # rows that are decoded at once to look for cells
_ROWS_OF_DELTA = 1 << 6  # each value may repeat almost all of the one before it


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
    # As dictionaries, repeated values take no memory, however often they are repeated. pyarrow (26) cannot
    # read pages of this encoding as dictionaries.
    delta = _encoded_as(pq.ParquetFile(source, pre_buffer=False).metadata, names, "DELTA_BYTE_ARRAY")
    reader = pq.ParquetFile(
        source,
        read_dictionary=[name for name in names if name not in delta],
        buffer_size=1 << 20,
        pre_buffer=False,
        page_checksum_verification=True,
    )
    found = []
    for name in names:
        if _ruled_out(reader.metadata, name):
            continue
        rows = _ROWS_OF_DELTA if name in delta else _ROWS
        batches = reader.iter_batches(rows, columns=[name], use_threads=False)
        count = looks_like_cells(batch.column(0) for batch in batches if batch.num_columns == 1)
        if count == 1:
            warn_of_single_value(name, path=path)
        elif count:
            found.append(name)
    return found


def _encoded_as(metadata: Any, names: list[str], encoding: str) -> set[str]:
    """Return those of these columns that have pages of an encoding."""
    paths = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    return {
        path
        for group in map(metadata.row_group, range(metadata.num_row_groups))
        for number, path in enumerate(paths)
        if path in names and encoding in group.column(number).encodings
    }


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
