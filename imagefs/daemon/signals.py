"""Signals as something that a loop waits for, beside its descriptors. For the main thread only."""

import signal
import socket
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Final, Self

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD)
"""What a supervisor heeds."""


class Signals:
    """While it is entered, each of ``numbers`` makes it readable, and :meth:`come` calls ``arrived`` with those that have come."""

    def __init__(self, numbers: Sequence[int], arrived: Callable[[int], object]) -> None:
        """Change nothing yet."""
        self._numbers = numbers
        self._arrived = arrived

    def __enter__(self) -> Self:
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._theirs.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, _noted) for number in self._numbers}
        # What has come while this process became what it is.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._ours.close()
        self._theirs.close()

    def fileno(self) -> int:
        """What a selector waits on."""
        return self._ours.fileno()

    def come(self) -> None:
        """See to the signals that have come."""
        for number in self._ours.recv(4096):
            self._arrived(number)


def _noted(_number: int, _frame: FrameType | None) -> None:
    """The interpreter has written the number to the socket by now."""
