"""The form in Voila and in marimo: it connects, and no secret that is typed is in any file."""

import pytest

from tests.notebook.jupyterlab import Page, Server, write_notebook
from tests.notebook.secret_search import Search, made

pytestmark = [pytest.mark.newest, pytest.mark.browser]

FIELDS = ("SecretId", "SecretKey", "Session token")
MARIMO = """
import marimo

app = marimo.App()

@app.cell
def _():
    import kmsdata
    kmsdata.login(endpoint={endpoint!r})
    return (kmsdata,)

@app.cell
def _():
    import marimo as mo
    naive = mo.ui.text(label="Naive", kind="password")
    naive
    return mo, naive

@app.cell
def _(mo, naive):
    mo.md("It is " + naive.value)

@app.cell
def _():
    later = __import__("marimo").ui.run_button(label="Encrypt")
    later
    return (later,)

@app.cell
def _(kmsdata, later):
    import pandas as pd
    encrypted = pd.DataFrame({{"a": [1, 2]}}).kms.encrypt("a") if later.value else None
    f"decrypted {{encrypted.kms.decrypt()['a'].tolist()}}" if later.value else ""
"""
VOILA = (
    "import kmsdata\nkmsdata.login(endpoint={endpoint!r})",
    "import ipywidgets, pandas as pd\nnaive = ipywidgets.Password(description='Naive')\nnaive",
    """later, told = ipywidgets.Button(description='Encrypt'), ipywidgets.HTML()
def encrypt(_):
    told.value = f"decrypted {{pd.DataFrame({{'a': [1, 2]}}).kms.encrypt('a').kms.decrypt()['a'].tolist()}}"
later.on_click(encrypt)
ipywidgets.VBox([later, told])""",
)


@pytest.fixture
def serve(tmp_path, browser):
    """Start a server and open its page; `serve.close` stops server and browser."""
    servers = []

    def close():
        browser.close()
        while servers:
            servers.pop().close()

    def serve(arguments, alive, address):
        server = Server(tmp_path / "home", arguments, alive)
        servers.append(server)
        server.wait()
        page = browser(server.home / "profile")
        page.goto(server.url + address)
        return server, Page(page)

    serve.close = close
    yield serve
    close()


@pytest.mark.parametrize("front_end", ["voila", "marimo run", "marimo edit"])
def test_the_form(serve, tmp_path, emulator, keys, front_end):
    secrets = {name: made(f"{front_end}, {name}") for name in FIELDS}
    naive = made(f"{front_end}, naive")
    emulator.add_account(*[secrets[name] for name in FIELDS[:2]], token=secrets[FIELDS[2]], uin=emulator.uin)
    work = tmp_path / "home" / "work"
    work.mkdir(parents=True)
    if front_end == "voila":
        write_notebook(work / "app.ipynb", *[cell.format(endpoint=emulator.url) for cell in VOILA])
        config = tmp_path / "home" / "ipythondir" / "profile_default" / "ipython_kernel_config.py"
        config.parent.mkdir(parents=True)
        config.write_text("get_config().IPKernelApp.log_level = 10\n")
        arguments = ["voila", "app.ipynb", "--no-browser", "--port={port}", "--debug"]
        server, page = serve(["-m", *arguments], "/voila/templates/lab/static/voila.js", "/")
    else:
        (work / "app.py").write_text(MARIMO.format(endpoint=emulator.url))
        command = front_end.split()[1]
        config = tmp_path / "home" / ".config" / "marimo" / "marimo.toml"
        config.parent.mkdir(parents=True)
        config.write_text("[runtime]\nauto_instantiate = true\n")  # the editor runs the cells, as `run` does
        arguments = [
            "--log-level=DEBUG",
            "--yes",
            command,
            "app.py",
            "--headless",
            "--no-token",
            "--port={port}",
        ]
        server, page = serve(["-m", "marimo", *arguments], "/health", "/")
    page.field("SecretId").wait_for()
    page.picture(f"{front_end.replace(' ', '-')}-form")
    page.type("SecretId", secrets["SecretId"])
    page.type("SecretKey", secrets["SecretKey"])
    page.type("Session token", secrets["Session token"])
    page.choose("Region", "Guangzhou 广州 (ap-guangzhou)")
    page.field("Naive").fill(naive)
    page.page.keyboard.press("Tab")
    page.button("Connect").click()
    page.status("Connected to Tencent Cloud KMS in Guangzhou")
    page.button("Use this key").click()
    page.page.locator(".kms-done", has_text="payroll").wait_for()
    page.button("Encrypt").click()
    page.page.get_by_text("decrypted [1, 2]").wait_for()
    page.picture(f"{front_end.replace(' ', '-')}-done")
    serve.close()
    files = Search([*secrets.values(), naive]).files(server.home)
    assert "server.log" in files[naive]  # the control
    assert not {name for name, secret in secrets.items() if files[secret]}
