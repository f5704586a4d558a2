"""Measuring: systems start a workload in turns, cold and warm, and what is found is kept start by start.

Guarantees: a start that fails or does not end in time is a sample too, with what went wrong; a right time with a wrong output is a failure;
every host is gone, mounts and processes too, before the next one starts.
"""

import contextlib
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.harness import have_memory
from bench.starts import processes
from bench.starts.place import Link, Place, Prepared
from bench.starts.systems import Host, System
from bench.starts.workloads import Workload

DEADLINE = 180.0
"""Seconds after which a start is given up."""

SLOW = 30.0
"""A system whose first cold start takes longer is started no more than once: its median would take hours and tell the same."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One start: seconds (``mounted`` of them until the root was there), and what moved over the link until it was unmounted.

    ``error`` is why it failed; then ``seconds`` is how long that took.
    """

    workload: str
    link: str
    system: str
    warm: bool
    round: int
    seconds: float
    mounted: float = 0.0
    bytes: int = 0
    requests: int = 0
    error: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Give it as JSON takes it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Task:
    """What is started, over which link, and what it prints if it reads right."""

    prepared: Prepared
    link: str
    right: str

    def sample(self, system: System, number: int, *, warm: bool = False, seconds: float = 0.0, **more: Any) -> Sample:
        """Make a sample of it."""
        return Sample(self.prepared.workload.name, self.link, system.name, warm=warm, round=number, seconds=seconds, **more)


class Bench:
    """Measures one workload over one link at a time; ``samples`` are all that were found."""

    def __init__(self, where: Place, systems: Iterable[System], runs: int) -> None:
        """Start each system ``runs`` times, those that are slow once."""
        self.samples: list[Sample] = []
        self.skipped: dict[str, str] = {}
        self._where, self._runs = where, runs
        self._systems: list[System] = []
        for system in systems:
            if reason := system.missing():
                self.skipped[system.name] = reason
                _say(f"  {system.name}: skipped: {reason}")
            else:
                self._systems.append(system)

    def measure(self, workload: Workload, link: Link) -> None:
        """Prepare a workload for all systems, and start it in turns."""
        _say(f"{workload.name}, {link}")
        self._where.shape(link)
        try:
            prepared = Prepared(workload)
            task = _Task(prepared, str(link), _expected(prepared))
        except (RuntimeError, OSError) as error:
            # The other workloads' hours are not to be lost with this one.
            self._keep(Sample(workload.name, str(link), "native", warm=False, round=0, seconds=0.0, error=f"not prepared: {error}"))
            return
        able = []
        for system in self._systems:
            try:
                system.prepare(prepared)
                able.append(system)
            except (RuntimeError, OSError) as error:
                self._keep(task.sample(system, 0, error=f"not prepared: {error}"))
        slow: set[str] = set()
        for number in range(self._runs):
            for system in able:
                if system.name not in slow:
                    cold = self._host(system, task, number)
                    if cold.error or cold.seconds > SLOW:
                        slow.add(system.name)

    def _host(self, system: System, task: _Task, number: int) -> Sample:
        """Start twice on a new host; return the cold start."""
        folder = self._where.folder / "hosts" / f"{task.prepared.workload.name}-{system.name}-{number}"
        first: Sample | None = None
        try:
            with system.host(task.prepared, folder) as host:
                first = self._start(host, system, task, number, warm=False)
                if not first.error:
                    self._start(host, system, task, number, warm=True)
        except (RuntimeError, OSError) as error:
            # The host itself did not come up, or did not go.
            sample = task.sample(system, number, warm=first is not None, error=str(error))
            self._keep(sample)
            first = first or sample
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return first

    def _start(self, host: Host, system: System, task: _Task, number: int, *, warm: bool) -> Sample:
        os.sync()
        host.before(cold=not warm)
        have_memory()
        self._where.forget()
        error, figures = "", {}
        mounted = ended = None
        began = time.perf_counter()
        try:
            with host.root(DEADLINE) as root:
                mounted = time.perf_counter()
                printed = processes.program(root, task.prepared.workload.command, DEADLINE - (mounted - began))
                ended = time.perf_counter()
                if printed != task.right:
                    error = f"a wrong output: {printed[:200]!r}"
                figures = host.figures()
        except (RuntimeError, OSError) as failure:
            error = str(failure)
        ended = ended or time.perf_counter()
        moved = self._where.traffic()
        sample = task.sample(
            system,
            number,
            warm=warm,
            seconds=ended - began,
            mounted=(mounted or ended) - began,
            bytes=moved.bytes,
            requests=moved.requests,
            error=error,
            figures=figures,
        )
        self._keep(sample)
        return sample

    def _keep(self, sample: Sample) -> None:
        self.samples.append(sample)
        told = (
            sample.error[:300]
            or f"{sample.seconds:8.3f} s ({sample.mounted:.3f} to mount) {sample.bytes / 1e6:8.1f} MB {sample.requests:6} requests"
        )
        _say(f"  {sample.system:22} {'warm' if sample.warm else 'cold'} {told}")


def _expected(prepared: Prepared) -> str:
    """Give what the program prints on ext4."""
    printed = processes.program(prepared.tree(), prepared.workload.command, DEADLINE)
    if not printed.startswith(prepared.workload.output):
        raise processes.Failed(f"{prepared.workload.name} prints {printed[:500]!r} on ext4, and not {prepared.workload.output!r}")
    return printed


def median(samples: Sequence[Sample], of: str = "seconds") -> float | None:
    """Give the median of a field over the samples that succeeded; None if none did."""
    found = [float(getattr(sample, of)) for sample in samples if not sample.error]
    return statistics.median(found) if found else None


def _say(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
