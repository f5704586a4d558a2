"""A log for a process that says little: lines of the form that ``logging_setup`` gives, without what that needs to be imported.

The file is opened for each line, since the process that writes most of it begins it anew when it is full.
"""

import contextlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from imagefs.config import LOG_LEVELS

_STDERR: Final = 2


class PlainLog:
    """Logs events of ``level`` and above to the file ``path``, or to standard error."""

    def __init__(self, path: Path | None, level: str) -> None:
        """Open nothing yet."""
        self._path = path
        self._levels = LOG_LEVELS[LOG_LEVELS.index(level) :]

    def info(self, event: str, **fields: object) -> None:
        """Log what is as it should be."""
        self._write("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log what is worth knowing."""
        self._write("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Log what is wrong."""
        self._write("error", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, object]) -> None:
        if level not in self._levels:
            return
        at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        line = json.dumps({**fields, "event": event, "level": level, "timestamp": at}, default=str).encode() + b"\n"
        # A full disk loses lines, never the daemon.
        with contextlib.suppress(OSError):
            if self._path is None:
                os.write(_STDERR, line)
                return
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)
