"""The picker's page without a front end around it: JavaScript in Chromium, and the real picker behind it."""

import json
import re

import pandas as pd
import pytest

from kmsdata.errors import KeyAccessError
from tests.notebook.jupyterlab import ARTEFACTS
from tests.notebook.test_form_in_page import CONTRAST, PLAIN, THEMES, FormPage, chromium  # noqa: F401

pytestmark = [pytest.mark.newest, pytest.mark.browser]

KEY = "local://demo"


@pytest.fixture
def page(chromium):  # noqa: F811
    context = chromium.new_context(viewport={"width": 1000, "height": 800})
    yield context.new_page()
    context.close()


class PickerPage(FormPage):
    """A page with a picker; `exchange` carries the messages that wait."""

    def __init__(self, page, picker, **options):
        state = {"columns": picker.columns, "choices": picker.choices}
        page.add_init_script(f"window.firstState = {json.dumps(state)};")
        super().__init__(page, picker, **options)
        self.picker, self.status = picker, page.locator(".kmsdata-status")
        self.exchange()

    def choose(self, label, choice):
        self.radio(label, choice).check()

    def radio(self, label, choice):
        group = self.page.get_by_role("radiogroup", name=f"Choice for {label}", exact=True)
        return group.get_by_role("radio", name=choice, exact=True)

    def call(self):
        return self.page.locator("pre code").inner_text()

    def inputs(self):
        """Return how many buttons and choices can be used."""
        return self.page.locator("button:enabled, input[type=radio]:enabled").count()


@pytest.fixture
def frame():
    return pd.DataFrame({
        "name": [f"Name{n}" for n in range(20)],
        "mail": [f"user{n}@mail.org" for n in range(20)],
        "smoker": ["no"] * 18 + ["yes"] * 2,
        "height": [1.5 + n / 100 for n in range(20)],
        7: 1,
    })  # fmt: skip


@pytest.fixture
def shown(page, frame):
    return PickerPage(page, frame.kms.pick(key=KEY))


def test_each_column_is_one_stop_of_the_tab_key(shown):
    at = """() => {
      const at = document.activeElement;
      return at.type === "radio" ? at.closest("[role=radiogroup]").ariaLabel : at.ariaLabel ?? at.placeholder;
    }"""
    order = []
    for _ in range(7):
        shown.page.keyboard.press("Tab")
        order.append(shown.page.evaluate(at))
    labels = ["name", "mail", "smoker", "height", "7"]
    assert order[0] == "name, type or warning"
    assert order[1:6] == [f"Choice for {label}" for label in labels]
    assert order[6] == "The equivalent call"


def test_roles_and_labels(shown):
    page = shown.page
    assert page.get_by_role("columnheader").all_inner_texts() == [
        "Column",
        "Nulls",
        "Distinct",
        "Shape",
        "Choice",
    ]
    assert page.get_by_role("rowheader").count() == 5
    assert (shown.status.get_attribute("role"), shown.status.get_attribute("aria-live")) == (
        "status",
        "polite",
    )
    assert page.get_by_label("Filter").count() == 1
    notes = page.get_by_role("radiogroup").nth(1).get_attribute("aria-describedby")
    assert page.locator(f"#{notes}").inner_text() == "! looks like an e-mail address: it stays readable"
    page.set_viewport_size({"width": 500, "height": 800})  # rows as blocks are still a table
    assert page.get_by_role("rowheader").count() == 5
    assert page.get_by_role("columnheader").count() == 5


def test_what_cannot_be_chosen(shown):
    disabled = [
        (label, choice)
        for label in ("name", "height", "7")
        for choice in ("plain", "randomised", "deterministic")
        if shown.radio(label, choice).is_disabled()
    ]
    assert disabled == [("height", "deterministic"), ("7", "randomised"), ("7", "deterministic")]
    assert shown.shown().count("its label is int, not text") == 1


def test_a_double_click_sends_once(shown):
    shown.choose("name", "randomised")
    shown.button("Encrypt").click(click_count=2)
    assert len(shown.sent("encrypt")) == 1
    shown.button("Encrypt").click(force=True)  # no answer yet
    assert len(shown.sent("encrypt")) == 1
    shown.until("1 column encrypted")
    shown.button("Encrypt").dblclick()
    shown.until("1 column encrypted")
    assert len(shown.sent("encrypt")) == 2
    assert shown.picker.result.kms.encrypted == ["name"]


def test_an_answer_between_the_clicks_of_a_double_click(shown):
    shown.choose("name", "randomised")
    box = shown.button("Encrypt").bounding_box()
    mouse = shown.page.mouse
    mouse.move(box["x"] + 5, box["y"] + 5)
    for count in (1, 2):
        mouse.down(click_count=count)
        mouse.up(click_count=count)
        shown.until("1 column encrypted")
    assert len(shown.sent("encrypt")) == 1


def test_a_key_that_is_held_down_sends_once(shown):
    shown.choose("name", "randomised")
    shown.button("Encrypt").focus()
    for _ in range(5):
        shown.page.keyboard.down("Enter")  # the second and later ones repeat
        shown.until("1 column encrypted")
    shown.page.keyboard.up("Enter")
    assert len(shown.sent("encrypt")) == 1


def test_the_button_keeps_the_focus_and_says_what_goes_wrong(page, frame, monkeypatch):
    picker = frame.kms.pick(key=KEY)
    shown = PickerPage(page, picker)
    shown.choose("mail", "deterministic")

    def refuse(*_):
        raise KeyAccessError("the key is disabled: enable it with 'kmsdata keys enable local://demo'")

    monkeypatch.setattr(picker, "_encrypt", refuse)
    shown.button("Encrypt").click()
    shown.until("the key is disabled: enable it with")
    assert shown.status.get_attribute("data-kind") == "bad"
    assert page.evaluate("document.activeElement.dataset.do") == "encrypt"
    monkeypatch.undo()
    page.keyboard.press("Enter")
    shown.until("1 column encrypted")
    assert picker.result.kms.encrypted == ["mail"]


def test_changed_choices_are_said(shown):
    shown.choose("name", "randomised")
    shown.button("Encrypt").click()
    shown.until("1 column encrypted")
    shown.choose("smoker", "randomised")
    assert "The choices were changed after this. Press Encrypt to use them." in shown.shown()
    assert (
        "few distinct values (2): their lengths differ, and the length of a cell is visible" in shown.shown()
    )
    shown.choose("smoker", "plain")
    assert "The choices were changed" not in shown.shown()


def test_a_kernel_that_is_busy_and_then_gone(shown):
    shown.choose("name", "randomised")
    shown.button("Encrypt").click()
    shown.pass_time(0.9)
    assert "busy" not in shown.shown()
    shown.pass_time(0.2)
    assert "The kernel is busy. It encrypts when the running cell ends." in shown.shown()
    shown.pass_time(30)
    assert "Run the cell again" in shown.shown()
    assert shown.inputs() == 0
    shown.until("1 column encrypted")  # a cell that ran for long has ended
    assert shown.inputs() > 0


def test_a_kernel_that_ends_while_it_encrypts(shown, monkeypatch):
    monkeypatch.setattr(type(shown.picker), "_carry_out", lambda *_: None)  # it never comes to an end
    shown.choose("name", "randomised")
    shown.button("Encrypt").click()
    shown.until("Encrypting 1 column")
    shown.exchange()
    shown.pass_time(40)
    assert "Run the cell again" in shown.shown()
    assert shown.inputs() == 0


def test_a_kernel_that_was_restarted(shown):
    shown.page.evaluate("() => lose()")
    shown.pass_time(5.1)
    assert "Run the cell again" in shown.shown()
    assert shown.inputs() == 0


def test_sending_fails(shown):
    shown.choose("name", "randomised")
    shown.page.evaluate("() => { window.broken = true; }")
    shown.button("Encrypt").click()
    shown.status.filter(has_text="Run the cell again").wait_for()
    assert shown.inputs() == 0


def test_a_notebook_that_was_opened_again(page, frame):
    shown = PickerPage(page, frame.kms.pick(key=KEY), comm=False)
    shown.until("Run the cell again")
    assert shown.inputs() == 0
    assert shown.sent("ping") == []
    shown.field("Filter").fill("mail")  # still helps to read
    assert "1 of 5 columns shown" in shown.shown()


def test_copying_where_the_page_may_not_use_the_clipboard(page, frame):
    shown = PickerPage(page, frame.kms.pick(key=KEY), address=PLAIN)
    assert page.evaluate("navigator.clipboard") is None
    shown.choose("name", "randomised")
    page.evaluate("""() => {
      document.addEventListener("copy", () => { window.copied = getSelection().toString(); });
    }""")
    shown.button("Copy the call").click()
    shown.status.filter(has_text="The call is in the clipboard.").wait_for()
    assert page.evaluate("window.copied") == shown.call() == "df.kms.encrypt(['name'], key='local://demo')"
    page.evaluate("() => { document.execCommand = () => false; }")
    shown.button("Copy the call").click()
    shown.status.filter(has_text="The call is selected: press Ctrl+C").wait_for()
    assert page.evaluate("getSelection().toString()") == shown.call()


def test_keys_do_not_reach_the_notebook(shown):
    shown.page.evaluate(
        "() => { window.keys = []; addEventListener('keydown', (event) => keys.push(event.key)); }"
    )
    shown.radio("name", "plain").focus()
    for key in ("d", "ArrowDown", "Escape", "Control+s"):
        shown.page.keyboard.press(key)
    assert [key for key in shown.page.evaluate("window.keys") if key != "Control"] == ["s"]


def test_the_filter(shown):
    names = ["name", "mail", "smoker", "height", "7"]
    for text, found in [
        ("MAIL", ["mail"]), ("float", ["height"]), ("e-mail", ["mail"]), ("distinct values", ["smoker"]),
        ("zzz", []), (" ", names),
    ]:  # fmt: skip
        shown.field("Filter").fill(text)
        assert [name for name in names if shown.radio(name, "plain").is_visible()] == found, text
    shown.choose("name", "randomised")
    shown.field("Filter").fill("randomised")
    assert "1 of 5 columns shown; chosen: 1 randomised, 0 deterministic" in shown.shown()


def test_labels_of_any_kind_and_200_columns(page):
    """The call is correct Python, and the buttons stay in view."""
    odd = [
        "it's",
        'say "x"',
        "back\\slash",
        "new\nline",
        "身份证",
        "\u202etxt",
        "a\x00b",
        "{x!r}",
        "",
        "$&",
        "`",
    ]
    odd.append("<img src=x onerror=document.title='changed'>")
    plain = [f"column {n:03} of the wide table" for n in range(200 - len(odd))]
    wide = pd.DataFrame([range(200)] * 3, columns=[*odd, *plain])
    keys = [KEY, "local://second"]
    shown = PickerPage(page, wide.kms.pick(key=keys))
    assert page.title() == "form"  # labels are text, not HTML
    assert page.locator("#form img").count() == 0
    assert "''" in page.get_by_role("rowheader").nth(8).inner_text()
    assert page.locator("#form section").bounding_box()["height"] < 700
    page.screenshot(path=ARTEFACTS / "picker-200-columns.png")

    class Frame:
        class kms:  # noqa: N801
            @staticmethod
            def encrypt(columns=(), deterministic=(), key=None):
                return list(columns), list(deterministic), key

    def click(choice, first, last):
        return page.evaluate(
            """([choice, first, last]) => {
              const radios = [...document.querySelectorAll(`input[value=${choice}]`)].slice(first, last);
              const begin = Date.now();
              radios.forEach((radio) => radio.click());
              return (Date.now() - begin) / radios.length;
            }""",
            [choice, first, last],
        )

    click("deterministic", 0, len(odd))
    assert eval(shown.call(), {"df": Frame}) == ([], odd, keys)  # noqa: S307
    click("randomised", len(odd), 200)
    assert eval(shown.call(), {"df": Frame}) == (plain, odd, keys)  # noqa: S307
    assert max(map(len, shown.call().splitlines())) <= 88
    shown.button("Encrypt").click()
    shown.until("200 columns encrypted.")
    assert len(shown.picker.result.kms.encrypted) == 200
    page.screenshot(path=ARTEFACTS / "picker-200-columns-done.png")


def test_a_frame_without_columns(page):
    shown = PickerPage(page, pd.DataFrame().kms.pick(key=KEY))
    assert "The frame has no columns, so there is nothing to encrypt." in shown.shown()
    assert shown.inputs() == 0


def test_a_sample_is_said(page, frame, monkeypatch):
    monkeypatch.setattr("kmsdata.api.column_profile._MOST_ROWS", 10)
    monkeypatch.setattr("kmsdata.api.column_profile._LEAST_ROWS", 10)
    shown = PickerPage(page, frame.kms.pick(key=KEY))
    assert "Nulls are counted in all 20 rows; everything else is from a sample of 10 rows." in shown.shown()
    assert "≥ 10" in shown.shown()


@pytest.mark.parametrize("theme", THEMES)
def test_contrast(page, frame, theme):
    variables, background = THEMES[theme]
    frame = frame.kms.encrypt("name", key=KEY)
    shown = PickerPage(page, frame.kms.pick(key=KEY), theme=variables, background=background)
    name = re.sub(r"\W+", "-", theme)

    def check(state):
        for width in (1000, 560):
            page.set_viewport_size({"width": width, "height": 800})
            page.screenshot(path=ARTEFACTS / f"picker-{state}-{name}-{width}.png")
            found = page.evaluate(CONTRAST)
            assert len(found["text"]) > 20
            assert [(part, round(ratio, 2)) for part, ratio in found["text"] if ratio < 4.5] == []
            assert [(part, round(ratio, 2)) for part, ratio in found["border"] if ratio < 3] == []

    check("start")
    shown.choose("mail", "randomised")
    shown.choose("smoker", "deterministic")
    shown.button("Encrypt").click()
    shown.until("2 columns encrypted")
    check("done")
    shown.picker._say("bad", "A sentence that says what to do.")
    shown.until("what to do")
    check("bad")
    page.evaluate("() => lose()")
    shown.pass_time(6)
    assert "Run the cell again" in shown.shown()
    check("gone")
