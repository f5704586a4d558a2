"""Mounting a FUSE connection and unmounting it: with root by the kernel's calls, without by ``fusermount3``.

Mounting returns at once, whether or not anybody serves yet. What does not live here: the connection itself (``imagefs.fuse.handover``).
"""

import contextlib
import os
import shutil
import socket
import stat
import subprocess
from pathlib import Path
from typing import Final

from imagefs import syscalls
from imagefs.errors import MountError
from imagefs.mount.mountinfo import FUSE_TYPE, mount_at

_DEVICE: Final = Path("/dev/fuse")
_NAME: Final = "imagefs"
_RDONLY_NOSUID_NODEV: Final = 1 | 2 | 4
_TOOL: Final = "fusermount3"
_TOOL_SECONDS: Final = 20.0
_HINT: Final = "`imagefs doctor` says what is missing: /dev/fuse, or fusermount3 without root"


def mount_fuse(point: Path, *, everybody: bool) -> int:
    """Mount at ``point``, read-only, without devices and set-user-id; return the descriptor to serve it through.

    ``everybody`` lets users other than this one in (root only). ``MountError`` if the kernel refuses.
    """
    try:
        return _by_kernel(point, everybody=everybody) if os.geteuid() == 0 else _by_tool(point)
    except OSError as error:
        raise MountError(f"cannot mount a FUSE file system at {point}: {error.strerror}", hint=_HINT) from error


def _by_kernel(point: Path, *, everybody: bool) -> int:
    kind = stat.S_IFMT(point.stat().st_mode)
    descriptor = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        options = f"fd={descriptor},rootmode={kind:o},user_id={os.getuid()},group_id={os.getgid()},default_permissions"
        if everybody:
            options += ",allow_other"
        syscalls.mount_new(FUSE_TYPE, _NAME, point, _RDONLY_NOSUID_NODEV, options)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _by_tool(point: Path) -> int:
    tool = shutil.which(_TOOL)
    if tool is None:
        raise MountError(f"cannot mount a FUSE file system at {point}: {_TOOL} is not installed", hint=_HINT)
    options = f"ro,nosuid,nodev,default_permissions,fsname={_NAME},subtype={_NAME}"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            done = subprocess.run(  # noqa: S603 # our own arguments
                [tool, "-o", options, "--", str(point)],
                # It says so itself where it is to send the descriptor; nothing else in an environment is its business.
                env={"_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=(theirs.fileno(),),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TOOL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise MountError(f"cannot mount a FUSE file system at {point}: {_TOOL} did not end") from None
        # Whatever it was going to send, it has sent.
        ours.setblocking(False)
        descriptors: list[int] = []
        with contextlib.suppress(BlockingIOError):
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)
    if not descriptors:
        problem = done.stderr.strip() or f"{_TOOL} ended with {done.returncode}"
        raise MountError(f"cannot mount a FUSE file system at {point}: {problem}", hint=_HINT)
    return descriptors[0]


def release_mount(path: Path, lazy: bool) -> str:  # called through a thread, by position
    """Run ``fusermount3 -u``; return what it complains about, or nothing."""
    command = [_TOOL, "-u", *(["-z"] if lazy else []), "--", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_SECONDS, check=False)  # noqa: S603 # our own arguments
    except FileNotFoundError:
        return f"{_TOOL} is not installed"
    except subprocess.TimeoutExpired:
        return f"{_TOOL} did not end"
    return "" if done.returncode == 0 else done.stderr.strip() or f"{_TOOL} ended with {done.returncode}"


def is_fuse_mount(path: Path) -> bool:
    """Say whether one of our FUSE file systems is what is seen at ``path``."""
    entry = mount_at(path)
    return entry is not None and entry.fstype == FUSE_TYPE
