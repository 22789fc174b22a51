"""Decrypt one column of many files, batch by batch, to the same type in all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from kmsdata.errors import KmsDataError, UnsupportedTypeError, located
from kmsdata.frames.column import arrow_types, open_arrow
from kmsdata.frames.dtype import EncryptedArray, EncryptedDtype
from kmsdata.frames.metadata.pandas_entry import pandas_entries
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import Header
from kmsdata.lazy_property import lazy_property
from kmsdata.parquet.bulk.column_batches import OpenParquet, column_batches, in_parts, open_parquet
from kmsdata.parquet.bulk.plan import DecryptionPlan
from kmsdata.parquet.column_chunks import PART

__all__ = ["ColumnDecryptor", "column_decryptors", "decrypted_group"]


@dataclass(frozen=True)
class ColumnDecryptor:
    """Decrypts one column of all files in which it has this header.

    Attributes:
        name: the column.
        header: its header, which is authenticated.
        type: the Arrow type of its values.
        data_keys: the data keys, by commitment.
    """

    name: str
    header: Header = field(repr=False)
    type: pa.DataType
    data_keys: Mapping[bytes, DataKey] = field(repr=False)

    @lazy_property
    def pandas_entry(self) -> dict[str, Any] | None:
        """The column's entry for the pandas metadata, if it was encrypted in pandas."""
        return pandas_entries({self.name: self.header}, self.data_keys).get(self.name)

    def decrypt(self, parquet: OpenParquet, group: int) -> Iterator[pa.Array]:
        """Decrypt and authenticate the column of a row group, batch by batch.

        Raises:
            TamperedError, WrongKeyError: cells that are not authentic; ``rows`` are positions in the file.
        """
        for values in _decrypted(parquet, group, self.name, self.header, self.data_keys):
            yield values if values.type == self.type else values.cast(self.type)
            del values  # the traceback of an error in the next batch must not keep plaintext in memory


def column_decryptors(
    plan: DecryptionPlan, data_keys: Mapping[bytes, DataKey]
) -> dict[tuple[str, Header], ColumnDecryptor]:
    """Return a decryptor for each column and header of a plan.

    The header contains the type of a column. A column of Python objects is an exception: its type is the
    common type of all its values, so such a column is decrypted twice, the first time to find this type.

    Raises:
        UnsupportedTypeError: objects that have no common Arrow type.
        TamperedError, WrongKeyError: cells of such a column that are not authentic.
    """
    return {
        (name, header): ColumnDecryptor(name, header, _type(plan, name, header, data_keys), data_keys)
        for name, header in plan.headers
    }


def decrypted_group(
    parquet: OpenParquet, decryptors: Mapping[str, ColumnDecryptor], group: int
) -> dict[str, Callable[[], Iterator[pa.ChunkedArray]]]:
    """Decrypt and authenticate the columns of a row group, before any of it is written.

    Returns functions that make the columns part by part, for writing. Columns are kept in memory up to `PART`
    bytes in total; the others are decrypted a second time while they are written.
    """
    held: dict[str, list[Any]] = {name: [] for name in decryptors}
    size = 0
    try:
        for name, decryptor in decryptors.items():
            for values in decryptor.decrypt(parquet, group):
                size += values.nbytes
                if size <= PART:
                    held[name].append(values)
                else:
                    held.pop(name, None)
                del values
    except BaseException:
        held.clear()  # the traceback of an error must not keep plaintext in memory
        raise
    return {
        name: functools.partial(in_parts, held[name])
        if name in held
        else functools.partial(_parts, parquet, decryptor, group)
        for name, decryptor in decryptors.items()
    }


def _parts(parquet: OpenParquet, decryptor: ColumnDecryptor, group: int) -> Iterator[pa.ChunkedArray]:
    return in_parts(decryptor.decrypt(parquet, group))


def _type(plan: DecryptionPlan, name: str, header: Header, data_keys: Mapping[bytes, DataKey]) -> pa.DataType:
    if len(arrow_types(header)) == 1 and not any(
        "object" in item.type.get("pandas", {}) for item in header.columns
    ):
        empty = pa.array([], EncryptedDtype(header)._storage_type)
        return open_arrow(header, data_keys, empty, name).type
    kind = pa.null()
    for file in plan.files:
        if file.column_headers.get(name) != header:
            continue
        with open_parquet(file.source) as parquet:
            for group in range(parquet.groups):
                for values in _decrypted(parquet, group, name, header, data_keys):
                    kind = _common_type(kind, values.type, name)
                    del (
                        values
                    )  # the traceback of an error in the next batch must not keep plaintext in memory
    return kind


def _decrypted(
    parquet: OpenParquet, group: int, name: str, header: Header, data_keys: Mapping[bytes, DataKey]
) -> Iterator[pa.Array]:
    """Decrypt a column of a row group, batch by batch, each to the type of the values in it."""
    row = parquet.first_rows[group]
    dtype = EncryptedDtype(header)
    for cells in column_batches(parquet, group, name):
        storage = EncryptedArray(cells, dtype).storage
        try:
            values = open_arrow(header, data_keys, storage, name, first=row)
        except KmsDataError as error:
            raise located(error, parquet.path, path=parquet.path) from None
        yield from values.chunks if isinstance(values, pa.ChunkedArray) else [values]
        del values  # the traceback of an error in the next batch must not keep plaintext in memory
        row += len(cells)


def _common_type(one: pa.DataType, two: pa.DataType, column: str) -> pa.DataType:
    try:
        schemas = [pa.schema([("c", one)]), pa.schema([("c", two)])]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        raise UnsupportedTypeError(
            f"column {column!r} contains objects of the types {one} and {two}, which have no common Arrow "
            "type. Decrypt it as a pandas frame",
            column=column,
            dtype="object",
        ) from None
