"""An image as both modes show it, which has to be the same."""

from tests.system.compare import Snapshot, differences, snapshot
from tests.system.world import World


def seen_in_both_modes(world: World, ref: str, name: str) -> Snapshot:
    """Mount an image in either mode, at directories of that ``name``, and look; return what both show."""
    points = {mode: world.mount(ref, f"{mode}-{name}", mode=mode) for mode in ("fuse", "kernel")}
    fuse, kernel = (snapshot(point) for point in points.values())
    for point in points.values():
        world.umount(point)
    assert differences(fuse, kernel) == [], "FUSE mode shows this (left), and kernel mode that (right)"
    return fuse
