"""The server of images and files answers as a registry and as a web server, and gives nothing else away."""

import hashlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.starts.server import find, serve, span

DATA = bytes(range(256)) * 40


@pytest.fixture
def top(tmp_path: Path) -> Path:
    layout = tmp_path / "top" / "layouts" / "image"
    (layout / "blobs" / "sha256").mkdir(parents=True)
    manifest = b'{"schemaVersion": 2}'
    digest = hashlib.sha256(manifest).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(manifest)
    entry = {"digest": f"sha256:{digest}", "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": len(manifest)}
    (layout / "index.json").write_text(json.dumps({"manifests": [entry | {"annotations": {"org.opencontainers.image.ref.name": "1"}}]}))
    files = tmp_path / "top" / "files" / "one folder"
    files.mkdir(parents=True)
    (files / "data & more").write_bytes(DATA)
    (tmp_path / "secret").write_text("secret")
    return tmp_path / "top"


@pytest.fixture
def connection(top: Path) -> Iterator[http.client.HTTPConnection]:
    server, thread = serve(top)
    client = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    yield client
    client.close()
    server.shutdown()
    server.server_close()
    thread.join(20)


def ask(connection: http.client.HTTPConnection, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def test_an_image_by_tag_and_by_digest(connection: http.client.HTTPConnection) -> None:
    assert ask(connection, "/v2/")[0] == 200
    status, headers, body = ask(connection, "/v2/image/manifests/1")
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    assert (status, headers["docker-content-digest"]) == (200, digest)
    assert headers["content-type"] == "application/vnd.oci.image.manifest.v1+json"
    assert ask(connection, f"/v2/image/manifests/{digest}")[2] == ask(connection, f"/v2/image/blobs/{digest}")[2] == body
    assert ask(connection, "/v2/image/manifests/1", "HEAD")[1:] == (headers | {"date": ask(connection, "/v2/")[1]["date"]}, b"")


def test_a_file_whole_and_in_part_on_one_connection(connection: http.client.HTTPConnection) -> None:
    path = "/files/one%20folder/data%20%26%20more"
    assert ask(connection, path)[2] == DATA
    status, headers, body = ask(connection, path, Range="bytes=10-19")
    assert (status, body, headers["content-range"]) == (206, DATA[10:20], f"bytes 10-19/{len(DATA)}")
    assert ask(connection, path, Range="bytes=-5")[2] == DATA[-5:]
    assert ask(connection, path, Range=f"bytes={len(DATA)}-")[0] == 416
    assert ask(connection, path, "HEAD")[1]["content-length"] == str(len(DATA))


def test_a_folder_is_a_list_of_links(connection: http.client.HTTPConnection) -> None:
    assert b'<a href="one%20folder/">' in ask(connection, "/files/")[2]
    assert b'<a href="data%20%26%20more">data &amp; more</a>' in ask(connection, "/files/one%20folder/")[2]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/files/../../secret",
        "/files/nothing",
        "/layouts/image/index.json",
        "/v2/../../secret",
        "/v2/none/manifests/1",
        "/v2/image/manifests/2",
        "/v2/image/blobs/../../index.json",
        f"/v2/image/blobs/sha256:{'0' * 64}",
    ],
)
def test_nothing_else_is_there(top: Path, path: str) -> None:
    assert find(top, path) is None


def test_a_link_out_of_the_folder_is_not_followed(top: Path) -> None:
    (top / "files" / "link").symlink_to(top.parent / "secret")
    assert find(top, "/files/link") is None


@given(size=st.integers(0, 50), start=st.integers(0, 60), end=st.integers(0, 60))
def test_a_span_is_what_a_slice_is(size: int, start: int, end: int) -> None:
    data = bytes(range(size))
    for asked, part in ((f"bytes={start}-{end}", data[start : end + 1]), (f"bytes={start}-", data[start:])):
        found = span(asked, size)
        assert (data[found[0] : found[1]] if found else b"") == part


@pytest.mark.parametrize("asked", ["bytes=-", "bytes=1-2,4-5", "items=1-2", "bytes=a-b", ""])
def test_what_is_no_single_range_is_refused(asked: str) -> None:
    assert span(asked, 100) is None
