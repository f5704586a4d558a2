"""The bench of starts: programs started from an image, by ImageFS and by what else does such a thing, through one link.

``python -m bench.starts`` runs it (``./dev bench starts`` after it has installed the peers) and writes ``docs/benchmarks.md``.

* A *workload* (:mod:`~bench.starts.workloads`) is an image, a program in it, and how its output must look.
* A *system* (:mod:`~bench.starts.systems`) makes an image's root directory appear on a *host*, a directory that has nothing at first.
* A *start* is all from the order to mount, or to pull, until the program has ended: cold on a host that has nothing, warm when the same
  host has done it before and has unmounted it since.
* Systems take turns, round after round, so that what else the machine does falls on all of them.
"""
