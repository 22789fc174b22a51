"""Data keys: what is derived from them, and the protocol of the providers that wrap and unwrap them.

Everything is derived from the 32 bytes of the data key by HKDF-SHA256 (RFC 5869) without salt::

    info "kmsdata/1/commitment"                              32 bytes   in the header, names the data key
    info "kmsdata/1/header"                                  32 bytes   HMAC key of the column objects
    info "kmsdata/1/AES-256-GCM/" + name                     36 bytes   key id (4), key (32)
    info "kmsdata/1/AES-256-SIV/" + kind + "/" + domain      68 bytes   key id (4), key (64)
    info "kmsdata/1/categories"                              64 bytes   key of category lists
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from typing import NoReturn, Protocol, runtime_checkable

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kmsdata.keys.envelope import ColumnHeader, DataKeyRecord, Wrap
from kmsdata.keys.fork_lock import Lock
from kmsdata.keys.key_uri import parse_key

__all__ = ["CellKey", "DataKey", "KeyProvider", "Secret", "random_bytes"]

_MOST_CELLS = 1 << 32


def random_bytes(size: int) -> bytes:
    """Bytes from the operating system: the one place where randomness enters kmsdata."""
    return os.urandom(size)


class Secret:
    """Something that shows nothing of itself and cannot be pickled or copied."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} is secret and is not pickled: pass the encrypted data, "
            "and let the other process unwrap its data key"
        )


class CellKey(Secret):
    """The key of the cells of one randomised column, or of one deterministic domain and kind.

    Attributes:
        prefix: 5 bytes that begin each of its cells: 0x01 (Tink's version) and the key id.
        key: 32 bytes (AES-256-GCM) or 64 bytes (AES-256-SIV).
    """

    __slots__ = ("key", "prefix")

    def __init__(self, derived: bytes) -> None:
        self.prefix = b"\x01" + derived[:4]
        self.key = derived[4:]


class DataKey(Secret):
    """A data key in the clear, with its wraps: what a KMS's GenerateDataKey returns.

    Args:
        secret: 32 bytes.
        wraps: the same key as wrapped by one or more master keys.
        context: the pairs that its service was given with it.

    Raises:
        ValueError: a secret of another size, or no wrap.
        FormatError: a wrap whose key is not a key URI.

    Example:
        >>> key = DataKey(bytes(32), [Wrap("local://demo", "...")])
        >>> key
        <DataKey 450218f9 under local://demo>
    """

    __slots__ = ("_lock", "_sealed", "_secret", "commitment", "context", "wraps")

    def __init__(
        self, secret: bytes, wraps: Iterable[Wrap], *, context: Mapping[str, str] | None = None
    ) -> None:
        if len(secret) != 32:
            raise ValueError(f"a data key has 32 bytes (AES_256), not {len(secret)}")
        self.wraps = tuple(dict.fromkeys(wraps))
        if not self.wraps:
            raise ValueError("a data key without a wrap could never be opened again")
        for wrap in self.wraps:
            parse_key(wrap.key)
        self.context = tuple(sorted((context or {}).items()))
        DataKeyRecord(b"", self.context, self.wraps)  # refuses what no reader would take
        self._secret = bytes(secret)
        self._lock = Lock()
        self._sealed: dict[str | None, int] = {}
        self.commitment = self._derive("kmsdata/1/commitment", 32)

    def _derive(self, info: str, size: int) -> bytes:
        return HKDF(algorithm=SHA256(), length=size, salt=None, info=info.encode()).derive(self._secret)

    @property
    def record(self) -> DataKeyRecord:
        """What a header says of this key."""
        return DataKeyRecord(self.commitment, self.context, self.wraps)

    def cell_key(self, header: ColumnHeader) -> CellKey:
        """The key of a column's cells."""
        if header.deterministic:
            return CellKey(self._derive(f"kmsdata/1/AES-256-SIV/{header.kind}/{header.domain}", 68))
        return CellKey(self._derive(f"kmsdata/1/AES-256-GCM/{header.name}", 36))

    def categories_key(self) -> CellKey:
        """The key of category lists. Its prefix is zero and stays out of them: headers have no cells."""
        return CellKey(bytes(4) + self._derive("kmsdata/1/categories", 64))

    def mac(self, header: ColumnHeader) -> bytes:
        """HMAC-SHA256 over a column object and this key's context (RFC 2104), 32 bytes."""
        key = self._derive("kmsdata/1/header", 32)
        return hmac.new(key, header.authenticated(self.context), hashlib.sha256).digest()

    def authenticates(self, header: ColumnHeader) -> bool:
        """Whether a column object is as this key's holder wrote it (in constant time)."""
        return hmac.compare_digest(self.mac(header), header.mac)

    def commits_to(self, commitment: bytes) -> bool:
        """Whether this is the key of a commitment (in constant time)."""
        return hmac.compare_digest(self.commitment, commitment)

    def count(self, name: str | None, cells: int) -> None:
        """Count cells about to be sealed: with random IVs under one column name; None: deterministic ones.

        Raises:
            ValueError: more than 2^32 in all: IVs might repeat (NIST SP 800-38D section 8.3).
        """
        with self._lock:
            total = self._sealed.get(name, 0) + cells
            if total > _MOST_CELLS and name is not None:
                raise ValueError(
                    f"column {name!r}: more than 2^32 cells under one data key; encrypt with a new one"
                )
            self._sealed[name] = total

    @property
    def sealed(self) -> int:
        """How many cells were sealed under it in this process, of all columns."""
        with self._lock:
            return sum(self._sealed.values())

    def under(self, wraps: Iterable[Wrap]) -> DataKey:
        """The same key with these wraps instead; cells are counted for both together."""
        key = DataKey(self._secret, wraps, context=dict(self.context))
        key._lock, key._sealed = self._lock, self._sealed
        return key

    def wrap_by(self, provider: KeyProvider, key: str) -> Wrap:
        """This key, wrapped by another master key as well."""
        return Wrap(key, provider.wrap(self._secret, key, dict(self.context)))

    def __repr__(self) -> str:
        keys = ", ".join(wrap.key for wrap in self.wraps)
        return f"<DataKey {self.commitment.hex()[:8]} under {keys}>"


@runtime_checkable
class KeyProvider(Protocol):
    """What wraps and unwraps data keys: a key service, or a file.

    A provider of your own is any object with these; hand it to `kmsdata.use`.
    """

    scheme: str
    """The scheme of the key URIs that are its own, such as ``"local"``."""

    def generate_data_key(self, key: str, context: Mapping[str, str]) -> DataKey:
        """A new data key of 32 bytes, wrapped by the master key ``key``."""
        ...

    def unwrap(self, wrapped: str, key: str, context: Mapping[str, str]) -> bytes:
        """The 32 bytes of a data key that the master key ``key`` wrapped with the same context."""
        ...

    def wrap(self, data_key: bytes, key: str, context: Mapping[str, str]) -> str:
        """The text that `unwrap` takes."""
        ...
