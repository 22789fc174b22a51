"""`kmsdata demo`: it fits one screen, its file decrypts exactly, each refusal is one sentence."""

import io
import os
import re
import subprocess
import sys
from importlib.resources import files

import pandas as pd
import pytest
from rich.console import Console

import kmsdata
from kmsdata.cli import demo

TITANIC = files("kmsdata") / "data" / "titanic.csv"
FILE = "titanic.encrypted.parquet"
SECRET = ["age", "fare", "name", "ticket", "home.dest"]
PEOPLE = "name,age,city,score\nAda Lovelace,36,London,1.5\nBo Diddley,41,McComb,2\nCy Young,,London,\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KMSDATA_KEYSTORE", str(tmp_path / "keys" / "keystore.json"))
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("KMSDATA_KEY", "KMSDATA_PASSPHRASE", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_the_file_holds_the_list_and_no_secret_of_it(run, folder):
    code, out, err = run("demo")
    assert (code, err) == (0, "")
    original = pd.read_csv(io.BytesIO(TITANIC.read_bytes()))
    encrypted = kmsdata.read_parquet(FILE)
    assert sorted(encrypted.kms.encrypted) == sorted(SECRET)
    pd.testing.assert_frame_equal(encrypted.kms.decrypt()[SECRET], original[SECRET], check_exact=True)
    raw = (folder / FILE).read_bytes()
    for name in ("name", "ticket", "home.dest"):
        texts = original[name].dropna().unique()
        assert not [text for text in texts if len(text) > 5 and text.encode() in raw]
    # A float with many digits is eight bytes that do not occur elsewhere by chance.
    ages = {age for age in original["age"].dropna() if age != int(age) and age < 1}
    assert ages
    assert not [age for age in ages if pd.Series([age]).to_numpy().tobytes() in raw]
    assert FILE in out
    assert sorted(path.name for path in folder.iterdir()) == ["keys", FILE]


@pytest.mark.parametrize(("width", "most"), [(100, 40), (80, 44)])
def test_it_fits_on_one_screen_first_and_later(run, folder, monkeypatch, width, most):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("KMSDATA_KEYSTORE", "~/Library/Application Support/kmsdata/keystore.json")
    for again in range(2):
        code, out, _ = run("demo", *["--force"] * again)
        assert code == 0
        lines = out.splitlines()
        assert len(lines) <= most
        assert max(map(len, lines)) <= width
        assert ("made local://demo" in out) == (not again)
        assert ("back that file up" in out) == (not again)
        assert "\x1b" not in out


def test_it_says_what_happened(run):
    _, out, _ = run("demo")
    assert 'licence "Public"' in out
    assert "1,309 rows, 14 columns, every value and dtype" in out
    assert re.search(r"TamperedError: column 'age': 1 cell \(row \d+\)", out)
    assert re.search(r"encrypt \S+ m?s, write \S+ m?s, read \S+ m?s, decrypt \S+ m?s", out)
    assert re.search(r"CSV \d+ kB, plain Parquet \d+ kB, encrypted Parquet \d+ kB", out)
    assert re.search(r"enc#[0-9a-f]{8}\s+64\s+New York, NY", out)
    assert re.search(r"class 1 +97%", out)  # the published survival rate
    assert "DuckDB" in out


def test_colours_mark_what_is_encrypted():
    screen = io.StringIO()
    from kmsdata.cli import demo

    demo.run(console=Console(file=screen, force_terminal=True, color_system="standard", width=100))
    assert re.search(r"\x1b\[35menc#", screen.getvalue())
    assert re.search(r"\x1b\[36menc#", screen.getvalue())


def test_a_session_key_of_another_provider_is_not_in_the_way(run, monkeypatch):
    monkeypatch.setenv("KMSDATA_KEY", "tencent-kms://ap-guangzhou/some-key")
    assert run("demo")[0] == 0


def test_a_pipe_of_ascii_gets_ascii(folder):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-m", "kmsdata.cli", "demo"], capture_output=True, env=environment, check=True
    )
    done.stdout.decode("ascii")
    assert b"\x1b" not in done.stdout
    assert b"?" not in done.stdout
    assert b"class 1   97%  ####" in done.stdout
    assert done.stderr == b""
    assert (folder / FILE).exists()


# The user's own file.


def test_own_csv(run, folder):
    (folder / "people.csv").write_text(PEOPLE)
    code, out, err = run("demo", "--input", "people.csv", "--columns", "name, age", "--deterministic", "city")
    assert (code, err) == (0, "")
    back = kmsdata.read_parquet("people.encrypted.parquet")
    assert back.kms.encrypted == ["name", "age", "city"]
    original = pd.read_csv("people.csv")
    pd.testing.assert_frame_equal(back.kms.decrypt(), original, check_exact=True)
    assert b"Lovelace" not in (folder / "people.encrypted.parquet").read_bytes()
    assert 'enc = df.kms.encrypt(["name", "age"], deterministic=["city"], key="local://demo")' in out
    assert re.search(r"enc#\w{8} +2 +London", out)


def test_own_parquet_without_a_deterministic_column(run):
    original = pd.DataFrame(
        {"when": pd.date_range("2026-01-31", periods=3, tz="Asia/Shanghai"), "n": [1, 2, 3]},
        index=pd.Index([7, 8, 9], name="id"),
    )
    original.to_parquet("events.parquet")
    code, out, _ = run("demo", "--input", "events.parquet", "--columns", "when")
    assert code == 0
    assert "No grouping" in out
    back = kmsdata.read_parquet("events.encrypted.parquet", decrypt=True)
    pd.testing.assert_frame_equal(back, pd.read_parquet("events.parquet"), check_exact=True)


def test_semicolons_and_letters_of_the_world(run, folder):
    (folder / "城.csv").write_text("名字;身份证\n李雷;11010519491231002X\n\x1b[2J;1\n", encoding="utf-8")
    code, out, _ = run("demo", "--input", "城.csv", "--deterministic", "身份证,名字")
    assert code == 0
    assert "\x1b" not in out
    assert kmsdata.read_parquet("城.encrypted.parquet", decrypt=True)["名字"][0] == "李雷"


def test_columns_of_nulls_only(run, folder):
    (folder / "a.csv").write_text("a,b\n1,\n2,\n")
    code, out, _ = run("demo", "--input", "a.csv", "--columns", "b")
    assert code == 0
    assert "Tamper" not in out


def test_what_stands_there_is_not_overwritten(run, folder):
    (folder / "people.csv").write_text(PEOPLE)
    target = folder / "people.encrypted.parquet"
    target.write_bytes(b"mine")
    arguments = ("demo", "--input", "people.csv", "--columns", "name")
    assert run(*arguments) == (
        1,
        "",
        "error: people.encrypted.parquet exists already\nhint: --force overwrites it\n",
    )
    assert target.read_bytes() == b"mine"
    assert run(*arguments, "--force")[0] == 0
    assert kmsdata.read_parquet(target).kms.encrypted == ["name"]


def test_another_file_of_the_demos_name_is_not_overwritten(run, folder):
    pd.DataFrame({"a": [1]}).kms.encrypt("a", key="local://mine").kms.to_parquet(folder / FILE)
    before = (folder / FILE).read_bytes()
    code, out, errors = run("demo")
    assert (code, out) == (1, "")
    assert "--force overwrites it" in errors
    assert (folder / FILE).read_bytes() == before


FILES = {
    "people.csv": PEOPLE.encode(),
    "ragged.csv": b"a,b\n1,2\n3,4,5\n",
    "empty.csv": b"",
    "head.csv": b"a,b\n",
    "book.xlsx": b"PK\x03\x04\x00\x00" + bytes(100),
    "text.parquet": b"a,b\n1,2\n",
    "cut.parquet": b"PAR1" + bytes(20),
    "latin.csv": b"a,b\nM\xfcller,1\n",
}
SENTENCES = [
    (["--input", "people.csv"], 2, "no columns named; people.csv has name, age, city, score"),
    (["--input", "people.csv", "--columns", "nmae"], 2, "did you mean 'name'?"),
    (["--input", "people.csv", "--columns", "zzz"], 2, "there are: name, age, city, score"),
    (["--input", "people.csv", "--deterministic", "score"], 1, "Int64"),
    (["--columns", "name"], 2, "add --input FILE"),
    (["--input", "none.csv", "--columns", "a"], 2, "there is no file none.csv"),
    (["--input", ".", "--columns", "a"], 2, "there is no file ."),
    (["--input", "ragged.csv", "--columns", "a"], 1, "Expected 2 fields in line 3, saw 3"),
    (["--input", "empty.csv", "--columns", "a"], 1, "empty.csv has no rows"),
    (["--input", "head.csv", "--columns", "a"], 1, "head.csv has no rows"),
    (["--input", "book.xlsx", "--columns", "a"], 1, "neither CSV nor Parquet"),
    (["--input", "text.parquet", "--columns", "a"], 1, "neither CSV nor Parquet"),
    (["--input", "cut.parquet", "--columns", "a"], 1, "cut.parquet is not a Parquet file"),
    (["--input", "latin.csv", "--columns", "a"], 1, "latin.csv is not text in UTF-8"),
]


@pytest.mark.parametrize(("arguments", "expected", "words"), SENTENCES)
def test_refusals_are_one_sentence_and_write_nothing(run, folder, arguments, expected, words):
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    code, _, err = run("demo", *arguments)
    assert code == expected
    assert words in err
    lines = err.splitlines()
    assert lines[0].startswith("error: ")
    assert all(line.startswith("hint: ") for line in lines[1:])
    assert len(lines) <= 2
    assert not list(folder.glob("*.encrypted.parquet"))
    assert not [path for path in folder.iterdir() if path.suffix == ".tmp"]


def test_what_is_encrypted_already_is_refused(run):
    run("demo")
    code, _, err = run("demo", "--input", FILE, "--columns", "pclass")
    assert code == 1
    assert "has encrypted columns already: " in err
    assert "decrypt=True" in err


def test_columns_that_have_no_name_of_their_own_are_refused(run):
    pd.DataFrame([[1, 2]], columns=[0, 1]).rename(columns=str).to_parquet("ok.parquet")
    assert run("demo", "--input", "ok.parquet", "--columns", "0")[0] == 0
    pd.DataFrame([[1, 2]]).to_parquet("numbers.parquet")
    code, _, err = run("demo", "--input", "numbers.parquet", "--columns", "0")
    assert (code, "rename them" in err) == (1, True)


def test_a_folder_in_the_way_is_an_error_and_nothing_is_left(run, folder):
    (folder / FILE).mkdir()
    code, _, err = run("demo")
    assert code == 1
    assert err.startswith("error: ")
    assert [path.name for path in folder.iterdir()] == [FILE]  # not even a key was made


def test_a_file_of_somebody_elses_is_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "titanic.encrypted.parquet"
    target.write_text("mine")
    with pytest.raises(demo.Refusal, match="exists already"):
        demo.run()
    assert target.read_text() == "mine"
