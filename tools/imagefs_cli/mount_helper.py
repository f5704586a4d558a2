"""``mount.imagefs``: what ``mount -t imagefs``, ``/etc/fstab`` and systemd's mount units run.

The way to call it and its exit codes are those of mount(8), "External helpers". It ends with 0 only once the image is mounted; where that
very image is mounted already, too, as ``mount -a`` cannot know that. Options that say something about the file system are heeded or
refused, none is passed over in silence; what is meant for others (``_netdev``, ``nofail``, ``x-…``) is.
"""

import getopt
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

EXIT_USAGE: Final = 1
EXIT_BUG: Final = 4
EXIT_INTERRUPTED: Final = 8
EXIT_FAILED: Final = 32

_USAGE: Final = "usage: mount.imagefs REF MOUNTPOINT [-sfnv] [-o OPTIONS]"
_MODES: Final = ("auto", "kernel", "fuse")
_SETTINGS: Final = ("store", "cache", "runtime", "config")
_OF_OTHERS: Final = re.compile(r"_netdev|(no)?fail|(no)?auto|nouser|nogroup|noowner|defaults|comment=.*|[xX]-.*|user=.*")
# True of every mount: who may run what is the image's to say, and nothing is written, so neither are times.
_WITHOUT_EFFECT: Final = re.compile(r"rw|exec|(a|dir)?sync|(no)?(atime|diratime|relatime|strictatime|lazytime|iversion)|loud|silent|nomand")
_PART: Final = re.compile(r'(?:"[^"]*"|[^,"])+')


class OptionError(Exception):
    """The way it was called is wrong."""


@dataclass(slots=True)
class Wanted:
    """What is to be mounted, where and how. ``flags``: for ``load_config``; ``fields``: for ``client.mount``."""

    ref: str
    mountpoint: str
    flags: dict[str, str] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=lambda: {"mode": "auto"})
    is_fake: bool = False
    is_verbose: bool = False


def parsed(arguments: Sequence[str]) -> Wanted:
    """Read a command line. ``OptionError`` says what is wrong with it."""
    try:
        options, places = getopt.gnu_getopt(list(arguments), "sfnvo:t:")
    except getopt.GetoptError as error:
        raise OptionError(f"{error}\n{_USAGE}") from error
    if len(places) != 2:
        raise OptionError(_USAGE)
    wanted = Wanted(places[0], places[1])
    sloppy = any(name == "-s" for name, _ in options)
    for name, value in options:
        if name == "-o":
            _read(wanted, value, sloppy=sloppy)
        wanted.is_fake |= name == "-f"
        wanted.is_verbose |= name == "-v"
    return wanted


def _read(wanted: Wanted, text: str, *, sloppy: bool) -> None:
    names = list(_split(text))
    for option in names:
        name, _, value = option.partition("=")
        if name in _SETTINGS and value:
            wanted.flags[name] = value
        elif name == "mode" and value in _MODES:
            wanted.fields["mode"] = value
        elif name == "upper" and value.startswith("/"):
            wanted.fields["upper"] = value
        elif option in {"dev", "suid"}:
            wanted.fields[option] = True
        elif option == "norecord":
            wanted.fields["record"] = False
        elif name == "profile-label" and value:
            wanted.fields["label"] = value
        elif option in {"nodev", "nosuid"}:
            wanted.fields[option.removeprefix("no")] = False
        elif not (_WITHOUT_EFFECT.fullmatch(option) or option == "ro" or _OF_OTHERS.fullmatch(option) or sloppy):
            raise OptionError(f"unknown option {option!r}, or not a value that it can have")
    if "ro" in names and "upper" in wanted.fields:
        raise OptionError("ro and upper= contradict each other")


def _split(text: str) -> Iterator[str]:
    """Split at commas; what is in double quotes has no end there."""
    for part in _PART.findall(text):
        yield part.replace('"', "")


def mounted(wanted: Wanted) -> str:
    """Mount it; return what there is to say. Raises what that meets."""
    from imagefs.config import load_config
    from imagefs.daemon import client
    from imagefs.errors import ImageFSError

    config = load_config(wanted.flags)
    if wanted.is_fake:
        return "nothing mounted, as asked for"
    try:
        result = client.mount(config, ref=wanted.ref, mountpoint=wanted.mountpoint, **wanted.fields)
    except ImageFSError:
        if _is_there(wanted, config):
            return f"{wanted.ref} is mounted at {wanted.mountpoint} already"
        raise
    return f"{wanted.ref} mounted at {wanted.mountpoint}, {result['mode']} mode: {result['reason']}"


def _is_there(wanted: Wanted, config: Any) -> bool:
    from imagefs.daemon import client
    from imagefs.errors import ImageFSError

    place = client.absolute(wanted.mountpoint)
    try:
        mounts = client.status(config, at=client.home(place))["mounts"]
    except ImageFSError:
        return False
    return any(mount["mountpoint"] == place and mount["ref"] == wanted.ref for mount in mounts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return the exit code."""
    try:
        wanted = parsed(sys.argv[1:] if arguments is None else arguments)
    except OptionError as error:
        return _fail(EXIT_USAGE, str(error), None)
    from imagefs.errors import AccessError, ImageFSError, UsageError

    try:
        said = mounted(wanted)
    except (UsageError, AccessError) as error:
        return _fail(EXIT_USAGE, error.message, error.hint)
    except ImageFSError as error:
        return _fail(EXIT_FAILED, error.message, error.hint)
    except KeyboardInterrupt:
        return _fail(EXIT_INTERRUPTED, "interrupted", None)
    except Exception as error:  # noqa: BLE001 - the last resort, so that mount(8) shows no traceback
        return _fail(EXIT_BUG, f"unexpected: {error!r}", "this is a bug in imagefs; `imagefs -v mount` shows more")
    if wanted.is_verbose:
        sys.stdout.write(f"mount.imagefs: {said}\n")
    return 0


def _fail(code: int, message: str, hint: str | None) -> int:
    sys.stderr.write(f"mount.imagefs: {message}\n" + (f"  {hint}\n" if hint else ""))
    return code
