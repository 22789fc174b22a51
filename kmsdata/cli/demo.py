"""The command ``kmsdata demo``: encrypt, use, save, read and decrypt a table, on one screen."""

from __future__ import annotations

import difflib
import importlib.resources
import io
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

import kmsdata
from kmsdata.cli.errors import Refusal
from kmsdata.cli.output import clean

__all__ = ["run"]

_T = TypeVar("_T")
_KEY = "local://demo"
_COLOURS = {"plain": "", "encrypted": "magenta", "deterministic": "cyan"}


@dataclass(frozen=True)
class _Source:
    """A frame, its columns to encrypt, and the file to write."""

    title: str
    frame: pd.DataFrame
    columns: list[str]
    deterministic: list[str]
    target: Path
    csv_size: int | None
    credit: str = ""  # for the list that the package includes; empty for the user's own file

    @property
    def chosen(self) -> list[str]:
        return self.columns + self.deterministic

    def word(self, column: str) -> str:
        """Return how a column is stored: plain, encrypted or deterministic."""
        if column in self.deterministic:
            return "deterministic"
        return "encrypted" if column in self.columns else "plain"


def run(
    path: Path | None = None,
    columns: Sequence[str] = (),
    deterministic: Sequence[str] = (),
    *,
    force: bool = False,
    console: Console | None = None,
) -> Path:
    """Encrypt, use, write, read, decrypt and compare a frame, and show each step.

    Args:
        path: a CSV or Parquet file; None: the passenger list that the package includes.
        columns: names of the columns of that file to encrypt.
        deterministic: names of the columns to encrypt so that equal values have equal cells.
        force: overwrite the encrypted file if it exists.
        console: the console to print to; None: standard output.

    Returns:
        The encrypted file, in the current folder.

    Raises:
        Refusal: the request is not possible.
        KmsDataError, OSError: as the library raises them.
    """
    source = _titanic() if path is None else _own(path, columns, deterministic)
    if source.target.exists() and not force and not (path is None and _is_an_earlier_run(source.target)):
        raise Refusal(f"{source.target} exists already", "--force overwrites it")
    screen = _Screen(console)
    screen.console.print(
        Text.assemble(("kmsdata demo  ", "bold"), source.title, (source.credit, "dim")), "", sep="\n"
    )
    store = kmsdata.LocalKeystore()
    with kmsdata.use(store):
        _key(screen, store)
        encrypted, encrypting = _encrypt(screen, source)
        screen.console.print("", _preview(source, encrypted, screen.console.width), "", sep="\n")
        _use(screen, source, encrypted)
        screen.console.print()
        _write_and_read(screen, source, encrypted, encrypting)
        _tamper(screen, source, encrypted)
    file = source.target.name
    screen.step("File", f"./{file}; pandas without kmsdata, DuckDB and Polars read it as bytes")
    screen.console.print()
    screen.step(
        "Open it", _code("import kmsdata"), _code(f"df = kmsdata.read_parquet({_quoted(file)}, decrypt=True)")
    )
    screen.step(
        "Next",
        _code("kmsdata demo --input FILE --columns a,b", "your CSV or Parquet file"),
        _code("kmsdata keys list", "your keys, and where they are stored"),
    )
    return source.target


# What to encrypt.


def _titanic() -> _Source:
    raw = (importlib.resources.files("kmsdata") / "data" / "titanic.csv").read_bytes()
    frame = pd.read_csv(io.BytesIO(raw))
    return _Source(
        f"the passenger list of the Titanic, {_shape(frame)}",
        frame,
        ["age", "fare", "name", "ticket"],
        ["home.dest"],
        Path("titanic.encrypted.parquet"),
        csv_size=len(raw),
        credit='\nby F. E. Harrell Jr. and T. Cason; OpenML data set 40945, licence "Public"',
    )


def _is_an_earlier_run(target: Path) -> bool:
    try:
        return bool(kmsdata.read_parquet(target).kms.encrypted)
    except (OSError, ValueError):
        return False


def _own(path: Path, columns: Sequence[str], deterministic: Sequence[str]) -> _Source:
    if not path.is_file():
        raise Refusal(f"there is no file {path}", "name a CSV or Parquet file after --input", usage=True)
    with path.open("rb") as file:
        start = file.read(1 << 16)
    parquet = start[:4] == b"PAR1"
    # CSV has no zero bytes; formats such as XLSX do.
    if not parquet and (b"\0" in start or path.suffix == ".parquet"):
        raise Refusal(f"{path.name} is neither CSV nor Parquet", "save it as CSV in UTF-8, or as Parquet")
    frame = kmsdata.read_parquet(path) if parquet else _csv(path, start)
    labels = list(frame.columns)
    if frame.empty:
        raise Refusal(f"{path.name} has no rows", "name a CSV or Parquet file with a header and rows")
    if len(set(labels)) < len(labels) or not all(isinstance(label, str) for label in labels):
        raise Refusal(f"{path.name} has duplicate column names, or names that are not text", "rename them")
    if sealed := frame.kms.encrypted:
        hint = f"to decrypt them: kmsdata.read_parquet({_quoted(str(path))}, decrypt=True)"
        raise Refusal(f"{path.name} has encrypted columns already: {', '.join(sealed)}", hint)
    if not columns and not deterministic:
        hint = "name those to encrypt: --columns a,b"
        raise Refusal(f"no columns named; {path.name} has {', '.join(labels)}", hint, usage=True)
    for name in [*columns, *deterministic]:
        if name not in labels:
            close = difflib.get_close_matches(name, labels, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(labels)}"
            raise Refusal(f"no column {name!r} in {path.name}", hint, usage=True)
    target = Path(f"{path.stem}.encrypted.parquet")
    return _Source(
        clean(f"{path.name}, {_shape(frame)}"),
        frame,
        [name for name in dict.fromkeys(columns) if name not in deterministic],
        list(dict.fromkeys(deterministic)),
        target,
        csv_size=None if parquet else path.stat().st_size,
    )


def _csv(path: Path, start: bytes) -> pd.DataFrame:
    header = start.partition(b"\n")[0].decode("utf-8", "replace")
    try:
        # The separator is the most frequent one in the header line. Excel writes a byte order mark ("-sig").
        # With low_memory pandas infers the dtype of each block of rows, and may mix several in one column.
        return pd.read_csv(path, sep=max(",;\t|", key=header.count), encoding="utf-8-sig", low_memory=False)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except UnicodeDecodeError:
        raise Refusal(f"{path.name} is not text in UTF-8", "save it as CSV in UTF-8, or as Parquet") from None
    except pd.errors.ParserError as error:
        raise Refusal(
            f"{path.name} cannot be read as CSV: {str(error).rpartition('error: ')[2].strip()}"
        ) from None


# The steps.


def _key(screen: _Screen, store: kmsdata.LocalKeystore) -> None:
    place = _shortened(store.path)
    if any(item["key"] == _KEY for item in store.list_keys()):
        screen.step("Key", f"{_KEY} in {place}")
        return
    store.create_key(_KEY.removeprefix("local://"), quiet=True)
    advice = "Back that file up" if store.sealed else "It is stored unencrypted; back that file up"
    advice += ": without it, encrypted data is lost."
    screen.step("Key", f"made {_KEY} in {place}", Text(advice, "yellow"))


def _encrypt(screen: _Screen, source: _Source) -> tuple[pd.DataFrame, float]:
    names, exact = source.columns, source.deterministic
    try:
        encrypted, seconds = _timed(lambda: source.frame.kms.encrypt(names, deterministic=exact, key=_KEY))
    except (ValueError, TypeError) as error:  # of the library: a deterministic float column
        raise Refusal(str(error)) from None
    start = f"enc = df.kms.encrypt({_listed(names)}, " if names else "enc = df.kms.encrypt("
    end = f"deterministic={_listed(exact)}, " if exact else ""
    end += f"key={_quoted(_KEY)})"
    fits = len(start + end) <= screen.width
    cells = int(encrypted[source.chosen].notna().to_numpy().sum())
    screen.step(
        "Encrypt",
        *([_code(start + end)] if fits else [_code(start.rstrip()), _code(" " * 21 + end)]),
        f"{len(source.chosen)} of {len(encrypted.columns)} columns, {cells:,} cells, one data key"
        + ("; deterministic: equal values, equal cells" if exact else ""),
    )
    return encrypted, seconds


def _preview(source: _Source, encrypted: pd.DataFrame, width: int) -> Table:
    """Return the first rows, with as many columns as fit."""
    texts = {str(name): [_shown(value) for value in encrypted[name].head(4)] for name in encrypted}
    wanted = source.columns[:3]
    wanted += source.deterministic[: 4 - len(wanted)]
    wanted += [name for name in texts if source.word(name) == "plain"][:4]
    indent = 9 if width >= 100 else 2
    room, chosen = width - indent, []
    for name in wanted:
        wide = max(map(len, [*texts[name], clean(name, 14), source.word(name)])) + 2
        if wide <= room:
            chosen.append(name)
            room -= wide
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")
    table.add_column(width=indent - 2)
    chosen.sort(key=list(texts).index)
    for name in chosen:
        word, colour = source.word(name), _COLOURS[source.word(name)]
        header = Text.assemble((clean(name, 14), f"bold {colour}"), "\n", (word, colour or "dim"))
        table.add_column(header, style=colour, no_wrap=True)
    for row in range(min(4, len(encrypted))):
        table.add_row("", *(Text(texts[name][row]) for name in chosen))
    return table


def _use(screen: _Screen, source: _Source, encrypted: pd.DataFrame) -> None:
    """Filter and group the encrypted frame."""
    if not source.credit:
        name = source.chosen[0]
        kept = encrypted[encrypted[name].notna()]
        screen.step(
            "Use", _code(f"enc[enc[{_quoted(name)}].notna()]", f"{len(kept):,} of {len(encrypted):,} rows")
        )
    else:
        share = encrypted[encrypted["sex"] == "female"].groupby("pclass")["survived"].mean()
        letter = "#" if screen.console.options.ascii_only else "\N{BOX DRAWINGS HEAVY HORIZONTAL}"
        code = 'enc[enc["sex"] == "female"].groupby("pclass")["survived"].mean()'
        screen.step("Use", _code(code))
        for pclass, part in share.items():
            bar = letter * round(part * 30)
            screen.step("", Text.assemble(f"  class {pclass}  {part:4.0%}  ", (bar, "green")))
    if not source.deterministic:
        screen.step("", "No grouping: equal values have different cells, except in --deterministic columns.")
        return
    name = source.deterministic[0]
    top = encrypted[name].value_counts().head(3)
    values = top.to_frame("rows").kms.decrypt(key=_KEY).index
    screen.step("", _code(f"enc[{_quoted(name)}].value_counts().head(3)", "no key used; right: decrypted"))
    for cell, count, value in zip(top.index, top, values, strict=True):
        proof = clean(str(value), 40)
        screen.step("", Text.assemble("  ", (repr(cell), "cyan"), f"  {count:>6,}  ", (proof, "dim")))


def _write_and_read(screen: _Screen, source: _Source, encrypted: pd.DataFrame, encrypting: float) -> None:
    target, frame = source.target, source.frame
    _, writing = _timed(lambda: encrypted.kms.to_parquet(target))
    sealed, reading = _timed(lambda: kmsdata.read_parquet(target))
    back, decrypting = _timed(lambda: sealed.kms.decrypt(key=_KEY))
    plain = io.BytesIO()
    frame.to_parquet(plain, engine="pyarrow")
    expected = pd.read_parquet(plain)  # what pandas restores from Parquet, for the plain columns
    for name in source.chosen:
        expected[name] = frame[name].array
    try:
        pd.testing.assert_frame_equal(back, expected, check_exact=True)
    except AssertionError:  # its message contains values
        raise Refusal("the decrypted data differs from the original: please report this as a bug") from None
    screen.step("Write", _code(f"enc.kms.to_parquet({_quoted(target.name)})", "wrapped key inside"))
    screen.step(
        "Decrypt", f"equal to the original: {_shape(back)}, every value and dtype (assert_frame_equal)"
    )
    times = {"encrypt": encrypting, "write": writing, "read": reading, "decrypt": decrypting}
    screen.step("Time", ", ".join(f"{name} {_duration(seconds)}" for name, seconds in times.items()))
    sizes = {"plain Parquet": plain.tell(), "encrypted Parquet": target.stat().st_size}
    if source.csv_size is not None:
        sizes = {"CSV": source.csv_size} | sizes
    screen.step("Size", ", ".join(f"{name} {_size(size)}" for name, size in sizes.items()))


def _tamper(screen: _Screen, source: _Source, encrypted: pd.DataFrame) -> None:
    """Flip one bit of one cell in a copy of the file, and try to decrypt it."""
    name = source.chosen[0]
    rows = np.flatnonzero(encrypted[name].notna())
    if not len(rows):
        return
    # Cells are stored in PLAIN encoding without compression, so a cell can be found in the bytes of the file.
    cell = bytes(encrypted[name].iloc[rows[len(rows) // 2]])
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / source.target.name
        # Without checksums of pages, which are against accidents: an attacker would correct them.
        encrypted.kms.to_parquet(copy, write_page_checksum=False)
        data = bytearray(copy.read_bytes())
        data[data.index(cell) + len(cell) - 1] ^= 1
        copy.write_bytes(data)
        try:
            kmsdata.read_parquet(copy).kms.decrypt(key=_KEY)
        except kmsdata.TamperedError as error:
            said = Text.assemble(("TamperedError: ", "red"), clean(str(error)))
        else:
            raise Refusal("a changed bit was not detected: please report this as a bug")
    screen.step("Tamper", f"one bit of {name} is flipped in a copy of the file; decrypting it fails:", said)


# Texts, numbers, lines.


class _Screen:
    """Print steps: a verb on the left, lines of text beside it."""

    def __init__(self, console: Console | None) -> None:
        self.console = console or Console(highlight=False)
        self.console.width = min(self.console.width, 100)
        self.width = self.console.width - 9

    def step(self, verb: str, *lines: str | Text) -> None:
        for line in lines:
            text = Text(clean(line)) if isinstance(line, str) else line
            for part in text.wrap(self.console, self.width):
                part.rstrip()
                self.console.print(Text.assemble((f"{verb:9}", "bold green"), part))
                verb = ""


def _timed(action: Callable[[], _T]) -> tuple[_T, float]:
    start = time.perf_counter()
    out = action()
    return out, time.perf_counter() - start


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.{0 if seconds >= 0.01 else 1}f} ms"


def _size(count: int) -> str:
    if count < 1000:
        return f"{count} bytes"
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.{0 if count >= 1e4 else 1}f} kB"


def _shape(frame: pd.DataFrame) -> str:
    rows, columns = frame.shape
    return f"{rows:,} row{'s' * (rows != 1)}, {columns:,} column{'s' * (columns != 1)}"


def _shown(value: Any) -> str:
    return (
        "<NA>"
        if value is pd.NA
        else clean(repr(value) if isinstance(value, kmsdata.Cell) else str(value), 14)
    )


def _quoted(text: str) -> str:
    return json.dumps(clean(text), ensure_ascii=False)


def _listed(names: list[str]) -> str:
    return f"[{', '.join([*map(_quoted, names[:4]), *['...'] * (len(names) > 4)])}]"


def _code(text: str, note: str = "") -> Text:
    return Text.assemble((clean(text), "bold"), (f"   {note}" if note else "", "dim"))


def _shortened(path: Path) -> str:
    """Return a path with ``~`` for the home folder."""
    try:
        return str(Path("~") / path.relative_to(Path.home()))
    except (ValueError, RuntimeError):
        return str(path)
