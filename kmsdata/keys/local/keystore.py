"""Master keys in a local file: for trials, for tests, and if there is no KMS.

A wrapped key is base64 of ``id (16) ‖ IV (12) ‖ AES-256-GCM``; name, id and context are associated data.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

import platformdirs
from cryptography.exceptions import InvalidTag

from kmsdata.display.ipython import in_marimo, in_notebook
from kmsdata.display.panel import KeyList, Notice
from kmsdata.display.tables import Fact
from kmsdata.errors import CallerTypeError, KeyAccessError, KeyNotFoundError, KeyServiceError
from kmsdata.keys.data_key import DataKey, Hidden, random_bytes
from kmsdata.keys.envelope import Wrap, base64_bytes, base64_text, canonical
from kmsdata.keys.key_uri import parse_key
from kmsdata.keys.local.keystore_file import KeystoreFile, Store, hidden_text, refuse

__all__ = ["LocalKeystore"]


class LocalKeystore:
    """A key provider that keeps its master keys in one file.

    Args:
        path: the file. None: ``KMSDATA_KEYSTORE``, otherwise ``kmsdata/keystore.json`` in the platform's
            folder for user data. The file is created together with the first key.
        passphrase: encrypts the master keys in the file. None: ``KMSDATA_PASSPHRASE``. If the file has a
            passphrase and none was given, the terminal prompts for it.
        create: whether the first use of a key creates it. None: only in a terminal or notebook, with a
            notice; elsewhere (cron, CI, pipes) the key must exist, so that a mistyped name makes no key.
            True: always. False: never; `create_key` creates it.

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

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        passphrase: str | None = None,
        *,
        create: bool | None = None,
    ) -> None:
        secret, is_text = hidden_text(passphrase), passphrase is None or isinstance(passphrase, str)
        del passphrase  # so that no frame of an error shows it
        if not is_text:
            raise CallerTypeError("passphrase= takes text")
        if create not in (None, True, False):
            raise CallerTypeError(f"create= takes True, False or None, not {type(create).__name__}")
        self._create = create
        default = Path(platformdirs.user_data_dir("kmsdata", appauthor=False)) / "keystore.json"
        self.path = Path(path or os.environ.get("KMSDATA_KEYSTORE") or default).expanduser()
        self._file = KeystoreFile(self.path, secret)

    def __repr__(self) -> str:
        return f"<LocalKeystore {getattr(self, '_file', '')}>"  # in the frames of an error of __init__

    def __reduce__(self) -> NoReturn:
        raise CallerTypeError(
            "a LocalKeystore cannot be pickled: it may have a passphrase. Open it by its path in the other "
            "process"
        )

    @property
    def sealed(self) -> bool:
        """Whether a passphrase encrypts the keys in the file."""
        return self._file.read("open").kdf is not None

    def check_passphrase(self) -> None:
        """Check that the passphrase decrypts the keys of the file; without keys, any passphrase is accepted.

        Raises:
            KeyAccessError: it does not decrypt them.
            CredentialsError: the file has a passphrase, and none was given.
        """
        self._file.check_passphrase(self._file.read("open"))

    # The three calls of a KeyProvider.

    def generate_data_key(self, key: str, context: Mapping[str, str]) -> DataKey:
        """Generate a data key; see `ensure_key` for a master key that does not exist.

        Raises:
            KeyNotFoundError: the master key does not exist, and may not be created here.
            KeyServiceError: the file cannot be read or written; its subclasses are more specific.
        """
        self.ensure_key(key)
        secret = Hidden(random_bytes(32))
        wrapped = self._wrapped(secret, key, context)
        return DataKey(secret.reveal(), [Wrap(key, wrapped)], context=context)

    def wrap(self, data_key: bytes, key: str, context: Mapping[str, str]) -> str:
        """Wrap a data key under a master key. Creates the master key only with ``create=True``.

        Raises:
            KeyNotFoundError: the master key does not exist.
            KeyServiceError: the file cannot be read or written; its subclasses are more specific.
        """
        secret = Hidden(data_key)
        del data_key  # so that no frame of an error shows it
        if self._create:
            self.ensure_key(key)
        return self._wrapped(secret, key, context)

    def unwrap(self, wrapped: str, key: str, context: Mapping[str, str]) -> bytes:
        """Unwrap a data key. Never creates a master key.

        Raises:
            KeyNotFoundError: there is no master key of that name, or it is a different key.
            KeyAccessError: the wrapped key or its context was changed.
        """
        raw, store, number = self._wrapped_by(wrapped, key)
        cipher = self._file.cipher(store, self._name(key, "unwrap"), number)
        try:
            return cipher.decrypt(raw[16:28], raw[28:], _associated(key, raw[:16], context))
        except InvalidTag:
            refuse(
                KeyAccessError,
                f"{key}: cannot unwrap the wrapped key: it, its context or its master key's name was changed",
                "InvalidCiphertext",
                key,
                "unwrap",
            )

    def _access(self, wrapped: str, key: str) -> tuple[str, str]:
        """Return a state and the reason: whether `unwrap` will find the key. Never asks for a passphrase.

        Raises:
            KmsDataError: the key is not there, disabled or another one, or the file cannot be read.
        """
        _, store, _ = self._wrapped_by(wrapped, key)
        if store.kdf is not None and not self._file.has_passphrase:
            return "not known", f"{key} is in {self._file}, which has a passphrase that was not given so far"
        return "can be opened", f"{key} is in {self._file}"

    def _wrapped_by(self, wrapped: str, key: str) -> tuple[bytes, Store, int]:
        """Return the bytes of a wrapped key, the store, and which version of the master key wrapped it."""
        raw = base64_bytes(wrapped) or b""
        store, number = self._version(key, "unwrap", raw[:16])
        if len(raw) != 16 + 12 + 32 + 16:
            refuse(KeyAccessError, f"{key}: the wrapped key is malformed", "InvalidCiphertext", key, "unwrap")
        if raw[:16] != store.ids(self._name(key, "unwrap"))[number]:
            refuse(
                KeyNotFoundError,
                f"{key} in {self._file} is another key than the one that wrapped this data key (same name, "
                "other id). Use the keystore with which the data was encrypted, or its backup",
                "OtherKey",
                key,
                "unwrap",
            )
        return raw, store, number

    def ensure_key(self, key: str) -> None:
        """Create a master key that does not exist, if ``create`` allows it; otherwise raise.

        New data may create keys: `kmsdata.new_data_key` calls this for each local key that it was given.
        `kmsdata.rewrap` does not call it: there, a mistyped name would make data unreadable.

        Raises:
            KeyNotFoundError: the key does not exist, and may not be created here.
            KeyServiceError: the file cannot be read or written; its subclasses are more specific.
        """
        name = self._name(key, "generate_data_key")
        if name not in (store := self._file.read("generate_data_key")).keys:
            if not (_interactive() if self._create is None else self._create):
                self._require(store, name, "generate_data_key")
            self.create_key(name, exist_ok=True)

    # The operations of `kmsdata keys`.

    def create_key(self, name: str, *, exist_ok: bool = False, quiet: bool = False) -> str:
        """Create a master key. A notice says where it is stored, unless quiet.

        The notice is an output of the cell in a notebook; elsewhere it is printed to standard error.

        Args:
            name: 1 to 64 characters: A-Z, a-z, 0-9 or ``_.-``.
            exist_ok: if the key exists, keep it instead of raising. Keys are never overwritten.
            quiet: show no notice.

        Returns:
            The key's URI.

        Raises:
            KeyServiceError: a key of that name exists, or the file cannot be written.
        """
        uri = f"local://{name}"
        self._name(uri, "create_key")
        made, sealed = self._file.create(uri, name)
        if not made and not exist_ok:
            refuse(KeyServiceError, f"{uri} already exists in {self._file}", "KeyExists", uri, "create_key")
        if made and not quiet:
            others = [other for other in self._file.read("create_key").keys if other != name]
            _created(uri, str(self._file), sealed=sealed, others=others).show()
        return uri

    def describe_key(self, key: str) -> dict[str, str]:
        """Describe one key, as `list_keys` does."""
        name = self._name(key, "describe_key")
        store = self._file.read("describe_key")
        self._require(store, name, "describe_key")
        return self._about(store, name)

    def disable_key(self, key: str) -> None:
        """Disable a key until it is enabled again. Any user who can write the file can undo this."""
        self._change(key, "disable_key", lambda store, name: store.keys[name].update(disabled=True))

    def enable_key(self, key: str) -> None:
        """Enable a disabled key."""
        self._change(key, "enable_key", lambda store, name: store.keys[name].pop("disabled", None))

    def rotate_key(self, key: str) -> None:
        """Give a key new material now. Data keys that it wrapped before can still be unwrapped."""

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
            self._file.cipher(store, name)  # raises without the passphrase: only its owner may change a key
            change(store, name)

    def list_keys(self) -> list[dict[str, str]]:
        """List the keys by name: ``key`` (URI), ``id`` (hex), ``state``, ``created`` (UTC), ``rotation``."""
        store = self._file.read("list_keys")
        guard = "with a passphrase" if store.kdf is not None else "unencrypted"
        return KeyList((self._about(store, name) for name in sorted(store.keys)), f"{self._file}, {guard}")

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

    # Private helpers.

    def _name(self, key: str, operation: str) -> str:
        uri = parse_key(key)
        if uri.scheme != "local":
            refuse(KeyNotFoundError, f"{key} is not a key of a local keystore", "OtherScheme", key, operation)
        return uri.name

    def _version(self, key: str, operation: str, wanted: bytes = b"") -> tuple[Store, int]:
        """Return the store, and the number of a version of a master key, which is there and enabled.

        The version with the id ``wanted``, if there is one; otherwise the newest.
        """
        name = self._name(key, operation)
        store = self._file.read(operation)
        self._require(store, name, operation)
        if store.keys[name].get("disabled"):
            refuse(
                KeyAccessError,
                f"{key} is disabled. Run 'kmsdata keys enable {key}' to use it again",
                "KeyDisabled",
                key,
                operation,
            )
        return store, next((at for at, key_id in enumerate(store.ids(name)) if key_id == wanted), 0)

    def _wrapped(self, secret: Hidden, key: str, context: Mapping[str, str]) -> str:
        store, number = self._version(key, "wrap")
        name = self._name(key, "wrap")
        key_id, cipher = store.ids(name)[number], self._file.cipher(store, name, number)
        iv, associated = random_bytes(12), _associated(key, key_id, context)
        return base64_text(key_id + iv + cipher.encrypt(iv, secret.reveal(), associated))

    def _require(self, store: Store, name: str, operation: str) -> None:
        if name in store.keys:
            return
        uri = f"local://{name}"
        message = f"there is no {uri} in {self._file}. "
        if operation == "unwrap":
            message += "Set KMSDATA_KEYSTORE to the keystore that has it, or restore its backup there"
        else:
            if close := difflib.get_close_matches(name, store.keys, n=2):
                message += f"Did you mean {' or '.join(f'local://{other}' for other in close)}? "
            message += f"To create it: kmsdata keys create {uri}"
        if operation in ("generate_data_key", "wrap"):
            message += (
                ", or pass kmsdata.LocalKeystore(create=True) to kmsdata.use(). Without either, a key is "
                "created only when new data is encrypted in a terminal or notebook"
            )
        refuse(KeyNotFoundError, message, "KeyNotFound", uri, operation)


def _interactive() -> bool:
    """Return whether a user sees the notice that a key was created: not in cron jobs, CI and pipes."""
    streams = (sys.stdin, sys.stderr)
    return in_notebook() or in_marimo() or all(stream is not None and stream.isatty() for stream in streams)


def _created(uri: str, file: str, *, sealed: bool, others: list[str]) -> Notice:
    """Return the notice that a key was created, with the names of the other keys of the file."""
    guard = "with a passphrase" if sealed else "unencrypted: only file permissions protect it"
    facts = [
        Fact("stored in", f"{file}, {guard}"),
        Fact("backup", "copy this file: without it, the data that the key encrypts is lost"),
        Fact("wrong name?", f"encrypt again with the right key, and run: kmsdata keys disable {uri}"),
    ]
    if close := difflib.get_close_matches(uri.removeprefix("local://"), others, n=2):
        facts.insert(0, Fact("similar keys", ", ".join(f"local://{other}" for other in close)))
    return Notice(f"kmsdata: created the key {uri}", facts)


def _associated(key: str, key_id: bytes, context: Mapping[str, str]) -> bytes:
    named = {"context": dict(context), "id": base64_text(key_id), "key": key, "use": "kmsdata/1/local"}
    return canonical(named).encode()
