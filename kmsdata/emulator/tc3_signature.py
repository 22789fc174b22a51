"""Check TC3-HMAC-SHA256 signatures as Tencent Cloud does."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

__all__ = ["Authorization", "signature"]

_FORM = re.compile(
    r"TC3-HMAC-SHA256 Credential=(?P<id>[^/\s,]+)/(?P<date>\d{4}-\d\d-\d\d)/(?P<service>[a-z]+)/tc3_request, "
    r"SignedHeaders=(?P<headers>[a-z0-9;-]+), Signature=(?P<signature>[0-9a-f]{64})"
)


class Authorization(NamedTuple):
    """The parts of an ``Authorization`` header."""

    secret_id: str
    date: str
    service: str
    headers: tuple[str, ...]
    signature: str

    @classmethod
    def parse(cls, text: str) -> Authorization | None:
        """Parse a header; return None if it is not a TC3 header."""
        found = _FORM.fullmatch(text)
        if found is None:
            return None
        signed = tuple(found["headers"].split(";"))
        return cls(found["id"], found["date"], found["service"], signed, found["signature"])

    def good(self, secret_key: str, method: str, query: str, headers: Mapping[str, str], body: bytes) -> bool:
        """Return whether the signature matches the request.

        Args:
            secret_key: the key of the SecretId.
            method: ``GET`` or ``POST``.
            query: the part of the URL after ``?``.
            headers: as received, by lower-case name.
            body: as received.
        """
        if not {"content-type", "host"} <= set(self.headers) or any(
            name not in headers for name in self.headers
        ):
            return False
        timestamp = headers.get("x-tc-timestamp", "")
        if not timestamp.isdigit() or len(timestamp) > 12:
            return False
        if datetime.fromtimestamp(int(timestamp), UTC).strftime("%Y-%m-%d") != self.date:
            return False
        signed = {name: headers[name] for name in self.headers}
        unsigned = headers.get("x-tc-content-sha256") == "UNSIGNED-PAYLOAD"
        payload = b"UNSIGNED-PAYLOAD" if unsigned else b"" if method == "GET" else body
        expected = signature(
            secret_key,
            self.date,
            self.service,
            timestamp,
            method,
            query if method == "GET" else "",
            signed,
            payload,
        )
        return hmac.compare_digest(expected, self.signature)


def signature(
    secret_key: str,
    date: str,
    service: str,
    timestamp: str,
    method: str,
    query: str,
    headers: Mapping[str, str],
    payload: bytes,
) -> str:
    """Return the signature of a request in hexadecimal; ``headers`` are the signed ones, in order."""
    names = ";".join(headers)
    lines = "".join(f"{name}:{text}\n" for name, text in headers.items())
    canonical = f"{method}\n/\n{query}\n{lines}\n{names}\n{hashlib.sha256(payload).hexdigest()}"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = f"TC3-HMAC-SHA256\n{timestamp}\n{date}/{service}/tc3_request\n{digest}"
    key = f"TC3{secret_key}".encode()
    for part in (date, service, "tc3_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, text.encode(), "sha256").hex()
