"""Each fault, as a client sees it."""

import time

import pytest

from tests.faults import Fault, FaultProxy
from tests.faults.origin import content
from tests.faults.raw import Client, refused
from tests.system.world import wait_until

SIZE = 3_000_000
OBJECT = f"bucket/object-{SIZE}"
DATA = content(SIZE)


def wrong(got: bytes, right: bytes) -> list[int]:
    """Return the offsets of all bytes that differ."""
    assert len(got) == len(right)
    return [at for at, (one, other) in enumerate(zip(got, right, strict=True)) if one != other]


@pytest.mark.parametrize("kind, end", [("reset", "reset"), ("close", "fin")])
@pytest.mark.parametrize("at", [0, 1, 1_234_567, SIZE - 1])
def test_connection_ends_after_exactly_so_many_bytes(proxy: FaultProxy, client: Client, kind: str, end: str, at: int) -> None:
    proxy.fault(Fault(kind=kind, at=at, count=1))  # type: ignore[arg-type] # the parameter is one of the kinds
    reply = client.get(OBJECT)
    assert (reply.status, reply.headers["content-length"], reply.end) == (200, str(SIZE), end)
    assert reply.body == DATA[:at]
    assert [request.sent for request in proxy.requests()] == [at]
    with Client(proxy.port) as again:
        assert again.get(OBJECT).body == DATA


def test_a_reset_of_a_ranged_answer_leaves_what_came_before_readable(proxy: FaultProxy, client: Client) -> None:
    """The client reads only after the reset arrived."""
    proxy.fault(Fault(kind="reset", at=100_000))
    client.send(OBJECT, Range="bytes=500000-999999")
    wait_until(lambda: proxy.stats().open == 0, "the proxy to reset the connection")
    reply = client.reply()
    assert (reply.status, reply.end, reply.body) == (206, "reset", DATA[500_000:600_000])


def test_a_reset_waits_for_a_client_that_reads_late(proxy: FaultProxy) -> None:
    """What is still in the proxy's kernel when it resets would be lost."""
    proxy.fault(Fault(kind="reset", at=1_000_000))
    with Client(proxy.port, receive_buffer=20_000) as client:
        client.send(OBJECT)
        wait_until(lambda: [request.sent for request in proxy.requests()] == [1_000_000], "the last byte to be handed to the kernel")
        reply = client.reply()
    assert (reply.end, len(reply.body), reply.body == DATA[:1_000_000]) == ("reset", 1_000_000, True)


def test_stall_stops_mid_body_until_it_is_lifted(proxy: FaultProxy, client: Client) -> None:
    number = proxy.fault(Fault(kind="stall", at=4321, count=1))
    client.send(OBJECT)
    stalled = client.reply(patience=0.3)
    assert (stalled.end, stalled.body) == ("silence", DATA[:4321])
    assert proxy.stats().in_flight == 1
    proxy.lift(number)
    assert client.reply().body == DATA
    assert client.get(OBJECT).body == DATA


def test_stall_for_a_time(proxy: FaultProxy, client: Client) -> None:
    proxy.fault(Fault(kind="stall", at=4321, seconds=0.25, count=1))
    begun = time.monotonic()
    assert client.get(OBJECT).body == DATA
    assert 0.25 <= time.monotonic() - begun < 1.0


def test_a_stalled_connection_ends_when_its_client_leaves(proxy: FaultProxy) -> None:
    proxy.fault(Fault(kind="stall", at=10))
    with Client(proxy.port) as leaving:
        leaving.send(OBJECT)
        assert leaving.reply(patience=0.1).body == DATA[:10]
    wait_until(lambda: proxy.stats().open == 0, "the connection to end")
    assert (proxy.stats().in_flight, proxy.requests()[0].sent) == (0, 10)


def test_wait_holds_the_first_byte_back(proxy: FaultProxy, client: Client) -> None:
    proxy.fault(Fault(kind="wait", seconds=0.25, count=1))
    begun = time.monotonic()
    assert client.get(OBJECT, 0, 10).body == DATA[:10]
    assert 0.25 <= time.monotonic() - begun < 1.0
    number = proxy.fault(Fault(kind="wait"))
    client.send(OBJECT)
    assert client.reply(patience=0.3).end == "silence"
    proxy.lift(number)
    assert client.reply().body == DATA


def test_flip_at_an_offset_and_at_random(proxy: FaultProxy, client: Client) -> None:
    with proxy.during(Fault(kind="flip", at=1_000_000)):
        got = client.get(OBJECT).body
        assert wrong(got, DATA) == [1_000_000]
        assert (got[1_000_000] ^ DATA[1_000_000]).bit_count() == 1
    with proxy.during(Fault(kind="flip", bits=5, seed=7, count=2)) as number:
        places = [wrong(client.get(OBJECT).body, DATA) for _ in range(3)]
        assert [len(each) for each in places] == [5, 5, 0]
        assert places[0] != places[1]
        assert proxy.stats().hits[number] == 2
    with proxy.during(Fault(kind="flip", bits=5, seed=7)):
        assert wrong(client.get(OBJECT).body, DATA) == places[0]
    assert proxy.stats().corrupted == 4
    assert [request.corrupted for request in proxy.requests()] == [True, True, True, False, True]


def test_zeroed_bytes(proxy: FaultProxy, client: Client) -> None:
    with proxy.during(Fault(kind="zero", at=700_000, length=4096)):
        assert client.get(OBJECT).body == DATA[:700_000] + bytes(4096) + DATA[704_096:]
    with proxy.during(Fault(kind="zero", seed=3)):
        places = wrong(client.get(OBJECT).body, DATA)
        assert places[0] // 512 == places[-1] // 512
    assert proxy.stats().corrupted == 2


def test_zeros_that_were_zeros_are_no_corruption(proxy: FaultProxy, client: Client) -> None:
    client.ask("bucket/zeros", "PUT", bytes(10_000))
    proxy.fault(Fault(kind="zero", at=0, length=5000))
    assert client.get("bucket/zeros").body == bytes(10_000)
    assert proxy.stats().corrupted == 0


@pytest.mark.parametrize("at, length", [(1000, 10), (100, 800_000), (SIZE - 10, 10)])
def test_duplicated_bytes(proxy: FaultProxy, client: Client, at: int, length: int) -> None:
    proxy.fault(Fault(kind="duplicate", at=at, length=length))
    reply = client.get(OBJECT)
    assert reply.body == (DATA[: at + length] + DATA[at:])[:SIZE]
    assert proxy.stats().corrupted == (reply.body != DATA)


def test_cut_with_a_length_that_matches(proxy: FaultProxy, client: Client) -> None:
    proxy.fault(Fault(kind="cut", at=1000, count=1))
    reply = client.get(OBJECT)
    assert (reply.headers["content-length"], reply.body, reply.end) == ("1000", DATA[:1000], "whole")
    assert client.get(OBJECT).body == DATA


def test_wrong_content_range(proxy: FaultProxy, client: Client) -> None:
    proxy.fault(Fault(kind="content-range", shift=512))
    reply = client.get(OBJECT, 1000, 2000)
    assert reply.headers["content-range"] == f"bytes 1512-2511/{SIZE}"
    assert reply.body == DATA[1000:2000]
    assert "content-range" not in client.get(OBJECT).headers
    assert [(request.start, request.faults) for request in proxy.requests()] == [(1000, [1]), (0, [])]


@pytest.mark.parametrize("signed, before, after", [("host", DATA[:1000], DATA[2000:]), ("host;range", bytes(1000), bytes(SIZE - 2000))])
def test_the_whole_object_in_place_of_a_range(proxy: FaultProxy, client: Client, signed: str, before: bytes, after: bytes) -> None:
    proxy.fault(Fault(kind="whole"))
    signature = f"AWS4-HMAC-SHA256 Credential=x/y, SignedHeaders={signed}, Signature=00"
    reply = client.ask(OBJECT, Range="bytes=1000-1999", Authorization=signature)
    assert (reply.status, reply.headers["content-length"], "content-range" in reply.headers) == (200, str(SIZE), False)
    assert reply.body == before + DATA[1000:2000] + after
    assert (proxy.requests()[0].start, proxy.requests()[0].end) == (0, SIZE)


@pytest.mark.parametrize(
    "status, code",
    [(403, "AccessDenied"), (404, "NoSuchKey"), (416, "InvalidRange"), (429, "TooManyRequests"), (500, "InternalError"), (503, "SlowDown")],
)
def test_answers_in_place_of_the_servers(proxy: FaultProxy, client: Client, status: int, code: str) -> None:
    proxy.fault(Fault(kind="answer", status=status, retry_after="7", count=2))
    reply = client.get(OBJECT)
    assert (reply.status, reply.headers["content-type"], reply.headers["retry-after"]) == (status, "application/xml", "7")
    assert f"<Code>{code}</Code>".encode() in reply.body
    reply = client.ask(OBJECT, "HEAD")
    assert (reply.status, reply.body) == (status, b"")
    assert client.get(OBJECT).body == DATA
    assert proxy.stats().bytes_by_key[OBJECT] == proxy.requests()[0].sent + SIZE


def test_an_html_page(proxy: FaultProxy, client: Client) -> None:
    proxy.fault(Fault(kind="answer", status=200, html=True))
    reply = client.get(OBJECT)
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/html")
    assert reply.body.startswith(b"<!DOCTYPE html>")


@pytest.mark.parametrize(
    "fault, status, stored",
    [
        (Fault(kind="answer", method="PUT", status=503), 503, False),
        (Fault(kind="answer", method="PUT", status=500, acted=True), 500, True),
        (Fault(kind="lost", method="PUT"), 0, True),
        (Fault(kind="reset-upload", method="PUT", at=100_000), 0, False),
    ],
    ids=["before", "after", "lost", "broken"],
)
def test_an_upload_that_fails_before_or_after_the_server_acted(proxy: FaultProxy, fault: Fault, status: int, stored: bool) -> None:
    key = f"bucket/{fault.kind}{fault.status}"
    proxy.fault(fault)
    with Client(proxy.port) as uploading:
        reply = uploading.ask(key, "PUT", DATA[:200_000])
        assert (reply.status, reply.end) == (status, "whole" if status else "reset")
    assert proxy.requests()[0].received == (100_000 if fault.kind == "reset-upload" else 200_000)
    with Client(proxy.port) as reading:
        assert reading.get(key).body == (DATA[:200_000] if stored else b"")


def test_the_scope_of_a_fault(proxy: FaultProxy, client: Client) -> None:
    """Method, key, query, size of the range, the nth request and how often: each alone."""
    other = f"bucket/other-{SIZE}"

    def statuses(fault: Fault, *asks: tuple[str, str, int]) -> list[int]:
        with proxy.during(fault):
            return [client.ask(target, method, Range=f"bytes=0-{size - 1}").status for method, target, size in asks]

    five = [("GET", OBJECT, 100)] * 5
    assert statuses(Fault(kind="answer", method="HEAD"), ("GET", OBJECT, 100), ("HEAD", OBJECT, 100)) == [206, 503]
    assert statuses(Fault(kind="answer", key=r"^bucket/o.*er-\d"), ("GET", OBJECT, 100), ("GET", other, 100)) == [206, 503]
    assert statuses(Fault(kind="answer", key=r"\?list-type=2"), ("GET", OBJECT, 100), ("GET", f"{OBJECT}?list-type=2", 100)) == [206, 503]
    assert statuses(Fault(kind="answer", over=100), ("GET", OBJECT, 100), ("GET", OBJECT, 101)) == [206, 503]
    assert statuses(Fault(kind="answer", nth=3, count=2), *five) == [206, 206, 503, 503, 206]
    some = statuses(Fault(kind="answer", chance=0.5, seed=1), *five * 8)
    assert some == statuses(Fault(kind="answer", chance=0.5, seed=1), *five * 8)
    assert 8 < some.count(503) < 32


def test_faults_of_bodies_spare_answers_that_they_cannot_hit(proxy: FaultProxy, client: Client) -> None:
    number = proxy.fault(Fault(kind="flip", at=500, over=100, count=1))
    assert client.get("bucket/none").status == 404
    assert client.get(OBJECT, 0, 101).body == DATA[:101]
    assert client.ask(OBJECT, "HEAD").status == 200
    assert proxy.stats().hits[number] == 0
    assert wrong(client.get(OBJECT, 0, 1000).body, DATA[:1000]) == [500]


def test_several_faults_on_one_answer(proxy: FaultProxy, client: Client) -> None:
    proxy.fault(Fault(kind="flip", at=10))
    proxy.fault(Fault(kind="stall", at=50, seconds=0.1))
    proxy.fault(Fault(kind="reset", at=100))
    begun = time.monotonic()
    reply = client.get(OBJECT)
    assert time.monotonic() - begun >= 0.1
    assert (wrong(reply.body, DATA[:100]), reply.end, proxy.requests()[0].faults) == ([10], "reset", [1, 2, 3])


def test_clear_lifts_everything_but_the_shape(proxy: FaultProxy, client: Client) -> None:
    proxy.set(delay=0.05, refuse=True)
    proxy.fault(Fault(kind="stall", at=10))
    client.send(OBJECT)
    assert client.reply(patience=0.2).end == "silence"
    assert refused(proxy.port)
    proxy.clear()
    assert client.reply().body == DATA
    with Client(proxy.port) as other:
        begun = time.monotonic()
        assert other.get(OBJECT).body == DATA
        assert time.monotonic() - begun >= 0.05
