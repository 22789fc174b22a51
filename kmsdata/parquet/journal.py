"""A new footer appended behind the old one, in place, for files too large to be copied.

Meanwhile a journal stands beside the file::

    people.parquet                     PAR1 | pages | old footer | PAR1 | new footer | PAR1
    .people.parquet.kmsdata-journal    how long the file was, and digests of both footers

Readers look at the end of a file, and so see the new footer as soon as it is whole. While it is half written
no reader opens the file; after a crash `recover` cuts off what was torn. The old footer stays in the file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kmsdata.atomic_files import naming, whole_file
from kmsdata.errors import FormatError
from kmsdata.parquet.footer import Footer, ending, read_footer

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two from editing one file there
    fcntl = None  # type: ignore[assignment]

__all__ = ["append", "drop_checksum", "recover", "unchanged", "what_mends"]

_PIECE = 8 << 20  # bytes read at a time


def _journal(path: Path) -> Path:
    return path.with_name(f".{path.name}.kmsdata-journal")


def what_mends(path: str | os.PathLike[str]) -> str:
    """What to do about a file that no reader opens, as the end of a sentence: empty where no journal says."""
    there = _journal(Path(os.path.realpath(path))).exists()
    return ": a rewrap in place is at work in it, or was stopped: kmsdata.rewrap mends it" if there else ""


def append(path: Path, before: os.stat_result, footer: Footer, data: bytes) -> None:
    """Append a footer to a file.

    Args:
        path: the file.
        before: what it was when its footer was read.
        footer: that footer.
        data: the new FileMetaData.

    Raises:
        OSError: it cannot be written, it has changed since it was opened, or another process is at it; it is
            then as it was.
    """
    path = Path(os.path.realpath(path))
    tail, journal = ending(data), _journal(path)
    note = {
        "version": 1,
        "size": before.st_size,
        "footer": hashlib.sha256(ending(footer.data)).hexdigest(),
        "footer_size": len(ending(footer.data)),
        "appended": hashlib.sha256(tail).hexdigest(),
        "appended_size": len(tail),
    }
    with path.open("r+b", buffering=0) as file, _locked(file, path):
        unchanged(path, before)
        drop_checksum(path)
        with whole_file(journal) as out:
            out.write(json.dumps(note).encode())
        try:
            file.seek(before.st_size)
            with naming(path):
                _write_all(file, tail)
                os.fsync(file.fileno())
        except BaseException:
            file.truncate(before.st_size)
            os.fsync(file.fileno())
            _remove(journal)
            raise
        _remove(journal)


def _write_all(file: io.FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _remove(journal: Path) -> None:
    journal.unlink()
    if os.name == "posix":
        folder = os.open(journal.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def _locked(file: io.FileIO, path: Path) -> Iterator[None]:
    """Nobody else edits this file in place meanwhile, or takes what is being written for torn."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(errno.EBUSY, "another rewrap is at work in this file", str(path)) from None
    yield


def recover(path: Path) -> None:
    """Bring a file whose footer was half written back to what it was, or accept it where it is whole.

    Raises:
        FormatError: the file is broken, and its journal is not of that state.
        OSError: it cannot be written, or another process is at it.
    """
    path = Path(os.path.realpath(path))
    journal = _journal(path)
    if not journal.exists() or not path.exists():
        return
    with path.open("r+b", buffering=0) as file, _locked(file, path):
        if not journal.exists():  # whoever held the lock is done
            return
        note = _note(journal)
        now, was = os.fstat(file.fileno()).st_size, note["size"]
        appended = now - was
        ours = (
            0 <= appended <= note["appended_size"]
            and _digest(file, was - note["footer_size"], note["footer_size"]) == note["footer"]
        )
        if not ours:
            _refuse_unless_whole(
                file, now, path
            )  # it was replaced since then: the journal is of another file
        elif appended != note["appended_size"] or _digest(file, was, appended) != note["appended"]:
            file.truncate(was)
        os.fsync(file.fileno())
        _remove(journal)


def _refuse_unless_whole(file: io.FileIO, size: int, path: Path) -> None:
    try:
        read_footer(file, size, str(path))
    except FormatError as error:
        raise FormatError(
            f"{error}. Its journal {_journal(path).name} is of an earlier state, and cannot mend it: restore "
            "the file, and remove the journal",
            path=str(path),
        ) from None


def _note(journal: Path) -> dict[str, Any]:
    sizes, digests = ("size", "footer_size", "appended_size"), ("footer", "appended")
    try:
        note = json.loads(journal.read_bytes())
        good = note["version"] == 1 and all(isinstance(note[name], int) and note[name] > 0 for name in sizes)
        good = good and all(isinstance(note[name], str) for name in digests)
        good = good and note["footer_size"] <= note["size"]
    except (ValueError, KeyError, TypeError):
        good = False
    if not good:
        raise FormatError(f"{journal} is not a journal of kmsdata: it was changed", path=str(journal))
    return note


def _digest(file: io.FileIO, start: int, count: int) -> str:
    file.seek(start)
    digest = hashlib.sha256()
    while count and (piece := file.read(min(_PIECE, count))):
        digest.update(piece)
        count -= len(piece)
    return digest.hexdigest()


def unchanged(path: Path, before: os.stat_result) -> None:
    """OSError where the file is not the one that was opened, or has changed since then."""
    now = path.stat()
    if (now.st_ino, now.st_size, now.st_mtime_ns) != (before.st_ino, before.st_size, before.st_mtime_ns):
        raise OSError(errno.EBUSY, "somebody changed the file while it was rewrapped: try again", str(path))


def drop_checksum(path: Path) -> None:
    """Remove the checksum that Hadoop keeps beside a local file before it is wrong; none is no error."""
    real = Path(os.path.realpath(path))
    real.with_name(f".{real.name}.crc").unlink(missing_ok=True)
