"""Freezes the program of an OCI bundle, and restores it: any program, with nothing of ours in it.

What it promises:

- **A bundle's root is content-addressed first**, so a snapshot of its program needs nothing of the directory that it was made from: an
  empty host restores it from the store and a reference.
- A snapshot is published whole or not at all; the program is ended in any case, by the time :func:`create` returns or raises.
- :func:`restore` gives a program that runs, or raises with the reasons why not; whatever was begun is taken away then.
- What is restored is as the snapshot says, and is checked against its record; none of it is a path of this host.
- Nothing is left: no process, no mount, no file but the log. What a killed process left, the next one takes away.

What does not live here: ``config.json`` (``bundles_config``), the root (``bundles_root``), when a program is ready (``bundles_ready``).
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Self

from imagefs.config import Config
from imagefs.convert.stages import Clock, Progress
from imagefs.errors import DeadlineError, ImageFSError, IntegrityError, NotFoundError, UnsupportedError, UsageError
from imagefs.format.manifest import SNAPSHOT
from imagefs.store.base import ObjectStore
from imagefs.store.images import get_manifest
from imagefs.store.opening import open_store
from imagefs.store.refs import Ref, read
from snapshotstore import compat, repository
from snapshotstore.checkpoint.base import LAYER, Checkpointer, Engine, Sandbox
from snapshotstore.listing import Snapshot
from snapshotstore.manifest import Economics, Oci, Record, Runtime, key_of
from snapshotstore.repository import PushReport
from snapshotstore.runner import bundles_program, bundles_root, timeline
from snapshotstore.runner.bundles_config import read_bundle
from snapshotstore.runner.bundles_program import BundleProgram
from snapshotstore.runner.bundles_ready import Ready, wait_until_ready
from snapshotstore.runner.bundles_root import Root
from snapshotstore.runner.engines import NAMES, Engines
from snapshotstore.runner.mounts import Mounts
from snapshotstore.runner.source import slug
from snapshotstore.runner.workplace import ReplicaPlace, Workplace, host_errors

READY_SECONDS: Final = 60.0
_START_SECONDS: Final = 60.0
_FREEZE_SECONDS: Final = 300.0
_RESTORE_SECONDS: Final = 60.0
_WAIT_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Where a program runs on this host: a network namespace (None: one of its own, without links), a cgroup, and a file to write to."""

    network: Path | None = None
    cgroup: Path | None = None
    output: Path | None = None


@dataclass(frozen=True, slots=True)
class Created:
    """What was made: the snapshot ``ref`` with its manifest, the image ``root`` that it lies on, and the seconds of each stage."""

    ref: str
    snapshot: str
    engine: str
    root: Root
    push: PushReport
    timeline: dict[str, float]
    notes: tuple[str, ...]
    log: str
    healed: int = 0
    """What was damaged in the store, root and snapshot, and is written again."""


# -- freezing -----------------------------------------------------------------------------------------------------------------------------


def create(
    config: Config,
    folder: Path,
    ref: Ref,
    ready: Ready,
    *,
    engine: str = "auto",
    lineage: str = "",
    timeout: float = READY_SECONDS,
    given: Surroundings | None = None,
    jobs: int = 2,
    recheck: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Created:
    """Start the program of the bundle in ``folder``, freeze it when it is ``ready``, and publish it as ``ref``.

    ``engine`` is one of ``engines.NAMES`` or ``auto``; ``timeout`` seconds are waited for it to be ready; ``recheck`` as of ``push``, and
    for the root as well. Errors as of ``read_bundle``, ``convert``, the engine and ``push``; ``ProgramError`` if the program ends before,
    ``DeadlineError``.
    """
    bundle = read_bundle(folder)
    program, clock, app = bundle.program, Clock(), slug(ref.name)
    with contextlib.closing(open_store(config.store, create=True, private=True)) as store, _Host(config) as host:
        _check_free(store, ref)
        checkpointer, found = _able(host.working(engine), program)
        with clock.stage("root"):
            root = bundles_root.publish(store, bundle.root, app, jobs=jobs, recheck=recheck, progress=progress)
        with clock.stage("mount"):
            mounted = host.mounts.manifest(root.manifest, label=root.ref)
        sandbox = partial(_sandbox, program, mounted, (), given or Surroundings())
        with host.replica(app, checkpointer, found, sandbox) as replica, host.checkpoint() as images:
            with clock.stage("start"):
                checkpointer.start(replica.sandbox, deadline=_START_SECONDS)
            with clock.stage("ready"):
                wait_until_ready(ready, checkpointer, replica.sandbox, deadline=timeout)
            with clock.stage("freeze"):
                checkpointer.checkpoint(replica.sandbox, images, deadline=_FREEZE_SECONDS)
            _keep(images, program)
            record = _record(program, found, root.manifest, lineage or app, clock.seconds["start"] + clock.seconds["ready"])
            with clock.stage("push"):
                report = repository.push(store, images, record, ref, jobs=jobs, recheck=recheck, progress=progress)
    notes = (*bundle.notes, *report.notes, *host.left)
    log, healed = str(replica.sandbox.output), root.healed + report.healed
    return Created(str(ref), report.manifest, found.name, root, report, _rounded(clock), notes, log, healed)


def _check_free(store: ObjectStore, ref: Ref) -> None:
    """Raise ``UsageError`` if the ref names an image: whoever mounts that would get memory."""
    with contextlib.suppress(NotFoundError):
        kind = get_manifest(store, read(store, ref).manifest).kind
        if kind != SNAPSHOT:
            raise UsageError(f"{ref} names an {kind}, and no snapshot", hint="choose another name for the snapshot")


def _able(engines: list[tuple[Checkpointer, Engine]], program: BundleProgram) -> tuple[Checkpointer, Engine]:
    """Return the first engine that can freeze the program; raise why the last one cannot."""
    refused: ImageFSError | None = None
    for engine, found in engines:
        refused = program.refused_by(found)
        if refused is None:
            return engine, found
    raise refused or UnsupportedError("no engine works here")


def _keep(images: Path, program: BundleProgram) -> None:
    path = images / bundles_program.FILE
    with host_errors():
        path.touch(0o600)
        path.write_bytes(bundles_program.encode(program))


def _record(program: BundleProgram, engine: Engine, image: str, lineage: str, cold: float) -> Record:
    here = compat.collect([engine])
    spec = program.spec()
    return Record(
        runtime=Runtime(engine=engine.name, version=engine.version, format=engine.format, exact=engine.is_exact),
        cpu=compat.cpu_needed(here),
        kernel=here.kernel,
        oci=Oci(image=image, spec=spec),
        lineage=lineage,
        key=key_of(image=image, spec=spec),
        created=time.time(),
        economics=Economics(cold_p50=round(cold, 4)),
    )


# -- restoring ----------------------------------------------------------------------------------------------------------------------------


class Running:
    """A restored program. ``close`` ends it, and leaves nothing."""

    def __init__(self, snapshot: Snapshot, replica: "_Replica", host: "_Host", clock: Clock, notes: list[str]) -> None:
        """It runs."""
        self.ref = snapshot.ref
        self.snapshot = snapshot.name
        self.engine = snapshot.record.runtime.engine
        self.output = replica.sandbox.output
        self.timeline = _rounded(clock)
        self.notes = notes
        self._replica = replica
        self._host = host

    def wait(self) -> int:
        """Wait until the program has ended, however long it takes; return its exit status. ``EngineError`` if nobody knows it."""
        while True:
            with contextlib.suppress(DeadlineError):
                return self._replica.engine.wait(self._replica.sandbox, deadline=_WAIT_SECONDS)

    def close(self) -> list[str]:
        """See the class; return what could not be taken away."""
        try:
            self._replica.close()
        finally:
            self._host.close()
        return self._host.left


def restore(config: Config, text: str, *, given: Surroundings | None = None) -> Running:
    """Restore the snapshot that a ref or a digest names, and return when its program runs.

    ``UnsupportedError`` with all reasons if it does not fit this host, or is of no bundle; ``IntegrityError`` if it contradicts itself;
    errors of the store, the daemon and the engine.
    """
    began, clock = time.time(), Clock()
    host = _Host(config)
    try:
        with clock.stage("resolve"):
            with contextlib.closing(open_store(config.store)) as store:
                snapshot = repository.inspect(store, text)
            engine, found, notes = _fitting(snapshot, host)
        with clock.stage("mount"):
            images, root = _mounted(snapshot, host.mounts)
            program = _kept(snapshot, images)
        _able([(engine, found)], program)
        layer = _layer(snapshot, images)
        sandbox = partial(_sandbox, program, root, layer, given or Surroundings())
        with clock.stage("engine"), contextlib.ExitStack() as stack:
            replica = stack.enter_context(host.replica(slug(snapshot.record.lineage), engine, found, sandbox))
            engine.restore(replica.sandbox, images, deadline=_RESTORE_SECONDS)
            stack.pop_all()
        timeline.keep(replica.place.output, _told(snapshot, began, clock))
    except BaseException:
        host.close()
        raise
    return Running(snapshot, replica, host, clock, notes)


def _told(snapshot: Snapshot, began: float, clock: Clock) -> timeline.Timeline:
    """Return what is kept of a restore."""
    return timeline.Timeline(
        began=began,
        target=snapshot.ref,
        started="restored",
        reason="",
        engine=snapshot.record.runtime.engine,
        snapshot=snapshot.name,
        stages=_rounded(clock),
    )


def _fitting(snapshot: Snapshot, host: "_Host") -> tuple[Checkpointer, Engine, list[str]]:
    """Return the engine that restores it here, and what may be worth knowing. ``UnsupportedError`` with the reasons why it cannot be."""
    record = snapshot.record
    if record.python is not None:
        raise UnsupportedError(f"{snapshot.ref} is of a service, and no bundle", hint="`imagefs snapshot run` restores services")
    engines: list[tuple[Checkpointer, Engine]] = []
    reasons = []
    if record.runtime.engine in NAMES:
        try:
            engines = host.working(record.runtime.engine)
        except UnsupportedError as error:
            reasons.append(error.message)
    mismatches = compat.match(record, compat.collect([found for _, found in engines]))
    if not compat.fits(mismatches):
        reasons = [mismatch.why for mismatch in mismatches if mismatch.fatal] + reasons
        raise UnsupportedError(
            f"{snapshot.ref} cannot be restored here: {'; '.join(reasons)}",
            hint="`imagefs snapshot doctor` says what this host could restore",
        )
    return *engines[0], [mismatch.why for mismatch in mismatches]


def _mounted(snapshot: Snapshot, mounts: Mounts) -> tuple[Path, Path]:
    """Mount a snapshot and its root, at once, as each waits for the store; return where."""
    with ThreadPoolExecutor(1, thread_name_prefix="mount") as pool:
        root = pool.submit(mounts.manifest, snapshot.record.oci.image, label=f"the root of {snapshot.ref}")
        # In FUSE mode, because there each byte is verified.
        images = mounts.manifest(snapshot.name, mode="fuse", label=snapshot.ref)
        return images, root.result()


def _layer(snapshot: Snapshot, images: Path) -> tuple[Path, ...]:
    """Return the writable layer that the snapshot has, if it has one apart from its memory."""
    try:
        return (images / LAYER,) if (images / LAYER).is_dir() else ()
    except OSError as error:
        raise IntegrityError(f"{snapshot.ref}: its layer cannot be read: {error.strerror}") from error


def _kept(snapshot: Snapshot, images: Path) -> BundleProgram:
    """Return the program that the snapshot has, if it is the one of its record."""
    try:
        descriptor = os.open(images / bundles_program.FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(bundles_program.FILE_MAX + 1)
    except FileNotFoundError:
        raise UnsupportedError(f"{snapshot.ref} is no snapshot of a bundle: it has no {bundles_program.FILE}") from None
    except OSError as error:
        raise IntegrityError(f"{snapshot.ref}: {bundles_program.FILE} cannot be read: {error.strerror}") from error
    program = bundles_program.decode(data)
    if program.spec() != snapshot.record.oci.spec:
        raise IntegrityError(f"{snapshot.ref} contradicts itself: {bundles_program.FILE} is not of the sandbox that its record names")
    return program


# -- this host ----------------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Replica:
    """A program in its sandbox, whether it runs or not. A context manager: leaving it ends the program."""

    engine: Checkpointer
    sandbox: Sandbox
    place: ReplicaPlace

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the program, and take away all but the log."""
        try:
            self.engine.remove(self.sandbox)
        finally:
            self.place.close()


class _Host:
    """What this process has on this host. A context manager; what could not be taken away is ``left`` afterwards."""

    def __init__(self, config: Config) -> None:
        self._engines = Engines(config.runtime)
        self._place = Workplace(config.runtime, config.cache)
        self.mounts = Mounts(config, self._place.mounts)
        self.left: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.left += self.mounts.close()
        self._place.close()

    def working(self, engine: str) -> list[tuple[Checkpointer, Engine]]:
        """Return the engines that work here; have what killed processes left taken away first."""
        self._place.sweep(self._engines.named)
        return self._engines.working(engine)

    def replica(self, app: str, engine: Checkpointer, found: Engine, sandbox: Callable[[ReplicaPlace], Sandbox]) -> "_Replica":
        """Make a place for a program, and its sandbox there; it does not run yet."""
        place = self._place.replica(app, found.name)
        return _Replica(engine, sandbox(place), place)

    @contextlib.contextmanager
    def checkpoint(self) -> Iterator[Path]:
        """Give an empty directory for what is frozen, which is as large as the memory."""
        folder = self._place.checkpoint()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _sandbox(program: BundleProgram, root: Path, lower: tuple[Path, ...], given: Surroundings, place: ReplicaPlace) -> Sandbox:
    """Return the sandbox of a program in its place on this host."""
    output = given.output or place.output
    made = program.sandbox(name=place.name, root=root, state=place.home / "state", output=output, lower=lower)
    return replace(made, network=given.network, cgroup=given.cgroup)


def _rounded(clock: Clock) -> dict[str, float]:
    return {stage: round(seconds, 4) for stage, seconds in clock.seconds.items()}
