"""What the proxy carries and how exactly it shapes, printed: ``python -m tests.faults.proxy --bench``."""

import os
import socket
import threading
import time
from pathlib import Path
from typing import Final

from tests.faults.control import FaultProxy
from tests.faults.origin import Origin

_OBJECT: Final = 64 << 20
_SECONDS: Final = 2.0


class _Reader:
    """Reads an object over and over on a connection of its own until ``stop``; counts the bytes."""

    def __init__(self, port: int, size: int, stop: threading.Event) -> None:
        self.bytes = 0
        self._port, self._size, self._stop = port, size, stop
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        buffer = memoryview(bytearray(1 << 20))
        with socket.create_connection(("127.0.0.1", self._port)) as sock:
            while not self._stop.is_set():
                sock.sendall(b"GET /bucket/object-%d HTTP/1.1\r\nHost: bench\r\n\r\n" % self._size)
                head = sock.recv_into(buffer)
                left = self._size - (head - bytes(buffer[:head]).index(b"\r\n\r\n") - 4)
                self.bytes += self._size - left
                while left and not self._stop.is_set():
                    count = sock.recv_into(buffer[:left])
                    left -= count
                    self.bytes += count


def measure(port: int, connections: int, seconds: float, size: int = _OBJECT) -> tuple[float, list[int]]:
    """Read for ``seconds`` on so many connections at once; return bytes a second, and the bytes of each connection."""
    stop = threading.Event()
    readers = [_Reader(port, size, stop) for _ in range(connections)]
    for reader in readers:
        reader.thread.start()
    before, begun = [reader.bytes for reader in readers], time.monotonic()
    time.sleep(seconds)
    after, took = [reader.bytes for reader in readers], time.monotonic() - begun
    stop.set()
    for reader in readers:
        reader.thread.join()
    each = [new - old for old, new in zip(before, after, strict=True)]
    return sum(each) / took, each


def cpu_seconds(pid: int) -> float:
    """Return the seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def bench() -> None:
    """Print a line for each kind of link and number of connections."""
    print("link MB/s  connections   MB/s     off   least/most  CPU of the proxy  MB a CPU second")
    with Origin() as origin, FaultProxy(origin.address) as proxy:
        for bandwidth in (None, 200e6, 50e6, 1e6):
            proxy.set(bandwidth=bandwidth)
            for connections in (1, 4, 16):
                before = cpu_seconds(proxy.pid)
                rate, each = measure(proxy.port, connections, _SECONDS)
                cpu = cpu_seconds(proxy.pid) - before
                off = "" if bandwidth is None else f"{100 * (rate / bandwidth - 1):+.2f} %"
                name = "none" if bandwidth is None else f"{bandwidth / 1e6:.0f}"
                share, load = min(each) / max(each), 100 * cpu / _SECONDS
                per = rate * _SECONDS / 1e6 / max(cpu, 0.01)
                print(f"{name:>9}  {connections:>11}  {rate / 1e6:>7.1f}  {off:>8}  {share:>10.2f}  {load:>14.0f} %  {per:>15.0f}")
