"""The examples in docstrings and the README run, and the README lists every folder."""

import ast
import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import kmsdata

README = Path(__file__).parent.parent / "README.md"
MODULES = ["kmsdata", *(module.name for module in pkgutil.walk_packages(kmsdata.__path__, "kmsdata."))]
NEED_IPYWIDGETS = {f"kmsdata.notebook.{name}" for name in ("form_layout", "login_form", "password_field")}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.newest] if name in NEED_IPYWIDGETS else []) for name in MODULES],
)
def test_docstrings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    assert module.__doc__
    finder = doctest.DocTestFinder(recurse=name != "kmsdata")  # re-exports are tested in their own module
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    found = finder.find(module)
    # The __module__ of public classes is "kmsdata", so doctest does not find them in this module.
    for node in ast.parse(Path(module.__file__).read_text()).body:
        if isinstance(node, ast.ClassDef) and getattr(module, node.name).__module__ == "kmsdata":
            found += finder.find(
                getattr(module, node.name), node.name, module=False, globs=vars(module).copy()
            )
    for test in found:
        runner.run(test)
    assert runner.failures == 0
    assert name != "kmsdata.keys.session" or runner.tries > 0  # a module with examples of such a class


def test_public_functions_have_examples():
    public = [
        kmsdata.use, kmsdata.new_data_key, kmsdata.data_key, kmsdata.read_parquet, kmsdata.encrypt_table,
        kmsdata.export_keyset, kmsdata.DataKey, kmsdata.LocalKeystore, kmsdata.KmsDataError,
        kmsdata.FrameAccessor.encrypt, kmsdata.FrameAccessor.decrypt, kmsdata.FrameAccessor.to_parquet,
        kmsdata.SeriesAccessor.encrypt, kmsdata.TencentKMS, kmsdata.KeyCache, kmsdata.usage, kmsdata.login,
        kmsdata.migrate_guide_column, kmsdata.inspect, kmsdata.FrameAccessor.inspect,
        kmsdata.FrameAccessor.isin, kmsdata.verify,
        kmsdata.rewrap, kmsdata.FrameAccessor.rewrap,
        kmsdata.encrypt_parquet, kmsdata.decrypt_parquet,
    ]  # fmt: skip
    assert [thing.__qualname__ for thing in public if ">>>" not in (thing.__doc__ or "")] == []


def test_readme_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names = {}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102
    pd.testing.assert_frame_equal(names["back"], names["df"])
    assert Path("people.parquet").exists()


@pytest.mark.newest
def test_readme_lines_for_tencent_cloud(tmp_path):
    from kmsdata.emulator import Emulator

    (lines,) = re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL)
    with Emulator() as emulator:
        done = subprocess.run(
            ["bash", "-e", "-c", lines],  # noqa: S607
            cwd=tmp_path,
            env={
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "PYTHONPATH": str(Path(kmsdata.__file__).parent.parent),
                "HOME": str(tmp_path),
                "KMSDATA_TENCENT_ENDPOINT": emulator.url,
                "TENCENTCLOUD_SECRET_ID": emulator.secret_id,
                "TENCENTCLOUD_SECRET_KEY": emulator.secret_key,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        calls = emulator.calls
    assert done.returncode == 0, done.stderr
    assert "payroll" in done.stdout
    assert "078-05-1120" in done.stdout
    assert (calls["GenerateDataKey"], calls["Decrypt"]) == (1, 1)


def test_readme_lists_every_file():
    listed = set(re.findall(r"`((?:[a-z_]+/)+)`", README.read_text()))
    root = Path(kmsdata.__file__).parent
    there = {f"{path.parent.relative_to(root).as_posix()}/" for path in root.rglob("*/__init__.py")}
    assert listed == there - {"./"}
