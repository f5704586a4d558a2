"""System calls by libc: they do what they say, and a failure is an ``OSError`` with the kernel's errno."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from imagefs import syscalls

_MS_BIND = 4096
_UMOUNT_NOFOLLOW = 8


def _refused(number: int, call: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(OSError, match=f"Errno {number}") as caught:
        call(*arguments)
    assert (caught.value.errno, caught.value.strerror) == (number, os.strerror(number))


def test_a_mount_is_made_and_taken_away(tmp_path: Path, require: Callable[..., None]) -> None:
    require("root", "mounts")
    source, target = tmp_path / "source", tmp_path / "target with a space"
    source.mkdir()
    target.mkdir()
    (source / "file").touch()
    syscalls.mount(source, target, _MS_BIND)
    try:
        assert (target / "file").exists()
    finally:
        syscalls.umount(target, _UMOUNT_NOFOLLOW)
    assert not (target / "file").exists()


def test_a_file_system_is_mounted_nowhere(require: Callable[..., None]) -> None:
    require("root", "mounts")
    context = syscalls.fsopen("tmpfs")
    try:
        syscalls.fsconfig_create(context)
        root = syscalls.fsmount(context)
    finally:
        os.close(context)
    try:
        assert stat.S_ISDIR(os.fstat(root).st_mode)
        assert not os.get_inheritable(root)
        os.mkdir("below", dir_fd=root)
        assert stat.S_ISDIR(os.stat("below", dir_fd=root).st_mode)
    finally:
        os.close(root)


def test_a_failure_has_the_errno_of_its_call(tmp_path: Path, require: Callable[..., None]) -> None:
    require("root", "others get EPERM for everything")
    _refused(errno.EINVAL, syscalls.umount, tmp_path, _UMOUNT_NOFOLLOW)
    _refused(errno.ENOENT, syscalls.umount, tmp_path / "none", _UMOUNT_NOFOLLOW)
    _refused(errno.ENOENT, syscalls.mount, tmp_path / "none", tmp_path, _MS_BIND)
    _refused(errno.ENODEV, syscalls.fsopen, "no such type")
    _refused(errno.EINVAL, syscalls.fsconfig_create, -1)
    _refused(errno.EBADF, syscalls.fsmount, -1)


def test_what_is_written_is_synced(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.write(b"x")
        file.flush()
        syscalls.syncfs(file.fileno())
    _refused(errno.EBADF, syscalls.syncfs, -1)


def test_verity_is_refused_or_enabled(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 5000)
    with path.open("rb") as file:
        try:
            syscalls.enable_verity(file.fileno())
        except OSError as error:
            assert error.errno in {errno.ENOTTY, errno.EOPNOTSUPP}  # noqa: PT017 # most file systems have none
        else:
            _refused(errno.EEXIST, syscalls.enable_verity, file.fileno())


def test_a_machine_whose_numbers_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "_NR_IOPRIO_SET", {})
    _refused(errno.ENOSYS, syscalls.ioprio_idle)
