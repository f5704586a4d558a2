"""Kernel mode with a writable layer: what is changed, what survives, and what cannot be one."""

import errno
import os
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from imagefs import syscalls
from imagefs.errors import MountError
from imagefs.mount.bind import BusyError, unmount
from imagefs.mount.kernel import mount_image, mount_tree
from imagefs.mount.layers import STYLES, Style
from tests.mount.kernel_place import LAZY, MTIME, SSD, Place, mount_lines, names

_ACL = struct.pack("<IHHIHHIHHIHHI", 2, 1, 7, 0xFFFFFFFF, 4, 5, 0xFFFFFFFF, 16, 7, 0xFFFFFFFF, 32, 5, 0xFFFFFFFF)


@pytest.fixture(params=STYLES, ids=lambda style: style.name)
def style(request: pytest.FixtureRequest) -> Style:
    """Each way to give layers."""
    return Style(request.param)


@pytest.fixture
def upper(place: Place) -> Path:
    """The user's directory, not made yet."""
    return place.folder / "changes"


def _mount_file_system(kind: str, path: Path) -> None:
    path.mkdir(exist_ok=True)
    context = syscalls.fsopen(kind)
    try:
        syscalls.fsconfig_create(context)
        mount = syscalls.fsmount(context)
    finally:
        os.close(context)
    syscalls.move_mount(mount, path)
    os.close(mount)


# -- changes ------------------------------------------------------------------------------------------------------------------------------


def test_changes_are_seen_and_survive(place: Place, upper: Path, style: Style) -> None:
    place.told_apart("d/written")
    place.told_apart("d/deleted", ssd=True)
    place.file("old/name/f", b"moved" * 50)
    place.mount(upper=upper, styles=[style])
    image = place.image
    with (image / "d/written").open("r+b") as file:
        file.write(b"other")
    (image / "d/deleted").unlink()
    (image / "new").write_bytes(b"new")
    (image / "old/name").rename(image / "moved")
    for _ in range(2):
        assert (image / "d/written").read_bytes() == b"other" + LAZY[5:]
        assert names(image / "d") == ["written"]
        assert (image / "new").read_bytes() == b"new"
        assert (image / "moved/f").read_bytes() == b"moved" * 50
        assert names(image / "old") == []
        unmount(image)
        place.mount_image(upper=upper, styles=[style])
    assert names(upper) == ["upper", "work"]
    assert (place.tree_mount / "d/deleted").exists()


def test_a_changed_mode_copies_metadata_alone(place: Place, upper: Path) -> None:
    digest = place.told_apart("f")
    place.mount(upper=upper)
    (place.image / "f").chmod(0o600)
    kept = upper / "upper/f"
    assert kept.read_bytes() == bytes(len(LAZY))
    assert os.getxattr(kept, "trusted.overlay.metacopy") is not None
    assert stat.S_IMODE((place.image / "f").stat().st_mode) == 0o600
    unmount(place.image)
    place.promote(digest)
    place.mount_image(upper=upper)
    assert stat.S_IMODE((place.image / "f").stat().st_mode) == 0o600
    assert (place.image / "f").read_bytes() == SSD
    with (place.image / "f").open("ab") as file:
        file.write(b"!")
    assert kept.read_bytes() == SSD + b"!"


def test_a_renamed_file_keeps_its_content_where_it_was(place: Place, upper: Path) -> None:
    place.told_apart("a/f")
    place.mount(upper=upper)
    (place.image / "a/f").rename(place.image / "b")
    assert (upper / "upper/b").read_bytes() == bytes(len(LAZY))
    for _ in range(2):
        assert (place.image / "b").read_bytes() == LAZY
        unmount(place.image)
        place.mount_image(upper=upper)


def test_the_root_looks_like_the_images(place: Place, upper: Path) -> None:
    """With an upper layer the mount's root shows that directory's own attributes: so they are made the tree's."""
    place.root.mode = stat.S_IFDIR | 0o1777
    place.root.uid, place.root.gid = 12, 34
    place.root.xattrs = {b"user.note": b"kept", b"system.posix_acl_default": _ACL}
    place.mount(upper=upper)
    info = place.image.stat()
    assert (info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns) == (stat.S_IFDIR | 0o1777, 12, 34, MTIME)
    assert os.getxattr(place.image, "user.note") == b"kept"
    assert os.getxattr(place.image, "system.posix_acl_default") == _ACL
    assert stat.S_IMODE((upper / "work").stat().st_mode) == 0o700
    place.image.chmod(0o700)
    unmount(place.image)
    place.mount_image(upper=upper)
    assert stat.S_IMODE(place.image.stat().st_mode) == 0o700


def test_all_files_are_on_one_device(place: Place, upper: Path) -> None:
    """Or find -xdev, du -x and tar --one-file-system would pass over what was not changed."""
    place.file("d/f", b"x" * 100)
    place.mount(upper=upper)
    (place.image / "d/new").touch()
    paths = [place.image, *place.image.rglob("*")]
    assert len({path.stat().st_dev for path in paths}) == 1
    assert len({path.stat().st_ino for path in paths}) == len(paths)
    number = (place.image / "d/f").stat().st_ino
    (place.image / "d/f").chmod(0o600)
    assert (place.image / "d/f").stat().st_ino == number


def test_a_writable_mount_has_no_devices_unless_asked_for(place: Place, upper: Path) -> None:
    place.mount(upper=upper)
    os.mknod(place.image / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with pytest.raises(PermissionError):
        (place.image / "null").read_bytes()
    unmount(place.image)
    place.mount_image(upper=upper, dev=True)
    assert (place.image / "null").read_bytes() == b""


def test_writing_to_one_hard_link_leaves_the_others(place: Place, upper: Path) -> None:
    """A limit of overlayfs without an index, as container engines run it: a copy is made of the name that is written to."""
    place.put("other", place.file("name", b"h" * 100))
    place.mount(upper=upper)
    with (place.image / "name").open("ab") as file:
        file.write(b"!")
    assert (place.image / "name").read_bytes() == b"h" * 100 + b"!"
    assert (place.image / "other").read_bytes() == b"h" * 100


# -- what cannot be one -------------------------------------------------------------------------------------------------------------------


def test_one_upper_directory_is_for_one_mount(place: Place, upper: Path, style: Style) -> None:
    second = place.folder / "second"
    second.mkdir()
    place.told_apart("f")
    place.mount(upper=upper, styles=[style])
    (place.image / "kept").touch()
    with pytest.raises(BusyError, match="is in use by another mount"):
        mount_image(second, place.tree_mount, place.objects, place.lazy, upper=upper, styles=[style])
    assert len(mount_lines(place.folder)) == 2
    with (place.image / "kept").open("ab") as file:
        unmount(place.image, lazy=True)
        # Out of sight, and still written to.
        with pytest.raises(BusyError):
            mount_image(second, place.tree_mount, place.objects, place.lazy, upper=upper, styles=[style])
        file.write(b"late")
    mount_image(second, place.tree_mount, place.objects, place.lazy, upper=upper, styles=[style])
    assert (second / "kept").read_bytes() == b"late"


def test_an_upper_directory_in_use_elsewhere_is_seen(place: Place, upper: Path) -> None:
    """In a mount namespace that this one sees nothing of."""
    place.mount(upper=upper)
    with subprocess.Popen(["unshare", "--mount", "sh", "-c", "echo; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        unmount(place.image)
        assert not mount_lines(place.image)
        with pytest.raises(BusyError):
            place.mount_image(upper=upper)
        other.communicate(b"\n", timeout=20)
    place.mount_image(upper=upper)


def test_a_second_mount_at_the_same_moment_is_refused(place: Place, upper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at an upper directory and the mount with it."""
    second = place.folder / "second"
    second.mkdir()
    mount_tree(place.write(), place.tree_mount)
    fsmount, seen = syscalls.fsmount, []

    def meanwhile(context: int, attributes: int = 0) -> int:
        monkeypatch.setattr(syscalls, "fsmount", fsmount)
        try:
            mount_image(second, place.tree_mount, place.objects, place.lazy, upper=upper)
        except BusyError as error:
            seen.append(error.message)
        return fsmount(context, attributes)

    monkeypatch.setattr(syscalls, "fsmount", meanwhile)
    place.mount_image(upper=upper)
    assert len(seen) == 1
    assert "is just being mounted" in seen[0]


def test_upper_and_work_have_to_be_on_one_file_system(place: Place, upper: Path) -> None:
    mount_tree(place.write(), place.tree_mount)
    upper.mkdir()
    _mount_file_system("tmpfs", upper / "work")
    with pytest.raises(MountError, match=r"upper and .*work are on different file systems"):
        place.mount_image(upper=upper)
    assert len(mount_lines(place.folder)) == 2


def test_the_upper_file_system_has_to_keep_attributes(place: Place, upper: Path) -> None:
    """overlayfs would go on without metacopy, and say so in the kernel's log alone."""
    mount_tree(place.write(), place.tree_mount)
    _mount_file_system("ramfs", upper)
    with pytest.raises(MountError, match="does not keep attributes") as caught:
        place.mount_image(upper=upper)
    assert "tmpfs" in (caught.value.hint or "")


def test_a_tmpfs_will_do(place: Place, upper: Path) -> None:
    place.told_apart("f")
    mount_tree(place.write(), place.tree_mount)
    _mount_file_system("tmpfs", upper)
    place.mount_image(upper=upper)
    (place.image / "f").chmod(0o600)
    assert (place.image / "f").read_bytes() == LAZY


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("image", "is inside of the mount"),
        ("image/below", "is inside of the mount"),
        ("objects", "lie one in the other"),
        ("lazy/below", "lie one in the other"),
        ("tree-mount", "lie one in the other"),
        ("link", "is inside of the mount"),
    ],
)
def test_an_upper_directory_inside_of_what_is_mounted_is_refused(place: Place, where: str, words: str) -> None:
    (place.folder / "link").symlink_to("image")
    mount_tree(place.write(), place.tree_mount)
    with pytest.raises(MountError, match=words):
        place.mount_image(upper=place.folder / where)
    assert not list(place.objects.iterdir())
    assert len(mount_lines(place.folder)) == 1


@pytest.mark.parametrize("name", ["upper", "work"])
def test_a_mount_inside_of_the_upper_directory_is_refused(place: Place, upper: Path, name: str) -> None:
    mount_tree(place.write(), place.tree_mount)
    target = upper / name / "m"
    target.mkdir(parents=True)
    with pytest.raises(MountError, match="lie one in the other"):
        mount_image(target, place.tree_mount, place.objects, place.lazy, upper=upper)
    beside = upper / "m"
    beside.mkdir()
    mount_image(beside, place.tree_mount, place.objects, place.lazy, upper=upper)
    unmount(beside)


@pytest.mark.parametrize("name", ["upper", "work"])
def test_links_are_not_followed_out_of_the_upper_directory(place: Place, upper: Path, name: str) -> None:
    mount_tree(place.write(), place.tree_mount)
    upper.mkdir()
    (place.folder / "elsewhere").mkdir()
    (upper / name).symlink_to(place.folder / "elsewhere")
    with pytest.raises(MountError, match=f"{name} is a symbolic link"):
        place.mount_image(upper=upper)


def test_an_upper_directory_that_cannot_be_made(place: Place, upper: Path) -> None:
    mount_tree(place.write(), place.tree_mount)
    with pytest.raises(MountError, match=r"cannot use the upper directory .*no/where: No such file or directory"):
        place.mount_image(upper=place.folder / "no/where")
    upper.write_bytes(b"a file")
    with pytest.raises(MountError, match="File exists"):
        place.mount_image(upper=upper)


def test_a_new_upper_directory_is_there_whole_or_not(place: Place, upper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount_tree(place.write(), place.tree_mount)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "utime", full)
    with pytest.raises(MountError, match="No space left"):
        place.mount_image(upper=upper)
    assert names(upper) == ["work"]
    monkeypatch.undo()
    place.mount_image(upper=upper)
    assert place.image.stat().st_mtime_ns == MTIME


def test_what_a_user_keeps_in_it_stays(place: Place, upper: Path) -> None:
    mount_tree(place.write(), place.tree_mount)
    (upper / "upper").mkdir(parents=True)
    (upper / "upper/mine").write_bytes(b"kept")
    place.mount_image(upper=upper)
    assert (place.image / "mine").read_bytes() == b"kept"
