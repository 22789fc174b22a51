"""The example provider of docs/aws.md, as it is written there, against moto's server over HTTP."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import kmsdata
from kmsdata.testing import check_provider

pytestmark = pytest.mark.engine("boto3", "moto")

GUIDE = Path(__file__).parent.parent.parent / "docs" / "aws.md"
PROVIDER, *EXAMPLES = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
(PROJECT,) = re.findall(r"```\n(\[project\].*?)```", GUIDE.read_text(), re.DOTALL)
REGION = "eu-west-1"
MISSING = f"aws-kms://{REGION}/00000000-0000-0000-0000-000000000000"
SECRET = "SecretAccessKeyOfTheAccount0123456789"


@pytest.fixture(scope="module")
def server():
    from moto.kms import utils
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        # moto 5 joins names and texts, so that {"tea": "ma"} is {"team": "a"}. AWS does not.
        patch.setattr(
            utils,
            "_serialize_encryption_context",
            lambda encryption_context: repr(sorted(encryption_context.items())).encode(),
        )
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(autouse=True)
def account(server, monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))


@pytest.fixture
def names():
    """The names that the code of the guide defines."""
    names = {"__name__": "kmsdata_aws"}
    exec(compile(PROVIDER, "kmsdata_aws.py", "exec"), names)  # noqa: S102
    return names


@pytest.fixture
def aws_kms(names):
    return names["AwsKMS"]


@pytest.fixture
def new_key(names):
    def new():
        made = names["boto3"].client("kms", region_name=REGION).create_key()
        return f"aws-kms://{REGION}/{made['KeyMetadata']['KeyId']}"

    return new


def test_it_keeps_the_contract(aws_kms, new_key, monkeypatch):
    with monkeypatch.context() as without:
        without.delenv("AWS_SECRET_ACCESS_KEY")
        without.delenv("AWS_ACCESS_KEY_ID")
        unauthenticated = aws_kms(REGION)
        unauthenticated._client()  # looks for credentials
    report = check_provider(
        aws_kms(REGION),
        new_key(),
        other=new_key(),
        missing=MISSING,
        unauthenticated=unauthenticated,
        secrets=[SECRET],
    )
    assert report.failed == {}
    assert list(report.not_run) == ["disabled key", "access denied", "throttling"]


@pytest.mark.parametrize(
    ("code", "cls", "ours", "retryable"),
    [
        ("AccessDeniedException", kmsdata.KeyAccessError, "AccessDenied", False),
        ("DisabledException", kmsdata.KeyAccessError, "Disabled", False),
        ("KMSInvalidStateException", kmsdata.KeyAccessError, "KMSInvalidState", False),
        ("InvalidCiphertextException", kmsdata.KeyAccessError, "InvalidCiphertext", False),
        ("IncorrectKeyException", kmsdata.KeyAccessError, "OtherKey", False),
        ("NotFoundException", kmsdata.KeyNotFoundError, "NotFound", False),
        ("ExpiredTokenException", kmsdata.CredentialsError, "ExpiredToken", False),
        ("UnrecognizedClientException", kmsdata.CredentialsError, "UnrecognizedClient", False),
        ("ThrottlingException", kmsdata.KeyServiceError, "Throttling", True),
        ("KMSInternalException", kmsdata.KeyServiceError, "KMSInternal", True),
        ("ValidationException", kmsdata.KeyServiceError, "Validation", False),
    ],
)
def test_errors_of_aws(aws_kms, new_key, code, cls, ours, retryable):
    from botocore.stub import Stubber

    provider, key = aws_kms(REGION), new_key()
    with Stubber(provider._client()) as stub:
        stub.add_client_error(
            "decrypt", service_error_code=code, service_message="User arn:aws:iam::1:user/x"
        )
        with pytest.raises(kmsdata.KeyServiceError) as caught:
            provider.unwrap("AAAA", key, {})
    assert type(caught.value) is cls
    assert (caught.value.code, caught.value.retryable, caught.value.key) == (ours, retryable, key)
    assert "arn:aws" not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("endpoint", ["notaurl", "http://"])
def test_an_endpoint_that_is_no_url(aws_kms, monkeypatch, endpoint):
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", endpoint)
    with pytest.raises(kmsdata.KeyServiceError, match=r"InvalidEndpoint.*AWS_ENDPOINT_URL") as caught:
        aws_kms(REGION).wrap(b"SecretBytesOfTheDataKey123456789", MISSING, {})
    assert (caught.value.code, caught.value.retryable) == ("InvalidEndpoint", False)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("region", "key"),
    [
        ("eu-west-1/alias", "aws-kms://eu-west-1/alias/x"),  # so an entry point is called for this URI
        (REGION, "aws-kms://eu-west-1/alias/x"),
        ("", "aws-kms://payroll"),
        ("", "aws-kms:///payroll"),
    ],
)
def test_a_key_that_is_no_key_id_of_a_region(aws_kms, region, key):
    with pytest.raises(kmsdata.KeyNotFoundError, match=r"<region>/<key id>.*alias.*not supported") as caught:
        aws_kms(region).generate_data_key(key, {})
    assert (caught.value.code, caught.value.key) == ("OtherRegion", key)


def test_what_is_sent(aws_kms, new_key):
    """The key id also for Decrypt, and nothing in the encryption context except the context."""
    sent = []
    provider, key = aws_kms(REGION), new_key()
    provider._client().meta.events.register(
        "provide-client-params.kms.*", lambda params, model, **_: sent.append((model.name, dict(params)))
    )
    data_key = provider.generate_data_key(key, {"team": "a"})
    provider.unwrap(data_key.wraps[0].wrapped, key, {"team": "a"})
    provider.wrap(bytes(32), key, {})
    assert [name for name, _ in sent] == ["GenerateDataKey", "Decrypt", "Encrypt"]
    assert {params["KeyId"] for _, params in sent} == {key.rpartition("/")[2]}
    assert [params["EncryptionContext"] for _, params in sent] == [{"team": "a"}, {"team": "a"}, {}]
    assert provider._client().meta.region_name == REGION


def test_the_examples_of_the_guide(names, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for code in EXAMPLES:
        exec(compile(code, GUIDE.name, "exec"), names)  # noqa: S102
    assert "not run  disabled key: pass disable= and enable=" in capsys.readouterr().out


WORKER = """
import sys, kmsdata
print(kmsdata.read_parquet(sys.argv[1], decrypt=True, key=sys.argv[2])["ssn"].tolist()[0])
"""


def test_a_worker_finds_the_installed_package(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[0], GUIDE.name, "exec"), names)  # noqa: S102
    project = tomllib.loads(PROJECT)["project"]
    about = tmp_path / "site" / "kmsdata_aws-1.0.dist-info"
    about.mkdir(parents=True)
    (about.parent / "kmsdata_aws.py").write_text(PROVIDER)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1.0\n")
    lines = [f"{scheme} = {what}" for scheme, what in project["entry-points"]["kmsdata.providers"].items()]
    (about / "entry_points.txt").write_text("\n".join(["[kmsdata.providers]", *lines]))
    done = subprocess.run(
        [sys.executable, "-c", WORKER, "people.parquet", names["key"]],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(about.parent), str(Path(kmsdata.__file__).parents[1])])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("078-05-1120\n", 0), done.stderr


def test_the_provider_is_short():
    assert len(PROVIDER.splitlines()) <= 100
