"""A JupyterLab server with all its files in one folder, and a notebook that is open in a browser."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import kmsdata

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ROOT = Path(kmsdata.__file__).parent.parent
ARTEFACTS = ROOT / "artefacts"
TOKEN = "lab-t0ken"
OTHER_HOST = "lab.example"  # the browser resolves it to 127.0.0.1; pages from it are no secure context

# A command that never answers (for example because JupyterLab asks a question) must not block the tests.
_WITHIN = """Promise.race([
  (%s)().then(answer => ['done', answer]),
  new Promise(done => setTimeout(() => done(['late', null]), 1000 * %d)),
])"""
# The page reports idle before there is a kernel, so this waits for the kernel itself.
_READY = """async () => {
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
_SESSION = "window.jupyterapp.shell.currentWidget.sessionContext"
_EXTENSIONS_OF_COLLABORATION = ["@jupyter/collaboration-extension", "@jupyter/docprovider-extension"]


def free_port():
    """Return a port that no other process listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def write_notebook(path, *cells):
    """Write a notebook; return its path."""
    written = [
        {
            "cell_type": "code", "id": f"cell-{number}", "metadata": {}, "outputs": [],
            "execution_count": None, "source": source,
        }
        for number, source in enumerate(cells)
    ]  # fmt: skip
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    document = {"cells": written, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(document))
    return path


class Server:
    """A process that serves pages at a port and writes its output to a file; all its files are in one folder.

    Args:
        home: the folder.
        arguments: of Python; ``{port}`` is replaced.
        alive: a path that the server answers when it has started.
        environment: additional environment variables.
    """

    def __init__(self, home, arguments, alive, **environment):
        self.home, self.root, self.log = home, home / "work", home / "server.log"
        self.root.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._alive = alive
        jupyter = (
            "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR",
            "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR",
        )  # fmt: skip
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(home),
            "KMSDATA_KEYSTORE": str(home / "keystore" / "keystore.json"),
            **{name: str(home / name.lower()) for name in jupyter},
            **environment,
        }
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, *[argument.format(port=self.port) for argument in arguments]],
                cwd=self.root, env=self.environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def wait(self):
        """Wait until the server answers."""
        end = time.monotonic() + 90
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(self.url + self._alive, timeout=5):  # noqa: S310
                return
            time.sleep(0.1)
        raise AssertionError(f"the server did not start:\n{self.log.read_text()}")

    def close(self):
        """Stop the server; it stops its kernels."""
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def run(self, *arguments):
        """Run a Python program in the server's folder and environment."""
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.root, env=self.environment, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


class Lab(Server):
    """A JupyterLab server.

    Args:
        home: the folder of all its files.
        settings: JupyterLab's settings by plugin, such as ``@jupyterlab/docmanager-extension:plugin``.
        collaboration: whether jupyter-collaboration is enabled: it saves notebooks in its own way.
        debug: whether server and kernels log all that they can.
        arguments: further ones of the command line.
    """

    def __init__(self, home, settings=None, *, collaboration=False, debug=False, arguments=()):
        extensions = {"jupyter_server_ydoc": collaboration, "jupyter_server_fileid": collaboration}
        super().__init__(
            home,
            [
                "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port={port}",
                "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}",
                f"--ServerApp.root_dir={home / 'work'}", "--LabApp.expose_app_in_browser=True",
                f"--ServerApp.local_hostnames={OTHER_HOST}",
                *[f"--ServerApp.jpserver_extensions={name}={on}" for name, on in extensions.items()],
                *(["--debug"] if debug else []),
                *arguments,
            ],
            f"/api/status?token={TOKEN}",
        )  # fmt: skip
        self.settings("@jupyterlab/apputils-extension:notification", fetchNews="false", checkForUpdates=False)
        for plugin, values in (settings or {}).items():
            self.settings(plugin, **values)
        if not collaboration:
            disabled = {"disabledExtensions": dict.fromkeys(_EXTENSIONS_OF_COLLABORATION, True)}
            self._write("JUPYTER_CONFIG_DIR", "labconfig/page_config.json", json.dumps(disabled))
        if debug:
            name = "profile_default/ipython_kernel_config.py"
            self._write("IPYTHONDIR", name, "get_config().IPKernelApp.log_level = 10\n")

    def settings(self, plugin, **values):
        """Change settings of a plugin, for pages that are opened from now on."""
        name = plugin.replace(":", "/") + ".jupyterlab-settings"
        self._write("JUPYTERLAB_SETTINGS_DIR", name, json.dumps(values))

    def _write(self, folder, name, text):
        path = Path(self.environment[folder]) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


class Page:
    """A page with forms: the methods take those of one cell, or of all cells where only one has a form."""

    def __init__(self, page):
        self.page = page

    def cell(self, number):
        """Return the cell's part of the page."""
        return self.page.locator(".jp-Cell").nth(number)

    def field(self, name, cell=None):
        place = self.page if cell is None else self.cell(cell)
        return place.get_by_label(name, exact=True)

    def button(self, name, cell=None):
        place = self.page if cell is None else self.cell(cell)
        return place.get_by_role("button", name=name, exact=True)

    def status(self, text, cell=None):
        """Wait until the form shows this text."""
        place = self.page if cell is None else self.cell(cell)
        place.locator(".kmsdata-status", has_text=text).wait_for()

    def type(self, name, text, cell=None):
        field = self.field(name, cell)
        field.wait_for()  # a hidden field takes no focus, and keys would be commands of JupyterLab
        field.press_sequentially(text)
        assert field.input_value().endswith(text), f"{name} did not get all that was typed"

    def paste(self, name, text, cell=None):
        """Replace the text of a field as by pasting."""
        field = self.field(name, cell)
        field.wait_for()
        field.select_text()
        self.page.keyboard.insert_text(text)
        assert field.input_value() == text, f"{name} did not get all that was pasted"

    def choose(self, name, label, cell=None):
        self.field(name, cell).select_option(label=label)

    def picture(self, name):
        self.page.screenshot(path=ARTEFACTS / f"{name}.png")


class Notebook(Page):
    """A notebook that is open in the browser.

    Args:
        page: the browser's page.
        lab: the server.
        path: the notebook's file.
        host: a name of the server, for a page that is no secure context.
    """

    def __init__(self, page, lab, path, host="127.0.0.1"):
        super().__init__(page)
        self.path = path
        page.goto(f"http://{host}:{lab.port}/lab/tree/{path.name}?token={TOKEN}&reset")
        page.wait_for_function("window.jupyterapp !== undefined", timeout=90_000)
        self.evaluate(_READY, 90)

    def evaluate(self, function, seconds=60):
        state, answer = self.page.evaluate(_WITHIN % (function, seconds))
        if state == "late":
            self.picture("late")
            raise AssertionError(f"JupyterLab did not answer within {seconds} s: {function}")
        return answer

    def command(self, name, arguments="{}"):
        return self.evaluate(f"async () => window.jupyterapp.commands.execute('{name}', {arguments})")

    # Cells and the kernel.

    def run_all(self):
        """Run all cells, to the end or to an error."""
        self.command("notebook:run-all-cells")

    def start_all(self):
        """Start to run all cells, without waiting."""
        self.page.evaluate(
            "() => { window.run = window.jupyterapp.commands.execute('notebook:run-all-cells'); }"
        )

    def start_cell(self, source):
        """Add a cell and start to run it, without waiting."""
        self.page.evaluate(
            """source => {
              const notebook = window.jupyterapp.shell.currentWidget.content;
              notebook.model.sharedModel.addCell({cell_type: 'code', source});
              notebook.activeCellIndex = notebook.widgets.length - 1;
              window.run = window.jupyterapp.commands.execute('notebook:run-cell');
            }""",
            source,
        )

    def finish(self):
        """Wait until the cells that were started have run."""
        self.evaluate("async () => { await window.run; }")

    def restart_kernel(self):
        self.evaluate(f"async () => {_SESSION}.restartKernel()")
        self.evaluate(_READY)

    def shut_down_kernel(self):
        self.evaluate(f"async () => {_SESSION}.shutdown()")

    def wait_for_kernel(self, status):
        """Wait until JupyterLab shows this status of the kernel."""
        self.page.wait_for_function(f"{_SESSION}.kernelDisplayStatus === '{status}'")

    def outputs(self):
        """Return all text below the cells."""
        return self.page.locator(".jp-Cell-outputArea").all_inner_texts()

    # Files.

    def save(self):
        """Save as by Ctrl+S."""
        self.command("docmanager:save")

    def autosave(self):
        """Switch autosave on, add a cell, and wait until JupyterLab has saved it by itself."""
        added = f"autosaved {time.monotonic_ns()}"
        self.page.evaluate(
            "source => window.jupyterapp.shell.currentWidget.content.model.sharedModel"
            ".addCell({cell_type: 'raw', source})",
            added,
        )
        self.command("docmanager:toggle-autosave")
        end = time.monotonic() + 90
        while added not in self.saved():
            assert time.monotonic() < end, "JupyterLab did not save by itself"
            time.sleep(0.05)
        self.command("docmanager:toggle-autosave")

    def saved(self):
        """Return the text of the file, as soon as the server has written all of it."""
        while True:
            text = self.path.read_text()
            with contextlib.suppress(json.JSONDecodeError):
                json.loads(text)
                return text
            time.sleep(0.05)

    # Looks.

    def theme(self, name):
        self.command("apputils:change-theme", f"{{theme: '{name}'}}")
        self.page.wait_for_function(f"document.body.dataset.jpThemeName === '{name}'")
