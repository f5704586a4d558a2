"""Which snapshot of a program is restored here, and with which engine, or why none is: what the store has, held against this host."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from imagefs.store.base import ObjectStore
from snapshotstore import compat
from snapshotstore.checkpoint.base import Checkpointer, Engine
from snapshotstore.listing import Snapshot, listing
from snapshotstore.runner.program import Program

Working = tuple[Checkpointer, Engine]
"""An engine that works here, and what is known of it."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The ``snapshot`` to restore with ``engine``; or None, for ``reason``, and the engine for a cold start."""

    snapshot: Snapshot | None
    engine: Working
    reason: str = ""


def choose(store: ObjectStore, program: Program, engines: Sequence[Working], broken: Mapping[str, str]) -> Chosen:
    """Look what the store has of a program, and choose: the first of ``engines`` that has one that fits, and of its variants the best.

    ``broken`` says why manifests, in hex, are not to be restored again. Raises what a store that is not well raises.
    """
    found = listing(store, program.name)
    reasons = [f"{ref}: {error.message}" for ref, error in found.unreadable]
    reasons += [f"{one.ref}: {one.problem.message}" for one in found.snapshots if one.problem is not None]
    snapshots = [Snapshot(one.name, str(one.ref), one.manifest, one.record) for one in found.snapshots if one.record is not None]
    for engine in engines:
        of_engine = [one for one in snapshots if one.record.runtime.engine == engine[1].name and one.name not in broken]
        here = replace(compat.collect([engine[1]]), image=program.image, spec=program.spec(engine[1]), key=program.key)
        choice = compat.choose([one.record for one in of_engine], here)
        if choice.best is not None:
            return Chosen(of_engine[choice.best], engine)
        for one, mismatches in zip(of_engine, choice.mismatches, strict=True):
            reasons += [f"{one.ref}: {mismatch.why}" for mismatch in mismatches if mismatch.fatal]
    used = [engine.name for _, engine in engines]
    others = [one for one in snapshots if one.record.runtime.engine not in used]
    reasons += [f"{one.ref}: it needs the engine {one.record.runtime.engine}, and what can be used is {', '.join(used)}" for one in others]
    reasons += [f"{one.ref}: {broken[one.name]}" for one in snapshots if one.name in broken]
    return Chosen(None, engines[0], "; ".join(reasons) or "there is no snapshot of it yet")
