"""``./dev bench [NAME…]``: run the benches, print a table, keep it as JSON in ``bench/results/``."""

import argparse
import datetime
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.cases import BENCHES
from bench.harness import ROOT, Figure, Run


def main() -> int:
    """Run what was asked for; exit 1 if a bound does not hold."""
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *BENCHES], help="which benches (default: all)")
    parser.add_argument("--runs", type=int, default=5, help="runs of each (default 5)")
    options = parser.parse_args()
    figures: list[tuple[str, Figure]] = []
    for name in options.names or BENCHES:
        sys.stderr.write(f"{name}\n")
        run = Run(options.runs)
        BENCHES[name](run)
        figures += [(name, figure) for figure in run.figures]
    _print(figures)
    now = datetime.datetime.now(datetime.UTC)
    results = ROOT / "bench" / "results"
    results.mkdir(exist_ok=True)
    document = {
        "time": now.isoformat(timespec="seconds"),
        "machine": {"kernel": platform.release(), "cpus": os.cpu_count(), "python": platform.python_version()},
        "runs": options.runs,
        "figures": [{"bench": name, **asdict(figure), "holds": figure.holds} for name, figure in figures],
    }
    path = results / f"{now:%Y%m%dT%H%M%SZ}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    sys.stderr.write(f"kept in {path.relative_to(ROOT)}\n")
    return int(any(figure.holds is False for _, figure in figures))


def _print(figures: list[tuple[str, Figure]]) -> None:
    sys.stdout.write(f"{'bench':8} {'figure':52} {'measured':>12} {'bound':>10}\n")
    for name, figure in figures:
        bound = "" if figure.bound is None else f"{'<=' if figure.at_most else '>='} {figure.bound:g}"
        mark = {None: "", True: "ok", False: "MISSED"}[figure.holds]
        sys.stdout.write(f"{name:8} {figure.name:52} {figure.value:8.4g} {figure.unit:>4} {bound:>9} {mark}\n")


if __name__ == "__main__":
    sys.exit(main())
