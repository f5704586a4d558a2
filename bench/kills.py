"""Workers killed one after another while eight programs read, in both modes and over S3: how long anybody waits, and what is left behind.

A stall is the longest wait of any reader at a kill. Server, daemon and readers share this machine's cores, and readers wait for those too:
so the same load is measured without kills as well, cut into pieces as long as the time between two of them.
"""

import os
import random
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

from bench.far import FarProduct
from bench.harness import Run, scratch
from imagefs.config import load_config
from imagefs.daemon import client
from tests import weed
from tests.system.readers import load, stalls, write_tree

KILLS = 20
"""Of each run: a thousand are ``--runs 50``, and take more than ten minutes."""

EVERY = 0.62
_CALM = 15.0
_PAUSE = 0.03
_FUSE = ("pread", "mmap", "open", "exec")
_KERNEL = ("pread", "whole", "mmap", "exec")


def bench_kills(run: Run) -> None:
    """Kill, and see that nobody fails, nobody reads a wrong byte, and nobody waits for long."""
    with scratch() as tmp, weed.serving(tmp / "weed") as server:
        write_tree(tmp / "source")
        product = FarProduct(tmp, server, server.endpoint, "host")
        # So little that the store is asked all the time.
        product.env |= {"IMAGEFS_RAM_BYTES": "8MiB", "IMAGEFS_CACHE_BYTES": "64MiB"}
        product.run("convert", f"dir:{tmp / 'source'}", "kills:1")
        with product.daemon(), product.mount("kills:1", "--mode", "fuse") as fuse, product.mount("kills:1", "--mode", "kernel") as kernel:
            with load(fuse, _FUSE, pause=_PAUSE) as one, load(kernel, _KERNEL, pause=_PAUSE) as other:
                time.sleep(_CALM)
                calm = one.stop() + other.stop()
            with load(fuse, _FUSE, pause=_PAUSE) as one, load(kernel, _KERNEL, pause=_PAUSE) as other:
                time.sleep(2 * EVERY)
                before = _held(product.env)
                kills = _kill(product.env, run.runs * KILLS)
                time.sleep(2 * EVERY)
                after = _held(product.env)
                seen = one.stop() + other.stop()
            counters = product.run("stats")
    ends = [ended for reader in calm for _, ended in reader["waits"]]
    pieces = [max(ends) - number * EVERY for number in range(int(_CALM / EVERY), 0, -1)]
    quiet, found = stalls(pieces, calm), stalls(kills, seen)
    run.add(f"operations, {len(kills)} kills in {kills[-1] - kills[0]:.0f} s", sum(reader["reads"] for reader in seen), "")
    run.add(
        "failed", sum(reader["failed"] for reader in seen), "", 0, note=str([reader["errors"] for reader in seen if reader["failed"]] or "")
    )
    run.add("wrong", sum(reader["wrong"] for reader in seen), "", 0)
    run.add("workers that came after another", counters["worker_restarts"] - len(kills), "", 0, note="more than were killed")
    run.add("errors of ours", counters["internal_errors"], "", 0)
    run.add("stall, p50", statistics.median(found) * 1e3, "ms", 150)
    run.add("stall, p99", found[int(len(found) * 0.99)] * 1e3, "ms", 400)
    run.add("stall, longest", found[-1] * 1e3, "ms")
    run.add("longest wait in as long without a kill, p50", statistics.median(quiet) * 1e3, "ms")
    run.add("longest wait in as long without a kill, longest", quiet[-1] * 1e3, "ms")
    for name, (memory, descriptors) in before.items():
        run.add(f"memory of the {name}, at the end / before", after[name][0] / memory, "x", 1.1, note=f"{memory >> 10} KiB before")
        run.add(f"descriptors of the {name}, more at the end", after[name][1] - descriptors, "", 0 if name != "worker" else None)


def _kill(env: Mapping[str, str], count: int) -> list[float]:
    """Kill ``count`` workers; return when, by the monotonic clock."""
    whims = random.Random(1)
    config = load_config(environ=env)
    begun = time.monotonic()
    kills: list[float] = []
    last = None
    for number in range(count):
        time.sleep(max(0.0, begun + (number + whims.uniform(-0.3, 0.3)) * EVERY - time.monotonic()))
        while (pid := client.status(config)["worker_pid"]) in {last, None}:
            time.sleep(0.005)
        kills.append(time.monotonic())
        os.kill(pid, 9)
        last = pid
    return kills


def _held(env: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Return what each process of the daemon has: bytes of memory that are its own or its share of what several have; and descriptors."""
    status = client.status(load_config(environ=env))
    supervisor, worker = status["pid"], status["worker_pid"]
    others = [int(name) for name in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split() if int(name) != worker]
    found = {}
    for name, pid in {"supervisor": supervisor, "template": others[0], "worker": worker}.items():
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found[name] = (int(rollup.partition("\nPss:")[2].split()[0]) << 10, len(os.listdir(f"/proc/{pid}/fd")))  # noqa: PTH208
    return found
