"""All of it together: a service whose beginning is done once, frozen by a real engine, pushed, mounted, and restored as two replicas."""

import contextlib
import json
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imagefs.daemon import client
from imagefs.store.refs import Ref
from snapshotstore import agent, compat
from snapshotstore.checkpoint.base import ANY_USER, ENGINE, LAYER, Checkpointer, Sandbox
from snapshotstore.checkpoint.criu import Criu
from snapshotstore.checkpoint.runsc import Runsc
from snapshotstore.manifest import Oci, Record, Runtime
from snapshotstore.repository import push
from tests.daemon.place import Place as Host
from tests.snapshots.engines import engine as find
from tests.snapshots.place import DEADLINE, PYTHON, TALK, Place, make_root
from tests.system.world import require, wait_until

IN_THE_SANDBOX = ("__init__.py", "app.py", "agent.py", "renewal.py")

SERVICE = """
import os, random
from snapshotstore import App, enter, method

app = App("whole")

@app.cls(image="none:1", enable_memory_snapshot=True)
class Service:
    @enter(snap=True)
    def load(self):
        random.seed(1)
        self.model = bytes(range(256)) * 40_000
        with open("/tmp/compiled", "w") as file:
            file.write("written before the snapshot")
        self.loads = 1
    @enter(snap=False)
    def connect(self): self.database = os.environ["DATABASE"]
    @method()
    def ask(self, x):
        compiled = open("/tmp/compiled").read()
        return {"x": x, "model": sum(self.model[:256]), "loads": self.loads, "database": self.database, "compiled": compiled,
                "drawn": random.random()}
"""


@pytest.fixture(params=["runsc", "criu"])
def engine(request: pytest.FixtureRequest) -> Checkpointer:
    require("root", "runs the engines")
    return Runsc(find("runsc", "--version")) if request.param == "runsc" else Criu(find("criu", "check"))


@pytest.fixture
def user(engine: Checkpointer) -> int:
    return 65534 if engine.probe().name != "criu" or ANY_USER in engine.probe().features else 0


@pytest.fixture
def sandbox_root(tmp_path: Path) -> Any:
    """A root with the agent and the service in it."""
    root, binds = make_root(tmp_path / "root")
    package = root / "app" / "snapshotstore"
    package.mkdir(parents=True)
    for name in IN_THE_SANDBOX:
        shutil.copy(Path(agent.__file__).with_name(name), package / name)
    (root / "app" / "service.py").write_text(SERVICE)
    return root, binds


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path / "host")
    yield made
    assert made.close() == []


class Replica:
    """The host's side of a program in a sandbox."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is what is bound to ``TALK``."""
        self.folder = folder
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "socket"))
        (folder / "socket").chmod(0o777)
        self._listener.listen(1)
        self._listener.settimeout(DEADLINE)

    def until(self, state: str) -> None:
        """Wait until the agent says so."""

        def seen() -> str:
            with contextlib.suppress(FileNotFoundError):
                return str(json.loads((self.folder / agent.STATE).read_bytes())["state"])
            return ""

        wait_until(lambda: seen() in {state, "failed"}, f"the agent to be {state}")
        assert seen() == state

    def become(self, *, restored: bool, database: str) -> None:
        """Say what it is to be, and wait until it has connected."""
        replica = {"restored": restored, "environment": {"DATABASE": database}, "secrets": {}, "socket": f"{TALK}/socket"}
        (self.folder / "new").write_text(json.dumps(replica))
        (self.folder / "new").chmod(0o644)
        (self.folder / "new").rename(self.folder / agent.REPLICA)
        self._connection = self._listener.accept()[0]
        self._connection.settimeout(DEADLINE)

    def ask(self, x: int) -> dict[str, Any]:
        """Call the method."""
        agent.send(self._connection, json.dumps({"method": "ask", "args": [x], "named": {}}).encode())
        answer = agent.receive(self._connection)
        assert answer is not None
        return dict(answer["result"])

    def close(self) -> None:
        """Hang up."""
        self._connection.close()
        self._listener.close()


def record_of(engine: Checkpointer) -> Record:
    found = engine.probe()
    here = compat.collect([found])
    runtime = Runtime(engine=found.name, version=found.version, format=found.format, exact=found.is_exact)
    return Record(
        runtime=runtime,
        cpu=compat.cpu_needed(here),
        kernel=here.kernel,
        oci=Oci(image="0" * 64, spec="0" * 64),
        lineage="whole",
        key="0" * 64,
        created=time.time(),
    )


def replica_of(sandbox: Sandbox) -> Replica:
    return Replica(next(bind.source for bind in sandbox.binds if bind.target == TALK))


def test_a_service_is_frozen_pushed_and_restored_twice(place: Place, host: Host, engine: Checkpointer) -> None:
    argv = (PYTHON, "-m", "snapshotstore.agent", "service:Service", TALK)
    environment = {"PYTHONPATH": "/app", "PYTHONHASHSEED": "7", "PYTHONDONTWRITEBYTECODE": "1", "DATABASE": "old"}
    first = place.sandbox("first", "", argv=argv, environment=environment)
    cold = replica_of(first)
    engine.start(first, deadline=DEADLINE)
    cold.until("ready")
    images = place.checkpoint(first)
    record = record_of(engine)
    report = push(host.store, images, record, Ref.parse("whole:1"))
    shutil.rmtree(images)

    # What was frozen goes on, and is a replica like any other.
    cold.become(restored=False, database="one")
    expected = {"x": 1, "model": 32640, "loads": 1, "database": "one", "compiled": "written before the snapshot"}
    answer = cold.ask(1)
    drawn = [answer.pop("drawn")]
    assert answer == expected

    assert compat.fits(compat.match(record, compat.collect([engine.probe()])))
    point = host.mountpoint("snapshot")
    client.mount(host.config, mountpoint=point, manifest=report.manifest)
    layer = (point / LAYER,) if (point / LAYER).exists() else ()
    for number in range(2):
        clone = place.clone_of(first, f"clone{number}", point, lower=layer)
        replica = replica_of(clone)
        engine.restore(clone, point, deadline=DEADLINE)
        replica.become(restored=True, database=f"clone {number}")
        answer = replica.ask(number)
        drawn.append(answer.pop("drawn"))
        assert answer == expected | {"x": number, "database": f"clone {number}"}
        replica.close()
        assert engine.wait(clone, deadline=DEADLINE) == 0
        engine.remove(clone)
    assert len(set(drawn)) == 3
    cold.close()
    assert engine.wait(first, deadline=DEADLINE) == 0
    assert (point / ENGINE).is_dir()
