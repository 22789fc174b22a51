"""Each test has a keystore of its own, and a session without a key."""

import importlib.resources

import pandas as pd
import pytest

from kmsdata import session


@pytest.fixture(autouse=True)
def keystore(tmp_path, monkeypatch):
    path = tmp_path / "keystore" / "keystore.json"
    monkeypatch.setenv("KMSDATA_KEYSTORE", str(path))
    monkeypatch.delenv("KMSDATA_KEY", raising=False)
    monkeypatch.delenv("KMSDATA_PASSPHRASE", raising=False)
    monkeypatch.setattr(session, "_process", [])
    monkeypatch.setattr(session, "_keystores", {})
    return path


@pytest.fixture(scope="session")
def titanic():
    with (importlib.resources.files("kmsdata") / "data" / "titanic.csv").open() as file:
        return pd.read_csv(file)
