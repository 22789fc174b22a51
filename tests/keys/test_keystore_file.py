"""The local keystore on disk: whom it trusts, and what it does with files that are none."""

import base64
import json
import os
import stat
import sys

import pytest

import kmsdata
from kmsdata.errors import FormatError, KeyAccessError, KeyServiceError
from kmsdata.keys.local import keystore_file

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has other permissions")


def state(folder):
    """Everything below a folder: names, sizes, permissions and link targets."""
    return {
        str(path): (path.lstat().st_mode, path.lstat().st_size, path.is_symlink() and path.readlink())
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def store(keystore):
    store = kmsdata.LocalKeystore()
    store.create_key("a", quiet=True)
    return store


def refuses(store, folder, match):
    """Every call refuses, before anything is created or changed."""
    before = state(folder)
    for call in (
        lambda: store.create_key("b"),
        lambda: store.rotate_key("local://a"),
        lambda: store.disable_key("local://a"),
        lambda: store.ensure_key("local://c"),
    ):
        with pytest.raises(KeyAccessError, match=match) as caught:
            call()
        assert caught.value.code == "Permissions"
        assert state(folder) == before


def test_a_folder_that_others_may_write_to(keystore, store):
    for mode in (0o777, 0o770, 0o707):
        keystore.parent.chmod(mode)
        refuses(store, keystore.parent.parent, "chmod 700")
    keystore.unlink()
    keystore.parent.chmod(0o777)
    refuses(kmsdata.LocalKeystore(create=True), keystore.parent.parent, r"chmod 700")


def test_a_folder_above_that_others_may_write_to(keystore, store):
    above = keystore.parent.parent
    above.chmod(0o757)
    refuses(store, above, "chmod o-w")
    above.chmod(0o1777)  # as /tmp: users can rename only their own files
    store.create_key("b", quiet=True)


def test_a_folder_of_another_user(keystore, store, monkeypatch):
    if os.geteuid() == 0:
        os.chown(keystore.parent, 65534, 65534)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 1)
    refuses(store, keystore.parent.parent, "belongs to another user")


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("which", ["keystore", "lock"])
def test_links_are_not_followed(keystore, store, which, there, tmp_path):
    victim = tmp_path / "victim"
    path = keystore if which == "keystore" else keystore.with_name(f"{keystore.name}.lock")
    path.unlink(missing_ok=True)
    if there:
        victim.write_text("precious")
        victim.chmod(0o600)
    path.symlink_to(victim)
    before = state(tmp_path)
    with pytest.raises(KeyAccessError, match="is a symbolic link"):
        store.create_key("b", quiet=True)
    if which == "keystore":
        with pytest.raises(KeyAccessError, match="is a symbolic link"):
            store.list_keys()
    assert state(tmp_path) == before


def test_a_link_that_is_made_meanwhile_is_not_followed(keystore, store, tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(keystore_file.KeystoreFile, "_link", lambda *_: None)
    lock = keystore.with_name(f"{keystore.name}.lock")
    lock.unlink(missing_ok=True)
    lock.symlink_to(victim)
    with pytest.raises(KeyServiceError, match="cannot write the keystore"):
        store.create_key("b", quiet=True)
    lock.unlink()
    keystore.unlink()
    keystore.symlink_to(victim)
    with pytest.raises(KeyServiceError, match="cannot read"):
        store.list_keys()
    assert victim.read_text() == "precious"


def test_a_folder_may_be_a_link(keystore, store, tmp_path):
    (tmp_path / "link").symlink_to(keystore.parent)
    linked = kmsdata.LocalKeystore(tmp_path / "link" / keystore.name)
    assert [item["key"] for item in linked.list_keys()] == ["local://a"]
    linked.create_key("b", quiet=True)


def test_pipes_and_folders_are_no_keystores(keystore, store):
    keystore.unlink()
    os.mkfifo(keystore, 0o600)
    with pytest.raises(KeyAccessError, match="not a regular file"):
        store.list_keys()
    keystore.unlink()
    keystore.mkdir(0o700)
    with pytest.raises(KeyServiceError):
        store.list_keys()


def test_folders_are_made_for_the_owner_only(tmp_path):
    before = os.umask(0)
    try:
        kmsdata.LocalKeystore(tmp_path / "a" / "b" / "c" / "keystore.json").create_key("x", quiet=True)
    finally:
        os.umask(before)
    for folder in ("a", "a/b", "a/b/c"):
        assert stat.S_IMODE((tmp_path / folder).stat().st_mode) == 0o700
    for path in (tmp_path / "a" / "b" / "c").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


ODD = [
    [],
    {},
    "",
    "x",
    1,
    -1,
    1.5,
    1e400,
    True,
    None,
    [[]],
    [{"a": 1}],
    {"a": {"b": []}},
    "\ud800",
    "\x1b[31m",
    1 << 5000,
]
PATHS = [
    (), ("version",), ("kdf",), ("kdf", "name"), ("kdf", "n"), ("kdf", "r"), ("kdf", "p"), ("kdf", "salt"),
    ("keys",), ("keys", "a"), ("keys", "a", "id"), ("keys", "a", "secret"), ("keys", "a", "created"),
    ("keys", "a", "disabled"), ("keys", "a", "older"), ("keys", "a", "older", 0),
    ("keys", "a", "older", 0, "id"), ("keys", "a", "older", 0, "secret"),
]  # fmt: skip
MAY_BE = {
    ("version",): [1],
    ("keys", "a", "disabled"): [True],
    ("keys", "a", "older"): [[]],
    ("kdf",): [],
    ("keys",): [{}],
    ("kdf", "p"): [1],
}


def put(document, path, odd):
    if not path:
        return odd
    inside = document
    for step in path[:-1]:
        inside = inside[step]
    inside[path[-1]] = odd
    return document


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_odd_types(keystore, path):
    store = kmsdata.LocalKeystore(passphrase="p")
    store.create_key("a", quiet=True)
    store.rotate_key("local://a")
    text = keystore.read_text()
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    texts = [
        json.dumps(put(json.loads(text), path, odd))
        for odd in ODD
        if not any(odd is good or (odd == good and type(odd) is type(good)) for good in MAY_BE.get(path, []))
    ]
    sys.set_int_max_str_digits(limit)
    for damaged in texts:
        keystore.write_text(damaged)
        for call in (
            store.list_keys,
            store.check_passphrase,
            lambda: store.generate_data_key("local://a", {}),
            lambda: store.unwrap(base64.b64encode(bytes(76)).decode(), "local://a", {}),
            lambda: store.create_key("b"),
        ):
            with pytest.raises(FormatError, match="is not a keystore of version 1, or is damaged"):
                call()
        assert keystore.read_text() == damaged


@pytest.mark.parametrize(
    "text",
    [
        b"", b"\xff\xfe", b"{", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 10_000, b"NaN", b"\0" * 100,
        b'{"version": 1, "version": 1, "kdf": null, "keys": {}}',
        b'{"version": 1, "kdf": null, "keys": {"a": 1, "a": 2}}',
        b'{"version": 1, "kdf": null, "keys": {"../a": {}}}',
    ],
)  # fmt: skip
def test_what_is_no_json_of_ours(keystore, store, text):
    keystore.write_bytes(text)
    with pytest.raises(FormatError, match="Restore its backup") as caught:
        store.list_keys()
    assert str(caught.value).isprintable()


def test_names_and_dates_are_printable(keystore, store):
    good = json.loads(keystore.read_text())
    for damaged in (
        good | {"keys": {"\x1b[31m": good["keys"]["a"]}},
        good | {"keys": {"a": good["keys"]["a"] | {"created": "\x1b[31m"}}},
    ):
        keystore.write_text(json.dumps(damaged))
        with pytest.raises(FormatError):
            store.list_keys()


def test_a_huge_file_is_not_read(keystore, store):
    with keystore.open("r+b") as file:
        file.truncate(100_000_000)
    with pytest.raises(KeyAccessError, match="more than 16 MiB"):
        store.list_keys()


def test_errors_show_no_terminal_escapes_of_the_path(tmp_path, monkeypatch):
    store = kmsdata.LocalKeystore(tmp_path / "\x1b[31mred\n" / "keystore.json", create=False)
    with pytest.raises(KeyServiceError) as caught:
        store.generate_data_key("local://a", {})
    assert str(caught.value).isprintable()
    assert repr(store).isprintable()


# A passphrase for a keystore that has none.


def test_a_passphrase_that_protects_nothing_is_an_error(keystore, store):
    given = kmsdata.LocalKeystore(passphrase="correct horse")
    for call in (
        lambda: given.generate_data_key("local://a", {}),
        lambda: given.wrap(bytes(32), "local://a", {}),
        given.check_passphrase,
        lambda: given.rotate_key("local://a"),
        lambda: given.create_key("b"),
    ):
        with pytest.raises(KeyAccessError, match="has no passphrase") as caught:
            call()
        assert caught.value.code == "NotSealed"
    assert not store.sealed


def test_a_passphrase_in_the_environment_that_protects_nothing_is_a_warning(store, monkeypatch):
    monkeypatch.setenv("KMSDATA_PASSPHRASE", "correct horse")
    with pytest.warns(UserWarning, match="Unset KMSDATA_PASSPHRASE"):
        store.generate_data_key("local://a", {})
