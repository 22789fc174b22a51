"""Folders and stores whose names, links and pipes lead elsewhere: nothing outside is read or written."""

import errno
import os

import pandas as pd
import pyarrow.fs as pafs
import pytest

import kmsdata
from kmsdata.parquet.locations import Place, open_local

fsspec = pytest.importorskip("fsspec")

KEY = "local://demo"
NEW = "local://new"


@pytest.fixture(autouse=True)
def _new_key(keystore):
    """Rewrapping makes no key."""
    kmsdata.LocalKeystore().create_key("new", quiet=True)


@pytest.fixture
def plain(tmp_path):
    path = tmp_path / "plain.parquet"
    pd.DataFrame({"ssn": ["078-05-1120", None], "city": ["Ulm", "Bonn"]}).to_parquet(path)
    return path


@pytest.fixture
def sealed(tmp_path, plain):
    path = tmp_path / "sealed.parquet"
    kmsdata.encrypt_parquet(plain, path, "ssn", key=KEY)
    return path


@pytest.fixture
def memory():
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "keystore" not in str(path))


class Store(pafs.FileSystemHandler):
    """A store of one file, which it lists by any name."""

    def __init__(self, name, data):
        self.name, self.data = name, data

    def __eq__(self, other):
        return self is other

    __hash__ = None

    def get_type_name(self):
        return "store"

    def normalize_path(self, path):
        return path

    def get_file_info(self, paths):
        kinds = {self.name: pafs.FileType.File, "in": pafs.FileType.Directory}
        return [pafs.FileInfo(path, kinds.get(path, pafs.FileType.NotFound)) for path in paths]

    def get_file_info_selector(self, _):
        return [pafs.FileInfo(self.name, pafs.FileType.File, size=len(self.data))]

    def open_input_file(self, _):
        raise AssertionError("nothing may be opened")

    open_input_stream = open_input_file

    def _not_supported(self, *_):
        raise AssertionError("nothing may be written")

    open_output_stream = open_append_stream = create_dir = delete_dir = delete_dir_contents = _not_supported
    delete_root_dir_contents = delete_file = move = copy_file = _not_supported


BAD = ["a//x", "/etc/x", "a/../../x", "../x", "./x", "C:/x", "C:x", "a\\..\\x", "\\\\host\\x", "a/./x"]


@pytest.mark.parametrize("name", BAD)
def test_names_in_a_store_that_lead_out_are_refused_before_anything_is_opened(tmp_path, plain, name):
    store = pafs.PyFileSystem(Store(f"in/{name}.parquet", plain.read_bytes()))
    before = tree(tmp_path)
    calls = kmsdata.usage().calls
    local = pafs.LocalFileSystem()
    for act in (
        lambda: kmsdata.encrypt_parquet(
            "in", tmp_path / "out", "ssn", key=KEY, filesystem=store, target_filesystem=local
        ),
        lambda: kmsdata.decrypt_parquet("in", tmp_path / "out", filesystem=store, target_filesystem=local),
        lambda: kmsdata.inspect("in", filesystem=store),
        lambda: kmsdata.read_parquet("in", filesystem=store),
    ):
        with pytest.raises(kmsdata.FormatError, match="not the path of a file below it") as caught:
            act()
        assert repr(f"{name}.parquet") in str(caught.value)
    assert not kmsdata.verify("in", filesystem=store).ok
    with pytest.raises(kmsdata.KmsDataError, match="not the path of a file below it"):
        kmsdata.rewrap("in", NEW, filesystem=store)
    assert tree(tmp_path) == before
    assert kmsdata.usage().calls == calls


@pytest.mark.parametrize("name", ["a//x", "a/../../x", "/x", "a\\x"])
def test_keys_of_an_fsspec_store(tmp_path, plain, memory, name):
    memory.store[f"/in/{name}.parquet"] = file = fsspec.implementations.memory.MemoryFile(
        memory, f"/in/{name}.parquet", plain.read_bytes()
    )
    file.commit()
    before = tree(tmp_path)
    with pytest.raises((kmsdata.FormatError, FileNotFoundError)):
        kmsdata.encrypt_parquet("memory://in", tmp_path / "out", "ssn", key=KEY)
    assert tree(tmp_path) == before


def test_a_target_store_with_such_a_key_is_refused(tmp_path, plain):
    (tmp_path / "in").mkdir()
    plain.rename(tmp_path / "in" / "x.parquet")
    store = pafs.PyFileSystem(Store("in/a//x", b""))
    with pytest.raises(kmsdata.FormatError, match="'a//x'"):
        kmsdata.encrypt_parquet(
            tmp_path / "in", "in", "ssn", key=KEY, target_filesystem=store, overwrite=True
        )


def link_to_a_file(folder, outside):
    (folder / "link.parquet").symlink_to(outside)


def link_to_a_folder(folder, outside):
    (folder / "link").symlink_to(outside.parent)


def link_to_nothing(folder, outside):
    (folder / "link.parquet").symlink_to(folder / "none")


def a_pipe(folder, outside):
    os.mkfifo(folder / "link.parquet")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("through", ["path", "fsspec", "subtree"])
@pytest.mark.parametrize("make", [link_to_a_file, link_to_a_folder, link_to_nothing, a_pipe])
def test_links_and_pipes_in_a_folder_are_refused(tmp_path, sealed, make, through):
    outside = tmp_path / "outside" / "secret.parquet"
    outside.parent.mkdir()
    outside.write_bytes(sealed.read_bytes())
    folder = tmp_path / "people"
    folder.mkdir()
    (folder / "a.parquet").write_bytes(sealed.read_bytes())
    make(folder, outside)
    (folder / "_hidden").symlink_to(outside)
    where = {"filesystem": None}
    path = str(folder)
    if through == "fsspec":
        where = {"filesystem": fsspec.filesystem("file")}
    elif through == "subtree":
        where = {"filesystem": pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())}
        path = "people"
    to = {"target_filesystem": pafs.LocalFileSystem(), **where}
    before = outside.read_bytes()
    for act in (
        lambda: kmsdata.decrypt_parquet(path, tmp_path / "out", **to),
        lambda: kmsdata.encrypt_parquet(path, tmp_path / "out", "city", key=KEY, **to),
        lambda: kmsdata.inspect(path, **where),
        lambda: kmsdata.read_parquet(path, **where),
    ):
        with pytest.raises(OSError, match=r"not a regular file|links in a folder") as caught:
            act()
        assert caught.value.filename.startswith(str(folder / "link"))
    found = kmsdata.verify(path, **where)
    assert not found.ok
    assert [failure.file.rpartition("/")[2].split(".")[0] for failure in found.failures] == ["link"]
    assert found.columns[0].cells == 1
    with pytest.raises(kmsdata.KmsDataError, match="1 of 2 files") as caught:
        kmsdata.rewrap(path, NEW, **where)
    assert caught.value.report.rewrapped == 1
    assert outside.read_bytes() == before
    assert not (tmp_path / "out").exists()


def test_a_pattern_is_checked_only_where_it_leads(tmp_path, sealed):
    folder = tmp_path / "people"
    (folder / "2026-01").mkdir(parents=True)
    (folder / "2026-01" / "a.parquet").write_bytes(sealed.read_bytes())
    (folder / "latest").symlink_to(folder / "2026-01")
    assert kmsdata.decrypt_parquet(f"{folder}/2026-*/*.parquet", tmp_path / "out").files == 1
    with pytest.raises(OSError, match="links in a folder"):
        kmsdata.decrypt_parquet(f"{folder}/*/*.parquet", tmp_path / "other")


@pytest.mark.timeout(20)
def test_a_path_that_the_user_names_may_be_a_link_but_no_pipe(tmp_path, sealed):
    (tmp_path / "link.parquet").symlink_to(sealed)
    assert kmsdata.decrypt_parquet(tmp_path / "link.parquet", tmp_path / "back.parquet").rows == 2
    assert kmsdata.verify(tmp_path / "link.parquet").ok
    os.mkfifo(tmp_path / "pipe.parquet")
    for act in (
        kmsdata.inspect,
        kmsdata.verify,
        kmsdata.read_parquet,
        lambda path: kmsdata.rewrap(path, NEW),
    ):
        with pytest.raises(OSError, match="not a regular file"):
            act(tmp_path / "pipe.parquet")


@pytest.mark.timeout(20)
def test_what_becomes_a_link_or_pipe_after_it_was_listed_is_not_opened(tmp_path):
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_bytes(b"foreign")
    place = Place(pafs.LocalFileSystem(), f"{tmp_path}/root/a/x", root=f"{tmp_path}/root")
    (tmp_path / "root" / "a" / "x").write_bytes(b"mine")
    with open_local(place) as file:
        assert file.read() == b"mine"
    (tmp_path / "root" / "a" / "x").unlink()
    (tmp_path / "root" / "a" / "x").symlink_to(tmp_path / "other" / "x")
    with pytest.raises(OSError, match="link") as caught:
        open_local(place)
    assert (caught.value.errno, caught.value.filename) == (errno.ELOOP, place.path)
    (tmp_path / "root" / "a" / "x").unlink()
    os.mkfifo(tmp_path / "root" / "a" / "x")
    with pytest.raises(OSError, match="not a regular file"):
        open_local(place)
    (tmp_path / "root" / "a" / "x").unlink()
    (tmp_path / "root" / "a").rmdir()
    (tmp_path / "root" / "a").symlink_to(tmp_path / "other")
    with pytest.raises(OSError):
        open_local(place)


def test_a_target_folder_with_links_is_refused(tmp_path, sealed):
    source, target, outside = (tmp_path / name for name in ("in", "out", "outside"))
    (source / "year=2026").mkdir(parents=True)
    (source / "year=2026" / "a.parquet").write_bytes(sealed.read_bytes())
    outside.mkdir()
    target.mkdir()
    (target / "year=2026").symlink_to(outside)
    with pytest.raises(OSError, match="links in a folder"):
        kmsdata.decrypt_parquet(source, target, overwrite=True)
    assert list(outside.iterdir()) == []


def test_an_unreadable_folder_stops_no_rewrap_of_the_rest(tmp_path, sealed, monkeypatch):
    folder = tmp_path / "people"
    (folder / "locked").mkdir(parents=True)
    (folder / "a.parquet").write_bytes(sealed.read_bytes())
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(kmsdata.KmsDataError, match="Permission denied") as caught:
        kmsdata.rewrap(folder, NEW)
    assert caught.value.report.rewrapped == 1
    assert list(caught.value.report.failed) == [f"{folder}/locked"]
