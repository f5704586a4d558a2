"""The template's side by itself: what it says, what it makes of a request, and of a supervisor that knows no templates."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final

import pytest

from imagefs.syscalls import adopt_orphans

_CODE: Final = """
import os, socket, sys
from imagefs.daemon.life import parsed
from imagefs.daemon.template import forked
channel = forked(socket.socket(fileno=int(sys.argv[1])))
print("in", os.getpid(), parsed(channel.recv(1000))["word"], flush=True)
os._exit(7)
"""


@pytest.fixture
def channel() -> Iterator[socket.socket]:
    """The supervisor's end of the channel to a template, which has said that it is loaded."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(20)
    with theirs:
        command = [sys.executable, "-c", _CODE, str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, text=True)
    adopt_orphans()
    with process, ours:
        assert _heard(ours) == {"word": "loaded", "forks": True}
        yield ours
        ours.close()
        assert process.wait(20) in {0, 7}
    adopt_orphans(wanted=False)


def _heard(channel: socket.socket) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(channel.recv(1000))
    return found


def _fork(channel: socket.socket) -> tuple[int, socket.socket, int]:
    """Have a worker forked; return its id, the channel to it, and what reads its words."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader, writer = os.pipe()
    socket.send_fds(channel, [b'{"word": "fork"}'], [theirs.fileno(), writer])
    theirs.close()
    os.close(writer)
    said = _heard(channel)
    assert said["word"] == "forked"
    return said["pid"], ours, reader


def test_each_worker_is_a_child_of_who_asked_for_it(channel: socket.socket) -> None:
    for _ in range(2):
        pid, life, reader = _fork(channel)
        with life, os.fdopen(reader) as words:
            life.send(b'{"word": "go"}')
            # It can be waited for at once, as the process between has ended by then.
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
            assert words.read() == f"in {pid} go\n"


def test_a_supervisor_without_templates_has_the_template_serve(channel: socket.socket) -> None:
    channel.send(b'{"word": "go", "pid": 1}')
    # It has ended, and forked nobody.
    assert channel.recv(1000) == b""
