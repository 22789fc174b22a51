"""Explain the error codes of Tencent Cloud KMS: the meaning, what to do, and which requests to repeat."""

from __future__ import annotations

from kmsdata.errors import CredentialsError, KeyAccessError, KeyNotFoundError, KeyServiceError

__all__ = ["is_fault", "meaning", "retryable"]

# No answer, or not an answer of KMS: KMS may have executed the request or not.
_BROKEN_OFF = {"ChunkedEncodingError", "ClientNetworkError", "ConnectionError", "ReadTimeout", "Timeout"}
_NOT_KMS = {"ContentDecodingError", "JSONDecodeError", "KeyError", "ServerNetworkError", "TypeError"}
_FAILED = {"InternalError", "UnsupportedOperation.ServiceTemporaryUnavailable"}


def is_fault(name: str) -> bool:
    """Return whether an exception's name is that of a fault between here and KMS."""
    return name in _BROKEN_OFF | _NOT_KMS


def retryable(code: str | None, network: str, repeatable: bool) -> bool:
    """Return whether the same request may succeed if it is sent again.

    Args:
        code: the service's error code, or the SDK's name for a fault.
        network: the network error, as in `meaning`.
        repeatable: whether to send a request again that may have been executed.
    """
    if code is not None and code.startswith("RequestLimitExceeded"):
        return not code.endswith("RotateRateLimited")
    if network in ("certificate", "redirect"):
        return False
    return repeatable and code in _BROKEN_OFF | _NOT_KMS | _FAILED


def meaning(code: str, network: str) -> tuple[type[KeyServiceError], str]:
    """Return the exception class for an error code, and its message.

    Args:
        code: the service's error code, or the SDK's name for a fault.
        network: "" or one of "certificate", "proxy", "redirect", "name", "refused", "time".

    Returns:
        The class, and a message with the fields ``{action}``, ``{host}``, ``{region}``, ``{key}``,
        ``{seconds}`` and ``{again}``, which is empty or says that the request was repeated.
    """
    if code in _BROKEN_OFF and code != "Timeout":
        return KeyServiceError, _NETWORK[network]
    if code in _NOT_KMS:
        code = "ServerNetworkError"
    while code:
        if code in _CODES:
            return _CODES[code]
        code = code.rpartition(".")[0]
    return KeyServiceError, "{action} was refused"


_GRANT = "no permission. Ask for {action} on this key (in CAM), or use credentials that have it"
_NO_KEY = (
    "this account has no such key in {region}: a key belongs to one region, and may have been deleted. Run "
    "'kmsdata keys list {region}'"
)
_SILENT = "no answer from {host} within {seconds} seconds. Check the network and the endpoint, and try again"
_CODES: dict[str, tuple[type[KeyServiceError], str]] = {  # a code, or what it begins with up to a dot
    "ResourceUnavailable.CmkNotFound": (KeyNotFoundError, _NO_KEY),
    "InvalidParameterValue.InvalidKeyId": (KeyNotFoundError, _NO_KEY),
    "ResourceUnavailable.CmkDisabled": (
        KeyAccessError,
        "the key is disabled. Enable it ('kmsdata keys enable {key}'), and try again",
    ),
    "ResourceUnavailable.CmkArchived": (
        KeyAccessError,
        (
            "the key is archived: it can decrypt, but not encrypt. Cancel the archiving in the console, or "
            "encrypt under another key"
        ),
    ),
    "ResourceUnavailable.KeyPendingDelete": (
        KeyAccessError,
        (
            "the key is scheduled for deletion. If its data is needed, cancel the deletion in the console "
            "now, then enable the key"
        ),
    ),
    "ResourceUnavailable": (
        KeyAccessError,
        "the key cannot be used in its current state. Run 'kmsdata keys describe {key}'",
    ),
    "InvalidParameterValue.InvalidCiphertext": (
        KeyAccessError,
        (
            "KMS cannot unwrap the wrapped key: it was wrapped by another key, region or account, or it or "
            "its context was changed"
        ),
    ),
    "FailedOperation.EncryptionError": (
        KeyAccessError,
        (
            "KMS could not execute the request. If it was to unwrap, the wrapped key or its context may have "
            "been changed"
        ),
    ),
    "UnauthorizedOperation": (KeyAccessError, _GRANT),
    "AuthFailure.UnauthorizedOperation": (KeyAccessError, _GRANT),
    "OperationDenied": (KeyAccessError, _GRANT),
    "AuthFailure.SignatureExpire": (
        CredentialsError,
        "this machine's clock is more than five minutes off that of {host}. Set it (NTP), and try again",
    ),
    "AuthFailure.SignatureFailure": (
        CredentialsError,
        "the SecretKey does not belong to the SecretId, or a proxy changes requests. Enter the pair again",
    ),
    "AuthFailure.TokenFailure": (
        CredentialsError,
        "the session token has expired or belongs to another SecretId. Get new temporary credentials",
    ),
    "AuthFailure.SecretIdNotFound": (
        CredentialsError,
        "there is no such SecretId: it may be deleted or disabled. Check API keys in the console (CAM)",
    ),
    "AuthFailure.InvalidSecretId": (
        CredentialsError,
        "this is not the SecretId of an API key. Check API keys in the console (CAM)",
    ),
    "AuthFailure": (CredentialsError, "the credentials were refused. Enter them again"),
    "UnsupportedRegion": (
        KeyServiceError,
        "{region} is not a region of this service. Correct the key's URI or region=",
    ),
    "RequestLimitExceeded.RotateRateLimited": (
        KeyServiceError,
        "a key can be rotated once in 24 hours. Try again tomorrow",
    ),
    "RequestLimitExceeded": (
        KeyServiceError,
        (
            "too many requests per second for the account's quota{again}. Try again in a minute, use one "
            "data key for several frames (key=), or ask for a higher quota"
        ),
    ),
    "LimitExceeded": (
        KeyServiceError,
        "a quota of the account is used up. Delete what is not needed, or ask for a higher quota",
    ),
    "InvalidParameterValue.AliasAlreadyExists": (
        KeyServiceError,
        "a key with that alias already exists. Choose another; 'kmsdata keys list {region}' shows all",
    ),
    "InvalidParameterValue.InvalidAlias": (
        KeyServiceError,
        (
            "the alias is invalid. It must have 1 to 60 characters (A-Z, a-z, 0-9, '_', '-'), and not begin "
            "with '_', '-' or 'kms-'"
        ),
    ),
    "InternalError": (KeyServiceError, "KMS failed{again}. Try again in a minute"),
    "UnsupportedOperation.ServiceTemporaryUnavailable": (
        KeyServiceError,
        "KMS is not available at the moment{again}. Try again in a minute",
    ),
    "Timeout": (KeyServiceError, _SILENT),
    "ServerNetworkError": (
        KeyServiceError,
        (
            "the answer of {host} is not an answer of KMS{again}. Check the endpoint and proxies, or try "
            "again in a minute"
        ),
    ),
    "InvalidAnswer": (
        KeyServiceError,
        "the answer of {host} is not an answer of KMS, so it was not used. Check the endpoint and proxies",
    ),
}
_NETWORK = {
    "certificate": (
        "the certificate of {host} is not trusted. If your network has a private CA, set SSL_CERT_FILE to "
        "its file"
    ),
    "proxy": "the proxy does not allow connections to {host}. Check HTTPS_PROXY and NO_PROXY",
    "redirect": "{host} redirects requests, which KMS never does. Check the endpoint and proxies",
    "name": "the host {host} is not known. Check the network, the region and the endpoint",
    "refused": "{host} refused the connection. Check the endpoint",
    "time": _SILENT,
    "": "the connection to {host} was interrupted{again}. Check the network, and try again",
}
