"""The plain command lines of ``mount``, ``umount`` and ``snapshot run``, read without click, which takes longer to load than a mount takes.

Promises: what this reads means what click would make of it (a test has both read the same lines), and what it does not read, it leaves to
click before anything was done: help, unknown and rare options, values that are not one, wrong numbers of arguments. How a run ends that
does not go well is ``imagefs_cli.failures``' to say, here as there.

Nothing is imported here that takes long to load; what does is, when something went wrong.
"""

import sys

from imagefs_cli import declared
from imagefs_cli.invocation import Invocation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Final, NoReturn

    from imagefs_cli.declared import Option

_COMMANDS: "Final[dict[str, tuple[int, tuple[Option, ...]]]]" = {
    "mount": (2, declared.MOUNT),
    "umount": (1, declared.UMOUNT),
    "snapshot run": (1, declared.RUN),
}
"""How many arguments each takes, and its options."""

_GROUPS: "Final" = frozenset(name.partition(" ")[0] for name in _COMMANDS if " " in name)


class _Unread(Exception):  # noqa: N818 # nothing is wrong: click will read it
    """This line is not a plain one."""


class Call:
    """A command line that was read: which command, its arguments, its options by name, and what is for all commands."""

    __slots__ = ("arguments", "command", "invocation", "options")

    def __init__(self, command: str, arguments: list[str], options: "dict[str, Any]", invocation: Invocation) -> None:
        """Keep what was read."""
        self.command = command
        self.arguments = arguments
        self.options = options
        self.invocation = invocation

    def run(self) -> None:
        """Do it."""
        if self.command == "snapshot run":
            from imagefs_cli import snapshot_call

            snapshot_call.run(self.invocation, self.arguments[0], self.options)
            return
        from imagefs_cli import mounts

        if self.command == "mount":
            mounts.mount(self.invocation, self.arguments[0], self.arguments[1], self.options)
        else:
            mounts.umount(self.invocation, self.arguments[0], self.options)


def run(line: "Sequence[str]") -> int | None:
    """Run a command line, and return its exit code; None if it is left to click."""
    call = read(line)
    if call is None:
        return None
    try:
        call.run()
        if sys.stdout is not None:
            sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 # what it was is seen there
        from imagefs_cli import failures

        return failures.guard(_raising(error), call.invocation)
    return 0


def _raising(error: BaseException) -> "Callable[[], NoReturn]":
    def run() -> "NoReturn":
        raise error

    return run


def read(line: "Sequence[str]") -> Call | None:
    """Read a command line; None if it is not a plain one."""
    invocation = Invocation(wants_json="--json" in line, command_line=tuple(line))
    words = list(reversed(line))
    try:
        command = _command(words, invocation)
        count, known = _COMMANDS[command]
        options = {option.name: option.default for option in known}
        arguments: list[str] = []
        while words:
            word = words.pop()
            if word.startswith("-"):
                _option(word, words, known, options, invocation)
            else:
                arguments.append(word)
    except _Unread:
        return None
    is_whole = len(arguments) == count and all(arguments) and not any(option.required and options[option.name] is None for option in known)
    return Call(command, arguments, options, invocation) if is_whole else None


def _command(words: list[str], invocation: Invocation) -> str:
    """Take the words up to the command's name, which may be two; before each there may be options that are for all commands."""
    begun = ""
    while words:
        word = words.pop()
        if begun + word in _COMMANDS:
            return begun + word
        if not begun and word in _GROUPS:
            begun = f"{word} "
        elif word == "--json" or not word.startswith("-"):
            break
        else:
            _option(word, words, (), {}, invocation)
    raise _Unread


def _option(word: str, words: list[str], known: "tuple[Option, ...]", options: "dict[str, Any]", invocation: Invocation) -> None:
    """Read an option, and its value from the words behind it."""
    written, equals, value = word.partition("=")
    if word == "--json":
        return
    option = next((option for option in (*known, *declared.GLOBAL) if written in option.names), None)
    if option is None or option.rare or (equals and not written.startswith("--")):
        raise _Unread
    if option.kind == declared.FLAG:
        if equals:
            raise _Unread
        found: Any = True
    elif option.kind == declared.SHARE:
        found = _share(value) if equals else 1.0
    else:
        found = value if equals else _next(words)
        if option.choices and found not in option.choices:
            raise _Unread
    if option in declared.GLOBAL:
        invocation.keep(option.name, found)
    else:
        options[option.name] = found


def _next(words: list[str]) -> str:
    if not words or words[-1].startswith("-"):
        raise _Unread
    return words.pop()


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError as error:
        raise _Unread from error
    if not 0 <= share <= 1:
        raise _Unread
    return share
