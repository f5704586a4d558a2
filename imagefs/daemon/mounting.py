"""Asking for a mount, and for its end. Plain blocking functions, each with a deadline.

With root there is one daemon for a store and a cache; without, one for each mountpoint: ``at`` is that mountpoint then, and is left out
with root (:func:`home` chooses).

A mount is asked for at once, and a daemon started only if none answers. The process that answers may be replaced at any time: then what was
asked for is asked again. This is on the way of every start of a container: it imports nothing that takes longer than itself
(``imagefs.settings`` names it), and what only some mounts need when they need it.
"""

import os
import time

from imagefs.daemon.asking import QUICK, SOCKET_NAME, BrokenError, answers, ask, ask_again
from imagefs.errors import AccessError, DaemonError, ImageFSError, MountError
from imagefs.settings import instance_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Final

    from imagefs.config import Config
    from imagefs.settings import Settings

MOUNT_SECONDS: "Final" = 600.0
_UMOUNT_SECONDS: "Final" = 60.0
_TRIES: "Final" = 4


def mount(
    config: "Config | Settings",
    *,
    mountpoint: "str | os.PathLike[str]",
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
) -> "dict[str, Any]":
    """Mount an image, with a daemon started for it if there is none.

    ``mode`` None: that of ``config``. ``upper``, an absolute path, ``dev`` and ``suid`` are for kernel mode. ``record``: what is read at
    first is recorded, under ``label``. ``prefetch``: what a profile names is fetched ahead; ``wait`` is the share of it (0 to 1) that is
    waited for. Returns ``{mountpoint, ref, manifest, mode, reason, files, bytes, index_bytes, index_moved, recording, watched,
    recording_reason, prefetched, seconds}``; raises what the daemon met.
    """
    settings = config if isinstance(config, dict) else config.told()
    place = absolute(mountpoint)
    at = home(place)
    fields: dict[str, object] = {
        "op": "mount",
        "mountpoint": place,
        "ref": ref,
        "manifest": manifest,
        "mode": mode or settings["mode"],
        "namespace": os.stat("/proc/self/ns/mnt").st_ino,
        "upper": upper,
        "dev": dev,
        "suid": suid,
        "record": record,
        "label": label,
        "prefetch": prefetch,
        "wait": wait,
    }
    directory = directory_of(settings, at)
    begun = time.time()
    for left in reversed(range(_TRIES)):
        try:
            return ask(directory, fields, MOUNT_SECONDS)
        except BrokenError as error:
            if not left:
                raise DaemonError(error.message, hint=error.hint) from error
            # It may have been mounted before that: then what is told of it is not known, and it is done again.
            _take_back(directory, place, begun)
        except DaemonError:
            # None runs, or it ended just now, because another's last mount went.
            if not left or answers(directory):
                raise
            from imagefs.daemon.starting import ensure_daemon

            ensure_daemon(settings, at=at)
    raise AssertionError


def _take_back(directory: str, place: str, begun: float) -> None:
    """Unmount what was mounted at ``place`` since ``begun``, if anything was."""
    try:
        mounts = ask_again(directory, {"op": "status"}, QUICK)["mounts"]
        if any(mount["mountpoint"] == place and mount.get("mounted_at", 0) >= begun for mount in mounts):
            ask_again(directory, {"op": "umount", "mountpoint": place, "lazy": False}, _UMOUNT_SECONDS)
    except ImageFSError:
        pass  # Mounting again will say what the matter is.


def umount(config: "Config | Settings", mountpoint: "str | os.PathLike[str]", *, lazy: bool = False) -> "dict[str, Any]":
    """Unmount; returns ``{mountpoint, stopping}``.

    Any daemon of this user below the runtime directory may be the one that has the mount. When it was the last, returns after the daemon
    is gone.
    """
    settings = config if isinstance(config, dict) else config.told()
    place = absolute(mountpoint)
    for directory in _likely_first(settings, place):
        try:
            result = _umount(directory, place, lazy=lazy)
        except (DaemonError, AccessError):
            continue
        except MountError as error:
            if not error.message.startswith("no image is mounted"):
                raise
            continue
        if result.get("stopping"):
            from imagefs.daemon.starting import wait_gone

            wait_gone(directory)
        return result
    from imagefs.mount.recovery import detach_dead

    if detach_dead(place):
        return {"mountpoint": place, "stopping": False}
    raise MountError(f"no image is mounted at {place}", hint="`imagefs daemon status` lists the mounts")


def _likely_first(settings: "Settings", place: str) -> "Iterator[str]":
    own = directory_of(settings, home(place))
    yield own
    yield from (directory for directory in instances(settings["runtime"]) if directory != own)


def _umount(directory: str, place: str, *, lazy: bool) -> "dict[str, Any]":
    request: dict[str, object] = {"op": "umount", "mountpoint": place, "lazy": lazy}
    try:
        return ask(directory, request, _UMOUNT_SECONDS)
    except BrokenError:
        pass  # Whether it is unmounted is not known: it is asked for again.
    try:
        return ask_again(directory, request, _UMOUNT_SECONDS)
    except MountError as error:
        if not error.message.startswith("no image is mounted"):
            raise
        # It was unmounted before the connection broke.
        return {"mountpoint": place, "stopping": False}


def instances(runtime: "str | os.PathLike[str]") -> list[str]:
    """Return the directories below ``runtime`` that have a control socket."""
    try:
        names = sorted(os.listdir(runtime))
    except OSError:
        return []
    found = [os.path.join(runtime, name) for name in names]
    return [directory for directory in found if os.path.lexists(os.path.join(directory, SOCKET_NAME))]


def directory_of(settings: "Settings", at: str | None) -> str:
    """Return the directory of the daemon for these settings."""
    return os.path.join(settings["runtime"], instance_name(settings["store"], settings["cache"], at))


def home(mountpoint: str) -> str | None:
    """Return what names the daemon of a mountpoint: None with root, the mountpoint itself without."""
    return None if os.geteuid() == 0 else mountpoint


def absolute(mountpoint: "str | os.PathLike[str]") -> str:
    """Return a mountpoint as the daemon names it: links followed but for the last part, which may be a dead mount."""
    path = os.path.abspath(mountpoint)
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
