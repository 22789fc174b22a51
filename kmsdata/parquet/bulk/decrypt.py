"""Columns of files decrypted: of which type each becomes, and how a file is written without ciphertext."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kmsdata.errors import FormatError, KmsDataError, UnsupportedTypeError
from kmsdata.frames.arguments import require
from kmsdata.frames.column import open_arrow
from kmsdata.frames.dtype import EncryptedArray, EncryptedDtype
from kmsdata.frames.encrypted_columns import check_names
from kmsdata.frames.pandas_metadata import pandas_entries, with_entries
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import Header
from kmsdata.parquet.bulk.column_batches import (
    column_batches,
    edited_metadata,
    in_parts,
    open_parquet,
    replacement,
    with_type,
)
from kmsdata.parquet.bulk.plan import Job, Step
from kmsdata.parquet.column_chunks import PART, rewrite
from kmsdata.parquet.headers import headers_in
from kmsdata.parquet.locations import Place

__all__ = ["decrypt_file", "decrypted_types", "headers_wanted"]

Plain = Mapping[tuple[str, Header], pa.DataType]


def headers_wanted(
    place: Place, headers: dict[str, Header], schema: pa.Schema, wanted: list[str] | None
) -> dict[str, Header]:
    """The headers of the columns to decrypt; FormatError where one has none."""
    path = str(place)
    check_names(headers, path=path)
    for name in wanted or ():
        require(schema.names, name)
        if name not in headers:
            raise FormatError(
                f"{path}: column {name!r} is not encrypted: it has no kmsdata header", path=path, column=name
            )
    if not headers:
        raise FormatError(f"{path} has no kmsdata header: no column of it is encrypted", path=path)
    for name in headers:
        if schema.names.count(name) > 1:
            raise ValueError(
                f"{path}: {schema.names.count(name)} columns are called {name!r}: rename them apart first"
            )
    return headers if wanted is None else {name: headers[name] for name in wanted}


def _open(
    parquet: pq.ParquetFile, group: int, name: str, header: Header, keys: Mapping[bytes, DataKey], path: str
) -> Iterator[Any]:
    """The values of an encrypted column of a row group, batch by batch, each of them authentic."""
    row = sum(parquet.metadata.row_group(number).num_rows for number in range(group))
    dtype = EncryptedDtype(header)
    for cells in column_batches(parquet, group, name, path):
        storage = EncryptedArray(cells, dtype).storage
        try:
            values = open_arrow(header, keys, storage, name, first=row)
        except KmsDataError as error:
            raise _in_file(error, path) from None
        yield from values.chunks if isinstance(values, pa.ChunkedArray) else [values]
        del values  # an error of the next batch keeps no plaintext in its frames
        row += len(cells)


def _in_file(error: KmsDataError, path: str) -> KmsDataError:
    return type(error)(f"{path}: {error}", **{**error.__dict__, "path": path})


def decrypted_types(
    job: Job, by_file: Mapping[str, Mapping[str, Header]], keys: Mapping[bytes, DataKey]
) -> dict[tuple[str, Header], pa.DataType]:
    """What Arrow type each column has decrypted.

    The header says it, but for columns of Python objects, which are of the type that all of their values make
    together: these are decrypted once more for it.
    """
    types: dict[tuple[str, Header], pa.DataType] = {}
    for name, headers in by_file.items():
        path = str(job.files[name])
        for column, header in headers.items():
            if all("object" not in item.type.get("pandas", {}) for item in header.columns):
                if (column, header) not in types:
                    dtype = EncryptedDtype(header)
                    empty = pa.array([], dtype._storage_type)
                    types[column, header] = open_arrow(header, keys, empty, column).type
                continue
            kind = types.get((column, header), pa.null())
            with open_parquet(job.files[name]) as (_, parquet, _):
                for group in range(parquet.num_row_groups):
                    for values in _open(parquet, group, column, header, keys, path):
                        kind = _both(kind, values.type, column)
            types[column, header] = kind
    return types


def _both(one: pa.DataType, two: pa.DataType, column: str) -> pa.DataType:
    try:
        schemas = [pa.schema([("c", one)]), pa.schema([("c", two)])]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        raise UnsupportedTypeError(
            f"column {column!r} holds objects that are {one} and objects that are {two}, and so has no Arrow "
            "type: decrypt it as a pandas frame",
            column=column,
            dtype="object",
        ) from None


def decrypt_file(
    place: Place,
    sink: Any,
    headers: Mapping[str, Header],
    keys: Mapping[bytes, DataKey],
    types: Plain,
    step: Step,
) -> int:
    """Write a file with these columns decrypted; returns its size."""
    path = str(place)
    with open_parquet(place) as (file, parquet, footer):
        before = schema = parquet.schema_arrow
        replaced = {}
        for name, header in headers.items():
            field = before.field(name).with_type(types[name, header])
            replaced[name] = replacement(field)
            schema = with_type(schema, name, _as_read(field))
        every = headers_in(before, path, footer=footer.metadata)
        rest = {name: header for name, header in every.items() if name not in headers}

        def opened(group: int, name: str) -> Iterator[Any]:
            kind = types[name, headers[name]]
            for values in _open(parquet, group, name, headers[name], keys, path):
                yield values if values.type == kind else values.cast(kind)
                del values

        def again(group: int, name: str) -> Iterator[Any]:
            return in_parts(opened(group, name))

        def anew(group: int) -> dict[str, Callable[[], Iterator[Any]]]:
            # All of the row group is opened before anything of it is written. What is too large to be kept is
            # opened a second time.
            held: dict[str, list[Any]] = {name: [] for name in headers}
            size = 0
            try:
                for name in headers:
                    for values in opened(group, name):
                        size += values.nbytes
                        if size <= PART:
                            held[name].append(values)
                        else:
                            held.pop(name, None)
                        del values
            except BaseException:
                held.clear()
                raise
            return {
                name: functools.partial(in_parts, held[name])
                if name in held
                else functools.partial(again, group, name)
                for name in headers
            }

        was = pandas_entries(headers, keys)

        def edited(metadata: Mapping[bytes, bytes] | None) -> dict[bytes, bytes]:
            return with_entries(edited_metadata(metadata, list(headers), rest, back=True), was)

        return rewrite(
            file,
            path,
            footer,
            sink,
            replaced,
            anew,
            schema.with_metadata(edited(before.metadata) or None),
            edited({key: text for key, text in footer.metadata.items() if key != b"ARROW:schema"}),
            step,
        )


def _as_read(field: pa.Field) -> pa.DataType:
    """The type that a column has when it is read from a file again: some units of time become others."""
    sink = pa.BufferOutputStream()
    try:
        pq.write_table(pa.schema([field]).empty_table(), sink)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        raise UnsupportedTypeError(
            f"column {field.name!r} is {field.type}, which Parquet does not hold: decrypt it as a "
            "frame or table",
            column=field.name,
            dtype=str(field.type),
        ) from None
    return pq.read_schema(pa.BufferReader(sink.getvalue())).field(0).type
