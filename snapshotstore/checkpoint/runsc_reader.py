"""Reading a file of a sandbox's kernel, such as a table in its ``/proc``: a process in the sandbox has to do it.

It needs nothing of the image: a program of 62 bytes, which no library and no file is needed for, is handed to runsc as a descriptor
(``exec --exec-fd``). Where that does not go (another machine than x86-64, another runsc), the image's ``cat`` is asked instead.
"""

import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

_PATH: Final = "PATH=/usr/bin:/bin"
_AT: Final = 0x400000
_MACHINE: Final = 62  # EM_X86_64

_READER: Final = bytes.fromhex(
    "5b 58"  # pop %rbx; pop %rax: the count, and its own name
    "5f 48 85 ff 74 2f"  # next: pop %rdi; test %rdi,%rdi; jz done: a path, or the zero behind the last
    "31 f6 6a 02 58 0f 05"  # open(path, O_RDONLY)
    "85 c0 78 ef 89 c3"  # test %eax,%eax; js next; mov %eax,%ebx
    "31 c0 89 df 48 8d b4 24 00 e0 ff ff ba 00 10 00 00 0f 05"  # more: read(file, below what is pushed, 4096)
    "85 c0 7e d6 89 c2"  # test %eax,%eax; jle next; mov %eax,%edx
    "6a 01 58 89 c7 0f 05"  # write(1, …, what was read)
    "eb de"  # jmp more
    "6a 3c 58 31 ff 0f 05"  # done: exit(0)
)
"""Writes the files that its arguments name to its output, one after the other."""

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
    if platform.machine() != "x86_64":
        yield found
        return
    descriptor = _reader()
    try:
        yield [Way((f"--exec-fd={descriptor}",), (descriptor,)), *found]
    finally:
        os.close(descriptor)


def program() -> bytes:
    """Return the program as a file: a header, one segment that is all of the file, and the code."""
    start = _HEAD.size + _SEGMENT.size
    size = start + len(_READER)
    head = _HEAD.pack(b"\x7fELF", 2, 1, 1, 2, _MACHINE, 1, _AT + start, _HEAD.size, 0, 0, _HEAD.size, _SEGMENT.size, 1, 0, 0, 0)
    return head + _SEGMENT.pack(1, 5, 0, _AT, _AT, size, size, 4096) + _READER


def _reader() -> int:
    writable = os.memfd_create("reader", os.MFD_CLOEXEC)
    try:
        os.write(writable, program())
        # gVisor runs what nobody can write to by this descriptor.
        return os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writable)
