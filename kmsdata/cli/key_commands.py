"""The commands for master keys: create, list, describe, disable, enable, rotate."""

from __future__ import annotations

import json
from typing import Annotated

import typer

import kmsdata
from kmsdata.cli.errors import Refusal, guarded_call
from kmsdata.cli.options import key_uri
from kmsdata.cli.output import say, show_table
from kmsdata.keys.key_uri import parse_key
from kmsdata.keys.session import provider_of

__all__ = ["keys"]

keys = typer.Typer(
    help="Create, list, disable and rotate master keys, in the local keystore or in Tencent Cloud KMS.",
    no_args_is_help=True,
    epilog="A KEY is NAME or local://NAME in the local keystore (the file in KMSDATA_KEYSTORE, otherwise one "
    "in your user data folder; KMSDATA_PASSPHRASE encrypts a new keystore), or "
    "tencent-kms://REGION/KEYID-OR-ALIAS in Tencent Cloud KMS (credentials: TENCENTCLOUD_SECRET_ID and "
    "TENCENTCLOUD_SECRET_KEY, a profile, or a role).",
)

_Key = Annotated[
    str,
    typer.Argument(metavar="KEY", help="NAME, local://NAME, or tencent-kms://REGION/KEYID-OR-ALIAS."),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@keys.command("create", epilog="kmsdata keys create tencent-kms://ap-guangzhou/payroll")
def create(
    key: Annotated[
        str,
        typer.Argument(
            metavar="KEY",
            help="NAME or local://NAME (1 to 64 of A-Z, a-z, 0-9, '_.-'), or tencent-kms://REGION/ALIAS.",
        ),
    ],
    as_json: _Json = False,
) -> None:
    """Create a master key. Keys are never overwritten."""
    uri = _uri(key)
    provider = _provider(uri)
    name = uri.rpartition("/")[2]
    if isinstance(provider, kmsdata.LocalKeystore):
        made = provider.create_key(name, quiet=True)
        where = f"{provider.path}, {_guard(provider)}"
        now = "back that file up: without the key, data that it encrypts is lost"
    else:
        made = provider.create_key(name)
        where = f"{provider.region}, as {name}, with {provider.account}"
        now = f"df.kms.encrypt([...], key={made!r})"
    if as_json:
        typer.echo(json.dumps({"key": made}))
        return
    say("Made", made)
    say("In", where)
    say("Now", now)


@keys.command("list", epilog="kmsdata keys list ap-guangzhou")
def list_(
    where: Annotated[
        str,
        typer.Argument(metavar="[local|REGION]", help="The local keystore, or a region of Tencent Cloud."),
    ] = "local",
    as_json: _Json = False,
) -> None:
    """List the master keys of the local keystore or of a region, without their secrets."""
    place = where.removeprefix("tencent-kms://").rstrip("/*")
    if where in ("local", "local://", "local://*"):
        store = kmsdata.LocalKeystore()
        found = store.list_keys()
        about: dict[str, object] = {"keystore": str(store.path), "passphrase": store.sealed}
        source = f"{store.path}, {_guard(store)}"
        rows = [item | {"id": item["id"][:8]} for item in found]
        fields = ["key", "id", "state", "rotation", "created"]
        fold = "key"
    else:
        kms = _provider(_uri(f"tencent-kms://{place}/any"))
        if not isinstance(kms, kmsdata.TencentKMS):
            raise Refusal(f"{where} is not a region", "name a region such as ap-guangzhou", usage=True)
        found = kms.list_keys()
        about = {"region": kms.region, "endpoint": kms.endpoint}
        source = f"{kms.region} at {kms.endpoint}, with {kms.account}"
        rows = [item | {"KeyId": item["key"].rpartition("/")[2]} for item in found]
        fields = ["KeyId", "alias", "state", "rotation"]
        fold = "alias"
    if as_json:
        typer.echo(json.dumps({**about, "keys": found}, indent=1))
        return
    if found:
        show_table(fields, fold, rows)
    else:
        say("Keys", "none so far")
        say("Now", f"kmsdata keys create {'NAME' if place == 'local' else f'tencent-kms://{place}/ALIAS'}")
    say("In", source)
    if found and place != "local":
        say("Key", f"tencent-kms://{place}/KEYID-OR-ALIAS")


@keys.command("describe")
def describe(key: _Key, as_json: _Json = False) -> None:
    """Show a master key: its state, when it was created, how it is rotated."""
    uri = _uri(key)
    if as_json:
        _json_of(uri)
        return
    for name, text in _provider(uri).describe_key(uri).items():
        say(name.capitalize(), text or "none", width=10)


@keys.command("disable")
def disable(key: _Key, as_json: _Json = False) -> None:
    """Disable a key. Data under it cannot be decrypted until the key is enabled again."""
    uri = _uri(key)
    _provider(uri).disable_key(uri)
    _done(uri, f"is disabled. To use it again: kmsdata keys enable {uri}", as_json)


@keys.command("enable")
def enable(key: _Key, as_json: _Json = False) -> None:
    """Enable a key that was disabled."""
    uri = _uri(key)
    _provider(uri).enable_key(uri)
    _done(uri, "is enabled", as_json)


@keys.command("rotate", epilog="kmsdata keys rotate tencent-kms://ap-guangzhou/payroll --every 90")
def rotate(
    key: _Key,
    every: Annotated[
        int | None,
        typer.Option(metavar="DAYS", help="Tencent Cloud KMS: rotate every 7 to 365 days; 0: stop rotating."),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Rotate a key: give it new key material, now or regularly. Older data stays readable."""
    uri = _uri(key)
    provider = _provider(uri)
    if every is None:
        provider.rotate_key(uri)
        _done(uri, "has new key material; older data stays readable", as_json)
        return
    if isinstance(provider, kmsdata.LocalKeystore):
        raise Refusal(
            "a local key cannot be rotated regularly", "leave out --every to rotate it now", usage=True
        )
    if every and not 7 <= every <= 365:
        raise Refusal("--every takes 7 to 365 days, or 0", "such as --every 90", usage=True)
    if every:
        provider.enable_rotation(uri, every)
    else:
        provider.disable_rotation(uri)
    _done(uri, f"is rotated {f'every {every} days' if every else 'on request only'}", as_json)


def _uri(key: str) -> str:
    uri = key_uri(key)
    parse_key(uri)
    return uri


def _provider(uri: str) -> kmsdata.LocalKeystore | kmsdata.TencentKMS:
    # A new keystore for each command: the one of the session has already read its passphrase.
    with guarded_call():  # an endpoint or a setting in the environment may be invalid
        provider = kmsdata.LocalKeystore() if uri.startswith("local:") else provider_of(uri, pinned=True)
    if isinstance(provider, (kmsdata.LocalKeystore, kmsdata.TencentKMS)):
        return provider
    raise Refusal(
        f"{uri}: this command cannot manage keys of that provider", "name a local:// or tencent-kms:// key"
    )


def _done(uri: str, what: str, as_json: bool) -> None:
    if as_json:
        _json_of(uri)
    else:
        say("Done", f"{uri} {what}")


def _json_of(uri: str) -> None:
    typer.echo(json.dumps(_provider(uri).describe_key(uri), indent=1))


def _guard(store: kmsdata.LocalKeystore) -> str:
    return (
        "protected by a passphrase"
        if store.sealed
        else "without a passphrase: only file permissions protect it"
    )
