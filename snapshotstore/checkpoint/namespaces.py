"""The namespaces of a sandbox, and what is mounted in them.

Promises: nothing of the sandbox's file systems is followed from outside of it (its root is entered first, and what comes from the host is
held by descriptors before); all mounts are those of one mount namespace, and so gone with its last process, whatever ended it; what is
mounted has no devices and no set-user-id but for ``/dev``, which is read-only; a program that was :func:`let_go` has no capability and can
get none.

All of it acts on the calling process, which has one thread, and is to be a sandbox or to make one: never on that of who asked. Errors are
``OSError``, with a note of what was tried. What does not live here: who calls this, and in which order (``criu_keeper``).
"""

import ctypes
import fcntl
import os
import posixpath
import signal
import socket
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from imagefs import syscalls
from snapshotstore.checkpoint.base import Bind, Sandbox
from snapshotstore.checkpoint.criu_root import layers_of

NEW_MOUNTS: Final = 0x00020000  # CLONE_NEWNS and its kin
NEW_CGROUP: Final = 0x02000000
NEW_UTS: Final = 0x04000000
NEW_IPC: Final = 0x08000000
NEW_PID: Final = 0x20000000
NEW_NETWORK: Final = 0x40000000

_MS_RDONLY: Final = 1
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MS_NOEXEC: Final = 8
_MS_REMOUNT: Final = 32
_MS_BIND: Final = 4096
_MS_REC: Final = 16384
_MS_PRIVATE: Final = 1 << 18
_MS_SLAVE: Final = 1 << 19
_MNT_DETACH: Final = 2

_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_VERSION: Final = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_LAST_CAPABILITY: Final = Path("/proc/sys/kernel/cap_last_cap")
_ADDR_NO_RANDOMIZE: Final = 0x0040000

_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_INTERFACE: Final = struct.Struct("16sH14x")

_DEVICES: Final = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_DEVICE_LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
_OVERLAY: Final = "trusted.overlay."

_libc: Final = ctypes.CDLL(None, use_errno=True)


def own_mounts() -> None:
    """Part from the host's mounts: what is mounted from now on is not seen there; what is unmounted there goes here as well."""
    syscalls.unshare(NEW_MOUNTS)
    syscalls.mount(None, Path("/"), _MS_REC | _MS_SLAVE)


def own_processes() -> None:
    """Show in ``/proc`` the processes of this process's own pid namespace, of which it is the first."""
    syscalls.mount_new("proc", "proc", Path("/proc"), _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "")


def enter_network(network: Path | None) -> None:
    """Go into a network namespace, or into a new one that has loopback alone."""
    if network is None:
        syscalls.unshare(NEW_NETWORK)
        _loopback_up()
        return
    with _trying(f"network namespace {network}"):
        descriptor = os.open(network, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _checked(_libc.setns(descriptor, NEW_NETWORK))
        finally:
            os.close(descriptor)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        name, flags = _INTERFACE.unpack(fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _INTERFACE.pack(b"lo", 0)))
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _INTERFACE.pack(name, flags | _IFF_UP))


def mount_stage(folder: Path) -> None:
    """Mount something small and empty, to mount the rest on: it goes with the mount namespace."""
    folder.mkdir(mode=0o700, exist_ok=True)
    syscalls.mount_new("tmpfs", "imagefs", folder, _MS_NOSUID | _MS_NODEV, "mode=0700,size=1m")
    keep_private(folder)


def leave_host(folder: Path) -> None:
    """Let go of all mounts of the host, and of what was staged: whoever only waits must not keep what others unmount. All is empty then."""
    mount_stage(folder)  # over the other: that one goes with the rest
    enter_root(folder)


def keep_private(folder: Path) -> None:
    """Have no mount at ``folder`` or below get or send anything: the engine could not restore such ties."""
    syscalls.mount(None, folder, _MS_REC | _MS_PRIVATE)


def mount_root(sandbox: Sandbox, target: Path) -> None:
    """Mount the sandbox's root file system: its own, new writable layer over the frozen ones and the root."""
    upper, work = sandbox.state / "upper", sandbox.state / "work"
    below = layers_of(sandbox.root)
    lower = (*sandbox.lower, *below.lower)
    upper.mkdir(mode=0o700)
    work.mkdir(mode=0o700)
    _make_like(upper, (*sandbox.lower, sandbox.root)[0])
    target.mkdir()
    opened: list[int] = []
    try:
        for path in (*lower, *below.data, upper, work):
            with _trying(f"layer {path}"):
                opened.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        # By descriptor: no byte in a name is special then, and however many there are, they fit into the page that mount(2) takes.
        *names, over, own = (f"/proc/self/fd/{descriptor}" for descriptor in opened)
        seen = "::".join((":".join(names[: len(lower)]), *names[len(lower) :]))
        metacopy = "on" if below.data else "off"
        options = f"lowerdir={seen},upperdir={over},workdir={own},redirect_dir=on,index=off,metacopy={metacopy}"
        with _trying(f"the layers of {sandbox.name}"):
            syscalls.mount_new("overlay", "imagefs", target, _MS_NOSUID | _MS_NODEV, options)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _make_like(folder: Path, like: Path) -> None:
    """Give the root of a layer the attributes of the one below: those of the topmost are what is seen."""
    found = like.stat()
    os.chown(folder, found.st_uid, found.st_gid)
    folder.chmod(stat.S_IMODE(found.st_mode))
    for name in os.listxattr(like):
        if not name.startswith(_OVERLAY):
            os.setxattr(folder, name, os.getxattr(like, name))


def mount_devices(target: Path) -> None:
    """Mount a read-only ``/dev`` with what does no harm, and the directories to mount shared memory and terminals on."""
    target.mkdir(exist_ok=True)
    before = os.umask(0)
    syscalls.mount_new("tmpfs", "imagefs", target, _MS_NOSUID | _MS_NOEXEC, "mode=0755,size=64k")
    for name, (major, minor) in _DEVICES.items():
        os.mknod(target / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
    for name, place in _DEVICE_LINKS.items():
        (target / name).symlink_to(place)
    for name in ("shm", "pts"):
        (target / name).mkdir()
    os.umask(before)
    syscalls.mount(None, target, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NOEXEC)


def hold(binds: Sequence[Bind]) -> list[int]:
    """Return a descriptor of a mount of each bind's source, attached nowhere."""
    held = []
    for bind in binds:
        with _trying(f"bind {bind.source}"):
            held.append(syscalls.open_tree_clone(bind.source))
    return held


def attach(held: int, target: Path, *, writable: bool) -> None:
    """Attach what :func:`hold` gave at ``target``, which is made if it is not there; close the descriptor."""
    with _trying(f"bind at {target}"):
        make_place(target, is_folder=stat.S_ISDIR(os.fstat(held).st_mode))
        syscalls.move_mount(held, target)
        os.close(held)
        keep_private(target)
        syscalls.mount(None, target, _MS_REMOUNT | _MS_BIND | _MS_NOSUID | _MS_NODEV | (0 if writable else _MS_RDONLY))


def make_place(target: Path, *, is_folder: bool, mode: int = 0o755) -> None:
    """Make an empty directory or file to mount at, if nothing is there."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if is_folder:
        target.mkdir()
        target.chmod(mode)
    else:
        target.touch(0o644)


def enter_root(root: Path) -> None:
    """Make ``root``, which is a mount, the root of this mount namespace, and let go of all others."""
    os.chdir(root)
    # The old root is stacked on the new one, and so is what "." names: pivot_root(2), NOTES.
    _checked(_libc.pivot_root(b".", b"."))
    syscalls.umount(Path(), _MNT_DETACH)
    os.chdir("/")


def fill_root(sandbox: Sandbox, held: Sequence[int]) -> None:
    """Mount what a program finds on its root, once that is entered. ``held`` is what :func:`hold` gave for the sandbox's binds."""
    quiet = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    for name, mode in (("proc", 0o555), ("sys", 0o555), ("dev", 0o755), ("run", 0o755), ("tmp", 0o1777)):
        make_place(Path("/", name), is_folder=True, mode=mode)
    # The kernel's settings go by the user, not by capabilities: whoever is root could write to them.
    syscalls.mount_new("proc", "proc", Path("/proc"), quiet | (0 if sandbox.uid else _MS_RDONLY), "")
    syscalls.mount_new("sysfs", "sysfs", Path("/sys"), quiet | _MS_RDONLY, "")
    mount_devices(Path("/dev"))
    syscalls.mount_new("tmpfs", "shm", Path("/dev/shm"), quiet, "mode=1777")  # noqa: S108 - the sandbox's own
    syscalls.mount_new("devpts", "devpts", Path("/dev/pts"), _MS_NOSUID | _MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620")
    for bind, descriptor in zip(sandbox.binds, held, strict=True):
        attach(descriptor, Path(place_of(bind)), writable=bind.writable)
    keep_private(Path("/"))


def place_of(bind: Bind) -> str:
    """Return where a bind is seen, written as the kernel writes it."""
    return posixpath.normpath(posixpath.join("/", bind.target))


def let_go(sandbox: Sandbox) -> None:
    """Become the sandbox's user, for ever without capabilities, with signals as a program expects them."""
    for capability in range(int(_LAST_CAPABILITY.read_bytes()) + 1):
        _checked(_libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0))
    os.setgroups([])
    os.setresgid(sandbox.gid, sandbox.gid, sandbox.gid)
    os.setresuid(sandbox.uid, sandbox.uid, sandbox.uid)
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    _checked(_libc.capset(header, bytes(24)))  # Who becomes user 0 keeps them otherwise.
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0))
    os.umask(0o022)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    if sandbox.fixed_layout:
        _checked(_libc.personality(ctypes.c_ulong(_ADDR_NO_RANDOMIZE)))


@contextmanager
def _trying(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.add_note(what)
        raise


def _checked(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
