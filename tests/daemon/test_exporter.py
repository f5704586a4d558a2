"""Prometheus asks the daemon itself: what a client of any kind gets, and what none can do to the mounts."""

import socket
import stat
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from imagefs.config import load_config
from imagefs.daemon import client, exporter
from imagefs.daemon.exporter import CONNECTIONS_MAX, REQUEST_MAX, Exporter
from imagefs.daemon.instance import METRICS_NAME, Role
from imagefs.daemon.metrics import METRICS
from imagefs.errors import UsageError
from tests.cache.test_fetcher import Log
from tests.daemon.place import Place
from tests.system.world import wait_until

ASK = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(path: Path, request: bytes = ASK) -> tuple[int, dict[str, str], str]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(request)
        return parsed(b"".join(iter(lambda: connection.recv(65536), b"")))


def parsed(answer: bytes) -> tuple[int, dict[str, str], str]:
    head, _, body = answer.decode().partition("\r\n\r\n")
    status, *headers = head.split("\r\n")
    return int(status.split()[1]), dict(line.split(": ", 1) for line in headers), body


@asynccontextmanager
async def serving(directory: Path, listen: str | None = None, text: str = "a 1\n") -> AsyncIterator[Log]:
    log = Log()

    def render() -> str:
        if text == "bug":
            raise ZeroDivisionError
        return text

    async with trio.open_nursery() as nursery:
        nursery.start_soon(Exporter(directory, listen, render, log).run)  # type: ignore[arg-type]
        await until((directory / METRICS_NAME).exists, "the socket")
        yield log
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object], what: str) -> None:
    await trio.to_thread.run_sync(wait_until, lambda: bool(condition()), what)


async def asked(directory: Path, request: bytes = ASK) -> tuple[int, dict[str, str], str]:
    with trio.fail_after(10):
        return await trio.to_thread.run_sync(ask, directory / METRICS_NAME, request)


@pytest.mark.parametrize(
    "request_, status",
    [
        (ASK, 200),
        (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", 200),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /metricsx HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"GET /metrics HTTP/2\r\n\r\n", 400),
        (b"GET /metrics\r\n\r\n", 400),
        (b"\xff\x00\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * REQUEST_MAX, 431),
    ],
)
@pytest.mark.trio
async def test_answers(tmp_path: Path, request_: bytes, status: int) -> None:
    async with serving(tmp_path):
        found, headers, body = await asked(tmp_path, request_)
    assert found == status
    assert headers["Connection"] == "close"
    if request_.startswith(b"HEAD"):
        assert (headers["Content-Length"], body) == ("4", "")
    else:
        assert len(body.encode()) == int(headers["Content-Length"])
    if status == 200:
        assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"


@pytest.mark.trio
async def test_a_bug_in_a_figure_is_an_answer(tmp_path: Path) -> None:
    async with serving(tmp_path, text="bug") as log:
        assert (await asked(tmp_path))[0] == 500
        assert (await asked(tmp_path))[0] == 500
    assert [event["event"] for event in log.events] == ["metrics_bug"] * 2


@pytest.mark.trio
async def test_who_says_nothing_is_sent_away_and_keeps_nobody_waiting_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "REQUEST_SECONDS", 0.5)
    async with serving(tmp_path):
        silent = [socket.socket(socket.AF_UNIX) for _ in range(CONNECTIONS_MAX)]
        try:
            for connection in silent:
                connection.settimeout(10)
                connection.connect(str(tmp_path / METRICS_NAME))
            begin = time.monotonic()
            # All places are taken: this one waits in the queue.
            assert (await asked(tmp_path))[0] == 200
            assert 0.3 < time.monotonic() - begin < 5
            assert parsed(await trio.to_thread.run_sync(silent[0].recv, 65536))[0] == 408
        finally:
            for connection in silent:
                connection.close()


@pytest.mark.trio
async def test_an_address_that_is_taken_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "_AGAIN_SECONDS", 0.02)
    bind, tried = exporter._bind_tcp, []

    def trying(listen: str) -> socket.socket:
        tried.append(listen)
        return bind(listen)

    monkeypatch.setattr(exporter, "_bind_tcp", trying)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        async with serving(tmp_path, f"127.0.0.1:{port}") as log:
            await until(lambda: log.events, "the other to be met")
            assert (await asked(tmp_path))[0] == 200
            await until(lambda: len(tried) > 3, "more attempts")
            other.close()
            await until(lambda: over_tcp(port).startswith("HTTP/1.1 200 OK"), "it to listen")
            assert [event["event"] for event in log.events] == ["metrics_unavailable"]


@pytest.mark.parametrize("text", ["", "9464", "0.0.0.0:9464", "10.0.0.1:9464", "[::]:9464", "localhost:9464", "127.0.0.1:0", "127.0.0.1:x"])
def test_what_is_not_on_the_loopback_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--metrics-listen"):
        load_config({"metrics_listen": text}, {})


def test_the_loopback_is_taken(tmp_path: Path) -> None:
    assert load_config({}, {"IMAGEFS_METRICS_LISTEN": "127.1.2.3:9464"}).metrics_listen == "127.1.2.3:9464"
    assert load_config({"metrics_listen": "[::1]:9464"}, {}).metrics_listen == "[::1]:9464"
    config = load_config({}, {})
    assert config.metrics_listen is None
    assert "metrics_listen" not in Role(config).told()["config"], "a worker of before this version would end at it"


def test_a_setting_of_another_version_is_passed_over(tmp_path: Path) -> None:
    told = Role(load_config({"metrics_listen": "127.0.0.1:9"}, {})).told()
    told["config"]["of_tomorrow"] = 1
    assert Role.of(told).config.metrics_listen == "127.0.0.1:9"


def test_a_daemon_is_asked_on_both_and_so_is_the_worker_after_it(place: Place) -> None:
    port = free_port()
    place.metrics_listen = f"127.0.0.1:{port}"
    maker = place.maker()
    maker.file("file", b"content" * 1000)
    maker.publish()
    point = place.mountpoint()
    client.mount(place.config, mountpoint=point, ref="test")
    assert (point / "file").read_bytes() == b"content" * 1000
    path = place.config.instance_dir() / METRICS_NAME
    wait_until(path.exists, "the socket")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    status, headers, text = ask(path)
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    found = {family.name + ("_total" if family.type == "counter" else ""): family for family in text_string_to_metric_families(text)}
    assert list(found) == [metric.name for metric in METRICS]
    tiers = {sample.labels["tier"]: sample.value for sample in found["imagefs_read_bytes_total"].samples}
    assert tiers["store"] == 7000
    assert found["imagefs_mounts"].samples[0].value == 1
    # The server closes first: its port is not free at once.
    assert "imagefs_worker_restarts_total 0.0\n" in over_tcp(port)
    client.reload(place.config)
    restarts = "imagefs_worker_restarts_total 1.0\n"
    wait_until(lambda: restarts in over_tcp(port), "the next worker to answer over TCP")
    wait_until(lambda: restarts in ask(path)[2], "and on the socket")
    client.umount(place.config, point)
    assert not path.exists()


def over_tcp(port: int) -> str:
    try:
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            connection.sendall(ASK)
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    except ConnectionError:
        return ""
