"""No frame of an error of a provider leads to a data key, a master key, a passphrase or a credential.

The walk begins at the error: its traceback, ``__cause__``, ``__context__``, arguments, attributes. It takes
the local variables of every frame except those of this file, and goes on through everything that they refer
to: ``__dict__``, ``__slots__``, containers, closures, defaults, bound methods, generators, weak references
and what else the garbage collector follows, also inside the official SDK, requests and urllib3. In each text
and each object with bytes it looks for the secret, and for its base64 and hexadecimal forms.

It does not follow modules, classes, the globals of functions, ``os.environ``, and an object's
``__weakref__``: a passphrase or SecretKey in an environment variable stays there. It does not see the memory
of the process, and code that runs in the process can call `Hidden.reveal` or the provider itself.
"""

import base64
import builtins
import collections
import contextlib
import gc
import io
import json
import os
import pickle
import sys
import traceback
import types
import weakref

import pyarrow as pa
import pytest
from filelock import Timeout

import kmsdata
from kmsdata.emulator import Emulator
from kmsdata.emulator.faults import Fault
from kmsdata.keys import session
from kmsdata.keys.data_key import DataKey, Hidden
from kmsdata.keys.envelope import Wrap
from kmsdata.keys.local import keystore as local
from kmsdata.keys.local import keystore_file
from kmsdata.keys.tencent import credentials, transport

pytestmark = pytest.mark.newest

DATA_KEY = bytes.fromhex("d0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f")
MASTER_KEY = bytes.fromhex("5a" + "c7" * 30 + "5b")
PASSPHRASE = "correct horse battery staple"
SECRET_KEY = "SecretKeyOfTheAccount0123456789AB"
TOKEN = "TokenOfTheAccount0123456789ABCDEF0123456789"
WEB_TOKEN = "WebIdentityToken0123456789abcdef"
SECRETS = (DATA_KEY, MASTER_KEY, PASSPHRASE, SECRET_KEY, TOKEN, WEB_TOKEN)
KEY_ID = "23e80852-1e38-11e9-b129-5cb9019b4b01"


# The walk.


def forms(secret):
    """The ways in which a secret may be written: as it is, in hexadecimal, in base64, as Python shows it."""
    raw = secret.encode() if isinstance(secret, str) else secret
    encoded = base64.b64encode(raw).rstrip(b"=")
    found = {raw, raw.hex().encode(), raw.hex().upper().encode(), encoded, repr(raw)[2:-1].encode()}
    return found | {
        encoded.replace(b"+", b"-").replace(b"/", b"_"),
        raw.decode("latin-1").encode("utf-16-le"),
    }


FORMS = [form for secret in SECRETS for form in forms(secret)]
STOP = (types.ModuleType, type, types.CodeType, types.BuiltinFunctionType)


def texts(thing):
    """Everything that an object of a simple type says."""
    if isinstance(thing, str):
        yield thing.encode("utf-8", "surrogatepass")
    elif isinstance(thing, (bytes, bytearray)):
        yield bytes(thing)
    elif isinstance(thing, memoryview):
        yield thing.tobytes()
    elif isinstance(thing, io.BytesIO):
        yield thing.getvalue()
    elif isinstance(thing, io.StringIO):
        yield thing.getvalue().encode("utf-8", "surrogatepass")


def slots(cls):
    names = cls.__dict__.get("__slots__", ())
    return [names] if isinstance(names, str) else names


def parts(thing):
    """The objects that an object refers to."""
    if isinstance(thing, STOP):
        return
    if isinstance(thing, types.FunctionType):  # its globals would lead to the whole process
        yield from (thing.__closure__, thing.__defaults__, thing.__kwdefaults__, thing.__dict__)
        return
    if isinstance(thing, types.FrameType):
        if thing.f_code.co_filename != __file__:
            yield dict(thing.f_locals)
        return
    if isinstance(thing, types.TracebackType):
        yield from (thing.tb_frame, thing.tb_next)
        return
    if isinstance(thing, BaseException):
        yield from (thing.__traceback__, thing.__cause__, thing.__context__, thing.args)
    if isinstance(thing, weakref.ref):
        yield thing()
    yield from gc.get_referents(thing)
    for name in {name for cls in type(thing).__mro__ for name in slots(cls)} - {"__weakref__"}:
        with contextlib.suppress(AttributeError):
            yield getattr(thing, name)


def leaks(*roots):
    """Return the paths from the roots to a secret."""
    modules = {id(vars(module)) for module in list(sys.modules.values()) if hasattr(module, "__dict__")}
    modules |= {id(sys.modules), id(os.environ), id(gc.get_objects), id(builtins)}
    queue = collections.deque((root, type(root).__name__) for root in roots)
    seen, kept, found = set(), [], []
    while queue:
        thing, path = queue.popleft()
        if thing is None or id(thing) in seen or id(thing) in modules:
            continue
        seen.add(id(thing))
        kept.append(thing)  # so that its id is not used again
        if any(form in text for text in texts(thing) for form in FORMS):
            found.append(path)
        if isinstance(thing, dict):
            queue.extend((value, f"{path}[{str(name)[:40]!r}]") for name, value in list(thing.items()))
            queue.extend((name, f"{path}.key") for name in list(thing))
        else:
            queue.extend((part, f"{path}.{type(part).__name__}") for part in parts(thing))
    return found


class Slotted:
    __slots__ = ("inside",)


@pytest.mark.parametrize("secret", SECRETS)
def test_the_walk_finds_secrets(secret):
    raw = secret.encode() if isinstance(secret, str) else secret
    slotted, node = Slotted(), types.SimpleNamespace()
    slotted.inside, node.itself = [{"x": bytearray(raw)}], node
    for hiding in (
        secret, raw.hex(), f"Bearer {base64.b64encode(raw).decode()}", slotted, (raw, node),
        memoryview(raw),
        io.BytesIO(raw), lambda: raw, {raw: 1}, collections.deque([raw]),
        types.SimpleNamespace(a=raw).__repr__,
        (part for part in [raw]), repr(raw), ValueError(raw), iter([raw]), frozenset([raw]),
    ):  # fmt: skip
        assert leaks(hiding), hiding
    assert leaks(secret)
    assert not leaks(Hidden(raw), "another", b"text")

    def failing():
        held = {"body": raw}  # noqa: F841
        raise OSError

    code = failing.__code__.replace(co_filename="elsewhere.py")
    with pytest.raises(OSError) as caught:
        types.FunctionType(code, globals(), "f", (), failing.__closure__)()
    assert leaks(caught.value)


# The calls that fail.


@pytest.fixture
def store(keystore, monkeypatch):
    """A keystore whose master key is known."""
    with monkeypatch.context() as patch:
        patch.setattr(keystore_file, "random_bytes", known)
        made = kmsdata.LocalKeystore()
        made.create_key("demo", quiet=True)
    assert base64.b64encode(MASTER_KEY).decode() in keystore.read_text()
    return made


def known(size):
    return {16: bytes(range(16)), 12: bytes(12), 32: MASTER_KEY}[size]


def fails(call, *errors):
    """Run a call that must fail, and check everything that its error leads to."""
    with pytest.raises(errors or kmsdata.KmsDataError) as caught:
        call()
    error = caught.value
    assert leaks(error) == []
    with contextlib.suppress(AttributeError):  # from the repr of a half-made path of pathlib
        report = traceback.TracebackException.from_exception(error, capture_locals=True)
        for frame in report.stack:  # the frames of this file hold the secrets, of course
            if frame.filename != __file__:
                assert not any(form in str(frame.locals).encode() for form in FORMS)
    assert not any(form in pickle.dumps(error) for form in FORMS)
    return error


def full(*_):
    raise OSError(28, "No space left on device")


def local_calls(store, key_id="00" * 16):
    """Every call of a keystore, as far as it can fail."""
    wrapped = base64.b64encode(bytes.fromhex(key_id) + bytes(60)).decode()
    yield "generate", lambda: store.generate_data_key("local://demo", {})
    yield "wrap", lambda: store.wrap(DATA_KEY, "local://demo", {})
    yield "unwrap", lambda: store.unwrap(wrapped, "local://demo", {})
    yield "create", lambda: store.create_key("other", quiet=True)
    yield "rotate", lambda: store.rotate_key("local://demo")
    yield "disable", lambda: store.disable_key("local://demo")
    yield "enable", lambda: store.enable_key("local://demo")
    yield "list", store.list_keys
    yield "describe", lambda: store.describe_key("local://demo")
    yield "check", store.check_passphrase
    yield "new", lambda: kmsdata.new_data_key(["local://demo", "local://demo"])
    yield (
        "wrap under",
        lambda: session.wrap_under(DataKey(DATA_KEY, [Wrap("vault://x", "w")]), "local://demo"),
    )


def damaged(keystore):
    keystore.write_text(keystore.read_text().replace('"version": 1', '"version": 2'))


def cut(keystore):
    keystore.write_bytes(keystore.read_bytes()[:-9])


def readable(keystore):
    keystore.chmod(0o644)


def disabled(keystore):
    document = json.loads(keystore.read_text())
    document["keys"]["demo"]["disabled"] = True
    keystore.write_text(json.dumps(document))


@pytest.mark.parametrize("how", [damaged, cut, readable, disabled, os.unlink])
@pytest.mark.parametrize("sealed", [False, True])
def test_local(keystore, store, monkeypatch, how, sealed):
    monkeypatch.setattr(local, "_interactive", lambda: False)
    if sealed:
        keystore.unlink()
        store = kmsdata.LocalKeystore(passphrase=PASSPHRASE)
        with monkeypatch.context() as patch:
            patch.setattr(keystore_file, "random_bytes", known)
            store.create_key("demo", quiet=True)
    monkeypatch.setattr(local, "random_bytes", lambda size: DATA_KEY[:size])
    kmsdata.use(store)
    how(keystore)
    failed = 0
    for _, call in local_calls(store):
        try:
            call()
        except kmsdata.KmsDataError:
            fails(call)
            failed += 1
    assert failed >= 3
    fails(lambda: store.wrap(DATA_KEY, "local://missing", {}))
    fails(lambda: store.wrap(DATA_KEY, "vault://x", {}))
    fails(lambda: store.wrap(DATA_KEY, "nonsense", {}))
    fails(lambda: store.generate_data_key("local://demo", {"a": "\udcff"}))


@pytest.mark.parametrize("passphrase", ["wrong", None, "memory", "interrupted", "surrogate"])
def test_local_passphrases(keystore, monkeypatch, passphrase):
    with monkeypatch.context() as patch:
        patch.setattr(keystore_file, "random_bytes", known)
        kmsdata.LocalKeystore(passphrase=PASSPHRASE).create_key("demo", quiet=True)
    key_id = kmsdata.LocalKeystore().describe_key("local://demo")["id"]
    monkeypatch.setattr(local, "random_bytes", lambda size: DATA_KEY[:size])
    given = {"wrong": f"{PASSPHRASE}!", None: None, "surrogate": f"{PASSPHRASE}\udcff"}.get(
        passphrase, PASSPHRASE
    )
    errors = (kmsdata.KeyServiceError,)
    if passphrase in ("memory", "interrupted"):
        error = MemoryError if passphrase == "memory" else KeyboardInterrupt

        class Scrypt:
            def __init__(self, **_):
                pass

            def derive(self, _):
                raise error

        monkeypatch.setattr(keystore_file, "Scrypt", Scrypt)
        errors = (KeyboardInterrupt,) if passphrase == "interrupted" else errors
    for from_environment in (False, True):
        if from_environment and given is not None:
            monkeypatch.setenv("KMSDATA_PASSPHRASE", given)
        store = kmsdata.LocalKeystore(passphrase=None if from_environment else given)
        kmsdata.use(store)
        for name, call in local_calls(store, key_id):
            if name not in ("list", "describe"):
                fails(call, *errors)


@pytest.mark.parametrize("how", ["full", "locked", "refused", "unused"])
def test_local_writes(keystore, store, monkeypatch, how):
    if how == "full":
        monkeypatch.setattr(os, "fsync", full)
    elif how == "locked":

        class Held:
            def __init__(self, *_, **__):
                pass

            def __enter__(self):
                raise Timeout("x.lock")

            def __exit__(self, *_):
                pass

        monkeypatch.setattr(keystore_file, "FileLock", Held)
    elif how == "refused":
        keystore.parent.chmod(0o777)
    else:
        store = kmsdata.LocalKeystore(passphrase=PASSPHRASE)
    for call in (
        lambda: store.create_key("other", quiet=True),
        lambda: store.rotate_key("local://demo"),
        lambda: store.disable_key("local://demo"),
        lambda: store.generate_data_key("local://third", {}),
    ):
        fails(call)


def test_wrong_arguments(keystore):
    fails(lambda: kmsdata.LocalKeystore(5, PASSPHRASE), TypeError)
    fails(lambda: kmsdata.LocalKeystore(passphrase=PASSPHRASE.encode()), TypeError)
    fails(lambda: kmsdata.LocalKeystore(passphrase=PASSPHRASE, create="yes"), TypeError)
    fails(lambda: DataKey(DATA_KEY, []), ValueError)
    fails(lambda: DataKey(DATA_KEY + b"x", [Wrap("local://demo", "w")]), ValueError)
    fails(lambda: DataKey(DATA_KEY, [Wrap("nonsense", "w")]))
    pair = ("AKIDofTheAccount", SECRET_KEY, TOKEN)
    fails(lambda: kmsdata.TencentKMS("", credential=pair), ValueError)
    fails(
        lambda: kmsdata.TencentKMS("ap-guangzhou", credential=pair, endpoint="http://kms.example"), ValueError
    )


def test_objects_show_nothing(keystore, store):
    sealed = kmsdata.LocalKeystore(passphrase=PASSPHRASE)
    kms = kmsdata.TencentKMS("ap-guangzhou", credential=("AKIDofTheAccount", SECRET_KEY, TOKEN))
    assert kms.account
    key = DataKey(DATA_KEY, [Wrap("local://demo", "w")])
    assert leaks(vars(sealed), vars(kms), sealed, kms, store, store._file.read("open"), key) == []


# Tencent Cloud KMS.


@pytest.fixture
def emulator(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(("TENCENTCLOUD_", "TKE_", "KMSDATA_TENCENT")) or "proxy" in name.lower():
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(credentials, "_METADATA", "http://127.0.0.1:9/")
    monkeypatch.setattr(transport, "_PAUSE", 0.001)
    with Emulator() as emulator:
        emulator.add_account("AKIDofTheAccount", SECRET_KEY, token=TOKEN)
        yield emulator


class Renewed:
    """A credential of the caller, with the secrets in plain attributes, as the SDK's have them."""

    def __init__(self):
        from tencentcloud.common.credential import Credential  # missing where these tests are not run

        self.sdk = Credential("AKIDofTheAccount", SECRET_KEY, TOKEN)

    def get_credential_info(self):
        return self.sdk.get_credential_info()


def made(emulator, credential=None, **options):
    pair = credential or ("AKIDofTheAccount", SECRET_KEY, TOKEN)
    options = {"timeout": 3, "retries": 1, "endpoint": emulator.url} | options
    return kmsdata.TencentKMS("ap-guangzhou", credential=pair, **options)


def kms_calls(kms, key):
    yield lambda: kms.generate_data_key(key, {})
    yield lambda: kms.wrap(DATA_KEY, key, {})
    yield lambda: kms.unwrap("AAAA", key, {})
    yield lambda: session.wrap_under(DataKey(DATA_KEY, [Wrap("vault://x", "w")]), key)
    yield lambda: kmsdata.new_data_key([key])
    for call in (kms.describe_key, kms.enable_key, kms.disable_key, kms.rotate_key, kms.disable_rotation):
        yield lambda call=call: call(key)
    yield kms.list_keys
    yield lambda: kms.create_key("other")


PLAINTEXT = base64.b64encode(DATA_KEY).decode()
REFUSED = [
    Fault.error(code)
    for code in (
        "UnauthorizedOperation", "ResourceUnavailable.CmkNotFound", "ResourceUnavailable.CmkDisabled",
        "RequestLimitExceeded", "InternalError", "AuthFailure.TokenFailure", "AuthFailure.SignatureFailure",
        "LimitExceeded", "Unheard.Of",
    )
]  # fmt: skip
BROKEN = [
    Fault.truncate(), Fault.reset(), Fault.hang_up(), Fault.lost(), Fault.html(), Fault.empty(),
    Fault.garbage(),
    Fault.bare(), Fault.no_fields(), Fault.status(502, b"bad gateway"), Fault.status(200, b"[1]"),
    Fault.status(200, b'{"Response": []}'), Fault.status(200, b'{"Response": {"Error": 5}}'),
    Fault.status(200, b"[" * 200_000), Fault.charset("InternalError"),
    Fault.status(200, json.dumps({"Response": {"Plaintext": PLAINTEXT, "KeyId": 7}}).encode()),
    Fault.status(200, json.dumps({"Response": {"Error": {"Code": "X", "Message": PLAINTEXT}}}).encode()),
    Fault.status(500, PLAINTEXT.encode()),
]  # fmt: skip


FAULTS = [
    pytest.param(fault, id=f"{fault.kind} {fault.code or number}")
    for number, fault in enumerate(REFUSED + BROKEN)
]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("credential", [lambda: None, Renewed], ids=["pair", "object"])
def test_tencent(emulator, fault, credential):
    kms = made(emulator, credential())
    key = kms.create_key("demo")
    kmsdata.use(kms)
    emulator.fail(fault, times=None)
    for call in kms_calls(kms, key):
        try:
            call()
        except kmsdata.KeyServiceError:
            fails(call)
    for call in list(kms_calls(kms, key))[:3]:
        fails(call)


@pytest.mark.parametrize(
    "fields",
    [{"KeyId": KEY_ID}, {"KeyId": None}, {"CiphertextBlob": None}, {"CiphertextBlob": 5}, {"Plaintext": 5}],
    ids=repr,
)
def test_tencent_answers(emulator, fields):
    kms = made(emulator)
    key = kms.create_key("demo")
    wrapped = kms.wrap(DATA_KEY, key, {})
    emulator.fail(Fault.change(**{"Plaintext": PLAINTEXT} | fields), times=None)
    calls = [lambda: kms.generate_data_key(key, {})]
    if "KeyId" in fields:
        calls += [lambda: kms.unwrap(wrapped, key, {}), lambda: kms.wrap(DATA_KEY, key, {})]
    for call in calls:
        fails(call)


def test_tencent_without_a_network(emulator):
    kms = made(emulator)
    key = kms.create_key("demo")
    kmsdata.use(kms)
    for call in (
        lambda: kms.wrap(DATA_KEY, key, {"a": "b" * 2000}),
        lambda: kms.wrap(DATA_KEY, "tencent-kms://ap-beijing/x", {}),
        lambda: kms.wrap(DATA_KEY, "tencent-kms://ap-guangzhou/no-such-alias", {}),
        lambda: kms.generate_data_key(key, {"a": "b" * 2000}),
    ):
        fails(call)
    emulator.stop_listening()
    for call in kms_calls(kms, key):
        fails(call)


def test_tencent_in_time(emulator):
    kms = made(emulator, timeout=0.3, retries=0)
    key = kms.create_key("demo")
    emulator.fail(Fault.hang(), times=None)
    fails(lambda: kms.wrap(DATA_KEY, key, {}))


def environment(monkeypatch, **variables):
    for name, text in variables.items():
        monkeypatch.setenv(name, text)


class Failing:
    def get_credential_info(self):
        mine = SECRET_KEY  # noqa: F841
        raise RuntimeError(SECRET_KEY)


class Half:
    def __init__(self):
        self.secret_key = SECRET_KEY

    def get_credential_info(self):
        return ("", SECRET_KEY, TOKEN)


@pytest.mark.parametrize(
    "how",
    ["half", "bad", "profile", "role", "oidc", "instance", "failing", "half object", "wrong", "expired"],
)
def test_tencent_credentials(emulator, monkeypatch, tmp_path, how):
    options = {"timeout": 2, "retries": 0, "endpoint": emulator.url}
    monkeypatch.setattr(
        credentials, "_METADATA", f"{emulator.url}/latest/meta-data/cam/security-credentials/"
    )
    credential = None
    if how == "half":
        environment(monkeypatch, TENCENTCLOUD_SECRET_KEY=SECRET_KEY)
    elif how == "bad":
        environment(
            monkeypatch, TENCENTCLOUD_SECRET_ID="AKID", TENCENTCLOUD_SECRET_KEY=f"{SECRET_KEY}\n\x01x"
        )
    elif how == "profile":
        (tmp_path / ".tencentcloud").mkdir()
        (tmp_path / ".tencentcloud" / "credentials").write_text(f"[default]\nsecret_key = {SECRET_KEY}\n")
    elif how == "role":
        environment(
            monkeypatch, TENCENTCLOUD_SECRET_ID="AKIDofTheAccount", TENCENTCLOUD_SECRET_KEY=SECRET_KEY,
            TENCENTCLOUD_TOKEN=TOKEN, TENCENTCLOUD_ROLE_ARN="qcs::cam::uin/1:roleName/x",
        )  # fmt: skip
        emulator.fail(Fault.error("UnauthorizedOperation"), action="AssumeRole", times=None)
    elif how == "oidc":
        (tmp_path / "token").write_text(WEB_TOKEN)
        environment(
            monkeypatch, TKE_REGION="ap-guangzhou", TKE_PROVIDER_ID="p", TKE_ROLE_ARN="r",
            TKE_WEB_IDENTITY_TOKEN_FILE=str(tmp_path / "token"),
        )  # fmt: skip
    elif how == "instance":
        emulator.instance_role = "role"
        made_up = {"TmpSecretId": "", "TmpSecretKey": SECRET_KEY, "Token": TOKEN, "ExpiredTime": 1}
        monkeypatch.setattr(type(emulator), "_metadata", lambda *_: json.dumps(made_up).encode())
    elif how == "failing":
        credential = Failing()
    elif how == "half object":
        credential = Half()
    elif how == "wrong":
        credential = ("AKIDofTheAccount", SECRET_KEY[:-1], TOKEN)
    else:
        emulator.add_account("AKIDexpired", SECRET_KEY, token=TOKEN, expires=-1)
        credential = ("AKIDexpired", SECRET_KEY, TOKEN)
    kms = kmsdata.TencentKMS("ap-guangzhou", credential=credential, **options)
    for call in (
        lambda: kms.wrap(DATA_KEY, f"tencent-kms://ap-guangzhou/{KEY_ID}", {}),
        lambda: kms.generate_data_key(f"tencent-kms://ap-guangzhou/{KEY_ID}", {}),
        kms.list_keys,
    ):
        assert isinstance(fails(call), kmsdata.CredentialsError)
    if how not in ("wrong", "expired"):
        fails(lambda: kms.account)
        fails(lambda: kms.identity)


# The operations above them.


def test_rewrap(keystore, store, titanic, monkeypatch):
    monkeypatch.setattr(local, "random_bytes", lambda size: DATA_KEY[:size])
    store.create_key("next", quiet=True)
    encrypted = titanic.kms.encrypt(["name"], key="local://demo")
    table = kmsdata.encrypt_table(pa.Table.from_pandas(titanic), ["name"], key="local://demo")
    for data in (encrypted, table):
        fails(lambda data=data: kmsdata.rewrap(data, "local://missing"))
        store.disable_key("local://next")
        fails(lambda data=data: kmsdata.rewrap(data, "local://next"))
        fails(lambda data=data: kmsdata.rewrap(data, "local://next", add=True))
        store.enable_key("local://next")
        store.disable_key("local://demo")
        fails(lambda data=data: kmsdata.rewrap(data, "local://next"))
        store.enable_key("local://demo")
    fails(
        lambda: kmsdata.new_data_key(
            ["local://demo", f"tencent-kms://ap-guangzhou/{KEY_ID}"], context={"a": "\udcff"}
        )
    )
    store.disable_key("local://demo")
    fails(encrypted.kms.decrypt)
