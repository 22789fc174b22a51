"""Other master keys for files: only their footers are written anew, the pages are copied as they are.

A file is replaced whole (copy, fsync, rename), so that whoever opens it, at any time, after any crash, sees
the old one or the new one.
"""

from __future__ import annotations

import base64
import contextlib
import contextvars
import errno
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from kmsdata.atomic_files import sweep
from kmsdata.display.file_reports import RewrapReport
from kmsdata.display.progress import Progress
from kmsdata.errors import FormatError, KmsDataError, located
from kmsdata.frames.encrypted_columns import check_names
from kmsdata.keys.envelope import Header
from kmsdata.keys.rewrap import Change, not_meant
from kmsdata.keys.usage import usage
from kmsdata.parquet.footer import MAGIC, Footer, ending, read_footer
from kmsdata.parquet.header_copies import Copy, agree, copies_in, entry_with
from kmsdata.parquet.locations import FilePath, Place, dataset_files, folders_at, is_sidecar, stamp, whole

_PIECE = 8 << 20  # bytes copied at a time
_SHORTEST = 16  # letters of a wrapped key that are looked for as they stand
_PLANS = 16  # kept for files with the same metadata
_Entries: TypeAlias = "tuple[tuple[bytes, bytes | None], ...]"
_Plan: TypeAlias = "Callable[[_Entries], tuple[dict[int, bytes], _Done]]"


@dataclass(frozen=True)
class _Done:
    """What became of a file: ``rewrapped``, ``already``, ``other`` or ``plain``."""

    state: str
    keys: frozenset[str] = frozenset()
    left: tuple[str, ...] = ()
    headers: list[tuple[str, Header]] = field(default_factory=list, repr=False)


def rewrap_path(path: FilePath, change: Change, filesystem: Any, progress: bool | None) -> RewrapReport:
    """Put the files at a path under another master key; see `kmsdata.rewrap`."""
    files, single = dataset_files(path, filesystem, sidecars=True)
    # The files of a dataset often have the same metadata: it is read, checked and changed once.
    plan: _Plan = functools.lru_cache(_PLANS)(functools.partial(_planned, change))
    before = usage().calls
    if single:
        ((name, place),) = files.items()
        done = _rewrap_file(name, place, plan)
        if done.state == "plain":
            raise FormatError(f"{path}: nothing in it is encrypted: it has no kmsdata header", path=str(path))
        if done.state == "other":
            raise not_meant(done.headers)
        return _counted(_report(str(path), [done], {}), change, before)
    _prepare(path, Place.of(path, filesystem), dry_run=change.dry_run)
    results: list[_Done] = []
    failed: dict[str, Exception] = {}
    with Progress("rewrap", len(files), "files", progress) as bar, ThreadPoolExecutor() as threads:
        # A context of its own for each: kmsdata.use() in a with block holds for them too.
        running = {
            threads.submit(contextvars.copy_context().run, _rewrap_file, name, files[name], plan): name
            for name in sorted(files, key=lambda name: (is_sidecar(name), name))
        }
        try:
            for future in as_completed(running):
                try:
                    results.append(future.result())
                except (KmsDataError, OSError, ValueError, pa.ArrowException) as error:
                    failed[running[future]] = error
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


def _prepare(path: FilePath, folder: Place, *, dry_run: bool) -> None:
    """Refuse a folder that is no plain dataset, and remove what killed runs have left in it."""
    folders = folders_at(folder)
    if any(inside.path.rpartition("/")[2] == "_delta_log" for inside in folders):
        raise ValueError(
            f"{path} is a Delta table, whose log records the size of each file, and readers go by it: "
            "rewrap a copy of its files, or write the table anew"
        )
    if folder.local and not dry_run:
        for inside in folders:
            sweep(inside.path)


def _rewrap_file(name: str, place: Place, plan: _Plan) -> _Done:
    before = stamp(place)
    with _opened(place) as source:
        footer, start = read_footer(source, source.seek(0, os.SEEK_END), name)
        data, done = _edited(footer, plan, name)
        if data:
            _replace(name, place, before, source, start, data)
    return done


def _opened(place: Place) -> Any:
    """The file, open for reading; a local one in a way in which the kernel can copy it."""
    return Path(place.path).open("rb") if place.local else place.filesystem.open_input_file(place.path)


def _edited(footer: Footer, plan: _Plan, path: str) -> tuple[bytes, _Done]:
    """The new FileMetaData, empty where nothing is to be done; and what that makes of the file."""
    entries = tuple((entry.key, entry.value) for entry in footer.entries)
    try:
        values, done = plan(entries)
        if not values:
            return b"", done
        data = footer.edited(values)
        _check(footer.data, data, [(key, values.get(n, value)) for n, (key, value) in enumerate(entries)])
    except KmsDataError as error:
        raise located(error, path, path=path) from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
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


def _replace(name: str, place: Place, before: tuple[Any, ...], source: Any, start: int, data: bytes) -> None:
    """Replace a file by its pages under another footer, whole or not at all.

    Args:
        name: what messages call the file.
        place: where it is.
        before: its stamp when it was opened.
        source: the file, open for reading.
        start: how many bytes of it to keep.
        data: the new FileMetaData.

    Raises:
        OSError: it cannot be written, or somebody changed it meanwhile; it is then as it was.
    """
    with whole(place) as target:
        _copy(source, target, start, name)
        target.write(ending(data))
        if (
            place.local
        ):  # synced before the last look at the file, which leaves others little time to change it
            target.flush()
            os.fsync(target.fileno())
            _keep_owner(target, os.fstat(source.fileno()))
        if stamp(place) != before:
            raise OSError(errno.EBUSY, "somebody changed the file while it was rewrapped: try again", name)
        _drop_checksum(place)


def _copy(source: Any, target: Any, count: int, name: str) -> None:
    """Copy the first bytes of a file: in the kernel, and by reference where the filesystem can."""
    done = 0
    if hasattr(os, "copy_file_range"):
        with contextlib.suppress(OSError):  # not local, between filesystems, or of a kind without such a call
            while done < count:
                moved = os.copy_file_range(source.fileno(), target.fileno(), count - done, done, done)
                if moved == 0:
                    break
                done += moved
    source.seek(done)
    if done:
        target.seek(done)
    while done < count:
        piece = source.read(min(_PIECE, count - done))
        if not piece:
            raise OSError(errno.EIO, "the file became shorter while it was read", name)
        target.write(piece)
        done += len(piece)


def _drop_checksum(place: Place) -> None:
    """Remove the checksum that Hadoop keeps beside a file before it is wrong; none is no error."""
    path = os.path.realpath(place.path) if place.local else place.path
    folder, slash, name = path.rpartition("/")
    checksum = replace(place, path=f"{folder}{slash}.{name}.crc")
    if checksum.kind == pafs.FileType.File:
        place.filesystem.delete_file(checksum.path)


def _keep_owner(target: BinaryIO, before: os.stat_result) -> None:
    """A file that root rewraps stays its owner's; anyone else can give nothing away."""
    now = os.fstat(target.fileno())
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid) and hasattr(os, "fchown"):
        with contextlib.suppress(PermissionError):
            os.fchown(target.fileno(), before.st_uid, before.st_gid)
