"""Keep the Parquet schema of encrypted columns, and restore it when they are decrypted.

A header contains the Arrow type of a column, but several Parquet types have the same Arrow type: INT96 and
INT64 timestamps, ENUM, BSON and binary, GEOMETRY and GEOGRAPHY with their CRS, VARIANT, decimals of any
physical type, lists of any layout. So where pyarrow would write a column in another way than the source, the
file's key-value metadata gets an entry ``kmsdata.original`` with the column's part of the Parquet schema, and
its field in the Arrow schema. It contains no values. It is authenticated by the data key, and used only if
Arrow then shows the type that the header says.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from kmsdata.errors import FormatError, UnsupportedTypeError
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import Header, base64_bytes, base64_text, canonical
from kmsdata.parquet.bulk.column_batches import OpenParquet
from kmsdata.parquet.bulk.file_schema import replacement
from kmsdata.parquet.column_chunks import Replacement, arrow_field, arrow_schema, arrow_view, respelled
from kmsdata.parquet.thrift import LIST, STRUCT, Struct, decode, encode, value

__all__ = [
    "ORIGINAL",
    "Original",
    "decrypted_column",
    "originals_in",
    "spelling_in",
    "with_originals",
    "without_originals",
]

ORIGINAL = b"kmsdata.original"

_VARIANT = 16  # the first logical type that Arrow does not have
_INT32, _INT64, _BYTE_ARRAY, _FIXED = 1, 2, 6, 7  # physical types
_AS_INT96 = {"use_deprecated_int96_timestamps": True}
_AS_INTEGERS = {"store_decimal_as_integer": True}


@dataclass(frozen=True)
class Original:
    """The schema of a column before it was encrypted.

    Attributes:
        elements: its part of the Parquet schema, as one Thrift struct.
        field: its field in the Arrow schema, as an IPC message; empty if decryption makes the same field.
    """

    elements: bytes
    field: bytes = b""

    @property
    def parquet(self) -> list[Struct]:
        """Its part of the Parquet schema."""
        parts: list[Struct] = value(decode(self.elements)[0], 1)[1]
        return parts

    @property
    def arrow(self) -> pa.Field | None:
        """Its field in the Arrow schema."""
        return pa.ipc.read_schema(pa.py_buffer(self.field)).field(0) if self.field else None

    def _authenticated(self, name: str, context: Mapping[str, str]) -> bytes:
        return canonical(
            {
                "context": dict(context),
                "elements": base64_text(self.elements),
                "field": base64_text(self.field),
                "name": name,
                "use": "kmsdata/1/original",
            }
        ).encode()

    def to_json(self, name: str, data_key: DataKey) -> dict[str, str]:
        """Return its part of the entry."""
        mac = data_key._mac_of(self._authenticated(name, dict(data_key.context)))
        found = {
            "data_key": base64_text(data_key.commitment),
            "elements": base64_text(self.elements),
            "mac": base64_text(mac),
        }
        return found | ({"field": base64_text(self.field)} if self.field else {})


# --- encryption -----------------------------------------------------------------------------------


def with_originals(
    entries: Mapping[bytes, bytes], parquet: OpenParquet, data_keys: Mapping[str, DataKey]
) -> dict[bytes, bytes]:
    """Add the original schema of columns that are encrypted, where decryption could not infer it.

    Args:
        entries: the key-value metadata of the result.
        parquet: the source.
        data_keys: the data key of each column to encrypt.

    Raises:
        UnsupportedTypeError: pyarrow cannot write a column of VARIANT, GEOMETRY, GEOGRAPHY or a later type
            as it is.
    """
    found = _columns(entries.get(ORIGINAL), parquet.path, strict=False)
    found = {name: item for name, item in found.items() if name not in data_keys}
    stored = arrow_schema(parquet.footer, parquet.path)
    for (name, _), elements in zip(parquet.footer.columns, parquet.footer.elements, strict=True):
        if name in data_keys and (original := _original(elements, stored, parquet.schema.field(name))):
            _check_restored(original, stored, parquet.schema.field(name), parquet.path)
            found[name] = original.to_json(name, data_keys[name])
    spelled = spelling_in(entries)
    text = parquet.footer.metadata.get(b"ARROW:schema")
    # With headers or other metadata it would be a second copy of what must change with them.
    if stored is not None and text is not None and not stored.metadata and not _has_header(stored):
        spelled = None if respelled(text) == text else text
    return _with_entry(entries, found, spelled)


def _has_header(schema: pa.Schema) -> bool:
    """Return whether a part of an Arrow schema contains a header."""
    return b"data_keys" in schema.serialize().to_pybytes()


def _check_restored(original: Original, stored: pa.Schema | None, shown: pa.Field, path: str) -> None:
    """Refuse a column of a type that Arrow does not have, if it could not be restored."""
    logical = {next(iter(value(part, 10)), 0) for part in original.parquet if 10 in part}
    if not (logical := {number for number in logical if number >= _VARIANT}):
        return
    column, _ = decrypted_column(original, shown, shown, stored)
    if not any(10 in part and value(part, 10).keys() & logical for part in column.elements):
        names = {_VARIANT: "VARIANT", 17: "GEOMETRY", 18: "GEOGRAPHY"}
        kind = names.get(max(logical), "an unknown type")
        raise UnsupportedTypeError(
            f"{path}: column {shown.name!r} is {kind} in a layout that pyarrow cannot write, so it could not "
            "be restored. Leave it unencrypted, or convert it to binary first",
            column=shown.name,
            dtype=kind,
        )


def _original(elements: list[Struct], stored: pa.Schema | None, shown: pa.Field) -> Original | None:
    """Return what decryption would not restore without it; None if there is nothing."""
    field = b""
    if stored is not None and shown.name in stored.names:
        was = stored.field(shown.name)
        if not was.equals(arrow_field(stored, shown, shown.type), check_metadata=True):
            field = pa.schema([was]).serialize().to_pybytes()
    # The field id of the column itself stays in the encrypted file.
    packed = _packed([{number: item for number, item in elements[0].items() if number != 9}, *elements[1:]])
    if not field and packed == _packed(_blank(shown.name, shown.type, shown.nullable)):
        return None
    return Original(packed, field)


@functools.lru_cache(256)  # thousands of small files often have the same columns
def _blank(name: str, kind: pa.DataType, nullable: bool) -> list[Struct]:
    first, *rest = replacement(pa.field(name, kind, nullable)).elements
    return [{number: item for number, item in first.items() if number != 9}, *rest]


def _packed(elements: Sequence[Struct]) -> bytes:
    return encode({1: (LIST, (STRUCT, elements))})


# --- decryption -----------------------------------------------------------------------------------


def originals_in(
    entries: Mapping[bytes, bytes],
    headers: Mapping[str, Header],
    data_keys: Mapping[bytes, DataKey],
    path: str,
) -> dict[str, Original]:
    """Return the authenticated original schemas of these columns, of those that have one.

    Raises:
        FormatError: the entry is malformed, or was changed.
    """
    found = {}
    for name, item in _columns(entries.get(ORIGINAL), path).items():
        if name not in headers:
            continue
        commitments = [record.commitment for record in headers[name].records]
        commitment = base64_bytes(item["data_key"])
        if commitment not in commitments:
            continue  # left by software that replaced the column, but not the metadata
        key = data_keys[commitment]
        original = Original(base64_bytes(item["elements"]) or b"", base64_bytes(item.get("field", "")) or b"")
        mac = key._mac_of(original._authenticated(name, dict(key.context)))
        if not hmac.compare_digest(mac, base64_bytes(item["mac"]) or b""):
            raise FormatError(
                f"{path}: column {name!r}: its entry in the metadata 'kmsdata.original' is not authentic. "
                "Restore the file from a copy, or decrypt it with kmsdata.read_parquet, which does not use "
                "this entry",
                path=path,
                column=name,
            )
        found[name] = original
    return found


def without_originals(
    entries: Mapping[bytes, bytes], headers: Mapping[str, Header], path: str
) -> dict[bytes, bytes]:
    """Remove the original schemas of all columns except those that stay encrypted."""
    found = _columns(entries.get(ORIGINAL), path, strict=False)
    left = {name: item for name, item in found.items() if name in headers}
    return _with_entry(entries, left, spelling_in(entries) if headers else None)


def decrypted_column(
    original: Original | None, field: pa.Field, shown: pa.Field, stored: pa.Schema | None
) -> tuple[Replacement, pa.Field]:
    """Return how to write a decrypted column, and the field that Arrow will show for it.

    Args:
        original: its schema before it was encrypted.
        field: its name and the type of its values.
        shown: the field that Arrow shows for the encrypted column.
        stored: the Arrow schema that is stored in the file.

    Raises:
        UnsupportedTypeError: Parquet does not support the type of the column.
    """
    arrow = None if stored is None else arrow_field(stored, shown, field.type)
    key = None if arrow is None else pa.schema([arrow]).serialize().to_pybytes()
    return _decrypted(original, field.name, field.type, field.nullable, key)


@functools.lru_cache(256)  # thousands of small files often have the same columns
def _decrypted(
    original: Original | None, name: str, kind: pa.DataType, nullable: bool, arrow: bytes | None
) -> tuple[Replacement, pa.Field]:
    field = pa.field(name, kind, nullable)
    try:
        usual = replacement(field)
        stored = None if arrow is None else pa.ipc.read_schema(pa.py_buffer(arrow)).field(0)
        view = arrow_view(usual.elements, stored)
        if original is not None and (exact := _exact(original, usual, stored)) is not None:
            return exact
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        raise UnsupportedTypeError(
            f"column {name!r} is {kind}, which Parquet does not support. Decrypt it as a frame or table",
            column=name,
            dtype=str(kind),
        ) from None
    # Parquet changes some units of time: the Arrow schema must not say the ones from before.
    return replace(usual, arrow=None if stored is None else stored.with_type(view.type)), view


def _exact(
    original: Original, usual: Replacement, stored: pa.Field | None
) -> tuple[Replacement, pa.Field] | None:
    """Return how to write a column with its original schema; None if pyarrow cannot write it so."""
    elements = original.parquet
    if value(elements[0], 4) != usual.field.name.encode():
        return None
    arrow = None if stored is None else original.arrow or stored
    try:
        view = arrow_view(elements, arrow)
    except (pa.ArrowException, OSError):
        return None
    if view.type != usual.field.type or view.nullable != usual.field.nullable:
        return None
    for written in _ways(elements, usual):
        if _shape(written.elements) == _shape(elements):
            return replace(written, elements=elements, arrow=arrow), view
    nearest = _with_leaves(elements, usual.elements)
    if nearest is None or arrow_view(nearest, arrow).type != view.type:
        return None
    return replace(usual, elements=nearest, arrow=arrow), view


def _with_leaves(elements: list[Struct], blank: Sequence[Struct]) -> list[Struct] | None:
    """Return a schema with the leaves that pyarrow writes, if it differs only in their physical types.

    These are decimals in nested columns; groups such as VARIANT, names and field ids stay.
    """
    if [above for *_, above in _shape(elements)] != [above for *_, above in _shape(blank)]:
        return None
    written = iter(part for part in blank if not value(part, 5, 0))
    out = []
    for part in elements:
        if not value(part, 5, 0) and _shape([part])[0][:2] != _shape([leaf := next(written)])[0][:2]:
            part = {k: v for k, v in part.items() if k in (3, 4, 9)} | {
                k: v for k, v in leaf.items() if k not in (3, 4, 9)
            }
        out.append(part)
    return out


def _ways(elements: list[Struct], usual: Replacement) -> Any:
    """Yield the ways in which pyarrow can write a column."""
    yield usual
    for more in (_AS_INT96, _AS_INTEGERS, _AS_INT96 | _AS_INTEGERS):
        # TypeError: this version of pyarrow does not write decimals as integers.
        with contextlib.suppress(TypeError):
            yield Replacement.of(usual.field, {**usual.settings, **more})
    kind = usual.field.type
    if len(elements) == 1 and (pa.types.is_decimal128(kind) or pa.types.is_decimal256(kind)):
        stored = _physical(elements[0])
        if stored is not None:
            settings = {**usual.settings, "write_statistics": False}  # their order would be that of bytes
            way = Replacement.of(usual.field.with_type(stored), settings)
            yield replace(way, convert=functools.partial(_each, _unscaled(stored)))


def _physical(element: Struct) -> pa.DataType | None:
    """Return the Arrow type with the physical type of a decimal."""
    kind = value(element, 1)
    if kind == _FIXED:
        return pa.binary(value(element, 2))
    return {_INT32: pa.int32(), _INT64: pa.int64(), _BYTE_ARRAY: pa.binary()}.get(kind)


def _each(convert: Callable[[pa.Array], pa.Array], values: Any) -> pa.ChunkedArray:
    return pa.chunked_array([convert(chunk) for chunk in getattr(values, "chunks", [values])])


def _unscaled(kind: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    """Return a function that converts decimals to the integers that Parquet stores, without the scale."""

    def convert(values: pa.Array) -> pa.Array:
        width = values.type.byte_width
        raw = np.frombuffer(values.buffers()[1] or b"", np.uint8)
        little = raw[values.offset * width :][: len(values) * width].reshape(-1, width)
        size = {pa.int32(): 4, pa.int64(): 8, pa.binary(): width}.get(kind) or kind.byte_width
        if size > width:  # extend the sign
            sign = np.repeat(np.where(little[:, -1:] > 127, 255, 0).astype(np.uint8), size - width, axis=1)
            little = np.concatenate([little, sign], axis=1)
        data = little[:, :size] if pa.types.is_integer(kind) else little[:, :size][:, ::-1]
        valid = values.is_valid().buffers()[1] if values.null_count else None
        buffers = [valid, pa.py_buffer(np.ascontiguousarray(data))]
        wide = kind if kind != pa.binary() else pa.binary(size)
        return pa.Array.from_buffers(wide, len(values), buffers).cast(kind)

    return convert


def _shape(elements: Sequence[Struct]) -> list[tuple[Any, ...]]:
    """Return what determines the pages of each leaf: its physical type, and what is optional and repeated."""
    leaves = []
    inside: list[tuple[int, tuple[int, ...]]] = [
        (1, ())
    ]  # open groups: children left, and what is above them
    for element in elements:
        left, above = inside.pop()
        if left > 1:
            inside.append((left - 1, above))
        repetition, children = value(element, 3, 0), value(element, 5, 0)
        above = (*above, repetition) if repetition else above
        if children:
            inside.append((children, above))
        else:
            kind = value(element, 1)
            leaves.append((kind, value(element, 2) if kind == _FIXED else None, above))
    return leaves


# --- the entry ------------------------------------------------------------------------------------


def _columns(text: bytes | None, path: str, *, strict: bool = True) -> dict[str, dict[str, str]]:
    """Return what the entry says, by column."""
    if text is None:
        return {}
    try:
        data = json.loads(text)
        columns: dict[str, dict[str, str]] = data["columns"]
        fine = data["version"] == 1 and all(
            {"data_key", "elements", "mac"} <= item.keys() <= {"data_key", "elements", "mac", "field"}
            and all(isinstance(part, str) for part in item.values())
            for item in columns.values()
        )
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        fine = False
    if fine:
        return columns
    if not strict:
        return {}
    raise FormatError(f"{path}: the entry 'kmsdata.original' of its metadata is damaged", path=path)


def spelling_in(entries: Mapping[bytes, bytes]) -> bytes | None:
    """Return the text of the Arrow schema from before the encryption, if pyarrow would write other bytes.

    It is not authenticated: it is used only where it says the same as the schema that pyarrow would write.
    """
    try:
        text = json.loads(entries.get(ORIGINAL, b"{}")).get("arrow")
    except (ValueError, RecursionError, AttributeError):
        return None
    return text.encode() if isinstance(text, str) and text.isascii() else None


def _with_entry(
    entries: Mapping[bytes, bytes], columns: Mapping[str, Any], spelled: bytes | None
) -> dict[bytes, bytes]:
    out = {key: text for key, text in entries.items() if key != ORIGINAL}
    if columns or spelled is not None:
        arrow = {} if spelled is None else {"arrow": spelled.decode()}
        out[ORIGINAL] = canonical({"columns": dict(columns), "version": 1, **arrow}).encode()
    return out
