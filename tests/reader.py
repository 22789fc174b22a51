"""A reader of kmsdata files, written from SPEC.md alone on cryptography and pyarrow, without kmsdata.

python tests/reader.py KEYSTORE FILE...    prints a line of JSON for each file: its outcome (success, format,
wrong key, tampered), and for each encrypted column the plaintext of its cells in hex, null for null.
"""

import hashlib
import hmac
import json
import sys
from base64 import b64decode

import pyarrow as pa
import pyarrow.parquet as pq
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


class Failure(Exception):  # noqa: N818
    pass  # its text is the outcome


def canonical(data):
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def derive(data_key, info, size):
    """SPEC 2."""
    return HKDF(SHA256(), size, None, info).derive(data_key)


def parse(text, *fields):
    """SPEC 3: parse canonical JSON of this version, with exactly these fields."""
    data = json.loads(text)
    if canonical(data) != text or data.get("version") != 1 or set(data) != {"version", *fields}:
        raise Failure("format")
    return data


def unwrap(record, keystore):
    """SPEC 7 for local keys: the first wrapped key that matches the commitment."""
    for wrap in record["wraps"]:
        master = keystore["keys"].get(wrap["key"].removeprefix("local://"))
        if master is None:  # not in this keystore: try the next one
            continue
        raw = b64decode(wrap["wrapped"])
        place = {"context": record["context"], "id": master["id"], "key": wrap["key"]}
        aad = canonical(place | {"use": "kmsdata/1/local"}).encode()
        try:
            data_key = AESGCM(b64decode(master["secret"])).decrypt(raw[16:28], raw[28:], aad)
        except InvalidTag:
            continue
        if derive(data_key, b"kmsdata/1/commitment", 32) == b64decode(record["commitment"]):
            return data_key
    raise Failure("wrong key")


def opener(column, record, data_key):
    """SPEC 4 and 5: check the MAC of a column object; return its key id and a function that opens a cell."""
    fields = {"AES-256-GCM": {"name"}, "AES-256-SIV": {"domain", "kind"}}.get(column["algorithm"], set())
    bare = {key: value for key, value in column.items() if key != "mac"}
    message = canonical({"column": bare, "context": record["context"], "version": 1}).encode()
    mac = hmac.new(derive(data_key, b"kmsdata/1/header", 32), message, hashlib.sha256).digest()
    known = fields and set(bare) == {"algorithm", "data_key", "type"} | fields
    if not known or not hmac.compare_digest(mac, b64decode(column["mac"])):
        raise Failure("format")
    if "kind" in fields:
        key = derive(data_key, f"kmsdata/1/AES-256-SIV/{column['kind']}/{column['domain']}".encode(), 68)
        return key_id(key), lambda cell: AESSIV(key[4:]).decrypt(cell[5:], [b""])
    bound = {field: column[field] for field in bare if field != "data_key"}
    digest = hashlib.sha256(canonical(bound).encode()).digest()
    key = derive(data_key, b"kmsdata/1/AES-256-GCM/" + digest, 36)
    return key_id(key), lambda cell: AESGCM(key[4:]).decrypt(cell[5:17], cell[17:], b"")


def key_id(key):
    """SPEC 2: without zero bytes."""
    return key[:4].replace(b"\0", b"\xff")


def read(path, keystore):
    """SPEC 6: read the encrypted columns, from the field metadata, otherwise from the file's entry."""
    schema = pq.read_schema(path)
    headers = {}
    for field in schema:
        metadata = field.metadata or {}
        if metadata.get(b"ARROW:extension:name") == b"kmsdata.encrypted":
            headers[field.name] = parse(metadata[b"ARROW:extension:metadata"].decode(), "column", "data_keys")
    entry = (schema.metadata or {}).get(b"kmsdata")
    for name, column in parse(entry.decode(), "columns", "data_keys")["columns"].items() if entry else ():
        if name not in headers and "binary" in str(schema.field(name).type):
            headers[name] = {"column": column, "data_keys": json.loads(entry)["data_keys"]}
    if any(item.get("name", name) != name for name, header in headers.items() for item in header["column"]):
        raise Failure("format")
    domains = {name: header["column"][0].get("domain") for name, header in headers.items()}
    if any(domain not in (None, name) and name in domains.values() for name, domain in domains.items()):
        raise Failure("format")  # SPEC 4: exchanged
    table = pq.read_table(path)
    return {name: cells(table.column(name), header, keystore) for name, header in headers.items()}


def cells(column, header, keystore):
    records = {record["commitment"]: record for record in header["data_keys"]}
    keys = {commitment: unwrap(record, keystore) for commitment, record in records.items()}
    objects = dict(
        opener(item, records[item["data_key"]], keys[item["data_key"]]) for item in header["column"]
    )
    out = []
    for cell in column.cast(pa.large_binary()).to_pylist():
        if cell is not None and (len(cell) < 21 or cell[0] != 1):
            raise Failure("tampered")
        if cell is not None and cell[1:5] not in objects:
            raise Failure("wrong key")
        try:
            out.append(None if cell is None else objects[cell[1:5]](cell).hex())
        except (InvalidTag, ValueError):
            raise Failure("tampered") from None
    return out


if __name__ == "__main__":
    with open(sys.argv[1]) as file:  # noqa: PTH123
        store = json.load(file)
    for argument in sys.argv[2:]:
        try:
            print(json.dumps({"outcome": "success", "cells": read(argument, store)}))
        except Failure as failure:
            print(json.dumps({"outcome": str(failure)}))
