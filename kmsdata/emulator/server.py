"""The emulator: the service by HTTP on loopback, with faults on request."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import socket
import struct
import threading
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
_MOST_REQUESTS = 10_000  # that are kept to be looked at


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


class Emulator(Service):
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
        super().__init__(path)
        self._rules: list[Rule] = []
        self._closing = threading.Event()
        self._open: set[socket.socket] = set()
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
        """What ``endpoint=`` takes."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
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
            self._rules.append(Rule(fault, action, region, times, after, probability))

    def heal(self) -> None:
        """Let nothing go wrong any more."""
        with self._lock:
            self._rules.clear()

    def _fault(self, action: str, region: str) -> Fault | None:
        with self._lock:
            rules = list(self._rules)
        return next((rule.fault for rule in rules if rule.takes(action, region)), None)


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
