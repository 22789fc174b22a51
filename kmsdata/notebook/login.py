"""Sign in to Tencent Cloud: with configured credentials, otherwise by asking; in a notebook with a form."""

from __future__ import annotations

import getpass
import importlib.util
import os
import sys
import warnings
from typing import TYPE_CHECKING, NoReturn

from kmsdata.display.ipython import in_marimo, in_notebook, in_voila, takes_input
from kmsdata.errors import CallerImportError, CallerValueError, CredentialsError
from kmsdata.keys.data_key import Secret
from kmsdata.keys.key_uri import parse_key
from kmsdata.keys.session import forget, session_key, use
from kmsdata.keys.tencent.client import TencentKMS
from kmsdata.keys.tencent.credentials import Credentials

if TYPE_CHECKING:
    from kmsdata.notebook.login_form import LoginForm

__all__ = ["login"]


def login(
    *,
    region: str | None = None,
    key: str | None = None,
    endpoint: str | None = None,
    form: bool | None = None,
) -> TencentKMS | LoginForm:
    """Sign in to Tencent Cloud KMS for this process.

    Credentials from the environment, a profile or a role are used, and a message names their source. If there
    are none, a notebook shows a form and a terminal asks; what is typed is not displayed or stored. The
    credentials are tested with one KMS call, and all data keys are removed from memory.

    The form does not block the cell. Until it is filled in, calls that need a key raise `CredentialsError`,
    which stops a run of all cells. ``kms = await kmsdata.login()`` waits instead (ipykernel 7.0 and newer);
    the same line works when no form is needed. Without anywidget (``pip install "kmsdata[notebook]"``) the
    notebook asks like a terminal. Each call shows a new form; running the cell again keeps the
    connection.

    Args:
        region: such as ``"ap-guangzhou"``; None: the region of ``key`` or of the session's key, otherwise
            ``TENCENTCLOUD_REGION``; without these the user is asked.
        key: URI of the master key for calls without ``key=``, as with `kmsdata.use`.
        endpoint: as in `kmsdata.TencentKMS`.
        form: True: show the form, even where credentials are configured (as a choice) and where the front end
            is not recognised; False: ask with text prompts; None: a form in JupyterLab, Notebook, VS Code,
            Colab, Voila and marimo, if credentials must be asked for.

    Returns:
        The provider, which the session uses from now on. If a form is needed, the form; ``await`` returns its
        provider.

    Raises:
        CredentialsError: there are no credentials and no user to ask, or they were refused.
        ValueError: there is no region and no user to ask, or the region is not that of ``key``.
        KeyServiceError: KMS did not answer.
        ImportError: ``form=True``, and anywidget is not installed.

    Example:
        >>> import kmsdata
        >>> kmsdata.login(region="ap-guangzhou")  # doctest: +SKIP
        Connected to Tencent Cloud KMS in ap-guangzhou with AKID…7d1c (the environment); 3 keys
        <TencentKMS ap-guangzhou at https://kms.tencentcloudapi.com>
    """
    region = _region(region, key)
    kms = None if region is None else TencentKMS(region, endpoint=endpoint)
    found = None if kms is None else _account(kms)
    if kms is None or found is None or form:
        if region is None:  # the credentials do not depend on the region, so any region will do
            found = _account(TencentKMS("ap-guangzhou", endpoint=endpoint))
        if form or (form is None and _form_possible()):
            if not _installed():
                raise CallerImportError(
                    'kmsdata.login(form=True) needs anywidget: pip install "kmsdata[notebook]"'
                )
            from kmsdata.notebook.login_form import LoginForm

            login_form = LoginForm(region=region, key=key, endpoint=endpoint, found=found)
            login_form.display()
            return login_form
        if not _can_ask():
            _no_user(found)
        while not region:
            region = input("Region (such as ap-guangzhou): ").strip()
        kms = TencentKMS(region, endpoint=endpoint)  # raises for a wrong region before secrets are typed
        if found is None:
            kms = _asked(region, endpoint)
    number = kms.count_keys()
    forget()
    use(kms)
    if key is not None:
        use(key)
    keys = "no permission to list keys" if number is None else f"{number} key{'' if number == 1 else 's'}"
    print(f"Connected to Tencent Cloud KMS in {kms.region} with {kms.account}; {keys}")
    return kms


def _region(region: str | None, key: str | None) -> str | None:
    if key is not None:
        scheme, place, _ = parse_key(key)
        if scheme != "tencent-kms" or region not in (None, place):
            raise CallerValueError(
                f"key= {key} is not a key of Tencent Cloud KMS in {region or 'any region'}: pass a URI like "
                "tencent-kms://<region>/<KeyId or alias>"
            )
        return place
    if region is None and (session := session_key()) is not None:
        scheme, place, _ = parse_key(session)
        region = place if scheme == "tencent-kms" else None
    return region or os.environ.get("TENCENTCLOUD_REGION") or None


def _account(kms: TencentKMS) -> str | None:
    """Return whose credentials are configured, in words, or None. Raise if they are unusable."""
    try:
        return kms.account
    except CredentialsError as error:
        if error.code != "NoCredentials":
            raise
        return None


def _installed() -> bool:
    """Return whether the packages of the form are there, without importing them."""
    # cryptography 47 is the first with HPKE, which the form's messages are encrypted with.
    names = ("anywidget", "ipywidgets", "cryptography.hazmat.primitives.hpke")
    return all(importlib.util.find_spec(name) is not None for name in names)


def _form_possible() -> bool:
    """Return whether there is a page that can show the form, and a user to fill it in."""
    page = in_marimo() or in_voila() or (in_notebook() and takes_input())
    if page and not _installed():
        print('To get a form instead of these questions: pip install "kmsdata[notebook]"')
        return False
    return page


def _can_ask() -> bool:
    """Return whether a user can be asked: not in cells that nbconvert, nbclient or papermill run."""
    if in_notebook():
        return takes_input()
    return sys.stdin is not None and sys.stdin.isatty()


def _no_user(found: str | None) -> NoReturn:
    if found is not None:
        raise CallerValueError(
            "no region: pass region=, such as region='ap-guangzhou', or set TENCENTCLOUD_REGION"
        )
    raise CredentialsError(
        "no Tencent Cloud credentials, and no user to ask for them: set TENCENTCLOUD_SECRET_ID, "
        "TENCENTCLOUD_SECRET_KEY and TENCENTCLOUD_REGION (and TENCENTCLOUD_SECURITY_TOKEN for temporary "
        "ones), or write ~/.tencentcloud/credentials",
        provider="tencent-kms",
        operation="login",
        code="NoCredentials",
        tried=(*Credentials.tried, "the notebook" if in_notebook() else "the terminal"),
    )


class _Typed(Secret):
    """The typed texts. Its repr is hidden, so a traceback that shows local variables does not reveal them."""

    __slots__ = ("texts",)

    def __init__(self) -> None:
        self.texts: list[str] = []

    def ask(self, label: str) -> bool:
        """Ask for a text without displaying it; return whether there is one. Blanks around it are removed."""
        try:
            self.texts.append(getpass.getpass(f"{label}: ").strip())
        except EOFError:  # Ctrl-D
            self.texts.append("")
        return bool(self.texts[-1])


def _asked(region: str, endpoint: str | None) -> TencentKMS:
    typed = _Typed()
    with warnings.catch_warnings():
        # If the terminal cannot hide what is typed, getpass only warns and displays it: raise instead.
        warnings.simplefilter("error", getpass.GetPassWarning)
        given = typed.ask("SecretId (not shown)") and typed.ask("SecretKey (not shown)")
        if given:
            typed.ask("Session token (Enter for none)")
    if not given:
        raise CredentialsError(
            "no SecretId or no SecretKey was entered", provider="tencent-kms", operation="login", code="Empty"
        )
    return _made(typed, region, endpoint)


def _made(typed: _Typed, region: str, endpoint: str | None) -> TencentKMS:
    return TencentKMS(
        region,
        credential=(typed.texts[0], typed.texts[1], typed.texts[2] or None),
        endpoint=endpoint,
    )
