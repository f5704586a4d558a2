"""A service from a cold start to replicas on other hosts, which differ where they must, by both engines: through ``Runner.call``."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from imagefs.store.images import get_manifest
from imagefs.store.refs import Ref, read
from snapshotstore.manifest import pages_of
from snapshotstore.runner.runner import COLD, RESTORED
from tests.snapshots.checkpoints import objects_of
from tests.snapshots.services import Place
from tests.system.world import require, tool

WHOLE = """
import ctypes, os, shutil
from snapshotstore import App, enter, exit, method

app = App("whole")

@app.cls(image="python:1", enable_memory_snapshot=True, environment=("PLACE",), secrets=("TOKEN",))
class Service:
    @enter(snap=True)
    def load(self):
        print("loading", flush=True)
        self.begun_at = os.environ["PLACE"]
        self.had_secret = "TOKEN" in os.environ
        os.mkdir("/tmp/compiled")
        shutil.copy("/.imagefs/app/native.so", "/tmp/compiled/native.so")
        self.native = ctypes.CDLL("/tmp/compiled/native.so")
        self.counts = [self.native.count(), self.native.count()]
    @enter(snap=False)
    def connect(self):
        self.token = os.environ["TOKEN"]
        print("connected at", os.environ["PLACE"], flush=True)
    @exit()
    def leave(self): print("left", flush=True)
    @method()
    def ask(self, x):
        again = ctypes.CDLL("/tmp/compiled/native.so").count()
        return {"x": x, "begun": self.begun_at, "place": os.environ["PLACE"], "token": self.token[-3:], "had": self.had_secret,
                "counts": [*self.counts, self.native.count(), again], "size": os.path.getsize("/tmp/compiled/native.so")}
"""

NATIVE = "static int counted = 40; int count(void) { return ++counted; }"


def native(folder: Path) -> None:
    """Compile the library into a service's source tree."""
    require("gcc")
    (folder / "native.c").write_text(NATIVE)
    tool("gcc", "-shared", "-fPIC", "-O1", "-o", folder / "native.so", folder / "native.c")


def test_a_service_is_frozen_on_one_host_and_restored_on_others(
    service_place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = service_place
    place.resident = False  # here the daemons come and go with the calls, as they do
    native(place.source(WHOLE))
    service = place.entry(WHOLE)
    monkeypatch.setenv("PLACE", "frozen-at-the-first-place")
    monkeypatch.setenv("TOKEN", "secret-of-the-first-111")
    size = (service.folder / "native.so").stat().st_size
    runner = place.runner("first")
    cold = runner.call(service, "ask", [1], {})
    assert (cold.started, cold.engine, cold.snapshot, cold.notes) == (COLD, place.engine, None, ())
    assert cold.reason == "there is no snapshot of it yet"
    assert {"resolve", "mount", "start", "freeze", "hooks", "call"} == set(cold.timeline)
    seen = {"begun": "frozen-at-the-first-place", "had": False, "size": size}
    assert cold.result == seen | {"x": 1, "place": "frozen-at-the-first-place", "token": "111", "counts": [41, 42, 44, 43]}
    waiting = [path for path in (place.root / "first/cache-checkpoints").rglob("*") if path.is_file()]
    assert waiting, "what was frozen waits to be published"
    frozen = b"".join(path.read_bytes() for path in waiting)
    assert all(path.stat().st_mode & 0o077 == 0 for path in (place.root / "first/cache-checkpoints").iterdir())
    assert runner.close() == []
    place.runners.clear()
    assert len(place.refs()) == 1

    monkeypatch.setenv("PLACE", "restored-at-the-second")
    monkeypatch.setenv("TOKEN", "secret-of-the-second-222")
    answers = [place.call(service, "ask", number, host="second") for number in (2, 3)]
    for number, answer in enumerate(answers, 2):
        assert (answer.started, answer.reason, answer.engine, answer.notes) == (RESTORED, "", place.engine, ())
        assert answer.result == seen | {"x": number, "place": "restored-at-the-second", "token": "222", "counts": [41, 42, 44, 43]}
        assert {"resolve", "mount", "engine", "hooks", "call"} == set(answer.timeline)
    answer = answers[-1]
    assert place.log(answer) == "connected at restored-at-the-second\nleft\n"
    assert place.log(cold) == "loading\nconnected at frozen-at-the-first-place\nleft\n"
    assert Path(answer.log).stat().st_mode & 0o777 == 0o600
    assert answer.snapshot is not None

    # The value that it began with is in its memory, and so in the store: that is how one would find a secret.
    content = objects_of(place.store, answer.snapshot).values()
    assert any(b"frozen-at-the-first-place" in data for data in content)
    assert b"frozen-at-the-first-place" in frozen
    stored = [path.read_bytes() for path in place.store_folder.rglob("*") if path.is_file()]
    for secret in (b"secret-of-the-first-111", b"secret-of-the-second-222", b"restored-at-the-second"):
        assert not any(secret in data for data in (*content, *stored, frozen))


CLONES = """
import os, random, ssl, sys, tempfile, time, uuid
from snapshotstore import App, enter, method

app = App("clones")

@app.cls(image="python:1", enable_memory_snapshot=True)
class Service:
    @enter(snap=True)
    def load(self):
        random.seed(7)
        self.computed = random.random()
        self.hash = hash("a string")
        self.at, self.monotonic = time.time(), time.monotonic()
        uuid.uuid1(), next(tempfile._get_candidate_names()), ssl.RAND_bytes(8), os.urandom(8), uuid.uuid4()
    @method()
    def differ(self):
        made = uuid.uuid1()
        return {"random": random.random(), "name": next(tempfile._get_candidate_names()), "file": tempfile.mktemp(),
                "ssl": ssl.RAND_bytes(8).hex(), "node": made.node, "sequence": [made.clock_seq, made.node],
                "urandom": os.urandom(8).hex(), "uuid4": str(uuid.uuid4())}
    @method()
    def agree(self): return [self.computed, self.hash, hash("a string"), hash("another"), self.at, os.getpid(), os.uname().nodename]
    @method()
    def clocks(self): return [time.time() - self.at, time.monotonic() - self.monotonic, time.time()]
"""


def test_clones_differ_where_they_must_and_agree_where_they_must(service_place: Place) -> None:
    place = service_place
    service = place.entry(CLONES)
    first = place.call(service, "agree")
    runner = place.runner("second")
    clones = [runner.call(service, "differ", [], {}) for _ in range(3)]
    assert [clone.started for clone in clones] == [RESTORED] * 3
    values = {what: {json.dumps(clone.result[what]) for clone in clones} for what in clones[0].result}
    assert {what: found for what, found in values.items() if len(found) < 3} == {}
    assert all(clone.result["node"] >> 40 & 1 for clone in clones), "a node that was drawn is marked as such"
    agreed = [runner.call(service, "agree", [], {}).result for _ in range(2)]
    assert agreed[0] == agreed[1]
    assert agreed[0][:5] == first.result[:5]


def test_time_goes_on_while_nothing_runs(service_place: Place) -> None:
    place = service_place
    service = place.entry(CLONES)
    begun = time.time()
    assert place.call(service, "clocks").started == COLD
    answer = place.call(service, "clocks")
    assert answer.started == RESTORED
    since, monotonic, now = answer.result
    assert begun < now <= time.time()
    assert 0 < since <= time.time() - begun
    assert monotonic > 0, "no clock goes back"


def test_eight_are_restored_at_once_by_threads(service_place: Place) -> None:
    place = service_place
    service = place.entry(CLONES)
    place.call(service, "agree")
    runner = place.runner("second")
    answers: list[Any] = []

    def call() -> None:
        try:
            answers.append(runner.call(service, "differ", [], {}))
        except BaseException as error:  # noqa: BLE001 # told to the test
            answers.append(error)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [getattr(answer, "started", answer) for answer in answers] == [RESTORED] * 8
    for what in ("random", "name", "ssl", "sequence"):
        assert len({json.dumps(answer.result[what]) for answer in answers}) == 8, what


REMOTE = """
from snapshotstore import App, enter, method

app = App("remote")

@app.cls(image="python:1", enable_memory_snapshot=True)
class Service:
    @enter(snap=True)
    def load(self): self.loads = 1
    @method()
    def ask(self, x, *, y=0): return [self.loads, x + y]
"""


def test_a_method_is_called_from_python(service_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a program would, in a process of its own: twice cold and restored, and all of it ends with the process."""
    place = service_place
    place.source(REMOTE)
    config = place.host().config
    caller = (
        "import json\nfrom service import Service\n"
        "print(json.dumps(Service().ask.remote(1, y=2)))\nprint(json.dumps(Service().ask.remote(5)))\n"
    )
    environment = {"IMAGEFS_STORE": place.url, "IMAGEFS_CACHE": str(config.cache), "IMAGEFS_RUNTIME": str(config.runtime)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[2]}:{place.root / 'source'}")
    before = set(place.store_folder.rglob("*"))
    done = subprocess.run([sys.executable, "-c", caller], capture_output=True, text=True, timeout=60, check=False, umask=0)
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[1, 3], [1, 5]]
    assert len(place.refs()) == 1
    # A program has its own umask, and what it has had frozen is its own alone all the same.
    (key,) = place.refs()
    snapshot = get_manifest(place.store, read(place.store, Ref(*key.removeprefix("refs/").rsplit("/", 1))).manifest)
    blobs = {snapshot.tree.digest, snapshot.objects.digest, *(blob.digest for blob in pages_of(snapshot.annotations))}
    # But for what is the daemon's: profiles, its lease, and what it is writing.
    made = {*place.store_folder.rglob("*")} - before
    made = {path for path in made if path.parent.name != "blobs" or path.name in blobs}
    made = {path for path in made if not {"profiles", "leases", "tmp"} & {*path.relative_to(place.store_folder).parts}}
    made |= {path for path in config.runtime.iterdir() if path.name in {"logs", "runners", "engines.json"}}
    made |= {*(config.runtime / "logs").iterdir(), config.cache.with_name(config.cache.name + "-checkpoints")}
    assert len(made) > 10
    assert [path for path in made if path.stat().st_mode & 0o077] == []
