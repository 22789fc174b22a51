"""The panels of df.kms, series.kms, data keys, lists of keys, usage and keysets."""

import base64
import copy
import json
import pickle

import pandas as pd
import pytest

import kmsdata
from kmsdata.display.panel import KeyList
from kmsdata.emulator import Emulator
from kmsdata.keys import session

# ruff: noqa: S301 - the pickles are made here


@pytest.fixture
def df():
    return pd.DataFrame({"name": ["Ada", None], "email": ["a@x.org", "b@x.org"], "age": [36, 41]})


@pytest.fixture
def enc(df):
    return df.kms.encrypt(["name"], deterministic="email", key="local://demo", context={"team": "hr"})


def calls(thing, **names):
    """The calls that a panel suggests."""
    panel = str(thing).splitlines()
    return [line.split("  ")[0] for line in panel if "(" in line and line.startswith(tuple(names))]


def test_a_panel_says_what_how_by_which_key_and_what_is_next(enc, keystore):
    before = kmsdata.usage()
    text = repr(enc.kms)
    assert kmsdata.usage() == before
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["frame:", "2", "rows,", "2", "of", "3", "columns", "encrypted"]
    assert ["[x]", "name", "encrypted", "randomised"] in [line[:4] for line in lines]
    assert ["[x]", "email", "encrypted", "deterministic"] in [line[:4] for line in lines]
    assert ["plain", "age"] in lines
    identity = enc["name"].dtype.header.records[0].commitment.hex()[:8]
    assert f"data key {identity}, opened by local://demo; context team=hr".split() in lines
    assert "[x] can be opened: local://demo is in" in " ".join(text.split())
    page = enc.kms._repr_html_()
    for word in ("● encrypted", "deterministic", identity, "local://demo", "df.kms.decrypt()"):
        assert word in page


def test_the_suggested_calls_work(df, enc, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lost = enc.astype(str)
    cases = [
        (df, "df", 2), (enc, "df", 4), (enc["email"], "series", 2), (df["age"], "series", 2), (lost, "df", 1),
        (pd.Series([1, 2]), "series", 1),
    ]  # fmt: skip
    for thing, name, most in cases:
        names = {name: thing, "kmsdata": kmsdata, "values": ["a@x.org"], "original": enc}
        found = [code for code in calls(thing.kms, **names) if "pick" not in code]
        assert len(found) == most, str(thing.kms)
        for code in found:
            eval(code, names)  # noqa: S307
    assert (tmp_path / "data.parquet").exists()
    assert "pick" in str(df.kms)
    assert hasattr(df.kms, "pick")
    kmsdata.use("local://demo")
    assert "key=" not in str(df.kms)
    assert "df.kms.encrypt('name')" in str(df.kms)


@pytest.mark.newest
def test_the_calls_have_the_name_of_the_variable(enc, monkeypatch):
    import __main__

    monkeypatch.setattr(__main__, "people", enc, raising=False)
    assert "people.kms.isin('email', values)" in str(enc.kms)
    assert "df." not in str(enc.kms)  # the id of a data key may contain "df"


def state(frame):
    (line,) = [line for line in str(frame.kms).splitlines() if line.startswith("this session")]
    return line.split("]")[1].split(":")[0].strip()


def test_whether_a_local_key_is_there(enc, keystore, monkeypatch):
    store = kmsdata.LocalKeystore()
    monkeypatch.setattr("getpass.getpass", lambda *_: pytest.fail("a panel must not ask"))
    assert state(enc) == "can be opened"
    store.rotate_key("local://demo")
    assert state(enc) == "can be opened"
    store.disable_key("local://demo")
    assert state(enc) == "cannot be opened"
    assert "is disabled. Run" in " ".join(str(enc.kms).split())
    assert not any("decrypt" in code for code in calls(enc.kms, df=enc))
    keystore.unlink()
    assert state(enc) == "cannot be opened"
    assert "there is no local://demo in" in " ".join(str(enc.kms).split())
    store.create_key("demo", quiet=True)
    assert "another key than the one that wrapped" in " ".join(str(enc.kms).split())
    keystore.write_text("damaged")
    assert state(enc) == "cannot be opened"


def test_a_passphrase_is_not_asked_for(df, keystore, monkeypatch):
    monkeypatch.setattr("getpass.getpass", lambda *_: pytest.fail("a panel must not ask"))
    with kmsdata.using(kmsdata.LocalKeystore(passphrase="secret words")):
        enc = df.kms.encrypt("name", key="local://demo")
        assert state(enc) == "can be opened"
    assert state(enc) == "not known"
    monkeypatch.setenv("KMSDATA_PASSPHRASE", "secret words")
    assert state(enc) == "can be opened"
    assert "secret" not in str(enc.kms)


def test_the_limits_of_the_session(enc):
    kmsdata.use("tencent-kms://ap-guangzhou/any")
    assert state(enc) == "cannot be opened"
    found = calls(enc.kms, df=enc)
    assert found[0] == "df.kms.decrypt(key='local://demo')"
    assert eval(found[0], {"df": enc})["name"][0] == "Ada"  # noqa: S307


@pytest.mark.newest
def test_a_key_in_the_cloud(df, monkeypatch):
    for name in ("SECRET_ID", "SECRET_KEY", "REGION"):
        monkeypatch.delenv(f"TENCENTCLOUD_{name}", raising=False)
    with Emulator() as emulator:
        kms = kmsdata.TencentKMS(
            "ap-guangzhou", credential=(emulator.secret_id, emulator.secret_key), endpoint=emulator.url
        )
        key = kms.create_key("payroll")
        kmsdata.use(kms)
        enc = df.kms.encrypt("name", key=key)
        emulator.stop_listening()  # from here on, each KMS call is an error
        before = kmsdata.usage()
        assert state(enc) == "not known"
        assert "KMS decides when it is called, for AKID" in " ".join(str(enc.kms).split())
        assert emulator.secret_id not in str(enc.kms) + enc.kms._repr_html_()
        other = kmsdata.TencentKMS("ap-guangzhou", endpoint=emulator.url)
        with kmsdata.using(other):
            assert state(enc) == "not known"
            assert calls(enc.kms, kmsdata=0)[0] == "kmsdata.login(region='ap-guangzhou')"
        with kmsdata.using(kmsdata.TencentKMS("ap-beijing", endpoint=emulator.url)):
            assert state(enc) == "not known"  # the first provider still serves the region
        assert kmsdata.usage() == before


@pytest.mark.newest
def test_a_cached_data_key_is_known_and_looking_does_not_use_it_up(df):
    with Emulator() as emulator:
        kms = kmsdata.TencentKMS(
            "ap-guangzhou", credential=(emulator.secret_id, emulator.secret_key), endpoint=emulator.url
        )
        key = kms.create_key("payroll")
        kmsdata.use(kms)
        kmsdata.use(kmsdata.KeyCache(uses=2))
        enc = df.kms.encrypt("name", key=key)
        enc.kms.decrypt()
        before = kmsdata.usage()
        for _ in range(9):
            assert state(enc) == "can be opened"
        assert kmsdata.usage() == before
        enc.kms.decrypt()
        assert kmsdata.usage() == before._replace(cached=before.cached + 1)
        assert state(enc) == "not known"  # it was used twice
        kmsdata.use(kmsdata.KeyCache(age=0))
        enc.kms.decrypt()
        assert state(enc) == "not known"


@pytest.mark.newest
def test_a_login_form_that_is_not_answered(df):
    with Emulator() as emulator:
        kms = kmsdata.TencentKMS(
            "ap-guangzhou", credential=(emulator.secret_id, emulator.secret_key), endpoint=emulator.url
        )
        kmsdata.use(kms)
        enc = df.kms.encrypt("name", key=kms.create_key("payroll"))
    session.hold("fill in the form above")
    assert state(enc) == "cannot be opened"
    assert "fill in the form above" in str(enc.kms)


def test_a_provider_of_the_user(df):
    class Vault(kmsdata.LocalKeystore.__base__):
        scheme = "vault"

        def generate_data_key(self, key, context):
            return kmsdata.DataKey(bytes(32), [session.Wrap(key, "w")], context=context)

        def unwrap(self, *_):
            pytest.fail("a panel must not call a provider")

        wrap = unwrap

    with kmsdata.using(Vault()):
        enc = df.kms.encrypt("name", key="vault://a/b")
        assert state(enc) == "not known"
    assert state(enc) == "cannot be opened"
    assert "no provider for this key" in " ".join(str(enc.kms).split())


def odd_frames(df, enc):
    damaged = enc.copy()
    damaged["name"] = kmsdata.EncryptedArray(
        enc["name"].array.storage, kmsdata.EncryptedDtype("not a header")
    )
    two = pd.concat([enc[["name"]], df[["age"]].kms.encrypt("age", key="local://b")], axis=1)
    return {
        "empty": pd.DataFrame(),
        "no rows": enc.iloc[:0],
        "duplicates": pd.concat([df, df], axis=1),
        "numbers": pd.DataFrame({0: [1], 1: [2]}),
        "levels": pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)])),
        "index": enc.set_index("email"),
        "transposed": enc.T,
        "united": pd.concat([enc, df.kms.encrypt("name", deterministic="email", key="local://demo")]),
        "mixed": pd.DataFrame({"name": [enc["name"][0], "plain"]}),
        "lost": enc.astype(str),
        "damaged": damaged,
        "two keys": two,
        "wide": pd.DataFrame({f"c{number}": ["x"] for number in range(300)}).kms.encrypt(
            regex="1", key="local://demo"
        ),
        "markup": pd.DataFrame({"<b>\x1b[2J": [1]}).kms.encrypt("<b>\x1b[2J", key="local://demo"),
    }


def test_a_panel_never_fails(df, enc, monkeypatch):
    for what, frame in odd_frames(df, enc).items():
        text, page = str(frame.kms), frame.kms._repr_html_()
        assert text.startswith("frame: "), what
        assert all(letter.isprintable() or letter == "\n" for letter in text + page)
        assert "<b>" not in page
        for position in range(frame.shape[1])[:3]:
            assert str(frame.iloc[:, position].kms).startswith("series")
            assert frame.iloc[:, position].kms._repr_html_()
    texts = {what: str(frame.kms) for what, frame in odd_frames(df, enc).items()}
    assert "headers are missing or damaged" in texts["damaged"]
    assert "df.kms.attach(original)" in texts["lost"]
    assert texts["two keys"].count("\ndata key  ") == 2
    one_cell = pd.DataFrame({"name": [enc.astype(str)["name"][0]]})
    assert "its only value looks like a cell" in " ".join(str(one_cell.kms).split())
    assert "its only value looks like a cell" in " ".join(str(one_cell["name"].kms).split())
    assert len(texts["wide"].splitlines()) < 40
    assert "not encrypted in 1 of 2 rows" in texts["mixed"]
    monkeypatch.setenv("KMSDATA_KEY", "not a key: at all")
    assert "KMSDATA_KEY" in str(df.kms)
    assert state(enc) == "cannot be opened"


# Other objects.


def secrets_of(enc):
    keyset = kmsdata.export_keyset(enc, "email").json()
    value = json.loads(keyset)["key"][0]["keyData"]["value"]
    return [value, base64.b64decode(value)[2:].hex(), *enc.kms.decrypt()["email"]]


@pytest.mark.newest
def test_objects_alone_are_panels_and_in_containers_one_line(enc):
    from IPython.lib.pretty import pretty

    key, keyset = kmsdata.data_key(enc), kmsdata.export_keyset(enc, "email")
    for thing, first, inside in (
        (key, f"data key {key.commitment.hex()[:8]}", repr(key)),
        (keyset, "Tink keyset of one column", "<Keyset of 1 AES-256-SIV key>"),
        (
            kmsdata.usage(),
            f"{kmsdata.usage().calls:,} KMS calls of this process so far",
            repr(kmsdata.usage()),
        ),
    ):
        assert "\n" not in repr(thing)
        assert pretty(thing).splitlines()[0] == first
        assert pretty([thing]).strip("[]").replace("\n ", "") == inside.replace("\n ", "")
        assert "<table>" in thing._repr_html_()
        for secret in secrets_of(enc):
            assert secret not in pretty(thing) + thing._repr_html_() + str(thing)
    assert "opened by  local://demo" in pretty(key)
    assert "team=hr" in pretty(key)


def test_a_list_of_keys_is_a_table_and_a_list_of_dicts(keystore):
    store = kmsdata.LocalKeystore()
    for name in ("demo", "old"):
        store.create_key(name, quiet=True)
    store.disable_key("local://old")
    keys = store.list_keys()
    assert isinstance(keys, list)
    assert [key["key"] for key in keys] == ["local://demo", "local://old"]
    assert keys == [store.describe_key("local://demo"), store.describe_key("local://old")]
    assert json.loads(json.dumps(keys)) == keys
    assert list(pd.DataFrame(keys).columns) == ["key", "id", "state", "created", "rotation"]
    for back in (pickle.loads(pickle.dumps(keys)), copy.copy(keys), copy.deepcopy(keys), keys[:]):
        assert type(back) is list
        assert back == keys
    text, page = repr(keys), keys._repr_html_()
    assert str(keys) == text
    assert "".join(text.split()).startswith("".join(f"2 keys in {keystore}, unencrypted".split()))
    assert f"[ ]  local://old   {keys[1]['id'][:8]}  Disabled  {keys[1]['created'][:10]}" in text
    assert "● Enabled" in page
    assert "○ Disabled" in page
    keystore.unlink()
    assert "provider.create_key('name')" in repr(store.list_keys())


def test_a_list_of_keys_shows_what_a_service_sends_as_text():
    keys = KeyList([{"key": "tencent-kms://x/y", "alias": "<b>\x1b[2J", "state": "PendingDelete"}], "x")
    assert "<b>" not in keys._repr_html_()
    assert "\x1b" not in repr(keys) + keys._repr_html_()
    assert "[~]  tencent-kms://x/y" in repr(keys)
    assert "! PendingDelete" in keys._repr_html_()


def test_long_texts_are_bounded():
    name = "Zqj" + "\x1b[2J<b>" * 150_000 + "kvw"
    keys = KeyList([{"key": "tencent-kms://x/y", "alias": name, "state": "Enabled"}], name)
    frame = pd.DataFrame({name: ["a"]})
    series = frame[name].kms.encrypt(key="local://demo")
    for thing in (keys, frame.kms, series.kms, series.to_frame().kms):
        for text in (str(thing), thing._repr_html_()):
            assert len(text) < 40_000
            assert all(character.isprintable() or character == "\n" for character in text)
            assert "<b>" not in thing._repr_html_()
            assert "Zqj" in text
            assert "kvw" in text
    assert keys[0]["alias"] == name  # for programs


def test_usage_prints_as_aligned_text():
    kmsdata.new_data_key("local://demo")
    lines = str(kmsdata.usage()).splitlines()
    numbers = [line[24:].split()[0] for line in lines[2:]]
    assert len(numbers) == 5
    assert all(number.replace(",", "").isdigit() for number in numbers)
