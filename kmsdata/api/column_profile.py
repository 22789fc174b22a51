"""Profile the columns of a frame for the choice of what to encrypt. No value leaves this module.

The figures that are expensive are taken from a sample of rows, so that the time is bounded also for millions
of rows and hundreds of columns.
"""

from __future__ import annotations

import datetime as dt
import decimal
import re
import unicodedata
import uuid
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from kmsdata import codec
from kmsdata.display.column_profile import CHOICES, Choice, ColumnProfile, FrameProfile, Warned
from kmsdata.errors import FormatError, UnsupportedTypeError
from kmsdata.frames.cell import nulls_of
from kmsdata.frames.encrypted_columns import EncryptedColumn, columns_without_header, encrypted_columns
from kmsdata.keys.envelope import has_lone_surrogate

__all__ = ["profile_frame"]

_MOST_ROWS = 100_000  # examined rows
_MOST_CELLS = 2_000_000  # examined cells of all columns together: about 1 second
_LEAST_ROWS = 1_000
_TEXTS = 1_000  # distinct values of a column whose shape and form are examined
_PACKED = 1_000  # rows that are packed to find out whether a column can be encrypted
_LONGEST = 64  # characters of a value that its shape is made of
_LONGEST_SHAPE = 24
_SHARED = 5  # a shape that fewer distinct values have could reveal one of them: "yes" and "no" differ in it
_FEW = 100  # distinct values
_COUNTED = {  # types of objects whose values are counted
    str, bytes, bool, int, float, decimal.Decimal, uuid.UUID, dt.date, dt.time, dt.datetime, dt.timedelta,
    pd.Timestamp, pd.Timedelta, type(None), type(pd.NA), type(pd.NaT),
}  # fmt: skip
_MOST = 0.8  # share of values that must have a form, such as that of an e-mail address


def profile_frame(frame: pd.DataFrame) -> FrameProfile:
    """Profile every column of a frame. The frame is not changed, and no KMS call is made.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"code": ["AB-1", "CD-2", "EF-3", "GH-4", "IJ-5", None]})
        >>> (column,) = profile_frame(frame).columns
        >>> column.nulls, column.distinct, column.shape
        (1, 5, 'AA-9')
    """
    count = len(frame.columns)
    rows = _sampled_rows(len(frame), max(_LEAST_ROWS, min(_MOST_ROWS, _MOST_CELLS // max(count, 1))))
    part = frame if rows is None else frame.iloc[rows]
    encrypted = {item.position: item for item in encrypted_columns(frame) if item.level is None}
    lost = _without_header(part)
    labels = Counter(frame.columns)
    columns = []
    for position, name in enumerate(frame.columns):
        nulls = int(nulls_of(frame.iloc[:, position]).sum())
        dtype = str(frame.iloc[:, position].dtype)
        if position in encrypted:
            columns.append(_profile_encrypted(encrypted[position], dtype, nulls))
        else:
            values = part.iloc[:, position]
            columns.append(_profile_column(name, values, dtype, nulls, labels[name], name in lost))
    return FrameProfile(len(frame), len(part), tuple(columns))


def _sampled_rows(count: int, most: int) -> np.ndarray[Any, Any] | None:
    """Return the positions of a sample of rows, in order; None if all rows are few enough.

    Multiples of the golden ratio are spread evenly and, unlike every n-th row, without a period that rows of
    a calendar or of an export could share.
    """
    if count <= most:
        return None
    return np.unique((np.arange(most) * ((5**0.5 - 1) / 2) % 1 * count).astype(np.int64))


def _without_header(frame: pd.DataFrame) -> list[Any]:
    """Return the columns that look like cells whose header was dropped."""
    plain = frame.reset_index(drop=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of single values: here they are no remark
        try:
            return columns_without_header(plain, encrypted_columns(plain))
        except FormatError:  # the first value has the form of a cell, but the column is malformed
            return []


def _profile_encrypted(item: EncryptedColumn, dtype: str, nulls: int) -> ColumnProfile:
    reason = "already encrypted"
    try:
        deterministic = all(column.deterministic for header in item.headers for column in header.columns)
    except FormatError:
        deterministic, reason = False, "already encrypted, with a malformed header"
    return ColumnProfile(
        item.name,
        dtype if item.whole else f"{dtype} with cells",
        nulls,
        refused=tuple(Warned(choice, reason) for choice in CHOICES),
        encrypted="deterministic" if deterministic else "randomised",
    )


def _profile_column(
    name: Any, values: pd.Series[Any], dtype: str, nulls: int, labels: int, lost: bool
) -> ColumnProfile:
    counts = _counts(values)
    texts, weights = ([], []) if counts is None else _texts(counts)
    refused = _refusals(name, values, labels)
    said = [Warned("plain", f"looks like {form}", "it stays readable") for form in _forms(texts, counts)]
    if lost:
        text, why = "looks like cells without their header", "df.kms.attach() restores the header"
        said += [Warned(choice, text, why) for choice in CHOICES]
    elif counts is not None:
        said += _frequencies(counts, values, refused)
    return ColumnProfile(
        name,
        dtype,
        nulls,
        None if counts is None else len(counts),
        "" if lost else _shape(texts, weights),
        tuple(said),
        tuple(Warned(choice, reason) for choice, reason in refused.items()),
    )


def _counts(values: pd.Series[Any]) -> pd.Series[int] | None:
    """Return how often each value occurs, the most frequent first; None if that cannot be counted."""
    # Of other objects the hash may fail or be slow: pandas 3 counts lists, for which it has one hash value.
    if values.dtype == np.dtype(object) and not set(map(type, values.to_numpy())) <= _COUNTED:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            counts = values.value_counts()
        return counts[counts > 0]  # unused categories have 0
    except Exception:  # noqa: BLE001 - extension arrays of other software, and lists of Arrow
        return None


def _texts(counts: pd.Series[int]) -> tuple[list[str], list[int]]:
    """Return texts and whole numbers as texts, without sign, and how often each occurs."""
    first = counts.iloc[:_TEXTS]
    texts, weights = [], []
    for value, weight in zip(first.index.tolist(), first.tolist(), strict=True):
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            texts.append(str(abs(value)))
        elif isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
            texts.append(str(abs(int(value))))  # whole numbers with nulls are floats in many frames
        elif isinstance(value, float):
            return [], []
        else:
            continue
        weights.append(int(weight))
    return texts, weights


# --- whether a column can be encrypted -------------------------------------------------------------


def _refusals(name: Any, values: pd.Series[Any], labels: int) -> dict[Choice, str]:
    """Return why a column cannot be randomised, or deterministic."""
    reason = None
    if not isinstance(name, str):
        reason = (
            f"its label is {type(name).__name__}, not text. Rename it, such as with df.rename(columns=str)"
        )
    elif labels > 1:
        reason = f"{labels} columns have this label. Give them distinct names"
    elif has_lone_surrogate(name):
        reason = "its label contains a lone surrogate, which is not valid Unicode. Rename it"
    if reason is not None:
        return {"randomised": reason, "deterministic": reason}
    some = _packed(values)
    found: dict[Choice, str] = {}
    for choice in CHOICES[1:]:
        try:
            described = codec.describe(some, column=name, deterministic=choice == "deterministic")
            codec.pack(described, some, column=name)
        except UnsupportedTypeError as error:
            found[choice] = _without_name(error, name)
    return found


def _packed(values: pd.Series[Any]) -> pd.Series[Any]:
    """Return some of the values, enough to find out whether and how they are packed."""
    some = values.iloc[:: max(1, len(values) // _PACKED)]
    # A list of a million categories would be packed each time.
    return some.cat.remove_unused_categories() if isinstance(some.dtype, pd.CategoricalDtype) else some


def _without_name(error: UnsupportedTypeError, name: str) -> str:
    """Return the message without column and type, which are beside it, and without positions in a sample."""
    text = str(error).removeprefix(f"column {name!r} ").removeprefix(f"({error.dtype}) ")
    return re.sub(r"\brow \d+", "a row", re.sub(r"\brows \[[\d, ]*\]", "some rows", text))


# --- how often values occur ------------------------------------------------------------------------


def _frequencies(counts: pd.Series[int], values: pd.Series[Any], refused: dict[Choice, str]) -> list[Warned]:
    """Warn of values that their frequency, or the length of their cells, can reveal."""
    present, distinct = int(counts.sum()), len(counts)
    if not 0 < 2 * distinct <= present:
        return []
    said = []
    few = f"few distinct values ({distinct:,})" if distinct > 1 else "only one distinct value"
    if distinct <= _FEW and _lengths(values) > 1:
        said.append(Warned("randomised", few, "their lengths differ, and the length of a cell is visible"))
    if distinct <= _FEW:
        said.append(Warned("deterministic", few, "how often a cell occurs can tell which value it is"))
    if distinct > 1 and 2 * counts.iloc[0] > present:
        share = min(100 * counts.iloc[0] / present, 99.9)
        dominating = f"one value makes up {share:.3g}% of the values"
        said.append(Warned("deterministic", dominating, "its cells can be recognised"))
    return [one for one in said if one.choice not in refused]


def _lengths(values: pd.Series[Any]) -> int:
    """Return the number of different lengths of plain cells in a part of the rows."""
    some = _packed(values)
    try:
        cells = codec.pack(codec.describe(some, column=""), some, column="")
    except UnsupportedTypeError:
        return 1
    if cells.width is not None:
        return 1
    lengths = np.diff(cells.bounds())
    return len(np.unique(lengths))


# --- shapes ----------------------------------------------------------------------------------------


class _Classes(dict[int, str]):
    """The class of each character, as `str.translate` takes it."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kind = unicodedata.category(character)
        if kind == "Nd":
            found = "9"
        elif kind in ("Lu", "Lt"):
            found = "A"
        elif kind == "Ll":
            found = "a"
        elif kind[0] in "LM":
            found = "x"
        else:
            found = character if character in "-./:@_ ,()+" else " " if kind == "Zs" else "#"
        self[code] = found
        return found


_CLASSES = _Classes()


def _shape(texts: Sequence[str], weights: Sequence[int]) -> str:
    """Return the most frequent shape; runs of one class are written as one if lengths differ too much."""
    total, shared = Counter[str](), Counter[str]()
    for text, weight in zip(texts, weights, strict=True):
        shape = text[:_LONGEST].translate(_CLASSES)
        total[shape] += weight
        shared[shape] += 1
    found = _frequent(total, shared)
    if 2 * total[found] < sum(weights):
        runs = {shape: re.sub(r"([9Aax#])\1+", r"\1*", shape) for shape in total}
        total, shared = _renamed(total, runs), _renamed(shared, runs)
        found = _frequent(total, shared)
    return found if len(found) <= _LONGEST_SHAPE else found[:_LONGEST_SHAPE] + "…"


def _frequent(total: Counter[str], shared: Counter[str]) -> str:
    """Return the most frequent of the shapes that enough values share; an empty text if there is none."""
    return next((shape for shape, _ in total.most_common() if shared[shape] >= _SHARED), "")


def _renamed(counts: Counter[str], names: dict[str, str]) -> Counter[str]:
    made = Counter[str]()
    for shape, count in counts.items():
        made[names[shape]] += count
    return made


# --- forms of personal data ------------------------------------------------------------------------

_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s.]+")
_PHONE = re.compile(
    r"\+\d[\d ().-]{6,18}\d"  # international
    r"|(?:86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}"  # mobile numbers of China
    r"|(?:1[ .-])?\(?[2-9]\d{2}\)?[ .-]{1,2}\d{3}[ .-]\d{4}"  # North America
    r"|0\d{2,4}[ /-]\d{3,8}(?:[ -]\d{1,6})*"  # with an area code that begins with 0
)
_SSN = re.compile(r"\d{3}-\d{2}-\d{4}")  # of the United States
_RESIDENT = re.compile(  # of China: region, date of birth, number, check digit
    r"[1-9]\d{5}(?:18|19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx]"
)
_CARD = re.compile(r"\d{4}([ -]?)\d{4}\1\d{4}\1\d{1,7}")
_CODE = re.compile(r"(?=(?:\D*\d){6})[A-Za-z0-9]+(?:[-./][A-Za-z0-9]+)*")
_DATE = re.compile(r"\d{4}[-./]?\d{1,2}[-./]?\d{1,2}\b.*|\d{1,2}[-./]\d{1,2}[-./]\d{2,4}\b.*")


def _forms(texts: Sequence[str], counts: pd.Series[int] | None) -> list[str]:
    """Return what most values look like: nothing, or one kind of personal data."""
    if not texts or counts is None or len(texts) < min(len(counts), _TEXTS):
        return []

    def most(form: re.Pattern[str]) -> bool:
        return sum(form.fullmatch(text) is not None for text in short) >= _MOST * len(texts)

    short = [text.strip() for text in texts if len(text) <= 2 * _LONGEST]
    if most(_EMAIL):
        return ["an e-mail address"]
    if most(_SSN) or most(_RESIDENT):
        return ["an ID number"]
    if most(_CARD) and sum(map(_has_check_digit, short)) >= _MOST * len(texts):
        return ["a payment card number"]
    if most(_PHONE):
        return ["a phone number"]
    unique = len(counts) >= _SHARED and int(counts.iloc[0]) == 1
    if unique and isinstance(counts.index[0], str) and most(_CODE) and not most(_DATE):
        return ["an ID number"]
    return []


def _has_check_digit(text: str) -> bool:
    """Return whether the last digit of a card number is right (Luhn)."""
    digits = [int(character) for character in text if character.isdecimal()][::-1]
    return sum(digits[::2] + [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]) % 10 == 0
