"""Encrypt and decrypt frames: several columns, one data key. Nothing is changed in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import pandas as pd

from kmsdata.display.progress import Progress
from kmsdata.errors import CallerValueError
from kmsdata.frames.arguments import (
    Columns,
    chosen_columns,
    column_names,
    refuse_encrypted,
    require,
)
from kmsdata.frames.arrow_storage import validated
from kmsdata.frames.column import encrypt_column
from kmsdata.frames.dtype import EncryptedArray
from kmsdata.frames.encrypted_columns import (
    Encrypted,
    EncryptedColumn,
    check_names,
    check_new_names,
    columns_without_header,
    encrypted_columns,
    is_encrypted,
    lost_header,
    not_encrypted,
    parsed_headers,
    with_index_levels,
)
from kmsdata.frames.key_argument import data_key_for, resolve_key
from kmsdata.keys.session import Key
from kmsdata.keys.unwrap import open_keys

__all__ = ["decrypt_frame", "encrypt_frame"]


def encrypt_frame(
    frame: pd.DataFrame,
    columns: Columns = (),
    *,
    deterministic: Columns | bool = (),
    key: Key | Encrypted | None = None,
    domain: str | Mapping[str, str] | None = None,
    context: Mapping[str, str] | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Encrypt columns of a frame; see `kmsdata.api.accessor.FrameAccessor.encrypt`."""
    chosen = chosen_columns(frame.columns, columns, deterministic, domain, list(frame.index.names))
    positions = {label: position for position, label in enumerate(frame.columns) if label in chosen}
    for name, position in positions.items():
        values = frame.iloc[:, position]
        refuse_encrypted(name, is_encrypted(values))
        if isinstance(values.dtype, (pd.ArrowDtype, pd.StringDtype)):
            validated(values.array.__arrow_array__(), name)
    check_new_names(chosen, parsed_headers(frame))
    data_key = data_key_for(key, context, len(frame) * len(chosen))
    done: dict[str, EncryptedArray] = {}
    with Progress("encrypt", len(frame) * len(chosen), "cells", progress) as bar:
        for name, scope in chosen.items():
            done[name] = encrypt_column(frame.iloc[:, positions[name]], name, data_key, scope)
            bar.step(len(frame))
    out = frame.assign()  # a new frame; pandas 3 copies no data here (copy-on-write)
    for name, array in done.items():
        out.isetitem(positions[name], array)
    return out


def decrypt_frame(
    frame: pd.DataFrame,
    columns: Columns | None = None,
    *,
    key: Key | Encrypted | None = None,
    context: Mapping[str, str] | None = None,
    on_denied: Literal["raise", "keep"] = "raise",
    progress: bool | None = None,
) -> pd.DataFrame:
    """Decrypt columns of a frame; see `kmsdata.api.accessor.FrameAccessor.decrypt`."""
    if on_denied not in ("raise", "keep"):
        raise CallerValueError("on_denied= must be 'raise' or 'keep'")
    every = encrypted_columns(frame)
    # The labels of a row or a transposed frame are not names of columns: so only whole columns, whose cells
    # are all of one column, are checked against the names that they were encrypted under.
    named = {item.name: item.header for item in every if item.whole and item.header is not None}
    if columns is not None:
        names = column_names(columns)
        for name in names:
            require([*frame.columns, *frame.index.names], name)
            if name not in [item.name for item in every]:
                raise not_encrypted(frame, name)
        every = [item for item in every if item.name in names]
    elif lost := columns_without_header(frame, every):
        raise lost_header(lost[0])
    keys = open_keys(
        [(str(item.name), header) for item in every for header in item.headers],
        resolve_key(key),
        context,
        keep=on_denied == "keep",
    )
    check_names(named)
    opened: list[tuple[EncryptedColumn, pd.Series[Any]]] = []
    try:
        with Progress("decrypt", len(frame) * len(every), "cells", progress) as bar:
            for item in every:
                if all(column.data_key in keys for header in item.headers for column in header.columns):
                    opened.append((item, item.decrypt(keys)))
                bar.step(len(frame))
    except BaseException:
        opened.clear()  # so that the frames of an error contain no plaintext of another column
        raise
    out = frame.assign()
    levels: dict[int, pd.Index[Any]] = {}
    for item, values in opened:
        if item.level is None:
            values.index = frame.index  # with an equal index, isetitem neither aligns nor infers a dtype
            out.isetitem(item.position, cast("Any", values))  # valid in pandas, but missing in its stubs
        else:
            levels[item.level] = pd.Index(values, dtype=values.dtype, name=frame.index.names[item.level])
    if levels:
        out.index = with_index_levels(frame.index, levels)
    return out
