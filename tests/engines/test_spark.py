"""kmsdata.spark in a local session: types, headers in columns' metadata, files, and refusals."""

import base64
import datetime
import json
import subprocess
import sys
from decimal import Decimal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kmsdata

pytestmark = [pytest.mark.engine("pyspark")]

KEY = "local://demo"
SPARK = b"org.apache.spark.sql.parquet.row.metadata"


@pytest.fixture(scope="module")
def ks():
    import kmsdata.spark

    return kmsdata.spark


@pytest.fixture
def people(spark):
    return spark.sql(
        "select id, concat('name of ', id) name, concat('m', id % 3, '@x.org') email, cast(id as double) age "
        "from range(9)"
    )


@pytest.fixture
def enc(ks, people):
    return ks.encrypt(people, ["name", "age"], deterministic="email", key=KEY)


def frame_of(sdf):
    return pd.DataFrame(sdf.collect(), columns=sdf.columns)  # PySpark's toPandas warns with pandas 3


def in_job(error, frame):
    """Check that a job fails with this error of kmsdata in the message; return the message."""
    from pyspark.errors import PythonException

    with pytest.raises(PythonException) as caught:
        frame.collect()
    assert f"kmsdata.{error}" in str(caught.value)
    return str(caught.value)


# Types.

EVERY_TYPE = """
    cast(id as tinyint) tiny, cast(id as smallint) small, cast(id as int) i, id l, cast(id as float) f,
    cast(id / 3 as double) d, id % 2 = 0 b, concat('ü', id) s, cast(concat('x', id) as binary) bin,
    date'2020-01-01' + cast(id as int) day, timestamp'2020-07-01 00:00:00.123456' + make_dt_interval(id) ts,
    timestamp_ntz'2020-07-01 00:00:00.123456' ntz, cast(id as decimal(38, 3)) big,
    cast(id as decimal(5, 2)) dec, array(1, id, null) arr, map('a', id, 'b', null) m,
    struct(id as x, timestamp'2020-01-01 00:00:00' as y) st,
    array(struct(map('a', array(timestamp'2020-01-01 00:00:00')) as k)) deep, interval '1' day one_day,
    interval '1 2:03:04.5' day to second span, interval '2' hour hours, time'10:00:00.000001' t,
    collate('x', 'UTF8_LCASE') collated, null nothing, if(id = 1, null, id) maybe,
    parse_json('{"a": 1}') v
"""


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "GMT+8"])
def test_types_of_spark_are_restored_exactly(ks, spark, zone, tmp_path):
    spark.conf.set("spark.sql.session.timeZone", zone)
    try:
        plain = spark.sql(f"select {EVERY_TYPE} from range(3)")  # noqa: S608
        enc = ks.encrypt(plain, plain.columns, key=KEY)
        assert {kind for _, kind in enc.dtypes} == {"binary"}
        enc.write.parquet(f"{tmp_path}/enc")
        back = ks.decrypt(ks.read(spark, f"{tmp_path}/enc"))
        nullable = {field.name: True for field in back.schema}
        for one, two in zip(back.schema, plain.schema, strict=True):
            assert (one.name, one.dataType) == (two.name, two.dataType)
            assert nullable[one.name]
        assert ks.decrypt(enc).schema == plain.schema
        text = ["*", "cast(v as string) v2"]
        assert back.selectExpr(*text).drop("v").collect() == plain.selectExpr(*text).drop("v").collect()
        recorded = kmsdata.read_parquet(f"{tmp_path}/enc")["ts"].dtype.header.columns[0].type["arrow"]
        assert recorded == f"timestamp[us, tz={'+08:00' if zone == 'GMT+8' else zone}]"
        ours = kmsdata.read_parquet(f"{tmp_path}/enc", decrypt=True, columns=["ts", "ntz", "s"])
        assert ours["ts"].iloc[1] == pd.Timestamp("2020-07-02 00:00:00.123456", tz=recorded[17:-1])
        assert ours["ntz"].iloc[1] == pd.Timestamp("2020-07-01 00:00:00.123456")
        assert list(ours["s"]) == ["ü0", "ü1", "ü2"]
    finally:
        spark.conf.set("spark.sql.session.timeZone", "UTC")


def test_types_of_arrow_become_those_of_sparks_own_reader(ks, spark, tmp_path):
    day = datetime.datetime(2020, 1, 1, 12)
    columns = {
        **{f"u{8 * n}": pa.array([0, 2 ** (8 * n) - 1], f"uint{8 * n}") for n in (1, 2, 4)},
        "u64": pa.array([0, 2**64 - 1], pa.uint64()),
        "text": pa.array(["a", None], pa.large_string()),
        "bytes": pa.array([b"ab", b"cd"], pa.binary(2)),
        "ms": pa.array([day] * 2, pa.timestamp("ms")),
        "zoned": pa.array([day] * 2, pa.timestamp("ms", tz="America/New_York")),
        "ns": pa.array([1_000, 2_000], pa.timestamp("us", tz="UTC")),
        "date64": pa.array([day.date()] * 2, pa.date64()),
        "dec": pa.array([Decimal("1.50")] * 2, pa.decimal128(20, 2)),
        "list": pa.array([[1, None], []], pa.large_list(pa.int16())),
        "fixed": pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2)),
        "words": pa.array(["a", "b"]).dictionary_encode(),
    }
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "plain.parquet")
    kmsdata.encrypt_parquet(tmp_path / "plain.parquet", tmp_path / "enc.parquet", table.column_names, key=KEY)
    own = spark.read.parquet(f"{tmp_path}/plain.parquet")
    back = ks.decrypt(ks.read(spark, f"{tmp_path}/enc.parquet"))
    assert {f.name: f.dataType for f in back.schema} == {f.name: f.dataType for f in own.schema}
    assert back.collect() == own.collect()


def test_pandas_dtypes_in_spark(ks, spark, tmp_path):
    frame = pd.DataFrame(
        {
            "cat": pd.Categorical(["a", None, "b"]),
            "nullable": pd.array([1, None, 3], "Int64"),
            "object": pd.Series(["x", None, "y"], dtype=object),
            "span": pd.to_timedelta([1, 2, 3], unit="s"),
            "ns": pd.to_datetime([1_000, 2_000, 3_000], unit="ns"),
            "time": pd.Series([1, 2, 3], dtype=pd.ArrowDtype(pa.time32("ms"))),
        }
    )
    frame.kms.encrypt(list(frame), key=KEY).kms.to_parquet(tmp_path / "x.parquet")
    back = ks.decrypt(ks.read(spark, f"{tmp_path}/x.parquet"))
    assert dict(back.dtypes) == {
        "cat": "string", "nullable": "bigint", "object": "string", "span": "interval day to second",
        "ns": "timestamp_ntz", "time": "time(6)",
    }  # fmt: skip
    rows = back.collect()
    assert [row.cat for row in rows] == ["a", None, "b"]
    assert [row.nullable for row in rows] == [1, None, 3]
    assert [row.ns.microsecond for row in rows] == [1, 2, 3]
    assert [row.time.microsecond for row in rows] == [1000, 2000, 3000]


def test_what_spark_cannot_hold_is_refused_by_name(ks, spark, tmp_path):
    nanoseconds = pd.DataFrame({"at": pd.to_datetime([1_234_567_891], unit="ns"), "n": [1]})
    nanoseconds.kms.encrypt("at", key=KEY).kms.to_parquet(tmp_path / "ns.parquet")
    text = in_job("UnsupportedTypeError", ks.decrypt(ks.read(spark, f"{tmp_path}/ns.parquet")))
    assert "column 'at' (timestamp[ns]) has a value that does not fit into timestamp[us]" in text
    assert "1234567891" not in text
    wide = {
        "interval": pa.array([(1, 2, 3)], pa.month_day_nano_interval()),
        "wide": pa.array([Decimal(1)], pa.decimal256(60, 0)),
        "negative": pa.array([Decimal(100)], pa.decimal128(5, -2)),
    }
    for name, values in wide.items():
        sealed = kmsdata.encrypt_table(pa.table({name: values}), name, key=KEY)
        pq.write_table(sealed, tmp_path / f"{name}.parquet")
        sdf = ks.read(spark, f"{tmp_path}/{name}.parquet")
        with pytest.raises(kmsdata.UnsupportedTypeError, match=f"'{name}' is .*, which Spark has no"):
            ks.decrypt(sdf)
    mixed = pd.DataFrame({"mixed": pd.Series([1, "a"], dtype=object)})
    mixed.kms.encrypt("mixed", key=KEY).kms.to_parquet(tmp_path / "mixed.parquet")
    with pytest.raises(kmsdata.UnsupportedTypeError, match="'mixed'"):
        ks.decrypt(ks.read(spark, f"{tmp_path}/mixed.parquet"))
    for expression in ("interval '1' year", "make_interval(1)", "array(interval '1' year)"):
        odd = spark.sql(f"select {expression} odd, 'x' name")
        for column in ("odd", "name"):  # all columns pass through Python
            with pytest.raises(kmsdata.UnsupportedTypeError, match=r"column 'odd' is .*interval"):
                ks.encrypt(odd, column, key=KEY)
    with pytest.raises(kmsdata.UnsupportedTypeError, match="column 'odd' is array<void>"):
        ks.encrypt(spark.sql("select array() odd"), "odd", key=KEY)
    floats = spark.sql("select 1.5D f")
    with pytest.raises(kmsdata.UnsupportedTypeError, match="'f'"):
        ks.encrypt(floats, deterministic="f", key=KEY)
    twice = spark.sql("select struct(1 as a, 2 as a) s")
    with pytest.raises(ValueError, match="2 columns are named 'a'"):
        ks.encrypt(twice, "s", key=KEY)


def test_the_plan_decides_types_not_the_options_of_the_job(ks, spark, people):
    frame = people.selectExpr(
        "name", "timestamp_micros(id) at", "array(struct(name, timestamp_micros(id))) deep"
    )
    enc = ks.encrypt(frame, ["name", "at", "deep"], key=KEY)
    expected = frame.collect()
    options = {
        "spark.sql.execution.arrow.useLargeVarTypes": ("true", "false"),
        "spark.sql.session.timeZone": ("Asia/Tokyo", "UTC"),
        "spark.sql.execution.arrow.maxRecordsPerBatch": ("2", "10000"),
    }
    try:
        for name, (value, _) in options.items():
            spark.conf.set(name, value)
        assert ks.decrypt(enc).collect() == expected
    finally:
        for name, (_, value) in options.items():
            spark.conf.set(name, value)


# Headers in the columns' metadata.


def test_headers_survive_what_keeps_the_cells(ks, spark, enc, people, tmp_path):
    enc.cache()
    enc.createOrReplaceTempView("enc")
    kept = {
        "filter": enc.filter("id > 3").drop("id"),
        "join": enc.alias("a").join(people.select("id").alias("b"), "id").select("a.name", "id"),
        "group": enc.groupBy("email").count(),
        "sql": spark.sql("select name as other from enc where id = 1"),
        "union": enc.union(enc),
        "sorted": enc.orderBy("email").limit(4),
    }
    with pytest.warns(UserWarning, match="'other' was encrypted as 'name'"):
        renamed = ks.decrypt(kept.pop("sql"))
    assert renamed.collect() == [("name of 1",)]
    for name, frame in kept.items():
        assert len(ks.decrypt(frame).collect()) > 0, name
    assert sorted(ks.decrypt(kept["group"]).collect()) == [("m0@x.org", 3), ("m1@x.org", 3), ("m2@x.org", 3)]
    enc.unpersist()


def test_replaced_columns_never_pass(ks, spark, enc):
    from pyspark.sql import functions as F  # noqa: N812

    header = enc.schema["name"].metadata
    with pytest.raises(kmsdata.FormatError, match="'name' is not encrypted"):
        ks.decrypt(enc.withColumn("name", F.lit(b"plain")), "name")
    with pytest.raises(kmsdata.FormatError, match="'name' is string, but its metadata says"):
        ks.decrypt(enc.withColumn("name", F.lit("plain").alias("name", metadata=header)))
    # Values under a header of other cells.
    in_job(
        "TamperedError", ks.decrypt(enc.withColumn("name", F.lit(b"plain").alias("name", metadata=header)))
    )
    swapped = enc.select("id", F.col("name").alias("age"), F.col("age").alias("name"))
    with pytest.raises(kmsdata.FormatError, match="exchanged"):
        ks.decrypt(swapped)
    broken = F.col("name").alias("name", metadata={"kmsdata": header["kmsdata"][:-9]})
    with pytest.raises(kmsdata.FormatError, match=r"column 'name': .*not JSON"):
        ks.decrypt(enc.select(broken))
    with pytest.raises(kmsdata.FormatError, match="nothing in the DataFrame is encrypted"):
        ks.decrypt(enc.select("id"))
    with pytest.raises(kmsdata.FormatError, match="'s' has the encrypted column 'name' inside of a struct"):
        ks.decrypt(enc.select(F.struct("name").alias("s"), "age"))
    with pytest.raises(KeyError, match="did you mean 'name'"):
        ks.decrypt(enc, "nam")
    # A column whose header was dropped, beside others.
    lost = enc.select("age", F.col("name").cast("binary").alias("name", metadata={}))
    assert "looks like cells: other software dropped the header" in in_job("FormatError", ks.decrypt(lost))


def test_cells_without_header_never_pass_in_any_form(ks, spark, enc):
    from pyspark.sql import functions as F  # noqa: N812

    forms = {
        "nested": F.create_map(F.lit("k"), F.array(F.struct(F.coalesce("name", F.lit(b"")).alias("q")))),
        "text": F.col("name").cast("string"),
        "first of many": F.when(F.col("id") == 5, F.coalesce("name", F.lit(b""))),
    }
    for form, column in forms.items():
        frame = enc.select("email", column.alias("x", metadata={}))
        text = in_job("FormatError", ks.decrypt(frame))
        assert "'x' has no kmsdata header" in text, form
        assert "kmsdata.spark.attach()" in text, form
        assert "df.kms" not in text, form
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "1")
    try:
        lost = enc.select("email", F.coalesce("name", F.lit(b"")).alias("x"))
        assert "but looks like cells" in in_job("FormatError", ks.decrypt(lost))
        plain = enc.selectExpr(
            "email", "array(struct(sha2(email, 256) h)) s", "unhex('01') b", "map('a', 'b') m"
        )
        assert ks.decrypt(plain).count() == 9
    finally:
        spark.conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")


def test_frames_under_two_data_keys(ks, people, enc):
    other = ks.encrypt(people, ["name", "age"], deterministic="email", key=KEY)
    both = enc.select("name").union(other.select("name"))
    assert "'name': 9 cells" in in_job("WrongKeyError", ks.decrypt(both))
    mended = ks.attach(both.coalesce(1), [enc, other])
    assert len(ks.decrypt(mended).collect()) == 18
    # A first frame without the header: the cells of the second have none either.
    plain_first = people.selectExpr("cast(name as binary) name", "id").limit(0)
    hidden = plain_first.union(enc.select("name", "id")).join(enc.select("id", "age"), "id")
    assert "'name' has no kmsdata header, but looks like cells" in in_job("FormatError", ks.decrypt(hidden))
    joined = enc.select("email", "name").join(
        ks.encrypt(people, deterministic="email", key=enc).select("email"), "email", "outer"
    )
    assert joined.schema["email"].metadata == {}
    assert ks.decrypt(ks.attach(joined, enc, "email")).select("email").distinct().count() == 3
    with pytest.raises(KeyError):
        ks.attach(both, enc, "nome")
    with pytest.raises(kmsdata.FormatError, match="'id' is bigint"):
        ks.attach(enc, enc, {"id": "name"})
    with pytest.raises(ValueError, match="no column"):
        ks.attach(people, enc)


def test_metadata_with_values_is_removed_or_refused(ks, people):
    from pyspark.sql import functions as F  # noqa: N812

    indexed = {"ml_attr": {"vals": ["name of 3", "name of 4"]}}
    own = people.select(F.col("name").alias("name", metadata=indexed | {"comment": "x"}), "id")
    assert set(ks.encrypt(own, "name", key=KEY).schema["name"].metadata) == {"kmsdata"}
    beside = people.select("name", F.col("id").alias("id", metadata=indexed))
    with pytest.raises(Exception, match="metadata of another column contains values of column 'name'"):
        ks.encrypt(beside, "name", key=KEY).collect()


# Search.


def test_isin_is_that_of_pandas(ks, spark, people, enc):
    frame = frame_of(people)
    for values in (["m0@x.org", "m2@x.org"], "m1@x.org", [], ["none@x.org"]):
        found = enc.filter(ks.isin(enc, "email", values)).select("id").collect()
        wanted = [values] if isinstance(values, str) else values
        assert [row.id for row in found] == list(frame["id"][frame["email"].isin(wanted)])
        missed = enc.filter(~ks.isin(enc, "email", values)).count()
        assert missed == len(frame) - len(found)
    holes = ks.encrypt(spark.sql("select if(id = 1, null, id) n from range(3)"), deterministic="n", key=KEY)
    assert holes.filter(ks.isin(holes, "n", [2])).count() == 1
    assert holes.filter(~ks.isin(holes, "n", [2])).count() == 2
    assert holes.filter(ks.isin(holes, "n", [2, None])).count() == 2
    with pytest.raises(TypeError, match="cannot contain"):
        ks.isin(holes, "n", ["x"])
    with pytest.raises(TypeError, match="'name' is randomised"):
        ks.isin(enc, "name", "x")
    other = ks.encrypt(people, deterministic="email", key=KEY)
    both = enc.select("email").union(other.select("email"))
    with pytest.raises(Exception, match="cells with a key id that is not in the header"):
        both.filter(ks.isin(both, "email", "m1@x.org")).collect()


# Files.


def test_spark_selects_columns_and_row_groups(ks, spark, enc, tmp_path):
    enc.write.parquet(f"{tmp_path}/enc")
    back = ks.read(spark, f"{tmp_path}/enc")
    query = ks.decrypt(back.filter("id = 3").select("name"))
    plan = query._jdf.queryExecution().toString()
    assert "ReadSchema: struct<id:bigint,name:binary>" in plan
    assert "PushedFilters: [IsNotNull(id), EqualTo(id,3)]" in plan
    assert [row.name for row in query.collect()] == ["name of 3"]


def test_files_of_spark_in_every_reader(ks, spark, enc, people, tmp_path):
    enc.coalesce(1).write.parquet(f"{tmp_path}/enc")
    (file,) = (tmp_path / "enc").glob("*.parquet")
    expected = frame_of(people)
    back = kmsdata.read_parquet(tmp_path / "enc", decrypt=True)
    pd.testing.assert_frame_equal(back, expected, check_dtype=False)
    assert kmsdata.inspect(tmp_path / "enc").encrypted == ["name", "email", "age"]
    assert kmsdata.verify(tmp_path / "enc", encrypted=["name", "email", "age"]).ok
    assert len(kmsdata.read_parquet(tmp_path / "enc", filters=[("email", "==", "m1@x.org")])) == 3
    kmsdata.decrypt_parquet(tmp_path / "enc", tmp_path / "plain")
    plain = spark.read.parquet(f"{tmp_path}/plain")
    assert plain.dtypes == people.dtypes
    assert plain.collect() == people.collect()
    kmsdata.decrypt_parquet(tmp_path / "enc", tmp_path / "part", "name")
    assert ks.decrypt(ks.read(spark, f"{tmp_path}/part")).collect() == people.collect()
    kmsdata.LocalKeystore(create=True).ensure_key("local://other")
    kmsdata.rewrap(tmp_path / "enc", "local://other")
    again = ks.read(spark, f"{tmp_path}/enc")
    assert ks.inspect(again).data_keys[0].keys == ("local://other",)
    assert b"local://demo" not in pq.read_metadata(file).metadata[SPARK]
    assert ks.decrypt(again, key="local://other").collect() == people.collect()
    in_job("WrongKeyError", ks.decrypt(again, key=KEY))


def test_datasets_under_several_data_keys(ks, spark, people, tmp_path):
    for number in range(3):
        part = frame_of(people.filter(f"id % 3 = {number}"))
        (tmp_path / "data" / f"k={number}").mkdir(parents=True)
        part.kms.encrypt("name", key=KEY).kms.to_parquet(tmp_path / "data" / f"k={number}" / "x y.parquet")
    sdf = ks.read(spark, f"{tmp_path}/data", encrypted="name")
    assert len(ks.inspect(sdf).data_keys) == 3
    rows = ks.decrypt(sdf.filter("k > 0")).orderBy("id").select("id", "name", "k").collect()
    assert [row.name for row in rows] == [f"name of {row.id}" for row in rows]
    assert [row.id for row in rows] == [1, 2, 4, 5, 7, 8]
    pq.write_table(
        pa.table({"id": [1], "name": [b"not encrypted"], "email": [""], "age": [1.0]}), tmp_path / "p.parquet"
    )
    files = [f"{tmp_path}/data/k=0", f"{tmp_path}/p.parquet"]
    with pytest.raises(kmsdata.FormatError, match=r"p.parquet: column 'name' has no kmsdata header, but is"):
        ks.read(spark, files)
    with pytest.raises(kmsdata.FormatError, match="column 'id' must be encrypted, but has no kmsdata header"):
        ks.read(spark, files[0], encrypted="id")
    data_key = kmsdata.new_data_key(KEY)
    for name, values in {"a": [1], "b": ["x"]}.items():
        sealed = pd.DataFrame({"c": values}).kms.encrypt("c", key=data_key)
        sealed.kms.to_parquet(tmp_path / f"{name}.parquet")
    sdf = ks.read(spark, [f"{tmp_path}/a.parquet", f"{tmp_path}/b.parquet"])
    with pytest.raises(kmsdata.UnsupportedTypeError, match="column 'c' has cells of several types"):
        ks.decrypt(sdf)


def test_footers_are_checked(ks, spark, enc, tmp_path):
    enc.coalesce(1).write.parquet(f"{tmp_path}/enc")
    (file,) = (tmp_path / "enc").glob("*.parquet")
    table, metadata = pq.read_table(file), pq.read_metadata(file).metadata
    for name, old, new in [("mac", '\\"mac\\":\\"', '\\"mac\\":\\"!'), ("type", '"binary"', '"string"')]:
        text = metadata[SPARK].decode()
        assert old in text
        target = tmp_path / f"{name}.parquet"
        with pq.ParquetWriter(target, table.schema.remove_metadata(), store_schema=False) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({SPARK.decode(): text.replace(old, new)})
        with pytest.raises(kmsdata.FormatError, match="name"):
            ks.read(spark, str(target))
        with pytest.raises(kmsdata.FormatError, match="name"):
            kmsdata.read_parquet(target)


def test_plaintext_never_passes_for_an_encrypted_column(ks, spark, tmp_path):
    def folder(name, files):
        (tmp_path / name).mkdir()
        for file, values in files.items():
            pq.write_table(pa.table(values), tmp_path / name / f"{file}.parquet")
        return f"{tmp_path}/{name}"

    enc = kmsdata.encrypt_table(pa.table({"name": ["a", "b"]}), "name", key=KEY)
    other = kmsdata.encrypt_table(pa.table({"NAME": ["a", "b"]}), "NAME", key=KEY)
    sealed, plain = {"name": enc["name"]}, pa.array([b"plain"])
    mixed = folder("case", {"1": sealed, "2": {"NAME": plain}})
    with pytest.raises(kmsdata.FormatError, match=r"2.parquet: column 'NAME' is column 'name' for Spark"):
        ks.read(spark, mixed, encrypted="name")
    upper = {"NAME": other["NAME"]}
    both = folder("both", {"1": sealed, "2": upper})
    for path in (both, folder("second", {"1": {"name": plain}, "2": upper})):
        with pytest.raises(kmsdata.FormatError, match=r"2.parquet: column 'NAME' is column 'name' for Spark"):
            ks.read(spark, path)
    spark.conf.set("spark.sql.caseSensitive", "true")
    try:
        assert ks.inspect(ks.read(spark, mixed)).encrypted == ["name"]
    finally:
        spark.conf.unset("spark.sql.caseSensitive")
    folder("hive", {})
    folder("hive/name=zz", {"1": sealed})
    for path in (f"{tmp_path}/hive", folder("text", {"1": {"name": ["plain"]}, "2": sealed})):
        with pytest.raises(kmsdata.FormatError, match="encrypted in this file, but Spark reads it as string"):
            ks.read(spark, path)


def test_files_that_record_different_types_of_spark_are_refused(ks, spark, tmp_path):
    from pyspark.sql import functions as F  # noqa: N812

    enc = ks.encrypt(spark.sql("select interval '1' day d"), "d", key=KEY)
    enc.write.parquet(f"{tmp_path}/d")
    kept = {"kmsdata": enc.schema["d"].metadata["kmsdata"]}
    enc.select(F.col("d").alias("d", metadata=kept)).write.mode("append").parquet(f"{tmp_path}/d")
    with pytest.raises(kmsdata.FormatError, match="column 'd' has another type in Spark"):
        ks.read(spark, f"{tmp_path}/d")


def test_arguments_of_read(ks, spark, tmp_path):
    with pytest.raises(TypeError, match="takes a SparkSession first"):
        ks.read(f"{tmp_path}", spark)
    with pytest.raises(ValueError, match="list of paths is empty"):
        ks.read(spark, [])
    sealed = kmsdata.encrypt_table(pa.table({"name": ["a"]}), "name", key=KEY)
    pq.write_table(sealed, tmp_path / "a.parquet")
    pq.write_table(sealed.replace_schema_metadata({"x": "y" * (33 << 20)}), tmp_path / "b.parquet")
    with pytest.raises(kmsdata.FormatError, match=r"b.parquet: its footer has more than 32 MiB"):
        ks.read(spark, [f"{tmp_path}/a.parquet", f"{tmp_path}/b.parquet"])


def test_a_class_in_a_file_is_not_unpickled(ks, spark, tmp_path):
    udt = {"type": "udt", "pyClass": "this.X", "serializedClass": "AAAA", "sqlType": "long"}
    array = {"type": "array", "elementType": udt, "containsNull": True}
    for number, kind in enumerate([udt, array]):
        field = {"name": "id", "type": kind, "nullable": True, "metadata": {}}
        text = json.dumps({"type": "struct", "fields": [field]}).replace("udt", "u\\u0064t")
        with pq.ParquetWriter(tmp_path / f"{number}.parquet", pa.schema([("id", pa.int64())])) as writer:
            writer.write_table(pa.table({"id": [1]}))
            writer.add_key_value_metadata({SPARK.decode(): text})
        with pytest.raises(kmsdata.FormatError, match="would run code that the file chooses"):
            ks.read(spark, f"{tmp_path}/{number}.parquet")
    assert "this" not in sys.modules


def test_names_with_dots_and_backticks(ks, spark, tmp_path):
    plain = spark.sql("select 1 as `a.b`, 'x' as `c``d`, 3 as `e f`, 4 as `g.h`")
    ks.encrypt(plain, ["a.b", "c`d"], deterministic="e f", key=KEY).write.parquet(f"{tmp_path}/enc")
    enc = ks.read(spark, f"{tmp_path}/enc")
    assert ks.decrypt(enc).collect() == plain.collect()
    assert enc.filter(ks.isin(enc, "e f", 3)).count() == 1
    assert ks.verify(enc).ok


def test_recorded_types_of_spark_are_checked(ks, spark):
    from pyspark.sql import functions as F  # noqa: N812

    enc = ks.encrypt(spark.sql("select interval '1' day d"), "d", key=KEY)
    good = enc.schema["d"].metadata
    assert ks.decrypt(enc).dtypes == [("d", "interval day")]
    field = {"name": "c", "nullable": True, "metadata": {}}
    udt = {"type": "udt", "class": None, "pyClass": "builtins.object", "sqlType": "long"}
    deep = "long"
    for _ in range(20_000):
        deep = '{"type":"array","elementType":' + deep + ',"containsNull":true}'
    array = {"type": "array", "elementType": udt, "containsNull": True}
    texts = [
        json.dumps({"type": "struct", "fields": [field | {"type": kind}]})
        for kind in ("long", "rubbish", udt, array, {"type": "array", "elementType": "long"})
    ]
    udts = texts[2:4]
    texts += [text.replace("udt", "u\\u0064t").replace("builtins.object", "this.X") for text in udts]
    texts += ["[]", deep, texts[0] + " " * (1 << 20)]
    for text in texts:
        changed = enc.select(F.col("d").alias("d", metadata=good | {"kmsdata.type": text}))
        with pytest.raises(kmsdata.FormatError, match=r"column 'd': its metadata 'kmsdata.type' is not"):
            ks.decrypt(changed)
    assert "this" not in sys.modules


# Keys.


def test_what_is_sent_to_workers_holds_no_key(ks, people, monkeypatch):
    import cloudpickle
    from pyspark.sql.classic.dataframe import DataFrame

    sent = []
    real = DataFrame.mapInArrow
    monkeypatch.setattr(
        DataFrame,
        "mapInArrow",
        lambda frame, function, *rest: sent.append(function) or real(frame, function, *rest),
    )
    data_key = kmsdata.new_data_key(KEY)
    enc = ks.encrypt(people, "name", deterministic="email", key=data_key)
    assert [row.name for row in ks.decrypt(enc, key=enc).collect()] == [f"name of {n}" for n in range(9)]
    pickled = [cloudpickle.dumps(function) for function in sent]
    assert len(pickled) == 2
    for text in pickled:
        assert data_key._secret.reveal() not in text
        assert data_key.wraps[0].wrapped.encode() in text  # the wrapped key is there
    with pytest.raises(TypeError, match="DataKey is secret"):
        ks.decrypt(enc, key=data_key)
    assert enc.filter(ks.isin(enc, "email", "m1@x.org", key=data_key)).count() == 3


def test_keys_and_contexts_are_checked_in_the_workers(ks, people):
    enc = ks.encrypt(people, "name", key=KEY, context={"team": "a"})
    assert ks.decrypt(enc, context={"team": "a"}).count() == 9
    in_job("FormatError", ks.decrypt(enc, context={"team": "b"}))
    in_job("WrongKeyError", ks.decrypt(enc, key="local://other"))
    found = ks.verify(enc, key="local://other")
    assert (found.ok, found.columns[0].state) == (False, "not verified")


def test_verify_counts_cells(ks, spark, enc):
    from pyspark.sql import functions as F  # noqa: N812

    good = ks.verify(enc, encrypted=["name"])
    assert (good.ok, good.rows, [column.cells for column in good.columns]) == (True, 9, [9, 9, 9])
    header = enc.schema["name"].metadata
    changed = F.when(F.col("id") < 2, F.concat(F.col("name"), F.lit(b"x"))).otherwise(F.col("name"))
    bad = ks.verify(enc.withColumn("name", changed.alias("name", metadata=header)), encrypted=["id", "nome"])
    assert not bad.ok
    assert {column.name: column.state for column in bad.columns} == {
        "id": "not encrypted", "nome": "missing", "name": "failed", "age": "authentic", "email": "authentic",
    }  # fmt: skip
    assert next(column.bad for column in bad.columns if column.name == "name") == 2
    assert "2 cells" in str(bad)
    assert "(row" not in str(bad)


def test_calls_are_checked_before_a_key_is_made(ks, people, enc, monkeypatch):
    monkeypatch.setattr(ks, "plan_encryption", None)
    with pytest.raises(KeyError, match="did you mean 'name'"):
        ks.encrypt(people, "nam", key=KEY)
    with pytest.raises(ValueError, match="'name' is already encrypted"):
        ks.encrypt(enc, "name", key=KEY)
    with pytest.raises(kmsdata.FormatError, match="'age' must be encrypted, but would stay unencrypted"):
        ks.encrypt(people, "name", encrypted=["name", "age"], key=KEY)
    with pytest.raises(ValueError, match="2 columns are named 'id'"):
        ks.encrypt(people.select("id", "id"), "id", key=KEY)
    with pytest.raises(TypeError, match="takes a Spark DataFrame, not DataFrame"):
        ks.encrypt(pd.DataFrame({"a": [1]}), "a", key=KEY)


def test_inspect_runs_no_job(ks, spark, enc):
    jobs = spark.sparkContext.statusTracker()
    spark.sparkContext.setJobGroup("inspect", "")
    found = ks.inspect(enc)
    assert list(jobs.getJobIdsForGroup("inspect")) == []
    assert found.encrypted == ["name", "email", "age"]
    assert [column.type for column in found.columns] == ["bigint", "string", "string", "float64"]


def test_spark_connect_is_refused(ks):
    remote = type("DataFrame", (), {"__module__": "pyspark.sql.connect.dataframe"})()
    for call in (ks.decrypt, ks.inspect, ks.verify, lambda x: ks.encrypt(x, "a"), lambda x: ks.read(x, "p")):
        with pytest.raises(TypeError, match="Spark classic only"):
            call(remote)


def test_without_pyspark_the_error_says_what_to_install():
    code = "import sys; sys.modules['pyspark'] = None; import kmsdata.spark"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'ImportError: kmsdata.spark needs PySpark: pip install "kmsdata[spark]"' in done.stderr
    assert "ModuleNotFoundError" not in done.stderr


def test_other_software_reads_cells_with_an_exported_key(ks, spark, people, tmp_path):
    """Spark's own aes_decrypt; the key is a value in a table, not a literal, so no plan shows it."""
    enc = ks.encrypt(people, "name", key=KEY)
    enc.write.parquet(f"{tmp_path}/enc")
    (entry,) = json.loads(kmsdata.export_keyset(tmp_path / "enc", "name").json())["key"]
    raw = base64.b64decode(entry["keyData"]["value"])[-32:]
    (tmp_path / "key").write_text(base64.b64encode(raw).decode())
    key = spark.read.text(f"{tmp_path}/key").selectExpr("unbase64(value) as key")
    plain = enc.crossJoin(key).selectExpr("cast(aes_decrypt(substring(name, 6), key, 'GCM') as string) name")
    assert [row.name for row in plain.collect()] == [f"name of {n}" for n in range(9)]
    shown = plain._jdf.queryExecution().toString()
    assert not any(text in shown.lower() for text in (raw.hex(), base64.b64encode(raw).decode().lower()))
