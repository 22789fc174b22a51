"""The contract of key providers as a test: for authors of providers, in pytest or plain Python."""

from __future__ import annotations

import base64
import contextlib
import os
import pickle
import select
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NoReturn

import pandas as pd

from kmsdata.errors import (
    CredentialsError,
    KeyAccessError,
    KeyNotFoundError,
    KeyServiceError,
    KmsDataError,
)
from kmsdata.frames.frame import decrypt_frame, encrypt_frame
from kmsdata.keys.cache import KeyCache
from kmsdata.keys.data_key import DataKey, Hidden, KeyProvider, random_bytes
from kmsdata.keys.key_uri import parse_key
from kmsdata.keys.session import using
from kmsdata.keys.unwrap import OF_A_WRAPPED_KEY

__all__ = ["ProviderContractError", "ProviderReport", "check_provider"]

_CONTEXTS: tuple[dict[str, str], ...] = ({}, {"team": "a"}, {"部门": "薪资", "z": "", "a": 'é\n"\\'})
# A context, and others that a provider takes for the same one if it drops or changes parts of the text, or
# joins names and texts without marking where each ends.
_OTHER_CONTEXTS: tuple[tuple[dict[str, str], tuple[dict[str, str], ...]], ...] = (
    ({"team": "a"}, (
        {}, {"team": "b"}, {"team": "a", "x": "y"}, {"Team": "a"}, {"team": "A"}, {"team": "a "},
        {" team": "a"}, {"team": "a", "x": ""}, {"team": "aé"}, {"tea": "ma"}, {"a": "team"},
    )),
    ({"a": "b", "c": "é"}, (
        {"a": "b", "c": "è"}, {"a": "b", "c": "e\u0301"}, {"a": "é", "c": "b"}, {"a": "bcé"},
        *({"a": f"b{end}c{mark}é"} for end, mark in ("&=", ",=", ";=", "\n=", ",:", "||")),
    )),
)  # fmt: skip
_SECONDS_OF_A_CHILD = 60.0


@dataclass(frozen=True)
class ProviderReport:
    """What `check_provider` found.

    Attributes:
        provider: the class of the provider, and its scheme.
        passed: the parts of the contract that it keeps.
        failed: by part, what is wrong.
        not_run: by part, what `check_provider` needs to run it.
    """

    provider: str
    passed: tuple[str, ...]
    failed: Mapping[str, str]
    not_run: Mapping[str, str]

    def __str__(self) -> str:
        counts = f"{len(self.passed)} passed, {len(self.failed)} failed, {len(self.not_run)} were not run"
        lines = [f"parts of the contract of key providers, for {self.provider}: {counts}"]
        lines += [f"  failed   {part}: {why}" for part, why in self.failed.items()]
        lines += [f"  not run  {part}: {why}" for part, why in self.not_run.items()]
        return "\n".join([*lines, *(f"  passed   {part}" for part in self.passed)])


class ProviderContractError(KmsDataError):
    """A key provider breaks its contract. ``report`` is the `ProviderReport`; the message is its text."""

    report: ProviderReport


def check_provider(
    provider: KeyProvider,
    key: str,
    *,
    other: str | None = None,
    missing: str | None = None,
    disable: Callable[[str], object] | None = None,
    enable: Callable[[str], object] | None = None,
    denied: KeyProvider | None = None,
    unauthenticated: KeyProvider | None = None,
    throttled: Callable[[], AbstractContextManager[object]] | None = None,
    secrets: Collection[str] = (),
) -> ProviderReport:
    """Check a key provider against its contract: what kmsdata relies on.

    It runs every part for which it was given what it needs, and raises one error that lists all failures.
    Parts that it could not run are listed in the report and never count as passed: compare ``not_run`` with
    what you expect. Use a test account: it makes up to 200 KMS calls, and disables the key for a moment.

    Args:
        provider: the provider to check.
        key: URI of a master key that exists and that the provider may use.
        other: URI of a second such key.
        missing: URI of a key that does not exist.
        disable: disables the key with a given URI, such as ``provider.disable_key``.
        enable: enables it again.
        denied: a provider whose credentials are valid but may not use ``key``.
        unauthenticated: a provider without valid credentials.
        throttled: returns a context manager; in its block the service refuses all calls as too many.
        secrets: texts that no error, repr or pickle may contain, such as the credentials.

    Returns:
        The report, if nothing failed.

    Raises:
        ProviderContractError: the provider breaks the contract.
        FormatError: a key is not a key URI.

    Example:
        >>> import tempfile, kmsdata
        >>> from kmsdata.testing import check_provider
        >>> store = kmsdata.LocalKeystore(tempfile.mkdtemp() + "/keystore.json")
        >>> demo, other = [store.create_key(name, quiet=True) for name in ("demo", "other")]
        >>> report = check_provider(
        ...     store, demo, other=other, disable=store.disable_key, enable=store.enable_key
        ... )
        >>> "disabled key" in report.passed, report.not_run["missing key"]
        (True, 'pass missing=')
    """
    for uri in (key, other, missing):
        if uri is not None:
            parse_key(uri)
    given = {
        "other": other, "missing": missing, "disable": disable, "enable": enable, "denied": denied,
        "unauthenticated": unauthenticated, "throttled": throttled, "secrets": secrets or None,
    }  # fmt: skip
    contract = _Contract(provider, key, given)
    passed, failed, not_run = [], {}, {}
    first: BaseException | None = None
    for part, (run, needs) in contract.parts().items():
        if lacking := [f"{name}=" for name in needs if given[name] is None]:
            not_run[part] = f"pass {' and '.join(lacking)}"
        elif run is None:
            not_run[part] = f"processes are not forked on {sys.platform}"
        else:
            try:
                run()
            except _Broken as broken:
                failed[part], cause = str(broken), broken.__cause__
            except Exception as error:  # noqa: BLE001 - a provider may raise anything
                failed[part], cause = f"unexpected {_named(error)}", error
            else:
                passed.append(part)
                continue
            if contract.shows_secret(failed[part]):
                failed[part] = "it failed with an error that shows a credential"
            if cause is not None and not contract.shows_secret(_all_text(cause)):
                first = first or cause
    name = f"{type(provider).__name__} ({parse_key(key).scheme})"  # the repr may show a secret
    report = ProviderReport(name, tuple(passed), failed, not_run)
    if failed:
        raise ProviderContractError(str(report), report=report) from first
    return report


class _Broken(Exception):  # noqa: N818 - never seen outside this module
    """What is wrong."""


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _broken(what: str, cause: BaseException | None = None) -> NoReturn:
    raise _Broken(what) from cause


class _Contract:
    """The parts of the contract, for one provider."""

    def __init__(self, provider: KeyProvider, key: str, given: Mapping[str, Any]) -> None:
        self.provider, self.key, self.given = provider, key, given
        # Hidden, so that only frames of the provider can contain it.
        self.secret = Hidden(random_bytes(32))

    def parts(self) -> dict[str, tuple[Callable[[], None] | None, tuple[str, ...]]]:
        """Return the parts by name: the function, and the arguments that it needs."""
        forks = hasattr(os, "fork") and sys.platform != "darwin"
        return {
            "interface": (self.interface, ()),
            "generate and unwrap": (self.generate, ()),
            "wrap and unwrap": (self.wrap, ()),
            "another context": (self.another_context, ()),
            "changed wrapped keys": (self.changed, ()),
            "keys of another scheme or region": (self.foreign, ()),
            "a frame and back": (self.frame, ()),
            "threads": (self.threads, ()),
            "after a fork": (self.fork if forks else None, ()),
            "another key": (self.another_key, ("other",)),
            "missing key": (self.missing, ("missing",)),
            "disabled key": (self.disabled, ("disable", "enable")),
            "access denied": (self.denied, ("denied",)),
            "no credentials": (self.no_credentials, ("unauthenticated",)),
            "throttling": (self.throttling, ("throttled",)),
            "credentials are not shown": (self.shown, ("secrets",)),
        }

    def interface(self) -> None:
        if not isinstance(self.provider, KeyProvider):
            _broken("it lacks one of scheme, generate_data_key, unwrap and wrap")
        if self.provider.scheme != parse_key(self.key).scheme:
            _broken(f"its scheme is {self.provider.scheme!r}, but the key is {self.key}")
        region = getattr(self.provider, "region", None)
        if region not in (None, parse_key(self.key).place):
            _broken(f"its region is {region!r}, but the key is {self.key}")
        hash(self.provider)  # caches keep data keys by provider
        hash(getattr(self.provider, "identity", None))

    def generate(self) -> None:
        for context in _CONTEXTS:
            one, two = self._generated(context), self._generated(context)
            if one.commitment == two.commitment:
                _broken("it generated the same data key twice")
            for data_key in (one, two):
                self._check_opens(data_key, context)

    def wrap(self) -> None:
        for context in _CONTEXTS:
            wrapped = self.provider.wrap(self.secret.reveal(), self.key, dict(context))
            if not isinstance(wrapped, str) or not wrapped.isprintable():
                _broken("wrap returned no printable text")
            if any(_contains(text, self.secret.reveal()) for text in _decoded(wrapped)):
                _broken("the wrapped key contains the data key")
            if self.provider.unwrap(wrapped, self.key, dict(context)) != self.secret.reveal():
                _broken("unwrap returned another data key than wrap was given")

    def another_context(self) -> None:
        for context, others in _OTHER_CONTEXTS:
            wrapped = self._generated(context).wraps[0].wrapped
            for other in others:
                self._refused(
                    KeyAccessError, f"unwrap with context {other} instead of {context}",
                    self.provider.unwrap, wrapped, self.key, other,
                )  # fmt: skip

    def changed(self) -> None:
        wrapped = self._generated({}).wraps[0].wrapped
        at = len(wrapped) - 12
        flipped = wrapped[:at] + ("A" if wrapped[at] != "A" else "B") + wrapped[at + 1 :]
        for text in ("AAAA", "?", wrapped[: len(wrapped) // 2], wrapped[:-8], flipped):
            error = self._refused(
                KeyAccessError, "unwrap of a wrapped key that was changed",
                self.provider.unwrap, text, self.key, {},
            )  # fmt: skip
            if wrapped[:20] in str(error):
                _broken("an error shows the wrapped key", error)
            if (error.code or "").rpartition(".")[2] not in OF_A_WRAPPED_KEY:
                _broken(
                    f"its code is {error.code!r}, not InvalidCiphertext, so the master key seems denied",
                    error,
                )

    def foreign(self) -> None:
        scheme, place, name = parse_key(self.key)
        uris = ["local://kmsdata-test" if scheme != "local" else "tencent-kms://ap-guangzhou/kmsdata-test"]
        if getattr(self.provider, "region", None) is not None:
            uris.append(f"{scheme}://{place}-1/{name}")
        for uri in uris:
            self._all_refused(KeyNotFoundError, self.provider, uri, "AAAA")

    def another_key(self) -> None:
        other = self.given["other"]
        wrapped = self._generated({}, other).wraps[0].wrapped
        self._refused(
            (KeyAccessError, KeyNotFoundError), f"unwrap with another key than {other}, which wrapped",
            self.provider.unwrap, wrapped, self.key, {},
        )  # fmt: skip

    def missing(self) -> None:
        uri, wrapped = self.given["missing"], self._generated({}).wraps[0].wrapped
        self._refused(
            (KeyNotFoundError, KeyAccessError), "unwrap with a key that does not exist",
            self.provider.unwrap, wrapped, uri, {}, key=uri,
        )  # fmt: skip
        calls = (
            lambda: self.provider.wrap(self.secret.reveal(), uri, {}),
            lambda: self.provider.generate_data_key(uri, {}),
        )
        for call in calls:
            try:  # a provider may create keys for new data
                call()
            except Exception as error:  # noqa: BLE001 - checked here
                self._check((KeyNotFoundError, KeyAccessError), "new data with such a key", error, uri)

    def disabled(self) -> None:
        data_key = self._generated({})
        self.given["disable"](self.key)
        try:
            self._all_refused(KeyAccessError, self.provider, self.key, data_key.wraps[0].wrapped)
        finally:
            self.given["enable"](self.key)
        self._check_opens(data_key, {})

    def denied(self) -> None:
        wrapped = self._generated({}).wraps[0].wrapped
        self._all_refused(KeyAccessError, self.given["denied"], self.key, wrapped)

    def no_credentials(self) -> None:
        wrapped = self._generated({}).wraps[0].wrapped
        self._all_refused(CredentialsError, self.given["unauthenticated"], self.key, wrapped)

    def throttling(self) -> None:
        data_key = self._generated({})
        with self.given["throttled"]():
            error = self._refused(
                KeyServiceError, "unwrap while the service is throttled",
                self.provider.unwrap, data_key.wraps[0].wrapped, self.key, {},
            )  # fmt: skip
            if not error.retryable:
                _broken("the error for throttling does not say retryable=True", error)
            if isinstance(error, (KeyAccessError, KeyNotFoundError, CredentialsError)):
                _broken(f"throttling raised {type(error).__name__}, as if the key were denied", error)
        self._check_opens(data_key, {})

    def shown(self) -> None:
        self._generated({})
        if any(secret in f"{self.provider!r} {self.provider}" for secret in self.given["secrets"]):
            _broken("the repr or str of the provider shows a secret")
        try:
            pickled = pickle.dumps(self.provider)
        except Exception:  # noqa: BLE001 - most providers cannot be pickled, which is fine
            return
        if any(secret.encode() in pickled for secret in self.given["secrets"]):
            _broken("a pickle of the provider contains a secret")

    def threads(self) -> None:
        failed: list[BaseException] = []

        def work() -> None:
            try:
                for _ in range(3):
                    self._check_opens(self._generated({"a": "b"}), {"a": "b"})
            except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
                failed.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            _broken(f"one of 8 threads that shared it failed: {_named(failed[0])}", failed[0])

    def fork(self) -> None:
        data_key = self._generated({})
        reads, writes = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python warns if there are several threads
            child = os.fork()
        if child == 0:
            answer = "it did not unwrap"
            try:
                self._check_opens(data_key, {})
                answer = "good"
            except BaseException as error:  # noqa: BLE001 - the parent reports it
                answer = _named(error)
            finally:
                os.write(writes, answer.encode()[:4096])
                os._exit(0)
        os.close(writes)
        with os.fdopen(reads, "rb") as pipe:
            self._check_opens(data_key, {})  # at the same time
            ready, _, _ = select.select([pipe], [], [], _SECONDS_OF_A_CHILD)
            answer = pipe.read().decode(errors="replace") if ready else "it did not answer"
        if not ready:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if answer != "good":
            _broken(f"in a forked process: {answer or 'the process died'}")

    def frame(self) -> None:
        df = pd.DataFrame({"name": ["a", None, "c"], "n": [1, 2, 3]})
        with using(self.provider), using(KeyCache(age=0)):
            enc = encrypt_frame(df, "n", deterministic="name", key=self.key, context={"team": "a"})
            back = decrypt_frame(enc, key=f"{self.provider.scheme}://*", context={"team": "a"})
        if not back.equals(df):
            _broken("decryption returned other values than were encrypted")

    # Checks that several parts share.

    def _generated(self, context: dict[str, str], key: str | None = None) -> DataKey:
        data_key = self.provider.generate_data_key(key or self.key, dict(context))
        if not isinstance(data_key, DataKey):
            _broken(f"generate_data_key returned a {type(data_key).__name__}, not a DataKey")
        if [wrap.key for wrap in data_key.wraps] != [key or self.key]:
            _broken("the data key is not wrapped once, by the key that was named")
        if dict(data_key.context) != context:
            _broken("the data key does not have the context that was passed")
        return data_key

    def _check_opens(self, data_key: DataKey, context: dict[str, str]) -> None:
        (wrap,) = data_key.wraps
        # Headers store contexts sorted by name.
        secret = self.provider.unwrap(wrap.wrapped, wrap.key, dict(sorted(context.items())))
        if type(secret) is not bytes or len(secret) != 32:
            _broken("unwrap did not return 32 bytes")
        if DataKey(secret, [wrap]).commitment != data_key.commitment:
            _broken("unwrap returned another data key than was generated")
        if any(_contains(text, secret) for text in _decoded(wrap.wrapped)):
            _broken("the wrapped key contains the data key")

    def _all_refused(
        self, expected: type[KeyServiceError], provider: KeyProvider, key: str, wrapped: str
    ) -> None:
        self._refused(expected, f"generate_data_key with {key}", provider.generate_data_key, key, {}, key=key)
        self._refused(expected, f"unwrap with {key}", provider.unwrap, wrapped, key, {}, key=key)
        self._refused(expected, f"wrap with {key}", provider.wrap, self.secret, key, {}, key=key)

    def _refused(
        self,
        expected: type[KeyServiceError] | tuple[type[KeyServiceError], ...],
        what: str,
        call: Callable[..., object],
        *arguments: object,
        key: str | None = None,
    ) -> KeyServiceError:
        try:
            call(*(one.reveal() if isinstance(one, Hidden) else one for one in arguments))
        except Exception as error:  # noqa: BLE001 - checked here
            return self._check(expected, what, error, key or self.key)
        names = " or ".join(cls.__name__ for cls in _classes(expected))
        _broken(f"{what} returned; it must raise {names}")

    def _check(
        self,
        expected: type[KeyServiceError] | tuple[type[KeyServiceError], ...],
        what: str,
        error: Exception,
        key: str,
    ) -> KeyServiceError:
        """Check the class of an error, its facts, and that neither it nor its frames show a secret."""
        if self.shows_secret(_all_text(error)):
            # Without the error as the cause: it would show the secret.
            _broken(
                f"{what} raised {type(error).__name__}: its text, its attributes, or local variables of its "
                "frames (also of errors that led to it) show a data key or a credential. Delete such "
                "variables before anything can raise, and raise outside the except block"
            )
        if not isinstance(error, _classes(expected)):
            names = " or ".join(cls.__name__ for cls in _classes(expected))
            _broken(f"{what} raised {_named(error)}; it must raise {names}", error)
        if error.provider != self.provider.scheme or not error.operation:
            _broken(f"{what} raised an error without provider={self.provider.scheme!r} or operation=", error)
        if isinstance(error, (KeyAccessError, KeyNotFoundError)) and error.key != key:
            _broken(f"{what} raised an error with key={error.key!r}; it must be {key!r}", error)
        again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
        if (str(again), vars(again)) != (str(error), vars(error)):
            _broken(f"{what} raised an error that pickling changes", error)
        return error

    def shows_secret(self, text: str) -> bool:
        """Return whether a text shows the data key that was given to wrap, or one of the secrets."""
        return _contains(text, self.secret.reveal()) or any(
            secret in text for secret in self.given["secrets"] or ()
        )


def _classes(
    expected: type[KeyServiceError] | tuple[type[KeyServiceError], ...],
) -> tuple[type[KeyServiceError], ...]:
    return expected if isinstance(expected, tuple) else (expected,)


def _contains(text: str, secret: bytes) -> bool:
    """Return whether a text shows a secret, also as a part of something longer in base64 or hex."""
    inner = []
    # Base64 has 4 characters for 3 bytes: it depends on the offset.
    for before, start in enumerate((0, 2, 3)):
        encoded = base64.b64encode(bytes(before) + secret).decode()
        inner.append(encoded[start : (before + len(secret)) * 8 // 6])  # without characters of other bytes
    return (
        any(form in text for form in (secret.decode("latin-1"), repr(secret)[2:-1], str(list(secret))[1:-1]))
        or secret.hex() in text.lower()
        or any(form in text.replace("-", "+").replace("_", "/") for form in inner)
    )


def _decoded(wrapped: str) -> list[str]:
    """Return a wrapped key, and what it is in base64 and hex, as far as it is."""
    decoded = [wrapped]
    padded = wrapped + "=" * (-len(wrapped) % 4)
    for decode, form in (
        (base64.b64decode, padded),
        (base64.urlsafe_b64decode, padded),
        (bytes.fromhex, wrapped),
    ):
        with contextlib.suppress(ValueError):
            decoded.append(decode(form).decode("latin-1"))
    return decoded


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - such as of an object whose __init__ was interrupted
        return ""


def _all_text(error: BaseException | None) -> str:
    """Return what a report of an error with local variables shows, also of the errors that led to it."""
    texts: list[str] = []
    left, seen = [error], set()
    while left:
        if (one := left.pop()) is None or id(one) in seen:
            continue
        seen.add(id(one))
        frames = [frame for frame, _ in traceback.walk_tb(one.__traceback__)]
        texts += [_repr(value) for frame in frames for value in frame.f_locals.values()]
        texts += [str(one), _repr(one), _repr(vars(one))]
        left += [one.__cause__, one.__context__]
    return "".join(texts)
