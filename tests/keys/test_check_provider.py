# ruff: noqa: ARG002 - the providers here ignore arguments
"""`check_provider` finds each way in which a provider breaks the contract, and says what it did not run."""

import base64
import contextlib
import hmac
import os
import pickle
import threading
import unicodedata

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import kmsdata
from kmsdata.errors import CredentialsError, KeyAccessError, KeyNotFoundError, KeyServiceError
from kmsdata.testing import ProviderContractError, check_provider

KEY, OTHER, MISSING = "safe://eu/one", "safe://eu/two", "safe://eu/none"
TOKEN = "TokenOfTheAccount0123456789"


def facts(key, code="Refused", **others):
    return {"provider": "safe", "operation": "call", "code": code, "key": key, **others}


class Safe:
    """A provider in memory that keeps the contract."""

    scheme = "safe"
    region = "eu"

    def __init__(self, state="good"):
        self.state = state
        self.keys = {KEY: AESGCM(bytes(32)), OTHER: AESGCM(bytes([1] * 32))}
        self.off = set()
        self.busy = False

    def __reduce__(self):
        raise TypeError("not pickled")

    def refusal(self, key):
        if self.busy:
            return KeyServiceError("too many calls", **facts(key, retryable=True))
        if self.state == "unauthenticated":
            return CredentialsError("sign in", **facts(key))
        if key not in self.keys:
            return KeyNotFoundError(f"{key}: there is no such key", **facts(key))
        if key in self.off or self.state == "denied":
            return KeyAccessError(f"{key}: denied", **facts(key))
        return None

    def sealed(self, key, context):
        return repr((key, sorted(context.items()))).encode()

    def generate_data_key(self, key, context):
        if error := self.refusal(key):
            raise error
        secret = os.urandom(32)
        return kmsdata.DataKey(secret, [kmsdata.Wrap(key, self.wrap(secret, key, context))], context=context)

    def wrap(self, data_key, key, context):
        secret = [data_key]
        del data_key
        if error := self.refusal(key):
            secret.clear()
            raise error
        iv = os.urandom(12)
        box = iv + self.keys[key].encrypt(iv, secret[0], self.sealed(key, context))
        return base64.b64encode(box).decode()

    def unwrap(self, wrapped, key, context):
        if error := self.refusal(key):
            raise error
        try:
            box = base64.b64decode(wrapped)
            return self.keys[key].decrypt(box[:12], box[12:], self.sealed(key, context))
        except (ValueError, InvalidTag):
            error = KeyAccessError(
                f"{key}: the wrapped key or its context was changed", **facts(key, "InvalidCiphertext")
            )
        raise error


def check(cls=Safe, **changes):
    provider = cls()

    @contextlib.contextmanager
    def throttled():
        provider.busy = True
        try:
            yield
        finally:
            provider.busy = False

    given = {
        "other": OTHER,
        "missing": MISSING,
        "disable": provider.off.add,
        "enable": provider.off.discard,
        "denied": cls("denied"),
        "unauthenticated": cls("unauthenticated"),
        "throttled": throttled,
        "secrets": [TOKEN],
    }
    return check_provider(provider, KEY, **(given | changes))


def test_a_provider_that_keeps_it():
    report = check()
    assert (report.failed, report.not_run) == ({}, {})
    assert len(report.passed) == 16
    assert str(report).startswith("parts of the contract of key providers, for Safe (safe): ")


def test_what_is_not_run_is_said_and_does_not_pass():
    provider = Safe()
    report = check_provider(provider, KEY)
    assert report.not_run == {
        "another key": "pass other=",
        "missing key": "pass missing=",
        "disabled key": "pass disable= and enable=",
        "access denied": "pass denied=",
        "no credentials": "pass unauthenticated=",
        "throttling": "pass throttled=",
        "credentials are not shown": "pass secrets=",
    }
    assert not set(report.not_run) & set(report.passed)
    assert "not run  throttling: pass throttled=" in str(report)


class OtherScheme(Safe):
    scheme = "vault"


class NoWrap:
    scheme = "safe"

    def __init__(self, _="good"):
        self.off = set()


class Unhashable(Safe):
    __hash__ = None


class OneDataKey(Safe):
    def generate_data_key(self, key, context):
        if error := self.refusal(key):
            raise error
        secret = bytes(32)
        return kmsdata.DataKey(secret, [kmsdata.Wrap(key, self.wrap(secret, key, context))], context=context)


class ForgetsContext(Safe):
    def generate_data_key(self, key, context):
        data_key = super().generate_data_key(key, context)
        secret = self.unwrap(data_key.wraps[0].wrapped, key, context)
        return kmsdata.DataKey(secret, data_key.wraps)


class NotBytes(Safe):
    def unwrap(self, wrapped, key, context):
        return bytearray(super().unwrap(wrapped, key, context))


class WrapsNothing(Safe):
    def wrap(self, data_key, key, context):
        super().wrap(data_key, key, context)
        return base64.b64encode(data_key).decode()

    def unwrap(self, wrapped, key, context):
        return base64.b64decode(wrapped)


class ContainsTheDataKey(Safe):
    """The wrapped key is a byte, the data key in clear, and a MAC. Subclasses encode it otherwise."""

    def encode(self, box):
        return base64.b64encode(box).decode()

    def decode(self, wrapped):
        return base64.b64decode(wrapped, validate=True)

    def sum(self, secret, key, context):
        return hmac.digest(b"k", secret + self.sealed(key, context), "sha256")

    def wrap(self, data_key, key, context):
        super().wrap(data_key, key, context)
        return self.encode(b"\1" + data_key + self.sum(data_key, key, context))

    def unwrap(self, wrapped, key, context):
        if error := self.refusal(key):
            raise error
        try:
            box = self.decode(wrapped)
        except ValueError:
            box = b""
        if self.sum(box[1:33], key, context) != box[33:]:
            raise KeyAccessError("changed", **facts(key, "InvalidCiphertext"))
        return box[1:33]


class ContainsItInHex(ContainsTheDataKey):
    def encode(self, box):
        return box.hex().upper()

    def decode(self, wrapped):
        return bytes.fromhex(wrapped)


class ContainsItInText(ContainsTheDataKey):
    """Base64 within a text, with the alphabet for URLs."""

    def encode(self, box):
        return "safe:v1:" + base64.urlsafe_b64encode(box).decode()

    def decode(self, wrapped):
        return base64.urlsafe_b64decode(wrapped.removeprefix("safe:v1:"))


class ContainsItTwiceEncoded(ContainsTheDataKey):
    def encode(self, box):
        return base64.b64encode(super().encode(box).encode()).decode().rstrip("=")

    def decode(self, wrapped):
        return super().decode(super().decode(wrapped + "=" * (-len(wrapped) % 4)))


class OnlyGeneratesIt(ContainsTheDataKey):
    """What wrap returns is encrypted, but not what generate_data_key returns."""

    def generate_data_key(self, key, context):
        if error := self.refusal(key):
            raise error
        secret = os.urandom(32)
        wrapped = ContainsTheDataKey.wrap(self, secret, key, context)
        return kmsdata.DataKey(secret, [kmsdata.Wrap(key, wrapped)], context=context)

    def wrap(self, data_key, key, context):
        return Safe.wrap(self, data_key, key, context)

    def unwrap(self, wrapped, key, context):
        try:
            return ContainsTheDataKey.unwrap(self, wrapped, key, context)
        except KeyAccessError:
            return Safe.unwrap(self, wrapped, key, context)


class BindsOnly(Safe):
    """Subclasses bind a changed context."""

    def bound(self, context):
        raise NotImplementedError

    def sealed(self, key, context):
        return f"{key} {self.bound(context)}".encode()


class JoinsTheContext(BindsOnly):
    def bound(self, context):
        return "".join(name + text for name, text in sorted(context.items()))


class JoinsLines(BindsOnly):
    def bound(self, context):
        return "\n".join(f"{name}={text}" for name, text in sorted(context.items()))


class JoinsAQuery(BindsOnly):
    def bound(self, context):
        return "&".join(f"{name}={text}" for name, text in sorted(context.items()))


class DropsEmptyTexts(BindsOnly):
    def bound(self, context):
        return sorted((name, text) for name, text in context.items() if text)


class DropsOtherThanAscii(BindsOnly):
    def bound(self, context):
        return repr(sorted(context.items())).encode("ascii", "ignore")


class ReplacesOtherThanAscii(BindsOnly):
    def bound(self, context):
        return repr(sorted(context.items())).encode("ascii", "replace")


class Normalises(BindsOnly):
    def bound(self, context):
        return unicodedata.normalize("NFC", repr(sorted(context.items())))


class FoldsCase(BindsOnly):
    def bound(self, context):
        return sorted((name, text.lower()) for name, text in context.items())


class StripsSpaces(BindsOnly):
    def bound(self, context):
        return sorted((name, text.strip()) for name, text in context.items())


class StripsNames(BindsOnly):
    def bound(self, context):
        return sorted((name.strip(), text) for name, text in context.items())


class BindsNamesAndTextsApart(BindsOnly):
    def bound(self, context):
        return sorted(context), sorted(context.values())


class MindsTheOrder(BindsOnly):
    def bound(self, context):
        return list(context.items())


class WrapsAnother(Safe):
    def wrap(self, data_key, key, context):
        return super().wrap(bytes(32), key, context)


class IgnoresContext(Safe):
    def sealed(self, key, context):
        return b""


class IgnoresKey(Safe):
    def __init__(self, state="good"):
        super().__init__(state)
        self.keys = dict.fromkeys(self.keys, AESGCM(bytes(32)))

    def sealed(self, key, context):
        return super().sealed("", context)


class RawErrors(Safe):
    def unwrap(self, wrapped, key, context):
        try:
            return super().unwrap(wrapped, key, context)
        except KeyAccessError:
            raise ValueError("bad wrapped key") from None


class ShowsTheWrappedKey(Safe):
    def unwrap(self, wrapped, key, context):
        try:
            return super().unwrap(wrapped, key, context)
        except KeyAccessError as error:
            raise KeyAccessError(f"{error}: {wrapped}", **vars(error)) from None


class SaysDenied(Safe):
    def unwrap(self, wrapped, key, context):
        try:
            return super().unwrap(wrapped, key, context)
        except KeyAccessError as error:
            raise KeyAccessError(str(error), **facts(key, "AccessDenied")) from None


class AnyScheme(Safe):
    def __init__(self, state="good"):
        super().__init__(state)
        self.keys["local://kmsdata-test"] = AESGCM(bytes(32))


class AnyRegion(Safe):
    def __init__(self, state="good"):
        super().__init__(state)
        self.keys["safe://eu-1/one"] = AESGCM(bytes(32))


class AnyMissing(Safe):
    def __init__(self, state="good"):
        super().__init__(state)
        self.keys[MISSING] = self.keys[KEY]

    def sealed(self, key, context):
        return super().sealed("" if key == MISSING else key, context)


class UnwrapsMissing(AnyMissing):
    def sealed(self, key, context):
        return Safe.sealed(self, KEY if key == MISSING else key, context)


class IgnoresDisabling(Safe):
    def refusal(self, key):
        self.off.clear()
        return super().refusal(key)


class UnwrapsForAnyone(Safe):
    def refusal(self, key):
        return None if self.state == "denied" else super().refusal(key)


class CredentialsAreDenied(Safe):
    def refusal(self, key):
        error = super().refusal(key)
        return KeyAccessError("denied", **facts(key)) if isinstance(error, CredentialsError) else error


class ThrottlingIsFinal(Safe):
    def refusal(self, key):
        error = super().refusal(key)
        return KeyServiceError("too many", **facts(key)) if self.busy else error


class ThrottlingIsDenial(Safe):
    def refusal(self, key):
        error = super().refusal(key)
        return KeyAccessError("too many", **facts(key, retryable=True)) if self.busy else error


class KeepsTheDataKey(Safe):
    def wrap(self, data_key, key, context):
        kept = data_key
        if error := self.refusal(key):
            raise error
        return super().wrap(kept, key, context)


class ChainsTheDataKey(Safe):
    """The frames of an error that led to the error hold the data key, also behind `from None`."""

    def wrap(self, data_key, key, context):
        parameters = {"Plaintext": data_key}
        del data_key
        try:
            self.send(dict(parameters), key)
        except LookupError:
            parameters.clear()
            raise self.refusal(key) from None
        return super().wrap(parameters["Plaintext"], key, context)

    def send(self, request, key):
        if self.refusal(key):
            raise LookupError(len(request))


class ShowsItsToken(Safe):
    def __repr__(self):
        return f"<Safe {TOKEN}>"


class PicklesItsToken(Safe):
    def __reduce__(self):
        return str, (TOKEN,)


class ErrorsShowItsToken(Safe):
    def refusal(self, key):
        error = super().refusal(key)
        return None if error is None else type(error)(f"{error} with {TOKEN}", **vars(error))


class NoFacts(Safe):
    def refusal(self, key):
        error = super().refusal(key)
        return None if error is None else type(error)(str(error), key=key)


class OtherKeyInErrors(Safe):
    def refusal(self, key):
        error = super().refusal(key)
        return None if error is None else type(error)(str(error), **facts("safe://eu/two"))


class OddError(KeyAccessError):
    def __reduce__(self):
        return KeyAccessError, ("another text",), {}


class ErrorsChange(Safe):
    def refusal(self, key):
        error = super().refusal(key)
        return OddError(str(error), **vars(error)) if isinstance(error, KeyAccessError) else error


class OneThread(Safe):
    def __init__(self, state="good"):
        super().__init__(state)
        self.thread = threading.get_ident()

    def unwrap(self, wrapped, key, context):
        if threading.get_ident() != self.thread:
            raise RuntimeError("another thread")
        return super().unwrap(wrapped, key, context)


class OneProcess(Safe):
    def __init__(self, state="good"):
        super().__init__(state)
        self.process = os.getpid()

    def unwrap(self, wrapped, key, context):
        if os.getpid() != self.process:
            raise RuntimeError("another process")
        return super().unwrap(wrapped, key, context)


class DiesInChild(OneProcess):
    def unwrap(self, wrapped, key, context):
        if os.getpid() != self.process:
            os._exit(3)
        return super().unwrap(wrapped, key, context)


BROKEN = [
    (OtherScheme, "interface", "its scheme is 'vault'"),
    (NoWrap, "interface", "it lacks one of scheme"),
    (Unhashable, "interface", "unhashable"),
    (OneDataKey, "generate and unwrap", "the same data key twice"),
    (ForgetsContext, "generate and unwrap", "does not have the context"),
    (NotBytes, "generate and unwrap", "did not return 32 bytes"),
    (WrapsNothing, "wrap and unwrap", "contains the data key"),
    *(
        (cls, part, "the wrapped key contains the data key")
        for cls in (ContainsTheDataKey, ContainsItInHex, ContainsItInText, ContainsItTwiceEncoded)
        for part in ("generate and unwrap", "wrap and unwrap")
    ),
    (OnlyGeneratesIt, "generate and unwrap", "the wrapped key contains the data key"),
    *(
        (cls, "another context", "must raise KeyAccessError")
        for cls in (
            JoinsTheContext,
            JoinsLines,
            JoinsAQuery,
            DropsEmptyTexts,
            DropsOtherThanAscii,
            ReplacesOtherThanAscii,
            Normalises,
            FoldsCase,
            StripsSpaces,
            StripsNames,
            BindsNamesAndTextsApart,
        )
    ),
    (MindsTheOrder, "generate and unwrap", "the wrapped key or its context was changed"),
    (WrapsAnother, "wrap and unwrap", "another data key"),
    (IgnoresContext, "another context", "must raise KeyAccessError"),
    (RawErrors, "changed wrapped keys", "raised ValueError: bad wrapped key; it must raise KeyAccessError"),
    (ShowsTheWrappedKey, "changed wrapped keys", "shows the wrapped key"),
    (SaysDenied, "changed wrapped keys", "the master key seems denied"),
    (IgnoresKey, "another key", "must raise KeyAccessError or KeyNotFoundError"),
    (AnyScheme, "keys of another scheme or region", "must raise KeyNotFoundError"),
    (AnyRegion, "keys of another scheme or region", "must raise KeyNotFoundError"),
    (UnwrapsMissing, "missing key", "must raise KeyNotFoundError or KeyAccessError"),
    (IgnoresDisabling, "disabled key", "must raise KeyAccessError"),
    (UnwrapsForAnyone, "access denied", "must raise KeyAccessError"),
    (CredentialsAreDenied, "no credentials", "must raise CredentialsError"),
    (ThrottlingIsFinal, "throttling", "does not say retryable=True"),
    (ThrottlingIsDenial, "throttling", "as if the key were denied"),
    (KeepsTheDataKey, "disabled key", "show a data key or a credential"),
    (ChainsTheDataKey, "disabled key", "show a data key or a credential"),
    (ShowsItsToken, "credentials are not shown", "the repr or str of the provider shows a secret"),
    (PicklesItsToken, "credentials are not shown", "a pickle of the provider contains a secret"),
    (ErrorsShowItsToken, "access denied", "show a data key or a credential"),
    (NoFacts, "access denied", "without provider='safe'"),
    (OtherKeyInErrors, "access denied", "it must be 'safe://eu/one'"),
    (ErrorsChange, "access denied", "pickling changes"),
    (OneThread, "threads", "RuntimeError: another thread"),
    (OneProcess, "after a fork", "RuntimeError: another process"),
    (DiesInChild, "after a fork", "the process died"),
]


@pytest.mark.parametrize(("cls", "part", "why"), BROKEN, ids=[row[0].__name__ for row in BROKEN])
def test_a_provider_that_breaks_it(cls, part, why):
    with pytest.raises(ProviderContractError) as caught:
        check(cls)
    report = caught.value.report
    assert why in report.failed[part]
    assert f"failed   {part}: " in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert again.report == report
    assert TOKEN not in str(caught.value)
    assert TOKEN not in repr(caught.value.__cause__)


def test_the_first_failure_is_the_cause():
    with pytest.raises(ProviderContractError) as caught:
        check(RawErrors)
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_key_is_enabled_again_after_a_failure():
    provider = IgnoresDisabling()
    calls = []
    with pytest.raises(ProviderContractError):
        check_provider(provider, KEY, disable=calls.append, enable=calls.append)
    assert calls == [KEY, KEY]


def test_a_key_that_is_no_uri():
    with pytest.raises(kmsdata.FormatError):
        check_provider(Safe(), KEY, other="two")
