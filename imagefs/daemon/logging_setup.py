"""The daemon's log: one JSON object a line, in a file that is bounded.

Nothing is logged per request. Standard error goes to the same file, for what the interpreter or libfuse says when all else fails.
"""

import logging
import os
import threading
from pathlib import Path
from typing import Final, TextIO, cast

import structlog

LOG_NAME: Final = "daemon.log"
LOG_MAX: Final = 4 << 20
"""Bytes of the file before it is renamed to ``daemon.log.1`` (replacing the one before) and begun again."""


class BoundedFile:
    """An append-only file of at most about ``limit`` bytes, and one older one. Safe from several threads."""

    def __init__(self, path: Path, limit: int = LOG_MAX, *, also: tuple[int, ...] = ()) -> None:
        """``also`` are descriptors that shall go to the same file, such as standard error."""
        self._path = path
        self._limit = limit
        self._also = also
        self._lock = threading.Lock()
        self._open()

    def _open(self) -> None:
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._descriptor).st_size
        for descriptor in self._also:
            os.dup2(self._descriptor, descriptor)

    def write(self, text: str) -> int:
        """Append ``text``. A full disk loses lines, never the daemon."""
        data = text.encode(errors="backslashreplace")
        with self._lock:
            try:
                if self._size + len(data) > self._limit:
                    self._path.replace(self._path.with_name(self._path.name + ".1"))
                    os.close(self._descriptor)
                    self._open()
                os.write(self._descriptor, data)
                self._size += len(data)
            except OSError:
                return 0
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


def make_logger(path: Path | None, level: str) -> structlog.typing.FilteringBoundLogger:
    """Return the logger of this process: to the file ``path``, or to standard error."""
    # Standard error by its number: a file object of the process's own might be closed by somebody else.
    file = BoundedFile(path, also=(1, 2)) if path is not None else os.fdopen(os.dup(2), "w")
    factory = structlog.WriteLoggerFactory(file=cast("TextIO", file))
    return structlog.wrap_logger(  # type: ignore[no-any-return]
        factory(),
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Without local variables: they may hold what a log must not.
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(),
        ],
    )
