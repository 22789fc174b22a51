"""Encrypt and decrypt data part by part, in several processes, under one data key.

The client plans with an empty frame or table; this makes the data key, with one KMS call. The plan holds
headers and wrapped keys, nothing secret, so it can be pickled. Each worker unwraps the data key once, with
its own credentials.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa

from kmsdata.codec import label
from kmsdata.errors import (
    CallerTypeError,
    CallerValueError,
    FormatError,
    KeyServiceError,
    UnsupportedTypeError,
    WrongKeyError,
    located,
)
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
from kmsdata.frames.key_argument import (
    check_one_data_key,
    data_key_for,
    is_encrypted_data,
    the_data_key,
)
from kmsdata.keys.data_key import DataKey, random_bytes
from kmsdata.keys.envelope import Header
from kmsdata.keys.fork_lock import Lock
from kmsdata.keys.key_uri import parse_key
from kmsdata.keys.session import Key, key_list, session_key
from kmsdata.keys.unwrap import Operation, limits

__all__ = [
    "DecryptionPlan",
    "EncryptionPlan",
    "decrypt_part",
    "encrypt_part",
    "plan_decryption",
    "plan_encryption",
    "worker_key",
]

_DataT = TypeVar("_DataT", pd.DataFrame, pa.Table)

# Tencent KMS allows 300 calls of Decrypt a second for each account and region; other work needs some of them.
_CALLS_PER_SECOND = 150
_LONGEST_WAIT = 60.0  # seconds

# The type of an object column depends on its values. All parts need one type: that of mixed values.
_MIXED = pd.Series(["a", 1, None], dtype=object)


@dataclass(frozen=True, repr=False)
class EncryptionPlan:
    """How to encrypt each part of some data. Holds no secret, and no value of the data.

    Attributes:
        like: the encrypted data without rows: every encrypted part has its columns and types. Not pickled.
        domains: the columns to encrypt: None if randomised, otherwise the domain.
        headers: the headers of these columns.
        keys: URIs or patterns of the master keys that workers may use; None: as their own session allows.
        processes: how many processes may call the KMS at the same time.
    """

    like: pd.DataFrame | pa.Table
    domains: Mapping[str, str | None]
    headers: Mapping[str, Header]
    keys: tuple[str, ...] | None
    processes: int

    def __repr__(self) -> str:
        return f"<EncryptionPlan of {', '.join(map(repr, self.domains))}>"

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"like": None}


@dataclass(frozen=True, repr=False)
class DecryptionPlan:
    """How to decrypt each part of some data. Holds no secret, and no value of the data.

    Attributes:
        like: the decrypted data without rows. A categorical column has no categories here: they are
            encrypted. A table's schema has no metadata. Not pickled.
        columns: names of the columns to decrypt; None: all.
        keys: URIs or patterns of the master keys that workers may use; None: as their own session allows.
        only: headers whose data key is the only one that may be used; or None.
        context: pairs that the authenticated context must contain.
        processes: how many processes may call the KMS at the same time.
    """

    like: pd.DataFrame | pa.Table
    columns: tuple[str, ...] | None
    keys: tuple[str, ...] | None
    only: Mapping[str, Header] | None
    context: Mapping[str, str] | None
    processes: int

    def __repr__(self) -> str:
        return f"<DecryptionPlan of {'all columns' if self.columns is None else ', '.join(self.columns)}>"

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"like": None}


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
    empty = _without_rows(empty)
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
    headers = headers_of(like, list(domains))
    # The wrapped keys of a new data key are of keys that the caller named. Those of other data came with it,
    # and may name any key.
    new = not isinstance(key, DataKey) and not is_encrypted_data(key)
    keys = tuple(wrap.key for wrap in data_key.wraps) if new else _of_session()
    _answered.add((os.getpid(), data_key.commitment))
    return EncryptionPlan(like, domains, headers, keys, processes)


def encrypt_part(part: _DataT, plan: EncryptionPlan) -> _DataT:
    """Encrypt a part: a frame or table with the columns and types of that which was planned with.

    Raises:
        ValueError: a column has another dtype, or other categories, than planned.
        UnsupportedTypeError: the values could not be restored exactly.
        KeyServiceError, WrongKeyError: the data key could not be unwrapped here.
    """
    _wait_before_first(plan.headers, plan.processes)
    with _errors_of_keys(plan):
        data_key = the_data_key(plan.headers, _operation(plan.keys, None, plan.headers))
    return _encrypted(part, plan.domains, data_key, plan.headers)


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
    only, keys = None, _of_session()
    if is_encrypted_data(key):
        only = headers_of(key)
        check_one_data_key(only)
    elif key is not None:
        listed: list[Any] = [key] if isinstance(key, DataKey) else key_list(key)  # type: ignore[arg-type]
        if any(isinstance(one, DataKey) for one in listed):
            raise CallerTypeError(
                "a DataKey is secret, so it is not sent to workers. Pass the URI of its master key, or "
                "encrypted data that has this data key: each worker unwraps it with its own credentials"
            )
        if not listed:
            raise CallerValueError("key= is an empty list. Name at least one key, or leave it out")
        limits(listed)  # raises an error here if one is not a key URI
        keys = tuple(listed)
    empty = _without_rows(empty)
    names = None if columns is None else tuple(column_names(columns))
    like = _decrypted_types(empty, names)
    return DecryptionPlan(like, names, keys, only, context, processes)


def decrypt_part(part: _DataT, plan: DecryptionPlan) -> _DataT:
    """Decrypt a part: a frame or table with the columns of that which was planned with.

    Raises:
        TamperedError, WrongKeyError, FormatError, KeyServiceError: as for `kmsdata.decrypt_table`.
    """
    headers = headers_of(part, plan.columns)
    names = None if plan.columns is None else list(plan.columns)
    with _errors_of_keys(plan):
        key = worker_key(plan, headers)
        if isinstance(part, pa.Table):
            return decrypt_table(part, names, key=key, context=plan.context)
        return decrypt_frame(part, names, key=key, context=plan.context, progress=False)


def worker_key(plan: DecryptionPlan, headers: Mapping[str, Header]) -> Any:
    """Return the argument ``key=`` with which a worker opens data with these headers, after a random wait.

    It is the same `Operation` for all parts: what the KMS refused is not asked again for each part.
    """
    _wait_before_first(headers, plan.processes)
    operation = _operation(plan.keys, plan.only, headers)
    return operation if plan.only is None else the_data_key(plan.only, operation)


def _of_session() -> tuple[str, ...] | None:
    """Return the keys that calls without ``key=`` may use here: workers may have another session key."""
    if (uri := session_key()) is None:
        return None
    scheme, place, _ = parse_key(uri)
    return (f"{scheme}://{place}/*" if place else f"{scheme}://*",)


def _without_rows(data: Any) -> Any:
    # Not a slice of the table: that would hold its values.
    return data.schema.empty_table() if isinstance(data, pa.Table) else data.iloc[:0]


def _encrypted(
    part: Any, domains: Mapping[str, str | None], data_key: DataKey, planned: Mapping[str, Header] | None
) -> Any:
    if isinstance(part, pa.Table):
        table = encrypt_table(
            part,
            [name for name, scope in domains.items() if scope is None],
            deterministic=[name for name, scope in domains.items() if scope is not None],
            domain={name: scope for name, scope in domains.items() if scope is not None},
            key=data_key,
        )
        for name in domains:
            made = table.schema.field(name).type.dtype.header
            if planned is not None and made.columns != planned[name].columns:
                raise _other_type(name, part.schema.field(name).type, planned[name])
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
        if planned is not None and planned[name].columns != cells.dtype.header.columns:
            raise _other_type(name, values.dtype, planned[name])
        out.isetitem(position, cells)
    return out


def _other_type(name: str, dtype: Any, planned: Header) -> CallerValueError:
    what = f"the type {dtype}, but the column was planned with {label(planned.columns[0].type)}"
    hint = "Cast the column before encryption"
    if isinstance(dtype, pd.CategoricalDtype):
        what = "other categories than the column was planned with"
        hint = "Make all categories known in all parts, or convert the column to text, before encryption"
    elif dtype == np.float64 and "int" in label(planned.columns[0].type):
        hint = (
            "In pandas an integer column with nulls is float64: read it with dtype_backend='pyarrow', or "
            f"cast it with .astype({{{name!r}: 'Int64'}}), before encryption"
        )
    return CallerValueError(f"column {name!r}: a part has {what}. All parts need one type. {hint}")


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


_OPERATIONS_KEPT = 256
_OPERATION_AGE = (
    300.0  # seconds after which a refusal by the KMS is asked for again, as in the cache of data keys
)

_waiting, _sharing = Lock(), Lock()
# Processes, and commitments of the data keys that they have made or asked for: a forked child asks again.
_answered: set[tuple[int, bytes]] = set()
_operations: OrderedDict[Hashable, tuple[float, Operation]] = OrderedDict()


def _operation(
    keys: tuple[str, ...] | None, only: Mapping[str, Header] | None, headers: Mapping[str, Header]
) -> Any:
    """Return the operation that the parts with these headers share in this process."""
    data = frozenset(header for header in headers.values()), frozenset((only or {}).values())
    by = keys, session_key() if keys is None else None, data
    with _sharing:
        began, operation = _operations.get(by) or (time.monotonic(), Operation(keys))
        if time.monotonic() - began > _OPERATION_AGE:
            began, operation = time.monotonic(), Operation(keys)
        _operations[by] = began, operation
        _operations.move_to_end(by)
        while len(_operations) > _OPERATIONS_KEPT:
            _operations.popitem(last=False)
    return operation


@contextlib.contextmanager
def _errors_of_keys(plan: EncryptionPlan | DecryptionPlan) -> Iterator[None]:
    """Say that an error is one of a worker. Forget what the KMS refused: users change rights and retry."""
    try:
        yield
    except (KeyServiceError, WrongKeyError) as error:
        with _sharing:
            _operations.clear()
        if plan.like is not None or isinstance(error, WrongKeyError):
            raise
        raise located(error, "in a worker process, which has its own environment") from None


def _wait_before_first(headers: Mapping[str, Header], processes: int) -> None:
    """Wait a random time before the first KMS call for a data key in this process.

    Otherwise thousands of workers that start together would exceed the limit of the KMS together.
    """
    records = [record for header in headers.values() for record in header.records]
    new = {(os.getpid(), record.commitment) for record in records} - _answered
    if not new or all(parse_key(wrap.key).scheme == "local" for record in records for wrap in record.wraps):
        return
    with _waiting:  # other threads of the process wait as long, and not once more
        if new <= _answered:
            return
        longest = min(processes / _CALLS_PER_SECOND, _LONGEST_WAIT)
        time.sleep(longest * int.from_bytes(random_bytes(4), "big") / (1 << 32))
        _answered.update(new)
