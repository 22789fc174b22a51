"""Checksums of pages: written by every writer, verified by every reader, right after pages were moved."""

import random

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kmsdata
from kmsdata.parquet.footer import page_range, read_metadata
from kmsdata.parquet.thrift import decode, value

KEY = "local://demo"
NEW = "local://new"
TEXTS = ["Ulm", "Bonn", "Köln", None]


def frame():
    return pd.DataFrame({"city": TEXTS * 250, "n": range(1000), "plain": [f"p{n % 7}" for n in range(1000)]})


def pages(path):
    """Return for each page of a file its column, the checksum in its header, and where its data is."""
    found = []
    with path.open("rb") as file:
        raw = file.read()
        footer = read_metadata(file, len(raw), "")
    for group in footer.groups:
        for (name, _), chunk in zip(footer.columns, value(group, 1)[1], strict=True):
            at, length = page_range(value(chunk, 3))
            stop = at + length
            while at < stop:
                header, used = decode(raw[at:stop])
                start, at = at + used, at + used + value(header, 3)
                found.append((name, value(header, 4), start, at))
    return found


@pytest.fixture(autouse=True)
def _new_key(keystore):
    """Rewrapping makes no key."""
    kmsdata.LocalKeystore().create_key("new", quiet=True)


@pytest.fixture
def sealed(tmp_path):
    path = tmp_path / "sealed.parquet"
    enc = frame().kms.encrypt(["n"], deterministic=["city"], key=KEY)
    enc.kms.to_parquet(path, row_group_size=400)
    return path


def test_every_writer_writes_checksums_and_every_reader_accepts_them(tmp_path, sealed):
    made = [sealed]
    plain = tmp_path / "plain.parquet"
    frame().to_parquet(plain, write_page_checksum=True)
    frame().to_csv(tmp_path / "x.csv", index=False)
    for source, name in ((plain, "a"), (tmp_path / "x.csv", "b")):
        made.append(tmp_path / f"{name}.parquet")
        kmsdata.encrypt_parquet(source, made[-1], "n", deterministic="city", key=KEY)
    made.append(tmp_path / "back.parquet")
    kmsdata.decrypt_parquet(sealed, made[-1])
    kmsdata.rewrap(sealed, NEW)
    for path in made:
        assert all(crc is not None for _, crc, _, _ in pages(path))
        assert pq.read_table(path, page_checksum_verification=True).num_rows == 1000
    assert kmsdata.verify(sealed).ok


def test_large_columns_in_parts_have_checksums(tmp_path, sealed, monkeypatch):
    from kmsdata.parquet.bulk import column_batches, column_decryptor

    for module in (column_batches, column_decryptor):
        monkeypatch.setattr(module, "PART", 1000)
    monkeypatch.setattr(column_batches, "_BATCH", 1000)
    kmsdata.decrypt_parquet(sealed, tmp_path / "back.parquet")
    assert all(crc is not None for _, crc, _, _ in pages(tmp_path / "back.parquet"))
    back = pq.read_table(tmp_path / "back.parquet", page_checksum_verification=True)
    assert back["city"].to_pylist() == TEXTS * 250


def test_a_single_bit_never_changes_a_value_silently(tmp_path, sealed):
    raw = sealed.read_bytes()
    ranges = [(start, stop) for name, _, start, stop in pages(sealed) if name == "city"]
    rng = random.Random(13)  # noqa: S311 - the same every time
    other = tmp_path / "other.parquet"
    pd.DataFrame({"city": ["Ulm"], "n": [1], "plain": ["x"]}).kms.encrypt("n", key=KEY).kms.to_parquet(other)
    readers = {
        "read": lambda path: kmsdata.read_parquet(path, decrypt=True),
        "filter": lambda path: kmsdata.read_parquet(path, filters=[("city", "==", "Ulm")]),
        "decrypt": lambda path: kmsdata.decrypt_parquet(path, tmp_path / "out.parquet"),
        "each": lambda path: kmsdata.read_parquet(path.parent),
    }
    damaged = tmp_path / "two" / "damaged.parquet"
    damaged.parent.mkdir()
    (damaged.parent / "other.parquet").write_bytes(other.read_bytes())
    for number in range(60):
        start, stop = rng.choice(ranges)
        changed = bytearray(raw)
        changed[rng.randrange(start, stop)] ^= 1 << rng.randrange(8)
        damaged.write_bytes(changed)
        name = list(readers)[number % 4]
        with pytest.raises((kmsdata.FormatError, kmsdata.TamperedError)) as caught:
            readers[name](damaged)
        assert "damaged.parquet" in str(caught.value)
        assert not kmsdata.verify(damaged).ok
    assert not (tmp_path / "out.parquet").exists()


def test_a_plain_columns_damaged_page_is_an_error_too(tmp_path, sealed):
    raw = bytearray(sealed.read_bytes())
    start = next(start for name, _, start, _ in pages(sealed) if name == "plain")
    raw[start] ^= 4
    sealed.write_bytes(raw)
    with pytest.raises(kmsdata.FormatError, match=r"sealed.parquet cannot be read: the file is damaged"):
        kmsdata.read_parquet(sealed)


def test_the_option_of_to_parquet_is_kept(tmp_path):
    path = tmp_path / "x.parquet"
    frame().kms.encrypt("n", key=KEY).kms.to_parquet(path, write_page_checksum=False)
    assert all(crc is None for _, crc, _, _ in pages(path))
    assert isinstance(pq.read_table(path), pa.Table)
