"""Compare the footers of Parquet files field by field, by the numbers of parquet.thrift."""

import base64

import pyarrow as pa

from kmsdata.parquet.footer import read_metadata
from kmsdata.parquet.thrift import value

OURS = (b"kmsdata", b"kmsdata.original")  # entries of encrypted files
MOVED = (9, 10, 11, 14)  # positions in a file


def footer(path):
    """Return the decoded footer of a file."""
    with path.open("rb") as file:
        return read_metadata(file, file.seek(0, 2), str(path))


def entries(path):
    """Return the key-value metadata in its order."""
    return [(value(e, 1), value(e, 2)) for e in value(footer(path).fields, 5, (12, []))[1]]


def _same(one, two):
    """Tell whether two entries are equal; other libraries write Arrow schemas in other bytes."""
    if one[0] != b"ARROW:schema" or two[0] != one[0]:
        return one == two
    a, b = (pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text))) for _, text in (one, two))
    return a.equals(b, check_metadata=True) or (a.equals(b) and not (a.metadata or b.metadata))


def differences(before, after, replaced):
    """List the differences of two files, except in the pages and statistics of the replaced columns.

    Args:
        before: the path of a file.
        after: the path of the file with some columns encrypted, or encrypted and decrypted again.
        replaced: names of these columns. Their schema is compared too if ``after`` has no header.
    """
    one, two, found = footer(before), footer(after), []
    sealed = b"kmsdata" in dict(entries(after))
    found += [f"FileMetaData {n}" for n in (1, 3, 6) if one.fields.get(n) != two.fields.get(n)]
    found += [] if value(one.fields, 2)[1][0] == value(two.fields, 2)[1][0] else ["root of the schema"]
    found += [] if one.columns == two.columns or sealed else ["columns"]
    orders = [value(part.fields, 7, (12, []))[1] for part in (one, two)]
    for (name, leaves), old, (_, own), new in zip(
        one.columns, one.elements, two.columns, two.elements, strict=True
    ):
        if name in replaced and sealed:
            # The name, the repetition and the field id of a column stay.
            pairs = [(old[0].get(number), new[0].get(number)) for number in (3, 4, 9)]
            found += [f"column {name!r}"] if any(a != b for a, b in pairs) else []
            continue
        found += [] if old == new else [f"schema of {name!r}: {old} became {new}"]
        if [orders[0][n] for n in leaves if orders[0]] != [orders[1][n] for n in own if orders[1]]:
            found.append(f"order of {name!r}")
    kept = [pair for pair in entries(after) if pair[0] not in OURS]
    if sealed:  # software that describes columns in the metadata: the entries of encrypted ones differ
        found += [] if [key for key, _ in kept] == [key for key, _ in entries(before)] else ["keys"]
    else:
        found += [f"entry {a[0]}" for a, b in zip(entries(before), kept, strict=True) if not _same(a, b)]
    for number, (group, new) in enumerate(zip(one.groups, two.groups, strict=True)):
        same = [n for n in (3, 7) if group.get(n) != new.get(n)]
        found += [f"row group {number}, {n}" for n in same]
        for (name, leaves), (_, own) in zip(one.columns, two.columns, strict=True):
            if name in replaced:
                if not sealed:
                    paths = [
                        [value(value(value(g, 1)[1][n], 3), 3) for n in part]
                        for g, part in ((group, leaves), (new, own))
                    ]
                    found += [] if paths[0] == paths[1] else [f"row group {number}, paths of {name!r}"]
                continue
            for a, b in zip(leaves, own, strict=True):
                metas = [
                    {k: v for k, v in value(value(g, 1)[1][n], 3).items() if k not in MOVED}
                    for g, n in ((group, a), (new, b))
                ]
                found += [] if metas[0] == metas[1] else [f"row group {number}, chunk of {name!r}"]
    return found
