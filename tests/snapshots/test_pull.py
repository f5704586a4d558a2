"""``imagefs snapshot pull``: what is here afterwards is all of it, whatever happened on the way, and what is not is told."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.errors import AccessError, IntegrityError, StoreError, StoreFullError
from imagefs.store.base import ObjectStore, pack_key
from imagefs.store.images import get_manifest
from imagefs.store.opening import open_store
from imagefs.store.refs import Ref
from imagefs_cli.failures import EXIT_INTERRUPTED
from snapshotstore.repository import push
from tests.faults import FaultProxy
from tests.snapshots.checkpoints import changed, checkpoint, map_of, memory, record
from tests.store.faulty import flipped
from tests.system.compare import differences, snapshot
from tests.system.world import World, end, wait_until
from tests.system.world import require as require_feature
from tests.weed import serving

PAGES = 4000


@pytest.fixture(autouse=True)
def _root() -> None:
    require_feature("root", "a daemon that keeps what no mount needs is root's")


@pytest.fixture
def store(imagefs: World) -> Iterator[ObjectStore]:
    opened = open_store(f"file://{imagefs.store}", create=True)
    yield opened
    opened.close()


def made(store: ObjectStore, folder: Path, *, ref: str = "service:2") -> Path:
    """Store two members of a lineage; return what the second is made of."""
    data = memory(PAGES, zero=0.2)
    push(store, checkpoint(folder / "one", data), record(), Ref.parse("service:1"))
    second = checkpoint(folder / "two", changed(data, 0.1, seed=5))
    second.chmod(0o700)
    push(store, second, record(), Ref.parse(ref))
    return second


def test_what_was_pulled_is_served_without_the_store(imagefs: World, store: ObjectStore, tmp_path: Path) -> None:
    folder = made(store, tmp_path)
    first = imagefs.run("snapshot", "pull", "service:2", "--json").json
    assert first["fetched"] == first["bytes"] > 0
    assert first["why_not"] or first["fits"]
    again = imagefs.run("snapshot", "pull", "service:2", "--json").json
    assert (again["fetched"], again["bytes"]) == (0, first["bytes"])
    imagefs.run("daemon", "stop")
    shutil.rmtree(imagefs.store / "packs")
    point = imagefs.mount("service:2", "mnt", "--no-prefetch")
    assert differences(snapshot(folder), snapshot(point)) == []
    assert imagefs.stats()["bytes_read"]["store"] == 0


def test_members_of_a_lineage_bring_what_they_do_not_share(imagefs: World, store: ObjectStore, tmp_path: Path) -> None:
    made(store, tmp_path)
    first = imagefs.run("snapshot", "pull", "service:1", "--json").json
    second = imagefs.run("snapshot", "pull", "service:2", "--json").json
    assert first["fetched"] == first["bytes"]
    # What one of them has whole in its file, and the other in part, is kept as both.
    assert second["fetched"] < second["bytes"]
    for number, ref in enumerate(("service:1", "service:2")):
        folder = tmp_path / ("one", "two")[number]
        folder.chmod(0o700)
        point = imagefs.mount(ref, f"mnt{number}", "--no-prefetch")
        assert differences(snapshot(folder), snapshot(point)) == []


def test_what_is_damaged_is_told_and_the_next_pull_brings_the_rest(imagefs: World, store: ObjectStore, tmp_path: Path) -> None:
    folder = made(store, tmp_path)
    digest = imagefs.run("snapshot", "inspect", "service:2", "--json").json["digest"]
    objects = map_of(store, get_manifest(store, digest))
    pack = objects.pack(0).digest.hex()
    path = imagefs.store / pack_key(pack)
    held = path.read_bytes()
    for damage in (flipped(held), None):
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        done = imagefs.attempt("snapshot", "pull", "service:2")
        assert done.status in {IntegrityError.exit_code, StoreError.exit_code}, done.err
        assert "imagefs snapshot verify service:2" in done.err or damage is None
        if damage is None:
            path.write_bytes(held)
    wait_until(lambda: imagefs.attempt("snapshot", "pull", "service:2").status == 0, "what failed a moment ago to be asked for again")
    point = imagefs.mount("service:2", "mnt", "--no-prefetch")
    assert differences(snapshot(folder), snapshot(point)) == []


def test_a_tier_that_is_too_small_is_told(imagefs: World, store: ObjectStore, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "large", memory(24_000))
    push(store, folder, record(), Ref.parse("service:2"))
    imagefs.environment["IMAGEFS_CACHE_BYTES"] = "64MiB"
    done = imagefs.attempt("snapshot", "pull", "service:2", "--json")
    assert done.status == StoreFullError.exit_code, done.out
    assert "may hold" in done.json["error"]["message"]


def test_without_root_it_is_said_what_to_do(user_world: World) -> None:
    opened = open_store(f"file://{user_world.store}", create=True)
    made(opened, user_world.root / "checkpoints")
    opened.close()
    user_world.become(65534)
    done = user_world.attempt("snapshot", "pull", "service:2")
    assert (done.status, "without root" in done.err) == (AccessError.exit_code, True), done.err


@pytest.fixture
def far(imagefs: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FaultProxy, Path]]:
    """A store that can be made slow; and what its snapshot is made of."""
    with serving(tmp_path / "weed") as server, FaultProxy(server.endpoint.removeprefix("http://")) as link:
        environment = server.environment | {"AWS_ENDPOINT_URL_S3": link.url, "IMAGEFS_STORE": "s3://tests/pull"}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        imagefs.environment |= environment
        opened = open_store("s3://tests/pull", create=True)
        folder = made(opened, tmp_path)
        opened.close()
        yield link, folder


def test_a_store_that_goes_away_ends_a_pull(imagefs: World, far: tuple[FaultProxy, Path]) -> None:
    link, _ = far
    imagefs.environment["IMAGEFS_STORE_DEADLINE"] = "2"
    link.set(bandwidth=3e6)
    link.forget()
    with imagefs.start("snapshot", "pull", "service:2", "--json") as pull:
        wait_until(lambda: link.stats().bytes > 2_000_000, "some of it to come", seconds=60)
        link.set(black_hole=True)
        out, err = pull.communicate(timeout=60)
    assert pull.returncode == StoreError.exit_code, err
    assert "run it again" in json.loads(out)["error"]["hint"]
    link.set(bandwidth=None, black_hole=False)
    wait_until(lambda: imagefs.attempt("snapshot", "pull", "service:2").status == 0, "the store to count as there again", seconds=60)


def test_a_pull_that_is_interrupted_goes_on_where_it_was(imagefs: World, far: tuple[FaultProxy, Path]) -> None:
    link, folder = far
    stored = imagefs.run("snapshot", "verify", "service:2", "--json").json["snapshots"][0]["stored_bytes"]
    link.set(bandwidth=3e6)
    link.forget()
    with imagefs.start("snapshot", "pull", "service:2") as pull:
        wait_until(lambda: link.stats().bytes > stored // 4, "some of it to come", seconds=60)
        assert end(pull, signal.SIGINT) == EXIT_INTERRUPTED
    # The daemon goes on, and its worker is killed with what it has in hand: the next one brings the rest.
    with imagefs.start("snapshot", "pull", "service:2", "--json") as pull:
        wait_until(lambda: link.stats().bytes > stored // 2, "more of it to come", seconds=60)
        os.kill(imagefs.run("daemon", "status", "--json").json["worker_pid"], signal.SIGKILL)
        out, err = pull.communicate(timeout=60)
    assert pull.returncode == 0, err
    assert json.loads(out)["bytes"] > stored
    assert stored <= link.stats().bytes < 2 * stored
    imagefs.run("daemon", "stop")
    link.set(black_hole=True)
    imagefs.environment["IMAGEFS_STORE_DEADLINE"] = "2"
    point = imagefs.mount("service:2", "mnt", "--no-prefetch")
    assert differences(snapshot(folder), snapshot(point)) == []
