"""A service that listens before the boundary and connects out after it, in other networks; and what else is open at the boundary."""

from pathlib import Path
from typing import Any

import pytest

from snapshotstore.runner.runner import COLD, RESTORED, Answer
from tests.snapshots.place import Network
from tests.snapshots.services import Place

SERVICE = """
import os, socket
from snapshotstore import App, enter, method

app = App("network")

@app.cls(image="python:1", enable_memory_snapshot=True, environment=("PEER",))
class Service:
    @enter(snap=True)
    def load(self): self.listening = socket.create_server(("0.0.0.0", 8080))
    @enter(snap=False)
    def connect(self):
        host, _, port = os.environ["PEER"].rpartition(":")
        self.database = socket.create_connection((host, int(port)), 20)
        self.greeting = self.database.makefile().readline().strip()
    @method()
    def ask(self, x):
        self.listening.settimeout(20)
        connection, _ = self.listening.accept()
        with connection:
            connection.sendall(b"hello %d\\n" % x)
        return [self.greeting, self.database.getsockname()[0]]
"""

PEER = """
import socket, sys, time
here, there, name = sys.argv[1:]
listening = socket.create_server((here, 0))
print(listening.getsockname()[1])
connection, _ = listening.accept()
connection.sendall(b"database " + name.encode() + b"\\n")
until = time.monotonic() + 20
while True:
    try:
        with socket.create_connection((there, 8080), 5) as asking: print(asking.makefile().read(), end="")
        break
    except OSError:
        if time.monotonic() > until: raise
        time.sleep(0.01)
"""
"""The database, which then calls the service."""


@pytest.fixture
def networks(tmp_path: Path, service_place: Place) -> Any:
    made = [Network(tmp_path / f"network{number}", number) for number in (8, 9)]
    yield made
    for network in made:
        network.close()


def test_it_listens_before_and_connects_after_in_another_network(
    service_place: Place, networks: list[Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = service_place.entry(SERVICE)
    answers: list[Answer] = []
    for number, network in enumerate(networks):
        with network.peer(PEER, network.peer_address, network.address, f"n{number}") as peer:
            assert peer.stdout is not None
            monkeypatch.setenv("PEER", f"{network.peer_address}:{peer.stdout.readline().strip()}")
            answers.append(service_place.call(service, "ask", number, network=network.path, host=f"host{number}"))
            assert peer.stdout.readline() == f"hello {number}\n"
    assert [answer.result for answer in answers] == [[f"database n{number}", network.address] for number, network in enumerate(networks)]
    assert [(answer.started, answer.reason, answer.notes) for answer in answers] == [
        (COLD, "there is no snapshot of it yet", ()),
        (RESTORED, "", ()),
    ]


CONNECTED = """
import os, socket
from snapshotstore import App, enter, method

app = App("connected")

@app.cls(image="python:1", enable_memory_snapshot=True, environment=("PEER",))
class Service:
    @enter(snap=True)
    def load(self):
        host, _, port = os.environ["PEER"].rpartition(":")
        self.database = socket.create_connection((host, int(port)), 20)
    @method()
    def ask(self, x): return [x, self.database.makefile().readline().strip()]
"""


def test_a_connection_at_the_boundary_is_a_note_and_the_answer_comes(
    service_place: Place, networks: list[Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = networks[0]
    service = service_place.entry(CONNECTED)
    with network.peer(PEER, network.peer_address, network.address, "x") as peer:
        assert peer.stdout is not None
        there = f"{network.peer_address}:{peer.stdout.readline().strip()}"
        monkeypatch.setenv("PEER", there)
        answer = service_place.call(service, "ask", 5, network=network.path)
    assert (answer.result, answer.started) == ([5, "database x"], COLD)
    (note,) = answer.notes
    assert note.startswith("no snapshot was made: ")
    assert there in note
    assert service_place.refs() == []


OPEN = """
import ctypes, fcntl, mmap, os, select, signal, socket, threading
from snapshotstore import App, enter, method

app = App("open")
libc = ctypes.CDLL(None, use_errno=True)

class Pipe:
    def load(self): self.r, self.w = os.pipe(); os.write(self.w, b"kept")
    def ask(self): return os.read(self.r, 9) == b"kept"
class Pair:
    def load(self): self.one, self.two = socket.socketpair(); self.one.sendall(b"kept")
    def ask(self): return self.two.recv(9) == b"kept"
class Named:
    def load(self): self.s = socket.socket(socket.AF_UNIX); self.s.bind("/tmp/s"); self.s.listen(1)
    def ask(self):
        asking = socket.socket(socket.AF_UNIX); asking.connect("/tmp/s")
        accepted, _ = self.s.accept(); accepted.send(b"x")
        return asking.recv(1) == b"x"
class Udp:
    def load(self): self.s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); self.s.bind(("127.0.0.1", 0))
    def ask(self): self.s.sendto(b"x", self.s.getsockname()); return self.s.recv(1) == b"x"
class Deleted:
    def load(self): self.f = open("/tmp/gone", "w+"); self.f.write("kept"); self.f.flush(); os.unlink("/tmp/gone")
    def ask(self): self.f.seek(0); return self.f.read() == "kept"
class Mapped:
    def load(self):
        with open("/tmp/x", "w+b") as f: f.truncate(9000); self.m = mmap.mmap(f.fileno(), 9000)
        self.m[:4] = b"kept"; os.unlink("/tmp/x")
    def ask(self): return self.m[:4] == b"kept"
class Locked:
    def load(self):
        self.f = open("/tmp/flock", "w"); fcntl.flock(self.f, fcntl.LOCK_EX)
        self.g = open("/tmp/lockf", "w"); fcntl.lockf(self.g, fcntl.LOCK_EX)
    def ask(self):
        with open("/tmp/flock") as f:
            try: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError: return True
class Polled:
    def load(self):
        self.e = select.epoll(); self.v = libc.eventfd(3, 0); self.e.register(self.v)
        self.t = libc.timerfd_create(1, 0); self.e.register(self.t)
    def ask(self): return self.v in [number for number, _ in self.e.poll(5)] and os.read(self.v, 8)[0] == 3
class Child:
    def load(self):
        self.child = os.fork()
        if not self.child: signal.pause()
    def ask(self): os.kill(self.child, 9); return os.waitpid(self.child, 0)[1] == 9
class Threads:
    def load(self):
        self.go = threading.Event(); self.ts = [threading.Thread(target=self.go.wait) for _ in range(20)]
        for t in self.ts: t.start()
    def ask(self): self.go.set(); return [t.join(5) for t in self.ts] == [None] * 20 and not any(t.is_alive() for t in self.ts)
class Inotify:
    def load(self):
        self.i = libc.inotify_init1(os.O_NONBLOCK); os.mkdir("/tmp/w")
        assert libc.inotify_add_watch(self.i, b"/tmp/w", 0x100) > 0
    def ask(self): open("/tmp/w/new", "w").close(); return b"new" in os.read(self.i, 4096)
class Itself:
    def load(self):
        listening = socket.create_server(("127.0.0.1", 0))
        self.c = socket.create_connection(listening.getsockname()); self.a, _ = listening.accept()
    def ask(self): self.c.sendall(b"x"); return self.a.recv(1) == b"x"
class Ring:
    def load(self):
        self.u = libc.syscall(425, 8, ctypes.create_string_buffer(120))
        assert self.u > 0, os.strerror(ctypes.get_errno())
    def ask(self): return self.u > 0

@app.cls(image="python:1", enable_memory_snapshot=True)
class Service:
    @enter(snap=True)
    def load(self):
        self.open = [kind() for kind in (KINDS,)]
        for one in self.open: one.load()
    @method()
    def ask(self): return {type(one).__name__: one.ask() for one in self.open}
"""

ALL = {"Pipe", "Pair", "Named", "Udp", "Deleted", "Mapped", "Locked", "Polled", "Child", "Threads", "Inotify", "Itself"}
REFUSED = {
    "criu": {"Ring": "it has an io_uring", "Itself": "it has a TCP connection from 127.0.0.1", "Inotify": "an inotify or fanotify watch"},
    "runsc": {},
}
"""What an engine does not take along, and what it says of it. All else works after a restore as before."""


def test_what_is_open_at_the_boundary_works_after_a_restore(service_place: Place) -> None:
    kinds = sorted(ALL - REFUSED[service_place.engine].keys())
    service = service_place.entry(OPEN.replace("KINDS", ", ".join(kinds)))
    for host, started in (("first", COLD), ("second", RESTORED)):
        answer = service_place.call(service, "ask", host=host)
        assert answer.result == dict.fromkeys(kinds, True)
        assert (answer.started, answer.notes) == (started, ())


@pytest.mark.parametrize("kind", REFUSED["criu"])
@pytest.mark.parametrize("engine_name", ["criu"], indirect=True)
def test_what_cannot_be_frozen_is_named_and_the_answer_comes(service_place: Place, kind: str) -> None:
    answer = service_place.call(service_place.entry(OPEN.replace("KINDS", kind)), "ask")
    assert (answer.result, answer.started) == ({kind: True}, COLD)
    (note,) = answer.notes
    assert REFUSED["criu"][kind] in note
    assert service_place.refs() == []
