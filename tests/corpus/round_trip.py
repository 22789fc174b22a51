"""Take one Parquet file through everything that kmsdata does with files, and compare what comes back.

The file's columns are encrypted, verified, rewrapped, inspected and decrypted; what other software reads must
be the same before and after, and for plain columns also in between.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

import kmsdata
from tests.corpus.readers import READERS, DifferenceError, UnreadableError, same_schema, same_values
from tests.parquet.footers import differences

FINE, REFUSED, FAILED, SKIPPED = "fine", "refused", "FAILED", "-"
FIRST, SECOND = "local://corpus", "local://corpus-2"
LARGE = 50_000_000  # bytes: of larger files only every other column is encrypted, once


@dataclass(frozen=True)
class Step:
    """What happened in one step with one file.

    Attributes:
        name: the step.
        outcome: FINE; REFUSED, by an error that kmsdata documents; FAILED; or SKIPPED.
        detail: why, for a person.
    """

    name: str
    outcome: str
    detail: str = ""


def steps(path: Path, folder: Path) -> Iterator[Step]:
    """Yield each step of one file's round trip; files are written into this folder."""
    try:
        names = pq.read_schema(path).names if not _modular(path) else []
        readable = bool(names) and all(_reads(path, part) for part in [names, *([name] for name in names)])
    except Exception:
        readable, names = False, []
    if not readable:
        yield from _refusals(path, folder, list(dict.fromkeys(names)))
        return
    names = list(dict.fromkeys(names))
    yield from _through(path, folder / "all", names, "")
    if len(names) > 1:
        for number, half in enumerate((names[::2], names[1::2])):
            yield from _through(path, folder / str(number), half, f"half {number + 1}: ")


def _modular(path: Path) -> bool:
    """Whether Parquet Modular Encryption protects the file: some versions of pyarrow abort on it."""
    data = path.read_bytes()
    return data[-4:] == b"PARE" or path.name.endswith(".encrypted")


def _reads(path: Path, names: list[str]) -> bool:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            file.read(names).validate(full=True)
    except Exception:
        return False
    return True


def _attempt(name: str, action: Callable[[], Any], out: list[Any] | None = None) -> Step:
    try:
        result = action()
    except DifferenceError as error:
        return Step(name, FAILED, str(error))
    except UnreadableError as error:
        return Step(name, SKIPPED, str(error))
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"
        return Step(name, REFUSED if _documented(error) else FAILED, detail)
    if out is not None:
        out.append(result)
    return Step(name, FINE)


def _documented(error: Exception) -> bool:
    """Whether this is an error that kmsdata's docstrings name. Arrow's own errors are none of these."""
    if isinstance(error, kmsdata.KmsDataError):
        return True
    return type(error) in (ValueError, KeyError, TypeError, FileNotFoundError, FileExistsError)


def _refusals(path: Path, folder: Path, names: list[str]) -> Iterator[Step]:
    """Try everything on a file that pyarrow cannot read in full: all errors must be documented ones."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / "copy.parquet"
    shutil.copy(path, copy)
    target = folder / "target.parquet"
    yield _attempt(
        "damaged: encrypt", lambda: kmsdata.encrypt_parquet(copy, target, names or ["a"], key=FIRST)
    )
    target.unlink(missing_ok=True)
    yield _attempt("damaged: decrypt", lambda: kmsdata.decrypt_parquet(copy, target))
    yield _attempt("damaged: verify", lambda: kmsdata.verify(copy))
    yield _attempt("damaged: inspect", lambda: repr(kmsdata.inspect(copy)))
    yield _attempt("damaged: rewrap", lambda: kmsdata.rewrap(copy, SECOND))
    yield _attempt("damaged: read", lambda: kmsdata.read_parquet(copy))
    if copy.read_bytes() != path.read_bytes():
        yield Step("damaged: unchanged", FAILED, "a refused file was changed")


def _through(path: Path, folder: Path, names: list[str], prefix: str) -> Iterator[Step]:
    folder.mkdir(parents=True, exist_ok=True)
    encrypted, decrypted = folder / "encrypted.parquet", folder / "decrypted.parquet"
    step = _attempt(
        f"{prefix}encrypt", lambda: kmsdata.encrypt_parquet(path, encrypted, names, key=FIRST, progress=False)
    )
    yield step
    if step.outcome != FINE:
        accepted = []
        for name in names:
            alone = folder / "alone.parquet"
            one = _attempt(
                f"{prefix}encrypt {name!r}",
                lambda name=name, alone=alone: kmsdata.encrypt_parquet(path, alone, [name], key=FIRST),
            )
            alone.unlink(missing_ok=True)
            if one.outcome == FINE:
                accepted.append(name)
            else:
                yield one
        if not accepted or accepted == names:
            return
        names = accepted
        kmsdata.encrypt_parquet(path, encrypted, names, key=FIRST)
    plain = [name for name in pq.read_schema(path).names if name not in names]
    yield _attempt(f"{prefix}verify", lambda: _verify(encrypted))
    yield _attempt(f"{prefix}inspect", lambda: _inspect(encrypted, names))
    for reader in READERS:
        if plain:
            yield _attempt(
                f"{prefix}plain columns, {reader}",
                lambda reader=reader: READERS[reader](path, plain, encrypted),
            )
    yield _attempt(f"{prefix}rewrap", lambda: kmsdata.rewrap(encrypted, SECOND, progress=False))
    yield _attempt(f"{prefix}verify again", lambda: _verify(encrypted))
    step = _attempt(f"{prefix}decrypt", lambda: kmsdata.decrypt_parquet(encrypted, decrypted, progress=False))
    yield step
    if step.outcome != FINE:
        return
    yield _attempt(f"{prefix}values", lambda: _compare(path, decrypted))
    yield _attempt(f"{prefix}footer", lambda: _footer(path, decrypted, names))
    for reader in READERS:
        yield _attempt(
            f"{prefix}all columns, {reader}", lambda reader=reader: READERS[reader](path, None, decrypted)
        )
    yield _attempt(f"{prefix}read_parquet", lambda: _frames(path, encrypted))


def _verify(path: Path) -> None:
    if not kmsdata.verify(path, progress=False).ok:
        raise DifferenceError("verify() reports a fault")


def _inspect(path: Path, names: list[str]) -> None:
    shown = kmsdata.inspect(path).to_dict()
    repr(kmsdata.inspect(path))
    missing = [name for name in names if name not in json.dumps(shown, ensure_ascii=False, default=str)]
    if missing:
        raise DifferenceError(f"inspect() does not show {missing[0]!r}")


def _compare(before: Path, after: Path) -> None:
    one, two = pq.read_table(before), pq.read_table(after)
    same_schema(one.schema, two.schema)
    for name, a, b in zip(one.column_names, one.columns, two.columns, strict=True):
        same_values(a, b, name)


def _footer(before: Path, after: Path, names: list[str]) -> None:
    if found := differences(before, after, names):
        raise DifferenceError("; ".join(found))


def _frames(before: Path, encrypted: Path) -> None:
    try:
        expected = pd.read_parquet(before)
    except Exception as error:
        raise UnreadableError(f"pandas: {type(error).__name__}") from None
    frame = kmsdata.read_parquet(encrypted, decrypt=True)
    for name in expected.columns if frame.columns.equals(expected.columns) else ():
        # kmsdata keeps the digits of large integers beside nulls, which are float64 in pandas.
        if frame.columns.is_unique and str(frame[name].dtype) in ("Int64", "UInt64"):
            exact = pd.read_parquet(before, columns=[name], dtype_backend="numpy_nullable")[name]
            if expected[name].dtype == "float64" and exact.equals(frame[name]):
                expected[name] = exact
    try:
        pd.testing.assert_frame_equal(frame, expected, check_exact=True)
    except AssertionError as error:
        raise DifferenceError(" ".join(str(error).split())) from None
    except (TypeError, ValueError):
        if repr(frame) != repr(expected):
            raise DifferenceError("the frames differ") from None
    pa.default_memory_pool().release_unused()
