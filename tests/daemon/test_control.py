"""The control socket against clients that misbehave."""

import contextlib
import json
import os
import socket
import stat

import pytest

from imagefs.daemon import client
from imagefs.daemon.asking import connect
from imagefs.daemon.requests import LINE_MAX
from tests.daemon.place import Place


@pytest.fixture
def running(place: Place) -> Place:
    """A place with a daemon."""
    client.ensure_daemon(place.config)
    return place


def _ask(place: Place, data: bytes) -> dict[str, object]:
    with contextlib.closing(connect(place.config.instance_dir())) as connection:
        connection.sendall(data)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    found: dict[str, object] = json.loads(answer)
    return found


def test_the_socket_is_this_users_alone(running: Place) -> None:
    directory = running.config.instance_dir()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "control.sock").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"op": "fly"}',
        b'{"op": "ping", "more": 1}',
        b'{"op": "mount"}',
        b'{"op": "umount", "mountpoint": 3}',
        b"\xff\xfe",
        b"[" * 5000,
    ],
)
def test_what_is_no_request_is_a_usage_error(running: Place, line: bytes) -> None:
    answer = _ask(running, line + b"\n")
    assert answer["ok"] is False
    assert answer["error"]["type"] == "UsageError"  # type: ignore[index]
    assert client.running(running.config)


def test_a_request_without_end_is_cut_off(running: Place) -> None:
    # It may be closed while we are still sending.
    with contextlib.suppress(ConnectionError):
        assert _ask(running, b"x" * (LINE_MAX * 2))["ok"] is False
    assert client.running(running.config)


def test_clients_that_leave_do_no_harm(running: Place) -> None:
    for data in (b"", b'{"op": "st', b'{"op": "stats"}\n'):
        for _ in range(20):
            connection = connect(running.config.instance_dir())
            connection.sendall(data)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()
    assert client.running(running.config)
    assert '"request_bug"' not in running.log()


def test_a_long_runtime_path_is_no_problem(place: Place) -> None:
    deep = place.root / ("d" * 100) / ("e" * 100)
    config = place.config.__class__(place.config.store, place.config.cache, deep)
    client.ensure_daemon(config)
    assert client.status(config)["pid"] != os.getpid()
    client.stop(config)


def test_a_wrong_namespace_is_refused(running: Place) -> None:
    answer = _ask(running, b'{"op": "mount", "mountpoint": "/mnt", "ref": "a", "namespace": 1}\n')
    assert answer["error"]["type"] == "MountError"  # type: ignore[index]
    assert "namespace" in answer["error"]["message"]  # type: ignore[index]
