"""What every ``Checkpointer`` must do. A test class inherits this and gives ``engine``; ``place`` makes the sandboxes.

Programs tell what they see by printing lines; nothing here looks into an engine.
"""

import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from imagefs.errors import DeadlineError, EngineError
from snapshotstore.checkpoint.base import ENGINE, LAYER, Checkpointer
from tests.snapshots.place import DEADLINE, Place
from tests.snapshots.programs import CLIENT, COUNTER, FOREVER, SEEN, SERVER
from tests.system.world import missing, wait_until

__all__ = ["COUNTER", "CheckpointerTests", "unified_cgroup"]


class CheckpointerTests:
    """The contract of :mod:`snapshotstore.checkpoint.base`, point by point."""

    refuses_connections: ClassVar = True
    """Whether a program with an established TCP connection is refused."""

    fixes_layout: ClassVar = True
    """Whether ``fixed_layout`` makes addresses equal."""

    @pytest.fixture
    def engine(self) -> Checkpointer:
        """Give the engine: each test class has its own."""
        raise NotImplementedError

    def test_it_says_what_it_is(self, engine: Checkpointer) -> None:
        found = engine.probe()
        assert found.name
        assert found.version
        assert found.format
        assert found.program.exists()

    def test_a_program_runs_and_ends(self, place: Place) -> None:
        made = place.start("one", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
        assert place.end(made) == 3
        assert sorted(place.lines(made)) == ["err", "out"]
        assert made.output.stat().st_mode & 0o777 == 0o600
        assert place.end(made) == 3
        assert not place.engine.is_alive(made)

    def test_what_is_printed_is_appended(self, place: Place) -> None:
        made = place.sandbox("one", "print('new')")
        made.output.write_text("old\n")
        place.engine.start(made, deadline=DEADLINE)
        assert place.end(made) == 0
        assert place.lines(made) == ["old", "new"]

    def test_a_program_that_runs_on_and_one_that_is_killed(self, place: Place) -> None:
        made = place.start("one", "print('x')" + FOREVER, until="x")
        assert place.engine.is_alive(made)
        with pytest.raises(DeadlineError):
            place.engine.wait(made, deadline=0.05)
        own = place.start("two", "import ctypes; ctypes.string_at(1)")
        assert place.end(own) == 128 + signal.SIGSEGV

    def test_a_program_is_unprivileged_and_on_its_own(self, place: Place) -> None:
        made = place.start("one", SEEN, cwd="/etc", hostname="other", uid=65534, gid=65534, environment={"A": "b c", "PYTHONHASHSEED": "0"})
        assert place.end(made) == 0, place.lines(made)
        seen = json.loads(place.lines(made)[-1])
        assert seen["ids"] == [[65534] * 3, [65534] * 3, []]
        assert set(seen["capabilities"].values()) == {0}
        assert seen["pid"] < 10
        assert max(seen["processes"]) < 10
        assert seen["hostname"] == "other"
        assert sorted(seen["environment"].rstrip("\0").split("\0")) == ["A=b c", "PYTHONHASHSEED=0"]
        assert seen["cwd"] == "/etc"
        assert seen["input"] == ""
        assert seen["descriptors"] == [0, 1, 2, 3]
        assert set(seen["root"]) >= {"proc", "dev", "usr", "tmp", "run", "talk"}
        assert seen["random"] == 7
        refused = seen["refused"]
        assert all(refused.pop(path) for path in ("/new", "/etc/passwd", "/usr/new", "/proc/sys/kernel/core_pattern"))
        refused.pop("/run/new", None)  # as the image has it: root's
        assert refused == {}
        assert not (made.root / "tmp" / "new").exists()

    def test_the_superuser_of_a_sandbox_is_unprivileged_too(self, place: Place) -> None:
        made = place.start("one", SEEN, uid=0, gid=0)
        assert place.end(made) == 0, place.lines(made)
        seen = json.loads(place.lines(made)[-1])
        assert seen["ids"] == [[0] * 3, [0] * 3, []]
        assert set(seen["capabilities"].values()) == {0}
        assert {"/usr/new", "/proc/sys/kernel/core_pattern"} <= {path for path, code in seen["refused"].items() if code}
        assert not (made.root / "new").exists()

    def test_a_program_that_is_not_there(self, place: Place) -> None:
        made = place.sandbox("one", "", argv=("/usr/bin/none",))
        with pytest.raises(EngineError, match="/usr/bin/none"):
            place.engine.start(made, deadline=DEADLINE)
        assert not place.engine.is_alive(made)
        assert place.left() == []

    def test_a_checkpoint_does_not_end_the_program(self, place: Place) -> None:
        made = place.start("one", COUNTER, until="20")
        images = place.checkpoint(made)
        place.goes_on(made)
        assert {path.name for path in images.iterdir()} <= {ENGINE, LAYER}
        assert any((images / ENGINE).iterdir())
        again = place.checkpoint(made, "again")
        place.goes_on(made)
        assert any((again / ENGINE).iterdir())

    def test_a_restored_program_goes_on_where_it_was_frozen(self, place: Place) -> None:
        made = place.start("one", COUNTER, until="20")
        images = place.checkpoint(made)
        last = int(place.lines(made)[-1])
        place.goes_on(made)
        place.engine.remove(made)
        before = _content(images)
        clone = place.restore(made, "two", images)
        place.goes_on(clone)
        place.goes_on(clone)
        lines = place.lines(clone)
        assert "differs" not in lines
        assert 20 < int(lines[0]) <= last + 20
        place.engine.remove(clone)
        assert _content(images) == before

    def test_a_clone_can_be_frozen_again(self, place: Place) -> None:
        made = place.start("one", COUNTER, until="20")
        first = place.restore(made, "two", place.checkpoint(made))
        place.goes_on(first)
        place.engine.remove(made)
        images = place.checkpoint(first, "again")
        last = int(place.lines(first)[-1])
        place.engine.remove(first)
        second = place.restore(first, "three", images)
        place.goes_on(second)
        assert 20 < int(place.lines(second)[0]) <= last + 20
        assert "differs" not in place.lines(second)

    def test_several_clones_at_once(self, place: Place) -> None:
        code = (
            "import os, sys, time\nprint('ready', flush=True)\nwhile not os.path.exists('/talk/go'): time.sleep(0.005)\nprint(os.getpid())"
        )
        made = place.start("one", code, until="ready")
        images = place.checkpoint(made)
        clones = [place.clone_of(made, f"clone{number}", images) for number in range(4)]
        failed: list[BaseException] = []

        def restore(number: int) -> None:
            try:
                place.engine.restore(clones[number], images, deadline=DEADLINE)
            except BaseException as error:  # noqa: BLE001 - told to the test
                failed.append(error)

        threads = [threading.Thread(target=restore, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * DEADLINE)
        assert failed == []
        for sandbox in (made, *clones):
            assert place.engine.is_alive(sandbox)
            (sandbox.binds[-1].source / "go").touch()
            assert place.end(sandbox) == 0
        assert len({place.lines(sandbox)[-1] for sandbox in (made, *clones)}) == 1

    def test_a_bind_has_another_source_in_each_clone(self, place: Place) -> None:
        code = (
            "import os, time\nprint('ready', flush=True)\nwhile not os.path.exists('/talk/name'): time.sleep(0.005)\n"
            "print(open('/talk/name').read()); open('/talk/answer', 'w').write('x')\n"
            "try: open('/usr/new', 'w')\nexcept OSError: print('read-only')"
        )
        made = place.start("one", code, until="ready", uid=0, gid=0)
        images = place.checkpoint(made)
        clone = place.restore(made, "two", images)
        for sandbox, name in ((made, "first"), (clone, "second")):
            talk = sandbox.binds[-1].source
            (talk / "new").write_text(name)
            (talk / "new").rename(talk / "name")
            assert place.end(sandbox) == 0, place.lines(sandbox)
            assert place.lines(sandbox)[-2:] == [name, "read-only"]
            assert (talk / "answer").read_text() == "x"

    def test_what_was_made_and_taken_away_in_the_layer(self, place: Place) -> None:
        code = (
            "import os, time\n"
            "os.makedirs('/tmp/deep/er'); open('/tmp/deep/er/file', 'w').write('kept'); os.symlink('deep', '/tmp/link')\n"
            "os.link('/tmp/deep/er/file', '/tmp/hard'); os.unlink('/etc/passwd'); os.chmod('/tmp/deep', 0o705)\n"
            "gone = open('/tmp/gone', 'w+'); gone.write('unlinked'); gone.flush(); os.unlink('/tmp/gone')\n"
            "shared = open('/dev/shm/shared', 'w'); shared.write('shared'); shared.close()\n"
            "print('ready', flush=True)\nwhile not os.path.exists('/talk/go'): time.sleep(0.005)\n"
            "print(open('/tmp/link/er/file').read(), os.stat('/tmp/hard').st_nlink, oct(os.stat('/tmp/deep').st_mode))\n"
            "print(os.path.exists('/etc/passwd'), os.path.exists('/etc/ld.so.cache') or 'none')\n"
            "gone.seek(0); print(gone.read(), open('/dev/shm/shared').read())"
        )
        made = place.start("one", code, until="ready", uid=0, gid=0)
        clone = place.restore(made, "two", place.checkpoint(made))
        for sandbox in (made, clone):
            (sandbox.binds[-1].source / "go").touch()
            assert place.end(sandbox) == 0, place.lines(sandbox)
        assert place.lines(clone) == place.lines(made)[1:]
        assert place.lines(clone)[0] == "kept 2 0o40705"
        assert place.lines(clone)[1].startswith("False ")
        assert place.lines(clone)[2] == "unlinked shared"
        assert (made.root / "etc" / "passwd").exists()

    def test_children_and_threads_are_restored(self, place: Place) -> None:
        code = (
            "import os, sys, threading, time\nread, write = os.pipe()\nchild = os.fork()\n"
            "if not child:\n    while not os.path.exists('/talk/go'): time.sleep(0.005)\n    os.write(write, b'child'); os._exit(5)\n"
            "thread = threading.Thread(target=lambda: print(os.read(read, 5).decode(), flush=True)); thread.start()\n"
            "print('ready', flush=True)\nthread.join(); print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
        )
        made = place.start("one", code, until="ready")
        clone = place.restore(made, "two", place.checkpoint(made))
        for sandbox in (made, clone):
            (sandbox.binds[-1].source / "go").touch()
            assert place.end(sandbox) == 0, place.lines(sandbox)
            assert place.lines(sandbox)[-2:] == ["child", "5"]

    def test_a_listening_socket_accepts_in_another_network(self, place: Place) -> None:
        first, second = place.network(), place.network()
        made = place.start("one", SERVER, until="ready", network=first.path)
        assert first.ask(8080) == "answer 1"
        clone = place.restore(made, "two", place.checkpoint(made), network=second.path)
        assert second.ask(8080) == "answer 2"
        assert first.ask(8080) == "answer 2"
        assert second.ask(8080) == "answer 3"
        assert place.engine.is_alive(clone)

    def test_a_connection_is_refused_by_name(self, place: Place) -> None:
        if not self.refuses_connections:
            pytest.skip("this engine takes connections along")
        network = place.network()
        code = (
            "import socket, sys\nlistening = socket.create_server((sys.argv[1], 0))\n"
            "print(listening.getsockname()[1])\nconnection, _ = listening.accept()\nconnection.recv(1)"
        )
        with network.peer(code, network.peer_address) as peer:
            assert peer.stdout is not None
            port = peer.stdout.readline().strip()
            told = f"HOST, PORT = {network.peer_address!r}, {port}\n"
            made = place.start("one", told + CLIENT, until="connected", network=network.path)
            images = place.folder / "images"
            images.mkdir()
            with pytest.raises(EngineError, match=rf"{network.peer_address}:{port}"):
                place.engine.checkpoint(made, images, deadline=DEADLINE)
            assert list(images.iterdir()) == []
            place.goes_on(made)
            assert peer.poll() is None

    def test_what_is_removed_leaves_nothing(self, place: Place) -> None:
        made = place.start("one", COUNTER, until="20")
        clone = place.restore(made, "two", place.checkpoint(made))
        for sandbox in (made, clone):
            place.engine.remove(sandbox)
            assert not place.engine.is_alive(sandbox)
            assert not sandbox.state.exists() or list(sandbox.state.iterdir()) == []
            assert sandbox.output.exists()
            place.engine.remove(sandbox)
        assert place.left() == []

    def test_what_was_never_started(self, place: Place) -> None:
        made = place.sandbox("one", "")
        assert not place.engine.is_alive(made)
        with pytest.raises(EngineError):
            place.engine.wait(made, deadline=1)
        images = place.folder / "images"
        images.mkdir()
        with pytest.raises(EngineError):
            place.engine.checkpoint(made, images, deadline=DEADLINE)
        assert list(images.iterdir()) == []
        place.engine.remove(made)

    def test_images_that_are_missing(self, place: Place) -> None:
        made = place.start("one", COUNTER, until="20")
        images = place.checkpoint(made)
        for path in (images / ENGINE).iterdir():
            path.unlink()
        self._fails(place, made, images)

    def test_each_damaged_image_is_an_error_and_leaves_nothing(self, place: Place) -> None:
        """Only cut files: what an engine reads past its end fails in every format. That bytes are the right ones is the store's to see."""
        made = place.start("one", COUNTER, until="20")
        images = place.checkpoint(made)
        largest = max((path for path in (images / ENGINE).iterdir() if path.is_file()), key=lambda path: path.stat().st_size)
        with largest.open("r+b") as file:
            file.truncate(largest.stat().st_size // 2)
        self._fails(place, made, images)

    def _fails(self, place: Place, made: object, images: Path) -> None:
        clone = place.clone_of(made, "broken", images)  # type: ignore[arg-type]
        with pytest.raises((EngineError, DeadlineError)):
            place.engine.restore(clone, images, deadline=DEADLINE)
        assert not place.engine.is_alive(clone)
        place.engine.remove(made)  # type: ignore[arg-type]
        assert place.left() == []

    def test_equal_addresses(self, place: Place) -> None:
        if not self.fixes_layout:
            pytest.skip("this engine lays out addresses itself")
        code = "maps = open('/proc/self/maps').read().splitlines()\nprint(*(l.split()[0] for l in maps if '[stack]' in l or 'libc' in l))"

        def shown(name: str, fixed: bool) -> str:
            made = place.start(name, code, fixed_layout=fixed)
            assert place.end(made) == 0, place.lines(made)
            return place.lines(made)[-1]

        assert shown("one", fixed=True) == shown("two", fixed=True)
        assert shown("three", fixed=False) != shown("four", fixed=False)

    def test_it_runs_below_the_given_cgroup(self, place: Place, cgroup: Callable[[], Path]) -> None:
        folder = cgroup()
        made = place.start("one", COUNTER, until="20", cgroup=folder)
        assert (folder / "cgroup.procs").read_text().split()
        clone = place.restore(made, "two", place.checkpoint(made), cgroup=folder)
        place.engine.remove(made)
        place.goes_on(clone)
        assert (folder / "cgroup.procs").read_text().split()
        place.engine.remove(clone)
        wait_until(lambda: not (folder / "cgroup.procs").read_text().split(), "the cgroup to be empty")

    def test_a_deadline_that_is_over_leaves_nothing(self, place: Place) -> None:
        made = place.sandbox("one", COUNTER)
        begun = time.monotonic()
        with pytest.raises(DeadlineError):
            place.engine.start(made, deadline=0.001)
        assert time.monotonic() - begun < 30
        assert not place.engine.is_alive(made)
        place.engine.remove(made)
        assert place.left() == []


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


def unified_cgroup() -> Path:
    """Return the root of the cgroup v2 hierarchy, or skip."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup2 " in line:
            return Path(line.split()[4])
    return missing("no cgroup v2 hierarchy is mounted here")
