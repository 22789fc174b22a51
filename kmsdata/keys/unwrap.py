"""Unwrap data keys, and authenticate headers under them.

In the order of SPEC.md section 4: unwrap, compare the commitment, compare the MAC of every column object that
is used; only then derive keys for cells.
"""

from __future__ import annotations

import copy
import difflib
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kmsdata.codec import types
from kmsdata.errors import (
    FormatError,
    KeyAccessError,
    KeyNotFoundError,
    KeyServiceError,
    KmsDataError,
    WrongKeyError,
)
from kmsdata.keys.data_key import DataKey, KeyProvider
from kmsdata.keys.envelope import DataKeyRecord, Header, Wrap, merged_records
from kmsdata.keys.key_uri import KeyURI, parse_key
from kmsdata.keys.session import (
    Access,
    Key,
    from_cache,
    key_list,
    known_access,
    pairs,
    pinned_schemes,
    provider_of,
    resolved,
    session_key,
)
from kmsdata.keys.usage import count

__all__ = [
    "OF_A_WRAPPED_KEY",
    "DataKeys",
    "Operation",
    "access",
    "authenticate",
    "limits",
    "open_keys",
    "unwrap",
    "unwrap_by",
]

# Failed unwraps after which an operation makes no further ones: enough for files under many keys that are
# denied, and few enough that a header cannot cause thousands of KMS calls.
FAILED_PER_KEY = 64
FAILED_IN_ALL = 1024
NOT_TRIED = "TooManyFailures"  # the code of the error for a wrapped key that was therefore not tried
# Last parts of the codes of providers for a wrapped key that the master key does not unwrap.
OF_A_WRAPPED_KEY = {"EncryptionError", "InvalidCiphertext", "OtherKey"}


class Operation:
    """What one call of a user may unwrap: which master keys it may use, and how many unwraps may fail.

    The writer of a header chooses the wrapped keys in it, and each one could cost a KMS call. So a master key
    that is denied, not found or disabled is not called again, and other failed unwraps are limited, for each
    master key and in all. Unwraps that succeed are never counted, and a wrapped key that was refused is not
    tried again. Several threads may share an operation.

    Args:
        key: the keys that may be used; see `unwrap`.
        argument: the argument by which the caller passed them, for errors.
        named: another key that the caller named, whose scheme is therefore pinned too (see `provider_of`).
    """

    def __init__(self, key: Key | None = None, argument: str = "key=", named: str | None = None) -> None:
        self.argument, self._named = argument, named
        # A list: it is read again for each error, and a generator would be used up after the first time.
        self.key = key if key is None or isinstance(key, (str, DataKey)) else key_list(key)
        self._answered = threading.Condition()
        self._answers: dict[str, _Answers] = {}
        self._failed = 0
        self._refused: dict[tuple[bytes, tuple[tuple[str, str], ...], Wrap], KeyServiceError | None] = {}
        self._allowed: Callable[[KeyURI], bool] | None = None

    def allows(self, uri: KeyURI) -> bool:
        """Return whether a key named in a file may be used."""
        if self._allowed is None:
            self._allowed = limits(None if isinstance(self.key, DataKey) else self.key)
        return self._allowed(uri)

    def _pins(self, scheme: str) -> bool:
        """Return whether the caller named a key of this scheme."""
        key = None if isinstance(self.key, DataKey) else self.key
        return scheme in pinned_schemes(key) or (
            self._named is not None and scheme in pinned_schemes(self._named)
        )

    def unwrap(self, record: DataKeyRecord, wrap: Wrap) -> DataKey | None:
        """Return the data key from one wrapped key, or None if it is not the data key of the record.

        The caller checks whether the master key may be used.

        Raises:
            KeyServiceError: the call failed, or was not made, since others failed before.
        """
        with self._answered:
            answers = self._answers.setdefault(wrap.key, _Answers())
            self._answered.wait_for(answers.decided)
            this = record.commitment, record.context, wrap
            if this in self._refused:
                if (before := self._refused[this]) is None:
                    return None
                raise copy.copy(before)
            refused = answers.refusals.get(None) or answers.refusals.get(record.context)
            if refused is not None:
                raise copy.copy(refused)
            if answers.failed >= FAILED_PER_KEY or (not answers.good and self._failed >= FAILED_IN_ALL):
                raise _not_tried(wrap.key, answers.failed)
            answers.running += 1
        data_key = refusal = None
        try:
            data_key = unwrap_by(record, wrap, pinned=self._pins(parse_key(wrap.key).scheme))
        except KeyServiceError as error:
            refusal = copy.copy(error)  # a copy: raising adds frames to the traceback
            raise
        finally:
            with self._answered:
                answers.running -= 1
                if data_key is not None:
                    answers.good = True
                else:
                    answers.failed += 1
                    self._failed += 1
                    # Another failure, such as of the network, may be over at the next try.
                    if refusal is None or isinstance(refusal, (KeyAccessError, KeyNotFoundError)):
                        self._refused[this] = refusal
                    if not answers.good and refusal is not None and _of_the_master_key(refusal):
                        # A policy may allow some contexts and deny others.
                        everywhere = isinstance(refusal, KeyNotFoundError) or "Disabled" in (
                            refusal.code or ""
                        )
                        answers.refusals[None if everywhere else record.context] = refusal
                self._answered.notify_all()
        return data_key


@dataclass
class _Answers:
    """The answers about one master key in an operation."""

    running: int = 0
    failed: int = 0
    good: bool = False
    refusals: dict[tuple[tuple[str, str], ...] | None, KeyServiceError] = field(default_factory=dict)
    """By the context that was refused; None: every context, since the key is missing or disabled."""

    def decided(self) -> bool:
        """Return whether no call that is running could still forbid the next one."""
        return self.running == 0 or (self.good and self.failed + self.running < FAILED_PER_KEY)


def _of_the_master_key(error: KeyServiceError) -> bool:
    """Return whether a refusal is about the master key, not about one wrapped key."""
    about_the_wrapped_key = (error.code or "").rpartition(".")[2] in OF_A_WRAPPED_KEY
    return isinstance(error, (KeyAccessError, KeyNotFoundError)) and not about_the_wrapped_key


def _not_tried(key: str, failed: int) -> KeyAccessError:
    limit = f"{failed} under it" if failed >= FAILED_PER_KEY else f"{FAILED_IN_ALL:,} in all"
    return KeyAccessError(
        f"{key}: not tried, because too many other wrapped keys could not be unwrapped: {limit} is the limit "
        "of one operation. If you trust the source of the data, pass fewer files or columns at a time",
        provider=parse_key(key).scheme,
        operation="unwrap",
        code=NOT_TRIED,
        key=key,
    )


def unwrap(record: DataKeyRecord, key: Key | None = None, operation: Operation | None = None) -> DataKey:
    """Unwrap the data key of a record, and check it against its commitment.

    Args:
        record: from a header. It may name any key; this function decides which of them is used.
        key: the only keys that may be used: URIs, where ``scheme://*`` or ``scheme://place/*`` means all keys
            of that scheme or place; or a `DataKey`. None: any key of the session key's provider and region;
            without a session key, any key that the header names.
        operation: the operation that this is a part of, with these keys; None: one for this call alone.

    Raises:
        WrongKeyError: none of the record's keys may be used, or they unwrap another data key.
        KeyServiceError: the KMS call failed; with several wrapped keys, all calls failed, and this is the
            first error, or the one that says that the limit of the operation was reached.
    """
    operation = operation or Operation(key)
    key = operation.key
    if isinstance(key, DataKey):
        if key.commits_to(record.commitment):
            if key.context != record.context:
                raise FormatError(
                    "the context was changed: it is not the one of the data key", field="context"
                )
            return key
        raise WrongKeyError(
            f"the data is encrypted under another data key than {key!r}. Pass its own data key, or the URI "
            "of its master key",
            key=record.wraps[0].key,
        )
    refusal: KeyServiceError | None = None
    tried = False
    for wrap in record.wraps:
        if not operation.allows(parse_key(wrap.key)):
            continue
        tried = True
        try:
            data_key = operation.unwrap(record, wrap)
        except KeyServiceError as error:
            if refusal is None or (error.code == NOT_TRIED and refusal.code != NOT_TRIED):
                refusal = error
            continue
        if data_key is not None:
            return data_key
    if refusal is not None:
        raise refusal
    named = ", ".join(wrap.key for wrap in record.wraps)
    if tried:
        raise WrongKeyError(
            f"{named} unwraps another data key, not the data key that this was encrypted under: the header "
            "was changed",
            key=record.wraps[0].key,
        )
    raise WrongKeyError(_not_allowed(record, key, operation.argument), key=record.wraps[0].key, allowed=False)


_ACCESS = ("can be opened", "not known", "cannot be opened")


def access(record: DataKeyRecord) -> Access:
    """Return whether this session can unwrap a data key, as far as it is known without a KMS call."""
    found = [_known_access(record, wrap) for wrap in record.wraps]
    return min(found, key=lambda one: _ACCESS.index(one.state))


def _known_access(record: DataKeyRecord, wrap: Wrap) -> Access:
    try:
        if limits(None)(parse_key(wrap.key)):
            return known_access(wrap, record.context)
        why = f"the session's key is {session_key()}. key= allows a key of another provider or region"
    except KmsDataError as error:
        return Access("cannot be opened", str(error))
    return Access("cannot be opened", why, key=wrap.key)


def _not_allowed(record: DataKeyRecord, key: str | Iterable[str] | None, argument: str) -> str:
    """Return the message for data under keys that the caller, or the session, does not allow."""
    named = ", ".join(wrap.key for wrap in record.wraps)
    trusted = f"If you trust the source of the data, pass that URI as {argument}"
    if key is None:
        scheme, place, _ = parse_key(session_key() or "")
        return (
            f"no key was passed: the data is encrypted under {named}; the session's key {session_key()} "
            "(kmsdata.use, kmsdata.using or KMSDATA_KEY) allows only keys of "
            f"{scheme}://{place}. {trusted}"
        )
    given = key_list(key)
    close = [
        wrap.key
        for wrap in record.wraps
        for uri in given
        if uri.rpartition("/")[0] == wrap.key.rpartition("/")[0]
        # Names alone, and very close: the rest of a URI is equal, and a header may name any key.
        and difflib.get_close_matches(uri.rpartition("/")[2], [wrap.key.rpartition("/")[2]], cutoff=0.8)
    ]
    return (
        f"the key that was passed does not open the data: it is encrypted under {named}; {argument} allows "
        f"only {', '.join(given) or 'no key'}. "
        + (f"Did you mean {' or '.join(dict.fromkeys(close))}?" if close else trusted)
    )


def unwrap_by(record: DataKeyRecord, wrap: Wrap, *, pinned: bool) -> DataKey | None:
    """Return the data key from one wrapped key, or None if it is not the data key of the record.

    The caller checks whether the master key may be used (`limits`), and whether its scheme is pinned (see
    `provider_of`). No frame in an error's traceback contains the data key.
    """
    provider = provider_of(wrap.key, pinned=pinned)
    data_key = from_cache(provider, wrap, record.context, lambda: _asked(provider, wrap, record.context))
    if data_key is None or not data_key.commits_to(record.commitment):
        return None
    return data_key.under(record.wraps)


def _asked(provider: KeyProvider, wrap: Wrap, context: tuple[tuple[str, str], ...]) -> DataKey:
    count("unwrap")
    secret = provider.unwrap(wrap.wrapped, wrap.key, dict(context))
    if not isinstance(secret, bytes) or len(secret) != 32:
        del secret
        raise KeyServiceError(
            f"{wrap.key}: the provider returned something other than a data key of 32 bytes",
            provider=provider.scheme,
            operation="unwrap",
            code="InvalidDataKey",
        )
    return DataKey(secret, [wrap], context=dict(context))


def limits(key: str | Iterable[str] | None) -> Callable[[KeyURI], bool]:
    """Return a function that decides whether a key named in a file may be used; see `unwrap`."""
    if key is None:
        session = session_key()
        if session is None:
            return lambda _: True
        limit = parse_key(session)
        return lambda uri: uri[:2] == limit[:2]
    whole: set[tuple[str, str | None]] = set()
    exact: list[str] = []
    for uri in key_list(key):
        scheme, _, rest = uri.partition("://") if isinstance(uri, str) else ("", "", "")
        if rest == "*" or rest.endswith("/*"):
            whole.add((scheme, rest[:-2] if rest != "*" else None))
        else:
            parse_key(uri)
            exact.append(uri)

    def allowed(uri: KeyURI) -> bool:
        if (uri.scheme, uri.place) in whole or (uri.scheme, None) in whole:
            return True
        named = [parse_key(text) for text in exact]
        # Resolving an alias is a KMS call: so it is done only if no URI is equal as it is written.
        return uri in named or any(
            meant(text) == uri for text, key in zip(exact, named, strict=True) if key[:2] == uri[:2]
        )

    aliases: dict[str, KeyURI | KeyServiceError] = {}

    def meant(text: str) -> KeyURI:
        if text not in aliases:  # each alias is resolved once, whether that succeeds or fails
            try:
                aliases[text] = parse_key(resolved(text))
            except KeyServiceError as error:
                aliases[text] = copy.copy(error)
        if isinstance(found := aliases[text], KeyServiceError):
            raise copy.copy(found)
        return found

    return allowed


def authenticate(header: Header, data_keys: Mapping[bytes, DataKey], column: str) -> None:
    """Check every object of a column's header, before any key is derived for its cells.

    Args:
        header: the column's.
        data_keys: by commitment, unwrapped and checked against it.
        column: its name, for errors.

    Raises:
        FormatError: an object was changed after it was written, or has a type that this version lacks.
    """
    for item in header.columns:
        if not data_keys[item.data_key].authenticates(item):
            raise FormatError(
                f"column {column!r}: its header was changed after it was written (the MAC differs)",
                column=column,
                field="mac",
            )
        try:
            types.check(item.codec_type, item.kind)
        except FormatError as error:
            raise error.with_facts(column=column) from None


def _check_context(header: Header, data_keys: Mapping[bytes, DataKey], context: object, column: str) -> None:
    """Check that each record has the context of its data key, and that it contains these pairs.

    Raises:
        FormatError: a context was changed, or lacks one of the pairs.
    """
    asked = pairs(context)
    for record in header.records:
        data_key = data_keys[record.commitment]
        if record.context != data_key.context:
            raise FormatError(
                f"column {column!r}: its context was changed: it is not the one of its data key",
                column=column,
                field="context",
            )
        actual = dict(data_key.context)
        for name, text in asked.items():
            if actual.get(name) != text:
                raise FormatError(
                    f"column {column!r}: its context does not contain {name!r}: {text!r}; "
                    + (f"it is {actual}" if actual else "it is empty"),
                    column=column,
                    field="context",
                )


class DataKeys:
    """The data keys of headers, in one operation. Each takes one KMS call, whether that succeeds or fails.

    Args:
        key: the keys that may be used; see `unwrap`. Or an operation that this is a part of.
        context: pairs that the authenticated context of each data key must contain.
    """

    def __init__(self, key: Key | Operation | None, context: Mapping[str, str] | None) -> None:
        self._operation = key if isinstance(key, Operation) else Operation(key)
        self._context = context
        self._known: dict[DataKeyRecord, DataKey | KmsDataError] = {}

    def unwrap(self, record: DataKeyRecord) -> DataKey:
        """Return the data key of a record; if unwrapping it failed before, raise the same error again."""
        if record not in self._known:
            try:
                self._known[record] = unwrap(record, operation=self._operation)
            except KmsDataError as error:
                self._known[record] = error
        found = self._known[record]
        if isinstance(found, KmsDataError):
            raise found
        return found

    def authenticated(
        self, header: Header, column: str, data_keys: Mapping[bytes, DataKey] | None = None
    ) -> Mapping[bytes, DataKey]:
        """Authenticate a column's header, and return its data keys by commitment.

        Args:
            header: the column's.
            column: its name, for errors.
            data_keys: data keys that are unwrapped already; None: they are unwrapped here.

        Raises:
            KeyServiceError, WrongKeyError: they could not be unwrapped.
            FormatError: the header was changed, or its context lacks one of the required pairs.
        """
        if data_keys is None:
            data_keys = {record.commitment: self.unwrap(record) for record in header.records}
        authenticate(header, data_keys, column)
        _check_context(header, data_keys, self._context, column)
        return data_keys


def open_keys(
    headers: Sequence[tuple[str, Header]],
    key: Key | Operation | None,
    context: Mapping[str, str] | None,
    *,
    keep: bool = False,
) -> dict[bytes, DataKey]:
    """Unwrap the data keys of these columns, one KMS call for each, and authenticate the headers under them.

    Args:
        headers: by column.
        key: the keys that may be used; see `unwrap`. Or an operation that this is a part of.
        context: pairs that the authenticated context of each data key must contain.
        keep: leave out the data keys to which the KMS denies access, instead of raising. Warns if it left out
            data keys that were not tried, since too many others failed.

    Returns:
        The data keys by commitment.
    """
    data_keys = DataKeys(key, context)
    keys: dict[bytes, DataKey] = {}
    not_tried: list[str] = []
    for commitment, record in merged_records(
        record for _, header in headers for record in header.records
    ).items():
        try:
            keys[commitment] = data_keys.unwrap(record)
        except (KeyServiceError, WrongKeyError) as error:
            denied = isinstance(error, (KeyAccessError, KeyNotFoundError)) or not getattr(
                error, "allowed", True
            )
            if not (keep and denied):
                error.with_facts(data_key=commitment.hex()[:8])
                raise
            if getattr(error, "code", None) == NOT_TRIED:
                not_tried.append(str(error))
    if not_tried:
        warnings.warn(f"{len(not_tried):,} data keys were left out: {not_tried[0]}", stacklevel=4)
    for name, header in headers:
        if all(item.data_key in keys for item in header.columns):
            data_keys.authenticated(header, name, keys)
    return keys
