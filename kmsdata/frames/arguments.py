"""Check the arguments of callers: column names, deterministic columns, and domains."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeAlias

from kmsdata.errors import CallerKeyError, CallerTypeError, CallerValueError, did_you_mean
from kmsdata.keys.envelope import has_lone_surrogate

__all__ = [
    "Chooser",
    "Columns",
    "chosen_columns",
    "chosen_names",
    "column_names",
    "matching_names",
    "refuse_encrypted",
    "refuse_repeated",
    "require",
    "required_names",
]

Columns: TypeAlias = "str | Iterable[str]"
Chooser: TypeAlias = "Callable[[str], bool]"
"""A function that is called with the name of each column and returns whether to choose it."""


def column_names(columns: Columns) -> list[str]:
    """Return a name, or several names, as a list. Call it once: it uses up a generator.

    Raises:
        TypeError: neither.
    """
    if isinstance(columns, str):
        return [columns]
    if isinstance(columns, (bytes, bytearray, memoryview)) or not isinstance(columns, Iterable):
        raise CallerTypeError(
            f"columns must be a name or a list of names (text), not {type(columns).__name__}"
        )
    return list(columns)


def chosen_names(labels: Iterable[Hashable], columns: Columns | Chooser, argument: str) -> Columns:
    """Return the names that a function chooses from labels that are text; return other columns unchanged.

    Raises:
        ValueError: the function chooses none, probably by mistake: nothing would be encrypted.
    """
    if not callable(columns):
        return columns
    names = [label for label in labels if isinstance(label, str) and columns(label)]
    if not names:
        raise CallerValueError(
            f"{argument} is a function that chooses no column. Nothing would be encrypted by it"
        )
    return names


def matching_names(labels: Iterable[Hashable], regex: str) -> list[str]:
    """Return the labels in which a regular expression is found.

    Raises:
        ValueError: it is not a regular expression, or no label matches.
    """
    if not isinstance(regex, str):
        raise CallerTypeError(f"regex= takes text, not {type(regex).__name__}")
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise CallerValueError(f"regex= is not a regular expression: {error}") from None
    every = [label for label in labels if isinstance(label, str)]
    names = [label for label in every if pattern.search(label)]
    if not names:
        there = ", ".join(map(repr, every[:10])) + (", ..." if len(every) > 10 else "")
        raise CallerValueError(f"regex={regex!r} matches no column: the columns are {there}")
    return names


def required_names(encrypted: Columns | None) -> list[str]:
    """Return the names of the columns that must be encrypted.

    Raises:
        ValueError: an empty list, probably by mistake: with it, every file would pass the check.
    """
    if encrypted is None:
        return []
    names = column_names(encrypted)
    if not names:
        raise CallerValueError(
            "encrypted= names no column. Name those that must be encrypted, or leave it out"
        )
    return names


def chosen_columns(
    labels: Iterable[Hashable],
    columns: Columns,
    deterministic: Columns | bool,
    domain: str | Mapping[str, str] | None,
    levels: Sequence[Hashable],
) -> dict[str, str | None]:
    """Return the columns to encrypt, in the caller's order: None if randomised, otherwise the domain."""
    every = list(labels)
    names = column_names(columns)
    exact = names if deterministic is True else [] if deterministic is False else column_names(deterministic)
    chosen: dict[str, str | None] = dict.fromkeys(names)
    chosen.update({name: name for name in exact})
    if not chosen:
        raise CallerValueError("no column to encrypt was named. Pass columns or deterministic=")
    for name in chosen:
        if not isinstance(name, str):
            raise CallerTypeError(
                f"a column label must be text to be encrypted, not {type(name).__name__}. Rename the column "
                "first, e.g. df.rename(columns=str)"
            )
        if name not in every and name in levels:
            raise CallerValueError(
                f"{name!r} is a level of the index, which cannot be encrypted. Call reset_index() first"
            )
        require(every, name)
        refuse_repeated(every, name)
        if has_lone_surrogate(name):
            raise CallerValueError(
                "a column label contains a lone surrogate, which is not valid Unicode. Rename it first"
            )
    if isinstance(domain, str):
        if len(exact) != 1:
            raise CallerValueError(
                "a single domain needs a single deterministic column. For several, pass domain={column: text}"
            )
        domain = {exact[0]: domain}
    if domain is not None and not isinstance(domain, Mapping):
        raise CallerTypeError(
            f"domain= must be a text, or a mapping of column to text, not {type(domain).__name__}"
        )
    for name, text in (domain or {}).items():
        if chosen.get(name) is None:
            raise CallerValueError(
                f"domain= names {name!r}, which is not one of the deterministic columns"
                + did_you_mean(name, [other for other, own in chosen.items() if own is not None])
            )
        if not isinstance(text, str):
            raise CallerTypeError(f"the domain of {name!r} must be text")
        chosen[name] = text
    return chosen


def require(labels: Iterable[Hashable], name: Hashable) -> None:
    """Raise KeyError, with the most similar name, if there is no such label."""
    every = list(labels)
    if name not in every:
        every = [label for label in every if label is not None]  # that of an index without a name
        there = f": the columns are {', '.join(map(repr, every[:10]))}" + (", ..." if len(every) > 10 else "")
        raise CallerKeyError(f"no column {name!r}" + (did_you_mean(name, every) or there))


def refuse_repeated(labels: Iterable[Hashable], name: Hashable, where: str = "") -> None:
    """Raise ValueError, beginning with ``where``, if several columns have this name."""
    if (count := list(labels).count(name)) > 1:
        raise CallerValueError(f"{where}{count} columns are named {name!r}. Give them distinct names")


def refuse_encrypted(name: str, encrypted: bool) -> None:
    """Raise ValueError if the column of this name is already encrypted."""
    if encrypted:
        raise CallerValueError(
            f"column {name!r} is already encrypted. Decrypt it first, or leave it out of this call"
        )
