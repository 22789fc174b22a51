"""Find the credentials of Tencent Cloud, and renew temporary ones.

The first source in this order that has credentials is used; a source with only half of a pair is an error:

1. what was passed in (``credential=``)
2. ``TENCENTCLOUD_SECRET_ID`` and ``TENCENTCLOUD_SECRET_KEY``, with ``TENCENTCLOUD_SECURITY_TOKEN`` (or
   ``TENCENTCLOUD_TOKEN``) if they are temporary
3. the profile file: ``[default]`` with ``secret_id``, ``secret_key`` and optionally ``token`` in
   ``~/.tencentcloud/credentials``, then ``/etc/tencentcloud/credentials``
4. the role of the CVM instance
5. TKE OIDC: ``TKE_REGION``, ``TKE_PROVIDER_ID``, ``TKE_WEB_IDENTITY_TOKEN_FILE`` and ``TKE_ROLE_ARN``

6. If ``TENCENTCLOUD_ROLE_ARN`` is set, STS AssumeRole exchanges them for credentials of that role (except 1
   and 5).
"""

from __future__ import annotations

import configparser
import hmac
import json
import os
import re
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeAlias

from kmsdata.errors import CredentialsError, KeyServiceError
from kmsdata.keys.data_key import Hidden, Secret, random_bytes
from kmsdata.keys.fork_lock import Lock
from kmsdata.keys.tencent.transport import Answer, Endpoint, Request, Service, apart, bound, require_sdk

__all__ = ["Credentials", "Given", "HasCredentials", "held"]

_METADATA = "http://metadata.tencentyun.com/latest/meta-data/cam/security-credentials/"
_PROFILES = ("~/.tencentcloud/credentials", "/etc/tencentcloud/credentials")
_ROLE = "TENCENTCLOUD_ROLE_ARN"
_ROLE_NAME = re.compile(r"[\w.@+=-]{1,128}")
_PASSED = "passed in"  # the source, for display; the other sources are in Credentials._places
_TKE = ("TKE_REGION", "TKE_PROVIDER_ID", "TKE_WEB_IDENTITY_TOKEN_FILE", "TKE_ROLE_ARN")
_TOKENS = ("TENCENTCLOUD_SECURITY_TOKEN", "TENCENTCLOUD_TOKEN")
_LIFETIME = 7200  # seconds requested for a role's credentials: every role allows this
_MARGIN = 300  # seconds before expiry when they are renewed, or a fifth of their lifetime if that is less
_AGAIN = 10  # seconds before a failed renewal is repeated, while the current credentials are valid
_METADATA_SECONDS = 5.0  # for an instance's metadata: outside a CVM instance, the name server may be slow
_TRIED = (
    "credential=",
    "TENCENTCLOUD_SECRET_ID and TENCENTCLOUD_SECRET_KEY",
    *_PROFILES,
    "the CVM instance role",
    "TKE OIDC (TKE_ROLE_ARN and its kin)",
    f"STS AssumeRole ({_ROLE})",
)


class HasCredentials(Protocol):
    """The interface of the official SDK's credential objects."""

    def get_credential_info(self) -> tuple[str, str, str | None]:
        """Return SecretId, SecretKey, and token or None."""
        ...


Given: TypeAlias = "tuple[str, str] | tuple[str, str, str | None] | HasCredentials"
"""SecretId and SecretKey (and token), or an object of the official SDK."""


def _hidden(info: Sequence[object]) -> Hidden:
    return Hidden(json.dumps([part if isinstance(part, str) else None for part in info]).encode())


def _shown(info: Hidden) -> Any:
    return tuple(json.loads(info.reveal()))


class _Fixed(Secret):
    """Static credentials: SecretId, SecretKey, and a token or None."""

    __slots__ = ("_info",)

    tried: tuple[str, ...] = _TRIED

    def __init__(self, *info: object) -> None:
        self._info = _hidden(info)

    def ready(self) -> None:
        """Do nothing: static credentials do not expire."""

    def get_credential_info(self) -> tuple[Any, ...]:
        """Return what the SDK signs with."""
        return _shown(self._info)


def held(given: Given | None) -> Any:
    """Put the credentials that were passed in into an object that hides them; False if they are invalid."""
    if isinstance(given, (tuple, list)):
        return _Fixed(*given)
    return given if given is None or callable(getattr(given, "get_credential_info", None)) else False


class _Pair(Secret):
    """SecretId and SecretKey, with a token and an expiry time if they are temporary."""

    __slots__ = ("_info", "born", "expires")

    def __init__(self, secret_id: str, secret_key: str, token: str | None, expires: float | None) -> None:
        self._info = _hidden((secret_id, secret_key, token))
        self.expires, self.born = expires, time.time()

    @property
    def info(self) -> tuple[str, str, str | None]:
        """SecretId, SecretKey and token. Do not assign them to a variable in a function that may raise."""
        return _shown(self._info)

    @property
    def secret_id(self) -> str:
        """The SecretId, which is not secret."""
        return self.info[0]

    @property
    def dead(self) -> bool:
        """Whether it has expired."""
        return self.expires is not None and time.time() >= self.expires

    @property
    def old(self) -> bool:
        """Whether to renew it. Static credentials are read again each time: the user may change them."""
        if self.expires is None:
            return True
        return time.time() >= self.expires - min(_MARGIN, (self.expires - self.born) / 5)


# Objects of the caller with credentials in plain attributes. Not attributes of `Credentials`, so that a walk
# over the local variables of an error does not find them.
_given: weakref.WeakKeyDictionary[Credentials, HasCredentials] = weakref.WeakKeyDictionary()


class Credentials(Secret):
    """The credentials in use: found when they are first needed, renewed before they expire.

    Args:
        given: the credentials that were passed in, as `held` returns them; None: search the sources that the
            module lists.
        region: for STS calls.
        endpoint: the KMS endpoint; the host of STS is derived from it.
        timeout: seconds for one STS call.
    """

    __slots__ = (
        "__weakref__", "_again", "_blind", "_current", "_endpoint", "_lock", "_region", "_timeout", "source",
    )  # fmt: skip

    tried = _TRIED

    def __init__(
        self, given: HasCredentials | None, *, region: str, endpoint: Endpoint, timeout: float
    ) -> None:
        self._region, self._endpoint, self._timeout = region, endpoint.of("sts"), timeout
        self._lock = Lock()
        if given is not None:
            _given[self] = given
        self._blind = random_bytes(32)
        self._current: _Pair | None = None
        self._again = 0.0  # when a failed renewal may be repeated
        self.source: str | None = None  # where they were found, for display

    def ready(self) -> None:
        """Find credentials, or renew those that are about to expire.

        Raises:
            ImportError: the SDK is not installed.
            CredentialsError: there are none, or only half of a pair, or they cannot be renewed.
        """
        with self._lock:
            if self._current is not None and not self._current.old:
                return
            require_sdk()  # first: without it, an error about credentials would mislead
            do = self._current is not None and self._current.expires is not None and not self._current.dead
            if do and time.time() < self._again:
                return
            try:
                found, source = self._find()
            except KeyServiceError:
                if not do:
                    raise
                self._again = time.time() + _AGAIN  # the current credentials have not expired yet
                return
            self._current, self.source = found, source

    def get_credential_info(self) -> tuple[str, str, str | None]:
        """Return what the SDK signs with. Called only in threads whose frames are never part of an error."""
        pair = self._current
        if pair is None:
            raise CredentialsError("no credentials have been found yet", provider="tencent-kms")
        return pair.info

    @property
    def identity(self) -> bytes:
        """A digest that identifies the credentials, 32 bytes, under a random key of this object."""
        self.ready()
        return _identity(self._current, self._blind)

    @property
    def masked(self) -> str:
        """The SecretId for display: its first and last four characters."""
        self.ready()
        return _masked(self._current)

    @property
    def masked_so_far(self) -> str:
        """The same of the credentials that were found already, which may have expired."""
        return _masked(self._current)

    def _find(self) -> tuple[_Pair, str]:
        found = self._base()
        if os.environ.get(_ROLE) and found[1] not in ("TKE OIDC", _PASSED):
            pair = self._assumed(found[0])
            return pair, f"{found[1]}, as the role {os.environ[_ROLE]}"
        return found

    def _base(self) -> tuple[_Pair, str]:
        if self in _given:
            # An object of the SDK or the caller may use the network without a timeout.
            fixed = isinstance(_given[self], _Fixed)
            pair = _taken(_given[self]) if fixed else apart(lambda: _taken(_given[self]), self._timeout)
            if pair is None:
                _fail(
                    "credential= has no SecretId or no SecretKey, or did not return them",
                    "InvalidCredential",
                )
            return pair, _PASSED
        for source, find in self._places().items():
            if (pair := find()) is not None:
                return pair, source
        raise CredentialsError(
            "no Tencent Cloud credentials were found. Set TENCENTCLOUD_SECRET_ID and "
            "TENCENTCLOUD_SECRET_KEY, write ~/.tencentcloud/credentials, run on a CVM instance with a role, "
            "or call kmsdata.login()",
            provider="tencent-kms",
            operation="credentials",
            code="NoCredentials",
            tried=_TRIED,
        )

    def _places(self) -> dict[str, Callable[[], _Pair | None]]:
        places: dict[str, Callable[[], _Pair | None]] = {"the environment": _environment}
        for path in _PROFILES:
            places[path] = lambda path=path: _profile(Path(path).expanduser())  # type: ignore[misc]
        return places | {
            "the CVM instance role": _instance_role,
            "TKE OIDC": self._oidc,
        }

    def _oidc(self) -> _Pair | None:
        if not os.environ.get("TKE_ROLE_ARN"):
            return None
        if missing := [name for name in _TKE if not os.environ.get(name)]:
            _fail(f"TKE OIDC: TKE_ROLE_ARN is set, but {', '.join(missing)} is not", "IncompleteOidc")
        path = Path(os.environ["TKE_WEB_IDENTITY_TOKEN_FILE"])
        request = _oidc_request(path)
        if request is None:
            _fail(f"TKE OIDC: cannot read the token in {path}", "IncompleteOidc")
        return self._role(os.environ["TKE_REGION"], None, request)

    def _assumed(self, base: _Pair) -> _Pair:
        request = Request(
            "AssumeRole",
            RoleArn=os.environ[_ROLE],
            RoleSessionName=os.environ.get("TENCENTCLOUD_ROLE_SESSION_NAME") or "kmsdata",
            DurationSeconds=_LIFETIME,
        )
        region = os.environ.get("TENCENTCLOUD_REGION") or self._region
        return self._role(region, _Fixed(*base.info), request)

    def _role(self, region: str, signer: _Fixed | None, request: Request) -> _Pair:
        """Get the credentials of a role from STS."""
        sts = Service("sts", "2018-08-13", region, self._endpoint, signer, timeout=self._timeout, retries=2)
        pair = _from_sts(sts.call(request, operation=request.action))
        if pair is None:
            _fail("the answer of STS contains no temporary credentials", "InvalidAnswer")
        return pair


def _fail(message: str, code: str) -> NoReturn:
    raise CredentialsError(message, provider="tencent-kms", operation="credentials", code=code, tried=_TRIED)


def _identity(pair: _Pair | None, blind: bytes) -> bytes:
    # All parts count: a caller who knows only the SecretId must not get another user's cached keys. No part
    # contains a line break (`_made`), so the joined text is unambiguous.
    whole = () if pair is None else pair.info
    return hmac.digest(blind, "\n".join(part or "" for part in whole).encode(), "sha256")


def _masked(pair: _Pair | None) -> str:
    secret_id = "" if pair is None else pair.secret_id
    return f"{secret_id[:4]}…{secret_id[-4:]}" if len(secret_id) > 16 else "…"


# The functions below never raise an error that has a secret in a frame of its traceback: they return None.


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
    except Exception:  # noqa: BLE001 - the caller's code: its errors may contain secrets
        return None
    return _made(*info[:3]) if len(info) in (2, 3) else None


def _environment() -> _Pair | None:
    names = ("TENCENTCLOUD_SECRET_ID", "TENCENTCLOUD_SECRET_KEY")
    missing = [name for name in names if not os.environ.get(name)]
    if len(missing) == 2:
        return None
    if missing:
        other = next(name for name in names if name not in missing)
        _fail(f"{other} is set, but {missing[0]} is not. Set both", "HalfPair")
    pair = _from_environment()
    if pair is None:
        _fail("TENCENTCLOUD_SECRET_ID or TENCENTCLOUD_SECRET_KEY contains invalid characters", "HalfPair")
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
            f"{path} has no [default] with secret_id and secret_key, or cannot be read. Correct it, or "
            "remove it",
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


def _instance_role() -> _Pair | None:
    return apart(_instance, _METADATA_SECONDS)


def _instance() -> _Pair | None:
    """Return the credentials of this CVM instance's role; None if there is no instance or no role."""
    import requests  # a dependency of the SDK, so it is imported only if it is needed

    session = requests.Session()
    session.trust_env = False  # no proxies and no ~/.netrc: the address is local to the machine
    bound(session)
    try:
        role = session.get(_METADATA, timeout=(1, 3), allow_redirects=False)
        if role.status_code != 200 or not _ROLE_NAME.fullmatch(role.text.strip()):
            return None
        found = session.get(_METADATA + role.text.strip(), timeout=(1, 3), allow_redirects=False).json()
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
    pair = _made(
        found.get("TmpSecretId"),
        found.get("TmpSecretKey"),
        found.get("Token"),
        answer.fields.get("ExpiredTime"),
    )
    return None if pair is None or pair.expires is None else pair
