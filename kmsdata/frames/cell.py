"""One encrypted value (cell) in pandas, and which cells may be combined or compared.

To join, align or concatenate columns of different dtypes, pandas converts both to objects. For cells of one
key that is correct; for cells of two keys it silently finds no match. So this module also detects which
function of pandas is calling.
"""

from __future__ import annotations

import datetime
import decimal
import hashlib
import sys
import warnings
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NoReturn, Protocol, cast

import numpy as np
import pandas as pd
from pandas.api.extensions import ExtensionDtype
from pandas.api.typing import DataFrameGroupBy

from kmsdata.ciphers import gcm, siv
from kmsdata.errors import CallerTypeError
from kmsdata.keys.envelope import Header, base64_bytes, base64_text

__all__ = [
    "MARK",
    "SHORTEST",
    "Cell",
    "CellDtype",
    "bytes_of",
    "check_comparable",
    "encryptions",
    "fits",
    "in_whole_frame",
    "is_null",
    "nulls_of",
    "refuse_foreign_meeting",
    "refuse_plot",
    "text_for_caller",
    "warn_caller",
    "warn_of_mixing",
    "way_without",
    "whole_text",
    "within",
]

MARK = "enc:"
_XML = "pandas.io.formats.xml"
_VALUES = (str, bytes, int, float, complex, decimal.Decimal, datetime.date, datetime.timedelta, np.generic)
# These make tables for people by str() of each value and have no other hook. pandas (2.2 and 3.1) uses
# `printing` for the values of columns of objects, such as those of `df.T`.
TABLES = ("pandas.io.formats.printing", "pandas.io.formats.style_render", "great_tables", "tabulate")
NDFRAMES = (pd.DataFrame, pd.Series)
# Methods of a frame that use every column, besides those that take numeric_only=.
EVERY_COLUMN = (
    *("aggregate", "all", "any", "clip", "cummax", "cummin", "cumprod", "cumsum", "diff"),
    *("drop_duplicates", "duplicated", "interpolate", "nunique", "pct_change", "value_counts"),
)
SHORTEST = min(siv.OVERHEAD, gcm.OVERHEAD)  # bytes of a cell whose plaintext is empty


class CellDtype(Protocol):
    """The part of `EncryptedDtype` that cells use. A protocol, since that class and `Cell` use each other."""

    @property
    def name(self) -> str:
        """The name that pandas shows."""

    @property
    def called(self) -> str:
        """The name of the column in errors."""

    @property
    def header(self) -> Header:
        """The parsed header; FormatError if it is malformed."""

    @property
    def parsed(self) -> Header | None:
        """The parsed header; None if it is malformed."""


class Cell:
    """One encrypted value: its bytes, and the dtype that describes how to decrypt them.

    Equality and hash use the bytes. ``bytes()`` are the bytes, ``repr()`` is a short fingerprint, ``str()``
    the whole ciphertext as text (``enc:`` and base64), so that no export loses data. Only in tables for
    people (of pandas, Styler, great_tables and tabulate) ``str()`` is the fingerprint too, except in the
    separated values that Styler and tabulate make.
    """

    __slots__ = ("_data", "dtype")

    def __init__(self, data: bytes, dtype: CellDtype) -> None:
        self._data = data
        self.dtype = dtype

    def __bytes__(self) -> bytes:
        return self._data

    def __len__(self) -> NoReturn:
        raise CallerTypeError(
            "the length of a cell is not that of its value. Decrypt it first (df.kms.decrypt()); "
            "len(bytes(cell)) is the size of the ciphertext"
        )

    def __bool__(self) -> bool:
        return True  # without this, Python would call __len__

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Cell):
            return self._data == other._data
        # False would say that the value is another one. pandas' XML writer (2.2 and 3.1) looks for "", and
        # groupby(level=) whether a label of the index is the name of the level.
        known = sys._getframe(1).f_globals.get("__name__") == _XML or within("is_in_obj")
        if isinstance(other, _VALUES) and not known:
            raise CallerTypeError(
                f"a cell of {self.dtype.called} cannot be compared with a value. Find rows with "
                "df.kms.isin(column, values), or decrypt first (df.kms.decrypt())"
            )
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self._data)

    def __lt__(self, other: Cell) -> bool:
        # Only for pandas, which sorts group keys. The order has no meaning; the array does not offer it.
        return self._data < other._data if isinstance(other, Cell) else self._refuse()

    def __gt__(self, other: Cell) -> bool:
        return other < self if isinstance(other, Cell) else self._refuse()

    def __str__(self) -> str:
        return text_for_caller()(self)

    def __repr__(self) -> str:
        # A fingerprint: equal cells look equal, and every terminal can show hexadecimal digits.
        return "enc#" + hashlib.blake2b(self._data, digest_size=4).hexdigest()

    def _refuse(self, _: object = None) -> NoReturn:
        # matplotlib compares the values of a histogram so.
        raise CallerTypeError(
            f"the cells of {self.dtype.called} have no order. Decrypt the column first (df.kms.decrypt())"
        )

    __le__ = __ge__ = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return Cell, (self._data, self.dtype)

    def _marimo_serialize_(self) -> str:
        """Return what marimo's table shows: it asks for this name, otherwise it would show the slots."""
        return repr(self)

    def __conform__(self, protocol: type) -> str | None:
        """Return the text that sqlite3 stores: it asks for it by this name (PEP 246), so `to_sql` works."""
        asked = f"{protocol.__module__}.{protocol.__name__}"
        return whole_text(self) if asked == "sqlite3.PrepareProtocol" else None

    def toDict(self) -> dict[str, str]:  # noqa: N802 - pandas' JSON writer asks for this name
        """Return what pandas writes to JSON for a cell in an object column; encrypted columns become text."""
        return {"cell": whole_text(self)}


def whole_text(cell: Cell) -> str:
    """Return the whole ciphertext as text: ``enc:`` and base64."""
    return MARK + base64_text(bytes(cell))


def _latex_text(cell: Cell) -> str:
    return repr(cell).replace("#", r"\#")  # LaTeX does not compile with a bare #


def text_for_caller() -> Callable[[Cell], str]:
    """Return the function that makes text of cells for this caller: short for tables that people read.

    Only for callers that are known: an unknown one may write the text to a file, and the short form cannot be
    decrypted. pandas and Jinja may be in between; Jinja's compiled templates have no module name.
    """
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        package = module.partition(".")[0]
        if module in TABLES or package in TABLES:
            if _separates_values(frame):
                break
            return _latex_text if module.startswith("pandas.") and "latex" in frame.f_code.co_name else repr
        if package not in ("pandas", "jinja2", "kmsdata", ""):
            break
        frame = frame.f_back
    return whole_text


def _separates_values(frame: FrameType | None) -> bool:
    """Return whether Styler or tabulate makes values with separators, such as CSV, which programs read."""
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in ("pandas", "jinja2", "tabulate", ""):
            break
        if frame.f_code.co_name == "_render_string":
            return bool(frame.f_locals.get("kwargs", {}).get("delimiter", " ") != " ")
        if frame.f_code.co_name == package == "tabulate":
            form = frame.f_locals.get("tablefmt")
            row = getattr(form, "datarow", None)  # of a format that the caller made
            begin, separator = getattr(row, "begin", ""), getattr(row, "sep", "")
            return form == "tsv" or bool(not begin and separator.strip(" "))
        frame = frame.f_back
    return False


def fits(inner: CellDtype, outer: CellDtype) -> bool:
    """Return whether cells of one dtype can be decrypted as cells of another dtype."""
    if inner is outer or inner == outer:
        return True
    if inner.parsed is None or outer.parsed is None:
        return False
    return set(inner.parsed.columns) <= set(outer.parsed.columns)


def bytes_of(value: Any, dtype: CellDtype, *, exported: bool = False) -> bytes | None:
    """Return the bytes of a value for a column of cells; None for null.

    Args:
        value: any object.
        dtype: the dtype of the column.
        exported: accept cells as bytes, as other software reads them, and as text, as in CSV and JSON.

    Raises:
        TypeError: the value is not a cell, or is a cell of another column or data key.
    """
    if isinstance(value, Cell):
        if not fits(value.dtype, dtype):
            raise CallerTypeError(
                f"a cell does not fit into {dtype.called}, where it could not be decrypted: it has another "
                "data key, name, domain or type"
            )
        return bytes(value)
    if is_null(value):
        return None
    if exported and isinstance(value, (bytes, bytearray, memoryview)):
        raw = bytes(value)
        if len(raw) < SHORTEST or raw[0] != 1:  # 1: Tink's version; decryption checks the rest
            raise CallerTypeError(
                "a value of bytes is not a cell: it is too short, or does not begin with 0x01. "
                f"{dtype.called} takes cells and nulls only"
            )
        return raw
    if exported and isinstance(value, str) and value.startswith(MARK):
        data = base64_bytes(value[len(MARK) :], any_spelling=True)
        if data is None:
            raise CallerTypeError(
                f"a text begins with {MARK!r} but is not a cell: it was changed or truncated"
            )
        return data
    raise CallerTypeError(
        f"{dtype.called} takes cells and nulls only, not {type(value).__name__}. Encrypt the values first, "
        "under the same data key (series.kms.encrypt(key=df)), or decrypt the column (df.kms.decrypt())"
    )


def nulls_of(values: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which values are null. `pandas.isna` compares decimals, which fails for ``Decimal("sNaN")``."""
    with decimal.localcontext() as context:
        context.traps[decimal.InvalidOperation] = False
        return np.asarray(pd.isna(values), np.bool_)


def is_null(value: Any) -> bool:
    """Return whether a value is null: None, or a scalar that pandas treats as null."""
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def check_comparable(left: CellDtype, right: CellDtype) -> None:
    """Raise TypeError unless two columns have one key: otherwise equal values would never be equal cells."""
    a = {item.identity for item in left.header.columns}
    b = {item.identity for item in right.header.columns}
    if a == b and len(a) == 1:
        return
    if len({item[0] for item in a | b}) > 1:
        why = "different data keys. Encrypt both under one data key (key= a DataKey, or the other frame)"
    else:
        why = "another domain, kind or algorithm. Encrypt both with deterministic= and one domain="
    raise CallerTypeError(
        f"{left.called} and {right.called} cannot be compared or joined, no values would match: they have "
        f"{why}"
    )


def within(*functions: str) -> FrameType | None:
    """Return the frame of one of these functions of pandas if it is among the callers, otherwise None."""
    frame = sys._getframe(2)
    for _ in range(16):
        if frame.f_code.co_name in functions and frame.f_globals.get("__name__", "").startswith("pandas."):
            return frame
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return None


def in_whole_frame(method: str) -> bool:
    """Return whether pandas applies this method to all columns of a frame, not to one that was named."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in ("pandas", "kmsdata", "numpy"):
            return False
        if frame.f_code.co_name == method and isinstance(owner := frame.f_locals.get("self"), NDFRAMES):
            return isinstance(owner, pd.DataFrame)
        frame = frame.f_back
    return False


def way_without() -> str:
    """Return how to leave encrypted columns out, as the end of an error, if a method used every column."""
    frame: FrameType | None = sys._getframe(2)
    found, of_key = "", False
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in ("pandas", "kmsdata"):
            break
        code, local = frame.f_code, frame.f_locals
        owner, method = local.get("self"), code.co_name
        public = not method.startswith(("_", "<"))
        numbers = public and "numeric_only" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        of_key = of_key or method == "_codes_and_uniques"  # the column to group by
        if isinstance(owner, pd.DataFrame) and (numbers or method in EVERY_COLUMN):
            way = f"df.drop(columns=df.kms.encrypted).{method}()"
            way += ", or with numeric_only=True" if numbers else ""
            if _names_columns(local, owner):
                found = ""
            elif not found or method != "aggregate":  # it calls a method such as mean, which is found
                found = f", or leave it out ({way})"
        elif isinstance(owner, pd.DataFrame) and public:
            found = ""  # such as merge, which uses the columns that the caller named
        elif isinstance(owner, DataFrameGroupBy) and numbers and not of_key:
            found = ", or leave it out (numeric_only=True)"
        frame = frame.f_back
    return found


def _names_columns(arguments: Mapping[str, Any], frame: pd.DataFrame) -> bool:
    """Return whether these arguments of a frame's method name columns. pandas makes all columns of None."""
    subset = arguments.get("subset")
    every = subset is None or (pd.api.types.is_list_like(subset) and len(subset) == len(frame.columns))
    return not every or isinstance(arguments.get("func"), dict)


def refuse_plot() -> None:
    """Raise TypeError if pandas is to plot an encrypted column that was named, or nothing else.

    pandas (2.2 and 3.1) leaves columns without numbers out, and then finds nothing to plot or no column.
    """
    frame = within("hist_frame", "boxplot", "_compute_plot_data")
    data = None if frame is None else frame.f_locals.get("data")
    if frame is None or not isinstance(data, pd.DataFrame):
        return
    plot, column = (frame.f_locals.get(name) for name in ("self", "column"))
    named = [getattr(plot, "x", None), getattr(plot, "y", None)]  # of a scatter plot
    named += list(column) if isinstance(column, (list, tuple, np.ndarray, pd.Index)) else [column]
    cells = {label: dtype for label, dtype in data.dtypes.items() if dtype.type is Cell}
    numbers = any(dtype.kind in "biufcmM" for dtype in data.dtypes if dtype.type is not Cell)
    for label, dtype in cells.items():
        if label in named or not numbers:
            raise CallerTypeError(
                f"column {label!r} is {dtype.name} and cannot be plotted. Decrypt it first "
                f"(df.kms.decrypt({label!r}))"
            )


def refuse_foreign_meeting() -> None:
    """Raise TypeError if pandas joins cells with plain values, or with cells of another key.

    pandas (2.2 and 3.1) has no hook for this: to join keys or align indexes of different dtypes, it converts
    both to objects, and for two keys silently finds no match. So this function looks at the calling frames.
    """
    frame = within("_maybe_coerce_merge_keys", "_factorize_keys", "_find_common_type_compat")
    if frame is None:
        return
    names = ("self", "target") if frame.f_code.co_name == "_find_common_type_compat" else ("lk", "rk")
    (left, plain), (right, other) = (encryptions(frame.f_locals.get(name)) for name in names)
    if (left and other) or (right and plain):
        dtype = next(iter(left or right))
        raise CallerTypeError(
            f"{dtype.called} cannot be joined with plain values: none would match. Encrypt both sides "
            "under one data key (key= the other frame), or decrypt it first (df.kms.decrypt())"
        )
    for one in left:
        for two in right:
            check_comparable(one, two)


def encryptions(values: Any) -> tuple[set[CellDtype], bool]:
    """Return the dtypes of the cells among these values, and whether there are plain values among them."""
    dtype = getattr(values, "dtype", None)
    if isinstance(dtype, ExtensionDtype) and dtype.type is Cell:
        return {cast(CellDtype, dtype)}, False
    items = values if pd.api.types.is_list_like(values) else [values]
    cells = {item.dtype for item in items if isinstance(item, Cell)}
    return cells, not all(isinstance(item, Cell) or is_null(item) for item in items)


def warn_caller(message: str) -> None:
    """Warn, with the line that called pandas or kmsdata as the location."""
    level, frame = 1, sys._getframe()
    while frame.f_globals.get("__name__", "").partition(".")[0] in ("kmsdata", "numpy", "pandas"):
        if frame.f_back is None:
            break
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def warn_of_mixing() -> None:
    """Warn if pandas converts a column of cells to objects because it concatenates them with plain values.

    pandas (2.2 and 3.1) has no hook for this: it asks for a common dtype, and takes objects if there is none.
    """
    frame = within("concat_compat")
    if frame is None:
        return
    parts = frame.f_locals.get("to_concat", ())
    cells = [part for part in parts if getattr(part.dtype, "type", None) is Cell]
    plain = any(encryptions(part)[1] for part in parts)
    if cells and plain:
        warn_caller(
            f"{cells[0].dtype.called} was concatenated with plain values: the column has cells and plain "
            "values now, which no Parquet file can store, and CSV stores both. Encrypt the plain rows first, "
            "under the same data key (key= the encrypted frame), or decrypt the others"
        )
