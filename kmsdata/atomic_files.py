"""Write files atomically: a file is replaced completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kmsdata.errors import CallerFileNotFoundError

try:
    import fcntl
except ImportError:  # on Windows, where `sweep` removes nothing
    fcntl = None  # type: ignore[assignment]

__all__ = ["NO_FOLDER", "TEMPORARY", "claim", "give", "naming", "sweep", "temporary_name", "whole_file"]

TEMPORARY = re.compile(r"\.kmsdata-\d+-[0-9a-f]+(?:-[0-9a-f]+)?\.tmp")  # what `temporary_name` returns

NO_FOLDER = "the folder to write to does not exist"

_STARTED = time.time_ns()
_number = itertools.count()

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
def whole_file(
    path: str | os.PathLike[str],
    *,
    mode: int | None = None,
    new_mode: int = 0o666,
    new_group: int | None = None,
) -> Iterator[BinaryIO]:
    """Open a file that replaces ``path`` when the block ends, and is deleted if the block raises.

    The file is written next to the target under a temporary name, synced to disk, then renamed. A POSIX
    rename is atomic: at any time, even after a crash, a reader of ``path`` sees the old file or the new one.
    The temporary file is readable for its owner only.

    Args:
        path: the target; ``~`` and a symbolic link are followed.
        mode: permissions; None: those of the file it replaces, otherwise ``new_mode`` less the umask.
        new_mode: permissions if it replaces no file.
        new_group: the group to which these are given; None: the one that the system chooses.

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
    made: list[Path] = []
    try:
        if mode is None:
            mode = stat.S_IMODE(before.st_mode) if before is not None else _masked(target, new_mode, made)
        with naming(target), os.fdopen(_beside(target, 0o600, made), "wb") as file:
            (temporary,) = made
            yield file
            file.flush()
            if mode != 0o600:
                give(temporary, mode, new_group if before is None else before.st_gid)
            os.fsync(file.fileno())
            if fcntl is not None:  # while it is locked: after that `sweep` of another process may remove it
                temporary.replace(target)
        if fcntl is None:  # Windows does not rename open files
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


def give(path: Path, mode: int, group: int | None) -> None:
    """Set permissions and group of a file; its members get what others get, if the group cannot be set."""
    if group is not None and path.stat().st_gid != group and hasattr(os, "chown"):
        try:
            os.chown(path, -1, group)
        except OSError:
            mode &= ~0o070 | (mode & 0o007) << 3
    path.chmod(mode)


def _beside(target: Path, mode: int, made: list[Path]) -> int:
    """Create a temporary file in the target's folder and return its handle.

    Its path is in ``made`` before the file exists, because Ctrl-C may come between any two steps.
    """
    while True:
        temporary = target.with_name(temporary_name())
        made[:] = [temporary]
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            made.clear()
            continue
        except OSError as error:  # name the target: the caller does not know the temporary file
            made.clear()
            if error.errno == errno.ENOENT:
                raise CallerFileNotFoundError(errno.ENOENT, NO_FOLDER, str(target.parent)) from None
            raise OSError(error.errno, error.strerror, str(target)) from None
        if claim(handle):
            return handle
        os.close(handle)


def _masked(target: Path, mode: int, made: list[Path]) -> int:
    """Return these permissions less the umask, which only a new file shows without changing it."""
    handle = _beside(target, mode, made)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        made[0].unlink()
        os.close(handle)


def temporary_name() -> str:
    """Return a name for a temporary file or folder that no process has used before.

    A name that was used again could be that of another thread's file, after `sweep` has removed the first.
    """
    return f".kmsdata-{os.getpid()}-{_STARTED:x}-{next(_number):x}.tmp"


def claim(handle: int) -> bool:
    """Mark a temporary file or folder as in use while its handle is open.

    Returns:
        Whether it is in use by this process now: another process may just be removing it.
    """
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # `sweep` has it, and removes it
            return False
        except OSError:  # a file system without locks, where `sweep` removes nothing
            pass
    return os.fstat(handle).st_nlink > 0


def sweep(target: str | os.PathLike[str], *, beside: bool = False, inside: bool = False) -> None:
    """Remove temporary files that killed processes left behind, but none that a running process uses.

    Only files and folders with names that kmsdata makes are removed. Links are not followed.

    Args:
        target: a folder.
        beside: also look in the parent folder.
        inside: also look in the folders in it.
    """
    if fcntl is None:
        return
    path = Path(os.path.realpath(Path(target).expanduser()))
    if beside:
        _sweep_folder(path.parent)
    for folder, folders, _ in os.walk(path):  # does not follow links
        _sweep_folder(Path(folder))
        if not inside:
            return
        folders[:] = [name for name in folders if not TEMPORARY.fullmatch(name)]


def _sweep_folder(folder: Path) -> None:
    try:
        found = [path for path in folder.iterdir() if TEMPORARY.fullmatch(path.name)]
    except OSError:
        return
    for left in found:
        with contextlib.suppress(OSError):
            # A link could lead anywhere, and a pipe would block.
            handle = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mine = os.fstat(handle)
                if not os.path.samestat(mine, left.lstat()):  # its process has renamed it meanwhile
                    continue
                if stat.S_ISDIR(mine.st_mode):
                    shutil.rmtree(left)
                elif stat.S_ISREG(mine.st_mode):
                    left.unlink()
            finally:
                os.close(handle)
