"""Master keys in Tencent Cloud KMS, through the official SDK. The keys themselves never leave KMS."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Generator, Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn, Self

from kmsdata.errors import KeyAccessError, KeyNotFoundError, KeyServiceError
from kmsdata.keys.data_key import DataKey
from kmsdata.keys.envelope import Wrap, base64_bytes, base64_text, canonical
from kmsdata.keys.fork_lock import Lock
from kmsdata.keys.key_uri import parse_key
from kmsdata.keys.tencent.credentials import Credentials, Given, held
from kmsdata.keys.tencent.transport import Answer, Endpoint, Request, Service

__all__ = ["TencentKMS"]

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_REGION = re.compile(r"[a-z]+(-[a-z0-9]+)+")
_MOST_CONTEXT = 1024  # characters that KMS takes
_ALIAS_SECONDS = 300  # for which an alias is taken to mean the same key
_PAGE = 200


class TencentKMS:
    """A key provider: master keys (CMKs) of one region of Tencent Cloud KMS.

    Args:
        region: such as ``"ap-guangzhou"``; it holds keys ``tencent-kms://ap-guangzhou/<KeyId or alias>``.
        credential: ``(SecretId, SecretKey)``, with a token as third where they are temporary, or a
            credential object of the official SDK. None: those of the environment, the profile file, the
            instance's role or TKE, in this order (`kmsdata.keys.tencent.credentials`), renewed as they run
            out.
        endpoint: a host, such as ``"kms.ap-guangzhou.tencentcloudapi.com"`` (regional),
            ``"kms.intl.tencentcloudapi.com"`` (international) or ``"kms.internal.tencentcloudapi.com"``
            (inside a VPC), or a URL such as ``"http://127.0.0.1:8080"`` (an emulator). None:
            ``KMSDATA_TENCENT_ENDPOINT``, else ``"kms.tencentcloudapi.com"``.
        timeout: seconds for a call, all of its tries together; and for the call that gets credentials of a
            role, where they are due.
        retries: how often a call is tried again where that may help (throttling, network, KMS itself), with
            full jitter.

    ``HTTPS_PROXY``, ``NO_PROXY`` and ``SSL_CERT_FILE`` (a CA of one's own) are obeyed. May be shared by
    threads, and used after a fork.

    Raises:
        ValueError: no region, or an endpoint that is none.
        TypeError: something else than credentials was passed in.
        ImportError: the SDK is not installed (at the first call): ``pip install "kmsdata[tencent]"``.

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
        # From here on no frame shows it, whatever else is wrong.
        given, credential = held(credential), None
        if given is False:
            raise TypeError(
                "credential= takes (SecretId, SecretKey), (SecretId, SecretKey, token), or a credential of "
                "the official SDK"
            )
        if not isinstance(region, str) or not _REGION.fullmatch(region):
            raise ValueError("region is the name of a region, such as 'ap-guangzhou'")
        if not timeout > 0 or retries < 0:
            raise ValueError("timeout is more than 0 seconds, and retries is not negative")
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
        return f"<TencentKMS {self.region} at {self.endpoint}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a TencentKMS has credentials and is not pickled: make one in the other process, from its own "
            "environment, profile or role"
        )

    def __await__(self) -> Generator[None, None, Self]:
        """Nothing to wait for: ``await kmsdata.login()`` reads the same where no form was needed."""
        return self
        yield  # never reached: it makes this a generator, which await takes

    @property
    def endpoint(self) -> str:
        """Where calls go, as a URL."""
        return str(self._service.endpoint)

    @property
    def account(self) -> str:
        """Whose credentials are in force, for showing: the SecretId, masked, and where it was found.

        Raises:
            CredentialsError: there are none.
        """
        return f"{self._credentials.masked} ({self._credentials.source})"

    @property
    def identity(self) -> bytes:
        """Tells one credential from another: what a cache keeps this provider's unwrapped keys by."""
        return self._credentials.identity

    # The three calls of a KeyProvider.

    def generate_data_key(self, key: str, context: Mapping[str, str]) -> DataKey:
        """A new data key from ``GenerateDataKey`` (AES_256).

        Args:
            key: ``tencent-kms://region/<KeyId or alias>``; the wrap records the KeyId.
            context: the encryption context; at most 1,024 characters as JSON.

        Raises:
            KeyServiceError: KMS refused or did not answer; its subclasses say why.
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
            self._invalid(answer, uri, "generate_data_key", "a data key that is not 32 bytes")
        return data_key

    def unwrap(self, wrapped: str, key: str, context: Mapping[str, str]) -> bytes:
        """The data key in the clear, from ``Decrypt``.

        Raises:
            KeyAccessError: KMS refused; or opened it with another key than the one that is named.
            KeyServiceError: KMS did not answer; or with something that is no data key.
        """
        uri, key_id = self._key(key, "unwrap")
        request = Request(
            "Decrypt", CiphertextBlob=wrapped, EncryptionContext=self._context(context, key, "unwrap")
        )
        answer = self._service.call(request, operation="unwrap", key=uri)
        self._same_key(answer, uri, key_id, "unwrap")
        secret = _plaintext(answer, (16, 32))
        if secret is None:
            self._invalid(answer, uri, "unwrap", "something that is no data key")
        return secret

    def wrap(self, data_key: bytes, key: str, context: Mapping[str, str]) -> str:
        """A data key under a master key, from ``Encrypt``."""
        uri, key_id = self._key(key, "wrap")
        request = _encrypt(data_key, key_id, self._context(context, key, "wrap"))
        answer = self._service.call(request, operation="wrap", key=uri)
        return self._wrapped(answer, uri, key_id, "wrap")

    def resolve(self, key: str) -> str:
        """The URI with the KeyId, where it names an alias (``ListKeyDetail``, kept for five minutes).

        Raises:
            KeyNotFoundError: no key of that alias in this region and account.
        """
        return self._key(key, "resolve")[0]

    # The keys themselves: what `kmsdata keys` does.

    def create_key(self, alias: str) -> str:
        """Make a master key (``CreateKey``, for encryption, in the HSM of the region).

        Args:
            alias: 1 to 60 letters, digits, ``_`` or ``-``.

        Returns:
            Its URI, with the KeyId.
        """
        request = Request("CreateKey", Alias=alias, KeyUsage="ENCRYPT_DECRYPT")
        # Not sent twice: if the first was carried out, the second would say that the alias is taken.
        answer = self._service.call(request, operation="create_key", repeatable=False)
        key_id = answer.text("KeyId")
        if key_id is None or not _ID.fullmatch(key_id):
            self._invalid(answer, None, "create_key", "no KeyId")
        return f"tencent-kms://{self.region}/{key_id}"

    def count_keys(self) -> int | None:
        """How many keys the region has (``ListKeys``): a call without effects, to see that credentials work.

        Returns:
            The number; None where the credentials are good, but may not list keys.

        Raises:
            KeyServiceError: the credentials were refused, or KMS did not answer.
        """
        try:
            answer = self._service.call(Request("ListKeys", Limit=1), operation="list_keys")
        except KeyAccessError:
            return None
        total = answer.fields.get("TotalCount")
        return total if isinstance(total, int) else None

    def list_keys(self) -> list[dict[str, str]]:
        """The keys of the region: ``key`` (URI), ``alias``, ``state``, ``created`` and ``rotation``."""
        return [self._about(item) for item in self._details("")]

    def describe_key(self, key: str) -> dict[str, str]:
        """What `list_keys` says of one key, by KeyId or alias."""
        uri, key_id = self._key(key, "describe_key")
        answer = self._service.call(Request("DescribeKey", KeyId=key_id), operation="describe_key", key=uri)
        about = answer.fields.get("KeyMetadata")
        if not isinstance(about, dict) or about.get("KeyId") != key_id:
            self._invalid(answer, uri, "describe_key", "another key's description, or none")
        return self._about(about)

    def enable_key(self, key: str) -> None:
        """Let a disabled key be used again."""
        self._manage("EnableKey", key)

    def disable_key(self, key: str) -> None:
        """Let a key be used no more until it is enabled: what it wrapped cannot be read meanwhile."""
        self._manage("DisableKey", key)

    def rotate_key(self, key: str) -> None:
        """Give a key new material now (once in 24 hours). What it wrapped before still opens."""
        self._manage("RotateKey", key, repeatable=False)

    def enable_rotation(self, key: str, days: int = 365) -> None:
        """Give a key new material every so many days, 7 to 365."""
        if not 7 <= days <= 365:
            raise ValueError("a key is rotated every 7 to 365 days")
        self._manage("EnableKeyRotation", key, RotateDays=days)

    def disable_rotation(self, key: str) -> None:
        """Stop rotating a key."""
        self._manage("DisableKeyRotation", key)

    # Inside.

    def _manage(self, action: str, key: str, *, repeatable: bool = True, **parameters: object) -> None:
        uri, key_id = self._key(key, action)
        request = Request(action, KeyId=key_id, **parameters)
        self._service.call(request, operation=action, key=uri, repeatable=repeatable)

    def _key(self, key: str, operation: str) -> tuple[str, str]:
        """The URI with a KeyId, and the KeyId."""
        uri = parse_key(key)
        if uri.scheme != self.scheme or uri.place != self.region:
            raise KeyNotFoundError(
                f"{key} is not a key of {self!r}: keys live in one region; hand a TencentKMS of that region "
                "to kmsdata.use(), or name its key",
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
        found = [item["KeyId"] for item in self._details(alias) if item.get("Alias") == alias]
        if len(found) != 1:
            raise KeyNotFoundError(
                f"{key}: no key of that alias in {self.region} in this account: 'kmsdata keys list "
                f"{self.region}' shows those there are, 'kmsdata keys create {key}' makes one",
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
        while True:
            request = Request(
                "ListKeyDetail", Offset=len(found), Limit=_PAGE, OrderType=1, SearchKeyAlias=search or None
            )
            answer = self._service.call(request, operation="list_keys")
            page, total = answer.fields.get("KeyMetadatas"), answer.fields.get("TotalCount")
            good = isinstance(page, list) and isinstance(total, int) and all(map(_is_key, page))
            if not good or not isinstance(page, list):
                self._invalid(answer, None, "list_keys", "a list of keys that is none")
            found += page
            if not page or len(found) >= (total or 0):
                return found

    def _about(self, item: Mapping[str, Any]) -> dict[str, str]:
        created = item.get("CreateTime")
        rotation = f"every {item.get('RotateDays') or 365} days" if item.get("KeyRotationEnabled") else "off"
        return {
            "key": f"{self.scheme}://{self.region}/{item['KeyId']}",
            "alias": str(item.get("Alias") or ""),
            "state": str(item.get("KeyState") or ""),
            "created": datetime.fromtimestamp(created, UTC).isoformat() if isinstance(created, int) else "",
            "rotation": rotation,
        }

    def _context(self, context: Mapping[str, str], key: str, operation: str) -> str | None:
        if not context:
            return None
        text = canonical(dict(context))
        if len(text) > _MOST_CONTEXT:
            raise KeyServiceError(
                f"{key}: the context takes {len(text)} characters as JSON, and KMS takes {_MOST_CONTEXT}: "
                "shorten it",
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
            f"{uri}: KMS used another key, {answered}, so its answer was refused: the header was changed, or "
            "names the wrong key",
            provider=self.scheme,
            operation=operation,
            code="OtherKey",
            request_id=answer.request_id,
            key=uri,
        )

    def _invalid(self, answer: Answer, uri: str | None, operation: str, what: str) -> NoReturn:
        raise KeyServiceError(
            f"{uri or self!r}: the answer held {what}, so it was not used: check the endpoint and proxies",
            provider=self.scheme,
            operation=operation,
            code="InvalidAnswer",
            request_id=answer.request_id,
        )


def _is_key(item: object) -> bool:
    return (
        isinstance(item, dict) and isinstance(item.get("KeyId"), str) and bool(_ID.fullmatch(item["KeyId"]))
    )


# The functions below never raise with a plaintext key in a frame.


def _plaintext(answer: Answer, sizes: tuple[int, ...]) -> bytes | None:
    secret = base64_bytes(answer.text("Plaintext"), any_spelling=True)
    return secret if secret is not None and len(secret) in sizes else None


def _data_key(answer: Answer, wrap: Wrap, context: Mapping[str, str]) -> DataKey | None:
    secret = _plaintext(answer, (32,))
    return None if secret is None else DataKey(secret, [wrap], context=context)


def _encrypt(data_key: bytes, key_id: str, context: str | None) -> Request:
    return Request("Encrypt", KeyId=key_id, Plaintext=base64_text(data_key), EncryptionContext=context)
