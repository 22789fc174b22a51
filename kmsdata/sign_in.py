"""Signing in to Tencent Cloud: with what there is, else by asking; in a notebook by a form."""

from __future__ import annotations

import getpass
import importlib.util
import os
import sys
import warnings
from typing import TYPE_CHECKING, NoReturn

from kmsdata.envelope import parse_key
from kmsdata.errors import CredentialsError
from kmsdata.keys import Secret
from kmsdata.progress import _in_notebook
from kmsdata.providers.tencent import TencentKMS
from kmsdata.session import forget, session_key, use

if TYPE_CHECKING:
    from kmsdata.widgets import LoginForm

__all__ = ["login"]


def login(
    *, region: str | None = None, key: str | None = None, endpoint: str | None = None
) -> TencentKMS | LoginForm:
    """Sign in to Tencent Cloud KMS for this process.

    Where the environment, a profile or a role gives credentials, those are taken, and it says which;
    elsewhere a notebook shows a form, and a terminal asks, without showing or keeping them anywhere. They are
    tried with one call, and every data key at hand is forgotten.

    A form does not hold up the cell: until it is filled in, calls that need a key raise `CredentialsError`,
    which stops a run of all cells. ``kms = await kmsdata.login()`` waits instead (ipykernel 7.0 and newer),
    and reads the same where no form is needed. Without ipywidgets (``pip install "kmsdata[notebook]"``) the
    notebook asks as a terminal does.

    Args:
        region: such as ``"ap-guangzhou"``; None: that of ``key`` or the session's key, else
            ``TENCENTCLOUD_REGION``, else it is asked for.
        key: URI of a master key that calls use where they name none, as with `kmsdata.use`.
        endpoint: as `kmsdata.TencentKMS` takes it.

    Returns:
        The provider, which is the session's from now on; where a form is needed the form, which ``await``
        turns into the provider.

    Raises:
        CredentialsError: there are none, and nobody can be asked; or those there are were refused.
        KeyServiceError: KMS did not answer.

    Example:
        >>> import kmsdata
        >>> kmsdata.login(region="ap-guangzhou")  # doctest: +SKIP
        Connected to Tencent Cloud KMS in ap-guangzhou with AKID…7d1c (the environment); 3 keys
        <TencentKMS ap-guangzhou at https://kms.tencentcloudapi.com>
    """
    region = _region(region, key)
    kms = None if region is None else TencentKMS(region, endpoint=endpoint)
    if kms is not None and not _found(kms):
        kms = None
    if kms is None:
        if _in_notebook():
            _require_frontend()
            if importlib.util.find_spec("ipywidgets") is not None:
                from kmsdata.widgets import LoginForm

                found = _account(endpoint) if region is None else None
                return LoginForm.shown(region=region, key=key, endpoint=endpoint, found=found)
            print('A form instead of these questions: pip install "kmsdata[notebook]"')
        else:
            _require_terminal()
        kms = _asked(region, endpoint)
    number = kms.count_keys()
    forget()
    use(kms)
    if key is not None:
        use(key)
    keys = "it may not list keys" if number is None else f"{number} key{'' if number == 1 else 's'}"
    print(f"Connected to Tencent Cloud KMS in {kms.region} with {kms.account}; {keys}")
    return kms


def _region(region: str | None, key: str | None) -> str | None:
    for uri in (key, session_key()):
        if region is None and uri is not None and (parts := parse_key(uri)).scheme == "tencent-kms":
            region = parts.place
    return region or os.environ.get("TENCENTCLOUD_REGION") or None


def _found(kms: TencentKMS) -> bool:
    """Whether there are credentials without asking; an error where there are some that cannot be used."""
    try:
        return bool(kms.account)
    except CredentialsError as error:
        if error.code != "NoCredentials":
            raise
        return False


def _account(endpoint: str | None) -> str | None:
    """Whose credentials there are; which region they are asked for makes no difference."""
    kms = TencentKMS("ap-guangzhou", endpoint=endpoint)
    return kms.account if _found(kms) else None


def _require_terminal() -> None:
    if sys.stdin is None or not sys.stdin.isatty():
        _nobody_to_ask("the terminal")


def _require_frontend() -> None:
    """Where cells are run by nbconvert, nbclient or papermill, a form would stand unanswered for ever."""
    kernel = sys.modules["IPython"].get_ipython().kernel
    if not getattr(kernel, "_allow_stdin", True):
        _nobody_to_ask("the notebook")


def _nobody_to_ask(where: str) -> NoReturn:
    raise CredentialsError(
        "no Tencent Cloud credentials, and nobody can be asked here: set TENCENTCLOUD_SECRET_ID, "
        "TENCENTCLOUD_SECRET_KEY and TENCENTCLOUD_REGION (and TENCENTCLOUD_SECURITY_TOKEN for temporary "
        "ones), or write ~/.tencentcloud/credentials",
        provider="tencent-kms",
        operation="login",
        code="NoCredentials",
        tried=("the environment", "~/.tencentcloud/credentials", "roles", where),
    )


class _Typed(Secret):
    """What was typed. A frame that is interrupted may hold it, since it shows nothing."""

    __slots__ = ("texts",)

    def __init__(self) -> None:
        self.texts: list[str] = []

    def ask(self, label: str) -> bool:
        """Whether anything was typed; a blank that was pasted along is taken away."""
        self.texts.append(getpass.getpass(f"{label}: ").strip())
        return bool(self.texts[-1])


def _asked(region: str | None, endpoint: str | None) -> TencentKMS:
    while not region:
        if _in_notebook():
            region = input("Region (such as ap-guangzhou): ").strip()
            continue
        print("Region (such as ap-guangzhou): ", end="", flush=True)
        region = sys.stdin.readline().strip()
    TencentKMS(region, endpoint=endpoint)  # what is wrong with these is said before secrets are typed
    typed = _Typed()
    with warnings.catch_warnings():
        # Where the terminal cannot hide what is typed, getpass would show it and warn.
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
