"""Where a run of the bench lives: the servers, the links to them, and what is prepared of each workload.

What a workload is prepared to (its tree on ext4, a squashfs, a tar with its index, …) is made once and kept with the images; see
:class:`Prepared`. Everything else is in a scratch folder that goes with the run.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3

from bench.harness import scratch
from bench.images.cache import CACHE, Image, made, run, say
from bench.starts import processes
from bench.starts.server import Server
from bench.starts.workloads import Workload
from tests import weed
from tests.faults import FaultProxy

PROGRAMS = CACHE / "bench-venv" / "bin"
"""Where ``./dev bench starts`` has installed the peers that come from PyPI."""

BUCKET = "peers"
"""What peers have in the S3 server is in here."""

_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


@dataclass(frozen=True, slots=True)
class Link:
    """A link: ``delay`` is the seconds of a round trip, ``bandwidth`` bytes a second."""

    delay: float
    bandwidth: float

    @classmethod
    def parse(cls, text: str) -> "Link":
        """Read ``20ms,200MB/s``. ``ValueError`` for anything else."""
        found = re.match(r"([\d.]+)ms,([\d.]+)([kMG]?)B/s$", text)
        if not found or not float(found[2]):
            raise ValueError(f"a link is written as 20ms,200MB/s, not {text}")
        return cls(float(found[1]) / 1e3, float(found[2]) * _UNITS[found[3]])

    def __str__(self) -> str:
        """Write it as :meth:`parse` reads it."""
        unit = next(name for name, size in reversed(_UNITS.items()) if self.bandwidth >= size)
        return f"{self.delay * 1e3:g}ms,{self.bandwidth / _UNITS[unit]:g}{unit}B/s"


@dataclass(frozen=True, slots=True)
class Traffic:
    """What moved over the links since :meth:`Place.forget`."""

    bytes: int
    requests: int


@dataclass(frozen=True, slots=True)
class Place:
    """The servers and the links. ``folder`` is the run's scratch, ``served`` the folder of the HTTP server."""

    folder: Path
    weed: weed.Weed
    s3: FaultProxy
    server: Server
    web: FaultProxy

    def shape(self, link: Link | None) -> None:
        """Make both links like ``link``; None: without limit."""
        for proxy in (self.s3, self.web):
            proxy.set(bandwidth=link.bandwidth if link else None, delay=link.delay if link else 0.0)

    def forget(self) -> None:
        """Begin to count anew."""
        self.s3.forget()
        self.web.forget()

    def traffic(self) -> Traffic:
        """Tell what moved."""
        found = [proxy.stats() for proxy in (self.s3, self.web)]
        return Traffic(sum(stats.bytes for stats in found), sum(stats.requests for stats in found))

    def environment(self, *, far: bool) -> dict[str, str]:
        """Give what a program needs in its environment to use the S3 server: over the link, or past it."""
        endpoint = self.s3.url if far else self.weed.endpoint
        return dict(os.environ) | self.weed.environment | {"AWS_ENDPOINT_URL_S3": endpoint}


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """Start the servers and the links for the length of the block."""
    with scratch() as folder, weed.serving(folder / "weed") as s3, Server(folder / "served") as server:
        host = s3.endpoint.removeprefix("http://")
        with FaultProxy(host) as s3_link, FaultProxy(server.address) as web_link:
            found = Place(folder, s3, s3_link, server, web_link)
            session = boto3.Session(weed.ACCESS_KEY, weed.SECRET_KEY, region_name="us-east-1")
            session.client("s3", endpoint_url=s3.endpoint).create_bucket(Bucket=BUCKET)
            yield found


def rclone(where: Place, *, far: bool) -> list[str | Path]:
    """Give the command line of ``rclone`` with the S3 server as ``:s3:``."""
    endpoint = where.s3.url if far else where.weed.endpoint
    known = {"provider": "Other", "endpoint": endpoint, "access-key-id": weed.ACCESS_KEY, "secret-access-key": weed.SECRET_KEY}
    options = [f"--s3-{name}={value}" for name, value in known.items()]
    return [PROGRAMS / "rclone", *options, "--s3-force-path-style", "--s3-region=us-east-1", "--config=/dev/null"]


class Prepared:
    """A workload made ready: each part is made when it is first asked for, and kept."""

    def __init__(self, workload: Workload) -> None:
        """Make the image, if it was not made yet."""
        self.workload = workload
        self.image: Image = workload.image()
        # Every image is in a folder of its own that is named after its recipe, but several may share that.
        self._key = f"{self.image.layout.parent.name}-{self.image.tag}"

    def tree(self) -> Path:
        """Give the image unpacked, on ext4 (or what the cache is on)."""
        return self._made("tree", 1, lambda to: run("umoci", "raw", "unpack", "--image", self._source, to / "root", timeout=1800)) / "root"

    def squashfs(self) -> Path:
        """Give the image as squashfs: zstd, blocks of 128 KiB, of which a small read moves and unpacks less than of larger ones."""
        options = ("-comp", "zstd", "-Xcompression-level", "6", "-b", "128K", "-no-progress", "-quiet")
        return (
            self._made("squashfs", 1, lambda to: run("mksquashfs", self.tree(), to / "image.squashfs", *options, timeout=1800))
            / "image.squashfs"
        )

    def indexed(self) -> Path:
        """Give the folder of the image as ``image.tar`` and its index for ratarmount, ``image.tar.index.sqlite``."""

        def make(to: Path) -> None:
            run("tar", "-C", self.tree(), "--numeric-owner", "-cf", to / "image.tar", ".", timeout=1800)
            argv = ("--index-file", to / "image.tar.index.sqlite", "--no-mount", to / "image.tar")
            run(PROGRAMS / "ratarmount", *argv, timeout=1800)

        return self._made("indexed", 1, make)

    def untimed(self) -> Path:
        """Give the tree with Python's compiled files valid whatever the time of their sources says: S3 keeps times dearly."""
        if not self.workload.python:
            return self.tree()
        command = ("python3", "-m", "compileall", "-q", "-f", "-j0", "--invalidation-mode", "unchecked-hash")

        def make(to: Path) -> None:
            say(f"{self.workload.name}: compiling its Python anew, for file systems without times (1 to 2 minutes)")
            run("cp", "-al", self.tree(), to / "root")
            # compileall writes a new file and renames it: the tree that shares the old one keeps it.
            folders = [f"/usr/lib/{path.name}" for path in (to / "root/usr/lib").glob("python3*")]
            folders += [f"/usr/local/lib/{path.name}" for path in (to / "root/usr/local/lib").glob("python3*")]
            script = 'chroot "$0" "$@" || true'  # A package may have files that are meant for another Python.
            run("sh", "-c", script, to / "root", *command, *folders, timeout=1800)

        return self._made("untimed", 1, make) / "root"

    def upload(self, where: Place) -> str:
        """Put the tree of :meth:`untimed` into the S3 server, links as rclone writes them, and give its place in the bucket."""
        target = f"{BUCKET}/{self.workload.name}-tree"
        if not (marker := where.folder / f"{self.workload.name}-uploaded").exists():
            options = (
                "--links",
                "--create-empty-src-dirs",
                "--s3-directory-markers",
                "--transfers=32",
                "--checkers=32",
                "--s3-no-check-bucket",
                "--ignore-checksum",
                "--no-traverse",
            )
            command = (*rclone(where, far=False), "copy", self.untimed(), f":s3:{target}", *options)
            processes.command(*command, seconds=1200, env=where.environment(far=False))
            marker.touch()
        return target

    def upload_squashfs(self, where: Place) -> str:
        """Put the squashfs into the S3 server, and give its folder in the bucket."""
        target = f"{BUCKET}/{self.workload.name}-squashfs"
        if not (marker := where.folder / f"{self.workload.name}-squashfs-uploaded").exists():
            command = (*rclone(where, far=False), "copy", self.squashfs(), f":s3:{target}", "--s3-no-check-bucket")
            processes.command(*command, seconds=600, env=where.environment(far=False))
            marker.touch()
        return target

    def publish(self, where: Place) -> str:
        """Have the HTTP server serve the layout, squashfs and tar; give the name that they have there."""
        name = self.workload.name
        layout = where.server.top / "layouts" / name
        if not layout.exists():
            layout.symlink_to(self.image.layout)
        return name

    def serve_file(self, where: Place, *sources: Path) -> str:
        """Have the HTTP server serve files, and give the path of their folder there."""
        folder = where.server.top / "files" / self.workload.name
        folder.mkdir(parents=True, exist_ok=True)
        for source in sources:
            target = folder / source.name
            if not target.exists():
                # A hard link: the server gives nothing that lies outside of its folder.
                os.link(source, target)
        return f"/files/{self.workload.name}/"

    @property
    def _source(self) -> str:
        return f"{self.image.layout}:{self.image.tag}"

    def _made(self, kind: str, version: int, make: Callable[[Path], None]) -> Path:
        recipe = {"version": version, "image": self._key, "layout": json.loads((self.image.layout / "index.json").read_text())}
        return made(f"starts-{self.workload.name}-{kind}", recipe, make)


def have(*programs: str | Path) -> str:
    """Say which of ``programs`` are missing; nothing if none is. Those from PyPI are named by :data:`PROGRAMS`."""
    missing = [os.path.basename(name) for name in programs if not shutil.which(name)]  # noqa: PTH119 - it may be no path
    return f"not installed: {', '.join(missing)}" if missing else ""
