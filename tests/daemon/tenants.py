"""Many tenants on one daemon: images are mounted, read and unmounted at random, in both modes, by several at a time.

``soak`` is a test in short, and ``python -m tests.daemon.tenants`` the long form: 200 mounts of 50 images.
"""

import contextlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from imagefs.daemon import client
from imagefs.mount.mountinfo import mount_at
from tests.daemon.place import Place
from tests.fuse.images import noise
from tests.system.world import wait_until

COMMON = {"common/big": noise(700_000, 1), "common/small": noise(900, 2)}
_SETTLED_SECONDS = 30


@dataclass(frozen=True)
class Held:
    """What the daemon holds: descriptors of its two processes, and the memory of the worker in bytes."""

    supervisor: int
    worker: int
    rss: int


def files_of(number: int) -> dict[str, bytes]:
    """Return the content of an image: some of its own, some that all have."""
    own = {f"own/{name}": noise(60 + 997 * name, 1000 * number + name) for name in range(4)}
    return COMMON | own | {"own/big": noise(300_000 + number, 7000 + number)}


def publish(place: Place, count: int) -> list[str]:
    """Publish so many images; return their manifests."""
    manifests = []
    for number in range(count):
        maker = place.maker()
        for name, data in files_of(number).items():
            maker.file(name, data)
        manifests.append(maker.publish(f"tenant:{number}"))
    return manifests


def held(place: Place) -> Held:
    """Look what the daemon holds now."""
    status = client.status(place.config)
    supervisor, worker = (len(list(Path(f"/proc/{status[key]}/fd").iterdir())) for key in ("pid", "worker_pid"))
    return Held(supervisor, worker, int(status["rss_bytes"]))


def soak(place: Place, manifests: list[str], mounts: int, steps: int, *, tenants: int = 4, seed: int = 1) -> int:
    """Have each tenant mount, read and unmount at mountpoints of its own; return how many files were read, all of them right."""
    points = [place.mountpoint(f"tenant-{number}") for number in range(mounts)]

    def tenant(number: int) -> int:
        choice = random.Random(100 * seed + number)
        mine = points[number::tenants]
        mounted: dict[Path, int] = {}
        read = 0
        for _ in range(steps // tenants):
            point = choice.choice(mine)
            if point not in mounted:
                image = choice.randrange(len(manifests))
                client.mount(place.config, mountpoint=point, manifest=manifests[image], mode=choice.choice(["kernel", "fuse"]))
                mounted[point] = image
            elif choice.random() < 0.4:
                client.umount(place.config, point)
                assert mount_at(point) is None
                del mounted[point]
            for there, image in choice.sample(sorted(mounted.items()), min(2, len(mounted))):
                name, data = choice.choice(sorted(files_of(image).items()))
                assert (there / name).read_bytes() == data, f"wrong bytes of {name} in {there}"
                read += 1
        for point in mounted:
            client.umount(place.config, point)
        return read

    with ThreadPoolExecutor(tenants) as pool:
        return sum(pool.map(tenant, range(tenants)))


@contextlib.contextmanager
def kept(place: Place, manifest: str) -> Iterator[None]:
    """Keep an image mounted, so that the daemon stays, and see that it holds at the end what it held at the beginning."""
    point = place.mountpoint("kept")
    client.mount(place.config, mountpoint=point, manifest=manifest, mode="kernel")
    # Once before it counts: what is opened once and kept, and what allocators keep.
    soak(place, [manifest], 4, 40, seed=9)
    for path in place.root.glob("tenant-*"):
        path.rmdir()
    before = held(place)
    yield
    assert client.status(place.config)["mounts"][0]["mountpoint"] == str(point)
    wait_until(lambda: len(place.mounted()) == 4, "nothing to be mounted but FUSE, the trees' place, and one image with its tree")
    wait_until(
        lambda: (now := held(place)).worker <= before.worker + 2 and now.supervisor <= before.supervisor,
        f"the descriptors to be as before ({before}), not {held(place)}",
        _SETTLED_SECONDS,
    )
    assert len(place.trees()) <= 1, "only the image that is mounted is shown"
    client.umount(place.config, point)
    assert place.mounted() == []


def main() -> None:
    """Run the long form, and say what it came to."""
    images, mounts, steps = 50, 200, int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:
        place = Place(Path(folder) / "place")
        manifests = publish(place, images)
        try:
            start = time.monotonic()
            with kept(place, manifests[0]):
                first = held(place)
                read = soak(place, manifests, mounts, steps)
                last = held(place)
            seconds = time.monotonic() - start
        finally:
            left = place.close()
        sys.stdout.write(
            f"{steps} steps, {read} files read and right, {seconds:.0f} s; before {first}, after {last}; left mounted: {left}\n"
        )


if __name__ == "__main__":
    main()
