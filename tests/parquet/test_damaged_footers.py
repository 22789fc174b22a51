"""Damaged and hostile footers: every function raises an error of kmsdata, and never anything else."""

import base64
import random
import subprocess
import sys
import time

import pandas as pd
import pytest

import kmsdata
from kmsdata.parquet.footer import FileMetaData, ending
from kmsdata.parquet.thrift import BINARY, I32, I64, LIST, STRUCT, encode, value

KEY = "local://demo"
NEW = "local://new"


def frame():
    return pd.DataFrame(
        {
            "text": ["a", None, "c"],
            "n": [1, 2, 3],
            "city": pd.Categorical(["Ulm", "Bonn", "Ulm"]),
            "when": pd.to_datetime(["2026-01-01", None, "2026-01-03"]).tz_localize("Europe/Berlin"),
            "plain": [1.5, 2.5, 3.5],
        },
        index=pd.Index([7, 8, 9], name="level"),
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The bytes of a file with every kind of metadata."""
    path = tmp_path_factory.mktemp("damaged") / "x.parquet"
    enc = frame()
    enc.attrs["source"] = "survey"
    store = kmsdata.LocalKeystore(path.parent / "keystore" / "keystore.json", create=True)
    with kmsdata.using(store):  # `keystore` is for single tests: without this, it would be the user's own
        enc.kms.encrypt(["text", "n", "when"], deterministic=["city"], key=KEY).kms.to_parquet(path)
    return path.read_bytes()


def parts(raw):
    length = int.from_bytes(raw[-8:-4], "little")
    return raw[: -8 - length], raw[-8 - length : -8]


def mutated(raw, rng):
    """Change some bytes of a footer, or of one of its entries, which stay base64 or text."""
    pages, data = parts(raw)
    kind = rng.randrange(3)
    if kind == 0:
        changed = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        return pages + ending(bytes(changed))
    footer = FileMetaData.parse(data, len(raw))
    entries = [[value(entry, 1), value(entry, 2)] for entry in value(footer.fields, 5)[1]]
    entry = rng.choice(entries)
    text = bytearray(base64.b64decode(entry[1]) if entry[0] == b"ARROW:schema" else entry[1])
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(text))
        if kind == 1:
            text[at] = rng.randrange(256)
        else:
            text[at : at + rng.randint(0, 3)] = rng.choice(
                [b"", b"[", b"{", b"null", b"\x1b[2J", b"\xff", b'"', b"1e999", b"\\ud800", b"[" * 3000]
            )
    entry[1] = base64.b64encode(text) if entry[0] == b"ARROW:schema" else bytes(text)
    footer.fields[5] = LIST, (STRUCT, [{1: (BINARY, key), 2: (BINARY, item)} for key, item in entries])
    return pages + ending(encode(footer.fields))


def acts(path, out):
    yield "inspect", lambda: str(kmsdata.inspect(path))
    yield "verify", lambda: str(kmsdata.verify(path))
    yield "read", lambda: kmsdata.read_parquet(path)
    yield "decrypt", lambda: kmsdata.read_parquet(path, decrypt=True)
    yield "decrypt_parquet", lambda: kmsdata.decrypt_parquet(path, out, overwrite=True)
    yield "encrypt_parquet", lambda: kmsdata.encrypt_parquet(path, out, "plain", key=KEY, overwrite=True)
    yield "rewrap", lambda: kmsdata.rewrap(path, NEW)


def wrong(raw, folder, only=None):
    """Return the errors that are none of kmsdata's, and texts with control characters."""
    path, found = folder / "x.parquet", []
    for name, act in acts(path, folder / "out.parquet"):
        if only is not None and name != only:
            continue
        path.write_bytes(raw)
        try:
            said = act()
            text = said if isinstance(said, str) else ""
        except kmsdata.KmsDataError as error:
            text = str(error)
        except Exception as error:  # noqa: BLE001 - that there is none is what is tested
            found.append((name, type(error).__name__, str(error)[:200]))
            continue
        if any(ord(letter) < 32 and letter != "\n" for letter in text):
            found.append((name, "control characters", text))
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(4))
def test_mutations(file, tmp_path, seed):
    rng = random.Random(seed)  # noqa: S311 - the same every time
    names = [name for name, _ in acts(None, None)]
    for number in range(80):
        raw = mutated(file, rng)
        assert wrong(raw, tmp_path, names[number % len(names)]) == [], (seed, number)


def test_a_chunk_of_another_type_than_its_column(file, tmp_path):
    """Reading the statistics of such a chunk ends the process in pyarrow 26."""
    pages, data = parts(file)
    footer = FileMetaData.parse(data, len(file))
    for group in footer.groups:
        for chunk in value(group, 1)[1]:
            value(chunk, 3)[1] = I32, 99
    raw = pages + ending(encode(footer.fields))
    (tmp_path / "bad.parquet").write_bytes(raw)
    code = "import sys, kmsdata; kmsdata.inspect(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "bad.parquet")], check=False, capture_output=True
    )
    assert done.returncode in (0, 1), done.stderr


def test_a_wide_file_is_inspected_in_linear_time(tmp_path):
    """Thousands of columns took a minute: each was compared with each."""
    wide = pd.DataFrame({f"column{number}": [1] for number in range(4000)})
    enc = wide.kms.encrypt("column0", key=KEY)
    enc.kms.to_parquet(tmp_path / "wide.parquet")
    began = time.process_time()
    assert kmsdata.inspect(tmp_path / "wide.parquet").encrypted == ["column0"]
    assert time.process_time() - began < 3


def histogram(fields):
    for group in value(fields, 4)[1]:
        for chunk in value(group, 1)[1]:
            value(chunk, 3)[16] = (STRUCT, {3: (LIST, (I64, [1, 1, 1, 1, 1]))})


def repetition(fields):
    value(fields, 2)[1][1][3] = (I32, 5)


def shared(fields):
    groups = value(fields, 4)[1]
    groups.append(groups[0])


@pytest.mark.parametrize("damage", [histogram, repetition, shared])
def test_what_would_end_the_process_or_take_any_time_is_refused(file, tmp_path, damage):
    """pyarrow aborts for wrong histograms; row groups that share pages would each be decoded."""
    pages, data = parts(file)
    footer = FileMetaData.parse(data, len(file))
    damage(footer.fields)
    path = tmp_path / "damaged.parquet"
    path.write_bytes(pages + ending(encode(footer.fields)))
    code = "import sys, kmsdata; print(kmsdata.verify(sys.argv[1]).ok); kmsdata.inspect(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "False\n"), done.stderr
    assert "FormatError" in done.stderr


def test_a_name_that_is_not_utf_8_in_the_path_of_a_chunk(file, tmp_path):
    pages, data = parts(file)
    footer = FileMetaData.parse(data, len(file))
    for group in footer.groups:
        for chunk in value(group, 1)[1]:
            value(chunk, 3)[3] = (LIST, (BINARY, [b"a\x91"]))
    assert wrong(pages + ending(encode(footer.fields)), tmp_path) == []
