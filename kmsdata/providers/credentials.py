"""Credentials of Tencent Cloud: where they are looked for, and how temporary ones are renewed.

In this order; the first place that has any is used, and one that has only half of a pair is an error:

1. what was passed in (``credential=``)
2. ``TENCENTCLOUD_SECRET_ID`` and ``TENCENTCLOUD_SECRET_KEY``, with ``TENCENTCLOUD_SECURITY_TOKEN`` (or
   ``TENCENTCLOUD_TOKEN``) where they are temporary
3. the profile file: ``[default]`` with ``secret_id``, ``secret_key`` and optionally ``token`` in
   ``~/.tencentcloud/credentials``, then ``/etc/tencentcloud/credentials``
4. the role of the CVM instance
5. TKE OIDC: ``TKE_REGION``, ``TKE_PROVIDER_ID``, ``TKE_WEB_IDENTITY_TOKEN_FILE`` and ``TKE_ROLE_ARN``

6. Where ``TENCENTCLOUD_ROLE_ARN`` is set, STS AssumeRole turns what was found into credentials of that role.
"""

from __future__ import annotations

import configparser
import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeAlias

from kmsdata.errors import CredentialsError, KeyServiceError
from kmsdata.keys import Secret
from kmsdata.providers.service import Answer, Endpoint, Request, Service

__all__ = ["Credentials", "Given", "HasCredentials", "hidden"]

_METADATA = "http://metadata.tencentyun.com/latest/meta-data/cam/security-credentials/"
_PROFILES = ("~/.tencentcloud/credentials", "/etc/tencentcloud/credentials")
_ROLE = "TENCENTCLOUD_ROLE_ARN"
_TKE = ("TKE_REGION", "TKE_PROVIDER_ID", "TKE_WEB_IDENTITY_TOKEN_FILE", "TKE_ROLE_ARN")
_TOKENS = ("TENCENTCLOUD_SECURITY_TOKEN", "TENCENTCLOUD_TOKEN")
_LIFETIME = 7200  # seconds asked for of a role's credentials: what every role allows
_MARGIN = 300  # seconds before they run out that they are renewed, or a fifth of their life
_TRIED = (
    "credential=",
    "TENCENTCLOUD_SECRET_ID and TENCENTCLOUD_SECRET_KEY",
    *_PROFILES,
    "the CVM instance role",
    "TKE OIDC (TKE_ROLE_ARN and its kin)",
    f"STS AssumeRole ({_ROLE})",
)


class HasCredentials(Protocol):
    """Credentials as the official SDK has them."""

    def get_credential_info(self) -> tuple[str, str, str | None]:
        """SecretId, SecretKey, and token or None."""
        ...


Given: TypeAlias = "tuple[str, str] | tuple[str, str, str | None] | HasCredentials"
"""SecretId and SecretKey (and token), or an object of the official SDK."""


class _Pair(Secret):
    """SecretId and SecretKey, with a token and an end of life where they are temporary."""

    __slots__ = ("born", "expires", "secret_id", "secret_key", "token")

    def __init__(self, secret_id: str, secret_key: str, token: str | None, expires: float | None) -> None:
        self.secret_id, self.secret_key, self.token = secret_id, secret_key, token
        self.expires, self.born = expires, time.time()

    @property
    def dead(self) -> bool:
        """Whether it can be used no more."""
        return self.expires is not None and time.time() >= self.expires

    @property
    def old(self) -> bool:
        """Whether it is time to renew it. What does not run out is looked up each time: it may be changed."""
        if self.expires is None:
            return True
        return time.time() >= self.expires - min(_MARGIN, (self.expires - self.born) / 5)


def hidden(given: object) -> Any:
    """What was passed in as a credential, in a form that a frame may hold; of what is none the type alone."""
    if given is None or callable(getattr(given, "get_credential_info", None)):
        return given
    return _Fixed(given) if isinstance(given, tuple) else type(given)


class Credentials(Secret):
    """The credentials in force: found when first needed, renewed before they run out.

    Args:
        given: what was passed in, or None to look in the places that the module names.
        region: for the calls of STS.
        endpoint: that of KMS; STS is beside it.

    Raises:
        TypeError: something else than credentials was passed in.
    """

    __slots__ = ("_current", "_endpoint", "_given", "_lock", "_region", "source")

    tried = _TRIED

    def __init__(self, given: Given | None, *, region: str, endpoint: Endpoint) -> None:
        given = hidden(given)
        self._region, self._endpoint = region, endpoint.of("sts")
        self._lock = threading.Lock()
        self._current: _Pair | None = None
        self.source: str | None = None  # where they were found, in words
        if given is not None and not callable(getattr(given, "get_credential_info", None)):
            raise TypeError(
                "credential= takes (SecretId, SecretKey), (SecretId, SecretKey, token), or a credential of "
                "the official SDK"
            )
        self._given: Any = given

    def ready(self) -> None:
        """Find credentials, or renew those that are about to run out.

        Raises:
            CredentialsError: there are none, or half of a pair, or they cannot be renewed.
        """
        with self._lock:
            if self._current is not None and not self._current.old:
                return
            try:
                found, source = self._find()
            except KeyServiceError:
                if self._current is None or self._current.expires is None or self._current.dead:
                    raise
                return  # those there are will do for a while: the next call tries again
            self._current, self.source = found, source

    def get_credential_info(self) -> tuple[str, str, str | None]:
        """What the SDK signs with. Only threads whose frames nobody sees call it."""
        pair = self._current
        if pair is None:
            raise CredentialsError("no credentials were found yet", provider="tencent-kms")
        return pair.secret_id, pair.secret_key, pair.token

    @property
    def identity(self) -> bytes:
        """A digest that tells these credentials from others; 32 bytes."""
        self.ready()
        return _identity(self._current)

    @property
    def masked(self) -> str:
        """The SecretId for showing: its first and last four letters."""
        self.ready()
        return _masked(self._current)

    def _find(self) -> tuple[_Pair, str]:
        found = self._base()
        if os.environ.get(_ROLE) and found[1] not in ("TKE OIDC", "credential="):
            pair = self._assumed(found[0])
            return pair, f"{found[1]}, as the role {os.environ[_ROLE]}"
        return found

    def _base(self) -> tuple[_Pair, str]:
        if self._given is not None:
            pair = _taken(self._given)
            if pair is None:
                _fail(
                    "the credential that was passed in has no SecretId or no SecretKey", "InvalidCredential"
                )
            return pair, "credential="
        for source, find in self._places().items():
            if (pair := find()) is not None:
                return pair, source
        raise CredentialsError(
            "no Tencent Cloud credentials: set TENCENTCLOUD_SECRET_ID and TENCENTCLOUD_SECRET_KEY, write "
            "~/.tencentcloud/credentials, run on a CVM instance with a role, or call kmsdata.login()",
            provider="tencent-kms",
            operation="credentials",
            code="NoCredentials",
            tried=_TRIED,
        )

    def _places(self) -> dict[str, Callable[[], _Pair | None]]:
        places: dict[str, Callable[[], _Pair | None]] = {"the environment": _environment}
        for path in _PROFILES:
            places[path] = lambda path=path: _profile(Path(path).expanduser())  # type: ignore[misc]
        return places | {"the CVM instance role": _instance, "TKE OIDC": self._oidc}

    def _oidc(self) -> _Pair | None:
        if not os.environ.get("TKE_ROLE_ARN"):
            return None
        if missing := [name for name in _TKE if not os.environ.get(name)]:
            _fail(f"TKE OIDC: {', '.join(missing)} not set, though TKE_ROLE_ARN is", "IncompleteOidc")
        path = Path(os.environ["TKE_WEB_IDENTITY_TOKEN_FILE"])
        request = _oidc_request(path)
        if request is None:
            _fail(f"TKE OIDC: cannot read the token in {path}", "IncompleteOidc")
        sts = self._sts(os.environ["TKE_REGION"], None)
        return self._pair(sts.call(request, operation="AssumeRoleWithWebIdentity"))

    def _assumed(self, base: _Pair) -> _Pair:
        request = Request(
            "AssumeRole",
            RoleArn=os.environ[_ROLE],
            RoleSessionName=os.environ.get("TENCENTCLOUD_ROLE_SESSION_NAME") or "kmsdata",
            DurationSeconds=_LIFETIME,
        )
        region = os.environ.get("TENCENTCLOUD_REGION") or self._region
        return self._pair(self._sts(region, _Fixed(base)).call(request, operation="AssumeRole"))

    def _sts(self, region: str, signer: Any) -> Service:
        return Service("sts", "2018-08-13", region, self._endpoint, signer, timeout=10, retries=2)

    def _pair(self, answer: Answer) -> _Pair:
        pair = _from_sts(answer)
        if pair is None:
            _fail("STS answered without credentials", "InvalidAnswer")
        return pair


class _Fixed(Secret):
    """Credentials that stay as they are."""

    __slots__ = ("_info",)

    tried = _TRIED

    def __init__(self, info: tuple[Any, ...] | _Pair) -> None:
        self._info = (info.secret_id, info.secret_key, info.token) if isinstance(info, _Pair) else info

    def ready(self) -> None:
        """They are."""

    def get_credential_info(self) -> tuple[Any, ...]:
        """What the SDK signs with."""
        return self._info


def _fail(message: str, code: str) -> NoReturn:
    raise CredentialsError(message, provider="tencent-kms", operation="credentials", code=code, tried=_TRIED)


def _identity(pair: _Pair | None) -> bytes:
    return hashlib.sha256(b"" if pair is None else pair.secret_id.encode()).digest()


def _masked(pair: _Pair | None) -> str:
    secret_id = "" if pair is None else pair.secret_id
    return f"{secret_id[:4]}…{secret_id[-4:]}" if len(secret_id) > 16 else "…"


# The functions below never raise with a secret in a frame: what does not do is None.


def _made(
    secret_id: object, secret_key: object, token: object = None, expires: object = None
) -> _Pair | None:
    texts = [value.strip() if isinstance(value, str) else "" for value in (secret_id, secret_key, token)]
    good = all(text.isascii() and text.isprintable() for text in texts) and texts[0] and texts[1]
    end = float(expires) if isinstance(expires, (int, float)) else None
    return _Pair(texts[0], texts[1], texts[2] or None, end) if good else None


def _taken(given: HasCredentials) -> _Pair | None:
    try:
        info = tuple(given.get_credential_info())
    except Exception:  # noqa: BLE001 - a stranger's code, whose errors may say anything
        return None
    return _made(*info[:3]) if len(info) in (2, 3) else None


def _environment() -> _Pair | None:
    names = ("TENCENTCLOUD_SECRET_ID", "TENCENTCLOUD_SECRET_KEY")
    missing = [name for name in names if not os.environ.get(name)]
    if len(missing) == 2:
        return None
    if missing:
        other = next(name for name in names if name not in missing)
        _fail(f"{other} is set and {missing[0]} is not: set both", "HalfPair")
    pair = _from_environment()
    if pair is None:
        _fail("TENCENTCLOUD_SECRET_ID or TENCENTCLOUD_SECRET_KEY holds letters that no key has", "HalfPair")
    return pair


def _from_environment() -> _Pair | None:
    token = next((os.environ[name] for name in _TOKENS if os.environ.get(name)), None)
    return _made(os.environ["TENCENTCLOUD_SECRET_ID"], os.environ["TENCENTCLOUD_SECRET_KEY"], token)


def _profile(path: Path) -> _Pair | None:
    if not path.is_file():
        return None
    pair = _from_profile(path)
    if pair is None:
        _fail(
            f"{path} has no [default] with secret_id and secret_key, or cannot be read: correct it, or move "
            "it away",
            "InvalidProfile",
        )
    return pair


def _from_profile(path: Path) -> _Pair | None:
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(path.read_text("utf-8"))
        section = {name: text.strip().strip("\"'") for name, text in parser["default"].items()}
    except (OSError, ValueError, KeyError, configparser.Error):
        return None
    return _made(section.get("secret_id"), section.get("secret_key"), section.get("token"))


def _instance() -> _Pair | None:
    """Of the CVM instance that this runs on; None where it runs on none, or one without a role."""
    import requests  # the SDK's own part

    session = requests.Session()
    session.trust_env = False  # neither proxies nor ~/.netrc: the address is the machine's own
    try:
        role = session.get(_METADATA, timeout=(1, 3), allow_redirects=False)
        if role.status_code != 200 or not role.text.strip():
            return None
        found = session.get(_METADATA + role.text.strip(), timeout=(1, 3), allow_redirects=False).json()
        if found.get("Code") != "Success":
            return None
        return _made(found["TmpSecretId"], found["TmpSecretKey"], found["Token"], found["ExpiredTime"])
    except (requests.RequestException, ValueError, KeyError, TypeError, AttributeError):
        return None
    finally:
        session.close()


def _oidc_request(path: Path) -> Request | None:
    try:
        token = path.read_text("utf-8").strip()
    except (OSError, ValueError):
        return None
    return Request(
        "AssumeRoleWithWebIdentity",
        ProviderId=os.environ["TKE_PROVIDER_ID"],
        WebIdentityToken=token,
        RoleArn=os.environ["TKE_ROLE_ARN"],
        RoleSessionName="kmsdata",
        DurationSeconds=_LIFETIME,
    )


def _from_sts(answer: Answer) -> _Pair | None:
    found = answer.fields.get("Credentials")
    if not isinstance(found, dict):
        return None
    end = answer.fields.get("ExpiredTime")
    return _made(found.get("TmpSecretId"), found.get("TmpSecretKey"), found.get("Token"), end)
