"""The proxy as tests see it: a context that starts its process, steers it and ends it."""

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

from tests.faults.ledger import Exchange, Stats
from tests.faults.link import Shape
from tests.faults.script import Fault

_ROOT: Final = Path(__file__).parents[2]
_START: Final = 20.0
_ANSWER: Final = 20.0
_END: Final = 5.0


class FaultProxy:
    """A proxy in front of the server at ``upstream`` (host:port), in a process of its own, listening on ``port`` of 127.0.0.1.

    Guarantees: a method that returned is in force for every request that comes after; ``stats`` and ``requests`` count exactly whatever a
    client has in hand. The process ends with the context, within seconds, and without it when this process ends in whatever way. Every
    wait has a deadline. Callable from any thread. Raises ``RuntimeError`` if the proxy failed, at the latest when the context ends, and
    ``ValueError`` for what makes no sense.
    """

    port: int

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._lock = threading.Lock()
        self._held = b""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.proxy", self._upstream], cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            self.port = self._read(_START)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        status = self._end()
        if kind is None and status != 0:
            raise RuntimeError(f"the proxy ended with {status}")

    @property
    def address(self) -> str:
        """Where it listens, as host:port."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Where it listens, as an S3 endpoint."""
        return f"http://{self.address}"

    @property
    def pid(self) -> int:
        """The proxy's process."""
        return self._running.pid

    def set(self, **shape: Any) -> None:
        """Change what the link is like: any fields of ``Shape``, those not named stay."""
        Shape(**shape)
        self._do("set", **shape)

    def fault(self, fault: Fault) -> int:
        """Put a fault into force; return its number, by which ``lift``, ``Stats.hits`` and ``Exchange.faults`` know it."""
        fields = {name: getattr(fault, name) for name in fault.__dataclass_fields__}
        number: int = self._do("fault", **fields)
        return number

    @contextmanager
    def during(self, fault: Fault) -> Iterator[int]:
        """Have a fault in force during a ``with``."""
        number = self.fault(fault)
        try:
            yield number
        finally:
            self.lift(number)

    def lift(self, *faults: int) -> None:
        """Take these faults out of force; what stands still because of them goes on."""
        self._do("lift", faults=faults)

    def clear(self) -> None:
        """Take all faults out of force, listen, and answer; bandwidth and delay stay."""
        self._do("clear")

    def drop(self) -> None:
        """Reset every open connection, idle ones too."""
        self._do("drop")

    def forget(self) -> None:
        """Begin to count anew. ``Stats.hits`` stays: it belongs to the faults."""
        self._do("forget")

    def stats(self) -> Stats:
        """Return the sums."""
        values = self._do("stats")
        values["hits"] = {int(fault): hits for fault, hits in values["hits"].items()}
        return Stats(**values)

    def requests(self) -> list[Exchange]:
        """Return all requests, in the order in which they came."""
        return [Exchange(**values) for values in self._do("requests")]

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the proxy is not running: use it as a context")
        return self._process

    def _do(self, name: str, **values: Any) -> Any:
        with self._lock:
            stdin = self._running.stdin
            assert stdin
            try:
                stdin.write(json.dumps([name, values]).encode() + b"\n")
                stdin.flush()
            except BrokenPipeError as error:
                raise RuntimeError("the proxy has failed; its standard error says why") from error
            return self._read(_ANSWER)

    def _read(self, seconds: float) -> Any:
        """Return the next result."""
        stdout = self._running.stdout
        assert stdout
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(stdout, select.POLLIN)
        pieces = [self._held]
        while b"\n" not in pieces[-1]:
            if not poll.poll(1000 * max(0.0, deadline - time.monotonic())):
                raise RuntimeError(f"the proxy did not answer within {seconds} s")
            pieces.append(os.read(stdout.fileno(), 1 << 20))
            if not pieces[-1]:
                raise RuntimeError("the proxy has failed; its standard error says why")
        line, _, self._held = b"".join(pieces).partition(b"\n")
        reply = json.loads(line)
        if "error" in reply:
            raise ValueError(reply["error"])
        return reply["result"]

    def _end(self) -> int:
        """End the process; return its status."""
        process = self._running
        assert process.stdin
        assert process.stdout
        with suppress(BrokenPipeError):
            process.stdin.close()
        try:
            return process.wait(_END)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait(_END)
        finally:
            process.stdout.close()
            self._process = None
