"""Platforms in OCI's words: what this machine is, and which of an index's entries fits."""

import platform as _machine
import re
from collections.abc import Sequence
from dataclasses import dataclass

from imagefs.errors import UsageError

_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "amd64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "arm64": ("arm64", ""),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "i386": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
    "loongarch64": ("loong64", ""),
}
_IMPLIED = {"amd64": "v1", "arm64": "v8"}
"""The variant that is meant where none is written."""

_PART = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Target:
    """An operating system, an architecture and, where it matters, a variant (``""`` where not)."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        """``os/architecture[/variant]``."""
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    @property
    def normal(self) -> "Target":
        """The same in one spelling: arm64 is v8 and amd64 is v1 unless said otherwise, 32-bit arm is v7."""
        architecture, implied = _ARCHITECTURES.get(self.architecture, (self.architecture, ""))
        variant = self.variant or implied
        if (architecture, variant) in {("arm64", "v8"), ("arm64", "8"), ("amd64", "v1")}:
            variant = ""
        if architecture == "arm" and variant in {"", "7"}:
            variant = "v7"
        return Target(self.os.lower(), architecture, variant)


def best(wanted: Target, offered: Sequence[Target]) -> int | None:
    """Return the index of the platform that fits ``wanted`` best, the first of equals; None if none does.

    A lower variant fits too, the highest of them best: a v7 machine runs what is made for v6. Both sides are in their normal spelling.
    """
    found: tuple[int, int] | None = None
    limit = _level(wanted)
    for index, target in enumerate(offered):
        if (target.os, target.architecture) != (wanted.os, wanted.architecture):
            continue
        if target.variant == wanted.variant:
            return index
        level = _level(target)
        if limit is not None and level is not None and level <= limit and (found is None or level > found[0]):
            found = level, index
    return None if found is None else found[1]


def _level(target: Target) -> int | None:
    match = re.fullmatch(r"v(\d{1,3})", target.variant or _IMPLIED.get(target.architecture, ""))
    return int(match[1]) if match else None


def this_machine() -> Target:
    """Return the platform of this machine."""
    return Target("linux", _machine.machine()).normal


def parse(text: str) -> Target:
    """Parse ``os/architecture[/variant]``, or an architecture alone."""
    parts = text.lower().split("/")
    if len(parts) > 3 or not all(_PART.fullmatch(part) for part in parts):
        raise UsageError(f"not a platform: {text[:80]!r}", hint="OS/ARCHITECTURE[/VARIANT], such as linux/arm64")
    if len(parts) == 1:
        return Target("linux", parts[0]).normal
    return Target(*parts).normal
