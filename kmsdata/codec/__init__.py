"""Convert columns to bytes and back exactly: a column's ``type``, and one byte string (cell) per value.

``describe`` returns the type of a column, without its data; ``pack`` makes its cells; ``unpack`` and
``unpack_arrow`` restore the column: dtype, bits, and which null. ``literals`` makes deterministic cells of
values to search for.

==============================================  ======================================================
file                                            contents
==============================================  ======================================================
``pack.py``                                     ``describe``, ``pack``, ``unpack``, ``unpack_arrow``
``types.py``, ``arrow_types.py``,               the grammar of ``type``: pandas dtypes, Arrow types,
``time_zones.py``                               time zones
``pandas_arrays.py``, ``arrow_arrays.py``       the bytes of a cell, for pandas and for Arrow columns
``python_objects.py``, ``tagged_objects.py``    the bytes of a cell, for columns of Python objects
``deterministic.py``                            the bytes of a cell, for deterministic columns
``search_values.py``                            ``literals``
==============================================  ======================================================
"""

from kmsdata.codec.pack import Description, describe, is_ordered, pack, through_pandas, unpack, unpack_arrow
from kmsdata.codec.search_values import literals
from kmsdata.codec.types import check, label, retyped, width

__all__ = [
    "Description",
    "check",
    "describe",
    "is_ordered",
    "label",
    "literals",
    "pack",
    "retyped",
    "through_pandas",
    "unpack",
    "unpack_arrow",
    "width",
]
