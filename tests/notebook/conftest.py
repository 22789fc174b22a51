"""Fixtures of the tests in a browser. All tests of this folder need ipywidgets and are marked `newest`."""

import contextlib
import re

import pytest

import kmsdata
from kmsdata.emulator import Emulator


def pytest_ignore_collect(config):
    """Skip the import of these files for `-m "not newest"`, which also runs without ipywidgets."""
    return True if config.option.markexpr == "not newest" else None


@pytest.fixture
def emulator():
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def keys(emulator):
    pair = (emulator.secret_id, emulator.secret_key)
    kms = kmsdata.TencentKMS("ap-guangzhou", credential=pair, endpoint=emulator.url)
    keys = [kms.create_key(alias) for alias in ("payroll", "research-2026", "old")]
    kms.disable_key(keys[-1])
    return keys


@pytest.fixture
def browser(request, tmp_path):
    """Open browsers, each with a profile in a folder; `browser.close` closes all and takes a last picture."""
    from playwright.sync_api import sync_playwright

    from tests.notebook.jupyterlab import ARTEFACTS, CHROMIUM, OTHER_HOST

    assert CHROMIUM is not None, "no browser: apt-get install --no-install-recommends chromium"
    ARTEFACTS.mkdir(exist_ok=True)
    name = re.sub(r"\W+", "-", request.node.name).strip("-")
    with contextlib.ExitStack() as stack:
        driver = stack.enter_context(sync_playwright())

        def browser(profile):
            context = driver.chromium.launch_persistent_context(
                profile,
                executable_path=CHROMIUM,
                headless=True,
                args=[
                    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                    "--disable-background-networking", "--disable-component-update", "--disable-sync",
                    f"--host-resolver-rules=MAP {OTHER_HOST} 127.0.0.1",
                ],
                viewport={"width": 1100, "height": 900},
            )  # fmt: skip
            stack.callback(context.close)
            page = context.pages[0]
            page.set_default_timeout(60_000)
            stack.callback(lambda: page.screenshot(path=ARTEFACTS / f"{name}-at-its-end.png"))
            return page

        browser.close = stack.close
        yield browser


@pytest.fixture
def start(tmp_path, browser):
    """Start a JupyterLab and a browser; `start.close` stops both, so that they write all their files."""
    from tests.notebook.jupyterlab import Lab

    with contextlib.ExitStack() as stack:

        def start(settings=None, **options):
            lab = Lab(tmp_path / "home", settings, **options)
            stack.callback(lab.close)
            stack.callback(browser.close)
            page = browser(lab.home / "profile")
            lab.wait()
            return lab, page

        start.close = stack.close
        yield start
