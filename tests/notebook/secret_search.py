"""Secrets for tests, and a search for every 12 characters of them in every file of a folder."""

import base64
import hashlib
from collections import defaultdict

import numpy as np

PIECE = 12  # characters (of base64, too) that count as a find
_BLOCK = 1 << 20
_BITS = 22  # size of the table that a piece's hash selects an entry of: few pieces of other texts pass it
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def made(name, length=32):
    """Make a secret of characters and digits from a name. Secrets of different names share no piece."""
    text = ""
    while len(text) < length:
        digest = hashlib.sha512(f"{name} {len(text)}".encode()).digest()
        text += base64.b64encode(digest).decode().translate({ord(sign): None for sign in "+/="})
    return text[:length]


def forms(secret):
    """Yield the secret as text and as base64, where 0, 1 or 2 other bytes may come before it in a group.

    The characters of base64 that depend on what comes before or after the secret are left out.
    """
    plain = secret.encode()
    yield plain
    for before in range(3):
        text = base64.b64encode(bytes(before) + plain)
        yield text[(0, 2, 3)[before] : (before + len(plain)) * 8 // 6]


class Search:
    """Find texts in files: any 12 characters of them, as text, in UTF-16 and in base64."""

    def __init__(self, texts):
        self._texts = defaultdict(set)  # by piece
        for text in texts:
            for form in forms(text):
                for at in range(len(form) - PIECE + 1):
                    self._texts[form[at : at + PIECE]].add(text)
        pieces = np.frombuffer(b"".join(self._texts), np.uint8)
        self._known = np.zeros(1 << _BITS, bool)
        self._known[_hashes(pieces)[::PIECE]] = True

    def texts_in(self, content):
        """Return the texts of which a piece is in some bytes."""
        found = set()
        for text in (content, content.replace(b"\0", b"")):  # UTF-16 without zero bytes is ASCII
            for start in range(0, len(text), _BLOCK):
                block = text[start : start + _BLOCK + PIECE - 1]
                if len(block) >= PIECE:
                    for at in np.flatnonzero(self._known[_hashes(np.frombuffer(block, np.uint8))]):
                        found |= self._texts.get(block[at : at + PIECE], set())
        return found

    def files(self, folder):
        """Return, by text, the files below a folder that contain a piece of it."""
        files = defaultdict(set)
        for path in folder.rglob("*"):
            name = path.relative_to(folder).as_posix()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            for text in self.texts_in(name.encode() + b"\n" + content):
                files[text].add(name)
        return files


def _hashes(characters):
    """Return a hash, as long as an index of the table, of each 12 adjacent characters."""
    with np.errstate(over="ignore"):
        one = characters.astype(np.uint64) * _FACTOR
        two = one[:-1] * _FACTOR + one[1:]
        four = two[:-2] * _FACTOR + two[2:]
        eight = four[:-4] * _FACTOR + four[4:]
        twelve = eight[:-4] * _FACTOR + four[8:]
    return (twelve * _FACTOR) >> np.uint64(64 - _BITS)
