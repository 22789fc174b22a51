"""Headers: canonical text is read and written unchanged, and any other text is rejected."""

import base64
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsdata.errors import FormatError
from kmsdata.keys.envelope import (
    GCM,
    SIV,
    ColumnHeader,
    DataKeyRecord,
    Header,
    Wrap,
    canonical,
    file_text,
    parse_file,
)
from kmsdata.keys.key_uri import parse_key

ONE, TWO = bytes(32), bytes([7]) * 32


def record(commitment=ONE, key="local://demo", context=()):
    return DataKeyRecord(commitment, context, (Wrap(key, "d3JhcHBlZA=="),))


def column(commitment=ONE, name="ssn", type_=None, mac=TWO):
    return ColumnHeader(GCM, commitment, type_ or {"arrow": "string"}, name=name, mac=mac)


def exact(commitment=ONE, domain="email", kind="text"):
    return ColumnHeader(SIV, commitment, {"arrow": "string"}, domain=domain, kind=kind, mac=TWO)


def header(*columns, records=None):
    return Header.of(columns or [column()], records or [record(), record(TWO)])


def test_a_header_comes_back_and_holds_only_the_records_it_names():
    both = header(column(), column(TWO))
    assert Header.parse(both.text) == both
    assert [item.commitment for item in header().records] == [ONE]
    assert header(column(TWO), column(ONE)).text == header(column(ONE), column(TWO)).text


def test_a_file_comes_back():
    headers = {"身份证": header(), "email": header(exact(TWO))}
    assert parse_file(file_text(headers)) == headers


def broken(change):
    data = json.loads(header().text)
    change(data)
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def put(*path_and_value):
    *path, last, value = path_and_value

    def change(data):
        for step in path:
            data = data[step]
        data[last] = value

    return change


def drop(*path):
    def change(data):
        for step in path[:-1]:
            data = data[step]
        del data[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (put("version", 2), "version"),
        (put("version", True), None),
        (put("extra", 1), None),
        (drop("data_keys"), "data_keys"),
        (put("data_keys", []), "data_keys"),
        (put("data_keys", 0, "extra", 1), "data_keys"),
        (put("data_keys", 0, "commitment", "AAAA"), "commitment"),
        (put("data_keys", 0, "commitment", 5), "commitment"),
        (put("data_keys", 0, "context", []), "context"),
        (put("data_keys", 0, "context", {"a": 1}), "context"),
        (put("data_keys", 0, "wraps", []), "wraps"),
        (put("data_keys", 0, "wraps", [{"key": "local://demo", "wrapped": "x"}] * 17), "wraps"),
        (put("data_keys", 0, "wraps", 0, "key", "local://../x"), "key"),
        (put("data_keys", 0, "wraps", 0, "key", 5), "key"),
        (put("data_keys", 0, "wraps", 0, "wrapped", None), "wrapped"),
        (put("column", []), "column"),
        (put("column", {}), "column"),
        (put("column", 0, "algorithm", "AES-128-ECB"), "algorithm"),
        (put("column", 0, "algorithm", SIV), "domain"),
        (put("column", 0, "bind", {}), "columns"),
        (put("column", 0, "type", "int64"), "type"),
        (put("column", 0, "name", None), "name"),
        (drop("column", 0, "mac"), "mac"),
        (put("column", 0, "mac", "not base64!"), "mac"),
        (put("column", 0, "data_key", base64.b64encode(TWO).decode()), "data_key"),
    ],
)
def test_what_is_not_a_header_is_refused_and_the_field_is_named(change, field):
    text = broken(change)
    if field is None and "true" in text:
        text = text.replace('"version":true', '"version":1.0')
    with pytest.raises(FormatError) as caught:
        Header.parse(text)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version":1}',
        "[" * 100_000,
        header().text.replace(",", ", ", 1),
        header().text.replace('"version":1', '"version":1,"version":1'),
        header().text.replace('"arrow":"string"', '"arrow":1.5'),
        header().text.replace('"arrow":"string"', '"arrow":9007199254740992'),
        header().text.replace('"arrow":"string"', '"arrow":"\\ud800"'),
        header().text.replace('"arrow":"string"', '"arrow":NaN'),
        header().text.replace('"ssn"', '"s\\u0073n"'),
        " " * (5 << 20),
    ],
)
def test_text_that_is_not_canonical_is_refused(text):
    with pytest.raises(FormatError):
        Header.parse(text)


@pytest.mark.parametrize(
    "other",
    [column(mac=b"\1" * 32), column(name="age"), column(TWO, name="age"), exact(), exact(TWO)],
)
def test_objects_of_several_columns_in_one_are_refused(other):
    with pytest.raises(FormatError, match="different columns"):
        Header.parse(header(column(), other).text)
    assert header().union(header(other)) is None


def test_deterministic_objects_of_one_key_and_several_types_are_refused():
    other = replace(exact(), type={"arrow": "large_string"})
    with pytest.raises(FormatError, match="same key"):
        Header.parse(header(exact(), other).text)
    assert header(exact()).union(header(other)) is None


def test_randomised_objects_of_several_types_have_different_keys_and_are_a_union():
    other = column(type_={"arrow": "int64"})
    assert column().key_info != other.key_info
    both = header().union(header(other))
    assert Header.parse(both.text) == both
    assert len(both.records) == 1


def test_objects_of_one_column_under_several_data_keys_are_a_union():
    both = header().union(header(column(TWO, type_={"arrow": "int64"})))
    assert Header.parse(both.text) == both
    assert len(both.records) == 2


@pytest.mark.parametrize(
    ("context", "wraps"),
    [({"a": 1}, 1), ({1: "a"}, 1), ({"a": "\ud800"}, 1), ({"a": "x" * (1 << 17)}, 1), ({}, 17)],
)
def test_nobody_writes_what_nobody_would_read(context, wraps):
    with pytest.raises(FormatError):
        DataKeyRecord(ONE, tuple(context.items()), (Wrap("local://demo", "x"),) * wraps)


@given(st.text())
def test_no_text_gives_anything_but_a_format_error(text):
    for parse in (Header.parse, parse_file):
        with pytest.raises(FormatError):
            parse(text)


@given(st.data())
def test_a_changed_byte_never_passes(data):
    text = header(column(), exact()).text
    place = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.characters(codec="ascii"))
    changed = text[:place] + letter + text[place + 1 :]
    try:
        parsed = Header.parse(changed)
    except FormatError:
        return
    assert parsed.text == changed  # it says what it was changed to, and its MAC will not fit


@pytest.mark.parametrize(
    "uri", ["local://demo", "tencent-kms://ap-guangzhou/1-2_3.x", "vault://team/key", "local://" + "a" * 64]
)
def test_key_uris(uri):
    scheme, place, name = parse_key(uri)
    assert uri == f"{scheme}://{place}/{name}" if place else f"{scheme}://{name}"


@pytest.mark.parametrize(
    "uri",
    [
        "", "demo", "local:/demo", "local://", "local://a/b", "local://" + "a" * 65, "local://ключ",
        "tencent-kms://key", "tencent-kms://Guangzhou/k", "tencent-kms://ap-guangzhou/a/b",
        "tencent-kms://127.0.0.1/k", "LOCAL://demo", "local://demo\n", None,
    ],
)  # fmt: skip
def test_what_is_not_a_key_uri_is_refused(uri):
    with pytest.raises(FormatError):
        parse_key(uri)


def test_canonical_json():
    assert canonical({"b": [1, None, True], "a": "é"}) == '{"a":"\\u00e9","b":[1,null,true]}'
    for bad in (1.5, float("nan"), 1 << 53, "\ud800", {1: 2}, b"x", {"a": {1, 2}}):
        with pytest.raises(FormatError):
            canonical(bad)


def test_no_key_is_crowded_out_by_many_wraps_of_another():
    """As for files that were rewrapped one by one: each has another wrapped key under the new master key."""
    new = [Wrap("local://new", f"n{number}") for number in range(30)]
    merged = DataKeyRecord(ONE, (), (new[0],))
    for wrap in [*new[1:20], Wrap("local://old", "o"), *new[20:]]:
        merged = merged.with_wraps([wrap])
    assert len(merged.wraps) == 16
    assert merged.wraps[0] == new[0]
    assert Wrap("local://old", "o") in merged.wraps


def test_a_record_that_many_columns_share_is_checked_once(monkeypatch):
    """Checking it for each column took minutes: 3 MiB with 15,000 columns and one long context."""
    shared = DataKeyRecord(ONE, tuple((f"{n:05}", "") for n in range(1000)), (Wrap("local://demo", "w"),))
    headers = {f"c{n}": Header.of([column(name=f"c{n}")], [shared]) for n in range(500)}
    text = file_text(headers)
    calls = []
    check = DataKeyRecord.__post_init__
    monkeypatch.setattr(DataKeyRecord, "__post_init__", lambda self: (calls.append(1), check(self))[1])
    assert parse_file(text) == headers
    assert len(calls) == 1
