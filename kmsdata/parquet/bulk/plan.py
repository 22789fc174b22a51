"""Plan the encryption or decryption of files: find out what to read and write before anything is written.

A plan is made from paths, footers, schemas and headers, each of which is read once. It contains no key, and
its repr shows no value of a file.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from kmsdata.display.file_reports import StreamReport
from kmsdata.errors import CallerFileExistsError, CallerValueError, FormatError, printable
from kmsdata.frames.arguments import Columns, chosen_columns, column_names, refuse_repeated, require
from kmsdata.frames.dtype import EncryptedType
from kmsdata.frames.encrypted_columns import Encrypted, check_names, check_new_names, lost_header
from kmsdata.frames.key_argument import data_key_for
from kmsdata.frames.metadata.pandas_entry import index_columns
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import Header
from kmsdata.keys.session import Key, session_key
from kmsdata.lazy_property import lazy_property
from kmsdata.parquet.bulk.column_batches import open_parquet
from kmsdata.parquet.bulk.csv_reader import CsvFormat, Types, csv_layout, is_csv, missing_column
from kmsdata.parquet.bulk.file_schema import check_pandas_metadata
from kmsdata.parquet.headers import headers_in
from kmsdata.parquet.locations import (
    FilePath,
    Paths,
    Place,
    files_at,
    open_file,
    skipped_note,
    sources_at,
    stamp,
)
from kmsdata.parquet.lost_headers import file_without_header

__all__ = ["DecryptionPlan", "EncryptionPlan", "FilePlan", "Plan", "plan_decryption", "plan_encryption"]

_FILES_SHOWN = 10


@dataclass(frozen=True, repr=False)
class FilePlan:
    """The plan for one file.

    Attributes:
        source: the place to read.
        target: the path to write, below the target folder.
        version: the file's stamp, which changes if the file changes.
        bytes: its size.
        rows: its number of rows; an estimate for CSV.
        csv: how a CSV file is written; None for Parquet.
        schema: its Arrow schema.
        headers: the headers of its encrypted columns.
        columns: names of the columns to encrypt or decrypt.
    """

    source: Place
    target: str
    version: tuple[Any, ...]
    bytes: int
    rows: int
    csv: CsvFormat | None
    schema: pa.Schema
    headers: Mapping[str, Header]
    columns: tuple[str, ...] = ()

    @property
    def is_csv(self) -> bool:
        """Whether it is a CSV file, which is converted to Parquet."""
        return self.csv is not None

    @property
    def path(self) -> str:
        """The path of the source, for errors."""
        return str(self.source)

    @property
    def column_headers(self) -> dict[str, Header]:
        """The headers of those of ``columns`` that are encrypted."""
        return {name: self.headers[name] for name in self.columns if name in self.headers}

    def __repr__(self) -> str:
        about = "about " if self.is_csv else ""
        return printable(f"{self.path} -> {self.target}: {about}{self.rows:,} rows")


@dataclass(frozen=True, repr=False)
class Plan:
    """What to read and write; its repr is for people.

    Attributes:
        target: the file or folder to write.
        single: whether the target is one file.
        files: the plans of the files to read, in order.
        columns: names of the columns to encrypt or decrypt, of all files.
        kms_calls: the largest possible number of KMS calls.
        notes: remarks for the report.
    """

    target: Place
    single: bool
    files: tuple[FilePlan, ...]
    columns: tuple[str, ...]
    kms_calls: int
    notes: tuple[str, ...]

    @lazy_property
    def rows(self) -> int:
        """The number of rows of all files; an estimate for CSV."""
        return sum(file.rows for file in self.files)

    @property
    def cells(self) -> int:
        """The number of cells in the columns."""
        return self.rows * len(self.columns)

    def report(self, rows: int, size: int, calls: int, *, dry_run: bool = False) -> StreamReport:
        """Return a report of what was written, or would be written."""
        return StreamReport(
            str(self.target), rows, len(self.files), size, self.columns, calls, dry_run, self.notes
        )

    def __repr__(self) -> str:
        about = "about " if any(file.is_csv for file in self.files) else ""
        files = "1 file" if len(self.files) == 1 else f"{len(self.files):,} files"
        calls = "1 KMS call" if self.kms_calls == 1 else f"{self.kms_calls} KMS calls"
        title = (
            f"{type(self).__name__} to {self.target}: {about}{self.rows:,} rows in {files}; "
            f"{about}{self.cells:,} cells; at most {calls}; columns {', '.join(map(repr, self.columns))}"
        )
        lines = [printable(title), *map(repr, self.files[:_FILES_SHOWN])]
        if len(self.files) > _FILES_SHOWN:
            lines.append(f"{len(self.files) - _FILES_SHOWN:,} more files")
        return "<" + "\n  ".join(lines) + ">"


@dataclass(frozen=True, repr=False)
class EncryptionPlan(Plan):
    """What to read, encrypt and write.

    Attributes:
        domains: the domain of each deterministic column; None for a randomised column.
    """

    domains: Mapping[str, str | None]


@dataclass(frozen=True, repr=False)
class DecryptionPlan(Plan):
    """What to read, decrypt and write.

    Attributes:
        headers: the distinct pairs of a column and its header; files of one dataset share most of them.
    """

    headers: tuple[tuple[str, Header], ...]


def plan_encryption(
    source: Paths,
    target: FilePath,
    columns: Columns,
    deterministic: Columns | bool,
    domain: str | Mapping[str, str] | None,
    *,
    key: Key | Encrypted | None,
    filesystem: Any,
    target_filesystem: Any,
    types: Types | None,
    csv: CsvFormat,
    overwrite: bool,
) -> EncryptionPlan:
    """Plan what `kmsdata.encrypt_parquet` does with these arguments.

    Raises:
        FileNotFoundError, FileExistsError: in the same cases as that function.
        FormatError: a file is damaged, or differs from the first in a column's type.
        ValueError: values of a column would stay unencrypted elsewhere; or no key is named.
        KeyError: no such column.
    """
    sources, end, single, notes = _locations(
        source, target, filesystem, target_filesystem, overwrite=overwrite
    )
    files = _read_files(sources, types, csv)
    first, *others = files
    folders = _folder_columns(sources)
    names = [*first.schema.names, *(folders - set(first.schema.names))]
    if first.csv is not None:
        asked = [] if isinstance(deterministic, bool) else column_names(deterministic)
        for name in [*column_names(columns), *asked]:
            if name not in names:
                said = f"{first.path}: no column {name!r}"
                raise missing_column(said, first.schema.names, str(name), first.csv)
    domains = chosen_columns(names, columns, deterministic, domain, [])
    for name in domains:
        if name in folders:
            raise CallerValueError(
                f"column {name!r} names the folders of the dataset ({name}=...): its values would stay "
                "unencrypted in the paths. Write the dataset without it in partition_cols first"
            )
    for file in files:
        check_new_names(domains, file.headers)
        _check_plain(file, domains)
    for file in others:
        _check_alike(first, file, domains)
    planned = tuple(replace(file, columns=tuple(domains)) for file in files)
    return EncryptionPlan(end, single, planned, tuple(domains), _calls_to_encrypt(key), notes, domains)


def plan_decryption(
    source: Paths,
    target: FilePath,
    columns: Columns | None,
    *,
    filesystem: Any,
    target_filesystem: Any,
    overwrite: bool,
) -> DecryptionPlan:
    """Plan what `kmsdata.decrypt_parquet` does with these arguments.

    Raises:
        FileNotFoundError, FileExistsError: in the same cases as that function.
        FormatError: a file is damaged, or has no encrypted column, or not all of ``columns``.
        KeyError: no such column.
    """
    sources, end, single, notes = _locations(
        source, target, filesystem, target_filesystem, overwrite=overwrite
    )
    files = _read_files(sources, None, CsvFormat())
    wanted = None if columns is None else column_names(columns)
    planned = tuple(replace(file, columns=_columns_to_decrypt(file, wanted)) for file in files)
    headers = dict.fromkeys((name, file.headers[name]) for file in planned for name in file.columns)
    data_keys = {record.commitment for _, header in headers for record in header.records}
    names = dict.fromkeys(name for name, _ in headers)
    return DecryptionPlan(end, single, planned, tuple(names), len(data_keys), notes, tuple(headers))


# --- files ----------------------------------------------------------------------------------------


def _locations(
    source: Paths, target: FilePath, filesystem: Any, target_filesystem: Any, *, overwrite: bool
) -> tuple[dict[str, Place], Place, bool, tuple[str, ...]]:
    """Find what to read and where to write.

    Returns:
        The files by their path below the target folder; the target; whether it is one file; and remarks.
    """
    skipped: list[str] = []
    starts, found, single = sources_at(source, filesystem, skipped)
    end = Place.of(target, filesystem if target_filesystem is None else target_filesystem)
    if single and (end.folder or end.kind == pafs.FileType.Directory):
        end = end / _target_name(next(iter(found)))
    for file in found.values():
        if end.holds(file) or file.holds(end):
            raise CallerValueError(f"the target {end} is or contains the source. Choose another target")
    if not single and any(start.holds(end) for start in starts):
        raise CallerValueError(f"the target {end} is inside the source. Choose another target")
    if single:
        _check_target_file(end, overwrite)
        return {end.path.rpartition("/")[2]: starts[0]}, end, single, ()
    _check_target_folder(end, list(map(_target_name, found)), overwrite)
    return {_target_name(name): file for name, file in found.items()}, end, single, skipped_note(skipped)


def _target_name(name: str) -> str:
    """Return the name of a file in the target: a CSV file becomes a Parquet file."""
    return name[: name.lower().rindex(".csv")] + ".parquet" if is_csv(name) else name


def _check_target_file(target: Place, overwrite: bool) -> None:
    kind = target.kind
    if is_csv(target.path):
        raise CallerValueError(f"the target {target} would be a Parquet file. Name it .parquet, not .csv")
    if kind != pafs.FileType.NotFound and not overwrite:
        raise CallerFileExistsError(
            errno.EEXIST, "the file exists already (overwrite=True replaces it)", str(target)
        )


def _check_target_folder(target: Place, names: list[str], overwrite: bool) -> None:
    kind = target.kind
    if len(set(names)) < len(names):
        raise CallerValueError(
            "a CSV file and a Parquet file of the same name would be written to one file. Rename one of them"
        )
    if kind == pafs.FileType.NotFound:
        return
    if kind == pafs.FileType.File:
        raise CallerFileExistsError(
            errno.EEXIST, "several files need a folder as the target, but this is a file", str(target)
        )
    try:
        present, _ = files_at(target)
    except FileNotFoundError:
        return
    others = present.keys() - set(names)
    if not overwrite or others:
        why = (
            "the folder contains files already (overwrite=True replaces those of the same names)"
            if not overwrite
            else f"the folder contains files that would not be replaced, such as {min(others)}, and readers "
            "would treat them as part of the dataset"
        )
        raise CallerFileExistsError(errno.EEXIST, why, str(target))


def _read_files(sources: Mapping[str, Place], types: Types | None, csv: CsvFormat) -> list[FilePlan]:
    """Read the footer of each Parquet file, and the first block of each CSV file."""
    files = []
    shared: dict[bytes, pa.Schema] = {}  # thousands of files often have the same schema: keep it once
    for name, place in sources.items():
        version = stamp(place)
        headers: dict[str, Header] = {}
        if is_csv(place.path):
            layout = csv_layout(place, types, csv)
            schema, rows = layout.schema, layout.rows
            if layout.headless:
                _warn_of_first_line(place)
            types = dict(zip(schema.names, schema.types, strict=True))  # later files must have the same types
            size = place.filesystem.get_file_info(place.path).size
        else:
            with open_parquet(place) as parquet:
                schema, metadata, size = parquet.schema, parquet.reader.metadata, parquet.file.size()
                for entries in (schema.metadata, parquet.entries):
                    check_pandas_metadata(entries, parquet.path)
            headers, rows = headers_in(schema, str(place), footer=metadata.metadata), metadata.num_rows
        schema = shared.setdefault(schema.serialize().to_pybytes(), schema)
        files.append(
            FilePlan(place, name, version, size, rows, csv if is_csv(place.path) else None, schema, headers)
        )
    return files


def _warn_of_first_line(place: Place) -> None:
    # Without the name: it is a value of the file, and stays unencrypted.
    warnings.warn(
        f"{place}: the first line is read as the names of the columns, but looks like values. If the "
        "file has no line with names, add one: names are not encrypted",
        stacklevel=2,
    )


# --- columns --------------------------------------------------------------------------------------


def _folder_columns(sources: Mapping[str, Place]) -> set[str]:
    """Return the columns whose values are names of folders, such as ``year=2026``."""
    parts = (part for place in sources.values() for part in place.path.split("/")[:-1])
    return {part.partition("=")[0] for part in parts if "=" in part}


def _check_plain(file: FilePlan, columns: Mapping[str, Any]) -> None:
    """Check that columns of a file are not encrypted already, and not in its index, which stays plain."""
    index = index_columns(file.schema.metadata)
    for name in columns:
        if name in file.headers:
            raise CallerValueError(
                f"{file.path}: column {name!r} is encrypted already. Decrypt it first, or leave it out"
            )
        if name in index:
            raise CallerValueError(
                f"{file.path}: column {name!r} is the pandas index, which is not encrypted. Call "
                "df.reset_index() and write the file again first"
            )


def _check_alike(first: FilePlan, second: FilePlan, columns: Mapping[str, Any]) -> None:
    """Check that two files have the same columns to encrypt, and the same types."""
    one, two = first.schema, second.schema
    if one is two:
        return
    paths = f"{first.path} and {second.path}"
    for name in columns:
        if name not in two.names:
            raise FormatError(
                f"{paths} differ: the second has no column {name!r}", path=second.path, column=name
            )
    for field in two:
        if one.names.count(field.name) != 1 or two.names.count(field.name) != 1:
            continue
        before = one.field(field.name).type
        if before != field.type and not isinstance(before, EncryptedType):
            raise FormatError(
                f"{paths} differ: column {field.name!r} is {before} in the first and {field.type} in the "
                "second. Write them with the same type first, or encrypt them separately",
                path=second.path,
                column=field.name,
            )


def _columns_to_decrypt(file: FilePlan, wanted: list[str] | None) -> tuple[str, ...]:
    """Return the columns of a file to decrypt: the wanted ones, or every encrypted one."""
    if file.is_csv:
        raise FormatError(
            f"{file.path}: only Parquet files can be decrypted. Read the CSV file with pandas, and attach "
            "the headers of the original with df.kms.attach(original)",
            path=file.path,
        )
    check_names(file.headers, path=file.path)
    lost = _without_header(file)
    if wanted is None and lost:
        raise lost_header(lost[0], path=file.path)
    for name in wanted or ():
        require(file.schema.names, name)
        if name in lost:
            raise lost_header(name, path=file.path, named=True)
        if name not in file.headers:
            raise FormatError(
                f"{file.path}: column {name!r} is not encrypted: it has no kmsdata header",
                path=file.path,
                column=name,
            )
    if not file.headers:
        raise FormatError(
            f"{file.path}: nothing in it is encrypted: the file has no kmsdata header", path=file.path
        )
    for name in file.headers:
        refuse_repeated(file.schema.names, name, f"{file.path}: ")
    return tuple(file.headers if wanted is None else dict.fromkeys(wanted))


def _without_header(file: FilePlan) -> list[str]:
    """Return the columns of a file that look like cells without their header."""
    with open_file(file.source) as source:
        try:
            return file_without_header(source, file.schema, file.headers, file.path)
        except pa.ArrowException:
            raise FormatError(
                f"{file.path}: a column cannot be read: the file is damaged or was cut short", path=file.path
            ) from None


def _calls_to_encrypt(key: Key | Encrypted | None) -> int:
    """Return the largest number of KMS calls that a new data key needs."""
    if key is None and session_key() is None:
        data_key_for(None, None)  # raises the error that says what to pass
    if isinstance(key, (list, tuple, set)):
        return len(set(map(str, key)))
    return 0 if isinstance(key, DataKey) else 1
