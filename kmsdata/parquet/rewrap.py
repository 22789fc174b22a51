"""Rewrap the data keys of files: write new footers, and copy the pages unchanged.

A file is replaced as a whole (copy, fsync, rename). A process that opens it at any time, also after a crash,
sees either the old file or the new one.
"""

from __future__ import annotations

import base64
import contextlib
import contextvars
import errno
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, TypeAlias

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from kmsdata.atomic_files import sweep
from kmsdata.display.file_reports import RewrapReport
from kmsdata.display.progress import Progress
from kmsdata.errors import CallerValueError, FormatError, KmsDataError, located
from kmsdata.frames.encrypted_columns import check_names
from kmsdata.keys.envelope import Header
from kmsdata.keys.rewrap import Change, not_meant
from kmsdata.keys.usage import usage
from kmsdata.parquet.footer import MAGIC, Footer, ending, read_footer
from kmsdata.parquet.header_copies import Copy, agree, copies_in, entry_with
from kmsdata.parquet.locations import (
    SIDECARS,
    Paths,
    Place,
    Refused,
    dataset_files,
    folders_at,
    is_sidecar,
    open_local,
    path_list,
    paths_text,
    skipped_note,
    stamp,
    whole,
    without_credentials,
)

_PIECE = 8 << 20  # bytes copied at a time
_SHORTEST = 16  # characters: shorter wrapped keys (of test providers) may be found in metadata by chance
_PLANS = 16  # cached plans, for files with the same metadata
_Entries: TypeAlias = "tuple[tuple[bytes, bytes | None], ...]"
_Plan: TypeAlias = "Callable[[_Entries], tuple[dict[int, bytes], _Done]]"


@dataclass(frozen=True)
class _Done:
    """The result for one file, whose state is ``rewrapped``, ``already``, ``other`` or ``plain``."""

    state: str
    keys: frozenset[str] = frozenset()
    left: tuple[str, ...] = ()
    headers: list[tuple[str, Header]] = field(default_factory=list, repr=False)


def rewrap_path(path: Paths, change: Change, filesystem: Any, progress: bool | None) -> RewrapReport:
    """Wrap the data keys of the files at a path under another master key; see `kmsdata.rewrap`."""
    refused: Refused = {}
    text = paths_text(path)
    skipped: list[str] = []
    files, single = dataset_files(path, filesystem, sidecars=True, refused=refused, skipped=skipped)
    # The files of a dataset often have the same metadata: parse, check and change it once.
    plan: _Plan = functools.lru_cache(_PLANS)(functools.partial(_planned, change))
    before = usage().calls
    if single:
        ((name, place),) = files.items()
        if place.local and not change.dry_run:
            sweep(place.path, beside=True)
        done = _rewrap_file(name, place, plan)
        if done.state == "plain":
            raise FormatError(
                f"{text}: nothing in it is encrypted: the file has no kmsdata header", path=text
            )
        if done.state == "other":
            raise not_meant(done.headers)
        return _counted(_report(text, [done], {}), change, before)
    files |= _sidecars_of(files)
    for one in path_list(path):
        start = Place.of(one, filesystem)
        _prepare(without_credentials(str(one)), start, dry_run=change.dry_run)
        for root in {file.root for file in files.values() if file.root} - {start.path}:  # of a pattern
            _prepare(root, replace(start, path=root), dry_run=change.dry_run)
    results: list[_Done] = []
    failed: dict[str, Exception] = dict(refused)
    with Progress("rewrap", len(files), "files", progress) as bar, ThreadPoolExecutor() as threads:
        # Threads do not inherit context variables. Copy the context, so that a block of kmsdata.using()
        # also applies in them; one copy each, as a context can run in only one thread at a time.
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
        return _counted(_judged(text, results, failed, skipped_note(skipped)), change, before)
    except KmsDataError as error:
        if isinstance(report := getattr(error, "report", None), RewrapReport):
            error.with_facts(report=_counted(report, change, before))
        raise


def _sidecars_of(files: Mapping[str, Place]) -> dict[str, Place]:
    """Find ``_metadata`` and ``_common_metadata`` beside and above files: they contain wrapped keys too.

    A pattern such as ``*.parquet`` does not match them. Above, only the folders inside a pattern count.
    """
    folders: dict[str, Place] = {}
    for name, place in files.items():
        root = place.root if place.root is not None else place.path.rpartition("/")[0]
        while place.path.strip("/") != root.strip("/"):
            name, place = name.rpartition("/")[0], replace(place, path=place.path.rpartition("/")[0])
            folders[name] = replace(place, root=root)
    found = {}
    for name, folder in folders.items():
        for sidecar in SIDECARS:
            if (folder / sidecar).kind == pafs.FileType.File:
                found[f"{name}/{sidecar}" if name else sidecar] = folder / sidecar
    return found


def _counted(report: RewrapReport, change: Change, before: int) -> RewrapReport:
    """Add the number of KMS calls to a report: those made, or those that a dry run expects."""
    calls = change.calls if change.dry_run else usage().calls - before
    return replace(report, kms_calls=calls, dry_run=change.dry_run)


def _judged(
    path: str, results: list[_Done], failed: dict[str, Exception], notes: tuple[str, ...]
) -> RewrapReport:
    """Return the report of a dataset; raise if a file failed, or if there was nothing to rewrap."""
    report = _report(path, results, {name: _said(error) for name, error in sorted(failed.items())})
    report = replace(report, notes=notes)
    if failed:
        name, first = min(failed.items())
        said = _said(first)
        raise KmsDataError(
            f"{len(failed)} of {len(failed) + len(results)} files in {path} could not be rewrapped, all "
            f"others were. The first error: {said if name in said else f'{name}: {said}'}",
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


def _prepare(path: str, folder: Place, *, dry_run: bool) -> None:
    """Raise ValueError if a folder is a Delta table; remove temporary files that killed processes left."""
    for relative in folders_at(folder):
        *parents, name = relative.split("/")
        if name == "_delta_log" and not any(parent.startswith((".", "_")) for parent in parents):
            table = "/".join([path.rstrip("/"), *parents])
            raise CallerValueError(
                f"{table} is a Delta table: its log records the size of each file, and readers rely on that. "
                "Rewrap a copy of the files, or write a new table"
            )
    if folder.local and not dry_run:
        sweep(folder.path, beside=True, inside=True)


def _rewrap_file(name: str, place: Place, plan: _Plan) -> _Done:
    before = stamp(place)
    with _opened(place) as source:
        footer, start = read_footer(source, source.seek(0, os.SEEK_END), name)
        data, done = _edited(footer, plan, name)
        if data:
            _replace(name, place, before, source, start, data)
    return done


def _opened(place: Place) -> Any:
    """Open a file for reading; a local one as a Python file, whose descriptor copy_file_range needs."""
    return open_local(place) if place.local else place.filesystem.open_input_file(place.path)


def _edited(footer: Footer, plan: _Plan, path: str) -> tuple[bytes, _Done]:
    """Return the new FileMetaData (empty: nothing to change), and the result for the file."""
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
        raise CallerValueError(f"{path}: {error}") from None
    return data, done


def _planned(change: Change, entries: _Entries) -> tuple[dict[int, bytes], _Done]:
    """Return the new values of entries, by position, and the result for the file.

    This depends on nothing else in the file: files whose entries are equal byte for byte share one plan.
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
        raise FormatError("the copies of the header would differ afterwards")
    gone = {wrap.wrapped for record in records.values() for wrap in record.wraps}
    gone -= {wrap.wrapped for record in after.values() for wrap in record.wraps}
    _check_gone(every, [text.encode() for text in gone if len(text) >= _SHORTEST])
    values = {n: value for n, (_, value) in enumerate(every) if value is not None and value != entries[n][1]}
    return values, _Done("rewrapped", keys, changed.left)


def _check_gone(entries: Iterable[tuple[bytes, bytes | None]], old: list[bytes]) -> None:
    # An old wrapped key that is left in an entry could still be unwrapped with the old master key.
    for key, value in entries:
        text = base64.b64decode(value or b"") if key == b"ARROW:schema" else value or b""
        if any(wrapped in text for wrapped in old):
            raise FormatError(
                f"the metadata entry {key.decode('utf-8', 'replace')!r} contains the wrapped key in a form "
                "that this version of kmsdata does not know. It would keep the old wrapped key"
            )


def _check(before: bytes, after: bytes, entries: list[tuple[bytes, bytes | None]]) -> None:
    """Raise FormatError unless a new footer has the expected entries, and Arrow reads the rest as before."""
    if [(entry.key, entry.value) for entry in Footer.parse(after).entries] != entries:
        raise FormatError("the footer is damaged: it would be read differently after the change")
    try:
        one, two = (pq.read_metadata(pa.BufferReader(MAGIC + ending(data))) for data in (before, after))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise FormatError("the footer is damaged: Arrow cannot read it") from error
    if not one.schema.equals(two.schema) or one.num_rows != two.num_rows:
        raise FormatError("the footer is damaged: it would be read differently after the change")


def _replace(name: str, place: Place, before: tuple[Any, ...], source: Any, start: int, data: bytes) -> None:
    """Replace a file by its pages and a new footer, completely or not at all.

    Args:
        name: the file's name in messages.
        place: its location.
        before: its stamp when it was opened.
        source: the file, open for reading.
        start: the number of bytes to keep, from the start.
        data: the new FileMetaData.

    Raises:
        OSError: the file cannot be written, or another process changed it meanwhile; it is then unchanged.
    """
    with whole(place) as target:
        _copy(source, target, start, name)
        target.write(ending(data))
        if place.local:
            # fsync is slow. It comes before the check of the stamp, so that little time is left between the
            # check and the rename, in which another process could change the file unnoticed.
            target.flush()
            os.fsync(target.fileno())
            _keep_owner(target, os.fstat(source.fileno()))
        if stamp(place) != before:
            raise OSError(errno.EBUSY, "the file was changed while it was rewrapped (try again)", name)
        _drop_checksum(place)


def _copy(source: Any, target: Any, count: int, name: str) -> None:
    """Copy the first bytes of a file, in the kernel where possible: some filesystems then share blocks."""
    done = 0
    if hasattr(os, "copy_file_range"):
        # Remote files have no descriptor, and the call fails between some filesystems. The loop below copies
        # what is left, so these errors are no failure.
        with contextlib.suppress(OSError):
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
    """Remove Hadoop's checksum file, if there is one: with the new footer it would be wrong."""
    path = os.path.realpath(place.path) if place.local else place.path
    folder, slash, name = path.rpartition("/")
    checksum = replace(place, path=f"{folder}{slash}.{name}.crc")
    if checksum.kind == pafs.FileType.File:
        place.filesystem.delete_file(checksum.path)


def _keep_owner(target: BinaryIO, before: os.stat_result) -> None:
    """Give the new file the owner of the old one; only root can, others keep the file as their own."""
    now = os.fstat(target.fileno())
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid) and hasattr(os, "fchown"):
        with contextlib.suppress(PermissionError):
            os.fchown(target.fileno(), before.st_uid, before.st_gid)
