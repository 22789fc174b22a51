"""The import law: which package may import which, and that importing kmsdata loads nothing unasked."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import kmsdata

ROOT = Path(kmsdata.__file__).parent

# What the files of a package may import besides `errors` and each other: packages, or single files of them.
# A subpackage has its own line.
LAW = {
    "errors": set(),
    "atomic_files": set(),
    "lazy_property": set(),
    "ciphers": set(),
    "display": set(),
    "codec": {"ciphers.cells"},
    "keys": {"atomic_files", "display"},
    "keys.local": {"atomic_files", "display"},
    "keys.tencent": {"atomic_files", "display"},
    "frames": {"frames.arrow", "frames.metadata", "keys", "codec", "ciphers", "display"},
    "frames.arrow": {"frames", "frames.metadata", "keys", "codec"},
    "frames.metadata": {"frames", "keys"},
    "parquet": {"frames.metadata", "frames", "keys", "codec", "display", "atomic_files"},
    "parquet.bulk": {
        "frames.metadata",
        "parquet.bulk.original",
        "parquet",
        "frames",
        "keys",
        "codec",
        "display",
        "atomic_files",
    },
    "parquet.bulk.original": {"parquet", "keys"},
    "api": {
        "parquet",
        "parquet.bulk",
        "frames",
        "frames.arrow",
        "frames.metadata",
        "keys",
        "codec",
        "ciphers",
        "display",
        "atomic_files",
    },
    "notebook.browser": set(),
    # A form makes providers.
    "notebook": {"notebook.browser", "keys", "keys.local", "keys.tencent", "display"},
    "emulator": {"keys.data_key", "atomic_files"},
    **{
        name: {
            *("api", "parquet", "parquet.bulk", "frames", "frames.arrow", "frames.metadata", "keys"),
            *("codec", "display", "atomic_files"),
        }
        for name in ("dask", "duckdb", "polars", "ray", "spark", "testing")
    },
}
# What single files may import beyond that.
PROVIDERS_MAY = {"keys.envelope", "keys.key_uri", "keys.data_key", "keys.fork_lock", "keys.usage"}
BEYOND = {
    "keys.session": {"keys.local", "keys.tencent"},  # it makes the built-in providers
    "keys.unwrap": {"codec.types"},  # a header's type is checked before its key is used
}
IN_FUNCTIONS = {"api": {"notebook"}}  # imports that are allowed inside functions, and for types, only
EVERYWHERE = {"errors", "lazy_property"}
ANYTHING = {"", "cli"}  # the front door; and the command line, which uses it as a user does

MOST_ENTRIES = 12  # per folder
MOST_AT_THE_ROOT = 19  # six of them are public names: one for each engine, and `testing`
NOT_COUNTED = {"__init__.py", "__main__.py", "__pycache__", "py.typed", "data"}

ONLY_IN = {
    "cryptography": {"ciphers", "keys.data_key", "keys.tink_keyset", "keys.local", "notebook", "emulator"},
    "tencentcloud": {"keys.tencent"},
    # `import kmsdata` loads none of them: each is imported by the file of its name only.
    **{library: {library} for library in ("dask", "duckdb", "polars", "ray")},
    "distributed": {"dask"},
    "pyspark": {"spark"},
}


def files():
    """Every file by its dotted name below kmsdata; a package's own ``__init__`` has the package's name."""
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield name.removesuffix("__init__").rstrip("."), path


NAMES = {name for name, _ in files()}
PACKAGES = {name for name, path in files() if path.name == "__init__.py" and name}


def package_of(name):
    """The package that a file is in; a file at the root is one by itself."""
    return name if name in PACKAGES or "." not in name else name.rpartition(".")[0]


def imports(path):
    """Every module that a file imports, and whether inside a function or for type checkers only."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, (ast.FunctionDef, ast.AsyncFunctionDef))
        or (isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING")
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError(f"{path}: relative import")
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) in inside


def own_imports(path):
    """Of these, the files of kmsdata; the empty name is the front door."""
    for name, inside in imports(path):
        root, _, rest = name.partition(".")
        if root == "kmsdata":
            while rest and rest not in NAMES:
                rest = rest.rpartition(".")[0]
            yield rest, inside


def allowed(name, other, inside):
    package, its = package_of(name), package_of(other)
    if package in ANYTHING or other in EVERYWHERE or its == package:
        return True
    law = LAW[package] | BEYOND.get(name, set()) | (IN_FUNCTIONS.get(package, set()) if inside else set())
    if package in ("keys.local", "keys.tencent"):
        law = law | PROVIDERS_MAY
    return other in law or its in law


def test_every_room_has_a_floor():
    assert {package_of(name) for name in NAMES} - ANYTHING <= set(LAW)


def test_nothing_uses_a_cached_property():
    # Python 3.11 holds a lock while it computes one: a child forked in that moment waits for it forever.
    using = [
        name
        for name, path in files()
        for node in ast.walk(ast.parse(path.read_text()))
        if "cached_property"
        in {getattr(node, "id", ""), getattr(node, "attr", ""), getattr(node, "name", "")}
    ]
    assert using == []


def test_imports_go_down_only():
    wrong = [
        f"{name} imports {other or 'kmsdata itself'}"
        for name, path in files()
        for other, inside in own_imports(path)
        if not allowed(name, other, inside)
    ]
    assert wrong == []


def test_files_of_a_package_do_not_import_each_other_in_circles():
    imported = {
        name: {other for other, _ in own_imports(path) if other != name and other}
        for name, path in files()
        if name
    }
    circles, done = [], set()

    def visit(name, way):
        if name in way:
            circles.append(" -> ".join([*way[way.index(name) :], name]))
        elif name not in done:
            for other in sorted(imported[name]):
                visit(other, [*way, name])
            done.add(name)

    for name in sorted(imported):
        visit(name, [])
    assert circles == []


def test_folders_are_small():
    crowded = {}
    for folder in [ROOT, *(ROOT / name.replace(".", "/") for name in PACKAGES)]:
        entries = [path.name for path in folder.iterdir() if path.name not in NOT_COUNTED]
        if len(entries) > (MOST_AT_THE_ROOT if folder == ROOT else MOST_ENTRIES):
            crowded[folder.name] = sorted(entries)
    assert crowded == {}


def test_libraries_stay_in_their_rooms():
    wrong = [
        f"{name} imports {library}"
        for name, path in files()
        for library, _ in imports(path)
        if not {name, package_of(name)} & ONLY_IN.get(library.split(".")[0], {name})
    ]
    assert wrong == []


def test_randomness_enters_in_one_place():
    source = re.compile(r"urandom|\bimport secrets|\bimport random\b|\buuid[14]\b|numpy\.random|np\.random")
    assert {name for name, path in files() if source.search(path.read_text())} == {"keys.data_key"}


def test_import_brings_in_nothing_that_was_not_asked_for():
    code = (
        "import sys, kmsdata; "
        "print([m for m in ('ipywidgets', 'IPython', 'dask', 'pyspark', 'tencentcloud', 'requests', "
        "'typer', 'rich', 'polars', 'duckdb', 'ray', 'distributed', 'narwhals', 'tink') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_assert_guards_input():
    found = [
        f"{name}:{node.lineno}"
        for name, path in files()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert found == []
