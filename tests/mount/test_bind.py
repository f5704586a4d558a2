"""Bind mounts: read-only at once, or not there; and errors that say what was wrong."""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imagefs import syscalls
from imagefs.errors import AccessError, MountError
from imagefs.mount.bind import BusyError, bind_readonly, unmount


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "file").write_bytes(b"x")
    return folder


@pytest.fixture
def target(tmp_path: Path, require: Callable[..., None]) -> Iterator[Path]:
    require("root", "mounts")
    folder = tmp_path / "target"
    folder.mkdir()
    yield folder
    with contextlib.suppress(MountError):
        unmount(folder, lazy=True)


def test_what_is_bound_is_read_only(source: Path, target: Path) -> None:
    bind_readonly(source, target)
    flags = os.statvfs(target).f_flag
    assert flags & os.ST_RDONLY
    assert flags & os.ST_NOSUID
    assert flags & os.ST_NODEV
    assert (target / "file").read_bytes() == b"x"
    unmount(target)
    assert not list(target.iterdir())


def test_what_is_used_is_busy_and_goes_lazily(source: Path, target: Path) -> None:
    bind_readonly(source, target)
    with (target / "file").open("rb") as used:
        with pytest.raises(BusyError, match=r"cannot unmount .*target: Device or resource busy"):
            unmount(target)
        unmount(target, lazy=True)
        assert not list(target.iterdir())
        assert used.read() == b"x"


def test_what_is_not_mounted_cannot_be_unmounted(target: Path) -> None:
    with pytest.raises(MountError, match=r"cannot unmount .*target: Invalid argument"):
        unmount(target)


def test_nothing_stays_mounted_where_the_flags_are_refused(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = syscalls.mount
    seen: list[Path] = []

    def once(what: Path | None, where: Path, flags: int) -> None:
        if what is None:
            seen.extend(where.iterdir())
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        mount(what, where, flags)

    monkeypatch.setattr(syscalls, "mount", once)
    with pytest.raises(AccessError):
        bind_readonly(source, target)
    assert seen == [target / "file"]
    assert not list(target.iterdir())


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.EBUSY, BusyError), (errno.EPERM, AccessError), (errno.EACCES, AccessError), (errno.ENOENT, MountError)],
)
def test_each_errno_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[MountError | AccessError]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(syscalls, "mount", refuse)
    with pytest.raises(error, match=re.escape(f"cannot mount at {tmp_path}: {os.strerror(number)}")) as caught:
        bind_readonly(tmp_path, tmp_path)
    assert type(caught.value) is error
    assert ("root" in (caught.value.hint or "")) == (error is AccessError)
