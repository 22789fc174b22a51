"""The pandas accessors ``df.kms`` and ``series.kms``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import pandas as pd

from kmsdata.api.attach import attach
from kmsdata.api.inspection import inspect
from kmsdata.api.panel import frame_panel, series_panel
from kmsdata.api.pick import pick
from kmsdata.api.rewrap import rewrap_frame
from kmsdata.display.inspection import Inspection
from kmsdata.display.progress import Interruptible
from kmsdata.errors import CallerTypeError, CallerValueError
from kmsdata.frames.arguments import Chooser, Columns, chosen_names, column_names, matching_names
from kmsdata.frames.encrypted_columns import Encrypted, encrypted_columns
from kmsdata.frames.frame import decrypt_frame, encrypt_frame
from kmsdata.frames.search import isin
from kmsdata.keys.rewrap import Change
from kmsdata.keys.session import Key
from kmsdata.parquet.read import FilePath
from kmsdata.parquet.write import write_parquet

if TYPE_CHECKING:
    from kmsdata.notebook.column_picker import ColumnPicker

__all__ = ["FrameAccessor", "SeriesAccessor"]


@pd.api.extensions.register_dataframe_accessor("kms")
class FrameAccessor:
    """Encrypt, decrypt, search and save the columns of a frame: ``df.kms``.

    Alone, it shows a panel: what is encrypted, under which keys, whether this session can open them (as far
    as that is known without a KMS call), and which calls make sense next.

    Example:
        >>> import pandas as pd, kmsdata
        >>> df = pd.DataFrame({"age": [36, 41], "city": ["Ulm", "Bonn"]})
        >>> df.kms.encrypt("age", key="local://demo").kms  # doctest: +ELLIPSIS
        frame: 2 rows, 1 of 2 columns encrypted
        <BLANKLINE>
             column  state      how         type
        [x]  age     encrypted  randomised  int64
        <BLANKLINE>
        plain         city
        data key      ..., opened by local://demo
        this session  [x] can be opened: local://demo is in ...keystore.json
        <BLANKLINE>
        df.kms.decrypt()                   return the original values
        df.kms.to_parquet('data.parquet')  save with the wrapped data key
        kmsdata.verify(df)                 authenticate every cell
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self._frame = frame

    def __repr__(self) -> str:
        with Interruptible("df.kms"):
            return str(frame_panel(self._frame))

    def _repr_html_(self) -> str:
        with Interruptible("df.kms"):
            return frame_panel(self._frame)._repr_html_()

    def encrypt(
        self,
        columns: Columns | Chooser = (),
        *,
        regex: str | None = None,
        deterministic: Columns | Chooser | bool = (),
        key: Key | Encrypted | None = None,
        domain: str | Mapping[str, str] | None = None,
        context: Mapping[str, str] | None = None,
        progress: bool | None = None,
    ) -> pd.DataFrame:
        """Encrypt columns under one data key.

        Args:
            columns: name or names of the columns to encrypt with random IVs. They reveal only which cells
                are null and how long each value is. Or a function that is called with each column's name
                and returns whether to encrypt the column.
            regex: instead of ``columns``: encrypt the columns in whose names this regular expression is
                found, as in `pandas.DataFrame.filter`.
            deterministic: name or names of the columns to encrypt so that equal values have equal cells and
                can be joined, grouped and counted, or a function as for ``columns``; True: all of
                ``columns``.
            key: URI of a master key, such as ``"local://demo"``, to wrap a new data key with; several URIs:
                each of these master keys can open the data; a `DataKey`, or an encrypted frame whose data
                key to use, so that both frames can be joined; None: the session's key (`kmsdata.use`,
                ``KMSDATA_KEY``).
            domain: deterministic columns can be joined if they have the same domain. A mapping by column, or
                one text for one column. Default: the column's name.
            context: pairs that are stored unencrypted with the wrapped key and are required to unwrap it.
            progress: show a progress bar; None: in a terminal or notebook, after one second.

        Returns:
            A new frame with those columns encrypted; index, order, attrs and other columns are unchanged.

        Raises:
            KeyError: there is no such column.
            ValueError: no column is named; ``regex`` or a function matches none; a column is already
                encrypted, has a duplicate label or is in the index; no key is given and the session has none.
            UnsupportedTypeError: a column has values that decryption could not restore exactly.
            KeyServiceError: the KMS call failed.

        Example:
            >>> import pandas as pd, kmsdata
            >>> df = pd.DataFrame({"ssn": ["078-05-1120", None], "city": ["Lewiston", "Buffalo"]})
            >>> enc = df.kms.encrypt("ssn", key="local://demo")
            >>> enc["ssn"].dtype.name.startswith("encrypted[")
            True
            >>> pd.testing.assert_frame_equal(enc.kms.decrypt(), df)
            >>> df.kms.encrypt(regex="^ss", key="local://demo").kms.encrypted
            ['ssn']
        """
        names = self._frame.columns
        if regex is not None:
            if callable(columns) or column_names(columns):
                raise CallerValueError("columns and regex= were both passed. Pass one of them")
            columns = matching_names(names, regex)
        return encrypt_frame(
            self._frame,
            chosen_names(names, columns, "columns"),
            deterministic=deterministic
            if isinstance(deterministic, bool)
            else chosen_names(names, deterministic, "deterministic="),
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
        """Decrypt columns, with one KMS call for each data key.

        Args:
            columns: name or names of encrypted columns; None: every encrypted column and index level. Then a
                column that looks like cells without their header is an error: other software dropped the
                header, and `attach` restores it. Naming the columns lets such a column through, for example
                one of ciphertexts of other software that uses Tink.
            key: use only these keys: a URI, several URIs, ``"tencent-kms://region/*"``, or a `DataKey`.
                None: keys of the same provider and region as the session's key; without a session key, any
                key that the header names.
            context: pairs that the authenticated context must contain.
            on_denied: ``"keep"`` leaves a column encrypted if its key is refused or does not exist.
            progress: show a progress bar; None: in a terminal or notebook, after one second.

        Returns:
            A new frame with the original values and dtypes of those columns.

        Raises:
            TamperedError: a cell failed authentication; no values are returned.
            WrongKeyError: the key is not the one of this data, or cells belong to other data.
            FormatError: a header is malformed or was changed; a named column has no header; or, without
                ``columns``, a column looks like cells without their header.
            KeyServiceError: the KMS call failed.

        Example:
            >>> import pandas as pd, kmsdata
            >>> enc = pd.DataFrame({"age": [36, 41]}).kms.encrypt("age", key="local://demo")
            >>> enc.kms.decrypt()["age"].tolist()
            [36, 41]
        """
        return decrypt_frame(
            self._frame, columns, key=key, context=context, on_denied=on_denied, progress=progress
        )

    def pick(self, *, key: Key | Encrypted | None = None) -> ColumnPicker:
        """Show the columns in a notebook, and encrypt those that the user chooses.

        The table shows for each column its dtype, nulls, distinct values, a shape such as ``999-99-9999``,
        and warnings; never a value. Each column stays plain or is encrypted, randomised or deterministic.
        Below is the call of `encrypt` that does the same. The button makes it; then the encrypted frame is
        ``picked.result``, if ``picked`` is what this method returned. Distinct values, shapes and warnings of
        large frames are from a sample of at most 100,000 rows, and the table says so.

        Args:
            key: as in `encrypt`.

        Returns:
            The picker. ``picked.result`` is an error until the button was pressed.

        Raises:
            ImportError: anywidget is not installed: ``pip install "kmsdata[notebook]"``.
            FormatError: ``key`` is not a key URI.

        Example:
            >>> import pandas as pd, kmsdata
            >>> df = pd.DataFrame({"ssn": ["078-05-1120", None], "city": ["Lewiston", "Buffalo"]})
            >>> picked = df.kms.pick(key="local://demo")  # doctest: +SKIP
            >>> picked.result  # later, after the button was pressed  # doctest: +SKIP
        """
        with Interruptible("pick"):
            return pick(self._frame, self.encrypt, key)

    def attach(
        self,
        like: Encrypted | FilePath | Iterable[Encrypted | FilePath],
        columns: Columns | Mapping[str, str] | None = None,
    ) -> pd.DataFrame:
        """Attach headers to cells that lost them on a way through other software; no KMS call is made.

        See `kmsdata.attach` for the arguments and errors.

        Args:
            like: what still has the headers: a file, a dataset, a frame, a series, an Arrow table, or a list.
            columns: name or names of the columns, or a mapping ``{name here: name there}``; None: every
                column of cells whose name ``like`` has.

        Returns:
            A new frame with the encrypted columns.

        Example:
            >>> import pandas as pd, kmsdata
            >>> enc = pd.DataFrame({"age": [36, 41]}).kms.encrypt("age", key="local://demo")
            >>> enc.to_csv("ages.csv", index=False)
            >>> pd.read_csv("ages.csv").kms.attach(enc).kms.decrypt()["age"].tolist()
            [36, 41]
        """
        return attach(self._frame, like, columns)

    def rewrap(
        self,
        key: str | None = None,
        *,
        source: str | Iterable[str] | None = None,
        add: bool = False,
        retire: str | Iterable[str] | None = None,
    ) -> pd.DataFrame:
        """Wrap the data key with another master key; the cells stay the same.

        This does not revoke access: a user who has the data key or an older copy can still open it. See
        `kmsdata.rewrap`, which does this for files, for the errors.

        Args:
            key: URI of the new master key.
            source: URIs of the master keys to replace; default: the session's; without one, the only key.
            add: add the new master key and keep the others.
            retire: instead of ``key``: URIs of master keys whose wrapped keys to remove.

        Returns:
            A new frame with the same cells. A wrapped key that cannot be unwrapped is kept, with a warning.

        Example:
            >>> import pandas as pd, kmsdata
            >>> enc = pd.DataFrame({"age": [36, 41]}).kms.encrypt("age", key="local://demo")
            >>> kmsdata.LocalKeystore().create_key("next", quiet=True)
            'local://next'
            >>> enc.kms.rewrap("local://next").kms.inspect().data_keys[0].keys
            ('local://next',)
        """
        return rewrap_frame(self._frame, Change(key, source=source, add=add, retire=retire))

    def isin(self, column: str, values: Any, *, key: Key | Encrypted | None = None) -> pd.Series[bool]:
        """Find the rows of a deterministic column that hold one of these values, without decrypting it.

        The values are encrypted and compared with the cells, with one KMS call for each data key of the
        column. Every True is authentic. A cell that was changed is False; only decryption and
        `kmsdata.verify` detect the change.

        Args:
            column: name of the column, or of an encrypted index level.
            values: one value, or any list of values (Series, Index, numpy or Arrow array, set). Integers of
                any width, and floats without a fraction, match integers of any width; an integer that is too
                large for the column (2**70) matches no row. A null of any kind matches every null.
            key: use only these keys, as in `decrypt`.

        Returns:
            bool Series with the frame's index and the column's name.

        Raises:
            TypeError: the column is randomised; or it cannot hold such a value: text in a column of integers,
                a datetime with a time zone in a column without.
            FormatError: the column is not encrypted, or its header was changed.
            WrongKeyError: cells belong to a key that the header does not name, so a search cannot find them.
            KeyServiceError: the KMS call failed.

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
        """Describe what is encrypted, how, and by which master keys: a table in text or HTML. Needs no key.

        Example:
            >>> import pandas as pd, kmsdata
            >>> enc = pd.DataFrame({"age": [36, 41]}).kms.encrypt("age", key="local://demo")
            >>> enc.kms.inspect().data_keys[0].keys
            ('local://demo',)
        """
        return inspect(self._frame)

    def to_parquet(
        self,
        path: FilePath | BinaryIO,
        *,
        index: bool | None = None,
        filesystem: Any = None,
        encrypted: Columns | None = None,
        partition_cols: Columns | None = None,
        engine: str = "pyarrow",
        **pyarrow_options: Any,
    ) -> None:
        """Write a Parquet file that contains the wrapped data key. The write is atomic.

        Args:
            path: the file; an existing file is replaced. With ``partition_cols``, the folder, which must not
                contain files. Or an open file, such as `io.BytesIO`.
            index: as in `pandas.DataFrame.to_parquet`.
            filesystem: pyarrow or fsspec filesystem; otherwise inferred from the path.
            encrypted: name or names of columns that must be encrypted; otherwise nothing is written.
            partition_cols: name or names of plain columns: write a dataset with one folder for each of their
                values, such as ``year=2026``.
            engine: only ``"pyarrow"`` (or ``"auto"``): it alone writes the type of encrypted columns.
            **pyarrow_options: as in `pyarrow.parquet.write_table`. Options for compression, dictionaries and
                statistics apply only to plain columns; encrypted columns have fixed settings.

        Raises:
            ValueError: nothing in the frame is encrypted; a column of ``partition_cols`` is, or has nulls;
                another engine.
            FileExistsError: the folder for ``partition_cols`` contains files.
            FormatError: a label differs from the name that the column was encrypted under, or a column of
                ``encrypted`` is not encrypted.
            OSError: the file cannot be written; an existing file at the path is unchanged.

        Example:
            >>> import pandas as pd, kmsdata
            >>> enc = pd.DataFrame({"age": [36, 41]}).kms.encrypt("age", key="local://demo")
            >>> enc.kms.to_parquet("ages.parquet")
        """
        with Interruptible("to_parquet"):
            write_parquet(
                self._frame,
                path,
                index=index,
                filesystem=filesystem,
                encrypted=encrypted,
                partition_cols=partition_cols,
                engine=engine,
                **pyarrow_options,
            )


@pd.api.extensions.register_series_accessor("kms")
class SeriesAccessor:
    """Encrypt and decrypt one column: ``series.kms``. Alone, it shows a panel, as ``df.kms`` does."""

    def __init__(self, series: pd.Series[Any]) -> None:
        self._series = series

    def __repr__(self) -> str:
        with Interruptible("series.kms"):
            return str(series_panel(self._series))

    def _repr_html_(self) -> str:
        with Interruptible("series.kms"):
            return series_panel(self._series)._repr_html_()

    def encrypt(
        self,
        *,
        deterministic: bool = False,
        key: Key | Encrypted | None = None,
        domain: str | None = None,
        context: Mapping[str, str] | None = None,
    ) -> pd.Series[Any]:
        """Encrypt the series, which must have a name. See `FrameAccessor.encrypt`.

        Example:
            >>> import pandas as pd, kmsdata
            >>> enc = pd.Series([36, 41], name="age").kms.encrypt(key="local://demo")
            >>> enc.kms.decrypt().tolist()
            [36, 41]
        """
        name = self._series.name
        if not isinstance(name, str):
            raise CallerTypeError(
                "the series needs a name that is text: its key is derived from the name. Call series.rename()"
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
        """Decrypt the series, and its index if that is encrypted. See `FrameAccessor.decrypt`."""
        frame = self._series.to_frame()
        # With nothing encrypted, the column is named, so that the error says that it has no header.
        columns = None if encrypted_columns(frame) else list(frame.columns)
        return self._as_it_was(decrypt_frame(frame, columns, key=key, context=context))

    def isin(self, values: Any, *, key: Key | Encrypted | None = None) -> pd.Series[bool]:
        """Find the rows that hold one of these values, without decryption. See `FrameAccessor.isin`.

        Example:
            >>> import pandas as pd, kmsdata
            >>> enc = pd.Series([36, 41], name="age").kms.encrypt(deterministic=True, key="local://demo")
            >>> enc.kms.isin([41, 50]).tolist()
            [False, True]
        """
        frame = self._series.to_frame()
        found = isin(frame, frame.columns[0], values, key=key)
        found.name = self._series.name
        return found

    def _as_it_was(self, frame: pd.DataFrame) -> pd.Series[Any]:
        out: pd.Series[Any] = frame.iloc[:, 0]
        out.name = self._series.name
        out.attrs = self._series.attrs
        return out
