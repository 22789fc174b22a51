"""Test published vectors in the kernels: each among rows of many lengths under the same key, in one batch."""

import json
import pathlib

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV

from kmsdata.ciphers import aes, batches, gcm, siv
from kmsdata.ciphers.cells import Cells

FOLDER = pathlib.Path(__file__).parents[1] / "vectors" / "ciphers"
PREFIX = b"\x01abcd"


def load(name):
    groups = json.loads((FOLDER / name).read_text())["testGroups"]
    return [{**group, **test} for group in groups for test in group["tests"]]


def text(vector, *names):
    return [bytes.fromhex(vector[name]) for name in names]


PUBLISHED = json.loads((FOLDER / "published.json").read_text())
GCM = [v for v in load("aes_gcm_test.json") if v["keySize"] == 256 and v["ivSize"] == 96] + PUBLISHED["gcm"]
SIV = [v for v in load("aes_siv_cmac_test.json") if v["keySize"] == 512]


def counting(rows, mode, kernel):
    def counted(self, sealing, cells, *others):
        rows[mode] += len(cells)
        return kernel(self, sealing, cells, *others)

    return counted


@pytest.fixture
def lock_step_only(monkeypatch):
    """Process every cell in the kernels and count the rows there; the one-shot cipher cannot be used."""
    rows = {gcm.Gcm: 0, siv.Siv: 0}
    monkeypatch.setattr(batches, "VARIED", 0)
    for mode in rows:
        monkeypatch.setattr(mode, "least", (0, 0))
        monkeypatch.setattr(mode, "setup", (0, 0))
        monkeypatch.setattr(mode, "longest", 4096)
        monkeypatch.setattr(mode, "one_shot", None)
        monkeypatch.setattr(mode, "kernel", counting(rows, mode, mode.kernel))
    return rows


def crowd(message, others=60):
    """Put the message three times among texts of many lengths; return its positions, too."""
    numbers = np.random.default_rng(len(message))
    lengths = numbers.choice([0, 1, 15, 16, 17, 31, 32, 33, 50, 100], others)
    rows = [numbers.bytes(length) for length in lengths]
    for place in (0, 20, 40):
        rows[place] = message
    return rows, [0, 20, 40]


def test_there_are_vectors():
    assert len(GCM) == 70
    assert len(SIV) == 147
    assert {v.get("result", "valid") for v in GCM} == {v["result"] for v in SIV} == {"valid", "invalid"}


# Rows with individual associated data go in lock-step up to 64 bytes of it, and one by one above.
GCM_WAYS = [(v, per_row) for v in GCM for per_row in (False, True) if not per_row or len(v["aad"]) <= 2 * 64]


@pytest.mark.parametrize(("vector", "per_row"), GCM_WAYS)
def test_gcm(vector, per_row, lock_step_only):
    key, iv, extra, message, sealed, tag = text(vector, "key", "iv", "aad", "msg", "ct", "tag")
    rows, places = crowd(message)
    if vector.get("result") == "invalid":
        cipher = AESGCM(key)
        cells = [PREFIX + iv + cipher.encrypt(iv, row, extra) for row in rows]
        for place in places:
            cells[place] = PREFIX + iv + sealed + tag
        extras = Cells.of([extra] * len(rows)) if per_row else extra
        plain, bad = gcm.open_cells(key, Cells.of(cells), extras, clear=True)
        assert plain is None
        assert bad.tolist() == places
    else:
        extras = Cells.of([extra] * len(rows)) if per_row else extra
        ivs = np.tile(np.frombuffer(iv, np.uint8), (len(rows), 1))
        cells = gcm.seal_cells(key, PREFIX, Cells.of(rows), ivs, extras, clear=True)
        assert {cells.rows()[place] for place in places} == {PREFIX + iv + sealed + tag}
        assert AESGCM(key).encrypt(iv, message, extra) == sealed + tag
        plain, _ = gcm.open_cells(key, cells, extras, clear=True)
        assert plain is not None
        assert plain.rows() == rows
    assert lock_step_only[gcm.Gcm] >= len(rows)


@pytest.mark.parametrize("vector", SIV, ids=lambda v: str(v["tcId"]))
@pytest.mark.parametrize("per_row", [False, True])
def test_siv(vector, per_row, lock_step_only):
    key, extra, message, sealed = text(vector, "key", "aad", "msg", "ct")
    rows, places = crowd(message)
    extras = Cells.of([extra] * len(rows)) if per_row else extra
    if vector["result"] == "invalid":
        cipher = AESSIV(key)
        cells = [PREFIX + cipher.encrypt(row, [extra]) for row in rows]
        for place in places:
            cells[place] = PREFIX + sealed
        plain, bad = siv.open_cells(key, Cells.of(cells), extras)
        assert plain is None
        assert bad.tolist() == places
    else:
        cells = siv.seal_cells(key, PREFIX, Cells.of(rows), extras)
        assert {cells.rows()[place] for place in places} == {PREFIX + sealed}
        plain, _ = siv.open_cells(key, cells, extras)
        assert plain is not None
        assert plain.rows() == rows
    assert lock_step_only[siv.Siv] >= len(rows)


def test_rfc_5297_a1(lock_step_only):
    """The kernel with AES-128 in place of AES-256."""

    class Aes128(aes.Aes):
        def __init__(self, key, room):
            super().__init__(key, room)
            self._encryptor = Cipher(algorithms.AES128(key), modes.ECB()).encryptor()  # noqa: S305

    (vector,) = PUBLISHED["siv"]
    key, extra, message, sealed = text(vector, "key", "aad", "msg", "ct")
    assert AESSIV(key).encrypt(message, [extra]) == sealed
    mode = siv.Siv(bytes(64))
    mode._mac, mode._ctr = Aes128(key[:16], mode.room), Aes128(key[16:], mode.room)
    rows, places = crowd(message)
    cells, _ = batches.run(mode, True, Cells.of(rows), Cells.of([extra] * len(rows)), PREFIX)
    assert {cells.rows()[place] for place in places} == {PREFIX + sealed}
    plain, _ = batches.run(mode, False, cells, Cells.of([extra] * len(rows)))
    assert plain.rows() == rows
    assert lock_step_only[siv.Siv] == 2 * len(rows)


def test_an_invalid_vector_alone_is_found_by_the_one_shot_cipher_too():
    for vector in GCM:
        if vector.get("result") == "invalid":
            key, iv, extra, sealed, tag = text(vector, "key", "iv", "aad", "ct", "tag")
            assert gcm.open_cells(key, Cells.of([PREFIX + iv + sealed + tag]), extra)[1].tolist() == [0]
