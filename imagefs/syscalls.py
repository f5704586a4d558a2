"""System calls that Python has no function for, one function each.

Each returns what the call does, or raises ``OSError`` with the call's errno and its usual text: what a failure means to whom, and the hint,
is the caller's to say. Each blocks for as long as the kernel does, without the interpreter's lock, and may be called from any thread.
Descriptors that these functions return are closed on exec, and the caller's to close.

It imports nothing of ours, so that every layer may use it. What does not live here: which flags a mount of ours has.
"""

import ctypes
import os
from pathlib import Path
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.syscall.restype = ctypes.c_long

# By number, which is the same on x86-64 and arm64: glibc knows them by name only from 2.36 on.
_FSOPEN: Final = 430
_FSCONFIG: Final = 431
_FSMOUNT: Final = 432
_FSCONFIG_CMD_CREATE: Final = 6
_CLOEXEC: Final = 1  # FSOPEN_CLOEXEC, and FSMOUNT_CLOEXEC


def mount(source: Path | None, target: Path, flags: int) -> None:
    """``mount(2)`` without type and options: to bind ``source``, or to change the flags of what is mounted."""
    _checked(_libc.mount(os.fsencode(source) if source else None, os.fsencode(target), None, flags, None))


def umount(target: Path, flags: int) -> None:
    """``umount2(2)``."""
    _checked(_libc.umount2(os.fsencode(target), flags))


def fsopen(kind: str) -> int:
    """``fsopen(2)``: return a descriptor to set up a file system of that type with. It and the two below are there from Linux 5.2 on."""
    return _syscall(_FSOPEN, os.fsencode(kind), _CLOEXEC)


def fsconfig_create(context: int) -> None:
    """``fsconfig(2)``, ``FSCONFIG_CMD_CREATE``: make the file system that was set up."""
    _syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)


def fsmount(context: int) -> int:
    """``fsmount(2)``: mount what was made, attached nowhere; return a descriptor of its root that ``openat(2)`` takes."""
    return _syscall(_FSMOUNT, context, _CLOEXEC, 0)


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    # A plain int would go as one of 32 bits, and leave the other half of what the kernel looks at to chance.
    wide = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *wide))


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
