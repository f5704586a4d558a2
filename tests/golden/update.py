"""``python -m tests.golden.update``: record the golden image's digests anew, after a change of the format that was meant."""

import json
import sys
import tempfile
from pathlib import Path

from tests.golden.image import GOLDEN, golden_digests
from tests.system.world import World


def main() -> None:
    """Write the file, and say whether anything changed."""
    with tempfile.TemporaryDirectory(prefix="imagefs-golden-") as scratch:
        world = World(Path(scratch) / "world")
        text = json.dumps(golden_digests(world, Path(scratch)), indent=2) + "\n"
        world.close()
    changed = not GOLDEN.exists() or GOLDEN.read_text() != text
    GOLDEN.write_text(text)
    sys.stdout.write(f"{GOLDEN}: {'changed' if changed else 'as it was'}\n")


if __name__ == "__main__":
    main()
