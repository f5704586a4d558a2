"""Starts of one service, cold and restored, with each engine: from a resident caller, from the command line, from a host that has nothing.

The reference of a restore is the engine's own restore of the same files from local disk, in the same sandbox. What a host that has nothing
needs comes from a real S3 server over a link.
"""

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from bench import images
from bench.far import BANDWIDTH, DELAY, FarProduct
from bench.harness import IMAGEFS, ROOT, Product, Run, drop_caches, have_memory, import_torch, scratch, seconds
from imagefs.config import load_config
from imagefs.convert.stages import Clock
from snapshotstore.runner.entry import Entry, find
from snapshotstore.runner.mounts import Mounts
from snapshotstore.runner.runner import COLD, RESTORED, Answer, Runner
from snapshotstore.runner.starting import Given, Started, Starter
from tests import weed
from tests.faults import FaultProxy

_FOLDER: Final = ROOT / "bench" / "service"
_TARGET: Final = "llm:Service"
_TOKENS: Final = [1, 2, 3]
_AT_ONCE: Final = 8
_NOTHING: Final = Given(environment={}, secrets={})


class _Local(Mounts):
    """Mounts, but for snapshots: of those there is a copy on local disk."""

    def __init__(self, mounts: Mounts, copies: dict[str, Path]) -> None:
        self._mounts = mounts
        self._copies = copies

    def manifest(self, name: str, *, mode: str | None = None, label: str = "") -> Path:
        return self._copies.get(name) or self._mounts.manifest(name, mode=mode, label=label)

    def has(self, *names: str) -> bool:
        return self._mounts.has(*(name for name in names if name not in self._copies))

    def stacked(self, top: str, root: str) -> Path:
        return self._mounts.stacked(top, root)


class _Stage(NamedTuple):
    """A host with its runner: ``call`` answers once; ``raw`` is the engine's own restore, in seconds."""

    runner: Runner
    entry: Entry
    copies: dict[str, Path]

    def call(self) -> Answer:
        return self.runner.call(self.entry, "answer", [_TOKENS], {})

    def restored(self) -> float:
        start = time.perf_counter()
        answer = self.call()
        took = time.perf_counter() - start
        if answer.started != RESTORED:
            raise RuntimeError(answer.reason)
        return took

    def raw(self, later: list[Started] | None = None) -> float:
        """Restore with the engine alone; what runs then is ended, or put into ``later``, since nobody waits for the end of ours either."""
        known = self.runner.look(self.entry)
        mounts = _Local(self.runner.mounts, self.copies)
        clock = Clock()
        starter = Starter(mounts, known.program, known.source, *known.engine)
        assert known.snapshot is not None
        started = starter.restore(known.snapshot, self.runner.replica_place(known), _NOTHING, clock)
        if later is None:
            started.end()
        else:
            later.append(started)
        return clock.seconds["engine"]

    def keep_copy(self, folder: Path) -> None:
        """Copy the files of the snapshot to local disk."""
        snapshot = self.runner.look(self.entry).snapshot
        assert snapshot is not None
        self.copies[snapshot.name] = folder
        shutil.copytree(self.runner.mounts.manifest(snapshot.name, mode="fuse"), folder, symlinks=True)


def _runner(product: Product, engine: str, *, snapshots: bool = True) -> Runner:
    return Runner(load_config(environ=product.env), engine=engine, snapshots=snapshots)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Have these for the length of the block: a runner is in this process, and so is its client of S3."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _stage(product: Product, engine: str) -> Iterator[_Stage]:
    runner = _runner(product, engine)
    try:
        with _environment(product.env):
            yield _Stage(runner, find(_TARGET, _FOLDER), {})
    finally:
        for note in runner.close():
            sys.stderr.write(f"  {note}\n")


def bench_snapshot(run: Run) -> None:
    """The warm host: cold start, restore from a resident caller and from the command line, eight at once, and what is pushed."""
    image = images.transformers()
    with scratch() as tmp:
        for engine in ("criu", "runsc"):
            product = Product(tmp / engine, "kernel")
            product.base.mkdir()
            product.run("convert", f"oci:{image.layout}:{image.tag}", "llm:1")
            with product.daemon(), _stage(product, engine) as stage:
                _warm(run, stage, product, engine, tmp / f"copy-{engine}")
                with product.mount("llm:1") as point:
                    import_torch(point)
                    run.add(f"{engine}: import torch alone, warm", import_torch(point), "s")


def _warm(run: Run, stage: _Stage, product: Product, engine: str, copy: Path) -> None:
    with _stage(product, engine) as other:
        first = other.call()
    assert first.started == COLD, first
    with contextlib.closing(_runner(product, engine, snapshots=False)) as without:
        cold = statistics.median(seconds(lambda: without.call(stage.entry, "answer", [_TOKENS], {})) for _ in range(run.runs))
    stage.restored()
    stage.keep_copy(copy)
    stage.raw()
    pairs = [(stage.restored(), stage.raw()) for _ in range(run.runs)]
    raw = statistics.median(pair[1] for pair in pairs)
    took = statistics.median(pair[0] for pair in pairs)
    line = json.dumps(stage.call().timeline)
    run.add(f"{engine}: cold start to the answer, warm host", cold, "s")
    run.add(f"{engine}: the engine's own restore from local disk", raw, "s")
    run.add(f"{engine}: remote() over it", statistics.median(a - b for a, b in pairs) * 1e3, "ms", 100, note=f"{took:.3f} s {line}")
    run.add(f"{engine}: remote() / cold start", took / cold, "x")
    _verified(run, stage, engine)
    run.add(f"{engine}: command line over it", (_command(run, product, engine) - raw) * 1e3, "ms", 250)
    _at_once(run, stage, engine)


def _verified(run: Run, stage: _Stage, engine: str) -> None:
    """Add what verification costs: the engine's part of a restore, from SSD through the daemon, and from a plain copy on the same disk."""

    def dropped(restore: Callable[[], float]) -> float:
        drop_caches()
        have_memory()
        return restore()

    pairs = [(dropped(lambda: stage.call().timeline["engine"]), dropped(stage.raw)) for _ in range(run.runs)]
    bound = {"criu": 1.35, "runsc": 1.2}[engine]
    note = f"{statistics.median(ours for ours, _ in pairs):.3f} s, page cache dropped"
    run.add(f"{engine}: verified / unverified restore", statistics.median(a / b for a, b in pairs), "x", bound, note=note)


def _command(run: Run, product: Product, engine: str) -> float:
    """Return the seconds from the command to its answer: it goes on to end the replica."""
    command = [str(IMAGEFS), "snapshot", "run", _TARGET, "--source", str(_FOLDER), "--call", "answer", "--args", json.dumps([_TOKENS])]
    return statistics.median(_until_output([*command, "--engine", engine, "--json"], product.env) for _ in range(run.runs))


def _until_output(command: list[str], env: dict[str, str]) -> float:
    start = time.perf_counter()
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        head = process.stdout.read(1)
        took = time.perf_counter() - start
        answer = json.loads(head + process.stdout.read())
    if process.returncode or answer["started"] != RESTORED:
        raise RuntimeError(f"{process.returncode}: {answer}")
    return took


def _at_once(run: Run, stage: _Stage, engine: str) -> None:
    """Eight restores at once, and eight of the engine's own."""

    def crowd(action: Callable[[], float]) -> float:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            start = time.perf_counter()
            # What goes wrong in one of them ends the bench: a restore that failed took no time.
            for done in [pool.submit(action) for _ in range(_AT_ONCE)]:
                done.result()
            return time.perf_counter() - start

    def raw() -> float:
        later: list[Started] = []
        took = crowd(lambda: stage.raw(later))
        for started in later:
            started.end()
        return took

    pairs = [(crowd(stage.restored), raw()) for _ in range(max(1, run.runs // 2))]
    ratio = statistics.median(a / b for a, b in pairs)
    run.add(f"{engine}: {_AT_ONCE} restores at once / of the engine's own", ratio, "x", 1.2, note=f"{pairs[-1][0]:.2f} s")


def bench_snapshot_far(run: Run) -> None:
    """Hosts that have nothing: a restore against the larger of a warm one and bytes over the link, and against a cold start."""
    image = images.transformers()
    with scratch() as tmp, weed.serving(tmp / "weed") as server, FaultProxy(server.endpoint.removeprefix("http://")) as link:
        near = FarProduct(tmp, server, server.endpoint, "near", "kernel")
        near.run("convert", f"oci:{image.layout}:{image.tag}", "llm:1")
        for engine in ("criu", "runsc"):
            with near.daemon(), _stage(near, engine) as stage:
                stage.call()
                stage.runner.publish()
                stage.restored()
                warm = statistics.median(stage.restored() for _ in range(run.runs))
            link.set(bandwidth=BANDWIDTH, delay=DELAY)
            pairs = [
                [_far(tmp, server, link, f"{engine}-{number}-{snapshots}", engine, snapshots=snapshots) for snapshots in (True, False)]
                for number in range(run.runs)
            ]
            ratio = statistics.median(took / max(warm, moved / BANDWIDTH) for (took, moved), _ in pairs)
            share = statistics.median(cold / took for (took, _), (cold, _) in pairs)
            (took, moved), (cold, _) = pairs[-1]
            note = f"{took:.2f} s, {moved / 1e6:.0f} MB, warm {warm:.2f} s"
            run.add(f"{engine}: empty host / max(warm, bytes / link)", ratio, "x", 1.15, note=note)
            run.add(f"{engine}: cold start / restore, empty hosts", share, "x", 3, at_most=False, note=f"cold {cold:.2f} s")
            link.set(bandwidth=None, delay=0)


def _far(tmp: Path, server: weed.Weed, link: FaultProxy, name: str, engine: str, *, snapshots: bool) -> tuple[float, int]:
    host = FarProduct(tmp, server, link.url, name, "kernel")
    with _environment(host.env), host.daemon(), contextlib.closing(_runner(host, engine, snapshots=snapshots)) as runner:
        link.forget()
        start = time.perf_counter()
        answer = runner.call(find(_TARGET, _FOLDER), "answer", [_TOKENS], {})
        took = time.perf_counter() - start
        sys.stderr.write(f"     {name}: {took:.2f} s, {answer.started} {answer.reason} {answer.timeline}\n")
        moved = sum(request.sent for request in link.requests())
    shutil.rmtree(host.base, ignore_errors=True)
    return took, moved
