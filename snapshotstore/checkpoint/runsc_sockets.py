"""What a program in gVisor has open that leads out of its sandbox, and so cannot be frozen.

Its sockets are not the host's: gVisor has a network stack of its own, and what the host's ``/proc`` shows are the sandbox process's. Two
things are seen from here all the same. A Unix socket that is connected to one of the host's *is* a descriptor of the sandbox process,
which has no other that is connected to a name. And the stack's own table of TCP connections is what a program in the sandbox reads from its
``/proc``.

Connections within the sandbox are frozen and restored with both their ends, also TCP ones over loopback (measured, runsc 2024-07).
"""

import ctypes
import ipaddress
import os
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_NR_PIDFD_GETFD: Final = 438  # on every machine that Linux 5.6 or newer runs on
_SOCKET: Final = "socket:"
_HELD: Final = frozenset({1, 2, 8})
"""States of a connection that a program holds and would miss: ESTABLISHED, SYN_SENT, CLOSE_WAIT."""

_OPEN_METRIC: Final = re.compile(rb"^\w*netstack_tcp_current_open(?:\{[^}]*\})? (\d+)", re.MULTILINE)

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

TCP_TABLES: Final = ("/proc/net/tcp", "/proc/net/tcp6")


def host_unix_sockets(pid: int, pidfd: int) -> list[str]:
    """Return the names of the host's Unix sockets that the sandbox process ``pid``, held by ``pidfd``, is connected to."""
    found = []
    for number in sorted(_sockets_of(pid)):
        # Some are closed meanwhile, and most are not connected.
        with suppress(OSError), socket.socket(fileno=_take(pidfd, number)) as taken:
            if taken.family == socket.AF_UNIX and (name := taken.getpeername()):
                found.append(_shown(name))
    return found


def connections(table: str) -> list[str]:
    """Return the TCP connections, as ``local -> remote``, that a table like ``/proc/net/tcp`` has and that lead out of the sandbox."""
    found = []
    for line in table.splitlines():
        words = line.split()
        if len(words) < 4 or not words[0].endswith(":") or int(words[3], 16) not in _HELD:
            continue
        local, remote = _address(words[1]), _address(words[2])
        if not remote[0].is_loopback:
            found.append(f"{_written(local)} -> {_written(remote)}")
    return found


def count_open(metrics: bytes) -> int | None:
    """Return how many TCP connections are open, within the sandbox or out of it, by gVisor's metrics; None if those do not tell."""
    found = _OPEN_METRIC.search(metrics)
    return int(found[1]) if found else None


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _sockets_of(pid: int) -> Iterator[int]:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            if str(entry.readlink()).startswith(_SOCKET):
                yield int(entry.name)


def _take(pidfd: int, number: int) -> int:
    """``pidfd_getfd(2)``: return a descriptor of what another process has open; closed on exec."""
    taken = _libc.syscall(ctypes.c_long(_NR_PIDFD_GETFD), ctypes.c_long(pidfd), ctypes.c_long(number), ctypes.c_long(0))
    if taken < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(taken)


def _shown(name: str | bytes) -> str:
    # A name in the abstract name space begins with a zero byte, and is shown as ss(8) shows it.
    return os.fsdecode(name).replace("\0", "@")


def _address(text: str) -> tuple[_Address, int]:
    """Read an address and a port as the kernel writes them: words of 32 bits, each in the machine's order."""
    address, port = text.split(":")
    words = [int(address[start : start + 8], 16) for start in range(0, len(address), 8)]
    found = ipaddress.ip_address(struct.pack(f"={len(words)}I", *words))
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found, int(port, 16)


def _written(address: tuple[_Address, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if host.version == 6 else f"{host}:{port}"
