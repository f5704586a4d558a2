"""What of a service does not depend on where it runs: its root, its command line, its environment, its key. Pure, but for nothing.

The same service on another host has to come out as the same program, or no snapshot of it fits: all of it follows from the entry, the
image's manifest, the source tree, and the engine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from imagefs.digest import digest_of
from imagefs.errors import UsageError
from snapshotstore.checkpoint import bundle
from snapshotstore.checkpoint.base import ANY_USER, Bind, Engine, Sandbox
from snapshotstore.manifest import key_of
from snapshotstore.runner.entry import Entry
from snapshotstore.runner.source import AGENT, APP, REPLICA, slug

NOBODY: Final = 65534
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SEED_BITS: Final = 32


@dataclass(frozen=True, slots=True)
class Program:
    """A service as it is to be run: ``image`` is the manifest of its root, in hex, and ``key`` what its snapshots are found by."""

    entry: Entry
    image: str
    environment: Mapping[str, str]
    source_digest: str
    key: str

    @property
    def name(self) -> str:
        """The name below which its snapshots are published, one tag a variant."""
        return f"snapshots/{slug(self.entry.settings.app)}/{self.key[:32]}"

    @property
    def argv(self) -> tuple[str, ...]:
        """The command line."""
        return ("python3", "-m", "snapshotstore.agent", self.entry.target, REPLICA, *self.entry.settings.preload)

    def sandbox(self, engine: Engine, *, name: str, home: Path, root: Path, lower: tuple[Path, ...], output: Path) -> Sandbox:
        """Return the sandbox: what it needs of this host is below ``home``, which has ``state`` and ``replica``."""
        # Without that right CRIU restores programs of its own user alone; they have no capabilities in either case.
        user = NOBODY if engine.name != "criu" or ANY_USER in engine.features else 0
        return Sandbox(
            name=name,
            root=root,
            state=home / "state",
            output=output,
            argv=self.argv,
            environment=self.environment,
            uid=user,
            gid=user,
            binds=(Bind(source=home / "replica", target=REPLICA, writable=True),),
            lower=lower,
            fixed_layout=self.entry.settings.fixed_layout,
        )

    def spec(self, engine: Engine) -> str:
        """Return the digest, in hex, of what has to be equal where it is restored."""
        nowhere = Path("/")
        made = self.sandbox(engine, name="spec", home=nowhere, root=nowhere, lower=(), output=nowhere)
        return digest_of(bundle.encode(bundle.identity(made))).hex()


def program_of(entry: Entry, *, image: str, config: Mapping[str, Any], source_digest: str, given: Mapping[str, str]) -> Program:
    """Return the program of a service.

    ``config`` is the image's, ``given`` the caller's environment, of which the service takes what it names. ``UsageError`` if that lacks
    one of them.
    """
    if lacking := sorted(name for name in entry.settings.environment if name not in given):
        raise UsageError(f"{entry.target} needs {', '.join(lacking)} in the environment", hint="its decorator names them")
    seed = str(int.from_bytes(digest_of(entry.settings.app.encode())[: _SEED_BITS // 8], "big"))
    own = {
        "PYTHONPATH": f"{APP}:{AGENT}",
        "PYTHONHASHSEED": seed if entry.settings.fixed_layout else "random",
        "PYTHONUNBUFFERED": "1",
    }
    environment = {"PATH": _PATH, "HOME": "/", **image_environment(config), **own}
    key = key_of(
        image=image,
        source=source_digest,
        target=entry.target,
        environment=sorted({*environment, *entry.settings.environment}),
        app=entry.settings.app,
        fixed_layout=entry.settings.fixed_layout,
    )
    return Program(entry, image, environment, source_digest, key)


def image_environment(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables that an image's configuration sets; what is malformed is left out."""
    section = config.get("config")
    listed = section.get("Env") if isinstance(section, Mapping) else None
    pairs = (str(text).partition("=") for text in listed or () if isinstance(text, str))
    return {name: value for name, equals, value in pairs if name and equals}
