"""Exceptions: facts as attributes, never plaintext, keys or ciphertext; every one can be pickled."""

from __future__ import annotations

import copyreg
import difflib
import linecache
import operator
import sys
import traceback
from collections.abc import Iterable
from typing import Any, Self, TypeVar

__all__ = [
    "CallerError",
    "CallerFileExistsError",
    "CallerFileNotFoundError",
    "CallerImportError",
    "CallerKeyError",
    "CallerTypeError",
    "CallerValueError",
    "CredentialsError",
    "FormatError",
    "Interrupted",
    "KeyAccessError",
    "KeyNotFoundError",
    "KeyServiceError",
    "KmsDataError",
    "TamperedError",
    "UnsupportedTypeError",
    "WrongKeyError",
    "did_you_mean",
    "located",
    "printable",
]


ErrorT = TypeVar("ErrorT", bound="KmsDataError")


class KmsDataError(Exception):
    """Base class of all errors of kmsdata: a message, and its facts as attributes.

    A notebook shows one short block: the message, and the line of the notebook cell. ``%tb`` then shows the
    traceback; after ``%xmode Verbose`` (or ``Plain``) every error shows it.

    Example:
        >>> from kmsdata.errors import TamperedError
        >>> error = TamperedError("2 cells fail", column="ssn", rows=(3, 8), count=2)
        >>> error.column, error.rows
        ('ssn', (3, 8))
    """

    def __init__(self, message: str, **facts: Any) -> None:
        # Names of files, columns and types in a message may come from anyone.
        super().__init__(printable(message, "\n"))
        self.__dict__.update(facts)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self.args[0]),), dict(self.__dict__)

    def with_facts(self, **facts: Any) -> Self:
        """Add facts (such as a path) to the error, and return it, for callers that know more."""
        self.__dict__.update(facts)
        return self

    def _render_traceback_(self) -> list[str]:
        return _one_block(self)


class _CallerErrorClass(type):
    """The class of `CallerError` and its subclasses, so that `copyreg` can pickle them as Python's."""


class CallerError(BaseException, metaclass=_CallerErrorClass):
    """Base class of Python's own exceptions, where they are about the call and not a bug.

    A notebook shows them in one short block, as it shows a `KmsDataError`. The subclasses are for ``raise``
    statements. To users they are Python's: tracebacks show the names of Python's classes, and pickles have
    objects of these.

    Example:
        >>> error = CallerKeyError("no column 'nmae': did you mean 'name'?")
        >>> isinstance(error, KeyError), type(error).__name__, str(error)
        (True, 'KeyError', "no column 'nmae': did you mean 'name'?")
    """

    def __init_subclass__(cls) -> None:
        cls.__name__ = cls.__qualname__ = cls.__bases__[1].__name__
        cls.__module__ = "builtins"

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self).__bases__[1], *super().__reduce__()[1:])

    def _render_traceback_(self) -> list[str]:
        return _one_block(self)


def _pickled_class(cls: _CallerErrorClass) -> Any:
    # A class is otherwise pickled as its module and name, which here are those of another class.
    return "CallerError" if cls is CallerError else (operator.getitem, (cls.__bases__[1:], 0))


copyreg.pickle(_CallerErrorClass, _pickled_class)


class CallerKeyError(CallerError, KeyError):
    """A KeyError whose text is the message, not its repr."""

    def __str__(self) -> str:
        return str(self.args[0]) if len(self.args) == 1 else super().__str__()


class CallerTypeError(CallerError, TypeError):
    """A TypeError about an argument, or about an operation that encrypted columns do not have."""


class CallerValueError(CallerError, ValueError):
    """A ValueError about an argument."""


class CallerImportError(CallerError, ImportError):
    """An ImportError about a package to install."""


class CallerFileExistsError(CallerError, FileExistsError):
    """A FileExistsError about a path that was passed in."""


class CallerFileNotFoundError(CallerError, FileNotFoundError):
    """A FileNotFoundError about a path that was passed in."""


class Interrupted(CallerError, KeyboardInterrupt):  # noqa: N818 - as Python names it
    """A KeyboardInterrupt that says what was interrupted."""


def _one_block(error: BaseException) -> list[str]:
    """Return the lines that IPython shows instead of a traceback."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None:
        return traceback.format_exception(error)
    usual = getattr(shell, "InteractiveTB", None)
    # IPython calls this while it handles the error, and %tb later: that is the request for the rest.
    handled = sys.exc_info()[1] is error
    if usual is not None and not (handled and usual.mode in ("Context", "Minimal")):
        return list(usual.structured_traceback(type(error), error, error.__traceback__))
    line = _line_of_cell(error, shell)
    message = printable(str(error), "\n")
    return [
        f"\x1b[31m{type(error).__name__}\x1b[39m: {message}",
        *_notes(error),
        *([f"  at {line}"] if line else []),
        *_reason(error),
        "  (%tb shows the traceback)",
    ]


def _notes(error: BaseException) -> list[str]:
    """Return what the user added with ``add_note``."""
    notes = getattr(error, "__notes__", None)
    lines = [line for note in notes for line in str(note).split("\n")] if isinstance(notes, list) else []
    return [f"  {printable(line)}" for line in lines]


def _reason(error: BaseException) -> list[str]:
    """Return a line on an exception of other software that led to this one: its class only.

    Its text may contain values. The traceback shows it, as every exception that led to the error.
    """
    how, other = "caused by", error.__cause__
    if other is None and not error.__suppress_context__:
        how, other = "raised while handling", error.__context__
    if other is None or isinstance(other, (KmsDataError, CallerError)):
        return []
    return [f"  {how} {printable(type(other).__name__)}"]


def _line_of_cell(error: BaseException, shell: Any) -> str | None:
    """Return the notebook line that called kmsdata, and the number of its notebook cell."""
    found = None
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__", "").startswith("kmsdata."):
            break
        path = frame.f_code.co_filename
        if (name := getattr(shell.compile, "format_code_name", lambda _: None)(path)) is not None:
            found = f"{name[1]}, line {number}: {linecache.getline(path, number).strip()}"
    return found


def located(error: ErrorT, where: str, **facts: Any) -> ErrorT:
    """Return the error with the location (a path, a column) before its message, and with more facts.

    Example:
        >>> str(located(FormatError("the header is not JSON"), "a.parquet", path="a.parquet"))
        'a.parquet: the header is not JSON'
    """
    return type(error)(f"{where}: {error}", **{**vars(error), **facts})


class KeyServiceError(KmsDataError):
    """A KMS call failed or was refused.

    Attributes:
        provider: the provider's scheme, such as ``"local"``.
        operation: the operation, such as ``"unwrap"``.
        code: the service's own error code, or None.
        request_id: the service's id of the request, or None.
        retryable: whether the same call may succeed later.
    """

    provider: str | None = None
    operation: str | None = None
    code: str | None = None
    request_id: str | None = None
    retryable: bool = False


class KeyNotFoundError(KeyServiceError):
    """The master key does not exist. ``key`` is its URI."""

    key: str | None = None


class KeyAccessError(KeyServiceError):
    """The master key exists but must not be used. ``key`` is its URI; ``code`` gives the reason."""

    key: str | None = None


class CredentialsError(KeyServiceError):
    """No usable credentials were found. ``tried`` lists where they were looked for, in order."""

    tried: tuple[str, ...] = ()


class WrongKeyError(KmsDataError):
    """The key does not belong to the data.

    Attributes:
        key: URI of the master key, or None.
        column: the column, or None.
        rows: positions of the first cells whose key id is in no header of their column.
        allowed: False if the key must not be used here, so that no KMS call was made.
    """

    key: str | None = None
    column: str | None = None
    rows: tuple[int, ...] = ()
    allowed: bool = True


class TamperedError(KmsDataError):
    """Cells fail authentication: they were changed, truncated, or moved from elsewhere.

    Attributes:
        column: the column.
        rows: positions (not labels) of the first such cells.
        count: the number of such cells.
    """

    column: str | None = None
    rows: tuple[int, ...] = ()
    count: int = 0


class FormatError(KmsDataError, ValueError):
    """A header or file is malformed, was changed, or has an unknown version.

    Attributes:
        path: the file, or None.
        column: the column, or None.
        field: the field of the header, or None.
    """

    path: str | None = None
    column: str | None = None
    field: str | None = None


class UnsupportedTypeError(KmsDataError, TypeError):
    """A type or value cannot be restored exactly; the message says what would work.

    Attributes:
        column: the column.
        dtype: the dtype of the column, as text.
    """

    column: str | None = None
    dtype: str | None = None


def printable(text: str, kept: str = "") -> str:
    """Escape control and bidirectional characters, which names in a file may contain.

    Printed unescaped, they could move the cursor of a terminal or reverse a line.

    Args:
        text: any text.
        kept: characters to keep, such as line ends.

    Example:
        >>> printable("身份证 \x1b[2J")
        '身份证 \\\\x1b[2J'
    """
    return "".join(
        letter if letter.isprintable() or letter in kept else letter.encode("unicode_escape").decode()
        for letter in text
    )


def did_you_mean(name: object, known: Iterable[object], cutoff: float = 0.6) -> str:
    """Return a question with the most similar of the known names, or an empty text.

    Args:
        name: the name that is not known.
        known: the names that are; those that are not text are left out.
        cutoff: how similar it must be, as in `difflib.get_close_matches`; upper and lower case are equal.

    Example:
        >>> did_you_mean("SSN", ["name", "ssn"]), did_you_mean("x", ["name"])
        (": did you mean 'ssn'?", '')
    """
    folded = {text.casefold(): text for text in known if isinstance(text, str)}
    close = difflib.get_close_matches(str(name).casefold(), folded, 1, cutoff)
    return f": did you mean {folded[close[0]]!r}?" if close else ""
