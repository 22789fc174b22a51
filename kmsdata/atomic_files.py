"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows, where nothing is swept
    fcntl = None  # type: ignore[assignment]

__all__ = ["claim", "naming", "sweep", "whole_file"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def naming(target: Path) -> Iterator[None]:
    """Where the disk is full, the error says for which file: writing to a handle names none."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL and error.filename is None:
            error.filename = str(target)
        raise


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str], *, mode: int | None = None) -> Iterator[BinaryIO]:
    """A file to write to, which replaces ``path`` when the block ends, and vanishes when it raises.

    Written beside the target under a temporary name, synced to disk, then renamed (POSIX rename is
    atomic): whoever opens ``path``, at any time, after any crash, sees the old file or the new one.

    Args:
        path: the target; ``~`` and a symbolic link are followed.
        mode: permissions from the file's creation on; else those of the file it replaces, else the umask's.

    Raises:
        OSError: as for any file, or what stands there is none (a device, a folder); it is then as it was.

    Example:
        >>> import tempfile, pathlib
        >>> target = pathlib.Path(tempfile.mkdtemp()) / "file"
        >>> with whole_file(target) as file:
        ...     _ = file.write(b"all of it")
        >>> target.read_bytes()
        b'all of it'
    """
    target = Path(os.path.realpath(Path(path).expanduser()))
    before = target.stat() if target.exists() else None
    if before is not None and not stat.S_ISREG(before.st_mode):
        raise OSError(errno.EEXIST, "there is something at this path that is not a file", str(target))
    # Never wider than what it replaces, not even while it is written.
    first = mode if mode is not None else 0o666 if before is None else 0o600
    made: list[Path] = []
    try:
        with naming(target), os.fdopen(_beside(target, first, made), "wb") as file:
            (temporary,) = made
            yield file
            file.flush()
            if mode is None and before is not None:
                temporary.chmod(stat.S_IMODE(before.st_mode))
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        for temporary in made:
            temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself is on disk once its folder is
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _beside(target: Path, mode: int, made: list[Path]) -> int:
    """The handle of a new file in the target's folder.

    Its path is in ``made`` before it is there: Ctrl-C may come between any two steps.
    """
    for number in itertools.count():
        temporary = target.with_name(f".kmsdata-{os.getpid()}-{number}.tmp")
        made[:] = [temporary]
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            if claim(handle):
                return handle
            os.close(handle)
        except FileExistsError:
            made.clear()
            continue
        except OSError as error:  # it is the target that the caller knows
            made.clear()
            raise OSError(error.errno, error.strerror, str(target)) from None
    raise OSError(errno.EEXIST, "no name left for a temporary file", str(target))


def claim(handle: int) -> bool:
    """Mark a temporary file or folder as in use, as long as its handle is open.

    Returns:
        Whether it is there still: another process may just have swept it away.
    """
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a filesystem without locks: nothing is swept there either
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return os.fstat(handle).st_nlink > 0


def sweep(target: str | os.PathLike[str], *, beside: bool = False) -> None:
    """Remove what killed processes have left of their temporary files; of those at work nothing is touched.

    Args:
        target: a folder.
        beside: as well as in it, look in the folder that it is in.
    """
    path = Path(os.path.realpath(Path(target).expanduser()))
    for folder in [path, path.parent] if beside else [path]:
        for left in folder.glob(".kmsdata-*.tmp") if fcntl is not None and folder.is_dir() else []:
            with contextlib.suppress(OSError):
                handle = os.open(left, os.O_RDONLY)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if left.is_dir():
                        shutil.rmtree(left)
                    else:
                        left.unlink()
                finally:
                    os.close(handle)
