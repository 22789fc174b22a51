"""Key URIs: the names of master keys, such as ``local://demo``."""

from __future__ import annotations

import re
from typing import NamedTuple

from kmsdata.errors import FormatError

__all__ = ["KeyURI", "parse_key"]

_NAME = r"[A-Za-z0-9_.-]{1,64}"
_REGION = r"[a-z]+(?:-[a-z0-9]+)+"
_KEYS = {"local": re.compile(_NAME), "tencent-kms": re.compile(f"{_REGION}/{_NAME}")}
_OTHER_KEY = re.compile(f"{_NAME}(?:/{_NAME}){{0,3}}")


class KeyURI(NamedTuple):
    """A master key's name: ``local://demo`` is scheme ``local``, place ``""`` and name ``demo``."""

    scheme: str
    place: str
    name: str


def parse_key(uri: str) -> KeyURI:
    """The parts of a key URI.

    Args:
        uri: such as ``local://demo`` or ``tencent-kms://ap-guangzhou/<KeyId>``; of another scheme
            (a provider of your own), one to four names with ``/`` between them.

    Returns:
        Scheme, place (a region, or empty) and name.

    Raises:
        FormatError: it is not such a URI.

    Example:
        >>> parse_key("tencent-kms://ap-guangzhou/my-key").place
        'ap-guangzhou'
    """
    scheme, mark, rest = uri.partition("://") if isinstance(uri, str) else ("", "", "")
    if not mark or not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) or len(scheme) > 64:
        raise FormatError(
            "a key is named by a URI such as 'local://demo' or 'tencent-kms://ap-guangzhou/<KeyId>'",
            field="key",
        )
    if not _KEYS.get(scheme, _OTHER_KEY).fullmatch(rest):
        shape = {"local": "local://<name>", "tencent-kms": "tencent-kms://<region>/<KeyId>"}.get(
            scheme, f"{scheme}://<name>"
        )
        raise FormatError(
            f"a {scheme} key is named {shape}, where a name is 1 to 64 letters, digits or '_.-'",
            field="key",
        )
    place, _, name = rest.rpartition("/")
    return KeyURI(scheme, place, name)
