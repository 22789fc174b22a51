"""Convert pandas arrays to plain cells and back.

==========================  =============================================================================
``pandas`` entry            cell (little-endian); what is null
==========================  =============================================================================
numpy bool, ints            1-8 bytes; nothing is null
numpy floats                2, 4 or 8 bytes; the canonical NaN (7e00, 7fc00000, 7ff8000000000000) is null,
                            NaN of any other sign or payload is a value
numpy complex               8 or 16 bytes: real, imaginary; canonical NaN + 0j is null
numpy datetime, timedelta   int64 in the unit; NaT is null
masked                      as numpy; NA is null (NaN in Float32 and Float64 is a value)
string                      UTF-8; NA or NaN, as the dtype defines
datetime with zone          int64 in the unit since 1970-01-01 UTC; NaT
period                      int64, pandas' ordinal; NaT
interval                    left ‖ right, each as its dtype; null if both ends are null
category                    the category itself, by its dtype, never its code; code -1 is null
arrow                       as in ``arrow_arrays.py``; Arrow's nulls
object                      text UTF-8, bytes unchanged, bool 1, int int64, date int32 days, uuid 16 bytes,
                            decimal ``str(value)``, otherwise tagged (``tagged_objects.py``); null is what
                            ``pd.isna`` finds, of the one kind in the entry (others are tagged cells)
==========================  =============================================================================

If the installed pandas does not have a dtype, the column is restored with the most similar one:

=====================================  ==========================================================
dtype                                  restored as
=====================================  ==========================================================
``str``, on Python objects             pandas before 2.3: ``string[pyarrow_numpy]``
``str``, on pyarrow                    pandas before 2.3: ``string[pyarrow_numpy]``, the same dtype
interval of int8 … float32             pandas before 3: interval of int64, uint64 or float64
interval of Int64 and other masked     pandas before 3: none, ``UnsupportedTypeError``
=====================================  ==========================================================
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from kmsdata.ciphers.cells import Bools, Cells, Ints
from kmsdata.codec import arrow_arrays as arrow
from kmsdata.codec import python_objects as objects
from kmsdata.codec.arrow_types import TEXT, arrow_type, print_arrow
from kmsdata.codec.time_zones import zone_json, zone_object
from kmsdata.codec.types import MASKED, NUMPY, arrow_of
from kmsdata.errors import UnsupportedTypeError

__all__ = ["categorical", "describe", "from_arrow", "pack", "unpack"]

_NAT = np.iinfo(np.int64).min
_MASKED = {
    **{name: getattr(pd, name + "Dtype") for name in MASKED if name != "boolean"},
    "boolean": pd.BooleanDtype,
}
_CANONICAL = {2: 0x7E00, 4: 0x7FC00000, 8: 0x7FF8000000000000}  # NaN, as bits


# --- types ----------------------------------------------------------------------------------------


def describe(values: pd.Series[Any], *, column: str, deterministic: bool = False) -> dict[str, Any]:
    """Return the whole ``type`` of a Series.

    Args:
        values: any Series; the values are read only for object columns (and object categories).
        column: for messages.
        deterministic: decimals must share one exponent, which is then recorded.

    Raises:
        UnsupportedTypeError: a dtype that cannot be restored exactly.
    """
    dtype: Any = values.dtype
    if isinstance(dtype, pd.ArrowDtype):
        return {"arrow": print_arrow(dtype.pyarrow_dtype), "pandas": {"arrow": True}}
    if isinstance(dtype, pd.CategoricalDtype):
        inside = describe(_series(dtype.categories), column=column, deterministic=deterministic)
        return {"pandas": {"category": {"ordered": bool(dtype.ordered), "values": inside}}}
    if dtype == np.dtype(object):
        entry = _describe_objects(values, column, deterministic)
    else:
        entry = _describe_dtype(dtype, column)
    name = arrow_of(entry)
    return {"pandas": entry} if name is None else {"arrow": name, "pandas": entry}


def _series(index: Any) -> pd.Series[Any]:
    # Without the dtype, pandas 3 infers str for an object array of texts.
    return pd.Series(index.array, dtype=index.dtype, copy=False)


def _describe_objects(values: pd.Series[Any], column: str, deterministic: bool) -> dict[str, Any]:
    kind, null = objects.scan(values.to_numpy())
    entry: dict[str, Any] = {"object": kind or "text", "null": null or "None"}
    if deterministic and kind == "decimal":
        entry["exponent"] = objects.exponent_of(values.to_numpy(), column=column)
    return entry


def _describe_dtype(dtype: Any, column: str) -> dict[str, Any]:
    entry: dict[str, Any] | None = None
    hint = "Convert it to a numpy, pandas or Arrow dtype."
    if isinstance(dtype, np.dtype):
        if NUMPY.fullmatch(dtype.str):
            return {"numpy": dtype.str}
        hint = "Convert it to float64 or complex128." if dtype.kind in "fc" else hint
    elif isinstance(dtype, pd.StringDtype):
        na = "NA" if dtype.na_value is pd.NA else "nan"
        entry = {"string": ["python" if dtype.storage == "python" else "pyarrow", na]}
    elif isinstance(dtype, pd.DatetimeTZDtype):
        zone = zone_json(dtype.tz)
        entry = None if zone is None else {"datetime": [dtype.unit, zone]}
        hint = 'Convert it to a named time zone, for example .dt.tz_convert("Europe/Berlin").'
    elif isinstance(dtype, pd.PeriodDtype):
        entry = {"period": dtype.name[len("period[") : -1]}
    elif isinstance(dtype, pd.IntervalDtype):
        sub = _describe_dtype(dtype.subtype, column)
        entry = {"interval": [dtype.closed, sub]} if {"numpy", "datetime", "masked"} & set(sub) else None
        hint = "Convert its ends to a numpy dtype."
    elif isinstance(dtype, pd.SparseDtype):
        hint = "Convert it with .sparse.to_dense()."
    elif _MASKED.get(str(dtype)) is type(dtype):
        entry = {"masked": str(dtype)}
    if entry is None:
        raise UnsupportedTypeError(
            f"column {column!r} has dtype {dtype}, which cannot be restored exactly. {hint}",
            column=column,
            dtype=str(dtype),
        )
    return entry


# --- pack -----------------------------------------------------------------------------------------


def pack(values: pd.Series[Any], entry: dict[str, Any], *, column: str, deterministic: bool = False) -> Cells:
    """Make plain cells of a Series with this ``pandas`` entry (not a category, see ``categorical``)."""
    array: Any = values.array
    if "arrow" in entry:
        return arrow.pack(array.__arrow_array__(), column=column)
    if "object" in entry:
        return objects.pack(
            entry["object"], entry["null"], values.to_numpy(), column=column, deterministic=deterministic
        )
    if "string" in entry:
        if entry["string"][0] == "pyarrow":
            return arrow.pack(array.__arrow_array__(), column=column, trusted=True)
        null = np.asarray(array.isna(), np.bool_)
        valid = ~null if null.any() else None
        text = np.asarray(array, object)
        return objects.text_cells(text if valid is None else text[valid], valid, column).with_valid(valid)
    if "interval" in entry:
        ends = [_numbers(_series(end), entry["interval"][1]) for end in (array.left, array.right)]
        both = np.stack([end for end, _ in ends], axis=1)
        masks = [np.zeros(len(both), np.bool_) if mask is None else mask for _, mask in ends]
        return arrow.fixed(both.view(f"V{2 * both.itemsize}").reshape(-1), masks[0] & masks[1])
    return arrow.fixed(*_numbers(values, entry))


def _numbers(values: pd.Series[Any], entry: dict[str, Any]) -> tuple[np.ndarray[Any, Any], Bools | None]:
    """Return the little-endian values of a fixed-width dtype, and which rows are null."""
    array: Any = values.array
    if "masked" in entry:
        return array._data, array._mask  # no public accessor returns them without a copy
    raw = values.to_numpy() if "numpy" in entry else array.asi8
    raw = raw.astype(raw.dtype.newbyteorder("<"), copy=False)
    if raw.dtype.kind == "f":
        return raw, _is_nan(raw)
    if raw.dtype.kind == "c":
        parts = np.ascontiguousarray(raw).view(f"<f{raw.itemsize // 2}").reshape(-1, 2)
        return raw, _is_nan(parts[:, 0]) & (parts[:, 1].view(f"<u{raw.itemsize // 2}") == 0)
    if raw.dtype.kind in "mM" or "numpy" not in entry:
        return raw, raw.view("<i8") == _NAT  # by the integer, because a period's ordinal is no datetime
    return raw, None


def _is_nan(values: np.ndarray[Any, Any]) -> Bools:
    # Not np.isnan: NaN of another sign or payload is a value and keeps its bits.
    return np.asarray(values.view(f"<u{values.itemsize}") == _CANONICAL[values.itemsize])


def categorical(values: pd.Series[Any], *, column: str, deterministic: bool = False) -> tuple[Cells, Ints]:
    """Return the plain cells of the categories, in their order, and int64[n] codes (-1: null)."""
    array: Any = values.array
    categories = _series(array.categories)
    entry = describe(categories, column=column)["pandas"]
    return (
        pack(categories, entry, column=column, deterministic=deterministic),
        np.asarray(array.codes).astype(np.int64),
    )


# --- unpack ---------------------------------------------------------------------------------------


def unpack(type: dict[str, Any], cells: Cells, *, column: str) -> Any:  # noqa: A002
    """Restore the pandas array of plain cells (not of a category).

    Returns:
        A writable numpy or extension array of the recorded dtype.
    """
    entry = type["pandas"]
    match entry:
        case {"numpy": str(code)}:
            return _unpack_numpy(np.dtype(code), cells, column)
        case {"masked": str(name)}:
            return _unpack_masked(name, cells, column)
        case {"string": [storage, na]}:
            made = arrow.unpack(pa.large_string(), cells, column=column)
            return _string_dtype(storage, na).__from_arrow__(made)
        case {"datetime": [unit, zone]}:
            ticks = arrow.dense(cells, "<i8", _NAT, column)
            # The ticks are in UTC. Localising wall times to the zone would be ambiguous in folds.
            naive = pd.Series(ticks.view(f"M8[{unit}]"), copy=False)
            return naive.dt.tz_localize("UTC").dt.tz_convert(zone_object(zone)).array
        case {"period": str(name)}:
            return pd.arrays.PeriodArray(arrow.dense(cells, "<i8", _NAT, column), dtype=pd.PeriodDtype(name))
        case {"interval": [closed, sub]}:
            return _unpack_interval(closed, sub, cells, column)
        case {"object": str(kind), "null": str(null)}:
            return objects.unpack(kind, null, cells, column=column)
    return pd.arrays.ArrowExtensionArray(arrow.unpack(arrow_type(type["arrow"]), cells, column=column))


def _unpack_numpy(dtype: np.dtype[Any], cells: Cells, column: str) -> np.ndarray[Any, Any]:
    small = np.dtype(dtype.newbyteorder("<").str)
    fill: Any = np.zeros((), small)
    if dtype.kind in "fc":
        fill = complex(np.nan, 0) if dtype.kind == "c" else np.nan
    elif dtype.kind in "mM":
        fill = np.array("NaT", small)
    if dtype.kind == "b":
        return _booleans(cells, column)
    return arrow.dense(cells, small, fill, column).astype(dtype, copy=False)


def _booleans(cells: Cells, column: str) -> Bools:
    return arrow.booleans(arrow.dense(cells, "u1", 0, column), column)


def _unpack_masked(name: str, cells: Cells, column: str) -> Any:
    mask = np.zeros(len(cells), np.bool_) if cells.valid is None else ~cells.valid
    if name == "boolean":
        return pd.arrays.BooleanArray(_booleans(cells, column), mask)
    make = pd.arrays.FloatingArray if name.startswith("F") else pd.arrays.IntegerArray
    return make(arrow.dense(cells, MASKED[name], 0, column), mask)


def _string_dtype(storage: str, na: str) -> Any:
    make: Any = pd.StringDtype
    if na == "NA":
        return make(storage)
    try:
        return make(storage, na_value=np.nan)
    except TypeError:  # before pandas 2.3, StringDtype has no na_value
        return make("pyarrow_numpy")


def _unpack_interval(closed: str, sub: dict[str, Any], cells: Cells, column: str) -> Any:
    code = {"masked": MASKED.get(sub.get("masked", "")), "numpy": sub.get("numpy")}.get(
        next(iter(sub))
    ) or "i8"
    size = np.dtype(code).itemsize
    both = arrow.sized(cells, 2 * size, column).reshape(-1, 2, size)
    ends = [
        unpack(
            {"pandas": sub},
            Cells(np.ascontiguousarray(both[:, side]).reshape(-1), width=size, valid=cells.valid),
            column=column,
        )
        for side in (0, 1)
    ]
    make: Any = pd.arrays.IntervalArray.from_arrays
    index = [pd.Index(end) for end in ends]
    # Before pandas 3, from_arrays() converts masked ends to numpy: empty ends show it without a copy.
    if "masked" in sub and str(make(index[0][:0], index[1][:0]).dtype.subtype) != sub["masked"]:
        raise _too_old("an interval of " + sub["masked"], column)
    return make(*index, closed=closed)


def _too_old(what: str, column: str) -> UnsupportedTypeError:
    return UnsupportedTypeError(
        f"column {column!r} is {what}, which pandas {pd.__version__} does not support. Upgrade pandas.",
        column=column,
        dtype=what,
    )


def from_codes(categories: Any, codes: Ints, *, ordered: bool) -> pd.Categorical[Any]:
    """Make a Categorical of its unpacked categories and codes."""
    dtype: Any = categories.dtype
    # pandas would make a MultiIndex of tuples, and infer str for texts of dtype object (pandas 3).
    index = pd.Index(categories, dtype=dtype, tupleize_cols=False, copy=False)
    return pd.Categorical.from_codes(codes, dtype=pd.CategoricalDtype(index, ordered))


def from_arrow(values: Any) -> Any:
    """Return a writable pandas array of an Arrow array, as pandas makes it; ArrowDtype if pandas cannot.

    Integers with nulls are float64, as in pandas; Int64 or UInt64 if a float would lose digits.
    """
    if pa.types.is_integer(values.type) and values.null_count and _needs_64_bits(values):
        dtype: Any = pd.UInt64Dtype() if values.type == pa.uint64() else pd.Int64Dtype()
        return dtype.__from_arrow__(values)
    try:
        # JSON stays objects in a table only. Extension types of dictionaries would end the process there.
        if isinstance(values.type, pa.BaseExtensionType) and values.type.storage_type in TEXT:
            made = pa.table({"c": values}).to_pandas()["c"]
        else:
            made = pd.Series(values.to_pandas())
    except (pa.ArrowException, NotImplementedError, TypeError, ValueError):  # no equivalent in pandas
        return pd.arrays.ArrowExtensionArray(values)
    if not isinstance(made.dtype, np.dtype):
        return made.array
    plain = made.to_numpy()  # read-only where to_pandas() shares Arrow's memory
    return plain if plain.flags.writeable and plain.dtype == object else plain.copy()


def _needs_64_bits(values: Any) -> bool:
    bounds = pc.min_max(values)
    return any(abs(bounds[name].as_py() or 0) > 1 << 53 for name in ("min", "max"))
