"""Whatever a handler does, the mount lives: the decorator, and a real session whose handlers break."""

import errno
from dataclasses import dataclass, field

import pyfuse3
import pytest
import trio

from imagefs.errors import IntegrityError
from imagefs.fuse.guard import Requests, handler
from imagefs.fuse.operations import ImageOperations
from imagefs.fuse.refusals import Refusals


@dataclass
class Log:
    """Remembers events."""

    events: list[str] = field(default_factory=list)

    def error(self, event: str, /, **_: object) -> None:
        self.events.append(event)

    def exception(self, event: str, /, **_: object) -> None:
        self.events.append(event)


class Broken:
    """Handlers that fail in every way."""

    def __init__(self) -> None:
        self.log = Log()
        self.requests = Requests(self.log)

    @handler
    def bug(self) -> None:
        raise ZeroDivisionError

    @handler
    def late_bug(self):  # type: ignore[no-untyped-def] # noqa: ANN201
        return self._later()

    async def _later(self) -> None:
        await trio.lowlevel.checkpoint()
        raise KeyError

    @handler
    def damaged(self, node: int) -> None:
        raise IntegrityError(f"node {node}")

    @handler
    def refused(self) -> None:
        raise pyfuse3.FUSEError(errno.ENOENT)

    @handler
    def fine(self) -> int:
        return 7


@pytest.mark.parametrize(
    ("call", "number", "events"),
    [
        (lambda broken: broken.bug(), errno.EIO, ["handler_bug"]),
        (lambda broken: broken.late_bug(), errno.EIO, ["handler_bug"]),
        (lambda broken: broken.damaged(5), errno.EIO, ["request_failed"]),
        (lambda broken: broken.refused(), errno.ENOENT, []),
    ],
)
def test_a_failure_is_an_error_number(call, number: int, events: list[str]) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    broken = Broken()
    with pytest.raises(pyfuse3.FUSEError) as caught:
        trio.run(call, broken)
    assert caught.value.errno == number
    assert broken.log.events == events


def test_results_pass_and_requests_are_counted() -> None:
    broken = Broken()
    assert trio.run(broken.fine) == 7
    assert trio.run(broken.fine) == 7
    assert broken.requests.counts == {"fine": 2}


def test_a_failure_that_repeats_is_told_once() -> None:
    broken = Broken()
    for _ in range(100):
        with pytest.raises(pyfuse3.FUSEError):
            trio.run(broken.damaged, 5)
    assert broken.log.events == ["request_failed"]
    assert broken.requests.failed == 100


def test_every_handler_is_guarded() -> None:
    plain = {"init", "forget", "stacktrace", "poll"}
    for name in dir(pyfuse3.Operations):
        if name.startswith("_") or name in plain or not callable(getattr(pyfuse3.Operations, name)):
            continue
        assert hasattr(getattr(ImageOperations, name), "__wrapped__"), name
    assert issubclass(ImageOperations, Refusals)
