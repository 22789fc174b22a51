"""Estimate the size of the files that a plan would write, for a dry run."""

from __future__ import annotations

from collections.abc import Mapping

from kmsdata.keys.data_key import DataKey, random_bytes
from kmsdata.keys.envelope import Wrap
from kmsdata.parquet.bulk.column_batches import OpenParquet, column_batches, open_parquet
from kmsdata.parquet.bulk.column_encryptor import ColumnEncryptor, column_encryptors
from kmsdata.parquet.bulk.plan import DecryptionPlan, EncryptionPlan, FilePlan

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
    if file.row_bytes is not None:
        return file.bytes + int(_RANDOMISED * len(encryptors) * file.bytes / file.row_bytes)
    size = file.bytes
    with open_parquet(file.source) as parquet:
        for name, encryptor in encryptors.items():
            size -= _chunk_sizes(parquet, name)[0]
            for group in range(parquet.groups):
                if rows := parquet.rows(group):
                    cells = encryptor.encrypt(next(column_batches(parquet, group, name)))
                    size += cells.nbytes * rows // max(len(cells), 1)
    return size


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
