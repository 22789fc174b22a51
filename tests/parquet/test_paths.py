"""Patterns and lists of paths are taken wherever files are read, and errors about places say what to do."""

import errno
import io
import json
import sys

import pandas as pd
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

import kmsdata
from kmsdata.errors import FormatError
from kmsdata.parquet.locations import Place, paths_text, without_credentials


@pytest.fixture
def folder(tmp_path):
    kmsdata.use(kmsdata.LocalKeystore(create=True))
    folder = tmp_path / "sealed"
    for number in range(3):
        path = folder / f"year={number % 2}" / f"{number}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        df = pd.DataFrame({"a": [number], "b": [number]})
        df.kms.encrypt("a", key="local://demo").kms.to_parquet(path)
    (folder / "readme.txt").write_text("not for readers of the pattern")
    kmsdata.new_data_key("local://next")
    return folder


@pytest.mark.parametrize("kind", ["pattern", "deep pattern", "list", "list of patterns"])
def test_every_reader_takes_patterns_and_lists(folder, kind):
    paths, count = {
        "pattern": (f"{folder}/year=0/*.parquet", 2),
        "deep pattern": (f"{folder}/**/*.parquet", 3),
        "list": (sorted(folder.rglob("*.parquet"))[:2], 2),
        "list of patterns": ([f"{folder}/year=0/*.parquet", f"{folder}/year=1/*"], 3),
    }[kind]
    frame = kmsdata.read_parquet(paths, decrypt=True)
    assert sorted(frame["a"]) == sorted(frame["b"])
    assert len(frame) == count
    assert kmsdata.inspect(paths).files == count
    found = kmsdata.verify(paths, encrypted="a")
    assert (found.ok, found.files) == (True, count)
    assert kmsdata.rewrap(paths, "local://next").rewrapped == count
    assert sorted(kmsdata.read_parquet(paths, decrypt=True, key="local://next")["a"]) == sorted(frame["a"])


def test_folders_below_a_pattern_are_columns_as_below_a_folder(folder):
    frame = kmsdata.read_parquet(f"{folder}/**/*.parquet")
    assert sorted(frame["year"].astype(int)) == [0, 0, 1]


def test_the_commands_take_a_quoted_pattern(folder, run):
    status, out, _ = run("verify", f"{folder}/**/*.parquet")
    assert status == 0, out


def test_a_delta_table_is_not_rewrapped_by_a_pattern(folder):
    (folder / "_delta_log").mkdir()
    with pytest.raises(ValueError, match="Delta table"):
        kmsdata.rewrap(f"{folder}/**/*.parquet", "local://next")


def test_a_missing_target_folder_is_named(folder, tmp_path):
    source = next(folder.rglob("*.parquet"))
    for from_, to in (source, tmp_path / "none" / "a.parquet"), (source.parent, tmp_path / "none" / "new"):
        with pytest.raises(FileNotFoundError, match="folder to write to does not exist") as raised:
            kmsdata.decrypt_parquet(from_, to)
        assert raised.value.errno == errno.ENOENT
        assert raised.value.filename == str(tmp_path / "none")


def test_without_fsspec_a_url_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ImportError, match="pip install fsspec cosfs"):
        Place.of("cosn://bucket/a.parquet")
    with pytest.raises(ImportError, match=r"memory:// needs packages .* pip install fsspec"):
        Place.of("memory://a.parquet")


def test_lists_of_paths_are_encrypted_and_decrypted(tmp_path):
    kmsdata.use(kmsdata.LocalKeystore(create=True))
    paths = []
    for year in 2025, 2026:
        folder = tmp_path / "plain" / f"year={year}"
        folder.mkdir(parents=True)
        paths.append(folder / "a.parquet")
        pd.DataFrame({"a": [year]}).to_parquet(paths[-1])
    sealed, plain = tmp_path / "sealed", tmp_path / "back"
    done = kmsdata.encrypt_parquet([*paths, paths[0]], sealed, "a", key="local://demo")
    assert (done.files, done.rows) == (2, 2)
    written = sorted(sealed.rglob("*.parquet"))
    assert [str(path.relative_to(sealed)) for path in written] == [
        "year=2025/a.parquet",
        "year=2026/a.parquet",
    ]
    kmsdata.decrypt_parquet([f"{sealed}/year=2025/*", sealed / "year=2026"], plain)
    assert pd.read_parquet(plain)["a"].tolist() == [2025, 2026]
    kmsdata.encrypt_parquet(paths[:1], tmp_path / "one", "a", key="local://demo")
    assert (tmp_path / "one" / "a.parquet").is_file()
    with pytest.raises(FileExistsError, match="several files need a folder as the target"):
        kmsdata.encrypt_parquet(paths, written[0], "a", key="local://demo", overwrite=True)
    with pytest.raises(ValueError, match="inside the source"):
        kmsdata.encrypt_parquet([paths[0].parent], paths[0].parent / "new", "a", key="local://demo")
    with pytest.raises(TypeError, match="list of paths that is not empty"):
        kmsdata.encrypt_parquet([], tmp_path / "none", "a", key="local://demo")


def test_the_commands_take_what_the_shell_made_of_a_pattern(folder, tmp_path, run):
    files = [str(path) for path in sorted(folder.rglob("*.parquet"))]
    for command in ["inspect"], ["verify", "-e", "a"], ["rewrap", "-k", "next"]:
        status, out, err = run(*command, *files)
        assert status == 0, err
        assert "3 files" in out
    status, out, err = run("decrypt", *files, str(tmp_path / "plain"))
    assert (status, err) == (0, "")
    status, out, err = run(
        "encrypt", str(tmp_path / "plain" / "year=0"), str(tmp_path / "new"), "-c", "a", "-k", "next"
    )
    assert status == 0, err
    plain = [str(path) for path in sorted((tmp_path / "plain").rglob("*.parquet"))]
    status, out, err = run("encrypt", *plain, "-c", "a", "-k", "next")
    assert status == 1
    assert "several files need a folder as the target" in err
    status, out, err = run("encrypt", "-", *plain, "-c", "a", "-k", "next")
    assert status == 2


def test_other_files_in_a_folder_are_skipped_with_a_note(folder, tmp_path, run):
    (folder / "_SUCCESS").touch()
    (folder / "year=0" / ".0.parquet.crc").write_bytes(b"crc")
    plain = tmp_path / "plain"
    done = kmsdata.decrypt_parquet(folder, plain)
    note = "1 file is neither Parquet nor CSV: skipped "
    assert done.notes == (f"{note}readme.txt",)
    assert note in str(done)
    assert json.loads(done.json())["notes"] == [f"{note}readme.txt"]
    assert sorted(path.name for path in plain.rglob("*") if path.is_file()) == [
        "0.parquet",
        "1.parquet",
        "2.parquet",
    ]
    (plain / "readme.txt").write_text("078-05-1120")
    assert kmsdata.encrypt_parquet(plain, tmp_path / "new", "a", key="local://demo").notes == done.notes
    assert not (tmp_path / "new" / "readme.txt").exists()
    found = kmsdata.verify(folder, encrypted="a")
    assert (found.ok, found.files, found.notes) == (True, 3, (f"{note}{folder}/readme.txt",))
    assert note in " ".join(str(found).split())
    assert kmsdata.inspect(folder).notes == found.notes
    assert kmsdata.rewrap(folder, "local://next").notes == found.notes
    with pytest.warns(UserWarning, match=note):
        assert sorted(kmsdata.read_parquet(folder, decrypt=True)["a"]) == [0, 1, 2]
    _, out, err = run("decrypt", str(folder), str(tmp_path / "again"))
    assert "readme.txt" in out + err
    for name in "bcde":
        (folder / name).write_text(name)
    assert kmsdata.inspect(folder).notes[0].startswith("5 files are neither")
    assert kmsdata.inspect(folder).notes[0].endswith(" and 2 more")


def test_files_of_parquet_without_its_name_are_part_of_a_dataset(folder):
    (folder / "year=0" / "0.parquet").rename(folder / "year=0" / "part-00000")
    assert kmsdata.inspect(folder).files == 3
    (folder / "year=0" / "2.parquet").write_bytes(b"damaged")
    with pytest.raises(FormatError, match=r"2\.parquet is not a Parquet file"):
        kmsdata.inspect(folder)


def test_a_folder_without_parquet_is_an_error(tmp_path):
    (tmp_path / "readme.txt").write_text("nothing else")
    with pytest.raises(FormatError, match=r"readme\.txt is not a Parquet file"):
        kmsdata.inspect(tmp_path)


def test_reports_and_errors_name_whole_urls():
    kmsdata.use(kmsdata.LocalKeystore(create=True))
    df = pd.DataFrame({"a": [1]})
    df.kms.encrypt("a", key="local://demo").kms.to_parquet("memory://bucket/sealed/x.parquet")
    url = "memory://bucket/sealed"
    assert kmsdata.inspect(url).what == url
    assert kmsdata.decrypt_parquet(url, "memory://bucket/plain").target == "memory://bucket/plain"
    with pytest.raises(FormatError, match=r"memory://bucket/plain/x\.parquet: nothing in it is encrypted"):
        kmsdata.decrypt_parquet("memory://bucket/plain", "memory://bucket/new")
    with pytest.raises(FileExistsError, match="memory://bucket/plain"):
        kmsdata.decrypt_parquet(url, "memory://bucket/plain")
    found = kmsdata.verify("memory://bucket/plain/*.parquet", encrypted="a")
    assert found.failures[0].file == "memory://bucket/plain/x.parquet"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://AKIA123:se/cr@bucket/a.parquet?region=x&key=secret", "s3://bucket/a.parquet"),
        ("ftp://user:password@host/a@b.parquet", "ftp://host/a@b.parquet"),
        ("https://token@host/a.parquet?signature=secret", "https://host/a.parquet"),
        ("hdfs://host:9000/a@b.parquet", "hdfs://host:9000/a@b.parquet"),
        ("gs://bucket/part-?.parquet", "gs://bucket/part-?.parquet"),
        ("data/a@b.parquet", "data/a@b.parquet"),
    ],
)
def test_credentials_in_urls_are_not_shown(url, shown):
    assert without_credentials(url) == shown
    assert paths_text([url, url]) == f"{shown} and 1 more"


def test_places_of_urls_are_named_without_credentials():
    place = Place.of("s3://AKIA123:secret@bucket/data/a.parquet?region=eu-west-1&endpoint_override=host")
    assert str(place) == "s3://bucket/data/a.parquet"
    assert str(place / "b") == "s3://bucket/data/a.parquet/b"
    assert str(Place(None, "AKIA:se/cret@bucket/a.parquet", start="s3://")) == "s3://bucket/a.parquet"
    with pytest.raises(FileNotFoundError) as raised:
        kmsdata.inspect("memory://user:secret@bucket/none.parquet")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("paths", ["**/*.parquet", "list", "year=0/*.parquet"])
def test_rewrapping_a_pattern_or_list_includes_the_metadata_files_beside(folder, monkeypatch, paths):
    sidecars = []
    for year in 0, 1:
        inside = folder / f"year={year}"
        schema = pq.read_schema(next(inside.glob("*.parquet")))
        sidecars += [inside / "_metadata", inside / "_common_metadata"]
        for path in sidecars[-2:]:
            pq.write_metadata(schema, path)
    pq.write_metadata(schema, folder / "_metadata")
    monkeypatch.chdir(folder)
    if paths == "list":
        kmsdata.rewrap(sorted(folder.rglob("*.parquet")), "local://next")
        changed = sidecars
    else:
        kmsdata.rewrap(paths, "local://next")
        changed = sidecars[:2] if paths.startswith("year") else [*sidecars, folder / "_metadata"]
    for path in [*sidecars, folder / "_metadata"]:
        assert (b"local://next" in path.read_bytes()) == (path in changed), path
        assert (b"local://demo" in path.read_bytes()) == (path not in changed), path
    aside = folder.parent / "aside"
    (folder / "year=0" / "_metadata").rename(aside)
    (folder / "year=0" / "_metadata").symlink_to(aside)
    with pytest.raises(kmsdata.KmsDataError, match="links in a folder are not followed"):
        kmsdata.rewrap("year=0/*.parquet", "local://demo", source=["local://next"])


def opened(kind, path):
    if kind == "BytesIO":
        return io.BytesIO(path.read_bytes())
    return (
        path.open("rb")
        if kind == "file"
        else pa.OSFile(str(path))
        if kind == "OSFile"
        else pa.BufferReader(path.read_bytes())
    )


@pytest.mark.parametrize("kind", ["BytesIO", "file", "OSFile", "BufferReader"])
def test_file_objects_are_read(tmp_path, kind):
    kmsdata.use(kmsdata.LocalKeystore(create=True))
    df = pd.DataFrame({"a": ["3", "1", None], "b": ["x", "y", "z"]}, index=pd.Index([5, 6, 7], name="i"))
    df.attrs["note"] = "kept"
    enc = df.kms.encrypt("a", deterministic=True, key="local://demo")
    path = tmp_path / "a.parquet"
    enc.kms.to_parquet(path)
    with opened(kind, path) as file:
        file.read(7)
        frame = kmsdata.read_parquet(file, decrypt=True, encrypted="a")
        pd.testing.assert_frame_equal(frame, df)
        assert frame.attrs == df.attrs
        found = kmsdata.read_parquet(file, filters=[("a", "==", "1")], columns="b")
        assert found["b"].tolist() == ["y"]
        assert kmsdata.read_parquet(file, filters=[("b", "==", "x")])["b"].tolist() == ["x"]
        checked = kmsdata.verify(file, encrypted="a")
        assert (checked.ok, checked.files, checked.columns[0].cells) == (True, 1, 2)
        report = kmsdata.inspect(file)
        assert report.encrypted == ["a"]
        assert report.what == checked.what == ("a.parquet" if kind == "file" else "file object")


def test_damaged_file_objects_are_refused():
    kmsdata.use(kmsdata.LocalKeystore(create=True))
    file = io.BytesIO()
    pd.DataFrame({"a": range(100)}).kms.encrypt("a", key="local://demo").kms.to_parquet(file)
    content = bytearray(file.getvalue())
    content[200] ^= 1
    assert not kmsdata.verify(io.BytesIO(content)).ok
    for read in kmsdata.read_parquet, kmsdata.inspect:
        with pytest.raises(FormatError, match="file object is not a Parquet file"):
            read(io.BytesIO(b"text"))
    with pytest.raises(TypeError, match="binary mode"):
        kmsdata.read_parquet(io.StringIO("text"))
    with pytest.raises(TypeError, match="filesystem= is for paths"):
        kmsdata.read_parquet(file, filesystem=pafs.LocalFileSystem())


def test_frames_are_written_to_file_objects(tmp_path):
    kmsdata.use(kmsdata.LocalKeystore(create=True))
    enc = pd.DataFrame({"a": [1, 2], "b": [3, 4]}).kms.encrypt("a", key="local://demo")
    path = tmp_path / "a.parquet"
    with path.open("wb") as file:
        enc.kms.to_parquet(file)
    assert kmsdata.read_parquet(path, decrypt=True)["a"].tolist() == [1, 2]
    sink = pa.BufferOutputStream()
    enc.kms.to_parquet(sink)
    assert kmsdata.read_parquet(pa.BufferReader(sink.getvalue()), decrypt=True)["a"].tolist() == [1, 2]
    for wrong, match in (io.StringIO(), "binary mode"), (3, "a path or an open file, not int"):
        with pytest.raises(TypeError, match=match):
            enc.kms.to_parquet(wrong)
    with pytest.raises(TypeError, match="partition_cols= and filesystem= are for paths"):
        enc.kms.to_parquet(io.BytesIO(), partition_cols="b")


def test_frames_with_columns_named_as_functions_of_files_are_frames():
    kmsdata.use(kmsdata.LocalKeystore(create=True))
    frame = pd.DataFrame({"read": [1], "seek": [2], "close": [3]}).kms.encrypt("read", key="local://demo")
    assert kmsdata.inspect(frame).encrypted == ["read"]
    assert kmsdata.verify(frame).ok


def test_what_replaces_files_refuses_file_objects(tmp_path):
    for call in (
        lambda file: kmsdata.rewrap(file, "local://next"),
        lambda file: kmsdata.encrypt_parquet(file, tmp_path / "x", "a", key="local://demo"),
        lambda file: kmsdata.decrypt_parquet(file, tmp_path / "x"),
    ):
        with pytest.raises(TypeError, match=r"file object.*to a file and pass its path"):
            call(io.BytesIO())
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(TypeError, match="takes a path, not BytesIO"):
        kmsdata.encrypt_parquet(tmp_path / "a.parquet", io.BytesIO(), "a", key="local://demo")
