"""Files stay readable forever, by kmsdata and by a reader that is based on SPEC.md only."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import kmsdata
from kmsdata import codec
from kmsdata.parquet.headers import read_headers

V1 = Path(__file__).parents[1] / "vectors" / "v1"
FILES = sorted(path.stem for path in V1.glob("*.parquet"))
READER = Path(__file__).parents[1] / "reader.py"
FAILURES = {
    "format": kmsdata.FormatError,
    "wrong key": (kmsdata.WrongKeyError, kmsdata.KeyAccessError),  # not unwrapped, or to another key
    "tampered": kmsdata.TamperedError,
}


@pytest.fixture(scope="module")
def read():
    """Return the output of reader.py for every file."""
    command = [sys.executable, READER, V1 / "keystore.json", *(V1 / f"{name}.parquet" for name in FILES)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(zip(FILES, map(json.loads, done.stdout.splitlines()), strict=True))


def about(name):
    return json.loads((V1 / f"{name}.json").read_text())


def test_there_are_vectors_of_every_outcome():
    assert {about(name)["expect"] for name in FILES} == {"success", "format", "wrong key", "tampered"}
    assert len(FILES) >= 20
    assert all(about(name)["made_by"] for name in FILES)


@pytest.mark.parametrize("name", FILES)
def test_the_independent_reader(name, read):
    assert read[name]["outcome"] == about(name)["expect"]
    assert read[name].get("cells") == about(name).get("cells")


@pytest.mark.parametrize("name", FILES)
def test_kmsdata(name, keystore):
    keystore.parent.mkdir(mode=0o700)
    shutil.copyfile(V1 / "keystore.json", keystore)
    keystore.chmod(0o600)
    path, wanted = V1 / f"{name}.parquet", about(name)
    if wanted["expect"] != "success":
        with pytest.raises(FAILURES[wanted["expect"]]) as caught:
            kmsdata.read_parquet(path, decrypt=True)
        assert "text" in str(caught.value) or "local://vectors" in str(caught.value)
        return
    frame = kmsdata.read_parquet(path, decrypt=True)
    for column, header in read_headers(path).items():
        series = frame[column]
        described = codec.describe(series, column=column, deterministic=header.columns[0].kind is not None)
        cells = codec.pack(described, series, column=column).rows()
        assert [None if cell is None else cell.hex() for cell in cells] == wanted["cells"][column]
    table = pd.read_parquet(path)
    assert len(table) == len(frame)


def test_the_reader_is_independent_and_short():
    source = READER.read_text()
    assert len(source.splitlines()) <= 130
    names = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert names - sys.stdlib_module_names == {"cryptography", "pyarrow"}
