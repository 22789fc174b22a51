"""Write files atomically: a file is replaced completely or not at all."""

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
except ImportError:  # on Windows, where `sweep` removes nothing
    fcntl = None  # type: ignore[assignment]

__all__ = ["claim", "naming", "sweep", "whole_file"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def naming(target: Path) -> Iterator[None]:
    """Add the file's name to a disk-full error: errors of writing to a handle have none."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL and error.filename is None:
            error.filename = str(target)
        raise


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str], *, mode: int | None = None) -> Iterator[BinaryIO]:
    """Open a file that replaces ``path`` when the block ends, and is deleted if the block raises.

    The file is written next to the target under a temporary name, synced to disk, then renamed. A POSIX
    rename is atomic: at any time, even after a crash, a reader of ``path`` sees the old file or the new one.

    Args:
        path: the target; ``~`` and a symbolic link are followed.
        mode: permissions, set at creation; None: those of the file it replaces, otherwise the umask's.

    Raises:
        OSError: as for any file; or ``path`` is not a regular file (device, folder) and is left unchanged.

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
        raise OSError(errno.EEXIST, "cannot write here: it is a folder or device, not a file", str(target))
    # Its permissions are never wider than those of the replaced file, not even while it is being written.
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
    if os.name == "posix":  # a rename survives a crash only after its folder was synced
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _beside(target: Path, mode: int, made: list[Path]) -> int:
    """Create a temporary file in the target's folder and return its handle.

    Its path is in ``made`` before the file exists, because Ctrl-C may come between any two steps.
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
        except OSError as error:  # name the target: the caller does not know the temporary file
            made.clear()
            raise OSError(error.errno, error.strerror, str(target)) from None
    raise OSError(errno.EEXIST, "no unused name for a temporary file", str(target))


def claim(handle: int) -> bool:
    """Mark a temporary file or folder as in use while its handle is open.

    Returns:
        Whether it still exists: another process may just have removed it.
    """
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks, where `sweep` removes nothing
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return os.fstat(handle).st_nlink > 0


def sweep(target: str | os.PathLike[str], *, beside: bool = False) -> None:
    """Remove temporary files that killed processes left behind, but none that a running process uses.

    Args:
        target: a folder.
        beside: also look in the parent folder.
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
