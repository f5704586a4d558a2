"""Talking to a service manager: ``sd_notify(3)``, ``sd_listen_fds(3)``. Without one, everything here does nothing.

A manager that has a descriptor in its store keeps it while no process of the service runs, and gives it to the next one. It is asked not
to watch it: one that polls as hung up would be dropped without a word.

What does not live here: the environment that says where it is (``imagefs.config``), and what is given to it (``kept``).
"""

import contextlib
import os
import socket
import time
from typing import Final

from imagefs.config import ManagerSettings

FIRST: Final = 3
"""Where the descriptors begin that it has kept (``SD_LISTEN_FDS_START``)."""

_SECONDS: Final = 2.0
_OFTEN: Final = 3.0
"""How many signs of life go into the time in which the manager wants one."""


class ServiceManager:
    """The one that started this process, if any did."""

    def __init__(self, settings: ManagerSettings) -> None:
        """Connect to nothing yet."""
        self._settings = settings
        address = settings.notify
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._said_at = 0.0

    @property
    def is_there(self) -> bool:
        """Whether there is one to talk to."""
        return bool(self._address)

    def say(self, *lines: str, descriptor: int | None = None) -> bool:
        """Send ``NAME=VALUE`` lines, with a descriptor if one is given; return whether they were taken."""
        if not self._address:
            return False
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as ours:
            # A manager that takes nothing for that long has its own watchdog.
            ours.settimeout(_SECONDS)
            ours.connect(self._address)
            socket.send_fds(ours, ["\n".join(lines).encode()], [] if descriptor is None else [descriptor])
            return True
        return False

    def ready(self, status: str) -> None:
        """Say that requests are served, at the start or after a reload."""
        self.say("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Say that :meth:`ready` follows."""
        self.say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that this process is about to end."""
        self.say("STOPPING=1")

    def is_alive(self) -> None:
        """Give a sign of life, when one is due; to be called more often than the manager wants one."""
        now = time.monotonic()
        if self._settings.watchdog and now - self._said_at >= self._settings.watchdog / _OFTEN:
            self._said_at = now
            self.say("WATCHDOG=1")

    def store(self, name: str, descriptor: int) -> bool:
        """Have it keep a descriptor; return whether it was told."""
        return self.say("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", descriptor=descriptor)

    def drop(self, name: str) -> None:
        """Have it close what it keeps by that name."""
        self.say("FDSTOREREMOVE=1", f"FDNAME={name}")

    def stored(self) -> list[tuple[str, int]]:
        """Return what it has kept for this process, by name: descriptors that are the caller's to close."""
        found = list(zip(self._settings.descriptors, range(FIRST, FIRST + len(self._settings.descriptors)), strict=True))
        for _, descriptor in found:
            os.set_inheritable(descriptor, False)
        return found
