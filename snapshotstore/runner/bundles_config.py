"""What an OCI bundle's ``config.json`` asks for, as far as a sandbox can give it.

Invariants: nothing that it asks for is dropped in silence. What a program would miss is refused, by name and all of it at once; what merely
differs (a mount that is not there, capabilities that most bundles list and few programs use, limits) is a note. A key that is not known is
refused, because nobody knows what it would have meant. The document is bounded in size and depth before it is parsed.

What does not live here: the program itself (``bundles_program``). ``config.md`` of the OCI runtime specification is what is read here.
"""

import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from imagefs.errors import LimitError, SourceError, UnsupportedError
from imagefs.format.manifest import check_depth
from snapshotstore.runner.bundles_program import HOSTNAME, BundleProgram

CONFIG: Final = "config.json"
CONFIG_MAX: Final = 1 << 20
"""Bytes of a ``config.json``, at most."""

_DEPTH_MAX: Final = 32
_UMASK: Final = 0o022
_TOLD_MAX: Final = 80

_OURS: Final = {"/proc": {"proc"}, "/dev": {"tmpfs"}, "/dev/pts": {"devpts"}, "/dev/shm": {"tmpfs"}, "/sys": {"sysfs"}}  # noqa: S108
"""What each sandbox has mounted."""

_MISSED: Final = {"/dev/mqueue": {"mqueue"}, "/sys/fs/cgroup": {"cgroup", "cgroup2"}}
"""What bundles have by custom, and no sandbox has."""

_OPTIONS: Final = frozenset(
    [
        *("nosuid", "noexec", "nodev", "strictatime", "relatime", "ro", "rw", "private", "rprivate", "newinstance", "ptmxmode=0666"),
        *("mode=0620", "mode=755", "mode=0755", "mode=1777", "gid=5", "size=65536k"),
    ]
)
"""Those that tools write for these mounts. Others ask for something."""

_DEVICES: Final = frozenset(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "console", "ptmx"))
_SPACES: Final = ("pid", "network", "ipc", "uts", "mount")

_BY_CUSTOM: Final = frozenset(
    "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID SYS_CHROOT".split()  # noqa: SIM905
)
"""Capabilities that tools give every program."""

_BY_WISH: Final = frozenset(
    "AUDIT_CONTROL AUDIT_READ BLOCK_SUSPEND BPF CHECKPOINT_RESTORE DAC_READ_SEARCH IPC_LOCK IPC_OWNER LEASE LINUX_IMMUTABLE MAC_ADMIN"  # noqa: SIM905
    " MAC_OVERRIDE NET_ADMIN NET_BROADCAST PERFMON SYSLOG SYS_ADMIN SYS_BOOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO"
    " SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM".split()
)
"""Those that a bundle has because its program needs them."""

_NOTED: Final[Mapping[str, str]] = {
    "root.readonly": "what the program writes goes to a layer of its own",
    "process.rlimits": "its limits are those of this command",
    "process.oomScoreAdj": "it is that of this command",
    "process.consoleSize": "it has no terminal",
    "linux.maskedPaths": "/proc and /sys are the sandbox's own",
    "linux.readonlyPaths": "/proc and /sys are the sandbox's own",
    "linux.cgroupsPath": "--cgroup names one",
    "linux.rootfsPropagation": "no mount of it is shared",
}


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle: its root file system, its program, and what that goes without, one line each for a person."""

    root: Path
    program: BundleProgram
    notes: tuple[str, ...]


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle.

    ``SourceError`` for what is none, ``LimitError`` past the bounds, ``UnsupportedError`` with all that a sandbox does not have.
    """
    path = folder / CONFIG
    reading = _Reading(_parse(path), str(path))
    try:
        program, root = reading.read()
    except KeyError as error:
        raise SourceError(f"{path} is no configuration of a bundle: it lacks {error.args[0]}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise SourceError(f"{path} is no configuration of a bundle: {error}") from None
    if reading.refused:
        raise UnsupportedError(
            f"{path} asks for what a sandbox does not have: {'; '.join(reading.refused)}",
            hint=f"take it out of {CONFIG} if the program can do without",
        )
    # An absolute path stays one: the specification allows it.
    found = folder.resolve() / root
    if not found.is_dir():
        raise SourceError(f"the root file system of {folder} is not there: {found} is no directory")
    return Bundle(found, program, tuple(reading.notes))


def _parse(path: Path) -> dict[str, Any]:
    try:
        # Non-blocking, for what is no file: a FIFO of that name would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
            data = file.read(CONFIG_MAX + 1) if is_file else b""
    except OSError as error:
        raise SourceError(f"{path.parent} is no bundle: {path}: {error.strerror}", hint="a bundle has config.json, and its root") from error
    if not is_file:
        raise SourceError(f"{path.parent} is no bundle: {path} is no file")
    if len(data) > CONFIG_MAX:
        raise LimitError(f"{path} is larger than {CONFIG_MAX >> 20} MiB")
    check_depth(data, _DEPTH_MAX, str(path))
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise SourceError(f"{path} is no JSON object")
    return document


class _Reading:
    """Reads one document, and collects what is ``refused`` and what is noted. Whatever it raises else says that the document is none."""

    def __init__(self, document: dict[str, Any], name: str) -> None:
        self._document = document
        self._name = name
        self.refused: list[str] = []
        self.notes: list[str] = []

    def read(self) -> tuple[BundleProgram, str]:
        """Return the program, and the path of its root."""
        version = _text(self._document.get("ociVersion"), "ociVersion")
        if not version.startswith("1."):
            self.refused.append(f"ociVersion {version[:_TOLD_MAX]}, where 1.x is known")
        process, root = _section(self._document, "process"), _section(self._document, "root")
        self._rest(self._document, "", {"ociVersion", "process", "root", "hostname", "mounts", "linux", "annotations"})
        self._rest(root, "root.", {"path"})
        self._rest(process, "process.", {"args", "env", "cwd", "user", "terminal", "capabilities", "noNewPrivileges"})
        if process.get("terminal"):
            self.refused.append("process.terminal: no program with a terminal is frozen")
        if process.get("noNewPrivileges") is False:
            self.notes.append("process.noNewPrivileges: it can gain none")
        self._capabilities(_section(process, "capabilities"))
        for mount in _list(self._document, "mounts"):
            self._mount(mount)
        self._linux(_section(self._document, "linux"))
        uid, gid = self._user(_section(process, "user"))
        program = BundleProgram(
            argv=tuple(_text(word, "process.args", or_empty=True) for word in _list(process, "args")),
            environment=_variables(_list(process, "env")),
            cwd=_text(process["cwd"], "process.cwd"),
            uid=uid,
            gid=gid,
            hostname=_text(self._document.get("hostname") or HOSTNAME, "hostname"),
        )
        program.check()
        return program, _text(root["path"], "root.path")

    def _rest(self, section: Mapping[str, Any], prefix: str, known: Iterable[str]) -> None:
        """Note or refuse what is not looked at elsewhere. What is empty asks for nothing."""
        for key in sorted(section.keys() - set(known)):
            name = prefix + key
            if _is_empty(section[key]):
                continue
            if name in _NOTED:
                self.notes.append(f"{name}: {_NOTED[name]}")
            else:
                self.refused.append(name[:_TOLD_MAX])

    def _user(self, user: Mapping[str, Any]) -> tuple[int, int]:
        self._rest(user, "process.user.", {"uid", "gid", "umask", "additionalGids"})
        uid, gid = user.get("uid", 0), user.get("gid", 0)
        if not all(isinstance(number, int) and not isinstance(number, bool) for number in (uid, gid)):
            raise ValueError(f"process.user has no numbers: {uid!r}, {gid!r}")
        if others := [number for number in _list(user, "additionalGids") if number != gid]:
            self.refused.append(f"process.user.additionalGids {', '.join(map(str, others))[:_TOLD_MAX]}")
        if user.get("umask", _UMASK) != _UMASK:
            self.refused.append(f"process.user.umask {user['umask']!r:.20}, where all have 18 (0o022)")
        return uid, gid

    def _capabilities(self, capabilities: Mapping[str, Any]) -> None:
        wanted = {_text(name, "process.capabilities") for kind in capabilities for name in _list(capabilities, kind)}
        short = {name: name.removeprefix("CAP_") for name in wanted}
        if unknown := sorted(name for name in wanted if not name.startswith("CAP_") or short[name] not in _BY_CUSTOM | _BY_WISH):
            raise ValueError(f"there are no capabilities {', '.join(unknown)[:_TOLD_MAX]}")
        self.refused += [f"process.capabilities {name}" for name in sorted(wanted) if short[name] in _BY_WISH]
        if by_custom := sorted(name for name in wanted if short[name] in _BY_CUSTOM):
            self.notes.append(f"process.capabilities: it has none, also not {', '.join(by_custom)}")

    def _mount(self, mount: Any) -> None:
        target, kind = _text(mount["destination"], "mounts"), _text(mount.get("type") or "bind", "mounts")
        told = f"mounts {target[:_TOLD_MAX]}"
        self._rest(mount, f"{told}: ", {"destination", "type", "source", "options"})
        if kind in _MISSED.get(target, ()):
            self.notes.append(f"{told}: it is not there")
        elif kind not in _OURS.get(target, ()):
            self.refused.append(f"{told} of type {kind[:_TOLD_MAX]}")
        elif others := sorted(set(_list(mount, "options")) - _OPTIONS):
            self.notes.append(f"{told}: it is mounted without {', '.join(others)[:_TOLD_MAX]}")

    def _linux(self, linux: Mapping[str, Any]) -> None:
        self._rest(linux, "linux.", {"namespaces", "resources", "devices"})
        for device in _list(linux, "devices"):
            if (path := _text(device["path"], "linux.devices")) not in _DEVICES:
                self.refused.append(f"linux.devices {path[:_TOLD_MAX]}")
        resources = _section(linux, "resources")
        limits = [key for key in sorted(resources) if key != "devices" and not _is_empty(resources[key])]
        limits += ["devices"] * any(rule.get("allow") for rule in _list(resources, "devices"))
        if limits:
            self.notes.append(f"linux.resources: limits ({', '.join(limits)[:_TOLD_MAX]}) are those of the cgroup that --cgroup names")
        own = set()
        for space in _list(linux, "namespaces"):
            own.add(kind := _text(space["type"], "linux.namespaces"))
            if space.get("path"):
                self.refused.append(f"linux.namespaces {kind} at a path" + (" (--network names one)" if kind == "network" else ""))
            elif kind not in {*_SPACES, "cgroup"}:
                self.refused.append(f"linux.namespaces {kind[:_TOLD_MAX]}")
        if shared := [kind for kind in _SPACES if kind not in own]:
            self.notes.append(f"linux.namespaces: it has its own ones also for {', '.join(shared)}")


def _is_empty(value: Any) -> bool:
    """Say whether a value asks for nothing. An object of empty lists, as ``hooks`` may be, does not."""
    return not value or (isinstance(value, dict) and all(_is_empty(part) for part in value.values()))


def _section(of: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = of.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise TypeError(f"{key} is no object")
    return found


def _list(of: Mapping[str, Any], key: str) -> list[Any]:
    found = of.get(key)
    if found is None:
        return []
    if not isinstance(found, list):
        raise TypeError(f"{key} is no list")
    return found


def _text(value: Any, what: str, *, or_empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or or_empty):
        raise ValueError(f"{what}: {value!r:.80} is no text")
    return value


def _variables(listed: list[Any]) -> dict[str, str]:
    """Return the variables, of two with one name the last, as a program's own look-up would not have it but every shell's does."""
    found = {}
    for entry in listed:
        name, equals, value = _text(entry, "process.env").partition("=")
        if not name or not equals:
            raise ValueError(f"process.env: {entry!r:.80} is no NAME=VALUE")
        found[name] = value
    return found
