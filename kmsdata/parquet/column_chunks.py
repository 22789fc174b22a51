"""Rewrite a Parquet file with some columns replaced; copy every other column chunk byte for byte.

Plain columns therefore keep what is lost when a file is read and written again: encodings, compression,
statistics, page indexes, bloom filters, and types of later Parquet versions. They are never decoded, so they
need no memory, and only the time of a copy. Nothing of a replaced column is copied: no statistics, no
indexes and no bloom filter.

The numbers are the field ids of parquet.thrift, in the Parquet format 2.12.
"""

from __future__ import annotations

import base64
import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from kmsdata.errors import FormatError
from kmsdata.parquet.footer import MAGIC, FileMetaData, bloom_filter_length, ending, page_range, read_metadata
from kmsdata.parquet.thrift import BINARY, I32, I64, LIST, STRUCT, Struct, decode, encode, value

__all__ = ["PART", "Replacement", "arrow_field", "arrow_schema", "arrow_view", "rewrite"]

_SCHEMA = b"ARROW:schema"
_FIELD_ID = b"PARQUET:field_id"
_EXTENSION = (b"ARROW:extension:name", b"ARROW:extension:metadata")

PART = 64 << 20  # bytes of a column that are encoded at once; a larger chunk has no dictionary
_COPY = 8 << 20


class Sink(Protocol):
    """A file that is open for writing and is written from start to end."""

    def write(self, data: Any, /) -> Any:
        """Write these bytes."""
        ...


@dataclass(frozen=True)
class Replacement:
    """The new version of a column.

    Attributes:
        field: its Arrow name and type, as it is written.
        settings: how to write it: keyword arguments of `pyarrow.parquet.write_table`.
        elements: its part of the Parquet schema, for whose pages these settings fit.
        arrow: its field in the Arrow schema of the file, if the file has one; None: ``field``.
        convert: converts values to the type of ``field``; None: they have it.
    """

    field: pa.Field
    settings: Mapping[str, Any]
    elements: Sequence[Struct]
    arrow: pa.Field | None = None
    convert: Callable[[Any], Any] | None = None

    @classmethod
    def of(cls, field: pa.Field, settings: Mapping[str, Any]) -> Replacement:
        """Return a column with the part of the Parquet schema that pyarrow writes for it."""
        return cls(field, settings, _encoded(field, None, settings).elements)


def _refuse(path: str, why: str) -> NoReturn:
    raise FormatError(f"{path}: {why}", path=path)


class _Output:
    def __init__(self, sink: Sink) -> None:
        self._sink, self.at = sink, 0

    def write(self, data: Any) -> None:
        self._sink.write(data)
        self.at += len(data)

    def copy(self, file: pa.NativeFile, start: int, length: int, path: str) -> None:
        for at in range(start, start + length, _COPY):
            piece = file.read_at(min(_COPY, start + length - at), at)
            if len(piece) != min(_COPY, start + length - at):
                _refuse(path, "the file became shorter while it was read. Try again")
            self.write(piece)


Replacements = Callable[[int], Mapping[str, Callable[[], Iterable[Any]]]]
"""Maps a row group number to one function per column, which makes values in arrays of about `PART` bytes."""


def rewrite(
    file: pa.NativeFile,
    path: str,
    footer: FileMetaData,
    sink: Sink,
    replaced: Mapping[str, Replacement],
    replacements: Replacements,
    schema: pa.Schema,
    metadata: Mapping[bytes, bytes],
    done: Callable[[int], None],
) -> int:
    """Write a copy of a Parquet file with some columns replaced.

    Args:
        file: the source file.
        path: its path, for errors.
        footer: its footer.
        sink: the file to write.
        replaced: the new version of each replaced column, by name.
        replacements: makes the values of a row group's replaced columns.
        schema: the Arrow schema that readers will see, with the metadata that Arrow shows.
        metadata: key-value metadata of the result, whose Arrow schema is not used: the result has that of
            ``schema``, if the source has one. Without it, readers type plain columns by their Parquet types.
        done: called after each row group with its number of rows.

    Returns:
        The size of the result, in bytes.

    Raises:
        FormatError: the file was cut short, or the result would not be readable.
    """
    out = _Output(sink)
    out.write(MAGIC)
    blanks = {name: list(column.elements) for name, column in replaced.items()}
    places: list[list[int | None]] = []  # the old numbers of each top-level column's leaves; None: a new leaf
    for name, leaves in footer.columns:
        places.append(
            [None] * sum(not value(part, 5, 0) for part in blanks[name]) if name in replaced else list(leaves)
        )
    order = [old for group in places for old in group]
    groups: list[Struct] = []
    moved: list[tuple[Struct, Struct]] = []
    made: list[Struct] = []
    parts: Mapping[str, Callable[[], Iterable[Any]]] = {}
    try:
        for number, group in enumerate(footer.groups):
            chunks = value(group, 1)[1]
            parts = replacements(number)
            made = []
            for (name, leaves), group_places in zip(footer.columns, places, strict=True):
                if name in replaced:
                    rows = value(group, 3)
                    for leaf in range(len(group_places)):
                        made.append(_write_leaf(out, replaced[name], parts[name], leaf, rows))
                    continue
                for leaf in leaves:
                    chunk = _moved(chunks[leaf], out.at - page_range(value(chunks[leaf], 3))[0])
                    out.copy(file, *page_range(value(chunks[leaf], 3)), path)
                    moved.append((chunks[leaf], chunk))
                    made.append(chunk)
            groups.append(_group(group, made, order))
            parts = {}  # free this row group before the next one is made
            done(value(group, 3))
    except BaseException:
        # Statistics of decrypted columns are plaintext: no traceback may keep them in memory.
        groups.clear()
        made.clear()
        parts = {}
        raise
    for old, chunk in moved:
        _copy_bloom_filter(out, file, path, value(old, 3), value(chunk, 3))
    for old, chunk in moved:
        if 6 in old and 7 in old:  # a column index contains no file positions, so it is copied unchanged
            chunk[6] = I64, out.at
            out.copy(file, value(old, 6), value(old, 7), path)
    for old, chunk in moved:
        if 4 in old and 5 in old:
            _copy_offset_index(out, file, old, chunk, path)
    entries = _entries(footer, replaced, schema, metadata, path)
    body = encode(_file(footer, replaced, blanks, places, groups, entries))
    _check(body, schema, path)
    out.write(ending(body))
    return out.at


def _check(body: bytes, schema: pa.Schema, path: str) -> None:
    """Raise FormatError unless Arrow reads the intended schema from the new footer."""
    alone = pa.BufferReader(MAGIC + ending(body))  # a schema is readable without the pages
    try:
        seen = pq.ParquetFile(alone).schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise FormatError(
            f"{path}: cannot be rewritten: Arrow cannot read the new footer", path=path
        ) from error
    for field, shown in zip(schema, seen, strict=True):
        if shown.type != field.type:
            raise FormatError(
                f"{path}: column {field.name!r} cannot be rewritten: readers would see it as {shown.type}, "
                f"not {field.type}",
                path=path,
                column=field.name,
            )


def _file(
    footer: FileMetaData,
    replaced: Mapping[str, Replacement],
    blanks: Mapping[str, list[Struct]],
    places: Sequence[Sequence[int | None]],
    groups: list[Struct],
    entries: list[Struct],
) -> Struct:
    elements: list[Struct] = [value(footer.fields, 2)[1][0]]
    for (name, _), old in zip(footer.columns, footer.elements, strict=True):
        if name not in replaced:
            elements += old
            continue
        first, *rest = blanks[name]
        # Keep the original field id (9): table formats such as Iceberg find columns by it.
        first = {number: item for number, item in first.items() if number != 9}
        if 9 in old[0]:
            first[9] = old[0][9]
        elements += [first, *rest]
    out = {
        **footer.fields,
        2: (LIST, (STRUCT, elements)),
        4: (LIST, (STRUCT, groups)),
        5: (LIST, (STRUCT, entries)),
    }
    if not entries:
        del out[5]
    if 7 in footer.fields:
        orders: list[Struct] = value(footer.fields, 7)[1]
        by_type: Struct = {1: (STRUCT, {})}  # TypeDefinedOrder
        kept = [by_type if old is None else orders[old] for group in places for old in group]
        out[7] = LIST, (STRUCT, kept)
    return out


def _entries(
    footer: FileMetaData,
    replaced: Mapping[str, Replacement],
    schema: pa.Schema,
    metadata: Mapping[bytes, bytes],
    path: str,
) -> list[Struct]:
    """Return the key-value entries in their old order; a new one is before the one that follows it."""
    before, after = footer.metadata, dict(metadata)
    if (arrow := arrow_schema(footer, path)) is not None:
        if arrow.names != schema.names:
            arrow = schema  # Arrow shows the names of the Parquet schema
        for name, column in replaced.items():
            position = arrow.get_field_index(name)
            arrow = arrow.set(position, column.arrow or column.field)
        # with_metadata(None) would store an empty list of entries.
        arrow = arrow.with_metadata(schema.metadata) if schema.metadata else arrow.remove_metadata()
        after[_SCHEMA] = base64.b64encode(arrow.serialize().to_pybytes())
    out: list[Struct] = []
    for entry in value(footer.fields, 5, (STRUCT, []))[1]:
        key = value(entry, 1)
        if key in after:
            out.append(entry if after[key] == before[key] else {**entry, 2: (BINARY, after[key])})
    later: bytes | None = None
    for key, text in reversed(after.items()):
        if key not in before:
            keys = [value(entry, 1) for entry in out]
            new: Struct = {1: (BINARY, key), 2: (BINARY, text)}
            out.insert(keys.index(later) if later is not None else len(out), new)
        later = key
    return out


def arrow_schema(footer: FileMetaData, path: str) -> pa.Schema | None:
    """Return the Arrow schema that is stored in a footer, if there is one.

    Arrow shows another one (`pyarrow.parquet.ParquetFile.schema_arrow`): it adds ids of fields, and ignores
    types that do not fit to the Parquet schema.

    Raises:
        FormatError: it is damaged.
    """
    if (text := footer.metadata.get(_SCHEMA)) is None:
        return None
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
        _ = schema.names  # decoded only here
    except (ValueError, pa.ArrowException, OSError):
        _refuse(path, "the entry 'ARROW:schema' of its metadata is damaged")
    return schema


def arrow_field(
    stored: pa.Schema | None, shown: pa.Field, kind: pa.DataType, *, encrypted: bool = False
) -> pa.Field:
    """Return a column's field for the Arrow schema of a file, with another type and the same metadata.

    Args:
        stored: the Arrow schema that is stored in the file.
        shown: the field that Arrow shows.
        kind: the new type.
        encrypted: leave out metadata except the field id: it may contain values, such as Polars' categories.
    """
    field = stored.field(shown.name) if stored is not None and shown.name in stored.names else shown
    # The metadata of an extension type that is not registered would contradict the new type.
    kept = [key for key in field.metadata or () if (key == _FIELD_ID if encrypted else key not in _EXTENSION)]
    rest = {key: field.metadata[key] for key in kept}
    field = field.with_type(kind)
    return field.with_metadata(rest) if rest else field.remove_metadata()


def arrow_view(elements: Sequence[Struct], arrow: pa.Field | None) -> pa.Field:
    """Return the field that Arrow shows for a column with this part of the Parquet schema.

    Args:
        elements: the part of the Parquet schema.
        arrow: the field in the file's Arrow schema; None: the file has no Arrow schema.
    """
    root: Struct = {4: (BINARY, b"schema"), 5: (I32, 1)}
    file: Struct = {1: (I32, 2), 2: (LIST, (STRUCT, [root, *elements])), 3: (I64, 0), 4: (LIST, (STRUCT, []))}
    if arrow is not None:
        text = base64.b64encode(pa.schema([arrow]).serialize().to_pybytes())
        file[5] = LIST, (STRUCT, [{1: (BINARY, _SCHEMA), 2: (BINARY, text)}])
    return pq.ParquetFile(pa.BufferReader(MAGIC + ending(encode(file)))).schema_arrow.field(0)


def _moved(chunk: Struct, by: int) -> Struct:
    """Return a ColumnChunk whose pages are moved; without indexes and bloom filter, which are added later."""
    meta = dict(value(chunk, 3))
    for field in (9, 10, 11):  # offsets of the data, index and dictionary pages
        if value(meta, field):
            meta[field] = I64, value(meta, field) + by
    meta.pop(14, None)  # the offset of the bloom filter
    if bloom_filter_length(meta) is not None:
        del meta[15]
    file_offset = value(chunk, 2, 0)
    return {2: (I64, file_offset + by if file_offset else 0), 3: (STRUCT, meta)}


def _copy_bloom_filter(out: _Output, file: pa.NativeFile, path: str, old: Struct, new: Struct) -> None:
    start = value(old, 14)
    if start is None:
        return
    length = bloom_filter_length(old)
    if (
        length is None
    ):  # the field is optional: older writers store the length only in the filter's own header
        try:
            header, used = decode(bytes(file.read_at(64, start)) + bytes(1))
            length = used + value(header, 1)
        except (FormatError, TypeError):
            _refuse(path, "its bloom filter is damaged")
    new[14] = I64, out.at
    new[15] = I32, length
    out.copy(file, start, length, path)


def _copy_offset_index(out: _Output, file: pa.NativeFile, old: Struct, chunk: Struct, path: str) -> None:
    by = page_range(value(chunk, 3))[0] - page_range(value(old, 3))[0]
    try:
        index, _ = decode(bytes(file.read_at(value(old, 5), value(old, 4))))
        pages = value(index, 1)[1]
        index[1] = LIST, (STRUCT, [{**page, 1: (I64, value(page, 1) + by)} for page in pages])
    except (FormatError, TypeError):
        _refuse(path, "its page index is damaged")
    written = encode(index)
    chunk[4], chunk[5] = (I64, out.at), (I32, len(written))
    out.write(written)
    if 6 in chunk:
        chunk[7] = old[7]


def _group(old: Struct, chunks: list[Struct], order: Sequence[int | None]) -> Struct:
    """Return a RowGroup with these column chunks; ``order`` has the old number of each."""
    metas = [value(chunk, 3) for chunk in chunks]
    new = {**old, 1: (LIST, (STRUCT, chunks)), 2: (I64, sum(value(meta, 6) for meta in metas))}
    if 5 in old and metas:
        new[5] = I64, page_range(metas[0])[0]
    if 6 in old:
        new[6] = I64, sum(value(meta, 7) for meta in metas)
    if 4 in old:
        # Rows stay sorted only by the columns before the first replaced one: cells have no order.
        kept: list[Struct] = []
        for column in value(old, 4)[1]:
            if value(column, 1) not in order:
                break
            kept.append({**column, 1: (I32, order.index(value(column, 1)))})
        new[4] = LIST, (STRUCT, kept)
        if not kept:
            del new[4]
    return new


# --- new column chunks ----------------------------------------------------------------------------


class _Pieces:
    """An in-memory file that keeps its pieces as written: a growing buffer would be copied often."""

    closed = False

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._ends: list[int] = []
        self._position = 0

    def write(self, data: Any) -> int:
        self._pieces.append(bytes(data))
        self._ends.append(self.size() + len(self._pieces[-1]))
        return len(self._pieces[-1])

    def size(self) -> int:
        return self._ends[-1] if self._ends else 0

    tell = size

    def between(self, start: int, stop: int) -> Iterator[memoryview]:
        for number in range(bisect.bisect_right(self._ends, start), len(self._pieces)):
            begin = self._ends[number] - len(self._pieces[number])
            if begin >= stop:
                return
            yield memoryview(self._pieces[number])[max(start - begin, 0) : stop - begin]

    def seek(self, position: int) -> None:
        self._position = position  # for reading only: writes always append

    def read(self, count: int) -> bytes:
        return b"".join(self.between(self._position, self._position + count))

    def flush(self) -> None:
        pass

    close = flush


@dataclass(frozen=True)
class _Encoded:
    """A column as pyarrow writes it: its schema elements, and its leaves with their pages."""

    elements: list[Struct]
    leaves: list[Struct]
    data: _Pieces


def _encoded(field: pa.Field, values: Any, settings: Mapping[str, Any]) -> _Encoded:
    """Encode a column as the only one of an in-memory Parquet file; None means no rows."""
    column = pa.chunked_array([] if values is None else getattr(values, "chunks", [values]), field.type)
    data = _Pieces()
    table = pa.Table.from_arrays([column], schema=pa.schema([field]))
    with pa.PythonFile(data, mode="w") as sink:
        pq.write_table(table, sink, store_schema=False, row_group_size=max(len(column), 1), **settings)
    footer = read_metadata(data, data.size(), field.name)
    ((_, leaves),) = footer.columns
    metas = [value(chunk, 3) for group in footer.groups for chunk in value(group, 1)[1]]
    if len(metas) != len(leaves):
        raise ValueError(f"column {field.name!r}: {len(column)} rows do not fit into one row group")
    return _Encoded(footer.elements[0], metas, data)


def _write_leaf(
    out: _Output, column: Replacement, parts: Callable[[], Iterable[Any]], leaf: int, rows: int
) -> Struct:
    """Write the pages of one leaf of a column; several parts follow each other in one chunk.

    A chunk has at most one dictionary, and each part would need its own. So a chunk of several parts has no
    dictionary, and no statistics, which would be those of one part.
    """
    iterator: Iterator[Any] = iter(parts())
    values = next(iterator, None)
    if values is None:
        raise FormatError(
            f"column {column.field.name!r} cannot be read: a row group has no values for its rows"
        )
    settings: Mapping[str, Any] = column.settings
    if len(values) < rows:
        settings = {**settings, "use_dictionary": False, "write_statistics": False}
    began, done = out.at, 0
    meta: Struct = {}
    while values is not None:
        done += len(values)
        encoded = _encoded(column.field, column.convert(values) if column.convert else values, settings)
        values = None  # free this part before the next one is made
        one = encoded.leaves[leaf]
        start, length = page_range(one)
        if not meta:
            by = out.at - start
            meta = {**one, **{f: (I64, value(one, f) + by) for f in (9, 11) if value(one, f)}}
        else:
            for field in (5, 6, 7):  # number of values, uncompressed and compressed size
                meta[field] = I64, value(meta, field) + value(one, field)
            inner, known = value(meta, 2)
            meta[2] = LIST, (inner, sorted({*known, *value(one, 2)[1]}))
            for field in (12, 13, 16, 17):  # statistics of one part are wrong for the whole chunk
                meta.pop(field, None)
        for piece in encoded.data.between(start, start + length):
            out.write(piece)
        del encoded
        values = next(iterator, None)
    if done != rows or out.at - began != value(meta, 7):
        raise FormatError(
            f"column {column.field.name!r}: a row group must have {rows} rows, but {done} were read",
            column=column.field.name,
        )
    meta[3] = LIST, (BINARY, _paths(column.elements)[leaf])  # fastparquet finds chunks by it
    return {2: (I64, 0), 3: (STRUCT, meta)}


def _paths(elements: Sequence[Struct]) -> list[list[bytes]]:
    """Return the names above and of each leaf of a column, from its part of the Parquet schema."""
    found: list[list[bytes]] = []
    inside: list[tuple[int, list[bytes]]] = [(1, [])]  # open groups: children left, and their path
    for element in elements:
        left, above = inside.pop()
        if left > 1:
            inside.append((left - 1, above))
        path, children = [*above, value(element, 4)], value(element, 5, 0)
        if children:
            inside.append((children, path))
        else:
            found.append(path)
    return found
