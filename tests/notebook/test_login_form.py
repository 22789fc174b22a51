"""The form of `kmsdata.login` in this process, errors in IPython, and login in a real kernel."""

import asyncio
import copy
import io
import json
import pickle
import sys
import time
import types
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
from kmsdata.notebook.password_field import WipingPassword  # noqa: E402

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
    monkeypatch.setattr(widgets, "_LATE", 0.05)
    monkeypatch.setattr(widgets, "_of_process", [])


@pytest.fixture
def emulator():
    with Emulator() as emulator:
        yield emulator


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
        messages.append((widget, copy.deepcopy(message)))

    monkeypatch.setattr(w.Widget, "_send", send)
    return messages


@pytest.fixture
def form(emulator):
    return LoginForm(endpoint=emulator.url)


def types_in(field, text):
    """Send what a browser sends when the cursor leaves the field."""
    field.set_state({"value": text})


def fill_in(form, emulator, *, secret_key=None):
    types_in(form.secret_id, emulator.secret_id)
    types_in(form.secret_key, secret_key or emulator.secret_key)
    form.region.value = REGION


def press(form, button):
    button.click()
    form._worker.join(20)
    assert not form._worker.is_alive()
    return form.status.value


def shown(widget):
    return widget.layout.display != "none"


def everything(form):
    """Return all that could be saved of every widget, and all that Python shows of the form."""
    return json.dumps(w.Widget.get_manager_state(drop_defaults=False)) + repr(form) + repr(vars(form))


# What is typed.


@pytest.mark.parametrize("pasted", ["{}", "{} ", "\t{}\n", "\u00a0{}\u200b", "\ufeff {}"])
def test_a_field_gives_up_what_was_typed_at_once(sent, pasted):
    field = WipingPassword(placeholder="hint")
    types_in(field, pasted.format(SECRET))
    assert field.value == ""
    assert field.typed.text == SECRET
    assert (field, {"value": ""}) in [(who, message.get("state")) for who, message in sent]
    assert SECRET not in json.dumps([message for _, message in sent])
    assert SECRET not in json.dumps(w.Widget.get_manager_state(drop_defaults=False))
    assert SECRET not in repr(field) + repr(field.typed) + repr(vars(field))
    for dump in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError):
            dump(field.typed)
    field.clear()
    assert (field.typed.text, field.placeholder) == ("", "hint")


def test_a_usual_password_field_keeps_it(sent):
    field = w.Password()  # the control: the searches above find a secret that is there
    types_in(field, SECRET)
    assert SECRET in json.dumps(w.Widget.get_manager_state(drop_defaults=False))
    assert SECRET in json.dumps([message for _, message in sent])
    field.close()


def test_letters_are_not_sent_one_by_one():
    assert WipingPassword().continuous_update is False


def test_a_passphrase_keeps_its_blanks():
    field = WipingPassword(exact=True)
    types_in(field, " two words ")
    assert field.typed.text == " two words "
    types_in(field, " ")
    assert field.typed.text == ""


def test_the_secret_id_is_shown_masked():
    field = WipingPassword(named=True)
    types_in(field, "AKID0123456789abcdefghij")
    assert field.placeholder == "received: AKID…ghij (type to replace it, a blank to clear it)"
    types_in(field, "short")
    assert field.placeholder == "received (type to replace it, a blank to clear it)"


# Connecting.


def test_connect_and_choose_a_key(form, emulator, keys, sent):
    payroll, old = keys
    assert [shown(part) for part in (form._asking, form._connected)] == [True, False]
    fill_in(form, emulator)
    types_in(form.secret_key, f"{emulator.secret_key}  ")
    status = press(form, form.connect)
    assert "Connected to Tencent Cloud KMS in ap-guangzhou (Guangzhou 广州)" in status
    assert f"{emulator.secret_id[:4]}…{emulator.secret_id[-4:]}" in status
    assert emulator.url in status
    assert [shown(part) for part in (form._asking, form._connected)] == [False, True]
    assert [label for label, _ in form.keys_there.options] == [
        "payroll  ·  Enabled", "old  ·  Disabled", "another …",
    ]  # fmt: skip
    assert form.keys_there.value == payroll
    assert f"payroll, {payroll}" in press(form, form.choose)
    assert session.session_key() == payroll
    assert pd.DataFrame({"a": [1]}).kms.encrypt("a").kms.decrypt()["a"].tolist() == [1]
    form.keys_there.value = old
    assert "It is Disabled" in press(form, form.choose)
    for secret in (emulator.secret_id, emulator.secret_key):
        assert secret not in everything(form)
        assert secret not in json.dumps([message for _, message in sent])
    assert not form.secret_key.typed.text  # it is no longer needed
    for whatever in (form, form.secret_key, form.provider):
        with pytest.raises((TypeError, AttributeError)):
            pickle.dumps(whatever)
    assert repr(form) == f"<kmsdata.login: connected to <TencentKMS ap-guangzhou at {emulator.url}>>"


def test_enter_connects(form, emulator, keys):
    fill_in(form, emulator)
    # Like browsers: the Enter key arrives before the typed text.
    form.secret_key._handle_custom_msg({"event": "submit"}, [])
    types_in(form.secret_key, emulator.secret_key)
    form._worker.join(20)
    assert "Connected to" in form.status.value


def test_a_key_by_its_name(form, emulator, keys):
    fill_in(form, emulator)
    press(form, form.connect)
    form.keys_there.value = "*"
    assert shown(form.other_key)
    assert "enter the name of a key" in press(form, form.choose)
    form.other_key.value = "missing"
    assert "no key with that alias" in press(form, form.choose)
    form.other_key.value = "local://demo"
    assert "is not a key of" in press(form, form.choose) or "KeyNotFound" in form.status.value
    form.other_key.value = " payroll "
    assert keys[0] in press(form, form.choose)
    assert session.session_key() == keys[0]


def test_a_region_by_its_code(form, emulator):
    fill_in(form, emulator)
    assert not shown(form.other_region)
    form.region.value = "*"
    assert shown(form.other_region)
    assert "Enter the region." in press(form, form.connect)
    form.other_region.value = "Guangzhou"
    assert "region= must be the name of a region" in press(form, form.connect)
    form.other_region.value = " ap-nanjing "
    assert "KMS in ap-nanjing" in press(form, form.connect)


def test_regions_are_those_that_have_kms():
    from kmsdata.emulator.kms_actions import REGIONS

    assert sorted(widgets.REGIONS) == sorted(REGIONS)
    assert len(set(widgets.REGIONS.values())) == len(REGIONS)


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
def test_what_goes_wrong_is_said_and_the_form_stays_usable(form, emulator, keys, sent, what):
    fault, sentence = WRONG[what]
    if fault is not None:
        typed = {"wrong key": SECRET, "not a key": f"{SECRET}\N{CYRILLIC SMALL LETTER A}"}
        fill_in(form, emulator, secret_key=typed.get(fault if isinstance(fault, str) else ""))
    else:
        form.region.value = REGION
    if fault == "stopped":
        emulator.stop_listening()
    elif fault == "endpoint":
        form.endpoint.value = "http://example.com/path"
    elif isinstance(fault, Fault):
        emulator.fail(fault, times=None)
    status = press(form, form.connect)
    assert sentence in status
    assert "<b " in status.split(sentence)[0]
    assert form.provider is None
    assert not form.connect.disabled
    for secret in (emulator.secret_id, emulator.secret_key, SECRET):
        assert secret not in everything(form)
    with pytest.raises(CredentialsError, match="fill in the form above"):
        kmsdata.new_data_key(keys[0])
    # Correct only what was wrong, and try again.
    emulator.listen()
    emulator.heal()
    form.endpoint.value = emulator.url
    if fault is None:
        types_in(form.secret_id, emulator.secret_id)
    types_in(form.secret_key, emulator.secret_key)
    assert "Connected to" in press(form, form.connect)


def test_who_may_not_list_keys_is_connected_all_the_same(form, emulator, keys):
    emulator.add_account("AKIDwriter0123456789", "writerKey", uin=emulator.uin, allow={"GenerateDataKey"})
    types_in(form.secret_id, "AKIDwriter0123456789")
    types_in(form.secret_key, "writerKey")
    form.region.value = REGION
    status = press(form, form.connect)
    assert "no permission to list keys (kms:ListKeyDetail), so enter a KeyId" in status
    assert shown(form.other_key)
    assert not shown(form.keys_there)
    form.other_key.value = "payroll"
    assert "no permission. Ask for kms:ListKeyDetail" in press(form, form.choose)
    form.other_key.value = keys[0].rpartition("/")[2]
    assert keys[0] in press(form, form.choose)
    kmsdata.new_data_key()


def test_text_of_the_service_is_text(form, emulator, keys):
    bad = {"KeyMetadatas": lambda found: [{**found[0], "Alias": "<img src=x onerror=alert(1)>"}]}
    emulator.fail(Fault.change(**bad, TotalCount=1), action="ListKeyDetail")
    fill_in(form, emulator)
    press(form, form.connect)
    assert "<img" not in press(form, form.choose)
    assert "&lt;img" in form.status.value


def test_an_unexpected_error_is_said_without_its_text(form, emulator, monkeypatch):
    def fail(kms):
        raise RuntimeError(SECRET)

    monkeypatch.setattr(kmsdata.TencentKMS, "list_keys", fail)
    fill_in(form, emulator)
    assert "this failed (RuntimeError): try again" in press(form, form.connect)
    assert SECRET not in form.status.value
    assert not form.connect.disabled


def test_a_slow_service_holds_up_nobody(form, emulator, keys):
    emulator.fail(Fault.latency(1.0))
    fill_in(form, emulator)
    began = time.monotonic()
    form.connect.click()
    form.connect.click()  # a second click is ignored
    assert time.monotonic() - began < 0.9
    while not form.connect.disabled or "Connecting" not in form.status.value:
        assert time.monotonic() - began < 5
        time.sleep(0.01)
    with pytest.raises(CredentialsError, match="fill in the form above"):
        kmsdata.new_data_key(keys[0])
    form._worker.join(20)
    assert "Connected to" in form.status.value
    assert emulator.calls["ListKeyDetail"] == 1


# The local keystore.


def test_the_local_keystore_needs_no_account(form, keystore):
    form.service.value = "local"
    assert [shown(form._cloud), shown(form._local), shown(form.repeated)] == [False, True, False]
    assert str(keystore) in form.file.value
    assert f"the keystore {keystore}; no keys" in press(form, form.connect)
    form.other_key.value = "demo"
    assert "local://demo" in press(form, form.choose)
    assert pd.DataFrame({"a": [1]}).kms.encrypt("a").kms.decrypt()["a"].tolist() == [1]
    assert [about["state"] for about in form.provider.list_keys()] == ["Enabled"]


def test_a_new_keystore_with_a_passphrase(form, keystore):
    form.service.value = "local"
    types_in(form.passphrase, SECRET)
    assert "once more" in press(form, form.connect)
    assert shown(form.repeated)
    types_in(form.repeated, "another")
    assert "differ" in press(form, form.connect)
    types_in(form.repeated, SECRET)
    assert "Connected to the keystore" in press(form, form.connect)
    form.other_key.value = "demo"
    press(form, form.choose)
    data_key = kmsdata.new_data_key()
    assert kmsdata.LocalKeystore(keystore).sealed
    assert SECRET not in everything(form)
    assert SECRET not in keystore.read_text()
    assert data_key.wraps[0].key == "local://demo"


def test_a_keystore_that_has_a_passphrase(form, keystore):
    kmsdata.LocalKeystore(keystore, passphrase=SECRET).create_key("demo", quiet=True)
    form.service.value = "local"
    assert "has a passphrase: enter it" in press(form, form.connect)
    types_in(form.passphrase, "wrong")
    assert "is wrong for" in press(form, form.connect)
    assert form.provider is None
    types_in(form.passphrase, SECRET)
    assert "1 key" in press(form, form.connect)
    assert form.keys_there.value == "local://demo"


def test_a_keystore_that_has_none(form, keystore):
    kmsdata.LocalKeystore(keystore).create_key("demo", quiet=True)
    form.service.value = "local"
    types_in(form.passphrase, SECRET)
    assert "connect without one" in press(form, form.connect)
    assert "Connected to" in press(form, form.connect)


# Await.


def test_until_it_is_filled_in_keys_are_not_to_be_had(form, emulator, keys, monkeypatch):
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


def test_a_provider_that_is_handed_in_needs_no_form(form, emulator, keys):
    kms = kmsdata.TencentKMS(
        REGION, credential=(emulator.secret_id, emulator.secret_key), endpoint=emulator.url
    )
    kmsdata.use(kms)
    kmsdata.new_data_key(keys[0])


def test_await_waits_for_the_connection_and_a_key(form, emulator, keys):
    async def cell():
        waiting = asyncio.ensure_future(_awaited(form))
        await asyncio.sleep(0)
        fill_in(form, emulator)
        form.connect.click()
        while form.provider is None:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        early = waiting.done()
        form._worker.join(20)
        form.choose.click()
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
        fill_in(form, emulator)
        form.connect.click()
        return await asyncio.wait_for(_awaited(form), 10)

    assert asyncio.run(cell()).region == REGION
    assert session.session_key() == keys[0]
    assert f"Your key: {keys[0]}" in form.status.value


def test_await_goes_on_without_a_key(form, emulator):
    async def cell():
        fill_in(form, emulator)
        press(form, form.connect)
        form.go_on.click()
        return await asyncio.wait_for(_awaited(form), 10)

    assert asyncio.run(cell()).region == REGION
    assert session.session_key() is None


def test_an_interrupted_await_does_no_harm(form, emulator):
    async def cell():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(_awaited(form), 0.05)

    async def next_cell():
        fill_in(form, emulator)
        press(form, form.connect)
        press(form, form.go_on)
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


def test_sign_in_again(form, emulator, keys):
    fill_in(form, emulator)
    press(form, form.connect)
    press(form, form.choose)
    press(form, form.again)
    assert [shown(part) for part in (form._asking, form._connected)] == [True, False]
    with pytest.raises(CredentialsError, match="fill in the form above"):
        kmsdata.new_data_key(keys[0])
    assert "Enter the SecretId and the SecretKey." in press(form, form.connect)


def test_the_key_of_another_account_is_not_kept(form, emulator, keys):
    fill_in(form, emulator)
    press(form, form.connect)
    press(form, form.choose)
    press(form, form.again)
    fill_in(form, emulator)
    assert f"Your key: {keys[0]}" in press(form, form.connect)  # the same account
    press(form, form.again)
    emulator.add_account("AKIDother0123456789", SECRET, uin="100000000002")
    kms = kmsdata.TencentKMS(REGION, credential=("AKIDother0123456789", SECRET), endpoint=emulator.url)
    other = kms.create_key("payroll")
    types_in(form.secret_id, "AKIDother0123456789")
    types_in(form.secret_key, SECRET)
    assert "Which one is the default" in press(form, form.connect)
    press(form, form.choose)
    assert session.session_key() == other


# login.


@pytest.fixture
def notebook(monkeypatch):
    """Pretend that this is a notebook; record what it displays."""
    displayed = []
    monkeypatch.setattr(sign_in, "in_notebook", lambda: True)
    monkeypatch.setattr(sign_in, "_somebody", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda bundle, **_: displayed.append(bundle))
    return displayed


def test_login_shows_the_form(notebook, emulator, keys):
    form = kmsdata.login(region=REGION, endpoint=emulator.url)
    (bundle,) = notebook
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "run this cell to use the sign-in form" in bundle["text/html"]
    assert "not filled in yet" in bundle["text/plain"]
    assert (form.region.value, form.endpoint.value) == (REGION, emulator.url)
    fill_in(form, emulator)
    press(form, form.connect)
    press(form, form.choose)
    # The cell runs again: nothing has to be typed again.
    assert kmsdata.login(region=REGION, endpoint=emulator.url) is form
    assert "Connected to" in form.status.value
    kmsdata.new_data_key()
    # Another region resets the form.
    assert kmsdata.login(region="ap-nanjing") is form
    assert form.region.value == "ap-nanjing"
    with pytest.raises(CredentialsError, match="fill in the form above"):
        kmsdata.new_data_key()
    assert len(notebook) == 3
    # So does another endpoint.
    fill_in(form, emulator)
    press(form, form.connect)
    kmsdata.new_data_key()
    with Emulator() as other:
        kmsdata.login(endpoint=other.url)
        with pytest.raises(CredentialsError, match="fill in the form above"):
            kmsdata.new_data_key()


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
    assert "(the environment) is used" in form.status.value
    assert "Enter the region." in press(form, form.connect)
    form.region.value = REGION
    assert "(the environment)" in press(form, form.connect)
    assert emulator.secret_id not in everything(form)
    press(form, form.choose)
    kmsdata.new_data_key()


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


PLAINTEXT = "Grace-Hopper-1906"


def wrong_credentials(emulator, monkeypatch):
    answers = [emulator.secret_id, SECRET, "token-" + SECRET]
    monkeypatch.setattr(sign_in, "_somebody", lambda: True)
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


def test_a_kernel_without_ipywidgets_asks(kernel, emulator):
    code = "import sys, kmsdata; there = sys.modules.get('ipywidgets'); sys.modules['ipywidgets'] = None\n"
    code += f"kms = kmsdata.login(endpoint='{emulator.url}')\nprint(kms)"
    answers = ["ap-guangzhou", f"{emulator.secret_id} ", emulator.secret_key, ""]
    outputs, asked = run_in(kernel, code, answers)
    run_in(kernel, "sys.modules['ipywidgets'] = there")
    assert [hidden for _, hidden in asked] == [False, True, True, True]
    out = "".join(content["text"] for content in texts(outputs, "stream"))
    assert 'pip install "kmsdata[notebook]"' in out
    assert "Connected to Tencent Cloud KMS in ap-guangzhou" in out
    assert emulator.secret_key not in json.dumps(outputs)
    assert emulator.secret_id not in json.dumps(outputs)
