"""Column encryption for Spark DataFrames: the words of `kmsdata`, on Spark's own frames.

Encrypted columns are binary. The header of each is in the metadata of its column, which survives filters,
joins, SQL and Parquet. Nothing secret is sent to the executors or appears in a query plan: each Python worker
unwraps the data key once, with its own credentials.

Spark 4 with Spark classic, that is, a driver in this process (not Spark Connect).
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import os
import re
import zoneinfo
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import pandas as pd
import pyarrow as pa

from kmsdata.errors import CallerImportError

try:
    import pyspark  # noqa: F401 - the error says what to install
except ImportError:
    raise CallerImportError('kmsdata.spark needs PySpark: pip install "kmsdata[spark]"') from None

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the usual name
from pyspark.sql import types as T  # noqa: N812 - the usual name

from kmsdata.api.inspection import inspect as inspect_data
from kmsdata.api.parts import (
    DecryptionPlan,
    EncryptionPlan,
    decrypt_part,
    encrypt_part,
    plan_decryption,
    plan_encryption,
    worker_key,
)
from kmsdata.codec.arrow_types import arrow_type
from kmsdata.display.inspection import ColumnReport, Inspection
from kmsdata.display.verification import Verification
from kmsdata.errors import (
    CallerTypeError,
    CallerValueError,
    FormatError,
    UnsupportedTypeError,
    located,
)
from kmsdata.frames.arguments import (
    Columns,
    chosen_columns,
    column_names,
    refuse_encrypted,
    refuse_repeated,
    require,
    required_names,
)
from kmsdata.frames.arrow_storage import is_bytes_or_text, plain_binary
from kmsdata.frames.dtype import EncryptedArray, EncryptedDtype
from kmsdata.frames.encrypted_columns import (
    Encrypted,
    HeaderSearch,
    check_names,
    headers_of,
)
from kmsdata.frames.key_argument import resolve_key
from kmsdata.frames.metadata.documents import SPARK, SPARK_COLUMN_ENTRY, spark_column_headers
from kmsdata.frames.metadata.values import metadata_texts, refuse_values_in_metadata
from kmsdata.frames.search import literals, require_deterministic
from kmsdata.frames.verify import MISSING, NO_HEADER, NOT_ENCRYPTED, Findings
from kmsdata.keys.envelope import ENTRY, Header, parse_file
from kmsdata.keys.session import Key
from kmsdata.keys.unwrap import DataKeys, open_keys
from kmsdata.parquet.footer import refuse_length
from kmsdata.parquet.headers import headers_in, read_headers

__all__ = ["attach", "decrypt", "encrypt", "inspect", "isin", "read", "verify"]

AnyKey: TypeAlias = "Key | Encrypted | DataFrame"
Batches: TypeAlias = "Iterator[pa.RecordBatch]"

TYPE_ENTRY = "kmsdata.type"  # in a column's metadata: its type in Spark, where Arrow's does not say it
_ARROW_SCHEMA = b"ARROW:schema"
_FOOTERS_AT_ONCE = 16


def encrypt(
    sdf: DataFrame,
    columns: Columns = (),
    *,
    deterministic: Columns | bool = (),
    key: AnyKey | None = None,
    domain: str | Mapping[str, str] | None = None,
    context: Mapping[str, str] | None = None,
    encrypted: Columns | None = None,
) -> DataFrame:
    """Encrypt columns of a Spark DataFrame. The data key is made now; the cells when Spark runs a job.

    Args:
        sdf: any DataFrame of Spark classic; it is not changed.
        columns: name or names of the columns to encrypt with random IVs. Each run of a job encrypts again, to
            other cells: write or persist the result before you use it twice.
        deterministic: names of the columns to encrypt so that equal values have equal cells; True for all of
            ``columns``.
        key: a key URI, several, a `DataKey`, or encrypted data (in Spark or not) whose data key to use; None:
            the session's. A `DataKey` stays on the driver: workers unwrap it.
        domain: deterministic columns of one domain can be joined: a mapping by column, or one text for one
            column.
        context: pairs that are stored unencrypted next to the wrapped key, and are required to unwrap it.
        encrypted: name or names of the columns that must be encrypted in the result; checked before a key
            is made.

    Returns:
        The DataFrame, with those columns binary, and their headers in the columns' metadata. Other metadata
        of these columns (comments, categories of Spark ML) is removed, since it may contain values.

    Raises:
        KeyError: no such column. TypeError, ValueError: see the message.
        FormatError: a column of ``encrypted`` would stay unencrypted.
        UnsupportedTypeError: Spark cannot hand the type to Python, or it could not be restored exactly.
        KeyServiceError: a KMS call failed. A worker's error is in the message of Spark's ``PythonException``.

    Example:
        >>> import kmsdata.spark
        >>> from pyspark.sql import SparkSession
        >>> spark = SparkSession.builder.getOrCreate()
        >>> sdf = spark.createDataFrame([("Ada", 36)], "name string, age int")
        >>> enc = kmsdata.spark.encrypt(sdf, ["name", "age"], key="local://demo")
        >>> enc.dtypes
        [('name', 'binary'), ('age', 'binary')]
        >>> kmsdata.spark.decrypt(enc).collect()
        [Row(name='Ada', age=36)]
    """
    schema = _schema(sdf)
    chosen = chosen_columns(schema.names, columns, deterministic, domain, [])
    headers = _headers(schema)
    for name in chosen:
        refuse_encrypted(name, name in headers)
    for name in required_names(encrypted):
        require(schema.names, name)
        if name not in chosen and name not in headers:
            raise FormatError(
                f"column {name!r} must be encrypted, but would stay unencrypted. Name it in columns",
                column=name,
            )
    _check_passable(schema)
    zone = _zone(_session_of(sdf))
    plain = pa.schema([(name, _arrow_type(schema[name].dataType, zone, name)) for name in chosen])
    _check_passable(schema)
    like = _empty_table(schema, headers, {field.name: field.type for field in plain})
    plan = plan_encryption(
        like,
        columns,
        deterministic=deterministic,
        key=_without_spark(key),
        domain=domain,
        context=context,
        processes=_session_of(sdf).sparkContext.defaultParallelism,
    )
    made = headers_of(plan.like)
    fields = [
        _encrypted_field(field, made[field.name]) if field.name in chosen else field for field in schema
    ]
    texts = _texts_beside(fields, chosen)

    names = schema.names

    def kmsdata_encrypt(batches: Batches) -> Batches:
        return _encrypted(_named_as(names, batches), plan, plain, texts)

    return _mapped(sdf, kmsdata_encrypt, fields)


def decrypt(
    sdf: DataFrame,
    columns: Columns | None = None,
    *,
    key: AnyKey | None = None,
    context: Mapping[str, str] | None = None,
) -> DataFrame:
    """Decrypt columns of a Spark DataFrame, when Spark runs a job.

    Every row of every column passes through Python: select the columns that you need first.

    Args:
        sdf: a DataFrame with encrypted columns, from `encrypt` or `read`.
        columns: name or names of the columns to decrypt; None for all.
        key: the only keys that may be used: a URI, several, or encrypted data; None: keys of the session
            key's provider. A `DataKey` is refused: it is secret, and the workers would receive it.
        context: pairs that the authenticated context must contain.

    Returns:
        The DataFrame, with those columns of their original type, or of that which Spark's Parquet reader
        uses for it: ``uint8`` becomes ``smallint``, ``uint64`` ``decimal(20,0)``. Timestamps with a zone
        become instants; the zone is in the header only.

    Raises:
        KeyError: no such column.
        FormatError: a named column is not encrypted, or a header is malformed, or nothing is encrypted.
        UnsupportedTypeError: Spark has no such type.

        In the job, as Spark's ``PythonException`` with the message of the original: ``TamperedError``,
        ``WrongKeyError`` (such as cells of a frame under another data key, which ``union`` added),
        ``FormatError`` (a column looks like cells whose header was dropped), ``KeyServiceError``.

    Example:
        >>> import kmsdata.spark
        >>> from pyspark.sql import SparkSession
        >>> spark = SparkSession.builder.getOrCreate()
        >>> sdf = spark.createDataFrame([("Ada", 36)], "name string, age int")
        >>> enc = kmsdata.spark.encrypt(sdf, "name", key="local://demo")
        >>> kmsdata.spark.decrypt(enc.select("name")).collect()
        [Row(name='Ada')]
    """
    schema = _schema(sdf)
    headers = _headers(schema)
    names = _named(schema, headers, columns)
    check_names({name: headers[name] for name in names}, beside=headers)
    _check_passable(schema)
    categories = {name: kind for name in names if (kind := _category_values(headers[name])) is not None}
    others = [name for name in names if name not in categories]
    plan = plan_decryption(
        _empty_table(schema, headers),
        others,
        key=_without_spark(key),
        context=context,
        processes=_session_of(sdf).sparkContext.defaultParallelism,
    )
    plan = replace(plan, columns=tuple(names))  # of categories, the values are what Spark shows
    kinds = categories | {name: plan.like.schema.field(name).type for name in others}
    fields = [
        T.StructField(field.name, _decrypted_type(field, kinds[field.name]), field.nullable)
        if field.name in kinds
        else field
        for field in schema
    ]
    texts = {name: headers[name].text for name in names}
    targets = {
        field.name: _arrow_type(field.dataType, "UTC", field.name) for field in fields if field.name in kinds
    }
    checked, labels = columns is None, schema.names

    def kmsdata_decrypt(batches: Batches) -> Batches:
        return _decrypted(_named_as(labels, batches), plan, texts, targets, checked)

    return _mapped(sdf, kmsdata_decrypt, fields)


def isin(sdf: DataFrame, column: str, values: Any, *, key: AnyKey | None = None) -> Column:
    """Search a deterministic column: return a condition for ``filter``, true where a cell is one of values.

    The values are encrypted now, on the driver, and compared with the cells. No plaintext or key is in the
    plan. In the job, a cell under a key that the header does not name is an error, not a row that is missed.

    Args:
        sdf: a DataFrame with encrypted columns.
        column: name of a deterministic column.
        values: one value, or any list of values; null matches only if it is among them.
        key: the only keys that may be used; see `decrypt`. A `DataKey` may be passed too.

    Raises:
        TypeError: the column is randomised, or cannot contain a value.
        KeyError, FormatError, KeyServiceError: as for `decrypt`.

    Example:
        >>> import kmsdata.spark
        >>> from pyspark.sql import SparkSession
        >>> spark = SparkSession.builder.getOrCreate()
        >>> sdf = spark.createDataFrame([("Ada", 36)], "name string, age int")
        >>> enc = kmsdata.spark.encrypt(sdf, deterministic="name", key="local://demo")
        >>> enc.filter(kmsdata.spark.isin(enc, "name", ["Ada", "Bo"])).count()
        1
    """
    schema = _schema(sdf)
    header = _headers(schema, _named(schema, _headers(schema), column))[column]
    require_deterministic(header, column)
    keys = open_keys([(column, header)], resolve_key(_without_spark(key)), None)
    found = literals(header, keys, values, column)
    if found.misfit and not found.anything:
        raise CallerTypeError(found.misfit)
    prefixes = {keys[item.data_key].cell_key(item).prefix for item in header.columns}
    cells = sdf[_quoted(column)]
    strange = (
        f"kmsdata: column {column!r} has cells with a key id that is not in the header: they are of another "
        "column or data key (did union put frames under several data keys together?), or were changed"
    )
    # A CASE evaluates in order: only cells that are not found are checked.
    return (
        F.when(cells.isNull(), F.lit(found.null))
        .when(cells.isin(found.cells.to_pylist()), F.lit(True))
        .when(F.substring(cells, 1, 5).isin(sorted(prefixes)), F.lit(False))
        .otherwise(F.raise_error(F.lit(strange)).cast("boolean"))
    )


def read(
    spark: SparkSession,
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    encrypted: Columns | None = None,
) -> DataFrame:
    """Read Parquet files with encrypted columns, with Spark's own reader; no key is needed.

    Spark selects columns and skips row groups as in ``spark.read.parquet``. The headers come from the footers
    of all files, read on the driver through Spark's own file systems. If files have different data keys, a
    column's header names them all.

    Args:
        spark: a session of Spark classic.
        path: a file or folder, or several, as ``spark.read.parquet`` takes them.
        encrypted: name or names of the columns that must be encrypted in every file.

    Raises:
        FormatError: a header is malformed; a column is encrypted in some files only; its headers in several
            files cannot be united; or a column of ``encrypted`` is not encrypted.

    Example:
        >>> import os
        >>> import pandas as pd, kmsdata.spark
        >>> from pyspark.sql import SparkSession
        >>> pd.DataFrame({"age": [36]}).kms.encrypt("age", key="local://demo").kms.to_parquet("ages.parquet")
        >>> sdf = kmsdata.spark.read(SparkSession.builder.getOrCreate(), f"{os.getcwd()}/ages.parquet")
        >>> kmsdata.spark.decrypt(sdf).collect()
        [Row(age=36)]
    """
    _require_classic(spark)
    if not isinstance(spark, SparkSession):
        raise CallerTypeError(f"read() takes a SparkSession first, then the path, not {type(spark).__name__}")
    paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    if not paths:
        raise CallerValueError("read() needs the path of a file or folder: the list of paths is empty")
    sdf = spark.read.parquet(*[os.fspath(one) for one in paths])
    # PySpark imports or unpickles such a class, which may run any code, as soon as it looks at the schema.
    if _names_a_class(sdf._jdf.schema().json()):
        raise FormatError(
            f"{paths[0]}: a column has a user-defined type, whose Python class the file names or contains. "
            "Reading it would run code that the file chooses. If you trust it, use spark.read.parquet() and "
            "kmsdata.spark.attach()"
        )
    schema = _schema(sdf)
    wanted = required_names(encrypted)
    for name in wanted:
        require(schema.names, name)
    united: dict[str, Header] = {}
    plain: dict[str, str] = {}
    types: dict[str, tuple[Any, str]] = {}
    otherwise: dict[str, tuple[str, str]] = {}
    shown = {(fold := _folded(spark))(name): name for name in schema.names}
    for file, footer in _footers(spark, schema, sdf.inputFiles()).items():
        for name, header in footer.headers.items():
            both = united.get(name, header).union(header)
            if both is None:
                raise FormatError(
                    f"{file}: column {name!r} was encrypted differently in other files: with another name, "
                    "domain or type under one data key. Read this file separately",
                    path=file,
                    column=name,
                )
            united[name] = both
        for name, kind in footer.types.items():
            if name in footer.headers and types.setdefault(name, (kind, file))[0] != kind:
                raise FormatError(
                    f"{file}: column {name!r} has another type in Spark ({TYPE_ENTRY!r} in its metadata) "
                    f"than in {types[name][1]}. Read the files separately",
                    path=file,
                    column=name,
                )
        plain |= dict.fromkeys(footer.names - footer.headers.keys(), file)
        for name in footer.names - set(schema.names):
            if fold(name) in shown:
                otherwise[shown[fold(name)]] = file, name
    for name in [*wanted, *united]:
        if name in otherwise:
            file, spelled = otherwise[name]
            raise located(_other_case(spelled, name), file, path=file)
        if name in plain or name not in united:
            file = plain.get(name, "")
            raise FormatError(
                f"{file}: column {name!r} must be encrypted, but has no kmsdata header"
                if name in wanted
                else f"{file}: column {name!r} has no kmsdata header, but is encrypted in other files. Read "
                "this file separately, or restore its header",
                path=file,
                column=name,
            )
    return _with_headers(sdf, united)


def attach(
    sdf: DataFrame,
    like: Any,
    columns: Columns | Mapping[str, str] | None = None,
) -> DataFrame:
    """Attach headers to binary columns that lost them, such as keys of an outer join or ``union``.

    Nothing is decrypted, and no job runs: whether the header belongs to the cells, decryption finds out.

    Args:
        sdf: a DataFrame with columns of cells.
        like: what still has the headers: a Spark DataFrame, a frame, an Arrow table, the path of a Parquet
            file or dataset, or a list of these. Headers of one column in several of them are united: after
            ``a.union(b)`` under two data keys, pass ``[a, b]``.
        columns: name or names of the columns; for renamed columns a mapping of the name in ``sdf`` to the
            name in ``like``. None: every binary column whose name ``like`` has.

    Raises:
        KeyError: no such column, in ``sdf`` or in ``like``.
        FormatError: a column is not binary, or headers of one name cannot be united.
        ValueError: ``like`` has the header of no column.
    """
    schema = _schema(sdf)
    several = isinstance(like, Iterable) and not isinstance(like, (str, pd.DataFrame, pd.Series, pa.Table))
    known: dict[str, Header] = {}
    for source in like if several and not isinstance(like, DataFrame) else [like]:
        for name, header in _headers_like(source).items():
            if (both := known.get(name, header).union(header)) is None:
                raise FormatError(
                    f"the headers of column {name!r} in like cannot be united: they have another name, "
                    "domain or type under one data key. Pass only what the cells came from",
                    column=name,
                )
            known[name] = both
    if columns is None:
        names = {
            field.name: field.name
            for field in schema
            if field.name in known and isinstance(field.dataType, T.BinaryType)
        }
    else:
        named = columns if isinstance(columns, Mapping) else {name: name for name in column_names(columns)}
        names = dict(named)
    if not names:
        raise CallerValueError("no column of the DataFrame is binary and has a header in like")
    for name, original in names.items():
        require(schema.names, name)
        require(known, original)
        if not isinstance(schema[name].dataType, T.BinaryType):
            raise FormatError(
                f"column {name!r} is {schema[name].dataType.simpleString()}, so it does not contain cells. "
                "Attach before a cast, or name the column of cells",
                column=name,
            )
    return _with_headers(sdf, _headers(schema) | {name: known[original] for name, original in names.items()})


def inspect(sdf: DataFrame) -> Inspection:
    """Report what the headers of a DataFrame say. No key is needed, and no job runs: rows are not counted.

    Example:
        >>> import kmsdata.spark
        >>> from pyspark.sql import SparkSession
        >>> spark = SparkSession.builder.getOrCreate()
        >>> sdf = spark.createDataFrame([("Ada", 36)], "name string, age int")
        >>> kmsdata.spark.inspect(kmsdata.spark.encrypt(sdf, "name", key="local://demo")).encrypted
        ['name']
    """
    schema = _schema(sdf)
    headers = _headers(schema)
    found = inspect_data(_empty_table(schema, headers))
    columns: list[ColumnReport] = [
        replace(column, nulls=None)
        if column.encrypted
        else replace(column, type=field.dataType.simpleString(), nulls=None)
        for column, field in zip(found.columns, schema, strict=True)
    ]
    note = "Rows, nulls and sizes are not counted: Spark would run a job for them."
    return replace(found, what="Spark DataFrame", columns=tuple(columns), notes=(*found.notes, note))


def verify(
    sdf: DataFrame,
    *,
    encrypted: Columns | None = None,
    key: AnyKey | None = None,
    context: Mapping[str, str] | None = None,
) -> Verification:
    """Authenticate every cell of every encrypted column, in one job. No plaintext leaves the workers.

    Args:
        sdf: a DataFrame with encrypted columns.
        encrypted: name or names of columns that must be encrypted.
        key: the only keys that may be used; see `decrypt`.
        context: pairs that the authenticated context must contain.

    Returns:
        The report of `kmsdata.verify`. Rows of a DataFrame have no position, so failures name columns and
        count cells.
    """
    schema = _schema(sdf)
    headers = _headers(schema)
    findings = Findings(DataKeys(None, context), required_names(encrypted))
    for name in findings.wanted:
        if name not in headers:
            there = name in schema.names
            what = NO_HEADER if there else "it must be encrypted, but there is no such column"
            findings.fail(what, name, absent=NOT_ENCRYPTED if there else MISSING)
    try:
        check_names(headers)
    except FormatError as error:
        findings.fail(str(error), error.column)
    if not headers:
        return findings.result("Spark DataFrame", 0)
    plan = plan_decryption(_empty_table(schema, headers), [], key=_without_spark(key), context=context)
    texts = {name: header.text for name, header in headers.items()}

    def kmsdata_verify(batches: Batches) -> Batches:
        return _verified(_named_as(list(texts), batches), plan, texts)

    chosen = sdf.select(*(sdf[_quoted(name)] for name in headers))
    rows = 0
    for row in _mapped(chosen, kmsdata_verify, [T.StructField("found", T.StringType())]).collect():
        part = json.loads(row.found)
        rows += part["rows"]
        for name, counted in part["columns"].items():
            counts = findings.column(name, headers[name])
            for what, number in counted.items():
                setattr(counts, what, getattr(counts, what) + number)
        for failure, denied in part["failures"]:
            findings.fail(failure["what"], failure["column"], denied=denied, count=failure["count"])
    return findings.result("Spark DataFrame", rows)


# --- in a Python worker of an executor ------------------------------------------------------------


def _mapped(sdf: DataFrame, function: Callable[[Batches], Batches], fields: list[T.StructField]) -> DataFrame:
    """Run a function on batches of a DataFrame. It must call `_named_as` for the names of the columns."""
    # PySpark's mapInArrow (4.3) takes a name with a dot for a field of a struct, and fails for a backtick.
    numbered = sdf.toDF(*[f"c{number}" for number in range(len(sdf.columns))])
    return numbered.mapInArrow(function, T.StructType(fields))


def _named_as(names: list[str], batches: Batches) -> Batches:
    return (batch.rename_columns(names) for batch in batches)


def _encrypted(batches: Batches, plan: EncryptionPlan, plain: pa.Schema, texts: list[bytes]) -> Batches:
    beside = metadata_texts(texts, [])
    for batch in batches:
        part = pa.table([_fitted(batch.column(field.name), field.type, field.name) for field in plain], plain)
        for name in plain.names:
            refuse_values_in_metadata(part.column(name), beside, name, "the metadata of another column")
        table = encrypt_part(part, plan)
        del part
        columns = [
            plain_binary(table.column(name)).cast(pa.large_binary()) if name in plain.names else values
            for name, values in zip(batch.schema.names, batch.columns, strict=True)
        ]
        yield pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _decrypted(
    batches: Batches,
    plan: DecryptionPlan,
    headers: Mapping[str, str],
    targets: Mapping[str, pa.DataType],
    checked: bool,
) -> Batches:
    searches: dict[int, tuple[str, HeaderSearch]] = {}
    for batch in batches:
        if checked:
            others = [name for name in batch.schema.names if name not in headers]
            for at, (name, values) in enumerate(_texts_and_bytes(batch.select(others))):
                _, search = searches.setdefault(at, (name, HeaderSearch()))
                if search.add(pa.table([values], names=[name])):
                    raise _lost_header(name, batch.column(name).type)
        table = decrypt_part(_cells(batch, headers), plan)
        columns = [
            _fitted(table.column(name), targets[name], name) if name in headers else values
            for name, values in zip(batch.schema.names, batch.columns, strict=True)
        ]
        yield pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
    for name, search in searches.values():
        if search.single_values():  # a warning would be in a log of the executor, unseen
            raise _lost_header(
                name, batch.column(name).type, what="its only value in this partition looks like a cell"
            )


def _texts_and_bytes(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.Array]]:
    """Yield the texts and bytes in each column, also those inside of arrays, structs and maps."""
    left = list(zip(batch.schema.names, batch.columns, strict=True))[::-1]
    while left:
        name, values = left.pop()
        kind = values.type
        if pa.types.is_map(kind):
            left += [(name, values.keys), (name, values.items)]
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            left.append((name, values.flatten()))
        elif pa.types.is_struct(kind):
            left += [(name, child) for child in values.flatten()]
        elif is_bytes_or_text(kind):
            yield name, values
            if pa.types.is_string(kind) or pa.types.is_large_string(
                kind
            ):  # a cast from binary keeps the bytes
                yield name, values.view(pa.binary() if pa.types.is_string(kind) else pa.large_binary())


def _lost_header(name: str, kind: pa.DataType, what: str = "looks like cells") -> FormatError:
    take = "" if is_bytes_or_text(kind) else "Take the cells out of the array, struct or map. "
    return FormatError(
        f"column {name!r} has no kmsdata header, but {what}: other software dropped the header. "
        f"{take}Read files with kmsdata.spark.read(); attach the header of the original with "
        "kmsdata.spark.attach(). If these are ciphertexts of other software, name the columns to decrypt",
        column=name,
    )


def _verified(batches: Batches, plan: DecryptionPlan, headers: Mapping[str, str]) -> Batches:
    parsed = {name: EncryptedDtype(text).header for name, text in headers.items()}
    findings = Findings(DataKeys(worker_key(plan, parsed), plan.context), [])
    keys = {name: findings.open(header, name, None) for name, header in parsed.items()}
    rows = 0
    for batch in batches:
        rows += batch.num_rows
        for name, found in keys.items():
            if found is not None:
                storage = plain_binary(batch.column(name))
                findings.look(parsed[name], found, storage, name, range(batch.num_rows))
    counted = {
        name: {"cells": counts.cells, "nulls": counts.nulls, "bad": counts.bad}
        for name, counts in findings.columns.items()
    }
    denied = [findings.columns[str(one.column)].denied for one in findings.failures]
    failures = [
        (asdict(replace(one, rows=())), no) for one, no in zip(findings.failures, denied, strict=True)
    ]
    text = json.dumps({"rows": rows, "columns": counted, "failures": failures})
    yield pa.RecordBatch.from_arrays([pa.array([text], pa.string())], names=["found"])


def _cells(batch: pa.RecordBatch, headers: Mapping[str, str]) -> pa.Table:
    arrays = [
        EncryptedArray(batch.column(name), EncryptedDtype(text)).__arrow_array__()
        for name, text in headers.items()
    ]
    return pa.table(arrays, names=list(headers))


def _fitted(values: Any, kind: pa.DataType, name: str) -> pa.Array:
    """Convert values to the Arrow type that was planned: another unit, zone, or width of offsets."""
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    if pa.types.is_dictionary(array.type) or pa.types.is_run_end_encoded(array.type):
        array = array.cast(array.type.value_type)
    if array.type == kind:
        return array
    try:
        return array.cast(kind)
    except pa.ArrowException:  # not chained: the error contains a value
        raise UnsupportedTypeError(
            f"column {name!r} ({array.type}) has a value that does not fit into {kind}, which is what Spark "
            "has: finer than microseconds, or larger. Convert the column in pandas or Arrow",
            column=name,
            dtype=str(array.type),
        ) from None


# --- schemas and headers --------------------------------------------------------------------------


def _require_classic(data: Any) -> None:
    if type(data).__module__.startswith("pyspark.sql.connect"):
        raise CallerTypeError(
            "kmsdata.spark supports Spark classic only: a driver in this process, such as "
            "SparkSession.builder.master(...). This is an object of Spark Connect (builder.remote(...), or "
            "SPARK_REMOTE), which has neither a driver here nor footers to read"
        )


def _session_of(sdf: DataFrame) -> SparkSession:
    return sdf.sparkSession


def _schema(sdf: DataFrame) -> T.StructType:
    """Return the schema of a DataFrame whose columns have distinct names."""
    _require_classic(sdf)
    if not isinstance(sdf, DataFrame):
        raise CallerTypeError(f"this takes a Spark DataFrame, not {type(sdf).__name__}")
    schema = sdf.schema
    for name in schema.names:
        refuse_repeated(schema.names, name)
    return schema


def _headers(schema: T.StructType, names: Iterable[str] | None = None) -> dict[str, Header]:
    """Return the headers of these columns (None: all), from the columns' metadata."""
    headers = {}
    for field in schema:
        text = field.metadata.get(SPARK_COLUMN_ENTRY)
        if names is not None and field.name not in names:
            continue
        if text is None:
            _refuse_inside(field.dataType, field.name)
            continue
        if not isinstance(field.dataType, T.BinaryType):
            raise FormatError(
                f"column {field.name!r} is {field.dataType.simpleString()}, but its metadata says that it is "
                "encrypted: it was replaced, and its values are not authenticated. Remove the metadata "
                f"{SPARK_COLUMN_ENTRY!r} of the column, or restore the column",
                column=field.name,
            )
        try:
            headers[field.name] = Header.parse(text if isinstance(text, str) else "")
        except FormatError as error:
            raise located(error, f"column {field.name!r}", column=field.name) from None
    return headers


def _refuse_inside(kind: T.DataType, name: str) -> None:
    """Raise FormatError if there are encrypted columns inside of a struct, which would stay encrypted."""
    inner = {T.ArrayType: "elementType", T.MapType: "valueType"}
    if (attribute := inner.get(type(kind))) is not None:
        _refuse_inside(getattr(kind, attribute), name)
    for field in kind if isinstance(kind, T.StructType) else ():
        if SPARK_COLUMN_ENTRY in field.metadata:
            raise FormatError(
                f"column {name!r} has the encrypted column {field.name!r} inside of a struct. Select it out "
                f"of the struct first: sdf.withColumn({field.name!r}, sdf[{name!r}][{field.name!r}])",
                column=name,
            )
        _refuse_inside(field.dataType, name)


def _named(schema: T.StructType, headers: Mapping[str, Header], columns: Columns | None) -> list[str]:
    names = list(headers) if columns is None else column_names(columns)
    for name in names:
        require(schema.names, name)
        if name not in headers:
            raise FormatError(
                f"column {name!r} is not encrypted: it has no kmsdata header. If it contains cells, attach "
                "the header of the original with kmsdata.spark.attach(), or read files with "
                "kmsdata.spark.read()",
                column=name,
            )
    if not names:
        raise FormatError(
            "nothing in the DataFrame is encrypted: no column has a kmsdata header. Read files with "
            "kmsdata.spark.read(); attach lost headers with kmsdata.spark.attach()"
        )
    return names


def _encrypted_field(field: T.StructField, header: Header) -> T.StructField:
    metadata = {SPARK_COLUMN_ENTRY: header.text}
    kind = arrow_type(header.columns[0].type["arrow"])
    if _spark_type(kind, field.name) != (plain := _without_metadata(field.dataType)):
        metadata[TYPE_ENTRY] = T.StructType([T.StructField("c", plain)]).json()
    return T.StructField(field.name, T.BinaryType(), field.nullable, metadata)


def _with_headers(sdf: DataFrame, headers: Mapping[str, Header]) -> DataFrame:
    """Return the DataFrame with these headers in its columns' metadata, and no others."""
    columns = []
    for field in sdf.schema:
        rest = {key: text for key, text in field.metadata.items() if key != SPARK_COLUMN_ENTRY}
        column = sdf[_quoted(field.name)]
        if field.name in headers:
            rest[SPARK_COLUMN_ENTRY] = headers[field.name].text
        columns.append(column if rest == field.metadata else column.alias(field.name, metadata=rest))
    return sdf.select(*columns)


def _headers_like(data: Any) -> dict[str, Header]:
    if isinstance(data, DataFrame):
        return _headers(_schema(data))
    return read_headers(data) if isinstance(data, (str, os.PathLike)) else headers_of(data)


def _without_spark(key: AnyKey | None) -> Any:
    """Return a key argument without Spark: of encrypted data, an empty table with its headers."""
    if not isinstance(key, DataFrame):
        return key
    schema = _schema(key)
    return _empty_table(schema, _headers(schema))


def _empty_table(
    schema: T.StructType, headers: Mapping[str, Header], plain: Mapping[str, pa.DataType] | None = None
) -> pa.Table:
    """Return a table without rows that has the headers, and the types of the columns that matter."""
    arrays = [
        EncryptedArray(pa.array([], pa.large_binary()), EncryptedDtype(headers[name])).__arrow_array__()
        if name in headers
        else pa.array([], (plain or {}).get(name, pa.null()))
        for name in schema.names
    ]
    return pa.table(arrays, names=schema.names)


def _texts_beside(fields: Iterable[T.StructField], chosen: Iterable[str]) -> list[bytes]:
    """Return the metadata of columns that stay plain: Spark ML lists values of other columns there."""
    return [
        json.dumps(field.metadata).encode() for field in fields if field.metadata and field.name not in chosen
    ]


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _zone(spark: SparkSession) -> str:
    """Return the session's time zone as Python knows it; UTC if it does not."""
    text = str(spark.conf.get("spark.sql.session.timeZone"))
    if found := re.fullmatch(r"(?:UTC|GMT|UT)?([+-])(\d{1,2})(?::?([0-5]\d))?", text):
        return f"{found[1]}{int(found[2]):02d}:{found[3] or '00'}"
    try:
        return zoneinfo.ZoneInfo(text).key
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return "UTC"


# --- footers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Footer:
    """What the footer of a file says: its columns, the headers, and the types in Spark that it records."""

    names: frozenset[str]
    headers: dict[str, Header]
    types: dict[str, Any]


def _folded(spark: SparkSession) -> Callable[[str], str]:
    """Return how Spark compares names of columns in files."""
    return str if str(spark.conf.get("spark.sql.caseSensitive")).lower() == "true" else str.lower


def _footers(spark: SparkSession, schema: T.StructType, files: Iterable[str]) -> dict[str, _Footer]:
    """Return what the footer of each file says."""
    fold = _folded(spark)
    shown = {fold(field.name): field for field in schema}

    @functools.lru_cache(_FOOTERS_AT_ONCE)  # the files of a dataset mostly have the same entries
    def parsed(names: frozenset[str], entries: tuple[tuple[bytes, bytes], ...]) -> _Footer:
        found = dict(entries)
        arrow, document = _arrow_fields(found.get(_ARROW_SCHEMA)), found.get(SPARK, b"")
        inside = spark_column_headers(document)
        ours = parse_file(found[ENTRY].decode("utf-8", "surrogateescape")) if ENTRY in found else {}
        for name in sorted(names & {*arrow, *inside, *ours}):
            field = shown.get(fold(name))
            if field is not None and field.name != name:
                raise _other_case(name, field.name)
            if field is not None and not isinstance(field.dataType, T.BinaryType):
                raise FormatError(
                    f"column {name!r} is encrypted in this file, but Spark reads it as "
                    f"{field.dataType.simpleString()}: a folder '{name}=...' or another file says otherwise, "
                    "or other software replaced it. Rename the folder, or read the files separately",
                    column=name,
                )
        fields = [
            arrow.get(field.name, pa.field(field.name, pa.binary()))
            for field in schema
            if field.name in names and isinstance(field.dataType, T.BinaryType)
        ]
        headers = headers_in(pa.schema(fields), "", footer=found)
        stored = json.loads(document)["fields"] if inside else []
        types = {one["name"]: one["metadata"].get(TYPE_ENTRY) for one in stored if one["name"] in inside}
        return _Footer(names, headers, types)

    def one(file: str) -> tuple[str, _Footer]:
        try:
            return file, parsed(*_footer(spark, file))
        except FormatError as error:
            message = str(error).removeprefix(": ")
            raise FormatError(f"{file}: {message}", path=file, column=error.column) from None

    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as threads:
        return dict(threads.map(one, files))


def _other_case(name: str, shown: str) -> FormatError:
    return FormatError(
        f"column {name!r} is column {shown!r} for Spark, which ignores case (spark.sql.caseSensitive), but "
        "kmsdata does not. Rename the column, or read this file separately",
        column=shown,
    )


def _footer(spark: SparkSession, file: str) -> tuple[frozenset[str], tuple[tuple[bytes, bytes], ...]]:
    """Read the footer of a file in Spark's JVM, with its credentials for remote files."""
    jvm: Any = spark._jvm
    parquet = jvm.org.apache.parquet
    place = jvm.org.apache.hadoop.fs.Path(jvm.java.net.URI(file))
    configuration = spark._jsparkSession.sessionState().newHadoopConf()
    source = parquet.hadoop.util.HadoopInputFile.fromPath(place, configuration)
    options = parquet.HadoopReadOptions.builder(configuration).build()
    stream = source.newStream()
    try:
        if (size := source.getLength()) >= 8:
            stream.seek(size - 8)
            refuse_length(int.from_bytes([max(stream.read(), 0) for _ in range(4)], "little"))
        metadata = parquet.hadoop.ParquetFileReader.readFooter(source, options, stream).getFileMetaData()
    finally:
        stream.close()
    known, stored = metadata.getKeyValueMetaData(), metadata.getSchema()
    texts = {key: known.get(key.decode()) for key in (ENTRY, _ARROW_SCHEMA, SPARK)}
    names = frozenset(stored.getFieldName(number) for number in range(stored.getFieldCount()))
    return names, tuple((key, text.encode("utf-8", "surrogateescape")) for key, text in texts.items() if text)


def _arrow_fields(text: bytes | None) -> dict[str, pa.Field]:
    """Return the encrypted columns of the Arrow schema that a file contains."""
    if text is None:
        return {}
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
        return {field.name: field for field in schema if isinstance(field.type, pa.BaseExtensionType)}
    except (binascii.Error, UnicodeError, pa.ArrowException, OSError, ValueError):
        raise FormatError("the entry 'ARROW:schema' is damaged: it is not an Arrow schema") from None


# --- types ----------------------------------------------------------------------------------------

_SIMPLE: list[tuple[T.DataType, pa.DataType]] = [
    (T.BooleanType(), pa.bool_()),
    (T.ByteType(), pa.int8()),
    (T.ShortType(), pa.int16()),
    (T.IntegerType(), pa.int32()),
    (T.LongType(), pa.int64()),
    (T.FloatType(), pa.float32()),
    (T.DoubleType(), pa.float64()),
    (T.BinaryType(), pa.binary()),
    (T.DateType(), pa.date32()),
    (T.TimestampNTZType(), pa.timestamp("us")),
    (T.NullType(), pa.null()),
]
_TIME: Any = getattr(T, "TimeType", None)  # since Spark 4.1
_LONGEST_TYPE = 1 << 20  # characters
_DEEPEST_TYPE = 100
_COLLATIONS = "__COLLATIONS"  # in the metadata of a field: names of collations, by the place of the text
_PLAIN_TYPE = re.compile(
    r"boolean|byte|short|integer|long|float|double|binary|date|timestamp|timestamp_ntz|void|variant"
    r"|string( collate \w+)?|(var)?char\(\d{1,10}\)|decimal\(\d{1,2},\d{1,2}\)|time\(\d\)"
    r"|interval (day|hour|minute|second)( to (day|hour|minute|second))?",
    re.ASCII,
)
_VARIANT = pa.struct(
    [
        pa.field("value", pa.binary(), nullable=False),
        pa.field("metadata", pa.binary(), nullable=False, metadata={b"variant": b"true"}),
    ]
)


def _arrow_type(kind: T.DataType, zone: str, column: str) -> pa.DataType:
    """Return the Arrow type in which Spark hands values of a type to Python, with 32-bit offsets."""

    def inside(name: str, one: T.DataType, nullable: bool) -> pa.Field:
        return pa.field(name, _arrow_type(one, zone, column), nullable)

    for one, arrow in _SIMPLE:
        if type(kind) is type(one):
            return arrow
    match kind:
        case T.StringType():
            return pa.string()
        case T.TimestampType():
            return pa.timestamp("us", tz=zone)
        case T.DayTimeIntervalType():
            return pa.duration("us")
        case T.DecimalType():
            return pa.decimal128(kind.precision, kind.scale)
        case T.VariantType():
            return _VARIANT
        case T.ArrayType():
            return pa.list_(inside("element", kind.elementType, kind.containsNull))
        case T.MapType():
            value = inside("value", kind.valueType, kind.valueContainsNull)
            return pa.map_(inside("key", kind.keyType, nullable=False), value)
        case T.StructType():
            for name in kind.names:
                refuse_repeated(kind.names, name, f"column {column!r}: ")
            return pa.struct([inside(one.name, one.dataType, one.nullable) for one in kind])
    if _TIME is not None and isinstance(kind, _TIME):
        return pa.time64("ns")
    raise UnsupportedTypeError(
        f"column {column!r} is {kind.simpleString()}, which kmsdata cannot encrypt in Spark. Cast it first, "
        "for example to string, int or binary",
        column=column,
        dtype=kind.simpleString(),
    )


def _spark_type(kind: pa.DataType, column: str) -> T.DataType:
    """Return the type that Spark has for an Arrow type: the one that its Parquet reader uses."""

    def inside(one: pa.DataType) -> T.DataType:
        return _spark_type(one, column)

    for one, arrow in _SIMPLE:
        if kind == arrow:
            return one
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return inside(kind.value_type)
    if kind == _VARIANT and kind.field("metadata").metadata == {b"variant": b"true"}:
        return T.VariantType()
    if pa.types.is_struct(kind):
        fields = [kind.field(number) for number in range(kind.num_fields)]
        return T.StructType([T.StructField(one.name, inside(one.type), one.nullable) for one in fields])
    if pa.types.is_map(kind):
        item = kind.item_field
        return T.MapType(inside(kind.key_type), inside(item.type), item.nullable)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return T.ArrayType(inside(kind.value_type), kind.value_field.nullable)
    text = (pa.types.is_string, pa.types.is_large_string, lambda kind: str(kind) == "string_view")
    data = (pa.types.is_large_binary, pa.types.is_fixed_size_binary, lambda kind: str(kind) == "binary_view")
    tests: list[tuple[tuple[Callable[[pa.DataType], bool], ...], T.DataType]] = [
        (text, T.StringType()),
        (data, T.BinaryType()),
        ((pa.types.is_uint8,), T.ShortType()),
        ((pa.types.is_uint16,), T.IntegerType()),
        ((pa.types.is_uint32,), T.LongType()),
        ((pa.types.is_uint64,), T.DecimalType(20, 0)),
        ((pa.types.is_float16,), T.FloatType()),
        ((pa.types.is_date64,), T.DateType()),
        ((pa.types.is_duration,), T.DayTimeIntervalType()),
    ]
    for checks, one in tests:
        if any(check(kind) for check in checks) and not isinstance(kind, pa.BaseExtensionType):
            return one
    if pa.types.is_timestamp(kind):
        return T.TimestampNTZType() if kind.tz is None else T.TimestampType()
    if pa.types.is_decimal(kind) and kind.precision <= 38 and 0 <= kind.scale <= kind.precision:
        return T.DecimalType(kind.precision, kind.scale)
    if pa.types.is_time(kind) and _TIME is not None:
        return _TIME()
    raise UnsupportedTypeError(
        f"column {column!r} is {kind}, which Spark has no type for. Decrypt it in pandas or Arrow, or leave "
        "it encrypted: name the other columns",
        column=column,
        dtype=str(kind),
    )


def _decrypted_type(field: T.StructField, kind: pa.DataType) -> T.DataType:
    """Return the type of a decrypted column: the recorded one, if it has the Arrow type of the header.

    The record is not authenticated, so it only says which of Spark's types of one Arrow type is meant.
    """
    usual = _spark_type(kind, field.name)
    text = field.metadata.get(TYPE_ENTRY)
    if text is None:
        return usual
    try:
        if not isinstance(text, str) or len(text) > _LONGEST_TYPE:
            raise ValueError
        if not _is_plain_type(schema := json.loads(text)):  # Spark would import the class of a UDT
            raise ValueError
        recorded = T.StructType.fromJson(schema)["c"].dataType
        alike = _arrow_type(recorded, "UTC", field.name) == _arrow_type(usual, "UTC", field.name)
    except Exception:  # noqa: BLE001 - PySpark raises errors of every kind for malformed JSON
        alike = False
    if not alike:
        raise FormatError(
            f"column {field.name!r}: its metadata {TYPE_ENTRY!r} is not a type of Spark with the Arrow type "
            "of the header: it was changed. Remove it, or restore the column",
            column=field.name,
        )
    return recorded


def _is_plain_type(kind: Any, depth: int = 0) -> bool:
    """Return whether a type, as parsed JSON, has only types built into Spark, in the form of Spark itself."""

    def has(value: Any, **members: type | tuple[type, ...]) -> bool:
        return (
            isinstance(value, dict)
            and value.keys() == members.keys()
            and all(isinstance(value[key], one) for key, one in members.items())
        )

    def inside(*kinds: Any) -> bool:
        return depth < _DEEPEST_TYPE and all(_is_plain_type(one, depth + 1) for one in kinds)

    if isinstance(kind, str):
        return _PLAIN_TYPE.fullmatch(kind) is not None
    any_type = (str, dict)
    if has(kind, type=str, elementType=any_type, containsNull=bool) and kind["type"] == "array":
        return inside(kind["elementType"])
    if has(kind, type=str, keyType=any_type, valueType=any_type, valueContainsNull=bool):
        return kind["type"] == "map" and inside(kind["keyType"], kind["valueType"])
    return (
        has(kind, type=str, fields=list)
        and kind["type"] == "struct"
        and all(
            has(field, name=str, type=any_type, nullable=bool, metadata=dict)
            and field["metadata"].keys() <= {_COLLATIONS}
            and inside(field["type"])
            for field in kind["fields"]
        )
    )


def _names_a_class(text: str) -> bool:
    """Return whether a schema, as JSON, has a user-defined type anywhere, or what is not understood."""
    try:
        left = [json.loads(text)]
    except (ValueError, RecursionError):
        return True
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if value.get("type") == "udt" or not value.keys().isdisjoint({"pyClass", "serializedClass"}):
                return True
            left += value.values()
        elif isinstance(value, list):
            left += value
    return False


def _category_values(header: Header) -> pa.DataType | None:
    """Return the Arrow type of a categorical's values: in Spark, it is a column of them."""
    kinds = {
        json.dumps(item.codec_type.get("pandas", {}).get("category", {}).get("values", {}).get("arrow"))
        for item in header.columns
    }
    return arrow_type(json.loads(kinds.pop())) if len(kinds) == 1 and kinds != {"null"} else None


def _without_metadata(kind: T.DataType) -> T.DataType:
    """Return a type without the metadata of fields inside, which may contain values."""
    match kind:
        case T.ArrayType():
            return T.ArrayType(_without_metadata(kind.elementType), kind.containsNull)
        case T.MapType():
            key, value = _without_metadata(kind.keyType), _without_metadata(kind.valueType)
            return T.MapType(key, value, kind.valueContainsNull)
        case T.StructType():
            return T.StructType(
                [T.StructField(one.name, _without_metadata(one.dataType), one.nullable) for one in kind]
            )
    return kind


def _check_passable(schema: T.StructType) -> None:
    """Refuse columns that Spark cannot pass through Python, where all columns of a DataFrame go."""

    def parts(kind: T.DataType) -> list[tuple[T.DataType, bool]]:
        match kind:
            case T.ArrayType():
                return [(kind.elementType, kind.containsNull)]
            case T.MapType():
                return [(kind.keyType, False), (kind.valueType, kind.valueContainsNull)]
            case T.StructType():
                return [(field.dataType, field.nullable) for field in kind]
        return []

    def bad(kind: T.DataType, nullable: bool) -> bool:
        if isinstance(kind, T.NullType):
            return not nullable  # array(): its elements are void and not null
        interval = isinstance(kind, (T.YearMonthIntervalType, T.CalendarIntervalType))
        return interval or any(bad(part, null) for part, null in parts(kind))

    for field in schema:
        if bad(field.dataType, True):
            raise UnsupportedTypeError(
                f"column {field.name!r} is {field.dataType.simpleString()}, which Spark cannot pass "
                "through Python, where this runs. Cast it to string or int, or leave it out with select()",
                column=field.name,
                dtype=field.dataType.simpleString(),
            )
