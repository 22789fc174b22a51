"""Questions to IPython and the notebook kernel. IPython is not loaded to find out whether it runs."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["cell_number", "in_notebook", "show", "show_bundle", "takes_input"]


def _shell() -> Any:
    """Return the running shell of IPython; None outside IPython."""
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()


def _kernel() -> Any:
    """Return the running kernel; None in a terminal and outside IPython."""
    return getattr(_shell(), "kernel", None)


def in_notebook() -> bool:
    """Tell whether this runs in a kernel, whose output is a page."""
    return _kernel() is not None


def takes_input() -> bool:
    """Tell whether the kernel can ask the user: not in cells that nbconvert, nbclient or papermill run."""
    return bool(getattr(_kernel(), "_allow_stdin", True))


def cell_number() -> int | None:
    """Return the number of the cell that runs; None outside IPython."""
    return getattr(_shell(), "execution_count", None)


def show(thing: object, handle: Any = None) -> Any:
    """Show an object in the cell's output.

    Args:
        thing: an object that has HTML.
        handle: what an earlier call returned: its output is replaced. None: a new output is added.

    Returns:
        The handle of the output.
    """
    if handle is None:
        from IPython.display import display

        return display(thing, display_id=True)  # type: ignore[no-untyped-call]
    handle.update(thing)
    return handle


def show_bundle(bundle: dict[str, Any]) -> None:
    """Show data by media type, such as a widget's, in the cell's output."""
    from IPython.display import display

    display(bundle, raw=True)  # type: ignore[no-untyped-call]
