"""One file goes around: every engine reads what the one before it wrote, and the values come back exactly."""

import decimal

import pandas as pd
import pyarrow as pa
import pytest

pytestmark = [
    pytest.mark.engine("dask", "duckdb", "polars", "pyspark", "ray"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

SECRET = ["name", "salary", "born"]
EXACT = "ignore:Series.values returning an ndarray"  # pandas 3.1 in pyarrow 25


@pytest.fixture
def ray(spark):
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(
            num_cpus=1,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            object_store_memory=100 << 20,
        )
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield ray
        ray.shutdown()


@pytest.mark.filterwarnings(EXACT)
def test_one_file_goes_around(tmp_path, spark, ray):
    people = pd.DataFrame(
        {
            "id": range(200),
            "city": [["Ulm", "Bonn", "Köln"][row % 3] for row in range(200)],
            "email": [f"u{row}@example.org" for row in range(200)],
            "name": [None if row % 7 == 0 else f"Name {row} Ünal" for row in range(200)],
            "salary": pd.Series([decimal.Decimal(row) / 4 for row in range(200)], dtype=object),
            "born": pd.date_range("1960-01-01 12:34:56.123456", periods=200, freq="37D", unit="us"),
        }
    )
    people["salary"] = people["salary"].astype(pd.ArrowDtype(pa.decimal128(10, 2)))
    visits = pd.DataFrame(
        {"email": [f"u{row}@example.org" for row in (3, 6, 9, 12, 500)], "visits": range(5)}
    )

    # pandas writes
    sealed = people.kms.encrypt(SECRET, deterministic="email", key="local://around")
    sealed.kms.to_parquet(tmp_path / "pandas.parquet", index=False)

    # Spark filters and writes
    import kmsdata.spark

    sdf = kmsdata.spark.read(spark, f"file://{tmp_path}/pandas.parquet")
    sdf.filter("city <> 'Bonn'").write.parquet(f"file://{tmp_path}/spark")

    # Dask joins
    import dask.dataframe as dd

    import kmsdata.dask

    ddf = kmsdata.dask.read_parquet(tmp_path / "spark")
    other = dd.from_pandas(visits, npartitions=1).kms.encrypt(deterministic="email", key=sealed)
    ddf.merge(other, on="email").kms.to_parquet(tmp_path / "dask")

    # Polars filters lazily
    import polars as pl

    import kmsdata.polars

    lf = pl.scan_parquet(tmp_path / "dask" / "*.parquet")
    lf.filter(pl.col("visits") < 3).kms.sink_parquet(tmp_path / "polars.parquet")

    # DuckDB aggregates the plain columns, and writes what it read
    import duckdb

    import kmsdata.duckdb

    con = duckdb.connect()
    file = str(tmp_path / "polars.parquet")
    assert con.execute(
        "SELECT city, sum(visits) FROM read_parquet(?) GROUP BY 1 ORDER BY 1", [file]
    ).fetchall() == [("Ulm", 3)]
    kmsdata.duckdb.to_parquet(con.read_parquet(file), tmp_path / "duckdb.parquet", like=file)

    # Ray decrypts
    import kmsdata.ray

    back = kmsdata.ray.decrypt(ray.data.read_parquet(str(tmp_path / "duckdb.parquet"))).to_pandas()

    expected = people.merge(visits[:3], on="email")
    through_ray = back.sort_values("id", ignore_index=True)[expected.columns.to_list()]
    pd.testing.assert_frame_equal(through_ray, expected, check_dtype=False)

    # pandas reads the last file: the dtypes of the beginning too
    last = kmsdata.read_parquet(tmp_path / "duckdb.parquet", decrypt=True)
    assert kmsdata.verify(tmp_path / "duckdb.parquet", encrypted=[*SECRET, "email"]).ok
    last = last.sort_values("id", ignore_index=True)[expected.columns.to_list()]
    pd.testing.assert_frame_equal(last, expected)
