"""``mount.imagefs``: what ``mount -t imagefs``, ``/etc/fstab`` and systemd's mount units run.

The way to call it and its exit codes are those of mount(8), "External helpers". It ends with 0 only once the image is mounted; where that
very image is mounted already, too, as ``mount -a`` cannot know that. Options that say something about the file system are heeded or
refused, none is passed over in silence; what is meant for others (``_netdev``, ``nofail``, ``x-…``) is.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, Final

    from imagefs.settings import Settings

EXIT_USAGE: "Final" = 1
EXIT_BUG: "Final" = 4
EXIT_INTERRUPTED: "Final" = 8
EXIT_FAILED: "Final" = 32

_USAGE: "Final" = "usage: mount.imagefs REF MOUNTPOINT [-sfnv] [-o OPTIONS]"
_FLAGS: "Final" = "sfnv"
_WITH_VALUE: "Final" = "ot"
_MODES: "Final" = ("auto", "kernel", "fuse")
_SETTINGS: "Final" = ("store", "cache", "runtime", "config")
_OF_OTHERS: "Final" = frozenset({"_netdev", "fail", "nofail", "auto", "noauto", "nouser", "nogroup", "noowner", "defaults"})
_OF_OTHERS_BEGIN: "Final" = ("comment=", "x-", "X-", "user=")
_TIMES: "Final" = ("atime", "diratime", "relatime", "strictatime", "lazytime", "iversion")
# True of every mount: who may run what is the image's to say, and nothing is written, so neither are times.
_WITHOUT_EFFECT: "Final" = frozenset(
    {"rw", "exec", "sync", "async", "dirsync", "loud", "silent", "nomand", *_TIMES, *(f"no{name}" for name in _TIMES)}
)


class OptionError(Exception):
    """The way it was called is wrong."""


class Wanted:
    """What is to be mounted, where and how. ``flags``: for ``load_settings``; ``fields``: for ``mounting.mount``."""

    __slots__ = ("fields", "flags", "is_fake", "is_verbose", "mountpoint", "ref")

    def __init__(self, ref: str, mountpoint: str) -> None:
        """Want nothing special yet."""
        self.ref = ref
        self.mountpoint = mountpoint
        self.flags: dict[str, str] = {}
        self.fields: dict[str, Any] = {"mode": "auto"}
        self.is_fake = False
        self.is_verbose = False


def parsed(arguments: "Sequence[str]") -> Wanted:
    """Read a command line. ``OptionError`` says what is wrong with it."""
    places, options = _parted(arguments)
    if len(places) != 2:
        raise OptionError(_USAGE)
    wanted = Wanted(places[0], places[1])
    sloppy = ("s", "") in options
    for name, value in options:
        if name == "o":
            _read(wanted, value, sloppy=sloppy)
        wanted.is_fake |= name == "f"
        wanted.is_verbose |= name == "v"
    return wanted


def _parted(arguments: "Sequence[str]") -> tuple[list[str], list[tuple[str, str]]]:
    """Tell places from options, each with its value, as getopt(3) does; ``getopt`` itself loads ``re`` for translations of its messages."""
    places: list[str] = []
    options: list[tuple[str, str]] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            places += words
        elif len(word) < 2 or not word.startswith("-"):
            places.append(word)
        else:
            letters = word[1:]
            while letters:
                name, letters = letters[0], letters[1:]
                value: str | None = ""
                if name in _WITH_VALUE:
                    value, letters = letters or next(words, None), ""
                elif name not in _FLAGS:
                    raise OptionError(f"option -{name} not recognized\n{_USAGE}")
                if value is None:
                    raise OptionError(f"option -{name} requires argument\n{_USAGE}")
                options.append((name, value))
    return places, options


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
        elif not (sloppy or option == "ro" or option in _WITHOUT_EFFECT or option in _OF_OTHERS or option.startswith(_OF_OTHERS_BEGIN)):
            raise OptionError(f"unknown option {option!r}, or not a value that it can have")
    if "ro" in names and "upper" in wanted.fields:
        raise OptionError("ro and upper= contradict each other")


def _split(text: str) -> "Iterator[str]":
    """Split at commas; what is in double quotes has no end there."""
    if text.count('"') % 2:
        raise OptionError(f"a double quote has no end: {text}")
    part = ""
    for number, piece in enumerate(text.split('"')):
        first, *more = [piece] if number % 2 else piece.split(",")
        part += first
        for following in more:
            if part:
                yield part
            part = following
    if part:
        yield part


def mounted(wanted: Wanted) -> str:
    """Mount it; return what there is to say. Raises what that meets."""
    from imagefs.daemon import mounting
    from imagefs.errors import ImageFSError
    from imagefs.settings import load_settings

    settings = load_settings(wanted.flags)
    if wanted.is_fake:
        return "nothing mounted, as asked for"
    try:
        result = mounting.mount(settings, ref=wanted.ref, mountpoint=wanted.mountpoint, **wanted.fields)
    except ImageFSError:
        if _is_there(wanted, settings):
            return f"{wanted.ref} is mounted at {wanted.mountpoint} already"
        raise
    return f"{wanted.ref} mounted at {wanted.mountpoint}, {result['mode']} mode: {result['reason']}"


def _is_there(wanted: Wanted, settings: "Settings") -> bool:
    from imagefs.config import Config
    from imagefs.daemon import client
    from imagefs.errors import ImageFSError

    place = client.absolute(wanted.mountpoint)
    try:
        mounts = client.status(Config.of(settings), at=client.home(place))["mounts"]
    except ImageFSError:
        return False
    return any(mount["mountpoint"] == place and mount["ref"] == wanted.ref for mount in mounts)


def main(arguments: "Sequence[str] | None" = None) -> int:
    """Run; return the exit code. A process that was called for this ends here when it has mounted."""
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
        sys.stdout.flush()
    if arguments is None:
        os._exit(0)  # as in `imagefs_cli.main`
    return 0


def _fail(code: int, message: str, hint: str | None) -> int:
    sys.stderr.write(f"mount.imagefs: {message}\n" + (f"  {hint}\n" if hint else ""))
    return code
