"""The built-in providers keep the public contract, `check_provider`, and what else they have in common."""

import contextlib
import os
import pickle

import pandas as pd
import pytest

import kmsdata
from kmsdata.emulator.faults import Fault
from kmsdata.errors import KeyAccessError, KeyNotFoundError, KeyServiceError
from kmsdata.keys import session
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.local import keystore as local
from kmsdata.testing import check_provider

pytestmark = pytest.mark.newest


PASSPHRASE = "correct horse battery staple"


class Local:
    """The local keystore."""

    missing = "local://missing"
    foreign = "tencent-kms://ap-guangzhou/23e80852-1e38-11e9-b129-5cb9019b4b01"

    def __init__(self, tmp_path):
        self.provider = kmsdata.LocalKeystore(tmp_path / "keys" / "keystore.json", PASSPHRASE)

    lacks = ("throttling",)

    def create(self, name):
        return self.provider.create_key(name, quiet=True)

    def fixtures(self):
        path = self.provider.path
        return {
            "denied": kmsdata.LocalKeystore(path, "another passphrase"),
            "unauthenticated": kmsdata.LocalKeystore(path),
            "secrets": [PASSPHRASE, "another passphrase"],
        }

    def close(self):
        pass


class Tencent:
    """Tencent Cloud KMS: the real SDK, over HTTP, to the emulator."""

    missing = "tencent-kms://ap-guangzhou/23e80852-1e38-11e9-b129-5cb9019b4b01"
    foreign = "local://demo"

    def __init__(self, _):
        from kmsdata.emulator import Emulator

        self.emulator = Emulator()
        self.provider = kmsdata.TencentKMS(
            "ap-guangzhou",
            credential=(self.emulator.secret_id, self.emulator.secret_key),
            endpoint=self.emulator.url,
        )

    lacks = ()

    def create(self, name):
        return self.provider.create_key(name)

    def fixtures(self):
        emulator = self.emulator
        emulator.add_account("AKIDdenied", "SecretKeyOfTheDenied", allow={"ListKeys"})

        def of(*credential):
            return kmsdata.TencentKMS("ap-guangzhou", credential=credential, endpoint=emulator.url, retries=1)

        @contextlib.contextmanager
        def throttled():
            emulator.fail(Fault.error("RequestLimitExceeded"), times=None)
            yield
            emulator.heal()

        return {
            "denied": of("AKIDdenied", "SecretKeyOfTheDenied"),
            "unauthenticated": of("AKIDunknown", "SecretKeyOfNobody"),
            "throttled": throttled,
            "secrets": [emulator.secret_id, emulator.secret_key, "SecretKeyOfTheDenied", "SecretKeyOfNobody"],
        }

    def close(self):
        self.emulator.close()


@pytest.fixture(params=[Local, Tencent])
def kms(request, tmp_path):
    kms = request.param(tmp_path)
    yield kms
    kms.close()


@pytest.fixture
def provider(kms):
    return kms.provider


@pytest.fixture
def key(kms):
    return kms.create("demo")


def opens(provider, data_key, context=None):
    """Return whether the provider returns the same data key."""
    (wrap,) = data_key.wraps
    secret = provider.unwrap(wrap.wrapped, wrap.key, context or {})
    return DataKey(secret, [wrap]).commitment == data_key.commitment


def test_the_contract(kms, provider, key, monkeypatch):
    monkeypatch.setattr(local, "_interactive", lambda: False)  # keys that are missing are not created
    report = check_provider(
        provider,
        key,
        other=kms.create("other"),
        missing=kms.missing,
        disable=provider.disable_key,
        enable=provider.enable_key,
        **kms.fixtures(),
    )
    assert report.failed == {}
    assert tuple(report.not_run) == kms.lacks


def test_no_such_key(kms, provider, key):
    with pytest.raises(KeyNotFoundError) as caught:
        provider.describe_key(kms.missing)
    assert caught.value.key == kms.missing
    for call in (provider.enable_key, provider.disable_key, provider.rotate_key):
        with pytest.raises(KeyNotFoundError):
            call(kms.missing)


def test_a_disabled_key(provider, key):
    data_key = provider.generate_data_key(key, {})
    provider.disable_key(key)
    assert provider.describe_key(key)["state"] == "Disabled"
    for call in (
        lambda: opens(provider, data_key),
        lambda: provider.generate_data_key(key, {}),
        lambda: provider.wrap(bytes(32), key, {}),
    ):
        with pytest.raises(KeyAccessError, match=f"kmsdata keys enable {key}"):
            call()


def test_a_rotated_key_opens_what_it_wrapped_before(provider, key):
    before = provider.generate_data_key(key, {})
    provider.rotate_key(key)
    after = provider.generate_data_key(key, {})
    assert opens(provider, before)
    assert opens(provider, after)
    assert provider.describe_key(key)["key"] == key


def test_list_and_describe(kms, provider, key):
    other = kms.create("other")
    listed = {item["key"]: item for item in provider.list_keys()}
    assert set(listed) == {key, other}
    assert provider.describe_key(key) == listed[key]
    assert {"state", "created", "rotation"} <= listed[key].keys()
    assert pd.Timestamp(listed[key]["created"]).tzinfo is not None


def test_keys_are_never_overwritten(kms, provider, key):
    data_key = provider.generate_data_key(key, {})
    with pytest.raises(KeyServiceError, match="already exists"):
        kms.create("demo")
    assert opens(provider, data_key)


def test_a_provider_is_not_pickled(provider):
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(provider)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_after_a_fork_while_locks_are_held(kms, provider, key, locked):
    data_key = provider.generate_data_key(key, {})
    reads, writes = os.pipe()
    with locked():
        child = os.fork()
    if child == 0:
        try:
            os.write(writes, str(opens(provider, data_key)).encode())
        finally:
            os._exit(0)
    os.close(writes)
    assert opens(provider, data_key)  # at the same time, and not over the child's connection
    with os.fdopen(reads) as pipe:
        assert pipe.read() == "True"
    os.waitpid(child, 0)
    if isinstance(kms, Tencent):
        assert kms.emulator.connections == 2  # the child's own


def test_a_frame_and_back(provider, key, tmp_path, titanic):
    kmsdata.use(provider)
    enc = titanic.kms.encrypt(["name"], deterministic=["ticket"], key=key, context={"ship": "titanic"})
    enc.kms.to_parquet(tmp_path / "t.parquet")
    session.forget()
    back = kmsdata.read_parquet(tmp_path / "t.parquet", decrypt=True)
    pd.testing.assert_frame_equal(back, titanic)
    provider.disable_key(key)
    session.forget()
    with pytest.raises(KeyAccessError):
        enc.kms.decrypt()
    assert enc.kms.decrypt(on_denied="keep").kms.encrypted == ["name", "ticket"]
