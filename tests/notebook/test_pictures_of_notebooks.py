"""The tutorials in a real JupyterLab and as HTML: pictures of every page, and everything fits into it."""

import json
import math
import re
import shutil
import struct

import pytest

from tests.notebook.jupyterlab import ARTEFACTS, ROOT, Notebook, write_notebook

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MADE_BY_RUNS = shutil.ignore_patterns("*.parquet", "*.csv", ".*", "tutorial-keys")
THEMES = ("light", "dark")
WIDTHS = {"wide": 1400, "narrow": 900}  # of the window, in pixels
ONE_SCREEN = 990  # pixels that a browser has for the page on a screen of 1920 x 1080
PICTURE = 1800  # pixels: higher pages are several pictures
BARS = 140  # pixels of JupyterLab around the notebook
# What the picture of the form shows, and its description names.
FORM = ("SecretId", "SecretKey", "Session token", "Region", "Tencent Cloud KMS", "Local keystore", "Connect")

pytestmark = [pytest.mark.newest, pytest.mark.browser]

HEIGHT = """() => [...document.querySelectorAll('.jp-Cell')]
  .reduce((sum, cell) => sum + cell.getBoundingClientRect().height, 0)"""
# What is wider than its place and would be cut, or scrolled sideways.
TOO_WIDE = """() => [...document.querySelectorAll(
    '.jp-OutputArea-output, .jp-RenderedHTMLCommon, .jp-RenderedText pre, .cm-scroller, .highlight pre')]
  .filter(shown => shown.scrollWidth > shown.clientWidth + 1)
  .map(shown => `${shown.scrollWidth} of ${shown.clientWidth} px: ${shown.innerText.slice(0, 80)}`)"""
NOT_LOADED = """() => [...document.images].filter(image => !(image.complete && image.naturalWidth))
  .map(image => `not loaded: ${image.src.slice(0, 80)}`)"""


def size(png):
    """Return width and height of a PNG file, in pixels."""
    return struct.unpack(">II", png.read_bytes()[16:24])


def pictures(page, name, width, high):
    """Take pictures of the whole page; return what does not fit into it."""
    page.set_viewport_size({"width": width, "height": high})
    page.wait_for_timeout(300)
    for number, top in enumerate(range(0, high, PICTURE), 1):
        clip = {"x": 0, "y": top, "width": width, "height": min(PICTURE, high - top)}
        page.screenshot(path=ARTEFACTS / f"{name}-{number}.png", clip=clip)
    return [f"{name}: {what}" for what in page.evaluate(TOO_WIDE) + page.evaluate(NOT_LOADED)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_reads_well(start, path):
    # Without windowing the page contains all cells, not only those that are in view.
    lab, page = start({"@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}})
    shutil.copytree(ROOT / "notebooks", lab.root, dirs_exist_ok=True, ignore=MADE_BY_RUNS)
    copy = lab.root / path.name
    notebook = Notebook(page, lab, copy)
    notebook.command("application:toggle-left-area")
    notebook.run_all()
    assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']").all_inner_texts() == []
    bad, high_at = [], {}
    for size, width in WIDTHS.items():
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(300)
        high = BARS + math.ceil(page.evaluate(HEIGHT))
        high_at[size] = high
        page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
        for theme in THEMES:
            notebook.theme(f"JupyterLab {theme.title()}")
            bad += pictures(page, f"lab-{path.stem}-{size}-{theme}", width, high)
    notebook.save()

    page.route("https://**", lambda route: route.abort())  # the page needs no network
    for theme in THEMES:
        lab.run("-m", "nbconvert", "--to", "html", "--theme", theme, "--output", theme, copy.name)
        page.goto((lab.root / f"{theme}.html").as_uri())
        for size, width in WIDTHS.items():
            page.set_viewport_size({"width": width, "height": 900})
            high = page.evaluate("document.documentElement.scrollHeight")
            bad += pictures(page, f"html-{path.stem}-{size}-{theme}", width, high)
    assert bad == []
    if path.stem == "00_cheat_sheet":
        assert high_at["wide"] < ONE_SCREEN


def test_the_picture_of_the_form(start):
    """Make the picture that tutorial 02 shows.

    To replace it, run this on a machine with a Chinese font, look at it, and copy it:
    ``cp artefacts/login_form.png notebooks/``.
    """
    lab, page = start()
    path = lab.root / "form.ipynb"
    write_notebook(path, "import kmsdata\nkmsdata.login(region='ap-guangzhou')")
    notebook = Notebook(page, lab, path)
    notebook.command("application:toggle-left-area")
    page.set_viewport_size({"width": 900, "height": 900})
    notebook.run_all()
    page.locator(".kmsdata-status").wait_for()
    made = ARTEFACTS / "login_form.png"
    page.locator(".kms-login").screenshot(path=made)

    text = json.loads((ROOT / "notebooks" / "02_tencent_kms.ipynb").read_text())
    (described,) = re.findall(
        r"!\[([^]]*)\]\(login_form\.png\)", "".join(line for cell in text["cells"] for line in cell["source"])
    )
    for name in FORM:
        assert name in described
        assert notebook.field(name).or_(notebook.button(name)).is_visible()
    shown = ROOT / "notebooks" / "login_form.png"
    assert shown.stat().st_size < 80_000
    assert size(shown) == pytest.approx(size(made), rel=0.1), "the form has changed: replace the picture"
