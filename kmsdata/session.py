"""Which master key is meant, who keeps it, and which of the keys that a file names may be used."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self, TypeAlias

from kmsdata.envelope import DataKeyRecord, KeyURI, parse_key
from kmsdata.errors import KeyNotFoundError, KeyServiceError, WrongKeyError
from kmsdata.keys import DataKey, KeyProvider
from kmsdata.providers.local import LocalKeystore

__all__ = ["Key", "new_data_key", "unwrap", "use"]

Key: TypeAlias = "str | Iterable[str] | DataKey"
"""What names a key: a URI, several (one data key, wrapped by each), or a data key."""


@dataclass(frozen=True)
class _State:
    key: str | None = None
    providers: tuple[KeyProvider, ...] = ()


_process = _State()
_keystores: dict[str | None, LocalKeystore] = {}  # by KMSDATA_KEYSTORE: each asks for its passphrase once
_block: ContextVar[_State | None] = ContextVar("kmsdata", default=None)


class use:  # noqa: N801 - reads as a verb, in a with statement too
    """Set the key, or the provider of keys, that calls use where they name none.

    Args:
        key_or_provider: a key URI; or a `KeyProvider`, which comes before the built-in ones
            for the URIs of its scheme.

    As a statement it holds for the process; as ``with kmsdata.use(...)`` for that block.

    Raises:
        FormatError: not a key URI.
        TypeError: neither a URI nor a provider.

    Example:
        >>> import kmsdata
        >>> with kmsdata.use("local://demo"):
        ...     pass  # encrypt and decrypt without key=
    """

    def __init__(self, key_or_provider: str | KeyProvider) -> None:
        global _process
        self._before, now = _process, _current()
        if isinstance(key_or_provider, str):
            parse_key(key_or_provider)
            self._state = replace(now, key=key_or_provider)
        elif isinstance(key_or_provider, KeyProvider):
            others = tuple(item for item in now.providers if item.scheme != key_or_provider.scheme)
            self._state = replace(now, providers=(key_or_provider, *others))
        else:
            raise TypeError(
                "use() takes a key URI such as 'local://demo', or a provider with scheme, "
                "generate_data_key, unwrap and wrap"
            )
        self._tokens: list[Token[_State | None]] = []
        if _block.get() is None:
            _process = self._state
        else:
            _block.set(self._state)

    def __enter__(self) -> Self:
        # From here on it is this block's, not the process's: other threads keep what they had.
        global _process
        _process = self._before
        self._tokens.append(_block.set(self._state))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _block.reset(self._tokens.pop())

    def __repr__(self) -> str:
        return f"<kmsdata.use({self._state.key!r})>"


def _current() -> _State:
    return _block.get() or _process


def _session_key() -> str | None:
    return _current().key or os.environ.get("KMSDATA_KEY") or None


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
            secret = _provider(wrap.key).unwrap(wrap.wrapped, wrap.key, dict(record.context))
        except KeyServiceError as error:
            refusal = refusal or error
            continue
        data_key = DataKey(secret, record.wraps, context=dict(record.context))
        if data_key.commits_to(record.commitment):
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
    )


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
