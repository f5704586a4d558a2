"""The template's own side: a process that has loaded the worker's code, and forks workers (``reserve`` has the supervisor's side).

It has one thread and opens nothing: no database, no connection, no event loop. Those do not survive a fork, and a lock that another thread
holds is never let go of in the copy. Whatever a worker imports is imported before the first fork, so that no worker mixes this code with
what an update has put on disk since.

A worker is forked twice: its parent, the process between, ends at once, and so its parent is the supervisor, as that is a subreaper. A
``clone`` with ``CLONE_PARENT`` would do the same without it, but behind the C library's back, which then has the template's thread id in
its mutexes: LMDB's, which are robust and shared, would never be let go of after a crash.
"""

import codecs
import contextlib
import gc
import importlib
import os
import signal
import socket
import sys
from typing import Final

from imagefs.daemon.life import MESSAGE_MAX, message, parsed
from imagefs.daemon.wire import described
from imagefs.errors import DaemonError
from imagefs.syscalls import end_with_parent

_ENCODINGS: Final = ("ascii", "idna")
_LMDB_OPENS_WITH: Final = "lmdb._envid"
"""What the standard library and LMDB load when they first need it."""

_DIGITS: Final = 32
_GO: Final = message("go")[:-1]


def belong_to(supervisor: int) -> None:
    """End with the supervisor, also when this process is stopped then."""
    end_with_parent(signal.SIGKILL)
    if os.getppid() != supervisor:
        sys.exit("the supervisor has ended")


def forked(channel: socket.socket) -> socket.socket:
    """Say that the code is loaded, and fork a worker each time that the supervisor asks for one.

    Returns in the worker, with its channel; the template ends here, with the supervisor.
    """
    for encoding in _ENCODINGS:
        codecs.lookup(encoding)
    with contextlib.suppress(ImportError):
        importlib.import_module(_LMDB_OPENS_WITH)
    # What the collector writes to would be copied.
    gc.collect()
    gc.freeze()
    gc.disable()
    channel.send(message("loaded", forks=True))
    while True:
        if channel.recv(MESSAGE_MAX, socket.MSG_PEEK).startswith(_GO):
            # From a supervisor of before there were templates: to it this process is the worker.
            gc.enable()
            return channel
        data, descriptors, _, _ = socket.recv_fds(channel, MESSAGE_MAX, 2, socket.MSG_CMSG_CLOEXEC)
        if not data:
            os._exit(0)
        if parsed(data)["word"] == "fork":
            try:
                pid = _fork()
            except OSError as error:
                channel.send(message("failed", error=described(DaemonError(str(error)))))
            else:
                if pid == 0:
                    break
                channel.send(message("forked", pid=pid))
        for descriptor in descriptors:
            os.close(descriptor)
    channel.close()
    gc.enable()
    life, log = descriptors
    for output in (1, 2):
        os.dup2(log, output)
    os.close(log)
    return socket.socket(fileno=life)


def _fork() -> int:
    """Fork a process whose parent has ended when this returns; return its id, and 0 in it."""
    reader, writer = os.pipe()
    try:
        between = os.fork()
        if between == 0:
            with contextlib.suppress(OSError):
                pid = os.fork()
                if pid == 0:
                    return 0
                os.write(writer, str(pid).encode())
            os._exit(0)
        os.waitpid(between, 0)
        os.set_blocking(reader, False)
        with contextlib.suppress(BlockingIOError):
            return int(os.read(reader, _DIGITS))
        raise OSError("no process can be forked")
    finally:
        os.close(reader)
        os.close(writer)
