"""Polars: ``df.kms``, ``lf.kms``, and the type of encrypted columns."""

import datetime as dt
import decimal
import doctest
import importlib
import io
import pickle
import re
import sys
import types
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kmsdata
from kmsdata.emulator import Emulator

pytestmark = [pytest.mark.newest, pytest.mark.engine("polars")]

KEY = "local://demo"
GUIDE = Path(__file__).parents[2] / "docs" / "polars.md"


@pytest.fixture(scope="module")
def pl():
    importlib.import_module("kmsdata.polars")
    return importlib.import_module("polars")


@pytest.fixture
def df(pl):
    return pl.DataFrame(
        {
            "name": ["Ada", None, "Bo", "Cy"],
            "email": ["a@x.org", "b@x.org", None, "a@x.org"],
            "age": [36, 29, None, 41],
            "city": ["Ulm", "Bonn", "Ulm", "Köln"],
        }
    )


@pytest.fixture
def enc(df):
    return df.kms.encrypt(["name", "age"], deterministic="email", key=KEY)


def same(one, two):
    from polars.testing import assert_frame_equal

    assert_frame_equal(one, two, check_exact=True)


def second_key():
    return kmsdata.LocalKeystore().create_key("next", quiet=True)


# --- the eager frame --------------------------------------------------------------------------------


def test_a_frame_comes_back_exactly(df, enc):
    assert enc.kms.encrypted == ["name", "email", "age"]
    assert enc["city"].to_list() == df["city"].to_list()
    same(enc.kms.decrypt(), df)
    same(enc.kms.decrypt("age").select("age"), df.select("age"))
    assert enc.kms.decrypt(["age"]).kms.encrypted == ["name", "email"]


def test_columns_are_chosen_by_name_function_regex_and_selector(pl, df):
    import polars.selectors as cs

    assert df.kms.encrypt("age", key=KEY).kms.encrypted == ["age"]
    assert df.kms.encrypt(regex="^(name|age)$", key=KEY).kms.encrypted == ["name", "age"]
    assert df.kms.encrypt(lambda name: name.startswith("c"), key=KEY).kms.encrypted == ["city"]
    chosen = df.kms.encrypt(cs.integer(), deterministic=cs.by_name("email"), key=KEY)
    assert chosen.kms.encrypted == ["email", "age"]
    with pytest.raises(ValueError, match="selects no column"):
        df.kms.encrypt(cs.float(), key=KEY)
    with pytest.raises(ValueError, match="both passed"):
        df.kms.encrypt(cs.integer(), regex="age", key=KEY)
    with pytest.raises(KeyError, match="did you mean 'name'"):
        df.kms.encrypt("nmae", key=KEY)
    with pytest.raises(ValueError, match="already encrypted"):
        df.kms.encrypt("age", key=KEY).kms.encrypt("age", key=KEY)


@pytest.mark.parametrize("name", ["*", "^a$", "^.*$", "a.b", "", 'quo"te', "身份证"])
def test_names_that_polars_would_take_for_patterns(pl, name):
    df = pl.DataFrame({"a": [1], name: [2]})
    enc = df.kms.encrypt(name, key=KEY)
    assert enc.kms.encrypted == [name]
    same(enc.kms.decrypt(), df)
    same(df.lazy().kms.encrypt(name, key=KEY).kms.decrypt().collect(), df)
    enc = df.lazy().kms.encrypt(deterministic=name, key=KEY)
    assert enc.filter(enc.kms.isin(name, 2)).collect().height == 1


@pytest.fixture(scope="module")
def columns(pl):
    null = None
    day, moment = dt.date(2026, 2, 3), dt.datetime(2026, 2, 3, 4, 5, 6, 789)
    every = {
        "string": pl.Series(["a", null, "", "\U0001f642"]),
        "categorical": pl.Series(["a", null, "b"], dtype=pl.Categorical),
        "enum": pl.Series(["a", null, "b"], dtype=pl.Enum(["b", "a", "unused"])),
        "enum without values": pl.Series([null], dtype=pl.Enum(["b", "a"])),
        "decimal": pl.Series([decimal.Decimal("1.50"), null], dtype=pl.Decimal(10, 2)),
        "decimal of 38": pl.Series([decimal.Decimal(10**37), null], dtype=pl.Decimal(38, 0)),
        "date": pl.Series([day, null]),
        "time": pl.Series([dt.time(1, 2, 3, 4), null]),
        "list": pl.Series([[1, null], null, []]),
        "list of texts": pl.Series([["x", null], null, []]),
        "list of structs": pl.Series([[{"a": dt.timedelta(1)}], null]),
        "list of categoricals": pl.Series([["a"], null], dtype=pl.List(pl.Categorical)),
        "array": pl.Series([[1, 2], null], dtype=pl.Array(pl.Int16, 2)),
        "array of arrays": pl.Series([[[1, 2]], null], dtype=pl.Array(pl.Array(pl.Int16, 2), 1)),
        "struct": pl.Series([{"a": 1, "b": "x"}, null]),
        "binary": pl.Series([b"a", null, b"", b"\x01" * 40]),
        "null": pl.Series([null, null]),
        "boolean": pl.Series([True, null]),
        "float16": pl.Series([1.5, null], dtype=pl.Float16),
        "float32": pl.Series([1.5, null, float("nan")], dtype=pl.Float32),
        "float64": pl.Series([-0.0, null, float("nan")]),
    }
    for unit in ("ms", "us", "ns"):
        every[f"duration {unit}"] = pl.Series([dt.timedelta(1, 2, 3000), null], dtype=pl.Duration(unit))
        every[f"naive {unit}"] = pl.Series([moment, null], dtype=pl.Datetime(unit))
        for zone in ("UTC", "Europe/Berlin", "Asia/Kathmandu"):
            every[f"{zone} {unit}"] = every[f"naive {unit}"].dt.replace_time_zone(zone)
    for kind in ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64"):
        every[kind] = pl.Series([1, null, 127], dtype=getattr(pl, kind))
    return {name: series.alias(name) for name, series in every.items()}


def test_every_type_comes_back_exactly(pl, columns):
    for name, series in columns.items():
        df = series.to_frame()
        enc = df.kms.encrypt(name, key=KEY)
        back = enc.kms.decrypt()
        assert back.schema == df.schema, name
        same(back, df)
        same(df.clear().kms.encrypt(name, key=KEY).kms.decrypt(), df.clear())


def test_every_type_comes_back_exactly_from_a_lazy_frame_and_its_file(pl, columns, tmp_path):
    for name, series in columns.items():
        df = series.to_frame()
        if series.dtype.base_type() in (pl.Enum, pl.Categorical):
            with pytest.raises(kmsdata.UnsupportedTypeError, match=r"LazyFrame.*collect\(\) first"):
                df.lazy().kms.encrypt(name, key=KEY)
            continue
        lazy = df.lazy().kms.encrypt(name, key=KEY)
        lazy.kms.sink_parquet(tmp_path / "a.parquet")
        scanned = pl.scan_parquet(tmp_path / "a.parquet").kms.decrypt()
        assert lazy.kms.decrypt().collect_schema() == scanned.collect_schema() == df.schema, name
        for engine in ("in-memory", "streaming"):
            same(lazy.kms.decrypt().collect(engine=engine), df)
            same(scanned.collect(engine=engine), df)


def test_types_that_cannot_come_back_are_refused_by_name(pl):
    refused = {
        "Python objects": pl.Series([object()], dtype=pl.Object),
        "128 bits": pl.Series([2**100], dtype=pl.Int128),
        "integers of 128": pl.Series([[2**127]], dtype=pl.List(pl.UInt128)),
        "named Categories": pl.Series(["a"], dtype=pl.Categorical(pl.Categories("own"))),
        "Enum inside": pl.Series([{"a": "x"}], dtype=pl.Struct({"a": pl.Enum(["x"])})),
        "width 0": pl.Series([[]], dtype=pl.Array(pl.Int8, 0)),
        "extension type": pl.Series([1]).ext.to(pl.Extension("other.type", pl.Int64)),
    }
    for why, series in refused.items():
        df = pl.DataFrame({"odd": series, "age": [36]})
        for frame in (df, df.lazy()):
            with pytest.raises(kmsdata.UnsupportedTypeError, match=f"'odd'.*{why}"):
                frame.kms.encrypt("odd", key=KEY)
        # Beside encrypted columns it is allowed.
        enc = df.kms.encrypt("age", key=KEY)
        assert enc.kms.decrypt().schema == df.schema
        assert enc.kms.verify().ok
        assert [column.encrypted for column in enc.kms.inspect().columns] == [False, True]


def test_names_and_types_that_arrow_does_not_have_are_refused_beside_a_column(pl, tmp_path):
    df = pl.DataFrame({"a": ["x"], "b\0": [1], "s": [{"f\0": 1}], "i": [1]})
    df = df.with_columns(pl.col("i").cast(pl.Int128), n=pl.struct(pl.col("i").cast(pl.Int128)))
    enc = df.kms.encrypt("a", key=KEY)
    same(enc.kms.decrypt(), df)  # Arrow gets none of the others
    for name, text in (("b\0", r"b\x00"), ("s", r"f\x00")):
        with pytest.raises(ValueError, match=re.escape(text) + "' contains a NUL character"):
            df.kms.encrypt(name, key=KEY)
        with pytest.raises(ValueError, match=re.escape(text) + "' contains a NUL character"):
            df.lazy().kms.encrypt(name, key=KEY)
        for frame in (df.select("a", name), enc.select("a", name)):
            for use in (frame.kms.inspect, frame.kms.verify, lambda frame=frame: kmsdata.inspect(frame)):
                with pytest.raises(ValueError, match=re.escape(text)):
                    use()
        with pytest.raises(ValueError, match=re.escape(text)):
            enc.select("a", name).kms.to_parquet(tmp_path / "e.parquet")
        with pytest.raises(ValueError, match=re.escape(text)):
            kmsdata.encrypt_table(df.select("a", name), "a", key=KEY)
    for name in ("i", "n"):
        with pytest.raises(kmsdata.UnsupportedTypeError, match=f"'{name}' .*Int128.*Cast"):
            kmsdata.encrypt_table(df.select("a", name), "a", key=KEY)


def test_the_list_of_an_enum_is_not_in_the_clear(pl):
    df = pl.DataFrame({"state": pl.Series(["divorced"], dtype=pl.Enum(["divorced", "widowed-or-alike"]))})
    enc = df.kms.encrypt("state", key=KEY)
    text = repr(enc.to_arrow().schema.field(0).metadata) + enc.schema["state"].ext_metadata()
    assert "widowed" not in text
    same(enc.kms.decrypt(), df)


def test_no_message_lists_the_values_of_an_enum(pl, enc, tmp_path):
    from kmsdata.polars import concat

    grades = pl.Enum(["bankrupt", "solvent"])
    df = pl.DataFrame({"e": ["solvent"], "l": [["solvent"]]}, schema={"e": grades, "l": pl.List(grades)})
    inside = pl.struct(pl.lit("solvent", grades).alias("e"), "age").alias("s")
    cells = enc.select(pl.col("age").ext.storage()).with_columns(e=pl.lit("solvent", grades))
    wide = pl.struct(pl.lit("solvent", grades).alias("e"), pl.lit(1, pl.Int128).alias("i")).alias("s")
    for use in (
        lambda: df.lazy().kms.encrypt("e", key=KEY),
        lambda: df.kms.encrypt("l", key=KEY),
        lambda: enc.select(inside).kms.decrypt(),
        lambda: enc.with_columns(wide).kms.to_parquet(tmp_path / "e.parquet"),
        lambda: kmsdata.encrypt_table(enc.select("city", wide), "city", key=KEY),
        lambda: cells.lazy().kms.attach(enc, {"e": "age"}),
        lambda: concat([enc.select("age"), pl.DataFrame({"age": df["e"]})]),
    ):
        with pytest.raises((TypeError, ValueError, kmsdata.KmsDataError)) as caught:
            use()
        assert "solvent" not in repr(caught.value) + str(vars(caught.value))


def test_ordered_categories_of_pandas_are_an_enum(pl):
    series = pd.Series(pd.Categorical(["b", None], ["b", "a"], ordered=True), name="size")
    enc = pl.from_arrow(pa.table(series.to_frame().kms.encrypt("size", key=KEY)))
    assert enc.kms.decrypt().schema["size"] == pl.Enum(["b", "a"])


def test_a_type_that_polars_does_not_have_is_refused_without_its_values(pl):
    table = pa.table({"wait": pa.array([pa.MonthDayNano([1, 15, 77777])])})
    enc = pl.from_arrow(kmsdata.encrypt_table(table, "wait", key=KEY))
    with pytest.raises(kmsdata.UnsupportedTypeError, match=r"'wait'.*month_day_nano") as caught:
        enc.kms.decrypt()
    assert caught.value.__context__ is None
    assert not any(
        isinstance(value, pa.Table | pa.ChunkedArray) and value.type != enc["wait"].dtype
        for frame in frames_of(caught.value)
        for value in frame.values()
        if isinstance(value, pa.ChunkedArray)
    )


def frames_of(error):
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame.f_locals
        trace = trace.tb_next


def test_search(pl, df, enc):
    found = enc.kms.isin("email", ["a@x.org", "no-one@x.org"])
    assert found.to_list() == [True, False, False, True]
    assert found.dtype == pl.Boolean
    assert enc.kms.isin("email", None).to_list() == [False, False, True, False]
    assert enc.kms.isin("email", pl.Series(["b@x.org", None])).to_list() == [False, True, True, False]
    assert enc["email"].kms.isin("b@x.org").to_list() == [False, True, False, False]
    with pytest.raises(TypeError, match="randomised"):
        enc.kms.isin("age", 36)
    with pytest.raises(TypeError, match="cannot contain the value"):
        enc.kms.isin("email", 5)
    with pytest.raises(kmsdata.FormatError, match="not encrypted"):
        enc.kms.isin("city", "Ulm")
    with pytest.raises(TypeError, match="cells, not values"):
        enc.kms.isin("email", enc["email"])


def test_a_search_among_cells_of_other_data_is_an_error(pl, df, enc):
    other = df.kms.encrypt(deterministic="email", key=KEY)
    mixed = enc.select(other["email"].ext.storage().ext.to(enc.schema["email"]))
    with pytest.raises(kmsdata.WrongKeyError, match="'email'"):
        mixed.kms.isin("email", "a@x.org")
    lazy = mixed.lazy()
    with pytest.raises(kmsdata.WrongKeyError, match="'email'"):
        lazy.filter(lazy.kms.isin("email", "a@x.org")).collect()
    with pytest.raises(kmsdata.WrongKeyError, match="'email'"):
        mixed.kms.decrypt()


def test_polars_own_comparisons_are_no_silent_misses(pl, enc):
    for values in (["a@x.org"], [b"a@x.org"]):
        with pytest.raises(pl.exceptions.PolarsError):
            enc.filter(pl.col("email").is_in(values))
    for wrong in (pl.Binary, pl.String):
        with pytest.raises(pl.exceptions.PolarsError):
            enc.select(pl.col("email").cast(wrong))
    assert enc.group_by("email").len().sort("len")["len"].to_list() == [1, 1, 2]
    with pytest.raises(pl.exceptions.PolarsError):
        enc.select(pl.col("email").max())


def test_series(pl):
    series = pl.Series("age", [36, None, 41])
    enc = series.kms.encrypt(deterministic=True, key=KEY)
    assert repr(enc.dtype) == "encrypted[int64]"
    assert enc.kms.decrypt().equals(series, check_dtypes=True)
    with pytest.raises(kmsdata.FormatError, match="not encrypted"):
        series.kms.decrypt()


def test_lost_headers(pl, df, enc, tmp_path):
    lost = enc.with_columns(pl.col("email", "age").ext.storage())
    for frame in (lost, lost.lazy()):
        with pytest.raises(kmsdata.FormatError, match="looks like cells"):
            frame.kms.decrypt().lazy().collect()
    same(lost.kms.decrypt("name").select("name"), df.select("name"))
    same(lost.kms.attach(enc).kms.decrypt(), df)
    same(lost.kms.attach([enc]).kms.decrypt(), df)
    same(lost.kms.attach(enc.lazy()).kms.decrypt(), df)
    enc.kms.to_parquet(tmp_path / "a.parquet")
    same(lost.kms.attach(str(tmp_path / "a.parquet")).kms.decrypt(), df)
    renamed = lost.rename({"age": "years"})
    back = renamed.kms.attach(enc, {"years": "age", "email": "email"}).rename({"years": "age"})
    same(back.kms.decrypt(), df)
    other = df.kms.encrypt("age", deterministic="email", key=KEY)
    with pytest.raises(kmsdata.FormatError, match="key ids"):
        lost.kms.attach(other)


def test_lost_headers_are_attached_lazily(pl, df, enc, tmp_path):
    lost = enc.lazy().with_columns(pl.col("email", "age").ext.storage())
    enc.kms.to_parquet(tmp_path / "a.parquet")
    for like in (enc, enc.lazy(), enc.to_arrow(), enc.to_pandas(), tmp_path / "a.parquet"):
        same(lost.kms.attach(like).kms.decrypt().collect(), df)
    renamed = lost.rename({"age": "years"}).kms.attach(enc, {"years": "age", "email": "email"})
    same(renamed.rename({"years": "age"}).kms.decrypt().collect(), df)
    other = df.kms.encrypt("age", deterministic="email", key=KEY)
    with pytest.raises(kmsdata.WrongKeyError, match=r"'(age|email)'"):
        lost.kms.attach(other).kms.decrypt().collect()
    with pytest.raises(kmsdata.FormatError, match="'city' does not contain bytes"):
        lost.kms.attach(enc, {"city": "age"})
    with pytest.raises(KeyError, match="'year'"):
        lost.kms.attach(enc, "year")
    with pytest.raises(ValueError, match="no column of bytes"):
        df.lazy().kms.attach(enc)


def test_text_of_cells_is_noticed(pl, enc):
    text = pl.DataFrame({"age": [str(cell) for cell in enc.to_pandas()["age"].dropna()]})
    for frame in (text, text.lazy()):
        with pytest.raises(kmsdata.FormatError, match="looks like cells"):
            frame.kms.decrypt().lazy().collect()
    assert text.kms.attach(enc).kms.decrypt()["age"].to_list() == [36, 29, 41]


def test_cells_in_lists_are_an_error(pl, enc):
    grouped = enc.group_by("city").agg("age")
    with pytest.raises(TypeError, match=r"'age'.*explode\(\)"):
        grouped.kms.decrypt()
    assert grouped.explode("age").kms.decrypt()["age"].drop_nulls().sort().to_list() == [29, 36, 41]


def test_exchanged_labels_are_an_error(pl, enc):
    swapped = enc.rename({"name": "age", "age": "name"})
    for frame in (swapped, swapped.lazy()):
        for columns in (None, "name"):
            with pytest.raises(kmsdata.FormatError, match="exchanged"):
                frame.kms.decrypt(columns)
    renamed = enc.rename({"email": "mail"})
    for frame in (renamed, renamed.lazy()):
        with pytest.raises(ValueError, match="look exchanged"):
            frame.kms.encrypt(deterministic="city", domain="mail", key=enc)


def test_inspect_verify_and_rewrap(pl, df, enc):
    assert [column.name for column in enc.kms.inspect().columns] == df.columns
    assert enc.lazy().kms.inspect().data_keys[0].keys == (KEY,)
    report = enc.kms.verify(encrypted=["age"])
    assert report.ok
    assert sum(column.cells for column in report.columns) == 9
    changed = enc.with_columns(
        pl.col("age").ext.storage().bin.head(30).ext.to(enc.schema["age"]).alias("age")
    )
    assert not changed.kms.verify().ok
    with pytest.raises(kmsdata.TamperedError, match="'age'"):
        changed.kms.decrypt()
    with pytest.raises(kmsdata.TamperedError, match="'age'"):
        changed.lazy().kms.decrypt().collect(engine="streaming")
    new = second_key()
    for again in (enc.kms.rewrap(new), enc.lazy().kms.rewrap(new).collect()):
        assert again.kms.inspect().data_keys[0].keys == (new,)
        same(again.kms.decrypt(key=new), df)
        assert again["age"].ext.storage().equals(enc["age"].ext.storage())


# --- the type -----------------------------------------------------------------------------------------


def test_types_print_short(pl, enc):
    shown = str(enc)
    for text in ("encrypted[str]", "encrypted[int64]"):
        assert text in shown
        assert text in repr(enc.schema)
    for text in ("wrapped", "AES", "data_keys"):
        assert text not in shown + repr(enc.schema) + enc.lazy().explain()


@pytest.mark.parametrize("text", [None, "", "{", "\x1b[2J", '{"version": 99}'])
def test_a_malformed_header_does_not_stop_polars(pl, text):
    import kmsdata.polars

    broken = pl.DataFrame({"a": [b"x"], "b": [1]}).with_columns(
        pl.col("a").ext.to(kmsdata.polars.EncryptedExtension("kmsdata.encrypted", pl.Binary, text))
    )
    assert "encrypted[?]" in str(broken)
    for frame in (broken, broken.lazy()):
        with pytest.raises(kmsdata.FormatError, match="'a'"):
            frame.kms.decrypt()


def test_a_frame_survives_pickle_ipc_and_polars_own_parquet(pl, df, enc, tmp_path):
    same(pickle.loads(pickle.dumps(enc)).kms.decrypt(), df)  # noqa: S301
    enc.write_ipc(tmp_path / "a.arrow")
    same(pl.read_ipc(tmp_path / "a.arrow").kms.decrypt(), df)
    enc.write_parquet(tmp_path / "a.parquet")
    same(pl.read_parquet(tmp_path / "a.parquet").kms.decrypt(), df)
    assert kmsdata.verify(tmp_path / "a.parquet", encrypted=["age", "name", "email"]).ok
    back = kmsdata.read_parquet(tmp_path / "a.parquet", decrypt=True)
    assert back["name"].fillna("").tolist() == ["Ada", "", "Bo", "Cy"]


def test_frames_of_one_data_key_meet_without_help(pl, df, enc):
    again = df.kms.encrypt(["name", "age"], deterministic="email", key=enc)
    same(pl.concat([enc, again]).kms.decrypt(), pl.concat([df, df]))
    met = enc.join(again.select("email", years="age"), on="email")
    assert met.height == 5  # two rows have a@x.org: four pairs, and one of b@x.org


def test_frames_of_other_headers_do_not_meet_unaided(pl, df, enc):
    other = df.kms.encrypt(["name", "age"], deterministic="email", key=KEY)
    for second in (other, enc.kms.rewrap(second_key())):
        with pytest.raises(pl.exceptions.SchemaError):
            pl.concat([enc, second])
        with pytest.raises(pl.exceptions.SchemaError):
            enc.join(second, on="email")


def test_concat_and_join_after_a_rewrap(pl, df, enc):
    from kmsdata.polars import concat, join

    new = second_key()
    again = enc.kms.rewrap(new)
    for one, two in ((enc, again), (enc.lazy(), again.lazy())):
        both = concat([one, two]).lazy().collect()
        assert both.kms.inspect().data_keys[0].keys == (KEY, new)
        same(both.kms.decrypt(key=new), pl.concat([df, df]))
        met = join(one, two.select("email", "city"), on="email").lazy().collect()
        assert met.height == 5
        ours = df.select("name", "email", "age", "city")
        same(
            met.kms.decrypt(key=new).unique(["name", "age"]).sort("name").select("age"),
            ours.drop_nulls("email").sort("name").select("age"),
        )
    met = join(enc, again.select(mail="email"), left_on="email", right_on="mail", how="left")
    assert met.height == 6


def test_concat_unites_several_data_keys(pl, df, enc):
    from kmsdata.polars import concat

    other = df.kms.encrypt("age", deterministic=["email", "city"], key=KEY).select("email", "age", "city")
    both = concat([enc, other.with_columns(city=pl.lit("x"))], how="diagonal")
    back = both.kms.decrypt()
    assert back["age"].to_list() == [36, 29, None, 41] * 2
    assert back["name"].to_list() == [*df["name"], None, None, None, None]
    assert both.kms.isin("email", "a@x.org").to_list() == [True, False, False, True] * 2
    with pytest.raises(ValueError, match=r"is encrypted in one frame, and (String|Int64) in another"):
        concat([enc, df])


def test_headers_that_cannot_be_united(pl, df):
    from kmsdata.polars import concat

    one = df.kms.encrypt("age", key=KEY)
    two = df.rename({"age": "years"}).kms.encrypt("years", key=one).rename({"years": "age"})
    with pytest.raises(kmsdata.FormatError, match="'age' cannot be united"):
        concat([one, two])


@pytest.mark.parametrize("how", ["vertical", "vertical_relaxed", "diagonal", "diagonal_relaxed", "align"])
def test_an_encrypted_column_is_not_concatenated_with_a_plain_one(pl, enc, how):
    from kmsdata.polars import concat

    plain = enc.with_columns(pl.col("name").ext.storage())
    for frames in ([enc, plain], [plain, enc], [enc.lazy(), plain.lazy()]):
        with pytest.raises(
            ValueError, match="'name' is encrypted in one frame, and Binary in another"
        ) as caught:
            concat(frames, how=how)
        assert len(str(caught.value)) < 200
    nulls = enc.with_columns(name=pl.lit(None))
    assert concat([enc, nulls], how="vertical_relaxed").kms.decrypt().height == 8


def test_joins_that_would_find_nothing_are_errors(pl, df, enc):
    from kmsdata.polars import join

    other = df.kms.encrypt(deterministic="email", key=KEY)
    with pytest.raises(ValueError, match=r"different data keys.*key=first_frame"):
        join(enc, other, on="email")
    with pytest.raises(ValueError, match="different domains"):
        join(enc, df.kms.encrypt(deterministic="email", domain="mail", key=enc), on="email")
    with pytest.raises(ValueError, match="different types"):
        join(enc, df.cast({"email": pl.Categorical}).kms.encrypt(deterministic="email", key=enc), on="email")
    with pytest.raises(TypeError, match="'age' is randomised"):
        join(enc, enc, on="age")
    with pytest.raises(ValueError, match="'email' is not encrypted"):
        join(enc, df, on="email")
    with pytest.raises(ValueError, match="pass on="):
        join(enc, enc, left_on="email")
    assert join(enc, df, on="city").height == 6


# --- the lazy frame -------------------------------------------------------------------------------------


@pytest.fixture
def people(pl, tmp_path):
    """A file of several row groups, unencrypted."""
    rows = 60_000
    df = pl.DataFrame(
        {
            "n": range(rows),
            "ssn": [f"078-05-{n:06}" for n in range(rows)],
            "city": ["Ulm", "Bonn", None] * (rows // 3),
        }
    )
    df.write_parquet(tmp_path / "people.parquet", row_group_size=10_000)
    return tmp_path / "people.parquet"


def test_lazy_encryption_makes_one_data_key_and_streams(pl, people, tmp_path, monkeypatch):
    from kmsdata.polars import _EncryptPart

    lf = pl.scan_parquet(people).kms.encrypt("ssn", deterministic="city", key=KEY)
    assert lf.kms.encrypted == ["ssn", "city"]
    sizes, call = [], _EncryptPart.__call__
    monkeypatch.setattr(
        _EncryptPart, "__call__", lambda self, part: sizes.append(len(part)) or call(self, part)
    )
    before = kmsdata.usage().generate_data_key
    lf.kms.sink_parquet(tmp_path / "enc.parquet", encrypted=["ssn", "city"])
    assert len(sizes) > 1
    assert sum(sizes) == 60_000
    assert kmsdata.usage().generate_data_key == before
    enc = pl.scan_parquet(tmp_path / "enc.parquet")
    assert enc.collect_schema() == lf.collect_schema()
    same(enc.kms.decrypt().collect(engine="streaming"), pl.read_parquet(people))
    where = enc.filter(enc.kms.isin("city", "Bonn")).kms.decrypt().select("n", "ssn")
    assert where.collect(engine="streaming").height == 20_000


def test_a_column_of_one_repeated_value_has_different_cells(pl, people, tmp_path):
    # Polars calls elementwise functions once for a column that repeats one value.
    (tmp_path / "hive" / "year=2026").mkdir(parents=True)
    pl.DataFrame({"n": range(1000)}).write_parquet(tmp_path / "hive" / "year=2026" / "a.parquet")
    for lf in (
        pl.LazyFrame({"n": range(1000)}).with_columns(year=pl.lit(2026)),
        pl.scan_parquet(tmp_path / "hive", hive_partitioning=True),
    ):
        for engine in ("in-memory", "streaming"):
            enc = lf.kms.encrypt("year", key=KEY).collect(engine=engine)
            assert enc["year"].ext.storage().n_unique() == 1000
            assert enc.kms.decrypt()["year"].unique().to_list() == [2026]
    eager = pl.DataFrame({"n": range(1000)}).with_columns(year=pl.lit(2026)).kms.encrypt("year", key=KEY)
    assert eager["year"].ext.storage().n_unique() == 1000


def test_projections_and_filters_around_lazy_encryption(pl, people):
    lf = pl.scan_parquet(people).kms.encrypt("ssn", key=KEY)
    for engine in ("in-memory", "streaming"):
        for query in (
            lf.select("ssn"),
            lf.filter(pl.col("n") < 3).select("ssn"),
            lf.select("city", "ssn"),
            lf.head(5),
        ):
            got = query.kms.decrypt().collect(engine=engine)
            assert got["ssn"][:3].to_list() == ["078-05-000000", "078-05-000001", "078-05-000002"]


def test_lazy_decryption_decrypts_only_what_is_used(pl, people, tmp_path, monkeypatch):
    from kmsdata.polars import _DecryptPart

    pl.scan_parquet(people).kms.encrypt(["ssn", "city"], key=KEY).kms.sink_parquet(tmp_path / "e.parquet")
    calls, call = [], _DecryptPart.__call__
    monkeypatch.setattr(
        _DecryptPart,
        "__call__",
        lambda self, part, **_: calls.append((part.name, len(part))) or call(self, part),
    )
    lf = pl.scan_parquet(tmp_path / "e.parquet").kms.decrypt()
    assert calls == []
    lf.filter(pl.col("n") < 100).select("n", "ssn").collect()
    assert {name for name, _ in calls} == {"ssn"}
    assert sum(size for _, size in calls) == 100
    calls.clear()
    assert lf.filter(pl.col("city") == "Ulm").select(pl.len()).collect().item() == 20_000
    assert {name for name, _ in calls} == {"city"}


def test_a_plan_holds_no_secret(pl, people, tmp_path, monkeypatch):
    with Emulator() as emulator:
        monkeypatch.setenv("KMSDATA_TENCENT_ENDPOINT", emulator.url)
        monkeypatch.setenv("TENCENTCLOUD_SECRET_ID", emulator.secret_id)
        monkeypatch.setenv("TENCENTCLOUD_SECRET_KEY", emulator.secret_key)
        key = kmsdata.TencentKMS("ap-guangzhou", endpoint=emulator.url).create_key("people")
        lf = pl.scan_parquet(people).kms.encrypt("ssn", deterministic="city", key=key)
        lf.kms.sink_parquet(tmp_path / "e.parquet")
        enc = pl.scan_parquet(tmp_path / "e.parquet")
        found = enc.filter(enc.kms.isin("city", "Bonn")).kms.decrypt(key=key)
        assert found.collect().height == 20_000
        assert emulator.calls["GenerateDataKey"] == 1
        secret = data_key_of(enc, key)
    for plan in (lf, enc, found):
        for text in (plan.serialize(), plan.explain().encode(), plan.explain(engine="streaming").encode()):
            for hidden in (
                secret,
                secret.hex().encode(),
                emulator.secret_key.encode(),
                b"078-05",
                b"Bonn",
                b"Ulm",
            ):
                assert hidden not in text


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
def test_the_session_of_a_plan_is_that_of_the_call_that_made_it(pl, people, tmp_path, engine):
    # Polars runs Python on its own threads, which are in no block of `using`.
    mine, other = (
        kmsdata.LocalKeystore(tmp_path / "mine.json"),
        kmsdata.LocalKeystore(tmp_path / "other.json"),
    )
    mine.create_key("mine", quiet=True)
    other.create_key("other", quiet=True)
    with kmsdata.using(mine):
        enc = pl.scan_parquet(people).kms.encrypt("ssn", key="local://mine")
        same(enc.kms.decrypt().collect(engine=engine), pl.read_parquet(people))
        enc.kms.sink_parquet(tmp_path / "e.parquet")
        lf = pl.scan_parquet(tmp_path / "e.parquet").kms.decrypt()
        same(lf.collect(engine=engine), pl.read_parquet(people))
    same(lf.collect(engine=engine), pl.read_parquet(people))  # the block has ended, the plan has not
    with kmsdata.using(other):
        same(lf.collect(engine=engine), pl.read_parquet(people))
    outside = pl.scan_parquet(tmp_path / "e.parquet").kms.decrypt()
    with kmsdata.using(mine), pytest.raises(kmsdata.KeyNotFoundError):
        outside.collect(engine=engine)


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
def test_a_serialised_plan_has_the_session_of_its_process(pl, people, tmp_path, engine):
    mine = kmsdata.LocalKeystore(tmp_path / "mine.json")
    mine.create_key("mine", quiet=True)
    with kmsdata.using(mine):
        enc = pl.scan_parquet(people).kms.encrypt("ssn", key="local://mine")
        plans = [plan.serialize() for plan in (enc, enc.kms.decrypt())]
        enc.kms.sink_parquet(tmp_path / "e.parquet")
        plans.append(pl.scan_parquet(tmp_path / "e.parquet").kms.decrypt().serialize())
    for plan in plans:
        assert b"mine.json" not in plan
        with pytest.raises(kmsdata.KeyNotFoundError):
            pl.LazyFrame.deserialize(io.BytesIO(plan)).collect(engine=engine)
    kmsdata.use(mine)
    for plan in plans:
        assert pl.LazyFrame.deserialize(io.BytesIO(plan)).collect(engine=engine).height == 60_000


def data_key_of(lf, key):
    from kmsdata.keys.unwrap import open_keys
    from kmsdata.polars import _headers

    headers = _headers(lf.collect_schema())
    (data_key,) = open_keys(list(headers.items()), key, None).values()
    return bytes(data_key._secret.reveal())


def test_a_data_key_is_not_put_into_a_plan(pl, enc):
    with pytest.raises(TypeError, match="DataKey is secret"):
        enc.lazy().kms.decrypt(key=kmsdata.data_key(enc.to_arrow()))


def test_another_key_is_refused_lazily(pl, enc):
    lf = enc.lazy().kms.decrypt(key=second_key())
    with pytest.raises(kmsdata.WrongKeyError):
        lf.collect()


# --- files ------------------------------------------------------------------------------------------------


def test_files_are_those_of_pandas(pl, df, enc, tmp_path):
    enc.kms.to_parquet(tmp_path / "p.parquet", encrypted=["name", "age"])
    pa.table(enc.to_arrow()).to_pandas().kms.to_parquet(tmp_path / "pandas.parquet")
    ours, theirs = pq.read_metadata(tmp_path / "p.parquet"), pq.read_metadata(tmp_path / "pandas.parquet")
    assert ours.metadata[b"kmsdata"] == theirs.metadata[b"kmsdata"]
    for position in range(3):
        one, two = ours.row_group(0).column(position), theirs.row_group(0).column(position)
        assert (one.physical_type, one.compression, one.is_stats_set, one.encodings) == (
            two.physical_type, two.compression, two.is_stats_set, two.encodings
        )  # fmt: skip
    assert kmsdata.verify(tmp_path / "p.parquet", encrypted=["name", "email", "age"]).ok
    back = kmsdata.read_parquet(tmp_path / "p.parquet", filters=[("city", "==", "Bonn")], decrypt=True)
    assert back["age"].tolist() == [29]
    same(pl.read_parquet(tmp_path / "p.parquet").kms.decrypt(), df)


def test_files_that_are_refused(pl, df, enc, tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match="nothing in this frame is encrypted"):
        df.kms.to_parquet(path)
    with pytest.raises(kmsdata.FormatError, match="'city' must be encrypted"):
        enc.kms.to_parquet(path, encrypted="city")
    with pytest.raises(kmsdata.FormatError):
        enc.rename({"name": "age", "age": "name"}).kms.to_parquet(path)
    with pytest.raises(kmsdata.UnsupportedTypeError, match="'odd'"):
        enc.with_columns(odd=pl.lit(2**100, dtype=pl.Int128)).kms.to_parquet(path)

    with pytest.raises(TypeError, match="path"):
        enc.kms.to_parquet(io.BytesIO())

    def fail(part):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        enc.lazy().map_batches(fail, schema=enc.schema).kms.sink_parquet(path)
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir() if "kmsdata-copy" in entry.name] == []


def test_plain_values_of_an_encrypted_type_are_not_written(pl, enc, tmp_path):
    kind, path = enc.schema["name"], tmp_path / "e.parquet"
    plain, cells = pl.lit(b"a value that was never encrypted"), pl.col("name").ext.storage()
    mixed = pl.when(pl.col("city") == "Ulm").then(cells).otherwise(plain).ext.to(kind).alias("name")
    lost = enc.lazy().with_columns(name=plain).kms.attach(enc, "name")
    other = enc.lazy().with_columns(z=plain).kms.attach(enc, {"z": "name"})
    for lf in (
        enc.lazy().with_columns(mixed),
        lost,
        other.drop("name").rename({"z": "name"}),
    ):
        for write in (lf.kms.sink_parquet, lf.collect().kms.to_parquet):
            with pytest.raises(kmsdata.FormatError, match=r"'name' .* contains other values than cells"):
                write(path, encrypted="name")
            assert [file.name for file in tmp_path.iterdir()] == ["keystore"]
    with pytest.raises(kmsdata.FormatError, match="'z' was encrypted as 'name'"):
        other.kms.sink_parquet(path)


def test_rewrapped_columns_agree_in_a_file(pl, df, enc, tmp_path):
    new = second_key()
    mixed = enc.with_columns(enc.kms.rewrap(new)["age"])
    mixed.kms.to_parquet(tmp_path / "a.parquet")
    assert kmsdata.inspect(tmp_path / "a.parquet").data_keys[0].keys == (KEY, new)
    kinds = pq.read_schema(tmp_path / "a.parquet").types[:3]
    assert {len(kind.dtype.header.records[0].wraps) for kind in kinds} == {2}


# --- documents ----------------------------------------------------------------------------------------------


def test_examples_of_the_module(pl, tmp_path, monkeypatch):
    import kmsdata.polars

    monkeypatch.chdir(tmp_path)
    results = doctest.testmod(kmsdata.polars, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted > 20
    assert results.failed == 0


def test_examples_of_the_guide(pl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL):
        exec(compile(code, GUIDE.name, "exec"), names)  # noqa: S102
    assert names


def test_a_missing_or_old_polars_says_the_pip_line(monkeypatch):
    for name in ("kmsdata.polars", "polars"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ImportError, match=r'pip install "kmsdata\[polars\]"'):
        importlib.import_module("kmsdata.polars")
    old = types.ModuleType("polars")
    old.__version__, old.selectors = "1.20.0", types.ModuleType("polars.selectors")
    monkeypatch.setitem(sys.modules, "polars", old)
    monkeypatch.setitem(sys.modules, "polars.selectors", old.selectors)
    with pytest.raises(ImportError, match=r"newer Polars than 1.20.0.*pip install --upgrade"):
        importlib.import_module("kmsdata.polars")
