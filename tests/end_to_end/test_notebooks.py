"""The notebooks run from top to bottom and are stored without outputs; and what kmsdata shows in them."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest

import kmsdata

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}

pytestmark = pytest.mark.newest


def run(notebook, folder, **options):
    import nbclient

    nbclient.NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": str(folder)}}, **options
    ).execute()
    return notebook


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch, keystore):
    """Use no credentials of the user who runs this, and leave no traces in their folders."""
    for name in list(os.environ):
        if name.startswith(("TENCENTCLOUD_", "KMSDATA_TENCENT_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path):
    import nbformat

    done = run(nbformat.read(path, as_version=4), tmp_path)
    code = [cell for cell in done.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    # What is on stderr, such as a warning, is shown on red to every reader.
    assert "".join(output.text for output in outputs if output.get("name") == "stderr") == ""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_without_what_it_showed(path):
    import nbformat

    stored = json.loads(path.read_text())
    nbformat.validate(stored)
    for cell in stored["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
        assert cell["metadata"] == {}
        assert re.fullmatch(r"[a-z][a-z-]*", cell["id"])  # by name: no new ones at each save
    assert stored["metadata"] == {"kernelspec": KERNEL, "language_info": {"name": "python"}}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_code_comes_in_small_cells(path):
    code = [cell["source"] for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert len(code[0]) <= 10
    assert max(map(len, code)) <= 16


def source(name):
    """Return the text of all cells of a notebook."""
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells)


# Words that are not for notebooks: Arrow tables, and data of the vendor's guide.
NOT_ON_THE_SHEET = {"encrypt_table", "decrypt_table", "migrate_guide_column"}


def test_the_cheat_sheet_has_every_word():
    sheet = source("00_cheat_sheet")
    words = {name for name in kmsdata.__all__ if name[0].islower()}
    words |= {name for name in vars(kmsdata.FrameAccessor) if not name.startswith("_")}
    assert {word for word in words if not re.search(rf"\bkms(data)?\.{word}\b", sheet)} == NOT_ON_THE_SHEET


def test_the_commands_of_a_nightly_job(run, tmp_path, monkeypatch, titanic):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KMSDATA_KEY", "local://files")
    for name in ("files", "files-next"):
        kmsdata.LocalKeystore().create_key(name, quiet=True)
    titanic.to_csv("passengers.csv", index=False)
    (block,) = re.findall(r"```\n(kmsdata .*?)```", source("05_files_and_pipelines"), re.DOTALL)
    commands = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]
    assert [command[1] for command in commands] == ["encrypt", "verify", "rewrap"]
    for _, *arguments in [*commands[:2], *commands]:  # a second night replaces the file
        status, _, errors = run(*arguments)
        assert (status, errors) == (0, "")


def test_they_point_at_each_other_and_the_readme_at_them():
    names = [path.name for path in NOTEBOOKS]
    readme = (ROOT / "README.md").read_text()
    assert [name for name in names if f"notebooks/{name}" not in readme] == []
    for path in NOTEBOOKS:
        for target in re.findall(r"\]\(([^)#:]+)\)", source(path.stem)):
            assert (path.parent / target).exists(), f"{path.name} points at {target}"


# What kmsdata shows in a notebook.


def executed(tmp_path, *sources, **options):
    import nbformat

    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL})
    return [cell.outputs for cell in run(notebook, tmp_path, **options).cells]


WORK = """
import time
from kmsdata.display import progress
progress._PATIENCE = 0.05
def work(seconds, wanted=None, fail=False):
    with progress.Progress("encrypt", 4, "cells", wanted) as bar:
        for _ in range(4):
            time.sleep(seconds / 4)
            bar.step(1)
            if fail:
                raise ZeroDivisionError
"""


@pytest.mark.parametrize("store", [True, False])
def test_a_bar_is_saved_once_and_in_its_final_state(tmp_path, store):
    outputs = executed(
        tmp_path,
        WORK, "work(1.2)", "1", "work(0, True)", "work(1.2, fail=True)", "work(0)", "work(1.2, False)",
        allow_errors=True, store_widget_state=store,
    )  # fmt: skip
    _, (long,), (one,), (wanted,), (stopped, error), short, unwanted = outputs
    for output in (long, wanted):
        assert output.output_type == "display_data"
        assert '<progress value="1.000" max="1"' in output.data["text/html"]
        assert output.data["text/plain"].startswith("encrypt [############] 100% of 4 cells")
        assert output.data["text/plain"].endswith("done")
    assert one.data == {"text/plain": "1"}  # and it is shown below its own cell
    assert '<progress value="0.250" max="1"' in stopped.data["text/html"]
    assert stopped.data["text/plain"].endswith("stopped")
    assert error.ename == "ZeroDivisionError"
    assert short == unwanted == []


def test_a_frame_and_its_inspection_are_shown_short(tmp_path):
    _, (frame,), (found,) = executed(
        tmp_path,
        "import pandas as pd, kmsdata\n"
        "kmsdata.LocalKeystore().create_key('demo', quiet=True)\n"
        "enc = pd.DataFrame({'姓名': ['王', '李'], 'n': [1, 2]}).kms.encrypt('姓名', key='local://demo')",
        "enc",
        "enc.kms.inspect()",
    )
    for shown in frame.data.values():
        assert shown.count("enc#") == 2
        assert "王" not in shown
        assert "enc:" not in shown
    assert "● encrypted" in found.data["text/html"]
    assert "[x]  姓名    encrypted" in found.data["text/plain"]


def test_a_new_key_is_a_notice_below_the_cell(tmp_path):
    _, (notice,), (frame,), (usage,) = executed(
        tmp_path,
        "import pandas as pd, kmsdata",
        "enc = pd.DataFrame({'n': [1, 2]}).kms.encrypt('n', key='local://demo')",
        "enc.kms",
        "kmsdata.usage()",
    )
    assert notice.output_type == "display_data"  # stderr would be shown on red
    assert notice.data["text/plain"].startswith("kmsdata: created the key local://demo\n  stored in    ")
    assert "copy this file: without it" in notice.data["text/html"]
    assert "● can be opened" in frame.data["text/html"]
    assert "[x] can be opened: local://demo is in " in " ".join(frame.data["text/plain"].split())
    assert "1 KMS call of this process so far" in usage.data["text/plain"]
    assert "<table>" in usage.data["text/html"]
