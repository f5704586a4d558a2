"""Which Debian release this machine runs, and from which mirror it gets it: read from its own apt sources, never assumed."""

import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.images.cache import MakeError

# What debootstrap can fetch from.
_SCHEMES = ("http://", "https://", "file:/")


@dataclass(frozen=True, slots=True)
class Release:
    """A Debian release and where it comes from; ``suite`` is its code name."""

    mirror: str
    suite: str


def this_release(etc: Path = Path("/etc")) -> Release:
    """Give the release of this machine.

    Raises:
        MakeError: no apt source of this machine has the release's ``main``.

    """
    suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    for uri, suites, components in _sources(etc / "apt"):
        if suite in suites and "main" in components and uri.startswith(_SCHEMES):
            return Release(uri, suite)
    raise MakeError(f"no apt source of this machine has Debian {suite or '(unknown release)'} main")


def _sources(apt: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield (URI, suites, components) of every binary source, both syntaxes of sources.list(5)."""
    folder = apt / "sources.list.d"
    for path in (apt / "sources.list", *sorted(folder.glob("*.list"))):
        if path.is_file():
            for line in path.read_text().splitlines():
                # deb [option=value …] URI suite component…
                found = re.match(r"deb\s+(?:\[[^]]*]\s+)?(\S+)\s+(\S+)\s+([^#]+)", line.strip())
                if found:
                    yield found[1], [found[2]], found[3].split()
    for path in sorted(folder.glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text()):
            fields = _fields(stanza)
            if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").lower() not in {"no", "false"}:
                for uri in fields.get("uris", "").split():
                    yield uri, fields.get("suites", "").split(), fields.get("components", "").split()


def _fields(stanza: str) -> dict[str, str]:
    lines = [line for line in stanza.splitlines() if not line.startswith("#")]
    unfolded = re.sub(r"\n[ \t]+", " ", "\n".join(lines))
    pairs = (line.partition(":") for line in unfolded.splitlines() if ":" in line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}
