"""Change a stream of Arrow batches, one batch at a time."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from kmsdata.errors import CallerError, FormatError, KmsDataError, located

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
        table = None
        try:
            batch = self._source.read_next_batch()
        except StopIteration:
            self._close()
            if self._at_end is not None:
                self._at_end()
            return
        except BaseException as error:
            self._close(failed=True)
            error.add_note(f"The source of the stream failed after {self._rows:,} rows.")
            raise
        try:
            if not batch.schema.equals(self._source.schema):
                raise FormatError("the batch has another schema than the stream")
            table = pa.Table.from_batches([batch])
            made = self._change(table, self._rows) if self._change else table
            if not made.schema.equals(self._schema):
                raise FormatError("the batch has other types than the first ones")
            self._ready = made.to_batches()[::1]
        except BaseException as error:  # noqa: BLE001 - raised again, without the frames below
            # No frame below this one, and no variable here, may keep values of the batch.
            rows = len(batch)
            del batch
            table = made = None
            self._close(failed=True)
            raise _placed(error, self._number, self._rows, rows) from None
        self._number += 1
        self._rows += len(batch)

    def _close(self, *, failed: bool = False) -> None:
        self._failed, self._change, self._ready = failed, None, []
        self._source.close()


def _placed(error: BaseException, number: int, first: int, rows: int) -> BaseException:
    """Return an error without its traceback, and with the place of the batch in the stream."""
    where = f"batch {number:,} of the stream (rows {first:,} to {first + rows - 1:,})"
    if isinstance(error, KmsDataError):
        error = located(error, where)
    elif isinstance(error, CallerError) and not isinstance(error, KeyboardInterrupt):
        error = type(error)(f"{where}: {error}")
    else:
        error.add_note(f"This was in {where}.")
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
