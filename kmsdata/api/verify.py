"""Authenticate every encrypted cell of frames, tables and files, without returning plaintext."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, cast

import pandas as pd
import pyarrow as pa

from kmsdata.display.verification import Verification
from kmsdata.errors import CallerTypeError, FormatError
from kmsdata.frames.arguments import Columns, required_names
from kmsdata.frames.arrow.sources import is_arrow, native, tables_of
from kmsdata.frames.encrypted_columns import (
    Encrypted,
    columns_without_header,
    encrypted_columns,
    lost_header,
)
from kmsdata.frames.key_argument import resolve_key
from kmsdata.frames.verify import Findings, verify_cells, verify_tables
from kmsdata.keys.session import Key
from kmsdata.keys.unwrap import DataKeys
from kmsdata.parquet.bulk.verify import verify_path
from kmsdata.parquet.locations import Readable, is_readable

__all__ = ["verify"]


def verify(
    x: Encrypted | Readable,
    *,
    encrypted: Columns | None = None,
    key: Key | Encrypted | None = None,
    context: Mapping[str, str] | None = None,
    filesystem: Any = None,
    progress: bool | None = None,
) -> Verification:
    """Authenticate every cell of every encrypted column. No plaintext is returned or kept.

    Failures are reported, not raised, so that one damaged file does not hide the results of the others.
    Files are read in batches of one column. The copies of a file's headers are compared too: the types of
    its columns, and its key-value metadata.

    Args:
        x: a frame, series, Arrow table, or path of a Parquet file or dataset: a file, a folder, a
            pattern such as ``data/*.parquet``, or a list of these; or an open file, such as `io.BytesIO`,
            which is read into memory; or any object with ``__arrow_c_stream__``, such as a frame of Polars
            or a `pyarrow.RecordBatchReader`, which is read to its end, batch by batch.
        encrypted: name or names of columns that must be encrypted in every file. Without it, a column that
            looks like cells without their header is a failure, but one that was replaced by other values
            counts as a plain column.
        key: use only these keys: a URI, several URIs, or a `DataKey`; None: as for decryption.
        context: pairs that the authenticated context must contain.
        filesystem: for a path: pyarrow or fsspec filesystem; otherwise inferred from the path.
        progress: show a progress bar; None: in a terminal or notebook, after one second.

    Returns:
        A report that displays as text or HTML. ``.ok`` and ``.exit_status`` are for pipelines; ``.failures``
        names files, columns, row groups and rows. The report is not ok if a key is refused, since its
        columns are not verified, or if no column is encrypted.

    Raises:
        FileNotFoundError: there is no such file.

    Example:
        >>> import pandas as pd, kmsdata
        >>> enc = pd.DataFrame({"age": [36, 41, None]}).kms.encrypt("age", key="local://demo")
        >>> found = kmsdata.verify(enc, encrypted="age")
        >>> found.ok, found.columns[0].cells, found.columns[0].nulls
        (True, 2, 1)
    """
    findings = Findings(DataKeys(resolve_key(key), context), required_names(encrypted))
    if is_readable(x):
        return verify_path(cast("Readable", x), filesystem, findings, progress)
    x = native(x)
    if is_arrow(x):
        streams = isinstance(x, pa.RecordBatchReader)
        what = "stream" if streams else "table"
        try:
            schema, tables = tables_of(x, "verify()")
        except FormatError as error:
            findings.fail(str(error), error.column)
            return findings.result(what, 0)
        total = x.num_rows if isinstance(x, (pa.Table, pa.RecordBatch)) else None
        return verify_tables(what, schema, tables, findings, progress, total)
    if isinstance(x, (pd.DataFrame, pd.Series)):
        frame = x.to_frame() if isinstance(x, pd.Series) else x
        known = encrypted_columns(frame)
        if not findings.wanted:
            _fail_lost(findings, columns_without_header(frame, known))
        places: dict[str, list[Any]] = {}
        for item in known:  # several columns may have one name
            places.setdefault(str(item.name), []).extend(item.parts)
        labels = [*map(str, frame.columns), *map(str, frame.index.names)]
        what = "series" if isinstance(x, pd.Series) else "frame"
        return verify_cells(what, len(frame), places, labels, findings, progress)
    raise CallerTypeError("verify() takes a frame, a series, an Arrow table, a path, or an open file")


def _fail_lost(findings: Findings, names: Iterable[Hashable]) -> None:
    """Record the columns that look like cells without their header."""
    for name in names:
        findings.fail(str(lost_header(name)), str(name))
