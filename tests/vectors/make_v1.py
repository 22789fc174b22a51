"""Made tests/vectors/v1, once. Files there are never made again: they must be readable forever.

To add a vector, add it below and run this; it leaves what is there alone.
"""

import datetime as dt
import decimal
import json
import os
import platform
import uuid
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

import kmsdata
from kmsdata import EncryptedArray, EncryptedDtype, codec
from kmsdata.parquet.headers import read_headers

HERE = Path(__file__).parent / "v1"
KEY = "local://vectors"

plain = pd.DataFrame(
    {
        "text": ["Ada", "", "Zoë Müller", None, "身份证 🔑"],
        "int": [1, -2, 3, 2**62, 0],
        "float": [1.5, -0.0, np.nan, np.inf, 5e-324],
    }
)
types = pd.DataFrame(
    {
        "bool": [True, False, True],
        "int8": np.array([1, -1, 127], "int8"),
        "uint64": np.array([0, 1, 2**64 - 1], "uint64"),
        "float16": np.array([1.5, np.nan, -2], "float16"),
        "nan payload": np.array([0x7FF8000000000001, 0xFFF8000000000000, 0x7FF8000000000000], "u8").view(
            "f8"
        ),
        "complex128": np.array([1 + 2j, 0, -1j]),
        "Int64": pd.array([1, None, 3], "Int64"),
        "Float64": pd.arrays.FloatingArray(np.array([1, np.nan, 2.0]), np.array([False, False, True])),
        "boolean": pd.array([True, None, False], "boolean"),
        "string": pd.array(["a", None, "ü"], "string[pyarrow]"),
        "datetime": pd.to_datetime(["2024-02-29 12:00", None, "1969-12-31 00:00"]).as_unit("us"),
        "zoned": pd.to_datetime(["2024-02-29 12:00", None, "2024-07-01 00:00"])
        .tz_localize("Asia/Shanghai")
        .as_unit("ns"),
        "timedelta": pd.to_timedelta([1, None, -3], unit="s").as_unit("ms"),
        "period": pd.PeriodIndex(["2024-01", None, "2024-03"], freq="M"),
        "interval": pd.IntervalIndex.from_tuples([(0, 1), (1, 2), (5, 9)], closed="left"),
        "category": pd.Categorical(["b", None, "a"], categories=["a", "b", "unused"], ordered=True),
        "bytes": pd.Series([b"\0\xff", b"", None], dtype=object),
        "date": pd.Series([dt.date(2024, 2, 29), None, dt.date(1, 1, 1)], dtype=object),
        "uuid": pd.Series([uuid.UUID(int=1), None, uuid.UUID(int=2**128 - 1)], dtype=object),
        "decimal": pd.Series([decimal.Decimal("2.50"), None, decimal.Decimal("1E+3")], dtype=object),
        "mixed": pd.Series([1, "one", (1, 2.5, None)], dtype=object),
        "arrow decimal": pd.array(
            [decimal.Decimal("1.50"), None, decimal.Decimal("-2.00")], pd.ArrowDtype(pa.decimal128(9, 2))
        ),
        "arrow list": pd.array([[1, None], None, []], pd.ArrowDtype(pa.list_(pa.int16()))),
    }
)
exact = pd.DataFrame(
    {
        "text": ["Ada", "", None],
        "bytes": pd.Series([b"\0", b"", None], dtype=object),
        "bool": [True, False, True],
        "int": np.array([1, -1, 127], "int8"),
        "uint": np.array([0, 1, 255], "uint8"),
        "timestamp": pd.to_datetime(["2024-02-29 12:00", None, "1969-12-31 00:00"]).as_unit("s"),
        "instant": pd.to_datetime(["2024-02-29 12:00", None, "1969-12-31 00:00"])
        .tz_localize("UTC")
        .as_unit("s"),
        "date": pd.Series([dt.date(2024, 2, 29), None, dt.date(1970, 1, 1)], dtype=object),
        "decimal": pd.array(
            [decimal.Decimal("1.50"), None, decimal.Decimal("-2.00")], pd.ArrowDtype(pa.decimal128(9, 2))
        ),
        "uuid": pd.Series([uuid.UUID(int=1), None, uuid.UUID(int=2)], dtype=object),
        "tagged": pd.Series([1, "one", None], dtype=object),
        "naive interval": pd.IntervalIndex.from_breaks(pd.date_range("2024-02-29", periods=4).as_unit("s")),
        "zoned interval": pd.IntervalIndex.from_breaks(
            pd.date_range("2024-02-29", periods=4, tz="Asia/Shanghai").as_unit("s")
        ),
        "category": pd.Categorical(["b", None, "a"], categories=["a", "b", "unused"]),
    }
)


def main():
    HERE.mkdir(exist_ok=True)
    os.umask(0o077)
    os.environ["KMSDATA_KEYSTORE"] = str(HERE / "keystore.json")
    if not (HERE / "keystore.json").exists():
        for name in ("vectors", "elsewhere"):
            kmsdata.LocalKeystore().create_key(name, quiet=True)
    good = {
        "plain": lambda: plain.kms.encrypt(list(plain), key=KEY),
        "types": lambda: types.kms.encrypt(list(types), key=KEY),
        "deterministic": lambda: exact.kms.encrypt(list(exact), deterministic=True, key=KEY),
        "domain": lambda: exact[["text"]].kms.encrypt(deterministic="text", domain="person", key=KEY),
        "context": lambda: plain.kms.encrypt("text", key=KEY, context={"team": "人事", "year": "2026"}),
        "two wraps": lambda: plain.kms.encrypt("text", key=["local://elsewhere", KEY]),
        "two data keys": two_data_keys,
        "two types": two_types,
        "no rows": lambda: plain.head(0).kms.encrypt(list(plain), key=KEY),
    }
    for name, make in good.items():
        if not (HERE / f"{name}.parquet").exists():
            frame = make()
            frame.kms.to_parquet(HERE / f"{name}.parquet")
            write(name, "success", frame.kms.decrypt())
    store = json.loads((HERE / "keystore.json").read_text())
    if store["keys"].pop("elsewhere", None):  # so that "two wraps" opens by the second one only
        (HERE / "keystore.json").write_text(json.dumps(store, indent=1) + "\n")
    sealed = plain.kms.encrypt(["text", "int"], key=KEY)
    if not (HERE / "entry only.parquet").exists():
        sealed.kms.to_parquet(HERE / "entry only.parquet")
        table = pq.read_table(HERE / "entry only.parquet")
        for name in ("text", "int"):
            place = table.schema.get_field_index(name)
            cells = table.column(name).combine_chunks().storage.cast(pa.binary())
            table = table.set_column(place, pa.field(name, pa.binary()), cells)
        pq.write_table(table, HERE / "entry only.parquet")
        write("entry only", "success", sealed.kms.decrypt())
    bad = {
        "changed tag": (
            "tampered",
            lambda f: recelled(f, lambda c: [c[0][:-1] + bytes([c[0][-1] ^ 1]), *c[1:]]),
        ),
        "changed version byte": ("tampered", lambda f: recelled(f, lambda c: [b"\2" + c[0][1:], *c[1:]])),
        "cut short": ("tampered", lambda f: recelled(f, lambda c: [c[0][:20], *c[1:]])),
        "changed key id": ("wrong key", lambda f: recelled(f, lambda c: [b"\1\0\0\0\0" + c[0][5:], *c[1:]])),
        "changed type": ("format", lambda f: reheaded(f, '"arrow":"', '"arrow":"large_')),
        "changed name": ("format", lambda f: reheaded(f, '"name":"text"', '"name":"txt"')),
        "not canonical": ("format", lambda f: reheaded(f, '"version":1', '"version": 1')),
        "version 2": ("format", lambda f: reheaded(f, '"version":1', '"version":2')),
        "unknown algorithm": ("format", lambda f: reheaded(f, "AES-256-GCM", "AES-256-CTR")),
        "unknown field": ("format", lambda f: reheaded(f, '{"column"', '{"aaa":1,"column"')),
        "unknown option": ("format", lambda f: reheaded(f, '"mac"', '"hide_nulls":true,"mac"')),
        "changed context": ("wrong key", lambda f: reheaded(f, '"context":{}', '"context":{"a":"b"}')),
        "changed commitment": ("wrong key", recommitted),
        "header of another type": ("wrong key", under_another_type),
        "header of another list": ("wrong key", under_another_list),
        "exchanged": ("format", lambda f: f.assign(text=f["int"], int=f["text"])),
        "exchanged deterministic": ("format", exchanged_deterministic),
    }
    for name, (outcome, spoil) in bad.items():
        if not (HERE / f"{name}.parquet").exists():
            pa_table = pa.Table.from_pandas(spoil(plain.kms.encrypt(["text", "int"], key=KEY)))
            pq.write_table(pa_table, HERE / f"{name}.parquet")
            write(name, outcome)


def two_data_keys():
    first, second = (part.kms.encrypt("text", key=KEY) for part in (plain.head(2), plain.tail(3)))
    return pd.concat([first, second])


def two_types():
    """One name and data key, three types: each cell opens under its own column object only."""
    data_key = kmsdata.new_data_key(KEY)
    every = [pd.Series([1, None], dtype="Int64"), pd.Series([2**53 + 1]), pd.Series([-5], dtype="int64")]
    return pd.concat([pd.DataFrame({"n": part}).kms.encrypt("n", key=data_key) for part in every])


def under_another_type(frame):
    data_key = kmsdata.new_data_key(KEY)
    one, two = (pd.DataFrame({"text": v}).kms.encrypt("text", key=data_key) for v in ([1, 2], [0.5, 1.5]))
    return pd.DataFrame({"text": EncryptedArray(one["text"].array.storage, two["text"].dtype)})


def under_another_list(frame):
    data_key = kmsdata.new_data_key(KEY)
    sizes = pd.Categorical(["small", "large"], ["small", "large"], ordered=True)
    both = (sizes, sizes.reorder_categories(["large", "small"]))
    one, two = (pd.DataFrame({"text": v}).kms.encrypt("text", key=data_key) for v in both)
    return pd.DataFrame({"text": EncryptedArray(one["text"].array.storage, two["text"].dtype)})


def exchanged_deterministic(frame):
    enc = pd.DataFrame({"note": ["x"], "text": ["y"]}).kms.encrypt(deterministic=["text", "note"], key=KEY)
    return enc.rename(columns={"text": "note", "note": "text"})


def recelled(frame, change):
    cells = change(frame["text"].array.storage.to_pylist())
    return frame.assign(text=EncryptedArray(pa.array(cells, pa.large_binary()), frame["text"].dtype))


def reheaded(frame, old, new):
    text = frame["text"].dtype.text
    if old not in text:
        raise SystemExit(f"{old} is not in the header")
    return frame.assign(
        text=EncryptedArray(frame["text"].array.storage, EncryptedDtype(text.replace(old, new, 1)))
    )


def recommitted(frame):
    document = json.loads(frame["text"].dtype.text)
    zero = "A" * 43 + "="
    document["data_keys"][0]["commitment"] = document["column"][0]["data_key"] = zero
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return frame.assign(text=EncryptedArray(frame["text"].array.storage, EncryptedDtype(text)))


def write(name, outcome, frame=None):
    about = {
        "expect": outcome,
        "made_by": f"kmsdata {kmsdata.__version__}, pandas {pd.__version__}, pyarrow {pa.__version__}, "
        f"Python {platform.python_version()}",
    }
    if frame is not None:
        about["cells"] = {
            column: plaintexts(frame[column], header.columns[0].kind is not None)
            for column, header in read_headers(HERE / f"{name}.parquet").items()
        }
    (HERE / f"{name}.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def plaintexts(series, deterministic):
    """What the cells of a column hold, in hex."""
    described = codec.describe(series, column="", deterministic=deterministic)
    return [None if cell is None else cell.hex() for cell in codec.pack(described, series, column="").rows()]


if __name__ == "__main__":
    main()
