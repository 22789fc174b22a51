"""Polars: ``df.kms`` and ``lf.kms``, with the same words as in pandas.

The import registers the namespace ``kms`` of DataFrame, LazyFrame and Series, and the type of encrypted
columns: Polars prints it as ``ext[encrypted[str]]``. A frame with encrypted columns is a frame: filter it,
sort it, join it, group it by deterministic columns, write it.

Polars takes two types for equal only if the text of their headers is equal, wrapped keys included. `concat`
and `join` of this module put frames together that were rewrapped, or read from files of several data keys.
"""

from __future__ import annotations

import contextvars
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar, cast

import pyarrow as pa

from kmsdata.api.attach import attach
from kmsdata.api.inspection import inspect
from kmsdata.api.parts import (
    DecryptionPlan,
    EncryptionPlan,
    decrypt_part,
    encrypt_part,
    plan_decryption,
    plan_encryption,
)
from kmsdata.api.rewrap import rewrap
from kmsdata.api.verify import verify
from kmsdata.display.inspection import Inspection
from kmsdata.display.verification import Verification
from kmsdata.errors import (
    CallerImportError,
    CallerTypeError,
    CallerValueError,
    FormatError,
    UnsupportedTypeError,
    WrongKeyError,
    located,
)
from kmsdata.frames.arguments import (
    Chooser,
    Columns,
    chosen_columns,
    chosen_names,
    column_names,
    matching_names,
    refuse_encrypted,
    require,
    required_names,
)
from kmsdata.frames.arrow.sources import refuse_unknown_to_arrow
from kmsdata.frames.arrow.table import decrypt_table, encrypt_table
from kmsdata.frames.arrow_storage import cells_in, key_ids, plain_binary
from kmsdata.frames.dtype import EXTENSION_NAME, EncryptedArray, EncryptedDtype, EncryptedType
from kmsdata.frames.encrypted_columns import (
    Encrypted,
    check_names,
    check_new_names,
    headers_of,
    lost_header,
    table_without_header,
)
from kmsdata.frames.key_argument import resolve_key
from kmsdata.frames.search import literals, require_deterministic
from kmsdata.keys.envelope import Header, merged_records
from kmsdata.keys.session import Key
from kmsdata.keys.unwrap import open_keys
from kmsdata.parquet.headers import read_headers
from kmsdata.parquet.locations import FilePath
from kmsdata.parquet.write import parquet_writer

try:
    import polars as pl
    import polars.selectors as cs
except ModuleNotFoundError:
    raise CallerImportError('kmsdata.polars needs Polars: pip install "kmsdata[polars]"') from None
if not hasattr(pl, "register_extension_type"):
    raise CallerImportError(
        f"kmsdata.polars needs a newer Polars than {pl.__version__}, which has no extension types: "
        'pip install --upgrade "kmsdata[polars]"'
    )

__all__ = ["EncryptedExtension", "FrameNamespace", "LazyNamespace", "SeriesNamespace", "concat", "join"]

_FrameT = TypeVar("_FrameT", pl.DataFrame, pl.LazyFrame)
_Key: TypeAlias = "Key | Encrypted | pl.DataFrame | pl.LazyFrame"
_ROWS = 1 << 18  # rows of a row group


# --- the type -------------------------------------------------------------------------------------


class EncryptedExtension(pl.BaseExtension):
    """The Polars type of encrypted columns: binary storage, the column's header as metadata."""

    def _string_repr(self) -> str:
        # Must not raise: Polars calls it for the metadata of any file, and ends with a panic if it does.
        name = EncryptedDtype(self.ext_metadata() or "").name
        return re.sub(r"\b(large_)?string(_view)?\b", "str", name)

    def __repr__(self) -> str:
        return self._string_repr()


pl.register_extension_type(EXTENSION_NAME, EncryptedExtension)


def _type_of(header: Header) -> EncryptedExtension:
    return EncryptedExtension(EXTENSION_NAME, pl.Binary, header.text)


def _is_encrypted(dtype: Any) -> bool:
    return isinstance(dtype, pl.BaseExtension) and dtype.ext_name() == EXTENSION_NAME


def _headers(schema: Mapping[str, Any]) -> dict[str, Header]:
    """Return the headers of a schema's encrypted columns.

    Raises:
        FormatError: one is malformed.
        TypeError: cells are inside of lists or structs.
    """
    headers = {}
    for name, dtype in schema.items():
        if _is_encrypted(dtype):
            try:
                headers[name] = Header.parse(dtype.ext_metadata() or "")
            except FormatError as error:
                raise located(error, f"column {name!r}", column=name) from None
        elif any(_is_encrypted(inner) for inner in _inside(dtype)):
            raise CallerTypeError(
                f"column {name!r} is of type {dtype.base_type()}, with cells inside. Take them out first, "
                "with explode() or unnest()"
            )
    return headers


def _inside(dtype: Any) -> Iterator[Any]:
    """Yield the types inside of a nested type."""
    inner = [field.dtype for field in dtype.fields] if isinstance(dtype, pl.Struct) else []
    inner += [dtype.inner] if isinstance(dtype, pl.List | pl.Array) else []
    for one in inner:
        yield one
        yield from _inside(one)


def _column(name: str) -> pl.Expr:
    """Return the column of this name: ``pl.col`` takes "*" and "^...$" for patterns."""
    return cs.by_name(name).as_expr()


def _under(frame: _FrameT, headers: Mapping[str, Header]) -> _FrameT:
    """Return the frame with the same cells under other headers."""
    changed = [_column(name).ext.storage().ext.to(_type_of(header)) for name, header in headers.items()]
    return frame.with_columns(changed) if changed else frame


# --- Polars to Arrow and back -----------------------------------------------------------------------


def _check_dtype(dtype: Any, column: str, *, lazy: bool) -> None:
    """Raise UnsupportedTypeError if values of the type could not be restored exactly."""
    why = None
    for inner in [dtype, *_inside(dtype)]:
        if isinstance(inner, pl.Object):
            why = "Python objects have no Arrow type. Convert them to another type"
        elif isinstance(inner, pl.Int128 | pl.UInt128):
            why = "Arrow has no integers of 128 bits. Cast the column to pl.Decimal(38, 0) or pl.String"
        elif isinstance(inner, pl.BaseExtension):
            why = "it is an extension type of other software. Take its storage first: .ext.storage()"
        elif isinstance(inner, pl.Array) and inner.size == 0:
            why = "Polars does not read arrays of width 0 from Arrow. Cast the column to pl.List"
        elif isinstance(inner, pl.Categorical) and not inner.categories.is_global():
            why = "its named Categories are not known elsewhere. Cast the column to pl.Categorical or pl.Enum"
        elif isinstance(inner, pl.Enum) and inner is not dtype:
            why = "an Enum inside of another type would become a Categorical. Cast it to pl.String"
        elif isinstance(inner, pl.Enum | pl.Categorical) and inner is dtype and lazy:
            why = (
                "each part of a LazyFrame may have other categories, which the header contains. Cast the "
                "column to pl.String, or collect() first"
            )
        if why is not None:
            raise UnsupportedTypeError(
                # Not the repr: that of an Enum is a list of its values.
                f"column {column!r} of type {dtype.base_type()} cannot be encrypted: {why}",
                column=column,
                dtype=str(dtype.base_type()),
            )


def _exported(frame: pl.DataFrame) -> pa.Table:
    """Return an Arrow table."""
    refuse_unknown_to_arrow(frame.schema)
    return frame.to_arrow()


def _to_arrow(frame: pl.DataFrame) -> pa.Table:
    """Return an Arrow table without the metadata in which Polars writes the categories of an Enum."""
    table = _exported(frame)
    return pa.Table.from_arrays(
        table.columns, schema=pa.schema([field.remove_metadata() for field in table.schema])
    )


def _whole_to_arrow(frame: pl.DataFrame) -> pa.Table:
    """Return a whole frame as an Arrow table, with nulls for plain columns that Arrow cannot represent."""
    unknown = [name for name, dtype in frame.schema.items() if _unknown_to_arrow(dtype)]
    return _exported(frame.with_columns(pl.lit(None).alias(name) for name in unknown))


def _unknown_to_arrow(dtype: Any) -> bool:
    return any(isinstance(one, pl.Object | pl.Int128 | pl.UInt128) for one in [dtype, *_inside(dtype)])


def _from_arrow(values: pa.ChunkedArray, column: str) -> pl.Series:
    """Return decrypted values in Polars; ordered categories become an Enum.

    Raises:
        UnsupportedTypeError: Polars has no such type.
    """
    kind = values.type
    series = None
    try:
        if pa.types.is_dictionary(kind) and kind.ordered and kind.value_type in _TEXT:
            values = values.unify_dictionaries()
            listed = values.chunk(0).dictionary if values.num_chunks else pa.array([], kind.value_type)
            enum = pl.Enum(listed.to_pylist())
            series = pl.Series(column, pl.from_arrow(values.cast(kind.value_type)), dtype=enum)
        else:
            series = cast(pl.Series, pl.from_arrow(values)).alias(column)
    except BaseException as error:
        if not isinstance(error, Exception | pl.exceptions.PanicException):
            raise
    if series is None:  # raised here, so that neither the error nor its context leads to the values
        del values
        raise UnsupportedTypeError(
            f"column {column!r} is of the Arrow type {kind}, which Polars does not have. Decrypt it with "
            "kmsdata.decrypt_table(df.to_arrow())",
            column=column,
            dtype=str(kind),
        )
    return series


_TEXT = {pa.string(), pa.large_string(), pa.string_view()}


def _as_arrow(data: Any) -> Any:
    """Return what a caller passes as ``key=`` or ``like=`` with Polars data as an Arrow table."""
    if isinstance(data, list | tuple):
        return [_as_arrow(one) for one in data]
    if isinstance(data, pl.LazyFrame):
        data = data.collect_schema().to_frame()
    elif isinstance(data, pl.Series):
        data = data.to_frame()
    if isinstance(data, pl.DataFrame):
        return _exported(data.select([name for name, dtype in data.schema.items() if _is_encrypted(dtype)]))
    return data


def _check_not_lost(series: pl.Series) -> None:
    """Raise FormatError if a column without header looks like cells."""
    if isinstance(series.dtype, pl.Binary | pl.String | pl.Categorical | pl.Enum):
        first = series.first(ignore_nulls=True)
        # Only a column whose first value may be a cell is converted.
        if first is not None and cells_in(pa.array([first])) is not None:
            for name in table_without_header(_exported(series.to_frame())):
                raise lost_header(name)


# --- arguments --------------------------------------------------------------------------------------


def _names(schema: pl.Schema, columns: Columns | Chooser | pl.Expr, argument: str) -> Columns:
    """Return the names that a selector or a function chooses; return names unchanged."""
    if isinstance(columns, pl.Expr):
        names = list(cs.expand_selector(schema, columns, strict=False))
        if not names:
            raise CallerValueError(f"{argument} is a selector that selects no column")
        return names
    return chosen_names(schema, columns, argument)


def _chosen(
    schema: pl.Schema,
    columns: Columns | Chooser | pl.Expr,
    regex: str | None,
    deterministic: Columns | Chooser | pl.Expr | bool,
    domain: str | Mapping[str, str] | None,
    *,
    lazy: bool,
) -> dict[str, str | None]:
    """Return the columns to encrypt: None if randomised, otherwise the domain."""
    if regex is not None:
        if isinstance(columns, pl.Expr) or callable(columns) or column_names(columns):
            raise CallerValueError("columns and regex= were both passed. Pass one of them")
        columns = matching_names(schema, regex)
    if not isinstance(deterministic, bool):
        deterministic = _names(schema, deterministic, "deterministic=")
    chosen = chosen_columns(schema, _names(schema, columns, "columns"), deterministic, domain, [])
    for name in chosen:
        refuse_encrypted(name, _is_encrypted(schema[name]))
        _check_dtype(schema[name], name, lazy=lazy)
    check_new_names(chosen, _headers(schema))
    return chosen


def _as_arguments(chosen: Mapping[str, str | None]) -> dict[str, Any]:
    domains = {name: scope for name, scope in chosen.items() if scope is not None}
    randomised = [name for name in chosen if name not in domains]
    return {"columns": randomised, "deterministic": list(domains), "domain": domains}


def _wanted(headers: Mapping[str, Header], schema: pl.Schema, columns: Columns | None) -> list[str]:
    """Return the names of the columns to decrypt."""
    if columns is None:
        return list(headers)
    names = column_names(columns)
    for name in names:
        require(schema, name)
        if name not in headers:
            raise FormatError(f"column {name!r} is not encrypted: it has no kmsdata header", column=name)
    return names


# --- what LazyFrames run on each part -----------------------------------------------------------------


_ResultT = TypeVar("_ResultT")


class _Session:
    """The session of the call that makes a plan: the blocks of `kmsdata.using` that it is in.

    Polars calls Python on its own threads, which are in no block. A pickle does not contain the session:
    it holds credentials. Plans that were serialised run in the session of the process that loads them.
    """

    def __init__(self, context: contextvars.Context | None) -> None:
        self._context = context

    def __reduce__(self) -> tuple[Any, ...]:
        return _Session, (None,)

    def run(self, work: Callable[..., _ResultT], *arguments: Any) -> _ResultT:
        if self._context is None:
            return work(*arguments)
        # A copy: two threads cannot be in one context at the same time.
        return self._context.copy().run(work, *arguments)


class _EncryptPart:
    def __init__(self, plan: EncryptionPlan) -> None:
        self._plan, self._session = plan, _Session(contextvars.copy_context())

    def __call__(self, part: pl.DataFrame) -> pl.DataFrame:
        names = list(self._plan.domains)
        table = self._session.run(encrypt_part, _to_arrow(part.select(map(_column, names))), self._plan)
        return _replaced(part, {name: table.column(name) for name in names})


class _DecryptPart:
    def __init__(self, plan: DecryptionPlan) -> None:
        self._plan, self._session = plan, _Session(contextvars.copy_context())

    def __call__(self, part: pl.Series, **_: Any) -> pl.Series:
        # Not assigned: errors must not find plaintext in this frame.
        return _from_arrow(
            self._session.run(decrypt_part, _exported(part.to_frame()), self._plan).column(0), part.name
        )


class _CheckPart:
    def __call__(self, part: pl.Series, **_: Any) -> pl.Series:
        _check_not_lost(part)
        return part


class _SearchPart:
    """Find cells. Holds the cells to find, but neither values nor keys."""

    def __init__(self, column: str, header: Header, values: Any, key: Any) -> None:
        require_deterministic(header, column)
        keys = open_keys([(column, header)], resolve_key(key), None)
        if isinstance(values, pl.Series):
            values = _values_of(values)
        wanted = literals(header, keys, values, column)
        if wanted.misfit is not None and not wanted.anything:
            raise CallerTypeError(wanted.misfit)
        self._wanted = replace(wanted, misfit=None)
        # Cells of a key that is not in the header would never match: an error, as in decryption.
        self._ids = {
            int.from_bytes(keys[item.data_key].cell_key(item).prefix[1:], "big") for item in header.columns
        }

    def __call__(self, part: pl.Series, **_: Any) -> pl.Series:
        storage = plain_binary(_exported(part.to_frame()).column(0))
        cells = cells_in(storage)
        if cells is None or key_ids(cells) - self._ids:
            raise WrongKeyError(
                f"column {part.name!r} has values that are no cells of the key in its header: moved here "
                "from another column or file, or changed in the first bytes. A search cannot find them",
                column=part.name,
            )
        return pl.Series(part.name, self._wanted.among(storage), dtype=pl.Boolean)


def _values_of(series: pl.Series) -> Any:
    if _is_encrypted(series.dtype):
        raise CallerTypeError("these are cells, not values: pass the values to find")
    return series.to_list() if series.dtype.is_nested() else series.alias("").to_arrow()


def _replaced(frame: pl.DataFrame, columns: Mapping[str, pa.ChunkedArray]) -> pl.DataFrame:
    """Return the frame with these encrypted columns."""
    new = []
    for name, values in columns.items():
        kind = values.type
        storage = pa.chunked_array([chunk.storage for chunk in values.chunks], kind.storage_type)
        cells = cast(pl.Series, pl.from_arrow(storage)).alias(name)
        new.append(cells.ext.to(_type_of(kind.dtype.header)))
    return frame.with_columns(new)


# --- the namespaces -----------------------------------------------------------------------------------


@pl.api.register_dataframe_namespace("kms")
class FrameNamespace:
    """Encrypt, decrypt, search and save the columns of a Polars frame: ``df.kms``.

    Example:
        >>> import polars as pl, kmsdata.polars
        >>> df = pl.DataFrame({"ssn": ["078-05-1120", None], "city": ["Lewiston", "Buffalo"]})
        >>> enc = df.kms.encrypt("ssn", key="local://demo")
        >>> enc.schema["ssn"]
        encrypted[str]
        >>> enc.kms.decrypt().equals(df)
        True
    """

    def __init__(self, frame: pl.DataFrame) -> None:
        self._frame = frame

    def encrypt(
        self,
        columns: Columns | Chooser | pl.Expr = (),
        *,
        regex: str | None = None,
        deterministic: Columns | Chooser | pl.Expr | bool = (),
        key: _Key | None = None,
        domain: str | Mapping[str, str] | None = None,
        context: Mapping[str, str] | None = None,
    ) -> pl.DataFrame:
        """Encrypt columns under one data key. The words are those of pandas' ``df.kms.encrypt``.

        Args:
            columns: name or names of the columns to encrypt with random IVs, a function that is called with
                each name, or a selector of `polars.selectors`.
            regex: instead of ``columns``: a regular expression that is found in their names.
            deterministic: the columns to encrypt so that equal values have equal cells, in the same forms;
                True: all of ``columns``.
            key: URI of a master key, several, a `DataKey`, or encrypted data whose data key to use: a frame
                of Polars or pandas, or an Arrow table; None: the session's key.
            domain: deterministic columns of one domain can be joined: a mapping by column, or one text.
            context: pairs that are stored unencrypted with the wrapped key and are required to unwrap it.

        Returns:
            A new frame with those columns encrypted.

        Raises:
            KeyError, ValueError: see the message.
            UnsupportedTypeError: a column is of a type that could not be restored exactly: Object, Int128,
                UInt128, an Enum inside of another type, named Categories, another extension type.
            KeyServiceError: the KMS call failed.

        Example:
            >>> import polars as pl, polars.selectors as cs, kmsdata.polars
            >>> df = pl.DataFrame({"name": ["Ada"], "email": ["a@x.org"], "age": [36]})
            >>> df.kms.encrypt(cs.integer(), deterministic="email", key="local://demo").kms.encrypted
            ['email', 'age']
        """
        chosen = _chosen(self._frame.schema, columns, regex, deterministic, domain, lazy=False)
        table = _to_arrow(self._frame.select(map(_column, chosen)))
        table = encrypt_table(table, **_as_arguments(chosen), key=_as_arrow(key), context=context)
        return _replaced(self._frame, {name: table.column(name) for name in chosen})

    def decrypt(
        self,
        columns: Columns | None = None,
        *,
        key: _Key | None = None,
        context: Mapping[str, str] | None = None,
    ) -> pl.DataFrame:
        """Decrypt columns, with one KMS call for each data key.

        Args:
            columns: name or names of encrypted columns; None: all. Then a column that looks like cells
                without their header is an error.
            key: use only these keys, as for pandas' ``df.kms.decrypt``, or that of encrypted data.
            context: pairs that the authenticated context must contain.

        Returns:
            A new frame with the original values and types of those columns.

        Raises:
            TamperedError, WrongKeyError, FormatError, KeyServiceError: as for pandas.
            UnsupportedTypeError: Polars has no such type: intervals of months, decimals of 256 bits.

        Example:
            >>> import polars as pl, kmsdata.polars
            >>> enc = pl.DataFrame({"age": [36, 41]}).kms.encrypt("age", key="local://demo")
            >>> enc.kms.decrypt()["age"].to_list()
            [36, 41]
        """
        headers = _headers(self._frame.schema)
        names = _wanted(headers, self._frame.schema, columns)
        if columns is None:
            for series in self._frame:
                _check_not_lost(series)
        check_names(headers)
        if not names:
            return self._frame
        table = _exported(self._frame.select(map(_column, names)))
        table = decrypt_table(table, names, key=_as_arrow(key), context=context)
        done: list[pl.Series] = []
        try:
            for name in names:
                done.append(_from_arrow(table.column(name), name))
        except UnsupportedTypeError:
            done.clear()
            del table
            raise
        return self._frame.with_columns(done)

    def isin(self, column: str, values: Any, *, key: _Key | None = None) -> pl.Series:
        """Find the rows of a deterministic column that hold one of these values, without decrypting it.

        Args:
            column: its name.
            values: one value, or a list or Series of values. A null matches every null.
            key: use only these keys, as in `decrypt`.

        Returns:
            A Boolean Series. Every True is authentic.

        Raises:
            TypeError: the column is randomised, or cannot hold such a value.
            FormatError: it is not encrypted. WrongKeyError: it has cells of other data.
            KeyServiceError: the KMS call failed.

        Example:
            >>> import polars as pl, kmsdata.polars
            >>> df = pl.DataFrame({"email": ["a@x.org", "b@x.org"], "age": [36, 29]})
            >>> enc = df.kms.encrypt("age", deterministic="email", key="local://demo")
            >>> enc.filter(enc.kms.isin("email", "b@x.org")).kms.decrypt().rows()
            [('b@x.org', 29)]
        """
        headers = _headers(self._frame.schema)
        (name,) = _wanted(headers, self._frame.schema, [column])
        return _SearchPart(name, headers[name], values, _as_arrow(key))(self._frame.get_column(name))

    def attach(
        self,
        like: Any,
        columns: Columns | Mapping[str, str] | None = None,
    ) -> pl.DataFrame:
        """Attach headers to cells that lost them; see `kmsdata.attach`. No KMS call is made.

        Args:
            like: what still has the headers: a file, a frame of Polars or pandas, an Arrow table, or a list.
            columns: name or names of the columns, or a mapping ``{name here: name there}``; None: every
                column of cells whose name ``like`` has.

        Example:
            >>> import polars as pl, kmsdata.polars
            >>> enc = pl.DataFrame({"age": [36, 41]}).kms.encrypt("age", key="local://demo")
            >>> lost = enc.select(pl.col("age").ext.storage())
            >>> lost.kms.attach(enc).kms.decrypt()["age"].to_list()
            [36, 41]
        """
        there = {pl.Binary, pl.String, pl.Categorical, pl.Null}
        some = [name for name, t in self._frame.schema.items() if _is_encrypted(t) or t.base_type() in there]
        if columns is not None:
            some = [name for name in self._frame.columns if name in {*some, *columns}]
        table = attach(_exported(self._frame.select(map(_column, some))), _as_arrow(like), columns)
        new = {
            field.name: table.column(field.name)
            for field in table.schema
            if isinstance(field.type, EncryptedType) and not _is_encrypted(self._frame.schema[field.name])
        }
        return _replaced(self._frame, new)

    def rewrap(
        self,
        key: str | None = None,
        *,
        source: str | Iterable[str] | None = None,
        add: bool = False,
        retire: str | Iterable[str] | None = None,
    ) -> pl.DataFrame:
        """Wrap the data key with another master key; the cells stay the same. See `kmsdata.rewrap`.

        Example:
            >>> import polars as pl, kmsdata.polars
            >>> enc = pl.DataFrame({"age": [36, 41]}).kms.encrypt("age", key="local://demo")
            >>> kmsdata.LocalKeystore().create_key("next", quiet=True)
            'local://next'
            >>> enc.kms.rewrap("local://next").kms.inspect().data_keys[0].keys
            ('local://next',)
        """
        return _rewrapped(self._frame, self._frame.schema, key, source=source, add=add, retire=retire)

    @property
    def encrypted(self) -> list[str]:
        """Names of the encrypted columns."""
        return [name for name, dtype in self._frame.schema.items() if _is_encrypted(dtype)]

    def inspect(self) -> Inspection:
        """Describe what is encrypted, how, and by which master keys. Needs no key."""
        return inspect(_whole_to_arrow(self._frame))

    def verify(
        self,
        *,
        encrypted: Columns | None = None,
        key: _Key | None = None,
        context: Mapping[str, str] | None = None,
    ) -> Verification:
        """Authenticate every encrypted cell; no plaintext is returned. See `kmsdata.verify`.

        Example:
            >>> import polars as pl, kmsdata.polars
            >>> enc = pl.DataFrame({"age": [36, 41]}).kms.encrypt("age", key="local://demo")
            >>> enc.kms.verify(encrypted="age").ok
            True
        """
        return verify(_whole_to_arrow(self._frame), encrypted=encrypted, key=_as_arrow(key), context=context)

    def to_parquet(
        self,
        path: FilePath,
        *,
        filesystem: Any = None,
        encrypted: Columns | None = None,
        **pyarrow_options: Any,
    ) -> None:
        """Write a Parquet file that contains the wrapped data key. The write is atomic.

        The file is the same as pandas' ``df.kms.to_parquet`` writes. ``df.write_parquet`` keeps the headers
        too, but only in the columns' types, where DuckDB and Spark do not see them.

        Args:
            path: the file; an existing file is replaced.
            filesystem: pyarrow or fsspec filesystem; otherwise inferred from the path.
            encrypted: name or names of columns that must be encrypted; otherwise nothing is written.
            **pyarrow_options: as in `pyarrow.parquet.write_table`.

        Raises:
            ValueError: nothing is encrypted.
            FormatError: a column of ``encrypted`` is not, a column has another name than it was encrypted
                under, or one of an encrypted type contains other values than cells.
            UnsupportedTypeError: a plain column is of a type that Arrow does not have.
            OSError: the file cannot be written; an existing file at the path is unchanged.

        Example:
            >>> import polars as pl, kmsdata.polars
            >>> enc = pl.DataFrame({"age": [36, 41]}).kms.encrypt("age", key="local://demo")
            >>> enc.kms.to_parquet("ages.parquet")
            >>> pl.read_parquet("ages.parquet").kms.decrypt()["age"].to_list()
            [36, 41]
        """
        _write(self._frame.lazy(), self._frame.schema, path, filesystem, encrypted, pyarrow_options)


@pl.api.register_lazyframe_namespace("kms")
class LazyNamespace:
    """Encrypt, decrypt, search and save the columns of a Polars LazyFrame: ``lf.kms``.

    Nothing is computed before ``collect`` or a sink. Plans, also serialised ones, contain headers and wrapped
    keys, but no data key, credentials or values to find. A plan uses the session of the call that made it,
    `kmsdata.using` included; once serialised, that of the process that loads it.
    """

    def __init__(self, frame: pl.LazyFrame) -> None:
        self._frame = frame

    def encrypt(
        self,
        columns: Columns | Chooser | pl.Expr = (),
        *,
        regex: str | None = None,
        deterministic: Columns | Chooser | pl.Expr | bool = (),
        key: _Key | None = None,
        domain: str | Mapping[str, str] | None = None,
        context: Mapping[str, str] | None = None,
    ) -> pl.LazyFrame:
        """Encrypt columns lazily, in batches, under one data key that is made now.

        Select and filter before this call: Polars does not move filters and projections through it.

        Args:
            columns: as in `FrameNamespace.encrypt`, like the others.
            regex: a regular expression, instead of ``columns``.
            deterministic: columns whose equal values have equal cells.
            key: the master key, or encrypted data.
            domain: of deterministic columns.
            context: of the data key.

        Raises:
            KeyError, ValueError, UnsupportedTypeError, KeyServiceError: as in `FrameNamespace.encrypt`. An
                Enum or Categorical is refused too: each batch may have other categories.

        Example:
            >>> import polars as pl, kmsdata.polars
            >>> lf = pl.LazyFrame({"age": [36, 41]}).kms.encrypt("age", key="local://demo")
            >>> lf.kms.decrypt().collect()["age"].to_list()
            [36, 41]
        """
        schema = self._frame.collect_schema()
        chosen = _chosen(schema, columns, regex, deterministic, domain, lazy=True)
        empty = _to_arrow(schema.to_frame().select(map(_column, chosen)))
        plan = plan_encryption(empty, **_as_arguments(chosen), key=_as_arrow(key), context=context)
        new = {name: _type_of(plan.like.schema.field(name).type.dtype.header) for name in chosen}
        # On whole frames: as an expression, Polars 2.1 would encrypt a column that repeats one value (of a
        # literal or a Hive partition) once, and show that all rows are equal. Projections are not pushed
        # down: its streaming engine takes columns by position, and would take the wrong ones.
        return self._frame.map_batches(
            _EncryptPart(plan), schema=cast("dict[str, Any]", {**schema, **new}), streamable=True
        )

    def decrypt(
        self,
        columns: Columns | None = None,
        *,
        key: _Key | None = None,
        context: Mapping[str, str] | None = None,
    ) -> pl.LazyFrame:
        """Decrypt columns lazily, in batches; only columns that the query uses are decrypted.

        Rows in errors are counted from the beginning of a batch.

        Args:
            columns: name or names of encrypted columns; None: all. Then a column that looks like cells
                without their header is an error when it is read.
            key: use only these keys: URIs, or that of encrypted data. A `DataKey` is refused: a plan may be
                stored or sent.
            context: pairs that the authenticated context must contain.

        Raises:
            TypeError: the key is a `DataKey`. FormatError: a named column is not encrypted.

        Example:
            >>> import polars as pl, kmsdata.polars
            >>> enc = pl.LazyFrame({"age": [36, 41]}).kms.encrypt("age", key="local://demo")
            >>> enc.kms.decrypt().filter(pl.col("age") > 40).collect().rows()
            [(41,)]
        """
        schema = self._frame.collect_schema()
        headers = _headers(schema)
        names = _wanted(headers, schema, columns)
        check_names(headers)
        new: list[pl.Expr] = []
        if names:
            empty = _exported(schema.to_frame().select(map(_column, names)))
            plan = plan_decryption(empty, names, key=_as_arrow(key), context=context)
            like: Any = plan.like
            for name in names:
                kind = _from_arrow(like.column(name), name).dtype
                part = _DecryptPart(replace(plan, columns=(name,)))
                # Elementwise: a value that is repeated is decrypted once, which shows nothing.
                new.append(_column(name).map_batches(part, return_dtype=kind, is_elementwise=True))
        for name, kind in schema.items() if columns is None else ():
            if kind.base_type() in (pl.Binary, pl.String):
                new.append(_column(name).map_batches(_CheckPart(), return_dtype=kind, is_elementwise=True))
        return self._frame.with_columns(new) if new else self._frame

    def isin(self, column: str, values: Any, *, key: _Key | None = None) -> pl.Expr:
        """Return the expression for `FrameNamespace.isin`: ``lf.filter(lf.kms.isin("email", "b@x.org"))``.

        The values are encrypted now; the expression contains only their cells.

        Args:
            column: its name.
            values: one value, or a list or Series of values.
            key: use only these keys.

        Example:
            >>> import polars as pl, kmsdata.polars
            >>> lf = pl.LazyFrame({"age": [36, 41]}).kms.encrypt(deterministic="age", key="local://demo")
            >>> lf.filter(lf.kms.isin("age", 41)).kms.decrypt().collect().rows()
            [(41,)]
        """
        schema = self._frame.collect_schema()
        headers = _headers(schema)
        (name,) = _wanted(headers, schema, [column])
        part = _SearchPart(name, headers[name], values, _as_arrow(key))
        return _column(name).map_batches(part, return_dtype=pl.Boolean(), is_elementwise=True)

    def attach(self, like: Any, columns: Columns | Mapping[str, str] | None = None) -> pl.LazyFrame:
        """Attach headers to columns of bytes that lost them. No KMS call is made.

        Unlike in `FrameNamespace.attach`, the cells are not looked at: decryption fails if a header does not
        belong to them.

        Args:
            like: what still has the headers: a file, a frame of Polars or pandas, or an Arrow table.
            columns: name or names of the columns, or a mapping ``{name here: name there}``; None: every
                column of bytes whose name ``like`` has.

        Raises:
            KeyError: no such column here, or in ``like``.
            FormatError: a named column is not one of bytes.
            ValueError: there is no column to attach a header to, and none is encrypted.

        Example:
            >>> import polars as pl, kmsdata.polars
            >>> enc = pl.LazyFrame({"age": [36, 41]}).kms.encrypt("age", key="local://demo")
            >>> lost = enc.select(pl.col("age").ext.storage())
            >>> lost.kms.attach(enc).kms.decrypt().collect()["age"].to_list()
            [36, 41]
        """
        schema = self._frame.collect_schema()
        like = _as_arrow(like)
        there = read_headers(like) if isinstance(like, str | os.PathLike) else headers_of(like)
        if columns is None:
            names = {name: name for name in schema if name in there and schema[name] == pl.Binary}
        else:
            names = dict(columns) if isinstance(columns, Mapping) else {n: n for n in column_names(columns)}
        for name, original in names.items():
            require(schema, name)
            require(there, original)
            if schema[name] != pl.Binary:
                raise FormatError(
                    f"column {name!r} does not contain bytes, but {schema[name].base_type()}. "
                    "Collect text first",
                    column=name,
                )
        if not names and not _headers(schema):
            raise CallerValueError(
                "no column of bytes has the name of an encrypted column of like. For renamed columns, pass "
                "columns={name here: name there}"
            )
        new = [_column(name).ext.to(_type_of(there[original])) for name, original in names.items()]
        return self._frame.with_columns(new)

    def rewrap(
        self,
        key: str | None = None,
        *,
        source: str | Iterable[str] | None = None,
        add: bool = False,
        retire: str | Iterable[str] | None = None,
    ) -> pl.LazyFrame:
        """Wrap the data key with another master key; the cells stay the same. See `kmsdata.rewrap`."""
        schema = self._frame.collect_schema()
        return _rewrapped(self._frame, schema, key, source=source, add=add, retire=retire)

    @property
    def encrypted(self) -> list[str]:
        """Names of the encrypted columns."""
        return [name for name, dtype in self._frame.collect_schema().items() if _is_encrypted(dtype)]

    def inspect(self) -> Inspection:
        """Describe what is encrypted, how, and by which master keys, without rows. Needs no key."""
        return inspect(_whole_to_arrow(self._frame.collect_schema().to_frame()))

    def sink_parquet(
        self,
        path: FilePath,
        *,
        filesystem: Any = None,
        encrypted: Columns | None = None,
        **pyarrow_options: Any,
    ) -> None:
        """Run the query and write its batches to a Parquet file, like `FrameNamespace.to_parquet`.

        Memory holds a few batches. The file appears complete or not at all.

        Args:
            path: the file; an existing file is replaced.
            filesystem: pyarrow or fsspec filesystem; otherwise inferred from the path.
            encrypted: name or names of columns that must be encrypted; otherwise nothing is written.
            **pyarrow_options: as in `pyarrow.parquet.ParquetWriter`.

        Example:
            >>> import polars as pl, kmsdata.polars
            >>> lf = pl.LazyFrame({"age": [36, 41]}).kms.encrypt("age", key="local://demo")
            >>> lf.kms.sink_parquet("ages.parquet", encrypted="age")
            >>> pl.scan_parquet("ages.parquet").kms.decrypt().collect()["age"].to_list()
            [36, 41]
        """
        schema = self._frame.collect_schema()
        _write(self._frame, schema, path, filesystem, encrypted, pyarrow_options)


@pl.api.register_series_namespace("kms")
class SeriesNamespace:
    """Encrypt, decrypt and search one column: ``series.kms``. The series needs a name."""

    def __init__(self, series: pl.Series) -> None:
        self._series = series

    def encrypt(
        self,
        *,
        deterministic: bool = False,
        key: _Key | None = None,
        domain: str | None = None,
        context: Mapping[str, str] | None = None,
    ) -> pl.Series:
        """Encrypt the series. See `FrameNamespace.encrypt`.

        Example:
            >>> import polars as pl, kmsdata.polars
            >>> enc = pl.Series("age", [36, 41]).kms.encrypt(deterministic=True, key="local://demo")
            >>> enc.kms.isin([41, 50]).to_list()
            [False, True]
        """
        frame = FrameNamespace(self._series.to_frame()).encrypt(
            [self._series.name], deterministic=deterministic, key=key, domain=domain, context=context
        )
        return frame.to_series()

    def decrypt(
        self,
        *,
        key: _Key | None = None,
        context: Mapping[str, str] | None = None,
    ) -> pl.Series:
        """Decrypt the series. See `FrameNamespace.decrypt`."""
        names = [self._series.name]
        return FrameNamespace(self._series.to_frame()).decrypt(names, key=key, context=context).to_series()

    def isin(self, values: Any, *, key: _Key | None = None) -> pl.Series:
        """Find the rows that hold one of these values, without decryption. See `FrameNamespace.isin`."""
        return FrameNamespace(self._series.to_frame()).isin(self._series.name, values, key=key)


def _rewrapped(frame: _FrameT, schema: pl.Schema, key: str | None, **change: Any) -> _FrameT:
    empty = rewrap(_as_arrow(schema.to_frame()), key, **change)
    return _under(frame, {field.name: field.type.dtype.header for field in empty.schema})


# --- several frames -----------------------------------------------------------------------------------


def concat(frames: Iterable[_FrameT], **options: Any) -> _FrameT:
    """Concatenate frames with encrypted columns, as `polars.concat`, under united headers.

    `polars.concat` itself takes two encrypted columns for equal only if the text of their headers is: not
    after a rewrap of one of them, and not for two data keys.

    Args:
        frames: DataFrames, or LazyFrames.
        **options: as in `polars.concat`, such as ``how="diagonal"``.

    Raises:
        FormatError: the headers of a column cannot be united: the frames have it under other names, domain
            or type in one data key.
        ValueError: a column is encrypted in one frame, and plain in another.

    Example:
        >>> import polars as pl, kmsdata.polars
        >>> january = pl.DataFrame({"age": [36]}).kms.encrypt("age", key="local://demo")
        >>> february = pl.DataFrame({"age": [41]}).kms.encrypt("age", key="local://demo")
        >>> kmsdata.polars.concat([january, february]).kms.decrypt()["age"].to_list()
        [36, 41]
    """
    every = list(frames)
    schemas = [frame.collect_schema() for frame in every]
    found = [_headers(schema) for schema in schemas]
    united: dict[str, Header] = {}
    for headers in found:
        for name, header in headers.items():
            both = header if name not in united else united[name].union(header)
            if both is None:
                raise FormatError(
                    f"the headers of column {name!r} cannot be united: the frames have it under other names, "
                    "domains, types or categories in one data key. Decrypt the column first",
                    column=name,
                )
            united[name] = both
    for schema, headers in zip(schemas, found, strict=True):
        for name in united:
            if name in schema and name not in headers and schema[name] != pl.Null:
                raise CallerValueError(
                    f"column {name!r} is encrypted in one frame, and {schema[name].base_type()} in another. "
                    "Encrypt it in all of them, or in none; attach() restores the header of cells"
                )
    return pl.concat(
        [
            _under(frame, {name: united[name] for name in headers})
            for frame, headers in zip(every, found, strict=True)
        ],
        **options,
    )


def join(
    left: _FrameT,
    right: _FrameT,
    on: Columns | None = None,
    *,
    left_on: Columns | None = None,
    right_on: Columns | None = None,
    **options: Any,
) -> _FrameT:
    """Join two frames by encrypted columns, as ``left.join(right)``, also after a rewrap of one of them.

    Args:
        left: a DataFrame or LazyFrame.
        right: another one.
        on: name or names of the columns that both have.
        left_on: instead of ``on``, those of ``left``.
        right_on: those of ``right``.
        **options: as in `polars.DataFrame.join`, such as ``how="left"``.

    Raises:
        ValueError: an encrypted column is joined by another data key, domain or type, so that no row would
            match, or by a plain column.
        TypeError: an encrypted column is randomised.

    Example:
        >>> import polars as pl, kmsdata.polars
        >>> one = pl.DataFrame({"email": ["a@x.org"], "age": [36]})
        >>> one = one.kms.encrypt(deterministic="email", key="local://demo")
        >>> two = pl.DataFrame({"email": ["a@x.org"], "city": ["Ulm"]}).kms.encrypt(
        ...     deterministic="email", key=one)
        >>> kmsdata.polars.join(one, two, on="email").kms.decrypt().rows()
        [('a@x.org', 36, 'Ulm')]
    """
    if on is not None and left_on is None and right_on is None:
        left_on = right_on = column_names(on)
    elif on is not None or left_on is None or right_on is None:
        raise CallerValueError("pass on=, or both left_on= and right_on=")
    names = column_names(left_on), column_names(right_on)
    if len(names[0]) != len(names[1]):
        raise CallerValueError("left_on= and right_on= name different numbers of columns")
    ours, theirs = _headers(left.collect_schema()), _headers(right.collect_schema())
    for mine, other in zip(*names, strict=True):
        _check_joined(mine, ours.get(mine), other, theirs.get(other))
    both = _in_agreement(
        {**{(0, name): h for name, h in ours.items()}, **{(1, n): h for n, h in theirs.items()}}
    )
    left = _under(left, {name: both[0, name] for name in ours})
    right = _under(right, {name: both[1, name] for name in theirs})
    return left.join(cast(Any, right), left_on=names[0], right_on=names[1], **options)


def _check_joined(mine: str, one: Header | None, other: str, two: Header | None) -> None:
    """Raise an error if two columns cannot be joined."""
    if one is None and two is None:
        return
    what = f"column {mine!r} cannot be joined by {other!r}: "
    if one is None or two is None:
        plain = mine if one is None else other
        raise CallerValueError(
            f"{what}{plain!r} is not encrypted. Encrypt it under the same data key (key=other_frame), or "
            "decrypt the other column first"
        )
    for name, header in ((mine, one), (other, two)):
        if not all(item.deterministic for item in header.columns):
            raise CallerTypeError(
                f"{what}{name!r} is randomised: equal values have different cells. Encrypt it with "
                f"deterministic=[{name!r}]"
            )
    if EncryptedDtype(one) == EncryptedDtype(two):
        return
    if {item.data_key for item in one.columns} != {item.data_key for item in two.columns}:
        raise CallerValueError(
            f"{what}they are encrypted under different data keys, so no rows would match. Encrypt the second "
            "frame with key=first_frame"
        )
    if {item.place for item in one.columns} != {item.place for item in two.columns}:
        raise CallerValueError(
            f"{what}they have different domains, so no rows would match. Encrypt both with the same domain="
        )
    raise CallerValueError(f"{what}they have different types. Cast one of them before encryption")


_NameT = TypeVar("_NameT")


def _in_agreement(headers: Mapping[_NameT, Header]) -> dict[_NameT, Header]:
    """Return the headers with one record for each data key: only some may have been rewrapped."""
    records = merged_records([record for header in headers.values() for record in header.records])
    return {name: header.under(records) for name, header in headers.items()}


# --- files --------------------------------------------------------------------------------------------


def _write(
    frame: pl.LazyFrame,
    schema: pl.Schema,
    path: FilePath,
    filesystem: Any,
    encrypted: Columns | None,
    options: dict[str, Any],
) -> None:
    """Run a query, and write its batches to a Parquet file as `kmsdata.parquet.write` does."""
    headers = _in_agreement(_headers(schema))
    for name in required_names(encrypted):
        require(schema, name)
        if name not in headers:
            raise FormatError(f"column {name!r} must be encrypted, but is not", column=name)
    if not headers:
        raise CallerValueError(
            "nothing in this frame is encrypted. Write the frame that df.kms.encrypt() returned: it does not "
            "change df. A file without encrypted columns is written with df.write_parquet()"
        )
    for name, dtype in schema.items():
        if _unknown_to_arrow(dtype):
            raise UnsupportedTypeError(
                f"column {name!r} of type {dtype.base_type()} cannot be written: Arrow does not have "
                "it, or a type inside of it. Cast it first",
                column=name,
                dtype=str(dtype.base_type()),
            )
    written = _part_to_write(schema.to_frame(), headers).schema
    with parquet_writer(written, headers, path, filesystem, options) as write:
        frame.sink_batches(
            lambda part: write(_part_to_write(part, headers)),
            chunk_size=options.get("row_group_size", _ROWS),
        )


def _part_to_write(part: pl.DataFrame, headers: Mapping[str, Header]) -> pa.Table:
    """Return an Arrow table with the storage of encrypted columns that kmsdata's own files have."""
    table = _exported(part)
    for name, header in headers.items():
        position = table.schema.get_field_index(name)
        storage = plain_binary(table.column(position))
        if cells_in(storage) is None:
            raise FormatError(
                f"column {name!r} has the type of an encrypted column, but contains other values than cells: "
                "plain ones were mixed in, or given this type. Encrypt them first",
                column=name,
            )
        array = EncryptedArray(storage, EncryptedDtype(header)).__arrow_array__()
        table = table.set_column(position, table.schema.field(position).with_type(array.type), array)
    return table
