"""No secret that is typed into the form is in any file, in each state of a real JupyterLab and its kernel.

A naive password widget below the form is the control: the same search finds what is typed into it, in every
copy of a notebook that was saved with the state of widgets. All logs are at their most detailed level.
"""

import os
import signal
import time

import pytest

from kmsdata.emulator import Fault
from tests.notebook.jupyterlab import Notebook
from tests.notebook.secret_search import Search, made

pytestmark = [pytest.mark.newest, pytest.mark.browser]

STATE_IS_SAVED = pytest.mark.parametrize("state", [True, False], ids=["state saved", "state not saved"])
FIELDS = ("SecretId", "SecretKey", "Session token")
LATER = {"SecretKey": "SecretKey, typed later", "Session token": "Session token, typed later"}


def settings(state, **more):
    return {
        "@jupyter-widgets/jupyterlab-manager:plugin": {"saveState": state},
        "@jupyterlab/docmanager-extension:plugin": {"autosaveInterval": 1},
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
        self.copies = []
        self.path = lab.notebook(
            name,
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
        """Type other secrets, where the form still takes them, and press Connect; clear the naive widget."""
        for label, secret in LATER.items():
            field = self.notebook.field(label)
            if field.count() and field.is_enabled():
                self.notebook.paste(label, self.secret(secret))
        button = self.notebook.button("Connect")
        if button.count() and button.is_enabled():
            button.click()

    def keep(self, save=Notebook.save):
        """Save the notebook and keep a copy of it, since the next save could clean it."""
        save(self.notebook)
        copy = self.path.with_name(f"{self.name}-{len(self.copies) + 1}.ipynb")
        copy.write_text(self.notebook.saved())
        self.copies.append(copy.stem)


def search(lab, cases, state, others=()):
    """Search all files for what was typed: nothing of the forms may be there, the control must."""
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
        saved = {f"work/{copy}.{suffix}" for copy in case.copies for suffix in ("ipynb", "html")}
        saved.add(f"work/.ipynb_checkpoints/{case.name}-checkpoint.ipynb")
        assert naive & saved == (saved if state else set()), f"the control of {case.name}"
    for folder in ("profile", *others):
        assert any((lab.home / folder).rglob("*"))
    assert not leaks


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

    start.close()
    search(lab, [typed, submitted], state)


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
    for name in ("shut-down", "restarted", "dead", "reopened"):
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
        elif name == "dead":
            os.kill(int((lab.root / name).read_text()), signal.SIGKILL)
            case.notebook.wait_for_kernel("dead")
        else:
            case.notebook = Notebook(page, lab, case.path)
        case.keep()
        case.type_naive()
        case.type_later()
        case.keep()
        case.keep(Notebook.autosave)

    # Opened without a kernel, by the user who ran it (JupyterLab trusts it) and by another one (it does not).
    for trusted in (True, False):
        case.notebook.shut_down_kernel()
        if not trusted:
            text = case.path.read_text().replace("literal = ", "changed = ")
            case.path.write_text(text)
        case.notebook = Notebook(page, lab, case.path)
        print(
            "TRUSTED",
            trusted,
            page.locator(".jp-Notebook-TrustedStatus, .jp-StatusItem-trust").count(),
            case.notebook.field("Naive").count(),
            case.notebook.outputs(),
        )
        case.notebook.picture(f"reopened-{trusted}-{state}")
        case.keep()
        if case.notebook.field("Naive").count():
            case.type_naive()
        case.type_later()
        case.keep()
        case.keep(Notebook.autosave)

    start.close()
    search(lab, cases, state)
