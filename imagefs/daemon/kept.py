"""What makes a process an instance's daemon: the lock, the listening socket, the FUSE connection. They can outlive even the supervisor.

It has them made, or goes on with those that the service manager has kept (``notify``) while there was none: programs that read and commands
that ask have waited, and nobody else could start a daemon meanwhile, since the lock was held. They are given to the manager together, when
the kernel has its answer to the introduction, as a connection without that is nobody's to continue. Without such a manager, the process
itself can begin anew with them, as if one had kept them.

Invariants:

- they are called after the instance, so a daemon that was given another store or cache never serves with what belongs to the one before:
  that one's mounts are taken away;
- all or nothing: a lock that is not that of the directory any more says nothing, and neither does what was kept with it;
- how many workers there were is on disk before one is told to go: what one leaves to the next is told by its number.

What does not live here: who serves the connection, and when all of it ends (``supervisor``).
"""

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from imagefs.config import environment_with
from imagefs.daemon.asking import SOCKET_NAME
from imagefs.daemon.instance import (
    FUSE_NAME,
    INIT_NAME,
    LOCK_NAME,
    TABLE_NAME,
    TREES_NAME,
    WORKERS_NAME,
    Role,
    bind_socket,
    lock_instance,
    make_instance_dir,
)
from imagefs.daemon.notify import FIRST, ServiceManager
from imagefs.daemon.signals import SIGNALS
from imagefs.errors import DaemonError, ImageFSError
from imagefs.fuse.handover import Connection
from imagefs.mount.fusemount import mount_fuse
from imagefs.mount.recovery import detach_all, detach_single
from imagefs.mount.table import MountTable

_LOCK: Final = "lock"
_SOCKET: Final = "socket"
_FUSE: Final = "fuse"


class Kept:
    """See the module. ``connection``: the one that there is; ``restarts``: how many workers have served it before this supervisor."""

    def __init__(self, role: Role, manager: ServiceManager, adopted: Connection | None = None, again: Sequence[str] = ()) -> None:
        """Become the instance's one daemon. ``DaemonError`` if there is another; ``AccessError`` if the directory cannot be used.

        ``adopted``: a connection that is mounted and that nobody serves. ``again``: the command that this process can become again.
        """
        self._role = role
        self._manager = manager
        self._again = again
        self.outlives = False
        """Whether the connection goes on when this process ends."""
        self.connection = adopted
        self._replaced: list[str] = []
        make_instance_dir(role.directory)
        found = self._ours(manager.stored())
        lock = found.pop(_LOCK, None)
        if lock is not None and _is_file(lock, role.directory / LOCK_NAME):
            self.lock = lock
        else:
            for kind, descriptor in [*found.items(), *([] if lock is None else [(_LOCK, lock)])]:
                self._give_up(kind, descriptor)
            found = {}
            self.lock = lock_instance(role.directory)
        try:
            self.listener = self._listener(found.pop(_SOCKET, None))
            self._go_on_with(found.pop(_FUSE, None))
        except BaseException:
            os.close(self.lock)
            raise
        self.restarts = 0 if self.connection is None else self._counted() + 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.connection is not None:
            self.connection.close()
        self.listener.close()
        os.close(self.lock)

    # -- what is there at the start -----------------------------------------------------------------------------------------------------

    def _name(self, kind: str) -> str:
        return f"{kind}.{self._role.directory.name}"

    def _ours(self, stored: list[tuple[str, int]]) -> dict[str, int]:
        """Return what is of this instance, by kind; let go of the rest."""
        found: dict[str, int] = {}
        for name, descriptor in stored:
            kind, _, instance = name.partition(".")
            if kind in {_LOCK, _SOCKET, _FUSE} and name == self._name(kind) and kind not in found:
                found[kind] = descriptor
                continue
            os.close(descriptor)
            if instance != self._role.directory.name:
                self._manager.drop(name)
            if kind == _FUSE and instance != self._role.directory.name:
                self._take_away(self._role.config.runtime / instance)
        return found

    def _take_away(self, directory: Path) -> None:
        records = MountTable(directory / TABLE_NAME)
        self._replaced += detach_all(directory / FUSE_NAME, directory / TREES_NAME, [record.mountpoint for record in records])
        with contextlib.suppress(ImageFSError, OSError):
            (directory / SOCKET_NAME).unlink(missing_ok=True)
            records.clear()

    def _listener(self, descriptor: int | None) -> socket.socket:
        if descriptor is not None:
            if (self._role.directory / SOCKET_NAME).exists():
                return socket.socket(fileno=descriptor)
            self._give_up(_SOCKET, descriptor)
        return bind_socket(self._role.directory)

    def _go_on_with(self, descriptor: int | None) -> None:
        if descriptor is None:
            return
        try:
            connection = Connection.adopted(descriptor, (self._role.directory / INIT_NAME).read_bytes())
        except (OSError, struct.error):
            self._give_up(_FUSE, descriptor)
            return
        poll = select.poll()
        poll.register(descriptor, 0)
        if poll.poll(0):
            # It was aborted, or unmounted everywhere: nothing can be answered through it any more.
            connection.close()
            self._manager.drop(self._name(_FUSE))
            return
        self.connection, self.outlives = connection, self._manager.is_there

    def _counted(self) -> int:
        try:
            return int((self._role.directory / WORKERS_NAME).read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    def _give_up(self, kind: str, descriptor: int) -> None:
        os.close(descriptor)
        self._manager.drop(self._name(kind))

    # -- from then on -------------------------------------------------------------------------------------------------------------------

    def clear(self) -> list[str]:
        """Detach what a dead daemon has left, unless its connection goes on; return where that was."""
        return self._replaced + (self._detach() if self.connection is None else [])

    def count(self, restarts: int) -> None:
        """Note how many workers there were before the one that is told to go now."""
        with contextlib.suppress(OSError):
            (self._role.directory / WORKERS_NAME).write_text(f"{restarts}\n", encoding="ascii")

    def mount(self, *, resend: bool | None) -> Connection:
        """Mount the connection; ``resend``: see ``Connection.begun``. Raises what that meets; nothing stays mounted then."""
        role = self._role
        if role.mountpoint is None:
            role.fuse.mkdir(mode=0o700, exist_ok=True)
        try:
            connection = Connection.begun(mount_fuse(role.fuse, everybody=role.mountpoint is None), resend=resend)
        except BaseException:
            self._detach()
            raise
        # For a process that gets this connection when this one is no more.
        (role.directory / INIT_NAME).write_bytes(connection.init)
        self.connection = connection
        return connection

    def note_answer(self) -> None:
        """Note that the kernel has its answer. From then on the connection can be kept beyond this process."""
        if self.connection is not None:
            self.connection.answered = True
            if not self.outlives:
                self._store(self.connection)

    def _store(self, connection: Connection) -> None:
        for kind, descriptor in ((_LOCK, self.lock), (_SOCKET, self.listener.fileno()), (_FUSE, connection.descriptor)):
            # What is called so is replaced, not joined.
            self._manager.drop(self._name(kind))
            self.outlives = self._manager.store(self._name(kind), descriptor)

    def let_go(self) -> None:
        """Unmount everything. The connection is closed first, so that nothing of it can be waited for."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        if self.outlives:
            self.outlives = False
            for kind in (_FUSE, _SOCKET, _LOCK):
                self._manager.drop(self._name(kind))
        self._detach()
        (self._role.directory / INIT_NAME).unlink(missing_ok=True)

    def end(self) -> None:
        """Unmount everything, and be found no more."""
        self.let_go()
        (self._role.directory / SOCKET_NAME).unlink(missing_ok=True)

    def _detach(self) -> list[str]:
        table = MountTable(self._role.directory / TABLE_NAME)
        if self._role.mountpoint is None:
            gone = detach_all(self._role.fuse, self._role.trees, [record.mountpoint for record in table])
        else:
            gone = detach_single(self._role.mountpoint)
        with contextlib.suppress(ImageFSError):
            table.clear()
        return gone

    @property
    def can_be_left(self) -> bool:
        """Whether the next supervisor can go on with the connection: one that the manager starts, or that this process becomes."""
        return self.outlives or (bool(self._again) and self.connection is not None and self.connection.answered)

    def leave(self) -> None:
        """Leave all of it to the next supervisor. Where no manager keeps it, this process becomes that, and this does not return."""
        if self.outlives or self.connection is None:
            return
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        kept = {_LOCK: self.lock, _SOCKET: self.listener.fileno(), _FUSE: self.connection.descriptor}
        # First out of the way of each other.
        moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FIRST + len(kept)) for descriptor in kept.values()]
        for number, descriptor in enumerate(moved, start=FIRST):
            os.dup2(descriptor, number)
        try:
            os.execve(self._again[0], list(self._again), environment_with([self._name(kind) for kind in kept]))  # noqa: S606 # our own command
        except OSError as error:
            self.end()
            raise DaemonError(f"the daemon could not begin anew: {error}", hint="everything was unmounted") from error

    def is_whole(self) -> bool:
        """Say whether commands still find this daemon: somebody may have deleted what is in the instance's directory."""
        directory = self._role.directory
        return _is_file(self.lock, directory / LOCK_NAME) and (directory / SOCKET_NAME).exists()

    def make_again(self) -> None:
        """Put into the instance's directory what is missing, for a worker that is started after that. Errors as at the start."""
        directory = self._role.directory
        make_instance_dir(directory)
        if not _is_file(self.lock, directory / LOCK_NAME):
            lock = lock_instance(directory)
            os.close(self.lock)
            self.lock = lock
        listener = bind_socket(directory)
        self.listener.close()
        self.listener = listener
        if self.connection is not None:
            (directory / INIT_NAME).write_bytes(self.connection.init)
            if self.outlives:
                self._store(self.connection)


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except OSError:
        return False
