"""Operations on a whole frame: one encrypted column neither fails them nor makes their result a lie."""

import io
import re
import warnings

import numpy as np
import pandas as pd
import pandas.testing as tm
import pytest

KEY = "local://demo"
SECRET = ["city", "name", "age"]
PANDAS_2 = pd.__version__.startswith("2.")


@pytest.fixture
def df():
    return pd.DataFrame(
        {
            "id": range(10, 18),
            "group": list("aabbabab"),
            "city": ["Oslo", "Rome", None, "Oslo", "Bern", "Rome", None, "Oslo"],
            "name": ["Ada", "Bo", "Cy", None, "", "Bo", "Zoë", "Ada"],
            "age": [36, 41, -1, 5, 0, 7, 8, 9],
            "pay": [1.5, 2.0, np.nan, 4.0, 5.0, 6.0, 7.0, 8.0],
        }
    )


@pytest.fixture
def enc(df):
    return df.kms.encrypt(["name", "age"], deterministic="city", key=KEY)


# What does the same as without the encrypted columns.

SAME = {
    "describe": lambda f: f.describe(),
    "groupby mean": lambda f: f.groupby("group").mean(numeric_only=True),
    "groupby describe": lambda f: f.groupby("group")[["pay"]].describe(),
    "mean": lambda f: f.mean(numeric_only=True),
    "agg": lambda f: f.agg("mean", numeric_only=True),
    "agg by name": lambda f: f.agg({"pay": ["mean", "max"]}),
    "corr": lambda f: f.corr(numeric_only=True),
    "cov": lambda f: f.cov(numeric_only=True),
    "quantile": lambda f: f.quantile(numeric_only=True),
    "rank": lambda f: f.rank(numeric_only=True),
    "select_dtypes": lambda f: f.select_dtypes("number"),
    "pivot_table": lambda f: f.pivot_table(index="group", values="pay"),
    "crosstab": lambda f: pd.crosstab(f["group"], f["id"]),
    "rolling": lambda f: f.rolling(2).mean(numeric_only=True),
    "transform": lambda f: f.groupby("group")[["pay"]].transform("mean"),
    "value_counts": lambda f: f.value_counts("group"),
}


@pytest.mark.parametrize("operation", SAME)
def test_other_columns_are_as_in_a_frame_without_secrets(operation, df, enc):
    result, expected = SAME[operation](enc), SAME[operation](df.drop(columns=SECRET))
    (tm.assert_frame_equal if isinstance(result, pd.DataFrame) else tm.assert_series_equal)(result, expected)


# What is about cells, and the same for them as for their values.

ABOUT_CELLS = {
    "isna": lambda f: f.isna().sum(),
    "count": lambda f: f.count(),
    "count of a group": lambda f: f.pivot_table(index="group", aggfunc="count"),
    "agg count": lambda f: f.agg(["count", "size"]) if PANDAS_2 else f.agg(["count"]),
    "nunique of deterministic ones": lambda f: f[["id", "city"]].nunique(),
    "counts of deterministic ones": lambda f: f.value_counts("city").reset_index(drop=True),
    "group of deterministic ones": lambda f: (
        f.groupby("city", sort=False)["pay"].sum().reset_index(drop=True)
    ),
    "describe of deterministic ones": lambda f: f[["city"]].describe().drop("top"),
    "shape of a sample": lambda f: pd.Series(f.sample(3, random_state=1).index),
}


@pytest.mark.parametrize("operation", ABOUT_CELLS)
def test_what_cells_tell_is_what_values_tell(operation, df, enc):
    result, expected = ABOUT_CELLS[operation](enc), ABOUT_CELLS[operation](df)
    (tm.assert_frame_equal if isinstance(result, pd.DataFrame) else tm.assert_series_equal)(result, expected)


# What moves cells: test_matrix has more of them.

MOVES = {
    "sample": lambda f: f.sample(3, random_state=1),
    "sort_values": lambda f: f.sort_values(["group", "pay"]),
    "merge": lambda f: f.merge(f[["id", "pay"]], on="id"),
    "query": lambda f: f.query("pay > 2"),
    "transform": lambda f: f.transform(lambda column: column),
    "first of each group": lambda f: f.groupby("group").transform("first"),
    "melt": lambda f: f.melt("id", ["city"]),
    "infer_objects": lambda f: f.infer_objects(),
    "shift": lambda f: f[["city", "name"]].shift(),
}


@pytest.mark.parametrize("move", MOVES)
def test_moves(move, df, enc):
    result, expected = (
        frame.astype(object).where(frame.notna(), None)
        for frame in (MOVES[move](enc).kms.decrypt(), MOVES[move](df))
    )
    tm.assert_frame_equal(result, expected)


def test_info_and_html(enc):
    buffer = io.StringIO()
    enc.info(buf=buffer, memory_usage="deep")
    assert re.search(r"age +8 non-null +encrypted\[int64\]", buffer.getvalue())
    assert enc.to_html().count("enc#") == 21


# Summaries.


def test_describe_says_what_is_known(df, enc):
    found, plain = enc.describe(include="all"), df.describe(include="all")
    assert list(found.columns) == list(df)
    for name in ("id", "group", "pay"):
        tm.assert_series_equal(found[name], plain[name], check_dtype=False)
    # Deterministic: the number of values, and how often the most frequent one appears.
    assert found["city"][["count", "unique", "freq"]].tolist() == [6, 3, 3]
    assert found["city"]["top"] == enc["city"][0]
    # Randomised: the count. All else would be about the ciphertext.
    for name in ("name", "age"):
        assert found[name]["count"] == df[name].count()
        assert found[name].drop("count").isna().all()
    assert "enc:" not in repr(found)


def test_describe_of_encrypted_columns_only(enc):
    for frame in (enc[["name"]], enc[["name", "age"]]):
        found = frame.describe()
        assert found.loc["count"].tolist() == frame.count().tolist()
        assert found.drop("count").isna().all(axis=None)
    assert enc.describe(exclude="number").loc["count"].tolist() == [8, 6, 7, 8]
    groups = enc.groupby("group").describe(include="all")
    assert groups["age"]["count"].tolist() == [4, 4]
    assert groups["age"].drop(columns="count").isna().all(axis=None)


def test_describe_of_cells_under_two_keys(df, enc):
    both = pd.concat([enc, df.kms.encrypt(["name", "age"], deterministic="city", key=KEY)])
    found = both.describe(include="all")["city"]
    assert found["count"] == 12
    assert found.drop("count").isna().all()


def test_one_randomised_column_is_not_described(enc):
    with pytest.raises(TypeError, match=r"'age' is randomised.*deterministic="):
        enc["age"].describe()
    for statistic in ("mean", "min", "max", "std", "median"):
        with pytest.raises(TypeError, match="does not support"):
            getattr(enc["age"], statistic)()
    with pytest.raises(TypeError, match="has no order"):
        enc["age"].quantile(0.5)


WITHOUT = {  # the values decide, and pandas (2.2 and 3.1) can return nothing that says "unknown"
    "nunique": lambda f: f.nunique(),
    "drop_duplicates": lambda f: f.drop_duplicates(),
    "duplicated": lambda f: f.duplicated(),
    "value_counts": lambda f: f.value_counts(),
    "mode": lambda f: f.mode(),
    "max": lambda f: f.max(),
    "cumsum": lambda f: f.cumsum(),
}


@pytest.mark.parametrize("operation", WITHOUT)
def test_errors_say_how_to_leave_encrypted_columns_out(operation, enc):
    numbers = enc.drop(columns="group")
    with pytest.raises(TypeError, match=r"encrypted\[.* '(city|name)'.*df\.kms\.decrypt\(\)") as caught:
        WITHOUT[operation](numbers)
    assert f"or leave it out (df.drop(columns=df.kms.encrypted).{operation}()" in str(caught.value)
    WITHOUT[operation](numbers.drop(columns=numbers.kms.encrypted))
    with pytest.raises(TypeError) as caught:
        WITHOUT[operation](enc["name"])
    assert "leave it out" not in str(caught.value)


NUMERIC_ONLY = {
    "corr": lambda f, **more: f.corr(**more),
    "cov": lambda f, **more: f.cov(**more),
    "rank": lambda f, **more: f.rank(**more),
    "sum": lambda f, **more: f.sum(**more),
    "mode": lambda f, **more: f.mode(**more),
    "idxmax": lambda f, **more: f.idxmax(**more),
    "quantile": lambda f, **more: f.quantile(**more),
    "agg": lambda f, **more: f.agg("mean", **more),
    "groupby sum": lambda f, **more: f.groupby("group").sum(**more),
    "groupby corr": lambda f, **more: f.groupby("group").corr(**more),
    "groupby agg": lambda f, **more: f.groupby("group").agg("mean", **more),
}


@pytest.mark.parametrize("operation", NUMERIC_ONLY)
def test_errors_name_numeric_only_where_it_helps(operation, enc):
    enc["group"] = enc["id"] % 2
    with pytest.raises(TypeError, match=r"or leave it out \(.*numeric_only=True\)$"):
        NUMERIC_ONLY[operation](enc)
    NUMERIC_ONLY[operation](enc, numeric_only=True)
    with pytest.raises(TypeError) as caught:
        enc.groupby("group").rank()  # does not have it
    assert "numeric_only" not in str(caught.value)


NAMED = {  # leaving the column out is not what the caller wants, or not possible
    "set_index": lambda f: f.set_index(["name", "id"]),
    "merge": lambda f: f.merge(f, on="name"),
    "join": lambda f: f[["id", "name"]].set_index("name").join(f.set_index("name")["pay"][1:]),
    "reindex": lambda f: f.set_index("name").reindex(f["name"][1:]),
    "groupby": lambda f: f.groupby("name").sum(numeric_only=True),
    "pivot_table": lambda f: f.pivot_table(index="name", values="pay"),
    "pivot_table of it": lambda f: f.pivot_table(index="group", values="age"),
    "drop_duplicates": lambda f: f.drop_duplicates("name"),
    "duplicated": lambda f: f.duplicated(["name"]),
    "value_counts": lambda f: f.value_counts("name"),
    "agg": lambda f: f.agg({"name": "max"}),
    "sort_values": lambda f: f.sort_values("name"),
}


@pytest.mark.parametrize("operation", NAMED)
def test_errors_about_a_named_column_do_not_advise_to_leave_it_out(operation, enc):
    with pytest.raises(TypeError, match=r"df\.kms\.decrypt\(\)") as caught:
        NAMED[operation](enc)
    assert "leave it out" not in str(caught.value)


# Values that are filled in or replaced everywhere.

FILLS = {
    "a number": lambda f: f.fillna(0),
    "text": lambda f: f.assign(pay=1.0).fillna("?"),
    "in place": lambda f: in_place(f, lambda g: g.fillna(0, inplace=True)),
}


def in_place(frame, change):
    frame = frame.copy()
    change(frame)
    return frame


@pytest.mark.parametrize("fill", FILLS)
def test_fillna_of_a_frame_leaves_encrypted_nulls_and_warns(fill, df, enc):
    with pytest.warns(UserWarning, match="which takes cells only") as said:
        result = FILLS[fill](enc)
    assert sorted(str(one.message).partition(",")[0] for one in said) == [
        f"fillna left 1 null in {enc['name'].dtype.called}",
        f"fillna left 2 nulls in {enc['city'].dtype.called}",
    ]
    assert {one.filename for one in said} == {__file__}
    assert result["pay"].notna().all()
    assert result[SECRET].equals(enc[SECRET])
    assert enc["pay"].isna().any()  # the caller's frame is unchanged


def test_fillna_without_nulls_or_by_name(df, enc):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert enc.dropna(subset=SECRET).fillna(0)["pay"].notna().all()
        result = enc.fillna({"pay": 0, "name": enc["name"][0]})
    assert result.kms.decrypt()["name"].tolist() == df["name"].fillna("Ada").tolist()
    assert result["pay"].notna().all()
    for fill in (
        lambda: enc.fillna({"name": "?"}),
        lambda: enc["name"].fillna("?"),
        lambda: enc.apply(lambda column: column.fillna(0)),
        lambda: enc.assign(name=enc["name"].fillna(0)),
    ):
        with pytest.raises(TypeError, match=r"'(name|city)' takes cells and nulls only"):
            fill()


def test_fillna_with_cells_fills_them(df, enc):
    more = df[SECRET].fillna("more").kms.encrypt(["name", "age"], deterministic="city", key=enc)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for other in (more, more.astype(object)):
            for fill in (
                lambda f, other=other: f.fillna(other),
                lambda f, other=other: in_place(f, lambda g: g.fillna(other, inplace=True)),
            ):
                result = fill(enc)
                assert result["name"].dtype == enc["name"].dtype
                tm.assert_frame_equal(result.kms.decrypt()[SECRET], df[SECRET].fillna("more"))
        # No cells in the other frame, and nulls only.
        assert enc.fillna(enc[["id"]]).equals(enc)
    foreign = df[SECRET].fillna("more").kms.encrypt(["name", "age"], deterministic="city", key=KEY)
    with pytest.raises(TypeError, match=r"'(city|name)', where it could not|do not fit into .*'(city|name)'"):
        enc.fillna(foreign)
    with pytest.warns(UserWarning, match="fillna left .* which takes cells only"):
        assert enc.fillna(df[SECRET].fillna("more"))[SECRET].equals(enc[SECRET])


REPLACEMENTS = {
    "text": (lambda f: f.replace("a", "z"), "group", list("zzbbzbzb")),
    "a number": (lambda f: f.replace(10, 0), "id", [0, *range(11, 18)]),
    "a list": (lambda f: f.replace([10, 11], 0), "id", [0, 0, *range(12, 18)]),
    "two lists": (lambda f: f.replace([10, 11], [1, 2]), "id", [1, 2, *range(12, 18)]),
    "a dict": (lambda f: f.replace({10: 0}), "id", [0, *range(11, 18)]),
    "a dict of two": (lambda f: f.replace({10: 0, 11: 0}), "id", [0, 0, *range(12, 18)]),
    "two texts": (lambda f: f.replace(["a", "b"], ["z", "y"]), "group", list("zzyyzyzy")),
    "two patterns": (lambda f: f.replace(["^a", "^b"], "z", regex=True), "group", list("zzzzzzzz")),
    "null": (lambda f: f.replace(np.nan, 0), "pay", [1.5, 2, 0, 4, 5, 6, 7, 8]),
    "a pattern": (lambda f: f.replace("^a", "z", regex=True), "group", list("zzbbzbzb")),
    "in place": (lambda f: in_place(f, lambda g: g.replace(10, 0, inplace=True)), "id", [0, *range(11, 18)]),
}


@pytest.mark.filterwarnings("ignore:Downcasting behavior:FutureWarning")  # of pandas 2
@pytest.mark.parametrize("replace", REPLACEMENTS)
def test_replace_in_a_frame_leaves_encrypted_columns_and_warns(replace, enc):
    change, column, expected = REPLACEMENTS[replace]
    message = "replace left . null" if replace == "null" else "is unchanged: no value can be found in ciph"
    with pytest.warns(UserWarning, match=message) as said:
        result = change(enc)
    assert result[column].tolist() == expected
    assert result[SECRET].equals(enc[SECRET])
    left = {"city", "name"} if replace == "null" else set(SECRET)
    ours = [one for one in said if re.search(message, str(one.message))]
    assert {name for name in SECRET if any(f"{name!r}" in str(one.message) for one in ours)} == left
    assert len(ours) == len(left)
    assert {one.filename for one in ours} == {__file__}


@pytest.mark.filterwarnings("ignore:Downcasting behavior:FutureWarning")  # of pandas 2
def test_replace_of_nulls_and_values_says_both(enc):
    with pytest.warns(UserWarning, match="is unchanged|left") as said:
        result = enc[["id", "city"]].replace([np.nan, 10], 0)
    assert result["id"].tolist() == [0, *range(11, 18)]
    assert result["city"].equals(enc["city"])
    said = sorted(str(one.message) for one in said if "'city'" in str(one.message))
    assert [text.partition(",")[0].partition(":")[0] for text in said] == [
        f"{enc['city'].dtype.called} is unchanged",
        f"replace left 2 nulls in {enc['city'].dtype.called}",
    ]


def test_replace_of_named_columns(enc, df):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert enc.replace({"id": {10: 0}})["id"][0] == 0
        if not PANDAS_2:  # it takes only its own scalars
            city = enc["city"].replace(enc["city"][0], enc["city"][1]).to_frame()
            assert city.kms.decrypt()["city"][0] == "Rome"
    for replace in (
        lambda: enc["city"].replace("Oslo", "Rome"),
        lambda: enc["city"].replace("^O", "x", regex=True),
        lambda: enc["city"].replace(np.nan, "x"),
        lambda: enc.replace({"city": {"Oslo": "Rome"}}),
    ):
        with pytest.raises(TypeError, match="'city'"):
            replace()


# Plots.


@pytest.fixture
def plots():
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    mpl.use("agg")
    yield plt
    plt.close("all")


@pytest.mark.newest
def test_plots_of_the_other_columns(enc, plots):
    assert [axes.get_title() for axes in np.ravel(enc.hist())] == ["id", "pay"]
    plots.close("all")
    assert [line.get_label() for line in enc.plot().lines] == ["id", "pay"]
    plots.close("all")
    assert [label.get_text() for label in enc.boxplot().get_xticklabels()] == ["id", "pay"]
    plots.close("all")
    enc.plot.scatter("id", "pay")
    axes = enc.groupby("city")["pay"].sum().plot.bar()
    axes.figure.canvas.draw()
    assert all(re.fullmatch("enc#[0-9a-f]{8}", label.get_text()) for label in axes.get_xticklabels())


NO_PLOTS = {
    "hist": lambda f: f.hist("age"),
    "hist of two": lambda f: f.hist(["age", "pay"]),
    "plot": lambda f: f.plot(y="age"),
    "bar": lambda f: f.plot.bar(y="age"),
    "scatter": lambda f: f.plot.scatter("id", "age"),
    "scatter, x": lambda f: f.plot.scatter("age", "id"),
    "only encrypted ones": lambda f: f[["age", "group"]].plot(),
    "series plot": lambda f: f["age"].plot(),
    "series hist": lambda f: f["age"].hist(),
    "hist in groups": lambda f: f.hist("age", by="group"),
}


@pytest.mark.newest
@pytest.mark.parametrize("plot", NO_PLOTS)
def test_plots_of_ciphertext_name_the_column_and_what_to_do(plot, df, enc, plots):
    NO_PLOTS[plot](df)
    with pytest.raises(TypeError, match=r"'age'.*[Dd]ecrypt.*df\.kms\.decrypt\("):
        NO_PLOTS[plot](enc)


@pytest.mark.newest
def test_histograms_of_matplotlib_name_the_column(enc, plots):
    with pytest.raises(TypeError, match=r"'age' have no order.*df\.kms\.decrypt"):
        plots.hist(enc["age"])
