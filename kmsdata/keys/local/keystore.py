"""Master keys in a file of one's own: for trying, for tests, and where there is no key service.

The file is JSON, in a folder of mode 0700, itself 0600::

    {"version": 1, "kdf": null | {"name": "scrypt", "n": 131072, "r": 8, "p": 1, "salt": b64},
     "keys": {name: {"id": b64 (16 bytes), "created": "2026-01-31T12:00:00+00:00", "secret": b64}}}

A disabled key has ``"disabled": true`` as well, a rotated one ``"older": [{"id": b64, "secret": b64}]``.
Without a passphrase ``secret`` is the master key (32 bytes) in the clear: the file's mode is all that guards
it. With one it is ``IV (12) ‖ AES-256-GCM`` under a key that scrypt derives from the passphrase.
A wrapped data key is base64 of ``id (16) ‖ IV (12) ‖ AES-256-GCM``, with name, id and context authenticated.
"""

from __future__ import annotations

import base64
import contextlib
import getpass
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import platformdirs
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from filelock import FileLock, Timeout

from kmsdata.atomic_files import whole_file
from kmsdata.errors import (
    CredentialsError,
    FormatError,
    KeyAccessError,
    KeyNotFoundError,
    KeyServiceError,
)
from kmsdata.keys.data_key import DataKey, Secret, random_bytes
from kmsdata.keys.envelope import Wrap, canonical
from kmsdata.keys.fork_lock import Lock
from kmsdata.keys.key_uri import parse_key

__all__ = ["LocalKeystore"]

_SCRYPT = {"n": 1 << 17, "r": 8, "p": 1}
_VARIABLE = "KMSDATA_PASSPHRASE"
_WAIT = 30  # seconds for another process that makes a key


class _Store(Secret):
    """What the file holds. A frame that raises may hold it, since it shows nothing."""

    __slots__ = ("kdf", "keys")

    def __init__(self, kdf: dict[str, Any] | None, keys: dict[str, dict[str, Any]]) -> None:
        self.kdf = kdf
        self.keys = keys

    def text(self) -> bytes:
        """The file."""
        document = {"version": 1, "kdf": self.kdf, "keys": self.keys}
        return json.dumps(document, indent=1, sort_keys=True).encode("ascii")

    @classmethod
    def parse(cls, text: bytes) -> _Store | None:
        """The store, or None where the text is none. Never raises: an error would hold the keys."""
        try:
            store = json.loads(text)
            kdf, keys = store["kdf"], store["keys"]
            good = type(store["version"]) is int and store["version"] == 1
            good &= set(store) == {"version", "kdf", "keys"} and (kdf is None or _sane(kdf))
            size = 32 if kdf is None else 12 + 32 + 16
            for entry in keys.values():
                for version in (entry, *entry.get("older", [])):
                    good &= (len(_raw(version["id"])), len(_raw(version["secret"]))) == (16, size)
                good &= isinstance(entry["created"], str) and isinstance(entry.get("disabled", False), bool)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        return cls(kdf, keys) if good else None


class _Unchanged(Exception):  # noqa: N818 - leaves a block that would write
    pass


class LocalKeystore:
    """A key provider that keeps its master keys in one file.

    Args:
        path: the file; else ``KMSDATA_KEYSTORE``, else ``kmsdata/keystore.json`` in the platform's folder
            for user data. It is made when the first key is.
        passphrase: seals the master keys in the file; else ``KMSDATA_PASSPHRASE``; asked for at the
            terminal where the file has one and none was given.

    Example:
        >>> import tempfile, kmsdata
        >>> store = LocalKeystore(tempfile.mkdtemp(prefix="keys") + "/keystore.json")
        >>> store.create_key("demo", quiet=True)
        'local://demo'
        >>> data_key = store.generate_data_key("local://demo", {})
        >>> len(store.unwrap(data_key.wraps[0].wrapped, "local://demo", {}))
        32
    """

    scheme = "local"

    def __init__(self, path: str | os.PathLike[str] | None = None, passphrase: str | None = None) -> None:
        default = Path(platformdirs.user_data_dir("kmsdata", appauthor=False)) / "keystore.json"
        self.path = Path(path or os.environ.get("KMSDATA_KEYSTORE") or default).expanduser()
        self._passphrase = passphrase
        self._derived: tuple[bytes, AESGCM] | None = None  # by its salt: scrypt takes a third of a second
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"<LocalKeystore {self.path}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a LocalKeystore is not pickled: open it by its path in the other process")

    @property
    def sealed(self) -> bool:
        """Whether the file's keys are sealed by a passphrase."""
        return self._read("open").kdf is not None

    def check_passphrase(self) -> None:
        """See that the passphrase opens the file's keys; where there are none yet, any does.

        Raises:
            KeyAccessError: it does not.
            CredentialsError: the file has a passphrase, and none was given.
        """
        store = self._read("open")
        for name in store.keys:
            self._open(store, name)
            break

    # The three calls of a KeyProvider.

    def generate_data_key(self, key: str, context: Mapping[str, str]) -> DataKey:
        """A new data key; makes the master key first if there is none of that name.

        Raises:
            KeyServiceError: the file cannot be read or written; its subclasses say what else is wrong.
        """
        secret = random_bytes(32)
        return DataKey(secret, [Wrap(key, self.wrap(secret, key, context))], context=context)

    def wrap(self, data_key: bytes, key: str, context: Mapping[str, str]) -> str:
        """A data key under a master key, which is made first if there is none of that name.

        Raises:
            KeyServiceError: the file cannot be read or written; its subclasses say what else is wrong.
        """
        name = self._name(key, "wrap")
        if name not in self._read("wrap").keys:
            self.create_key(name, exist_ok=True)
        key_id, cipher = self._master(key, "wrap")
        iv = random_bytes(12)
        return _b64(key_id + iv + cipher.encrypt(iv, data_key, _associated(key, key_id, context)))

    def unwrap(self, wrapped: str, key: str, context: Mapping[str, str]) -> bytes:
        """The data key in the clear. Never makes a master key.

        Raises:
            KeyNotFoundError: no master key of that name, or one of that name that is another key.
            KeyAccessError: the wrapped key does not open: changed, or another context.
        """
        raw = _raw_or_nothing(wrapped)
        key_id, cipher = self._master(key, "unwrap", raw[:16])
        if len(raw) != 16 + 12 + 32 + 16:
            self._fail(
                KeyAccessError, f"{key}: the wrapped key is malformed", "InvalidCiphertext", key, "unwrap"
            )
        if raw[:16] != key_id:
            self._fail(
                KeyNotFoundError,
                f"{key} in {self.path} is another key than the one that wrapped this data (same name, other "
                "id): use the keystore in which the data was encrypted, or its backup",
                "OtherKey",
                key,
                "unwrap",
            )
        try:
            return cipher.decrypt(raw[16:28], raw[28:], _associated(key, key_id, context))
        except InvalidTag:
            self._fail(
                KeyAccessError,
                f"{key}: the wrapped key does not open; it, its key's name or its context was changed",
                "InvalidCiphertext",
                key,
                "unwrap",
            )

    # What `kmsdata keys` shows.

    def create_key(self, name: str, *, exist_ok: bool = False, quiet: bool = False) -> str:
        """Make a master key. Says on standard error where it lies, unless quiet.

        Args:
            name: 1 to 64 letters, digits or ``_.-``.
            exist_ok: leave a key of that name as it is instead of raising. Keys are never overwritten.
            quiet: print nothing.

        Returns:
            The key's URI.

        Raises:
            KeyServiceError: a key of that name exists, or the file cannot be written.
        """
        uri = f"local://{name}"
        self._name(uri, "create_key")
        made, sealed = self._create(uri, name)
        if not made and not exist_ok:
            self._fail(
                KeyServiceError, f"{uri} exists already in {self.path}", "KeyExists", uri, "create_key"
            )
        if made and not quiet:
            guard = "" if sealed else ", in the clear: the file's mode is all that guards it"
            print(
                f"kmsdata: made the key {uri} in {self.path}{guard}.\n"
                "         Back this file up: without it, what the key encrypts is lost.",
                file=sys.stderr,
            )
        return uri

    def describe_key(self, key: str) -> dict[str, str]:
        """What `list_keys` says of one key."""
        name = self._name(key, "describe_key")
        store = self._read("describe_key")
        self._require(store, name, "describe_key")
        return self._about(store, name)

    def disable_key(self, key: str) -> None:
        """Let a key be used no more until it is enabled. Whoever can write the file can undo it."""
        self._change(key, "disable_key", lambda store, name: store.keys[name].update(disabled=True))

    def enable_key(self, key: str) -> None:
        """Let a disabled key be used again."""
        self._change(key, "enable_key", lambda store, name: store.keys[name].pop("disabled", None))

    def rotate_key(self, key: str) -> None:
        """Give a key new material now. What it wrapped before still opens."""

        def rotate(store: _Store, name: str) -> None:
            entry = store.keys.pop(name)
            self._add(store, name)
            store.keys[name]["created"] = entry["created"]
            older = [{"id": entry["id"], "secret": entry["secret"]}, *entry.get("older", [])]
            store.keys[name] |= {"older": older} | ({"disabled": True} if entry.get("disabled") else {})

        self._change(key, "rotate_key", rotate)

    def _change(self, key: str, operation: str, change: Callable[[_Store, str], object]) -> None:
        name = self._name(key, operation)
        with self._written(key, operation) as store:
            self._require(store, name, operation)
            self._open(store, name)  # nobody changes a sealed key without its passphrase
            change(store, name)

    def _create(self, uri: str, name: str) -> tuple[bool, bool]:
        """Whether the key was made, and whether it is sealed."""
        try:
            with self._written(uri, "create_key") as store:
                if name in store.keys:
                    raise _Unchanged
                given = bool(self._passphrase or os.environ.get(_VARIABLE))
                if store.keys and store.kdf is None and given:
                    self._fail(
                        KeyAccessError,
                        f"{self.path} has no passphrase, so the new key would lie in it in the clear: "
                        "give none, or name a new file (KMSDATA_KEYSTORE)",
                        "NotSealed",
                        uri,
                        "create_key",
                    )
                if not store.keys and store.kdf is None and given:
                    store.kdf = {"name": "scrypt", **_SCRYPT, "salt": _b64(random_bytes(16))}
                for other in store.keys:  # a new key must not be sealed by another passphrase than the others
                    self._open(store, other)
                    break
                self._add(store, name)
        except _Unchanged:
            return False, False
        return True, store.kdf is not None

    @contextlib.contextmanager
    def _written(self, key: str, operation: str) -> Iterator[_Store]:
        """What the file holds, to be changed; written back unless an error is raised. Others wait."""
        try:
            self.path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
            with self._lock, FileLock(f"{self.path}.lock", mode=0o600, timeout=_WAIT):
                store = self._read(operation)
                yield store
                with whole_file(self.path, mode=0o600) as file:
                    file.write(store.text())
        except (OSError, Timeout) as error:
            why = "another process holds its lock" if isinstance(error, Timeout) else error.strerror
            raise KeyServiceError(
                f"cannot write the keystore {self.path}: {why}; set KMSDATA_KEYSTORE to a path that "
                "can be written",
                provider="local",
                operation=operation,
                code=type(error).__name__,
                key=key,
            ) from error

    def _add(self, store: _Store, name: str) -> None:
        key_id, secret = random_bytes(16), random_bytes(32)
        if store.kdf is not None:
            iv = random_bytes(12)
            secret = iv + self._sealing_cipher(store.kdf).encrypt(iv, secret, _sealing(name, key_id))
        created = datetime.now(UTC).isoformat(timespec="seconds")
        store.keys[name] = {"id": _b64(key_id), "created": created, "secret": _b64(secret)}

    def list_keys(self) -> list[dict[str, str]]:
        """The keys by name: ``key`` (URI), ``id`` (hex), ``state``, ``created`` (UTC) and ``rotation``."""
        store = self._read("list_keys")
        return [self._about(store, name) for name in sorted(store.keys)]

    def _about(self, store: _Store, name: str) -> dict[str, str]:
        entry = store.keys[name]
        older = len(entry.get("older", []))
        return {
            "key": f"local://{name}",
            "id": _raw(entry["id"]).hex(),
            "state": "Disabled" if entry.get("disabled") else "Enabled",
            "created": entry["created"],
            "rotation": {0: "never so far", 1: "once so far"}.get(older, f"{older} times so far"),
        }

    # Inside.

    def _name(self, key: str, operation: str) -> str:
        uri = parse_key(key)
        if uri.scheme != "local":
            self._fail(
                KeyNotFoundError, f"{key} is not a key of a local keystore", "OtherScheme", key, operation
            )
        return uri.name

    def _master(self, key: str, operation: str, wanted: bytes = b"") -> tuple[bytes, AESGCM]:
        """A master key: its id, and the cipher that has it (and shows nothing of it).

        That version of it whose id is wanted, where there is one; else the newest.
        """
        name = self._name(key, operation)
        store = self._read(operation)
        self._require(store, name, operation)
        if store.keys[name].get("disabled"):
            self._fail(
                KeyAccessError,
                f"{key} is disabled: 'kmsdata keys enable {key}' lets it be used again",
                "KeyDisabled",
                key,
                operation,
            )
        versions = _versions(store, name)
        number = next((at for at, key_id in enumerate(versions) if key_id == wanted), 0)
        return versions[number], self._open(store, name, number)

    def _require(self, store: _Store, name: str, operation: str) -> None:
        if name not in store.keys:
            self._fail(
                KeyNotFoundError,
                f"there is no local://{name} in {self.path}: set KMSDATA_KEYSTORE to the keystore that has "
                "it, or put its backup there",
                "KeyNotFound",
                f"local://{name}",
                operation,
            )

    def _open(self, store: _Store, name: str, number: int = 0) -> AESGCM:
        if store.kdf is None:
            return _cipher(store, name, number)
        sealing = self._sealing_cipher(store.kdf)
        try:
            return _unsealed(sealing, store, name, number)
        except InvalidTag:
            self._derived = None
            self._fail(
                KeyAccessError,
                f"the passphrase (KMSDATA_PASSPHRASE, or the one passed in) does not open {self.path}",
                "WrongPassphrase",
                f"local://{name}",
                "open",
            )

    def _sealing_cipher(self, kdf: dict[str, Any]) -> AESGCM:
        salt = _raw(kdf["salt"])
        with self._lock:
            if self._derived is None or self._derived[0] != salt:
                cipher = _derived(kdf, salt, self._passphrase, self.path)
                if cipher is None:
                    raise CredentialsError(
                        f"{self.path} has a passphrase, and no (valid) one was given: set "
                        "KMSDATA_PASSPHRASE, or pass kmsdata.use(kmsdata.LocalKeystore(passphrase=...))",
                        provider="local",
                        operation="open",
                        code="NoPassphrase",
                        tried=("the passphrase argument", _VARIABLE, "the terminal"),
                    )
                self._derived = salt, cipher
            return self._derived[1]

    def _read(self, operation: str) -> _Store:
        try:
            store, mode, folder, owner = self._load()
        except FileNotFoundError:
            return _Store(None, {})
        except OSError as error:
            raise KeyServiceError(
                f"cannot read {self.path}: {error.strerror}",
                provider="local",
                operation=operation,
                code=type(error).__name__,
            ) from error
        wrong = None
        if os.name == "posix":
            if mode & 0o077:
                wrong = (
                    f"{self.path} can be read by others (mode {mode:04o}): chmod 600 it, and if others may "
                    "have read it, make new keys"
                )
            elif folder & 0o022 and not folder & stat.S_ISVTX:
                wrong = (
                    f"others may write to the folder of {self.path} (mode {folder:04o}), and so replace the "
                    "keystore: chmod 700 it"
                )
            elif owner not in (0, os.geteuid()):
                wrong = f"{self.path} belongs to another user (id {owner}): copy it, and check the copy"
        if wrong is not None:
            self._fail(KeyAccessError, wrong, "Permissions", None, operation)
        if store is None:
            raise FormatError(
                f"{self.path} is not a keystore of version 1, or was damaged: put its backup there",
                path=str(self.path),
            )
        return store

    def _load(self) -> tuple[_Store | None, int, int, int]:
        """The store, the modes of the file and of the folder that it lies in, and its owner."""
        with self.path.open("rb") as file:
            about = os.fstat(file.fileno())
            folder = Path(os.path.realpath(self.path)).parent.stat()
            store = _Store.parse(file.read(1 << 24))
        return store, stat.S_IMODE(about.st_mode), stat.S_IMODE(folder.st_mode), about.st_uid

    def _fail(
        self, kind: type[KeyServiceError], message: str, code: str, key: str | None, operation: str
    ) -> NoReturn:
        raise kind(message, provider="local", operation=operation, code=code, key=key)


def _associated(key: str, key_id: bytes, context: Mapping[str, str]) -> bytes:
    named = {"context": dict(context), "id": _b64(key_id), "key": key, "use": "kmsdata/1/local"}
    return canonical(named).encode()


def _sealing(name: str, key_id: bytes) -> bytes:
    return canonical({"id": _b64(key_id), "name": name, "use": "kmsdata/1/keystore"}).encode()


def _versions(store: _Store, name: str) -> list[bytes]:
    """The ids of a key's versions, the newest first."""
    entry = store.keys[name]
    return [_raw(version["id"]) for version in (entry, *entry.get("older", []))]


def _cipher(store: _Store, name: str, number: int) -> AESGCM:
    entry = store.keys[name]
    return AESGCM(_raw([entry, *entry.get("older", [])][number]["secret"]))


def _unsealed(sealing: AESGCM, store: _Store, name: str, number: int) -> AESGCM:
    entry = store.keys[name]
    version = [entry, *entry.get("older", [])][number]
    secret, key_id = _raw(version["secret"]), _raw(version["id"])
    return AESGCM(sealing.decrypt(secret[:12], secret[12:], _sealing(name, key_id)))


def _derived(kdf: dict[str, Any], salt: bytes, passphrase: str | None, path: Path) -> AESGCM | None:
    """The cipher that seals keys, or None where no (valid) passphrase is to be had."""
    passphrase = passphrase or os.environ.get(_VARIABLE)
    if not passphrase and sys.stdin is not None and sys.stdin.isatty():
        passphrase = getpass.getpass(f"Passphrase of {path}: ")
    try:
        text = (passphrase or "").encode()
    except UnicodeEncodeError:  # its object is the passphrase
        return None
    scrypt = Scrypt(salt=salt, length=32, n=kdf["n"], r=kdf["r"], p=kdf["p"])
    return AESGCM(scrypt.derive(text)) if text else None


def _sane(kdf: dict[str, Any]) -> bool:
    """Parameters that would take gigabytes or hours, or protect nothing, are refused."""
    known = (
        set(kdf) == {"name", "n", "r", "p", "salt"}
        and kdf["name"] == "scrypt"
        and len(_raw(kdf["salt"])) == 16
    )
    return (
        known
        and kdf["n"] in {1 << power for power in range(14, 21)}
        and kdf["r"] == 8
        and kdf["p"] in range(1, 5)
    )


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _raw(text: str) -> bytes:
    raw = base64.b64decode(text, validate=True)
    if _b64(raw) != text:
        raise ValueError("another spelling of the same bytes")
    return raw


def _raw_or_nothing(text: str) -> bytes:
    try:
        return _raw(text)
    except ValueError:
        return b""
