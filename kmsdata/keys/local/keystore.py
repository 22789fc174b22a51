"""Master keys in a local file: for trying, for tests, and where there is no key service.

A wrapped data key is base64 of ``id (16) ‖ IV (12) ‖ AES-256-GCM``, with name, id and context authenticated.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

import platformdirs
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kmsdata.errors import (
    KeyAccessError,
    KeyNotFoundError,
    KeyServiceError,
)
from kmsdata.keys.data_key import DataKey, random_bytes
from kmsdata.keys.envelope import Wrap, base64_bytes, base64_text, canonical
from kmsdata.keys.key_uri import parse_key
from kmsdata.keys.local.keystore_file import KeystoreFile, Store, refuse

__all__ = ["LocalKeystore"]


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
        self._file = KeystoreFile(self.path, passphrase)

    def __repr__(self) -> str:
        return f"<LocalKeystore {self.path}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a LocalKeystore is not pickled: open it by its path in the other process")

    @property
    def sealed(self) -> bool:
        """Whether the file's keys are sealed by a passphrase."""
        return self._file.read("open").kdf is not None

    def check_passphrase(self) -> None:
        """See that the passphrase opens the file's keys; where there are none yet, any does.

        Raises:
            KeyAccessError: it does not.
            CredentialsError: the file has a passphrase, and none was given.
        """
        self._file.check_passphrase(self._file.read("open"))

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
        if name not in self._file.read("wrap").keys:
            self.create_key(name, exist_ok=True)
        key_id, cipher = self._master(key, "wrap")
        iv = random_bytes(12)
        return base64_text(key_id + iv + cipher.encrypt(iv, data_key, _associated(key, key_id, context)))

    def unwrap(self, wrapped: str, key: str, context: Mapping[str, str]) -> bytes:
        """The data key in the clear. Never makes a master key.

        Raises:
            KeyNotFoundError: no master key of that name, or one of that name that is another key.
            KeyAccessError: the wrapped key does not open: changed, or another context.
        """
        raw = base64_bytes(wrapped) or b""
        key_id, cipher = self._master(key, "unwrap", raw[:16])
        if len(raw) != 16 + 12 + 32 + 16:
            refuse(KeyAccessError, f"{key}: the wrapped key is malformed", "InvalidCiphertext", key, "unwrap")
        if raw[:16] != key_id:
            refuse(
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
            refuse(
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
        made, sealed = self._file.create(uri, name)
        if not made and not exist_ok:
            refuse(KeyServiceError, f"{uri} exists already in {self.path}", "KeyExists", uri, "create_key")
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
        store = self._file.read("describe_key")
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

        def rotate(store: Store, name: str) -> None:
            entry = store.keys.pop(name)
            self._file.add(store, name)
            store.keys[name]["created"] = entry["created"]
            older = [{"id": entry["id"], "secret": entry["secret"]}, *entry.get("older", [])]
            store.keys[name] |= {"older": older} | ({"disabled": True} if entry.get("disabled") else {})

        self._change(key, "rotate_key", rotate)

    def _change(self, key: str, operation: str, change: Callable[[Store, str], object]) -> None:
        name = self._name(key, operation)
        with self._file.written(key, operation) as store:
            self._require(store, name, operation)
            self._file.cipher(store, name)  # nobody changes a sealed key without its passphrase
            change(store, name)

    def list_keys(self) -> list[dict[str, str]]:
        """The keys by name: ``key`` (URI), ``id`` (hex), ``state``, ``created`` (UTC) and ``rotation``."""
        store = self._file.read("list_keys")
        return [self._about(store, name) for name in sorted(store.keys)]

    def _about(self, store: Store, name: str) -> dict[str, str]:
        entry = store.keys[name]
        older = len(entry.get("older", []))
        return {
            "key": f"local://{name}",
            "id": store.ids(name)[0].hex(),
            "state": "Disabled" if entry.get("disabled") else "Enabled",
            "created": entry["created"],
            "rotation": {0: "never so far", 1: "once so far"}.get(older, f"{older} times so far"),
        }

    # Inside.

    def _name(self, key: str, operation: str) -> str:
        uri = parse_key(key)
        if uri.scheme != "local":
            refuse(KeyNotFoundError, f"{key} is not a key of a local keystore", "OtherScheme", key, operation)
        return uri.name

    def _master(self, key: str, operation: str, wanted: bytes = b"") -> tuple[bytes, AESGCM]:
        """A master key: its id, and the cipher that has it (and shows nothing of it).

        That version of it whose id is wanted, where there is one; else the newest.
        """
        name = self._name(key, operation)
        store = self._file.read(operation)
        self._require(store, name, operation)
        if store.keys[name].get("disabled"):
            refuse(
                KeyAccessError,
                f"{key} is disabled: 'kmsdata keys enable {key}' lets it be used again",
                "KeyDisabled",
                key,
                operation,
            )
        versions = store.ids(name)
        number = next((at for at, key_id in enumerate(versions) if key_id == wanted), 0)
        return versions[number], self._file.cipher(store, name, number)

    def _require(self, store: Store, name: str, operation: str) -> None:
        if name not in store.keys:
            refuse(
                KeyNotFoundError,
                f"there is no local://{name} in {self.path}: set KMSDATA_KEYSTORE to the keystore that has "
                "it, or put its backup there",
                "KeyNotFound",
                f"local://{name}",
                operation,
            )


def _associated(key: str, key_id: bytes, context: Mapping[str, str]) -> bytes:
    named = {"context": dict(context), "id": base64_text(key_id), "key": key, "use": "kmsdata/1/local"}
    return canonical(named).encode()
