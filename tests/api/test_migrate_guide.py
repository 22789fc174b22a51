"""Migration of columns that were encrypted as in the vendor's guide."""

import base64

import pandas as pd
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

import kmsdata
from kmsdata.errors import FormatError, KeyServiceError


class Guide:
    """The key service that wrapped the guide's key."""

    scheme = "guide"

    def __init__(self, secret):
        self.secret = secret

    def generate_data_key(self, key, context):
        raise NotImplementedError

    wrap = generate_data_key

    def unwrap(self, wrapped, key, context):
        assert (wrapped, key, context) == ("w", "guide://k", {})
        return self.secret


def written(secret, text):
    """Encrypt a value like the guide: zeros up to a whole block, AES-ECB, base64."""
    raw = text.encode() if isinstance(text, str) else text
    raw += bytes(-len(raw) % 16)
    encryptor = Cipher(algorithms.AES(secret), modes.ECB()).encryptor()  # noqa: S305
    return base64.b64encode(encryptor.update(raw) + encryptor.finalize()).decode()


VALUES = ["Kelly, Mr. James", "王芳", "x" * 31, None, ""]
WARNING = pytest.warns(UserWarning, match="no integrity")


@pytest.mark.parametrize("size", [16, 32])
def test_plain(size):
    secret = bytes(range(size))
    old = pd.Series([None if v is None else written(secret, v) for v in VALUES], list("abcde"), name="n")
    kmsdata.use(Guide(secret))
    with WARNING as warned:
        new = kmsdata.migrate_guide_column(old, "w", key="guide://k")
    assert "Zero bytes at the end" in str(warned[0].message)
    assert warned[0].filename == __file__
    pd.testing.assert_series_equal(new, pd.Series(VALUES, list("abcde"), dtype="str", name="n"))
    assert [v for v in new if isinstance(v, str)] == [v for v in VALUES if v is not None]


def test_encrypted_afresh():
    secret = bytes(32)
    old = pd.Series([written(secret, "a"), written(secret, "a")], name="n")
    kmsdata.use(Guide(secret))
    with WARNING:
        new = kmsdata.migrate_guide_column(old, "w", key="guide://k", encrypt="local://demo")
    assert new.dtype.name.startswith("encrypted[")
    assert new.astype(str).nunique() == 2  # equal values no longer have equal cells
    assert new.kms.decrypt().tolist() == ["a", "a"]


def test_bytes_and_what_is_lost():
    secret = bytes(32)
    kmsdata.use(Guide(secret))
    old = pd.Series([written(secret, b"\xff\x00\x01"), written(secret, b"ab\x00\x00")])
    with WARNING:
        new = kmsdata.migrate_guide_column(old, "w", key="guide://k", text=False)
    assert new.tolist() == [b"\xff\x00\x01", b"ab"]


def test_what_is_not_of_the_guide():
    secret = bytes(32)
    kmsdata.use(Guide(secret))
    good = written(secret, "good")
    with pytest.raises(FormatError, match=r"'n': 2 cells \(rows 1, 3\) are not base64") as caught:
        kmsdata.migrate_guide_column(pd.Series([good, good[:-4], None, 7], name="n"), "w", key="guide://k")
    assert caught.value.rows == (1, 3)
    kmsdata.use(Guide(bytes(31) + b"\x01"))  # another key: ECB does not detect it, the UTF-8 check does
    with WARNING, pytest.raises(FormatError, match="wrong key") as caught:
        kmsdata.migrate_guide_column(pd.Series([good], name="n"), "w", key="guide://k")
    assert good not in str(caught.value)
    kmsdata.use(Guide(bytes(24)))
    with WARNING, pytest.raises(KeyServiceError, match="not a key of AES_128 or AES_256"):
        kmsdata.migrate_guide_column(pd.Series([good], name="n"), "w", key="guide://k")
    with pytest.raises(ValueError, match="no key"):
        kmsdata.migrate_guide_column(pd.Series([good], name="n"), "w")
    with pytest.raises(TypeError, match="needs a name"):
        kmsdata.migrate_guide_column(pd.Series([good]), "w", key="guide://k", encrypt="local://demo")
