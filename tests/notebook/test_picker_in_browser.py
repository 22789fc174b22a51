"""The column picker in JupyterLab (by keyboard; busy, restarted and missing kernels), marimo and Voila."""

import re

import pytest

from tests.notebook.jupyterlab import ARTEFACTS, Notebook, Server, write_notebook

pytestmark = [pytest.mark.newest, pytest.mark.browser]

# Values are computed, so that a value in the notebook's file can only come from the picker.
PEOPLE = """
import kmsdata, pandas as pd, numpy as np
kmsdata.use("local://demo")
rows = range(1000)
people = pd.DataFrame({
    "name": ["Zqj" + "xy" * (n % 5) + f" Kvw{n * 7919}" for n in rows],
    "mail": [f"zqj{n * 7919}@kvw{n % 7}.org" for n in rows],
    "ssn": [f"{100 + n % 900}-{10 + n % 80}-{1000 + 7 * n}" for n in rows],
    "phone": [13800000000.0 + 7919 * n if n % 9 else np.nan for n in rows],
    "smoker": ["no"] * 930 + ["yes"] * 70,
    "born": pd.date_range("1950-01-01", periods=1000),
    2026: 1,
})
people["id"] = people[["ssn"]].kms.encrypt(deterministic="ssn")["ssn"].rename("id")
picked = people.kms.pick()
pressed = []
picked.observe(lambda change: change.new["busy"] and pressed.append(change.new["status"][1]), "view")
"""
PART = "kvw"  # of each text above


class Picker:
    """The picker on a page, mostly by the keyboard."""

    def __init__(self, notebook):
        self.notebook, self.page = notebook, notebook.page
        self.root = self.page.locator(".kms-picker")
        self.root.wait_for()
        self.encrypt, self.copy = (notebook.button(name) for name in ("Encrypt", "Copy the call"))

    def focused(self):
        """Return what has the focus: an element of the picker, or None."""
        return self.page.evaluate("""() => {
          const at = document.activeElement;
          if (!at.closest(".kms-picker")) return null;
          if (at.type !== "radio") return at.dataset.do || at.className;
          return `${at.closest("tr").querySelector("code").textContent}: ${at.value}`;
        }""")

    def tab_to(self, wanted, key="Tab"):
        """Press Tab until this has the focus."""
        for _ in range(60):
            self.page.keyboard.press(key)
            if self.focused() == wanted:
                return
        raise AssertionError(f"{wanted} cannot be reached: {self.focused()} has the focus")

    def row(self, label):
        return self.root.locator("tbody tr").filter(
            has=self.page.locator("th code", has_text=re.compile(f"^{label}$"))
        )

    def radio(self, label, choice):
        return self.row(label).get_by_role("radio", name=choice, exact=True)

    def call(self):
        return self.root.locator("pre code").inner_text()

    def says(self, text):
        self.notebook.status(text)

    def picture(self, name):
        """Take pictures of the picker: light, dark, and in a window of 900 pixels."""
        for theme, width in [("Light", 1300), ("Dark", 1300), ("Light", 900)]:
            self.page.set_viewport_size({"width": width, "height": 900})
            self.notebook.theme(f"JupyterLab {theme}")
            self.page.wait_for_timeout(1200)  # the theme's style sheets are loaded, and followed
            self.root.screenshot(path=ARTEFACTS / f"picker-{name}-{theme.lower()}-{width}.png")


def run(notebook, cell, *, wait=True):
    """Run one cell."""
    notebook.evaluate(
        f"""async () => {{
          window.jupyterapp.shell.currentWidget.content.activeCellIndex = {cell};
          window.run = window.jupyterapp.commands.execute("notebook:run-cell");
          if ({str(wait).lower()}) await window.run;
        }}"""
    )


def test_by_keyboard_only(start):
    lab, page = start({"@jupyter-widgets/jupyterlab-manager:plugin": {"saveState": True}})
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    path = write_notebook(
        lab.root / "pick.ipynb", PEOPLE, "print(picked.result.kms.encrypted)", "print(pressed)"
    )
    notebook = Notebook(page, lab, path)
    notebook.run_all()
    picker = Picker(notebook)
    assert "there is no result yet: choose columns in the picker above" in notebook.outputs()[1]
    picker.says("The session's key is local://demo.")
    assert picker.call() == "# choose at least one column"
    assert picker.encrypt.is_disabled()
    for text in [
        "looks like an e-mail address: it stays readable", "looks like a phone number: it stays readable",
        "few distinct values (2)", "one value makes up 93% of the values", "floats are not supported",
        "already encrypted, deterministic", "its label is int, not text", "999-99-9999",
    ]:  # fmt: skip
        assert text in picker.root.inner_text(), text
    assert picker.radio("phone", "deterministic").is_disabled()
    assert picker.radio("2026", "randomised").is_disabled()
    assert picker.row("id").get_by_role("radio").count() == 0
    picker.picture("start")

    cells = page.locator(".jp-Cell").count()
    picker.tab_to("kms-filter")
    page.keyboard.type("e-mail")
    picker.root.get_by_text("1 of 8 columns shown").wait_for()
    assert picker.row("mail").is_visible()
    assert not picker.row("ssn").is_visible()
    page.keyboard.press("Tab")
    assert picker.focused() == "mail: plain"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert picker.focused() == "mail: deterministic"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    picker.root.get_by_text("8 columns, 1,000 rows; chosen: 0 randomised, 1 deterministic").wait_for()
    picker.tab_to("name: plain")
    page.keyboard.press("ArrowDown")
    picker.tab_to("phone: plain")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")  # deterministic is left out
    assert picker.radio("phone", "plain").is_checked()
    picker.tab_to("smoker: plain")
    page.keyboard.press("ArrowRight")
    picker.root.get_by_text("few distinct values (2): their lengths differ").wait_for()
    page.keyboard.press("ArrowRight")
    picker.root.get_by_text("one value makes up 93% of the values: its cells can be recognised").wait_for()
    for key in "abdd":  # commands of the notebook
        page.keyboard.press(key)
    assert page.locator(".jp-Cell").count() == cells
    assert picker.call() == "people.kms.encrypt(['name'], deterministic=['mail', 'smoker'])"

    picker.tab_to("copy")
    page.keyboard.press("Enter")
    picker.says("The call is in the clipboard.")
    assert page.evaluate("navigator.clipboard.readText()") == picker.call()
    picker.tab_to("encrypt", "Shift+Tab")
    page.keyboard.press("Enter")
    picker.says("3 columns encrypted. The encrypted frame is picked.result.")
    assert picker.focused() == "encrypt"  # still there
    picker.picture("done")
    picker.tab_to("ssn: plain", "Shift+Tab")
    page.keyboard.press("ArrowRight")
    picker.says("The choices were changed after this. Press Encrypt to use them.")
    page.keyboard.press("ArrowLeft")
    notebook.save()
    run(notebook, 1)
    assert notebook.outputs()[1].strip() == "['name', 'mail', 'smoker', 'id']"

    # A double click makes one call.
    picker.encrypt.dblclick()
    picker.says("3 columns encrypted.")
    page.wait_for_timeout(500)
    run(notebook, 2)
    assert notebook.outputs()[2].count("Encrypting 3 columns") == 2  # by Enter, and by the double click

    # The saved notebook contains the widget's state, and no value.
    saved = notebook.saved()
    assert "looks like an e-mail address" in saved
    assert "application/vnd.jupyter.widget-state+json" in saved
    assert [line for line in saved.splitlines() if PART in line.lower() and "rows]" not in line] == []


@pytest.mark.parametrize("comms", ["perCommTarget", "disabled"])
def test_states_of_the_kernel(start, comms):
    lab, page = start({
        "@jupyter-widgets/jupyterlab-manager:plugin": {"saveState": True},
        "@jupyterlab/apputils-extension:kernels-settings": {"commsOverSubshells": comms},
    })  # fmt: skip
    source = PEOPLE.replace('kmsdata.use("local://demo")\n', "")
    source = source.replace("encrypt(deterministic", "encrypt(key='local://demo', deterministic")
    path = write_notebook(
        lab.root / "states.ipynb", source, "import time\nkmsdata.use('local://demo')\ntime.sleep(6)"
    )
    notebook = Notebook(page, lab, path)
    run(notebook, 0)
    picker = Picker(notebook)
    picker.says("There is no key yet. Call kmsdata.use('local://demo') or kmsdata.login()")
    picker.radio("name", "randomised").check()
    picker.encrypt.click()
    picker.page.locator(".kmsdata-status[data-kind=bad]").wait_for()
    picker.picture(f"no-key-{comms}")

    # The kernel is busy: with subshells it encrypts at once, otherwise when the cell ends.
    run(notebook, 1, wait=False)
    page.wait_for_timeout(1000)
    picker.encrypt.click()
    if comms == "disabled":
        picker.says("The kernel is busy. It encrypts when the running cell ends.")
        assert picker.encrypt.get_attribute("aria-disabled") == "true"
        picker.root.screenshot(path=ARTEFACTS / "picker-busy.png")
    picker.says("1 column encrypted. The encrypted frame is picked.result.")
    notebook.evaluate("async () => { await window.run; }")

    # Restarted.
    notebook.save()
    notebook.restart_kernel()
    picker.says("Run the cell again.")
    picker.root.locator("button:enabled, input[type=radio]:enabled").first.wait_for(state="detached")
    picker.picture(f"restarted-{comms}")

    # Opened again, without the kernel that it belongs to.
    notebook.shut_down_kernel()
    notebook = Notebook(page, lab, path)
    picker = Picker(notebook)
    picker.says("Run the cell again.")
    assert picker.root.locator("button:enabled, input[type=radio]:enabled").count() == 0
    assert picker.root.locator("input[type=radio]:disabled").count() == 21


def test_without_a_kernel_and_the_state_of_widgets(start):
    """JupyterLab itself then says only "model not found"; exports show the table without choices."""
    lab, page = start()
    path = write_notebook(lab.root / "again.ipynb", PEOPLE)
    notebook = Notebook(page, lab, path)
    notebook.run_all()
    Picker(notebook)
    notebook.save()
    lab.run("-m", "nbconvert", "--to", "html", str(path))
    exported = path.with_suffix(".html").read_text()
    page.goto(path.with_suffix(".html").as_uri())
    page.get_by_text("run this cell to choose the columns to encrypt").wait_for()
    page.get_by_text("looks like an e-mail address").wait_for()
    page.screenshot(path=ARTEFACTS / "picker-exported.png", full_page=True)
    assert "kvw7919" not in exported.lower()


MARIMO = """
import marimo

app = marimo.App()


@app.cell
def _():
    {cell}
    return
"""


@pytest.mark.parametrize("front_end", ["marimo", "voila"])
def test_other_front_ends(tmp_path, browser, front_end):
    arguments = {
        "marimo": ["-m", "marimo", "run", "pick.py", "--headless", "--no-token", "--port", "{port}"],
        "voila": ["-m", "voila", "pick.ipynb", "--no-browser", "--Voila.ip=127.0.0.1", "--port={port}"],
    }[front_end]
    work = tmp_path / "home" / "work"
    work.mkdir(parents=True)
    (work / "pick.py").write_text(MARIMO.format(cell=PEOPLE.strip().replace("\n", "\n    ")))
    write_notebook(work / "pick.ipynb", PEOPLE)
    server = Server(tmp_path / "home", arguments, "/")
    try:
        server.wait()
        page = browser(server.home / "profile")
        page.goto(server.url)
        page.get_by_role("radiogroup", name="Choice for mail").get_by_label("deterministic").check()
        page.get_by_role("button", name="Encrypt", exact=True).click()
        status = page.locator(
            ".kmsdata-status", has_text="1 column encrypted. The encrypted frame is picked.result."
        )
        status.wait_for()
        assert page.locator(".kms-picker").count() == 1
        assert page.locator("pre code", has_text="encrypt").last.inner_text() == (
            "people.kms.encrypt(deterministic=['mail'])"
        )
    finally:
        browser.close()
        server.close()
