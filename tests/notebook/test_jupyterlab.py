"""The form in a real JupyterLab and browser: its display, and how it waits."""

import contextlib
import sqlite3
import threading

import pytest

from kmsdata.emulator import Fault
from tests.notebook.jupyterlab import Notebook, write_notebook

pytestmark = [pytest.mark.newest, pytest.mark.browser]

REGION = "ap-guangzhou"


def login(emulator):
    return f"import kmsdata, pandas as pd\nkmsdata.login(endpoint='{emulator.url}')"


def pictures(notebook, name):
    """Take pictures in light and dark, and of a narrow window."""
    for theme in ("Dark", "Light"):
        notebook.theme(f"JupyterLab {theme}")
        notebook.page.wait_for_timeout(300)  # until its style sheets are loaded
        notebook.picture(f"lab-{name}-{theme.lower()}")
    size = notebook.page.viewport_size
    notebook.page.set_viewport_size({**size, "width": 900})
    notebook.page.wait_for_timeout(200)
    notebook.picture(f"lab-{name}-900px")
    notebook.page.set_viewport_size(size)


def test_the_form(start, emulator, keys):
    lab, page = start()
    path = write_notebook(
        lab.root / "form.ipynb",
        login(emulator),
        "frame = pd.DataFrame({'a': [1, 2]}).kms.encrypt('a')",
        "print('decrypted', frame.kms.decrypt()['a'].tolist())",
    )
    notebook = Notebook(page, lab, path)
    notebook.run_all()
    notebook.status("Enter an API key")
    # A call that needs a key stops the run, with one short block.
    _, stopped, rest = notebook.outputs()
    assert stopped.splitlines() == [
        "CredentialsError: not signed in yet: fill in the form above, then run again from here",
        "  at In[2], line 1: frame = pd.DataFrame({'a': [1, 2]}).kms.encrypt('a')",
        "  (%tb shows the traceback)",
    ]
    assert rest == ""
    pictures(notebook, "empty")
    # Fields and labels are aligned.
    boxes = [
        notebook.field(name).bounding_box() for name in ("SecretId", "SecretKey", "Session token", "Region")
    ]
    assert len({round(box["x"]) for box in boxes}) == len({round(box["width"]) for box in boxes}) == 1

    notebook.type("SecretId", emulator.secret_id)
    notebook.type("SecretKey", "not-the-SecretKey")
    notebook.choose("Region", "Guangzhou 广州 (ap-guangzhou)")
    notebook.button("Connect").click()
    notebook.status("the SecretKey does not belong to the SecretId")
    pictures(notebook, "refused")

    looked_at = threading.Event()
    emulator.fail(Fault.change(TotalCount=lambda total: total if looked_at.wait(60) else 0))
    notebook.type("SecretKey", emulator.secret_key)
    notebook.page.keyboard.press("Enter")
    notebook.status("Connecting to")
    pictures(notebook, "connecting")
    looked_at.set()
    notebook.status("Connected to Tencent Cloud KMS in Guangzhou 广州 (ap-guangzhou)")
    options = notebook.field("Key").locator("option").all_inner_texts()
    assert options == ["payroll", "research-2026", "old · Disabled: cannot be used", "another …"]
    pictures(notebook, "keys")
    notebook.button("Use this key").click()
    page.locator(".kms-done", has_text="payroll").wait_for()
    notebook.run_all()  # nothing has to be typed again
    assert notebook.outputs()[1:] == ["", "decrypted [1, 2]\n"]
    pictures(notebook, "done")
    notebook.button("change").click()
    notebook.status("Which one is the default?")
    notebook.button("Sign in again").click()
    notebook.status("Enter an API key")
    notebook.button("Connect").click()
    notebook.status("Enter the SecretId")
    pictures(notebook, "incomplete")
    notebook.button("Local keystore").click()
    notebook.field("Passphrase").wait_for()
    pictures(notebook, "local")
    notebook.shut_down_kernel()
    notebook.field("Passphrase").focus()
    notebook.status("Run the cell again")
    pictures(notebook, "gone")


def test_await_holds_up_the_run(start, emulator, keys):
    lab, page = start()
    path = write_notebook(
        lab.root / "await.ipynb",
        f"import kmsdata, pandas as pd\n"
        f"kms = await kmsdata.login(region='{REGION}', endpoint='{emulator.url}')",
        "print(kms, pd.DataFrame({'a': [1]}).kms.encrypt('a').kms.decrypt()['a'].tolist())",
    )
    notebook = Notebook(page, lab, path)
    notebook.start_all()
    notebook.type("SecretId", emulator.secret_id)
    notebook.type("SecretKey", emulator.secret_key)
    notebook.button("Connect").click()
    notebook.status("Connected to")
    assert notebook.outputs()[1] == ""
    notebook.button("Use this key").click()
    notebook.finish()
    assert notebook.outputs()[1].strip() == f"<TencentKMS {REGION} at {emulator.url}> [1]"


def test_the_browser_does_not_offer_to_save(start, emulator, keys):
    lab, page = start()
    path = write_notebook(lab.root / "save.ipynb", f"import kmsdata\n{login(emulator).splitlines()[1]}")
    notebook = Notebook(page, lab, path)
    notebook.run_all()
    notebook.choose("Region", "Guangzhou 广州 (ap-guangzhou)")
    for key, said in (
        ("not-the-SecretKey", "the SecretKey does not belong"),
        (emulator.secret_key, "Connected to"),
    ):
        notebook.type("SecretId", emulator.secret_id)
        notebook.type("SecretKey", key)
        page.keyboard.press("Enter")
        notebook.status(said)
    page.reload()  # the form has vanished, which is a sign that a password was accepted
    page.wait_for_timeout(1000)
    start.close()
    # Chromium counts the offers that the user did not take, with what it takes for the user's name.
    with contextlib.closing(sqlite3.connect(lab.home / "profile" / "Default" / "Login Data")) as saved:
        assert saved.execute("SELECT username_value, dismissal_count FROM stats").fetchall() == []
        assert saved.execute("SELECT username_value FROM logins").fetchall() == []
