"""Mountpoints that cannot be, and who holds one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagefs.errors import MountError
from imagefs.mount.checks import canonical, check_mountpoint
from imagefs.mount.holders import holders


def test_an_empty_directory_is_fine(tmp_path: Path) -> None:
    check_mountpoint(tmp_path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b""), "not a directory"),
        (lambda path: (path / "x").mkdir(parents=True), "not empty"),
        (lambda path: path.symlink_to(path.parent), "symbolic link"),
    ],
)
def test_what_cannot_be_a_mountpoint_is_said(tmp_path: Path, make, words: str) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    make(tmp_path / "m")
    with pytest.raises(MountError, match=words):
        check_mountpoint(tmp_path / "m")


def test_where_something_is_mounted_is_said() -> None:
    with pytest.raises(MountError, match="already mounted"):
        check_mountpoint(Path("/proc"))


def test_canonical_follows_links_above_and_not_the_last(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert canonical(f"{tmp_path}/link/./x/../m") == tmp_path / "real/m"
    assert canonical(f"{tmp_path}/link") == tmp_path / "link"
    with pytest.raises(MountError):
        canonical("relative")


@pytest.mark.parametrize("how", ["cwd", "fd"])
def test_who_holds_a_place_is_found(tmp_path: Path, how: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    command = [sys.executable, "-c", "import sys; f = len(sys.argv) > 1 and open(sys.argv[1]); print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(
        [*command, *([str(tmp_path / "file")] if how == "fd" else [])],
        cwd=tmp_path if how == "cwd" else "/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert any(str(process.pid) in line for line in holders(str(tmp_path)))
        assert holders(str(tmp_path / "elsewhere")) == []
        process.communicate(timeout=10)
    assert os.getpid()
