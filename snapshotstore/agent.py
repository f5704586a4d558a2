"""``python -m snapshotstore.agent MODULE:CLASS FOLDER [MODULE...]``: what runs in the sandbox, as the program that is frozen and restored.

It imports the modules that are named, makes the object, runs what is to be done once, says that it can be frozen, and waits. When it
finds what a replica is to be, it becomes that one: it takes environment, secrets and names from the host, draws new random numbers, runs
what is to be done after every restore, connects, and answers calls until the connection ends.

Promises:

- nothing of the host is open while it waits: it looks for a file in a directory that the host binds, every 10 ms, and opens the connection
  when it has found one. So a clone whose directory is another one is another replica;
- what it says is written whole or not at all, in the same directory: ``ready``, ``failed`` or ``serving`` in ``state.json``;
- until it can be frozen it is one thread of Python, so that two starts of one program have equal memory;
- each hook has a deadline, and one that fails or takes too long is named. One that does not end when it is interrupted ends the program.

It is of the standard library alone, and of Python 3.8, because the image's own Python runs it. What does not live here: the other
side of the connection, and what is reseeded (``snapshotstore.renewal``).

The connection is a stream of frames in both directions: eight bytes that say how many follow, the first the most significant, and JSON.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import itertools
import json
import os
import platform
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, Callable, Iterator  # noqa: UP035 # of Python 3.8

from snapshotstore import renewal
from snapshotstore.app import App, Method, hooks_of, methods_of, settings_of

FOLDER = "/run/imagefs/replica"
"""Where the host binds a replica's directory."""

BEGIN, REPLICA, STATE, ALIVE, LATE = "begin.json", "replica.json", "state.json", "alive", "late"
FRAME = struct.Struct(">Q")
FRAME_MAX = 2 << 30

_LOOK_SECONDS = 0.01
_BEAT_SECONDS = 0.1
_TURNS_A_BEAT = 10
_GRACE_SECONDS = 3.0
"""How long a hook that is interrupted has to end."""


class HookError(Exception):
    """What is to run by itself failed, or took too long."""


class HookTimeoutError(HookError):
    """It took too long."""


def main() -> None:
    """Be the program. Ends with 0 when the host ends the connection, with 1 where a hook fails."""
    target, folder = sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else FOLDER)
    agent = Agent(folder)
    try:
        service = agent.begin(target, sys.argv[3:])
        torch = sys.modules.get("torch")
        agent.say("ready", python=platform.python_version(), torch=str(getattr(torch, "__version__", "")))
        agent.become(service, agent.wait())
    except BaseException as error:  # noqa: BLE001 # whatever it is, the host is told
        traceback.print_exc()
        agent.say("failed", error=described(error))
        sys.exit(1)


class Service:
    """The object, and what is to be done around it."""

    def __init__(self, app: App, instance: Any) -> None:
        """``instance`` is of a class that the app has marked."""
        self.app = app
        self.instance = instance
        self._methods = methods_of(type(instance))

    def method(self, name: str) -> Method:
        """Return the method of that name that may be called from elsewhere. ``AttributeError``."""
        found = self._methods.get(name)
        if found is None:
            raise AttributeError(f"no method {name!r}: there are {', '.join(sorted(self._methods)) or 'none'}")
        return found


class Agent:
    """See the module. ``folder`` is the replica's directory."""

    def __init__(self, folder: Path) -> None:
        """Do nothing yet."""
        self._folder = folder
        self._hook: tuple[str, float] | None = None
        self._is_beating = False
        self._late: int | None = None
        os.register_at_fork(after_in_child=self._let_go)

    # -- what the host sees ---------------------------------------------------------------------------------------------------------

    def say(self, state: str, **facts: Any) -> None:
        """Write down where this program is: whole, or not at all."""
        new = self._folder / ("." + STATE)
        new.write_text(json.dumps(dict(facts, state=state, pid=os.getpid(), at=time.time())))
        new.replace(self._folder / STATE)

    def beat(self) -> None:
        """Say that this program is alive, for as long as it is."""
        while True:
            self._sign()
            self._watch()
            time.sleep(_BEAT_SECONDS)

    def _sign(self) -> None:
        path = self._folder / ALIVE
        # Of a clone whose directory has gone nobody wants to know.
        with contextlib.suppress(OSError):
            try:
                # Without opening it: what is open when the program is frozen is looked for at a restore, in another directory.
                os.utime(path)
            except FileNotFoundError:
                os.mknod(path, 0o644)

    def _watch(self) -> None:
        """End the program if a hook goes on that was interrupted: it catches whatever it is, or is in a library."""
        hook = self._hook
        if hook is None or time.monotonic() < hook[1]:
            return
        where = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001 # there is no other way
        told = {"type": "HookTimeoutError", "message": hook[0], "traceback": "".join(traceback.format_stack(where))}
        sys.stderr.write(told["traceback"] + told["message"] + "\n")
        sys.stderr.flush()
        self.say("failed", error=told)
        os._exit(1)

    # -- before the snapshot --------------------------------------------------------------------------------------------------------

    def begin(self, target: str, preload: list[str]) -> Service:
        """Import what is to be there before, then the class; make the object, and do what is to be done once."""
        with contextlib.suppress(FileNotFoundError):
            os.environ.update(json.loads((self._folder / BEGIN).read_bytes()))
        for module in preload:
            importlib.import_module(module)
        module, _, name = target.partition(":")
        kind = importlib.import_module(module)
        for part in name.split("."):
            kind = getattr(kind, part)
        app, _ = settings_of(kind)  # type: ignore[arg-type] # whoever names something else is told
        instance = kind()  # type: ignore[operator]
        self._run(hooks_of(type(instance), on="enter", snap=True), instance)
        for function, timeout in reversed(app.before):
            self._timed(function, timeout, getattr(function, "__qualname__", "a hook"))
        return Service(app, instance)

    def wait(self) -> dict[str, Any]:
        """Wait until the host says what this replica is to be."""
        path = self._folder / REPLICA
        for turn in itertools.count():
            if turn % _TURNS_A_BEAT == 0:
                self._sign()
            try:
                found = json.loads(path.read_bytes())
            except (FileNotFoundError, ValueError):
                time.sleep(_LOOK_SECONDS)
            else:
                return dict(found)
        raise AssertionError

    # -- after it -------------------------------------------------------------------------------------------------------------------

    def become(self, service: Service, replica: dict[str, Any]) -> None:
        """Become the replica that the host describes, and answer it until it ends the connection.

        ``replica`` has ``restored`` (whether this is a clone), ``environment``, ``secrets``, and ``socket``: a path.
        """
        threading.Thread(target=self.beat, daemon=True, name="alive").start()
        self._is_beating = True
        os.environ.clear()
        os.environ.update(replica["environment"])
        os.environ.update(replica["secrets"])
        if replica["restored"]:
            renewal.renew()
            for function, timeout in service.app.after:
                self._timed(function, timeout, getattr(function, "__qualname__", "a hook"))
        self._run(hooks_of(type(service.instance), on="enter"), service.instance)
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
            connection.connect(replica["socket"])
            self.say("serving")
            serve(connection, service)
        self._run(hooks_of(type(service.instance), on="exit"), service.instance)

    def _run(self, hooks: Iterator[tuple[str, float]], instance: Any) -> None:
        for name, timeout in hooks:
            self._timed(getattr(instance, name), timeout, name)

    def _timed(self, function: Callable[[], Any], timeout: float, name: str) -> None:
        late = f"{name} took longer than {timeout:g} s"

        def ring(_number: int, _frame: Any) -> None:
            raise HookTimeoutError(late)

        before = signal.signal(signal.SIGALRM, ring)
        self._hook = (late, time.monotonic() + timeout + _GRACE_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, timeout)
        try:
            with contextlib.nullcontext() if self._is_beating else self._bounded(late, timeout + _GRACE_SECONDS):
                function()
        except HookTimeoutError:
            raise
        except Exception as error:
            raise HookError(f"{name} failed: {described(error)['message']}") from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._hook = None
            signal.signal(signal.SIGALRM, before)

    @contextlib.contextmanager
    def _bounded(self, late: str, seconds: float) -> Iterator[None]:
        """End the program if this goes on for longer, with its stack in a file of the replica's directory.

        By a thread that is none of Python's: one that made objects while the program begins would put them between its own, now here, now
        there, and no two starts would have equal pages.
        """
        path = self._folder / LATE
        self._late = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        os.write(self._late, late.encode() + b"\n")
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._late)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            self._let_go()
        path.unlink()

    def _let_go(self) -> None:
        """Close that file. A process that a hook forks would have it open when the program is frozen, and not every engine takes that."""
        late, self._late = self._late, None
        if late is not None:
            os.close(late)


# -- the connection -----------------------------------------------------------------------------------------------------------------------


def serve(connection: socket.socket, service: Service) -> None:
    """Answer calls, one after the other, until the other side ends the connection."""
    while True:
        request = receive(connection)
        if request is None:
            return
        send(connection, answered(service, request))


def answered(service: Service, request: dict[str, Any]) -> bytes:
    """Call the method that a request names; return what is to be sent back: the answer, or what was raised."""
    try:
        method = service.method(request["method"])
        result = method.function(service.instance, *request["args"], **request["named"])
        return json.dumps({"result": result}, allow_nan=False).encode()
    except Exception as error:  # noqa: BLE001 # it is the caller's
        traceback.print_exc()
        return json.dumps({"error": described(error)}).encode()


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """Return the next frame's JSON; None at the end of the stream."""
    head = _exactly(connection, FRAME.size)
    if head is None:
        return None
    (length,) = FRAME.unpack(head)
    if length > FRAME_MAX:
        raise ValueError(f"a frame of {length} bytes: at most {FRAME_MAX} are taken")
    body = _exactly(connection, length)
    return None if body is None else dict(json.loads(body))


def send(connection: socket.socket, body: bytes) -> None:
    """Send one frame."""
    connection.sendall(FRAME.pack(len(body)))
    connection.sendall(body)


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    buffer = bytearray(count)
    view, at = memoryview(buffer), 0
    while at < count:
        got = connection.recv_into(view[at:])
        if not got:
            return None
        at += got
    return bytes(buffer)


def described(error: BaseException) -> dict[str, str]:
    """Return what a person is told of an exception."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return {"type": type(error).__name__, "message": str(error) or type(error).__name__, "traceback": text}


if __name__ == "__main__":
    main()
