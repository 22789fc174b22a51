"""The form of `kmsdata.login` in this process, errors in IPython, and login in a real kernel."""

import asyncio
import base64
import copy
import io
import json
import pickle
import sys
import threading
import time
import types
import weakref
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

import kmsdata
from kmsdata.errors import CredentialsError
from kmsdata.keys import session

pytestmark = pytest.mark.newest

w = pytest.importorskip("ipywidgets")  # in CI without it, test_docs[kmsdata.notebook.login_form] fails
from kmsdata.emulator import Emulator, Fault  # noqa: E402
from kmsdata.keys.tencent import credentials  # noqa: E402
from kmsdata.keys.tencent import transport as service  # noqa: E402
from kmsdata.notebook import login as sign_in  # noqa: E402
from kmsdata.notebook import login_form as widgets  # noqa: E402
from kmsdata.notebook.login_form import LoginForm  # noqa: E402
from kmsdata.notebook.regions import REGIONS  # noqa: E402
from kmsdata.notebook.sealed_message import INFO, SECRETS, Recipient, Typed  # noqa: E402

REGION = "ap-guangzhou"
SECRET = "hV7cX2mQ9tLr4zBn8KpWs3YdJg6FaE1u"


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch, tmp_path):
    for name in ("SECRET_ID", "SECRET_KEY", "SECURITY_TOKEN", "TOKEN", "REGION", "ROLE_ARN"):
        monkeypatch.delenv(f"TENCENTCLOUD_{name}", raising=False)
    for name in ("KMSDATA_TENCENT_ENDPOINT", "TKE_ROLE_ARN", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(credentials, "_METADATA", "http://127.0.0.1:9/")
    monkeypatch.setattr(service, "_PAUSE", 0.01)
    monkeypatch.setattr(widgets, "_forms", weakref.WeakSet())


@pytest.fixture
def keys(emulator):
    kms = kmsdata.TencentKMS(
        REGION, credential=(emulator.secret_id, emulator.secret_key), endpoint=emulator.url
    )
    payroll, old = kms.create_key("payroll"), kms.create_key("old")
    kms.disable_key(old)
    return payroll, old


@pytest.fixture
def sent(monkeypatch):
    """Record all messages from widgets to the browser."""
    messages = []

    def send(widget, message, buffers=None):
        messages.append((copy.deepcopy(message), [bytes(buffer) for buffer in buffers or []]))

    monkeypatch.setattr(w.Widget, "_send", send)
    return messages


@pytest.fixture
def form(emulator):
    return LoginForm(endpoint=emulator.url)


class Page:
    """The page of a form: what a browser would send, and what the form shows."""

    def __init__(self, form, *, secure=True):
        self.form, self.secure, self.number, self.answers = form, secure, 0, []
        form.send = self.answers.append  # custom messages to the page
        self.fields = {"endpoint": form.view["endpoint"], "region": form.view["region"]}

    def send(self, content, message=None):
        self.number += 1
        whole = {"link": "1-2", "number": self.number, **content}
        self.form._handle_custom_msg(whole, [] if message is None else [memoryview(message)])
        assert self.answers[-1] == {"type": "answer", "link": "1-2", "number": self.number}

    def connect(self, service="tencent", **typed):
        """Press Connect; return the status when the attempt has ended."""
        self.start(service, **typed)
        return self.end()

    def start(self, service="tencent", **typed):
        self.send_fields("connect", {"service": service, **self.fields, **typed})

    def send_fields(self, kind, fields):
        message = json.dumps(fields).encode()
        if self.secure:
            message = sealed(message, self.form.view["public_key"])
        self.send({"type": kind, "sealed": self.secure}, message)

    def end(self):
        if self.form._worker is not None:
            self.form._worker.join(20)
            assert not self.form._worker.is_alive()
        assert not self.form.view["busy"]
        return self.status

    def choose(self, key):
        self.send_fields("choose", {"key": key})
        return self.end()

    @property
    def step(self):
        return self.form.view["step"]

    @property
    def status(self):
        return self.form.view["status"][1]


def sealed(message, public_key):
    """Encrypt as the browser does."""
    from cryptography.hazmat.primitives import hpke
    from cryptography.hazmat.primitives.asymmetric import ec

    suite = hpke.Suite(hpke.KEM.P256, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    point = base64.b64decode(public_key)
    return suite.encrypt(
        message, ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point), info=INFO.encode()
    )


@pytest.fixture
def page(form):
    page = Page(form)
    page.fields["region"] = REGION
    return page


def pair(emulator):
    return {"secret_id": emulator.secret_id, "secret_key": emulator.secret_key}


def everything(form):
    """Return all that could be saved of every widget, and all that Python shows of the form."""
    return json.dumps(w.Widget.get_manager_state(drop_defaults=False)) + repr(form) + repr(vars(form))


# What is typed.


@pytest.mark.parametrize("pasted", ["{}", "{} ", "\t{}\n", "\u00a0{}\u200b", "\ufeff {}"])
def test_blanks_around_a_pasted_secret_are_removed(pasted):
    recipient, typed = Recipient(), Typed()
    message = json.dumps({"secret_key": pasted.format(SECRET), "region": " ap-nanjing "}).encode()
    fields = recipient.receive(sealed(message, recipient.public_key), typed, sealed=True)
    assert fields == {"region": "ap-nanjing"}
    assert typed.text("secret_key") == SECRET
    assert SECRET not in repr(typed) + repr(recipient)
    for dump in (pickle.dumps, copy.deepcopy):
        for secret in (typed, recipient):
            with pytest.raises(TypeError):
                dump(secret)


def test_a_passphrase_keeps_its_blanks_and_a_blank_clears_a_field():
    recipient, typed = Recipient(), Typed()
    recipient.receive(b'{"passphrase": " two words ", "token": "t"}', typed, sealed=False)
    assert typed.text("passphrase") == " two words "
    recipient.receive(b'{"passphrase": " ", "token": " "}', typed, sealed=False)
    assert [name for name in SECRETS if name in typed] == []


def test_the_longest_session_token_arrives():
    recipient, typed = Recipient(), Typed()
    token = ("tNw5RfKq8ZbVx3Mh" * 256)[:4096]
    message = json.dumps({"token": token, "secret_id": "A" * 40, "secret_key": SECRET}).encode()
    recipient.receive(sealed(message, recipient.public_key), typed, sealed=True)
    assert typed.text("token") == token


def damaged():
    recipient = Recipient()
    good = sealed(json.dumps({"secret_key": SECRET}).encode(), recipient.public_key)
    yield "empty", recipient, b"", True
    yield "cut", recipient, good[:-1], True
    yield "only the point", recipient, good[:65], True
    yield "not on the curve", recipient, b"\x04" + bytes(64) + good[65:], True
    yield "a bit", recipient, good[:-1] + bytes([good[-1] ^ 1]), True
    yield "another form's", Recipient(), good, True
    yield "too long", recipient, sealed(bytes(40_000), recipient.public_key), True
    yield "not JSON", recipient, sealed(SECRET.encode(), recipient.public_key), True
    yield "deep", recipient, b"[" * 30_000, False
    yield "a number", recipient, b'{"secret_key": 7}', False
    yield "half a character", recipient, b'{"secret_key": "\\ud800' + SECRET.encode() + b'"}', False
    yield "a list", recipient, b"[]", False
    yield "unsealed", recipient, b'{"secret_key": "' + SECRET.encode() + b'"', False


@pytest.mark.parametrize("what", [name for name, *_ in damaged()])
def test_a_damaged_message_is_one_clear_error(what):
    recipient, message, in_seal = next(rest for name, *rest in damaged() if name == what)
    typed = Typed()
    with pytest.raises(ValueError, match=r"arrived damaged\. Reload the page") as caught:
        recipient.receive(message, typed, sealed=in_seal)
    assert caught.value.__context__ is None
    trace = caught.value.__traceback__.tb_next  # the first frame is the test's
    while trace is not None:
        assert SECRET not in repr(trace.tb_frame.f_locals)
        trace = trace.tb_next
    assert [name for name in SECRETS if name in typed] == []


def test_public_keys_differ_from_form_to_form():
    assert len({Recipient().public_key for _ in range(20)}) == 20


def test_a_usual_password_field_keeps_it(sent):
    field = w.Password()  # the control: the searches for secrets find one that is there
    field.set_state({"value": SECRET})
    assert SECRET in json.dumps(w.Widget.get_manager_state(drop_defaults=False))
    assert SECRET in repr(sent)
    field.close()


# Connecting.


def test_connect_and_choose_a_key(form, page, emulator, keys, sent):
    payroll, old = keys
    assert page.step == "ask"
    status = page.connect(**pair(emulator) | {"secret_key": f"{emulator.secret_key}  "})
    assert "Connected to Tencent Cloud KMS in Guangzhou 广州 (ap-guangzhou)" in status
    masked = f"{emulator.secret_id[:4]}…{emulator.secret_id[-4:]}"
    assert masked in status
    assert emulator.url in status
    assert page.step == "keys"
    assert form.view["keys"] == [
        {"uri": payroll, "name": "payroll", "state": "Enabled"},
        {"uri": old, "name": "old", "state": "Disabled"},
    ]
    assert form.view["key"] == payroll
    assert page.choose(payroll) == f"Signed in. Your key: payroll · {payroll} · {masked} at {emulator.url}"
    assert (page.step, form.view["line"]) == ("done", f"payroll · {payroll} · {masked} at {emulator.url}")
    assert session.session_key() == payroll
    assert pd.DataFrame({"a": [1]}).kms.encrypt("a").kms.decrypt()["a"].tolist() == [1]
    for secret in (emulator.secret_id, emulator.secret_key):
        assert secret not in everything(form)
        assert secret not in repr(sent)
    assert form.view["received"] == {}
    assert [name for name in SECRETS if name in form._typed] == []  # they are no longer needed
    for secret in (form, form._typed, form._recipient, form.provider):
        with pytest.raises((TypeError, AttributeError)):
            pickle.dumps(secret)
    assert repr(form) == f"<kmsdata.login: connected to <TencentKMS ap-guangzhou at {emulator.url}>>"


def test_a_page_that_cannot_encrypt_connects_too(form, emulator, keys):
    page = Page(form, secure=False)
    assert "Connected to" in page.connect(**pair(emulator), region=REGION)


def test_a_disabled_key_is_refused_also_by_its_name(page, emulator, keys):
    page.connect(**pair(emulator))
    for key in (keys[1], "old"):
        assert page.choose(key) == (
            f"{keys[1]} is Disabled: it can neither encrypt nor decrypt. Enable it in the console, or choose "
            "another key."
        )
        assert page.step == "keys"
    assert session.session_key() is None


def test_a_key_by_its_name(page, emulator, keys):
    page.connect(**pair(emulator))
    for nothing in ("", "  "):
        assert "Enter the name of a key" in page.choose(nothing)
    assert "There is no key with that name in ap-guangzhou" in page.choose("missing")
    assert "kms.create_key(name)" in page.status
    assert "not a key" in page.choose("local://demo")
    assert keys[0] in page.choose(" payroll ")
    assert session.session_key() == keys[0]


def test_a_region_by_its_code(page, emulator):
    page.fields["region"] = ""
    assert page.connect(**pair(emulator)) == "Enter the region."
    assert page.form.view["focus"] == "region"
    page.fields["region"] = "Guangzhou"
    assert "region= must be the name of a region" in page.connect()
    page.fields["region"] = " ap-nanjing "
    assert "KMS in Nanjing 南京 (ap-nanjing)" in page.connect()


def test_regions_are_those_that_have_kms():
    from kmsdata.emulator import kms_actions

    assert sorted(REGIONS) == sorted(kms_actions.REGIONS)
    assert len(set(REGIONS.values())) == len(REGIONS)


WRONG = {
    "nothing entered": (None, "Enter the SecretId and the SecretKey."),
    "not a key": ("not a key", "Enter the SecretKey again: it contains characters that no key has."),
    "wrong key": ("wrong key", "the SecretKey does not belong to the SecretId"),
    "unknown id": (Fault.error("AuthFailure.SecretIdNotFound"), "no such SecretId"),
    "old token": (Fault.error("AuthFailure.TokenFailure"), "Get new temporary credentials"),
    "clock": (Fault.error("AuthFailure.SignatureExpire"), "clock is more than five minutes off"),
    "throttled": (Fault.error("RequestLimitExceeded"), "Try again in a minute"),
    "kms fails": (Fault.error("InternalError"), "Try again in a minute"),
    "no network": ("stopped", "refused the connection"),
    "captive portal": (Fault.html(), "Check the endpoint and proxies"),
    "no such endpoint": ("endpoint", "endpoint= must be a host"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_goes_wrong_is_said_and_the_form_stays_usable(form, page, emulator, keys, sent, what):
    fault, sentence = WRONG[what]
    typed = {} if fault is None else pair(emulator)
    if fault in ("wrong key", "not a key"):
        typed["secret_key"] = SECRET if fault == "wrong key" else f"{SECRET}\N{CYRILLIC SMALL LETTER A}"
    if fault == "stopped":
        emulator.stop_listening()
    elif fault == "endpoint":
        page.fields["endpoint"] = "http://example.com/path"
    elif isinstance(fault, Fault):
        emulator.fail(fault, times=None)
    assert sentence in page.connect(**typed)
    assert (form.view["status"][0], page.step) == ("bad", "ask")
    assert form.provider is None
    for secret in (emulator.secret_id, emulator.secret_key, SECRET):
        assert secret not in everything(form)
        assert secret not in repr(sent)
    with pytest.raises(CredentialsError, match="fill in the form above"):
        kmsdata.new_data_key(keys[0])
    masked = f"{emulator.secret_id[:4]}…{emulator.secret_id[-4:]}"
    assert form.view["received"] == ({} if fault is None else {"secret_id": masked, "secret_key": ""})
    assert form.view["endpoint"] == emulator.url  # not what was typed
    # Correct only what was wrong, and try again.
    emulator.listen()
    emulator.heal()
    page.fields["endpoint"] = emulator.url
    again = pair(emulator) if fault is None else {"secret_key": emulator.secret_key}
    assert "Connected to" in page.connect(**again)


def test_who_may_not_list_keys_is_connected_all_the_same(form, page, emulator, keys):
    emulator.add_account("AKIDwriter0123456789", "writerKey", uin=emulator.uin, allow={"GenerateDataKey"})
    status = page.connect(secret_id="AKIDwriter0123456789", secret_key="writerKey")
    assert "no permission to list keys (kms:ListKeyDetail), so enter a KeyId" in status
    assert (form.view["keys"], form.view["key_hint"]) == ([], "KeyId, or alias")
    assert "no permission. Ask for kms:ListKeyDetail" in page.choose("payroll")
    assert keys[0] in page.choose(keys[0].rpartition("/")[2])
    kmsdata.new_data_key()


def test_an_unexpected_error_is_said_without_its_text(form, page, emulator, monkeypatch):
    def fail(kms):
        raise RuntimeError(SECRET)

    monkeypatch.setattr(kmsdata.TencentKMS, "list_keys", fail)
    assert page.connect(**pair(emulator)) == "this failed (RuntimeError): try again"
    assert SECRET not in everything(form)
    assert page.step == "ask"


def test_a_thread_that_cannot_start_keeps_nothing(form, emulator, monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    Page(form, secure=False).connect(**pair(emulator), region=REGION)
    assert "cannot start another thread" in form.view["status"][1]
    assert emulator.secret_key not in everything(form)
    assert form._worker is None


@pytest.mark.parametrize("error", [SystemExit(SECRET), KeyboardInterrupt(SECRET), MemoryError()])
def test_no_error_leaves_the_form_busy(form, page, emulator, monkeypatch, error):
    def fail(kms):
        raise error

    monkeypatch.setattr(kmsdata.TencentKMS, "list_keys", fail)
    assert page.connect(**pair(emulator)) == f"this failed ({type(error).__name__}): try again"


def test_long_and_odd_texts_of_the_service(form, page, emulator, keys, sent):
    name = "\u202e" + "x" * 1_000_000
    bad = {"KeyMetadatas": lambda found: [{**found[0], "Alias": name}]}
    emulator.fail(Fault.change(**bad, TotalCount=1), action="ListKeyDetail")
    page.connect(**pair(emulator))
    assert len(json.dumps(form.view)) < 20_000
    assert "\u202e" not in repr(form.view["keys"])


def test_many_keys_are_not_all_sent(form, page, emulator, monkeypatch):
    about = {"alias": "name", "state": "Enabled"}
    many = [{"key": f"tencent-kms://ap-guangzhou/{at}", **about} for at in range(20_000)]
    monkeypatch.setattr(kmsdata.TencentKMS, "list_keys", lambda _: many)
    status = page.connect(**pair(emulator))
    assert "20,000 keys (the first 500 are listed; enter the name of another)" in status
    assert len(form.view["keys"]) == 500


def test_a_slow_service_holds_up_nobody_and_is_asked_once(form, page, emulator, keys):
    emulator.fail(Fault.latency(1.0))
    began = time.monotonic()
    page.start(**pair(emulator))
    assert form.view["busy"]
    page.start(**pair(emulator))  # a second click is ignored
    page.send({"type": "ping"})
    page.send({"type": "again"})
    assert time.monotonic() - began < 0.9
    while "Connecting to" not in page.status:
        assert time.monotonic() - began < 5
        time.sleep(0.01)
    with pytest.raises(CredentialsError, match="fill in the form above"):
        kmsdata.new_data_key(keys[0])
    assert "Connected to" in page.end()
    assert emulator.calls["ListKeyDetail"] == 1


@pytest.mark.parametrize(
    "content",
    [None, [], "ping", {}, {"type": "connect"}, {"type": ["connect"]}, {"type": "choose", "key": "x"}],
)
@pytest.mark.parametrize("buffers", [[], None, ["text"], [7], [memoryview(b"x"), b"y"]])
def test_messages_that_make_no_sense_change_nothing(form, content, buffers):
    before = form.view
    form._handle_custom_msg(content, buffers)
    if form._worker is not None:
        form._worker.join(20)
    assert (form.view["step"], form.provider) == ("ask", None)
    assert before["step"] == "ask"


def test_what_a_page_sends_as_view_is_not_read(form, page, emulator, keys):
    form.set_state({"view": {**form.view, "step": "keys", "public_key": "AAAA", "busy": False}})
    page.send({"type": "choose", "key": keys[0]})
    assert session.session_key() is None
    page.form.view = {**form.view, "public_key": form._recipient.public_key}
    assert "Connected to" in page.connect(**pair(emulator))


# The local keystore.


def test_the_local_keystore_needs_no_account(form, page, keystore):
    assert form.view["file"] == str(keystore)
    assert f"the keystore {keystore}; no keys" in page.connect("local")
    assert "local://demo" in page.choose("demo")
    assert pd.DataFrame({"a": [1]}).kms.encrypt("a").kms.decrypt()["a"].tolist() == [1]
    assert [about["state"] for about in form.provider.list_keys()] == ["Enabled"]


def test_a_new_keystore_with_a_passphrase(form, page, keystore):
    assert "once more" in page.connect("local", passphrase=SECRET)
    assert (form.view["repeat"], form.view["focus"], form.view["status"][0]) == (True, "repeated", "ask")
    assert "differ" in page.connect("local", repeated="another")
    assert "Connected to the keystore" in page.connect("local", repeated=SECRET)
    page.choose("demo")
    data_key = kmsdata.new_data_key()
    assert kmsdata.LocalKeystore(keystore).sealed
    assert SECRET not in everything(form)
    assert SECRET not in keystore.read_text()
    assert data_key.wraps[0].key == "local://demo"


def test_a_keystore_that_has_a_passphrase(form, page, keystore):
    kmsdata.LocalKeystore(keystore, passphrase=SECRET).create_key("demo", quiet=True)
    assert "has a passphrase: enter it" in page.connect("local")
    assert "is wrong for" in page.connect("local", passphrase="wrong")
    assert form.provider is None
    assert "1 key" in page.connect("local", passphrase=SECRET)
    assert form.view["key"] == "local://demo"


def test_a_keystore_that_has_none(page, keystore):
    kmsdata.LocalKeystore(keystore).create_key("demo", quiet=True)
    assert "connect without one" in page.connect("local", passphrase=SECRET)
    assert "Connected to" in page.connect("local")


# Await.


def test_until_it_is_filled_in_no_key_can_be_used(form, emulator, keys, monkeypatch):
    frame = pd.DataFrame({"a": [1]})
    monkeypatch.setenv("TENCENTCLOUD_SECRET_ID", "AKIDother")
    monkeypatch.setenv("TENCENTCLOUD_SECRET_KEY", "other")
    for attempt in (
        lambda: frame.kms.encrypt("a"),
        lambda: frame.kms.encrypt("a", key=keys[0]),
        lambda: kmsdata.new_data_key(),
    ):
        with pytest.raises(CredentialsError) as caught:
            attempt()
        assert str(caught.value) == "not signed in yet: fill in the form above, then run again from here"
        assert caught.value.code == "NotAnswered"
    assert emulator.calls["GenerateDataKey"] == 0
    frame.kms.encrypt("a", key="local://demo")  # which needs no sign-in
    monkeypatch.undo()


def test_a_provider_that_is_passed_in_needs_no_form(form, emulator, keys):
    kms = kmsdata.TencentKMS(
        REGION, credential=(emulator.secret_id, emulator.secret_key), endpoint=emulator.url
    )
    kmsdata.use(kms)
    kmsdata.new_data_key(keys[0])


def test_await_waits_for_the_connection_and_a_key(form, page, emulator, keys):
    async def cell():
        waiting = asyncio.ensure_future(_awaited(form))
        await asyncio.sleep(0)
        page.connect(**pair(emulator))
        await asyncio.sleep(0.05)
        early = waiting.done()
        page.choose(keys[0])
        return early, await asyncio.wait_for(waiting, 10), await form

    early, provider, again = asyncio.run(cell())
    assert not early
    assert provider is again is form.provider
    assert session.session_key() == keys[0]


async def _awaited(form):
    return await form


def test_await_with_a_key_named_waits_for_the_connection_alone(emulator, keys):
    form = LoginForm(key=keys[0], region=REGION, endpoint=emulator.url)

    async def cell():
        Page(form).start(**pair(emulator))
        return await asyncio.wait_for(_awaited(form), 10)

    assert asyncio.run(cell()).region == REGION
    assert session.session_key() == keys[0]
    assert f"Your key: payroll · {keys[0]}" in form.view["status"][1]


def test_await_goes_on_without_a_key(form, page, emulator):
    async def cell():
        page.connect(**pair(emulator))
        page.send({"type": "continue"})
        return await asyncio.wait_for(_awaited(form), 10)

    assert asyncio.run(cell()).region == REGION
    assert session.session_key() is None
    assert "no default key · Tencent Cloud KMS in Guangzhou" in form.view["line"]


def test_an_interrupted_await_does_no_harm(form, page, emulator):
    async def cell():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(_awaited(form), 0.05)

    async def next_cell():
        page.connect(**pair(emulator))
        page.send({"type": "continue"})
        await asyncio.sleep(0.05)
        return await form

    asyncio.run(cell())
    assert asyncio.run(next_cell()) is form.provider


def test_await_in_a_kernel_that_cannot(form, monkeypatch):
    old = types.SimpleNamespace(version_info=(6, 31, 0), __version__="6.31.0")
    monkeypatch.setitem(sys.modules, "ipykernel", old)
    with pytest.raises(CredentialsError, match=r"ipykernel 6\.31\.0 cannot wait") as caught:
        asyncio.run(_awaited(form))
    assert caught.value.code == "CannotWait"


def test_change_offers_the_keys_and_to_sign_in_again(form, page, emulator, keys):
    page.connect(**pair(emulator))
    page.choose(keys[0])
    later = form.provider.create_key("later")
    page.send({"type": "change"})
    assert page.end() == "3 keys. Which one is the default?"
    assert (page.step, form.view["key"], form.view["keep"]) == ("keys", keys[0], True)
    kmsdata.new_data_key()  # the session stays signed in
    page.send({"type": "continue"})
    assert (page.step, session.session_key()) == ("done", keys[0])
    page.send({"type": "change"})
    page.end()
    page.choose(later)
    assert session.session_key() == later
    page.send({"type": "change"})
    page.end()
    page.send({"type": "again"})
    assert page.step == "ask"
    with pytest.raises(CredentialsError, match="fill in the form above"):
        kmsdata.new_data_key(keys[0])
    assert "Enter the SecretId and the SecretKey." in page.connect()


def test_a_recorded_message_opens_nothing_later(page, emulator, keys):
    message = json.dumps({"service": "tencent", **page.fields, **pair(emulator)}).encode()
    message = sealed(message, page.form.view["public_key"])
    page.send({"type": "connect", "sealed": True}, message)
    assert "Connected to" in page.end()
    page.send({"type": "again"})
    page.send({"type": "connect", "sealed": True}, message)
    assert "arrived damaged" in page.end()


def test_a_secret_in_the_wrong_field_is_not_repeated(form, page, emulator, keys, sent):
    wrong = [
        {"secret_id": SECRET, "secret_key": emulator.secret_id},
        {"region": SECRET},
        {"endpoint": SECRET},
        {"endpoint": f"https://user:{SECRET}@example.com"},
    ]
    for fields in wrong:
        assert "Connected" not in page.connect(**pair(emulator) | fields)
        form._typed.clear()
    page.connect(**pair(emulator))
    for typed in (SECRET, f"tencent-kms://ap-guangzhou/{SECRET}", f"local://{SECRET}", f"x://{SECRET}"):
        page.choose(typed)
    parts = {SECRET[:6], SECRET[-6:], SECRET[:6].lower(), SECRET[-6:].lower()}
    assert [part for part in parts if part in everything(form) + repr(sent)] == []


def test_the_first_account_without_keys_says_how_to_make_one(page, emulator):
    assert "no keys. Which one is the default?" in page.connect(**pair(emulator))
    assert "create it: in the console, or with kms.create_key(name)" in page.choose("payroll")


def test_the_key_of_another_account_is_not_kept(page, emulator, keys):
    page.connect(**pair(emulator))
    page.choose(keys[0])
    page.send({"type": "again"})
    assert f"Your key: payroll · {keys[0]}" in page.connect(**pair(emulator))  # the same account
    page.send({"type": "again"})
    emulator.add_account("AKIDother0123456789", SECRET, uin="100000000002")
    kms = kmsdata.TencentKMS(REGION, credential=("AKIDother0123456789", SECRET), endpoint=emulator.url)
    other = kms.create_key("payroll")
    assert "Which one is the default" in page.connect(secret_id="AKIDother0123456789", secret_key=SECRET)
    page.choose(other)
    assert session.session_key() == other


# login.


@pytest.fixture
def notebook(monkeypatch):
    """Pretend that this is a notebook; record what it displays."""
    displayed = []
    monkeypatch.setattr(sign_in, "in_notebook", lambda: True)
    monkeypatch.setattr(widgets, "in_notebook", lambda: True)
    monkeypatch.setattr(sign_in, "takes_input", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda bundle, **_: displayed.append(bundle))
    return displayed


def test_login_shows_the_form(notebook, emulator, keys):
    form = kmsdata.login(region=REGION, endpoint=emulator.url)
    (bundle,) = notebook
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "run this cell to use the sign-in form" in bundle["text/html"]
    assert "not filled in yet" in bundle["text/plain"]
    assert (form.view["region"], form.view["endpoint"]) == (REGION, emulator.url)
    page = Page(form)
    page.connect(**pair(emulator))
    page.choose(keys[0])
    # The cell runs again: nothing has to be typed again.
    again = kmsdata.login(region=REGION, endpoint=emulator.url)
    assert again is not form
    assert (again.view["step"], again.view["line"]) == ("done", again.view["line"])
    assert again.provider is form.provider
    assert asyncio.run(_awaited(again)) is form.provider
    assert form.view["step"] == "replaced"
    kmsdata.new_data_key()
    assert len(notebook) == 2


def test_each_login_is_a_form_of_its_own(notebook, emulator, keys):
    first = kmsdata.login(region=REGION, endpoint=emulator.url)
    Page(first).connect(**pair(emulator))
    Page(first).choose(keys[0])
    with Emulator() as other:
        second = kmsdata.login(region="ap-nanjing", endpoint=other.url)
        assert (first.view["region"], first.view["endpoint"]) == (REGION, emulator.url)
        assert (second.view["region"], second.view["endpoint"]) == ("ap-nanjing", other.url)
        assert first.view["public_key"] != second.view["public_key"]
        with pytest.raises(CredentialsError, match="fill in the form above"):
            kmsdata.new_data_key()
        assert "Connected" in Page(second).connect(**pair(other))
        # Both regions can be used now.
        assert first.view["step"] == "done"
        kmsdata.new_data_key(keys[0])
        kmsdata.new_data_key(second.provider.create_key("payroll"))


def test_of_forms_for_one_place_the_last_one_decides(notebook, emulator, keys):
    first = kmsdata.login(region=REGION, endpoint=emulator.url)
    second = kmsdata.login(endpoint=emulator.url)
    assert (first.view["step"], second.view["step"]) == ("replaced", "ask")
    assert first.view["line"] == "Another form of this kernel was opened later, and is used."
    Page(first).start(**pair(emulator))  # a click that was on its way
    assert first._worker is None
    Page(first).send({"type": "change"})
    assert (first.view["step"], second.view["step"]) == ("ask", "replaced")
    Page(first).connect(**pair(emulator))
    Page(first).choose(keys[0])
    assert (first.view["step"], second.view["step"]) == ("done", "replaced")
    kmsdata.new_data_key()


def test_who_waits_for_a_form_that_is_replaced_is_told(notebook, emulator):
    async def cell():
        first = kmsdata.login(region=REGION, endpoint=emulator.url)
        waiting = asyncio.ensure_future(_awaited(first))
        await asyncio.sleep(0)
        kmsdata.login(region=REGION, endpoint=emulator.url)
        with pytest.raises(CredentialsError, match="Another form of this kernel was opened later"):
            await asyncio.wait_for(waiting, 10)
        with pytest.raises(CredentialsError, match="Another form"):
            await first

    asyncio.run(cell())


@pytest.mark.parametrize("second_region", [REGION, None])
def test_a_form_that_connects_late_changes_nothing(notebook, emulator, keys, second_region):
    emulator.add_account("AKIDother0123456789", SECRET, uin="100000000002")
    go_on = threading.Event()
    emulator.fail(Fault.change(TotalCount=lambda total: total if go_on.wait(20) else 0))
    first = kmsdata.login(region=REGION, endpoint=emulator.url)
    Page(first).start(**pair(emulator))
    # The cell runs again, or another one: the form that is shown now decides.
    second = kmsdata.login(region=second_region, endpoint=emulator.url)
    go_on.set()
    Page(first).end()
    assert (first.view["step"], second.view["step"]) == ("replaced", "ask")
    with pytest.raises(CredentialsError, match="fill in the form above"):
        kmsdata.new_data_key(keys[0])
    page = Page(second)
    page.connect(region=REGION, secret_id="AKIDother0123456789", secret_key=SECRET)
    assert page.step == "keys"


def test_an_account_that_signs_in_for_the_same_region_replaces_the_other(notebook, emulator, keys):
    emulator.add_account("AKIDother0123456789", SECRET, uin="100000000002")
    first = kmsdata.login(region=REGION, endpoint=emulator.url)
    second = kmsdata.login(region="ap-nanjing", endpoint=emulator.url)
    Page(first).connect(**pair(emulator))
    Page(first).choose(keys[0])
    # In the second form, the user chooses the region of the first one.
    Page(second).connect(region=REGION, secret_id="AKIDother0123456789", secret_key=SECRET)
    assert first.view["step"] == "replaced"
    assert session.in_use(second.provider)


def test_login_with_what_there_is_shows_no_form(notebook, emulator, keys, monkeypatch, capsys):
    LoginForm()  # the cell ran before the environment was set
    monkeypatch.setenv("TENCENTCLOUD_SECRET_ID", emulator.secret_id)
    monkeypatch.setenv("TENCENTCLOUD_SECRET_KEY", emulator.secret_key)

    async def cell():
        return await kmsdata.login(key=keys[0], endpoint=emulator.url)

    kms = asyncio.run(cell())
    assert isinstance(kms, kmsdata.TencentKMS)
    assert notebook == []
    out = capsys.readouterr().out
    assert f"{emulator.secret_id[:4]}…{emulator.secret_id[-4:]} (the environment)" in out
    kmsdata.new_data_key()


def test_login_where_only_the_region_is_wanted(notebook, emulator, keys, monkeypatch):
    monkeypatch.setenv("TENCENTCLOUD_SECRET_ID", emulator.secret_id)
    monkeypatch.setenv("TENCENTCLOUD_SECRET_KEY", emulator.secret_key)
    form = kmsdata.login(endpoint=emulator.url)
    page = Page(form)
    assert "(the environment) is used" in page.status
    assert "Enter the region." in page.connect()
    page.fields["region"] = REGION
    assert "(the environment)" in page.connect()
    assert emulator.secret_id not in everything(form)
    page.choose(keys[0])
    kmsdata.new_data_key()


def test_form_true_and_false_override_the_guess(notebook, emulator, keys, monkeypatch):
    monkeypatch.setenv("TENCENTCLOUD_SECRET_ID", emulator.secret_id)
    monkeypatch.setenv("TENCENTCLOUD_SECRET_KEY", emulator.secret_key)
    form = kmsdata.login(region=REGION, endpoint=emulator.url, form=True)  # although it could connect
    assert "Without a SecretId" in form.view["status"][1]
    assert "Connected to" in Page(form).connect()
    monkeypatch.delenv("TENCENTCLOUD_SECRET_ID")
    monkeypatch.delenv("TENCENTCLOUD_SECRET_KEY")
    answers = [emulator.secret_id, emulator.secret_key, ""]
    monkeypatch.setattr("getpass.getpass", lambda *_: answers.pop(0))
    kms = kmsdata.login(region=REGION, endpoint=emulator.url, form=False)
    assert (kms.region, answers) == (REGION, [])
    monkeypatch.setattr(sign_in, "takes_input", lambda: False)  # such as an unknown front end
    assert isinstance(kmsdata.login(region="ap-nanjing", form=True), LoginForm)
    with pytest.raises(CredentialsError, match="no user to ask"):
        kmsdata.login(region="ap-nanjing")


def test_form_true_without_the_packages_says_what_to_install(notebook, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(ImportError, match=r'needs anywidget: pip install "kmsdata\[notebook\]"'):
        kmsdata.login(region=REGION, form=True)


def test_voila_shows_the_form_although_it_takes_no_input(notebook, monkeypatch):
    monkeypatch.setattr(sign_in, "takes_input", lambda: False)
    monkeypatch.setattr("kmsdata.display.ipython.in_notebook", lambda: True)
    monkeypatch.setenv("SERVER_SOFTWARE", "voila/0.5.13")
    assert isinstance(kmsdata.login(region=REGION), LoginForm)


# Errors in IPython.


@pytest.fixture
def shell():
    from IPython.core.interactiveshell import InteractiveShell

    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    yield shell
    shell.history_manager.end_session()
    InteractiveShell.clear_instance()


@pytest.fixture
def ran(shell, capsys):
    """Run a cell; return its output without colours."""
    import re

    def run(code, **names):
        shell.push(names)
        shell.run_cell(code)
        captured = capsys.readouterr()
        return re.sub(r"\x1b\[[0-9;]*m", "", captured.out + captured.err)

    return run


def test_an_error_is_one_block(ran):
    shown = ran("import kmsdata\nkmsdata.LocalKeystore().describe_key('local://missing')")
    first, second, third = shown.strip().splitlines()
    assert first.startswith("KeyNotFoundError: there is no local://missing in ")
    assert "kmsdata keys create local://missing" in first
    assert second.strip().endswith("line 2: kmsdata.LocalKeystore().describe_key('local://missing')")
    assert third.strip() == "(%tb shows the traceback)"


def test_the_traceback_is_there_on_request(ran):
    ran("import kmsdata\nkmsdata.LocalKeystore().describe_key('local://missing')")
    verbose = ran("%tb Verbose")
    assert "keystore.py" in verbose
    assert "describe_key(" in verbose
    assert "keystore.py" in ran("%tb")
    assert "keystore.py" in ran("%xmode Verbose\nkmsdata.LocalKeystore().describe_key('local://missing')")
    assert "keystore.py" in ran("%xmode Plain\nkmsdata.LocalKeystore().describe_key('local://missing')")


def test_a_block_without_ipython(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", None)
    assert kmsdata.KmsDataError("no")._render_traceback_() == ["kmsdata.KmsDataError: no\n"]


def test_load_ext_is_a_friendly_no_op(ran):
    first, second = ran("%load_ext kmsdata"), ran("%load_ext kmsdata\nprint('on')")
    assert first.startswith("kmsdata needs no extension: 'import kmsdata' adds df.kms.")
    assert "rror" not in first + second
    assert second.endswith("on\n")


PLAINTEXT = "Grace-Hopper-1906"


def wrong_credentials(emulator, monkeypatch):
    answers = [emulator.secret_id, SECRET, "token-" + SECRET]
    monkeypatch.setattr(sign_in, "_can_ask", lambda: True)
    monkeypatch.setattr("getpass.getpass", lambda *_: answers.pop(0))
    kmsdata.login(region=REGION, endpoint=emulator.url)


def bad_region(emulator, monkeypatch):
    kmsdata.TencentKMS("no region!", credential=(emulator.secret_id, SECRET))


def bad_credential(emulator, monkeypatch):
    kmsdata.TencentKMS(REGION, credential={emulator.secret_id: SECRET})


def wrong_passphrase(emulator, monkeypatch):
    path = Path.home() / "sealed" / "keystore.json"
    kmsdata.LocalKeystore(path, passphrase="right").create_key("demo", quiet=True)
    kmsdata.LocalKeystore(path, passphrase=SECRET).wrap(bytes(32), "local://demo", {})


def refused_wrap(emulator, monkeypatch):
    pair = (emulator.secret_id, emulator.secret_key)
    kms = kmsdata.TencentKMS(REGION, credential=pair, endpoint=emulator.url, retries=0)
    key = kms.create_key("payroll")
    emulator.fail(Fault.error("InternalError"), action="GenerateDataKey")
    del pair
    kms.generate_data_key(key, {})


def tampered_cells(emulator, monkeypatch):
    cells = pd.DataFrame({"a": [PLAINTEXT, PLAINTEXT]}).kms.encrypt("a", key="local://demo")["a"].array
    first, second = map(bytes, cells)
    changed = pa.array([first, second[:-1] + bytes([second[-1] ^ 1])], pa.binary())
    pd.DataFrame({"a": kmsdata.EncryptedArray(changed, cells.dtype)}).kms.decrypt()


ATTEMPTS = [wrong_credentials, bad_region, bad_credential, wrong_passphrase, refused_wrap, tampered_cells]


def in_rich(error):
    from rich.console import Console
    from rich.traceback import Traceback

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(Traceback.from_exception(type(error), error, error.__traceback__, show_locals=True))
    return console.export_text()


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.__name__)
@pytest.mark.parametrize("how", ["block", "verbose", "rich"])
def test_no_way_to_show_an_error_shows_a_secret(ran, emulator, monkeypatch, attempt, how):
    try:
        attempt(emulator, monkeypatch)
    except Exception as error:  # noqa: BLE001
        caught = error
    # Skip the frames of the test, which contain the secret.
    trace = caught.__traceback__.tb_next
    while trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    caught = caught.with_traceback(trace)

    def again():
        raise caught

    if how == "rich":
        text = in_rich(caught)
    else:
        text = ran(f"%xmode {'Verbose' if how == 'verbose' else 'Context'}\nagain()", again=again)
    assert type(caught).__name__ in text
    for secret in (emulator.secret_id, emulator.secret_key, SECRET, PLAINTEXT):
        assert secret not in text


@pytest.mark.parametrize("how", ["verbose", "rich"])
def test_a_frame_that_holds_a_secret_would_show_it(ran, how):
    def careless(password):
        raise kmsdata.KmsDataError("no")

    def again():
        careless(SECRET)

    if how == "verbose":
        text = ran("%xmode Verbose\nagain()", again=again)
    else:
        with pytest.raises(kmsdata.KmsDataError) as caught:
            again()
        text = in_rich(caught.value)
    assert SECRET in text


# In a real kernel.


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """A client of a kernel, which answers its questions."""
    from jupyter_client.manager import start_new_kernel

    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
            patch.setenv(name, str(home))
        patch.setenv("PYTHONPATH", str(Path(kmsdata.__file__).parent.parent))
        patch.setenv("KMSDATA_KEYSTORE", str(home / "keystore.json"))
        for name in ("SECRET_ID", "SECRET_KEY", "REGION"):
            patch.delenv(f"TENCENTCLOUD_{name}", raising=False)
        manager, client = start_new_kernel(kernel_name="python3")
    run_in(client, "import kmsdata.keys.tencent.credentials as c; c._METADATA = 'http://127.0.0.1:9/'")
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def run_in(client, code, answers=None):
    """Run a cell; return its output and its questions. Without answers, the kernel has no user to ask."""
    outputs, asked = [], []

    def answer(message):
        asked.append((message["content"]["prompt"], message["content"]["password"]))
        client.input(answers.pop(0))

    client.execute_interactive(
        code,
        allow_stdin=answers is not None,
        timeout=60,
        output_hook=lambda message: outputs.append((message["msg_type"], message["content"])),
        stdin_hook=answer,
    )
    return outputs, asked


def texts(outputs, kind):
    return [content for shown, content in outputs if shown == kind]


def test_a_kernel_where_nobody_can_type(kernel):
    outputs, _ = run_in(kernel, "import kmsdata\nkmsdata.login(region='ap-guangzhou')")
    (error,) = texts(outputs, "error")
    assert "no user to ask for them: set TENCENTCLOUD_SECRET_ID" in error["evalue"]
    assert len(error["traceback"]) == 3
    assert texts(outputs, "display_data") == []


def test_a_kernel_shows_the_form_once_and_stops_what_needs_it(kernel, emulator):
    login = f"import kmsdata\nkmsdata.login(region='ap-guangzhou', endpoint='{emulator.url}')"
    outputs, asked = run_in(kernel, login, answers=[])
    (shown,) = texts(outputs, "display_data")
    assert "application/vnd.jupyter.widget-view+json" in shown["data"]
    assert texts(outputs, "execute_result") == []
    assert asked == []
    outputs, _ = run_in(kernel, "kmsdata.new_data_key()")
    (error,) = texts(outputs, "error")
    assert error["evalue"] == "not signed in yet: fill in the form above, then run again from here"
    assert "line 1: kmsdata.new_data_key()" in error["traceback"][1]
    run_in(kernel, "kmsdata.keys.session._held.clear()")


def test_a_kernel_without_anywidget_asks(kernel, emulator):
    code = "import sys, kmsdata; there = sys.modules.get('anywidget'); sys.modules['anywidget'] = None\n"
    code += f"kms = kmsdata.login(endpoint='{emulator.url}')\nprint(kms)"
    answers = ["ap-guangzhou", f"{emulator.secret_id} ", emulator.secret_key, ""]
    outputs, asked = run_in(kernel, code, answers)
    run_in(kernel, "sys.modules['anywidget'] = there")
    assert [hidden for _, hidden in asked] == [False, True, True, True]
    out = "".join(content["text"] for content in texts(outputs, "stream"))
    assert 'pip install "kmsdata[notebook]"' in out
    assert "Connected to Tencent Cloud KMS in ap-guangzhou" in out
    assert emulator.secret_key not in json.dumps(outputs)
    assert emulator.secret_id not in json.dumps(outputs)
