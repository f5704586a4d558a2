"""``imagefs cache``: show and steer the SSD tier."""

from typing import Any

import click

from imagefs_cli import output
from imagefs_cli.options import GLOBAL_OPTIONS, Invocation, command, complete_ref


@click.group("cache", short_help="Show and steer the SSD tier.", context_settings={"help_option_names": ["-h", "--help"]})
def cache_command() -> None:
    """Show and steer what this host keeps on its disk: the SSD tier.

    With a daemon running it is asked; otherwise the cache directory is opened by the command itself.
    """


cache_command.params += GLOBAL_OPTIONS()


def _do(invocation: Invocation, action: str, **fields: Any) -> dict[str, Any]:
    """Ask the daemon, or do it here where none runs."""
    import os

    from imagefs.daemon import client

    config = invocation.config()
    at = None
    if os.geteuid() != 0:
        own = [daemon for daemon in client.daemons(config) if daemon["cache"] == str(config.cache)]
        at = next((mount["mountpoint"] for daemon in own for mount in daemon["mounts"]), None)
    if client.running(config, at=at):
        return client.call(config, "cache", at=at, timeout=_PATIENCE, action=action, **fields)
    from imagefs.daemon.offline import ask_here

    return ask_here(config, action, fields)


_PATIENCE = 6 * 3600.0
_FRAME_MAX = 4 << 20
"""Bytes of the largest frame that images are made with."""


def _status(invocation: Invocation) -> None:
    """Show how much is kept, what bounds it, and what is pinned."""
    status = _do(invocation, "status")
    if invocation.wants_json:
        output.print_json(status)
        return
    bound = output.size(status["limit_bytes"]) if status["limit_bytes"] else "as much as there is room"
    rows: list[tuple[str, object]] = [
        ("directory", status["cache"]),
        ("kept", f"{output.size(status['bytes'])} in {status['files']:,} files, {status['complete_files']:,} of them complete"),
        ("at most", bound),
        ("left free", f"{output.size(status['floor_bytes'])} ({output.size(status['free_bytes'])} are free)"),
    ]
    if status["refusing"]:
        rows.append(("the disk refuses", status["refusing"]))
    rows += [("warning", warning) for warning in status["warnings"]]
    rows += [("pinned", f"{pin['ref']}  {pin['manifest'][:12]}") for pin in status["pins"]]
    output.pairs(rows)


@click.argument("ref", shell_complete=complete_ref)
def _pin(invocation: Invocation, ref: str) -> None:
    """Keep what is here of image REF, and what comes, until `unpin`. Its index is brought here; the rest comes as it is read."""
    _tell(invocation, _do(invocation, "pin", ref=ref), f"{ref} is pinned")


@click.argument("ref", shell_complete=complete_ref)
def _unpin(invocation: Invocation, ref: str) -> None:
    """Let image REF be evicted again."""
    _tell(invocation, _do(invocation, "unpin", ref=ref), f"{ref} is not pinned any more")


@click.argument("ref", required=False, shell_complete=complete_ref)
@click.option("--bytes", "amount", metavar="SIZE", help="How much is to go, such as 10GiB; all of it by default.")
def _evict(invocation: Invocation, ref: str | None, amount: str | None) -> None:
    """Remove content from the disk: that of image REF, or what was not used for longest. What is pinned stays; open files stay readable."""
    if ref is None and amount is None:
        raise click.UsageError("name an image, or say how much with --bytes")
    result = _do(invocation, "evict", ref=ref or "", bytes=_size(amount) if amount else 0)
    _tell(invocation, result, f"{output.size(result['freed_bytes'])} removed")


def _verify(invocation: Invocation) -> None:
    """Compare every complete file with its digest, now, and remove what differs. The daemon does that by itself every `scrub_days`."""
    result = _do(invocation, "verify")
    _tell(invocation, result, f"{result['files']:,} files, {output.size(result['bytes'])}: {result['bad']} damaged and removed")


@click.option("--pinned", is_flag=True, help="Also what is pinned.")
def _clear(invocation: Invocation, pinned: bool) -> None:
    """Remove all content from the disk, and what an older version left. What is pinned stays."""
    result = _do(invocation, "clear", pinned=pinned)
    _tell(invocation, result, f"{output.size(result['freed_bytes'])} removed")


@click.option("--size", "limit", metavar="SIZE", help="At most this much, such as 200GiB; 0: as much as there is room.")
@click.option("--floor", metavar="SIZE", help="Leave this much free on the file system.")
def _limit(invocation: Invocation, limit: str | None, floor: str | None) -> None:
    """Change the bounds of the running daemon. `cache_bytes` and `cache_floor` in the configuration are those of the next one."""
    if limit is None and floor is None:
        raise click.UsageError("say --size, --floor or both")
    most = None if limit is None else _size(limit)
    if most is not None and 0 < most < _FRAME_MAX:
        raise click.UsageError(f"{limit!r} is too small: not every frame fits; at least 4MiB, or 0 for as much as there is room")
    result = _do(invocation, "limit", limit=most, floor=None if floor is None else _size(floor))
    _tell(invocation, result, "the bounds are changed")


def _size(text: str) -> int:
    from imagefs.config import parse_size

    try:
        return parse_size(text)
    except ValueError:
        raise click.UsageError(f"not a size: {text!r}; write for example 512MiB") from None


def _tell(invocation: Invocation, result: dict[str, Any], text: str) -> None:
    if invocation.wants_json:
        output.print_json(result)
    else:
        output.say(text)


for _name, _function in (
    ("status", _status),
    ("pin", _pin),
    ("unpin", _unpin),
    ("evict", _evict),
    ("verify", _verify),
    ("clear", _clear),
    ("limit", _limit),
):
    cache_command.add_command(command(_name)(_function))
