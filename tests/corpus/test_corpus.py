"""Every file of pyarrow's own test data, and of what other software writes, comes back as it was."""

import importlib.resources
from pathlib import Path

import pytest

import kmsdata
from tests.corpus.round_trip import FAILED, FINE, REFUSED, steps
from tests.corpus.writers import WRITERS

pytestmark = pytest.mark.newest

PYARROW = sorted(
    path.name
    for path in (Path(str(importlib.resources.files("pyarrow"))) / "tests" / "data" / "parquet").glob(
        "*.parquet"
    )
)
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
        if step.outcome == FAILED
        or (step.outcome == REFUSED and not any(reason in step.detail for reason in allowed))
    ]
    assert not wrong, "\n".join(wrong)
    assert sum(step.outcome == FINE for step in found) > 10


@pytest.mark.parametrize("name", PYARROW)
def test_files_of_old_versions_of_pyarrow_come_back(name, tmp_path, keys):
    path = Path(str(importlib.resources.files("pyarrow"))) / "tests" / "data" / "parquet" / name
    check(path, tmp_path, [INDEX])


def test_pyarrow_has_test_data():
    assert len(PYARROW) >= 4


@pytest.mark.parametrize("writer", WRITERS)
def test_files_of_other_software_come_back(writer, tmp_path, keys):
    path = tmp_path / "original.parquet"
    WRITERS[writer](path)
    check(path, tmp_path, [INDEX])
