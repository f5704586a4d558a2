"""An instance: one store served with one cache, and the directory that its processes share.

``daemon.lock`` is held as long as any of its processes lives, by a descriptor that they have in common; ``control.sock`` is where clients
ask, ``metrics.sock`` where Prometheus does; ``daemon.log`` is written by all of them; ``mounts.json``, ``fuse.init``, ``workers``,
``lease`` and ``crash.json`` are what one process leaves to the next. All of it is this user's alone. Nothing heavy is imported: the
supervisor stays small.
"""

import fcntl
import os
import socket
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from imagefs.config import Config
from imagefs.daemon.asking import SOCKET_NAME
from imagefs.errors import AccessError, DaemonError

LOG_NAME: Final = "daemon.log"
TABLE_NAME: Final = "mounts.json"
FUSE_NAME: Final = "fuse"
TREES_NAME: Final = "trees"
INIT_NAME: Final = "fuse.init"
CRASH_NAME: Final = "crash.json"
METRICS_NAME: Final = "metrics.sock"
WORKERS_NAME: Final = "workers"
LOCK_NAME: Final = "daemon.lock"

_LOCK_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Role:
    """What a daemon is for.

    ``mountpoint``: without root, the one that it serves, and ends with. ``auto_stop``: end when the last mount goes.
    ``log_to_file``: else to standard error.
    """

    config: Config
    mountpoint: Path | None = None
    auto_stop: bool = False
    log_to_file: bool = True

    @property
    def directory(self) -> Path:
        """The instance's directory."""
        return self.config.instance_dir(self.mountpoint)

    @property
    def trees(self) -> Path:
        """Where kernel mode mounts trees."""
        return self.directory / TREES_NAME

    @property
    def fuse(self) -> Path:
        """Where the FUSE file system is mounted."""
        return self.directory / FUSE_NAME if self.mountpoint is None else self.mountpoint

    @property
    def log(self) -> Path | None:
        """The file of the log, if it is one."""
        return self.directory / LOG_NAME if self.log_to_file else None

    def told(self) -> dict[str, Any]:
        """Return what another process is told, in JSON, so that it has the same role.

        Settings that have their default are left out: a worker of an older version may not know them.
        """
        defaults = {field.name: field.default for field in fields(Config)}
        told = {name: value for name, value in asdict(self.config).items() if value != defaults[name]}
        config = {name: str(value) if isinstance(value, Path) else value for name, value in told.items()}
        return {
            "config": config,
            "mountpoint": None if self.mountpoint is None else str(self.mountpoint),
            "auto_stop": self.auto_stop,
            "log_to_file": self.log_to_file,
        }

    @classmethod
    def of(cls, told: dict[str, Any]) -> "Role":
        """Return the role that a process was told; a setting that only the other's version knows is passed over."""
        known = {field.name for field in fields(Config)}
        config = {name: value for name, value in told["config"].items() if name in known}
        return cls(
            Config(**{**config, "cache": Path(config["cache"]), "runtime": Path(config["runtime"])}),
            Path(told["mountpoint"]) if told["mountpoint"] else None,
            auto_stop=told["auto_stop"],
            log_to_file=told.get("log_to_file", True),
        )


def make_instance_dir(directory: Path) -> None:
    """Make the instance's directory, for this user alone. ``AccessError`` if that cannot be, or it is another's."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.stat(follow_symlinks=False)
    except OSError as error:
        raise AccessError(
            f"cannot use the runtime directory {directory}: {error.strerror}", hint="check --runtime and IMAGEFS_RUNTIME"
        ) from error
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise AccessError(
            f"the runtime directory {directory} is not this user's alone", hint=f"chmod 700 {directory}, or use another --runtime"
        )


def lock_instance(directory: Path) -> int:
    """Become the instance's one daemon; one that is just ending is waited for. Returns the descriptor that holds the lock."""
    descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise DaemonError("a daemon for this store and cache is already running", hint="`imagefs daemon status`") from None
            time.sleep(0.02)
        else:
            return descriptor


def bind_socket(directory: Path, name: str = SOCKET_NAME) -> socket.socket:
    """Make the control socket, or another, mode 0600, replacing one that a dead process left. The caller holds the instance's lock."""
    (directory / name).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    # A socket's path is limited to 107 bytes; through the directory's descriptor it always fits.
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{descriptor}/{name}")
        os.chmod(name, 0o600, dir_fd=descriptor)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(descriptor)
    listener.listen(128)
    # For all who have it, as this belongs to the socket and not to a descriptor.
    listener.setblocking(False)
    return listener
