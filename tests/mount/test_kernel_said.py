"""Kernel mode where the kernel refuses: what it says, and what an older one says, and what may be done about it."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs import syscalls
from imagefs.errors import MountError
from imagefs.mount.fscontext import explained, setting_up
from imagefs.mount.kernel import mount_image, mount_tree
from imagefs.mount.layers import Style
from tests.mount.kernel_place import LAZY, Place, mount_lines


@pytest.fixture(autouse=True)
def nothing_stays(place: Place) -> Iterator[None]:
    """No test of this file leaves anything mounted, but what it allows itself."""
    yield
    assert [line for line in mount_lines(place.folder) if "/allowed" not in line] == []


# -- what the kernel says -----------------------------------------------------------------------------------------------------------------


def test_what_the_kernel_says_is_told() -> None:
    words = r"^cannot try: Invalid argument: Unknown parameter 'bogus'$"
    with pytest.raises(MountError, match=words), explained("cannot try"), setting_up("overlay") as context:
        syscalls.fsconfig_string(context, "bogus", b"1")


def test_what_only_the_kernels_log_says_is_told(place: Place) -> None:
    """overlayfs gives most of its reasons there and nowhere else."""
    if not os.access("/dev/kmsg", os.R_OK):
        pytest.skip("this user may not read the kernel's log")
    mount_tree(place.write(), place.tree_mount)
    with pytest.raises(MountError, match=r"Invalid argument: maximum fs stacking depth exceeded$") as caught:
        _stack_too_deep(place)
    assert "imagefs doctor" in (caught.value.hint or "")
    place.close()


def test_of_the_kernels_log_only_warnings_of_file_systems_count() -> None:
    """Mounts of others write into it too."""
    log = Path("/dev/kmsg")
    if not os.access(log, os.R_OK | os.W_OK):
        pytest.skip("this user may not use the kernel's log")

    def fail() -> None:
        with explained("cannot try"), setting_up("overlay"):
            for line in ("<6>erofs (device erofs): mounted", "<3>imagefs-test: another's", "<4>overlayfs: the reason"):
                log.write_text(f"{line}\n")
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    log.write_text("<3>overlayfs: before\n")
    with pytest.raises(MountError, match=r"^cannot try: Input/output error: the reason$"):
        fail()


def _stack_too_deep(place: Place) -> None:
    """Use an overlay over an overlay as the tree: one more is more than Linux stacks."""
    place.mount_image()
    names = ["first", "second"]
    for name in names:
        (place.folder / name).mkdir()
    mount_image(place.folder / "first", place.image, place.objects, place.lazy)
    mount_image(place.folder / "second", place.folder / "first", place.objects, place.lazy)


def _refused(_: int) -> None:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def test_layers_that_the_kernel_does_not_know_are_given_in_an_older_way(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Linux from 6.5 to 6.12 answers."""
    place.told_apart("f")
    mount_tree(place.write(), place.tree_mount)
    refused = []

    def before_6_13(context: int, key: str, descriptor: int) -> None:
        refused.append(key)
        syscalls.fsconfig_string(context, key, b"")  # an empty value is as wrong as one of the wrong type

    monkeypatch.setattr(syscalls, "fsconfig_descriptor", before_6_13)
    place.mount_image()
    assert refused == ["lowerdir+"]
    assert (place.image / "f").read_bytes() == LAZY
    place.close()
    mount_tree(place.tree, place.tree_mount)
    with monkeypatch.context() as patch:
        patch.setattr(syscalls, "fsconfig_create", _refused)
        # What was said of the newer way is not the reason.
        with pytest.raises(MountError, match=r"Invalid argument$"):
            place.mount_image()
    place.close()
    mount_tree(place.tree, place.tree_mount)
    with pytest.raises(MountError, match="Invalid argument"):
        place.mount_image(styles=[Style.DESCRIPTOR])
    place.close()


# -- permission ---------------------------------------------------------------------------------------------------------------------------

_CHILD = """
import sys
from pathlib import Path
from imagefs.errors import ImageFSError
from imagefs.mount.kernel import mount_image, mount_tree, settle
folder = Path(sys.argv[1])
for call in (
    lambda: mount_tree(folder / "tree", folder / "tree-mount"),
    lambda: mount_image(folder / "image", folder / "tree-mount", folder / "objects", folder / "lazy"),
    lambda: mount_image(folder / "image", folder / "tree-mount", folder / "objects", folder / "lazy", upper=folder / "up"),
    lambda: settle(folder / "allowed"),
):
    try:
        call()
        print("done")
    except ImageFSError as error:
        print(type(error).__name__, error.message, "-", error.hint)
"""


def test_without_cap_sys_admin_it_is_said_what_is_missing(place: Place) -> None:
    mount_tree(place.write(), place.tree_mount)
    (place.folder / "allowed").mkdir()
    mount_image(place.folder / "allowed", place.tree_mount, place.objects, place.lazy)
    done = subprocess.run(
        ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", sys.executable, "-c", _CHILD, place.folder],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done
    for line in lines:
        assert line.startswith("AccessError "), lines
        assert "Operation not permitted" in line
        assert "CAP_SYS_ADMIN" in line
    place.close()
