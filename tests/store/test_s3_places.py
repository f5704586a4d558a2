"""Where a bucket is and how it is reached: endpoints, hosts and paths, regions, certificates. Ranges must reach it in the same way."""

import datetime
import ipaddress
import os
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from imagefs.errors import StoreError
from imagefs.store.base import ByteRange
from imagefs.store.opening import open_store
from imagefs.store.s3 import S3Store
from tests.store.conftest import OWN
from tests.store.fake_s3 import FakeS3, Reply, Request, error
from tests.weed import DOMAIN, Weed

Aws = Callable[[Mapping[str, str]], None]


def _without_boto3(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        pytest.fail("a range was asked of boto3")

    monkeypatch.setattr(store._connection.client, "get_object", fail)


def test_ranges_are_read_without_boto3(s3: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put_if_absent("packs/a", b"0123456789")
    _without_boto3(s3, monkeypatch)
    assert s3.get("packs/a", ByteRange(2, 5)) == b"234"


def test_the_bucket_in_the_name_of_the_host(weed: Weed, aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody resolves that name here, so the server is asked as if it were a proxy for it, which both boto3 and obstore must heed too."""
    config = tmp_path / "config"
    config.write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    proxied = {"AWS_ENDPOINT_URL_S3": f"http://{DOMAIN}", "HTTP_PROXY": weed.endpoint, "http_proxy": weed.endpoint, "NO_PROXY": ""}
    aws(weed.environment | {"AWS_CONFIG_FILE": str(config)} | proxied)
    store = open_store("s3://tests/virtual", create=True)
    assert isinstance(store, S3Store)
    store.put_if_absent("packs/a", b"0123456789")
    assert store._connection.client.generate_presigned_url("get_object", Params={"Bucket": "tests", "Key": "k"}).startswith(
        f"http://tests.{DOMAIN}/"
    )
    _without_boto3(store, monkeypatch)
    assert store.get("packs/a", ByteRange(2, 5)) == b"234"
    store.close()


def test_the_general_endpoint_counts_where_there_is_none_for_s3(fake: FakeS3, aws: Aws) -> None:
    aws(OWN | {"AWS_ENDPOINT_URL": fake.endpoint})
    open_store("s3://bucket/p", create=True).close()
    assert "bucket/p/imagefs-store.json" in fake.objects


def _only_in(region: str) -> Callable[[Request], Reply | None]:
    def check(request: Request) -> Reply | None:
        if f"/{region}/s3/" in request.headers.get("authorization", ""):
            return None
        return error(400, "AuthorizationHeaderMalformed", {"x-amz-bucket-region": region}, f"<Region>{region}</Region>")

    return check


def test_a_bucket_in_another_region_is_followed_once(fake: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.before = _only_in("eu-central-1")
    store = open_store("s3://bucket/p", create=True)
    assert isinstance(store, S3Store)
    assert store._connection.client.meta.region_name == "eu-central-1", "AWS has another host for each region"
    store.put_if_absent("packs/a", b"0123456789")
    fake.requests.clear()
    assert store.head("packs/a").size == 10
    _without_boto3(store, monkeypatch)
    assert store.get("packs/a", ByteRange(0, 3)) == b"012"
    assert fake.asked() == ["HEAD /bucket/p/packs/a", "GET /bucket/p/packs/a"]
    store.close()


@pytest.mark.parametrize("variable", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_the_region_is_taken_from_the_environment(fake: FakeS3, aws: Aws, variable: str) -> None:
    aws(OWN | {"AWS_ENDPOINT_URL_S3": fake.endpoint, variable: "eu-west-3"})
    open_store("s3://bucket/p", create=True).close()
    assert all("/eu-west-3/s3/" in request.headers["authorization"] for request in fake.requests)


# -- certificates -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that no authority signed, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(made.public_bytes(pem) + private)
    return path


def test_a_certificate_is_checked(certificate: Path, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with FakeS3(context) as fake:
        aws(OWN | {"AWS_ENDPOINT_URL_S3": fake.endpoint})
        with pytest.raises(StoreError, match=r"certificate of https://127.0.0.1:.* is not to be trusted") as caught:
            open_store("s3://bucket/p", create=True)
        assert "AWS_CA_BUNDLE" in str(caught.value.hint)
        aws(OWN | {"AWS_ENDPOINT_URL_S3": fake.endpoint, "AWS_CA_BUNDLE": str(certificate)})
        store = open_store("s3://bucket/p", create=True)
        assert isinstance(store, S3Store)
        store.put_if_absent("packs/a", b"0123456789")
        _without_boto3(store, monkeypatch)
        assert store.get("packs/a", ByteRange(2, 5)) == b"234"
        store.close()
        aws(OWN | {"AWS_ENDPOINT_URL_S3": fake.endpoint, "AWS_CA_BUNDLE": os.fspath(certificate.with_name("none"))})
        with pytest.raises(StoreError) as caught:
            open_store("s3://bucket/p")
        assert "AWS_CA_BUNDLE" in str(caught.value.hint)


def test_http_where_https_is_spoken_and_the_other_way_round(certificate: Path, aws: Aws, fake: FakeS3) -> None:
    aws(OWN | {"AWS_ENDPOINT_URL_S3": fake.endpoint.replace("http:", "https:")})
    with pytest.raises(StoreError) as caught:
        open_store("s3://bucket/p")
    assert "http" in str(caught.value.hint)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with FakeS3(context) as secure:
        aws(OWN | {"AWS_ENDPOINT_URL_S3": secure.endpoint.replace("https:", "http:")})
        with pytest.raises(StoreError) as caught:
            open_store("s3://bucket/p")
        assert "http" in str(caught.value.hint)
