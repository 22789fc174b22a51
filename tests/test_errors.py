"""Errors about a call: one block in a notebook, Python's own exceptions for programs."""

import copy
import pickle
import re
import signal
import threading
import traceback
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

import kmsdata
from kmsdata import errors
from kmsdata.display.progress import Progress
from kmsdata.emulator import Emulator
from kmsdata.emulator.faults import Fault

# ruff: noqa: S301 - the pickles are made here

PLAINTEXT = "Grace-Hopper-1906"


@pytest.fixture
def enc():
    frame = pd.DataFrame({"name": [PLAINTEXT, "x"], "Age": [1, 2], "city": ["a", "b"]})
    return frame.kms.encrypt(["name"], deterministic=["Age"], key="local://demo")


# For programs.

CALLER_ERRORS = {
    errors.CallerKeyError: KeyError,
    errors.CallerTypeError: TypeError,
    errors.CallerValueError: ValueError,
    errors.CallerImportError: ImportError,
    errors.CallerFileExistsError: FileExistsError,
    errors.CallerFileNotFoundError: FileNotFoundError,
    errors.Interrupted: KeyboardInterrupt,
}


def test_every_error_about_a_call_is_one_of_python():
    assert set(errors.CallerError.__subclasses__()) == set(CALLER_ERRORS)
    for own, public in CALLER_ERRORS.items():
        error = own("no column 'a'")
        assert isinstance(error, public)
        assert (own.__name__, own.__module__) == (public.__name__, "builtins")
        error.column = "a"
        for back in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert type(back) is public
            assert (back.args, back.column) == (error.args, "a")
    error = errors.CallerFileNotFoundError(2, "there is no file", "x.parquet")
    assert (error.errno, error.strerror, error.filename) == (2, "there is no file", "x.parquet")
    assert str(pickle.loads(pickle.dumps(error))) == "[Errno 2] there is no file: 'x.parquet'"


def test_the_classes_of_errors_are_pickled_as_those_of_python():
    for own, public in CALLER_ERRORS.items():
        for protocol in range(3, pickle.HIGHEST_PROTOCOL + 1):  # Python 2 had fewer classes
            assert pickle.loads(pickle.dumps({"class": own}, protocol)) == {"class": public}
    assert pickle.loads(pickle.dumps(errors.CallerError)) is errors.CallerError


def test_errors_without_a_message():
    for own, public in CALLER_ERRORS.items():
        for arguments in ((), ("a", "b")):
            assert str(own(*arguments)) == str(public(*arguments))


def test_the_text_of_a_key_error_is_its_message(enc):
    with pytest.raises(KeyError) as caught:
        enc.kms.decrypt("nmae")
    assert str(caught.value) == "no column 'nmae': did you mean 'name'?"
    assert traceback.format_exception_only(caught.value) == [f"KeyError: {caught.value}\n"]


def unknown(enc, folder):
    plain = pd.DataFrame({"name": ["a"], "Age": [1], "city": ["b"]})
    plain.to_csv(folder / "f.csv", index=False)
    plain.to_parquet(folder / "f.parquet")
    enc.kms.to_parquet(folder / "e.parquet")
    table = pa.table({"name": ["a"], "Age": [1]})
    return {
        "encrypt": lambda: plain.kms.encrypt("nmae", key="local://demo"),
        "encrypt case": lambda: plain.kms.encrypt("AGE", key="local://demo"),
        "deterministic": lambda: plain.kms.encrypt(deterministic="age", key="local://demo"),
        "decrypt": lambda: enc.kms.decrypt("nmae"),
        "isin": lambda: enc.kms.isin("age", [1]),
        "attach": lambda: enc.kms.attach(enc, "nmae"),
        "attach there": lambda: enc.kms.attach(enc, {"city": "nmae"}),
        "to_parquet": lambda: enc.kms.to_parquet(folder / "o.parquet", encrypted="nmae"),
        "partition_cols": lambda: enc.kms.to_parquet(folder / "o", partition_cols="City"),
        "domain": lambda: plain.kms.encrypt(
            deterministic=["Age", "name"], domain={"nmae": "x"}, key="local://demo"
        ),
        "table": lambda: kmsdata.encrypt_table(table, "nmae", key="local://demo"),
        "decrypt_table": lambda: kmsdata.decrypt_table(table, "nmae"),
        "csv": lambda: kmsdata.encrypt_parquet(
            folder / "f.csv", folder / "o.parquet", "NAME", key="local://demo"
        ),
        "file": lambda: kmsdata.encrypt_parquet(
            folder / "f.parquet", folder / "o.parquet", "nmae", key="local://demo"
        ),
        "decrypt_parquet": lambda: kmsdata.decrypt_parquet(
            folder / "e.parquet", folder / "o.parquet", "nmae"
        ),
        "read": lambda: kmsdata.read_parquet(folder / "e.parquet", columns=["nmae"]),
        "filters": lambda: kmsdata.read_parquet(folder / "e.parquet", filters=[("age", "==", 1)]),
        "export": lambda: kmsdata.export_keyset(enc, "nmae"),
        "export file": lambda: kmsdata.export_keyset(folder / "e.parquet", "nmae"),
    }


def test_every_call_suggests_the_column_that_may_be_meant(enc, tmp_path):
    silent = {}
    for what, call in unknown(enc, tmp_path).items():
        with pytest.raises((KeyError, ValueError)) as caught:
            call()
        if not (hasattr(caught.value, "_render_traceback_") and "did you mean" in str(caught.value)):
            silent[what] = repr(caught.value)
    assert silent == {}


# In a notebook.


@pytest.fixture
def ran(capsys):
    """Run a cell; return its output without colours."""
    from IPython.core.interactiveshell import InteractiveShell

    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()

    def run(code, **names):
        shell.push(names)
        capsys.readouterr()
        shell.run_cell(code)
        captured = capsys.readouterr()
        return re.sub(r"\x1b\[[0-9;]*m", "", captured.out + captured.err).strip()

    yield run
    shell.history_manager.end_session()
    InteractiveShell.clear_instance()


IN_CELLS = {
    "enc.kms.decrypt('nmae')": "KeyError: no column 'nmae': did you mean 'name'?",
    "enc.kms.decrypt(on_denied='no')": "ValueError: on_denied= must be 'raise' or 'keep'",
    "enc.kms.isin('name', 'x')": "TypeError: column 'name' is randomised",
    "kmsdata.read_parquet('no.parquet')": "FileNotFoundError: [Errno 2] there is no file",
    "enc.kms.to_parquet('no/such.parquet')": "FileNotFoundError: [Errno 2]",
    "kmsdata.encrypt_parquet('here.parquet', 'here.parquet', 'city')": "ValueError: the target",
    "enc['name'].mean()": "TypeError: ",
    "enc['name'] == 'x'": "TypeError: ",
    "enc.groupby('name').size()": "TypeError: ",
    "enc['name'].astype(float)": "TypeError: ",
    "kmsdata.inspect(5)": "TypeError: inspect() takes",
    "kmsdata.TencentKMS('no region')": "ValueError: region=",
    "kmsdata.new_data_key('nonsense')": "FormatError: ",
}


@pytest.mark.newest
@pytest.mark.parametrize("code", IN_CELLS)
def test_a_cell_shows_one_block(ran, enc, tmp_path, monkeypatch, code):
    monkeypatch.chdir(tmp_path)
    enc.kms.to_parquet("here.parquet")
    first, second, third = ran(f"1 + 1\n{code}", enc=enc, kmsdata=kmsdata).splitlines()
    assert first.startswith(IN_CELLS[code])
    assert second.strip().endswith(f"line 2: {code}")
    assert third.strip() == "(%tb shows the traceback)"
    rest = ran("%tb")
    assert "kmsdata/" in rest
    assert len(rest.splitlines()) > 10
    assert PLAINTEXT not in first + rest


@pytest.mark.newest
def test_a_block_shows_notes(ran, enc):
    code = "try: enc.kms.decrypt('nmae')\nexcept KeyError as error: error.add_note(note); raise"
    lines = ran(code, enc=enc, note="the table\n\x1b[2Jof May").splitlines()
    assert lines[0] == "KeyError: no column 'nmae': did you mean 'name'?"
    assert lines[1:3] == ["  the table", r"  \x1b[2Jof May"]
    assert lines[3].startswith("  at ")


@pytest.mark.newest
def test_a_block_names_the_class_of_the_exception_that_led_to_it(ran, enc):
    foreign, own = "try: {}[note]\nexcept KeyError: ", "try: enc.kms.decrypt('nmae')\nexcept KeyError as e: "
    for code, shown in {
        foreign + "enc.kms.decrypt('nmae')": "  raised while handling KeyError",
        own + "raise e from OSError(note)": "  caused by OSError",
        own + "\n  try: {}[note]\n  except KeyError: raise e from None": None,
        own + "enc.kms.decrypt('nmae')": None,
    }.items():
        lines = ran(code, enc=enc, note=PLAINTEXT).splitlines()
        assert lines[0] == "KeyError: no column 'nmae': did you mean 'name'?"
        assert PLAINTEXT not in "\n".join(lines)
        assert lines[2:-1] == ([] if shown is None else [shown])


@pytest.mark.newest
def test_the_mode_that_the_user_chose_decides(ran, enc):
    code = "enc.kms.decrypt('nmae')"
    assert "arguments.py" in ran(f"%xmode Verbose\n{code}", enc=enc)
    assert "arguments.py" in ran(f"%xmode Plain\n{code}")
    assert "arguments.py" not in ran(f"%xmode Context\n{code}")
    assert "arguments.py" not in ran(code)
    assert "arguments.py" in ran("%tb Verbose")


@pytest.mark.newest
def test_an_error_that_python_raises_in_kmsdata_keeps_its_traceback(ran, enc):
    assert "Traceback" in ran("enc.kms.decrypt(frame=1)", enc=enc)  # no such argument


@pytest.mark.newest
def test_a_block_cannot_move_the_terminal(ran):
    frame = pd.DataFrame({"a": [1]})
    shown = ran("frame.kms.encrypt(name, key='local://demo')", frame=frame, name="\x1b[2J\u202e")
    assert r"no column '\x1b[2J\u202e'" in shown


# Interrupts.


@pytest.mark.newest
@pytest.mark.parametrize("wanted", [None, False])
def test_an_interrupt_is_one_block_without_what_was_worked_on(ran, wanted):
    def step(content):
        signal.raise_signal(signal.SIGINT)

    def work():
        with Progress("encrypt", 8, "rows", wanted) as bar:
            bar.step(2)
            step("".join(reversed("6091-reppoH-ecarG")))

    first, _, third = ran("work()", work=work).splitlines()
    assert first == "KeyboardInterrupt: encrypt was stopped at 25% of 8 rows"
    assert third.strip() == "(%tb shows the traceback)"
    rest = ran("%tb Verbose")
    assert "work()" in rest
    assert PLAINTEXT not in rest
    assert PLAINTEXT in ran(
        "%xmode Verbose\nstep(''.join(reversed('6091-reppoH-ecarG')))", step=step
    )  # proves the test


def test_an_interrupted_encryption_is_an_interrupt(enc, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    plain = enc.kms.decrypt()
    monkeypatch.setattr("kmsdata.frames.frame.encrypt_column", stopped)
    with pytest.raises(KeyboardInterrupt, match=r"^encrypt was stopped at 0% of 2 cells$") as caught:
        plain.kms.encrypt("name", key="local://demo")
    assert caught.value.__context__.__traceback__ is None  # its frames contain keys and plaintext
    assert caught.value.__suppress_context__


def interrupted(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.newest
def test_other_long_work_that_is_interrupted_is_one_block_too(enc, tmp_path, monkeypatch):
    path = tmp_path / "e.parquet"
    enc.kms.to_parquet(path)
    for target, title, call in (
        ("kmsdata.parquet.write.pq.write_table", "to_parquet", lambda: enc.kms.to_parquet(path)),
        ("kmsdata.parquet.read.dataset_headers", "read_parquet", lambda: kmsdata.read_parquet(path)),
        ("kmsdata.api.pick.profile_frame", "pick", lambda: enc.kms.pick()),
        ("kmsdata.api.panel.inspect", "df.kms", lambda: str(enc.kms)),
        ("kmsdata.api.panel.inspect", "df.kms", lambda: enc.kms._repr_html_()),
        ("kmsdata.api.panel.inspect", "series.kms", lambda: str(enc["name"].kms)),
        ("kmsdata.api.panel.inspect", "series.kms", lambda: enc["name"].kms._repr_html_()),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(target, interrupted)
            with pytest.raises(KeyboardInterrupt, match=f"^{title} was stopped$") as caught:
                call()
        assert caught.value.__context__.__traceback__ is None
        assert caught.value.__suppress_context__
    assert kmsdata.read_parquet(path).equals(enc)  # the file is the earlier one
    assert {entry.name for entry in tmp_path.iterdir()} == {"e.parquet", "keystore"}


@pytest.mark.newest
def test_a_kms_call_can_be_interrupted(enc):
    with Emulator() as emulator:
        kms = kmsdata.TencentKMS(
            "ap-guangzhou", credential=(emulator.secret_id, emulator.secret_key), endpoint=emulator.url
        )
        emulator.fail(Fault.hang(), times=None)
        timer = threading.Timer(0.5, signal.raise_signal, [signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt, match="while waiting for the KMS call ListKeyDetail"):
            kms.list_keys()
        timer.join()


# Where a builtin exception is raised, it is caught in kmsdata too, or is the error of a bug.
INTERNAL = {
    "ciphers.cells", "ciphers.gcm", "ciphers.legacy_ecb", "ciphers.batches", "ciphers.siv",
    "codec.tagged_objects", "codec.time_zones", "keys.local.keystore_file", "keys.tencent.transport",
    "notebook.sealed_message", "parquet.column_chunks", "parquet.footer",
}  # fmt: skip


def test_every_error_about_a_call_is_one_block():
    root = Path(kmsdata.__file__).parent
    raised = re.compile(r"\b(?:raise|return) ((?:Key|Type|Value|Import|FileNotFound|FileExists)Error)\(")
    found = set()
    for path in root.rglob("*.py"):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        if not name.startswith(("cli.", "emulator.")) and raised.search(path.read_text()):
            found.add(name)
    assert found == INTERNAL
