"""The form in a real JupyterLab in a real browser: how it looks, how it waits, what stays behind."""

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import kmsdata
from kmsdata.emulator import Emulator

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.newest,
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="no browser: apt-get install --no-install-recommends chromium",
    ),
]

ROOT = Path(kmsdata.__file__).parent.parent
ARTEFACTS = ROOT / "artefacts"
REGION = "ap-guangzhou"
TOKEN = "lab-t0ken"

# The page says that it is idle before there is a kernel: this waits for the kernel itself.
READY = """async () => {
  const app = window.jupyterapp;
  await app.restored;
  for (let i = 0; i < 300; i++) {
    const panel = app.shell.currentWidget;
    const session = panel && panel.context && panel.context.sessionContext;
    if (session) {
      await panel.context.ready; await panel.revealed; await session.ready;
      const kernel = session.session && session.session.kernel;
      if (kernel && kernel.status === 'idle' && kernel.connectionStatus === 'connected') return true;
    }
    await new Promise(done => setTimeout(done, 100));
  }
  return false;
}"""
RUN_ALL = """async seconds => Promise.race([
  window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => 'ran'),
  new Promise(done => setTimeout(() => done('late'), 1000 * seconds)),
])"""


class Lab:
    """A JupyterLab server whose every file lies below one folder."""

    def __init__(self, home, environment):
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
        self.settings = Path(folders["JUPYTERLAB_SETTINGS_DIR"])
        self.set("apputils-extension", "notification", fetchNews="false", checkForUpdates=False)
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

    def set(self, package, plugin, scope="@jupyterlab", **values):
        """Settings of a JupyterLab extension."""
        path = self.settings / scope / package / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))

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
        """A notebook to be, as a path."""
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
        assert page.evaluate(READY)

    def run_all(self, seconds=30):
        return self.page.evaluate(RUN_ALL, seconds)

    def field(self, name):
        return self.page.get_by_label(name, exact=True)

    def button(self, name):
        return self.page.get_by_role("button", name=name, exact=True)

    def status(self, text, seconds=20):
        """Wait until the form says it."""
        line = self.page.locator(".kmsdata-status", has_text=text)
        line.wait_for(timeout=1000 * seconds)
        return line

    def type(self, name, text):
        self.field(name).press_sequentially(text)

    def choose(self, name, label):
        self.field(name).select_option(label=label.replace(" ", "\xa0"))  # as ipywidgets writes them

    def save(self):
        self.page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")

    def outputs(self):
        """All that stands below the cells."""
        return self.page.locator(".jp-Cell-outputArea").all_inner_texts()

    def picture(self, name):
        ARTEFACTS.mkdir(exist_ok=True)
        self.page.screenshot(path=ARTEFACTS / f"{name}.png")
