"""Kernel mode and mount namespaces: who sees what, and whose a mount is."""

import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from imagefs import syscalls
from imagefs.format.tree import Inode
from imagefs.mount.kernel import keep_private, mount_image, mount_tree, settle
from imagefs.mount.mountinfo import parse_mountinfo
from tests.mount.kernel_place import Place, mount_lines

_MS_SHARED = 1 << 20
_MS_BIND = 4096


def test_trees_below_a_private_directory_are_not_seen_elsewhere(place: Place) -> None:
    """In a mount that is shared with another namespace, what is mounted shows there too, but for what is below a private directory."""
    shared, private = place.folder / "shared", place.folder / "shared/private"
    (private / "tree").mkdir(parents=True)
    (shared / "tree").mkdir()
    syscalls.mount(shared, shared, _MS_BIND)
    syscalls.mount(None, shared, _MS_SHARED)
    keep_private(private)
    keep_private(private)
    place.write()
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", "echo; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        mount_tree(place.tree, shared / "tree")
        mount_tree(place.tree, private / "tree")
        seen = {entry.mountpoint for entry in parse_mountinfo(Path(f"/proc/{other.pid}/mountinfo").read_bytes())}
        other.communicate(b"\n", timeout=20)
    assert str(shared / "tree") in seen
    assert str(private / "tree") not in seen
    assert [line for line in mount_lines(shared / "tree") if " shared:" in line] == []
    assert len(mount_lines(private)) == 2


def test_an_image_is_seen_where_its_place_is_shared(place: Place) -> None:
    """Unlike a tree: containers get images by propagation."""
    shared = place.folder / "shared"
    (shared / "image").mkdir(parents=True)
    syscalls.mount(shared, shared, _MS_BIND)
    syscalls.mount(None, shared, _MS_SHARED)
    mount_tree(place.write(), place.tree_mount)
    mount_image(shared / "image", place.tree_mount, place.objects, place.lazy)
    assert " shared:" in mount_lines(shared / "image")[0]


def test_a_mount_that_a_thread_makes_is_the_processs(place: Place) -> None:
    place.put("f", Inode(stat.S_IFREG | 0o644, inline=b"1", size=1))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(place.mount).result()
    assert (place.image / "f").read_bytes() == b"1"
    with ThreadPoolExecutor(1) as pool:
        pool.submit(settle, place.image).result()
