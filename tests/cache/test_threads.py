"""Threads that are given up are counted until they end."""

import threading

import pytest
import trio

from imagefs.cache.threads import GetThreads

pytestmark = pytest.mark.trio


async def test_results_and_errors_come_back() -> None:
    threads = GetThreads()
    assert await threads(lambda: b"data") == b"data"

    def fail() -> bytes:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await threads(fail)
    assert threads.abandoned == 0


async def test_a_thread_that_is_given_up_counts_until_it_ends() -> None:
    threads = GetThreads()
    started, release = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def hang() -> bytes:
        token.run_sync_soon(started.set)
        assert release.wait(30)
        return b""

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(threads, hang)
            await started.wait()
            assert threads.abandoned == 0
            nursery.cancel_scope.cancel()
        assert threads.abandoned == 1
        assert await threads(lambda: b"another") == b"another"
        release.set()
        while threads.abandoned:  # noqa: ASYNC110 # nothing tells the trio thread that another one has ended
            await trio.sleep(0.001)


async def test_what_is_cancelled_before_it_starts_is_never_called() -> None:
    threads = GetThreads()
    called: list[None] = []

    def call() -> bytes:
        called.append(None)
        return b""

    with trio.CancelScope() as scope:
        scope.cancel()
        await threads(call)
    assert scope.cancelled_caught
    assert not called
    assert threads.abandoned == 0
