"""Kernel mode under hard names and many at once."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imagefs.mount.bind import unmount
from imagefs.mount.kernel import Backing, mount_image, settle
from imagefs.mount.layers import STYLES, Style
from imagefs.mount.mountinfo import mount_at
from tests.mount.kernel_place import LAZY, SSD, Place, descriptors, loop_devices, mount_lines

_NAMES = {
    "plain": "plain",
    "space": "with a space",
    "colon": "a:b::c:",
    "comma": "a,b,,upperdir=x",
    "backslash": "a\\b\\\\c\\",
    "escapes": "\\:\\,\\072",
    "newline": "two\nlines\ttab",
    "not-utf-8": os.fsdecode(b"\xff\xfe\x80"),
    "quotes": "'\"`$(x)#;",
    "long": "l" * 250,
}


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
@pytest.mark.parametrize("name", list(_NAMES))
@pytest.mark.parametrize("backing", list(Backing))
def test_any_name_will_do(make_place: Callable[[str], Place], name: str, style: Style, backing: Backing) -> None:
    """For the tree, its mountpoint, each layer and the mountpoint alike."""
    place = make_place(_NAMES[name])
    place.told_apart("lazy")
    digest = place.told_apart("ssd", ssd=True)
    upper = place.folder / "changes"
    place.mount(styles=[style], upper=upper, backing=backing)
    assert (place.image / "lazy").read_bytes() == LAZY
    assert (place.image / "ssd").read_bytes() == SSD
    (place.image / "new").write_bytes(b"1")
    assert (upper / "upper/new").read_bytes() == b"1"
    unmount(place.image)
    place.mount_image(styles=[style])
    assert (place.image / "ssd").read_bytes() == SSD
    assert not (place.image / "new").exists()
    place.evict(digest)
    settle(place.image)
    assert (place.image / "ssd").read_bytes() == LAZY
    assert mount_at(place.image) is not None
    unmount(place.image)
    unmount(place.tree_mount)


def test_deep_places(make_place: Callable[[str], Place]) -> None:
    """Longer than what the kernel takes as a string of fsconfig(2), and as options of mount(2) in all."""
    place = make_place("/".join(["d" * 200] * 15))
    place.told_apart("f")
    for style in STYLES:
        place.mount(styles=[style], upper=place.folder / "changes")
        assert (place.image / "f").read_bytes() == LAZY
        unmount(place.image)
        unmount(place.tree_mount)


@pytest.mark.parametrize("backing", list(Backing))
def test_many_at_once_leave_nothing(tmp_path: Path, make_place: Callable[[str], Place], backing: Backing) -> None:
    places = [make_place(f"place-{number}") for number in range(100)]
    for place in places:
        place.file("f", place.folder.name.encode() * 30)
        place.write()
    held = descriptors()

    def run(place: Place) -> None:
        place.mount(backing=backing)
        assert (place.image / "f").read_bytes() == place.folder.name.encode() * 30
        settle(place.image)
        unmount(place.image)
        unmount(place.tree_mount)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(run, places))
    assert mount_lines(tmp_path) == loop_devices(tmp_path) == []
    assert descriptors() == held


def test_many_images_over_one_tree(make_place: Callable[[str], Place]) -> None:
    """One tree mount, one SSD directory, a hundred overlays at a time, mounted and settled while all read."""
    place = make_place("one")
    for number in range(50):
        place.told_apart(f"d/{number}", ssd=number % 2 == 0)
    place.mount()
    folders = [place.folder / f"image-{number}" for number in range(100)]

    def run(folder: Path) -> None:
        folder.mkdir()
        mount_image(folder, place.tree_mount, place.objects, place.lazy)
        for number in range(50):
            assert (folder / f"d/{number}").read_bytes() == (LAZY if number % 2 else SSD)
            if number % 10 == 0:
                settle(folder)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, folders))
    assert sum(" - overlay " in line for line in mount_lines(place.folder)) == 101
