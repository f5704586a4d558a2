"""What a cold read costs beyond moving its bytes: verification, single flight, and CPU time next to other programs that fetch."""

import os
import statistics
import sys
import threading
import time
from pathlib import Path

import zstandard
from blake3 import blake3

from bench.far import FarProduct, far_server
from bench.harness import FORGETFUL, Run, cpu_of, have_memory, read_through, scratch, seconds, timed
from imagefs.cache.gate import Ticket
from tests import weed

_SIZE = 350_000_000
_FRAME = 256 * 1024
_LEVEL = 3
_THREADS = 8
_COUNT = 100_000


def bench_cost(run: Run) -> None:
    """Cold reads without the link: with and without verification, and next to rclone and boto3 where nothing has to be decompressed."""
    with scratch() as tmp, far_server(tmp) as (server, _):
        wall: dict[bool, list[float]] = {True: [], False: []}
        cpu: dict[bool, list[float]] = {True: [], False: []}
        shares: list[float] = []
        for number in range(2 * max(run.runs, 3)):
            # Each goes first as often: who comes second finds memory that the machine need not fetch from its host.
            for verified in (True, False) if number % 2 else (False, True):
                took, spent = _cold(FarProduct(tmp, server, server.endpoint, f"{verified}{number}"), "library", verified=verified)
                wall[verified].append(took)
                cpu[verified].append(spent)
            shares.append((1 - wall[False][-1] / wall[True][-1]) * 100)
        note = f"{min(shares):.0f} to {max(shares):.0f}: memory that is touched first costs more than all of it"
        run.add("cold read without verification: time saved", statistics.median(shares), "%", note=note)
        # So what counts is measured by itself: what the daemon does for that a frame, of the CPU time that a cold read needs.
        spent = statistics.median(cpu[True])
        hashing, flight = _hashing(tmp / "source" / "library") / spent * 100, _single_flight() * _SIZE / _FRAME / spent * 100
        run.add("verification, of the CPU time of a cold read", hashing, "%", note=f"of {spent / _SIZE * 1e9:.2f} s/GB")
        run.add("single flight, of the CPU time of a cold read", flight, "%")
        run.add("both", hashing + flight, "%", 8)
        ours = [_cold(FarProduct(tmp, server, server.endpoint, f"noise{number}"), "noise", verified=True)[1] for number in range(run.runs)]
        run.add("CPU of the daemon, content as it is stored", statistics.median(ours) / _SIZE * 1e9, "s/GB")
        environment = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"} | server.environment
        moved = 0
        for name, command in (("boto3", [sys.executable, "-m", "bench.cost"]), ("rclone copy", _rclone(server, tmp))):
            found = [timed(*command, env=environment) for _ in range(run.runs)]
            moved = moved or int(found[0].stdout)
            rate = moved / statistics.median(one.wall for one in found) / 1e6
            run.add(
                f"CPU of {name}, the same store", statistics.median(one.cpu for one in found) / moved * 1e9, "s/GB", note=f"{rate:.0f} MB/s"
            )


def _cold(host: FarProduct, name: str, *, verified: bool) -> tuple[float, float]:
    """Wall seconds and the daemon's CPU seconds of a first read."""
    command = () if verified else (sys.executable, "-m", "bench.unverified")
    with host.daemon(*command), host.mount("large:1", *FORGETFUL) as point:
        have_memory()
        before = cpu_of(host)
        took = seconds(lambda: read_through(point / name))
        return took, cpu_of(host) - before


def _hashing(path: Path) -> float:
    """Seconds that it takes to hash a file in frames, the quickest of three times."""
    data = memoryview(path.read_bytes())
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for at in range(0, len(data), _FRAME):
            blake3(data[at : at + _FRAME]).digest()
        times.append(time.perf_counter() - start)
    return min(times)


def decoding_alone(path: Path) -> float:
    """Return the GB a CPU second at which a file's frames, compressed as a store has them, are decompressed and verified in a bare loop."""
    data = memoryview(path.read_bytes())
    pieces = [data[at : at + _FRAME] for at in range(0, len(data), _FRAME)]
    compressor, decompressor = zstandard.ZstdCompressor(level=_LEVEL), zstandard.ZstdDecompressor()
    stored = [compressor.compress(piece) for piece in pieces]
    target = bytearray(_FRAME)
    start = time.process_time()
    for frame, piece in zip(stored, pieces, strict=True):
        with decompressor.stream_reader(frame) as reader:
            reader.readinto(target)
        blake3(target[: len(piece)]).digest()
    return len(data) / (time.process_time() - start) / 1e9


def _single_flight() -> float:
    """Seconds that it takes to keep account of who fetches a frame: what is done a frame, and nothing else."""
    tickets: dict[tuple[bytes, int], Ticket] = {}
    state = bytearray(16)
    key = bytes(32)
    ticket = Ticket(demand=True)
    start = time.perf_counter()
    for number in range(_COUNT):
        piece = number & 15
        if state[piece] == 0:
            state[piece] = 1
        tickets[key, piece] = ticket
        if state[piece] == 1:
            tickets.pop((key, piece), None)
        state[piece] = 0
    return (time.perf_counter() - start) / _COUNT


def _rclone(server: weed.Weed, tmp: Path) -> list[str]:
    remote = f":s3,provider=SeaweedFS,env_auth=true,endpoint='{server.endpoint}':bench/far/packs"
    return ["rclone", "--config", os.devnull, "copy", "--ignore-times", "--transfers", str(_THREADS), remote, str(tmp / "rclone")]


def main() -> None:
    """Fetch every pack of the store with boto3, ``_THREADS`` at once, drop the bytes, and print how many they were."""
    import boto3  # noqa: PLC0415 # for this process only
    from botocore.config import Config  # noqa: PLC0415

    client = boto3.client("s3", config=Config(max_pool_connections=_THREADS, s3={"addressing_style": "path"}))
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="bench", Prefix="far/packs/")
    keys = iter([item["Key"] for page in pages for item in page["Contents"]])
    lock = threading.Lock()
    moved: list[int] = []

    def fetch() -> None:
        while True:
            with lock:
                key = next(keys, None)
            if key is None:
                return
            moved.append(len(client.get_object(Bucket="bench", Key=key)["Body"].read()))

    threads = [threading.Thread(target=fetch) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.stdout.write(f"{sum(moved)}\n")


if __name__ == "__main__":
    main()
