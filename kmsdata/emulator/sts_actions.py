"""The actions of STS, the service that issues temporary credentials."""

from __future__ import annotations

from typing import Any

from kmsdata.emulator.key_store import Account, Store
from kmsdata.emulator.kms_actions import Action, Call
from kmsdata.keys.data_key import random_bytes

__all__ = ["STS", "temporary"]

_MOST_ACCOUNTS = 1000  # temporary ones


def _assumed(call: Call) -> dict[str, Any]:
    return temporary(
        call.store, call.account.uin, call.account.allow, call.params.get("DurationSeconds", 7200)
    )


def temporary(store: Store, uin: str, allow: frozenset[str] | None, seconds: float) -> dict[str, Any]:
    """Make credentials that expire, in the form that STS returns."""
    # Any process of this machine may ask for an instance's credentials as often as it likes.
    issued = [name for name, account in store.accounts.items() if account.expires is not None]
    for name in issued[: 1 - _MOST_ACCOUNTS]:
        del store.accounts[name]
    secret_id, secret_key = f"AKID{random_bytes(24).hex()}", random_bytes(16).hex()
    token, end = random_bytes(32).hex(), store.now + seconds
    store.accounts[secret_id] = Account(secret_key, token=token, uin=uin, allow=allow, expires=end)
    return {
        "Credentials": {"Token": token, "TmpSecretId": secret_id, "TmpSecretKey": secret_key},
        "ExpiredTime": int(end), "Expiration": "",
    }  # fmt: skip


_ROLE: dict[str, type] = {"RoleArn": str, "RoleSessionName": str, "DurationSeconds": int, "Policy": str}
STS: dict[str, Action] = {
    "AssumeRole": (_assumed, _ROLE | {"ExternalId": str}, {"RoleArn", "RoleSessionName"}),
    "AssumeRoleWithWebIdentity": (
        _assumed,
        _ROLE | {"ProviderId": str, "WebIdentityToken": str},
        {"ProviderId", "WebIdentityToken", "RoleArn", "RoleSessionName"},
    ),
}
