"""Where settings come from: a flag wins over the environment, which wins over the TOML file, which wins over the default.

All paths are absolute and the store is a URL, so that two spellings of the same place lead to the same daemon. This is the only module that
reads the environment. It touches no file but the TOML file, and creates nothing.

It is on the way of each mount, and so of each start of a container: what the standard library needs longer to load than this takes
(``re``, ``typing``, ``pathlib``) is loaded where somebody has set something for which it is needed.
"""

import os

from imagefs.digest import digest_of
from imagefs.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Final, TypedDict

    class Settings(TypedDict):
        """Every setting by its name, as one process tells them to another; ``imagefs.config.Config`` says what they mean."""

        store: str
        cache: str
        runtime: str
        ram_bytes: int
        cache_bytes: int
        cache_floor: int | None
        scrub_days: float
        complete_bytes_per_second: int
        store_deadline: float
        mode: str
        log_level: str
        metrics_listen: str | None


LOG_LEVELS: "Final" = ("debug", "info", "warning", "error")
MODES: "Final" = ("auto", "kernel", "fuse")
"""How images are mounted; ``auto`` is kernel mode where that works."""

ENVIRONMENT: "Final[Mapping[str, str]]" = {
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

DEFAULTS: "Final[Mapping[str, Any]]" = {
    "ram_bytes": 512 << 20,
    "cache_bytes": 0,
    "cache_floor": None,
    "scrub_days": 7.0,
    "complete_bytes_per_second": 0,
    "store_deadline": 30.0,
    "mode": "auto",
    "log_level": "warning",
    "metrics_listen": None,
}
"""Of those settings whose default is not a place: these depend on who asks."""

_INSTANCE_DIGITS: "Final" = 16
_MAX_TOML_BYTES: "Final" = 1 << 20
_SYSTEM_TOML: "Final" = "/etc/imagefs/config.toml"
_CACHE_MIN: "Final" = 64 << 20
_DAYS_MAX: "Final" = 3650
_UNITS: "Final" = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}

_LOWER: "Final" = "abcdefghijklmnopqrstuvwxyz0123456789"
_LEFT_BY_URLS: "Final" = _LOWER + _LOWER.upper() + "_.-~/"


def load_settings(flags: "Mapping[str, Any] | None" = None, environ: "Mapping[str, str] | None" = None) -> "Settings":
    """Find every setting, from ``flags`` (by setting name, plus ``config``; None means not given), environment and TOML file.

    ``environ`` stands in for the process environment. ``UsageError`` names the place that a bad value came from.
    """
    env = os.environ if environ is None else environ
    flags = flags or {}
    path, required = _toml_path(flags.get("config"), env)
    values = _defaults(env)
    origins = dict.fromkeys(values, "default")
    document = _read_toml(path, required=required)
    values |= document
    origins |= dict.fromkeys(document, path)
    for name, variable in ENVIRONMENT.items():
        if env.get(variable):
            values[name], origins[name] = env[variable], variable
        if flags.get(name) is not None:
            values[name], origins[name] = flags[name], "--" + name.replace("_", "-")
    found: Any = {name: _PARSERS[name](value, origins[name]) for name, value in values.items()}
    return found  # type: ignore[no-any-return] # the parsers are by name, which no checker follows


def instance_name(store: str, cache: "str | os.PathLike[str]", mountpoint: "str | os.PathLike[str] | None" = None) -> str:
    """Name the daemon that serves this store with this cache; the one of its own for ``mountpoint`` if one is given (without root)."""
    parts = [os.fsencode(part) for part in (store, cache, mountpoint) if part is not None]
    return digest_of(b"\0".join(parts)).hex()[:_INSTANCE_DIGITS]


def parse_size(text: str | int) -> int:
    """Read a size in bytes such as ``536870912``, ``512MiB`` or ``1.5G`` (units are powers of 1024); ``ValueError`` otherwise."""
    if isinstance(text, bool):
        raise ValueError(text)  # noqa: TRY004 - to a caller it is a value like any other that is no size
    if isinstance(text, int):
        return text
    import re

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(?:i?B)?|B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(text)
    number, unit = match[1], (match[2] or "").upper()
    return int(number) << _UNITS[unit] if "." not in number else int(float(number) * (1 << _UNITS[unit]))


def environment() -> "Mapping[str, str]":
    """Return the environment of this process. Who shows it has to know what in it is a secret."""
    return dict(os.environ)


def aws_region(environ: "Mapping[str, str] | None" = None) -> str | None:
    """Return the region that ``AWS_REGION`` names. boto3, unlike AWS's other SDKs, only reads ``AWS_DEFAULT_REGION``, by itself."""
    return (os.environ if environ is None else environ).get("AWS_REGION") or None


def root_defaults() -> dict[str, str]:
    """Return where root keeps things unless told otherwise, by setting name."""
    return {"store": "/var/lib/imagefs/store", "cache": "/var/cache/imagefs", "runtime": "/run/imagefs"}


def _defaults(env: "Mapping[str, str]") -> "dict[str, Any]":
    """Root uses the system's directories, everybody else those of the XDG specification."""
    if os.geteuid() == 0:
        places = root_defaults()
    else:
        home = env.get("HOME") or os.path.expanduser("~")
        places = {
            "store": (env.get("XDG_DATA_HOME") or f"{home}/.local/share") + "/imagefs/store",
            "cache": (env.get("XDG_CACHE_HOME") or f"{home}/.cache") + "/imagefs",
            # Not below /tmp: there another user could have made the directory first.
            "runtime": (env.get("XDG_RUNTIME_DIR") or f"{home}/.local/state") + "/imagefs",
        }
    return {**places, **DEFAULTS}


def _toml_path(flag: "str | os.PathLike[str] | None", env: "Mapping[str, str]") -> tuple[str, bool]:
    """Return the TOML file to read, and whether it has to exist because somebody named it."""
    named = flag or env.get("IMAGEFS_CONFIG")
    if named:
        return os.fspath(named), True
    if os.geteuid() == 0:
        return _SYSTEM_TOML, False
    own = (env.get("XDG_CONFIG_HOME") or (env.get("HOME") or os.path.expanduser("~")) + "/.config") + "/imagefs/config.toml"
    return (own if os.path.isfile(own) else _SYSTEM_TOML), False


def _read_toml(path: str, *, required: bool) -> "dict[str, Any]":
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_TOML_BYTES + 1)
    except FileNotFoundError as error:
        if not required:
            return {}
        raise UsageError(f"the configuration file {path} does not exist") from error
    except OSError as error:
        raise UsageError(f"cannot read the configuration file {path}: {error.strerror}") from error
    if len(data) > _MAX_TOML_BYTES:
        raise UsageError(f"the configuration file {path} is larger than {_MAX_TOML_BYTES} bytes")
    import tomllib

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
    if _is_plain_bucket(text):
        return text
    if text[:2].lower() == "s3":
        from imagefs.store.s3_url import is_s3_url, parse_s3_url

        if is_s3_url(text):
            try:
                return parse_s3_url(text).url
            except UsageError as error:
                raise UsageError(f"{origin}: {error.message}", hint=error.hint) from error
    # Only "scheme:" followed by "//" is a URL: a directory may well have a colon in its name.
    if text.startswith(("file:", "file//")):
        text = _file_path(text, origin)
    elif "://" in text:
        return text.rstrip("/")
    path = os.path.abspath(os.path.expanduser(text))
    if path.strip(_LEFT_BY_URLS):
        from urllib.parse import quote

        path = quote(os.fsencode(path))
    return f"file://{path}"


def _is_plain_bucket(text: str) -> bool:
    """Say whether ``text`` is an S3 URL in its one spelling already, of those that are easily known as such."""
    bucket, *prefix = text.removeprefix("s3://").split("/")
    letters = text.startswith("s3://") and 3 <= len(bucket) <= 63 and len(text) < 256
    return letters and all(part and not part.strip(_LOWER) for part in (bucket, *prefix))


def _file_path(url: str, origin: str) -> str:
    rest = url.removeprefix("file://")
    if rest.startswith("/") and not rest.strip(_LEFT_BY_URLS):
        return rest
    from urllib.parse import unquote_to_bytes, urlsplit

    try:
        parts = urlsplit(url)
    except ValueError:  # brackets that hold no address
        parts = urlsplit("")
    if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/") or parts.query or parts.fragment:
        raise UsageError(f"{origin}: not a directory store: {url!r}", hint="write file:///absolute/path")
    return os.fsdecode(unquote_to_bytes(os.fsencode(parts.path)))


def _path(value: object, origin: str) -> str:
    # Links are not followed: that may hang on a dead mount.
    return os.path.abspath(os.path.expanduser(_text(value, origin)))


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


def _one_of(what: str, known: tuple[str, ...]) -> "Callable[[object, str], str]":
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
    from ipaddress import ip_address

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


_PARSERS: "Final[Mapping[str, Callable[[object, str], Any]]]" = {
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
