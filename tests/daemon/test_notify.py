"""What is said to a service manager, to one that listens on a socket of the test's."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.config import ManagerSettings, manager_settings
from imagefs.daemon.notify import ServiceManager


@pytest.fixture(params=["path", "abstract"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """An address as it stands in the environment, and who listens there."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@imagefs-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name[1:] if name.startswith("@") else name)
        listener.settimeout(5)
        yield name, listener


def heard(listener: socket.socket) -> tuple[list[str], list[int]]:
    data, descriptors, _, _ = socket.recv_fds(listener, 4096, 4)
    return data.decode().splitlines(), descriptors


def test_what_it_says(listening: tuple[str, socket.socket]) -> None:
    name, listener = listening
    manager = ServiceManager(ManagerSettings(notify=name))
    manager.ready("process 7 serves")
    assert heard(listener) == (["READY=1", "STATUS=process 7 serves"], [])
    manager.reloading()
    (word, moment), _ = heard(listener)
    assert word == "RELOADING=1"
    assert int(moment.removeprefix("MONOTONIC_USEC=")) > 0
    manager.stopping()
    assert heard(listener) == (["STOPPING=1"], [])
    manager.drop("fuse.0")
    assert heard(listener) == (["FDSTOREREMOVE=1", "FDNAME=fuse.0"], [])


def test_a_descriptor_is_given_to_be_kept_and_not_watched(listening: tuple[str, socket.socket], tmp_path: Path) -> None:
    name, listener = listening
    with (tmp_path / "file").open("wb") as file:
        assert ServiceManager(ManagerSettings(notify=name)).store("fuse.0", file.fileno())
        said, (descriptor,) = heard(listener)
        assert said == ["FDSTORE=1", "FDNAME=fuse.0", "FDPOLL=0"]
        assert os.path.samestat(os.fstat(descriptor), os.fstat(file.fileno()))
        os.close(descriptor)


def test_signs_of_life_are_given_three_times_as_often_as_asked_for(
    listening: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, listener = listening
    manager = ServiceManager(ManagerSettings(notify=name, watchdog=30.0))
    listener.settimeout(0)
    count = 0
    for second in range(60):
        monkeypatch.setattr(time, "monotonic", lambda now=100.0 + second: now)
        manager.is_alive()
        try:
            assert heard(listener)[0] == ["WATCHDOG=1"]
            count += 1
        except BlockingIOError:
            pass
    assert count == 6


def test_nobody_who_listens_is_no_error(tmp_path: Path) -> None:
    for settings in (ManagerSettings(), ManagerSettings(notify=str(tmp_path / "nobody"), watchdog=1.0)):
        manager = ServiceManager(settings)
        manager.is_alive()
        manager.ready("")
        assert not manager.store("fuse.0", 0)
        assert manager.stored() == []


@pytest.mark.parametrize(
    ("told", "settings"),
    [
        ({}, ManagerSettings()),
        ({"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "1500000"}, ManagerSettings("/run/n", 1.5)),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "7"}, ManagerSettings(watchdog=1.5)),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "8"}, ManagerSettings()),
        ({"WATCHDOG_USEC": "soon"}, ManagerSettings()),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a.1:b.1"}, ManagerSettings(descriptors=("a.1", "b.1"))),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "2"}, ManagerSettings(descriptors=("", "unknown"))),
        ({"LISTEN_PID": "8", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a.1:b.1"}, ManagerSettings()),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "many"}, ManagerSettings()),
    ],
)
def test_what_it_tells_a_process(told: dict[str, str], settings: ManagerSettings) -> None:
    assert manager_settings(told, pid=7) == settings
