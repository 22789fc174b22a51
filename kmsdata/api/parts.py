"""Encrypt and decrypt data part by part, in several processes, under one data key.

The client plans with an empty frame or table; this makes the data key, with one KMS call. The plan holds
headers and wrapped keys, nothing secret, so it can be pickled. Each worker unwraps the data key once, with
its own credentials.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa

from kmsdata.errors import CallerTypeError, CallerValueError, FormatError, UnsupportedTypeError
from kmsdata.frames.arguments import Columns, chosen_columns, column_names, refuse_encrypted, require
from kmsdata.frames.arrow.table import decrypt_table, encrypt_table
from kmsdata.frames.arrow_storage import validated
from kmsdata.frames.column import blank_arrow, blank_pandas, encrypt_column, seal
from kmsdata.frames.column import plan as plan_column
from kmsdata.frames.dtype import EncryptedArray, EncryptedDtype
from kmsdata.frames.encrypted_columns import (
    Encrypted,
    check_new_names,
    encrypted_columns,
    headers_of,
    is_encrypted,
    not_encrypted,
    parsed_headers,
    with_index_levels,
)
from kmsdata.frames.frame import decrypt_frame
from kmsdata.frames.key_argument import data_key_for, the_data_key
from kmsdata.keys.data_key import DataKey, random_bytes
from kmsdata.keys.envelope import Header
from kmsdata.keys.fork_lock import Lock
from kmsdata.keys.key_uri import parse_key
from kmsdata.keys.session import Key, key_list, session_key

__all__ = [
    "DecryptionPlan",
    "EncryptionPlan",
    "decrypt_part",
    "encrypt_part",
    "plan_decryption",
    "plan_encryption",
]

_DataT = TypeVar("_DataT", pd.DataFrame, pa.Table)

# Tencent KMS allows 300 calls of Decrypt a second for each account and region; other work needs some of them.
_CALLS_PER_SECOND = 150
_LONGEST_WAIT = 60.0  # seconds

# The type of an object column depends on its values. All parts need one type: that of mixed values.
_MIXED = pd.Series(["a", 1, None], dtype=object)


@dataclass(frozen=True, repr=False)
class EncryptionPlan:
    """How to encrypt each part of some data. Holds no secret.

    Attributes:
        like: the encrypted data without rows: every encrypted part has its columns and types.
        domains: the columns to encrypt: None if randomised, otherwise the domain.
        processes: how many processes may call the KMS at the same time.
    """

    like: pd.DataFrame | pa.Table
    domains: Mapping[str, str | None]
    processes: int

    def __repr__(self) -> str:
        return f"<EncryptionPlan of {', '.join(map(repr, self.domains))}>"


@dataclass(frozen=True, repr=False)
class DecryptionPlan:
    """How to decrypt each part of some data. Holds no secret.

    Attributes:
        like: the decrypted data without rows. A categorical column has no categories here: they are
            encrypted. A table's schema has no metadata.
        columns: names of the columns to decrypt; None: all.
        keys: URIs or patterns of the master keys that may be used; None: any.
        only: encrypted data without rows, whose data key is the only one that may be used; or None.
        context: pairs that the authenticated context must contain.
        processes: how many processes may call the KMS at the same time.
    """

    like: pd.DataFrame | pa.Table
    columns: tuple[str, ...] | None
    keys: tuple[str, ...] | None
    only: Encrypted | None
    context: Mapping[str, str] | None
    processes: int

    def __repr__(self) -> str:
        return f"<DecryptionPlan of {'all columns' if self.columns is None else ', '.join(self.columns)}>"


def plan_encryption(
    empty: _DataT,
    columns: Columns = (),
    *,
    deterministic: Columns | bool = (),
    key: Key | Encrypted | None = None,
    domain: str | Mapping[str, str] | None = None,
    context: Mapping[str, str] | None = None,
    processes: int = 1,
) -> EncryptionPlan:
    """Make a data key, with one KMS call, and the headers of all parts.

    Args:
        empty: a frame or table without rows, with the dtypes of the parts. Columns of objects are encrypted
            as objects of mixed types, which is slower than as text.
        columns: as for `kmsdata.encrypt_table`, like the next four.
        deterministic: columns whose equal values have equal cells.
        key: the master key, a data key, or encrypted data.
        domain: of deterministic columns.
        context: of the data key.
        processes: how many processes may encrypt parts at the same time.

    Raises:
        KeyError, TypeError, ValueError, UnsupportedTypeError, KeyServiceError: as for
            `kmsdata.encrypt_table`; also for an Arrow column of dictionaries, since each part may have
            other ones.
    """
    empty = empty.iloc[:0] if isinstance(empty, pd.DataFrame) else empty.slice(0, 0)
    labels = empty.columns if isinstance(empty, pd.DataFrame) else empty.column_names
    levels = list(empty.index.names) if isinstance(empty, pd.DataFrame) else []
    domains = chosen_columns(labels, columns, deterministic, domain, levels)
    if isinstance(empty, pa.Table):
        for name in domains:
            if pa.types.is_dictionary(kind := empty.schema.field(name).type):
                raise UnsupportedTypeError(
                    f"column {name!r} is {kind}: each part may have another list of values, which the header "
                    f"of the column contains. Cast the column to {kind.value_type} first",
                    column=name,
                    dtype=str(kind),
                )
    check_new_names(domains, parsed_headers(empty))
    data_key = data_key_for(key, context)
    like = _encrypted(empty, domains, data_key, planned=None)
    _answered.add(data_key.commitment)
    return EncryptionPlan(like, domains, processes)


def encrypt_part(part: _DataT, plan: EncryptionPlan) -> _DataT:
    """Encrypt a part: a frame or table with the columns and types of that which was planned with.

    Raises:
        ValueError: a column has another dtype, or other categories, than planned.
        UnsupportedTypeError: the values could not be restored exactly.
        KeyServiceError, WrongKeyError: the data key could not be unwrapped here.
    """
    headers = headers_of(plan.like, list(plan.domains))
    keys = [wrap.key for header in headers.values() for record in header.records for wrap in record.wraps]
    _wait_before_first(headers, plan.processes)
    return _encrypted(part, plan.domains, the_data_key(headers, list(dict.fromkeys(keys))), plan.like)


def plan_decryption(
    empty: _DataT,
    columns: Columns | None = None,
    *,
    key: Key | Encrypted | None = None,
    context: Mapping[str, str] | None = None,
    processes: int = 1,
) -> DecryptionPlan:
    """Find the dtypes of decrypted data, without a KMS call.

    Args:
        empty: encrypted data without rows, with the dtypes of the parts.
        columns: names of the columns to decrypt; None: all.
        context: pairs that the authenticated context must contain.
        key: as for `kmsdata.decrypt_table`, except that a `DataKey` is refused: it is secret, and the workers
            would receive it. Encrypted data, whose data key is used, is accepted.
        processes: how many processes may decrypt parts at the same time.

    Raises:
        TypeError: the key is a `DataKey`. KeyError, FormatError: as for `kmsdata.decrypt_table`.
        UnsupportedTypeError: the Arrow type of a column depends on its values.
    """
    if isinstance(key, DataKey):
        raise CallerTypeError(
            "a DataKey is secret, so it is not sent to workers. Pass the URI of its master key, or encrypted "
            "data that has this data key: each worker unwraps it with its own credentials"
        )
    empty = _without_rows(empty)
    only = _without_rows(key) if isinstance(key, (pd.DataFrame, pd.Series, pa.Table)) else None
    if only is None and key is not None:
        keys: tuple[str, ...] | None = tuple(key_list(key))  # type: ignore[arg-type]
    else:
        keys = _of_session()
    names = None if columns is None else tuple(column_names(columns))
    like = _decrypted_types(empty, names)
    return DecryptionPlan(like, names, keys, only, context, processes)


def decrypt_part(part: _DataT, plan: DecryptionPlan) -> _DataT:
    """Decrypt a part: a frame or table with the columns of that which was planned with.

    Raises:
        TamperedError, WrongKeyError, FormatError, KeyServiceError: as for `kmsdata.decrypt_table`.
    """
    headers = headers_of(part, plan.columns)
    _wait_before_first(headers, plan.processes)
    names = None if plan.columns is None else list(plan.columns)
    if isinstance(part, pa.Table):
        return decrypt_table(part, names, key=_key(plan), context=plan.context)
    return decrypt_frame(part, names, key=_key(plan), context=plan.context, progress=False)


def _key(plan: DecryptionPlan) -> Key | None:
    keys = None if plan.keys is None else list(plan.keys)
    return keys if plan.only is None else the_data_key(plan.only, keys)


def _of_session() -> tuple[str, ...] | None:
    """Return the keys that calls without ``key=`` may use here: workers may have another session key."""
    if (uri := session_key()) is None:
        return None
    scheme, place, _ = parse_key(uri)
    return (f"{scheme}://{place}/*" if place else f"{scheme}://*",)


def _without_rows(data: Any) -> Any:
    return data.slice(0, 0) if isinstance(data, pa.Table) else data.iloc[:0]


def _encrypted(part: Any, domains: Mapping[str, str | None], data_key: DataKey, planned: Any) -> Any:
    if isinstance(part, pa.Table):
        table = encrypt_table(
            part,
            [name for name, scope in domains.items() if scope is None],
            deterministic=[name for name, scope in domains.items() if scope is not None],
            domain={name: scope for name, scope in domains.items() if scope is not None},
            key=data_key,
        )
        for name in domains:
            if planned is not None and table.schema.field(name).type != planned.schema.field(name).type:
                raise _other_type(name, part.schema.field(name).type)
        return table
    out = part.assign()
    for name, scope in domains.items():
        require(part.columns, name)
        position = part.columns.get_loc(name)
        values = part.iloc[:, position]
        refuse_encrypted(name, is_encrypted(values))
        if values.dtype == np.dtype(object):
            header, described = plan_column(_MIXED, name, data_key, domain=scope)
            dtype = EncryptedDtype(Header.of([header], [data_key.record]))
            cells = EncryptedArray(seal(header, described, values, name, data_key), dtype)
        else:
            if isinstance(values.dtype, (pd.ArrowDtype, pd.StringDtype)):
                validated(values.array.__arrow_array__(), name)
            cells = encrypt_column(values, name, data_key, scope)
        if planned is not None and planned[name].dtype != cells.dtype:
            raise _other_type(name, values.dtype)
        out.isetitem(position, cells)
    return out


def _other_type(name: str, dtype: Any) -> CallerValueError:
    what = "other categories" if isinstance(dtype, pd.CategoricalDtype) else f"the type {dtype}"
    return CallerValueError(
        f"column {name!r}: a part has {what}, not what the column was planned with. All parts need one type: "
        "cast the column before encryption; for categories, make them known in all parts"
    )


def _decrypted_types(empty: Any, names: tuple[str, ...] | None) -> Any:
    """Return what decryption of data without rows gives, without the lists of categories."""
    headers = headers_of(empty, names)
    for name in names or ():
        if name not in headers:
            frame = isinstance(empty, pd.DataFrame)
            require([*empty.columns, *empty.index.names] if frame else empty.column_names, name)
            raise (
                not_encrypted(empty, name)
                if frame
                else FormatError(f"column {name!r} is not encrypted: it has no kmsdata header", column=name)
            )
    blank: Any = blank_pandas if isinstance(empty, pd.DataFrame) else blank_arrow
    blanks: dict[str, Any] = {name: blank(header, name) for name, header in headers.items()}
    if isinstance(empty, pa.Table):
        for name, values in blanks.items():
            position = empty.schema.get_field_index(name)
            empty = empty.set_column(position, empty.schema.field(position).with_type(values.type), values)
        return empty.replace_schema_metadata(None)
    out, levels = empty.assign(), {}
    for item in encrypted_columns(empty):
        if (values := blanks.get(str(item.name))) is None:
            continue
        if item.level is None:
            out.isetitem(item.position, values)
        else:
            levels[item.level] = pd.Index(values, dtype=values.dtype, name=item.name)
    if levels:
        out.index = with_index_levels(empty.index, levels)
    return out


_waiting = Lock()
_answered: set[bytes] = set()  # commitments of data keys that this process has made or asked for


def _wait_before_first(headers: Mapping[str, Header], processes: int) -> None:
    """Wait a random time before the first KMS call for a data key in this process.

    Otherwise thousands of workers that start together would exceed the limit of the KMS together.
    """
    records = [record for header in headers.values() for record in header.records]
    if all(record.commitment in _answered for record in records):
        return
    if all(parse_key(wrap.key).scheme == "local" for record in records for wrap in record.wraps):
        return
    with _waiting:  # other threads of the process wait as long, and not once more
        if all(record.commitment in _answered for record in records):
            return
        longest = min(processes / _CALLS_PER_SECOND, _LONGEST_WAIT)
        time.sleep(longest * int.from_bytes(random_bytes(4), "big") / (1 << 32))
        _answered.update(record.commitment for record in records)
