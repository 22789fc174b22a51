"""The house: imports go down only, and importing kmsdata brings in nothing that was not asked for."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import kmsdata

ROOT = Path(kmsdata.__file__).parent

FLOORS = {
    "errors": 0, "cells": 0, "envelope": 0, "files": 0, "forks": 0,
    "calls": 1, "codec": 1, "ciphers": 1, "footer": 1, "keys": 1, "progress": 1, "storage": 1, "thrift": 1,
    "cache": 2, "chunks": 2, "journal": 2, "places": 2, "providers": 2, "report": 2,
    "column": 3, "csv_blocks": 3, "dtype": 3, "session": 3,
    "copies": 4, "job": 4, "metadata": 4, "table": 4,
    "search": 5, "wraps": 5,
    "parquet": 6,
    "inspection": 7, "migrate": 7, "replacing": 7, "rewrapping": 7, "verification": 7,
    "accessor": 8, "api": 8, "decrypting": 8, "encrypting": 8,
    "stream": 9,
    "cli": 10, "cli_files": 10, "demo": 10, "emulator": 10, "sign_in": 10, "widgets": 10,
}  # fmt: skip
PEERS = {  # the steps on one floor
    "errors": {"envelope"},  # what is malformed is a FormatError
    "metadata": {"table"},  # what a table's says thereafter
    "cli_files": {"cli"},  # some of its commands
    "demo": {"cli", "cli_files"},  # the command that shows it
    "emulator": {"cli"},  # and the command that runs it
    "widgets": {"sign_in"},  # the form that it shows
}

ONLY_IN = {
    "cryptography": {"ciphers", "emulator", "keys", "providers"},
    "tencentcloud": {"providers"},
}


def rooms():
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room != "__init__":
            yield room, path


def imported(path):
    """Every module that a file imports, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError(f"{path.name}: relative import")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_room_has_a_floor():
    assert {room for room, _ in rooms()} == set(FLOORS)


def test_imports_go_down_only():
    wrong = []
    for room, path in rooms():
        for name in imported(path):
            parts = name.split(".")
            if parts[0] != "kmsdata" or parts[1:2] in ([room], []):
                continue
            other = parts[1]
            if other not in FLOORS:
                if room not in ("cli", "cli_files", "demo"):  # the faces use the public names, as a user does
                    wrong.append(f"{room} imports {name}: the front door is for users")
            elif FLOORS[other] >= FLOORS[room] and room not in PEERS.get(other, set()):
                wrong.append(f"{room} (floor {FLOORS[room]}) imports {other} (floor {FLOORS[other]})")
    assert wrong == []


def test_libraries_stay_in_their_rooms():
    wrong = [
        f"{room} imports {name}"
        for room, path in rooms()
        for name in imported(path)
        if room not in ONLY_IN.get(name.split(".")[0], {room})
    ]
    assert wrong == []


def test_randomness_enters_in_one_place():
    source = re.compile(r"urandom|\bimport secrets|\bimport random\b|\buuid[14]\b|numpy\.random|np\.random")
    assert {path.name for _, path in rooms() if source.search(path.read_text())} == {"keys.py"}


def test_import_brings_in_nothing_that_was_not_asked_for():
    code = (
        "import sys, kmsdata; "
        "print([m for m in ('ipywidgets', 'IPython', 'dask', 'pyspark', 'tencentcloud', 'requests', "
        "'typer', 'rich', 'polars', 'duckdb', 'tink') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_assert_guards_input():
    found = [
        f"{path.name}:{node.lineno}"
        for _, path in rooms()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert found == []
