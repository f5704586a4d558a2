"""What an engine does that freezes programs and restores them: the contract of :class:`Checkpointer`, and what it is told.

A program runs in a sandbox: its root is a directory that nobody writes to (a mount of an image), with a writable layer of its own over it;
it is unprivileged, in namespaces of its own, below a cgroup if one is given. One conformance class in ``tests/snapshots`` holds every
engine to what stands here.

What every engine promises:

- **A checkpoint never ends the program.** It goes on running whether the checkpoint succeeds, is refused or fails; a checkpoint that fails
  leaves nothing in ``images``. Whether a program is alive is told by the program itself (``is_alive``), not by what an engine remembers.
- **What is refused is named**: ``EngineError`` says what the program has open that cannot be frozen, and before anything is frozen.
- **A restore that returns has a running program; one that fails leaves none**, nor mounts, cgroups or processes. ``images`` is read only
  while ``restore`` runs, and never written to.
- Every call has a deadline (``DeadlineError``), and what it started is ended when that is over.

What does not live here: where the files of a checkpoint are kept (``snapshotstore.repository``), and which of them may be restored where
(``snapshotstore.compat``). All of it blocks; none of it belongs to an event loop.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

ENGINE: Final = "engine"
LAYER: Final = "layer"
"""What a checkpoint has, below its directory."""

ANY_USER: Final = "any-user"
"""CRIU's feature that programs of any user can be frozen, and not only root's: it takes CAP_SYS_RESOURCE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    """A directory or file of the host that is seen in the sandbox. Its source may be another one in each clone; its target may not."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """A program, and where it runs.

    A restored program needs a sandbox that is equal but for ``name``, ``state``, ``output``, ``network``, ``cgroup``, the sources of
    ``binds``, and where its ``root`` is mounted.
    """

    name: str
    """Unlike that of any other on this host: lower-case letters, digits and hyphens, 64 at most."""

    root: Path
    """Its root file system: nothing below is ever written to."""

    state: Path
    """A directory of its own on this host, 0700, for its writable layer and what the engine keeps. Empty before it starts."""

    output: Path
    """What its standard output and standard error are appended to, 0600."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "/"
    uid: int = 65534
    gid: int = 65534
    hostname: str = "imagefs"
    binds: tuple[Bind, ...] = ()

    lower: tuple[Path, ...] = ()
    """Frozen writable layers of the snapshot that it comes from, the topmost first: they lie between its own, empty one and the root."""

    network: Path | None = None
    """The network namespace that it is to be in (a file like ``/run/netns/x``); None: a new one, with loopback alone."""

    cgroup: Path | None = None
    """A directory of a cgroup v2 hierarchy in which the engine and the program are started; None: that of the caller."""

    fixed_layout: bool = True
    """Start it without randomized addresses, so that starts of one program have equal pages."""


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that works on this host.

    ``format`` is what its files are readable by: snapshots of another format, or of another version where ``is_exact``, are not restored.
    """

    name: str
    version: str
    format: str
    program: Path
    is_exact: bool
    features: frozenset[str] = frozenset()


class Checkpointer(Protocol):
    """See the module. Its methods may be called from several threads at once, for different sandboxes."""

    def probe(self) -> Engine:
        """Look whether the engine is there, new enough, and works here. ``UnsupportedError``, with where a newer one is to be had."""

    def prepare(self) -> None:
        """Do ahead what the next start or restore begins with, whatever its sandbox. Whoever calls this calls :meth:`close` in the end."""

    def close(self) -> None:
        """Let go of what was prepared and not used. What runs is not concerned, and this may be used again."""

    def start(self, sandbox: Sandbox, *, deadline: float) -> None:
        """Start the program; return when it runs. ``EngineError``, ``DeadlineError``; nothing of it is left then."""

    def checkpoint(self, sandbox: Sandbox, images: Path, *, deadline: float) -> None:
        """Freeze the program, and let it go on. See the promises above.

        ``images`` is there and empty; afterwards ``images / ENGINE`` has the engine's files, and, where those do not have the writable
        layer, ``images / LAYER`` is a copy of it as it was while the program was frozen, with whiteouts as overlayfs has them.
        ``EngineError`` says what was refused; ``StoreFullError`` if the disk is full.
        """

    def restore(self, sandbox: Sandbox, images: Path, *, deadline: float) -> None:
        """Restore the program from what :meth:`checkpoint` made; return when it runs. ``EngineError``, ``DeadlineError``.

        The layer among it is not looked for in ``images``: whoever restores has mounted it, and names it in ``sandbox.lower``.
        """

    def is_alive(self, sandbox: Sandbox) -> bool:
        """Say whether the program itself is there, which is not asked of the engine."""

    def wait(self, sandbox: Sandbox, *, deadline: float) -> int:
        """Wait until the program has ended; return its exit status, 128 and the signal for one that was killed. ``DeadlineError``."""

    def remove(self, sandbox: Sandbox) -> None:
        """End the program if it runs, and take away all that is left of it but ``output``. Does no harm where there is nothing."""
