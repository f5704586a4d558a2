"""The proxy's process: a listener, a thread a connection, and commands on standard input.

    python -m tests.faults.proxy 127.0.0.1:8333     # one JSON object a line in, one out: what FaultProxy speaks
    python -m tests.faults.proxy --bench            # what it carries, and how exactly it shapes

Guarantees: a command is in force when its answer comes; the process ends with its standard input or with its parent, whichever ends
first, and at once if a thread of it fails, so that no test goes on with half a proxy. Threads, since they were measured to carry more a
second of CPU than asyncio, and to hold a body up mid-way with a plain wait.
"""

import argparse
import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from tests.faults.ledger import Ledger
from tests.faults.link import Link
from tests.faults.relay import Relay
from tests.faults.script import Fault, Script

_PR_SET_TIMERSLACK: Final = 29


@dataclass(slots=True)
class Server:
    """Listens on a port of its own on loopback, and keeps that port also while it refuses connections."""

    upstream: tuple[str, int]
    link: Link = field(default_factory=Link)
    script: Script = field(default_factory=Script)
    ledger: Ledger = field(default_factory=Ledger)
    _port: socket.socket = field(default_factory=socket.socket)
    _listener: socket.socket | None = None
    _relays: set[Relay] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> int:
        """Listen; return the port."""
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._port.bind(("127.0.0.1", 0))
        self._listen()
        port: int = self._port.getsockname()[1]
        return port

    def command(self, name: str, values: dict[str, Any]) -> Any:
        """Do what a command says; return its result."""
        match name:
            case "set":
                self._set(values)
            case "fault":
                return self.script.add(Fault(**values))
            case "lift" | "clear":
                self.script.lift(values.get("faults"))
                with self.link.changed:
                    self.link.changed.notify_all()
                if name == "clear":
                    self._set({"refuse": False, "black_hole": False})
            case "drop":
                with self._lock:
                    for relay in self._relays:
                        relay.drop()
            case "forget":
                self.ledger.forget()
            case "stats":
                return asdict(self.ledger.stats(self.script.hits()))
            case "requests":
                return self.ledger.exchanges()
            case _:
                raise ValueError(f"no such command: {name}")
        return None

    def _set(self, values: dict[str, Any]) -> None:
        self.link.change(**values)
        if self.link.shape.refuse and self._listener is not None:
            _accepted(self._listener)
            # Not close: a thread waits in accept. From here on the kernel refuses.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener = None
        elif not self.link.shape.refuse and self._listener is None:
            self._listen()

    def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(self._port.getsockname())
        listener.listen(1024)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                relay = Relay(client, self.upstream, self.link, self.script, self.ledger)
                with self._lock:
                    self._relays.add(relay)
                threading.Thread(target=self._run, args=(relay,), daemon=True).start()

    def _run(self, relay: Relay) -> None:
        relay.run()
        with self._lock:
            self._relays.discard(relay)


def _accepted(listener: socket.socket) -> None:
    """Wait until nobody waits to be accepted: who is connected stays connected, as far as a client can tell."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    deadline = time.monotonic() + 1.0
    while poll.poll(0) and time.monotonic() < deadline:
        time.sleep(0.0005)


def _obey(server: Server) -> None:
    """Answer commands until there are no more, or until the parent is gone."""
    parent, held = os.getppid(), b""
    while os.getppid() == parent:
        if not select.select([0], [], [], 0.5)[0]:
            continue
        more = os.read(0, 1 << 16)
        if not more:
            return
        *lines, held = (held + more).split(b"\n")
        for line in lines:
            try:
                name, values = json.loads(line)
                reply = {"result": server.command(name, values)}
            except (ValueError, TypeError) as error:
                reply = {"error": str(error)}
            print(json.dumps(reply), flush=True)


def _fail(failure: threading.ExceptHookArgs) -> None:
    traceback.print_exception(failure.exc_type, failure.exc_value, failure.exc_traceback)
    sys.stderr.flush()
    os._exit(70)


def main() -> None:
    """Run the proxy, or its bench."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.proxy")
    parser.add_argument("upstream", nargs="?", help="host:port of the server")
    parser.add_argument("--bench", action="store_true", help="print throughput and accuracy, and end")
    arguments = parser.parse_args()
    if arguments.bench:
        from tests.faults.bench import bench  # noqa: PLC0415 - the proxy itself starts without it

        bench()
        return
    if not arguments.upstream:
        parser.error("the server's host:port is missing")
    host, _, port = arguments.upstream.rpartition(":")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the test, which ends this process
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)  # threads to come inherit it; 50 µs of slack a piece would cost accuracy
    threading.excepthook = _fail
    server = Server((host, int(port)))
    print(json.dumps({"result": server.start()}), flush=True)
    with contextlib.suppress(BrokenPipeError):
        _obey(server)
    os._exit(0)


if __name__ == "__main__":
    main()
