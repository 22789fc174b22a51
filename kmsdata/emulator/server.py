"""The emulator: the service over HTTP on loopback, with faults on request."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import os
import re
import socket
import struct
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from kmsdata.emulator.faults import Fault, Rule
from kmsdata.emulator.kms_actions import Refusal
from kmsdata.emulator.kms_service import Service, parameters
from kmsdata.keys.data_key import random_bytes

__all__ = ["Emulator", "Request"]

_MOST_BODY = 1 << 20
_MOST_REQUESTS = 10_000  # kept for inspection
_MOST_CONNECTIONS = 512  # at the same time
_SECONDS = 30.0  # for a client to send a request, and between two requests of a connection


_NAMES = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True, repr=False)
class Request:
    """A request as received, for tests to inspect. Its repr shows only the action and the region."""

    action: str
    region: str
    headers: Mapping[str, str]
    params: Mapping[str, Any]
    connection: int

    def __repr__(self) -> str:
        return f"<{self.action} in {self.region}>"


class Emulator(Service):
    """Tencent Cloud KMS on loopback. Listens from its creation until `close` or the end of a with block.

    Args:
        path: a file of mode 0600 for its master keys and its SecretId; None: in memory only.
        port: the port on 127.0.0.1; 0: any free port.

    Attributes:
        secret_id: SecretId of its first account.
        secret_key: SecretKey of its first account.
        uin: uin of its first account.
        port: the port it listens on.
        requests: the last 10,000 authenticated requests, in order.
        calls: number of authenticated calls of each action.
        connections: number of connections made.
        qps: by action, the number of calls allowed per second; not limited unless set.
        instance_role: name of the role in the metadata of a CVM instance; None: no role.
        role_seconds: lifetime of that role's credentials.
        web_identity_token: the token by which a pod in TKE authenticates.

    Raises:
        OSError: the port is in use.
        KeyServiceError: another emulator uses the file.
        FormatError: the file is not a state file of the emulator.

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
        super().__init__(path)
        self._rules: list[Rule] = []
        self._closing = threading.Event()
        self._open: dict[socket.socket, float] = {}  # until when the client must have sent its request
        self.requests: list[Request] = []
        self.calls: Counter[str] = Counter()
        self.connections = 0
        self.port = port
        self._server: _Server | None = None
        try:
            self.listen()
        except BaseException:
            self._store.close()
            raise

    @property
    def url(self) -> str:
        """The URL to pass as ``endpoint=``."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Emulator at {self.url}>"

    # Listening.

    def listen(self) -> None:
        """Listen again on the same port, if it does not listen."""
        if self._server is None:
            try:
                self._server = _Server(("127.0.0.1", self.port), _Handler)
            except OSError as error:
                where = f"cannot listen at 127.0.0.1:{self.port} ({error.strerror}): use another port"
                raise OSError(error.errno, where) from None
            self._server.emulator = self
            self.port = self._server.server_address[1]
            threading.Thread(
                target=self._server.serve_forever, args=(0.02,), name="kmsdata-emulator", daemon=True
            ).start()

    def stop_listening(self) -> None:
        """Refuse new connections and close the open ones."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop permanently: end hanging requests, and let another process use the file."""
        self._closing.set()
        self.stop_listening()
        self._store.close()

    # Faults.

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
        """Inject a fault; if several faults apply to a call, the first one is used.

        Args:
            fault: the fault.
            action: the action it applies to; None: all.
            region: the region it applies to; None: all.
            times: how often it happens; None: without limit.
            after: number of such calls that succeed before.
            probability: probability that such a call fails.
        """
        with self._lock:
            self._rules.append(Rule(fault, action, region, times, after, probability))

    def heal(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._rules.clear()

    def _fault(self, action: str, region: str) -> Fault | None:
        with self._lock:
            rules = list(self._rules)
        return next((rule.fault for rule in rules if rule.takes(action, region)), None)


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # hanging requests must not keep the process alive
    request_queue_size = 128  # the default of 5 is too small for clients with many threads
    emulator: Emulator

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in its own thread, unless there are too many."""
        if len(self.emulator._open) >= _MOST_CONNECTIONS:
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Close connections whose clients are too slow; the standard library calls this often."""
        now = time.monotonic()
        with self.emulator._lock:
            for connection, end in self.emulator._open.items():
                if now > end:
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore errors of a connection: clients may disconnect at any time."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "kmsdata-emulator"
    sys_version = ""
    disable_nagle_algorithm = True  # otherwise headers and body, sent separately, may wait 40 ms
    timeout = 300  # of one send or receive; `_SECONDS` is for a whole request
    server: _Server

    def setup(self) -> None:
        super().setup()
        emulator = self.server.emulator
        with emulator._lock:
            emulator.connections += 1
            emulator._open[self.connection] = time.monotonic() + _SECONDS
            self.number = emulator.connections

    def finish(self) -> None:
        with contextlib.suppress(OSError):  # flushing fails if the client has disconnected
            super().finish()
        with self.server.emulator._lock:
            self.server.emulator._open.pop(self.connection, None)

    def handle_one_request(self) -> None:
        self._until(time.monotonic() + _SECONDS)
        super().handle_one_request()

    def _until(self, end: float) -> None:
        with self.server.emulator._lock:
            if self.connection in self.server.emulator._open:
                self.server.emulator._open[self.connection] = end

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the standard library
        """Log nothing: requests contain keys."""

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        size = int(length) if re.fullmatch("[0-9]{1,9}", length) else None
        if size is None or size > _MOST_BODY or "Transfer-Encoding" in self.headers:
            self._reject(413 if size is not None and size > _MOST_BODY else 411)
        elif self._for_here():
            self._handle("POST", self.rfile.read(size))

    def do_GET(self) -> None:
        if not self._for_here():
            return
        if self.path.startswith("/latest/"):
            self._until(math.inf)
            found = self.server.emulator._metadata(self.path)
            self._respond(404 if found is None else 200, {"Content-Type": "text/plain"}, found or b"")
            return
        self._handle("GET", b"")

    def _for_here(self) -> bool:
        """Reject requests of web pages, whose names lead here by DNS rebinding: only their Host shows it."""
        port = self.server.emulator.port
        hosts = self.headers.get_all("Host") or []
        if len(hosts) == 1 and hosts[0].lower() in {f"{name}:{port}" for name in _NAMES}:
            return True
        self._reject(421)
        return False

    def _reject(self, status: int) -> None:
        self._respond(status, {"Content-Type": "text/plain"}, b"")
        self.close_connection = True

    def _handle(self, method: str, body: bytes) -> None:
        self._until(math.inf)  # it has sent its request
        emulator = self.server.emulator
        headers = {name.lower(): text for name, text in self.headers.items()}
        path, _, query = self.path.partition("?")
        action, region = headers.get("x-tc-action", ""), headers.get("x-tc-region", "")
        try:  # before anything of the request is kept
            account = emulator._authenticated(method, query, headers, body)
        except Refusal as refusal:
            self._error(refusal.code, refusal.message)
            return
        params = parameters(method, query, body)
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
            response = emulator._answer(account, headers, params)
        except Refusal as refusal:
            self._error(refusal.code, refusal.message)
            return
        except OSError as error:  # the state file cannot be written
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
        """Send the headers and a part of the body, or the body slowly."""
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
            elif fault.kind == "reset":  # close() sends RST if the linger time is 0
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
