"""What passes unharmed, what is counted, and how the proxy ends."""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults import Exchange, Fault, FaultProxy, moved_twice
from tests.faults.bodies import Plan
from tests.faults.heads import Sized, Source
from tests.faults.ledger import Ledger
from tests.faults.link import Link
from tests.faults.origin import Origin, content
from tests.faults.raw import Client, refused
from tests.faults.relay import Relay
from tests.faults.script import Script
from tests.system.world import wait_until

SIZE = 3_000_000
OBJECT = f"bucket/object-{SIZE}"
DATA = content(SIZE)


def ended(pid: int) -> bool:
    """Whether a process is gone, or only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


class OneAnswer:
    """A server that answers each connection once, with the same bytes, and closes it. ``heads`` are the requests as they came."""

    def __init__(self, answer: bytes, until: bytes = b"\r\n\r\n") -> None:
        self.heads: list[bytes] = []
        self.closed = 0
        self._answer, self._until = answer, until
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                head = b""
                while not head.endswith(self._until):
                    head += client.recv(1000)
                self.heads.append(head)
                client.sendall(self._answer)
            self.closed += 1

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._listener.close()


def test_heads_reach_the_server_as_they_were_written() -> None:
    server = OneAnswer(b"HTTP/1.0 200 fine\r\nContent-Length: 2\r\nConnection: close\r\nX-Odd:  a b \r\n\r\nok")
    head = b"GET /a%20b//c?x=%2F&y HTTP/1.1\r\nhOST: Bucket.Example:99\r\nx-Amz-Date:1\r\nAuthorization:  sig, SignedHeaders=host\r\n\r\n"
    with FaultProxy(server.address) as proxy, Client(proxy.port) as client:
        for _ in range(3):
            client.sock.sendall(head)
            reply = client.reply()
            assert (reply.status, reply.body, reply.headers) == (200, b"ok", {"content-length": "2", "x-odd": "a b"})
        assert (proxy.stats().connections, proxy.stats().upstream_errors) == (1, 0)
        assert {(request.key, request.query) for request in proxy.requests()} == {("a b//c", "x=%2F&y")}
    assert server.heads == [head] * 3
    server.close()


def test_an_upload_is_not_lost_to_a_connection_that_the_server_closed_meanwhile() -> None:
    server = OneAnswer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", until=b"the body")
    with FaultProxy(server.address) as proxy, Client(proxy.port) as client:
        for turn in range(3):
            assert client.ask("x", "PUT", b"the body").status == 200
            wait_until(lambda turn=turn: server.closed > turn, "the server to close")  # type: ignore[misc] # a default in a lambda
        assert (proxy.stats().connections, proxy.stats().upstream_errors) == (1, 0)
    server.close()


def test_a_request_that_names_the_host_in_its_target(proxy: FaultProxy, client: Client) -> None:
    client.sock.sendall(b"GET http://b.s3.test/bucket/object-10?x HTTP/1.1\r\nHost: b.s3.test\r\n\r\n")
    assert (client.reply().status, proxy.requests()[0].key, proxy.requests()[0].query) == (200, "bucket/object-10", "x")


def test_a_body_that_ends_with_its_connection() -> None:
    server = OneAnswer(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
    with FaultProxy(server.address) as proxy, Client(proxy.port) as client:
        client.send("x")
        while not (end := client.more()):
            pass
        assert end == "fin"
        assert bytes(client._came).endswith(b"\r\nConnection: close\r\n\r\nuntil the end")
    server.close()


def test_bodies_pass_both_ways(proxy: FaultProxy, client: Client) -> None:
    assert client.get(OBJECT).body == DATA
    assert client.get(OBJECT, 1_000_000, 1_000_001).body == DATA[1_000_000:1_000_001]
    assert client.get(f"chunked/object-{SIZE}").body == DATA
    assert client.ask(OBJECT, "HEAD").headers["content-length"] == str(SIZE)
    assert client.ask("bucket/put", "PUT", DATA).headers["etag"] == "stored"
    assert client.get("bucket/put").body == DATA
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (DATA[:10], DATA[10:100_000])) + b"0\r\n\r\n"
    assert client.ask("bucket/parts", "PUT", chunks, Transfer_Encoding="chunked").status == 200
    assert client.get("bucket/parts").body == DATA[:100_000]
    assert (proxy.stats().connections, proxy.stats().in_flight) == (1, 0)
    assert len({client.get(OBJECT, 0, 1).headers["x-peer"] for _ in range(3)}) == 1  # the server's connection is kept too
    assert [request.received for request in proxy.requests() if request.method == "PUT"] == [SIZE, 100_000]


def test_chunked_answers_can_break_too(proxy: FaultProxy, client: Client) -> None:
    proxy.fault(Fault(kind="reset", at=2500))
    reply = client.get("chunked/object-10000")
    assert (reply.status, reply.end, reply.body) == (200, "reset", DATA[:2500])
    assert proxy.requests()[0].sent == 2500


def test_a_client_that_asks_before_it_uploads(proxy: FaultProxy, client: Client) -> None:
    client.send("bucket/asked", "PUT", Content_Length="5", Expect="100-continue")
    assert client.reply().status == 100
    client.sock.sendall(b"bytes")
    assert client.reply().status == 200
    assert client.get("bucket/asked").body == b"bytes"
    proxy.fault(Fault(kind="answer", status=503))
    reply = client.ask("bucket/asked", "PUT", Content_Length="5", Expect="100-continue")
    assert (reply.status, reply.headers["connection"]) == (503, "close")


def test_requests_are_counted_exactly(proxy: FaultProxy) -> None:
    ranges = [(f"bucket/part{number % 3}-{SIZE}", 1000 * number, 1000 * number + 50_000 * number + 1) for number in range(40)]

    def get(ask: tuple[str, int, int]) -> bytes:
        with Client(proxy.port) as client:
            return client.get(*ask).body

    with ThreadPoolExecutor(4) as pool:
        assert [len(body) for body in pool.map(get, ranges)] == [end - start for _, start, end in ranges]
    stats, requests = proxy.stats(), proxy.requests()
    assert sorted((request.key, request.start, request.end) for request in requests) == sorted(ranges)
    assert all(request.sent == (request.end or 0) - (request.start or 0) and request.status == 206 for request in requests)
    assert (stats.requests, stats.bytes, stats.connections) == (40, sum(end - start for _, start, end in ranges), 40)
    assert stats.bytes_by_key["bucket/part1-3000000"] == sum(end - start for key, start, end in ranges if "part1" in key)
    assert all(request.begun <= (request.answered or 0) <= (request.ended or 0) for request in requests)
    wait_until(lambda: proxy.stats().open == 0, "all connections to be seen closed")
    proxy.forget()
    assert (proxy.stats().requests, proxy.stats().bytes, proxy.stats().connections, proxy.requests()) == (0, 0, 0, [])


def test_bytes_are_counted_before_they_arrive_and_taken_back_if_they_do_not() -> None:
    here, there = socket.socketpair()
    feed, origin = socket.socketpair()
    with here, there, feed, origin, ThreadPoolExecutor(2) as pool:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
        here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 1, 0))
        pool.submit(origin.sendall, DATA)
        relay = Relay(here, ("", 0), Link(), Script(), Ledger())
        entry = Exchange(1, "GET", OBJECT, "", 0, SIZE, 0.0)
        carried = pool.submit(relay._carry, Sized(Source(feed), SIZE), Plan(SIZE), entry, chunked=False)
        came = len(there.recv(1000))
        assert entry.sent > came
        with pytest.raises(BlockingIOError):
            carried.result(10)
        feed.shutdown(socket.SHUT_RDWR)
        there.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                came += len(there.recv(1 << 20))
        assert entry.sent == came


def test_most_in_flight_is_exact(proxy: FaultProxy) -> None:
    """As many as were held at once, and one where each began after another was answered, whatever its connection."""
    number = proxy.fault(Fault(kind="wait"))
    clients = [Client(proxy.port) for _ in range(5)]
    for client in clients:
        client.send(OBJECT, Range="bytes=0-9")
    wait_until(lambda: proxy.stats().in_flight == 5, "five requests in flight")
    proxy.lift(number)
    assert [client.reply().body for client in clients] == [DATA[:10]] * 5
    assert proxy.stats().most_in_flight == 5
    proxy.forget()
    for turn in range(400):
        assert clients[turn % 5].get(OBJECT, 0, 100_000 * (turn % 2)).end == "whole"
    assert proxy.stats().most_in_flight == 1
    for client in clients:
        client.sock.close()


def test_bytes_that_moved_twice_are_found(proxy: FaultProxy, client: Client) -> None:
    for start, end in ((0, 100), (100, 200), (300, 400)):
        client.get(OBJECT, start, end)
    client.ask(OBJECT, "HEAD")
    client.get(f"bucket/other-{SIZE}", 0, 400)
    assert moved_twice(proxy.requests()) == []
    with proxy.during(Fault(kind="close", at=20)):
        assert client.get(OBJECT, 190, 310).end == "fin"
    assert moved_twice(proxy.requests()) == [(OBJECT, 190, 200)]
    inside = [Exchange(1, "GET", OBJECT, "", start, start + 10, 0.0, status=206, sent=10) for start in (320, 350)]
    assert moved_twice([*proxy.requests(), *inside]) == [(OBJECT, 190, 200), (OBJECT, 320, 330), (OBJECT, 350, 360)]


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with FaultProxy(f"127.0.0.1:{unused.getsockname()[1]}") as proxy, Client(proxy.port) as client:
            assert client.get(OBJECT).status == 502
            assert proxy.stats().upstream_errors == 1


def test_what_makes_no_sense_is_refused(proxy: FaultProxy) -> None:
    for shape in ({"bandwidth": 0}, {"delay": -1.0}):
        with pytest.raises(ValueError, match=r"0 bytes|negative"):
            proxy.set(**shape)
    with pytest.raises(TypeError, match="bandwith"):
        proxy.set(bandwith=1.0)
    with pytest.raises(ValueError, match="no such fault"):
        Fault(kind="typo")  # type: ignore[arg-type] # what is tested


def test_it_ends_with_its_context_whatever_is_open(origin: Origin) -> None:
    with FaultProxy(origin.address) as proxy, Client(proxy.port) as client:
        proxy.fault(Fault(kind="stall", at=10))
        client.send(OBJECT)
        assert client.reply(patience=0.1).end == "silence"
        pid, port = proxy.pid, proxy.port
    assert ended(pid)
    assert refused(port)


@pytest.mark.parametrize("fork", [False, True], ids=["alone", "its-pipe-stays-open"])
def test_it_ends_when_the_test_is_killed(origin: Origin, fork: bool) -> None:
    """Also when another process still holds the pipe that it takes commands from."""
    script = f"""
import os, time
from tests.faults import FaultProxy
proxy = FaultProxy({origin.address!r}).__enter__()
if {fork} and not os.fork():
    print(os.getpid(), flush=True)
    time.sleep(60)
    os._exit(0)
time.sleep(0 if not {fork} else 0.2)
print(proxy.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], text=True) as test:
        assert test.stdout
        pids = [int(test.stdout.readline()) for _ in range(1 + fork)]
        test.kill()
        wait_until(lambda: ended(pids[-1]), "the proxy to end")
        if fork:
            os.kill(pids[0], signal.SIGKILL)


def test_a_proxy_that_failed_fails_the_test(origin: Origin) -> None:
    proxy = FaultProxy(origin.address)
    proxy.__enter__()
    os.kill(proxy.pid, signal.SIGKILL)
    wait_until(lambda: ended(proxy.pid), "the proxy to be gone")
    with pytest.raises(RuntimeError, match="has failed"):
        proxy.stats()
    with pytest.raises(RuntimeError, match="ended with"):
        proxy.__exit__(None)
