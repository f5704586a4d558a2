"""What it costs a start that it is recorded: ``import torch`` with everything local, from mounts that record and mounts that do not."""

import statistics
from typing import Final

from bench import images
from bench.harness import Product, Run, import_torch, scratch
from bench.kernel import become_native, requests

_PAIRS_A_RUN: Final = 6


def bench_recording(run: Run) -> None:
    """Each start is of a mount of its own; in turn the one that is recorded comes first, and second."""
    image = images.torch()
    with scratch() as tmp:
        product = Product(tmp, mode="kernel")
        product.run("convert", f"oci-archive:{image.archive}", "torch:1")
        with product.daemon():
            with product.mount("torch:1", "--no-record") as point:
                become_native(product, point)
            asked = 0
            ratios = []
            for number in range(run.runs * _PAIRS_A_RUN):
                took = {}
                for recorded in (True, False) if number % 2 else (False, True):
                    with product.mount("torch:1", "--no-prefetch", *(() if recorded else ("--no-record",))) as point:
                        before = requests(product)
                        took[recorded] = import_torch(point)
                        asked += requests(product) - before
                ratios.append(took[True] / took[False])
            run.add("import torch, recorded / not recorded", statistics.median(ratios), "x", 1.01, note=f"{len(ratios)} pairs")
            run.add("FUSE requests meanwhile", asked, "", 0)
            found = product.run("profile", "ls", "torch:1")["profiles"]
            run.add("profiles that were published", len(found), "", 1, at_most=False)
