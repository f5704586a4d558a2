"""What a program sees through a mount: content, attributes, names, errors."""

import errno
import mmap
import os
import stat
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imagefs.daemon import client
from imagefs.digest import digest_of
from tests.fuse.conftest import BIG, SMALL, SPARSE, Mounted
from tests.fuse.images import FRAME, MTIME


def _drop_caches() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("2")


def test_content(mounted: Mounted) -> None:
    assert (mounted.path / "big").read_bytes() == BIG
    assert (mounted.path / "sparse").read_bytes() == SPARSE
    assert (mounted.path / "inline").read_bytes() == b"in the tree\n"
    assert (mounted.path / "empty").read_bytes() == b""
    for name, data in SMALL.items():
        assert (mounted.path / name).read_bytes() == data


def test_reads_at_any_place_are_exact(mounted: Mounted) -> None:
    descriptor = os.open(mounted.path / "big", os.O_RDONLY)
    try:
        for start in (0, 1, FRAME - 1, FRAME, len(BIG) - 5, len(BIG), len(BIG) + 10):
            for size in (1, 4096, FRAME + 1):
                assert os.pread(descriptor, size, start) == BIG[start : start + size]
    finally:
        os.close(descriptor)


def test_attributes(mounted: Mounted) -> None:
    one, two = (os.lstat(mounted.path / "names" / name) for name in ("one", "two"))
    assert (one.st_mode, one.st_uid, one.st_gid, one.st_size, one.st_nlink) == (stat.S_IFREG | 0o4751, 70000, 4_000_000_000, 5000, 3)
    assert (one.st_mtime_ns, one.st_blocks, one.st_ino) == (-1_500_000_001, 10, two.st_ino)
    device = os.lstat(mounted.path / "device")
    assert (device.st_mode, device.st_rdev) == (stat.S_IFCHR | 0o666, os.makedev(250, 70000))
    assert stat.S_ISFIFO(os.lstat(mounted.path / "fifo").st_mode)
    assert os.lstat(mounted.path).st_mtime_ns == MTIME
    assert os.fsencode((mounted.path / "link").readlink()) == b"../else/\xffwhere" * 100


def test_names(mounted: Mounted) -> None:
    assert sorted(path.name for path in (mounted.path / "small").iterdir()) == sorted(name[6:] for name in SMALL)
    assert b"\xff\xfe" + b"n" * 253 in {os.fsencode(path.name) for path in (mounted.path / "names").iterdir()}
    assert not (mounted.path / "nothing").exists()
    with pytest.raises(OSError, match="too long"):
        (mounted.path / ("n" * 256)).stat()


def test_a_second_walk_asks_for_nothing_but_directories(mounted: Mounted) -> None:
    def walk(path: Path = mounted.path) -> int:
        total = 0
        with os.scandir(path) as entries:
            for entry in entries:
                total += entry.stat(follow_symlinks=False).st_size
                total += walk(Path(entry)) if entry.is_dir(follow_symlinks=False) else 0
        return total

    first = walk()
    assert not (mounted.path / "nothing").exists()
    before = mounted.requests()
    assert walk() == first
    assert not (mounted.path / "nothing").exists()
    after = mounted.requests()
    assert {name for name, count in after.items() if count != before.get(name, 0)} <= {"opendir", "readdir", "releasedir"}


def test_a_second_read_is_the_page_cache(mounted: Mounted) -> None:
    (mounted.path / "big").read_bytes()
    before = mounted.requests()["read"]
    assert (mounted.path / "big").read_bytes() == BIG
    assert mounted.requests()["read"] == before


def test_mmap(mounted: Mounted) -> None:
    with (mounted.path / "big").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[3 * FRAME + 5] == BIG[3 * FRAME + 5]
        assert mapped[:] == BIG


def test_a_program_runs_from_the_mount(mounted: Mounted) -> None:
    done = subprocess.run([mounted.path / "bin/dash", "-c", "echo ran"], capture_output=True, timeout=20, check=True)
    assert done.stdout == b"ran\n"


@pytest.mark.parametrize(
    "change",
    [
        lambda path: (path / "big").open("r+b"),
        lambda path: (path / "new").open("xb"),
        lambda path: os.truncate(path / "big", 1),
        lambda path: (path / "big").unlink(),
        lambda path: (path / "big").rename(path / "other"),
        lambda path: os.link(path / "big", path / "other"),
        lambda path: (path / "new").symlink_to("x"),
        lambda path: (path / "new").mkdir(),
        lambda path: (path / "small").rmdir(),
        lambda path: os.mknod(path / "new"),
        lambda path: (path / "big").chmod(0o600),
        lambda path: os.chown(path / "big", 1, 1),
        lambda path: os.utime(path / "big"),
        lambda path: os.setxattr(path / "big", "user.x", b"y"),
        lambda path: os.removexattr(path / "tagged", "user.colour"),
    ],
)
def test_every_change_is_refused_as_read_only(mounted: Mounted, change) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    with pytest.raises(OSError) as caught:  # noqa: PT011 # the number is what counts
        change(mounted.path)
    assert caught.value.errno == errno.EROFS


def test_extended_attributes(mounted: Mounted) -> None:
    tagged = mounted.path / "tagged"
    assert sorted(os.listxattr(tagged)) == ["security.capability", "trusted.overlay.opaque", "user.colour"]
    assert os.getxattr(tagged, "user.colour") == b"blue\0green"
    assert os.getxattr(tagged, "trusted.overlay.opaque") == b"y"
    with pytest.raises(OSError) as caught:  # noqa: PT011
        os.getxattr(tagged, "user.nothing")
    assert caught.value.errno == errno.ENODATA


def test_our_own_attributes_are_told_and_not_listed(mounted: Mounted) -> None:
    big = mounted.path / "big"
    assert os.getxattr(big, "user.imagefs.object") == digest_of(BIG).hex().encode()
    assert os.getxattr(big, "user.imagefs.frames") == b"21"
    big.read_bytes()
    assert os.getxattr(big, "user.imagefs.tier") in (b"ram", b"store")
    assert os.getxattr(mounted.path / "inline", "user.imagefs.tier") == b"tree"
    assert os.getxattr(mounted.path / "inline", "user.imagefs.object") == digest_of(b"in the tree\n").hex().encode()
    assert os.listxattr(big) == []
    with pytest.raises(OSError):  # noqa: PT011
        os.getxattr(mounted.path / "small", "user.imagefs.object")


def test_statfs_says_that_nothing_is_free(mounted: Mounted) -> None:
    found = os.statvfs(mounted.path)
    assert (found.f_bavail, found.f_ffree, found.f_namemax) == (0, 0, 255)
    assert found.f_blocks * found.f_frsize >= len(BIG)
    assert found.f_flag & os.ST_RDONLY
    assert found.f_flag & os.ST_NOSUID
    assert found.f_flag & os.ST_NODEV


def test_modes_are_enforced_for_other_users(mounted: Mounted) -> None:
    for parent in mounted.path.parents:
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    script = f"cat {mounted.path}/inline; cat {mounted.path}/private"
    done = subprocess.run(["sh", "-c", script], user=65534, group=65534, extra_groups=[], capture_output=True, timeout=20, check=False)
    assert done.stdout == b"in the tree\n"
    assert b"Permission denied" in done.stderr


def test_many_readers_at_once(mounted: Mounted) -> None:
    _drop_caches()
    start = threading.Barrier(16)

    def read(number: int) -> bool:
        start.wait(10)
        names = sorted(SMALL)[number::4]
        return all((mounted.path / name).read_bytes() == SMALL[name] for name in names) and (mounted.path / "big").read_bytes() == BIG

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(read, range(16)))
    stats = client.stats(mounted.place.config)
    assert (stats["internal_errors"], stats["verify_failures"], stats["failed_requests"]) == (0, 0, 0)


def test_read_ahead_was_raised(mounted: Mounted) -> None:
    device = os.lstat(mounted.path).st_dev
    path = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    assert path.read_text().strip() == "4096"


def test_the_log_holds_no_bug(mounted: Mounted) -> None:
    assert "bug" not in mounted.place.log()
