"""Encrypt, decrypt and search Ray Datasets (``pip install "kmsdata[ray]"``).

Everything is lazy. The data key is made here, with one GenerateDataKey; Ray receives headers, wrapped keys
and, for `isin`, ciphertexts. Each worker process unwraps the data key once, with its own credentials.

Example:
    >>> import pyarrow as pa, ray, kmsdata.ray
    >>> ds = ray.data.from_arrow(pa.table({"ssn": ["078-05-1120", None], "age": [36, 41]}))
    >>> enc = kmsdata.ray.encrypt(ds, "ssn", key="local://demo")
    >>> kmsdata.ray.decrypt(enc).take_all()[0]["ssn"]
    '078-05-1120'
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from kmsdata.api.parts import (
    DecryptionPlan,
    EncryptionPlan,
    decrypt_part,
    encrypt_part,
    plan_decryption,
    plan_encryption,
)
from kmsdata.errors import CallerImportError, CallerTypeError, CallerValueError
from kmsdata.frames.arguments import Columns
from kmsdata.frames.encrypted_columns import Encrypted
from kmsdata.frames.search import Search, plan_search
from kmsdata.keys.session import Key

try:
    import ray.data
    from ray.data import Dataset
except ImportError:
    raise CallerImportError('kmsdata.ray needs Ray. Run: pip install "kmsdata[ray]"') from None

__all__ = ["decrypt", "encrypt", "isin"]


def encrypt(
    ds: Dataset,
    columns: Columns = (),
    *,
    deterministic: Columns | bool = (),
    key: Key | Encrypted | None = None,
    domain: str | Mapping[str, str] | None = None,
    context: Mapping[str, str] | None = None,
) -> Dataset:
    """Encrypt columns of a dataset, when Ray executes it.

    Args:
        ds: the dataset. Its types are taken from its schema; if Ray does not know it, the first block is
            computed.
        columns: as for `kmsdata.encrypt_table`, like the next five.
        deterministic: columns whose equal values have equal cells.
        key: URI of the master key, a `kmsdata.DataKey`, which stays here, or encrypted data.
        domain: of deterministic columns.
        context: of the data key.

    Returns:
        A dataset of Arrow blocks. Headers are part of the columns' types.

    Raises:
        ValueError: the dataset is empty, so that its types are not known.
        KeyError, TypeError, UnsupportedTypeError, KeyServiceError: as for `kmsdata.encrypt_table`. Errors
            about values, and of workers, are raised when Ray executes the dataset: as Ray's
            ``RayTaskError``, which is also an instance of kmsdata's class; ``error.cause`` is the original.

    Example:
        >>> import pyarrow as pa, ray, kmsdata.ray
        >>> ds = ray.data.from_arrow(pa.table({"email": ["a@x.org", "b@x.org"], "age": [36, 29]}))
        >>> enc = kmsdata.ray.encrypt(ds, "age", deterministic="email", key="local://demo")
        >>> kmsdata.ray.isin(enc, "email", "b@x.org").count()
        1
    """
    plan = plan_encryption(
        _empty(ds),
        columns,
        deterministic=deterministic,
        key=key,
        domain=domain,
        context=context,
        processes=_processes(),
    )
    return _mapped(ds, _encrypted, plan)


def decrypt(
    ds: Dataset,
    columns: Columns | None = None,
    *,
    key: Key | Encrypted | None = None,
    context: Mapping[str, str] | None = None,
) -> Dataset:
    """Decrypt columns of a dataset, when Ray executes it.

    Args:
        ds: a dataset with encrypted columns, such as ``ray.data.read_parquet`` of files that kmsdata wrote.
        columns: name or names of encrypted columns; None: all.
        key: use only these keys: a URI, several, ``"tencent-kms://region/*"``, or encrypted data. None: keys
            of the same provider and region as the session's key here. A `kmsdata.DataKey` is refused: it
            would be sent to the workers.
        context: pairs that the authenticated context must contain.

    Raises:
        TypeError: ``key`` is a `kmsdata.DataKey`. FormatError: a named column is not encrypted. Others: see
            `encrypt`.

    Example:
        >>> import pyarrow as pa, ray, kmsdata.ray
        >>> table = kmsdata.encrypt_table(pa.table({"age": [36, 41]}), "age", key="local://demo")
        >>> sorted(row["age"] for row in kmsdata.ray.decrypt(ray.data.from_arrow(table)).take_all())
        [36, 41]
    """
    plan = plan_decryption(_empty(ds), columns, key=key, context=context, processes=_processes())
    return _mapped(ds, _decrypted, plan)


def isin(ds: Dataset, column: str, values: Any, *, key: Key | Encrypted | None = None) -> Dataset:
    """Keep the rows whose deterministic column holds one of these values, without decrypting it.

    The values are encrypted now, here. The workers compare cells and need no key.

    Args:
        ds: the dataset.
        column: name of the column.
        values: one value, or any list of values, as in `kmsdata.FrameAccessor.isin`.
        key: use only these keys.

    Returns:
        A dataset of the matching rows, still encrypted.

    Raises:
        TypeError: the column is randomised, or cannot hold such a value.
        FormatError, KeyServiceError: as in `kmsdata.FrameAccessor.isin`.

    Example:
        >>> import pyarrow as pa, ray, kmsdata.ray
        >>> table = pa.table({"email": ["a@x.org", "b@x.org"]})
        >>> enc = kmsdata.encrypt_table(table, deterministic="email", key="local://demo")
        >>> kmsdata.ray.isin(ray.data.from_arrow(enc), "email", ["b@x.org", "c@x.org"]).count()
        1
    """
    empty = _empty(ds)
    frame = (empty.select([column]) if column in empty.column_names else empty).to_pandas()
    return _mapped(ds, _matching, plan_search(frame, column, values, key=key))


# What workers run. These functions are sent by name, so that the import of kmsdata registers its Arrow type.


def _encrypted(part: pa.Table, plan: EncryptionPlan) -> pa.Table:
    return encrypt_part(_typed(part), plan)


def _decrypted(part: pa.Table, plan: DecryptionPlan) -> pa.Table:
    return decrypt_part(_typed(part), plan)


def _matching(part: pa.Table, plan: Search) -> pa.Table:
    part = _typed(part)
    return part.filter(pa.array(plan.rows(part.select([plan.column]).to_pandas()).to_numpy()))


def _mapped(ds: Dataset, function: Any, plan: object) -> Dataset:
    made = ds.map_batches(
        function, fn_kwargs={"plan": plan}, batch_format="pyarrow", batch_size=None, zero_copy_batch=True
    )
    # Otherwise Ray replaces errors of kmsdata by its own.
    made.context.raise_original_map_exception = True
    return made


def _typed(table: pa.Table) -> pa.Table:
    """Give encrypted columns their type in a table that was received before kmsdata was imported.

    Arrow keeps the name and the parameters of a type that is not registered in the metadata of the field.
    """
    if not any(b"ARROW:extension:name" in (field.metadata or {}) for field in table.schema):
        return table
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


def _empty(ds: Dataset) -> pa.Table:
    """Return a table without rows that has the columns and types of the dataset's Arrow batches."""
    if not isinstance(ds, Dataset):
        raise CallerTypeError(f"kmsdata.ray takes a ray.data.Dataset, not {type(ds).__name__}")
    known = ds.schema()
    schema = getattr(known, "base_schema", None)
    if isinstance(schema, pa.Schema):
        return _typed(schema.empty_table())
    batches = ds.limit(1).iter_batches(batch_size=1, batch_format="pyarrow") if known is not None else ()
    for batch in batches:  # pandas blocks: the types are those that Ray gives them in Arrow
        return _typed(batch.slice(0, 0))
    raise CallerValueError("the dataset is empty, so the types of its columns are not known")


def _processes() -> int:
    """Return how many worker processes may start at the same time: one for each CPU of the cluster."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))
