"""JavaScript and style sheets of the widgets: plain files that the browser reads unchanged."""

from __future__ import annotations

import importlib.resources

__all__ = ["texts"]


def texts(*names: str) -> str:
    """Return the files one after the other: anywidget takes a single module, and a single style sheet.

    Example:
        >>> texts("theme.css").startswith("/* Colours")
        True
    """
    folder = importlib.resources.files(__name__)
    return "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names)
