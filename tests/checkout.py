"""The checkout that the tests are in, and whether ``./dev setup`` has anything to do there."""

import os
import subprocess
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]

_OUT_OF_REACH: Final = "#!/bin/sh\necho 'run ./dev setup first' >&2\nexit 1\n"


def setup(folder: Path) -> tuple[int, str]:
    """Run ``./dev setup``; return its exit status and what it said: 0 and nothing, where the checkout is set up.

    Where it is not, nothing is installed: this machine's packages are out of its reach, of which stand-ins are written to ``folder``.
    """
    for name in ("dpkg-query", "apt-get"):
        (folder / name).write_text(_OUT_OF_REACH)
        (folder / name).chmod(0o755)
    env = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run([ROOT / "dev", "setup"], env=env, capture_output=True, text=True, timeout=10, check=False)
    return done.returncode, done.stdout + done.stderr
