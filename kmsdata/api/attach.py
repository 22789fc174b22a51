"""Attach headers to cells that lost them on a way through other software."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kmsdata.errors import (
    CallerKeyError,
    CallerTypeError,
    CallerValueError,
    FormatError,
    did_you_mean,
    located,
)
from kmsdata.frames.arguments import Columns, column_names, refuse_repeated, require
from kmsdata.frames.arrow_storage import (
    cells_in,
    concatenated,
    is_bytes_or_text,
    key_ids,
    plain_binary,
    validated,
)
from kmsdata.frames.cell import MARK
from kmsdata.frames.dtype import EncryptedArray, EncryptedDtype, EncryptedType
from kmsdata.frames.encrypted_columns import (
    Encrypted,
    arrow_values,
    encrypted_columns,
    headers_of,
    with_arrow_types,
    with_index_levels,
)
from kmsdata.keys.envelope import Header
from kmsdata.parquet.headers import dataset_headers
from kmsdata.parquet.read import FilePath

__all__ = ["attach", "attach_to_frame", "originals"]

_DataT = TypeVar("_DataT", pd.DataFrame, pa.Table)
_ROWS = 1 << 10  # rows of a file that are read at once to find its key ids


def attach(
    data: _DataT,
    like: Encrypted | FilePath | Iterable[Encrypted | FilePath],
    columns: Columns | Mapping[str, str] | None = None,
) -> _DataT:
    """Attach headers to cells that lost them, for example in pandas without kmsdata, DuckDB, Spark or CSV.

    Nothing is decrypted, and no KMS call is made. The header of each column comes from ``like``, by name;
    headers of one name in several of them are united. Columns that have a header are not changed.

    Args:
        data: a frame, whose index levels count too; an Arrow table; or a dataframe with the method
            ``__arrow_c_stream__`` (Polars, DuckDB), for which the result is an Arrow table. Its cells are
            bytes, or text as in CSV (``enc:`` and base64).
        like: what still has the headers: the path of a Parquet file or dataset, a frame, a series, an Arrow
            table, or a list of them.
        columns: name or names of the columns to attach headers to; for renamed columns a mapping of the name
            in ``data`` to the name in ``like``. None: every column of cells whose name ``like`` has.

    Returns:
        New data with the encrypted columns.

    Raises:
        KeyError: no such column, in ``data`` or in ``like``.
        FormatError: a named column contains other values than cells; cells have key ids that are not among
            those in ``like``, so its header does not belong to them; headers of one name cannot be united.
        ValueError: no column was found, and none is encrypted.

    Example:
        >>> import pandas as pd, kmsdata
        >>> enc = pd.DataFrame({"age": [36, 41]}).kms.encrypt("age", key="local://demo")
        >>> enc.to_csv("ages.csv", index=False)
        >>> kmsdata.attach(pd.read_csv("ages.csv"), enc).kms.decrypt()["age"].tolist()
        [36, 41]
    """
    table: Any = data
    if isinstance(data, pd.DataFrame):
        names = _chosen(columns, [*data.columns, *data.index.names])
        return attach_to_frame(data, originals(like, None if names is None else set(names.values())), names)
    if not isinstance(data, pa.Table):
        if not hasattr(data, "__arrow_c_stream__"):
            raise CallerTypeError(f"attach() takes a frame or an Arrow table, not {type(data).__name__}")
        table = pa.table(data)
    table = with_arrow_types(table)
    names = _chosen(columns, table.column_names)
    return _to_table(table, originals(like, None if names is None else set(names.values())), names)


@dataclass
class _Original:
    """The header of one column in ``like``, and the key ids of its cells there; None if one has no cells."""

    header: Header
    ids: set[int] | None = field(default_factory=set)


def _chosen(columns: Columns | Mapping[str, str] | None, labels: list[Any]) -> dict[str, str] | None:
    """Return the name in ``like`` of each named column; None if no column is named."""
    if columns is None:
        return None
    names = dict(columns) if isinstance(columns, Mapping) else {name: name for name in column_names(columns)}
    if not names:
        raise CallerValueError("columns= names no column. Name those to attach headers to, or leave it out")
    for name in names:
        require(labels, name)
        refuse_repeated(labels, name)
    return names


def attach_to_frame(
    frame: pd.DataFrame, originals: Mapping[str, _Original], names: dict[str, str] | None
) -> pd.DataFrame:
    """Attach headers to the cells of a frame; see `attach`.

    Args:
        frame: any frame.
        originals: the headers, from the function of this name.
        names: the name in ``originals`` of each column to attach a header to; None: by name, if it has cells.
    """
    known = encrypted_columns(frame)
    positions = {item.position for item in known if item.level is None}
    levels = {item.level for item in known if item.level is not None}
    out = frame.assign()
    index: dict[int, pd.Index[Any]] = {}
    for position, label in enumerate(frame.columns):
        if position in positions or (there := _there(label, names, originals)) is None:
            continue
        cells = _cells(label, _arrow(frame.iloc[:, position]), there, named=names is not None)
        if cells is not None:
            out.isetitem(position, EncryptedArray(cells, EncryptedDtype(there.header)))
    for level, name in enumerate(frame.index.names):
        if level in levels or (there := _there(name, names, originals)) is None:
            continue
        values = frame.index.get_level_values(level)
        cells = _cells(name, _arrow(values.to_series()), there, named=names is not None)
        if cells is not None:
            index[level] = pd.Index(EncryptedArray(cells, EncryptedDtype(there.header)), name=name)
    if index:
        out.index = with_index_levels(frame.index, index)
    if not encrypted_columns(out):
        raise _nothing(originals)
    return out


def _to_table(table: pa.Table, originals: Mapping[str, _Original], names: dict[str, str] | None) -> pa.Table:
    for position, column in enumerate(table.schema):
        if isinstance(column.type, EncryptedType):
            continue
        if (there := _there(column.name, names, originals)) is None:
            continue
        values = validated(table.column(position), column.name)
        cells = _cells(column.name, values, there, named=names is not None)
        if cells is not None:
            array = EncryptedArray(cells, EncryptedDtype(there.header)).__arrow_array__()
            table = table.set_column(position, column.with_type(array.type), array)
    if not any(isinstance(column.type, EncryptedType) for column in table.schema):
        raise _nothing(originals)
    return table


def _nothing(originals: Mapping[str, _Original]) -> ValueError:
    listed = ", ".join(map(repr, [*originals][:10]))
    return CallerValueError(
        f"the columns that the original has encrypted ({listed}) contain no cells here, or are missing. For "
        "renamed columns, pass columns={name here: name there}"
    )


def _there(label: Any, names: dict[str, str] | None, originals: Mapping[str, _Original]) -> _Original | None:
    """Return the original of a column; None if the column is left as it is."""
    if names is None:
        return originals.get(label) if isinstance(label, str) else None
    if label not in names:
        return None
    if names[label] not in originals:
        raise CallerKeyError(
            f"like has no encrypted column {names[label]!r}"
            + (did_you_mean(names[label], originals) or f": it has {', '.join(map(repr, [*originals][:10]))}")
        )
    return originals[names[label]]


def _arrow(series: pd.Series[Any]) -> pa.Array | pa.ChunkedArray | None:
    """Return a column as Arrow data, also one of nulls of any type; None if there are other values."""
    if bool(series.isna().all()):
        return pa.nulls(len(series), pa.large_binary())
    if any(isinstance(value, dict) for value in series.dropna()[:1]):
        series = series.map(_without_dict)
    values = arrow_values(series)
    if values is None:
        return None
    values = validated(values, str(series.name))
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        # What str() makes of pd.NA: pandas 2 in astype(str), every pandas in map(str).
        values = pc.if_else(pc.equal(values, str(pd.NA)), pa.scalar(None, values.type), values)
    return values


def _without_dict(value: Any) -> Any:
    """Return the text of a cell that pandas wrote to JSON from a column of objects (`df.T.to_json()`)."""
    return value["cell"] if isinstance(value, dict) and [*value] == ["cell"] else value


def _cells(
    label: Any, values: pa.Array | pa.ChunkedArray | None, original: _Original, *, named: bool
) -> pa.Array | None:
    """Return a column as cells; None if it contains other values and was not named."""
    cells = None
    if values is not None and values.null_count == len(values):
        values = pa.nulls(len(values), pa.large_binary())
    if values is not None and is_bytes_or_text(values.type):
        parts = values.chunks if isinstance(values, pa.ChunkedArray) else [values]
        found = [part for chunk in parts if (part := cells_in(chunk)) is not None]
        if len(found) == len(parts):
            cells = concatenated(found or [pa.array([], pa.large_binary())])
    if cells is None:
        if named:
            raise FormatError(
                f"column {label!r} does not contain cells: a value is neither bytes nor 'enc:' text of the "
                "form of a cell. It was changed or decrypted, or is another column",
                column=str(label),
            )
        if values is not None and (some := _like_cells(values)):
            # Left alone, the column would be decrypted neither with the others nor with an error.
            every = len(values) - values.null_count
            raise FormatError(
                f"column {label!r} is encrypted in the original, but not all of its {every:,} values are "
                f"cells here: {some:,} begin like cells, or like what other software writes. Restore "
                "the column from a copy (a CSV file contains cells only if kmsdata was imported when it was "
                "written), or name the other columns with columns=",
                column=str(label),
            )
        return None
    foreign = set() if original.ids is None else key_ids(cells) - original.ids
    if foreign:
        raise FormatError(
            f"column {label!r} has cells with {len(foreign)} key ids that no cell of this column in like "
            "has: the header does not belong to them. Pass the data that these cells came from (several in "
            "a list), or columns={name here: name there} for a renamed column",
            column=str(label),
            field="key id",
        )
    return cells


def _like_cells(values: pa.Array | pa.ChunkedArray) -> int:
    """Count the values that begin like cells, or like the text that other software makes of their bytes."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        values, kind = values.cast(kind.value_type), kind.value_type
    if not is_bytes_or_text(kind):
        return 0
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    starts: list[Any] = [MARK, "b'\\x01", 'b"\\x01', "\\x01"] if text else [b"\x01"]
    if not text:
        values = values.cast(pa.large_binary())
    return sum(int(pc.sum(pc.starts_with(values, start)).as_py() or 0) for start in starts)


def originals(
    like: Encrypted | FilePath | Iterable[Encrypted | FilePath], wanted: set[str] | None
) -> dict[str, _Original]:
    """Read the headers of ``like`` by column, united, and the key ids of the cells."""
    single = isinstance(like, (str, os.PathLike, pd.DataFrame, pd.Series, pa.Table))
    sources: list[Any] = [like] if single else list(like)  # type: ignore[arg-type]
    originals: dict[str, _Original] = {}
    for source in sources:
        for name, header, ids in _headers(source, wanted):
            known = originals.setdefault(name, _Original(header))
            both = known.header.union(header)
            if both is None:
                raise FormatError(
                    f"the headers of column {name!r} in like cannot be united: they have another name, "
                    "domain or type under one data key. Pass only what the cells came from",
                    column=name,
                )
            known.header = both
            known.ids = None if known.ids is None or not ids else known.ids | ids
    if not originals and wanted is None:
        raise FormatError("nothing in like is encrypted: it has no kmsdata header")
    return originals


def _headers(source: Any, wanted: set[str] | None) -> Iterable[tuple[str, Header, set[int]]]:
    """Yield name, header and key ids of each encrypted column of one source."""
    if isinstance(source, (str, os.PathLike)):
        for path, file in dataset_headers(source, None, wanted).items():
            for name, header in file.headers.items():
                yield name, header, _ids_in_file(file.fragment, name, header, path)
        return
    if isinstance(source, pa.Table):
        source = with_arrow_types(source)
        for name, header in headers_of(source).items():
            yield name, header, _ids(plain_binary(source.column(name)))
        return
    headers = headers_of(source)  # TypeError for what is neither a frame nor a series
    frame = source.to_frame() if isinstance(source, pd.Series) else source
    for item in encrypted_columns(frame):
        yield str(item.name), headers[str(item.name)], _ids(item.parts[0][1].storage)


def _ids(storage: pa.Array) -> set[int]:
    cells = cells_in(storage)
    return set() if cells is None else key_ids(cells)


def _ids_in_file(fragment: Any, name: str, header: Header, path: str) -> set[int]:
    """Read the key ids of a column of a file.

    A column has one key id for each object of its header, and mostly there is one: then the first value is
    enough. The column is read only until all are found.
    """
    found: set[int] = set()
    try:
        with fragment.open() as source:
            reader = pq.ParquetFile(
                source,
                read_dictionary=[name],
                buffer_size=1 << 20,
                pre_buffer=False,
                page_checksum_verification=True,
            )
            for batch in reader.iter_batches(_ROWS, columns=[name], use_threads=False):
                column = batch.column(0)
                if isinstance(column.type, pa.BaseExtensionType):
                    column = column.storage
                if pa.types.is_dictionary(column.type):
                    column = column.dictionary.take(column.indices.unique().drop_null())
                found |= _ids(column)
                if len(found) >= len(header.columns):
                    break
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise located(
            FormatError(f"column {name!r} cannot be read: the file is damaged", column=name), path, path=path
        ) from None
    return found
