"""Reports that need no key, how they are displayed, and progress bars."""

import base64
import io
import json
import re
import sys
import time
import types
from html.parser import HTMLParser

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.cells import cell_len

import kmsdata
from kmsdata.display import progress as progress_module
from kmsdata.display.progress import Progress


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Set the width that text has without a terminal."""
    monkeypatch.setenv("COLUMNS", "120")


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
        assert file.nulls == (None if file.encrypted else memory.nulls)  # a file has no statistics of cells
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
        frame.to_parquet(folder / "f.parquet")
    found = kmsdata.inspect(tmp_path / "data")
    assert (found.rows, found.files, len(found.data_keys)) == (3, 3, 2)
    assert found.columns[0].encrypted is False  # not in every file
    assert any("the encrypted columns differ from those of the first file" in note for note in found.notes)
    assert "cannot be joined" in str(found)
    assert found.data_keys[0].keys == ("local://one", "local://two")


def test_as_text(enc):
    lines = str(enc.kms.inspect()).splitlines()
    table = [line for line in lines if line.startswith(("[x]", "[ ]"))]
    assert [line[:3] for line in table].count("[x]") == 3
    heading = next(line for line in lines if "column" in line and "state" in line)
    start = cell_len(heading[: heading.index("state")])
    for line in table:  # aligned in a terminal, where a Chinese character is two columns wide
        match = re.search("encrypted|plain", line)
        assert cell_len(line[: match.start()]) == start
    assert "opened by  local://demo" in str(enc.kms.inspect())
    assert "equal values have equal cells" in lines[-2]
    assert "nothing was decrypted or verified" in lines[-1]
    assert "equal values" not in str(enc[["age"]].kms.inspect())


@pytest.mark.parametrize("width", [80, 120])
def test_text_fits_the_terminal_and_loses_nothing(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    long = "_".join(["a_name_that_a_report_brought_along"] * 3)
    zone = pd.date_range("2026-01-01", periods=2, tz="America/Argentina/Buenos_Aires")
    frame = pd.DataFrame({long: [1, 2], "客户电子邮件地址": ["a@x.cn"] * 2, "when": zone})
    enc = frame.kms.encrypt(
        [long, "when"], deterministic=["客户电子邮件地址"], domain="集团/电子邮件", key="local://demo"
    )
    enc = pd.concat([enc, pd.DataFrame({"other": [1, 2]}).kms.encrypt("other", key="local://b")], axis=1)
    text = str(enc.kms.inspect())
    assert max(map(cell_len, text.splitlines())) <= width
    rows = [line for line in text.splitlines() if line.startswith(("[x]", "    ")) or "state" in line]
    start, end = rows[0].index("column"), rows[0].index("state")
    assert "".join(row[start:end].strip() for row in rows if row.isascii()).startswith(f"column{long}when")
    for key in enc.kms.inspect().data_keys:
        assert text.count(key.id) > 1  # in the table and below it, whole
    assert "AES-256-GCM" in text
    assert "not counted" not in text


def test_names_cannot_move_the_terminal(tmp_path):
    name = "a\x1b[2J\u202e\nb"
    path = tmp_path / "x\x1b[1m.parquet"
    enc = pd.DataFrame({name: [1]}).kms.encrypt(name, key="local://demo", context={"c\x07": "\x1b[31m"})
    enc.kms.to_parquet(path)
    found = kmsdata.inspect(path)
    for shown in (str(found), found._repr_html_()):
        assert all(letter.isprintable() or letter == "\n" for letter in shown)
        assert r"a\x1b[2J\u202e\nb" in shown
        assert r"c\x07=\x1b[31m" in shown
    assert found.columns[0].name == name  # programs get it unchanged


class Strict(HTMLParser):
    """Parse HTML, and check that every tag is closed, in order."""

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
    # Only tags that notebooks keep in pages that they do not trust, and none that came from the data.
    kept = "div strong table thead tbody tr th td span ul li code p small br"
    assert parser.tags <= set(kept.split())
    styles = [text for attribute, text in parser.attributes if attribute == "style"]
    assert all("var(" not in style for style in styles)
    assert all(("background" in style) == ("color:#" in style) for style in styles)
    assert "<script>" not in page
    without_style = re.sub(r' style="[^"]*"', "", page)  # GitHub removes styles
    assert "● encrypted<" in without_style
    assert "○ plain<" in without_style


def test_what_is_encrypted_in_some_files_only_is_neither(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    pd.DataFrame({"a": ["x"]}).kms.encrypt("a", key="local://demo").kms.to_parquet(folder / "1.parquet")
    pd.DataFrame({"a": ["x"]}).to_parquet(folder / "2.parquet")
    found = kmsdata.inspect(folder)
    assert found.encrypted == []
    assert "[~]  a       partly plain" in str(found)
    assert "! partly plain" in found._repr_html_()


def test_plain_columns_of_a_file_are_called_as_in_the_frame(tmp_path):
    frame = pd.DataFrame(
        {
            "i": [1, 2],
            "f": [0.5, 1.5],
            "c": pd.Categorical(["a", "b"]),
            "n": pd.array([1, None], "Int64"),
            "t": ["a", "b"],
            "b": [True, False],
        }
    )
    frame.to_parquet(tmp_path / "f.parquet")
    in_file = {column.name: column.type for column in kmsdata.inspect(tmp_path / "f.parquet").columns}
    assert in_file == {name: str(dtype) for name, dtype in frame.dtypes.items()}


def test_for_programs(enc):
    found = json.loads(enc.kms.inspect().json())
    assert found["verified"] is False
    assert found["data_keys"][0]["context"] == {"ship": "t"}
    assert [c["name"] for c in found["columns"] if c["encrypted"]] == ["姓名", "age", "ticket"]


def test_cells_show_short(enc):
    few = enc[["ticket", "age", "sex"]].head(2)
    for frame in (few, few.set_index("ticket")):
        for shown in (repr(frame), frame.to_string(), frame.to_html(), frame._repr_html_()):
            assert "enc#" in shown
            assert "enc:" not in shown
    assert "enc:" not in repr(enc["ticket"]) + repr(enc["ticket"].array) + repr(enc["age"][0])
    assert "<NA>" in enc["age"].iloc[15:16].to_string()  # a null is not a cell
    one, two, three = (repr(cell) for cell in enc["ticket"][:3])
    assert one != two == three  # equal cells look equal


def test_cells_are_written_whole(enc):
    text = enc.to_csv(index=False)
    dtypes = {name: enc[name].dtype for name in enc.kms.encrypted}
    back = pd.read_csv(io.StringIO(text), dtype=dtypes)
    pd.testing.assert_frame_equal(back[list(dtypes)].kms.decrypt(), enc[list(dtypes)].kms.decrypt())
    texts = enc["age"].astype(str)
    assert texts.dropna().str.startswith(("enc:", "<NA>")).all()
    again = texts.mask(enc["age"].isna(), None).astype(object).astype(enc["age"].dtype)
    pd.testing.assert_series_equal(again.kms.decrypt(), enc["age"].kms.decrypt())


def test_json_holds_the_whole_cells(enc):
    """pandas 3 crashes the interpreter if an extension array does not define its values in JSON."""
    for orient in ("columns", "records", "split", "index", "table"):
        assert str(enc["ticket"][0]) in enc.head(2).to_json(orient=orient).replace("\\/", "/")
    found = json.loads(enc.iloc[15:16].to_json(orient="records"))[0]
    assert found["age"] is None
    assert bytes(enc["ticket"][15]) == base64.b64decode(found["ticket"].removeprefix("enc:"))


def test_a_row_keeps_its_cells(enc):
    row = enc.iloc[0]
    assert row["age"] == enc["age"][0]
    assert row.to_dict()["姓名"] == enc["姓名"][0]
    back = pd.DataFrame([enc.iloc[0], enc.iloc[1]])  # as code with iterrows does
    assert back.kms.decrypt()["姓名"].tolist() == enc.kms.decrypt()["姓名"][:2].tolist()


def test_describe_says_no_more_than_it_knows(enc):
    assert list(enc.describe().columns) == ["pclass", "survived", "sibsp", "parch", "fare", "body"]
    found = enc["ticket"].describe()
    assert (found["count"], found["unique"], found["freq"]) == (1309, enc["ticket"].nunique(), 11)
    # The cells of a randomised column are all different, which says nothing about the values.
    with pytest.raises(TypeError, match=r"'age' is randomised.*deterministic="):
        enc["age"].describe()
    whole = enc.describe(include="all")
    assert whole["age"]["count"] == enc["age"].count()
    assert whole["age"].drop("count").isna().all()


# Progress.


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


def until(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")


SOON, NEVER = 0.02, 60.0


@pytest.mark.parametrize(
    ("terminal", "wanted", "patience", "shown"),
    [
        (True, None, SOON, True), (True, None, NEVER, False), (True, True, NEVER, True),
        (True, False, SOON, False), (False, None, SOON, False), (False, True, NEVER, True),
        (False, False, SOON, False),
    ],
)  # fmt: skip
def test_when_a_bar_is_shown(monkeypatch, terminal, wanted, patience, shown):
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress_module, "_PATIENCE", patience)
    with Progress("encrypt", 10, "rows", wanted) as progress:
        progress.step(4)
        if shown:  # during the work, before its next step
            until(lambda: "40% of 10 rows" in stream.getvalue())
        else:
            time.sleep(5 * SOON)
        progress.step(6)
    assert bool(stream.getvalue()) == shown
    if shown:
        last = stream.getvalue().split("\r")[-1]
        assert "100% of 10 rows" in last
        assert last.endswith("done\x1b[K\n")


def test_a_bar_stays_on_one_line(monkeypatch):
    stream = Stream(True)
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress("encrypt", 30_000_000, "cells", True) as progress:
        until(stream.getvalue)
        progress.step(20_000_000)
        until(lambda: "left" in stream.getvalue())
        progress.step(10_000_000)
    looks = [look.removesuffix("\n").removesuffix("\x1b[K") for look in stream.getvalue().split("\r")]
    assert max(map(len, looks)) < 80
    monkeypatch.setenv("COLUMNS", "30")
    with Progress("encrypt", 30_000_000, "cells", True):
        pass
    assert len(stream.getvalue().split("\r")[-1]) < 30 + len("\x1b[K\n")


def test_a_terminal_that_was_closed_does_not_stop_the_work(monkeypatch):
    stream = Stream(True)
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress("encrypt", 10, "rows", True) as progress:
        stream.close()
        progress.step(10)


def test_in_a_notebook_one_output_ends_in_its_final_state(monkeypatch):
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
    with Progress("encrypt", 10, "rows", wanted=True) as progress:
        until(lambda: outputs)
        progress.step(10)
    (final,) = outputs
    assert 'value="1.000" max="1"' in final
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
