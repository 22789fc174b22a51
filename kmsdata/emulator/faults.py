"""Faults between a client and a key service that tests can inject."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from kmsdata.keys.data_key import random_bytes

__all__ = ["Fault", "Rule"]

Kind: TypeAlias = Literal[
    "error", "latency", "hang", "stall", "truncate", "drip", "reset", "hang_up", "lost", "status", "charset",
    "no_request_id", "change", "gzip",
]  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One way to fail: made by a class method, injected with `Emulator.fail`."""

    kind: Kind
    code: str = ""
    message: str = ""
    seconds: float = 0.0
    status_code: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    fields: dict[str, Any | Callable[[Any], Any]] = field(default_factory=dict)

    @property
    def before(self) -> bool:
        """Whether the fault happens before the action, so that the action is not carried out."""
        return self.kind in ("error", "hang", "reset", "hang_up", "status", "charset", "no_request_id")

    @classmethod
    def error(cls, code: str, message: str | None = None) -> Fault:
        """Return an error of the service with this code. Like all its errors, it has HTTP status 200."""
        return cls("error", code=code, message=message or "An injected error.")

    @classmethod
    def latency(cls, seconds: float) -> Fault:
        """Delay the answer."""
        return cls("latency", seconds=seconds)

    @classmethod
    def hang(cls) -> Fault:
        """Accept the request and never answer."""
        return cls("hang")

    @classmethod
    def stall(cls) -> Fault:
        """Send the headers and half of the body, then nothing more."""
        return cls("stall")

    @classmethod
    def drip(cls, seconds: float) -> Fault:
        """Send the body one byte at a time, and wait ``seconds`` before each."""
        return cls("drip", seconds=seconds)

    @classmethod
    def truncate(cls) -> Fault:
        """Send half of the body, then close the connection."""
        return cls("truncate")

    @classmethod
    def reset(cls) -> Fault:
        """Reset the connection (RST) without an answer."""
        return cls("reset")

    @classmethod
    def hang_up(cls) -> Fault:
        """Close the connection (FIN) without an answer."""
        return cls("hang_up")

    @classmethod
    def lost(cls) -> Fault:
        """Carry out the action, and send no answer."""
        return cls("lost")

    @classmethod
    def status(
        cls,
        status: int,
        body: bytes = b"{}",
        content_type: str = "application/json",
        *,
        location: str | None = None,
    ) -> Fault:
        """Answer with another HTTP status, as proxies do; ``location`` redirects."""
        headers = {"Content-Type": content_type} | ({"Location": location} if location else {})
        return cls("status", status_code=status, body=body, headers=headers)

    @classmethod
    def html(cls) -> Fault:
        """Answer with HTTP 200 and a web page, like a captive portal."""
        return cls.status(200, b"<!doctype html><title>Sign in</title>", "text/html; charset=utf-8")

    @classmethod
    def empty(cls) -> Fault:
        """Answer with HTTP 200 and an empty body."""
        return cls.status(200, b"")

    @classmethod
    def garbage(cls) -> Fault:
        """Answer with HTTP 200 and a body that is not JSON."""
        return cls.status(200, b'{"Response": {"KeyId": \x00')

    @classmethod
    def bare(cls) -> Fault:
        """Answer with HTTP 200 and ``{}``."""
        return cls.status(200, b"{}")

    @classmethod
    def no_fields(cls) -> Fault:
        """Answer with HTTP 200 and a response without fields."""
        return cls.status(200, b'{"Response": {}}')

    @classmethod
    def charset(cls, code: str) -> Fault:
        """Return an error whose content type has a charset: the SDK reads it as success with empty fields."""
        return cls("charset", code=code, message="An injected error.")

    @classmethod
    def no_request_id(cls, code: str) -> Fault:
        """Return an error without a request id."""
        return cls("no_request_id", code=code, message="An injected error.")

    @classmethod
    def change(cls, **fields: Any) -> Fault:
        """Carry out the action, and replace fields of its answer (by values or functions)."""
        return cls("change", fields=fields)

    @classmethod
    def gzip(cls) -> Fault:
        """Compress the answer; clients must accept this."""
        return cls("gzip")


@dataclass
class Rule:
    """A fault, and the calls it applies to."""

    fault: Fault
    action: str | None
    region: str | None
    times: int | None
    after: int
    probability: float
    lock: threading.Lock = field(default_factory=threading.Lock)

    def takes(self, action: str, region: str) -> bool:
        """Return whether the fault applies to a call, and count the call."""
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
