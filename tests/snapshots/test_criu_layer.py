"""Copies of writable layers: what overlayfs makes of them is the same."""

import os
import socket
import stat
from pathlib import Path

import pytest

from imagefs.errors import DeadlineError
from snapshotstore.checkpoint.criu_layer import copy_layer
from tests.system.world import require


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    require("root", "overlayfs's attributes take it")
    folder = tmp_path / "layer"
    (folder / "opaque" / "deep").mkdir(parents=True)
    os.setxattr(folder / "opaque", "trusted.overlay.opaque", b"y")
    os.setxattr(folder / "opaque", "trusted.overlay.origin", b"here")
    os.setxattr(folder / "opaque", "user.own", b"kept")
    os.mknod(folder / "gone", stat.S_IFCHR, os.makedev(0, 0))
    with (folder / "sparse").open("wb") as file:
        file.seek(3 << 20)
        file.write(b"x" * 5000)
        file.truncate(9 << 20)
    (folder / "empty").touch()
    os.link(folder / "sparse", folder / "opaque" / "hard")
    (folder / "link").symlink_to("nowhere")
    os.chown(folder / "link", 3, 4, follow_symlinks=False)
    os.mkfifo(folder / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(folder / "socket"))
    (folder / os.fsdecode(b"n\xffme")).write_bytes(b"content")
    (folder / "opaque" / "deep").chmod(0o2750)
    (folder / "empty").chmod(0o4755)
    os.utime(folder / "opaque", ns=(5, 7))
    folder.chmod(0o711)
    return folder


def _seen(folder: Path) -> dict[str, tuple[object, ...]]:
    seen: dict[str, tuple[object, ...]] = {}
    for path in [folder, *folder.rglob("*")]:
        found = path.lstat()
        names = sorted(set(os.listxattr(path, follow_symlinks=False)) - {"trusted.overlay.origin"})
        attributes = [(name, os.getxattr(path, name, follow_symlinks=False)) for name in names]
        content = path.read_bytes() if stat.S_ISREG(found.st_mode) else str(path.readlink()) if path.is_symlink() else b""
        links = found.st_nlink if stat.S_ISREG(found.st_mode) else 0
        seen[str(path.relative_to(folder))] = (
            *(found.st_mode, found.st_uid, found.st_gid, found.st_rdev, found.st_mtime_ns, links),
            attributes,
            content,
        )
    return seen


def test_a_copy_is_equal(layer: Path, tmp_path: Path) -> None:
    copy_layer(layer, tmp_path / "copy", tmp_path / "none", lambda: None)
    assert _seen(tmp_path / "copy") == _seen(layer)
    assert (tmp_path / "copy" / "sparse").samefile(tmp_path / "copy" / "opaque" / "hard")
    assert (tmp_path / "copy" / "sparse").stat().st_blocks * 512 < 1 << 20
    assert "trusted.overlay.origin" not in os.listxattr(tmp_path / "copy" / "opaque")


def test_a_copy_ends_with_its_deadline(layer: Path, tmp_path: Path) -> None:
    left = iter(range(3))

    def check() -> None:
        if next(left, None) is None:
            raise DeadlineError("over")

    with pytest.raises(DeadlineError):
        copy_layer(layer, tmp_path / "copy", tmp_path / "none", check)


def test_a_file_without_content_gets_it(layer: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    (whole / "opaque").mkdir(parents=True)
    (whole / "opaque" / "meta").write_bytes(b"content")
    with (layer / "opaque" / "meta").open("wb") as file:
        file.truncate(7)
    (layer / "opaque" / "meta").chmod(0o604)
    os.setxattr(layer / "opaque" / "meta", "trusted.overlay.metacopy", b"")
    os.setxattr(layer / "opaque" / "meta", "trusted.overlay.redirect", b"/ab/cd")
    os.setxattr(layer / "opaque" / "meta", "user.own", b"kept")
    copy_layer(layer, tmp_path / "copy", whole, lambda: None)
    made = tmp_path / "copy" / "opaque" / "meta"
    assert made.read_bytes() == b"content"
    assert os.listxattr(made) == ["user.own"]
    assert made.stat().st_mode & 0o777 == 0o604
