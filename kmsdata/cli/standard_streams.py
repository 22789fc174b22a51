"""Read and write ``-``: standard input and output, through a private temporary folder."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kmsdata.cli.errors import Refusal
from kmsdata.cli.options import one_or_list

__all__ = ["STANDARD", "source_file", "target_file"]

STANDARD = "-"
_MAGIC = b"PAR1"


@contextmanager
def source_file(paths: list[str]) -> Iterator[str | list[str]]:
    """Return the path or paths; for ``-``, that of a temporary file with the content of standard input.

    A Parquet file is read from its end, so it must be complete before it is read. What begins like one is
    Parquet, everything else is CSV. Only this user can read the temporary file, which is deleted afterwards.

    Raises:
        Refusal: standard input is a terminal, empty, or one of several sources.
    """
    if STANDARD not in paths:
        yield one_or_list(paths)
        return
    if len(paths) > 1:
        raise Refusal("- is one of several sources", "name files, or - alone", usage=True)
    if sys.stdin is None or sys.stdin.isatty():
        raise Refusal(
            "SOURCE is -, but standard input is a terminal", "such as: cat x.csv | kmsdata ...", usage=True
        )
    with tempfile.TemporaryDirectory(prefix="kmsdata-") as folder:  # mode 0700
        start = sys.stdin.buffer.read(len(_MAGIC))
        if not start:
            raise Refusal("standard input is empty", "did the command before it fail?")
        kind = "parquet" if start == _MAGIC else "csv"
        name = Path(folder) / f"standard-input.{kind}"
        with name.open("wb") as file:
            file.write(start)
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield str(name)


@contextmanager
def target_file(path: str, *, dry_run: bool = False) -> Iterator[str]:
    """Return the path; for ``-``, that of a temporary file that is copied to standard output at the end.

    After an error, nothing is written to standard output.

    Raises:
        Refusal: standard output is a terminal.
    """
    if path != STANDARD:
        yield path
        return
    if sys.stdout.isatty() and not dry_run:
        raise Refusal(
            "TARGET is -, but standard output is a terminal, and Parquet is binary",
            "write to a file or a pipe, such as: ... > out.parquet",
            usage=True,
        )
    with tempfile.TemporaryDirectory(prefix="kmsdata-") as folder:
        name = Path(folder) / "standard-output.parquet"
        yield str(name)
        if not dry_run:
            with name.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
