"""How a program talks to the daemon, and starts it when there is none. Plain blocking functions.

This is on the way of every command, so it imports nothing heavy. What does not live here: the socket (``asking``).

With root there is one daemon for a store and a cache; without, one for each mountpoint: ``at`` is that mountpoint then, and is left out
with root (:func:`home` chooses). Every wait has a deadline.

The process that answers may be replaced at any time. Who asks then waits for the next one; what was being answered is asked again.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from imagefs import errors
from imagefs.config import Config
from imagefs.daemon.asking import PAUSE, QUICK, SOCKET_NAME, BrokenError, ask, ask_again, result_of
from imagefs.errors import AccessError, DaemonError, DeadlineError, ImageFSError

_MOUNT_SECONDS: Final = 600.0
_UMOUNT_SECONDS: Final = 60.0
_START_SECONDS: Final = 30.0
_GONE_SECONDS: Final = 30.0
_RELOAD_SECONDS: Final = 120.0
_LOG_TAIL: Final = 2000


# -- what commands call ---------------------------------------------------------------------------------------------------------------


def mount(
    config: Config,
    *,
    mountpoint: str | Path,
    ref: str = "",
    manifest: str | None = None,
    mode: str | None = None,
    upper: str = "",
    dev: bool = False,
    suid: bool = False,
    record: bool = True,
    label: str = "",
    prefetch: bool = True,
    wait: float = 0.0,
) -> dict[str, Any]:
    """Mount an image, with a daemon started for it if there is none.

    ``mode`` None: that of the configuration. ``upper``, an absolute path, ``dev`` and ``suid`` are for kernel mode. ``record``: what is
    read at first is recorded, under ``label``. ``prefetch``: what a profile names is fetched ahead; ``wait`` is the share of it (0 to 1)
    that is waited for. Returns ``{mountpoint, ref, manifest, mode, reason, files, bytes, index_bytes, index_moved, recording, watched,
    recording_reason, prefetched, seconds}``; raises what the daemon met.
    """
    place = absolute(mountpoint)
    at = home(place)
    fields = {
        "mountpoint": place,
        "ref": ref,
        "manifest": manifest,
        "mode": mode or config.mode,
        "namespace": _namespace(),
        "upper": upper,
        "dev": dev,
        "suid": suid,
        "record": record,
        "label": label,
        "prefetch": prefetch,
        "wait": wait,
    }
    directory = config.instance_dir(at)
    begun = time.time()
    for last in (False, False, True):
        ensure_daemon(config, at=at)
        try:
            return ask(directory, {"op": "mount", **fields}, _MOUNT_SECONDS)
        except BrokenError as error:
            if last:
                raise DaemonError(error.message, hint=error.hint) from error
            # It may have been mounted before that: then what is told of it is not known, and it is done again.
            _take_back(directory, place, begun)
        except DaemonError:
            # It ended between our two calls, because another's last mount went.
            if last or running(config, at=at):
                raise
    raise AssertionError


def prefetch(config: Config, *, ref: str, wait: bool = False) -> dict[str, Any]:
    """Bring an image's index and what its profile names to this host, with a daemon started for it if there is none.

    Returns ``{ref, manifest, index_bytes, index_moved, profile_bytes, prefetched}`` at once, or with ``wait`` when no more of it comes.
    Without root a daemon is for one mount: one that has this cache is asked; ``AccessError`` if there is none.
    """
    at = None
    if os.geteuid() == 0:
        ensure_daemon(config)
    else:
        own = [
            found for found in daemons(config) if (found["store"], found["cache"]) == (config.store, str(config.cache)) and found["mounts"]
        ]
        if not own:
            raise AccessError("without root there is no daemon but for a mount", hint="mount it, with --wait-prefetch")
        at = own[0]["mounts"][0]["mountpoint"]
    return call(config, "prefetch", at=at, timeout=_MOUNT_SECONDS, ref=ref, wait=wait)


def _take_back(directory: Path, place: str, begun: float) -> None:
    """Unmount what was mounted at ``place`` since ``begun``, if anything was."""
    with contextlib.suppress(ImageFSError):
        mounts = ask_again(directory, {"op": "status"}, QUICK)["mounts"]
        if any(mount["mountpoint"] == place and mount.get("mounted_at", 0) >= begun for mount in mounts):
            ask_again(directory, {"op": "umount", "mountpoint": place, "lazy": False}, _UMOUNT_SECONDS)


def umount(config: Config, mountpoint: str | Path, *, lazy: bool = False) -> dict[str, Any]:
    """Unmount; returns ``{mountpoint, stopping}``.

    Any daemon of this user below ``config.runtime`` may be the one that has the mount. When it was the last, returns after the daemon is
    gone.
    """
    place = absolute(mountpoint)
    problem: ImageFSError = errors.MountError(f"no image is mounted at {place}", hint="`imagefs daemon status` lists the mounts")
    own = config.instance_dir(home(place))
    for directory in sorted(instances(config), key=lambda found: found != own):
        try:
            result = _umount(directory, place, lazy=lazy)
        except (DaemonError, AccessError):
            continue
        except errors.MountError as error:
            if not error.message.startswith("no image is mounted"):
                raise
            continue
        if result.get("stopping"):
            _wait_gone(directory)
        return result
    if _take_away_dead(place):
        return {"mountpoint": place, "stopping": False}
    raise problem


def _umount(directory: Path, place: str, *, lazy: bool) -> dict[str, Any]:
    request = {"op": "umount", "mountpoint": place, "lazy": lazy}
    try:
        return ask(directory, request, _UMOUNT_SECONDS)
    except BrokenError:
        pass
    try:
        return ask_again(directory, request, _UMOUNT_SECONDS)
    except errors.MountError as error:
        if not error.message.startswith("no image is mounted"):
            raise
        # It was unmounted before the connection broke.
        return {"mountpoint": place, "stopping": False}


def _take_away_dead(place: str) -> bool:
    """Unmount what a killed daemon left at ``place``: nobody else will, and every access to it fails. False if there is no such mount."""
    # Imported here: it is needed after a crash only.
    from imagefs.mount.bind import unmount  # noqa: PLC0415
    from imagefs.mount.mountinfo import FUSE_TYPE, is_image, mount_at  # noqa: PLC0415

    entry = mount_at(place)
    if entry is None or not is_image(entry):
        return False
    if entry.fstype != FUSE_TYPE:
        # In kernel mode what is on this host is read without a daemon; no daemon knows of it, so it is a dead one's.
        unmount(Path(place), lazy=True)
        return True
    try:
        # The kernel answers for a dead daemon, at once; not with a stat, which it has kept.
        os.close(os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in {errno.ENOTCONN, errno.ECONNABORTED}:
            unmount(Path(place), lazy=True)
            return True
    return False


def status(config: Config, *, at: str | None = None) -> dict[str, Any]:
    """Return what the daemon says of itself; ``DaemonError`` if none runs.

    ``{pid, worker_pid, worker_restarts, crash, version, store, cache, directory, auto_stop, started_at, rss_bytes, mounts}``: ``pid`` is
    the supervisor's; sockets and log are in ``directory``; ``worker_pid`` is None while it waits before it starts another; ``crash`` tells
    what the first worker of late died of.
    """
    return call(config, "status", at=at)


def stats(config: Config, *, at: str | None = None) -> dict[str, Any]:
    """Return the daemon's figures; ``DaemonError`` if no daemon runs."""
    return call(config, "stats", at=at)


def stop(config: Config, *, at: str | None = None) -> dict[str, Any]:
    """Unmount everything and end the daemon; returns ``{pid, mounts}`` when it is gone."""
    result = call(config, "stop", at=at)
    _wait_gone(config.instance_dir(at))
    return result


def reload(config: Config, *, at: str | None = None, supervisor: bool = False) -> dict[str, Any]:
    """Replace the worker by one with the code that is on disk now; returns ``{pid, worker_pid}`` when that one serves.

    Raises what the new one met; then the old one serves on. ``supervisor``: when that has worked, replace the supervisor too, and with it
    the worker once more.
    """
    directory = config.instance_dir(at)
    found = ask_again(directory, {"op": "status"}, QUICK)
    with contextlib.suppress(BrokenError):
        ask(directory, {"op": "reload"}, _RELOAD_SECONDS)
    result = _another_worker(directory, found["worker_pid"])
    if supervisor:
        os.kill(result["pid"], signal.SIGUSR2)
        result = _another_worker(directory, result["worker_pid"])
    return result


def _another_worker(directory: Path, old: int | None) -> dict[str, Any]:
    """Wait for another worker than ``old`` to serve."""
    deadline = time.monotonic() + _RELOAD_SECONDS
    while time.monotonic() < deadline:
        found = ask_again(directory, {"op": "status"}, QUICK)
        if found["worker_pid"] not in {old, None}:
            return {"pid": found["pid"], "worker_pid": found["worker_pid"]}
        time.sleep(PAUSE)
    raise DeadlineError("the new worker does not take over", hint=f"the log is {directory}/daemon.log")


def running(config: Config, *, at: str | None = None) -> bool:
    """Say whether a daemon answers."""
    try:
        call(config, "ping", at=at)
    except DaemonError:
        return False
    return True


def daemons(config: Config) -> list[dict[str, Any]]:
    """Return the status of every daemon of this user below ``config.runtime``, whatever store it serves."""
    found = []
    for directory in instances(config):
        with contextlib.suppress(ImageFSError):
            found.append(ask_again(directory, {"op": "status"}, QUICK))
    return found


def instances(config: Config) -> list[Path]:
    """Return the directories below ``config.runtime`` that have a control socket."""
    try:
        return sorted(path.parent for path in config.runtime.glob(f"*/{SOCKET_NAME}"))
    except OSError:
        return []


def home(mountpoint: str) -> str | None:
    """Return what names the daemon of a mountpoint: None with root, the mountpoint itself without."""
    return None if os.geteuid() == 0 else mountpoint


def absolute(mountpoint: str | Path) -> str:
    """Return a mountpoint as the daemon names it: links followed but for the last part, which may be a dead mount."""
    path = os.path.abspath(mountpoint)  # noqa: PTH100 # Path.resolve would look at the last part too
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))  # noqa: PTH118, PTH119, PTH120


def call(config: Config, op: str, *, at: str | None = None, timeout: float = QUICK, **fields: object) -> dict[str, Any]:
    """Ask the daemon; return its result, or raise the error that it met. ``DaemonError`` if none answers."""
    return ask_again(config.instance_dir(at), {"op": op, **fields}, timeout)


# -- starting -------------------------------------------------------------------------------------------------------------------------


def ensure_daemon(config: Config, *, at: str | None = None, auto_stop: bool = True, timeout: float = _START_SECONDS) -> None:
    """Return when a daemon answers, starting one if there is none: one, however many ask. Raises what its start met."""
    directory = config.instance_dir(at)
    with contextlib.suppress(DaemonError):
        ask_again(directory, {"op": "ping"}, QUICK)
        return
    deadline = time.monotonic() + timeout
    with _start_lock(directory, deadline):
        with contextlib.suppress(DaemonError):
            ask_again(directory, {"op": "ping"}, QUICK)
            return
        _spawn(config, at, auto_stop=auto_stop, deadline=deadline)


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


def _spawn(config: Config, at: str | None, *, auto_stop: bool, deadline: float) -> None:
    # Imported here: only the command that starts a daemon pays for it.
    import subprocess  # noqa: PLC0415

    directory = config.instance_dir(at)
    reader, writer = os.pipe()
    try:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in dataclasses.asdict(config).items()}
        told = json.dumps({"config": settings, "mountpoint": at, "auto_stop": auto_stop, "ready_fd": writer})
        log = os.open(directory / "daemon.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
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
        _wait_ready(reader, directory, deadline)
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)


def _wait_ready(reader: int, directory: Path, deadline: float) -> None:
    import select  # noqa: PLC0415

    poll = select.poll()
    poll.register(reader, select.POLLIN)
    line = b""
    while not line.endswith(b"\n"):
        if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
            raise DeadlineError("the daemon did not get ready in time", hint=f"its log is {directory}/daemon.log")
        chunk = os.read(reader, 65536)
        if not chunk:
            raise DaemonError(f"the daemon ended while starting: {_log_end(directory)}", hint=f"its log is {directory}/daemon.log")
        line += chunk
    result_of(line)


def _log_end(directory: Path) -> str:
    try:
        text = (directory / "daemon.log").read_text(errors="replace")[-_LOG_TAIL:].strip()
    except OSError:
        return "no log"
    return text.splitlines()[-1] if text else "its log is empty"


def _wait_gone(directory: Path) -> None:
    """Wait until the daemon that is ending has let go of its lock, which it does last."""
    try:
        descriptor = os.open(directory / "daemon.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        _flock(descriptor, time.monotonic() + _GONE_SECONDS, "the daemon does not end")
    finally:
        os.close(descriptor)


def _namespace() -> int:
    return Path("/proc/self/ns/mnt").stat().st_ino
