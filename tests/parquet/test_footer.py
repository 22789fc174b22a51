"""The footer edit: whatever the writer, nothing but values of entries changes; damage is an error."""

import datetime
import decimal
import random

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kmsdata
from kmsdata.keys.envelope import file_text
from kmsdata.parquet.footer import MAGIC, Footer, ending, read_footer

OLD, NEW = "local://old", "local://new"
BLOOM_FILTERS = int(pa.__version__.split(".")[0]) >= 24


pytestmark = pytest.mark.timeout(120)  # also of slow tests: a footer must not make a reader hang


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
    """An encrypted table of random plain columns, and the entry that lists its headers."""
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
    """The table with cells of plain binary, as other software holds them."""
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
    """The bytes of a file before its footer, and the footer."""
    raw = path.read_bytes()
    with path.open("rb") as file:
        footer, start = read_footer(file, len(raw), str(path))
    return raw[:start], footer


def same_but_for_entries(before, after):
    """Two footers that are equal once the values of the one are put into the other: the edit undone."""
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
    """The file's Arrow schema with plain binary for cells, whose equality asks for no type."""
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
    """The bytes of a footer with something wrong."""
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
        raw[at : at + 10] = b"\xff" * 9 + b"\x01"  # a number as large as can be
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
        else:  # damage that no reader can see, such as of a minimum or a codec: it is kept as it is
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


HUGE = "ffffffffffffffff7f"  # 2^63 - 1


@pytest.mark.parametrize(
    ("raw", "what"),
    [
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
    ],
)
def test_a_footer_that_lies_about_its_size_or_depth_is_refused(raw, what):
    if what == "nothing":  # a list of 16,383 empty structures is one
        assert Footer.parse(bytes.fromhex(raw)).entries == ()
        return
    with pytest.raises(kmsdata.FormatError, match=what):
        Footer.parse(bytes.fromhex(raw))


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"", "cut short"),
        (MAGIC, "cut short"),
        (MAGIC + MAGIC, "cut short"),
        (b"a,b\n1,2\n3,4\n", "not a Parquet file"),
        (MAGIC + ending(SMALLEST)[:-8] + (1 << 31).to_bytes(4, "little") + MAGIC, "more than the file has"),
        (MAGIC + bytes(4) + MAGIC, "more than the file has"),
        (MAGIC + ending(SMALLEST), "nothing in it is encrypted"),
        (b"PARE" + ending(SMALLEST), "Parquet Modular Encryption"),
        (MAGIC + ending(SMALLEST)[:-4] + b"PARE", "Parquet Modular Encryption"),
    ],
)
def test_what_is_no_parquet_file_is_refused(tmp_path, raw, what):
    path = tmp_path / "x.parquet"
    path.write_bytes(raw)
    with pytest.raises(kmsdata.FormatError, match=what) as caught:
        kmsdata.rewrap(path, NEW)
    assert caught.value.path == str(path)
    assert path.read_bytes() == raw


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
