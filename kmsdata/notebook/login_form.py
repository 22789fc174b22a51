"""The form that `kmsdata.login` shows in a notebook. What is typed into it is nowhere but in this process.

Widgets hold their state in the notebook: it is saved with it, at the wrong moment too. So no field keeps what
was typed: it is moved out as it comes, and the field is empty again before anything could save it. Nothing
here needs JavaScript of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import os
import sys
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import ipywidgets as w
import traitlets

from kmsdata.display.ipython import cell_number, show_bundle
from kmsdata.errors import CredentialsError, KeyAccessError, KmsDataError
from kmsdata.keys.data_key import KeyProvider, Secret
from kmsdata.keys.key_uri import parse_key
from kmsdata.keys.local.keystore import LocalKeystore
from kmsdata.keys.session import forget, hold, session_key, use
from kmsdata.keys.tencent.client import TencentKMS

__all__ = ["LoginForm", "WipingPassword"]

REGIONS = {
    "ap-guangzhou": "Guangzhou 广州",
    "ap-shanghai": "Shanghai 上海",
    "ap-beijing": "Beijing 北京",
    "ap-nanjing": "Nanjing 南京",
    "ap-chengdu": "Chengdu 成都",
    "ap-chongqing": "Chongqing 重庆",
    "ap-hongkong": "Hong Kong 中国香港",
    "ap-singapore": "Singapore 新加坡",
    "ap-bangkok": "Bangkok 曼谷",
    "ap-jakarta": "Jakarta 雅加达",
    "ap-mumbai": "Mumbai 孟买",
    "ap-seoul": "Seoul 首尔",
    "ap-tokyo": "Tokyo 东京",
    "eu-frankfurt": "Frankfurt 法兰克福",
    "na-ashburn": "Virginia 弗吉尼亚",
    "na-siliconvalley": "Silicon Valley 硅谷",
    "sa-saopaulo": "São Paulo 圣保罗",
}
"""Regions that have KMS, with their names in English and Chinese."""

_OTHER = "*"  # the choice that opens a field for one's own text
_LATE = 0.3  # seconds within which what was typed last arrives, though Enter or Connect came before it
_UNANSWERED = "not signed in yet: fill in the form above, then run again from here"
_INVISIBLE = "\u200b\u2060\ufeff"  # pasted along from web pages; `strip` knows the other blanks


class _Typed(Secret):
    """What was typed. A frame may hold it, since it shows nothing."""

    __slots__ = ("text",)

    def __init__(self, text: str = "") -> None:
        self.text = text

    @property
    def plausible(self) -> bool:
        """Whether it holds nothing but what keys are made of."""
        return self.text.isascii() and self.text.isprintable()

    def equals(self, other: _Typed) -> bool:
        """Whether the same was typed."""
        return self.text == other.text


class WipingPassword(w.Password):
    """A field whose value is moved out as it comes; what the notebook could save of it is always empty.

    Args:
        exact: whether blanks around it are part of it, as in a passphrase; pasted ones are none of a key.
        named: whether its first and last four letters are shown, so that one sees which it was.
        options: of `ipywidgets.Password`.
    """

    value = traitlets.Unicode("").tag(sync=True, echo_update=False)  # nor is it sent to other windows

    def __init__(self, *, exact: bool = False, named: bool = False, **options: Any) -> None:
        # With every letter sent by itself, half a secret would be on its way whenever somebody saves.
        super().__init__(continuous_update=False, **options)
        self._exact, self._named, self._hint = exact, named, options.get("placeholder", "")
        self.typed = _Typed()
        self.observe(self._take, "value")

    def _take(self, change: dict[str, Any]) -> None:
        if not change["new"]:
            return
        typed = _Typed(change["new"])
        self.value = change["new"] = ""
        stripped = typed.text.strip().strip(_INVISIBLE).strip()
        if not (self._exact and stripped):  # nothing but blanks takes back what was typed before
            typed.text = stripped
        del stripped
        self.typed = typed
        self._show()

    def clear(self) -> None:
        """Forget what was typed."""
        self.typed = _Typed()
        self._show()

    def _show(self) -> None:
        text = self.typed.text
        mask = f": {text[:4]}…{text[-4:]}" if self._named and len(text) > 16 else ""
        self.placeholder = f"received{mask} (type to replace it, a blank to clear it)" if text else self._hint


class LoginForm(w.VBox):
    """The form; `kmsdata.login` makes one for a process, and shows it again where it stands.

    ``await form`` waits until it is answered: connected, and a key chosen where the session has none. It
    gives the provider. Elsewhere calls that need it raise `CredentialsError` until then.

    Args:
        region: chosen from the start.
        key: URI that becomes the session's key with the connection.
        endpoint: as `kmsdata.TencentKMS` takes it.
        found: whose credentials were found, in words, where only the region is wanted.

    Attributes:
        provider: what one is connected to, or None.

    Example:
        >>> LoginForm(region="ap-guangzhou")
        <kmsdata.login: not filled in yet; it shows in notebooks alone, elsewhere set TENCENTCLOUD_SECRET_ID
        and TENCENTCLOUD_SECRET_KEY>
    """

    def __init__(
        self,
        *,
        region: str | None = None,
        key: str | None = None,
        endpoint: str | None = None,
        found: str | None = None,
    ) -> None:
        self._found = found
        self.provider: KeyProvider | None = None
        self._key = key
        self._settled = False  # connected, and nothing is left to choose
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._lock = threading.Lock()
        self._worker: threading.Thread | None = None
        self._cell: object = None  # the one that it was shown in last
        self._place = ""  # who is connected, and where, in words

        self.service = w.ToggleButtons(
            options=[("Tencent Cloud KMS", "tencent"), ("Local keystore", "local")],
            style={"button_width": "auto"},
            layout=w.Layout(margin="2px 0 2px 4px"),
        )
        self.secret_id = WipingPassword(named=True, **_field("SecretId", "AKID…"))
        self.secret_key = WipingPassword(**_field("SecretKey", ""))
        self.token = WipingPassword(**_field("Session token", "only for temporary credentials"))
        self.region = w.Dropdown(
            options=[("choose a region", ""), *_regions(), ("another: its code …", _OTHER)],
            **_field("Region"),
        )
        self.other_region = w.Text(**_field("Region's code", "such as ap-guangzhou"))
        self.endpoint = w.Text(placeholder="kms.tencentcloudapi.com", layout=_wide())
        self.more = w.Accordion([self.endpoint], titles=["Endpoint"], selected_index=None, layout=_wide())
        self.passphrase = WipingPassword(exact=True, **_field("Passphrase", "empty where the file has none"))
        self.repeated = WipingPassword(exact=True, **_field("Once more", "the same passphrase"))
        self.file = w.HTML(**_field("File"))
        self.connect = w.Button(description="Connect", button_style="primary", layout=_button())
        self.status = w.HTML(layout=_wide())
        self.keys_there = w.Select(**_field("Key"))
        self.other_key = w.Text(**_field("Key's name"))
        self.choose = w.Button(description="Make this my key", button_style="primary", layout=_button())
        self.go_on = w.Button(description="Go on without", layout=_button())
        self.again = w.Button(description="Sign in again", layout=_button())

        self._cloud = w.VBox(
            [self.secret_id, self.secret_key, self.token, self.region, self.other_region, self.more]
        )
        self._local = w.VBox([self.file, self.passphrase, self.repeated])
        label = w.Label(
            "Keys are in", layout=w.Layout(width=_LABELS, display="flex", justify_content="flex-end")
        )
        self._asking = w.VBox([w.HBox([label, self.service]), self._cloud, self._local, _row(self.connect)])
        self._connected = w.VBox([self.keys_there, self.other_key, _row(self.choose, self.go_on, self.again)])
        super().__init__([w.HTML(_HEAD), self._asking, self.status, self._connected])
        self.add_class("kmsdata-login")

        self.service.observe(lambda _: self._explain(), "value")
        self.region.observe(lambda _: self._arrange(), "value")
        self.keys_there.observe(lambda _: self._arrange(), "value")
        self.connect.on_click(lambda _: self._start(self._connect))
        self.choose.on_click(lambda _: self._start(self._choose))
        self.go_on.on_click(lambda _: self._start(self._settle))
        self.again.on_click(lambda _: self._start(self._ask))
        for field in (self.secret_id, self.secret_key, self.token, self.passphrase, self.repeated):
            field.on_msg(self._entered)
        self._fill_in(region, endpoint)
        self._ask()

    # Showing it.

    @classmethod
    def shown(
        cls, *, region: str | None, key: str | None, endpoint: str | None, found: str | None
    ) -> LoginForm:
        """The form of this process, displayed: as it stands, unless it is connected to another place."""
        form = _of_process[0] if _of_process else None
        if form is None:
            form = cls(region=region, key=key, endpoint=endpoint, found=found)
            _of_process.append(form)
        else:
            form._key, form._found = key or form._key, found
            form._fill_in(region, endpoint)
            if form.provider is None or _elsewhere(form.provider, region, endpoint):
                form._ask()
            elif key is not None:
                use(key)
                form._settle()
        form._ipython_display_()
        return form

    def __repr__(self) -> str:
        state = (
            "not filled in yet; it shows in notebooks alone, elsewhere set TENCENTCLOUD_SECRET_ID and "
            "TENCENTCLOUD_SECRET_KEY"
            if self.provider is None
            else f"connected to {self.provider!r}"
        )
        return f"<kmsdata.login: {state}>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = super()._repr_mimebundle_() or {}
        # What is left of it where there is no kernel: in a mail, on GitHub, in an export.
        return bundle | {
            "text/plain": repr(self),
            "text/html": "<p><b>kmsdata</b>: run this cell to use the sign-in form.</p>",
        }

    def _ipython_display_(self) -> None:
        """Show it, once in a cell: `login` does so, and a cell that ends with what it returns would too."""
        cell = cell_number()
        if cell is None or cell != self._cell:
            show_bundle(self._repr_mimebundle_())
        self._cell = cell

    def _fill_in(self, region: str | None, endpoint: str | None) -> None:
        if region is not None and region in REGIONS:
            self.region.value = region
        elif region is not None:
            self.region.value, self.other_region.value = _OTHER, region
        if endpoint := endpoint or os.environ.get("KMSDATA_TENCENT_ENDPOINT"):
            self.endpoint.value = endpoint
            self.more.set_title(0, f"Endpoint: {endpoint}")

    def _arrange(self) -> None:
        """Show what belongs to the state and to what was chosen."""
        cloud, connected = self.service.value == "tencent", self.provider is not None
        _show(self._asking, not connected)
        _show(self._cloud, cloud)
        _show(self._local, not cloud)
        _show(self.other_region, self.region.value == _OTHER)
        _show(self._connected, connected)
        _show(self.other_key, self.keys_there.value in (None, _OTHER))
        _show(self.keys_there, len(self.keys_there.options) > 0)
        _show(self.go_on, not self._settled)
        if not connected:
            _show(self.repeated, bool(self.repeated.typed.text))
            path = html.escape(str(LocalKeystore().path))
            self.file.value = f'<code class="kmsdata-file">{path}</code>'

    def _say(self, kind: str, text: str) -> None:
        mark, colour = _MARKS[kind]
        self.status.value = (
            f'<div role="status" aria-live="polite" class="kmsdata-status" style="border-color:{colour}">'
            f'<b style="color:{colour}">{mark}</b> {html.escape(text)}</div>'
        )

    # Waiting for it.

    def __await__(self) -> Generator[Any, None, KeyProvider]:
        return self._answered().__await__()

    async def _answered(self) -> KeyProvider:
        kernel = sys.modules.get("ipykernel")
        if kernel is not None and kernel.version_info[0] < 7:
            raise CredentialsError(
                f"ipykernel {kernel.__version__} cannot wait for a form in a cell (7.0 can): leave out "
                "await, fill in the form, and then run the next cells",
                provider="tencent-kms",
                operation="login",
                code="CannotWait",
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._lock:
            if self._settled:
                future.set_result(None)
            else:
                self._waiting.append((loop, future))
        await future
        if self.provider is None:  # it was signed in again in the meantime
            raise CredentialsError(_UNANSWERED, provider="tencent-kms", operation="login", code="NotAnswered")
        return self.provider

    def _settle(self) -> None:
        with self._lock:
            self._settled = True
            waiting, self._waiting = self._waiting, []
        for loop, future in waiting:
            with contextlib.suppress(RuntimeError):  # the loop is gone, and who waited with it
                loop.call_soon_threadsafe(_finish, future)
        self._arrange()

    # What its buttons do. Nothing that goes wrong in a handler would be seen, so all is said in the form.

    def _entered(self, _: object, content: dict[str, Any], __: object) -> None:
        if content.get("event") == "submit":  # Enter, which comes before what was typed
            self._start(self._connect, late=_LATE)

    def _start(self, step: Callable[[], None], *, late: float = 0.0) -> None:
        """Carry out a step in a thread: the kernel does not wait for it, and no block's `use` is in force."""
        with self._lock:
            if self._worker is not None and self._worker.is_alive():
                return
            self._worker = threading.Thread(
                target=self._carry_out, args=(step, late), name="kmsdata-login", daemon=True
            )
            self._worker.start()

    def _carry_out(self, step: Callable[[], None], late: float) -> None:
        buttons = (self.connect, self.choose, self.go_on, self.again)
        for button in buttons:
            button.disabled = True
        try:
            time.sleep(late)
            step()
        except (KmsDataError, ImportError, ValueError) as error:
            self._say("bad", str(error))
        except Exception as error:  # noqa: BLE001 - the text of a stranger's error may hold anything
            self._say("bad", f"this failed ({type(error).__name__}): try again")
        finally:
            for button in buttons:
                button.disabled = False

    def _ask(self) -> None:
        """Stand unanswered: whoever needs a key is told to fill in the form first."""
        self.provider, self._settled = None, False
        forget()
        hold(_UNANSWERED)
        self._explain()

    def _explain(self) -> None:
        self._arrange()
        if self.service.value == "local":
            self._say("ask", "Master keys in a file of yours: for trying, and where there is no key service.")
        elif self._found is not None:
            self._say("ask", f"Choose a region. Without a SecretId, {self._found} is used.")
        else:
            self._say(
                "ask", "Enter an API key of your account (in its console: Access Management, API Keys)."
            )

    def _connect(self) -> None:
        if self.service.value == "tencent":
            self._connect_to_tencent()
        else:
            self._open_keystore()

    def _connect_to_tencent(self) -> None:
        if not (self.secret_id.typed.text and self.secret_key.typed.text):
            time.sleep(_LATE)  # some kernels take a click before what was typed
        pair = {"the SecretId": self.secret_id, "the SecretKey": self.secret_key}
        missing = [name for name, field in pair.items() if not field.typed.text]
        found = self._found is not None and len(missing) == 2
        region = self.region.value if self.region.value != _OTHER else self.other_region.value.strip()
        if (missing and not found) or not region:
            wanted = [*([] if found else missing), *([] if region else ["the region"])]
            self._say("bad", f"Enter {' and '.join(wanted)}.")
            return
        pasted = {**pair, "the session token": self.token}
        wrong = [name for name, field in pasted.items() if not field.typed.plausible]
        if wrong:
            self._say("bad", f"Enter {' and '.join(wrong)} again: there are letters in it that no key has.")
            return
        kms = TencentKMS(
            region,
            credential=None if found else self._credential(),
            endpoint=self.endpoint.value.strip() or None,
        )
        self._say("busy", f"Connecting to {kms.endpoint} …")
        try:
            keys, note = kms.list_keys(), ""
        except KeyAccessError:  # KMS knows who this is, and lists no keys for them
            keys, note = [], "; no right to list keys (kms:ListKeyDetail), so enter a KeyId"
        name = f"{region} ({REGIONS[region]})" if region in REGIONS else region
        account = kms.account.removesuffix(" (credential=)")
        place = f"Tencent Cloud KMS in {name} at {kms.endpoint}, as {account}{note}"
        self._use(kms, keys, place)

    def _credential(self) -> tuple[str, str, str | None]:
        return self.secret_id.typed.text, self.secret_key.typed.text, self.token.typed.text or None

    def _open_keystore(self) -> None:
        store = LocalKeystore(passphrase=self.passphrase.typed.text or None)
        keys, sealed = store.list_keys(), store.sealed
        if self.passphrase.typed.text and keys and not sealed:
            self._say("bad", "this keystore has no passphrase: connect without one")
            self.passphrase.clear()
            return
        if (
            self.passphrase.typed.text
            and not sealed
            and not self.passphrase.typed.equals(self.repeated.typed)
        ):
            first = not self.repeated.typed.text
            self.repeated.clear()
            _show(self.repeated, True)
            self._say(
                "ask" if first else "bad",
                "this makes a new keystore: enter its passphrase once more, and connect"
                if first
                else "the two passphrases differ: enter the second once more",
            )
            return
        if sealed and not self.passphrase.typed.text and not os.environ.get("KMSDATA_PASSPHRASE"):
            self._say("bad", "this keystore has a passphrase: enter it")
            return
        self._say("busy", "Opening the keystore …")
        store.check_passphrase()
        self._use(store, keys, f"the keystore {store.path}")

    def _use(self, provider: KeyProvider, keys: list[dict[str, str]], place: str) -> None:
        forget()
        use(provider)
        if self._key is not None:
            use(self._key)
        for field in (self.secret_id, self.secret_key, self.token, self.passphrase, self.repeated):
            field.clear()
        mine = _mine(provider, keys)
        self.keys_there.options = _listed(keys)
        self.keys_there.rows = min(max(len(keys) + 1, 2), 8)
        if keys:
            enabled = [about["key"] for about in keys if about["state"] == "Enabled"]
            listed = [about["key"] for about in keys]
            self.keys_there.value = mine if mine in listed else (enabled or listed)[0]
        local = provider.scheme == "local"
        self.other_key.placeholder = "a new one, such as demo" if local else "KeyId, or alias"
        self.provider = provider
        self._place = f"Connected to {place}"
        if mine is None:
            number = "no keys" if not keys else "1 key" if len(keys) == 1 else f"{len(keys)} keys"
            self._say("good", f"{self._place}; {number}. Which one encrypts where a call names none?")
            self._arrange()
        else:
            self._say("good", f"{self._place}. Your key: {mine}")
            self._settle()

    def _choose(self) -> None:
        provider = self.provider
        if provider is None:
            return
        uri = self.keys_there.value
        if uri in (None, _OTHER):
            uri = self.other_key.value.strip()
            if not uri:
                self._say("bad", "enter the key's name, or choose one of the list")
                return
        if "://" not in uri:
            place = f"{provider.region}/" if isinstance(provider, TencentKMS) else ""
            uri = f"{provider.scheme}://{place}{uri}"
        parse_key(uri)
        if isinstance(provider, TencentKMS):
            uri = provider.resolve(uri)
        elif not uri.startswith(f"{provider.scheme}://"):
            self._say("bad", f"{uri} is not a key of {provider!r}")
            return
        label = next((label for label, listed in self.keys_there.options if listed == uri), "")
        alias, _, state = label.partition(_DOT)
        use(uri)
        note = "" if state in ("", "Enabled") else f". It is {state}: it cannot encrypt until it is enabled"
        named = "" if alias in ("", uri.rpartition("/")[2]) else f"{alias}, "
        self._say("bad" if note else "good", f"{self._place}. Your key: {named}{uri}{note}")
        self._settle()


def _elsewhere(provider: KeyProvider, region: str | None, endpoint: str | None) -> bool:
    """Whether a provider has another region or endpoint; a keystore was chosen in the form, and stays."""
    if not isinstance(provider, TencentKMS):
        return False
    wanted = TencentKMS(region or provider.region, endpoint=endpoint or provider.endpoint)
    return (wanted.region, wanted.endpoint) != (provider.region, provider.endpoint)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():  # the cell may have been interrupted
        future.set_result(None)


_of_process: list[LoginForm] = []
_LABELS = "110px"
_DOT = "  ·  "
_MARKS = {
    "ask": ("ⓘ", "var(--jp-info-color1, #0277bd)"),
    "busy": ("⋯", "var(--jp-info-color1, #0277bd)"),
    "good": ("✓", "var(--jp-success-color1, #2e7d32)"),
    "bad": ("✗", "var(--jp-error-color1, #c62828)"),
}
_HEAD = """<style>
.kmsdata-login { border: 1px solid var(--jp-border-color1, #bdbdbd); border-radius: 6px;
  padding: 12px 16px 14px; max-width: 640px; color: var(--jp-content-font-color1, inherit); }
.kmsdata-login .kmsdata-status { border-left: 3px solid; padding: 2px 0 2px 10px; margin: 6px 2px;
  line-height: 1.45; color: var(--jp-content-font-color1, inherit); overflow-wrap: anywhere; }
.kmsdata-login .kmsdata-head { line-height: 1.45; margin-bottom: 4px;
  color: var(--jp-content-font-color1, inherit); }
.kmsdata-login .jupyter-widget-Collapse { margin-left: 110px; }
.kmsdata-login .jupyter-widget-Collapse-header, .kmsdata-login .jupyter-widget-Collapse-contents {
  background: none; border: none; padding: 2px 4px; font-weight: normal; }
.kmsdata-login .kmsdata-file { display: inline-block; line-height: 1.45; overflow-wrap: anywhere;
  color: var(--jp-content-font-color1, inherit); background: none; }
.kmsdata-login .kmsdata-head small { color: var(--jp-content-font-color2, inherit); }
</style>
<div class="kmsdata-head"><b>Sign in to a key service</b><br>
<small>What you type stays in this kernel's memory; the notebook and its outputs never keep it.</small>
</div>"""


def _field(name: str, hint: str | None = None) -> dict[str, Any]:
    """What makes a field one of a column: label and box, each as wide as those above."""
    options = {"description": name, "style": {"description_width": _LABELS}, "layout": _wide()}
    return options if hint is None else options | {"placeholder": hint}


def _wide() -> w.Layout:
    return w.Layout(width="auto", max_width="560px")


def _button() -> w.Layout:
    return w.Layout(width="auto", min_width="120px")


def _row(*buttons: w.Button) -> w.HBox:
    return w.HBox(buttons, layout=w.Layout(flex_flow="row wrap", margin=f"4px 0 4px calc({_LABELS} + 6px)"))


def _show(widget: w.DOMWidget, shown: bool) -> None:
    widget.layout.display = None if shown else "none"


def _regions() -> list[tuple[str, str]]:
    return [(f"{name} ({code})", code) for code, name in REGIONS.items()]


def _listed(keys: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Labels of a list of keys: alias (a local key's name, or a KeyId where there is none), and state."""
    listed = [
        (f"{about.get('alias') or about['key'].rpartition('/')[2]}{_DOT}{about['state']}", about["key"])
        for about in keys
    ]
    return [*listed, ("another …", _OTHER)] if listed else []


def _mine(provider: KeyProvider, keys: list[dict[str, str]]) -> str | None:
    """The session's key, where it is one of this provider's, and not one of another account's."""
    uri = session_key()
    if uri is None:
        return None
    scheme, place, name = parse_key(uri)
    if (scheme, place) != (provider.scheme, getattr(provider, "region", None)):
        return None
    there = any(uri == about["key"] or name == about.get("alias") for about in keys)
    # A local key is made when it is first used; and some may not list keys.
    return uri if there or scheme == "local" or not keys else None
