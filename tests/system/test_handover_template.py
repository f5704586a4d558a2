"""The template that workers are forked from: what becomes of readers when it ends, hangs, or is of another version."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from imagefs.config import load_config
from imagefs.daemon import client
from tests import weed
from tests.system.handover import InBackground, Orders, another, children, daemon, kill, status, worker
from tests.system.readers import content
from tests.system.world import World, require, wait_until

NAME = "large/1"


def template(supervisor: int, pid: int) -> int:
    """Return the template of a supervisor whose worker is ``pid``, once there is one."""
    found: list[int] = []

    def is_there() -> bool:
        found[:] = [child for child, state in children(supervisor).items() if child != pid and state != "Z"]
        return len(found) == 1

    wait_until(is_there, "a template", 30)
    return found[0]


def events(world: World, name: str) -> list[dict[str, Any]]:
    return [found for line in world.logs().splitlines() if line.startswith("{") and (found := json.loads(line))["event"] == name]


def test_a_template_that_ends_disturbs_nobody_and_is_loaded_again(reading_world: World) -> None:
    world = reading_world
    with daemon(world) as supervisor:
        point = world.mount()
        pid = worker(world)
        for pause in (1.0, 10.0):
            kill(template(supervisor.pid, pid))
            wait_until(lambda: [found["again_in"] for found in events(world, "template_died")][-1:] == [pause], "the log")  # noqa: B023 # now
            assert worker(world) == pid
            assert (point / NAME).read_bytes() == content(NAME)
            if pause == 1.0:
                template(supervisor.pid, pid)
        # There is none for ten seconds: who needs a worker does not wait for that.
        begun = time.monotonic()
        kill(pid)
        assert (point / NAME).read_bytes() == content(NAME)
        assert time.monotonic() - begun < 8
        assert template(supervisor.pid, another(world, pid))


def test_template_and_worker_that_are_killed_together_are_one_crash(reading_world: World) -> None:
    world = reading_world
    with daemon(world) as supervisor:
        point = world.mount()
        pid = worker(world)
        for victim in (template(supervisor.pid, pid), pid):
            kill(victim)
        assert (point / NAME).read_bytes() == content(NAME)
        pid = another(world, pid)
        template(supervisor.pid, pid)
        assert status(world)["worker_restarts"] == 1
        assert worker(world) == pid
        assert len(children(supervisor.pid)) == 2
        assert "Z" not in children(supervisor.pid).values()


def test_a_template_that_hangs_costs_some_seconds_and_is_replaced(reading_world: World) -> None:
    world = reading_world
    with daemon(world) as supervisor:
        point = world.mount()
        pid = worker(world)
        hanging = template(supervisor.pid, pid)
        kill(hanging, signal.SIGSTOP)
        kill(pid)
        assert InBackground((point / NAME).read_bytes).outcome(20) == content(NAME)
        assert template(supervisor.pid, another(world, pid)) != hanging
        wait_until(lambda: not Path(f"/proc/{hanging}").exists(), "it to be buried")


def test_a_worker_belongs_to_the_supervisor_and_not_to_the_template(reading_world: World) -> None:
    world = reading_world
    with daemon(world) as supervisor:
        world.mount()
        first = worker(world)
        kill(first)
        pid = another(world, first)
        for process in (pid, template(supervisor.pid, pid)):
            assert int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1]) == supervisor.pid


def test_workers_of_a_version_without_templates_are_used_as_they_are(reading_world: World, tmp_path: Path) -> None:
    world, orders = reading_world, Orders(tmp_path / "orders")
    with daemon(world, command=orders.command(world)):
        point = world.mount()
        pid = worker(world)
        with orders.given("old"):
            world.run("daemon", "reload")
            old = another(world, pid)
            kill(old)
            pid = another(world, old)
            assert (point / NAME).read_bytes() == content(NAME)
        world.run("daemon", "reload")
        assert another(world, pid)
        assert (point / NAME).read_bytes() == content(NAME)
        assert status(world)["worker_restarts"] == 3


@pytest.mark.parametrize("where", ["directory", "S3"])
def test_a_worker_loads_no_code_after_the_fork(imagefs: World, tmp_path: Path, where: str) -> None:
    """What is on disk then may be of another version."""
    world, orders = imagefs, Orders(tmp_path / "orders")
    require("root", "mounts through /dev/fuse as root")
    folder = world.root / "source"
    folder.mkdir()
    (folder / "file").write_bytes(b"word" * 100_000)
    with weed.serving(tmp_path / "weed") as server:
        if where == "S3":
            world.environment |= server.environment | {"IMAGEFS_STORE": "s3://bucket/code"}
        world.convert(f"dir:{folder}")
        with daemon(world, command=orders.command(world)):
            points = [world.mount(name="fuse"), world.mount("test", "kernel", "--mode", "kernel")]
            kill(worker(world))
            for point in points:
                assert (point / "file").read_bytes() == b"word" * 100_000
            for command in ("stats", "cache"):
                world.run(command, *(["verify"] if command == "cache" else []), "--json")
            world.umount(points[1])
            world.umount(world.mount(name="more"))
            status = client.status(load_config(environ=world.env))
            assert status["worker_restarts"] == 1
            assert status["loaded_later"] == []
