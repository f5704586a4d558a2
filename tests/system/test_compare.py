"""The comparison itself: it has to see every difference that it is trusted with."""

# ruff: noqa: PTH211 # names are bytes here

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.system.compare import differences, snapshot
from tests.system.trees import full_tree
from tests.system.world import missing, require, tool

_AT: Final = 1_700_000_000_000_000_000


def _content(root: Path) -> None:
    info = (root / "bin/large").stat()
    with (root / "bin/large").open("r+b") as file:
        file.seek(350_000)
        file.write(b"!")
    os.utime(root / "bin/large", ns=(info.st_mtime_ns, info.st_mtime_ns))


def _relinked(root: Path) -> None:
    """The same bytes under both names, and no link between them any more."""
    info = (root / "var/hard").stat()
    shutil.copy2(root / "var/hard", root / "var/copy")
    os.chown(root / "var/copy", info.st_uid, info.st_gid)
    (root / "var/copy").replace(root / "var/hard")


def _renamed_bytes(root: Path) -> None:
    os.rename(os.fsencode(root) + b"/var/\xe9t\xe9", os.fsencode(root) + b"/var/\xe8t\xe9")  # noqa: PTH104 # names are bytes here


def _retargeted(root: Path) -> None:
    for name in ("symlink", "hard-symlink"):
        (root / "var" / name).unlink()
    os.symlink(b"\xff\xff", os.fsencode(root) + b"/var/symlink")
    os.link(root / "var/symlink", root / "var/hard-symlink", follow_symlinks=False)


def _device(root: Path) -> None:
    (root / "var/null").unlink()
    os.mknod(root / "var/null", 0o20666, os.makedev(1, 5))


def _kind(root: Path) -> None:
    (root / "var/fifo").unlink()
    (root / "var/fifo").mkdir()


CHANGES: Final[dict[str, tuple[Callable[[Path], object], str]]] = {
    "content": (_content, "content"),
    "size": (lambda root: os.truncate(root / "bin/large", 5), "size"),
    "mode": (lambda root: (root / "bin/setuid").chmod(0o755), "mode"),
    "sticky": (lambda root: (root / "tmp").chmod(0o777), "mode"),
    "uid": (lambda root: os.chown(root / "bin/large", 1, -1), "uid"),
    "gid_of_a_link": (lambda root: os.lchown(root / "var/symlink", -1, 7), "gid"),
    "nanosecond": (lambda root: os.utime(root / "bin/tiny", ns=(0, (root / "bin/tiny").stat().st_mtime_ns + 1)), "mtime_ns"),
    "time_of_a_directory": (lambda root: os.utime(root / "bin", ns=(0, _AT)), "mtime_ns"),
    "time_of_a_link": (lambda root: os.utime(root / "var/symlink", ns=(0, _AT), follow_symlinks=False), "mtime_ns"),
    "target": (_retargeted, "target"),
    "device": (_device, "rdev"),
    "user_xattr": (lambda root: os.setxattr(root / "bin/small", b"user.note", b"other"), "xattrs"),
    "capability": (lambda root: os.removexattr(root / "bin/ping", b"security.capability"), "xattrs"),
    "acl": (lambda root: tool("setfacl", "-d", "-m", "u:70000:r", root / "var"), "xattrs"),
    "hard_link": (_relinked, "links"),
    "kind": (_kind, "kind"),
    "missing": (lambda root: (root / "var/acl").unlink(), "only on the left"),
    "more": (lambda root: (root / "var/new").touch(), "only on the right"),
    "name": (_renamed_bytes, "only on the"),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("root", "owners and devices")
    return full_tree(tmp_path_factory.mktemp("compare") / "tree")


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(name: str, tree: Path, tmp_path: Path) -> None:
    require("cp")
    change, field = CHANGES[name]
    tool("cp", "--archive", "--sparse=always", tree, tmp_path / "tree")
    before = snapshot(tmp_path / "tree")
    assert differences(snapshot(tree), before) == [], "a copy by cp -a is the same"
    change(tmp_path / "tree")
    assert any(field in line for line in differences(before, snapshot(tmp_path / "tree")))


def test_what_is_missing_fails_where_it_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEFS_REQUIRE", "1")
    with pytest.raises(pytest.fail.Exception, match="required here"):
        require("no-such-program")
    monkeypatch.delenv("IMAGEFS_REQUIRE")
    with pytest.raises(pytest.skip.Exception, match="no no-such-program here: it is asked for"):
        require("no-such-program", "it is asked for")
    with pytest.raises(pytest.skip.Exception):
        missing("anything")
