"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["whole_file"]


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str], *, mode: int | None = None) -> Iterator[BinaryIO]:
    """A file to write to, which replaces ``path`` when the block ends, and vanishes when it raises.

    Written beside the target under a temporary name, synced to disk, then renamed (POSIX rename is
    atomic): whoever opens ``path``, at any time, after any crash, sees the old file or the new one.

    Args:
        path: the target; a symbolic link is followed.
        mode: permissions from the file's creation on; else those of the file it replaces, else the umask's.

    Raises:
        OSError: as for any file; the target is then as it was.

    Example:
        >>> import tempfile, pathlib
        >>> target = pathlib.Path(tempfile.mkdtemp()) / "file"
        >>> with whole_file(target) as file:
        ...     _ = file.write(b"all of it")
        >>> target.read_bytes()
        b'all of it'
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name[:100]}.{os.getpid()}-{threading.get_ident()}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            if mode is None and target.exists():
                temporary.chmod(target.stat().st_mode & 0o7777)
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself is on disk once its folder is
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
