"""The agent as a program of its own, without a sandbox: the host's side is a directory and a socket."""

import ast
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snapshotstore import agent
from tests.system.world import wait_until

ROOT = Path(agent.__file__).parents[1]
IN_THE_SANDBOX = ("__init__.py", "app.py", "agent.py", "renewal.py")

SERVICE = """
import os, random, sys, tempfile, time, uuid
from snapshotstore import App, enter, exit, method

app = App("test")
seen = []

@app.before_snapshot()
def first_given(): seen.append("before 1")

@app.before_snapshot()
def then_given(): seen.append("before 2")

@app.after_restore()
def after(): seen.append("after 1")

@app.after_restore()
def and_then(): seen.append("after 2")

class Base:
    @enter(snap=True)
    def base(self): seen.append("base")

@app.cls(image="none:1")
class Service(Base):
    def __init__(self): self.count = 0
    @enter(snap=True)
    def load(self):
        seen.append("load")
        random.seed(1)
        self.hash = hash("a string")
    @enter(snap=False)
    def connect(self): seen.append("connect")
    @exit()
    def leave(self): open(os.environ["LEFT"], "w").write("left")
    @method()
    def order(self): return seen
    @method()
    def add(self, x, *, y=0):
        self.count += x + y
        return self.count
    @method()
    def drawn(self): return [random.random(), next(tempfile._get_candidate_names()), self.hash]
    @method()
    def environment(self): return dict(os.environ)
    @method()
    def fail(self): raise LookupError("not there")
    @method()
    def large(self, size): return "x" * size
    @method()
    def odd(self): return object()

@app.cls(image="none:1")
class Slow:
    @enter(snap=True, timeout=0.1)
    def load(self): time.sleep(60)

@app.cls(image="none:1")
class Broken:
    @enter(snap=False)
    def connect(self): raise OSError("no database")

class Plain: pass
"""


class Host:
    """The host's side of one agent."""

    def __init__(self, folder: Path, target: str) -> None:
        """Start it."""
        self.folder = folder
        folder.mkdir()
        (folder / "service.py").write_text(SERVICE)
        environment = {"PYTHONPATH": f"{ROOT}:{folder}", "PYTHONHASHSEED": "7", "EARLY": "1", "TMPDIR": str(folder)}
        self.program = subprocess.Popen(
            [sys.executable, "-m", "snapshotstore.agent", target, str(folder)], env=environment, stderr=subprocess.PIPE, text=True
        )
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(folder / "socket"))
        self.listener.listen(1)
        self.listener.settimeout(20)

    def state(self) -> dict[str, Any]:
        """Return what the agent has written down last."""
        with contextlib.suppress(FileNotFoundError):
            return dict(json.loads((self.folder / agent.STATE).read_bytes()))
        return {"state": ""}

    def until(self, state: str) -> dict[str, Any]:
        """Wait until it is there."""
        wait_until(lambda: self.state()["state"] in {state, "failed"}, f"the agent to be {state}")
        assert self.state()["state"] == state, self.state()
        return self.state()

    def become(self, *, restored: bool = False, secrets: dict[str, str] | None = None) -> None:
        """Have it become a replica, and connect."""
        left = {"LEFT": str(self.folder / "left"), "TMPDIR": str(self.folder)}
        replica = {"restored": restored, "environment": left, "secrets": secrets or {}, "socket": str(self.folder / "socket")}
        new = self.folder / "new"
        new.write_text(json.dumps(replica))
        new.rename(self.folder / agent.REPLICA)
        self.connection = self.listener.accept()[0]
        self.connection.settimeout(20)

    def call(self, method: str, *args: Any, **named: Any) -> Any:
        """Call a method; return the answer."""
        agent.send(self.connection, json.dumps({"method": method, "args": args, "named": named}).encode())
        answer = agent.receive(self.connection)
        assert answer is not None
        return answer

    def close(self) -> None:
        """End it."""
        self.listener.close()
        if hasattr(self, "connection"):
            self.connection.close()
        self.program.kill()
        self.program.communicate()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Any]:
    started: list[Host] = []

    def start(target: str = "service:Service") -> Host:
        started.append(Host(tmp_path / f"replica{len(started)}", target))
        return started[-1]

    yield start
    for host in started:
        host.close()


def test_hooks_run_in_order_once_before_and_once_after(hosts: Any) -> None:
    host = hosts()
    host.until("ready")
    host.become(restored=True)
    order = ["base", "load", "before 2", "before 1", "after 1", "after 2", "connect"]
    assert host.call("order") == {"result": order}
    host.until("serving")


def test_a_cold_start_does_what_follows_no_restore(hosts: Any) -> None:
    host = hosts()
    host.become()
    assert host.call("order")["result"] == ["base", "load", "before 2", "before 1", "connect"]


def test_calls_are_answered_until_the_connection_ends(hosts: Any) -> None:
    host = hosts()
    host.become()
    assert [host.call("add", 1), host.call("add", 2, y=3)] == [{"result": 1}, {"result": 6}]
    assert len(host.call("large", 30_000_000)["result"]) == 30_000_000
    host.connection.close()
    assert host.program.wait(20) == 0
    assert (host.folder / "left").read_text() == "left"


@pytest.mark.parametrize(
    ("method", "kind", "words"), [("fail", "LookupError", "not there"), ("none", "AttributeError", "add"), ("odd", "TypeError", "JSON")]
)
def test_what_a_method_raises_is_the_callers(hosts: Any, method: str, kind: str, words: str) -> None:
    host = hosts()
    host.become()
    error = host.call(method)["error"]
    assert error["type"] == kind
    assert words in error["message"]
    assert host.call("add", 1) == {"result": 1}, "the replica goes on"


def test_environment_and_secrets_are_the_hosts_of_now(hosts: Any) -> None:
    host = hosts()
    host.until("ready")
    assert "SECRET" not in Path(f"/proc/{host.program.pid}/environ").read_text()
    host.become(restored=True, secrets={"SECRET": "s"})
    found = host.call("environment")["result"]
    assert found["SECRET"] == "s"
    assert "EARLY" not in found


def test_clones_draw_what_others_do_not_and_agree_otherwise(hosts: Any) -> None:
    drawn = []
    for restored in (True, True, False, False):
        host = hosts()
        host.become(restored=restored)
        drawn.append(host.call("drawn")["result"])
    one, two, cold, again = drawn
    assert one[0] != two[0]
    assert one[1] != two[1]
    assert cold[0] == again[0], "the seed was the same: what makes them differ is the renewal"
    assert one[2] == two[2] == cold[2]


def test_a_hook_that_takes_too_long_is_named(hosts: Any) -> None:
    host = hosts("service:Slow")
    assert host.program.wait(20) == 1
    assert host.state()["state"] == "failed"
    assert host.state()["error"]["message"] == "load took longer than 0.1 s"


def test_a_hook_that_fails_is_named(hosts: Any) -> None:
    host = hosts("service:Broken")
    host.until("ready")
    with contextlib.suppress(TimeoutError):
        host.listener.settimeout(0.01)
        host.become()
    assert host.program.wait(20) == 1
    assert host.state()["error"]["message"] == "connect failed: no database"


@pytest.mark.parametrize(("target", "words"), [("service:None_", "None_"), ("nowhere:X", "nowhere"), ("service:Plain", "@app.cls")])
def test_what_is_no_service_is_told(hosts: Any, target: str, words: str) -> None:
    host = hosts(target)
    assert host.program.wait(20) == 1
    assert words in host.state()["error"]["message"]


def test_it_says_that_it_is_alive(hosts: Any) -> None:
    host = hosts()
    host.until("ready")
    alive = host.folder / agent.ALIVE
    seen = alive.stat().st_mtime_ns
    wait_until(lambda: alive.stat().st_mtime_ns > seen, "another sign of life")
    os.kill(host.program.pid, 9)


@pytest.mark.parametrize("name", IN_THE_SANDBOX)
def test_what_runs_in_the_sandbox_is_python_3_8_and_the_standard_library(name: str) -> None:
    tree = ast.parse((ROOT / "snapshotstore" / name).read_text(), feature_version=(3, 8))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported <= {*sys.stdlib_module_names, "snapshotstore"}
