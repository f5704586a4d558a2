"""The disks of a host are full, or fail, while a service is restored: it is restored all the same, or starts cold; never a wrong byte."""

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imagefs.daemon import client
from imagefs.errors import ImageFSError, ProgramError, StoreFullError
from snapshotstore.checkpoint.criu import Criu
from snapshotstore.checkpoint.runsc import Runsc
from snapshotstore.runner.entry import Entry
from snapshotstore.runner.runner import COLD, RESTORED
from tests.snapshots.services import Host, Place
from tests.snapshots.test_runner_faults import RIGHT, SERVICE
from tests.system.world import detach, require, tool, wait_until

_EXT4_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32): from then on all that asks the disk fails with EIO
_NO_FLUSH = 2


@pytest.fixture
def service(service_place: Place) -> Entry:
    """The service, of which the store has a snapshot."""
    made = service_place.entry(SERVICE)
    service_place.frozen(made, "ask")
    return made


@pytest.fixture
def disk(service_place: Place, tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB, which only what is on it fills."""
    require("root", "mounts a file system")
    require("mkfs.ext4")
    image, point = tmp_path / "disk.img", service_place.root / "disk"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    point.mkdir()
    tool("mkfs.ext4", "-q", "-m", "0", image)
    tool("mount", "-o", "loop", image, point)
    yield point
    detach(point)


@pytest.fixture
def host(service_place: Place, disk: Path) -> Iterator[Host]:
    """A host with its cache on that disk, of which it may take all."""
    made = service_place.host("poor", cache=disk / "cache", cache_floor=0)
    yield made
    # While the disk is still there.
    for runner in service_place.runners:
        runner.close()
    service_place.runners.clear()
    client.stop(made.config)


def fill(folder: Path) -> Path:
    """Leave not one block of a file system; return what takes them."""
    filler = folder / f"filler-{len(list(folder.glob('filler-*')))}"
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        for block in (1 << 20, 1 << 12):
            try:
                while True:
                    os.write(descriptor, bytes(block))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return filler


def shut_down(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _EXT4_SHUTDOWN, struct.pack("I", _NO_FLUSH))
    finally:
        os.close(descriptor)


@pytest.fixture
def before_restores(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Has something done when all is mounted, and before an engine reads."""

    def do(what: Callable[[], object]) -> None:
        for kind in (Criu, Runsc):
            real = kind.restore

            def restore(self: object, sandbox: object, images: object, *, deadline: float, real: Callable[..., None] = real) -> None:
                what()
                real(self, sandbox, images, deadline=deadline)

            monkeypatch.setattr(kind, "restore", restore)

    return do


def test_a_cache_disk_that_fills_up_during_a_restore(
    service_place: Place, service: Entry, host: Host, disk: Path, before_restores: Callable[..., None]
) -> None:
    before_restores(lambda: fill(disk))
    answer = service_place.runner("poor").call(service, "ask", [], {})
    assert (answer.result, answer.started, answer.reason) == (RIGHT, RESTORED, "")
    # What was fetched lands later than it is read.
    wait_until(lambda: client.stats(host.config)["ssd_write_errors"] > 0, "what was fetched to be refused by the disk")


def test_no_room_for_the_index_of_a_snapshot_is_a_cold_start(service_place: Place, service: Entry, host: Host, disk: Path) -> None:
    # The image and the source were mounted here before.
    assert service_place.runner("poor", snapshots=False).call(service, "ask", [], {}).started == COLD
    filler = fill(disk)
    answer = service_place.runner("poor").call(service, "ask", [], {})
    assert (answer.result, answer.started) == (RIGHT, COLD)
    assert "No space left" in answer.reason, answer.reason
    (note,) = answer.notes
    assert note.startswith("no snapshot was made: ")
    filler.unlink()
    assert service_place.runner("poor").call(service, "ask", [], {}).started == RESTORED


def test_no_room_for_any_index_is_an_error_that_says_so(service_place: Place, service: Entry, host: Host, disk: Path) -> None:
    fill(disk)
    runner = service_place.runner("poor")
    with pytest.raises(ImageFSError, match="No space left") as raised:
        runner.call(service, "ask", [], {})
    assert "--cache" in (raised.value.hint or "")
    # A resident caller tries again and again: nothing stays of what never ran.
    assert list(runner._place.folder.glob("r-*")) == []


def test_a_cache_disk_that_fails_during_a_restore(
    service_place: Place, service: Entry, host: Host, disk: Path, before_restores: Callable[..., None]
) -> None:
    before_restores(lambda: shut_down(disk))
    runner = service_place.runner("poor")
    if service_place.engine == "runsc":
        # All that it needs is in its memory, and the daemon goes on with what the store has.
        answer = runner.call(service, "ask", [], {})
        assert (answer.result, answer.started, answer.reason) == (RIGHT, RESTORED, "")
    else:
        # What the program runs on the kernel itself may read there, and then nothing can: that is an error, and nobody waits.
        with contextlib.suppress(ProgramError):
            assert runner.call(service, "ask", [], {}).result == RIGHT


def test_no_room_where_programs_are_run_is_an_error_that_says_so(service_place: Place, service: Entry, tmp_path: Path) -> None:
    host = service_place.host()
    runner = service_place.runner()
    assert runner.look(service).snapshot is not None
    replicas = runner._place.folder
    mounts = runner._place.mounts
    assert mounts.parent == replicas
    tool("mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", replicas)
    try:
        (replicas / "mounts").mkdir()
        fill(replicas)
        with pytest.raises(StoreFullError, match="no room") as raised:
            runner.call(service, "ask", [], {})
        assert "--runtime" in (raised.value.hint or "")
    finally:
        runner.mounts.close()
        detach(replicas)
    answer = service_place.call(service, "ask")
    assert (answer.result, answer.started) == (RIGHT, RESTORED)
    assert host.worker
