"""Who is credited with what, and that nothing is lost or grows without bound."""

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.cache.counters import Tally
from imagefs.cache.layout import ObjectRecord
from imagefs.format.objectmap import ObjectMap, build_object_map
from imagefs.fuse import readers
from imagefs.fuse.readers import OTHERS, UNKNOWN, WATCH_SECONDS, Program, Readers, cgroup_in, program_of
from imagefs.store.opening import open_store
from tests.cache.test_fetcher import Lookup
from tests.fuse.images import Maker, noise
from tests.system.world import wait_until


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def record(tmp_path: Path) -> Iterator[ObjectRecord]:
    store = open_store(f"file://{tmp_path}/store", create=True)
    maker = Maker(store)
    maker.file("file", noise(1000, 1))
    lookup = Lookup(ObjectMap(build_object_map(list(maker.rows.values()), maker.packs)), "a" * 64)
    yield ObjectRecord(lookup, lookup.objects.object(0))
    store.close()


def rows(some: Readers) -> dict[Program, Tally]:
    return {program: row.tally for _, program, row in some.look()[1]}


def test_by_image_always_and_by_program_while_somebody_looks(record: ObjectRecord) -> None:
    clock = Clock()
    some = Readers(clock)
    records: dict[int, ObjectRecord | bytes] = {7: record, 8: b"inline"}
    some.follow(records)
    record.tally = some.tally(7, record.lookup.name)
    some.opened(7, os.getpid())
    record.tally.ram += 100
    assert some.by_image() == {"a" * 64: Tally(ram=100)}

    # Who had it open before is known too.
    assert rows(some) == {program_of(os.getpid())[1]: Tally()}
    record.tally.store += 30
    child = subprocess.Popen(["sleep", "60"])
    try:
        # Its files are closed, by which Popen knows of the exec, a moment before it has its name.
        wait_until(lambda: Path(f"/proc/{child.pid}/comm").read_text() == "sleep\n", "the exec")
        some.opened(7, child.pid)
        record.tally.ssd += 5
    finally:
        child.kill()
        child.wait()
    me = program_of(os.getpid())[1]
    assert rows(some) == {me: Tally(store=30), Program(me.cgroup, "sleep"): Tally(ssd=5)}
    assert {row.pid for _, _, row in some.look()[1]} == {os.getpid(), child.pid}
    assert some.by_image() == {"a" * 64: Tally(100, 5, 30)}

    clock.now += WATCH_SECONDS - 1
    some.rest()
    record.tally.ssd += 1
    assert rows(some)[Program(me.cgroup, "sleep")] == Tally(ssd=6), "somebody looked a moment ago"
    clock.now += WATCH_SECONDS
    some.rest()
    record.tally.ram += 1000
    assert some.by_image() == {"a" * 64: Tally(1100, 6, 30)}
    # A second look begins at 0, and the one who has ended is not known any more.
    assert rows(some) == {UNKNOWN: Tally()}
    some.forget("a" * 64)
    assert some.by_image() == {}
    assert rows(some) == {}


def test_no_more_than_so_many_rows_and_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "ROWS_MAX", 10)
    monkeypatch.setattr(readers, "_THREADS_MAX", 50)
    monkeypatch.setattr(readers, "program_of", lambda thread: (thread, Program("", str(thread))))
    some = Readers(Clock())
    some.look()
    for node in range(1, 101):
        some.opened(node, node)
        some.tally(node, "image").ram += 1
    found = rows(some)
    assert len(found) == 11
    assert found[OTHERS] == Tally(ram=90)
    assert len(some._threads) == 50
    assert 100 in some._threads


def test_a_number_that_is_given_anew_is_looked_up_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def looked_up(thread: int) -> tuple[int, Program]:
        asked.append(thread)
        return thread, Program("", str(len(asked)))

    monkeypatch.setattr(readers, "program_of", looked_up)
    clock = Clock()
    some = Readers(clock)
    some.opened(1, 5)
    assert not asked, "nobody looks"
    some.look()
    for _ in range(3):
        some.tally(1, "image")
    assert asked == [5]
    clock.now += 1.5
    some.tally(1, "image")
    assert asked == [5, 5]


def test_a_thread_is_its_process() -> None:
    found: list[tuple[int, Program]] = []
    thread = threading.Thread(target=lambda: found.append(program_of(threading.get_native_id())))
    thread.start()
    thread.join()
    assert found == [program_of(os.getpid())]
    assert found[0][0] == os.getpid()
    assert found[0][1].command == Path("/proc/self/comm").read_text().strip()


def test_who_is_gone_is_not_known() -> None:
    assert program_of(1 << 22) == (0, UNKNOWN)


@pytest.mark.parametrize(
    "text, path",
    [
        ("0::/system.slice/docker-1.scope\n", "/system.slice/docker-1.scope"),
        ("4:memory:/kubepods/pod1\n1:name=systemd:/x\n0::/\n", "/kubepods/pod1"),
        ("3:cpu,memory:/a:b\n", "/a:b"),
        ("0::/\n", "/"),
        ("", "/"),
    ],
)
def test_the_cgroup_that_is_shown(text: str, path: str) -> None:
    assert cgroup_in(text) == path
