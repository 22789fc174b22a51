"""Columns whose cells lost their header are found; columns that only resemble cells are not."""

import struct
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kmsdata
from kmsdata import DataKey, FormatError
from kmsdata.frames.arrow_storage import key_ids, looks_like_cells
from kmsdata.keys.envelope import Wrap

KEY = "local://demo"
SECRET = DataKey(bytes(range(32)), [Wrap("local://demo", "never unwrapped here")])
WAY_BACK = r"no kmsdata header, but looks like cells.*attach"


@pytest.fixture
def df():
    return pd.DataFrame(
        {
            "name": ["Ada", "Bo", None, "", "Cy"],
            "age": [36, 41, 7, 8, 9],
            "city": ["Ulm", "Ulm", "Bonn", None, "Ulm"],
            "plain": list("abcde"),
        }
    )


@pytest.fixture
def enc(df):
    return df.kms.encrypt(["name", "age"], deterministic="city", key=KEY)


def cells_of(enc, column):
    return enc[column].array.storage.to_pylist()


# Which columns look like cells.


def arrow_forms(raw):
    text = [None if cell is None else str(kmsdata.Cell(cell, None)) for cell in raw]
    return {
        "binary": pa.array(raw, pa.binary()),
        "large binary": pa.array(raw, pa.large_binary()),
        "view": pa.array(raw, pa.binary_view()),
        "dictionary": pa.array(raw, pa.binary()).dictionary_encode(),
        "text": pa.array(text, pa.string()),
        "large text": pa.array(text, pa.large_string()),
        "text dictionary": pa.array(text).dictionary_encode(),
        "slice": pa.array([b"x", *raw, b"y"], pa.binary()).slice(1, len(raw)),
    }


@pytest.mark.parametrize("form", [*arrow_forms([]), "fixed size"])
@pytest.mark.parametrize("column", ["name", "age", "city"])
def test_cells_look_like_cells_in_every_form(form, column, df, enc):
    raw = cells_of(enc, column)
    if form == "fixed size":
        if column != "age":
            raw = [cell[:21] for cell in raw if cell is not None]
        array = pa.array(raw, pa.binary(len(raw[0])))
    else:
        array = arrow_forms(raw)[form]
    present = sum(cell is not None for cell in raw)
    assert looks_like_cells([array]) == present
    assert looks_like_cells([pa.nulls(3, array.type), array.slice(0, 1), array.slice(1)]) == present
    other = pa.array(
        ["x"] if "text" in form else [bytes(len(raw[0]))],
        array.type.value_type if "dictionary" in form else array.type,
    )
    other = other.dictionary_encode() if "dictionary" in form else other
    assert looks_like_cells([array, other]) == 0
    assert looks_like_cells([other, array]) == 0


def test_every_cell_of_every_key_has_the_form():
    frame = pd.DataFrame({f"c{i}": [i, None, i] for i in range(2000)}).astype("Int64")
    enc = frame.kms.encrypt(list(frame)[::2], deterministic=list(frame)[1::2], key=SECRET)
    for name in frame:
        assert looks_like_cells([enc[name].array.storage]) == 2, name
        assert len(key_ids(enc[name].array.storage)) == 1


def test_what_is_not_cells():
    random = np.random.default_rng(1)
    cases = {
        "empty": [],
        "nulls": [None, None],
        "short": [b"\x01" + b"a" * 19] * 4,
        "another first byte": [b"\x02" + b"a" * 30] * 4,
        "a zero in the key id": [b"\x01aa\x00a" + b"a" * 30] * 4,
        "many key ids": [b"\x01" + bytes(random.integers(1, 256, 30, np.uint8)) for _ in range(100)],
        "one that is short": [b"\x01" + b"a" * 30] * 9 + [b"\x01aaaa"],
        "one of another kind": [b"\x01" + b"a" * 30] * 9 + [b"a" * 31],
        "enc: and no base64": ["enc:" + "a" * 30 + "!"] * 4,
        "enc: and short": ["enc:AWFhYWE="] * 4,
        "enc: once": ["enc:" + "AWFh" * 10] * 4 + ["text"],
        "text": ["\x01" + "a" * 30] * 4,
        "hex": ["01" * 40] * 4,
    }
    for name, values in cases.items():
        for size in ("large_binary", "binary") if not values or type(values[-1]) is not str else ("string",):
            assert looks_like_cells([pa.array(values, getattr(pa, size)())]) == 0, name
    assert looks_like_cells([pa.array([1, 2])]) == 0
    assert looks_like_cells([]) == 0
    # At most half as many key ids as values.
    two = [b"\x01aaaa" + b"x" * 30, b"\x01bbbb" + b"x" * 30]
    assert looks_like_cells([pa.array(two)]) == 0
    assert looks_like_cells([pa.array(two + two)]) == 4
    assert looks_like_cells([pa.array(two[:1])]) == 1


def wkb(kind, order="<", srid=None):
    """Return geometry as WKB, or EWKB if there is an SRID."""
    points = [(11.5, 48.1), (2.0, 3.0), (0.0, -1.25), (11.5, 48.1)]
    code = {"point": 1, "line": 2, "polygon": 3}[kind] | (0x20000000 if srid else 0)
    out = bytes([1 if order == "<" else 0]) + struct.pack(f"{order}I", code)
    out += struct.pack(f"{order}I", srid) if srid else b""
    coordinates = [number for point in points for number in point]
    if kind == "point":
        return out + struct.pack(f"{order}2d", *points[0])
    rings = struct.pack(f"{order}I", 1) if kind == "polygon" else b""
    return out + rings + struct.pack(f"{order}I", len(points)) + struct.pack(f"{order}8d", *coordinates)


@pytest.mark.parametrize("kind", ["point", "line", "polygon"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("srid", [None, 4326, 0x01010101])
def test_geometry_is_not_cells(kind, order, srid, enc):
    one = wkb(kind, order, srid)
    if (kind, order, srid) == ("point", "<", None):
        assert len(one) == 21
        assert one.hex().startswith("0101000000")
    assert looks_like_cells([pa.array([one] * 10)]) == 0
    frame = enc.assign(geometry=[one] * 5)
    assert frame.kms.decrypt()["geometry"].tolist() == [one] * 5
    assert kmsdata.verify(frame).ok


def test_a_long_dictionary_is_not_expanded():
    cell = b"\x01aaaa" + bytes(1 << 20)
    array = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1 << 20, np.int32)), pa.array([cell]))
    before = pa.total_allocated_bytes()
    assert looks_like_cells([array]) == 1 << 20
    assert pa.default_memory_pool().max_memory() < 200 << 20 or pa.total_allocated_bytes() == before


# Where it is said.


def pandas_forms(raw):
    text = [None if cell is None else str(kmsdata.Cell(cell, None)) for cell in raw]
    views = [None if cell is None else memoryview(cell) for cell in raw]
    return {
        "bytes": pd.Series(raw, dtype=object),
        "bytearray": pd.Series([None if cell is None else bytearray(cell) for cell in raw], dtype=object),
        "memoryview": pd.Series(views, dtype=object),
        "text objects": pd.Series(text, dtype=object),
        "string": pd.Series(text, dtype="string"),
        "str": pd.Series(text),
        "arrow binary": pd.Series(raw, dtype=pd.ArrowDtype(pa.binary())),
        "arrow text": pd.Series(text, dtype=pd.ArrowDtype(pa.large_string())),
        "category": pd.Series(raw, dtype=object).astype("category"),
        "category of text": pd.Series(text).astype("category"),
    }


@pytest.mark.parametrize("form", pandas_forms([]))
@pytest.mark.parametrize("column", ["name", "age", "city"])
def test_frames_say_it(form, column, enc):
    frame = enc.assign(**{column: pandas_forms(cells_of(enc, column))[form]})
    with_levels = frame if form == "bytearray" else frame.set_index(["plain", column])  # not hashable
    for operation in (
        lambda: frame.kms.decrypt(),
        lambda: frame.kms.decrypt(column),
        lambda: frame[column].kms.decrypt(),
        lambda: frame.kms.inspect(),
        lambda: frame.set_index(column).kms.decrypt(),
        lambda: with_levels.kms.decrypt(),
    ):
        with pytest.raises(FormatError, match=WAY_BACK) as caught:
            operation()
        assert caught.value.column == column
    found = kmsdata.verify(frame)
    assert [failure.column for failure in found.failures] == [column]
    assert not found.ok
    assert "attach" in found.failures[0].what
    others = [name for name in ("name", "age", "city") if name != column]
    opened = frame.kms.decrypt(others)  # the way through for ciphertexts of other software
    assert opened[column].equals(frame[column])
    assert kmsdata.verify(frame, encrypted=others).ok


def test_rows_without_header_beside_cells_are_found(enc):
    with pytest.warns(UserWarning, match="concatenated with plain"):
        mixed = pd.concat([enc, enc.assign(name=cells_of(enc, "name"))], ignore_index=True)
    with pytest.raises(FormatError, match=WAY_BACK):
        mixed.kms.decrypt()


def test_no_kms_call_is_made(enc):
    frame = enc.assign(name=cells_of(enc, "name"))
    before = kmsdata.usage().calls
    with pytest.raises(FormatError):
        frame.kms.decrypt()
    assert kmsdata.usage().calls == before


def test_a_single_value_warns(df, enc):
    one = enc.head(1)
    frame = one.assign(name=cells_of(one, "name"))
    for use in (frame.kms.decrypt, frame.kms.inspect, lambda: kmsdata.verify(frame)):
        with pytest.warns(UserWarning, match="'name'.*only value looks like a cell") as said:
            use()
        assert said[0].filename == __file__
    assert len(df) == 5


def test_tables_say_it(enc):
    table = pa.Table.from_pandas(enc)
    for name, array in arrow_forms(cells_of(enc, "name")).items():
        lost = table.set_column(0, "name", array)
        for operation in (
            kmsdata.decrypt_table,
            lambda table: kmsdata.decrypt_table(table, ["name"]),
            kmsdata.inspect,
        ):
            with pytest.raises(FormatError, match=WAY_BACK):
                operation(lost)
        assert [failure.column for failure in kmsdata.verify(lost).failures] == ["name"], name
        assert kmsdata.decrypt_table(lost, ["age"]).column("age").to_pylist() == [36, 41, 7, 8, 9]


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("all_of_them", [False, True])
def test_files_say_it(text, statistics, all_of_them, enc, tmp_path, run):
    lost = ["name", "age", "city"] if all_of_them else ["age"]
    frame = enc.assign(**{name: enc[name].astype("string") if text else cells_of(enc, name) for name in lost})
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pandas(frame), path, write_statistics=statistics)
    name = lost[0]
    for operation in (
        lambda: kmsdata.read_parquet(path, decrypt=True),
        lambda: kmsdata.decrypt_parquet(path, tmp_path / "out.parquet"),
        lambda: kmsdata.decrypt_parquet(path, tmp_path / "out.parquet", [name]),
        lambda: kmsdata.inspect(path),
    ):
        with pytest.raises(FormatError, match=WAY_BACK) as caught:
            operation()
        assert caught.value.column == name
    assert {failure.column for failure in kmsdata.verify(path).failures} >= set(lost)
    assert not (tmp_path / "out.parquet").exists()
    for command, status in ((["inspect", path], 1), (["verify", path], 3)):
        code, out, err = run(*map(str, command))
        assert code == status
        assert "attach" in " ".join((out + err).split())
    code, _, err = run("decrypt", str(path), str(tmp_path / "out.parquet"))
    assert code == 1
    assert "looks like cells" in " ".join(err.split())
    if not all_of_them:
        kmsdata.decrypt_parquet(path, tmp_path / "out.parquet", ["name"])
        assert kmsdata.verify(path, encrypted="name").ok


def test_statistics_rule_out_plain_columns(enc, tmp_path, monkeypatch):
    """Of a column of text whose smallest value is no cell, no page is read."""
    from kmsdata.parquet import lost_headers

    enc.kms.to_parquet(tmp_path / "x.parquet")
    monkeypatch.setattr(lost_headers, "looks_like_cells", lambda _: pytest.fail("a page was read"))
    kmsdata.inspect(tmp_path / "x.parquet")


def test_nothing_is_said_of_plain_data(df, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pd.testing.assert_frame_equal(df.kms.decrypt(), df)
        df.to_parquet(tmp_path / "x.parquet")
        assert kmsdata.inspect(tmp_path / "x.parquet").encrypted == []
        assert kmsdata.inspect(df).encrypted == []
        kmsdata.decrypt_table(pa.Table.from_pandas(df))


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_encodings_that_arrow_cannot_read_as_dictionaries(encoding, enc, tmp_path):
    """Files of other software use them: what is not cells is plain, and cells without a header are found."""
    path = tmp_path / "x.parquet"

    def written(name, values):
        how = {"use_dictionary": False, "column_encoding": {name: encoding}, "write_statistics": False}
        pq.write_table(pa.table({"k": range(5), name: pa.array(values, pa.binary())}), path, **how)

    written("word", [b"a", b"b", None, b"d", b"e"])
    assert kmsdata.inspect(path).encrypted == []
    kmsdata.encrypt_parquet(path, tmp_path / "y.parquet", "k", key=KEY)
    assert kmsdata.verify(tmp_path / "y.parquet").ok
    written("city", cells_of(enc, "city"))
    with pytest.raises(FormatError, match=WAY_BACK):
        kmsdata.read_parquet(path, decrypt=True)
