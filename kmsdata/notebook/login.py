"""Signing in to Tencent Cloud: with what there is, else by asking; in a notebook by a form."""

from __future__ import annotations

import getpass
import importlib.util
import os
import sys
import warnings
from typing import TYPE_CHECKING, NoReturn

from kmsdata.display.ipython import in_notebook, takes_input
from kmsdata.errors import CredentialsError
from kmsdata.keys.data_key import Secret
from kmsdata.keys.key_uri import parse_key
from kmsdata.keys.session import forget, session_key, use
from kmsdata.keys.tencent.client import TencentKMS
from kmsdata.keys.tencent.credentials import Credentials

if TYPE_CHECKING:
    from kmsdata.notebook.login_form import LoginForm

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
        ValueError: no region, and nobody can be asked; or one that is not that of ``key``.
        KeyServiceError: KMS did not answer.

    Example:
        >>> import kmsdata
        >>> kmsdata.login(region="ap-guangzhou")  # doctest: +SKIP
        Connected to Tencent Cloud KMS in ap-guangzhou with AKID…7d1c (the environment); 3 keys
        <TencentKMS ap-guangzhou at https://kms.tencentcloudapi.com>
    """
    region = _region(region, key)
    kms = None if region is None else TencentKMS(region, endpoint=endpoint)
    found = None if kms is None else _account(kms)
    if kms is None or found is None:
        if region is None:  # which one credentials are looked up for makes no difference
            found = _account(TencentKMS("ap-guangzhou", endpoint=endpoint))
        if not _somebody():
            _nobody(found)
        if in_notebook():
            if importlib.util.find_spec("ipywidgets") is not None:
                from kmsdata.notebook.login_form import LoginForm

                return LoginForm.shown(region=region, key=key, endpoint=endpoint, found=found)
            print('A form instead of these questions: pip install "kmsdata[notebook]"')
        while not region:
            region = input("Region (such as ap-guangzhou): ").strip()
        kms = TencentKMS(region, endpoint=endpoint)  # says what is wrong before secrets are typed
        if found is None:
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
    if key is not None:
        scheme, place, _ = parse_key(key)
        if scheme != "tencent-kms" or region not in (None, place):
            raise ValueError(
                f"key= {key} is no key of Tencent Cloud KMS in {region or 'any region'}: it is named "
                "tencent-kms://<region>/<KeyId or alias>"
            )
        return place
    if region is None and (session := session_key()) is not None:
        scheme, place, _ = parse_key(session)
        region = place if scheme == "tencent-kms" else None
    return region or os.environ.get("TENCENTCLOUD_REGION") or None


def _account(kms: TencentKMS) -> str | None:
    """Whose credentials there are without asking; an error where there are some that cannot be used."""
    try:
        return kms.account
    except CredentialsError as error:
        if error.code != "NoCredentials":
            raise
        return None


def _somebody() -> bool:
    """Whether there is anybody to ask: not in cells that nbconvert, nbclient or papermill run."""
    if in_notebook():
        return takes_input()
    return sys.stdin is not None and sys.stdin.isatty()


def _nobody(found: str | None) -> NoReturn:
    if found is not None:
        raise ValueError("no region: pass region='ap-guangzhou', say, or set TENCENTCLOUD_REGION")
    raise CredentialsError(
        "no Tencent Cloud credentials, and nobody can be asked here: set TENCENTCLOUD_SECRET_ID, "
        "TENCENTCLOUD_SECRET_KEY and TENCENTCLOUD_REGION (and TENCENTCLOUD_SECURITY_TOKEN for temporary "
        "ones), or write ~/.tencentcloud/credentials",
        provider="tencent-kms",
        operation="login",
        code="NoCredentials",
        tried=(*Credentials.tried, "the notebook" if in_notebook() else "the terminal"),
    )


class _Typed(Secret):
    """What was typed. A frame that is interrupted may hold it, since it shows nothing."""

    __slots__ = ("texts",)

    def __init__(self) -> None:
        self.texts: list[str] = []

    def ask(self, label: str) -> bool:
        """Whether anything was typed; a blank that was pasted along is taken away."""
        try:
            self.texts.append(getpass.getpass(f"{label}: ").strip())
        except EOFError:  # Ctrl-D
            self.texts.append("")
        return bool(self.texts[-1])


def _asked(region: str, endpoint: str | None) -> TencentKMS:
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
