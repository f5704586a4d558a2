"""The engines of this host: found on PATH, tried once, and what was found kept beside the sockets until the program or the kernel changes.

Trying one starts a sandbox, which takes longer than a restore. So the answer is kept in a file of the runtime directory, by the program's
path, size and time and the boot of the kernel; a file that cannot be read is as good as none.
"""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from imagefs.errors import ImageFSError, UnsupportedError, UsageError
from snapshotstore.checkpoint.base import Checkpointer, Engine

NAMES: Final = ("runsc", "criu")
"""In the order in which they are preferred: gVisor isolates more."""

_FILE: Final = "engines.json"
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


class Engines:
    """See the module."""

    def __init__(self, runtime: Path) -> None:
        """Nothing is looked for yet."""
        self._file = runtime / _FILE
        self._found: dict[str, tuple[Checkpointer, Engine]] = {}

    def close(self) -> None:
        """Let go of what engines have prepared."""
        for engine, _ in self._found.values():
            engine.close()

    def working(self, wanted: str = "auto") -> list[tuple[Checkpointer, Engine]]:
        """Return the engines that work here, the preferred first; ``UnsupportedError`` with the reasons if none does."""
        if wanted not in {"auto", *NAMES}:
            raise UsageError(f"there is no engine {wanted!r}", hint=f"auto, {', '.join(NAMES)}")
        found, reasons = [], []
        for name in NAMES if wanted == "auto" else (wanted,):
            try:
                found.append(self._one(name))
            except ImageFSError as error:
                reasons.append(error.message)
        if not found:
            raise UnsupportedError(f"no engine works here: {'; '.join(reasons)}", hint="`imagefs snapshot doctor` says what is missing")
        return found

    @staticmethod
    def named(name: str) -> Checkpointer:
        """Return an engine, whether or not it is here and works: to take away what it once ran. ``KeyError`` if there is none such."""
        if name not in NAMES:
            raise KeyError(name)
        return _made(name, Path(shutil.which(name) or name))

    def _one(self, name: str) -> tuple[Checkpointer, Engine]:
        if name not in self._found:
            path = shutil.which(name)
            if path is None:
                raise UnsupportedError(f"there is no {name} on PATH")
            program = Path(path).resolve()
            known = self._kept(program)
            engine = _made(name, program, known)
            if known is None:
                known = engine.probe()
                self._keep(program, known)
            self._found[name] = engine, known
        return self._found[name]

    def _kept(self, program: Path) -> Engine | None:
        try:
            kept = json.loads(self._file.read_bytes())[_identity(program)]
            return Engine(**{**kept, "program": program, "features": frozenset(kept["features"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _keep(self, program: Path, found: Engine) -> None:
        kept: dict[str, Any] = {}
        try:
            before = json.loads(self._file.read_bytes())
            kept = {key: value for key, value in before.items() if key.startswith(_boot())}
        except (OSError, ValueError, AttributeError):
            pass
        kept[_identity(program)] = {**asdict(found), "program": "", "features": sorted(found.features)}
        new = self._file.with_name(f".{_FILE}.{os.getpid()}")
        try:
            new.write_text(json.dumps(kept))
            new.chmod(0o600)
            new.replace(self._file)
        except OSError:  # It is looked for again.
            new.unlink(missing_ok=True)


def _made(name: str, program: Path, found: Engine | None = None) -> Checkpointer:
    """Return an engine, with what was found before. The code of one is loaded when it is used: a call uses one of them."""
    if name == "criu":
        from snapshotstore.checkpoint.criu import Criu  # noqa: PLC0415

        return Criu(program)
    from snapshotstore.checkpoint.runsc import Runsc  # noqa: PLC0415

    engine = Runsc(program)
    if found is not None:
        engine.trust(found)
    return engine


def _boot() -> str:
    return _BOOT.read_text().strip()


def _identity(program: Path) -> str:
    found = program.stat()
    return f"{_boot()} {program} {found.st_size} {found.st_mtime_ns} {os.geteuid()}"
