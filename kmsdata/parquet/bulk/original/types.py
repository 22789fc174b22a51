"""Keep the Parquet schema of encrypted columns, and restore it when they are decrypted.

A header contains the Arrow type of a column, but several Parquet types have the same Arrow type: INT96 and
INT64 timestamps, ENUM, BSON and binary, GEOMETRY and GEOGRAPHY with their CRS, VARIANT, decimals of any
physical type, lists of any layout. So where pyarrow would write a column in another way than the source, its
part of the Parquet schema is kept, and its field in the Arrow schema. They are used only if Arrow then shows
the type that the header says.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from kmsdata.errors import UnsupportedTypeError
from kmsdata.keys.envelope import base64_text
from kmsdata.parquet.bulk.original.entry import malformed
from kmsdata.parquet.column_chunks import Replacement, arrow_field, arrow_schema, arrow_view
from kmsdata.parquet.footer import FileMetaData
from kmsdata.parquet.thrift import LIST, STRUCT, Struct, decode, encode, value
from kmsdata.parquet.write import replacement

__all__ = ["Original", "decrypted_column", "original_types", "types_in"]

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

    @property
    def members(self) -> dict[str, str]:
        """Its members of the entry."""
        members = {"elements": self.elements, "field": self.field}
        return {key: base64_text(part) for key, part in members.items() if part}


# --- encryption -----------------------------------------------------------------------------------


def original_types(
    footer: FileMetaData, schema: pa.Schema, columns: Collection[str], path: str
) -> dict[str, Original]:
    """Return the original schema of columns to encrypt, where decryption could not infer it.

    Args:
        footer: the footer of the source.
        schema: the schema that Arrow shows for it.
        columns: names of the columns.
        path: the path of the source, for errors.

    Raises:
        UnsupportedTypeError: pyarrow cannot write a column of VARIANT, GEOMETRY, GEOGRAPHY or a later type
            as it is.
    """
    found = {}
    stored = arrow_schema(footer, path)
    for (name, _), elements in zip(footer.columns, footer.elements, strict=True):
        if name in columns and (original := _original(elements, stored, schema.field(name))):
            _check_restored(original, stored, schema.field(name), path)
            found[name] = original
    return found


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
        if not was.equals(arrow_field(stored, shown, shown.type, encrypted=True), check_metadata=True):
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


def types_in(parts: Mapping[str, Mapping[str, Any]], path: str) -> dict[str, Original]:
    """Return the original schema of columns from their parts of the entry, of those that have one.

    Raises:
        FormatError: a part is malformed.
    """
    found = {}
    for name, members in parts.items():
        if "elements" not in members:
            continue
        original = Original(members["elements"], members.get("field", b""))
        try:
            _shape(original.parquet)
            fine = isinstance(value(original.parquet[0], 4), bytes)
            original.arrow  # noqa: B018 - decodes it
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
            pa.ArrowException,
            OSError,
        ):
            fine = False
        if not fine:
            raise malformed(name, path)
        found[name] = original
    return found


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
