"""How a program talks to the daemon, and starts it when there is none. Plain blocking functions.

This is on the way of every command, so it imports nothing heavy. What does not live here: the socket (``asking``), mounting (``mounting``,
which imports less still) and starting a daemon (``starting``); what callers want of them is here too.

With root there is one daemon for a store and a cache; without, one for each mountpoint: ``at`` is that mountpoint then, and is left out
with root (:func:`home` chooses). Every wait has a deadline.

The process that answers may be replaced at any time. Who asks then waits for the next one; what was being answered is asked again.
"""

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any, Final

from imagefs.config import Config
from imagefs.daemon import mounting
from imagefs.daemon.asking import PAUSE, QUICK, BrokenError, ask, ask_again
from imagefs.daemon.mounting import MOUNT_SECONDS, absolute, home, mount, umount
from imagefs.daemon.starting import ensure_daemon, wait_gone
from imagefs.errors import AccessError, DaemonError, DeadlineError, ImageFSError

__all__ = [
    "absolute",
    "call",
    "daemons",
    "ensure_daemon",
    "home",
    "instances",
    "mount",
    "prefetch",
    "reload",
    "running",
    "stats",
    "status",
    "stop",
    "umount",
    "warm",
]

_RELOAD_SECONDS: Final = 120.0


def prefetch(config: Config, *, ref: str, wait: bool = False) -> dict[str, Any]:
    """Bring an image's index and what its profile names to this host, with a daemon started for it if there is none.

    Returns ``{ref, manifest, index_bytes, index_moved, profile_bytes, prefetched}`` at once, or with ``wait`` when no more of it comes.
    Without root a daemon is for one mount: one that has this cache is asked; ``AccessError`` if there is none.
    """
    return call(config, "prefetch", at=_keeper(config), timeout=MOUNT_SECONDS, ref=ref, wait=wait)


def warm(config: Config, *, ref: str = "", manifest: str | None = None, begin: bool = True) -> dict[str, Any]:
    """Have all of an image brought to this host, with a daemon started for it if there is none; answer at once.

    Returns ``{ref, manifest, known}``, and of one that is ``known`` what ``imagefs.cache.warming.Warmth`` has.
    ``begin``: what is over, or unknown, goes on where it was. Without root see :func:`prefetch`.
    """
    return call(config, "warm", at=_keeper(config), timeout=MOUNT_SECONDS, ref=ref, manifest=manifest, begin=begin)


def _keeper(config: Config) -> str | None:
    """Return which daemon keeps what this host has; it runs afterwards."""
    if os.geteuid() == 0:
        ensure_daemon(config)
        return None
    ours = config.store, str(config.cache)
    own = [found for found in daemons(config) if (found["store"], found["cache"]) == ours and found["mounts"]]
    if not own:
        raise AccessError("without root there is no daemon but for a mount", hint="mount it, with --wait-prefetch")
    return str(own[0]["mounts"][0]["mountpoint"])


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
    wait_gone(config.instance_dir(at))
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
    return [Path(directory) for directory in mounting.instances(config.runtime)]


def call(config: Config, op: str, *, at: str | None = None, timeout: float = QUICK, **fields: object) -> dict[str, Any]:
    """Ask the daemon; return its result, or raise the error that it met. ``DaemonError`` if none answers."""
    return ask_again(config.instance_dir(at), {"op": op, **fields}, timeout)
