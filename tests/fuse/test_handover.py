"""The connection's two ends, against the kernel: who asks, who is answered, and what happens to what nobody answered."""

import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imagefs.errors import MountError
from imagefs.fuse.handover import Connection, Takeover, resends
from imagefs.mount.bind import unmount
from imagefs.mount.fusemount import is_fuse_mount, mount_fuse
from imagefs.mount.mountinfo import mount_at
from imagefs.mount.recovery import detach_all

HEADER = struct.Struct("=IIQQIIII")
OUT = struct.Struct("=IiQ")
INIT, GETATTR, STATFS = 26, 3, 17


def _init(flags: int, flags2: int | None) -> bytes:
    body = struct.pack("=IIII", 7, 45, 131072, flags) + (b"" if flags2 is None else struct.pack("=I", flags2))
    return HEADER.pack(HEADER.size + len(body), INIT, 2, 0, 0, 0, 0, 0) + body


@pytest.mark.parametrize(
    ("flags", "flags2", "wanted"),
    [(1 << 30, 1 << 7, True), (1 << 30, 0xFF7F, False), (0, 1 << 7, False), (1 << 30, None, False), (0, None, False)],
)
def test_the_kernel_says_whether_it_sends_again(flags: int, flags2: int | None, wanted: bool) -> None:
    assert resends(_init(flags, flags2)) is wanted


@pytest.fixture
def point(tmp_path: Path, require: Callable[..., None]) -> Iterator[Path]:
    require("root", "mounts through /dev/fuse as root")
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    if is_fuse_mount(path):
        unmount(path, lazy=True)


def _request(descriptor: int) -> tuple[int, int]:
    """Read a request; return what is asked, and its number."""
    assert select.select([descriptor], [], [], 5)[0], "nothing was asked"
    _, op, unique, *_ = HEADER.unpack_from(os.read(descriptor, 1 << 20))
    return op, unique


def _answer_init(descriptor: int, init: bytes) -> None:
    unique = HEADER.unpack_from(init)[2]
    body = struct.pack("=IIIIHHIIHHI28x", 7, 31, 131072, 0, 16, 12, 131072, 1, 0, 0, 0)
    os.write(descriptor, OUT.pack(OUT.size + len(body), 0, unique) + body)


def _asked(point: Path) -> tuple[threading.Thread, list[object]]:
    """Ask something that the daemon has to answer."""
    came: list[object] = []

    def ask() -> None:
        try:
            came.append(os.statvfs(point))
        except OSError as error:
            came.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread, came


def _answer_statfs(descriptor: int, unique: int) -> None:
    body = struct.pack("=QQQQQIII24x4x", 1234, 0, 0, 0, 0, 4096, 255, 4096)
    os.write(descriptor, OUT.pack(OUT.size + len(body), 0, unique) + body)


def test_what_was_not_answered_is_asked_again(point: Path) -> None:
    connection = Connection.begun(mount_fuse(point, everybody=True))
    assert connection.resends, "this kernel does not have it; then this test is about nothing"
    descriptor, must_close = connection.lend()
    assert not must_close
    _answer_init(descriptor, connection.init)
    thread, came = _asked(point)
    op, unique = _request(descriptor)
    assert op == STATFS
    # The one that has read it dies here; another comes.
    takeover = Takeover(os.dup(descriptor), connection.init, resend=True, is_asked_again=True)
    assert os.read(takeover.place, 1 << 16) == connection.init, "what libfuse reads first"
    assert takeover.switch() == ""
    op, again = _request(takeover.place)
    assert (op, again) == (STATFS, unique | 1 << 63)
    _answer_statfs(takeover.place, again)
    thread.join(5)
    assert came[0].f_blocks == 1234  # type: ignore[attr-defined]
    takeover.mute()
    assert os.readlink(f"/proc/self/fd/{takeover.place}") == "/dev/null"  # noqa: PTH115 # a number, not a path
    os.close(takeover.place)
    connection.close()


def test_where_it_is_not_asked_again_it_ends_with_who_had_it(point: Path) -> None:
    connection = Connection.begun(mount_fuse(point, everybody=True), resend=False)
    assert not connection.resends
    first, must_close = connection.lend()
    assert must_close
    _answer_init(first, connection.init)
    thread, came = _asked(point)
    assert _request(first)[0] == STATFS
    os.close(first)
    thread.join(5)
    assert "connection abort" in str(came[0])
    second, must_close = connection.lend()
    assert must_close
    thread, came = _asked(point)
    _answer_statfs(second, _request(second)[1])
    thread.join(5)
    assert came[0].f_blocks == 1234  # type: ignore[attr-defined]
    os.close(second)
    connection.close()


def test_a_connection_ends_with_its_last_descriptor(point: Path) -> None:
    connection = Connection.begun(mount_fuse(point, everybody=True))
    descriptor, _ = connection.lend()
    _answer_init(descriptor, connection.init)
    connection.close()
    with pytest.raises(OSError, match="not connected"):
        os.statvfs(point)


def test_the_mount_is_what_it_was(point: Path) -> None:
    connection = Connection.begun(mount_fuse(point, everybody=True))
    entry = mount_at(point)
    assert entry is not None
    assert (entry.fstype, entry.source) == ("fuse.imagefs", "imagefs")
    assert {"ro", "nosuid", "nodev"} <= entry.options
    line = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {point} " in line)
    assert {"allow_other", "default_permissions", "user_id=0", "group_id=0"} <= set(line.split()[-1].split(","))
    connection.close()
    assert detach_all(point, point.with_name("trees"), []) == [str(point)]
    assert mount_at(point) is None


def test_a_place_that_cannot_be_is_said(tmp_path: Path, require: Callable[..., None]) -> None:
    require("root", "mounts through /dev/fuse as root")
    with pytest.raises(MountError, match="No such file"):
        mount_fuse(tmp_path / "nothing", everybody=True)


def test_what_is_no_introduction_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    monkeypatch.setattr("imagefs.fuse.handover._clone", os.dup)
    with theirs:
        theirs.send(HEADER.pack(HEADER.size, GETATTR, 2, 1, 0, 0, 0, 0) + bytes(16))
        descriptor = ours.detach()
        with pytest.raises(MountError, match="did not begin"):
            Connection.begun(descriptor)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
