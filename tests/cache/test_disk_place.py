"""The directory of the SSD tier: what is refused, what is set aside, who uses it."""

import errno
import os
from pathlib import Path

import pytest

from imagefs.cache import disk_place
from imagefs.cache.disk_place import ASIDE, MARKER, CachePlace
from imagefs.errors import AccessError, DaemonError, StoreFullError, UsageError


def test_one_process_a_cache(tmp_path: Path) -> None:
    first = CachePlace(tmp_path / "c")
    with pytest.raises(DaemonError, match=str(os.getpid())):
        CachePlace(tmp_path / "c")
    first.close()
    CachePlace(tmp_path / "c").close()


def test_what_is_not_a_cache_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(UsageError, match="not a cache"):
        CachePlace(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_cache_that_others_may_write_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "c"
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(AccessError, match="written by others"):
        CachePlace(root)


@pytest.mark.parametrize("call", ["open", "write_bytes"])
def test_a_full_disk_is_told_from_one_that_must_not_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os if call == "open" else Path, call, full)
    with pytest.raises(StoreFullError):
        CachePlace(tmp_path / "c")


def test_a_cache_of_another_format_is_set_aside(tmp_path: Path) -> None:
    root = tmp_path / "c"
    CachePlace(root).close()
    (root / "objects").mkdir()
    (root / "objects" / "x").write_text("old")
    (root / MARKER).write_text('{"format": 0}')
    again = CachePlace(root)
    assert again.set_aside
    again.close()
    assert (root / ASIDE / "0" / "objects" / "x").read_text() == "old"
    assert not (root / "objects").exists()


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "9p", "fuse.sshfs", "ceph"])
def test_network_file_systems_are_said_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What the kernel calls them in ``mountinfo``: there is no server of any of them here."""
    monkeypatch.setattr(disk_place, "file_system_of", lambda _: kind)
    found = CachePlace(tmp_path / "c")
    found.close()
    (warning,) = found.warnings
    assert f"is on {kind}: every read of the SSD tier goes over the network, and hangs when that does" in warning


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "overlay", ""])
def test_local_file_systems_are_nothing_to_talk_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(disk_place, "file_system_of", lambda _: kind)
    found = CachePlace(tmp_path / "c")
    found.close()
    assert found.warnings == []


def test_the_kind_of_a_file_system_is_what_the_kernel_says(tmp_path: Path) -> None:
    assert disk_place.file_system_of(Path("/proc/self")) == "proc"
    assert disk_place.file_system_of(Path("/sys")) == "sysfs"
    assert disk_place.file_system_of(tmp_path / "none") == ""


def test_to_look_at_a_directory_changes_nothing(tmp_path: Path) -> None:
    assert disk_place.look_at(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(AccessError, match="No such file"):
        disk_place.look_at(tmp_path / "none")


@pytest.mark.parametrize("marker", ["{", "", '{"format": "x"}', '{"format": 99}', "[" * 10_000])
def test_a_marker_that_is_not_ours_is_set_aside_and_never_half_read(tmp_path: Path, marker: str) -> None:
    root = tmp_path / "c"
    CachePlace(root).close()
    (root / "objects").mkdir()
    (root / "objects" / "x").write_text("old")
    (root / MARKER).write_text(marker)
    for number in range(2):
        again = CachePlace(root)
        assert again.set_aside
        again.close()
        assert (root / ASIDE / str(number) / MARKER).read_text() == marker
        (root / MARKER).write_text(marker)
    assert (root / ASIDE / "0" / "objects" / "x").read_text() == "old"


def test_memory_file_systems_are_said(tmp_path: Path) -> None:
    with_memory = Path("/dev/shm/imagefs-test-place")
    try:
        found = CachePlace(with_memory)
        found.close()
        assert any("memory" in warning for warning in found.warnings)
    finally:
        for path in with_memory.iterdir():
            path.unlink()
        with_memory.rmdir()
