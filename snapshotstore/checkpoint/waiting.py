"""Keepers that have begun before anybody knows what they are to keep: an interpreter takes longer to begin than many a sandbox.

Promises: one that waits has done nothing yet, and holds nothing; it ends when it is closed, and when whoever began it ends, however that
is. What it is told is one message: it is told all or nothing.
"""

import os
import socket
import subprocess
import sys
import threading
from array import array
from contextlib import suppress
from typing import Final

_SAID_MAX: Final = 65536
_END_SECONDS: Final = 10.0


class Waiting:
    """A keeper that waits, in a session of its own. ``process`` is what has begun."""

    def __init__(self, module: str) -> None:
        """Begin ``module`` as a program, whose argument is the descriptor for ``told.told``. ``OSError``."""
        self._talk, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._said = os.memfd_create("said")
        try:
            self.process = subprocess.Popen(  # noqa: S603 - this interpreter
                [sys.executable, "-P", "-m", module, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                cwd="/",
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except BaseException:
            self._talk.close()
            os.close(self._said)
            raise
        finally:
            theirs.close()

    def tell(self, request: bytes, *descriptors: int) -> None:
        """Tell it what to keep. Whether it has ended meanwhile whoever waits for its answer finds out: nobody has ``descriptors`` then."""
        with os.fdopen(os.memfd_create("request"), "wb") as file:
            file.write(request)
            file.flush()
            rights = array("i", [file.fileno(), *descriptors])
            with suppress(BrokenPipeError, ConnectionResetError):
                self._talk.sendmsg([b"!"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

    @property
    def said(self) -> str:
        """The last line that it has written, if any: why it ended."""
        return os.pread(self._said, _SAID_MAX, 0).decode(errors="replace").strip().rpartition("\n")[2]

    def close(self) -> None:
        """Let go of it: one that was told nothing ends then; one that was has parted from ``process``, which has ended."""
        self._talk.close()
        os.close(self._said)
        try:
            self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Spare:
    """At most one keeper that waits for who comes next. It may be used by several threads."""

    def __init__(self, module: str) -> None:
        """Begin nothing yet; ``module`` is the keeper's."""
        self._module = module
        self._lock = threading.Lock()
        self._waiting: Waiting | None = None

    def prepare(self) -> None:
        """Begin one, unless one waits. That none can begin the next one finds out."""
        with self._lock, suppress(OSError):
            if self._waiting is None:
                self._waiting = Waiting(self._module)

    def take(self) -> Waiting:
        """Return one for the caller to close: the one that waits, or a new one. ``OSError``."""
        with self._lock:
            found, self._waiting = self._waiting, None
        if found is not None and found.process.poll() is not None:
            found.close()
            found = None
        return found or Waiting(self._module)

    def close(self) -> None:
        """End the one that waits, if one does."""
        with self._lock:
            found, self._waiting = self._waiting, None
        if found is not None:
            found.close()
