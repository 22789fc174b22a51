"""The emulated service without HTTP: accounts, clock, quotas, and the checks of a request, in order."""

from __future__ import annotations

import hmac
import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from kmsdata.emulator.key_store import Account, Store
from kmsdata.emulator.kms_actions import ACTIONS, REGIONS, UNSUPPORTED, Call, Refusal, checked
from kmsdata.emulator.sts_actions import STS, temporary
from kmsdata.emulator.tc3_signature import Authorization
from kmsdata.keys.data_key import Secret, random_bytes

__all__ = ["Service", "parameters"]

_SKEW = 300  # seconds by which a client's clock may differ
_VERSIONS = {"kms": "2019-01-18", "sts": "2018-08-13"}
_METADATA = "/latest/meta-data/cam/security-credentials/"


class Service(Secret):
    """Answer requests to KMS, STS and the metadata of a CVM instance; `Emulator` adds HTTP."""

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self._store = Store(None if path is None else Path(path))
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}
        self.secret_id, self.secret_key = self._store.secret_id, self._store.secret_key
        self.uin = self._store.accounts[self.secret_id].uin
        self.qps: dict[str, float] = {}
        self.instance_role: str | None = None
        self.role_seconds = 7200.0
        self.web_identity_token = random_bytes(16).hex()

    # Accounts and clock.

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
        """Add another SecretId.

        Args:
            secret_id: A-Z, a-z and 0-9.
            secret_key: its key.
            token: the session token it must send, if it is temporary.
            uin: the account it belongs to: SecretIds of one uin share keys; None: the first account.
            allow: names of the actions it may use, or ``"Action@KeyId"``; None: all.
            expires: seconds from now, by the emulator's clock.
        """
        end = None if expires is None else self._store.now + expires
        permitted = None if allow is None else frozenset(allow)
        account = Account(secret_key, token=token, uin=uin or self.uin, allow=permitted, expires=end)
        self._store.accounts[secret_id] = account

    def remove_account(self, secret_id: str) -> None:
        """Remove a SecretId: its requests are rejected from now on."""
        del self._store.accounts[secret_id]

    def advance(self, seconds: float) -> None:
        """Set the emulator's clock forward; the clocks of clients then differ by ``seconds``."""
        self._store.offset += seconds

    # One request.

    def _throttled(self, action: str) -> bool:
        rate = self.qps.get(action)
        if rate is None:
            return False
        with self._lock:
            now = time.monotonic()
            tokens, since = self._buckets.get(action, (rate, now))
            tokens = min(rate, tokens + (now - since) * rate)
            self._buckets[action] = (max(0.0, tokens - 1), now)  # a token bucket: bursts up to one second
            return tokens < 1

    def _answer(self, account: Account, headers: Mapping[str, str], given: object) -> dict[str, Any]:
        """Return the fields of the response to an authenticated request, or raise Refusal."""
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
        params = checked(action, fields, required, given)
        with self._store.lock:
            answer = carry_out(Call(self._store, account, region, action, params))
            self._store.save()
        return answer

    def _authenticated(self, method: str, query: str, headers: Mapping[str, str], body: bytes) -> Account:
        if headers.get("authorization") == "SKIP":  # a pod does not sign its requests
            given = parameters(method, query, body)
            token = given.get("WebIdentityToken") if isinstance(given, dict) else None
            good = isinstance(token, str) and hmac.compare_digest(
                token.encode("utf-8", "replace"), self.web_identity_token.encode()
            )
            if not good or headers.get("x-tc-action") != "AssumeRoleWithWebIdentity":
                raise Refusal("AuthFailure.InvalidAuthorization")
            return self._store.accounts[self.secret_id]
        signed = Authorization.parse(headers.get("authorization", ""))
        if signed is None:
            raise Refusal("AuthFailure.InvalidAuthorization")
        account = self._store.accounts.get(signed.secret_id)
        if account is None:
            raise Refusal("AuthFailure.SecretIdNotFound")
        ended = account.expires is not None and self._store.now >= account.expires
        if (headers.get("x-tc-token") or None) != account.token or ended:
            raise Refusal("AuthFailure.TokenFailure")
        timestamp = headers.get("x-tc-timestamp", "")
        if not timestamp.isdigit() or abs(self._store.now - int(timestamp[:12])) > _SKEW:
            raise Refusal("AuthFailure.SignatureExpire")
        service = "sts" if headers.get("x-tc-version") == _VERSIONS["sts"] else "kms"
        if signed.service != service or not signed.good(account.secret_key, method, query, headers, body):
            raise Refusal("AuthFailure.SignatureFailure")
        return account

    def _metadata(self, path: str) -> bytes | None:
        """Return what the metadata service of a CVM instance has at this path; None if nothing."""
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


def parameters(method: str, query: str, body: bytes) -> object:
    """Return the parameters of a request, from its body or its query; None if the body is not JSON."""
    if method == "POST":
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            return None
    found: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        head, _, number = name.partition(".")
        if number:
            found.setdefault(head, []).append(text)
        else:
            found[name] = int(text) if text.isdigit() else text
    return found
