"""Reading a file of a sandbox's kernel, such as a table in its ``/proc``: a process in the sandbox has to do it.

It needs nothing of the image: a program of some 100 bytes, which no library and no file is needed for, is handed to runsc as a descriptor
(``exec --exec-fd``). Where that does not go (a machine that none is for, another runsc), the image's ``cat`` is asked instead.
"""

import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

_PATH: Final = "PATH=/usr/bin:/bin"
_AT: Final = 0x400000
_ALIGNED: Final = 0x10000
"""The largest page that any of the machines may have."""


class _Machine(NamedTuple):
    """A program for a machine: ELF's number of that (elf(5), e_machine), and the code."""

    number: int
    code: bytes


_X86_64: Final = _Machine(
    62,
    bytes.fromhex(
        "5b 58"  # pop %rbx; pop %rax: the count, and its own name
        "5f 48 85 ff 74 2f"  # next: pop %rdi; test %rdi,%rdi; jz done: a path, or the zero behind the last
        "31 f6 6a 02 58 0f 05"  # open(path, O_RDONLY)
        "85 c0 78 ef 89 c3"  # test %eax,%eax; js next; mov %eax,%ebx
        "31 c0 89 df 48 8d b4 24 00 e0 ff ff ba 00 10 00 00 0f 05"  # more: read(file, below what is pushed, 4096)
        "85 c0 7e d6 89 c2"  # test %eax,%eax; jle next; mov %eax,%edx
        "6a 01 58 89 c7 0f 05"  # write(1, …, what was read)
        "eb de"  # jmp more
        "6a 3c 58 31 ff 0f 05"  # done: exit(0)
    ),
)

_ARM64: Final = _Machine(
    183,
    bytes.fromhex(
        "f3430091 ff0740d1"  # add x19,sp,#16; sub sp,sp,#4096: behind the count and its own name; room below
        "618640f8 810200b4"  # next: ldr x1,[x19],#8; cbz x1,done: a path, or the zero behind the last
        "600c8092 020080d2 080780d2 010000d4"  # openat(AT_FDCWD, path, O_RDONLY)
        "40ffffb7 f40300aa"  # tbnz x0,#63,next; mov x20,x0
        "e00314aa e1030091 020082d2 e80780d2 010000d4"  # more: read(file, sp, 4096)
        "1f0000f1 4dfeff54 e20300aa"  # cmp x0,#0; b.le next; mov x2,x0
        "e1030091 200080d2 080880d2 010000d4"  # write(1, sp, what was read)
        "f4ffff17"  # b more
        "000080d2 a80b80d2 010000d4"  # done: exit(0)
    ),
)

MACHINES: Final = {"x86_64": _X86_64, "aarch64": _ARM64}
"""By what uname(2) calls them. Each writes the files that its arguments name to its output, one after the other."""

_HEAD: Final = struct.Struct("<4sBBB9xHHIQQQIHHHHHH")  # elf(5), Elf64_Ehdr
_SEGMENT: Final = struct.Struct("<IIQQQQQQ")  # Elf64_Phdr


class Way(NamedTuple):
    """Options of ``runsc exec`` with which it has a program ``cat``, and the descriptors that they name."""

    options: tuple[str, ...]
    descriptors: tuple[int, ...] = ()


@contextmanager
def ways() -> Iterator[list[Way]]:
    """Give the ways to read, the best first."""
    found = [Way(("--env", _PATH))]
    machine = MACHINES.get(platform.machine())
    if machine is None:
        yield found
        return
    descriptor = _reader(machine)
    try:
        yield [Way((f"--exec-fd={descriptor}",), (descriptor,)), *found]
    finally:
        os.close(descriptor)


def program(machine: _Machine) -> bytes:
    """Return the program as a file: a header, one segment that is all of the file, and the code."""
    start = _HEAD.size + _SEGMENT.size
    size = start + len(machine.code)
    head = _HEAD.pack(b"\x7fELF", 2, 1, 1, 2, machine.number, 1, _AT + start, _HEAD.size, 0, 0, _HEAD.size, _SEGMENT.size, 1, 0, 0, 0)
    return head + _SEGMENT.pack(1, 5, 0, _AT, _AT, size, size, _ALIGNED) + machine.code


def _reader(machine: _Machine) -> int:
    writable = os.memfd_create("reader", os.MFD_CLOEXEC)
    try:
        os.write(writable, program(machine))
        # gVisor runs what nobody can write to by this descriptor.
        return os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writable)
