"""The supervisor by itself: what it loads, how a first worker that does not start is told of, and how it is told apart from its worker."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from imagefs.daemon import client
from imagefs.daemon.instance import Role, lock_instance, make_instance_dir
from imagefs.daemon.plain_log import PlainLog
from imagefs.daemon.supervisor import Ways, run_daemon
from imagefs.daemon.wire import described, innermost, known, rebuilt
from imagefs.errors import AccessError, DaemonError, ImageFSError, MountError
from tests.daemon.place import Place
from tests.fuse.images import noise


def test_it_loads_nothing_that_serves() -> None:
    script = "import sys, imagefs.daemon.background; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    heavy = {"trio", "pyfuse3", "structlog", "lmdb", "zstandard", "boto3", "imagefs.cache", "imagefs.store.base", "imagefs.fuse.session"}
    assert not set(done.stdout.split()) & heavy


def _worker(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"import json, os, socket, sys, time; told = json.loads(sys.argv[1]); {code}")


def _fails(place: Place, code: str, words: str) -> ImageFSError:
    with pytest.raises(ImageFSError, match=words) as caught:
        run_daemon(Role(place.config), lambda: pytest.fail("it is not ready"), Ways(command=_worker(code)))
    assert place.mounted() == []
    assert not (place.config.instance_dir() / "control.sock").exists()
    # The lock is free: the next one starts.
    os.close(lock_instance(place.config.instance_dir()))
    return caught.value


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("sys.exit(5)", "ended while starting: it ended with status 5"),
        ("os.kill(os.getpid(), 9)", r"ended while starting: it was killed by signal 9 \(SIGKILL\)"),
        ("raise ImportError('half an update')", "ended while starting: it ended with status 1"),
    ],
)
def test_a_first_worker_that_dies_is_an_error(place: Place, code: str, words: str) -> None:
    error = _fails(place, code, words)
    assert isinstance(error, DaemonError)
    if "ImportError" in code:
        assert error.hint == "its log ends with: ImportError: half an update"


def test_a_first_worker_that_says_why_is_quoted(place: Place) -> None:
    problem = {"type": "AccessError", "exit_code": 12, "message": "no way", "hint": "another way"}
    say = f"s = socket.socket(fileno=told['life']); s.send(json.dumps({{'word': 'failed', 'error': {problem}}}).encode()); sys.exit(12)"
    error = _fails(place, say, "no way")
    assert (type(error), error.hint) == (AccessError, "another way")


def test_a_first_worker_that_dies_with_the_mount_leaves_nothing(place: Place) -> None:
    asked = "[(s.send(json.dumps({'word': word}).encode()), s.recv(65536)) for word in ('loaded', 'fuse')]"
    say = f"s = socket.socket(fileno=told['life']); {asked}"
    ask = f"{say}; sys.exit(4)"
    _fails(place, ask, "status 4")
    assert not (place.config.instance_dir() / "fuse.init").exists()


def test_a_program_that_is_not_there_is_an_error(place: Place) -> None:
    with pytest.raises(DaemonError, match=r"could not be started: .*No such file"):
        run_daemon(Role(place.config), lambda: None, Ways(command=("/nonexistent/python",)))


def test_signals_are_given_back(place: Place) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)]
    _fails(place, "sys.exit(1)", "status 1")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)] == before


def test_a_second_supervisor_waits_and_then_says_that_there_is_one(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagefs.daemon.instance._LOCK_SECONDS", 0.2)
    client.ensure_daemon(place.config)
    with pytest.raises(DaemonError, match="already running"):
        run_daemon(Role(place.config), lambda: None)
    assert client.running(place.config)


def test_status_tells_the_two_processes_apart(place: Place) -> None:
    maker = place.maker()
    maker.file("file", noise(10_000))
    maker.publish()
    client.mount(place.config, mountpoint=place.mountpoint(), ref="test")
    status = client.status(place.config)
    supervisor, worker = status["pid"], status["worker_pid"]
    assert supervisor != worker
    assert int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1]) == supervisor
    assert (status["worker_restarts"], status["crash"]) == (0, None)
    assert status["directory"] == str(place.config.instance_dir())
    assert client.call(place.config, "ping")["pid"] == supervisor
    memory = Path(f"/proc/{supervisor}/status").read_text().partition("VmRSS:")[2].split()[0]
    assert int(memory) < 30 << 10, "KiB of the supervisor"
    assert client.stop(place.config) == {"pid": supervisor, "mounts": 1}


def test_an_instance_is_told_and_understood(tmp_path: Path) -> None:
    place = Place(tmp_path / "place")
    for role in (Role(place.config), Role(place.config, tmp_path / "mnt", auto_stop=True, log_to_file=False)):
        told = json.loads(json.dumps(role.told()))
        assert Role.of(told) == role
        # A supervisor of another version may know more settings, or fewer.
        told["config"]["later"] = 1
        told["config"].pop("cache_floor", None)
        assert Role.of(told) == role
    place.store.close()


def test_a_directory_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(AccessError, match="not this user's alone"):
        make_instance_dir(tmp_path / "open")


def test_errors_travel() -> None:
    error = MountError("busy", hint="wait")
    assert described(error) == {"type": "MountError", "exit_code": 10, "message": "busy", "hint": "wait"}
    again = rebuilt(described(error))
    assert (type(again), again.message, again.hint) == (MountError, "busy", "wait")
    group = ExceptionGroup("of", [ExceptionGroup("groups", [error])])
    assert innermost(group) is known(group) is error
    assert known(ValueError("x")).message == "the daemon met a bug: ValueError: x"
    assert type(rebuilt({"type": "NewerError", "exit_code": 10, "message": "m"})) is MountError
    assert type(rebuilt({})) is DaemonError


def test_the_plain_log_says_what_the_other_does(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = PlainLog(tmp_path / "log", "warning")
    log.info("not this")
    log.warning("this", path=tmp_path)
    (tmp_path / "log").rename(tmp_path / "log.1")
    log.error("and this")
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("log.1", "log"))
    assert (one["event"], one["level"], one["path"]) == ("this", "warning", str(tmp_path))
    assert (two["event"], two["level"], two["timestamp"][-1]) == ("and this", "error", "Z")
    PlainLog(None, "error").error("there")
    assert '"there"' in capfd.readouterr().err
    PlainLog(tmp_path / "gone" / "log", "error").error("nowhere")
