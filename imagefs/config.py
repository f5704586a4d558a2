"""The configuration: one frozen :class:`Config`, built once by :func:`load_config` and passed down.

For each setting a flag wins over the environment, which wins over the TOML file, which wins over the default. All paths in a
``Config`` are absolute and the store is a URL, so that two spellings of the same place lead to the same daemon.

This is the only module that reads the environment. It touches no file but the TOML file, and creates nothing.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes, urlsplit

from imagefs.digest import digest_of
from imagefs.errors import UsageError
from imagefs.store.s3_url import is_s3_url, parse_s3_url

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
MODES: Final = ("auto", "kernel", "fuse")
"""How images are mounted; ``auto`` is kernel mode where that works."""

ENVIRONMENT: Final[Mapping[str, str]] = {
    "store": "IMAGEFS_STORE",
    "cache": "IMAGEFS_CACHE",
    "runtime": "IMAGEFS_RUNTIME",
    "ram_bytes": "IMAGEFS_RAM_BYTES",
    "cache_bytes": "IMAGEFS_CACHE_BYTES",
    "cache_floor": "IMAGEFS_CACHE_FLOOR",
    "scrub_days": "IMAGEFS_SCRUB_DAYS",
    "complete_bytes_per_second": "IMAGEFS_COMPLETE_BYTES_PER_SECOND",
    "store_deadline": "IMAGEFS_STORE_DEADLINE",
    "mode": "IMAGEFS_MODE",
    "log_level": "IMAGEFS_LOG_LEVEL",
    "metrics_listen": "IMAGEFS_METRICS_LISTEN",
}
"""The environment variable of each setting. ``IMAGEFS_CONFIG`` names the TOML file."""

_INSTANCE_DIGITS: Final = 16
_MAX_TOML_BYTES: Final = 1 << 20
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(?:i?B)?|B)?", re.IGNORECASE)
_CACHE_MIN: Final = 64 << 20
_DAYS_MAX: Final = 3650
_UNITS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


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
    ram_bytes: int = 512 << 20
    cache_bytes: int = 0
    cache_floor: int | None = None
    scrub_days: float = 7.0
    complete_bytes_per_second: int = 0
    store_deadline: float = 30.0
    mode: str = "auto"
    log_level: str = "warning"
    metrics_listen: str | None = None

    def instance(self, mountpoint: str | Path | None = None) -> str:
        """Name of the daemon that serves this store with this cache; of its own for ``mountpoint`` if one is given (without root)."""
        parts = [os.fsencode(self.store), os.fsencode(self.cache)]
        if mountpoint is not None:
            parts.append(os.fsencode(mountpoint))
        return digest_of(b"\0".join(parts)).hex()[:_INSTANCE_DIGITS]

    def instance_dir(self, mountpoint: str | Path | None = None) -> Path:
        """Directory below ``runtime`` with that daemon's control socket, lock and log."""
        return self.runtime / self.instance(mountpoint)


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
    env = os.environ if environ is None else environ
    flags = flags or {}
    path, required = _toml_path(flags.get("config"), env)
    values = _defaults(env)
    origins = dict.fromkeys(values, "default")
    document = _read_toml(path, required=required)
    values |= document
    origins |= dict.fromkeys(document, str(path))
    for name, variable in ENVIRONMENT.items():
        if env.get(variable):
            values[name], origins[name] = env[variable], variable
        if flags.get(name) is not None:
            values[name], origins[name] = flags[name], "--" + name.replace("_", "-")
    return Config(**{name: _PARSERS[name](value, origins[name]) for name, value in values.items()})


def manager_settings(environ: Mapping[str, str] | None = None, pid: int | None = None) -> ManagerSettings:
    """Return what this process was told. What was meant for another, from which it has the environment, does not count."""
    env = os.environ if environ is None else environ
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
    return {**os.environ, **told}


def store_path(url: str) -> Path | None:
    """Return the directory of a ``file:`` URL, or None for a store elsewhere."""
    parts = urlsplit(url)
    return Path(_unquote(parts.path)) if parts.scheme == "file" else None


def _unquote(text: str) -> str:
    """Undo ``quote`` of a path, which need not be UTF-8."""
    return os.fsdecode(unquote_to_bytes(text))


def parse_size(text: str | int) -> int:
    """Read a size in bytes such as ``536870912``, ``512MiB`` or ``1.5G`` (units are powers of 1024); ``ValueError`` otherwise."""
    if isinstance(text, bool):
        raise ValueError(text)  # noqa: TRY004 - to a caller it is a value like any other that is no size
    if isinstance(text, int):
        return text
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(text)
    number, unit = match[1], (match[2] or "").upper()
    return int(number) << _UNITS[unit] if "." not in number else int(float(number) * (1 << _UNITS[unit]))


def environment() -> Mapping[str, str]:
    """Return the environment of this process, for a report: who makes one has to know what in it is a secret."""
    return dict(os.environ)


def aws_region(environ: Mapping[str, str] | None = None) -> str | None:
    """Return the region that ``AWS_REGION`` names. boto3, unlike AWS's other SDKs, only reads ``AWS_DEFAULT_REGION``, by itself."""
    return (os.environ if environ is None else environ).get("AWS_REGION") or None


def root_defaults() -> dict[str, str]:
    """Return where root keeps things unless told otherwise, by setting name."""
    return {"store": "/var/lib/imagefs/store", "cache": "/var/cache/imagefs", "runtime": "/run/imagefs"}


def _defaults(env: Mapping[str, str]) -> dict[str, Any]:
    """Root uses the system's directories, everybody else those of the XDG specification."""
    if os.geteuid() == 0:
        places = root_defaults()
    else:
        home = env.get("HOME") or str(Path.home())
        places = {
            "store": (env.get("XDG_DATA_HOME") or f"{home}/.local/share") + "/imagefs/store",
            "cache": (env.get("XDG_CACHE_HOME") or f"{home}/.cache") + "/imagefs",
            # Not below /tmp: there another user could have made the directory first.
            "runtime": (env.get("XDG_RUNTIME_DIR") or f"{home}/.local/state") + "/imagefs",
        }
    return {field.name: field.default for field in fields(Config)} | places


def _toml_path(flag: str | Path | None, env: Mapping[str, str]) -> tuple[Path, bool]:
    """Return the TOML file to read, and whether it has to exist because somebody named it."""
    named = flag or env.get("IMAGEFS_CONFIG")
    if named:
        return Path(named), True
    if os.geteuid() == 0:
        return Path("/etc/imagefs/config.toml"), False
    home = env.get("HOME") or str(Path.home())
    own = Path(env.get("XDG_CONFIG_HOME") or f"{home}/.config") / "imagefs/config.toml"
    return (own if own.is_file() else Path("/etc/imagefs/config.toml")), False


def _read_toml(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_TOML_BYTES + 1)
    except FileNotFoundError as error:
        if not required:
            return {}
        raise UsageError(f"the configuration file {path} does not exist") from error
    except OSError as error:
        raise UsageError(f"cannot read the configuration file {path}: {error.strerror}") from error
    if len(data) > _MAX_TOML_BYTES:
        raise UsageError(f"the configuration file {path} is larger than {_MAX_TOML_BYTES} bytes")
    # Imported here: most runs have no file, and the parser costs a tenth of the start of a short command.
    import tomllib  # noqa: PLC0415

    try:
        document = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"the configuration file {path} is not TOML: {error}") from error
    unknown = sorted(set(document) - set(ENVIRONMENT))
    if unknown:
        raise UsageError(f"unknown setting {unknown[0]!r} in {path}", hint="known are " + ", ".join(ENVIRONMENT))
    return document


def _text(value: object, origin: str) -> str:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text or "\0" in text:
        raise UsageError(f"{origin}: expected a text that is not empty, got {value!r}")
    return text


def _store(value: object, origin: str) -> str:
    """Give a store its one spelling: ``file:///absolute/path`` for a directory, a URL without a final slash otherwise."""
    text = _text(value, origin)
    if is_s3_url(text):
        try:
            return parse_s3_url(text).url
        except UsageError as error:
            raise UsageError(f"{origin}: {error.message}", hint=error.hint) from error
    # Only "scheme:" followed by "//" is a URL: a directory may well have a colon in its name.
    if text.startswith("file:"):
        parts = urlsplit(text)
        if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/") or parts.query or parts.fragment:
            raise UsageError(f"{origin}: not a directory store: {text!r}", hint="write file:///absolute/path")
        text = _unquote(parts.path)
    elif "://" in text:
        return text.rstrip("/")
    return "file://" + quote(os.fsencode(os.path.abspath(os.path.expanduser(text))))  # noqa: PTH100, PTH111 # Path keeps ".."


def _path(value: object, origin: str) -> Path:
    # Path.absolute keeps "..", and Path.resolve follows links, which may hang on a dead mount.
    return Path(os.path.abspath(os.path.expanduser(_text(value, origin))))  # noqa: PTH100, PTH111


def _size(value: object, origin: str) -> int:
    try:
        return parse_size(value if isinstance(value, int) else _text(value, origin))
    except ValueError as error:
        raise UsageError(f"{origin}: not a size: {value!r}", hint="for example 512MiB") from error


def _cache_bytes(value: object, origin: str) -> int:
    size = _size(value, origin)
    if 0 < size < _CACHE_MIN or size < 0:
        raise UsageError(f"{origin}: {value!r} is too small for the SSD tier", hint="at least 64MiB, or 0 for as much as there is room")
    return size


def _cache_floor(value: object, origin: str) -> int | None:
    if value is None:
        return None
    size = _size(value, origin)
    if size < 0:
        raise UsageError(f"{origin}: {value!r} bytes cannot be left free")
    return size


def _ram_bytes(value: object, origin: str) -> int:
    size = _size(value, origin)
    if size < 1 << 20:
        raise UsageError(f"{origin}: {value!r} is too small for the RAM tier", hint="at least 1MiB")
    return size


def _rate(value: object, origin: str) -> int:
    size = _size(value, origin)
    if size < 0:
        raise UsageError(f"{origin}: {value!r} bytes cannot come in a second", hint="for example 10MiB, or 0 for none")
    return size


def _number(value: object, origin: str, unit: str) -> float:
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float(_text(value, origin))
    except ValueError as error:
        raise UsageError(f"{origin}: not a number of {unit}: {value!r}") from error


def _days(value: object, origin: str) -> float:
    days = _number(value, origin, "days")
    if not 0 <= days <= _DAYS_MAX:
        raise UsageError(f"{origin}: the SSD tier cannot be verified in {value!r} days", hint=f"at most {_DAYS_MAX}, or 0 for never")
    return days


def _deadline(value: object, origin: str) -> float:
    seconds = _number(value, origin, "seconds")
    if not 0 < seconds <= 24 * 3600:
        raise UsageError(f"{origin}: {value!r} is not a usable deadline", hint="more than 0 and at most 86400 seconds")
    return seconds


def _one_of(what: str, known: tuple[str, ...]) -> Callable[[object, str], str]:
    def parse(value: object, origin: str) -> str:
        text = _text(value, origin).lower()
        if text not in known:
            raise UsageError(f"{origin}: no such {what}: {value!r}", hint="one of " + ", ".join(known))
        return text

    return parse


def _metrics_listen(value: object, origin: str) -> str | None:
    """Give an address of the loopback its one spelling: what is counted says what a host does, and no password keeps it."""
    if value is None:
        return None
    text = _text(value, origin)
    host, _, port = text.rpartition(":")
    try:
        address = ip_address(host.removeprefix("[").removesuffix("]"))
        number = int(port)
    except ValueError as error:
        raise UsageError(f"{origin}: not an address to listen at: {text!r}", hint="for example 127.0.0.1:9464 or [::1]:9464") from error
    if not address.is_loopback:
        raise UsageError(
            f"{origin}: {address} is not an address of the loopback: the figures would be everybody's who reaches this host",
            hint="127.0.0.1:9464, behind a proxy that asks who it is; or let node_exporter show what `imagefs stats --prometheus` prints",
        )
    if not 0 < number < 1 << 16:
        raise UsageError(f"{origin}: {port!r} is not a port")
    return f"[{address}]:{number}" if address.version == 6 else f"{address}:{number}"


_PARSERS: Final[Mapping[str, Callable[[object, str], Any]]] = {
    "store": _store,
    "cache": _path,
    "runtime": _path,
    "ram_bytes": _ram_bytes,
    "cache_bytes": _cache_bytes,
    "cache_floor": _cache_floor,
    "scrub_days": _days,
    "complete_bytes_per_second": _rate,
    "store_deadline": _deadline,
    "mode": _one_of("mode", MODES),
    "log_level": _one_of("log level", LOG_LEVELS),
    "metrics_listen": _metrics_listen,
}
