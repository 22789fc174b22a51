"""Errors on the command line: one sentence, a hint on what to do, and an exit code."""

from __future__ import annotations

import re
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import kmsdata
from kmsdata.atomic_files import NO_FOLDER
from kmsdata.cli.output import clean, show_warning
from kmsdata.errors import CallerKeyError, CallerTypeError, CallerValueError

__all__ = ["Refusal", "explain", "guarded_call", "in_options"]

_HINTS = {
    "KeyExists": "keys are never overwritten: choose another name; 'kmsdata keys list' shows all keys",
}


class Refusal(Exception):  # noqa: N818 - not an error of the program
    """A request that is not possible, with a message of one sentence.

    Attributes:
        hint: what to do, or an empty text.
        usage: whether the command line is wrong, not the data.
    """

    def __init__(self, message: str, hint: str = "", *, usage: bool = False) -> None:
        super().__init__(clean(message))
        self.hint = clean(hint)
        self.usage = usage


def explain(error: Exception) -> tuple[str, str, int]:
    """Return the sentence, the hint (or an empty text) and the exit code of an error."""
    if isinstance(error, Refusal):
        return str(error), error.hint, 2 if error.usage else 1
    if isinstance(error, kmsdata.KmsDataError):
        hint = _HINTS.get(getattr(error, "code", None) or "", "")
        if isinstance(error, kmsdata.CredentialsError) and error.code == "NoCredentials":
            hint = f"searched in this order: {'; '.join(error.tried[1:])}"
        return in_options(str(error)), hint, 1
    if isinstance(error, FileNotFoundError):
        what = NO_FOLDER if error.strerror == NO_FOLDER else "there is no file"
        # fsspec raises FileNotFoundError with only the path as its message, and without a filename.
        text = in_options(str(error)) if error.filename is None else f"{what}: {error.filename}"
        return text if " " in text else f"there is no file: {text}", "", 1
    if isinstance(error, OSError):
        named = f": {error.filename}" if error.filename else ""
        return in_options(f"{error.strerror or str(error) or type(error).__name__}{named}"), "", 1
    return str(error), "", 1


_OPTIONS = {
    "overwrite=True": "--force",
    "add=True": "--add",
    "types=": "--type",
    **{f"{name}=": f"--{name}" for name in ("source", "retire", "deterministic", "domain", "context", "key")},
    "encrypted=": "--encrypted",
    "delimiter=": "--delimiter",
}


def in_options(message: str) -> str:
    """Replace Python arguments in a message of the library by command-line options."""
    message = message.replace(", or pass filesystem=", "")  # the command line has no such option
    message = message.replace(
        "pass kmsdata.LocalKeystore(create=True) to kmsdata.use()", "pass --create-key to encrypt or rewrap"
    )
    message = re.sub(r"\bdelimiter=(?=')", "--delimiter ", message)
    message = re.sub(r"\bencoding=(?='?[\w-])", "--encoding ", message)
    message = re.sub(r"types=\{'([^']*)': '(\w+)'\}", r"--type \1=\2", message)
    message = re.sub(r"\bdomain=\{column: text\}", "--domain COLUMN=TEXT", message)
    return re.sub(
        r"(?<![\w.-])(?:" + "|".join(map(re.escape, _OPTIONS)) + r")(?=[\s,.;:)]|$)",
        lambda found: _OPTIONS[found[0]],
        message,
    )


@contextmanager
def guarded_call() -> Iterator[None]:
    """Guard a call of the library: report bad input in one sentence, and clean up after a signal.

    A bug keeps its traceback. KeyError, TypeError and ValueError may be either: they are about the input if
    they are a `CallerError`; otherwise they are a bug.
    """

    def stop(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)  # raises, so that temporary files are removed, as after Ctrl-C

    # Windows has no SIGHUP. Handlers that are already set, and ignored signals (nohup), are left in place.
    stops = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, stop) for number in stops if signal.getsignal(number) == 0}
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: show_warning(in_options(str(message)))
            yield
    except kmsdata.KmsDataError:
        raise
    except (CallerKeyError, CallerTypeError, CallerValueError) as error:
        raise Refusal(in_options(str(error.args[0]))) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
