"""Files and datasets of any size: encrypted and decrypted column by column, a row group at a time.

Of a Parquet file only the columns concerned are decoded, in batches of some megabytes; the others are copied
as they stand (``chunks.py``). CSV goes into Parquet block by block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow.parquet as pq

from kmsdata.display.file_reports import StreamReport
from kmsdata.frames.arguments import Columns, column_names
from kmsdata.frames.encrypted_columns import Encrypted
from kmsdata.frames.key_argument import data_key_for, resolve_key
from kmsdata.keys.data_key import DataKey, random_bytes
from kmsdata.keys.envelope import Header, Wrap
from kmsdata.keys.session import Key, session_key
from kmsdata.keys.unwrap import open_keys
from kmsdata.keys.usage import usage
from kmsdata.parquet.bulk.column_batches import Survey, column_batches, open_parquet
from kmsdata.parquet.bulk.csv_reader import Types, is_csv, open_csv
from kmsdata.parquet.bulk.decrypt import decrypt_file, decrypted_types, headers_wanted
from kmsdata.parquet.bulk.encrypt import Sealer, columns_to_encrypt, encrypt_csv, encrypt_file, sealers_for
from kmsdata.parquet.bulk.plan import Job, Step
from kmsdata.parquet.footer import FileMetaData
from kmsdata.parquet.headers import naming_the_file
from kmsdata.parquet.locations import FilePath, Place

__all__ = ["decrypt_parquet", "encrypt_parquet"]


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
    job = Job.of(source, target, filesystem, target_filesystem, overwrite=overwrite)
    survey = Survey.of(job, types)
    chosen = columns_to_encrypt(job, survey, columns, deterministic, domain)
    if dry_run:
        sealers = sealers_for(job, survey, chosen, DataKey(random_bytes(32), [Wrap("local://none", "")]))
        size = sum(_estimate(job, survey, name, sealers) for name in job.files)
        return job.report(survey.total, size, list(chosen), _calls_for(key), dry_run=True)
    before = usage().calls
    data_key = data_key_for(key, context, survey.total * len(chosen))
    calls = usage().calls - before
    sealers = sealers_for(job, survey, chosen, data_key)

    def one(name: str, place: Place, sink: Any, step: Step) -> int:
        if is_csv(name):
            return encrypt_csv(place, sink, sealers, survey.types, step)
        return encrypt_file(place, sink, sealers, step)

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
    job = Job.of(source, target, filesystem, target_filesystem, overwrite=overwrite)
    survey = Survey.of(job, None)
    wanted = None if columns is None else column_names(columns)
    by_file = {
        name: headers_wanted(job.files[name], survey.headers[name], survey.schemas[name], wanted)
        for name in job.files
    }
    different = dict.fromkeys(item for headers in by_file.values() for item in headers.items())
    names = list(dict.fromkeys(name for name, _ in different))
    if dry_run:
        known = {record.commitment for _, header in different for record in header.records}
        size = sum(_plain_size(job.files[name], headers) for name, headers in by_file.items())
        return job.report(survey.total, size, names, len(known), dry_run=True)
    before = usage().calls
    with naming_the_file({str(job.files[name]): headers for name, headers in by_file.items()}):
        keys = open_keys(list(different), resolve_key(key), context)
    calls = usage().calls - before
    plain_types = decrypted_types(job, by_file, keys)

    def one(name: str, place: Place, sink: Any, step: Step) -> int:
        return decrypt_file(place, sink, by_file[name], keys, plain_types, step)

    rows, size = job.run("decrypt", survey.total, one, progress)
    return job.report(rows, size, names, calls)


def _calls_for(key: Key | Encrypted | None) -> int:
    """Calls of the key service that encryption under this key takes."""
    if key is None and session_key() is None:
        data_key_for(None, None)  # says what is missing
    if isinstance(key, (list, tuple, set)):
        return len(dict.fromkeys(key))
    return 0 if isinstance(key, DataKey) else 1


def _estimate(job: Job, survey: Survey, name: str, sealers: Mapping[str, Sealer]) -> int:
    """The size of a file once it is encrypted, from a first batch of each column."""
    place = job.files[name]
    if is_csv(name):
        size: int = place.filesystem.get_file_info(place.path).size
        return size + int(33 * len(sealers) * size / open_csv(place, survey.types).width)
    with open_parquet(place) as (file, parquet, footer):
        size = file.size()
        for column, sealer in sealers.items():
            size -= _chunk_sizes(parquet, footer, column)[0]
            for group in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(group).num_rows
                if rows:
                    cells = sealer.seal(next(column_batches(parquet, group, column, str(place))))
                    size += cells.nbytes * rows // max(len(cells), 1)
        return size


def _plain_size(place: Place, headers: Mapping[str, Header]) -> int:
    with open_parquet(place) as (file, parquet, footer):
        size: int = file.size()
        for name, header in headers.items():
            compressed, whole_size = _chunk_sizes(parquet, footer, name)
            overhead = 21 if header.deterministic else 33
            size += max(whole_size - overhead * parquet.metadata.num_rows, 0) - compressed
        return size


def _chunk_sizes(parquet: pq.ParquetFile, footer: FileMetaData, name: str) -> tuple[int, int]:
    leaves = dict(footer.columns)[name]
    chunks = [
        parquet.metadata.row_group(group).column(leaf)
        for group in range(parquet.num_row_groups)
        for leaf in leaves
    ]
    return sum(c.total_compressed_size for c in chunks), sum(c.total_uncompressed_size for c in chunks)
