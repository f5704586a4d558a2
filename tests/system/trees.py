"""Real directory trees, made with the system's own tools, as umoci and tar get to see them."""

import os
import subprocess
from pathlib import Path
from typing import Final

from tests.corpus.features import noise, text
from tests.system.world import require, tool

_NS: Final = 1_700_000_000_987_654_321


def full_tree(root: Path) -> Path:
    """Make a tree with one of everything that a file system holds; needs root."""
    require("root", "owners and devices")
    require("setfacl")
    require("setcap")
    root.mkdir(parents=True)
    here = os.fsencode(root)
    (root / "bin").mkdir()
    for name, data in (("empty", b""), ("tiny", b"t"), ("small", text(3000)), ("large", text(700_000)), ("noise", noise(600_000))):
        (root / "bin" / name).write_bytes(data)
    (root / "bin/setuid").write_bytes(b"#!/bin/sh\n")
    (root / "bin/setuid").chmod(0o4755)
    (root / "bin/ping").write_bytes(noise(5000, b"ping"))
    tool("setcap", "cap_net_raw+ep", root / "bin/ping")
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    (root / "var").mkdir()
    tool("setfacl", "-m", "u:70000:rwx,g:100:r", root / "var")
    tool("setfacl", "-d", "-m", "u:70000:rwx", root / "var")
    (root / "var/acl").write_bytes(b"acl")
    tool("setfacl", "-m", "u:70000:rw", root / "var/acl")
    os.setxattr(root / "bin/small", b"user.note", b"\0binary\xff")
    os.setxattr(root / "var", b"user.dir", b"1")
    os.chown(root / "bin/small", 70_000, 80_000)
    os.symlink(b"\xff\xfe", here + b"/var/symlink")  # noqa: PTH211 # Path has no bytes
    os.lchown(root / "var/symlink", 70_000, 1)
    os.link(root / "bin/small", root / "var/hard")
    os.link(root / "var/symlink", root / "var/hard-symlink", follow_symlinks=False)
    os.mkfifo(root / "var/fifo", 0o640)
    os.mknod(root / "var/null", 0o20666, os.makedev(1, 3))
    os.mknod(root / "var/disk", 0o60660, os.makedev(259, 70_000))
    for raw in (b"\xe9t\xe9", b"n" * 255, b"new\nline", b"-rf"):
        Path(os.fsdecode(here + b"/var/" + raw)).write_bytes(raw)
    deep = root
    for _ in range(15):
        deep /= "d" * 200
        deep.mkdir()
    (deep / "file").write_bytes(b"at the end of a path of 3000 bytes")
    sparse_file(root / "var/sparse", 40 << 20)
    for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        os.utime(path, ns=(_NS, _NS + number * 1_000_003), follow_symlinks=False)
    os.utime(root, ns=(_NS, _NS))
    return root


def sparse_file(path: Path, size: int) -> None:
    """Make a file of ``size`` bytes, nearly all holes: data at its start, in the middle, and right before a hole at its end."""
    with path.open("wb") as file:
        file.write(text(5000))
        for place in (size // 4, size // 2, size * 3 // 4):
            file.seek(place)
            file.write(noise(4096, b"%d" % place))
        file.truncate(size)


class Umoci:
    """An OCI layout that umoci makes."""

    def __init__(self, layout: Path) -> None:
        """Make a layout with one empty image, ``latest``."""
        require("umoci")
        self.layout = layout
        tool("umoci", "init", "--layout", layout)
        tool("umoci", "new", "--image", f"{layout}:latest")

    def insert(self, source: Path, target: str, *options: str) -> None:
        """Add a layer with a tree."""
        tool("umoci", "insert", "--image", f"{self.layout}:latest", *options, source, target)

    def whiteout(self, target: str) -> None:
        """Add a layer that hides a path."""
        tool("umoci", "insert", "--image", f"{self.layout}:latest", "--whiteout", target)

    def add_tar(self, path: Path) -> None:
        """Add a layer that is this tar."""
        tool("umoci", "raw", "add-layer", "--image", f"{self.layout}:latest", path)

    def unpack(self, target: Path) -> Path:
        """Unpack into ``target``; return it."""
        tool("umoci", "raw", "unpack", "--image", f"{self.layout}:latest", target)
        return target

    def bundle(self, target: Path) -> Path:
        """Unpack as a bundle, to be changed and given to :meth:`repack`; return its root file system."""
        tool("umoci", "unpack", "--image", f"{self.layout}:latest", target)
        return target / "rootfs"

    def repack(self, bundle: Path) -> None:
        """Add a layer with what changed in a bundle."""
        tool("umoci", "repack", "--image", f"{self.layout}:latest", bundle)


def skopeo(source: str, target: str, *options: str) -> None:
    """Copy an image between local places."""
    require("skopeo")
    tool("skopeo", "--insecure-policy", "copy", "--quiet", *options, source, target)


def gnu_tar(tree: Path, target: Path, *options: str) -> Path:
    """Archive a tree with GNU tar."""
    require("tar")
    tool("tar", "--create", "--file", target, "--numeric-owner", "--sort=name", *options, "--directory", tree, ".")
    return target


def is_sparse(path: Path) -> bool:
    """Whether the file takes less than its size."""
    info = path.stat()
    return info.st_blocks * 512 < info.st_size


def run_quietly(*command: str | Path) -> int:
    """Run a command for its exit status alone."""
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode
