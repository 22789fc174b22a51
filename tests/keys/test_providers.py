"""The contract of every key provider: the same for the local keystore and for Tencent Cloud KMS."""

import os
import pickle
import threading

import pandas as pd
import pytest

import kmsdata
from kmsdata.errors import KeyAccessError, KeyNotFoundError, KeyServiceError
from kmsdata.keys import session
from kmsdata.keys.data_key import DataKey

pytestmark = pytest.mark.newest


class Local:
    """The local keystore."""

    missing = "local://missing"
    foreign = "tencent-kms://ap-guangzhou/23e80852-1e38-11e9-b129-5cb9019b4b01"

    def __init__(self, tmp_path):
        self.provider = kmsdata.LocalKeystore(tmp_path / "keys" / "keystore.json")

    def create(self, name):
        return self.provider.create_key(name, quiet=True)

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

    def create(self, name):
        return self.provider.create_key(name)

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


@pytest.mark.parametrize("context", [{}, {"team": "a"}, {"部门": "薪资", "z": "", "a": 'é\n"\\'}])
def test_generate_and_unwrap(provider, key, context):
    one, two = provider.generate_data_key(key, context), provider.generate_data_key(key, context)
    assert one.commitment != two.commitment
    assert one.wraps[0].key == key
    assert dict(one.context) == context
    assert opens(provider, one, context)
    assert opens(provider, two, context)


def test_wrap_and_unwrap(provider, key):
    secret = bytes(range(32))
    assert provider.unwrap(provider.wrap(secret, key, {"a": "b"}), key, {"a": "b"}) == secret


@pytest.mark.parametrize("other", [{}, {"team": "b"}, {"team": "a", "x": "y"}, {"Team": "a"}])
def test_another_context_does_not_open(provider, key, other):
    data_key = provider.generate_data_key(key, {"team": "a"})
    with pytest.raises(KeyAccessError, match="context") as caught:
        opens(provider, data_key, other)
    assert caught.value.key == key
    assert caught.value.operation == "unwrap"


def test_what_was_changed_does_not_open(provider, key):
    wrapped = provider.generate_data_key(key, {}).wraps[0].wrapped
    middle = len(wrapped) - 12
    for changed in (
        "AAAA",
        "?",
        wrapped[:-8],
        wrapped[:middle] + ("A" if wrapped[middle] != "A" else "B") + wrapped[middle + 1 :],
    ):
        with pytest.raises(KeyAccessError) as caught:
            provider.unwrap(changed, key, {})
        assert wrapped[:20] not in str(caught.value)


def test_the_key_of_another_does_not_open(kms, provider, key):
    other = kms.create("other")
    wrapped = provider.generate_data_key(other, {}).wraps[0].wrapped
    with pytest.raises((KeyAccessError, KeyNotFoundError), match=r"another key"):
        provider.unwrap(wrapped, key, {})


def test_no_such_key(kms, provider, key):
    wrapped = provider.generate_data_key(key, {}).wraps[0].wrapped
    with pytest.raises(KeyNotFoundError) as caught:
        provider.describe_key(kms.missing)
    assert caught.value.key == kms.missing
    with pytest.raises((KeyNotFoundError, KeyAccessError)):
        provider.unwrap(wrapped, kms.missing, {})
    for call in (provider.enable_key, provider.disable_key, provider.rotate_key):
        with pytest.raises(KeyNotFoundError):
            call(kms.missing)


def test_a_key_of_another_place(kms, provider):
    for call in (
        lambda: provider.generate_data_key(kms.foreign, {}),
        lambda: provider.unwrap("AAAA", kms.foreign, {}),
        lambda: provider.wrap(bytes(32), kms.foreign, {}),
    ):
        with pytest.raises(KeyNotFoundError) as caught:
            call()
        assert caught.value.key == kms.foreign


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
    provider.enable_key(key)
    assert opens(provider, data_key)


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


def test_errors_hold_facts_and_pickle(kms, provider):
    with pytest.raises(KeyNotFoundError) as caught:
        provider.describe_key(kms.missing)
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert vars(again) == vars(caught.value)
    assert again.provider == provider.scheme
    assert str(again) == str(caught.value)


def test_a_provider_shows_no_secret_and_is_not_pickled(kms, provider, key):
    provider.generate_data_key(key, {})
    shown = f"{provider!r} {provider}"
    if isinstance(kms, Tencent):
        assert kms.emulator.secret_id not in shown
        assert kms.emulator.secret_key not in shown
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(provider)


def test_threads_share_one(provider, key):
    errors, good = [], []

    def work():
        try:
            for _ in range(10):
                good.append(opens(provider, provider.generate_data_key(key, {"a": "b"}), {"a": "b"}))
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert good == [True] * 80


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_after_a_fork(kms, provider, key, locked):
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
