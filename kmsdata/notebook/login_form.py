"""The form that `kmsdata.login` shows in a notebook. What is typed into it stays in this process.

The state of widgets is part of the notebook and can be saved with it at any moment. Therefore no field keeps
a secret: the kernel takes it out when it arrives and empties the field before a save could include it. The
form needs no JavaScript except that of ipywidgets.
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

from kmsdata.display.ipython import cell_number, show_bundle
from kmsdata.errors import CredentialsError, KeyAccessError, KmsDataError
from kmsdata.keys.data_key import KeyProvider
from kmsdata.keys.key_uri import parse_key
from kmsdata.keys.local.keystore import LocalKeystore
from kmsdata.keys.session import forget, hold, session_key, use
from kmsdata.keys.tencent.client import TencentKMS
from kmsdata.notebook.form_layout import DOT, OTHER, REGIONS, FormLayout, key_choices, show, status_html

__all__ = ["LoginForm"]

_LATE = 0.3  # seconds to wait for the last typed text, which can arrive after Enter or Connect
_UNANSWERED = "not signed in yet: fill in the form above, then run again from here"


class LoginForm(FormLayout):
    """The form; `kmsdata.login` makes one for a process, and shows the same one again in its current state.

    ``await form`` waits until the user is connected and has chosen a key (if the session has none), and
    returns the provider. Without ``await``, calls that need a key raise `CredentialsError` until then.

    Args:
        region: the initial region.
        key: URI that becomes the session's key on connection.
        endpoint: as in `kmsdata.TencentKMS`.
        found: whose credentials are configured, in words, if only the region is missing.

    Attributes:
        provider: the connected provider, or None.

    Example:
        >>> LoginForm(region="ap-guangzhou")
        <kmsdata.login: not filled in yet; the form works only in notebooks. Elsewhere set
        TENCENTCLOUD_SECRET_ID and TENCENTCLOUD_SECRET_KEY>
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
        self._settled = False  # connected, and a key is chosen
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._lock = threading.Lock()
        self._worker: threading.Thread | None = None
        self._cell: object = None  # the cell that it was last shown in
        self._place = ""  # the provider and the account, in words

        super().__init__()
        self.service.observe(lambda _: self._explain(), "value")
        self.region.observe(lambda _: self._arrange(), "value")
        self.keys_there.observe(lambda _: self._arrange(), "value")
        self.connect.on_click(lambda _: self._start(self._connect))
        self.choose.on_click(lambda _: self._start(self._choose))
        self.go_on.on_click(lambda _: self._start(self._settle))
        self.again.on_click(lambda _: self._start(self._ask))
        for field in self._secrets:
            field.on_msg(self._entered)
        self._fill_in(region, endpoint)
        self._ask()

    # Display.

    @classmethod
    def shown(
        cls, *, region: str | None, key: str | None, endpoint: str | None, found: str | None
    ) -> LoginForm:
        """Display the form of this process in its current state; reset it if region or endpoint differ."""
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
            "not filled in yet; the form works only in notebooks. Elsewhere set TENCENTCLOUD_SECRET_ID and "
            "TENCENTCLOUD_SECRET_KEY"
            if self.provider is None
            else f"connected to {self.provider!r}"
        )
        return f"<kmsdata.login: {state}>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = super()._repr_mimebundle_() or {}
        # Without a kernel (in a mail, on GitHub, in an export) only these representations are shown.
        return bundle | {
            "text/plain": repr(self),
            "text/html": "<p><b>kmsdata</b>: run this cell to use the sign-in form.</p>",
        }

    def _ipython_display_(self) -> None:
        """Display the form once per cell.

        `login` displays it, and IPython does so again for a cell that ends with the form.
        """
        cell = cell_number()
        if cell is None or cell != self._cell:
            show_bundle(self._repr_mimebundle_())
        self._cell = cell

    def _fill_in(self, region: str | None, endpoint: str | None) -> None:
        if region is not None and region in REGIONS:
            self.region.value = region
        elif region is not None:
            self.region.value, self.other_region.value = OTHER, region
        if endpoint := endpoint or os.environ.get("KMSDATA_TENCENT_ENDPOINT"):
            self.endpoint.value = endpoint
            self.more.set_title(0, f"Endpoint: {endpoint}")

    def _arrange(self) -> None:
        """Show the widgets that belong to the current state and choices, and hide the others."""
        cloud, connected = self.service.value == "tencent", self.provider is not None
        show(self._asking, not connected)
        show(self._cloud, cloud)
        show(self._local, not cloud)
        show(self.other_region, self.region.value == OTHER)
        show(self._connected, connected)
        show(self.other_key, self.keys_there.value in (None, OTHER))
        show(self.keys_there, len(self.keys_there.options) > 0)
        show(self.go_on, not self._settled)
        if not connected:
            show(self.repeated, bool(self.repeated.typed.text))
            path = html.escape(str(LocalKeystore().path))
            self.file.value = f'<code class="kmsdata-file">{path}</code>'

    def _say(self, kind: str, text: str) -> None:
        self.status.value = status_html(kind, text)

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
            if self._settled:
                future.set_result(None)
            else:
                self._waiting.append((loop, future))
        await future
        if self.provider is None:  # "Sign in again" was pressed in the meantime
            raise CredentialsError(_UNANSWERED, provider="tencent-kms", operation="login", code="NotAnswered")
        return self.provider

    def _settle(self) -> None:
        with self._lock:
            self._settled = True
            waiting, self._waiting = self._waiting, []
        for loop, future in waiting:
            # A future may only be set in the thread of its loop.
            with contextlib.suppress(RuntimeError):  # the loop is closed, and its waiting cell is gone
                loop.call_soon_threadsafe(_finish, future)
        self._arrange()

    # Actions of the buttons. Jupyter does not show errors of a handler in the cell, so the form shows them.

    def _entered(self, _: object, content: dict[str, Any], __: object) -> None:
        # Browsers send Enter before the text of the field.
        if content.get("event") == "submit":
            self._start(self._connect, late=_LATE)

    def _start(self, step: Callable[[], None], *, late: float = 0.0) -> None:
        """Run a step in a thread: the kernel does not wait for it, and no block of `using` applies."""
        with self._lock:
            if self._worker is not None and self._worker.is_alive():
                return
            self._worker = threading.Thread(
                target=self._carry_out, args=(step, late), name="kmsdata-login", daemon=True
            )
            self._worker.start()

    def _carry_out(self, step: Callable[[], None], late: float) -> None:
        for button in self._buttons:
            button.disabled = True
        try:
            time.sleep(late)
            step()
        except (KmsDataError, ImportError, ValueError) as error:
            self._say("bad", str(error))
        except Exception as error:  # noqa: BLE001 - its text may contain secrets
            self._say("bad", f"this failed ({type(error).__name__}): try again")
        finally:
            for button in self._buttons:
                button.disabled = False

    def _ask(self) -> None:
        """Reset the form: calls that need a key raise an error until it is filled in."""
        self.provider, self._settled = None, False
        forget()
        hold(_UNANSWERED)
        self._explain()

    def _explain(self) -> None:
        self._arrange()
        if self.service.value == "local":
            self._say("ask", "Master keys in a local file: for trials, and where there is no KMS.")
        elif self._found is not None:
            self._say("ask", f"Choose a region. Without a SecretId, {self._found} is used.")
        else:
            self._say(
                "ask", "Enter an API key of your account (in the console: Access Management, API Keys)."
            )

    def _connect(self) -> None:
        if self.service.value == "tencent":
            self._connect_to_tencent()
        else:
            self._open_keystore()

    def _connect_to_tencent(self) -> None:
        if not (self.secret_id.typed.text and self.secret_key.typed.text):
            time.sleep(_LATE)  # some kernels handle a click before the typed text
        pair = {"the SecretId": self.secret_id, "the SecretKey": self.secret_key}
        missing = [name for name, field in pair.items() if not field.typed.text]
        found = self._found is not None and len(missing) == 2
        region = self.region.value if self.region.value != OTHER else self.other_region.value.strip()
        if (missing and not found) or not region:
            wanted = [*([] if found else missing), *([] if region else ["the region"])]
            self._say("bad", f"Enter {' and '.join(wanted)}.")
            return
        pasted = {**pair, "the session token": self.token}
        wrong = [name for name, field in pasted.items() if not field.typed.plausible]
        if wrong:
            self._say("bad", f"Enter {' and '.join(wrong)} again: it contains characters that no key has.")
            return
        kms = TencentKMS(
            region,
            credential=None if found else self._credential(),
            endpoint=self.endpoint.value.strip() or None,
        )
        self._say("busy", f"Connecting to {kms.endpoint} …")
        try:
            keys, note = kms.list_keys(), ""
        except KeyAccessError:  # the credentials are valid, but may not list keys
            keys, note = [], "; no permission to list keys (kms:ListKeyDetail), so enter a KeyId"
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
            show(self.repeated, True)
            self._say(
                "ask" if first else "bad",
                "this creates a new keystore: enter its passphrase once more, and connect"
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
        for field in self._secrets:
            field.clear()
        mine = _mine(provider, keys)
        self.keys_there.options = key_choices(keys)
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
            self._say("good", f"{self._place}; {number}. Which one is the default?")
            self._arrange()
        else:
            self._say("good", f"{self._place}. Your key: {mine}")
            self._settle()

    def _choose(self) -> None:
        provider = self.provider
        if provider is None:
            return
        uri = self.keys_there.value
        if uri in (None, OTHER):
            uri = self.other_key.value.strip()
            if not uri:
                self._say("bad", "enter the name of a key, or choose one from the list")
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
        alias, _, state = label.partition(DOT)
        use(uri)
        note = "" if state in ("", "Enabled") else f". It is {state}: it cannot encrypt until it is enabled"
        named = "" if alias in ("", uri.rpartition("/")[2]) else f"{alias}, "
        self._say("bad" if note else "good", f"{self._place}. Your key: {named}{uri}{note}")
        self._settle()


def _elsewhere(provider: KeyProvider, region: str | None, endpoint: str | None) -> bool:
    """Return whether region or endpoint differ from the provider's; never for a keystore."""
    if not isinstance(provider, TencentKMS):
        return False
    wanted = TencentKMS(region or provider.region, endpoint=endpoint or provider.endpoint)
    return (wanted.region, wanted.endpoint) != (provider.region, provider.endpoint)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():  # done if the cell was interrupted
        future.set_result(None)


# One form for each process, since the session that it signs in to is one for each process.
_of_process: list[LoginForm] = []


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
