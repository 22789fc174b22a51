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

import warnings
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from pyarrow.fs import FileType

from kmsdata.api.parts import (
    DecryptionPlan,
    EncryptionPlan,
    decrypt_part,
    encrypt_part,
    plan_decryption,
    plan_encryption,
)
from kmsdata.errors import CallerImportError, CallerTypeError, CallerValueError, FormatError
from kmsdata.frames.arguments import Columns, column_names, require, required_names
from kmsdata.frames.arrow_storage import is_plain_binary, seen_cells
from kmsdata.frames.dtype import EncryptedArray, EncryptedDtype, EncryptedType
from kmsdata.frames.encrypted_columns import Encrypted, table_headers
from kmsdata.frames.search import Search, plan_search
from kmsdata.keys.envelope import Header
from kmsdata.keys.session import Key
from kmsdata.parquet.headers import common_headers, dataset_headers
from kmsdata.parquet.locations import Paths, Place, is_file_object, is_readable, path_list, skipped_note

try:
    import ray.data
    from ray.data import Dataset
except ImportError:
    raise CallerImportError('kmsdata.ray needs Ray. Run: pip install "kmsdata[ray]"') from None

__all__ = ["decrypt", "encrypt", "isin", "read_parquet", "union"]


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
    if (empty := _empty(ds)) is None:
        raise CallerValueError("the dataset is empty, so the types of its columns are not known")
    plan = plan_encryption(
        empty,
        columns,
        deterministic=deterministic,
        key=key,
        domain=domain,
        context=context,
        processes=_processes(),
    )
    return _mapped(ds, _encrypted, (plan, {name: empty.schema.field(name).type for name in plan.domains}))


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
    if (empty := _empty(ds)) is None:
        return _mapped(ds, _no_rows, None)
    plan = plan_decryption(empty, columns, key=key, context=context, processes=_processes())
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
    if (empty := _empty(ds)) is None:
        return _mapped(ds, _no_rows, None)
    frame = (empty.select([column]) if column in empty.column_names else empty).to_pandas()
    search = plan_search(frame, column, values, key=key)
    return _mapped(ds, _matching, (search, table_headers(empty.schema, [column])[column]))


def union(ds: Dataset, *others: Dataset) -> Dataset:
    """Concatenate datasets that were encrypted separately, and so under several data keys.

    ``Dataset.union`` leaves each block with its own header. Ray cannot then sort, shuffle or repartition
    them, since Arrow does not concatenate columns of several types. Here all blocks receive one common
    header. No KMS call is made.

    Args:
        ds: a dataset.
        *others: datasets with the same columns. Those without rows are left out if Ray does not know their
            types.

    Raises:
        FormatError: a column is not encrypted in all of them, or was encrypted differently.

    Example:
        >>> import pyarrow as pa, ray, kmsdata.ray
        >>> days = [ray.data.from_arrow(pa.table({"n": [day], "ssn": ["078-05-1120"]})) for day in (2, 1)]
        >>> one, two = (kmsdata.ray.encrypt(day, "ssn", key="local://demo") for day in days)
        >>> both = kmsdata.ray.union(one, two).sort("n")
        >>> kmsdata.ray.decrypt(both).take_all()[0]
        {'n': 1, 'ssn': '078-05-1120'}
    """
    known = [(one, empty) for one in (ds, *others) if (empty := _empty(one)) is not None]
    every = [table_headers(empty.schema) for _, empty in known]
    united: dict[str, Header] = {}
    for number, headers in enumerate(every):
        for name in headers.keys() ^ every[0].keys():
            raise FormatError(
                f"column {name!r} is encrypted in some of the datasets only. Decrypt it, or encrypt all",
                column=name,
            )
        for name, header in headers.items():
            both = united.get(name, header).union(header)
            if both is None:
                raise FormatError(
                    f"column {name!r} was encrypted differently in dataset {number} of this call (from 0). "
                    "Decrypt it first",
                    column=name,
                )
            united[name] = both
    some = [_mapped(one, _under, united) for one, _ in known]
    return some[0].union(*some[1:]) if some else ds


def read_parquet(
    path: Paths,
    *,
    columns: Columns | None = None,
    filesystem: Any = None,
    encrypted: Columns | None = None,
    **options: Any,
) -> Dataset:
    """Read a Parquet file or dataset; its encrypted columns stay encrypted, and no key is needed.

    The footers are read now. Unlike ``ray.data.read_parquet``, this reads files under several data keys,
    gives all blocks one common header, and finds headers that other software left only in the file's
    metadata.

    Args:
        path: file, folder of a dataset, pattern such as ``data/*.parquet``, or list of these. Workers of
            other machines must be able to read them.
        columns: name or names of the columns to read; None for all. Name them here: Ray reads columns that
            are dropped later.
        filesystem: pyarrow filesystem; None: inferred from the path. It is sent to the workers.
        encrypted: name or names of columns that must be encrypted.
        **options: as in ``ray.data.read_parquet``.

    Raises:
        FormatError: a header is malformed, a column of ``encrypted`` is not encrypted, or the files have
            other columns or types.

    Example:
        >>> import pandas as pd, ray, kmsdata.ray
        >>> for day in (1, 2):
        ...     df = pd.DataFrame({"day": [day], "ssn": ["078-05-1120"]})
        ...     df.kms.encrypt("ssn", key="local://demo").kms.to_parquet(f"day{day}.parquet")
        >>> ds = kmsdata.ray.read_parquet("day*.parquet", encrypted="ssn").sort("day", descending=True)
        >>> kmsdata.ray.decrypt(ds).take_all()[0]
        {'day': 2, 'ssn': '078-05-1120'}
    """
    if is_file_object(path) or not is_readable(path):
        raise CallerTypeError("read_parquet() of kmsdata.ray takes a path: workers cannot read an open file")
    if "schema" in options:
        raise CallerValueError("schema= comes from the files. Leave it out")
    wanted = None if columns is None else column_names(columns)
    skipped: list[str] = []
    files = dataset_headers(path, filesystem, None, skipped)
    for note in skipped_note(skipped):
        warnings.warn(note, stacklevel=2)
    headers = common_headers(files, required_names(encrypted))
    first = next(iter(files.values()))
    # Arrow does not cast between the types of several data keys, but to what cells are stored as.
    fields = [
        pa.field(field.name, pa.large_binary() if field.name in headers else field.type)
        for field in first.schema
    ]
    for name in wanted or ():
        require([*first.schema.names, *(field.name for field in first.partition)], name)
    place = Place.of(path_list(path)[0], filesystem)
    paths = [file.fragment.path for file in files.values()]
    # Ray (2.60) may fail for several paths where aiohttp is not installed: its threads import it together.
    if len(path_list(path)) == 1 and place.kind != FileType.NotFound and not skipped:
        paths = [place.path]
    ds = ray.data.read_parquet(
        paths,
        filesystem=filesystem if place.local else place.filesystem,
        schema=pa.schema(fields),
        **options,
    )
    if wanted is not None:
        ds = ds.select_columns(wanted)
    return _mapped(ds, _under, {n: h for n, h in headers.items() if wanted is None or n in wanted})


# What workers run. These functions are sent by name, so that the import of kmsdata registers its Arrow type.


def _encrypted(part: pa.Table, plan: tuple[EncryptionPlan, Mapping[str, pa.DataType]]) -> pa.Table:
    part = _typed(part)
    for name, planned in plan[1].items():
        if (position := part.schema.get_field_index(name)) < 0:
            continue
        field = part.schema.field(position)
        if field.type == planned:
            continue
        if part.column(position).null_count < len(part):
            raise CallerValueError(
                f"column {name!r}: a block has the type {field.type}, but {planned} was planned, since the "
                "dataset's schema has it. All blocks need one type: cast the column first, with map_batches()"
            )
        # Ray cannot know the type of a block without values, and gives it the type null.
        part = part.set_column(position, field.with_type(planned), pa.nulls(len(part), planned))
    return encrypt_part(part, plan[0])


def _decrypted(part: pa.Table, plan: DecryptionPlan) -> pa.Table:
    return decrypt_part(_typed(part), plan)


def _matching(part: pa.Table, plan: tuple[Search, Header]) -> pa.Table:
    search, header = plan
    part = _typed(part)
    _check_headers(part, {search.column: header})
    return part.filter(pa.array(search.rows(part.select([search.column]).to_pandas()).to_numpy()))


def _no_rows(part: pa.Table, plan: None) -> pa.Table:  # noqa: ARG001 - as _mapped passes it
    if len(part):
        raise CallerValueError(
            "the dataset had no rows when this was planned, but has some now: Ray gave other results when it "
            "executed the dataset again. Call materialize() first"
        )
    return part


def _under(part: pa.Table, plan: Mapping[str, Header]) -> pa.Table:
    """Give the encrypted columns of a block the common headers. Cells of other keys fail in decryption."""
    part = _typed(part)
    _check_headers(part, plan)
    for name, header in plan.items():
        column = part.column(name)
        stored = isinstance(column.type, EncryptedType) or (
            is_plain_binary(column.type) and seen_cells(column.chunks, name) is not None
        )
        if not stored:  # a file may have been replaced after its footer was read
            raise FormatError(f"column {name!r} is not encrypted in a block. Encrypt it first", column=name)
        cells = EncryptedArray(column, EncryptedDtype(header)).__arrow_array__()
        field = part.schema.field(name).with_type(cells.type).remove_metadata()
        part = part.set_column(part.schema.get_field_index(name), field, cells)
    return part


def _check_headers(part: pa.Table, planned: Mapping[str, Header]) -> None:
    for name, header in table_headers(part.schema, list(planned)).items():
        if not set(header.columns) <= set(planned[name].columns):
            raise CallerValueError(
                f"column {name!r}: a block has another data key than the dataset's schema says, as after "
                "Dataset.union(). Unite the datasets with kmsdata.ray.union(), or read the files with "
                "kmsdata.ray.read_parquet()"
            )


def _mapped(ds: Dataset, function: Any, plan: object) -> Dataset:
    made = ds.map_batches(
        function, fn_kwargs={"plan": plan}, batch_format="pyarrow", batch_size=None, zero_copy_batch=True
    )
    # Otherwise Ray replaces errors of kmsdata by its own. The context is shared with the caller's dataset.
    made = Dataset.copy(made, _deep_copy=True)
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


def _empty(ds: Dataset) -> pa.Table | None:
    """Return a table without rows that has the columns and types of the dataset's Arrow batches.

    None: Ray does not know them, and the dataset has no rows.
    """
    if not isinstance(ds, Dataset):
        raise CallerTypeError(f"kmsdata.ray takes a ray.data.Dataset, not {type(ds).__name__}")
    known = ds.schema()
    schema = getattr(known, "base_schema", None)
    if isinstance(schema, pa.Schema):
        return _typed(schema.empty_table())
    batches = ds.limit(1).iter_batches(batch_size=1, batch_format="pyarrow") if known is not None else ()
    for batch in batches:  # pandas blocks: the types are those that Ray gives them in Arrow
        return _typed(batch.slice(0, 0))
    return None


def _processes() -> int:
    """Return how many worker processes may start at the same time: one for each CPU of the cluster."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))
