"""Master keys in Tencent Cloud KMS, used through the official SDK. The master keys never leave KMS."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Generator, Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn, Self

from kmsdata.display.panel import KeyList
from kmsdata.errors import (
    CallerTypeError,
    CallerValueError,
    KeyAccessError,
    KeyNotFoundError,
    KeyServiceError,
)
from kmsdata.keys.data_key import DataKey, Hidden
from kmsdata.keys.envelope import Wrap, base64_bytes, base64_text, canonical
from kmsdata.keys.fork_lock import Lock
from kmsdata.keys.key_uri import parse_key
from kmsdata.keys.tencent.credentials import Credentials, Given, held
from kmsdata.keys.tencent.transport import Answer, Endpoint, Request, Service, require_sdk, shown

__all__ = ["TencentKMS"]

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_REGION = re.compile(r"[a-z]+(-[a-z0-9]+)+")
_MOST_CONTEXT = 1024  # characters; the limit of KMS
_ALIAS_SECONDS = 300  # how long the KeyId of an alias is cached
_PAGE = 200
_MOST_KEYS = 20_000  # so that a list without end takes a bounded time and memory


class TencentKMS:
    """A key provider: master keys (CMKs) of one region of Tencent Cloud KMS.

    Args:
        region: such as ``"ap-guangzhou"``; its keys are ``tencent-kms://ap-guangzhou/<KeyId or alias>``.
        credential: ``(SecretId, SecretKey)``, with a third item, the token, if they are temporary; or a
            credential object of the official SDK. None: from the environment, the profile file, the
            instance's role or TKE, in this order (`kmsdata.keys.tencent.credentials`), and renewed before
            they expire.
        endpoint: a host, such as ``"kms.ap-guangzhou.tencentcloudapi.com"`` (regional),
            ``"kms.intl.tencentcloudapi.com"`` (international) or ``"kms.internal.tencentcloudapi.com"``
            (inside a VPC), or a URL such as ``"http://127.0.0.1:8080"`` (an emulator). None:
            ``KMSDATA_TENCENT_ENDPOINT``, otherwise ``"kms.tencentcloudapi.com"``.
        timeout: seconds for one KMS call with all its retries; also for the call that gets the credentials
            of a role, if one is needed.
        retries: how often a KMS call is repeated after a temporary error (throttling, network, KMS itself),
            with full jitter.

    ``HTTPS_PROXY``, ``NO_PROXY`` and ``SSL_CERT_FILE`` (a private CA) are respected. It may be shared by
    threads, and used after a fork.

    Raises:
        ValueError: the region is missing, or the endpoint is invalid.
        TypeError: ``credential`` is not a credential.
        ImportError: the SDK is not installed (at the first call); the message names the line for pip.

    Example:
        >>> import kmsdata
        >>> kms = kmsdata.TencentKMS("ap-guangzhou", endpoint="kms.ap-guangzhou.tencentcloudapi.com")
        >>> kms
        <TencentKMS ap-guangzhou at https://kms.ap-guangzhou.tencentcloudapi.com>
    """

    scheme = "tencent-kms"

    def __init__(
        self,
        region: str,
        *,
        credential: Given | None = None,
        endpoint: str | None = None,
        timeout: float = 15.0,
        retries: int = 3,
    ) -> None:
        # From here on, no frame of an error shows the SecretKey.
        given, credential = held(credential), None
        if given is False:
            raise CallerTypeError(
                "credential= takes (SecretId, SecretKey), (SecretId, SecretKey, token), or a credential of "
                "the official SDK"
            )
        if not isinstance(region, str) or not _REGION.fullmatch(region):
            raise CallerValueError("region= must be the name of a region, such as 'ap-guangzhou'")
        if not timeout > 0 or retries < 0:
            raise CallerValueError("timeout= must be more than 0 seconds, and retries= 0 or more")
        self.region = region
        where = Endpoint.parse(
            endpoint or os.environ.get("KMSDATA_TENCENT_ENDPOINT") or "kms.tencentcloudapi.com"
        )
        self._credentials = Credentials(given, region=region, endpoint=where, timeout=timeout)
        self._service = Service(
            "kms", "2019-01-18", region, where, self._credentials, timeout=timeout, retries=retries
        )
        self._aliases: dict[str, tuple[str, float]] = {}
        self._lock = Lock()

    def __repr__(self) -> str:
        if not hasattr(self, "_service"):  # in the frames of an error of __init__
            return "<TencentKMS>"
        return f"<TencentKMS {self.region} at {self.endpoint}>"

    def __reduce__(self) -> NoReturn:
        raise CallerTypeError(
            "a TencentKMS cannot be pickled: it has credentials. Create one in the other process, from its "
            "own environment, profile or role"
        )

    def __await__(self) -> Generator[None, None, Self]:
        """Return at once, so that ``await kmsdata.login()`` also works if no login form was needed."""
        return self
        yield  # never reached: it makes this a generator, which await requires

    @property
    def endpoint(self) -> str:
        """The URL that KMS calls are sent to."""
        return str(self._service.endpoint)

    @property
    def account(self) -> str:
        """The credentials in use, for display: the masked SecretId, and where it was found.

        Raises:
            CredentialsError: no credentials were found.
        """
        return f"{self._credentials.masked} ({self._credentials.source})"

    @property
    def identity(self) -> bytes:
        """Identifies the credential: caches keep unwrapped keys separately for each."""
        return self._credentials.identity

    @property
    def _account_so_far(self) -> str | None:
        """The credentials in use, for display; None if none were looked for so far. Never looks for them."""
        source = self._credentials.source
        return None if source is None else f"{self._credentials.masked_so_far} ({source})"

    # The three calls of a KeyProvider.

    def generate_data_key(self, key: str, context: Mapping[str, str]) -> DataKey:
        """Generate a data key with ``GenerateDataKey`` (AES_256).

        Args:
            key: ``tencent-kms://region/<KeyId or alias>``; the wrapped key records the KeyId.
            context: the encryption context; at most 1,024 characters as JSON.

        Raises:
            KeyServiceError: KMS refused or did not answer; its subclasses are more specific.
        """
        uri, key_id = self._key(key, "generate_data_key")
        request = Request(
            "GenerateDataKey",
            KeyId=key_id,
            KeySpec="AES_256",
            EncryptionContext=self._context(context, key, "generate_data_key"),
        )
        answer = self._service.call(request, operation="generate_data_key", key=uri)
        wrapped = self._wrapped(answer, uri, key_id, "generate_data_key")
        data_key = _data_key(answer, Wrap(uri, wrapped), context)
        if data_key is None:
            self._invalid(answer, uri, "generate_data_key", "a data key that does not have 32 bytes")
        return data_key

    def unwrap(self, wrapped: str, key: str, context: Mapping[str, str]) -> bytes:
        """Unwrap a data key with ``Decrypt``.

        Raises:
            KeyAccessError: KMS refused, or used another master key than the one in the URI.
            KeyServiceError: KMS did not answer, or the answer contains no data key.
        """
        uri, key_id = self._key(key, "unwrap")
        request = Request(
            "Decrypt", CiphertextBlob=wrapped, EncryptionContext=self._context(context, key, "unwrap")
        )
        answer = self._service.call(request, operation="unwrap", key=uri)
        self._same_key(answer, uri, key_id, "unwrap")
        secret = _plaintext(answer, (16, 32))
        if secret is None:
            self._invalid(answer, uri, "unwrap", "something other than a data key")
        return secret

    def wrap(self, data_key: bytes, key: str, context: Mapping[str, str]) -> str:
        """Wrap a data key under a master key with ``Encrypt``."""
        secret = Hidden(data_key)
        del data_key  # so that no frame of an error shows it
        uri, key_id = self._key(key, "wrap")
        request = _encrypt(secret, key_id, self._context(context, key, "wrap"))
        answer = self._service.call(request, operation="wrap", key=uri)
        return self._wrapped(answer, uri, key_id, "wrap")

    def resolve(self, key: str) -> str:
        """Replace an alias in a URI by its KeyId (``ListKeyDetail``, cached for five minutes).

        Raises:
            KeyNotFoundError: this region and account have no key with that alias.
        """
        return self._key(key, "resolve")[0]

    # The operations of `kmsdata keys`.

    def create_key(self, alias: str) -> str:
        """Create a master key (``CreateKey``, for encryption, in the HSM of the region).

        Args:
            alias: 1 to 60 characters: A-Z, a-z, 0-9, ``_`` or ``-``.

        Returns:
            The URI of the key, with its KeyId.
        """
        request = Request("CreateKey", Alias=alias, KeyUsage="ENCRYPT_DECRYPT")
        # Not repeated: if the first request did create the key, the second would fail: the alias is taken.
        answer = self._service.call(request, operation="create_key", repeatable=False)
        key_id = answer.text("KeyId")
        if key_id is None or not _ID.fullmatch(key_id):
            self._invalid(answer, None, "create_key", "no KeyId")
        return f"tencent-kms://{self.region}/{key_id}"

    def count_keys(self) -> int | None:
        """Count the keys of the region (``ListKeys``): a call without side effects, to test credentials.

        Returns:
            The number; None if the credentials are valid but may not list keys.

        Raises:
            KeyServiceError: the credentials were refused, or KMS did not answer.
        """
        try:
            answer = self._service.call(Request("ListKeys", Limit=1), operation="list_keys")
        except KeyAccessError:
            return None
        total = answer.fields.get("TotalCount")
        return total if type(total) is int else None

    def list_keys(self) -> list[dict[str, str]]:
        """List the keys of the region: ``key`` (URI), ``alias``, ``state``, ``created`` and ``rotation``."""
        return KeyList(map(self._about, self._details("")), f"{self.region} at {self.endpoint}")

    def describe_key(self, key: str) -> dict[str, str]:
        """Describe one key, by KeyId or alias, as `list_keys` does."""
        uri, key_id = self._key(key, "describe_key")
        answer = self._service.call(Request("DescribeKey", KeyId=key_id), operation="describe_key", key=uri)
        about = answer.fields.get("KeyMetadata")
        if not isinstance(about, dict) or about.get("KeyId") != key_id:
            self._invalid(answer, uri, "describe_key", "no description, or that of another key")
        return self._about(about)

    def enable_key(self, key: str) -> None:
        """Enable a disabled key."""
        self._manage("EnableKey", key)

    def disable_key(self, key: str) -> None:
        """Disable a key: until it is enabled again, data keys that it wrapped cannot be unwrapped."""
        self._manage("DisableKey", key)

    def rotate_key(self, key: str) -> None:
        """Give a key new material now (once in 24 hours). Older wrapped keys can still be unwrapped."""
        self._manage("RotateKey", key, repeatable=False)

    def enable_rotation(self, key: str, days: int = 365) -> None:
        """Rotate a key automatically, every 7 to 365 days."""
        if not 7 <= days <= 365:
            raise CallerValueError("the days between rotations must be 7 to 365")
        self._manage("EnableKeyRotation", key, RotateDays=days)

    def disable_rotation(self, key: str) -> None:
        """Stop rotating a key automatically."""
        self._manage("DisableKeyRotation", key)

    # Private helpers.

    def _manage(self, action: str, key: str, *, repeatable: bool = True, **parameters: object) -> None:
        uri, key_id = self._key(key, action)
        request = Request(action, KeyId=key_id, **parameters)
        self._service.call(request, operation=action, key=uri, repeatable=repeatable)

    def _key(self, key: str, operation: str) -> tuple[str, str]:
        """Return the URI with the KeyId, and the KeyId."""
        require_sdk()  # before any other step, so that nothing is created or asked for in vain
        uri = parse_key(key)
        if uri.scheme != self.scheme or uri.place != self.region:
            raise KeyNotFoundError(
                f"{key} is not a key of {self!r}: each key belongs to one region. Pass a TencentKMS of that "
                "region to kmsdata.use(), or use a key of this region",
                provider=self.scheme,
                operation=operation,
                code="OtherRegion",
                key=key,
            )
        key_id = uri.name if _ID.fullmatch(uri.name) else self._by_alias(uri.name, key, operation)
        return f"{self.scheme}://{self.region}/{key_id}", key_id

    def _by_alias(self, alias: str, key: str, operation: str) -> str:
        with self._lock:
            known = self._aliases.get(alias)
        if known is not None and time.monotonic() < known[1]:
            return known[0]
        try:
            details = self._details(alias)
        except KeyAccessError as error:
            raise KeyAccessError(
                f"{key}: the KeyId of this alias cannot be found: {error}; or name the KeyId: "
                f"{self.scheme}://{self.region}/<KeyId>",
                provider=self.scheme,
                operation=operation,
                code=error.code,
                request_id=error.request_id,
                key=key,
            ) from None
        found = [item["KeyId"] for item in details if item.get("Alias") == alias]
        if len(found) != 1:
            raise KeyNotFoundError(
                f"{key}: this account has no key with that alias in {self.region}. 'kmsdata keys list "
                f"{self.region}' shows its keys, 'kmsdata keys create {key}' creates one",
                provider=self.scheme,
                operation=operation,
                code="AliasNotFound",
                key=key,
            )
        with self._lock:
            self._aliases[alias] = found[0], time.monotonic() + _ALIAS_SECONDS
        return str(found[0])

    def _details(self, search: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while len(found) <= _MOST_KEYS:
            request = Request(
                "ListKeyDetail", Offset=len(found), Limit=_PAGE, OrderType=1, SearchKeyAlias=search or None
            )
            answer = self._service.call(request, operation="list_keys")
            page, total = answer.fields.get("KeyMetadatas"), answer.fields.get("TotalCount")
            good = isinstance(page, list) and type(total) is int and all(map(_is_key, page))
            if not good or not isinstance(page, list) or len(page) > _PAGE:
                self._invalid(answer, None, "list_keys", "no valid list of keys")
            found += page
            if not page or len(found) >= (total or 0):
                break
        else:
            self._invalid(answer, None, "list_keys", f"more than {_MOST_KEYS:,} keys")
        return found

    def _about(self, item: Mapping[str, Any]) -> dict[str, str]:
        days = item.get("RotateDays")
        every = days if type(days) is int and 0 < days <= 3650 else 365
        return {
            "key": f"{self.scheme}://{self.region}/{item['KeyId']}",
            "alias": shown(item.get("Alias")),
            "state": shown(item.get("KeyState")),
            "created": _time(item.get("CreateTime")),
            "rotation": f"every {every} days" if item.get("KeyRotationEnabled") is True else "off",
        }

    def _context(self, context: Mapping[str, str], key: str, operation: str) -> str | None:
        if not context:
            return None
        text = canonical(dict(context))
        if len(text) > _MOST_CONTEXT:
            raise KeyServiceError(
                f"{key}: the context has {len(text)} characters as JSON, but KMS accepts {_MOST_CONTEXT}. "
                "Shorten it",
                provider=self.scheme,
                operation=operation,
                code="ContextTooLong",
            )
        return text

    def _wrapped(self, answer: Answer, uri: str, key_id: str, operation: str) -> str:
        self._same_key(answer, uri, key_id, operation)
        wrapped = answer.text("CiphertextBlob")
        if wrapped is None or not wrapped.isascii() or not wrapped.isprintable():
            self._invalid(answer, uri, operation, "no wrapped key")
        return wrapped

    def _same_key(self, answer: Answer, uri: str, key_id: str, operation: str) -> None:
        answered = answer.text("KeyId")
        if answered == key_id:
            return
        if answered is None or not _ID.fullmatch(answered):
            self._invalid(answer, uri, operation, "no KeyId")
        raise KeyAccessError(
            f"{uri}: KMS used another key, {answered}, so its answer was rejected: the header was changed, "
            "or names the wrong key",
            provider=self.scheme,
            operation=operation,
            code="OtherKey",
            request_id=answer.request_id,
            key=uri,
        )

    def _invalid(self, answer: Answer, uri: str | None, operation: str, what: str) -> NoReturn:
        raise KeyServiceError(
            f"{uri or self!r}: the answer contained {what}, so it was not used. Check the endpoint and "
            "proxies",
            provider=self.scheme,
            operation=operation,
            code="InvalidAnswer",
            request_id=answer.request_id,
        )


def _is_key(item: object) -> bool:
    return (
        isinstance(item, dict) and isinstance(item.get("KeyId"), str) and bool(_ID.fullmatch(item["KeyId"]))
    )


def _time(seconds: object) -> str:
    known = type(seconds) is int and 0 <= seconds < 1 << 36  # until the year 4147
    return datetime.fromtimestamp(seconds, UTC).isoformat() if known else ""  # type: ignore[arg-type]


# The functions below never raise an error that has a plaintext key in a frame of its traceback.


def _plaintext(answer: Answer, sizes: tuple[int, ...]) -> bytes | None:
    secret = base64_bytes(answer.text("Plaintext"), any_spelling=True)
    return secret if secret is not None and len(secret) in sizes else None


def _data_key(answer: Answer, wrap: Wrap, context: Mapping[str, str]) -> DataKey | None:
    secret = _plaintext(answer, (32,))
    return None if secret is None else DataKey(secret, [wrap], context=context)


def _encrypt(secret: Hidden, key_id: str, context: str | None) -> Request:
    return Request("Encrypt", KeyId=key_id, Plaintext=base64_text(secret.reveal()), EncryptionContext=context)
