"""What cannot be encrypted or read is refused by name."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kmsdata


@pytest.mark.newest
def test_dictionaries_of_extension_types():
    values = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"a" * 16], pa.binary(16)))
    table = pa.table({"c": pa.DictionaryArray.from_arrays(pa.array([0, None]), values)})
    with pytest.raises(kmsdata.UnsupportedTypeError, match="dictionary_decode"):
        kmsdata.encrypt_table(table, "c", key="local://demo")


@pytest.mark.parametrize("read", [kmsdata.inspect, kmsdata.read_parquet])
def test_columns_of_one_name(read, tmp_path):
    pq.write_table(pa.table([[1], [2]], names=["a", "a"]), tmp_path / "a.parquet")
    with pytest.raises(kmsdata.FormatError, match=r"a\.parquet: several columns have the same name"):
        read(tmp_path / "a.parquet")
