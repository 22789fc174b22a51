"""The encrypted column in pandas (`EncryptedDtype`, `EncryptedArray`) and in Arrow (`EncryptedType`).

The header that decryption needs is a parameter of the dtype and of the Arrow type, so it stays with the
column in every operation. Two types are equal if their column objects are equal. The three classes are in one
file because each of them uses the others.
"""

from __future__ import annotations

import builtins
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NoReturn, Self, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pandas.api.extensions import ExtensionArray, ExtensionDtype, no_default
from pandas.api.indexers import check_array_indexer

from kmsdata import codec
from kmsdata.ciphers import gcm, siv
from kmsdata.errors import CallerTypeError, CallerValueError, FormatError, UnsupportedTypeError, printable
from kmsdata.frames.arrow_storage import (
    binary,
    chunks,
    concatenated,
    exported,
    fitted,
    plain_binary,
    validated,
)
from kmsdata.frames.cell import (
    Cell,
    CellDtype,
    bytes_of,
    check_comparable,
    encryptions,
    fits,
    in_whole_frame,
    is_null,
    refuse_foreign_meeting,
    refuse_plot,
    text_for_caller,
    warn_caller,
    warn_of_mixing,
    way_without,
    whole_text,
    within,
)
from kmsdata.keys.envelope import ColumnHeader, Header, canonical
from kmsdata.lazy_property import lazy_property

__all__ = ["EXTENSION_NAME", "EncryptedArray", "EncryptedDtype", "EncryptedType"]

EXTENSION_NAME = "kmsdata.encrypted"


class EncryptedDtype(ExtensionDtype):
    """The dtype of an encrypted column.

    Args:
        header: the column's header, or its text from a file. Malformed text is kept, so that one bad column
            does not make the whole file unreadable; using the header raises FormatError.
    """

    type = Cell
    na_value = pd.NA
    _is_boolean = False

    def __init__(self, header: Header | str) -> None:
        self.text = header if isinstance(header, str) else header.text

    @lazy_property
    def header(self) -> Header:
        """The parsed header; FormatError if it is malformed."""
        return Header.parse(self.text)

    @lazy_property
    def parsed(self) -> Header | None:
        """The parsed header; None if it is malformed."""
        try:
            return self.header
        except FormatError:
            return None

    @property
    def deterministic(self) -> bool:
        """Whether equal values have equal cells."""
        return self.parsed is not None and self.parsed.deterministic

    @property
    def kind(self) -> Literal["O", "m"]:
        """``O``, as for columns of objects; ``m`` where pandas describes a whole frame."""
        # DataFrame.describe() (pandas 2.2 and 3.1) chooses the statistics by it, of every column. As "m", a
        # randomised column gets a count and nulls: "unique" and "top" would be about the ciphertext.
        caller = sys._getframe(1)
        if caller.f_code.co_name == "select_describe_func" and not self.deterministic:
            describer = caller.f_back.f_locals.get("self") if caller.f_back else None
            return "m" if isinstance(getattr(describer, "obj", None), pd.DataFrame) else "O"
        return "O"

    @property
    def _is_numeric(self) -> bool:
        refuse_plot()
        return False

    @property
    def name(self) -> str:  # type: ignore[override]  # the stubs know only dtypes without parameters
        """The name that pandas shows, such as ``encrypted[int64]``."""
        return self._name

    @lazy_property
    def _name(self) -> str:
        types = ["?"] if self.parsed is None else [codec.label(item.type) for item in self.parsed.columns]
        return printable(f"encrypted[{' | '.join(dict.fromkeys(types))}]")  # the type is not authenticated

    @property
    def called(self) -> str:
        """The name of the column in errors: its dtype, and the name or domain it was encrypted under."""
        if self.parsed is None:
            return self.name
        return f"{self.name} {self.parsed.columns[0].place[1]!r}"

    def __str__(self) -> str:
        # pyarrow (17 and 26) writes str(dtype) into the file's pandas metadata. Without kmsdata, pandas would
        # not know the name and could not open the file at all; as "object" it reads bytes.
        caller = sys._getframe(1).f_globals.get("__name__")
        return "object" if caller == "pyarrow.pandas_compat" else self.name

    def __repr__(self) -> str:
        return self.name

    @lazy_property
    def _identity(self) -> str:
        # As text: in Python True == 1, so two different JSON objects could be equal.
        return self.text if self.parsed is None else canonical([c.to_json() for c in self.parsed.columns])

    @lazy_property
    def _storage_type(self) -> pa.DataType:
        """Fixed-size binary if the type gives all cells the same length, otherwise large binary."""
        widths = {_cell_width(item) for item in self.parsed.columns} if self.parsed else set()
        width = widths.pop() if len(widths) == 1 else None
        return pa.large_binary() if width is None else pa.binary(width)

    def __eq__(self, other: object) -> bool:
        # Equal texts need no parsing, which would be slow for a dataset of many files.
        return isinstance(other, EncryptedDtype) and (
            self.text == other.text or self._identity == other._identity
        )

    def __hash__(self) -> int:
        return hash(self._identity)

    def __reduce__(self) -> tuple[Any, ...]:
        return EncryptedDtype, (self.text,)

    @classmethod
    def construct_array_type(cls) -> builtins.type[EncryptedArray]:
        """Return the array class."""
        return EncryptedArray

    @classmethod
    def construct_from_string(cls, string: str) -> NoReturn:
        """Raise TypeError: the name of the dtype does not contain the header."""
        if not isinstance(string, str):
            raise CallerTypeError(f"'construct_from_string' expects a string, got {builtins.type(string)}")
        raise CallerTypeError(
            f"Cannot construct a '{cls.__name__}' from '{string}': a name does not contain the header. Use "
            "the dtype of an encrypted column"
        )

    def __from_arrow__(self, array: pa.Array | pa.ChunkedArray) -> EncryptedArray:
        return EncryptedArray(array, self)

    def _get_common_dtype(self, dtypes: list[Any]) -> ExtensionDtype | None:
        # For None, pandas converts all to objects: correct for concat, but not for a join under two keys.
        refuse_foreign_meeting()
        union: Header | None = self.parsed
        for dtype in dtypes:
            if not isinstance(dtype, EncryptedDtype):
                return None
            if dtype == self:
                continue
            if union is None or dtype.parsed is None:
                return None
            union = union.union(dtype.parsed)
        return None if union is None else EncryptedDtype(union)


class EncryptedType(pa.ExtensionType):
    """The Arrow extension type ``kmsdata.encrypted``: binary storage, the column's header as parameter."""

    def __init__(self, storage_type: pa.DataType, dtype: EncryptedDtype) -> None:
        self.dtype = dtype
        super().__init__(storage_type, EXTENSION_NAME)

    def __arrow_ext_serialize__(self) -> bytes:
        return self.dtype.text.encode("utf-8", "surrogateescape")

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> EncryptedType:
        # Must not raise: otherwise pyarrow could not read any column of the file.
        return cls(storage_type, EncryptedDtype(serialized.decode("utf-8", "surrogateescape")))

    def __eq__(self, other: object) -> bool:
        # By default Arrow compares names only, and would put the cells of one file under another's header.
        return (
            isinstance(other, EncryptedType)
            and self.storage_type == other.storage_type
            and self.dtype == other.dtype
        )

    def __ne__(self, other: object) -> bool:
        return not self == other  # pyarrow's own __ne__ does not call __eq__

    def __hash__(self) -> int:
        return hash((self.storage_type, self.dtype))

    def __reduce__(self) -> tuple[Any, ...]:
        return EncryptedType, (self.storage_type, self.dtype)

    def __str__(self) -> str:
        return self.dtype.name

    __repr__ = __str__

    def to_pandas_dtype(self) -> EncryptedDtype:
        """Return the dtype of such a column in pandas."""
        return self.dtype


class EncryptedArray(ExtensionArray):
    """A column of cells: opaque values that can be moved and, if deterministic, compared.

    Args:
        storage: the cells: a pyarrow Array or ChunkedArray of any binary type, or of `EncryptedType`.
        dtype: an `EncryptedDtype`.

    Raises:
        FormatError: the storage is not binary, or malformed: it has an offset or a size out of range.
    """

    __array_priority__ = 1000
    _readonly = False  # pandas 3 sets it for views (copy-on-write)

    def __init__(self, storage: pa.Array | pa.ChunkedArray, dtype: EncryptedDtype) -> None:
        self._storage = fitted(plain_binary(validated(storage)), dtype._storage_type)
        self._dtype = dtype

    @classmethod
    def _of(cls, storage: pa.Array, dtype: EncryptedDtype) -> Self:
        """Wrap cells that need no validation: what Arrow made of the cells of another array, or of bytes."""
        array = cls.__new__(cls)
        array._storage = fitted(storage, dtype._storage_type)
        array._dtype = dtype
        return array

    @property
    def storage(self) -> pa.Array:
        """The cells as an Arrow array: large binary, or fixed-size binary."""
        return self._storage

    # The interface of ExtensionArray.

    @classmethod
    def _from_sequence(
        cls, scalars: Sequence[Any], *, dtype: EncryptedDtype | None = None, copy: bool = False
    ) -> Self:
        """Build an array of cells and nulls; with a dtype also from cells as bytes or as text."""
        if isinstance(scalars, (pd.Series, pd.Index)):
            scalars = scalars.array
        if isinstance(scalars, EncryptedArray):
            if dtype is not None:
                scalars._check_fits(dtype)
            return cls._of(scalars._storage, dtype or scalars.dtype)
        if isinstance(scalars, pd.arrays.ArrowExtensionArray):
            validated(scalars.__arrow_array__())  # it may come from elsewhere
        cells = list(scalars)
        if dtype is None:
            union = {cast(EncryptedDtype, cell.dtype): None for cell in cells if isinstance(cell, Cell)}
            if not union:
                raise CallerTypeError(
                    "the dtype of these cells is unknown: there are only nulls. Pass dtype="
                )
            first, *others = union
            common = first._get_common_dtype([first, *others])
            if not isinstance(common, EncryptedDtype):
                raise CallerTypeError(
                    "these cells cannot be in one column: they have several types under one key"
                )
            dtype = common
        return cls._of(binary([bytes_of(cell, dtype, exported=True) for cell in cells]), dtype)

    _from_sequence_of_strings = _from_sequence

    @classmethod
    def _from_scalars(cls, scalars: Sequence[Any], *, dtype: EncryptedDtype) -> Self:
        # pandas calls this for the results of map, combine and apply. Results that are not cells must not
        # become a column of cells: text that a caller made from cells must stay text.
        if not any(isinstance(scalar, Cell) for scalar in scalars):
            raise CallerTypeError("there are no cells among these values")
        return cls._of(binary([bytes_of(scalar, dtype) for scalar in scalars]), dtype)

    @classmethod
    def _from_factorized(cls, values: Any, original: EncryptedArray) -> Self:
        return cls._of(pa.array(values, pa.large_binary(), from_pandas=True), original.dtype)

    @property
    def dtype(self) -> EncryptedDtype:
        """The `EncryptedDtype` of the column."""
        return self._dtype

    @property
    def nbytes(self) -> int:
        """The size of the cells in memory, in bytes."""
        return int(self._storage.nbytes)

    def __len__(self) -> int:
        return len(self._storage)

    def __getitem__(self, item: Any) -> Any:
        item = check_array_indexer(self, item)
        if isinstance(item, slice):
            start, stop, step = item.indices(len(self))
            if step == 1:
                view = type(self)._of(self._storage.slice(start, max(stop - start, 0)), self._dtype)
                view._readonly = self._readonly
                return view
            return self.take(np.arange(start, stop, step))
        if isinstance(item, np.ndarray):
            if item.dtype == np.bool_:
                return type(self)._of(self._storage.filter(pa.array(item)), self._dtype)
            return self.take(item)
        if item is Ellipsis:
            return self
        if isinstance(item, tuple):
            if len(item) > 1 and item[0] is Ellipsis:
                return self[item[1:] if len(item) > 2 else item[1]]
            if len(item) > 1 and item[-1] is Ellipsis:
                return self[item[:-1] if len(item) > 2 else item[0]]
            raise IndexError("too many indices: a column has one dimension")
        try:
            position = operator.index(item)
        except TypeError:
            raise IndexError(
                "only integers, slices (`:`), ellipsis (`...`), numpy.newaxis (`None`) and integer or "
                "boolean arrays are valid indices"
            ) from None
        if not -len(self) <= position < len(self):
            raise IndexError(f"index {position} is out of bounds for axis 0 with size {len(self)}")
        return self._scalar(self._storage[position % len(self)].as_py())

    def __setitem__(self, key: Any, value: Any) -> None:
        # The cells are never changed in place: this array gets a new storage, and arrays that share the old
        # one keep it.
        if self._readonly:
            raise CallerValueError("Cannot modify read-only array")
        key = check_array_indexer(self, key)
        positions = np.arange(len(self))[key]
        scalar = np.ndim(positions) == 0
        if self._left_null(positions, value):
            return
        new = self._coerced(
            [value] if isinstance(value, Cell) or not pd.api.types.is_list_like(value) else value
        )
        if len(new) != 1 and (scalar or len(new) != len(positions)):
            raise CallerValueError("the number of values differs from the number of rows")
        source = np.arange(len(self))
        source[key] = len(self) + (0 if len(new) == 1 else np.arange(len(new)))
        both = concatenated([self._storage, new._storage])
        self._storage = fitted(both.take(pa.array(source)), self._dtype._storage_type)

    def __iter__(self) -> Iterator[Any]:
        yield from map(self._scalar, self._storage.to_numpy(zero_copy_only=False))

    def _scalar(self, value: bytes | None) -> Any:
        return pd.NA if value is None else Cell(value, self._dtype)

    def isna(self) -> npt.NDArray[np.bool_]:
        """Return bool[n]: which cells are null."""
        return self._storage.is_null().to_numpy(zero_copy_only=False)

    def take(self, indices: Any, *, allow_fill: bool = False, fill_value: Any = None) -> Self:
        """Return the cells at these positions; with ``allow_fill``, -1 is ``fill_value``."""
        indices = np.asarray(indices, np.intp)
        if not len(self) and len(indices) and not (allow_fill and (indices == -1).all()):
            raise IndexError("cannot do a non-empty take from an empty axes.")
        if not allow_fill:
            if len(indices) and not (-len(self) <= indices.min() and indices.max() < len(self)):
                raise IndexError("out of bounds value in 'indices'")
            return type(self)._of(self._storage.take(pa.array(indices % max(len(self), 1))), self._dtype)
        if len(indices) and (indices.min() < -1 or indices.max() >= len(self)):
            if indices.min() < -1:
                raise CallerValueError("Invalid value in 'indices': below -1")
            raise IndexError("out of bounds value in 'indices'")
        missing = indices == -1
        if is_null(fill_value):
            return type(self)._of(self._storage.take(pa.array(indices, mask=missing)), self._dtype)
        both = concatenated([self._storage, self._coerced([fill_value])._storage])
        return type(self)._of(both.take(pa.array(np.where(missing, len(self), indices))), self._dtype)

    def copy(self) -> Self:
        """Return a copy. The cells are shared: they are never changed in place."""
        return type(self)._of(self._storage, self._dtype)

    def _left_null(self, positions: npt.NDArray[np.intp], value: Any) -> bool:
        """Warn and return True if a whole frame's nulls get plain values: fillna(0) or replace(nan, 0)."""
        caller = within("fillna", "putmask_inplace")
        if caller is None or not encryptions(value)[1] or not self.isna()[positions].all():
            return False
        method = "fillna" if caller.f_code.co_name == "fillna" else "replace"
        if not in_whole_frame(method):
            return False
        many = f"{len(positions):,} null{'s' * (len(positions) > 1)}"
        warn_caller(
            f"{method} left {many} in {self._dtype.called}, which takes cells only. Fill values before "
            "encrypting, or decrypt first (df.kms.decrypt())"
        )
        return True

    def _refuse_filled_rows(self) -> None:
        """Raise TypeError if fillna(0, axis=1) makes objects of these cells, to fill their nulls."""
        local = frame.f_locals if (frame := within("fillna")) else {}
        if local.get("axis") == 1 and self.isna().any() and encryptions(local.get("value"))[1]:
            raise CallerTypeError(
                f"fillna(axis=1) would put plain values among the cells of {self._dtype.called}. Call it "
                "without axis=1, which fills the other columns, or decrypt first (df.kms.decrypt())"
            )

    def _warn_of_replace(self) -> None:
        # For a list, pandas (2.2 and 3.1) looks for one value after the other: only the first one warns.
        if several := within("replace_list"):
            pairs = several.f_locals.get("pairs", ())
            first = next((pair for pair in pairs if not is_null(pair[0])), None)
            current = within("<genexpr>")
            if first and (current is None or current.f_locals.get("s") is not first):
                return
        warn_caller(
            f"{self._dtype.called} is unchanged: no value can be found in ciphertext. Call replace before "
            "encrypting, or decrypt first (df.kms.decrypt())"
        )

    @classmethod
    def _concat_same_type(cls, to_concat: Sequence[Self]) -> Self:
        header = to_concat[0].dtype.parsed
        for array in to_concat[1:]:
            other = array.dtype.parsed
            if header is not None and other is not None and other.text != header.text:
                header = header.union(other) or header  # equal types; the union has all their wrapped keys
        dtype = to_concat[0].dtype if header is None else EncryptedDtype(header)
        return cls._of(concatenated([array._storage for array in to_concat]), dtype)

    def astype(self, dtype: Any, copy: bool = True) -> Any:
        """Convert to objects (cells), to text (the whole ciphertext), or to a dtype that these cells fit."""
        dtype = pd.api.types.pandas_dtype(dtype)
        if isinstance(dtype, EncryptedDtype):
            if dtype == self._dtype and not copy:
                return self
            self._check_fits(dtype)
            return type(self)._of(self._storage, dtype)
        if isinstance(dtype, pd.StringDtype) or (isinstance(dtype, np.dtype) and dtype.kind == "U"):
            text = text_for_caller()
            null = None if isinstance(dtype, pd.StringDtype) else str(pd.NA)
            texts = np.array([null if cell is pd.NA else text(cell) for cell in self], object)
            return pd.array(texts, dtype=dtype) if isinstance(dtype, pd.StringDtype) else texts
        if dtype == np.dtype(object):
            # pandas (2.2 and 3.1) converts an index to objects to look up labels in it. With randomised cells
            # it would never find one.
            if within("_get_engine_target") and within("get_indexer", "get_indexer_non_unique"):
                self._check_factorizable()
            warn_of_mixing()
            self._refuse_filled_rows()
            return self.__array__()
        raise CallerTypeError(
            f"{self._dtype.called} cannot be converted to {dtype}. Decrypt it first (df.kms.decrypt())"
        )

    def map(self, mapper: Any, na_action: Literal["ignore"] | None = None) -> Any:
        """Return the results of a function of the cells; warn if they are cells and plain values."""
        result = super().map(mapper, na_action=na_action)
        cells, plain = encryptions(result)
        if cells and plain:
            warn_caller(
                f"map made cells and plain values of {self._dtype.called}: no Parquet file can store the "
                "result, and CSV stores both. Return cells only, or decrypt first (df.kms.decrypt())"
            )
        return result

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if dtype is not None and np.dtype(dtype) != np.dtype(object):
            raise CallerTypeError(
                f"{self._dtype.called} contains no numbers. Decrypt it first (df.kms.decrypt())"
                f"{way_without()}"
            )
        if copy is False:
            raise CallerValueError("an array of cells is always a copy: copy=False is not possible")
        refuse_foreign_meeting()
        # These convert to objects: rank would rank the ciphertext, and replace would find no text.
        caller = within("ranker", "replace_regex")
        if caller and caller.f_code.co_name == "ranker":
            self._refuse_order()
        if caller and not in_whole_frame("replace"):
            self._refuse_values()
        if caller:
            self._warn_of_replace()
        if sys._getframe(1).f_globals.get("__name__") == "pandas.io.json._json":
            return self._values_for_json()  # pandas 2 calls __array__ instead for the JSON of a series
        out = np.empty(len(self), object)
        out[:] = list(self)
        return out

    def to_numpy(
        self, dtype: npt.DTypeLike | None = None, copy: bool = False, na_value: object = no_default
    ) -> npt.NDArray[Any]:
        """Return the cells as objects, with pd.NA, or na_value, for nulls."""
        out = self.__array__(dtype)
        if na_value is not no_default:
            out[self.isna()] = na_value
        return out

    def __arrow_array__(
        self,
        type: pa.DataType | None = None,  # noqa: A002 - pyarrow gives the name
    ) -> pa.Array | pa.ChunkedArray:
        if type is not None:
            wanted = type
            if not isinstance(type, EncryptedType):
                # For a schema with an EncryptedType, pyarrow (17 and 26) requests only the storage type here,
                # and then applies the header of the schema to the cells. The calling frame shows which type
                # the schema has; for any other caller the header would be lost.
                caller = sys._getframe(1)
                if caller.f_globals.get("__name__") != "pyarrow.pandas_compat":
                    raise CallerTypeError(
                        f"{self._dtype.name} as {type} would lose its header. Leave the type out, or use "
                        "the bytes in series.array.storage"
                    )
                wanted = getattr(caller.f_locals.get("field"), "type", None)
            if isinstance(wanted, EncryptedType) and wanted.dtype != self._dtype:
                raise CallerTypeError(
                    "this column has another header than the schema, and with the schema's header its cells "
                    "could not be decrypted. Encrypt both under one data key (key=df), or write two files"
                )
            if not isinstance(type, EncryptedType):
                return self._storage.cast(type)
        parts = [exported(chunk) for chunk in chunks(self._storage)]
        ext = EncryptedType(parts[0].type, self._dtype)
        arrays = [pa.ExtensionArray.from_storage(ext, part) for part in parts]
        return arrays[0] if len(arrays) == 1 else pa.chunked_array(arrays, type=ext)

    def __reduce__(self) -> tuple[Any, ...]:
        # A slice shares its parent's buffers, which pickle would write whole: take() copies only the slice.
        storage = self._storage
        if storage.get_total_buffer_size() > storage.nbytes + 1024:
            storage = storage.take(pa.array(np.arange(len(self))))
        return type(self), (storage, self._dtype)

    # Display and JSON.

    def _formatter(self, boxed: bool = False) -> Callable[[Any], str]:
        return lambda cell: "<NA>" if cell is pd.NA else repr(cell)

    def _values_for_json(self) -> npt.NDArray[Any]:
        return np.array([None if cell is pd.NA else whole_text(cell) for cell in self], object)

    # Equality, if the column is deterministic. No order, no arithmetic.

    def __eq__(self, other: object) -> Any:
        return self._compared(other, equal=True)

    def __ne__(self, other: object) -> Any:
        return self._compared(other, equal=False)

    __hash__ = None  # type: ignore[assignment]  # arrays are not hashable

    def _compared(self, other: object, *, equal: bool) -> Any:
        if isinstance(other, (pd.Series, pd.Index, pd.DataFrame)):
            return NotImplemented
        if isinstance(other, EncryptedArray):
            if len(other) != len(self):
                raise CallerValueError("Lengths must match to compare")
            cells = other
        elif isinstance(other, Cell) or other is pd.NA:
            cells = self._coerced([other], compare=True)
        elif within("mask_missing") and in_whole_frame("replace"):
            self._warn_of_replace()
            return np.zeros(len(self), bool)
        else:
            self._refuse_values()
        if cells.dtype != self._dtype:
            check_comparable(self._dtype, cells.dtype)
        left, right = (array._storage.cast(pa.large_binary()) for array in (self, cells))
        if cells is not other:
            right = right[0]
        result = (pc.equal if equal else pc.not_equal)(left, right)
        mask = result.is_null().to_numpy(zero_copy_only=False)
        values = pc.fill_null(result, False).to_numpy(zero_copy_only=False)
        return pd.arrays.BooleanArray(values.copy(), mask.copy())

    def _refuse_values(self) -> NoReturn:
        raise CallerTypeError(
            f"{self._dtype.called} can be compared with cells of the same column only, not with values: "
            f"{self._way_to_values}"
        )

    def _refuse_operator(self, other: object = None) -> Any:
        if isinstance(other, (pd.Series, pd.Index, pd.DataFrame)):
            return NotImplemented  # pandas unboxes them and calls again
        return self._refuse_order()

    def _refuse_order(self, *_: object, **__: object) -> NoReturn:
        raise CallerTypeError(
            f"{self._dtype.called} has no order and no arithmetic: ciphertext reveals nothing about the size "
            f"of its value. Decrypt it first (df.kms.decrypt()){way_without()}"
        )

    def _refuse_operation(self, name: str) -> NoReturn:
        raise CallerTypeError(
            f"cannot perform {name}: {self._dtype.called} does not support {name} operations. Decrypt it "
            f"first (df.kms.decrypt()){way_without()}"
        )

    __lt__ = __le__ = __gt__ = __ge__ = _refuse_operator
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse_operator
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _refuse_operator
    __pow__ = __rpow__ = __divmod__ = __rdivmod__ = _refuse_operator
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = _refuse_operator
    __invert__ = __neg__ = __abs__ = __pos__ = _refuse_operator
    searchsorted = _rank = _groupby_quantile = _values_for_argsort = _refuse_order

    def _quantile(self, qs: npt.NDArray[np.float64], interpolation: str) -> npt.NDArray[np.float64]:
        if within("describe_numeric_1d"):  # see EncryptedDtype.kind
            return np.full(len(qs), np.nan)
        return self._refuse_order()

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if any(isinstance(item, (pd.Series, pd.Index, pd.DataFrame)) for item in inputs):
            return NotImplemented
        if method == "__call__" and ufunc in (np.equal, np.not_equal):
            other = inputs[1] if inputs[0] is self else inputs[0]
            return self._compared(other, equal=ufunc is np.equal)
        return self._refuse_operation(f"numpy.{ufunc.__name__}")

    def argsort(self, *args: object, **kwargs: object) -> npt.NDArray[np.intp]:
        """Raise TypeError: the order of ciphertext has no meaning.

        Except without arguments: so pandas (2.2 and 3.1, in safe_sort) sorts group keys, in any stable order.
        """
        if args or kwargs:
            self._refuse_order()
        order = pc.array_sort_indices(self._storage.cast(pa.large_binary()))
        return order.to_numpy(zero_copy_only=False).astype(np.intp)

    def argmin(self, skipna: bool = True) -> NoReturn:
        """Raise TypeError: cells have no order."""
        self._refuse_order()

    def argmax(self, skipna: bool = True) -> NoReturn:
        """Raise TypeError: cells have no order."""
        self._refuse_order()

    def _reduce(self, name: str, *, skipna: bool = True, keepdims: bool = False, **kwargs: object) -> Any:
        if name == "count":
            return len(self) - self._storage.null_count
        if within("describe_numeric_1d"):  # see EncryptedDtype.kind
            return np.nan
        return self._refuse_operation(name)

    def _accumulate(self, name: str, *, skipna: bool = True, **kwargs: object) -> NoReturn:
        self._refuse_operation(name)

    def interpolate(self, *, method: str = "linear", **kwargs: object) -> NoReturn:
        """Raise TypeError: it would need the values."""
        self._refuse_operation("interpolate")

    def _groupby_op(self, *, how: str, **kwargs: Any) -> Any:
        # These only move cells. For others the default raises NotImplementedError, and pandas tries objects.
        if how in ("first", "last"):
            return cast(Any, super())._groupby_op(how=how, **kwargs)
        return self._refuse_operation(how)

    def _mode(self, dropna: bool = True) -> Any:
        self._check_factorizable()
        return cast(Any, super())._mode(dropna=dropna)

    def _check_factorizable(self) -> None:
        header = self._dtype.header
        if not header.deterministic:
            several = len(header.columns) > 1 and all(item.deterministic for item in header.columns)
            raise CallerTypeError(
                f"{self._dtype.called} contains cells under {len(header.columns)} keys, so equal values have "
                "different cells. Decrypt it first (df.kms.decrypt())"
                if several
                else f"{self._dtype.called} is randomised: equal values have different cells, so it cannot "
                "be grouped, joined or made unique. Encrypt it with deterministic=[column], or decrypt it "
                f"first (df.kms.decrypt()){way_without()}"
            )

    def factorize(self, use_na_sentinel: bool = True) -> tuple[npt.NDArray[np.intp], Self]:
        """Return codes and unique cells of a deterministic column."""
        # sort_values by several columns factorizes each, and then would sort by ciphertext.
        if within("lexsort_indexer"):
            self._refuse_order()
        self._check_factorizable()
        if within("_get_dummies_1d"):
            self._refuse_operation("get_dummies")
        encoded = self._storage.dictionary_encode("mask" if use_na_sentinel else "encode")
        codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.intp)
        return codes, type(self)._of(encoded.dictionary, self._dtype)

    def unique(self) -> Self:
        """Return the unique cells of a deterministic column."""
        self._check_factorizable()
        return type(self)._of(self._storage.unique(), self._dtype)

    def duplicated(self, keep: Literal["first", "last", False] = "first") -> npt.NDArray[np.bool_]:
        """Return bool[n]: which cells of a deterministic column are duplicates."""
        codes, _ = self.factorize(use_na_sentinel=False)
        return pd.Series(codes).duplicated(keep=keep).to_numpy()

    def value_counts(self, dropna: bool = True) -> pd.Series[int]:
        """Count each distinct cell of a deterministic column."""
        codes, uniques = self.factorize(use_na_sentinel=dropna)
        counts = np.bincount(codes[codes >= 0], minlength=len(uniques))
        index = pd.Index(uniques, dtype=self._dtype)
        return pd.Series(counts, index=index, name="count", copy=False)

    def isin(self, values: Any) -> npt.NDArray[np.bool_]:
        """Return bool[n]: which cells are among these cells."""
        if isinstance(values, EncryptedArray):
            dtypes: set[CellDtype] = {values.dtype}
            cells = values._storage.cast(pa.large_binary())
        else:
            dtypes = self._cells_only(values, "isin")
            cells = binary([bytes(value) if isinstance(value, Cell) else None for value in values])
        for dtype in dtypes:
            check_comparable(self._dtype, dtype)
        found = pc.is_in(self._storage.cast(pa.large_binary()), cells)
        return found.to_numpy(zero_copy_only=False)

    @property
    def _way_to_values(self) -> str:
        decrypt = "decrypt it first (df.kms.decrypt())"
        return (
            f"search with df.kms.isin(column, values), or {decrypt}" if self._dtype.deterministic else decrypt
        )

    def _cells_only(self, values: Any, operation: str) -> set[CellDtype]:
        dtypes, plain = encryptions(values)
        if plain:
            raise CallerTypeError(
                f"{operation} on {self._dtype.called} takes cells of the same column, not values: "
                f"{self._way_to_values}"
            )
        return dtypes

    def _values_for_factorize(self) -> tuple[npt.NDArray[Any], Any]:
        self._check_factorizable()
        return self._storage.to_numpy(zero_copy_only=False), None

    def _hash_pandas_object(
        self, *, encoding: str, hash_key: str, categorize: bool
    ) -> npt.NDArray[np.uint64]:
        cells, _ = self._values_for_factorize()
        return pd.util.hash_array(cells, encoding=encoding, hash_key=hash_key, categorize=categorize)

    # Checks.

    def _coerced(self, values: Any, *, compare: bool = False) -> EncryptedArray:
        """Convert values to cells that fit this column; raise TypeError for any other."""
        if isinstance(values, (pd.Series, pd.Index)):
            values = values.array
        if isinstance(values, EncryptedArray):
            if not compare:
                values._check_fits(self._dtype)
            return values
        if compare and isinstance(values[0], Cell):
            return EncryptedArray._of(binary([bytes(values[0])]), cast(EncryptedDtype, values[0].dtype))
        return type(self)._of(binary([bytes_of(value, self._dtype) for value in values]), self._dtype)

    def _check_fits(self, dtype: EncryptedDtype) -> None:
        if not fits(self._dtype, dtype):
            raise CallerTypeError(
                f"these cells do not fit into {dtype.called}, where they could not be decrypted: "
                "they have another data key, name, domain or type"
            )


def _cell_width(item: ColumnHeader) -> int | None:
    """Return the length of each cell in bytes if the type gives all of them the same length."""
    try:
        # This header is not authenticated yet, so its type may be anything.
        codec.check(item.codec_type, item.kind)
        width = codec.width(item.type, item.kind)
    except (FormatError, UnsupportedTypeError, RecursionError):
        return None
    if width is None:
        return None
    return width + (siv.OVERHEAD if item.deterministic else gcm.OVERHEAD)
