"""Test the emulator with the real SDK, and against the documentation of the service."""

import base64
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.parse

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kmsdata
from kmsdata.emulator import Emulator, Fault, server, sts_actions
from kmsdata.emulator.kms_actions import ACTIONS, UNSUPPORTED
from kmsdata.emulator.tc3_signature import signature

pytestmark = pytest.mark.newest

REGION = "ap-guangzhou"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in list(os.environ):
        if "proxy" in name.lower():
            monkeypatch.delenv(name)


@pytest.fixture
def emulator():
    with Emulator() as emulator:
        yield emulator


class Sdk:
    """Call an action with the official SDK: return its fields, or the code of an error."""

    def __init__(self, emulator, region=REGION, pair=None, method="POST", timeout=5):
        from tencentcloud.common.credential import Credential
        from tencentcloud.common.profile.client_profile import ClientProfile
        from tencentcloud.common.profile.http_profile import HttpProfile
        from tencentcloud.kms.v20190118 import kms_client, models

        profile = HttpProfile("http", f"127.0.0.1:{emulator.port}", method, timeout)
        credential = Credential(*(pair or (emulator.secret_id, emulator.secret_key)))
        self.client = kms_client.KmsClient(credential, region, ClientProfile(httpProfile=profile))
        self.models = models

    def __call__(self, action, **fields):
        request = getattr(self.models, f"{action}Request")()
        for name, value in fields.items():
            assert hasattr(request, name)
            setattr(request, name, value)
        return getattr(self.client, action)(request)

    def code(self, action, **fields):
        from tencentcloud.common.exception import TencentCloudSDKException

        with pytest.raises(TencentCloudSDKException) as caught:
            self(action, **fields)
        return caught.value.get_code()


@pytest.fixture
def sdk(emulator):
    return Sdk(emulator)


@pytest.fixture
def key(sdk):
    return sdk("CreateKey", Alias="payroll").KeyId


# Signatures.


def test_signature_vectors():
    """Check signatures that SDK 3.1.195 made: AKIDEXAMPLE at 1700000000, by POST and by GET."""
    common = ("EXAMPLESECRETKEY", "2023-11-14", "kms", "1700000000")
    host = "kms.tencentcloudapi.com"
    body = b'{"CiphertextBlob": "x-k-y-k-z"}'
    posted = {"content-type": "application/json", "host": host}
    assert (
        signature(*common, "POST", "", posted, body)
        == "2a407d42aaa95aa2eea7e75796b2e38367e520d1bba5e312c4a995b16a5a566d"
    )
    got = {"content-type": "application/x-www-form-urlencoded", "host": host}
    assert (
        signature(*common, "GET", "CiphertextBlob=x-k-y-k-z", got, b"")
        == "066fae2e642a44eca5652688215a4c9a95cf07995f2653fe4d1788780a2d5557"
    )


def raw(
    emulator, *, body=b"{}", action="ListKeys", tamper=None, signed_body=None, at=None,
    names=("content-type", "host"), **changed,
):  # fmt: skip
    """Send a request without the SDK; what is signed may differ from what is sent."""
    timestamp = str(int(at or time.time()))
    date = time.strftime("%Y-%m-%d", time.gmtime(int(timestamp)))
    host = f"127.0.0.1:{emulator.port}"
    every = {"content-type": "application/json", "host": host, "x-tc-action": action.lower()}
    signed = {name: every[name] for name in names}
    made = signature(
        emulator.secret_key,
        date,
        "kms",
        timestamp,
        "POST",
        "",
        signed,
        body if signed_body is None else signed_body,
    )
    headers = {
        "Content-Type": "application/json",
        "Host": host,
        "X-TC-Action": action,
        "X-TC-Version": "2019-01-18",
        "X-TC-Region": REGION,
        "X-TC-Timestamp": timestamp,
        "Authorization": f"TC3-HMAC-SHA256 Credential={emulator.secret_id}/{date}/kms/tc3_request, "
        f"SignedHeaders={';'.join(names)}, Signature={made}",
    } | {name.replace("_", "-"): text for name, text in changed.items()}
    if tamper:
        tamper(headers)
    connection = http.client.HTTPConnection("127.0.0.1", emulator.port, timeout=5)
    connection.request("POST", "/", body, {name: text for name, text in headers.items() if text is not None})
    response = connection.getresponse()
    assert response.status == 200
    assert response.headers["Content-Type"] == "application/json"
    answer = json.loads(response.read())["Response"]
    connection.close()
    assert re.fullmatch(r"[0-9a-f-]{36}", answer["RequestId"])
    return answer.get("Error", {}).get("Code")


def test_no_action_is_made_up(sdk):
    assert set(ACTIONS) | UNSUPPORTED <= set(dir(sdk.client))
    assert not set(ACTIONS) & UNSUPPORTED


def test_what_was_signed_is_what_counts(emulator):
    assert raw(emulator) is None
    assert (
        raw(emulator, X_TC_Action="GetRegions") is None
    )  # the SDK does not sign the action, so it is not checked
    assert raw(emulator, signed_body=b"{ }") == "AuthFailure.SignatureFailure"
    assert raw(emulator, Content_Type="application/json; charset=utf-8") == "AuthFailure.SignatureFailure"
    assert raw(emulator, Host=f"localhost:{emulator.port}") == "AuthFailure.SignatureFailure"
    assert raw(emulator, X_TC_Timestamp=str(int(time.time()) + 1)) == "AuthFailure.SignatureFailure"
    assert raw(emulator, at=time.time() - 299) is None
    assert raw(emulator, at=time.time() - 305) == "AuthFailure.SignatureExpire"
    assert raw(emulator, at=time.time() + 305) == "AuthFailure.SignatureExpire"

    def flip(headers):
        text = headers["Authorization"]
        headers["Authorization"] = text[:-1] + ("0" if text[-1] != "0" else "1")

    assert raw(emulator, tamper=flip) == "AuthFailure.SignatureFailure"

    def other_date(headers):
        headers["Authorization"] = re.sub(r"/\d{4}-", "/2001-", headers["Authorization"])

    assert raw(emulator, tamper=other_date) == "AuthFailure.SignatureFailure"

    # Content type and host must be signed; other SDKs sign the action as well.
    for names in (("content-type",), ("host",)):
        assert raw(emulator, names=names) == "AuthFailure.SignatureFailure"
    lower = ("content-type", "host", "x-tc-action")
    assert raw(emulator, names=lower, X_TC_Action="listkeys") == "InvalidAction"  # signed as received
    assert raw(emulator, names=lower, X_TC_Action="GetRegions") == "AuthFailure.SignatureFailure"
    assert raw(emulator, Authorization="Basic YTpi") == "AuthFailure.InvalidAuthorization"
    assert raw(emulator, Authorization=None) == "AuthFailure.InvalidAuthorization"
    assert raw(emulator, Authorization="SKIP") == "AuthFailure.InvalidAuthorization"


def test_the_order_of_checks(emulator):
    assert raw(emulator, X_TC_Version="2018-01-01") == "NoSuchVersion"
    assert raw(emulator, action="Nonsense") == "InvalidAction"
    assert raw(emulator, action="GetPublicKey") == "UnsupportedOperation"
    assert raw(emulator, X_TC_Region=None) == "MissingParameter"
    assert raw(emulator, X_TC_Region="ap-atlantis") == "UnsupportedRegion"
    assert raw(emulator, body=b"[]") == "InvalidParameter"
    assert raw(emulator, body=b"{") == "InvalidParameter"
    assert raw(emulator, body=b'{"Limit": "5"}') == "InvalidParameter"
    assert raw(emulator, body=b'{"Limit": true}') == "InvalidParameter"
    assert raw(emulator, body=b'{"EyId": "x"}', action="DescribeKey") == "MissingParameter"
    assert raw(emulator, body=b'{"KeyId": "x", "EyId": "x"}', action="DescribeKey") == "UnknownParameter"
    assert raw(emulator, body=b'{"KeyId": "x"}', action="DescribeKey") == "InvalidParameterValue.InvalidKeyId"


def test_accounts(emulator, sdk, key):
    assert Sdk(emulator, pair=("AKIDnobody", "x")).code("ListKeys") == "AuthFailure.SecretIdNotFound"
    assert Sdk(emulator, pair=(emulator.secret_id, "x")).code("ListKeys") == "AuthFailure.SignatureFailure"
    emulator.add_account("AKIDtmp", "k", token="t", expires=100)
    assert Sdk(emulator, pair=("AKIDtmp", "k")).code("ListKeys") == "AuthFailure.TokenFailure"
    temporary = Sdk(emulator, pair=("AKIDtmp", "k", "t"))
    assert temporary("ListKeys").TotalCount == 1
    emulator.advance(101)
    assert temporary.code("ListKeys") == "AuthFailure.TokenFailure"
    emulator.advance(-101)
    emulator.add_account("AKIDother", "k", uin="200000000002")
    other = Sdk(emulator, pair=("AKIDother", "k"))
    assert other("ListKeys").TotalCount == 0
    assert other.code("DescribeKey", KeyId=key) == "ResourceUnavailable.CmkNotFound"
    emulator.add_account("AKIDlimited", "k", allow={"ListKeys", f"DescribeKey@{key}"})
    limited = Sdk(emulator, pair=("AKIDlimited", "k"))
    assert limited("DescribeKey", KeyId=key).KeyMetadata.Alias == "payroll"
    second = sdk("CreateKey", Alias="second").KeyId
    assert limited.code("DescribeKey", KeyId=second) == "UnauthorizedOperation"
    assert limited.code("CreateKey", Alias="x") == "UnauthorizedOperation"
    emulator.remove_account("AKIDlimited")
    assert limited.code("ListKeys") == "AuthFailure.SecretIdNotFound"


# Keys and their states.


def test_by_get(emulator, key):
    sdk = Sdk(emulator, method="GET")
    assert sdk("DescribeKeys", KeyIds=[key]).KeyMetadatas[0].KeyId == key
    assert sdk("ListKeyDetail", Limit=5).TotalCount == 1


def test_create_list_describe(sdk):
    made = [sdk("CreateKey", Alias=f"k{n}", Description="d").KeyId for n in range(12)]
    assert all(re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", item) for item in made)
    assert [item.KeyId for item in sdk("ListKeys", Offset=10, Limit=200).Keys] == made[10:]
    newest_first = sdk("ListKeyDetail", Limit=3)
    assert [item.KeyId for item in newest_first.KeyMetadatas] == made[:8:-1]
    assert newest_first.TotalCount == 12
    found = sdk("ListKeyDetail", SearchKeyAlias="k1", OrderType=1).KeyMetadatas
    assert [item.Alias for item in found] == ["k1", "k10", "k11"]
    about = sdk("DescribeKey", KeyId=made[0]).KeyMetadata
    assert (about.Alias, about.KeyState, about.Description) == ("k0", "Enabled", "d")
    assert sdk.code("ListKeys", Limit=201) == "InvalidParameter"
    sdk("UpdateAlias", KeyId=made[0], Alias="new")
    assert sdk.code("UpdateAlias", KeyId=made[0], Alias="k1") == "InvalidParameterValue.AliasAlreadyExists"
    sdk("UpdateKeyDescription", KeyId=made[0], Description="e")
    about = sdk("DescribeKeys", KeyIds=made[:2]).KeyMetadatas
    assert [(item.Alias, item.Description) for item in about] == [("new", "e"), ("k1", "d")]
    assert sdk.code("DescribeKeys", KeyIds=[made[0]] * 2) == "InvalidParameterValue.DuplicatedKeyId"
    for alias in ("", "kms-x", "_x", "a b", "x" * 61):
        assert sdk.code("CreateKey", Alias=alias) == "InvalidParameterValue.InvalidAlias"
    assert sdk.code("CreateKey", Alias="k1") == "InvalidParameterValue.AliasAlreadyExists"
    assert sdk("GetServiceStatus").CmkUserCount == 12
    assert REGION in sdk("GetRegions").Regions


def test_the_most_keys(sdk):
    for number in range(200):
        sdk("CreateKey", Alias=f"k{number}")
    assert sdk.code("CreateKey", Alias="one-too-many") == "LimitExceeded.CmkLimitExceeded"


ABSENT = "23e80852-1e38-11e9-b129-5cb9019b4b01"
# What each action does to a key in each state: an error code, or the next state.
_NOT = "ResourceUnavailable.CmkStateNotSupport"
_OFF, _ARCHIVED = "ResourceUnavailable.CmkDisabled", "ResourceUnavailable.CmkArchived"
_PENDING = "ResourceUnavailable.KeyPendingDelete"
STATES = ("Enabled", "Disabled", "Archived", "PendingDelete")
MODEL = {
    "EnableKey": ("Enabled", "Enabled", _NOT, _NOT),
    "DisableKey": ("Disabled", "Disabled", _NOT, _NOT),
    "ArchiveKey": ("Archived", "Archived", "Archived", _NOT),
    "CancelKeyArchive": ("Enabled", _NOT, "Enabled", _NOT),
    "ScheduleKeyDeletion": ("ResourceUnavailable.CmkShouldBeDisabled", "PendingDelete", _NOT, _NOT),
    "CancelKeyDeletion": (*["ResourceUnavailable.CmkNotPendingDelete"] * 3, "Disabled"),
    "Encrypt": ("Enabled", _OFF, _ARCHIVED, _PENDING),
    "GenerateDataKey": ("Enabled", _OFF, _ARCHIVED, _PENDING),
    "Decrypt": ("Enabled", _OFF, "Archived", _PENDING),
}
FIELDS = {
    "ScheduleKeyDeletion": {"PendingWindowInDays": 7},
    "Encrypt": {"Plaintext": "AAAA"},
    "GenerateDataKey": {"KeySpec": "AES_256"},
}


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(sorted(MODEL)), min_size=1, max_size=25))
def test_states(actions):
    with Emulator() as emulator:
        sdk = Sdk(emulator)
        key = sdk("CreateKey", Alias="k").KeyId
        blob = sdk("GenerateDataKey", KeyId=key, KeySpec="AES_256").CiphertextBlob
        state = "Enabled"
        for action in actions:
            fields = (
                {"CiphertextBlob": blob} if action == "Decrypt" else {"KeyId": key, **FIELDS.get(action, {})}
            )
            expected = MODEL[action][STATES.index(state)]
            if expected in STATES:
                sdk(action, **fields)
                state = expected
            else:
                assert sdk.code(action, **fields) == expected
            assert sdk("DescribeKey", KeyId=key).KeyMetadata.KeyState == state
            listed = sdk("ListKeys").TotalCount
            assert listed == (1 if state in ("Enabled", "Disabled") else 0)


@pytest.mark.parametrize("action", [name for name, (_, fields, _) in ACTIONS.items() if "KeyId" in fields])
def test_a_key_that_is_not_there(sdk, action):
    if action == "DescribeKeys":
        return
    more = {"UpdateAlias": {"Alias": "a"}, "UpdateKeyDescription": {"Description": "a"}}.get(action, {})
    fields = {"KeyId": ABSENT, **FIELDS.get(action, {}), **more}
    assert sdk.code(action, **fields) == "ResourceUnavailable.CmkNotFound"
    assert sdk.code(action, **fields | {"KeyId": "x"}) == "InvalidParameterValue.InvalidKeyId"


def test_deletion_by_the_clock(emulator, sdk, key):
    sdk("DisableKey", KeyId=key)
    window = "InvalidParameter.InvalidPendingWindowInDays"
    assert sdk.code("ScheduleKeyDeletion", KeyId=key, PendingWindowInDays=6) == window
    assert sdk.code("ScheduleKeyDeletion", KeyId=key, PendingWindowInDays=31) == window
    sdk("ScheduleKeyDeletion", KeyId=key, PendingWindowInDays=7)
    emulator._store.offset = 6.9 * 86400  # the client's clock is unchanged
    assert [item.state for item in emulator._store.of(emulator.uin, REGION)] == ["PendingDelete"]
    emulator._store.offset = 7.1 * 86400
    assert emulator._store.of(emulator.uin, REGION) == []


def test_rotation(emulator, sdk, key):
    before = sdk("GenerateDataKey", KeyId=key, KeySpec="AES_256")
    assert not sdk("GetKeyRotationStatus", KeyId=key).KeyRotationEnabled
    sdk("EnableKeyRotation", KeyId=key, RotateDays=30)
    assert sdk("DescribeKey", KeyId=key).KeyMetadata.RotateDays == 30
    assert sdk.code("EnableKeyRotation", KeyId=key, RotateDays=6) == "InvalidParameterValue"
    emulator._store.offset = 31 * 86400
    emulator._store.of(emulator.uin, REGION)
    emulator._store.offset = 0.0
    after = sdk("GenerateDataKey", KeyId=key, KeySpec="AES_256")
    assert before.CiphertextBlob.split("-k-")[0] != after.CiphertextBlob.split("-k-")[0]
    for made in (before, after):
        assert sdk("Decrypt", CiphertextBlob=made.CiphertextBlob).Plaintext == made.Plaintext
    sdk("DisableKeyRotation", KeyId=key)
    assert not sdk("GetKeyRotationStatus", KeyId=key).KeyRotationEnabled
    other = sdk("CreateKey", Alias="other").KeyId
    assert sdk("RotateKey", KeyId=other).TaskId
    assert sdk.code("RotateKey", KeyId=other) == "RequestLimitExceeded.RotateRateLimited"


# Data keys and blobs.


@pytest.mark.parametrize(
    ("fields", "size", "characters"),
    [
        ({"KeySpec": "AES_128"}, 16, 190),
        ({"KeySpec": "AES_256"}, 32, 210),
        ({"NumberOfBytes": 1024, "KeySpec": "AES_128"}, 1024, None),
    ],
)
def test_data_keys(sdk, key, fields, size, characters):
    one, two = (sdk("GenerateDataKey", KeyId=key, **fields) for _ in range(2))
    assert one.KeyId == key
    assert len(base64.b64decode(one.Plaintext)) == size
    assert one.Plaintext != two.Plaintext
    parts = one.CiphertextBlob.split("-k-")
    assert [len(base64.b64decode(part)) for part in parts][:2] == [64, 16]
    assert parts[:2] == two.CiphertextBlob.split("-k-")[:2]  # they depend on the key and on the context
    if characters:
        assert len(one.CiphertextBlob) == characters
    assert sdk("Decrypt", CiphertextBlob=one.CiphertextBlob).Plaintext == one.Plaintext


def test_what_is_no_request_for_a_data_key(sdk, key):
    for fields in ({}, {"KeySpec": "AES_512"}, {"NumberOfBytes": 0}, {"NumberOfBytes": 1025}):
        assert sdk.code("GenerateDataKey", KeyId=key, **fields) == "InvalidParameter"
    for context in ("x" * 1025, "{", "[]", '{"a": 1}'):
        assert (
            sdk.code("GenerateDataKey", KeyId=key, KeySpec="AES_256", EncryptionContext=context)
            == "InvalidParameter"
        )
    for plaintext in ("", "?", base64.b64encode(bytes(4097)).decode()):
        assert sdk.code("Encrypt", KeyId=key, Plaintext=plaintext) == "InvalidParameterValue.InvalidPlaintext"


def test_blobs_are_opaque_and_checked(emulator, sdk, key):
    context = '{"a":"b"}'
    blob = sdk("Encrypt", KeyId=key, Plaintext="c2VjcmV0", EncryptionContext=context).CiphertextBlob
    opened = sdk("Decrypt", CiphertextBlob=blob, EncryptionContext=context)
    assert (opened.KeyId, opened.Plaintext) == (key, "c2VjcmV0")
    bad = "InvalidParameterValue.InvalidCiphertext"
    for other in ('{"a":"c"}', "", '{"a": "b"}'):
        assert sdk.code("Decrypt", CiphertextBlob=blob, EncryptionContext=other) == bad
    first, second, third = blob.split("-k-")
    for part, text in enumerate((first, second, third)):
        data = bytearray(base64.b64decode(text))
        for at in range(0, len(data), 5):
            changed = bytes(data[:at]) + bytes([data[at] ^ 1]) + bytes(data[at + 1 :])
            parts = [first, second, third]
            parts[part] = base64.b64encode(changed).decode()
            assert sdk.code("Decrypt", CiphertextBlob="-k-".join(parts), EncryptionContext=context) == bad
    far = Sdk(emulator, "ap-shanghai")
    assert far.code("Decrypt", CiphertextBlob=blob, EncryptionContext=context) == bad
    for garbage in ("", "x", "a-k-b-k-c", "-k--k-", first):
        assert sdk.code("Decrypt", CiphertextBlob=garbage, EncryptionContext=context) in (
            bad,
            "MissingParameter",
        )
    # The real service does not bind the context to the ciphertext either (observed): do not rely on it.
    empty = sdk("Encrypt", KeyId=key, Plaintext="AAAA").CiphertextBlob.split("-k-")[1]
    assert sdk("Decrypt", CiphertextBlob=f"{first}-k-{empty}-k-{third}").Plaintext == "c2VjcmV0"


def test_reencrypt(sdk, key):
    blob = sdk("Encrypt", KeyId=key, Plaintext="AAAA").CiphertextBlob
    same = sdk("ReEncrypt", CiphertextBlob=blob)
    assert (same.CiphertextBlob, same.ReEncrypted) == (blob, False)
    context = '{"a":"b"}'
    relabelled = sdk("ReEncrypt", CiphertextBlob=blob, DestinationEncryptionContext=context)
    assert relabelled.ReEncrypted
    assert relabelled.CiphertextBlob.split("-k-")[::2] == blob.split("-k-")[::2]
    other = sdk("CreateKey", Alias="other").KeyId
    moved = sdk("ReEncrypt", CiphertextBlob=blob, DestinationKeyId=other)
    assert (moved.KeyId, moved.SourceKeyId, moved.ReEncrypted) == (other, key, True)
    assert sdk("Decrypt", CiphertextBlob=moved.CiphertextBlob).KeyId == other
    sdk("RotateKey", KeyId=key)
    assert sdk("ReEncrypt", CiphertextBlob=blob).ReEncrypted


def test_random(sdk):
    assert len(base64.b64decode(sdk("GenerateRandom", NumberOfBytes=24).Plaintext)) == 24
    assert sdk.code("GenerateRandom", NumberOfBytes=0) == "InvalidParameter"


# Faults: how the SDK reports them.


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault.error("InternalError"), "InternalError"), (Fault.reset(), "ClientNetworkError"),
        (Fault.hang_up(), "ClientNetworkError"), (Fault.lost(), "ClientNetworkError"),
        (Fault.truncate(), "ChunkedEncodingError"), (Fault.status(502, b"<p>"), "ServerNetworkError"),
        (Fault.html(), "JSONDecodeError"), (Fault.empty(), "JSONDecodeError"), (Fault.bare(), "KeyError"),
        (Fault.hang(), "ClientNetworkError"), (Fault.stall(), "ConnectionError"),
    ],
)  # fmt: skip
def test_faults(emulator, key, fault, code):
    sdk = Sdk(emulator, timeout=0.5)
    emulator.fail(fault, action="ListKeys", after=1, times=2)
    assert sdk("ListKeys").TotalCount == 1
    assert [sdk.code("ListKeys") for _ in range(2)] == [code] * 2
    assert sdk("ListKeys").TotalCount == 1


def test_answers_that_the_sdk_takes_for_good(emulator, sdk, key):
    emulator.fail(Fault.charset("ResourceUnavailable.CmkDisabled"))
    assert sdk("ListKeys").TotalCount is None
    emulator.fail(Fault.no_fields())
    assert sdk("ListKeys").Keys is None
    emulator.fail(Fault.change(KeyId=str.upper, Plaintext=None))
    made = sdk("GenerateDataKey", KeyId=key, KeySpec="AES_256")
    assert (made.KeyId, made.Plaintext) == (key.upper(), None)
    emulator.fail(Fault.gzip())
    assert sdk("ListKeys").TotalCount == 1


def test_what_is_lost_was_carried_out(emulator, sdk):
    emulator.fail(Fault.lost())
    sdk.code("CreateKey", Alias="a")
    assert sdk("ListKeys").TotalCount == 1
    assert emulator.calls == {"CreateKey": 1, "ListKeys": 1}


def test_a_region_that_is_down_and_heals(emulator, sdk):
    emulator.fail(Fault.hang_up(), region="ap-shanghai", times=None)
    far = Sdk(emulator, "ap-shanghai")
    assert [far.code("ListKeys") for _ in range(3)] == ["ClientNetworkError"] * 3
    assert sdk("ListKeys").TotalCount == 0
    emulator.heal()
    assert far("ListKeys").TotalCount == 0


def test_a_quota(emulator, sdk, key):
    emulator.qps["GenerateDataKey"] = 5
    codes = []
    for _ in range(20):
        try:
            sdk("GenerateDataKey", KeyId=key, KeySpec="AES_256")
        except Exception as error:  # noqa: BLE001
            codes.append((error.get_code(), error.get_message()))
    assert 10 <= len(codes) <= 15
    assert {code for code, _ in codes} == {"RequestLimitExceeded"}
    assert "exceeds the frequency limit `5`" in codes[0][1]


def test_it_stops_and_listens_again(emulator, sdk):
    port = emulator.port
    assert sdk("ListKeys").TotalCount == 0
    emulator.stop_listening()
    assert sdk.code("ListKeys") == "ClientNetworkError"
    emulator.listen()
    assert emulator.port == port
    assert sdk("ListKeys").TotalCount == 0


def test_it_may_run_for_long(emulator, sdk, monkeypatch):
    monkeypatch.setattr(server, "_MOST_REQUESTS", 3)
    for action in ("ListKeys", "GetRegions", "ListKeys", "GetServiceStatus"):
        sdk(action)
    assert [request.action for request in emulator.requests] == ["GetRegions", "ListKeys", "GetServiceStatus"]
    assert emulator.calls["ListKeys"] == 2


def test_a_port_that_is_taken(emulator, run):
    with pytest.raises(OSError, match=f"cannot listen at 127.0.0.1:{emulator.port}"):
        Emulator(port=emulator.port)
    code, _, err = run("emulator", "--port", str(emulator.port))
    assert code == 1
    assert f"error: cannot listen at 127.0.0.1:{emulator.port}" in err


def test_requests_are_kept_and_show_nothing(emulator, sdk, key):
    sdk("Encrypt", KeyId=key, Plaintext="c2VjcmV0")
    request = emulator.requests[-1]
    assert (request.action, request.region, request.params["Plaintext"]) == ("Encrypt", REGION, "c2VjcmV0")
    assert repr(emulator.requests) == f"[<CreateKey in {REGION}>, <Encrypt in {REGION}>]"
    shown = repr(emulator) + repr(emulator._store) + repr(list(emulator._store.keys.values()))
    assert emulator.secret_key not in shown
    assert emulator._store.keys[key].versions[0] not in shown


# The state file, and the command.


def test_a_file_keeps_everything(tmp_path):
    path = tmp_path / "state" / "kms.json"
    with Emulator(path) as emulator:
        pair = emulator.secret_id, emulator.secret_key
        sdk = Sdk(emulator)
        key = sdk("CreateKey", Alias="k").KeyId
        made = sdk("GenerateDataKey", KeyId=key, KeySpec="AES_256")
        sdk("RotateKey", KeyId=key)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        written = path.stat().st_ino
        sdk("GenerateDataKey", KeyId=key, KeySpec="AES_256")
        assert path.stat().st_ino == written  # without a change, nothing is written
        with pytest.raises(kmsdata.KeyServiceError, match="is in use by another emulator"):
            Emulator(path)
    with Emulator(path) as emulator:
        assert (emulator.secret_id, emulator.secret_key) == pair
        sdk = Sdk(emulator)
        assert sdk("Decrypt", CiphertextBlob=made.CiphertextBlob).Plaintext == made.Plaintext
        assert sdk("DescribeKey", KeyId=key).KeyMetadata.Alias == "k"
    path.write_text("{}")
    with pytest.raises(kmsdata.FormatError, match="not a state file of the emulator"):
        Emulator(path)
    assert path.read_text() == "{}"


def test_the_command(tmp_path, monkeypatch):
    state = tmp_path / "kms.json"
    command = [sys.executable, "-m", "kmsdata.cli", "emulator", "--state", str(state)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = [process.stdout.readline() for _ in range(4)]
            for line in lines[1:]:
                name, _, text = line.removeprefix("export ").strip().partition("=")
                monkeypatch.setenv(name, text)
            kms = kmsdata.TencentKMS(REGION)
            assert kms.create_key("a").startswith(f"tencent-kms://{REGION}/")
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()  # if the test fails, it may still run, and leaving the block would wait for it
    assert json.loads(state.read_text())["keys"][0]["alias"] == "a"


def test_web_identity_and_metadata(emulator):
    query = urllib.parse.quote("/latest/meta-data/cam/security-credentials/")
    connection = http.client.HTTPConnection("127.0.0.1", emulator.port, timeout=5)
    connection.request("GET", query)
    response = connection.getresponse()
    response.read()
    assert response.status == 404
    emulator.instance_role = "analyst"
    connection.request("GET", query)
    assert connection.getresponse().read() == b"analyst"
    connection.request("GET", f"{query}analyst")
    made = json.loads(connection.getresponse().read())
    sdk = Sdk(emulator, pair=(made["TmpSecretId"], made["TmpSecretKey"], made["Token"]))
    assert sdk("ListKeys").TotalCount == 0
    connection.close()


def test_nothing_of_it_is_loaded_by_kmsdata():
    code = (
        "import sys, kmsdata; "
        "print([name for name in sys.modules if 'emulator' in name or 'http.server' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# What strangers send: the emulator listens on loopback, where web pages and other users can reach it.


def sent(emulator, text):
    """Send bytes over a new connection; return the status of the answer, None without one."""
    with socket.create_connection(("127.0.0.1", emulator.port), timeout=10) as connection:
        connection.sendall(text.encode())
        try:
            answer = connection.recv(100)
        except ConnectionResetError:
            return None
    return int(answer.split()[1]) if answer else None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1",
        "127.0.0.1:1",
        "127.0.0.1.evil.example:{}",
        "2130706433:{}",
        "",
        None,
        "[::1]",
    ],
)
def test_a_web_page_with_another_name_is_refused(emulator, host):
    line = "" if host is None else f"Host: {host.format(emulator.port)}\r\n"
    emulator.instance_role = "role"
    assert sent(emulator, f"POST / HTTP/1.1\r\n{line}Content-Length: 2\r\n\r\n{{}}") == 421
    path = "/latest/meta-data/cam/security-credentials/"
    assert sent(emulator, f"GET {path}role HTTP/1.1\r\n{line}\r\n") == 421
    good = f"Host: localhost:{emulator.port}\r\n"
    assert sent(emulator, f"GET {path} HTTP/1.1\r\n{good}\r\n") == 200
    assert sent(emulator, f"GET {path} HTTP/1.1\r\n{good}Host: evil.example\r\n\r\n") == 421


def test_nothing_is_kept_of_requests_that_are_not_authenticated(emulator):
    def flip(headers):
        headers["Authorization"] = headers["Authorization"][:-4] + "0000"

    emulator.fail(Fault.error("InternalError"))
    for change in ({"X_TC_Action": "NoSuchAction"}, {"Authorization": "SKIP"}, {}):
        assert raw(emulator, **change, tamper=None if "Authorization" in change else flip).startswith(
            "AuthFailure"
        )
    assert emulator.requests == []
    assert not emulator.calls
    assert raw(emulator) == "InternalError"  # none of them used up the fault
    assert [request.action for request in emulator.requests] == list(emulator.calls)


def test_bodies_without_a_plain_size_are_refused(emulator):
    host = f"POST / HTTP/1.1\r\nHost: 127.0.0.1:{emulator.port}\r\n"
    assert sent(emulator, f"{host}Content-Length: {(1 << 20) + 1}\r\n\r\n") == 413
    for wrong in ("Transfer-Encoding: chunked", "Content-Length: -1", "Content-Length: ²", "X: y"):
        assert sent(emulator, f"{host}{wrong}\r\n\r\n") == 411


def test_a_slow_client_is_disconnected(emulator, monkeypatch):
    monkeypatch.setattr(server, "_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", emulator.port), timeout=10) as connection:
        with contextlib.suppress(OSError):
            for _ in range(50):
                connection.sendall(b"P")  # each byte comes in time, the whole request does not
                time.sleep(0.1)
            pytest.fail("it still listens")
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""


def test_connections_and_accounts_are_bounded(emulator, monkeypatch):
    monkeypatch.setattr(server, "_MOST_CONNECTIONS", 3)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection(("127.0.0.1", emulator.port), timeout=10))
        while len(emulator._open) < 3:
            time.sleep(0.01)
        assert sent(emulator, f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{emulator.port}\r\n\r\n") is None
    monkeypatch.setattr(sts_actions, "_MOST_ACCOUNTS", 5)
    for _ in range(20):
        last = sts_actions.temporary(emulator._store, emulator.uin, None, 60)
    assert len(emulator._store.accounts) == 6
    assert last["Credentials"]["TmpSecretId"] in emulator._store.accounts
