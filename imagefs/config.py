"""The configuration: one frozen :class:`Config`, built once by :func:`load_config` and passed down; and what a service manager tells.

Where each setting comes from is told in ``imagefs.settings``, which alone reads the environment.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes, urlsplit

from imagefs.settings import (
    DEFAULTS,
    ENVIRONMENT,
    LOG_LEVELS,
    MODES,
    aws_region,
    environment,
    instance_name,
    load_settings,
    parse_size,
    root_defaults,
)

if TYPE_CHECKING:
    from imagefs.settings import Settings

__all__ = [
    "ENVIRONMENT",
    "LOG_LEVELS",
    "MODES",
    "Config",
    "ManagerSettings",
    "aws_region",
    "environment",
    "environment_with",
    "load_config",
    "manager_settings",
    "parse_size",
    "root_defaults",
    "store_path",
]


@dataclass(frozen=True, slots=True)
class Config:
    """What a run of any ImageFS program was told.

    ``store`` is a URL; ``cache`` holds the SSD tier, ``runtime`` the sockets and the mount table. ``ram_bytes`` bounds the RAM tier;
    ``cache_bytes`` the SSD tier (0: only the free space does), which leaves ``cache_floor`` bytes free on its file system (None: a
    twentieth of it, 10 GiB at most). Within ``scrub_days`` all of it is verified (0: never). ``complete_bytes_per_second`` of
    images that are mounted, and not here yet, come in the background (0: none). ``store_deadline`` is in seconds: no read
    waits longer for the store. ``mode``, one of ``MODES``, is how images are mounted of which nothing else is said. ``metrics_listen`` is
    where Prometheus may ask too, beside the socket in ``runtime``: ``HOST:PORT``, with an address of this host's loopback.
    """

    store: str
    cache: Path
    runtime: Path
    ram_bytes: int = DEFAULTS["ram_bytes"]
    cache_bytes: int = DEFAULTS["cache_bytes"]
    cache_floor: int | None = DEFAULTS["cache_floor"]
    scrub_days: float = DEFAULTS["scrub_days"]
    complete_bytes_per_second: int = DEFAULTS["complete_bytes_per_second"]
    store_deadline: float = DEFAULTS["store_deadline"]
    mode: str = DEFAULTS["mode"]
    log_level: str = DEFAULTS["log_level"]
    metrics_listen: str | None = DEFAULTS["metrics_listen"]

    def instance(self, mountpoint: str | Path | None = None) -> str:
        """Name of the daemon that serves this store with this cache; of its own for ``mountpoint`` if one is given (without root)."""
        return instance_name(self.store, self.cache, mountpoint)

    def instance_dir(self, mountpoint: str | Path | None = None) -> Path:
        """Directory below ``runtime`` with that daemon's control socket, lock and log."""
        return self.runtime / self.instance(mountpoint)

    @classmethod
    def of(cls, settings: "Settings") -> "Config":
        """Make one of what another process, or ``load_settings``, tells."""
        values: dict[str, Any] = {**settings, "cache": Path(settings["cache"]), "runtime": Path(settings["runtime"])}
        return cls(**values)

    def told(self) -> "Settings":
        """Return what another process is told."""
        settings: Any = {**asdict(self), "cache": str(self.cache), "runtime": str(self.runtime)}
        return settings  # type: ignore[no-any-return] # these are its fields


@dataclass(frozen=True, slots=True)
class ManagerSettings:
    """What a service manager tells the process that it starts (``sd_notify(3)``, ``sd_listen_fds(3)``). Nothing, where there is none.

    ``notify`` is its socket: a path, or ``@`` and an abstract name. ``watchdog``: seconds in which it has to hear something, 0 for never.
    ``descriptors``: what the descriptors from 3 on, which it has kept, were called when they were given to it.
    """

    notify: str = ""
    watchdog: float = 0.0
    descriptors: tuple[str, ...] = ()


def load_config(flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """Build the configuration from ``flags`` (by setting name, plus ``config``; None means not given), environment and TOML file.

    ``environ`` stands in for the process environment. ``UsageError`` names the place that a bad value came from.
    """
    return Config.of(load_settings(flags, environ))


def manager_settings(environ: Mapping[str, str] | None = None, pid: int | None = None) -> ManagerSettings:
    """Return what this process was told. What was meant for another, from which it has the environment, does not count."""
    env = environment() if environ is None else environ
    own = str(os.getpid() if pid is None else pid)
    names: tuple[str, ...] = ()
    if env.get("LISTEN_PID") == own and env.get("LISTEN_FDS", "").isdecimal():
        count = int(env["LISTEN_FDS"])
        names = tuple(env.get("LISTEN_FDNAMES", "").split(":"))[:count]
        names += ("unknown",) * (count - len(names))
    microseconds = env.get("WATCHDOG_USEC", "") if env.get("WATCHDOG_PID", own) == own else ""
    return ManagerSettings(env.get("NOTIFY_SOCKET", ""), int(microseconds) / 1e6 if microseconds.isdecimal() else 0.0, names)


def environment_with(descriptors: Sequence[str]) -> dict[str, str]:
    """Return this process's environment for a program in its place, which is told of ``descriptors`` from 3 on as a manager would."""
    told = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(descriptors)), "LISTEN_FDNAMES": ":".join(descriptors)}
    return {**environment(), **told}


def store_path(url: str) -> Path | None:
    """Return the directory of a ``file:`` URL, or None for a store elsewhere."""
    parts = urlsplit(url)
    return Path(os.fsdecode(unquote_to_bytes(parts.path))) if parts.scheme == "file" else None
