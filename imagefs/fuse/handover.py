"""Handing one FUSE connection from process to process: the kernel's side of it stays, whoever answers.

The kernel introduces itself on a connection once, with a FUSE_INIT request. libfuse will not serve before it has read one, so a process
that comes later is given the same one again: it begins on one end of a socket pair into which the recorded request was written, and while
it answers, :meth:`Takeover.switch` puts the connection in the place of that end. So its answer goes to the kernel: the first process's is
the one that the kernel waits for; to those of later ones it says ENOENT, which libfuse takes for a request that was given up.

What a dead process had read and not answered is still the kernel's. From Linux 6.9 on it sends all of that again when it is told to
(FUSE_NOTIFY_RESEND), which a successor does before it reads anything. An older kernel can only end these requests, and does so when the
descriptor that they were read through is closed: there each process gets a descriptor of its own of the same connection, and a program
that waited for an answer gets an error, in place of waiting for ever.

:class:`Connection` is what is kept by the process that lives on, :class:`Takeover` is for the one that serves. Nothing here imports
pyfuse3. What does not live here: mounting (``imagefs.mount.fusemount``), and what is answered.
"""

import fcntl
import os
import select
import socket
import struct
from pathlib import Path
from typing import Final

from imagefs.errors import DeadlineError, MountError

DEVICE: Final = Path("/dev/fuse")

_INIT_SECONDS: Final = 10.0
_READ_MAX: Final = 1 << 17  # at least what the kernel's largest request without data may take (FUSE_MIN_READ_BUFFER is 8 KiB)
_DEV_IOC_CLONE: Final = 0x8004E500  # _IOR(229, 0, uint32_t)
_HEADER: Final = struct.Struct("=IIQQIIII")  # struct fuse_in_header: length, opcode, unique, nodeid, uid, gid, pid, padding
_INIT: Final = struct.Struct("=IIII")  # struct fuse_init_in begins with major, minor, max_readahead, flags; flags2 follows
_FLAGS2: Final = struct.Struct("=I")
_OP_INIT: Final = 26
_FLAG_EXTENDED: Final = 1 << 30  # FUSE_INIT_EXT: there is flags2
_FLAG2_RESEND: Final = 1 << 39 - 32  # FUSE_HAS_RESEND
_RESEND: Final = struct.pack("=IiQ", 16, 7, 0)  # struct fuse_out_header of a notification: length, code, unique 0


def resends(init: bytes) -> bool:
    """Say whether a kernel that introduced itself so sends requests again when it is told to."""
    _, _, _, flags = _INIT.unpack_from(init, _HEADER.size)
    at = _HEADER.size + _INIT.size
    return bool(flags & _FLAG_EXTENDED) and len(init) >= at + _FLAGS2.size and bool(_FLAGS2.unpack_from(init, at)[0] & _FLAG2_RESEND)


class Connection:
    """A mounted connection, kept open while processes that serve it come and go.

    ``resends``: what a process leaves unanswered is sent to the next one. ``answered`` is for the keeper to note when the kernel's
    introduction was: before that, a process that dies takes the connection along.
    """

    def __init__(self, descriptor: int, init: bytes, *, own: int | None = None, resends: bool) -> None:
        """``own`` is a descriptor for the first process alone, if it must not be ``descriptor``. Both are this object's to close."""
        self._descriptor = descriptor
        self._own = own
        self.init = init
        self.resends = resends
        self.answered = False

    @classmethod
    def begun(cls, descriptor: int, *, resend: bool | None = None) -> "Connection":
        """Read the kernel's introduction from the descriptor of a new mount, which is this object's from then on.

        ``resend`` False: as with a kernel that sends nothing again; None: as this one says. ``DeadlineError`` if it says nothing.
        """
        clone = None
        try:
            # A request is answered through the descriptor that it was read from; which one that has to be, the request itself tells.
            clone = _clone(descriptor)
            init = _read_init(clone)
        except BaseException:
            os.close(descriptor)
            if clone is not None:
                os.close(clone)
            raise
        if resends(init) and resend is not False:
            os.close(descriptor)
            return cls(clone, init, resends=True)
        return cls(descriptor, init, own=clone, resends=False)

    @classmethod
    def adopted(cls, descriptor: int, init: bytes) -> "Connection":
        """Go on with a connection that another keeper has begun and that was answered."""
        found = cls(descriptor, init, resends=resends(init))
        found.answered = True
        return found

    @property
    def descriptor(self) -> int:
        """What keeps the connection: for who is to keep it when this process is gone."""
        return self._descriptor

    def lend(self) -> tuple[int, bool]:
        """Return a descriptor for a process to serve, and whether the caller has to close it when that process has it."""
        if self.resends:
            return self._descriptor, False
        own, self._own = self._own, None
        return (_clone(self._descriptor) if own is None else own), True

    def close(self) -> None:
        """Let go. With the last process that serves it the connection ends, and whoever still waits for an answer gets an error."""
        os.close(self._descriptor)
        if self._own is not None:
            os.close(self._own)


class Takeover:
    """A connection on its way to libfuse in this process, which opens :attr:`path`.

    :meth:`switch` has to be called when libfuse has read the introduction and has not answered it: from pyfuse3's ``Operations.init``.
    """

    def __init__(self, descriptor: int, init: bytes, *, resend: bool, is_asked_again: bool) -> None:
        """Take ``descriptor``, which is closed. ``place`` is where libfuse has the connection after :meth:`switch`.

        ``resend``: have the kernel send again what a process before has not answered. ``is_asked_again``: so will the next one.
        """
        self.is_asked_again = is_asked_again
        self._descriptor = descriptor
        self._resend = resend
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            theirs.send(init)
        self.place = ours.detach()

    @property
    def path(self) -> str:
        """What libfuse takes for the descriptor, in the place of a mountpoint."""
        return f"/dev/fd/{self.place}"

    def switch(self) -> str:
        """Put the connection where libfuse reads and writes; return why the kernel would not send requests again, if it would not."""
        os.dup2(self._descriptor, self.place, inheritable=False)
        os.close(self._descriptor)
        if self._resend:
            # Before anything is read here: what this process had read by then would be sent again too.
            try:
                os.write(self.place, _RESEND)
            except OSError as error:
                return error.strerror or str(error)
        return ""

    def mute(self) -> None:
        """Let nothing reach the kernel any more that this process says: what it has not answered is its successor's to answer."""
        nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(nowhere, self.place, inheritable=False)
        os.close(nowhere)


def _clone(descriptor: int) -> int:
    """Return another descriptor of the same connection: requests are read from either, and answered through the one they were read from."""
    try:
        clone = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise MountError(f"{DEVICE} cannot be opened: {error.strerror}", hint="`imagefs doctor` says what is missing") from error
    try:
        fcntl.ioctl(clone, _DEV_IOC_CLONE, struct.pack("=I", descriptor))
    except OSError as error:
        os.close(clone)
        raise MountError(f"{DEVICE} cannot be shared between processes: {error.strerror}", hint="Linux 4.2 or newer is needed") from error
    return clone


def _read_init(descriptor: int) -> bytes:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(_INIT_SECONDS * 1000):
        raise DeadlineError("the kernel did not start the FUSE session")
    try:
        init = os.read(descriptor, _READ_MAX)
    except OSError as error:
        raise MountError(f"the FUSE session ended before it began: {error.strerror}") from error
    if len(init) < _HEADER.size + _INIT.size or _HEADER.unpack_from(init)[1] != _OP_INIT:
        raise MountError("the kernel did not begin the FUSE session as it should")
    return init
