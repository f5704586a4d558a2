"""``./dev bench starts``: start programs from images by every system, keep what was found as JSON, and write ``docs/benchmarks.md``.

Without arguments everything is run (hours), and the page is written. A part of it is run with --workloads, --systems and --links, which
keeps JSON only; --page FILE... writes the page from such files, the later over the earlier, without running anything.
"""

import argparse
import datetime
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.harness import ROOT, Figure
from bench.starts import page, peers
from bench.starts.machine import machine, versions
from bench.starts.measure import Bench
from bench.starts.ours import ours
from bench.starts.place import Link, Place, place
from bench.starts.results import Results, bounds
from bench.starts.systems import Native, Pull, System
from bench.starts.workloads import WORKLOADS

LINKS = ("20ms,200MB/s", "100ms,1GB/s")
RESULTS = ROOT / "bench" / "results"


def main() -> int:
    """Run or render what was asked for; exit 1 if a bound does not hold."""
    options = _options()
    if options.page:
        _page([json.loads(path.read_text()) for path in options.page])
        return 0
    # Whoever ends it keeps what was found so far.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    whole = not (options.workloads or options.systems or options.links)
    with place() as where:
        systems = every_system(where)
        if options.list:
            for system in systems:
                sys.stdout.write(f"{system.name:24} {system.title}\n")
            return 0
        wanted = [system for system in systems if not options.systems or any(system.name.startswith(name) for name in options.systems)]
        bench = Bench(where, wanted, options.runs)
        try:
            for link, names in _plan(options.links, options.workloads):
                for name in names:
                    bench.measure(WORKLOADS[name], Link.parse(link))
        finally:
            # What was found before something failed took its time too.
            document = _document(bench, wanted, options.runs)
            figures = _keep(document)
    if whole:
        _page([document])
    return int(any(figure.holds is False for figure in figures))


def every_system(where: Place) -> list[System]:
    """Give every system that there is, in the order of the tables."""
    return [Native(where), *ours(where), Pull(where), *(peer(where) for peer in peers.PEERS)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench starts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, metavar="NAME", help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--systems", nargs="+", metavar="NAME", help="systems by the beginning of their names; --list tells them")
    parser.add_argument("--links", nargs="+", metavar="LINK", help=f"as {LINKS[0]} (default: that for all, and {LINKS[1]} for torch)")
    parser.add_argument("--runs", type=int, default=3, help="starts of each system, slow ones apart (default 3)")
    parser.add_argument("--list", action="store_true", help="tell the systems, and end")
    parser.add_argument("--page", nargs="+", type=Path, metavar="FILE", help="run nothing: write the page from these results")
    return parser.parse_args()


def _plan(links: Sequence[str] | None, workloads: Sequence[str] | None) -> list[tuple[str, Sequence[str]]]:
    names = workloads or list(WORKLOADS)
    if links:
        return [(link, names) for link in links]
    return [(LINKS[0], names), (LINKS[1], [name for name in names if name == "torch"])]


def _document(bench: Bench, systems: Sequence[System], runs: int) -> dict[str, Any]:
    about = [
        {"name": one.name, "title": one.title, "kind": one.kind, "settings": one.settings, "skipped": bench.skipped.get(one.name, "")}
        for one in systems
    ]
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "runs": runs,
        "systems": about,
        "workloads": {name: one.title for name, one in WORKLOADS.items()},
        "samples": [sample.document() for sample in bench.samples],
    }


def _keep(document: dict[str, Any]) -> list[Figure]:
    """Keep a run's document, and print and give what has to be reached."""
    figures = bounds(Results([document]))
    document["figures"] = [
        {
            "bench": "starts",
            "name": one.name,
            "value": one.value,
            "unit": one.unit,
            "bound": one.bound,
            "at_most": one.at_most,
            "holds": one.holds,
        }
        for one in figures
    ]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"starts-{document['time'].replace(':', '').replace('-', '')[:15]}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    for one in figures:
        sign = "<=" if one.at_most else ">="
        sys.stdout.write(f"{one.name:72} {one.value:8.3g} {one.unit:2} {sign} {one.bound:<6g} {'ok' if one.holds else 'MISSED'}\n")
    sys.stderr.write(f"kept in {path.relative_to(ROOT)}\n")
    return figures


def _page(documents: list[dict[str, Any]]) -> None:
    for path in page.write(Results(documents), ROOT / "docs"):
        sys.stderr.write(f"wrote {path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    sys.exit(main())
