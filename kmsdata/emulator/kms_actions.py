"""The actions of KMS with their fields, limits, key states and error codes."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from kmsdata.emulator.key_store import Account, MasterKey, Store
from kmsdata.keys.data_key import random_bytes

__all__ = ["ACTIONS", "REGIONS", "UNSUPPORTED", "Action", "Call", "Refusal", "checked"]

REGIONS = [
    "ap-bangkok", "ap-beijing", "ap-chengdu", "ap-chongqing", "ap-guangzhou", "ap-hongkong", "ap-jakarta",
    "ap-mumbai", "ap-nanjing", "ap-seoul", "ap-shanghai", "ap-singapore", "ap-tokyo", "eu-frankfurt",
    "na-ashburn", "na-siliconvalley", "sa-saopaulo",
]  # fmt: skip
_MOST_KEYS = 200
_STATES = ["", "Enabled", "Disabled", "PendingDelete", "PendingImport", "Archived"]
_ALIAS = re.compile(r"(?!kms-)[A-Za-z0-9][A-Za-z0-9_-]{0,59}")
_KEY_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Refusal(Exception):  # noqa: N818 - an answer of the service, not an error of the emulator
    """An error answer of the service: its code and message."""

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(code)
        self.code, self.message = code, message or f"{code}."


class Call(NamedTuple):
    """One call: account, region, action and parameters."""

    store: Store
    account: Account
    region: str
    action: str
    params: Mapping[str, Any]

    def key(self, *states: str, refuse: str = "ResourceUnavailable.CmkStateNotSupport") -> MasterKey:
        """Return the key of the call, which must be in one of these states."""
        key_id = self.params["KeyId"]
        if not _KEY_ID.fullmatch(key_id):
            raise Refusal("InvalidParameterValue.InvalidKeyId")
        found = [key for key in self.keys if key.key_id == key_id]
        self.allowed(key_id)
        if not found:
            raise Refusal("ResourceUnavailable.CmkNotFound")
        if states and found[0].state not in states:
            raise Refusal(_BY_STATE.get(found[0].state, refuse) if refuse == "use" else refuse)
        return found[0]

    @property
    def keys(self) -> list[MasterKey]:
        """The account's keys in this region."""
        return self.store.of(self.account.uin, self.region)

    def allowed(self, key_id: str = "") -> None:
        """Raise Refusal if the account may not use this action, with this key or with all keys."""
        if not self.account.may(self.action, key_id):
            raise Refusal(
                "UnauthorizedOperation", f"you are not authorized to perform operation ({self.action})"
            )


_BY_STATE = {
    "Disabled": "ResourceUnavailable.CmkDisabled",
    "Archived": "ResourceUnavailable.CmkArchived",
    "PendingDelete": "ResourceUnavailable.KeyPendingDelete",
}
Action: TypeAlias = "tuple[Callable[[Call], dict[str, Any]], dict[str, type], set[str]]"


def checked(action: str, fields: Mapping[str, type], required: set[str], params: object) -> dict[str, Any]:
    """Check the parameters of an action and return them.

    Raises:
        Refusal: not an object; or a field is missing, unknown or of another type.
    """
    if not isinstance(params, dict):
        raise Refusal("InvalidParameter", "The body is not a JSON object.")
    for name in sorted(required - params.keys()):
        raise Refusal("MissingParameter", f"The request is missing a required parameter `{name}`.")
    for name, value in params.items():
        if name not in fields:
            raise Refusal("UnknownParameter", f"The parameter `{name}` is not recognized by {action}.")
        if type(value) is not fields[name]:  # type(), because True is an instance of int
            raise Refusal("InvalidParameter", f"Parameter `{name}` is of the wrong type.")
    return params


def _metadata(key: MasterKey) -> dict[str, Any]:
    return {
        "KeyId": key.key_id, "Alias": key.alias, "CreateTime": key.created, "Description": key.description,
        "KeyState": key.state, "KeyUsage": "ENCRYPT_DECRYPT", "Type": 2, "CreatorUin": int(key.uin),
        "KeyRotationEnabled": bool(key.rotate_days), "Owner": "user",
        "NextRotateTime": (key.rotated or key.created) + 86400 * (key.rotate_days or 365),
        "DeletionDate": key.deletion, "Origin": "TENCENT_KMS", "ValidTo": 0,
        "ResourceId": f"creatorUin/{key.uin}/{key.key_id}", "HsmClusterId": "",
        "RotateDays": key.rotate_days or 365, "LastRotateTime": key.rotated, "IsSyncReplica": 0,
        "SourceRegion": "", "SyncStatus": 0, "CreatorUinString": key.uin,
    }  # fmt: skip


def _alias(call: Call, alias: str, but: str = "") -> str:
    if not _ALIAS.fullmatch(alias):
        raise Refusal("InvalidParameterValue.InvalidAlias")
    if any(key.alias == alias and key.key_id != but for key in call.keys):
        raise Refusal("InvalidParameterValue.AliasAlreadyExists")
    return alias


def _create(call: Call) -> dict[str, Any]:
    call.allowed()
    if call.params.get("KeyUsage", "ENCRYPT_DECRYPT") != "ENCRYPT_DECRYPT":
        raise Refusal("InvalidParameterValue.InvalidKeyUsage")
    if call.params.get("Type", 1) != 1:
        raise Refusal("InvalidParameterValue.InvalidType")
    if len(call.params.get("Description", "").encode()) > 1024:
        raise Refusal("InvalidParameter")
    alias = _alias(call, call.params["Alias"])
    if len(call.keys) >= _MOST_KEYS:
        raise Refusal("LimitExceeded.CmkLimitExceeded")
    key = call.store.create(call.account.uin, call.region, alias, call.params.get("Description", ""))
    about = _metadata(key)
    names = ("KeyId", "Alias", "CreateTime", "Description", "KeyState", "KeyUsage", "HsmClusterId")
    return {name: about[name] for name in names} | {"TagCode": 0, "TagMsg": ""}


def _describe(call: Call) -> dict[str, Any]:
    return {"KeyMetadata": _metadata(call.key())}


def _describe_keys(call: Call) -> dict[str, Any]:
    ids = call.params["KeyIds"]
    if not 1 <= len(ids) <= 100 or not all(isinstance(item, str) for item in ids):
        raise Refusal("InvalidParameter")
    if len(set(ids)) < len(ids):
        raise Refusal("InvalidParameterValue.DuplicatedKeyId")
    return {"KeyMetadatas": [_metadata(call._replace(params={"KeyId": item}).key()) for item in ids]}


def _page(call: Call, keys: list[MasterKey]) -> list[MasterKey]:
    offset, limit = call.params.get("Offset", 0), call.params.get("Limit", 10)
    if offset < 0 or not 0 <= limit <= 200:
        raise Refusal("InvalidParameter")
    return keys[offset : offset + limit]


def _list(call: Call) -> dict[str, Any]:
    call.allowed()
    keys = [key for key in call.keys if key.state in ("Enabled", "Disabled", "PendingImport")]
    return {"Keys": [{"KeyId": key.key_id} for key in _page(call, keys)], "TotalCount": len(keys)}


def _list_detail(call: Call) -> dict[str, Any]:
    call.allowed()
    state, search = call.params.get("KeyState", 0), call.params.get("SearchKeyAlias", "")
    if state not in range(6):
        raise Refusal("InvalidParameter")
    keys = [key for key in call.keys if search in key.alias or search in key.key_id]
    keys = [key for key in keys if not state or key.state == _STATES[state]]
    if call.params.get("OrderType", 0) == 0:
        keys.reverse()
    return {"KeyMetadatas": [_metadata(key) for key in _page(call, keys)], "TotalCount": len(keys)}


def _context(call: Call, name: str = "EncryptionContext") -> str:
    context = call.params.get(name, "")
    if len(context) > 1024:
        raise Refusal("InvalidParameter")
    if context:
        try:
            pairs = json.loads(context)
        except ValueError:
            raise Refusal("InvalidParameter") from None
        if not isinstance(pairs, dict) or not all(isinstance(text, str) for text in pairs.values()):
            raise Refusal("InvalidParameter")
    return str(context)


def _generate(call: Call) -> dict[str, Any]:
    key = call.key("Enabled", refuse="use")
    size = call.params.get("NumberOfBytes")
    if size is None:
        size = {"AES_128": 16, "AES_256": 32}.get(call.params.get("KeySpec", ""))
    if size is None or not 1 <= size <= 1024:
        raise Refusal("InvalidParameter")
    if call.params.get("IsHostedByKms") or call.params.get("EncryptionPublicKey"):
        raise Refusal("UnsupportedOperation")
    secret = random_bytes(size)
    return {
        "KeyId": key.key_id, "Plaintext": base64.b64encode(secret).decode(),
        "CiphertextBlob": call.store.seal(key, secret, _context(call)),
        "DataKeyId": "", "TagCode": 0, "TagMsg": "",
    }  # fmt: skip


def _random(call: Call) -> dict[str, Any]:
    call.allowed()
    size = call.params["NumberOfBytes"]
    if not 1 <= size <= 1024:
        raise Refusal("InvalidParameter")
    return {"Plaintext": base64.b64encode(random_bytes(size)).decode()}


def _encrypt(call: Call) -> dict[str, Any]:
    key = call.key("Enabled", refuse="use")
    try:
        plaintext = base64.b64decode(call.params["Plaintext"], validate=True)
    except ValueError:
        plaintext = b""
    if not 1 <= len(plaintext) <= 4096:
        raise Refusal("InvalidParameterValue.InvalidPlaintext")
    return {"CiphertextBlob": call.store.seal(key, plaintext, _context(call)), "KeyId": key.key_id}


def _opened(call: Call, context: str) -> tuple[MasterKey, int, bytes]:
    opened = call.store.unseal(call.params["CiphertextBlob"], call.account.uin, call.region, context)
    if opened is None:
        raise Refusal("InvalidParameterValue.InvalidCiphertext")
    call._replace(params={"KeyId": opened[0].key_id}).key("Enabled", "Archived", refuse="use")
    return opened


def _decrypt(call: Call) -> dict[str, Any]:
    # The key is known only after unsealing. An account without any right is refused before that.
    if not any(call.account.may(call.action, key.key_id) for key in call.keys):
        call.allowed()
    key, _, plaintext = _opened(call, _context(call))
    return {"KeyId": key.key_id, "Plaintext": base64.b64encode(plaintext).decode()}


def _reencrypt(call: Call) -> dict[str, Any]:
    source, target = _context(call, "SourceEncryptionContext"), _context(call, "DestinationEncryptionContext")
    key, number, plaintext = _opened(call, source)
    wanted = call.params.get("DestinationKeyId") or key.key_id
    to = call._replace(params={"KeyId": wanted}).key("Enabled", refuse="use")
    blob, again = call.params["CiphertextBlob"], True
    if to is not key or number < len(key.versions) - 1:
        blob = call.store.seal(to, plaintext, target)
    elif source != target:
        blob = call.store.relabel(blob, target)
    else:
        again = False
    return {"CiphertextBlob": blob, "KeyId": to.key_id, "SourceKeyId": key.key_id, "ReEncrypted": again}


def _to(state: str, *since: str) -> Callable[[Call], dict[str, Any]]:
    def change(call: Call) -> dict[str, Any]:
        call.key(*since, state).state = state
        return {}

    return change


def _enable_rotation(call: Call) -> dict[str, Any]:
    key, days = call.key("Enabled", "Disabled"), call.params.get("RotateDays", 365)
    if not 7 <= days <= 365:
        raise Refusal("InvalidParameterValue")
    key.rotate_days, key.rotated = days, key.rotated or int(call.store.now)
    return {}


def _disable_rotation(call: Call) -> dict[str, Any]:
    call.key().rotate_days = 0
    return {}


def _rotate(call: Call) -> dict[str, Any]:
    key = call.key("Enabled")
    if key.rotated and call.store.now < key.rotated + 86400:
        raise Refusal("RequestLimitExceeded.RotateRateLimited")
    key.rotated = int(call.store.now)
    key.rotate()
    return {"TaskId": random_bytes(8).hex()}


def _delete(call: Call) -> dict[str, Any]:
    days = call.params["PendingWindowInDays"]
    if not 7 <= days <= 30:
        raise Refusal("InvalidParameter.InvalidPendingWindowInDays")
    if call.key().state == "Enabled":
        raise Refusal("ResourceUnavailable.CmkShouldBeDisabled")
    key = call.key("Disabled")
    key.state, key.deletion = "PendingDelete", int(call.store.now) + 86400 * days
    return {"KeyId": key.key_id, "DeletionDate": key.deletion}


def _cancel_delete(call: Call) -> dict[str, Any]:
    key = call.key("PendingDelete", refuse="ResourceUnavailable.CmkNotPendingDelete")
    key.state, key.deletion = "Disabled", 0
    return {"KeyId": key.key_id}


def _update_alias(call: Call) -> dict[str, Any]:
    key = call.key()
    key.alias = _alias(call, call.params["Alias"], key.key_id)
    return {}


def _update_description(call: Call) -> dict[str, Any]:
    if len(call.params["Description"].encode()) > 1024:
        raise Refusal("InvalidParameter")
    call.key().description = call.params["Description"]
    return {}


def _status(call: Call) -> dict[str, Any]:
    call.allowed()
    return {
        "ServiceEnabled": True, "InvalidType": 1, "UserLevel": 0, "CmkUserCount": len(call.keys),
        "CmkLimit": _MOST_KEYS, "IsAllowedDataKeyHosted": False, "QpsLimit": 300,
    }  # fmt: skip


def _regions(call: Call) -> dict[str, Any]:
    call.allowed()
    return {"Regions": REGIONS}


_ID: dict[str, type] = {"KeyId": str}
_LIST: dict[str, type] = {"Offset": int, "Limit": int, "Role": int, "HsmClusterId": str}
_SEARCH: dict[str, type] = {
    "OrderType": int, "KeyState": int, "SearchKeyAlias": str, "Origin": str, "KeyUsage": str,
    "TagFilters": list,
}  # fmt: skip
_DATA_KEY: dict[str, type] = {
    "KeySpec": str, "NumberOfBytes": int, "EncryptionContext": str, "EncryptionPublicKey": str,
    "EncryptionAlgorithm": str, "IsHostedByKms": int, "DataKeyName": str, "Description": str,
    "HsmClusterId": str, "Tags": list,
}  # fmt: skip
_BLOB: dict[str, type] = {
    "CiphertextBlob": str, "EncryptionContext": str, "EncryptionPublicKey": str, "EncryptionAlgorithm": str,
}  # fmt: skip
_AGAIN: dict[str, type] = {
    "CiphertextBlob": str, "DestinationKeyId": str, "SourceEncryptionContext": str,
    "DestinationEncryptionContext": str,
}  # fmt: skip
_NEW: dict[str, type] = {
    "Alias": str, "Description": str, "KeyUsage": str, "Type": int, "Tags": list, "HsmClusterId": str,
}  # fmt: skip

# For each action: its function, the fields it takes, and the required ones.
ACTIONS: dict[str, Action] = {
    "CreateKey": (_create, _NEW, {"Alias"}),
    "DescribeKey": (_describe, _ID, {"KeyId"}),
    "DescribeKeys": (_describe_keys, {"KeyIds": list}, {"KeyIds"}),
    "ListKeys": (_list, _LIST, set()),
    "ListKeyDetail": (_list_detail, _LIST | _SEARCH, set()),
    "GenerateDataKey": (_generate, _ID | _DATA_KEY, {"KeyId"}),
    "GenerateRandom": (_random, {"NumberOfBytes": int}, {"NumberOfBytes"}),
    "Encrypt": (_encrypt, _ID | {"Plaintext": str, "EncryptionContext": str}, {"KeyId", "Plaintext"}),
    "Decrypt": (_decrypt, _BLOB, {"CiphertextBlob"}),
    "ReEncrypt": (_reencrypt, _AGAIN, {"CiphertextBlob"}),
    "EnableKey": (_to("Enabled", "Disabled"), _ID, {"KeyId"}),
    "DisableKey": (_to("Disabled", "Enabled"), _ID, {"KeyId"}),
    "ArchiveKey": (_to("Archived", "Enabled", "Disabled"), _ID, {"KeyId"}),
    "CancelKeyArchive": (_to("Enabled", "Archived"), _ID, {"KeyId"}),
    "EnableKeyRotation": (_enable_rotation, _ID | {"RotateDays": int}, {"KeyId"}),
    "DisableKeyRotation": (_disable_rotation, _ID, {"KeyId"}),
    "GetKeyRotationStatus": (
        lambda call: {"KeyRotationEnabled": bool(call.key().rotate_days)},
        _ID,
        {"KeyId"},
    ),
    "RotateKey": (_rotate, _ID, {"KeyId"}),
    "ScheduleKeyDeletion": (_delete, _ID | {"PendingWindowInDays": int}, {"KeyId", "PendingWindowInDays"}),
    "CancelKeyDeletion": (_cancel_delete, _ID, {"KeyId"}),
    "UpdateAlias": (_update_alias, _ID | {"Alias": str}, {"KeyId", "Alias"}),
    "UpdateKeyDescription": (_update_description, _ID | {"Description": str}, {"KeyId", "Description"}),
    "GetServiceStatus": (_status, {}, set()),
    "GetRegions": (_regions, {}, set()),
}
UNSUPPORTED = {"GetPublicKey"}  # an action of the real service; any other action not listed above is unknown
