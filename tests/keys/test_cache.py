"""The cache of data keys: limits, threads, forks, and what is counted."""

import base64
import os
import threading
import time

import pandas as pd
import pytest

import kmsdata
from kmsdata.errors import KeyAccessError, WrongKeyError
from kmsdata.keys import cache as cache_module
from kmsdata.keys import session
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import Wrap
from kmsdata.keys.unwrap import unwrap


class Service:
    """A slow KMS that counts its calls."""

    scheme = "svc"

    def __init__(self, seconds=0.0):
        self.calls, self.seconds, self.refuse = [], seconds, False
        self.identity = b"alice"

    def generate_data_key(self, key, context):
        secret = os.urandom(32)
        self.calls.append("generate")
        return DataKey(secret, [Wrap(key, base64.b64encode(secret[::-1]).decode())], context=context)

    def unwrap(self, wrapped, key, context):  # noqa: ARG002
        self.calls.append("unwrap")
        time.sleep(self.seconds)
        if self.refuse:
            raise KeyAccessError("disabled", provider="svc", code="Disabled", key=key)
        return base64.b64decode(wrapped)[::-1]

    def wrap(self, data_key, key, context):  # noqa: ARG002
        self.calls.append("wrap")
        return base64.b64encode(data_key[::-1]).decode()


@pytest.fixture
def service():
    service = Service()
    kmsdata.use(service)
    return service


@pytest.fixture
def enc(service):
    enc = pd.DataFrame({"a": [1, 2]}).kms.encrypt("a", key="svc://k")
    service.calls.clear()
    return enc


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(cache_module.time, "monotonic", lambda: now[0])
    return now


def test_many_files_cost_one_call(service, enc, tmp_path):
    for number in range(50):
        enc.kms.to_parquet(tmp_path / f"{number}.parquet")
    before = kmsdata.usage()
    for number in range(50):
        kmsdata.read_parquet(tmp_path / f"{number}.parquet", decrypt=True)
    assert service.calls == ["unwrap"]
    after = kmsdata.usage()
    assert (after.unwrap - before.unwrap, after.cached - before.cached) == (1, 49)
    assert after.calls - before.calls == 1


def test_age(service, enc, clock):
    enc.kms.decrypt()
    clock[0] += 299
    enc.kms.decrypt()
    assert service.calls == ["unwrap"]
    clock[0] += 2
    service.refuse = True
    with pytest.raises(KeyAccessError):
        enc.kms.decrypt()
    service.refuse = False
    enc.kms.decrypt()
    assert service.calls == ["unwrap"] * 3


def test_what_is_too_old_is_dropped(service, enc, clock):
    enc.kms.decrypt()
    other = pd.DataFrame({"a": [1]}).kms.encrypt("a", key="svc://k")
    other.kms.decrypt()
    assert len(session._cache._entries) == 2
    clock[0] += 301
    other.kms.decrypt()
    assert len(session._cache._entries) == 1


def test_no_key_is_kept(service, enc):
    with kmsdata.using(kmsdata.KeyCache(number=0)):
        enc.kms.decrypt()
        enc.kms.decrypt()
    assert service.calls == ["unwrap"] * 2


def test_uses_and_none(service, enc):
    with kmsdata.using(kmsdata.KeyCache(uses=3)):
        for _ in range(7):
            enc.kms.decrypt()
    assert service.calls == ["unwrap"] * 3
    service.calls.clear()
    with kmsdata.using(kmsdata.KeyCache(age=0)):
        enc.kms.decrypt()
        enc.kms.decrypt()
    assert service.calls == ["unwrap"] * 2


def test_number_of_keys(service):
    frames = [pd.DataFrame({"a": [n]}).kms.encrypt("a", key="svc://k") for n in range(3)]
    service.calls.clear()
    with kmsdata.using(kmsdata.KeyCache(number=2)):
        for frame in (*frames, frames[2], frames[1], frames[0]):
            frame.kms.decrypt()
    assert len(service.calls) == 4  # the first was pushed out by the third


def test_those_not_used_for_longest_go_first(service):
    one, two, three = (pd.DataFrame({"a": [n]}).kms.encrypt("a", key="svc://k") for n in range(3))
    service.calls.clear()
    with kmsdata.using(kmsdata.KeyCache(number=2)):
        for frame in (one, two, one, three):
            frame.kms.decrypt()
        assert len(service.calls) == 3
        one.kms.decrypt()  # used since the second
        assert len(service.calls) == 3
        two.kms.decrypt()
        assert len(service.calls) == 4


def test_what_was_unwrapped_is_never_what_is_generated():
    cache, one, two = (
        kmsdata.KeyCache(reuse_age=60),
        *(DataKey(bytes([n] * 32), [Wrap("svc://k", "w")]) for n in (1, 2)),
    )
    assert cache.unwrapped("k", lambda: one) is one
    assert cache.generated("k", 1, lambda: two) is two
    assert cache.unwrapped("k", lambda: two) is one


def test_another_credential_has_nothing_of_the_first(service, enc):
    enc.kms.decrypt()
    service.identity = b"bob"
    service.refuse = True
    with pytest.raises(KeyAccessError):
        enc.kms.decrypt()
    other = Service()  # another object of the same scheme: another account, for all one knows
    other.refuse = True
    kmsdata.use(other)
    with pytest.raises(KeyAccessError):
        enc.kms.decrypt()


def test_another_context_or_commitment_is_not_served(service, enc):
    enc.kms.decrypt()
    (record,) = enc["a"].dtype.header.records
    other = type(record)(bytes(32), record.context, record.wraps)
    with pytest.raises(WrongKeyError):
        unwrap(other)
    unwrap(type(record)(record.commitment, (("x", "y"),), record.wraps))
    assert service.calls == ["unwrap", "unwrap"]


def test_a_hundred_threads_make_one_call(service, enc):
    service.seconds = 0.2
    ready, out, errors = threading.Barrier(100), [], []

    def work():
        ready.wait()
        try:
            out.append(enc.kms.decrypt()["a"].tolist())
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    def all_of_them():
        threads = [threading.Thread(target=work) for _ in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    all_of_them()
    assert (out, errors, service.calls) == ([[1, 2]] * 100, [], ["unwrap"])
    session.forget()
    service.refuse = True
    service.calls.clear()
    all_of_them()
    assert len(errors) == 100
    assert len(set(map(id, errors))) == 100  # each its own, or their tracebacks would pile up
    assert {(type(error), error.code) for error in errors} == {(KeyAccessError, "Disabled")}
    assert len(service.calls) < 10


def test_a_thread_that_is_stopped_stops_nobody_else():
    class Stopped(BaseException):
        pass

    started, go_on = threading.Event(), threading.Event()
    cache = kmsdata.KeyCache()

    def first():
        started.set()
        go_on.wait()
        raise Stopped

    def run():
        with pytest.raises(Stopped):
            cache.unwrapped("k", first)

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    key = DataKey(bytes(32), [Wrap("svc://k", "w")])
    out = []
    second = threading.Thread(target=lambda: out.append(cache.unwrapped("k", lambda: key)))
    second.start()
    go_on.set()
    thread.join()
    second.join()
    assert out == [key]


def test_login_or_forget_empties_it(service, enc):
    enc.kms.decrypt()
    kmsdata.use(kmsdata.KeyCache())
    enc.kms.decrypt()
    with kmsdata.using(kmsdata.KeyCache()):
        enc.kms.decrypt()
        assert len(service.calls) == 3
        session.forget()  # all of them, and not just the one that counts here
        enc.kms.decrypt()
    enc.kms.decrypt()
    assert len(service.calls) == 5
    kmsdata.use(kmsdata.KeyCache())
    enc.kms.decrypt()
    assert len(service.calls) == 6


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_begins_with_none(service, enc, locked):
    enc.kms.decrypt()
    reads, writes = os.pipe()
    with locked():
        child = os.fork()
    if child == 0:
        try:
            same = enc.kms.decrypt()["a"].tolist() == [1, 2]
            os.write(writes, f"{same} {service.calls.count('unwrap')}".encode())
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as pipe:
        assert pipe.read() == "True 2"
    os.waitpid(child, 0)


def test_reading_a_key_never_encrypts_with_it(enc):
    with kmsdata.using(kmsdata.KeyCache(reuse_age=60)):
        enc.kms.decrypt()
        new = pd.DataFrame({"a": [3]}).kms.encrypt("a", key="svc://k")
    assert new["a"].dtype.header.columns[0].data_key != enc["a"].dtype.header.columns[0].data_key


def commitments(*frames):
    return [frame["a"].dtype.header.columns[0].data_key for frame in frames]


@pytest.mark.usefixtures("service")
def test_generated_keys_are_fresh_unless_said_otherwise(clock):
    frame = pd.DataFrame({"a": [1, 2, 3]})
    one, two = (frame.kms.encrypt("a", key="svc://k") for _ in range(2))
    assert len(set(commitments(one, two))) == 2
    with kmsdata.using(kmsdata.KeyCache(reuse_age=60, reuse_cells=7)):
        one, two, three = (frame.kms.encrypt("a", key="svc://k") for _ in range(3))
        first, second, third = commitments(one, two, three)
        assert first == second != third  # nine cells would be more than seven
        clock[0] += 61
        (fourth,) = commitments(frame.kms.encrypt("a", deterministic=True, key="svc://k"))
        assert fourth != third
        other = frame.kms.encrypt("a", key="svc://k", context={"team": "x"})
        assert commitments(other)[0] != fourth
        assert commitments(frame.kms.encrypt(deterministic="a", key="svc://k"))[0] == fourth
        # new_data_key() always generates a new data key.
        assert kmsdata.new_data_key("svc://k").commitment != fourth
    assert one.kms.decrypt().equals(frame)


def test_threads_do_not_exceed_the_cells_of_a_shared_key():
    """The cells of a key are counted when it is handed out, not only when they are encrypted."""
    cache, out, ready = kmsdata.KeyCache(reuse_age=60, reuse_cells=7), [], threading.Barrier(16)

    def make():
        time.sleep(0.02)
        return DataKey(os.urandom(32), [Wrap("svc://k", "w")])

    def work():
        ready.wait()
        out.append(cache.generated("k", 3, make).commitment)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [out.count(commitment) for commitment in set(out)] == [2] * 8


@pytest.mark.usefixtures("service")
def test_cells_are_counted_for_copies_of_a_key_together():
    key = kmsdata.new_data_key("svc://k")
    copy = key.under(key.wraps)
    key.count("a", (1 << 32) - 1)
    with pytest.raises(ValueError, match=r"2\^32"):
        copy.count("a", 2)


def test_it_shows_and_pickles_nothing(enc):
    enc.kms.decrypt()
    cache = session._cache
    assert repr(cache) == "<KeyCache>"
    with pytest.raises(TypeError, match="cannot be pickled"):
        cache.__reduce__()


@pytest.mark.parametrize("limit", ["age", "uses", "number", "reuse_age", "reuse_cells"])
def test_negative_limits_are_refused(limit):
    with pytest.raises(ValueError, match="limits must be 0 or more"):
        kmsdata.KeyCache(**{limit: -1})
