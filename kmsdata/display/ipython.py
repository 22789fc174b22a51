"""Query IPython and the notebook kernel. IPython is not imported to find out whether it runs."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

__all__ = [
    "cell_number",
    "in_marimo",
    "in_notebook",
    "in_voila",
    "show",
    "show_bundle",
    "takes_input",
    "thread_class",
    "variable_name",
]


def _shell() -> Any:
    """Return IPython's running shell; None outside IPython."""
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()


def _kernel() -> Any:
    """Return the running kernel; None in a terminal and outside IPython."""
    return getattr(_shell(), "kernel", None)


def in_notebook() -> bool:
    """Return whether this runs in a kernel, whose output can be HTML."""
    return _kernel() is not None


def in_marimo() -> bool:
    """Return whether this runs in a marimo notebook that a page shows, not in a script."""
    marimo = sys.modules.get("marimo")
    return marimo is not None and bool(marimo.running_in_notebook())


def in_voila() -> bool:
    """Return whether Voila runs this kernel: a page shows its widgets, but it answers no questions."""
    return in_notebook() and os.environ.get("SERVER_SOFTWARE", "").startswith("voila")


def takes_input() -> bool:
    """Return whether the kernel can ask the user: not in cells that nbconvert, nbclient or papermill run."""
    # Each request to run a cell says whether its sender answers questions. ipykernel 7 keeps that only in
    # this private attribute. A kernel without it is assumed to be able to ask.
    return bool(getattr(_kernel(), "_allow_stdin", True))


def cell_number() -> int | None:
    """Return the number of the running cell; None outside IPython."""
    return getattr(_shell(), "execution_count", None)


def show(thing: object, handle: Any = None) -> Any:
    """Show an object in the cell's output.

    Args:
        thing: an object with an HTML representation.
        handle: the handle that an earlier call returned: its output is replaced. None: an output is added.

    Returns:
        The handle of the output.
    """
    if handle is None:
        from IPython.display import display

        return display(thing, display_id=True)  # type: ignore[no-untyped-call]
    handle.update(thing)
    return handle


def show_bundle(bundle: dict[str, Any]) -> None:
    """Show data by media type, such as the data of a widget, in the cell's output."""
    from IPython.display import display

    display(bundle, raw=True)  # type: ignore[no-untyped-call]


def thread_class() -> type[threading.Thread]:
    """Return the class of threads that may update a widget."""
    if in_marimo():
        import marimo

        thread: type[threading.Thread] = marimo.Thread
        return thread
    return threading.Thread


def variable_name(thing: object) -> str | None:
    """Return a name that the user's notebook or script has for an object; None if there is none.

    Names that begin with an underscore are left out: IPython makes some of them for each output.
    """
    names = dict(vars(sys.modules["__main__"])) if "__main__" in sys.modules else {}
    found = [str(name) for name, value in names.items() if value is thing]
    return next((name for name in found if name.isidentifier() and not name.startswith("_")), None)
