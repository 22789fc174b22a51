"""Data keys, the local keystore, and which keys may be used."""

import _thread
import asyncio
import base64
import contextlib
import contextvars
import copy
import hashlib
import hmac
import json
import os
import pickle
import stat
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

import kmsdata
from kmsdata.errors import (
    CredentialsError,
    FormatError,
    KeyAccessError,
    KeyNotFoundError,
    KeyServiceError,
    WrongKeyError,
)
from kmsdata.keys import session
from kmsdata.keys.data_key import CellKey, DataKey, _CellCounts
from kmsdata.keys.envelope import GCM, SIV, ColumnHeader, Wrap
from kmsdata.keys.local import keystore as local
from kmsdata.keys.tink_keyset import Keyset
from kmsdata.keys.unwrap import unwrap

SECRET = bytes(range(32))


def hkdf(secret, info, size):
    """RFC 5869 with the standard library alone."""
    key = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    out, block = b"", b""
    while len(out) < size:
        block = hmac.new(key, block + info + bytes([len(out) // 32 + 1]), hashlib.sha256).digest()
        out += block
    return out[:size]


def data_key(**changes):
    return DataKey(SECRET, [Wrap("local://demo", "w")], **changes)


def test_derivation_is_as_the_specification_says():
    key = data_key()
    column = ColumnHeader(GCM, key.commitment, {}, name="身份证")
    exact = ColumnHeader(SIV, key.commitment, {}, domain="e-mail", kind="text")
    assert key.commitment == hkdf(SECRET, b"kmsdata/1/commitment", 32)
    bound = r'{"algorithm":"AES-256-GCM","name":"\u8eab\u4efd\u8bc1","type":{}}'
    digest = hashlib.sha256(bound.encode()).digest()
    derived = hkdf(SECRET, b"kmsdata/1/AES-256-GCM/" + digest, 36)
    assert key.cell_key(column).prefix == b"\x01" + derived[:4]
    assert key.cell_key(column).key == derived[4:]
    derived = hkdf(SECRET, b"kmsdata/1/AES-256-SIV/text/e-mail", 68)
    assert (key.cell_key(exact).prefix, key.cell_key(exact).key) == (b"\x01" + derived[:4], derived[4:])
    assert key.categories_key().key == hkdf(SECRET, b"kmsdata/1/categories", 64)
    message = (
        b'{"column":{"algorithm":"AES-256-GCM","data_key":"%b","name":"a","type":{}},'
        b'"context":{"x":"y"},"version":1}'
    )
    with_context = data_key(context={"x": "y"})
    column = ColumnHeader(GCM, key.commitment, {}, name="a", mac=b"m" * 32)
    expected = hmac.new(
        hkdf(SECRET, b"kmsdata/1/header", 32), message % base64.b64encode(key.commitment), hashlib.sha256
    )
    assert with_context.mac(column) == expected.digest()
    assert not data_key().authenticates(column)


@pytest.mark.parametrize(
    "secret", [data_key(), CellKey(bytes(36)), Keyset([("AES-256-GCM", CellKey(bytes(36)))])]
)
def test_secrets_hide(secret):
    shown = repr(secret) + str(secret) + f"{secret}"
    assert SECRET.hex() not in shown
    assert repr(SECRET) not in shown
    assert "\\x00" not in shown
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="secret"):
            leak(secret)


def test_key_ids_have_no_zero_byte():
    assert CellKey(b"\0\1\0\2" + bytes(32)).prefix == b"\1\xff\1\xff\2"
    key = data_key()
    headers = [ColumnHeader(GCM, key.commitment, {}, name=str(n)) for n in range(300)]
    assert not any(0 in key.cell_key(header).prefix[1:] for header in headers)


def test_a_data_key_counts_its_random_cells():
    secret = os.urandom(32)
    key = DataKey(secret, [Wrap("local://demo", "w")])
    key.count("a", (1 << 32) - 1)
    key.count("b", 5)
    key.count("a", 1)
    # Another object of the same data key, as each unwrapping makes one, does not start again.
    with pytest.raises(ValueError, match=r"2\^32"):
        DataKey(secret, [Wrap("local://demo", "w")]).count("a", 1)


def test_counts_that_were_evicted_are_a_floor_for_new_ones():
    counts = _CellCounts()
    counts.add(b"old", "a", 1 << 31)
    for number in range(1 << 16):
        counts.add(b"many", str(number), 1)
    assert len(counts._counts) == 1 << 16
    assert counts.add(b"old", "a", 5) == (1 << 31) + 5
    assert counts.add(b"new", "b", 7) == (1 << 31) + 7
    assert counts.add(b"many", "65535", 1) == 2


@pytest.mark.parametrize("bad", [b"", bytes(16), bytes(33)])
def test_a_data_key_has_32_bytes(bad):
    with pytest.raises(ValueError, match="32 bytes"):
        DataKey(bad, [Wrap("local://demo", "w")])


# The local keystore.


def test_generate_wrap_unwrap(keystore):
    store = kmsdata.LocalKeystore()
    key = store.generate_data_key("local://demo", {"team": "a"})
    (wrap,) = key.wraps
    secret = store.unwrap(wrap.wrapped, "local://demo", {"team": "a"})
    assert DataKey(secret, [wrap]).commitment == key.commitment
    assert stat.S_IMODE(keystore.stat().st_mode) == 0o600
    assert stat.S_IMODE(keystore.parent.stat().st_mode) == 0o700
    assert not list(keystore.parent.glob("*.tmp"))
    with pytest.raises(KeyAccessError, match="context") as caught:
        store.unwrap(wrap.wrapped, "local://demo", {"team": "b"})
    assert caught.value.code == "InvalidCiphertext"


def test_making_a_key_says_where_it_lies_once(keystore, capsys):
    for _ in range(2):
        kmsdata.LocalKeystore().generate_data_key("local://demo", {})
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count(str(keystore)) == 1
    assert "copy this file: without it, the data" in said.err


def test_keys_are_never_overwritten_and_unwrapping_makes_none(keystore):
    store = kmsdata.LocalKeystore()
    store.create_key("a", quiet=True)
    before = keystore.read_bytes()
    with pytest.raises(KeyServiceError, match="already exists"):
        store.create_key("a")
    with pytest.raises(KeyNotFoundError, match="local://b"):
        store.unwrap("AAAA", "local://b", {})
    assert keystore.read_bytes() == before
    assert [entry["key"] for entry in store.list_keys()] == ["local://a"]


def test_the_same_name_with_another_id_says_so(keystore):
    store = kmsdata.LocalKeystore()
    key = store.generate_data_key("local://demo", {})
    keystore.unlink()
    store.create_key("demo", quiet=True)
    with pytest.raises(KeyNotFoundError, match="another key") as caught:
        store.unwrap(key.wraps[0].wrapped, "local://demo", {})
    assert caught.value.code == "OtherKey"


def test_a_changed_wrapped_key_is_refused():
    store = kmsdata.LocalKeystore()
    wrapped = store.generate_data_key("local://demo", {}).wraps[0].wrapped
    for changed in (
        "",
        "?",
        wrapped[:-8],
        wrapped[:60] + ("A" if wrapped[60] != "A" else "B") + wrapped[61:],
    ):
        with pytest.raises(KeyAccessError):
            store.unwrap(changed, "local://demo", {})


def test_passphrase(keystore, monkeypatch):
    monkeypatch.setenv("KMSDATA_PASSPHRASE", "correct horse")
    key = kmsdata.LocalKeystore().generate_data_key("local://demo", {})
    monkeypatch.delenv("KMSDATA_PASSPHRASE")
    stored = json.loads(keystore.read_text())
    assert stored["kdf"]["n"] == 1 << 17
    wrapped = key.wraps[0].wrapped
    with pytest.raises(CredentialsError) as none:
        kmsdata.LocalKeystore().unwrap(wrapped, "local://demo", {})
    assert "KMSDATA_PASSPHRASE" in none.value.tried
    with pytest.raises(KeyAccessError, match="passphrase") as wrong:
        kmsdata.LocalKeystore(passphrase="battery staple").unwrap(wrapped, "local://demo", {})
    assert wrong.value.code == "WrongPassphrase"
    assert "battery" not in str(wrong.value)
    secret = kmsdata.LocalKeystore(passphrase="correct horse").unwrap(wrapped, "local://demo", {})
    assert DataKey(secret, key.wraps).commitment == key.commitment
    with pytest.raises(KeyAccessError):  # a second key must not be sealed by another passphrase
        kmsdata.LocalKeystore(passphrase="battery staple").create_key("second")
    assert list(json.loads(keystore.read_text())["keys"]) == ["demo"]


def test_a_passphrase_is_not_taken_where_it_would_seal_nothing(monkeypatch):
    store = kmsdata.LocalKeystore()
    store.create_key("a", quiet=True)
    monkeypatch.setenv("KMSDATA_PASSPHRASE", "correct horse")
    with pytest.raises(KeyAccessError, match="stored unencrypted"):
        store.create_key("b")
    assert [entry["key"] for entry in store.list_keys()] == ["local://a"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_keystore_that_others_can_read_is_refused(keystore, mode):
    store = kmsdata.LocalKeystore()
    store.create_key("a", quiet=True)
    keystore.chmod(mode)
    with pytest.raises(KeyAccessError, match="chmod 600"):
        store.list_keys()
    keystore.chmod(0o600)
    keystore.parent.chmod(0o777)
    with pytest.raises(KeyAccessError, match="chmod 700"):
        store.list_keys()


@pytest.mark.parametrize(
    "damage",
    [
        lambda store: store.update(version=2),
        lambda store: store.update(extra=1),
        lambda store: store["keys"]["a"].update(secret="AAAA"),
        lambda store: store["keys"]["a"].pop("id"),
        lambda store: store.update(
            kdf={"name": "scrypt", "n": 1 << 40, "r": 8, "p": 1, "salt": "A" * 22 + "=="}
        ),
        lambda store: store.update(keys=[]),
    ],
)
def test_a_damaged_keystore_is_refused_and_not_shown(keystore, damage):
    store = kmsdata.LocalKeystore()
    store.create_key("a", quiet=True)
    document = json.loads(keystore.read_text())
    secret = document["keys"]["a"]["secret"]
    damage(document)
    keystore.write_text(json.dumps(document))
    with pytest.raises(FormatError) as caught:
        store.list_keys()
    assert secret not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.path == str(keystore)


def test_many_threads_and_stores_lose_no_key():
    def make(name):
        kmsdata.LocalKeystore().create_key(name, quiet=True)

    threads = [threading.Thread(target=make, args=(f"k{number}",)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kmsdata.LocalKeystore().list_keys()) == 20


def test_a_write_that_fails_leaves_the_old_file(keystore, monkeypatch):
    store = kmsdata.LocalKeystore()
    store.create_key("a", quiet=True)
    before = keystore.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyServiceError, match="No space"):
        store.create_key("b")
    assert keystore.read_bytes() == before
    assert not list(keystore.parent.glob(".*.tmp"))


# Which key is used.


def test_no_key_names_the_three_ways():
    with pytest.raises(ValueError, match=r"key=.*kmsdata\.use.*KMSDATA_KEY"):
        kmsdata.new_data_key()


def test_session_environment_and_argument(monkeypatch):
    monkeypatch.setenv("KMSDATA_KEY", "local://env")
    assert kmsdata.new_data_key().wraps[0].key == "local://env"
    kmsdata.use("local://process")
    assert kmsdata.new_data_key().wraps[0].key == "local://process"
    with kmsdata.using("local://block"):
        assert kmsdata.new_data_key().wraps[0].key == "local://block"
        seen = []
        thread = threading.Thread(target=lambda: seen.append(session.session_key()))
        thread.start()
        thread.join()
        assert seen == ["local://process"]
    assert kmsdata.new_data_key().wraps[0].key == "local://process"
    assert kmsdata.new_data_key("local://argument").wraps[0].key == "local://argument"


def test_blocks_in_blocks_set_only_what_they_name():
    outer, vault = kmsdata.using("local://a"), Vault()
    with outer:
        with kmsdata.using("local://b"), outer, kmsdata.using(vault):  # an object may be entered again
            assert session.session_key() == "local://a"
            assert session.provider_of("vault://k", pinned=False) is vault
            kmsdata.use(kmsdata.KeyCache())  # nothing that a block sets: no warning
        assert session.session_key() == "local://a"
    assert session.session_key() is None
    first, second = kmsdata.using("local://one"), kmsdata.using("local://two")
    with first:  # left crosswise, as blocks in generators can be
        second.__enter__()
        assert session.session_key() == "local://two"
    assert session.session_key() == "local://two"
    second.__exit__(None, None, None)
    assert session.session_key() is None
    assert repr(first) == "<kmsdata.using('local://one')>"


@pytest.mark.parametrize("thing", [42, None, b"local://demo"])
def test_what_is_no_key_changes_nothing(thing):
    for call in (kmsdata.use, kmsdata.using):
        with pytest.raises(TypeError, match=rf"{call.__name__}\(\) takes a key URI"):
            call(thing)
        with pytest.raises(FormatError):
            call("demo")
    assert session._process == session._State()


def test_use_in_a_block_sets_the_default_of_the_process():
    with kmsdata.using("local://block"):
        with pytest.warns(UserWarning, match="but not this block"):
            kmsdata.use("local://process")
        assert session.session_key() == "local://block"
    assert session.session_key() == "local://process"


def with_use():
    with kmsdata.use("local://other"):
        pass


def with_use_by_name_and_target():
    with open(os.devnull) as _, kmsdata.use(key_or_provider="local://other") as _:  # noqa: PTH123
        pass


def with_use_unpacked():
    with kmsdata.use(*("local://other",)):
        pass


def async_with_use():
    async def block():
        async with kmsdata.use("local://other"):
            pass

    asyncio.run(block())


@pytest.mark.parametrize("block", [with_use, with_use_by_name_and_target, with_use_unpacked, async_with_use])
def test_with_use_raises_before_it_changes_anything(block):
    kmsdata.use("local://process")
    seen, over = [], threading.Event()

    def watch():
        while not over.is_set():
            seen.append(session.session_key())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        for _ in range(200):  # often enough that the interpreter has specialised the call
            with pytest.raises(TypeError, match=r"with kmsdata\.using\(\.\.\.\):"):
                block()
    finally:
        over.set()
        thread.join()
    assert set(seen) == {"local://process"}


def test_use_as_a_statement_wherever_it_is_called():
    def returned():
        return kmsdata.use("local://returned")

    with contextlib.nullcontext(kmsdata.use("local://argument")):
        assert session.session_key() == "local://argument"
    assert returned() is None
    assert session.session_key() == "local://returned"
    thread = threading.Thread(target=kmsdata.use, args=("local://thread",))
    thread.start()
    thread.join()
    assert session.session_key() == "local://thread"
    _thread.start_new_thread(kmsdata.use, ("local://from-c",))
    deadline = time.monotonic() + 10
    while session.session_key() != "local://from-c":
        assert time.monotonic() < deadline
    with pytest.raises(TypeError), returned():  # Python's own error: the statement was complete by then
        pass


def test_a_block_that_ends_elsewhere_is_an_error():
    block = kmsdata.using("local://a")
    contextvars.copy_context().run(block.__enter__)
    with pytest.raises(RuntimeError, match="another thread or task"):
        block.__exit__(None, None, None)


def test_threads_and_tasks_that_start_in_a_block():
    kmsdata.use("local://process")

    async def seen_by_tasks():
        with kmsdata.using("local://task"):
            task = asyncio.create_task(asyncio.to_thread(session.session_key))
            key = await asyncio.to_thread(session.session_key)
        return key, await task, session.session_key()

    assert asyncio.run(seen_by_tasks()) == ("local://task", "local://task", "local://process")
    with kmsdata.using("local://block"), ThreadPoolExecutor(1) as pool:
        copied = contextvars.copy_context()
        assert pool.submit(session.session_key).result() == "local://process"
        assert pool.submit(copied.run, session.session_key).result() == "local://block"


def test_no_key_crosses_from_a_block_into_another_thread_or_task():
    """16 threads and 16 tasks with one key and one provider each, beside the main thread."""
    kmsdata.use("vault://main")
    kmsdata.use(Vault(mark="main"))
    over, wrong, rounds = threading.Event(), [], Counter()

    def check(name):
        header = pd.DataFrame({"a": [1]}).kms.encrypt("a")["a"].dtype.header
        if header.records[0].wraps != (Wrap(f"vault://{name}", name),):
            wrong.append((name, header.records[0].wraps))
        rounds[name] += 1

    def tenant(name):
        while not over.is_set():
            with kmsdata.using(f"vault://{name}"), kmsdata.using(Vault(mark=name)):
                check(name)

    async def task(name):
        while not over.is_set():
            with kmsdata.using(f"vault://{name}"):
                await asyncio.sleep(0)
                with kmsdata.using(Vault(mark=name)):
                    await asyncio.sleep(0)
                    check(name)

    async def tasks():
        await asyncio.gather(*(task(f"task{number}") for number in range(16)))

    threads = [threading.Thread(target=tenant, args=(f"thread{number}",)) for number in range(16)]
    threads.append(threading.Thread(target=asyncio.run, args=(tasks(),)))
    for thread in threads:
        thread.start()
    try:
        while rounds["main"] < 300 or len(rounds) < 33:
            check("main")
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert wrong == []


def frames(error):
    """Return all content of the frames of an error, and of the errors in its chain."""
    seen = []
    while error is not None:
        step = error.__traceback__
        while step is not None:
            if "kmsdata" in step.tb_frame.f_code.co_filename:
                for value in step.tb_frame.f_locals.values():
                    seen.append(value if isinstance(value, bytes) else repr(value).encode())
                    seen.append(str(value).encode("utf-8", "replace"))
            step = step.tb_next
        seen.append(str(error).encode())
        error = error.__cause__ or error.__context__
    return b"\n".join(seen)


@pytest.mark.filterwarnings("ignore:.*has no passphrase")
def test_no_master_key_or_passphrase_in_any_frame_of_an_error(keystore, monkeypatch):
    store = kmsdata.LocalKeystore()
    key = store.generate_data_key("local://demo", {})
    wrapped = key.wraps[0].wrapped
    document = json.loads(keystore.read_text())
    master = document["keys"]["demo"]["secret"]
    damaged = json.dumps(document | {"version": 2})

    def put(text, mode=0o600):
        keystore.write_text(text)
        keystore.chmod(mode)

    good = json.dumps(document)
    monkeypatch.setenv("KMSDATA_PASSPHRASE", "correct\udcff horse")
    for text, mode, call in [
        (good, 0o600, lambda: store.unwrap(wrapped[:40] + "AAAA" + wrapped[44:], "local://demo", {})),
        (good, 0o600, lambda: store.unwrap(wrapped, "local://demo", {"a": "b"})),
        (good, 0o600, lambda: store.unwrap(wrapped, "local://none", {})),
        (good, 0o600, lambda: store.create_key("demo")),
        (good, 0o644, lambda: store.list_keys()),
        (damaged, 0o600, lambda: store.unwrap(wrapped, "local://demo", {})),
        (good[:-9], 0o600, lambda: store.unwrap(wrapped, "local://demo", {})),
        ('{"version":1,"kdf":null,"keys":{}}', 0o600, lambda: store.create_key("sealed")),
    ]:
        put(text, mode)
        with pytest.raises(KeyServiceError if text == good or "{}" in text else FormatError) as caught:
            call()
        held = frames(caught.value)
        for secret in (master.encode(), base64.b64decode(master), b"horse", key._secret.reveal()):
            assert secret not in held


def test_no_data_key_in_any_frame_of_an_error():
    class Liar(Vault):
        def unwrap(self, wrapped, key, context):  # noqa: ARG002
            return b"not the data key that it was"[:28] + b"1234"

    with kmsdata.using(Vault()):
        record = kmsdata.new_data_key("vault://k").record
    with kmsdata.using(Liar()), pytest.raises(WrongKeyError) as caught:
        unwrap(record)
    assert b"not the data key that it was" not in frames(caught.value)
    with (
        kmsdata.using(Vault(b"short and secret")),
        pytest.raises(KeyServiceError, match="32 bytes") as caught,
    ):
        unwrap(record)
    assert b"short and secret" not in frames(caught.value)


def test_several_keys_each_open():
    key = kmsdata.new_data_key(["local://a", "local://b"])
    assert [wrap.key for wrap in key.wraps] == ["local://a", "local://b"]
    for uri in ("local://a", "local://b"):
        assert unwrap(key.record, uri).commitment == key.commitment


def test_what_a_file_names_is_not_what_is_obeyed():
    record = kmsdata.new_data_key("local://theirs").record
    assert unwrap(record).commitment == record.commitment  # no session key: the header is followed
    for allowed in ("local://*", ["local://x", "local://theirs"]):
        assert unwrap(record, allowed).commitment == record.commitment
    for allowed in ("local://mine", "tencent-kms://ap-guangzhou/*", ["local://x"]):
        with pytest.raises(WrongKeyError, match="local://theirs"):
            unwrap(record, allowed)
    kmsdata.use("tencent-kms://ap-guangzhou/key")
    with pytest.raises(WrongKeyError, match="allows only"):
        unwrap(record)


class Vault:
    """A custom provider."""

    scheme = "vault"

    def __init__(self, secret=SECRET, mark="wrapped"):
        self.secret, self.mark = secret, mark

    def generate_data_key(self, key, context):
        return DataKey(self.secret, [Wrap(key, self.mark)], context=context)

    def unwrap(self, wrapped, key, context):  # noqa: ARG002
        return self.secret

    def wrap(self, data_key, key, context):  # noqa: ARG002
        return "wrapped"


def test_a_provider_of_ones_own():
    with pytest.raises(KeyNotFoundError, match="no provider"):
        kmsdata.new_data_key("vault://k")
    with kmsdata.using(Vault()), kmsdata.using("vault://k"):
        assert kmsdata.new_data_key().wraps[0].key == "vault://k"
    with pytest.raises(TypeError, match="provider"):
        kmsdata.use(42)


def test_a_service_that_returns_another_key_is_found_out():
    with kmsdata.using(Vault()):
        record = kmsdata.new_data_key("vault://k").record
    with kmsdata.using(Vault(bytes(32))), pytest.raises(WrongKeyError, match="not the data key"):
        unwrap(record)


def test_the_next_wrap_is_tried(keystore):
    key = kmsdata.new_data_key(["local://a", "local://b"])
    document = json.loads(keystore.read_text())
    del document["keys"]["a"]
    keystore.write_text(json.dumps(document))
    assert unwrap(key.record).commitment == key.commitment
    del document["keys"]["b"]
    keystore.write_text(json.dumps(document))
    with pytest.raises(KeyNotFoundError, match="local://a"):
        unwrap(key.record)


# When the first use of a local key creates it.


def not_interactive(monkeypatch):
    monkeypatch.setattr(local, "_interactive", lambda: False)


def names(store):
    return [entry["key"] for entry in store.list_keys()]


def test_a_mistyped_name_makes_no_key_outside_a_terminal_or_notebook(keystore, monkeypatch, capsys):
    not_interactive(monkeypatch)
    store = kmsdata.LocalKeystore()
    with pytest.raises(KeyNotFoundError, match="kmsdata keys create local://demo"):
        store.generate_data_key("local://demo", {})
    assert not keystore.parent.exists()
    store.create_key("demo", quiet=True)
    assert store.generate_data_key("local://demo", {}).wraps[0].key == "local://demo"
    for call in (
        lambda: store.generate_data_key("local://demmo", {}),
        lambda: store.wrap(SECRET, "local://demmo", {}),
        lambda: store.describe_key("local://demmo"),
        lambda: kmsdata.new_data_key("local://demmo"),
        lambda: kmsdata.new_data_key(["local://demo", "local://demmo"]),
    ):
        with pytest.raises(KeyNotFoundError, match=r"Did you mean local://demo\?") as caught:
            call()
        assert caught.value.key == "local://demmo"
    assert names(store) == ["local://demo"]
    assert capsys.readouterr().err == ""


def test_create_true_and_false_do_not_ask_who_is_looking(monkeypatch, capsys):
    with pytest.raises(KeyNotFoundError):
        kmsdata.LocalKeystore(create=False).generate_data_key("local://a", {})
    not_interactive(monkeypatch)
    store = kmsdata.LocalKeystore(create=True)
    store.generate_data_key("local://a", {})
    store.wrap(SECRET, "local://b", {})
    assert names(store) == ["local://a", "local://b"]
    assert "kmsdata keys disable local://b" in capsys.readouterr().err
    with pytest.raises(TypeError, match="create="):
        kmsdata.LocalKeystore(create="yes")


def test_rewrap_makes_no_key_unless_it_was_allowed_to(titanic):
    encrypted = titanic.kms.encrypt(["name"], key="local://demo")
    with pytest.raises(KeyNotFoundError, match=r"Did you mean local://demo\?"):
        kmsdata.rewrap(encrypted, "local://demmo", source="local://demo")
    assert names(kmsdata.LocalKeystore()) == ["local://demo"]
    kmsdata.use(kmsdata.LocalKeystore(create=True))
    kmsdata.rewrap(encrypted, "local://next", source="local://demo")
    assert names(kmsdata.LocalKeystore()) == ["local://demo", "local://next"]


def test_several_keys_are_made_before_the_first_call():
    data_key = kmsdata.new_data_key(["local://a", "local://b"])
    assert [wrap.key for wrap in data_key.wraps] == ["local://a", "local://b"]


@pytest.mark.parametrize(
    ("stdin", "stderr", "kernel", "made"),
    [
        (True, True, False, True),
        (False, True, False, False),
        (True, False, False, False),
        (False, False, True, True),
    ],
)
def test_interactive_is_a_terminal_or_a_notebook(monkeypatch, stdin, stderr, kernel, made):
    monkeypatch.undo()

    class Stream:
        def __init__(self, terminal):
            self.isatty = lambda: terminal

    monkeypatch.setattr("sys.stdin", Stream(stdin))
    monkeypatch.setattr("sys.stderr", Stream(stderr))
    monkeypatch.setattr(local, "in_notebook", lambda: kernel)
    assert local._interactive() is made
    monkeypatch.setattr("sys.stdin", None)
    assert local._interactive() is kernel
    monkeypatch.setattr(local, "in_marimo", lambda: True)
    assert local._interactive()
