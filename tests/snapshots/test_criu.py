"""CRIU: the contract of engines, and what only CRIU does, or can do wrong."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagefs.errors import DeadlineError, EngineError, StoreFullError, UnsupportedError
from snapshotstore.checkpoint import criu_state
from snapshotstore.checkpoint.base import ANY_USER, ENGINE, Sandbox
from snapshotstore.checkpoint.criu import Criu
from snapshotstore.checkpoint.criu_probe import SOCKETS
from tests.snapshots.conformance import CheckpointerTests
from tests.snapshots.engines import engine as find
from tests.snapshots.place import DEADLINE, Place
from tests.snapshots.programs import COUNTER, FOREVER, SERVER
from tests.system.world import detach, end, require, tool, wait_until

HANG = f"exec {sys.executable} -c 'import time; time.sleep(1000)' \"$@\""
"""A program that hangs, and is known by its arguments."""


@pytest.fixture
def program() -> Path:
    require("root", "CRIU takes it")
    return find("criu", "check")


@pytest.fixture
def engine(program: Path) -> Criu:
    return Criu(program)


@pytest.fixture
def user(engine: Criu) -> int:
    return 65534 if ANY_USER in engine.probe().features else 0


@pytest.fixture
def fake(tmp_path: Path, program: Path) -> Callable[[str], Criu]:
    """Makes an engine of a shell script, in which ``$REAL`` is the real one."""

    def make(script: str) -> Criu:
        path = tmp_path / "fake"
        path.write_text(f"#!/bin/sh\nREAL={program}\n{script}\n")
        path.chmod(0o755)
        return Criu(path, probing=1.0 if "HANG" in script or "sleep" in script else 30.0)

    return make


class TestCriu(CheckpointerTests):
    @pytest.fixture
    def engine(self, engine: Criu) -> Criu:
        return engine

    @pytest.fixture
    def user(self, user: int) -> int:
        return user

    def test_a_listening_socket_accepts_in_another_network(self, place: Place) -> None:
        if SOCKETS in place.engine.probe().features:
            super().test_a_listening_socket_accepts_in_another_network(place)
            return
        made = place.start("one", SERVER, until="ready")
        images = _folder(place, "images")
        with pytest.raises(EngineError, match=r"listens on 0\.0\.0\.0:8080 .*CRIU before 4\.2"):
            place.engine.checkpoint(made, images, deadline=DEADLINE)
        assert list(images.iterdir()) == []
        assert place.engine.is_alive(made)


class TestProbing:
    def test_one_that_works(self, engine: Criu) -> None:
        found = engine.probe()
        assert (found.name, found.is_exact) == ("criu", False)
        assert tuple(map(int, found.version.split(".")[:2])) >= (4, 1)

    @pytest.mark.parametrize(
        "script",
        [
            "echo 'Version: 3.17.1'",
            "echo 'Version: 4.0'",
            "echo something else",
            "exit 1",
            'if [ "$1" = check ]; then echo no kernel; exit 1; fi; exec $REAL "$@"',
        ],
    )
    def test_one_that_does_not_do(self, fake: Callable[[str], Criu], script: str) -> None:
        with pytest.raises(UnsupportedError) as caught:
            fake(script).probe()
        assert caught.value.hint

    def test_what_is_not_there_or_no_program(self, tmp_path: Path) -> None:
        require("root", "CRIU takes it")
        (tmp_path / "text").write_text("x")
        for path in (tmp_path / "none", tmp_path / "text", tmp_path):
            with pytest.raises(UnsupportedError, match="cannot be run"):
                Criu(path).probe()

    def test_one_that_hangs(self, fake: Callable[[str], Criu]) -> None:
        with pytest.raises(DeadlineError):
            fake("sleep 1000 & wait").probe()


class TestFailures:
    """Whatever CRIU does, the program goes on, and nothing is left."""

    @pytest.mark.parametrize(
        ("script", "error"),
        [(HANG, DeadlineError), ("kill -9 $$", EngineError), ("exit 0", EngineError), ("exit 3", EngineError)],
        ids=["hangs", "is killed", "does nothing", "fails"],
    )
    def test_a_dump_that_goes_wrong(self, place: Place, fake: Callable[[str], Criu], script: str, error: type[Exception]) -> None:
        made = place.start("one", COUNTER, until="20")
        images = _folder(place, "images")
        with pytest.raises(error):
            fake(script).checkpoint(made, images, deadline=0.5)
        assert list(images.iterdir()) == []
        place.goes_on(made)
        assert "fake" not in "".join(place.left())

    def test_one_that_is_killed_while_the_program_is_frozen(self, place: Place, tmp_path: Path, fake: Callable[[str], Criu]) -> None:
        killer = tmp_path / "killer"
        killer.write_text(f"#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION != post-dump ] || kill -9 $(cat {tmp_path}/pid)\n")
        killer.chmod(0o755)
        broken = fake(f'echo $$ >{tmp_path}/pid; exec $REAL "$@" --action-script {killer}')
        made = place.start("one", COUNTER, until="20")
        images = _folder(place, "images")
        with pytest.raises(EngineError, match="ended with -9"):
            broken.checkpoint(made, images, deadline=DEADLINE)
        assert list(images.iterdir()) == []
        place.goes_on(made)
        place.checkpoint(made, "again")

    def test_deadlines_in_the_middle_of_a_dump(self, place: Place) -> None:
        """CRIU is not simply killed then: now and then that would take the program along."""
        made = place.start("one", COUNTER, until="20")
        late = 0
        for number in range(12):
            images = _folder(place, f"images{number}")
            try:
                place.engine.checkpoint(made, images, deadline=0.02 + 0.008 * number)
            except DeadlineError:
                late += 1
                assert list(images.iterdir()) == []
            place.goes_on(made)
        assert late
        assert "differs" not in place.lines(made)

    def test_who_asked_is_killed_while_the_program_is_frozen(self, place: Place, program: Path) -> None:
        made = place.start("one", COUNTER, until="20")
        images = _folder(place, "images")
        code = (
            "import pickle, sys, time\nfrom pathlib import Path\nfrom snapshotstore.checkpoint import criu, criu_dump\n"
            "def copy(*_):\n    print('frozen', flush=True)\n    time.sleep(1000)\n"
            "criu_dump.copy_layer = copy\n"
            "from tests.snapshots.test_criu import told\n"
            "criu.Criu(Path(sys.argv[1])).checkpoint(told(sys.argv[2]), Path(sys.argv[3]), deadline=100)"
        )
        asking = _python(code, program, tell(made), images)
        assert asking.stdout is not None
        assert asking.stdout.readline() == "frozen\n"
        frozen = len(place.lines(made))
        end(asking)
        wait_until(lambda: len(place.lines(made)) > frozen, "the program to go on")
        wait_until(lambda: not [line for line in place.left() if "--leave-running" in line], "criu to end")
        place.checkpoint(made, "again")

    @pytest.mark.parametrize(
        ("script", "error"),
        [(HANG, DeadlineError), ("kill -9 $$", EngineError), ("exit 0", EngineError)],
        ids=["hangs", "is killed", "does nothing"],
    )
    def test_a_restore_that_goes_wrong(self, place: Place, fake: Callable[[str], Criu], script: str, error: type[Exception]) -> None:
        made = place.start("one", COUNTER, until="20")
        images = place.checkpoint(made)
        place.engine.remove(made)
        clone = place.clone_of(made, "two", images)
        with pytest.raises(error):
            fake(script).restore(clone, images, deadline=1.0)
        assert not place.engine.is_alive(clone)
        assert list(clone.state.iterdir()) == []
        assert place.left() == []

    def test_each_image_cut_short_or_gone(self, place: Place) -> None:
        made = place.start("one", COUNTER, until="20")
        images = place.checkpoint(made)
        place.engine.remove(made)
        for file in sorted((images / ENGINE).iterdir()):
            content = file.read_bytes()
            clone = place.clone_of(made, f"of-{file.name}", images)
            for broken in (content[:-1], None):
                file.unlink()
                if broken is not None:
                    file.write_bytes(broken)
                with pytest.raises(EngineError, match="damaged"):
                    place.engine.restore(clone, images, deadline=DEADLINE)
                file.write_bytes(content)
            assert list(clone.state.iterdir()) == []
        assert place.left() == []
        place.goes_on(place.restore(made, "whole", images))

    def test_images_with_other_bytes(self, place: Place) -> None:
        """The store sees that they are the right ones. For whoever does not ask it, CRIU may fail or hang, and leaves nothing either."""
        made = place.start("one", COUNTER, until="20")
        images = place.checkpoint(made)
        place.engine.remove(made)
        for name in ("core-1.img", "files.img", "inventory.img", "mm-1.img", "pagemap-1.img", "pstree.img"):
            file = images / ENGINE / name
            content = file.read_bytes()
            file.write_bytes(bytes(len(content)))
            clone = place.clone_of(made, f"of-{name}", images)
            with pytest.raises((EngineError, DeadlineError)):
                place.engine.restore(clone, images, deadline=3.0)
            assert list(clone.state.iterdir()) == []
            assert place.left() == []
            file.write_bytes(content)

    def test_no_room_for_the_images(self, place: Place) -> None:
        made = place.start("one", COUNTER, until="20")
        _refused_for_want_of_room(place, made, "1m")

    def test_no_room_for_the_layer(self, place: Place) -> None:
        code = "import time\nopen('/tmp/big', 'wb').write(b'x' * (64 << 20))\nprint('ready', flush=True)\n"
        made = place.start("one", code + "while True: time.sleep(0.01); print('still', flush=True)", until="ready")
        _refused_for_want_of_room(place, made, "48m")

    def test_a_keeper_that_is_killed_takes_the_program_along(self, place: Place) -> None:
        made = place.start("one", COUNTER, until="20")
        keeper = criu_state.opened(made.state, criu_state.KEEPER)
        assert keeper is not None
        signal.pidfd_send_signal(keeper, signal.SIGKILL)
        os.close(keeper)
        with pytest.raises(EngineError, match="nobody knows"):
            place.engine.wait(made, deadline=DEADLINE)
        assert not place.engine.is_alive(made)
        assert place.left() == []


class TestSandboxes:
    def test_a_directory_in_use_is_refused_and_left_alone(self, place: Place) -> None:
        made = place.start("one", COUNTER, until="20")
        images = place.checkpoint(made)
        with pytest.raises(EngineError, match="in use"):
            place.engine.start(made, deadline=DEADLINE)
        with pytest.raises(EngineError, match="in use"):
            place.engine.restore(made, images, deadline=DEADLINE)
        place.goes_on(made)

    def test_other_binds_than_the_frozen_ones(self, place: Place) -> None:
        made = place.start("one", COUNTER, until="20")
        images = place.checkpoint(made)
        clone = place.clone_of(made, "two", images, binds=made.binds[:-1])
        with pytest.raises(EngineError, match="/talk"):
            place.engine.restore(clone, images, deadline=DEADLINE)

    def test_what_the_host_unmounts_is_kept_by_nobody(self, place: Place) -> None:
        elsewhere = _folder(place, "elsewhere")
        tool("mount", "-t", "tmpfs", "elsewhere", elsewhere)
        try:
            made = place.start("one", COUNTER, until="20")
            clone = place.restore(made, "two", place.checkpoint(made))
            place.goes_on(clone)
        finally:
            tool("umount", elsewhere)
        kept = []
        for mounts in Path("/proc").glob("[0-9]*/mountinfo"):
            with contextlib.suppress(OSError):
                kept += [str(mounts) for line in mounts.read_text(errors="replace").splitlines() if str(elsewhere) in line]
        assert kept == []

    def test_what_is_written_is_for_its_owner_alone(self, place: Place) -> None:
        made = place.start("one", COUNTER, until="20")
        images = place.checkpoint(made)
        for path in (images / ENGINE, *(images / ENGINE).rglob("*")):
            assert not path.stat().st_mode & 0o077, path

    def test_another_users_program(self, place: Place, engine: Criu) -> None:
        made = place.start("one", COUNTER, until="20", uid=65534, gid=65534)
        if ANY_USER in engine.probe().features:
            place.goes_on(place.restore(made, "two", place.checkpoint(made)))
            return
        images = _folder(place, "images")
        with pytest.raises(EngineError, match="CAP_SYS_RESOURCE"):
            engine.checkpoint(made, images, deadline=DEADLINE)
        assert list(images.iterdir()) == []
        place.goes_on(made)

    def test_another_process_may_ask(self, place: Place, program: Path) -> None:
        made = place.sandbox("one", "import os, time\nwhile not os.path.exists('/talk/go'): time.sleep(0.005)\nraise SystemExit(7)")
        code = (
            "import sys\nfrom pathlib import Path\n"
            "from snapshotstore.checkpoint.criu import Criu\nfrom tests.snapshots.test_criu import told\n"
            "engine, sandbox = Criu(Path(sys.argv[1])), told(sys.argv[2])\n"
        )
        starting = _python(code + "engine.start(sandbox, deadline=60)", program, tell(made))
        assert starting.communicate(timeout=DEADLINE)[0] == ""
        assert starting.returncode == 0
        assert place.engine.is_alive(made)
        waiting = _python(code + "print(engine.is_alive(sandbox), engine.wait(sandbox, deadline=60))", program, tell(made))
        (made.binds[-1].source / "go").touch()
        assert place.end(made) == 7
        assert waiting.communicate(timeout=DEADLINE)[0].split()[-1] == "7"

    def test_a_name_that_a_shell_would_misread(self, place: Place) -> None:
        made = place.start("o n'e;$(x)", COUNTER, until="20")
        clone = place.restore(made, 't "w]o:', place.checkpoint(made, "im ages:[x]"))
        place.goes_on(clone)

    def test_a_terminal(self, place: Place) -> None:
        code = (
            "import os, time\nmaster, slave = os.openpty()\nprint('ready', flush=True)\n"
            "while not os.path.exists('/talk/go'): time.sleep(0.005)\n"
            "os.write(slave, b'through'); print(os.read(master, 7).decode(), os.ttyname(slave))"
        )
        made = place.start("one", code, until="ready")
        clone = place.restore(made, "two", place.checkpoint(made))
        for sandbox in (made, clone):
            (sandbox.binds[-1].source / "go").touch()
            assert place.end(sandbox) == 0, place.lines(sandbox)
            assert place.lines(sandbox)[-1] == "through /dev/pts/0"

    def test_the_layout_survives(self, place: Place) -> None:
        code = "print(open('/proc/self/personality').read(), flush=True)"
        fixed = place.start("one", code + FOREVER, until="00040000", fixed_layout=True)
        assert place.lines(fixed)[0] == "00040000"
        free = place.start("two", code + FOREVER, until="00000000", fixed_layout=False)
        assert place.lines(free)[0] == "00000000"


def tell(sandbox: Any) -> str:
    """Write a sandbox for a process of ours."""
    import pickle  # noqa: PLC0415

    return pickle.dumps(sandbox).hex()


def told(text: str) -> Any:
    """Read it."""
    import pickle  # noqa: PLC0415

    return pickle.loads(bytes.fromhex(text))


def _python(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=root,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": root},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )


def _refused_for_want_of_room(place: Place, made: Sandbox, size: str) -> None:
    """See that a checkpoint into a file system of that size leaves nothing in it, and the program running."""
    images = _folder(place, "images")
    tool("mount", "-t", "tmpfs", "-o", f"size={size}", "small", images)
    try:
        with pytest.raises(StoreFullError):
            place.engine.checkpoint(made, images, deadline=DEADLINE)
        assert list(images.iterdir()) == []
    finally:
        detach(images)
    place.goes_on(made)


def _folder(place: Place, name: str) -> Path:
    folder = place.folder / name
    folder.mkdir(mode=0o700)
    return folder
