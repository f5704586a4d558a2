"""Pushing memory: how fast, in how much memory of its own, and what the next members of a lineage add.

The memory is that of a program, as far as its bytes matter here: the files of this Python's own packages, which compress about as memory
does, with a tenth of zero pages. The push runs in a process of its own, as it would from the command line.
"""

import json
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from bench.harness import ROOT, Run, timed

_SIZE: Final = 256 << 20
_PAGE: Final = 4096
_PROGRAM: Final = """
import json, sys, time
from pathlib import Path
from msgspec import structs
from imagefs.memory import settle_converter
from imagefs.store.opening import open_store
from imagefs.store.refs import Ref
from snapshotstore.manifest import Cpu, Oci, Record, Runtime
from snapshotstore.repository import push
settle_converter()
record = Record(
    runtime=Runtime(engine="criu", version="1", format="1"), cpu=Cpu(arch="x86_64"), kernel="6", lineage="bench", key="0" * 64, created=0.0,
    oci=Oci(image="0" * 64, spec="0" * 64),
)
store = open_store(sys.argv[1], create=True)
start = time.perf_counter()
report = push(store, Path(sys.argv[2]), record, Ref("bench", sys.argv[3]))
seconds = time.perf_counter() - start
# Not what the parent is told at the end: that counts what was its own before the program began.
peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")) * 1024
said = {"seconds": seconds, "memory": report.memory_bytes, "new": report.new_bytes, "rss": peak, "stages": report.seconds}
print(json.dumps(said | {"cpu": time.process_time()}))
"""


class _Pushed(NamedTuple):
    """What one push took: seconds (``cpu`` with imports), bytes of memory that it had to push, peak RSS, bytes added to the store."""

    seconds: float
    cpu: float
    memory: int
    rss: int
    new: int
    stages: dict[str, float]


def bench_push(run: Run) -> None:
    """First members of a lineage, and next ones of which 1 % changed."""
    firsts: list[_Pushed] = []
    nexts: list[_Pushed] = []
    with tempfile.TemporaryDirectory(prefix="imagefs-push-") as folder:
        place = Path(folder)
        data = _memory(_SIZE)
        first = _checkpoint(place / "first", data)
        second = _checkpoint(place / "second", _changed(data))
        for number in range(run.runs):
            store = f"file://{place}/store-{number}"
            firsts.append(_push(store, first, "first"))
            nexts.append(_push(store, second, "second"))
    for name, pushed in (("first member", firsts), ("next member", nexts)):
        rate = statistics.median(one.memory / one.seconds for one in pushed)
        stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in pushed[-1].stages.items())
        run.add(
            f"push, {name}",
            rate / 1e6,
            "MB/s",
            400,
            at_most=False,
            note=f"{pushed[-1].seconds:.2f} s, CPU {pushed[-1].cpu:.2f} s: {stages}",
        )
        run.add(f"push, {name}: RSS", max(one.rss for one in pushed) / 1e6, "MB", 500)
        run.add(f"push, {name}: new bytes over memory", pushed[-1].new / pushed[-1].memory, "x", 0.02 if pushed is nexts else None)


def _push(store: str, folder: Path, tag: str) -> _Pushed:
    done = timed(sys.executable, "-c", _PROGRAM, store, folder, tag, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"})
    said = json.loads(done.stdout)
    return _Pushed(said["seconds"], said["cpu"], said["memory"], said["rss"], said["new"], said["stages"])


def _checkpoint(folder: Path, data: bytearray) -> Path:
    (folder / "engine").mkdir(parents=True)
    (folder / "engine/pages-1.img").write_bytes(data)
    return folder


def _memory(size: int) -> bytearray:
    """Return pages that all differ but for a tenth of zeros."""
    data = bytearray()
    packages = Path(json.__file__).parents[1]
    for path in sorted([*packages.rglob("*.py"), *Path(sys.prefix).rglob("*.so"), *Path(sys.prefix).rglob("*.py")]):
        data += path.read_bytes()
        if len(data) >= size:
            break
    data = (data * (size // len(data) + 1))[:size]
    chance = random.Random(0)
    for at in range(0, size, _PAGE):
        # What comes round again must not be known.
        data[at : at + 8] = at.to_bytes(8, "big")
        if chance.random() < 0.1:
            data[at : at + _PAGE] = bytes(_PAGE)
    return data


def _changed(data: bytearray) -> bytearray:
    """Return the same, a hundredth of its pages written to."""
    found = bytearray(data)
    chance = random.Random(1)
    for page in chance.sample(range(len(data) // _PAGE), len(data) // _PAGE // 100):
        found[page * _PAGE + 100 : page * _PAGE + 164] = chance.randbytes(64)
    return found
