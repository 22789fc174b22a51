"""What can go wrong between a client and a key service, to be made to happen in tests."""

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
    """One way to fail; made by its class methods, and set with `Emulator.fail`."""

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
        """Whether nothing is carried out."""
        return self.kind in ("error", "hang", "reset", "hang_up", "status", "charset", "no_request_id")

    @classmethod
    def error(cls, code: str, message: str | None = None) -> Fault:
        """An error of the service: any code, with HTTP 200, as all of its errors have."""
        return cls("error", code=code, message=message or "An injected error.")

    @classmethod
    def latency(cls, seconds: float) -> Fault:
        """The answer comes late."""
        return cls("latency", seconds=seconds)

    @classmethod
    def hang(cls) -> Fault:
        """The request is taken, and never answered."""
        return cls("hang")

    @classmethod
    def stall(cls) -> Fault:
        """Headers and half of the body come, and then nothing more."""
        return cls("stall")

    @classmethod
    def drip(cls, seconds: float) -> Fault:
        """The body comes a byte at a time, each after so many seconds."""
        return cls("drip", seconds=seconds)

    @classmethod
    def truncate(cls) -> Fault:
        """Half of the body comes, and the connection ends."""
        return cls("truncate")

    @classmethod
    def reset(cls) -> Fault:
        """The connection is reset (RST) before any answer."""
        return cls("reset")

    @classmethod
    def hang_up(cls) -> Fault:
        """The connection ends (FIN) before any answer."""
        return cls("hang_up")

    @classmethod
    def lost(cls) -> Fault:
        """The action is carried out, and its answer is lost."""
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
        """Another HTTP status, as proxies give it; ``location`` redirects."""
        headers = {"Content-Type": content_type} | ({"Location": location} if location else {})
        return cls("status", status_code=status, body=body, headers=headers)

    @classmethod
    def html(cls) -> Fault:
        """HTTP 200 and a page: a captive portal."""
        return cls.status(200, b"<!doctype html><title>Sign in</title>", "text/html; charset=utf-8")

    @classmethod
    def empty(cls) -> Fault:
        """HTTP 200 and an empty body."""
        return cls.status(200, b"")

    @classmethod
    def garbage(cls) -> Fault:
        """HTTP 200 and something that is no JSON."""
        return cls.status(200, b'{"Response": {"KeyId": \x00')

    @classmethod
    def bare(cls) -> Fault:
        """HTTP 200 and ``{}``."""
        return cls.status(200, b"{}")

    @classmethod
    def no_fields(cls) -> Fault:
        """HTTP 200 and a response without fields."""
        return cls.status(200, b'{"Response": {}}')

    @classmethod
    def charset(cls, code: str) -> Fault:
        """An error whose content type names a charset: the SDK takes it for a good answer full of None."""
        return cls("charset", code=code, message="An injected error.")

    @classmethod
    def no_request_id(cls, code: str) -> Fault:
        """An error without a request id."""
        return cls("no_request_id", code=code, message="An injected error.")

    @classmethod
    def change(cls, **fields: Any) -> Fault:
        """The action is carried out, and fields of its answer are replaced (by values, or by functions)."""
        return cls("change", fields=fields)

    @classmethod
    def gzip(cls) -> Fault:
        """The answer is compressed, which is no fault."""
        return cls("gzip")


@dataclass
class Rule:
    """A fault, and the calls that it happens to."""

    fault: Fault
    action: str | None
    region: str | None
    times: int | None
    after: int
    probability: float
    lock: threading.Lock = field(default_factory=threading.Lock)

    def takes(self, action: str, region: str) -> bool:
        """Tell whether the fault happens to a call, and count that call."""
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
