"""The examples in docstrings, README and guides run, and the guides list what there is."""

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

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
GUIDES = sorted((ROOT / "docs").glob("*.md"))
MODULES = ["kmsdata", *(module.name for module in pkgutil.walk_packages(kmsdata.__path__, "kmsdata."))]
ENGINES = {  # guides and modules that need a package
    "arrow": ["duckdb", "polars"],
    "aws": ["boto3", "moto"],
    "dask": ["dask", "distributed"],
    "duckdb": ["duckdb"],
    "polars": ["polars"],
    "ray": ["ray"],
    "spark": ["pyspark"],
}
DEPRECATED_BY_RAY = r"ignore:[\s\S]*is deprecated:DeprecationWarning:ray"
NEED_NOTEBOOK = {f"kmsdata.notebook.{name}" for name in ("column_picker", "login_form", "sealed_message")}


@pytest.fixture(autouse=True)
def no_cluster_stays():
    """Stop Ray, which an example starts with the keystore of its test, and which would serve the next one."""
    yield
    if ray := sys.modules.get("ray"):
        ray.shutdown()


def marks(name):
    if needed := ENGINES.get(name.removeprefix("kmsdata.")):
        # Ray 2.60 warns about options that it sets itself.
        return [pytest.mark.engine(*needed), pytest.mark.filterwarnings(DEPRECATED_BY_RAY)]
    return [pytest.mark.newest] if name in NEED_NOTEBOOK else []


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in MODULES])
def test_docstrings(name, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    if name == "kmsdata.spark":
        request.getfixturevalue("spark")  # the session that the examples get
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
        kmsdata.use, kmsdata.using, kmsdata.new_data_key, kmsdata.data_key,
        kmsdata.read_parquet, kmsdata.encrypt_table,
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

    guide = (ROOT / "docs" / "tencent-cloud.md").read_text()
    (lines,) = re.findall(r"```sh\n(.*?)```", guide, re.DOTALL)
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


@pytest.mark.parametrize(
    "guide",
    # tests/keys/test_aws_example.py runs aws.md, with a server
    [pytest.param(path, id=path.stem, marks=marks(path.stem)) for path in GUIDES if path.stem != "aws"],
)
def test_examples_of_a_guide_run_in_their_order(guide, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    if guide.stem == "spark":
        request.getfixturevalue("spark")  # the session that the examples get
    names = {}
    for code in re.findall(r"```python\n(.*?)```", guide.read_text(), re.DOTALL):
        exec(compile(code, guide.name, "exec"), names)  # noqa: S102


def test_every_code_block_is_tested_or_is_no_code():
    tested = {"python", "bash", "sh"}  # bash: tests/cli/test_file_commands.py
    for path in [README, *GUIDES]:
        languages = set(re.findall(r"^```(\w*)$", path.read_text(), re.MULTILINE))
        assert languages <= tested | {"", "mermaid"}, path.name
    assert [path.name for path in GUIDES if "```bash" in path.read_text()] == ["command-line.md"]
    assert [path.name for path in GUIDES if "```sh" in path.read_text()] == ["tencent-cloud.md"]


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 130


@pytest.mark.parametrize("page", [pytest.param(path, id=path.name) for path in [*ROOT.glob("*.md"), *GUIDES]])
def test_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} points at {target}"


def test_the_architecture_page_names_every_package():
    page = (ROOT / "docs" / "architecture.md").read_text()
    package = Path(kmsdata.__file__).parent
    there = {f"{path.parent.relative_to(package).as_posix()}/" for path in package.rglob("*/__init__.py")}
    assert set(re.findall(r"`((?:[a-z_]+/)+)`", page)) == there


def test_the_architecture_page_says_where_public_names_are_defined():
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| `kmsdata/([\w/]+\.py)` \|$", page, re.MULTILINE))
    assert rows == public_names()


def public_names():
    """The file below kmsdata/ that defines each public name, as the front door imports it."""
    package = Path(kmsdata.__file__).parent
    imported = {}
    for node in ast.parse((package / "__init__.py").read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module.startswith("kmsdata."):
            path = f"{node.module.removeprefix('kmsdata.').replace('.', '/')}.py"
            imported |= {alias.name: path for alias in node.names}
    return {name: imported[name] for name in kmsdata.__all__}


def test_each_promise_of_security_names_tests_that_exist():
    text = (ROOT / "SECURITY.md").read_text()
    there = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > 30
    assert named <= there, named - there
