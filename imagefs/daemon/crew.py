"""All processes of a daemon but this one: heard, watched, and buried. What follows from what they say, and from their ends, is for others.

Each look hears what a process has said before it takes note of its end. One that was killed and does not end, as it hangs in the kernel,
counts as ended after :data:`DEATH_SECONDS`, and is left behind: watched no more, and buried when it does end.
"""

import contextlib
import selectors
import time
from collections.abc import Callable
from typing import Any, Final

from imagefs.daemon.plain_log import PlainLog
from imagefs.daemon.workers import Worker, bury_others

DEATH_SECONDS: Final = 5.0


class Crew:
    """See the module."""

    def __init__(
        self,
        known: Callable[[], list[Worker]],
        heard: Callable[[Worker, dict[str, Any]], None],
        ended: Callable[[Worker], None],
        selector: selectors.BaseSelector,
        log: PlainLog,
    ) -> None:
        """``known`` are those that count; ``heard`` is told what one says, and ``ended`` which one has to be gone on without."""
        self._known = known
        self._heard = heard
        self._ended = ended
        self._selector = selector
        self._log = log
        self._left: list[Worker] = []

    def all(self) -> list[Worker]:
        """Return all of them, also those that hang."""
        return self._known() + self._left

    def due(self) -> list[float]:
        """Return when one is to be killed."""
        return [worker.kill_at for worker in self.all() if worker.kill_at is not None]

    def forgive(self, now: float) -> None:
        """Blame nobody for a silence until now."""
        for worker in self.all():
            worker.heard_at = now

    def look(self) -> None:
        """Hear what they say, and take note of those that have ended."""
        for worker in self.all():
            if worker not in self.all():
                continue  # it was let go of because of another
            # Looked at first: what it has said before it ended is heard then.
            has_ended = worker.has_ended()
            for said in worker.heard():
                self._heard(worker, said)
            if worker.has_hung_up:
                self._ignore(worker)
            if has_ended:
                self._bury(worker)
        bury_others([worker.pid for worker in self.all()])

    def watch(self, now: float, *, may_be_silent: bool) -> None:
        """See that who should end does, and who is silent for too long."""
        for worker in self._known():
            if worker.hangs(now, self._log, DEATH_SECONDS, may_be_silent=may_be_silent):
                self._left.append(worker)
                self._ended(worker)

    def end(self) -> None:
        """End all."""
        deadline = time.monotonic() + DEATH_SECONDS
        for worker in self.all():
            worker.kill()
        for worker in self.all():
            worker.wait(deadline - time.monotonic())
            worker.channel.close()

    def _ignore(self, worker: Worker) -> None:
        """Listen to a worker no longer: of one that has hung up, the end of it is all there is to wait for."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(worker.channel)

    def _bury(self, worker: Worker) -> None:
        self._ignore(worker)
        worker.channel.close()
        if worker in self._left:
            self._left.remove(worker)
        else:
            self._ended(worker)
