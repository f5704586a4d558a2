"""What is killed while services run: workers, runners, programs that take too much memory; and hosts that do the same at once."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imagefs.daemon import client
from imagefs.errors import ProgramError
from snapshotstore.runner.runner import COLD, RESTORED
from snapshotstore.runner.workplace import Workplace
from tests.snapshots.services import Place
from tests.system.world import missing, wait_until

SERVICE = """
import os, time
from snapshotstore import App, enter, method

app = App("kills")

@app.cls(image="python:1", enable_memory_snapshot=True, environment=("STAGE",))
class Service:
    @enter(snap=True)
    def load(self):
        print("loading", flush=True)
        if os.environ["STAGE"] == "load": time.sleep(600)
        if os.environ["STAGE"] == "fill": self.filled = b"x" * (1 << 30)
        self.data = os.urandom(4096) * 500
    @enter(snap=False)
    def connect(self):
        print("connecting", flush=True)
        if os.environ["STAGE"] == "connect": time.sleep(600)
    @method()
    def ask(self):
        print("asked", flush=True)
        if os.environ["STAGE"] == "ask": time.sleep(600)
        return os.environ["STAGE"]
    @method()
    def fill(self): return len(b"x" * (1 << 30))
"""


@pytest.fixture(autouse=True)
def stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGE", "")


def test_the_worker_is_killed_while_a_restore_reads(service_place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = service_place
    service = place.entry(SERVICE)
    place.frozen(service, "ask")
    host = place.host()
    # The engine, which waits at first until it is told to go on.
    real, folder = shutil.which(place.engine), tmp_path / "fake"
    folder.mkdir()
    begun, go = folder / "begun", folder / "go"
    script = f'[ "$1" = help ] || {{ touch {begun}; while [ ! -e {go} ]; do sleep 0.01; done; }}'
    (folder / place.engine).write_text(f'#!/bin/sh\ncase " $* " in *" restore "*) {script};; esac\nexec {real} "$@"\n')
    (folder / place.engine).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    worker = host.worker

    def kill() -> None:
        wait_until(begun.exists, "the restore to begin", 60)
        os.kill(worker, signal.SIGKILL)
        go.touch()

    killing = threading.Thread(target=kill)
    killing.start()
    answer = place.call(service, "ask")
    killing.join()
    assert (answer.result, answer.started, answer.reason) == ("", RESTORED, "")
    assert host.worker != worker


CALLER = """
import os, sys, time
from pathlib import Path
from imagefs.config import load_config
from snapshotstore.runner.entry import find
from snapshotstore.runner.runner import Runner

runner = Runner(load_config(), engine=sys.argv[1])
print(runner.call(find("service:Service", Path(sys.argv[2])), "ask", [], {}).started, flush=True)
time.sleep(600)
"""


@pytest.fixture
def callers(service_place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], "subprocess.Popen[str]"]]:
    """Starts a process of its own that calls the service on the host ``host``."""
    place = service_place
    started = []

    def start(told: str) -> "subprocess.Popen[str]":
        config = place.host().config
        environment = {
            "IMAGEFS_STORE": place.url,
            "IMAGEFS_CACHE": str(config.cache),
            "IMAGEFS_RUNTIME": str(config.runtime),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "STAGE": told,
        }
        command = [sys.executable, "-c", CALLER, place.engine, str(place.root / "source")]
        started.append(subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_runner_that_was_killed_leaves_nothing_to_the_next(service_place: Place, callers: Callable[[str], Any]) -> None:
    place = service_place
    place.source(SERVICE)
    runtime = place.host().config.runtime

    def printed(line: str) -> int:
        return sum(path.read_text().splitlines()[-1:] == [line] for path in (runtime / "logs").glob("*.log"))

    # One in the middle of the beginning, one of a hook, one of a call, one that has frozen and not yet published.
    stages = {"load": "loading", "connect": "connecting", "ask": "asked"}
    processes = [callers(stage) for stage in stages]
    processes.append(callers("none"))
    assert processes[-1].stdout is not None
    assert processes[-1].stdout.readline() == "cold\n"
    for line in stages.values():
        wait_until(lambda line=line: printed(line) >= 1, f"a program that is {line}", 60)  # type: ignore[misc]
    assert len(list((runtime / "runners").iterdir())) == 4
    assert any(path.is_dir() for path in (place.root / "host/cache-checkpoints").iterdir())
    for process in processes[1:]:
        process.send_signal(signal.SIGKILL)
        process.wait()
    # One still lives: nothing is taken from it.
    assert place.call(place.entry(SERVICE), "ask").result == ""
    assert len(list((runtime / "runners").iterdir())) == 1
    assert processes[0].poll() is None
    processes[0].send_signal(signal.SIGKILL)
    processes[0].wait()
    # Whatever the next one runs with, it takes away what ran here.
    with place.host().runner("criu" if place.engine == "runsc" else "runsc") as runner:
        runner.call(place.entry(SERVICE), "ask", [], {})
    assert place.left_by_runners() == []
    assert client.status(place.host().config)["mounts"] == []


def test_two_hosts_publish_the_same_at_once(service_place: Place) -> None:
    place = service_place
    service = place.entry(SERVICE)
    runners = [place.runner(host) for host in ("one", "two")]
    assert [runner.call(service, "ask", [], {}).started for runner in runners] == [COLD, COLD]
    notes: list[Any] = []
    ready = threading.Barrier(2)

    def publish(number: int) -> None:
        ready.wait(20)
        try:
            notes.extend(runners[number].publish())
        except BaseException as error:  # noqa: BLE001 # told to the test
            notes.append(error)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert notes == []
    assert len(place.refs()) == 1
    for host in ("one", "three"):
        assert place.call(service, "ask", host=host).started == RESTORED


@pytest.fixture
def limited() -> Iterator[Path]:
    """A cgroup that allows 150 MB of memory."""
    unified, old = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")
    folder = (old if old.is_dir() else unified) / f"imagefs-test-{secrets.token_hex(4)}"
    try:
        folder.mkdir()
        limit = next((folder / name for name in ("memory.max", "memory.limit_in_bytes") if (folder / name).exists()), None)
        if limit is None:
            missing("cgroups do not limit memory here")
        limit.write_text(str(150 << 20))
    except OSError as error:
        missing(f"no cgroup can be made here: {error}")
    yield folder
    wait_until(lambda: not (folder / "cgroup.procs").read_text().split(), "the cgroup to be empty")
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()


def test_a_program_that_takes_too_much_memory(service_place: Place, limited: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = service_place
    service = place.entry(SERVICE)
    place.frozen(service, "ask")
    runner = place.runner()
    with pytest.raises(ProgramError, match=r"the program ended while fill ran|fill raised MemoryError"):
        runner.call(service, "fill", [], {}, cgroup=limited, timeout=60)
    assert runner.call(service, "ask", [], {}, cgroup=limited).started == RESTORED
    monkeypatch.setenv("STAGE", "fill")
    with pytest.raises(ProgramError, match=r"the program ended before it could be frozen|load failed: MemoryError"):
        place.runner(snapshots=False).call(service, "ask", [], {}, cgroup=limited)


def test_places_that_come_and_go_at_once(tmp_path: Path) -> None:
    """None is taken for a dead one's: neither while it is made nor while it is taken away; nor are checkpoints of another runtime's."""
    failed: list[str] = []
    engines: dict[str, Any] = {}

    def live(number: int) -> None:
        try:
            for _ in range(40):
                made = Workplace(tmp_path / f"run{number % 2}", tmp_path / "cache")
                made.sweep(engines.__getitem__)
                folder = made.checkpoint()
                if not (made.folder.is_dir() and folder.is_dir()):
                    failed.append(f"{made.folder} was taken away")
                folder.rmdir()
                made.close()
        except BaseException as error:  # noqa: BLE001 # told to the test
            failed.append(repr(error))

    threads = [threading.Thread(target=live, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert [list((tmp_path / f"run{number}/runners").iterdir()) for number in range(2)] == [[], []]
