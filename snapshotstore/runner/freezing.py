"""A replica that was frozen at the boundary, and how it becomes a snapshot that others find."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imagefs.digest import digest_of
from imagefs.store.base import ObjectStore
from imagefs.store.refs import Ref
from snapshotstore import compat
from snapshotstore.checkpoint.base import Engine
from snapshotstore.manifest import Economics, Oci, Record, Runtime
from snapshotstore.manifest import Program as PythonProgram
from snapshotstore.runner.program import Program
from snapshotstore.runner.replica import Ready
from snapshotstore.runner.source import REPLICA, slug

if TYPE_CHECKING:
    from snapshotstore.repository import PushReport

_TAG_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Frozen:
    """The files of a checkpoint, in ``folder``, of ``program``, made by ``engine`` after a start that took ``cold`` seconds.

    ``source`` is the manifest of the source tree, in hex; ``ready`` what the program said of itself, if it did.
    ``recheck``: a member of its lineage could not be restored, so that what the store has of that is not to be relied on unread.
    """

    folder: Path
    program: Program
    engine: Engine
    source: str
    cold: float
    ready: Ready | None
    recheck: bool = False


def push(store: ObjectStore, frozen: Frozen) -> "PushReport":
    """Publish it, as the variant of this engine and processor. Raises what ``repository.push`` raises; the folder stays."""
    from snapshotstore import repository  # noqa: PLC0415 # it loads what cuts and compresses, which a restore need not wait for

    record = record_of(frozen)
    variant = f"{frozen.engine.name}-{digest_of(repr(record.cpu).encode()).hex()[:_TAG_DIGITS]}"
    return repository.push(store, frozen.folder, record, Ref(frozen.program.name, variant), recheck=frozen.recheck)


def record_of(frozen: Frozen) -> Record:
    """Return the record of what was frozen on this host."""
    program, engine, ready = frozen.program, frozen.engine, frozen.ready or Ready("", "")
    here = compat.collect([engine])
    settings = program.entry.settings
    return Record(
        runtime=Runtime(engine=engine.name, version=engine.version, format=engine.format, exact=engine.is_exact),
        cpu=compat.cpu_needed(here),
        kernel=here.kernel,
        oci=Oci(image=program.image, spec=program.spec(engine), mounts=(REPLICA,)),
        lineage=slug(settings.app),
        key=program.key,
        created=time.time(),
        python=PythonProgram(
            version=ready.python,
            torch=ready.torch,
            argv=program.argv,
            environment=tuple(sorted({*program.environment, *settings.environment})),
            entry=program.entry.target,
            source=frozen.source,
        ),
        economics=Economics(cold_p50=round(frozen.cold, 4)),
    )
