"""Ranged GETs of a real S3 server on this machine, through obstore and through boto3: which of the two reads for a mount.

The server shares the machine with the reader, so the rates are no network's; what counts is the reader's own CPU time for a GET, and the
ratio.
"""

import itertools
import os
import statistics
import threading
import time
from collections.abc import Callable
from unittest import mock

from bench.harness import Run, scratch
from imagefs.digest import Buffer
from imagefs.store.base import ByteRange
from imagefs.store.opening import open_store
from imagefs.store.s3 import S3Store
from imagefs.store.s3_ranges import exactly
from tests.weed import serving

_OBJECT = 64 << 20
_MOVED = 128 << 20
_MOST = 400
"""GETs of one round, and bytes, whichever is less."""

_SIZES = {"64 KiB": (64 << 10, 0.5), "1 MiB": (1 << 20, 0.8), "8 MiB": (8 << 20, None)}
"""Bytes of a GET, and how much of boto3's CPU obstore may need. At 8 MiB both only copy: told, and not judged."""


def bench_ranged_get(run: Run) -> None:
    """CPU a GET and bytes a second, by size and threads."""
    with scratch() as tmp, serving(tmp) as weed, mock.patch.dict(os.environ, weed.environment):
        store = open_store("s3://bench/ranged-get", create=True)
        assert isinstance(store, S3Store)
        store.put_if_absent("packs/a", os.urandom(_OBJECT))
        client = store._connection.client  # noqa: SLF001 - the other way, which the store keeps for itself

        def by_boto3(byte_range: ByteRange) -> bytes:
            return exactly(client, "bench", "ranged-get/packs/a", byte_range)

        def by_obstore(byte_range: ByteRange) -> Buffer:
            return store.get("packs/a", byte_range)

        for (name, (size, bound)), threads in itertools.product(_SIZES.items(), (1, 16)):
            rounds = [(_round(by_obstore, size, threads), _round(by_boto3, size, threads)) for _ in range(run.runs)]
            for which, label in enumerate(("obstore", "boto3")):
                cpu = statistics.median(pair[which][0] for pair in rounds)
                rate = statistics.median(pair[which][1] for pair in rounds)
                run.add(f"{label}, {name}, {threads} threads: CPU a GET", cpu * 1e3, "ms", note=f"{rate / 1e6:.0f} MB/s")
            ratio = statistics.median(ours[0] / theirs[0] for ours, theirs in rounds)
            run.add(f"CPU of obstore / boto3, {name}, {threads} threads", ratio, "x", bound)
            run.add(
                f"rate of obstore / boto3, {name}, {threads} threads",
                statistics.median(ours[1] / theirs[1] for ours, theirs in rounds),
                "x",
            )
        store.close()


def _round(get: Callable[[ByteRange], Buffer], size: int, threads: int) -> tuple[float, float]:
    """Read with so many threads; return CPU seconds a GET and bytes a second."""
    count = min(_MOST, _MOVED // size)
    starts = itertools.cycle(range(0, _OBJECT, size))
    lock = threading.Lock()
    left = iter(range(count))

    def read() -> None:
        while True:
            with lock:
                if next(left, None) is None:
                    return
                start = next(starts)
            assert len(get(ByteRange(start, start + size))) == size

    get(ByteRange(0, size))
    workers = [threading.Thread(target=read) for _ in range(threads)]
    cpu, wall = time.process_time(), time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return (time.process_time() - cpu) / count, count * size / (time.perf_counter() - wall)
