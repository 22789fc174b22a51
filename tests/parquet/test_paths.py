"""Patterns and lists of paths are taken wherever files are read, and errors about places say what to do."""

import errno
import sys

import pandas as pd
import pytest

import kmsdata
from kmsdata.parquet.locations import Place


@pytest.fixture
def folder(tmp_path):
    kmsdata.use(kmsdata.LocalKeystore(create=True))
    folder = tmp_path / "sealed"
    for number in range(3):
        path = folder / f"year={number % 2}" / f"{number}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        df = pd.DataFrame({"a": [number], "b": [number]})
        df.kms.encrypt("a", key="local://demo").kms.to_parquet(path)
    (folder / "readme.txt").write_text("not for readers of the pattern")
    kmsdata.new_data_key("local://next")
    return folder


@pytest.mark.parametrize("kind", ["pattern", "deep pattern", "list", "list of patterns"])
def test_every_reader_takes_patterns_and_lists(folder, kind):
    paths, count = {
        "pattern": (f"{folder}/year=0/*.parquet", 2),
        "deep pattern": (f"{folder}/**/*.parquet", 3),
        "list": (sorted(folder.rglob("*.parquet"))[:2], 2),
        "list of patterns": ([f"{folder}/year=0/*.parquet", f"{folder}/year=1/*"], 3),
    }[kind]
    frame = kmsdata.read_parquet(paths, decrypt=True)
    assert sorted(frame["a"]) == sorted(frame["b"])
    assert len(frame) == count
    assert kmsdata.inspect(paths).files == count
    found = kmsdata.verify(paths, encrypted="a")
    assert (found.ok, found.files) == (True, count)
    assert kmsdata.rewrap(paths, "local://next").rewrapped == count
    assert sorted(kmsdata.read_parquet(paths, decrypt=True, key="local://next")["a"]) == sorted(frame["a"])


def test_folders_below_a_pattern_are_columns_as_below_a_folder(folder):
    frame = kmsdata.read_parquet(f"{folder}/**/*.parquet")
    assert sorted(frame["year"].astype(int)) == [0, 0, 1]


def test_the_commands_take_a_quoted_pattern(folder, run):
    status, out, _ = run("verify", f"{folder}/**/*.parquet")
    assert status == 0, out


def test_a_delta_table_is_not_rewrapped_by_a_pattern(folder):
    (folder / "_delta_log").mkdir()
    with pytest.raises(ValueError, match="Delta table"):
        kmsdata.rewrap(f"{folder}/**/*.parquet", "local://next")


def test_a_missing_target_folder_is_named(folder, tmp_path):
    source = next(folder.rglob("*.parquet"))
    for from_, to in (source, tmp_path / "none" / "a.parquet"), (source.parent, tmp_path / "none" / "new"):
        with pytest.raises(FileNotFoundError, match="folder to write to does not exist") as raised:
            kmsdata.decrypt_parquet(from_, to)
        assert raised.value.errno == errno.ENOENT
        assert raised.value.filename == str(tmp_path / "none")


def test_without_fsspec_a_url_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ImportError, match="pip install fsspec cosfs"):
        Place.of("cosn://bucket/a.parquet")
    with pytest.raises(ImportError, match=r"memory:// needs packages .* pip install fsspec"):
        Place.of("memory://a.parquet")


def test_lists_of_paths_are_encrypted_and_decrypted(tmp_path):
    kmsdata.use(kmsdata.LocalKeystore(create=True))
    paths = []
    for year in 2025, 2026:
        folder = tmp_path / "plain" / f"year={year}"
        folder.mkdir(parents=True)
        paths.append(folder / "a.parquet")
        pd.DataFrame({"a": [year]}).to_parquet(paths[-1])
    sealed, plain = tmp_path / "sealed", tmp_path / "back"
    done = kmsdata.encrypt_parquet([*paths, paths[0]], sealed, "a", key="local://demo")
    assert (done.files, done.rows) == (2, 2)
    written = sorted(sealed.rglob("*.parquet"))
    assert [str(path.relative_to(sealed)) for path in written] == [
        "year=2025/a.parquet",
        "year=2026/a.parquet",
    ]
    kmsdata.decrypt_parquet([f"{sealed}/year=2025/*", sealed / "year=2026"], plain)
    assert pd.read_parquet(plain)["a"].tolist() == [2025, 2026]
    kmsdata.encrypt_parquet(paths[:1], tmp_path / "one", "a", key="local://demo")
    assert (tmp_path / "one" / "a.parquet").is_file()
    with pytest.raises(FileExistsError, match="several files need a folder as the target"):
        kmsdata.encrypt_parquet(paths, written[0], "a", key="local://demo", overwrite=True)
    with pytest.raises(ValueError, match="inside the source"):
        kmsdata.encrypt_parquet([paths[0].parent], paths[0].parent / "new", "a", key="local://demo")
    with pytest.raises(TypeError, match="list of paths that is not empty"):
        kmsdata.encrypt_parquet([], tmp_path / "none", "a", key="local://demo")


def test_the_commands_take_what_the_shell_made_of_a_pattern(folder, tmp_path, run):
    files = [str(path) for path in sorted(folder.rglob("*.parquet"))]
    for command in ["inspect"], ["verify", "-e", "a"], ["rewrap", "-k", "next"]:
        status, out, err = run(*command, *files)
        assert status == 0, err
        assert "3 files" in out
    status, out, err = run("decrypt", *files, str(tmp_path / "plain"))
    assert (status, err) == (0, "")
    status, out, err = run(
        "encrypt", str(tmp_path / "plain" / "year=0"), str(tmp_path / "new"), "-c", "a", "-k", "next"
    )
    assert status == 0, err
    plain = [str(path) for path in sorted((tmp_path / "plain").rglob("*.parquet"))]
    status, out, err = run("encrypt", *plain, "-c", "a", "-k", "next")
    assert status == 1
    assert "several files need a folder as the target" in err
    status, out, err = run("encrypt", "-", *plain, "-c", "a", "-k", "next")
    assert status == 2
