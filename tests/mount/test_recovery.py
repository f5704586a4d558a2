"""Mounts that a killed daemon has left: they are taken away, and those of a living one are not, whatever that one does."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imagefs.mount import recovery
from imagefs.mount.mountinfo import FUSE_TYPE, OVERLAY_TYPE, SOURCE, MountEntry

PLACE = "/mnt/image"


@pytest.fixture
def detached(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was unmounted; ``PLACE`` shows an image in FUSE mode."""
    found: list[Path] = []
    _shows(monkeypatch, FUSE_TYPE)
    monkeypatch.setattr(recovery, "unmount", lambda path, *, lazy: found.append(path if lazy else Path()))
    return found


def _shows(monkeypatch: pytest.MonkeyPatch, fstype: str | None) -> None:
    entry = None if fstype is None else MountEntry(1, 2, "0:1", "/", PLACE, frozenset(), fstype, SOURCE)
    monkeypatch.setattr(recovery, "mount_at", lambda place: entry if place == PLACE else None)


def _opening(monkeypatch: pytest.MonkeyPatch, does: Callable[[], None]) -> None:
    opened = os.open

    def stub(path: str, flags: int) -> int:
        if path != PLACE:
            return opened(path, flags)
        does()
        return opened("/", flags)

    monkeypatch.setattr(os, "open", stub)


@pytest.mark.parametrize("code", [errno.ENOTCONN, errno.ECONNABORTED])
def test_a_dead_one_is_detached(monkeypatch: pytest.MonkeyPatch, detached: list[Path], code: int) -> None:
    def fail() -> None:
        raise OSError(code, os.strerror(code))

    _opening(monkeypatch, fail)
    assert recovery.detach_dead(PLACE)
    assert detached == [Path(PLACE)]


def test_in_kernel_mode_nobody_is_asked(monkeypatch: pytest.MonkeyPatch, detached: list[Path]) -> None:
    _shows(monkeypatch, OVERLAY_TYPE)
    _opening(monkeypatch, lambda: pytest.fail("opened"))
    assert recovery.detach_dead(PLACE)
    assert detached == [Path(PLACE)]


@pytest.mark.parametrize("fstype", [None, "ext4"])
def test_what_is_no_image_is_left_alone(monkeypatch: pytest.MonkeyPatch, detached: list[Path], fstype: str | None) -> None:
    _shows(monkeypatch, fstype)
    assert not recovery.detach_dead(PLACE)
    assert detached == []


def test_a_living_one_is_left_alone(monkeypatch: pytest.MonkeyPatch, detached: list[Path]) -> None:
    def refuse() -> None:
        raise PermissionError(errno.EACCES, "no")

    for does in (lambda: None, refuse):
        with monkeypatch.context() as patch:
            _opening(patch, does)
            assert not recovery.detach_dead(PLACE)
    assert detached == []


@pytest.fixture
def never() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_one_that_does_not_answer_is_left_alone_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, detached: list[Path], never: threading.Event
) -> None:
    def wait() -> None:
        never.wait()

    monkeypatch.setattr(recovery, "_ANSWER_SECONDS", 0.05)
    _opening(monkeypatch, wait)
    assert not recovery.detach_dead(PLACE)
    assert not never.is_set()
    assert detached == []
