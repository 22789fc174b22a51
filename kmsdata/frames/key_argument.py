"""``key=`` of encryption and decryption: a URI, several, a data key, or encrypted data."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import pyarrow as pa

from kmsdata.frames.encrypted_columns import (
    Encrypted,
    headers_of,
)
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import Header
from kmsdata.keys.session import Key, new_data_key
from kmsdata.keys.unwrap import open_keys

__all__ = ["data_key_for", "resolve_key", "the_data_key"]


def resolve_key(key: Key | Encrypted | None) -> Key | None:
    """What names a key, where encrypted data stands for its data key, which is unwrapped here."""
    return the_data_key(key) if isinstance(key, (pd.DataFrame, pd.Series, pa.Table)) else key


def data_key_for(
    key: Key | Encrypted | None, context: Mapping[str, str] | None, cells: int | None = None
) -> DataKey:
    """The data key to encrypt under: that of encrypted data, the one handed in, or a new one.

    Args:
        key: what names it.
        context: for a new one.
        cells: how many it will encrypt, where it may be one that other calls of the session share.
    """
    return new_data_key(resolve_key(key), context, cells)


def the_data_key(data: Encrypted | Mapping[str, Header], key: Key | Encrypted | None = None) -> DataKey:
    """The one data key of encrypted data, unwrapped; ValueError where there is none, or several."""
    headers = dict(data) if isinstance(data, Mapping) else headers_of(data)
    used: dict[bytes, list[str]] = {}
    for name, header in headers.items():
        for item in header.columns:
            used.setdefault(item.data_key, []).append(name)
    if not used:
        raise ValueError("nothing in it is encrypted, so it has no data key")
    if len(used) > 1:
        listed = "; ".join(
            f"{commitment.hex()[:8]} for {', '.join(names)}" for commitment, names in used.items()
        )
        raise ValueError(f"it is encrypted under {len(used)} data keys ({listed}): name one column of it")
    (data_key,) = open_keys(list(headers.items()), resolve_key(key), None).values()
    return data_key
