"""Showing again and again how figures change: a table on a terminal, else a line a period, or a JSON document a line."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import click

from imagefs_cli import output

SECONDS: Final = 2.0
SECONDS_MIN: Final = 0.1
SECONDS_MAX: Final = 3600.0

Figures = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Period:
    """What was so at its end, and how much a second its counters have grown since its beginning."""

    now: Figures
    rates: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Views:
    """How a period is shown: as rows whose first is the head, as a line, as a document."""

    table: Callable[[Period], list[list[str]]]
    line: Callable[[Period], str]
    document: Callable[[Period], dict[str, Any]]


def watch_options(function: Callable[..., object]) -> Callable[..., object]:
    """Give a command ``--watch`` and ``--count``."""
    function = click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N periods.")(function)
    return click.option(
        "--watch",
        type=float,
        is_flag=False,
        flag_value=SECONDS,
        metavar="[SECONDS]",
        help=f"Show rates each so many seconds ({SECONDS:g}).",
    )(function)


def watch(ask: Callable[[], Figures], seconds: float | None, count: int | None, views: Views, *, is_json: bool) -> None:
    """Ask each ``seconds`` (None: ``SECONDS``) and show what has changed: ``count`` times, or until Ctrl-C."""
    every = checked(SECONDS if seconds is None else seconds)
    show = _shower(views, is_json=is_json)
    try:
        for period in _periods(ask, every, count):
            show(period)
    except KeyboardInterrupt:
        # That is how it ends, and no failure.
        return


def checked(seconds: float, most: float = SECONDS_MAX) -> float:
    """Return a period's length. ``UsageError`` if it is none."""
    from imagefs.errors import UsageError

    if not SECONDS_MIN <= seconds <= most:
        raise UsageError(f"not a period that can be watched: {seconds:g} s", hint=f"{SECONDS_MIN:g} to {most:g} seconds")
    return seconds


def _periods(ask: Callable[[], Figures], every: float, count: int | None) -> Any:
    before, at = ask(), time.monotonic()
    while count is None or count > 0:
        # By the clock and not by sleeps, so that periods do not become longer by what asking takes.
        time.sleep(max(0.0, at + every - time.monotonic()))
        now, then = ask(), time.monotonic()
        yield Period(now, rates(before, now, then - at))
        before, at = now, then
        count = None if count is None else count - 1


def rates(before: Figures, now: Figures, seconds: float) -> dict[str, Any]:
    """Return by how much a second each counter has grown.

    One that is smaller than before has begun anew, with another process, and what it says has come since.
    """
    from imagefs.daemon.metrics import COUNTER, METRICS

    found: dict[str, Any] = {}
    for key in (metric.key for metric in METRICS if metric.kind == COUNTER and metric.key in now):
        was, value = before.get(key, 0), now[key]
        if isinstance(value, dict):
            found[key] = {name: grown(was.get(name, 0) if was else 0, part) / seconds for name, part in value.items()}
        else:
            found[key] = grown(was, value) / seconds
    return found


def grown(before: float, now: float) -> float:
    """Return how much a counter has grown."""
    return now - before if now >= before else now


def _shower(views: Views, *, is_json: bool) -> Callable[[Period], None]:
    if is_json:
        return lambda period: document_line({"time": time.time(), **views.document(period)})
    if sys.stdout.isatty():
        return _Screen(views.table).show
    return lambda period: click.echo(output.plain(f"{time.strftime('%H:%M:%S')}  {views.line(period)}"))


def document_line(document: Mapping[str, Any]) -> None:
    """Print a JSON document in one line, at once."""
    import json

    click.echo(json.dumps(document, default=str))


class _Screen:
    """One table that is written anew in its place."""

    def __init__(self, table: Callable[[Period], list[list[str]]]) -> None:
        self._table = table

    def show(self, period: Period) -> None:
        """Write the table."""
        show_on_terminal([self._table(period)])


def show_on_terminal(tables: Sequence[list[list[str]]]) -> None:
    """Clear the terminal and write tables, as far as they fit."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console.clear()
    room = console.height - 1
    for rows in tables:
        if room < 3:
            break
        table = Table(*rows[0], box=None, pad_edge=False)
        for row in rows[1 : room - 1]:
            # Text, so that a name that looks like markup is a name.
            table.add_row(*(Text(output.plain(cell)) for cell in row))
        console.print(table, no_wrap=True, overflow="ellipsis")
        room -= len(rows) + 1
