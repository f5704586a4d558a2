"""Programs of OCI bundles, frozen on one host and restored on another: redis as Debian has it, through the command line."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec import structs

from imagefs.format.objectmap import HOLE
from imagefs.store.base import pack_key
from imagefs.store.opening import open_store
from imagefs.store.refs import Ref
from snapshotstore import repository
from snapshotstore.checkpoint.base import ANY_USER
from snapshotstore.checkpoint.criu import Criu
from snapshotstore.manifest import Program, Record
from tests.snapshots import bundle
from tests.snapshots.checkpoints import map_of
from tests.snapshots.engines import engine as find
from tests.snapshots.place import DEADLINE, Network
from tests.system.world import Done, World, mounts_below, require, wait_until

Make = Callable[[str], World]
Frozen = Callable[[World, str], None]

PROBES: Final = {"runsc": "--version", "criu": "check"}


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system with redis."""
    return bundle.make_root(tmp_path_factory.mktemp("redis") / "rootfs")


@pytest.fixture(params=["runsc", "criu"])
def engine(request: pytest.FixtureRequest) -> str:
    require("root", "runs the engines")
    name = str(request.param)
    find(name, PROBES[name])
    return name


@pytest.fixture
def make_host(make_world: Make, tmp_path: Path) -> Iterator[Make]:
    """Makes hosts by name: they have one store, and nothing else in common. Nothing may be left on any of them."""
    require("root", "runs the engines")
    require("fuse")
    made: list[World] = []

    def make(name: str) -> World:
        world = make_world(name)
        world.store = tmp_path / "store"
        programs = {str(find(program, probe).parent) for program, probe in PROBES.items()}
        world.environment["PATH"] = os.pathsep.join([*sorted(programs), os.environ["PATH"]])
        made.append(world)
        return world

    yield make
    for world in made:
        assert left(world) == []


@pytest.fixture(scope="session")
def frozen(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[Frozen]:
    """Gives a host a store in which ``redis:1`` is redis that was frozen with an engine, once for all tests."""
    made: dict[str, World] = {}

    def give(host: World, engine: str) -> None:
        if engine not in made:
            folder = tmp_path_factory.mktemp(f"frozen-{engine}")
            made[engine] = World(folder / "world")
            made[engine].environment["PATH"] = host.environment["PATH"]
            bundle.write(folder / "bundle", bundle.config(root))
            create(made[engine], folder / "bundle", "redis:1", "--engine", engine, "--when-listening", "6379")
        host.store = made[engine].store

    yield give
    assert [line for world in made.values() for line in (*left(world), *world.close())] == []


@pytest.fixture
def networks(tmp_path: Path) -> Iterator[list[Network]]:
    """Two networks, with another address in each."""
    with contextlib.ExitStack() as stack:
        made = []
        for number in range(2):
            made.append(Network(tmp_path / f"network{number}", number))
            stack.callback(made[-1].close)
        yield made


def left(world: World) -> list[str]:
    """Return what is on a host that should not be, once its daemon has ended for want of mounts."""
    wait_until(lambda: not world.pids(), f"the daemon of {world.root} to end")
    runners = world.runtime / "runners"
    folders = [runners, world.cache.with_name(f"{world.cache.name}-checkpoints")]
    found = [str(path) for folder in folders if folder.exists() for path in folder.iterdir()]
    return found + [f"mount {point!r}" for point in mounts_below(world.root)]


def create(world: World, folder: Path, ref: str, *options: str, seconds: float = DEADLINE) -> dict[str, Any]:
    made: dict[str, Any] = world.run("snapshot", "create", str(folder), ref, "--json", *options, seconds=seconds).json
    return made


def refused(done: Done, status: int, *words: str) -> None:
    """See that a command ended with a status and one line that has these words."""
    assert done.status == status, done.err
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err, done.err


@contextlib.contextmanager
def restored(world: World, ref: str, *options: str) -> Iterator[tuple["subprocess.Popen[str]", dict[str, Any]]]:
    """Restore, and give the process that stays, and what it told."""
    process = world.start("snapshot", "restore", ref, "--json", *options)
    try:
        assert process.stdout is not None
        told = ""
        while not told.endswith("\n}\n"):
            line = process.stdout.readline()
            assert line, f"it ended: {process.communicate(timeout=DEADLINE)}"
            told += line
        yield process, json.loads(told)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=DEADLINE)
        assert "Traceback" not in err, err
        assert out == ""


# -- from one host to another -------------------------------------------------------------------------------------------------------------


def test_redis_goes_on_elsewhere(make_host: Make, networks: list[Network], root: Path, engine: str, tmp_path: Path) -> None:
    # It has a file open that it has made, and writes to it before each answer: memory and writable layer are frozen together.
    document = bundle.config(root, "--port", "6380", "--appendonly", "yes", "--appendfsync", "always")
    folder = bundle.write(tmp_path / "bundle", document)
    first, second = make_host("first"), make_host("second")
    second.environment["IMAGEFS_MODE"] = "fuse"  # where the first one may mount the root in kernel mode
    freezing = first.start(
        *("snapshot", "create", str(folder), "redis:1", "--engine", engine, "--json"),
        *("--when-listening", "6379", "--network", str(networks[0].path)),
    )
    # It listens on the other port when it knows what it is to know, and hangs up in the same breath.
    assert bundle.say(networks[0], 6380, "SET greeting hello", "CONFIG SET port 6379") == "+OK\n" * 3
    out, err = freezing.communicate(timeout=DEADLINE)
    assert freezing.returncode == 0, err
    made = json.loads(out)
    assert made["engine"] == engine
    assert any("CAP_KILL" in note for note in made["notes"])
    assert any("/dev/mqueue" in note for note in made["notes"])
    shutil.rmtree(folder)

    with restored(second, "redis:1", "--network", str(networks[1].path)) as (process, told):
        assert told["snapshot"] == made["snapshot"]
        assert told["engine"] == engine
        assert list(told["timeline"]) == ["resolve", "mount", "engine"]
        assert bundle.say(networks[1], 6379, "GET greeting", "SET greeting again") == "$5\nhello\n+OK\n+OK\n"
        assert process.poll() is None
        bundle.say(networks[1], 6379, "SHUTDOWN NOSAVE")
        assert process.wait(DEADLINE) == 0
    assert left(second) == []


def test_two_clones_are_two(make_host: Make, networks: list[Network], frozen: Frozen, engine: str) -> None:
    host = make_host("host")
    frozen(host, engine)
    with contextlib.ExitStack() as stack:
        for network in networks:
            stack.enter_context(restored(host, "redis:1", "--network", str(network.path)))
        for number, network in enumerate(networks):
            bundle.say(network, 6379, f"SET number {number}")
        assert [bundle.say(network, 6379, "GET number") for network in networks] == ["$1\n0\n+OK\n", "$1\n1\n+OK\n"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_program_and_leaves_nothing(make_host: Make, frozen: Frozen, number: signal.Signals) -> None:
    host = make_host("host")
    frozen(host, "criu")
    with restored(host, "redis:1") as (process, _):
        process.send_signal(number)
        assert process.wait(DEADLINE) == 128 + number
    assert left(host) == []


def test_one_that_is_left_alone(make_host: Make, networks: list[Network], frozen: Frozen, engine: str, tmp_path: Path) -> None:
    host = make_host("host")
    frozen(host, engine)
    written = tmp_path / "written"
    told = host.run(
        "snapshot", "restore", "redis:1", "--detach", "--json", "--network", str(networks[1].path), "--output", str(written)
    ).json
    assert told["output"] == str(written)
    assert bundle.say(networks[1], 6379, "SHUTDOWN NOSAVE") == ""
    wait_until(lambda: left(host) == [], "the program and all that was its to be gone")
    assert "User requested shutdown" in written.read_text()
    refused(host.attempt("snapshot", "restore", "redis:2", "--detach"), 6, "redis:2")


def test_what_it_has_written_and_how_long_it_has_run(make_host: Make, root: Path, tmp_path: Path) -> None:
    host = make_host("host")
    folder = bundle.write(tmp_path / "bundle", bundle.config(root))
    made = create(host, folder, "redis:1", "--when-output", "Ready to accept", "--when-listening", "6379", "--after", "0.2")
    assert made["timeline"]["ready"] >= 0.2
    assert "Ready to accept connections" in Path(made["log"]).read_text()
    with restored(host, "redis:1"):
        pass


# -- what goes wrong ----------------------------------------------------------------------------------------------------------------------


def test_a_program_that_ends_before_it_is_ready(make_host: Make, root: Path, engine: str, tmp_path: Path) -> None:
    host = make_host("host")
    folder = bundle.write(tmp_path / "bundle", bundle.config(root, "--no-such-option", "1"))
    refused(host.attempt("snapshot", "create", str(folder), "redis:1", "--engine", engine, "--when-listening", "6379"), 16, "ended with 1")
    (log,) = (host.runtime / "logs").iterdir()
    assert "no-such-option" in log.read_text()
    refused(host.attempt("snapshot", "restore", "redis:1"), 6)


def test_a_program_that_is_not_there(make_host: Make, root: Path, engine: str, tmp_path: Path) -> None:
    host = make_host("host")
    document = bundle.config(root)
    document["process"]["args"] = ["/usr/bin/none"]
    folder = bundle.write(tmp_path / "bundle", document)
    refused(host.attempt("snapshot", "create", str(folder), "redis:1", "--engine", engine, "--after", "1"), 15, "/usr/bin/none")


def test_a_program_that_is_never_ready(make_host: Make, root: Path, engine: str, tmp_path: Path) -> None:
    host = make_host("host")
    options = ("--engine", engine, "--when-listening", "6380", "--timeout", "1")
    folder = bundle.write(tmp_path / "bundle", bundle.config(root))
    refused(host.attempt("snapshot", "create", str(folder), "redis:1", *options), 13, "port 6380", "--timeout")
    assert "refs/redis/1" not in host.published()


def test_others_in_its_network_do_not_make_it_ready(make_host: Make, networks: list[Network], root: Path, tmp_path: Path) -> None:
    """With CRIU, where the sockets of a network namespace are in one table."""
    host = make_host("host")
    code = "import socket\nlistening = socket.create_server(('', 6380))\nprint('listens', flush=True)\nlistening.accept()"
    other = ["nsenter", f"--net={networks[0].path}", sys.executable, "-I", "-c", code]
    with subprocess.Popen(other, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"listens\n"
            options = ("--engine", "criu", "--when-listening", "6380", "--timeout", "1", "--network", str(networks[0].path))
            folder = bundle.write(tmp_path / "bundle", bundle.config(root))
            refused(host.attempt("snapshot", "create", str(folder), "redis:1", *options), 13)
        finally:
            process.kill()


def test_a_user_that_cannot_be_frozen(make_host: Make, root: Path, tmp_path: Path) -> None:
    if ANY_USER in Criu(find("criu", "check")).probe().features:
        pytest.skip("any user's programs can be frozen here")
    document = bundle.config(root)
    document["process"]["user"] = {"uid": 65534, "gid": 65534}
    folder = bundle.write(tmp_path / "bundle", document)
    host = make_host("host")
    refused(
        host.attempt("snapshot", "create", str(folder), "redis:1", "--engine", "criu", "--when-listening", "6379"), 4, "CAP_SYS_RESOURCE"
    )
    assert create(host, folder, "redis:1", "--when-listening", "6379")["engine"] == "runsc"


def test_command_lines_that_mean_nothing(make_host: Make, tmp_path: Path) -> None:
    host = make_host("host")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "file").touch()
    host.convert(f"dir:{tmp_path / 'empty'}", "image:1")
    (tmp_path / "rootfs").mkdir()
    folder = bundle.write(tmp_path / "bundle", bundle.config(tmp_path / "rootfs"))
    command = ("snapshot", "create", str(folder))
    refused(host.attempt(*command, "redis:1"), 2, "--when-listening")
    refused(host.attempt(*command, "redis:1", "--when-output", "a\nb"), 2, "line")
    refused(host.attempt(*command, "Not A Name", "--after", "1"), 2)
    refused(host.attempt(*command, "image:1", "--after", "1"), 2, "image:1")
    refused(host.attempt(*command, "redis:1", "--after", "1", "--network", str(tmp_path / "none")), 2, "network namespace")
    refused(host.attempt(*command, "redis:1", "--after", "1", "--cgroup", str(tmp_path)), 2, "cgroup")
    refused(host.attempt("snapshot", "create", str(tmp_path / "none"), "redis:1", "--after", "1"), 3, "no bundle")
    refused(host.attempt("snapshot", "restore", "image:1"), 4, "image:1")
    refused(host.attempt("snapshot", "restore", "image:1", "--output", str(tmp_path)), 2)
    assert json.loads(host.attempt("snapshot", "restore", "none:1", "--json").out)["error"]["exit_code"] == 6
    assert json.loads(host.attempt("snapshot", "restore", "image:1", "--json", "--detach").out)["error"]["exit_code"] == 4


def test_a_host_that_it_does_not_fit(make_host: Make, frozen: Frozen, tmp_path: Path) -> None:
    host, engine = make_host("host"), "criu"
    frozen(host, engine)
    (tmp_path / "bin").mkdir()
    bare = make_host("bare")
    frozen(bare, engine)
    bare.environment["PATH"] = str(tmp_path / "bin")
    refused(bare.attempt("snapshot", "restore", "redis:1"), 4, f"needs the engine {engine}", f"no {engine} on PATH")

    def amended(ref: str, change: Callable[[Record], Record]) -> None:
        with contextlib.closing(open_store(host.env["IMAGEFS_STORE"])) as store:
            found = repository.inspect(store, "redis:1")
            repository.amend(store, found, change(found.record), Ref.parse(ref))

    other = {"arch": "riscv64"}
    amended("other:1", lambda record: structs.replace(record, cpu=structs.replace(record.cpu, **other)))
    refused(host.attempt("snapshot", "restore", "other:1"), 4, "riscv64")
    amended("other:2", lambda record: structs.replace(record, oci=structs.replace(record.oci, spec="0" * 64)))
    refused(host.attempt("snapshot", "restore", "other:2"), 5, "contradicts itself")
    amended("other:3", lambda record: structs.replace(record, oci=structs.replace(record.oci, image="0" * 64)))
    refused(host.attempt("snapshot", "restore", "other:3"), 6)
    amended("other:4", lambda record: structs.replace(record, python=Program(version="3.11")))
    refused(host.attempt("snapshot", "restore", "other:4"), 4, "imagefs snapshot run")


def test_a_snapshot_of_no_bundle(make_host: Make, frozen: Frozen, tmp_path: Path) -> None:
    host, engine = make_host("host"), "criu"
    frozen(host, engine)
    (tmp_path / "images" / "engine").mkdir(parents=True)
    (tmp_path / "images" / "engine" / "file").write_bytes(b"x" * 100)
    with contextlib.closing(open_store(host.env["IMAGEFS_STORE"])) as store:
        repository.push(store, tmp_path / "images", repository.inspect(store, "redis:1").record, Ref.parse("bare:1"))
        (tmp_path / "images" / "bundle.json").write_bytes(b"[" * 100)
        repository.push(store, tmp_path / "images", repository.inspect(store, "redis:1").record, Ref.parse("forged:1"))
    refused(host.attempt("snapshot", "restore", "bare:1"), 4, "no snapshot of a bundle")
    refused(host.attempt("snapshot", "restore", "forged:1"), 14, "levels")


def test_memory_that_is_damaged_never_runs(make_host: Make, networks: list[Network], frozen: Frozen, engine: str, tmp_path: Path) -> None:
    host = make_host("host")
    frozen(host, engine)
    shutil.copytree(host.store, tmp_path / "copy")
    host.store = tmp_path / "copy"
    with contextlib.closing(open_store(host.env["IMAGEFS_STORE"])) as store:
        objects = map_of(store, repository.inspect(store, "redis:1").manifest)
    memory = max(objects, key=lambda row: row.size)
    for number in {extent.frame for extent in objects.extents(memory, 0, memory.size)} - {HOLE}:
        frame = objects.frame(number)
        with (host.store / pack_key(objects.pack(frame.pack).digest.hex())).open("r+b") as pack:
            pack.seek(frame.offset + frame.stored // 2)
            byte = pack.read(1)[0]
            pack.seek(-1, os.SEEK_CUR)
            pack.write(bytes([byte ^ 1]))
    done = host.attempt("snapshot", "restore", "redis:1", "--network", str(networks[0].path))
    refused(done, 15, "cannot restore" if engine == "criu" else "does not run")
    assert left(host) == []


def test_it_is_told_to_end_while_it_waits(make_host: Make, root: Path, engine: str, tmp_path: Path) -> None:
    host = make_host("host")
    folder = bundle.write(tmp_path / "bundle", bundle.config(root))
    process = host.start("snapshot", "create", str(folder), "redis:1", "--engine", engine, "--after", "300", "--timeout", "600")
    wait_until(lambda: any("Ready" in path.read_text() for path in host.runtime.glob("logs/*")), "redis to run", DEADLINE)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert left(host) == []
    assert "refs/redis/1" not in host.published()


def test_what_a_killed_restore_leaves_the_next_one_takes_away(
    make_host: Make, networks: list[Network], frozen: Frozen, engine: str
) -> None:
    host = make_host("host")
    frozen(host, engine)
    with restored(host, "redis:1", "--network", str(networks[0].path)) as (process, _):
        process.kill()
        process.wait(DEADLINE)
        assert bundle.say(networks[0], 6379) == "+OK\n"
    with restored(host, "redis:1", "--network", str(networks[1].path)):
        assert bundle.say(networks[1], 6379) == "+OK\n"
        with networks[0].peer(bundle.ASK.replace("+ 30", "+ 0"), networks[0].address, "6379", "QUIT\r\n") as asking:
            asking.communicate(timeout=DEADLINE)
        assert asking.returncode != 0
    assert left(host) == []
