"""Files and datasets of any size: encrypted and decrypted column by column, a row group at a time.

Of a Parquet file only the columns concerned are decoded, in batches of some megabytes; the others are copied
as they stand (``chunks.py``). CSV goes into Parquet block by block.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from kmsdata.calls import usage
from kmsdata.chunks import PART, Footer, Replacement, read_footer, rewrite
from kmsdata.codec import Description
from kmsdata.column import open_arrow, open_pandas, plan, seal
from kmsdata.csv_blocks import CsvFile, Types, is_csv, open_csv
from kmsdata.dtype import EncryptedArray, EncryptedDtype, EncryptedType
from kmsdata.envelope import ColumnHeader, Header, Wrap, file_text
from kmsdata.errors import FormatError, KmsDataError, UnsupportedTypeError
from kmsdata.files import sweep
from kmsdata.keys import DataKey, random_bytes
from kmsdata.parquet import headers_in, settings_for
from kmsdata.places import FilePath, Place, files_at, stamp, whole, whole_folder
from kmsdata.progress import Progress
from kmsdata.report import StreamReport
from kmsdata.session import Key, session_key
from kmsdata.table import (
    Columns,
    Encrypted,
    check_names,
    chosen_columns,
    column_names,
    data_key_for,
    in_pandas_metadata,
    open_keys,
    pandas_dtypes,
    require,
)

__all__ = ["decrypt_parquet", "encrypt_parquet"]

Step = Callable[[int], None]
"""Is told of rows that are done."""

_ENTRY = b"kmsdata"
_SPARK = b"org.apache.spark.sql.parquet.row.metadata"
_BATCH = 8 << 20  # bytes of a column that are decoded at once
_TELLING = 5  # letters: shorter texts are in metadata by chance
_MOST_ROWS = 1 << 17
_GROUP_ROWS = 1 << 20  # of the row groups that CSV becomes


def encrypt_parquet(
    source: FilePath,
    target: FilePath,
    columns: Columns = (),
    *,
    deterministic: Columns | bool = (),
    key: Key | Encrypted | None = None,
    domain: str | Mapping[str, str] | None = None,
    context: Mapping[str, str] | None = None,
    filesystem: Any = None,
    target_filesystem: Any = None,
    types: Types | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: bool | None = None,
) -> StreamReport:
    """Encrypt columns of a file or dataset of any size into another one, under one data key.

    Plain columns are copied byte for byte, with their encodings, statistics and indexes; row groups,
    key-value metadata, field ids and the layout of folders stay. Of the encrypted columns nothing is left
    in clear.

    Args:
        source: a Parquet or CSV file; a folder of them, with folders such as ``year=2026`` too; a pattern
            with ``*`` or ``**``; or a URL of any such, for which fsspec has a filesystem.
        target: the file; of a folder or pattern the folder, which has the same files in the same places
            (``.csv`` becomes ``.parquet``).
        columns: name or names of the columns to encrypt with random IVs.
        deterministic: names of those to encrypt so that equal values have equal cells; True for all of
            ``columns``.
        key: as `FrameAccessor.encrypt` takes it. However many files there are, it is asked once.
        domain: what deterministic columns may be joined across: by column, or one text for one column.
        context: pairs that stand in clear beside the wrapped key, and that opening it takes.
        filesystem: of the source: pyarrow's or fsspec's; else by the path.
        target_filesystem: of the target; else that of the source if it was given, else by the path.
        types: of CSV columns, as Arrow types or their names, where the first 4 MB do not tell.
        overwrite: replace files that are there.
        dry_run: write nothing and ask no key service, but report what would be written, about.
        progress: show a bar; None: where it takes longer than a second and somebody may be looking.

    Returns:
        What was written: rows, files, bytes, columns, and calls of the key service.

    Raises:
        KeyError: no such column.
        ValueError: a column whose values would stay in clear elsewhere: its values name folders, or it is the
            index of pandas; or one that is encrypted already.
        FormatError: a file that is damaged, or that differs from the others in a column's type.
        FileExistsError: there is something at the target.
        OSError: a file cannot be read or written, or was changed while it was read.
        UnsupportedTypeError, KeyServiceError: as for frames.

    Whatever is raised, nothing is left of what was written; what was at the target is as it was.

    Example:
        >>> import pandas as pd, kmsdata
        >>> pd.DataFrame({"ssn": ["078-05-1120", None], "city": ["Ulm", "Bonn"]}).to_parquet("plain.parquet")
        >>> done = kmsdata.encrypt_parquet("plain.parquet", "sealed.parquet", "ssn", key="local://demo")
        >>> done.rows, done.files, done.columns, done.kms_calls
        (2, 1, ('ssn',), 1)
        >>> kmsdata.read_parquet("sealed.parquet", decrypt=True)["ssn"][0]
        '078-05-1120'
    """
    job = _Job.of(source, target, filesystem, target_filesystem, overwrite=overwrite)
    survey = _Survey.of(job, types)
    chosen = _checked(job, survey, columns, deterministic, domain)
    if dry_run:
        sealers = _sealers(job, survey, chosen, DataKey(random_bytes(32), [Wrap("local://none", "")]))
        size = sum(_estimate(job, survey, name, sealers) for name in job.files)
        return job.report(survey.total, size, list(chosen), _calls_for(key), dry_run=True)
    before = usage().calls
    data_key = data_key_for(key, context, survey.total * len(chosen))
    calls = usage().calls - before
    sealers = _sealers(job, survey, chosen, data_key)

    def one(name: str, place: Place, sink: Any, step: Step) -> int:
        if is_csv(name):
            return _encrypt_csv(place, sink, sealers, survey.types, step)
        return _encrypt_file(place, sink, sealers, step)

    rows, size = job.run("encrypt", survey.total, one, progress)
    return job.report(rows, size, list(chosen), calls)


def decrypt_parquet(
    source: FilePath,
    target: FilePath,
    columns: Columns | None = None,
    *,
    key: Key | Encrypted | None = None,
    context: Mapping[str, str] | None = None,
    filesystem: Any = None,
    target_filesystem: Any = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: bool | None = None,
) -> StreamReport:
    """Decrypt columns of a file or dataset of any size into another one.

    Every cell of a row group is authenticated before any of it is written; one that fails, fails all.

    Args:
        source: a Parquet file, a folder, a pattern, or a URL of such, as for `encrypt_parquet`.
        target: the file; of a folder or pattern the folder.
        columns: name or names, which must be encrypted in every file; None: every encrypted column.
        key: only these may open it, as `FrameAccessor.decrypt` takes it. Asked once for each data key.
        context: pairs that the authenticated context must hold.
        filesystem: of the source: pyarrow's or fsspec's; else by the path.
        target_filesystem: of the target; else that of the source if it was given, else by the path.
        overwrite: replace files that are there.
        dry_run: write nothing and ask no key service, but report what would be written, at most.
        progress: show a bar; None: where it takes longer than a second and somebody may be looking.

    Returns:
        What was written: rows, files, bytes, columns, and calls of the key service.

    Raises:
        FormatError: a file without any encrypted column, or without a named one; or that is damaged.
        TamperedError: cells that fail authentication; ``rows`` are positions in the file.
        WrongKeyError, KeyServiceError: as for frames.
        FileExistsError: there is something at the target.
        OSError: a file cannot be read or written, or was changed while it was read.

    Whatever is raised, nothing is left of what was written; what was at the target is as it was.

    Example:
        >>> import pandas as pd, kmsdata
        >>> df = pd.DataFrame({"age": [36, 41]})
        >>> df.kms.encrypt("age", key="local://demo").kms.to_parquet("ages.parquet")
        >>> kmsdata.decrypt_parquet("ages.parquet", "plain.parquet").columns
        ('age',)
        >>> pd.read_parquet("plain.parquet")["age"].tolist()
        [36, 41]
    """
    job = _Job.of(source, target, filesystem, target_filesystem, overwrite=overwrite)
    survey = _Survey.of(job, None)
    wanted = None if columns is None else column_names(columns)
    by_file = {
        name: _headers_wanted(job.files[name], survey.headers[name], survey.schemas[name], wanted)
        for name in job.files
    }
    different = dict.fromkeys(item for headers in by_file.values() for item in headers.items())
    names = list(dict.fromkeys(name for name, _ in different))
    if dry_run:
        known = {record.commitment for _, header in different for record in header.records}
        size = sum(_plain_size(job.files[name], headers) for name, headers in by_file.items())
        return job.report(survey.total, size, names, len(known), dry_run=True)
    before = usage().calls
    keys = open_keys(list(different), key, context)
    calls = usage().calls - before
    plain_types = _plain_types(job, by_file, keys)

    def one(name: str, place: Place, sink: Any, step: Step) -> int:
        return _decrypt_file(place, sink, by_file[name], keys, plain_types, step)

    rows, size = job.run("decrypt", survey.total, one, progress)
    return job.report(rows, size, names, calls)


# --- from files to files --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """Where to read and where to write.

    Attributes:
        files: what is read, by the path below the source's folder.
        target: the file or folder to write.
        single: whether it is one file.
    """

    source: Place
    files: dict[str, Place]
    target: Place
    single: bool
    overwrite: bool

    @classmethod
    def of(
        cls, source: FilePath, target: FilePath, filesystem: Any, target_filesystem: Any, *, overwrite: bool
    ) -> _Job:
        start = Place.of(source, filesystem)
        end = Place.of(target, filesystem if target_filesystem is None else target_filesystem)
        files, single = files_at(start)
        if single and (end.folder or end.kind == pafs.FileType.Directory):
            end = end / _written(next(iter(files)))
        for file in files.values():
            if end.holds(file) or file.holds(end):
                raise ValueError(f"the target {end} is, or holds, the source: name another place")
        if not single and start.holds(end):
            raise ValueError(f"the target {end} lies inside of the source: name another place")
        job = cls(start, files, end, single, overwrite)
        job._check_target()
        return job

    def _check_target(self) -> None:
        kind = self.target.kind
        if self.single:
            if is_csv(self.target.path):
                raise ValueError(f"the target {self.target} would be Parquet: name it .parquet, and not .csv")
            if kind != pafs.FileType.NotFound and not self.overwrite:
                raise FileExistsError(
                    errno.EEXIST, "there is a file already: overwrite=True replaces it", str(self.target)
                )
            return
        twice = len({_written(name) for name in self.files}) < len(self.files)
        if twice:
            raise ValueError("a CSV and a Parquet file of one name would become one file: rename one of them")
        if kind == pafs.FileType.NotFound:
            return
        if kind == pafs.FileType.File:
            raise FileExistsError(
                errno.EEXIST, "a folder is to be written, and there is a file", str(self.target)
            )
        try:
            there, _ = files_at(self.target)
        except FileNotFoundError:
            return
        others = there.keys() - {_written(name) for name in self.files}
        if not self.overwrite or others:
            why = (
                "it holds files already: overwrite=True replaces those of the same names"
                if not self.overwrite
                else f"it holds files that would not be replaced, such as {min(others)}: readers would take "
                "them for part of the dataset"
            )
            raise FileExistsError(errno.EEXIST, why, str(self.target))

    def run(
        self,
        title: str,
        rows: int,
        one: Callable[[str, Place, Any, Step], int],
        progress: bool | None,
    ) -> tuple[int, int]:
        """Write every file; returns the rows and the size of all."""
        size = done = 0
        if self.target.local:
            sweep(self.target.path, beside=True)
        with Progress(title, rows, "rows", progress) as bar, contextlib.ExitStack() as stack:

            def step(count: int) -> None:
                nonlocal done
                done += count
                bar.step(count)

            if self.single:
                opened: Callable[[str], Any] = lambda _: whole(self.target)  # noqa: E731
            else:
                opened = stack.enter_context(whole_folder(self.target))
            for name, place in self.files.items():
                before = stamp(place)
                with opened(_written(name)) as sink:
                    size += one(name, place, sink, step)
                    if stamp(place) != before:
                        raise OSError(errno.EBUSY, "it was changed while it was read: try again", str(place))
        return done, size

    def report(
        self, rows: int, size: int, columns: Sequence[str], calls: int, *, dry_run: bool = False
    ) -> StreamReport:
        return StreamReport(str(self.target), rows, len(self.files), size, tuple(columns), calls, dry_run)


def _written(name: str) -> str:
    """What a file is called in the target."""
    return name[: name.lower().rindex(".csv")] + ".parquet" if is_csv(name) else name


@contextlib.contextmanager
def _reading(path: str, column: str | None = None) -> Iterator[None]:
    """Arrow's errors about what it reads, as ours. The system's own pass."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        where = f"{path}: column {column!r}" if column else path
        raise FormatError(
            f"{where} cannot be read: the file is damaged or was cut short", path=path, column=column
        ) from error


@contextlib.contextmanager
def _opened(place: Place) -> Iterator[tuple[pa.NativeFile, pq.ParquetFile, Footer]]:
    path = str(place)
    with place.filesystem.open_input_file(place.path) as file:
        footer = read_footer(file, path)
        with _reading(path):
            # Pages come one by one: a chunk may be larger than memory.
            parquet = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        if parquet.schema_arrow.names != [name for name, _ in footer.columns]:
            raise FormatError(f"{path}: its schema and its Arrow schema differ", path=path)
        yield file, parquet, footer


@dataclass
class _Survey:
    """What the footers of all files say.

    Attributes:
        total: rows; of CSV about.
        schemas: by file.
        headers: by file, of its encrypted columns.
        types: of CSV columns: one for all files, as the first file says.
    """

    total: int
    schemas: dict[str, pa.Schema]
    headers: dict[str, dict[str, Header]]
    types: Types | None

    @classmethod
    def of(cls, job: _Job, types: Types | None) -> _Survey:
        survey = cls(0, {}, {}, types)
        seen: dict[bytes, pa.Schema] = {}  # thousands of files share few schemas
        for name, place in job.files.items():
            if is_csv(name):
                csv = open_csv(place, survey.types)
                survey.types = {field.name: field.type for field in csv.schema}
                survey.total += int(place.filesystem.get_file_info(place.path).size / csv.width)
                schema, headers = csv.schema, {}
            else:
                with _opened(place) as (_, parquet, _):
                    schema = parquet.schema_arrow
                    survey.total += parquet.metadata.num_rows
                headers = headers_in(schema, str(place))
            survey.schemas[name] = seen.setdefault(schema.serialize().to_pybytes(), schema)
            survey.headers[name] = headers
        return survey


def _checked(
    job: _Job,
    survey: _Survey,
    columns: Columns,
    deterministic: Columns | bool,
    domain: str | Mapping[str, str] | None,
) -> dict[str, str | None]:
    """The columns to encrypt; ValueError for one whose values stand elsewhere too."""
    folders = {
        part.partition("=")[0]
        for place in job.files.values()
        for part in place.path.split("/")[:-1]
        if "=" in part
    }
    first, *others = job.files
    inside = survey.schemas[first]
    wanted = chosen_columns(
        [*inside.names, *(folders - set(inside.names))], columns, deterministic, domain, []
    )
    for name in wanted:
        if name in folders:
            raise ValueError(
                f"column {name!r} is what the folders are named by ({name}=...): its values stand in the "
                "paths, in clear. Write the dataset without it in partition_cols first"
            )
    for name, schema in survey.schemas.items():
        path = str(job.files[name])
        for column in wanted:
            if column in survey.headers[name]:
                raise ValueError(
                    f"{path}: column {column!r} is encrypted already: decrypt it first, or leave it out"
                )
            if column in _index_columns(schema):
                raise ValueError(
                    f"{path}: column {column!r} is the index of pandas, which is not encrypted: write the "
                    "file after df.reset_index() first"
                )
    for other in others:
        _check_alike(job, survey, first, other, list(wanted))
    return wanted


def _check_alike(job: _Job, survey: _Survey, one: str, two: str, wanted: list[str]) -> None:
    first, second = survey.schemas[one], survey.schemas[two]
    if first is second:
        return
    paths = f"{job.files[one]} and {job.files[two]}"
    for name in wanted:
        if name not in second.names:
            raise FormatError(
                f"{paths} differ: the second has no column {name!r}", path=str(job.files[two]), column=name
            )
    for field in second:
        if first.names.count(field.name) != 1 or second.names.count(field.name) != 1:
            continue
        before = first.field(field.name).type
        if before != field.type and not isinstance(before, EncryptedType):
            raise FormatError(
                f"{paths} differ: column {field.name!r} is {before} in the first and {field.type} in the "
                "second: write them alike first, or encrypt them apart",
                path=str(job.files[two]),
                column=field.name,
            )


def _index_columns(schema: pa.Schema) -> list[str]:
    stored = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
    return [level for level in stored.get("index_columns", []) if isinstance(level, str)]


# --- encryption -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sealer:
    """A column of all files, ready to be sealed part by part."""

    name: str
    header: ColumnHeader
    described: Description
    dtype: EncryptedDtype
    data_key: DataKey

    def seal(self, values: pa.Array) -> Any:
        """Cells, of the column's type in Arrow."""
        cells = seal(self.header, self.described, pa.chunked_array([values]), self.name, self.data_key)
        return EncryptedArray(cells, self.dtype).__arrow_array__()

    @functools.cached_property
    def type(self) -> EncryptedType:
        """The column's type in Arrow."""
        return EncryptedArray(pa.array([], self.dtype._storage_type), self.dtype).__arrow_array__().type


def _sealers(
    job: _Job, survey: _Survey, chosen: Mapping[str, str | None], data_key: DataKey
) -> dict[str, _Sealer]:
    first = next(iter(survey.schemas.values()))
    dtypes = pandas_dtypes(first.metadata)
    made = {}
    for name, scope in chosen.items():
        kind = first.field(name).type
        like = pa.chunked_array([], kind)
        if pa.types.is_dictionary(kind):
            like = _dictionary(job, name, kind)
        header, described = plan(like, name, data_key, domain=scope, dtype=dtypes.get(name))
        dtype = EncryptedDtype(Header.of([header], [data_key.record]))
        made[name] = _Sealer(name, header, described, dtype, data_key)
    return made


def _dictionary(job: _Job, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    """No rows, and the dictionary that those of all files make together: the header holds it for all."""
    entries = pa.array([], kind.value_type)
    for place in job.files.values():
        with _opened(place) as (_, parquet, _):
            for group in range(parquet.num_row_groups):
                for array in _batches(parquet, group, name, str(place)):
                    new = array.dictionary
                    if new.equals(entries.slice(0, len(new))):
                        continue
                    both = pa.chunked_array([entries, new])
                    entries = both.unique() if len(entries) else new
    empty = pa.DictionaryArray.from_arrays(pa.array([], kind.index_type), entries, ordered=kind.ordered)
    return pa.chunked_array([empty])


def _batches(parquet: pq.ParquetFile, group: int, name: str, path: str) -> Iterator[Any]:
    """A column of a row group, in arrays of some megabytes; one of no rows where there is none."""
    rows = parquet.metadata.row_group(group).num_rows
    if not rows:
        yield pa.array([], parquet.schema_arrow.field(name).type)
        return
    size = _rows_at_once(parquet, group, name, rows, path)
    with _reading(path, name):
        reader = parquet.iter_batches(size, row_groups=[group], columns=[name], use_threads=False)
        batches = iter(reader)
    while True:
        with _reading(path, name):
            batch = next(batches, None)
        if batch is None:
            return
        if batch.schema.names != [name]:
            raise ValueError(
                f"{path}: {name!r} is a column, and so is a part of another one: rename it first"
            )
        yield batch.column(0)


def _rows_at_once(parquet: pq.ParquetFile, group: int, name: str, rows: int, path: str) -> int:
    metadata = parquet.metadata.row_group(group)
    if rows <= 256 and metadata.total_byte_size < _BATCH:
        return rows
    average = 1.0
    for number in range(metadata.num_columns):
        chunk = metadata.column(number)
        if chunk.path_in_schema.split(".")[0] == name.split(".")[0]:
            average += chunk.total_uncompressed_size / rows
    few = max(1, min(256, int(_BATCH / average)))
    with _reading(path, name):
        first = next(iter(parquet.iter_batches(few, row_groups=[group], columns=[name], use_threads=False)))
    values = first.column(0)
    width = values.nbytes / max(len(values), 1)
    if pa.types.is_dictionary(values.type):
        width = values.dictionary.nbytes / max(len(values.dictionary), 1) + 4
    return max(1, min(_MOST_ROWS, int(_BATCH / max(average, width, 1.0))))


def _parts(arrays: Iterable[Any]) -> Iterator[pa.ChunkedArray]:
    """Arrays, put together until they are some `PART` bytes."""
    held: list[Any] = []
    size = rows = 0
    try:
        for array in arrays:
            held += array.chunks if isinstance(array, pa.ChunkedArray) else [array]
            size += array.nbytes
            rows += len(array)
            del array
            if size >= PART or rows >= 32 << 20:
                full, held, size, rows = pa.chunked_array(held), [], 0, 0
                yield full
                del full
        if held:
            yield pa.chunked_array(held)
    finally:
        held.clear()  # no error keeps plaintext in its frames


def _encrypt_file(place: Place, sink: Any, sealers: Mapping[str, _Sealer], step: Step) -> int:
    with _opened(place) as (file, parquet, footer):
        schema = parquet.schema_arrow
        for name, sealer in sealers.items():
            schema = _with_type(schema, name, sealer.type)
        old = headers_in(parquet.schema_arrow, str(place))
        headers = {**old, **{name: sealer.dtype.header for name, sealer in sealers.items()}}

        def sealed(group: int, sealer: _Sealer) -> Iterator[Any]:
            def each() -> Iterator[Any]:
                for values in _batches(parquet, group, sealer.name, str(place)):
                    _check_told(values, told, sealer.name, str(place))
                    yield sealer.seal(values)

            return _parts(each())

        def anew(group: int) -> dict[str, Callable[[], Iterator[Any]]]:
            return {name: functools.partial(sealed, group, sealer) for name, sealer in sealers.items()}

        def edited(metadata: Mapping[bytes, bytes] | None) -> dict[bytes, bytes]:
            return _edited(metadata, list(sealers), headers)

        schema = schema.with_metadata(edited(parquet.schema_arrow.metadata) or None)
        entries = edited({key: text for key, text in footer.metadata.items() if key != b"ARROW:schema"})
        told = _told(schema, entries)
        return rewrite(
            file,
            str(place),
            footer,
            sink,
            {name: _replacement(schema.field(name)) for name in sealers},
            anew,
            schema,
            entries,
            step,
        )


def _told(schema: pa.Schema, metadata: Mapping[bytes, bytes]) -> pa.Array:
    """What key-value metadata says, text by text: nobody knows beforehand what values it may hold."""
    known = (b"ARROW:schema", b"pandas", _ENTRY)
    entries = dict(metadata)
    stored = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
    entries[b"pandas attributes"] = json.dumps(stored.get("attributes", {})).encode()
    said = [text for key, text in [*entries.items(), *(schema.metadata or {}).items()] if key not in known]
    said += [text for field in schema for text in (field.metadata or {}).values()]
    texts: set[str] = set()
    for raw in dict.fromkeys(said):
        text = raw.decode("utf-8", "replace")
        texts |= {text, *re.split(r"[\s,;|\"'\[\]{}()]+", text)}
        with contextlib.suppress(ValueError, RecursionError):
            texts |= set(_texts(json.loads(text)))
    # Schemas in JSON, as Spark and others keep them, say names and types, which tell nothing.
    texts -= {*schema.names, "string", "integer", "binary", "double", "float", "boolean", "timestamp"}
    return pa.array([text for text in texts if len(text) >= _TELLING], pa.large_string())


def _texts(document: Any) -> Iterator[str]:
    if isinstance(document, dict):
        for key, item in document.items():
            yield key
            yield from _texts(item)
    elif isinstance(document, list):
        for item in document:
            yield from _texts(item)
    else:
        yield str(document)


def _check_told(values: pa.Array, told: pa.Array, name: str, path: str) -> None:
    if not len(told):
        return
    if pa.types.is_dictionary(values.type):
        values = values.dictionary
    try:
        texts = values.cast(pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return  # no text, and so not to be found as text
    if pc.any(pc.is_in(texts, told)).as_py():
        raise ValueError(
            f"{path}: the file's key-value metadata holds values of column {name!r}, in clear: write the "
            "file without them first (df.attrs, Table.replace_schema_metadata)"
        )


def _encrypt_csv(
    place: Place, sink: Any, sealers: Mapping[str, _Sealer], types: Types | None, step: Step
) -> int:
    csv: CsvFile = open_csv(place, types)
    schema = csv.schema
    for name, sealer in sealers.items():
        schema = _with_type(schema, name, sealer.type)
    schema = schema.with_metadata(_edited({}, list(sealers), {n: s.dtype.header for n, s in sealers.items()}))
    settings = settings_for(schema, {})
    counted = _Counted(sink)
    with pq.ParquetWriter(counted, schema, **settings) as writer:
        held: list[pa.Table] = []

        def flush() -> None:
            table = pa.concat_tables(held)
            writer.write_table(table, row_group_size=max(len(table), 1))
            held.clear()

        for batch in csv.batches:
            columns = [
                sealers[name].seal(values) if name in sealers else values
                for name, values in zip(batch.schema.names, batch.columns, strict=True)
            ]
            held.append(pa.Table.from_arrays(columns, schema=schema))
            step(len(batch))
            if sum(t.nbytes for t in held) >= PART or sum(map(len, held)) >= _GROUP_ROWS:
                flush()
        if held:
            flush()
    return counted.size


class _Counted:
    """A sink that counts what is written to it. ParquetWriter leaves it open."""

    closed = False

    def __init__(self, sink: Any) -> None:
        self._sink, self.size = sink, 0

    def write(self, data: Any) -> int:
        self._sink.write(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def _with_type(schema: pa.Schema, name: str, kind: pa.DataType) -> pa.Schema:
    position = schema.get_field_index(name)
    return schema.set(position, schema.field(position).with_type(kind))


@functools.lru_cache(256)  # for thousands of small files
def _replaced_by(name: str, kind: pa.DataType, nullable: bool) -> Replacement:
    field = pa.field(name, kind, nullable)
    return Replacement(field, settings_for(pa.schema([field]), {}))


def _replacement(field: pa.Field) -> Replacement:
    return _replaced_by(field.name, field.type, field.nullable)


def _edited(
    metadata: Mapping[bytes, bytes] | None,
    names: list[str],
    headers: Mapping[str, Header],
    *,
    back: bool = False,
) -> dict[bytes, bytes]:
    """Key-value metadata of a file with other columns encrypted than before."""
    out = dict(in_pandas_metadata(metadata or {}, names, back=back) or {})
    if _SPARK in out and not back:
        out[_SPARK] = _spark_metadata(out[_SPARK], names)
    out.pop(_ENTRY, None)
    if headers:
        out[_ENTRY] = file_text(headers).encode()
    return out


def _spark_metadata(text: bytes, names: list[str]) -> bytes:
    """Spark reads columns by the types that it has written here, and keeps lists of values beside them."""
    try:
        document = json.loads(text)
        for field in document["fields"]:
            if field["name"] in names:
                field |= {"type": "binary", "metadata": {}}
    except (ValueError, TypeError, KeyError, AttributeError):
        return text
    return json.dumps(document, separators=(",", ":")).encode()


# --- decryption -----------------------------------------------------------------------------------


def _headers_wanted(
    place: Place, headers: dict[str, Header], schema: pa.Schema, wanted: list[str] | None
) -> dict[str, Header]:
    path = str(place)
    check_names(headers, path=path)
    for name in wanted or ():
        require(schema.names, name)
        if name not in headers:
            raise FormatError(
                f"{path}: column {name!r} is not encrypted: it has no kmsdata header", path=path, column=name
            )
    if not headers:
        raise FormatError(f"{path} has no kmsdata header: no column of it is encrypted", path=path)
    for name in headers:
        if schema.names.count(name) > 1:
            raise ValueError(
                f"{path}: {schema.names.count(name)} columns are called {name!r}: rename them apart first"
            )
    return headers if wanted is None else {name: headers[name] for name in wanted}


def _open(
    parquet: pq.ParquetFile, group: int, name: str, header: Header, keys: Mapping[bytes, DataKey], path: str
) -> Iterator[Any]:
    """The values of an encrypted column of a row group, batch by batch, each of them authentic."""
    row = sum(parquet.metadata.row_group(number).num_rows for number in range(group))
    dtype = EncryptedDtype(header)
    for cells in _batches(parquet, group, name, path):
        storage = EncryptedArray(cells, dtype).storage
        try:
            values = open_arrow(header, keys, storage, name, first=row)
        except KmsDataError as error:
            raise _in_file(error, path) from None
        yield from values.chunks if isinstance(values, pa.ChunkedArray) else [values]
        del values  # an error of the next batch keeps no plaintext in its frames
        row += len(cells)


def _in_file(error: KmsDataError, path: str) -> KmsDataError:
    return type(error)(f"{path}: {error}", **{**error.__dict__, "path": path})


Plain = Mapping[tuple[str, Header], pa.DataType]


def _plain_types(
    job: _Job, by_file: Mapping[str, Mapping[str, Header]], keys: Mapping[bytes, DataKey]
) -> dict[tuple[str, Header], pa.DataType]:
    """What Arrow type each column has decrypted.

    The header says it, but for columns of Python objects, which are of the type that all of their values make
    together: these are decrypted once more for it.
    """
    types: dict[tuple[str, Header], pa.DataType] = {}
    for name, headers in by_file.items():
        path = str(job.files[name])
        for column, header in headers.items():
            if all("object" not in item.type.get("pandas", {}) for item in header.columns):
                if (column, header) not in types:
                    dtype = EncryptedDtype(header)
                    empty = pa.array([], dtype._storage_type)
                    types[column, header] = open_arrow(header, keys, empty, column).type
                continue
            kind = types.get((column, header), pa.null())
            with _opened(job.files[name]) as (_, parquet, _):
                for group in range(parquet.num_row_groups):
                    for values in _open(parquet, group, column, header, keys, path):
                        kind = _both(kind, values.type, column)
            types[column, header] = kind
    return types


def _both(one: pa.DataType, two: pa.DataType, column: str) -> pa.DataType:
    try:
        schemas = [pa.schema([("c", one)]), pa.schema([("c", two)])]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        raise UnsupportedTypeError(
            f"column {column!r} holds objects that are {one} and objects that are {two}, and so has no Arrow "
            "type: decrypt it as a pandas frame",
            column=column,
            dtype="object",
        ) from None


def _decrypt_file(
    place: Place,
    sink: Any,
    headers: Mapping[str, Header],
    keys: Mapping[bytes, DataKey],
    types: Plain,
    step: Step,
) -> int:
    path = str(place)
    with _opened(place) as (file, parquet, footer):
        before = schema = parquet.schema_arrow
        replaced = {}
        for name, header in headers.items():
            field = before.field(name).with_type(types[name, header])
            replaced[name] = _replacement(field)
            schema = _with_type(schema, name, _as_read(field))
        rest = {name: header for name, header in headers_in(before, path).items() if name not in headers}

        def opened(group: int, name: str) -> Iterator[Any]:
            kind = types[name, headers[name]]
            for values in _open(parquet, group, name, headers[name], keys, path):
                yield values if values.type == kind else values.cast(kind)
                del values

        def again(group: int, name: str) -> Iterator[Any]:
            return _parts(opened(group, name))

        def anew(group: int) -> dict[str, Callable[[], Iterator[Any]]]:
            # All of the row group is opened before anything of it is written. What is too large to be kept is
            # opened a second time.
            held: dict[str, list[Any]] = {name: [] for name in headers}
            size = 0
            try:
                for name in headers:
                    for values in opened(group, name):
                        size += values.nbytes
                        if size <= PART:
                            held[name].append(values)
                        else:
                            held.pop(name, None)
                        del values
            except BaseException:
                held.clear()
                raise
            return {
                name: functools.partial(_parts, held[name])
                if name in held
                else functools.partial(again, group, name)
                for name in headers
            }

        was = _pandas_entries(headers, keys)

        def edited(metadata: Mapping[bytes, bytes] | None) -> dict[bytes, bytes]:
            return _with_entries(_edited(metadata, list(headers), rest, back=True), was)

        return rewrite(
            file,
            path,
            footer,
            sink,
            replaced,
            anew,
            schema.with_metadata(edited(before.metadata) or None),
            edited({key: text for key, text in footer.metadata.items() if key != b"ARROW:schema"}),
            step,
        )


def _pandas_entries(
    headers: Mapping[str, Header], keys: Mapping[bytes, DataKey]
) -> dict[str, dict[str, Any]]:
    """What pandas' metadata says of columns that were encrypted in pandas: their headers know it."""
    entries = {}
    for name, header in headers.items():
        if not all("pandas" in item.type for item in header.columns):
            continue
        empty = pa.array([], EncryptedDtype(header)._storage_type)
        with contextlib.suppress(UnsupportedTypeError, pa.ArrowException, TypeError, ValueError):
            frame = pd.DataFrame({name: open_pandas(header, keys, empty, name)})
            made = pa.Schema.from_pandas(frame, preserve_index=False).metadata[b"pandas"]
            entry = json.loads(made)["columns"][0]
            if entry["pandas_type"] != "empty":  # objects, of which none is at hand
                entries[name] = entry
    return entries


def _with_entries(metadata: dict[bytes, bytes], entries: Mapping[str, Any]) -> dict[bytes, bytes]:
    if b"pandas" not in metadata:
        return metadata
    document = json.loads(metadata[b"pandas"])
    for entry in document.get("columns", []):
        if was := entries.get(entry.get("field_name")):
            entry |= {key: was[key] for key in ("pandas_type", "numpy_type", "metadata")}
    return {**metadata, b"pandas": json.dumps(document).encode()}


def _as_read(field: pa.Field) -> pa.DataType:
    """The type that a column has when it is read from a file again: some units of time become others."""
    sink = pa.BufferOutputStream()
    try:
        pq.write_table(pa.schema([field]).empty_table(), sink)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        raise UnsupportedTypeError(
            f"column {field.name!r} is {field.type}, which Parquet does not hold: decrypt it as a "
            "frame or table",
            column=field.name,
            dtype=str(field.type),
        ) from None
    return pq.read_schema(pa.BufferReader(sink.getvalue())).field(0).type


# --- what it would take ---------------------------------------------------------------------------


def _calls_for(key: Key | Encrypted | None) -> int:
    """Calls of the key service that encryption under this key takes."""
    if key is None and session_key() is None:
        data_key_for(None, None)  # says what is missing
    if isinstance(key, (list, tuple, set)):
        return len(dict.fromkeys(key))
    return 0 if isinstance(key, DataKey) else 1


def _estimate(job: _Job, survey: _Survey, name: str, sealers: Mapping[str, _Sealer]) -> int:
    """The size of a file once it is encrypted, from a first batch of each column."""
    place = job.files[name]
    if is_csv(name):
        size: int = place.filesystem.get_file_info(place.path).size
        return size + int(33 * len(sealers) * size / open_csv(place, survey.types).width)
    with _opened(place) as (file, parquet, footer):
        size = file.size()
        for column, sealer in sealers.items():
            size -= _chunk_sizes(parquet, footer, column)[0]
            for group in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(group).num_rows
                if rows:
                    cells = sealer.seal(next(_batches(parquet, group, column, str(place))))
                    size += cells.nbytes * rows // max(len(cells), 1)
        return size


def _plain_size(place: Place, headers: Mapping[str, Header]) -> int:
    with _opened(place) as (file, parquet, footer):
        size: int = file.size()
        for name, header in headers.items():
            compressed, whole_size = _chunk_sizes(parquet, footer, name)
            overhead = 21 if header.deterministic else 33
            size += max(whole_size - overhead * parquet.metadata.num_rows, 0) - compressed
        return size


def _chunk_sizes(parquet: pq.ParquetFile, footer: Footer, name: str) -> tuple[int, int]:
    leaves = dict(footer.columns)[name]
    chunks = [
        parquet.metadata.row_group(group).column(leaf)
        for group in range(parquet.num_row_groups)
        for leaf in leaves
    ]
    return sum(c.total_compressed_size for c in chunks), sum(c.total_uncompressed_size for c in chunks)
