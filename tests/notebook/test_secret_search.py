"""The search of the leak tests finds what it looks for, and nothing else."""

import base64
import itertools
import json

import pytest

from tests.notebook.secret_search import _BLOCK, PIECE, Search, made

pytestmark = pytest.mark.newest

SECRET, OTHER, LONG = made("secret"), made("other"), made("long", 4096)
PLAIN = SECRET.encode()
TEXTS = [
    PLAIN,
    f"x{SECRET}".encode("utf-16-le"),
    f"xy{SECRET}".encode("utf-16-be"),
    *[PLAIN[at : at + PIECE] for at in range(len(SECRET) - PIECE + 1)],
    *[SECRET[at : at + PIECE].encode("utf-16-le") for at in (0, 7, 20)],
    *[base64.b64encode(bytes(n) + PLAIN + bytes(m)) for n, m in itertools.product(range(4), repeat=2)],
    base64.b64encode(b"typed: " + PLAIN[9:21] + b", more"),
    base64.urlsafe_b64encode(b"ab" + PLAIN),
    json.dumps({"value": base64.encodebytes(b"?" * 50 + PLAIN).decode()}).encode(),
]


@pytest.mark.parametrize("before", [0, 1, _BLOCK - 20])
def test_finds(tmp_path, before):
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}" / "folder").mkdir(parents=True)
        (tmp_path / f"{number}" / "folder" / "file").write_bytes(b"-" * before + text + b"- after")
    (tmp_path / "short").write_bytes(b"-" * before + PLAIN[: PIECE - 1] + b"-" + OTHER.encode())
    files = Search([SECRET, LONG]).files(tmp_path)
    assert files == {SECRET: {f"{number}/folder/file" for number in range(len(TEXTS))}}


def test_finds_pieces_of_a_long_secret_and_names_of_files(tmp_path):
    for at in range(0, 4084, 97):
        (tmp_path / f"{at:04}").write_text(f"ab {LONG[at : at + PIECE]}!")
    (tmp_path / f"autosave of {SECRET[3:20]}").touch()
    files = Search([OTHER, SECRET, LONG]).files(tmp_path)
    assert files == {
        LONG: {f"{at:04}" for at in range(0, 4084, 97)},
        SECRET: {f"autosave of {SECRET[3:20]}"},
    }


def test_secrets_share_no_piece():
    texts = [made(f"{number}", length) for number, length in enumerate([32, 33, 40, 4096] * 10)]
    assert [len(text) for text in texts[:4]] == [32, 33, 40, 4096]
    pieces = [{text[at : at + PIECE - 4] for at in range(len(text) - PIECE + 5)} for text in texts]
    assert sum(map(len, pieces)) == len(set().union(*pieces))
