"""What happens under a live mount in kernel mode: promotion, eviction, ``settle``, overlays on top, namespaces."""

import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imagefs import syscalls
from imagefs.errors import MountError
from imagefs.mount.bind import BusyError, bind_readonly, unmount
from imagefs.mount.kernel import Backing, mount_tree, settle
from imagefs.mount.mountinfo import mount_at
from tests.mount.kernel_place import LAZY, SSD, Place, loop_devices, mount_lines, names

_MS_SHARED = 1 << 20
_MS_BIND = 4096


# -- promotion ----------------------------------------------------------------------------------------------------------------------------


def test_what_is_promoted_after_the_mount_is_served_from_ssd_at_first_open(place: Place) -> None:
    digest = place.told_apart("f")
    place.mount()
    (place.image / "f").stat()
    place.promote(digest)
    assert (place.image / "f").read_bytes() == SSD


def test_what_was_found_in_fuse_stays_there_until_settled(place: Place) -> None:
    digest = place.told_apart("d/f")
    place.mount()
    assert (place.image / "d/f").read_bytes() == LAZY
    place.promote(digest)
    assert (place.image / "d/f").read_bytes() == LAZY
    settle(place.image)
    assert (place.image / "d/f").read_bytes() == SSD


def test_settle_changes_nothing_else(place: Place) -> None:
    place.file("f", b"x" * 100)
    place.mount()
    before = mount_lines(place.folder)
    settle(place.image)
    assert mount_lines(place.folder) == before
    assert os.statvfs(place.image).f_flag & (os.ST_RDONLY | os.ST_NODEV | os.ST_NOSUID) == os.ST_RDONLY | os.ST_NODEV | os.ST_NOSUID


def test_settle_leaves_a_writable_mount_writable(place: Place) -> None:
    digest = place.told_apart("f")
    place.mount(upper=place.folder / "changes")
    before = mount_lines(place.folder)
    assert (place.image / "f").read_bytes() == LAZY
    place.promote(digest)
    settle(place.image)
    assert mount_lines(place.folder) == before
    assert (place.image / "f").read_bytes() == SSD
    (place.image / "new").write_bytes(b"written")


def test_what_is_open_mapped_or_bound_survives_settle(place: Place) -> None:
    digests = [place.told_apart(f"d/{name}") for name in ("open", "mapped", "other")]
    place.mount()
    bound = place.folder / "bound"
    bound.mkdir()
    bind_readonly(place.image / "d", bound)
    command = [sys.executable, "-c", "import sys; sys.stdin.readline(); print(open('other').read(4)); print(open('open').read(4))"]
    with (
        (bound / "open").open("rb") as opened,
        (place.image / "d/mapped").open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped,
        subprocess.Popen(command, cwd=place.image / "d", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
    ):
        assert opened.read(10) == LAZY[:10]
        assert (bound / "other").read_bytes() == LAZY
        for digest in digests:
            place.promote(digest)
        settle(place.image)
        assert opened.read() == LAZY[10:]
        assert mapped[:] == LAZY
        assert (bound / "other").read_bytes() == SSD
        # One inode, one layer: what is open somewhere stays where it was found, for all.
        assert (place.image / "d/open").read_bytes() == LAZY
        out, _ = process.communicate("\n", timeout=20)
        assert out.split() == [SSD[:4].decode(), LAZY[:4].decode()]
    settle(place.image)
    assert (bound / "open").read_bytes() == SSD
    assert (bound / "mapped").read_bytes() == SSD


def test_settle_of_one_mount_leaves_the_others_alone(make_place: Callable[[str], Place]) -> None:
    first, second = make_place("first"), make_place("second")
    for each in (first, second):
        digest = each.told_apart("f")
        each.mount()
        assert (each.image / "f").read_bytes() == LAZY
        each.promote(digest)
    settle(first.image)
    assert (first.image / "f").read_bytes() == SSD
    assert (second.image / "f").read_bytes() == LAZY


def test_there_is_nothing_to_settle_where_no_overlay_is(place: Place) -> None:
    with pytest.raises(MountError, match=r"no image is mounted in kernel mode at .*image"):
        settle(place.image)
    mount_tree(place.write(), place.tree_mount)
    with pytest.raises(MountError, match="no image is mounted"):
        settle(place.tree_mount)


def test_settle_follows_no_link(place: Place) -> None:
    place.mount()
    link = place.folder / "link"
    link.symlink_to("image")
    with pytest.raises(MountError, match="no image is mounted"):
        settle(link)
    with pytest.raises(OSError, match="Invalid argument"):
        syscalls.fspick(link)


# -- eviction -----------------------------------------------------------------------------------------------------------------------------


def test_eviction_leaves_open_files_and_found_ones_readable(place: Place) -> None:
    digest = place.told_apart("f", ssd=True)
    place.mount()
    with (place.image / "f").open("rb") as opened:
        assert opened.read(5) == SSD[:5]
        place.evict(digest)
        assert opened.read() == SSD[5:]
    assert (place.image / "f").read_bytes() == SSD
    settle(place.image)
    assert (place.image / "f").read_bytes() == LAZY


def test_the_space_of_what_is_evicted_is_free_when_settled(place: Place, mounted_tmpfs: Callable[[Path], None]) -> None:
    """An inode of the overlay keeps the file that it found, unlinked or not: eviction without ``settle`` frees nothing."""
    mounted_tmpfs(place.objects)
    digest = place.file("big", b"b" * (1 << 20), ssd=True).object
    assert digest is not None
    place.mount()
    assert len((place.image / "big").read_bytes()) == 1 << 20
    used = _used(place.objects)
    assert used >= 1 << 20
    place.evict(digest)
    assert _used(place.objects) == used
    settle(place.image)
    assert _used(place.objects) <= used - (1 << 20)
    assert len((place.image / "big").read_bytes()) == 1 << 20


def _used(path: Path) -> int:
    info = os.statvfs(path)
    return (info.f_blocks - info.f_bfree) * info.f_frsize


@pytest.fixture
def mounted_tmpfs(place: Place) -> Callable[[Path], None]:
    """Mounts an empty file system of its own at a path; the place unmounts it."""

    def mount(path: Path) -> None:
        context = syscalls.fsopen("tmpfs")
        try:
            syscalls.fsconfig_create(context)
            mounted = syscalls.fsmount(context)
        finally:
            os.close(context)
        syscalls.move_mount(mounted, path)
        os.close(mounted)

    return mount


# -- on top -------------------------------------------------------------------------------------------------------------------------------


@contextmanager
def _container(place: Place) -> Iterator[Path]:
    """Mount an overlay with a writable layer over the image, as container engines do."""
    rootfs, upper, work = (place.folder / name for name in ("rootfs", "c-upper", "c-work"))
    for path in (rootfs, upper, work):
        path.mkdir()
    subprocess.run(
        ["mount", "-t", "overlay", "-o", f"lowerdir={place.image},upperdir={upper},workdir={work}", "overlay", rootfs],
        check=True,
        timeout=20,
    )
    try:
        yield rootfs
    finally:
        unmount(rootfs)


@pytest.mark.parametrize("backing", list(Backing))
def test_an_overlay_on_top_works(place: Place, backing: Backing) -> None:
    place.told_apart("d/one")
    place.told_apart("d/two", ssd=True)
    place.mount(backing=backing)
    with _container(place) as rootfs:
        assert (rootfs / "d/one").read_bytes() == LAZY
        assert (rootfs / "d/two").read_bytes() == SSD
        with (rootfs / "d/one").open("ab") as file:
            file.write(b"more")
        (rootfs / "d/two").unlink()
        assert (rootfs / "d/one").read_bytes() == LAZY + b"more"
        assert (place.image / "d/one").read_bytes() == LAZY
        assert names(rootfs / "d") == ["one"]


def test_an_overlay_on_top_has_to_be_settled_first(place: Place) -> None:
    digest = place.told_apart("f")
    place.mount()
    with _container(place) as rootfs:
        assert (rootfs / "f").read_bytes() == LAZY
        place.promote(digest)
        settle(place.image)
        assert (rootfs / "f").read_bytes() == LAZY
        settle(rootfs)
        settle(place.image)
        assert (rootfs / "f").read_bytes() == SSD


# -- what pins what -----------------------------------------------------------------------------------------------------------------------


def test_a_tree_is_busy_only_for_those_who_use_it_itself(place: Place) -> None:
    place.file("f", b"x" * 100)
    place.mount()
    with (place.tree_mount / "f").open("rb"), pytest.raises(BusyError):
        unmount(place.tree_mount)
    unmount(place.tree_mount)
    with (place.image / "f").open("rb"), pytest.raises(BusyError):
        unmount(place.image)
    unmount(place.image)
    assert not mount_lines(place.folder)


def test_a_lazily_unmounted_image_serves_who_has_it_open(place: Place) -> None:
    place.file("f", b"x" * 5000)
    place.mount(backing=Backing.LOOP)
    with (place.image / "f").open("rb") as opened:
        unmount(place.image, lazy=True)
        unmount(place.tree_mount, lazy=True)
        assert not mount_lines(place.folder)
        assert opened.read() == b"x" * 5000
        assert loop_devices(place.folder) != []
    assert loop_devices(place.folder) == []


def test_a_loop_device_goes_with_the_mount(place: Place) -> None:
    mount_tree(place.write(), place.tree_mount, backing=Backing.LOOP)
    entry = mount_at(place.tree_mount)
    assert entry is not None
    assert entry.source.startswith("/dev/loop")
    assert len(loop_devices(place.folder)) == 1
    device = Path("/sys/block", Path(entry.source).name)
    assert (device / "ro").read_text().strip() == "1"
    assert (device / "loop/autoclear").read_text().strip() == "1"
    unmount(place.tree_mount)
    assert loop_devices(place.folder) == []
