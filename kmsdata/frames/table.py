"""Frames and Arrow tables: several columns, one data key. Nothing is changed in place."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import pandas as pd
import pyarrow as pa

from kmsdata.display.progress import Progress
from kmsdata.errors import (
    FormatError,
    KeyAccessError,
    KeyNotFoundError,
    KeyServiceError,
    WrongKeyError,
)
from kmsdata.frames.column import authenticate, open_arrow, open_pandas, plan, seal
from kmsdata.frames.dtype import Cell, EncryptedArray, EncryptedDtype, EncryptedType
from kmsdata.frames.pandas_metadata import (
    in_pandas_metadata,
    pandas_dtypes,
    pandas_entries,
    with_columns,
    with_entries,
)
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import DataKeyRecord, Header
from kmsdata.keys.session import Key, new_data_key, pairs, unwrap

__all__ = [
    "Columns",
    "Encrypted",
    "check_context",
    "check_names",
    "chosen_columns",
    "column_names",
    "data_key_for",
    "decrypt_frame",
    "decrypt_table",
    "encrypt_frame",
    "encrypt_table",
    "encrypted_column",
    "encrypted_columns",
    "headers_of",
    "in_extension_dtype",
    "open_keys",
    "require",
    "required_names",
    "the_data_key",
    "with_headers",
]

Columns: TypeAlias = "str | Iterable[str]"
Encrypted: TypeAlias = "pd.DataFrame | pd.Series[Any] | pa.Table"


def encrypt_frame(
    frame: pd.DataFrame,
    columns: Columns = (),
    *,
    deterministic: Columns | bool = (),
    key: Key | Encrypted | None = None,
    domain: str | Mapping[str, str] | None = None,
    context: Mapping[str, str] | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """See `kmsdata.api.accessor.FrameAccessor.encrypt`."""
    chosen = chosen_columns(frame.columns, columns, deterministic, domain, list(frame.index.names))
    positions = {label: position for position, label in enumerate(frame.columns) if label in chosen}
    for name, position in positions.items():
        _refuse_encrypted(name, _encrypted_series(frame.iloc[:, position]) is not None)
    data_key = data_key_for(key, context, len(frame) * len(chosen))
    done: dict[str, EncryptedArray] = {}
    with Progress("encrypt", len(frame) * len(chosen), "cells", progress) as bar:
        for name, scope in chosen.items():
            done[name] = _encrypt(frame.iloc[:, positions[name]], name, data_key, scope)
            bar.step(len(frame))
    out = frame.assign()  # the pandas way to a frame of its own: lazily where it can be
    for name, array in done.items():
        out.isetitem(positions[name], array)
    return out


def encrypt_table(
    table: pa.Table,
    columns: Columns = (),
    *,
    deterministic: Columns | bool = (),
    key: Key | Encrypted | None = None,
    domain: str | Mapping[str, str] | None = None,
    context: Mapping[str, str] | None = None,
) -> pa.Table:
    """Encrypt columns of an Arrow table.

    Args:
        table: any table; it stays as it is.
        columns: name or names of the columns to encrypt with random IVs.
        deterministic: names of those to encrypt so that equal values have equal cells; True for all of
            ``columns``.
        key: a key URI, several, a `DataKey`, or encrypted data whose data key to use; None: the session's.
        domain: what deterministic columns may be joined across: by column, or one text for one column.
        context: pairs that stand in clear beside the wrapped key, and that opening it takes.

    Returns:
        The table with those columns of the extension type ``kmsdata.encrypted``.

    Raises:
        KeyError: no such column. TypeError, ValueError: see the message.
        UnsupportedTypeError: values that could not come back exactly.
        KeyServiceError: the key service refused.

    Example:
        >>> import pyarrow as pa, kmsdata
        >>> table = pa.table({"name": ["Ada", "Bo"], "age": [36, 41]})
        >>> sealed = kmsdata.encrypt_table(table, ["age"], key="local://demo")
        >>> kmsdata.decrypt_table(sealed).equals(table)
        True
    """
    _require_table(table, "encrypt_table", "df.kms.encrypt()")
    chosen = chosen_columns(table.column_names, columns, deterministic, domain, [])
    for name in chosen:
        _refuse_encrypted(name, isinstance(table.schema.field(name).type, EncryptedType))
    data_key = data_key_for(key, context, table.num_rows * len(chosen))
    schema, dtypes = table.schema, pandas_dtypes(table.schema.metadata)
    new: dict[str, Header] = {}
    for name, scope in chosen.items():
        cells = _encrypt(table.column(name), name, data_key, scope, dtypes.get(name))
        array, new[name] = cells.__arrow_array__(), cells.dtype.header
        position = schema.get_field_index(name)
        table = table.set_column(position, schema.field(position).with_type(array.type), array)
    metadata = in_pandas_metadata(schema.metadata, list(chosen))
    return table.replace_schema_metadata(with_columns(metadata, (), new))


def decrypt_frame(
    frame: pd.DataFrame,
    columns: Columns | None = None,
    *,
    key: Key | Encrypted | None = None,
    context: Mapping[str, str] | None = None,
    on_denied: Literal["raise", "keep"] = "raise",
    progress: bool | None = None,
) -> pd.DataFrame:
    """See `kmsdata.api.accessor.FrameAccessor.decrypt`."""
    if on_denied not in ("raise", "keep"):
        raise ValueError("on_denied is 'raise' or 'keep'")
    every = encrypted_columns(frame)
    # A row or a transposed frame holds cells of several columns, under labels that were never theirs: only
    # whole columns are asked for their names.
    named = {item.name: item.header for item in every if item.whole and item.header is not None}
    if columns is not None:
        names = column_names(columns)
        for name in names:
            require([*frame.columns, *frame.index.names], name)
            if name not in [item.name for item in every]:
                raise _not_encrypted(frame, name)
        every = [item for item in every if item.name in names]
    keys = open_keys(
        [(str(item.name), header) for item in every for header in item.headers],
        key,
        context,
        keep=on_denied == "keep",
    )
    check_names(named)
    opened: list[tuple[_Place, pd.Series[Any]]] = []
    try:
        with Progress("decrypt", len(frame) * len(every), "cells", progress) as bar:
            for item in every:
                if all(column.data_key in keys for header in item.headers for column in header.columns):
                    opened.append((item, item.decrypt(keys)))
                bar.step(len(frame))
    except BaseException:
        opened.clear()  # an error of one column leaves no plaintext of another in its frames
        raise
    out = frame.assign()
    levels: dict[int, pd.Index[Any]] = {}
    for item, values in opened:
        if item.level is None:
            values.index = frame.index  # a Series of the same index goes in as it is, with no dtype inferred
            out.isetitem(item.position, cast("Any", values))  # pandas takes it; its stubs forgot
        else:
            levels[item.level] = pd.Index(values, dtype=values.dtype, name=frame.index.names[item.level])
    if levels:
        out.index = _with_levels(frame.index, levels)
    return out


def _not_encrypted(frame: pd.DataFrame, name: str) -> FormatError:
    why = "it has no kmsdata header"
    first = frame[name].dropna().head(1).tolist() if name in frame else []
    if first and isinstance(first[0], str) and first[0].startswith("enc:"):
        why = (
            "it is text of cells, as CSV has it, without their header: read it with "
            "dtype={column: dtype of the encrypted column}"
        )
    elif any(item.level is not None for item in encrypted_columns(frame)):
        why = "it has no kmsdata header. A level of the index has: name that, or no column"
    return FormatError(f"column {name!r} is not encrypted: {why}", column=str(name))


def decrypt_table(
    table: pa.Table,
    columns: Columns | None = None,
    *,
    key: Key | Encrypted | None = None,
    context: Mapping[str, str] | None = None,
) -> pa.Table:
    """Decrypt columns of an Arrow table.

    Args:
        table: a table with columns of the extension type ``kmsdata.encrypted``.
        columns: names of those to decrypt; None for every one.
        key: only these may open it: a URI, several, or a `DataKey`; None: the session's key's provider.
        context: pairs that the authenticated context must hold.

    Returns:
        The table with those columns of their original Arrow type.

    Raises:
        FormatError: a named column that is not encrypted, or a header that was changed.
        TamperedError: cells that fail authentication. WrongKeyError: not the key of the data.
        KeyServiceError: the key service refused.
    """
    _require_table(table, "decrypt_table", "df.kms.decrypt()")
    wanted = None if columns is None else column_names(columns)
    headers = _table_headers(table, wanted)
    names = list(headers) if wanted is None else wanted
    for name in names:
        require(table.column_names, name)
        if name not in headers:
            raise FormatError(f"column {name!r} is not encrypted: it has no kmsdata header", column=name)
        if table.column_names.count(name) > 1:
            raise ValueError(
                f"{table.column_names.count(name)} columns are called {name!r}: rename them apart first"
            )
    keys = open_keys([(name, headers[name]) for name in names], key, context)
    check_names(headers)
    done: dict[str, Any] = {}
    try:
        for name in names:
            storage = EncryptedArray(table.column(name), table.schema.field(name).type.dtype).storage
            done[name] = open_arrow(headers[name], keys, storage, name)
    except BaseException:
        done.clear()
        raise
    for name, values in done.items():
        position = table.schema.get_field_index(name)
        table = table.set_column(position, table.schema.field(position).with_type(values.type), values)
    metadata = in_pandas_metadata(table.schema.metadata, names, back=True)
    if metadata is not None:
        metadata = with_entries(metadata, pandas_entries({name: headers[name] for name in names}, keys))
    return table.replace_schema_metadata(with_columns(metadata, names, {}))


@dataclass(frozen=True)
class _Place:
    """Encrypted cells of a frame: a column, or a level of its index."""

    name: Hashable
    parts: Sequence[tuple[np.ndarray[Any, Any] | None, EncryptedArray]]
    position: int = -1
    level: int | None = None
    others: np.ndarray[Any, Any] | None = None

    @property
    def whole(self) -> bool:
        """Whether it is one column's cells and nothing else."""
        return len(self.parts) == 1 and self.others is None

    @property
    def header(self) -> Header | None:
        """The header of whole columns; None where it is malformed."""
        return self.parts[0][1].dtype.parsed

    @property
    def headers(self) -> list[Header]:
        """The header of each part; FormatError where one is malformed."""
        try:
            return [array.dtype.header for _, array in self.parts]
        except FormatError as error:
            raise FormatError(
                f"column {self.name!r}: {error}", column=str(self.name), field=error.field
            ) from None

    def decrypt(self, keys: Mapping[bytes, DataKey]) -> pd.Series[Any]:
        """The values, of the recorded dtype; objects where cells of several dtypes stand together."""
        if self.whole:
            ((_, array),) = self.parts
            values = open_pandas(array.dtype.header, keys, array.storage, str(self.name))
            return _with_nulls(values, array.isna())
        opened: list[pd.Series[Any]] = []
        try:
            for _, array in self.parts:
                opened.append(open_pandas(array.dtype.header, keys, array.storage, str(self.name)))
        except BaseException:
            opened.clear()
            raise
        out = np.empty(0, object) if self.others is None else self.others.copy()
        null, dtype = np.asarray(pd.isna(out)), opened[0].dtype
        alike = not pd.api.types.is_object_dtype(dtype) and all(values.dtype == dtype for values in opened)
        if alike and sum(map(len, opened)) == (~null).sum():  # encrypted otherwise, and still of one dtype
            order = np.zeros(len(out), np.intp)
            placed = [rows for rows, _ in self.parts if rows is not None]
            order[np.concatenate(placed)] = np.arange((~null).sum())
            values = pd.concat(opened, ignore_index=True).iloc[order].reset_index(drop=True)
            numbers = isinstance(dtype, np.dtype) and dtype.kind in "iub"
            without_null = numbers or isinstance(dtype, pd.IntervalDtype)
            return _with_nulls(values, null) if without_null else values.mask(null)
        for (rows, _), values in zip(self.parts, opened, strict=True):
            out[rows] = values.astype(object).to_numpy()
        return pd.Series(out, dtype=object)


def _with_nulls(values: pd.Series[Any], null: np.ndarray[Any, Any]) -> pd.Series[Any]:
    """Values whose dtype has no null (int64, bool), where a join, shift or the like has since made nulls.

    pandas itself would go on in floats, which hold no large integers: so the nullable dtype of that width.
    """
    if not null.any():
        return values
    lost = null & ~values.isna().to_numpy()
    if not lost.any():
        return values
    dtype = values.dtype
    nullable: Any = object
    if isinstance(dtype, np.dtype) and dtype.kind in "iu":
        nullable = f"{'Int' if dtype.kind == 'i' else 'UInt'}{8 * dtype.itemsize}"
    elif dtype == np.bool_:
        nullable = "boolean"
    return values.astype(nullable).mask(lost)


def encrypted_columns(frame: pd.DataFrame) -> list[_Place]:
    """The encrypted columns of a frame, then the encrypted levels of its index."""
    found = []
    for position, label in enumerate(frame.columns):
        if (parts := _encrypted_series(frame.iloc[:, position])) is not None:
            found.append(_Place(label, parts.arrays, position, others=parts.others))
    for level in range(frame.index.nlevels):
        values = frame.index.get_level_values(level)
        if (parts := _encrypted_series(values.to_series())) is not None:
            found.append(_Place(frame.index.names[level], parts.arrays, level=level, others=parts.others))
    return found


def encrypted_column(frame: pd.DataFrame, name: Hashable) -> _Place:
    """The encrypted column of this name, else the encrypted level of the index.

    Raises:
        KeyError: there is neither. FormatError: it is not encrypted.
        ValueError: several columns have the name.
    """
    require([*frame.columns, *frame.index.names], name)
    found = [item for item in encrypted_columns(frame) if item.name == name]
    if not found:
        raise _not_encrypted(frame, str(name))
    if len(found) > 1 and found[1].level is None:
        raise ValueError(f"{len(found)} columns are called {name!r}: rename them apart first")
    return found[0]


def in_extension_dtype(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with every encrypted column in `EncryptedDtype`, whatever shape pandas gave it."""
    out = frame.copy(deep=False)
    for item in encrypted_columns(frame):
        if not item.whole:
            raise TypeError(
                f"column {item.name!r} mixes cells that were encrypted otherwise with each other or with "
                "plain values, and has no one header: decrypt it first"
            )
        if item.level is None:
            out.isetitem(item.position, item.parts[0][1])
        else:
            level = pd.Index(item.parts[0][1], name=frame.index.names[item.level])
            out.index = _with_levels(out.index, {item.level: level})
    return out


def with_headers(frame: pd.DataFrame, change: Callable[[Header], Header]) -> pd.DataFrame:
    """The frame with the same cells under other headers.

    Args:
        frame: any frame; columns and index levels that are encrypted are changed.
        change: what becomes of a header; its column objects must stay.
    """
    out = frame.assign()
    for item in encrypted_columns(frame):
        arrays = [
            EncryptedArray(array.storage, EncryptedDtype(change(header)))
            for (_, array), header in zip(item.parts, item.headers, strict=True)
        ]
        values: Any = arrays[0]
        if not item.whole:
            values = np.empty(0, object) if item.others is None else item.others.copy()
            for (rows, _), array in zip(item.parts, arrays, strict=True):
                values[rows] = list(array)
        if item.level is None:
            out.isetitem(item.position, values)
        else:
            level = pd.Index(values, name=frame.index.names[item.level])
            out.index = _with_levels(out.index, {item.level: level})
    return out


def _place(name: Hashable, parts: _Parts, *, position: int = -1, level: int | None = None) -> _Place:
    for _, array in parts.arrays:
        try:
            array.dtype.header  # noqa: B018 - parsed here, so that an error names the column
        except FormatError as error:
            raise error.with_facts(column=str(name)) from None
    return _Place(name, parts.arrays, position, level, parts.others)


@dataclass(frozen=True)
class _Parts:
    arrays: list[tuple[np.ndarray[Any, Any] | None, EncryptedArray]]
    others: np.ndarray[Any, Any] | None = None


def _encrypted_series(series: pd.Series[Any]) -> _Parts | None:
    """What is encrypted of a column, in each of the shapes that pandas may have given it."""
    dtype = series.dtype
    if isinstance(dtype, EncryptedDtype):
        return _Parts([(None, series.array)])
    if isinstance(dtype, pd.ArrowDtype) and isinstance(dtype.pyarrow_dtype, EncryptedType):
        return _Parts(
            [
                (
                    None,
                    EncryptedArray(
                        pa.chunked_array(series.array.__arrow_array__()), dtype.pyarrow_dtype.dtype
                    ),
                )
            ]
        )
    values: Any = series
    if isinstance(dtype, pd.CategoricalDtype):
        values = series.astype(object) if _encrypted_series(dtype.categories.to_series()) else None
    elif not pd.api.types.is_object_dtype(dtype):
        values = None
    if values is None:
        return None
    values = values.to_numpy()
    # Most columns of objects have no cells, most of them text: so the quick looks come first.
    if pd.api.types.infer_dtype(values) == "string" or Cell not in set(map(type, values)):
        return None
    rows = np.array([type(value) is Cell for value in values], np.bool_)
    dtypes = list(dict.fromkeys(cell.dtype for cell in values[rows]))
    if len(dtypes) == 1 and pd.isna(values[~rows]).all():
        return _Parts([(None, EncryptedArray._from_sequence(values, dtype=dtypes[0]))])
    arrays: list[tuple[np.ndarray[Any, Any] | None, EncryptedArray]] = []
    for one in dtypes:
        own = np.flatnonzero([type(value) is Cell and value.dtype == one for value in values])
        arrays.append((own, EncryptedArray._from_sequence(values[own], dtype=one)))
    return _Parts(arrays, values)


def check_names(headers: Mapping[Any, Header], *, path: str | None = None) -> None:
    """Compare labels with the names that randomised columns were encrypted under.

    Raises:
        FormatError: a label is the name of another of these columns: two were exchanged; or, in a file
            (path given), it is any other name.
    """
    names = {
        label: [item.name for item in header.columns if item.name is not None]
        for label, header in headers.items()
    }
    for label, own in names.items():
        for name in own:
            if name == label:
                continue
            if any(label in others for other, others in names.items() if other != label):
                raise FormatError(
                    f"column {label!r} was encrypted as {name!r}, and another column as {label!r}: their "
                    "contents were exchanged. If you renamed them, rename them back before decrypting",
                    column=str(label),
                    field="name",
                    path=path,
                )
            if path is not None:
                raise FormatError(
                    f"column {label!r} was encrypted as {name!r}: rename it back",
                    column=str(label),
                    field="name",
                    path=path,
                )
            warnings.warn(
                f"column {label!r} was encrypted as {name!r}; its cells are authentic, its label is not",
                stacklevel=4,
            )


def open_keys(
    headers: Sequence[tuple[str, Header]],
    key: Key | Encrypted | None,
    context: Mapping[str, str] | None,
    *,
    keep: bool = False,
) -> dict[bytes, DataKey]:
    """Unwrap the data keys of these columns, one call for each, and authenticate the headers under them.

    Args:
        headers: by column.
        key: what may open them; see `kmsdata.keys.session.unwrap`.
        context: pairs that each data key's authenticated context must hold.
        keep: leave out the data keys that their service refuses instead of raising.

    Returns:
        The data keys by commitment.
    """
    if isinstance(key, (pd.DataFrame, pd.Series, pa.Table)):
        key = the_data_key(key)
    records: dict[bytes, DataKeyRecord] = {}
    for _, header in headers:
        for record in header.records:
            known = records.get(record.commitment, record)
            records[record.commitment] = known.with_wraps(record.wraps)
    keys: dict[bytes, DataKey] = {}
    for commitment, record in records.items():
        try:
            keys[commitment] = unwrap(record, key)
        except (KeyServiceError, WrongKeyError) as error:
            denied = isinstance(error, (KeyAccessError, KeyNotFoundError)) or not getattr(
                error, "allowed", True
            )
            if not (keep and denied):
                error.with_facts(data_key=commitment.hex()[:8])
                raise
    for name, header in headers:
        if all(item.data_key in keys for item in header.columns):
            authenticate(header, keys, name)
            for record in header.records:
                check_context(record, keys[record.commitment], context, name)
    return keys


def check_context(
    record: DataKeyRecord, data_key: DataKey, context: Mapping[str, str] | None, column: str
) -> None:
    """Check that a record's context is its data key's, and holds these pairs; FormatError where not."""
    if record.context != data_key.context:
        raise FormatError(
            f"column {column!r}: its context was changed: it is not that of its data key",
            column=column,
            field="context",
        )
    actual = dict(data_key.context)
    for name, text in pairs(context).items():
        if actual.get(name) != text:
            raise FormatError(
                f"column {column!r}: its context does not say {name!r}: {text!r}; "
                + (f"it says {actual}" if actual else "it has none"),
                column=column,
                field="context",
            )


def _encrypt(
    values: Any, name: str, data_key: DataKey, scope: str | None, dtype: Any = None
) -> EncryptedArray:
    header, described = plan(values, name, data_key, domain=scope, dtype=dtype)
    storage = seal(header, described, values, name, data_key)
    return EncryptedArray(storage, EncryptedDtype(Header.of([header], [data_key.record])))


def data_key_for(
    key: Key | Encrypted | None, context: Mapping[str, str] | None, cells: int | None = None
) -> DataKey:
    """The data key to encrypt under: that of encrypted data, the one handed in, or a new one.

    Args:
        key: what names it.
        context: for a new one.
        cells: how many it will encrypt, where it may be one that other calls of the session share.
    """
    if isinstance(key, (pd.DataFrame, pd.Series, pa.Table)):
        key = the_data_key(key)
    return new_data_key(key, context, cells)


def headers_of(data: Encrypted, columns: Columns | None = None) -> dict[str, Header]:
    """The headers of encrypted data, by column; of these columns where some are named."""
    wanted = None if columns is None else column_names(columns)
    if isinstance(data, pa.Table):
        return _table_headers(data, wanted)
    if not isinstance(data, (pd.DataFrame, pd.Series)):
        raise TypeError(
            f"encrypted data is a frame, a series, an Arrow table, or the path of a Parquet file, not "
            f"{type(data).__name__}"
        )
    frame = data.to_frame() if isinstance(data, pd.Series) else data
    out: dict[str, Header] = {}
    for item in encrypted_columns(frame):
        if wanted is not None and item.name not in wanted:
            continue
        if len(item.headers) != 1 or str(item.name) in out:
            raise ValueError(
                f"{item.name!r} holds cells of several columns: name one column of the frame they come from"
            )
        (out[str(item.name)],) = item.headers
    return out


def the_data_key(data: Encrypted | Mapping[str, Header], key: Key | Encrypted | None = None) -> DataKey:
    """The one data key of encrypted data, unwrapped; ValueError where there is none, or several."""
    headers = dict(data) if isinstance(data, Mapping) else headers_of(data)
    used: dict[bytes, list[str]] = {}
    for name, header in headers.items():
        for item in header.columns:
            used.setdefault(item.data_key, []).append(name)
    if not used:
        raise ValueError("nothing in it is encrypted, so it has no data key")
    if len(used) > 1:
        listed = "; ".join(
            f"{commitment.hex()[:8]} for {', '.join(names)}" for commitment, names in used.items()
        )
        raise ValueError(f"it is encrypted under {len(used)} data keys ({listed}): name one column of it")
    (data_key,) = open_keys(list(headers.items()), key, None).values()
    return data_key


def _table_headers(table: pa.Table, wanted: list[str] | None = None) -> dict[str, Header]:
    headers = {}
    for field in table.schema:
        if isinstance(field.type, EncryptedType) and (wanted is None or field.name in wanted):
            try:
                headers[field.name] = field.type.dtype.header
            except FormatError as error:
                raise FormatError(
                    f"column {field.name!r}: {error}", column=field.name, field=error.field
                ) from None
    return headers


def _with_levels(index: pd.Index[Any], levels: Mapping[int, pd.Index[Any]]) -> pd.Index[Any]:
    if not isinstance(index, pd.MultiIndex):
        return levels[0]
    arrays = [levels.get(level, index.get_level_values(level)) for level in range(index.nlevels)]
    return pd.MultiIndex.from_arrays(arrays, names=index.names)


def column_names(columns: Columns) -> list[str]:
    """A name, or names, as a list. What comes from a generator comes once, so this is called once.

    Raises:
        TypeError: neither.
    """
    if isinstance(columns, str):
        return [columns]
    if isinstance(columns, (bytes, bytearray, memoryview)) or not isinstance(columns, Iterable):
        raise TypeError(f"columns are named by a text, or a list of texts, not by {type(columns).__name__}")
    return list(columns)


def required_names(encrypted: Columns | None) -> list[str]:
    """The columns that must be encrypted.

    Raises:
        ValueError: an empty list, which would let every file pass: it was hardly meant.
    """
    if encrypted is None:
        return []
    names = column_names(encrypted)
    if not names:
        raise ValueError("encrypted= names no column: name those that must be encrypted, or leave it out")
    return names


def chosen_columns(
    labels: Iterable[Hashable],
    columns: Columns,
    deterministic: Columns | bool,
    domain: str | Mapping[str, str] | None,
    levels: Sequence[Hashable],
) -> dict[str, str | None]:
    """The columns to encrypt, in the caller's order: None for a randomised one, else its domain."""
    every = list(labels)
    names = column_names(columns)
    exact = names if deterministic is True else [] if deterministic is False else column_names(deterministic)
    chosen: dict[str, str | None] = dict.fromkeys(names)
    chosen.update({name: name for name in exact})
    if not chosen:
        raise ValueError("no column to encrypt: name some, as columns or as deterministic=")
    for name in chosen:
        if not isinstance(name, str):
            raise TypeError(
                f"column labels must be text to be encrypted, not {type(name).__name__}: rename it first, "
                "e.g. df.rename(columns=str)"
            )
        if name not in every and name in levels:
            raise ValueError(f"{name!r} is a level of the index, which is not encrypted: reset_index() first")
        require(every, name)
        if every.count(name) > 1:
            raise ValueError(f"{every.count(name)} columns are called {name!r}: rename them apart first")
        if not name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in name):
            raise ValueError(
                "a column's label holds a lone surrogate, which is no valid Unicode: rename it first"
            )
    if isinstance(domain, str):
        if len(exact) != 1:
            raise ValueError(
                "one domain for one deterministic column: for several, pass domain={column: text}"
            )
        domain = {exact[0]: domain}
    if domain is not None and not isinstance(domain, Mapping):
        raise TypeError(f"domain= is a text, or a mapping of column to text, not {type(domain).__name__}")
    for name, text in (domain or {}).items():
        if chosen.get(name) is None:
            raise ValueError(f"domain= names {name!r}, which is not among the deterministic columns")
        if not isinstance(text, str):
            raise TypeError(f"the domain of {name!r} must be text")
        chosen[name] = text
    return chosen


def require(labels: Iterable[Hashable], name: Hashable) -> None:
    """KeyError with the nearest name, where there is no such label."""
    every = list(labels)
    if name not in every:
        close = difflib.get_close_matches(str(name), [label for label in every if isinstance(label, str)], 1)
        there = f": there are {', '.join(map(repr, every[:10]))}" + (", ..." if len(every) > 10 else "")
        raise KeyError(f"no column {name!r}" + (f": did you mean {close[0]!r}?" if close else there))


def _require_table(table: object, function: str, frames: str) -> None:
    if not isinstance(table, pa.Table):
        raise TypeError(
            f"{function}() takes an Arrow table, not {type(table).__name__}; a frame has {frames}"
        )


def _refuse_encrypted(name: str, encrypted: bool) -> None:
    if encrypted:
        raise ValueError(
            f"column {name!r} is encrypted already: decrypt it first, or leave it out of this call"
        )
