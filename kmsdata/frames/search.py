"""Equality on ciphertext: values to look for become cells of a deterministic column, and are compared.

A match is authentic, since only the data key's holder can make a cell that equals one made just now. What
does not match is not looked at: a cell that was changed is not found, and not noticed until it is decrypted.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from kmsdata import codec
from kmsdata.ciphers import siv
from kmsdata.ciphers.cells import Bools
from kmsdata.errors import FormatError
from kmsdata.frames.arrow_storage import binary, concatenated, fitted, plain_binary, to_storage
from kmsdata.frames.column import check_key_ids
from kmsdata.frames.dtype import Cell, EncryptedDtype, EncryptedType
from kmsdata.frames.table import Encrypted, encrypted_column, open_keys
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import ENTRY, Header, parse_file
from kmsdata.keys.session import Key

__all__ = ["FileSearch", "Literals", "filter_terms", "isin", "literals"]

_ROW_GROUPS = 4  # that are in memory together

Term: TypeAlias = tuple[Any, str, Any]


@dataclass(frozen=True, repr=False)
class Literals:
    """What is looked for in a column.

    Attributes:
        cells: large binary, unique, without nulls.
        null: whether null is looked for as well.
        misfit: what is wrong with a value that no such column can hold, as a sentence; None where all fit.
        anything: whether the column's type was taken from its values: without any, it says nothing.
    """

    cells: pa.Array
    null: bool = False
    misfit: str | None = None
    anything: bool = False

    def among(self, storage: pa.Array) -> Bools:
        """bool[n]: which of these cells (of any binary type) are among them."""
        if not pa.types.is_large_binary(storage.type):
            storage = storage.cast(pa.large_binary())
        found = pc.is_in(storage, self.cells)
        if self.null:
            found = pc.or_(found, storage.is_null())
        return found.to_numpy(zero_copy_only=False)


def literals(header: Header, data_keys: Mapping[bytes, DataKey], values: Any, column: str) -> Literals:
    """Values as cells of a deterministic column, whose header was authenticated.

    Args:
        header: the column's; its objects may be several, and of several types.
        data_keys: by commitment, unwrapped and checked.
        values: one value, or any list of values: Series, Index, array, Arrow array, set.
        column: its name, for errors.
    """
    wanted, null = _listed(values, column)
    made: list[pa.Array] = [binary([])]
    misfits: list[dict[int, str]] = []
    for item in header.columns:
        recorded = {key: value for key, value in item.type.items() if key != "categories"}
        plain, wrong = codec.literals(recorded, str(item.kind), wanted, null=null)
        key = data_keys[item.data_key].cell_key(item)
        made.append(to_storage(siv.seal_cells(key.key, key.prefix, plain)).cast(pa.large_binary()))
        misfits.append(wrong)
    misfit = None
    if nowhere := set(misfits[0]).intersection(*misfits[1:]):
        types = " | ".join(dict.fromkeys(codec.label(item.type) for item in header.columns))
        misfit = f"column {column!r} ({types}) cannot hold what is looked for: {misfits[0][min(nowhere)]}"
    anything = all(_is_of_objects(item.type) for item in header.columns)
    return Literals(concatenated(made).unique(), null, misfit, anything)


def _is_of_objects(type_: dict[str, Any]) -> bool:
    pandas = type_.get("pandas", {})
    return "object" in pandas.get("category", {}).get("values", {}).get("pandas", pandas)


def _check_fit(looked_for: Iterable[tuple[Literals, bool]]) -> None:
    """TypeError where what is looked for fits none of the parts of a column, and is so a mistake.

    Args:
        looked_for: of each part, what is looked for in it, and whether the part has any cells.
    """
    parts = [part for part, cells in looked_for if cells or not part.anything]
    if parts and all(part.misfit for part in parts):
        raise TypeError(parts[0].misfit)


def _require_deterministic(header: Header, column: str) -> None:
    """TypeError where equal values have unequal cells."""
    if not all(item.deterministic for item in header.columns):
        raise TypeError(
            f"column {column!r} is randomised: equal values are unequal cells, so none can be found in it. "
            f"Encrypt it with deterministic=[{column!r}], or decrypt it first"
        )


def isin(
    frame: pd.DataFrame, column: str, values: Any, *, key: Key | Encrypted | None = None
) -> pd.Series[bool]:
    """See `kmsdata.api.accessor.FrameAccessor.isin`."""
    place = encrypted_column(frame, column)
    for header in place.headers:
        _require_deterministic(header, column)
    if place.others is not None and not pd.isna(place.others[~_covered(place.parts, len(frame))]).all():
        raise TypeError(f"column {column!r} holds plain values beside cells: decrypt it first")
    keys = open_keys([(column, header) for header in place.headers], key, None)
    wanted = [literals(header, keys, values, column) for header in place.headers]
    _check_fit((part, not array.isna().all()) for part, (_, array) in zip(wanted, place.parts, strict=True))
    found = np.zeros(len(frame), np.bool_)
    for (rows, array), header, part in zip(place.parts, place.headers, wanted, strict=True):
        # Cells of a key that no header names would never be found: that is said, as in decryption.
        check_key_ids(header, keys, array.storage, column)
        found[slice(None) if rows is None else rows] = part.among(array.storage)
    if place.others is not None and wanted[0].null:
        found |= np.asarray(pd.isna(place.others), np.bool_)
    return pd.Series(found, index=frame.index, name=column)


def _covered(parts: Iterable[tuple[Any, Any]], size: int) -> Bools:
    covered = np.zeros(size, np.bool_)
    for rows, _ in parts:
        covered[slice(None) if rows is None else rows] = True
    return covered


def _listed(values: Any, column: str) -> tuple[list[Any], bool]:
    """The values that are not null, as scalars, and whether there are nulls among them."""
    dtype = getattr(values, "dtype", getattr(values, "type", None))
    if isinstance(dtype, EncryptedDtype | EncryptedType):
        raise _cells(column)
    if isinstance(values, pd.DataFrame | pa.Table):
        raise TypeError("what is looked for is one value or a list of values, not a table")
    if isinstance(values, pa.Scalar):
        every = [values.as_py()]
    elif isinstance(values, pa.Array | pa.ChunkedArray):
        every = values.to_pylist()
    elif isinstance(values, np.ndarray):
        every = list(values.reshape(-1))  # its tolist() makes integers of nanoseconds
    elif isinstance(values, bytearray | memoryview) or not pd.api.types.is_list_like(values):
        every = [values]
    else:
        every = list(values)
    if any(isinstance(value, Cell) for value in every):
        raise _cells(column)
    present = [value for value in every if not _is_null(value)]
    return present, len(present) < len(every)


def _is_null(value: Any) -> bool:
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def _cells(column: str) -> TypeError:
    return TypeError(f"these are cells, not values: df[{column!r}].isin(...) compares cells")


class FileSearch:
    """Row filters of which some are on deterministic columns of Parquet files, answered on ciphertext.

    Args:
        filters: as pandas takes them: a list of terms that must all hold, or a list of such lists of which
            one must.
        files: of each file its encrypted columns; at least one of them is in the filters.
        key: only these may open them.

    Raises:
        TypeError: what ciphertext cannot answer, or a value that the column can hold in none of the files.
    """

    def __init__(
        self, filters: Any, files: Iterable[Mapping[str, Header]], key: Key | Encrypted | None
    ) -> None:
        self._groups = filter_terms(filters)
        every = {(name, header) for headers in files for name, header in headers.items()}
        sealed = [term for group in self._groups for term in group if term[0] in {name for name, _ in every}]
        used = sorted({term[0] for term in sealed})
        headers = {
            column: list({header.text: header for name, header in every if name == column}.values())
            for column in used
        }
        for column in used:
            for header in headers[column]:
                _require_deterministic(header, column)
        for term in sealed:
            _check_term(*term)
        self.columns = list(dict.fromkeys(term[0] for group in self._groups for term in group))
        self._keys = open_keys([(name, header) for name in used for header in headers[name]], key, None)
        self._literals: dict[tuple[int, str], Literals] = {}
        self._doubtful: dict[str, str] = {}
        for term in sealed:
            column, sign, value = term
            wanted = value if sign in ("in", "not in") else [value]
            parts = [literals(header, self._keys, wanted, column) for header in headers[column]]
            self._literals |= {
                (id(term), header.text): part for header, part in zip(headers[column], parts, strict=True)
            }
            self._literals[id(term), ""] = Literals(binary([]), parts[0].null)  # for files without it
            wrong = [part for part in parts if part.misfit]
            if len(wrong) == len(parts):
                if not all(part.anything for part in parts):
                    raise TypeError(next(part.misfit for part in parts if not part.anything))
                self._doubtful[column] = str(parts[0].misfit)

    def rows(
        self, fragment: Any, schema: pa.Schema, headers: Mapping[str, Header], columns: list[str]
    ) -> pa.Table:
        """The matching rows of one file; of the others nothing but the columns of the filter is decoded.

        Args:
            fragment: the file, of a pyarrow dataset.
            schema: its columns, and those that its folders' names say.
            headers: of its encrypted columns.
            columns: those to read.

        Raises:
            TamperedError, WrongKeyError: what cannot be a cell of the filter's columns.
            TypeError: a value that the column cannot hold.
            FormatError: the file is another one than a moment ago.
        """
        # It is read more than once, so it is opened once: rows of two files must not be put together.
        with fragment.open() as source:
            opened = fragment.format.make_fragment(source, partition_expression=fragment.partition_expression)
            if not _same(opened.physical_schema, fragment.physical_schema):
                raise FormatError(f"{fragment.path} changed while it was read: try again", path=fragment.path)
            # Reading ahead is for networks; on a disk it only takes memory, and so time.
            local = isinstance(fragment.filesystem, pafs.LocalFileSystem)
            how = ds.ParquetFragmentScanOptions(pre_buffer=not local)
            return self._rows(opened, schema, headers, columns, how)

    def _rows(
        self, file: Any, schema: pa.Schema, headers: Mapping[str, Header], columns: list[str], how: Any
    ) -> pa.Table:
        empty = schema.empty_table().select(columns)
        mine = [name for name in columns if name in self.columns]
        others = [name for name in columns if name not in self.columns]

        def matching(group: Any) -> pa.Table:
            answers = group.to_table(
                schema=_stored(schema),
                columns=self._questions(schema, headers, mine),
                fragment_scan_options=how,
            )
            self._check_answers(answers, file, schema, headers)
            match = pc.fill_null(answers["\0match"], False)
            if not pc.any(match).as_py():
                return empty
            table = answers.select(mine).filter(match)
            found = {name: _as(schema.field(name).type, table[name]) for name in mine}
            if others:
                rest = group.to_table(schema=schema, columns=others, fragment_scan_options=how)
                rest = rest.filter(match)
                found |= {name: rest[name] for name in others}
            return pa.table([found[name] for name in columns], schema=empty.schema)

        pruned = self._pruned(file, schema, headers)
        groups = pruned.split_by_row_group() if pruned.row_groups else []
        if len(groups) < 2:
            return pa.concat_tables([empty, *map(matching, groups)])
        # Arrow decodes columns side by side, and a search has few: so row groups go side by side as well.
        with ThreadPoolExecutor(min(_ROW_GROUPS, pa.cpu_count())) as pool:
            return pa.concat_tables([empty, *pool.map(matching, groups)])

    def _pruned(self, fragment: Any, schema: pa.Schema, headers: Mapping[str, Header]) -> Any:
        """The file's row groups that may match as far as folders' names and plain columns' statistics say."""
        plain = [[term for term in group if term[0] not in headers] for group in self._groups]
        if not all(plain) or any(
            isinstance(schema.field(term[0]).type, EncryptedType) for g in plain for term in g
        ):
            return fragment
        return fragment.subset(filter=pq.filters_to_expression(plain), schema=_stored(schema))

    def _questions(
        self, schema: pa.Schema, headers: Mapping[str, Header], columns: list[str]
    ) -> dict[str, ds.Expression]:
        """What is asked of each row: whether it matches, whether its cells are strange; and these columns."""
        stored = _stored(schema)
        asked: dict[str, Any] = {name: ds.field(name) for name in columns}
        asked["\0match"] = functools.reduce(
            operator.or_,
            [
                functools.reduce(operator.and_, [self._condition(term, schema, headers) for term in terms])
                for terms in self._groups
            ],
        )
        for name in self._searched(headers):
            prefixes = [self._keys[item.data_key].cell_key(item).prefix for item in headers[name].columns]
            cell = ds.field(name)
            if pa.types.is_fixed_size_binary(stored.field(name).type):  # Arrow looks into no others
                cell = cell.cast(pa.binary())
            known = [pc.starts_with(cell, pattern=prefix) for prefix in prefixes]
            asked[f"\0stranger {name}"] = ~functools.reduce(operator.or_, known)
            if name in self._doubtful:
                asked[f"\0cell {name}"] = cell.is_valid()
        return asked

    def _check_answers(
        self, answers: pa.Table, file: Any, schema: pa.Schema, headers: Mapping[str, Header]
    ) -> None:
        for name in self._searched(headers):
            # Cells of a key that no header names would never be found: that is said, as in decryption.
            if pc.any(answers[f"\0stranger {name}"]).as_py():
                cells = plain_binary(file.to_table(schema=_stored(schema), columns=[name])[name])
                check_key_ids(headers[name], self._keys, cells, name)
            if name in self._doubtful and pc.any(answers[f"\0cell {name}"]).as_py():
                raise TypeError(self._doubtful[name])

    def _searched(self, headers: Mapping[str, Header]) -> list[str]:
        return [name for name in headers if name in self.columns]

    def _condition(self, term: Term, schema: pa.Schema, headers: Mapping[str, Header]) -> ds.Expression:
        column, sign, _ = term
        field, stored = ds.field(column), schema.field(column).type
        if isinstance(stored, EncryptedType):
            stored = stored.storage_type
        elif column not in headers:
            return pq.filters_to_expression([term])
        wanted = self._literals[id(term), headers[column].text if column in headers else ""]
        cells = fitted(wanted.cells, stored)
        if cells.type != stored:
            field = field.cast(pa.large_binary())
        found = field.isin(cells)
        if sign in ("in", "not in"):
            found = found | field.is_null() if wanted.null else found
            return found if sign == "in" else ~found
        if wanted.null:
            return ds.scalar(False)
        return found if sign in ("=", "==") else ~found & field.is_valid()


def filter_terms(filters: Any) -> list[list[Term]]:
    """The lists of terms (column, sign, value) of which one must hold whole, as pandas takes them."""
    groups = [filters] if filters and isinstance(filters[0], tuple) else list(filters)
    if not groups or not all(groups) or any(len(term) != 3 for group in groups for term in group):
        raise ValueError("filters are a list of terms (column, sign, value), or a list of such lists")
    return [[tuple(term) for term in group] for group in groups]


def _check_term(column: str, sign: str, value: Any) -> None:
    if sign in ("in", "not in"):
        if not pd.api.types.is_list_like(value):
            raise TypeError(f"column {column!r}: {sign!r} takes a list of values")
    elif sign in ("=", "==", "!="):
        if pd.api.types.is_list_like(value):
            raise TypeError(f"column {column!r}: {sign!r} takes one value: for several there is 'in'")
    elif sign in ("<", "<=", ">", ">="):
        raise TypeError(
            f"column {column!r} is encrypted, and ciphertext has no order: filter it by ==, !=, in or "
            "not in, or decrypt, then filter"
        )
    else:
        pq.filters_to_expression([(column, sign, value)])  # which says what is wrong


def _as(type_: pa.DataType, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cells as what they are stored as, in their own type again."""
    if not isinstance(type_, EncryptedType):
        return values
    return pa.chunked_array([pa.ExtensionArray.from_storage(type_, chunk) for chunk in values.chunks], type_)


def _stored(schema: pa.Schema) -> pa.Schema:
    """The schema with cells as what they are stored as: Arrow's functions do not know their type."""
    for number, field in enumerate(schema):
        if isinstance(field.type, EncryptedType):
            schema = schema.set(number, field.with_type(field.type.storage_type))
    return schema


def _same(one: pa.Schema, two: pa.Schema) -> bool:
    """Whether two schemas of a file say the same, but for the wraps: it may be rewrapped meanwhile."""
    texts = [dict(schema.metadata or {}) for schema in (one, two)]
    entries = [text.pop(ENTRY, b"") for text in texts]
    if texts[0] != texts[1] or not one.remove_metadata().equals(two.remove_metadata(), check_metadata=True):
        return False
    if entries[0] == entries[1]:
        return True
    try:
        said = [parse_file(entry.decode("utf-8", "surrogateescape")) for entry in entries]
    except FormatError:
        return False
    return all(
        list(headers) == list(said[0])
        and all(header.columns == said[0][name].columns for name, header in headers.items())
        for headers in said
    )
