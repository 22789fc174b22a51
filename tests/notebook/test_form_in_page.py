"""The form's page without a front end around it: JavaScript in Chromium, and the real form behind it.

The test carries the messages between both, so that it decides when the kernel answers.
"""

import base64
import json
import re
import weakref
from pathlib import Path

import pytest

import kmsdata
from kmsdata.keys import session
from kmsdata.keys.data_key import Hidden
from tests.notebook.jupyterlab import ARTEFACTS, CHROMIUM

pytestmark = [pytest.mark.newest, pytest.mark.browser]

REGION = "ap-guangzhou"
SECURE, PLAIN = "https://form.example/", "http://form.example/"

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>form</title>
<style>:root { %s } body { background: %s }</style>
<body><div id="form"></div><script type="module">
%s
Object.assign(window, { sealMessage });
</script></body></html>"""
# What anywidget gives to a widget: a model, whose messages wait in a queue for the test.
MODEL = """
const handlers = {};
const state = { view: window.firstView, ...window.firstState };
window.outbox = [];
window.whole ??= { comm: {}, comm_live: true };
const model = {
  get: (name) => state[name],
  set: (name, value) => { state[name] = value; tell(`change:${name}`); },
  save_changes: () => {},
  on: (name, call) => (handlers[name] ??= new Set()).add(call),
  off: (name, call) => handlers[name]?.delete(call),
  send: (content, _, buffers) => {
    if (window.broken) throw new Error("the connection is closed");
    const text = (buffers ?? []).map((buffer) => btoa(String.fromCharCode(...new Uint8Array(buffer))));
    window.outbox.push([content, text]);
  },
  widget_manager: { get_model: async () => window.whole },
};
const tell = (name, ...values) => handlers[name]?.forEach((call) => call(...values));
window.receive = (name, value) => {
  if (name === "view") state.view = value;
  name === "view" ? tell("change:view") : tell("msg:custom", value, []);
};
window.lose = () => { window.whole.comm_live = false; tell("comm_live_update"); };
window.close = widget.render({ model, el: document.getElementById("form") });
"""


class FormPage:
    """A page with a form; `exchange` carries the messages that wait."""

    def __init__(self, page, form, *, address=SECURE, theme="", background="white", comm=True):
        self.page, self.form = page, form
        self.received, self.answers = [], []  # messages from the page, and to the page
        form.send = lambda content: self.answers.append(["custom", content])
        form.observe(lambda change: self.answers.append(["view", change["new"]]), "view")
        script = form._esm.replace("export default", "const widget =") + MODEL
        document = PAGE % (theme, background, script)
        page.route("**/*", lambda route: route.fulfill(body=document, content_type="text/html"))
        page.clock.install(time=0)
        page.clock.pause_at(1000)  # time passes in `pass_time` only
        page.add_init_script(f"window.firstView = {json.dumps(form.view)};")
        if not comm:
            page.add_init_script("window.whole = { comm_live: false };")
        page.goto(address)
        page.add_style_tag(content=form._css)
        page.wait_for_function("window.close !== undefined")

    def exchange(self):
        """Let the kernel handle what the page sent, and the page what the kernel sent."""
        sent = self.page.evaluate("() => window.outbox.splice(0)")
        self.received += sent
        for content, buffers in sent:
            self.form._handle_custom_msg(content, [memoryview(base64.b64decode(text)) for text in buffers])
        while self.answers:
            self.page.evaluate("(answer) => receive(...answer)", self.answers.pop(0))

    def until(self, text):
        """Exchange messages until the page shows a text."""
        for _ in range(200):
            self.exchange()
            if text in self.shown():
                return
            self.page.wait_for_timeout(20)
        raise AssertionError(f"not shown: {text}\n{self.shown()}")

    def pass_time(self, seconds):
        self.page.evaluate("() => 0")  # what is waiting for microtasks goes first
        self.page.clock.run_for(int(seconds * 1000))

    def shown(self):
        return self.page.locator("#form").inner_text()

    def field(self, name):
        return self.page.get_by_label(name, exact=True)

    def button(self, name):
        return self.page.get_by_role("button", name=name, exact=True)

    def sent(self, kind):
        """Return the messages of this type, without their buffers."""
        waiting = self.page.evaluate("() => window.outbox")
        return [content for content, _ in [*self.received, *waiting] if content["type"] == kind]

    def focused(self):
        return self.page.evaluate("() => document.activeElement.id.replace(/^kms-[0-9]+-/, '')")


@pytest.fixture
def form(emulator, monkeypatch):
    from kmsdata.notebook import login_form

    monkeypatch.setattr(login_form, "_forms", weakref.WeakSet())
    return login_form.LoginForm(region=REGION, endpoint=emulator.url)


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    assert CHROMIUM is not None, "no browser: apt-get install --no-install-recommends chromium"
    ARTEFACTS.mkdir(exist_ok=True)
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(chromium):
    context = chromium.new_context(viewport={"width": 700, "height": 520})
    yield context.new_page()
    context.close()


@pytest.fixture
def shown(page, form):
    shown = FormPage(page, form)
    shown.exchange()
    return shown


FOCUSED = """() => {
  const element = document.activeElement;
  return element.ariaLabel ?? element.labels?.[0]?.textContent ?? element.textContent;
}"""


def test_by_keyboard_alone(shown, emulator, keys):
    keyboard = shown.page.keyboard
    order = []
    for _ in range(8):
        keyboard.press("Tab")
        order.append(shown.page.evaluate(FOCUSED))
    assert order == [
        "Tencent Cloud KMS", "Local keystore", "SecretId", "SecretKey", "Session token", "Region",
        "Endpoint", "Endpoint",  # the summary, and the field below it
    ]  # fmt: skip
    shown.field("SecretId").focus()
    keyboard.type(emulator.secret_id)
    keyboard.press("Tab")
    keyboard.type("not-the-SecretKey")
    keyboard.press("Enter")
    shown.until("the SecretKey does not belong to the SecretId")
    assert shown.focused() == "secret_key"  # what to correct
    assert (
        shown.field("SecretId")
        .get_attribute("placeholder")
        .startswith(f"received: {emulator.secret_id[:4]}…")
    )
    keyboard.type(emulator.secret_key)
    keyboard.press("Enter")
    shown.until("Which one is the default?")
    assert shown.focused() == "key"
    keyboard.press("ArrowDown")
    keyboard.press("ArrowDown")  # over the disabled key
    assert shown.page.evaluate("() => document.activeElement.selectedOptions[0].label") == "another …"
    keyboard.press("ArrowUp")
    assert shown.page.evaluate("() => document.activeElement.selectedOptions[0].label") == "research-2026"
    keyboard.press("Tab")
    keyboard.press("Enter")
    shown.until("research-2026 · ")
    assert session.session_key() == keys[1]
    assert shown.page.evaluate("() => document.activeElement.textContent") == "change"
    keyboard.press("Enter")
    shown.until("Keep the key")
    assert shown.focused() == "key"
    shown.button("Sign in again").focus()
    keyboard.press("Enter")
    shown.until("Enter an API key")
    assert shown.focused() == "secret_id"


def test_the_focus_is_not_taken_from_what_the_user_does_meanwhile(shown, emulator, keys):
    shown.page.evaluate("() => document.body.append(document.createElement('textarea'))")
    shown.field("SecretId").fill(emulator.secret_id)
    shown.field("SecretKey").fill(emulator.secret_key)
    shown.button("Connect").click()
    shown.page.locator("textarea").click()
    shown.page.keyboard.type("abc")
    shown.until("Which one is the default?")
    shown.page.keyboard.type("def")
    assert shown.page.locator("textarea").input_value() == "abcdef"


def test_a_form_that_was_replaced_says_so_once(shown, emulator):
    type(shown.form)(region=REGION, endpoint=emulator.url)
    shown.until("Another form of this kernel was opened later")
    assert shown.shown().splitlines() == [
        "Another form of this kernel was opened later, and is used.", "change",
    ]  # fmt: skip
    shown.button("change").click()
    shown.until("Enter an API key")


def test_what_was_typed_in_another_window_is_cleared_too(shown, emulator, keys):
    shown.field("SecretKey").fill("typed in the second window")
    shown.form._typed.put("secret_id", Hidden(emulator.secret_id.encode()))
    shown.form._typed.put("secret_key", Hidden(emulator.secret_key.encode()))
    shown.form._connect_to_tencent(REGION, emulator.url)  # as by the first one
    shown.until("Which one is the default?")
    assert (
        shown.page.locator("input[type=password]").evaluate_all("all => all.map((one) => one.value)")
        == [""] * 5
    )


def test_what_was_typed_is_cleared_and_travels_once_and_sealed(shown, emulator, keys):
    shown.field("SecretId").fill(emulator.secret_id)
    shown.field("SecretKey").fill(emulator.secret_key)
    shown.button("Connect").dblclick()
    shown.page.wait_for_function("window.outbox.length > 0")
    assert [shown.field(name).input_value() for name in ("SecretId", "SecretKey", "Session token")] == [
        ""
    ] * 3
    outbox = shown.page.evaluate("() => window.outbox")
    (connect,) = [(content, buffers) for content, buffers in outbox if content["type"] == "connect"]
    assert sorted(connect[0]) == ["link", "number", "sealed", "type"]
    sent = b"".join(base64.b64decode(text) for text in connect[1])
    for secret in (emulator.secret_id, emulator.secret_key):
        assert secret.encode() not in sent
        assert secret not in json.dumps(outbox)
    shown.until("Connected to")
    assert emulator.calls["ListKeyDetail"] == 1


def test_the_second_click_of_a_double_click_presses_no_other_button(shown, emulator, keys):
    shown.field("SecretId").fill(emulator.secret_id)
    shown.field("SecretKey").fill(emulator.secret_key)
    shown.button("Connect").click()
    shown.until("Connected to")
    shown.button("Use this key").dispatch_event("click", {"detail": 2})
    shown.exchange()
    assert shown.sent("choose") == []
    shown.button("Use this key").dispatch_event("click", {"detail": 1})
    shown.until("payroll · ")


def test_plain_http_is_said_and_works(page, form, emulator, keys):
    shown = FormPage(page, form, address=PLAIN)
    assert page.evaluate("isSecureContext") is False
    assert "This page is not encrypted (plain http)" in shown.shown()
    shown.field("SecretId").fill(emulator.secret_id)
    shown.field("SecretKey").fill(emulator.secret_key)
    shown.button("Connect").click()
    shown.until("Connected to")
    (sent,) = shown.sent("connect")
    assert sent["sealed"] is False


def test_a_page_that_cannot_encrypt_sends_nothing(shown, emulator):
    shown.page.evaluate("() => { crypto.subtle.generateKey = () => Promise.reject(new Error('no')); }")
    shown.field("SecretKey").fill(emulator.secret_key)
    shown.button("Connect").click()
    shown.until("could not encrypt what you typed, so nothing was sent")
    assert shown.sent("connect") == []
    assert shown.field("SecretKey").input_value() == ""


def test_a_busy_kernel(shown, emulator, keys):
    shown.field("SecretId").fill(emulator.secret_id)
    shown.field("SecretKey").fill(emulator.secret_key)
    shown.button("Connect").click()
    shown.page.wait_for_function("window.outbox.some(([content]) => content.type === 'connect')")
    shown.pass_time(0.9)
    assert "busy" not in shown.shown()
    shown.pass_time(0.2)
    assert "The kernel is busy. The form connects when the running cell ends." in shown.shown()
    assert shown.button("Connect").is_disabled()
    shown.until("Connected to")  # the running cell has ended
    assert "busy" not in shown.shown()


def test_a_kernel_that_does_not_answer_and_then_does(shown):
    shown.field("SecretKey").focus()  # asks whether the kernel is there
    shown.field("SecretKey").fill("typed")
    shown.pass_time(1.1)
    assert "The kernel is busy" in shown.shown()
    assert shown.field("SecretKey").is_enabled()
    shown.pass_time(28.5)
    assert "does not answer" not in shown.shown()
    shown.pass_time(0.5)
    assert "The kernel does not answer" in shown.shown()
    assert "Run the cell again" in shown.shown()
    assert shown.field("SecretKey").is_disabled()
    assert shown.button("Connect").is_disabled()
    assert shown.field("SecretKey").input_value() == ""
    shown.exchange()  # a cell that ran for long has ended
    assert "does not answer" not in shown.shown()
    assert shown.button("Connect").is_enabled()
    assert "What you had typed was cleared" in shown.shown()
    assert len(shown.sent("ping")) == 2  # one at the start; it does not keep the kernel busy


def test_a_kernel_that_was_restarted(shown):
    shown.page.evaluate("() => lose()")
    shown.pass_time(4.9)
    assert "does not answer" not in shown.shown()
    shown.pass_time(0.2)
    assert "Run the cell again" in shown.shown()
    assert shown.field("SecretKey").is_disabled()


def test_a_connection_that_comes_back(shown):
    shown.page.evaluate("() => lose()")
    shown.page.wait_for_function("window.outbox.length > 0")
    shown.exchange()
    shown.pass_time(40)
    assert "does not answer" not in shown.shown()
    assert shown.field("SecretKey").is_enabled()


def test_a_widget_of_a_reopened_notebook(page, form):
    shown = FormPage(page, form, comm=False)
    shown.until("Run the cell again")
    assert shown.button("Connect").is_disabled()
    assert shown.sent("ping") == []


def test_sending_fails(shown):
    shown.page.evaluate("() => { window.broken = true; }")
    shown.field("SecretKey").fill("typed")
    shown.page.locator(".kmsdata-status", has_text="Run the cell again").wait_for()
    assert shown.field("SecretKey").is_disabled()


def test_a_kernel_that_ends_while_it_connects(shown, emulator, monkeypatch):
    shown.field("SecretId").fill(emulator.secret_id)
    shown.field("SecretKey").fill(emulator.secret_key)
    monkeypatch.setattr(type(shown.form), "_carry_out", lambda *_: None)  # it never comes to an end
    shown.button("Connect").click()
    shown.until("Connecting")
    shown.exchange()
    shown.pass_time(40)
    assert "does not answer" in shown.shown()


def test_a_form_that_is_done_says_when_its_kernel_is_gone(shown, emulator, keys):
    shown.field("SecretId").fill(emulator.secret_id)
    shown.field("SecretKey").fill(emulator.secret_key)
    shown.button("Connect").click()
    shown.until("Connected to")
    shown.button("Use this key").click()
    shown.until("payroll · ")
    assert shown.shown().splitlines()[-1] == "change"
    assert shown.page.locator("#form section").bounding_box()["height"] < 60  # one line
    shown.page.evaluate("() => lose()")
    shown.pass_time(6)
    assert "payroll" not in shown.shown()
    assert "Run the cell again" in shown.shown()


def test_the_local_keystore_and_its_passphrase(shown, keystore):
    shown.button("Local keystore").click()
    assert "Master keys in a local file" in shown.shown()
    assert shown.sent("service") == []
    assert (shown.field("SecretId").is_visible(), shown.field("Passphrase").is_visible()) == (False, True)
    assert shown.button("Local keystore").get_attribute("aria-pressed") == "true"
    assert shown.button("Tencent Cloud KMS").get_attribute("aria-pressed") == "false"
    shown.field("Passphrase").fill("correct horse")
    shown.button("Connect").click()
    shown.until("enter its passphrase once more")
    assert shown.focused() == "repeated"
    shown.field("Once more").fill("correct horse")
    shown.page.keyboard.press("Enter")
    shown.until("no keys. Which one is the default?")
    assert shown.focused() == "name"
    shown.page.keyboard.type("demo")
    shown.page.keyboard.press("Enter")
    shown.until("local://demo")
    kmsdata.new_data_key()
    assert kmsdata.LocalKeystore(keystore).sealed


def test_what_is_hidden_is_not_sent(shown, emulator):
    shown.field("SecretKey").fill("typed-before-the-other-service")
    shown.button("Local keystore").click()
    shown.button("Connect").click()
    shown.until("Which one is the default?")
    assert "secret_key" not in shown.form.view["received"]
    assert [name for name in ("secret_key",) if name in shown.form._typed] == []


def test_texts_of_the_service_are_texts(page, form):
    name = "<img src=x onerror=document.title='changed'>"
    form._keys = [{"key": "tencent-kms://ap-guangzhou/x", "alias": name, "state": name}]
    form._step, form._line, form._status = "keys", name, ("bad", name)
    form._show()
    shown = FormPage(page, form)
    shown.exchange()
    assert shown.shown().count(name) >= 2
    assert page.title() == "form"
    assert page.locator("#form img").count() == 0


def test_every_field_has_a_label_and_no_browser_keeps_it(shown):
    for name in ("SecretId", "SecretKey", "Session token"):
        assert shown.field(name).get_attribute("type") == "password"
        assert (
            shown.field(name).get_attribute("autocomplete") == "one-time-code"
        )  # Chromium saves other passwords
    assert shown.field("Endpoint").get_attribute("autocomplete") == "off"
    assert (
        shown.page.evaluate(
            "() => [...document.querySelectorAll('input, select')]"
            ".filter((field) => !field.labels.length && !field.ariaLabel).length"
        )
        == 0
    )
    status = shown.page.locator(".kmsdata-status")
    assert (status.get_attribute("role"), status.get_attribute("aria-live")) == ("status", "polite")


THEMES = {  # the variables that the front ends set, and the page behind
    "JupyterLab light": ("--jp-content-font-color0: rgba(0,0,0,1); --jp-layout-color1: white", "white"),
    "JupyterLab dark": (
        "--jp-content-font-color0: rgba(255,255,255,1); --jp-layout-color1: #212121",
        "#111111",
    ),
    "VS Code light": ("--vscode-foreground: #616161; --vscode-editor-background: #ffffff", "#ffffff"),
    "VS Code dark": ("--vscode-foreground: #cccccc; --vscode-editor-background: #1e1e1e", "#1e1e1e"),
    "marimo light": ("--foreground: #0f172a; --background: #ffffff", "#ffffff"),
    "marimo dark": ("--foreground: #eceeed; --background: #181c1a", "#181c1a"),
    "no theme": ("", "white"),
    "no theme, dark": ("", "oklch(0.2 0.01 250)"),
}
# The contrast (WCAG 2.2) of every visible text, placeholder and border with what is behind it.
CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const pixel = (...colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const luminance = (colour) => [...colour].slice(0, 3)
    .map((part) => part / 255).map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (element) => {
    const found = [];
    for (let at = element; at; at = at.parentElement) found.unshift(getComputedStyle(at).backgroundColor);
    return ["white", ...found];
  };
  const ratio = (colour, element) => {
    const back = behind(element);
    const [low, high] = [luminance(pixel(...back, colour)), luminance(pixel(...back))].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const found = { text: [], border: [] };
  for (const element of document.querySelectorAll(".kmsdata, .kmsdata *")) {
    if (!element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const name = element.id || element.className || element.tagName;
    if ([...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
      found.text.push([name, ratio(style.color, element)]);
    const hint = getComputedStyle(element, "::placeholder");
    if (element.placeholder) found.text.push([name, ratio(hint.color, element)]);
    if (element.matches("input, select, button, section"))
      found.border.push([name, ratio(style.borderTopColor, element.parentElement)]);
  }
  return found;
}"""


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("step", ["ask", "bad", "busy", "keys", "done"])
def test_contrast(page, form, keys, theme, step):
    variables, background = THEMES[theme]
    form._keys = [
        {"key": key, "alias": f"key-{at}", "state": ("Enabled", "Disabled")[at % 2]}
        for at, key in enumerate(keys)
    ]
    form._step = step if step in ("keys", "done") else "ask"
    form._line = "payroll · tencent-kms://ap-guangzhou/x · AKID…mple"
    form._status = {"keys": "good", "done": "good"}.get(step, step), "A sentence that says what to do."
    form._show()
    shown = FormPage(page, form, theme=variables, background=background)
    shown.exchange()
    name = re.sub(r"\W+", "-", theme)
    page.screenshot(path=ARTEFACTS / f"form-{step}-{name}.png")
    found = page.evaluate(CONTRAST)
    assert len(found["text"]) >= 2
    assert [(name, round(ratio, 2)) for name, ratio in found["text"] if ratio < 4.5] == []
    assert [(name, round(ratio, 2)) for name, ratio in found["border"] if ratio < 3] == []


def test_the_contrast_test_finds_what_is_too_pale(page, form):
    variables, background = "--jp-content-font-color0: #999999; --jp-layout-color1: white", "white"
    FormPage(page, form, theme=variables, background=background)
    page.add_style_tag(content=".kmsdata { --kms-line: #bbbbbb; }")
    found = page.evaluate(CONTRAST)
    assert [ratio for _, ratio in found["text"] if ratio < 4.5]
    assert [ratio for _, ratio in found["border"] if ratio < 3]


# The encryption in the page.


def seal(page, public_key, info, message, additional_data=b"", pair=None):
    text = page.evaluate(
        """async ([publicKey, info, message, additionalData, pair]) => {
            const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
            const curve = { name: "ECDH", namedCurve: "P-256" };
            const { d, ...point } = pair ?? {};
            const ephemeral = pair ? {
              privateKey: await crypto.subtle.importKey("jwk", pair, curve, true, ["deriveBits"]),
              publicKey: await crypto.subtle.importKey("jwk", point, curve, true, []),
            } : undefined;
            const options = { ephemeral, additionalData: bytes(additionalData) };
            const sealed = await sealMessage(bytes(publicKey), bytes(info), bytes(message), options);
            return btoa(String.fromCharCode(...sealed));
        }""",
        [*(base64.b64encode(part).decode() for part in (public_key, info, message, additional_data)), pair],
    )
    return base64.b64decode(text)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 4096, 9000])
def test_cryptography_opens_what_the_page_seals(shown, size):
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives import hpke
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    suite = hpke.Suite(hpke.KEM.P256, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    private = ec.generate_private_key(ec.SECP256R1())
    public = private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    message = bytes(at % 251 for at in range(size))
    sealed = seal(shown.page, public, b"info", message)
    assert len(sealed) == 65 + size + 16
    assert suite.decrypt(sealed, private, info=b"info") == message
    with pytest.raises(InvalidTag):
        suite.decrypt(sealed, private, info=b"other")
    assert seal(shown.page, public, b"info", message) != sealed


def test_the_published_vector(shown):
    # RFC 9180's authors publish it for this suite: cfrg/draft-irtf-cfrg-hpke, test-vectors.json.
    vector = json.loads((Path(__file__).parent / "hpke_vector.json").read_text())
    (encryption,) = vector["encryptions"]
    part = {
        name: bytes.fromhex(text) for name, text in (vector | encryption).items() if isinstance(text, str)
    }

    def url(number):
        return base64.urlsafe_b64encode(number).decode().rstrip("=")

    x, y = part["pkEm"][1:33], part["pkEm"][33:]
    pair = {"kty": "EC", "crv": "P-256", "x": url(x), "y": url(y), "d": url(part["skEm"])}
    sealed = seal(shown.page, part["pkRm"], part["info"], part["pt"], part["aad"], pair)
    assert sealed == part["enc"] + part["ct"]
