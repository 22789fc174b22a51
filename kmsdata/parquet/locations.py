"""Find files by path, folder, pattern or URL on any filesystem; write files completely or not at all.

Temporary files and folders are called ``.kmsdata-...``: readers of datasets ignore names with a leading dot.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.fs as pafs

from kmsdata.atomic_files import claim, naming, temporary_name, whole_file
from kmsdata.keys.data_key import random_bytes

__all__ = [
    "FilePath",
    "Place",
    "dataset_files",
    "files_at",
    "folders_at",
    "is_sidecar",
    "stamp",
    "whole",
    "whole_folder",
]

_SIDECARS = ("_metadata", "_common_metadata")

FilePath: TypeAlias = "str | os.PathLike[str]"


@dataclass(frozen=True)
class Place:
    """A path on a filesystem.

    Attributes:
        filesystem: a pyarrow filesystem.
        path: the path in it, without a ``/`` at the end.
        folder: whether the caller wrote it with a ``/`` at the end.
    """

    filesystem: Any
    path: str
    folder: bool = False

    @classmethod
    def of(cls, path: FilePath, filesystem: Any = None) -> Place:
        """Return the place of a path or URL; the filesystem may be one of pyarrow or fsspec."""
        text = os.fspath(path)
        folder = text.endswith("/")
        if filesystem is None and "://" in text:
            filesystem, text = _from_url(text)
        elif filesystem is None:
            filesystem, text = pafs.LocalFileSystem(), str(Path(text).expanduser())
        elif not isinstance(filesystem, pafs.FileSystem):
            if not hasattr(filesystem, "_strip_protocol"):
                raise TypeError(
                    f"filesystem= takes a filesystem of pyarrow or fsspec, not {type(filesystem).__name__}"
                )
            text = filesystem._strip_protocol(text)
            filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(filesystem))
        if isinstance(filesystem, pafs.LocalFileSystem):
            text = str(Path(text).absolute())
        return cls(filesystem, text.rstrip("/") or "/", folder)

    @property
    def local(self) -> bool:
        """Whether it is on the local filesystem."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    @property
    def kind(self) -> pafs.FileType:
        """What exists at the path: a file, a folder or nothing."""
        return self.filesystem.get_file_info(self.path).type

    def __truediv__(self, relative: str) -> Place:
        return replace(self, path=f"{self.path.rstrip('/')}/{relative}", folder=False)

    def holds(self, other: Place) -> bool:
        """Tell whether the other place is this one or inside it."""
        if not self.filesystem.equals(other.filesystem):
            return False
        mine, its = self.path, other.path
        if self.local:
            mine, its = os.path.realpath(mine), os.path.realpath(its)
        return mine == its or its.startswith(mine.rstrip("/") + "/")

    def __str__(self) -> str:
        return self.path


def _from_url(url: str) -> tuple[Any, str]:
    """Return the filesystem of a URL and the path in it: one of pyarrow, otherwise one of fsspec."""
    try:
        return pafs.FileSystem.from_uri(url)
    except pa.ArrowInvalid:
        import fsspec  # optional: pandas needs it for such URLs too

        try:
            filesystem, path = fsspec.core.url_to_fs(url)
        except ValueError as error:  # fsspec does not know the protocol
            raise ValueError(
                f"{error}. Install the fsspec package for this protocol, or pass filesystem="
            ) from None
        return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


def files_at(place: Place, *, patterns: bool = True, sidecars: bool = False) -> tuple[dict[str, Place], bool]:
    """List the files of a path: the file itself, those in a folder, or those that match a pattern.

    In folders, names that begin with ``.`` or ``_`` are ignored, as readers of datasets do. So ``_metadata``
    files, which may contain statistics, are not listed.

    Args:
        place: a file, a folder, or a pattern with ``*``, ``?``, ``[...]`` and ``**``.
        patterns: whether it may be a pattern.
        sidecars: list ``_metadata`` and ``_common_metadata`` too.

    Returns:
        The files by their path below the folder, in order; and whether the path is one file.

    Raises:
        FileNotFoundError: there is no file.
    """
    kind = place.kind
    if kind == pafs.FileType.File:
        return {place.path.rpartition("/")[2]: place}, True
    base, pattern = place.path, "**"
    if patterns and kind == pafs.FileType.NotFound and any(letter in place.path for letter in "*?["):
        parts = place.path.split("/")
        first = next(number for number, part in enumerate(parts) if any(letter in part for letter in "*?["))
        base, pattern = "/".join(parts[:first]) or "/", "/".join(parts[first:])
    found = {
        relative: other
        for relative, other in _inside(replace(place, path=base), pafs.FileType.File)
        if not any(_is_hidden(part, sidecars) for part in relative.split("/"))
        and _matches(relative.split("/"), pattern.split("/"))
    }
    if not found:
        raise FileNotFoundError(errno.ENOENT, "there is no file", place.path)
    return dict(sorted(found.items())), False


def folders_at(place: Place) -> list[str]:
    """List the folders in a folder by their path below it, hidden ones too."""
    return [relative for relative, _ in _inside(place, pafs.FileType.Directory)]


def dataset_files(
    path: FilePath, filesystem: Any, *, sidecars: bool = False
) -> tuple[dict[str, Place], bool]:
    """List the files of a dataset by their names for messages; also return whether it is one file.

    Local files are named by the path that the caller gave, others by their path in the filesystem.
    """
    place = Place.of(path, filesystem)
    shown = place.path
    if place.local and "://" not in str(path):
        shown = str(Path(path).expanduser())
    try:
        files, single = files_at(place, patterns=False, sidecars=sidecars)
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from None
    if single:
        return {shown: place}, True
    return {f"{shown.rstrip('/')}/{relative}": file for relative, file in files.items()}, False


def _inside(place: Place, kind: pafs.FileType) -> Iterator[tuple[str, Place]]:
    """List what there is of a kind in a folder, however deep, by the path below it."""
    # Some filesystems list paths without the slash that the folder's own path begins with.
    base = place.path.strip("/")
    selector = pafs.FileSelector(place.path, allow_not_found=True, recursive=True)
    for info in place.filesystem.get_file_info(selector):
        path = info.path.lstrip("/")
        if base and not path.startswith(f"{base}/"):
            raise OSError(errno.EIO, f"the filesystem lists {info.path}, which is outside", place.path)
        if info.type == kind:
            yield path[len(base) :].lstrip("/"), replace(place, path=info.path, folder=False)


def _check_relative(relative: str) -> None:
    """Refuse a path that would leave the folder that it is joined to."""
    if any(part in ("", ".", "..") for part in relative.split("/")):
        raise ValueError(f"{relative!r} is not the path of a file below the target")


def is_sidecar(name: str) -> bool:
    """Tell whether a path is that of a dataset's ``_metadata`` or ``_common_metadata``."""
    return name.rpartition("/")[2] in _SIDECARS


def _is_hidden(part: str, sidecars: bool) -> bool:
    return part.startswith((".", "_")) and not (sidecars and part in _SIDECARS)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return (len(pattern) == 1 and bool(parts)) or any(
            _matches(parts[number:], pattern[1:]) for number in range(len(parts))
        )
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def stamp(place: Place) -> tuple[Any, ...]:
    """Return values that differ after a file was changed: size and time, or fsspec's ``ukey`` of the file."""
    if place.local:  # the inode number differs if the file was replaced by one of the same size
        with contextlib.suppress(FileNotFoundError):
            now = os.stat(place.path)  # noqa: PTH116 - Path("") would be the current folder
            return now.st_ino, now.st_size, now.st_mtime_ns
    handler = getattr(place.filesystem, "handler", None)
    if isinstance(handler, pafs.FSSpecHandler):
        # fsspec caches listings of folders: without this, ukey() may describe an earlier version of the file.
        handler.fs.invalidate_cache(handler.fs._parent(place.path))
        return (handler.fs.ukey(place.path),)
    info = place.filesystem.get_file_info(place.path)
    return info.type, info.size, info.mtime_ns


@contextlib.contextmanager
def whole(place: Place) -> Iterator[Any]:
    """Open a temporary file for writing; it replaces the target when the block ends, unless that raises."""
    if place.local:
        with whole_file(place.path) as file:
            yield file
        return
    folder, _, name = place.path.rpartition("/")
    temporary = f"{folder}{'/' if folder else ''}.kmsdata-copy-{random_bytes(8).hex()}-{name}.tmp"
    try:
        with place.filesystem.open_output_stream(temporary) as stream:
            yield stream
        place.filesystem.move(temporary, place.path)
    except BaseException:
        with contextlib.suppress(Exception):  # an error of the cleanup must not hide the first one
            if place.filesystem.get_file_info(temporary).type == pafs.FileType.File:
                place.filesystem.delete_file(temporary)
        raise


@contextlib.contextmanager
def whole_folder(place: Place) -> Iterator[Callable[[str], AbstractContextManager[Any]]]:
    """Open files of a folder for writing, by their path below it. On an error, new files are removed.

    On the local filesystem all files appear when the block ends: by one rename of the folder if it did not
    exist, otherwise by one rename per file. On other filesystems each file appears when it is complete.
    """
    if place.local:
        with _staged(Path(place.path)) as staging:
            yield lambda relative: _opened(staging, Path(place.path), relative)
        return
    existed = place.kind == pafs.FileType.Directory
    new: list[Place] = []

    @contextlib.contextmanager
    def one(relative: str) -> Iterator[Any]:
        _check_relative(relative)
        target = place / relative
        there = target.kind != pafs.FileType.NotFound
        if "/" in relative or not existed:
            place.filesystem.create_dir(target.path.rpartition("/")[0], recursive=True)
        with whole(target) as stream:
            if not there:
                new.append(target)
            yield stream

    try:
        yield one
    except BaseException:
        with contextlib.suppress(Exception):
            if not existed:
                place.filesystem.delete_dir(place.path)
        if existed:
            for target in new:
                with contextlib.suppress(Exception):
                    target.filesystem.delete_file(target.path)
        raise


@contextlib.contextmanager
def _opened(staging: Path, folder: Path, relative: str) -> Iterator[Any]:
    _check_relative(relative)
    path, target = staging / relative, folder / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(target), path.open("xb") as file:
        yield file


@contextlib.contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """Make a temporary folder beside the target, or in it if it exists: a target may be a mount point."""
    target = Path(os.path.realpath(target))
    exists = target.exists()
    if exists and not target.is_dir():
        raise FileExistsError(errno.EEXIST, "this path exists already, and is not a folder", str(target))
    handle = None
    staging = target
    try:  # Ctrl-C may come between any two of the next steps
        while handle is None:
            staging = (target if exists else target.parent) / temporary_name()
            try:
                staging.mkdir()
                if os.name != "posix":
                    break
                handle = os.open(staging, os.O_RDONLY)
            except OSError as error:  # name the target, which the caller knows, not the temporary folder
                raise OSError(error.errno, error.strerror, str(target)) from None
            if not claim(handle):  # another process is removing it
                os.close(handle)
                handle = None
        yield staging
        _sync(staging)
        if not exists:
            try:
                staging.rename(target)
            except OSError as error:  # another process made the folder meanwhile
                raise OSError(error.errno, error.strerror, str(target)) from None
        else:
            for folder, _, names in os.walk(staging):
                inside = target / Path(folder).relative_to(staging)
                inside.mkdir(exist_ok=True)
                for name in names:
                    (Path(folder) / name).replace(inside / name)
            _sync(target, files=False)
        _sync_one(target.parent)
    finally:
        if staging != target:
            shutil.rmtree(staging, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _sync(root: Path, *, files: bool = True) -> None:
    for folder, _, names in os.walk(root):
        for name in names if files else []:
            _sync_one(Path(folder) / name)
        _sync_one(Path(folder))


def _sync_one(path: Path) -> None:
    if os.name != "posix" and path.is_dir():
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
