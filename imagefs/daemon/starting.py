"""How a daemon is started where there is none: one, however many ask for it at the same time. Every wait has a deadline.

What does not live here: the process that is started (``imagefs.daemon.background``), and asking it something (``asking``).
"""

import contextlib
import fcntl
import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from imagefs.daemon.asking import QUICK, answers, result_of
from imagefs.daemon.instance import LOG_NAME
from imagefs.errors import AccessError, DaemonError, DeadlineError
from imagefs.settings import instance_name

if TYPE_CHECKING:
    from imagefs.config import Config
    from imagefs.settings import Settings

_START_SECONDS: Final = 30.0
_GONE_SECONDS: Final = 30.0
_LOG_TAIL: Final = 2000
_USUAL: Final = re.compile(r'"level": "(debug|info)"')
_KILLED: Final = "where memory is short the kernel does that: `dmesg` tells, and its cgroup's memory limit may have to be larger"


def ensure_daemon(config: "Config | Settings", *, at: str | None = None, auto_stop: bool = True, timeout: float = _START_SECONDS) -> None:
    """Return when a daemon answers, starting one if there is none: one, however many ask. Raises what its start met."""
    settings = config if isinstance(config, dict) else config.told()
    directory = Path(settings["runtime"], instance_name(settings["store"], settings["cache"], at))
    if answers(directory):
        return
    deadline = time.monotonic() + timeout
    with _start_lock(directory, deadline):
        if not answers(directory):
            _spawn(settings, directory, at, auto_stop=auto_stop, deadline=deadline)


def wait_gone(directory: str | Path) -> None:
    """Wait until the daemon that is ending has let go of its lock, which it does last."""
    try:
        descriptor = os.open(Path(directory, "daemon.lock"), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        _flock(descriptor, time.monotonic() + _GONE_SECONDS, "the daemon does not end")
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _start_lock(directory: Path, deadline: float) -> Iterator[None]:
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(directory / "start.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise AccessError(
            f"cannot use the runtime directory {directory}: {error.strerror}", hint="check --runtime and IMAGEFS_RUNTIME"
        ) from error
    try:
        _flock(descriptor, deadline, "another start of the daemon does not end")
        yield
    finally:
        os.close(descriptor)


def _flock(descriptor: int, deadline: float, problem: str) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise DeadlineError(problem) from None
            time.sleep(0.01)
        else:
            return


def _spawn(settings: "Settings", directory: Path, at: str | None, *, auto_stop: bool, deadline: float) -> None:
    reader, writer = os.pipe()
    try:
        told = json.dumps({"config": settings, "mountpoint": at, "auto_stop": auto_stop, "ready_fd": writer})
        log = os.open(directory / LOG_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            begin = os.fstat(log).st_size
            command = [sys.executable, "-P", "-m", "imagefs.daemon", told]
            # The process forks and its first half ends at once.
            subprocess.run(  # noqa: S603 # our own arguments
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(writer,), cwd="/", check=True, timeout=QUICK
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise DaemonError(f"the daemon could not be started: {error}") from error
        finally:
            os.close(log)
            os.close(writer)
            writer = -1
        _wait_ready(reader, directory, deadline, begin)
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)


def _wait_ready(reader: int, directory: Path, deadline: float, begin: int) -> None:
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    line = b""
    while not line.endswith(b"\n"):
        if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
            raise DeadlineError("the daemon did not get ready in time", hint=f"its log is {directory}/{LOG_NAME}")
        chunk = os.read(reader, 65536)
        if not chunk:
            said = _last_words(directory / LOG_NAME, begin)
            if said is None:
                raise DaemonError("the daemon was killed while starting, and could not say why", hint=_KILLED)
            raise DaemonError(f"the daemon ended while starting: {said}", hint=f"its log is {directory}/{LOG_NAME}")
        line += chunk
    result_of(line)


def _last_words(log: Path, begin: int) -> str | None:
    """Return the last line of the log, from ``begin`` on, that tells of something that went wrong; None if none does."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            # A log that is full is begun anew.
            file.seek(max(begin if begin <= end else 0, end - _LOG_TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    return next((line for line in reversed(lines) if line.strip() and not _USUAL.search(line)), None)
