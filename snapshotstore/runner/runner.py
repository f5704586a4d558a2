"""Calls a method of a service: restored from a snapshot where one fits, by a cold start where none does, and answered in any case.

What it promises:

- **An answer does not depend on snapshots.** What prevents a restore is a reason in the answer, and then the program starts cold.
- A cold start is frozen at the boundary, on this host, and goes on to answer; what was frozen is published after the answer. A freeze or
  a publication that fails is a note, and the next cold start tries again.
- A call is made once: a program that ends while it runs is an error, never another try.
- Nothing is left: no process, no mount, no file but the log. What a killed runner left, the next one takes away.

Who owns what: a runner has a directory of its own, locked as long as it lives (``workplace``), and its mounts, which its replicas share.
Its methods may be called from several threads.
"""

import contextlib
import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from imagefs.config import Config, environment
from imagefs.convert.stages import Clock
from imagefs.errors import ImageFSError, ProgramError, UsageError
from imagefs.store.base import ObjectStore
from imagefs.store.images import get_manifest
from imagefs.store.opening import open_store
from imagefs.store.refs import resolve
from snapshotstore.at_once import at_once
from snapshotstore.checkpoint.base import Checkpointer, Engine
from snapshotstore.listing import Snapshot
from snapshotstore.runner import source as sources
from snapshotstore.runner import timeline
from snapshotstore.runner.choosing import Chosen, choose
from snapshotstore.runner.engines import Engines
from snapshotstore.runner.entry import Entry
from snapshotstore.runner.freezing import Frozen, push
from snapshotstore.runner.mounts import Mounts
from snapshotstore.runner.program import Program, program_of
from snapshotstore.runner.starting import Given, Started, Starter, ended_on_error
from snapshotstore.runner.workplace import ReplicaPlace, Workplace, host_errors

if TYPE_CHECKING:
    from snapshotstore.repository import PushReport

CALL_SECONDS: Final = 600.0
_ENDING_MAX: Final = 8
_UNREADABLE: Final = os.strerror(errno.EIO)
KNOWN_SECONDS: Final = 60.0
"""For how long what the store has of a service is not asked again."""

RESTORED: Final = "restored"
COLD: Final = "cold"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call gave: ``result``, how the replica ``started`` and why not otherwise, its snapshot, and the seconds of each stage."""

    result: Any
    started: str
    reason: str
    snapshot: str | None
    engine: str
    timeline: dict[str, float]
    notes: tuple[str, ...]
    log: str


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a service for a while: program, manifest of the source tree, and the snapshot to restore, or why there is none."""

    program: Program
    source: str
    snapshot: Snapshot | None
    engine: tuple[Checkpointer, Engine]
    reason: str
    until: float


@dataclass(slots=True)
class _Call:
    """One call on its way."""

    clock: Clock = field(default_factory=Clock)
    notes: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.time)
    has_failed: bool = False


class Runner:
    """See the module. A context manager: leaving it publishes what waits, and takes everything away."""

    def __init__(
        self, config: Config, *, engine: str = "auto", snapshots: bool = True, fresh: bool = False, image: str | None = None
    ) -> None:
        """``engine``: one of ``engines.NAMES``, or ``auto``. Without ``snapshots`` each start is cold. ``image``: not the service's own.

        ``fresh``: nothing is restored, and each start makes a new snapshot in place of one that may be there, and may be damaged.
        """
        self._config = config
        self._snapshots = snapshots
        self._fresh = fresh
        self._image = image
        self._engines = Engines(config.runtime)
        self._wanted = engine
        self._place = Workplace(config.runtime, config.cache)
        self.mounts = Mounts(config, self._place.mounts)
        self._lock = threading.Lock()
        self._beginning = threading.Lock()
        self._looking: dict[tuple[str, Path], threading.Lock] = {}
        self._store: ObjectStore | None = None
        self._known: dict[tuple[str, Path], Known] = {}
        self._stamps: dict[tuple[str, Path], bytes] = {}
        self._changes = 0
        self._broken: dict[str, str] = {}
        self._doubted: set[str] = set()
        self._frozen: list[Frozen] = []
        self._ending: list[threading.Thread] = []
        self._left: list[str] = []
        self.pushed: list[PushReport] = []
        """What was published so far."""
        self._swept = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> list[str]:
        """Publish what waits, unmount, and take the directory away; return what went wrong."""
        try:
            self._settle(0)
            notes = self.publish()
        finally:
            failed = self.mounts.close()
            self._engines.close()
            self._place.close()
            if self._store is not None:
                self._store.close()
                self._store = None
        return [*notes, *self._left, *failed]

    def call(
        self,
        entry: Entry,
        method: str,
        args: list[Any],
        named: Mapping[str, Any],
        *,
        timeout: float = CALL_SECONDS,
        network: Path | None = None,
        cgroup: Path | None = None,
    ) -> Answer:
        """Call a method; return its answer.

        ``args`` and ``named`` are what JSON has. ``ProgramError`` for what the method raises, ``DeadlineError`` after ``timeout`` seconds,
        and what prevents a cold start.
        """
        entry.check(method)
        try:
            json.dumps([args, dict(named)], allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"the arguments of {method} cannot be sent as JSON: {error}") from None
        made = _Call()
        given = replace(_given(entry), network=network, cgroup=cgroup)
        with made.clock.stage("resolve"):
            known = self.look(entry)
        started, how, reason = self._start(known, given, made)
        with made.clock.stage(timeline.CALL), ended_on_error(started), self._doubting(known, how):
            result = started.replica.call(method, args, dict(named), deadline=timeout)
        self._end(started)
        snapshot = known.snapshot.name if known.snapshot is not None and how == RESTORED else None
        stages = {stage: round(seconds, 4) for stage, seconds in made.clock.seconds.items()}
        engine = known.engine[1].name
        timeline.keep(
            started.output,
            timeline.Timeline(
                began=made.began,
                target=entry.target,
                started=how,
                reason=reason,
                engine=engine,
                snapshot=snapshot,
                stages=stages,
                failed=reason if made.has_failed else "",
            ),
        )
        return Answer(result, how, reason, snapshot, engine, stages, tuple(made.notes), str(started.output))

    def _end(self, started: Started) -> None:
        """Let a replica end by itself: its caller has its answer, and need not wait for that."""
        ending = threading.Thread(target=self._close, args=(started,), name="ending")
        ending.start()
        with self._lock:
            self._ending.append(ending)
        self._settle(_ENDING_MAX)

    def _close(self, started: Started) -> None:
        try:
            started.close()
        except (ImageFSError, OSError) as error:
            with self._lock:
                self._left.append(f"{started.sandbox.name} is left: {getattr(error, 'message', error)}")

    def _settle(self, most: int) -> None:
        """Wait until at most ``most`` replicas are ending."""
        while True:
            with self._lock:
                self._ending = [thread for thread in self._ending if thread.is_alive()]
                if len(self._ending) <= most:
                    return
                first = self._ending[0]
            first.join()

    # -- what there is --------------------------------------------------------------------------------------------------------------------

    def look(self, entry: Entry) -> Known:
        """Return what is known of a service; the store is asked again when that is old, or the source another one."""
        key = (entry.target, entry.folder)
        # Looked at before the files are read: what changes meanwhile is read by the next call.
        stamp = sources.stamp(entry.folder)
        with self._lock:
            looking = self._looking.setdefault(key, threading.Lock())
        # Of one service once, whoever asks; nobody else waits for a store that does not answer.
        with looking:
            with self._lock:
                known, changes = self._known.get(key), self._changes
                is_same = known is not None and self._stamps[key] == stamp
            if known is not None and is_same and time.monotonic() < known.until:
                return known
            try:
                found = self._look(entry)
            except ImageFSError as error:
                if known is None or not is_same or not error.retryable:
                    raise
                # The store is away: what was known of it, this host may have all of.
                found = replace(known, until=time.monotonic() + KNOWN_SECONDS)
            with self._lock:
                # What this runner has published or given up meanwhile may not have been seen: then the next call looks again.
                self._known[key] = found if changes == self._changes else replace(found, until=0.0)
                self._stamps[key] = stamp
            return found

    def _look(self, entry: Entry) -> Known:
        """Look up what the store has of a service."""
        with self._beginning:
            engines = self._engines.working(self._wanted)
            if not self._swept:
                with host_errors():
                    self._place.sweep(self._engines.named)
                self._swept = True
            store = self._opened()
        tree = sources.read_tree(entry.folder)
        image = resolve(store, self._image or entry.settings.image)
        config = get_manifest(store, image).config
        program = program_of(entry, image=image, config=config, source_digest=tree.digest, given=environment())

        def chosen() -> Chosen:
            if not self._snapshots:
                return Chosen(None, engines[0], "snapshots are turned off")
            if not entry.settings.enable_memory_snapshot:
                return Chosen(None, engines[0], "the service does not ask for snapshots (enable_memory_snapshot)")
            if self._fresh:
                return Chosen(None, engines[0], "a new snapshot is wanted")
            return choose(store, program, engines, self._broken)

        # Each question is a way to the store and back.
        source, choice = at_once(lambda: sources.publish(store, tree, entry.settings.app), chosen)
        return Known(program, source, choice.snapshot, choice.engine, choice.reason, time.monotonic() + KNOWN_SECONDS)

    def _opened(self) -> ObjectStore:
        if self._store is None:
            # A snapshot is a core dump, whoever calls, and whatever its umask.
            self._store = open_store(self._config.store, private=True)
        return self._store

    # -- a replica ------------------------------------------------------------------------------------------------------------------------

    def _start(self, known: Known, given: Given, made: _Call) -> tuple[Started, str, str]:
        """Return a replica that answers, how it started, and why it was not restored."""
        reason = known.reason
        starter = Starter(self.mounts, known.program, known.source, *known.engine)
        if known.snapshot is not None:
            with _timed() as seconds:
                try:
                    return starter.restore(known.snapshot, self.replica_place(known), given, made.clock), RESTORED, ""
                except (ImageFSError, OSError) as error:
                    reason = f"the restore of {known.snapshot.ref} failed: {getattr(error, 'message', error)}"
                    # What a hook raised, as when a database is away, says nothing of the snapshot.
                    was_hook = isinstance(error, ProgramError) and bool(error.traceback)
            made.has_failed = True
            made.clock.seconds = {"failed restore": round(seconds[0], 4)}
            if not was_hook:
                self._forget(known, reason)
        with _timed() as seconds, host_errors():
            try:
                started = starter.cold(self.replica_place(known), given, made.clock)
            except ImageFSError:
                if (source := self._healed(known)) is None:
                    raise
                known = replace(known, source=source)
                starter = Starter(self.mounts, known.program, source, *known.engine)
                started = starter.cold(self.replica_place(known), given, made.clock)
        try:
            if self._snapshots and known.program.entry.settings.enable_memory_snapshot:
                self._freeze(starter, started, known, seconds[0], made)
        except BaseException:
            started.end()
            raise
        with host_errors():
            return starter.serve(started, given, made.clock), COLD, reason

    def replica_place(self, known: Known) -> ReplicaPlace:
        """Make a place for a replica of a service."""
        return self._place.replica(sources.slug(known.program.entry.settings.app), known.engine[1].name)

    def _healed(self, known: Known) -> str | None:
        """Return the manifest of the source tree, if the store's was damaged, and is written again from this host's; else None."""
        entry = known.program.entry
        with contextlib.suppress(ImageFSError, OSError):  # why it did not start says more
            return sources.heal(self._opened(), known.source, entry.folder, entry.settings.app)
        return None

    @contextlib.contextmanager
    def _doubting(self, known: Known, how: str) -> Iterator[None]:
        """Do not restore a snapshot again whose program could not read, or ended, at a call, if the daemon has met damage."""
        try:
            yield
        except ProgramError as error:
            is_suspect = how == RESTORED and (_UNREADABLE in error.message or not error.traceback)
            with contextlib.suppress(ImageFSError):
                if known.snapshot is not None and is_suspect and self.mounts.has_met_damage():
                    self._forget(known, f"{error.message}, and something was found damaged")
                    ref = known.snapshot.ref
                    error.hint = f"`imagefs snapshot verify {ref}` says whether it is damaged, and `run --fresh` makes it again"
            raise

    def _forget(self, known: Known, reason: str) -> None:
        """Do not restore a snapshot again that failed here, and rely on nothing that the store has of it when the next one is pushed."""
        with self._lock:
            self._doubted.add(known.program.key)
            if known.snapshot is not None:
                self._broken[known.snapshot.name] = reason
            self._changes += 1
            self._known.pop((known.program.entry.target, known.program.entry.folder), None)

    def _freeze(self, starter: Starter, started: Started, known: Known, cold: float, made: _Call) -> None:
        """Freeze a replica at the boundary. What is in the way of that is a note."""
        folder = None
        try:
            folder = self._place.checkpoint()
            starter.freeze(started, folder, made.clock)
        except (ImageFSError, OSError) as error:
            made.notes.append(f"no snapshot was made: {getattr(error, 'message', error)}")
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            return
        with self._lock:
            recheck = self._fresh or known.program.key in self._doubted
            self._frozen.append(Frozen(folder, known.program, known.engine[1], known.source, cold, started.ready, recheck=recheck))

    # -- afterwards -----------------------------------------------------------------------------------------------------------------------

    def publish(self) -> list[str]:
        """Publish what was frozen; return what went wrong."""
        notes: list[str] = []
        while True:
            with self._lock:
                if not self._frozen:
                    return notes
                frozen = self._frozen.pop()
            try:
                self._push(frozen)
            except (ImageFSError, OSError) as error:
                notes.append(f"the snapshot was not published: {getattr(error, 'message', error)}")
            finally:
                shutil.rmtree(frozen.folder, ignore_errors=True)

    def _push(self, frozen: Frozen) -> None:
        self.pushed.append(push(self._opened(), frozen))
        entry = frozen.program.entry
        with self._lock:
            if frozen.recheck:
                self._doubted.discard(frozen.program.key)
            self._changes += 1
            self._known.pop((entry.target, entry.folder), None)


def _given(entry: Entry) -> Given:
    """Return what a replica is given of this process's environment. ``UsageError`` if a secret is not there."""
    here = environment()
    if lacking := sorted(name for name in entry.settings.secrets if name not in here):
        raise UsageError(f"{entry.target} needs {', '.join(lacking)} in the environment", hint="its decorator names them as secrets")
    return Given(
        environment={name: here[name] for name in entry.settings.environment if name in here},
        secrets={name: here[name] for name in entry.settings.secrets},
    )


@contextlib.contextmanager
def _timed() -> Iterator[list[float]]:
    seconds = [0.0]
    begun = time.perf_counter()
    try:
        yield seconds
    finally:
        seconds[0] = time.perf_counter() - begun
