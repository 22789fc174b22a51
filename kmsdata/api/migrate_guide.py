"""Read columns that were encrypted as in the vendor's guide."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import pandas as pd

from kmsdata.ciphers import legacy_ecb as ecb
from kmsdata.ciphers.cells import Cells
from kmsdata.errors import CallerTypeError, CallerValueError, FormatError, KeyServiceError
from kmsdata.frames.column import ROWS_NAMED
from kmsdata.frames.encrypted_columns import Encrypted
from kmsdata.frames.frame import encrypt_frame
from kmsdata.keys.data_key import Secret
from kmsdata.keys.envelope import base64_bytes, has_lone_surrogate
from kmsdata.keys.session import Key, pairs, provider_of, session_key

__all__ = ["migrate_guide_column"]


def migrate_guide_column(
    series: pd.Series[Any],
    wrapped: str,
    *,
    key: str | None = None,
    context: Mapping[str, str] | None = None,
    encrypt: Key | Encrypted | None = None,
    text: bool = True,
) -> pd.Series[Any]:
    """Decrypt a column that was written as in the vendor's guide: AES-ECB, zero padding, base64.

    Such data has no integrity: a user with write access could change, swap or repeat values without
    detection, and equal blocks are visible. Its padding is ambiguous: zero bytes at the end of a value cannot
    be distinguished from padding and are removed. A warning says both. The given series is unchanged;
    kmsdata never writes this format.

    Args:
        series: base64 text, or null.
        wrapped: the wrapped data key (CiphertextBlob), which the guide stores separately; AES_128 or AES_256.
        key: URI of the master key that wrapped it; None: the session's key.
        context: the encryption context that it was wrapped with, if any.
        encrypt: a key (URI, several URIs, a `DataKey`, encrypted data) to encrypt the values with, so that an
            encrypted column is returned; None: return the plain values.
        text: whether the values are UTF-8 text; False: bytes.

    Returns:
        A series with the same index and name: text, bytes, or encrypted.

    Raises:
        TypeError: ``series`` is no Series, or ``wrapped`` is no text.
        FormatError: cells are not base64 of whole blocks, or not UTF-8 text. The message names the rows. A
            wrong key has the same effect, since ECB does not detect it.
        ValueError: no key is given and the session has none.
        KeyServiceError: the KMS call failed.

    Example:
        >>> import pandas as pd, kmsdata
        >>> old = pd.Series(["h2mN0iU8mmYFgBSBZ2XsLw=="], name="ssn")
        >>> kmsdata.migrate_guide_column(
        ...     old, "...", key="tencent-kms://ap-guangzhou/payroll", encrypt="local://demo"
        ... )  # doctest: +SKIP
    """
    if not isinstance(series, pd.Series):
        columns = ", ".join(map(repr, series.columns[:10])) if isinstance(series, pd.DataFrame) else ""
        raise CallerTypeError(
            f"migrate_guide_column takes one column (a Series) with the guide's cells (base64 text), not a "
            f"{type(series).__name__}."
            + (f" Pass df[name], where name is one of {columns}" if columns else " Pass df[name]")
        )
    if not isinstance(wrapped, str):
        raise CallerTypeError(
            "wrapped= takes the wrapped data key that the guide stores (CiphertextBlob), as text, not "
            f"{type(wrapped).__name__}"
        )
    uri = key or session_key()
    if uri is None:
        raise CallerValueError(
            "no key: the session has none. Pass key=, the master key that wrapped the data key"
        )
    if encrypt is not None and not isinstance(series.name, str):
        raise CallerTypeError(
            "the series needs a name that is text: its new key is derived from the name. Call series.rename()"
        )
    rows, bad = _decoded(series)
    if bad:
        raise _refused(series, bad, "are not base64 of whole AES blocks, which is what the guide writes")
    warnings.warn(
        f"column {series.name!r} had no integrity: a user with write access could change or swap values, and "
        "this cannot be detected. Zero bytes at the end of a value were removed as padding",
        UserWarning,
        stacklevel=2,
    )
    opened = _opened(_unwrapped(uri, wrapped, context), rows)
    values, bad = _values(opened, text)
    if values is None:
        raise _refused(
            series, bad, "are not UTF-8 text when decrypted: the wrong key, or bytes (pass text=False)"
        )
    values.index, values.name = series.index, series.name
    if encrypt is None:
        return values
    return encrypt_frame(values.to_frame(), str(series.name), key=encrypt).iloc[:, 0]


class _Key(Secret):
    """The data key of the guide: 16 or 32 bytes."""

    __slots__ = ("secret",)

    def __init__(self, secret: bytes) -> None:
        self.secret = secret


def _unwrapped(uri: str, wrapped: str, context: Mapping[str, str] | None) -> _Key:
    provider = provider_of(uri, pinned=True)
    key = _Key(provider.unwrap(wrapped, uri, pairs(context)))
    if len(key.secret) not in (16, 32):
        raise KeyServiceError(
            f"{uri}: the unwrapped data is not a key of AES_128 or AES_256: it has another length",
            provider=provider.scheme,
            operation="unwrap",
            code="InvalidDataKey",
        )
    return key


def _decoded(series: pd.Series[Any]) -> tuple[list[bytes | None], list[int]]:
    """Return the cells' bytes, and the positions of cells that are not valid."""
    rows: list[bytes | None] = []
    bad: list[int] = []
    for position, (cell, null) in enumerate(zip(series.tolist(), series.isna().tolist(), strict=True)):
        raw = None if null else _block(cell)
        if raw is None and not null:
            bad.append(position)
        rows.append(raw)
    return rows, bad


def _block(cell: object) -> bytes | None:
    raw = base64_bytes(cell, any_spelling=True)
    return raw if raw is not None and len(raw) % 16 == 0 else None


def _opened(key: _Key, rows: list[bytes | None]) -> Cells:
    return ecb.open_cells(key.secret, Cells.of(rows))


def _values(cells: Cells, text: bool) -> tuple[pd.Series[Any] | None, list[int]]:
    """Return the values; or None, and the positions of values that are not text.

    Never raises: a traceback that shows local variables would show the values.
    """
    if not text:
        return pd.Series(cells.rows(), dtype=object), []
    values: list[str | None] = []
    bad: list[int] = []
    for position, raw in enumerate(cells.rows()):
        # A UnicodeDecodeError would contain the decrypted bytes: invalid UTF-8 becomes lone surrogates.
        decoded = None if raw is None else raw.decode("utf-8", "surrogateescape")
        if decoded is not None and has_lone_surrogate(decoded):
            bad.append(position)
        values.append(decoded)
    return (None, bad) if bad else (pd.Series(values, dtype="str"), [])


def _refused(series: pd.Series[Any], bad: list[int], what: str) -> FormatError:
    some = f"{', '.join(map(str, bad[:5]))}{', ...' if len(bad) > 5 else ''}"
    name = None if series.name is None else str(series.name)
    return FormatError(
        f"column {series.name!r}: {len(bad)} cells (rows {some}) {what}",
        column=name,
        rows=tuple(bad[:ROWS_NAMED]),
    )
