"""What stands between a handler and pyfuse3: whatever goes wrong in a handler is an error number for one caller, never a dead mount.

Without it an exception other than FUSEError ends ``pyfuse3.main`` and leaves the caller hanging.
"""

import errno
import functools
import time
from collections.abc import Awaitable, Callable
from types import CoroutineType
from typing import Any, Final, Protocol

import pyfuse3

from imagefs.errors import ImageFSError

_REPEAT_SECONDS: Final = 5.0


class RequestLog(Protocol):
    """``structlog``'s bound logger, as far as it is needed."""

    def error(self, event: str, /, *args: Any, **fields: Any) -> Any:  # structlog's signature
        """Log an event with fields."""

    def exception(self, event: str, /, *args: Any, **fields: Any) -> Any:  # structlog's signature
        """Log an event with fields and the exception being handled."""


class Requests:
    """Counts requests and tells of those that failed, the same one once in a while."""

    __slots__ = ("_last", "_log", "counts", "failed", "internal_errors")

    def __init__(self, log: RequestLog) -> None:
        """``log`` is told of failures, never of requests."""
        self._log = log
        self._last: tuple[str, str, float] = ("", "", 0.0)
        self.counts: dict[str, int] = {}
        self.failed = 0
        self.internal_errors = 0

    def expected(self, op: str, args: tuple[object, ...], error: ImageFSError) -> None:
        """Tell of a request that failed for a reason that has a name."""
        self.failed += 1
        now = time.monotonic()
        last_op, last_message, last_time = self._last
        if op != last_op or error.message != last_message or now - last_time > _REPEAT_SECONDS:
            self._last = (op, error.message, now)
            self._log.error("request_failed", op=op, node=args[0] if args else 0, error=error.message, kind=type(error).__name__)

    def unexpected(self, op: str, args: tuple[object, ...]) -> None:
        """Tell of a request that met a bug."""
        self.internal_errors += 1
        self._log.exception("handler_bug", op=op, node=args[0] if args else 0)


class HasRequests(Protocol):
    """What :func:`handler` decorates methods of."""

    @property
    def requests(self) -> Requests:
        """Where requests are counted."""


def handler(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Make a pyfuse3 handler of a plain method, or of one that returns a coroutine when it has to wait.

    A plain method cannot be interrupted between two of its lines, and costs no coroutine of its own.
    """
    op = function.__name__

    @functools.wraps(function)
    async def guarded(self: HasRequests, *args: Any) -> Any:  # as many types as there are handlers
        requests = self.requests
        counts = requests.counts
        counts[op] = counts.get(op, 0) + 1
        try:
            result = function(self, *args)
            return (await result) if type(result) is CoroutineType else result
        except pyfuse3.FUSEError:
            raise
        except ImageFSError as error:
            requests.expected(op, args, error)
            raise pyfuse3.FUSEError(errno.EIO) from None
        except Exception:  # noqa: BLE001 # see the module's first line
            requests.unexpected(op, args)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return guarded
