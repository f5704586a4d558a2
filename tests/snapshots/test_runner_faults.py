"""What is wrong with a store, an engine or a disk while a service is restored, frozen or published: the answer comes, with the reason."""

import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imagefs.errors import ImageFSError, UnsupportedError
from imagefs.format.objectmap import HOLE
from imagefs.store.base import blob_key, pack_key
from snapshotstore import contents, repository
from snapshotstore.listing import Snapshot
from snapshotstore.runner import starting
from snapshotstore.runner.entry import Entry
from snapshotstore.runner.runner import COLD, RESTORED
from tests.snapshots.engines import engine as find
from tests.snapshots.services import Place
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
    """Return a file of the store, and where bytes of a part are in it: memory, an engine's other files, the layer, the index."""
    found = published(place)
    if part in {"tree", "objects"}:
        path = place.store_folder / blob_key(getattr(found.manifest, part).digest)
        return path, path.stat().st_size // 2
    index = contents.open_index(place.store, found)
    for file in contents.files(index.tree):
        kind = "memory" if file.is_memory else file.path.partition("/")[0]
        row = index.objects.find(file.object) if file.object is not None else None
        if row is not None and kind == part:
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
