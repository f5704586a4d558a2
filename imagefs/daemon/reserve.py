"""Where workers come from: a **template**, a process that has loaded their code, does nothing, and forks one when it is told to.

Loading takes a fifth of a second, and more where others want the processors too: too long for who waits for an answer. A fork takes some
milliseconds, and shares its memory with the template until it writes there.

Invariants:

- a worker is a child of this process, not of the template, and does not care what becomes of that;
- there is one loaded template at most, and one that loads: in its place, or because there is none;
- a template that ends is loaded again, but never in a hot loop.

A process that says that it is loaded, and not that it forks, is itself the worker: so are those of versions before there were templates.

What does not live here: when a worker is needed (``supervisor``), and the template's own side (``template``).
"""

import math
import os
import select
import selectors
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from imagefs.daemon.life import MESSAGE_MAX, parsed
from imagefs.daemon.plain_log import PlainLog
from imagefs.daemon.workers import START_SECONDS, Worker, channel_pair, open_log

FORK_SECONDS: Final = 5.0
"""For a template to answer. It has nothing else to do."""

PAUSES: Final = (1.0, 10.0, 60.0)
"""Seconds before a template that ended is loaded again while a worker serves, by how many have ended before."""

_SOUND_SECONDS: Final = 60.0


class Reserve:
    """See the module. ``loaded`` and ``loading`` are for the supervisor to listen to, and to watch."""

    def __init__(self, start: Callable[[], Worker], words: Path | None, selector: selectors.BaseSelector, log: PlainLog) -> None:
        """``start`` starts a process that loads the code. ``words`` is the file of what workers say in plain words, if it is one."""
        self._start = start
        self._words = words
        self._selector = selector
        self._log = log
        self.loaded: Worker | None = None
        self.loading: Worker | None = None
        self._forks = False
        self._loaded_at = 0.0
        self._again_at: float | None = None
        self._ended = 0

    def all(self) -> list[Worker]:
        """Return the processes that there are."""
        return [template for template in (self.loaded, self.loading) if template is not None]

    def load(self, *, anew: bool = False) -> None:
        """See that code is loaded, if there is none; ``anew``: what is on disk now. ``OSError`` if that cannot be begun."""
        self._again_at = None
        if anew:
            self._end(self.loading)
            self.loading = None
        if self.loading is None and (anew or self.loaded is None):
            self.loading = self._start()
            self._listen_to(self.loading)
            self._log.info("template_started", template=self.loading.pid)

    def has_loaded(self, said: dict[str, Any]) -> None:
        """Have the template that was loading be the one that workers are forked from."""
        assert self.loading is not None
        self._end(self.loaded)
        self.loaded, self.loading = self.loading, None
        self.loaded.patience = math.inf  # it says nothing unasked
        self._forks = bool(said.get("forks"))
        self._loaded_at = time.monotonic()

    def take(self) -> Worker | None:
        """Return a worker that waits for the word to go; None if no code is loaded. ``OSError`` if one cannot be had otherwise."""
        if self.loaded is None:
            return None
        if not self._forks:
            worker, self.loaded = self.loaded, None
            worker.patience = START_SECONDS
            return worker
        log = open_log(self._words)
        ours, theirs = channel_pair()
        try:
            self.loaded.say("fork", theirs.fileno(), log)
            pid = self._forked(self.loaded)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(log)
        if pid is None:
            ours.close()
            return None
        worker = Worker(pid, ours)
        self._listen_to(worker)
        return worker

    def _forked(self, template: Worker) -> int | None:
        """Return the process that a template has forked; None if the template is gone."""
        poll = select.poll()
        poll.register(template.channel, select.POLLIN)
        if not poll.poll(FORK_SECONDS * 1000):
            self.let_go()
            raise TimeoutError(f"the template did not answer in {FORK_SECONDS:g} s")
        data = b""
        with suppress(ConnectionError):
            data = template.channel.recv(MESSAGE_MAX)
        if not data:
            self.let_go()
            return None
        said = parsed(data)
        if said["word"] != "forked":
            raise OSError(said["error"]["message"])
        return int(said["pid"])

    def let_go(self) -> None:
        """Let go of what is loaded or loads: it does not answer, what was forked does not come up, or there is other code on disk."""
        for template in self.all():
            self._end(template)
        self.loaded = self.loading = None

    def lost(self, template: Worker) -> float:
        """Take note that a template has ended; return for how many seconds :meth:`look_after` loads no other."""
        now = time.monotonic()
        if template is self.loading:
            self.loading = None
        else:
            self.loaded = None
            if now - self._loaded_at > _SOUND_SECONDS:
                self._ended = 0
        pause = PAUSES[min(self._ended, len(PAUSES) - 1)]
        self._ended += 1
        self._again_at = now + pause
        return pause

    def look_after(self, now: float) -> None:
        """Load code where there is none and that is due, so that it is there when it is needed."""
        if self.loaded is None and self.loading is None and (self._again_at is None or now >= self._again_at):
            try:
                self.load()
            except OSError as error:
                self._again_at = now + PAUSES[-1]
                self._log.error("template_not_started", error=str(error))

    def _listen_to(self, worker: Worker) -> None:
        self._selector.register(worker.channel, selectors.EVENT_READ, _nothing)

    def _end(self, template: Worker | None) -> None:
        """End a template at once. It is buried with all others that nobody knows."""
        if template is not None:
            if not template.has_hung_up:
                self._selector.unregister(template.channel)
            template.channel.close()
            template.kill()


def _nothing() -> None:
    """For what only has to wake the loop: workers are listened to each time that it goes round."""
