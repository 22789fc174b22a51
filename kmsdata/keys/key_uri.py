"""Key URIs name master keys, such as ``local://demo``."""

from __future__ import annotations

import re
from typing import NamedTuple

from kmsdata.errors import FormatError

__all__ = ["KeyURI", "parse_key", "short_name"]

_NAME = r"[A-Za-z0-9_.-]{1,64}"
_REGION = r"[a-z]+(?:-[a-z0-9]+)+"
_KEYS = {"local": re.compile(_NAME), "tencent-kms": re.compile(f"{_REGION}/{_NAME}")}
_OTHER_KEY = re.compile(f"{_NAME}(?:/{_NAME}){{0,3}}")


# A longer text may be a secret that was passed by mistake, so messages do not show it.
_SHORT = r"[A-Za-z0-9_.-]{1,24}"


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
        raise FormatError(_not_a_uri(uri), field="key")
    place, slash, _ = rest.rpartition("/")
    if (
        scheme == "tencent-kms"
        and re.fullmatch(f"{_SHORT}(?:/{_NAME})?", rest)
        and not _KEYS[scheme].fullmatch(rest)
    ):
        what = (
            f"{place!r} is no region, such as ap-guangzhou" if slash else f"{rest!r} needs a region before it"
        )
        raise FormatError(
            f"not a tencent-kms key URI: {what}. It must be tencent-kms://<region>/<KeyId or alias>, such as "
            f"tencent-kms://ap-guangzhou/{rest.rpartition('/')[2]}",
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


def short_name(text: str) -> bool:
    """Return whether a text is a key's name that is too short to be a secret that was passed by mistake."""
    return re.fullmatch(_SHORT, text) is not None


def _not_a_uri(text: object) -> str:
    """Return what is wrong with a text that is not a key URI, and what may be meant."""
    message = "not a key URI. Pass a URI such as 'local://demo' or 'tencent-kms://ap-guangzhou/<KeyId>'"
    if not isinstance(text, str):
        return message
    if short_name(text):
        return f"{text!r} is {message}. Did you mean 'local://{text}'?"
    if found := re.fullmatch(rf"(local|tencent-kms):/?(?:({_REGION})/)?({_SHORT})", text):
        scheme, region, name = found.groups()
        meant = f"local://{name}" if scheme == "local" else f"{scheme}://{region or 'ap-guangzhou'}/{name}"
        return f"{text!r} is {message}. Did you mean {meant!r}?"
    return message
