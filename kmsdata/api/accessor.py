"""``df.kms`` and ``series.kms``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import pandas as pd

from kmsdata.api.inspection import inspect
from kmsdata.api.rewrap import rewrap_frame
from kmsdata.display.inspection import Inspection
from kmsdata.frames.arguments import Columns
from kmsdata.frames.encrypted_columns import Encrypted, encrypted_columns
from kmsdata.frames.frame import decrypt_frame, encrypt_frame
from kmsdata.frames.search import isin
from kmsdata.keys.rewrap import Change
from kmsdata.keys.session import Key
from kmsdata.parquet.read import FilePath
from kmsdata.parquet.write import write_parquet

__all__ = ["FrameAccessor", "SeriesAccessor"]


@pd.api.extensions.register_dataframe_accessor("kms")
class FrameAccessor:
    """Encryption of a frame's columns: ``df.kms``."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self._frame = frame

    def encrypt(
        self,
        columns: Columns = (),
        *,
        deterministic: Columns | bool = (),
        key: Key | Encrypted | None = None,
        domain: str | Mapping[str, str] | None = None,
        context: Mapping[str, str] | None = None,
        progress: bool | None = None,
    ) -> pd.DataFrame:
        """Encrypt columns, under one data key.

        Args:
            columns: name or names of the columns to encrypt with random IVs: nothing shows but which cells
                are null and how long each is.
            deterministic: names of those to encrypt so that equal values have equal cells, and so can be
                joined, grouped and counted; True for all of ``columns``.
            key: URI of a master key, such as ``"local://demo"``, which makes a new data key; several, each of
                which can open it; a `DataKey`, or an encrypted frame whose data key to use, so that both
                frames can be joined; None: the session's key (`kmsdata.use`, ``KMSDATA_KEY``).
            domain: what deterministic columns may be joined across: by column, or one text for one column;
                default: the column's own name.
            context: pairs that stand in clear beside the wrapped key, and that opening it takes.
            progress: show a bar; None: where it takes longer than a second and somebody may be looking.

        Returns:
            A new frame with those columns encrypted; index, order, attrs and all else as they were.

        Raises:
            KeyError: no such column.
            ValueError: no column named, one encrypted already, of a label that stands twice, or in the index;
                no key named anywhere.
            UnsupportedTypeError: values that could not come back exactly.
            KeyServiceError: the key service refused.

        Example:
            >>> import pandas as pd, kmsdata
            >>> df = pd.DataFrame({"ssn": ["078-05-1120", None], "city": ["Lewiston", "Buffalo"]})
            >>> enc = df.kms.encrypt("ssn", key="local://demo")
            >>> enc["ssn"].dtype.name.startswith("encrypted[")
            True
            >>> pd.testing.assert_frame_equal(enc.kms.decrypt(), df)
        """
        return encrypt_frame(
            self._frame,
            columns,
            deterministic=deterministic,
            key=key,
            domain=domain,
            context=context,
            progress=progress,
        )

    def decrypt(
        self,
        columns: Columns | None = None,
        *,
        key: Key | Encrypted | None = None,
        context: Mapping[str, str] | None = None,
        on_denied: Literal["raise", "keep"] = "raise",
        progress: bool | None = None,
    ) -> pd.DataFrame:
        """Decrypt columns, with one call of the key service for each data key.

        Args:
            columns: name or names, which must be encrypted; None: every encrypted column and index level.
            key: only these may open it: a URI, several, ``"tencent-kms://region/*"``, or a `DataKey`.
                None: keys of the session's key's provider and region; in a session without a key, whatever
                the header names.
            context: pairs that the authenticated context must hold.
            on_denied: ``"keep"`` leaves a column whose key is refused or not there as it is.
            progress: show a bar; None: where it takes longer than a second and somebody may be looking.

        Returns:
            A new frame with those columns as they were before encryption, dtype included.

        Raises:
            TamperedError: cells that fail authentication; nothing is returned then.
            WrongKeyError: not the key of this data, or cells of other data.
            FormatError: a header that is malformed or was changed, or a named column that has none.
            KeyServiceError: the key service refused.

        Example:
            >>> import pandas as pd, kmsdata
            >>> enc = pd.DataFrame({"age": [36, 41]}).kms.encrypt("age", key="local://demo")
            >>> enc.kms.decrypt()["age"].tolist()
            [36, 41]
        """
        return decrypt_frame(
            self._frame, columns, key=key, context=context, on_denied=on_denied, progress=progress
        )

    def rewrap(
        self,
        key: str | None = None,
        *,
        source: str | Iterable[str] | None = None,
        add: bool = False,
        retire: str | Iterable[str] | None = None,
    ) -> pd.DataFrame:
        """Put the frame under another master key: the same cells, with the data key wrapped anew.

        It takes no right away from whoever has the data key or an older copy. See `kmsdata.rewrap`, which
        does this to files, for the errors.

        Args:
            key: URI of the new master key.
            source: URIs of the master keys to be replaced; default: the session's; without one, the only key.
            add: add the new key beside the others, and replace none.
            retire: in place of ``key``: URIs of master keys whose wraps to remove.

        Returns:
            A new frame with the same cells. A wrap that does not open is left alone, with a warning.

        Example:
            >>> import pandas as pd, kmsdata
            >>> enc = pd.DataFrame({"age": [36, 41]}).kms.encrypt("age", key="local://demo")
            >>> enc.kms.rewrap("local://next").kms.inspect().data_keys[0].keys
            ('local://next',)
        """
        return rewrap_frame(self._frame, Change(key, source=source, add=add, retire=retire))

    def isin(self, column: str, values: Any, *, key: Key | Encrypted | None = None) -> pd.Series[bool]:
        """Which rows of a deterministic column hold one of these values: the column is not decrypted.

        The values are encrypted and compared with the cells, with one call of the key service for each data
        key of the column. Every True is authentic; a cell that was changed is False, and is noticed by
        decryption or `kmsdata.verify` only.

        Args:
            column: its name, or that of an encrypted level of the index.
            values: one value, or any list of values (Series, Index, numpy or Arrow array, set). Integers of
                any width, and whole floats, are found among integers of any width, and one that the
                column could not hold (2**70) is not there. A null finds every null, whichever each is.
            key: only these may open it, as in `decrypt`.

        Returns:
            bool Series of the frame's index and the column's name.

        Raises:
            TypeError: the column is randomised; or a value that such a column cannot hold: text for integers,
                a datetime with a time zone for a column without.
            FormatError: the column is not encrypted, or its header was changed.
            WrongKeyError: cells of a key that the header does not name: they could never be found.
            KeyServiceError: the key service refused.

        Example:
            >>> import pandas as pd, kmsdata
            >>> df = pd.DataFrame({"email": ["a@x.org", "b@x.org", None], "age": [36, 29, 41]})
            >>> enc = df.kms.encrypt("age", deterministic="email", key="local://demo")
            >>> enc[enc.kms.isin("email", "b@x.org")].kms.decrypt()
                 email  age
            1  b@x.org   29
        """
        return isin(self._frame, column, values, key=key)

    @property
    def encrypted(self) -> list[Any]:
        """Names of the encrypted columns, then of the encrypted index levels."""
        return [item.name for item in encrypted_columns(self._frame)]

    def inspect(self) -> Inspection:
        """What is encrypted, how, and who can open it: a table, as text or HTML. Needs no key.

        Example:
            >>> import pandas as pd, kmsdata
            >>> enc = pd.DataFrame({"age": [36, 41]}).kms.encrypt("age", key="local://demo")
            >>> enc.kms.inspect().data_keys[0].keys
            ('local://demo',)
        """
        return inspect(self._frame)

    def to_parquet(
        self, path: FilePath, *, index: bool | None = None, filesystem: Any = None, **pyarrow_options: Any
    ) -> None:
        """Write a Parquet file that holds the wrapped data key; it appears whole or not at all.

        Args:
            path: the file; one that is there is replaced.
            index: as `pandas.DataFrame.to_parquet` takes it.
            filesystem: pyarrow or fsspec filesystem; else by the path.
            **pyarrow_options: as `pyarrow.parquet.write_table` takes them; compression, dictionaries and
                statistics apply to plain columns, ciphertext has settings of its own.

        Raises:
            FormatError: a label that is not the name the column was encrypted under.
            OSError: it cannot be written; what stood at the path is as it was.

        Example:
            >>> import pandas as pd, kmsdata
            >>> enc = pd.DataFrame({"age": [36, 41]}).kms.encrypt("age", key="local://demo")
            >>> enc.kms.to_parquet("ages.parquet")
        """
        write_parquet(self._frame, path, index=index, filesystem=filesystem, **pyarrow_options)


@pd.api.extensions.register_series_accessor("kms")
class SeriesAccessor:
    """Encryption of one column: ``series.kms``."""

    def __init__(self, series: pd.Series[Any]) -> None:
        self._series = series

    def encrypt(
        self,
        *,
        deterministic: bool = False,
        key: Key | Encrypted | None = None,
        domain: str | None = None,
        context: Mapping[str, str] | None = None,
    ) -> pd.Series[Any]:
        """Encrypt the series; it must have a name. See `FrameAccessor.encrypt`.

        Example:
            >>> import pandas as pd, kmsdata
            >>> enc = pd.Series([36, 41], name="age").kms.encrypt(key="local://demo")
            >>> enc.kms.decrypt().tolist()
            [36, 41]
        """
        name = self._series.name
        if not isinstance(name, str):
            raise TypeError(
                "the series needs a name that is text: its key is derived from it (series.rename)"
            )
        frame = encrypt_frame(
            self._series.to_frame(),
            name,
            deterministic=deterministic,
            key=key,
            domain=domain,
            context=context,
        )
        return self._as_it_was(frame)

    def decrypt(
        self, *, key: Key | Encrypted | None = None, context: Mapping[str, str] | None = None
    ) -> pd.Series[Any]:
        """Decrypt the series, and its index where that is encrypted. See `FrameAccessor.decrypt`."""
        frame = self._series.to_frame()
        columns = None if encrypted_columns(frame) else list(frame.columns)  # the latter says what is wrong
        return self._as_it_was(decrypt_frame(frame, columns, key=key, context=context))

    def _as_it_was(self, frame: pd.DataFrame) -> pd.Series[Any]:
        out: pd.Series[Any] = frame.iloc[:, 0]
        out.name = self._series.name
        out.attrs = self._series.attrs
        return out
