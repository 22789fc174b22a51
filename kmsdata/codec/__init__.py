"""Values <-> bytes, exactly: what a column is (``type``), and each of its values as bytes of its own.

``describe`` says what a column is, without its data; ``pack`` makes cells of it; ``unpack`` and
``unpack_arrow`` bring back what was there: dtype, bits, and which null. The grammar of ``type`` stands in
``types.py`` and ``zones.py``, the bytes of a cell in ``frames.py`` (pandas), ``arrow.py`` (Arrow),
``objects.py`` and ``tags.py`` (Python objects) and ``kinds.py`` (deterministic columns). ``literals`` makes
deterministic cells of values to look for.
"""

from kmsdata.codec.pack import Description, describe, pack, unpack, unpack_arrow
from kmsdata.codec.search_values import literals
from kmsdata.codec.types import check, label, retyped, width

__all__ = [
    "Description",
    "check",
    "describe",
    "label",
    "literals",
    "pack",
    "retyped",
    "unpack",
    "unpack_arrow",
    "width",
]
