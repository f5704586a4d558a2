"""S3 stores that cannot be used, by the command: what is said, with which exit code, and that nothing was written or kept."""

import datetime
import email.utils
import json
import random
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.store.conftest import OWN
from tests.store.fake_s3 import FakeS3, Reply, Request, error
from tests.store.saying import ACCESS, LATE, STORE, says, small_source
from tests.store.test_s3_places import certificate as certificate  # noqa: PLC0414 # a fixture
from tests.system.world import World, require, wait_until

SECRET = "a-secret-that-nobody-prints"
KEYS = {"AWS_ACCESS_KEY_ID": "FAKEKEY", "AWS_SECRET_ACCESS_KEY": SECRET}
WITHOUT_KEYS = {name: value for name, value in OWN.items() if "KEY" not in name}


@pytest.fixture
def server() -> Iterator[FakeS3]:
    with FakeS3() as made:
        yield made


@pytest.fixture
def world(imagefs: World, server: FakeS3) -> Iterator[World]:
    """A world whose store, at the server, has the image ``app``, and a SOURCE ``source`` of another."""
    imagefs.environment |= WITHOUT_KEYS | KEYS | {"AWS_ENDPOINT_URL_S3": server.endpoint, "IMAGEFS_STORE": "s3://bucket/p"}
    imagefs.environment["IMAGEFS_STORE_DEADLINE"] = "2"
    imagefs.convert(small_source(imagefs.root / "app"), "app")
    (imagefs.root / "mnt").mkdir()
    yield imagefs
    # Before the server goes: a daemon that is left would wait for it.
    assert imagefs.close() == []


def refused(world: World, server: FakeS3, status: int, text: str, *, mounting: bool = True) -> None:
    """Check that converting, listing and mounting end so, and change nothing."""
    before = dict(server.objects)
    commands = [["convert", f"dir:{world.root}/app", "other"], ["images"], ["rm", "app"]]
    for command in [*commands, ["mount", "app", str(world.root / "mnt")]] if mounting else commands:
        done = says(world, status, text, *command)
        assert SECRET not in done.out + done.err
    assert server.objects == before
    assert server.uploads == {}
    assert list((world.root / "mnt").iterdir()) == []


def _page(status: int, **headers: str) -> Reply:
    return Reply(status, b"<html><body>It works!</body></html>", {"Content-Type": "text/html"} | headers)


def _late(_: Request) -> Reply:
    there = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=2)
    body = error(403, "RequestTimeTooSkewed").body
    head = f"HTTP/1.1 403 Forbidden\r\nDate: {email.utils.format_datetime(there, usegmt=True)}\r\nContent-Length: {len(body)}\r\n\r\n"
    return Reply(raw=head.encode() + body)


def _away(_: Request) -> Reply:
    return error(301, "PermanentRedirect", extra="<Endpoint>bucket.s3.elsewhere.example</Endpoint>")


_NO_S3 = r"does not answer like an S3 server: {}\n.*AWS_ENDPOINT_URL_S3.*not a web console"
ANSWERS: dict[str, tuple[Callable[[Request], Reply | None], int, str]] = {
    "expired": (lambda _: error(400, "ExpiredToken"), ACCESS, r"have expired: ExpiredToken; .* the environment .*\nget new ones"),
    "unknown key": (lambda _: error(403, "InvalidAccessKeyId"), ACCESS, r"does not know the access key: .*the environment"),
    "wrong secret": (
        lambda _: error(403, "SignatureDoesNotMatch"),
        ACCESS,
        r"secret key does not belong to the access key: .*the environment",
    ),
    "denied": (lambda _: error(403, "AccessDenied"), ACCESS, r"the store denies \w+ of .*the environment .*\n.*docs/s3.md"),
    "no bucket": (
        lambda request: error(404, "NoSuchBucket") if request.method != "PUT" else error(403, "AccessDenied"),
        STORE,
        r"there is no bucket bucket at http://127.0.0.1:\d+\ncheck --store and AWS_ENDPOINT_URL_S3",
    ),
    "clock": (_late, ACCESS, r"its clock and the store's differ by (719\d|720\d) s\n.*timedatectl"),
    "a web page for everything": (lambda _: _page(200), STORE, _NO_S3.format("its answer to GetObject has no ETag")),
    "a web page that is not found": (lambda _: _page(404), STORE, _NO_S3.format("HTTP 404 without an S3 error")),
    "a web server that wants https": (
        lambda request: _page(301, Location=f"https://web.example{request.path}"),
        STORE,
        r"the server points to https://web.example/bucket/p/imagefs-store.json\ncheck AWS_ENDPOINT_URL_S3 \(http or https\?\)",
    ),
    "a redirect to nowhere": (_away, STORE, r"not at http://127.0.0.1:\d+: the server points to .*\n.*AWS_REGION"),
    "no HTTP": (
        lambda _: Reply(raw=b"SSH-2.0-OpenSSH_9.2\r\n"),
        STORE,
        r"the connection to http://127.0.0.1:\d+ broke .*\nis it an S3 server",
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_a_server_answers(name: str, world: World, server: FakeS3) -> None:
    answer, status, text = ANSWERS[name]
    server.before = answer
    if name == "no bucket":
        says(world, ACCESS, "the store denies CreateBucket of bucket", "convert", f"dir:{world.root}/app", "other")
        says(world, status, text, "images")
        says(world, status, text, "mount", "app", str(world.root / "mnt"))
        return
    refused(world, server, status, text)


def test_no_credentials(world: World, server: FakeS3) -> None:
    for name in KEYS:
        del world.environment[name]
    tried = r"there are no AWS credentials for bucket; tried: the environment.*shared credentials file.*instance's role\nset AWS_PROFILE"
    refused(world, server, ACCESS, tried)
    world.environment["AWS_ACCESS_KEY_ID"] = "HALF"
    refused(world, server, ACCESS, r"credentials cannot be had: .*found in env, missing: AWS_SECRET_ACCESS_KEY\n", mounting=False)


@pytest.mark.parametrize(
    ("file", "text", "source"),
    [
        ("AWS_SHARED_CREDENTIALS_FILE", "[default]\naws_access_key_id = K\naws_secret_access_key = {}\n", r"the shared credentials file"),
        ("AWS_CONFIG_FILE", "[default]\naws_access_key_id = K\naws_secret_access_key = {}\n", r"the AWS configuration file"),
        ("AWS_CONFIG_FILE", "[default]\ncredential_process = /bin/echo '{}'\n", r"the profile's credential_process"),
    ],
    ids=["credentials", "config", "process"],
)
def test_the_source_of_rejected_credentials_is_said(file: str, text: str, source: str, world: World, server: FakeS3) -> None:
    for name in KEYS:
        del world.environment[name]
    process = f'{{"Version":1,"AccessKeyId":"K","SecretAccessKey":"{SECRET}"}}'
    path = world.root / "aws"
    path.write_text(text.format(process if "process" in text else SECRET))
    world.environment[file] = str(path)
    server.before = lambda _: error(403, "InvalidAccessKeyId")
    refused(world, server, ACCESS, rf"does not know the access key: InvalidAccessKeyId; the credentials came from {source}", mounting=False)


def test_nobody_listens(world: World, server: FakeS3) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        world.environment["AWS_ENDPOINT_URL_S3"] = f"http://127.0.0.1:{one.getsockname()[1]}"
        refused(world, server, STORE, r"cannot connect to http://127.0.0.1:\d+: connection refused\nis the server up, and the port right\?")


def test_a_server_that_never_answers(world: World, server: FakeS3) -> None:
    """It takes the connection, and says nothing: what is waited for has an end."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        world.environment["AWS_ENDPOINT_URL_S3"] = f"http://127.0.0.1:{one.getsockname()[1]}"
        says(world, LATE, r"no answer from http://127.0.0.1:\d+ in time \(GetObject of imagefs-store.json\)", "images")


def test_a_bucket_in_another_region_is_followed(world: World, server: FakeS3) -> None:
    """From the first command on, and by the daemon: nobody has to know where it is."""
    require("fuse")
    require("root", "to mount")

    def only_there(request: Request) -> Reply | None:
        if "/eu-central-1/s3/" in request.headers.get("authorization", ""):
            return None
        return error(301, "PermanentRedirect", {"x-amz-bucket-region": "eu-central-1"})

    server.before = only_there
    world.convert(f"dir:{world.root}/app", "other")
    point = world.mount("other")
    assert (point / "small").read_text() == "hello\n"
    world.umount(point)


def test_a_bucket_in_a_region_that_denies(world: World, server: FakeS3) -> None:
    """The region is found, and what is said is what the server there says."""

    def only_there(request: Request) -> Reply | None:
        if "/eu-central-1/s3/" in request.headers.get("authorization", ""):
            return error(403, "AccessDenied")
        return error(400, "AuthorizationHeaderMalformed", {"x-amz-bucket-region": "eu-central-1"}, "<Region>eu-central-1</Region>")

    server.before = only_there
    refused(world, server, ACCESS, "the store denies GetObject", mounting=False)


def test_a_certificate_that_nobody_vouches_for(world: World, server: FakeS3, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with FakeS3(context) as secure:
        world.environment["AWS_ENDPOINT_URL_S3"] = secure.endpoint
        refused(
            world, secure, STORE, r"certificate of https://127.0.0.1:\d+ is not to be trusted: .*self.signed.*\nAWS_CA_BUNDLE=FILE names"
        )
        world.environment["AWS_CA_BUNDLE"] = str(certificate.with_name("none.pem"))
        refused(
            world, secure, STORE, r"https://127.0.0.1.*\ncheck AWS_CA_BUNDLE|authorities to trust.*\ncheck AWS_CA_BUNDLE", mounting=False
        )
        world.environment["AWS_CA_BUNDLE"] = str(certificate)
        world.convert(f"dir:{world.root}/app", "app")
        assert world.run("images", "--json").json["images"][0]["ref"] == "app:latest"


def test_what_goes_wrong_in_the_middle_of_a_conversion_publishes_nothing(world: World, server: FakeS3) -> None:
    """The credentials expire after the packs: no manifest, no ref, no part of an upload; and with others it goes on."""
    (world.root / "app" / "more").write_bytes(b"more" * 50_000)
    refs = {key for key in server.objects if "/refs/" in key or "/manifests/" in key}
    server.before = lambda request: error(400, "ExpiredToken") if request.method == "PUT" and "/blobs/" in request.path else None
    says(world, ACCESS, "the credentials have expired", "convert", f"dir:{world.root}/app", "other")
    assert any("/packs/" in key for key in server.objects)
    assert {key for key in server.objects if "/refs/" in key or "/manifests/" in key} == refs
    assert server.uploads == {}
    server.before = lambda _: None
    assert world.convert(f"dir:{world.root}/app", "other")["shared_bytes"] > 0


def test_credentials_that_expire_while_an_image_is_mounted_are_renewed(world: World, server: FakeS3) -> None:
    """From the shared credentials file, as ``aws sso login`` and its like write it: no command is run, and nothing is mounted again."""
    require("fuse")
    require("root", "to mount")
    for name in KEYS:
        del world.environment[name]
    file = world.root / "credentials"
    world.environment["AWS_SHARED_CREDENTIALS_FILE"] = str(file)

    def write(key: str) -> None:
        new = file.with_suffix(".new")
        new.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {SECRET}\n")
        new.rename(file)

    write("FIRST")
    valid = ["FIRST"]
    server.before = lambda request: (
        None if f"Credential={valid[0]}/" in request.headers.get("authorization", "") else error(400, "ExpiredToken")
    )
    (world.root / "app" / "later").write_bytes(random.Random(1).randbytes(3_000_000))
    world.convert(f"dir:{world.root}/app", "large")
    point = world.mount("large", "at", "--no-prefetch")
    assert (point / "small").read_text() == "hello\n"
    valid[0] = "SECOND"
    with pytest.raises(OSError, match="Input/output error"):
        (point / "later").read_bytes()
    assert "the credentials have expired" in world.logs()
    assert SECRET not in world.logs()
    write("SECOND")

    def readable() -> bool:
        try:
            return (point / "later").read_bytes() == (world.root / "app" / "later").read_bytes()
        except OSError:
            return False

    wait_until(readable, "the new credentials to be found", 60)


def test_credentials_of_a_role_are_renewed_before_they_expire(world: World, server: FakeS3) -> None:
    """The container's, near their end: each request has those of its own time, also a range."""
    require("fuse")
    require("root", "to mount")
    for name in KEYS:
        del world.environment[name]
    given: list[str] = []
    last = 0.0
    rejected: list[str] = []

    def role(request: Request) -> Reply | None:
        nonlocal last
        if request.path == "/role":
            last = time.monotonic()
            given.append(f"ROLE{len(given)}")
            ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=1)
            told = {"AccessKeyId": given[-1], "SecretAccessKey": SECRET, "Token": "t", "Expiration": ends.strftime("%Y-%m-%dT%H:%M:%SZ")}
            return Reply(200, json.dumps(told).encode(), {"Content-Type": "application/json"})
        return None

    server.before = role
    world.environment["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = f"{server.endpoint}/role"
    (world.root / "app" / "later").write_bytes(random.Random(1).randbytes(3_000_000))
    world.convert(f"dir:{world.root}/app", "large")
    point = world.mount("large", "at", "--no-prefetch")
    assert (point / "small").read_text() == "hello\n"
    # obstore keeps what it was given for a tenth of a second, whatever its end is.
    wait_until(lambda: time.monotonic() - last > 0.5, "what was given last to be old")
    first = len(given)

    def only_new(request: Request) -> Reply | None:
        answer = role(request)
        key = re.search("Credential=([^/]*)/", request.headers.get("authorization", ""))
        if "/packs/" in request.path and (key is None or key[1] not in given[first:]):
            rejected.append(request.operation)
            return error(400, "ExpiredToken")
        return answer

    server.before = only_new
    assert (point / "later").read_bytes() == (world.root / "app" / "later").read_bytes()
    assert rejected == []


@pytest.mark.parametrize("how", ["ignored", "refused"])
def test_a_server_without_conditional_writes_is_said_and_used(world: World, server: FakeS3, how: str) -> None:
    server.conditional = False
    conditions = {"if-none-match", "if-match"}
    if how == "refused":
        server.before = lambda request: error(501, "NotImplemented") if conditions & set(request.headers) else None
    done = world.run("convert", f"dir:{world.root}/app", "other", "--json")
    assert "has no conditional writes" in done.err
    assert "of two writers that set the same tag at the same moment one may lose" in done.err
    assert done.json["ref"] == "other:latest"
    assert "has no conditional writes" not in world.run("images").err, "nothing is written there"
