"""The golden image, optimized by a profile made by code, known by the digests in ``optimized-1.json``."""

from pathlib import Path
from typing import Any, Final

from imagefs.convert.optimize import OptimizeReport, optimize
from imagefs.digest import digest_of
from imagefs.format.accesses import EVERY_START, GRAIN
from imagefs.format.profile import Access, Key, Profile
from imagefs.store.opening import open_store
from imagefs.store.refs import Ref, resolve
from tests.corpus.features import noise
from tests.golden.image import golden_layout
from tests.system.world import World

GOLDEN: Final = Path(__file__).with_name("optimized-1.json")
"""The digests in layout 1."""


def touching(contents: list[bytes], *, parts: int = 1) -> Profile:
    """A profile of starts that read these one after the other, the first of ``parts`` parts of each."""
    accesses = {}
    for at, data in enumerate(contents):
        grains = -(-len(data) // parts // GRAIN)
        accesses[digest_of(data)] = Access(digest_of(data), 0, max(grains, 1) * GRAIN, at * 3, EVERY_START)
    return Profile("0" * 64, Key(), 5, list(accesses.values()))


def optimized(world: World, profile: Profile, ref: str = "test", to: str = "fast") -> OptimizeReport:
    store = open_store(f"file://{world.store}")
    try:
        origin = resolve(store, ref)
        return optimize(store, ref, lambda name: profile if name == origin else None, to=Ref.parse(to))
    finally:
        store.close()


def feature_contents() -> list[bytes]:
    """What the golden image's programs read: of every kind of file some."""
    found = [noise(3_000 + number * 977 % 61_000, b"%d" % number) for number in range(0, 240, 7)]
    return [*found, *(noise(300_000 + number * 40_000, b"m%d" % number) for number in (5, 1)), noise(700_000, b"program")]


def optimized_digests(world: World, scratch: Path) -> dict[str, Any]:
    """Convert and optimize the golden image; return the digests, those of what went in first."""
    world.convert(f"oci:{golden_layout(scratch / 'golden')}", "test", "--platform", "linux/amd64")
    report = optimized(world, touching(feature_contents()))
    return {"profile": report.profile, "origin": report.origin, "manifest": report.manifest}
