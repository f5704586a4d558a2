"""What the page cache has of complete files, as the kernel says."""

import os
from pathlib import Path

import pytest

from imagefs import syscalls
from imagefs.cache import residency
from imagefs.cache.residency import resident
from imagefs.format.accesses import GRAIN
from tests.system.world import missing

_SIZE = 100 * GRAIN + 5


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A cache with one complete file of which no page is in memory."""
    path = _path(tmp_path, 1)
    path.parent.mkdir(parents=True)
    path.write_bytes(os.urandom(_SIZE))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        if syscalls.cachestat(descriptor, 0, _SIZE):
            missing("the file system of temporary files keeps pages")
    except OSError:
        missing("cachestat is not there before Linux 6.5")
    finally:
        os.close(descriptor)
    return tmp_path


def _path(cache: Path, number: int) -> Path:
    name = bytes([number]).hex() * 32
    return cache / "objects" / name[:2] / name[2:]


def _touch(cache: Path, *grains: int) -> None:
    descriptor = os.open(_path(cache, 1), os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
    for grain in grains:
        os.pread(descriptor, 1, grain * GRAIN)
    os.close(descriptor)


def test_ranges_that_were_read_are_there_in_grains(place: Path) -> None:
    wanted = {7: (b"\x01" * 32, _SIZE)}
    assert resident(place, wanted) == {7: []}
    _touch(place, 3, 4, 50, 100)
    assert resident(place, wanted) == {7: [(3 * GRAIN, 5 * GRAIN), (50 * GRAIN, 51 * GRAIN), (100 * GRAIN, _SIZE)]}


def test_all_of_a_file_is_one_range(place: Path) -> None:
    _path(place, 1).read_bytes()
    assert resident(place, {0: (b"\x01" * 32, _SIZE)}) == {0: [(0, _SIZE)]}


def test_what_is_not_there_is_left_out(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resident(place, {0: (b"\x02" * 32, 5), 1: (b"\x01" * 32, _SIZE)}) == {1: []}

    def cachestat(*_: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(syscalls, "cachestat", cachestat)
    assert resident(place, {1: (b"\x01" * 32, _SIZE)}) == {}


def test_asking_has_an_end(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "_CALLS_MAX", 1)
    _touch(place, 1, 5, 9)
    assert len(resident(place, dict.fromkeys(range(5), (b"\x01" * 32, _SIZE)))) == 1
