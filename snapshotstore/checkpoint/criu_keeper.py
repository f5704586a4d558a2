"""The keeper of a sandbox that CRIU freezes: ``python -m snapshotstore.checkpoint.criu_keeper DESCRIPTOR``, which is for ``told``.

It is the parent of the sandbox's program, started or restored, and writes down how that ended. Promises:

- **Who ends the keeper ends all**: it is the first process of a pid namespace in which everything else is, CRIU and the sandbox's own pid
  namespace included, and the kernel ends those with it. Their mounts are in mount namespaces of theirs, and go with them. So nothing has
  to be found to be taken away.
- **The program is process 1 of its own pid namespace.** There is no init of ours with it, which would have to be a program of the host, or
  of each image, and part of each snapshot. As in other containers: it reaps its orphans itself, and a signal that it has no handler for
  does nothing to it, but for ``SIGKILL``.
- ``STATE/exit`` is there, whole, before the keeper ends by itself.

What it is told is a request, as :func:`encode` writes it, and a socket. What is said on that, in this order: the keeper's pidfd, from the
first process, which then ends; one byte from who asked, without which nothing is done; and the pidfd of the program, which runs then, or an
error (``error``, or the exit status of CRIU as ``engine``), after which nothing is left. Each is a JSON document.
"""

import array
import json
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from imagefs import syscalls
from snapshotstore.checkpoint import namespaces
from snapshotstore.checkpoint.base import Bind, Sandbox
from snapshotstore.checkpoint.told import told

MESSAGE_MAX: Final = 65536
"""Bytes that a document on the socket has at most."""

MODULE: Final = "snapshotstore.checkpoint.criu_keeper"
EXIT: Final = "exit"
STAGE: Final = "stage"
PIDFILE: Final = "restored.pid"

_ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


def encode(sandbox: Sandbox, restore: dict[str, Any] | None) -> bytes:
    """Write a request: a sandbox, and, if it is to be restored, CRIU's ``command`` and the names of the ``files`` that it inherits."""
    plain = {
        "name": sandbox.name,
        "root": str(sandbox.root),
        "state": str(sandbox.state),
        "output": str(sandbox.output),
        "argv": sandbox.argv,
        "environment": dict(sandbox.environment),
        "cwd": sandbox.cwd,
        "uid": sandbox.uid,
        "gid": sandbox.gid,
        "hostname": sandbox.hostname,
        "binds": [[str(bind.source), bind.target, bind.writable] for bind in sandbox.binds],
        "lower": [str(path) for path in sandbox.lower],
        "network": str(sandbox.network) if sandbox.network else None,
        "cgroup": str(sandbox.cgroup) if sandbox.cgroup else None,
        "fixed_layout": sandbox.fixed_layout,
    }
    return json.dumps({"sandbox": plain, "restore": restore}).encode()


def _decode(plain: dict[str, Any]) -> Sandbox:
    return Sandbox(
        **plain
        | {name: Path(plain[name]) for name in ("root", "state", "output")}
        | {name: Path(plain[name]) if plain[name] else None for name in ("network", "cgroup")}
        | {"argv": tuple(plain["argv"]), "lower": tuple(map(Path, plain["lower"]))}
        | {"binds": tuple(Bind(source=Path(source), target=target, writable=writable) for source, target, writable in plain["binds"])}
    )


def main(arguments: list[str]) -> None:
    """Wait for what is to be kept; part from the caller; keep."""
    os.umask(0o077)
    found = told(int(arguments[0]))
    if found is None:
        return
    request, (talking,) = found
    asked = json.loads(request)
    sandbox = _decode(asked["sandbox"])
    with socket.socket(fileno=talking) as talk:
        try:
            if sandbox.cgroup is not None:
                (sandbox.cgroup / "cgroup.procs").write_text("0")
            syscalls.unshare(namespaces.NEW_PID)
        except OSError as error:
            _send(talk, {"error": _told(error)})
            return
        keeper = os.fork()
        if keeper:
            _send(talk, {"keeper": True}, keeper)
            os._exit(0)  # Whoever asked waits for it, and nothing is left to be done.
        os.setsid()
        if talk.recv(1):
            Keeper(sandbox, asked["restore"], talk).run()


class Keeper:
    """See the module. One thread; the first process of its pid namespace."""

    def __init__(self, sandbox: Sandbox, restore: dict[str, Any] | None, talk: socket.socket) -> None:
        """Nothing is made yet."""
        self._sandbox = sandbox
        self._restore_with = restore
        self._talk = talk
        self._stage = sandbox.state / STAGE
        self._state = os.open(sandbox.state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._ended: dict[int, int] = {}

    def run(self) -> None:
        """Start or restore the program, say so, wait for its end and write that down."""
        try:
            namespaces.own_mounts()
            namespaces.own_processes()
            namespaces.mount_stage(self._stage)
            program = self._start() if self._restore_with is None else self._restore(self._restore_with)
            namespaces.leave_host(self._stage)
            # One that has ended is there to be asked for until it is reaped, which may have been while CRIU was waited for.
            _send(self._talk, {"program": True}, None if program in self._ended else program)
        except _EngineFailedError as error:
            _send(self._talk, {"engine": error.code})
            return
        except _FailedError as error:
            _send(self._talk, {"error": str(error)})
            return
        except OSError as error:
            _send(self._talk, {"error": _told(error)})
            return
        self._talk.close()
        self._write(self._wait(program))

    def _start(self) -> int:
        told, tell = os.pipe()
        syscalls.unshare(namespaces.NEW_PID)
        program = os.fork()
        if not program:
            try:
                self._become()
            except Exception as error:  # noqa: BLE001 - there is nobody above who could tell it
                os.write(tell, _told(error).encode(errors="surrogateescape")[:4096])
            finally:
                os._exit(126)
        os.close(tell)
        with os.fdopen(told, "rb") as file:
            said = file.read()  # Nothing, once the program runs: the other end is closed by that.
        if said:
            raise _FailedError(said.decode(errors="surrogateescape"))
        return program

    def _become(self) -> None:
        """Be the program, in namespaces of its own."""
        sandbox = self._sandbox
        output = _open_output(sandbox)
        os.umask(0o022)
        os.setsid()
        namespaces.enter_network(sandbox.network)
        syscalls.unshare(namespaces.NEW_MOUNTS | namespaces.NEW_UTS | namespaces.NEW_IPC | namespaces.NEW_CGROUP)
        held = namespaces.hold(sandbox.binds)
        root = self._stage / "root"
        namespaces.mount_root(sandbox, root)
        namespaces.enter_root(root)
        namespaces.fill_root(sandbox, held)
        socket.sethostname(sandbox.hostname)
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        for number in (1, 2):
            os.dup2(output, number)
        namespaces.let_go(sandbox)
        try:
            os.chdir(sandbox.cwd)  # As its user: it may be one's own.
            os.execvpe(sandbox.argv[0], sandbox.argv, dict(sandbox.environment))  # noqa: S606 - the program that was asked for
        except OSError as error:
            error.add_note(f"running {sandbox.argv[0]} in {sandbox.cwd}")
            raise

    def _restore(self, asked: dict[str, Any]) -> int:
        sandbox = self._sandbox
        namespaces.mount_root(sandbox, self._stage / "root")
        namespaces.mount_devices(self._stage / "dev")
        for number, (bind, descriptor) in enumerate(zip(sandbox.binds, namespaces.hold(sandbox.binds), strict=True)):
            namespaces.attach(descriptor, self._stage / f"bind{number}", writable=bind.writable)
        namespaces.enter_network(sandbox.network)
        network = os.open("/proc/self/ns/net", os.O_RDONLY)
        output = _open_output(sandbox)
        inherited = {"network": network} | dict.fromkeys(asked["files"], output)
        command = [*asked["command"]]
        for name, descriptor in inherited.items():
            os.set_inheritable(descriptor, True)
            command += ["--inherit-fd", f"fd[{descriptor}]:{name}"]
        engine = self._spawn(command, asked["log"])
        code = self._wait(engine)
        os.close(network)
        os.close(output)
        if code:
            raise _EngineFailedError(code)
        return int((Path(asked["work"]) / PIDFILE).read_text(encoding="ascii"))

    def _spawn(self, command: list[str], log: str) -> int:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        try:
            return os.posix_spawn(command[0], command, _ENVIRONMENT, file_actions=actions)
        except OSError as error:
            error.add_note(f"running {command[0]}")
            raise

    def _wait(self, process: int) -> int:
        """Reap everything until ``process`` has ended; return its exit status, 128 and the signal for one that was killed."""
        while process not in self._ended:
            found, status = os.wait()
            code = os.waitstatus_to_exitcode(status)
            self._ended[found] = code if code >= 0 else 128 - code
        return self._ended[process]

    def _write(self, code: int) -> None:
        with suppress(FileNotFoundError):  # Whoever takes the directory away wants to know nothing more.
            new = os.open(f"{EXIT}.new", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self._state)
            os.write(new, b"%d\n" % code)
            os.close(new)
            os.rename(f"{EXIT}.new", EXIT, src_dir_fd=self._state, dst_dir_fd=self._state)


class _FailedError(Exception):
    """The program does not run, and why."""


class _EngineFailedError(Exception):
    """CRIU ended with that exit status."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _open_output(sandbox: Sandbox) -> int:
    found = os.open(sandbox.output, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        # Again, without O_NOFOLLOW: CRIU opens what it inherits with the flags that it finds, and by a link in /proc.
        return os.open(f"/proc/self/fd/{found}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    finally:
        os.close(found)


def _told(error: Exception) -> str:
    said = [*getattr(error, "__notes__", [])]
    if not isinstance(error, OSError):
        return ": ".join([*said, repr(error)])
    return ": ".join([*said, *([str(error.filename)] if error.filename else []), error.strerror or str(error)])


def _send(talk: socket.socket, document: dict[str, Any], process: int | None = None) -> None:
    """Say something, with the pidfd of a process. Who asked is gone if that fails: then everything is to end, with this process."""
    descriptors = [] if process is None else [os.pidfd_open(process)]
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    talk.sendmsg([json.dumps(document).encode()[:MESSAGE_MAX]], rights)
    for descriptor in descriptors:
        os.close(descriptor)


if __name__ == "__main__":
    main(sys.argv[1:])
