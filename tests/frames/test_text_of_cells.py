"""The text of cells: short in every table that people read, whole in everything that may be read back."""

import base64
import io
import json
import re
import subprocess
import sys

import pandas as pd
import pandas.testing as tm
import pytest

from kmsdata import Cell

KEY = "local://demo"
SECRET = ["city", "name", "age"]


@pytest.fixture
def df():
    return pd.DataFrame(
        {
            "id": [10, 11, 12, 13],
            "city": ["Oslo", None, "Oslo", "Bern"],
            "name": ["Ada", "Bo", None, "a long name, longer than the fifty characters of a column"],
            "age": [36, 41, 7, 8],
        }
    )


@pytest.fixture
def enc(df):
    return df.kms.encrypt(["name", "age"], deterministic="city", key=KEY)


def cells_of(frame):
    return [cell for name in frame for cell in frame[name] if isinstance(cell, Cell)]


def check_short(text, enc):
    assert re.search(r"enc\\?#[0-9a-f]{8}", text)
    for cell in cells_of(enc):
        for form in (base64.b64encode(bytes(cell)).decode()[:16], repr(bytes(cell))[2:18]):
            assert form not in text
    assert "enc:" not in text


# Tables that people read.

TABLES = {
    "T": lambda f: repr(f.T),
    "head of T": lambda f: repr(f.head().T),
    "T in a notebook": lambda f: f.T._repr_html_(),
    "T to_html": lambda f: f.T.to_html(),
    "T to_string": lambda f: f.T.to_string(),
    "one row": lambda f: repr(f.iloc[0]),
    "objects": lambda f: repr(f.astype(object)),
    "stack": lambda f: repr(f[["city", "age"]].stack()),
    "index": lambda f: f.set_index("city")._repr_html_(),
    "index of two": lambda f: repr(f.set_index(["city", "id"])),
    "columns": lambda f: repr(f.set_index("city").T),
    "categories": lambda f: repr(pd.Categorical(f["city"].astype(object))),
    "groups": lambda f: repr(f.groupby("city")["id"].sum()),
    "counts": lambda f: repr(f["city"].value_counts()),
    "describe": lambda f: repr(f[["city"]].describe()),
    "a list in a frame": lambda f: repr(pd.DataFrame({"x": [[f["city"][0]]]})),
    "a dict": lambda f: repr(f.to_dict("records")),
    "numpy": lambda f: str(f.to_numpy()),
}


@pytest.mark.parametrize("table", TABLES)
def test_tables_for_people_show_short_marks(table, enc):
    check_short(TABLES[table](enc), enc)


def itables(frame):
    from itables import to_html_datatable

    return to_html_datatable(frame, connected=True, display_logo_when_loading=False)


def great_table(frame, **options):
    from great_tables import GT

    return GT(frame, **options)


OTHERS = {
    "Styler": lambda f: f.style.to_html(),
    "Styler of T": lambda f: f.T.style.to_html(),
    "Styler with an index": lambda f: f.set_index("city").style.to_html(),
    "Styler with columns": lambda f: f.set_index("city").T.style.to_html(),
    "Styler with colours": lambda f: f.style.background_gradient().highlight_null().to_html(),
    "Styler with a format": lambda f: f.style.format("{}", na_rep="-", escape="html").to_html(),
    "Styler as text": lambda f: f.style.to_string(),
    "Styler as LaTeX": lambda f: f.style.to_latex(),
    "Styler in a notebook": lambda f: f.style._repr_html_(),
    "to_markdown": lambda f: f.to_markdown(),
    "to_latex": lambda f: f.to_latex(),
    "great_tables": lambda f: great_table(f).as_raw_html(),
    "great_tables of T": lambda f: great_table(f.T.rename(columns=str).reset_index()).as_raw_html(),
    "great_tables with row names": lambda f: great_table(f, rowname_col="city").as_raw_html(),
    "great_tables with groups": lambda f: great_table(f.dropna(), groupname_col="city").as_raw_html(),
    "great_tables as LaTeX": lambda f: great_table(f).as_latex(),
    "itables": itables,
    "itables of T": lambda f: itables(f.T),
}


@pytest.mark.newest
@pytest.mark.filterwarnings("ignore:.*:UserWarning:great_tables")
@pytest.mark.parametrize("table", OTHERS)
def test_tables_of_others_show_short_marks(table, enc):
    check_short(OTHERS[table](enc), enc)


@pytest.mark.newest
def test_latex_marks_compile(enc):
    for text in (enc.to_latex(), enc.style.to_latex(), great_table(enc).as_latex()):
        assert re.search(r"enc\\#[0-9a-f]{8}", text)
        assert not re.search(r"[^\\]#", text)  # LaTeX stops at a # without a backslash


@pytest.mark.newest
def test_marimo_shows_short_marks_and_downloads_whole_cells(df, enc):
    import marimo
    from marimo._plugins.ui._impl.tables.utils import get_table_manager

    for frame in (enc, enc.head(2).T.rename(columns=str)):
        check_short(str(marimo.ui.table(frame)._component_args["data"]), enc)
    table = get_table_manager(enc)
    check_short(table.to_json_str(), enc)  # what the table shows after scrolling or sorting
    for back in (
        pd.read_csv(io.StringIO(table.to_csv_str())),
        pd.DataFrame(json.loads(table.to_json_str(strict_json=True))),
    ):
        assert back.kms.attach(enc).kms.decrypt()["age"].tolist() == df["age"].tolist()


# Text elsewhere.


def test_text_is_whole_where_the_reader_is_unknown(enc, capsys):
    cell = enc["name"][0]
    whole = "enc:" + base64.b64encode(bytes(cell)).decode()
    print(cell)
    assert capsys.readouterr().out == whole + "\n"
    assert [str(cell), f"{cell}", "%s" % cell, "{:}".format(cell), whole] == [whole] * 5  # noqa: UP031, UP032
    assert [*map(str, [cell])] == [whole]
    for column in (enc["name"], enc["name"].astype(object)):
        for text in (column.astype(str), column.astype("string"), column.map(str), column.apply(str)):
            assert text[0] == whole
    # A program that is unknown, such as one that writes files, gets the whole text.
    scope = {"__name__": "some_library", "cell": cell}
    exec("text = str(cell)", scope)  # noqa: S102
    assert scope["text"] == whole
    # So does a formatter that a user passes to Styler or to_string.
    assert enc.to_string(formatters={"name": str}).count("enc:") == 3
    assert repr(cell) == cell._marimo_serialize_()
    assert re.fullmatch(r"enc#[0-9a-f]{8}", repr(cell))


@pytest.mark.newest
def test_text_is_whole_in_templates_of_users(enc):
    import jinja2

    cell = enc["name"][0]
    assert jinja2.Template("{{ cell }}").render(cell=cell) == "enc:" + base64.b64encode(bytes(cell)).decode()


# Everything that can be read back.


def csv_by_hand(frame):
    rows = [",".join(frame), *(",".join(map(str, row)) for row in frame.itertuples(index=False))]
    return pd.read_csv(io.StringIO("\n".join(rows)))


def excel(frame, path, **options):
    frame.to_excel(path, **options)
    return pd.read_excel(path, index_col=0)


EXPORTS = {
    "to_csv": lambda f, _: pd.read_csv(io.StringIO(f.to_csv(index=False))),
    "to_csv, other options": lambda f, _: pd.read_csv(
        io.StringIO(f.to_csv(sep=";", na_rep="-", quoting=1, chunksize=2)), sep=";", na_values="-"
    ),
    "to_csv of objects": lambda f, _: pd.read_csv(io.StringIO(f.astype(object).to_csv(index=False))),
    "to_csv of T": lambda f, _: pd.read_csv(io.StringIO(f.T.to_csv()), index_col=0).T,
    "to_csv of an index": lambda f, _: pd.read_csv(io.StringIO(f.set_index(["city", "id"]).to_csv())),
    "to_json": lambda f, _: pd.read_json(io.StringIO(f.to_json())),
    "to_json, records": lambda f, _: pd.DataFrame(json.loads(f.to_json(orient="records"))),
    "to_json, lines": lambda f, _: pd.read_json(
        io.StringIO(f.to_json(orient="records", lines=True)), lines=True
    ),
    "to_json, table": lambda f, _: pd.read_json(
        io.StringIO(f.to_json(orient="table", index=False)), orient="table"
    ),
    "to_json of objects": lambda f, _: pd.read_json(io.StringIO(f.astype(object).to_json())),
    "to_json of T": lambda f, _: pd.read_json(io.StringIO(f.T.to_json())).T,
    "json.dumps": lambda f, _: pd.DataFrame(json.loads(json.dumps(f.to_dict("records"), default=str))),
    "to_xml": lambda f, path: (f.to_xml(path, parser="etree"), pd.read_xml(path, parser="etree"))[1],
    "to_dict": lambda f, _: pd.DataFrame(f.to_dict("list")),
    "to_records": lambda f, _: pd.DataFrame.from_records(f.to_records(index=False)),
    "to_numpy": lambda f, _: pd.DataFrame(f.to_numpy(), columns=list(f)),
    "to_feather": lambda f, path: (f.to_feather(path), pd.read_feather(path))[1],
    "to_pickle": lambda f, path: (f.to_pickle(path), pd.read_pickle(path))[1],  # noqa: S301
    "astype(str)": lambda f, _: f.astype(str),
    "astype('string')": lambda f, _: f.astype("string"),
    "astype(str) of objects": lambda f, _: f.astype(object).astype(str).mask(f.isna(), None),
    "map(str)": lambda f, _: f.map(str),
    "csv by hand": lambda f, _: csv_by_hand(f),
}
NEWEST = {
    "to_excel": lambda f, path: excel(f, f"{path}.xlsx"),
    "to_excel of objects": lambda f, path: excel(f.astype(object), f"{path}.xlsx"),
    "to_excel of T": lambda f, path: excel(f.T, f"{path}.xlsx").T,
    "to_excel of Styler": lambda f, path: excel(f.style.highlight_null(), f"{path}.xlsx"),
}


def separated(text, separator):
    return pd.read_csv(io.StringIO(text), sep=rf"\s*{separator}\s*", engine="python", na_values="<NA>")


def tabulated(frame, tablefmt):
    from tabulate import tabulate

    return tabulate(frame, headers="keys", tablefmt=tablefmt, showindex=False)


def comma_format():
    from tabulate import simple_separated_format

    return simple_separated_format(",")


SEPARATED = {
    "Styler": lambda f: separated(f.style.hide().to_string(delimiter=","), ","),
    "Styler with tabs": lambda f: separated(f.style.hide().to_string(delimiter="\t"), "\t"),
    "to_markdown": lambda f: separated(f.to_markdown(tablefmt="tsv", index=False), "\t"),
    "tabulate": lambda f: separated(tabulated(f, "tsv"), "\t"),
    "tabulate of objects": lambda f: separated(tabulated(f.astype(object), "tsv"), "\t"),
    "tabulate with commas": lambda f: separated(tabulated(f, comma_format()), ","),
}


@pytest.mark.newest
@pytest.mark.parametrize("table", SEPARATED)
def test_separated_values_are_for_programs(table, df, enc):
    check_recovered(SEPARATED[table](enc), df, enc)


@pytest.mark.newest
def test_cells_of_labels_are_whole_in_separated_values(enc):
    labelled = enc[["id", "city"]].dropna().set_index("city")
    for text in (
        labelled.style.to_string(delimiter=","),
        labelled.T.style.to_string(delimiter=","),
        labelled.to_markdown(tablefmt="tsv"),
        labelled.T.to_markdown(tablefmt="tsv"),
    ):
        assert (text.count("enc:"), "enc#" in text) == (3, False)


def check_recovered(back, df, enc):
    opened = (back if back.kms.encrypted else back.kms.attach(enc)).kms.decrypt().reset_index(drop=True)
    for name in SECRET:
        tm.assert_series_equal(
            opened[name].astype(object).where(opened[name].notna(), None),
            df[name].astype(object).where(df[name].notna(), None),
        )


@pytest.mark.parametrize("export", EXPORTS)
def test_exports_lose_nothing(export, df, enc, tmp_path):
    check_recovered(EXPORTS[export](enc, tmp_path / "file"), df, enc)


@pytest.mark.newest
@pytest.mark.parametrize("export", NEWEST)
def test_spreadsheets_lose_nothing(export, df, enc, tmp_path):
    check_recovered(NEWEST[export](enc, tmp_path / "file"), df, enc)


@pytest.mark.parametrize("write", ["to_stata", "to_orc"])
def test_formats_that_cannot_hold_cells_refuse_them(write, enc, tmp_path):
    with pytest.raises(NotImplementedError):
        getattr(enc, write)(tmp_path / "file")


def test_a_program_that_prints_and_writes_gets_both(tmp_path):
    """The same frame is short on the screen and whole in the file, in one process and from one function."""
    code = (
        "import pandas as pd, kmsdata, sys\n"
        "kmsdata.LocalKeystore().create_key('demo', quiet=True)\n"
        "enc = pd.DataFrame({'a': ['x', 'y']}).kms.encrypt('a', key='local://demo')\n"
        "print(enc.T)\n"
        "enc.T.to_csv(sys.argv[1])\n"
    )
    path = tmp_path / "f.csv"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.count("enc#") == path.read_text().count("enc:") == 2
    assert "enc:" not in done.stdout
    assert "enc#" not in path.read_text()
