"""Data keys, the keys derived from them, and the protocol of the providers that wrap and unwrap them.

HKDF-SHA256 (RFC 5869) without salt derives everything from the 32 bytes of the data key::

    info "kmsdata/1/commitment"                              32 bytes   in the header, identifies the data key
    info "kmsdata/1/header"                                  32 bytes   HMAC key of the column objects
    info "kmsdata/1/AES-256-GCM/" + digest of the column     36 bytes   key id (4), key (32)
    info "kmsdata/1/AES-256-SIV/" + kind + "/" + domain      68 bytes   key id (4), key (64)
    info "kmsdata/1/categories"                              64 bytes   key of category lists
    info "kmsdata/1/original/" + the column's name           36 bytes   key id (4), key (32) of what a file
                                                                        said of it before the encryption
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import NoReturn, Protocol, runtime_checkable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kmsdata.display.panel import Panel, shows_panel
from kmsdata.display.tables import Call, Fact
from kmsdata.errors import CallerTypeError, CallerValueError
from kmsdata.keys.envelope import ColumnHeader, DataKeyRecord, Wrap
from kmsdata.keys.fork_lock import Lock
from kmsdata.keys.key_uri import parse_key

__all__ = ["CellKey", "DataKey", "Hidden", "KeyProvider", "Secret", "random_bytes"]

_MOST_CELLS = 1 << 32
_MOST_COUNTS = 1 << 16


def random_bytes(size: int) -> bytes:
    """Return random bytes from the operating system: the only source of randomness in kmsdata."""
    return os.urandom(size)


class Secret:
    """Base class of secrets: their repr shows no content, and they cannot be pickled or copied."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __reduce__(self) -> NoReturn:
        raise CallerTypeError(
            f"a {type(self).__name__} cannot be pickled: it is secret. Pass the encrypted data, "
            "and let the other process unwrap its data key"
        )


_hiding = AESGCM(random_bytes(32))  # an object of OpenSSL, which has no attribute with the key


class Hidden(Secret):
    """Secret bytes that a walk over attributes and containers does not find.

    They are encrypted under a key of this process, so that error reports with local variables, debuggers and
    inspectors do not show them. This does not protect them from code that runs in the process.
    """

    __slots__ = ("_box",)

    def __init__(self, content: bytes) -> None:
        iv = random_bytes(12)
        self._box = iv, _hiding.encrypt(iv, content, None)

    def reveal(self) -> bytes:
        """Return the bytes. Do not assign them to a variable in a function that may raise."""
        return _hiding.decrypt(*self._box, None)


class CellKey(Secret):
    """The key for the cells of one randomised column, or of one deterministic domain and kind.

    Attributes:
        prefix: the first 5 bytes of each of its cells: 0x01 (Tink's version) and the key id.
        key: 32 bytes (AES-256-GCM) or 64 bytes (AES-256-SIV).
    """

    __slots__ = ("key", "prefix")

    def __init__(self, derived: bytes) -> None:
        # Without zero bytes in key ids, cells that lost their header can be told from other binary values.
        self.prefix = b"\x01" + derived[:4].replace(b"\0", b"\xff")
        self.key = derived[4:]


class _CellCounts:
    """How many randomised cells this process has encrypted, by data key (its commitment) and column name.

    The count belongs to the data key, not to one object: each unwrapping makes another object. Only the
    counts that changed last are kept, and a new one starts at the largest of those that were removed: so a
    count may be too high, never too low.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts: OrderedDict[tuple[bytes, str], int] = OrderedDict()
        self._floor = 0

    def add(self, commitment: bytes, name: str, cells: int) -> int:
        """Return the new count; it is kept only up to the limit."""
        with self._lock:
            total = self._counts.get((commitment, name), self._floor) + cells
            if total <= _MOST_CELLS:
                self._counts[commitment, name] = total
                self._counts.move_to_end((commitment, name))
                if len(self._counts) > _MOST_COUNTS:
                    self._floor = max(self._floor, self._counts.popitem(last=False)[1])
            return total


_cell_counts = _CellCounts()


@shows_panel
class DataKey(Secret):
    """A plaintext data key with its wrapped keys, as returned by a KMS's GenerateDataKey.

    Args:
        secret: 32 bytes.
        wraps: wrapped keys: this data key, wrapped by one or more master keys.
        context: the context that was passed to the KMS with it.

    Raises:
        ValueError: the secret has another size, or there is no wrapped key.
        FormatError: a wrapped key names its master key by something other than a key URI.

    Example:
        >>> key = DataKey(bytes(32), [Wrap("local://demo", "...")])
        >>> key
        <DataKey 450218f9 under local://demo>
    """

    __slots__ = ("_secret", "commitment", "context", "wraps")

    def __init__(
        self, secret: bytes, wraps: Iterable[Wrap], *, context: Mapping[str, str] | None = None
    ) -> None:
        self._secret = Hidden(bytes(secret))
        size, secret = len(secret), b""  # from here on, no frame of an error contains it
        if size != 32:
            raise CallerValueError(f"the data key has {size} bytes: it must have 32 bytes (AES_256)")
        self.wraps = tuple(dict.fromkeys(wraps))
        if not self.wraps:
            raise CallerValueError(
                "no wrapped key was given: without one, the data key could never be unwrapped again"
            )
        for wrap in self.wraps:
            parse_key(wrap.key)
        self.context = tuple(sorted((context or {}).items()))
        DataKeyRecord(b"", self.context, self.wraps)  # raises FormatError for what readers would reject
        self.commitment = self._derive(b"kmsdata/1/commitment", 32)

    def _derive(self, info: bytes, size: int) -> bytes:
        hkdf = HKDF(algorithm=SHA256(), length=size, salt=None, info=info)
        return hkdf.derive(self._secret.reveal())

    @property
    def record(self) -> DataKeyRecord:
        """The record of this key that headers contain."""
        return DataKeyRecord(self.commitment, self.context, self.wraps)

    def cell_key(self, header: ColumnHeader) -> CellKey:
        """Derive the key of a column's cells."""
        return CellKey(self._derive(header.key_info, 68 if header.deterministic else 36))

    def categories_key(self) -> CellKey:
        """Derive the key of category lists. Its prefix is zero and is not stored: the list is not a cell."""
        return CellKey(bytes(4) + self._derive(b"kmsdata/1/categories", 64))

    def _original_key(self, name: str) -> CellKey:
        return CellKey(self._derive(b"kmsdata/1/original/" + name.encode(), 36))

    def _seal_original(self, name: str, metadata: bytes) -> bytes:
        """Encrypt what a file said of a column before it was encrypted, in the form of a cell."""
        key, iv = self._original_key(name), random_bytes(12)
        return key.prefix + iv + AESGCM(key.key).encrypt(iv, metadata, None)

    def _open_original(self, name: str, sealed: bytes) -> bytes | None:
        """Decrypt it; None if it was changed or belongs to another column."""
        key = self._original_key(name)
        if len(sealed) < 33 or sealed[:5] != key.prefix:
            return None
        try:
            return AESGCM(key.key).decrypt(sealed[5:17], sealed[17:], None)
        except InvalidTag:
            return None

    def mac(self, header: ColumnHeader) -> bytes:
        """Compute the HMAC-SHA256 (RFC 2104, 32 bytes) of a column object and this key's context."""
        key = self._derive(b"kmsdata/1/header", 32)
        return hmac.new(key, header.authenticated(self.context), hashlib.sha256).digest()

    def authenticates(self, header: ColumnHeader) -> bool:
        """Check the MAC of a column object: False if the object was changed (constant time)."""
        return hmac.compare_digest(self.mac(header), header.mac)

    def commits_to(self, commitment: bytes) -> bool:
        """Check whether a commitment belongs to this key (constant time)."""
        return hmac.compare_digest(self.commitment, commitment)

    def count(self, name: str, cells: int) -> None:
        """Count the cells of a randomised column before they are encrypted.

        Args:
            name: the column's name.
            cells: how many.

        Raises:
            ValueError: more than 2^32 in all, by this process: random IVs might repeat (NIST SP 800-38D
                section 8.3).
        """
        if _cell_counts.add(self.commitment, name, cells) > _MOST_CELLS:
            raise CallerValueError(
                f"column {name!r}: more than 2^32 cells under one data key. Encrypt with a new data key"
            )

    def under(self, wraps: Iterable[Wrap]) -> DataKey:
        """Return the same data key with these wrapped keys instead."""
        return DataKey(self._secret.reveal(), wraps, context=dict(self.context))

    def wrap_by(self, provider: KeyProvider, key: str) -> Wrap:
        """Wrap this data key under another master key."""
        return Wrap(key, provider.wrap(self._secret.reveal(), key, dict(self.context)))

    def __repr__(self) -> str:
        keys = ", ".join(wrap.key for wrap in self.wraps)
        return f"<DataKey {self.commitment.hex()[:8]} under {keys}>"

    def _panel(self) -> Panel:
        context = ", ".join(f"{name}={text}" for name, text in self.context)
        return Panel(
            f"data key {self.commitment.hex()[:8]}",
            [
                *(Fact("opened by", wrap.key) for wrap in self.wraps),
                *([Fact("context", context)] if context else []),
            ],
            calls=[
                Call("df.kms.encrypt(columns, key=data_key)", "encrypt frames that can be joined"),
                Call("df.kms.decrypt(key=data_key)", "decrypt without a KMS call"),
            ],
            notes=["The key itself is never displayed or pickled."],
        )


@runtime_checkable
class KeyProvider(Protocol):
    """Interface for wrapping and unwrapping data keys: a KMS, or a file of master keys.

    A custom provider is any object with these members; pass it to `kmsdata.use`.
    """

    scheme: str
    """The scheme of its key URIs, such as ``"local"``."""

    def generate_data_key(self, key: str, context: Mapping[str, str]) -> DataKey:
        """Generate a data key of 32 bytes, wrapped by the master key ``key``."""
        ...

    def unwrap(self, wrapped: str, key: str, context: Mapping[str, str]) -> bytes:
        """Return the 32 bytes of a data key that the master key ``key`` wrapped with the same context."""
        ...

    def wrap(self, data_key: bytes, key: str, context: Mapping[str, str]) -> str:
        """Return the wrapped key: the text that `unwrap` takes."""
        ...
