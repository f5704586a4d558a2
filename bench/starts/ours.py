"""ImageFS as a system: both modes, and what its store knows of earlier starts.

Each variant has a store of its own, so that what one records tells another nothing: nothing is known; the same program was started twice
before; that, and the image was optimized since; only a quite different program was started. Earlier starts go over the same link, on hosts
of their own. A variant that this version cannot make is skipped, and says so.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness import IMAGEFS, Product
from bench.starts import processes
from bench.starts.place import Place, Prepared
from bench.starts.systems import Host, System
from bench.starts.workloads import STRANGER

EARLIER = 2
"""Starts that a profile is made of."""

_PREPARE = 300.0
_PUBLISHED = 60.0


@dataclass(frozen=True, slots=True)
class Variant:
    """What the store knows: ``recorded`` earlier starts of the program (or of another, ``stranger``), and whether it was optimized then."""

    name: str
    title: str
    settings: str
    recorded: bool = True
    stranger: bool = False
    optimized: bool = False
    options: tuple[str, ...] = ()


VARIANTS = (
    Variant("none", "no profile", "`--no-prefetch`", recorded=False, options=("--no-prefetch",)),
    Variant("profile", "profile", f"{EARLIER} earlier starts on other hosts over the same link, nothing else"),
    Variant("optimized", "optimized", f"{EARLIER} earlier starts, then `imagefs optimize`", optimized=True),
    Variant(
        "stranger",
        "another's profile",
        f"{EARLIER} earlier starts of a program that reads nothing of what this one does",
        stranger=True,
        options=("--no-record",),
    ),
)


class Ours(System):
    """ImageFS with S3, in one mode and one variant. The daemon runs before the start, as a service does."""

    kind = "ours"

    def __init__(self, where: Place, mode: str, variant: Variant) -> None:
        """Be ``imagefs-MODE-VARIANT``."""
        super().__init__(where)
        self.mode, self.variant = mode, variant
        self.name = f"imagefs-{mode}-{variant.name}"
        self.title = f"ImageFS, {mode} mode, {variant.title}"
        self.settings = variant.settings

    def missing(self) -> str:
        """See whether this version records and optimizes."""
        if self.variant.recorded and not _knows("profile"):
            return "this version of ImageFS has no profiles"
        if self.variant.optimized and not _knows("optimize"):
            return "this version of ImageFS has no optimize"
        return ""

    def prepare(self, prepared: Prepared) -> None:
        """Convert the image, and let the store learn what this variant's knows."""
        name = prepared.workload.name
        if (marker := self.where.folder / f"{name}-{self.variant.name}-stored").exists():
            return
        publisher = _Product(self.where, self.where.folder / "publisher", self._store(prepared), self.mode, far=False)
        publisher.timed("convert", f"oci:{prepared.image.layout}:{prepared.image.tag}", _ref(prepared))
        if self.variant.recorded:
            command = STRANGER if self.variant.stranger else prepared.workload.command
            for number in range(EARLIER):
                self._earlier(prepared, command, self.where.folder / "earlier" / f"{name}-{self.variant.name}-{number}")
        if self.variant.optimized:
            publisher.timed("optimize", _ref(prepared))
        marker.touch()

    @contextlib.contextmanager
    def host(self, prepared: Prepared, folder: Path) -> Iterator[Host]:
        """Give a host with a daemon and an empty cache."""
        product = _Product(self.where, folder, self._store(prepared), self.mode, far=True)
        with product.daemon():
            yield _OurHost(folder, product, _ref(prepared), self.variant.options)

    def _earlier(self, prepared: Prepared, command: Sequence[str], folder: Path) -> None:
        """Start once on a host of its own, and wait until the store has what was recorded."""
        product = _Product(self.where, folder, self._store(prepared), self.mode, far=True)
        before = product.profiles(_ref(prepared))
        with product.daemon():
            with _OurHost(folder, product, _ref(prepared), ()).root(_PREPARE) as root:
                processes.program(root, command, _PREPARE)
            deadline = time.monotonic() + _PUBLISHED
            while product.profiles(_ref(prepared)) == before:
                if time.monotonic() > deadline:
                    raise processes.Failed(f"{self.name}: no profile of an earlier start came to the store within {_PUBLISHED:.0f} s")
                time.sleep(0.2)

    def _store(self, prepared: Prepared) -> str:
        return f"s3://bench/{prepared.workload.name}-{self.variant.name}"


class _Product(Product):
    """A host's ImageFS: ``far`` reaches the store over the link."""

    def __init__(self, where: Place, base: Path, store: str, mode: str, *, far: bool) -> None:
        super().__init__(base, mode)
        base.mkdir(parents=True, exist_ok=True)
        self.env = where.environment(far=far) | {name: value for name, value in self.env.items() if name.startswith("IMAGEFS_")}
        self.env["IMAGEFS_STORE"] = store

    def profiles(self, ref: str) -> str:
        """Give what the store lists as profiles of an image: any change of it is news."""
        return json.dumps(self.run("profile", "ls", ref), sort_keys=True)


class _OurHost(Host):
    def __init__(self, folder: Path, product: _Product, ref: str, options: Sequence[str]) -> None:
        super().__init__(folder)
        self._product, self._ref, self._options = product, ref, options

    @contextlib.contextmanager
    def root(self, seconds: float) -> Iterator[Path]:
        point = self.folder / "root"
        point.mkdir(exist_ok=True)
        processes.command(IMAGEFS, "mount", self._ref, point, *self._options, seconds=seconds, env=self._product.env)
        try:
            yield point
        finally:
            with contextlib.suppress(processes.Failed):
                processes.command(IMAGEFS, "umount", point, seconds=30, env=self._product.env)
            processes.unmount(point)

    def figures(self) -> dict[str, Any]:
        stats = self._product.run("stats")
        wanted = ("bytes_read", "store_gets", "store_bytes", "prefetch_bytes", "prefetch_used_bytes", "hedged_gets")
        return {name: stats[name] for name in wanted if name in stats}


def ours(where: Place) -> list[System]:
    """Give both modes in all variants."""
    return [Ours(where, mode, variant) for mode in ("kernel", "fuse") for variant in VARIANTS]


def _ref(prepared: Prepared) -> str:
    return f"{prepared.workload.name}:1"


def _knows(command: str) -> bool:
    with contextlib.suppress(processes.Failed):
        processes.command(IMAGEFS, command, "--help", seconds=20)
        return True
    return False
