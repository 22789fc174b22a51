"""Change a stream of Arrow batches, one batch at a time."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from kmsdata.errors import CallerError, FormatError, KmsDataError, located
from kmsdata.frames.arrow.sources import next_batch

__all__ = ["changed_stream"]

Change = Callable[[pa.Table, int], pa.Table]


def changed_stream(
    source: pa.RecordBatchReader,
    schema: pa.Schema,
    change: Change,
    at_end: Callable[[], None] | None = None,
) -> pa.RecordBatchReader:
    """Return a reader that reads a batch of another reader when one is read from it, and changes it.

    After an error, each further read is an error too: a stream that failed never looks like one that ended.
    At the end, and after an error, the source is closed.

    Args:
        source: the reader to read from.
        schema: the schema of the changed batches.
        change: returns the table of a changed batch. It is called with that of the batch and the number of
            rows before it.
        at_end: called after the last batch.
    """
    return pa.RecordBatchReader.from_batches(schema, _Batches(source, schema, change, at_end))


class _Batches:
    """The changed batches.

    It is not a generator: the frame of a generator would keep each batch until the next one is made, so that
    an error there would show it in its traceback.
    """

    def __init__(
        self,
        source: pa.RecordBatchReader,
        schema: pa.Schema,
        change: Change,
        at_end: Callable[[], None] | None,
    ) -> None:
        self._source, self._schema, self._at_end = source, schema, at_end
        self._change: Change | None = change
        self._ready: list[pa.RecordBatch] = []
        self._number = self._rows = 0
        self._failed = False

    def __iter__(self) -> _Batches:
        return self

    def __next__(self) -> pa.RecordBatch:
        if self._failed:
            raise KmsDataError(
                f"the stream failed after {self._rows:,} rows, so it has no further ones. Read it from its "
                "source again"
            )
        while not self._ready:
            if self._change is None:
                raise StopIteration
            self._read()
        return self._ready.pop(0)

    def _read(self) -> None:
        """Read and change one batch."""
        try:
            batch = next_batch(self._source, self._rows)
        except BaseException:
            self._close(failed=True)
            raise
        if batch is None:
            self._close()
            if self._at_end is not None:
                self._at_end()
            return
        rows, failure = len(batch), None
        try:
            made = self._change(pa.Table.from_batches([batch]), self._rows) if self._change else None
            if made is None or not made.schema.equals(self._schema):
                raise FormatError("the batch has other types than the others")
            self._ready = made.to_batches()
        except BaseException as error:  # noqa: BLE001 - raised below, where the original is not its context
            failure = _placed(error, self._number, self._rows, rows)
        if failure is not None:
            # No frame of the error, and no variable here, may keep values of the batch.
            batch = made = None
            self._close(failed=True)
            raise failure
        self._number += 1
        self._rows += rows

    def _close(self, *, failed: bool = False) -> None:
        source, self._source = self._source, None
        self._failed, self._change, self._ready = failed, None, []
        source.close()


def _placed(error: BaseException, number: int, first: int, rows: int) -> BaseException:
    """Return an error without its traceback, and with the place of the batch in the stream."""
    where = f"batch {number:,} of the stream (rows {first:,} to {first + rows - 1:,})"
    if isinstance(error, KmsDataError):
        error = located(error, where)
    elif isinstance(error, CallerError) and not isinstance(error, KeyboardInterrupt):
        error = type(error)(f"{where}: {error}")
    else:
        if isinstance(error, StopIteration):  # it would look like the end of the stream
            error = RuntimeError("StopIteration")
        error.add_note(f"This was in {where}.")
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
