"""Thrift's compact protocol: what was written is read, and skipping ends where reading does."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kmsdata
from kmsdata.parquet import thrift
from kmsdata.parquet.thrift import BINARY, I32, I64, LIST, STRUCT, Reader, decode, encode

QUICK = settings(deadline=None, max_examples=150)

VALUES = {
    thrift.BYTE: st.integers(0, 255),
    thrift.I16: st.integers(-(2**15), 2**15 - 1),
    I32: st.integers(-(2**31), 2**31 - 1),
    I64: st.integers(-(2**63), 2**63 - 1),
    thrift.DOUBLE: st.floats(allow_nan=False),
    BINARY: st.binary(max_size=200),
}


def structs(inside):
    """Structs whose fields are of any type, with lists, sets and structs of ``inside``."""
    kinds = {**VALUES, STRUCT: inside}
    lists = st.sampled_from(sorted(kinds)).flatmap(
        lambda kind: st.tuples(st.just(kind), st.lists(kinds[kind], max_size=20))
    )
    kinds |= {LIST: lists, thrift.SET: lists, thrift.BOOL: st.booleans()}
    fields = st.sampled_from(sorted(kinds)).flatmap(lambda kind: st.tuples(st.just(kind), kinds[kind]))
    return st.dictionaries(st.integers(-(2**15), 2**15 - 1), fields, max_size=6)


STRUCTS = st.recursive(st.just({}), structs, max_leaves=8)


def skipped(data):
    """Return how many bytes are skipped for a struct, or the error."""
    reader = Reader(data)
    try:
        reader.skip(STRUCT)
    except kmsdata.FormatError as error:
        return str(error)
    return reader.at


def read(data):
    """Return how many bytes are read for a struct, or the error."""
    try:
        return decode(data)[1]
    except kmsdata.FormatError as error:
        return str(error)


def check_alike(data):
    """Reading and skipping end at the same byte; only skipping may accept what the other refuses."""
    one, two = skipped(data), read(data)
    assert one == two or "twice" in str(two) or "unknown type" in str(two)


@QUICK
@given(fields=STRUCTS, after=st.binary(max_size=3))
def test_what_was_written_is_read_and_skipped(fields, after):
    data = encode(fields)
    assert decode(data + after) == (fields, len(data))
    assert skipped(data + after) == len(data)
    for cut in range(len(data)):  # a struct that is cut short is never accepted as complete
        assert "damaged" in read(data[:cut])
        check_alike(data[:cut])


@QUICK
@given(data=st.data())
def test_damage_is_read_and_skipped_alike(data):
    raw = bytearray(encode(data.draw(STRUCTS)))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    check_alike(bytes(raw))


@QUICK
@given(raw=st.binary(max_size=80))
def test_any_bytes_are_read_and_skipped_alike(raw):
    check_alike(raw)


@pytest.mark.parametrize(
    ("raw", "fields", "canonical"),
    [
        ("05 02 02 00", {1: (I32, 1)}, "15 02 00"),  # an id in full, although it is near
        ("15 8200 00", {1: (I32, 1)}, "15 02 00"),  # a number with extra bytes
        ("19f5 01 02 00", {1: (LIST, (I32, [1]))}, "1915 02 00"),  # a length in full
        ("18 8200 6162 00", {1: (BINARY, b"ab")}, "18 02 6162 00"),
        ("25 02 05 02 04 00", {2: (I32, 1), 1: (I32, 2)}, "15 04 15 02 00"),  # ids that fall
    ],
)
def test_the_same_value_in_other_bytes_is_read_and_skipped(raw, fields, canonical):
    data = bytes.fromhex(raw)
    assert decode(data) == (fields, len(data))
    assert skipped(data) == len(data)
    assert encode(fields) == bytes.fromhex(canonical)


@pytest.mark.parametrize(
    "raw",
    [
        "1b 02 85 01 61 04 01 62 06",  # a map of two texts to numbers
        "1b 00",  # a map of none
        "1b 01 11 01 02",  # of a bool to a bool
        "1d" + "00" * 16,  # a UUID
        "19 1d" + "00" * 16,
    ],
)
def test_types_that_parquet_lacks_are_skipped_and_not_read(raw):
    data = bytes.fromhex(raw) + b"\0"
    assert skipped(data) == len(data)
    assert "unknown type" in read(data)


def test_bools_are_read_and_skipped_as_fields_and_in_lists():
    assert decode(bytes.fromhex("11 12 00")) == ({1: (1, True), 2: (1, False)}, 3)
    assert skipped(bytes.fromhex("11 12 00")) == 3
    assert decode(bytes.fromhex("1931 01 02 01 00")) == ({1: (LIST, (1, [1, 2, 1]))}, 6)
    assert skipped(bytes.fromhex("1931 01 02 01 00")) == 6


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ("15 02 05 02 04 00", "field 1 occurs twice"),
        ("1c 15 02 05 02 04 00 00", "field 1 occurs twice"),
    ],
)
def test_a_field_that_occurs_twice_is_not_read(raw, why):
    assert why in read(bytes.fromhex(raw))


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ("10", "unknown type"),  # the end of a struct with an id
        ("1c 20 00", "unknown type"),
        ("16" + "80" * 9 + "01 00", None),  # ten bytes
        ("16" + "80" * 10 + "01 00", "more than ten bytes"),
        ("1913 00", None),  # a list of one byte, after which the struct is cut short
        ("1923 00", "longer than what is left"),
        ("18 01", "more than is left"),
    ],
)
def test_limits_are_the_same_for_reading_and_skipping(raw, why):
    data = bytes.fromhex(raw)
    one, two = skipped(data), read(data)
    assert one == two
    assert one == len(data) or (why or "ends within") in one


def nested(kind, deep):
    """Return a struct with a list of lists, or a struct of structs, of this depth."""
    if kind == "lists":
        return b"\x19" + b"\x19" * (deep - 1) + b"\x05" + b"\0"
    return b"\x1c" * deep + b"\0" * (deep + 1)


@pytest.mark.parametrize("kind", ["lists", "structs"])
def test_structures_may_be_32_deep_and_no_deeper(kind):
    good, bad = nested(kind, 32), nested(kind, 33)
    assert read(good) == skipped(good) == len(good)
    assert read(bad) == skipped(bad) == "the footer is damaged: structures are nested more than 32 deep"


def test_doubles_keep_their_bits():
    for bits in (0x7FF8000000000001, 0xFFF8000000000000, 0x8000000000000000):
        data = b"\x17" + struct.pack("<Q", bits) + b"\0"
        assert encode(decode(data)[0]) == data
