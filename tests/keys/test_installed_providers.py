"""Providers of installed packages: used for a scheme that the caller named, never because a file names it.

The packages are real distributions on ``sys.path``: a module, and a ``dist-info`` folder with entry points.
"""

import os
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import pandas as pd
import pytest

import kmsdata
from kmsdata.errors import KeyNotFoundError, KeyServiceError
from kmsdata.keys import session

KEY = "vault://eu/payroll"
MODULE = """
import base64, hashlib, os

import kmsdata

MADE = []


class Vault:
    scheme = "vault"

    def __init__(self, place):
        MADE.append((place, os.getpid()))
        self.region = place

    def _mask(self, data, key, context):
        mask = hashlib.sha256(repr((key, sorted(context.items()))).encode()).digest()
        return bytes(one ^ other for one, other in zip(data, mask, strict=True))

    def generate_data_key(self, key, context):
        secret = os.urandom(32)
        return kmsdata.DataKey(secret, [kmsdata.Wrap(key, self.wrap(secret, key, context))], context=context)

    def wrap(self, data_key, key, context):
        return base64.b64encode(self._mask(data_key, key, context)).decode()

    def unwrap(self, wrapped, key, context):
        return self._mask(base64.b64decode(wrapped), key, context)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package with one module and entry points: `scheme = object` for each."""
    names = []

    def installed(name, source, **entry_points):
        names.append(name)
        folder = tmp_path / "site" / name
        about = folder / f"{name}-1.0.dist-info"
        about.mkdir(parents=True)
        (folder / f"{name}.py").write_text(source)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{scheme.replace('_', '-')} = {name}:{what}" for scheme, what in entry_points.items()]
        (about / "entry_points.txt").write_text("\n".join(["[kmsdata.providers]", *lines, ""]))
        monkeypatch.syspath_prepend(folder)
        return folder

    yield installed
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def vault(install):
    return install("kmsdata_vault", MODULE, vault="Vault")


@pytest.fixture
def df():
    return pd.DataFrame({"ssn": ["078-05-1120", None], "n": [1, 2]})


def made():
    """The places for which the installed package made providers, in this process."""
    module = sys.modules.get("kmsdata_vault")
    return [place for place, process in module.MADE if process == os.getpid()] if module else None


@pytest.fixture
def file(vault, df, tmp_path):
    """A file under the vault's key. The module is imported again by what needs it."""
    path = tmp_path / "a.parquet"
    df.kms.encrypt(deterministic="ssn", key=KEY).kms.to_parquet(path)
    session.forget()
    del sys.modules["kmsdata_vault"]
    return path


@pytest.mark.parametrize("keys", [KEY, [KEY], "vault://*", "vault://eu/*", ["local://a", KEY]])
def test_a_key_that_was_passed_pins_its_scheme(file, df, keys):
    back = kmsdata.read_parquet(file, decrypt=True, key=keys)
    pd.testing.assert_frame_equal(back, df)
    assert made() == ["eu"]


@pytest.mark.parametrize("how", ["use", "using", "environment", "option"])
def test_the_key_of_the_session_pins_its_scheme(file, df, how, monkeypatch, run, tmp_path):
    if how == "option":
        code, _, errors = run("decrypt", str(file), str(tmp_path / "b.parquet"), "--key", KEY)
        assert (code, errors) == (0, "")
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "b.parquet"), df)
        return
    if how == "use":
        kmsdata.use(KEY)
    if how == "environment":
        monkeypatch.setenv("KMSDATA_KEY", KEY)
    with kmsdata.using(KEY if how == "using" else kmsdata.KeyCache()):
        back = kmsdata.read_parquet(file, decrypt=True)
        again = df.kms.encrypt("ssn")
        assert again.kms.decrypt(key="vault://eu/*").equals(df)
    pd.testing.assert_frame_equal(back, df)
    assert made() == ["eu"]


CALLS = {
    "decrypt": lambda file: kmsdata.read_parquet(file, decrypt=True),
    "key of data": lambda file: pd.DataFrame({"x": [1]}).kms.encrypt("x", key=kmsdata.read_parquet(file)),
    "search": lambda file: kmsdata.read_parquet(file, filters=[("ssn", "==", "x")], decrypt=True),
    "rewrap": lambda file: kmsdata.rewrap(file, "local://other", add=True),
    "decrypt_parquet": lambda file: kmsdata.decrypt_parquet(file, f"{file}.plain"),
    "data_key": lambda file: kmsdata.data_key(file),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_file_alone_loads_no_provider(file, call, keystore):
    kmsdata.LocalKeystore().create_key("other", quiet=True)
    with pytest.raises(KeyNotFoundError, match="only for keys that the caller names") as caught:
        call(file)
    assert caught.value.key == KEY
    assert made() is None
    kmsdata.read_parquet(file, decrypt=True, key=KEY)
    session.forget()
    with pytest.raises(KeyNotFoundError):  # also where an earlier call named the scheme
        call(file)


def test_reports_load_no_provider(file):
    enc = kmsdata.read_parquet(file)
    assert "no provider for this key" in " ".join(str(enc.kms).split())
    assert not kmsdata.verify(file).ok
    kmsdata.inspect(file)
    assert made() is None


def test_another_session_key_loads_no_provider(file):
    kmsdata.use("local://demo")
    with pytest.raises(kmsdata.WrongKeyError):
        kmsdata.read_parquet(file, decrypt=True)
    with pytest.raises(kmsdata.WrongKeyError):
        kmsdata.read_parquet(file, decrypt=True, key="local://*")
    assert made() is None


def test_a_rewrap_pins_the_scheme_of_its_keys(file, df):
    kmsdata.LocalKeystore().create_key("other", quiet=True)
    kmsdata.rewrap(file, "vault://eu/next")  # the old key has the scheme of the new one
    kmsdata.rewrap(file, "local://other", source="vault://*")
    assert kmsdata.read_parquet(file, decrypt=True, key="local://other").equals(df)


def test_built_in_schemes_are_never_replaced(install, df, monkeypatch):
    install("kmsdata_vault", MODULE, local="Vault", tencent_kms="Vault")
    kmsdata.use("local://demo")
    assert df.kms.encrypt("ssn").kms.decrypt().equals(df)
    monkeypatch.setenv("KMSDATA_TENCENT_ENDPOINT", "http://127.0.0.1:9")
    key = "tencent-kms://ap-guangzhou/23e80852-1e38-11e9-b129-5cb9019b4b01"
    assert isinstance(session.provider_of(key, pinned=True), kmsdata.TencentKMS)
    kmsdata.use(kmsdata.TencentKMS("ap-beijing"))
    with pytest.raises(KeyNotFoundError, match="Pass a provider of ap-guangzhou"):
        session.provider_of(key, pinned=True)
    assert made() is None


def test_a_provider_that_was_passed_comes_first(vault, df):
    import kmsdata_vault

    kmsdata_vault.MADE.clear()
    mine = kmsdata_vault.Vault("eu")
    kmsdata.use(mine)
    assert session.provider_of(KEY, pinned=True) is mine
    with pytest.raises(KeyNotFoundError, match=r"only <.*Pass a provider of us"):
        session.provider_of("vault://us/k", pinned=True)
    assert made() == ["eu"]


def test_without_a_package_the_error_says_so(df):
    with pytest.raises(KeyNotFoundError, match="install a package that provides them"):
        df.kms.encrypt("ssn", key="vault://eu/payroll")


def test_two_packages_for_one_scheme(vault, install, df):
    install("other_vault", MODULE, vault="Vault")
    with pytest.raises(KeyServiceError) as caught:
        df.kms.encrypt("ssn", key=KEY)
    assert caught.value.code == "SeveralProviders"
    assert "kmsdata_vault (kmsdata_vault:Vault), other_vault (other_vault:Vault)" in str(caught.value)
    assert made() is None


BROKEN = {
    "import": ("import missing_library", "Vault", "cannot be imported: ModuleNotFoundError: No module named"),
    "name": ("", "Vault", "cannot be imported: AttributeError"),
    "factory": (
        "def make(place):\n    secret = 'SecretKeyOfTheAccount'\n    raise RuntimeError(len(secret))",
        "make",
        "cannot make a provider of 'eu': RuntimeError",
    ),
    "chain": (
        """def connect(secret): raise KeyError(len(secret))
def make(place):
    try: connect('SecretKeyOfTheAccount')
    except KeyError as error: raise RuntimeError from error""",
        "make",
        "cannot make a provider of 'eu': RuntimeError",
    ),
    "nothing": (
        "def make(place): pass",
        "make",
        "returned a NoneType, which is no provider of vault:// keys",
    ),
    "scheme": (MODULE + "\nVault.scheme = 'safe'", "Vault", "which is no provider of vault:// keys"),
    "region": (MODULE + "\ndef make(place): return Vault('us')", "make", "another region than 'eu'"),
    "cycle": (
        """def make(place):
    secret = 'SecretKeyOfTheAccount'
    error = RuntimeError(len(secret))
    raise error from error""",
        "make",
        "cannot make a provider of 'eu': RuntimeError",
    ),
    "cycle at import": (
        "error = ImportError('x')\nraise error from error",
        "Vault",
        "cannot be imported: ImportError: x",
    ),
    "cause and context": (
        """def connect(secret): raise KeyError(len(secret))
def make(place):
    try: connect('SecretKeyOfTheAccount')
    except KeyError: raise RuntimeError from ValueError()""",
        "make",
        "cannot make a provider of 'eu': RuntimeError",
    ),
    "group": (
        """def connect(secret): raise KeyError(len(secret))
def make(place):
    errors = []
    try: connect('SecretKeyOfTheAccount')
    except KeyError as error: errors.append(error)
    raise ExceptionGroup('failed', errors)""",
        "make",
        "cannot make a provider of 'eu': ExceptionGroup",
    ),
    "exit": ("import sys\nsys.exit(3)", "Vault", "cannot be imported: SystemExit"),
    "exit of the factory": (
        "import sys\ndef make(place):\n    secret = 'SecretKeyOfTheAccount'\n    sys.exit(len(secret))",
        "make",
        "cannot make a provider of 'eu': SystemExit",
    ),
    "error without text": (
        "class Odd(ImportError):\n    def __str__(self): raise RuntimeError('text')\nraise Odd",
        "Vault",
        "cannot be imported: Odd. Reinstall or update the package",
    ),
    "property": (
        MODULE
        + """
class Odd(Vault):
    @property
    def scheme(self):
        secret = 'SecretKeyOfTheAccount'
        raise RuntimeError(len(secret))""",
        "Odd",
        "cannot make a provider of 'eu': RuntimeError",
    ),
    "itself": (
        "import kmsdata\ndef make(place): kmsdata.new_data_key(f'vault://{place}/token')",
        "make",
        "needs a key of vault://eu itself, before it is made",
    ),
    "itself at import": (
        "import kmsdata\nkmsdata.new_data_key('vault://eu/token')",
        "Vault",
        "needs a key of vault://eu itself, before it is made",
    ),
    "itself by another place": (
        """import kmsdata
def make(place): kmsdata.new_data_key('vault://us/token' if place == 'eu' else 'vault://eu/token')""",
        "make",
        "needs a key of vault://eu itself, before it is made",
    ),
    "itself in another thread": (
        """import asyncio, kmsdata
def make(place): asyncio.run(asyncio.to_thread(kmsdata.new_data_key, 'vault://eu/token'))""",
        "make",
        "needs a key of vault://eu itself, before it is made",
    ),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_provider(install, df, broken):
    source, what, message = broken
    install("kmsdata_broken", source, vault=what)
    with pytest.raises(KeyServiceError, match="the provider of kmsdata_broken ") as caught:
        df.kms.encrypt("ssn", key=KEY)
    assert message in str(caught.value)
    assert "Reinstall or update the package, or pass" in str(caught.value)
    assert (caught.value.code, caught.value.provider) == ("BrokenProvider", "vault")
    values = values_of_frames(caught.value)  # the lines stay, the values do not
    assert "SecretKeyOfTheAccount" not in str(values)
    if what == "make" and caught.value.__cause__ is not None:
        assert values


def values_of_frames(error):
    """The local variables of the broken package in the frames of an error, and of all that led to it."""
    values, left, seen = [], [error], []
    while left:
        error = left.pop()
        if error is None or error in seen:
            continue
        seen.append(error)
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        values += [frame.f_locals for frame in frames if "kmsdata_broken" in frame.f_code.co_filename]
        left += [error.__cause__, error.__context__, *getattr(error, "exceptions", ())]
    return values


WRONG_ANSWERS = {
    "unhashable": ("__hash__ = None", "find", "cannot be hashed"),
    "identity": ("identity = []", "find", "cannot be hashed"),
    "bytes": (
        "def generate_data_key(self, key, context): return b'SecretBytesOfTheDataKey123456789'",
        "generate_data_key",
        "returned a bytes, not a kmsdata.DataKey",
    ),
    "other scheme": (
        """def generate_data_key(self, key, context):
        return kmsdata.DataKey(bytes(32), [kmsdata.Wrap("local://demo", "x")], context=context)""",
        "generate_data_key",
        "the data key is wrapped by local://demo",
    ),
    "other key": (
        """def generate_data_key(self, key, context):
        return kmsdata.DataKey(bytes(32), [kmsdata.Wrap(key + "s", "x")], context=context)""",
        "generate_data_key",
        "the data key is wrapped by vault://eu/payrolls",
    ),
    "one key more": (
        """def generate_data_key(self, key, context):
        wraps = [kmsdata.Wrap(key, "x"), kmsdata.Wrap("vault://eu/mine", "x")]
        return kmsdata.DataKey(bytes(32), wraps, context=context)""",
        "generate_data_key",
        "the data key is wrapped by vault://eu/payroll, vault://eu/mine",
    ),
    "no context": (
        """def generate_data_key(self, key, context):
        return kmsdata.DataKey(bytes(32), [kmsdata.Wrap(key, "x")])""",
        "generate_data_key",
        "the data key lacks its context",
    ),
}


@pytest.mark.parametrize("wrong", WRONG_ANSWERS.values(), ids=WRONG_ANSWERS)
@pytest.mark.parametrize("how", ["installed", "passed"])
def test_a_provider_that_answers_wrongly(install, df, wrong, how):
    """Before anything is encrypted, since it could not be decrypted."""
    source, operation, message = wrong
    install("kmsdata_vault", f"{MODULE}\n\nclass Odd(Vault):\n    {source}\n", vault="Odd")
    if how == "passed":
        import kmsdata_vault

        kmsdata.use(kmsdata_vault.Odd("eu"))
    calls = [
        lambda: df.kms.encrypt("ssn", key=KEY, context={"team": "a"}),
        lambda: kmsdata.new_data_key(KEY, context={"team": "a"}),
    ]
    for call in calls:
        with pytest.raises(KeyServiceError, match=f"^{KEY}: ") as caught:
            call()
        assert message in str(caught.value)
        assert "Reinstall or update the package, or pass" in str(caught.value)
        error = caught.value
        assert (error.provider, error.operation, error.code) == ("vault", operation, "BrokenProvider")
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        ours = [frame.f_locals for frame in frames if "session.py" in frame.f_code.co_filename]
        assert "SecretBytes" not in repr(ours)


def test_an_unhashable_provider_does_not_decrypt(vault, df):
    enc = df.kms.encrypt("ssn", key=KEY)
    import kmsdata_vault

    class Odd(kmsdata_vault.Vault):
        __hash__ = None

    kmsdata.use(Odd("eu"))
    with pytest.raises(KeyServiceError, match="cannot be hashed"):
        enc.kms.decrypt(key=KEY)


def test_a_keyboard_interrupt_passes(install, df):
    install("kmsdata_broken", "def make(place): raise KeyboardInterrupt", vault="make")
    with pytest.raises(KeyboardInterrupt):
        df.kms.encrypt("ssn", key=KEY)


def test_an_error_of_kmsdata_passes(install, df):
    source = (
        "import kmsdata\ndef make(place): raise kmsdata.CredentialsError('sign in first', provider='vault')"
    )
    install("kmsdata_broken", source, vault="make")
    with pytest.raises(kmsdata.CredentialsError, match=r"^sign in first$"):
        df.kms.encrypt("ssn", key=KEY)


def test_an_error_of_kmsdata_keeps_no_values(install, df):
    source = """import kmsdata
def make(place):
    secret = 'SecretKeyOfTheAccount'
    raise kmsdata.CredentialsError('sign in first', provider='vault')
"""
    install("kmsdata_broken", source, vault="make")
    with pytest.raises(kmsdata.CredentialsError) as caught:
        df.kms.encrypt("ssn", key=KEY)
    values = values_of_frames(caught.value)
    assert values
    assert "SecretKeyOfTheAccount" not in str(values)


def test_a_provider_may_need_a_key_of_another_place(install, df):
    source = f"""{MODULE}
def make(place):
    if place == "eu":
        kmsdata.new_data_key("vault://us/token")
    return Vault(place)
"""
    install("kmsdata_vault", source, vault="make")
    assert df.kms.encrypt("ssn", key=KEY).kms.decrypt(key=KEY).equals(df)
    assert made() == ["us", "eu"]


def test_providers_that_need_each_other_in_two_threads(install):
    source = """
import threading, kmsdata
BOTH = threading.Barrier(2)
def make(place):
    if not BOTH.broken:
        try: BOTH.wait(5)
        except threading.BrokenBarrierError: pass
    kmsdata.new_data_key("vault://us/token" if place == "eu" else "vault://eu/token")
"""
    install("kmsdata_broken", source, vault="make")
    found = []

    def work(place):
        with pytest.raises(KeyServiceError, match="itself, before it is made") as caught:
            session.provider_of(f"vault://{place}/k", pinned=True)
        found.append(caught.value.code)

    threads = [threading.Thread(target=work, args=[place], daemon=True) for place in ("eu", "us")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == ["BrokenProvider", "BrokenProvider"]


def test_a_provider_is_made_once(vault):
    start, found = threading.Barrier(8), []

    def work():
        start.wait()
        found.append(session.provider_of(KEY, pinned=True))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    assert session.provider_of("vault://us/k", pinned=True) is not found[0]
    assert made() == ["eu", "us"]
    session.forget()  # it may hold credentials
    assert session.provider_of(KEY, pinned=True) is not found[0]


SLOW = (
    MODULE
    + """
import threading
BEGAN, GO_ON = threading.Event(), threading.Event()
def slow(place):
    if threading.current_thread() is not threading.main_thread():
        BEGAN.set()
        GO_ON.wait(60)
    return Vault(place)
"""
)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_while_another_thread_makes_a_provider(install, locked):
    install("kmsdata_vault", SLOW, vault="slow")
    import kmsdata_vault

    thread = threading.Thread(target=session.provider_of, args=[KEY], kwargs={"pinned": True})
    thread.start()
    assert kmsdata_vault.BEGAN.wait(60)
    reads, writes = os.pipe()
    with locked():
        child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(30)  # so that a child that hangs ends
            provider = session.provider_of(KEY, pinned=True)
            data_key = provider.generate_data_key(KEY, {})
            same = provider.unwrap(data_key.wraps[0].wrapped, KEY, {}) is not None
            os.write(writes, f"{same} {made()}".encode())
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as pipe:
        assert pipe.read() == "True ['eu']"  # its own
    os.waitpid(child, 0)
    kmsdata_vault.GO_ON.set()
    thread.join()
    assert made() == ["eu"]


WORKER = """
import sys, kmsdata
path, key = sys.argv[1:]
back = kmsdata.read_parquet(path, decrypt=True, key=key or None)
print(back["ssn"].fillna("null").tolist())
"""


def test_a_worker_process_finds_the_provider(file, vault):
    def worker(key):
        return subprocess.run(
            [sys.executable, "-c", WORKER, str(file), key],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(vault), *map(str, roots)])},
            capture_output=True,
            text=True,
            check=False,
        )

    roots = [Path(kmsdata.__file__).parent.parent]
    done = worker(KEY)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['078-05-1120', 'null']\n"
    assert "only for keys that the caller names" in worker("").stderr


def test_plans_for_workers_pin_the_scheme(vault, df):
    """A worker has no session: the plan says which schemes the client named."""
    from kmsdata.api.parts import decrypt_part, encrypt_part, plan_decryption, plan_encryption

    with kmsdata.using(KEY):
        plans = {"encrypt": plan_encryption(df, "ssn")}
        enc = df.kms.encrypt("ssn", key=plans["encrypt"].like)
        plans["session"] = plan_decryption(enc)
        plans["data"] = plan_decryption(enc, key=enc)
    plans["argument"] = plan_decryption(enc, key=KEY)
    session.forget()
    assert encrypt_part(df, plans["encrypt"]).kms.decrypt(key=KEY).equals(df)
    for name in ("session", "data", "argument"):
        session.forget()
        assert decrypt_part(enc, plans[name]).equals(df)
    with pytest.raises(KeyNotFoundError):
        decrypt_part(enc, plan_decryption(enc))
