"""Promotion and eviction under a live mount in kernel mode: readers, mappings and programs meanwhile, and no byte is ever wrong.

    python -m tests.system.test_kernel_churn SECONDS      # the long form

The cache has no room for all of the image, so what is read pushes out what was read before; more is thrown out by command; and mounts are
settled when a burst is over. Whatever a reader has open or mapped stays as it was.
"""

import mmap
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.system.readers import FILES, content, load, write_tree
from tests.system.world import World, wait_until

_KINDS = ("pread", "pread", "whole", "whole", "mmap", "exec")
_LARGE = "large/3"
_SMALL = "small/117"


def churn(world: World, seconds: float) -> dict[str, Any]:
    """Read and evict for so long; return what the readers have seen, and the daemon's figures."""
    point = world.mount(mode="kernel")
    wanted = content(_LARGE)
    with load(point, _KINDS) as readers, (point / _LARGE).open("rb") as file, (point / _SMALL).open("rb") as small:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        end = time.monotonic() + seconds
        rounds = 0
        while time.monotonic() < end or world.stats()["ssd_evicted_files"] < 50:
            world.run("cache", "evict", "--bytes", "24MiB" if rounds % 3 else "64MiB")
            at = rounds * 7919 * 4096 % (len(wanted) - 4096)
            assert mapped[at : at + 4096] == wanted[at : at + 4096], "a mapping has changed"
            small.seek(0)
            assert small.read() == content(_SMALL), "an open file has changed"
            rounds += 1
        seen = readers.stop()
        mapped.close()
    for name in FILES:
        assert (point / name).read_bytes() == content(name), f"wrong bytes in {name}"
    stats = world.stats()
    world.umount(point)
    return {"rounds": rounds, "readers": seen, "stats": stats}


def _judge(found: dict[str, Any]) -> str:
    """See that nothing was wrong; return the figures in words."""
    seen, stats = found["readers"], found["stats"]
    assert sum(reader["failed"] + reader["wrong"] for reader in seen) == 0, seen
    assert all(reader["reads"] > 0 for reader in seen), seen
    assert stats["verify_failures"] == stats["internal_errors"] == stats["worker_restarts"] == 0
    reads = sum(reader["reads"] for reader in seen)
    return f"{found['rounds']} rounds, {reads} reads, 0 failed or wrong, {stats['ssd_evicted_files']} files evicted"


def test_no_byte_is_wrong_while_content_comes_and_goes(reading_world: World) -> None:
    sys.stdout.write(_judge(churn(reading_world, 6)) + "\n")


def main() -> None:
    """Run the long form."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        world = World(Path(folder) / "w")
        world.environment |= {"IMAGEFS_RAM_BYTES": "8MiB", "IMAGEFS_CACHE_BYTES": "64MiB"}
        write_tree(world.root / "source")
        world.convert(f"dir:{world.root}/source")
        try:
            sys.stdout.write(_judge(churn(world, float(sys.argv[1]))) + "\n")
            wait_until(lambda: not world.pids(), "the daemon to end with its last mount")
        finally:
            assert world.close() == []


if __name__ == "__main__":
    main()
