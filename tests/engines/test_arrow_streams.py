"""Arrow data of any kind is encrypted, decrypted, attached to, verified and inspected; readers stream."""

import ctypes
import datetime as dt
import gc
import io
import pickle
import subprocess
import sys
import threading
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kmsdata
from kmsdata import FormatError, KmsDataError, TamperedError, UnsupportedTypeError, WrongKeyError
from kmsdata.frames.arrow.sources import next_batch

KEY = "local://demo"
ROWS = 1000


@pytest.fixture
def table():
    n = 5 * ROWS
    return pa.table(
        {
            "id": pa.array(range(n), pa.int64()),
            "name": [None if i % 7 == 0 else f"person {i}" for i in range(n)],
            "plain": [i / 2 for i in range(n)],
        }
    )


def stream(table, rows=ROWS):
    return pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=rows))


def with_cell_changed(table, name, row):
    """The table with one bit of one cell changed."""
    position = table.schema.get_field_index(name)
    kind = table.schema.field(position).type
    cells = table.column(position).combine_chunks().storage.to_pylist()
    cells[row] = cells[row][:-1] + bytes([cells[row][-1] ^ 1])
    array = pa.ExtensionArray.from_storage(kind, pa.array(cells, kind.storage_type))
    return table.set_column(position, table.schema.field(position), array)


class Other:
    """A frame of a library that has only Arrow's interface."""

    def __init__(self, table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


# --- readers --------------------------------------------------------------------------------------


def test_a_reader_gives_a_reader_with_one_data_key(table):
    before = kmsdata.usage()
    sealed = kmsdata.encrypt_table(stream(table), "name", deterministic="id", key=KEY)
    assert isinstance(sealed, pa.RecordBatchReader)
    batches = list(sealed)
    assert [len(batch) for batch in batches] == [ROWS] * 5
    assert len({str(batch.schema.field("name").type.dtype.text) for batch in batches}) == 1
    calls = kmsdata.usage()
    assert (calls.calls - before.calls) == 1
    whole = pa.Table.from_batches(batches)
    assert len({cell.as_py() for cell in whole.column("name").combine_chunks().storage}) == 4285 + 1
    assert kmsdata.decrypt_table(whole).equals(table)
    opened = kmsdata.decrypt_table(stream(whole, 700))
    assert isinstance(opened, pa.RecordBatchReader)
    assert opened.schema.equals(table.schema, check_metadata=True)
    assert opened.read_all().equals(table)
    assert kmsdata.verify(stream(whole), encrypted=["id", "name"]).ok
    # Files are as those of a table.
    with pq.ParquetWriter(io.BytesIO(), whole.schema) as writer:
        for batch in kmsdata.encrypt_table(stream(table), "name", key=whole):
            assert batch.schema.field("name").type == whole.schema.field("name").type
            del batch
        assert writer is not None


def test_the_same_columns_in_a_reader_and_a_table_have_equal_types(table):
    key = kmsdata.new_data_key(KEY)
    frame = pd.DataFrame(
        {"s": ["a", None], "n": pd.array([1, None], "Int64"), "t": pd.Timestamp("2026-01-01")}
    )
    for data in (table, pa.Table.from_pandas(frame)):
        names = data.column_names
        one = kmsdata.encrypt_table(data, names, key=key)
        two = kmsdata.encrypt_table(data.to_reader(), names, key=key)
        assert two.schema.equals(one.schema, check_metadata=True)
        assert kmsdata.decrypt_table(two).read_all().to_pandas().equals(data.to_pandas())
        assert kmsdata.decrypt_table(one.to_reader()).schema.equals(
            kmsdata.decrypt_table(one).schema, check_metadata=True
        )


def test_nothing_is_read_before_the_first_batch_is_asked_for(table):
    read = []

    def batches():
        for batch in table.to_batches(max_chunksize=ROWS):
            read.append(len(batch))
            yield batch

    source = pa.RecordBatchReader.from_batches(table.schema, batches())
    sealed = kmsdata.encrypt_table(source, "name", key=KEY)
    opened = kmsdata.decrypt_table(sealed)
    assert read == []
    opened.read_next_batch()
    assert read == [ROWS]
    opened.read_next_batch()
    assert read == [ROWS] * 2


def test_memory_of_a_stream_is_flat():
    code = """
import resource, sys
import numpy as np, pyarrow as pa, kmsdata
rows, count = 1 << 15, int(sys.argv[1])
schema = pa.schema([("n", pa.int64()), ("s", pa.string())])
def batches():
    for k in range(count):
        n = np.arange(k * rows, (k + 1) * rows)
        yield pa.record_batch([pa.array(n), pa.array(n).cast(pa.string())], schema=schema)
source = pa.RecordBatchReader.from_batches(schema, batches())
key = kmsdata.new_data_key("local://demo")
total = 0
for batch in kmsdata.decrypt_table(kmsdata.encrypt_table(source, ["n", "s"], key=key), key=key):
    total += len(batch)
assert total == rows * count
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    kmsdata.new_data_key(KEY)  # in the process of a test a new master key may be made, in others not
    few, many = (
        int(
            subprocess.run(
                [sys.executable, "-c", code, str(count)], capture_output=True, text=True, check=True
            ).stdout
        )
        for count in (10, 60)
    )
    # 50 more batches have 120 MB of cells; the allocator keeps some pages.
    assert many < few + 15_000, (few, many)


def test_checks_are_made_before_the_first_batch_and_before_a_key(table):
    before = kmsdata.usage().calls
    bad = [
        (KeyError, "no column 'nmae': did you mean 'name'", {"columns": "nmae"}),
        (FormatError, "'id' must be encrypted, but is not among", {"columns": "name", "encrypted": "id"}),
        (ValueError, "no column to encrypt", {}),
    ]
    for error, text, arguments in bad:
        source = stream(table)
        with pytest.raises(error, match=text):
            kmsdata.encrypt_table(source, key=KEY, **arguments)
        assert source.read_next_batch() is not None
    assert kmsdata.usage().calls == before
    with pytest.raises(FormatError, match=r"column 'name' is not encrypted.*attach"):
        kmsdata.decrypt_table(stream(table), "name")
    with pytest.raises(KeyError, match="no column 'x'"):
        kmsdata.decrypt_table(stream(table), "x")


def test_values_in_metadata_are_found_in_every_batch(table):
    described = table.replace_schema_metadata({"note": "about 'person 4321'"})
    sealed = kmsdata.encrypt_table(stream(described), "name", key=KEY)
    for _ in range(4):
        sealed.read_next_batch()
    with pytest.raises(
        ValueError, match=r"batch 4 of the stream \(rows 4,000 to 4,999\): the metadata"
    ) as caught:
        sealed.read_next_batch()
    assert "person" not in str(caught.value)


def test_dictionaries_are_refused_in_a_reader_only():
    table = pa.table({"c": pa.array(["x", "y"]).dictionary_encode()})
    before = kmsdata.usage().calls
    with pytest.raises(
        UnsupportedTypeError, match=r"'c' is dictionary.*Cast the column to string .*read_all"
    ):
        kmsdata.encrypt_table(table.to_reader(), "c", key=KEY)
    assert kmsdata.usage().calls == before
    sealed = kmsdata.encrypt_table(table, "c", key=KEY)
    assert kmsdata.decrypt_table(sealed.to_reader()).read_all().equals(table)
    # Beside it, a dictionary is no problem, and its lists may differ.
    schema = pa.schema([("n", pa.int64()), ("c", pa.dictionary(pa.int8(), pa.string()))])
    batches = [
        pa.record_batch(
            [[1], pa.array([text]).dictionary_encode().cast(schema.field("c").type)], schema=schema
        )
        for text in ("x", "y")
    ]
    sealed = kmsdata.encrypt_table(pa.RecordBatchReader.from_batches(schema, batches), "n", key=KEY)
    assert kmsdata.decrypt_table(sealed).read_all().column("c").to_pylist() == ["x", "y"]


def test_objects_of_pandas_in_a_reader():
    frame = pd.DataFrame(
        {
            "text": pd.Series(["a", None, "b", None], dtype=object),
            "date": pd.Series([dt.date(2026, 1, 1), None, None, None], dtype=object),
            "cat": pd.Categorical(["x", "y", None, "x"]),
        }
    )
    sealed = pa.table(frame.kms.encrypt(["text", "date", "cat"], key=KEY))
    whole, opened = kmsdata.decrypt_table(sealed), kmsdata.decrypt_table(stream(sealed, 1))
    assert opened.schema.equals(whole.schema)
    assert opened.read_all().to_pylist() == whole.to_pylist()
    mixed = pd.DataFrame({"m": pd.Series(["a", 1], dtype=object)}).kms.encrypt("m", key=KEY)
    with pytest.raises(UnsupportedTypeError, match=r"'m'.*depends on all of its values.*read_all"):
        kmsdata.decrypt_table(pa.table(mixed).to_reader())


def test_united_categories_are_refused_in_a_reader():
    parts = [
        pd.DataFrame({"c": pd.Categorical(list(text))}).kms.encrypt("c", key=KEY) for text in ("ab", "xy")
    ]
    with warnings.catch_warnings(action="ignore"):
        both = pa.table(pd.concat(parts, ignore_index=True))
    assert kmsdata.decrypt_table(both).column("c").to_pylist() == ["a", "b", "x", "y"]
    with pytest.raises(UnsupportedTypeError, match="categories of several lists"):
        kmsdata.decrypt_table(both.to_reader())


# --- failures in a stream -------------------------------------------------------------------------


def test_a_changed_cell_in_a_later_batch(table):
    sealed = with_cell_changed(kmsdata.encrypt_table(table, ["id", "name"], key=KEY), "name", 3210)
    opened = kmsdata.decrypt_table(stream(sealed))
    for _ in range(3):
        assert opened.read_next_batch().column("name").null_count > 0
    with pytest.raises(
        TamperedError, match=r"batch 3 of the stream \(rows 3,000 to 3,999\).*row 3210"
    ) as caught:
        opened.read_next_batch()
    assert (caught.value.column, caught.value.rows, caught.value.count) == ("name", (3210,), 1)
    assert "the batches before it were" in str(caught.value)
    assert "Nothing of the column was" not in str(caught.value)
    # A stream that failed never looks like one that ended.
    for _ in range(2):
        with pytest.raises(KmsDataError, match="the stream failed after 3,000 rows"):
            opened.read_next_batch()
    found = kmsdata.verify(stream(sealed))
    assert [(failure.column, failure.rows) for failure in found.failures] == [("name", (3210,))]
    assert found.rows == 5 * ROWS


def test_no_frame_of_an_error_has_values_of_the_stream(table):
    sealed = with_cell_changed(kmsdata.encrypt_table(table, ["id", "name"], key=KEY), "name", 3210)
    opened = kmsdata.decrypt_table(stream(sealed))
    with pytest.raises(TamperedError) as caught:
        opened.read_all()
    assert values_in(caught.value) == []
    # Encryption: the value that is refused, and the others of its batch, are not in the frames either.
    described = table.replace_schema_metadata({"note": "about 'person 4321'"})
    with pytest.raises(ValueError, match="metadata") as caught:
        kmsdata.encrypt_table(stream(described), "name", key=KEY).read_all()
    assert values_in(caught.value) == []


def test_no_frame_of_an_unexpected_error_has_values_of_the_stream(table, monkeypatch):
    def failing(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("kmsdata.frames.arrow.table.seal", failing)
    sealed = kmsdata.encrypt_table(stream(table), "name", key=KEY)
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        sealed.read_next_batch()
    assert caught.value.__notes__ == ["This was in batch 0 of the stream (rows 0 to 999)."]
    assert values_in(caught.value) == []


def values_in(error):
    """The Arrow data with plaintext that the frames, causes and contexts of an error lead to."""
    found, waiting, seen = [], [error], set()
    while waiting:
        thing = waiting.pop()
        if (
            id(thing) in seen
            or isinstance(thing, (type, str, bytes, int))
            or type(thing).__name__ == "module"
        ):
            continue
        seen.add(id(thing))
        if isinstance(thing, BaseException):
            waiting += [thing.__cause__, thing.__context__, *vars(thing).values()]
            trace = thing.__traceback__
            while trace is not None:
                own = trace.tb_frame.f_globals.get("__name__", "")
                if own.startswith(("kmsdata", "pyarrow")):
                    waiting += trace.tb_frame.f_locals.values()
                trace = trace.tb_next
        elif isinstance(thing, (pa.Table, pa.RecordBatch, pa.ChunkedArray, pa.Array)):
            if b"person" in pickle.dumps(thing):
                found.append(thing)
        elif isinstance(thing, (list, tuple, set)):
            waiting += thing
        elif isinstance(thing, dict):
            waiting += thing.values()
        elif (type(thing).__module__ or "").startswith("kmsdata"):
            waiting += gc.get_referents(thing)
    return found


def test_an_error_of_the_source_passes_with_the_number_of_rows(table):
    class OwnError(Exception):
        pass

    def batches():
        yield from table.to_batches(max_chunksize=ROWS)[:2]
        raise OwnError("the disk is gone")

    for use in (
        lambda source: kmsdata.encrypt_table(source, "name", key=KEY),
        lambda source: kmsdata.decrypt_table(source),
    ):
        made = use(pa.RecordBatchReader.from_batches(table.schema, batches()))
        made.read_next_batch()
        made.read_next_batch()
        with pytest.raises(OwnError, match="the disk is gone") as caught:
            made.read_next_batch()
        assert "failed after 2,000 rows" in caught.value.__notes__[0]
        with pytest.raises(KmsDataError, match="the stream failed after 2,000 rows"):
            made.read_next_batch()
    sealed = kmsdata.encrypt_table(stream(table), "name", key=KEY)

    def sealed_batches():
        yield sealed.read_next_batch()
        raise OSError("secret value")

    found = kmsdata.verify(pa.RecordBatchReader.from_batches(sealed.schema, sealed_batches()))
    assert "after 1,000 rows (OSError)" in found.failures[0].what
    assert "secret" not in str(found)


def test_a_batch_of_another_schema_is_refused(table):
    other = kmsdata.encrypt_table(table, "name", key=KEY).to_batches()
    sealed = kmsdata.encrypt_table(table, "name", key=KEY)
    for batches in (other, pa.table({"x": [1]}).to_batches(), table.to_batches()):
        source = [*sealed.to_batches(), *batches]
        opened = kmsdata.decrypt_table(pa.RecordBatchReader.from_batches(sealed.schema, source))
        opened.read_next_batch()
        with pytest.raises(FormatError, match=r"after 5,000 rows.*another schema"):
            opened.read_next_batch()
        found = kmsdata.verify(pa.RecordBatchReader.from_batches(sealed.schema, source))
        assert not found.ok
        assert "another schema" in str(found)
    mixed = pa.RecordBatchReader.from_batches(table.schema, [pa.record_batch({"x": ["y"]})])
    with pytest.raises(FormatError, match="another schema"):
        kmsdata.encrypt_table(mixed, "name", key=KEY).read_all()


def test_an_interrupt_does_not_lose_a_batch(table, monkeypatch):
    sealed = kmsdata.encrypt_table(table, "name", key=KEY)
    opened = kmsdata.decrypt_table(stream(sealed))
    opened.read_next_batch()

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("kmsdata.frames.arrow.table.open_arrow", interrupted)
        with pytest.raises(KeyboardInterrupt):
            opened.read_next_batch()
    with pytest.raises(KmsDataError, match="the stream failed after 1,000 rows"):
        opened.read_next_batch()


def test_the_source_is_closed_at_the_end_and_after_an_error(table):
    closed = []

    def batches(data):
        try:
            yield from data.to_batches(max_chunksize=ROWS)
        finally:
            closed.append(True)

    sealed = kmsdata.encrypt_table(table, "name", key=KEY)
    for data in (sealed, with_cell_changed(sealed, "name", 1)):
        closed.clear()
        opened = kmsdata.decrypt_table(pa.RecordBatchReader.from_batches(data.schema, batches(data)))
        if data is sealed:
            opened.read_all()
        else:
            with pytest.raises(TamperedError):
                opened.read_all()
        assert closed == [True]
    closed.clear()
    opened = kmsdata.decrypt_table(pa.RecordBatchReader.from_batches(data.schema, batches(sealed)))
    opened.read_next_batch()
    del opened  # a reader that is given up closes its source too
    gc.collect()
    assert closed == [True]


def test_wrong_keys_and_contexts_are_found_before_the_first_batch(table):
    sealed = kmsdata.encrypt_table(table, "name", key=KEY, context={"team": "a"})
    with pytest.raises(FormatError, match="context"):
        kmsdata.decrypt_table(stream(sealed), context={"team": "b"})
    with pytest.raises(WrongKeyError):
        kmsdata.decrypt_table(stream(sealed), key=kmsdata.new_data_key(KEY))


# --- cells without a header -----------------------------------------------------------------------


def lost(sealed):
    """The table without headers, as other software gives it back."""
    arrays = [
        c.combine_chunks().storage if isinstance(c.type, pa.BaseExtensionType) else c for c in sealed.columns
    ]
    return pa.table(dict(zip(sealed.column_names, arrays, strict=True)))


def test_a_stream_uses_the_session_in_which_it_was_made(table, tmp_path):
    mine = kmsdata.LocalKeystore(tmp_path / "mine.json")
    mine.create_key("mine", quiet=True)
    with kmsdata.using(mine):
        enc = kmsdata.encrypt_table(table.to_reader(), table.column_names[0], key="local://mine")
        reader = kmsdata.decrypt_table(enc)
    read = []
    thread = threading.Thread(target=lambda: read.append(reader.read_all()))
    thread.start()
    thread.join()
    assert read == [table]


def test_cells_without_header_in_a_stream(table):
    without = lost(kmsdata.encrypt_table(table, "name", key=KEY))
    opened = kmsdata.decrypt_table(stream(without))
    with pytest.raises(FormatError, match="'name' has no kmsdata header, but looks like cells"):
        opened.read_next_batch()
    # One row in each batch: only together they look like cells.
    opened = kmsdata.decrypt_table(stream(without.slice(1, 4), 1))
    with pytest.raises(FormatError, match="looks like cells"):
        opened.read_all()
    with pytest.warns(UserWarning, match="its only value looks like a cell"):
        kmsdata.decrypt_table(stream(without.slice(1, 1))).read_all()
    assert not kmsdata.verify(stream(without)).ok
    with pytest.raises(FormatError, match="looks like cells"):
        kmsdata.inspect(stream(without))
    # A file whose first half is plain.
    plain = pa.table(
        {**{name: table.column(name) for name in ("id", "plain")}, "name": [b"x"] * table.num_rows}
    )
    both = pa.concat_tables([plain.select(without.column_names), without])
    with pytest.raises(FormatError, match=r"batch 5 of the stream.*looks like cells"):
        kmsdata.decrypt_table(stream(both)).read_all()


def test_attach_to_a_stream(table):
    sealed = kmsdata.encrypt_table(table, ["id", "name"], key=KEY)
    without = lost(sealed)
    attached = kmsdata.attach(stream(without), sealed)
    assert isinstance(attached, pa.RecordBatchReader)
    assert kmsdata.decrypt_table(attached).read_all().equals(table)
    renamed = without.rename_columns(["id", "who", "plain"])
    attached = kmsdata.attach(stream(renamed), stream(sealed), {"who": "name"})
    with pytest.warns(UserWarning, match="was encrypted as 'name'"):
        opened = kmsdata.decrypt_table(attached, "who")
    assert opened.read_all().column("who").equals(table.column("name"))
    # Other values, and cells of other data, are errors in their batch.
    foreign = lost(kmsdata.encrypt_table(table, ["id", "name"], key=KEY))
    for data in (table.set_column(0, "id", sealed.column("id")), foreign):
        both = pa.concat_tables(
            [without.select(["name"]), lost(data.select(["name"])).cast(without.select(["name"]).schema)]
        )
        attached = kmsdata.attach(stream(both), sealed)
        for _ in range(5):
            attached.read_next_batch()
        with pytest.raises(FormatError, match=r"batch 5 of the stream.*column 'name'"):
            attached.read_next_batch()
    with pytest.raises(FormatError, match="'plain' does not contain cells"):
        kmsdata.attach(stream(without), sealed, {"plain": "id"})
    with pytest.raises(ValueError, match="contain no cells here, or are missing"):
        kmsdata.attach(stream(without.select(["plain"])), sealed)


def test_the_text_of_cells_in_a_stream(table):
    sealed = kmsdata.encrypt_table(table.slice(0, 10), "name", key=KEY)
    text = pd.read_csv(io.StringIO(sealed.to_pandas().to_csv(index=False)))
    data = pa.Table.from_pandas(text, preserve_index=False)
    opened = kmsdata.decrypt_table(kmsdata.attach(stream(data, 3), sealed)).read_all()
    assert opened.column("name").to_pylist() == table.slice(0, 10).column("name").to_pylist()


# --- tables, batches, and other libraries ---------------------------------------------------------


def test_batches_and_other_objects(table):
    batch = table.to_batches()[0]
    sealed = kmsdata.encrypt_table(batch, "name", key=KEY)
    assert isinstance(sealed, pa.RecordBatch)
    assert kmsdata.decrypt_table(sealed).equals(batch)
    assert kmsdata.decrypt_table(sealed.slice(0, 0)).equals(batch.slice(0, 0))
    assert kmsdata.verify(sealed).ok
    assert kmsdata.inspect(sealed).encrypted == ["name"]
    without = pa.RecordBatch.from_arrays(
        [*lost(pa.table(sealed)).combine_chunks().to_batches()[0]], batch.schema.names
    )
    assert isinstance(kmsdata.attach(without, sealed), pa.RecordBatch)

    class Array:
        def __arrow_c_array__(self, requested_schema=None):
            return batch.__arrow_c_array__(requested_schema)

    assert kmsdata.decrypt_table(kmsdata.encrypt_table(Array(), "name", key=KEY)).equals(batch)
    other = kmsdata.encrypt_table(Other(table), "name", key=KEY)
    assert isinstance(other, pa.Table)
    assert kmsdata.decrypt_table(Other(other)).equals(table)
    assert kmsdata.verify(Other(other)).ok
    assert kmsdata.inspect(Other(other)).rows == table.num_rows
    empty = kmsdata.encrypt_table(Other(table.slice(0, 0)), "name", key=KEY)
    assert kmsdata.decrypt_table(Other(empty)).equals(table.slice(0, 0))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda table: table.to_pandas(),
            "encrypt_table.. takes an Arrow table, not DataFrame.*use df.kms.encrypt",
        ),
        (lambda table: table.to_pandas()["name"], "not Series.*use df.kms.encrypt"),
        (lambda table: table.column("name"), "takes a table, not a single column"),
        (lambda table: table.column("name").chunk(0), "takes a table, not a single column"),
        (lambda _: "people.parquet", "with the method __arrow_c_stream__, not str"),
        (lambda table: [table], "not list"),
    ],
)
def test_what_is_no_table(make, text, table):
    with pytest.raises(TypeError, match=text):
        kmsdata.encrypt_table(make(table), "name", key=KEY)


def test_keys_and_originals_of_any_kind(table):
    sealed = kmsdata.encrypt_table(table, "name", deterministic="id", key=KEY)
    batch = sealed.to_batches()[0]
    for like in (sealed, batch, Other(sealed), stream(sealed)):
        again = kmsdata.encrypt_table(table, "name", deterministic="id", key=like)
        assert (
            again.column("id").combine_chunks().storage.equals(sealed.column("id").combine_chunks().storage)
        )
        assert kmsdata.decrypt_table(sealed, key=like).equals(table)
        assert kmsdata.verify(sealed, key=like).ok
        assert kmsdata.data_key(like).wraps == kmsdata.data_key(sealed).wraps
        assert kmsdata.export_keyset(like, "name").json() == kmsdata.export_keyset(sealed, "name").json()
        frame = table.to_pandas().kms.encrypt("name", key=like)
        assert frame["name"].dtype.header.columns[0].data_key == kmsdata.data_key(sealed).commitment
        assert kmsdata.attach(lost(sealed), like).equals(sealed)  # reads the stream to its end


def test_a_reader_as_a_key_is_not_read(table):
    like = stream(kmsdata.encrypt_table(table, "name", key=KEY))
    kmsdata.encrypt_table(table, "name", key=like)
    assert len(like.read_all()) == table.num_rows


def test_inspect_a_stream(table):
    sealed = kmsdata.encrypt_table(table, "name", key=KEY)
    one, two = kmsdata.inspect(sealed), kmsdata.inspect(stream(sealed))
    assert (two.what, two.rows) == ("stream", one.rows)
    assert [(c.name, c.encrypted, c.nulls, c.type) for c in two.columns] == [
        (c.name, c.encrypted, c.nulls, c.type) for c in one.columns
    ]
    assert kmsdata.inspect(stream(sealed).schema.empty_table()).encrypted == ["name"]


def test_duplicate_names():
    table = pa.Table.from_arrays([pa.array([1, 2]), pa.array([3, 4]), pa.array(["x", "y"])], ["a", "a", "b"])
    sealed = kmsdata.encrypt_table(table, "b", key=KEY)
    assert kmsdata.decrypt_table(sealed).equals(table)
    assert kmsdata.decrypt_table(sealed.to_reader()).read_all().equals(table)
    assert [column.name for column in kmsdata.inspect(sealed).columns] == ["a", "a", "b"]
    assert kmsdata.verify(sealed).ok
    with pytest.raises(ValueError, match="2 columns are named 'a'"):
        kmsdata.encrypt_table(table, "a", key=KEY)
    with pytest.raises(FormatError, match="'a' must be encrypted"):
        kmsdata.encrypt_table(table, "b", encrypted="a", key=KEY)
    found = kmsdata.verify(sealed, encrypted="a")
    assert [(failure.column, failure.what) for failure in found.failures] == [
        ("a", "it must be encrypted, but has no kmsdata header")
    ]


def test_every_column_of_a_name_is_verified(table):
    sealed = kmsdata.encrypt_table(table, "name", key=KEY)
    good = sealed.column("name")
    bad = with_cell_changed(sealed, "name", 5).column("name")
    kind = good.type
    for arrays in ([good, bad], [bad, good]):
        both = pa.Table.from_arrays(arrays, schema=pa.schema([("name", kind), ("name", kind)]))
        assert kmsdata.verify(both).failures[0].rows == (5,)
        assert kmsdata.verify(both.to_reader()).failures[0].rows == (5,)
        frame = pd.concat(
            [pd.Series(kmsdata.EncryptedArray(x, kind.dtype), name="name") for x in arrays], axis=1
        )
        assert kmsdata.verify(frame).failures[0].rows == (5,)
        with pytest.raises(ValueError, match="2 columns are named 'name'"):
            kmsdata.decrypt_table(both)
    half = pa.Table.from_arrays([good, table.column("name")], ["name", "name"])
    found = kmsdata.verify(half, encrypted="name")
    assert "one of the columns of this name" in found.failures[0].what


def test_a_type_that_was_not_registered(table):
    sealed = kmsdata.encrypt_table(table, "name", key=KEY)
    dtype = sealed.schema.field("name").type.dtype
    entries = {"ARROW:extension:name": "kmsdata.encrypted", "ARROW:extension:metadata": dtype.text}
    position = 1
    cells = sealed.column("name").combine_chunks().storage
    raw = sealed.set_column(position, pa.field("name", cells.type, metadata=entries), cells)
    for data in (raw, Other(raw), raw.to_batches()[0]):
        assert pa.table(kmsdata.decrypt_table(data)).equals(table)
        assert kmsdata.verify(data).ok
    assert kmsdata.decrypt_table(stream(raw)).read_all().equals(table)
    assert kmsdata.encrypt_table(stream(raw), "id", key=stream(raw)).read_all().schema.field("name").type == (
        sealed.schema.field("name").type
    )


# --- producers that are faulty or hostile ---------------------------------------------------------


class ArrowStream(ctypes.Structure):
    """ArrowArrayStream."""


Words = ctypes.c_int64 * 10  # ArrowArray: five numbers and five pointers
LENGTH, NULLS, OFFSET, N_BUFFERS, N_CHILDREN, BUFFERS, CHILDREN, DICTIONARY, RELEASE = range(9)

Get = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
LastError = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
ReleaseStream = ctypes.CFUNCTYPE(None, ctypes.POINTER(ArrowStream))
ReleaseArray = ctypes.CFUNCTYPE(None, ctypes.POINTER(Words))
ArrowStream._fields_ = [
    ("get_schema", Get),
    ("get_next", Get),
    ("get_last_error", LastError),
    ("release", ReleaseStream),
    ("private_data", ctypes.c_void_p),
]


class Producer:
    """A C stream of batches of one binary column with 32-bit offsets, whose structures a test may spoil."""

    def __init__(self, batches, spoil=None, fails_at=None):
        self.batches, self.spoil, self.fails_at = list(batches), spoil, fails_at
        self.number = self.streams_released = self.arrays_released = 0
        self.message = ctypes.create_string_buffer(b"the producer failed")
        self.kept = []
        self.release_child = ReleaseArray(lambda words: words.contents.__setitem__(RELEASE, 0))
        self.release_array = ReleaseArray(self._release_array)
        self.stream = ArrowStream(
            Get(self._schema),
            Get(self._next),
            LastError(lambda _: ctypes.addressof(self.message)),
            ReleaseStream(self._release),
            None,
        )

    def _schema(self, _, out):
        self.batches[0].schema._export_to_c(out)
        return 0

    def _next(self, _, out):
        if self.number == self.fails_at:
            return 5  # EIO
        if self.number == len(self.batches):
            ctypes.memset(out, 0, ctypes.sizeof(Words))
            return 0
        batch = self.batches[self.number]
        self.number += 1
        column = batch.column(0)
        column = column.storage if isinstance(column, pa.ExtensionArray) else column
        values = [value.as_buffer().to_pybytes() for value in column]
        offsets = (ctypes.c_int32 * (len(values) + 1))(*np.cumsum([0, *map(len, values)]).tolist())
        data = ctypes.create_string_buffer(b"".join(values), 1 << 12)
        buffers = (ctypes.c_void_p * 3)(None, ctypes.addressof(offsets), ctypes.addressof(data))
        child = Words(
            len(values), 0, 0, 3, 0, ctypes.addressof(buffers), 0, 0, address_of(self.release_child), 0
        )
        children, none = (ctypes.c_void_p * 1)(ctypes.addressof(child)), (ctypes.c_void_p * 1)(None)
        self.kept += [offsets, data, buffers, child, children, none]
        top = Words.from_address(out)
        pointers = [ctypes.addressof(none), ctypes.addressof(children), 0, address_of(self.release_array), 0]
        top[:] = [len(values), 0, 0, 1, 1, *pointers]
        if self.spoil is not None:
            self.spoil(top, child, buffers, offsets)
        return 0

    def _release_array(self, words):
        self.arrays_released += 1
        words.contents[RELEASE] = 0

    def _release(self, stream):
        self.streams_released += 1
        stream.contents.release = ReleaseStream()

    def __arrow_c_stream__(self, requested_schema=None):
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self.stream), b"arrow_array_stream", None)


def address_of(function):
    return ctypes.cast(function, ctypes.c_void_p).value


def in_child(word, value):
    return lambda _, child, *__: child.__setitem__(word, value)


def in_offsets(row, value):
    return lambda *words: words[3].__setitem__(row, value)


MALFORMED, INVALID = (FormatError, "malformed Arrow data"), (pa.ArrowInvalid, ".")
FAULTS = {
    "too few buffers": (in_child(N_BUFFERS, 1), INVALID),
    "too many buffers": (in_child(N_BUFFERS, 4), INVALID),
    "children of a column without any": (in_child(N_CHILDREN, 1), INVALID),
    "no column": (lambda top, *_: top.__setitem__(N_CHILDREN, 0), INVALID),
    "a released array": (in_child(RELEASE, 0), INVALID),
    "a shorter column": (in_child(LENGTH, 2), MALFORMED),
    "a longer batch": (lambda top, *_: top.__setitem__(LENGTH, 1 << 40), MALFORMED),
    "a negative offset": (in_offsets(1, -(1 << 30)), MALFORMED),
    "a decreasing offset": (in_offsets(2, 0), MALFORMED),
    "an offset out of range": (in_offsets(1, 1 << 30), MALFORMED),
    "no offsets": (lambda *words: words[2].__setitem__(1, None), INVALID),
}
USES = {
    "encrypt": lambda made, _: kmsdata.encrypt_table(made, "c", key=KEY),
    "encrypt stream": lambda made, _: kmsdata.encrypt_table(reader_of(made), "c", key=KEY).read_all(),
    "decrypt": lambda made, _: kmsdata.decrypt_table(made),
    "decrypt stream": lambda made, _: kmsdata.decrypt_table(reader_of(made)).read_all(),
    "verify": lambda made, _: kmsdata.verify(made),
    "inspect": lambda made, _: kmsdata.inspect(made),
    "attach": lambda made, like: kmsdata.attach(made, like),
    "attach stream": lambda made, like: kmsdata.attach(reader_of(made), like).read_all(),
}


def reader_of(made):
    return pa.RecordBatchReader.from_stream(made)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_a_hostile_producer(fault, use):
    plain = pa.record_batch({"c": ["one", "two", "three", "four"]})
    sealed = kmsdata.encrypt_table(plain, "c", key=KEY)
    without = pa.record_batch({"c": sealed.column("c").storage})
    batch = {"encrypt": plain, "attach": without}.get(use.split()[0], sealed)
    spoil, (error, text) = FAULTS[fault] if fault else (None, (None, ""))
    made = Producer([batch] * 2, spoil)
    if fault is None:
        USES[use](made, sealed)
        assert made.arrays_released == 2
    elif use == "verify":
        found = str(USES[use](made, sealed))
        assert "FAILED" in found
        assert "malformed Arrow data" in found or "failed after 0 rows (ArrowInvalid)" in found
    else:
        with pytest.raises(error, match=text) as caught:
            USES[use](made, sealed)
        if error is pa.ArrowInvalid:
            assert "failed after 0 rows" in caught.value.__notes__[0]
        del caught
    gc.collect()
    assert made.streams_released == 1


def test_errors_of_a_c_stream(table):
    batches = [pa.record_batch({"name": ["one", "two"] * (ROWS // 2)})] * 3
    made = Producer(batches, fails_at=2)
    sealed = kmsdata.encrypt_table(reader_of(made), "name", key=KEY)
    sealed.read_next_batch()
    sealed.read_next_batch()
    with pytest.raises(OSError, match="the producer failed") as caught:
        sealed.read_next_batch()
    assert "after 2,000 rows" in caught.value.__notes__[0]
    assert made.streams_released == 1

    class NoStream:
        def __arrow_c_stream__(self, requested_schema=None):
            return 3

    class Broken:
        def __arrow_c_stream__(self, requested_schema=None):
            raise RuntimeError("the query failed")

    with pytest.raises(FormatError, match="Arrow cannot import the data of this NoStream"):
        kmsdata.encrypt_table(NoStream(), "name", key=KEY)
    assert not kmsdata.verify(NoStream()).ok
    with pytest.raises(RuntimeError, match="the query failed"):
        kmsdata.encrypt_table(Broken(), "name", key=KEY)
    used = Producer(batches)
    reader_of(used).read_all()
    with pytest.raises(FormatError, match="released"):
        kmsdata.encrypt_table(used, "name", key=KEY)


def test_the_check_of_a_batch(table):
    assert next_batch(pa.RecordBatchReader.from_batches(table.schema, []), 0) is None
    assert np.isclose(next_batch(stream(table), 0).num_rows, ROWS)
