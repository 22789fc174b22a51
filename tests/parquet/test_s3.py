"""The whole round trip on an object store: S3 as moto serves it."""

import socket
import time

import pandas as pd
import pyarrow.fs as pafs
import pytest

import kmsdata
from kmsdata.errors import KmsDataError
from kmsdata.parquet import locations

pytestmark = [pytest.mark.newest, pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def server():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["s3fs", "pyarrow"])
def store(request, server):
    """Return a filesystem, and a function that lists all objects of the bucket."""
    import s3fs

    access = {"key": "testing", "secret": "testing"}  # moto accepts any
    objects = s3fs.S3FileSystem(
        **access, endpoint_url=server, client_kwargs={"region_name": "eu-west-1"}, skip_instance_cache=True
    )
    bucket = f"bucket-{request.param}"
    if objects.exists(bucket):
        objects.rm(bucket, recursive=True)
    objects.mkdir(bucket)

    def listed():
        found = objects.call_s3("list_objects_v2", Bucket=bucket).get("Contents", [])
        names = sorted(item["Key"] for item in found)
        # Arrow's own filesystem makes empty objects for the folders of files that it moves or deletes.
        return [name for name in names if request.param == "s3fs" or not name.endswith("/")]

    filesystem = objects
    if request.param == "pyarrow":
        filesystem = pafs.S3FileSystem(
            access_key="testing", secret_key="testing", endpoint_override=server, region="eu-west-1"
        )
    kmsdata.use(kmsdata.LocalKeystore(create=True))
    kmsdata.new_data_key("local://next")
    return bucket, filesystem, listed


@pytest.mark.parametrize("where", ["one.parquet", "folder"])
def test_the_round_trip_leaves_only_files(store, tmp_path, where):
    bucket, filesystem, listed = store
    df = pd.DataFrame({"a": [1, 2, 3], "b": ["x", None, "z"]})
    source = tmp_path / where
    if where == "folder":
        for year in 2025, 2026:
            (source / f"year={year}").mkdir(parents=True)
            df.to_parquet(source / f"year={year}" / "p.parquet")
    else:
        df.to_parquet(source)
    names = [where] if where != "folder" else ["folder/year=2025/p.parquet", "folder/year=2026/p.parquet"]
    sealed, plain = f"{bucket}/sealed/{where}", f"{bucket}/plain/{where}"
    count = len(names)
    done = kmsdata.encrypt_parquet(source, sealed, "a", key="local://demo", target_filesystem=filesystem)
    assert (done.files, done.rows) == (count, 3 * count)
    read = kmsdata.read_parquet(sealed, filesystem=filesystem, decrypt=True)
    assert read["a"].tolist() == [1, 2, 3] * count
    assert kmsdata.verify(sealed, encrypted="a", filesystem=filesystem).ok
    assert kmsdata.inspect(sealed, filesystem=filesystem).files == count
    if where == "folder":
        assert kmsdata.inspect(f"{sealed}/**/*.parquet", filesystem=filesystem).files == count
    kmsdata.rewrap(sealed, "local://next", filesystem=filesystem)
    kmsdata.decrypt_parquet(sealed, plain, key="local://next", filesystem=filesystem)
    read = pd.read_parquet(plain, filesystem=filesystem)
    assert read["a"].tolist() == [1, 2, 3] * count
    frame = df.kms.encrypt("a", key="local://demo")
    frame.kms.to_parquet(f"{bucket}/frames/f.parquet", filesystem=filesystem)
    expected = [f"{place}/{name}" for place in ("sealed", "plain") for name in names]
    assert listed() == sorted([*expected, "frames/f.parquet"])


def test_one_part_that_fails_leaves_nothing(store, tmp_path):
    bucket, filesystem, listed = store
    source = tmp_path / "source"
    source.mkdir()
    df = pd.DataFrame({"a": range(1000), "b": range(1000)})
    for name in "a.parquet", "b.parquet":
        df.kms.encrypt("a", key="local://demo").kms.to_parquet(source / name)
    damaged = bytearray((source / "b.parquet").read_bytes())
    damaged[200] ^= 1
    (source / "b.parquet").write_bytes(damaged)
    with pytest.raises((KmsDataError, OSError)):
        kmsdata.decrypt_parquet(source, f"{bucket}/new/plain", target_filesystem=filesystem)
    assert listed() == []


def test_markers_of_folders_are_not_read(store):
    bucket, filesystem, _ = store
    frame = pd.DataFrame({"a": [1]}).kms.encrypt("a", key="local://demo")
    frame.kms.to_parquet(f"{bucket}/data/in/f.parquet", filesystem=filesystem)
    if isinstance(filesystem, pafs.FileSystem):
        filesystem.create_dir(f"{bucket}/data/empty", recursive=True)
    else:
        filesystem.call_s3("put_object", Bucket=bucket, Key="data/empty/", Body=b"")
    assert kmsdata.inspect(f"{bucket}/data", filesystem=filesystem).files == 1
    assert len(kmsdata.read_parquet(f"{bucket}/data", filesystem=filesystem, decrypt=True)) == 1


@pytest.mark.parametrize("url", ["s3://bucket/a.parquet?region=eu-west-1", "s3a://bucket/a.parquet"])
@pytest.mark.parametrize("listening", [False, True])
def test_a_server_that_does_not_answer_is_an_error_soon(monkeypatch, url, listening):
    monkeypatch.setitem(locations._S3_WAITS, "request_timeout", 1)
    monkeypatch.setitem(locations._S3_LIMITS, "read_timeout", 1)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listening:  # accepts connections, and never answers
            server.listen(100)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        before = time.monotonic()
        with pytest.raises(ConnectionError, match="cannot be reached, or does not answer") as raised:
            kmsdata.inspect(url)
        assert time.monotonic() - before < 30
        assert raised.value.filename == url.partition("?")[0]


def test_limits_on_waiting_keep_the_other_settings_of_a_url():
    url = "s3://key:secret@bucket/a.parquet?region=eu-west-1&scheme=http&endpoint_override=localhost:1"
    _, (before,) = pafs.FileSystem.from_uri(url)[0].__reduce__()
    _, (after,) = locations.Place.of(url).filesystem.__reduce__()
    assert after == before | locations._S3_WAITS
