"""Write Parquet files with encrypted columns, completely or not at all.

The parts of a file::

    schema   ARROW:extension:name = kmsdata.encrypted, ARROW:extension:metadata = the column's header
    footer   key-value metadata "kmsdata" = the headers of all encrypted columns
    pages    cells as byte arrays (of fixed length if the column's type has one), no statistics; all pages
             have checksums
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from kmsdata.atomic_files import sweep
from kmsdata.frames.arguments import Columns, require, required_names
from kmsdata.frames.column import check_one_arrow_type
from kmsdata.frames.dtype import EncryptedType
from kmsdata.frames.encrypted_columns import (
    check_names,
    columns_without_header,
    encrypted_columns,
    in_extension_dtype,
    lost_header,
    not_encrypted,
    with_headers,
)
from kmsdata.frames.pandas_metadata import with_frame_attrs
from kmsdata.keys.envelope import ENTRY, file_text, merged_records
from kmsdata.parquet.locations import FilePath, Place, whole

__all__ = ["settings_for", "write_parquet"]


def write_parquet(
    frame: pd.DataFrame,
    path: FilePath,
    *,
    index: bool | None = None,
    filesystem: Any = None,
    encrypted: Columns | None = None,
    **options: Any,
) -> None:
    """See `kmsdata.api.accessor.FrameAccessor.to_parquet`."""
    _check_options(options)
    _check_encrypted(frame, required_names(encrypted))
    frame = _in_agreement(in_extension_dtype(frame))
    headers = {str(item.name): item.headers[0] for item in encrypted_columns(frame)}
    check_names(headers, path=str(path))
    for item in encrypted_columns(frame):  # otherwise no table or file could ever hold its values
        check_one_arrow_type(item.headers[0], item.parts[0][1].storage, str(item.name))
    table = pa.Table.from_pandas(frame, preserve_index=index, schema=options.pop("schema", None))
    metadata = with_frame_attrs(table.schema.metadata or {}, frame)
    if headers:
        metadata[ENTRY] = file_text(headers).encode()
    table = table.replace_schema_metadata(metadata)
    settings = settings_for(table.schema, options)
    place = Place.of(path, filesystem)
    if place.local:
        sweep(place.path, beside=True)
    with whole(place) as file:
        pq.write_table(table, file, **settings)


def _in_agreement(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with one record per data key: only some columns may have been rewrapped before."""
    every = [record for item in encrypted_columns(frame) for record in item.headers[0].records]
    records = merged_records(every)
    if all(records[record.commitment] == record for record in every):
        return frame
    return with_headers(frame, lambda header: header.under(records))


def _check_encrypted(frame: pd.DataFrame, names: list[str]) -> None:
    """Refuse a frame that would be written unencrypted, in whole or in a column that must be encrypted."""
    found = [item.name for item in encrypted_columns(frame)]
    for name in names:
        require([*frame.columns, *frame.index.names], name)
        if name not in found:
            raise not_encrypted(frame, name)
    if not found and (lost := columns_without_header(frame, [])):
        raise lost_header(lost[0])
    if not found:
        raise ValueError(
            "nothing in this frame is encrypted. Write the frame that df.kms.encrypt() returned: it does not "
            "change df. A file without encrypted columns is written with df.to_parquet()"
        )


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse options for another kind of output, and those that would make a file impossible to decrypt."""
    if unknown := options.keys() & {"partition_cols", "engine", "path"}:
        raise TypeError(
            f"to_parquet writes one file with pyarrow and has no argument {min(unknown)}. For a partitioned "
            "dataset call df.to_parquet(), which keeps encrypted columns too"
        )
    if not options.get("store_schema", True):
        raise ValueError(
            "store_schema=False would omit the headers: the file could never be decrypted. Do not pass it"
        )
    if options.get("flavor") == "spark":
        raise ValueError(
            "flavor='spark' renames columns, but an encrypted column is bound to its name. Rename the "
            "columns before encrypting, and do not pass flavor"
        )


def settings_for(schema: pa.Schema, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options to write encrypted columns without codec and statistics, and plain ones as usual.

    Random bytes neither compress nor repeat, so only deterministic columns get a dictionary. Statistics of an
    extension type would make every Arrow dataset filter on such a file fail.
    """
    sealed = {field.name: field.type.dtype for field in schema if isinstance(field.type, EncryptedType)}
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    written = pq.read_metadata(pa.BufferReader(sink.getvalue())).schema
    leaves = [written.column(number).path for number in range(len(written.names))]
    plain = [leaf for leaf in leaves if leaf not in sealed]

    def chosen(option: str) -> list[str]:
        given = options.get(option, True)
        return plain if given is True else [] if given is False else [leaf for leaf in given if leaf in plain]

    repeating = [name for name, dtype in sealed.items() if dtype.deterministic]
    codec = options.get("compression", "snappy")
    by_leaf = codec if isinstance(codec, dict) else dict.fromkeys(plain, codec or "none")
    level = options.get("compression_level")
    if isinstance(level, int):
        options = options | {"compression_level": dict.fromkeys(plain, level)}
    if options.get("use_byte_stream_split") is True:
        options = options | {"use_byte_stream_split": plain}
    return (
        {"write_page_checksum": True}
        | options
        | {
            "use_dictionary": chosen("use_dictionary") + repeating,
            "write_statistics": chosen("write_statistics"),
            "compression": by_leaf | dict.fromkeys(sealed, "none"),
        }
    )
