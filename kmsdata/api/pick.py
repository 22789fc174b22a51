"""Show a column picker for a frame."""

from __future__ import annotations

import contextvars
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

import pandas as pd

from kmsdata.api.column_profile import profile_frame
from kmsdata.display.ipython import variable_name
from kmsdata.errors import CallerImportError, FormatError, KmsDataError
from kmsdata.frames.encrypted_columns import Encrypted, encrypted_column
from kmsdata.frames.key_argument import is_encrypted_data
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.key_uri import parse_key
from kmsdata.keys.session import Key, key_list, session_key

if TYPE_CHECKING:
    from kmsdata.notebook.column_picker import ColumnPicker

__all__ = ["pick"]

_NO_KEY = (
    "There is no key yet. Call kmsdata.use('local://demo') or kmsdata.login() in another cell, or pass key= "
    "to pick(). Then press Encrypt."
)
_CHANGED = "Nothing was encrypted: the columns of the frame have changed since. Run the cell again."


def pick(
    frame: pd.DataFrame, encrypt: Callable[..., pd.DataFrame], key: Key | Encrypted | None = None
) -> ColumnPicker:
    """Show a column picker; see `kmsdata.api.accessor.FrameAccessor.pick`.

    Args:
        frame: the frame.
        encrypt: its accessor's method.
        key: as in ``encrypt``.
    """
    if importlib.util.find_spec("anywidget") is None:
        raise CallerImportError('df.kms.pick() needs anywidget: pip install "kmsdata[notebook]"')
    from kmsdata.notebook.column_picker import ColumnPicker

    named = ""
    if isinstance(key, DataKey) or is_encrypted_data(key):
        named = f"key={variable_name(key) or 'key'}"
    elif key is not None:
        # A list: a generator would be used up when the button is first pressed.
        uris = key_list(key)  # type: ignore[arg-type]
        for uri in uris:
            parse_key(uri)
        key = key if isinstance(key, str) else uris
        named = f"key={key!r}"
    # The button is pressed in another thread, perhaps after a block of kmsdata.using() has ended.
    context = contextvars.copy_context()

    labels = frame.columns

    def call(columns: list[str], deterministic: list[str]) -> tuple[pd.DataFrame, list[str]]:
        # After a renaming in place, a label may be that of another column than the one that was chosen.
        if not frame.columns.equals(labels):
            raise KmsDataError(_CHANGED)
        if key is None and session_key() is None:
            raise KmsDataError(_NO_KEY)
        result = encrypt(columns, deterministic=deterministic, key=key, progress=False)
        headers = encrypted_column(result, [*columns, *deterministic][0]).headers
        wraps = [wrap for header in headers for record in header.records for wrap in record.wraps]
        return result, [wrap.key for wrap in wraps]

    picker = ColumnPicker(
        profile_frame(frame),
        lambda columns, deterministic: context.copy().run(call, columns, deterministic),
        frame=variable_name(frame) or "df",
        key=named,
        hint=_hint(named),
    )
    picker.display()
    return picker


def _hint(named: str) -> str:
    """Return what to say of the key before anything is encrypted."""
    if named == "key=key":
        return "key is what was passed to pick() as key=."
    if named:
        return ""
    try:
        key = session_key()
    except FormatError as error:  # KMSDATA_KEY is malformed
        return str(error)
    return _NO_KEY if key is None else f"The session's key is {key}."
