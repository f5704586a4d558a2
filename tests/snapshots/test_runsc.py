"""gVisor's runsc: the contract, and what is particular to this engine."""

import dataclasses
import json
import os
import platform
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from imagefs import syscalls
from imagefs.errors import DeadlineError, EngineError, StoreFullError, UnsupportedError
from snapshotstore.checkpoint.base import ENGINE, Bind, Sandbox
from snapshotstore.checkpoint.runsc import IDENTITY, Runsc
from tests.snapshots.conformance import COUNTER, CheckpointerTests
from tests.snapshots.engines import engine as find_engine
from tests.snapshots.place import DEADLINE, Place
from tests.system.world import detach, require, wait_until

LOOPBACK = """
import socket, time
listening = socket.create_server(("127.0.0.1", 0))
one = socket.create_connection(listening.getsockname())
other, _ = listening.accept()
number = 0
while True:
    number += 1
    one.sendall(b"%9d" % number)
    print(int(other.recv(9, socket.MSG_WAITALL)), flush=True)
    time.sleep(0.01)
"""

HOST_SOCKET = """
import os, socket, time
connection = socket.socket(socket.AF_UNIX)
connection.connect("/talk/socket")
print("connected", flush=True)
while not os.path.exists("/talk/close"): time.sleep(0.005)
connection.close()
print("closed", flush=True)
while True:
    print("still", flush=True)
    time.sleep(0.01)
"""

FILLED = """
import os, time
memory = os.urandom(32 << 20)
while True:
    print(len(memory), flush=True)
    time.sleep(0.01)
"""


@pytest.fixture(scope="module")
def runsc() -> Runsc:
    """Give one for all tests, so that it is probed once."""
    require("root")
    return Runsc(find_engine("runsc", "--version"))


class TestRunsc(CheckpointerTests):
    fixes_layout = False

    @pytest.fixture
    def engine(self, runsc: Runsc) -> Runsc:
        return runsc

    def test_a_program_is_unprivileged_and_on_its_own(self, place: Place) -> None:
        """All of it holds but for ``HOME``, which gVisor's own loader adds from the image's ``/etc/passwd``, whatever it is told."""
        lines, added = place.lines, "HOME=/\\u0000"

        def without_home(made: Sandbox) -> list[str]:
            assert added in lines(made)[-1]
            return [line.replace(added, "") for line in lines(made)]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, "lines", without_home)
            super().test_a_program_is_unprivileged_and_on_its_own(place)


@pytest.fixture
def engine(runsc: Runsc) -> Runsc:
    """What ``place`` runs programs with, in the tests that are not the contract's."""
    return runsc


def test_images_are_for_nobody_else(place: Place) -> None:
    images = place.checkpoint(place.start("one", COUNTER, until="20"))
    folder = images / ENGINE
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name for path in folder.iterdir()} == {"checkpoint.img", "pages.img", "pages_meta.img", IDENTITY}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert (folder / "pages.img").stat().st_size % 4096 == 0


def test_connections_within_the_sandbox_are_restored(place: Place) -> None:
    made = place.start("one", LOOPBACK, until="5")
    clone = place.restore(made, "two", place.checkpoint(made))
    place.goes_on(made)
    place.goes_on(clone)
    assert int(place.lines(clone)[0]) > 5


def test_connections_within_the_sandbox_are_told_from_others(place: Place) -> None:
    made = place.start("one", LOOPBACK, until="5", network=place.network().path)
    clone = place.restore(made, "two", place.checkpoint(made), network=place.network().path)
    place.goes_on(made)
    place.goes_on(clone)


def test_connections_that_cannot_be_told_apart_are_counted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "none of those that there is a program for")
    hidden = place.folder / "cat"
    network = place.network().path
    made = place.sandbox("one", LOOPBACK, network=network)
    hidden.touch()
    made = dataclasses.replace(made, binds=(*made.binds, Bind(source=hidden, target="/usr/bin/cat")))
    place.engine.start(made, deadline=DEADLINE)
    place.expect(made, "5")
    images = place.folder / "images"
    images.mkdir()
    with pytest.raises(EngineError, match=r"2 TCP connections .*see which"):
        place.engine.checkpoint(made, images, deadline=DEADLINE)
    assert list(images.iterdir()) == []
    place.goes_on(made)
    place.engine.remove(made)


def test_a_program_leaves_its_network_behind(place: Place) -> None:
    """A snapshot that was made with a network is restored without one, and the other way round."""
    made = place.start("one", COUNTER, until="20", network=place.network().path)
    without = place.restore(made, "two", place.checkpoint(made), network=None)
    place.goes_on(without)
    again = place.restore(without, "three", place.checkpoint(without, "again"), network=place.network().path)
    place.goes_on(again)


def test_a_socket_of_the_host_is_refused_by_name(place: Place) -> None:
    made = place.sandbox("one", HOST_SOCKET)
    talk = made.binds[-1].source
    path = talk / "socket"
    images = place.folder / "images"
    images.mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        # By a short name: a socket's has 107 bytes at most.
        descriptor = os.open(talk, os.O_PATH)
        listening.bind(f"/proc/self/fd/{descriptor}/socket")
        os.close(descriptor)
        path.chmod(0o777)
        listening.listen()
        place.engine.start(made, deadline=DEADLINE)
        place.expect(made, "connected")
        with pytest.raises(EngineError, match=r"socket .*/socket"):
            place.engine.checkpoint(made, images, deadline=DEADLINE)
        assert list(images.iterdir()) == []
        (talk / "close").touch()
        place.expect(made, "closed")
    place.checkpoint(made, "later")
    place.goes_on(made)


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"argv": ("/usr/bin/python3", "-c", "print('other')")}, "argv"),
        ({"environment": {"OTHER": "1"}}, "environment"),
        ({"uid": 0}, "user"),
    ],
)
def test_a_sandbox_that_differs_is_refused_by_name(place: Place, changes: dict[str, Any], name: str) -> None:
    made = place.start("one", COUNTER, until="20")
    images = place.checkpoint(made)
    clone = place.clone_of(made, "two", images, **changes)
    with pytest.raises(EngineError, match=rf"differs .* {name}$"):
        place.engine.restore(clone, images, deadline=DEADLINE)
    assert not place.engine.is_alive(clone)
    assert list(clone.state.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"null"])
def test_images_that_do_not_say_what_was_frozen(place: Place, content: bytes) -> None:
    made = place.start("one", COUNTER, until="20")
    images = place.checkpoint(made)
    (images / ENGINE / IDENTITY).write_bytes(content)
    with pytest.raises(EngineError, match="cannot be restored"):
        place.engine.restore(place.clone_of(made, "two", images), images, deadline=DEADLINE)


@pytest.mark.parametrize("deadline", [0.001, 0.1])
def test_a_restore_that_is_late_leaves_nothing(place: Place, deadline: float) -> None:
    made = place.start("one", FILLED, until=str(32 << 20))
    images = place.checkpoint(made)
    place.engine.remove(made)
    clone = place.clone_of(made, "two", images)
    with pytest.raises(DeadlineError):
        place.engine.restore(clone, images, deadline=deadline)
    assert not place.engine.is_alive(clone)
    assert list(clone.state.iterdir()) == []
    assert place.left() == []
    place.engine.restore(clone, images, deadline=DEADLINE)
    place.goes_on(clone)


@pytest.mark.parametrize(
    "changes",
    [
        {"root": Path("/none/root")},
        {"cgroup": Path("/none/cgroup")},
        {"network": Path("/none/network")},
        {"binds": (Bind(source=Path("/none/bind"), target="/talk"),)},
        {"output": Path("/none/output")},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_place_that_is_not_there_is_named(place: Place, changes: dict[str, Any]) -> None:
    (name,) = changes
    made = dataclasses.replace(place.sandbox("one", "pass"), **changes)
    with pytest.raises(EngineError, match=f"/none/{name.rstrip('s')}"):
        place.engine.start(made, deadline=DEADLINE)
    assert not place.engine.is_alive(made)
    assert list(made.state.iterdir()) == []
    assert place.left() == []


def test_frozen_layers_are_refused(place: Place) -> None:
    made = place.sandbox("one", COUNTER, lower=(place.folder,))
    with pytest.raises(EngineError, match="layers"):
        place.engine.start(made, deadline=DEADLINE)
    assert list(made.state.iterdir()) == []


def test_a_state_that_is_in_use_is_refused(place: Place) -> None:
    made = place.start("one", COUNTER, until="20")
    with pytest.raises(EngineError, match="not empty"):
        place.engine.start(made, deadline=DEADLINE)
    place.goes_on(made)


def test_a_disk_that_is_full(place: Place) -> None:
    made = place.start("one", FILLED, until=str(32 << 20))
    with _small_disk(place.folder / "small") as images:
        with pytest.raises(StoreFullError):
            place.engine.checkpoint(made, images, deadline=DEADLINE)
        assert list(images.iterdir()) == []
        place.goes_on(made)
    place.checkpoint(made)
    place.goes_on(made)


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    syscalls.mount_new("tmpfs", "small", folder, 0, "size=8m")
    try:
        yield folder
    finally:
        detach(folder)


def test_a_checkpoint_that_is_late_leaves_the_program(place: Place) -> None:
    made = place.start("one", FILLED, until=str(32 << 20))
    images = place.folder / "images"
    images.mkdir()
    with pytest.raises(DeadlineError):
        place.engine.checkpoint(made, images, deadline=0.001)
    assert list(images.iterdir()) == []
    place.goes_on(made)
    clone = place.restore(made, "two", place.checkpoint(made, "later"))
    place.goes_on(clone)


def _process(sandbox: Sandbox, name: str) -> int:
    return int(json.loads((sandbox.state / name).read_bytes())["pid"])


def test_a_sandbox_process_that_is_killed(place: Place) -> None:
    made = place.start("one", COUNTER, until="20")
    os.kill(_process(made, "sandbox"), signal.SIGKILL)
    assert place.end(made) == 128 + signal.SIGKILL
    assert not place.engine.is_alive(made)
    images = place.folder / "images"
    images.mkdir()
    with pytest.raises(EngineError, match="does not run"):
        place.engine.checkpoint(made, images, deadline=DEADLINE)


def test_a_keeper_that_is_killed_leaves_the_program(place: Place) -> None:
    made = place.start("one", COUNTER, until="20")
    os.kill(_process(made, "keeper"), signal.SIGKILL)
    place.goes_on(made)
    place.checkpoint(made)
    place.goes_on(made)
    with pytest.raises(DeadlineError):
        place.engine.wait(made, deadline=0.05)
    os.kill(_process(made, "sandbox"), signal.SIGKILL)
    with pytest.raises(EngineError, match="killed"):
        place.engine.wait(made, deadline=DEADLINE)
    place.engine.remove(made)
    wait_until(lambda: place.left() == [], "nothing to be left")


def test_a_process_that_got_the_id_of_another_is_not_taken_for_it(place: Place) -> None:
    made = place.start("one", "pass")
    assert place.end(made) == 0
    with subprocess.Popen(["sleep", "1000"]) as other:
        try:
            for name in ("sandbox", "keeper"):
                (made.state / name).write_text(json.dumps({"pid": other.pid, "start": 1}))
            assert not place.engine.is_alive(made)
            place.engine.remove(made)
            assert other.poll() is None
        finally:
            other.kill()


def test_layouts_differ(place: Place) -> None:
    """Nobody can fix them, as this engine's page says. Once this fails, it can do what ``fixed_layout`` asks for."""
    code = "print(*(line.split()[0] for line in open('/proc/self/maps') if '[stack]' in line))"
    seen = []
    for name in ("one", "two"):
        made = place.start(name, code, fixed_layout=True)
        assert place.end(made) == 0
        seen.append(place.lines(made)[-1])
    assert seen[0] != seen[1]


def test_clones_may_have_another_root(place: Place) -> None:
    made = place.start("one", COUNTER, until="20")
    images = place.checkpoint(made)
    elsewhere = place.folder / "elsewhere"
    elsewhere.mkdir()
    syscalls.mount(made.root, elsewhere, 4096)
    try:
        clone = place.restore(made, "two", images, root=elsewhere)
        place.goes_on(clone)
        place.engine.remove(clone)
    finally:
        detach(elsewhere)
    assert dataclasses.replace(clone, root=made.root) != clone


# -- which programs are taken -------------------------------------------------------------------------------------------------------------

OLD = """#!/bin/sh
case "$*" in
--version) echo "runsc version release-20221212.0" ;;
"help checkpoint") printf '  -image-path string\\n  -leave-running\\n' ;;
"help restore") printf '  -bundle string\\n  -detach\\n  -image-path string\\n' ;;
esac
"""


@pytest.mark.parametrize(
    "script, match",
    [
        (OLD, "release-20221212.0, is too old"),
        ("#!/bin/sh\nexit 0\n", "is not runsc"),
        ("#!/bin/sh\nexit 3\n", "does not say"),
        ("#!/none\n", "cannot be run"),
        (None, "cannot be run"),
    ],
    ids=["2022", "another program", "failing", "no interpreter", "none"],
)
def test_a_program_that_cannot_be_used(tmp_path: Path, script: str | None, match: str) -> None:
    require("root")
    program = tmp_path / "runsc"
    if script is not None:
        program.write_text(script)
        program.chmod(0o755)
    with pytest.raises(UnsupportedError, match=match) as raised:
        Runsc(program).probe()
    assert "Debian 13" in str(raised.value.hint)


def test_a_program_that_does_not_work_here(runsc: Runsc, tmp_path: Path) -> None:
    program = tmp_path / "runsc"
    real = runsc.probe().program
    program.write_text(f'#!/bin/sh\ncase "$*" in *" create "*) exit 1 ;; esac\nexec {real} "$@"\n')
    program.chmod(0o755)
    with pytest.raises(UnsupportedError, match="does not work here"):
        Runsc(program).probe()
