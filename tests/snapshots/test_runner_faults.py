"""What is wrong with a store, an engine or a disk while a service is restored, frozen or published: the answer comes, with the reason."""

import dataclasses
import os
import re
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imagefs.errors import DeadlineError, ImageFSError, ProgramError, StoreError, UnsupportedError
from imagefs.format.objectmap import HOLE
from imagefs.store.base import blob_key, pack_key
from imagefs.store.images import get_manifest
from snapshotstore import contents, repository
from snapshotstore.checkpoint.base import Sandbox
from snapshotstore.checkpoint.criu import Criu
from snapshotstore.listing import Snapshot
from snapshotstore.runner import starting
from snapshotstore.runner.entry import Entry
from snapshotstore.runner.runner import COLD, RESTORED, Runner
from tests.snapshots.checkpoints import map_of
from tests.snapshots.engines import engine as find
from tests.snapshots.services import Place
from tests.store.faulty import Fault, FaultyStore
from tests.system.world import detach, require, tool

SERVICE = """
import hashlib, os
from snapshotstore import App, enter, method

app = App("faults")

@app.cls(image="python:1", enable_memory_snapshot=True)
class Service:
    @enter(snap=True)
    def load(self):
        self.data = b"".join(hashlib.sha256(str(n).encode()).digest() for n in range(60_000))
        self.digest = hashlib.sha256(self.data).hexdigest()
        with open("/tmp/layer", "wb") as file: file.write(self.data[:300_000])
    @method()
    def ask(self):
        with open("/tmp/layer", "rb") as file: layer = file.read()
        return [hashlib.sha256(self.data).hexdigest() == self.digest, layer == self.data[:300_000], len(self.data)]
"""
RIGHT = [True, True, 1_920_000]


@pytest.fixture
def service(service_place: Place) -> Entry:
    """The service, of which the store has a snapshot."""
    made = service_place.entry(SERVICE)
    service_place.frozen(made, "ask")
    return made


def published(place: Place) -> Snapshot:
    (key,) = place.refs()
    name, _, tag = key.removeprefix("refs/").rpartition("/")
    return repository.inspect(place.store, f"{name}:{tag}")


def replace(path: Path, change: Callable[[bytes], bytes]) -> bytes:
    """Give a file another content, as a new file: others are links to it. Return what it was."""
    was, mode = path.read_bytes(), path.stat().st_mode
    path.unlink()
    path.write_bytes(change(was))
    path.chmod(stat.S_IMODE(mode))
    return was


def flipped(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes((data[at] ^ 0x40,)) + data[at + 1 :]


def part_of(place: Place, part: str) -> tuple[Path, int]:
    """Return a file of the store, and where bytes of a part are in it: memory, an engine's other files, the layer, the index, or a path."""
    found = published(place)
    if part in {"tree", "objects"}:
        path = place.store_folder / blob_key(getattr(found.manifest, part).digest)
        return path, path.stat().st_size // 2
    index = contents.open_index(place.store, found)
    for file in contents.files(index.tree):
        kind = "memory" if file.is_memory else file.path.partition("/")[0]
        row = index.objects.find(file.object) if file.object is not None else None
        if row is not None and part in {kind, file.path}:
            frames = [extent.frame for extent in contents.extents(index.objects, row) if extent.frame != HOLE]
            frame = index.objects.frame(frames[len(frames) // 2])
            return place.store_folder / pack_key(index.objects.pack(frame.pack).digest.hex()), frame.offset + frame.stored // 2
    pytest.skip(f"{place.engine} has no {part}")


@pytest.mark.parametrize("part", ["memory", "engine", "layer", "tree", "objects"])
def test_a_flipped_byte_never_runs(service_place: Place, service: Entry, part: str) -> None:
    path, at = part_of(service_place, part)
    replace(path, flipped(at))
    answer = service_place.call(service, "ask", host="empty")
    assert (answer.result, answer.started) == (RIGHT, COLD)
    assert re.search(r"the restore of snapshots/\S+ failed: .+", answer.reason), answer.reason
    # What was published in its place is whole, on every host.
    again = service_place.call(service, "ask", host="another")
    assert (again.result, again.started, again.reason) == (RIGHT, RESTORED, "")


@pytest.mark.parametrize("change", ["gone", "empty", "half"])
@pytest.mark.parametrize("engine_name", ["criu"], indirect=True)
def test_a_pack_that_is_not_whole(service_place: Place, service: Entry, change: str) -> None:
    path, _ = part_of(service_place, "memory")
    if change == "gone":
        path.unlink()
    else:
        replace(path, lambda data: data[: len(data) // 2] if change == "half" else b"")
    answer = service_place.call(service, "ask", host="empty")
    assert (answer.result, answer.started) == (RIGHT, COLD)
    assert "failed: " in answer.reason
    again = service_place.call(service, "ask", host="another")
    assert (again.result, again.started, again.reason) == (RIGHT, RESTORED, "")


LARGE = SERVICE.replace('App("faults")', 'App("large")').replace("60_000", "100_000").replace("300_000", "3_000_000")
"""Its layer has a file that is large enough for packs of its own: each start makes the same ones."""


@pytest.mark.parametrize("engine_name", ["criu"], indirect=True)
def test_what_each_start_makes_again_is_healed_where_it_is_damaged(service_place: Place) -> None:
    service = service_place.entry(LARGE)
    service_place.frozen(service, "ask")
    before = published(service_place).name
    path, at = part_of(service_place, "layer/tmp/layer")
    whole = replace(path, flipped(at))
    other, where = part_of(service_place, "memory")
    replace(other, flipped(where))
    answer = service_place.call(service, "ask", host="empty")
    assert (answer.result[:2], answer.started) == ([True, True], COLD)
    after = published(service_place)
    assert after.name != before
    assert path.read_bytes() == whole
    assert part_of(service_place, "layer/tmp/layer")[0] == path
    again = service_place.call(service, "ask", host="another")
    assert (again.result[:2], again.started, again.reason) == ([True, True], RESTORED, "")


@pytest.mark.parametrize("is_resident", [True, False])
@pytest.mark.parametrize("engine_name", ["criu"], indirect=True)
def test_what_only_a_call_reads_is_an_error_and_healed_by_the_next_start(service_place: Place, is_resident: bool) -> None:
    service = service_place.entry(LARGE)
    service_place.frozen(service, "ask")
    path, at = part_of(service_place, "layer/tmp/layer")
    whole = replace(path, flipped(at))
    runner = service_place.runner("empty")
    with pytest.raises(ProgramError, match="Input/output error") as raised:
        runner.call(service, "ask", [], {})
    assert re.fullmatch(r"`imagefs snapshot verify snapshots/large/\S+` says .*`run --fresh` makes it again", raised.value.hint or "")
    if not is_resident:
        runner = service_place.runner("empty", fresh=True)
    answer = runner.call(service, "ask", [], {})
    assert (answer.result[:2], answer.started) == ([True, True], COLD)
    assert runner.publish() == []
    assert path.read_bytes() == whole
    again = service_place.call(service, "ask", host="another")
    assert (again.result[:2], again.started, again.reason) == ([True, True], RESTORED, "")
    # What a method raises by itself says nothing of the snapshot.
    runner = service_place.runner("empty")
    for _ in range(2):
        with pytest.raises(ProgramError, match="no method"):
            runner.call(dataclasses.replace(service, methods=None), "nothing", [], {})
    assert runner.look(service).snapshot is not None


@pytest.mark.parametrize(("part", "has_snapshot"), [("pack", False), ("tree", False), ("tree", True)])
@pytest.mark.parametrize("engine_name", ["criu"], indirect=True)
def test_a_source_tree_that_is_damaged_in_the_store_is_healed_from_the_hosts(
    service_place: Place, service: Entry, part: str, has_snapshot: bool
) -> None:
    source = service_place.runner("maker").look(service).source
    found = get_manifest(service_place.store, source)
    key = blob_key(found.tree.digest) if part == "tree" else pack_key(map_of(service_place.store, found).pack(0).digest.hex())
    path = service_place.store_folder / key
    whole = replace(path, lambda data: flipped(len(data) // 8)(data))
    if not has_snapshot:
        for key in service_place.refs():
            service_place.store.delete(key)
    answer = service_place.call(service, "ask", host="empty")
    assert (answer.result, answer.started) == (RIGHT, COLD)
    assert path.read_bytes() == whole
    assert service_place.call(service, "ask", host="another").started == RESTORED


# -- engines ------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake(service_place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a program in the place of an engine, which does what the script says where it is told to ``when``, and else is the real one."""

    def make(script: str, *, when: str = "", name: str = "") -> None:
        name = name or service_place.engine
        real = shutil.which(name)
        folder = tmp_path / "fake"
        folder.mkdir(exist_ok=True)
        condition = f'case " $* " in *" {when} "*) [ "$1" = help ] || {{ {script}; }};; esac' if when else script
        (folder / name).write_text(f'#!/bin/sh\n{condition}\nexec {real} "$@"\n')
        (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return make


def hang(place: Place) -> str:
    """A program that hangs, and is known to the place by its arguments."""
    return f"exec {sys.executable} -c 'import time; time.sleep(1000)' {place.root}"


@pytest.mark.parametrize("how", ["killed", "fails", "hangs"])
def test_an_engine_that_fails_at_a_restore(
    service_place: Place, service: Entry, fake: Callable[..., None], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "RESTORE_SECONDS", 3.0)
    fake({"killed": "kill -9 $$", "fails": "exit 7", "hangs": hang(service_place)}[how], when="restore")
    runner = service_place.runner()
    answer = runner.call(service, "ask", [], {})
    assert (answer.result, answer.started) == (RIGHT, COLD)
    assert re.search(r"the restore of snapshots/\S+ failed: .+", answer.reason), answer.reason
    assert "failed restore" in answer.timeline


@pytest.mark.parametrize("how", ["killed", "hangs"])
@pytest.mark.parametrize("engine_name", ["criu"], indirect=True)
def test_an_engine_that_fails_at_a_freeze(
    service_place: Place, fake: Callable[..., None], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "FREEZE_SECONDS", 3.0)
    fake({"killed": "kill -9 $$", "hangs": hang(service_place)}[how], when="dump")
    answer = service_place.call(service_place.entry(SERVICE), "ask")
    assert (answer.result, answer.started) == (RIGHT, COLD)
    assert [note.partition(":")[0] for note in answer.notes] == ["no snapshot was made"]
    assert service_place.refs() == []


@pytest.mark.parametrize("engine_name", ["runsc"], indirect=True)
def test_an_engine_that_does_not_work_here(service_place: Place, service: Entry, fake: Callable[..., None]) -> None:
    service_place.host()
    fake("exit 1")
    with pytest.raises(UnsupportedError, match=r"no engine works here: .*runsc does not say what it can do"):
        service_place.runner().call(service, "ask", [], {})
    find("criu", "check")
    answer = service_place.runner(engine="auto").call(service, "ask", [], {})
    assert (answer.result, answer.started, answer.engine) == (RIGHT, COLD, "criu")
    assert "it needs the engine runsc, and what can be used is criu" in answer.reason


@pytest.mark.parametrize("engine_name", ["criu"], indirect=True)
def test_no_engine_at_all(service_place: Place, service: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service_place.host()
    monkeypatch.setenv("PATH", str(tmp_path))
    for engine, missing in (("criu", "there is no criu on PATH"), ("auto", "there is no runsc on PATH; there is no criu on PATH")):
        with pytest.raises(UnsupportedError, match=f"no engine works here: {missing}"):
            service_place.runner(engine=engine).call(service, "ask", [], {})


# -- disks and stores ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Callable[[Path, int], Path]]:
    """Makes file systems with few bytes, at a directory that it makes."""
    require("root", "mounts a file system")
    made: list[Path] = []

    def make(folder: Path, size: int) -> Path:
        folder.mkdir(parents=True, mode=0o700)
        tool("mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", folder)
        made.append(folder)
        return folder

    yield make
    for folder in made:
        detach(folder)


def test_no_room_for_what_is_frozen(service_place: Place, small: Callable[[Path, int], Path]) -> None:
    host = service_place.host()
    full = small(host.config.cache.with_name("cache-checkpoints"), 1 << 20)
    answer = service_place.call(service_place.entry(SERVICE), "ask")
    assert (answer.result, answer.started) == (RIGHT, COLD)
    (note,) = answer.notes
    assert note.startswith("no snapshot was made: ")
    assert "room" in note or "No space" in note or "no space" in note, note
    assert list(full.iterdir()) == []
    detach(full)


@pytest.mark.parametrize("engine_name", ["criu"], indirect=True)
def test_no_room_in_the_store(service_place: Place, small: Callable[[Path, int], Path], tmp_path: Path) -> None:
    size = sum(path.stat().st_blocks * 512 for path in service_place.store_folder.rglob("*"))
    full = small(tmp_path / "full", size + (1 << 20))
    shutil.copytree(service_place.store_folder, full / "store")
    service_place.host("poor", store=f"file://{full}/store")
    runner = service_place.runner("poor")
    answer = runner.call(service_place.entry(SERVICE), "ask", [], {})
    assert (answer.result, answer.started, answer.notes) == (RIGHT, COLD, ())
    (note,) = runner.close()
    service_place.runners.clear()
    assert note.startswith("the snapshot was not published: ")
    assert "room" in note or "full" in note or "space" in note, note
    assert not (full / "store/refs/snapshots").exists() or not list((full / "store/refs/snapshots").rglob("criu-*"))


@pytest.mark.parametrize("engine_name", ["criu"], indirect=True)
def test_a_store_that_is_gone(service_place: Place, service: Entry) -> None:
    place = service_place
    place.host(store_deadline=2.0)
    away = place.store_folder.with_name("away")
    # Before anything is known of the service.
    place.store_folder.rename(away)
    with pytest.raises(ImageFSError) as raised:
        place.runner().call(service, "ask", [], {})
    assert raised.value.exit_code in {6, 7}
    away.rename(place.store_folder)
    # Between: what is here answers, and what would have been published is told.
    assert place.runner(snapshots=False).call(service, "ask", [], {}).started == COLD
    runner = place.runner()
    assert runner.look(service).snapshot is not None
    place.store_folder.rename(away)
    answer = runner.call(service, "ask", [], {})
    assert (answer.result, answer.started) == (RIGHT, COLD)
    assert "failed: " in answer.reason
    # At the end.
    (note,) = runner.close()
    place.runners.remove(runner)
    assert note.startswith("the snapshot was not published: ")
    away.rename(place.store_folder)
    assert place.call(service, "ask").started == RESTORED


def expire(runner: Runner, service: Entry) -> None:
    key = (service.target, service.folder)
    runner._known[key] = dataclasses.replace(runner._known[key], until=0.0)


@pytest.mark.parametrize("engine_name", ["criu"], indirect=True)
def test_a_resident_caller_goes_on_while_the_store_is_away(service_place: Place, service: Entry) -> None:
    runner = service_place.runner()
    assert runner.call(service, "ask", [], {}).started == RESTORED
    store = runner._opened()
    runner._store = FaultyStore(store, [Fault(op, error=StoreError("away")) for op in ("get", "get_versioned", "head", "list")])
    expire(runner, service)
    answer = runner.call(service, "ask", [], {})
    assert (answer.result, answer.started, answer.reason) == (RIGHT, RESTORED, "")
    assert runner._store.calls
    # Of another source nothing is known.
    (service.folder / "other.py").touch()
    with pytest.raises(StoreError, match="away"):
        runner.call(service, "ask", [], {})
    (service.folder / "other.py").unlink()
    runner._store = store


@pytest.mark.parametrize("engine_name", ["criu"], indirect=True)
def test_nobody_waits_for_what_the_store_is_asked_of_another_service(service_place: Place, service: Entry) -> None:
    runner = service_place.runner()
    assert runner.call(service, "ask", [], {}).started == RESTORED
    asked, answered = threading.Event(), threading.Event()

    def ask() -> None:
        asked.set()
        assert answered.wait(15)

    store = runner._opened()
    runner._store = FaultyStore(store, [Fault("list", before=ask)])
    other = service_place.entry(SERVICE.replace("Service", "Other"), "other", "service:Other")
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(runner.look, other)
        try:
            assert asked.wait(60)
            assert runner.call(service, "ask", [], {}).started == RESTORED
            assert not looking.done()
        finally:
            answered.set()
        assert looking.result().snapshot is None
    runner._store = store


@pytest.mark.parametrize("engine_name", ["criu"], indirect=True)
def test_what_cannot_be_taken_away_is_told(service_place: Place, service: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    remove = Criu.remove

    def fails(self: Criu, sandbox: Sandbox) -> None:
        remove(self, sandbox)
        raise DeadlineError("ending a sandbox took more than 30 s")

    monkeypatch.setattr(Criu, "remove", fails)
    runner = service_place.runner()
    assert runner.call(service, "ask", [], {}).started == RESTORED
    (note,) = runner.close()
    service_place.runners.remove(runner)
    assert note.endswith("is left: ending a sandbox took more than 30 s")
