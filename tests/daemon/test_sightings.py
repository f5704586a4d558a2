"""Who the processes of a Start are: real ones, that become others, that are gone, and that never were."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import trio

from imagefs.cache.starts import Facts, Start
from imagefs.daemon import sightings
from imagefs.daemon.sightings import follow_processes, sighted
from tests.system.world import wait_until

_MANIFEST = "ab" * 32


def _run(start: Start, done: Callable[[], bool], during: Callable[[], None] = lambda: None) -> None:
    async def main() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(follow_processes, start)
                await trio.testing.wait_all_tasks_blocked()
                during()
                while not done():  # noqa: ASYNC110 # what it waits for has no event
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_thread_is_its_process() -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(sighted(threading.get_native_id())))
    thread.start()
    thread.join()
    assert found[0] is not None
    assert found[0].process.pid == os.getpid()
    assert found[0].process.parent == os.getppid()
    assert found[0].arguments[0].endswith(os.path.basename(sys.executable)) or found[0].arguments  # noqa: PTH119 # as it was started


def test_arguments_are_kept_apart() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        # Whoever has started it may go on a moment before the kernel has its new arguments.
        wait_until(lambda: (seen := sighted(process.pid)) is not None and seen.arguments[-1:] == ["60"], "it to be that program")
        found = sighted(process.pid)
        process.kill()
    assert found is not None
    assert found.arguments[-2:] == ["sleep", "60"]
    assert found.process.command == " ".join(found.arguments)


def test_who_has_ended_is_no_more_although_nobody_has_looked_how() -> None:
    with subprocess.Popen(["sleep", "0"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert sighted(process.pid) is None


@pytest.mark.parametrize("thread", [0, -1, 1 << 30])
def test_who_is_no_more_is_nobody(thread: int) -> None:
    assert sighted(thread) is None


def test_the_entry_is_what_the_first_reader_has_become() -> None:
    """A shell opens the file of the program that it becomes."""
    start = Start(Facts(_MANIFEST))
    with subprocess.Popen(["sh", "-c", "read line; exec sleep 60"], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None

        def become() -> None:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.close()

        start.who(process.pid)
        _run(start, lambda: start.entry_known, become)
        process.kill()
    assert start.facts.entry == ["sleep", "60"]
    assert start.processes[process.pid].command == "sleep 60"


def test_of_who_has_gone_the_last_that_was_seen_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    start = Start(Facts(_MANIFEST))
    with subprocess.Popen(["sleep", "60"]) as process:
        start.who(process.pid)
        _run(start, lambda: process.pid in start.processes)
        process.kill()
    other = Start(start.facts)
    other.processes = start.processes
    other.who(process.pid)
    _run(other, lambda: other.entry_known)
    assert other.facts.entry == ["sleep", "60"]
    assert other.processes[process.pid].command == "sleep 60"


def test_it_is_told_each_time_that_it_was_looked_who_accessed_first() -> None:
    start = Start(Facts(_MANIFEST))
    told: list[tuple[list[str], bool]] = []
    start.identified = lambda _: told.append((start.facts.entry, start.entry_known))
    with subprocess.Popen(["sleep", "60"]) as process:
        wait_until(lambda: (seen := sighted(process.pid)) is not None and seen.arguments[-1:] == ["60"], "it to be that program")
        start.who(process.pid)
        start.who(os.getpid())
        _run(start, lambda: start.entry_known)
        process.kill()
    assert told == [(["sleep", "60"], False), (["sleep", "60"], False), (["sleep", "60"], True)]


@pytest.mark.parametrize("before", [True, False])
def test_the_entry_is_that_of_who_came_through_the_mount_and_not_of_who_reads_the_same_elsewhere(before: bool) -> None:
    start = Start(Facts(_MANIFEST, watched=True))
    told: list[list[str]] = []
    start.identified = lambda _: told.append(start.facts.entry)
    with subprocess.Popen(["sleep", "60"]) as process:
        wait_until(lambda: (seen := sighted(process.pid)) is not None and seen.arguments[-1:] == ["60"], "it to be that program")
        start.who(os.getpid())
        if before:
            start.who(process.pid)
        came = False

        def is_told() -> bool:
            nonlocal came
            if start.entry_known and not came:
                assert told == []
                came = True
                start.came(process.pid)
            return bool(told)

        _run(start, is_told)
        process.kill()
    assert told[0] == start.facts.entry == ["sleep", "60"]


def test_who_comes_later_is_noticed() -> None:
    start = Start(Facts(_MANIFEST))
    _run(start, lambda: os.getpid() in start.processes, lambda: start.opened(start.file(5, 5), os.getpid(), native=True))
    assert start.facts.entry == sighted(os.getpid()).arguments  # type: ignore[union-attr] # it is this process


def test_a_process_that_cannot_be_looked_at_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    hold = threading.Event()

    def hang(thread: int) -> None:
        hold.wait(10)

    monkeypatch.setattr(sightings, "sighted", hang)
    monkeypatch.setattr(sightings, "_SECONDS", 0.05)
    start = Start(Facts(_MANIFEST))
    start.who(1)
    _run(start, lambda: start.entry_known)
    hold.set()
    assert start.facts.entry == []
