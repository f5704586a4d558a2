"""What S3 servers, and what only looks like one, say on a bad day: each is an error that tells a person what to do."""

import datetime
import email.utils
import os
import socket
import threading
from collections.abc import Callable, Mapping

import pytest
from botocore.config import Config

from imagefs.digest import Buffer
from imagefs.errors import (
    AccessError,
    ConflictError,
    DeadlineError,
    ImageFSError,
    IntegrityError,
    NotFoundError,
    StoreError,
    StoreFullError,
    UsageError,
)
from imagefs.store import s3_ranges, s3_session, s3_upload
from imagefs.store.base import ByteRange, Moment
from imagefs.store.opening import open_store
from imagefs.store.s3 import S3Store
from tests.store.conftest import OWN
from tests.store.fake_s3 import FakeS3, Reply, Request, error
from tests.system.world import wait_until
from tests.weed import Weed

Aws = Callable[[Mapping[str, str]], None]
RANGE = ByteRange(2, 8)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between the tries of a write are shown by what is asked, not by waiting for them."""
    monkeypatch.setattr(s3_upload, "_FIRST_PAUSE", 0.001)


@pytest.fixture(autouse=True)
def noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is noted of large answers is noted of those here."""
    monkeypatch.setattr(s3_ranges, "_NOTED", 1)


def on(method: str, reply: Callable[[], Reply] | Reply, times: int = 1_000) -> Callable[[Request], Reply | None]:
    """Answer the first ``times`` requests of that method."""
    left = iter(range(times))
    return lambda request: None if request.method != method or next(left, None) is None else reply() if callable(reply) else reply


def _page(status: int) -> Reply:
    return Reply(status, b"<html><body>It works!</body></html>", {"Content-Type": "text/html"})


ANSWERS = {
    "denied": (error(403, "AccessDenied"), AccessError, r"denies GetObject of packs/a .*s3:ListBucket"),
    "unknown key": (error(403, "InvalidAccessKeyId"), AccessError, r"does not know the access key.*the environment \(AWS_ACCESS_KEY_ID\)"),
    "wrong secret": (error(403, "SignatureDoesNotMatch"), AccessError, "secret key does not belong.*the environment"),
    "expired": (error(400, "ExpiredToken"), AccessError, "have expired.*the environment"),
    "no bucket": (error(404, "NoSuchBucket"), StoreError, "there is no bucket bucket at http://127"),
    "redirect": (error(301, "PermanentRedirect", {"x-amz-bucket-region": "eu-west-1"}), StoreError, "in the region eu-west-1"),
    "busy": (error(503, "SlowDown"), StoreError, "busy.*SlowDown"),
    "too many": (Reply(429, b"slow", {"Retry-After": "7"}), StoreError, "busy"),
    "full": (error(507, "InsufficientStorage"), StoreFullError, "no room"),
    "html": (_page(404), StoreError, "does not answer like an S3 server"),
    "html 200": (_page(200), StoreError, "does not give parts|has no ETag"),
    "html 502": (_page(502), StoreError, "does not answer like an S3 server"),
    "garbage": (Reply(raw=b"\x00\x01\x02 what?\r\n\r\n"), StoreError, "broke"),
    "unwell": (error(500, "InternalError"), StoreError, "InternalError.*Message of InternalError"),
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("byte_range", [None, RANGE])
def test_an_answer_becomes_an_error_that_says_what_to_do(fake: FakeS3, faked: S3Store, name: str, byte_range: ByteRange | None) -> None:
    reply, expected, text = ANSWERS[name]
    faked.put_if_absent("packs/a", b"0123456789")
    fake.before = on("GET", reply)
    with pytest.raises(expected, match=text) as caught:
        faked.get("packs/a", byte_range)
    assert type(caught.value) is expected
    assert isinstance(caught.value, ImageFSError)
    assert "fake-secret" not in f"{caught.value}{caught.value.hint}"
    assert caught.value.hint or name in {"busy", "too many", "unwell"}


def test_a_head_says_as_much_as_a_get(fake: FakeS3, faked: S3Store) -> None:
    fake.before = lambda _: error(403, "InvalidAccessKeyId")
    with pytest.raises(AccessError, match="does not know the access key"):
        faked.head("packs/a")


def test_a_request_that_came_too_late(fake: FakeS3, faked: S3Store) -> None:
    there = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=2)
    skewed = error(403, "RequestTimeTooSkewed")
    fake.before = lambda _: Reply(
        raw=f"HTTP/1.1 403 Forbidden\r\nDate: {email.utils.format_datetime(there, usegmt=True)}\r\n"
        f"Content-Length: {len(skewed.body)}\r\n\r\n".encode()
        + skewed.body
    )
    with pytest.raises(AccessError, match=r"clock and the store's differ by (7199|7200|7201) s"):
        faked.get("packs/a")


@pytest.mark.parametrize("byte_range", [None, RANGE])
def test_a_busy_store_says_when_to_come_again(fake: FakeS3, faked: S3Store, byte_range: ByteRange | None) -> None:
    faked.put_if_absent("packs/a", b"0123456789")
    fake.before = on("GET", error(503, "SlowDown", {"Retry-After": "7"}))
    with pytest.raises(StoreError) as caught:
        faked.get("packs/a", byte_range)
    assert caught.value.retry_after == 7
    fake.before = on("GET", lambda: error(503, "SlowDown", {"Retry-After": email.utils.formatdate(_in(60), usegmt=True)}))
    with pytest.raises(StoreError) as caught:
        faked.get("packs/a", byte_range)
    assert 50 < (caught.value.retry_after or 0) <= 60


def _in(seconds: float) -> float:
    return datetime.datetime.now(datetime.UTC).timestamp() + seconds


# -- ranges -------------------------------------------------------------------------------------------------------------------------

_FULL = {"ETag": '"x"', "Last-Modified": "Tue, 15 Nov 1994 12:45:26 GMT"}


def _part(content_range: str, body: bytes = b"234567", **rest: object) -> Reply:
    return Reply(206, body, _FULL | {"Content-Range": content_range}, **rest)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (_part("bytes 2-7/10", b"234"), StoreError),  # fewer bytes than it says, in a whole answer
        (_part("bytes 2-7/10", b"23456789"), StoreError),
        (_part("bytes 3-8/10"), StoreError),
        (_part("bytes 2-4/5", b"234"), IntegrityError),  # the object ends there
        (_part("bytes 2-4/10", b"234"), StoreError),
        (_part("nonsense"), StoreError),
        (Reply(200, b"0123456789", _FULL), StoreError),
        (Reply(200, b"234567", _FULL), StoreError),
        (error(416, "InvalidRange"), IntegrityError),
        (_part("bytes 2-7/10", sent=3), StoreError),
        (_part("bytes 2-7/10", sent=0), StoreError),
    ],
)
@pytest.mark.parametrize("noting", [False, True])
def test_a_range_is_whole_or_an_error(fake: FakeS3, faked: S3Store, reply: Reply, expected: type[ImageFSError], noting: bool) -> None:
    fake.before = on("GET", reply)
    with pytest.raises(expected) as caught:
        ranged(faked, noting=noting)
    assert type(caught.value) is expected


def ranged(store: S3Store, *, noting: bool) -> Buffer:
    """Get a range, and have it noted when it begins to come, or not."""
    return store.get_noting("packs/a", RANGE, Moment()) if noting else store.get("packs/a", RANGE)


def test_it_is_noted_when_a_large_answer_begins(fake: FakeS3, faked: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    faked.put_if_absent("packs/a", b"0123456789")
    small, large = Moment(), Moment()
    monkeypatch.setattr(s3_ranges, "_NOTED", len(b"234567") + 1)
    assert faked.get_noting("packs/a", RANGE, small) == b"234567"
    assert small.at is None
    monkeypatch.setattr(s3_ranges, "_NOTED", len(b"234567"))
    rest = threading.Event()
    fake.before = on("GET", _part("bytes 2-7/10", pause=rest))
    got: list[Buffer] = []
    getting = threading.Thread(target=lambda: got.append(faked.get_noting("packs/a", RANGE, large)))
    getting.start()
    wait_until(lambda: large.at is not None, "the first byte")
    assert not got
    rest.set()
    getting.join(10)
    assert got == [b"234567"]


def test_what_is_cut_off_is_not_returned(fake: FakeS3, faked: S3Store) -> None:
    fake.before = on("GET", Reply(200, b"0123456789", _FULL, sent=5))
    with pytest.raises(StoreError, match="broke"):
        faked.get("packs/a")


def test_a_range_that_obstore_cannot_have_is_asked_of_boto3(fake: FakeS3, faked: S3Store) -> None:
    faked.put_if_absent("packs/a", b"0123456789")
    fake.before = on("GET", error(500, "InternalError"), times=1)
    assert faked.get("packs/a", RANGE) == b"234567"


@pytest.mark.parametrize("sent", [0, 3])
@pytest.mark.parametrize("way", ["whole", "range", "noting"])
def test_a_server_that_goes_silent(fake: FakeS3, aws: Aws, monkeypatch: pytest.MonkeyPatch, sent: int, way: str) -> None:
    monkeypatch.setattr(s3_session, "READ_SECONDS", 0.3)
    monkeypatch.setattr(s3_session, "_SETTINGS", s3_session._SETTINGS.merge(Config(read_timeout=0.3)))
    store = open_store("s3://bucket/p", create=True)
    assert isinstance(store, S3Store)
    store.put_if_absent("packs/a", b"0123456789")
    over = threading.Event()
    silent = Reply(200 if way == "whole" else 206, b"234567", _FULL | {"Content-Range": "bytes 2-7/10"}, sent=sent, until=over)
    before = len(fake.requests)
    fake.before = on("GET", silent)
    with pytest.raises(DeadlineError, match="no answer"):
        store.get("packs/a") if way == "whole" else ranged(store, noting=way == "noting")
    assert len(fake.requests) == before + 1, "silence is waited out once"
    over.set()
    store.close()


# -- no server ----------------------------------------------------------------------------------------------------------------------


def test_nobody_listens(aws: Aws) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        aws(OWN | {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{one.getsockname()[1]}"})
        with pytest.raises(StoreError, match=r"cannot connect to http://127.0.0.1:.*: connection refused"):
            open_store("s3://bucket/p")


def test_a_name_that_nobody_has(aws: Aws) -> None:
    aws(OWN | {"AWS_ENDPOINT_URL_S3": "http://s3.invalid:9000"})
    with pytest.raises(StoreError, match=r"name of http://s3.invalid:9000 cannot be resolved"):
        open_store("s3://bucket/p")


def test_a_server_that_is_gone_while_the_store_is_open(fake: FakeS3, faked: S3Store) -> None:
    fake.__exit__()
    for byte_range in (None, RANGE):
        with pytest.raises(StoreError, match=r"cannot connect|broke"):
            faked.get("packs/a", byte_range)


@pytest.mark.parametrize(
    "setting",
    [{"AWS_ENDPOINT_URL_S3": "minio:9000"}, {"AWS_PROFILE": "nobody"}, {"AWS_REGION": "not a region!"}],
)
def test_a_configuration_that_is_none(aws: Aws, setting: dict[str, str]) -> None:
    aws(OWN | {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"} | setting)
    with pytest.raises(UsageError, match="AWS configuration") as caught:
        open_store("s3://bucket/p")
    assert next(iter(setting)) in str(caught.value.hint)


def test_no_credentials(aws: Aws) -> None:
    kept = {name: OWN[name] for name in OWN if "KEY" not in name}
    aws(kept | {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"})
    with pytest.raises(
        AccessError, match=r"no AWS credentials.*tried: the environment.*shared credentials file.*container's role.*instance"
    ):
        open_store("s3://bucket/p")


def test_half_of_the_credentials(aws: Aws) -> None:
    aws({name: value for name, value in OWN.items() if name != "AWS_SECRET_ACCESS_KEY"} | {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"})
    with pytest.raises(AccessError, match=r"AWS_SECRET_ACCESS_KEY|secret_key"):
        open_store("s3://bucket/p")


@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_real_server_and_wrong_credentials(weed: Weed, aws: Aws, wrong: str) -> None:
    aws(weed.environment | {wrong: "wrong"})
    with pytest.raises(AccessError, match="came from the environment") as caught:
        open_store("s3://tests/p", create=True)
    assert "weed-secret-key" not in f"{caught.value}{caught.value.hint}"


# -- credentials that change --------------------------------------------------------------------------------------------------------


def test_credentials_that_change_while_the_store_is_open(fake: FakeS3, aws: Aws, tmp_path: os.PathLike[str]) -> None:
    file = os.path.join(tmp_path, "credentials")  # noqa: PTH118

    def write(key: str) -> None:
        with open(file, "w") as out:  # noqa: PTH123
            out.write(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = s-{key}\n")

    write("FIRST")
    aws(
        {name: value for name, value in OWN.items() if "KEY" not in name}
        | {"AWS_ENDPOINT_URL_S3": fake.endpoint, "AWS_SHARED_CREDENTIALS_FILE": file}
    )
    valid = "FIRST"

    def check(request: Request) -> Reply | None:
        return None if f"Credential={valid}/" in request.headers["authorization"] else error(400, "ExpiredToken")

    fake.before = check
    store = open_store("s3://bucket/p", create=True)
    store.put_if_absent("packs/a", b"0123456789")
    assert store.get("packs/a", RANGE) == b"234567"
    valid = "SECOND"
    for call in (lambda: store.get("packs/a", RANGE), lambda: store.head("packs/a"), lambda: list(store.list(""))):
        with pytest.raises(AccessError, match=r"expired.*shared credentials file"):
            call()
    write("SECOND")
    assert store.get("packs/a", RANGE) == b"234567"
    fake.requests.clear()
    assert store.get("packs/a", RANGE) == b"234567"
    assert store.head("packs/a").size == 10
    assert fake.asked() == ["GET /bucket/p/packs/a", "HEAD /bucket/p/packs/a"], "the new ones are kept"
    store.close()


def test_a_head_alone_finds_the_new_credentials(fake: FakeS3, aws: Aws, monkeypatch: pytest.MonkeyPatch, faked: S3Store) -> None:
    faked.put_if_absent("packs/a", b"0123456789")
    fake.before = lambda request: None if "Credential=NEW/" in request.headers["authorization"] else error(400, "ExpiredToken")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "NEW")
    assert faked.head("packs/a").size == 10


# -- writes -------------------------------------------------------------------------------------------------------------------------


def test_a_write_that_met_another_is_tried_again(fake: FakeS3, faked: S3Store) -> None:
    fake.before = on("PUT", error(409, "ConditionalRequestConflict"), times=3)
    assert faked.put_if_absent("packs/a", b"x") is True
    fake.before = on("PUT", error(409, "ConditionalRequestConflict"))
    with pytest.raises(StoreError, match="another writer"):
        faked.put_if_absent("packs/b", b"x")


def test_a_write_is_tried_again_where_that_may_help_and_only_there(fake: FakeS3, faked: S3Store) -> None:
    faked.has_conditional_writes()
    for reply, tries in ((error(500, "InternalError"), 5), (error(403, "AccessDenied"), 1), (error(507, "Full"), 1), (_page(404), 1)):
        fake.requests.clear()
        fake.before = on("PUT", reply)
        with pytest.raises(ImageFSError):
            faked.put_if_absent("packs/a", b"x")
        assert len(fake.requests) == tries


def test_a_write_whose_answer_was_lost_is_known_as_ones_own(fake: FakeS3, faked: S3Store) -> None:
    def lose(request: Request) -> Reply | None:
        if request.method == "PUT":
            fake.before = lambda _: None
            assert fake._usual(request).status == 200
            return error(500, "InternalError")
        return None

    faked.has_conditional_writes()
    fake.before = lose
    assert faked.put_if_absent("packs/a", b"x") is True
    fake.before = lose
    version = faked.replace("refs/a/b", b"x", version=None)
    assert faked.get_versioned("refs/a/b") == (b"x", version)


def test_a_large_write_whose_last_answer_was_lost(fake: FakeS3, faked: S3Store) -> None:
    def lose(request: Request) -> Reply | None:
        if request.method == "POST" and "uploadId" in request.query:
            fake.before = lambda _: None
            assert fake._usual(request).status == 200
            return error(500, "InternalError")
        return None

    fake.before = lose
    data = bytes(s3_upload.MULTIPART_FROM + 1)
    assert faked.put_if_absent("packs/a", data) is True
    assert faked.get("packs/a") == data


def test_a_large_write_that_fails_is_aborted(fake: FakeS3, faked: S3Store) -> None:
    fake.before = lambda request: error(403, "AccessDenied") if request.query.get("partNumber") == "2" else None
    with pytest.raises(AccessError, match="denies UploadPart of packs/a"):
        faked.put_if_absent("packs/a", bytes(s3_upload.MULTIPART_FROM + 1))
    assert fake.uploads == {}
    assert any(request.startswith("DELETE") for request in fake.asked())


# -- a server without conditional writes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["ignored", "refused"])
def test_a_server_without_conditional_writes_is_found_out(
    fake: FakeS3, caplog: pytest.LogCaptureFixture, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.conditional = False
    if how == "refused":
        conditions = {"if-none-match", "if-match"}
        made = open_store("s3://bucket/p", create=True)
        made.close()
        caplog.clear()
        fake.before = lambda request: error(501, "NotImplemented") if conditions & set(request.headers) else None
    store = open_store("s3://bucket/p", create=True)
    assert len(caplog.messages) == 1
    assert "has no conditional writes" in caplog.text
    assert "one may lose" in caplog.text
    assert store.put_if_absent("packs/a", b"1") is True
    assert store.put_if_absent("packs/a", b"2") is False
    assert store.get("packs/a") == b"1"
    version = store.replace("refs/a/b", b"1", version=None)
    with pytest.raises(ConflictError):
        store.replace("refs/a/b", b"2", version=None)
    store.replace("refs/a/b", b"2", version=version)
    with pytest.raises(ConflictError):
        store.replace("refs/a/b", b"3", version=version)
    assert len(caplog.messages) == 1, "it is said once"
    store.close()


def test_a_store_opened_to_be_read_is_asked_before_its_first_write(fake: FakeS3, faked: S3Store, caplog: pytest.LogCaptureFixture) -> None:
    fake.conditional = False
    store = open_store("s3://bucket/p")
    assert not any(request.startswith("PUT") for request in fake.asked())
    assert caplog.messages == []
    store.replace("refs/a/b", b"1", version=None)
    assert "has no conditional writes" in caplog.text
    store.close()


def test_who_may_not_write_is_told_what_was_denied(fake: FakeS3, faked: S3Store) -> None:
    fake.before = on("PUT", error(403, "AccessDenied"))
    with pytest.raises(AccessError, match="denies PutObject of packs/a"):
        faked.put_if_absent("packs/a", b"x")
    fake.before = on("DELETE", error(403, "AccessDenied"))
    faked.put_if_absent("packs/a", b"x")
    with pytest.raises(AccessError, match="denies DeleteObject of packs/a"):
        faked.delete("packs/a")
    fake.before = on("GET", error(403, "AccessDenied"))
    with pytest.raises(AccessError, match="denies ListObjectsV2 of s3://bucket/p"):
        list(faked.list(""))
    with pytest.raises(NotFoundError):
        faked.head("packs/none")
