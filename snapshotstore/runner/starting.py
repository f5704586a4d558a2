"""One replica, from nothing to where it answers: restored, or cold and frozen on the way.

What a start needs is passed in; it keeps nothing but the replica that it made. Each stage is timed. What fails leaves no program, and
nothing in the replica's place.

What does not live here: which snapshot is restored, and what becomes of what was frozen (``runner``).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from imagefs.convert.stages import Clock
from imagefs.errors import ImageFSError, ProgramError
from snapshotstore.at_once import at_once
from snapshotstore.checkpoint.base import LAYER, Checkpointer, Engine, Sandbox
from snapshotstore.listing import Snapshot
from snapshotstore.runner.mounts import Mounts
from snapshotstore.runner.program import Program
from snapshotstore.runner.replica import Ready, Replica
from snapshotstore.runner.workplace import ReplicaPlace

READY_SECONDS: Final = 3600.0
"""What all that a service does once may take; each hook has a timeout of its own."""

RESTORE_SECONDS: Final = 60.0
RESTORES: Final = "restore"
"""The label under which is recorded what restores read of an image."""

SERVING_SECONDS: Final = 1800.0
FREEZE_SECONDS: Final = 300.0
_START_SECONDS: Final = 60.0
_END_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a replica is given by its caller: variables, and secrets, which no snapshot has; where it runs on this host."""

    environment: Mapping[str, str]
    secrets: Mapping[str, str]
    network: Path | None = None
    cgroup: Path | None = None


class Started:
    """A replica that runs. ``close`` hangs up, waits for it to end, and leaves nothing."""

    def __init__(self, engine: Checkpointer, sandbox: Sandbox, replica: Replica, place: ReplicaPlace) -> None:
        """All of it is there."""
        self.engine = engine
        self.sandbox = sandbox
        self.replica = replica
        self.output = place.output
        self.ready: Ready | None = None
        self._place = place

    def close(self) -> None:
        """See the class: one that does not end when it is told is ended."""
        self.replica.close()
        with suppress(ImageFSError):
            self.engine.wait(self.sandbox, deadline=_END_SECONDS)
        self.end()

    def end(self) -> None:
        """End it at once."""
        self.replica.close()
        try:
            self.engine.remove(self.sandbox)
        finally:
            self._place.close()


class Starter:
    """Starts replicas of one program with one engine."""

    def __init__(self, mounts: Mounts, program: Program, source: str, engine: Checkpointer, found: Engine) -> None:
        """``source`` is the manifest of the source tree, in hex."""
        self._mounts = mounts
        self._program = program
        self._source = source
        self._engine = engine
        self._found = found

    def restore(self, snapshot: Snapshot, place: ReplicaPlace, given: Given, clock: Clock) -> Started:
        """Restore a replica from a snapshot, and wait until it answers. Errors of the engine, the store and the program."""
        # It is told what it is to be before it runs: it finds that when it looks for the first time, while the engine puts things away.
        return self._answering(self._revived(snapshot, place, given, clock, is_told=True), clock)

    def revive(self, snapshot: Snapshot, place: ReplicaPlace, given: Given, clock: Clock) -> Started:
        """Restore a replica from a snapshot as it was frozen: it can be frozen again. Errors of the engine and the store."""
        return self._revived(snapshot, place, given, clock, is_told=False)

    def cold(self, place: ReplicaPlace, given: Given, clock: Clock) -> Started:
        """Start a replica, and wait until it can be frozen. Errors of the engine and the program."""
        with clock.stage("mount"), _unused_on_error(place):
            self._mount(None)
        with clock.stage("start"):
            started = self._sandboxed(place, given, (), lambda made: self._engine.start(made.sandbox, deadline=_START_SECONDS))
            with ended_on_error(started):
                started.ready = started.replica.until_ready(deadline=READY_SECONDS)
        return started

    def freeze(self, started: Started, folder: Path, clock: Clock) -> None:
        """Freeze a replica that is ready into ``folder``; it goes on."""
        with clock.stage("freeze"):
            self._engine.checkpoint(started.sandbox, folder, deadline=FREEZE_SECONDS)

    def serve(self, started: Started, given: Given, clock: Clock) -> Started:
        """Let a replica that is ready be one that answers."""
        with ended_on_error(started):
            self._tell(started, given, restored=False)
        return self._answering(started, clock)

    # -- parts ----------------------------------------------------------------------------------------------------------------------------

    def _mount(self, snapshot: Snapshot | None) -> Path:
        """Mount image, source tree and snapshot; return where the last is. They are mounted at once, as each waits for the store."""
        mounts = self._mounts
        if not mounts.has(self._program.image, self._source, *(() if snapshot is None else (snapshot.name,))):
            self._engine.prepare()
        _, _, images = at_once(
            # A restore needs little of the image, and other things than a start: what is fetched ahead is what restores have read.
            lambda: mounts.manifest(self._program.image, label="" if snapshot is None else RESTORES),
            # In FUSE mode: its files may be mapped, and CRIU cannot tell where those of an overlay on an overlay are.
            lambda: mounts.manifest(self._source, mode="fuse"),
            lambda: Path() if snapshot is None else mounts.manifest(snapshot.name, mode="fuse"),
        )
        if self._found.name == "runsc":
            mounts.stacked(self._source, self._program.image)
        return Path(images)

    def _revived(self, snapshot: Snapshot, place: ReplicaPlace, given: Given, clock: Clock, *, is_told: bool) -> Started:
        """Restore a replica from a snapshot; ``is_told``: what it is to be."""
        with clock.stage("mount"), _unused_on_error(place):
            images = self._mount(snapshot)

        def begin(started: Started) -> None:
            if is_told:
                self._tell(started, given, restored=True)
            try:
                self._engine.restore(started.sandbox, images, deadline=RESTORE_SECONDS)
            except ImageFSError:
                # One whose hook fails ends at once, and the engine may find nothing but that. What it says of itself says more.
                started.replica.check_failed()
                raise

        with clock.stage("engine"):
            layer = (images / LAYER,) if (images / LAYER).is_dir() else ()
            return self._sandboxed(place, given, layer, begin)

    def _sandboxed(self, place: ReplicaPlace, given: Given, layer: tuple[Path, ...], begin: Callable[[Started], None]) -> Started:
        """Have a program begin in a sandbox."""
        with _unused_on_error(place):
            if self._found.name == "runsc":
                root, lower = self._mounts.stacked(self._source, self._program.image), layer
            else:
                root, lower = self._mounts.manifest(self._program.image), (*layer, self._mounts.manifest(self._source, mode="fuse"))
            sandbox = replace(
                self._program.sandbox(self._found, name=place.name, home=place.home, root=root, lower=lower, output=place.output),
                network=given.network,
                cgroup=given.cgroup,
            )
            replica = Replica(place.home / "replica", sandbox.binds[0].target, lambda: self._engine.is_alive(sandbox))
        started = Started(self._engine, sandbox, replica, place)
        with ended_on_error(started):
            replica.provide(given.environment)
            begin(started)
        return started

    def _tell(self, started: Started, given: Given, *, restored: bool) -> None:
        """Say to a program what it is to be."""
        started.replica.tell(restored=restored, environment={**self._program.environment, **given.environment}, secrets=given.secrets)

    @staticmethod
    def _answering(started: Started, clock: Clock) -> Started:
        """Wait until a program that was told what it is to be answers."""
        with clock.stage("hooks"), ended_on_error(started):
            started.replica.until_answers(deadline=SERVING_SECONDS)
        return started


@contextmanager
def _unused_on_error(place: ReplicaPlace) -> Iterator[None]:
    """Take a place away in which nothing ran yet, if what is done within fails."""
    try:
        yield
    except BaseException:
        place.close()
        raise


class ended_on_error:  # noqa: N801 - read as a statement
    """End a replica if what is done within fails, and say in the error what it wrote last."""

    def __init__(self, started: Started) -> None:
        self._started = started

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None:
            return
        output = self._started.output
        with suppress(Exception):
            self._started.end()
        if isinstance(error, ProgramError) and error.hint is None and output.exists():
            error.hint = f"what it wrote is in {output}"
