"""The key of a column as a Tink keyset, for readers without kmsdata and without KMS."""

from __future__ import annotations

import json
from collections.abc import Iterable

from kmsdata.display.panel import Panel, shows_panel
from kmsdata.display.tables import Call, Fact
from kmsdata.keys.data_key import CellKey, Secret
from kmsdata.keys.envelope import base64_text

__all__ = ["Keyset"]


@shows_panel
class Keyset(Secret):
    """A Tink keyset that reads (and writes) the cells of one column; see `kmsdata.export_keyset`.

    Its JSON gives permanent access to the column, even if the KMS later denies access to the master key.
    """

    __slots__ = ("_keys",)

    def __init__(self, keys: Iterable[tuple[str, CellKey]]) -> None:
        self._keys = tuple(keys)

    def __repr__(self) -> str:
        return f"<Keyset of {len(self._keys)} {self._keys[0][0]} key{'' if len(self._keys) == 1 else 's'}>"

    def _panel(self) -> Panel:
        ids = [str(int.from_bytes(cell_key.prefix[1:], "big")) for _, cell_key in self._keys]
        return Panel(
            "Tink keyset of one column",
            [
                Fact("algorithm", self._keys[0][0]),
                Fact(
                    "key ids", f"{', '.join(ids)}" + (" (the first is the primary)" if len(ids) > 1 else "")
                ),
            ],
            calls=[Call("keyset.json()", "return the secret: store it like a password")],
            notes=["It gives permanent access to the column, even if KMS later denies the master key."],
        )

    def json(self) -> str:
        """Return the secret: a cleartext Tink keyset in JSON, with the first key as its primary.

        Example:
            >>> import json
            >>> keyset = Keyset([("AES-256-GCM", CellKey(bytes(36)))])
            >>> json.loads(keyset.json())["key"][0]["keyData"]["typeUrl"]
            'type.googleapis.com/google.crypto.tink.AesGcmKey'
        """
        entries = []
        for algorithm, cell_key in self._keys:
            # Protocol buffers: key_value is field 3 of AesGcmKey, field 2 of AesSivKey; both of wire type 2.
            name, tag = ("AesGcmKey", 0x1A) if algorithm == "AES-256-GCM" else ("AesSivKey", 0x12)
            entries.append(
                {
                    "keyData": {
                        "typeUrl": f"type.googleapis.com/google.crypto.tink.{name}",
                        "value": base64_text(bytes([tag, len(cell_key.key)]) + cell_key.key),
                        "keyMaterialType": "SYMMETRIC",
                    },
                    "status": "ENABLED",
                    "keyId": int.from_bytes(cell_key.prefix[1:], "big"),
                    "outputPrefixType": "TINK",
                }
            )
        return json.dumps({"primaryKeyId": entries[0]["keyId"], "key": entries})
