"""Worker after worker is killed while eight programs read, in both modes and over S3. ``bench/kills.py`` does it a thousand times."""

import random
import statistics
import time
from pathlib import Path
from typing import Final

from tests import weed
from tests.system.handover import another, check, children, daemon, descriptors, kill, status, worker
from tests.system.readers import content, load, stalls, write_tree
from tests.system.world import World, require, wait_until

KILLS: Final = 50
PAUSE: Final = 0.03
"""What a reader does otherwise between two operations, in seconds: who waits for a processor is not what is measured."""

FUSE: Final = ("pread", "mmap", "open", "exec")
KERNEL: Final = ("pread", "whole", "mmap", "exec")


def test_killed_again_and_again_under_load(imagefs: World, tmp_path: Path) -> None:
    world = imagefs
    require("root", "mounts through /dev/fuse as root")
    with weed.serving(tmp_path / "weed") as server:
        world.environment |= server.environment | {
            "IMAGEFS_STORE": "s3://bucket/kills",
            # So little that the store is asked all the time.
            "IMAGEFS_RAM_BYTES": "8MiB",
            "IMAGEFS_CACHE_BYTES": "64MiB",
            "IMAGEFS_LOG_LEVEL": "info",
        }
        write_tree(world.root / "source")
        world.convert(f"dir:{world.root}/source")
        with daemon(world) as supervisor:
            points = [world.mount(name="fuse"), world.mount("test", "kernel", "--mode", "kernel")]
            pid = worker(world)
            before = descriptors(supervisor.pid)
            whims = random.Random(1)
            kills = []
            with load(points[0], FUSE, pause=PAUSE) as one, load(points[1], KERNEL, pause=PAUSE) as other:
                for _ in range(KILLS):
                    time.sleep(whims.uniform(0.1, 0.3))
                    kills.append(time.monotonic())
                    kill(pid)
                    pid = another(world, pid)
                time.sleep(0.5)
                seen = one.stop() + other.stop()
            longest = check(seen)
            found = stalls(kills, seen)
            print(f"\n{KILLS} kills, {sum(one['reads'] for one in seen)} operations; the longest stall at each:")
            print(f"p50 {statistics.median(found):.3f} s, p99 {found[int(len(found) * 0.99)]:.3f} s; longest wait of any {longest:.3f} s")
            # Bounds for a machine with much else to do.
            assert statistics.median(found) < 0.5
            assert longest < 5
            assert (status(world)["worker_restarts"], world.stats()["worker_restarts"]) == (KILLS, KILLS)
            pauses = {line.partition('"again_in": ')[2].partition(",")[0] for line in world.logs().splitlines() if '"worker_died"' in line}
            assert pauses == {"0.0"}
            # None was loaded but the first.
            assert world.logs().count('"template_started"') == 1
            for point in points:
                for name in ("large/0", "small/007"):
                    assert (point / name).read_bytes() == content(name)
            assert world.stats()["store_gets"] > 0
            assert world.stats()["internal_errors"] == 0
            assert descriptors(supervisor.pid) == before
            # The worker, and the template that the next one would be forked from.
            wait_until(lambda: sorted(children(supervisor.pid).values()) == ["S", "S"], "two processes, and no zombie")
