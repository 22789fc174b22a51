"""Read and write Thrift's compact protocol, the encoding of Parquet footers.

A struct is a dict of field id -> (type, value), without names, so that unknown fields are kept. Values are
ints, floats, bools and bytes; a list is (type of its items, items).

`Reader.read` builds values; `Reader.skip` moves past a value and builds nothing, for callers that copy bytes.
Input is not trusted: each count and length is checked against the number of remaining bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NoReturn, TypeAlias

from kmsdata.errors import FormatError

__all__ = [
    "BINARY", "FALSE", "I32", "I64", "LIST", "STRUCT",
    "Reader", "Struct", "decode", "encode", "refuse", "value", "write_binary",
]  # fmt: skip

Struct: TypeAlias = "dict[int, tuple[int, Any]]"

STOP, BOOL, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT, UUID = range(14)
_INTEGERS, _LISTS = (I64, I32, I16), (LIST, SET)
_FIXED = {BOOL: 1, FALSE: 1, BYTE: 1, DOUBLE: 8, UUID: 16}  # bytes; a bool takes one in lists and maps only
_DEEPEST = 32  # Parquet's own structs are 8 deep


def value(fields: Struct, number: int, default: Any = None) -> Any:
    """Return the value of a field, or the default where it is not set."""
    found = fields.get(number)
    return default if found is None else found[1]


def decode(data: bytes) -> tuple[Struct, int]:
    """Read the struct at the start of these bytes; also return how many bytes it takes.

    Raises:
        FormatError: there is no such struct.

    Example:
        >>> decode(encode({1: (I32, 7), 4: (BINARY, b"x")}))
        ({1: (5, 7), 4: (8, b'x')}, 6)
    """
    reader = Reader(data)
    return reader.read(STRUCT), reader.at


def encode(fields: Struct) -> bytes:
    """Return the bytes of a struct, its fields in the order of their ids."""
    out = bytearray()
    _write_struct(out, fields)
    return bytes(out)


def refuse(why: str) -> NoReturn:
    """Raise the FormatError for a damaged footer."""
    raise FormatError(f"the footer is damaged: {why}")


class Reader:
    """A read position in bytes of the compact protocol; reading or skipping a value advances it.

    Attributes:
        data: the bytes.
        at: the position of the next byte.
    """

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def read(self, kind: int, depth: int = 0) -> Any:
        """Read a value of this type; ``depth`` counts the structs and lists that contain it."""
        if kind in _INTEGERS:
            return self._signed()
        if kind == BINARY:
            return self.binary()
        if depth > _DEEPEST:
            refuse(f"structures are nested more than {_DEEPEST} deep")
        if kind == STRUCT:
            return self._struct(depth)
        if kind in _LISTS:
            inner, count = self.items()
            return inner, [self.read(inner, depth + 1) for _ in range(count)]
        if kind == DOUBLE:
            return struct.unpack_from("<d", self.data, self._over(8))[0]
        if kind in (BYTE, BOOL, FALSE):
            return self.data[self._over(1)]
        # Maps and UUIDs come here too: Parquet's structs have none, and `encode` could not write them.
        refuse("it contains an unknown type")

    def _struct(self, depth: int) -> Struct:
        """Read a struct; `fields` and `_signed` are repeated here, which halves the time for a footer."""
        found: Struct = {}
        data, number = self.data, 0
        while True:
            head = self._byte()
            kind = head & 15
            if kind == STOP:
                if head:
                    refuse("it contains an unknown type")
                return found
            number = number + (head >> 4) if head > 15 else self._signed()
            if number in found:
                refuse(f"field {number} occurs twice")
            if kind in _INTEGERS:
                at = self.at
                if at < len(data) and (byte := data[at]) < 128:
                    self.at = at + 1
                    found[number] = kind, (byte >> 1) ^ -(byte & 1)
                else:
                    found[number] = kind, self._signed()
            elif kind <= FALSE:  # a boolean field has no value bytes: its type is its value
                found[number] = BOOL, kind == BOOL
            elif kind == STRUCT and depth < _DEEPEST:
                found[number] = kind, self._struct(depth + 1)
            else:
                found[number] = kind, self.read(kind, depth + 1)

    def skip(self, kind: int, depth: int = 0) -> None:
        """Move past a value of this type; ``depth`` counts the structs and lists that contain it."""
        if kind in _INTEGERS:
            self._varint()
        elif kind == BINARY:
            self._over(self._varint())
        elif depth > _DEEPEST:
            refuse(f"structures are nested more than {_DEEPEST} deep")
        elif kind == STRUCT:
            for inner, _ in self.fields():
                if inner > FALSE:
                    self.skip(inner, depth + 1)
        elif kind in _LISTS:
            inner, count = self.items()
            for _ in range(count):
                self.skip(inner, depth + 1)
        elif kind == MAP:
            count = self._count(self._varint())
            kinds = self._byte() if count else 0
            for _ in range(count):
                self.skip(kinds >> 4, depth + 1)
                self.skip(kinds & 15, depth + 1)
        elif kind in _FIXED:
            self._over(_FIXED[kind])
        else:
            refuse("it contains an unknown type")

    def fields(self) -> Iterator[tuple[int, int]]:
        """Yield the type and id of each field of a struct.

        The caller must read or skip the field's value before it asks for the next field. A boolean field has
        no value bytes.
        """
        number = 0
        while True:
            head = self._byte()
            kind = head & 15
            if kind == STOP:
                if (
                    head
                ):  # damage: a struct ends with a zero byte, although some readers ignore the upper bits
                    refuse("it contains an unknown type")
                return
            number = number + (head >> 4) if head > 15 else self._signed()
            yield kind, number

    def items(self) -> tuple[int, int]:
        """Read the head of a list or set: the type and number of the items that follow."""
        head = self._byte()
        return head & 15, self._count(head >> 4 if head < 0xF0 else self._varint())

    def binary(self) -> bytes:
        """Read a string or bytes."""
        start = self._over(self._varint())
        return self.data[start : self.at]

    def _byte(self) -> int:
        try:
            byte = self.data[self.at]
        except IndexError:
            refuse("it ends within a value")
        self.at += 1
        return byte

    def _varint(self) -> int:
        number = shift = 0
        try:
            while (byte := self.data[self.at]) > 127:
                number |= (byte & 127) << shift
                shift += 7
                self.at += 1
                if shift > 63:
                    refuse("a number has more than ten bytes")
        except IndexError:
            refuse("it ends within a value")
        self.at += 1
        return number | byte << shift

    def _signed(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)

    def _over(self, count: int) -> int:
        """Move past this many bytes; return where they begin."""
        start = self.at
        if count > len(self.data) - start:
            refuse("a length is more than is left")
        self.at = start + count
        return start

    def _count(self, count: int) -> int:
        """Check a number of items before they are read: each takes at least one byte."""
        if count > len(self.data) - self.at:
            refuse("a list or map is longer than what is left")
        return count


def write_binary(out: bytearray, data: bytes) -> None:
    """Append a string or bytes: the length, then the bytes."""
    _write_varint(out, len(data))
    out += data


def _write_varint(out: bytearray, number: int) -> None:
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)


def _write_signed(out: bytearray, number: int) -> None:
    _write_varint(out, number << 1 if number >= 0 else (-number << 1) - 1)


def _write_struct(out: bytearray, fields: Struct) -> None:
    before = 0
    for number in sorted(fields):
        kind, item = fields[number]
        if kind == BOOL:
            kind = BOOL if item else FALSE
        if 0 < number - before < 16:
            out.append((number - before) << 4 | kind)
        else:
            out.append(kind)
            _write_signed(out, number)
        before = number
        if kind not in (BOOL, FALSE):
            _write_one(out, kind, item)
    out.append(STOP)


def _write_one(out: bytearray, kind: int, item: Any) -> None:
    if kind in _INTEGERS:
        _write_signed(out, item)
    elif kind == BINARY:
        write_binary(out, item)
    elif kind == STRUCT:
        _write_struct(out, item)
    elif kind in _LISTS:
        inner, items = item
        if len(items) < 15:
            out.append(len(items) << 4 | inner)
        else:
            out.append(0xF0 | inner)
            _write_varint(out, len(items))
        for one in items:
            _write_one(out, inner, one)
    elif kind == DOUBLE:
        out += struct.pack("<d", item)
    else:
        out.append(item)
