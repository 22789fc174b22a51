"""The form in a real JupyterLab and browser: its display, how it waits, and that no secret is stored."""

import base64
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

import kmsdata
from kmsdata.emulator import Emulator, Fault

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.newest

ROOT = Path(kmsdata.__file__).parent.parent
ARTEFACTS = ROOT / "artefacts"
REGION = "ap-guangzhou"
TOKEN = "lab-t0ken"

# A command that never answers (for example because JupyterLab asks a question) must not block the tests.
WITHIN = """Promise.race([
  (%s)().then(answer => ['done', answer]),
  new Promise(done => setTimeout(() => done(['late', null]), 1000 * %d)),
])"""
# The page reports idle before there is a kernel, so this waits for the kernel itself.
READY = """async () => {
  const app = window.jupyterapp;
  await app.restored;
  for (;;) {
    const panel = app.shell.currentWidget;
    const session = panel && panel.context && panel.context.sessionContext;
    if (session) {
      await panel.context.ready; await panel.revealed; await session.ready;
      const kernel = session.session && session.session.kernel;
      if (kernel && kernel.status === 'idle' && kernel.connectionStatus === 'connected') return;
    }
    await new Promise(done => setTimeout(done, 100));
  }
}"""


class Lab:
    """A JupyterLab server that stores all its files in one folder."""

    def __init__(self, home, settings, environment):
        self.home, self.root = home, home / "work"
        self.root.mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        folders = {
            name: str(home / name.lower())
            for name in (
                "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR",
                "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR",
            )
        }  # fmt: skip
        quiet = {"fetchNews": "false", "checkForUpdates": False}
        for scope, package, plugin, values in [
            ("@jupyterlab", "apputils-extension", "notification", quiet),
            *settings,
        ]:
            folder = Path(folders["JUPYTERLAB_SETTINGS_DIR"]) / scope / package
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{plugin}.jupyterlab-settings").write_text(json.dumps(values))
        self.log = home / "server.log"
        with self.log.open("w") as log:
            self.server = subprocess.Popen(
                [
                    sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
                    f"--port={self.port}", "--ServerApp.port_retries=0",
                    f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={self.root}",
                    "--LabApp.expose_app_in_browser=True",
                ],
                cwd=self.root,
                env={
                    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                    "PYTHONPATH": str(ROOT),
                    "HOME": str(home),
                    "KMSDATA_KEYSTORE": str(home / "keystore" / "keystore.json"),
                    **folders,
                    **environment,
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )  # fmt: skip

    def wait(self):
        end = time.monotonic() + 60
        while time.monotonic() < end and self.server.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/api/status?token={TOKEN}", timeout=2):  # noqa: S310
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(f"JupyterLab did not start:\n{self.log.read_text()}")

    def close(self):
        self.server.terminate()
        try:
            self.server.wait(20)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.wait()

    def notebook(self, name, *cells):
        """Write a notebook; return its path."""
        path = self.root / f"{name}.ipynb"
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        written = [
            {
                "cell_type": "code", "id": f"cell-{number}", "metadata": {}, "outputs": [],
                "execution_count": None, "source": source,
            }
            for number, source in enumerate(cells)
        ]  # fmt: skip
        document = {"cells": written, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
        path.write_text(json.dumps(document))
        return path


class Notebook:
    """A notebook that is open in the browser."""

    def __init__(self, page, lab, path):
        self.page, self.path = page, path
        page.goto(f"{lab.url}/lab/tree/{path.name}?token={TOKEN}&reset")
        page.wait_for_function("window.jupyterapp !== undefined", timeout=60_000)
        self.evaluate(READY)

    def evaluate(self, function, seconds=60):
        state, answer = self.page.evaluate(WITHIN % (function, seconds))
        if state == "late":
            self.picture("late")
            raise AssertionError(f"JupyterLab did not answer within {seconds} s: {function}")
        return answer

    def command(self, name, arguments="{}"):
        return self.evaluate(f"async () => window.jupyterapp.commands.execute('{name}', {arguments})")

    def run_all(self):
        """Run all cells, to the end or to an error."""
        self.command("notebook:run-all-cells")

    def field(self, name):
        return self.page.get_by_label(name, exact=True)

    def button(self, name):
        return self.page.get_by_role("button", name=name, exact=True)

    def status(self, text):
        """Wait until the form shows this text."""
        self.page.locator(".kmsdata-status", has_text=text).wait_for()

    def type(self, name, text):
        field = self.field(name)
        field.wait_for()  # a hidden field takes no focus, and keys would be commands of JupyterLab
        field.press_sequentially(text)
        assert field.input_value().endswith(text), f"{name} did not get all that was typed"

    def choose(self, name, label):
        self.field(name).select_option(label=label)

    def save(self):
        self.command("docmanager:save")

    def autosave(self):
        """Wait for JupyterLab's autosave, which needs a change to a cell."""
        before = self.path.stat().st_mtime_ns
        self.command("notebook:insert-cell-below")
        end = time.monotonic() + 90
        while self.path.stat().st_mtime_ns == before:
            assert time.monotonic() < end, "JupyterLab did not save by itself"
            time.sleep(0.05)
        time.sleep(0.3)  # until the file is complete

    def saved(self):
        return self.path.read_text()

    def outputs(self):
        """Return all text below the cells."""
        return self.page.locator(".jp-Cell-outputArea").all_inner_texts()

    def theme(self, name):
        self.command("apputils:change-theme", f"{{theme: '{name}'}}")
        self.page.wait_for_function(f"document.body.dataset.jpThemeName === '{name}'")

    def picture(self, name):
        self.page.screenshot(path=ARTEFACTS / f"{name}.png")


@pytest.fixture
def emulator():
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def keys(emulator):
    pair = (emulator.secret_id, emulator.secret_key)
    kms = kmsdata.TencentKMS(REGION, credential=pair, endpoint=emulator.url)
    keys = [kms.create_key(alias) for alias in ("payroll", "research-2026", "old")]
    kms.disable_key(keys[-1])
    return keys


@pytest.fixture
def start(tmp_path, request):
    """Start a JupyterLab, and the browser that looks at it."""
    if CHROMIUM is None:
        pytest.skip("no browser: apt-get install --no-install-recommends chromium")
    from playwright.sync_api import sync_playwright

    ARTEFACTS.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:

        def start(settings=(), **environment):
            lab = Lab(tmp_path / "home", settings, environment)
            stack.callback(lab.close)
            driver = stack.enter_context(sync_playwright())
            browser = driver.chromium.launch_persistent_context(
                lab.home / "profile",
                executable_path=CHROMIUM,
                headless=True,
                args=[
                    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                    "--disable-background-networking", "--disable-component-update", "--disable-sync",
                ],
                viewport={"width": 1100, "height": 900},
            )  # fmt: skip
            stack.callback(browser.close)
            lab.wait()
            page = browser.pages[0]
            page.set_default_timeout(60_000)
            name = re.sub(r"\W+", "-", request.node.name).strip("-")
            stack.callback(lambda: page.screenshot(path=ARTEFACTS / f"{name}-at-its-end.png"))
            return lab, page

        start.close = stack.close
        yield start


def login(emulator):
    return f"import kmsdata, pandas as pd\nkmsdata.login(endpoint='{emulator.url}')"


@pytest.mark.browser
def test_the_form(start, emulator, keys):
    lab, page = start()
    path = lab.notebook(
        "form",
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
        "  (%tb Verbose shows the traceback)",
    ]
    assert rest == ""
    notebook.picture("form-empty")
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
    notebook.picture("form-error")

    looked_at = threading.Event()
    emulator.fail(Fault.change(TotalCount=lambda total: total if looked_at.wait(60) else 0))
    notebook.type("SecretKey", emulator.secret_key)
    notebook.page.keyboard.press("Enter")
    notebook.status("Connecting to")
    notebook.picture("form-connecting")
    looked_at.set()
    notebook.status("Connected to Tencent Cloud KMS in Guangzhou 广州 (ap-guangzhou)")
    options = notebook.field("Key").locator("option").all_inner_texts()
    assert options == ["payroll", "research-2026", "old · Disabled: cannot be used", "another …"]
    notebook.picture("form-connected")
    notebook.button("Use this key").click()
    page.locator(".kms-done", has_text="payroll").wait_for()
    notebook.run_all()  # nothing has to be typed again
    assert notebook.outputs()[1:] == ["", "decrypted [1, 2]\n"]
    notebook.picture("form-chosen")
    notebook.theme("JupyterLab Dark")
    notebook.picture("form-dark-chosen")
    notebook.button("change").click()
    notebook.status("Enter an API key")
    notebook.button("Connect").click()
    notebook.status("Enter the SecretId")
    notebook.picture("form-dark-error")
    notebook.button("Local keystore").click()
    notebook.field("Passphrase").wait_for()
    notebook.picture("form-dark-local")


@pytest.mark.browser
def test_await_holds_up_the_run(start, emulator, keys):
    lab, page = start()
    path = lab.notebook(
        "await",
        f"import kmsdata, pandas as pd\n"
        f"kms = await kmsdata.login(region='{REGION}', endpoint='{emulator.url}')",
        "print(kms, pd.DataFrame({'a': [1]}).kms.encrypt('a').kms.decrypt()['a'].tolist())",
    )
    notebook = Notebook(page, lab, path)
    page.evaluate("() => { window.all = window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
    notebook.type("SecretId", emulator.secret_id)
    notebook.type("SecretKey", emulator.secret_key)
    notebook.button("Connect").click()
    notebook.status("Connected to")
    assert notebook.outputs()[1] == ""
    notebook.button("Use this key").click()
    notebook.evaluate("async () => { await window.all; }")
    assert notebook.outputs()[1].strip() == f"<TencentKMS {REGION} at {emulator.url}> [1]"


# What is stored.

SECRET_ID, SECRET_KEY = "AKIDkQ7vT2mX9cLr4zBn8KpWs3YdJg6F", "hV7cX2mQ9tLr4zBn8KpWs3YdJg6FaE1u"
SESSION_TOKEN = "tNw5RfKq8ZbVx3MhYc7LpDj2GsTa9EuX4oWi6Cn1"
PASSPHRASE = "correct-horse-battery-staple-9471"
NAIVE, LITERAL = "nAiVe-widget-value-5582013", "literal-in-a-cell-7714260"


def forms(secret):
    """Yield the forms a secret may have in a file: its start and end, as text, in UTF-16 and in base64."""
    for part in (secret[:16], secret[-16:]):
        yield part.encode()
        yield part.encode("utf-16-le")
        for shift in range(3):  # bytes that may precede it
            text = base64.b64encode(bytes(shift) + part.encode()).decode()
            yield text[(0, 2, 3)[shift] : len(part.encode()) // 3 * 4 - 2].encode()


def found(secret, folder):
    """Return the files below a folder that contain the secret."""
    wanted = list(forms(secret))
    holding = set()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            if any(form in content for form in wanted):
                holding.add(str(path.relative_to(folder)))
    return holding


def test_the_search_finds_what_it_looks_for(tmp_path):
    for number, text in enumerate(
        [
            SECRET_KEY.encode(), f"x{SECRET_KEY}".encode("utf-16-le"), base64.b64encode(SECRET_KEY.encode()),
            base64.b64encode(f"a{SECRET_KEY}".encode()), base64.b64encode(f"ab{SECRET_KEY}, more".encode()),
            SECRET_KEY[:20].encode(), SECRET_KEY[9:].encode(),
        ]
    ):  # fmt: skip
        (tmp_path / str(number)).write_bytes(b"before " + text + b" after")
    assert found(SECRET_KEY, tmp_path) == {str(number) for number in range(7)}
    assert found(SESSION_TOKEN, tmp_path) == set()


WAYS = {  # of saving, and their settings
    "by hand": ({"autosave": False}, False),
    "by hand, with widget state": ({"autosave": False}, True),
    "by itself, with widget state": ({"autosaveInterval": 1}, True),
}


@pytest.mark.browser
@pytest.mark.parametrize("way", WAYS)
def test_nothing_typed_stays_behind(start, emulator, way):
    emulator.add_account(SECRET_ID, SECRET_KEY, token=SESSION_TOKEN, uin=emulator.uin)
    saving, with_state = WAYS[way]
    lab, page = start(
        [
            ("@jupyterlab", "docmanager-extension", "plugin", saving),
            ("@jupyter-widgets", "jupyterlab-manager", "plugin", {"saveState": with_state}),
        ]
    )
    path = lab.notebook(
        "leaks",
        login(emulator),
        "import ipywidgets\nnaive = ipywidgets.Password(description='Naive')\nnaive",
        f"control = '{LITERAL}'",
    )
    notebook = Notebook(page, lab, path)
    notebook.run_all()
    save = notebook.save if "by hand" in way else notebook.autosave
    # Type, and save when half of it is typed.
    notebook.type("SecretId", SECRET_ID)
    notebook.type("SecretKey", SECRET_KEY[:20])
    save()
    # Paste over it, with a blank; save with the cursor in the field, and after it left.
    notebook.field("SecretKey").select_text()
    page.keyboard.insert_text(f"{SECRET_KEY} ")
    save()
    notebook.type("Session token", SESSION_TOKEN)
    # Type without submitting.
    notebook.button("Local keystore").click()
    notebook.type("Passphrase", PASSPHRASE)
    notebook.button("Tencent Cloud KMS").click()
    notebook.field("SecretId").wait_for()
    notebook.type("Naive", NAIVE)
    page.keyboard.press("Tab")
    save()
    shutil.copy(path, lab.root / "half-way.ipynb")
    # Connect: the first attempt is refused, the second succeeds.
    notebook.choose("Region", "Guangzhou 广州 (ap-guangzhou)")
    emulator.fail(Fault.error("AuthFailure.SignatureFailure"))
    notebook.button("Connect").click()
    notebook.status("the SecretKey does not belong to the SecretId")
    save()
    notebook.button("Connect").click()
    notebook.status("Connected to")
    save()
    assert "run this cell to use the sign-in form" in notebook.saved()
    assert ("Connected to" in notebook.saved()) is with_state
    notebooks = [path.name for path in lab.root.glob("*.ipynb")]
    done = subprocess.run(
        [sys.executable, "-m", "nbconvert", "--to", "html", *notebooks],
        cwd=lab.root, capture_output=True, check=False, env={**os.environ, "HOME": str(lab.home)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    start.close()  # so that browser, kernel and server write all their files

    for secret in (SECRET_ID, SECRET_KEY, SESSION_TOKEN, PASSPHRASE):
        assert found(secret, lab.home) == set()
    # The control: the same search finds the careless texts.
    careless = {"work/half-way.ipynb", "work/half-way.html"}
    if "by hand" in way:  # JupyterLab writes a checkpoint
        careless.add("work/.ipynb_checkpoints/leaks-checkpoint.ipynb")
    there = found(NAIVE, lab.home)
    assert careless & there == (careless if with_state else set())
    there = found(LITERAL, lab.home)
    assert {"work/leaks.ipynb", "work/leaks.html"} <= there
    assert any("history.sqlite" in name for name in there)
    assert (lab.home / "server.log").stat().st_size > 0
    assert any((lab.home / "profile").rglob("*"))
