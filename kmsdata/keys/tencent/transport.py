"""Call one Tencent Cloud API at one endpoint through the official SDK, with deadlines, retries, clear errors.

Some behaviour of the SDK (3.0.x) is worked around: its retryer discards valid answers, its logger prints
plaintext keys, it takes errors whose content type has a charset for valid answers, ``~/.netrc`` replaces the
signature, and its calls have no overall deadline. Each try runs in its own thread (`apart`): so a frame of
the SDK, which contains the SecretKey and plaintext, is never part of an error, and a hung connection does
not block the caller.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import re
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

from kmsdata.errors import (
    CallerImportError,
    CallerValueError,
    CredentialsError,
    Interrupted,
    KeyAccessError,
    KeyNotFoundError,
    KeyServiceError,
)
from kmsdata.keys.data_key import Hidden, Secret, random_bytes
from kmsdata.keys.fork_lock import Lock
from kmsdata.keys.tencent.error_messages import is_fault, meaning, retryable
from kmsdata.keys.usage import count

__all__ = ["Answer", "Endpoint", "Request", "Service", "Signer", "apart", "bound", "require_sdk", "shown"]

_T = TypeVar("_T")

# The requirement of the extra kmsdata[tencent]: named instead of the extra, it also works from a checkout.
_SDK = "tencentcloud-sdk-python-kms>=3.0.1459,<4"
_HOST = re.compile(r"(?!-)[a-z0-9.-]{1,253}|\[::1\]")
_CONNECT = 3.05  # seconds for a TCP connection: just over one retransmission
_PAUSE = 0.1  # seconds: the longest pause before the first retry is twice that, and doubles with each retry
_MOST = 1 << 20  # bytes of an answer, also of one that is compressed
_MOST_SHOWN = 100  # characters of a text of the service, such as an alias


class Endpoint(NamedTuple):
    """The address of a service: ``https`` or, on loopback, ``http``; and ``host`` or ``host:port``."""

    scheme: str
    host: str

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Parse a host, or a URL without path.

        Raises:
            ValueError: neither; or http to another machine, which would send keys unencrypted.

        Example:
            >>> Endpoint.parse("kms.ap-guangzhou.tencentcloudapi.com")
            Endpoint(scheme='https', host='kms.ap-guangzhou.tencentcloudapi.com')
        """
        try:
            parts = urlsplit(text if "://" in text else f"https://{text}")
            port = parts.port
        except ValueError:  # such as a bracket that is not closed, or a port that is no number
            parts, port = urlsplit(""), None
        name, _, _ = parts.netloc.partition(":") if not parts.netloc.startswith("[") else ("[::1]", "", "")
        host = name.lower() + (f":{port}" if port is not None else "")
        plain = parts.scheme in ("http", "https") and parts.path in ("", "/")
        plain = plain and "?" not in text and "#" not in text
        if not plain or parts.netloc.lower() != host or not _HOST.fullmatch(name.lower()):
            raise CallerValueError(
                "endpoint= must be a host, such as 'kms.ap-guangzhou.tencentcloudapi.com', or a URL without "
                "a path, such as 'http://127.0.0.1:8080'"
            )
        if "://" not in text and _is_loopback(name.lower()):
            raise CallerValueError(
                f"endpoint= {host} is this machine, and https would be used for it. Write http://{host} for "
                f"an emulator, or https://{host}"
            )
        if parts.scheme == "http" and not _is_loopback(name.lower()):
            raise CallerValueError(
                f"endpoint= {parts.scheme}://{host} would send keys unencrypted: http is allowed for "
                "loopback only. Use https"
            )
        return cls(parts.scheme, host)

    @property
    def loopback(self) -> bool:
        """Whether it is this machine."""
        return _is_loopback(re.sub(r":\d+$", "", self.host))

    def of(self, service: str) -> Endpoint:
        """Return the endpoint of another service: its own host at Tencent Cloud, otherwise the same host."""
        name, dot, rest = self.host.partition(".")
        return self._replace(host=f"{service}{dot}{rest}") if name == "kms" else self

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}"


def require_sdk() -> None:
    """Import the official SDK, and requests, on which it depends; raise ImportError if it is missing."""
    try:
        import requests  # noqa: F401
        import tencentcloud.common.common_client  # noqa: F401
    except ImportError as error:
        raise CallerImportError(
            f'tencent-kms:// keys need the official SDK, which is not installed: pip install "{_SDK}"'
        ) from error


def _is_loopback(host: str) -> bool:
    """Return whether a host is this machine. Names that end in an address, or abbreviate one, are not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


class Signer(Protocol):
    """Provides the credentials that sign requests."""

    def ready(self) -> None:
        """Find credentials, or renew those that expire; raise CredentialsError if there are none."""

    def get_credential_info(self) -> tuple[str, str, str | None]:
        """Return SecretId, SecretKey and token; the SDK calls this for each request."""
        ...


class Request(Secret):
    """An action and its parameters, which may hold a plaintext key."""

    __slots__ = ("_parameters", "action")

    def __init__(self, action: str, **parameters: object) -> None:
        self.action = action
        given = {name: value for name, value in parameters.items() if value is not None}
        self._parameters = Hidden(json.dumps(given).encode())

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters. Do not assign them to a variable in a function that may raise."""
        return json.loads(self._parameters.reveal())


class Answer(Secret):
    """An answer: its fields, or an error code. Its repr shows neither."""

    __slots__ = ("_fields", "code", "detail", "request_id")

    def __init__(self) -> None:
        self._fields = Hidden(b"{}")
        self.code: str | None = "Timeout"  # until an answer arrives
        self.detail = ""
        self.request_id: str | None = None

    @property
    def fields(self) -> Mapping[str, Any]:
        """The fields, which may hold a plaintext key. Do not assign them where an error may be raised."""
        return json.loads(self._fields.reveal())

    def fill(self, fields: Mapping[str, Any]) -> None:
        """Take the fields of a valid answer."""
        self._fields, self.code = Hidden(json.dumps(fields).encode()), None

    def text(self, field: str) -> str | None:
        """Return a field that is text and not empty, otherwise None."""
        value = self.fields.get(field)
        return value if isinstance(value, str) and 0 < len(value) <= _MOST else None


class Service(Secret):
    """One API of Tencent Cloud; see the module.

    Args:
        name: ``"kms"`` or ``"sts"``.
        version: of the API.
        region: such as ``"ap-guangzhou"``.
        endpoint: its address.
        signer: None for calls without a signature.
        timeout: seconds for a call with all its retries; finding or renewing credentials comes before and is
            not included.
        retries: how often a call is repeated after a temporary error.
    """

    def __init__(
        self,
        name: str,
        version: str,
        region: str,
        endpoint: Endpoint,
        signer: Signer | None,
        *,
        timeout: float,
        retries: int,
    ) -> None:
        self.name, self.version, self.region, self.endpoint = name, version, region, endpoint
        self.timeout, self.retries = timeout, retries
        self._signer = signer
        self._lock = Lock(self._disconnect)  # after a fork, parent and child must not share a socket
        self._client: Any = None

    def __repr__(self) -> str:
        return f"<{self.name} in {self.region} at {self.endpoint}>"

    def call(
        self, request: Request, *, operation: str, key: str | None = None, repeatable: bool = True
    ) -> Answer:
        """Send a request, repeating it until there is an answer, an error, or no time left.

        Args:
            request: what to send.
            operation: the operation of the provider, for errors.
            key: URI of the master key, for errors.
            repeatable: whether to send it again if it may have been executed already.

        Raises:
            KeyServiceError: refused, or not answered in time; its subclasses are more specific.
        """
        client = self._connected()  # first: without the SDK, the error is that it is missing
        if self._signer is not None:
            self._signer.ready()
        end, retried = time.monotonic() + self.timeout, False
        for attempt in range(self.retries + 1):
            if attempt:
                # Full jitter: so a thousand workers that were throttled together do not retry together.
                pause = min(2.0, _PAUSE * 2**attempt) * int.from_bytes(random_bytes(4), "big") / 2**32
                if time.monotonic() + pause >= end:
                    break
                time.sleep(pause)
                count("retried")
                retried = True
            left = max(0.0, end - time.monotonic())
            try:
                late = Answer()  # an answer after the deadline is dropped
                answer = apart(lambda: _send(client, request, self._signer is not None), left) or late
            except KeyboardInterrupt:
                raise Interrupted(f"while waiting for the KMS call {request.action}") from None
            if answer.code is None:
                return answer
            if not retryable(answer.code, answer.detail, repeatable):
                break
        raise self._error(answer, request.action, operation, key, retried, repeatable)

    def _connected(self) -> Any:
        # The SDK calls datetime.utcfromtimestamp, which Python 3.12 deprecates. The first filter wins, and
        # others may have been added or removed since the last call (pytest does so).
        if warnings.filters[:1] != [_DEPRECATED]:
            warnings.filterwarnings("ignore", module="tencentcloud", category=DeprecationWarning)
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _disconnect(self) -> None:
        self._client = None

    def _connect(self) -> Any:
        require_sdk()
        from requests import utils
        from tencentcloud.common.common_client import CommonClient
        from tencentcloud.common.profile.client_profile import ClientProfile
        from tencentcloud.common.profile.http_profile import HttpProfile

        _log.addFilter(_silence)  # addFilter ignores a filter that was already added
        bundle = next((os.environ[name] for name in _BUNDLES if os.environ.get(name)), None)
        http = HttpProfile(
            protocol=self.endpoint.scheme,
            endpoint=self.endpoint.host,
            reqTimeout=(min(_CONNECT, self.timeout), max(1.0, self.timeout / 3)),
            certification=bundle,
        )
        client = CommonClient(
            self.name,
            self.version,
            self._signer,
            self.region,
            ClientProfile(httpProfile=http, language="en-US"),
        )
        url = str(self.endpoint)
        proxies = {} if self.endpoint.loopback else utils.get_environ_proxies(url)
        proxy = utils.select_proxy(url, proxies)
        client.request.conn.proxy = {"http": proxy, "https": proxy} if proxy else None
        session = client.request.conn._session  # the SDK has no public access to it
        session.trust_env = False  # otherwise requests replaces the signature by a password from ~/.netrc
        session.max_redirects = 0  # a redirect would send a plaintext key to another host
        bound(session)
        return client

    def _error(
        self, answer: Answer, action: str, operation: str, key: str | None, retried: bool, repeatable: bool
    ) -> KeyServiceError:
        code = answer.code or "InvalidAnswer"
        what = key or f"{self.name} in {self.region}"
        kind, sentence = meaning(code, answer.detail)
        again = retryable(code, answer.detail, repeatable)
        if not again and retryable(code, answer.detail, repeatable=True):
            sentence = f"{_MAYBE}: {sentence}"
        if self.name == "sts" and not again and kind is not CredentialsError:
            kind, sentence = CredentialsError, _NO_ROLE  # STS has roles, not keys
        facts: dict[str, Any] = {
            "provider": "tencent-kms",
            "operation": operation,
            "code": code,
            "request_id": answer.request_id,
            "retryable": again,
        }
        if kind in (KeyNotFoundError, KeyAccessError):
            facts["key"] = key
        if kind is CredentialsError and self._signer is not None:
            facts["tried"] = getattr(self._signer, "tried", ())
        sentence = sentence.format(
            action=f"{self.name}:{action}",
            host=self.endpoint.host,
            region=self.region,
            key=key or "the key",
            seconds=f"{self.timeout:g}",
            again=", also after retries" if retried else "",
        )
        request_id = f", request {answer.request_id}" if answer.request_id else ""
        return kind(f"{what}: {sentence} ({code}{request_id})", **facts)


_MAYBE = "it may have been executed, so check ('kmsdata keys list {region}') before you try again"
_NO_ROLE = "{action} was refused. Check the role, and who may assume it, in CAM"


class _Quiet(threading.local):
    on = False


_quiet = _Quiet()
_log = logging.getLogger("tencentcloud_sdk_common")
_DEPRECATED = ("ignore", None, DeprecationWarning, re.compile("tencentcloud"), 0)
_BUNDLES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")


def _silence(_: logging.LogRecord) -> bool:
    return not _quiet.on


def apart(work: Callable[[], _T], seconds: float) -> _T | None:
    """Run ``work`` in its own thread, and return its result, or None if it takes longer.

    So Ctrl-C works at once, even if ``work`` is blocked, and the frames of ``work`` are never part of an
    error of kmsdata. ``work`` must not raise.
    """
    results: list[_T] = []
    done = threading.Event()

    def run() -> None:
        try:
            results.append(work())
        finally:
            done.set()

    threading.Thread(target=run, name="kmsdata", daemon=True).start()
    return results[0] if done.wait(seconds) and results else None


def _send(client: Any, request: Request, signed: bool) -> Answer:
    """Send a request once. Never raises: its frames contain secrets."""
    answer = Answer()
    _quiet.on = True  # for this thread only, which belongs to this try: the SDK's log would print keys
    try:
        body = client.call(request.action, dict(request.parameters), None if signed else {"SkipSign": True})
        response = json.loads(body)["Response"]
        if not isinstance(response, dict):
            raise TypeError("no response")
        answer.request_id = _id(response.get("RequestId"))
        # The SDK (3.0.x) detects errors only if the content type has no charset.
        if (error := response.get("Error")) is not None:
            answer.code = _word(error.get("Code") if isinstance(error, dict) else None)
        else:
            answer.fill(response)
    except Exception as error:  # noqa: BLE001 - its text may contain secrets: only its name is used
        code = getattr(error, "code", None)
        answer.code = code if isinstance(code, str) and _CODE.fullmatch(code) else _fault(error)
        answer.request_id = _id(getattr(error, "requestId", None))
        if answer.code == "ClientNetworkError":
            text = str(getattr(error, "message", ""))
            answer.detail = next((word for word, pattern in _NETWORK.items() if pattern.search(text)), "")
            if _TOO_LARGE in text:
                answer.code = "InvalidAnswer"
    return answer


_TOO_LARGE = "the answer is too large"
_CODE = re.compile(r"[A-Za-z0-9_.]{1,128}")
_NETWORK = {
    "certificate": re.compile(r"certificate|SSLError|TLS CA|CERTIFICATE", re.IGNORECASE),
    "proxy": re.compile("proxy", re.IGNORECASE),
    "redirect": re.compile("redirects"),
    "name": re.compile("NameResolution|getaddrinfo|not known|resolve", re.IGNORECASE),
    "refused": re.compile("refused", re.IGNORECASE),
    "time": re.compile("timed out", re.IGNORECASE),
}


def _fault(error: Exception) -> str:
    """Return the name of an error: of the network, or InvalidAnswer if the answer could not be read."""
    name = type(error).__name__
    return name if is_fault(name) else "InvalidAnswer"


def bound(session: Any) -> None:
    """Limit the answers that a session of requests reads, so that no server fills the memory."""
    from requests import adapters, exceptions

    class Bounded(adapters.HTTPAdapter):
        def send(self, *args: Any, **options: Any) -> Any:
            response = super().send(*args, **options | {"stream": True})
            try:
                response._content = _body(response)
            except OSError:  # of requests
                raise
            except Exception as error:  # noqa: BLE001 - of urllib3, such as a connection that was closed
                raise exceptions.ChunkedEncodingError(str(error)) from None
            finally:
                response.close()
            response._content_consumed = True  # type: ignore[attr-defined]
            return response

    for scheme in ("https://", "http://"):
        session.mount(scheme, Bounded(pool_maxsize=32))


def _body(response: Any) -> bytes:
    """Read the body of an answer, at most `_MOST` bytes before and after it is decompressed."""
    body = b""
    while chunk := response.raw.read(_MOST + 1 - len(body), decode_content=False):
        body += chunk
        if len(body) > _MOST:
            raise ValueError(_TOO_LARGE)
    if response.headers.get("Content-Encoding", "").lower() in ("gzip", "deflate"):
        body = zlib.decompressobj(wbits=47).decompress(body, _MOST + 1)
        if len(body) > _MOST:
            raise ValueError(_TOO_LARGE)
    return body


def shown(text: object) -> str:
    """Return a text of the service for display: shortened, and without what a terminal would act on."""
    if not isinstance(text, str):
        return ""
    clean = "".join(
        character if character.isprintable() else "\ufffd" for character in text[: _MOST_SHOWN + 1]
    )
    return clean if len(clean) <= _MOST_SHOWN else clean[: _MOST_SHOWN - 1] + "…"


def _word(code: object) -> str:
    return code if isinstance(code, str) and _CODE.fullmatch(code) else "InvalidAnswer"


def _id(text: object) -> str | None:
    return text if isinstance(text, str) and re.fullmatch(r"[A-Za-z0-9-]{1,64}", text) else None
