"""The emulator: HTTP on loopback, the order of checks of the service, and faults on request."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import socket
import struct
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl

from kmsdata.emulator.faults import Fault
from kmsdata.emulator.key_store import Account, Store
from kmsdata.emulator.kms_actions import (
    ACTIONS,
    REGIONS,
    STS,
    UNSUPPORTED,
    Call,
    Refusal,
    checked,
    temporary,
)
from kmsdata.emulator.tc3_signature import Authorization
from kmsdata.keys.data_key import Secret, random_bytes

__all__ = ["Emulator", "Request"]

_SKEW = 300  # seconds that a client's clock may be off
_MOST_BODY = 1 << 20
_MOST_REQUESTS = 10_000  # that are kept to be looked at
_VERSIONS = {"kms": "2019-01-18", "sts": "2018-08-13"}
_METADATA = "/latest/meta-data/cam/security-credentials/"


@dataclass(frozen=True, repr=False)
class Request:
    """A request as it came; for tests to look at. Its repr shows the action and the region alone."""

    action: str
    region: str
    headers: Mapping[str, str]
    params: Mapping[str, Any]
    connection: int

    def __repr__(self) -> str:
        return f"<{self.action} in {self.region}>"


@dataclass
class _Rule:
    """A fault, and the calls that it happens to."""

    fault: Fault
    action: str | None
    region: str | None
    times: int | None
    after: int
    probability: float
    lock: threading.Lock = field(default_factory=threading.Lock)

    def takes(self, action: str, region: str) -> bool:
        if (self.action or action, self.region or region) != (action, region):
            return False
        with self.lock:
            if self.after > 0:
                self.after -= 1
                return False
            if self.times == 0:
                return False
            if self.probability < 1 and int.from_bytes(random_bytes(4), "big") >= self.probability * 2**32:
                return False
            if self.times is not None:
                self.times -= 1
            return True


class Emulator(Secret):
    """Tencent Cloud KMS on loopback; it listens from its making until `close`, or to the end of a with block.

    Args:
        path: a file of mode 0600 that its master keys and its SecretId are kept in; None: in memory.
        port: where to listen on 127.0.0.1; 0: wherever there is room.

    Attributes:
        secret_id: SecretId of the account that it has from the start.
        secret_key: its SecretKey.
        uin: whose account that is.
        port: where it listens.
        requests: what came, in order; the last 10,000.
        calls: how often each action was called.
        connections: how many connections were made.
        qps: by action, how many calls a second are let through; none has a limit unless set.
        instance_role: name of the role that the metadata of a CVM instance give; None: no role.
        role_seconds: for which that role's credentials are good.
        web_identity_token: what a pod in TKE proves itself with.

    Raises:
        OSError: the port is taken.
        KeyServiceError: another emulator has the file.
        FormatError: it is not such a file.

    Example:
        >>> import kmsdata
        >>> from kmsdata.emulator import Emulator
        >>> with Emulator() as emulator:  # doctest: +SKIP
        ...     pair = emulator.secret_id, emulator.secret_key
        ...     kms = kmsdata.TencentKMS("ap-guangzhou", credential=pair, endpoint=emulator.url)
        ...     kms.create_key("payroll")
        'tencent-kms://ap-guangzhou/...'
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, port: int = 0) -> None:
        self._store = Store(None if path is None else Path(path))
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._open: set[socket.socket] = set()
        self._buckets: dict[str, tuple[float, float]] = {}
        self.secret_id, self.secret_key = self._store.secret_id, self._store.secret_key
        self.uin = self._store.accounts[self.secret_id].uin
        self.requests: list[Request] = []
        self.calls: Counter[str] = Counter()
        self.connections = 0
        self.qps: dict[str, float] = {}
        self.instance_role: str | None = None
        self.role_seconds = 7200.0
        self.web_identity_token = random_bytes(16).hex()
        self.port = port
        self._server: _Server | None = None
        try:
            self.listen()
        except BaseException:
            self._store.close()
            raise

    @property
    def url(self) -> str:
        """What ``endpoint=`` takes."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Emulator at {self.url}>"

    # Listening.

    def listen(self) -> None:
        """Listen again, where it did not, on the same port."""
        if self._server is None:
            try:
                self._server = _Server(("127.0.0.1", self.port), _Handler)
            except OSError as error:
                where = f"cannot listen at 127.0.0.1:{self.port} ({error.strerror}): name another port"
                raise OSError(error.errno, where) from None
            self._server.emulator = self
            self.port = self._server.server_address[1]
            threading.Thread(
                target=self._server.serve_forever, args=(0.02,), name="kmsdata-emulator", daemon=True
            ).start()

    def stop_listening(self) -> None:
        """Refuse connections, and end those there are."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop for good; what hangs is let go, and another process can have the file."""
        self._closing.set()
        self.stop_listening()
        self._store.close()

    # Accounts, clock and faults.

    def add_account(
        self,
        secret_id: str,
        secret_key: str,
        *,
        token: str | None = None,
        uin: str | None = None,
        allow: set[str] | None = None,
        expires: float | None = None,
    ) -> None:
        """Let in another SecretId.

        Args:
            secret_id: letters and digits.
            secret_key: its key.
            token: that it must give, where it is temporary.
            uin: whose it is: accounts of one uin share keys; None: the first account's.
            allow: names of the actions that it may do, or ``"Action@KeyId"``; None: all.
            expires: seconds from now, by the emulator's clock.
        """
        end = None if expires is None else self._store.now + expires
        permitted = None if allow is None else frozenset(allow)
        account = Account(secret_key, token=token, uin=uin or self.uin, allow=permitted, expires=end)
        self._store.accounts[secret_id] = account

    def remove_account(self, secret_id: str) -> None:
        """Let a SecretId in no longer."""
        del self._store.accounts[secret_id]

    def advance(self, seconds: float) -> None:
        """Set its clock forward; clients whose clock stays are off by that much."""
        self._store.offset += seconds

    def fail(
        self,
        fault: Fault,
        *,
        action: str | None = None,
        region: str | None = None,
        times: int | None = 1,
        after: int = 0,
        probability: float = 1.0,
    ) -> None:
        """Make something go wrong; of several faults, the first that takes a call happens to it.

        Args:
            fault: what.
            action: to calls of this action; None: of any.
            region: to calls in this region; None: in any.
            times: how often; None: for ever.
            after: how many such calls go well before.
            probability: how likely each such call fails.
        """
        with self._lock:
            self._rules.append(_Rule(fault, action, region, times, after, probability))

    def heal(self) -> None:
        """Let nothing go wrong any more."""
        with self._lock:
            self._rules.clear()

    # One request.

    def _fault(self, action: str, region: str) -> Fault | None:
        with self._lock:
            rules = list(self._rules)
        return next((rule.fault for rule in rules if rule.takes(action, region)), None)

    def _throttled(self, action: str) -> bool:
        rate = self.qps.get(action)
        if rate is None:
            return False
        with self._lock:
            now = time.monotonic()
            tokens, since = self._buckets.get(action, (rate, now))
            tokens = min(rate, tokens + (now - since) * rate)
            self._buckets[action] = (max(0.0, tokens - 1), now)
            return tokens < 1

    def _answer(self, method: str, query: str, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        """The response to a request: fields, or a Refusal."""
        account = self._authenticated(method, query, headers, body)
        action, region = headers.get("x-tc-action", ""), headers.get("x-tc-region", "")
        actions = ACTIONS if headers.get("x-tc-version") == _VERSIONS["kms"] else STS
        if headers.get("x-tc-version") not in _VERSIONS.values():
            raise Refusal("NoSuchVersion")
        if action in UNSUPPORTED:
            raise Refusal("UnsupportedOperation", "The emulator does not have this action.")
        if action not in actions:
            raise Refusal("InvalidAction", f"The action {action[:64]!r} is not found.")
        if actions is ACTIONS and not region:
            raise Refusal("MissingParameter", "The request is missing a required parameter `X-TC-Region`.")
        if actions is ACTIONS and region not in REGIONS:
            raise Refusal("UnsupportedRegion")
        if self._throttled(action):
            rate = self.qps[action]
            raise Refusal(
                "RequestLimitExceeded",
                f"Your current request times equals to `{rate + 1:g}` in a second, which exceeds the "
                f"frequency limit `{rate:g}` for a second. Please reduce the frequency of calls.",
            )
        carry_out, fields, required = actions[action]
        params = checked(action, fields, required, _params(method, query, body))
        if account is None:  # a pod, which signs nothing
            if action != "AssumeRoleWithWebIdentity" or params["WebIdentityToken"] != self.web_identity_token:
                raise Refusal("AuthFailure.InvalidAuthorization")
            account = self._store.accounts[self.secret_id]
        with self._store.lock:
            answer = carry_out(Call(self._store, account, region, action, params))
            self._store.save()
        return answer

    def _authenticated(
        self, method: str, query: str, headers: Mapping[str, str], body: bytes
    ) -> Account | None:
        if headers.get("authorization") == "SKIP":
            return None
        given = Authorization.parse(headers.get("authorization", ""))
        if given is None:
            raise Refusal("AuthFailure.InvalidAuthorization")
        account = self._store.accounts.get(given.secret_id)
        if account is None:
            raise Refusal("AuthFailure.SecretIdNotFound")
        ended = account.expires is not None and self._store.now >= account.expires
        if (headers.get("x-tc-token") or None) != account.token or ended:
            raise Refusal("AuthFailure.TokenFailure")
        timestamp = headers.get("x-tc-timestamp", "")
        if not timestamp.isdigit() or abs(self._store.now - int(timestamp[:12])) > _SKEW:
            raise Refusal("AuthFailure.SignatureExpire")
        service = "sts" if headers.get("x-tc-version") == _VERSIONS["sts"] else "kms"
        if given.service != service or not given.good(account.secret_key, method, query, headers, body):
            raise Refusal("AuthFailure.SignatureFailure")
        return account

    def _metadata(self, path: str) -> bytes | None:
        """What the metadata service of a CVM instance says of its role; None: nothing there."""
        if self.instance_role is None or not path.startswith(_METADATA):
            return None
        if path == _METADATA:
            return self.instance_role.encode()
        if path != _METADATA + self.instance_role:
            return None
        made = temporary(self._store, self.uin, None, self.role_seconds)
        return json.dumps(
            {**made["Credentials"], "ExpiredTime": made["ExpiredTime"], "Code": "Success"}
        ).encode()


def _params(method: str, query: str, body: bytes) -> object:
    if method == "POST":
        try:
            return json.loads(body)
        except ValueError:
            return None
    found: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        head, _, number = name.partition(".")
        if number:
            found.setdefault(head, []).append(text)
        else:
            found[name] = int(text) if text.isdigit() else text
    return found


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    emulator: Emulator

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients go away as they like."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "kmsdata-emulator"
    sys_version = ""
    disable_nagle_algorithm = True
    timeout = 300
    server: _Server

    def setup(self) -> None:
        super().setup()
        emulator = self.server.emulator
        with emulator._lock:
            emulator.connections += 1
            emulator._open.add(self.connection)
            self.number = emulator.connections

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()
        with self.server.emulator._lock:
            self.server.emulator._open.discard(self.connection)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the standard library
        """Nothing: requests hold keys."""

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "0")
        size = int(length) if length.isdigit() else 0
        if size > _MOST_BODY:
            self._respond(413, {"Content-Type": "text/plain"}, b"")
            self.close_connection = True
            return
        self._handle("POST", self.rfile.read(size))

    def do_GET(self) -> None:
        if self.path.startswith("/latest/"):
            found = self.server.emulator._metadata(self.path)
            self._respond(404 if found is None else 200, {"Content-Type": "text/plain"}, found or b"")
            return
        self._handle("GET", b"")

    def _handle(self, method: str, body: bytes) -> None:
        emulator = self.server.emulator
        headers = {name.lower(): text for name, text in self.headers.items()}
        path, _, query = self.path.partition("?")
        action, region = headers.get("x-tc-action", ""), headers.get("x-tc-region", "")
        params = _params(method, query, body)
        request = Request(action, region, headers, params if isinstance(params, dict) else {}, self.number)
        with emulator._lock:
            emulator.requests.append(request)
            del emulator.requests[:-_MOST_REQUESTS]
            emulator.calls[action] += 1
        fault = emulator._fault(action, region)
        if fault is not None and fault.before:
            self._fail(fault)
            return
        try:
            if path != "/":
                raise Refusal("InvalidAction")
            response = emulator._answer(method, query, headers, body)
        except Refusal as refusal:
            self._error(refusal.code, refusal.message)
            return
        except OSError as error:  # its file cannot be written
            self._error("InternalError", error.strerror or "")
            return
        if fault is not None and fault.kind == "change":
            response = response | {
                name: value(response.get(name)) if callable(value) else value
                for name, value in fault.fields.items()
            }
        self._good(response, fault)

    def _good(self, response: Mapping[str, Any], fault: Fault | None) -> None:
        body = json.dumps({"Response": {**response, "RequestId": _request_id()}}).encode()
        kind = None if fault is None else fault.kind
        headers = {"Content-Type": "application/json"}
        if fault is None or kind == "change":
            self._respond(200, headers, body)
        elif kind == "latency":
            self.server.emulator._closing.wait(fault.seconds)
            self._respond(200, headers, body)
        elif kind == "gzip":
            self._respond(200, headers | {"Content-Encoding": "gzip"}, gzip.compress(body))
        elif kind == "lost":
            self.close_connection = True
        else:
            self._partly(headers, body, fault)

    def _partly(self, headers: Mapping[str, str], body: bytes, fault: Fault) -> None:
        """Headers, and not all of the body, or not at once."""
        self.close_connection = True
        half = b"" if fault.kind == "drip" else body[: len(body) // 2]
        self._respond(200, headers, half, length=len(body))
        self.wfile.flush()
        closing = self.server.emulator._closing
        if fault.kind == "stall":
            closing.wait()
        elif fault.kind == "drip":
            for byte in body:
                if closing.wait(fault.seconds):
                    return
                try:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                except OSError:
                    return

    def _fail(self, fault: Fault) -> None:
        if fault.kind == "error":
            self._error(fault.code, fault.message)
        elif fault.kind == "charset":
            self._error(fault.code, fault.message, content_type="application/json; charset=utf-8")
        elif fault.kind == "no_request_id":
            self._error(fault.code, fault.message, request_id=False)
        elif fault.kind == "status":
            self._respond(fault.status_code, fault.headers, fault.body)
        else:
            self.close_connection = True
            if fault.kind == "hang":
                self.server.emulator._closing.wait()
            elif fault.kind == "reset":  # a socket that does not linger is reset when it is closed
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

    def _error(
        self, code: str, message: str, *, content_type: str = "application/json", request_id: bool = True
    ) -> None:
        response: dict[str, Any] = {"Error": {"Code": code, "Message": message}}
        if request_id:
            response["RequestId"] = _request_id()
        self._respond(200, {"Content-Type": content_type}, json.dumps({"Response": response}).encode())

    def _respond(
        self, status: int, headers: Mapping[str, str], body: bytes, *, length: int | None = None
    ) -> None:
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)


def _request_id() -> str:
    return str(uuid.UUID(bytes=random_bytes(16), version=4))
