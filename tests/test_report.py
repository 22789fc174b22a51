"""What can be said without a key, and how it looks."""

import io
import json
import re
import sys
import types
from html.parser import HTMLParser

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.cells import cell_len

import kmsdata
from kmsdata import progress as progress_module
from kmsdata.progress import Progress


@pytest.fixture
def enc(titanic):
    frame = titanic.rename(columns={"name": "姓名"})
    return frame.kms.encrypt(
        ["姓名", "age"], deterministic=["ticket"], key="local://demo", context={"ship": "t"}
    )


def test_a_frame(enc, keystore):
    keystore.unlink()  # no key is needed
    before = kmsdata.usage()
    found = enc.kms.inspect()
    assert kmsdata.usage() == before
    assert (found.rows, len(found.columns), found.encrypted) == (1309, 14, ["姓名", "age", "ticket"])
    columns = {column.name: column for column in found.columns}
    assert [column.name for column in found.columns] == list(enc.columns)
    assert (columns["姓名"].algorithm, columns["姓名"].domain) == ("AES-256-GCM", None)
    assert (columns["ticket"].algorithm, columns["ticket"].domain) == ("AES-256-SIV", "ticket")
    assert (columns["age"].type, columns["age"].nulls) == ("float64", 263)
    assert (columns["cabin"].encrypted, columns["cabin"].nulls) == (False, 1014)
    (key,) = found.data_keys
    assert (key.keys, key.context) == (("local://demo",), {"ship": "t"})
    assert columns["age"].data_keys == (key.id,)
    assert key.id == enc["age"].dtype.header.records[0].commitment.hex()[:8]


def test_tables_series_and_files_say_the_same(enc, tmp_path):
    path = tmp_path / "t.parquet"
    enc.kms.to_parquet(path)
    table = kmsdata.encrypt_table(pa.table({"a": [1, None]}), "a", key="local://demo")
    found = kmsdata.inspect(table)
    assert (found.encrypted, found.columns[0].nulls, found.columns[0].type) == (["a"], 1, "int64")
    assert kmsdata.inspect(enc["age"]).encrypted == ["age"]
    on_disk, in_memory = kmsdata.inspect(path), kmsdata.inspect(enc)
    assert on_disk.data_keys == in_memory.data_keys
    assert (on_disk.rows, on_disk.files) == (1309, 1)
    for file, memory in zip(on_disk.columns, in_memory.columns, strict=True):
        assert (file.name, file.algorithm, file.domain) == (memory.name, memory.algorithm, memory.domain)
        assert file.nulls == (None if file.encrypted else memory.nulls)  # nothing is counted of cells
        assert file.bytes > 0
    with pytest.raises(TypeError, match="a path"):
        kmsdata.inspect(5)
    (tmp_path / "no.parquet").write_text("no")
    with pytest.raises(kmsdata.FormatError, match="not a Parquet file"):
        kmsdata.inspect(tmp_path / "no.parquet")


def test_nested_columns_and_names_with_dots(tmp_path):
    frame = pd.DataFrame({"p": [{"x": 1, "y": [1, 2]}], "p.q": [{"x": "long text " * 99}], "s": ["secret"]})
    frame.kms.encrypt("s", key="local://demo").kms.to_parquet(tmp_path / "f.parquet")
    columns = {column.name: column for column in kmsdata.inspect(tmp_path / "f.parquet").columns}
    assert [(c.name, c.encrypted) for c in columns.values()] == [("p", False), ("p.q", False), ("s", True)]
    assert all(column.bytes > 0 for column in columns.values())
    metadata = pq.read_metadata(tmp_path / "f.parquet").row_group(0)
    sizes = {metadata.column(i).path_in_schema: metadata.column(i).total_compressed_size for i in range(4)}
    assert columns["p.q"].bytes == sizes["p.q.x"]


def test_the_file_that_is_none_is_named(tmp_path):
    folder = tmp_path / "set" / "year=2024"
    folder.mkdir(parents=True)
    frame = pd.DataFrame({"a": [1]}).kms.encrypt("a", key="local://demo")
    for name in ("1", "2", "3"):
        frame.kms.to_parquet(folder / f"{name}.parquet")
    found = kmsdata.inspect(tmp_path / "set")
    assert [(column.name, column.type) for column in found.columns][1] == ("year", "int32 (in folder names)")
    for bad in ("3", "1"):
        (folder / f"{bad}.parquet").write_bytes(b"no")
        with pytest.raises(kmsdata.FormatError, match=rf"{bad}.parquet is not a Parquet file") as caught:
            kmsdata.inspect(tmp_path / "set")
        assert caught.value.path == str(folder / f"{bad}.parquet")


def test_a_dataset_and_what_is_odd_in_it(tmp_path):
    for number in range(3):
        frame = pd.DataFrame({"a": [number], "b": ["x"]})
        if number < 2:
            frame = frame.kms.encrypt("a", key=["local://one", "local://two"])
        folder = tmp_path / "data" / f"year={2020 + number}"
        folder.mkdir(parents=True)
        frame.kms.to_parquet(folder / "f.parquet")
    found = kmsdata.inspect(tmp_path / "data")
    assert (found.rows, found.files, len(found.data_keys)) == (3, 3, 2)
    assert found.columns[0].encrypted is False  # not in every file
    assert any("other columns are encrypted" in note for note in found.notes)
    assert "cannot be joined" in str(found)
    assert found.data_keys[0].keys == ("local://one", "local://two")


def test_as_text(enc):
    lines = str(enc.kms.inspect()).splitlines()
    table = [line for line in lines if line.startswith(("[x]", "[ ]"))]
    assert [line[:3] for line in table].count("[x]") == 3
    heading = next(line for line in lines if "column" in line and "state" in line)
    start = cell_len(heading[: heading.index("state")])
    for line in table:  # aligned in a terminal, where a Chinese letter takes two places
        match = re.search("encrypted|plain", line)
        assert cell_len(line[: match.start()]) == start
    assert "opened by  local://demo" in str(enc.kms.inspect())
    assert "nothing was decrypted or verified" in lines[-1]


class Strict(HTMLParser):
    """Every tag is closed, in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in ("br", "progress"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag != "progress":
            assert self.open.pop() == tag


def test_as_html():
    name = "<script>alert(1)</script>"
    frame = pd.DataFrame({name: ["a"], "b": [1]})
    enc = frame.kms.encrypt(name, key="local://demo", context={"<b>": "&\"'"})
    page = enc.kms.inspect()._repr_html_()
    parser = Strict()
    parser.feed(page)
    assert parser.open == []
    # What notebooks keep of pages that they do not trust; and nothing that came from the data.
    kept = "table caption thead tbody tr th td span ul li code p small br"
    assert parser.tags <= set(kept.split())
    styles = [text for attribute, text in parser.attributes if attribute == "style"]
    assert all("var(" not in style for style in styles)
    assert all(("background" in style) == ("color:#" in style) for style in styles)
    assert "<script>" not in page
    assert "encrypted" in page
    assert "plain" in page


def test_for_programs(enc):
    found = json.loads(enc.kms.inspect().json())
    assert found["verified"] is False
    assert found["data_keys"][0]["context"] == {"ship": "t"}
    assert [c["name"] for c in found["columns"] if c["encrypted"]] == ["姓名", "age", "ticket"]


def test_cells_show_short_and_are_written_whole(enc):
    short = repr(enc["ticket"].head(2)) + enc.head(2).to_html()
    assert "enc#" in short
    assert "enc:" not in short
    text = enc.to_csv(index=False)
    back = pd.read_csv(io.StringIO(text), dtype={name: enc[name].dtype for name in enc.kms.encrypted})
    assert back.kms.decrypt()["姓名"].tolist() == enc.kms.decrypt()["姓名"].tolist()
    assert enc["ticket"].astype(str).str.startswith("enc:").all()
    assert json.loads(enc.head(2).to_json())["ticket"]["0"].startswith("enc:")
    assert list(enc.describe().columns) == ["pclass", "survived", "sibsp", "parch", "fare", "body"]
    assert enc["ticket"].describe()["count"] == 1309
    with pytest.raises(TypeError, match="randomised"):  # how many are unique cannot be said
        enc["age"].describe()


@pytest.mark.newest
def test_tables_for_people(enc):
    assert "enc:" in enc.head(2)[["ticket"]].style.to_html()
    import great_tables

    assert "ticket" in great_tables.GT(enc.head(2)[["ticket", "sex"]]).as_raw_html()


# Progress.


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def work(clock, wanted, seconds=3.0):
    with Progress("encrypt", 10, "rows", wanted) as progress:
        for _ in range(10):
            clock[0] += seconds / 10
            progress.step(1)


@pytest.mark.parametrize(
    ("terminal", "wanted", "seconds", "shown"),
    [
        (True, None, 3.0, True), (True, None, 0.5, False), (True, True, 0.5, True), (True, False, 3.0, False),
        (False, None, 3.0, False), (False, True, 3.0, True), (False, False, 3.0, False),
    ],
)  # fmt: skip
def test_when_a_bar_is_shown(monkeypatch, clock, terminal, wanted, seconds, shown):
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    work(clock, wanted, seconds)
    assert bool(stream.getvalue()) == shown
    if shown:
        last = stream.getvalue().split("\r")[-1]
        assert "10 of 10 rows" in last
        assert "done" in last
        assert last.endswith("\n")


def test_in_a_notebook_one_output_ends_in_its_final_state(monkeypatch, clock):
    outputs = []

    class Handle:
        def update(self, shown):
            outputs[-1] = shown._repr_html_()

    def display(shown, display_id):
        assert display_id
        outputs.append(shown._repr_html_())
        return Handle()

    ipython = types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=display))
    work(clock, None)
    (final,) = outputs
    assert 'value="10" max="10"' in final
    assert "done" in final

    def fail():
        with Progress("a <b>", 10, "rows", wanted=True) as progress:
            progress.step(3)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert "stopped" in outputs[-1]
    assert "a &lt;b&gt;" in outputs[-1]


def test_a_frame_with_a_bar(monkeypatch, titanic):
    stream = Stream(True)
    monkeypatch.setattr(sys, "stderr", stream)
    enc = titanic.kms.encrypt(["name"], key="local://demo", progress=True)
    assert "encrypt [" in stream.getvalue()
    enc.kms.decrypt(progress=True)
    assert "decrypt [" in stream.getvalue()
    assert titanic["name"][0] not in stream.getvalue()
