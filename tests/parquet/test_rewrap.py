"""Rewrap: other master keys, the same cells; after any failure the old key or the new one opens the data."""

import base64
import contextlib
import errno
import json
import os
import random
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

import kmsdata
from kmsdata.atomic_files import whole_file
from kmsdata.keys import session
from kmsdata.keys.data_key import DataKey, random_bytes
from kmsdata.keys.envelope import ColumnHeader, DataKeyRecord, Header, Wrap, file_text
from kmsdata.parquet import rewrap as rewrapping
from kmsdata.parquet.footer import ending, read_footer
from kmsdata.parquet.header_copies import copies_in, entry_with

OLD, NEW, MORE = "local://old", "local://new", "local://more"


@pytest.fixture(autouse=True)
def creating(keystore):
    """Rewrap to keys that do not exist yet."""
    kmsdata.use(kmsdata.LocalKeystore(create=True))


class Vault:
    """A custom provider that counts calls, can refuse them, and can call a function meanwhile."""

    scheme = "vault"

    def __init__(self):
        self.held, self.calls, self.denied, self.meanwhile = {}, [], set(), lambda: None

    def generate_data_key(self, key, context):
        secret = random_bytes(32)
        return DataKey(secret, [Wrap(key, self.wrap(secret, key, context))], context=context)

    def wrap(self, data_key, key, context):
        self._asked("wrap", key)
        token = f"vault-token-{random_bytes(12).hex()}"
        self.held[token] = data_key, key, dict(context)
        return token

    def unwrap(self, wrapped, key, context):
        self._asked("unwrap", key)
        secret, under, given = self.held.get(wrapped, (None, None, None))
        if (under, given) != (key, dict(context)):
            raise kmsdata.KeyAccessError(f"{key}: does not open", provider="vault", key=key)
        return secret

    def _asked(self, what, key):
        self.calls.append((what, key))
        self.meanwhile()
        if key in self.denied:
            raise kmsdata.KeyAccessError(f"{key}: denied", provider="vault", code="Denied", key=key)


@pytest.fixture
def vault():
    provider = Vault()
    with kmsdata.using(provider):
        yield provider


@pytest.fixture
def frame():
    return pd.DataFrame(
        {
            "ssn": ["078-05-1120", None, "219-09-9999", ""],
            "email": ["a@x.org", "b@x.org", "a@x.org", None],
            "age": [36, 41, 19, 36],
            "city": ["Ulm", "Ulm", None, "Köln"],
        }
    )


@pytest.fixture
def enc(frame):
    return frame.kms.encrypt(["ssn", "age"], deterministic="email", key=OLD)


@pytest.fixture
def path(enc, tmp_path):
    enc.kms.to_parquet(tmp_path / "people.parquet")
    return tmp_path / "people.parquet"


def opens(path, frame, key):
    """Tell whether a key decrypts a file to the expected values."""
    try:
        found = kmsdata.read_parquet(path, decrypt=True, key=key)
    except kmsdata.WrongKeyError:
        return False
    pd.testing.assert_frame_equal(found, frame)
    return True


def footer_of(path):
    with Path(path).open("rb") as file:
        return read_footer(file, Path(path).stat().st_size, str(path))


def pages(path):
    _, start = footer_of(path)
    return Path(path).read_bytes()[:start]


def keys_in(text):
    """Return the master keys that the text of a header names."""
    found = json.loads(text)["data_keys"]
    return {wrap["key"] for record in found for wrap in record["wraps"]}


def everything(path):
    """Return all text of a file's metadata, also the text in base64."""
    footer, _ = footer_of(path)
    values = [entry.value or b"" for entry in footer.entries]
    return b"\n".join(
        [*values, *(base64.b64decode(e.value) for e in footer.entries if e.key == b"ARROW:schema")]
    )


def edit(path, visit, only=None):
    """Write a file's footer with other headers, as other software may do."""
    footer, start = footer_of(path)
    values = {
        position: entry_with(entry.key, entry.value, visit)
        for position, entry in enumerate(footer.entries)
        if entry.value is not None and only in (None, entry.key)
    }
    path.write_bytes(path.read_bytes()[:start] + ending(footer.edited(values)))


def changed_record(**facts):
    """Return a visitor that changes every record."""

    def visit(copy):
        def new(record):
            return DataKeyRecord(
                facts.get("commitment", record.commitment),
                facts.get("context", record.context),
                facts.get("wraps", record.wraps),
            )

        columns = copy.header.columns
        if "commitment" in facts:
            columns = [changed_column(item, data_key=facts["commitment"]) for item in columns]
        return Header.of(columns, [new(record) for record in copy.header.records])

    return visit


def changed_column(item, **facts):
    fields = {
        name: getattr(item, name)
        for name in ("algorithm", "data_key", "type", "name", "domain", "kind", "mac")
    }
    return ColumnHeader(**(fields | facts))


# What it does.


def test_another_key_opens_the_same_pages(path, frame):
    before, raw = pages(path), path.read_bytes()
    (wrapped,) = {wrap.wrapped for copy in copies(path) for r in copy.header.records for wrap in r.wraps}
    report = kmsdata.rewrap(path, NEW)
    assert (report.files, report.rewrapped, report.keys) == (1, 1, {NEW: 1})
    assert pages(path) == before
    assert opens(path, frame, NEW)
    assert not opens(path, frame, OLD)
    assert wrapped.encode() in raw
    assert wrapped.encode() not in everything(path)


def copies(path):
    footer, _ = footer_of(path)
    return copies_in((entry.key, entry.value) for entry in footer.entries)


def test_a_second_wrap_is_added_and_the_first_retired_so_that_nobody_waits(path, frame):
    before = pages(path)
    assert kmsdata.rewrap(path, NEW, add=True).keys == {NEW: 1, OLD: 1}
    assert opens(path, frame, OLD)
    assert opens(path, frame, NEW)
    assert kmsdata.rewrap(path, NEW, add=True).already == 1
    assert kmsdata.rewrap(path, retire=OLD).keys == {NEW: 1}
    assert not opens(path, frame, OLD)
    assert opens(path, frame, NEW)
    assert kmsdata.rewrap(path, retire=OLD).already == 1
    assert pages(path) == before


def test_the_last_wrap_is_never_retired(path):
    raw = path.read_bytes()
    with pytest.raises(ValueError, match="under local://old alone"):
        kmsdata.rewrap(path, retire=OLD)
    kmsdata.rewrap(path, NEW, add=True)
    with pytest.raises(ValueError, match="alone"):
        kmsdata.rewrap(path, retire=[OLD, NEW])
    with pytest.raises(ValueError, match="alone"):
        kmsdata.rewrap(path, retire="local://*")
    assert path.read_bytes() != raw


def test_a_wrap_is_retired_only_where_another_opens(vault, frame, tmp_path):
    path = tmp_path / "x.parquet"
    frame.kms.encrypt("ssn", key=["vault://old", "vault://new"]).kms.to_parquet(path)
    raw, vault.denied = path.read_bytes(), {"vault://new"}
    with pytest.raises(kmsdata.KeyAccessError, match="denied"):
        kmsdata.rewrap(path, retire="vault://old")
    assert path.read_bytes() == raw
    vault.denied = {"vault://old"}  # the replaced key need not unwrap any more
    assert kmsdata.rewrap(path, retire="vault://old").keys == {"vault://new": 1}


def test_no_more_wraps_than_readers_take(path):
    for number in range(15):
        kmsdata.rewrap(path, f"local://k{number}", add=True)
    raw = path.read_bytes()
    with pytest.raises(kmsdata.FormatError, match="at most 16"):
        kmsdata.rewrap(path, NEW, add=True)
    assert path.read_bytes() == raw


def test_only_the_named_key_is_replaced(frame, tmp_path):
    path = tmp_path / "x.parquet"
    frame.kms.encrypt("ssn", key=[OLD, MORE]).kms.to_parquet(path)
    with pytest.raises(ValueError, match=r"local://old, local://more\. Pass the one to replace"):
        kmsdata.rewrap(path, NEW)
    assert kmsdata.rewrap(path, NEW, source=OLD).keys == {MORE: 1, NEW: 1}
    with kmsdata.using(MORE):
        assert kmsdata.rewrap(path, OLD).keys == {NEW: 1, OLD: 1}
    assert kmsdata.rewrap(path, MORE, source="local://*").keys == {MORE: 1}


def test_the_new_wrap_stands_where_the_old_one_stood(frame, tmp_path):
    path = tmp_path / "x.parquet"
    frame.kms.encrypt("ssn", key=[OLD, MORE]).kms.to_parquet(path)
    kmsdata.rewrap(path, NEW, source=OLD)
    (record,) = {record for copy in copies(path) for record in copy.header.records}
    assert [wrap.key for wrap in record.wraps] == [NEW, MORE]


def test_a_key_that_is_not_there_is_not_replaced(path, vault):
    raw = path.read_bytes()
    for call in (
        lambda: kmsdata.rewrap(path, NEW, source=MORE),
        lambda: kmsdata.rewrap(path, NEW, source=["vault://a", "tencent-kms://ap-guangzhou/*"]),
    ):
        with pytest.raises(kmsdata.WrongKeyError, match="under local://old, which is not") as caught:
            call()
        assert caught.value.allowed is False
    with kmsdata.using(NEW), pytest.raises(kmsdata.WrongKeyError, match="Pass the key to replace"):
        kmsdata.rewrap(path, NEW)
    with kmsdata.using("vault://a"), pytest.raises(kmsdata.WrongKeyError, match="allows only"):
        kmsdata.rewrap(path, NEW, add=True)
    assert vault.calls == []
    assert path.read_bytes() == raw


def test_after_a_rotation_the_same_key_wraps_anew(path, frame):
    session.provider_of(OLD, pinned=True).rotate_key(OLD)
    raw = path.read_bytes()
    assert kmsdata.rewrap(path, OLD).already == 1
    assert path.read_bytes() == raw
    assert kmsdata.rewrap(path, OLD, source=OLD).rewrapped == 1
    assert path.read_bytes() != raw
    assert opens(path, frame, OLD)


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({}, ValueError),
        ({"key": NEW, "retire": OLD}, ValueError),
        ({"retire": OLD, "add": True}, ValueError),
        ({"key": "new"}, kmsdata.FormatError),
        ({"key": [NEW, OLD]}, TypeError),
        ({"key": NEW, "source": "old"}, kmsdata.FormatError),
        ({"retire": "old"}, kmsdata.FormatError),
    ],
)
def test_arguments_that_make_no_sense_are_refused(path, arguments, kind):
    raw = path.read_bytes()
    with pytest.raises(kind):
        kmsdata.rewrap(path, **arguments)
    assert path.read_bytes() == raw
    with pytest.raises(TypeError, match="takes a path"):
        kmsdata.rewrap(5, NEW)


def test_a_report_says_what_became_of_the_files(path):
    report = kmsdata.rewrap(path, NEW)
    assert json.loads(report.json())["rewrapped"] == 1
    for text in (str(report), repr(report), report._repr_html_()):
        assert "1 file: 1 rewrapped" in text
        assert "local://new now opens 1 file(s)" in text


# Every copy.


@pytest.mark.newest
@pytest.mark.parametrize("writer", ["kmsdata", "pandas"])
def test_all_readers_see_the_new_wrap_alone(enc, frame, tmp_path, writer):
    import duckdb
    import fastparquet
    import polars as pl

    path = tmp_path / "x.parquet"
    text = enc["ssn"].dtype.text
    enc.attrs = {"note": text, "deep": {"list": [json.dumps({"quoted": text})], "plain": json.loads(text)}}
    enc.kms.to_parquet(path) if writer == "kmsdata" else enc.to_parquet(path)
    kmsdata.rewrap(path, NEW)

    seen = {}
    back = pd.read_parquet(path)
    seen["pandas"] = back["ssn"].dtype.text
    seen["attrs"] = back.attrs["note"]
    seen["attrs, quoted twice"] = json.loads(back.attrs["deep"]["list"][0])["quoted"]
    seen["attrs, not quoted"] = json.dumps(back.attrs["deep"]["plain"])
    schema = pq.read_table(path).schema
    seen["pyarrow"] = schema.field("email").type.dtype.text
    seen["dataset"] = ds.dataset(path).schema.field("age").type.dtype.text
    seen["polars"] = pl.read_parquet(path).schema["ssn"].ext_metadata()
    if writer == "kmsdata":
        seen["schema"] = schema.metadata[b"kmsdata"]
        seen["footer"] = pq.read_metadata(path).metadata[b"kmsdata"]
        seen["polars' metadata"] = pl.read_parquet_metadata(path)["kmsdata"]
        seen["fastparquet"] = fastparquet.ParquetFile(path).key_value_metadata["kmsdata"]
        query = f"select value from parquet_kv_metadata('{path}') where key = 'kmsdata'"  # noqa: S608
        seen["duckdb"] = duckdb.sql(query).fetchall()[0][0]
    assert {name: keys_in(text) for name, text in seen.items()} == {name: {NEW} for name in seen}
    assert OLD.encode() not in everything(path)
    expected = frame.copy()
    expected.attrs = back.attrs
    pd.testing.assert_frame_equal(back.kms.decrypt(key=NEW), expected)


SPARK = b"org.apache.spark.sql.parquet.row.metadata"


def test_what_spark_keeps_of_a_column_is_rewrapped(enc, tmp_path):
    path, plain = tmp_path / "x.parquet", pa.table({"ssn": enc["ssn"].array.storage.cast(pa.binary())})
    fields = [
        {
            "name": "ssn",
            "type": "binary",
            "nullable": True,
            "metadata": {"kmsdata": enc["ssn"].dtype.text, "ü": 1},
        }
    ]
    row = json.dumps({"type": "struct", "fields": fields}, separators=(",", ":"), ensure_ascii=False)
    with pq.ParquetWriter(path, plain.schema, store_schema=False) as writer:
        writer.write_table(plain)
        writer.add_key_value_metadata({SPARK.decode(): row, "org.apache.spark.version": "4.0.0"})
    assert kmsdata.rewrap(path, NEW).keys == {NEW: 1}
    metadata = pq.read_metadata(path).metadata
    (field,) = json.loads(metadata[SPARK])["fields"]
    assert keys_in(field["metadata"]["kmsdata"]) == {NEW}
    assert field | {"metadata": 0} == fields[0] | {"metadata": 0}
    assert metadata[b"org.apache.spark.version"] == b"4.0.0"


def test_cells_inside_of_lists_and_structs_are_rewrapped(enc, tmp_path):
    path = tmp_path / "x.parquet"
    cells = pa.chunked_array(enc["ssn"].array.__arrow_array__()).combine_chunks()
    if isinstance(cells, pa.ChunkedArray):
        (cells,) = cells.chunks
    inner = pa.struct([pa.field("cell", cells.type), pa.field("n", pa.int64())])
    rows = pa.StructArray.from_arrays([cells, pa.array(range(4))], fields=list(inner))
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 4], pa.int32()), rows)
    pq.write_table(pa.table({"deep": lists}), path)
    assert kmsdata.rewrap(path, NEW).keys == {NEW: 1}
    assert OLD.encode() not in everything(path)
    found = pq.read_schema(path).field("deep").type.value_type.field("cell").type
    assert keys_in(found.dtype.text) == {NEW}
    with pytest.raises(TypeError, match="inside of lists"):
        kmsdata.rewrap(pq.read_table(path), OLD)


def test_an_old_key_in_a_form_that_nobody_knows_is_not_left_behind(path):
    wrapped = copies(path)[0].header.records[0].wraps[0].wrapped
    table = pq.read_table(path)
    table = table.replace_schema_metadata({**table.schema.metadata, b"mine": f"yaml: {wrapped}".encode()})
    pq.write_table(table, path)
    raw = path.read_bytes()
    with pytest.raises(kmsdata.FormatError, match=r"'mine'.* contains the wrapped key in a form"):
        kmsdata.rewrap(path, NEW)
    assert path.read_bytes() == raw
    assert kmsdata.rewrap(path, NEW, add=True).rewrapped == 1  # the old wrapped key is kept on purpose


@pytest.mark.parametrize("place", [b"kmsdata", b"ARROW:schema"])
def test_copies_that_disagree_about_a_data_key_are_refused(path, enc, place):
    kmsdata.rewrap(path, NEW)
    new = path.read_bytes()
    enc.kms.to_parquet(path)
    other = {record.commitment: record for record in enc.kms.rewrap(NEW)["ssn"].dtype.header.records}
    edit(path, lambda copy: copy.header.under(other), only=place)
    raw = path.read_bytes()
    for arguments in ({"key": MORE}, {"key": MORE, "add": True}, {"retire": OLD}):
        with pytest.raises(
            kmsdata.FormatError, match="copies of the header disagree about data key"
        ) as caught:
            kmsdata.rewrap(path, **arguments)
        assert {"local://old", "local://new"} <= set(str(caught.value).replace(" ", "\n").split("\n"))
        assert caught.value.path == str(path)
    assert path.read_bytes() == raw != new


def test_copies_that_disagree_about_a_column_are_refused(path, frame):
    other = frame.kms.encrypt("ssn", key=OLD)["ssn"].dtype.header

    def visit(copy):
        return other if copy.column == "ssn" else copy.header

    edit(path, visit, only=b"kmsdata")
    with pytest.raises(
        kmsdata.FormatError, match="disagree about column 'ssn': entry 'kmsdata' and ARROW:schema"
    ):
        kmsdata.rewrap(path, NEW)


def test_frames_that_were_rewrapped_in_part_are_written_in_agreement(enc, tmp_path):
    both = enc[["ssn"]].join(enc[["email"]].kms.rewrap(NEW, add=True))
    assert both["ssn"].dtype.header.records != both["email"].dtype.header.records
    path = tmp_path / "x.parquet"
    both.kms.to_parquet(path)
    assert kmsdata.rewrap(path, MORE, source=OLD).keys == {NEW: 1, MORE: 1}


# Keys that do not open, and headers that were changed.


def test_an_unknown_key_service_or_a_lost_key_leaves_the_file(path, keystore):
    raw = path.read_bytes()
    with pytest.raises(kmsdata.KeyNotFoundError, match="no provider"):
        kmsdata.rewrap(path, "vault://new")
    keystore.unlink()
    with pytest.raises(kmsdata.KeyNotFoundError, match=r"people\.parquet"):
        kmsdata.rewrap(path, NEW)
    assert path.read_bytes() == raw
    assert not keystore.exists()  # no new key was made for nothing


def test_a_refusal_to_wrap_leaves_the_file(path, vault):
    raw, vault.denied = path.read_bytes(), {"vault://new"}
    with pytest.raises(kmsdata.KeyAccessError, match="denied"):
        kmsdata.rewrap(path, "vault://new")
    assert path.read_bytes() == raw


def test_a_wrap_that_does_not_open_is_left_alone_and_reported(vault, frame, tmp_path):
    path = tmp_path / "x.parquet"
    frame.kms.encrypt("ssn", key=["vault://a", "vault://b", "vault://c"]).kms.to_parquet(path)
    vault.denied = {"vault://a"}
    report = kmsdata.rewrap(path, "vault://new", source=["vault://a", "vault://b"])
    assert report.keys == {"vault://a": 1, "vault://c": 1, "vault://new": 1}
    ((sentence, count),) = report.left.items()
    assert "under vault://a was skipped" in sentence
    assert "denied" in sentence
    assert count == 1
    assert "vault://a was skipped" in str(report)
    vault.denied = {"vault://b", "vault://c"}
    assert opens(path, frame, "vault://new")


def test_a_wrap_of_another_data_key_is_left_alone(vault, frame, tmp_path):
    path = tmp_path / "x.parquet"
    frame.kms.encrypt("ssn", key=["vault://a", "vault://b"]).kms.to_parquet(path)
    wrong = vault.wrap(bytes(32), "vault://a", {})
    wraps = copies(path)[0].header.records[0].wraps
    edit(path, changed_record(wraps=(Wrap("vault://a", wrong), wraps[1])))
    report = kmsdata.rewrap(path, "vault://new", source="vault://*")
    assert report.keys == {"vault://a": 1, "vault://new": 1}
    assert "not the data key" in next(iter(report.left))
    assert opens(path, frame, "vault://new")


def test_a_planted_wrap_under_the_new_key_does_not_stand_in_for_a_good_one(vault, frame, tmp_path):
    path = tmp_path / "x.parquet"
    frame.kms.encrypt("ssn", key="vault://old").kms.to_parquet(path)
    (good,) = copies(path)[0].header.records[0].wraps
    planted = Wrap("vault://new", vault.wrap(bytes(32), "vault://new", {}))
    edit(path, changed_record(wraps=(planted, good)))
    report = kmsdata.rewrap(path, "vault://new")
    assert report.keys == {"vault://new": 1}
    assert len(report.left) == 1
    assert opens(path, frame, "vault://new")


def test_a_good_wrap_under_the_new_key_is_kept(vault, frame, tmp_path):
    path = tmp_path / "x.parquet"
    frame.kms.encrypt("ssn", key=["vault://old", "vault://new"]).kms.to_parquet(path)
    vault.calls.clear()
    assert kmsdata.rewrap(path, "vault://new").keys == {"vault://new": 1}
    assert [what for what, _ in vault.calls] == ["unwrap", "unwrap"]
    assert opens(path, frame, "vault://new")


def flipped(raw):
    return bytes([raw[0] ^ 1]) + raw[1:]


def tampered_mac(copy):
    columns = [changed_column(item, mac=flipped(item.mac)) for item in copy.header.columns]
    return Header.of(columns, copy.header.records)


def tampered_type(copy):
    columns = [changed_column(item, type={"arrow": "binary"}) for item in copy.header.columns]
    return Header.of(columns, copy.header.records)


def tampered_one_mac(copy):
    columns = [
        changed_column(item, mac=flipped(item.mac)) if item.name == "age" else item
        for item in copy.header.columns
    ]
    return Header.of(columns, copy.header.records)


@pytest.mark.parametrize(
    ("visit", "kind"),
    [
        (changed_record(commitment=bytes(32)), kmsdata.WrongKeyError),
        (changed_record(context=(("a", "b"),)), kmsdata.KeyAccessError),
        (changed_record(wraps=(Wrap(OLD, "AAAA"),)), kmsdata.KeyServiceError),
        (tampered_mac, kmsdata.FormatError),
        (tampered_type, kmsdata.FormatError),
        (tampered_one_mac, kmsdata.FormatError),
    ],
)
@pytest.mark.parametrize("arguments", [{"key": NEW}, {"key": NEW, "add": True}, {"retire": MORE}])
def test_a_changed_header_is_never_wrapped_anew(frame, tmp_path, visit, kind, arguments):
    path = tmp_path / "x.parquet"
    frame.kms.encrypt(["ssn", "age"], deterministic="email", key=OLD).kms.to_parquet(path)
    edit(path, visit)
    if "retire" in arguments:
        kmsdata.new_data_key(MORE)
        edit(path, lambda copy: changed_record(wraps=(*copy.header.records[0].wraps, Wrap(MORE, "x")))(copy))
    raw, before = path.read_bytes(), kmsdata.usage()
    with pytest.raises(kind):
        kmsdata.rewrap(path, **arguments)
    assert path.read_bytes() == raw
    assert kmsdata.usage().wrap == before.wrap


def test_exchanged_columns_are_refused(path):
    table = pq.read_table(path)
    names = {"ssn": "age", "age": "ssn"}
    pq.write_table(table.rename_columns([names.get(name, name) for name in table.column_names]), path)
    with pytest.raises(kmsdata.FormatError):
        kmsdata.rewrap(path, NEW)


def test_a_plain_file_is_refused(frame, tmp_path):
    frame.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(kmsdata.FormatError, match="nothing in it is encrypted"):
        kmsdata.rewrap(tmp_path / "x.parquet", NEW)
    with pytest.raises(FileNotFoundError):
        kmsdata.rewrap(tmp_path / "y.parquet", NEW)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError):
        kmsdata.rewrap(tmp_path / "empty", NEW)


def test_no_error_shows_a_key(path, vault, capsys):
    raw = path.read_bytes()
    wrapped = copies(path)[0].header.records[0].wraps[0].wrapped
    vault.denied = {"vault://new"}
    for arguments in ({"key": "vault://new"}, {"retire": OLD}, {"key": NEW, "source": MORE}):
        with pytest.raises((kmsdata.KmsDataError, ValueError)) as caught:
            kmsdata.rewrap(path, **arguments)
        assert wrapped not in f"{caught.value} {caught.value!r} {vars(caught.value)}"
    assert path.read_bytes() == raw


# Datasets.


@pytest.fixture
def dataset(enc, tmp_path):
    """A partitioned dataset of 40 files under one data key, with what other software leaves in folders."""
    root = tmp_path / "people"
    for number in range(40):
        folder = root / f"year={2000 + number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        enc.kms.to_parquet(folder / f"part-{number}.parquet", index=False)
    (root / "_SUCCESS").touch()
    (root / "_temporary").mkdir()
    (root / "_temporary" / "half.parquet").write_bytes(b"PAR1 not yet")
    (root / ".hidden.parquet").write_bytes(b"nothing")
    return root


def parts(root):
    return sorted(Path(root).rglob("part-*.parquet"))


def test_a_dataset_costs_one_unwrap_and_one_wrap(dataset, frame):
    before = kmsdata.usage()
    report = kmsdata.rewrap(dataset, NEW)
    after = kmsdata.usage()
    assert (report.files, report.rewrapped, report.keys) == (40, 40, {NEW: 40})
    assert (after.unwrap - before.unwrap, after.wrap - before.wrap) == (1, 1)
    assert all(opens(part, frame, NEW) for part in parts(dataset))
    again = kmsdata.rewrap(dataset, NEW)
    assert (again.rewrapped, again.already) == (0, 40)
    assert kmsdata.usage() == (*after[:1], after.unwrap + 40, *after[2:])  # those of the reads above
    assert len(kmsdata.read_parquet(dataset, decrypt=True, key=NEW)) == 160


def test_files_with_other_metadata_share_the_calls(frame, tmp_path):
    key, folder = kmsdata.new_data_key(OLD), tmp_path / "d"
    folder.mkdir()
    for number in range(1, 20):
        part = pd.concat([frame] * number)
        part.kms.encrypt("ssn", key=key).kms.to_parquet(folder / f"{number}.parquet", index=number % 2 == 0)
    before = kmsdata.usage()
    report = kmsdata.rewrap(folder, NEW)
    after = kmsdata.usage()
    assert report.rewrapped == 19
    assert (after.unwrap - before.unwrap, after.wrap - before.wrap) == (1, 1)


def test_a_dataset_that_is_half_done_is_read_whole_and_finished(dataset, frame):
    for part in parts(dataset)[::2]:
        kmsdata.rewrap(part, NEW)
    assert len(kmsdata.read_parquet(dataset, decrypt=True)) == 160
    report = kmsdata.rewrap(dataset, NEW)
    assert (report.rewrapped, report.already, report.keys) == (20, 20, {NEW: 40})


@pytest.mark.parametrize("half", [0, 1])
def test_a_dataset_that_is_half_done_opens_by_either_key_whichever_file_is_the_first(dataset, half):
    for part in parts(dataset)[half::2]:
        kmsdata.rewrap(part, NEW)
    for key in (OLD, NEW):
        assert len(kmsdata.read_parquet(dataset, decrypt=True, key=key)) == 160
        assert len(kmsdata.read_parquet(dataset).kms.decrypt(key=key)) == 160
        found = kmsdata.read_parquet(dataset, filters=[("email", "==", "b@x.org")], decrypt=True, key=key)
        assert len(found) == 40


def test_files_under_other_keys_or_none_are_left_alone_and_counted(dataset, frame):
    frame.kms.encrypt("ssn", key=MORE).kms.to_parquet(dataset / "part-more.parquet")
    frame.to_parquet(dataset / "part-plain.parquet")
    report = kmsdata.rewrap(dataset, NEW, source=OLD)
    assert (report.files, report.rewrapped, report.other, report.plain) == (42, 40, 1, 1)
    assert report.keys == {MORE: 1, NEW: 40}
    assert "1 under other keys" in str(report)
    with pytest.raises(kmsdata.WrongKeyError, match="under local://"):
        kmsdata.rewrap(dataset, OLD, source="vault://x")


def test_columns_under_several_data_keys_are_told_apart(frame, tmp_path):
    path = tmp_path / "x.parquet"
    frame.kms.encrypt("ssn", key=OLD).kms.encrypt("age", key=MORE).kms.to_parquet(path)
    assert kmsdata.rewrap(path, NEW, source=OLD).keys == {MORE: 1, NEW: 1}
    back = kmsdata.read_parquet(path)
    pd.testing.assert_series_equal(back.kms.decrypt("ssn", key=NEW)["ssn"], frame["ssn"])
    pd.testing.assert_series_equal(back.kms.decrypt("age", key=MORE)["age"], frame["age"])


def test_bad_files_stop_no_others_and_are_named(dataset, frame):
    good = parts(dataset)
    (dataset / "part-a.parquet").write_bytes(b"PAR1 torn")
    shutil.copy(good[0], dataset / "part-b.parquet")
    edit(dataset / "part-b.parquet", tampered_mac)
    with pytest.raises(kmsdata.KmsDataError, match=r"2 of 42 files in .* could not") as caught:
        kmsdata.rewrap(dataset, NEW)
    report = caught.value.report
    assert (report.rewrapped, len(report.failed)) == (40, 2)
    assert "cut short" in report.failed[str(dataset / "part-a.parquet")]
    assert "MAC" in report.failed[str(dataset / "part-b.parquet")]
    assert str(report).count(str(dataset / "part-b.parquet")) == 1
    assert "part-a.parquet" in str(report)
    assert all(opens(part, frame, NEW) for part in good)


def test_a_refusal_costs_a_dataset_one_call(dataset, vault):
    vault.denied = {"vault://new"}
    with pytest.raises(kmsdata.KmsDataError, match="40 of 40 files"):
        kmsdata.rewrap(dataset, "vault://new")
    assert vault.calls == [("wrap", "vault://new")]


def test_sidecars_are_rewrapped_and_stale_checksums_go(enc, tmp_path):
    table = pa.Table.from_pandas(enc)
    table = table.replace_schema_metadata(
        {
            **table.schema.metadata,
            b"kmsdata": file_text({n: enc[n].dtype.header for n in ("ssn", "email")}).encode(),
        }
    )
    collected = []
    pq.write_to_dataset(
        table, tmp_path / "d", metadata_collector=collected, basename_template="part-{i}.parquet"
    )
    pq.write_metadata(table.schema, tmp_path / "d" / "_common_metadata")
    pq.write_metadata(table.schema, tmp_path / "d" / "_metadata", metadata_collector=collected)
    for name in ("part-0.parquet", "_metadata"):
        (tmp_path / "d" / f".{name}.crc").write_bytes(b"crc")
    (tmp_path / "d" / ".other.crc").write_bytes(b"crc")
    groups = pq.read_metadata(tmp_path / "d" / "_metadata").to_dict()["row_groups"]
    assert kmsdata.rewrap(tmp_path / "d", NEW).keys == {NEW: 3}
    assert pq.read_metadata(tmp_path / "d" / "_metadata").to_dict()["row_groups"] == groups
    for name in ("part-0.parquet", "_metadata", "_common_metadata"):
        assert OLD.encode() not in everything(tmp_path / "d" / name)
    left = {item.name for item in (tmp_path / "d").iterdir()}
    assert left == {"part-0.parquet", "_metadata", "_common_metadata", ".other.crc"}
    fragments = ds.parquet_dataset(tmp_path / "d" / "_metadata")
    assert fragments.to_table().num_rows == 4


def test_a_delta_table_is_refused(dataset):
    (dataset / "_delta_log").mkdir()
    with pytest.raises(ValueError, match="Delta"):
        kmsdata.rewrap(dataset, NEW)


def test_a_file_without_row_groups_and_one_without_rows(enc, tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    pq.ParquetWriter(folder / "none.parquet", pa.Table.from_pandas(enc).schema).close()
    enc.head(0).kms.to_parquet(folder / "empty.parquet")
    assert pq.read_metadata(folder / "none.parquet").num_row_groups == 0
    assert kmsdata.rewrap(folder, NEW).keys == {NEW: 2}
    assert len(kmsdata.read_parquet(folder / "none.parquet", decrypt=True, key=NEW)) == 0


@pytest.mark.slow
def test_ten_thousand_files_of_which_most_are_done(enc, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the disk is tested elsewhere
    folder = tmp_path / "many"
    folder.mkdir()
    enc.kms.to_parquet(folder / "0")
    old = (folder / "0").read_bytes()
    kmsdata.rewrap(folder / "0", NEW)
    new = (folder / "0").read_bytes()
    for number in range(1, 10_000):
        (folder / str(number)).write_bytes(old if number % 10 == 0 else new)
    before = kmsdata.usage()
    report = kmsdata.rewrap(folder, NEW)
    assert (report.rewrapped, report.already, report.keys) == (999, 9001, {NEW: 10_000})
    assert kmsdata.usage().calls - before.calls == 2


def test_a_block_that_names_a_key_holds_in_all_threads(dataset, vault):
    with kmsdata.using(OLD):
        assert kmsdata.rewrap(dataset, "vault://new", add=True).keys == {OLD: 40, "vault://new": 40}
    with kmsdata.using("vault://new"):
        assert kmsdata.rewrap(dataset, NEW).keys == {NEW: 40, OLD: 40}


def test_a_bar_shows_how_far_it_is(dataset, capsys):
    kmsdata.rewrap(dataset, NEW, progress=True)
    assert "100% of 40 files" in capsys.readouterr().err
    kmsdata.rewrap(dataset, OLD)
    assert "rewrap" not in capsys.readouterr().err


# Files of this machine: whole, with their mode, or not at all.


def test_a_file_keeps_its_mode_and_its_link(path, frame, tmp_path):
    path.chmod(0o640)
    link = tmp_path / "link.parquet"
    link.symlink_to(path)
    kmsdata.rewrap(link, NEW)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert opens(path, frame, NEW)


@pytest.mark.parametrize("kernel", [True, False])
def test_copies_are_whole_whether_or_not_the_kernel_makes_them(tmp_path, monkeypatch, kernel):
    path = tmp_path / "x.parquet"
    frame = pd.DataFrame({"n": np.arange(300_000), "x": np.random.default_rng(0).random(300_000)})
    frame.kms.encrypt("n", key=OLD).kms.to_parquet(path)
    if not kernel:

        def refuse(*_):
            raise OSError(errno.EXDEV, "no")

        monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
        monkeypatch.setattr(rewrapping, "_PIECE", 1 << 20)
    before = pages(path)
    assert len(before) > 10 << 20
    kmsdata.rewrap(path, NEW)
    assert pages(path) == before
    assert opens(path, frame, NEW)


def test_a_file_that_changes_meanwhile_is_left_to_whoever_changed_it(path, vault):
    raw = path.read_bytes()
    vault.meanwhile = lambda: path.write_bytes(raw + b"more")
    with pytest.raises(OSError, match=r"the file was changed .* \(try again\)") as caught:
        kmsdata.rewrap(path, "vault://new")
    assert caught.value.errno == errno.EBUSY
    assert path.read_bytes() == raw + b"more"
    assert {item.name for item in path.parent.iterdir()} == {"keystore", "people.parquet"}


def test_what_a_killed_run_left_behind_is_removed(dataset):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    inside = dataset / "inside"
    inside.mkdir()
    gone = [folder / f".kmsdata-{process.pid}-0.tmp" for folder in (dataset, inside)]
    for temporary in gone:
        temporary.write_bytes(b"half")
    with whole_file(dataset / "x"):  # another process is writing
        kmsdata.rewrap(dataset, NEW, dry_run=True)
        assert [temporary.exists() for temporary in gone] == [True, True]
        kmsdata.rewrap(dataset, NEW)
        assert [temporary.exists() for temporary in gone] == [False, False]
        assert len(list(dataset.glob(".kmsdata-*.tmp"))) == 1


@contextlib.contextmanager
def full_disk(folder):
    """A folder on a disk with 256 kB left; or one in which no file may be larger."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "kmsdata", str(folder)],  # noqa: S607
        capture_output=True,
        check=False,
    )
    if mounted.returncode == 0:
        try:
            yield
        finally:
            subprocess.run(["umount", str(folder)], check=True)  # noqa: S607
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_file(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    frame = pd.DataFrame({"x": np.random.default_rng(0).random(8_000)})
    sealed = tmp_path / "x.parquet"
    frame.kms.encrypt("x", key=OLD).kms.to_parquet(sealed)
    raw = sealed.read_bytes()
    assert 256 << 10 < len(raw) < 512 << 10
    with contextlib.ExitStack() as stack:
        stack.enter_context(full_disk(folder))
        path = folder / "x.parquet"
        try:
            path.write_bytes(raw)
        except OSError:  # the limit is on every file
            path.unlink()
            path.symlink_to(sealed)
        with pytest.raises(OSError) as caught:
            kmsdata.rewrap(path, NEW)
        assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
        assert Path(caught.value.filename).samefile(path)
        assert path.read_bytes() == raw
        assert [item.name for item in folder.iterdir()] == ["x.parquet"]


def test_a_folder_that_may_not_be_written_to_leaves_the_file():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        path = folder / "x.parquet"
        pd.DataFrame({"x": [1]}).kms.encrypt("x", key=OLD).kms.to_parquet(path)
        kmsdata.new_data_key(NEW)
        raw, before = path.read_bytes(), kmsdata.usage()
        provider = Vault()
        with kmsdata.using(provider):
            kmsdata.rewrap(path, "vault://old")
            raw = path.read_bytes()
            root = os.geteuid() == 0
            if root:
                os.seteuid(65534)
            else:
                folder.chmod(0o555)
            try:
                with pytest.raises(PermissionError) as caught:
                    kmsdata.rewrap(path, "vault://new")
                assert str(path) in str(caught.value)
            finally:
                if root:
                    os.seteuid(0)
                folder.chmod(0o755)
        assert path.read_bytes() == raw
        assert [item.name for item in folder.iterdir()] == ["x.parquet"]
        assert before.calls <= kmsdata.usage().calls


KILLED = """
import sys, kmsdata
print("ready", flush=True)
kmsdata.rewrap(sys.argv[1], sys.argv[2])
"""


@pytest.mark.slow
def test_a_run_that_is_killed_anywhere_leaves_every_file_readable_and_is_finished_by_the_next(
    enc, frame, tmp_path, keystore
):
    rng = random.Random(0)  # noqa: S311 - the same every time
    kmsdata.new_data_key(NEW)
    folder = tmp_path / "many"
    folder.mkdir()
    enc.kms.to_parquet(tmp_path / "x.parquet")
    for number in range(50):
        shutil.copy(tmp_path / "x.parquet", folder / f"part-{number}.parquet")

    def changed():
        return sum(
            part.stat().st_size != (tmp_path / "x.parquet").stat().st_size for part in parts(folder)
        ) or sum(part.stat().st_ino != known[part] for part in parts(folder))

    killed = 0
    for _ in range(3):
        known = {part: part.stat().st_ino for part in parts(folder)}
        goal, process = rng.randrange(20), None
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(folder), NEW],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(kmsdata.__file__).parent.parent)},
        )
        process.stdout.readline()
        while process.poll() is None and changed() < goal:
            time.sleep(0.001)
        time.sleep(rng.random() / 100)
        process.kill()
        process.wait()
        process.stdout.close()
        killed += process.returncode != 0
        for part in parts(folder):
            assert opens(part, frame, NEW) or opens(part, frame, OLD)
    report = kmsdata.rewrap(folder, NEW)
    assert report.keys == {NEW: 50}
    assert killed
    assert all(opens(part, frame, NEW) for part in parts(folder))
    assert not list(folder.glob(".kmsdata-*"))


# Files elsewhere.


@pytest.mark.newest
def test_pyarrow_and_fsspec_filesystems(enc, frame, tmp_path):
    import fsspec

    local = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    enc.kms.to_parquet(tmp_path / "a.parquet")
    (tmp_path / ".a.parquet.crc").write_bytes(b"crc")
    before = pages(tmp_path / "a.parquet")
    assert kmsdata.rewrap("a.parquet", NEW, filesystem=local).rewrapped == 1
    assert pages(tmp_path / "a.parquet") == before
    assert {item.name for item in tmp_path.iterdir()} == {"keystore", "a.parquet"}
    memory = fsspec.filesystem("memory")
    with contextlib.suppress(FileNotFoundError):
        memory.rm("/rewrap", recursive=True)
    for number in range(5):
        memory.pipe(f"/rewrap/p={number}/x.parquet", (tmp_path / "a.parquet").read_bytes())
    memory.pipe("/rewrap/_temporary/x.parquet", b"half")
    assert kmsdata.rewrap("memory://rewrap", MORE).keys == {MORE: 5}
    assert kmsdata.rewrap("/rewrap", MORE, filesystem=memory).already == 5
    assert opens("memory://rewrap/p=3/x.parquet", frame, MORE)
    assert len(memory.find("/rewrap")) == 6
    with pytest.raises(FileNotFoundError):
        kmsdata.rewrap("memory://rewrap/none.parquet", OLD)
    assert kmsdata.rewrap(f"file://{tmp_path}/a.parquet", OLD).rewrapped == 1


def failing_store():
    """A store in memory that fails at its n-th call, once."""
    from fsspec.implementations.memory import MemoryFileSystem

    class Failing(MemoryFileSystem):
        """A store that fails at its n-th call, once."""

        protocol = "failing"
        store, pseudo_dirs = {}, [""]
        left = 0
        cachable = False

        def _count(self):
            Failing.left -= 1
            if Failing.left == 0:
                raise OSError(errno.EIO, "the store failed")

        def _open(self, path, mode="rb", **options):
            self._count()
            file = super()._open(path, mode, **options)
            if mode == "wb":
                write = file.write

                def failing(data):
                    self._count()
                    return write(data)

                file.write = failing
            return file

        def info(self, path, **options):
            self._count()
            return super().info(path, **options)

        def cp_file(self, one, two, **options):
            self._count()
            return super().cp_file(one, two, **options)

        def rm(self, path, **options):
            self._count()
            return super().rm(path, **options)

    return Failing


@pytest.mark.newest
def test_a_store_that_fails_at_any_call_leaves_the_file(path, frame):
    kind = failing_store()
    raw, store = path.read_bytes(), kind()
    done = 0
    for n in range(1, 60):
        kind.left = 0
        store.pipe("/d/x.parquet", raw)
        kind.left = n
        try:
            kmsdata.rewrap("/d/x.parquet", NEW, filesystem=store)
        except OSError as error:
            assert "the store failed" in str(error)  # noqa: PT017 - it fails until n is more than its calls
        else:
            done += 1
        kind.left = 0
        now = store.cat("/d/x.parquet")
        assert now == raw or OLD.encode() not in now
        assert store.find("/d") == ["/d/x.parquet"], n
        if now != raw:
            store.get("/d/x.parquet", str(path))
            assert opens(path, frame, NEW)
        if done > 2:
            break
    assert n > 8
    assert done > 2


# Frames and tables.


def test_frames_keep_their_cells(enc, frame):
    enc.attrs = frame.attrs = {"a": 1}
    new = enc.kms.rewrap(NEW)
    assert enc["ssn"].dtype == new["ssn"].dtype
    assert keys_in(new["ssn"].dtype.text) == {NEW}
    assert keys_in(enc["ssn"].dtype.text) == {OLD}
    assert new["ssn"].array.storage.equals(enc["ssn"].array.storage)
    assert new.attrs == {"a": 1}
    assert new.index.equals(enc.index)
    pd.testing.assert_frame_equal(new.kms.decrypt(key=NEW), frame)
    pd.testing.assert_frame_equal(kmsdata.rewrap(enc, NEW).kms.decrypt(key=NEW), new.kms.decrypt())
    assert keys_in(enc.kms.rewrap(NEW, add=True).kms.rewrap(retire=OLD)["age"].dtype.text) == {NEW}
    with pytest.raises(ValueError, match="alone"):
        enc.kms.rewrap(retire=OLD)
    with pytest.raises(ValueError, match="no column is encrypted"):
        frame.kms.rewrap(NEW)
    with pytest.raises(kmsdata.WrongKeyError, match="is not the session's key"):
        enc.kms.rewrap(NEW, source=MORE)


def test_levels_of_an_index_are_rewrapped(frame):
    frame = frame.assign(city="Ulm")  # of nulls in an index, older pandas makes others
    enc = frame.kms.encrypt("ssn", deterministic="age", key=OLD)
    for columns in (["ssn"], ["age", "city"]):
        indexed = enc.set_index(columns)
        new = indexed.kms.rewrap(NEW)
        for keys, data in (({OLD}, indexed), ({NEW}, new)):
            assert keys_in(data.index.get_level_values(0).dtype.text) == keys
        pd.testing.assert_frame_equal(new.kms.decrypt(key=NEW).reset_index()[list(frame)], frame)


def test_cells_among_objects_are_rewrapped(frame):
    enc = frame.kms.encrypt(["ssn", "age"], key=OLD)[["ssn", "age"]]
    new = enc.T.kms.rewrap(NEW)
    assert {key for cell in new.loc["age"] for key in keys_in(cell.dtype.text)} == {NEW}
    pd.testing.assert_frame_equal(
        new.T.kms.decrypt(key=NEW).astype(object), frame[["ssn", "age"]].astype(object)
    )


def test_cells_under_several_data_keys_are_told_apart(frame, vault):
    enc = frame.kms.encrypt(["ssn", "age"], key=OLD)
    both = pd.concat([enc, frame.kms.encrypt(["ssn", "age"], key=MORE)], ignore_index=True)
    new = both.kms.rewrap("vault://new", source=OLD)
    assert keys_in(new["ssn"].dtype.text) == {"vault://new", MORE}
    expected = pd.concat([frame, frame], ignore_index=True)
    pd.testing.assert_frame_equal(new.kms.decrypt(key=["vault://new", MORE]), expected)


def test_a_frames_wrap_that_does_not_open_warns(vault, frame):
    enc = frame.kms.encrypt("ssn", key=["vault://a", "vault://b"])
    vault.denied = {"vault://a"}
    with pytest.warns(UserWarning, match="under vault://a was skipped"):
        new = enc.kms.rewrap(NEW, source="vault://*")
    assert keys_in(new["ssn"].dtype.text) == {"vault://a", NEW}


def test_a_changed_header_of_a_frame_is_refused(enc):
    dtype = enc["ssn"].dtype
    (item,) = dtype.header.columns
    bad = Header.of([changed_column(item, mac=flipped(item.mac))], dtype.header.records)
    enc["ssn"] = kmsdata.EncryptedArray(enc["ssn"].array.storage, kmsdata.EncryptedDtype(bad))
    with pytest.raises(kmsdata.FormatError, match="MAC"):
        enc.kms.rewrap(NEW)


def test_tables_keep_their_cells_and_every_copy_agrees(path, frame):
    table = pq.read_table(path)
    new = kmsdata.rewrap(table, NEW)
    assert keys_in(new.schema.metadata[b"kmsdata"]) == {NEW}
    assert keys_in(table.schema.metadata[b"kmsdata"]) == {OLD}
    for name in ("ssn", "email", "age"):
        assert keys_in(new.schema.field(name).type.dtype.text) == {NEW}
        assert keys_in(new.column(name).type.dtype.text) == {NEW}
    pq.write_table(new, path)
    assert OLD.encode() not in everything(path)
    with warnings.catch_warnings():
        assert opens(path, frame, NEW)


# With the service.


@pytest.mark.newest
def test_a_dataset_moves_from_a_local_key_to_tencent_cloud(dataset, frame, monkeypatch):
    from kmsdata.emulator import Emulator

    with Emulator() as emulator:
        monkeypatch.setenv("KMSDATA_TENCENT_ENDPOINT", emulator.url)
        monkeypatch.setenv("TENCENTCLOUD_SECRET_ID", emulator.secret_id)
        monkeypatch.setenv("TENCENTCLOUD_SECRET_KEY", emulator.secret_key)
        uri = kmsdata.TencentKMS("ap-guangzhou").create_key("payroll")
        second = kmsdata.TencentKMS("ap-guangzhou").create_key("second")
        report = kmsdata.rewrap(dataset, "tencent-kms://ap-guangzhou/payroll")
        assert report.keys == {uri: 40}  # the KeyId, never an alias
        assert (emulator.calls["Encrypt"], emulator.calls["Decrypt"]) == (1, 0)
        report = kmsdata.rewrap(dataset, second, source="tencent-kms://ap-guangzhou/payroll")
        assert report.keys == {second: 40}
        assert (emulator.calls["Encrypt"], emulator.calls["Decrypt"]) == (2, 1)
        assert opens(parts(dataset)[7], frame, second)


# Listed paths.


@pytest.mark.parametrize("base", ["/d", "d", "/", ""])
def test_every_file_is_listed_where_paths_begin_without_a_slash(enc, tmp_path, base):
    folder = tmp_path / "tree" / "d"
    folder.mkdir(parents=True)
    enc.kms.to_parquet(folder / "a.parquet")
    enc.kms.to_parquet(folder / "b.parquet")
    raw = bytearray((folder / "b.parquet").read_bytes())
    cell = bytes(enc["ssn"].iloc[0])
    raw[raw.index(cell) + len(cell) - 1] ^= 1
    (folder / "b.parquet").write_bytes(raw)
    inner = pafs.SubTreeFileSystem(str(tmp_path / "tree"), pafs.LocalFileSystem())
    found = kmsdata.verify(base, filesystem=inner)
    assert (found.ok, found.files) == (False, 2)
    assert kmsdata.inspect(base, filesystem=inner).files == 2
    assert kmsdata.rewrap(base, NEW, filesystem=inner).rewrapped == 2


def test_nothing_is_written_outside_of_the_target(frame, tmp_path):
    """The names of folders in a dataset must not choose where its files go."""
    tree, target = tmp_path / "tree", tmp_path / "target"
    inside = tree / "s" / str(tmp_path / "escaped").lstrip("/")
    inside.mkdir(parents=True)
    frame.to_parquet(inside / "x.parquet")
    inner = pafs.SubTreeFileSystem(str(tree), pafs.LocalFileSystem())
    kmsdata.encrypt_parquet(
        "/", target, "ssn", key=OLD, filesystem=inner, target_filesystem=pafs.LocalFileSystem()
    )
    assert not (tmp_path / "escaped").exists()
    assert len(list(target.rglob("x.parquet"))) == 1
