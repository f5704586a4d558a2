"""Where the tests find the engines: on PATH, or where ``./dev setup`` puts them for a machine whose own are too old."""

import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.system.world import missing

_BUILT: Final = Path(__file__).parents[2] / ".cache" / "engines" / "bin"


def engine(name: str, *probe: str) -> Path:
    """Return the program ``name``: ours first, which is new enough. Skip the test where there is none, or fail under ``IMAGEFS_REQUIRE=1``.

    ``probe`` are arguments with which it has to end well, if any are given.
    """
    ours = _BUILT / name
    found = str(ours) if ours.exists() else shutil.which(name)
    if found is None:
        missing(f"no {name} here: ./dev setup gets one")
    if probe and subprocess.run([found, *probe], capture_output=True, check=False, timeout=60).returncode:
        missing(f"{found} does not work here: {name} {' '.join(probe)} fails")
    return Path(found)
