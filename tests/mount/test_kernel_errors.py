"""Kernel mode where it cannot work: each reason is said, with what the kernel says, and nothing stays mounted."""

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs import syscalls
from imagefs.errors import AccessError, ImageFSError, IntegrityError, MountError
from imagefs.format.erofs import BLOCK_SIZE
from imagefs.mount import loop
from imagefs.mount.bind import BusyError
from imagefs.mount.kernel import Backing, mount_image, mount_tree, settle
from tests.mount.kernel_place import Place, descriptors, loop_devices, mount_lines


@pytest.fixture(autouse=True)
def nothing_stays(place: Place) -> Iterator[None]:
    """No test of this file leaves anything mounted, but by its own hand."""
    yield
    assert [line for line in mount_lines(place.folder) if "/allowed" not in line] == []


# -- trees --------------------------------------------------------------------------------------------------------------------------------


def test_a_missing_tree(place: Place) -> None:
    with pytest.raises(MountError, match=r"cannot mount the tree .*/tree: No such file or directory$"):
        mount_tree(place.tree, place.tree_mount)


def test_a_tree_that_is_a_directory(place: Place) -> None:
    with pytest.raises(MountError, match=r"the tree .*/objects is not a file"):
        mount_tree(place.objects, place.tree_mount)


@pytest.mark.parametrize("backing", [None, Backing.LOOP])
@pytest.mark.parametrize("data", [b"", b"short", bytes(8192), b"\x7fELF" * 4096])
def test_a_tree_that_is_not_erofs(place: Place, data: bytes, backing: Backing | None) -> None:
    place.tree.write_bytes(data)
    with pytest.raises(IntegrityError, match="is not an EROFS image") as caught:
        mount_tree(place.tree, place.tree_mount, backing=backing)
    assert "fetched again" in (caught.value.hint or "")


def test_a_tree_that_is_cut_short(place: Place) -> None:
    """The kernel would mount it and fail at some read."""
    for number in range(200):
        place.file(f"file-{number}", b"%d" % number * 100)
    whole = place.write().read_bytes()
    place.tree.write_bytes(whole[:BLOCK_SIZE])
    with pytest.raises(IntegrityError, match=f"has {BLOCK_SIZE} of {len(whole)} bytes"):
        mount_tree(place.tree, place.tree_mount)


@pytest.mark.parametrize("backing", list(Backing))
def test_a_damaged_tree_and_what_the_kernel_says(place: Place, backing: Backing) -> None:
    whole = bytearray(place.write().read_bytes())
    whole[1024 + 40] ^= 1
    place.tree.write_bytes(whole)
    with pytest.raises(IntegrityError, match=r"Bad message: .*checksum") as caught:
        mount_tree(place.tree, place.tree_mount, backing=backing)
    assert "fetched again" in (caught.value.hint or "")


def test_a_tree_that_may_not_be_mounted_from_a_file(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Linux before 6.12 answers: a loop device is taken, unless a file was asked for."""
    create = syscalls.fsconfig_create
    asked = []

    def refuse_first(context: int) -> None:
        asked.append(context)
        if len(asked) == 1:
            raise OSError(errno.ENOTBLK, os.strerror(errno.ENOTBLK))
        create(context)

    place.write()
    monkeypatch.setattr(syscalls, "fsconfig_create", refuse_first)
    assert mount_tree(place.tree, place.tree_mount) is Backing.LOOP
    assert "/dev/loop" in mount_lines(place.tree_mount)[0]
    place.close()
    asked.clear()
    with pytest.raises(MountError, match="Block device required") as caught:
        mount_tree(place.tree, place.tree_mount, backing=Backing.FILE)
    assert "6.12" in (caught.value.hint or "")


def test_a_tree_on_overlayfs_is_mounted_by_whatever_means(place: Place) -> None:
    """EROFS of some kernels refuses a file there, of others counts it as one more level."""
    place.put("d/x", place.file("f", b"x" * 100))
    place.mount(upper=place.folder / "allowed")
    tree = place.image / "tree"
    tree.write_bytes(place.tree.read_bytes())
    target = place.folder / "second"
    target.mkdir()
    assert mount_tree(tree, target) in Backing
    assert (target / "d/x").exists()
    place.close()


def test_no_loop_devices(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write()
    monkeypatch.setattr(loop, "CONTROL", place.folder / "none")
    with pytest.raises(MountError, match=r"cannot have a loop device for the tree .*: No such file") as caught:
        mount_tree(place.tree, place.tree_mount, backing=Backing.LOOP)
    assert "modprobe loop" in (caught.value.hint or "")


def test_a_loop_device_that_somebody_else_took(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between being named as free and being set up: the next one is taken."""
    place.write()
    ioctl = fcntl.ioctl
    refused: list[int] = []

    def taken(descriptor: int, request: int, argument: bytes | int = 0) -> int | bytes:
        if isinstance(argument, bytes) and len(refused) < 3:
            refused.append(request)
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return ioctl(descriptor, request, argument)

    monkeypatch.setattr(fcntl, "ioctl", taken)
    held = descriptors()
    assert mount_tree(place.tree, place.tree_mount, backing=Backing.LOOP) is Backing.LOOP
    assert len(refused) == 3
    assert descriptors() == held
    place.close()
    monkeypatch.setattr(loop, "_TRIES_SECONDS", 0.0)
    refused.clear()
    with pytest.raises(BusyError, match="Device or resource busy"):
        mount_tree(place.tree, place.tree_mount, backing=Backing.LOOP)


# -- places -------------------------------------------------------------------------------------------------------------------------------


def test_a_missing_mountpoint(place: Place) -> None:
    place.write()
    none = place.folder / "none"
    with pytest.raises(MountError, match=r"cannot mount at .*none: No such file or directory") as caught:
        mount_tree(place.tree, none)
    assert caught.value.hint == f"mkdir -p {none}"
    mount_tree(place.tree, place.tree_mount)
    with pytest.raises(MountError, match=r"cannot mount at .*none: No such file or directory"):
        mount_image(none, place.tree_mount, place.objects, place.lazy)
    with pytest.raises(MountError, match=r"cannot mount at .*/tree: Invalid argument") as caught:
        mount_image(place.tree, place.tree_mount, place.objects, place.lazy)
    assert "is a directory" in (caught.value.hint or "")
    place.close()


def test_a_mountpoint_that_is_a_link_is_not_followed(place: Place) -> None:
    (place.folder / "link").symlink_to("image")
    with pytest.raises(MountError, match=r"cannot mount at .*link") as caught:
        mount_tree(place.write(), place.folder / "link")
    assert "no link" in (caught.value.hint or "")


@pytest.mark.parametrize("missing", ["tree-mount", "objects", "lazy"])
def test_a_missing_layer_is_named(place: Place, missing: str) -> None:
    (place.folder / missing).rmdir()
    with pytest.raises(MountError, match=f"cannot use the layer .*/{missing}: No such file or directory"):
        place.mount_image()
    (place.folder / missing).write_bytes(b"")
    with pytest.raises(MountError, match=f"cannot use the layer .*/{missing}: Not a directory"):
        place.mount_image()


def test_nothing_of_an_unfinished_mount_is_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step of all fails: what was made goes, and its loop device."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    place.write()
    monkeypatch.setattr(syscalls, "mount", refuse)
    with pytest.raises(AccessError, match=r"cannot make .* private"):
        mount_tree(place.tree, place.tree_mount, backing=Backing.LOOP)
    monkeypatch.undo()
    mount_tree(place.tree, place.tree_mount)
    held = descriptors()
    monkeypatch.setattr(syscalls, "move_mount", refuse)
    with pytest.raises(AccessError, match="cannot mount at"):
        place.mount_image()
    monkeypatch.undo()
    assert len(mount_lines(place.folder)) == 1
    assert descriptors() == held
    assert loop_devices(place.folder) == []
    place.close()


def test_errors_are_ours(place: Place) -> None:
    for call in (
        lambda: mount_tree(Path("/proc/none"), place.tree_mount),
        lambda: place.mount_image(upper=Path("/proc/none")),
        lambda: settle(Path("/none")),
    ):
        with pytest.raises(ImageFSError):
            call()
