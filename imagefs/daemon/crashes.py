"""Of what workers died, and how long to wait before the next: a crash loop must cost little, and tell how it began.

The first crash of a series is the one that explains the others, so it is kept, in memory and in a file. A series ends when a worker has
served for :data:`CALM_SECONDS`. No processes and no waiting here.
"""

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

PAUSES: Final = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds before a worker is started again, by how many of this series have died before."""

CALM_SECONDS: Final = 60.0
_LOG_TAIL: Final = 4000


class Crashes:
    """The crashes of one daemon. ``first`` is the first one of the last series: ``{at, worker_pid, how, error, log}``."""

    def __init__(self, path: Path, log: Path | None, *, pauses: Sequence[float] = PAUSES, wall: Callable[[], float] = time.time) -> None:
        """``path`` is where the first crash is written to; ``log`` is where workers say things, also their last ones."""
        self._pauses = pauses
        self._path = path
        self._log = log
        self._wall = wall
        self._series = 0
        self.first: dict[str, Any] | None = None
        path.unlink(missing_ok=True)

    def note(self, how: str, *, pid: int | None, error: str | None, served: float) -> float:
        """Note that a worker died which had served for so many seconds; return after how many the next may be started."""
        if served >= CALM_SECONDS:
            self._series = 0
        pause = self._pauses[min(self._series, len(self._pauses) - 1)]
        self._series += 1
        if self._series == 1:
            self.first = {"at": self._wall(), "worker_pid": pid, "how": how, "error": error, "log": self.log_end()}
            with contextlib.suppress(OSError):
                self._path.write_text(json.dumps(self.first, indent=1) + "\n", encoding="utf-8")
        return pause

    def log_end(self) -> str:
        """Return the end of the log."""
        if self._log is not None:
            with contextlib.suppress(OSError), self._log.open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - _LOG_TAIL))
                return file.read(_LOG_TAIL).decode(errors="replace")
        return ""
