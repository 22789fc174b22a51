"""Find the encrypted columns of frames and Arrow tables, in every form that pandas may give them.

Cells may be in an extension array, an ArrowDtype column, a categorical, an object column, or the index.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa

from kmsdata.errors import CallerTypeError, CallerValueError, FormatError, located
from kmsdata.frames.arguments import (
    Columns,
    column_names,
    refuse_repeated,
    require,
)
from kmsdata.frames.arrow.sources import is_arrow, native, schema_of
from kmsdata.frames.arrow_storage import (
    cells_in,
    is_bytes_or_text,
    is_count_of_cells,
    is_plain_binary,
    looks_like_cells,
    seen_cells,
    validated,
)
from kmsdata.frames.cell import Cell, nulls_of, warn_caller
from kmsdata.frames.column import open_pandas, same_dtype
from kmsdata.frames.dtype import EXTENSION_NAME, EncryptedArray, EncryptedDtype, EncryptedType
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import ENTRY, Header, parse_file

__all__ = [
    "Encrypted",
    "EncryptedColumn",
    "HeaderSearch",
    "arrow_values",
    "check_names",
    "check_new_names",
    "columns_without_header",
    "encrypted_column",
    "encrypted_columns",
    "header_of",
    "headers_of",
    "in_arrow_types",
    "in_extension_dtype",
    "is_encrypted",
    "lost_header",
    "not_encrypted",
    "parsed_headers",
    "table_headers",
    "table_without_header",
    "warn_of_single_value",
    "with_arrow_types",
    "with_headers",
    "with_index_levels",
]

Encrypted: TypeAlias = "pd.DataFrame | pd.Series[Any] | pa.Table"
"""Encrypted data: also any other Arrow data, such as a reader or a frame of Polars."""


def not_encrypted(frame: pd.DataFrame, name: str) -> FormatError:
    """Return the error for a column that should be encrypted but is not."""
    why = "it has no kmsdata header"
    found = [frame.iloc[:, position] for position, label in enumerate(frame.columns) if label == name]
    found += [frame.index.get_level_values(name).to_series()] if name in frame.index.names else []
    if any(_count_without_header(values) for values in found):
        return lost_header(name, named=True)
    if any(item.level is not None for item in encrypted_columns(frame)):
        why = "it has no kmsdata header, but a level of the index has one. Name that level, or no column"
    return FormatError(f"column {name!r} is not encrypted: {why}", column=str(name))


_TAKER = "this argument"  # for errors


@dataclass(frozen=True)
class EncryptedColumn:
    """The encrypted cells of one column of a frame, or of one level of its index."""

    name: Hashable
    parts: Sequence[tuple[np.ndarray[Any, Any] | None, EncryptedArray]]
    position: int = -1
    level: int | None = None
    others: np.ndarray[Any, Any] | None = None

    @property
    def whole(self) -> bool:
        """Whether it contains only cells of one encrypted column."""
        return len(self.parts) == 1 and self.others is None

    @property
    def header(self) -> Header | None:
        """The header of a whole column; None if it is malformed."""
        return self.parts[0][1].dtype.parsed

    @property
    def headers(self) -> list[Header]:
        """The header of each part; FormatError if one is malformed."""
        return [header_of(array.dtype, self.name) for _, array in self.parts]

    def decrypt(self, keys: Mapping[bytes, DataKey]) -> pd.Series[Any]:
        """Decrypt to the recorded dtype, or to objects if the cells have several dtypes."""
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
        alike = dtype != np.dtype(object) and all(same_dtype(v, opened[0]) for v in opened)
        if alike and sum(map(len, opened)) == (~null).sum():  # several headers, but one dtype
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
    """Insert the nulls that a join or shift added after encryption, also if the dtype (int64, bool) has none.

    pandas itself would convert to float, which cannot represent large integers: so the result has the
    nullable dtype of the same width.
    """
    # Every Arrow dtype has nulls, but isna() does not find those of runs.
    if not null.any() or isinstance(values.dtype, pd.ArrowDtype):
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


def encrypted_columns(frame: pd.DataFrame) -> list[EncryptedColumn]:
    """List the encrypted columns of a frame, then the encrypted levels of its index."""
    found = []
    for position, label in enumerate(frame.columns):
        if (parts := _cells_of_series(frame.iloc[:, position])) is not None:
            found.append(EncryptedColumn(label, parts.arrays, position, others=parts.others))
    for level in range(frame.index.nlevels):
        values = frame.index.get_level_values(level)
        if (parts := _cells_of_series(values.to_series())) is not None:
            found.append(
                EncryptedColumn(frame.index.names[level], parts.arrays, level=level, others=parts.others)
            )
    return found


def encrypted_column(frame: pd.DataFrame, name: Hashable) -> EncryptedColumn:
    """Return the encrypted column of this name, otherwise the encrypted level of the index.

    Raises:
        KeyError: there is neither. FormatError: it is not encrypted.
        ValueError: several columns have the name.
    """
    require([*frame.columns, *frame.index.names], name)
    found = [item for item in encrypted_columns(frame) if item.name == name]
    if not found:
        raise not_encrypted(frame, str(name))
    if len(found) > 1 and found[1].level is None:
        refuse_repeated([item.name for item in found], name)
    return found[0]


def in_extension_dtype(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with every encrypted column in `EncryptedDtype`, in whichever form it was."""
    out = frame.copy(deep=False)
    for item in encrypted_columns(frame):
        if not item.whole:
            headers = [array.dtype.parsed for _, array in item.parts]
            objects = [one for header in headers if header is not None for one in header.columns]
            alike = item.others is None or len({one.identity for one in objects}) < len(objects)
            raise CallerTypeError(
                f"column {item.name!r} mixes cells of several encrypted columns, or cells and plain values, "
                "so it has no single header. Decrypt it first"
                + (
                    ". (Deterministic columns of one kind, domain and data key but different dtypes have the "
                    "same key, so they cannot be united: convert them to one dtype before you encrypt)"
                    if alike
                    else ""
                )
            )
        _put(out, item, item.parts[0][1])
    return out


def with_headers(frame: pd.DataFrame, change: Callable[[Header], Header]) -> pd.DataFrame:
    """Return the frame with the same cells under other headers.

    Args:
        frame: any frame; its encrypted columns and index levels get new headers.
        change: returns the new header for a header; it must keep the column objects.
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
        _put(out, item, values)
    return out


def _put(frame: pd.DataFrame, item: EncryptedColumn, values: Any) -> None:
    """Replace an encrypted column, or level of the index, of a frame that is not shared."""
    if item.level is None:
        frame.isetitem(item.position, values)
    else:
        level = pd.Index(values, name=frame.index.names[item.level])
        frame.index = with_index_levels(frame.index, {item.level: level})


@dataclass(frozen=True)
class _Cells:
    """The encrypted parts of a column: the rows of each (None for all), its cells, and the other values."""

    arrays: list[tuple[np.ndarray[Any, Any] | None, EncryptedArray]]
    others: np.ndarray[Any, Any] | None = None


def is_encrypted(series: pd.Series[Any]) -> bool:
    """Return whether a column contains cells."""
    return _cells_of_series(series) is not None


def _cells_of_series(series: pd.Series[Any]) -> _Cells | None:
    """Return the encrypted parts of a column, in every form that pandas may have given it, or None."""
    dtype = series.dtype
    if isinstance(dtype, EncryptedDtype):
        return _Cells([(None, series.array)])
    if isinstance(dtype, pd.ArrowDtype) and isinstance(dtype.pyarrow_dtype, EncryptedType):
        return _Cells(
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
        values = series.astype(object) if _cells_of_series(dtype.categories.to_series()) else None
    elif dtype != np.dtype(object):
        values = None
    if values is None:
        return None
    values = values.to_numpy()
    # Most object columns contain text and no cells: so the fast checks come first.
    if pd.api.types.infer_dtype(values) == "string" or Cell not in set(map(type, values)):
        return None
    rows = np.array([type(value) is Cell for value in values], np.bool_)
    dtypes = list(dict.fromkeys(cell.dtype for cell in values[rows]))
    if len(dtypes) == 1 and nulls_of(values[~rows]).all():
        return _Cells([(None, EncryptedArray._from_sequence(values, dtype=dtypes[0]))])
    arrays: list[tuple[np.ndarray[Any, Any] | None, EncryptedArray]] = []
    for one in dtypes:
        own = np.flatnonzero([type(value) is Cell and value.dtype == one for value in values])
        arrays.append((own, EncryptedArray._from_sequence(values[own], dtype=one)))
    return _Cells(arrays, values)


def check_names(
    headers: Mapping[Any, Header], *, beside: Mapping[Any, Header] | None = None, path: str | None = None
) -> None:
    """Compare labels with the names and domains that columns were encrypted under.

    Args:
        headers: the columns to check.
        beside: all encrypted columns of the same frame, table or file, where these are some of them.
        path: of the file.

    Raises:
        FormatError: a label is the name (of deterministic columns: the domain) of another of these columns:
            two were exchanged; or, in a file (path given), the label of a randomised column is any other
            name.
    """
    if (found := _exchanged(_places(beside or {}) | _places(headers), headers)) is not None:
        label, (deterministic, given), _ = found
        advice = "If you renamed them, rename them back before you decrypt"
        if deterministic:
            advice += "; or choose domains that are not labels of other columns"
        raise FormatError(
            f"column {label!r} was encrypted as {given!r}, and another column as {label!r}: their "
            f"contents were exchanged. {advice}",
            column=str(label),
            field="domain" if deterministic else "name",
            path=path,
        )
    for label, header in headers.items():
        names = [item.name for item in header.columns if item.name is not None]
        if not names or names[0] == label:  # all objects of a header have one name
            continue
        if path is not None:
            raise FormatError(
                f"column {label!r} was encrypted as {names[0]!r}. Rename it back",
                column=str(label),
                field="name",
                path=path,
            )
        warnings.warn(
            f"column {label!r} was encrypted as {names[0]!r}: its cells are authentic, its label is not",
            stacklevel=4,
        )


def check_new_names(chosen: Mapping[str, str | None], headers: Mapping[Any, Header]) -> None:
    """Check, before a data key is generated, that `check_names` will accept the columns to encrypt.

    Args:
        chosen: the columns to encrypt: None if randomised, otherwise the domain.
        headers: the columns beside them that are encrypted already.

    Raises:
        ValueError: they could not be decrypted together.
    """
    before = _places(headers)
    new = {label: (domain is not None, domain or label) for label, domain in chosen.items()}
    found = _exchanged(before | new)
    if found is None or found == _exchanged(before):
        return
    label, (deterministic, given), other = found
    what = "domain" if deterministic else "name"
    advice = "Pass a domain= that is not the label of another column" if deterministic else "Rename one"
    raise CallerValueError(
        f"column {label!r} would have the {what} {given!r}, and column {other!r} the {what} {label!r}: they "
        f"could not be decrypted together, since they would look exchanged. {advice}"
    )


def _places(headers: Mapping[Any, Header]) -> dict[Any, tuple[bool, str]]:
    return {label: header.columns[0].place for label, header in headers.items()}


def _exchanged(
    places: Mapping[Any, tuple[bool, str]], checked: Container[Any] | None = None
) -> tuple[Any, tuple[bool, str], Any] | None:
    """Return a column, its name or domain, and another column that has the label of the first as its own."""
    owners = {place: label for label, place in places.items()}
    for label, (deterministic, given) in places.items():
        if given == label or (checked is not None and label not in checked):
            continue
        if (other := owners.get((deterministic, label))) is not None and other != label:
            return label, (deterministic, given), other
        # A domain may be any text: with a randomised column, only a mutual exchange is certain.
        if places.get(given) == (not deterministic, label):
            return label, (deterministic, given), given
    return None


def header_of(dtype: EncryptedDtype, column: Hashable) -> Header:
    """Return the header of a column's dtype; if it is malformed, raise FormatError with the column's name."""
    try:
        return dtype.header
    except FormatError as error:
        raise located(error, f"column {column!r}", column=str(column)) from None


def headers_of(data: Encrypted, columns: Columns | None = None) -> dict[str, Header]:
    """Return the headers of encrypted data, by column: of all columns, or of those that are named."""
    wanted = None if columns is None else column_names(columns)
    data = native(data)
    if is_arrow(data):
        return table_headers(schema_of(data, _TAKER), wanted)
    if not isinstance(data, (pd.DataFrame, pd.Series)):
        raise CallerTypeError(
            f"encrypted data must be a frame, a series, an Arrow table, or the path of a Parquet file, not "
            f"{type(data).__name__}"
        )
    frame = data.to_frame() if isinstance(data, pd.Series) else data
    out: dict[str, Header] = {}
    for item in encrypted_columns(frame):
        if wanted is not None and item.name not in wanted:
            continue
        if len(item.headers) != 1 or str(item.name) in out:
            raise CallerValueError(
                f"{item.name!r} contains cells of several columns. Name one column of the original frame"
            )
        (out[str(item.name)],) = item.headers
    return out


def parsed_headers(data: Encrypted) -> dict[Any, Header]:
    """Return the headers of all whole columns, without those that are malformed."""
    data = native(data)
    if is_arrow(data):
        types = {field.name: field.type for field in in_arrow_types(schema_of(data, _TAKER))}
        dtypes = {name: t.dtype.parsed for name, t in types.items() if isinstance(t, EncryptedType)}
        return {name: header for name, header in dtypes.items() if header is not None}
    frame = data.to_frame() if isinstance(data, pd.Series) else data
    whole = {item.name: item.header for item in encrypted_columns(frame) if item.whole}
    return {name: header for name, header in whole.items() if header is not None}


def table_headers(schema: pa.Schema, wanted: list[str] | None = None) -> dict[str, Header]:
    """Return the headers of an Arrow schema, by column: of all columns, or of those that are named."""
    headers = {}
    for field in in_arrow_types(schema):
        if isinstance(field.type, EncryptedType) and (wanted is None or field.name in wanted):
            headers[field.name] = header_of(field.type.dtype, field.name)
    return headers


def with_index_levels(index: pd.Index[Any], levels: Mapping[int, pd.Index[Any]]) -> pd.Index[Any]:
    """Return the index with these levels, by position, replaced."""
    if not isinstance(index, pd.MultiIndex):
        return levels[0]
    arrays = [levels.get(level, index.get_level_values(level)) for level in range(index.nlevels)]
    return pd.MultiIndex.from_arrays(arrays, names=index.names)


# --- columns whose cells lost their header --------------------------------------------------------


def lost_header(name: Hashable, *, path: str | None = None, named: bool = False) -> FormatError:
    """Return the error for a column of cells whose header was dropped; ``named``: the caller named it."""
    where = "" if path is None else f"{path}: "
    # pandas.read_parquet drops the header of a file without Arrow schema.
    read = "" if path is not None else "If it comes from an encrypted file, call kmsdata.read_parquet(). "
    return FormatError(
        f"{where}column {name!r} has no kmsdata header, but looks like cells: other software dropped the "
        f"header. {read}Attach that of the original file or frame with df.kms.attach(original), or with "
        "kmsdata.attach(table, original)"
        + ("" if named else ". If these are ciphertexts of other software, name the columns to decrypt"),
        path=path,
        column=str(name),
    )


def warn_of_single_value(name: Hashable, *, path: str | None = None) -> None:
    """Warn about a column with a single value that has the form of a cell, which may be a coincidence."""
    where = "" if path is None else f"{path}: "
    warn_caller(
        f"{where}column {name!r} has no kmsdata header, but its only value looks like a cell. If it is one, "
        "attach the header of the original file or frame with df.kms.attach(original)"
    )


def columns_without_header(frame: pd.DataFrame, known: Sequence[EncryptedColumn]) -> list[Hashable]:
    """Return the columns and index levels of a frame that look like cells without their header.

    Nested values are not searched. Warns about a column with a single such value.

    Args:
        frame: any frame.
        known: its encrypted columns. Of a column of objects, the values that are not cells are checked too.
    """
    found = []
    positions = {item.position: item for item in known if item.level is None}
    levels = {item.level: item for item in known if item.level is not None}
    columns = [
        (label, frame.iloc[:, position], positions.get(position)) for position, label in enumerate(frame)
    ]
    columns += [
        (name, frame.index.get_level_values(level).to_series(), levels.get(level))
        for level, name in enumerate(frame.index.names)
        if not isinstance(frame.index, pd.RangeIndex)
    ]
    for name, series, item in columns:
        if item is not None:
            if item.others is None:
                continue
            rest = np.array([type(value) is not Cell for value in item.others], np.bool_)
            series = pd.Series(item.others[rest], dtype=object)
        count = _count_without_header(series)
        if count == 1:
            warn_of_single_value(name)
        elif count:
            found.append(name)
    return found


class HeaderSearch:
    """Looks for columns that look like cells without their header in the batches of a stream.

    A column of few rows in each batch is judged by all batches since the last one with other values.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[str, int, set[int]]] = {}  # by position: name, values, their key ids

    def add(self, table: pa.Table) -> list[str]:
        """Return the columns that look like cells after this batch; see `columns_without_header`."""
        found = []
        for position, (name, values) in enumerate(zip(table.column_names, table.columns, strict=True)):
            if (seen := seen_cells(values.chunks, name)) is None:
                self._seen.pop(position, None)
                continue
            _, count, ids = self._seen.get(position, (name, 0, set()))
            self._seen[position] = name, count + seen[0], ids | seen[1]
            if count + seen[0] > 1 and is_count_of_cells(count + seen[0], ids | seen[1]):
                found.append(name)
        return found

    def warn_of_single_values(self) -> None:
        """Warn about columns with a single value, which has the form of a cell. Call it after all batches."""
        for name in self.single_values():
            warn_of_single_value(name)

    def single_values(self) -> list[str]:
        """Return the columns with a single value, which has the form of a cell. Call it after all batches."""
        return [name for name, count, _ in self._seen.values() if count == 1]


def table_without_header(table: pa.Table) -> list[str]:
    """Return the columns of an Arrow table that look like cells without their header; see the above."""
    search = HeaderSearch()
    found = search.add(table)
    search.warn_of_single_values()
    return found


def _count_without_header(series: pd.Series[Any]) -> int:
    """Return the number of values if they look like cells, otherwise 0; see `looks_like_cells`."""
    values = arrow_values(series, only_if_cells=True)
    if values is None:
        return 0
    parts = values.chunks if isinstance(values, pa.ChunkedArray) else [values]
    return looks_like_cells(parts, str(series.name))


def arrow_values(series: pd.Series[Any], *, only_if_cells: bool = False) -> pa.Array | pa.ChunkedArray | None:
    """Return a column of bytes or text as Arrow data, in every form that pandas may have given it.

    Args:
        series: any column; nulls of any kind become null.
        only_if_cells: return None already if the first value has not the form of a cell; then columns of
            Python objects are not converted.

    Returns:
        None if there are other values.
    """
    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        entries = arrow_values(pd.Series(dtype.categories), only_if_cells=only_if_cells)
        if entries is None:
            return None
        if isinstance(entries, pa.ChunkedArray):
            entries = entries.combine_chunks()
        codes = series.cat.codes.to_numpy()
        return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), entries)
    if isinstance(dtype, (pd.ArrowDtype, pd.StringDtype)):
        values = series.array.__arrow_array__()
        return values if is_bytes_or_text(values.type) else None
    if dtype != np.dtype(object):
        return None
    objects = series.to_numpy()
    present = ~nulls_of(objects)
    first = objects[present.argmax()] if present.any() else None
    kind = pa.large_string() if isinstance(first, str) else pa.large_binary()
    try:
        if isinstance(first, (memoryview, bytearray)):
            objects = np.array(
                [bytes(x) if ok else None for x, ok in zip(objects, present, strict=True)], object
            )
            first = bytes(first)
        if only_if_cells and (first is None or cells_in(pa.array([first], kind)) is None):
            return None
        return pa.array(objects, kind, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError):  # values of several types; or a lone surrogate
        return None


def in_arrow_types(schema: pa.Schema) -> Iterator[pa.Field]:
    """Return the fields of a schema, with the extension type where only metadata has it.

    Arrow puts the extension type of a column into the field's metadata when the type is not registered: in a
    table that was read before kmsdata was imported. Of a file without Arrow schema, the headers are only in
    the schema's entry ``kmsdata``.

    Raises:
        FormatError: the entry is malformed, and there are binary columns that it may describe.
    """
    entry = (schema.metadata or {}).get(ENTRY)
    binary = [field.name for field in schema if is_plain_binary(field.type)] if entry else []
    recorded = parse_file(entry.decode("utf-8", "surrogateescape")) if entry and binary else {}
    for field in schema:
        metadata = field.metadata or {}
        if metadata.get(b"ARROW:extension:name") is None and field.name in binary and field.name in recorded:
            yield field.with_type(EncryptedType(field.type, EncryptedDtype(recorded[field.name])))
            continue
        if metadata.get(b"ARROW:extension:name") != EXTENSION_NAME.encode() or isinstance(
            field.type, pa.BaseExtensionType
        ):
            yield field
            continue
        kind = EncryptedType.__arrow_ext_deserialize__(
            field.type, metadata.get(b"ARROW:extension:metadata", b"")
        )
        rest = {key: text for key, text in metadata.items() if not key.startswith(b"ARROW:extension:")}
        yield field.with_type(kind).with_metadata(rest or None)


def with_arrow_types(table: pa.Table) -> pa.Table:
    """Return a table with the extension type of its encrypted columns; see `in_arrow_types`.

    Raises:
        FormatError: a name is not UTF-8, or an encrypted column is not binary, or malformed.
    """
    try:
        names = table.column_names
    except UnicodeDecodeError:
        raise FormatError("the name of a column of the table is not UTF-8. Rename it") from None
    for position, field in enumerate(in_arrow_types(table.schema)):
        if not isinstance(field.type, EncryptedType):
            continue
        values = validated(table.column(position), names[position])
        if isinstance(values.type, pa.BaseExtensionType):
            continue
        parts = [pa.ExtensionArray.from_storage(field.type, part) for part in values.chunks]
        table = table.set_column(position, field, pa.chunked_array(parts, type=field.type))
    return table
