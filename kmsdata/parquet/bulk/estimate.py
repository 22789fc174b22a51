"""Estimate the size of the files that a plan would write, for a dry run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from kmsdata.keys.data_key import DataKey, random_bytes
from kmsdata.keys.envelope import Wrap
from kmsdata.parquet.bulk.column_batches import OpenParquet, column_batches, open_parquet
from kmsdata.parquet.bulk.column_encryptor import ColumnEncryptor, column_encryptors
from kmsdata.parquet.bulk.csv_reader import CsvFormat, csv_batches
from kmsdata.parquet.bulk.file_schema import encrypted_schema
from kmsdata.parquet.bulk.plan import DecryptionPlan, EncryptionPlan, FilePlan
from kmsdata.parquet.write import settings_for

__all__ = ["decrypted_size", "encrypted_size"]

_RANDOMISED, _DETERMINISTIC = 33, 21  # bytes that a cell adds to its value: prefix, IV and tag


def encrypted_size(plan: EncryptionPlan) -> int:
    """Estimate the size of the encrypted files, from the first cells of each column of each row group.

    They are encrypted under a temporary random data key, so no KMS call is made.

    Raises:
        UnsupportedTypeError, FormatError: in the same cases as the encryption.
    """
    encryptors = column_encryptors(plan, DataKey(random_bytes(32), [Wrap("local://none", "")]))
    return sum(_encrypted_size(file, encryptors) for file in plan.files)


def _encrypted_size(file: FilePlan, encryptors: Mapping[str, ColumnEncryptor]) -> int:
    if file.csv is not None:
        return _encrypted_csv_size(file, file.csv, encryptors)
    size = file.bytes
    with open_parquet(file.source) as parquet:
        for name, encryptor in encryptors.items():
            size -= _chunk_sizes(parquet, name)[0]
            for group in range(parquet.groups):
                if rows := parquet.rows(group):
                    cells = encryptor.encrypt(next(column_batches(parquet, group, name)))
                    size += cells.nbytes * rows // max(len(cells), 1)
    return size


def _encrypted_csv_size(file: FilePlan, csv: CsvFormat, encryptors: Mapping[str, ColumnEncryptor]) -> int:
    """Write the first block to memory as it would be written, and extend its size to all rows."""
    headers = {name: item.dtype.header for name, item in encryptors.items()}
    fields = {name: file.schema.field(name).with_type(item.type) for name, item in encryptors.items()}
    schema, _ = encrypted_schema(file.schema, {}, fields, headers, {}, {})
    sink, empty, rows = pa.BufferOutputStream(), 0, 0
    with pq.ParquetWriter(sink, schema, **settings_for(schema, {})) as writer:
        for batch in itertools.islice(csv_batches(file.source, file.schema, csv), 1):
            columns = [
                encryptors[name].encrypt(values) if name in encryptors else values
                for name, values in zip(batch.schema.names, batch.columns, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            rows, empty = len(batch), schema.serialize().size
    size = sink.getvalue().size
    return size if rows >= file.rows else empty + (size - empty) * file.rows // max(rows, 1)


def decrypted_size(plan: DecryptionPlan) -> int:
    """Estimate the largest possible size of the decrypted files: values may compress, cells do not."""
    return sum(map(_decrypted_size, plan.files))


def _decrypted_size(file: FilePlan) -> int:
    size = file.bytes
    with open_parquet(file.source) as parquet:
        for name in file.columns:
            compressed, whole = _chunk_sizes(parquet, name)
            overhead = _DETERMINISTIC if file.headers[name].deterministic else _RANDOMISED
            size += max(whole - overhead * file.rows, 0) - compressed
    return size


def _chunk_sizes(parquet: OpenParquet, name: str) -> tuple[int, int]:
    """Return how many bytes a column takes in a file, and how many uncompressed."""
    leaves = dict(parquet.footer.columns)[name]
    chunks = [
        parquet.reader.metadata.row_group(group).column(leaf)
        for group in range(parquet.groups)
        for leaf in leaves
    ]
    return sum(c.total_compressed_size for c in chunks), sum(c.total_uncompressed_size for c in chunks)
