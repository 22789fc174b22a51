"""Other master keys for files: only their footers are written anew, the pages are copied as they are.

A file is replaced whole (copy, fsync, rename), so that whoever opens it, at any time, after any crash, sees
the old one or the new one. Or, on request, the new footer is appended in place (`kmsdata.parquet.journal`).
"""

from __future__ import annotations

import base64
import contextlib
import contextvars
import errno
import functools
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from kmsdata.atomic_files import whole_file
from kmsdata.display.progress import Progress
from kmsdata.display.tables import RewrapReport
from kmsdata.errors import FormatError, KmsDataError
from kmsdata.frames.encrypted_columns import check_names
from kmsdata.keys.data_key import random_bytes
from kmsdata.keys.envelope import Header
from kmsdata.keys.rewrap import Change, not_meant
from kmsdata.keys.usage import usage
from kmsdata.parquet.footer import MAGIC, Footer, ending, read_footer
from kmsdata.parquet.header_copies import Copy, agree, copies_in, entry_with
from kmsdata.parquet.journal import append, drop_checksum, recover, unchanged
from kmsdata.parquet.locations import FilePath, from_url

_SIDECARS = ("_metadata", "_common_metadata")
_PIECE = 8 << 20  # bytes copied at a time
_SHORTEST = 16  # letters of a wrapped key that are looked for as they stand
_ABANDONED = 60.0  # seconds for which the temporary file of a process that is gone was not written to
_PLANS = 16  # kept for files with the same metadata
_Entries: TypeAlias = "tuple[tuple[bytes, bytes | None], ...]"
_Plan: TypeAlias = "Callable[[_Entries], tuple[dict[int, bytes], _Done]]"


@dataclass(frozen=True)
class _File:
    """A file: a path, and where it is one; None for this machine's own files."""

    path: str
    filesystem: pafs.FileSystem | None = None

    @property
    def sidecar(self) -> bool:
        return self.path.rpartition("/")[2] in _SIDECARS


@dataclass(frozen=True)
class _Done:
    """What became of a file: ``rewrapped``, ``already``, ``other`` or ``plain``."""

    state: str
    keys: frozenset[str] = frozenset()
    left: tuple[str, ...] = ()
    headers: list[tuple[str, Header]] = field(default_factory=list, repr=False)


def rewrap_path(
    path: FilePath, change: Change, in_place: bool, filesystem: Any, progress: bool | None
) -> RewrapReport:
    """Put the files at a path under another master key; see `kmsdata.rewrap`."""
    files, single = _files(path, filesystem)
    if in_place and files[0].filesystem is not None:
        raise ValueError("in_place=True is for files of this machine: elsewhere files are written whole")
    # The files of a dataset often have the same metadata: it is read, checked and changed once.
    plan: _Plan = functools.lru_cache(_PLANS)(functools.partial(_planned, change))
    before = usage().calls
    if single:
        done = _rewrap_file(files[0], plan, in_place, change.dry_run)
        if done.state == "plain":
            raise FormatError(f"{path}: nothing in it is encrypted: it has no kmsdata header", path=str(path))
        if done.state == "other":
            raise not_meant(done.headers)
        return _counted(_report(str(path), [done], {}), change, before)
    results: list[_Done] = []
    failed: dict[str, Exception] = {}
    with Progress("rewrap", len(files), "files", progress) as bar, ThreadPoolExecutor() as threads:
        # A context of its own for each: kmsdata.use() in a with block holds for them too.
        running = {
            threads.submit(
                contextvars.copy_context().run, _rewrap_file, file, plan, in_place, change.dry_run
            ): file
            for file in files
        }
        try:
            for future in as_completed(running):
                file = running[future]
                try:
                    results.append(future.result())
                except (KmsDataError, OSError, ValueError, pa.ArrowException) as error:
                    failed[file.path] = error
                bar.step(1)
        except BaseException:
            threads.shutdown(wait=True, cancel_futures=True)
            raise
    try:
        return _counted(_judged(str(path), results, failed), change, before)
    except KmsDataError as error:
        if isinstance(report := getattr(error, "report", None), RewrapReport):
            error.with_facts(report=_counted(report, change, before))
        raise


def _counted(report: RewrapReport, change: Change, before: int) -> RewrapReport:
    """With the calls of key services, so far or of a dry run."""
    calls = change.calls if change.dry_run else usage().calls - before
    return replace(report, kms_calls=calls, dry_run=change.dry_run)


def _judged(path: str, results: list[_Done], failed: dict[str, Exception]) -> RewrapReport:
    """The report of a dataset, where it was possible."""
    report = _report(path, results, {name: _said(error) for name, error in sorted(failed.items())})
    if failed:
        name, first = min(failed.items())
        said = _said(first)
        raise KmsDataError(
            f"{len(failed)} of {len(failed) + len(results)} files in {path} could not be rewrapped, the "
            f"others are: {said if name in said else f'{name}: {said}'}",
            report=report,
        ) from first
    if not report.rewrapped and not report.already:
        for done in results:
            if done.state == "other":
                raise not_meant(done.headers)
        raise FormatError(f"{path}: nothing in it is encrypted: no file has a kmsdata header", path=path)
    return report


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def _report(path: str, results: Sequence[_Done], failed: dict[str, str]) -> RewrapReport:
    states = Counter(done.state for done in results)
    keys = Counter(key for done in results for key in done.keys)
    return RewrapReport(
        path,
        len(results) + len(failed),
        states["rewrapped"],
        states["already"],
        states["other"],
        states["plain"],
        dict(sorted(keys.items())),
        dict(Counter(sentence for done in results for sentence in done.left)),
        failed,
    )


def _files(path: FilePath, filesystem: Any) -> tuple[list[_File], bool]:
    """The files at a path, sidecars last; and whether the path is that of one file."""
    name = str(path)
    if filesystem is None and "://" in name:
        filesystem, name = from_url(name)
    if filesystem is None or isinstance(filesystem, pafs.LocalFileSystem):
        root = Path(name).expanduser()
        if not root.is_dir():
            return [_File(str(root))], True
        found = [_File(str(file)) for file in _walk(root)]
    else:
        if not isinstance(filesystem, pafs.FileSystem):
            filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(filesystem))
        if filesystem.get_file_info(name).type != pafs.FileType.Directory:
            return [_File(name, filesystem)], True
        infos = filesystem.get_file_info(pafs.FileSelector(name, recursive=True))
        base = len(name.rstrip("/")) + 1
        found = [
            _File(info.path, filesystem)
            for info in infos
            if info.type == pafs.FileType.File and _is_data(info.path[base:].split("/"))
        ]
        _refuse_table_format(name, [info.path for info in infos])
    if not found:
        raise FileNotFoundError(errno.ENOENT, "no Parquet file in this folder", str(path))
    return sorted(found, key=lambda file: (file.sidecar, file.path)), False


def _walk(root: Path) -> Iterator[Path]:
    """The files of a local dataset, as Arrow finds them; what killed runs left behind is removed."""
    for folder, folders, names in os.walk(root):
        _refuse_table_format(folder, folders)
        folders[:] = [name for name in folders if _is_data([name])]
        for name in names:
            if _is_data([name]):
                yield Path(folder, name)
            elif match := re.fullmatch(r"\.kmsdata-(\d+)-\d+\.tmp", name):
                _sweep(Path(folder, name), int(match[1]))


def _is_data(parts: Sequence[str]) -> bool:
    """Whether Arrow takes a file for one of the dataset; and its sidecars."""
    return not any(part.startswith((".", "_")) and part not in _SIDECARS for part in parts)


def _refuse_table_format(folder: str, inside: Iterable[str]) -> None:
    if any(name.rpartition("/")[2] == "_delta_log" for name in inside):
        raise ValueError(
            f"{folder} is a Delta table, whose log records the size of each file, and readers go by it: "
            "rewrap a copy of its files, or write the table anew"
        )


def _sweep(temporary: Path, process: int) -> None:
    """Remove a temporary file whose process was killed."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):
        if time.time() - temporary.stat().st_mtime < _ABANDONED:
            return
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            temporary.unlink()


def _rewrap_file(file: _File, plan: _Plan, in_place: bool, dry_run: bool) -> _Done:
    if file.filesystem is not None:
        return _rewrap_remote(file.path, file.filesystem, plan)
    path = Path(file.path)
    if not dry_run:
        recover(path)
    with path.open("rb") as source:
        before = os.fstat(source.fileno())
        footer, start = read_footer(source, before.st_size, file.path)
        data, done = _edited(footer, plan, file.path)
        if data and in_place:
            append(path, before, footer, data)
        elif data:
            _write_local(path, before, source, start, data)
    return done


def _rewrap_remote(path: str, filesystem: pafs.FileSystem, plan: _Plan) -> _Done:
    before = filesystem.get_file_info(path)
    if before.type == pafs.FileType.NotFound:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    with filesystem.open_input_file(path) as source:
        footer, start = read_footer(source, source.size(), path)
        data, done = _edited(footer, plan, path)
        if data:
            _write_remote(filesystem, path, before, source, start, data)
    return done


def _edited(footer: Footer, plan: _Plan, path: str) -> tuple[bytes, _Done]:
    """The new FileMetaData, empty where nothing is to be done; and what that makes of the file."""
    entries = tuple((entry.key, entry.value) for entry in footer.entries)
    try:
        values, done = plan(entries)
        if not values:
            return b"", done
        data = footer.edited(values)
        _check(footer.data, data, [(key, values.get(n, value)) for n, (key, value) in enumerate(entries)])
    except (KmsDataError, ValueError) as error:
        raise _located(error, path) from None
    return data, done


def _planned(change: Change, entries: _Entries) -> tuple[dict[int, bytes], _Done]:
    """The entries that are to change, by position, with their new values; and what that makes of the file.

    Nothing here depends on the file: one with the same entries, byte for byte, has the same plan.
    """
    copies = copies_in(entries)
    if not copies:
        return {}, _Done("plain")
    records = agree(copies)
    check_names({copy.column: copy.header for copy in copies if copy.column is not None}, path="")
    headers = [(copy.column or copy.place, copy.header) for copy in copies]
    changed = change(headers)
    after = records | changed.records | changed.intended
    keys = frozenset(wrap.key for record in after.values() for wrap in record.wraps)
    if changed.intended:
        return {}, _Done("rewrapped", keys)
    if not changed.records:
        return {}, _Done("already" if changed.already else "other", keys, changed.left, headers)

    def new(copy: Copy) -> Header:
        return copy.header.under(changed.records)

    every = [(key, None if value is None else entry_with(key, value, new)) for key, value in entries]
    if agree(copies_in(every)) != after:
        raise FormatError("copies of the header would disagree afterwards")
    gone = {wrap.wrapped for record in records.values() for wrap in record.wraps}
    gone -= {wrap.wrapped for record in after.values() for wrap in record.wraps}
    _check_gone(every, [text.encode() for text in gone if len(text) >= _SHORTEST])
    values = {n: value for n, (_, value) in enumerate(every) if value is not None and value != entries[n][1]}
    return values, _Done("rewrapped", keys, changed.left)


def _check_gone(entries: Iterable[tuple[bytes, bytes | None]], old: list[bytes]) -> None:
    for key, value in entries:
        text = base64.b64decode(value or b"") if key == b"ARROW:schema" else value or b""
        if any(wrapped in text for wrapped in old):
            raise FormatError(
                f"the entry {key.decode('utf-8', 'replace')!r} of its metadata holds the wrapped key in a "
                "form that this version does not know, and would keep the old one"
            )


def _located(error: Exception, path: str) -> Exception:
    """The same error, with the file in its words and facts."""
    if isinstance(error, KmsDataError):
        return type(error)(f"{path}: {error}", **{**vars(error), "path": path})
    return ValueError(f"{path}: {error}")


def _check(before: bytes, after: bytes, entries: list[tuple[bytes, bytes | None]]) -> None:
    """Hold a new footer against what it should be, before anything is written."""
    if [(entry.key, entry.value) for entry in Footer.parse(after).entries] != entries:
        raise FormatError("the footer is damaged: it reads otherwise afterwards")
    try:
        one, two = (pq.read_metadata(pa.BufferReader(MAGIC + ending(data))) for data in (before, after))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise FormatError("the footer is damaged: Arrow cannot read it") from error
    if not one.schema.equals(two.schema) or one.num_rows != two.num_rows:
        raise FormatError("the footer is damaged: it reads otherwise afterwards")


# Files of this machine.


def _write_local(path: Path, before: os.stat_result, source: BinaryIO, start: int, data: bytes) -> None:
    """Replace a file by its pages under another footer."""
    with whole_file(path) as target:
        _copy(source, target, start)
        target.write(ending(data))
        target.flush()
        os.fsync(target.fileno())
        _keep_owner(target, before)
        unchanged(path, before)
        drop_checksum(path)


def _copy(source: BinaryIO, target: BinaryIO, count: int) -> None:
    """Copy the first bytes of a file: in the kernel, and by reference where the filesystem can."""
    done = 0
    if hasattr(os, "copy_file_range"):
        with contextlib.suppress(OSError):  # between filesystems, or of a kind that has no such call
            while done < count:
                moved = os.copy_file_range(source.fileno(), target.fileno(), count - done, done, done)
                if moved == 0:
                    break
                done += moved
    source.seek(done)
    target.seek(done)
    while done < count:
        piece = source.read(min(_PIECE, count - done))
        if not piece:
            raise OSError(errno.EIO, "the file became shorter while it was read", str(source.name))
        target.write(piece)
        done += len(piece)


def _keep_owner(target: BinaryIO, before: os.stat_result) -> None:
    """A file that root rewraps stays its owner's; anyone else can give nothing away."""
    now = os.fstat(target.fileno())
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid) and hasattr(os, "fchown"):
        with contextlib.suppress(PermissionError):
            os.fchown(target.fileno(), before.st_uid, before.st_gid)


# Files elsewhere.


def _write_remote(
    filesystem: pafs.FileSystem, path: str, before: Any, source: Any, start: int, data: bytes
) -> None:
    """Copy a file under another footer beside itself, and move it there."""
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}{'/' if folder else ''}.kmsdata-{random_bytes(8).hex()}-{name}.tmp"
    try:
        with filesystem.open_output_stream(temporary) as target:
            source.seek(0)
            left = start
            while left:
                if not (piece := source.read(min(_PIECE, left))):
                    raise OSError(errno.EIO, "the file became shorter while it was read", path)
                target.write(piece)
                left -= len(piece)
            target.write(ending(data))
        now = filesystem.get_file_info(path)
        if (now.size, now.mtime_ns) != (before.size, before.mtime_ns):
            raise OSError(errno.EBUSY, "somebody changed the file while it was rewrapped: try again", path)
        checksum = f"{folder}{'/' if folder else ''}.{name}.crc"
        if filesystem.get_file_info(checksum).type == pafs.FileType.File:
            filesystem.delete_file(checksum)
        filesystem.move(temporary, path)
    except BaseException:
        with contextlib.suppress(Exception):  # what went wrong first is what is told
            if filesystem.get_file_info(temporary).type == pafs.FileType.File:
                filesystem.delete_file(temporary)
        raise
