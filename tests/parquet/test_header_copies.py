"""Copies of a header in one footer that disagree: verify says so, and nothing is decrypted."""

import pandas as pd
import pyarrow as pa
import pytest

import kmsdata
from kmsdata.keys.envelope import ENTRY
from kmsdata.parquet.footer import FileMetaData, ending
from kmsdata.parquet.thrift import BINARY, LIST, STRUCT, encode, value

KEY = "local://demo"
NEW = "local://new"


@pytest.fixture
def path(tmp_path):
    frame = pd.DataFrame({"x": [1, 2, 3], "y": ["a", "b", None], "z": [1.5, 2.5, 3.5]})
    frame.kms.encrypt(["x", "y"], key=KEY).kms.to_parquet(tmp_path / "x.parquet")
    return tmp_path / "x.parquet"


def entries_of(path):
    raw = path.read_bytes()
    length = int.from_bytes(raw[-8:-4], "little")
    footer = FileMetaData.parse(raw[-8 - length : -8], len(raw))
    pairs = [(value(entry, 1), value(entry, 2)) for entry in value(footer.fields, 5)[1]]
    return raw[: -8 - length], footer.fields, pairs


def with_entries(path, change):
    pages, fields, pairs = entries_of(path)
    fields[5] = LIST, (STRUCT, [{1: (BINARY, key), 2: (BINARY, text)} for key, text in change(pairs)])
    path.write_bytes(pages + ending(encode(fields)))


def other_entry(path, tmp_path):
    """Return the entry of another file, under the same data key, in which x has another type."""
    enc = kmsdata.read_parquet(path)
    frame = pd.DataFrame({"x": [1.0, 2.0, 3.0], "y": ["a", "b", None]})
    frame.kms.encrypt(["x", "y"], key=enc).kms.to_parquet(tmp_path / "other.parquet")
    return dict(entries_of(tmp_path / "other.parquet")[2])[ENTRY]


def twice(pairs, text):
    return [*pairs, (ENTRY, text)]


def first(pairs, text):
    return [(ENTRY, text), *pairs]


def instead(pairs, text):
    return [(key, text if key == ENTRY else old) for key, old in pairs]


@pytest.mark.parametrize("change", [twice, first, instead])
def test_entries_that_disagree(path, tmp_path, change):
    text = other_entry(path, tmp_path)
    with_entries(path, lambda pairs: change(pairs, text))
    assert not kmsdata.verify(path).ok
    for act in (
        lambda: kmsdata.read_parquet(path, decrypt=True),
        lambda: kmsdata.decrypt_parquet(path, tmp_path / "out.parquet"),
        lambda: kmsdata.encrypt_parquet(path, tmp_path / "out.parquet", "z", key=KEY),
        lambda: kmsdata.inspect(path),
        lambda: kmsdata.rewrap(path, NEW),
    ):
        with pytest.raises(kmsdata.FormatError, match=r"x.parquet: .*(differ|disagree)"):
            act()


def test_equal_entries_are_no_contradiction(path, tmp_path):
    with_entries(path, lambda pairs: [*pairs, *(pair for pair in pairs if pair[0] == ENTRY)])
    assert kmsdata.verify(path).ok
    assert kmsdata.read_parquet(path, decrypt=True)["x"].tolist() == [1, 2, 3]


def test_a_second_arrow_schema(path):
    text = pa.schema([("x", pa.int64())]).serialize().to_pybytes()
    with_entries(path, lambda pairs: [*pairs, (b"ARROW:schema", text)])
    assert not kmsdata.verify(path).ok
    with pytest.raises(kmsdata.FormatError, match="different entries 'ARROW:schema'"):
        kmsdata.read_parquet(path)
