"""``Service().ask.remote(x)``: one runner for all calls of a process, with the configuration that commands have.

Its mounts stay for the next call, and what is frozen is published in the background. At the end of the process all of it goes. A process
that this one forks has a runner of its own.
"""

import concurrent.futures.thread  # noqa: F401 # it ends its pools when a process ends, and before what was registered earlier
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from imagefs.config import load_config
from snapshotstore.runner.entry import of_class
from snapshotstore.runner.runner import COLD, Answer, Runner


class _Shared:
    """The runner of this process, made by the first call."""

    def __init__(self) -> None:
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._runner: Runner | None = None
        self._publishing: list[threading.Thread] = []

    def call(self, kind: type, method: str, args: Sequence[Any], named: Mapping[str, Any]) -> Answer:
        entry = of_class(kind)
        with self._lock:
            if self._runner is None:
                self._runner = Runner(load_config())
                # Not with atexit: by then no pool takes anything, and what was frozen could not be published any more.
                threading._register_atexit(self.close)  # type: ignore[attr-defined] # noqa: SLF001 # nothing public comes before pools end
            runner = self._runner
        answer = runner.call(entry, method, list(args), named)
        if answer.started == COLD:
            publishing = threading.Thread(target=_publish, args=(runner,), name="publishing")
            publishing.start()
            with self._lock:
                self._publishing = [*(thread for thread in self._publishing if thread.is_alive()), publishing]
        return answer

    def close(self) -> None:
        with self._lock:
            runner, self._runner = self._runner, None
        for publishing in self._publishing:
            publishing.join()
        if runner is not None:
            _tell(runner.close())


def _publish(runner: Runner) -> None:
    _tell(runner.publish())


def _tell(notes: list[str]) -> None:
    for note in notes:
        sys.stderr.write(f"snapshotstore: {note}\n")


_shared = _Shared()


def call(kind: type, method: str, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """Call a method of a service in a replica; return what it answers."""
    return _shared.call(kind, method, args, named).result
