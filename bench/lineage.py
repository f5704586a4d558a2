"""What the next member of a lineage adds to the store: of a restored process, of a cold start of the same code, and of a changed line."""

import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Final

from bench import images
from bench.harness import Product, Run, scratch
from imagefs.config import load_config
from imagefs.convert.stages import Clock
from imagefs.store.opening import open_store
from snapshotstore.repository import PushReport
from snapshotstore.runner.entry import Entry, find
from snapshotstore.runner.freezing import Frozen, push
from snapshotstore.runner.runner import Runner
from snapshotstore.runner.starting import Given, Starter

_FOLDER: Final = Path(__file__).parent / "service"
_TARGET: Final = "llm:Service"
_NOTHING: Final = Given(environment={}, secrets={})
_MEMBERS: Final = 20


def bench_lineage(run: Run) -> None:
    """A first member, then each kind of next one, with each engine; and twenty restored from one another."""
    image = images.transformers()
    with scratch() as tmp:
        source = tmp / "source"
        shutil.copytree(_FOLDER, source, ignore=shutil.ignore_patterns("__pycache__"))
        for engine, bounds in (("criu", (0.02, 0.05, 0.05)), ("runsc", (None, None, None))):
            product = Product(tmp / engine, "kernel")
            product.base.mkdir()
            product.run("convert", f"oci:{image.layout}:{image.tag}", "llm:1")
            with product.daemon():
                _members(run, product, engine, source, bounds)


def _members(run: Run, product: Product, engine: str, source: Path, bounds: tuple[float | None, ...]) -> None:
    entry = find(_TARGET, source)
    first = _cold(product, engine, entry)
    run.add(f"{engine}: first member, bytes in the store", first.new_bytes / 1e6, "MB", note=f"of {first.bytes_logical / 1e6:.0f} MB")
    restored = [_again(product, engine, entry) for _ in range(run.runs)]
    _tell(run, f"{engine}: next member, a restored process", restored, bounds[0])
    _tell(run, f"{engine}: next member, a cold start", [_cold(product, engine, entry) for _ in range(run.runs)], bounds[1])
    changed = []
    for number in range(run.runs):
        with (source / "llm.py").open("a") as text:
            text.write(f"\n\nCHANGED = {number}\n")
        changed.append(_cold(product, engine, find(_TARGET, source)))
    _tell(run, f"{engine}: next member, a line changed", changed, bounds[2])
    entry = find(_TARGET, source)
    more = sum(_again(product, engine, entry).new_bytes for _ in range(_MEMBERS - 1))
    run.add(f"{engine}: {_MEMBERS} members / one", (first.new_bytes + more) / first.new_bytes, "x", 1.5)


def _tell(run: Run, name: str, reports: list[PushReport], bound: float | None) -> None:
    last = reports[-1]
    rate = statistics.median(one.memory_bytes / sum(one.seconds.values()) for one in reports)
    note = f"{last.new_bytes / 1e6:.1f} MB new, pushed at {rate / 1e6:.0f} MB/s {json.dumps(last.seconds)}"
    run.add(name, statistics.median(one.new_bytes / one.bytes_logical for one in reports), "x", bound, note=note)


def _cold(product: Product, engine: str, entry: Entry) -> PushReport:
    runner = Runner(load_config(environ=product.env), engine=engine, fresh=True)
    runner.call(entry, "answer", [[1]], {})
    for note in runner.close():
        sys.stderr.write(f"  {note}\n")
    return runner.pushed[0]


def _again(product: Product, engine: str, entry: Entry) -> PushReport:
    """Freeze what was restored, before it is told that it is a replica."""
    runner = Runner(load_config(environ=product.env), engine=engine)
    try:
        known = runner.look(entry)
        starter = Starter(runner.mounts, known.program, known.source, *known.engine)
        assert known.snapshot is not None
        started = starter.revive(known.snapshot, runner.replica_place(known), _NOTHING, Clock())
        folder = product.base / "again"
        folder.mkdir(mode=0o700)
        try:
            starter.freeze(started, folder, Clock())
            store = open_store(product.env["IMAGEFS_STORE"])
            return push(store, Frozen(folder, known.program, known.engine[1], known.source, 1.0, None))
        finally:
            started.end()
            shutil.rmtree(folder)
    finally:
        runner.close()
