"""Write the files of a plan, completely or not at all."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from kmsdata.atomic_files import sweep
from kmsdata.parquet.bulk.plan import FilePlan, Plan
from kmsdata.parquet.locations import stamp, whole, whole_folder

__all__ = ["TargetFiles", "open_targets"]


class TargetFiles:
    """The files that a plan writes.

    Attributes:
        bytes: the total size of the files written so far.
    """

    def __init__(self, open_file: Callable[..., AbstractContextManager[Any]]) -> None:
        self._open_file = open_file
        self.bytes = 0

    @contextlib.contextmanager
    def open(self, file: FilePlan) -> Iterator[Any]:
        """Open the target of a file, which is complete once the block ends.

        Raises:
            OSError: the source was changed after the plan was made.
        """
        with self._open_file(file.target, file.source) as sink:
            yield sink
            self.bytes += sink.tell()
            if stamp(file.source) != file.version:
                raise OSError(errno.EBUSY, "the file was changed while it was read (try again)", file.path)


@contextlib.contextmanager
def open_targets(plan: Plan) -> Iterator[TargetFiles]:
    """Write the files of a plan in this block: all of them, or none if it raises."""
    if plan.target.local:
        sweep(plan.target.path, beside=True, inside=True)
    if plan.single:
        yield TargetFiles(lambda _, source: whole(plan.target, source))
    else:
        first = plan.files[0].source
        with whole_folder(plan.target, first.root if first.local else None) as open_file:
            yield TargetFiles(open_file)
