"""What decrypt_parquet writes: closed to others while temporary, then never wider than the source."""

import os
import signal
import stat
import subprocess
import sys
import textwrap

import pandas as pd
import pytest

import kmsdata
from kmsdata.parquet import locations
from kmsdata.parquet.bulk import decrypt

KEY = "local://demo"
NEW = "local://new"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="permissions and signals of POSIX")


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield 0o022
    os.umask(before)


@pytest.fixture
def source(tmp_path, umask):
    """A dataset with a file and a folder that others must not read."""
    folder = tmp_path / "in"
    for number, mode in ((0, 0o755), (1, 0o700)):
        part = folder / f"year={number}"
        part.mkdir(parents=True)
        part.chmod(mode)
        enc = pd.DataFrame({"ssn": ["078-05-1120"] * 50}).kms.encrypt("ssn", key=KEY)
        enc.kms.to_parquet(part / "a.parquet")
    (folder / "year=0" / "a.parquet").chmod(0o640)
    folder.chmod(0o750)
    return folder


def test_files_and_folders_are_never_wider_than_their_source(source, tmp_path):
    kmsdata.decrypt_parquet(source, tmp_path / "out")
    assert mode_of(tmp_path / "out") == 0o750
    assert mode_of(tmp_path / "out" / "year=0") == 0o755
    assert mode_of(tmp_path / "out" / "year=1") == 0o700
    assert mode_of(tmp_path / "out" / "year=0" / "a.parquet") == 0o640
    assert mode_of(tmp_path / "out" / "year=1" / "a.parquet") == 0o644
    (tmp_path / "out" / "year=1" / "a.parquet").chmod(0o600)
    (tmp_path / "out").chmod(0o711)
    kmsdata.decrypt_parquet(source, tmp_path / "out", overwrite=True)
    assert mode_of(tmp_path / "out") == 0o711
    assert mode_of(tmp_path / "out" / "year=1" / "a.parquet") == 0o600
    (tmp_path / "old").mkdir(mode=0o755)
    kmsdata.decrypt_parquet(source, tmp_path / "old")
    assert mode_of(tmp_path / "old" / "year=1") == 0o700


@pytest.mark.parametrize(("old", "expected"), [(None, 0o640), (0o600, 0o600), (0o644, 0o644)])
def test_a_file_has_the_mode_of_the_one_it_replaces_or_of_its_source(source, tmp_path, old, expected):
    target = tmp_path / "plain.parquet"
    if old is not None:
        target.touch()
        target.chmod(old)
    kmsdata.decrypt_parquet(source / "year=0" / "a.parquet", target, overwrite=True)
    assert mode_of(target) == expected


@pytest.mark.parametrize("kind", ["file", "new folder", "old folder"])
def test_temporary_files_and_folders_are_closed_to_others(source, tmp_path, monkeypatch, kind):
    target, start = tmp_path / "out", source
    if kind == "old folder":
        target.mkdir()
    if kind == "file":
        start = source / "year=0" / "a.parquet"
    seen = []
    original = decrypt.rewrite

    def watching(*arguments):
        size = original(*arguments)
        for path in tmp_path.rglob(".kmsdata*"):
            seen.append(mode_of(path) & 0o077)
        return size

    monkeypatch.setattr(decrypt, "rewrite", watching)
    kmsdata.decrypt_parquet(start, target)
    assert seen
    assert set(seen) == {0}
    assert not list(tmp_path.rglob(".kmsdata*"))


CHILD = """
import os, signal, sys, kmsdata
from kmsdata.parquet import rewrap
from kmsdata.parquet.bulk import decrypt

def killed(original):
    def act(*arguments):
        original(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)
    return act

decrypt.rewrite = killed(decrypt.rewrite)
rewrap._copy = killed(rewrap._copy)
"""


def killed(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CHILD + textwrap.dedent(code)], cwd=tmp_path, check=False, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("kind", ["file", "new folder", "old folder"])
def test_the_next_run_removes_what_a_killed_one_left(source, tmp_path, kind):
    target, start = tmp_path / "out", source
    if kind == "old folder":
        target.mkdir()
    if kind == "file":
        start = source / "year=0" / "a.parquet"
    killed(f"kmsdata.decrypt_parquet({str(start)!r}, {str(target)!r})", tmp_path)
    assert [mode_of(path) & 0o077 for path in tmp_path.rglob(".kmsdata*")] == [0]
    kmsdata.decrypt_parquet(start, target)
    assert not list(tmp_path.rglob(".kmsdata*"))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_rewrap_removes_what_killed_runs_left(source, tmp_path, kind):
    kmsdata.new_data_key(NEW)
    path = source if kind == "folder" else source / "year=0" / "a.parquet"
    for _ in range(2):
        killed(f"kmsdata.rewrap({str(path)!r}, {NEW!r})", tmp_path)
    assert list(tmp_path.rglob(".kmsdata*"))
    kmsdata.rewrap(path, NEW)
    assert not list(tmp_path.rglob(".kmsdata*"))


@pytest.mark.parametrize("kind", ["file", "folder", "replaced"])
def test_permissions_go_to_the_group_of_the_source(tmp_path, monkeypatch, umask, kind):
    """Otherwise 0640 for one group would become 0640 for another."""
    folder = tmp_path / "in"
    folder.mkdir()
    pd.DataFrame({"x": [1]}).kms.encrypt("x", key=KEY).kms.to_parquet(folder / "a.parquet")
    own = (folder / "a.parquet").stat().st_gid
    given = []
    monkeypatch.setattr(os, "chown", lambda _, owner, group: given.append((owner, group)), raising=False)
    monkeypatch.setattr(locations, "_group", lambda source: source and own + 1)
    source = folder if kind == "folder" else folder / "a.parquet"
    target = tmp_path / "out" if kind == "folder" else tmp_path / "out.parquet"
    if kind == "replaced":
        target.write_bytes(b"")  # its group is ours: nothing is given to another
    kmsdata.decrypt_parquet(source, target, overwrite=True)
    assert given == ([] if kind == "replaced" else [(-1, own + 1)])
