"""What the codes of Tencent Cloud KMS mean, what to do about each, and which may be tried again."""

from __future__ import annotations

from kmsdata.errors import CredentialsError, KeyAccessError, KeyNotFoundError, KeyServiceError

__all__ = ["meaning", "retryable"]

# No answer at all, or one that no KMS gives: the request may have been carried out.
_BROKEN_OFF = {"ChunkedEncodingError", "ClientNetworkError", "ConnectionError", "ReadTimeout", "Timeout"}
_NOT_KMS = {"ContentDecodingError", "JSONDecodeError", "KeyError", "ServerNetworkError", "TypeError"}
_FAILED = {"InternalError", "UnsupportedOperation.ServiceTemporaryUnavailable"}


def retryable(code: str | None, network: str, repeatable: bool) -> bool:
    """Whether the same request may succeed if it is sent again.

    Args:
        code: the service's, or the SDK's name for a fault.
        network: what is wrong with the network, as `meaning` takes it.
        repeatable: whether a request that may have been carried out may be sent again.
    """
    if code is not None and code.startswith("RequestLimitExceeded"):
        return not code.endswith("RotateRateLimited")
    if network in ("certificate", "redirect"):
        return False
    return repeatable and code in _BROKEN_OFF | _NOT_KMS | _FAILED


def meaning(code: str, network: str) -> tuple[type[KeyServiceError], str]:
    """The error that a code becomes, and its sentence.

    Args:
        code: the service's, or the SDK's name for a fault.
        network: "" or one of "certificate", "proxy", "redirect", "name", "refused", "time".

    Returns:
        A sentence with the fields ``{action}``, ``{host}``, ``{region}``, ``{key}``, ``{seconds}`` and
        ``{again}``, which is empty or says that it was tried again.
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


_GRANT = "no permission: ask for {action} on this key (in CAM), or use credentials that have it"
_NO_KEY = (
    "there is no such key in {region} in this account: look at 'kmsdata keys list {region}'; keys live "
    "in one region, and a deleted one is gone"
)
_SILENT = "no answer from {host} within {seconds} seconds: check the network and the endpoint, and try again"
_CODES: dict[str, tuple[type[KeyServiceError], str]] = {  # a code, or what it begins with up to a dot
    "ResourceUnavailable.CmkNotFound": (KeyNotFoundError, _NO_KEY),
    "InvalidParameterValue.InvalidKeyId": (KeyNotFoundError, _NO_KEY),
    "ResourceUnavailable.CmkDisabled": (
        KeyAccessError,
        "the key is disabled: have it enabled ('kmsdata keys enable {key}'), and try again",
    ),
    "ResourceUnavailable.CmkArchived": (
        KeyAccessError,
        (
            "the key is archived, so it decrypts and no longer encrypts: take its archiving back in the "
            "console, or encrypt under another key"
        ),
    ),
    "ResourceUnavailable.KeyPendingDelete": (
        KeyAccessError,
        (
            "the key is about to be deleted: cancel that in the console now if its data is needed, then "
            "enable it"
        ),
    ),
    "ResourceUnavailable": (
        KeyAccessError,
        "the key cannot be used in its present state: see 'kmsdata keys describe {key}'",
    ),
    "InvalidParameterValue.InvalidCiphertext": (
        KeyAccessError,
        (
            "the wrapped key does not open: it was wrapped by another key, region or account, or it or its "
            "context was changed"
        ),
    ),
    "FailedOperation.EncryptionError": (
        KeyAccessError,
        (
            "KMS could not carry it out; if it was to unwrap, the wrapped key or its context may have been "
            "changed"
        ),
    ),
    "UnauthorizedOperation": (KeyAccessError, _GRANT),
    "AuthFailure.UnauthorizedOperation": (KeyAccessError, _GRANT),
    "OperationDenied": (KeyAccessError, _GRANT),
    "AuthFailure.SignatureExpire": (
        CredentialsError,
        "this machine's clock is more than five minutes off that of {host}: set it (NTP), and try again",
    ),
    "AuthFailure.SignatureFailure": (
        CredentialsError,
        "the SecretKey is not that of the SecretId, or a proxy changes requests: enter the pair again",
    ),
    "AuthFailure.TokenFailure": (
        CredentialsError,
        "the session token has run out or belongs to another SecretId: get new temporary credentials",
    ),
    "AuthFailure.SecretIdNotFound": (
        CredentialsError,
        "there is no such SecretId (deleted or disabled?): look at API keys in the console (CAM)",
    ),
    "AuthFailure.InvalidSecretId": (
        CredentialsError,
        "this is no SecretId of an API key: look at API keys in the console (CAM)",
    ),
    "AuthFailure": (CredentialsError, "the credentials were refused: enter them again"),
    "UnsupportedRegion": (
        KeyServiceError,
        "{region} is not a region of this service: correct the key's URI or region=",
    ),
    "RequestLimitExceeded.RotateRateLimited": (
        KeyServiceError,
        "a key can be rotated once in 24 hours: try again tomorrow",
    ),
    "RequestLimitExceeded": (
        KeyServiceError,
        (
            "too many requests a second for the account's quota{again}: try again in a minute, "
            "give frames one data key (key=), or have the quota raised"
        ),
    ),
    "LimitExceeded": (
        KeyServiceError,
        "a quota of the account is used up: delete what is not needed, or have it raised",
    ),
    "InvalidParameterValue.AliasAlreadyExists": (
        KeyServiceError,
        "a key of that alias exists already: choose another; 'kmsdata keys list {region}' shows all",
    ),
    "InvalidParameterValue.InvalidAlias": (
        KeyServiceError,
        "an alias is 1 to 60 letters, digits, '_' or '-', begins with a letter or digit, and not with 'kms-'",
    ),
    "InternalError": (KeyServiceError, "KMS failed{again}: try again in a minute"),
    "UnsupportedOperation.ServiceTemporaryUnavailable": (
        KeyServiceError,
        "KMS is not available at the moment{again}: try again in a minute",
    ),
    "Timeout": (KeyServiceError, _SILENT),
    "ServerNetworkError": (
        KeyServiceError,
        (
            "{host} did not answer as KMS does{again}: check the endpoint and proxies, or try "
            "again in a minute"
        ),
    ),
    "InvalidAnswer": (
        KeyServiceError,
        "{host} gave an answer that KMS does not give, so it was not used: check the endpoint and proxies",
    ),
}
_NETWORK = {
    "certificate": (
        "the certificate of {host} is not trusted: if your network has a CA of its own, set SSL_CERT_FILE to "
        "its file"
    ),
    "proxy": "the proxy does not let {host} through: check HTTPS_PROXY and NO_PROXY",
    "redirect": "{host} sends elsewhere, which KMS does not: check the endpoint and proxies",
    "name": "the host {host} is not known: check the network, the region and the endpoint",
    "refused": "nothing listens at {host}: check the endpoint",
    "time": _SILENT,
    "": "the connection to {host} broke off{again}: check the network, and try again",
}
