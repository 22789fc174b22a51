"""Column-level encryption for pandas, Arrow and Parquet, with envelope encryption by a KMS.

The import registers ``df.kms`` and ``series.kms`` with pandas, and the type ``kmsdata.encrypted`` with
Arrow.
"""

from importlib.metadata import version

import pyarrow as pa

from kmsdata.api.accessor import FrameAccessor, SeriesAccessor
from kmsdata.api.attach import attach
from kmsdata.api.inspection import inspect
from kmsdata.api.key_sharing import data_key, export_keyset, new_data_key
from kmsdata.api.migrate_guide import migrate_guide_column
from kmsdata.api.rewrap import rewrap
from kmsdata.api.verify import verify
from kmsdata.display.file_reports import RewrapReport, StreamReport
from kmsdata.display.inspection import Inspection
from kmsdata.display.verification import Verification
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
from kmsdata.frames.arrow.table import decrypt_table, encrypt_table
from kmsdata.frames.cell import Cell
from kmsdata.frames.dtype import EncryptedArray, EncryptedDtype, EncryptedType
from kmsdata.keys.cache import KeyCache
from kmsdata.keys.data_key import DataKey, KeyProvider
from kmsdata.keys.envelope import Wrap
from kmsdata.keys.local.keystore import LocalKeystore
from kmsdata.keys.session import use, using
from kmsdata.keys.tencent.client import TencentKMS
from kmsdata.keys.tink_keyset import Keyset
from kmsdata.keys.usage import Usage, usage
from kmsdata.notebook.login import login
from kmsdata.parquet.bulk.decrypt import decrypt_parquet
from kmsdata.parquet.bulk.encrypt import encrypt_parquet
from kmsdata.parquet.read import read_parquet

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
    "Wrap",
    "WrongKeyError",
    "attach",
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
    "using",
    "verify",
]

__version__ = version("kmsdata")

for _name in __all__:
    if isinstance(_public := globals()[_name], type):
        _public.__module__ = "kmsdata"  # pickles and tracebacks name the public module, which stays the same


def __dir__() -> list[str]:
    return list(__all__)


def load_ipython_extension(_: object) -> None:
    """Answer ``%load_ext kmsdata``, which is not needed."""
    print(
        "kmsdata needs no extension: 'import kmsdata' adds df.kms. Next: kmsdata.login(), or key='local://demo'"
    )


try:
    pa.register_extension_type(EncryptedType(pa.binary(), EncryptedDtype("")))
except pa.ArrowKeyError:  # the module was reloaded: Arrow's registry still has the old class
    pa.unregister_extension_type("kmsdata.encrypted")
    pa.register_extension_type(EncryptedType(pa.binary(), EncryptedDtype("")))
