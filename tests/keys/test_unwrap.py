"""Failed unwraps are limited in one operation, and errors say whose key it is."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

import kmsdata
from kmsdata.emulator import Emulator
from kmsdata.errors import KeyAccessError, KeyNotFoundError, KeyServiceError, WrongKeyError
from kmsdata.keys import unwrap as unwrapping
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import Wrap
from kmsdata.keys.unwrap import Operation


class Counting:
    """A provider that counts its calls, and answers as the name of the master key says."""

    scheme = "svc"

    def __init__(self):
        self.calls = Counter()
        self.secrets = {}

    def generate_data_key(self, key, context):
        number = len(self.secrets)
        self.secrets[str(number)] = secret = number.to_bytes(32, "big")
        return DataKey(secret, [Wrap(key, str(number))], context=context)

    def unwrap(self, wrapped, key, context):  # noqa: ARG002
        self.calls[key] += 1
        for name, error in ANSWERS.items():
            if name in key:
                raise error(key)
        if wrapped not in self.secrets:
            raise KeyAccessError(f"{key}: bad", code="InvalidCiphertext", key=key)
        return self.secrets[wrapped]

    def wrap(self, data_key, key, context):  # noqa: ARG002
        return next(text for text, secret in self.secrets.items() if secret == data_key)


ANSWERS = {
    "denied": lambda key: KeyAccessError(f"{key}: denied", code="UnauthorizedOperation", key=key),
    "disabled": lambda key: KeyAccessError(f"{key}: disabled", code="KeyDisabled", key=key),
    "missing": lambda key: KeyNotFoundError(f"{key}: missing", code="KeyNotFound", key=key),
    "damaged": lambda key: KeyAccessError(f"{key}: bad", code="InvalidParameterValue.InvalidCiphertext"),
    "other": lambda key: KeyAccessError(f"{key}: other", code="OtherKey"),
    "down": lambda key: KeyServiceError(f"{key}: down", code="InternalError", retryable=True),
}


@pytest.fixture
def service():
    service = Counting()
    kmsdata.use(service)
    kmsdata.use(kmsdata.KeyCache(age=0))
    return service


def frame_of(count, *keys, prefix="c"):
    """A frame of one column for each data key; each data key is under all these master keys."""
    columns = {}
    for number in range(count):
        good = kmsdata.new_data_key([key.format(number) for key in keys])
        name = f"{prefix}{number}"
        columns[name] = pd.Series([number], name=name).kms.encrypt(key=good)
    return pd.DataFrame(columns)


def test_a_context_that_is_denied_does_not_lock_out_another(service, monkeypatch):
    """A policy may depend on the context: what opens must not depend on the order of columns."""
    columns = {
        tenant: pd.Series([1], name=tenant).kms.encrypt(key="svc://k", context={"tenant": tenant})
        for tenant in ("b", "a")
    }
    answer = service.unwrap

    def by_tenant(wrapped, key, context):
        if context["tenant"] != "a":
            service.calls[key] += 1
            raise ANSWERS["denied"](key)
        return answer(wrapped, key, context)

    monkeypatch.setattr(service, "unwrap", by_tenant)
    opened = pd.DataFrame(columns).kms.decrypt(on_denied="keep")
    assert opened.kms.encrypted == ["b"]
    assert service.calls["svc://k"] == 2


@pytest.mark.parametrize("name", ["denied", "disabled", "missing"])
def test_a_master_key_that_is_refused_is_called_once(service, name):
    enc = frame_of(100, f"svc://{name}")
    kept = enc.kms.decrypt(on_denied="keep")
    assert kept.kms.encrypted == enc.kms.encrypted
    assert service.calls == {f"svc://{name}": 1}
    found = kmsdata.verify(enc)
    assert service.calls == {f"svc://{name}": 2}
    assert (found.exit_status, len(found.failures)) == (1, 100)
    assert all(f"svc://{name}: {name}" in failure.what for failure in found.failures)


@pytest.mark.parametrize("name", ["damaged", "other", "down"])
def test_other_failures_are_limited_for_each_master_key(service, name):
    enc = frame_of(100, f"svc://{name}")
    found = kmsdata.verify(enc)
    assert service.calls == {f"svc://{name}": 64}
    assert (found.exit_status, len(found.failures)) == (1, 100)
    assert sum("64 under it is the limit" in failure.what for failure in found.failures) == 36
    service.calls.clear()
    if name != "down":  # no denial: with on_denied="keep" the first one is raised
        with pytest.warns(UserWarning, match="36 data keys were left out: .*64 under it is the limit"):
            assert enc.kms.decrypt(on_denied="keep").kms.encrypted == enc.kms.encrypted
        assert service.calls == {f"svc://{name}": 64}


def test_a_service_that_unwraps_other_data_keys_is_limited_too(service):
    enc = frame_of(100, "svc://k")
    service.secrets = {text: b"another data key".zfill(32) for text in service.secrets}
    found = kmsdata.verify(enc)
    assert service.calls == {"svc://k": 64}
    assert not found.ok
    assert sum("64 under it is the limit" in failure.what for failure in found.failures) == 36


@pytest.mark.parametrize("old", ["svc://denied", "svc://damaged"])
def test_a_refused_old_and_a_good_new_key_are_legitimate(service, old):
    """100 daily files under one old and one new master key: successes are never counted."""
    enc = frame_of(100, old, "svc://good")
    assert enc.kms.decrypt().iloc[0].tolist() == list(range(100))
    assert service.calls == {old: 1 if "denied" in old else 64, "svc://good": 100}
    assert kmsdata.verify(enc).ok


def test_one_denied_among_many_good_keys(service):
    enc = pd.concat([frame_of(100, "svc://good"), frame_of(30, "svc://denied", prefix="x")], axis=1)
    out = enc.kms.decrypt(on_denied="keep")
    assert len(out.kms.encrypted) == 30
    assert service.calls == {"svc://good": 100, "svc://denied": 1}


def test_headers_that_name_thousands_of_master_keys(service):
    """Each is refused once, and there is a limit for all of them; a key that was good before is not in it."""
    many = [f"svc://k{{}}/missing{number}" for number in range(16)]
    enc = pd.concat([frame_of(1, "svc://good"), frame_of(100, *many, prefix="x")], axis=1)
    enc = pd.concat([enc, frame_of(3, "svc://good", prefix="y")], axis=1)
    with pytest.warns(UserWarning, match=r"36 data keys were left out: .*1,024 in all is the limit"):
        out = enc.kms.decrypt(on_denied="keep")
    assert len(out.kms.encrypted) == 100
    assert service.calls.total() == 1024 + 4
    assert service.calls["svc://good"] == 4


def test_a_rewrap_of_many_files_is_one_operation(service, tmp_path):
    for number in range(80):
        enc = pd.DataFrame({"a": [1]}).kms.encrypt("a", key="svc://damaged")
        enc.kms.to_parquet(tmp_path / f"{number}.parquet")
    with pytest.raises(kmsdata.KmsDataError, match="80 of 80 files") as caught:
        kmsdata.rewrap(tmp_path, "svc://new")
    assert service.calls == {"svc://damaged": 64}
    assert sum("64 under it is the limit" in why for why in caught.value.report.failed.values()) == 16


def test_an_alias_is_resolved_once_in_an_operation(service):
    resolved = Counter()

    def resolve(key):
        resolved[key] += 1
        if "gone" in key:
            raise KeyNotFoundError(f"{key}: no such alias")
        return key.replace("alias", "good")

    enc = frame_of(20, "svc://good")
    service.resolve = resolve
    enc.kms.decrypt(key=["svc://other", "svc://alias"])
    assert resolved == {"svc://other": 1, "svc://alias": 1}
    assert not kmsdata.verify(enc, key="svc://gone").ok
    assert resolved["svc://gone"] == 1


def test_threads_keep_the_limits_exactly(service, monkeypatch):
    """Until a master key has unwrapped something, one call at a time decides whether there is a next one."""
    together, most = [0], [0]

    def slow(wrapped, key, context):
        together[0] += 1
        most[0] = max(most[0], together[0])
        time.sleep(0.002)
        try:
            return Counting.unwrap(service, wrapped, key, context)
        finally:
            together[0] -= 1

    records = {
        name: [kmsdata.new_data_key(f"svc://{name}").record for _ in range(90)]
        for name in ("denied", "damaged", "good")
    }
    good, damaged = records["good"], records["damaged"]
    mixed = [type(r)(r.commitment, r.context, [Wrap("svc://good", f"damaged {r.wraps[0]}")]) for r in damaged]
    monkeypatch.setattr(service, "unwrap", slow)
    for name, every, calls in (
        ("denied", records["denied"], 1),
        ("damaged", damaged, 64),
        ("good", [*good, *mixed], 90 + 64),
    ):
        operation = Operation()

        def one(record, operation=operation):
            try:
                return unwrapping.unwrap(record, None, operation).commitment == record.commitment
            except KeyServiceError:
                return False

        with ThreadPoolExecutor(16) as pool:
            assert sum(pool.map(one, every)) == (90 if name == "good" else 0)
        assert service.calls[f"svc://{name}"] == calls
    assert most[0] > 1


@pytest.mark.newest
def test_the_emulator_is_called_once_for_a_disabled_key():
    with Emulator() as emulator:
        pair = (emulator.secret_id, emulator.secret_key)
        kms = kmsdata.TencentKMS("ap-guangzhou", credential=pair, endpoint=emulator.url)
        kmsdata.use(kms)
        kmsdata.use(kmsdata.KeyCache(age=0))
        ours, theirs = kms.create_key("ours"), kms.create_key("theirs")
        enc = pd.concat([frame_of(10, ours), frame_of(10, theirs, prefix="x")], axis=1)
        kms.disable_key(theirs)
        before = emulator.calls["Decrypt"]
        assert len(enc.kms.decrypt(on_denied="keep").kms.encrypted) == 10
        assert emulator.calls["Decrypt"] - before == 11


# Whose key it is.


def test_the_key_that_was_passed_does_not_open_the_data():
    enc = pd.DataFrame({"a": [1]}).kms.encrypt("a", key="local://demo")
    with pytest.raises(WrongKeyError) as caught:
        enc.kms.decrypt(key="local://demmo")
    assert str(caught.value) == (
        "the key that was passed does not open the data: it is encrypted under local://demo; key= allows "
        "only local://demmo. Did you mean local://demo?"
    )
    assert not caught.value.allowed
    with pytest.raises(WrongKeyError, match=r"allows only local://payroll, tencent-kms://\*\. If you trust"):
        enc.kms.decrypt(key=(uri for uri in ["local://payroll", "tencent-kms://*"]))
    with pytest.raises(WrongKeyError, match=r"source= allows only local://demmo\. Did you mean local://demo"):
        enc.kms.rewrap("local://next", source="local://demmo", add=True)


def test_a_region_or_a_long_common_prefix_is_no_similar_key(service):
    enc = pd.DataFrame({"a": [1]}).kms.encrypt("a", key="svc://region/0a1b2c3d-4e5f")
    with pytest.raises(WrongKeyError, match="If you trust the source"):
        enc.kms.decrypt(key="svc://region/99887766-5544")
    with pytest.raises(WrongKeyError, match="If you trust the source"):
        enc.kms.decrypt(key="svc://other/0a1b2c3d-4e5f")


def test_no_key_was_passed():
    enc = pd.DataFrame({"a": [1]}).kms.encrypt("a", key="local://demo")
    with (
        kmsdata.using("svc://k"),
        pytest.raises(WrongKeyError, match=r"no key was passed.*svc://k .*svc://\."),
    ):
        enc.kms.decrypt()


def test_the_service_refused():
    enc = pd.DataFrame({"a": [1]}).kms.encrypt("a", key="local://demo")
    kmsdata.LocalKeystore().disable_key("local://demo")
    with pytest.raises(KeyAccessError, match="local://demo is disabled"):
        enc.kms.decrypt(key="local://demo")


def test_the_commands_say_it_too(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"a": [1]}).kms.encrypt("a", key="local://demo").kms.to_parquet("a.parquet")
    code, _, errors = run("decrypt", "a.parquet", "b.parquet", "-k", "demmo")
    assert code == 1
    assert "--key allows only local://demmo. Did you mean local://demo?" in errors.replace("\n", " ")
