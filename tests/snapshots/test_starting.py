"""What a replica is told, and when, where its engine is one of the test's own."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from imagefs.convert.stages import Clock
from imagefs.errors import EngineError, ProgramError
from snapshotstore import agent
from snapshotstore.app import Settings
from snapshotstore.at_once import at_once
from snapshotstore.checkpoint.base import Engine, Sandbox
from snapshotstore.listing import Snapshot
from snapshotstore.runner.entry import Entry
from snapshotstore.runner.program import program_of
from snapshotstore.runner.starting import Given, Starter
from snapshotstore.runner.workplace import ReplicaPlace

MANIFEST = "0" * 64
GIVEN = Given(environment={"ONE": "1"}, secrets={"TOKEN": "secret"})


class FakeEngine:
    """Restores by doing what a test says."""

    def __init__(self, restores: Callable[[Path], object]) -> None:
        """``restores`` is called with the directory that the program would see."""
        self._restores = restores
        self.removed = False
        self.prepared = 0

    def prepare(self) -> None:
        self.prepared += 1

    def restore(self, sandbox: Sandbox, images: Path, *, deadline: float) -> None:
        del images, deadline
        self._restores(sandbox.binds[0].source)

    def is_alive(self, sandbox: Sandbox) -> bool:
        del sandbox
        return True

    def remove(self, sandbox: Sandbox) -> None:
        del sandbox
        self.removed = True


class FakeMounts:
    """Has everything mounted at one directory."""

    def __init__(self, place: Path) -> None:
        """It is there."""
        self._place = place
        self._mounted: set[str] = set()

    def has(self, *names: str) -> bool:
        return self._mounted >= set(names)

    def manifest(self, name: str, *, mode: str | None = None, label: str = "") -> Path:
        del mode, label
        self._mounted.add(name)
        return self._place


def starter_of(engine: FakeEngine, folder: Path) -> Starter:
    entry = Entry("service:Service", folder, Settings("app", "image:1", True, (), (), True))
    program = program_of(entry, image=MANIFEST, config={}, source_digest=MANIFEST, given={})
    found = Engine("criu", "4.2", "criu-1", Path("/criu"), is_exact=False)
    return Starter(cast("Any", FakeMounts(folder)), program, MANIFEST, cast("Any", engine), found)


def place_in(folder: Path) -> ReplicaPlace:
    home = folder / "home"
    for path in (home, home / "state", home / "replica"):
        path.mkdir()
    return ReplicaPlace("r-1", home, folder / "log")


SNAPSHOT = Snapshot(MANIFEST, "app:1", cast("Any", None), cast("Any", None))


def connected(folder: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(folder / "socket"))
    return connection


def test_a_restored_program_finds_what_it_is_to_be_when_it_begins(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    held: list[socket.socket] = []

    def restores(folder: Path) -> None:
        told.append(json.loads((folder / agent.REPLICA).read_bytes()))
        held.append(connected(folder))

    place = place_in(tmp_path)
    started = starter_of(FakeEngine(restores), tmp_path).restore(SNAPSHOT, place, GIVEN, Clock())
    assert (told[0]["restored"], told[0]["secrets"], told[0]["environment"]["ONE"]) == (True, {"TOKEN": "secret"}, "1")
    # What is secret does not stay when it has connected.
    assert not (place.home / "replica" / agent.REPLICA).exists()
    started.end()
    held[0].close()


def test_what_can_begin_while_things_are_mounted_does(tmp_path: Path) -> None:
    engine = FakeEngine(lambda _: None)
    starter = starter_of(engine, tmp_path)
    for _ in range(2):
        starter.revive(SNAPSHOT, place_in(tmp_path), GIVEN, Clock()).end()
    assert engine.prepared == 1


def test_one_that_is_to_be_frozen_again_is_told_nothing(tmp_path: Path) -> None:
    seen: list[bool] = []
    engine = FakeEngine(lambda folder: seen.append((folder / agent.REPLICA).exists()))
    starter_of(engine, tmp_path).revive(SNAPSHOT, place_in(tmp_path), GIVEN, Clock()).end()
    assert seen == [False]


@pytest.mark.parametrize("says", [True, False])
def test_a_hook_that_fails_while_the_engine_ends_is_the_reason(tmp_path: Path, says: bool) -> None:
    """Where the program has ended already the engine may fail, which says nothing of the snapshot."""

    def restores(folder: Path) -> None:
        if says:
            failed = {"state": "failed", "error": {"type": "OSError", "message": "no database", "traceback": "where"}}
            (folder / agent.STATE).write_text(json.dumps(failed))
        raise EngineError("it has ended")

    engine, place = FakeEngine(restores), place_in(tmp_path)
    with pytest.raises(ProgramError if says else EngineError) as raised:
        starter_of(engine, tmp_path).restore(SNAPSHOT, place, GIVEN, Clock())
    assert getattr(raised.value, "traceback", "") == ("where" if says else "")
    assert engine.removed
    assert not place.home.exists()


def test_at_once_is_at_once_and_raises_the_first_error() -> None:
    reader, writer = os.pipe()
    try:
        # Each waits for what the other one does.
        assert at_once(lambda: os.read(reader, 1), lambda: os.write(writer, b"x"), lambda: 3) == [b"x", 1, 3]
    finally:
        os.close(reader)
        os.close(writer)
    ran: list[int] = []
    with pytest.raises(ValueError, match="one"):
        at_once(lambda: int("one"), lambda: int("two"), lambda: ran.append(1))
    assert ran == [1]
