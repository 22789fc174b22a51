"""Evaluate row filters on deterministic columns of Parquet files, on ciphertext."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from kmsdata.codec.null_arrays import null_rows
from kmsdata.errors import CallerTypeError, CallerValueError, FormatError
from kmsdata.frames.arrow_storage import binary, fitted, plain_binary
from kmsdata.frames.column import check_key_ids, header_key_ids
from kmsdata.frames.dtype import EncryptedType
from kmsdata.frames.encrypted_columns import Encrypted
from kmsdata.frames.key_argument import resolve_key
from kmsdata.frames.search import Literals, literals, require_deterministic
from kmsdata.keys.envelope import ENTRY, Header, parse_file
from kmsdata.keys.session import Key
from kmsdata.keys.unwrap import open_keys
from kmsdata.parquet.headers import damaged

__all__ = ["FileSearch", "filter_terms"]

_ROW_GROUPS = 4  # row groups in memory at the same time

Term: TypeAlias = tuple[Any, str, Any]


class FileSearch:
    """Row filters on Parquet files, at least one of them on a deterministic column.

    Args:
        filters: as pandas takes them: a list of terms that must all be true, or a list of such lists, one of
            which must be true.
        files: for each file its encrypted columns and their headers; the filters use at least one of them.
        key: the only keys that may decrypt the columns.

    Raises:
        TypeError: a filter that ciphertext cannot answer, or a value that no file's column can contain.
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
                require_deterministic(header, column)
        for term in sealed:
            _check_term(*term)
        self.columns = list(dict.fromkeys(term[0] for group in self._groups for term in group))
        self._keys = open_keys(
            [(name, header) for name in used for header in headers[name]], resolve_key(key), None
        )
        self._literals: dict[tuple[int, str], Literals] = {}
        self._doubtful: dict[str, str] = {}
        for term in sealed:
            column, sign, value = term
            wanted = value if sign in ("in", "not in") else [value]
            parts = [literals(header, self._keys, wanted, column) for header in headers[column]]
            self._literals |= {
                (id(term), header.text): part for header, part in zip(headers[column], parts, strict=True)
            }
            # Key "" is for files in which the column is not encrypted: no cell matches there.
            self._literals[id(term), ""] = Literals(binary([]), parts[0].null)
            wrong = [part for part in parts if part.misfit]
            if len(wrong) == len(parts):
                if not all(part.anything for part in parts):
                    raise CallerTypeError(next(part.misfit for part in parts if not part.anything))
                self._doubtful[column] = str(parts[0].misfit)

    def rows(
        self, fragment: Any, schema: pa.Schema, headers: Mapping[str, Header], columns: list[str]
    ) -> pa.Table:
        """Return the matching rows of one file; only the filter's columns of other rows are decoded.

        Args:
            fragment: the file, a fragment of a pyarrow dataset.
            schema: its columns, and those whose values are in the names of its folders.
            headers: the headers of its encrypted columns.
            columns: names of the columns to read.

        Raises:
            TamperedError, WrongKeyError: a value in a filter's column that is not a cell of it.
            TypeError: a filter's value that the column cannot contain.
            FormatError: the file is damaged, or was replaced after its header was read.
        """
        # The file is read several times. It is opened once, so that a file which replaces it meanwhile cannot
        # contribute some of the rows.
        with fragment.open() as source:
            opened = fragment.format.make_fragment(source, partition_expression=fragment.partition_expression)
            if not _same(opened.physical_schema, fragment.physical_schema):
                raise FormatError(
                    f"{fragment.path} was changed while it was read. Try again", path=fragment.path
                )
            # pre_buffer (Arrow's default) saves requests on remote filesystems. On a local disk it only costs
            # memory, and therefore time.
            local = isinstance(fragment.filesystem, pafs.LocalFileSystem)
            how = ds.ParquetFragmentScanOptions(pre_buffer=not local, page_checksum_verification=True)
            try:
                return self._rows(opened, schema, headers, columns, how)
            except OSError as error:
                if error.errno is not None:  # an error of the system: Arrow's have none
                    raise
                raise damaged(fragment.path) from error

    def _rows(
        self, file: Any, schema: pa.Schema, headers: Mapping[str, Header], columns: list[str], how: Any
    ) -> pa.Table:
        shown = pa.schema([schema.field(name) for name in columns], schema.metadata)
        empty = pa.Table.from_arrays([null_rows(kind, 0) for kind in shown.types], schema=shown)
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
        # Arrow decodes columns in parallel, but a search has few columns: decode row groups in parallel too.
        with ThreadPoolExecutor(min(_ROW_GROUPS, pa.cpu_count())) as pool:
            return pa.concat_tables([empty, *pool.map(matching, groups)])

    def _pruned(self, fragment: Any, schema: pa.Schema, headers: Mapping[str, Header]) -> Any:
        """Drop the row groups that cannot match by folder names and by the statistics of plain columns."""
        plain = [[term for term in group if term[0] not in headers] for group in self._groups]
        if not all(plain) or any(
            isinstance(schema.field(term[0]).type, EncryptedType) for g in plain for term in g
        ):
            return fragment
        return fragment.subset(filter=pq.filters_to_expression(plain), schema=_stored(schema))

    def _questions(
        self, schema: pa.Schema, headers: Mapping[str, Header], columns: list[str]
    ) -> dict[str, ds.Expression]:
        """Return what to compute for each row: does it match, are its cells unknown, and these columns."""
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
            if pa.types.is_fixed_size_binary(
                stored.field(name).type
            ):  # starts_with does not support this type
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
            # Cells of a key that no header names could never match. Raise, as decryption does, instead of
            # returning an incomplete result.
            if pc.any(answers[f"\0stranger {name}"]).as_py():
                cells = plain_binary(file.to_table(schema=_stored(schema), columns=[name])[name])
                check_key_ids(header_key_ids(headers[name], self._keys), cells, name)
            if name in self._doubtful and pc.any(answers[f"\0cell {name}"]).as_py():
                raise CallerTypeError(self._doubtful[name])

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
    """Return filters as lists of terms (column, operator, value); all terms of one list must be true."""
    groups = [filters] if filters and isinstance(filters[0], tuple) else list(filters)
    if not groups or not all(groups) or any(len(term) != 3 for group in groups for term in group):
        raise CallerValueError(
            "filters must be a list of terms (column, operator, value), or a list of such lists"
        )
    return [[tuple(term) for term in group] for group in groups]


def _check_term(column: str, sign: str, value: Any) -> None:
    if sign in ("in", "not in"):
        if not pd.api.types.is_list_like(value):
            raise CallerTypeError(f"column {column!r}: {sign!r} needs a list of values")
    elif sign in ("=", "==", "!="):
        if pd.api.types.is_list_like(value):
            raise CallerTypeError(f"column {column!r}: {sign!r} takes one value. Use 'in' for several values")
    elif sign in ("<", "<=", ">", ">="):
        raise CallerTypeError(
            f"column {column!r} is encrypted, and ciphertext has no order. Filter it by ==, !=, in or "
            "not in, or decrypt first and then filter"
        )
    else:
        pq.filters_to_expression([(column, sign, value)])  # raises Arrow's own error for an unknown operator


def _as(type_: pa.DataType, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return storage values as this type, which may be the extension type of cells."""
    if not isinstance(type_, EncryptedType):
        return values
    return pa.chunked_array([pa.ExtensionArray.from_storage(type_, chunk) for chunk in values.chunks], type_)


def _stored(schema: pa.Schema) -> pa.Schema:
    """Return the schema with cells as binary: Arrow's compute functions do not support extension types."""
    for number, field in enumerate(schema):
        if isinstance(field.type, EncryptedType):
            schema = schema.set(number, field.with_type(field.type.storage_type))
    return schema


def _same(one: pa.Schema, two: pa.Schema) -> bool:
    """Tell whether two schemas of a file are equal except for the wrapped keys: a rewrap is no other file."""
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
