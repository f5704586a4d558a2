"""The program ``runsc``: whether it is new enough, what it can do, and how it is called.

What it can do is asked of its own help, never of its version or date: builds carry what they like. What does not live here: what it is told
to do, and with which sandbox.
"""

import os
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from imagefs.errors import DeadlineError, UnsupportedError
from snapshotstore.checkpoint.base import Engine, Sandbox

FORMAT: Final = "gvisor-pages-1"
"""``pages.img`` has the memory's pages as they are and aligned, ``pages_meta.img`` where they belong, ``checkpoint.img`` all the rest."""

BACKGROUND: Final = "background"
ZERO_PAGES: Final = "exclude-committed-zero-pages"
DISCONNECT: Final = "net-disconnect-ok"
HOST_SOCKETS: Final = "host-uds"

_SECONDS: Final = 20.0
_NEWER: Final = "Debian 13's package runsc, or https://gvisor.dev/docs/user_guide/install: it is one program that needs nothing else"
_VERSION: Final = re.compile(r"^runsc version (\S+)", re.MULTILINE)
_OPTION: Final = re.compile(r"^\s*--?([a-zA-Z][\w-]*)", re.MULTILINE)


class StatusError(Exception):
    """A command ended with another status than 0. What it said is in its log."""


def run(command: Sequence[str], until: float, *, with_errors: bool = False, descriptors: Sequence[int] = ()) -> bytes:
    """Run a command to its end; return its output. ``StatusError``; ``DeadlineError``, and then it is killed.

    It is given ``descriptors`` by their numbers here.
    """
    try:
        done = subprocess.run(  # noqa: S603 - the program is the operator's choice
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if with_errors else subprocess.DEVNULL,
            timeout=max(until - time.monotonic(), 0.001),
            check=False,
            umask=0o077,
            pass_fds=descriptors,
        )
    except subprocess.TimeoutExpired:
        raise DeadlineError(f"{Path(command[0]).name} did not end before the deadline") from None
    if done.returncode:
        raise StatusError
    return done.stdout


def look(program: Path) -> Engine:
    """Ask the program what it is and what it can do. ``UnsupportedError`` if it is not there, cannot be run or is too old."""
    if os.geteuid() != 0:
        raise UnsupportedError("programs can be run by runsc by root alone", hint="run as root")
    until = time.monotonic() + _SECONDS
    try:
        version = _VERSION.search(_ask(program, until, "--version"))
        checkpoint, restore, waiting = (_options(program, until, "help", name) for name in ("checkpoint", "restore", "wait"))
        flags = _options(program, until, "flags")
    except OSError as error:
        raise UnsupportedError(f"{program} cannot be run: {error.strerror}", hint=_NEWER) from error
    except (StatusError, DeadlineError) as error:
        raise UnsupportedError(f"{program} does not say what it can do", hint=_NEWER) from error
    if version is None:
        raise UnsupportedError(f"{program} is not runsc", hint=_NEWER)
    if not {"compression", "leave-running"} <= checkpoint or "direct" not in restore:
        # "direct" came with the file of pages that it is about.
        why = "it writes memory as one compressed stream, in which no page is found again"
        raise UnsupportedError(f"{program}, version {version[1]}, is too old: {why}", hint=_NEWER)
    features = (checkpoint & {ZERO_PAGES}) | (flags & {DISCONNECT, HOST_SOCKETS})
    if BACKGROUND in restore and "restore" in waiting:
        features |= {BACKGROUND}
    return Engine(name="runsc", version=version[1], format=FORMAT, program=program, is_exact=True, features=frozenset(features))


def flags(sandbox: Sandbox, root: Path, log: Path, features: frozenset[str]) -> list[str]:
    """Return what runsc is told before a command. It has to be equal, but for ``root`` and ``log``, for all commands of a sandbox."""
    found = [
        f"--root={root}",
        f"--log={log}",
        "--log-format=json",
        "--platform=systrap",
        "--ignore-cgroups",
        "--overlay2=root:memory",
        f"--network={'none' if sandbox.network is None else 'sandbox'}",
    ]
    if HOST_SOCKETS in features:
        found.append(f"--{HOST_SOCKETS}=open")
    if DISCONNECT in features:
        # A connection that the program has closed lingers for a minute, and a checkpoint would be refused all that time.
        found.append(f"--{DISCONNECT}")
    return found


def _ask(program: Path, until: float, *arguments: str) -> str:
    return run([str(program), *arguments], until, with_errors=True).decode(errors="replace")


def _options(program: Path, until: float, *arguments: str) -> set[str]:
    return set(_OPTION.findall(_ask(program, until, *arguments)))
