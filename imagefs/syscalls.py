"""System calls that Python has no function for, one function each.

Each returns what the call does, or raises ``OSError`` with the call's errno and its usual text: what a failure means to whom, and the hint,
is the caller's to say. Each blocks for as long as the kernel does, without the interpreter's lock, and may be called from any thread.
Descriptors that these functions return are closed on exec, and the caller's to close.

It imports nothing of ours, so that every layer may use it. What does not live here: which flags a mount of ours has.
"""

import ctypes
import errno
import fcntl
import os
import struct
import threading
from pathlib import Path
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.unshare.argtypes = [ctypes.c_int]
_libc.syscall.restype = ctypes.c_long
_libc.fanotify_init.argtypes = [ctypes.c_uint, ctypes.c_uint]
_libc.fanotify_mark.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p]

# By number, which is the same on x86-64 and arm64: glibc knows them by name only from 2.36 on.
_OPEN_TREE: Final = 428
_MOVE_MOUNT: Final = 429
_FSOPEN: Final = 430
_FSCONFIG: Final = 431
_FSMOUNT: Final = 432
_FSPICK: Final = 433
_CACHESTAT: Final = 451
_FSCONFIG_SET_FLAG: Final = 0
_FSCONFIG_SET_STRING: Final = 1
_FSCONFIG_SET_FD: Final = 5
_FSCONFIG_CMD_CREATE: Final = 6
_FSCONFIG_CMD_RECONFIGURE: Final = 7
_CLOEXEC: Final = 1  # FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC and FSPICK_CLOEXEC
_FSPICK_SYMLINK_NOFOLLOW: Final = 2
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_AT_FDCWD: Final = -100
_OPEN_TREE_CLONE: Final = 1
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36

_NR_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30}
_IOPRIO_WHO_PROCESS: Final = 1
_IOPRIO_IDLE: Final = 3 << 13  # IOPRIO_CLASS_IDLE, in the bits of the class

_ENABLE_VERITY: Final = 0x40806685  # FS_IOC_ENABLE_VERITY (linux/fsverity.h)
_VERITY: Final = struct.Struct("=IIIIQIIQ88x")
_VERITY_SHA256: Final = 1
_VERITY_BLOCK: Final = 4096


def mount(source: Path | None, target: Path, flags: int) -> None:
    """``mount(2)`` without type and options: to bind ``source``, or to change the flags of what is mounted."""
    _checked(_libc.mount(os.fsencode(source) if source else None, os.fsencode(target), None, flags, None))


def umount(target: Path, flags: int) -> None:
    """``umount2(2)``."""
    _checked(_libc.umount2(os.fsencode(target), flags))


def unshare(flags: int) -> None:
    """``unshare(2)``. What it parts is the calling thread's own, also where it is the process's in other threads."""
    _checked(_libc.unshare(flags))


def fsopen(kind: str) -> int:
    """``fsopen(2)``: return a descriptor to set up a file system of that type with. It and those below are there from Linux 5.2 on."""
    return _syscall(_FSOPEN, os.fsencode(kind), _CLOEXEC)


def fspick(target: Path) -> int:
    """``fspick(2)``: return a descriptor to change the file system with that is mounted at ``target``."""
    return _syscall(_FSPICK, _AT_FDCWD, os.fsencode(target), _CLOEXEC | _FSPICK_SYMLINK_NOFOLLOW)


def fsconfig_flag(context: int, key: str) -> None:
    """``fsconfig(2)``, ``FSCONFIG_SET_FLAG``."""
    _syscall(_FSCONFIG, context, _FSCONFIG_SET_FLAG, os.fsencode(key), None, 0)


def fsconfig_string(context: int, key: str, value: bytes) -> None:
    """``fsconfig(2)``, ``FSCONFIG_SET_STRING``. A value has at most 255 bytes, or it is ``EINVAL``."""
    _syscall(_FSCONFIG, context, _FSCONFIG_SET_STRING, os.fsencode(key), value, 0)


def fsconfig_descriptor(context: int, key: str, descriptor: int) -> None:
    """``fsconfig(2)``, ``FSCONFIG_SET_FD``. One opened with ``O_PATH`` is ``EBADF`` before Linux 6.15."""
    _syscall(_FSCONFIG, context, _FSCONFIG_SET_FD, os.fsencode(key), None, descriptor)


def fsconfig_create(context: int) -> None:
    """``fsconfig(2)``, ``FSCONFIG_CMD_CREATE``: make the file system that was set up."""
    _syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)


def fsconfig_reconfigure(context: int) -> None:
    """``fsconfig(2)``, ``FSCONFIG_CMD_RECONFIGURE``: change the file system that was picked."""
    _syscall(_FSCONFIG, context, _FSCONFIG_CMD_RECONFIGURE, None, None, 0)


def fsmount(context: int, attributes: int = 0) -> int:
    """``fsmount(2)``: mount what was made, attached nowhere; return a descriptor of its root that ``openat(2)`` takes.

    ``attributes`` are ``MOUNT_ATTR_*``. Unless it is attached, the mount goes when the last descriptor of it is closed.
    """
    return _syscall(_FSMOUNT, context, _CLOEXEC, attributes)


def move_mount(mount: int, target: Path) -> None:
    """``move_mount(2)``: attach a mount that ``fsmount`` gave at ``target``, whose last part is not followed if it is a link."""
    _syscall(_MOVE_MOUNT, mount, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    # A plain int would go as one of 32 bits, and leave the other half of what the kernel looks at to chance.
    wide = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *wide))


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def mount_new(kind: str, source: str, target: Path, flags: int, options: str) -> None:
    """``mount(2)`` of a new file system of type ``kind``, which Linux before 5.2 has too."""
    _checked(_libc.mount(os.fsencode(source), os.fsencode(target), os.fsencode(kind), flags, os.fsencode(options)))


def end_with_parent(number: int) -> None:
    """``prctl(2)``, ``PR_SET_PDEATHSIG``: have this process get a signal when the thread that started it ends, whatever ended it."""
    _prctl(_PR_SET_PDEATHSIG, number)


def adopt_orphans(wanted: bool = True) -> None:
    """``prctl(2)``, ``PR_SET_CHILD_SUBREAPER``: have this process be the parent of each process below it whose parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, int(wanted))


def _prctl(option: int, value: int) -> None:
    _checked(_libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)))


def fanotify_init(flags: int, event_flags: int = 0) -> int:
    """``fanotify_init(2)``: return a descriptor of a group, whose events are those of what is marked (``FAN_*``)."""
    return _checked(_libc.fanotify_init(flags, event_flags))


def fanotify_mark(group: int, flags: int, mask: int, folder: int, path: bytes) -> None:
    """``fanotify_mark(2)``; ``path`` is below the directory that the descriptor ``folder`` is of."""
    _checked(_libc.fanotify_mark(group, flags, mask, folder, path))


def open_tree_clone(target: Path) -> int:
    """``open_tree(2)``, ``OPEN_TREE_CLONE``: return a descriptor of a mount of what is mounted at ``target``, without what is over it."""
    return _syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(target), _OPEN_TREE_CLONE | os.O_CLOEXEC)


def cachestat(descriptor: int, offset: int, length: int) -> int:
    """``cachestat(2)``, from Linux 6.5 on: return how many pages of a range of a file are in the page cache."""
    found = (ctypes.c_uint64 * 5)()
    span = (ctypes.c_uint64 * 2)(offset, length)
    _syscall(_CACHESTAT, descriptor, ctypes.addressof(span), ctypes.addressof(found), 0)
    return int(found[0])


def syncfs(descriptor: int) -> None:
    """``syncfs(2)``: return when everything that was written to the file system of an open file is on the disk."""
    _checked(_libc.syncfs(descriptor))


def ioprio_idle() -> None:
    """``ioprio_set(2)``: give this thread's reads and writes to a disk the idle class. ``ENOSYS`` on a machine whose number is not known.

    The schedulers BFQ and mq-deadline go by it; others, and disks without one, do not.
    """
    number = _NR_IOPRIO_SET.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    _syscall(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_IDLE)


def nice_thread(nice: int) -> None:
    """``setpriority(2)`` for this thread alone: Linux keeps it by thread, whatever POSIX says."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)


def enable_verity(descriptor: int) -> None:
    """``FS_IOC_ENABLE_VERITY``, SHA-256: have the kernel verify each page of a file that it reads from the disk, from now on and for ever.

    The file is open for reading, and nobody has it open for writing (``ETXTBSY``). ``ENOTTY`` or ``EOPNOTSUPP`` where the kernel or the
    file system has no fs-verity, ``EEXIST`` where it is enabled already. It reads all of the file.
    """
    fcntl.ioctl(descriptor, _ENABLE_VERITY, _VERITY.pack(1, _VERITY_SHA256, _VERITY_BLOCK, 0, 0, 0, 0, 0))
