"""Of what workers died, and how long to wait before the next: a crash loop must cost little, and tell how it began.

The first crash of a series is the one that explains the others, so it is kept, in memory and in a file. A series ends when a worker has
served for :data:`CALM_SECONDS`.

How long to wait is another matter. A worker that served before it died was worth its start, and readers are better off with the next one
than without: what it served pays for its death. Debts are what deaths leave that came too soon, and pauses grow with them. So a worker that
dies at once is started ever more rarely, and what is started without a pause has served for :data:`PRICE_SECONDS` each, on average.

No processes and no waiting here.
"""

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

PAUSES: Final = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds before a worker is started again, by how many deaths are not paid for."""

CALM_SECONDS: Final = 60.0
PRICE_SECONDS: Final = 0.1
"""What has to be served for a death: some times what a start takes."""

_LOG_TAIL: Final = 4000


class Crashes:
    """The crashes of one daemon. ``first`` is the first one of the last series: ``{at, worker_pid, how, error, log}``."""

    def __init__(self, path: Path, log: Path | None, *, pauses: Sequence[float] = PAUSES, wall: Callable[[], float] = time.time) -> None:
        """``path`` is where the first crash is written to; ``log`` is where workers say things, also their last ones."""
        self._pauses = pauses
        self._path = path
        self._log = log
        self._wall = wall
        self._in_series = False
        self._debt = 0.0
        self.first: dict[str, Any] | None = None
        path.unlink(missing_ok=True)

    def note(self, how: str, *, pid: int | None, error: str | None, served: float) -> float:
        """Note that a worker died which had served for so many seconds; return after how many the next may be started."""
        self._debt = max(0.0, self._debt - served / PRICE_SECONDS)
        pause = self._pauses[min(int(self._debt), len(self._pauses) - 1)]
        self._debt = min(self._debt + 1, float(len(self._pauses)))
        if served >= CALM_SECONDS or not self._in_series:
            self._in_series = True
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
