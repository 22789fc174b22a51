"""The panels that ``df.kms`` and ``series.kms`` show: what is encrypted, who can open it, what is next."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from dataclasses import replace
from typing import Any

import pandas as pd

from kmsdata.api.inspection import inspect
from kmsdata.display.inspection import Inspection
from kmsdata.display.ipython import variable_name
from kmsdata.display.panel import Panel
from kmsdata.display.report import MOST_SHOWN
from kmsdata.display.tables import Call, Fact
from kmsdata.errors import FormatError, KmsDataError
from kmsdata.frames.encrypted_columns import encrypted_columns
from kmsdata.keys.envelope import DataKeyRecord
from kmsdata.keys.session import Access, session_key
from kmsdata.keys.unwrap import access

__all__ = ["frame_panel", "series_panel"]

_HOW = {"AES-256-GCM": "randomised", "AES-256-SIV": "deterministic"}
_MOST_KEYS = 5  # data keys that are shown
_MOST_NAMES = 10  # plain columns that are named
_RANDOMISED = "reveals only nulls and lengths"
_DETERMINISTIC = "equal values stay equal: join, group, find"


def frame_panel(frame: pd.DataFrame) -> Panel:
    """Return the panel of a frame. No KMS call is made, and nothing is decrypted or verified."""
    df = variable_name(frame) or _placeholder("df")
    try:
        found = _inspected(frame)
        records = _records(frame)
    except FormatError as error:
        attach = Call(
            f"{df}.kms.attach(original)", "restore headers: original is a file or frame that has them"
        )
        return Panel("frame: headers are missing or damaged", [Fact("problem", str(error))], calls=[attach])
    rows = _rows(found)
    title = (
        f"frame: {_count(len(frame), 'row')}, {len(rows)} of {_count(len(found.columns), 'column')} encrypted"
    )
    plain = [column.name for column in found.columns if column.state == "plain"]
    hidden = len(plain) - _MOST_NAMES
    named = ", ".join(plain[:_MOST_NAMES]) + (f" and {hidden:,} more" if hidden > 0 else "")
    facts = [Fact("plain", named)] if plain else []
    if not rows:
        return Panel(title, [*facts, _session()], calls=_to_encrypt(frame, df), notes=found.notes)
    known = [access(record) for record in records[:_MOST_KEYS]]
    searched = next((column.name for column in found.columns if column.domain is not None), None)
    calls = _to_open(known, df)
    if searched in frame.columns and _any_opens(known):
        calls.append(Call(f"{df}.kms.isin({searched!r}, values)", "find rows without decrypting them"))
    calls.append(Call(f"{df}.kms.to_parquet('data.parquet')", "save with the wrapped data key"))
    if _any_opens(known):
        calls.append(Call(f"kmsdata.verify({df})", "authenticate every cell"))
    return Panel(title, [*facts, *_keys(records, known, df)], rows[:MOST_SHOWN], calls, _notes(found, df))


def series_panel(series: pd.Series[Any]) -> Panel:
    """Return the panel of a series. No KMS call is made, and nothing is decrypted or verified."""
    title = "series" if series.name is None else f"series {series.name!r}"
    name = variable_name(series) or _placeholder("series")
    try:
        found = _inspected(series)
        records = _records(series.to_frame())
    except FormatError as error:
        return Panel(f"{title}: its header is missing or damaged", [Fact("problem", str(error))])
    rows = _rows(found)
    title = f"{title}: {_count(len(series), 'row')}, {'encrypted' if rows else 'not encrypted'}"
    if not rows:
        return Panel(title, [_session()], calls=_to_encrypt_series(series, name), notes=found.notes)
    known = [access(record) for record in records[:_MOST_KEYS]]
    calls = _to_open(known, name)
    if any(column.domain is not None for column in found.columns) and _any_opens(known):
        calls.append(Call(f"{name}.kms.isin(values)", "find rows without decrypting them"))
    return Panel(title, _keys(records, known, name), rows, calls, _notes(found, name))


def _inspected(data: pd.DataFrame | pd.Series[Any]) -> Inspection:
    """Inspect data, with its warnings as notes, which are part of the panel."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = inspect(data)
    return replace(found, notes=(*found.notes, *(str(one.message) for one in caught)))


def _placeholder(name: str) -> str:
    """Return a name for the calls of a panel that is none of the user's other variables."""
    return name if not hasattr(sys.modules.get("__main__"), name) else f"your_{name}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _records(frame: pd.DataFrame) -> list[DataKeyRecord]:
    headers = [header for item in encrypted_columns(frame) for header in item.headers]
    return list({record.commitment: record for header in headers for record in header.records}.values())


def _rows(found: Inspection) -> list[dict[str, str]]:
    return [
        {
            "column": column.name,
            "state": column.state,
            "how": " | ".join(_HOW[algorithm] for algorithm in (column.algorithm or "").split(" | ")),
            "type": column.type,
            "domain": "" if column.domain == column.name else column.domain or "",
            "data key": " ".join(column.data_keys) if len(found.data_keys) > 1 else "",
        }
        for column in found.columns
        if column.state != "plain"
    ]


def _notes(found: Inspection, name: str) -> list[str]:
    hidden = len([column for column in found.columns if column.state != "plain"]) - MOST_SHOWN
    more = [f"{hidden:,} more encrypted columns: kmsdata.inspect({name}) lists all."] if hidden > 0 else []
    return [*more, *found.notes]


def _keys(records: list[DataKeyRecord], known: list[Access], name: str) -> list[Fact]:
    facts = []
    for record, one in zip(records, known, strict=False):
        opened = " or ".join(wrap.key for wrap in record.wraps)
        context = ", ".join(f"{name}={text}" for name, text in record.context)
        context = f"; context {context}" if context else ""
        facts.append(Fact("data key", f"{record.commitment.hex()[:8]}, opened by {opened}{context}"))
        facts.append(Fact("this session", one.why, one.state))
    if (hidden := len(records) - len(known)) > 0:
        facts.append(Fact("data keys", f"{hidden:,} more: kmsdata.inspect({name}) lists all"))
    return facts


def _to_open(known: list[Access], name: str) -> list[Call]:
    """Return the calls that decrypt, and those that come before it."""
    calls = [
        Call(f"kmsdata.login(region={one.region!r})", "sign in to Tencent Cloud KMS")
        for one in known
        if one.region
    ]
    calls += [
        Call(f"{name}.kms.decrypt(key={one.key!r})", "return the original values, with this key allowed")
        for one in known
        if one.key
    ]
    if _any_opens(known):
        calls.append(Call(f"{name}.kms.decrypt()", "return the original values"))
    return list(dict.fromkeys(calls))


def _any_opens(known: list[Access]) -> bool:
    return any(one.state != "cannot be opened" for one in known)


def _session() -> Fact:
    try:
        key = session_key()
    except KmsDataError as error:
        return Fact("session key", str(error))
    return Fact("session key", key or "none: pass key=, or call kmsdata.use('local://demo')")


def _key_argument() -> str:
    try:
        return "" if session_key() else ", key='local://demo'"
    except KmsDataError:
        return ", key='local://demo'"


def _to_encrypt(frame: pd.DataFrame, df: str) -> list[Call]:
    types = {label: dtype for label, dtype in frame.dtypes.items() if isinstance(label, str)}
    counts = Counter(frame.columns)
    labels = [label for label in types if counts[label] == 1]
    texts = [label for label in labels if pd.api.types.is_string_dtype(types[label])]
    if not (names := texts or labels):
        return []
    name, key = names[0], _key_argument()
    return [
        Call(f"{df}.kms.pick()", "choose columns in a notebook"),
        Call(f"{df}.kms.encrypt({name!r}{key})", _RANDOMISED),
        Call(f"{df}.kms.encrypt(deterministic={name!r}{key})", _DETERMINISTIC),
    ]


def _to_encrypt_series(series: pd.Series[Any], name: str) -> list[Call]:
    if not isinstance(series.name, str):
        return [Call(f"{name}.rename('name')", "needed first: the key is derived from the name")]
    key = _key_argument()
    return [
        Call(f"{name}.kms.encrypt({key.removeprefix(', ')})", _RANDOMISED),
        Call(f"{name}.kms.encrypt(deterministic=True{key})", _DETERMINISTIC),
    ]
