"""Errors: each says what happened, where and what to do, and changes nothing."""

import pickle
import re
import traceback

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kmsdata
from kmsdata import EncryptedArray, EncryptedDtype
from kmsdata.keys.envelope import Header

KEY = "local://demo"
SURROGATE = pd.Index(["x", "y", "z", "a\ud800"], dtype=object)


@pytest.fixture
def frame():
    return pd.DataFrame(
        {
            "name": ["Ada Lovelace", "Bo", None, "Cyd Charisse"],
            "email": ["a@x.org", "b@x.org", "a@x.org", None],
            "age": [36, 41, 19, 36],
            "身份证": ["110101", "310115", "", "440305"],
        }
    )


@pytest.fixture
def enc(frame):
    return frame.kms.encrypt(["name", "age", "身份证"], deterministic="email", key=KEY)


def with_cells(enc, column, change, dtype=None):
    """The frame with the raw cells of a column changed."""
    cells = change(enc[column].array.storage.to_pylist())
    out = enc.copy()
    out[column] = EncryptedArray(pa.array(cells, pa.large_binary()), dtype or enc[column].dtype)
    return out


def flipped(row, byte, bit=1):
    def change(cells):
        raw = bytearray(cells[row])
        raw[byte] ^= bit
        cells[row] = bytes(raw)
        return cells

    return change


def exchanged(one, two):
    def change(cells):
        cells[one], cells[two] = cells[two], cells[one]
        return cells

    return change


# Cells.


@pytest.mark.parametrize("column", ["name", "email", "age", "身份证"])
@pytest.mark.parametrize("byte", [0, 5, 16, 20, -1])
def test_a_changed_byte_is_found_at_its_row(enc, column, byte):
    with pytest.raises(kmsdata.TamperedError, match=rf"'{column}': 1 cell \(row 1\)") as caught:
        with_cells(enc, column, flipped(1, byte)).kms.decrypt()
    assert (caught.value.column, caught.value.rows, caught.value.count) == (column, (1,), 1)


@pytest.mark.parametrize("column", ["name", "email"])
@pytest.mark.parametrize("byte", [1, 4])
def test_a_changed_key_id_is_another_key(enc, column, byte):
    with pytest.raises(kmsdata.WrongKeyError, match=r"row 1\)") as caught:
        with_cells(enc, column, flipped(1, byte)).kms.decrypt()
    assert (caught.value.column, caught.value.rows) == (column, (1,))


@pytest.mark.parametrize("size", [0, 1, 4, 5, 20, 21, 32])
def test_a_truncated_cell_is_found(enc, size):
    for column in ("name", "email", "age"):
        cut = with_cells(enc, column, lambda cells: [cells[0][: min(size, len(cells[0]) - 1)], *cells[1:]])
        with pytest.raises(kmsdata.TamperedError, match=r"row 0\)"):
            cut.kms.decrypt()


def test_a_lengthened_cell_is_found(enc):
    for column in ("name", "email", "age"):
        with pytest.raises(kmsdata.TamperedError):
            with_cells(enc, column, lambda cells: [cells[0] + b"\0", *cells[1:]]).kms.decrypt()


def test_cells_of_another_column_are_found(enc):
    moved = with_cells(enc, "name", lambda cells: [enc["身份证"].array.storage[0].as_py(), *cells[1:]])
    with pytest.raises(kmsdata.WrongKeyError, match="from another column or file") as caught:
        moved.kms.decrypt()
    assert caught.value.rows == (0,)


def test_cells_of_another_file_are_found(frame, enc):
    other = frame.kms.encrypt("name", key=KEY)
    moved = with_cells(enc, "name", lambda cells: [other["name"].array.storage[0].as_py(), *cells[1:]])
    with pytest.raises(kmsdata.WrongKeyError, match=r"row 0\)"):
        moved.kms.decrypt()


def test_cells_of_two_columns_exchanged_under_their_headers_are_found(enc):
    swapped = enc.copy()
    for one, two in (("name", "身份证"), ("身份证", "name")):
        swapped[one] = EncryptedArray(enc[two].array.storage, enc[one].dtype)
    with pytest.raises(kmsdata.WrongKeyError, match=r"[34] cells"):
        swapped.kms.decrypt()


def test_two_columns_exchanged_with_their_headers_are_found(enc):
    swapped = enc.rename(columns={"name": "身份证", "身份证": "name"})
    with pytest.raises(kmsdata.FormatError, match="exchanged") as caught:
        swapped.kms.decrypt()
    assert caught.value.field == "name"


def test_a_renamed_column_warns(enc, frame):
    with pytest.warns(UserWarning, match="'person' was encrypted as 'name'"):
        back = enc.rename(columns={"name": "person"}).kms.decrypt()
    pd.testing.assert_frame_equal(back, frame.rename(columns={"name": "person"}))


def test_what_the_readme_says_is_not_noticed_is_not(enc):
    """Two cells of one column exchanged, a null inserted: this documents that they are not detected."""
    back = with_cells(enc, "age", exchanged(0, 1)).kms.decrypt()
    assert back["age"].tolist() == [41, 36, 19, 36]


def test_many_bad_cells_are_counted_and_the_first_are_named():
    enc = pd.DataFrame({"n": range(500)}).kms.encrypt("n", key=KEY)
    cells = [cell[:-1] + bytes([cell[-1] ^ 1]) for cell in enc["n"].array.storage.to_pylist()]
    enc["n"] = EncryptedArray(pa.array(cells, pa.large_binary()), enc["n"].dtype)
    with pytest.raises(kmsdata.TamperedError, match=r"500 cells \(rows 0, 1, 2, 3, 4, \.\.\.\)") as caught:
        enc.kms.decrypt()
    assert caught.value.count == 500
    assert caught.value.rows == tuple(range(100))


@pytest.mark.parametrize("column", ["name", "身份证"])
def test_no_plaintext_in_any_frame_of_an_error(enc, column):
    bad = with_cells(enc, column, flipped(3, -1))  # the first column, and the last, when the others are open
    try:
        bad.kms.decrypt()
    except kmsdata.TamperedError as error:
        shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
        seen, step = [], error.__traceback__
        while step is not None:
            seen += [repr(value) + str(value) for value in step.tb_frame.f_locals.values()]
            step = step.tb_next
        everything = shown + "".join(seen) + str(error) + repr(vars(error))
    for secret in ("Ada Lovelace", "Cyd Charisse", "a@x.org", "110101"):
        assert secret not in everything


# Headers.


def with_header(enc, column, change):
    text = change(enc[column].dtype.text)
    out = enc.copy()
    out[column] = EncryptedArray(enc[column].array.storage, EncryptedDtype(text))
    return out


@pytest.mark.parametrize(
    ("column", "old", "new"),
    [
        ("name", '"name":"name"', '"name":"nome"'),
        ("email", '"domain":"email"', '"domain":"e-mail"'),
        ("email", '"kind":"text"', '"kind":"bytes"'),
        ("age", "int64", "int32"),
        ("name", '"context":{}', '"context":{"team":"x"}'),
    ],
)
def test_a_changed_header_is_refused(enc, column, old, new):
    changed = with_header(enc, column, lambda text: text.replace(old, new))
    with pytest.raises((kmsdata.FormatError, kmsdata.KeyAccessError)) as caught:
        changed.kms.decrypt(column)
    assert not isinstance(caught.value, kmsdata.FormatError) or caught.value.column == column


def test_a_header_of_another_version_is_refused_and_the_rest_is_readable(enc):
    newer = with_header(enc, "name", lambda text: text.replace('"version":1', '"version":2'))
    with pytest.raises(kmsdata.FormatError, match="version") as caught:
        newer.kms.decrypt()
    assert caught.value.column == "name"
    assert newer["name"].dtype.name == "encrypted[?]"
    assert newer.drop(columns="name").kms.decrypt()["age"].tolist() == [36, 41, 19, 36]


def test_another_commitment_is_another_key(enc):
    header = enc["name"].dtype.header
    other = enc["age"].dtype.header.records[0].commitment[:-1] + b"\0"
    import base64

    a, b = (base64.b64encode(raw).decode() for raw in (header.records[0].commitment, other))
    with pytest.raises(kmsdata.WrongKeyError):
        with_header(enc, "name", lambda text: text.replace(a, b)).kms.decrypt("name")


# Keys.


def test_a_missing_key_names_it_and_the_file(enc, keystore):
    keystore.unlink()
    with pytest.raises(kmsdata.KeyNotFoundError, match="local://demo") as caught:
        enc.kms.decrypt()
    assert caught.value.key == KEY
    assert not keystore.exists()  # decryption never makes a key


def test_a_wrong_key_is_refused(enc):
    kmsdata.new_data_key("local://other")
    with pytest.raises(kmsdata.WrongKeyError, match="local://demo"):
        enc.kms.decrypt(key="local://other")
    with pytest.raises(kmsdata.WrongKeyError, match="another data key"):
        enc.kms.decrypt(key=kmsdata.new_data_key(KEY))


def test_a_denied_column_can_be_kept_while_the_rest_works(frame, keystore):
    enc = frame.kms.encrypt("name", key="local://theirs").kms.encrypt("age", key="local://mine")
    import json

    document = json.loads(keystore.read_text())
    del document["keys"]["theirs"]
    keystore.write_text(json.dumps(document))
    with pytest.raises(kmsdata.KeyNotFoundError):
        enc.kms.decrypt()
    back = enc.kms.decrypt(on_denied="keep")
    assert back.kms.encrypted == ["name"]
    pd.testing.assert_series_equal(back["age"], frame["age"])
    with pytest.raises(ValueError, match="on_denied"):
        enc.kms.decrypt(on_denied="ignore")


def test_context(frame):
    enc = frame.kms.encrypt("name", key=KEY, context={"team": "hr"})
    assert enc.kms.decrypt(context={"team": "hr"})["name"][0] == "Ada Lovelace"
    with pytest.raises(kmsdata.FormatError, match="team"):
        enc.kms.decrypt(context={"team": "it"})
    with pytest.raises(kmsdata.FormatError, match="it is empty"):
        frame.kms.encrypt("name", key=KEY).kms.decrypt(context={"team": "hr"})


# Arguments.


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda df: df.kms.encrypt(key=KEY), ValueError, "no column"),
        (lambda df: df.kms.encrypt("nmae", key=KEY), KeyError, "did you mean 'name'"),
        (lambda df: df.kms.encrypt(["name", "zz"], key=KEY), KeyError, "no column 'zz'"),
        (lambda df: df.kms.encrypt("name"), ValueError, r"kmsdata\.use"),
        (lambda df: df.kms.encrypt("name", key="demo"), ValueError, "local://demo"),
        (lambda df: df.kms.encrypt("name", key=[]), ValueError, "empty"),
        (lambda df: df.rename(columns={"age": 7}).kms.encrypt(7, key=KEY), TypeError, "int"),
        (lambda df: df.rename(columns={"age": 7}).kms.encrypt([7], key=KEY), TypeError, "rename"),
        (lambda df: df.set_index("age").kms.encrypt("age", key=KEY), ValueError, "reset_index"),
        (lambda df: pd.concat([df, df], axis=1).kms.encrypt("age", key=KEY), ValueError, "2 columns"),
        (lambda df: df.kms.encrypt("age", key=KEY).kms.encrypt("age", key=KEY), ValueError, "already"),
        (lambda df: df.kms.encrypt("age", key=KEY, domain="x"), ValueError, "deterministic"),
        (lambda df: df.kms.encrypt(deterministic="age", key=KEY, domain={"age": 3}), TypeError, "text"),
        (lambda df: df.kms.decrypt("age"), kmsdata.FormatError, "no kmsdata header"),
        (lambda df: df.kms.decrypt("aeg"), KeyError, "did you mean 'age'"),
        (lambda df: df["age"].rename(None).kms.encrypt(key=KEY), TypeError, "name"),
        (lambda df: df["age"].kms.decrypt(), kmsdata.FormatError, "no kmsdata header"),
        (lambda df: df.set_axis(SURROGATE, axis=1).kms.encrypt("a\ud800", key=KEY), ValueError, "Unicode"),
    ],
)
def test_arguments(frame, call, error, says):
    before = frame.copy()
    with pytest.raises(error, match=says):
        call(frame)
    pd.testing.assert_frame_equal(frame, before)


def test_a_lone_surrogate_is_named_with_its_row():
    frame = pd.DataFrame({"t": pd.Series(["fine", "bad \ud800 text"], dtype=object)})
    with pytest.raises(kmsdata.UnsupportedTypeError, match="surrogate") as caught:
        frame.kms.encrypt("t", key=KEY)
    assert caught.value.column == "t"
    assert "bad" not in str(caught.value)


def test_floats_are_not_deterministic():
    with pytest.raises(kmsdata.UnsupportedTypeError, match="Int64"):
        pd.DataFrame({"x": [1.0, 2.0]}).kms.encrypt(deterministic="x", key=KEY)


class Opaque:
    pass


def test_an_object_of_an_unknown_type_is_refused():
    frame = pd.DataFrame({"x": [1, Opaque()]})
    with pytest.raises(kmsdata.UnsupportedTypeError, match="Opaque") as caught:
        frame.kms.encrypt("x", key=KEY)
    assert caught.value.column == "x"


# Shapes.


@pytest.mark.parametrize("rows", [0, 1, 2])
@pytest.mark.parametrize("deterministic", [False, True])
def test_few_rows(frame, rows, deterministic, tmp_path):
    part = frame.head(rows)
    enc = part.kms.encrypt(["name", "age", "身份证"], deterministic=deterministic, key=KEY)
    pd.testing.assert_frame_equal(enc.kms.decrypt(), part)
    enc.kms.to_parquet(tmp_path / "few.parquet")
    pd.testing.assert_frame_equal(
        kmsdata.read_parquet(tmp_path / "few.parquet", decrypt=True), part.reset_index(drop=True)
    )


def test_all_null_and_long_texts(tmp_path):
    frame = pd.DataFrame(
        {
            "none": pd.Series([None] * 3, dtype=object),
            "nan": [np.nan] * 3,
            "na": pd.array([None] * 3, dtype="Int64"),
            "text": pd.array([None] * 3, dtype="string"),
            "long": ["x" * (1 << 20), "", "é" * (1 << 19)],
        }
    )
    for deterministic in (False, True):
        columns = [name for name in frame if not (deterministic and name == "nan")]
        enc = frame.kms.encrypt(columns, deterministic=deterministic, key=KEY)
        pd.testing.assert_frame_equal(enc.kms.decrypt(), frame)
        assert enc["none"].isna().all()
        enc.kms.to_parquet(tmp_path / "x.parquet")
        back = kmsdata.read_parquet(tmp_path / "x.parquet", decrypt=True)
        pd.testing.assert_frame_equal(back[columns], frame[columns])


def test_a_frame_without_columns_or_rows():
    with pytest.raises(ValueError, match="no column"):
        pd.DataFrame().kms.encrypt(key=KEY)
    with pytest.raises(KeyError, match="no column 'x'"):
        pd.DataFrame().kms.encrypt("x", key=KEY)
    assert pd.DataFrame().kms.decrypt().empty
    assert pd.DataFrame().kms.encrypted == []


def test_csv_says_what_it_lacks(enc, tmp_path):
    enc.to_csv(tmp_path / "x.csv", index=False)
    plain = pd.read_csv(tmp_path / "x.csv")
    with pytest.raises(kmsdata.FormatError, match="no kmsdata header, but looks like cells"):
        plain.kms.decrypt("email")
    back = pd.read_csv(tmp_path / "x.csv", dtype={name: enc[name].dtype for name in enc.kms.encrypted})
    pd.testing.assert_frame_equal(back.kms.decrypt(), enc.kms.decrypt())


def test_counts_decrypt_by_their_index(enc, frame):
    counts = enc.groupby("email").size().kms.decrypt()
    assert counts.to_dict() == frame.groupby("email").size().to_dict()
    counts = enc["email"].value_counts().kms.decrypt()
    assert counts.to_dict() == frame["email"].value_counts().to_dict()


def test_refusals_name_the_column(enc):
    for call in (lambda: enc.drop_duplicates(), lambda: enc["name"].nunique(), lambda: enc[["name"]].rank()):
        with pytest.raises(TypeError, match="'name'"):
            call()


def test_a_wrong_session_key_names_where_it_stands(frame, monkeypatch):
    monkeypatch.setenv("KMSDATA_KEY", "tencent-kms:nonsense")
    with pytest.raises(kmsdata.FormatError, match="KMSDATA_KEY"):
        frame.kms.encrypt("name")


def test_a_folder_that_is_not_there_is_named(enc, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder to write to does not exist: .*/no'"):
        enc.kms.to_parquet(tmp_path / "no" / "x.parquet")


# Files.


def test_a_failed_write_leaves_no_file_and_the_old_one_as_it_was(enc, tmp_path, monkeypatch):
    target = tmp_path / "people.parquet"
    enc.kms.to_parquet(target)
    before = target.read_bytes()

    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", fails)
        with pytest.raises(OSError, match="No space"):
            enc.kms.to_parquet(target)
        with pytest.raises(OSError, match="No space"):
            enc.kms.to_parquet(tmp_path / "other.parquet")
    with pytest.raises(TypeError):
        enc.kms.to_parquet(target, no_such_option=1)
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.glob("*.parquet*")] == ["people.parquet"]
    assert not list(tmp_path.glob(".*tmp"))


def test_a_file_that_is_cut_short_or_none(enc, tmp_path):
    target = tmp_path / "people.parquet"
    enc.kms.to_parquet(target)
    target.write_bytes(target.read_bytes()[:-20])
    with pytest.raises(kmsdata.FormatError, match=r"people\.parquet") as caught:
        kmsdata.read_parquet(target)
    assert caught.value.path == str(target)
    with pytest.raises(FileNotFoundError):
        kmsdata.read_parquet(tmp_path / "none.parquet")


def test_a_changed_header_in_a_file_is_refused(enc, tmp_path):
    target = tmp_path / "people.parquet"
    enc.kms.to_parquet(target)
    table = pq.read_table(target)
    dtype = table.schema.field("name").type.dtype
    other = kmsdata.EncryptedType(
        pa.binary(), EncryptedDtype(dtype.text.replace('"version":1', '"version":3'))
    )
    cells = pa.ExtensionArray.from_storage(other, table.column("name").combine_chunks().storage)
    pq.write_table(table.set_column(0, pa.field("name", other), cells), target)
    with pytest.raises(kmsdata.FormatError, match="version") as caught:
        kmsdata.read_parquet(target)
    assert (caught.value.path, caught.value.column, caught.value.field) == (str(target), "name", "version")
    assert pd.read_parquet(target)["age"].dtype.name.startswith("encrypted")  # other columns stay readable


def test_a_stripped_header_is_noticed_where_names_are_given(frame, enc, tmp_path):
    target = tmp_path / "plain.parquet"
    frame.to_parquet(target)
    with pytest.raises(kmsdata.FormatError, match="'name' must be encrypted") as caught:
        kmsdata.read_parquet(target, encrypted=["name"])
    assert (caught.value.path, caught.value.column) == (str(target), "name")
    enc.kms.to_parquet(target)
    assert kmsdata.read_parquet(target, encrypted=["name", "age"], decrypt=True).shape == frame.shape


def test_a_renamed_column_is_not_written(enc, tmp_path):
    enc.rename(columns={"name": "person"}).to_parquet(tmp_path / "pandas")  # pandas' own does not know
    with pytest.raises(kmsdata.FormatError, match="'person' was encrypted as 'name'"):
        kmsdata.read_parquet(tmp_path / "pandas")
    with pytest.raises(kmsdata.FormatError, match="Rename it back"):
        enc.rename(columns={"name": "person"}).kms.to_parquet(tmp_path / "x.parquet")
    assert not list(tmp_path.glob("*.parquet"))


def test_filters_on_encrypted_columns_are_refused(enc, tmp_path):
    enc.kms.to_parquet(tmp_path / "x.parquet")
    import pyarrow.dataset as ds

    for filters in ([("age", ">", 20)], [[("email", "<", "a@x.org")]], ds.field("age") > 20):
        with pytest.raises(TypeError, match=r"is (encrypted|randomised)"):
            kmsdata.read_parquet(tmp_path / "x.parquet", filters=filters)


def test_cells_cannot_be_moved_by_uniting_genuine_headers(frame, tmp_path):
    """An attacker who can write files but has no key must not move a cell to another column."""
    frame = frame.assign(phone=["1", "2", "3", "4"])
    enc = frame.kms.encrypt(["name", "身份证"], deterministic=["email", "phone"], key=KEY)
    for source, target in (("email", "phone"), ("email", "name"), ("name", "身份证")):
        one, two = enc[source].dtype.header, enc[target].dtype.header
        both = Header.of(one.columns + two.columns, one.records + two.records)
        cells = [enc[source].array.storage[0].as_py(), *enc[target].array.storage.to_pylist()[1:]]
        moved = enc.copy()
        moved[target] = EncryptedArray(pa.array(cells, pa.large_binary()), EncryptedDtype(both.text))
        moved.to_parquet(tmp_path / "moved.parquet")
        for call in (
            moved.kms.decrypt,
            lambda: kmsdata.read_parquet(tmp_path / "moved.parquet", decrypt=True),
        ):
            with pytest.raises(kmsdata.FormatError, match="different columns") as caught:
                call()
            assert caught.value.column == target


def test_a_changed_context_is_found_whoever_brings_the_key(frame):
    key = kmsdata.new_data_key(KEY, context={"team": "hr"})
    enc = frame.kms.encrypt("name", key=key)
    changed = with_header(enc, "name", lambda text: text.replace('"hr"', '"it"'))
    for given in (key, None):
        with pytest.raises((kmsdata.FormatError, kmsdata.KeyAccessError)):
            changed.kms.decrypt(key=given, context={"team": "it"})
    assert enc.kms.decrypt(key=key, context={"team": "hr"})["name"][0] == "Ada Lovelace"
    two = frame.kms.encrypt(["name", "age"], key=key)
    one_changed = with_header(two, "age", lambda text: text.replace('"hr"', '"it"'))
    with pytest.raises(kmsdata.FormatError, match="'age': its context was changed"):
        one_changed.kms.decrypt(key=key)


def test_a_key_that_may_not_be_used_is_a_denied_one(enc):
    kept = enc.kms.decrypt(key="local://other", on_denied="keep")
    assert sorted(kept.kms.encrypted) == sorted(enc.kms.encrypted)


def test_encrypted_data_stands_for_its_data_key_everywhere(frame, enc):
    assert enc.kms.decrypt(key=enc)["name"][0] == "Ada Lovelace"
    assert enc["name"].kms.decrypt(key=enc)[0] == "Ada Lovelace"
    assert kmsdata.data_key(enc, key=enc).commitment == kmsdata.new_data_key(enc).commitment
    with pytest.raises(ValueError, match="another context"):
        frame.kms.encrypt("name", key=enc, context={"team": "hr"})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param({"store_schema": False}, "could never be decrypted", id="options0-nobody could decrypt"),
        pytest.param({"store_schema": 0}, "could never be decrypted", id="options1-nobody could decrypt"),
        ({"flavor": "spark"}, "renames columns"),
        ({"partition_cols": ["age"]}, "names of folders"),
    ],
)
def test_options_that_would_write_no_such_file_are_refused(enc, tmp_path, options, says):
    with pytest.raises((TypeError, ValueError), match=says):
        enc.kms.to_parquet(tmp_path / "x.parquet", **options)
    assert not list(tmp_path.glob("*x.parquet*"))


def test_options_for_plain_columns_stay_with_them(enc, tmp_path):
    enc.assign(f=[1.5, 2, 3, 4]).kms.to_parquet(
        tmp_path / "x.parquet", compression="zstd", compression_level=5
    )
    enc.kms.to_parquet(tmp_path / "x.parquet", use_byte_stream_split=True, use_dictionary=False)
    assert len(kmsdata.read_parquet(tmp_path / "x.parquet", decrypt=True)) == 4


def test_names_are_names(frame, enc, tmp_path):
    enc.kms.to_parquet(tmp_path / "x.parquet")
    back = kmsdata.read_parquet(tmp_path / "x.parquet", columns="name", encrypted="name", decrypt=True)
    pd.testing.assert_frame_equal(back, frame[["name"]])
    with pytest.raises(KeyError, match="did you mean 'name'"):
        kmsdata.read_parquet(tmp_path / "x.parquet", columns=["nmae"])
    with pytest.raises(kmsdata.FormatError, match="'zz' must be encrypted"):
        kmsdata.read_parquet(tmp_path / "x.parquet", encrypted="zz")


def test_a_value_in_a_filter_is_no_column(frame, tmp_path):
    import pyarrow.dataset as ds

    frame.assign(city="name").kms.encrypt("name", key=KEY).kms.to_parquet(tmp_path / "x.parquet")
    assert len(kmsdata.read_parquet(tmp_path / "x.parquet", filters=ds.field("city") == "name")) == 4
    assert len(kmsdata.read_parquet(tmp_path / "x.parquet", filters=[("city", "==", "name")])) == 4


def test_a_partitioned_dataset_under_several_data_keys(frame, tmp_path):
    for number, part in enumerate((frame.head(2), frame.tail(2))):
        folder = tmp_path / "set" / f"year={2020 + number}"
        folder.mkdir(parents=True)
        part.reset_index(drop=True).kms.encrypt("name", key=KEY).kms.to_parquet(folder / "part.parquet")
    read = kmsdata.read_parquet(tmp_path / "set")
    assert [*read.columns] == [*frame.columns, "year"]
    pd.testing.assert_frame_equal(read.drop(columns="year").kms.decrypt(), frame)
    assert read["year"].astype(int).tolist() == [2020, 2020, 2021, 2021]
    assert isinstance(read["year"].dtype, pd.CategoricalDtype)
    some = kmsdata.read_parquet(
        tmp_path / "set", columns=["year", "name"], filters=[("year", "==", 2021)], decrypt=True
    )
    assert [*some.columns] == ["year", "name"]
    pd.testing.assert_series_equal(some["name"], frame["name"].tail(2).reset_index(drop=True))
    assert len(kmsdata.read_parquet(tmp_path / "set", filters=[("age", ">", 40)])) == 1
    with pytest.raises(KeyError, match="did you mean"):
        kmsdata.read_parquet(tmp_path / "set", columns=["yaer"])


def test_cells_in_shapes_that_pandas_gives_them(frame, enc, tmp_path):
    codes = pd.Categorical.from_codes([0, 1, -1], categories=pd.Index(enc["email"].dropna().unique()))
    shaped = pd.DataFrame({"email": codes})
    assert shaped.kms.encrypted == ["email"]
    assert shaped.kms.decrypt()["email"].tolist()[:2] == ["a@x.org", "b@x.org"]
    indexed = enc.set_index(pd.Index(list(enc["email"]), dtype=object, name="email2")).rename_axis("email")
    indexed = indexed[["age"]].iloc[:3]
    indexed.kms.to_parquet(tmp_path / "x.parquet")
    back = kmsdata.read_parquet(tmp_path / "x.parquet", decrypt=True)
    assert back.index.tolist() == frame["email"].tolist()[:3]


def test_special_files_and_names(enc, tmp_path, monkeypatch):
    import os
    import stat

    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="not a file"):
        enc.kms.to_parquet(tmp_path / "fifo")
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    long = tmp_path / ("身" * 80 + ".parquet")
    enc.kms.to_parquet(long)
    long.chmod(0o600)
    enc.kms.to_parquet(long)
    assert stat.S_IMODE(long.stat().st_mode) == 0o600
    monkeypatch.setenv("HOME", str(tmp_path))
    enc.kms.to_parquet("~/home.parquet")
    assert kmsdata.read_parquet("~/home.parquet", decrypt=True).shape == enc.shape


def test_a_table_with_two_columns_of_one_name(enc):
    table = pa.Table.from_pandas(enc)
    double = table.append_column("name", table.column("name"))
    with pytest.raises(ValueError, match="2 columns are named 'name'"):
        kmsdata.decrypt_table(double)


def test_a_header_may_say_anything(enc):
    import json

    for type_ in (
        5,
        {},
        {"pandas": 5},
        {"pandas": {"category": 5}},
        {"pandas": {"numpy": "O"}},
        {"arrow": []},
    ):
        document = json.loads(enc["name"].dtype.text)
        document["column"][0]["type"] = type_
        text = json.dumps(document, sort_keys=True, separators=(",", ":"))
        changed = with_header(enc, "name", lambda _, text=text: text)
        assert "encrypted[" in repr(changed.dtypes)
        assert repr(changed)
        with pytest.raises(kmsdata.FormatError):
            changed.kms.decrypt()
    deep = enc["name"].dtype.text.replace('"type":{', '"type":{"a":' + '{"a":' * 900 + "1" + "}" * 900 + ",")
    changed = with_header(enc, "name", lambda _: deep)
    assert repr(changed["name"].dtype) == "encrypted[?]"
    with pytest.raises(kmsdata.FormatError, match="deep"):
        changed.kms.decrypt()


# Errors themselves.


def test_what_a_message_quotes_cannot_control_a_terminal():
    error = kmsdata.FormatError("column '\x1b[2J': \u202e file\nsecond line", column="\x1b[2J")
    assert str(error) == "column '\\x1b[2J': \\u202e file\nsecond line"
    assert error.column == "\x1b[2J"


def test_every_error_can_be_pickled_and_says_what_to_do(enc, frame, keystore):
    errors = []
    for call in (
        lambda: with_cells(enc, "name", flipped(1, -1)).kms.decrypt(),
        lambda: with_cells(enc, "name", flipped(1, 1)).kms.decrypt(),
        lambda: with_header(enc, "name", lambda text: text[:-1]).kms.decrypt(),
        lambda: frame.kms.decrypt("name"),
        lambda: pd.DataFrame({"x": [Opaque()]}).kms.encrypt("x", key=KEY),
        lambda: enc.kms.decrypt(key="local://none"),
        lambda: (keystore.unlink(), enc.kms.decrypt()),
    ):
        with pytest.raises(kmsdata.KmsDataError) as caught:
            call()
        errors.append(caught.value)
    for error in errors:
        again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
        assert not re.search(r"b'\\x|enc:", str(error))


def test_headers_hold_no_secret(frame):
    secret = frame["name"].astype("category")
    enc = pd.DataFrame({"c": secret, "n": [1, 2, 3, 4]}).kms.encrypt(["c", "n"], key=KEY)
    text = enc["c"].dtype.text + repr(enc["c"].dtype) + repr(enc["c"].array) + enc.to_html()
    assert "Ada Lovelace" not in text
    assert Header.parse(enc["c"].dtype.text).columns[0].type["categories"]


# Names of columns.


@pytest.mark.parametrize("nobody", [[], (), iter([])])
def test_a_guard_that_names_no_column_is_refused(enc, tmp_path, nobody):
    """Otherwise a list that is empty by mistake would accept a file without headers."""
    enc.kms.to_parquet(tmp_path / "f.parquet")
    with pytest.raises(ValueError, match="encrypted= names no column"):
        kmsdata.read_parquet(tmp_path / "f.parquet", encrypted=nobody)
    with pytest.raises(ValueError, match="encrypted= names no column"):
        kmsdata.verify(tmp_path / "f.parquet", encrypted=nobody)


def test_a_guard_by_a_generator_guards(enc, tmp_path):
    enc.assign(name=["plain"] * len(enc)).kms.to_parquet(tmp_path / "f.parquet")
    with pytest.raises(kmsdata.FormatError, match="'name' must be encrypted"):
        kmsdata.read_parquet(tmp_path / "f.parquet", encrypted=(name for name in ["age", "name"]))
    assert not kmsdata.verify(tmp_path / "f.parquet", encrypted=(name for name in ["age", "name"])).ok


def test_columns_of_a_table_by_a_generator(enc):
    table = pa.Table.from_pandas(enc)
    back = kmsdata.decrypt_table(table, (name for name in ["name", "age"]))
    assert back["name"].to_pylist() == ["Ada Lovelace", "Bo", None, "Cyd Charisse"]
    assert "kmsdata" not in str(back.schema.field("age").type)


@pytest.mark.parametrize("wrong", [b"age", bytearray(b"age"), 3, object()])
def test_names_that_are_none(enc, tmp_path, wrong):
    enc.kms.to_parquet(tmp_path / "f.parquet")
    calls = [
        lambda: enc.kms.decrypt(wrong),
        lambda: enc.kms.encrypt(wrong, key="local://demo"),
        lambda: kmsdata.decrypt_table(pa.Table.from_pandas(enc), wrong),
        lambda: kmsdata.read_parquet(tmp_path / "f.parquet", encrypted=wrong),
        lambda: kmsdata.verify(enc, encrypted=wrong),
        lambda: kmsdata.decrypt_parquet(tmp_path / "f.parquet", tmp_path / "g.parquet", wrong),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"columns must be a name or a list of names \(text\), not"):
            call()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda f: f.kms.encrypt("age", key=3), "key= takes the URI of a master key.*, not int"),
        (
            lambda f: f.kms.encrypt("age", key=b"raw key"),
            "key= takes the URI of a master key.*, not bytes",
        ),
        (
            lambda f: f.kms.encrypt("age", key=KEY).kms.decrypt(key=3),
            "key= takes the URI of a master key.*, not int",
        ),
        (lambda _: kmsdata.new_data_key({"a": "b"}), "key= takes the URI of a master key.*, not dict"),
        (lambda f: f.kms.encrypt("age", key=KEY, context="x"), "context= takes a mapping.*, not str"),
        (lambda f: f.kms.encrypt("age", key=KEY, context={"x": 1}), "context= takes a mapping of text"),
        (
            lambda f: f.kms.encrypt("age", key=KEY).kms.decrypt(context=["x"]),
            "context= takes a mapping of text to text, not list",
        ),
        pytest.param(
            lambda f: f.kms.encrypt(deterministic="age", key=KEY, domain=3),
            "domain= must be a text.*, not int",
            id="<lambda>-domain= is a text.*, not int",
        ),
        (lambda _: kmsdata.data_key(3), "frame, a series, an Arrow table, or the path.*, not int"),
        (lambda f: kmsdata.export_keyset([f], "age"), "frame, a series, an Arrow table.*, not list"),
        pytest.param(
            lambda f: kmsdata.encrypt_table(f, "age", key=KEY),
            r"takes an Arrow table, not DataFrame\. For a frame",
            id="<lambda>-takes an Arrow table, not DataFrame; a frame",
        ),
        pytest.param(
            lambda f: kmsdata.decrypt_table(f),
            r"takes an Arrow table, not DataFrame\. For a frame, use df\.kms",
            id=r"<lambda>-takes an Arrow table, not DataFrame; a frame has df\.kms",
        ),
    ],
)
def test_what_is_of_the_wrong_type_is_said(frame, call, says):
    with pytest.raises(TypeError, match=says) as caught:
        call(frame)
    assert "raw key" not in str(caught.value)
