"""Where a fault happens: the store that all share, and for each fault a host of its own with a proxy between the two.

A ``Lab`` is the server, the images in it, and a cache in which the SSD tier has ``warm/ssd``. A ``Stage`` is a host that begins with a copy
of that cache: it has the image mounted twice (``point``, and ``spare`` to be unmounted), ``warm/ram`` in RAM, ``warm/ssd`` on SSD alone,
and nothing else of what its image holds. In kernel mode the kernel reads both from SSD.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from imagefs.mount.table import FUSE, KERNEL
from tests.faults import FaultProxy
from tests.matrix import content
from tests.system.world import World, detach, tool, wait_until
from tests.weed import Weed

DEADLINE: Final = 4.0
"""``IMAGEFS_STORE_DEADLINE`` of every stage, in seconds."""

IMAGE: Final = "app:1"
OTHER: Final = "other:1"
_STORE: Final = "s3://matrix/shared"


class Ended(Exception):  # noqa: N818 - that a command ends with a status is what is asked about
    """A command ended with ``status``, which is not 0."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Lab:
    """What all faults share. ``source`` is the folder that the image was made of."""

    weed: Weed
    root: Path
    source: Path
    files: dict[str, bytes]
    cache: Path


def make_lab(weed: Weed, root: Path) -> Lab:
    """Convert the images, and fill the cache that stages begin with."""
    world = World(root / "lab")
    world.environment |= weed.environment | {"IMAGEFS_STORE": _STORE}
    source, other = root / "source", root / "other"
    content.write_image(source)
    content.write_other(other)
    files = content.files()
    try:
        world.convert(f"dir:{source}", IMAGE)
        world.convert(f"dir:{other}", OTHER)
        point = world.mount(IMAGE)
        read(point, content.SSD, files)
        settle(world)
        world.umount(point)
        wait_until(lambda: not world.pids(), "the daemon to end with its last mount")
    finally:
        assert world.close() == []
    return Lab(weed, root, source, files, world.cache)


@dataclass
class Stage:
    """A host, and what it is connected with. ``is_restarted``: RAM has nothing any more."""

    lab: Lab
    proxy: FaultProxy
    world: World
    number: int
    mode: str
    point: Path
    spare: Path
    pid: int = 0
    is_restarted: bool = False

    def command(self, *arguments: str | Path) -> Any:
        """Run a command and return its JSON; raise ``Ended`` if it fails."""
        done = self.world.attempt(*arguments, "--json")
        if done.status:
            raise Ended(done.status, (done.out + done.err).strip()[-400:])
        return done.json

    def mount(self, ref: str, name: str) -> Path:
        """Mount in a new directory, or in the one that an earlier try left."""
        point = self.world.root / name
        point.mkdir(exist_ok=True)
        # What a cell reads is to be where its column says: nothing is fetched ahead because another column has recorded a start.
        self.command("mount", ref, point, "--no-prefetch", "--no-record")
        return point

    def reads(self) -> int:
        """Count the reads that the daemon was asked for."""
        return int(self.world.stats()["fuse_requests"].get("read", 0))

    def tier(self, name: str) -> str:
        """Say from where a file would be read now; in FUSE mode, whose attribute does not show through an overlay."""
        return os.getxattr(self.point / name, "user.imagefs.tier").decode()

    def read(self, name: str) -> None:
        """Read a file of the image past the kernel's page cache, and see that it is right."""
        read(self.point, name, self.lab.files)

    def held(self) -> list[Path]:
        """Return the files of the SSD tier."""
        folders = [self.world.cache / name for name in ("objects", "frames", "partial")]
        return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def staged(lab: Lab, number: int, mode: str = FUSE, disk_mib: int = 0) -> Iterator[Stage]:
    """Set a host up that mounts in ``mode``, and take it down again, whatever happened.

    Its cache is on a small file system of its own if ``disk_mib`` is not 0.
    """
    root = lab.root / f"stage{number}"
    world = World(root)
    with FaultProxy(lab.weed.endpoint.removeprefix("http://")) as proxy, contextlib.ExitStack() as stack:
        world.environment |= lab.weed.environment | {
            "IMAGEFS_STORE": _STORE,
            "AWS_ENDPOINT_URL_S3": proxy.url,
            "IMAGEFS_STORE_DEADLINE": f"{DEADLINE:g}",
            "IMAGEFS_CACHE_FLOOR": "0",
            "IMAGEFS_MODE": mode,
        }
        if disk_mib:
            world.cache = stack.enter_context(small_disk(root, disk_mib)) / "cache"
        stack.callback(_close, world, proxy)
        tool("cp", "-a", "--sparse=always", str(lab.cache), str(world.cache))
        stage = Stage(lab, proxy, world, number, mode, world.root / "mnt", world.root / "spare")
        stage.point = stage.mount(IMAGE, "mnt")
        stage.spare = stage.mount(IMAGE, "spare")
        stage.pid = int(world.run("daemon", "status", "--json").json["worker_pid"])
        stage.read(content.RAM)
        settle(world)
        if mode == KERNEL:
            wait_until(lambda: _is_native(stage), "the mounts to look anew where the content is")
        yield stage


def _is_native(stage: Stage) -> bool:
    """Say whether the kernel reads by itself what is on SSD. Who reads it again and again is why it does not: there has to be a pause."""
    before = stage.reads()
    stage.read(content.RAM)
    if stage.reads() == before:
        return True
    time.sleep(1.5)
    return False


def _close(world: World, proxy: FaultProxy) -> None:
    proxy.clear()
    assert world.close() == []


@contextlib.contextmanager
def small_disk(root: Path, mib: int) -> Iterator[Path]:
    """Mount an ext4 of so many MiB."""
    image, point = root / "disk.img", root / "disk"
    with image.open("wb") as file:
        file.truncate(mib << 20)
    point.mkdir()
    tool("mkfs.ext4", "-q", "-m", "0", str(image))
    tool("mount", "-o", "loop", str(image), str(point))
    try:
        yield point
    finally:
        if subprocess.run(["umount", str(point)], capture_output=True, check=False).returncode:
            detach(point)


def settle(world: World) -> None:
    """Wait until the SSD tier has committed what was read."""
    wait_until(lambda: bool(world.run("cache", "status", "--json").json["settled"]), "what was read to be committed")


def drop(descriptor: int) -> None:
    """Have the kernel forget what it has of a file, so that the daemon is asked."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def read(point: Path, name: str, files: dict[str, bytes]) -> None:
    """Read a file past the page cache, and see that it is right."""
    with (point / name).open("rb", buffering=0) as file:
        drop(file.fileno())
        data = b"".join(iter(lambda: file.read(content.MIB), b""))
    assert data == files[name], f"wrong bytes in {name}"
