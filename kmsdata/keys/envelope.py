"""The header model of SPEC.md, in canonical JSON. Only the standard library is used.

A header describes encrypted columns. In memory it is the parameter of the column's Arrow extension type::

    {"column": [column object, ...], "data_keys": [record, ...], "version": 1}

A Parquet file lists the same, by column, in its key-value metadata under ``kmsdata``::

    {"columns": {name: [column object, ...]}, "data_keys": [record, ...], "version": 1}

    record         {"commitment": b64, "context": {name: text}, "wraps": [{"key": URI, "wrapped": text}]}
    column object  {"algorithm": "AES-256-GCM", "data_key": b64, "mac": b64, "name": text, "type": {...}}
              or   {"algorithm": "AES-256-SIV", "data_key": b64, "mac": b64, "domain": text, "kind": text,
                    "type": {...}}
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Self

from kmsdata.errors import FormatError
from kmsdata.keys.key_uri import parse_key
from kmsdata.lazy_property import lazy_property

__all__ = [
    "ENTRY",
    "GCM",
    "KINDS",
    "SIV",
    "ColumnHeader",
    "DataKeyRecord",
    "Header",
    "Wrap",
    "base64_bytes",
    "base64_text",
    "canonical",
    "file_text",
    "has_lone_surrogate",
    "merged_records",
    "parse_file",
]

ENTRY = b"kmsdata"  # the key in a file's key-value metadata
GCM = "AES-256-GCM"
SIV = "AES-256-SIV"
KINDS = ("text", "bytes", "bool", "int", "uint", "timestamp", "instant", "date", "decimal", "uuid", "tagged")

# The limits of SPEC.md: readers check them before a header is authenticated.
_VERSION = 1
_MOST_BYTES = 4 << 20
_MOST_WRAPS = 16
_MOST_CONTEXT = 1 << 16
_DEEPEST = 64
_MOST_RECORDS = 1024


@dataclass(frozen=True, slots=True)
class Wrap:
    """A wrapped key: the URI of the master key, and the text that its provider returned."""

    key: str
    wrapped: str


@dataclass(frozen=True, slots=True)
class DataKeyRecord:
    """The record of one data key in a header.

    Attributes:
        commitment: 32 bytes that identify one data key.
        context: pairs of names and texts that were passed to the KMS, sorted by name.
        wraps: the wrapped keys: the data key under each of its master keys.
    """

    commitment: bytes
    context: tuple[tuple[str, str], ...]
    wraps: tuple[Wrap, ...]

    def __post_init__(self) -> None:
        """Raise FormatError for what a reader would reject, so that no writer writes it."""
        if len(self.wraps) > _MOST_WRAPS:
            _refuse(f"{len(self.wraps)} wrapped keys of one data key: at most {_MOST_WRAPS}", "wraps")
        if not all(isinstance(text, str) for pair in self.context for text in pair):
            _refuse("the context is not a mapping of text to text", "context")
        for name, text in self.context:
            for part in (name, text):
                if has_lone_surrogate(part):
                    _refuse("the context contains a lone surrogate, which is not valid Unicode", "context")
        if sum(len(name) + len(text) for name, text in self.context) > _MOST_CONTEXT:
            _refuse(f"the context has more than {_MOST_CONTEXT} characters", "context")

    def with_wraps(self, wraps: Iterable[Wrap]) -> DataKeyRecord:
        """Return the record with these wrapped keys added, up to the limit of one record.

        Over the limit, the first wrapped key of each master key comes before the others: files that were
        rewrapped one by one each have a different wrapped key under the same new master key.
        """
        every = list(dict.fromkeys((*self.wraps, *wraps)))
        if len(every) > _MOST_WRAPS:
            first = {wrap.key: wrap for wrap in reversed(every)}
            every.sort(key=lambda wrap: wrap is not first[wrap.key])
        return replace(self, wraps=tuple(every[:_MOST_WRAPS]))

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON."""
        return {
            "commitment": base64_text(self.commitment),
            "context": dict(self.context),
            "wraps": [{"key": wrap.key, "wrapped": wrap.wrapped} for wrap in self.wraps],
        }

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Read and check a record; raise FormatError if it is not one."""
        entry = _object(data, {"commitment", "context", "wraps"}, "data_keys")
        context = entry["context"]
        if not isinstance(context, dict):
            _refuse("the context is not a mapping of text to text", "context")
        wraps = []
        for item in _list(entry["wraps"], "wraps", most=_MOST_WRAPS):
            wrap = _object(item, {"key", "wrapped"}, "wraps")
            if not isinstance(wrap["wrapped"], str):
                _refuse("a wrapped key is not text", "wrapped")
            parse_key(wrap["key"])
            wraps.append(Wrap(wrap["key"], wrap["wrapped"]))
        commitment = _bytes(entry["commitment"], 32, "commitment")
        return cls(commitment, tuple(sorted(context.items())), tuple(wraps))


@dataclass(frozen=True, slots=True)
class ColumnHeader:
    """One column object: how the cells were encrypted, and the original type of their values.

    Attributes:
        algorithm: ``AES-256-GCM`` (randomised) or ``AES-256-SIV`` (deterministic).
        data_key: commitment of the data key, 32 bytes.
        type: the original type, as the codec describes it.
        name: randomised columns only: the name that the column was encrypted under.
        domain: deterministic columns only: columns of one domain can be joined.
        kind: deterministic columns only: the canonical form of the values.
        mac: HMAC-SHA256 over all other fields under the data key, 32 bytes.
    """

    algorithm: str
    data_key: bytes
    type: dict[str, Any]
    name: str | None = None
    domain: str | None = None
    kind: str | None = None
    mac: bytes = b""
    _digest: list[bytes] = dataclasses.field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def deterministic(self) -> bool:
        """Whether equal values have equal cells."""
        return self.algorithm == SIV

    @property
    def codec_type(self) -> dict[str, Any]:
        """The type as the codec wrote it: without the encrypted category list, which is stored with it."""
        return {key: value for key, value in self.type.items() if key != "categories"}

    @property
    def key_info(self) -> bytes:
        """The HKDF info from which the data key derives the key of the cells (SPEC.md section 2).

        A deterministic column's names its kind and domain, so that columns of several types can be joined. A
        randomised column's is bound to the whole object: cells cannot be read under a header of another type.
        """
        if self.deterministic:
            return f"kmsdata/1/{SIV}/{self.kind}/{self.domain}".encode()
        if not self._digest:  # kept, because the JSON of a long category list takes 20 ms
            bound = {"algorithm": self.algorithm, "name": self.name, "type": self.type}
            self._digest.append(hashlib.sha256(canonical(bound).encode()).digest())
        return f"kmsdata/1/{GCM}/".encode() + self._digest[0]

    @property
    def identity(self) -> tuple[bytes, bytes]:
        """What the key of the cells is derived from: objects with the same identity have the same key."""
        return (self.data_key, self.key_info)

    @property
    def place(self) -> tuple[bool, str]:
        """What all objects of one column have in common: whether it is deterministic, and name or domain."""
        return (True, self.domain or "") if self.deterministic else (False, self.name or "")

    def to_json(self) -> dict[str, Any]:
        """Return the object as JSON."""
        derived = {"domain": self.domain, "kind": self.kind} if self.deterministic else {"name": self.name}
        common = {"algorithm": self.algorithm, "data_key": base64_text(self.data_key), "type": self.type}
        return common | derived | ({"mac": base64_text(self.mac)} if self.mac else {})

    def authenticated(self, context: Iterable[tuple[str, str]]) -> bytes:
        """Return the bytes over which ``mac`` is computed."""
        column = replace(self, mac=b"").to_json()
        return canonical({"column": column, "context": dict(context), "version": _VERSION}).encode()

    def __hash__(self) -> int:
        return hash((self.data_key, self.place, self.kind, self.mac))

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Read and check a column object; raise FormatError if it is not one."""
        algorithm = data.get("algorithm") if isinstance(data, dict) else None
        if algorithm not in (GCM, SIV):
            _refuse("unknown algorithm. A newer kmsdata may support it", "algorithm")
        names = ["domain", "kind"] if algorithm == SIV else ["name"]
        entry = _object(data, {"algorithm", "data_key", "mac", "type", *names}, "columns")
        if not isinstance(entry["type"], dict):
            _refuse("the type is not an object", "type")
        for field in names:
            if not isinstance(entry[field], str):
                _refuse(f"the {field} is not text", field)
        if algorithm == SIV and entry["kind"] not in KINDS:
            _refuse("unknown kind. A newer kmsdata may support it", "kind")
        return cls(
            algorithm,
            _bytes(entry["data_key"], 32, "data_key"),
            entry["type"],
            **{field: entry[field] for field in names},
            mac=_bytes(entry["mac"], 32, "mac"),
        )


@dataclass(frozen=True)
class Header:
    """The header of one column: its column objects, and the records of the data keys that they name.

    Together with the master keys it is all that decryption needs. Build it with `Header.of`, which sorts both
    into canonical order.

    Example:
        >>> record = DataKeyRecord(bytes(32), (), (Wrap("local://demo", "..."),))
        >>> column = ColumnHeader(GCM, bytes(32), {"arrow": "int64"}, name="age", mac=bytes(32))
        >>> header = Header.of([column], [record])
        >>> Header.parse(header.text) == header
        True
    """

    columns: tuple[ColumnHeader, ...]
    records: tuple[DataKeyRecord, ...]

    @classmethod
    def of(cls, columns: Iterable[ColumnHeader], records: Iterable[DataKeyRecord]) -> Self:
        """Build a header of these objects, without duplicates, and of the records that they name."""
        objects = list(dict.fromkeys(columns))
        if len(objects) > 1:  # for one object, which most columns have, the JSON would be made for nothing
            objects.sort(key=lambda column: canonical(column.to_json()))
        named = {column.data_key for column in objects}
        merged = merged_records(record for record in records if record.commitment in named)
        return cls(
            tuple(objects), tuple(merged[commitment] for commitment in sorted(merged, key=base64_text))
        )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a column's header from its text.

        Raises:
            FormatError: it is malformed, not canonical, of another version, or names unknown things.
        """
        entry = _document(text, {"column", "data_keys"})
        header = cls._checked(_list(entry["column"], "column"), _records(entry))
        if _json(header.to_json()) != text:
            _refuse("the header is not in canonical form: it was changed after it was written")
        return header

    @classmethod
    def _checked(cls, column: list[Any], records: Mapping[bytes, DataKeyRecord]) -> Self:
        objects = [ColumnHeader.from_json(item) for item in column]
        if not _one_column(objects):
            _refuse("objects of one column belong to different columns, or have the same key", "column")
        named = {item.data_key for item in objects}
        if missing := named - records.keys():
            _refuse(f"{len(missing)} data keys are named but their records are missing", "data_key")
        return cls.of(objects, [records[commitment] for commitment in named])

    @lazy_property
    def text(self) -> str:
        """Canonical JSON: the parameter of the Arrow extension type."""
        return canonical(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the header as JSON."""
        return {
            "column": [item.to_json() for item in self.columns],
            "data_keys": [item.to_json() for item in self.records],
            "version": _VERSION,
        }

    def union(self, other: Header) -> Header | None:
        """Return one header for the cells of both, or None if a cell could belong to either."""
        both = Header.of(self.columns + other.columns, self.records + other.records)
        if not _one_column(both.columns) or len(both.records) > _MOST_RECORDS:
            return None
        # Together they may be longer than a reader accepts: category lists have up to 1 MiB each.
        long = len(self.text) + len(other.text) > _MOST_BYTES and len(both.text) > _MOST_BYTES
        return None if long else both

    def under(self, records: Mapping[bytes, DataKeyRecord]) -> Header:
        """Return the header with its records replaced by these, matched by commitment."""
        return Header(self.columns, tuple(records.get(item.commitment, item) for item in self.records))

    @property
    def deterministic(self) -> bool:
        """Whether equal values have equal cells in the whole column: one deterministic object."""
        return len(self.columns) == 1 and self.columns[0].deterministic


def merged_records(records: Iterable[DataKeyRecord]) -> dict[bytes, DataKeyRecord]:
    """Merge records by commitment, with all their wrapped keys: some may have been rewrapped."""
    merged: dict[bytes, DataKeyRecord] = {}
    for record in records:
        known = merged.setdefault(record.commitment, record)
        if known.wraps != record.wraps:  # thousands of columns may have one record, with a long context
            merged[record.commitment] = known.with_wraps(record.wraps)
    return merged


def _one_column(columns: Sequence[ColumnHeader]) -> bool:
    """Check that the objects can belong to one column: one place, and different keys of their cells.

    Otherwise an attacker could combine the headers of two columns and move cells between them; and with one
    key for two objects, the type of a cell would be ambiguous.
    """
    keys = {column.identity for column in columns}
    return len(keys) == len(columns) and len({column.place for column in columns}) == 1


def file_text(headers: Mapping[str, Header]) -> str:
    """Return the text of the entry ``kmsdata`` in a Parquet file's key-value metadata.

    Raises:
        FormatError: more than 1,024 data keys, or more than 4 MiB.
    """
    records = _all_records(headers)
    if len(records) > _MOST_RECORDS:
        _refuse(f"{len(records)} data keys in one file: at most {_MOST_RECORDS}", "data_keys")
    text = canonical(_file_json(headers, records))
    if len(text) > _MOST_BYTES:
        _refuse("the header is larger than 4 MiB")
    return text


def _file_json(headers: Mapping[str, Header], records: Iterable[DataKeyRecord]) -> dict[str, Any]:
    return {
        "columns": {name: [item.to_json() for item in header.columns] for name, header in headers.items()},
        "data_keys": [item.to_json() for item in records],
        "version": _VERSION,
    }


def _all_records(headers: Mapping[str, Header]) -> list[DataKeyRecord]:
    merged = merged_records(record for header in headers.values() for record in header.records)
    return [merged[commitment] for commitment in sorted(merged, key=base64_text)]


def parse_file(text: str) -> dict[str, Header]:
    """Read a file's headers, by column, from its key-value metadata.

    Raises:
        FormatError: as `Header.parse`.
    """
    entry = _document(text, {"columns", "data_keys"})
    if not isinstance(entry["columns"], dict):
        _refuse("the columns are not an object", "columns")
    records = _records(entry)
    headers = {}
    for name, column in entry["columns"].items():
        try:
            headers[name] = Header._checked(_list(column, "columns"), records)
        except FormatError as error:
            raise error.with_facts(column=name) from None
    if _json(_file_json(headers, _all_records(headers))) != text:
        _refuse("the header is not in canonical form: it was changed after it was written")
    return headers


def canonical(data: object) -> str:
    """Return canonical JSON, which is authenticated: sorted keys, no spaces, ASCII, no floats, no surrogates.

    Raises:
        FormatError: the data has no canonical form.
    """
    _walk(data)
    return _json(data)


def _json(data: object) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _walk(data: object, depth: int = 0) -> None:
    if depth > _DEEPEST:
        _refuse(f"nested more than {_DEEPEST} levels deep")
    if isinstance(data, str):
        if has_lone_surrogate(data):
            _refuse("a text contains a lone surrogate")
    elif isinstance(data, dict):
        for key, value in data.items():
            if not isinstance(key, str):
                _refuse("a key is not text")
            _walk(key)
            _walk(value, depth + 1)
    elif isinstance(data, list):
        for value in data:
            _walk(value, depth + 1)
    elif isinstance(data, int):  # bool too
        if abs(data) >= 1 << 53:  # readers in other languages may parse JSON numbers as doubles
            _refuse("an integer is 2^53 or larger")
    elif data is not None:
        _refuse("a number is not an integer, or a value is not JSON")


def has_lone_surrogate(text: str) -> bool:
    """Return whether a text contains a lone surrogate, so that UTF-8 cannot encode it."""
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def base64_text(raw: bytes) -> str:
    """Encode bytes as standard base64."""
    return base64.b64encode(raw).decode()


def base64_bytes(text: object, *, any_spelling: bool = False) -> bytes | None:
    """Decode standard base64.

    Args:
        text: any object; base64 is a str or bytes.
        any_spelling: accept text that no encoder writes, with extra bits after the last whole byte.

    Returns:
        The bytes; None if the text is not base64.
    """
    if not isinstance(text, (str, bytes)):
        return None
    try:
        raw = binascii.a2b_base64(text, strict_mode=True)  # b64decode is slower, as it takes more types
    except ValueError:
        return None
    return raw if any_spelling or base64_text(raw) == text else None


def _document(text: str, fields: set[str]) -> dict[str, Any]:
    if len(text) > _MOST_BYTES:
        _refuse("the header is larger than 4 MiB")
    try:
        data = json.loads(text)
        _walk(data)
    except FormatError:
        raise
    except (ValueError, RecursionError):
        # Not chained: a JSONDecodeError contains the whole text.
        raise FormatError("the header is not JSON: it was changed or truncated", field=None) from None
    if isinstance(data, dict) and data.get("version") != _VERSION:
        _refuse("unsupported version. A newer kmsdata may read it", "version")
    return _object(data, fields | {"version"}, None)


def _records(entry: dict[str, Any]) -> dict[bytes, DataKeyRecord]:
    items = _list(entry["data_keys"], "data_keys", most=_MOST_RECORDS)
    return {record.commitment: record for record in map(DataKeyRecord.from_json, items)}


def _object(data: object, fields: set[str], field: str | None) -> dict[str, Any]:
    if not isinstance(data, dict):
        _refuse("not a JSON object", field)
    if missing := fields - data.keys():
        _refuse(f"the field {min(missing)!r} is missing", min(missing))
    if len(data) > len(fields):
        _refuse("unknown field. A newer kmsdata may support it", field)
    return data


def _list(data: object, field: str, most: int = 1 << 30) -> list[Any]:
    if not isinstance(data, list) or not 1 <= len(data) <= most:
        _refuse("not a list, or the list is empty or too long", field)
    return data


def _bytes(data: object, size: int, field: str) -> bytes:
    raw = base64_bytes(data)
    if raw is None or len(raw) != size:
        _refuse(f"not {size} bytes in standard base64", field)
    return raw


def _refuse(what: str, field: str | None = None) -> NoReturn:
    raise FormatError(f"kmsdata header: {what}" + (f" (field {field!r})" if field else ""), field=field)
