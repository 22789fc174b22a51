"""Which master key is meant, who keeps it, and which of the keys that a file names may be used."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeAlias

from kmsdata.envelope import DataKeyRecord, KeyURI, Wrap, parse_key
from kmsdata.errors import FormatError, KeyNotFoundError, KeyServiceError, WrongKeyError
from kmsdata.keys import DataKey, KeyProvider
from kmsdata.providers.local import LocalKeystore

__all__ = ["Key", "new_data_key", "unwrap", "use"]

Key: TypeAlias = "str | Iterable[str] | DataKey"
"""What names a key: a URI, several (one data key, wrapped by each), or a data key."""


@dataclass(frozen=True)
class _State:
    key: str | None = None
    providers: tuple[KeyProvider, ...] = ()

    def changed(self, change: _State) -> _State:
        schemes = {provider.scheme for provider in change.providers}
        others = tuple(provider for provider in self.providers if provider.scheme not in schemes)
        return _State(change.key or self.key, (*change.providers, *others))


_process: list[_State] = []  # what was set for the process, in order; the last one counts
_lock = threading.RLock()
_keystores: dict[str | None, LocalKeystore] = {}  # by KMSDATA_KEYSTORE: each asks for its passphrase once
_block: ContextVar[_State | None] = ContextVar("kmsdata", default=None)


class use:  # noqa: N801 - reads as a verb, in a with statement too
    """Set the key, or the provider of keys, that calls use where they name none.

    Args:
        key_or_provider: a key URI; or a `KeyProvider`, which comes before the built-in ones
            for the URIs of its scheme.

    As a statement it holds for the process, or for the block that it stands in; as
    ``with kmsdata.use(...)`` for that block alone.

    Raises:
        FormatError: not a key URI.
        TypeError: neither a URI nor a provider.

    Example:
        >>> import kmsdata
        >>> with kmsdata.use("local://demo"):
        ...     pass  # encrypt and decrypt without key=
    """

    def __init__(self, key_or_provider: str | KeyProvider) -> None:
        if isinstance(key_or_provider, str):
            parse_key(key_or_provider)
            self._change = _State(key=key_or_provider)
        elif isinstance(key_or_provider, KeyProvider):
            self._change = _State(providers=(key_or_provider,))
        else:
            raise TypeError(
                "use() takes a key URI such as 'local://demo', or a provider with scheme, "
                "generate_data_key, unwrap and wrap"
            )
        self._tokens: list[Token[_State | None]] = []
        # A statement and a with block look the same from here: it is set now, and the block takes it back.
        self._outer = _block.get()
        if self._outer is None:
            with _lock:
                _process.append(self._change)
        else:
            _block.set(self._outer.changed(self._change))

    def __enter__(self) -> Self:
        if self._outer is not None:
            _block.set(self._outer)
        with _lock:
            _process[:] = [change for change in _process if change is not self._change]
        self._tokens.append(_block.set(_current().changed(self._change)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _block.reset(self._tokens.pop())

    def __repr__(self) -> str:
        return f"<kmsdata.use({self._change.key or self._change.providers!r})>"


def _current() -> _State:
    with _lock:
        return _block.get() or functools.reduce(_State.changed, _process, _State())


def _session_key() -> str | None:
    if (key := _current().key or os.environ.get("KMSDATA_KEY") or None) is None:
        return None
    try:
        parse_key(key)
    except FormatError as error:
        raise FormatError(f"KMSDATA_KEY: {error}", field="key") from None
    return key


def _provider(uri: str) -> KeyProvider:
    scheme = parse_key(uri).scheme
    for provider in _current().providers:
        if provider.scheme == scheme:
            return provider
    if scheme == "local":
        return _keystores.setdefault(os.environ.get("KMSDATA_KEYSTORE"), LocalKeystore())
    raise KeyNotFoundError(
        f"no provider for {scheme}:// keys: hand one to kmsdata.use(), or name a local:// key",
        provider=scheme,
        operation="find",
        key=uri,
    )


def new_data_key(key: Key | None = None, context: Mapping[str, str] | None = None) -> DataKey:
    """A new data key, by one call of the key's provider; or the data key that was handed in.

    Args:
        key: URI; several, of which the first makes the data key and the others wrap it too; a `DataKey`,
            which is returned as it is; or None for the session's key.
        context: pairs that stand in clear beside the wrapped key, and that opening it takes.

    Raises:
        ValueError: no key was named anywhere; or a context with a data key, which has its own.
        KeyServiceError: the provider refused.
    """
    if isinstance(key, DataKey):
        if context is not None and tuple(sorted(context.items())) != key.context:
            raise ValueError("this data key was made with another context: leave context= out")
        return key
    uris = _uris(key)
    if not uris:
        raise ValueError(
            "no key: pass key='local://demo' (or tencent-kms://...), call kmsdata.use('local://demo'), or "
            "set KMSDATA_KEY"
        )
    given = dict(context or {})
    # What no reader would take is refused before any key is made for it.
    DataKeyRecord(bytes(32), tuple(given.items()), tuple(Wrap(uri, "") for uri in uris))
    data_key = _provider(uris[0]).generate_data_key(uris[0], given)
    return data_key.with_wraps([data_key.wrap_by(_provider(uri), uri) for uri in uris[1:]])


def unwrap(record: DataKeyRecord, key: Key | None = None) -> DataKey:
    """The data key of a record, unwrapped and checked against its commitment.

    Args:
        record: from a header. It may name any key; what is used is decided here.
        key: only these may open it: URIs, where ``scheme://*`` or ``scheme://place/*`` stands for all
            such; or a `DataKey`. None: the session's key's provider and region are the limit,
            and a session that has none follows the header.

    Raises:
        WrongKeyError: none of the record's keys may be used, or what they unwrap is another data key.
        KeyServiceError: the provider refused; where there are several wraps, all did: the first error.
    """
    if isinstance(key, DataKey):
        if key.commits_to(record.commitment):
            if key.context != record.context:
                raise FormatError("the context was changed: it is not that of the data key", field="context")
            return key
        raise WrongKeyError(
            f"encrypted under another data key than {key!r}: pass the one that belongs to it, or its "
            "master key's URI",
            key=record.wraps[0].key,
        )
    allowed = _limits(key)
    refusal: KeyServiceError | None = None
    tried = False
    for wrap in record.wraps:
        if not allowed(parse_key(wrap.key)):
            continue
        tried = True
        try:
            data_key = _unwrapped(record, wrap)
        except KeyServiceError as error:
            refusal = refusal or error
            continue
        if data_key is not None:
            return data_key
    if refusal is not None:
        raise refusal
    named = ", ".join(wrap.key for wrap in record.wraps)
    if tried:
        raise WrongKeyError(
            f"what {named} unwraps is not the data key that this was encrypted under: the header was changed",
            key=record.wraps[0].key,
        )
    raise WrongKeyError(
        f"encrypted under {named}, which may not be used here: pass key= with that URI, if you trust where "
        "the data comes from",
        key=record.wraps[0].key,
        allowed=False,
    )


def _unwrapped(record: DataKeyRecord, wrap: Wrap) -> DataKey | None:
    """The data key, or None where it is another one. No error leaves a frame that holds it."""
    provider = _provider(wrap.key)
    secret = provider.unwrap(wrap.wrapped, wrap.key, dict(record.context))
    if not isinstance(secret, bytes) or len(secret) != 32:
        del secret
        raise KeyServiceError(
            f"{wrap.key}: the provider unwrapped something that is not a data key of 32 bytes",
            provider=provider.scheme,
            operation="unwrap",
            code="InvalidDataKey",
        )
    data_key = DataKey(secret, record.wraps, context=dict(record.context))
    return data_key if data_key.commits_to(record.commitment) else None


def _uris(key: str | Iterable[str] | None) -> list[str]:
    if key is None:
        session = _session_key()
        return [] if session is None else [session]
    uris = [key] if isinstance(key, str) else list(key)
    if not uris:
        raise ValueError("key= is an empty list")
    for uri in uris:
        parse_key(uri)
    return uris


def _limits(key: str | Iterable[str] | None) -> Callable[[KeyURI], bool]:
    if key is None:
        session = _session_key()
        if session is None:
            return lambda _: True
        limit = parse_key(session)
        return lambda uri: uri[:2] == limit[:2]
    whole: set[tuple[str, str | None]] = set()
    exact: set[KeyURI] = set()
    for uri in [key] if isinstance(key, str) else key:
        scheme, _, rest = uri.partition("://") if isinstance(uri, str) else ("", "", "")
        if rest == "*" or rest.endswith("/*"):
            whole.add((scheme, rest[:-2] if rest != "*" else None))
        else:
            exact.add(parse_key(uri))
    return lambda uri: uri in exact or (uri.scheme, uri.place) in whole or (uri.scheme, None) in whole
