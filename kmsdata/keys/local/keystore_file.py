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
import re
import stat
import sys
import warnings
from collections.abc import Collection, Iterator
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
    printable,
)
from kmsdata.keys.data_key import Hidden, Secret, random_bytes
from kmsdata.keys.envelope import base64_bytes, base64_text, canonical
from kmsdata.keys.fork_lock import Lock

__all__ = ["KeystoreFile", "Store", "hidden_text", "refuse"]

_SCRYPT = {"n": 1 << 17, "r": 8, "p": 1}
_VARIABLE = "KMSDATA_PASSPHRASE"
_WAIT = 30  # seconds to wait while another process writes the file
_MOST = 1 << 24  # bytes of a keystore; a key takes about 200
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # as in key URIs
_CREATED = re.compile(r"[0-9T:.+-]{1,40}")


class Store(Secret):
    """The content of the file. It may be in the frames of an error: its secrets are `Hidden`."""

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
        text = json.dumps(document, indent=1, sort_keys=True, default=lambda box: base64_text(box.reveal()))
        return text.encode("ascii")

    @classmethod
    def parse(cls, text: bytes) -> Store | None:
        """Read the store; None if the text is not one. Never raises: an error would contain the keys."""
        try:
            document = json.loads(text, object_pairs_hook=_without_duplicates)
            good = set(document) == {"version", "kdf", "keys"} and _is_int(document["version"], {1})
            kdf, keys = document["kdf"], document["keys"]
            good = good and (kdf is None or _sane(kdf))
            size = 32 if kdf is None else 12 + 32 + 16
            for name, entry in keys.items():
                good = (
                    good
                    and _NAME.fullmatch(name) is not None
                    and _CREATED.fullmatch(entry["created"]) is not None
                )
                good = good and isinstance(entry.get("disabled", False), bool)
                good = good and isinstance(entry.get("older", []), list)
                for version in (entry, *entry.get("older", [])):
                    secret = _raw(version["secret"])
                    good = good and (len(_raw(version["id"])), len(secret)) == (16, size)
                    version["secret"] = Hidden(secret)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError):
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

    def __init__(self, path: Path, passphrase: Hidden | None) -> None:
        self.path = path
        self._passphrase = passphrase
        # Kept with its salt: scrypt takes about 0.3 seconds.
        self._derived: tuple[bytes, AESGCM] | None = None
        self._lock = Lock()

    def __str__(self) -> str:
        return printable(str(self.path))

    @property
    def has_passphrase(self) -> bool:
        """Whether a passphrase was given; otherwise the next use of a key asks for it."""
        return bool(self._passphrase or self._derived or os.environ.get(_VARIABLE))

    def read(self, operation: str) -> Store:
        """Read and check the file; the store is empty if there is none.

        Raises:
            KeyServiceError: it cannot be read, or other users may read or replace it.
            FormatError: it is damaged.
        """
        try:
            store, wrong = self._load()
        except FileNotFoundError:
            return Store(None, {})
        except OSError as error:
            raise KeyServiceError(
                f"cannot read {self}: {error.strerror}",
                provider="local",
                operation=operation,
                code=type(error).__name__,
            ) from error
        if wrong is not None:
            refuse(KeyAccessError, wrong, "Permissions", None, operation)
        if store is None:
            raise FormatError(
                f"{self} is not a keystore of version 1, or is damaged. Restore its backup",
                path=str(self.path),
            )
        return store

    def _load(self) -> tuple[Store | None, str | None]:
        """Return the store, or None with what is wrong with the file or its folder, if anything is."""
        if (wrong := self._link(self.path)) is not None:
            return None, wrong
        # A pipe would block, and a link may have been put in the file's place since.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
        with open(os.open(self.path, flags | getattr(os, "O_BINARY", 0)), "rb") as file:  # noqa: PTH123
            about = os.fstat(file.fileno())  # of the open file, not of a path that may be replaced meanwhile
            wrong = self._exposed(about) or self._folder()
            return (Store.parse(file.read(_MOST)) if wrong is None else None), wrong

    def _link(self, path: Path) -> str | None:
        """Say that a file is a link; None otherwise."""
        if path.is_symlink():
            return (
                f"{printable(str(path))} is a symbolic link, which another user may have made. Set "
                "KMSDATA_KEYSTORE to the file itself, or remove the link"
            )
        return None

    def _exposed(self, about: os.stat_result) -> str | None:
        """Say why the open file cannot be trusted; None if it can."""
        mode = stat.S_IMODE(about.st_mode)
        if not stat.S_ISREG(about.st_mode):
            return f"{self} is not a regular file. Set KMSDATA_KEYSTORE to a file"
        if about.st_size >= _MOST:
            return f"{self} has more than 16 MiB, so it is not a keystore. Restore its backup"
        if os.name != "posix":
            return None
        if mode & 0o077:
            return (
                f"{self} can be read by other users (mode {mode:04o}). Run chmod 600 on it, and if "
                "others may have read it, create new keys"
            )
        if about.st_uid not in (0, os.geteuid()):
            return f"{self} belongs to another user (id {about.st_uid}). Copy it, and check the copy"
        return None

    def _folder(self) -> str | None:
        """Say why the folder, or one above it, cannot be trusted; None if it can, or is not there."""
        if os.name != "posix":
            return None
        folder = Path(os.path.realpath(self.path.parent))
        for path in (folder, *folder.parents):
            try:
                about = path.stat()
            except FileNotFoundError:
                continue
            shown, mode = printable(str(path)), stat.S_IMODE(about.st_mode)
            # Members of a group may write to home folders on many systems, but not to the keystore's.
            others = mode & (0o022 if path == folder else 0o002)
            if others and not mode & stat.S_ISVTX:
                return (
                    f"other users may write to {shown} (mode {mode:04o}), and so replace the keystore. Run "
                    f"chmod {'700' if path == folder else 'o-w'} on the folder"
                )
            if path == folder and about.st_uid not in (0, os.geteuid()):
                return (
                    f"the folder {shown} belongs to another user (id {about.st_uid}). Use a folder of yours"
                )
        return None

    @contextlib.contextmanager
    def written(self, key: str, operation: str) -> Iterator[Store]:
        """Yield the content of the file for changes; write it back unless an error is raised. Others wait."""
        lock = self.path.with_name(f"{self.path.name}.lock")
        try:
            # All checks come before anything is created or opened: opening a lock file truncates it.
            wrong = self._folder() or self._link(self.path) or self._link(lock)
            if wrong is not None:
                refuse(KeyAccessError, wrong, "Permissions", key, operation)
            self._make_folder()
            with self._lock, FileLock(lock, mode=0o600, timeout=_WAIT):
                store = self.read(operation)
                yield store
                with whole_file(self.path, mode=0o600) as file:
                    file.write(store.text())
        except (OSError, Timeout) as error:
            why = "another process holds its lock" if isinstance(error, Timeout) else error.strerror
            raise KeyServiceError(
                f"cannot write the keystore {self}: {why}. Set KMSDATA_KEYSTORE to a path that "
                "can be written",
                provider="local",
                operation=operation,
                code=type(error).__name__,
                key=key,
            ) from error

    def _make_folder(self) -> None:
        folder = self.path.parent
        for path in [path for path in (folder, *folder.parents) if not path.exists()][::-1]:
            path.mkdir(mode=0o700, exist_ok=True)  # with parents=True, the mode is for the last one only

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
                        f"{self} has no passphrase, so the new key would be stored unencrypted. Pass no "
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
        sealing = None if store.kdf is None else self._sealing_cipher(store.kdf)
        key_id, iv = random_bytes(16), random_bytes(12)
        if sealing is None:
            secret = Hidden(random_bytes(32))
        else:
            secret = Hidden(iv + sealing.encrypt(iv, random_bytes(32), _sealing(name, key_id)))
        created = datetime.now(UTC).isoformat(timespec="seconds")
        store.keys[name] = {"id": base64_text(key_id), "created": created, "secret": secret}

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
            self._check_unused(name)
            return _cipher(store, name, number)
        sealing = self._sealing_cipher(store.kdf)
        try:
            return _unsealed(sealing, store, name, number)
        except InvalidTag:
            self._derived = None
            refuse(
                KeyAccessError,
                f"the passphrase (from KMSDATA_PASSPHRASE, or passed in) is wrong for {self}",
                "WrongPassphrase",
                f"local://{name}",
                "open",
            )

    def _check_unused(self, name: str) -> None:
        """Refuse a passphrase that was passed in, and warn of one in the environment: it protects nothing."""
        message = (
            f"{self} has no passphrase, so its keys are unencrypted and the passphrase that was given is not "
            "used. "
        )
        if self._passphrase is not None:
            refuse(
                KeyAccessError,
                message + "Pass no passphrase, or create keys in a new file (KMSDATA_KEYSTORE)",
                "NotSealed",
                f"local://{name}",
                "open",
            )
        if os.environ.get(_VARIABLE):
            warnings.warn(
                f"{message}Unset {_VARIABLE}, or create keys in a new file (KMSDATA_KEYSTORE)", stacklevel=2
            )

    def _sealing_cipher(self, kdf: dict[str, Any]) -> AESGCM:
        salt = _raw(kdf["salt"])
        with self._lock:
            if self._derived is None or self._derived[0] != salt:
                cipher = _derived(kdf, salt, self._passphrase, str(self))
                if isinstance(cipher, MemoryError):
                    refuse(
                        KeyServiceError,
                        f"not enough memory for the passphrase of {self}: scrypt needs "
                        f"{kdf['n'] * kdf['r'] * 128 >> 20} MiB. Free memory, and try again",
                        "MemoryError",
                        None,
                        "open",
                    )
                if isinstance(cipher, BaseException):
                    raise cipher
                if cipher is None:
                    raise CredentialsError(
                        f"{self} has a passphrase, and none (or an invalid one) was given. Set "
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
    return AESGCM(store.versions(name)[number]["secret"].reveal())


def _unsealed(sealing: AESGCM, store: Store, name: str, number: int) -> AESGCM:
    version = store.versions(name)[number]
    secret, key_id = version["secret"].reveal(), _raw(version["id"])  # still encrypted by the passphrase
    return AESGCM(sealing.decrypt(secret[:12], secret[12:], _sealing(name, key_id)))


def _derived(
    kdf: dict[str, Any], salt: bytes, passphrase: Hidden | None, path: str
) -> AESGCM | BaseException | None:
    """Return the cipher that encrypts the master keys, or None if there is no (valid) passphrase.

    Returns errors instead of raising them, also Ctrl-C: a traceback from here would contain the passphrase.
    """
    try:
        text = b"" if passphrase is None else passphrase.reveal()
        text = text or os.environ.get(_VARIABLE, "").encode("utf-8", "surrogatepass")
        if not text and sys.stdin is not None and sys.stdin.isatty():
            text = getpass.getpass(f"Passphrase of {path}: ").encode("utf-8", "surrogatepass")
        text.decode()
        scrypt = Scrypt(salt=salt, length=32, n=kdf["n"], r=kdf["r"], p=kdf["p"])
        return AESGCM(scrypt.derive(text)) if text else None
    except UnicodeDecodeError:  # not re-raised: the error contains the passphrase
        return None
    except BaseException as error:  # noqa: BLE001
        error.__context__ = None
        return error.with_traceback(None)


def hidden_text(text: object) -> Hidden | None:
    """Hide a passphrase; None if it is not text, or empty."""
    return Hidden(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) and text else None


def _sane(kdf: dict[str, Any]) -> bool:
    """Check scrypt's parameters: False if they would take gigabytes or hours, or protect too little."""
    return (
        set(kdf) == {"name", "n", "r", "p", "salt"}
        and kdf["name"] == "scrypt"
        and len(_raw(kdf["salt"])) == 16
        and _is_int(kdf["n"], {1 << power for power in range(14, 21)})
        and _is_int(kdf["r"], {8})
        and _is_int(kdf["p"], range(1, 5))
    )


def _is_int(value: object, allowed: Collection[int]) -> bool:
    """Check a whole number of the JSON: True and 8.0 are not."""
    return type(value) is int and value in allowed


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("duplicate names")
    return found


def _raw(text: object) -> bytes:
    """Return the bytes of base64; empty if it is malformed: an error could contain a key."""
    return base64_bytes(text) or b""
