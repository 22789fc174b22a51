"""Read the footer of a Parquet file, and replace values of its key-value metadata.

A file ends like this::

    ... pages | FileMetaData (Thrift, compact protocol) | its length, 4 bytes, little-endian | PAR1

There are two views of a footer. `Footer` is for changes of the key-value metadata. A library that decodes and
encodes FileMetaData drops the fields that it does not know, and may change the meaning of statistics. So this
view skips over the bytes, records where the values of ``key_value_metadata`` are, and replaces only those.
`FileMetaData` is the decoded footer, for rewriting a file with other columns.

The numbers are the field ids of parquet.thrift, in the Parquet format 2.12.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeAlias

from kmsdata.errors import FormatError
from kmsdata.keys.envelope import ENTRY
from kmsdata.parquet.thrift import (
    BINARY,
    FALSE,
    I32,
    I64,
    LIST,
    STRUCT,
    Reader,
    Struct,
    refuse,
    value,
    write_binary,
)

__all__ = [
    "MAGIC", "NOT_PARQUET", "Entry", "FileMetaData", "Footer", "bloom_filter_length",
    "check_footer", "ending", "page_range", "read_footer", "read_metadata",
    "refuse_length",
]  # fmt: skip

MAGIC = b"PAR1"
NOT_PARQUET = "not a Parquet file, or it was cut short"

_ENCRYPTED_MAGIC = b"PARE"
_MOST_BYTES = 32 << 20  # a limit on time and memory, far above the footers of real files
_TAIL = 64 << 10  # bytes read first: most footers are shorter, so a remote file takes one request less
_MODULAR = (
    "encrypted or signed by Parquet Modular Encryption, which kmsdata cannot change: the signature would "
    "become invalid, and kmsdata does not have the keys. Use the tools of the software that wrote the file"
)
_ONCE = (ENTRY, b"ARROW:schema")
_TOO_LONG = (
    f"its footer has more than {_MOST_BYTES >> 20} MiB, and kmsdata reads no larger one. Write the data into "
    "several files, with fewer columns, row groups or metadata in each"
)
_OLD = (b"parquet-cpp version 1.0", b"parquet-cpp version 1.1", b"parquet-cpp version 1.2")

_REQUIRED = {1: I32, 2: LIST, 3: I64, 4: LIST}  # version, schema, num_rows, row_groups
_KEY_VALUES = 5

# The fields used of each struct: those that it must have, and the types of all that are used. A Python list
# means a list of structs.
_Kinds: TypeAlias = "tuple[set[int], dict[int, Any]]"
_ELEMENT: _Kinds = {4}, {1: I32, 2: I32, 3: I32, 4: BINARY, 5: I32, 10: (set(), {})}
_SORTING: _Kinds = {1}, {1: I32}
_META: _Kinds = (
    {2, 5, 6, 7, 9},
    {2: LIST, 4: I32, 5: I64, 6: I64, 7: I64, 9: I64, 10: I64, 11: I64, 14: I64},
)
_CHUNK: _Kinds = set(), {2: I64, 3: _META, 4: I64, 5: I32, 6: I64, 7: I32}
_GROUP: _Kinds = {1, 3}, {1: [_CHUNK], 2: I64, 3: I64, 4: [_SORTING], 5: I64, 6: I64}
_ENTRY: _Kinds = {1}, {1: BINARY, 2: BINARY}
_FILE: _Kinds = set(), {2: [_ELEMENT], 4: [_GROUP], 5: [_ENTRY], 6: BINARY, 7: LIST}


class _Source(Protocol):
    """A Python or Arrow file that is open for reading."""

    def seek(self, position: int, /) -> Any: ...

    def read(self, count: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the key-value metadata.

    Attributes:
        key: its name.
        value: its value; None if it has none.
        start: the position in the FileMetaData where the value's length begins.
        stop: the position where the value ends.
    """

    key: bytes
    value: bytes | None
    start: int = 0
    stop: int = 0


@dataclass(frozen=True, slots=True)
class Footer:
    """The bytes of a FileMetaData, and the positions of its key-value entries."""

    data: bytes
    entries: tuple[Entry, ...]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Find the key-value entries in a FileMetaData; skip everything else without decoding it.

        Raises:
            FormatError: this is not a FileMetaData, or one of Parquet Modular Encryption.
        """
        reader = Reader(data)
        entries: tuple[Entry, ...] = ()
        seen: dict[int, int] = {}
        for kind, number in reader.fields():
            if number in seen:
                refuse(f"field {number} occurs twice")
            seen[number] = kind
            if number == _KEY_VALUES:
                entries = _entries(reader, kind)
            elif kind > FALSE:
                reader.skip(kind, 1)
        _check_whole(seen, reader)
        return cls(data, entries)

    def edited(self, values: Mapping[int, bytes]) -> bytes:
        """Return the FileMetaData with other values of some entries; all other bytes are unchanged.

        Args:
            values: the new values, by position among the entries; these entries must have a value.

        Raises:
            FormatError: the result would be larger than kmsdata reads.
            ValueError: an entry has no value.

        Example:
            >>> footer = Footer.parse(bytes.fromhex("1502 190c 1600 190c 191c 18016b 180176 00 00"))
            >>> footer.edited({}) == footer.data
            True
            >>> Footer.parse(footer.edited({0: b"longer"})).entries[0].value
            b'longer'
        """
        out, at = bytearray(), 0
        for position in sorted(values):
            entry = self.entries[position]
            if entry.value is None:
                raise ValueError("the metadata entry has no value to replace")
            out += self.data[at : entry.start]
            write_binary(out, values[position])
            at = entry.stop
        out += self.data[at:]
        if len(out) > _MOST_BYTES:
            raise FormatError(_TOO_LONG)
        return bytes(out)


@dataclass(frozen=True, repr=False)  # statistics are plaintext
class FileMetaData:
    """A decoded footer.

    Attributes:
        fields: the FileMetaData struct.
        columns: for each top-level column its name, and the numbers of its leaves.
        elements: for each top-level column its part of the schema, as a list of SchemaElement.
    """

    fields: Struct
    columns: list[tuple[str, range]]
    elements: list[list[Struct]]

    @classmethod
    def parse(cls, data: bytes, size: int) -> Self:
        """Decode a FileMetaData, and check every field that kmsdata uses.

        Args:
            data: its bytes.
            size: the size of the file, in bytes.

        Raises:
            FormatError: this is not a FileMetaData, or one of Parquet Modular Encryption, or one whose column
                chunks are not all in this file.
        """
        reader = Reader(data)
        with _without_collector():
            fields: Struct = reader.read(STRUCT)
        _check_whole({number: kind for number, (kind, _) in fields.items()}, reader)
        if not _fits(fields, _FILE):
            refuse("fields are missing, or are of other types")
        if value(fields, 6, b"").startswith(_OLD):
            raise FormatError(
                "written by a version of parquet-cpp so old that its column sizes are wrong. Write the file "
                "again with newer software"
            )
        metadata = cls(fields, *_columns(value(fields, 2)[1]))
        entries = value(fields, _KEY_VALUES, (STRUCT, []))[1]
        _check_entries((value(entry, 1), value(entry, 2)) for entry in entries)
        metadata._check_chunks(size)
        return metadata

    @property
    def groups(self) -> list[Struct]:
        """The row groups."""
        found: list[Struct] = value(self.fields, 4)[1]
        return found

    @property
    def metadata(self) -> dict[bytes, bytes]:
        """The key-value metadata."""
        entries = value(self.fields, _KEY_VALUES, (STRUCT, []))[1]
        return {value(entry, 1): value(entry, 2, b"") for entry in entries}

    def _check_chunks(self, size: int) -> None:
        leaves = sum(len(numbers) for _, numbers in self.columns)
        levels = [level for elements in self.elements for level in _levels(elements)]
        pages: list[tuple[int, int]] = []
        for group in self.groups:
            chunks = value(group, 1)[1]
            if len(chunks) != leaves:
                refuse("a row group has other columns than the schema")
            for level, chunk in zip(levels, chunks, strict=True):
                if 8 in chunk or 9 in chunk:
                    raise FormatError(f"it has columns {_MODULAR}")
                if 1 in chunk or 3 not in chunk:
                    raise FormatError("its columns are in other files, which kmsdata does not support")
                meta = value(chunk, 3)
                ranges = (
                    page_range(meta),
                    (value(chunk, 4, 0), value(chunk, 5, 0)),  # offset index
                    (value(chunk, 6, 0), value(chunk, 7, 0)),  # column index
                    (value(meta, 14, 0), bloom_filter_length(meta) or 0),  # bloom filter
                )
                if any(length and not 4 <= start < start + length <= size for start, length in ranges):
                    raise FormatError("it was cut short, or its footer is damaged")
                # pyarrow (26) ends the process where such a histogram has another length.
                kind, sizes = meta.get(16, (STRUCT, {}))
                for number, deepest in zip((2, 3), level, strict=True):
                    histogram = value(sizes, number, (0, [])) if kind == STRUCT else None
                    if not isinstance(histogram, tuple) or len(histogram[1]) not in (0, deepest + 1):
                        refuse("a histogram of levels has another length than the schema says")
                pages.append(ranges[0])
        pages = sorted(part for part in pages if part[1])
        if any(start + length > after for (start, length), (after, _) in itertools.pairwise(pages)):
            # Otherwise a small file could cost any time: each row group would be decoded again.
            refuse("several column chunks share pages")


def _levels(elements: list[Struct]) -> list[tuple[int, int]]:
    """Return the largest repetition and definition level of each leaf of a column's part of the schema."""
    found: list[tuple[int, int]] = []
    inside = [(0, 0, 1)]  # levels of the groups that are open, and how many children each still has
    for element in elements:
        repeated, defined, left = inside.pop()
        if left > 1:
            inside.append((repeated, defined, left - 1))
        kind, children = value(element, 3, 0), value(element, 5, 0)
        if kind not in (0, 1, 2):
            refuse("its schema has a column that is neither required, optional nor repeated")
        repeated, defined = repeated + (kind == 2), defined + (kind != 0)
        if children:
            inside.append((repeated, defined, children))
        else:
            found.append((repeated, defined))
    return found


def ending(data: bytes) -> bytes:
    """Return the bytes that end a file with this FileMetaData."""
    return data + len(data).to_bytes(4, "little") + MAGIC


def bloom_filter_length(meta: Struct) -> int | None:
    """Return the length of a column chunk's bloom filter, if its ColumnMetaData has it."""
    kind, length = meta.get(15, (STRUCT, None))
    return length if kind == I32 else None  # Dremio stores a list under this number


def page_range(meta: Struct) -> tuple[int, int]:
    """Return where the pages of a column chunk begin, and how many bytes they take, by its ColumnMetaData."""
    # Data pages and the dictionary page; some writers store 0 as the offset of a missing dictionary.
    starts = [start for start in (value(meta, 9), value(meta, 11)) if start]
    return min(starts, default=0), value(meta, 7)


def read_footer(file: _Source, size: int, path: str) -> tuple[Footer, int]:
    """Read the footer of a file in order to change it; also return where it begins.

    Args:
        file: open for reading, and seekable.
        size: the size of the file, in bytes.
        path: its path, for errors.

    Raises:
        FormatError: not a Parquet file, one that was cut short or damaged, or one of Parquet Modular
            Encryption.
    """
    with _naming(path):
        data, start = _find(file, size)
        return Footer.parse(data), start


def read_metadata(file: _Source, size: int, path: str) -> FileMetaData:
    """Read and decode the footer of a file; arguments and errors are those of `read_footer`."""
    with _naming(path):
        return FileMetaData.parse(_find(file, size)[0], size)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Pause Python's garbage collector, which would visit the many parts of a large footer again and again.

    They contain no reference cycles, so there is nothing to collect.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    try:
        yield
    except FormatError as error:
        raise FormatError(f"{path}: {error}", path=path) from None


def check_footer(file: _Source, size: int, path: str) -> int:
    """Check what Arrow does not check when it parses a footer: its length, and entries that contradict.

    Returns:
        The length of the FileMetaData. If Arrow's is shorter, `read_footer` says why.

    Raises:
        FormatError: not a Parquet file, one whose footer is too long, or one of Parquet Modular Encryption.
    """
    with _naming(path):
        data, _ = _find(file, size)
        if any(data.count(key) > 1 for key in _ONCE):  # rare, and parsing is slow
            _check_entries((entry.key, entry.value) for entry in Footer.parse(data).entries)
        return len(data)


def refuse_length(length: int) -> None:
    """Raise FormatError if a FileMetaData has more bytes than kmsdata reads."""
    if length > _MOST_BYTES:
        raise FormatError(_TOO_LONG)


def _check_entries(entries: Iterable[tuple[bytes, bytes | None]]) -> None:
    """Refuse different entries of one name: software would disagree about which of them it reads."""
    seen: dict[bytes, bytes | None] = {}
    for key, text in entries:
        if key in _ONCE and seen.setdefault(key, text) != text:
            raise FormatError(f"its key-value metadata has different entries {key.decode()!r}")


def _find(file: _Source, size: int) -> tuple[bytes, int]:
    """Return the bytes of the FileMetaData, and where they begin in the file."""
    file.seek(0)
    head = file.read(4)
    file.seek(max(0, size - _TAIL))
    tail = file.read(min(size, _TAIL))
    if _ENCRYPTED_MAGIC in (head, tail[-4:]):
        raise FormatError(_MODULAR)
    if size < 12 or head != MAGIC or tail[-4:] != MAGIC:
        raise FormatError(NOT_PARQUET)
    length = int.from_bytes(tail[-8:-4], "little")
    if not 0 < length <= size - 12:
        refuse("its length is more than the file has")
    refuse_length(length)
    start = size - 8 - length
    data = tail[-8 - length : -8]
    if length > len(tail) - 8:
        file.seek(start)
        data = file.read(length)
    if len(data) != length:
        refuse("the file ends before its footer does")
    return data, start


def _check_whole(kinds: Mapping[int, int], reader: Reader) -> None:
    """Check the types of the fields of a FileMetaData, and that all of its bytes were read."""
    if 8 in kinds or 9 in kinds:
        raise FormatError(_MODULAR)
    if any(kinds.get(number) != kind for number, kind in _REQUIRED.items()):
        refuse("it lacks fields that every Parquet file has")
    if reader.at != len(reader.data):
        refuse("it has bytes after its end, as if it were signed by Parquet Modular Encryption")


def _entries(reader: Reader, kind: int) -> tuple[Entry, ...]:
    if kind != LIST:
        refuse("its key-value metadata contains no list")
    inner, count = reader.items()
    if count and inner != STRUCT:
        refuse("its key-value metadata contains no list of pairs")
    return tuple(_entry(reader) for _ in range(count))


def _entry(reader: Reader) -> Entry:
    found: dict[int, bytes] = {}
    start = stop = 0
    for kind, number in reader.fields():
        if number not in (1, 2) or kind != BINARY or number in found:
            refuse("a key-value entry contains no pair of texts")
        at = reader.at
        found[number] = reader.binary()
        if number == 2:
            start, stop = at, reader.at
    if 1 not in found:
        refuse("it contains a key-value entry without a key")
    return Entry(found[1], found.get(2), start, stop)


def _fits(fields: Struct, kinds: _Kinds) -> bool:
    """Tell whether all used fields have the expected types: a damaged footer may decode without an error."""
    required, used = kinds
    if not required <= fields.keys():
        return False
    for number, wanted in used.items():
        if number not in fields:
            continue
        kind, item = fields[number]
        if isinstance(wanted, list):
            if kind != LIST or (item[1] and item[0] != STRUCT):
                return False
            if not all(_fits(one, wanted[0]) for one in item[1]):
                return False
        elif isinstance(wanted, tuple):
            if kind != STRUCT or not _fits(item, wanted):
                return False
        elif kind != wanted:
            return False
    return True


def _columns(elements: list[Struct]) -> tuple[list[tuple[str, range]], list[list[Struct]]]:
    """Split a schema, a tree that is stored depth first, into its top-level columns."""
    if not elements:
        refuse("it has no schema")
    columns: list[tuple[str, range]] = []
    grouped: list[list[Struct]] = []
    at, leaf = 1, 0
    try:
        while at < len(elements):
            stop, left, leaves = at, 1, 0
            while left:
                children = value(elements[stop], 5, 0)
                left += children - 1
                leaves += not children
                stop += 1
            columns.append((value(elements[at], 4).decode(), range(leaf, leaf + leaves)))
            grouped.append(elements[at:stop])
            at, leaf = stop, leaf + leaves
    except (IndexError, UnicodeDecodeError):
        refuse("its schema contains no tree of named columns")
    return columns, grouped
