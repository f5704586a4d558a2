"""One fault, from beginning to end: a host, the fault, all operations, its end, and what holds then.

Many at the same time, because that is what a fault meets. While 64 readers wait for what the host has not, comes what needs no store: they
are not to hold it up. Then come all others together. What has not ended :data:`OVERTIME` after what may take longest is noted as late, and
the fault is lifted all the same.
"""

import errno
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.matrix import content
from tests.matrix.columns import BRINGING, DISK_MIB
from tests.matrix.operations import DRIVERS, cold_names
from tests.matrix.place import Ended, Lab, Stage, staged
from tests.matrix.table import AFTERWARDS, Column, Outcome
from tests.system.world import wait_until

OVERTIME: Final = 1.0
ENOUGH: Final = 12
"""Requests that make a load: as many as the kernel has under way at a time, unless it is told otherwise."""

RECOVERY: Final = 20.0
"""Seconds in which everything has to work again: the longest pause between two tries of an open breaker, and some."""

_ONE_BY_ONE: Final = frozenset({"killed"})
_LOAD: Final = ("readers",)
_MEANWHILE: Final = ("walk", "ram", "ssd", "umount")
_THEN: Final = ("cold", "exec", "sequential", "random", "convert", "second", "first")
"""With a dead daemon the mounts come last: they take away what it left."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What an operation came to: ``right``, an errno's name, ``exit N``, ``wrong`` or ``late``; after how many seconds; what was said."""

    what: str
    seconds: float
    text: str = ""


class Attempt(threading.Thread):
    """An operation under way."""

    def __init__(self, driver: Callable[[Stage], None], stage: Stage) -> None:
        super().__init__(daemon=True)
        self._driver = driver
        self._stage = stage
        self._began = time.monotonic()
        self._seen: Seen | None = None

    def run(self) -> None:
        self._began = time.monotonic()
        what, text = "right", ""
        try:
            self._driver(self._stage)
        except OSError as error:
            what, text = errno.errorcode.get(error.errno or 0, "OSError"), str(error)
        except Ended as error:
            what, text = f"exit {error.status}", str(error)
        except AssertionError as error:
            what, text = "wrong", str(error)
        except BaseException as error:  # noqa: BLE001 # pytest's own failures are no Exception
            what, text = "wrong", f"{type(error).__name__}: {error}"
        self._seen = Seen(what, time.monotonic() - self._began, text)

    def seen(self, until: float) -> Seen:
        """Return what it came to, or that it had not ended by then."""
        self.join(max(0.0, until - time.monotonic()))
        return self._seen or Seen("late", time.monotonic() - self._began, "it had not ended when the fault was lifted")


def run_column(lab: Lab, column: Column, mode: str, number: int) -> dict[str, Seen]:
    """Run a fault's scenario in a mode; return what was seen, an operation each, and ``AFTERWARDS``."""
    with staged(lab, number, mode, DISK_MIB.get(column.name, 0)) as stage:
        with BRINGING[column.name](stage):
            attempts, seen = _attempt_all(stage, column)
        for attempt in attempts.values():
            attempt.join(RECOVERY)
        after = Attempt(lambda stage: _recover(stage, column, seen), stage)
        after.start()
        return seen | {AFTERWARDS: after.seen(time.monotonic() + 2 * RECOVERY)}


def _attempt_all(stage: Stage, column: Column) -> tuple[dict[str, Attempt], dict[str, Seen]]:
    attempts = {name: Attempt(DRIVERS[name], stage) for name in (*_LOAD, *_MEANWHILE, *_THEN)}
    if column.name in _ONE_BY_ONE:
        seen = {}
        for name, attempt in attempts.items():
            attempt.start()
            seen[name] = attempt.seen(time.monotonic() + column.outcome(name, stage.mode).within + OVERTIME)
        return attempts, seen
    seen = _together(stage, column, attempts, _LOAD)
    return attempts, seen | _together(stage, column, attempts, _THEN)


def _together(stage: Stage, column: Column, attempts: dict[str, Attempt], names: tuple[str, ...]) -> dict[str, Seen]:
    """Start these operations, and with the load what comes meanwhile; return what was seen of them when the last has ended."""
    before = stage.reads() if names is _LOAD else 0
    latest = time.monotonic() + OVERTIME
    for name in names:
        attempts[name].start()
    if names is _LOAD:
        wait_until(lambda: stage.reads() >= before + ENOUGH, "the readers to read")
        for name in _MEANWHILE:
            attempts[name].start()
        names += _MEANWHILE
    latest += max(column.outcome(name, stage.mode).within for name in names)
    return {name: attempts[name].seen(latest) for name in names}


def _recover(stage: Stage, column: Column, seen: dict[str, Seen]) -> None:
    """See that everything works, without a remount, and that nothing was wrong that should not have been."""
    _wait_for_reads(stage)
    for name in stage.lab.files:
        stage.read(name)
    for name in ("first", "convert"):
        if seen[name].what not in {"right", "late"} and column.name != "read-only":
            DRIVERS[name](stage)
    DRIVERS["walk"](stage)
    status = stage.world.run("daemon", "status", "--json").json
    assert column.name in _ONE_BY_ONE or status["worker_pid"] == stage.pid, "the daemon is another one"
    stats = stage.world.stats()
    assert stats["internal_errors"] == 0, stage.world.logs()
    found = stats["verify_failures"] + stats["ssd_damaged_files"]
    assert (found > 0) == column.damages, f"{found} frames and files were wrong"
    at_rest = stage.command("cache", "verify")["bad"]
    assert not at_rest or column.damages, "what is at rest is damaged"
    assert stage.command("cache", "verify")["bad"] == 0, "what was found to be damaged at rest is still there"


def _wait_for_reads(stage: Stage) -> None:
    for name in (*cold_names(), content.SSD):

        def is_back(name: str = name) -> bool:
            try:
                stage.read(name)
            except OSError:
                return False
            return True

        wait_until(is_back, f"{name} to be read again", RECOVERY)


def judge(outcome: Outcome, seen: Seen) -> str:
    """Return why what was seen is not what has to happen; empty if it is."""
    if seen.what != outcome.seen:
        return f"{outcome.seen} was to happen, and {seen.what} did after {seen.seconds:.2f} s: {seen.text}"
    if seen.seconds > outcome.within:
        return f"{seen.what} was to happen within {outcome.within:g} s, and took {seen.seconds:.2f} s: {seen.text}"
    return ""
