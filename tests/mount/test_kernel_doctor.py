"""What ``imagefs doctor`` says of kernel mode."""

import errno
import os
from pathlib import Path

import pytest

from imagefs import syscalls
from imagefs.mount import features
from imagefs_cli.doctor import _kernel_mode
from tests.mount.kernel_place import kernel_or_skip, names

_LINES = ["mounting", "EROFS", "data-only layers", "overlay on top", "watching opens", "kernel mode", "fs-verity"]


def test_each_feature_has_a_line_and_the_whole_one(tmp_path: Path) -> None:
    kernel_or_skip()
    found = {finding.name: finding for finding in _kernel_mode(tmp_path / "cache/not/made")}
    assert list(found) == _LINES
    assert found["kernel mode"].state == "ok"
    assert found["kernel mode"].detail.startswith("works: overlayfs over EROFS, from a ")
    assert {finding.state for finding in found.values()} <= {"ok", "warn"}
    assert names(tmp_path) == []


def test_what_is_not_permitted_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(syscalls, "unshare", refuse)
    found = {finding.name: finding for finding in _kernel_mode(tmp_path)}
    assert list(found) == _LINES
    assert found["mounting"].state == found["EROFS"].state == found["kernel mode"].state == "warn"
    assert found["EROFS"].detail == "not tried"
    assert found["kernel mode"].detail.startswith("does not work here, FUSE mode does: mounting: ")
    assert found["mounting"].fix


def test_a_cache_that_cannot_be_written_still_has_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_or_skip()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(features.tempfile, "TemporaryDirectory", refuse)  # type: ignore[attr-defined]
    monkeypatch.setattr(features.tempfile, "mkstemp", refuse)  # type: ignore[attr-defined]
    found = {finding.name: finding for finding in _kernel_mode(tmp_path)}
    assert {name: finding.state for name, finding in found.items()} == {"kernel mode": "warn", "fs-verity": "warn"}
    assert "Read-only file system" in found["kernel mode"].detail
