"""``imagefs top``."""

import os
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

import click

from imagefs_cli import output, watching
from imagefs_cli.options import Invocation, command

_TIERS: Final = ("ram", "ssd", "store")
_SECONDS_MAX: Final = 10.0
"""Less than after which the daemon no longer tells programs apart."""

_KERNEL_NOTE: Final = "In kernel mode the kernel reads what is on SSD by itself: only what the daemon was asked for is seen here."

Rates = dict[str, float]


@command("top", short_help="Show who reads what from which tier now.")
@click.option("--every", type=float, default=watching.SECONDS, show_default=True, metavar="SECONDS", help="How often.")
@click.option("--once", is_flag=True, help="Show one period and end.")
def top_command(invocation: Invocation, every: float, once: bool) -> None:
    """Show how many bytes a second are read, from RAM, SSD and the store: by mount, and by cgroup and program, until Ctrl-C.

    What programs find in the kernel's page cache is read from nobody, and not seen. A read counts for the program that opened the file
    last. An image that is mounted several times has one line for all its mounts. With --json: a document a line.
    """
    watching.checked(every, _SECONDS_MAX)
    try:
        before, at = _ask(invocation), time.monotonic()
        while True:
            time.sleep(max(0.0, at + every - time.monotonic()))
            now, then = _ask(invocation), time.monotonic()
            _show(document(before, now, then - at), invocation, once=once)
            if once:
                return
            before, at = now, then
    except KeyboardInterrupt:
        return


def _ask(invocation: Invocation) -> dict[str, Any]:
    from imagefs.daemon import client
    from imagefs.errors import DaemonError

    config = invocation.config()
    if os.geteuid() == 0:
        return _merged([client.call(config, "top")])
    found = [daemon for daemon in client.daemons(config) if daemon["store"] == config.store and daemon["cache"] == str(config.cache)]
    asked = [client.call(config, "top", at=mount["mountpoint"]) for daemon in found for mount in daemon["mounts"]]
    if not asked:
        raise DaemonError("no daemon is running for this store and cache", hint="`imagefs mount` starts one")
    return _merged(asked)


def _merged(answers: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "workers": [answer["worker_pid"] for answer in answers],
        "mounts": [mount for answer in answers for mount in answer["mounts"]],
        "programs": [row for answer in answers for row in answer["programs"]],
    }


def document(before: Mapping[str, Any], now: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Return what was read a second between two answers, those who read most first."""
    images = {mount["manifest"]: mount["bytes_read"] for mount in before["mounts"]}
    programs = {_name(row): row["bytes_read"] for row in before["programs"]}
    if before["workers"] != now["workers"]:
        images = programs = {}  # Another process counts from 0.
    mounts: dict[str, dict[str, Any]] = {}
    for mount in now["mounts"]:
        line = mounts.setdefault(mount["manifest"], {"mountpoints": [], "ref": mount["ref"], "manifest": mount["manifest"], "modes": []})
        line["mountpoints"].append(mount["mountpoint"])
        line["modes"] = sorted({*line["modes"], mount["mode"]})
        line["bytes_a_second"] = _rates(images.get(mount["manifest"], {}), mount["bytes_read"], seconds)
    rows = [
        {**row, "bytes_a_second": _rates(programs.get(_name(row), {}), row["bytes_read"], seconds)}
        for row in now["programs"]
        if row["mountpoints"]
    ]
    return {
        "seconds": seconds,
        "kernel_mode": any(mount["mode"] == "kernel" for mount in now["mounts"]),
        "mounts": sorted(mounts.values(), key=_most, reverse=True),
        "programs": sorted((row for row in rows if any(row["bytes_a_second"].values())), key=_most, reverse=True),
    }


def _name(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["manifest"], row["cgroup"], row["command"]


def _rates(before: Mapping[str, int], now: Mapping[str, int], seconds: float) -> Rates:
    return {tier: watching.grown(before.get(tier, 0), now[tier]) / seconds for tier in _TIERS}


def _most(row: Mapping[str, Any]) -> float:
    rates: Rates = row["bytes_a_second"]
    return sum(rates.values())


def _show(found: dict[str, Any], invocation: Invocation, *, once: bool) -> None:
    if invocation.wants_json:
        watching.document_line({"time": time.time(), **found})
        return
    tables = [_mounts(found), _programs(found)]
    if sys.stdout.isatty() and not once:
        watching.show_on_terminal(tables)
    else:
        for rows in tables:
            output.table(rows[0], rows[1:])
            click.echo()
    if found["kernel_mode"]:
        click.echo(_KERNEL_NOTE)


def _mounts(found: Mapping[str, Any]) -> list[list[str]]:
    rows = [["RAM/s", "SSD/s", "STORE/s", "MODE", "IMAGE", "MOUNTED AT"]]
    for row in found["mounts"]:
        first, *more = row["mountpoints"]
        at = f"{first} and {len(more)} more" if more else first
        rows.append([*_sizes(row), "+".join(row["modes"]), row["ref"] or row["manifest"][:12], at])
    return rows


def _programs(found: Mapping[str, Any]) -> list[list[str]]:
    rows = [["RAM/s", "SSD/s", "STORE/s", "PID", "COMMAND", "CGROUP", "MOUNTED AT"]]
    for row in found["programs"]:
        # What was opened before this process served, or by who has ended since, is nobody's.
        who = [str(row["pid"]) if row["pid"] else "-", row["command"] or "not known", row["cgroup"] or "-"]
        rows.append([*_sizes(row), *who, row["mountpoints"][0]])
    return rows


def _sizes(row: Mapping[str, Any]) -> list[str]:
    return [output.size(row["bytes_a_second"][tier]) for tier in _TIERS]
