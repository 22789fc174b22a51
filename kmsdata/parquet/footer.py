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
from typing import BinaryIO, NoReturn, Self

from kmsdata.errors import FormatError

__all__ = ["MAGIC", "Entry", "Footer", "ending", "read_footer"]

MAGIC = b"PAR1"

_ENCRYPTED_MAGIC = b"PARE"
_MOST_BYTES = 256 << 20
_DEEPEST = 32  # Parquet's own structures are 8 deep
_MODULAR = (
    "written with Parquet Modular Encryption (an encrypted or signed footer), which kmsdata cannot edit: the "
    "signature would no longer hold, and its keys are not kmsdata's. Use the writer's own tools for its keys"
)

# Types of Thrift's compact protocol.
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT, _UUID = range(1, 14)
_FIXED = {_BYTE: 1, _DOUBLE: 8, _UUID: 16}
_REQUIRED = {1: _I32, 2: _LIST, 3: _I64, 4: _LIST}  # version, schema, num_rows, row_groups
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
        return cls(data, _entries(data))

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
        parts, at = [], 0
        for position in sorted(values):
            entry = self.entries[position]
            if entry.value is None:
                raise ValueError("an entry without a value")
            parts += [self.data[at : entry.start], _varint(len(values[position])), values[position]]
            at = entry.stop
        data = b"".join([*parts, self.data[at:]])
        if len(data) > _MOST_BYTES:
            _refuse(f"it would have more than {_MOST_BYTES >> 20} MiB")
        return data


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
            _refuse("it ends before its footer does")
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
        _refuse("its length is more than the file has")
    if length > _MOST_BYTES:
        _refuse(f"it has more than {_MOST_BYTES >> 20} MiB")
    return size - 8 - length, length


class _Thrift:
    """A place in bytes of Thrift's compact protocol, which moves on as they are read."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def byte(self) -> int:
        at = self.at
        if at >= len(self.data):
            _refuse("it ends within a value")
        self.at = at + 1
        return self.data[at]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                _refuse("a number of more than ten bytes")

    def over(self, count: int) -> int:
        """Goes on by so many bytes, and says where they began."""
        start = self.at
        if count > len(self.data) - start:
            _refuse("a length that is more than is left")
        self.at = start + count
        return start

    def field(self, last: int) -> tuple[int, int]:
        """The type and id of the next field of a structure whose last one was ``last``; type 0: its end."""
        head = self.byte()
        kind, delta = head & 0x0F, head >> 4
        if head == 0:
            return 0, last
        if delta:
            return kind, last + delta
        number = self.varint()
        return kind, (number >> 1) ^ -(number & 1)

    def items(self) -> tuple[int, int]:
        """The type and number of a list's or set's items; each takes a byte at least."""
        head = self.byte()
        count = head >> 4 if head >> 4 != 15 else self.varint()
        if count > len(self.data) - self.at:
            _refuse("a list that is longer than what is left")
        return head & 0x0F, count

    def skip(self, kind: int, depth: int) -> None:
        """Goes past a value."""
        if depth > _DEEPEST:
            _refuse(f"structures more than {_DEEPEST} deep")
        if kind in (_I16, _I32, _I64):
            self.varint()
        elif kind == _BINARY:
            self.over(self.varint())
        elif kind == _STRUCT:
            last = 0
            while True:
                inner, last = self.field(last)
                if inner == 0:
                    return
                if inner > _FALSE:  # the truth of a boolean field stands in its type
                    self.skip(inner, depth + 1)
        elif kind in (_LIST, _SET):
            inner, count = self.items()
            for _ in range(count):
                self._item(inner, depth + 1)
        elif kind == _MAP:
            count = self.varint()
            if count > len(self.data) - self.at:
                _refuse("a map that is longer than what is left")
            kinds = self.byte() if count else 0
            for _ in range(count):
                self._item(kinds >> 4, depth + 1)
                self._item(kinds & 0x0F, depth + 1)
        elif kind in _FIXED:
            self.over(_FIXED[kind])
        else:
            _refuse("an unknown type")

    def _item(self, kind: int, depth: int) -> None:
        if kind in (_TRUE, _FALSE):
            self.over(1)
        else:
            self.skip(kind, depth)


def _entries(data: bytes) -> tuple[Entry, ...]:
    """The key-value entries of a FileMetaData, all of which was walked over."""
    thrift = _Thrift(data)
    entries: tuple[Entry, ...] = ()
    seen: dict[int, int] = {}
    last = 0
    while True:
        kind, last = thrift.field(last)
        if kind == 0:
            break
        if last in seen:
            _refuse(f"field {last} stands in it twice")
        seen[last] = kind
        if last == _KEY_VALUES:
            if kind != _LIST:
                _refuse("its key-value metadata is no list")
            inner, count = thrift.items()
            if count and inner != _STRUCT:
                _refuse("its key-value metadata is no list of pairs")
            entries = tuple(_entry(thrift) for _ in range(count))
        elif kind > _FALSE:
            thrift.skip(kind, 0)
    if _ENCRYPTION in seen:
        raise FormatError(_MODULAR)
    if any(seen.get(number) != kind for number, kind in _REQUIRED.items()):
        _refuse("it lacks what every Parquet file says of itself")
    if thrift.at != len(data):
        _refuse("bytes after its end")
    return entries


def _entry(thrift: _Thrift) -> Entry:
    key: bytes | None = None
    value: bytes | None = None
    start = stop = last = 0
    while True:
        kind, last = thrift.field(last)
        if kind == 0:
            break
        if last not in (1, 2) or kind != _BINARY or (key if last == 1 else value) is not None:
            _refuse("a key-value entry that is no pair of texts")
        begin = thrift.at
        length = thrift.varint()
        at = thrift.over(length)
        text = thrift.data[at : at + length]
        if last == 1:
            key = text
        else:
            value, start, stop = text, begin, thrift.at
    if key is None:
        _refuse("a key-value entry without a key")
    return Entry(key, value, start, stop)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _refuse(what: str) -> NoReturn:
    raise FormatError(f"the footer is damaged: {what}")
