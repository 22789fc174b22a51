"""Key URIs name master keys, such as ``local://demo``."""

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
    """Split a key URI into its parts.

    Args:
        uri: such as ``local://demo`` or ``tencent-kms://ap-guangzhou/<KeyId>``; for the scheme of a custom
            provider, one to four names separated by ``/``.

    Returns:
        Scheme, place (a region, or empty) and name.

    Raises:
        FormatError: it is not a key URI.

    Example:
        >>> parse_key("tencent-kms://ap-guangzhou/my-key").place
        'ap-guangzhou'
    """
    scheme, mark, rest = uri.partition("://") if isinstance(uri, str) else ("", "", "")
    if not mark or not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) or len(scheme) > 64:
        raise FormatError(
            "not a key URI. Pass a URI such as 'local://demo' or 'tencent-kms://ap-guangzhou/<KeyId>'",
            field="key",
        )
    if not _KEYS.get(scheme, _OTHER_KEY).fullmatch(rest):
        shape = {"local": "local://<name>", "tencent-kms": "tencent-kms://<region>/<KeyId>"}.get(
            scheme, f"{scheme}://<name>"
        )
        raise FormatError(
            f"not a {scheme} key URI. It must be {shape}; a name is 1 to 64 characters: A-Z, a-z, 0-9, '_.-'",
            field="key",
        )
    place, _, name = rest.rpartition("/")
    return KeyURI(scheme, place, name)
