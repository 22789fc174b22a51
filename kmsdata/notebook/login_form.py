"""The form that `kmsdata.login` shows in a notebook. What is typed into it stays in this process.

The state of widgets is part of the notebook and can be saved with it at any moment. Therefore no trait of the
form ever holds a secret: what is typed lives in the page's input elements, and travels once, in a binary
buffer that the page encrypts for this form (`kmsdata.notebook.sealed_message`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Generator
from typing import Any, NoReturn

import anywidget
import traitlets

from kmsdata.display.ipython import cell_number, in_marimo, in_notebook, show_bundle, thread_class
from kmsdata.errors import CallerTypeError, CredentialsError, KeyAccessError, KmsDataError
from kmsdata.keys.data_key import KeyProvider
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
        self._region, self._endpoint = (
            region or "",
            endpoint or os.environ.get("KMSDATA_TENCENT_ENDPOINT", ""),
        )
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
        self._lock = threading.RLock()
        self._worker: threading.Thread | None = None
        self._cell: object = None  # the cell that it was last shown in
        super().__init__()
        self.on_msg(self._receive)
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
                {"uri": about["key"], "name": _name(about), "state": about["state"]} for about in self._keys
            ],
            "key": self._chosen,
            "key_hint": "a new one, such as demo" if local else "KeyId, or alias",
            "line": self._line,
        }

    def _hint(self) -> str:
        return f"Choose a region. Without a SecretId, {self._found} is used." if self._found else _API_KEY

    def _say(self, kind: str, text: str, *, focus: str = "") -> None:
        self._status, self._focus = (kind, text), focus
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
        with self._lock:
            if self._step == "done":
                future.set_result(None)
            else:
                self._waiting.append((loop, future))
        await future
        if self.provider is None:  # "change" was pressed in the meantime
            raise CredentialsError(_UNANSWERED, provider="tencent-kms", operation="login", code="NotAnswered")
        return self.provider

    # Messages of the page. Jupyter does not show errors of a handler in the cell, so the form shows them.

    def _receive(self, _: object, content: object, buffers: list[Any] | None) -> None:
        """Handle a message, in any thread: with ipykernel's subshells, while a cell runs."""
        if not isinstance(content, dict):
            return
        kind = content.get("type")
        with self._lock:
            if self._status[0] == "busy":
                pass
            elif kind == "connect" and self._step == "ask":
                message = bytes(buffers[0]) if buffers else b""
                self._start("Connecting …", self._connect, message, content.get("sealed") is not False)
            elif kind == "choose" and self._step == "keys":
                self._start("Looking up the key …", self._choose, content.get("key"))
            elif kind == "continue" and self._step == "keys":
                self._settle()
            elif kind == "again" and self._step != "ask":
                self._ask()
        # An answer names the page that asked: several windows can show this form.
        self.send({"type": "answer", "link": content.get("link"), "number": content.get("number")})

    def _start(self, said: str, step: Callable[..., None], *arguments: object) -> None:
        """Run a step in a thread: the kernel does not wait for it, and no block of `using` applies."""
        self._say("busy", said)
        self._worker = thread_class()(
            target=self._carry_out, args=(step, *arguments), name="kmsdata-login", daemon=True
        )
        self._worker.start()

    def _carry_out(self, step: Callable[..., None], *arguments: object) -> None:
        try:
            step(*arguments)
        except (KmsDataError, ImportError, ValueError) as error:
            self._say("bad", str(error))
        except Exception as error:  # noqa: BLE001 - its text may contain secrets
            self._say("bad", f"this failed ({type(error).__name__}): try again")

    # Steps.

    def _ask(self) -> None:
        """Reset the form: calls that need a key raise an error until it is filled in."""
        for form in list(_signed_in):
            if form is not self:
                form._replace()
        _signed_in.clear()
        self.provider, self._step, self._keys, self._repeat = None, "ask", [], False
        self._typed.clear()
        forget()
        hold(_UNANSWERED)
        self._say("ask", self._hint())

    def _continue(self) -> bool:
        """Take over from the form that signed in last, so that running all cells again asks nothing again."""
        last = next(iter(_signed_in), None)
        if last is None or last.provider is None or not in_use(last.provider):
            return False
        if _elsewhere(last.provider, self._region, self._endpoint):
            return False
        self._service, self._region, self._endpoint = last._service, last._region, last._endpoint
        self.provider, self._keys = last.provider, last._keys
        if self._key is not None:
            use(self._key)
        last._replace()
        self._connected()
        return True

    def _replace(self) -> None:
        """Fold the form: another one decides."""
        self._step, self._line = "replaced", "Another form of this kernel was opened later, and is used."
        self._show()

    def _connect(self, message: bytes, sealed: bool) -> None:
        fields = self._recipient.receive(message, self._typed, sealed=sealed)
        self._service = "local" if fields.get("service") == "local" else "tencent"
        if self._service == "local":
            self._open_keystore()
        else:
            self._region, self._endpoint = fields.get("region", ""), fields.get("endpoint", "")
            self._connect_to_tencent()

    def _connect_to_tencent(self) -> None:
        pair = {"secret_id": "the SecretId", "secret_key": "the SecretKey"}
        missing = [name for name in pair if name not in self._typed]
        found = self._found is not None and len(missing) == 2
        wanted = [] if found else missing
        if wanted or not self._region:
            names = [*(pair[name] for name in wanted), *([] if self._region else ["the region"])]
            self._say("bad", f"Enter {' and '.join(names)}.", focus=[*wanted, "region"][0])
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
        kms = TencentKMS(
            self._region, credential=None if found else self._credential(), endpoint=self._endpoint or None
        )
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
        self._use(kms, keys, note)

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

    def _use(self, provider: KeyProvider, keys: list[dict[str, str]], note: str = "") -> None:
        forget()
        use(provider)
        if self._key is not None:
            use(self._key)
        self._typed.clear()
        self.provider, self._keys, self._repeat = provider, keys, False
        self._connected(note)

    def _connected(self, note: str = "") -> None:
        """Show the keys, or fold if the session has one of this provider."""
        if self.provider is None:
            return
        _signed_in[:] = [self]
        mine, usable = (
            _mine(self.provider, self._keys),
            [k["key"] for k in self._keys if k["state"] == "Enabled"],
        )
        self._chosen = mine or (usable[0] if usable else None)
        if mine is not None:
            self._settle(mine)
            return
        number = (
            "no keys" if not self._keys else "1 key" if len(self._keys) == 1 else f"{len(self._keys)} keys"
        )
        self._step = "keys"
        self._say("good", f"Connected to {_place(self.provider)}{note}; {number}. Which one is the default?")

    def _choose(self, key: object) -> None:
        provider = self.provider
        if provider is None:
            return
        uri = key.strip() if isinstance(key, str) else ""
        if not uri:
            self._say("bad", "Enter the name of a key, or choose one from the list.", focus="name")
            return
        if "://" not in uri:
            place = f"{provider.region}/" if isinstance(provider, TencentKMS) else ""
            uri = f"{provider.scheme}://{place}{uri}"
        parse_key(uri)
        if isinstance(provider, TencentKMS):
            uri = provider.resolve(uri)
        elif not uri.startswith(f"{provider.scheme}://"):
            self._say("bad", f"{uri} is not a key of {provider!r}", focus="name")
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
        with self._lock:
            self._step, self._line = "done", key
            waiting, self._waiting = self._waiting, []
        self._say("good", f"Signed in. Your key: {key}")
        for loop, future in waiting:
            # A future may only be set in the thread of its loop.
            with contextlib.suppress(RuntimeError):  # the loop is closed, and its waiting cell is gone
                loop.call_soon_threadsafe(_finish, future)


_signed_in: list[LoginForm] = []  # the form that signed in last: the session is one for each process


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


def _mine(provider: KeyProvider, keys: list[dict[str, str]]) -> str | None:
    """Return the session's key if it belongs to this provider and account; otherwise None."""
    uri = session_key()
    if uri is None:
        return None
    scheme, place, name = parse_key(uri)
    if (scheme, place) != (provider.scheme, getattr(provider, "region", None)):
        return None
    there = any(uri == about["key"] or name == about.get("alias") for about in keys)
    # A local key is created on first use, and an empty list may mean no permission to list keys.
    return uri if there or scheme == "local" or not keys else None
