"""Read and write the JSON file of a local keystore; a passphrase may encrypt its master keys.

The file has mode 0600, its folder 0700::

    {"version": 1, "kdf": null | {"name": "scrypt", "n": 131072, "r": 8, "p": 1, "salt": b64},
     "keys": {name: {"id": b64 (16 bytes), "created": "2026-01-31T12:00:00+00:00", "secret": b64}}}

A disabled key also has ``"disabled": true``, a rotated one ``"older": [{"id": b64, "secret": b64}]``.
Without a passphrase, ``secret`` is the plaintext master key (32 bytes): only file permissions protect it.
With a passphrase it is ``IV (12) ‖ AES-256-GCM`` under a key that scrypt derives from the passphrase.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import stat
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from filelock import FileLock, Timeout

from kmsdata.atomic_files import whole_file
from kmsdata.errors import (
    CredentialsError,
    FormatError,
    KeyAccessError,
    KeyServiceError,
)
from kmsdata.keys.data_key import Secret, random_bytes
from kmsdata.keys.envelope import base64_bytes, base64_text, canonical
from kmsdata.keys.fork_lock import Lock

__all__ = ["KeystoreFile", "Store", "refuse"]

_SCRYPT = {"n": 1 << 17, "r": 8, "p": 1}
_VARIABLE = "KMSDATA_PASSPHRASE"
_WAIT = 30  # seconds to wait while another process writes the file


class Store(Secret):
    """The content of the file. It may be in the frames of an error, since it shows nothing."""

    __slots__ = ("kdf", "keys")

    def __init__(self, kdf: dict[str, Any] | None, keys: dict[str, dict[str, Any]]) -> None:
        self.kdf = kdf
        self.keys = keys

    def versions(self, name: str) -> list[dict[str, Any]]:
        """Return the versions of a key, the newest first."""
        return [self.keys[name], *self.keys[name].get("older", [])]

    def ids(self, name: str) -> list[bytes]:
        """Return the ids of a key's versions, the newest first."""
        return [_raw(version["id"]) for version in self.versions(name)]

    def text(self) -> bytes:
        """Return the bytes of the file."""
        document = {"version": 1, "kdf": self.kdf, "keys": self.keys}
        return json.dumps(document, indent=1, sort_keys=True).encode("ascii")

    @classmethod
    def parse(cls, text: bytes) -> Store | None:
        """Read the store; None if the text is not one. Never raises: an error would contain the keys."""
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


class _Unchanged(Exception):  # noqa: N818 - not an error: it leaves a block before the file is written
    pass


class KeystoreFile(Secret):
    """The file of a keystore: read on every call, and written atomically, under a lock.

    Args:
        path: the file; it is created together with the first key.
        passphrase: see `LocalKeystore`.
    """

    __slots__ = ("_derived", "_lock", "_passphrase", "path")

    def __init__(self, path: Path, passphrase: str | None) -> None:
        self.path = path
        self._passphrase = passphrase
        self._derived: tuple[bytes, AESGCM] | None = (
            None  # kept with its salt: scrypt takes about 0.3 seconds
        )
        self._lock = Lock()

    def read(self, operation: str) -> Store:
        """Read and check the file; the store is empty if there is none.

        Raises:
            KeyServiceError: it cannot be read, or other users may read or replace it.
            FormatError: it is damaged.
        """
        try:
            store, mode, folder, owner = self._load()
        except FileNotFoundError:
            return Store(None, {})
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
                    f"{self.path} can be read by other users (mode {mode:04o}). Run chmod 600 on it, and if "
                    "others may have read it, create new keys"
                )
            elif folder & 0o022 and not folder & stat.S_ISVTX:
                wrong = (
                    f"other users may write to the folder of {self.path} (mode {folder:04o}), and so replace "
                    "the keystore. Run chmod 700 on the folder"
                )
            elif owner not in (0, os.geteuid()):
                wrong = f"{self.path} belongs to another user (id {owner}). Copy it, and check the copy"
        if wrong is not None:
            refuse(KeyAccessError, wrong, "Permissions", None, operation)
        if store is None:
            raise FormatError(
                f"{self.path} is not a keystore of version 1, or is damaged. Restore its backup",
                path=str(self.path),
            )
        return store

    def _load(self) -> tuple[Store | None, int, int, int]:
        """Return the store, the mode of the file, the mode of its folder, and its owner."""
        with self.path.open("rb") as file:
            about = os.fstat(file.fileno())  # of the open file, not of a path that may be replaced meanwhile
            folder = Path(os.path.realpath(self.path)).parent.stat()
            store = Store.parse(file.read(1 << 24))
        return store, stat.S_IMODE(about.st_mode), stat.S_IMODE(folder.st_mode), about.st_uid

    @contextlib.contextmanager
    def written(self, key: str, operation: str) -> Iterator[Store]:
        """Yield the content of the file for changes; write it back unless an error is raised. Others wait."""
        try:
            self.path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
            with self._lock, FileLock(f"{self.path}.lock", mode=0o600, timeout=_WAIT):
                store = self.read(operation)
                yield store
                with whole_file(self.path, mode=0o600) as file:
                    file.write(store.text())
        except (OSError, Timeout) as error:
            why = "another process holds its lock" if isinstance(error, Timeout) else error.strerror
            raise KeyServiceError(
                f"cannot write the keystore {self.path}: {why}. Set KMSDATA_KEYSTORE to a path that "
                "can be written",
                provider="local",
                operation=operation,
                code=type(error).__name__,
                key=key,
            ) from error

    def create(self, uri: str, name: str) -> tuple[bool, bool]:
        """Create a key unless it exists; return whether it was created, and whether it is encrypted."""
        try:
            with self.written(uri, "create_key") as store:
                if name in store.keys:
                    raise _Unchanged
                given = bool(self._passphrase or os.environ.get(_VARIABLE))
                if store.keys and store.kdf is None and given:
                    refuse(
                        KeyAccessError,
                        f"{self.path} has no passphrase, so the new key would be stored unencrypted. Pass no "
                        "passphrase, or use a new file (KMSDATA_KEYSTORE)",
                        "NotSealed",
                        uri,
                        "create_key",
                    )
                if not store.keys and store.kdf is None and given:
                    store.kdf = {"name": "scrypt", **_SCRYPT, "salt": base64_text(random_bytes(16))}
                self.check_passphrase(store)  # one passphrase encrypts all keys
                self.add(store, name)
        except _Unchanged:
            return False, False
        return True, store.kdf is not None

    def add(self, store: Store, name: str) -> None:
        """Add new key material under a name, encrypted if the file has a passphrase."""
        key_id, secret = random_bytes(16), random_bytes(32)
        if store.kdf is not None:
            iv = random_bytes(12)
            secret = iv + self._sealing_cipher(store.kdf).encrypt(iv, secret, _sealing(name, key_id))
        created = datetime.now(UTC).isoformat(timespec="seconds")
        store.keys[name] = {"id": base64_text(key_id), "created": created, "secret": base64_text(secret)}

    def check_passphrase(self, store: Store) -> None:
        """Check that the passphrase decrypts the keys of the file; without keys, any passphrase is accepted.

        Raises:
            KeyAccessError: it does not decrypt them. CredentialsError: none was given.
        """
        for name in store.keys:
            self.cipher(store, name)
            break

    def cipher(self, store: Store, name: str, number: int = 0) -> AESGCM:
        """Return the cipher of a version of a key; it does not show the key.

        Raises:
            KeyAccessError: the passphrase is wrong. CredentialsError: none was given.
        """
        if store.kdf is None:
            return _cipher(store, name, number)
        sealing = self._sealing_cipher(store.kdf)
        try:
            return _unsealed(sealing, store, name, number)
        except InvalidTag:
            self._derived = None
            refuse(
                KeyAccessError,
                f"the passphrase (from KMSDATA_PASSPHRASE, or passed in) is wrong for {self.path}",
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
                        f"{self.path} has a passphrase, and none (or an invalid one) was given. Set "
                        "KMSDATA_PASSPHRASE, or call kmsdata.use(kmsdata.LocalKeystore(passphrase=...))",
                        provider="local",
                        operation="open",
                        code="NoPassphrase",
                        tried=("the passphrase argument", _VARIABLE, "the terminal"),
                    )
                self._derived = salt, cipher
            return self._derived[1]


def refuse(kind: type[KeyServiceError], message: str, code: str, key: str | None, operation: str) -> NoReturn:
    """Raise an error of the local keystore."""
    raise kind(message, provider="local", operation=operation, code=code, key=key)


def _sealing(name: str, key_id: bytes) -> bytes:
    return canonical({"id": base64_text(key_id), "name": name, "use": "kmsdata/1/keystore"}).encode()


def _cipher(store: Store, name: str, number: int) -> AESGCM:
    return AESGCM(_raw(store.versions(name)[number]["secret"]))


def _unsealed(sealing: AESGCM, store: Store, name: str, number: int) -> AESGCM:
    version = store.versions(name)[number]
    secret, key_id = _raw(version["secret"]), _raw(version["id"])
    return AESGCM(sealing.decrypt(secret[:12], secret[12:], _sealing(name, key_id)))


def _derived(kdf: dict[str, Any], salt: bytes, passphrase: str | None, path: Path) -> AESGCM | None:
    """Return the cipher that encrypts the master keys, or None if there is no (valid) passphrase."""
    passphrase = passphrase or os.environ.get(_VARIABLE)
    if not passphrase and sys.stdin is not None and sys.stdin.isatty():
        passphrase = getpass.getpass(f"Passphrase of {path}: ")
    try:
        text = (passphrase or "").encode()
    except UnicodeEncodeError:  # not re-raised: the error contains the passphrase
        return None
    scrypt = Scrypt(salt=salt, length=32, n=kdf["n"], r=kdf["r"], p=kdf["p"])
    return AESGCM(scrypt.derive(text)) if text else None


def _sane(kdf: dict[str, Any]) -> bool:
    """Check scrypt's parameters: False if they would take gigabytes or hours, or protect too little."""
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


def _raw(text: object) -> bytes:
    """Return the bytes of base64; empty if it is malformed: an error could contain a key."""
    return base64_bytes(text) or b""
