"""Column-level encryption for pandas, Arrow and Parquet, with envelope encryption by a key service.

Importing it registers ``df.kms`` and ``series.kms`` with pandas, and the type ``kmsdata.encrypted`` with
Arrow.
"""

from importlib.metadata import version

import pyarrow as pa

from kmsdata.accessor import FrameAccessor, SeriesAccessor
from kmsdata.api import data_key, export_keyset, new_data_key
from kmsdata.cache import KeyCache
from kmsdata.calls import Usage, usage
from kmsdata.dtype import Cell, EncryptedArray, EncryptedDtype, EncryptedType
from kmsdata.errors import (
    CredentialsError,
    FormatError,
    KeyAccessError,
    KeyNotFoundError,
    KeyServiceError,
    KmsDataError,
    TamperedError,
    UnsupportedTypeError,
    WrongKeyError,
)
from kmsdata.inspection import inspect
from kmsdata.keys import DataKey, KeyProvider, Keyset
from kmsdata.migrate import migrate_guide_column
from kmsdata.parquet import read_parquet
from kmsdata.providers.local import LocalKeystore
from kmsdata.providers.tencent import TencentKMS
from kmsdata.report import Inspection, RewrapReport, StreamReport, Verification
from kmsdata.rewrapping import rewrap
from kmsdata.session import use
from kmsdata.sign_in import login
from kmsdata.stream import decrypt_parquet, encrypt_parquet
from kmsdata.table import decrypt_table, encrypt_table
from kmsdata.verification import verify

__all__ = [
    "Cell",
    "CredentialsError",
    "DataKey",
    "EncryptedArray",
    "EncryptedDtype",
    "EncryptedType",
    "FormatError",
    "FrameAccessor",
    "Inspection",
    "KeyAccessError",
    "KeyCache",
    "KeyNotFoundError",
    "KeyProvider",
    "KeyServiceError",
    "Keyset",
    "KmsDataError",
    "LocalKeystore",
    "RewrapReport",
    "SeriesAccessor",
    "StreamReport",
    "TamperedError",
    "TencentKMS",
    "UnsupportedTypeError",
    "Usage",
    "Verification",
    "WrongKeyError",
    "data_key",
    "decrypt_parquet",
    "decrypt_table",
    "encrypt_parquet",
    "encrypt_table",
    "export_keyset",
    "inspect",
    "login",
    "migrate_guide_column",
    "new_data_key",
    "read_parquet",
    "rewrap",
    "usage",
    "use",
    "verify",
]

__version__ = version("kmsdata")

try:
    pa.register_extension_type(EncryptedType(pa.binary(), EncryptedDtype("")))
except pa.ArrowKeyError:  # the module was reloaded: Arrow still holds the old class
    pa.unregister_extension_type("kmsdata.encrypted")
    pa.register_extension_type(EncryptedType(pa.binary(), EncryptedDtype("")))
