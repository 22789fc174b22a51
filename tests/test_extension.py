"""pandas' own extension-array suite over an encrypted column. This file should contain no other tests."""

import pandas as pd
import pytest
from pandas.tests.extension import base
from pandas.tests.extension.conftest import *  # noqa: F403

from kmsdata import DataKey
from kmsdata.dtype import EncryptedArray
from kmsdata.envelope import Wrap

KEY = DataKey(bytes(range(32)), [Wrap("local://demo", "never unwrapped here")])


def encrypted(*values):
    """A deterministic column: it alone can be grouped, made unique and compared."""
    frame = pd.DataFrame({"c": pd.Series(values, dtype=object)})
    return frame.kms.encrypt(deterministic="c", key=KEY)["c"].array


@pytest.fixture
def data():
    return encrypted(*"abcdefghij")


@pytest.fixture
def dtype(data):
    return data.dtype


@pytest.fixture
def data_missing():
    return encrypted(None, "a")


@pytest.fixture
def data_for_sorting():
    a, b, c = sorted(encrypted("a", "b", "c"))
    return EncryptedArray._from_sequence([b, c, a])


@pytest.fixture
def data_missing_for_sorting():
    a, b = sorted(encrypted("a", "b"))
    return EncryptedArray._from_sequence([b, None, a])


@pytest.fixture
def data_for_grouping():
    a, b, c = sorted(encrypted("a", "b", "c"))
    return EncryptedArray._from_sequence([b, b, None, None, a, a, b, c])


class TestEncryptedArray(base.ExtensionTests):
    pass
