"""DuckDB: SQL functions that encrypt and decrypt columns, and options for files that keep their headers.

DuckDB sees encrypted columns as BLOB. A function has one type of result, and DuckDB has no overloads, so
there is one pair of functions for each encrypted column: ``kms_decrypt_ssn(ssn)``, ``kms_encrypt_ssn(text)``.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from kmsdata.errors import (
    CallerImportError,
    CallerTypeError,
    CallerValueError,
    FormatError,
    UnsupportedTypeError,
    printable,
)
from kmsdata.frames.arguments import Columns, column_names, refuse_repeated, require
from kmsdata.frames.arrow_storage import cells_in, is_bytes_or_text, plain_binary
from kmsdata.frames.column import open_arrow, open_pandas, plan, seal
from kmsdata.frames.dtype import EncryptedArray, EncryptedDtype
from kmsdata.frames.encrypted_columns import Encrypted, check_names, headers_of
from kmsdata.frames.key_argument import resolve_key
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import Header, file_text
from kmsdata.keys.session import Key
from kmsdata.keys.unwrap import open_keys
from kmsdata.parquet.headers import read_headers
from kmsdata.parquet.locations import FilePath
from kmsdata.parquet.write import parquet_writer

try:
    import duckdb
except ModuleNotFoundError:
    raise CallerImportError('kmsdata.duckdb needs DuckDB: pip install "kmsdata[duckdb]"') from None

__all__ = ["Functions", "copy_options", "register", "to_parquet", "unregister"]

_DECRYPT, _ENCRYPT = "kms_decrypt_", "kms_encrypt_"
_TEXT = {pa.string(), pa.large_string(), pa.string_view()}
_SAME = {
    pa.bool_(): "BOOLEAN",
    pa.int8(): "TINYINT",
    pa.int16(): "SMALLINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.uint8(): "UTINYINT",
    pa.uint16(): "USMALLINT",
    pa.uint32(): "UINTEGER",
    pa.uint64(): "UBIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.date32(): "DATE",
    pa.time64("us"): "TIME",
    pa.time64("ns"): "TIME_NS",
    pa.timestamp("s"): "TIMESTAMP_S",
    pa.timestamp("ms"): "TIMESTAMP_MS",
    pa.timestamp("us"): "TIMESTAMP",
    pa.timestamp("ns"): "TIMESTAMP_NS",
}


class Functions(NamedTuple):
    """The names of the functions of one column.

    Attributes:
        decrypt: such as ``kms_decrypt_ssn``.
        encrypt: such as ``kms_encrypt_ssn``; None if the column has cells of several types or data keys.
    """

    decrypt: str
    encrypt: str | None


def register(
    con: Any,
    like: Encrypted | FilePath | Any,
    columns: Columns | None = None,
    *,
    key: Key | Encrypted | None = None,
    context: Mapping[str, str] | None = None,
) -> dict[str, Functions]:
    """Register a pair of SQL functions for each encrypted column, with one KMS call for each data key.

    ``kms_decrypt_ssn(ssn)`` takes a BLOB and returns the values in their DuckDB type; ``kms_encrypt_ssn(x)``
    takes such values and returns cells under the same header. In names of functions, spaces and signs
    of a column's name become ``_``. Functions of an earlier call with the same names are replaced. They work
    in all cursors of the connection, and hold the data keys until `unregister` or the connection's end.

    An error in a function is an ``InvalidInputException`` of DuckDB, with the message of the kmsdata error;
    its rows are counted in a batch of at most 2,048.

    Args:
        con: a DuckDB connection.
        like: what has the headers: the path of a Parquet file or dataset, a frame, an Arrow table, or any
            dataframe that Arrow can read.
        columns: name or names of its encrypted columns; None: all.
        key: use only these keys: a URI, several URIs, a `DataKey`, or encrypted data; None: as for
            decryption.
        context: pairs that the authenticated context must contain.

    Returns:
        The names of the functions by column.

    Raises:
        KeyError: there is no such column.
        ValueError: the functions of two columns would have one name, or exist in another connection.
        UnsupportedTypeError: DuckDB cannot represent the values exactly: durations, decimals of more than 38
            digits, half floats, intervals, Python objects that are not text.
        FormatError, WrongKeyError, KeyServiceError: as for decryption.

    Example:
        >>> import duckdb, pandas as pd, kmsdata.duckdb
        >>> df = pd.DataFrame({"email": ["a@x.org", "b@x.org"], "age": [36, 29]})
        >>> df.kms.encrypt("age", deterministic="email", key="local://demo").kms.to_parquet("p.parquet")
        >>> con = duckdb.connect()
        >>> kmsdata.duckdb.register(con, like="p.parquet")["age"].decrypt
        'kms_decrypt_age'
        >>> con.sql('''
        ...     SELECT kms_decrypt_age(age) FROM 'p.parquet' WHERE email = kms_encrypt_email('b@x.org')
        ... ''').fetchall()
        [(29,)]
    """
    _check_connection(con)
    headers = _headers(like, columns)
    names = _function_names(headers)
    keys = open_keys(list(headers.items()), resolve_key(key), context)
    check_names(headers)
    made: list[tuple[str, Callable[[Any], Any], Any, Any, bool]] = []
    functions: dict[str, Functions] = {}
    for column, header in headers.items():
        decrypt, encrypt = names[column]
        opener = _Decrypt(column, header, keys)
        kind = _duckdb_type(con, opener.type, column)
        # side_effects: otherwise DuckDB computes a function of a constant once, for all rows and before
        # the query runs: equal cells for all rows; and EXPLAIN would show decrypted constants.
        made.append((decrypt, opener, "BLOB", kind, True))
        sealer = _Encrypt.of(column, header, keys)
        if sealer is not None:
            # A deterministic cell may be computed once: `email = kms_encrypt_email('x')` is then fast.
            made.append((encrypt, sealer, kind, "BLOB", not header.deterministic))
        functions[column] = Functions(decrypt, None if sealer is None else encrypt)
    for name in [item[0] for item in made]:
        _remove(con, name)
    for name, function, taken, given, side_effects in made:
        try:
            con.create_function(
                name,
                function,
                [taken],
                given,
                type="arrow",
                null_handling="special",
                side_effects=side_effects,
            )
        except duckdb.Error as error:
            for item in made:
                _remove(con, item[0])
            # "is already created", "already exists"; not "Connection already closed".
            if isinstance(error, duckdb.ConnectionException) or "already" not in str(error):
                raise
            raise CallerValueError(
                f"a function {name} exists already: another connection or cursor of this database registered "
                "it, or a transaction that was rolled back. Call kmsdata.duckdb.unregister() with it; "
                "after a rollback, open a new connection"
            ) from None
    return functions


def unregister(con: Any) -> None:
    """Remove all functions that `register` made in this connection, and with them their data keys.

    Example:
        >>> import duckdb, kmsdata.duckdb
        >>> kmsdata.duckdb.unregister(duckdb.connect())
    """
    _check_connection(con)
    query = (
        "SELECT DISTINCT function_name FROM duckdb_functions() WHERE function_name ~ '^kms_(de|en)crypt_.*'"
    )
    with con.cursor() as cursor:  # a result that waits in the connection itself is kept
        for (name,) in cursor.execute(query).fetchall():
            _remove(con, name)
        left = cursor.execute(query).fetchall()
    if left:
        raise CallerValueError(
            f"{left[0][0]} was registered by another connection or cursor of this database. Call "
            "unregister() with that one"
        )


def copy_options(like: Encrypted | FilePath | Any, columns: Columns | None = None) -> str:
    """Return options for DuckDB's COPY, so that a Parquet file has the headers of its encrypted columns.

    DuckDB writes cells as BLOB, without their header. With these options they are in the file's metadata,
    where `kmsdata.read_parquet`, `kmsdata.verify` and other readers find them. Columns keep the names under
    which they were encrypted; a decrypted column needs another name than its encrypted one, or ``columns``.

    Args:
        like: what has the headers, as in `register`.
        columns: name or names of the columns that are encrypted in the file; None: all of ``like``.

    Returns:
        SQL text, to be put inside of the parentheses of a COPY statement.

    Raises:
        KeyError: there is no such column. FormatError: nothing is encrypted.
        ValueError: a column has an empty name, which DuckDB does not keep.

    Example:
        >>> import duckdb, pandas as pd, kmsdata.duckdb
        >>> pd.DataFrame({"age": [36]}).kms.encrypt("age", key="local://demo").kms.to_parquet("a.parquet")
        >>> options = kmsdata.duckdb.copy_options("a.parquet")
        >>> _ = duckdb.sql(f"COPY (FROM 'a.parquet') TO 'b.parquet' ({options}, COMPRESSION zstd)")
        >>> kmsdata.read_parquet("b.parquet", decrypt=True)["age"].tolist()
        [36]
    """
    headers = _headers(like, columns)
    if "" in headers:
        raise CallerValueError(
            "a column without a name ('') cannot be written by COPY: DuckDB gives it another name, under "
            "which its header would not be found. Rename it before encryption, or leave it out with columns="
        )
    text = file_text(headers).replace("'", "''")
    return f"FORMAT parquet, KV_METADATA {{kmsdata: '{text}'}}"


def to_parquet(
    relation: Any,
    path: FilePath,
    like: Encrypted | FilePath | Any,
    columns: Columns | None = None,
    *,
    filesystem: Any = None,
    **pyarrow_options: Any,
) -> None:
    """Write a DuckDB relation to a Parquet file that is the same as kmsdata's own. The write is atomic.

    The relation runs once, and its batches are written one after the other. Unlike COPY with `copy_options`,
    the columns' types have the headers too, so that Polars and Arrow see encrypted columns.

    Args:
        relation: what ``con.sql()`` returns, or anything else with ``__arrow_c_stream__``.
        path: the file; an existing file is replaced.
        like: what has the headers, as in `register`.
        columns: name or names of the columns that are encrypted in ``relation``; None: those of ``like`` that
            are BLOB there.
        filesystem: pyarrow or fsspec filesystem; otherwise inferred from the path.
        **pyarrow_options: as in `pyarrow.parquet.write_table`.

    Raises:
        FormatError: a column contains other values than cells. Whether the cells belong to the headers is
            checked when they are decrypted, or by `kmsdata.verify`.
        ValueError: no column is encrypted, or several have one name.
        OSError: the file cannot be written; an existing file at the path is unchanged.

    Example:
        >>> import duckdb, pandas as pd, kmsdata.duckdb
        >>> pd.DataFrame({"age": [36, 29]}).kms.encrypt("age", key="local://demo").kms.to_parquet("a.parquet")
        >>> kmsdata.duckdb.to_parquet(duckdb.sql("FROM 'a.parquet' LIMIT 1"), "b.parquet", like="a.parquet")
        >>> kmsdata.read_parquet("b.parquet", decrypt=True)["age"].tolist()
        [36]
    """
    if not hasattr(relation, "__arrow_c_stream__"):
        raise CallerTypeError(
            "relation takes what con.sql() returns, or other data with __arrow_c_stream__, not "
            f"{type(relation).__name__}"
        )
    headers = _headers(like, columns)
    reader = pa.RecordBatchReader.from_stream(relation)
    for name in reader.schema.names:
        refuse_repeated(reader.schema.names, name)
    if columns is None:
        binary = {field.name for field in reader.schema if pa.types.is_binary(_exchanged(field.type))}
        headers = {name: header for name, header in headers.items() if name in binary}
        if not headers:
            raise CallerValueError(
                "no column of the relation is encrypted: none is a BLOB with the name of an encrypted column "
                "of like"
            )
    for name in headers:
        require(reader.schema.names, name)
    schema = _with_headers(reader.schema.empty_table(), headers).schema
    with parquet_writer(schema, headers, path, filesystem, pyarrow_options) as write:
        for batch in reader:
            write(_with_headers(pa.Table.from_batches([batch]), headers))


def _with_headers(table: pa.Table, headers: Mapping[str, Header]) -> pa.Table:
    """Return the table with the type of encrypted columns."""
    for name, header in headers.items():
        values = table.column(name)
        parts = [cells_in(chunk) if is_bytes_or_text(chunk.type) else None for chunk in values.chunks]
        if any(part is None for part in parts):
            raise FormatError(
                f"column {name!r} does not contain cells. Name the columns that are encrypted, with columns=",
                column=name,
            )
        cells = EncryptedArray(
            pa.chunked_array(parts, None if parts else pa.binary()), EncryptedDtype(header)
        )
        array = cells.__arrow_array__()
        position = table.schema.get_field_index(name)
        table = table.set_column(position, table.schema.field(position).with_type(array.type), array)
    return table


def _headers(like: Any, columns: Columns | None) -> dict[str, Header]:
    if isinstance(like, str | os.PathLike):
        headers = read_headers(like)
    else:
        if not isinstance(like, pd.DataFrame | pd.Series | pa.Table):
            if not hasattr(like, "__arrow_c_stream__"):
                raise CallerTypeError(
                    f"like= takes a path, a frame or an Arrow table, not {type(like).__name__}"
                )
            like = pa.table(like)
        headers = headers_of(like)
    if columns is not None:
        names = column_names(columns)
        for name in names:
            require(headers, name)
        headers = {name: headers[name] for name in names}
    if not headers:
        raise FormatError("nothing in like is encrypted: it has no kmsdata header")
    return headers


def _check_connection(con: object) -> None:
    if not (con is duckdb or isinstance(con, duckdb.DuckDBPyConnection)):
        raise CallerTypeError(f"con takes a connection, from duckdb.connect(), not {type(con).__name__}")


def _function_names(headers: Mapping[str, Header]) -> dict[str, tuple[str, str]]:
    """Return the names of the functions of each column: DuckDB does not distinguish upper and lower case."""
    names, owners = {}, dict[str, str]()
    for column in headers:
        plain = re.sub(r"\W", "_", column)
        other = owners.setdefault(plain.casefold(), column)
        if other != column:
            raise CallerValueError(
                f"columns {other!r} and {column!r} would both have the function {_DECRYPT}{plain}. "
                "Register one of them, with columns="
            )
        names[column] = _DECRYPT + plain, _ENCRYPT + plain
    return names


def _remove(con: Any, name: str) -> None:
    with contextlib.suppress(duckdb.Error):
        con.remove_function(name)


# --- types ------------------------------------------------------------------------------------------


def _unsupported(kind: Any, column: str) -> UnsupportedTypeError:
    return UnsupportedTypeError(
        f"column {column!r} is of the type {printable(str(kind))}, which DuckDB cannot represent exactly. "
        "Decrypt it with kmsdata.decrypt_table(), or leave it out with columns=",
        column=column,
        dtype=str(kind),
    )


def _duckdb_type(con: Any, kind: pa.DataType, column: str) -> Any:
    """Return the DuckDB type that holds all values of an Arrow type exactly, nested types included."""
    if kind in _SAME:
        return _SAME[kind]
    if kind in _TEXT:
        return "VARCHAR"
    if (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    ):
        return "BLOB"
    if pa.types.is_dictionary(kind) and kind.value_type in _TEXT:
        return "VARCHAR"
    if pa.types.is_time32(kind):
        return "TIME"
    if pa.types.is_timestamp(kind):  # with a zone: DuckDB keeps the instant
        return "TIMESTAMPTZ_NS" if kind.unit == "ns" else "TIMESTAMPTZ"
    if pa.types.is_decimal(kind) and kind.precision <= 38 and 0 <= kind.scale <= kind.precision:
        return con.decimal_type(kind.precision, kind.scale)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return con.list_type(_duckdb_type(con, kind.value_type, column))
    if pa.types.is_fixed_size_list(kind) and kind.list_size > 0:
        return con.array_type(_duckdb_type(con, kind.value_type, column), kind.list_size)
    if pa.types.is_map(kind):
        inner = [_duckdb_type(con, one, column) for one in (kind.key_type, kind.item_type)]
        return con.map_type(*inner)
    if pa.types.is_struct(kind):
        fields = {field.name: _duckdb_type(con, field.type, column) for field in kind}
        if fields and len({name.casefold() for name in fields}) == kind.num_fields:
            return con.struct_type(fields)
    raise _unsupported(kind, column)


def _exchanged(kind: pa.DataType) -> pa.DataType:
    """Return the Arrow type in which DuckDB takes the values of an Arrow type."""
    if kind in _TEXT or pa.types.is_dictionary(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_time32(kind):
        return pa.time64("us")
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return pa.timestamp("ns" if kind.unit == "ns" else "us", "UTC")
    if pa.types.is_decimal(kind):
        return pa.decimal128(kind.precision, kind.scale)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_exchanged(kind.value_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_exchanged(kind.value_type), kind.list_size)
    if pa.types.is_map(kind):
        return pa.map_(_exchanged(kind.key_type), _exchanged(kind.item_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _exchanged(field.type)) for field in kind])
    return kind


def _cast(values: Any, kind: pa.DataType, column: str) -> Any:
    """Cast values; an error does not contain them."""
    if values.type.equals(kind, check_metadata=True):  # DuckDB calls the items of lists "l"
        return values
    with contextlib.suppress(pa.ArrowException):
        return values.cast(kind)
    where, of = values.type, kind
    del values
    raise UnsupportedTypeError(
        f"column {column!r} has a value of the type {where} that cannot be converted to {of} exactly",
        column=column,
        dtype=str(of),
    )


# --- functions ----------------------------------------------------------------------------------------


class _Decrypt:
    """Decrypt a batch of cells."""

    def __init__(self, column: str, header: Header, keys: Mapping[bytes, DataKey]) -> None:
        self._column, self._header, self._keys = column, header, keys
        blank = open_arrow(header, keys, pa.array([], pa.large_binary()), column)
        #: The Arrow type of the values.
        self.type = blank.type
        if _of_objects(header):
            self.type = pa.string()

    def __call__(self, cells: pa.ChunkedArray) -> pa.Array:
        values = open_arrow(self._header, self._keys, plain_binary(cells), self._column)
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        if values.type != self.type and not pa.types.is_null(values.type):
            kind, ours = values.type, _exchanged(values.type)
            if ours != _exchanged(self.type):
                del values
                raise _unsupported(kind, self._column)
        return _cast(values, _exchanged(self.type), self._column)


class _Encrypt:
    """Encrypt a batch of values under a header that exists."""

    def __init__(
        self, column: str, data_key: DataKey, planned: tuple[Any, Any], sample: Any, blank: pa.ChunkedArray
    ) -> None:
        self._column, self._data_key, self._sample, self._blank = column, data_key, sample, blank
        self._header, self._described = planned

    @classmethod
    def of(cls, column: str, header: Header, keys: Mapping[bytes, DataKey]) -> _Encrypt | None:
        """Return the function, or None if the header does not determine how to encrypt new values."""
        if len(header.columns) > 1:
            return None
        (item,) = header.columns
        no_cells = pa.array([], pa.large_binary())
        blank = open_arrow(header, keys, no_cells, column)
        if isinstance(blank, pa.Array):
            blank = pa.chunked_array([blank])
        blank_series = open_pandas(header, keys, no_cells, column)
        samples: list[tuple[Any, Any]] = [(blank, blank_series.dtype), (blank, None)]
        if isinstance(blank_series.dtype, pd.CategoricalDtype):
            samples = [(blank, None), (blank_series, None)]
        elif _of_objects(header):
            nulls = (None, np.nan, pd.NA, pd.NaT)
            samples = [
                (pd.Series([*some, null], dtype=object), None) for some in (["a"], ["a", 1]) for null in nulls
            ]
        for sample, dtype in samples:
            data_key = keys[item.data_key]
            planned = plan(sample, item.name or column, data_key, domain=item.domain, dtype=dtype)
            if EncryptedDtype(Header.of([planned[0]], header.records)) == EncryptedDtype(header):
                return cls(column, data_key, planned, sample, blank)
        return None

    def __call__(self, values: pa.ChunkedArray) -> pa.Array:
        given: Any
        if pa.types.is_dictionary(self._blank.type):
            given = self._as_categories(values)
        elif isinstance(self._sample, pd.Series):
            given = pd.Series(values.to_pylist(), dtype=object)
            given = given.where(given.notna(), self._sample.iloc[-1])
        else:
            given = _cast(values, self._blank.type, self._column)
        cells = seal(self._header, self._described, given, self._header.name or self._column, self._data_key)
        return cells.cast(pa.binary())

    def _as_categories(self, values: pa.ChunkedArray) -> pd.Series[Any] | pa.ChunkedArray:
        listed = self._blank.chunk(0).dictionary
        codes = pc.index_in(_cast(values, listed.type, self._column), value_set=listed).combine_chunks()
        if codes.null_count != values.null_count:
            raise CallerValueError(
                f"column {self._column!r} has a value that is none of the column's categories"
            )
        if isinstance(self._sample, pd.Series):
            numbers, dtype = codes.fill_null(-1).to_numpy(), cast(Any, self._sample.dtype)
            return pd.Series(pd.Categorical.from_codes(numbers, dtype=dtype))
        codes = codes.cast(self._blank.type.index_type)
        ordered = self._blank.type.ordered
        return pa.chunked_array([pa.DictionaryArray.from_arrays(codes, listed, ordered=ordered)])


def _of_objects(header: Header) -> bool:
    """Return whether a column is one of Python objects, whose Arrow type depends on the values."""
    return all("object" in item.type.get("pandas", ()) for item in header.columns)
