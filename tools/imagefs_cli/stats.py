"""``imagefs stats``."""

import re
from typing import Any, Final

import click

from imagefs_cli import output
from imagefs_cli.options import Invocation, command

_LABEL: Final = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]*")
_OURS: Final = frozenset({"op", "tier"})


@command("stats", short_help="Show what the daemon has served, and from which tier.")
@click.option("--prometheus", is_flag=True, help="Print Prometheus's text format, for node_exporter's textfile collector.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="With --prometheus: a label of every sample; may be repeated.")
def stats_command(invocation: Invocation, prometheus: bool, labels: tuple[str, ...]) -> None:
    """Show the figures of the daemon of this store and cache: requests, bytes by tier, what was fetched, memory.

    Without root, where each mount has a daemon of its own, the figures of all of them are added up. docs/metrics.md says what each figure
    means, and which ones to watch.
    """
    from imagefs.errors import UsageError

    if prometheus and invocation.wants_json:
        raise UsageError("--json and --prometheus are two formats", hint="ask for one of them")
    if labels and not prometheus:
        raise UsageError("--label is for --prometheus")
    common = dict(_label(text) for text in labels)
    figures = collect(invocation)
    if prometheus:
        from imagefs.daemon.prometheus import exposition

        click.echo(exposition(figures, common), nl=False)
        return
    if invocation.wants_json:
        output.print_json(figures)
        return
    rows: list[tuple[str, object]] = []
    for name, value in figures.items():
        if isinstance(value, dict):
            rows += [(f"{name}.{key}", _shown(name, part)) for key, part in value.items()]
        elif isinstance(value, list):
            rows += [("mount", f"{mount['mountpoint']}  {mount['ref'] or mount['manifest']}") for mount in value]
        else:
            rows.append((name, _shown(name, value)))
    output.pairs(rows)


def collect(invocation: Invocation) -> dict[str, Any]:
    """Return the figures of the daemons of this store and cache. ``DaemonError`` if none runs."""
    import os

    from imagefs.daemon import client

    config = invocation.config()
    if os.geteuid() == 0:
        return client.stats(config)
    total: dict[str, Any] = {}
    for daemon in client.daemons(config):
        if daemon["store"] == config.store and daemon["cache"] == str(config.cache):
            for mount in daemon["mounts"]:
                total = _added(total, client.stats(config, at=mount["mountpoint"]))
    return total or client.stats(config)


def _label(text: str) -> tuple[str, str]:
    from imagefs.errors import UsageError

    name, equals, value = text.partition("=")
    if not equals or not _LABEL.fullmatch(name) or name in _OURS or not value.isprintable():
        raise UsageError(f"not a label that can be given: {text!r}", hint="NAME=VALUE, in printable text; the names op and tier are taken")
    return name, value


def _added(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    both = dict(left)
    for name, value in right.items():
        before = both.get(name)
        if before is None:
            both[name] = value
        elif isinstance(value, dict):
            both[name] = _added(before, value)
        else:
            both[name] = before + value
    return both


def _shown(name: str, value: object) -> str:
    if isinstance(value, int) and "bytes" in name:
        return output.size(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
