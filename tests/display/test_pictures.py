"""What panels, reports and notices look like in a browser: pictures, contrast, width, and fonts of the marks.

The pictures are in the folder artefacts/.
"""

import html
import json
import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

import kmsdata
from kmsdata.display.progress import Progress
from kmsdata.emulator import Emulator
from kmsdata.keys.local.keystore import _created

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARTEFACTS = Path(kmsdata.__file__).parent.parent / "artefacts"
MARKS = "●○×!?"  # in the fonts of every system: the list WGL4

pytestmark = [pytest.mark.newest, pytest.mark.browser]


@pytest.fixture
def shown(titanic, tmp_path, monkeypatch):
    """Everything that kmsdata shows as HTML, by name."""
    for name in list(os.environ):
        if name.startswith(("TENCENTCLOUD_", "KMSDATA_TENCENT_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    store = kmsdata.LocalKeystore()
    for name in ("demo", "payroll", "old"):
        store.create_key(name, quiet=True)
    store.disable_key("local://old")
    enc = titanic.kms.encrypt(
        ["name", "age"],
        deterministic=["ticket"],
        key=["local://demo", "local://payroll"],
        context={"team": "hr"},
    )
    enc.kms.to_parquet("titanic.parquet")
    pages = Pages()
    for name, thing in {
        "a plain frame": titanic.kms,
        "an encrypted frame": enc.kms,
        "a series": enc["ticket"].kms,
        "a plain series": titanic["age"].kms,
        "cells without their header": enc.astype(str).kms,
        "a data key": kmsdata.data_key(enc),
        "keys of a keystore": store.list_keys(),
        "no keys": kmsdata.LocalKeystore(tmp_path / "none" / "keystore.json").list_keys(),
        "usage": kmsdata.usage(),
        "a keyset": kmsdata.export_keyset(enc, "ticket"),
        "a new key": _created("local://payrol", str(store.path), sealed=False, others=["payroll"]),
        "an inspection": enc.kms.inspect(),
        "a verification": kmsdata.verify(enc, encrypted=["name", "sex", "nmae"]),
        "a file that was encrypted": kmsdata.encrypt_parquet(
            Path(kmsdata.__file__).parent / "data" / "titanic.csv", "t.parquet", ["name", "home.dest"],
            key="local://demo",
        ),
        "a dry run": kmsdata.encrypt_parquet(
            Path(kmsdata.__file__).parent / "data" / "titanic.csv", "u.parquet", ["name"], key="local://demo",
            dry_run=True,
        ),
        "a rewrap": kmsdata.rewrap("titanic.parquet", "local://payroll", add=True, dry_run=True),
    }.items():  # fmt: skip
        pages[name] = thing
    wide = pd.DataFrame({f"a_column_with_quite_a_long_name_{number}": ["x"] for number in range(200)})
    pages["200 columns"] = wide.kms.encrypt(regex="[05]$", key="local://demo").kms
    two = pd.concat([enc[["name"]], titanic[["sex"]].kms.encrypt("sex", key="local://old2")], axis=1)
    pages["two data keys"] = two.kms
    store.disable_key("local://old2")
    pages["a key that is disabled"] = two[["sex"]].kms
    kmsdata.use("tencent-kms://ap-guangzhou/any")
    pages["a key that the session does not allow"] = enc.kms
    with Emulator() as emulator:
        kms = kmsdata.TencentKMS(
            "ap-guangzhou", credential=(emulator.secret_id, emulator.secret_key), endpoint=emulator.url
        )
        key = kms.create_key("payroll")
        kms.disable_key(kms.create_key("old"))
        kmsdata.use(kms)
        cloud = titanic.kms.encrypt(["name"], key=key)
        pages["keys of Tencent Cloud"] = kms.list_keys()
        pages["a frame whose key is in the cloud"] = cloud.kms
        cloud.kms.decrypt()
        pages["a frame whose data key is in the cache"] = cloud.kms
        kmsdata.use(kmsdata.TencentKMS("ap-guangzhou", endpoint=emulator.url))
        pages["a frame before the sign in"] = cloud.kms
    with Progress("encrypt", 8, "rows", wanted=False) as bar:
        bar.step(3)
        pages["progress"] = bar
    return pages


class Pages(dict):
    """The HTML of what is added, at that moment."""

    def __setitem__(self, name, thing):
        super().__setitem__(name, thing._repr_html_())


def in_notebook(pages, theme):
    """Return the pages as a notebook with the style sheets of JupyterLab."""
    import nbformat
    from nbconvert import HTMLExporter

    cells = []
    for name, page in pages.items():
        output = nbformat.v4.new_output("display_data", {"text/html": page})
        cells.append(nbformat.v4.new_code_cell(f"# {name}", outputs=[output]))
    exporter = HTMLExporter(theme=theme, template_name="lab")
    text, _ = exporter.from_notebook_node(nbformat.v4.new_notebook(cells=cells))
    return re.sub(r"<script[^>]*src=[^>]*></script>", "", text)  # of other servers


def without_styles(pages, theme):
    """Return the pages as GitHub shows them: no style of kmsdata remains. The font is a plain one."""
    page, text = {"light": ("#ffffff", "#1f2328"), "dark": ("#0d1117", "#f0f6fc")}[theme]
    body = "".join(
        f"<p>{html.escape(name)}</p>" + re.sub(r' style="[^"]*"', "", content)
        for name, content in pages.items()
    )
    return (
        f"<style>body {{ background: {page}; color: {text}; font-family: 'Liberation Sans', Arial }}"
        f"code {{ font-family: 'Liberation Mono', monospace }}</style><body class=bare>{body}</body>"
    )


# The contrast of each text with what is behind it, as WCAG 2.2 computes it; and texts that stick out.
MEASURE = """() => {
  const parse = text => {
    const parts = text.match(/[\\d.]+/g).map(Number);
    return parts.length === 3 ? [...parts, 1] : parts;
  };
  const over = (top, below) => top.slice(0, 3).map((c, i) => c * top[3] + below[i] * (1 - top[3])).concat(1);
  const channel = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const behind = element => {
    const layers = [];
    for (let at = element; at; at = at.parentElement)
      layers.push(parse(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || !element.checkVisibility() || ['STYLE', 'SCRIPT'].includes(element.tagName)) continue;
    if (!element.closest('.jp-RenderedHTML, body.bare')) continue;
    const back = behind(element), front = over(parse(getComputedStyle(element).color), back);
    const [low, high] = [light(back), light(front)].sort((a, b) => a - b);
    found.push([text, (high + 0.05) / (low + 0.05)]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def look(browser, page, name, theme, width):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=theme, offline=True)
    tab = context.new_page()
    tab.set_content(page)
    ARTEFACTS.mkdir(exist_ok=True)
    tab.screenshot(path=ARTEFACTS / f"{name}-{theme}-{width}.png", full_page=True)
    return context, tab


@pytest.mark.parametrize("width", [900, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_in_a_notebook(browser, shown, theme, width):
    context, tab = look(browser, in_notebook(shown, theme), "panels", theme, width)
    contrasts = tab.evaluate(MEASURE)
    assert len(contrasts) > 300
    assert [(text, ratio) for text, ratio in contrasts if ratio < 4.5] == []
    outside = """() => [...document.querySelectorAll('.jp-OutputArea-output')]
        .filter(output => output.scrollWidth > output.clientWidth).map(output => output.innerText)"""
    assert tab.evaluate(outside) == []
    context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_without_styles_and_with_a_plain_font(browser, shown, theme):
    context, tab = look(browser, without_styles(shown, theme), "panels-without-styles", theme, 900)
    contrasts = tab.evaluate(MEASURE)
    assert len(contrasts) > 300
    assert min(ratio for _, ratio in contrasts) >= 4.5
    used = {letter for page in shown.values() for letter in html.unescape(page) if not letter.isascii()}
    assert used - set("…") <= set(MARKS)  # "…" shortens a SecretId
    context.close()


def test_the_plain_font_has_the_marks(browser):
    marks = "".join(f"<i>{mark}</i>" for mark in f"{MARKS}…\N{CHECK MARK}")
    context = browser.new_context()
    tab = context.new_page()
    tab.set_content(f"<style>i {{ font-family: 'Liberation Sans', 'DejaVu Sans' }}</style>{marks}")
    client = context.new_cdp_session(tab)
    client.send("DOM.enable")
    client.send("CSS.enable")
    root = client.send("DOM.getDocument")["root"]["nodeId"]
    nodes = client.send("DOM.querySelectorAll", {"nodeId": root, "selector": "i"})["nodeIds"]
    fonts = [
        client.send("CSS.getPlatformFontsForNode", {"nodeId": node})["fonts"][0]["familyName"]
        for node in nodes
    ]
    assert set(fonts[:-1]) == {"Liberation Sans"}
    assert fonts[-1] == "DejaVu Sans"  # it has no check mark: proves the test
    context.close()


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_in_a_notebook_that_is_reopened_and_not_trusted(browser, shown, theme, tmp_path):
    from tests.notebook.jupyterlab import Lab, Notebook, write_notebook

    lab = Lab(
        tmp_path / "lab",
        {"@jupyterlab/apputils-extension:themes": {"theme": f"JupyterLab {theme.title()}"}},
    )
    try:
        lab.wait()
        path = write_notebook(lab.root / "saved.ipynb", *(f"# {name}" for name in shown))
        document = json.loads(path.read_text())
        for cell, page in zip(document["cells"], shown.values(), strict=True):
            data = {"text/html": page, "text/plain": ""}
            cell["outputs"] = [{"output_type": "display_data", "data": data, "metadata": {}}]
        path.write_text(json.dumps(document))
        context = browser.new_context(viewport={"width": 1280, "height": 8000})
        page = context.new_page()
        Notebook(page, lab, path)
        page.get_by_text("38% of 8 rows").wait_for()
        page.screenshot(path=ARTEFACTS / f"panels-not-trusted-{theme}.png")
        contrasts = page.evaluate(MEASURE)
        assert len(contrasts) > 300
        assert [(text, ratio) for text, ratio in contrasts if ratio < 4.5] == []
        pills = page.get_by_text("● encrypted", exact=True)
        colours = pills.first.evaluate(
            "e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]"
        )
        assert colours == ["rgb(11, 79, 38)", "rgb(215, 240, 221)"]
        context.close()
    finally:
        lab.close()
