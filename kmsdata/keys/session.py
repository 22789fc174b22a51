"""The session: its master key, its providers and its cache, as set by `use`, `using` or the environment."""

from __future__ import annotations

import dis
import functools
import itertools
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import FrameType, TracebackType
from typing import Any, NamedTuple, NoReturn, TypeAlias

from kmsdata.errors import (
    CallerTypeError,
    CallerValueError,
    CredentialsError,
    FormatError,
    KeyNotFoundError,
    KeyServiceError,
    KmsDataError,
)
from kmsdata.keys.cache import Flights, KeyCache, forget_keys
from kmsdata.keys.data_key import DataKey, KeyProvider
from kmsdata.keys.envelope import DataKeyRecord, Wrap
from kmsdata.keys.fork_lock import Lock
from kmsdata.keys.key_uri import parse_key, short_name
from kmsdata.keys.local.keystore import LocalKeystore
from kmsdata.keys.tencent.client import TencentKMS
from kmsdata.keys.usage import count

__all__ = [
    "Access",
    "Key",
    "forget",
    "from_cache",
    "hold",
    "in_use",
    "key_list",
    "known_access",
    "new_data_key",
    "pairs",
    "pinned_schemes",
    "provider_of",
    "resolved",
    "session_key",
    "use",
    "using",
    "wrap_under",
]

Key: TypeAlias = "str | Iterable[str] | DataKey"
"""A key argument: a URI, several URIs (one data key, wrapped by each), or a data key."""


@dataclass(frozen=True)
class _State:
    key: str | None = None
    providers: tuple[KeyProvider, ...] = ()
    cache: KeyCache | None = None

    def changed(self, change: _State) -> _State:
        replaced = {_serves(provider) for provider in change.providers}
        others = tuple(provider for provider in self.providers if _serves(provider) not in replaced)
        return _State(change.key or self.key, (*change.providers, *others), change.cache or self.cache)

    def hides(self, change: _State) -> bool:
        """Return whether what the change sets is not used where this state is in force too."""
        served = {scheme for scheme, _ in map(_serves, self.providers)}
        return bool(
            (self.key and change.key)
            or (self.cache and change.cache)
            or any(provider.scheme in served for provider in change.providers)
        )


def _serves(provider: KeyProvider) -> tuple[str, str | None]:
    """Return the scheme of a provider's keys, and its region, or None if it is not limited to one."""
    return provider.scheme, getattr(provider, "region", None)


_lock = Lock()
_process = _State()  # the defaults of the whole process
_blocks: ContextVar[tuple[_State, ...]] = ContextVar("kmsdata", default=())  # of this thread or task
_keystores: dict[str | None, LocalKeystore] = {}  # by KMSDATA_KEYSTORE: each prompts for its passphrase once
_services: dict[tuple[str, str | None], TencentKMS] = {}  # by region and KMSDATA_TENCENT_ENDPOINT
_cache = KeyCache()
_installed: dict[tuple[str, str], KeyProvider] = {}  # made by entry points, by scheme and place
_held: list[str] = []  # why keys cannot be used yet: a login form is open and not answered


def _forget_installed() -> None:
    # Also after a fork: other software's clients may not share a connection with the parent process.
    global _installed, _loading
    # Both are replaced, not emptied: what another thread makes meanwhile is not kept.
    _installed, _loading = {}, Flights()


_loading = Flights()
_installed_lock = Lock(_forget_installed)
# What is being made here, by scheme and place; emptied when it is made, since tasks keep a copy of the tuple.
_making: ContextVar[tuple[set[tuple[str, str]], ...]] = ContextVar("kmsdata providers", default=())


def use(key_or_provider: str | KeyProvider | KeyCache) -> None:
    """Set the default key, a key provider, or the cache of the whole process.

    This is a statement: it applies to every thread and task of the process, until another call replaces it.
    For a block of code, and for one of several threads or tasks, there is `using`. Where a ``using`` block
    sets the same thing, the block keeps its own until it ends; a warning says so.

    Args:
        key_or_provider: a key URI, used by calls without ``key=``; or a `KeyProvider`, which takes precedence
            over the built-in ones for the URIs of its scheme (and region, if it has one); or a `KeyCache`,
            which replaces the process's cache.

    Raises:
        FormatError: not a key URI.
        TypeError: neither a URI nor a provider; or ``with kmsdata.use(...)``, which changes nothing.

    Example:
        >>> import kmsdata
        >>> kmsdata.use("local://demo")  # encrypt and decrypt without key=, from now on
    """
    global _process
    if _begins_with_block(sys._getframe().f_back):
        raise CallerTypeError(
            "kmsdata.use() is a statement: it sets the default of the whole process, also for other threads. "
            "Write 'with kmsdata.using(...):' for a block. Nothing was changed"
        )
    change = _change("use", key_or_provider)
    with _lock:
        _process = _process.changed(change)
    if change.providers:
        _held.clear()  # with a provider, an open login form is not needed
    if any(block.hides(change) for block in _blocks.get()):
        warnings.warn(
            "kmsdata.use() was called inside a block of kmsdata.using() that sets the same: it changes the "
            "default of the process, but not this block",
            stacklevel=2,
        )


class using:  # noqa: N801 - reads as a verb in a with statement
    """Set the key, a key provider, or the cache for a ``with`` block, in this thread or task only.

    Blocks nest: the innermost one that sets something wins, and everything that no block sets is the default
    of the process (`use`). Other threads and tasks never see the block, also not threads that are started in
    it: those begin with the default of the process. ``asyncio`` tasks that are started in the block, and
    ``asyncio.to_thread``, copy it; for other threads, pass ``contextvars.copy_context().run``.

    Args:
        key_or_provider: a key URI, a `KeyProvider` or a `KeyCache`, as for `use`. Data keys that the block
            unwraps are kept in its own `KeyCache`, if it sets one, otherwise in that of the process; they
            are found there only by a call that uses the same provider.

    Raises:
        FormatError: not a key URI.
        TypeError: neither a URI nor a provider.
        RuntimeError: the block ends in another thread or task than it began in.

    Example:
        >>> import kmsdata
        >>> with kmsdata.using("local://demo"):
        ...     pass  # encrypt and decrypt without key=
    """

    __slots__ = ("_change",)

    def __init__(self, key_or_provider: str | KeyProvider | KeyCache) -> None:
        self._change = _change("using", key_or_provider)

    def __enter__(self) -> None:
        _blocks.set((*_blocks.get(), self._change))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Blocks in generators can end in another order than they began: remove this one only. One object may
        # also be used for several blocks, nested or in several threads.
        blocks = list(_blocks.get())
        for at in reversed(range(len(blocks))):
            if blocks[at] is self._change:
                del blocks[at]
                _blocks.set(tuple(blocks))
                return
        raise RuntimeError(
            "a block of kmsdata.using() ended in another thread or task than it began in: there it still "
            "applies. Begin and end it in the same one"
        )

    def __repr__(self) -> str:
        change = self._change
        return f"<kmsdata.using({change.key or change.cache or change.providers[0]!r})>"


def _change(caller: str, key_or_provider: object) -> _State:
    if isinstance(key_or_provider, str):
        parse_key(key_or_provider)
        return _State(key=key_or_provider)
    if isinstance(key_or_provider, KeyCache):
        return _State(cache=key_or_provider)
    if isinstance(key_or_provider, KeyProvider):
        return _State(providers=(key_or_provider,))
    raise CallerTypeError(
        f"{caller}() takes a key URI such as 'local://demo', a KeyCache, or a provider with scheme, "
        "generate_data_key, unwrap and wrap"
    )


def _begins_with_block(caller: FrameType | None) -> bool:
    """Return whether the running call is the expression of a ``with`` statement.

    Only the caller's next instruction says how the result of a call is used: ``BEFORE_WITH`` begins a block
    up to Python 3.13, ``COPY`` and ``LOAD_SPECIAL`` from 3.14 on.
    """
    if caller is None:  # called by C, such as by _thread.start_new_thread
        return False
    code = caller.f_code.co_code
    names = (dis.opname[code[at]] for at in range(caller.f_lasti + 2, len(code), 2))
    following = list(itertools.islice((name for name in names if name not in ("CACHE", "NOP")), 2))
    return following[:1] in (["BEFORE_WITH"], ["BEFORE_ASYNC_WITH"]) or following == ["COPY", "LOAD_SPECIAL"]


def _current() -> _State:
    return functools.reduce(_State.changed, _blocks.get(), _process)


def forget() -> None:
    """Forget all cached data keys, credentials and passphrases: the next call looks for them again."""
    forget_keys()
    with _lock:
        _services.clear()
        _keystores.clear()
    with _installed_lock:
        _forget_installed()


def hold(why: str) -> None:
    """Block the search for credentials until a provider is passed to `use`: a login form is open.

    Args:
        why: what to do first: the message of the `CredentialsError` that is raised until then.
    """
    _held[:] = [why]


def _require_answer() -> None:
    # The provider of a block is an answer, for this block.
    if _held and not any(p.scheme == "tencent-kms" for block in _blocks.get() for p in block.providers):
        raise CredentialsError(_held[0], provider="tencent-kms", operation="login", code="NotAnswered")


def in_use(provider: KeyProvider) -> bool:
    """Return whether the session uses this provider."""
    return any(used is provider for used in _current().providers)


def session_key() -> str | None:
    """Return the URI that calls without ``key=`` use, or None.

    ``KMSDATA_KEY`` may be a name of up to 24 characters: ``payroll`` means ``local://payroll``.

    Raises:
        FormatError: ``KMSDATA_KEY`` is neither a key URI nor such a name.
    """
    if (key := _current().key or os.environ.get("KMSDATA_KEY") or None) is None:
        return None
    if short_name(key):  # as on the command line; a longer text may be a secret that was set by mistake
        return f"local://{key}"
    try:
        parse_key(key)
    except FormatError as error:
        raise FormatError(f"KMSDATA_KEY: {error}", field="key") from None
    return key


def pinned_schemes(key: str | Iterable[str] | None) -> set[str]:
    """Return the schemes of the keys that the caller named: in ``key=``, or of the session's key without it.

    Also of ``scheme://*``, which allows every key of a scheme.
    """
    named = session_key() if key is None else key
    return set() if named is None else {uri.partition("://")[0] for uri in key_list(named)}


def provider_of(uri: str, *, pinned: bool) -> KeyProvider:
    """Return the provider of a key: one that was passed to `use`, a built-in one, or an installed one.

    Installed packages offer providers in the entry-point group ``kmsdata.providers``: the name is a scheme,
    the object is called with the place of a URI (``eu-west-1`` of ``aws-kms://eu-west-1/<key id>``; empty, if
    the URI has none) and returns the provider. It is called once per place and process.

    Args:
        uri: the key.
        pinned: whether the caller named a key of this scheme (``key=``, `use`, `using`, ``KMSDATA_KEY``).
            Otherwise no installed provider is loaded: the scheme comes from a header, and a file must not
            choose which code runs.

    Raises:
        KeyNotFoundError: there is none, or those that were passed in serve other regions.
        KeyServiceError: an installed provider cannot be used.
        CredentialsError: a login form is open and not answered.
    """
    scheme, place, _ = parse_key(uri)
    if scheme == "tencent-kms":
        _require_answer()
    of_scheme = [provider for provider in _current().providers if provider.scheme == scheme]
    for provider in of_scheme:
        if _serves(provider)[1] in (None, place):
            return provider
    # If the caller passed credentials for another region, those of the environment must not replace them.
    if scheme == "tencent-kms" and not of_scheme:
        endpoint = os.environ.get("KMSDATA_TENCENT_ENDPOINT") or None
        with _lock:
            if (place, endpoint) not in _services:
                _services[place, endpoint] = TencentKMS(place, endpoint=endpoint)
            return _services[place, endpoint]
    if scheme == "local":
        return _keystores.setdefault(os.environ.get("KMSDATA_KEYSTORE"), LocalKeystore())
    if pinned and not of_scheme and (installed := _installed_provider(uri)) is not None:
        return installed
    held = ", ".join(repr(provider) for provider in of_scheme)
    if held:
        what = f", only {held}. Pass a provider of {place} to kmsdata.use()"
    elif pinned:
        what = (
            f". Pass a provider of {scheme}:// keys to kmsdata.use(), install a package that provides them, "
            "or use a local:// key"
        )
    else:
        what = (
            f" was passed to kmsdata.use(), and providers of installed packages are used only for keys that "
            f"the caller names. If you trust the source of the data, pass key= or call kmsdata.use({uri!r})"
        )
    raise KeyNotFoundError(
        f"{uri}: no provider for this key{what}", provider=scheme, operation="find", key=uri
    )


def _installed_provider(uri: str) -> KeyProvider | None:
    """Return the provider that an installed package offers for a key; None if there is no such package."""
    scheme, place, _ = parse_key(uri)
    with _installed_lock:
        installed, loading = _installed, _loading
    if (provider := installed.get((scheme, place))) is not None:
        return provider
    # Code that makes a provider waits for no other thread, which may wait for this one.
    if any(_making.get()):
        return _made_by_entry_point(uri, installed)
    # Without a lock: the import of the package runs other code, which may use locks.
    return loading.do((scheme, place), lambda: _made_by_entry_point(uri, installed))


def _made_by_entry_point(uri: str, installed: dict[tuple[str, str], KeyProvider]) -> KeyProvider | None:
    scheme, place, _ = parse_key(uri)
    if (scheme, place) in installed:  # another thread made it since the caller looked
        return installed[scheme, place]
    found = entry_points(group="kmsdata.providers", name=scheme)
    if not found:
        return None
    if len(found) > 1:
        offered = ", ".join(sorted(map(_offered_by, found)))
        _unusable(
            uri,
            "SeveralProviders",
            f"{len(found)} installed packages provide {scheme}:// keys: {offered}. Uninstall all but one, or "
            "pass a provider to kmsdata.use()",
        )
    (entry_point,) = found
    offered, doing = _offered_by(entry_point), "cannot be imported"
    if any((scheme, place) in made for made in _making.get()):
        _broken(uri, f"the provider of {offered} needs a key of {scheme}://{place} itself, before it is made")
    making = {(scheme, place)}
    before = _making.set((*_making.get(), making))
    try:
        factory = entry_point.load()
        doing = f"cannot make a provider of {place or scheme!r}"
        provider = factory(place)
        served = _serves(provider) if isinstance(provider, KeyProvider) else ("", None)
    except KmsDataError as error:
        _clear_frames(error)
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - other software may raise anything
        _clear_frames(error)
        _broken(uri, f"the provider of {offered} {doing}: {_reason(error)}", cause=error)
    finally:
        making.clear()
        _making.reset(before)
    if served[0] != scheme:
        _broken(
            uri,
            f"the provider of {offered} returned a {type(provider).__name__}, which is no provider of "
            f"{scheme}:// keys: it needs scheme = {scheme!r}, generate_data_key, unwrap and wrap",
        )
    if served[1] not in (None, place):
        _broken(uri, f"the provider of {offered} serves another region than {place!r}")
    return installed.setdefault((scheme, place), provider)


def _reason(error: BaseException) -> str:
    """Return the class of an error, and the text of an ImportError: other texts may contain values."""
    name = type(error).__name__
    if not isinstance(error, ImportError):
        return name
    try:
        return f"{name}: {error}"
    except Exception:  # noqa: BLE001 - other software may raise anything
        return name


def _clear_frames(error: BaseException) -> None:
    """Remove the local variables from the frames of an error, and of all that led to it. The lines stay.

    They may be credentials.
    """
    left: list[BaseException | None] = [error]
    seen: set[int] = set()  # an error may be its own cause
    while left:
        if (one := left.pop()) is None or id(one) in seen:
            continue
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        left += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            left += one.exceptions


def _offered_by(entry_point: EntryPoint) -> str:
    return f"{entry_point.dist.name if entry_point.dist else 'a package'} ({entry_point.value})"


def _broken(uri: str, why: str, operation: str = "find", cause: BaseException | None = None) -> NoReturn:
    _unusable(
        uri,
        "BrokenProvider",
        f"{why}. Reinstall or update the package, or pass another provider to kmsdata.use()",
        operation,
        cause,
    )


def _unusable(
    uri: str, code: str, why: str, operation: str = "find", cause: BaseException | None = None
) -> NoReturn:
    scheme = parse_key(uri).scheme
    raise KeyServiceError(f"{uri}: {why}", provider=scheme, operation=operation, code=code) from cause


def resolved(uri: str) -> str:
    """Return the URI for a header, of a key that the caller named: an alias is replaced by its key's id."""
    resolve = getattr(provider_of(uri, pinned=True), "resolve", None)
    return uri if resolve is None else resolve(uri)


def _held_by(provider: KeyProvider, uri: str) -> tuple[Any, ...]:
    """Return the cache key of a provider: the provider and its current credential."""
    held = provider, getattr(provider, "identity", None)
    try:
        hash(held)
    except TypeError:
        pass
    else:
        return held
    _broken(uri, f"the provider {_named(provider)}, or its identity, cannot be hashed")


def _named(provider: KeyProvider) -> str:
    # Not its repr, which may show a credential.
    return f"{type(provider).__module__}.{type(provider).__qualname__}"


def new_data_key(
    key: Key | None = None, context: Mapping[str, str] | None = None, cells: int | None = None
) -> DataKey:
    """Generate a data key with one KMS call, or return the data key that was passed in.

    Args:
        key: a URI; several URIs, of which the first generates the data key and the others wrap it as well;
            a `DataKey`, which is returned unchanged; or None for the session's key.
        context: pairs that are stored unencrypted next to the wrapped key, and are required to unwrap it.
        cells: how many cells it will encrypt, if a generated data key from the session's cache may be
            shared; None: always a new one.

    Raises:
        ValueError: no key was given; or a data key was given with a context other than its own.
        TypeError: not a key, or not a context.
        KeyServiceError: a KMS call failed.
    """
    given = pairs(context)
    if isinstance(key, DataKey):
        if context is not None and tuple(sorted(given.items())) != key.context:
            raise CallerValueError("this data key was generated with another context. Leave context= out")
        return key
    uris = _uris(key)
    if not uris:
        _require_answer()
        raise CallerValueError(
            "no key was given. Pass key='local://demo' (or tencent-kms://...), call "
            "kmsdata.use('local://demo'), or set KMSDATA_KEY"
        )
    # Raise for what readers would reject, before a KMS call is made.
    DataKeyRecord(bytes(32), tuple(given.items()), tuple(Wrap(uri, "") for uri in uris))
    uris = list(dict.fromkeys(resolved(uri) for uri in uris))
    by = (
        tuple(_held_by(provider_of(uri, pinned=True), uri) for uri in uris),
        tuple(uris),
        tuple(sorted(given.items())),
    )
    if cells is None:  # a caller who keeps the data key gets a new one, not one that others also use
        return _generated(uris, given)
    return _cache_in_force().generated(by, cells, lambda: _generated(uris, given))


def _generated(uris: list[str], context: dict[str, str]) -> DataKey:
    for uri in uris:  # before the first KMS call, so that an error leaves nothing half done
        ensure = getattr(provider_of(uri, pinned=True), "ensure_key", None)
        if ensure is not None:
            ensure(uri)
    count("generate_data_key")
    data_key = _generated_by(provider_of(uris[0], pinned=True), uris[0], context)
    wraps = list(data_key.wraps)
    for uri in uris[1:]:
        wraps.append(wrap_under(data_key, uri))
    return data_key.under(wraps)


def _generated_by(provider: KeyProvider, uri: str, context: dict[str, str]) -> DataKey:
    """Return a data key that readers can unwrap; otherwise, data would be encrypted and lost."""
    data_key = provider.generate_data_key(uri, dict(context))
    if not isinstance(data_key, DataKey):
        why, data_key = f"returned a {type(data_key).__name__}, not a kmsdata.DataKey", None
    elif [wrap.key for wrap in data_key.wraps] != [uri]:
        keys = ", ".join(wrap.key for wrap in data_key.wraps)
        why = f"did not do what it was called for: the data key is wrapped by {keys}"
    elif dict(data_key.context) != context:
        why = "did not do what it was called for: the data key lacks its context"
    else:
        return data_key
    _broken(uri, f"generate_data_key of {_named(provider)} {why}", "generate_data_key")


def wrap_under(data_key: DataKey, uri: str) -> Wrap:
    """Wrap the data key under another master key, which the caller named, with one KMS call.

    Raises:
        KeyServiceError: the KMS call failed.
    """
    count("wrap")
    return data_key.wrap_by(provider_of(uri, pinned=True), uri)


def from_cache(
    provider: KeyProvider,
    wrap: Wrap,
    context: tuple[tuple[str, str], ...],
    load: Callable[[], DataKey | None],
) -> DataKey | None:
    """Return the data key of a wrapped key from the session's cache, or what ``load`` unwraps."""
    # Not cached: reading a local file is cheap, and another process may disable one of its keys.
    if isinstance(provider, LocalKeystore):
        return load()
    return _cache_in_force().unwrapped((_held_by(provider, wrap.key), (wrap, context)), load)


class Access(NamedTuple):
    """Whether this session can unwrap a data key, as far as it is known without a KMS call.

    Attributes:
        state: ``"can be opened"``, ``"cannot be opened"``, or ``"not known"``: the KMS decides.
        why: the reason.
        key: the URI that ``key=`` must name, if the session does not allow it otherwise.
        region: the region to sign in to, if no credentials were looked for so far.
    """

    state: str
    why: str
    key: str = ""
    region: str = ""


def known_access(wrap: Wrap, context: tuple[tuple[str, str], ...]) -> Access:
    """Return whether a wrapped key can be unwrapped here. Makes no KMS call.

    Raises:
        KmsDataError: it cannot: no provider, a login form that is not answered, a local key that is missing.
    """
    provider = provider_of(wrap.key, pinned=parse_key(wrap.key).scheme in pinned_schemes(None))
    if isinstance(provider, LocalKeystore):
        return Access(*provider._access(wrap.wrapped, wrap.key))
    if not isinstance(provider, TencentKMS):
        return Access("not known", f"the provider of {provider.scheme}:// keys decides when it is called")
    if (account := provider._account_so_far) is None:
        return Access(
            "not known",
            "KMS decides when it is called; no credentials were looked for so far",
            region=provider.region,
        )
    if _cache_in_force()._has((_held_by(provider, wrap.key), (wrap, context))):
        return Access("can be opened", "its data key is in the cache, so no KMS call is needed")
    account = account.removesuffix(" (passed in)")
    return Access("not known", f"KMS decides when it is called, for {account} in {provider.region}")


def _cache_in_force() -> KeyCache:
    return _current().cache or _cache


def pairs(context: object) -> dict[str, str]:
    """Check the context that a caller passed, and copy it; raise TypeError if it is not one."""
    if context is None:
        return {}
    if not isinstance(context, Mapping):
        raise CallerTypeError(f"context= takes a mapping of text to text, not {type(context).__name__}")
    if not all(isinstance(part, str) for pair in context.items() for part in pair):
        raise CallerTypeError("context= takes a mapping of text to text: a name or a value in it is not text")
    return dict(context)


def key_list(key: str | Iterable[str]) -> list[str]:
    """Return a key URI, or several, as a list; raise TypeError if it is neither."""
    if isinstance(key, str):
        return [key]
    if isinstance(key, (bytes, bytearray, memoryview, Mapping)) or not isinstance(key, Iterable):
        raise CallerTypeError(
            "key= takes the URI of a master key, such as 'local://demo', several URIs, a DataKey, or "
            f"encrypted data whose data key to use, not {type(key).__name__}"
        )
    return list(key)


def _uris(key: str | Iterable[str] | None) -> list[str]:
    if key is None:
        session = session_key()
        return [] if session is None else [session]
    uris = key_list(key)
    if not uris:
        raise CallerValueError("key= is an empty list. Name at least one key, or leave it out")
    for uri in uris:
        parse_key(uri)
    return uris
