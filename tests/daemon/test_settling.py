"""When kernel mounts are settled: by a clock that the test winds."""

from collections.abc import Awaitable, Callable
from functools import partial
from itertools import pairwise

import structlog
import trio
import trio.testing

from imagefs.daemon.settling import settle_when_quiet

LOG = structlog.get_logger()


def _run(body: Callable[[list[int], list[float]], Awaitable[None]], *, fails: bool = False) -> list[float]:
    """Run ``body`` beside the task, with counters that it may raise, the second for what is urgent; return when it was settled."""
    count, settled = [0, 0], list[float]()

    async def settle() -> None:
        await trio.lowlevel.checkpoint()
        settled.append(round(trio.current_time(), 1))
        if fails:
            raise RuntimeError("a bug")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(settle_when_quiet, lambda: count[0], settle, LOG, urgent=lambda: count[1]))
            await body(count, settled)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return settled


def test_once_a_burst_is_over() -> None:
    async def body(count: list[int], _: list[float]) -> None:
        await trio.sleep(2.5)
        for _step in range(5):
            count[0] += 1
            await trio.sleep(0.5)
        await trio.sleep(20)

    assert _run(body) == [6.0]


def test_not_where_nothing_changes() -> None:
    async def body(_count: list[int], _settled: list[float]) -> None:
        await trio.sleep(100)

    assert _run(body) == []


def test_less_and_less_often_where_it_does_not_end() -> None:
    async def body(count: list[int], settled: list[float]) -> None:
        await trio.sleep(0.5)
        for _step in range(6000):
            count[0] += 1
            await trio.sleep(0.1)
        await trio.sleep(1000)
        settled.append(0)
        count[0] += 1
        await trio.sleep(3)

    *times, _, zero, last = _run(body)
    pauses = [after - before for before, after in pairwise(times)]
    assert pauses[0] <= 12
    assert all(after >= before for before, after in pairwise(pauses))
    assert len(times) < 12, "and no more than 300 s apart"
    assert max(pauses) <= 312
    assert (zero, round(last) % 1) == (0, 0), "after a rest it is done at once again"


def test_a_failure_does_not_end_it() -> None:
    async def body(count: list[int], _: list[float]) -> None:
        await trio.sleep(0.5)
        for _step in range(3):
            count[0] += 1
            await trio.sleep(5)

    assert len(_run(body, fails=True)) == 3


def test_what_is_urgent_waits_for_no_end_of_a_burst_and_no_pause() -> None:
    async def body(count: list[int], settled: list[float]) -> None:
        await trio.sleep(0.5)
        for _step in range(2000):
            count[0] += 1
            await trio.sleep(0.5)
        at = trio.current_time()
        count[1] += 1
        for _step in range(200):
            count[0] += 1
            await trio.sleep(0.1)
        settled.append(next(time for time in settled if time > at) - at)

    assert 0 < _run(body)[-1] <= 11


def test_what_is_urgent_without_an_end_is_bounded() -> None:
    async def body(count: list[int], _: list[float]) -> None:
        for _step in range(1000):
            count[1] += 1
            await trio.sleep(0.1)

    times = _run(body)
    assert 8 <= len(times) <= 15
