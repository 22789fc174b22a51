"""Find files by path, folder, pattern or URL on any filesystem; write files completely or not at all.

Temporary files and folders are called ``.kmsdata-...``: readers of datasets ignore names with a leading dot.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import posixpath
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import pyarrow as pa
import pyarrow.fs as pafs

from kmsdata.atomic_files import NO_FOLDER, claim, give, naming, temporary_name, whole_file
from kmsdata.errors import (
    CallerFileExistsError,
    CallerFileNotFoundError,
    CallerImportError,
    CallerTypeError,
    CallerValueError,
    FormatError,
    printable,
)
from kmsdata.keys.data_key import random_bytes

__all__ = [
    "SIDECARS",
    "FilePath",
    "Paths",
    "Place",
    "Readable",
    "Refused",
    "contains_markers",
    "dataset_files",
    "files_at",
    "folders_at",
    "is_file_object",
    "is_path",
    "is_readable",
    "is_sidecar",
    "open_file",
    "open_local",
    "path_list",
    "paths_text",
    "skipped_note",
    "sources_at",
    "staged_folder",
    "stamp",
    "whole",
    "whole_folder",
    "without_credentials",
]

SIDECARS = ("_metadata", "_common_metadata")
_LINK = "a link, and links in a folder are not followed. Replace it by the file, or name the file itself"
_SPECIAL = "not a regular file"
_DATA_NAME = re.compile(r"\.(parquet|parq|pq|csv|csv\.(gz|bz2|zst|lz4))$", re.IGNORECASE)
_UNFINISHED = ".tmp"  # the end of names of unfinished files in a folder, which no pattern *.parquet matches

FilePath: TypeAlias = "str | os.PathLike[str]"
Paths: TypeAlias = "FilePath | Sequence[FilePath]"
Readable: TypeAlias = "Paths | BinaryIO | pa.NativeFile"

_UNREACHABLE = (
    "the server cannot be reached, or does not answer. Check the network and the endpoint "
    "(for S3, the variable AWS_ENDPOINT_URL)"
)
_NO_ANSWER = (
    "ClientConnectorError", "ConnectTimeoutError", "ConnectionRefusedError", "EndpointConnectionError",
    "FSTimeoutError", "ReadTimeoutError", "TimeoutError",
)  # fmt: skip
_S3_WAITS = {"connect_timeout": 5, "request_timeout": 10}
# s3fs makes 5 attempts, and would make 5 calls in each.
_S3_LIMITS = {"connect_timeout": 5, "read_timeout": 10, "retries": {"total_max_attempts": 1}}
_S3FS = {protocol: {"config_kwargs": _S3_LIMITS} for protocol in ("s3", "s3a")}  # options of fsspec

_PACKAGES = {  # of fsspec, by protocol
    "abfs": "adlfs", "az": "adlfs", "cos": "cosfs", "cosn": "cosfs", "gcs": "gcsfs", "gs": "gcsfs",
    "http": "aiohttp", "https": "aiohttp", "oss": "ossfs", "s3": "s3fs", "s3a": "s3fs",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A path on a filesystem.

    Attributes:
        filesystem: a pyarrow filesystem.
        path: the path in it, without a ``/`` at the end.
        folder: whether the caller wrote it with a ``/`` at the end.
        root: the folder in which it was found, if the caller named that folder: links below are not followed.
        start: the text before the path in messages, such as ``s3://``.
    """

    filesystem: Any
    path: str
    folder: bool = False
    root: str | None = None
    start: str = ""

    @classmethod
    def of(cls, path: FilePath, filesystem: Any = None) -> Place:
        """Return the place of a path or URL; the filesystem may be one of pyarrow or fsspec."""
        if not isinstance(path, (str, os.PathLike)):
            raise CallerTypeError(
                f"this takes a path, not {type(path).__name__}"
                + (". Write the file object to a file and pass its path" if is_file_object(path) else "")
            )
        text = os.fspath(path)
        folder, url = text.endswith("/"), text
        if filesystem is None and "://" in text:
            filesystem, text = _from_url(text)
        elif filesystem is None:
            filesystem, text = pafs.LocalFileSystem(), str(Path(text).expanduser())
        elif not isinstance(filesystem, pafs.FileSystem):
            if not hasattr(filesystem, "_strip_protocol"):
                raise CallerTypeError(
                    f"filesystem= takes a filesystem of pyarrow or fsspec, not {type(filesystem).__name__}"
                )
            text = filesystem._strip_protocol(text)
            filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(filesystem))
        filesystem, text = _as_local(filesystem, text)
        if isinstance(filesystem, pafs.LocalFileSystem):
            text = str(Path(text).absolute())
            return cls(filesystem, text.rstrip("/") or "/", folder)
        text = text.rstrip("/") or "/"
        return cls(filesystem, text, folder, start=_start_of(url, text))

    @property
    def local(self) -> bool:
        """Whether it is on the local filesystem."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    @property
    def kind(self) -> pafs.FileType:
        """What exists at the path: a file, a folder or nothing."""
        try:
            return self.filesystem.get_file_info(self.path).type
        except Exception as error:
            if not _is_unreachable(error):
                raise
            raise ConnectionError(errno.EHOSTUNREACH, _UNREACHABLE, str(self)) from error

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
        return without_credentials(self.start + self.path.lstrip("/") if self.start else self.path)


def without_credentials(path: str) -> str:
    """Return a URL without its user, password and query, which may be a signature; paths as they are."""
    if "://" not in path:
        return path
    # A secret may contain slashes, even if it should not. Digits after the colon are a port.
    path = re.sub(r"://(?:[^/@]*@|[^/@:]+:(?!\d+/)[^@]*@)", "://", path, count=1)
    return re.sub(r"\?[^/]*=.*", "", path)


def _start_of(url: str, path: str) -> str:
    """Return the text before the path in the URL, without credentials; empty if it is no URL."""
    if "://" not in url or "://" in path:
        return ""
    shown, below = without_credentials(url).rstrip("/"), path.strip("/")
    return shown.removesuffix(below) if shown.endswith(below) else f"{shown.partition('://')[0]}://"


def _as_local(filesystem: Any, path: str) -> tuple[Any, str]:
    """Return Arrow's local filesystem for others that access the same files, which would follow links."""
    if isinstance(filesystem, pafs.SubTreeFileSystem) and isinstance(
        filesystem.base_fs, pafs.LocalFileSystem
    ):
        return filesystem.base_fs, f"{filesystem.base_path.rstrip('/')}/{path.strip('/')}"
    handler = getattr(filesystem, "handler", None)
    if isinstance(handler, pafs.FSSpecHandler) and type(handler.fs).__name__ == "LocalFileSystem":
        return pafs.LocalFileSystem(), path
    return filesystem, path


def _from_url(url: str) -> tuple[Any, str]:
    """Return the filesystem of a URL and the path in it: one of pyarrow, otherwise one of fsspec."""
    protocol = url.partition("://")[0]
    try:
        if protocol in ("gs", "gcs") and "retry_limit_seconds=" not in url:
            # Without a limit, a server that cannot be reached is called for 15 minutes.
            return pafs.FileSystem.from_uri(f"{url}{'&' if '?' in url else '?'}retry_limit_seconds=20")
        filesystem, path = pafs.FileSystem.from_uri(url)
        return (_patient(filesystem) if filesystem.type_name == "s3" else filesystem), path
    except pa.ArrowInvalid:
        packages = f"fsspec {_PACKAGES[protocol]}" if protocol in _PACKAGES else "fsspec"
        try:
            import fsspec  # optional: pandas needs it for such URLs too

            filesystem, path = fsspec.core.url_to_fs(url, **_S3FS.get(protocol, {}))
        except ImportError:
            raise CallerImportError(
                f"{printable(protocol)}:// needs packages that are not installed. "
                f"Install them with: pip install {packages}"
            ) from None
        except ValueError as error:  # fsspec does not know the protocol
            raise CallerValueError(
                f"{error}. Install the fsspec package for this protocol"
                f"{f' (pip install {packages})' if protocol in _PACKAGES else ''}, or pass filesystem="
            ) from None
        return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


def _patient(filesystem: Any) -> Any:
    """Return an S3 filesystem of pyarrow with limits on waiting: its own are 30 attempts of 3 seconds."""
    _, (options,) = filesystem.__reduce__()
    attempts = pafs.AwsStandardS3RetryStrategy(max_attempts=4)
    return pafs.S3FileSystem(**options | _S3_WAITS, retry_strategy=attempts)


def _is_unreachable(error: BaseException | None) -> bool:
    """Tell whether a server did not answer: each library has errors for that with names of its choice."""
    while error is not None:
        if type(error).__name__ in _NO_ANSWER or "NETWORK_CONNECTION" in str(error):
            return True
        error = error.__cause__
    return False


def _is_pattern(path: FilePath) -> bool:
    return any(character in os.fspath(path) for character in "*?[")


def is_path(x: object) -> bool:
    """Tell whether this is a path, or a list of paths."""
    if isinstance(x, (list, tuple)):
        return bool(x) and all(isinstance(item, (str, os.PathLike)) for item in x)
    return isinstance(x, (str, os.PathLike))


def is_file_object(x: object) -> bool:
    """Tell whether this is an open file of Python, pyarrow or fsspec, such as `io.BytesIO`."""
    # A frame may have columns of these names, which are no functions.
    return callable(getattr(x, "read", None)) and callable(getattr(x, "seek", None))


def is_readable(x: object) -> bool:
    """Tell whether this is a path, a list of paths, or a file object."""
    return is_path(x) or is_file_object(x)


class _FileObject(pafs.FileSystemHandler):  # type: ignore[misc]
    """A filesystem of one file, which contains what was read from a file object."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def get_type_name(self) -> str:
        return "file-object"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return [pafs.FileInfo(path, pafs.FileType.File, size=len(self._content)) for path in paths]

    def open_input_file(self, path: str) -> pa.NativeFile:  # noqa: ARG002 - there is only one
        return pa.BufferReader(self._content)

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("a file object contains one file, which is only read")

    open_input_stream = open_input_file
    get_file_info_selector = create_dir = delete_dir = delete_dir_contents = _refuse
    delete_root_dir_contents = delete_file = move = copy_file = _refuse
    open_output_stream = open_append_stream = _refuse


def _of_file_object(file: Any, filesystem: Any) -> Place:
    """Return a place with the content of a file object, which is read from its beginning."""
    if filesystem is not None:
        raise CallerTypeError("filesystem= is for paths: leave it out for a file object")
    if not hasattr(file, "seekable") or file.seekable():
        file.seek(0)
    content = file.read()
    if not isinstance(content, bytes):
        raise CallerTypeError(
            "the file object returns text: open it in binary mode, such as open(path, 'rb')"
        )
    return Place(pafs.PyFileSystem(_FileObject(content)), _file_name(file))


def _file_name(file: Any) -> str:
    name = getattr(file, "name", None)
    return (isinstance(name, str) and name.rpartition("/")[2]) or "file object"


def path_list(path: Paths) -> list[FilePath]:
    """Return the paths of a list, or the one path."""
    return [path] if isinstance(path, (str, os.PathLike)) else list(path)


def paths_text(path: Readable) -> str:
    """Return the text by which reports name a path, a list of paths, or a file object."""
    if isinstance(path, (str, os.PathLike)):
        return without_credentials(str(path))
    if not isinstance(path, Sequence):
        return _file_name(path)
    first = without_credentials(str(path[0]))
    return first if len(path) == 1 else f"{first} and {len(path) - 1:,} more"


Refused: TypeAlias = "dict[str, OSError | FormatError]"
"""What a listing refuses, by path below the folder: links, special files, and names that are no paths."""


def files_at(
    place: Place,
    *,
    patterns: bool = True,
    sidecars: bool = False,
    refused: Refused | None = None,
    skipped: list[str] | None = None,
) -> tuple[dict[str, Place], bool]:
    """List the files of a path: the file itself, those in a folder, or those that match a pattern.

    In folders, names that begin with ``.`` or ``_`` are ignored, as readers of datasets do. So ``_metadata``
    files, which may contain statistics, are not listed.

    Args:
        place: a file, a folder, or a pattern with ``*``, ``?``, ``[...]`` and ``**``.
        patterns: whether it may be a pattern.
        sidecars: list ``_metadata`` and ``_common_metadata`` too.
        refused: collects what must not be read; None: raise the first of these errors.
        skipped: collects files that are neither Parquet nor CSV, and are left out; None: list them too.

    Returns:
        The files by their path below the folder, in order; and whether the path is one file.

    Raises:
        FileNotFoundError: there is no file.
        OSError: the path or something in the folder is a link, device or pipe, or cannot be listed.
        FormatError: a name in the folder is no relative path, so that it could lead out of a folder.
    """
    kind = place.kind
    if kind == pafs.FileType.File:
        return {place.path.rpartition("/")[2]: place}, True
    if kind == pafs.FileType.Unknown:
        raise OSError(errno.EINVAL, _SPECIAL, str(place))
    base, pattern = place.path, "**"
    if patterns and kind == pafs.FileType.NotFound and any(letter in place.path for letter in "*?["):
        parts = place.path.split("/")
        first = next(number for number, part in enumerate(parts) if any(letter in part for letter in "*?["))
        base, pattern = "/".join(parts[:first]) or "/", "/".join(parts[first:])
    folder = replace(place, path=base)
    found: dict[str, Place] = {}
    bad: Refused = {}
    for relative, what in _inside(folder):
        parts = relative.split("/")
        whole_match = _matches(parts, pattern.split("/"))
        if any(_is_hidden(part, sidecars) for part in parts) or not (
            whole_match or _may_lead(parts, pattern.split("/"))
        ):
            continue
        if isinstance(what, (OSError, FormatError)):
            bad[relative] = what
        elif what.type == pafs.FileType.File and whole_match:
            found[relative] = replace(place, path=what.path, folder=False, root=base)
    if bad and refused is None:
        raise bad[min(bad)]
    if not found and not bad:
        raise CallerFileNotFoundError(errno.ENOENT, "there is no file", str(place))
    if refused is not None:
        refused |= bad
    if skipped is not None:
        others = {relative for relative, file in found.items() if not _is_data(relative, file)}
        if len(others) < len(found):  # otherwise reading one of them says what is wrong
            skipped += sorted(others)
            found = {relative: file for relative, file in found.items() if relative not in others}
    return dict(sorted(found.items())), False


def _is_data(relative: str, file: Place) -> bool:
    """Tell whether a file is Parquet or CSV by its name, or begins as Parquet does."""
    if is_sidecar(relative) or _DATA_NAME.search(relative):
        return True
    try:
        with open_file(file) as opened:
            return opened.read(4) in (b"PAR1", b"PARE")
    except OSError:
        return True  # reading it will say why it cannot be read


def skipped_note(names: Sequence[str]) -> tuple[str, ...]:
    """Return a sentence about skipped files, which names up to three; nothing if there are none."""
    if not names:
        return ()
    count = "1 file is" if len(names) == 1 else f"{len(names):,} files are"
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return (f"{count} neither Parquet nor CSV: skipped {', '.join(map(printable, names[:3]))}{more}",)


def sources_at(
    path: Paths, filesystem: Any, skipped: list[str]
) -> tuple[list[Place], dict[str, Place], bool]:
    """List the files to read of a path or a list of paths, by their path below the target folder.

    The files of a list keep their path below the folder that contains all of them. ``skipped`` is as for
    `files_at`.

    Returns:
        The places of the paths; the files; and whether the path is one file.
    """
    if isinstance(path, (str, os.PathLike)):
        start = Place.of(path, filesystem)
        return [start], *files_at(start, skipped=skipped)
    if not is_path(path):
        raise CallerTypeError(
            "the source is a file object: write it to a file and pass its path"
            if is_file_object(path)
            else "the source must be a path, or a list of paths that is not empty"
        )
    starts = [Place.of(one, filesystem) for one in path]
    if not all(start.filesystem.equals(starts[0].filesystem) for start in starts):
        raise CallerValueError(
            "the paths of a list must be on one filesystem. Call the function once for each"
        )
    found = {file.path: file for start in starts for file in files_at(start, skipped=skipped)[0].values()}
    inside = [_parts(path)[:-1] if file.root is None else _parts(file.root) for path, file in found.items()]
    shared = len(_parts(posixpath.commonpath(map("/".join, inside))))
    below = {"/".join(_parts(path)[shared:]): file for path, file in sorted(found.items())}
    return starts, below, False


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def folders_at(place: Place) -> list[str]:
    """List the folders in a folder by their path below it, also hidden ones, but not those inside these."""
    return [
        relative
        for relative, what in _inside(place)
        if isinstance(what, pafs.FileInfo) and what.type == pafs.FileType.Directory
    ]


def dataset_files(
    path: Readable,
    filesystem: Any,
    *,
    sidecars: bool = False,
    refused: Refused | None = None,
    skipped: list[str] | None = None,
) -> tuple[dict[str, Place], bool]:
    """List the files of a dataset by their names for messages; also return whether it is one file.

    The dataset is a file, a folder, a pattern, a list of these, or a file object. Local files are named by
    the path that the caller gave, others by their URL. ``refused`` and ``skipped`` are as for `files_at`, by
    the same names.
    """
    if is_file_object(path):
        place = _of_file_object(path, filesystem)
        return {str(place): place}, True
    if not isinstance(path, (str, os.PathLike)):
        every: dict[str, Place] = {}
        for one in path:
            every |= dataset_files(one, filesystem, sidecars=sidecars, refused=refused, skipped=skipped)[0]
        return every, False
    place = Place.of(path, filesystem)
    given = str(place)
    if place.local and "://" not in str(path) and filesystem is None:
        given = str(Path(path).expanduser())
    bad: Refused | None = None if refused is None else {}
    try:
        others: list[str] = []
        files, single = files_at(place, sidecars=sidecars, refused=bad, skipped=others)
    except FileNotFoundError as error:
        raise CallerFileNotFoundError(error.errno, error.strerror, paths_text(path)) from None
    if single:
        return {given: place}, True
    parts = given.rstrip("/").split("/")
    if _is_pattern(given) and place.kind == pafs.FileType.NotFound:
        parts = parts[: next(number for number, part in enumerate(parts) if _is_pattern(part))]
    shown = "/".join(parts)
    start = f"{shown}/" if parts else ""
    if skipped is not None:
        skipped += [f"{start}{relative}" for relative in others]
    if refused is not None:
        refused |= {f"{start}{relative}": error for relative, error in (bad or {}).items()}
    return {f"{start}{relative}": file for relative, file in files.items()}, False


def _inside(place: Place) -> Iterator[tuple[str, pafs.FileInfo | OSError | FormatError]]:
    """List what is in a folder, however deep, by the path below it; an error for what must not be read."""
    for relative, what in _listed_locally(place.path) if place.local else _listed(place):
        try:
            _check_relative(relative, place.path)
        except FormatError as error:
            yield relative, error
            continue
        if isinstance(what, pafs.FileInfo) and what.type == pafs.FileType.Unknown:
            what = OSError(errno.EINVAL, _SPECIAL, what.path)
        yield relative, what


def _listed(place: Place) -> Iterator[tuple[str, pafs.FileInfo]]:
    """List a folder of a filesystem that has no links."""
    # Some filesystems list paths without the slash that the folder's own path begins with.
    base = place.path.strip("/")
    selector = pafs.FileSelector(place.path, allow_not_found=True, recursive=True)
    for info in place.filesystem.get_file_info(selector):
        path = info.path.removeprefix("/")
        if base and not f"{path}/".startswith(f"{base}/"):
            raise OSError(errno.EIO, f"the filesystem lists {info.path!r}, which is outside", str(place))
        relative = path[len(base) + 1 :] if base else path
        # Object stores may contain an empty object whose name ends in a slash, for a folder.
        if relative and not (relative.endswith("/") and not info.size):
            yield relative, info


def _listed_locally(folder: str) -> Iterator[tuple[str, pafs.FileInfo | OSError]]:
    """List a local folder; Arrow would follow links, and leave out those that lead nowhere."""
    waiting = [(folder, "")]
    while waiting:
        here, above = waiting.pop()
        try:
            with os.scandir(here) as entries:
                listed = list(entries)
        except FileNotFoundError:
            continue  # removed meanwhile, or there is no such folder
        except NotADirectoryError:
            continue
        except OSError as error:
            yield above.rstrip("/"), error
            continue
        for entry in listed:
            relative = above + entry.name
            if entry.is_dir(follow_symlinks=False):
                yield relative, pafs.FileInfo(entry.path, pafs.FileType.Directory)
                if not _is_hidden(entry.name, sidecars=False):
                    waiting.append((entry.path, f"{relative}/"))
            elif entry.is_symlink():
                yield relative, OSError(errno.ELOOP, _LINK, entry.path)
            elif entry.is_file(follow_symlinks=False):
                yield relative, pafs.FileInfo(entry.path, pafs.FileType.File)
            else:
                yield relative, OSError(errno.EINVAL, _SPECIAL, entry.path)


def _check_relative(relative: str, folder: str) -> None:
    """Refuse a path that would leave the folder that it is joined to, on any system."""
    for part in relative.split("/"):
        if part in ("", ".", "..") or "\\" in part or "\0" in part or re.match("[A-Za-z]:", part):
            break
        if any(0xD800 <= ord(character) < 0xE000 for character in part):  # bytes that are not UTF-8
            break
    else:
        return
    raise FormatError(
        f"{printable(folder)} contains the name {relative!r}, which is not the path of a file below it. "
        "Rename the file first",
        path=printable(folder),
    )


def open_file(place: Place) -> pa.NativeFile:
    """Open a file for reading; it must be a regular file, and links below ``root`` are not followed."""
    if place.local:
        return pa.PythonFile(open_local(place), mode="r")
    return place.filesystem.open_input_file(place.path)


def open_local(place: Place) -> BinaryIO:
    """Open a local file for reading, as `open_file` does, as a Python file.

    Raises:
        OSError: there is no such file, or it is a link, device or pipe. A pipe never blocks.
    """
    # O_NONBLOCK: opening a pipe would wait for a writer. Windows has none of these flags.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if place.root is None or os.open not in os.supports_dir_fd:
            handle = os.open(place.path, flags)
        else:
            *folders, name = place.path[len(place.root) :].strip("/").split("/")
            above = os.open(place.root, os.O_RDONLY | os.O_DIRECTORY)
            try:
                for folder in folders:
                    inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
                    os.close(above)
                    above = inner
                handle = os.open(name, flags | os.O_NOFOLLOW, dir_fd=above)
            finally:
                os.close(above)
    except OSError as error:  # name the whole path
        why = _LINK if error.errno == errno.ELOOP else error.strerror
        raise OSError(error.errno, why, place.path) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, _SPECIAL, place.path)
    return os.fdopen(handle, "rb")


def is_sidecar(name: str) -> bool:
    """Tell whether a path is that of a dataset's ``_metadata`` or ``_common_metadata``."""
    return name.rpartition("/")[2] in SIDECARS


def _is_hidden(part: str, sidecars: bool) -> bool:
    return part.startswith((".", "_")) and part not in (".", "..") and not (sidecars and part in SIDECARS)


def _may_lead(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Tell whether a folder of this path may contain files that match the pattern."""
    for part, wanted in zip(parts, pattern, strict=False):
        if wanted == "**":
            return True
        if not fnmatch.fnmatchcase(part, wanted):
            return False
    return len(parts) < len(pattern)


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
def whole(place: Place, source: Place | None = None) -> Iterator[Any]:
    """Open a temporary file for writing; it replaces the target when the block ends, unless that raises.

    A new local file has no wider permissions than ``source``, the file that it is made from.
    """
    if place.local:
        with whole_file(place.path, new_mode=_mode(source), new_group=_group(source)) as file:
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
            _delete(place.filesystem, temporary)
        raise


def _delete(filesystem: Any, path: str) -> None:
    """Delete a file without asking first whether it exists: that may be what fails."""
    handler = getattr(filesystem, "handler", None)
    if isinstance(handler, pafs.FSSpecHandler):
        handler.fs.rm_file(path)
    else:
        filesystem.delete_file(path)


def contains_markers(place: Place) -> bool:
    """Tell whether a folder of an object store contains empty objects, which Arrow calls damaged."""
    if place.local:
        return False
    listed = place.filesystem.get_file_info(pafs.FileSelector(place.path, recursive=True))
    return any(info.type == pafs.FileType.File and not info.size for info in listed)


def _makes_markers(filesystem: Any) -> bool:
    """Tell whether a new folder would be an empty object: object stores need no folders."""
    while isinstance(filesystem, pafs.SubTreeFileSystem):
        filesystem = filesystem.base_fs
    return filesystem.type_name in ("s3", "gcs", "abfs")


@contextlib.contextmanager
def whole_folder(
    place: Place, root: str | None = None
) -> Iterator[Callable[..., AbstractContextManager[Any]]]:
    """Open files of a folder for writing, by their path below it. On an error, new files are removed.

    Files are opened with their path below it, and the file that they are made from. New local files and
    folders have no wider permissions than those that they are made from (the folder itself than ``root``),
    and other users cannot read them before the block ends.

    On the local filesystem all files appear when the block ends: by one rename of the folder if it did not
    exist, otherwise by one rename per file. On other filesystems each file appears when it is complete.
    """
    if place.local:
        with staged_folder(Path(place.path), _folder_mode(root)) as staging:
            yield lambda relative, source=None: _opened(staging, Path(place.path), relative, source)
        return
    existed = place.kind == pafs.FileType.Directory
    new: list[Place] = []

    @contextlib.contextmanager
    def one(relative: str, source: Place | None = None) -> Iterator[Any]:  # noqa: ARG001 - has no permissions
        _check_relative(relative, place.path)
        target = place / relative
        there = target.kind != pafs.FileType.NotFound
        if ("/" in relative or not existed) and not _makes_markers(place.filesystem):
            place.filesystem.create_dir(target.path.rpartition("/")[0], recursive=True)
        with whole(target) as stream:
            if not there:
                new.append(target)
            yield stream

    try:
        yield one
    except BaseException:
        with contextlib.suppress(Exception):
            for target in new:
                with contextlib.suppress(Exception):
                    _delete(target.filesystem, target.path)
            everything = pafs.FileSelector(place.path, allow_not_found=True, recursive=True)
            if not existed and all(
                info.type == pafs.FileType.Directory for info in place.filesystem.get_file_info(everything)
            ):
                place.filesystem.delete_dir(place.path)
        raise


@contextlib.contextmanager
def _opened(staging: Path, folder: Path, relative: str, source: Place | None) -> Iterator[Any]:
    _check_relative(relative, str(folder))
    path, target = staging / f"{relative}{_UNFINISHED}", folder / relative
    its = Path(source.path).parents if source is not None and source.local else ()
    for number, inner in reversed(list(enumerate(Path(relative).parents[:-1]))):  # the outermost first
        if not (staging / inner).is_dir():
            (staging / inner).mkdir(mode=_folder_mode(its[number] if its else None))
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), _mode(source))
    with naming(target), os.fdopen(handle, "wb") as file:
        if (group := _group(source)) is not None:
            give(path, stat.S_IMODE(os.fstat(handle).st_mode), group)
        yield file


def _group(source: Place | None) -> int | None:
    """Return the group of a local file, to which its permissions are given."""
    return os.stat(source.path).st_gid if source is not None and source.local else None  # noqa: PTH116


def _folder_mode(source: FilePath | None) -> int:
    """Return the permissions of a folder made from this local one, before the umask."""
    return 0o777 if source is None else os.stat(source).st_mode & 0o777 | 0o700  # noqa: PTH116


def _mode(source: Place | None) -> int:
    """Return the permissions of a file made from this one, before the umask."""
    if source is None or not source.local:
        return 0o666
    return os.stat(source.path).st_mode & 0o666 | 0o600  # noqa: PTH116 - the path may be empty


@contextlib.contextmanager
def staged_folder(target: Path, mode: int, *, replace: bool = False) -> Iterator[Path]:
    """Make a temporary folder beside the target, in which files are written that are unfinished.

    Polars and DuckDB also read folders whose names begin with a dot, so that unfinished files in an existing
    folder would be read with those that they replace. If the folder beside cannot be made, or is on another
    filesystem, it is made in the target: that may be a mount point.

    Only its owner can enter it. ``mode`` are the permissions of a new target, before the umask. With
    ``replace``, the temporary folder replaces the target as a whole, by two renames, and the old one is
    removed after that.
    """
    target = Path(os.path.realpath(target))
    exists = target.exists()
    if exists and not target.is_dir():
        raise CallerFileExistsError(
            errno.EEXIST, "this path exists already, and is not a folder", str(target)
        )
    old = target.parent / temporary_name() if exists and replace else None
    exists = exists and not replace
    made: list[tuple[Path, int | None]] = []
    try:
        staging = _staging(target.parent, target, made, exists=exists)
        yield staging
        _sync(staging)
        if exists:
            _move_files(staging, target)
        else:
            probe = staging / temporary_name()  # only a new folder shows the umask without changing it
            probe.mkdir(mode)
            mode = stat.S_IMODE(probe.stat().st_mode)
            probe.rmdir()
            for folder, _, names in os.walk(staging):
                for name in names:
                    (Path(folder) / name).rename(Path(folder) / name.removesuffix(_UNFINISHED))
            staging.chmod(mode)
            try:
                if old is not None:
                    target.rename(old)
                staging.rename(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise OSError(error.errno, error.strerror, str(target)) from None
                raise CallerFileExistsError(
                    errno.EEXIST,
                    "another process created it while this one was writing. Nothing was written here",
                    str(target),
                ) from None
        _sync_one(target.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    finally:
        for temporary, handle in made:
            shutil.rmtree(temporary, ignore_errors=True)
            if handle is not None:
                os.close(handle)


def _staging(
    parent: Path, target: Path, made: list[tuple[Path, int | None]], *, exists: bool = False
) -> Path:
    """Make a temporary folder in ``parent``, or in a target that exists, and claim it.

    It is in ``made`` before it exists, because Ctrl-C may come between any two steps.
    """
    while True:
        staging = parent / temporary_name()
        made.append((staging, None))
        try:
            staging.mkdir(mode=0o700)
            if os.name == "posix":
                made[-1] = staging, os.open(staging, os.O_RDONLY)
        except OSError as error:
            if exists:
                return _staging(target, target, made)
            if error.errno == errno.ENOENT:
                raise CallerFileNotFoundError(errno.ENOENT, NO_FOLDER, str(parent)) from None
            # Name the target, which the caller knows, not the temporary folder.
            raise OSError(error.errno, error.strerror, str(target)) from None
        handle = made[-1][1]
        if handle is not None and not claim(handle):  # another process is removing it
            continue
        if exists and not _can_move(staging, target):
            shutil.rmtree(staging, ignore_errors=True)
            return _staging(target, target, made)
        return staging


def _can_move(staging: Path, target: Path) -> bool:
    """Tell whether what is in one folder can be renamed into another: a bind mount looks like any folder."""
    probe = temporary_name()
    try:
        (staging / probe).mkdir()
        (staging / probe).rename(target / probe)
        (target / probe).rmdir()
    except OSError:
        return False
    return True


def _move_files(staging: Path, target: Path) -> None:
    """Move the files of a temporary folder into an existing one, by one rename per file."""
    for folder, _, names in os.walk(staging):  # before the first is moved: all appear, or none
        for name in names:
            if (old := target / Path(folder).relative_to(staging) / name.removesuffix(_UNFINISHED)).is_dir():
                raise IsADirectoryError(errno.EISDIR, "a file cannot replace this folder", str(old))
    for folder, _, names in os.walk(staging):
        inside = target / Path(folder).relative_to(staging)
        if inside != target:
            inside.mkdir(mode=stat.S_IMODE(Path(folder).stat().st_mode), exist_ok=True)
            if inside.is_symlink():
                raise OSError(errno.ELOOP, _LINK, str(inside))
        for name in names:
            new, old = Path(folder) / name, inside / name.removesuffix(_UNFINISHED)
            if old.exists():
                about = old.stat()
                give(new, stat.S_IMODE(about.st_mode), about.st_gid)
            new.replace(old)
    _sync(target, files=False)


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
