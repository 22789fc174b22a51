"""Store accounts and master keys of the emulated service in memory, and optionally in a file."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from filelock import FileLock, Timeout

from kmsdata.atomic_files import whole_file
from kmsdata.errors import FormatError, KeyServiceError
from kmsdata.keys.data_key import Secret, random_bytes

__all__ = ["Account", "MasterKey", "Store"]

_UIN = "100000000001"


class Account(Secret):
    """A SecretId with its key, the account it belongs to, and the actions it may use."""

    __slots__ = ("allow", "expires", "secret_key", "token", "uin")

    def __init__(
        self,
        secret_key: str,
        *,
        token: str | None = None,
        uin: str = _UIN,
        allow: frozenset[str] | None = None,
        expires: float | None = None,
    ) -> None:
        self.secret_key, self.token, self.uin, self.allow, self.expires = (
            secret_key,
            token,
            uin,
            allow,
            expires,
        )

    def may(self, action: str, key_id: str) -> bool:
        """Return whether it may use an action, with this key or with all keys."""
        return self.allow is None or action in self.allow or f"{action}@{key_id}" in self.allow


@dataclass(repr=False)
class MasterKey:
    """A master key (CMK): the facts that `DescribeKey` returns, and its versions."""

    key_id: str
    alias: str
    region: str
    uin: str
    created: int
    description: str = ""
    state: str = "Enabled"
    rotate_days: int = 0
    rotated: int = 0
    deletion: int = 0
    versions: list[str] = field(default_factory=list)  # base64, the oldest first

    def __repr__(self) -> str:
        return f"<MasterKey {self.key_id} {self.state}>"

    def rotate(self) -> None:
        """Add new key material; keys that older material wrapped can still be unwrapped."""
        self.versions.append(_b64(random_bytes(32)))


class Store(Secret):
    """The state of the service.

    Args:
        path: a JSON file of mode 0600, locked by one process at a time; None: memory only.

    Raises:
        KeyServiceError: another process uses the file, or it cannot be read.
        FormatError: the file is not a state file.
    """

    def __init__(self, path: Path | None) -> None:
        self.lock = threading.RLock()
        self.offset = 0.0  # seconds by which its clock is ahead
        self.keys: dict[str, MasterKey] = {}
        self.accounts: dict[str, Account] = {}
        self.path = path
        self._file_lock: FileLock | None = None
        self._written = b""
        self._root = random_bytes(32)
        self.secret_id, self.secret_key = f"AKID{random_bytes(16).hex()}", random_bytes(16).hex()
        if path is not None:
            self._open(path)
        self.accounts[self.secret_id] = Account(self.secret_key)

    @property
    def now(self) -> float:
        """Its clock, in seconds since 1970."""
        return time.time() + self.offset

    # The file.

    def _open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        self._file_lock = FileLock(f"{path}.lock", mode=0o600, timeout=0)
        try:
            self._file_lock.acquire()
        except Timeout:
            raise KeyServiceError(
                f"{path} is in use by another emulator. Stop it, or use another file.", code="InUse"
            ) from None
        if path.exists() and not self._load(path.read_bytes()):
            self.close()
            raise FormatError(f"{path} is not a state file of the emulator", path=str(path))
        self.save()

    def _load(self, text: bytes) -> bool:
        """Load the state; return whether it could be read. Never raises: an error would contain the keys."""
        try:
            state = json.loads(text)
            root = base64.b64decode(state["root"], validate=True)
            keys = {item["key_id"]: MasterKey(**item) for item in state["keys"]}
            good = state["version"] == 1 and len(root) == 32
            secret_id, secret_key = str(state["secret_id"]), str(state["secret_key"])
        except (ValueError, TypeError, KeyError, RecursionError):
            return False
        if good:
            self._root, self.keys, self.secret_id, self.secret_key = root, keys, secret_id, secret_key
        return good

    def save(self) -> None:
        """Write the file, if there is one and its content has changed."""
        if self.path is None:
            return
        state = {
            "version": 1,
            "root": _b64(self._root),
            "secret_id": self.secret_id,
            "secret_key": self.secret_key,
            "keys": [asdict(key) for key in self.keys.values()],
        }
        text = json.dumps(state, indent=1).encode()
        if text != self._written:
            with whole_file(self.path, mode=0o600) as file:
                file.write(text)
            self._written = text

    def close(self) -> None:
        """Unlock the file, so that another process can use it."""
        if self._file_lock is not None:
            self._file_lock.release()
            self._file_lock = None

    # Keys.

    def create(self, uin: str, region: str, alias: str, description: str) -> MasterKey:
        """Create a master key."""
        key = MasterKey(_uuid(), alias, region, uin, int(self.now), description)
        key.rotate()
        self.keys[key.key_id] = key
        return key

    def of(self, uin: str, region: str) -> list[MasterKey]:
        """Return the keys of an account in a region, the oldest first.

        Deletions and rotations that are due are carried out first.
        """
        for key in list(self.keys.values()):
            if key.state == "PendingDelete" and self.now >= key.deletion:
                del self.keys[key.key_id]
            elif key.rotate_days and self.now >= (key.rotated or key.created) + 86400 * key.rotate_days:
                key.rotated = int(self.now)
                key.rotate()
        return [key for key in self.keys.values() if (key.uin, key.region) == (uin, region)]

    # Blobs have the form of the real service: three parts in base64, joined by ``-k-``. As observed of the
    # real service, the context is not authenticated with the third part, the ciphertext.

    def seal(self, key: MasterKey, plaintext: bytes, context: str) -> str:
        """Encrypt a plaintext to a CiphertextBlob."""
        number = len(key.versions) - 1
        name = uuid.UUID(key.key_id).bytes + number.to_bytes(4, "big") + bytes(16)
        # Derived, not random: all blobs of one key version have the same first part.
        iv = hmac.digest(self._root, name, "sha256")[:12]
        first = iv + AESGCM(self._root).encrypt(iv, name, None)
        pad = 8 - len(plaintext) % 8
        iv = random_bytes(12)
        third = iv + AESGCM(_raw(key.versions[number])).encrypt(iv, plaintext + bytes([pad] * pad), None)
        return "-k-".join(map(_b64, (first, self._label(context), third)))

    def unseal(self, blob: str, uin: str, region: str, context: str) -> tuple[MasterKey, int, bytes] | None:
        """Decrypt a blob: return its key, key version number and plaintext; None on failure."""
        try:
            first, second, third = map(_raw, blob.split("-k-"))
            name = AESGCM(self._root).decrypt(first[:12], first[12:], None)
            key = self.keys.get(str(uuid.UUID(bytes=name[:16])))
            number = int.from_bytes(name[16:20], "big")
            if key is None or (key.uin, key.region) != (uin, region):
                return None
            if not hmac.compare_digest(second, self._label(context)):
                return None
            padded = AESGCM(_raw(key.versions[number])).decrypt(third[:12], third[12:], None)
        except (ValueError, IndexError, InvalidTag):
            return None
        return key, number, padded[: -padded[-1]]

    def relabel(self, blob: str, context: str) -> str:
        """Return the blob with another context."""
        first, _, third = blob.split("-k-")
        return "-k-".join((first, _b64(self._label(context)), third))

    def _label(self, context: str) -> bytes:
        return hashlib.sha256(b"kmsdata.emulator" + context.encode()).digest()[:16]


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _raw(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _uuid() -> str:
    return str(uuid.UUID(bytes=random_bytes(16), version=1))
