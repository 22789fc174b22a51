"""Files of Parquet Modular Encryption are refused by name everywhere: pyarrow would end the process."""

import base64
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kmsdata.parquet.footer import ending
from kmsdata.parquet.thrift import decode, encode, value

PROGRAM = """
import contextlib, io, json, sys
import kmsdata
from kmsdata.cli.app import main

path, target = sys.argv[1:]
kmsdata.use(kmsdata.LocalKeystore(create=True))
for name in "one", "two":
    kmsdata.new_data_key(f"local://{name}")

def command(*arguments):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            main(list(arguments))
        except SystemExit:
            pass
    return said.getvalue()

calls = {
    "inspect": lambda: kmsdata.inspect(path),
    "verify": lambda: str(kmsdata.verify(path)),
    "rewrap": lambda: kmsdata.rewrap(path, "local://two"),
    "read_parquet": lambda: kmsdata.read_parquet(path),
    "plain column": lambda: kmsdata.read_parquet(path, columns="plain"),
    "filters": lambda: kmsdata.read_parquet(path, filters=[("plain", "==", "x")]),
    "decrypt": lambda: kmsdata.read_parquet(path, decrypt=True),
    "encrypt_parquet": lambda: kmsdata.encrypt_parquet(path, target, "plain", key="local://one"),
    "dry run": lambda: kmsdata.encrypt_parquet(path, target, "plain", key="local://one", dry_run=True),
    "decrypt_parquet": lambda: kmsdata.decrypt_parquet(path, target),
    "kmsdata inspect": lambda: command("inspect", path),
    "kmsdata verify": lambda: command("verify", path),
    "kmsdata rewrap": lambda: command("rewrap", path, "-k", "local://two"),
    "kmsdata encrypt": lambda: command("encrypt", path, target, "-c", "plain", "-k", "local://one"),
    "kmsdata decrypt": lambda: command("decrypt", path, target),
}
for name, call in calls.items():
    try:
        said = str(call())
    except kmsdata.KmsDataError as error:
        said = str(error)
    print(json.dumps([name, "".join(said.split())]), flush=True)  # tables wrap lines
"""


def write(path, *, plaintext_footer):
    """Write a file whose column "secret" is encrypted by pyarrow."""
    from pyarrow.parquet import encryption

    class Client(encryption.KmsClient):
        def wrap_key(self, key, name):  # noqa: ARG002
            return base64.b64encode(key)

    factory = encryption.CryptoFactory(lambda _: Client())
    how = encryption.EncryptionConfiguration(
        "footer", column_keys={"column": ["secret"]}, plaintext_footer=plaintext_footer
    )
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), how)
    table = pa.table({"secret": [1, 2, 3], "plain": ["x", "y", "z"]})
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)


def remove_algorithm(path):
    """Leave only the crypto_metadata of the column, as no honest writer does."""
    data = path.read_bytes()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    fields, _ = decode(data[start:-8])
    assert fields.pop(8)
    fields.pop(9, None)
    assert 8 in value(value(fields, 4)[1][0], 1)[1][0]
    path.write_bytes(data[:start] + ending(encode(fields)))


@pytest.mark.newest
@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["plaintext footer", "encrypted footer", "without algorithm", "in a folder"])
def test_no_entry_point_ends_the_process(tmp_path, kind):
    path = tmp_path / "data" / "b.parquet"
    path.parent.mkdir()
    write(path, plaintext_footer=kind != "encrypted footer")
    where = path
    if kind == "without algorithm":
        remove_algorithm(path)
    if kind == "in a folder":
        where = path.parent
        pq.write_table(pa.table({"secret": [1, 2, 3], "plain": ["x", "y", "z"]}), where / "a.parquet")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(where), str(tmp_path / "target")],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    said = dict(map(json.loads, done.stdout.splitlines()))
    assert len(said) == 15
    if kind == "without algorithm":  # plain columns may be read; nothing of it may end the process
        return
    assert [name for name, text in said.items() if "ParquetModularEncryption" not in text] == []
    assert [name for name, text in said.items() if "b.parquet" not in text] == []
    assert not (tmp_path / "target").exists()
