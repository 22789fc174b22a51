"""verify: which cells are authentic, which are not and where; and that it reveals no values."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kmsdata
from kmsdata.frames import verify as cells_verified
from kmsdata.frames.dtype import EncryptedArray, EncryptedDtype, EncryptedType
from kmsdata.keys.envelope import Header, Wrap, file_text
from kmsdata.parquet.bulk import column_batches as files_verified
from kmsdata.parquet.headers import headers_in

KEY = "local://demo"
V1 = Path(__file__).parents[1] / "vectors" / "v1"


@pytest.fixture
def frame():
    return pd.DataFrame(
        {
            "name": ["Ada", None, "Bo", "Cy", "Di"],
            "age": [36, 41, 29, 50, 18],
            "email": ["a@x", "b@x", None, None, "a@x"],
            "city": ["Ulm", "Ulm", "Bonn", "Ulm", "Bonn"],
        }
    )


@pytest.fixture
def enc(frame):
    return frame.kms.encrypt(["name", "age"], deterministic="email", key=KEY)


@pytest.fixture
def path(enc, tmp_path):
    enc.kms.to_parquet(tmp_path / "f.parquet", row_group_size=2)
    return tmp_path / "f.parquet"


def with_cells(frame, column, change):
    """Return the frame with changed cells under the same header."""
    cells = change(frame[column].array.storage.to_pylist())
    array = kmsdata.EncryptedArray(pa.array(cells, pa.large_binary()), frame[column].dtype)
    return frame.assign(**{column: array})


def flipped(row):
    def change(cells):
        cells[row] = cells[row][:-1] + bytes([cells[row][-1] ^ 1])
        return cells

    return change


def rewritten(path, *, types=None, entry=None, also=None):
    """Rewrite the file with other headers: in column types, in its schema's entry, in an entry outside it."""
    table = pq.read_table(path)
    for name, text in (types or {}).items():
        position = table.schema.get_field_index(name)
        storage = [chunk.storage for chunk in table[name].chunks]
        if text is None:
            column = pa.chunked_array(storage)
        else:
            ext = EncryptedType(storage[0].type, kmsdata.EncryptedDtype(text))
            column = pa.chunked_array([pa.ExtensionArray.from_storage(ext, part) for part in storage], ext)
        table = table.set_column(position, name, column)
    metadata = dict(table.schema.metadata)
    if entry is not None:
        metadata[b"kmsdata"] = entry.encode()
    if entry == "":
        del metadata[b"kmsdata"]
    with pq.ParquetWriter(path, table.replace_schema_metadata(metadata).schema) as writer:
        writer.write_table(table.replace_schema_metadata(metadata))
        if also is not None:
            writer.add_key_value_metadata({"kmsdata": also})
    return path


def test_all_is_authentic(frame, enc, path, tmp_path):
    enc.to_parquet(tmp_path / "set", partition_cols=["city"])
    for x in (
        enc,
        path,
        tmp_path / "set",
        pa.Table.from_pandas(enc),
        enc.astype({"name": object}),
        enc.set_index("email"),
        enc.set_index(["city", "email"]),
    ):
        found = kmsdata.verify(x, encrypted=["name", "age", "email"])
        assert (found.ok, found.exit_status, found.rows, found.failures) == (True, 0, 5, ())
        columns = {
            column.name: (column.state, column.cells, column.nulls, column.bad) for column in found.columns
        }
        assert columns == {
            "name": ("authentic", 4, 1, 0),
            "age": ("authentic", 5, 0, 0),
            "email": ("authentic", 3, 2, 0),
        }
    series = kmsdata.verify(enc["age"])
    assert (series.ok, series.columns[0].algorithm) == (True, "AES-256-GCM")
    assert kmsdata.verify(pa.Table.from_pandas(enc.head(0))).ok
    with pytest.raises(TypeError, match="a path"):
        kmsdata.verify(5)
    with pytest.raises(FileNotFoundError):
        kmsdata.verify(tmp_path / "nowhere.parquet")


@pytest.mark.parametrize("name", sorted(path.stem for path in V1.glob("*.parquet")))
def test_the_vectors(name, keystore):
    keystore.parent.mkdir(mode=0o700)
    shutil.copyfile(V1 / "keystore.json", keystore)
    keystore.chmod(0o600)
    expected = json.loads((V1 / f"{name}.json").read_text())["expect"]
    found = kmsdata.verify(V1 / f"{name}.parquet")
    assert found.ok == (expected == "success"), found
    if not found.ok:
        assert {failure.column for failure in found.failures} == {"text"}


def test_where_the_bad_cells_are(enc, tmp_path, monkeypatch):
    many = pd.concat([enc] * 20, ignore_index=True)
    bad = with_cells(with_cells(many, "age", flipped(3)), "age", flipped(57))
    bad = with_cells(bad, "email", lambda cells: [*cells[:-1], b"\x01" + bytes(40)])
    bad = with_cells(bad, "name", lambda cells: [many["age"].array.storage[0].as_py(), *cells[1:]])
    bad.kms.to_parquet(tmp_path / "f.parquet", row_group_size=50)
    for batch in (1 << 18, 7):
        monkeypatch.setattr(cells_verified, "BATCH", batch)
        monkeypatch.setattr(files_verified, "_MOST_ROWS", batch)
        for x, groups in ((bad, [None] * 4), (tmp_path / "f.parquet", [0, 0, 1, 1])):
            found = kmsdata.verify(x)
            failures = sorted((f.rows[0], f.column, f.row_group, f.rows) for f in found.failures)
            if x is bad:
                assert failures == [
                    (0, "name", None, (0,)),
                    (3, "age", None, (3, 57)),
                    (99, "email", None, (99,)),
                ]
            else:
                assert failures == [
                    (0, "name", groups[0], (0,)),
                    (3, "age", groups[1], (3,)),
                    (57, "age", groups[2], (57,)),
                    (99, "email", groups[3], (99,)),
                ]
            assert not found.ok
            assert found.exit_status == 3
            checks = {column.name: (column.state, column.bad, column.cells) for column in found.columns}
            assert checks == {"name": ("failed", 1, 79), "age": ("failed", 2, 98), "email": ("failed", 1, 59)}
            assert "'age'" in str(found)
            assert "57" in str(found)


def test_cells_of_two_data_keys(frame):
    both = pd.concat([frame.kms.encrypt(["name", "age"], key=KEY) for _ in range(2)], ignore_index=True)
    assert kmsdata.verify(both).ok
    found = kmsdata.verify(with_cells(with_cells(both, "age", flipped(2)), "age", flipped(7)))
    assert [(f.column, f.rows, f.count) for f in found.failures] == [("age", (2, 7), 2)]


def test_what_must_be_encrypted(frame, enc, path, tmp_path):
    plain = tmp_path / "plain.parquet"
    frame.to_parquet(plain)
    for x in (frame, plain, pa.table({"name": ["Ada"]})):
        assert not kmsdata.verify(x).ok
        assert "header" in kmsdata.verify(x).failures[0].what
        found = kmsdata.verify(x, encrypted="name")
        assert found.failures[0].column == "name"
        assert found.failures[0].what == "it must be encrypted, but has no kmsdata header"
    for x in (enc, path, pa.Table.from_pandas(enc)):
        found = kmsdata.verify(x, encrypted=["age", "city", "town"])
        assert {column.name: column.state for column in found.columns} == {
            "city": "not encrypted",
            "town": "missing",
            "name": "authentic",
            "age": "authentic",
            "email": "authentic",
        }
        assert not found.ok
        assert found.exit_status == 3
        assert "3 of 5 columns authentic, 1 not encrypted, 1 missing" in " ".join(str(found).split())
        assert "[!]  city    not encrypted" in str(found)
        assert "× not encrypted<" in found._repr_html_()
    enc.to_parquet(tmp_path / "set", partition_cols=["city"])
    assert not kmsdata.verify(tmp_path / "set", encrypted="city").ok
    frame.to_parquet(tmp_path / "set" / "city=Ulm" / "stripped.parquet")
    found = kmsdata.verify(tmp_path / "set", encrypted=["name"])
    assert [(Path(f.file).name, f.column) for f in found.failures] == [("stripped.parquet", "name")]


def test_a_stripped_header_of_one_column(path):
    rewritten(path, types={"age": None}, entry="")
    found = kmsdata.verify(path)
    assert [(f.column, f.file) for f in found.failures] == [("age", str(path))]
    assert "looks like cells" in found.failures[0].what
    assert kmsdata.verify(path, encrypted="name").ok  # other columns are let through by naming some
    found = kmsdata.verify(path, encrypted=["age", "name"])
    assert [(f.column, f.file) for f in found.failures] == [("age", str(path))]


def test_copies_of_the_header_that_disagree(enc, path):
    headers = {name: enc[name].dtype.header for name in enc.kms.encrypted}
    one = headers["age"]
    assert kmsdata.verify(rewritten(path)).ok
    assert kmsdata.verify(rewritten(path, entry=file_text(headers))).ok

    other = kmsdata.data_key(enc).under([Wrap("local://other", "b64")])
    rewrapped = {name: Header.of(header.columns, [other.record]) for name, header in headers.items()}
    found = kmsdata.verify(rewritten(path, entry=file_text(rewrapped)))
    assert {f.what for f in found.failures} == {
        "its type and the file's 'kmsdata' entry contain different wrapped keys"
    }
    assert {f.column for f in found.failures} == {"name", "age", "email"}

    swapped = headers | {"age": headers["name"]}
    found = kmsdata.verify(rewritten(path, entry=file_text(swapped)))
    assert [(f.column, f.what) for f in found.failures] == [
        ("age", "its type and the file's 'kmsdata' entry describe it differently")
    ]
    less = {name: header for name, header in headers.items() if name != "age"}
    found = kmsdata.verify(rewritten(path, entry=file_text(less)))
    assert [(f.column, f.what) for f in found.failures] == [
        ("age", "it is missing in the file's 'kmsdata' entry")
    ]
    found = kmsdata.verify(rewritten(path, entry="{}"))
    assert [f.column for f in found.failures] == [None]
    assert "the 'kmsdata' entry: " in found.failures[0].what
    found = kmsdata.verify(rewritten(path, entry=file_text(headers | {"city": one})))
    assert [f.column for f in found.failures] == ["city"]
    assert "stored as" in found.failures[0].what


def test_an_entry_that_only_other_readers_see(enc, path):
    """pyarrow reads the schema's metadata from ARROW:schema; only other readers see entries outside it."""
    headers = {name: enc[name].dtype.header for name in enc.kms.encrypted}
    other = kmsdata.data_key(enc).under([Wrap("local://other", "b64")])
    rewrapped = {name: Header.of(header.columns, [other.record]) for name, header in headers.items()}
    assert kmsdata.verify(rewritten(path, entry="", also=file_text(headers))).ok
    assert not kmsdata.verify(rewritten(path, entry="", also=file_text(rewrapped))).ok


def test_a_key_that_is_refused(frame, tmp_path):
    enc = frame.kms.encrypt("name", key="local://one").kms.encrypt("age", key="local://two")
    enc.kms.to_parquet(tmp_path / "f.parquet", row_group_size=2)
    for x in (enc, tmp_path / "f.parquet"):
        found = kmsdata.verify(x, key="local://one")
        assert {column.name: (column.state, column.cells) for column in found.columns} == {
            "name": ("authentic", 4),
            "age": ("not verified", 0),
        }
        assert not found.ok
        assert "local://two" in found.failures[0].what
        assert kmsdata.verify(x, key=["local://one", "local://two"]).ok


def test_each_data_key_is_asked_for_once(frame, tmp_path):
    asked = []

    class Provider:
        scheme = "memory"

        def generate_data_key(self, key, context):
            return kmsdata.DataKey(bytes(range(32)), [Wrap(key, "w")], context=context)

        def unwrap(self, _, key, __):
            asked.append(key)
            if len(asked) > 1:
                raise kmsdata.KeyAccessError(f"{key}: denied", key=key, provider="memory")
            return bytes(range(32))

        def wrap(self, *_):
            raise NotImplementedError

    with kmsdata.using(Provider()), kmsdata.using(kmsdata.KeyCache(age=0)):
        enc = frame.kms.encrypt(["name", "age"], key="memory://k", context={"team": "hr"})
        enc.to_parquet(tmp_path / "set", partition_cols=["city"])
        assert kmsdata.verify(tmp_path / "set").ok
        assert len(asked) == 1
        denied = kmsdata.verify(tmp_path / "set")
        assert len(asked) == 2
        assert [column.state for column in denied.columns] == ["not verified", "not verified"]


def test_the_context_that_is_asked_for(frame):
    enc = frame.kms.encrypt("name", key=KEY, context={"team": "hr"})
    assert kmsdata.verify(enc, context={"team": "hr"}).ok
    found = kmsdata.verify(enc, context={"team": "it"})
    assert "context" in found.failures[0].what


def test_files_that_are_damaged_do_not_hide_the_others(enc, path, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    raw = path.read_bytes()
    chunk = pq.read_metadata(path).row_group(1).column(1)
    start, size = chunk.data_page_offset, chunk.total_compressed_size
    (folder / "1 good.parquet").write_bytes(raw)
    (folder / "2 cut.parquet").write_bytes(raw[:-100])
    (folder / "3 empty.parquet").write_bytes(b"")
    (folder / "4 page.parquet").write_bytes(raw[:start] + bytes(size) + raw[start + size :])
    (folder / "5 good.parquet").write_bytes(raw)
    found = kmsdata.verify(folder)
    assert [(Path(f.file).name, f.column, f.row_group) for f in found.failures] == [
        ("2 cut.parquet", None, None),
        ("3 empty.parquet", None, None),
        ("4 page.parquet", "age", 1),
    ]
    assert "pages are damaged" in found.failures[2].what
    assert (found.files, found.rows) == (5, 15)
    assert {column.name: column.cells for column in found.columns} == {"name": 12, "age": 13, "email": 9}
    assert not found.ok


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_reported_or_means_nothing(data, frame, path, tmp_path):
    raw = bytearray(path.read_bytes())
    at = data.draw(st.integers(4, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    changed = tmp_path / "changed.parquet"
    changed.write_bytes(raw)
    found = kmsdata.verify(changed, encrypted=["name", "age", "email"])
    if found.ok:
        # As Arrow: the flipped bit may be in what pandas keeps of plain columns.
        table = pq.read_table(changed, columns=["name", "age", "email"], use_pandas_metadata=False)
        for name, header in headers_in(table.schema, str(changed)).items():
            # A column may have lost its type to the flip, and have its header from the file's own entry.
            cells = EncryptedArray(table[name], EncryptedDtype(header)).__arrow_array__()
            table = table.set_column(table.column_names.index(name), name, cells)
        back = kmsdata.decrypt_table(table.replace_schema_metadata(None)).to_pydict()
        # Cells that are set to null, or exchanged within their column, are not noticed.
        assert len(back["age"]) == len(back["name"]) == found.rows
        assert {*back["age"]} <= {*frame["age"], None}
        assert {*back["name"]} <= {*frame["name"].dropna(), None}


def test_it_tells_no_value_and_shows_itself(frame, enc, tmp_path):
    bad = with_cells(enc, "age", flipped(0)).rename(columns={"city": "<b>&"})
    bad.kms.to_parquet(tmp_path / "<x>.parquet")
    for found in (kmsdata.verify(bad), kmsdata.verify(tmp_path / "<x>.parquet", encrypted="<b>&")):
        shown = [str(found), repr(found), found._repr_html_(), found.json()]
        for text in shown:
            assert not any(secret in text for secret in ("Ada", "a@x", "Ulm"))
            assert "age" in text
        assert "FAILED" in shown[0]
        assert json.loads(shown[3])["ok"] is False
        assert json.loads(shown[3])["failures"][-1]["rows"] == [0]
        assert not re.search("<[bx]>", shown[2])
    assert "authentic; 5 rows" in str(kmsdata.verify(enc))


def test_many_failures_are_not_all_shown(enc, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(50):
        (folder / f"{number}.parquet").write_bytes(b"no")
    enc.kms.to_parquet(folder / "x.parquet")
    found = kmsdata.verify(folder)
    assert len(found.failures) == 50
    assert "and 30 more" in str(found)
    assert "and 30 more" in found._repr_html_()


def test_null_cells_are_counted_and_no_promise(enc):
    emptied = with_cells(enc, "age", lambda cells: [None, *cells[1:]])
    found = kmsdata.verify(emptied)
    assert (found.ok, np.array([c.nulls for c in found.columns]).tolist()) == (True, [1, 1, 2])
    assert "set to null" in str(found)


def test_a_report_without_columns_has_no_hole(tmp_path):
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "plain.parquet")
    said = str(kmsdata.verify(tmp_path / "plain.parquet"))
    assert "FAILED" in said
    assert "\n\n\n" not in said
