"""What a sandbox's program has open that CRIU cannot take along, told before anything is frozen.

Looked at from outside, through ``/proc``, and while the program runs: what it opens a moment later CRIU itself refuses, in its own words.
"""

import os
import re
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from imagefs.errors import EngineError

_SOCKET: Final = re.compile(r"socket:\[(\d+)\]")
_KINDS: Final = {
    "anon_inode:[io_uring]": "an io_uring",
    "anon_inode:[userfaultfd]": "a userfaultfd",
    "anon_inode:[perf_event]": "a performance counter",
    "anon_inode:[fanotify]": "an fanotify group",
    "anon_inode:bpf-map": "a BPF map",
    "anon_inode:bpf-prog": "a BPF program",
}
_SYS_RESOURCE: Final = 24  # CAP_SYS_RESOURCE
_QUIET: Final = {0x07, 0x0A}
"""``TCP_CLOSE`` and ``TCP_LISTEN``: sockets in any other state have a peer, or had one."""

_STATES: Final = {1: "established", 2: "connecting", 3: "connecting", 4: "closing", 5: "closing", 8: "closed by the peer"}


class Descriptor(NamedTuple):
    """What a process has open: its number there, and what its link in ``/proc`` says."""

    process: int
    number: int
    target: str


def processes_of(program: int) -> list[int]:
    """Return the processes, by their numbers here, that are in the pid namespace of ``program``."""
    space = Path(f"/proc/{program}/ns/pid").stat()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                if os.path.samestat((folder / "ns" / "pid").stat(), space):
                    found.append(int(folder.name))
    return found


def descriptors_of(processes: list[int]) -> Iterator[Descriptor]:
    """Give all that these processes have open. One that ends meanwhile has nothing open."""
    for process in processes:
        with suppress(FileNotFoundError, ProcessLookupError):
            for link in Path(f"/proc/{process}/fd").iterdir():
                with suppress(FileNotFoundError, ProcessLookupError):
                    yield Descriptor(process, int(link.name), str(link.readlink()))


def may_freeze_any_user() -> bool:
    """Say whether this process may ask for the limits of another user's process, which CRIU has to: some roots of containers may not."""
    capabilities = next(line for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if line.startswith("CapEff:"))
    return bool(int(capabilities.split()[1], 16) >> _SYS_RESOURCE & 1)


def check_users(processes: list[int]) -> None:
    """Raise ``EngineError`` if one of these processes is another user's, and that matters."""
    if may_freeze_any_user():
        return
    for process in processes:
        with suppress(FileNotFoundError, ProcessLookupError):
            found = Path(f"/proc/{process}").stat()
            if (found.st_uid, found.st_gid) != (os.getuid(), os.getgid()):
                what = f"a program of user {found.st_uid} and group {found.st_gid} cannot be frozen: that takes CAP_SYS_RESOURCE"
                raise EngineError(what, hint="give this container the capability, or run the program as its root")


def refusals(program: int, descriptors: list[Descriptor]) -> list[str]:
    """Return what is open that cannot be frozen, one line each, for a person to read."""
    connections = {inode: what for inode, (what, is_quiet) in _sockets(program).items() if not is_quiet}
    return _told(descriptors, lambda target: _KINDS.get(target) or connections.get(_inode(target)))


def sockets(program: int, descriptors: list[Descriptor]) -> list[str]:
    """Return which TCP and UDP sockets are open that have no peer, likewise."""
    quiet = {inode: what for inode, (what, is_quiet) in _sockets(program).items() if is_quiet}
    return _told(descriptors, lambda target: quiet.get(_inode(target)))


def _told(descriptors: list[Descriptor], name: Callable[[str], str | None]) -> list[str]:
    found = ((name(descriptor.target), descriptor) for descriptor in descriptors)
    return list(
        dict.fromkeys(f"{what} (descriptor {descriptor.number} of {_name(descriptor.process)})" for what, descriptor in found if what)
    )


def _inode(target: str) -> int:
    match = _SOCKET.fullmatch(target)
    return int(match[1]) if match else -1


def _name(process: int) -> str:
    """Return the name of a process, and its number in its sandbox."""
    status = {}
    with suppress(OSError):
        lines = Path(f"/proc/{process}/status").read_text(errors="replace").splitlines()
        status = dict(line.split(":", 1) for line in lines if ":" in line)
    return f"{status.get('Name', '?').strip()} {(status.get('NSpid') or '?').split()[-1]}"


def _sockets(program: int) -> dict[int, tuple[str, bool]]:
    """Return the TCP and UDP sockets in the network namespace of ``program`` by number: what they are, and if they have no peer."""
    found = {}
    for name in ("tcp", "tcp6", "udp", "udp6"):
        with suppress(FileNotFoundError):
            for line in Path(f"/proc/{program}/net/{name}").read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                here, there, state = _address(fields[1]), _address(fields[2]), int(fields[3], 16)
                if name.startswith("udp"):
                    found[int(fields[9])] = f"a UDP socket at {here}", True
                elif state in _QUIET:
                    found[int(fields[9])] = f"a TCP socket that listens on {here}", True
                else:
                    found[int(fields[9])] = f"a TCP connection from {here} to {there}, {_STATES.get(state, 'closing')}", False
    return found


def _address(field: str) -> str:
    """Return an address as people write it: the kernel prints each 32 bits as a number of this machine."""
    host, _, port = field.partition(":")
    raw = b"".join(struct.pack("=I", int(host[start : start + 8], 16)) for start in range(0, len(host), 8))
    if len(raw) == 4:
        return f"{socket.inet_ntop(socket.AF_INET, raw)}:{int(port, 16)}"
    if raw.startswith(bytes(10) + b"\xff\xff"):
        return f"{socket.inet_ntop(socket.AF_INET, raw[12:])}:{int(port, 16)}"
    return f"[{socket.inet_ntop(socket.AF_INET6, raw)}]:{int(port, 16)}"
