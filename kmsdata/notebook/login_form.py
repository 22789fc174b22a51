"""The form that `kmsdata.login` shows in a notebook. What is typed into it stays in this process.

The state of widgets is part of the notebook and can be saved with it at any moment. Therefore no trait of the
form ever holds a secret: what is typed lives in the page's input elements, and travels once, in a binary
buffer that the page encrypts for this form (`kmsdata.notebook.sealed_message`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Generator
from typing import Any, NoReturn

import anywidget
import traitlets

from kmsdata.display.ipython import cell_number, in_marimo, in_notebook, show_bundle, thread_class
from kmsdata.errors import CallerTypeError, CredentialsError, KeyAccessError, KmsDataError, printable
from kmsdata.keys.data_key import Hidden, KeyProvider
from kmsdata.keys.key_uri import parse_key
from kmsdata.keys.local.keystore import LocalKeystore
from kmsdata.keys.session import forget, hold, in_use, session_key, use
from kmsdata.keys.tencent.client import TencentKMS
from kmsdata.notebook.browser import texts
from kmsdata.notebook.regions import REGIONS, region_label
from kmsdata.notebook.sealed_message import INFO, SECRETS, Recipient, Typed

__all__ = ["LoginForm"]

_UNANSWERED = "not signed in yet: fill in the form above, then run again from here"
_API_KEY = "Enter an API key of your account (in the console: Access Management, API Keys)."
_REPLACED = "Another form of this kernel was opened later, and is used."
_MOST_TEXT = 600  # characters of a message, which may come from a service
_MOST_KEYS = 500  # listed keys; others by their name
_REPLACED = "Another form of this kernel was opened later, and is used."
_NO_NAME = (
    "There is no key with that name in {region}. Choose one from the list, or create it: in the console, or "
    "with kms.create_key(name) after 'Continue without' (kms is what await kmsdata.login() returns)."
)
_MOST_TEXT = 600  # characters of a message: texts of a service can be long
_MOST_KEYS = 500  # keys in the list; others can be chosen by their name
_KEYSTORE = "Master keys in a local file: for trials, and where there is no KMS."


class LoginForm(anywidget.AnyWidget):
    """The form. Each call of `kmsdata.login` makes one, with its own region and endpoint.

    ``await form`` waits until the user is connected and has chosen a key (if the session has none), and
    returns the provider. Without ``await``, calls that need a key raise `CredentialsError` until then.

    Args:
        region: the initial region.
        key: URI that becomes the session's key on connection.
        endpoint: as in `kmsdata.TencentKMS`.
        found: whose credentials are configured, in words, if they can be used as well.

    Attributes:
        provider: the connected provider, or None.
        view: what the page shows, as plain data: the step, the status, the choices. Never a secret.

    Example:
        >>> LoginForm(region="ap-guangzhou")
        <kmsdata.login: not filled in yet; the form works only in notebooks. Elsewhere set
        TENCENTCLOUD_SECRET_ID and TENCENTCLOUD_SECRET_KEY>
    """

    _esm = texts("theme.js", "kernel_link.js", "sealed_message.js", "login_form.js")
    _css = texts("theme.css", "login_form.css")
    view = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        *,
        region: str | None = None,
        key: str | None = None,
        endpoint: str | None = None,
        found: str | None = None,
    ) -> None:
        self.provider: KeyProvider | None = None
        self._found, self._key = found, key
        # Where this form signs in to. What is typed is kept when it has worked: before, a SecretKey could be
        # in the wrong field, and would be saved with the widget's state.
        self._region = region or ""
        self._endpoint = endpoint or os.environ.get("KMSDATA_TENCENT_ENDPOINT", "")
        self._service = "tencent"
        self._recipient, self._typed = Recipient(), Typed()
        self._step = "ask"  # ask, keys, done, replaced
        self._status = "ask", ""  # or busy (a step is running), good, bad
        self._focus = ""  # the field to correct
        self._repeat = False  # a new passphrase must be typed twice
        self._keys: list[dict[str, str]] = []
        self._chosen: str | None = None  # in the list of keys
        self._line = ""  # what the folded form says
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._began = self._signed_in = 0  # the order in which forms connect and sign in
        self._worker: threading.Thread | None = None
        self._cell: object = None  # the cell that it was last shown in
        super().__init__()
        self.on_msg(self._receive)
        with _lock:
            _forms.add(self)
            if not self._continue():
                self._ask()

    # Display.

    def __repr__(self) -> str:
        state = (
            "not filled in yet; the form works only in notebooks. Elsewhere set TENCENTCLOUD_SECRET_ID and "
            "TENCENTCLOUD_SECRET_KEY"
            if self.provider is None
            else f"connected to {self.provider!r}"
        )
        return f"<kmsdata.login: {state}>"

    def __reduce__(self) -> NoReturn:
        raise CallerTypeError("the login form cannot be pickled: what is typed into it stays in this process")

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        bundle, metadata = super()._repr_mimebundle_() or ({}, {})
        # Without a kernel (in a mail, on GitHub, in an export) only these representations are shown.
        return bundle | {
            "text/plain": repr(self),
            "text/html": "<p><b>kmsdata</b>: run this cell to use the sign-in form.</p>",
        }, metadata

    def display(self) -> None:
        """Display the form once per cell.

        `login` displays it, and IPython does so again for a cell that ends with the form.
        """
        if in_marimo():
            import marimo

            marimo.output.append(self)
            return
        cell = cell_number()
        if in_notebook() and (cell is None or cell != self._cell):
            show_bundle(self._repr_mimebundle_()[0])
        self._cell = cell

    _ipython_display_ = display

    def _show(self) -> None:
        """Send the page what to show. What the page sends back as ``view`` is never read."""
        kind, text = self._status
        local = self._service == "local" if self.provider is None else self.provider.scheme == "local"
        self.view = {
            "id": self.model_id,
            "public_key": self._recipient.public_key,
            "info": INFO,
            "step": self._step,
            "busy": kind == "busy",
            "status": [kind, text],
            "hints": {"tencent": self._hint(), "local": _KEYSTORE},
            "focus": self._focus,
            "service": self._service,
            "region": self._region,
            "regions": [[code, region_label(code)] for code in REGIONS],
            "endpoint": self._endpoint,
            "file": str(LocalKeystore().path),
            "repeat": self._repeat,
            "received": {
                name: self._typed.mask(name) if name == "secret_id" else ""
                for name in SECRETS
                if name in self._typed
            },
            "keys": [
                {"uri": about["key"], "name": _shown(_name(about), 80), "state": _shown(about["state"], 40)}
                for about in self._keys[:_MOST_KEYS]
            ],
            "key": self._chosen,
            "keep": self._line != "",  # a key was in use before
            "key_hint": "a new one, such as demo" if local else "KeyId, or alias",
            "line": self._line,
        }

    def _hint(self) -> str:
        return f"Choose a region. Without a SecretId, {self._found} is used." if self._found else _API_KEY

    def _say(self, kind: str, text: str, *, focus: str = "") -> None:
        self._status, self._focus = (kind, _shown(text, _MOST_TEXT)), focus
        self._show()

    # Await.

    def __await__(self) -> Generator[Any, None, KeyProvider]:
        return self._answered().__await__()

    async def _answered(self) -> KeyProvider:
        # ipykernel 6 handles no messages of widgets while a cell runs: the form could never be filled in.
        kernel = sys.modules.get("ipykernel")
        if kernel is not None and kernel.version_info[0] < 7:
            raise CredentialsError(
                f"ipykernel {kernel.__version__} cannot wait for a form in a cell: that needs 7.0 or newer. "
                "Leave out await, fill in the form, and then run the next cells",
                provider="tencent-kms",
                operation="login",
                code="CannotWait",
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with _lock:
            if self._step in ("done", "replaced"):
                future.set_result(None)
            else:
                self._waiting.append((loop, future))
        await future
        if self.provider is None:  # "Sign in again" was pressed in the meantime, or another form was opened
            text = _REPLACED if self._step == "replaced" else _UNANSWERED
            raise CredentialsError(text, provider="tencent-kms", operation="login", code="NotAnswered")
        return self.provider

    # Messages of the page. Jupyter does not show errors of a handler in the cell, so the form shows them.

    def _receive(self, _: object, content: object, buffers: list[Any] | None) -> None:
        """Handle a message, in any thread: with ipykernel's subshells, while a cell runs."""
        if not isinstance(content, dict):
            return
        kind, buffer = content.get("type"), b""
        with contextlib.suppress(TypeError, ValueError, IndexError):
            buffer = bytes(memoryview((buffers or [])[0]))
        message = (
            Hidden(buffer),
            content.get("sealed") is not False,
        )  # on a page of plain http, it is readable
        del buffer
        with _lock:
            if self._status[0] == "busy":
                pass
            elif kind == "connect" and self._step == "ask":
                self._start("Connecting …", self._connect, *message)
            elif kind == "choose" and self._step == "keys":
                self._start("Looking up the key …", self._choose, *message)
            elif kind == "continue" and self._step == "keys":
                self._settle(_mine(self.provider, self._keys))
            elif kind == "change" and self._step == "done":
                self._start("Looking up the keys …", self._change)
            elif kind in ("again", "change") and self._step != "ask":
                self._ask()
        # An answer names the page that asked: several windows can show this form.
        self.send({"type": "answer", "link": content.get("link"), "number": content.get("number")})

    def _start(self, said: str, step: Callable[..., None], *arguments: object) -> None:
        """Run a step in a thread: the kernel does not wait for it, and no block of `using` applies."""
        self._say("busy", said)
        self._worker = thread_class()(
            target=self._carry_out, args=(step, *arguments), name="kmsdata-login", daemon=True
        )
        try:
            self._worker.start()
        except RuntimeError:
            self._worker = None  # a thread that never ran keeps its arguments
            self._say("bad", "this process cannot start another thread: end some work, and try again")

    def _carry_out(self, step: Callable[..., None], *arguments: object) -> None:
        try:
            step(*arguments)
        except (KmsDataError, ImportError, ValueError) as error:
            self._say("bad", str(error))
        except BaseException as error:  # noqa: BLE001 - its text may contain secrets
            self._say("bad", f"this failed ({type(error).__name__}): try again")

    # Steps.

    def _ask(self) -> None:
        """Reset the form: calls that need a key raise an error until it is filled in."""
        self._replace_others()
        self.provider, self._step, self._keys, self._repeat, self._line = None, "ask", [], False, ""
        self._typed.clear()
        self._recipient = Recipient()  # a message that was recorded before opens nothing
        forget()
        hold(_UNANSWERED)
        self._say("ask", self._hint())

    def _continue(self) -> bool:
        """Take over from the form that signed in last, so that running all cells again asks nothing again."""
        found = [form for form in _forms if form is not self and form._step in ("keys", "done")]
        for last in sorted(found, key=lambda form: -form._signed_in):
            if last.provider is None or not in_use(last.provider):
                continue
            if _elsewhere(last.provider, self._region, self._endpoint):
                continue
            self._service, self._region, self._endpoint = last._service, last._region, last._endpoint
            self.provider, self._keys, self._signed_in = last.provider, last._keys, last._signed_in
            if self._key is not None:
                use(self._key)
            self._replace_others()
            self._connected()
            return True
        return False

    def _replace_others(self) -> None:
        """Fold the other forms for the same region and endpoint: of them, the last one decides."""
        for form in list(_forms):
            if form is self or form._step == "replaced" or form._endpoint != self._endpoint:
                continue
            if form._region == self._region or not form._region or not self._region:
                form._replace()

    def _replace(self) -> None:
        with _lock:
            self._step, self._line = "replaced", _REPLACED
            self._typed.clear()
        self._say("ask", _REPLACED)
        self._release()

    def _connect(self, message: Hidden, sealed: bool) -> None:
        with _lock:
            self._began = next(_order)
        fields = self._recipient.receive(message.reveal(), self._typed, sealed=sealed)
        self._service = "local" if fields.get("service") == "local" else "tencent"
        if self._service == "local":
            self._open_keystore()
        else:
            self._connect_to_tencent(fields.get("region", ""), fields.get("endpoint", ""))

    def _connect_to_tencent(self, region: str, endpoint: str) -> None:
        pair = {"secret_id": "the SecretId", "secret_key": "the SecretKey"}
        missing = [name for name in pair if name not in self._typed]
        found = self._found is not None and len(missing) == 2
        wanted = [] if found else missing
        if wanted or not region:
            names = [*(pair[name] for name in wanted), *([] if region else ["the region"])]
            text = ", ".join(names[:-1]) + (" and " if names[1:] else "") + names[-1]
            self._say("bad", f"Enter {text}.", focus=[*wanted, "region"][0])
            return
        if endpoint and not any(mark in endpoint for mark in ".:"):
            # Not repeated: it may be a secret in the wrong field.
            self._say("bad", "Enter an endpoint such as kms.tencentcloudapi.com, or none.", focus="endpoint")
            return
        pasted = {**pair, "token": "the session token"}
        wrong = [name for name in pasted if not self._typed.plausible(name)]
        if wrong:
            names = [pasted[name] for name in wrong]
            self._say(
                "bad",
                f"Enter {' and '.join(names)} again: it contains characters that no key has.",
                focus=wrong[0],
            )
            return
        kms = TencentKMS(region, credential=None if found else self._credential(), endpoint=endpoint or None)
        self._say("busy", f"Connecting to {kms.endpoint} …")
        try:
            keys, note = kms.list_keys(), ""
        except KeyAccessError:  # the credentials are valid, but may not list keys
            keys, note = [], "; no permission to list keys (kms:ListKeyDetail), so enter a KeyId"
        except CredentialsError as error:
            self._say(
                "bad", str(error), focus="secret_id" if "SecretId" in (error.code or "") else "secret_key"
            )
            return
        self._use(kms, keys, note, region, endpoint)

    def _credential(self) -> tuple[str, str, str | None]:
        return (
            self._typed.text("secret_id"),
            self._typed.text("secret_key"),
            self._typed.text("token") or None,
        )

    def _open_keystore(self) -> None:
        typed = self._typed
        store = LocalKeystore(passphrase=typed.text("passphrase") or None)
        keys, sealed = store.list_keys(), store.sealed
        given = "passphrase" in typed
        if given and keys and not sealed:
            typed.clear("passphrase")
            self._say("bad", "this keystore has no passphrase: connect without one")
        elif given and not sealed and typed.text("passphrase") != typed.text("repeated"):
            first, self._repeat = "repeated" not in typed, True
            typed.clear("repeated")
            if first:
                text = "this creates a new keystore: enter its passphrase once more, and connect"
            else:
                text = "the two passphrases differ: enter the second once more"
            self._say("ask" if first else "bad", text, focus="repeated")
        elif sealed and not given and not os.environ.get("KMSDATA_PASSPHRASE"):
            self._say("bad", "this keystore has a passphrase: enter it", focus="passphrase")
        else:
            self._say("busy", "Opening the keystore …")
            store.check_passphrase()
            self._use(store, keys)

    def _use(self, provider: KeyProvider, keys: list[dict[str, str]], note: str = "", *place: str) -> None:
        with _lock:
            same = [form for form in _forms if form is not self and form._signed_in > self._began]
            if self._step == "replaced" or any(_replaces(provider, form.provider) for form in same):
                # While this one connected, the user has turned to another form.
                self._replace()
                return
            forget()
            use(provider)
            if self._key is not None:
                use(self._key)
            self._typed.clear()
            self.provider, self._keys, self._repeat = provider, keys, False
            self._signed_in = next(_order)
            if place:
                self._region, self._endpoint = place
            for form in list(_forms):
                if form is not self and form.provider is not None and not in_use(form.provider):
                    form._replace()
        self._connected(note)

    def _change(self) -> None:
        """Offer the keys again, as they are now."""
        if isinstance(self.provider, (TencentKMS, LocalKeystore)):
            with contextlib.suppress(KeyAccessError):  # no permission to list keys: by name then
                self._keys = self.provider.list_keys()
        self._offer()

    def _connected(self, note: str = "") -> None:
        """Show the keys, or fold if the session has one of this provider."""
        if self.provider is None:
            return
        mine = _mine(self.provider, self._keys)
        if mine is not None:
            self._settle(mine)
        else:
            self._offer(f"Connected to {_place(self.provider)}{note}; ")

    def _offer(self, before: str = "") -> None:
        """Show the keys, of which the user chooses the default one."""
        usable = [about["key"] for about in self._keys if about["state"] == "Enabled"]
        self._chosen = _mine(self.provider, self._keys) or (usable[0] if usable else None)
        self._step = "keys"
        number = len(self._keys)
        listed = "no keys" if not number else "1 key" if number == 1 else f"{number:,} keys"
        if number > _MOST_KEYS:
            listed += f" (the first {_MOST_KEYS} are listed; enter the name of another)"
        self._say("good", f"{before}{listed}. Which one is the default?")

    def _choose(self, message: Hidden, sealed: bool) -> None:
        provider = self.provider
        fields = self._recipient.receive(message.reveal(), Typed(), sealed=sealed)
        if provider is None:
            return
        if not (typed := fields.get("key", "")):
            self._say("bad", "Enter the name of a key, or choose one from the list.", focus="name")
            return
        region = provider.region if isinstance(provider, TencentKMS) else ""
        uri = typed if "://" in typed else f"{provider.scheme}://{region}{'/' * bool(region)}{typed}"
        try:
            parse_key(uri)
            if isinstance(provider, TencentKMS):
                uri = provider.resolve(uri)
        except KmsDataError as error:
            text = str(error)
            if getattr(error, "code", None) == "AliasNotFound":
                text = _NO_NAME.format(region=region)
            # A name that was typed is not repeated: it may be a secret in the wrong field.
            self._say("bad", text.replace(typed, "…"), focus="name")
            return
        if not uri.startswith(f"{provider.scheme}://"):
            self._say("bad", f"This is not a key of {provider!r}.", focus="name")
            return
        state = next((about["state"] for about in self._keys if about["key"] == uri), "Enabled")
        if state != "Enabled":
            self._say(
                "bad",
                f"{uri} is {state}: it can neither encrypt nor decrypt. Enable it in the console, or choose "
                "another key.",
            )
            return
        use(uri)
        self._settle(uri)

    def _settle(self, uri: str | None = None) -> None:
        """Fold to one line, and let the cells go on that wait."""
        if self.provider is None:
            return
        about = next((about for about in self._keys if about["key"] == uri), None)
        name = "" if about is None or _name(about) == (uri or "").rpartition("/")[2] else f"{_name(about)} · "
        key = "no default key" if uri is None else f"{name}{uri}"
        if uri is None or self.provider.scheme == "local":
            key += f" · {_place(self.provider)}"
        elif isinstance(self.provider, TencentKMS):  # its URI contains the region
            key += f" · {_account(self.provider)}{_host(self.provider)}"
        with _lock:
            self._step, self._line = "done", _shown(key, _MOST_TEXT)
        self._say("good", f"Signed in. Your key: {key}")
        self._release()

    def _release(self) -> None:
        with _lock:
            waiting, self._waiting = self._waiting, []
        for loop, future in waiting:
            # A future may only be set in the thread of its loop.
            with contextlib.suppress(RuntimeError):  # the loop is closed, and its waiting cell is gone
                loop.call_soon_threadsafe(_finish, future)


_forms: weakref.WeakSet[LoginForm] = weakref.WeakSet()  # all of this kernel
_lock = threading.RLock()  # of all forms: one of them decides which others to fold
_order = itertools.count(1)


def _replaces(provider: KeyProvider, other: KeyProvider | None) -> bool:
    """Return whether the session would use the provider instead of the other one, for the same keys."""
    region, elsewhere = (getattr(one, "region", None) for one in (provider, other))
    return other is not None and (provider.scheme, region) == (other.scheme, elsewhere)


def _shown(text: str, most: int) -> str:
    """Return a text from a service as the page shows it: bounded, and without control characters."""
    return printable(text if len(text) <= most else f"{text[:most]}…")


def _account(kms: TencentKMS) -> str:
    """Return the masked SecretId, and where it was found if it was not typed."""
    return kms.account.removesuffix(" (passed in)")


def _host(kms: TencentKMS) -> str:
    """Return the endpoint in words, unless it is the usual one."""
    return "" if kms.endpoint == "https://kms.tencentcloudapi.com" else f" at {kms.endpoint}"


def _place(provider: KeyProvider) -> str:
    """Return the provider and the account in words."""
    if isinstance(provider, TencentKMS):
        region = region_label(provider.region)
        return f"Tencent Cloud KMS in {region}{_host(provider)}, as {_account(provider)}"
    return f"the keystore {getattr(provider, 'path', '')}"


def _name(about: dict[str, str]) -> str:
    """Return the alias of a key; the name of a local key; without an alias the KeyId."""
    return about.get("alias") or about["key"].rpartition("/")[2]


def _elsewhere(provider: KeyProvider, region: str, endpoint: str) -> bool:
    """Return whether region or endpoint differ from the provider's; never for a keystore."""
    if not isinstance(provider, TencentKMS):
        return False
    wanted = TencentKMS(region or provider.region, endpoint=endpoint or provider.endpoint)
    return (wanted.region, wanted.endpoint) != (provider.region, provider.endpoint)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():  # done if the cell was interrupted
        future.set_result(None)


def _mine(provider: KeyProvider | None, keys: list[dict[str, str]]) -> str | None:
    """Return the session's key if it belongs to this provider and account; otherwise None."""
    uri = session_key()
    if uri is None or provider is None:
        return None
    scheme, place, name = parse_key(uri)
    if (scheme, place) != (provider.scheme, getattr(provider, "region", None)):
        return None
    there = any(uri == about["key"] or name == about.get("alias") for about in keys)
    # A local key is created on first use, and an empty list may mean no permission to list keys.
    return uri if there or scheme == "local" or not keys else None
