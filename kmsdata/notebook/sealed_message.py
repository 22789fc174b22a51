"""Receive what is typed into the login form: one message, encrypted in the browser for this form.

The browser encrypts with HPKE (RFC 9180, base mode: DHKEM(P-256, HKDF-SHA256), HKDF-SHA256, AES-256-GCM); see
``browser/sealed_message.js``.
"""

from __future__ import annotations

import base64
import json

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kmsdata.keys.data_key import Hidden, Secret, random_bytes

__all__ = ["INFO", "SECRETS", "Recipient", "Typed"]

INFO = "kmsdata login form, version 1"
"""The ``info`` of HPKE: it separates this use of the key pair from any other."""

SECRETS = ("secret_id", "secret_key", "token", "passphrase", "repeated")
_TEXTS = ("service", "region", "endpoint", "key")
_MOST = 32_768  # bytes of a message; a session token has up to 4,096 characters
_SUITE = hpke.Suite(hpke.KEM.P256, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256, SP 800-186, 3.2.1.3
_INVISIBLE = "\u200b\u2060\ufeff"  # zero-width characters from web pages, which str.strip() keeps


class Typed(Secret):
    """The secrets that were typed into one form, by the name of their field.

    They are kept until the form is connected, so that after a refusal only the wrong one must be typed again.
    """

    __slots__ = ("_hidden",)

    def __init__(self) -> None:
        self._hidden: dict[str, Hidden] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._hidden

    def text(self, name: str) -> str:
        """Return a secret; "" if it was not typed."""
        return self._hidden[name].reveal().decode() if name in self._hidden else ""

    def plausible(self, name: str) -> bool:
        """Return whether a secret has only characters that a credential can have."""
        return self.text(name).isascii() and self.text(name).isprintable()

    def mask(self, name: str) -> str:
        """Return the first and last four characters of a SecretId; "" of a text that is none."""
        text = self.text(name)  # a SecretKey in the wrong field shows nothing
        return f"{text[:4]}…{text[-4:]}" if len(text) > 16 and text.startswith("AKID") else ""

    def put(self, name: str, secret: Hidden) -> None:
        """Replace a secret, without the blanks around it; blanks alone remove it."""
        stripped = secret.reveal().decode().strip().strip(_INVISIBLE).strip()
        if not stripped:
            self._hidden.pop(name, None)
        elif name in ("passphrase", "repeated"):  # blanks are part of them
            self._hidden[name] = secret
        else:
            self._hidden[name] = Hidden(stripped.encode())

    def clear(self, *names: str) -> None:
        """Forget secrets; without a name, all of them."""
        for name in names or SECRETS:
            self._hidden.pop(name, None)


class Recipient(Secret):
    """A key pair made for one form.

    Attributes:
        public_key: 65 bytes, uncompressed, as base64 text.
    """

    __slots__ = ("_private", "public_key")

    def __init__(self) -> None:
        # FIPS 186-5, A.2.1: 64 bits more than the order has make the remainder uniform.
        number = int.from_bytes(random_bytes(40)) % (_ORDER - 1) + 1
        self._private = ec.derive_private_key(number, ec.SECP256R1())
        public = self._private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        self.public_key = base64.b64encode(public).decode()

    def receive(self, message: bytes, typed: Typed, *, sealed: bool) -> dict[str, str]:
        """Put the secrets of a message into ``typed``; return the other fields.

        Args:
            message: the fields as JSON; if sealed, encrypted for this key pair.
            typed: receives the secrets; only those in the message are replaced.
            sealed: False: the page was no secure context, so the browser could not encrypt.

        Raises:
            ValueError: the message is damaged, too long, or not for this form.
        """
        held, message = Hidden(message), b""  # no frame of the error shows what a page of plain http sent
        fields = self._fields(held, sealed=sealed)
        if fields is None:  # raised here, so that no frame of the error contains the message's text
            raise ValueError("what was typed arrived damaged. Reload the page, and run the cell again")
        for name in SECRETS:
            if name in fields:
                typed.put(name, fields[name])
        return {name: fields[name].reveal().decode().strip() for name in _TEXTS if name in fields}

    def _fields(self, held: Hidden, *, sealed: bool) -> dict[str, Hidden] | None:
        message = held.reveal()
        if len(message) > _MOST:
            return None
        try:
            text = _SUITE.decrypt(message, self._private, info=INFO.encode()) if sealed else message
            fields = json.loads(text)
            if not isinstance(fields, dict) or not all(isinstance(part, str) for part in fields.values()):
                return None
            return {name: Hidden(part.encode()) for name, part in fields.items()}
        except (InvalidTag, ValueError, RecursionError):  # no frame of it is kept
            return None
