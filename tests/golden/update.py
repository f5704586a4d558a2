"""``python -m tests.golden.update``: record the golden images' digests anew, after a change of format or layout that was meant."""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.golden import image, optimized
from tests.system.world import World


def main() -> None:
    """Write the files, and say whether anything changed."""
    _write(image.GOLDEN, image.golden_digests)
    _write(optimized.GOLDEN, optimized.optimized_digests)


def _write(golden: Path, digests: Callable[[World, Path], dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory(prefix="imagefs-golden-") as scratch:
        world = World(Path(scratch) / "world")
        text = json.dumps(digests(world, Path(scratch)), indent=2) + "\n"
        world.close()
    changed = not golden.exists() or golden.read_text() != text
    golden.write_text(text)
    sys.stdout.write(f"{golden}: {'changed' if changed else 'as it was'}\n")


if __name__ == "__main__":
    main()
