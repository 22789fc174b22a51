"""The footer edit: for every writer, only values of entries change; damage is an error."""

import datetime
import decimal
import io
import random
import tracemalloc

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kmsdata
from kmsdata.keys.envelope import file_text
from kmsdata.parquet import footer as footer_module
from kmsdata.parquet.footer import MAGIC, FileMetaData, Footer, ending, read_footer, read_metadata
from kmsdata.parquet.thrift import BINARY, I32, I64, LIST, STRUCT, Reader, decode, encode, value

OLD, NEW = "local://old", "local://new"


@pytest.fixture(autouse=True)
def creating(keystore):
    """Rewrap to keys that do not exist yet."""
    kmsdata.use(kmsdata.LocalKeystore(create=True))


BLOOM_FILTERS = int(pa.__version__.split(".")[0]) >= 24


pytestmark = pytest.mark.timeout(300)  # for slow tests too: a footer must not make a reader hang


def seeded(seed):
    return random.Random(seed)  # noqa: S311 - the same tables at every run


# Random tables.

KINDS = {
    "int64": (pa.int64(), lambda r: r.randrange(-(2**62), 2**62)),
    "uint16": (pa.uint16(), lambda r: r.randrange(2**16)),
    "float": (pa.float64(), lambda r: r.random()),
    "bool": (pa.bool_(), lambda r: r.random() < 0.5),
    "text": (pa.string(), lambda r: "ab ü身"[: r.randrange(6)]),
    "large": (pa.large_string(), lambda r: "x" * r.randrange(40)),
    "when": (pa.timestamp("us", "UTC"), lambda r: datetime.datetime(1970 + r.randrange(99), 1, 2, 3)),
    "day": (pa.date32(), lambda r: datetime.date.fromordinal(r.randrange(1, 3_000_000))),
    "money": (pa.decimal128(12, 2), lambda r: decimal.Decimal(r.randrange(10**9)) / 100),
    "list": (pa.list_(pa.int32()), lambda r: [r.randrange(9) for _ in range(r.randrange(4))]),
    "struct": (pa.struct([("b", pa.list_(pa.string()))]), lambda r: {"b": ["x"] * r.randrange(3)}),
    "map": (pa.map_(pa.string(), pa.int32()), lambda r: [("k", r.randrange(9))]),
    "fixed": (pa.binary(3), lambda r: r.randbytes(3)),
}  # fmt: skip
SIMPLE = ("int64", "uint16", "float", "bool", "text", "when", "day")


def table(rng, kinds=tuple(KINDS)):
    """Return an encrypted table of random plain columns, and the entry that lists its headers."""
    rows = rng.choice([0, 1, 7, 250])
    columns = {
        "ssn": pa.array(
            [None if rng.random() < 0.1 else f"{rng.random()}" for _ in range(rows)], pa.string()
        ),
        "id": pa.array([rng.randrange(20) for _ in range(rows)], pa.int64()),
    }
    for number in range(rng.randrange(6)):
        kind, make = KINDS[rng.choice(kinds)]
        columns[f"c{number}"] = pa.array(
            [None if rng.random() < 0.2 else make(rng) for _ in range(rows)], kind
        )
    names = list(columns)
    rng.shuffle(names)
    plain = pa.table({name: columns[name] for name in names})
    metadata = {f"k{n}": rng.randbytes(4).hex() * rng.choice([1, 50]) for n in range(rng.randrange(4))}
    sealed = kmsdata.encrypt_table(
        plain.replace_schema_metadata(metadata), ["ssn"], deterministic=["id"], key=OLD
    )
    headers = {name: sealed.schema.field(name).type.dtype.header for name in ("ssn", "id")}
    return sealed, file_text(headers)


def bare(sealed):
    """Return the table with cells as plain binary, as other software stores them."""
    for name in ("ssn", "id"):
        position = sealed.schema.get_field_index(name)
        chunks = [chunk.storage.cast(pa.binary()) for chunk in sealed.column(name).chunks]
        sealed = sealed.set_column(position, name, pa.chunked_array(chunks, pa.binary()))
    return sealed


def by_pyarrow(rng, path):
    sealed, entry = table(rng)
    sealed = sealed.replace_schema_metadata({**(sealed.schema.metadata or {}), b"kmsdata": entry.encode()})
    options = {
        "row_group_size": rng.choice([1, 3, 60, 10_000]),
        "data_page_version": rng.choice(["1.0", "2.0"]),
        "version": rng.choice(["1.0", "2.4", "2.6"]),
        "write_page_index": rng.random() < 0.5,
        "write_page_checksum": rng.random() < 0.5,
        "use_dictionary": rng.random() < 0.5,
        "compression": rng.choice(["none", "snappy", "zstd"]),
        "store_schema": rng.random() < 0.8,
        "use_deprecated_int96_timestamps": rng.random() < 0.3,
        "write_statistics": [name for name in sealed.column_names if name not in ("ssn", "id")],
        "data_page_size": rng.choice([64, 1 << 20]),
    }
    if rng.random() < 0.5:
        options["sorting_columns"] = [pq.SortingColumn(rng.randrange(2))]
    if BLOOM_FILTERS and rng.random() < 0.5:
        options["bloom_filter_options"] = {"ssn": {"ndv": 100}}
    groups = options.pop("row_group_size")
    if not options["store_schema"]:  # without it pyarrow writes no metadata of the schema
        sealed = bare(sealed)
    with pq.ParquetWriter(path, sealed.schema, **options) as writer:
        writer.write_table(sealed, groups)
        if not options["store_schema"]:
            writer.add_key_value_metadata({"kmsdata": entry})


def by_pandas(rng, path):
    sealed, _ = table(rng, SIMPLE)
    frame = sealed.to_pandas()
    frame.attrs = {"note": rng.choice(["", "ü", "x" * 300])}
    if rng.random() < 0.5:
        frame.kms.to_parquet(path, row_group_size=rng.choice([5, 1000]))
    else:
        frame.to_parquet(path, row_group_size=rng.choice([5, 1000]))


def by_polars(rng, path):
    import polars as pl

    sealed, entry = table(rng, SIMPLE)
    pq.write_table(sealed, path)
    more = {"metadata": {"kmsdata": entry}} if rng.random() < 0.5 else {}
    pl.read_parquet(path).write_parquet(path, row_group_size=rng.choice([7, 1000]), **more)


def by_duckdb(rng, path):
    import duckdb

    sealed, entry = table(rng, SIMPLE)
    relation = bare(sealed)
    quoted = entry.replace("'", "''")
    with duckdb.connect() as connection:
        connection.register("relation", relation)
        connection.execute(
            f"copy relation to '{path}' (format parquet, kv_metadata {{kmsdata: '{quoted}', other: 'x'}}, "
            f"row_group_size {rng.choice([2048, 100_000])}, parquet_version {rng.choice(['v1', 'v2'])})"
        )


def by_fastparquet(rng, path):
    import fastparquet

    sealed, entry = table(rng, ("int64", "uint16", "float", "bool", "text"))
    frame = bare(sealed).to_pandas()
    texts = {name: "utf8" for name in frame if sealed.schema.field(name).type == pa.string()}
    kinds = texts | {"ssn": "bytes", "id": "bytes"}
    frame = frame.astype(dict.fromkeys(kinds, object))
    groups = [0] if not len(frame) else list(range(0, len(frame), 100))
    fastparquet.write(
        str(path),
        frame,
        custom_metadata={"kmsdata": entry},
        row_group_offsets=groups,
        object_encoding=kinds | dict.fromkeys(set(frame) - set(kinds), "infer"),
    )


def read(path):
    """Return the bytes of a file before its footer, and the footer."""
    raw = path.read_bytes()
    with path.open("rb") as file:
        footer, start = read_footer(file, len(raw), str(path))
    return raw[:start], footer


def same_but_for_entries(before, after):
    """Return two footers that are equal after the values of one are put into the other: the edit undone."""
    assert [entry.key for entry in before.entries] == [entry.key for entry in after.entries]
    back = {n: entry.value for n, entry in enumerate(before.entries) if entry.value is not None}
    assert after.edited(back) == before.data


def groups(path):
    metadata = pq.read_metadata(path).to_dict()
    return metadata["row_groups"], metadata["created_by"], metadata["format_version"]


def rewrapped_as_it_was(path):
    pages, footer = read(path)
    assert footer.edited({}) == footer.data
    before, values = groups(path), kmsdata.read_parquet(path, decrypt=True, key=OLD)
    cells = pq.read_table(path, schema=storage(path))
    report = kmsdata.rewrap(path, NEW)
    assert (report.rewrapped, report.keys) == (1, {NEW: 1})
    after_pages, after = read(path)
    assert after_pages == pages
    same_but_for_entries(footer, after)
    assert groups(path) == before
    assert pq.read_table(path, schema=storage(path)).equals(cells)
    pd.testing.assert_frame_equal(kmsdata.read_parquet(path, decrypt=True, key=NEW), values)
    with pytest.raises(kmsdata.WrongKeyError):
        kmsdata.read_parquet(path, decrypt=True, key=OLD)
    assert kmsdata.rewrap(path, NEW).already == 1


def storage(path):
    """Return the file's Arrow schema with plain binary for cells, so that equality ignores their type."""
    schema = pq.read_schema(path)
    for position, field in enumerate(schema):
        if isinstance(field.type, kmsdata.EncryptedType):
            schema = schema.set(position, pa.field(field.name, field.type.storage_type))
    return schema.remove_metadata()


@pytest.mark.parametrize("seed", range(30))
def test_files_of_pyarrow_and_pandas_change_in_their_entries_only(tmp_path, seed):
    rng, path = seeded(seed), tmp_path / "x.parquet"
    (by_pandas if seed % 3 == 0 else by_pyarrow)(rng, path)
    rewrapped_as_it_was(path)


@pytest.mark.newest
@pytest.mark.parametrize("writer", [by_polars, by_duckdb, by_fastparquet, by_pyarrow, by_pandas])
@pytest.mark.parametrize("seed", range(8))
def test_files_of_any_writer_read_the_same_in_duckdb(tmp_path, writer, seed):
    import duckdb

    rng, path = seeded(100 + seed), tmp_path / "x.parquet"
    writer(rng, path)

    def rows():
        with duckdb.connect() as connection:
            return connection.execute(f"select * from '{path}'").fetchall()  # noqa: S608

    def as_text(found):
        return [list(map(repr, row)) for row in found]  # a NaN is equal to itself here

    before = as_text(rows())
    rewrapped_as_it_was(path)
    assert as_text(rows()) == before


# Damage.


def damaged(rng, raw):
    """Return the bytes of a footer with some damage."""
    raw = bytearray(raw)
    at = rng.randrange(len(raw))
    kind = rng.randrange(8)
    if kind == 0:
        raw[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        for _ in range(rng.randrange(2, 30)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
    elif kind == 2:
        del raw[at:]
    elif kind == 3:
        del raw[at : at + rng.randrange(1, 20)]
    elif kind == 4:
        raw[at:at] = rng.randbytes(rng.randrange(1, 20))
    elif kind == 5:
        raw[at:at] = raw[at : at + rng.randrange(1, 200)]
    elif kind == 6:
        raw[at : at + 10] = b"\xff" * 9 + b"\x01"  # the largest possible number
    else:
        raw[at:] = rng.randbytes(len(raw) - at)
    return bytes(raw)


@pytest.mark.parametrize("part", [0, 1, *(pytest.param(part, marks=pytest.mark.slow) for part in (2, 3))])
def test_damaged_footers_give_errors_and_no_file(tmp_path, part):
    rng, path = seeded(part), tmp_path / "x.parquet"
    refused = accepted = 0
    while refused + accepted < 800:
        if (refused + accepted) % 100 == 0:
            (by_pandas if part == 0 else by_pyarrow)(rng, path)
            pages, footer = read(path)
        bad = damaged(rng, footer.data)
        raw = pages + ending(bad)
        if rng.random() < 0.1:  # or its length, or the end of the file
            raw = bytearray(raw)
            raw[-rng.randrange(1, 9)] ^= 1 << rng.randrange(8)
            raw = bytes(raw)
        if raw == pages + ending(footer.data):
            continue
        path.write_bytes(raw)
        try:
            kmsdata.rewrap(path, NEW)
        except kmsdata.KmsDataError as error:
            assert str(path) in str(error)  # noqa: PT017 - most of them raise, some cannot
            assert path.read_bytes() == raw
            refused += 1
        else:  # damage that no reader can see, such as in a minimum or a codec: it is kept unchanged
            same_pages, after = read(path)
            assert same_pages == pages
            same_but_for_entries(Footer.parse(bad), after)
            accepted += 1
        assert {item.name for item in tmp_path.iterdir()} == {"keystore", "x.parquet"}
    assert refused > 700


SMALLEST = bytes.fromhex("1502 190c 1600 190c 191c 18016b 180176 00 00")  # k: v, and nothing else


def test_the_smallest_footer_is_read_and_edited():
    footer = Footer.parse(SMALLEST)
    assert [(entry.key, entry.value) for entry in footer.entries] == [(b"k", b"v")]
    longer = Footer.parse(footer.edited({0: b"x" * 300}))
    assert longer.entries[0].value == b"x" * 300
    assert longer.edited({0: b"v"}) == SMALLEST


def test_what_is_unknown_or_written_in_other_bytes_is_kept_by_an_edit():
    """Ids and lengths in full, numbers with extra bytes, and a field 20 of a type unknown to Parquet."""
    raw = "050202 19fc00 168000 190c 19fc01 1881006b {} 00 fb 01 88 0161 0162 00"
    footer = Footer.parse(bytes.fromhex(raw.format("18810076")))
    assert [(entry.key, entry.value) for entry in footer.entries] == [(b"k", b"v")]
    assert footer.edited({}) == footer.data
    assert footer.edited({0: b"xyz"}) == bytes.fromhex(raw.format("180378797a"))


HUGE = "ffffffffffffffff7f"  # 2^63 - 1


LIES = [
    ("", "ends within"),
    ("15", "ends within"),
    ("00", "lacks"),
    ("1502 190c 1600 190c 00 00", "after its end"),
    ("1502 190c 1600 00", "lacks"),
    ("1602 190c 1600 190c 00", "lacks"),  # a version of 64 bits
    ("1502 190c 1600 190c 0502 00 00", "twice"),  # field 1 once more, by its number
    (f"1502 19fc {HUGE} 1600 190c 00", "longer than what is left"),
    (f"1502 190c 1600 190c 191c 18{HUGE}", "more than is left"),
    (f"1502 190c 1600 190c 19fc {HUGE}", "longer than what is left"),
    ("1502 190c 1600 190c 18 01 61 00", "no list"),
    ("1502 190c 1600 190c 1918 01 61 00", "no list of pairs"),
    ("1502 190c 1600 190c 191c 00 00", "without a key"),
    ("1502 190c 1600 190c 191c 1502 00 00", "no pair"),
    ("1502 190c 1600 190c 191c 180161 180162 180163 00 00", "no pair"),
    ("1502 190c 1600 190c 5b " + HUGE, "longer than what is left"),  # a map
    ("1502 190c 1600 190c 5e 00", "unknown type"),
    ("1502 190c 16" + "80" * 11, "more than ten bytes"),
    ("1502" + "19" * 60_000, "deep"),
    ("1502" + "191c" + "1c" * 60_000, "deep"),
    ("1502 19fc ff7f" + "00" * 16383 + "1600 190c 00", "nothing"),
    ("1502 190c 1600 190c 191c 180161 08020162 00 00", "no pair"),  # the key twice
    ("1502 190c 1600 190c 4c 00 00", "Parquet Modular Encryption"),  # field 8
    ("1502 190c 1600 190c 58 0161 00", "signed by Parquet Modular Encryption"),  # field 9
]


@pytest.mark.parametrize(("raw", "what"), LIES)
def test_a_footer_that_lies_about_its_size_or_depth_is_refused(raw, what):
    if what == "nothing":  # a list of 16,383 empty structures is one
        assert Footer.parse(bytes.fromhex(raw)).entries == ()
        return
    with pytest.raises(kmsdata.FormatError, match=what):
        Footer.parse(bytes.fromhex(raw))


NO_PARQUET = [
    (b"", "cut short"),
    (MAGIC, "cut short"),
    (MAGIC + MAGIC, "cut short"),
    (b"a,b\n1,2\n3,4\n", "not a Parquet file"),
    (MAGIC + ending(SMALLEST)[:-8] + (1 << 31).to_bytes(4, "little") + MAGIC, "more than the file has"),
    (MAGIC + bytes(4) + MAGIC, "more than the file has"),
    (MAGIC + ending(SMALLEST), "nothing in it is encrypted"),
    (b"PARE" + ending(SMALLEST), "Parquet Modular Encryption"),
    (MAGIC + ending(SMALLEST)[:-4] + b"PARE", "Parquet Modular Encryption"),
    (b"PAR0" + ending(SMALLEST), "not a Parquet file"),
]


@pytest.mark.parametrize(("raw", "what"), NO_PARQUET)
def test_what_is_no_parquet_file_is_refused(tmp_path, raw, what):
    path = tmp_path / "x.parquet"
    path.write_bytes(raw)
    with pytest.raises(kmsdata.FormatError, match=what) as caught:
        kmsdata.rewrap(path, NEW)
    assert caught.value.path == str(path)
    assert path.read_bytes() == raw


@pytest.mark.parametrize(("raw", "what"), NO_PARQUET)
def test_what_is_no_parquet_file_is_not_encrypted_either(tmp_path, raw, what):
    path, target = tmp_path / "x.bin", tmp_path / "y.parquet"
    path.write_bytes(raw)
    what = "no schema" if "nothing in it" in what else what
    with pytest.raises(kmsdata.FormatError, match=what) as caught:
        kmsdata.encrypt_parquet(path, target, "ssn", key=NEW)
    assert caught.value.path == str(path)
    assert ("must end in .csv" in str(caught.value)) == (what in ("cut short", "not a Parquet file"))
    assert not target.exists()


# One reader: a footer says the same to an edit, which skips, and to a copy, which decodes.


def result(call, *arguments):
    """Return the result of a call, or its FormatError."""
    try:
        return call(*arguments)
    except kmsdata.FormatError as error:
        return error


def check_alike(data):
    """Skipping ends where reading does, and both views have the same entries."""
    skipping, reading = Reader(data), Reader(data)
    skipped, fields = result(skipping.skip, STRUCT), result(reading.read, STRUCT)
    if isinstance(fields, dict):
        assert skipped is None
        assert skipping.at == reading.at
        assert decode(encode(fields))[0] == fields
    else:
        assert str(skipped) == str(fields) or "twice" in str(fields) or "unknown type" in str(fields)
    edit, decoded = result(Footer.parse, data), result(FileMetaData.parse, data, 1 << 60)
    if isinstance(decoded, FileMetaData):
        if isinstance(edit, kmsdata.FormatError):  # an edit must know every byte of the entries
            assert "no pair of texts" in str(edit)
        else:
            assert decoded.metadata == {entry.key: entry.value or b"" for entry in edit.entries}
    return edit, decoded


def alike_whole_and_damaged(rng, path):
    _, footer = read(path)
    edit, decoded = check_alike(footer.data)
    assert edit == footer
    assert isinstance(decoded, FileMetaData)
    assert encode(decoded.fields) == footer.data
    size = len(footer.data)
    for _ in range(min(200, 500_000 // size)):  # about a second
        cut = footer.data[: rng.randrange(size)]
        assert {type(view) for view in check_alike(cut)} == {kmsdata.FormatError}
        check_alike(damaged(rng, footer.data))


@pytest.mark.parametrize("seed", range(6))
def test_footers_are_decoded_and_skipped_alike(tmp_path, seed):
    rng, path = seeded(200 + seed), tmp_path / "x.parquet"
    (by_pandas if seed % 3 == 0 else by_pyarrow)(rng, path)
    alike_whole_and_damaged(rng, path)


@pytest.mark.newest
@pytest.mark.parametrize("writer", [by_polars, by_duckdb, by_fastparquet])
@pytest.mark.parametrize("seed", range(2))
def test_footers_of_other_writers_are_decoded_and_skipped_alike(tmp_path, writer, seed):
    rng, path = seeded(300 + seed), tmp_path / "x.parquet"
    writer(rng, path)
    alike_whole_and_damaged(rng, path)


@pytest.mark.parametrize(("raw", "what"), LIES)
def test_a_footer_that_lies_takes_no_memory(raw, what):
    data = bytes.fromhex(raw)
    for parse in (Footer.parse, lambda data: FileMetaData.parse(data, 1 << 60)):
        tracemalloc.start()
        found = result(parse, data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100_000 + 200 * len(data)
        assert isinstance(found, kmsdata.FormatError) or what == "nothing"


def first_chunk(fields):
    return value(value(fields, 4)[1][0], 1)[1][0]


def first_group(fields):
    return value(fields, 4)[1][0]


UNFIT = [
    ("a row group has other columns", lambda fields: value(first_group(fields), 1)[1].pop()),
    ("columns encrypted or signed", lambda fields: first_chunk(fields).update({8: (STRUCT, {})})),
    ("columns encrypted or signed", lambda fields: first_chunk(fields).update({9: (BINARY, b"x")})),
    ("in other files", lambda fields: first_chunk(fields).update({1: (BINARY, b"other.parquet")})),
    ("in other files", lambda fields: first_chunk(fields).pop(3)),
    ("cut short", lambda fields: value(first_chunk(fields), 3).update({7: (I64, 1 << 40)})),
    ("cut short", lambda fields: value(first_chunk(fields), 3).update({9: (I64, 3), 11: (I64, 0)})),
    ("cut short", lambda fields: first_chunk(fields).update({4: (I64, 1 << 40), 5: (I32, 1)})),
    ("cut short", lambda fields: first_chunk(fields).update({6: (I64, 1 << 40), 7: (I32, 1)})),
    ("cut short", lambda fields: value(first_chunk(fields), 3).update({14: (I64, -9), 15: (I32, 1)})),
    ("so old", lambda fields: fields.update({6: (BINARY, b"parquet-cpp version 1.2.1")})),
    ("no schema", lambda fields: fields.update({2: (LIST, (STRUCT, []))})),
    ("no tree", lambda fields: value(fields, 2)[1][-1].update({5: (I32, 2)})),
    ("no tree", lambda fields: value(fields, 2)[1][1].update({4: (BINARY, b"\xff")})),
    ("fields are missing", lambda fields: value(fields, 2)[1][1].pop(4)),
    ("of other types", lambda fields: first_group(fields).update({3: (BINARY, b"7")})),
]


@pytest.mark.parametrize(("what", "change"), UNFIT)
def test_a_footer_whose_columns_cannot_be_copied_is_refused(tmp_path, what, change):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": [1, 2], "b": ["x", "y"]}), path)
    fields = decode(read(path)[1].data)[0]
    assert FileMetaData.parse(encode(fields), path.stat().st_size).fields == fields
    change(fields)
    with pytest.raises(kmsdata.FormatError, match=what):
        FileMetaData.parse(encode(fields), path.stat().st_size)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("page index", lambda chunk: chunk.update({4: (I64, 4), 5: (I32, 9)})),
        ("bloom filter", lambda chunk: value(chunk, 3).update({14: (I64, 0)})),
        ("bloom filter", lambda chunk: value(chunk, 3).update({14: (I64, 1 << 40)})),
    ],
)
def test_a_damaged_index_or_filter_is_refused(tmp_path, what, change):
    path, target = tmp_path / "x.parquet", tmp_path / "y.parquet"
    pq.write_table(pa.table({"a": [1, 2], "b": ["x", "y"]}), path, write_page_index=True)
    pages, footer = read(path)
    fields = decode(footer.data)[0]
    change(first_chunk(fields))
    path.write_bytes(pages + ending(encode(fields)))
    with pytest.raises(kmsdata.FormatError, match=f"its {what} is damaged") as caught:
        kmsdata.encrypt_parquet(path, target, "b", key=NEW)
    assert caught.value.path == str(path)
    assert not target.exists()


def test_an_edit_does_not_make_a_footer_that_is_too_large(monkeypatch):
    footer = Footer.parse(SMALLEST)
    monkeypatch.setattr(footer_module, "_MOST_BYTES", len(SMALLEST) + 5)
    assert len(footer.edited({0: b"x" * 6})) == len(SMALLEST) + 5
    with pytest.raises(kmsdata.FormatError, match="more than"):
        footer.edited({0: b"x" * 7})


class Watched(io.BytesIO):
    """A file in memory that records each read: for a remote file each is a request."""

    def __init__(self, data):
        super().__init__(data)
        self.reads = []

    def read(self, count):
        self.reads.append((self.tell(), count))
        return super().read(count)


def test_a_footer_is_found_in_two_reads_and_a_long_one_in_three(tmp_path, monkeypatch):
    path = tmp_path / "x.parquet"
    by_pyarrow(seeded(1), path)
    raw = path.read_bytes()
    pages, footer = read(path)
    for tail in range(8, len(footer.data) + 30, 5):
        monkeypatch.setattr(footer_module, "_TAIL", tail)
        file = Watched(raw)
        assert read_footer(file, len(raw), "") == (footer, len(pages))
        assert len(file.reads) == (2 if tail >= len(footer.data) + 8 else 3)
        assert read_metadata(Watched(raw), len(raw), "").fields == decode(footer.data)[0]


def test_a_file_that_becomes_shorter_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.parquet"
    by_pyarrow(seeded(1), path)
    file, size = Watched(path.read_bytes()), path.stat().st_size
    monkeypatch.setattr(footer_module, "_TAIL", 8)
    monkeypatch.setattr(file, "read", lambda count: io.BytesIO.read(file, count if count <= 8 else count - 1))
    with pytest.raises(kmsdata.FormatError, match="ends before its footer"):
        read_footer(file, size, "")


def test_a_footer_of_more_than_256_mib_is_refused_unread(tmp_path):
    path, length = tmp_path / "x.parquet", (256 << 20) + 1
    with path.open("wb") as file:  # without its pages: a sparse file takes no space
        file.write(MAGIC)
        file.seek(4 + length)
        file.write(length.to_bytes(4, "little") + MAGIC)
    for reader in (read_footer, read_metadata):
        tracemalloc.start()
        with path.open("rb") as file, pytest.raises(kmsdata.FormatError, match="more than 256 MiB"):
            reader(file, path.stat().st_size, str(path))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20


@pytest.mark.newest
@pytest.mark.parametrize("plaintext_footer", [True, False])
def test_files_of_parquet_modular_encryption_are_refused(tmp_path, plaintext_footer):
    import pyarrow.parquet.encryption as pe

    class Client(pe.KmsClient):
        def __init__(self, _):
            super().__init__()

        def wrap_key(self, key, _):
            return key.hex()

        def unwrap_key(self, wrapped, _):
            return bytes.fromhex(wrapped)

    config = pe.EncryptionConfiguration(
        footer_key="f", column_keys={"f": ["ssn"]}, plaintext_footer=plaintext_footer
    )
    properties = pe.CryptoFactory(Client).file_encryption_properties(pe.KmsConnectionConfig(), config)
    path = tmp_path / "x.parquet"
    with pq.ParquetWriter(path, pa.schema({"ssn": pa.string()}), encryption_properties=properties) as writer:
        writer.write_table(pa.table({"ssn": ["1"]}))
    raw = path.read_bytes()
    with pytest.raises(kmsdata.FormatError, match="Parquet Modular Encryption"):
        kmsdata.rewrap(path, NEW)
    assert path.read_bytes() == raw
