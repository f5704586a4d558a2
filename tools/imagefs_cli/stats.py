"""``imagefs stats``."""

import re
from collections.abc import Mapping
from typing import Any, Final

import click

from imagefs_cli import output, watching
from imagefs_cli.options import Invocation, command

_LABEL: Final = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]*")
_OURS: Final = frozenset({"op", "tier"})


@command("stats", short_help="Show what the daemon has served, and from which tier.")
@click.option("--prometheus", is_flag=True, help="Print Prometheus's text format, for node_exporter's textfile collector.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="With --prometheus: a label of every sample; may be repeated.")
@watching.watch_options
def stats_command(invocation: Invocation, prometheus: bool, labels: tuple[str, ...], watch: float | None, count: int | None) -> None:
    """Show the figures of the daemon of this store and cache: requests, bytes by tier, what was fetched, memory.

    Without root, where each mount has a daemon of its own, the figures of all of them are added up. docs/metrics.md says what each figure
    means, and which ones to watch. With --watch it shows what changes, as rates, until Ctrl-C: a table on a terminal, else a line a period,
    with --json a document a line.
    """
    from imagefs.errors import UsageError

    if prometheus and invocation.wants_json:
        raise UsageError("--json and --prometheus are two formats", hint="ask for one of them")
    if labels and not prometheus:
        raise UsageError("--label is for --prometheus")
    if watch is not None or count is not None:
        if prometheus:
            raise UsageError("--watch and --prometheus do not go together", hint="docs/metrics.md says how to scrape")
        _watch(invocation, watch, count)
        return
    common = dict(_label(text) for text in labels)
    figures = collect(invocation)
    if prometheus:
        from imagefs.daemon.prometheus import exposition

        click.echo(exposition(figures, common), nl=False)
        return
    figures |= _services(invocation)
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


def _services(invocation: Invocation) -> dict[str, Any]:
    """Return how the services of this host started of late, of which each leaves a note beside its log; nothing where none did.

    ``service_starts``: how many were ``restored``, how many ``cold``, and of how many a restore had ``failed`` before; and why the last one
    that was not restored was not.
    """
    from snapshotstore.runner.timeline import kept
    from snapshotstore.runner.workplace import logs_folder

    found = list(kept(logs_folder(invocation.config().runtime)))
    if not found:
        return {}
    counts = {how: sum(one.started == how for one in found) for how in ("restored", "cold")}
    reason = next((one.reason for one in found if one.started == "cold"), "")
    return {"service_starts": {**counts, "failed": sum(bool(one.failed) for one in found), "last_reason": reason}}


def _watch(invocation: Invocation, seconds: float | None, count: int | None) -> None:
    def shown(period: watching.Period) -> list[list[str]]:
        return [["figure", "now", "a second"], *_rows(period.now, period.rates)]

    watching.watch(
        lambda: collect(invocation),
        seconds,
        count,
        watching.Views(table=shown, line=_line, document=lambda period: {"figures": period.now, "rates": period.rates}),
        is_json=invocation.wants_json,
    )


def _rows(figures: Mapping[str, Any], rates: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name, value in figures.items():
        if isinstance(value, dict):
            rows += _rows({f"{name}.{key}": part for key, part in value.items()}, {f"{name}.{key}": r for key, r in rates[name].items()})
        elif not isinstance(value, list):
            rate = rates.get(name)
            rows.append([name, _shown(name, value), "" if rate is None else _shown(name, round(rate))])
    return rows


def _line(period: watching.Period) -> str:
    rates = period.rates
    read = " ".join(f"{tier} {output.size(rate)}" for tier, rate in rates["bytes_read"].items())
    return (
        f"{sum(rates['fuse_requests'].values()):.0f} requests/s  read/s {read}  "
        f"{rates['store_gets']:.0f} GETs/s {output.size(rates['store_bytes'])}  "
        f"failed {period.now['failed_requests']} mounts {len(period.now['mounts'])} memory {output.size(period.now['rss_bytes'])}"
    )


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
