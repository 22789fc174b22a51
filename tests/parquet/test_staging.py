"""No reader sees unfinished files, and two writers of one folder do not disturb each other."""

import contextlib
import errno
import os

import pandas as pd
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pytest

import kmsdata
from kmsdata.parquet import locations
from kmsdata.parquet.locations import Place, whole, whole_folder


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "lake" / "people"
    folder.mkdir(parents=True)
    pd.DataFrame({"a": [1, 2]}).to_parquet(folder / "a.parquet")
    return folder


@contextlib.contextmanager
def unfinished(folder):
    """Write a file of a folder, and stop before the end."""
    data = (folder.parent / "people" / "a.parquet").read_bytes()
    with contextlib.suppress(KeyboardInterrupt), whole_folder(Place.of(folder)) as open_file:
        for name in "a.parquet", "year=2026/b.parquet":
            with open_file(name) as file:
                file.write(data)
        yield
        raise KeyboardInterrupt


def test_an_existing_folder_never_contains_unfinished_files(folder):
    with unfinished(folder):
        assert os.listdir(folder) == ["a.parquet"]  # noqa: PTH208 - with hidden names
        assert not [path for path in folder.parent.rglob("*.parquet") if path.parent != folder]
    assert [path.name for path in folder.parent.rglob("*")] == ["people", "a.parquet"]


def test_a_new_folder_has_no_unfinished_file_with_a_readable_name(folder):
    with unfinished(folder.parent / "new"):
        assert not [path for path in folder.parent.rglob("*.parquet") if path.parent != folder]


@pytest.mark.newest
@pytest.mark.slow
@pytest.mark.parametrize("name", ["people", "new"])
def test_readers_of_a_folder_do_not_see_what_is_unfinished(folder, name):
    import duckdb
    import fastparquet
    import polars

    with unfinished(folder.parent / name):
        lake = folder if name == "people" else folder.parent
        assert ds.dataset(str(lake)).count_rows() == 2
        assert len(pd.read_parquet(lake)) == 2
        patterns = ["**/*.parquet", "*.parquet", "**"] if name == "people" else ["**/*.parquet"]
        for pattern in patterns:
            with duckdb.connect() as connection:
                assert len(connection.read_parquet(f"{lake}/{pattern}").fetchall()) == 2
            if pattern != "**":  # Polars takes the folder itself for a file then
                assert polars.scan_parquet(f"{lake}/{pattern}").collect().height == 2
        if name == "people":
            assert polars.read_parquet(lake).height == 2
            assert fastparquet.ParquetFile(str(lake)).count() == 2


def test_where_nothing_can_be_moved_from_the_parent_folder_the_target_is_used(folder, monkeypatch):
    monkeypatch.setattr(locations, "_can_move", lambda *_: False)  # such as a bind mount
    with unfinished(folder):
        assert len(os.listdir(folder)) == 2  # noqa: PTH208
        assert not [path for path in folder.rglob("*.parquet") if path.name != "a.parquet"]
    assert [path.name for path in folder.parent.rglob("*")] == ["people", "a.parquet"]
    with whole_folder(Place.of(folder)) as open_file, open_file("year=2026/b.parquet") as file:
        file.write(b"all")
    assert (folder / "year=2026" / "b.parquet").read_bytes() == b"all"


def test_the_second_writer_of_a_new_folder_learns_that_it_exists(tmp_path):
    target = tmp_path / "new"

    def write():
        with whole_folder(Place.of(target)) as open_file:
            with open_file("a.parquet") as file:
                file.write(b"mine")
            target.mkdir()
            (target / "a.parquet").write_bytes(b"of the other")

    with pytest.raises(FileExistsError, match="another process created it") as raised:
        write()
    assert raised.value.filename == str(target)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert (target / "a.parquet").read_bytes() == b"of the other"


@pytest.mark.skipif(os.name != "posix", reason="nothing is swept on Windows")
@pytest.mark.parametrize("call", ["to_parquet", "encrypt", "decrypt", "rewrap"])
def test_every_writing_call_removes_what_killed_runs_left(tmp_path, call):
    df = pd.DataFrame({"a": [1, 2]})
    kmsdata.use(kmsdata.LocalKeystore(create=True))
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    df.to_parquet(tmp_path / "plain.parquet")
    df.kms.encrypt("a", key="local://demo").kms.to_parquet(source / "a.parquet")
    kmsdata.new_data_key("local://next")
    left = tmp_path / ".kmsdata-1-abc-0.tmp"
    left.mkdir()
    (left / "a.parquet.tmp").write_bytes(b"plaintext")
    if call == "to_parquet":
        df.kms.encrypt("a", key="local://demo").kms.to_parquet(tmp_path / "b.parquet")
    elif call == "encrypt":
        kmsdata.encrypt_parquet(tmp_path / "plain.parquet", target, "a", key="local://demo")
    elif call == "decrypt":
        kmsdata.decrypt_parquet(source, target)
    else:
        kmsdata.rewrap(source, "local://next")
    assert not left.exists()


def test_an_error_that_persists_leaves_no_temporary_file():
    import fsspec

    class Failing(fsspec.get_filesystem_class("memory")):
        protocol = "failing"
        store, pseudo_dirs, broken = {}, [""], False

        def info(self, path, **options):
            if self.broken:
                raise OSError(errno.EIO, "the disk is gone")
            return super().info(path, **options)

    failing = Failing()
    place = Place(pafs.PyFileSystem(pafs.FSSpecHandler(failing)), "/a.parquet")

    def write():
        with whole(place) as stream:
            stream.write(b"some")
            Failing.broken = True
            raise OSError(errno.EIO, "the disk is gone")

    with pytest.raises(OSError, match="gone"):
        write()
    assert failing.store == {}
