"""Columns of one name and data key but several types; and columns that look exchanged."""

import itertools
import json
from decimal import Decimal

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


def plaintext_in_frames(error, secrets):
    """The secrets that are reachable from the variables of the frames of an error inside kmsdata."""
    frame, found = error.__traceback__, set()
    while frame := frame.tb_next:
        for value in frame.tb_frame.f_locals.values():
            raw = repr(value) + repr([getattr(part, "data", b"") for part in [value]])
            raw += str(value.data.tobytes()) if hasattr(value, "with_valid") else ""
            found |= {secret for secret in secrets if secret in raw}
    return found


def test_no_frame_of_a_tampered_categorical_holds_its_list(data_key):
    enc = sealed(pd.Categorical(["SECRET1", "SECRET2"]), data_key)
    cells = enc["x"].array.storage.to_pylist()
    cells[0] = cells[0][:-1] + bytes([cells[0][-1] ^ 1])
    changed = pd.DataFrame({"x": EncryptedArray(pa.array(cells), enc["x"].dtype)})
    with pytest.raises(kmsdata.TamperedError) as caught:
        changed.kms.decrypt()
    assert not plaintext_in_frames(caught.value, {"SECRET1", "SECRET2"})


@pytest.mark.parametrize("entry", [b"{", b"[]", b'{"columns": [{"field_name": [1]}]}'])
def test_no_frame_of_an_error_about_metadata_holds_plaintext(data_key, entry):
    table = kmsdata.encrypt_table(pa.table({"x": ["SECRET1"]}), "x", key=data_key)
    try:
        kmsdata.decrypt_table(table.replace_schema_metadata({b"pandas": entry}))
    except FormatError as error:
        assert not plaintext_in_frames(error, {"SECRET1"})  # noqa: PT017


def test_a_decimal_that_does_not_fit_is_an_error(data_key):
    """Arrow's cast of text to 38 digits wraps modulo 2^128."""
    big, small = (
        kmsdata.encrypt_table(pa.table({"x": pa.array([value], t)}), deterministic="x", key=data_key)
        for value, t in ((Decimal(10) ** 70, pa.decimal256(76, 0)), (Decimal(7), pa.decimal128(38, 0)))
    )
    header = small.schema.field("x").type
    moved = pa.table({"x": pa.ExtensionArray.from_storage(header, big["x"].combine_chunks().storage)})
    with pytest.raises(FormatError, match="decimal"):
        kmsdata.decrypt_table(moved)
    largest = pa.table({"x": pa.array([Decimal(10**38 - 1), Decimal(1 - 10**38)], pa.decimal128(38, 0))})
    assert kmsdata.decrypt_table(kmsdata.encrypt_table(largest, deterministic="x", key=data_key)) == largest


def test_text_is_no_null(data_key):
    text, null = (
        kmsdata.encrypt_table(pa.table({"x": pa.array(values, t)}), deterministic="x", key=data_key)
        for values, t in (([""], pa.string()), ([None], pa.null()))
    )
    storage = text["x"].combine_chunks().storage
    header = null.schema.field("x").type
    moved = pa.table({"x": pa.ExtensionArray.from_storage(header, storage.cast(header.storage_type))})
    with pytest.raises(FormatError):
        kmsdata.decrypt_table(moved)


# pandas 2.2 warns of every concat in which a part is empty or all null, with any dtypes.
@pytest.mark.filterwarnings("ignore:.*empty or all-NA entries:FutureWarning")
@pytest.mark.parametrize("empty", [[np.nan, np.nan], [None, None], []])
@pytest.mark.parametrize("values", [[1, 2], ["a", None], pd.array([1, None], "Int64")])
def test_a_part_without_cells_changes_no_dtype(data_key, tmp_path, values, empty):
    parts = [sealed(pd.Series(part), data_key) for part in (values, empty)]
    dtype = pd.Series(values).dtype
    for order in (parts, parts[::-1]):
        both = pd.concat(order, ignore_index=True)
        found = both.kms.decrypt()["x"]
        assert found.dtype == (pd.Int64Dtype() if dtype == "int64" and len(empty) else dtype)
        both.kms.to_parquet(tmp_path / "x.parquet")
        assert kmsdata.read_parquet(tmp_path / "x.parquet", decrypt=True)["x"].equals(found)
        kmsdata.decrypt_parquet(tmp_path / "x.parquet", tmp_path / "y.parquet", overwrite=True)
        opened = kmsdata.decrypt_table(pq.read_table(tmp_path / "x.parquet"))["x"].to_pylist()
        assert opened == [None if pd.isna(value) else value for value in found]
        assert pq.read_table(tmp_path / "y.parquet")["x"].to_pylist() == opened


def test_large_category_lists_that_cannot_be_united_stay_apart(data_key):
    parts = [
        sealed(pd.Categorical([f"{day} {n:>20}" for n in range(30_000)]), data_key).head(50)
        for day in range(6)
    ]
    both = pd.concat(parts, ignore_index=True)
    assert both.kms.decrypt()["x"].tolist() == [f"{day} {n:>20}" for day in range(6) for n in range(50)]


def test_ordered_categories_with_equal_lists_under_two_data_keys(data_key, tmp_path):
    sizes = pd.Categorical(["small", "large"], ["small", "large"], ordered=True)
    both = pd.concat([sealed(sizes, key) for key in (data_key, kmsdata.new_data_key(KEY))], ignore_index=True)
    both.kms.to_parquet(tmp_path / "x.parquet")
    assert kmsdata.read_parquet(tmp_path / "x.parquet", decrypt=True)["x"].min() == "small"
    assert kmsdata.decrypt_table(pq.read_table(tmp_path / "x.parquet"))["x"].type.ordered


@pytest.mark.parametrize("lists", [([1, "a"], [True, "a"]), ([Decimal("1.0")], [Decimal("1.00")])])
def test_categories_that_are_equal_but_not_the_same_are_not_merged(data_key, lists):
    parts = [sealed(pd.Categorical(pd.Index(values, dtype=object)), data_key) for values in lists]
    found = pd.concat(parts).kms.decrypt()["x"]
    assert list(map(repr, found)) == [repr(value) for values in lists for value in values]


@pytest.mark.newest  # pyarrow 17 cannot make these
@pytest.mark.parametrize(
    "t", [pa.string_view(), pa.binary_view(), pa.run_end_encoded(pa.int32(), pa.int64())]
)
def test_types_that_arrow_cannot_take_from(data_key, t):
    values = [5, 5, None] if pa.types.is_run_end_encoded(t) else [b"a", None, b"b"]
    plain = pa.array(values, t.value_type if pa.types.is_run_end_encoded(t) else pa.binary())
    array = pa.compute.run_end_encode(plain) if pa.types.is_run_end_encoded(t) else plain.cast(t)
    tables = [
        kmsdata.encrypt_table(pa.table({"x": array}), "x", key=key)
        for key in (data_key, kmsdata.new_data_key(KEY))
    ]
    both = pd.concat([table.to_pandas() for table in tables], ignore_index=True)
    table = pa.Table.from_pandas(both, preserve_index=False)
    assert kmsdata.decrypt_table(table)["x"].to_pylist() == 2 * array.to_pylist()


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


def test_exchanged_columns_are_an_error_where_only_one_is_named(tmp_path):
    """The other column must be looked at as well."""
    enc = PEOPLE.kms.encrypt(deterministic=["home", "work"], key=KEY)
    table = pa.Table.from_pandas(enc, preserve_index=False)
    swapped = table.rename_columns(["work", "home", "n"]).replace_schema_metadata(None)
    path = tmp_path / "x.parquet"
    pq.write_table(swapped, path)
    for call in (
        lambda: kmsdata.decrypt_table(swapped, ["home"]),
        lambda: kmsdata.read_parquet(path, columns=["home"], decrypt=True),
        lambda: kmsdata.read_parquet(path, columns=["home"], filters=[("home", "==", "c@x")]),
        lambda: kmsdata.decrypt_parquet(path, tmp_path / "y.parquet", ["home"]),
        lambda: kmsdata.export_keyset(path, "home"),
        lambda: kmsdata.export_keyset(swapped, "home"),
    ):
        with pytest.raises(FormatError, match="exchanged"):
            call()


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
