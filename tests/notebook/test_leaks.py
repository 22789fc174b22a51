"""No secret that is typed into the form is in any file, in each state of a real JupyterLab and its kernel.

A naive password widget below the form is the control: the same search finds what is typed into it, in every
copy of a notebook that was saved with the state of widgets. All logs are at their most detailed level.
"""

import os
import re
import signal
import time

import pytest

from kmsdata.emulator import Fault
from tests.notebook.jupyterlab import OTHER_HOST, Notebook, write_notebook
from tests.notebook.secret_search import Search, made

pytestmark = [pytest.mark.newest, pytest.mark.browser]

STATE_IS_SAVED = pytest.mark.parametrize("state", [True, False], ids=["state saved", "state not saved"])
FIELDS = ("SecretId", "SecretKey", "Session token")
LATER = {"SecretKey": "SecretKey, typed later", "Session token": "Session token, typed later"}


def settings(state, **more):
    return {
        "@jupyter-widgets/jupyterlab-manager:plugin": {"saveState": state},
        "@jupyterlab/docmanager-extension:plugin": {"autosave": False, "autosaveInterval": 1},
        **more,
    }


class Case:
    """A notebook with a form in its first cell and a naive password widget in its second.

    Args:
        lab: the server.
        page: the browser's page.
        name: of the notebook; its secrets are made from it.
        login: the call that shows the form.
        more: further cells.
        host: as in `Notebook`.
    """

    def __init__(self, lab, page, name, login, *more, host="127.0.0.1"):
        self.lab, self.name = lab, name
        self.secrets = {}
        self.naive, self.literal = made(f"{name}, naive"), made(f"{name}, literal")
        self.copies = {}  # whether the state of widgets can be in it, by name
        self.path = write_notebook(
            lab.root / f"{name}.ipynb",
            f"import kmsdata\n{login}",
            "import ipywidgets\nnaive = ipywidgets.Password(description='Naive')\nnaive",
            f"literal = '{self.literal}'",
            *more,
        )
        self.notebook = Notebook(page, lab, self.path, host)

    def secret(self, name, length=32):
        """Return the secret of a name, which is searched for in the end."""
        return self.secrets.setdefault(name, made(f"{self.name}, {name}", length))

    def type(self, fields=FIELDS, cell=0):
        """Type secrets into the form."""
        for name in fields:
            self.notebook.type(name, self.secret(name), cell)

    def type_naive(self):
        """Type a text into the naive widget."""
        self.notebook.field("Naive").fill("")
        self.notebook.type("Naive", self.naive)
        self.notebook.page.keyboard.press("Tab")

    def type_later(self):
        """Type other secrets and press Connect, as far as the form lets, which notices at any moment."""
        for label, secret in LATER.items():
            field = self.notebook.field(label)
            if field.count() and field.is_enabled():
                field.focus()
                self.notebook.page.keyboard.insert_text(self.secret(secret))
        button = self.notebook.button("Connect")
        if button.count() and button.is_enabled():
            button.dispatch_event("click")

    def keep(self, save=Notebook.save, *, with_widgets=True):
        """Save the notebook and keep a copy of it, since the next save could clean it.

        with_widgets=False: JupyterLab has dropped all widgets, so their state cannot be in it.
        """
        save(self.notebook)
        copy = self.path.with_name(f"{self.name}-{len(self.copies) + 1}.ipynb")
        copy.write_text(self.notebook.saved())
        self.copies[copy.stem] = with_widgets


def search(lab, cases, state, others=()):
    """Search all files for what was typed: nothing of the forms may be there, the control must.

    Return the files by text.
    """
    every = [f"{case.name}.ipynb" for case in cases]
    every += [f"{copy}.ipynb" for case in cases for copy in case.copies]
    for kind in ("html", "markdown", "python"):
        lab.run("-m", "nbconvert", "--log-level=DEBUG", "--to", kind, *every)
    secrets = {text: f"{case.name}: {name}" for case in cases for name, text in case.secrets.items()}
    controls = [text for case in cases for text in (case.naive, case.literal)]
    files = Search([*secrets, *controls]).files(lab.home)
    leaks = {name: files[text] for text, name in secrets.items() if files[text]}

    for case in cases:
        literal, naive = files[case.literal], files[case.naive]
        for name in (case.name, *case.copies):
            assert {f"work/{name}.{suffix}" for suffix in ("ipynb", "html", "md", "py")} <= literal
        assert any("history.sqlite" in file for file in literal)
        assert "server.log" in naive
        kinds = ("ipynb", "html")
        copies = {f"work/{copy}.{kind}" for copy, widgets in case.copies.items() if widgets for kind in kinds}
        assert copies & naive == (copies if state else set()), f"the control of {case.name}"
    for folder in ("profile", *others):
        assert any((lab.home / folder).rglob("*"))
    assert not leaks
    return files


def connected(case, emulator, token=True):
    """Let the emulator know the account that is typed in a case."""
    given = case.secret("Session token") if token else None
    emulator.add_account(case.secret("SecretId"), case.secret("SecretKey"), token=given, uin=emulator.uin)


@STATE_IS_SAVED
def test_kernel_idle(start, emulator, keys, state):
    lab, page = start(settings(state), debug=True)
    login = f"kmsdata.login(endpoint='{emulator.url}', region='ap-guangzhou')"

    # Typed and never submitted, of both services; saved half-way, with the cursor in a field, and after it.
    typed = Case(lab, page, "typed", login)
    typed.notebook.run_all()
    typed.type_naive()
    typed.notebook.type("SecretId", typed.secret("SecretId"))
    typed.notebook.type("SecretKey", typed.secret("SecretKey")[:20])
    typed.keep()
    typed.notebook.paste("SecretKey", f"{typed.secret('SecretKey')} ")
    typed.keep(Notebook.autosave)
    typed.notebook.type("Session token", typed.secret("Session token"))
    typed.keep()
    typed.notebook.button("Local keystore").click()
    typed.notebook.type("Passphrase", typed.secret("Passphrase"))
    page.keyboard.press("Tab")
    typed.keep(Notebook.autosave)
    typed.notebook.button("Tencent Cloud KMS").click()
    typed.keep()

    # Submitted: refused, then connected; with the longest session token there is.
    submitted = Case(lab, page, "submitted", login)
    submitted.secret("Session token", 4096)
    connected(submitted, emulator)
    submitted.notebook.run_all()
    submitted.type_naive()
    for attempt in ("refused", "connected"):
        submitted.notebook.paste("SecretId", submitted.secret("SecretId"))
        submitted.notebook.paste("SecretKey", submitted.secret("SecretKey"))
        submitted.notebook.paste("Session token", submitted.secret("Session token"))
        submitted.keep()
        if attempt == "refused":
            emulator.fail(Fault.error("AuthFailure.SignatureFailure"))
        submitted.notebook.page.keyboard.press("Enter")
        submitted.notebook.status(
            "the SecretKey does not belong to the SecretId" if attempt == "refused" else "Connected to"
        )
        submitted.keep()
    submitted.keep(Notebook.autosave)

    # Two forms, of two regions: one is left filled in, the other is submitted.
    two = Case(lab, page, "two-forms", login, login.replace("guangzhou", "shanghai"))
    connected(two, emulator)
    two.notebook.run_all()
    two.type_naive()
    for field in FIELDS:
        two.notebook.type(field, two.secret(f"{field} of the first form"), cell=0)
    two.keep()
    two.type(cell=3)
    two.keep()
    two.notebook.button("Connect", cell=3).click()
    two.notebook.status("Connected to Tencent Cloud KMS in Shanghai", cell=3)
    two.keep(Notebook.autosave)
    two.notebook.paste("Session token", two.secret("Session token of the first form, later"), cell=0)
    two.keep()

    # A page over plain http, from another host than the user's: what is typed travels unencrypted.
    plain = Case(lab, page, "plain-http", login, host=OTHER_HOST)
    connected(plain, emulator)
    plain.notebook.run_all()
    page.get_by_text("This page is not encrypted").wait_for()
    plain.type_naive()
    plain.type()
    plain.keep()
    plain.notebook.button("Connect").click()
    plain.notebook.status("Connected to")
    plain.keep(Notebook.autosave)

    start.close()
    search(lab, [typed, submitted, two, plain], state)


BUSY = """
import pathlib, time
pathlib.Path('{name}-is-busy').touch()
while not pathlib.Path('{name}-may-end').exists():
    time.sleep(0.1)
"""


@STATE_IS_SAVED
def test_kernel_busy(start, emulator, keys, state):
    lab, page = start(settings(state), debug=True)
    login = f"kmsdata.login(endpoint='{emulator.url}', region='ap-guangzhou')"

    cases = []
    for comms in ("perCommTarget", "disabled"):
        lab.settings("@jupyterlab/apputils-extension:kernels-settings", commsOverSubshells=comms)
        case = Case(lab, page, f"busy-{comms}", login)
        cases.append(case)
        connected(case, emulator)
        case.notebook.run_all()
        case.notebook.start_cell(BUSY.format(name=comms))
        wait_for(lab.root / f"{comms}-is-busy")
        case.type()
        case.type_naive()
        case.keep()
        case.keep(Notebook.autosave)
        case.notebook.button("Connect").click()
        # By default widgets have a thread in the kernel, and ipykernel decides by message whether it is used.
        busy = "The kernel is busy. The form connects when the running cell ends."
        case.notebook.status(busy if comms == "disabled" else re.compile(f"{busy}|Connected to"))
        case.keep()
        case.keep(Notebook.autosave)
        (lab.root / f"{comms}-may-end").touch()
        case.notebook.status("Connected to")
        case.notebook.finish()
        case.keep()

    start.close()
    search(lab, cases, state)


def wait_for(path):
    """Wait until a cell has made this file."""
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not appear"
        time.sleep(0.05)


@STATE_IS_SAVED
def test_kernel_gone(start, emulator, keys, state):
    # A kernel that dies stays dead.
    lab, page = start(settings(state), debug=True, arguments=["--KernelRestarter.restart_limit=0"])
    login = f"kmsdata.login(endpoint='{emulator.url}', region='ap-guangzhou')"
    number = "import os, pathlib\npathlib.Path('{name}').write_text(str(os.getpid()))"

    cases = []
    for name in ("shut-down", "restarted", "dead"):
        case = Case(lab, page, name, login, number.format(name=name))
        cases.append(case)
        case.notebook.run_all()
        case.type_naive()
        case.type()
        case.keep()
        if name == "shut-down":
            case.notebook.shut_down_kernel()
        elif name == "restarted":
            case.notebook.restart_kernel()
        else:
            os.kill(int((lab.root / name).read_text()), signal.SIGKILL)
            case.notebook.wait_for_kernel("disconnected")
        widgets = name != "restarted"  # JupyterLab drops them then
        case.type_later()
        case.type_naive()
        case.keep(with_widgets=widgets)
        case.notebook.status("Run the cell again")
        case.keep(Notebook.autosave, with_widgets=widgets)
        disabled(case)

    # Opened again: with its kernel; without it, by the user who ran it (trusted); and by another user. When
    # JupyterLab saves, it leaves out widgets that it restored from the file.
    case = Case(lab, page, "reopened", login)
    cases.append(case)
    connected(case, emulator)
    case.notebook.run_all()
    case.type_naive()
    case.type()
    case.keep()
    case.notebook = Notebook(page, lab, case.path)
    case.type_naive()
    case.type()
    case.keep()
    case.notebook.button("Connect").click()
    case.notebook.status("Connected to")
    case.keep(Notebook.autosave)
    case.notebook.shut_down_kernel()
    case.keep()
    closed = case.notebook.saved()
    for trusted in (True, False):
        case.path.write_text(closed if trusted else closed.replace("literal = ", "changed = "))
        case.notebook = Notebook(page, lab, case.path)
        if trusted and state:
            case.notebook.status("Run the cell again")
            disabled(case)
            case.type_naive()
        elif not trusted:
            page.get_by_text("run this cell to use the sign-in form").wait_for()
        case.keep(with_widgets=False)
        case.keep(Notebook.autosave, with_widgets=False)
        case.notebook.shut_down_kernel()

    start.close()
    search(lab, cases, state)


def disabled(case):
    """Check that nothing more can be typed into the form, and that nothing typed is left in the page."""
    form = case.notebook.page.locator(".kms-login")
    assert form.locator("input, select, button").count() > 10
    assert form.locator(":is(input, select, button):enabled").count() == 0
    assert set(form.locator("input[type=password]").evaluate_all("all => all.map(one => one.value)")) == {""}


@STATE_IS_SAVED
def test_second_browser(start, browser, emulator, keys, state):
    lab, page = start(settings(state), debug=True, collaboration=True)
    login = f"kmsdata.login(endpoint='{emulator.url}', region='ap-guangzhou')"
    case = Case(lab, page, "shared", login)
    connected(case, emulator)
    case.notebook.run_all()
    other_page = browser(lab.home / "profile-2")
    other = Notebook(other_page, lab, case.path)

    case.type_naive()
    case.type()
    case.keep()
    other.field("SecretKey").wait_for()
    assert [other.field(name).input_value() for name in FIELDS] == ["", "", ""]
    other.paste("SecretKey", case.secret("SecretKey in the second browser"))
    other.save()
    case.keep()
    case.notebook.button("Connect").click()
    case.notebook.status("Connected to")
    other.status("Connected to")
    case.keep()
    other.button("Sign in again").click()
    case.notebook.field("SecretId").wait_for()
    other.paste("SecretKey", case.secret("SecretKey in the second browser, later"))
    case.keep()

    start.close()
    files = search(lab, [case], state, ["profile-2"])
    # The file in which jupyter-collaboration keeps every change of a notebook.
    changes = [name for name in files[case.literal] if name.endswith(".jupyter_ystore.db")]
    assert changes
    assert set(changes) & files[case.naive] == (set(changes) if state else set())
