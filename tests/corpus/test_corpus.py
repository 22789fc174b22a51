"""Every file of the test data of pyarrow, and of what other software writes, comes back unchanged."""

import importlib.resources
from pathlib import Path

import pytest

import kmsdata
from tests.corpus.round_trip import FAILED, FINE, REFUSED, steps
from tests.corpus.writers import WRITERS, table

pytestmark = pytest.mark.newest

PYARROW = sorted(
    path.name
    for path in (Path(str(importlib.resources.files("pyarrow"))) / "tests" / "data" / "parquet").glob(
        "*.parquet"
    )
)
# The zone is only in pandas' metadata, which is not authenticated: a header has the zone of the Arrow type.
ZONE = "datetime64[us, UTC] [right]: datetime64[ns, Europe/Brussels]"
# fastparquet reads the codes of all row groups with the first one's dictionary: values would be others.
NO_DICTIONARY = "Attempt to load as categorical a column with no dictionary"
INDEX = "is the pandas index, which is not encrypted"


@pytest.fixture
def keys(keystore):
    store = kmsdata.LocalKeystore(create=True)
    store.create_key("corpus")
    store.create_key("corpus-2")


def check(path, folder, allowed=()):
    found = list(steps(path, folder))
    wrong = [
        f"{step.name}: {step.outcome} {step.detail}"
        for step in found
        if (step.outcome == FAILED and not any(reason in step.detail for reason in allowed))
        or (step.outcome == REFUSED and not any(reason in step.detail for reason in allowed))
    ]
    assert not wrong, "\n".join(wrong)
    assert sum(step.outcome == FINE for step in found) > 10


@pytest.mark.parametrize("name", PYARROW)
def test_files_of_old_versions_of_pyarrow_come_back(name, tmp_path, keys):
    path = Path(str(importlib.resources.files("pyarrow"))) / "tests" / "data" / "parquet" / name
    check(path, tmp_path, [INDEX, ZONE])


def test_pyarrow_has_test_data():
    assert len(PYARROW) >= 4


@pytest.mark.engine("pyspark")
@pytest.mark.slow
def test_files_of_spark_come_back(spark, tmp_path, keys):
    columns = ["i64", "f32", "bool", "text", "bytes", "date", "zoned", "decimal", "list", "structs", "map"]
    rows = table().select(columns).to_pylist()
    schema = (
        "i64 bigint, f32 float, bool boolean, text string, bytes binary, date date, zoned timestamp, "
        "decimal decimal(20, 2), list array<int>, structs struct<a: bigint, b: array<struct<c: string>>>, "
        "map map<string, bigint>"
    )
    rows = [tuple(dict(row["map"]) if name == "map" else row[name] for name in columns) for row in rows]
    spark.createDataFrame(rows, schema).coalesce(1).write.parquet(str(tmp_path / "spark"))
    (path,) = (tmp_path / "spark").glob("*.parquet")
    check(path, tmp_path / "out")


@pytest.mark.parametrize("writer", WRITERS)
def test_files_of_other_software_come_back(writer, tmp_path, keys):
    path = tmp_path / "original.parquet"
    WRITERS[writer](path)
    check(path, tmp_path, [INDEX, NO_DICTIONARY])
