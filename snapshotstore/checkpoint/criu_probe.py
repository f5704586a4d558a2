"""Which CRIU a program is, and what it can do on this host."""

import os
import re
import tempfile
from pathlib import Path
from typing import Final

from imagefs.errors import UnsupportedError
from snapshotstore.checkpoint.base import ANY_USER, Engine
from snapshotstore.checkpoint.criu_refusals import may_freeze_any_user
from snapshotstore.checkpoint.criu_run import running
from snapshotstore.checkpoint.criu_state import Until

OLDEST: Final = (4, 1)
"""3.17, which Debian 12 has, cannot read the vDSO of recent kernels."""

SOCKETS: Final = "sockets"
"""The feature that programs can be frozen which have TCP or UDP sockets that are not connected."""

_FORMAT: Final = "criu-1"
_HINT: Final = "CRIU 4.1 or newer is in Debian 13 (apt-get install criu); Linux 6.16 and newer want 4.2"
_VERSION: Final = re.compile(r"^Version: (\d+)\.(\d+)(\S*)", re.MULTILINE)
_WITH_SOCKETS: Final = (4, 2)
_STRICT_KERNEL: Final = (6, 16)
"""From it on the kernel refuses options of TCP and UDP sockets that CRIU before 4.2 asks for: checkpoint-restore/criu#2705."""


def probe(program: Path, until: Until) -> Engine:
    """Return what ``program`` is. ``UnsupportedError`` if it is no CRIU that works here, ``DeadlineError`` if it does not answer."""
    if os.geteuid() != 0:
        raise UnsupportedError("CRIU takes root", hint="run it as root, in the host's pid and mount namespace")
    version, pair = _version(program, until)
    if pair < OLDEST:
        raise UnsupportedError(f"{program} is CRIU {version}, which is too old", hint=_HINT)
    code, said = _ask(program, "check", until)
    if code:
        raise UnsupportedError(f"CRIU {version} does not work here: {_last(said)}", hint="the kernel needs CONFIG_CHECKPOINT_RESTORE")
    features = {ANY_USER: may_freeze_any_user(), SOCKETS: pair >= _WITH_SOCKETS or _kernel() < _STRICT_KERNEL}
    return Engine("criu", version, _FORMAT, program, is_exact=False, features=frozenset(name for name, has in features.items() if has))


def can_freeze_sockets(program: Path, until: Until) -> bool:
    """Say whether ``program`` has the feature ``SOCKETS`` here."""
    return _kernel() < _STRICT_KERNEL or _version(program, until)[1] >= _WITH_SOCKETS


def _kernel() -> tuple[int, int]:
    major, minor = re.findall(r"\d+", os.uname().release)[:2]
    return int(major), int(minor)


def _version(program: Path, until: Until) -> tuple[str, tuple[int, int]]:
    code, said = _ask(program, "--version", until)
    match = _VERSION.search(said)
    if code or not match:
        raise UnsupportedError(f"{program} is no CRIU that runs here: {_last(said) or f'it ended with {code}'}", hint=_HINT)
    return f"{match[1]}.{match[2]}{match[3]}", (int(match[1]), int(match[2]))


def _ask(program: Path, argument: str, until: Until) -> tuple[int, str]:
    """Run CRIU with one argument; return its exit status and what it said."""
    with tempfile.NamedTemporaryFile() as file:
        try:
            with running([str(program), argument], Path(file.name)) as run:
                until.wait(run.pidfd)
        except OSError as error:
            raise UnsupportedError(f"{program} cannot be run: {error}", hint=_HINT) from error
        return run.code, Path(file.name).read_text(errors="replace")


def _last(said: str) -> str:
    return said.strip().rpartition("\n")[2]
