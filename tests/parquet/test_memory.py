"""Files that take far more memory than they have bytes: it is bounded in every encoding of pages."""

import os
import subprocess
import sys
import textwrap

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kmsdata
from kmsdata.keys.envelope import file_text
from kmsdata.parquet.footer import FileMetaData, ending
from kmsdata.parquet.thrift import BINARY, LIST, STRUCT, encode

KEY = "local://demo"
ROWS = 8_000
VALUE = 128 << 10
BOUND = 420 << 20  # bytes, of which Python and the libraries take 170 MB; expanded, the column takes 1 GB

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def bomb(path, encoding):
    """Write one long cell, repeated; a hostile writer can do so, with a genuine header."""
    cells = kmsdata.encrypt_table(pa.table({"x": ["y" * VALUE]}), deterministic="x", key=KEY)
    cell = cells["x"].chunk(0).storage[0].as_py()
    long = pa.array([cell], pa.large_binary())
    field = cells.schema.field("x")
    small = pa.DictionaryArray.from_arrays(pa.array([0] * ROWS, pa.int32()), long.cast(pa.binary()))
    options = {"compression": "zstd", "write_statistics": False, "store_schema": False}
    if encoding == "dictionary":
        pq.write_table(pa.table({"x": small}), path, **options)
    else:
        writer = pq.ParquetWriter(
            path,
            pa.schema([("x", pa.binary())]),
            use_dictionary=False,
            column_encoding={"x": "DELTA_BYTE_ARRAY"},
            data_page_size=1 << 40,
            **options,
        )
        with writer:
            writer.write_table(pa.table({"x": pa.array([cell] * (ROWS // 2), pa.binary())}))
    _with_header(path, {"x": field.type.dtype.header})


def _with_header(path, headers):
    """Add the header to the footer, without touching the pages."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[-8:-4], "little")
    footer = FileMetaData.parse(raw[-8 - length : -8], len(raw))
    entry = file_text(headers).encode()
    footer.fields[5] = LIST, (STRUCT, [{1: (BINARY, b"kmsdata"), 2: (BINARY, entry)}])
    path.write_bytes(raw[: -8 - length] + ending(encode(footer.fields)))


CHILD = """
import sys, kmsdata
act, path, out = sys.argv[1:]
try:
    if act == "verify":
        assert kmsdata.verify(path).ok, kmsdata.verify(path)
    elif act == "decrypt":
        kmsdata.decrypt_parquet(path, out)
    else:
        kmsdata.encrypt_parquet(path, out, "x", key="local://demo")
except kmsdata.KmsDataError as error:
    print(error)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def peak(act, path, out, seconds):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD), act, str(path), str(out)],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) << 10


@pytest.mark.parametrize(("encoding", "act"), [("dictionary", "verify"), ("prefixes", "verify")])
def test_cells(tmp_path, encoding, act):
    bomb(tmp_path / "x.parquet", encoding)
    assert (tmp_path / "x.parquet").stat().st_size < 1 << 20
    assert peak(act, tmp_path / "x.parquet", tmp_path / "out.parquet", 100) < BOUND


@pytest.mark.slow
@pytest.mark.parametrize("act", ["encrypt", "decrypt"])
def test_values(tmp_path, act):
    if act == "encrypt":
        values = pa.DictionaryArray.from_arrays(pa.array([0] * ROWS, pa.int32()), pa.array(["y" * VALUE]))
        pq.write_table(pa.table({"x": values}), tmp_path / "x.parquet", store_schema=False)
    else:
        bomb(tmp_path / "x.parquet", "dictionary")
    # A chunk of the result is written in parts of 64 MB, each with a copy for Arrow's writer.
    assert peak(act, tmp_path / "x.parquet", tmp_path / "out.parquet", 100) < 2 * BOUND


def test_a_page_that_expands_beyond_measure_is_refused(tmp_path):
    table = pa.table({"x": pa.array([b"\0" * (100 << 20)])})
    pq.write_table(table, tmp_path / "x.parquet", compression="zstd", use_dictionary=False)
    with pytest.raises(kmsdata.FormatError, match=r"column 'x' cannot be read: a page of .* uncompressed"):
        kmsdata.encrypt_parquet(tmp_path / "x.parquet", tmp_path / "y.parquet", "x", key=KEY)
