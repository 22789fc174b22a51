"""The column picker: what it sends to the page, and what a message of the page does, in any thread."""

import json
import subprocess
import sys
import threading

import pandas as pd
import pytest

import kmsdata
from kmsdata.errors import FormatError, KeyAccessError, KmsDataError

pytestmark = pytest.mark.newest

KEY = "local://demo"


@pytest.fixture
def frame():
    return pd.DataFrame({
        "name": [f"Zqjname{n}" for n in range(20)],
        "mail": [f"zqj{n}@kvw.org" for n in range(20)],
        "age": [30.5 + n for n in range(20)],
        7: 1,
    })  # fmt: skip


def press(picker, *choices):
    """Press the button with these choices, and wait; return the status."""
    picker._handle_custom_msg({"type": "encrypt", "choices": list(choices), "link": "1-2", "number": 1}, [])
    if picker._worker is not None:
        picker._worker.join()
    return picker.view["status"]


class Provider:
    """A provider whose calls fail, or wait."""

    scheme = "mine"

    def __init__(self, error=None):
        self.error, self.calls, self.go_on = error, 0, threading.Event()
        self.go_on.set()
        self.store = kmsdata.LocalKeystore(create=True)

    def generate_data_key(self, key, context):
        self.calls += 1
        assert self.go_on.wait(30)
        if self.error is not None:
            raise self.error
        made = self.store.generate_data_key("local://mine", context)
        return made.under([kmsdata.Wrap(key, made.wraps[0].wrapped)])

    def unwrap(self, *_):
        raise AssertionError

    def wrap(self, *_):
        raise AssertionError


# The result.


def test_the_result_is_what_the_call_returns(frame):
    picked = frame.kms.pick(key=KEY)
    kind, text = press(picked, "randomised", "deterministic", "randomised", "plain")
    assert kind == "good"
    assert text.startswith(
        "3 columns encrypted. The encrypted frame is the picker's .result: write picked = "
    )
    assert picked.result.kms.encrypted == ["name", "mail", "age"]
    assert [column.algorithm for column in picked.result.kms.inspect().columns][:3] == [
        "AES-256-GCM", "AES-256-SIV", "AES-256-GCM",
    ]  # fmt: skip
    pd.testing.assert_frame_equal(picked.result.kms.decrypt(), frame)
    assert repr(picked) == "<df.kms.pick(): 4 columns, 20 rows; the encrypted frame is in .result>"


def test_no_result_before_the_button_is_pressed(frame):
    picked = frame.kms.pick(key=KEY)
    with pytest.raises(
        KmsDataError, match="no result yet: choose columns in the picker above and press Encrypt"
    ):
        picked.result  # noqa: B018
    assert repr(picked) == "<df.kms.pick(): 4 columns, 20 rows; nothing encrypted yet>"


def test_the_names_of_the_variables_are_in_the_call(frame, monkeypatch):
    main = sys.modules["__main__"]
    for name in ("", "_", "two words", "people"):  # the first ones cannot be in a call, or are IPython's
        monkeypatch.setitem(vars(main), name, frame)
    picked = frame.kms.pick(key=KEY)
    assert (picked.view["frame"], picked.view["key"]) == ("people", f"key='{KEY}'")
    monkeypatch.setattr(main, "chosen", picked, raising=False)
    assert press(picked, "randomised", *["plain"] * 3)[1].endswith(
        "The encrypted frame is chosen.result. It is opened by local://demo."
    )
    assert frame.copy().kms.pick(key=KEY).view["frame"] == "df"


# The key.


def test_key_is_passed_to_encrypt(frame, monkeypatch):
    first = frame.kms.encrypt("name", key=KEY)
    monkeypatch.setattr(sys.modules["__main__"], "first", first, raising=False)
    picked = frame.kms.pick(key=first)
    assert picked.view["key"] == "key=first"
    press(picked, "plain", "deterministic", "plain", "plain")
    assert (
        picked.result["mail"].dtype.header.columns[0].data_key
        == first["name"].dtype.header.columns[0].data_key
    )

    several = frame.kms.pick(key=(uri for uri in [KEY, "local://other"]))
    assert several.view["key"] == "key=['local://demo', 'local://other']"
    for _ in range(2):
        assert press(several, "randomised", *["plain"] * 3)[0] == "good"
        (data_key,) = several.result.kms.inspect().data_keys
        assert data_key.keys == (KEY, "local://other")

    unnamed = frame.kms.pick(key=kmsdata.new_data_key(KEY))
    assert unnamed.view["key"] == "key=key"
    assert unnamed.view["status"] == ["ask", "key is what was passed to pick() as key=."]


@pytest.mark.parametrize(
    "wrong", ["not-a-uri", "Zq3secretZq3secretZq3secretZq3secret", ["local://demo", "x"]]
)
def test_a_wrong_key_is_refused_at_once(frame, wrong):
    with pytest.raises(FormatError) as caught:
        frame.kms.pick(key=wrong)
    assert "Zq3" not in str(caught.value)
    with pytest.raises(TypeError, match="key= takes"):
        frame.kms.pick(key=5)


def test_a_session_without_a_key(frame):
    picked = frame.kms.pick()
    for status in (picked.view["status"], press(picked, "randomised", *["plain"] * 3)):
        assert "There is no key yet. Call kmsdata.use('local://demo') or kmsdata.login()" in status[1]
    with pytest.raises(KmsDataError, match="the encryption failed: There is no key yet"):
        picked.result  # noqa: B018
    kmsdata.use(KEY)  # later, in another cell
    assert press(picked, "randomised", *["plain"] * 3)[0] == "good"
    assert picked.view["key"] == ""
    assert frame.kms.pick().view["status"] == ["ask", f"The session's key is {KEY}."]


def test_a_malformed_key_of_the_environment_is_said(frame, monkeypatch):
    monkeypatch.setenv("KMSDATA_KEY", "Zq3secretZq3secretZq3secretZq3secret")
    picked = frame.kms.pick()
    for text in (picked.view["status"][1], press(picked, "randomised", *["plain"] * 3)[1]):
        assert text.startswith("KMSDATA_KEY: ")
        assert "Zq3" not in text


def test_the_key_of_a_block_is_used_after_it_ends(frame):
    with kmsdata.using("local://of-the-block"):
        picked = frame.kms.pick()
    assert picked.view["status"] == ["ask", "The session's key is local://of-the-block."]
    press(picked, "randomised", *["plain"] * 3)
    assert picked.result.kms.inspect().data_keys[0].keys == ("local://of-the-block",)


def test_the_status_names_the_key_that_was_used(frame):
    kmsdata.use(KEY)
    picked = frame.kms.pick()
    kmsdata.use("local://later")
    assert press(picked, "randomised", *["plain"] * 3)[1].endswith("It is opened by local://later.")
    several = frame.kms.encrypt("mail", key=[KEY, "local://other"])
    picked = several.kms.encrypt("name", key=KEY).kms.pick(key=several)
    assert press(picked, "plain", "plain", "randomised", "plain")[1].endswith(
        "It is opened by local://demo or local://other."
    )


# Failures.


def test_a_refused_kms_call_is_shown(frame):
    kmsdata.use(
        Provider(KeyAccessError("the key is disabled: enable it with 'kmsdata keys enable mine://k'"))
    )
    picked = frame.kms.pick(key="mine://k")
    assert press(picked, "randomised", *["plain"] * 3) == [
        "bad", "the key is disabled: enable it with 'kmsdata keys enable mine://k'",
    ]  # fmt: skip
    with pytest.raises(
        KmsDataError, match="there is no result, because the encryption failed: the key is disabl"
    ):
        picked.result  # noqa: B018


@pytest.mark.parametrize(
    "error", [RuntimeError("Zq3secret"), UnicodeEncodeError("ascii", "Zq3secret", 0, 1, "Zq3")]
)
def test_the_text_of_an_unknown_error_is_not_shown(frame, error):
    kmsdata.use(Provider(error))
    picked = frame.kms.pick(key="mine://k")
    kind, text = press(picked, "randomised", *["plain"] * 3)
    assert (kind, text) == (
        "bad", f"this failed ({type(error).__name__}). Run the call above in a cell to see where.",
    )  # fmt: skip
    assert "Zq3" not in json.dumps(picked.get_state())


def test_a_failure_leaves_no_result_of_other_choices(frame):
    provider = Provider()
    kmsdata.use(provider)
    picked = frame.kms.pick(key="mine://k")
    assert press(picked, "randomised", "plain", "plain", "plain")[0] == "good"
    provider.error = KeyAccessError("no permission")
    assert press(picked, "randomised", "randomised", "plain", "plain") == ["bad", "no permission"]
    with pytest.raises(KmsDataError, match="no permission"):
        picked.result  # noqa: B018


def renamed(frame):
    frame.columns = ["mail", "name", "age", 7]


def test_a_frame_whose_columns_changed_is_not_encrypted(frame):
    for change in (renamed, lambda frame: frame.pop("name"), lambda frame: frame.insert(0, "new", 1)):
        changed = frame.copy()
        picked = changed.kms.pick(key=KEY)
        change(changed)
        before = kmsdata.usage().calls
        kind, text = press(picked, "randomised", *["plain"] * 3)
        assert (kind, kmsdata.usage().calls) == ("bad", before)
        assert "the columns of the frame have changed since. Run the cell again." in text
        with pytest.raises(KmsDataError, match="have changed since"):
            picked.result  # noqa: B018
    nulls = pd.DataFrame([[1, "x"]], columns=pd.Index([float("nan"), "a"], dtype=object))
    assert press(nulls.kms.pick(key=KEY), "plain", "randomised")[0] == "good"


def pressed_again(picked):
    """Whether the button still works."""
    return press(picked, "randomised", *["plain"] * 3)[0] == "good"


def test_an_exit_ends_being_busy(frame):
    provider = Provider(SystemExit("Zq3secret"))
    kmsdata.use(provider)
    picked = frame.kms.pick(key="mine://k")
    assert press(picked, "randomised", *["plain"] * 3)[1].startswith("this failed (SystemExit).")
    provider.error = None
    assert pressed_again(picked)


def test_a_thread_that_cannot_start_ends_being_busy(frame, monkeypatch):
    class Refused(threading.Thread):
        def start(self):
            raise RuntimeError("can't start new thread")

    picked = frame.kms.pick(key=KEY)
    with monkeypatch.context() as patched:
        patched.setattr("kmsdata.notebook.column_picker.thread_class", lambda: Refused)
        kind, text = press(picked, "randomised", *["plain"] * 3)
    assert (kind, text) == ("bad", "this could not start (RuntimeError). Press Encrypt again.")
    assert not picked.view["busy"]
    with pytest.raises(KmsDataError, match="could not start"):
        picked.result  # noqa: B018
    assert pressed_again(picked)


@pytest.mark.parametrize("fails", ["busy", "good"])
def test_a_page_that_cannot_be_told_ends_being_busy(frame, monkeypatch, fails):
    """The comm of a page that was closed may fail."""
    picked = frame.kms.pick(key=KEY)

    def notified(change):
        if change["new"]["status"][0] == fails:
            raise RuntimeError("closed")

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    picked.observe(notified, "view")
    press(picked, "randomised", *["plain"] * 3)
    assert not picked.view["busy"]
    picked.unobserve(notified, "view")
    assert pressed_again(picked)


def test_values_that_were_not_in_the_sample_are_an_error_that_names_the_column(frame, monkeypatch):
    frame["odd"] = pd.Series(["text", *[object()] * 19], dtype=object)
    monkeypatch.setattr("kmsdata.api.column_profile._PACKED", 1)
    picked = frame.kms.pick(key=KEY)
    kind, text = press(picked, *["plain"] * 4, "randomised")
    assert kind == "bad"
    assert "column 'odd'" in text
    assert "object object at" not in text


# Messages.


@pytest.mark.parametrize(
    "choices",
    [
        None, "randomised", 5, {}, [], ["randomised"], ["plain"] * 4, ["randomised"] * 5, [None] * 4,
        [["randomised"]] * 4,
        ["plain", "plain", "deterministic", "plain"],  # floats cannot be deterministic
        ["plain", "plain", "plain", "randomised"],  # the label is no text
    ],
)  # fmt: skip
def test_other_choices_encrypt_nothing(frame, choices):
    before = kmsdata.usage().calls
    picked = frame.kms.pick(key=KEY)
    picked._handle_custom_msg({"type": "encrypt", "choices": choices}, [])
    assert picked._worker is None
    assert picked.view["status"] == ["bad", "Choose at least one column."]
    assert kmsdata.usage().calls == before


@pytest.mark.parametrize("content", [None, "encrypt", 5, [], {}, {"type": "other"}, {"type": ["encrypt"]}])
def test_other_messages_do_nothing(frame, content):
    picked = frame.kms.pick(key=KEY)
    before = picked.view
    picked._handle_custom_msg(content, [])
    assert picked.view == before


def test_every_message_is_answered(frame, monkeypatch):
    picked = frame.kms.pick(key=KEY)
    sent = []
    monkeypatch.setattr(picked, "send", sent.append)
    picked._handle_custom_msg({"type": "ping", "link": "1-2", "number": 3}, [])
    press(picked, "randomised", *["plain"] * 3)
    assert sent == [
        {"type": "answer", "link": "1-2", "number": 3}, {"type": "answer", "link": "1-2", "number": 1},
    ]  # fmt: skip


def test_presses_while_it_encrypts_make_no_second_call(frame):
    provider = Provider()
    provider.go_on.clear()
    kmsdata.use(provider)
    picked = frame.kms.pick(key="mine://k")
    pressed = {"type": "encrypt", "choices": ["randomised", "plain", "plain", "plain"]}
    threads = [threading.Thread(target=picked._handle_custom_msg, args=(pressed, [])) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert picked.view["busy"]
    assert picked.view["status"] == ["busy", "Encrypting 1 column …"]
    threading.Timer(0.2, provider.go_on.set).start()
    assert picked.result.kms.encrypted == ["name"]  # it waits
    assert provider.calls == 1
    assert not picked.view["busy"]


# What the page gets.


def test_no_value_is_in_the_state_of_the_widget(frame):
    picked = frame.kms.pick(key=KEY)
    press(picked, "randomised", "deterministic", "plain", "plain")
    bundle, _ = picked._repr_mimebundle_()
    state = json.dumps(picked.get_state(), default=str) + json.dumps(bundle) + repr(picked) + str(picked)
    for part in ("Zqjname", "zqj", "kvw", "30.5"):
        assert part not in state, part
    assert "aaa9@aaa.aaa" in state


def test_labels_are_literals_of_python():
    labels = [
        "it's",
        'say "x"',
        "back\\slash",
        "new\nline",
        "身份证",
        "\u202etxt",
        "a\x00b",
        "{x!r}",
        "",
        3,
        None,
    ]
    frame = pd.DataFrame([range(len(labels))], columns=pd.Index(labels, dtype=object))
    columns = frame.kms.pick(key=KEY).columns
    texts = [label for label in labels if isinstance(label, str)]
    assert [eval(column["literal"]) for column in columns[: len(texts)]] == texts  # noqa: S307
    assert [column["literal"] for column in columns[len(texts) :]] == ["", ""]
    assert [column["label"] for column in columns][3:7] == ["new\\nline", "身份证", "\\u202etxt", "a\\x00b"]


def test_without_a_kernel_text_and_html_are_shown(frame):
    bundle, _ = frame.kms.pick(key=KEY)._repr_mimebundle_()
    assert bundle["text/plain"] == "<df.kms.pick(): 4 columns, 20 rows; nothing encrypted yet>"
    assert "run this cell to choose the columns" in bundle["text/html"]
    assert "looks like an e-mail address" in bundle["text/html"]
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_outside_a_notebook_nothing_is_printed(frame, capsys):
    picked = frame.kms.pick(key=KEY)
    assert capsys.readouterr().out == ""
    assert str(picked).startswith("20 rows, 4 columns")
    from IPython.core.formatters import DisplayFormatter

    shown, _ = DisplayFormatter().format(picked)  # as IPython does in a terminal
    assert shown["text/plain"] == repr(picked)


def test_frames_without_columns_or_rows(frame):
    picked = pd.DataFrame().kms.pick(key=KEY)
    assert picked.columns == picked.choices == []
    assert picked.view["status"] == ["bad", "The frame has no columns, so there is nothing to encrypt."]
    empty = frame.iloc[:0].kms.pick(key=KEY)
    assert press(empty, "randomised", "deterministic", "plain", "plain")[0] == "good"
    assert empty.result.kms.encrypted == ["name", "mail"]


def test_without_anywidget_the_error_says_what_to_install(frame, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(ImportError, match=r'pip install "kmsdata\[notebook\]"'):
        frame.kms.pick()


def test_the_import_of_kmsdata_loads_no_anywidget():
    code = "import sys, kmsdata; print('anywidget' in sys.modules, 'ipywidgets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
