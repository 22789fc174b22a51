"""The encrypted column in pandas (`EncryptedDtype`, `EncryptedArray`, `Cell`) and in Arrow (`EncryptedType`).

The type carries the facts: the header that decryption needs is a parameter of dtype and Arrow type, and so
goes wherever the column goes. Two types are equal when their column objects are equal.
"""

from __future__ import annotations

import base64
import builtins
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from types import FrameType
from typing import Any, Literal, NoReturn, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pandas.api.extensions import ExtensionArray, ExtensionDtype
from pandas.api.indexers import check_array_indexer

from kmsdata import codec
from kmsdata.envelope import Header
from kmsdata.errors import FormatError

__all__ = ["Cell", "EncryptedArray", "EncryptedDtype", "EncryptedType"]

_MOST_CHUNK = (1 << 31) - 1


class Cell:
    """One encrypted value: its bytes, and the dtype that says how to decrypt them.

    Equal and hashed by its bytes. ``str()`` is the whole ciphertext as text, ``enc:`` and base64; ``repr`` is
    short; ``bytes()`` gives the bytes.
    """

    __slots__ = ("_data", "dtype")

    def __init__(self, data: bytes, dtype: EncryptedDtype) -> None:
        self._data = data
        self.dtype = dtype

    def __bytes__(self) -> bytes:
        return self._data

    def __len__(self) -> int:
        return len(self._data)

    def __eq__(self, other: object) -> bool:
        return self._data == other._data if isinstance(other, Cell) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._data)

    def __lt__(self, other: Cell) -> bool:
        # For pandas alone, which sorts group keys. The order means nothing; the array refuses it.
        return self._data < other._data if isinstance(other, Cell) else NotImplemented

    def __str__(self) -> str:
        return "enc:" + base64.b64encode(self._data).decode()

    def __repr__(self) -> str:
        # A fingerprint, so that equal cells look equal, in letters that every terminal can show.
        return "enc#" + hashlib.blake2b(self._data, digest_size=4).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return Cell, (self._data, self.dtype)


class EncryptedDtype(ExtensionDtype):
    """The dtype of an encrypted column.

    Args:
        header: the column's header, or its text as it stands in a file. Malformed text is kept, so that one
            bad column does not make a whole file unreadable; using it raises FormatError.
    """

    type = Cell
    kind = "O"
    na_value = pd.NA
    _is_numeric = False
    _is_boolean = False

    def __init__(self, header: Header | str) -> None:
        self.text = header if isinstance(header, str) else header.text

    @cached_property
    def header(self) -> Header:
        """The parsed header; FormatError where it is malformed."""
        return Header.parse(self.text)

    @cached_property
    def _parsed(self) -> Header | None:
        try:
            return self.header
        except FormatError:
            return None

    @property
    def deterministic(self) -> bool:
        """Whether equal values have equal cells."""
        return self._parsed is not None and self._parsed.deterministic

    @cached_property
    def name(self) -> str:
        """What pandas shows, such as ``encrypted[int64]``."""
        if self._parsed is None:
            return "encrypted[?]"
        return (
            f"encrypted[{' | '.join(dict.fromkeys(codec.label(item.type) for item in self._parsed.columns))}]"
        )

    def __str__(self) -> str:
        # pyarrow writes str(dtype) into the file's pandas metadata. A process without kmsdata would not
        # know the name and could not open the file at all; as "object" it sees bytes.
        caller = sys._getframe(1).f_globals.get("__name__")
        return "object" if caller == "pyarrow.pandas_compat" else self.name

    def __repr__(self) -> str:
        return self.name

    @property
    def _identity(self) -> object:
        return self.text if self._parsed is None else self._parsed.columns

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EncryptedDtype) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __reduce__(self) -> tuple[Any, ...]:
        return EncryptedDtype, (self.text,)

    @classmethod
    def construct_array_type(cls) -> builtins.type[EncryptedArray]:
        """The array class."""
        return EncryptedArray

    @classmethod
    def construct_from_string(cls, string: str) -> NoReturn:
        """Refused: a name does not hold the header."""
        raise TypeError(f"cannot make an encrypted dtype from {string!r}: df.kms.encrypt makes it")

    def __from_arrow__(self, array: pa.Array | pa.ChunkedArray) -> EncryptedArray:
        return EncryptedArray(array, self)

    def _get_common_dtype(self, dtypes: list[Any]) -> ExtensionDtype | None:
        union: Header | None = self._parsed
        for dtype in dtypes:
            if not isinstance(dtype, EncryptedDtype):
                return None
            if dtype == self:
                continue
            if union is None or dtype._parsed is None:
                return None
            union = union.union(dtype._parsed)
        return None if union is None else EncryptedDtype(union)


class EncryptedType(pa.ExtensionType):
    """The Arrow extension type ``kmsdata.encrypted``: binary storage, the column's header as parameter."""

    def __init__(self, storage_type: pa.DataType, dtype: EncryptedDtype) -> None:
        self.dtype = dtype
        super().__init__(storage_type, "kmsdata.encrypted")

    def __arrow_ext_serialize__(self) -> bytes:
        return self.dtype.text.encode("utf-8", "surrogateescape")

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> EncryptedType:
        # Must not raise: pyarrow could then read no column of the file.
        return cls(storage_type, EncryptedDtype(serialized.decode("utf-8", "surrogateescape")))

    def __eq__(self, other: object) -> bool:
        # By default Arrow compares names only, and would put one file's cells under another one's header.
        return (
            isinstance(other, EncryptedType)
            and self.storage_type == other.storage_type
            and self.dtype == other.dtype
        )

    def __hash__(self) -> int:
        return hash((self.storage_type, self.dtype))

    def __reduce__(self) -> tuple[Any, ...]:
        return EncryptedType, (self.storage_type, self.dtype)

    def __str__(self) -> str:
        return self.dtype.name

    __repr__ = __str__

    def to_pandas_dtype(self) -> EncryptedDtype:
        """The dtype of such a column in pandas."""
        return self.dtype


class EncryptedArray(ExtensionArray):
    """A column of cells: opaque values that can be moved, compared if deterministic, and nothing else.

    Args:
        storage: the cells: a pyarrow Array or ChunkedArray of any binary type, or of `EncryptedType`.
        dtype: an `EncryptedDtype`.
    """

    __array_priority__ = 1000

    def __init__(self, storage: pa.Array | pa.ChunkedArray, dtype: EncryptedDtype) -> None:
        self._storage = _plain(storage)
        self._dtype = dtype

    @property
    def storage(self) -> pa.Array:
        """The cells in Arrow: large binary, or fixed-size binary."""
        return self._storage

    # What makes it an array.

    @classmethod
    def _from_sequence(
        cls, scalars: Sequence[Any], *, dtype: EncryptedDtype | None = None, copy: bool = False
    ) -> Self:
        if isinstance(scalars, EncryptedArray) and dtype in (None, scalars.dtype):
            return cls(scalars._storage, scalars.dtype)
        cells = list(scalars)
        if dtype is None:
            union = {cell.dtype: None for cell in cells if isinstance(cell, Cell)}
            if not union:
                raise TypeError("cannot tell how these cells are encrypted: there are only nulls")
            first, *others = union
            common = first._get_common_dtype([first, *others])
            if not isinstance(common, EncryptedDtype):
                raise TypeError(
                    "these cells cannot stand in one column: they are of several types under one key"
                )
            dtype = common
        return cls(_binary([_bytes_of(cell, dtype) for cell in cells]), dtype)

    @classmethod
    def _from_factorized(cls, values: Any, original: EncryptedArray) -> Self:
        return cls(_binary([None if pd.isna(value) else bytes(value) for value in values]), original.dtype)

    @property
    def dtype(self) -> EncryptedDtype:
        """Its `EncryptedDtype`."""
        return self._dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the cells in memory."""
        return int(self._storage.nbytes)

    def __len__(self) -> int:
        return len(self._storage)

    def __getitem__(self, item: Any) -> Any:
        item = check_array_indexer(self, item)
        if isinstance(item, slice):
            start, stop, step = item.indices(len(self))
            if step == 1:
                return type(self)(self._storage.slice(start, max(stop - start, 0)), self._dtype)
            return self.take(np.arange(start, stop, step))
        if isinstance(item, np.ndarray):
            if item.dtype == np.bool_:
                return type(self)(self._storage.filter(pa.array(item)), self._dtype)
            return self.take(item)
        if item is Ellipsis:
            return self
        if isinstance(item, tuple):
            if len(item) > 1 and item[0] is Ellipsis:
                return self[item[1:] if len(item) > 2 else item[1]]
            if len(item) > 1 and item[-1] is Ellipsis:
                return self[item[:-1] if len(item) > 2 else item[0]]
            raise IndexError("too many indices: a column has one dimension")
        position = int(item)
        if not -len(self) <= position < len(self):
            raise IndexError(f"row {position} of {len(self)}")
        return self._scalar(self._storage[position % len(self)].as_py())

    def __setitem__(self, key: Any, value: Any) -> None:
        readonly = getattr(self, "_readonly", False)
        if readonly:
            raise ValueError("Cannot modify read-only array")
        key = check_array_indexer(self, key)
        positions = np.arange(len(self))[key]
        scalar = np.ndim(positions) == 0
        new = self._coerced(
            [value] if isinstance(value, Cell) or not pd.api.types.is_list_like(value) else value
        )
        if len(new) != 1 and (scalar or len(new) != len(positions)):
            raise ValueError("the number of values does not fit the number of rows")
        source = np.arange(len(self))
        source[key] = len(self) + (0 if len(new) == 1 else np.arange(len(new)))
        both = _concatenated([self._storage, new._storage])
        self._storage = both.take(pa.array(source))

    def __iter__(self) -> Iterator[Any]:
        for value in self._storage:
            yield self._scalar(value.as_py())

    def _scalar(self, value: bytes | None) -> Any:
        return pd.NA if value is None else Cell(value, self._dtype)

    def isna(self) -> npt.NDArray[np.bool_]:
        """bool[n]: which cells are null."""
        return self._storage.is_null().to_numpy(zero_copy_only=False)

    def take(self, indices: Any, *, allow_fill: bool = False, fill_value: Any = None) -> Self:
        """Cells at positions; -1 is null where allow_fill."""
        indices = np.asarray(indices, np.intp)
        if not len(self) and len(indices) and not (allow_fill and (indices == -1).all()):
            raise IndexError("cannot do a non-empty take from an empty axes.")
        if not allow_fill:
            if len(indices) and not (-len(self) <= indices.min() and indices.max() < len(self)):
                raise IndexError("out of bounds value in 'indices'")
            return type(self)(self._storage.take(pa.array(indices % max(len(self), 1))), self._dtype)
        if len(indices) and (indices.min() < -1 or indices.max() >= len(self)):
            if indices.min() < -1:
                raise ValueError("Invalid value in 'indices': below -1")
            raise IndexError("out of bounds value in 'indices'")
        missing = indices == -1
        if fill_value is None or pd.isna(fill_value):
            return type(self)(self._storage.take(pa.array(indices, mask=missing)), self._dtype)
        both = _concatenated([self._storage, self._coerced([fill_value])._storage])
        return type(self)(both.take(pa.array(np.where(missing, len(self), indices))), self._dtype)

    def copy(self) -> Self:
        """A copy. The cells are shared: they are never changed in place."""
        return type(self)(self._storage, self._dtype)

    @classmethod
    def _concat_same_type(cls, to_concat: Sequence[Self]) -> Self:
        header = to_concat[0].dtype._parsed
        for array in to_concat[1:]:
            other = array.dtype._parsed
            if header is not None and other is not None and other is not header:
                header = header.union(other) or header  # equal types; the union gathers their wraps
        dtype = to_concat[0].dtype if header is None else EncryptedDtype(header)
        return cls(_concatenated([array._storage for array in to_concat]), dtype)

    def astype(self, dtype: Any, copy: bool = True) -> Any:
        """To object (cells), to text (the whole ciphertext), or to a dtype that these cells fit."""
        dtype = pd.api.types.pandas_dtype(dtype)
        if isinstance(dtype, EncryptedDtype):
            if dtype == self._dtype:
                return self.copy() if copy else self
            self._check_fits(dtype)
            return type(self)(self._storage, dtype)
        if isinstance(dtype, pd.StringDtype) or (isinstance(dtype, np.dtype) and dtype.kind == "U"):
            texts = np.array([None if cell is pd.NA else str(cell) for cell in self], object)
            if isinstance(dtype, pd.StringDtype):
                return pd.array(texts, dtype=dtype)
            return np.array([str(cell) for cell in self], object)
        if dtype == np.dtype(object):
            _refuse_foreign_merge(self)
            return self.__array__()
        raise TypeError(f"{self._dtype.name} cannot become {dtype}: decrypt it first (df.kms.decrypt())")

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if dtype is not None and np.dtype(dtype) != np.dtype(object):
            raise TypeError(f"{self._dtype.name} holds no numbers: decrypt it first (df.kms.decrypt())")
        out = np.empty(len(self), object)
        out[:] = list(self)
        return out

    def __arrow_array__(
        self,
        type: pa.DataType | None = None,  # noqa: A002 - pyarrow gives the name
    ) -> pa.Array | pa.ChunkedArray:
        if type is not None and not isinstance(type, EncryptedType):
            return self._storage.cast(type)
        if type is not None and type.dtype != self._dtype:
            raise TypeError("a column of this table is encrypted otherwise: the headers of the parts differ")
        chunks = [_export(chunk) for chunk in _chunks(self._storage)]
        ext = EncryptedType(chunks[0].type, self._dtype)
        arrays = [pa.ExtensionArray.from_storage(ext, chunk) for chunk in chunks]
        return arrays[0] if len(arrays) == 1 else pa.chunked_array(arrays, type=ext)

    def __reduce__(self) -> tuple[Any, ...]:
        # A slice shares its parent's buffers: taking copies what belongs to it, and no more is pickled.
        compact = self._storage.take(pa.array(np.arange(len(self))))
        return type(self), (compact, self._dtype)

    # How it looks.

    def _formatter(self, boxed: bool = False) -> Callable[[Any], str]:
        return lambda cell: "<NA>" if cell is pd.NA else repr(cell)

    def _values_for_json(self) -> npt.NDArray[Any]:
        return np.array([None if cell is pd.NA else str(cell) for cell in self], object)

    # Equality, where the column is deterministic. No order, no arithmetic.

    def __eq__(self, other: object) -> Any:
        return self._compared(other, equal=True)

    def __ne__(self, other: object) -> Any:
        return self._compared(other, equal=False)

    __hash__ = None  # type: ignore[assignment]  # as every array

    def _compared(self, other: object, *, equal: bool) -> Any:
        if isinstance(other, (pd.Series, pd.Index, pd.DataFrame)):
            return NotImplemented
        if isinstance(other, EncryptedArray):
            if len(other) != len(self):
                raise ValueError("Lengths must match to compare")
            cells = other
        elif isinstance(other, Cell) or other is pd.NA:
            cells = self._coerced([other], compare=True)
        else:
            raise TypeError(
                f"{self._dtype.name} can be compared with cells of its own column only, not with values: "
                "decrypt it first (df.kms.decrypt())"
            )
        if cells.dtype != self._dtype:
            _check_comparable(self._dtype, cells.dtype)
        right = (
            cells._storage if isinstance(other, EncryptedArray) else cells._storage[0].cast(pa.large_binary())
        )
        left = self._storage.cast(pa.large_binary())
        right = right.cast(pa.large_binary())
        result = (pc.equal if equal else pc.not_equal)(left, right)
        mask = result.is_null().to_numpy(zero_copy_only=False)
        values = pc.fill_null(result, False).to_numpy(zero_copy_only=False)
        return pd.arrays.BooleanArray(values.copy(), mask.copy())

    def _refuse_order(self, *_: object, **__: object) -> NoReturn:
        raise TypeError(
            f"{self._dtype.name} has no order and no arithmetic: ciphertext says nothing of its value's "
            "size. Decrypt it first (df.kms.decrypt())"
        )

    __lt__ = __le__ = __gt__ = __ge__ = _refuse_order
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse_order
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _refuse_order
    __pow__ = __rpow__ = __divmod__ = __rdivmod__ = _refuse_order
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = __invert__ = __neg__ = __abs__ = (
        _refuse_order
    )
    __pos__ = _refuse_order

    def argsort(self, *args: object, **kwargs: object) -> npt.NDArray[np.intp]:
        """Refused: ciphertext has no order that means anything.

        But for pandas' own sorting of group keys, which must have some order and asks for it without
        arguments.
        """
        if args or kwargs:
            self._refuse_order()
        order = pc.array_sort_indices(self._storage.cast(pa.large_binary()))
        return order.to_numpy(zero_copy_only=False).astype(np.intp)

    def argmin(self, skipna: bool = True) -> NoReturn:
        """Refused, as every order."""
        self._refuse_order()

    def argmax(self, skipna: bool = True) -> NoReturn:
        """Refused, as every order."""
        self._refuse_order()

    def _reduce(self, name: str, *, skipna: bool = True, keepdims: bool = False, **kwargs: object) -> Any:
        if name == "count":
            return len(self) - self._storage.null_count
        raise TypeError(f"{self._dtype.name} has no {name}: decrypt it first (df.kms.decrypt())")

    def _check_factorizable(self) -> None:
        header = self._dtype.header
        if not header.deterministic:
            several = len(header.columns) > 1 and all(item.deterministic for item in header.columns)
            raise TypeError(
                f"{self._dtype.name} holds cells under {len(header.columns)} keys, so equal values are "
                "unequal cells: decrypt it first (df.kms.decrypt())"
                if several
                else f"{self._dtype.name} is randomised: equal values are unequal cells, so it cannot be "
                "grouped, joined or made unique. Encrypt it with deterministic=[column], or decrypt it first "
                "(df.kms.decrypt())"
            )

    def factorize(self, use_na_sentinel: bool = True) -> tuple[npt.NDArray[np.intp], Self]:
        """Codes and unique cells, of a deterministic column."""
        self._check_factorizable()
        encoded = self._storage.dictionary_encode("mask" if use_na_sentinel else "encode")
        codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.intp)
        return codes, type(self)(encoded.dictionary, self._dtype)

    def unique(self) -> Self:
        """The unique cells, of a deterministic column."""
        self._check_factorizable()
        return type(self)(self._storage.unique(), self._dtype)

    def duplicated(self, keep: Literal["first", "last", False] = "first") -> npt.NDArray[np.bool_]:
        """bool[n]: which cells stand there already, of a deterministic column."""
        codes, _ = self.factorize(use_na_sentinel=False)
        return pd.Series(codes).duplicated(keep=keep).to_numpy()

    def value_counts(self, dropna: bool = True) -> pd.Series[int]:
        """How often each cell stands there, of a deterministic column."""
        codes, uniques = self.factorize(use_na_sentinel=dropna)
        counts = np.bincount(codes[codes >= 0], minlength=len(uniques))
        index = pd.Index(uniques, dtype=self._dtype)
        return pd.Series(pd.array(counts, dtype="Int64"), index=index, name="count", copy=False)

    def isin(self, values: Any) -> npt.NDArray[np.bool_]:
        """bool[n]: which cells are among these cells."""
        wanted = values if isinstance(values, EncryptedArray) else list(values)
        if not all(isinstance(cell, Cell) or cell is pd.NA for cell in wanted):
            raise TypeError(
                f"isin on {self._dtype.name} takes cells of its own column, not values: decrypt it first "
                "(df.kms.decrypt())"
            )
        for dtype in {cell.dtype for cell in wanted if isinstance(cell, Cell)}:
            _check_comparable(self._dtype, dtype)
        cells = pa.array([None if cell is pd.NA else bytes(cell) for cell in wanted], pa.large_binary())
        found = pc.is_in(self._storage.cast(pa.large_binary()), cells)
        return found.to_numpy(zero_copy_only=False)

    def _values_for_factorize(self) -> tuple[npt.NDArray[Any], Any]:
        self._check_factorizable()
        return np.array(self._storage.to_pylist(), object), None

    def _hash_pandas_object(
        self, *, encoding: str, hash_key: str, categorize: bool
    ) -> npt.NDArray[np.uint64]:
        self._check_factorizable()
        texts = np.array(["" if cell is pd.NA else str(cell) for cell in self], object)
        return pd.util.hash_array(texts, encoding=encoding, hash_key=hash_key, categorize=categorize)

    # Checks.

    def _coerced(self, values: Any, *, compare: bool = False) -> EncryptedArray:
        """Cells that may stand in this column; TypeError for any other."""
        if isinstance(values, (pd.Series, pd.Index)):
            values = values.array
        if isinstance(values, EncryptedArray):
            if not compare:
                values._check_fits(self._dtype)
            return values
        if compare and isinstance(values[0], Cell):
            return EncryptedArray(_binary([bytes(values[0])]), values[0].dtype)
        return type(self)(_binary([_bytes_of(value, self._dtype) for value in values]), self._dtype)

    def _check_fits(self, dtype: EncryptedDtype) -> None:
        if not _fits(self._dtype, dtype):
            raise TypeError(
                f"these cells were encrypted otherwise than {dtype.name}, and could not be decrypted there"
            )


def _fits(inner: EncryptedDtype, outer: EncryptedDtype) -> bool:
    if inner is outer or inner == outer:
        return True
    if inner._parsed is None or outer._parsed is None:
        return False
    return set(inner._parsed.columns) <= set(outer._parsed.columns)


def _bytes_of(value: Any, dtype: EncryptedDtype) -> bytes | None:
    if isinstance(value, Cell):
        if not _fits(value.dtype, dtype):
            raise TypeError(
                f"this cell was encrypted otherwise than {dtype.name}, and could not be decrypted there"
            )
        return bytes(value)
    if value is None or value is pd.NaT or (pd.api.types.is_scalar(value) and pd.isna(value)):
        return None
    raise TypeError(
        f"a {dtype.name} column takes cells and nulls only, not {type(value).__name__}: encrypt the values "
        "first, under the same data key (series.kms.encrypt(key=df))"
    )


def _check_comparable(left: EncryptedDtype, right: EncryptedDtype) -> None:
    """Cells of two columns compare only under one key: else equal values would just never be found equal."""
    a = {item.identity for item in left.header.columns}
    b = {item.identity for item in right.header.columns}
    if a != b or len(a) != 1:
        (why,) = {
            True: [
                "they are under different data keys; encrypt both with key= one DataKey or the other frame"
            ],
            False: [
                "they differ in domain, kind or algorithm; encrypt both with deterministic= and one domain="
            ],
        }[{item[0] for item in a} != {item[0] for item in b}]
        raise TypeError(
            f"{left.name} and {right.name} cannot be compared or joined: equal values would not be found; "
            f"{why}"
        )


def _refuse_foreign_merge(array: EncryptedArray) -> None:
    """Merge keys of unequal dtypes become object: right for one key, but silently empty for two.

    pandas asks nobody before it does so, so this looks at who asks for the objects.
    """
    frame: FrameType | None = sys._getframe(2)
    for _ in range(12):
        if frame is None:
            return
        if frame.f_code.co_name == "_maybe_coerce_merge_keys":
            keys = [frame.f_locals.get("lk"), frame.f_locals.get("rk")]
            left, right = (getattr(key, "dtype", None) for key in keys)
            if isinstance(left, EncryptedDtype) and isinstance(right, EncryptedDtype):
                _check_comparable(left, right)
            return
        frame = frame.f_back


def _plain(storage: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Any array of cells as one array of large or fixed-size binary."""
    if isinstance(storage, pa.ChunkedArray):
        parts = [_plain(chunk) for chunk in storage.chunks]
        if parts:
            return _concatenated(parts)
        storage = pa.array(
            [], storage.type.storage_type if isinstance(storage.type, pa.BaseExtensionType) else storage.type
        )
    if isinstance(storage.type, pa.BaseExtensionType):
        storage = storage.storage
    if pa.types.is_fixed_size_binary(storage.type) or pa.types.is_large_binary(storage.type):
        return storage
    if pa.types.is_dictionary(storage.type):
        storage = storage.dictionary_decode()
    return storage.cast(pa.large_binary())


def _concatenated(parts: Sequence[pa.Array]) -> pa.Array:
    if len(parts) == 1:
        return parts[0]
    if len({part.type for part in parts}) > 1:
        parts = [part.cast(pa.large_binary()) for part in parts]
    return pa.concat_arrays(parts)


def _binary(cells: list[bytes | None]) -> pa.Array:
    return pa.array(cells, pa.large_binary())


def _chunks(storage: pa.Array) -> list[pa.Array]:
    """Slices whose offsets fit into 32 bits."""
    if pa.types.is_fixed_size_binary(storage.type) or not len(storage):
        return [storage]
    bounds = np.frombuffer(storage.buffers()[1], np.int64)[storage.offset : storage.offset + len(storage) + 1]
    if bounds[-1] - bounds[0] <= _MOST_CHUNK:
        return [storage]
    chunks, start = [], 0
    while start < len(storage):
        stop = int(np.searchsorted(bounds, bounds[start] + _MOST_CHUNK, side="right")) - 1
        stop = min(max(stop, start + 1), len(storage))
        chunks.append(storage.slice(start, stop - start))
        start = stop
    return chunks


def _export(storage: pa.Array) -> pa.Array:
    """Binary with 32-bit offsets: Arrow's joins crash on an extension type over large binary."""
    return storage if pa.types.is_fixed_size_binary(storage.type) else storage.cast(pa.binary())
