"""``docs/benchmarks.md``: what results say, in tables and a plot a link. Pure: text from results; nothing in it is written by hand."""

import re
from collections.abc import Iterable
from pathlib import Path

from bench.harness import Figure
from bench.starts.measure import DEADLINE, SLOW
from bench.starts.place import Link
from bench.starts.plot import Bar, Panel, seconds, svg
from bench.starts.results import AS_FAST, NATIVE, NONE, OPTIMIZED, PROFILE, PULL, Cell, Results, Win, bounds, wins

PAGE = "benchmarks.md"

_INTRODUCTION = """# Starts, measured

This page is made by `./dev bench starts`; nothing in it is written by hand.

A **start** is all from the order to mount (or to pull) until the program in the image has ended: **cold** on a host that has nothing of the
image, **warm** when the same host did it before and has unmounted it since. The store (a real S3 server, `weed`), the registry and the HTTP
server are on the same machine behind one shaping proxy, which every system uses; servers and daemons run before a start, as services do.
Systems take turns, round after round; values are medians. A system that takes more than {slow:.0f} s is started once, and given up after
{deadline:.0f} s. A start counts only if the program printed what it prints on ext4.

**Needed** are the fewest bytes with which any system that loads from elsewhere started the program in this run. The **floor** is the
larger of the cold start on ext4 and of the time that the link takes for the bytes needed: who has to bring the bytes and run the program
cannot be much faster.
"""

_ANEW = """## To make it anew

On a machine that does nothing else:

```sh
./dev bench starts                                       # all of it; takes hours, of which the images, once, some twenty minutes
./dev bench starts --workloads torch --systems imagefs   # a part of it; kept in bench/results/
./dev bench starts --page bench/results/starts-*.json    # this page from parts, the later over the earlier
```
"""


def write(results: Results, docs: Path) -> list[Path]:
    """Write the page and its plots below ``docs``; give the files."""
    written = []
    for link in results.links():
        target = docs / plot_name(link)
        target.write_text(plot(results, link))
        written.append(target)
    (docs / PAGE).write_text(page(results))
    return [docs / PAGE, *written]


def plot_name(link: str) -> str:
    """Give the name of a link's plot."""
    return f"starts-{re.sub('[^A-Za-z0-9]+', '-', link).strip('-').lower()}.svg"


def page(results: Results) -> str:
    """Give the whole page."""
    parts = [_INTRODUCTION.format(slow=SLOW, deadline=DEADLINE), _machine(results)]
    for link in results.links():
        parts += [f"## {spoken(link)}", f"![Starts over {spoken(link)}]({plot_name(link)})", _summary(results, link)]
    parts += ["## Where a peer wins", _wins(results), "## What has to be reached", _bounds(bounds(results))]
    for link in results.links():
        parts += [f"## Every start over {spoken(link)}", *(_workload(results, link, name) for name in results.workloads(link))]
    parts += ["## The systems and their settings", _systems(results), _ANEW]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def plot(results: Results, link: str) -> str:
    """Give a link's plot."""
    panels = []
    for workload in results.workloads(link):
        bars = []
        for about in results.systems.values():
            if cell := results.cell(workload, link, about.name):
                note = "" if cell.cold is not None else _failure(cell)
                bars.append(Bar(about.name, about.kind, cell.cold, cell.warm, note))
        panels.append(Panel(results.titles[workload].replace("`", ""), bars, results.floor(workload, link)))
    return svg(f"Seconds of a start over {spoken(link)}", panels)


def spoken(link: str) -> str:
    """Give a link in words."""
    shape = Link.parse(link)
    rate = f"{shape.bandwidth / 1e9:g} GB/s" if shape.bandwidth >= 1e9 else f"{shape.bandwidth / 1e6:g} MB/s"
    return f"{shape.delay * 1e3:g} ms and {rate}"


def _machine(results: Results) -> str:
    lines = [", ".join(f"{name} {value}" for name, value in machine.items() if value) for machine in results.machines]
    plural = "Made on" if len(lines) == 1 else "Made on several machines, so nothing may be compared across them:"
    peers = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    when = sorted({time[:10] for time in results.times})
    return f"{plural} {'; '.join(lines)}; {' and '.join(when)}. Servers, link and readers share its processors. Peers: {peers}."


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    lines = ["| " + " | ".join(names) + " |", "|---" + "|---:" * (len(names) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _summary(results: Results, link: str) -> str:
    """Give a row a workload: the floor, ImageFS' variants, pull, and the best lazy peer."""
    rows = []
    for workload in results.workloads(link):
        cells = {name: results.cell(workload, link, name) for name in (NATIVE, NONE, PROFILE, OPTIMIZED, PULL)}
        floor = results.floor(workload, link)
        peers = [
            (cell.cold, about.name)
            for about in results.systems.values()
            if about.kind == "peer" and (cell := results.cell(workload, link, about.name)) and cell.cold is not None
        ]
        best = min(peers, default=None)
        mine = [cell.cold for name in (NONE, PROFILE, OPTIMIZED) if (cell := cells[name]) and cell.cold is not None]
        rows.append([
            results.titles[workload],
            *(_seconds(cells[name]) for name in (NATIVE,)),
            seconds(floor) if floor else "",
            *(_with_ratio(cells[name], floor) for name in (NONE, PROFILE, OPTIMIZED)),
            _with_ratio(cells[PULL], min(mine, default=None)),
            f"{seconds(best[0])} ({best[1]})" if best else "",
        ])  # fmt: skip
    head = (
        "cold start of",
        "ext4, s",
        "floor, s",
        "ImageFS, s (x floor)",
        "with a profile",
        "optimized",
        "pull, s (x our best)",
        "best lazy peer, s",
    )
    return _table(head, rows)


def _with_ratio(cell: Cell | None, under: float | None) -> str:
    if cell is None or cell.cold is None or not under:
        return _seconds(cell)
    return f"{seconds(cell.cold)} ({cell.cold / under:.2f})"


def _seconds(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return _failure(cell) if cell.cold is None else seconds(cell.cold)


def _failure(cell: Cell) -> str:
    return f"> {DEADLINE:.0f}" if "no end after" in cell.error else "failed"


def _workload(results: Results, link: str, workload: str) -> str:
    floor, needed = results.floor(workload, link), results.needed(workload, link)
    pull = results.cell(workload, link, PULL)
    rows, failures = [], []
    for about in results.systems.values():
        cell = results.cell(workload, link, about.name)
        if cell is None:
            continue
        if cell.error:
            failures.append(f"{about.name}: {_one_line(cell.error)}")
        if cell.cold is None:
            rows.append([about.name, _failure(cell), *[""] * 7])
            continue
        rows.append([
            about.name,
            seconds(cell.cold),
            f"{cell.cold / floor:.2f}" if floor else "",
            f"{pull.cold / cell.cold:.1f}" if pull and pull.cold else "",
            "" if cell.warm is None else seconds(cell.warm),
            seconds(cell.mounted),
            f"{cell.bytes / 1e6:.1f}",
            f"{cell.requests:.0f}",
            str(cell.runs),
        ])  # fmt: skip
    head = (
        "system",
        "cold, s",
        "x floor",
        "times as fast as pull",
        "warm, s",
        "cold, until the root is there, s",
        "moved, MB",
        "requests",
        "runs",
    )
    told = f"### {results.titles[workload]}\n\nNeeded: {needed / 1e6:.1f} MB" + (f"; floor: {seconds(floor)} s." if floor else ".")
    return "\n\n".join([told, _table(head, rows), *(f"Failed: {failure}" for failure in failures)])


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "/")[:300]


def _wins(results: Results) -> str:
    found = wins(results)
    if not found:
        return "Nowhere in this run: no peer was faster, cold or warm, or moved less than the best of ImageFS' variants."
    texts = {"cold": "Cold starts", "warm": "Second starts", "bytes": "Bytes moved by a cold start"}
    parts = ["Compared with the best of ImageFS' modes and variants:"]
    for what, title in texts.items():
        if rows := [_win(results, win) for win in found if win.what == what]:
            unit = "MB" if what == "bytes" else "s"
            parts += [f"**{title}**", _table(("workload", "link", "peer", f"peer, {unit}", f"ImageFS, {unit}", "ImageFS / peer"), rows)]
        else:
            parts.append(f"**{title}**: nowhere.")
    return "\n\n".join(parts)


def _win(results: Results, win: Win) -> list[str]:
    def value(number: float) -> str:
        return f"{number / 1e6:.1f}" if win.what == "bytes" else seconds(number)

    ratio = f"{win.ours / win.theirs:.2f}" if win.theirs else ""
    return [results.titles[win.workload], spoken(win.link), win.peer, value(win.theirs), f"{value(win.ours)} ({win.best})", ratio]


def _bounds(figures: list[Figure]) -> str:
    if not figures:
        return "Nothing that was measured has to reach anything."
    told = (
        f"Not slower means at most {AS_FAST:g} times: two medians of the same program differ by so much on a machine that others use too."
    )
    rows = []
    for figure in figures:
        bound = f"{'at most' if figure.at_most else 'at least'} {figure.bound:g}"
        rows.append([figure.name, f"{figure.value:.3g} {figure.unit}".strip(), bound, "yes" if figure.holds else "**no**"])
    return f"{told}\n\n{_table(('what', 'measured', 'bound', 'reached'), rows)}"


def _systems(results: Results) -> str:
    rows = [[about.name, about.title, about.settings, about.skipped] for about in results.systems.values()]
    lines = ["| system | what it is | settings, and why | not run, because |", "|---|---|---|---|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
