"""Encrypt and decrypt in parts, as the engines do: one data key, equal types, nothing secret in a plan."""

import pickle
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import kmsdata
from kmsdata.api import parts
from kmsdata.api.parts import decrypt_part, encrypt_part, plan_decryption, plan_encryption
from kmsdata.errors import UnsupportedTypeError, WrongKeyError


@pytest.fixture
def frame():
    return pd.DataFrame(
        {
            "text": pd.Series(["a", None, "b", "a"], dtype="string"),
            "number": [1, 2, 3, 4],
            "mixed": pd.Series(["a", 1, None, float("nan")], dtype=object),
            "color": pd.Categorical(["red", "red", "blue", None], categories=["blue", "red", "green"]),
            "when": pd.to_datetime(["2020-01-01", None, "2021-01-01", "2022-01-01"]).tz_localize(
                "Europe/Paris"
            ),
            "plain": [1.0, 2.0, 3.0, 4.0],
        },
        index=pd.Index([3, 1, 2, 0], name="row"),
    )


SECRET = ["text", "number", "mixed", "color", "when"]


def halves(data):
    return data.iloc[:2], data.iloc[2:]


def test_parts_of_a_frame_have_the_planned_dtypes_and_come_back(frame):
    plan = plan_encryption(frame, SECRET, deterministic="text", key="local://demo")
    assert len(plan.like) == 0
    encrypted = [encrypt_part(part, plan) for part in halves(frame)]
    for part in encrypted:
        assert part.dtypes.equals(plan.like.dtypes)
        assert part["text"].dtype.header == plan.like["text"].dtype.header
    whole = pd.concat(encrypted)
    pd.testing.assert_frame_equal(whole.kms.decrypt(), frame)
    reader = plan_decryption(plan.like)
    pd.testing.assert_frame_equal(reader.like.drop(columns="color"), frame.iloc[:0].drop(columns="color"))
    assert reader.like["color"].cat.categories.dtype == frame["color"].cat.categories.dtype
    assert not len(reader.like["color"].cat.categories)
    pd.testing.assert_frame_equal(pd.concat([decrypt_part(part, reader) for part in encrypted]), frame)


def test_parts_of_a_table_have_the_planned_types_and_come_back(frame):
    table = pa.table(
        {
            "text": ["a", None, "b"],
            "number": pa.array([1, 2, 3], pa.int16()),
            "when": pa.array([1, None, 3], pa.timestamp("ns", "Europe/Paris")),
            "list": [[1], None, []],
        },
        metadata={"made": "by hand"},
    )
    plan = plan_encryption(table, ["number", "when", "list"], deterministic=["text"], key="local://demo")
    encrypted = [encrypt_part(part, plan) for part in (table.slice(0, 1), table.slice(1))]
    assert all(part.schema.types == plan.like.schema.types for part in encrypted)
    reader = plan_decryption(plan.like)
    assert reader.like.schema.types == table.schema.types
    assert pa.concat_tables([decrypt_part(part, reader) for part in encrypted]).equals(table)


def test_one_call_makes_the_data_key_and_a_plan_for_decryption_makes_none(frame):
    before = kmsdata.usage()
    plan = plan_encryption(frame, SECRET, key="local://demo")
    plan_decryption(plan.like, key="local://demo")
    after = kmsdata.usage()
    assert (after.generate_data_key, after.unwrap) == (before.generate_data_key + 1, before.unwrap)


def test_object_columns_have_one_type_in_all_parts_whatever_they_hold():
    frame = pd.DataFrame({"o": np.array(["a", None, 1, 2.5, b"x", float("nan"), pd.NA], object)})
    for deterministic in ((), "o"):
        plan = plan_encryption(frame, "o", deterministic=deterministic, key="local://demo")
        if deterministic:
            frame = frame.drop(index=[3, 5])  # floats
        encrypted = [encrypt_part(frame.iloc[[row]], plan) for row in range(len(frame))]
        assert {part["o"].dtype.header for part in encrypted} == {plan.like["o"].dtype.header}
        back = pd.concat(encrypted).kms.decrypt()["o"]
        assert list(map(repr, back)) == list(map(repr, frame["o"]))


def test_a_part_of_another_type_or_with_other_categories_is_refused(frame):
    plan = plan_encryption(frame, SECRET, key="local://demo")
    with pytest.raises(ValueError, match=r"planned with int64.*astype\(\{'number': 'Int64'\}\)"):
        encrypt_part(frame.astype({"number": float}), plan)
    other = frame.assign(color=frame["color"].cat.rename_categories({"green": "secretgreen"}))
    with pytest.raises(ValueError, match=r"column 'color': a part has other categories") as caught:
        encrypt_part(other, plan)
    assert "secretgreen" not in str(caught.value)
    reordered = frame.assign(color=frame["color"].cat.reorder_categories(["red", "blue", "green"]))
    with pytest.raises(ValueError, match="other categories"):
        encrypt_part(reordered, plan)
    table = plan_encryption(pa.table({"n": [1]}), "n", key="local://demo")
    with pytest.raises(ValueError, match=r"column 'n': a part has the type double"):
        encrypt_part(pa.table({"n": [1.0]}), table)


def test_arrow_dictionaries_are_refused_when_planning():
    table = pa.table({"color": pa.array(["red"]).dictionary_encode()})
    with pytest.raises(UnsupportedTypeError, match=r"column 'color'.*Cast the column to string first"):
        plan_encryption(table, "color", key="local://demo")


def test_plans_hold_nothing_secret_and_work_in_another_process(frame, tmp_path, keystore):
    key = kmsdata.new_data_key("local://demo")
    plan = plan_encryption(frame, SECRET, key=key)
    reader = plan_decryption(plan.like)
    pickled = pickle.dumps((plan, reader))
    secret = kmsdata.LocalKeystore().unwrap(key.wraps[0].wrapped, "local://demo", {})
    for held in (secret, secret.hex().encode(), b"blue"):
        assert held not in pickled
    assert "like" not in repr(plan) + repr(reader)
    path = tmp_path / "plan"
    path.write_bytes(pickle.dumps((plan, reader, frame)))
    script = (
        "import pickle, sys, pathlib\n"
        "plan, reader, frame = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "import pandas as pd\n"
        "from kmsdata.api.parts import decrypt_part, encrypt_part\n"
        "part = encrypt_part(frame, plan)\n"
        "assert plan.like is reader.like is None\n"
        "pd.testing.assert_frame_equal(decrypt_part(part, reader), frame)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, timeout=60)


def test_a_data_key_is_not_sent_to_workers(frame):
    key = kmsdata.new_data_key("local://demo")
    plan = plan_encryption(frame, ["text"], key=key)
    with pytest.raises(TypeError, match="a DataKey is secret"):
        plan_decryption(plan.like, key=key)
    other = plan_encryption(frame, ["text"], key="local://demo")
    part = encrypt_part(frame, plan)
    same = plan_decryption(plan.like, key=part)
    assert len(pickle.dumps(same)) < 20_000
    assert decrypt_part(part, same)["text"].equals(frame["text"])
    with pytest.raises(WrongKeyError):
        decrypt_part(encrypt_part(frame, other), same)


def test_plans_hold_no_value_of_the_data_that_they_were_made_with(frame):
    secret = [f"secret-{n:06}" for n in range(1000)]
    for data in (
        pa.table({"plain": secret, "text": secret}),
        pd.DataFrame({"plain": pd.Series(secret, dtype="category"), "text": secret}),
    ):
        plan = plan_encryption(data, "text", key="local://demo")
        encrypted = encrypt_part(data, plan)
        for key in (None, encrypted, encrypted["text"] if isinstance(data, pd.DataFrame) else encrypted):
            pickled = pickle.dumps((plan, plan_decryption(encrypted, key=key)))
            assert b"secret" not in pickled
            assert len(pickled) < 20_000


def test_any_encrypted_data_can_name_its_data_key(frame):
    table = pa.table({"text": ["a", "b"]})
    part = encrypt_part(table, plan := plan_encryption(table, "text", key="local://demo"))
    for key in (
        part,
        part.to_batches()[0],
        pa.RecordBatchReader.from_batches(part.schema, part.to_batches()),
    ):
        assert decrypt_part(part, plan_decryption(plan.like, key=key)).equals(table)
    two = pd.concat([frame.kms.encrypt("number", key="local://demo") for _ in range(2)])
    with pytest.raises(ValueError, match="2 data keys"):
        plan_decryption(plan.like, key=two)


@pytest.mark.parametrize("key", [[], ["local://demo", 1], "nonsense", [kmsdata.new_data_key]])
def test_what_is_no_key_is_refused_when_planning(frame, key):
    plan = plan_encryption(frame, ["text"], key="local://demo")
    with pytest.raises((TypeError, ValueError, kmsdata.FormatError)):
        plan_decryption(plan.like, key=key)
    with pytest.raises(TypeError, match="a DataKey is secret"):
        plan_decryption(plan.like, key=[kmsdata.new_data_key("local://demo")])


class Remote:
    """A provider that counts what it is asked to unwrap; all keys but ``good`` are disabled."""

    scheme = "remote"

    def __init__(self):
        self.asked = []

    def generate_data_key(self, key, context):  # noqa: ARG002
        return kmsdata.DataKey(bytes(32), [kmsdata.Wrap(key, "AAAA")])

    def wrap(self, secret, key, context):  # noqa: ARG002
        return "AAAA"

    def unwrap(self, wrapped, key, context):  # noqa: ARG002
        self.asked.append(key)
        if key != "remote://good":
            raise kmsdata.KeyAccessError(
                f"{key} is disabled", provider="remote", operation="unwrap", code="Disabled", key=key
            )
        return bytes(32)


def test_parts_do_not_ask_again_for_what_was_refused(frame):
    provider = Remote()
    with kmsdata.using(provider):
        plan = plan_encryption(frame, ["text"], key=["remote://off", "remote://good"])
        reader = plan_decryption(plan.like)
        for _ in range(20):
            decrypt_part(encrypt_part(frame, plan), reader)
    assert provider.asked.count("remote://off") == 2  # one for each plan
    assert provider.asked.count("remote://good") == 1  # then the cache has it


def test_an_error_of_a_worker_says_so(frame):
    plan = plan_encryption(frame, ["text"], key="local://demo")
    there = pickle.loads(pickle.dumps(plan))  # noqa: S301 - made here
    kmsdata.LocalKeystore().disable_key("local://demo")
    with pytest.raises(kmsdata.KeyAccessError, match=r"^in a worker process, .*: local://demo"):
        encrypt_part(frame, there)
    with pytest.raises(kmsdata.KeyAccessError, match=r"^local://demo"):
        encrypt_part(frame, plan)
    kmsdata.LocalKeystore().enable_key("local://demo")
    encrypt_part(frame, there)


def test_workers_use_no_key_that_only_the_data_names(frame):
    """A file names more keys than the session of the client allows: workers must not try them either."""
    provider = Remote()
    with kmsdata.using(provider):
        sealed = plan_encryption(frame, ["text"], key=["remote://off", "local://demo"]).like
        kmsdata.LocalKeystore()
        with kmsdata.using("local://demo"):
            plan = plan_encryption(frame, ["text"], key=sealed)
            part = encrypt_part(frame, plan)
            decrypt_part(part, plan_decryption(part, key=sealed))
            decrypt_part(part, plan_decryption(part))
    assert provider.asked == []


def test_workers_may_use_what_the_session_of_the_client_may(frame):
    plan = plan_encryption(frame, ["text"], key="local://demo")
    with kmsdata.using("tencent-kms://ap-guangzhou/payroll"):
        reader = plan_decryption(plan.like)
    with pytest.raises(WrongKeyError, match="allows only tencent-kms://ap-guangzhou/"):
        decrypt_part(encrypt_part(frame, plan), reader)


def test_decryption_names_what_is_missing(frame):
    plan = plan_encryption(frame, ["text"], key="local://demo")
    with pytest.raises(kmsdata.FormatError, match="column 'plain' is not encrypted"):
        plan_decryption(plan.like, ["plain"])
    with pytest.raises(KeyError, match="txt"):
        plan_decryption(plan.like, "txt")
    assert plan_decryption(plan.like, []).like.dtypes.equals(plan.like.dtypes)


def test_an_encrypted_index_level_keeps_its_type_in_the_plan(frame):
    level = plan_encryption(frame, ["text", "number"], key="local://demo").like.set_index("number")
    reader = plan_decryption(level)
    assert reader.like.index.dtype == "int64"
    assert reader.like.index.name == "number"


@pytest.mark.newest
def test_workers_wait_before_their_first_call_of_a_remote_kms_only(frame, monkeypatch):
    waits = []
    monkeypatch.setattr(parts.time, "sleep", waits.append)
    plan = plan_encryption(frame, ["text"], key="local://demo", processes=8000)
    parts._answered.clear()
    encrypt_part(frame, plan)
    assert waits == []  # local keys
    from kmsdata.emulator import Emulator

    with Emulator() as emulator:
        provider = kmsdata.TencentKMS(
            "ap-guangzhou",
            credential=(emulator.secret_id, emulator.secret_key),
            endpoint=emulator.url,
        )
        with kmsdata.using(provider):
            plan = plan_encryption(frame, ["text"], key=provider.create_key("demo"), processes=3000)
            encrypt_part(frame, plan)
            assert waits == []  # the process that planned has the data key
            parts._answered.clear()
            encrypt_part(frame, plan)
            encrypt_part(frame, plan)
            parts._answered.clear()
            decrypt_part(encrypt_part(frame, plan), plan_decryption(plan.like, processes=1_000_000))
    assert len(waits) == 2
    assert 0 <= waits[0] <= 20
    assert 0 <= waits[1] <= 60


@pytest.mark.newest
def test_all_threads_of_a_process_wait_for_the_first_call(frame, monkeypatch):
    from kmsdata.emulator import Emulator

    waits = []
    slept = threading.Event()

    def sleep(seconds):
        waits.append(seconds)
        slept.wait(0.3)

    with Emulator() as emulator:
        provider = kmsdata.TencentKMS(
            "ap-guangzhou",
            credential=(emulator.secret_id, emulator.secret_key),
            endpoint=emulator.url,
        )
        kmsdata.use(provider)
        plan = plan_encryption(frame, ["text"], key=provider.create_key("demo"), processes=3000)
        parts._answered.clear()
        monkeypatch.setattr(parts.time, "sleep", sleep)
        threads = [threading.Thread(target=encrypt_part, args=(frame, plan)) for _ in range(4)]
        for thread in threads:
            thread.start()
        while not waits:
            pass
        threads[1].join(0.1)
        assert emulator.calls["Decrypt"] == 0  # none before the first has waited
        slept.set()
        for thread in threads:
            thread.join()
        assert emulator.calls["Decrypt"] == 1
    assert len(waits) == 1
