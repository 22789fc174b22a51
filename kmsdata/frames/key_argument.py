"""The argument ``key=`` of encryption and decryption: a URI, several, a data key, or encrypted data."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from kmsdata.errors import CallerValueError
from kmsdata.frames.arrow.sources import is_arrow, native
from kmsdata.frames.encrypted_columns import (
    Encrypted,
    headers_of,
)
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import Header
from kmsdata.keys.session import Key, new_data_key
from kmsdata.keys.unwrap import Operation, open_keys

__all__ = ["check_one_data_key", "data_key_for", "is_encrypted_data", "resolve_key", "the_data_key"]


def resolve_key(key: Key | Encrypted | None) -> Key | None:
    """Replace encrypted data by its data key, which is unwrapped here; return other keys unchanged."""
    return the_data_key(key) if is_encrypted_data(key) else key  # type: ignore[return-value]


def is_encrypted_data(key: object) -> bool:
    """Return whether a key argument is data: a frame, a series, or any Arrow data."""
    return isinstance(native(key), (pd.DataFrame, pd.Series)) or is_arrow(key)


def data_key_for(
    key: Key | Encrypted | None, context: Mapping[str, str] | None, cells: int | None = None
) -> DataKey:
    """Return the data key to encrypt under: that of encrypted data, the one passed in, or a new one.

    Args:
        key: a key argument; see the module.
        context: for a new data key.
        cells: how many cells it will encrypt, if other calls of the session may share the data key.
    """
    return new_data_key(resolve_key(key), context, cells)


def the_data_key(
    data: Encrypted | Mapping[str, Header],
    key: Key | Encrypted | Operation | None = None,
    context: Mapping[str, str] | None = None,
) -> DataKey:
    """Unwrap the one data key of encrypted data; raise ValueError if there is none, or several."""
    headers = dict(data) if isinstance(data, Mapping) else headers_of(data)
    check_one_data_key(headers)
    (data_key,) = open_keys(list(headers.items()), resolve_key(key), context).values()
    return data_key


def check_one_data_key(headers: Mapping[str, Header]) -> None:
    """Raise ValueError if the headers of data are of no data key, or of several."""
    used: dict[bytes, list[str]] = {}
    for name, header in headers.items():
        for item in header.columns:
            used.setdefault(item.data_key, []).append(name)
    if not used:
        raise CallerValueError("nothing in the data is encrypted, so it has no data key")
    if len(used) > 1:
        listed = "; ".join(
            f"{commitment.hex()[:8]} for {', '.join(names)}" for commitment, names in used.items()
        )
        raise CallerValueError(
            f"the data is encrypted under {len(used)} data keys ({listed}). Pass one column of it"
        )
