"""Read Parquet files and datasets with encrypted columns; no key is needed."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow.fs import FileType

from kmsdata.display.progress import Interruptible
from kmsdata.errors import CallerTypeError, FormatError, KmsDataError
from kmsdata.frames.arguments import Columns, column_names, require, required_names
from kmsdata.frames.dtype import EncryptedArray, EncryptedDtype
from kmsdata.frames.encrypted_columns import (
    Encrypted,
    check_names,
    with_headers,
)
from kmsdata.frames.frame import decrypt_frame
from kmsdata.frames.metadata.pandas_entry import frame_attrs, index_columns, to_frame, unreadable_dtypes
from kmsdata.keys.envelope import Header, merged_records
from kmsdata.keys.session import Key
from kmsdata.parquet.filters import FileSearch, filter_terms
from kmsdata.parquet.headers import DataFile, damaged, dataset_headers, naming_the_file
from kmsdata.parquet.locations import (
    FilePath,
    Place,
    Readable,
    contains_markers,
    paths_text,
    skipped_note,
    without_credentials,
)

__all__ = ["FilePath", "empty_frame", "read_file", "read_parquet"]


def read_parquet(
    path: Readable,
    *,
    columns: Columns | None = None,
    filters: Any = None,
    filesystem: Any = None,
    decrypt: bool = False,
    encrypted: Columns | None = None,
    key: Key | Encrypted | None = None,
) -> pd.DataFrame:
    """Read a Parquet file or dataset; its encrypted columns stay encrypted, and no key is needed.

    Args:
        path: file, folder of a dataset, pattern such as ``data/*.parquet``, or list of these; or an
            open file, such as `io.BytesIO`.
        columns: name or names of the columns to read; None for all.
        filters: row filters, as `pandas.read_parquet` takes them. Those on deterministic columns (``==``,
            ``!=``, ``in``, ``not in``, in lists of terms) are evaluated on ciphertext. This needs the key,
            but only matching rows are ever decrypted. Nulls behave as in any filter: ``!=`` drops them,
            ``in`` and ``not in`` treat null as a value.
        filesystem: pyarrow or fsspec filesystem; None: inferred from the path.
        decrypt: also decrypt the encrypted columns.
        encrypted: name or names of columns that must be encrypted. A file whose header was removed then
            raises an error.
        key: the only keys that may decrypt (for ``decrypt``, and filters on encrypted columns): a URI,
            several URIs, or a `DataKey`.

    Returns:
        A frame; plain columns, index and attrs are those that `pandas.read_parquet` returns.

    Raises:
        FormatError: a header is malformed, or a column of ``encrypted`` is not encrypted.
        TypeError: a filter is on a randomised column, or compares an encrypted column by order, or has a
            value that the column cannot contain.

    Example:
        >>> import pandas as pd, kmsdata
        >>> df = pd.DataFrame({"ssn": ["078-05-1120"], "city": ["Lewiston"]})
        >>> df.kms.encrypt("ssn", key="local://demo").kms.to_parquet("people.parquet")
        >>> kmsdata.read_parquet("people.parquet", decrypt=True).equals(df)
        True
    """
    with Interruptible("read_parquet"):
        return _checked(path, columns, filters, filesystem, decrypt, encrypted, key)


def _checked(
    path: Readable,
    columns: Columns | None,
    filters: Any,
    filesystem: Any,
    decrypt: bool,
    encrypted: Columns | None,
    key: Key | Encrypted | None,
) -> pd.DataFrame:
    """Read, after the headers of all files were checked; see `read_parquet`."""
    if not isinstance(decrypt, bool):
        raise CallerTypeError(
            "decrypt= must be True or False. To decrypt some columns: "
            "kmsdata.read_parquet(path).kms.decrypt(columns)"
        )
    wanted = None if columns is None else column_names(columns)
    asked = required_names(encrypted)
    looked_at = None
    if wanted is not None and not isinstance(filters, ds.Expression):
        filtered = [] if filters is None else [term[0] for group in filter_terms(filters) for term in group]
        looked_at = {*wanted, *asked, *filtered}
    skipped: list[str] = []
    files = dataset_headers(path, filesystem, looked_at, skipped)
    for note in skipped_note(skipped):
        warnings.warn(note, stacklevel=3)
    on_cells = _on_cells(filters, {column for file in files.values() for column in file.headers})
    for name, file in files.items():
        check_names(file.headers, beside=file.beside, path=name)
        for column in asked:
            if column not in file.headers:
                raise FormatError(
                    f"{name}: column {column!r} must be encrypted, but has no kmsdata header",
                    path=name,
                    column=column,
                )
    headers = {name: file.headers for name, file in files.items()}
    if on_cells:
        with naming_the_file(headers):
            search = FileSearch(filters, headers.values(), key)
        frame = _searched(files, wanted, search)
    # If the headers of all files are equal, pandas reads them together. Otherwise each is read separately: a
    # pyarrow dataset has one schema. It would put the cells of one file under the header of another, or fail.
    # pandas fails for Arrow dtypes whose names it cannot read.
    elif (
        not skipped
        and (together := _one_path(path, filesystem))
        and _all_alike(_dtypes(file) for file in files.values())
        and not any(unreadable_dtypes(file.schema) for file in files.values())
    ):
        frame = _restored(_read(together, files, wanted, filters, filesystem), next(iter(headers.values())))
    else:
        frame = _each(files, wanted, filters)
    for column in asked:
        if column in frame and not isinstance(frame[column].dtype, EncryptedDtype):
            raise FormatError(
                f"{paths_text(path)}: column {column!r} changed while it was read", column=column
            )
    frame = _under_all_wraps(frame, files.values())
    if not decrypt:
        return frame
    with naming_the_file(headers):
        return decrypt_frame(frame, key=key)


def _one_path(path: Readable, filesystem: Any) -> FilePath | None:
    """Return the path of a file or folder that pandas can read; None for a pattern or list."""
    if not isinstance(path, (str, os.PathLike)):
        return None
    place = Place.of(path, filesystem)
    kind = place.kind
    if kind == FileType.NotFound or (kind == FileType.Directory and contains_markers(place)):
        return None
    return path


@contextlib.contextmanager
def _damage(path: str, filters: Any) -> Iterator[None]:
    """Raise FormatError for errors of Arrow and pandas about damaged pages or metadata.

    pandas raises errors of every kind for damaged metadata, and Arrow for filters that do not fit.
    """
    try:
        yield
    except (KmsDataError, MemoryError, ImportError):
        raise
    except Exception as error:
        system = isinstance(error, OSError) and error.errno is not None
        if system or "FieldRef" in str(error) or (filters is not None and not isinstance(error, OSError)):
            raise
        raise damaged(path) from None  # the error may contain values


def _under_all_wraps(frame: pd.DataFrame, files: Iterable[DataFile]) -> pd.DataFrame:
    """Return the frame with the wrapped keys of all files: Arrow keeps only those of one file's schema."""
    every = [record for file in files for header in file.headers.values() for record in header.records]
    records = merged_records(every)
    if all(records[record.commitment] == record for record in every):
        return frame
    return with_headers(frame, lambda header: header.under(records))


def _read(
    path: FilePath,
    files: Mapping[str, DataFile],
    columns: list[str] | None,
    filters: Any,
    filesystem: Any,
) -> pd.DataFrame:
    try:
        with _damage(without_credentials(str(path)), filters):
            return pd.read_parquet(
                path,
                columns=columns,
                filters=filters,
                filesystem=filesystem,
                engine="pyarrow",
                page_checksum_verification=True,
            )
    except pa.ArrowInvalid as error:
        # Arrow's error for a missing column ("No match for FieldRef") lists the whole schema. Raise the usual
        # KeyError instead.
        if "FieldRef" not in str(error):
            raise
        terms = [] if filters is None or isinstance(filters, ds.Expression) else filter_terms(filters)
        for file in files.values():
            for name in (*(columns or ()), *(term[0] for group in terms for term in group)):
                require([*file.schema.names, *(field.name for field in file.partition)], name)
        raise


def _each(files: Mapping[str, DataFile], columns: list[str] | None, filters: Any) -> pd.DataFrame:
    """Read each file on its own and concatenate the frames, for files whose headers differ."""
    condition = None if filters is None else pq.filters_to_expression(filters)
    return _united([read_file(file, columns, condition) for file in files.values()])


def read_file(
    file: DataFile,
    columns: list[str] | None = None,
    condition: Any = None,
    row_groups: list[int] | None = None,
) -> pd.DataFrame:
    """Read one file of a dataset, or some of its row groups, under its own headers.

    Args:
        file: from `kmsdata.parquet.headers.dataset_headers`.
        columns: names of the columns to read; None: all.
        condition: an Arrow expression; None: all rows.
        row_groups: numbers of row groups; None: all.
    """
    schema = file.schema
    index = index_columns(schema.metadata)
    for field in file.partition:
        schema = schema.append(field)
    chosen = None if columns is None else list(dict.fromkeys([*columns, *index]))
    fragment = file.fragment if row_groups is None else file.fragment.subset(row_group_ids=row_groups)
    with _damage(file.fragment.path, condition):
        table = fragment.to_table(
            schema=schema,
            columns=chosen,
            filter=condition,
            fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True),
        )
    return _framed(table, file.headers)


def empty_frame(file: DataFile, columns: list[str] | None = None) -> pd.DataFrame:
    """Return what `read_file` returns, without rows; nothing but the footer is needed."""
    schema = file.schema
    for field in file.partition:
        schema = schema.append(field)
    if columns is not None:
        chosen = dict.fromkeys([*columns, *index_columns(schema.metadata)])
        for name in columns:
            require(schema.names, name)
        schema = pa.schema([schema.field(name) for name in chosen], metadata=schema.metadata)
    return _framed(schema.empty_table(), file.headers)


def _framed(table: pa.Table, headers: Mapping[str, Header]) -> pd.DataFrame:
    """Convert a table that was read from a file to a frame, as pandas does."""
    # As pandas.read_parquet does: what to_pandas() does about attrs depends on pyarrow's version.
    frame = _restored(to_frame(table), headers)
    frame.attrs = frame_attrs(table.schema.metadata)
    return frame


def _united(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Concatenate the frames of several files."""
    # pandas.concat also takes the dtypes of empty frames into account: leave these out.
    parts = [part for part in parts if len(part)] or parts[:1]
    default = all(isinstance(part.index, pd.RangeIndex) for part in parts)
    return pd.concat(parts, ignore_index=default)


def _dtypes(file: DataFile) -> dict[str, EncryptedDtype]:
    return {name: EncryptedDtype(header) for name, header in file.headers.items()}


def _all_alike(items: Iterable[object]) -> bool:
    first, *others = items
    return all(item == first for item in others)


def _restored(frame: pd.DataFrame, headers: Mapping[str, Header]) -> pd.DataFrame:
    """Restore the dtype of columns that other software wrote as plain binary."""
    for position, label in enumerate(frame.columns):
        if label in headers and not isinstance(frame.dtypes.iloc[position], EncryptedDtype):
            storage = pa.array(frame.iloc[:, position].to_numpy(), pa.large_binary(), from_pandas=True)
            frame.isetitem(position, EncryptedArray(storage, EncryptedDtype(headers[label])))
    return frame


def _searched(files: Mapping[str, DataFile], columns: list[str] | None, search: FileSearch) -> pd.DataFrame:
    """Return the rows that match filters on encrypted columns, of all files."""
    first = next(iter(files.values())).schema
    agree = _all_alike(
        {name: (dtype, file.schema.field(name).type) for name, dtype in _dtypes(file).items()}
        for file in files.values()
    )
    tables = []
    for file in files.values():
        own = file.schema
        kept = own.names if not agree else file.headers
        fields = [own.field(field.name) if field.name in kept else field for field in first]
        schema = pa.schema(fields, metadata=own.metadata)
        for field in (*(() if agree else own), *file.partition):
            if field.name not in schema.names:
                schema = schema.append(field)
        levels = index_columns(own.metadata)
        chosen = schema.names if columns is None else list(dict.fromkeys([*columns, *levels]))
        for column in (*chosen, *search.columns):
            require(schema.names, column)
        tables.append(search.rows(file.fragment, schema, file.headers, chosen))
    if agree:
        return _framed(pa.concat_tables(tables), next(iter(files.values())).headers)
    return _united([_framed(table, file.headers) for table, file in zip(tables, files.values(), strict=True)])


def _on_cells(filters: Any, encrypted: set[str]) -> bool:
    """Tell whether there are filters on encrypted columns."""
    if filters is None:
        return False
    if isinstance(filters, ds.Expression):
        # Arrow has no API for the fields that an expression uses, so they are found in its text. Text in
        # quotes is a value.
        outside = re.sub(r'"(?:[^"\\]|\\.)*"', '""', str(filters))
        used = {name for name in encrypted if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", outside)}
    else:
        return bool({term[0] for group in filter_terms(filters) for term in group} & encrypted)
    if used:
        raise CallerTypeError(
            f"column {min(used)!r} is encrypted, and an Arrow expression cannot be evaluated on ciphertext. "
            "Pass filters as a list, such as [(column, '==', value)], or decrypt first and then filter"
        )
    return False
