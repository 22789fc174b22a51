"""Search ciphertext for equal values: encrypt the values deterministically, and compare cells.

A match is authentic, since without the data key an attacker cannot make a cell that equals the one made here.
Other cells are not authenticated: a changed cell does not match, and is noticed only when it is decrypted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from kmsdata import codec
from kmsdata.ciphers import siv
from kmsdata.ciphers.cells import Bools
from kmsdata.errors import CallerTypeError
from kmsdata.frames.arrow_storage import binary, concatenated, to_storage
from kmsdata.frames.cell import Cell, is_null
from kmsdata.frames.column import check_key_ids, header_key_ids
from kmsdata.frames.dtype import EncryptedDtype, EncryptedType
from kmsdata.frames.encrypted_columns import Encrypted, encrypted_column
from kmsdata.frames.key_argument import resolve_key
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import Header
from kmsdata.keys.session import Key
from kmsdata.keys.unwrap import open_keys

__all__ = ["Literals", "Search", "isin", "literals", "plan_search", "require_deterministic"]


@dataclass(frozen=True, repr=False)
class Literals:
    """The values to search for in a column, as cells.

    Attributes:
        cells: large binary, unique, without nulls.
        null: whether to search for null as well.
        misfit: an error message about a value that such a column cannot contain; None if all fit.
        anything: whether the type is that of an object column, inferred from its values: if the column has no
            values, the type is unknown.
    """

    cells: pa.Array
    null: bool = False
    misfit: str | None = None
    anything: bool = False

    def among(self, storage: pa.Array) -> Bools:
        """Return bool[n]: which of these cells (of any binary type) match."""
        if not pa.types.is_large_binary(storage.type):
            storage = storage.cast(pa.large_binary())
        found = pc.is_in(storage, self.cells)
        if self.null:
            found = pc.or_(found, storage.is_null())
        return found.to_numpy(zero_copy_only=False)


def literals(header: Header, data_keys: Mapping[bytes, DataKey], values: Any, column: str) -> Literals:
    """Encrypt values as cells of a deterministic column.

    Args:
        header: the column's, authenticated; it may have several objects, and several types.
        data_keys: by commitment, unwrapped and checked.
        values: one value, or any list of values: Series, Index, array, Arrow array, set.
        column: its name, for errors.
    """
    wanted, null = _listed(values, column)
    made: list[pa.Array] = [binary([])]
    misfits: list[dict[int, str]] = []
    for item in header.columns:
        plain, wrong = codec.literals(item.codec_type, str(item.kind), wanted, null=null)
        key = data_keys[item.data_key].cell_key(item)
        made.append(to_storage(siv.seal_cells(key.key, key.prefix, plain)).cast(pa.large_binary()))
        misfits.append(wrong)
    misfit = None
    if nowhere := set(misfits[0]).intersection(*misfits[1:]):
        types = " | ".join(dict.fromkeys(codec.label(item.type) for item in header.columns))
        misfit = f"column {column!r} ({types}) cannot contain the value to find: {misfits[0][min(nowhere)]}"
    anything = all(_is_of_objects(item.type) for item in header.columns)
    return Literals(concatenated(made).unique(), null, misfit, anything)


def _is_of_objects(type_: dict[str, Any]) -> bool:
    pandas = type_.get("pandas", {})
    return "object" in pandas.get("category", {}).get("values", {}).get("pandas", pandas)


def _check_fit(looked_for: Iterable[tuple[Literals, bool]]) -> None:
    """Raise TypeError if a value fits no part of a column, which is probably a mistake.

    Args:
        looked_for: for each part, the values to find in it, and whether the part has any cells.
    """
    parts = [part for part, cells in looked_for if cells or not part.anything]
    if parts and all(part.misfit for part in parts):
        raise CallerTypeError(parts[0].misfit)


def require_deterministic(header: Header, column: str) -> None:
    """Raise TypeError if the column is randomised."""
    if not all(item.deterministic for item in header.columns):
        raise CallerTypeError(
            f"column {column!r} is randomised: equal values have different cells, so it cannot be searched. "
            f"Encrypt it with deterministic=[{column!r}], or decrypt it first"
        )


def isin(
    frame: pd.DataFrame, column: str, values: Any, *, key: Key | Encrypted | None = None
) -> pd.Series[bool]:
    """Search a column for values; see `kmsdata.api.accessor.FrameAccessor.isin`."""
    place = encrypted_column(frame, column)
    for header in place.headers:
        require_deterministic(header, column)
    if place.others is not None and not pd.isna(place.others[~_covered(place.parts, len(frame))]).all():
        raise CallerTypeError(f"column {column!r} contains plain values as well as cells. Decrypt it first")
    keys = open_keys([(column, header) for header in place.headers], resolve_key(key), None)
    wanted = [literals(header, keys, values, column) for header in place.headers]
    _check_fit((part, not array.isna().all()) for part, (_, array) in zip(wanted, place.parts, strict=True))
    found = np.zeros(len(frame), np.bool_)
    for (rows, array), header, part in zip(place.parts, place.headers, wanted, strict=True):
        # Cells of a key that is not in the header would never match: raise an error, as in decryption.
        check_key_ids(header_key_ids(header, keys), array.storage, column)
        found[slice(None) if rows is None else rows] = part.among(array.storage)
    if place.others is not None and wanted[0].null:
        found |= np.asarray(pd.isna(place.others), np.bool_)
    return pd.Series(found, index=frame.index, name=column)


@dataclass(frozen=True, repr=False)
class Search:
    """The values to find in the parts of a column, encrypted. Holds no key: a worker needs none to search.

    Attributes:
        column: the name of the column.
        wanted: the values, as cells.
        ids: the key ids that cells of the column can have.
    """

    column: str
    wanted: Literals
    ids: tuple[int, ...]

    def __repr__(self) -> str:
        return f"<Search in {self.column!r}>"

    def rows(self, part: pd.DataFrame) -> pd.Series[bool]:
        """Return which rows of a part match, as `isin` does."""
        place = encrypted_column(part, self.column)
        found = np.zeros(len(part), np.bool_)
        for rows, array in place.parts:
            _check_fit([(self.wanted, not array.isna().all())])
            check_key_ids(self.ids, array.storage, self.column)
            found[slice(None) if rows is None else rows] = self.wanted.among(array.storage)
        if place.others is not None and self.wanted.null:
            found |= np.asarray(pd.isna(place.others), np.bool_)
        return pd.Series(found, index=part.index, name=self.column)


def plan_search(
    empty: pd.DataFrame, column: str, values: Any, *, key: Key | Encrypted | None = None
) -> Search:
    """Encrypt the values to find in a column that has several parts; see `isin`.

    Args:
        empty: a frame without rows, with the dtypes of the parts.
        column: name of a deterministic column, or of an encrypted index level.
        values: one value, or any list of values.
        key: use only these keys.
    """
    header = encrypted_column(empty, column).headers[0]
    require_deterministic(header, column)
    keys = open_keys([(column, header)], resolve_key(key), None)
    wanted = literals(header, keys, values, column)
    _check_fit([(wanted, False)])
    return Search(column, wanted, tuple(header_key_ids(header, keys)))


def _covered(parts: Iterable[tuple[Any, Any]], size: int) -> Bools:
    covered = np.zeros(size, np.bool_)
    for rows, _ in parts:
        covered[slice(None) if rows is None else rows] = True
    return covered


def _listed(values: Any, column: str) -> tuple[list[Any], bool]:
    """Return the values that are not null, as scalars, and whether there were nulls."""
    dtype = getattr(values, "dtype", getattr(values, "type", None))
    if isinstance(dtype, EncryptedDtype | EncryptedType):
        raise _cells(column)
    if isinstance(values, pd.DataFrame | pa.Table):
        raise CallerTypeError("the values to find must be one value or a list of values, not a table")
    if isinstance(values, pa.Scalar):
        every = [values.as_py()]
    elif isinstance(values, pa.Array | pa.ChunkedArray):
        every = values.to_pylist()
    elif isinstance(values, np.ndarray):
        every = list(values.reshape(-1))  # tolist() would convert datetime64[ns] to integers
    elif isinstance(values, bytearray | memoryview) or not pd.api.types.is_list_like(values):
        every = [values]
    else:
        every = list(values)
    if any(isinstance(value, Cell) for value in every):
        raise _cells(column)
    present = [value for value in every if not is_null(value)]
    return present, len(present) < len(every)


def _cells(column: str) -> TypeError:
    return CallerTypeError(f"these are cells, not values. Use df[{column!r}].isin(...) to compare cells")
