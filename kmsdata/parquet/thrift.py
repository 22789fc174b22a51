"""Thrift's compact protocol, which Parquet footers are written in: bytes <-> fields, without their names.

A struct is a dict of field id -> (type, value), so that what is unknown here is kept as it stands. Values are
ints, floats, bools and bytes; a list is (type of its items, items).
"""

from __future__ import annotations

import struct
from typing import Any, NoReturn, TypeAlias

from kmsdata.errors import FormatError

__all__ = ["BINARY", "BOOL", "I32", "I64", "LIST", "STRUCT", "Struct", "decode", "encode", "value"]

Struct: TypeAlias = "dict[int, tuple[int, Any]]"

BOOL, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
_DEEPEST = 32


def value(fields: Struct, number: int, default: Any = None) -> Any:
    """The value of a field, or the default where it is not set."""
    found = fields.get(number)
    return default if found is None else found[1]


def decode(data: bytes) -> tuple[Struct, int]:
    """The struct at the start of these bytes, and how many bytes it takes.

    Raises:
        FormatError: it is no such struct.

    Example:
        >>> decode(encode({1: (I32, 7), 4: (BINARY, b"x")}))
        ({1: (5, 7), 4: (8, b'x')}, 6)
    """
    reader = _Reader(data)
    try:
        return reader.struct(0), reader.at
    except (IndexError, struct.error):
        _refuse()


def encode(fields: Struct) -> bytes:
    """The bytes of a struct, its fields in the order of their ids."""
    out = bytearray()
    _write_struct(out, fields)
    return bytes(out)


def _refuse() -> NoReturn:
    raise FormatError("a Parquet footer that is damaged", field="footer")


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def varint(self) -> int:
        number = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            number |= (byte & 127) << shift
            if byte < 128:
                return number
            shift += 7
            if shift > 63:
                _refuse()

    def number(self) -> int:
        coded = self.varint()
        return (coded >> 1) ^ -(coded & 1)

    def struct(self, depth: int) -> Struct:
        if depth > _DEEPEST:
            _refuse()
        fields: Struct = {}
        number = 0
        while True:
            head = self.data[self.at]
            self.at += 1
            if head == 0:
                return fields
            kind = head & 15
            number = number + (head >> 4) if head >> 4 else self.number()
            if number in fields:
                _refuse()
            if kind in (BOOL, FALSE):
                fields[number] = BOOL, kind == BOOL
            else:
                fields[number] = kind, self.one(kind, depth)

    def one(self, kind: int, depth: int) -> Any:
        if kind in (I16, I32, I64):
            return self.number()
        if kind == BINARY:
            size = self.varint()
            if size > len(self.data) - self.at:
                _refuse()
            self.at += size
            return self.data[self.at - size : self.at]
        if kind == STRUCT:
            return self.struct(depth + 1)
        if kind in (LIST, SET):
            head = self.data[self.at]
            self.at += 1
            size = head >> 4 if head >> 4 != 15 else self.varint()
            if size > len(self.data) - self.at or depth > _DEEPEST:  # every item takes a byte or more
                _refuse()
            inner = head & 15
            return inner, [self.one(inner, depth + 1) for _ in range(size)]
        if kind == DOUBLE:
            self.at += 8
            return struct.unpack_from("<d", self.data, self.at - 8)[0]
        if kind in (BOOL, FALSE, BYTE):  # in lists a bool is a byte
            self.at += 1
            return self.data[self.at - 1]
        _refuse()  # Parquet has no maps


def _write_varint(out: bytearray, number: int) -> None:
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)


def _write_number(out: bytearray, number: int) -> None:
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
            _write_number(out, number)
        before = number
        if kind not in (BOOL, FALSE):
            _write_one(out, kind, item)
    out.append(0)


def _write_one(out: bytearray, kind: int, item: Any) -> None:
    if kind in (I16, I32, I64):
        _write_number(out, item)
    elif kind == BINARY:
        _write_varint(out, len(item))
        out += item
    elif kind == STRUCT:
        _write_struct(out, item)
    elif kind in (LIST, SET):
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
