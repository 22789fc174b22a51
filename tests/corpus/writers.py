"""Write Parquet files with other software, with as many of its types as it has."""

from __future__ import annotations

import datetime
import decimal
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

Writer = Callable[[Path], Any]
WRITERS: dict[str, Writer] = {}

ROWS = 40


def writes(name: str) -> Callable[[Writer], Writer]:
    """Register a function that writes one file under this name."""

    def register(writer: Writer) -> Writer:
        WRITERS[name] = writer
        return writer

    return register


def table() -> pa.Table:
    """Return a table with types that all versions of Parquet have, flat and nested, and with nulls."""
    n = ROWS
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901)
    moments = [moment + datetime.timedelta(k) for k in range(n)]
    texts = [None if k % 7 == 3 else f"value {k:04d}" for k in range(n)]
    columns = {
        "i8": pa.array(range(n), pa.int8()),
        "u64": pa.array([2**64 - 1 - k for k in range(n)], pa.uint64()),
        "i64": pa.array([None if k % 5 == 2 else 2**53 + k for k in range(n)], pa.int64()),
        "f32": pa.array([None if k % 6 == 1 else k / 7 for k in range(n)], pa.float32()),
        "f64": pa.array([float("nan") if k % 6 == 1 else -k / 3 for k in range(n)], pa.float64()),
        "bool": pa.array([None if k % 9 == 4 else k % 2 == 0 for k in range(n)]),
        "text": pa.array(texts),
        "large": pa.array(texts, pa.large_string()),
        "bytes": pa.array([None if t is None else t.encode() for t in texts], pa.binary()),
        "fixed": pa.array([bytes([k]) * 7 for k in range(n)], pa.binary(7)),
        "category": pa.array([f"group {k % 3}" for k in range(n)]).dictionary_encode(),
        "date": pa.array([moment.date() + datetime.timedelta(k) for k in range(n)]),
        "time": pa.array(
            [(moment + datetime.timedelta(minutes=k)).time() for k in range(n)], pa.time64("us")
        ),
        "naive": pa.array(moments, pa.timestamp("ms")),
        "zoned": pa.array(
            [moment + datetime.timedelta(k) for k in range(n)], pa.timestamp("us", "Asia/Shanghai")
        ),
        "decimal": pa.array([decimal.Decimal(k) / 100 for k in range(n)], pa.decimal128(20, 2)),
        "list": pa.array(
            [None if k % 8 == 5 else list(range(k % 4)) for k in range(n)], pa.list_(pa.int32())
        ),
        "structs": pa.array(
            [None if k % 6 == 4 else {"a": k, "b": [{"c": f"deep {k}"}, None]} for k in range(n)],
            pa.struct({"a": pa.int64(), "b": pa.list_(pa.struct({"c": pa.string()}))}),
        ),
        "map": pa.array([[("key", k)] for k in range(n)], pa.map_(pa.string(), pa.int64())),
        "身份证": pa.array([f"11010119900307{k:04d}" for k in range(n)]),
    }
    return pa.table(columns).replace_schema_metadata({"written for": "tests", "json": '{"a": [1, 2]}'})


@writes("pyarrow")
def _(path: Path) -> None:
    pq.write_table(table(), path, row_group_size=17)


@writes("pyarrow without ARROW:schema")
def _(path: Path) -> None:
    pq.write_table(table(), path, store_schema=False, row_group_size=17)


@writes("pyarrow, format 1.0, INT96, lists of items")
def _(path: Path) -> None:
    pq.write_table(
        table(),
        path,
        version="1.0",
        use_deprecated_int96_timestamps=True,
        use_compliant_nested_type=False,
        store_schema=False,
    )


@writes("pyarrow with all that it can write")
def _(path: Path) -> None:
    pq.write_table(
        table(),
        path,
        data_page_version="2.0",
        write_page_index=True,
        write_page_checksum=True,
        compression="zstd",
        sorting_columns=[pq.SortingColumn(0)],
        store_decimal_as_integer=True,
        row_group_size=11,
    )


@writes("pyarrow, no rows")
def _(path: Path) -> None:
    pq.write_table(table().slice(0, 0), path)


@writes("pandas")
def _(path: Path) -> None:
    frame = table().drop_columns(["structs", "map"]).to_pandas()
    frame["nullable"] = pd.array([None if k % 3 == 0 else k for k in range(ROWS)], "Int64")
    frame["period"] = pd.period_range("2026-01", periods=ROWS, freq="M")
    frame["span"] = pd.to_timedelta(np.arange(ROWS), "s")
    frame.index = pd.Index(range(100, 100 + ROWS), name="number")
    frame.attrs["source"] = "tests"
    frame.to_parquet(path)


@writes("DuckDB")
def _(path: Path) -> None:
    import duckdb

    # Some are no types of Parquet, some dates are beyond what Arrow has, and Arrow reads no null array.
    left_out = re.compile(r"date|timestamp|empty_struct|union|bignum|bit$|time|variant|.*fixed")
    with duckdb.connect() as connection:
        names = [row[0] for row in connection.execute("DESCRIBE SELECT * FROM test_all_types()").fetchall()]
        kept = ", ".join(f'"{name}"' for name in names if not left_out.match(name))
        moments = "DATE '2026-01-02' AS a, TIMESTAMP '2026-01-02 03:04:05' AS b, b::TIMESTAMPTZ AS c"
        every = f"SELECT {kept}, {moments} FROM test_all_types()"  # noqa: S608
        connection.execute(f"COPY ({every}) TO '{path}' (FORMAT parquet, KV_METADATA {{note: 'by DuckDB'}})")


@writes("DuckDB, version 2 with bloom filters")
def _(path: Path) -> None:
    import duckdb

    with duckdb.connect() as connection:
        columns = (
            "i AS number, 'value ' || (i % 50) AS text, i * 0.5 AS half, [i, NULL] AS list, "
            "{'a': i, 'b': 'x'} AS struct, MAP {'k': i} AS map, i::DECIMAL(9, 2) AS small, uuid() AS id"
        )
        how = "FORMAT parquet, PARQUET_VERSION v2, ROW_GROUP_SIZE 2048, COMPRESSION zstd"
        connection.execute(f"COPY (SELECT {columns} FROM range(5000) t(i)) TO '{path}' ({how})")  # noqa: S608


@writes("Polars")
def _(path: Path) -> None:
    import polars as pl

    n = ROWS
    frame = pl.from_arrow(table().drop_columns(["map"])).with_columns(  # Polars has no maps
        pl.Series("enum", ["a", "b"] * (n // 2), pl.Enum(["a", "b"])),
        pl.Series("duration", [datetime.timedelta(seconds=k) for k in range(n)]),
        pl.Series("clock", [datetime.time(1, 2, k) for k in range(n)]),
        pl.Series("nothing", [None] * n),
        pl.Series("array", [[k, None] for k in range(n)], pl.Array(pl.Int16, 2)),
    )
    frame.write_parquet(path, row_group_size=17, metadata={"note": "by Polars"})


@writes("fastparquet")
def _(path: Path) -> None:
    import fastparquet

    frame = table().select(["i64", "f64", "bool", "text", "naive", "date"]).to_pandas()
    frame["text"] = frame["text"].astype(object)
    frame["date"] = pd.to_datetime(frame["date"]).astype("datetime64[ns]")
    frame["naive"] = frame["naive"].astype("datetime64[ns]")
    frame["whole"] = np.arange(ROWS)
    frame["group"] = pd.Categorical([f"g{k % 3}" for k in range(ROWS)])
    fastparquet.write(str(path), frame, row_group_offsets=17)


@writes("geopandas")
def _(path: Path) -> None:
    import geopandas

    points = geopandas.points_from_xy(np.linspace(113.1, 114.6, ROWS), np.linspace(22.1, 22.9, ROWS))
    names = [f"place {k}" for k in range(ROWS)]
    geopandas.GeoDataFrame({"name": names}, geometry=points, crs="EPSG:4326").to_parquet(path)
