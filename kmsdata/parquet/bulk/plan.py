"""Where files are read and where they are written: one or many, all of them or none."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs

from kmsdata.atomic_files import sweep
from kmsdata.display.file_reports import StreamReport
from kmsdata.display.progress import Progress
from kmsdata.parquet.bulk.csv_reader import is_csv
from kmsdata.parquet.locations import FilePath, Place, files_at, stamp, whole, whole_folder

__all__ = ["Job", "Step"]

Step = Callable[[int], None]
"""Is told of rows that are done."""


@dataclass(frozen=True)
class Job:
    """Where to read and where to write.

    Attributes:
        files: what is read, by the path below the source's folder.
        target: the file or folder to write.
        single: whether it is one file.
    """

    source: Place
    files: dict[str, Place]
    target: Place
    single: bool
    overwrite: bool

    @classmethod
    def of(
        cls, source: FilePath, target: FilePath, filesystem: Any, target_filesystem: Any, *, overwrite: bool
    ) -> Job:
        """The job that these arguments mean, as `kmsdata.encrypt_parquet` takes them.

        Raises:
            FileNotFoundError: no source.
            FileExistsError: something is at the target that may not be replaced.
            ValueError: source and target lie within each other.
        """
        start = Place.of(source, filesystem)
        end = Place.of(target, filesystem if target_filesystem is None else target_filesystem)
        files, single = files_at(start)
        if single and (end.folder or end.kind == pafs.FileType.Directory):
            end = end / _target_name(next(iter(files)))
        for file in files.values():
            if end.holds(file) or file.holds(end):
                raise ValueError(f"the target {end} is, or holds, the source: name another place")
        if not single and start.holds(end):
            raise ValueError(f"the target {end} lies inside of the source: name another place")
        job = cls(start, files, end, single, overwrite)
        job._check_target()
        return job

    def _check_target(self) -> None:
        kind = self.target.kind
        if self.single:
            if is_csv(self.target.path):
                raise ValueError(f"the target {self.target} would be Parquet: name it .parquet, and not .csv")
            if kind != pafs.FileType.NotFound and not self.overwrite:
                raise FileExistsError(
                    errno.EEXIST, "there is a file already: overwrite=True replaces it", str(self.target)
                )
            return
        twice = len({_target_name(name) for name in self.files}) < len(self.files)
        if twice:
            raise ValueError("a CSV and a Parquet file of one name would become one file: rename one of them")
        if kind == pafs.FileType.NotFound:
            return
        if kind == pafs.FileType.File:
            raise FileExistsError(
                errno.EEXIST, "a folder is to be written, and there is a file", str(self.target)
            )
        try:
            there, _ = files_at(self.target)
        except FileNotFoundError:
            return
        others = there.keys() - {_target_name(name) for name in self.files}
        if not self.overwrite or others:
            why = (
                "it holds files already: overwrite=True replaces those of the same names"
                if not self.overwrite
                else f"it holds files that would not be replaced, such as {min(others)}: readers would take "
                "them for part of the dataset"
            )
            raise FileExistsError(errno.EEXIST, why, str(self.target))

    def run(
        self,
        title: str,
        rows: int,
        one: Callable[[str, Place, Any, Step], int],
        progress: bool | None,
    ) -> tuple[int, int]:
        """Write every file; returns the rows and the size of all."""
        size = done = 0
        if self.target.local:
            sweep(self.target.path, beside=True)
        with Progress(title, rows, "rows", progress) as bar, contextlib.ExitStack() as stack:

            def step(count: int) -> None:
                nonlocal done
                done += count
                bar.step(count)

            if self.single:
                opened: Callable[[str], Any] = lambda _: whole(self.target)  # noqa: E731
            else:
                opened = stack.enter_context(whole_folder(self.target))
            for name, place in self.files.items():
                before = stamp(place)
                with opened(_target_name(name)) as sink:
                    size += one(name, place, sink, step)
                    if stamp(place) != before:
                        raise OSError(errno.EBUSY, "it was changed while it was read: try again", str(place))
        return done, size

    def report(
        self, rows: int, size: int, columns: Sequence[str], calls: int, *, dry_run: bool = False
    ) -> StreamReport:
        """What was written, or would be."""
        return StreamReport(str(self.target), rows, len(self.files), size, tuple(columns), calls, dry_run)


def _target_name(name: str) -> str:
    """What a file is called in the target."""
    return name[: name.lower().rindex(".csv")] + ".parquet" if is_csv(name) else name
