"""Make, unwrap and export the data keys of frames, tables and files."""

from __future__ import annotations

import os
from collections.abc import Mapping

from kmsdata.errors import CallerKeyError, did_you_mean
from kmsdata.frames.arguments import Columns
from kmsdata.frames.encrypted_columns import Encrypted, check_names, headers_of, parsed_headers
from kmsdata.frames.key_argument import data_key_for, resolve_key, the_data_key
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import Header
from kmsdata.keys.session import Key
from kmsdata.keys.tink_keyset import Keyset
from kmsdata.keys.unwrap import open_keys
from kmsdata.parquet.headers import dataset_headers, read_headers
from kmsdata.parquet.read import FilePath

__all__ = ["data_key", "export_keyset", "new_data_key"]


def new_data_key(key: Key | Encrypted | None = None, *, context: Mapping[str, str] | None = None) -> DataKey:
    """Make a data key, with one KMS call. Frames that are encrypted with the same one can be joined.

    Args:
        key: URI of a master key, or several URIs, each of which can unwrap it; None: the session's key.
        context: pairs that are stored unencrypted with the wrapped key and are required to unwrap it.

    Raises:
        ValueError: no key is given and the session has none.
        KeyServiceError: the KMS call failed.

    Example:
        >>> import kmsdata
        >>> kmsdata.new_data_key("local://demo").wraps[0].key
        'local://demo'
    """
    return data_key_for(key, context)


def data_key(
    x: Encrypted | FilePath,
    *,
    key: Key | Encrypted | None = None,
    context: Mapping[str, str] | None = None,
) -> DataKey:
    """Unwrap the data key of encrypted data.

    Args:
        x: a frame, series, Arrow table, or path of a Parquet file.
        key: use only these keys; None: as for decryption.
        context: pairs that the authenticated context must contain.

    Raises:
        ValueError: nothing is encrypted, or there are several data keys; the message lists them.
        KeyServiceError, WrongKeyError, FormatError: as for decryption.

    Example:
        >>> import pandas as pd, kmsdata
        >>> one = pd.DataFrame({"id": [1, 2]}).kms.encrypt(deterministic="id", key="local://demo")
        >>> two = pd.DataFrame({"id": [2, 3]}).kms.encrypt(deterministic="id", key=kmsdata.data_key(one))
        >>> len(one.merge(two, on="id"))
        1
    """
    return the_data_key(_headers(x), key, context)


def export_keyset(source: Encrypted | FilePath, column: str, *, key: Key | Encrypted | None = None) -> Keyset:
    """Export a Tink keyset that decrypts one column in Tink, BigQuery or Spark, without kmsdata or KMS.

    A user who has the keyset of a randomised column can read and write its cells. The keyset of a
    deterministic column does this for all columns of its domain and kind in every file under the same data
    key.

    Args:
        source: a frame, series, Arrow table, or path of a Parquet file.
        column: name of the column.
        key: use only these keys; None: as for decryption.

    Returns:
        An object whose repr hides the secret; its ``.json()`` returns it.

    Raises:
        KeyError: there is no encrypted column of that name.
        KeyServiceError, WrongKeyError, FormatError: as for decryption.

    Example:
        >>> import pandas as pd, kmsdata
        >>> enc = pd.DataFrame({"age": [36, 41]}).kms.encrypt("age", key="local://demo")
        >>> kmsdata.export_keyset(enc, "age")
        <Keyset of 1 AES-256-GCM key>
    """
    headers = _headers(source, column)
    if column not in headers:
        known = _headers(source)
        there = f": the encrypted columns are {', '.join(map(repr, [*known][:10]))}" if known else ""
        raise CallerKeyError(f"no encrypted column {column!r}{did_you_mean(column, known) or there}")
    header = headers[column]
    keys = open_keys([(column, header)], resolve_key(key), None)
    if isinstance(source, (str, os.PathLike)):
        for name, file in dataset_headers(source, None, {column}).items():
            check_names(file.headers, beside=file.beside, path=name)
    else:
        check_names(headers, beside=parsed_headers(source))
    return Keyset([(item.algorithm, keys[item.data_key].cell_key(item)) for item in header.columns])


def _headers(x: Encrypted | FilePath, columns: Columns | None = None) -> dict[str, Header]:
    if isinstance(x, (str, os.PathLike)):
        return read_headers(x, columns=columns)
    return headers_of(x, columns)
