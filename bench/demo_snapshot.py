"""How the demonstration ends: a service is called twice, and the second time it is restored from what the first start left in the store."""

import sys
import time
from typing import Any

from bench.harness import ROOT, Product

_TARGET = "equations:Equations"


def show_snapshot(product: Product) -> None:
    """Call the service twice, on the command line, and print what both starts took. ``RuntimeError`` if the second was not restored."""
    sys.stderr.write(f"run the service {_TARGET} twice (bench/service/equations.py): a cold start, then a restore of its memory\n")
    with product.daemon():
        answers = [_call(product) for _ in range(2)]
    (first, cold), (second, restored) = answers
    if first["result"] != second["result"]:
        raise RuntimeError(f"the restored service answers {second['result']}, and the first one {first['result']}")
    if second["started"] != "restored":
        raise RuntimeError(f"the service was not restored: {second['reason']}{''.join(first['notes'])}")
    rows = [
        ("the service, cold start to its answer", _told(first, cold)),
        ("the service, restored to its answer", _told(second, restored)),
    ]
    width = max(len(name) for name, _ in rows)
    sys.stdout.write("\n" + "".join(f"  {name:{width}}  {value}\n" for name, value in rows))
    sys.stdout.flush()


def _call(product: Product) -> tuple[dict[str, Any], float]:
    begun = time.perf_counter()
    source = ROOT / "bench" / "service"
    answer = product.run("snapshot", "run", _TARGET, "--source", source, "--call", "solve", "--args", "[2.0]")
    return answer, time.perf_counter() - begun


def _told(answer: dict[str, Any], whole: float) -> str:
    timeline = answer["timeline"]
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in timeline.items())
    return f"{sum(timeline.values()):.2f} s with {answer['engine']} ({stages}; {whole:.2f} s with the command and what follows)"
