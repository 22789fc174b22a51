"""Files that appear whole: also while other processes sweep the same folder."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kmsdata import atomic_files
from kmsdata.atomic_files import TEMPORARY, give, sweep, temporary_name, whole_file

fcntl = pytest.importorskip("fcntl")


def left_by_a_killed_process(folder):
    return folder / ".kmsdata-1-0.tmp"


def test_a_sweep_just_before_the_rename_changes_nothing(tmp_path, monkeypatch):
    """The lock is held until the file has its name: no other file may take its place meanwhile."""
    replace = Path.replace

    def swept(self, target):
        code = f"from kmsdata.atomic_files import sweep; sweep({str(tmp_path)!r})"
        subprocess.run([sys.executable, "-c", code], check=True)
        with whole_file(tmp_path / "b") as other:
            other.write(b"b")
            monkeypatch.setattr(Path, "replace", replace)
            return replace(self, target)

    (tmp_path / "a").write_bytes(b"old")
    with whole_file(tmp_path / "a") as file:
        file.write(b"a")
        monkeypatch.setattr(Path, "replace", swept)
    assert (tmp_path / "a").read_bytes() == b"a"
    assert (tmp_path / "b").read_bytes() == b"b"
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_threads_write_while_a_process_sweeps(tmp_path):
    code = (
        "import sys\nfrom kmsdata.atomic_files import sweep\nprint(flush=True)\n"
        f"while not sys.stdin.closed: sweep({str(tmp_path)!r})"
    )
    sweeper = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    sweeper.stdout.readline()
    wrong = []

    def write(name):
        for number in range(100):
            text = f"{name} {number}".encode()
            with whole_file(tmp_path / name) as file:
                file.write(text)
            if (tmp_path / name).read_bytes() != text:
                wrong.append(name)

    threads = [threading.Thread(target=write, args=(f"file-{number}",)) for number in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sweeper.kill()
        sweeper.communicate()
    assert wrong == []
    assert len(list(tmp_path.iterdir())) == 4


def test_what_is_being_removed_is_not_claimed(tmp_path):
    path = tmp_path / "x"
    path.touch()
    other, mine = (os.open(path, os.O_RDONLY) for _ in range(2))
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert not atomic_files.claim(mine)
    finally:
        os.close(other)
        os.close(mine)


def test_names_are_not_used_again():
    names = [temporary_name() for _ in range(1000)]
    assert len(set(names)) == 1000
    assert all(TEMPORARY.fullmatch(name) for name in names)


def test_a_sweep_removes_only_what_kmsdata_made(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = tmp_path / "folder"
    folder.mkdir()
    for place in (outside, folder):
        left_by_a_killed_process(place).write_bytes(b"half")
    (folder / "link").symlink_to(outside)
    (folder / ".kmsdata-2-0.tmp").symlink_to(outside)
    os.mkfifo(folder / ".kmsdata-3-0.tmp")
    (folder / ".kmsdata-backup.tmp").mkdir()
    (folder / ".kmsdata-notes.tmp").write_text("mine")
    sweep(folder, inside=True)
    assert {path.name for path in folder.iterdir()} == {
        "link", ".kmsdata-2-0.tmp", ".kmsdata-3-0.tmp", ".kmsdata-backup.tmp", ".kmsdata-notes.tmp",
    }  # fmt: skip
    assert left_by_a_killed_process(outside).exists()


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o027, 0o077, 0o000])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_only_the_owner_reads_a_file_before_it_is_complete(tmp_path, umask):
    for old, kept in ((None, 0o666 & ~umask), (0o640, 0o640), (0o604, 0o604), (0o400, 0o400)):
        target = tmp_path / f"{old}"
        if old is not None:
            target.touch()
            target.chmod(old)
        with whole_file(target) as file:
            file.write(b"secret")
            file.flush()
            (temporary,) = tmp_path.glob(".kmsdata*")
            assert mode_of(temporary) == 0o600
        assert mode_of(target) == kept
    with whole_file(tmp_path / "narrow", new_mode=0o640):
        pass
    assert mode_of(tmp_path / "narrow") == 0o640 & ~umask
    assert not list(tmp_path.glob(".kmsdata*"))


@pytest.mark.parametrize(
    ("mode", "without"), [(0o640, 0o600), (0o644, 0o644), (0o664, 0o644), (0o660, 0o600)]
)
def test_permissions_of_a_group_are_never_given_to_another_group(tmp_path, monkeypatch, mode, without):
    path = tmp_path / "file"
    path.write_bytes(b"")
    other = path.stat().st_gid + 1
    given = []
    monkeypatch.setattr(os, "chown", lambda *arguments: given.append(arguments), raising=False)
    give(path, mode, other)
    assert given == [(path, -1, other)]
    assert stat.S_IMODE(path.stat().st_mode) == mode

    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(os, "chown", refused, raising=False)
    give(path, mode, other)
    assert stat.S_IMODE(path.stat().st_mode) == without
    give(path, mode, path.stat().st_gid)
    assert stat.S_IMODE(path.stat().st_mode) == mode
