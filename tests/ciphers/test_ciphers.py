"""Test the ciphers: same output as the one-shot ciphers, strict, no secret table index, little memory."""

import random
import tracemalloc

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from hypothesis import given, settings
from hypothesis import strategies as st

from kmsdata.ciphers import aes, batches, gcm, siv
from kmsdata.ciphers.cells import Cells

KEY = bytes(range(64))
PREFIX = b"\x01abcd"


def nonces(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 12), np.uint8)


def texts(lengths, seed=0):
    """Make cells of random bytes."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Cells(np.random.default_rng(seed).integers(0, 256, offsets[-1], np.uint8), offsets)


class Gcm:
    """GCM of kmsdata and of `cryptography`, with the IVs of `nonces`."""

    overhead = gcm.OVERHEAD
    mode = gcm.Gcm

    @staticmethod
    def seal(cells, extra=b"", clear=True):
        return gcm.seal_cells(KEY[:32], PREFIX, cells, nonces(cells.count), extra, clear)

    @staticmethod
    def open(cells, extra=b"", clear=True):
        return gcm.open_cells(KEY[:32], cells, extra, clear)

    @staticmethod
    def expect(rows, extras):
        cipher, ivs = AESGCM(KEY[:32]), [iv.tobytes() for iv in nonces(len(rows))]
        return [
            PREFIX + iv + cipher.encrypt(iv, row, a) for iv, row, a in zip(ivs, rows, extras, strict=True)
        ]


class Siv:
    """SIV of kmsdata and of `cryptography`."""

    overhead = siv.OVERHEAD
    mode = siv.Siv

    @staticmethod
    def seal(cells, extra=b""):
        return siv.seal_cells(KEY, PREFIX, cells, extra)

    @staticmethod
    def open(cells, extra=b""):
        return siv.open_cells(KEY, cells, extra)

    @staticmethod
    def expect(rows, extras):
        cipher = AESSIV(KEY)
        return [PREFIX + cipher.encrypt(row, [extra]) for row, extra in zip(rows, extras, strict=True)]


both = pytest.mark.parametrize("mode", [Gcm, Siv])


@st.composite
def columns(draw):
    """Draw rows, associated data (one or per row), and the settings that limit batches, tiles and runs."""
    top = draw(st.sampled_from([0, 1, 8, 16, 17, 33, 70, 200]))
    count = draw(st.integers(0, 130))
    numbers = random.Random(draw(st.integers(0, 1 << 30)))  # noqa: S311 - a test that can be repeated
    fixed = draw(st.booleans())
    rows = [numbers.randbytes(top if fixed else numbers.randint(0, top)) for _ in range(count)]
    width = draw(st.sampled_from([0, 1, 15, 16, 17, 32, 33, 300]))
    extra = draw(st.sampled_from(["none", "one", "rows", "equal rows"]))
    if extra == "none":
        associated = b""
    elif extra == "one":
        associated = numbers.randbytes(width)
    else:
        sizes = [width if extra == "equal rows" else numbers.randint(0, width) for _ in range(count)]
        associated = [numbers.randbytes(size) for size in sizes]
    knobs = {
        "VARIED": draw(st.sampled_from([0, 5, batches.VARIED])),
        "BATCH": draw(st.sampled_from([7, 50, batches.BATCH])),
        "TILE": draw(st.sampled_from([70, 1000, aes.TILE])),
        "RUN": draw(st.sampled_from([100, 2000, batches.RUN])),
        "LONG": draw(st.sampled_from([0, 20, batches.LONG])),
        "IN_PLACE": draw(st.sampled_from([False, batches.IN_PLACE])),
    }
    traits = {
        "least": draw(st.sampled_from([(0, 0), (2, 1), (10**9, 0)])),
        "setup": draw(st.sampled_from([(0, 0), (10, 3)])),
        "longest": draw(st.sampled_from([0, 15, 16, 40, 192])),
    }
    return rows, fixed and top, associated, knobs, traits, numbers


def changed(rows, numbers):
    """Change one bit (not in the prefix) of some rows, or truncate them; return which rows."""
    hit = sorted(numbers.sample(range(len(rows)), numbers.randint(1, min(4, len(rows)))))
    rows = list(rows)
    for row in hit:
        cell = bytearray(rows[row])
        at = numbers.randrange(5, len(cell))
        if numbers.random() < 0.8:
            cell[at] ^= 1 << numbers.randrange(8)
        else:
            del cell[at:]
        rows[row] = bytes(cell)
    return rows, hit


@both
@settings(deadline=None, max_examples=400)
@given(column=columns())
def test_equal_to_the_one_shot_cipher_and_strict(mode, column):
    rows, width, associated, knobs, traits, numbers = column
    extra = associated if isinstance(associated, bytes) else Cells.of(associated)
    extras = [associated] * len(rows) if isinstance(associated, bytes) else associated
    cells = Cells.of(rows)
    if width:
        cells = Cells(cells.data, width=width)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in knobs.items():
            for module in (aes, batches):  # both know the size of a tile
                if hasattr(module, name):
                    patch.setattr(module, name, value)
        for name, value in traits.items():
            patch.setattr(mode.mode, name, value)
        sealed = mode.seal(cells, extra)
        assert sealed.rows() == mode.expect(rows, extras)
        assert sealed.width == (width + mode.overhead if width else None)
        plain, bad = mode.open(sealed, extra)
        assert plain is not None
        assert plain.rows() == rows
        assert plain.width == (width or None)
        assert bad.dtype == np.int64
        assert not len(bad)
        for made in (sealed, plain):
            made.data[:] = 0  # a caller may write to them
        if rows:
            damaged, hit = changed(mode.expect(rows, extras), numbers)
            plain, bad = mode.open(Cells.of(damaged), extra)
            assert plain is None
            assert bad.tolist() == hit
        if rows and not isinstance(associated, bytes):
            hit = numbers.randrange(len(rows))
            other = [*associated]
            other[hit] = bytes([other[hit][0] ^ 4]) + other[hit][1:] if other[hit] else b"\0"
            plain, bad = mode.open(Cells.of(mode.expect(rows, extras)), Cells.of(other))
            assert plain is None
            assert bad.tolist() == [hit]


@both
@pytest.mark.parametrize(
    "lengths",
    [
        np.full(70_000, 8),
        np.full(3_000, 0),
        np.random.default_rng(1).integers(5, 41, 70_000),
        np.random.default_rng(2).integers(0, 400, 20_000),
        np.random.default_rng(3).permutation(300),
        np.array([3] * 5_000 + [2_000_000] + [7] * 5_000 + [3_000] * 20 + [9] * 50),
        np.array([20, 5_000] * 300),
        np.full(5, 1_000_000),
        np.random.default_rng(4).permutation(
            np.repeat([126, 127, 128, 129, 510, 511, 512, 513], [9, 9, 5_000, 9, 9, 9, 5_000, 9])
        ),
    ],
    ids=["8", "0", "5-40", "0-400", "300 lengths", "one huge", "alternating", "1 MB", "at the longest"],
)
def test_equal_to_the_one_shot_cipher_with_the_real_knobs(mode, lengths):
    cells = texts(lengths)
    rows = cells.rows()
    sealed = mode.seal(cells, b"associated")
    assert sealed.rows() == mode.expect(rows, [b"associated"] * len(rows))
    plain, _ = mode.open(sealed, b"associated")
    assert plain.rows() == rows


@both
def test_rows_with_associated_data_of_their_own_with_the_real_knobs(mode):
    cells, extra = texts(np.full(30_000, 12)), texts(np.random.default_rng(4).integers(0, 33, 30_000), 1)
    sealed = mode.seal(cells, extra)
    assert sealed.rows() == mode.expect(cells.rows(), extra.rows())
    assert mode.open(sealed, extra)[0].rows() == cells.rows()
    extra.data[extra.offsets[777]] ^= 1 if extra.offsets[777] < extra.offsets[778] else 0
    assert mode.open(sealed, extra)[1].tolist() == [777]


@both
def test_nulls_and_no_rows(mode):
    for valid in (np.array([False, True, False]), np.zeros(3, np.bool_)):
        cells = Cells(np.frombuffer(b"abcd" * valid.sum(), np.uint8), width=4, valid=valid)
        sealed = mode.seal(cells)
        assert sealed.valid is valid
        assert mode.open(sealed)[0].rows() == cells.rows()
    for cells in (Cells.of([]), Cells(np.empty(0, np.uint8), width=8)):
        plain, bad = mode.open(mode.seal(cells))
        assert plain.rows() == []
        assert len(bad) == 0


@both
def test_empty_values_of_width_0(mode):
    for count in (3, 3000):
        cells = Cells(np.empty(0, np.uint8), width=0, valid=np.ones(count, np.bool_))
        sealed = mode.seal(cells)
        assert sealed.width == mode.overhead
        assert mode.open(sealed)[0].rows() == [b""] * count


@both
def test_cells_that_are_too_short_are_bad_rows(mode):
    for count in (4, 5000):
        rows = mode.expect([b"12345678"] * count, [b""] * count)
        rows[1], rows[3] = b"", rows[3][: mode.overhead - 1]
        assert mode.open(Cells.of(rows))[1].tolist() == [1, 3]
        short = Cells(np.zeros(count * 20, np.uint8), width=20)
        assert mode.open(short)[1].tolist() == list(range(count))


@both
def test_no_cells_of_a_width_that_is_too_short_are_no_bad_rows(mode):
    for valid in (None, np.zeros(3, np.bool_)):
        plain, bad = mode.open(Cells(np.empty(0, np.uint8), width=20, valid=valid))
        assert plain.rows() == [None] * (0 if valid is None else 3)
        assert len(bad) == 0


@both
def test_a_cell_that_is_too_short_does_not_borrow_from_its_neighbour(mode):
    """Check that an empty cell is not authentic, and that the sealed empty text after it is."""
    for count in (4, 5000):
        rows = mode.expect([b""] * count, [b""] * count)
        if mode is Siv:
            rows[1] = b""
        else:
            rows[1] = rows[2][:20]
            rows[2] = rows[2][20:]
        rows[-1] = b""
        hit = [1, count - 1] if mode is Siv else [1, 2, count - 1]
        assert mode.open(Cells.of(rows))[1].tolist() == hit


@both
@pytest.mark.parametrize("length", [8, 300, 5000])
def test_nothing_of_a_column_with_a_failing_cell_is_left(mode, length, monkeypatch):
    made = []
    sealed = mode.seal(texts(np.full(5000, length)))
    sealed.data[-1] ^= 1
    monkeypatch.setattr(batches, "Cells", lambda *parts: made.append(Cells(*parts)) or made[-1])
    assert mode.open(sealed)[1].tolist() == [4999]
    assert len(made) == 1
    assert made[0].data.size == 5000 * length
    assert not made[0].data.any()


def test_sizes_that_do_not_fit():
    cells = Cells.of([b"a", b"b"])
    for seal in (
        lambda: gcm.seal_cells(KEY, PREFIX, cells, nonces(2)),
        lambda: gcm.seal_cells(KEY[:32], b"1234", cells, nonces(2)),
        lambda: gcm.seal_cells(KEY[:32], PREFIX, cells, nonces(3)),
        lambda: gcm.seal_cells(KEY[:32], PREFIX, cells, nonces(2).astype(np.int64)),
        lambda: gcm.seal_cells(KEY[:32], PREFIX, cells, nonces(2), Cells.of([b"a"])),
        lambda: gcm.seal_cells(KEY[:32], PREFIX, cells, nonces(2), Cells.of([b"a", b"b", None])),
        lambda: gcm.open_cells(KEY, cells),
        lambda: siv.seal_cells(KEY[:32], PREFIX, cells),
        lambda: siv.seal_cells(KEY, b"123456", cells),
        lambda: siv.open_cells(KEY[:32], cells),
    ):
        with pytest.raises(ValueError, match=r"requires a key|one value for each cell"):
            seal()


@both
def test_a_million_random_flips(mode):
    count, width = 1_000_000, 8 + mode.overhead
    sealed = mode.seal(Cells(np.zeros(8 * count, np.uint8), width=8))
    numbers = np.random.default_rng(5)
    at = np.arange(count) * width + numbers.integers(5, width, count)
    sealed.data[at] ^= np.uint8(1) << numbers.integers(0, 8, count, np.uint8)
    plain, bad = mode.open(sealed)
    assert plain is None
    assert np.array_equal(bad, np.arange(count))


def test_what_holds_plaintext_or_keys_shows_neither():
    cells = Cells.of([b"plain", b"texts"])
    column = batches.Column.of(cells, 0, 2)
    batch = batches._Batch(gcm.Gcm(KEY[:32], True), True, column, column, PREFIX, None, b"")
    for thing in (cells, column, batch, batch.mode, siv.Siv(KEY), aes.Aes(KEY[:32], aes.Room())):
        shown = f"{thing!r} {thing}"
        assert "plain" not in shown
        assert "array" not in shown
        assert repr(KEY[:4])[2:-1] not in shown


class Watched:
    """Tables that only `look_up` can read: they are not arrays, so any other use fails."""

    def __init__(self, tables):
        self._tables = tables

    def __getitem__(self, byte):
        assert type(byte) is int
        return Watched(self._tables[byte])


@pytest.mark.parametrize("per_row", [False, True])
def test_tables_are_indexed_by_ciphertext_and_clear_associated_data_and_nothing_else(monkeypatch, per_row):
    seen, count, width = [], 5000, 40
    look_up, tables = gcm.look_up, gcm.tables

    def watched(products, index, out):
        seen.append(index.tobytes())
        look_up(products._tables, index, out)

    monkeypatch.setattr(gcm, "look_up", watched)
    monkeypatch.setattr(gcm, "tables", lambda factor: Watched(tables(factor)))
    monkeypatch.setattr(gcm.Gcm, "one_shot", None)
    for inside in ("unpackbits", "packbits"):  # numpy's own code for them reads a table at each byte
        monkeypatch.setattr(np, inside, None)
    extra = texts(np.full(count, 20), 7) if per_row else b"associated"
    cells = texts(np.full(count, width))
    cells = Cells(cells.data, width=width)
    sealed = gcm.seal_cells(KEY[:32], PREFIX, cells, nonces(count), extra, clear=True)
    public = sealed.data.reshape(count, -1)[:, 17:-16]
    if per_row:
        public = np.hstack([public, extra.data.reshape(count, -1), np.zeros((count, 12), np.uint8)])
    parts = [octets.tobytes() for octets in public.T]
    assert seen == parts
    seen.clear()
    assert gcm.open_cells(KEY[:32], sealed, extra, clear=True)[0] is not None
    assert seen == parts


def test_associated_data_of_rows_that_does_not_stand_in_clear_never_meets_a_table(monkeypatch):
    monkeypatch.setattr(gcm, "look_up", None)
    cells, extra = texts(np.full(5000, 8)), texts(np.full(5000, 8), 7)
    sealed = gcm.seal_cells(KEY[:32], PREFIX, cells, nonces(5000), extra)
    assert sealed.rows() == Gcm.expect(cells.rows(), extra.rows())
    assert gcm.open_cells(KEY[:32], sealed, extra)[0].rows() == cells.rows()


@both
@pytest.mark.parametrize(
    "lengths",
    [np.full(4_000_000, 8), np.tile([5, 18, 33, 40], 600_000), np.full(40, 2_000_000), np.full(20_000, 3000)],
    ids=["8", "mixed", "2 MB", "3 kB"],
)
def test_temporaries_stay_small(mode, lengths):
    cells = texts(lengths)
    tracemalloc.start()  # numpy tells it of its arrays
    try:
        for step in (mode.seal, lambda sealed: mode.open(sealed)[0]):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            cells = step(cells)
            output = cells.data.nbytes + cells.offsets.nbytes
            ivs = 96 * len(lengths) if mode is Gcm and step == mode.seal else 0  # drawn within `seal` above
            assert tracemalloc.get_traced_memory()[1] - before - output - ivs < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@both
def test_temporaries_stay_small_where_rows_go_one_by_one(mode):
    """Make rows of one byte whose associated data has too many lengths, and a column with a cut-off cell."""
    count, size = 262_144, mode.overhead + 1
    cells, extra = texts(np.full(count, 1)), texts(np.arange(count) % 300)
    ends = np.append(np.arange(count) * size, count * size - 2)
    cut, ivs = Cells(np.zeros(ends[-1], np.uint8), ends), 12 * count  # drawn within `seal` above
    output = 8 * (count + 1) + size * count
    tracemalloc.start()
    try:
        for step, column in ((mode.seal, cells), (mode.open, cut)):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            step(column, extra)
            assert tracemalloc.get_traced_memory()[1] - before - output - ivs < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.newest
@both
def test_tink_agrees(mode):
    import tink
    from tink import aead, daead, secret_key_access
    from tink.proto import aes_gcm_pb2, aes_siv_pb2, tink_pb2

    if mode is Gcm:
        aead.register()
        key, url = aes_gcm_pb2.AesGcmKey(version=0, key_value=KEY[:32]), "AesGcmKey"
    else:
        daead.register()
        key, url = aes_siv_pb2.AesSivKey(version=0, key_value=KEY), "AesSivKey"
    number = int.from_bytes(PREFIX[1:], "big")
    data = tink_pb2.KeyData(
        type_url=f"type.googleapis.com/google.crypto.tink.{url}",
        value=key.SerializeToString(),
        key_material_type=tink_pb2.KeyData.SYMMETRIC,
    )
    entry = tink_pb2.Keyset.Key(
        key_data=data, status=tink_pb2.ENABLED, key_id=number, output_prefix_type=tink_pb2.TINK
    )
    keyset = tink_pb2.Keyset(primary_key_id=number, key=[entry])
    handle = tink.proto_keyset_format.parse(keyset.SerializeToString(), secret_key_access.TOKEN)
    cells = texts(np.random.default_rng(8).integers(0, 60, 6000))
    rows, extra = cells.rows(), texts(np.full(6000, 9), 9)
    sealed = mode.seal(cells, extra)
    if mode is Gcm:
        primitive = handle.primitive(aead.Aead)
        opened = [primitive.decrypt(a, b) for a, b in zip(sealed.rows(), extra.rows(), strict=True)]
        assert opened == rows
        made = Cells.of([primitive.encrypt(a, b) for a, b in zip(rows, extra.rows(), strict=True)])
        assert mode.open(made, extra)[0].rows() == rows
    else:
        primitive = handle.primitive(daead.DeterministicAead)
        made = [primitive.encrypt_deterministically(a, b) for a, b in zip(rows, extra.rows(), strict=True)]
        assert sealed.rows() == made
        assert mode.open(Cells.of(made), extra)[0].rows() == rows


def test_keystream():
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    for size in (0, 1, 16, 65_536, 65_537, 200_001):
        stream = aes.keystream(KEY[:32], size)
        expected = Cipher(algorithms.AES256(KEY[:32]), modes.CTR(bytes(16))).encryptor().update(bytes(size))
        assert stream.tobytes() == expected
        assert stream.flags.writeable
