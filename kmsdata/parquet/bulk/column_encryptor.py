"""Encrypt one column of many files, batch by batch, with the same header in all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from kmsdata.codec import Description
from kmsdata.frames.column import plan as plan_column
from kmsdata.frames.column import seal
from kmsdata.frames.dtype import EncryptedArray, EncryptedDtype, EncryptedType
from kmsdata.frames.metadata.pandas_entry import pandas_dtypes
from kmsdata.frames.metadata.values import refuse_values_in_metadata
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import ColumnHeader, Header
from kmsdata.lazy_property import lazy_property
from kmsdata.parquet.bulk.column_batches import (
    OpenParquet,
    categories,
    column_batches,
    in_parts,
    refuse_lost_timestamps,
)
from kmsdata.parquet.bulk.plan import EncryptionPlan

__all__ = ["ColumnEncryptor", "column_encryptors", "encrypted_group"]


@dataclass(frozen=True)
class ColumnEncryptor:
    """Encrypts one column of every file of a plan.

    Attributes:
        name: the column.
        dtype: the dtype of its cells, which contains the header.
        data_key: the data key.
    """

    name: str
    dtype: EncryptedDtype
    _header: ColumnHeader = field(repr=False)
    _described: Description = field(repr=False)
    data_key: DataKey = field(repr=False)

    @lazy_property
    def type(self) -> EncryptedType:
        """The Arrow type of its cells."""
        return EncryptedArray(pa.array([], self.dtype._storage_type), self.dtype).__arrow_array__().type

    def encrypt(self, values: pa.Array) -> Any:
        """Encrypt values; return an Arrow array of cells."""
        column = pa.chunked_array([values])
        cells = seal(self._header, self._described, column, self.name, self.data_key)
        return EncryptedArray(cells, self.dtype).__arrow_array__()


def column_encryptors(plan: EncryptionPlan, data_key: DataKey) -> dict[str, ColumnEncryptor]:
    """Return an encryptor for each column of a plan, all under one data key.

    Raises:
        UnsupportedTypeError: a column of a type that decryption could not restore exactly.
        FormatError: a file whose categories cannot be read.
    """
    schema = plan.files[0].schema
    # Files of one dataset may have other dtypes of pandas for the same type of Arrow: each keeps its entry.
    every = [pandas_dtypes(one) for one in {id(file.schema): file.schema for file in plan.files}.values()]
    dtypes = {name: dtype for name, dtype in every[0].items() if all(one.get(name) == dtype for one in every)}
    encryptors = {}
    for name, domain in plan.domains.items():
        kind = schema.field(name).type
        values = pa.chunked_array([], kind)
        if pa.types.is_dictionary(kind):
            # All files have the same header, which contains the categories: collect those of every file.
            entries = categories([file.source for file in plan.files], name, kind.value_type)
            codes = pa.array([], kind.index_type)
            values = pa.chunked_array([pa.DictionaryArray.from_arrays(codes, entries, ordered=kind.ordered)])
        header, described = plan_column(values, name, data_key, domain=domain, dtype=dtypes.get(name))
        dtype = EncryptedDtype(Header.of([header], [data_key.record]))
        encryptors[name] = ColumnEncryptor(name, dtype, header, described, data_key)
    return encryptors


def encrypted_group(
    parquet: OpenParquet, encryptors: Mapping[str, ColumnEncryptor], texts: pa.Array, group: int
) -> dict[str, Callable[[], Iterator[pa.ChunkedArray]]]:
    """Return functions that encrypt the columns of a row group part by part, while they are written.

    Args:
        parquet: the file.
        encryptors: by column.
        texts: the texts in the file's metadata, which must not contain a value of the columns.
        group: the number of the row group.
    """
    return {
        name: functools.partial(_parts, parquet, encryptor, texts, group)
        for name, encryptor in encryptors.items()
    }


def _parts(
    parquet: OpenParquet, encryptor: ColumnEncryptor, texts: pa.Array, group: int
) -> Iterator[pa.ChunkedArray]:
    return in_parts(_cells(parquet, encryptor, texts, group))


def _cells(parquet: OpenParquet, encryptor: ColumnEncryptor, texts: pa.Array, group: int) -> Iterator[Any]:
    refuse_lost_timestamps(parquet, group, encryptor.name)
    where = f"{parquet.path}: the file's key-value metadata"
    for values in column_batches(parquet, group, encryptor.name):
        refuse_values_in_metadata(values, texts, encryptor.name, where)
        yield encryptor.encrypt(values)
