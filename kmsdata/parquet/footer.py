"""The footer of a Parquet file: its key-value metadata read and replaced, every other byte left as it is.

What stands at the end of a file::

    ... pages | FileMetaData (Thrift, compact protocol) | its length, 4 bytes, little-endian | PAR1

A library that reads and writes FileMetaData drops what it does not know, and changes what statistics mean. So
this walks over the bytes, notes where the values of field 5 (``key_value_metadata``) stand, and exchanges
those. Nothing is trusted: every count and length is held against the bytes that are left. Stdlib only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, Self

from kmsdata.errors import FormatError
from kmsdata.parquet.thrift import BINARY, FALSE, I32, I64, LIST, STRUCT, Reader, refuse, write_binary

__all__ = ["MAGIC", "Entry", "Footer", "ending", "read_footer"]

MAGIC = b"PAR1"

_ENCRYPTED_MAGIC = b"PARE"
_MOST_BYTES = 256 << 20
_MODULAR = (
    "written with Parquet Modular Encryption (an encrypted or signed footer), which kmsdata cannot edit: the "
    "signature would no longer hold, and its keys are not kmsdata's. Use the writer's own tools for its keys"
)

_REQUIRED = {1: I32, 2: LIST, 3: I64, 4: LIST}  # version, schema, num_rows, row_groups
_KEY_VALUES, _ENCRYPTION = 5, 8


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the key-value metadata.

    Attributes:
        key: its name.
        value: its text; None where it has none.
        start: where the value's length begins in the FileMetaData.
        stop: where the value ends.
    """

    key: bytes
    value: bytes | None
    start: int = 0
    stop: int = 0


@dataclass(frozen=True, slots=True)
class Footer:
    """A FileMetaData, and where its key-value entries stand in it."""

    data: bytes
    entries: tuple[Entry, ...]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The footer of these bytes.

        Raises:
            FormatError: they are no FileMetaData, or one of Parquet Modular Encryption.
        """
        return cls(data, _parse(data))

    def edited(self, values: Mapping[int, bytes]) -> bytes:
        """The FileMetaData with other values of some entries; all other bytes are as they were.

        Args:
            values: by position among the entries; only those that have a value can be given another.

        Raises:
            FormatError: it would be larger than any reader takes.

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
                raise ValueError("an entry without a value")
            out += self.data[at : entry.start]
            write_binary(out, values[position])
            at = entry.stop
        out += self.data[at:]
        if len(out) > _MOST_BYTES:
            refuse(f"it would have more than {_MOST_BYTES >> 20} MiB")
        return bytes(out)


def ending(data: bytes) -> bytes:
    """The bytes that end a file with this FileMetaData."""
    return data + len(data).to_bytes(4, "little") + MAGIC


def read_footer(file: BinaryIO, size: int, path: str) -> tuple[Footer, int]:
    """The footer of a file, and where it begins.

    Args:
        file: open for reading, and can seek.
        size: of the file, in bytes.
        path: for errors.

    Raises:
        FormatError: no Parquet file, one that was cut short or damaged, or one of Parquet Modular Encryption.
    """
    try:
        start, length = _place(file, size)
        file.seek(start)
        data = file.read(length)
        if len(data) != length:
            refuse("it ends before its footer does")
        return Footer.parse(data), start
    except FormatError as error:
        raise FormatError(f"{path}: {error}", path=path) from None


def _place(file: BinaryIO, size: int) -> tuple[int, int]:
    """Where the footer begins, and how long it is."""
    file.seek(0)
    head = file.read(4)
    file.seek(max(0, size - 8))
    tail = file.read(8)
    if _ENCRYPTED_MAGIC in (head, tail[4:]):
        raise FormatError(_MODULAR)
    if size < 12 or head != MAGIC or tail[4:] != MAGIC:
        raise FormatError("not a Parquet file, or cut short")
    length = int.from_bytes(tail[:4], "little")
    if not 0 < length <= size - 12:
        refuse("its length is more than the file has")
    if length > _MOST_BYTES:
        refuse(f"it has more than {_MOST_BYTES >> 20} MiB")
    return size - 8 - length, length


def _parse(data: bytes) -> tuple[Entry, ...]:
    """Find the key-value entries in a FileMetaData; skip everything else without decoding it."""
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
    if _ENCRYPTION in seen:
        raise FormatError(_MODULAR)
    if any(seen.get(number) != kind for number, kind in _REQUIRED.items()):
        refuse("it lacks what every Parquet file says of itself")
    if reader.at != len(data):
        refuse("bytes after its end")
    return entries


def _entries(reader: Reader, kind: int) -> tuple[Entry, ...]:
    if kind != LIST:
        refuse("its key-value metadata is no list")
    inner, count = reader.items()
    if count and inner != STRUCT:
        refuse("its key-value metadata is no list of pairs")
    return tuple(_entry(reader) for _ in range(count))


def _entry(reader: Reader) -> Entry:
    found: dict[int, bytes] = {}
    start = stop = 0
    for kind, number in reader.fields():
        if number not in (1, 2) or kind != BINARY or number in found:
            refuse("a key-value entry that is no pair of texts")
        at = reader.at
        found[number] = reader.binary()
        if number == 2:
            start, stop = at, reader.at
    if 1 not in found:
        refuse("a key-value entry without a key")
    return Entry(found[1], found.get(2), start, stop)
