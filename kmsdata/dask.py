"""Dask DataFrames with encrypted columns: ``ddf.kms`` and ``series.kms``, as for pandas.

``import kmsdata.dask`` registers them. Nothing is computed before Dask computes it, except in ``to_parquet``
and ``verify``. The client makes one data key for all partitions, with one KMS call. The graph contains only
headers, wrapped keys and, for ``isin``, ciphertexts: each worker process unwraps the data key once, with its
own credentials.

Example:
    >>> import pandas as pd, dask.dataframe as dd, kmsdata.dask
    >>> ddf = dd.from_pandas(pd.DataFrame({"ssn": ["078-05-1120", None], "age": [36, 41]}), npartitions=2)
    >>> enc = ddf.kms.encrypt("ssn", key="local://demo")
    >>> enc.kms.to_parquet("people")
    >>> kmsdata.dask.read_parquet("people").kms.decrypt().compute()["ssn"].tolist()
    ['078-05-1120', nan]
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pandas as pd
import pyarrow as pa
import pyarrow.fs as pafs
from pandas.api.types import is_object_dtype

from kmsdata.api.attach import attach_to_frame, originals
from kmsdata.api.inspection import inspect
from kmsdata.api.parts import (
    DecryptionPlan,
    decrypt_part,
    encrypt_part,
    plan_decryption,
    plan_encryption,
    worker_key,
)
from kmsdata.api.verify import verify
from kmsdata.atomic_files import sweep
from kmsdata.display.inspection import Inspection
from kmsdata.display.verification import ColumnCheck, Verification
from kmsdata.errors import (
    CallerFileExistsError,
    CallerImportError,
    CallerTypeError,
    CallerValueError,
    FormatError,
    UnsupportedTypeError,
)
from kmsdata.frames.arguments import (
    Chooser,
    Columns,
    chosen_columns,
    chosen_names,
    column_names,
    matching_names,
    require,
    required_names,
)
from kmsdata.frames.dtype import EncryptedArray, EncryptedDtype
from kmsdata.frames.encrypted_columns import Encrypted, encrypted_columns, parsed_headers
from kmsdata.frames.metadata.pandas_entry import pandas_dtypes
from kmsdata.frames.search import Search, plan_search
from kmsdata.keys.session import Key
from kmsdata.parquet.headers import DataFile, common_headers, dataset_headers
from kmsdata.parquet.locations import (
    FilePath,
    Paths,
    Place,
    files_at,
    is_file_object,
    is_readable,
    path_list,
    skipped_note,
    staged_folder,
)
from kmsdata.parquet.read import empty_frame, read_file
from kmsdata.parquet.write import write_parquet

try:
    import dask
    import dask.dataframe as dd
    from dask.dataframe.dask_expr._collection import new_collection
    from dask.dataframe.dask_expr._expr import ArrowStringConversion, Projection, ToFrame
    from dask.dataframe.extensions import (
        make_array_nonempty,
        register_dataframe_accessor,
        register_series_accessor,
    )
    from dask.dataframe.utils import UNKNOWN_CATEGORIES, clear_known_categories
    from dask.tokenize import normalize_token
except ImportError as _error:
    raise CallerImportError(
        "kmsdata.dask needs dask.dataframe, which is not installed. Install it with: "
        'pip install "kmsdata[dask]"'
    ) from _error

__all__ = ["FrameAccessor", "SeriesAccessor", "read_parquet"]

_BYTES_OF_PARTITION = 128 << 20  # in memory, about what Dask recommends for a partition
_WORST = ("failed", "missing", "not encrypted", "not verified", "authentic")

DaskKey: TypeAlias = "Key | Encrypted | dd.DataFrame | dd.Series"


@make_array_nonempty.register(EncryptedDtype)  # type: ignore[untyped-decorator]
def _nonempty(dtype: EncryptedDtype) -> EncryptedArray:
    # Dask tries operations on such columns to find the types of their results.
    return EncryptedArray(pa.nulls(2, pa.large_binary()), dtype)


# Dask names tasks by their arguments, and takes tasks of one name for the same. By default it looks only at
# the names of dtypes, which are equal for columns under two data keys.
@normalize_token.register(EncryptedDtype)  # type: ignore[untyped-decorator]
def _token_of_dtype(dtype: EncryptedDtype) -> tuple[str, str]:
    return "kmsdata.EncryptedDtype", dtype.text


@normalize_token.register(EncryptedArray)  # type: ignore[untyped-decorator]
def _token_of_array(array: EncryptedArray) -> tuple[str, ...]:
    # Dask's token of an Arrow array is the same for all its slices. A batch that is written has one slice.
    cells = pa.RecordBatch.from_arrays([array.storage], ["cells"]).serialize()
    return "kmsdata.EncryptedArray", array.dtype.text, hashlib.sha256(cells).hexdigest()


@register_dataframe_accessor("kms")
class FrameAccessor:
    """Encrypt, decrypt, search and save the columns of a Dask DataFrame: ``ddf.kms``.

    Example:
        >>> import pandas as pd, dask.dataframe as dd, kmsdata.dask
        >>> ddf = dd.from_pandas(pd.DataFrame({"age": [36, 41], "city": ["Ulm", "Bonn"]}), npartitions=2)
        >>> ddf.kms.encrypt("age", key="local://demo").kms
        <ddf.kms: encrypted: 'age'>
    """

    def __init__(self, frame: dd.DataFrame) -> None:
        self._frame = frame

    def __repr__(self) -> str:
        return f"<ddf.kms: encrypted: {', '.join(map(repr, self.encrypted)) or 'no column'}>"

    def encrypt(
        self,
        columns: Columns | Chooser = (),
        *,
        regex: str | None = None,
        deterministic: Columns | Chooser | bool = (),
        key: DaskKey | None = None,
        domain: str | Mapping[str, str] | None = None,
        context: Mapping[str, str] | None = None,
    ) -> dd.DataFrame:
        """Encrypt columns of all partitions under one data key; only the KMS call is made now.

        Args:
            columns: as in `kmsdata.FrameAccessor.encrypt`, like the other arguments.
            regex: instead of ``columns``: encrypt the columns in whose names it is found.
            deterministic: columns whose equal values have equal cells.
            key: URI of a master key, or several; a `DataKey`; or encrypted data, also of Dask, whose data key
                to use.
            domain: deterministic columns can be joined if they have the same domain.
            context: pairs that are stored unencrypted with the wrapped key.

        Returns:
            A Dask DataFrame with these columns encrypted. Each is decrypted to the dtype that it has in the
            source, also where Dask's ``dataframe.convert-string`` would convert it to ``string``.

        Raises:
            UnsupportedTypeError: a categorical column has unknown categories.
            KeyError, TypeError, ValueError, KeyServiceError: as in pandas. Errors about values are raised
                when Dask computes.

        Example:
            >>> import pandas as pd, dask.dataframe as dd, kmsdata.dask
            >>> ddf = dd.from_pandas(pd.DataFrame({"age": [36, 41]}), npartitions=2)
            >>> enc = ddf.kms.encrypt("age", key="local://demo")
            >>> enc.dtypes["age"], enc.kms.decrypt().compute()["age"].tolist()
            (encrypted[int64], [36, 41])
        """
        names = self._frame.columns
        if regex is not None:
            if callable(columns) or column_names(columns):
                raise CallerValueError("columns and regex= were both passed. Pass one of them")
            columns = matching_names(names, regex)
        columns = chosen_names(names, columns, "columns")
        if not isinstance(deterministic, bool):
            deterministic = column_names(chosen_names(names, deterministic, "deterministic="))
        return _encrypted(self._frame, column_names(columns), deterministic, key, domain, context)

    def decrypt(
        self,
        columns: Columns | None = None,
        *,
        key: DaskKey | None = None,
        context: Mapping[str, str] | None = None,
        on_denied: Literal["raise", "keep"] = "raise",
    ) -> dd.DataFrame:
        """Decrypt columns, when Dask computes; each worker process unwraps the data key once.

        Args:
            columns: name or names of encrypted columns; None: every encrypted column and index level.
            key: use only these keys: a URI, several, ``"tencent-kms://region/*"``, or encrypted data whose
                data key to use. None: keys of the same provider and region as the session's key here, also on
                workers that have another session. A `DataKey` is refused: it would be sent to the workers.
            context: pairs that the authenticated context must contain.
            on_denied: ``"keep"`` leaves a column encrypted if its key is refused here, on the client, or does
                not exist. This needs a KMS call now.

        Returns:
            A Dask DataFrame with the original values and dtypes. Categories are unknown to Dask until it
            computes: they are encrypted.

        Raises:
            TypeError: ``key`` is a `DataKey`.
            FormatError: a named column is not encrypted. Other errors are raised when Dask computes.

        Example:
            >>> import pandas as pd, dask.dataframe as dd, kmsdata.dask
            >>> ddf = dd.from_pandas(pd.DataFrame({"age": [36, 41]}), npartitions=2)
            >>> ddf.kms.encrypt("age", key="local://demo").kms.decrypt().compute()["age"].tolist()
            [36, 41]
        """
        if on_denied not in ("raise", "keep"):
            raise CallerValueError("on_denied= must be 'raise' or 'keep'")
        return _decrypted(self._frame, columns, key, context, keep=on_denied == "keep")

    def isin(self, column: str, values: Any, *, key: DaskKey | None = None) -> dd.Series:
        """Find the rows of a deterministic column that hold one of these values, without decrypting it.

        The values are encrypted now, on the client. The workers compare cells and need no key.

        Args:
            column: name of the column, or of an encrypted index level.
            values: one value, or any list of values, as in `kmsdata.FrameAccessor.isin`.
            key: use only these keys. It may be a `DataKey`, which stays on the client.

        Returns:
            A Dask Series of bool with the frame's index.

        Raises:
            TypeError: the column is randomised, or cannot hold such a value.
            FormatError, KeyServiceError: as in `kmsdata.FrameAccessor.isin`.

        Example:
            >>> import pandas as pd, dask.dataframe as dd, kmsdata.dask
            >>> ddf = dd.from_pandas(pd.DataFrame({"email": ["a@x.org", "b@x.org"]}), npartitions=2)
            >>> enc = ddf.kms.encrypt(deterministic="email", key="local://demo")
            >>> len(enc[enc.kms.isin("email", "b@x.org")])
            1
        """
        search = plan_search(self._frame._meta, column, values, key=_pandas(key))
        meta = pd.Series(False, index=self._frame._meta.index, name=column, dtype=bool)
        return self._frame.map_partitions(
            _found, search, meta=meta, enforce_metadata=False, token=_named("kmsisin", [column])
        )

    def attach(
        self,
        like: DaskKey | FilePath | Iterable[Encrypted | FilePath],
        columns: Columns | Mapping[str, str] | None = None,
    ) -> dd.DataFrame:
        """Attach headers to cells that lost them on a way through other software; no KMS call is made.

        Args:
            like: what still has the headers: a file, a dataset, a pandas frame, an Arrow table, or a list. A
                Dask DataFrame is refused: save it first, since the key ids of its cells are needed.
            columns: name or names of the columns, or a mapping ``{name here: name there}``; None: every
                column of bytes or text whose name ``like`` has.

        Raises:
            FormatError, KeyError, ValueError: as in `kmsdata.attach`. Errors about values are raised when
                Dask computes.

        Example:
            >>> import pandas as pd, dask.dataframe as dd, kmsdata.dask
            >>> enc = pd.DataFrame({"age": [36, 41]}).kms.encrypt("age", key="local://demo")
            >>> enc.to_csv("ages.csv", index=False)
            >>> dd.read_csv("ages.csv").kms.attach(enc).kms.decrypt().compute()["age"].tolist()
            [36, 41]
        """
        if isinstance(like, (dd.DataFrame, dd.Series)):
            raise CallerTypeError(
                "like is a Dask DataFrame. Pass the files that it was read from, or save it first "
                "(ddf.kms.to_parquet) and pass the path: the key ids of its cells are needed"
            )
        meta = self._frame._meta
        there = originals(like, None)
        if columns is None:
            known = {item.name for item in encrypted_columns(meta)}
            # Bytes, text and categories are of this kind. What they contain is known only to the workers.
            names = {
                label: label
                for label in meta.columns
                if label in there and label not in known and meta[label].dtype.kind == "O"
            }
            if not names and known:
                return self._frame
        elif isinstance(columns, Mapping):
            names = dict(columns)
        else:
            names = {name: name for name in column_names(columns)}
        made = attach_to_frame(_of_nulls(meta, names), there, names).iloc[:0]
        out = meta.assign(**{name: made[name] for name in names})
        return self._frame.map_partitions(
            attach_to_frame, there, names, meta=out, enforce_metadata=False, token=_named("kmsattach", names)
        )

    @property
    def encrypted(self) -> list[Any]:
        """Names of the encrypted columns, then of the encrypted index levels.

        Where Dask concatenated cells with plain values, it shows a column of objects, which is not listed:
        what its partitions contain is not known before they are computed.
        """
        return [item.name for item in encrypted_columns(self._frame._meta)]

    def inspect(self) -> Inspection:
        """Describe what is encrypted, how, and by which master keys. Needs no key and computes nothing.

        Rows, nulls and sizes are therefore not counted.

        Example:
            >>> import pandas as pd, dask.dataframe as dd, kmsdata.dask
            >>> ddf = dd.from_pandas(pd.DataFrame({"age": [36, 41]}), npartitions=2)
            >>> ddf.kms.encrypt("age", key="local://demo").kms.inspect().data_keys[0].keys
            ('local://demo',)
        """
        found = inspect(self._frame._meta)
        count = self._frame.npartitions
        return replace(
            found,
            what=f"Dask frame of {count:,} partition{'' if count == 1 else 's'}",
            rows=None,
            bytes=None,
            columns=tuple(replace(column, bytes=None, nulls=None) for column in found.columns),
        )

    def verify(
        self,
        *,
        encrypted: Columns | None = None,
        key: DaskKey | None = None,
        context: Mapping[str, str] | None = None,
    ) -> Verification:
        """Authenticate every cell of all partitions now, on the workers. No plaintext is returned or kept.

        Args:
            encrypted: name or names of columns that must be encrypted.
            key: use only these keys, as in `decrypt`.
            context: pairs that the authenticated context must contain.

        Returns:
            A report as of `kmsdata.verify`; its failures name partitions, as ``partition 3``, and rows in
            them.

        Example:
            >>> import pandas as pd, dask.dataframe as dd, kmsdata.dask
            >>> ddf = dd.from_pandas(pd.DataFrame({"age": [36, 41]}), npartitions=2)
            >>> found = ddf.kms.encrypt("age", key="local://demo").kms.verify(encrypted="age")
            >>> found.ok, found.rows, found.columns[0].cells
            (True, 2, 2)
        """
        plan = plan_decryption(
            self._frame._meta, key=_pandas(key), context=context, processes=_processes(self._frame)
        )
        names = required_names(encrypted) or None
        reports = self._frame.map_partitions(
            _verified,
            plan,
            names,
            context,
            meta=_ANYTHING,
            enforce_metadata=False,
            token=_named("kmsverify"),
        )
        return _united(list(reports.compute()))

    def to_parquet(
        self,
        path: FilePath,
        *,
        overwrite: bool = False,
        index: bool | None = None,
        filesystem: Any = None,
        encrypted: Columns | None = None,
        engine: str = "pyarrow",
        **pyarrow_options: Any,
    ) -> None:
        """Compute the frame now and write each partition to a file of a folder, ``part-00000.parquet``.

        The files are those that ``df.kms.to_parquet`` writes. On a local or shared filesystem the folder
        appears when all files are complete: nothing of a failed or stopped write is visible. In an object
        store each file appears when it is complete, and those of a failed write are removed.

        Args:
            path: the folder. It must not exist or contain no files, unless ``overwrite`` is True. Workers of
                other machines must be able to write to it.
            overwrite: replace a folder, after the new files are complete. Only for local and shared
                filesystems, and for folders that contain Parquet files only.
            index: whether to store the index. None: as in pandas; a RangeIndex is not stored as a column, and
                what a filter leaves of it is dropped.
            filesystem: pyarrow or fsspec filesystem; None: inferred from the path. It is sent to the workers.
            encrypted: name or names of columns that must be encrypted; otherwise nothing is written.
            engine: only ``"pyarrow"`` (or ``"auto"``).
            **pyarrow_options: as in `pyarrow.parquet.write_table`.

        Raises:
            ValueError: nothing in the frame is encrypted; another engine; ``partition_cols``.
            FileExistsError: the folder contains files.
            FormatError: a column of ``encrypted`` is not encrypted, or a label differs from the name that the
                column was encrypted under.
            TypeError: a column of objects has another Arrow type in some partitions.

        Example:
            >>> import pandas as pd, dask.dataframe as dd, kmsdata.dask
            >>> ddf = dd.from_pandas(pd.DataFrame({"age": [36, 41]}), npartitions=2)
            >>> ddf.kms.encrypt("age", key="local://demo").kms.to_parquet("ages")
            >>> kmsdata.read_parquet("ages", decrypt=True)["age"].tolist()
            [36, 41]
        """
        meta = self._frame._meta
        if "partition_cols" in pyarrow_options:
            raise CallerValueError(
                "partition_cols= is for pandas: with Dask, each partition is one file. Leave it out"
            )
        required = required_names(encrypted) or None  # a generator can be used only once
        options = {"engine": engine, "encrypted": required, **pyarrow_options}
        # Without rows, into memory: this checks everything that the types decide.
        write_parquet(meta, io.BytesIO(), index=index, **options)
        counted = isinstance(meta.index, pd.RangeIndex) and meta.index.name is None
        if index is None and not counted:
            index = True  # pandas would not store it in those partitions where it happens to be a RangeIndex
        count = self._frame.npartitions
        names = [_file_name(number, count) for number in range(count)]
        with _folder(Place.of(path, filesystem), path, filesystem, names, overwrite=overwrite) as folder:
            written = self._frame.map_partitions(
                _write_part, folder, count, index, options,
                meta=_ANYTHING, enforce_metadata=False, token=_named("kmstoparquet"),
            )  # fmt: skip
            _check_alike(list(written.compute()))


@register_series_accessor("kms")
class SeriesAccessor:
    """Encrypt, decrypt and search one column of Dask: ``series.kms``.

    Example:
        >>> import pandas as pd, dask.dataframe as dd, kmsdata.dask
        >>> ages = dd.from_pandas(pd.Series([36, 41], name="age"), npartitions=2)
        >>> ages.kms.encrypt(key="local://demo").kms.decrypt().compute().tolist()
        [36, 41]
    """

    def __init__(self, series: dd.Series) -> None:
        self._series = series

    def __repr__(self) -> str:
        return f"<series.kms: {self._series.name!r} is {self._series.dtype}>"

    def encrypt(
        self,
        *,
        deterministic: bool = False,
        key: DaskKey | None = None,
        domain: str | None = None,
        context: Mapping[str, str] | None = None,
    ) -> dd.Series:
        """Encrypt the series, which must have a name. See `FrameAccessor.encrypt`."""
        name = self._series.name
        if not isinstance(name, str):
            raise CallerTypeError(
                "the series needs a name that is text: its key is derived from the name. Call series.rename()"
            )
        return _encrypted(self._series.to_frame(), [name], deterministic, key, domain, context)[name]

    def decrypt(self, *, key: DaskKey | None = None, context: Mapping[str, str] | None = None) -> dd.Series:
        """Decrypt the series, and its index if that is encrypted. See `FrameAccessor.decrypt`."""
        frame = self._series.to_frame()
        # With nothing encrypted, the column is named, so that the error says that it has no header.
        columns = None if encrypted_columns(frame._meta) else list(frame.columns)
        out = _decrypted(frame, columns, key, context)
        return out[out.columns[0]].rename(self._series.name)

    def isin(self, values: Any, *, key: DaskKey | None = None) -> dd.Series:
        """Find the rows that hold one of these values, without decryption. See `FrameAccessor.isin`.

        Example:
            >>> import pandas as pd, dask.dataframe as dd, kmsdata.dask
            >>> ages = dd.from_pandas(pd.Series([36, 41], name="age"), npartitions=2)
            >>> enc = ages.kms.encrypt(deterministic=True, key="local://demo")
            >>> enc.kms.isin([41, 50]).compute().tolist()
            [False, True]
        """
        frame = self._series.to_frame()
        return FrameAccessor(frame).isin(frame.columns[0], values, key=key).rename(self._series.name)


def read_parquet(
    path: Paths,
    *,
    columns: Columns | None = None,
    filesystem: Any = None,
    encrypted: Columns | None = None,
) -> dd.DataFrame:
    """Read a Parquet file or dataset; its encrypted columns stay encrypted, and no key is needed.

    The footers are read now. Unlike ``dask.dataframe.read_parquet``, this reads files whose headers differ,
    such as files under several data keys, finds headers that other software left only in the file's metadata,
    and returns the dtypes of pandas, not converted by ``dataframe.convert-string``.

    Args:
        path: file, folder of a dataset, pattern such as ``data/*.parquet``, or list of these. Workers of
            other machines must be able to read them.
        columns: name or names of the columns to read; None for all. Dask reads only those that it needs.
        filesystem: pyarrow or fsspec filesystem; None: inferred from the path. It is sent to the workers.
        encrypted: name or names of columns that must be encrypted.

    Returns:
        A Dask DataFrame with one partition for each file, or for each 128 MiB of a larger file's row groups.

    Raises:
        FormatError: a header is malformed, a column of ``encrypted`` is not encrypted, or the files have
            other columns or types.

    Example:
        >>> import pandas as pd, kmsdata.dask
        >>> enc = pd.DataFrame({"age": [36, 41]}).kms.encrypt("age", key="local://demo")
        >>> enc.kms.to_parquet("ages.parquet")
        >>> kmsdata.dask.read_parquet("ages.parquet", encrypted="age").kms.decrypt().compute()["age"].tolist()
        [36, 41]
    """
    if is_file_object(path) or not is_readable(path):
        raise CallerTypeError("read_parquet() of kmsdata.dask takes a path: workers cannot read an open file")
    wanted = None if columns is None else column_names(columns)
    asked = required_names(encrypted)
    skipped: list[str] = []
    files = dataset_headers(path, filesystem, None, skipped)
    for note in skipped_note(skipped):
        warnings.warn(note, stacklevel=2)
    dtypes = {name: EncryptedDtype(header) for name, header in common_headers(files, asked).items()}
    meta = _as(empty_frame(next(iter(files.values())), wanted), dtypes)
    _check_dtypes(files, meta, wanted)
    if categories := [label for label in meta.columns if _is_categorical(meta[label])]:
        meta = clear_known_categories(meta, cols=categories)
    url = str(path_list(path)[0]) if filesystem is None else ""
    parts = [part for file in files.values() for part in _parts(file, url, filesystem)]
    with dask.config.set({"dataframe.convert-string": False}):
        return dd.from_map(
            _read_part,
            parts,
            dtypes=dtypes,
            columns=wanted,
            meta=meta,
            label="kmsread",
            enforce_metadata=False,
        )


# --- what the methods do --------------------------------------------------------------------------

_ANYTHING = pd.Series([], dtype=object)


def _encrypted(
    frame: dd.DataFrame,
    columns: list[str],
    deterministic: list[str] | bool,
    key: DaskKey | None,
    domain: str | Mapping[str, str] | None,
    context: Mapping[str, str] | None,
) -> dd.DataFrame:
    source = _before_conversion(frame)
    meta = source._meta
    chosen = chosen_columns(meta.columns, columns, deterministic, domain, list(meta.index.names))
    for name in chosen:
        if _is_categorical(meta[name]) and UNKNOWN_CATEGORIES in meta[name].cat.categories:
            raise UnsupportedTypeError(
                f"column {name!r} has unknown categories: its header must contain them, equal for all "
                f"partitions. Call ddf.categorize({name!r}) first, or convert the column to the type of its "
                "values",
                column=name,
                dtype="category",
            )
    plan = plan_encryption(
        meta,
        columns,
        deterministic=deterministic,
        key=_pandas(key),
        domain=domain,
        context=context,
        processes=_processes(source),
    )
    out = source.map_partitions(
        encrypt_part, plan, meta=plan.like, enforce_metadata=False, token=_named("kmsencrypt", chosen)
    )
    return out if source is frame else new_collection(ArrowStringConversion(out.expr))


def _before_conversion(frame: dd.DataFrame) -> dd.DataFrame:
    """Return a frame as its source gives it, before ``dataframe.convert-string`` converts text and objects.

    Only for a frame that comes directly from its source: operations may rely on the dtype ``string``.
    """
    expr = frame.expr.simplify()
    source = _unconverted(expr)
    return frame if source is expr else new_collection(source)


def _unconverted(expr: Any) -> Any:
    if isinstance(expr, ArrowStringConversion):
        return expr.frame
    if "pyarrow_strings_enabled" in expr._parameters and expr.operand("pyarrow_strings_enabled"):
        return expr.substitute_parameters({"pyarrow_strings_enabled": False})
    if isinstance(expr, (Projection, ToFrame)) and (source := _unconverted(expr.frame)) is not expr.frame:
        return expr.substitute_parameters({"frame": source})
    return expr


def _decrypted(
    frame: dd.DataFrame,
    columns: Columns | None,
    key: DaskKey | None,
    context: Mapping[str, str] | None,
    *,
    keep: bool = False,
) -> dd.DataFrame:
    meta = frame._meta
    columns = None if columns is None else column_names(columns)
    plan = plan_decryption(meta, columns, key=_pandas(key), context=context, processes=_processes(frame))
    if keep:
        before = [
            str(item.name) for item in encrypted_columns(meta) if columns is None or item.name in columns
        ]
        pinned = worker_key(plan, parsed_headers(meta))
        rest = meta.kms.decrypt(
            before,
            key=pinned,
            context=context,
            on_denied="keep",
            progress=False,
        )
        kept = {item.name for item in encrypted_columns(rest)}
        columns = [name for name in before if name not in kept]
        plan = plan_decryption(meta, columns, key=_pandas(key), context=context, processes=_processes(frame))
    like = plan.like
    shown = [item.name for item in encrypted_columns(meta)] if columns is None else list(columns)
    if categories := [name for name in shown if name in like and _is_categorical(like[name])]:
        like = clear_known_categories(like, cols=categories)
    objects = [
        position
        for position, (before, after) in enumerate(zip(meta.dtypes, plan.like.dtypes, strict=True))
        if isinstance(before, EncryptedDtype) and is_object_dtype(after)
    ]
    return frame.map_partitions(
        _decrypted_part, plan, objects, meta=like, enforce_metadata=False, token=_named("kmsdecrypt", shown)
    )


def _decrypted_part(part: pd.DataFrame, plan: DecryptionPlan, objects: list[int]) -> pd.DataFrame:
    out = decrypt_part(part, plan)
    # A column that was encrypted from several dtypes is of objects, but a part may have cells of one only.
    for position in objects:
        out.isetitem(position, out.iloc[:, position].astype(object))
    return out


def _is_categorical(series: pd.Series[Any]) -> bool:
    return isinstance(series.dtype, pd.CategoricalDtype)


def _pandas(key: DaskKey | None) -> Key | Encrypted | None:
    """Return the pandas data without rows for a Dask frame: it has the headers and wrapped keys."""
    return key._meta if isinstance(key, (dd.DataFrame, dd.Series)) else key


def _processes(frame: dd.DataFrame) -> int:
    """Return how many processes may compute partitions at the same time."""
    distributed = sys.modules.get("distributed")
    workers = 0
    if distributed is not None:
        with contextlib.suppress(ValueError):  # there is no client
            workers = len(distributed.default_client().nthreads())
    return min(frame.npartitions, workers or dask.system.CPU_COUNT)


def _named(task: str, columns: Iterable[Any] = ()) -> str:
    """Return a name for tasks. Dask's dashboard shows it up to a part that is not only alphabetic."""
    return "-".join([task, *(name for name in columns if isinstance(name, str) and name.isalpha())])


def _found(part: pd.DataFrame, search: Search) -> pd.Series[bool]:
    return search.rows(part)


def _of_nulls(meta: pd.DataFrame, names: Iterable[str]) -> pd.DataFrame:
    for name in names:
        require(meta.columns, name)
    return pd.DataFrame({name: pd.Series([None], dtype=object) for name in names})


def _verified(part: pd.DataFrame, plan: DecryptionPlan, encrypted: Any, context: Any) -> pd.Series[Any]:
    key = worker_key(plan, parsed_headers(part))
    found = verify(part, encrypted=encrypted, key=key, context=context, progress=False)
    return pd.Series([found], dtype=object)


def _united(reports: list[Verification]) -> Verification:
    """Return one report on all partitions."""
    columns: dict[str, ColumnCheck] = {}
    for report in reports:
        for one in report.columns:
            if (seen := columns.get(one.name)) is not None:
                one = ColumnCheck(
                    one.name,
                    min(seen.state, one.state, key=_WORST.index),
                    seen.algorithm or one.algorithm,
                    seen.cells + one.cells,
                    seen.nulls + one.nulls,
                    seen.bad + one.bad,
                )
            columns[one.name] = one
    failures = [
        replace(failure, file=f"partition {number}")
        for number, report in enumerate(reports)
        for failure in report.failures
    ]
    count = len(reports)
    what = f"Dask frame of {count:,} partition{'' if count == 1 else 's'}"
    return Verification(
        what, sum(report.rows for report in reports), tuple(columns.values()), tuple(failures)
    )


# --- writing ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Folder:
    """The folder in which workers write: a local path, or a URL or path on another filesystem."""

    path: str
    url: str | None = None
    filesystem: Any = None


@contextlib.contextmanager
def _folder(
    place: Place, path: FilePath, filesystem: Any, names: list[str], *, overwrite: bool
) -> Iterator[_Folder]:
    """Prepare the folder of a dataset; after an error nothing of it is left."""
    _check_free(place, overwrite=overwrite)
    if place.local:
        target = Path(place.path)
        sweep(target, beside=True)
        with staged_folder(target, 0o777, replace=overwrite) as staging:
            yield _Folder(str(staging))
            for left in staging.iterdir():  # of workers that were killed
                if left.name not in names:
                    left.unlink()
        return
    if place.kind == pafs.FileType.NotFound and place.filesystem.type_name not in ("s3", "gcs", "abfs"):
        place.filesystem.create_dir(place.path, recursive=True)
    try:
        yield _Folder(place.path, str(path) if filesystem is None else None, filesystem)
    except BaseException:
        for name in names:
            with contextlib.suppress(Exception):
                place.filesystem.delete_file((place / name).path)
        raise


def _file_name(number: int, count: int) -> str:
    """Return the name of the file of a partition; readers sort by name."""
    return f"part-{number:0{max(5, len(str(count - 1)))}d}.parquet"


def _check_free(place: Place, *, overwrite: bool) -> None:
    if place.kind == pafs.FileType.File:
        raise CallerFileExistsError(errno.EEXIST, "this path is a file. Pass a folder", str(place))
    if place.kind == pafs.FileType.NotFound:
        return
    try:
        there = list(files_at(place, patterns=False)[0])
    except FileNotFoundError:
        there = []
    if there and not overwrite:
        raise CallerFileExistsError(
            errno.EEXIST, "the folder contains files. overwrite=True replaces it", str(place)
        )
    if there and not place.local:
        raise CallerValueError(
            f"{place} contains files, and overwrite= needs a local filesystem: an object store cannot "
            "replace a folder as a whole. Write to another path, or delete the folder first"
        )
    if others := [name for name in there if not name.endswith(".parquet")]:
        raise CallerFileExistsError(
            errno.EEXIST,
            f"the folder contains other files than Parquet, such as {others[0]!r}, which overwrite=True "
            "would remove. Move them first",
            str(place),
        )


def _write_part(
    part: pd.DataFrame,
    folder: _Folder,
    count: int,
    index: bool | None,
    options: dict[str, Any],
    partition_info: Mapping[str, Any] | None = None,
) -> pd.Series[Any]:
    """Write one partition; return the names and types of its columns."""
    if index is None and not isinstance(part.index, pd.RangeIndex):
        index = False  # otherwise only some of the files would have a column for it
    empty = [label for label in part if part[label].dtype == object and part[label].isna().all()]
    if empty and "schema" not in options:
        # Arrow's type of a column of objects depends on its values. Without any, it is text, as Dask has it.
        schema = pa.Schema.from_pandas(part, preserve_index=index)
        for label in empty:
            if pa.types.is_null(schema.field(label).type):
                field = schema.field(label).with_type(pa.string())
                schema = schema.set(schema.get_field_index(label), field)
        options = options | {"schema": schema}
    name = _file_name(0 if partition_info is None else partition_info["number"], count)
    filesystem = folder.filesystem
    if folder.url is not None:
        filesystem = Place.of(folder.url).filesystem
    schema = write_parquet(part, f"{folder.path}/{name}", index=index, filesystem=filesystem, **options)
    return pd.Series([{field.name: str(field.type) for field in schema}], dtype=object)


def _check_alike(written: list[dict[str, str]]) -> None:
    for number, types in enumerate(written):
        for name in types | written[0]:
            if types.get(name) != written[0].get(name):
                raise CallerTypeError(
                    f"column {name!r} is {types.get(name, 'missing')} in partition {number}, but "
                    f"{written[0].get(name, 'missing')} in partition 0, so the files could not be read "
                    "together. Nothing was written. Convert the column first, or pass schema="
                )


# --- reading ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """A file of a dataset, or some of its row groups.

    Attributes:
        path: its path on the filesystem.
        url: the URL that the caller passed; None: the path is local, or ``filesystem`` was passed.
        filesystem: that the caller passed, or None.
        partition: the columns in the names of its folders.
        row_groups: their numbers; None: all.
    """

    path: str
    url: str | None
    filesystem: Any
    partition: tuple[pa.Field, ...]
    row_groups: tuple[int, ...] | None


def _check_dtypes(files: Mapping[str, DataFile], meta: pd.DataFrame, columns: list[str] | None) -> None:
    """Raise FormatError if pandas reads a column of the same Arrow type as another dtype from some file."""
    seen = []
    for name, file in files.items():
        if (described := pandas_dtypes(file.schema)) in seen:
            continue
        seen.append(described)
        for column, dtype in empty_frame(file, columns).dtypes.items():
            other = meta.dtypes.get(column)
            if column not in file.headers and not _is_categorical(meta[column]) and dtype != other:
                raise FormatError(
                    f"{name}: column {column!r} is {dtype}, but in {next(iter(files))} it is {other}. Read "
                    "these files separately",
                    path=name,
                    column=str(column),
                )


def _parts(file: DataFile, url: str, filesystem: Any) -> Iterator[_Part]:
    if "=__HIVE_DEFAULT_PARTITION__/" in file.fragment.path:  # Arrow cannot infer its type from one file
        raise FormatError(
            f"{file.fragment.path}: the name of its folder means null, which kmsdata.dask cannot read. "
            "Rename the folder",
            path=file.fragment.path,
        )
    about = file.fragment.metadata
    groups: list[list[int]] = [[]]
    size = 0
    for number in range(about.num_row_groups):
        more = about.row_group(number).total_byte_size
        if groups[-1] and size + more > _BYTES_OF_PARTITION:
            groups.append([])
            size = 0
        groups[-1].append(number)
        size += more
    for some in groups:
        chosen = tuple(some) if len(groups) > 1 else None
        where = url if "://" in url else None
        yield _Part(file.fragment.path, where, filesystem, tuple(file.partition), chosen)


def _read_part(
    part: _Part, dtypes: Mapping[str, EncryptedDtype], columns: list[str] | None = None
) -> pd.DataFrame:
    filesystem = part.filesystem if part.url is None else Place.of(part.url).filesystem
    (file,) = dataset_headers(part.path, filesystem).values()
    file = replace(file, partition=list(part.partition))
    groups = None if part.row_groups is None else list(part.row_groups)
    if groups is not None and groups[-1] >= file.fragment.metadata.num_row_groups:
        raise FormatError(
            f"{part.path} was replaced after its footer was read: it has fewer row groups now. Call "
            "read_parquet() again",
            path=part.path,
        )
    return _as(read_file(file, columns, row_groups=groups), dtypes)


def _as(frame: pd.DataFrame, dtypes: Mapping[str, EncryptedDtype]) -> pd.DataFrame:
    """Return the frame with its encrypted columns in the dtypes that all files have in common."""
    for position, label in enumerate(frame.columns):
        if label in dtypes and frame.dtypes.iloc[position] != dtypes[label]:
            frame.isetitem(position, frame.iloc[:, position].array.astype(dtypes[label]))
    return frame
