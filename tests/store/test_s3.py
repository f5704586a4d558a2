"""The S3 store on a real server: the common contract, opening, parts, conditional writes and listings."""

import itertools
import random
import threading

import boto3
import pytest

from imagefs.config import load_config
from imagefs.errors import ConflictError, NotFoundError, StoreError, UnsupportedError, UsageError
from imagefs.store.base import MARKER_KEY, ByteRange, KeyInfo, ObjectStore
from imagefs.store.opening import open_store
from imagefs.store.s3 import S3Store, _in_order
from imagefs.store.s3_upload import MULTIPART_FROM, PART
from imagefs.store.s3_url import parse_s3_url
from tests.store.conformance import StoreConformance


class TestS3Store(StoreConformance):
    @pytest.fixture
    def store(self, s3: S3Store) -> ObjectStore:
        return s3


def _uploads(url: str) -> list[str]:
    bucket = url.split("/")[2]
    client = boto3.client("s3", region_name="us-east-1")
    found = [upload["Key"] for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])]
    client.close()
    return found


# -- opening ------------------------------------------------------------------------------------------------------------------------


def test_a_store_is_opened_again_by_its_url(s3: S3Store, s3_url: str) -> None:
    s3.put_if_absent("packs/a", b"x")
    assert s3.url == s3_url
    again = open_store(f"{s3_url}//")
    assert (again.url, again.get("packs/a")) == (s3_url, b"x")
    again.close()


@pytest.mark.parametrize("make", ["missing", "empty", "other", "folder"])
def test_what_is_no_store_is_not_opened(s3_url: str, make: str) -> None:
    bucket, _, prefix = s3_url.removeprefix("s3://").partition("/")
    url = f"s3://none-{random.getrandbits(40)}/x" if make == "missing" else s3_url
    client = boto3.client("s3", region_name="us-east-1")
    if make != "missing":
        open_store(f"s3://{bucket}/keeper", create=True).close()
    if make == "other":
        client.put_object(Bucket=bucket, Key=f"{prefix}/something", Body=b"x")
    if make == "folder":
        client.put_object(Bucket=bucket, Key=f"{prefix}/", Body=b"")
    with pytest.raises(StoreError, match=r"bucket|empty|not a store") as caught:
        open_store(url)
    assert caught.value.hint
    if make == "other":
        with pytest.raises(StoreError, match="not a store"):
            open_store(url, create=True)
    else:
        open_store(url, create=True).close()
        open_store(url).close()
    client.close()


@pytest.mark.parametrize(("marker", "expected"), [(b'{"format":2}', UnsupportedError), (b"{", StoreError), (b"x" * 5000, StoreError)])
def test_a_marker_that_is_not_ours(s3: S3Store, s3_url: str, marker: bytes, expected: type[Exception]) -> None:
    version = s3.get_versioned(MARKER_KEY)[1]
    s3.replace(MARKER_KEY, marker, version=version)
    with pytest.raises(expected):
        open_store(s3_url)


@pytest.mark.parametrize(
    "url",
    [
        *("s3:", "s3:/bucket", "s3:bucket/x", "S3:/bucket", "s3://", "s3:///x"),
        *("s3://Bucket", "s3://b", "s3://a..b", "s3://1.2.3.4", "s3://a_b", "s3://key:secret@bucket/x", "s3://host:9000/bucket"),
        *("s3://bucket/a b", "s3://bucket/../x", "s3://bucket//x", "s3://bucket/x?y=1", "s3://bucket/é", "s3://bucket/%41"),
        f"s3://bucket/{'x' * 600}",
    ],
)
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(url, create=True)
    assert caught.value.hint or "prefix is longer" in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "url"), [("S3://bucket/", "s3://bucket"), ("s3://bucket/a/b//", "s3://bucket/a/b"), ("s3://b.c-d/x", "s3://b.c-d/x")]
)
def test_one_place_has_one_spelling(text: str, url: str) -> None:
    assert load_config({"store": text}, {}).store == url
    assert parse_s3_url(text).url == url


def test_the_configuration_says_where_a_wrong_url_came_from() -> None:
    with pytest.raises(UsageError, match=r"^IMAGEFS_STORE: s3:/bucket"):
        load_config({}, {"IMAGEFS_STORE": "s3:/bucket"})
    assert load_config({"store": "/x/s3:/bucket"}, {}).store == "file:///x/s3%3A/bucket"


def test_two_may_make_a_store_at_once(s3_url: str) -> None:
    start = threading.Barrier(4)
    opened: list[ObjectStore] = []

    def make() -> None:
        start.wait(30)
        opened.append(open_store(s3_url, create=True))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(opened) == 4
    for store in opened:
        store.close()


# -- large data ---------------------------------------------------------------------------------------------------------------------


def test_what_is_large_goes_up_in_parts(s3: S3Store, s3_url: str) -> None:
    data = random.Random(1).randbytes(MULTIPART_FROM + PART // 2 + 1)
    view = memoryview(data)
    cuts = [0, 1, 1, PART - 1, PART + 5, 2 * PART, len(data)]
    buffers = [view[a:b] for a, b in itertools.pairwise(cuts)]
    assert s3.put_if_absent("packs/large", buffers) is True
    assert s3.get("packs/large") == data
    assert s3.get("packs/large", ByteRange(PART - 3, PART + 3)) == data[PART - 3 : PART + 3]
    assert s3.put_if_absent("packs/large", buffers) is False
    assert _uploads(s3_url) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_upload_that_is_given_up_leaves_nothing(
    s3: S3Store, s3_url: str, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    client = s3._connection.client
    send = client.upload_part
    seen: list[list[str]] = []

    def fail(**request: object) -> object:
        if request["PartNumber"] == 2:
            seen.append(_uploads(s3_url))
            raise error
        return send(**request)  # type: ignore[arg-type]

    monkeypatch.setattr(client, "upload_part", fail)
    with pytest.raises(error):
        s3.put_if_absent("packs/large", bytes(MULTIPART_FROM + 1))
    assert len(seen[0]) == 1, "there was something to abort"
    assert _uploads(s3_url) == []
    with pytest.raises(NotFoundError):
        s3.head("packs/large")


def test_of_two_large_writers_one_wins(s3: S3Store, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have sent everything before either completes; then one after the other, as this server looks first and completes then."""
    start, sent, turn = threading.Barrier(2), threading.Barrier(2), threading.Lock()
    won: list[bytes] = []
    ready: set[int] = set()
    client = s3._connection.client
    complete = client.complete_multipart_upload

    def complete_in_turn(**request: object) -> object:
        if threading.get_ident() not in ready:  # or it is asked once more
            ready.add(threading.get_ident())
            sent.wait(30)
        with turn:
            return complete(**request)  # type: ignore[arg-type]

    monkeypatch.setattr(client, "complete_multipart_upload", complete_in_turn)

    def write(data: bytes) -> None:
        start.wait(30)
        if s3.put_if_absent("packs/large", data):
            won.append(data)

    threads = [threading.Thread(target=write, args=(bytes([n]) * (MULTIPART_FROM + 1),)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(won) == 1
    assert s3.get("packs/large") == won[0]
    assert _uploads(s3_url) == []


# -- listings -----------------------------------------------------------------------------------------------------------------------


def test_a_listing_of_several_pages(s3: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"refs/{name}/{n}" for name in ("a", "a-b", "a.b", "a/b", "ab", "b") for n in range(4)]
    for key in keys:
        s3.put_if_absent(key, b"x")
    client = s3._connection.client
    page = client.list_objects_v2
    pages: list[object] = []

    def short(**request: object) -> object:
        pages.append(request)
        return page(MaxKeys=5, **request)  # type: ignore[arg-type]

    monkeypatch.setattr(client, "list_objects_v2", short)
    assert [info.key for info in s3.list("refs/")] == sorted(keys)
    assert len(pages) == 5


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_folders_becomes_bytewise(seed: int) -> None:
    chance = random.Random(seed)
    names = ["a", "a-", "a.b", "a+", "ab", "b", "B", "0", "a-b", "aa"]
    keys = {"/".join(chance.choice(names) for _ in range(chance.randint(1, 3))) for _ in range(60)}
    for order in (str, lambda key: key.split("/")):
        listed = [KeyInfo(f"refs/{key}", 1, 0.0) for key in sorted(keys, key=order)]
        assert [info.key for info in _in_order(listed, "refs/")] == sorted(f"refs/{key}" for key in keys)


def test_a_long_flat_listing_is_not_held() -> None:
    drawn: list[int] = []

    def endless() -> object:
        for n in range(10**9):
            drawn.append(n)
            yield KeyInfo(f"packs/{n:09}", 1, 0.0)

    listing = _in_order(endless(), "packs/")  # type: ignore[arg-type]
    assert next(listing).key == "packs/000000000"
    assert len(drawn) == 1


def test_a_ref_that_was_deleted_is_not_replaced(s3: S3Store) -> None:
    version = s3.replace("refs/a/b", b"1", version=None)
    assert s3.delete("refs/a/b")
    with pytest.raises(ConflictError):
        s3.replace("refs/a/b", b"2", version=version)
