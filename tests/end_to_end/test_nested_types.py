"""What can be encrypted can be decrypted, to a table and to a file: types inside types, with nulls."""

import datetime
import decimal
import re
import uuid

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

import kmsdata
from tests.corpus.readers import same_schema, same_values

KEY = "local://demo"
OLD = int(pa.__version__.split(".")[0]) < 20  # it has fewer types of Parquet
LACKING = re.compile("_view")  # nested in lists of structs, pyarrow (26) does not write them
BIG = 2**53 + 1  # a float cannot hold it
EXACT = decimal.Decimal("12345.67")


def leaves():
    """Types that have no types inside, with two values of each."""
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901)
    found = [
        (pa.bool_(), [True, False]),
        (pa.int8(), [-128, 127]),
        (pa.uint16(), [0, 65535]),
        (pa.int64(), [BIG, -BIG]),
        (pa.uint64(), [2**64 - 1, 0]),
        (pa.float16(), [0.5, -2.0]),
        (pa.float32(), [float("nan"), -0.0]),
        (pa.float64(), [0.1, float("-inf")]),
        (pa.string(), ["", "身份证"]),
        (pa.large_string(), ["x", "yy"]),
        (pa.binary(), [b"", b"\xff\x00"]),
        (pa.binary(3), [b"abc", b"\x00\x01\x02"]),
        (pa.date32(), [moment.date(), datetime.date(1, 1, 1)]),
        (pa.time32("ms"), [datetime.time(1, 2, 3), datetime.time(0)]),
        (pa.time64("us"), [datetime.time(1, 2, 3, 4), datetime.time(0)]),
        (pa.timestamp("us"), [moment, datetime.datetime(1, 1, 1)]),
        (pa.timestamp("ms", "Asia/Shanghai"), [moment.replace(microsecond=0)] * 2),
        (pa.duration("us"), [datetime.timedelta(1), datetime.timedelta(0)]),
        (pa.decimal128(20, 2), [EXACT, -EXACT]),
        (pa.decimal256(40, 2), [EXACT, -EXACT]),
        (pa.dictionary(pa.int32(), pa.string()), ["a", "b"]),
        (pa.null(), [None, None]),
    ]
    for name, more in (("string_view", ["a", "bb" * 20]), ("binary_view", [b"a", b"bb" * 20])):
        found.append((getattr(pa, name)(), more))
    for name in ("decimal32", "decimal64"):
        if hasattr(pa, name):
            found.append((getattr(pa, name)(8, 2), [EXACT, -EXACT]))
    if hasattr(pa, "uuid"):
        found.append((pa.uuid(), [uuid.UUID(int=k).bytes for k in (1, 2)]))
    if hasattr(pa, "json_"):
        found.append((pa.json_(), ['{"a": 1}', "null"]))
    return found


def array(kind, values):
    """Make an array; pyarrow makes none of extension types that are inside others."""
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, array(kind.storage_type, values))
    if pa.types.is_struct(kind):
        filled = [value if value is not None else [None] * kind.num_fields for value in values]
        parts = []
        for number in range(kind.num_fields):
            field = kind.field(number)
            column = [row[number] for row in filled]
            if not field.nullable:  # behind a null, Parquet needs some value
                some = next((value for value in column if value is not None), example(field.type))
                column = [some if value is None else value for value in column]
            parts.append(array(field.type, column))
        mask = pa.array([value is None for value in values], pa.bool_())
        return pa.StructArray.from_arrays(
            parts, fields=[kind.field(k) for k in range(kind.num_fields)], mask=mask
        )
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        make = pa.LargeListArray if pa.types.is_large_list(kind) else pa.ListArray
        offsets, items = [0], []
        for value in values:
            items += value or []
            offsets.append(len(items))
        mask = pa.array([value is None for value in values], pa.bool_())
        width = pa.int64() if pa.types.is_large_list(kind) else pa.int32()
        return make.from_arrays(pa.array(offsets, width), array(kind.value_type, items), type=kind, mask=mask)
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
    if pa.types.is_float16(kind):  # pyarrow 17 takes no floats of Python
        values = [None if value is None else np.float16(value) for value in values]
    return pa.array(values, kind)


def example(kind):
    """Return a value that `array` takes."""
    for leaf, values in leaves():
        if leaf == kind:
            return values[0]
    if pa.types.is_struct(kind):
        return [example(kind.field(k).type) for k in range(kind.num_fields)]
    return []


def nests(kind, one, two):
    """Put a type into each type that holds others, with nulls at each level."""
    null = pa.types.is_null(kind)
    yield "list", pa.list_(kind), [[one, None], None, [], [two]]
    yield "large list", pa.large_list(kind), [[one], None, [two, None]]
    yield "struct", pa.struct([("a", kind), ("n", pa.int64())]), [[one, BIG], None, [None, None], [two, 1]]
    if not null:
        needed = pa.struct([pa.field("a", kind, nullable=False), pa.field("n", pa.int64(), nullable=False)])
        yield "struct whose parts are not null", needed, [[one, BIG], None, [two, 1]]
        deep = pa.struct([pa.field("s", needed), pa.field("l", pa.list_(pa.field("e", needed)))])
        yield (
            "struct in struct and list",
            deep,
            [[[one, 1], [[two, BIG], None]], None, [None, None], [[two, 2], []]],
        )


CASES = [
    pytest.param(nested, values, id=f"{kind} in {name}")
    for kind, (one, two) in leaves()
    for name, nested, values in nests(kind, one, two)
]


def through(column, tmp_path, *, file=True):
    """Encrypt and decrypt a column as a table and as a file; return what came back."""
    table = pa.table({"c": column, "k": pa.array(range(len(column)))})
    back = kmsdata.decrypt_table(kmsdata.encrypt_table(table, ["c"], key=KEY))
    same_schema(table.schema, back.schema)
    same_values(table["c"], back["c"], "c")
    if not file:
        return
    source, sealed, opened = (tmp_path / name for name in ("a.parquet", "b.parquet", "c.parquet"))
    try:
        pq.write_table(table, source)
        plain = pq.read_table(source)
        plain.validate(full=True)
    except (pa.ArrowException, OSError):
        assert OLD or LACKING.search(pa.schema([("c", column.type)]).to_string()), column.type
        return
    kmsdata.encrypt_parquet(source, sealed, ["c"], key=KEY, overwrite=True)
    assert kmsdata.verify(sealed).ok
    kmsdata.decrypt_parquet(sealed, opened, overwrite=True)
    again = pq.read_table(opened)
    same_schema(plain.schema, again.schema)
    same_values(plain["c"], again["c"], "c")
    try:
        frame = pd.read_parquet(source)
    except (NotImplementedError, TypeError, ValueError):
        return
    found = kmsdata.read_parquet(sealed, decrypt=True)
    if found["c"].dtype == frame["c"].dtype:
        assert repr(list(found["c"])) == repr(list(frame["c"]))


@pytest.mark.parametrize(("kind", "values"), CASES)
def test_types_inside_types(kind, values, tmp_path):
    through(array(kind, values), tmp_path)


def test_the_part_of_a_null_struct_stays_an_integer(tmp_path):
    kind = pa.struct([pa.field("a", pa.int64(), nullable=False)])
    pq.write_table(pa.table({"c": array(kind, [[BIG], None])}), tmp_path / "a.parquet")
    kmsdata.encrypt_parquet(tmp_path / "a.parquet", tmp_path / "b.parquet", "c", key=KEY)
    frame = kmsdata.read_parquet(tmp_path / "b.parquet", decrypt=True)
    assert frame["c"][0] == {"a": BIG}
    assert frame["c"][1] is None


def test_nulls_beside_a_dictionary_in_a_list(tmp_path):
    """pyarrow casts such a row wrongly, to the type that it has."""
    parts = [
        pa.field("f0", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("f1", pa.null()),
    ]
    through(array(pa.list_(pa.struct(parts)), [[None, None], []]), tmp_path)


@st.composite
def columns(draw, depth=4):
    """Draw a type at most four levels deep, and values with nulls at each level."""

    def kinds(left):
        leaf = st.sampled_from([kind for kind, _ in leaves()])
        if not left:
            return leaf
        inside = kinds(left - 1)
        fields = st.lists(st.tuples(inside, st.booleans()), min_size=1, max_size=3)
        return st.one_of(
            leaf,
            st.builds(pa.list_, inside),
            st.builds(pa.large_list, inside),
            fields.map(
                lambda parts: pa.struct(
                    [
                        pa.field(f"f{k}", kind, nullable=null or pa.types.is_null(kind))
                        for k, (kind, null) in enumerate(parts)
                    ]
                )
            ),
        )

    def value(kind, null=True):
        if null and draw(st.integers(0, 4)) == 0:
            return None
        for leaf, values in leaves():
            if leaf == kind:
                return draw(st.sampled_from(values))
        if pa.types.is_struct(kind):
            return [value(kind.field(k).type, kind.field(k).nullable) for k in range(kind.num_fields)]
        return [value(kind.value_type) for _ in range(draw(st.integers(0, 3)))]

    kind = draw(kinds(depth))
    whole = array(kind, [value(kind) for _ in range(draw(st.integers(0, 6)))])
    start = draw(st.integers(0, len(whole)))
    return draw(
        st.sampled_from([whole, whole.slice(start), pa.chunked_array([whole[:start], whole[start:]])])
    )


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(columns())
def test_any_type_comes_back(tmp_path_factory, column):
    note(pa.schema([("c", column.type)]).to_string())
    through(column, tmp_path_factory.mktemp("any"))


def test_a_null_struct_with_a_dictionary_that_takes_no_nulls_beside_a_view():
    field = pa.field("code", pa.dictionary(pa.int32(), pa.string()), nullable=False)
    codes = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), pa.array(["a"]))
    structs = pa.StructArray.from_arrays([codes], fields=[field], mask=pa.array([True]))
    lists = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), structs)
    rows = pa.StructArray.from_arrays([pa.array(["b"], pa.string_view()), lists], ["view", "list"])
    table = pa.table({"c": rows})
    assert kmsdata.decrypt_table(kmsdata.encrypt_table(table, "c", key=KEY)).equals(table)
