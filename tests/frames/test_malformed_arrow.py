"""Arrow data with a wrong offset, size or index is an error, and never ends the process."""

import functools
import pickle
import struct
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import kmsdata
from kmsdata import EncryptedArray, FormatError

KEY = "local://demo"
ROWS = 8
VIEWS = int(pa.__version__.split(".")[0]) >= 20  # pyarrow 17 makes no views of buffers


@pytest.fixture
def spoilt():
    """Make something of a valid array, then spoil its memory: pyarrow checks a little when it makes it."""

    def spoil(fault, make, data=bytes(320)):
        array, memory, position, value = malformed(data)[fault]
        made = make(array)
        memory[position] = value
        return made

    return spoil


def malformed(data):
    """Return 8 rows of 40 bytes each, and how to spoil them: memory, a position, and the value there."""
    data = pa.py_buffer(data)

    def binary(row, offset, kind="binary", width=np.int32):
        raw = np.arange(ROWS + 1, dtype=width) * 40
        array = pa.Array.from_buffers(getattr(pa, kind)(), ROWS, [None, pa.py_buffer(raw), data])
        return array, raw, row, offset

    def dictionary(index):
        raw = np.zeros(ROWS, np.int32)
        array = pa.DictionaryArray.from_arrays(pa.array(raw), pa.array([data.to_pybytes()[:40]]))
        return array, raw, -1, index

    def view(offset):
        views = pa.array([data.to_pybytes()[:40]] * ROWS, pa.binary_view()).buffers()[1]
        raw = np.frombuffer(views, np.int32).copy()
        array = pa.Array.from_buffers(pa.binary_view(), ROWS, [None, pa.py_buffer(raw), data])
        return array, raw, 4 * ROWS - 1, offset

    faults = {
        "last offset out of range": binary(ROWS, 1 << 30),
        "offset out of range": binary(3, 1 << 30),
        "negative offset": binary(2, -(1 << 30)),
        "decreasing offset": binary(4, 20),
        "large offset": binary(ROWS, 1 << 50, "large_binary", np.int64),
        "index out of range": dictionary(1 << 28),
        "negative index": dictionary(-(1 << 28)),
    }
    if VIEWS:
        faults["view out of range"] = view(1 << 30)
    return faults


def shortened(path, lengths):
    """Change the lengths of buffers in the metadata of an IPC file: from, to."""
    raw = path.read_bytes()
    for before, after in lengths:
        # A buffer is two int64: where it is in the body, and its length. This is the last one in the file.
        at = raw.rindex(struct.pack("<q", before), 0, raw.index(b"\x01aaaa"))
        raw = raw[:at] + struct.pack("<q", after) + raw[at + 8 :]
    path.write_bytes(raw)


SIZES = {
    "too little data": [(320, 8)],
    "no data": [(320, 0)],
    "too few offsets": [(36, 8)],
    "too short a bitmap": [(1, 0)],
}
NAMES = list(malformed(bytes(320)))


@pytest.fixture
def dtype():
    frame = pd.DataFrame({"c": ["x" * 7] * ROWS})
    return frame.kms.encrypt("c", key=KEY)["c"].dtype


CODE = """
import os, sys
import pyarrow as pa, pandas as pd, kmsdata
from kmsdata import EncryptedArray, EncryptedDtype, FormatError
table = pa.ipc.open_stream(pa.memory_map(sys.argv[1])).read_all()
typed = isinstance(table.schema.field("c").type, kmsdata.EncryptedType)
original = kmsdata.read_parquet(sys.argv[2])
uses = {
    "decrypt": lambda: kmsdata.decrypt_table(table),
    "decrypt c": lambda: kmsdata.decrypt_table(table, "c"),
    "verify": lambda: kmsdata.verify(table).failures,
    "inspect": lambda: kmsdata.inspect(table),
    "attach": lambda: kmsdata.attach(table, original),
    "attach named": lambda: kmsdata.attach(table, original, "c"),
    "attach like": lambda: kmsdata.attach(original, table),
    "array": lambda: EncryptedArray(table.column("c"), original["c"].dtype),
    "encrypt": lambda: kmsdata.encrypt_table(table, "c", key="local://demo"),
    "data key": lambda: kmsdata.data_key(table),
}
if typed:
    uses["to_pandas"] = lambda: table.to_pandas()
for name, use in uses.items():
    try:
        found = use()
    except (kmsdata.KmsDataError, ValueError) as error:
        print(name, "|", type(error).__name__, "|", error)
    else:
        print(name, "|", "passed", "|", found if name == "verify" else "")
sys.stdout.flush()
os._exit(0)  # pyarrow now and then aborts while Python exits ("terminate called without an active exception")
"""


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("fault", [*NAMES, *SIZES])
def test_ipc_files(fault, typed, tmp_path, spoilt):
    frame = pd.DataFrame({"c": ["x" * 7] * ROWS}).kms.encrypt("c", key=KEY)
    frame.kms.to_parquet(tmp_path / "original.parquet")
    cells = [b"\x01aaaa" + cell[5:] for cell in frame["c"].array.storage.to_pylist()]
    assert len(b"".join(cells)) == ROWS * 40
    if fault in SIZES:
        array = pa.array([*cells[:-1], None if "bitmap" in fault else cells[-1]], pa.binary())
    else:
        array = malformed(b"".join(cells))[fault][0]
    entries = {"ARROW:extension:name": "kmsdata.encrypted", "ARROW:extension:metadata": frame["c"].dtype.text}
    schema = pa.schema([pa.field("c", array.type, metadata=entries if typed else None)])
    path = tmp_path / "x.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        if fault in SIZES:
            writer.write_batch(pa.RecordBatch.from_arrays([array], schema=schema))
        else:
            batch = functools.partial(pa.RecordBatch.from_arrays, schema=schema)
            writer.write_batch(spoilt(fault, lambda array: batch([array]), b"".join(cells)))
    shortened(path, SIZES.get(fault, []))
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(path), str(tmp_path / "original.parquet")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    said = {line.split(" | ")[0]: line.split(" | ")[1:] for line in done.stdout.splitlines()}
    if "bitmap" in fault:
        return  # Arrow takes an empty bitmap for none: then the null is a cell without bytes
    for name in ("decrypt c", "verify", "inspect", "array"):
        assert "malformed Arrow data" in said[name][-1], (name, said[name])
        if name != "array":
            assert "'c'" in said[name][-1], (name, said[name])
    assert not any(
        outcome == "passed" for name, (outcome, *_) in said.items() if name in ("encrypt", "decrypt c")
    )


@pytest.mark.parametrize("fault", NAMES)
def test_arrays_and_pickles(fault, dtype, spoilt):
    array = spoilt(fault, lambda array: array)
    with pytest.raises(FormatError, match="malformed Arrow data"):
        EncryptedArray(array, dtype)
    with pytest.raises(FormatError, match="malformed Arrow data"):
        pickle.loads(pickle.dumps(Forged(EncryptedArray, (array, dtype))))  # noqa: S301


class Forged:
    """Pickles as a call with these arguments."""

    def __init__(self, call, arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("fault", NAMES)
def test_plaintext(fault, spoilt):
    table = spoilt(fault, lambda array: pa.table({"c": array}))
    with pytest.raises(FormatError, match="column 'c': malformed Arrow data"):
        kmsdata.encrypt_table(table, "c", key=KEY)


def test_text_that_is_not_utf_8(dtype):
    text = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.array([0, 2, 4], np.int32)), pa.py_buffer(b"ok\xff\xfe")]
    )
    with pytest.raises(FormatError, match="column 'c': malformed Arrow data: text that is not UTF-8"):
        kmsdata.encrypt_table(pa.table({"c": text}), "c", key=KEY)
    frame = pd.DataFrame({"c": pd.Series(text, dtype=pd.ArrowDtype(pa.string()))})
    with pytest.raises(FormatError, match="column 'c': malformed Arrow data: text that is not UTF-8"):
        frame.kms.encrypt("c", key=KEY)
    nested = pa.ListArray.from_arrays(pa.array([0, 2]), text)
    with pytest.raises(FormatError, match="not UTF-8"):
        kmsdata.encrypt_table(pa.table({"c": nested}), "c", key=KEY)
    # A plain column is not checked: what is in it is not ours.
    sealed = kmsdata.encrypt_table(pa.table({"c": ["x", "y"], "t": text}), "c", key=KEY)
    assert kmsdata.decrypt_table(sealed).column("c").to_pylist() == ["x", "y"]
    assert kmsdata.verify(sealed).ok


def test_own_results_are_not_validated_again(dtype, monkeypatch):
    from kmsdata.frames import dtype as module

    array = pd.DataFrame({"c": ["x", None, "y"]}).kms.encrypt("c", key=KEY)["c"]
    monkeypatch.setattr(module, "validated", lambda _: pytest.fail("validated again"))
    array.iloc[1:].take([0]).copy()
    array[[True, False, True]]
    pd.concat([array, array]).take([0, 5])


def test_names_that_are_not_utf_8():
    batch = pa.table({"cc": [1]}).to_batches()[0]
    raw = pa.BufferOutputStream()
    with pa.ipc.new_stream(raw, batch.schema) as writer:
        writer.write_batch(batch)
    table = pa.ipc.open_stream(raw.getvalue().to_pybytes().replace(b"cc", b"\xff\xfe")).read_all()
    for use in (kmsdata.inspect, kmsdata.decrypt_table):
        with pytest.raises(FormatError, match="not UTF-8"):
            use(table)
    assert not kmsdata.verify(table).ok


def test_astype_validates_what_came_from_elsewhere():
    """With one wrong offset, reading the values would end the process."""
    offsets = np.array([0, 1 << 40, 3], "i8")
    cells = pa.Array.from_buffers(pa.large_binary(), 2, [None, pa.py_buffer(offsets), pa.py_buffer(b"abc")])
    values = pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([cells])))
    enc = pd.DataFrame({"x": ["a", "b"]}).kms.encrypt("x", key="local://demo")
    with pytest.raises(FormatError, match="malformed"):
        values.astype(enc["x"].dtype)
