"""A conversion that is killed at any point leaves a store where everything published works; running it again finishes the same."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import blake3
import pytest
import zstandard

from imagefs.format.objectmap import ObjectMap
from tests.corpus import rawtar as t
from tests.corpus.features import ROOT, noise
from tests.corpus.oci import simple
from tests.system.world import World, end, require

RUNS: Final = 20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of about forty packs: there are as many moments between two of them."""
    members = [t.file(b"large/%02d" % number, noise(1_100_000, b"%d" % number)) for number in range(30)]
    members += [t.file(b"small/%04d" % number, noise(2000, b"s%d" % number)) for number in range(3000)]
    return simple(tmp_path_factory.mktemp("crash") / "layout", t.archive(ROOT, *members[:15]), t.archive(*members[15:]))


@pytest.fixture(scope="module")
def digest(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """What an undisturbed conversion gives, and how many files it writes."""
    world = World(tmp_path_factory.mktemp("undisturbed") / "world")
    figures = world.convert(f"oci:{source}", "test")
    yield figures["manifest"], len(seen(world))
    assert world.close() == []


def seen(world: World) -> set[str]:
    """Return the files of the store, half-written ones included."""
    return {os.path.join(folder, name) for folder, _, names in os.walk(world.store) for name in names}  # noqa: PTH118 # polled: has to be quick


def check_published(world: World) -> None:
    """Check that all that a published manifest names, and all that its object map names, is there and is what its name says."""
    for key, raw in world.published().items():
        if key.startswith("refs/"):
            continue
        assert key == f"manifests/{blake3.blake3(raw).hexdigest()}"
        manifest = json.loads(raw)
        for kind in ("tree", "objects"):
            stored = (world.store / "blobs" / manifest[kind]["digest"]).read_bytes()
            blob = zstandard.ZstdDecompressor().decompressobj().decompress(stored)
            assert blake3.blake3(blob).hexdigest() == manifest[kind]["digest"]
            if kind == "objects":
                found = ObjectMap(blob)
                assert all((world.store / "packs" / found.pack(number).digest.hex()).exists() for number in range(found.pack_count))
    for path in (world.store / "packs").iterdir():
        assert blake3.blake3(path.read_bytes()).hexdigest() == path.name


def killed_after(world: World, source: Path, files: int) -> bool:
    """Convert, and kill it as soon as the store has ``files`` more files; False if it was done before that."""
    before = len(seen(world))
    return killed_when(world, source, lambda: len(seen(world)) >= before + files)


def killed_when(world: World, source: Path, condition: Callable[[], bool]) -> bool:
    """Convert, and kill it as soon as ``condition`` holds; False if it was done before that."""
    process = world.start("convert", f"oci:{source}", "test", "--jobs", "2")
    deadline = time.monotonic() + 60
    try:
        while not condition() and process.poll() is None:
            assert time.monotonic() < deadline, "neither done nor killed"
        return process.poll() is None
    finally:
        if process.poll() is None:
            end(process, signal.SIGKILL)
        else:
            out, err = process.communicate(timeout=10)
            assert process.returncode == 0, out + err


def test_killed_at_any_point(source: Path, digest: tuple[str, int], imagefs: World, tmp_path: Path) -> None:
    require("fuse")
    manifest, files = digest
    earlier = simple(tmp_path / "earlier", t.archive(ROOT, t.file(b"kept", noise(300_000))))
    imagefs.convert(f"oci:{earlier}", "earlier")
    kept = imagefs.published()
    kills = 0
    for run in range(RUNS):
        # From the first file to the last one; what earlier runs stored is used, so that the later ones get further.
        kills += killed_after(imagefs, source, 1 + run * 3 % max(2, files // 3))
        assert kept.items() <= imagefs.published().items()
        check_published(imagefs)
        if "refs/test/latest" in imagefs.published():
            break
    assert kills >= 3
    assert "earlier" in imagefs.run("images").out
    point = imagefs.mount("earlier")
    assert (point / "kept").read_bytes() == noise(300_000)
    imagefs.umount(point)

    assert imagefs.convert(f"oci:{source}", "test")["manifest"] == manifest
    check_published(imagefs)
    assert imagefs.leftovers() == []
    point = imagefs.mount("test")
    assert (point / "large/29").read_bytes() == noise(1_100_000, b"29")
    assert (point / "small/2999").read_bytes() == noise(2000, b"s2999")
    imagefs.umount(point)


@pytest.mark.parametrize("files", [1, 5, 20])
def test_killed_in_a_new_store(files: int, source: Path, digest: tuple[str, int], imagefs: World) -> None:
    assert killed_after(imagefs, source, files)
    assert imagefs.published() == {}
    figures = imagefs.convert(f"oci:{source}", "test")
    assert figures["manifest"] == digest[0]
    assert imagefs.leftovers() == []


@pytest.mark.parametrize("folder", ["packs", "blobs", "layers", "manifests", "refs"])
def test_killed_at_the_first_sign_of(folder: str, source: Path, digest: tuple[str, int], imagefs: World) -> None:
    """What a reader goes through from the ref down must be there in the opposite order: what is named is written before what names it."""
    place = imagefs.store / folder
    killed_when(imagefs, source, lambda: place.exists() and any(names for _, _, names in os.walk(place)))
    published = imagefs.published()
    refs = [json.loads(raw)["manifest"] for key, raw in published.items() if key.startswith("refs/")]
    assert {f"manifests/{name}" for name in refs} <= published.keys()
    check_published(imagefs)
    assert imagefs.convert(f"oci:{source}", "test")["manifest"] == digest[0]
    check_published(imagefs)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop(number: signal.Signals, source: Path, imagefs: World) -> None:
    """Told politely, it ends soon, says so in a line, publishes nothing, and cleans up at once."""
    process = imagefs.start("convert", f"oci:{source}", "test", "--jobs", "2")
    deadline = time.monotonic() + 60
    while len(seen(imagefs)) < 5:
        assert process.poll() is None, process.communicate(timeout=10)
        assert time.monotonic() < deadline
    process.send_signal(number)
    try:
        out, err = process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        end(process)
        pytest.fail(f"signal {number} does not end it")
    assert process.returncode != 0
    assert "Traceback" not in out + err
    assert imagefs.published() == {}
    assert imagefs.leftovers() == []
