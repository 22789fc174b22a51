"""Columns of one name and data key but several types; and columns that look exchanged."""

import itertools
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kmsdata
from kmsdata import EncryptedArray, EncryptedDtype
from kmsdata.errors import FormatError, UnsupportedTypeError, WrongKeyError

KEY = "local://demo"
EIGHT_BYTES = ["int64", "uint64", "float64", "datetime64[ns]", "datetime64[s]", "timedelta64[ns]"]


@pytest.fixture
def data_key():
    return kmsdata.new_data_key(KEY)


def sealed(values, data_key, **how):
    return pd.DataFrame({"x": values}).kms.encrypt("x", key=data_key, **how)


@pytest.mark.parametrize(("one", "two"), list(itertools.permutations(EIGHT_BYTES, 2)))
def test_the_genuine_header_of_another_type_does_not_open_a_column(data_key, one, two):
    raw = np.array([4607182418800017408, 5], "i8")
    cells = sealed(pd.Series(raw.view(one)), data_key)
    header = sealed(pd.Series(raw.view(two)), data_key)["x"].dtype
    swapped = pd.DataFrame({"x": EncryptedArray(cells["x"].array.storage, header)})
    with pytest.raises(WrongKeyError):
        swapped.kms.decrypt()
    assert not kmsdata.verify(swapped).ok


def test_a_reversed_category_list_does_not_open_a_column(data_key):
    sizes = pd.Categorical(["small", "large"], ["small", "large"], ordered=True)
    cells = sealed(sizes, data_key)
    header = sealed(sizes.reorder_categories(["large", "small"]), data_key)["x"].dtype
    with pytest.raises(WrongKeyError):
        pd.DataFrame({"x": EncryptedArray(cells["x"].array.storage, header)}).kms.decrypt()


VALUES = {
    "int64": pd.Series([2**53 + 1, -1]),
    "float64": pd.Series([1.5, np.nan]),
    "Int8": pd.Series([1, None], dtype="Int8"),
    "text": pd.Series(["a", None], dtype=object),
    "str": pd.Series(["a", None], dtype="string"),
    "bool": pd.Series([True, False]),
    "seconds": pd.Series(np.array(["1066-01-01", "NaT"], "M8[s]")),
    "nanoseconds": pd.Series(np.array(["2020-01-01T00:00:00.000000001", "NaT"], "M8[ns]")),
    "category": pd.Series(pd.Categorical(["a", None], ["b", "a"])),
    "other category": pd.Series(pd.Categorical(["c", None])),
    "period": pd.Series(pd.PeriodIndex(["2020-01", None], freq="M")),
}


@pytest.mark.parametrize(("one", "two"), list(itertools.permutations(VALUES, 2)))
def test_uniting_changes_no_value_in_either_order(data_key, one, two):
    parts = [sealed(VALUES[name], data_key) for name in (one, two)]
    both = pd.concat(parts, ignore_index=True)
    assert isinstance(both["x"].dtype, EncryptedDtype)
    found = both.kms.decrypt()["x"]
    expected = [value for name in (one, two) for value in VALUES[name].astype(object)]
    for value, original in zip(found, expected, strict=True):
        if pd.isna(original):
            assert pd.isna(value)
        else:
            assert (type(value), value) == (type(original), original)
    other = pd.concat(parts[::-1], ignore_index=True).kms.decrypt()["x"]
    assert found.dtype == other.dtype
    nulls = {repr(value) for values in (found, other) for value in values if pd.isna(value)}
    assert len(nulls) <= 1  # never the null of the part that comes first


def test_the_null_is_the_one_that_all_types_share_otherwise_na(data_key):
    def null_of(*values):
        parts = [sealed(value, data_key) for value in values]
        (null,) = {id(v): v for v in pd.concat(parts).kms.decrypt()["x"] if pd.isna(v)}.values()
        return null

    assert null_of(VALUES["seconds"], VALUES["nanoseconds"]) is pd.NaT
    assert null_of(VALUES["Int8"], VALUES["str"]) is pd.NA
    assert null_of(VALUES["float64"], VALUES["text"]) is pd.NA
    assert null_of(VALUES["text"], pd.Series([b"a", None], dtype=object)) is None


def test_what_to_parquet_accepts_opens_everywhere(data_key, tmp_path):
    path, plain = tmp_path / "sealed.parquet", tmp_path / "plain.parquet"
    written = 0
    for one, two in itertools.combinations(VALUES, 2):
        both = pd.concat([sealed(VALUES[name], data_key) for name in (one, two)], ignore_index=True)
        try:
            both.kms.to_parquet(path)
        except UnsupportedTypeError as error:
            assert "no common Arrow type" in str(error)  # noqa: PT017
            continue
        written += 1
        expected = [None if pd.isna(value) else value for value in both.kms.decrypt()["x"]]
        table = kmsdata.decrypt_table(pq.read_table(path))
        assert table["x"].to_pylist() == expected
        kmsdata.decrypt_parquet(path, plain, overwrite=True)
        assert pq.read_table(plain)["x"].to_pylist() == expected
    assert written


def test_ordered_categories_of_two_lists_are_not_written(data_key, tmp_path):
    both = pd.concat([sealed(pd.Categorical(v, v, ordered=True), data_key) for v in (["a", "b"], ["b", "a"])])
    with pytest.raises(UnsupportedTypeError, match="ordered categories"):
        both.kms.to_parquet(tmp_path / "x.parquet")
    assert not (tmp_path / "x.parquet").exists()


def test_deterministic_columns_of_one_kind_and_several_types_stay_apart(data_key, tmp_path):
    both = pd.concat(
        [sealed(pd.Series([1, 2], dtype=dtype), data_key, deterministic=True) for dtype in ("int8", "int64")]
    )
    assert both["x"].dtype == object
    assert both.kms.decrypt()["x"].tolist() == [1, 2, 1, 2]
    with pytest.raises(TypeError, match="convert them to one dtype"):
        both.kms.to_parquet(tmp_path / "x.parquet")


def test_naive_and_zoned_timestamps_are_two_kinds(data_key):
    naive = pd.Series(np.array(["2020-01-01"], "M8[ns]"))
    zoned = naive.dt.tz_localize("Asia/Tokyo")
    cells = sealed(naive, data_key, deterministic=True)
    header = sealed(zoned, data_key, deterministic=True)["x"].dtype
    with pytest.raises(WrongKeyError):
        pd.DataFrame({"x": EncryptedArray(cells["x"].array.storage, header)}).kms.decrypt()


def test_no_frame_of_an_error_about_types_holds_plaintext(data_key):
    from decimal import Decimal

    cells = sealed(pd.Series([Decimal("10.99")]), data_key, deterministic=True)
    header = sealed(pd.Series([Decimal(11)]), data_key, deterministic=True)["x"].dtype
    with pytest.raises(FormatError, match="exponent") as caught:
        pd.DataFrame({"x": EncryptedArray(cells["x"].array.storage, header)}).kms.decrypt()
    frame = caught.value.__traceback__
    while frame := frame.tb_next:
        assert "10.99" not in repr(frame.tb_frame.f_locals)
        assert b"10.99" not in b"".join(
            value.data.tobytes() for value in frame.tb_frame.f_locals.values() if hasattr(value, "with_valid")
        )


# Columns that look exchanged.

PEOPLE = pd.DataFrame({"home": ["a@x", "b@x"], "work": ["c@x", "d@x"], "n": [1, 2]})


def test_exchanged_deterministic_columns_are_an_error(tmp_path):
    enc = PEOPLE.kms.encrypt(deterministic=["home", "work"], key=KEY)
    swapped = enc.rename(columns={"home": "work", "work": "home"})
    with pytest.raises(FormatError, match="exchanged"):
        swapped.kms.decrypt()
    assert not kmsdata.verify(swapped).ok
    with pytest.raises(FormatError, match="exchanged"):
        swapped.kms.to_parquet(tmp_path / "x.parquet")
    table = pa.Table.from_pandas(enc, preserve_index=False)
    renamed = table.rename_columns(["work", "home", "n"]).replace_schema_metadata(None)
    with pytest.raises(FormatError, match="exchanged"):
        kmsdata.decrypt_table(renamed)
    pq.write_table(renamed, tmp_path / "swapped.parquet")
    with pytest.raises(FormatError, match="exchanged"):
        kmsdata.read_parquet(tmp_path / "swapped.parquet")
    assert not kmsdata.verify(tmp_path / "swapped.parquet").ok


def test_a_randomised_and_a_deterministic_column_that_were_exchanged_are_an_error():
    enc = PEOPLE.kms.encrypt("n", deterministic="home", key=KEY)
    with pytest.raises(FormatError, match="exchanged"):
        enc.rename(columns={"n": "home", "home": "n"}).kms.decrypt()


def test_one_renamed_deterministic_column_is_no_error():
    enc = PEOPLE.kms.encrypt(deterministic=["home"], key=KEY).rename(columns={"home": "old", "work": "home"})
    again = enc.kms.encrypt(deterministic=["home"], key=enc)
    assert again.kms.decrypt()["old"].tolist() == ["a@x", "b@x"]


@pytest.mark.parametrize("how", ["frame", "table", "file"])
def test_columns_that_could_not_be_decrypted_together_are_refused_before_a_key_is_made(how, tmp_path):
    how_to = {"deterministic": ["home", "work"], "domain": {"home": "work", "work": "elsewhere"}, "key": KEY}
    source, target = tmp_path / "plain.parquet", tmp_path / "x.parquet"
    PEOPLE.to_parquet(source)
    call = {
        "frame": lambda: PEOPLE.kms.encrypt(**how_to),
        "table": lambda: kmsdata.encrypt_table(pa.Table.from_pandas(PEOPLE), **how_to),
        "file": lambda: kmsdata.encrypt_parquet(source, target, **how_to),
    }[how]
    before = kmsdata.usage().calls
    with pytest.raises(ValueError, match="domain="):
        call()
    assert kmsdata.usage().calls == before
    assert not target.exists()


def test_a_shared_domain_is_fine():
    domains = {"home": "mail", "work": "mail"}
    enc = PEOPLE.kms.encrypt(deterministic=["home", "work"], domain=domains, key=KEY)
    assert enc.kms.decrypt().equals(PEOPLE)
    one = PEOPLE.kms.encrypt(deterministic=["home", "work"], domain={"work": "home"}, key=KEY)
    assert one.kms.decrypt().equals(PEOPLE)


def test_the_key_of_a_column_covers_its_whole_header_object(data_key):
    header = json.loads(sealed(pd.Series([1]), data_key)["x"].dtype.text)
    assert set(header["column"][0]) == {"algorithm", "data_key", "mac", "name", "type"}
