"""Columns of files encrypted: which may be, and how each file is written, be it of Parquet or CSV."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kmsdata.codec import Description
from kmsdata.errors import FormatError
from kmsdata.frames.arguments import Columns, chosen_columns
from kmsdata.frames.column import plan, seal
from kmsdata.frames.dtype import EncryptedArray, EncryptedDtype, EncryptedType
from kmsdata.frames.pandas_metadata import pandas_dtypes
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import ENTRY, ColumnHeader, Header
from kmsdata.parquet.bulk.column_batches import (
    Survey,
    column_batches,
    edited_metadata,
    in_parts,
    open_parquet,
    replacement,
    with_type,
)
from kmsdata.parquet.bulk.csv_reader import CsvFile, Types, open_csv
from kmsdata.parquet.bulk.plan import Job, Step
from kmsdata.parquet.column_chunks import PART, rewrite
from kmsdata.parquet.headers import headers_in
from kmsdata.parquet.locations import Place
from kmsdata.parquet.write import settings_for

__all__ = ["Sealer", "columns_to_encrypt", "encrypt_csv", "encrypt_file", "sealers_for"]

_TELLING = 5  # letters: shorter texts are in metadata by chance
_GROUP_ROWS = 1 << 20  # of the row groups that CSV becomes


def columns_to_encrypt(
    job: Job,
    survey: Survey,
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


def _check_alike(job: Job, survey: Survey, one: str, two: str, wanted: list[str]) -> None:
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


@dataclass(frozen=True)
class Sealer:
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


def sealers_for(
    job: Job, survey: Survey, chosen: Mapping[str, str | None], data_key: DataKey
) -> dict[str, Sealer]:
    """The columns by name: ``chosen`` says the domain of those that are deterministic."""
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
        made[name] = Sealer(name, header, described, dtype, data_key)
    return made


def _dictionary(job: Job, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    """No rows, and the dictionary that those of all files make together: the header holds it for all."""
    entries = pa.array([], kind.value_type)
    for place in job.files.values():
        with open_parquet(place) as (_, parquet, _):
            for group in range(parquet.num_row_groups):
                for array in column_batches(parquet, group, name, str(place)):
                    new = array.dictionary
                    if new.equals(entries.slice(0, len(new))):
                        continue
                    both = pa.chunked_array([entries, new])
                    entries = both.unique() if len(entries) else new
    empty = pa.DictionaryArray.from_arrays(pa.array([], kind.index_type), entries, ordered=kind.ordered)
    return pa.chunked_array([empty])


def encrypt_file(place: Place, sink: Any, sealers: Mapping[str, Sealer], step: Step) -> int:
    """Write a Parquet file with these columns encrypted; returns its size."""
    with open_parquet(place) as (file, parquet, footer):
        schema = parquet.schema_arrow
        for name, sealer in sealers.items():
            schema = with_type(schema, name, sealer.type)
        old = headers_in(parquet.schema_arrow, str(place), footer=footer.metadata)
        headers = {**old, **{name: sealer.dtype.header for name, sealer in sealers.items()}}

        def sealed(group: int, sealer: Sealer) -> Iterator[Any]:
            def each() -> Iterator[Any]:
                for values in column_batches(parquet, group, sealer.name, str(place)):
                    _check_told(values, told, sealer.name, str(place))
                    yield sealer.seal(values)

            return in_parts(each())

        def anew(group: int) -> dict[str, Callable[[], Iterator[Any]]]:
            return {name: functools.partial(sealed, group, sealer) for name, sealer in sealers.items()}

        def edited(metadata: Mapping[bytes, bytes] | None) -> dict[bytes, bytes]:
            return edited_metadata(metadata, list(sealers), headers)

        schema = schema.with_metadata(edited(parquet.schema_arrow.metadata) or None)
        entries = edited({key: text for key, text in footer.metadata.items() if key != b"ARROW:schema"})
        told = _told(schema, entries)
        return rewrite(
            file,
            str(place),
            footer,
            sink,
            {name: replacement(schema.field(name)) for name in sealers},
            anew,
            schema,
            entries,
            step,
        )


def _told(schema: pa.Schema, metadata: Mapping[bytes, bytes]) -> pa.Array:
    """What key-value metadata says, text by text: nobody knows beforehand what values it may hold."""
    known = (b"ARROW:schema", b"pandas", ENTRY)
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


def encrypt_csv(
    place: Place, sink: Any, sealers: Mapping[str, Sealer], types: Types | None, step: Step
) -> int:
    """Write the Parquet file that a CSV file becomes; returns its size."""
    csv: CsvFile = open_csv(place, types)
    schema = csv.schema
    for name, sealer in sealers.items():
        schema = with_type(schema, name, sealer.type)
    headers = {name: sealer.dtype.header for name, sealer in sealers.items()}
    schema = schema.with_metadata(edited_metadata({}, list(sealers), headers))
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
