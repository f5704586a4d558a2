"""Kernel mode over a real FUSE file system: which opens reach it, and which do not."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imagefs.mount.bind import unmount
from imagefs.mount.kernel import mount_image, mount_tree, settle
from tests.mount.kernel_place import LAZY, SSD, Place, mount_lines
from tests.system.world import detach, require


class Server:
    """The process that serves a place's objects at ``fuse``."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    def __call__(self) -> list[str]:
        """Return what has been opened there since this was asked last."""
        lines = self._log.read_text().split()
        self._log.write_text("")
        return lines


@pytest.fixture
def fuse(place: Place) -> Iterator[Server]:
    """Serve the place's objects."""
    require("fuse")
    point, log = place.folder / "fuse", place.folder / "log"
    point.mkdir()
    log.touch()
    program = str(Path(__file__).with_name("kernel_fuse.py"))
    with subprocess.Popen([sys.executable, program, place.lazy, point, log], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"

        try:
            yield Server(server, log)
        finally:
            server.send_signal(signal.SIGCONT)
            for path in (place.image, place.tree_mount, point):
                detach(path)
            server.wait(20)


def _mount(place: Place) -> None:
    mount_tree(place.write(), place.tree_mount)
    mount_image(place.image, place.tree_mount, place.objects, place.folder / "fuse")


def test_only_what_ssd_lacks_reaches_fuse(place: Place, fuse: Server) -> None:
    here, there = place.told_apart("here", ssd=True), place.told_apart("there")
    _mount(place)
    assert [(path.name, path.stat().st_size) for path in sorted(place.image.iterdir())] == [("here", 5000), ("there", 5000)]
    assert fuse() == []
    assert (place.image / "here").read_bytes() == SSD
    assert fuse() == []
    assert (place.image / "there").read_bytes() == LAZY
    assert fuse() == [f"{there.hex()[:2]}/{there.hex()[2:]}"]
    assert here != there


def test_settle_ends_the_opens_of_what_was_promoted(place: Place, fuse: Server) -> None:
    digest = place.told_apart("d/f")
    _mount(place)
    file = place.image / "d/f"
    assert file.read_bytes() == LAZY
    assert len(fuse()) == 1
    place.promote(digest)
    assert file.read_bytes() == LAZY
    assert len(fuse()) == 1
    settle(place.image)
    assert file.read_bytes() == SSD
    assert fuse() == []
    place.evict(digest)
    settle(place.image)
    assert file.read_bytes() == LAZY
    assert len(fuse()) == 1


def test_a_writable_mount_over_fuse(place: Place, fuse: Server) -> None:
    digest = place.told_apart("d/f")
    mount_tree(place.write(), place.tree_mount)
    mount_image(place.image, place.tree_mount, place.objects, place.folder / "fuse", upper=place.folder / "changes")
    (place.image / "d/f").chmod(0o600)
    assert fuse() == []
    with (place.image / "d/f").open("ab") as file:
        file.write(b"!")
    assert fuse() == [f"{digest.hex()[:2]}/{digest.hex()[2:]}"]
    assert (place.image / "d/f").read_bytes() == LAZY + b"!"
    assert fuse() == []


def test_fuse_is_busy_as_long_as_an_image_is_over_it(place: Place, fuse: Server) -> None:
    """Its mountpoint may be unmounted, but the connection stays open: the overlay has a mount of its own."""
    place.told_apart("f")
    _mount(place)
    unmount(place.folder / "fuse")
    assert len(mount_lines(place.folder)) == 2
    assert (place.image / "f").read_bytes() == LAZY
    assert len(fuse()) == 1


def test_a_daemon_that_hangs_holds_up_only_what_wants_its_files(place: Place, fuse: Server) -> None:
    """So a daemon may settle and unmount what lies over itself, from a thread of its own."""
    lost, kept = place.told_apart("d/lazy"), place.told_apart("d/ssd", ssd=True)
    _mount(place)
    assert (place.image / "d/lazy").read_bytes() == LAZY
    place.promote(lost)
    fuse.process.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        # Still found in FUSE, and by now not readable; so the first thing is not to touch it.
        pool.submit(settle, place.image).result(20)
        assert (place.image / "d/lazy").read_bytes() == SSD
        assert (place.image / "d/ssd").read_bytes() == SSD
        assert sorted(path.name for path in place.image.rglob("*")) == ["d", "lazy", "ssd"]
        pool.submit(unmount, place.image).result(20)
    assert kept != lost
