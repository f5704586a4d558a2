"""What the tests of the handover share: a daemon that does some things in other ways, and a worker that does as it is told."""

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from imagefs.config import load_config
from imagefs.daemon import client
from tests.system.world import World, wait_until

_DAEMON: Final = """
import sys
from pathlib import Path
from imagefs.config import load_config
from imagefs.daemon.instance import Role
from imagefs.daemon.supervisor import Ways, run_daemon
role = Role(load_config(), Path(sys.argv[2]) if sys.argv[2] else None)
run_daemon(role, lambda: print("ready", flush=True), Ways(**eval(sys.argv[1])))
"""

_WORKER: Final = """
import os, sys, time
from pathlib import Path
orders = Path({orders!r})
def ending():
    if (orders / "fail").exists():
        sys.stderr.write("the last words of a worker\\n")
        sys.stderr.flush()
        os._exit(3)
    if (orders / "crash").exists():
        os.abort()
ending()
if (orders / "refuse").exists():
    raise ImportError("half an update")
from imagefs.daemon import worker
run = worker._run
def ending_run(*args):
    ending()
    loaded = set(sys.modules)
    worker.loaded_later = lambda: sorted(set(sys.modules) - loaded)
    run(*args)
worker._run = ending_run
if (orders / "old").exists():
    def direct(channel):
        channel.send(b'{{"word": "loaded"}}')
        return channel
    worker.forked = direct
from imagefs.store.local import LocalStore
get = LocalStore.get
def slow(self, key, byte_range=None):
    if key.startswith("packs/"):
        (orders / "asked").touch()
        while (orders / "slow").exists():
            time.sleep(0.01)
    return get(self, key, byte_range)
LocalStore.get = slow
from imagefs.fuse.operations import ImageOperations
getxattr = ImageOperations.getxattr
async def hanging(self, node, name, context):
    if (orders / "hang").exists():
        (orders / "hang").unlink()
        # As code that goes round for ever would, and so that SIGABRT is all that ends it.
        time.sleep(1000)
    return await getxattr(self, node, name, context)
ImageOperations.getxattr = hanging
def dying(name, function, late):
    def either(*args, **fields):
        result = function(*args, **fields) if late else None
        if (orders / name).exists():
            (orders / name).unlink()
            os.kill(os.getpid(), 9)
        return result if late else function(*args, **fields)
    return either
from imagefs.daemon import mounter, service
from imagefs.fuse.handover import Takeover
mounter.bind_readonly = dying("die-bound", mounter.bind_readonly, True)
mounter.unmount = dying("die-unmounted", mounter.unmount, True)
Takeover.switch = dying("die-unanswered", Takeover.switch, False)
tell = dying("die-asked", service.Service._status, False)
service.Service._status = lambda self: tell(self) | {{"loaded_later": worker.loaded_later()}}
worker.main()
"""


class Orders:
    """Files that tell workers started with ``command`` what to do, while they are there.

    ``fail`` and ``crash``: to end as soon as they are started; ``refuse``: to have code that cannot be loaded; ``old``: to be as those were
    that are not forked; ``slow``: to wait with each GET of a pack until it is gone (``asked`` appears when one is asked for); ``hang``: to
    hang with the next extended attribute.

    To be killed once: ``die-bound`` and ``die-unmounted`` when the kernel has done what a command asked for, ``die-asked`` when a command
    asks for the status, ``die-unanswered`` when the kernel waits for the answer to FUSE_INIT.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()

    def command(self, world: World) -> tuple[str, ...]:
        """Return what runs a worker that takes these orders."""
        return (world.interpreter, "-P", "-X", "faulthandler", "-c", _WORKER.format(orders=str(self._folder)))

    @contextlib.contextmanager
    def given(self, name: str) -> Iterator[None]:
        (self._folder / name).touch()
        yield
        (self._folder / name).unlink(missing_ok=True)

    def is_there(self, name: str) -> bool:
        return (self._folder / name).exists()


@contextlib.contextmanager
def daemon(world: World, mountpoint: Path | None = None, **ways: object) -> Iterator[subprocess.Popen[str]]:
    """Run a daemon that does some things in other ways, for one mountpoint if that is given, and end it."""
    command = [world.interpreter, "-c", _DAEMON, repr(ways), str(mountpoint or "")]
    user: dict[str, Any] = {} if world.user is None else {"user": world.user, "group": world.user, "extra_groups": []}
    with subprocess.Popen(command, env=world.env, cwd=world.root, stdout=subprocess.PIPE, text=True, **user) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", world.logs()
            yield process
        finally:
            process.terminate()
            process.wait(60)


def status(world: World) -> dict[str, Any]:
    found: dict[str, Any] = world.run("daemon", "status", "--json").json
    return found


def worker(world: World) -> int:
    """Return the process id of the worker, once there is one."""
    return another(world, 0)


def another(world: World, pid: int) -> int:
    """Wait for another worker than ``pid`` to serve; return its process id."""
    config = load_config(environ=world.env)
    found = None

    # Asked from here, and not by a command, which takes longer to start than a worker does.
    def is_there() -> bool:
        nonlocal found
        found = next((one["worker_pid"] for one in client.daemons(config)), None)
        return found not in {pid, None}

    wait_until(is_there, "another worker", 40)
    return int(found or 0)


def descriptors(pid: int) -> list[str]:
    """Return what a process has open, without what tells two of a kind apart."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            found.append(re.sub(r"\[?\d+\]?$", "", str(link.readlink())))
    return sorted(found)


def children(pid: int) -> dict[int, str]:
    """Return the state of each child of a process."""
    found = {}
    for name in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found[int(name)] = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[0]
    return found


def is_dead(pid: int) -> bool:
    """Say whether a process has ended, also when nobody has asked how yet: that may take whoever adopts it seconds."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    os.kill(pid, number)


def check(seen: list[dict[str, Any]]) -> float:
    """See that a load met no error and no wrong byte; return the longest that anybody waited, in seconds."""
    assert all(one["reads"] > 0 for one in seen), seen
    assert [(one["failed"], one["wrong"]) for one in seen] == [(0, 0)] * len(seen), seen
    return float(max(one["longest"] for one in seen))


class InBackground(threading.Thread):
    """Does something that may wait, and keeps what came of it."""

    def __init__(self, do: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._do = do
        self.result: object = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._do()
        except OSError as error:
            self.result = error

    def outcome(self, seconds: float) -> object:
        """Return what came of it; it must not take longer."""
        self.join(seconds)
        assert not self.is_alive(), f"it still waits after {seconds} s"
        return self.result
