"""Two programs of one image, on hosts that have nothing, over a slow link: what is fetched ahead is what the one needs that runs."""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cache.far_bench import noise
from tests.faults import FaultProxy
from tests.matrix.place import settle, small_disk
from tests.system.world import World, require, wait_until
from tests.weed import serving

MB = 1_000_000
COUNT = 8
PROGRAMS = ("train", "serve", "stranger")
NEEDED = COUNT * 2 * MB
"""Bytes that each of the programs reads, which do not compress."""

BANDWIDTH = 8e6
"""Bytes a second over the link."""

READER = "import sys\nfor number in range(8): open(f'{sys.argv[1]}/{number}', 'rb').read()\nsys.stdin.read()"
"""Reads, and stays until its standard input ends."""


def start(point: Path, program: str) -> None:
    """Run a program, by the same arguments wherever the image is mounted."""
    subprocess.run([sys.executable, "-c", READER, program], cwd=point, stdin=subprocess.DEVNULL, check=True, timeout=60)


def published(world: World) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = world.run("profile", "ls", "test", "--json").json["profiles"]
    return [row for row in found if row.get("kind") == "merge"]


def forget(world: World, program: str, label: str) -> None:
    """Have the store forget what was just recorded of a program that the other tests take for unknown, when it is there."""

    def is_of_it(row: dict[str, Any]) -> bool:
        return row["key"]["label"] == label and str(row["key"]["entry"]).endswith(program)

    wait_until(lambda: any(map(is_of_it, published(world))), "the profile to be in the store")
    rows = world.run("profile", "ls", "test", "--json").json["profiles"]
    world.run("profile", "rm", "test", *(row["id"] for row in rows if is_of_it(row)))
    assert len(published(world)) == 2


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], FaultProxy]]:
    """A store that knows a start of two of the programs, and the link before it; what a world needs in its environment."""
    require("root", "mounts through /dev/fuse as root")
    folder = tmp_path_factory.mktemp("far")
    with serving(folder / "weed") as server, FaultProxy(server.endpoint.removeprefix("http://")) as link:
        maker = World(folder / "maker")
        maker.environment |= server.environment | {"IMAGEFS_STORE": "s3://tests/starts"}
        for number, name in enumerate(f"{program}/{index}" for program in PROGRAMS for index in range(COUNT)):
            path = maker.root / "source" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(noise(2 * MB, number))
        maker.convert(f"dir:{maker.root}/source")
        for number, program in enumerate(PROGRAMS[:2], 1):
            point = maker.mount("test", program, "--no-prefetch")
            start(point, program)
            maker.umount(point)
            wait_until(lambda number=number: len(published(maker)) == number, "the profile to be in the store")  # type: ignore[misc]
        assert {row["key"]["entry"].split()[-1] for row in published(maker)} == set(PROGRAMS[:2])
        assert maker.close() == []
        link.set(delay=0.02, bandwidth=BANDWIDTH)
        yield {**maker.environment, "AWS_ENDPOINT_URL_S3": link.url}, link


@pytest.fixture
def world(far: tuple[dict[str, str], FaultProxy], imagefs: World) -> World:
    imagefs.environment |= far[0] | {"IMAGEFS_LOG_LEVEL": "info"}
    return imagefs


@pytest.fixture
def slower(far: tuple[dict[str, str], FaultProxy]) -> Iterator[FaultProxy]:
    """The link, at half of its bandwidth: so little moves while a slow machine starts a program, or a command that looks."""
    far[1].set(bandwidth=BANDWIDTH / 2)
    yield far[1]
    far[1].set(bandwidth=BANDWIDTH)


def moved(world: World, link: FaultProxy, mode: str, program: str, *options: str) -> dict[str, Any]:
    """Return what the daemon counts when a program was started, and nothing more is fetched ahead of it."""
    point = world.mount("test", "mnt", *options, mode=mode)
    start(point, program)
    link.set(bandwidth=BANDWIDTH)
    wait_until(lambda: world.stats()["gets_in_flight"] == 0, "what is on its way to come")
    stats = world.stats()
    world.umount(point)
    return stats


@pytest.mark.parametrize("options", [(), ("--no-record",)], ids=["recorded", "unrecorded"])
@pytest.mark.parametrize("mode", ["fuse", "kernel"])
def test_of_two_programs_the_one_that_runs_is_prefetched(world: World, slower: FaultProxy, mode: str, options: tuple[str, ...]) -> None:
    stats = moved(world, slower, mode, "serve", *options)
    assert stats["store_bytes"] < 1.5 * NEEDED, "and most of the other one's was never asked for"
    assert "profile_narrowed" in world.logs()


@pytest.mark.parametrize("mode", ["fuse", "kernel"])
def test_a_program_that_was_never_started_is_left_alone_soon(world: World, slower: FaultProxy, mode: str) -> None:
    stats = moved(world, slower, mode, "stranger", "--no-record")
    assert stats["profiles_doubted"] >= 1
    assert stats["store_bytes"] < 1.5 * NEEDED, "of twice as much that the profiles name"


@pytest.mark.parametrize("options", [(), ("--no-record",)], ids=["recorded", "unrecorded"])
def test_so_is_one_that_asks_for_nothing_because_the_kernel_has_it(world: World, options: tuple[str, ...]) -> None:
    keep = world.mount("test", "keep", "--no-prefetch", "--no-record", mode="kernel")
    start(keep, "stranger")
    settle(world)
    before = world.stats()
    point = world.mount("test", "mnt", *options, mode="kernel")
    argv = [sys.executable, "-c", READER, "stranger"]
    with subprocess.Popen(argv, cwd=point, stdin=subprocess.PIPE) as process:
        wait_until(lambda: world.stats()["profiles_doubted"] >= 1, "the profiles to be doubted")
        wait_until(lambda: world.stats()["gets_in_flight"] == 0, "what is on its way to come")
        stats = world.stats()
        process.kill()
    assert stats["bytes_read"]["store"] == before["bytes_read"]["store"]
    assert stats["store_bytes"] - before["store_bytes"] < NEEDED, "of twice as much that the profiles name"
    world.umount(point)
    if not options:
        forget(world, "stranger", "")
    world.umount(keep)


def test_of_a_label_only_its_own_starts_are_prefetched(
    world: World, make_world: Callable[[str], World], far: tuple[dict[str, str], FaultProxy]
) -> None:
    recorder = make_world("recorder")
    recorder.environment |= far[0]
    point = recorder.mount("test", "mnt", "--no-prefetch", "--profile-label", "nightly")
    start(point, "stranger")
    recorder.umount(point)
    wait_until(lambda: any(row["key"]["label"] == "nightly" for row in published(recorder)), "the profile to be in the store")
    point = world.mount("test", "mnt", "--profile-label", "nightly", "--wait-prefetch")
    stats = world.stats()
    assert NEEDED <= stats["store_bytes"] < 1.05 * NEEDED
    world.umount(point)
    forget(world, "stranger", "nightly")


def test_a_first_mount_asks_for_each_thing_once(world: World, far: tuple[dict[str, str], FaultProxy]) -> None:
    """Most of its time is round trips, one after the other: each question before a question costs one more."""
    link = far[1]
    link.forget()
    point = world.mount("test", "mnt", "--no-record", "--no-prefetch")
    seen = link.requests()
    assert {one.method for one in seen} == {"GET"}
    assert sorted(one.key.removeprefix("tests/starts/").partition("/")[0] for one in seen) == [
        *("blobs", "blobs", "imagefs-store.json", "manifests", "refs")
    ]
    world.umount(point)


# -- faults -------------------------------------------------------------------------------------------------------------------------------


def content(program: str, number: int) -> bytes:
    return noise(2 * MB, PROGRAMS.index(program) * COUNT + number)


def reads(point: Path, program: str) -> list[bool]:
    """Say of each file of a program whether it could be read. What is read is right."""
    found = []
    for number in range(COUNT):
        try:
            data = (point / program / str(number)).read_bytes()
        except OSError:
            found.append(False)
        else:
            assert data == content(program, number)
            found.append(True)
    return found


@pytest.mark.parametrize("mode", ["fuse", "kernel"])
def test_a_store_that_dies_in_the_middle_costs_what_is_not_here_yet(
    world: World, far: tuple[dict[str, str], FaultProxy], mode: str
) -> None:
    link = far[1]
    world.environment["IMAGEFS_STORE_DEADLINE"] = "3"
    link.forget()
    point = world.mount("test", "mnt", "--no-record", mode=mode)
    # Of the link, not of the daemon: on a slow machine all of it would be here before a command has answered.
    wait_until(lambda: sum(one.sent for one in link.requests() if one.ended is not None) > 8 * MB, "a part of it to be here")
    try:
        link.set(refuse=True)
        link.drop()
        begun = time.monotonic()
        seen = [*reads(point, "serve"), *reads(point, "train")]
        assert True in seen
        assert False in seen
        assert time.monotonic() - begun < 2 * COUNT * 4
    finally:
        link.clear()
    wait_until(lambda: reads(point, "serve") == reads(point, "train") == [True] * COUNT, "the store to be asked again", 40)
    assert world.stats()["internal_errors"] == 0
    world.umount(point)


@pytest.mark.parametrize("mode", ["fuse", "kernel"])
def test_an_ssd_that_is_full_in_the_middle_costs_nobody_a_read(world: World, mode: str) -> None:
    with small_disk(world.root, 24) as disk:
        world.cache = disk / "cache"
        world.environment["IMAGEFS_CACHE_FLOOR"] = "0"
        point = world.mount("test", "mnt", "--no-record", "--wait-prefetch", mode=mode)
        with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(bytes(MB)):
                pass
        for program in PROGRAMS:
            assert reads(point, program) == [True] * COUNT
        assert world.stats()["internal_errors"] == 0
        world.umount(point)
        wait_until(lambda: not world.pids(), "the daemon to end with its last mount")


@pytest.mark.parametrize("mode", ["fuse", "kernel"])
def test_who_reads_everything_at_random_under_a_profile_moves_it_once(world: World, mode: str) -> None:
    point = world.mount("test", "mnt", "--no-record", mode=mode)
    chance = random.Random(7)
    files = [(program, number) for program in PROGRAMS for number in range(COUNT)]
    chance.shuffle(files)
    for program, number in files:
        data = content(program, number)
        with (point / program / str(number)).open("rb") as file:
            for start_at in chance.sample(range(0, len(data), MB // 4), 8):
                assert os.pread(file.fileno(), MB // 4, start_at) == data[start_at : start_at + MB // 4]
    wait_until(lambda: world.stats()["gets_in_flight"] == 0, "what is on its way to come")
    assert world.stats()["store_bytes"] < 1.05 * len(PROGRAMS) * NEEDED
    world.umount(point)


def test_who_reads_nothing_has_what_the_profiles_name_and_no_more(world: World) -> None:
    point = world.mount("test", "mnt", "--no-record")
    list(point.rglob("*"))
    wait_until(lambda: world.stats()["prefetches"] == 0, "all of it to be asked for", 40)
    wait_until(lambda: world.stats()["gets_in_flight"] == 0, "what is on its way to come")
    assert 2 * NEEDED <= world.stats()["store_bytes"] < 2.05 * NEEDED
    world.umount(point)
