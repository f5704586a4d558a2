"""How a mount behaves for the programs that use it, and what it moves for them."""

# ruff: noqa: PTH101, PTH102, PTH104, PTH106, PTH108, PTH208, PTH211 # system calls are what is tested here, by their own names

import ctypes
import errno
import mmap
import os
import random
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import blake3
import pytest

from tests.corpus import rawtar as t
from tests.corpus.features import ROOT, noise, text
from tests.corpus.oci import simple
from tests.system.compare import differences, snapshot
from tests.system.world import World, require, tool, wait_until

NOBODY: Final = 65534
LARGE: Final = noise(9_000_001, b"large")
MANY: Final = 20_000
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.fdopendir.restype = _LIBC.readdir.restype = ctypes.c_void_p
_LIBC.telldir.restype = ctypes.c_long


@dataclass(frozen=True)
class Mounted:
    """A world, its image's mountpoint, and what has to be in it."""

    world: World
    point: Path
    files: dict[str, bytes]


def _libraries(program: str) -> list[Path]:
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, timeout=20, check=True).stdout
    return [Path(word) for word in listed.split() if word.startswith("/")]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """An image with a program and its libraries, files of several sizes and owners, and a directory of 20,000 entries."""
    files = {
        "large": LARGE,
        "text": text(2_500_000),
        "small": b"s" * 1000,
        "inlined": b"i" * 64,
        "empty": b"",
        **{f"cluster/{number}": noise(3000, b"%d" % number) for number in range(100)},
    }
    members = [t.file(name.encode(), data) for name, data in files.items()]
    members += [t.file(b"secret", b"for root", mode=0o600), t.directory(b"closed", 0o700), t.file(b"closed/inside", b"x")]
    members += [t.directory(b"many"), *[t.file(b"many/%05d" % number, b"%d" % number) for number in range(MANY)]]
    members += [t.symlink(b"link", b"small"), t.directory(b"proc"), t.directory(b"dev")]
    programs = {Path("/bin/cat"), *_libraries("/bin/cat")}
    members += [t.file(os.fsencode(path).lstrip(b"/"), path.resolve().read_bytes(), mode=0o755) for path in sorted(programs)]
    return simple(tmp_path_factory.mktemp("fuse") / "layout", t.archive(ROOT, *members)), files


@pytest.fixture(scope="module")
def mounted(layout: tuple[Path, dict[str, bytes]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    require("fuse")
    require("root")
    world = World(tmp_path_factory.mktemp("mounted") / "world")
    world.convert(f"oci:{layout[0]}", "test")
    yield Mounted(world, world.mount("test"), layout[1])
    assert world.close() == []


@pytest.fixture
def fresh(layout: tuple[Path, dict[str, bytes]], mounted: Mounted, tmp_path: Path) -> Iterator[Mounted]:
    """The same image in the same store, with a daemon that has read nothing yet."""
    world = World(tmp_path / "fresh")
    world.environment["IMAGEFS_STORE"] = f"file://{mounted.world.store}"
    # Starts from this store were recorded meanwhile.
    yield Mounted(world, world.mount("test", "mnt", "--no-prefetch"), layout[1])
    assert world.close() == []


def change(before: dict[str, Any], after: dict[str, Any], name: str) -> dict[str, int]:
    """Return what was added to a counter by kind, the kinds that stayed left out."""
    return {key: value - before[name].get(key, 0) for key, value in after[name].items() if value != before[name].get(key, 0)}


def test_only_the_index_moved(fresh: Mounted) -> None:
    stats = fresh.world.stats()
    assert set(stats["bytes_read"].values()) == {0}
    assert stats["prefetch_bytes"] == 0
    packs = sum(path.stat().st_size for path in Path(fresh.world.env["IMAGEFS_STORE"][7:], "packs").iterdir())
    assert stats["store_bytes"] < packs / 10


def test_stats_has_what_it_promises(mounted: Mounted) -> None:
    promised = {
        *("fuse_requests", "bytes_read", "store_gets", "store_bytes", "prefetch_bytes", "prefetch_used_bytes", "verify_failures"),
        *("hedged_gets", "objects_complete", "ssd_bytes", "worker_restarts", "rss_bytes"),
    }
    stats = mounted.world.stats()
    assert promised <= stats.keys()
    assert set(stats["bytes_read"]) >= {"ram", "ssd", "store"}
    assert stats["rss_bytes"] > 1 << 20


def test_content(mounted: Mounted) -> None:
    for name, data in mounted.files.items():
        assert (mounted.point / name).read_bytes() == data, name


def test_reads_at_odd_places(fresh: Mounted) -> None:
    dice = random.Random(7)
    handle = os.open(fresh.point / "large", os.O_RDONLY)
    try:
        places = [(0, 1), (len(LARGE) - 1, 10), (len(LARGE), 10), (len(LARGE) + 5, 10), (262_143, 2), (262_144, 262_144)]
        places += [(dice.randrange(len(LARGE)), dice.choice([1, 511, 4096, 131_072, 1 << 20])) for _ in range(300)]
        for start, length in places:
            assert os.pread(handle, length, start) == LARGE[start : start + length], (start, length)
    finally:
        os.close(handle)


def test_mmap(fresh: Mounted) -> None:
    with (fresh.point / "large").open("rb") as file:
        for kind in (mmap.MAP_PRIVATE, mmap.MAP_SHARED):
            with mmap.mmap(file.fileno(), 0, flags=kind, prot=mmap.PROT_READ) as view:
                assert view[5_000_000:5_100_000] == LARGE[5_000_000:5_100_000]
                assert view[-1:] == LARGE[-1:]
                assert view[:] == LARGE


def test_exec(fresh: Mounted) -> None:
    assert tool(fresh.point / "bin/cat", fresh.point / "small") == b"s" * 1000


def test_exec_in_a_chroot(fresh: Mounted) -> None:
    require("chroot")
    assert tool("chroot", fresh.point, "/bin/cat", "/link") == b"s" * 1000


def _open(flags: int) -> Callable[[Path], object]:
    return lambda point: os.open(point / "small", flags)


WRITES: Final[dict[str, Callable[[Path], object]]] = {
    "open_write": _open(os.O_WRONLY),
    "open_read_write": _open(os.O_RDWR),
    "open_truncate": _open(os.O_WRONLY | os.O_TRUNC),
    "open_append": _open(os.O_WRONLY | os.O_APPEND),
    "create": lambda point: os.open(point / "new", os.O_WRONLY | os.O_CREAT, 0o644),
    "create_unnamed": lambda point: os.open(point, os.O_TMPFILE | os.O_WRONLY),
    "truncate": lambda point: os.truncate(point / "small", 0),
    "unlink": lambda point: os.unlink(point / "small"),
    "mkdir": lambda point: os.mkdir(point / "new"),
    "rmdir": lambda point: os.rmdir(point / "proc"),
    "symlink": lambda point: os.symlink("x", point / "new"),
    "link": lambda point: os.link(point / "small", point / "new"),
    "rename": lambda point: os.rename(point / "small", point / "new"),
    "mknod": lambda point: os.mknod(point / "new", stat.S_IFREG | 0o644),
    "mknod_fifo": lambda point: os.mkfifo(point / "new"),
    "chmod": lambda point: os.chmod(point / "small", 0o600),
    "chown": lambda point: os.chown(point / "small", 1, 1),
    "lchown": lambda point: os.lchown(point / "link", 1, 1),
    "utime": lambda point: os.utime(point / "small"),
    "setxattr": lambda point: os.setxattr(point / "small", "user.a", b"1"),
    "setxattr_magic": lambda point: os.setxattr(point / "small", "user.imagefs.tier", b"ram"),
    "removexattr": lambda point: os.removexattr(point / "small", "user.a"),
}


@pytest.mark.parametrize("kind", WRITES)
def test_writes_are_refused(kind: str, mounted: Mounted) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 # the errno is checked below
        WRITES[kind](mounted.point)
    assert caught.value.errno == errno.EROFS


def test_statfs(mounted: Mounted) -> None:
    info = os.statvfs(mounted.point)
    assert info.f_flag & os.ST_RDONLY
    assert info.f_bsize > 0
    assert info.f_blocks * info.f_frsize >= sum(map(len, mounted.files.values()))
    assert info.f_bfree == info.f_bavail == info.f_ffree == 0
    assert info.f_files >= MANY
    assert info.f_namemax == 255


def test_stat_of_blocks(mounted: Mounted) -> None:
    """``du`` and ``tar`` look at blocks: a file that says none is taken for a hole."""
    info = (mounted.point / "large").stat()
    assert info.st_blocks * 512 >= len(LARGE)
    assert info.st_blksize >= 4096


def as_nobody(*command: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, timeout=30, check=False)


def test_access_of_another_user(mounted: Mounted) -> None:
    """The image's modes count, as on any file system."""
    # The fixtures' directories are root's alone; the mount itself is what is asked about.
    for path in mounted.point.parents:
        if not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o011)
    assert as_nobody("cat", mounted.point / "small").stdout == b"s" * 1000
    for name in ("secret", "closed/inside"):
        done = as_nobody("cat", mounted.point / name)
        assert done.returncode != 0
        assert b"Permission denied" in done.stderr
    assert as_nobody("test", "-r", mounted.point / "small").returncode == 0
    assert as_nobody("test", "-r", mounted.point / "secret").returncode != 0
    assert as_nobody("test", "-w", mounted.point / "small").returncode != 0
    assert (mounted.point / "secret").read_bytes() == b"for root"


def test_magic_xattrs(fresh: Mounted) -> None:
    large = fresh.point / "large"
    assert os.getxattr(large, "user.imagefs.object") == blake3.blake3(LARGE).hexdigest().encode()
    assert int(os.getxattr(large, "user.imagefs.frames").split(b"/")[-1]) == -(-len(LARGE) // (256 << 10))
    assert os.getxattr(large, "user.imagefs.tier") == b"store"
    assert large.read_bytes() == LARGE
    assert os.getxattr(large, "user.imagefs.tier") == b"ram"


def test_magic_xattrs_are_not_listed(mounted: Mounted) -> None:
    """Or ``cp -a`` and ``tar --xattrs`` would carry them into the next image."""
    assert os.listxattr(mounted.point / "large") == []
    with pytest.raises(OSError, match="No data"):
        os.getxattr(mounted.point / "large", "user.imagefs.nonsense")
    with pytest.raises(OSError, match="No data"):
        os.getxattr(mounted.point / "many", "user.imagefs.object")


def test_large_directory(mounted: Mounted) -> None:
    names = os.listdir(mounted.point / "many")
    assert len(names) == MANY
    assert set(names) == {f"{number:05d}" for number in range(MANY)}


class _Entry(ctypes.Structure):
    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("off", ctypes.c_int64),
        ("reclen", ctypes.c_ushort),
        ("type", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    )


class Listing:
    """A directory read by hand, to stop, go back, and go on."""

    def __init__(self, path: Path) -> None:
        self._stream = ctypes.c_void_p(_LIBC.fdopendir(os.open(path, os.O_RDONLY | os.O_DIRECTORY)))

    def rest(self, limit: int = 1 << 30) -> list[bytes]:
        names: list[bytes] = []
        while len(names) < limit and (entry := _LIBC.readdir(self._stream)):
            names.append(_Entry.from_address(entry).name)
        return names

    def tell(self) -> int:
        return int(_LIBC.telldir(self._stream))

    def seek(self, place: int) -> None:
        _LIBC.seekdir(self._stream, ctypes.c_long(place))

    def rewind(self) -> None:
        _LIBC.rewinddir(self._stream)

    def close(self) -> None:
        _LIBC.closedir(self._stream)


@pytest.mark.parametrize("name", ["many", "cluster", "proc"])
def test_seekdir_and_rewinddir(name: str, mounted: Mounted) -> None:
    listing = Listing(mounted.point / name)
    whole = listing.rest()
    assert sorted(whole) == sorted([b".", b"..", *map(os.fsencode, os.listdir(mounted.point / name))])
    listing.rewind()
    assert listing.rest() == whole
    for count in sorted({0, 1, 2, len(whole) // 3, len(whole) - 1, len(whole)}):
        listing.rewind()
        head = listing.rest(count)
        place = listing.tell()
        tail = listing.rest()
        assert head + tail == whole
        listing.seek(place)
        assert listing.rest() == tail
    listing.close()


def test_concurrent_readers_fetch_once(fresh: Mounted) -> None:
    """64 threads at once: the same bytes for all, and each frame fetched and decoded once."""
    before = fresh.world.stats()
    barrier = threading.Barrier(64)

    def read(number: int) -> bytes:
        start = number * len(LARGE) // 64
        barrier.wait(30)
        with (fresh.point / "large").open("rb", buffering=0) as file:
            file.seek(start)
            rest = file.read(len(LARGE) - start)
            file.seek(0)
            return file.read(start) + rest

    with ThreadPoolExecutor(64) as pool:
        assert set(pool.map(read, range(64), timeout=60)) == {LARGE}
    after = fresh.world.stats()
    assert after["store_bytes"] - before["store_bytes"] < len(LARGE) * 1.05
    assert 0 < after["store_gets"] - before["store_gets"] <= -(-len(LARGE) // (256 << 10))
    assert change(before, after, "bytes_read").get("ssd", 0) == 0


def test_neighbours_come_with_one_get(fresh: Mounted) -> None:
    before = fresh.world.stats()
    for number in range(100):
        assert (fresh.point / f"cluster/{number}").read_bytes() == fresh.files[f"cluster/{number}"]
    assert fresh.world.stats()["store_gets"] - before["store_gets"] <= 10


def walk(point: Path) -> int:
    """Stat everything, following no link; return how much there is."""
    count, todo = 0, [os.fspath(point)]
    while todo:
        with os.scandir(todo.pop()) as listing:
            for entry in listing:
                count += 1
                if stat.S_ISDIR(entry.stat(follow_symlinks=False).st_mode):
                    todo.append(entry.path)
    return count


def test_second_walk_asks_for_nothing_but_readdir(mounted: Mounted) -> None:
    first = walk(mounted.point)
    before = mounted.world.stats()
    assert walk(mounted.point) == first > MANY
    asked = change(before, mounted.world.stats(), "fuse_requests")
    assert set(asked) <= {"opendir", "readdir", "readdirplus", "releasedir"}, asked


def test_second_read_asks_for_nothing_but_open(mounted: Mounted) -> None:
    assert (mounted.point / "text").read_bytes() == mounted.files["text"]
    before = mounted.world.stats()
    assert (mounted.point / "text").read_bytes() == mounted.files["text"]
    asked = change(before, mounted.world.stats(), "fuse_requests")
    assert set(asked) <= {"open", "release", "flush"}, asked


def test_two_mounts_of_one_daemon(mounted: Mounted, tmp_path: Path) -> None:
    world = mounted.world
    pid = world.run("daemon", "status", "--json").json["worker_pid"]
    other = simple(tmp_path / "layout", t.archive(ROOT, t.file(b"other", b"image")))
    world.convert(f"oci:{other}", "other")
    points = [world.mount("test", "second"), world.mount("other", "third")]
    status = world.run("daemon", "status", "--json").json
    assert status["worker_pid"] == pid
    assert {str(point) for point in (mounted.point, *points)} <= {str(mount["mountpoint"]) for mount in status["mounts"]}
    assert (points[0] / "small").read_bytes() == b"s" * 1000
    assert os.listdir(points[1]) == ["other"]
    for point in points:
        world.umount(point)
    assert (mounted.point / "small").read_bytes() == b"s" * 1000


def test_last_umount_stops_the_daemon(fresh: Mounted) -> None:
    assert fresh.world.pids()
    fresh.world.umount(fresh.point)
    wait_until(lambda: fresh.world.pids() == [], "the daemon's end")
    assert os.listdir(fresh.point) == []


def test_umount_of_a_busy_mount(fresh: Mounted) -> None:
    with (fresh.point / "small").open("rb") as file:
        done = fresh.world.attempt("umount", fresh.point)
        if done.status:
            assert done.status == 10
            assert "Traceback" not in done.err
            assert file.read() == b"s" * 1000
            assert (fresh.point / "small").exists()


def test_mount_by_digest(fresh: Mounted) -> None:
    digest = fresh.world.run("inspect", "test", "--json").json["digest"]
    point = fresh.world.mount(digest, "by-digest")
    assert (point / "small").read_bytes() == b"s" * 1000


def test_foreground(layout: tuple[Path, dict[str, bytes]], mounted: Mounted, tmp_path: Path) -> None:
    """It serves until it is told to stop, and then leaves nothing mounted."""
    import signal  # noqa: PLC0415 # beside its only use

    world = World(tmp_path / "foreground")
    world.environment["IMAGEFS_STORE"] = f"file://{mounted.world.store}"
    point = world.root / "mnt"
    point.mkdir()
    process = world.start("mount", "test", point, "--mode", "fuse", "--foreground")
    try:
        wait_until(lambda: f" {point} ".encode() in Path("/proc/self/mountinfo").read_bytes() or process.poll() is not None, "the mount")
        wait_until((point / "small").exists, "the file in the mount")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert "Traceback" not in err
        assert f" {point} ".encode() not in Path("/proc/self/mountinfo").read_bytes(), out + err
    finally:
        process.kill()
        process.communicate(timeout=30)
        assert world.close() == []


def test_without_root(user_world: World, layout: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    """Converted, mounted, read and unmounted by a user without any rights."""
    require("fuse")
    require("fusermount3")
    source = shutil.copytree(layout[0], user_world.root / "layout")
    user_world.convert(f"oci:{source}", "test")
    point = user_world.mount("test")
    assert as_nobody("cat", point / "small").stdout == b"s" * 1000
    listed = as_nobody("ls", point / "many").stdout.split()
    assert len(listed) == MANY
    large = as_nobody("cat", point / "large").stdout
    assert large == LARGE
    assert as_nobody("touch", point / "new").returncode != 0
    user_world.run("umount", point)
    wait_until(lambda: user_world.pids() == [], "the daemon's end")


def test_mount_twice_shows_the_same(mounted: Mounted) -> None:
    """Inode numbers included: they are the tree's."""
    point = mounted.world.mount("test", "again")
    assert differences(snapshot(mounted.point / "cluster"), snapshot(point / "cluster")) == []
    assert (point / "large").stat().st_ino == (mounted.point / "large").stat().st_ino
    mounted.world.umount(point)
