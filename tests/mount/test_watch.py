"""Who opens what in kernel mode, as the kernel tells it: by which ways, how much, and what it costs nobody."""

import ctypes
import errno
import mmap
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from imagefs import syscalls
from imagefs.errors import AccessError, MountError, UnsupportedError
from imagefs.mount.bind import unmount
from imagefs.mount.kernel import settle
from imagefs.mount.mountinfo import mount_at
from imagefs.mount.watch import Opened, Watch
from tests.mount.kernel_place import SSD, Place, descriptors
from tests.system.world import missing, wait_until


@pytest.fixture
def watched(place: Place) -> Iterator[Watch]:
    """An image with ``top`` and ``d/one``, ``d/two`` on SSD and ``d/lazy`` not, of which all directories are watched."""
    for path in ("top", "d/one", "d/two"):
        place.told_apart(path, ssd=True)
    place.told_apart("d/lazy")
    place.mount()
    made = _watch(place)
    made.add([b"d"])
    yield made
    made.close()


_TURNS = """
import os, sys
for number in range(int(sys.argv[3])):
    if os.fork():
        os.wait()
    else:
        os.close(os.open(sys.argv[1 + number % 2], os.O_RDONLY))
        os._exit(0)
"""


def _watch(place: Place) -> Watch:
    try:
        return Watch(place.image)
    except UnsupportedError as error:
        missing(f"opens cannot be watched here: {error.message}")


def _seen(made: Watch) -> list[Opened]:
    return [opened for taken in made.take() for opened in made.opens(taken)]


def _nids(place: Place, *paths: str) -> list[int]:
    """Return inode numbers on the tree."""
    return [(place.tree_mount / path).lstat().st_ino for path in paths]


def _cat(*paths: Path) -> int:
    process = subprocess.Popen(["cat", *paths], stdout=subprocess.DEVNULL)
    assert process.wait() == 0
    return process.pid


def test_an_open_is_told_with_its_process_and_inode_in_order(place: Place, watched: Watch) -> None:
    pid = _cat(place.image / "d/two", place.image / "top", place.image / "d/lazy", place.image / "d/one")
    assert _seen(watched) == [Opened(pid, nid) for nid in _nids(place, "d/two", "top", "d/lazy", "d/one")]
    assert _seen(watched) == []
    assert watched.lost == 0


def test_names_attributes_and_directories_are_not_opens(place: Place, watched: Watch) -> None:
    (place.image / "d/one").stat()
    assert sorted(os.listdir(place.image / "d")) == ["lazy", "one", "two"]  # noqa: PTH208
    assert _seen(watched) == []


def test_what_is_run_or_mapped_is_told(place: Place) -> None:
    place.file("bin/true", Path("/bin/true").read_bytes(), ssd=True, mode=0o755)
    place.told_apart("bin/map", ssd=True)
    place.mount()
    made = _watch(place)
    made.add([b"bin"])
    with ExitStack() as stack:
        stack.callback(made.close)
        assert subprocess.run([place.image / "bin/true"], check=True).returncode == 0
        assert {opened.nid for opened in _seen(made)} == set(_nids(place, "bin/true"))
        with (place.image / "bin/map").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:4] == SSD[:4]
        assert [opened.nid for opened in _seen(made)] == _nids(place, "bin/map")


def test_opens_through_a_bind_mount_and_an_overlay_on_top_are_told(place: Place, watched: Watch, tmp_path: Path) -> None:
    bound, top = tmp_path / "bound", tmp_path / "top"
    folders = [tmp_path / name for name in ("upper", "work")]
    for path in (bound, top, *folders):
        path.mkdir()
    with ExitStack() as stack:
        subprocess.run(["mount", "--bind", place.image / "d", bound], check=True)
        stack.callback(unmount, bound)
        options = f"lowerdir={place.image},upperdir={folders[0]},workdir={folders[1]}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, top], check=True)
        stack.callback(unmount, top)
        _cat(bound / "one")
        _cat(top / "d/two")
        assert [opened.nid for opened in _seen(watched)] == _nids(place, "d/one", "d/two")


def test_hard_links_are_one_inode(place: Place) -> None:
    inode = place.file("a", b"y" * 700, ssd=True)
    place.put("b/c", inode)
    place.mount()
    made = _watch(place)
    made.add([b"b"])
    _cat(place.image / "a", place.image / "b/c")
    assert len({opened.nid for opened in _seen(made)}) == 1
    made.close()


def test_with_an_upper_layer_the_images_own_files_are_told(place: Place, tmp_path: Path) -> None:
    place.told_apart("d/one", ssd=True)
    place.mount(upper=tmp_path / "up")
    made = _watch(place)
    made.add([b"d"])
    (place.image / "d/new").write_text("not the image's")
    (place.image / "d/one").chmod(0o600)
    _cat(place.image / "d/new", place.image / "d/one")
    (place.image / "d/one").write_bytes(b"changed")
    assert {opened.nid for opened in _seen(made)} == set(_nids(place, "d/one")), "also when it was copied"
    made.close()


def test_what_others_mount_inside_is_not_watched(place: Place, watched: Watch, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("x")
    subprocess.run(["mount", "--bind", other, place.image / "d"], check=True)
    try:
        assert watched.add([b"d"]) == 1, "the image's own directory below"
        _cat(place.image / "d/file")
        assert _seen(watched) == []
    finally:
        unmount(place.image / "d")


def test_directories_that_are_none_are_passed_over(place: Place, watched: Watch) -> None:
    assert watched.add([b"gone", b"top", b"d/one/x", b"d"]) == 1
    watched.stopping = True
    assert watched.add([b"d"]) == 0


def test_it_neither_keeps_a_mount_busy_nor_what_was_found(place: Place, watched: Watch) -> None:
    _cat(place.image / "d/one")
    settle(place.image)
    _cat(place.image / "d/one")
    assert len(_seen(watched)) == 2, "the marks are still there after settling"
    unmount(place.image)
    assert mount_at(place.image) is None
    assert _seen(watched) == []


def test_evicted_content_gives_its_space_back_when_settled(place: Place, watched: Watch) -> None:
    path = place.image / "d/one"
    assert path.read_bytes() == SSD
    digest = next(entry for entry in place.objects.rglob("*") if entry.is_file())
    for entry in place.objects.rglob("*"):
        if entry.is_file():
            entry.unlink()
    settle(place.image)
    assert path.read_bytes() != SSD, f"{digest} is gone, and the other layer has it"
    assert len(_seen(watched)) >= 1


def test_more_than_the_queue_holds_is_counted_as_lost(place: Place, watched: Watch) -> None:
    """16,384 by default; the same open again is no new event as long as it is the last of its kind, so two take turns."""
    limit = int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text())
    Path("/proc/sys/fs/fanotify/max_queued_events").write_text("50")
    try:
        small = _watch(place)
        subprocess.run([sys.executable, "-c", _TURNS, place.image / "top", place.image / "d/one", "200"], check=True)
    finally:
        Path("/proc/sys/fs/fanotify/max_queued_events").write_text(str(limit))
    assert len(_seen(small)) <= 51
    assert small.lost == 1
    small.close()


@pytest.mark.parametrize("number", [errno.ENODEV, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_kernel_that_cannot_says_so(place: Place, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Older ones have no number for the file system, or no handles of its files."""
    place.told_apart("a", ssd=True)
    place.mount()
    held = descriptors()

    def fanotify_mark(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(syscalls, "fanotify_mark", fanotify_mark)
        with pytest.raises(UnsupportedError, match="does not tell of opens"):
            Watch(place.image)
    with pytest.raises((MountError, AccessError)):
        Watch(place.folder / "nowhere")
    assert descriptors() == held


def test_files_cannot_be_opened_by_handle_past_their_names(place: Place) -> None:
    """With file handles (``nfs_export``) this reads a hole in place of the content, and so does who opens the file by its name then."""
    place.told_apart("d/one", ssd=True)
    place.mount()
    libc = ctypes.CDLL(None, use_errno=True)
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    number = ctypes.c_int()
    if libc.name_to_handle_at(-100, os.fsencode(place.image / "d/one"), handle, ctypes.byref(number), 0):
        assert ctypes.get_errno() == errno.EOPNOTSUPP
        return
    settle(place.image)
    folder = os.open(place.image, os.O_RDONLY)
    descriptor = libc.open_by_handle_at(folder, handle, os.O_RDONLY)
    os.close(folder)
    if descriptor >= 0:
        assert os.pread(descriptor, len(SSD), 0) == SSD
        os.close(descriptor)
    assert (place.image / "d/one").read_bytes() == SSD


@pytest.mark.parametrize("cut", [0, 1, 10, 23, 24, 30, 60, 75])
def test_what_is_no_event_is_passed_over(place: Place, watched: Watch, cut: int) -> None:
    _cat(place.image / "top")
    (taken,) = watched.take()
    assert len(list(watched.opens(taken))) == 1
    assert list(watched.opens(taken[:cut])) == []
    assert list(watched.opens(bytes(len(taken)))) == []
    assert list(watched.opens(taken[:4] + b"\x02" + taken[5:])) == [], "another version"
    assert [opened.nid for opened in watched.opens(taken[:40] + b"\x01" + taken[41:])] == [], "another file system's handle"


def test_closing_twice_does_no_harm(place: Place, watched: Watch) -> None:
    watched.close()
    watched.close()
    assert watched.take() == []
    wait_until(lambda: _cat(place.image / "top") > 0, "the mount to work without")
