"""Tencent Cloud KMS: faults, credentials and key ownership, with the real SDK over HTTP to the emulator."""

import base64
import configparser
import contextlib
import contextvars
import copy
import datetime
import gzip
import ipaddress
import json
import logging
import os
import pickle
import pty
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from pathlib import Path

import pandas as pd
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import kmsdata
from kmsdata.emulator import Emulator, Fault, server
from kmsdata.errors import (
    CredentialsError,
    KeyAccessError,
    KeyNotFoundError,
    KeyServiceError,
    WrongKeyError,
)
from kmsdata.keys import session
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import DataKeyRecord, Wrap
from kmsdata.keys.tencent import client as tencent
from kmsdata.keys.tencent import credentials
from kmsdata.keys.tencent import transport as service
from kmsdata.keys.tencent.transport import Endpoint, Request
from kmsdata.keys.unwrap import unwrap

pytestmark = pytest.mark.newest

REGION = "ap-guangzhou"


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch, tmp_path):
    """Use no credentials, proxies or roles except those of a test."""
    for name in list(os.environ):
        if name.startswith(("TENCENTCLOUD_", "TKE_", "KMSDATA_TENCENT")) or "proxy" in name.lower():
            monkeypatch.delenv(name)
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(credentials, "_METADATA", "http://127.0.0.1:9/")
    monkeypatch.setattr(service, "_PAUSE", 0.01)


@pytest.fixture
def emulator():
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def make(emulator):
    def make(region=REGION, *, credential=None, timeout=5, retries=2):
        pair = credential or (emulator.secret_id, emulator.secret_key)
        return kmsdata.TencentKMS(
            region, credential=pair, endpoint=emulator.url, timeout=timeout, retries=retries
        )

    return make


@pytest.fixture
def kms(make):
    return make()


@pytest.fixture
def key(kms):
    return kms.create_key("payroll")


def shown(error):
    """Return all text of an error and its chain: messages, attributes and frames."""
    seen = [str(error), repr(error), repr(vars(error))]
    while error is not None:
        step = error.__traceback__
        while step is not None:
            # The frames of the test itself contain secrets, of course.
            if not step.tb_frame.f_code.co_filename.endswith("test_tencent.py"):
                for value in step.tb_frame.f_locals.values():
                    with contextlib.suppress(AttributeError):  # what is half made
                        seen += [repr(value), str(value)]
            step = step.tb_next
        error = error.__cause__ or error.__context__
    return "\n".join(seen)


def quiet(emulator, error, *more):
    text = shown(error)
    return not any(secret in text for secret in (emulator.secret_key, emulator.secret_id, *more))


# Faults: the class of the error, its code and message, and how often the request was sent.

FAULTS = {
    "throttled": (Fault.error("RequestLimitExceeded"), KeyServiceError, "RequestLimitExceeded", 3, "quota"),
    "throttled, account": (
        Fault.error("RequestLimitExceeded.UinLimitExceeded"), KeyServiceError,
        "RequestLimitExceeded.UinLimitExceeded", 3, "quota",
    ),
    "internal": (Fault.error("InternalError"), KeyServiceError, "InternalError", 3, "in a minute"),
    "unavailable": (
        Fault.error("UnsupportedOperation.ServiceTemporaryUnavailable"), KeyServiceError,
        "UnsupportedOperation.ServiceTemporaryUnavailable", 3, "not available",
    ),
    "disabled": (
        Fault.error("ResourceUnavailable.CmkDisabled"), KeyAccessError, "ResourceUnavailable.CmkDisabled", 1,
        "kmsdata keys enable tencent-kms://",
    ),
    "archived": (
        Fault.error("ResourceUnavailable.CmkArchived"), KeyAccessError, "ResourceUnavailable.CmkArchived", 1,
        "archived",
    ),
    "pending deletion": (
        Fault.error("ResourceUnavailable.KeyPendingDelete"), KeyAccessError,
        "ResourceUnavailable.KeyPendingDelete", 1, "scheduled for deletion",
    ),
    "another state": (
        Fault.error("ResourceUnavailable.CmkStateNotSupport"), KeyAccessError,
        "ResourceUnavailable.CmkStateNotSupport", 1, "keys describe",
    ),
    "not found": (
        Fault.error("ResourceUnavailable.CmkNotFound"), KeyNotFoundError, "ResourceUnavailable.CmkNotFound",
        1, "no such key in ap-guangzhou",
    ),
    "no permission": (
        Fault.error("UnauthorizedOperation"), KeyAccessError, "UnauthorizedOperation", 1,
        "kms:GenerateDataKey",
    ),
    "wrong signature": (
        Fault.error("AuthFailure.SignatureFailure"), CredentialsError, "AuthFailure.SignatureFailure", 1,
        "SecretKey does not belong to the SecretId",
    ),
    "clock": (
        Fault.error("AuthFailure.SignatureExpire"), CredentialsError, "AuthFailure.SignatureExpire", 1,
        "clock",
    ),
    "token": (
        Fault.error("AuthFailure.TokenFailure"), CredentialsError, "AuthFailure.TokenFailure", 1, "token",
    ),
    "no such id": (
        Fault.error("AuthFailure.SecretIdNotFound"), CredentialsError, "AuthFailure.SecretIdNotFound", 1,
        "no such SecretId",
    ),
    "another refusal of credentials": (
        Fault.error("AuthFailure.MFAFailure"), CredentialsError, "AuthFailure.MFAFailure", 1, "refused",
    ),
    "quota": (
        Fault.error("LimitExceeded.CmkLimitExceeded"), KeyServiceError, "LimitExceeded.CmkLimitExceeded", 1,
        "quota",
    ),
    "region": (Fault.error("UnsupportedRegion"), KeyServiceError, "UnsupportedRegion", 1, "not a region"),
    "unheard of": (Fault.error("Something.New"), KeyServiceError, "Something.New", 1, "was refused"),
    "charset": (
        Fault.charset("ResourceUnavailable.CmkDisabled"), KeyAccessError, "ResourceUnavailable.CmkDisabled",
        1, "disabled",
    ),
    "no request id": (
        Fault.no_request_id("InternalError"), KeyServiceError, "KeyError", 3, "is not an answer of KMS",
    ),
    "no fields": (Fault.no_fields(), KeyServiceError, "InvalidAnswer", 1, "not used"),
    "bare": (Fault.bare(), KeyServiceError, "KeyError", 3, "is not an answer of KMS"),
    "html": (Fault.html(), KeyServiceError, "JSONDecodeError", 3, "is not an answer of KMS"),
    "empty": (Fault.empty(), KeyServiceError, "JSONDecodeError", 3, "is not an answer of KMS"),
    "garbage": (Fault.garbage(), KeyServiceError, "JSONDecodeError", 3, "is not an answer of KMS"),
    "bad gateway": (
        Fault.status(502, b"<html>"), KeyServiceError, "ServerNetworkError", 3, "is not an answer of KMS",
    ),
    "too many": (Fault.status(429), KeyServiceError, "ServerNetworkError", 3, "is not an answer of KMS"),
    "truncated": (Fault.truncate(), KeyServiceError, "ClientNetworkError", 3, "was interrupted"),
    "reset": (Fault.reset(), KeyServiceError, "ClientNetworkError", 3, "was interrupted"),
    "hung up": (Fault.hang_up(), KeyServiceError, "ClientNetworkError", 3, "was interrupted"),
    "lost answer": (Fault.lost(), KeyServiceError, "ClientNetworkError", 3, "was interrupted"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_stays(emulator, kms, key, name):
    fault, kind, code, tries, says = FAULTS[name]
    emulator.fail(fault, action="GenerateDataKey", times=None)
    before, retried = emulator.calls["GenerateDataKey"], kmsdata.usage().retried
    with pytest.raises(KeyServiceError) as caught:
        kms.generate_data_key(key, {})
    error = caught.value
    assert (type(error), error.code) == (kind, code)
    assert says in str(error)
    assert (error.provider, error.operation) == ("tencent-kms", "generate_data_key")
    assert emulator.calls["GenerateDataKey"] - before == tries
    assert kmsdata.usage().retried - retried == tries - 1
    assert error.retryable == (tries > 1)
    assert "also after retries" not in str(error) or tries > 1
    if kind in (KeyAccessError, KeyNotFoundError):
        assert error.key == key
    if code == fault_code(fault):
        assert re.fullmatch(r"[0-9a-f-]{36}", error.request_id)
        assert error.request_id in str(error)
    assert quiet(emulator, error)


def fault_code(fault):
    return getattr(fault, "code", None)


@pytest.mark.parametrize("name", [name for name, case in FAULTS.items() if case[3] > 1])
def test_a_fault_that_passes(emulator, kms, key, name):
    emulator.fail(FAULTS[name][0], action="GenerateDataKey", times=2)
    data_key = kms.generate_data_key(key, {})
    emulator.fail(FAULTS[name][0], action="Decrypt", times=2)
    secret = kms.unwrap(data_key.wraps[0].wrapped, key, {})
    assert DataKey(secret, data_key.wraps).commitment == data_key.commitment


@pytest.mark.parametrize(
    "fault", [Fault.hang(), Fault.stall(), Fault.drip(0.4)], ids=["hang", "stall", "drip"]
)
def test_a_hung_connection_ends(emulator, make, key, fault):
    kms = make(timeout=2, retries=5)
    wrapped = kms.generate_data_key(key, {}).wraps[0].wrapped
    emulator.fail(fault, action="Decrypt", times=None)
    began = time.monotonic()
    with pytest.raises(KeyServiceError, match=r"no answer|was interrupted") as caught:
        kms.unwrap(wrapped, key, {})
    assert time.monotonic() - began < 6  # two seconds, and a busy machine
    assert caught.value.retryable


def test_a_hang_that_passes_is_tried_again(emulator, make, key):
    kms = make(timeout=6)  # of which a try may take a third
    wrapped = kms.generate_data_key(key, {}).wraps[0].wrapped
    emulator.fail(Fault.hang(), action="Decrypt")
    assert len(kms.unwrap(wrapped, key, {})) == 32
    assert emulator.calls["Decrypt"] == 2


@pytest.mark.parametrize(("draw", "share"), [(b"\x80\0\0\0", 0.5), (bytes(4), 0.0)])
def test_pauses_are_drawn_from_zero_to_twice_the_one_before(emulator, make, key, monkeypatch, draw, share):
    pauses = []
    monkeypatch.setattr(service, "_PAUSE", 0.1)
    monkeypatch.setattr(service, "random_bytes", lambda size: draw[:size])
    monkeypatch.setattr(service.time, "sleep", pauses.append)
    emulator.fail(Fault.error("InternalError"), action="Encrypt", times=None)
    kms = make(retries=6, timeout=100)
    with pytest.raises(KeyServiceError):
        kms.wrap(bytes(32), key, {})
    assert pauses == [share * most for most in (0.2, 0.4, 0.8, 1.6, 2.0, 2.0)]


def test_all_tries_share_one_deadline(emulator, make, key, monkeypatch):
    left, apart = [], service.apart
    monkeypatch.setattr(service, "apart", lambda work, seconds: left.append(seconds) or apart(work, seconds))
    emulator.fail(Fault.error("InternalError"), action="Encrypt", times=3)
    make(timeout=9, retries=3).wrap(bytes(32), key, {})
    assert left == sorted(left, reverse=True)
    assert len(set(left)) == 4
    assert left[0] <= 9


def test_a_pause_beyond_the_deadline_is_not_made(emulator, make, key, monkeypatch):
    monkeypatch.setattr(service, "_PAUSE", 1.0)
    monkeypatch.setattr(service, "random_bytes", lambda size: b"\xff" * size)
    emulator.fail(Fault.error("InternalError"), action="Encrypt", times=None)
    began = time.monotonic()
    with pytest.raises(KeyServiceError, match=r"KMS failed\. Try again"):
        make(timeout=1).wrap(bytes(32), key, {})
    assert time.monotonic() - began < 1
    assert emulator.calls["Encrypt"] == 1


def test_a_hung_connection_can_be_interrupted(emulator, make, key):
    """Ctrl-C works at once: the main thread waits, and does not read from a socket."""
    kms = make(timeout=60)
    emulator.fail(Fault.hang(), action="Decrypt", times=None)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt) as caught:
        kms.unwrap("x", key, {})
    assert time.monotonic() - began < 20
    assert quiet(emulator, caught.value)


def test_latency_is_no_fault(emulator, kms, key):
    emulator.fail(Fault.latency(0.3), times=2)
    assert kms.generate_data_key(key, {}).wraps[0].key == key


def test_nothing_listens(emulator, kms, key):
    emulator.stop_listening()
    with pytest.raises(KeyServiceError, match=r"127\.0\.0\.1:\d+ refused the connection") as caught:
        kms.generate_data_key(key, {})
    assert caught.value.retryable
    emulator.listen()
    assert kms.generate_data_key(key, {})


def test_an_unknown_host():
    kms = kmsdata.TencentKMS(
        REGION, credential=("AKIDx", "y"), endpoint="kms.does-not-exist.invalid", timeout=8, retries=0
    )
    with pytest.raises(KeyServiceError, match=r"is not known|no answer"):
        kms.list_keys()


@pytest.mark.parametrize(
    "fields",
    [
        {"Plaintext": None}, {"Plaintext": ""}, {"Plaintext": "?"}, {"Plaintext": 5},
        {"Plaintext": base64.b64encode(bytes(31)).decode()},
        {"Plaintext": base64.b64encode(bytes(33)).decode()},
        {"CiphertextBlob": None}, {"CiphertextBlob": ""}, {"CiphertextBlob": 7}, {"CiphertextBlob": "a\nb"},
        {"CiphertextBlob": "A" * ((1 << 20) + 1)}, {"Plaintext": "A" * 43 + "=\n"},
        {"KeyId": None}, {"KeyId": "other"},
    ],
)  # fmt: skip
def test_answers_are_checked(emulator, kms, key, fields):
    emulator.fail(Fault.change(**fields), action="GenerateDataKey")
    with pytest.raises(KeyServiceError, match="not used") as caught:
        kms.generate_data_key(key, {})
    assert caught.value.code == "InvalidAnswer"
    if "CiphertextBlob" not in fields:
        wrapped = kms.generate_data_key(key, {}).wraps[0].wrapped
        emulator.fail(Fault.change(**fields), action="Decrypt")
        with pytest.raises(KeyServiceError, match="not used"):
            kms.unwrap(wrapped, key, {})
        assert wrapped not in str(caught.value)


def test_a_redirect_is_not_followed(emulator, kms, key):
    other = Emulator()
    emulator.fail(Fault.status(307, b"", location=other.url), action="Encrypt")
    with pytest.raises(KeyServiceError, match="redirects requests"):
        kms.wrap(bytes(32), key, {})
    assert other.connections == 0
    other.close()


def test_creating_is_not_sent_twice(emulator, kms):
    emulator.fail(Fault.lost(), action="CreateKey")
    with pytest.raises(
        KeyServiceError, match=r"it may have been executed, so check.*was interrupted"
    ) as caught:
        kms.create_key("once")
    assert not caught.value.retryable
    assert "retries" not in str(caught.value)
    assert emulator.calls["CreateKey"] == 1
    with pytest.raises(KeyServiceError, match="already exists"):
        kms.create_key("once")


def test_the_lost_answer_of_a_retried_call_costs_nothing(emulator, kms, key):
    emulator.fail(Fault.lost(), action="GenerateDataKey")
    data_key = kms.generate_data_key(key, {})
    assert kms.unwrap(data_key.wraps[0].wrapped, key, {})


def test_a_context_that_is_too_long(emulator, kms, key):
    with pytest.raises(KeyServiceError, match="1024") as caught:
        kms.generate_data_key(key, {"a": "x" * 1024})
    assert caught.value.code == "ContextTooLong"
    assert emulator.calls["GenerateDataKey"] == 0


def test_a_clock_that_is_off(emulator, kms, key):
    emulator.advance(301)
    with pytest.raises(CredentialsError, match="clock is more than five minutes off"):
        kms.generate_data_key(key, {})


def test_more_keys_than_a_page_holds(kms, monkeypatch):
    made = [kms.create_key(f"key-{number}") for number in range(5)]
    monkeypatch.setattr(tencent, "_PAGE", 2)
    assert [item["key"] for item in kms.list_keys()] == made
    assert kms.resolve(f"tencent-kms://{REGION}/key-4") == made[4]


@pytest.mark.parametrize(
    "fields", [{"KeyMetadatas": None}, {"KeyMetadatas": [{"KeyId": "x"}]}, {"TotalCount": "1"}]
)
def test_a_list_of_keys_that_is_none(emulator, kms, key, fields):
    emulator.fail(Fault.change(**fields), action="ListKeyDetail")
    with pytest.raises(KeyServiceError, match="no valid list of keys") as caught:
        kms.list_keys()
    assert caught.value.code == "InvalidAnswer"
    other = kms.create_key("other")
    about = kms.describe_key(other)
    assert about["alias"] == "other"
    for wrong in (None, {}, {"KeyId": key.rpartition("/")[2]}):
        emulator.fail(Fault.change(KeyMetadata=wrong), action="DescribeKey")
        with pytest.raises(KeyServiceError, match="no description, or that of another key"):
            kms.describe_key(other)


def test_it_asks_in_english(emulator, kms):
    kms.list_keys()
    assert emulator.requests[-1].headers["x-tc-language"] == "en-US"


def test_rotating_is_not_sent_twice(emulator, kms, key):
    emulator.fail(Fault.lost(), action="RotateKey")
    with pytest.raises(KeyServiceError, match="was interrupted"):
        kms.rotate_key(key)
    assert emulator.calls["RotateKey"] == 1
    with pytest.raises(KeyServiceError, match="once in 24 hours") as caught:
        kms.rotate_key(key)
    assert not caught.value.retryable
    assert emulator.calls["RotateKey"] == 2


def test_one_connection_serves_many_calls(emulator, kms, key):
    for _ in range(20):
        kms.generate_data_key(key, {})
    assert emulator.connections == 1


# What the SDK would leak.


def test_the_sdks_log_says_nothing_of_ours(emulator, kms, key, caplog):
    caplog.set_level(logging.DEBUG)
    data_key = kms.generate_data_key(key, {})
    kms.unwrap(data_key.wraps[0].wrapped, key, {})
    kms.wrap(bytes(range(32)), key, {})
    said = caplog.text
    plain = [r.params.get("Plaintext") for r in emulator.requests if r.params.get("Plaintext")]
    assert plain
    for secret in (*plain, emulator.secret_id, emulator.secret_key, "Plaintext", "TC3-HMAC"):
        assert secret not in said
    logging.getLogger("tencentcloud_sdk_common").debug("of another product")
    assert "of another product" in caplog.text


def test_warnings_of_the_sdk_fail_no_call(kms, key):
    for _ in range(2):  # as in two tests of a user, each with its own filters
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            kms.generate_data_key(key, {})
            before = list(warnings.filters)
            kms.generate_data_key(key, {})
            assert warnings.filters == before
            where = ("client.py", 1, "tencentcloud.common.abstract_client")
            warnings.warn_explicit("utcfromtimestamp() is deprecated", DeprecationWarning, *where)


def test_nothing_with_a_secret_is_pickled_or_shown(emulator, kms, key):
    request = Request("Encrypt", KeyId=key, Plaintext="SECRETTEXT")
    answer = kms._service.call(Request("ListKeys"), operation="list_keys")
    kms.account  # noqa: B018 - finds the credentials
    for thing in (kms, kms._service, kms._credentials, kms._credentials._current, request, answer):
        for copied in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError):
                copied(thing)
        assert not {"SECRETTEXT", emulator.secret_id, emulator.secret_key} & set(re.split(r"\W", repr(thing)))


def test_netrc_does_not_replace_the_signature(emulator, kms, key, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("default login a password b\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert kms.generate_data_key(key, {})


def test_proxies(emulator, make, key, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert make().generate_data_key(key, {})  # this machine is asked directly
    outside = kmsdata.TencentKMS(REGION, credential=("AKIDx", "y"), timeout=5, retries=0)
    with pytest.raises(KeyServiceError, match="HTTPS_PROXY"):
        outside.list_keys()
    monkeypatch.setenv("NO_PROXY", "tencentcloudapi.com")
    client = kmsdata.TencentKMS(REGION, credential=("AKIDx", "y"))._service._connected()
    assert client.request.conn.proxy is None


def certificate(folder):
    """Create a private CA, and a server key that it certifies for kms.example.test."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name.from_rfc4514_string("CN=kms.example.test")
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("kms.example.test"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(made.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + made.public_bytes(Encoding.PEM)
    )


@contextlib.contextmanager
def proxy(port):
    """A corporate proxy that connects every request to this port. Yields its URL and log."""
    asked, ends, threads = [], [], []

    def start(target, *args):
        threads.append(threading.Thread(target=target, args=args, daemon=True))
        threads[-1].start()

    def pump(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def serve():
        with contextlib.suppress(OSError):
            while True:
                client = server.accept()[0]
                ends.append(client)
                asked.extend(client.recv(65536).decode().splitlines()[:1])
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                upstream = socket.create_connection(("127.0.0.1", port))
                ends.append(upstream)
                start(pump, client, upstream)
                start(pump, upstream, client)

    with socket.create_server(("127.0.0.1", 0)) as server:
        start(serve)
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}", asked
        finally:
            # Closing alone would not wake a thread that waits in accept or recv, nor end its connection.
            server.shutdown(socket.SHUT_RDWR)
            threads[0].join(10)  # then no more connections are made
            for end in ends:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(10)
            for end in ends:
                end.close()


def test_over_tls_with_a_ca_of_ones_own_and_by_a_proxy(emulator, monkeypatch, tmp_path):
    certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "key.pem")
    # The handshake is left to the thread of each connection. In `accept` it would be one of the thread that
    # listens, and a client that connects and says nothing would hold up that thread, and so the teardown.
    emulator._server.socket = context.wrap_socket(
        emulator._server.socket, server_side=True, do_handshake_on_connect=False
    )

    def kms(endpoint):
        pair = emulator.secret_id, emulator.secret_key
        return kmsdata.TencentKMS(REGION, credential=pair, endpoint=endpoint, timeout=5, retries=2)

    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        here = kms(f"https://127.0.0.1:{emulator.port}")
        with pytest.raises(KeyServiceError, match="set SSL_CERT_FILE") as caught:
            here.list_keys()
        assert not caught.value.retryable
        with monkeypatch.context() as m:
            m.setenv(name, str(tmp_path / "ca.pem"))
            assert kms(f"https://127.0.0.1:{emulator.port}").list_keys() == []
    monkeypatch.setattr(
        server._Handler, "_for_here", lambda _: True
    )  # the names below are those of the proxy
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with proxy(emulator.port) as (url, asked):
        monkeypatch.setenv("HTTPS_PROXY", url)
        assert kms("kms.example.test").list_keys() == []
        assert [line.split()[1] for line in asked] == ["kms.example.test:443"]
        assert emulator.requests[-1].headers["host"] == "kms.example.test"
        with pytest.raises(KeyServiceError, match="certificate"):  # good for another name only
            kms("kms.other.test").list_keys()


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("kms.ap-guangzhou.tencentcloudapi.com", "https://kms.ap-guangzhou.tencentcloudapi.com"),
        ("https://kms.intl.tencentcloudapi.com/", "https://kms.intl.tencentcloudapi.com"),
        ("KMS.internal.tencentcloudapi.com:8443", "https://kms.internal.tencentcloudapi.com:8443"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://localhost:1", "http://localhost:1"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_endpoints(text, url):
    endpoint = Endpoint.parse(text)
    assert str(endpoint) == url
    assert endpoint.loopback == (endpoint.scheme == "http")
    assert kmsdata.TencentKMS(REGION, endpoint=text).endpoint == url


@pytest.mark.parametrize(
    ("kms", "sts"),
    [
        ("kms.tencentcloudapi.com", "https://sts.tencentcloudapi.com"),
        ("kms.intl.tencentcloudapi.com", "https://sts.intl.tencentcloudapi.com"),
        ("kms.internal.tencentcloudapi.com", "https://sts.internal.tencentcloudapi.com"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
    ],
)
def test_sts_is_beside_kms(kms, sts):
    assert str(Endpoint.parse(kms).of("sts")) == sts


@pytest.mark.parametrize(
    "text",
    [
        "http://kms.tencentcloudapi.com", "http://10.0.0.1", "http://127.0.0.1.example.org",
        "http://localhost.example.org", "ftp://127.0.0.1", "https://a/b", "https://user:pw@host", "https://h?x",
        "https://", "a b", "host:port", "https://h#f", "http://127.0.0.1@evil.org", "",
        "http://127.999.1.1", "http://127.0.0.1.evil.com", "http://0x7f.1", "http://0x7f000001", "http://127.1",
        "http://2130706433", "http://017700000001", "http://127.0.0.01", "http://localhost.", "http://0.0.0.0",
        "http://evil@127.0.0.1", "http://127.0.0.1:80@evil", "http://127.0.0.1\\\\@evil", "http://[::2]",
        "http://[::1", "http://[::ffff:127.0.0.1]", "http://127.0.0.1%2fevil", "http://127.0.0.1:99999",
    ],
)  # fmt: skip
def test_endpoints_that_are_none(text):
    with pytest.raises(ValueError, match="endpoint="):
        Endpoint.parse(text)


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1:8080", "127.255.3.4", "[::1]", "[::1]:80"]
)
def test_loopback(host):
    assert Endpoint.parse(f"http://{host}").loopback
    assert Endpoint.parse(f"https://{host}").loopback
    assert not Endpoint.parse("127.999.1.1").loopback


# Answers of a hostile server.


@pytest.mark.parametrize("packed", [False, True])
def test_an_answer_without_end_is_not_read(emulator, kms, key, packed):
    body = json.dumps({"Response": {"KeyId": "x", "Plaintext": "A" * 50_000_000}}).encode()
    fault = Fault.status(200, gzip.compress(body) if packed else body)
    if packed:
        fault.headers["Content-Encoding"] = "gzip"
    emulator.fail(fault, times=None)
    retried = kmsdata.usage().retried
    tracemalloc.start()
    try:
        with pytest.raises(KeyServiceError, match="not used") as caught:
            kms.generate_data_key(key, {})
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert caught.value.code == "InvalidAnswer"
    assert kmsdata.usage().retried == retried


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b"1", b'{"Response": "x"}', b'{"Response": {"Error": [1]}}']
)
def test_an_answer_of_another_shape(emulator, kms, key, body):
    emulator.fail(Fault.status(200, body), times=None)
    with pytest.raises(KeyServiceError, match="not an answer of KMS"):
        kms.wrap(bytes(32), key, {})


@pytest.mark.parametrize("wrong", [1 << 70, -1, True, 1.5, "x", [1], {"a": 1}, None])
def test_descriptions_of_odd_types(emulator, kms, key, wrong):
    key_id = key.rpartition("/")[2]
    escape = "\x1b[31mred\n" + "x" * 1000
    odd = {"KeyId": key_id, "Alias": escape, "KeyState": wrong, "CreateTime": wrong, "RotateDays": wrong}
    odd["KeyRotationEnabled"] = True
    emulator.fail(Fault.change(KeyMetadata=odd))
    about = kms.describe_key(key)
    assert about["alias"].startswith("\ufffd[31mred\ufffd")
    assert len(about["alias"]) == 100
    assert all(text.isprintable() for text in about.values())
    emulator.fail(Fault.change(TotalCount=wrong, KeyMetadatas=[odd]), times=None)
    assert isinstance(wrong, int) or kms.count_keys() is None


def test_a_list_of_keys_without_end(emulator, kms, key, monkeypatch):
    monkeypatch.setattr(tencent, "_MOST_KEYS", 50)
    page = [{"KeyId": key.rpartition("/")[2]}] * 10
    emulator.fail(Fault.change(TotalCount=1 << 60, KeyMetadatas=page), times=None)
    with pytest.raises(KeyServiceError, match="more than 50 keys"):
        kms.list_keys()
    assert emulator.calls["ListKeyDetail"] < 10


def test_the_messages_of_the_service_are_not_shown(emulator, kms, key):
    emulator.fail(Fault.error("UnauthorizedOperation", "\x1b[2J Traceback (most recent call last)"))
    with pytest.raises(KeyAccessError) as caught:
        kms.wrap(bytes(32), key, {})
    assert str(caught.value).isprintable()
    assert "Traceback" not in str(caught.value)
    emulator.fail(Fault.error("\x1b[2J"))
    with pytest.raises(KeyServiceError) as caught:
        kms.wrap(bytes(32), key, {})
    assert caught.value.code == "InvalidAnswer"


@pytest.mark.parametrize("endpoint", ["http://kms.example", "http://[evil", "x y", "http://127.999.1.1"])
def test_a_bad_endpoint_on_the_command_line(run, monkeypatch, endpoint):
    monkeypatch.setenv("KMSDATA_TENCENT_ENDPOINT", endpoint)
    uri = f"tencent-kms://{REGION}/x"
    for arguments in (
        ["list", REGION],
        *([verb, uri] for verb in ("create", "describe", "disable", "rotate")),
    ):
        code, out, err = run("keys", *arguments)
        assert (code, out) == (1, "")
        assert err.startswith("error: endpoint=")


def test_without_the_sdk(tmp_path):
    for name in ("requests", "tencentcloud"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('it is not installed')")
    command = [sys.executable, "-m", "kmsdata.cli", "keys", "list", REGION]
    path = f"{tmp_path}:{Path(kmsdata.__file__).parent.parent}"
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "error: tencent-kms:// keys need the official SDK, which is not installed: "
        'pip install "tencentcloud-sdk-python-kms>=3.0.1459,<4"'
    )


# Key ownership.


def frame(key, **options):
    return pd.DataFrame({"a": [1, 2]}).kms.encrypt("a", key=key, **options)


def test_an_alias_names_a_key_and_headers_record_the_id(emulator, kms, key):
    kmsdata.use(kms)
    enc = frame(f"tencent-kms://{REGION}/payroll")
    (record,) = enc["a"].dtype.header.records
    assert [wrap.key for wrap in record.wraps] == [key]
    assert enc.kms.decrypt(key=f"tencent-kms://{REGION}/payroll")["a"].tolist() == [1, 2]
    assert kms.resolve(key) == key
    with pytest.raises(KeyNotFoundError, match="no key with that alias"):
        frame(f"tencent-kms://{REGION}/pay")  # KMS searches aliases by parts of them
    kms.create_key("payroll-2")
    assert kms.describe_key(f"tencent-kms://{REGION}/payroll")["key"] == key


def test_a_key_of_another_region(emulator, kms, key):
    before = len(emulator.requests)
    for far in (key.replace(REGION, "ap-shanghai"), "tencent-kms://ap-shanghai/payroll"):
        for call in (
            lambda far=far: kms.generate_data_key(far, {}),
            lambda far=far: kms.unwrap("x", far, {}),
            lambda far=far: kms.wrap(bytes(32), far, {}),
            lambda far=far: kms.disable_key(far),
        ):
            with pytest.raises(KeyNotFoundError, match="each key belongs to one region") as caught:
                call()
            assert (caught.value.code, caught.value.key) == ("OtherRegion", far)
    assert len(emulator.requests) == before


def test_aliases_of_several_keys(kms, key):
    kmsdata.use(kms)
    other = kms.create_key("other")
    aliases = [f"tencent-kms://{REGION}/{name}" for name in ("payroll", "other")]
    for several in (aliases, [*aliases, key, other]):  # each key once, by its id
        (record,) = frame(several)["a"].dtype.header.records
        assert [wrap.key for wrap in record.wraps] == [key, other]


def test_an_alias_is_looked_up_once_in_five_minutes(emulator, kms, key, monkeypatch):
    alias = f"tencent-kms://{REGION}/payroll"
    now, later = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now() + later[0])
    for _ in range(3):
        assert kms.generate_data_key(alias, {}).wraps[0].key == key
    assert emulator.calls["ListKeyDetail"] == 1
    emulator._store.keys[key.rpartition("/")[2]].alias = "old"
    other = kms.create_key("payroll")
    assert kms.resolve(alias) == key
    later[0] = 301
    assert kms.resolve(alias) == other


def test_pinned_keys(emulator, kms, key):
    kmsdata.use(kms)
    other = kms.create_key("other")
    enc = frame(key)
    for pinned in (key, [other, key], f"tencent-kms://{REGION}/*", "tencent-kms://*"):
        assert enc.kms.decrypt(key=pinned)["a"].tolist() == [1, 2]
    calls = emulator.calls["Decrypt"]
    for pinned in (
        other, "local://demo", "tencent-kms://ap-shanghai/*", f"tencent-kms://{REGION}/other",
        "tencent-kms://ap-shanghai/payroll",  # an alias in a region without a server
    ):  # fmt: skip
        with pytest.raises(WrongKeyError, match="allows only") as caught:
            enc.kms.decrypt(key=pinned)
        assert not caught.value.allowed
    assert emulator.calls["Decrypt"] == calls


def test_the_sessions_key_is_a_limit(emulator, make, kms, key):
    kmsdata.use(kms)
    kmsdata.use(make("ap-shanghai"))
    far = make("ap-shanghai").create_key("far")
    enc = frame(far)
    kmsdata.use(key)  # from now on: ap-guangzhou
    session.forget()
    with pytest.raises(WrongKeyError, match="allows only"):
        enc.kms.decrypt()
    assert enc.kms.decrypt(key=far)["a"].tolist() == [1, 2]


def test_a_planted_file_that_names_another_region(emulator, make, kms, key):
    far = make("ap-shanghai")
    enc_far = None
    with kmsdata.using(far):
        enc_far = frame(far.create_key("far"))
    session.forget()
    kmsdata.use(kms)  # credentials were handed in for ap-guangzhou alone
    before = len(emulator.requests)
    with pytest.raises(KeyNotFoundError, match="no provider for this key"):
        enc_far.kms.decrypt()
    assert len(emulator.requests) == before


def test_a_planted_file_that_names_another_account(emulator, make, kms, key):
    emulator.add_account("AKIDother0000000000", "their-secret-key", uin="200000000002")
    theirs = make(credential=("AKIDother0000000000", "their-secret-key"))
    with kmsdata.using(theirs):
        enc = frame(theirs.create_key("theirs"))
    session.forget()
    kmsdata.use(kms)
    with pytest.raises(KeyServiceError):
        enc.kms.decrypt()


def test_a_header_never_names_a_host():
    for uri in (
        "tencent-kms://evil.example.org/k", "tencent-kms://ap-guangzhou/k@evil", "tencent-kms://ap-guangzhou:80/k",
        "tencent-kms://ap-guangzhou/a/b", "tencent-kms://AP-GUANGZHOU/k", "tencent-kms://ap-guangzhou/",
        "tencent-kms://guangzhou/k", "tencent-kms://ap-guangzhou/" + "k" * 65,
    ):  # fmt: skip
        with pytest.raises(kmsdata.FormatError):
            DataKeyRecord.from_json(
                {
                    "commitment": base64.b64encode(bytes(32)).decode(),
                    "context": {},
                    "wraps": [{"key": uri, "wrapped": ""}],
                }
            )


def test_an_answer_with_another_key_is_refused(emulator, kms, key):
    other = kms.create_key("other")
    wrapped = kms.generate_data_key(other, {}).wraps[0].wrapped
    with pytest.raises(KeyAccessError, match="KMS used another key") as caught:
        kms.unwrap(wrapped, key, {})
    assert caught.value.code == "OtherKey"
    # In a file: the header names an allowed key, but contains a key that another master key wrapped.
    kmsdata.use(kms)
    enc = frame(other)
    (record,) = enc["a"].dtype.header.records
    planted = DataKeyRecord(record.commitment, (), (Wrap(key, record.wraps[0].wrapped),))
    with pytest.raises(KeyAccessError, match="KMS used another key"):
        unwrap(planted, key)
    emulator.fail(Fault.change(KeyId=other.rpartition("/")[2]), action="GenerateDataKey")
    with pytest.raises(KeyAccessError, match="KMS used another key"):
        kms.generate_data_key(key, {})


def test_several_master_keys_and_a_region_that_is_down(emulator, make, kms, key):
    """Migration and disaster recovery: one data key, wrapped in each of two regions."""
    far = make("ap-shanghai")
    kmsdata.use(kms)
    kmsdata.use(far)
    both = [key, far.create_key("copy")]
    enc = frame(both)
    (record,) = enc["a"].dtype.header.records
    assert [wrap.key for wrap in record.wraps] == both
    session.forget()
    emulator.fail(Fault.hang_up(), region=REGION, times=None)
    assert enc.kms.decrypt()["a"].tolist() == [1, 2]
    emulator.fail(Fault.hang_up(), region="ap-shanghai", times=None)
    session._cache.clear()
    with pytest.raises(KeyServiceError, match=REGION):
        enc.kms.decrypt()


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault.error("RequestLimitExceeded"), KeyServiceError),
        (Fault.error("ResourceUnavailable.CmkDisabled"), KeyAccessError),
        (Fault.error("AuthFailure.TokenFailure"), CredentialsError),
        (Fault.reset(), KeyServiceError),
    ],
)
def test_a_dataset_whose_keys_fail_half_way_names_the_file(emulator, kms, key, fault, kind, tmp_path):
    kmsdata.use(kms)
    folder = tmp_path / "sealed"
    for number in range(4):  # each under a different data key
        part = folder / f"n={number}"
        part.mkdir(parents=True)
        enc = pd.DataFrame({"a": [1, 2]}).kms.encrypt(deterministic="a", key=key)
        enc.kms.to_parquet(part / "part.parquet", index=False)
    plain = tmp_path / "plain"
    for call in (
        lambda: kmsdata.decrypt_parquet(folder, plain),
        lambda: kmsdata.read_parquet(folder, decrypt=True),
        lambda: kmsdata.read_parquet(folder, filters=[("a", "==", 1)]),
    ):
        session._cache.clear()
        emulator.fail(fault, action="Decrypt", after=2, times=None)
        with pytest.raises(kind, match=r"n=[0-3]/part\.parquet: tencent-kms://") as caught:
            call()
        assert caught.value.path.startswith(str(folder))
        assert sorted(item.name for item in tmp_path.iterdir() if item.name != "keystore") == ["sealed"]
        emulator.heal()
    assert kmsdata.decrypt_parquet(folder, plain).rows == 8
    assert pd.read_parquet(plain)["a"].tolist() == [1, 2] * 4


def test_without_the_session_knowing_anything(emulator, kms, key, monkeypatch, tmp_path):
    """As a pipeline has it: everything from the environment."""
    monkeypatch.setenv("KMSDATA_TENCENT_ENDPOINT", emulator.url)
    monkeypatch.setenv("TENCENTCLOUD_SECRET_ID", emulator.secret_id)
    monkeypatch.setenv("TENCENTCLOUD_SECRET_KEY", emulator.secret_key)
    monkeypatch.setenv("KMSDATA_KEY", f"tencent-kms://{REGION}/payroll")
    enc = pd.DataFrame({"a": [1, 2]}).kms.encrypt("a")
    enc.kms.to_parquet(tmp_path / "a.parquet")
    calls = sum(emulator.calls.values())
    assert kmsdata.read_parquet(tmp_path / "a.parquet", decrypt=True)["a"].tolist() == [1, 2]
    assert sum(emulator.calls.values()) - calls == 1
    emulator.add_account("AKIDwriter000000000", "w-key", allow={"GenerateDataKey", "ListKeyDetail"})
    monkeypatch.setenv("TENCENTCLOUD_SECRET_ID", "AKIDwriter000000000")  # who has nothing of the first
    monkeypatch.setenv("TENCENTCLOUD_SECRET_KEY", "w-key")
    with pytest.raises(KeyAccessError, match="kms:Decrypt"):
        enc.kms.decrypt()
    monkeypatch.setenv("TENCENTCLOUD_SECRET_KEY", "wrong")
    with pytest.raises(CredentialsError, match="SecretKey does not belong to the SecretId"):
        pd.DataFrame({"a": [1]}).kms.encrypt("a")


@pytest.mark.parametrize("wrong", ["TENCENTCLOUD_SECRET_KEY", "TENCENTCLOUD_TOKEN"])
def test_who_has_the_secret_id_alone_has_no_unwrapped_key(emulator, monkeypatch, wrong):
    """A SecretId is not secret: a cached key is used only with the same SecretKey and token as well."""
    emulator.add_account("AKIDtemporary000000", "temporary-key", token="its-token")
    monkeypatch.setenv("KMSDATA_TENCENT_ENDPOINT", emulator.url)
    monkeypatch.setenv("TENCENTCLOUD_SECRET_ID", "AKIDtemporary000000")
    monkeypatch.setenv("TENCENTCLOUD_SECRET_KEY", "temporary-key")
    monkeypatch.setenv("TENCENTCLOUD_TOKEN", "its-token")
    enc = frame(kmsdata.TencentKMS(REGION, endpoint=emulator.url).create_key("own"))
    for _ in range(2):
        enc.kms.decrypt()
    assert emulator.calls["Decrypt"] == 1
    monkeypatch.setenv(wrong, "wrong")
    with pytest.raises(CredentialsError):
        enc.kms.decrypt()


@pytest.mark.usefixtures("environment")
def test_forgetting_takes_the_credentials_of_a_role_along(emulator, key, monkeypatch):
    monkeypatch.setenv("TENCENTCLOUD_ROLE_ARN", "qcs::cam::uin/100000000001:roleName/reader")
    for times in (1, 1, 2):
        if times == 2:
            session.forget()
        frame(key)
        assert emulator.calls["AssumeRole"] == times


@pytest.mark.parametrize("spec", ["AES_128", "AES_256"])
def test_a_column_of_the_vendors_guide(emulator, kms, key, spec):
    """Its three steps, with the real SDK; and the column brought over."""
    made = kms._service.call(
        Request("GenerateDataKey", KeyId=key.rpartition("/")[2], KeySpec=spec, EncryptionContext='{"a":"b"}'),
        operation="guide",
    ).fields
    encryptor = Cipher(algorithms.AES(base64.b64decode(made["Plaintext"])), modes.ECB()).encryptor()  # noqa: S305
    cell = base64.b64encode(encryptor.update(b"078-05-1120\0\0\0\0\0")).decode()
    kmsdata.use(kms)
    old = pd.Series([cell, None], name="ssn")
    with pytest.warns(UserWarning, match="had no integrity.*Zero bytes at the end"):
        new = kmsdata.migrate_guide_column(
            old, made["CiphertextBlob"], key=key, context={"a": "b"}, encrypt=key
        )
    assert new.kms.decrypt().tolist()[0] == "078-05-1120"
    with pytest.raises(KeyAccessError, match="context"), pytest.warns(UserWarning, match="integrity"):
        kmsdata.migrate_guide_column(old, made["CiphertextBlob"], key=key)
    # No column of kmsdata is encrypted under such a key: it has 16 bytes, or was unwrapped manually.
    record = DataKeyRecord(bytes(32), (("a", "b"),), (Wrap(key, made["CiphertextBlob"]),))
    with pytest.raises((KeyServiceError, WrongKeyError)):
        unwrap(record, key)


# Credentials.


def test_no_credentials_at_all(emulator):
    kms = kmsdata.TencentKMS(REGION, endpoint=emulator.url)
    with pytest.raises(CredentialsError, match=r"kmsdata\.login") as caught:
        kms.list_keys()
    places = (
        "credential=", "TENCENTCLOUD_SECRET_ID", "~/.tencentcloud", "/etc/tencentcloud", "CVM", "TKE",
        "AssumeRole",
    )  # fmt: skip
    assert [part in text for part, text in zip(places, caught.value.tried, strict=True)] == [True] * 7
    assert emulator.requests == []


def test_the_environment(emulator, monkeypatch):
    kms = kmsdata.TencentKMS(REGION, endpoint=emulator.url)
    monkeypatch.setenv("TENCENTCLOUD_SECRET_ID", emulator.secret_id)
    with pytest.raises(CredentialsError, match="TENCENTCLOUD_SECRET_KEY is not"):
        kms.list_keys()
    monkeypatch.setenv("TENCENTCLOUD_SECRET_KEY", f" {emulator.secret_key}\n")  # pasted with blanks
    assert kms.list_keys() == []
    assert kms.account.endswith("(the environment)")
    assert emulator.secret_id not in kms.account
    emulator.add_account("AKIDtemporary000000", "temporary-key", token="its-token")
    monkeypatch.setenv("TENCENTCLOUD_SECRET_ID", "AKIDtemporary000000")
    monkeypatch.setenv("TENCENTCLOUD_SECRET_KEY", "temporary-key")
    with pytest.raises(CredentialsError, match="token"):
        kms.list_keys()
    for name in ("TENCENTCLOUD_SECURITY_TOKEN", "TENCENTCLOUD_TOKEN"):
        with monkeypatch.context() as m:
            m.setenv(name, "its-token")
            assert kms.list_keys() == []
    monkeypatch.setenv("TENCENTCLOUD_SECRET_KEY", "temporary\x00key".replace("\x00", "\x7f"))
    with pytest.raises(CredentialsError, match="contains invalid characters") as caught:
        kms.list_keys()
    assert quiet(emulator, caught.value, "temporary\x7f")


@pytest.mark.parametrize("quote", ["", '"', "'"])
def test_the_profile(emulator, tmp_path, quote):
    kms = kmsdata.TencentKMS(REGION, endpoint=emulator.url)
    path = tmp_path / ".tencentcloud" / "credentials"
    path.parent.mkdir()
    profile = configparser.ConfigParser(interpolation=None)
    profile["default"] = {
        "secret_id": f"{quote}{emulator.secret_id}{quote}",
        "secret_key": f"{quote}{emulator.secret_key}{quote}",
    }
    with path.open("w") as file:
        profile.write(file)
    assert kms.list_keys() == []
    assert "~/.tencentcloud/credentials" in kms.account
    emulator.add_account("AKIDtmp", "temporary-key", token="its-token")
    profile["default"] = {"secret_id": "AKIDtmp", "secret_key": "temporary-key", "token": "its-token"}
    with path.open("w") as file:
        profile.write(file)
    assert kms.list_keys() == []
    assert (
        kms.account == "… (~/.tencentcloud/credentials)"
    )  # its first and last four characters would show all of it


@pytest.mark.parametrize(
    "text", ["", "[other]\nsecret_id = a\n", "secret_id = SECRETTEXT", "[default]\nsecret_id = a\n"]
)
def test_a_profile_that_is_none(emulator, tmp_path, text):
    path = tmp_path / ".tencentcloud" / "credentials"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(CredentialsError, match=r"has no \[default\]") as caught:
        kmsdata.TencentKMS(REGION, endpoint=emulator.url).list_keys()
    assert str(path) in str(caught.value)
    assert quiet(emulator, caught.value, "SECRETTEXT")


def instance(emulator, monkeypatch, seconds=7200):
    emulator.instance_role, emulator.role_seconds = "analyst", seconds
    path = "/latest/meta-data/cam/security-credentials/"
    monkeypatch.setattr(credentials, "_METADATA", emulator.url + path)


def test_the_role_of_an_instance_and_its_renewal(emulator, monkeypatch):
    instance(emulator, monkeypatch, 100)
    kms = kmsdata.TencentKMS(REGION, endpoint=emulator.url)
    assert kms.list_keys() == []
    assert "CVM" in kms.account
    first = kms._credentials._current
    now, later = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: now() + later[0])  # for the emulator too
    later[0] = 75
    kms.list_keys()
    assert kms._credentials._current is first
    later[0] = 85  # before they run out
    kms.list_keys()
    assert kms._credentials._current is not first
    second = kms._credentials._current
    emulator.instance_role = None  # cannot be renewed: those there are do until they end
    later[0] = 85 + 90
    kms.list_keys()
    assert kms._credentials._current is second
    later[0] = 85 + 101
    calls = emulator.calls["ListKeyDetail"]
    with pytest.raises(CredentialsError) as caught:
        kms.list_keys()
    assert caught.value.code == "NoCredentials"
    assert emulator.calls["ListKeyDetail"] == calls  # those that are over are not even tried
    emulator.instance_role, emulator.role_seconds = "analyst", 7200
    later[0] = 1000
    kms.list_keys()
    third = kms._credentials._current
    for seconds, same in ((6800, True), (6950, False)):  # five minutes before, where they live long
        later[0] = 1000 + seconds
        kms.list_keys()
        assert (kms._credentials._current is third) == same


def test_a_long_job_outlives_its_credentials(emulator, monkeypatch):
    instance(emulator, monkeypatch, 1000)
    kms = kmsdata.TencentKMS(REGION, endpoint=emulator.url)
    now, later = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: now() + later[0])
    seen = set()
    for _ in range(40):
        kms.list_keys()
        seen.add(kms._credentials._current.secret_id)
        later[0] += 190
    assert 8 <= len(seen) <= 14


def oidc(emulator, monkeypatch, tmp_path):
    (tmp_path / "token").write_text(emulator.web_identity_token)
    for name, text in {
        "TKE_REGION": REGION,
        "TKE_PROVIDER_ID": "tke",
        "TKE_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
        "TKE_ROLE_ARN": "qcs::cam::uin/100000000001:roleName/pod",
    }.items():
        monkeypatch.setenv(name, text)


def test_a_pod_in_tke(emulator, monkeypatch, tmp_path):
    kms = kmsdata.TencentKMS(REGION, endpoint=emulator.url)
    oidc(emulator, monkeypatch, tmp_path)
    assert kms.list_keys() == []
    assert "TKE OIDC" in kms.account
    assert emulator.calls["AssumeRoleWithWebIdentity"] == 1
    other = kmsdata.TencentKMS(REGION, endpoint=emulator.url)
    monkeypatch.delenv("TKE_PROVIDER_ID")
    with pytest.raises(CredentialsError, match="TKE_PROVIDER_ID is not"):
        other.list_keys()
    oidc(emulator, monkeypatch, tmp_path)
    (tmp_path / "token").write_text("stale-token-of-a-pod")
    with pytest.raises(KeyServiceError) as caught:
        other.list_keys()
    assert quiet(emulator, caught.value, "stale-token-of-a-pod")


def test_a_role_that_is_assumed(emulator, monkeypatch, tmp_path):
    monkeypatch.setenv("TENCENTCLOUD_SECRET_ID", emulator.secret_id)
    monkeypatch.setenv("TENCENTCLOUD_SECRET_KEY", emulator.secret_key)
    monkeypatch.setenv("TENCENTCLOUD_ROLE_ARN", "qcs::cam::uin/100000000001:roleName/reader")
    kms = kmsdata.TencentKMS(REGION, endpoint=emulator.url)
    for _ in range(3):
        assert kms.list_keys() == []
    assert emulator.calls["AssumeRole"] == 1
    assert "roleName/reader" in kms.account
    # Passed-in credentials are used as they are; and a pod in TKE already has a role.
    pair = emulator.secret_id, emulator.secret_key
    assert kmsdata.TencentKMS(REGION, endpoint=emulator.url, credential=pair).list_keys() == []
    monkeypatch.delenv("TENCENTCLOUD_SECRET_ID")
    monkeypatch.delenv("TENCENTCLOUD_SECRET_KEY")
    oidc(emulator, monkeypatch, tmp_path)
    assert kmsdata.TencentKMS(REGION, endpoint=emulator.url).list_keys() == []
    assert emulator.calls["AssumeRole"] == 1


@pytest.mark.usefixtures("environment")
def test_a_role_that_may_not_be_assumed(emulator, monkeypatch):
    monkeypatch.setenv("TENCENTCLOUD_ROLE_ARN", "qcs::cam::uin/100000000001:roleName/reader")
    for code in ("UnauthorizedOperation", "InvalidParameter.RoleNotExist", "AuthFailure.SignatureFailure"):
        emulator.fail(Fault.error(code), action="AssumeRole")
        kms = kmsdata.TencentKMS(REGION, endpoint=emulator.url)
        for call in (kms.count_keys, lambda: kmsdata.login(region=REGION, endpoint=emulator.url)):
            emulator.heal()
            emulator.fail(Fault.error(code), action="AssumeRole")
            with pytest.raises(CredentialsError) as caught:
                call()
            assert caught.value.code == code
            assert len(caught.value.tried) == 7
            assert emulator.calls["ListKeys"] == 0
            assert quiet(emulator, caught.value)
    emulator.fail(Fault.error("UnauthorizedOperation"), action="AssumeRole")
    with pytest.raises(CredentialsError, match=r"sts:AssumeRole was refused\. Check the role"):
        kms.list_keys()


@pytest.mark.usefixtures("environment")
def test_a_slow_renewal_takes_no_time_from_the_call(emulator, monkeypatch):
    monkeypatch.setenv("TENCENTCLOUD_ROLE_ARN", "qcs::cam::uin/100000000001:roleName/reader")
    kms = kmsdata.TencentKMS(REGION, endpoint=emulator.url, timeout=2)
    emulator.fail(Fault.latency(0.8), action="AssumeRole")
    emulator.fail(Fault.latency(0.8), action="ListKeys")
    before = kmsdata.usage().retried
    monkeypatch.setattr(kms._service, "timeout", 1.5)
    assert kms.count_keys() == 0
    assert kmsdata.usage().retried == before
    emulator.fail(Fault.hang(), action="AssumeRole", times=None)
    kms = kmsdata.TencentKMS(REGION, endpoint=emulator.url, timeout=1)
    began = time.monotonic()
    with pytest.raises(KeyServiceError, match="no answer"):
        kms.count_keys()
    assert time.monotonic() - began < 5


@pytest.mark.usefixtures("environment")
def test_a_renewal_that_fails_is_not_tried_at_each_call(emulator, monkeypatch):
    monkeypatch.setenv("TENCENTCLOUD_ROLE_ARN", "qcs::cam::uin/100000000001:roleName/reader")
    kms = kmsdata.TencentKMS(REGION, endpoint=emulator.url)
    assert kms.list_keys() == []
    now, later = time.time, [7000.0]
    monkeypatch.setattr(time, "time", lambda: now() + later[0])
    emulator.fail(Fault.error("UnauthorizedOperation"), action="AssumeRole", times=None)
    for _ in range(5):
        assert kms.list_keys() == []
    assert emulator.calls["AssumeRole"] == 2
    later[0] += 11
    assert kms.list_keys() == []
    assert emulator.calls["AssumeRole"] == 3
    emulator.heal()
    later[0] += 11
    assert kms.list_keys() == []
    assert kms._credentials._current.expires > now() + later[0] + 7000


@pytest.mark.usefixtures("environment")
def test_credentials_of_a_role_that_do_not_run_out_are_none(emulator, monkeypatch):
    monkeypatch.setenv("TENCENTCLOUD_ROLE_ARN", "qcs::cam::uin/100000000001:roleName/reader")
    for fields in ({"ExpiredTime": None}, {"Credentials": None}, {"Credentials": {"Token": "t"}}):
        emulator.fail(Fault.change(**fields), action="AssumeRole")
        with pytest.raises(CredentialsError, match="STS contains no temporary credentials"):
            kmsdata.TencentKMS(REGION, endpoint=emulator.url).list_keys()


def test_metadata_that_never_answer(emulator, monkeypatch):
    """With a slow name server, the error still mentions login()."""
    monkeypatch.setattr(credentials, "_METADATA_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(credentials, "_METADATA", f"http://127.0.0.1:{silent.getsockname()[1]}/")
        began = time.monotonic()
        with pytest.raises(CredentialsError, match=r"kmsdata\.login"):
            kmsdata.TencentKMS(REGION, endpoint=emulator.url).list_keys()
        assert time.monotonic() - began < 2.5  # the request itself would wait for three seconds


@pytest.mark.parametrize(
    "options",
    [
        {"region": "guangzhou"}, {"timeout": 0}, {"retries": -1}, {"endpoint": "http://example.org"},
        {"credential": {"SecretId": "AKIDx", "SecretKey": "SECRETTEXT"}}, {"credential": "AKIDx:SECRETTEXT"},
    ],
)  # fmt: skip
def test_what_is_refused_shows_no_credential(options):
    options = {"region": REGION, "credential": ("AKIDx", "SECRETTEXT")} | options
    with pytest.raises((TypeError, ValueError)) as caught:
        kmsdata.TencentKMS(**options)
    assert "SECRETTEXT" not in shown(caught.value)


def test_a_pair_may_be_a_list(emulator, make):
    assert make(credential=[emulator.secret_id, emulator.secret_key]).list_keys() == []


def test_a_credential_of_the_sdk(emulator, make):
    from tencentcloud.common.credential import Credential

    kms = make(credential=Credential(emulator.secret_id, emulator.secret_key))
    assert kms.list_keys() == []

    class Broken:
        def get_credential_info(self):
            raise RuntimeError("SECRETTEXT")

    class Slow:
        def get_credential_info(self):
            time.sleep(5)

    began = time.monotonic()
    with pytest.raises(CredentialsError, match="did not return them"):
        make(credential=Slow(), timeout=0.2).list_keys()
    assert time.monotonic() - began < 4
    for bad in (Broken(), ("", "x"), ("AKIDx", None), ("a", "b", "c", "d")):
        with pytest.raises(CredentialsError, match="no SecretId or no SecretKey") as caught:
            make(credential=bad).list_keys()
        assert quiet(emulator, caught.value, "SECRETTEXT")
    for bad in ("AKIDx", 5, object()):
        with pytest.raises(TypeError, match="credential="):
            make(credential=bad)


def test_the_order_of_the_places(emulator, monkeypatch, tmp_path):
    instance(emulator, monkeypatch)
    oidc(emulator, monkeypatch, tmp_path)
    found = []

    def look(**options):
        kms = kmsdata.TencentKMS(REGION, endpoint=emulator.url, **options)
        kms.list_keys()
        found.append(kms._credentials.source)

    emulator.instance_role = None
    look()
    emulator.instance_role = "analyst"
    look()
    (tmp_path / ".tencentcloud").mkdir()
    (tmp_path / ".tencentcloud" / "credentials").write_text(
        f"[default]\nsecret_id = {emulator.secret_id}\nsecret_key = {emulator.secret_key}\n"
    )
    look()
    monkeypatch.setenv("TENCENTCLOUD_SECRET_ID", emulator.secret_id)
    monkeypatch.setenv("TENCENTCLOUD_SECRET_KEY", emulator.secret_key)
    look()
    look(credential=(emulator.secret_id, emulator.secret_key))
    assert found == [
        "TKE OIDC", "the CVM instance role", "~/.tencentcloud/credentials", "the environment", "passed in",
    ]  # fmt: skip


def test_a_token_that_runs_out(emulator, make):
    emulator.add_account("AKIDtemporary000000", "temporary-key", token="its-token", expires=60)
    kms = make(credential=("AKIDtemporary000000", "temporary-key", "its-token"))
    assert kms.list_keys() == []
    emulator.advance(61)
    with pytest.raises(CredentialsError, match="session token has expired") as caught:
        kms.list_keys()
    assert quiet(emulator, caught.value, "its-token", "temporary-key")


def test_roles_that_may_only_write_or_only_read(emulator, make, kms, key):
    writes = {"GenerateDataKey", "ListKeyDetail"}
    emulator.add_account("AKIDwriter000000000", "w-key", uin=emulator.uin, allow=writes)
    emulator.add_account("AKIDreader000000000", "r-key", uin=emulator.uin, allow={"Decrypt"})
    writer, reader = (
        make(credential=pair) for pair in (("AKIDwriter000000000", "w-key"), ("AKIDreader000000000", "r-key"))
    )
    with kmsdata.using(writer):
        enc = frame(key)
        with pytest.raises(KeyAccessError, match="kms:Decrypt"):
            enc.kms.decrypt()
    with kmsdata.using(reader):
        assert enc.kms.decrypt()["a"].tolist() == [1, 2]
        with pytest.raises(KeyAccessError, match="kms:GenerateDataKey"):
            frame(key)
    assert reader.count_keys() is None
    assert kms.count_keys() == 1


# Long runs.


@pytest.mark.slow
def test_soak(emulator, make, key):
    """Eight threads, five thousand calls, faults at random: nothing lost, no wrong key accepted."""
    kms = make(timeout=30, retries=8)
    keys = [key, kms.create_key("second")]
    known = []
    for number in range(40):
        context = {"n": str(number % 5)}
        known.append((kms.generate_data_key(keys[number % 2], context), context))
    wrong = keys[1].rpartition("/")[2]
    for fault in (
        Fault.error("RequestLimitExceeded"), Fault.error("InternalError"), Fault.reset(), Fault.hang_up(),
        Fault.truncate(), Fault.html(), Fault.status(502), Fault.lost(),
    ):  # fmt: skip
        emulator.fail(fault, times=None, probability=0.02)
    emulator.fail(Fault.change(KeyId=wrong), action="Decrypt", times=None, probability=0.02)
    emulator.fail(
        Fault.change(Plaintext=base64.b64encode(bytes(32)).decode()),
        action="Decrypt",
        times=None,
        probability=0.01,
    )
    done, refused, failures = [], [], []

    def work(first):
        for turn in range(625):
            data_key, context = known[(first + turn) % len(known)]
            (wrap,) = data_key.wraps
            record = DataKeyRecord(data_key.commitment, tuple(context.items()), (wrap,))
            try:
                opened = unwrap(record, wrap.key)
            except (KeyAccessError, WrongKeyError) as error:
                refused.append(error)
            except BaseException as error:  # noqa: BLE001
                failures.append(error)
            else:
                done.append(opened.commitment == data_key.commitment)

    with kmsdata.using(kms), kmsdata.using(kmsdata.KeyCache(age=0)):
        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(work, 5 * n)) for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert len(done) + len(refused) == 5000
    assert all(done)
    assert 0 < len(refused) < 500  # those that were answered with another key, and no others
    assert {getattr(error, "code", None) for error in refused} <= {"OtherKey", None}


def test_ten_thousand_files_cost_one_call(emulator, kms, key):
    kmsdata.use(kms)
    enc = frame(key)
    calls = emulator.calls["Decrypt"]
    record = enc["a"].dtype.header.records[0]
    for _ in range(10_000):
        unwrap(record)
    assert emulator.calls["Decrypt"] - calls == 1


def test_a_hundred_threads_that_need_one_key(emulator, kms, key):
    kmsdata.use(kms)
    record = frame(key)["a"].dtype.header.records[0]
    emulator.fail(Fault.latency(0.3), action="Decrypt")
    before, opened = kmsdata.usage(), []
    ready = threading.Barrier(100)

    def work():
        ready.wait()
        opened.append(unwrap(record).commitment)

    threads = [threading.Thread(target=work) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == [record.commitment] * 100
    assert emulator.calls["Decrypt"] == 1
    after = kmsdata.usage()
    assert (after.unwrap - before.unwrap, after.cached - before.cached) == (1, 99)


# The command line and login.


@pytest.fixture
def environment(emulator, monkeypatch):
    monkeypatch.setenv("KMSDATA_TENCENT_ENDPOINT", emulator.url)
    monkeypatch.setenv("TENCENTCLOUD_SECRET_ID", emulator.secret_id)
    monkeypatch.setenv("TENCENTCLOUD_SECRET_KEY", emulator.secret_key)


@pytest.mark.usefixtures("environment")
def test_keys_on_the_command_line(run):
    code, out, _ = run("keys", "create", f"tencent-kms://{REGION}/payroll", "--json")
    key = json.loads(out)["key"]
    assert code == 0
    alias = f"tencent-kms://{REGION}/payroll"
    code, out, _ = run("keys", "list", REGION)
    assert code == 0
    words = (key.rpartition("/")[2], "payroll", "Enabled", "the environment", f"tencent-kms://{REGION}/KEYID")
    assert [word in out for word in words] == [True] * 5
    assert json.loads(run("keys", "describe", alias, "--json")[1])["key"] == key
    assert run("keys", "disable", alias)[0] == 0
    assert json.loads(run("keys", "list", REGION, "--json")[1])["keys"][0]["state"] == "Disabled"
    assert run("keys", "enable", key)[0] == 0
    assert run("keys", "rotate", key)[0] == 0
    for command, state in (("disable", "Disabled"), ("enable", "Enabled"), ("rotate --every 30", "Enabled")):
        about = json.loads(run("keys", *command.split(), key, "--json")[1])
        assert (about["key"], about["state"]) == (key, state)
    assert about["rotation"] == "every 30 days"
    assert run("keys", "rotate", key, "--every", "90")[0] == 0
    assert "every 90 days" in run("keys", "describe", key)[1]
    assert run("keys", "rotate", key, "--every", "0")[0] == 0
    assert json.loads(run("keys", "describe", key, "--json")[1])["rotation"] == "off"
    code, _, err = run("keys", "create", alias)
    assert (code, "already exists" in err) == (1, True)
    code, _, err = run("keys", "rotate", key, "--every", "5")
    assert (code, "7 to 365" in err) == (2, True)
    code, _, err = run("keys", "describe", f"tencent-kms://{REGION}/missing")
    assert (code, "no key with that alias" in err) == (1, True)


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("alias", ["payroll", "payroll-of-the-whole-company-and-all-of-its-shops"])
def test_the_list_of_keys_in_a_terminal(run, kms, monkeypatch, alias):
    key = kms.create_key(alias).rpartition("/")[2]
    kms.enable_rotation(f"tencent-kms://{REGION}/{key}", 365)
    kms.disable_key(f"tencent-kms://{REGION}/{key}")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a terminal
    out = re.sub(r"\x1b\[[0-9;]*m", "", run("keys", "list", REGION)[1]).splitlines()
    table = out[: next(at for at, line in enumerate(out) if line.startswith("In "))]
    assert max(map(len, table)) <= 80
    for word in ("Disabled", "every 365 days", key):
        assert any(word in line for line in table)
    start = table[0].index("alias")
    assert "".join(line[start : table[0].index("state")].strip() for line in table[1:]) == alias  # not cut


def test_the_command_line_without_credentials(run, emulator, monkeypatch):
    monkeypatch.setenv("KMSDATA_TENCENT_ENDPOINT", emulator.url)
    code, _, err = run("keys", "list", REGION)
    assert code == 1
    assert "hint: searched in this order: TENCENTCLOUD_SECRET_ID" in err.replace("\n", " ")


@pytest.mark.usefixtures("environment")
def test_login_with_what_there_is(emulator, key, capsys):
    provider = kmsdata.login(key=f"tencent-kms://{REGION}/payroll")
    out = capsys.readouterr().out
    assert "ap-guangzhou" in out
    assert "the environment" in out
    assert emulator.secret_id not in out
    assert provider.region == REGION
    assert pd.DataFrame({"a": [1]}).kms.encrypt("a").kms.decrypt()["a"].tolist() == [1]


@pytest.mark.usefixtures("environment")
def test_login_empties_the_cache(emulator, kms, key):
    kmsdata.login(region=REGION)
    enc = frame(key)
    for times in (1, 1, 2):
        if times == 2:
            held = session.provider_of(key, pinned=True)
            kmsdata.login(region=REGION)
            kmsdata.use(held)  # a provider from before login(), with no cached keys
        enc.kms.decrypt()
        assert emulator.calls["Decrypt"] == times


def test_login_where_nobody_can_be_asked(emulator, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(CredentialsError, match="no user to ask for them: set TENCENTCLOUD_SECRET_ID"):
        kmsdata.login(region=REGION, endpoint=emulator.url)
    monkeypatch.setenv("TENCENTCLOUD_SECRET_ID", emulator.secret_id)
    monkeypatch.setenv("TENCENTCLOUD_SECRET_KEY", emulator.secret_key)
    with pytest.raises(ValueError, match="no region: pass region="):
        kmsdata.login(endpoint=emulator.url)
    monkeypatch.setenv("TENCENTCLOUD_REGION", REGION)
    assert kmsdata.login(endpoint=emulator.url).region == REGION


@pytest.mark.parametrize("key", ["local://demo", "tencent-kms://ap-shanghai/k", "svc://k"])
def test_login_for_a_key_that_is_elsewhere(emulator, key):
    with pytest.raises(ValueError, match="not a key of Tencent Cloud KMS in ap-guangzhou"):
        kmsdata.login(region=REGION, key=key, endpoint=emulator.url)
    assert session._process == session._State()


@pytest.mark.parametrize("given", ["nothing", "a pair"])
def test_login_at_a_real_terminal(emulator, given):
    """Prompts for what is missing and for nothing else, and echoes no secret."""
    answers = {"Region": REGION}
    environment = {name: text for name, text in os.environ.items() if name != "KMSDATA_KEYSTORE"}
    environment["KMSDATA_TENCENT_ENDPOINT"] = emulator.url
    if given == "a pair":
        environment["TENCENTCLOUD_SECRET_ID"] = emulator.secret_id
        environment["TENCENTCLOUD_SECRET_KEY"] = emulator.secret_key
    else:
        answers |= {"SecretId": emulator.secret_id, "SecretKey": emulator.secret_key, "Session": ""}
    # Instance metadata is never requested.
    code = (
        "import kmsdata; from kmsdata.keys.tencent import credentials; "
        "credentials._METADATA = 'http://127.0.0.1:9/'; kmsdata.login(); print('done')"
    )
    terminal, theirs = pty.openpty()
    command = [sys.executable, "-c", code]
    child = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    seen, asked = "", []
    with contextlib.suppress(OSError):  # the end of a terminal
        while text := os.read(terminal, 4096).decode():
            seen += text
            prompt = seen.rpartition("\n")[2]
            if prompt.endswith(": "):
                asked.append(prompt.split()[0])
                os.write(terminal, f"{answers.get(asked[-1], '')}\n".encode())
    os.close(terminal)
    assert child.wait(20) == 0, seen
    assert asked == list(answers)
    assert seen.rstrip().endswith("done")
    assert "Connected to Tencent Cloud KMS in ap-guangzhou" in seen
    for secret in (emulator.secret_id, emulator.secret_key):
        assert secret not in seen


class Terminal:
    """Standard input at a terminal."""

    def __init__(self, *lines):
        self.lines = list(lines)

    def isatty(self):
        return True

    def readline(self):
        return self.lines.pop(0) + "\n"


def test_login_at_a_terminal(emulator, key, monkeypatch, capsys):
    asked, answers = [], [f"{emulator.secret_id} ", f" {emulator.secret_key}", ""]
    monkeypatch.setattr("sys.stdin", Terminal(REGION))
    monkeypatch.setattr("getpass.getpass", lambda prompt: asked.append(prompt) or answers.pop(0))
    provider = kmsdata.login(endpoint=emulator.url)
    assert [text.split()[0] for text in asked] == ["SecretId", "SecretKey", "Session"]
    out = capsys.readouterr()
    assert "Connected to Tencent Cloud KMS in ap-guangzhou" in out.out
    assert "1 key" in out.out
    for secret in (emulator.secret_id, emulator.secret_key):
        assert secret not in out.out + out.err + repr(provider)
    kmsdata.use(key)
    assert pd.DataFrame({"a": [1]}).kms.encrypt("a").kms.decrypt()["a"].tolist() == [1]


def test_login_with_temporary_credentials(emulator, monkeypatch, capsys):
    emulator.add_account("AKIDtemporary000000", "temporary-key", token="its-token")
    answers = ["AKIDtemporary000000", "temporary-key", "its-token"]
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("getpass.getpass", lambda prompt: answers.pop(0))  # noqa: ARG005
    assert kmsdata.login(region=REGION, endpoint=emulator.url).list_keys() == []
    assert "AKID…0000 (passed in); 0 keys" in capsys.readouterr().out


@pytest.mark.parametrize("typed", [[""], ["AKIDx", ""], [EOFError], ["AKIDx", EOFError]])
def test_login_with_nothing_typed(emulator, monkeypatch, typed):
    def answer(_):
        if (given := typed.pop(0)) is EOFError:
            raise EOFError
        return given

    typed = list(typed)
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("getpass.getpass", answer)
    with pytest.raises(CredentialsError, match="no SecretId or no SecretKey was entered"):
        kmsdata.login(region=REGION, endpoint=emulator.url)
    assert emulator.requests == []


def test_login_with_a_wrong_key(emulator, monkeypatch):
    answers = [emulator.secret_id, "wrong-SecretKey", ""]
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("getpass.getpass", lambda prompt: answers.pop(0))  # noqa: ARG005
    with pytest.raises(CredentialsError, match="SecretKey does not belong to the SecretId") as caught:
        kmsdata.login(region=REGION, endpoint=emulator.url)
    assert quiet(emulator, caught.value, "wrong-SecretKey")
    assert session._process == session._State()
