"""Plain English: words that need a second reading do not appear in strings, comments and documents."""

import io
import json
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).parent.parent
PLACES = ["kmsdata", "tests", "benchmarks", "notebooks", "docs", ".ci", ".github", "*.md", "*.toml"]
ENDINGS = {".py", ".md", ".ipynb", ".toml", ".yml", ""}

# Each has a plain word: is or contains, in memory, character, caller, afterwards, again, except, unchanged.
PHRASES = re.compile(
    r"\b(?:stands?|stood|at hand|letters?|whoever|whatever|somebody|nobody|thereafter|hardly|anew|aloud"
    r"|but for|of (?:its|their|one's|your|our|his) own|sorted out|else by"
    r"|as (?:it|they) (?:was|were|stands?|stood)|(?:is|are|was|were) to be had|lies? in)\b",
    re.IGNORECASE,
)

# Where one of them is the right word, or part of a test's id: how many there are.
ALLOWED = {
    "tests/notebook/test_login_form.py": 1,  # a character's Unicode name
    "tests/end_to_end/test_bad_input.py": 3,  # parts of test ids
}


def files():
    """Every file with text for people; test vectors and this list of words are not."""
    for place in PLACES:
        for path in sorted(ROOT.glob(place)):
            every = sorted(path.rglob("*")) if path.is_dir() else [path]
            for file in every:
                hidden = "__pycache__" in file.parts or ".ipynb_checkpoints" in file.parts
                if file.is_file() and file.suffix in ENDINGS and not hidden and file != Path(__file__):
                    yield file


def texts(path):
    """The strings and comments of code, and every line of a document, with where they are."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        for cell in json.loads(text)["cells"]:
            yield cell["id"], "".join(cell["source"])
    elif path.suffix == ".py":
        kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in kinds:
                yield token.start[0], token.string
    else:
        yield from enumerate(text.splitlines(), 1)


def phrases():
    """Every phrase by file, with where it is."""
    found = {}
    for path in files():
        name = path.relative_to(ROOT).as_posix()
        for where, text in texts(path):
            for match in PHRASES.finditer(re.sub(r"\s+", " ", text)):
                found.setdefault(name, []).append(f"{name}:{where}: {match[0]}")
    return found


def test_no_text_needs_a_second_reading():
    found = phrases()
    assert [where for name, all_ in found.items() if len(all_) > ALLOWED.get(name, 0) for where in all_] == []


def test_the_list_notices_what_it_should():
    for text in (
        "the key stands here",
        "64 letters",
        "copied as they stand",
        "else by the path",
        "Nobody knows",
    ):
        assert PHRASES.search(text), text
    for text in ("an understanding", "the letterbox", "in memory", "characters"):
        assert not PHRASES.search(text), text
