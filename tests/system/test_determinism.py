"""The same input gives the same image, whatever the machine, the moment and the store; and nothing is stored twice."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.corpus import rawtar as t
from tests.corpus.features import FEATURES, ROOT, noise, text
from tests.corpus.oci import Layer, pack_directory, simple
from tests.golden.image import GOLDEN, golden_digests
from tests.system.world import World

MakeWorld = Callable[[str], World]


def mixed_layers() -> list[bytes]:
    """Some megabytes in large and small files, in two layers that hide part of each other."""
    lower = [t.file(b"large/%d" % number, noise(1_300_000, b"%d" % number)) for number in range(4)]
    lower += [t.file(b"small/%03d" % number, text(number * 40)) for number in range(300)]
    upper = [t.whiteout(b"large/2"), t.file(b"small/007", b"seven"), t.file(b"text", text(900_000)), t.hardlink(b"also", b"large/1")]
    return [t.archive(ROOT, *lower), t.archive(*upper)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simple(tmp_path_factory.mktemp("mixed") / "layout", *mixed_layers())


@pytest.fixture(scope="module")
def digest(source: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The manifest digest of a conversion with one thread."""
    world = World(tmp_path_factory.mktemp("one") / "world")
    found = str(world.convert(f"oci:{source}", "test", "--jobs", "1")["manifest"])
    assert world.close() == []
    return found


def test_any_number_of_jobs(source: Path, digest: str, make_world: MakeWorld) -> None:
    for jobs in ("2", "4"):
        assert make_world(f"jobs{jobs}").convert(f"oci:{source}", "test", "--jobs", jobs)["manifest"] == digest


ELSEWHERE: dict[str, dict[str, str]] = {
    "time_zone": {"TZ": "Asia/Kathmandu"},
    "language": {"LC_ALL": "C"},
    "utf8_mode_off": {"PYTHONUTF8": "0", "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"},
    "hash_seed": {"PYTHONHASHSEED": "12345"},
    "optimized": {"PYTHONOPTIMIZE": "2"},
}


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_any_environment(kind: str, source: Path, digest: str, imagefs: World) -> None:
    imagefs.environment |= ELSEWHERE[kind]
    assert imagefs.convert(f"oci:{source}")["manifest"] == digest


def test_any_umask_path_and_time(source: Path, digest: str, make_world: MakeWorld, tmp_path: Path) -> None:
    moved = shutil.copytree(source, tmp_path / "a much longer name than before" / "layout")
    for number, path in enumerate(sorted(moved.rglob("*"))):
        os.utime(path, (number, number))
    world = make_world("somewhere else")
    before = os.umask(0o077)
    try:
        assert world.convert(f"oci:{moved}", "another/name:tag")["manifest"] == digest
    finally:
        os.umask(before)


def test_archive_and_layout_are_the_same_image(source: Path, digest: str, imagefs: World, tmp_path: Path) -> None:
    archive = pack_directory(source, tmp_path / "image.tar")
    assert imagefs.convert(f"oci-archive:{archive}")["manifest"] == digest


def test_a_store_that_has_other_images(source: Path, digest: str, imagefs: World, tmp_path: Path) -> None:
    """What the store has is used, and must not show in the result: here half of it, in other surroundings."""
    lower, upper = mixed_layers()
    imagefs.convert(f"oci:{simple(tmp_path / 'half', lower)}", "half")
    imagefs.convert(
        f"oci:{simple(tmp_path / 'other', t.archive(ROOT, t.file(b'x', noise(1_300_000, b'1')), t.file(b'y', b'1' * 70)))}", "other"
    )
    figures = imagefs.convert(f"oci:{source}", "test")
    assert figures["manifest"] == digest
    assert figures["shared_bytes"] > 3_000_000
    assert upper


def test_the_same_again_adds_nothing(source: Path, imagefs: World) -> None:
    first = imagefs.convert(f"oci:{source}", "one")
    before = stored(imagefs)
    again = imagefs.convert(f"oci:{source}", "two")
    assert again["manifest"] == first["manifest"]
    assert again["new_bytes"] == 0
    assert stored(imagefs) == before


def stored(world: World) -> dict[str, int]:
    """Return the size of every blob by its key."""
    return {
        str(path.relative_to(world.store)): path.stat().st_size
        for folder in ("packs", "blobs", "manifests")
        for path in (world.store / folder).iterdir()
    }


def test_new_bytes_are_what_the_store_grew_by(source: Path, imagefs: World) -> None:
    figures = imagefs.convert(f"oci:{source}", "one")
    assert figures["new_bytes"] == sum(stored(imagefs).values())
    assert figures["files"] == 4 - 1 + 300 + 1
    # Nobody can see what a layer above hides, so it is not stored; and text shrinks.
    assert figures["new_bytes"] < 3 * 1_300_000 + 700_000


def test_a_few_changed_files_add_little(imagefs: World, tmp_path: Path) -> None:
    files = {b"lib/%04d" % number: noise(1000 + number * 37 % 9000, b"%d" % number) for number in range(2000)}
    base = t.archive(ROOT, *[t.file(name, data) for name, data in files.items()])
    first = imagefs.convert(f"oci:{simple(tmp_path / 'one', base)}", "one")
    changes = t.archive(t.file(b"lib/0500", noise(2000, b"new")), t.file(b"lib/1500", noise(3000, b"new")), t.file(b"lib/new", noise(500)))
    second = imagefs.convert(f"oci:{simple(tmp_path / 'two', base, changes)}", "two")
    index = second["tree_bytes"] + second["map_bytes"]
    assert second["new_bytes"] - index < first["new_bytes"] / 4


def test_several_converters_in_one_store(source: Path, digest: str, imagefs: World) -> None:
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda number: imagefs.convert(f"oci:{source}", f"writer/{number}"), range(3)))
    assert {figures["manifest"] for figures in done} == {digest}
    assert imagefs.leftovers() == []
    assert {str(path.relative_to(imagefs.store)) for path in (imagefs.store / "refs/writer").rglob("latest")} == {
        f"refs/writer/{number}/latest" for number in range(3)
    }


def test_the_layers_compression_does_not_change_what_is_stored(imagefs: World, tmp_path: Path) -> None:
    """Only the manifest, which names the layers, differs."""
    tar = mixed_layers()[0]
    first = imagefs.convert(f"oci:{simple(tmp_path / 'gzip', tar)}", "gzip")
    second = imagefs.convert(f"oci:{simple(tmp_path / 'zstd', Layer(tar, '+zstd'))}", "zstd")
    assert second["packs_new"] == 0
    trees = [json.loads(imagefs.published()[f"manifests/{figures['manifest']}"]) for figures in (first, second)]
    assert trees[0]["tree"] == trees[1]["tree"]
    assert trees[0]["objects"] == trees[1]["objects"]


def test_every_feature_twice(make_world: MakeWorld, tmp_path: Path) -> None:
    """Whatever an image holds: in one go, because each alone would take as long as its command takes to start."""
    from imagefs.convert.convert import convert  # noqa: PLC0415 # beside its only use
    from imagefs.store.opening import open_store  # noqa: PLC0415 # likewise
    from imagefs.store.refs import Ref  # noqa: PLC0415 # likewise

    stores = [open_store(f"file://{tmp_path / name}", create=True) for name in ("one", "two")]
    for name, feature in FEATURES.items():
        layout = simple(tmp_path / "layouts" / name, *feature.layers)
        found = {convert(f"oci:{layout}", Ref("x", "y"), store, jobs=jobs).manifest for store, jobs in zip(stores, (1, 4), strict=True)}
        assert len(found) == 1, name
    for store in stores:
        store.close()


def test_golden_image(imagefs: World, tmp_path: Path) -> None:
    """A change here is a change of the format: it makes every image that exists a stranger to the images that come."""
    assert sys.byteorder == "little" or pytest.skip("written for every byte order, recorded on one")
    expected: dict[str, Any] = json.loads(GOLDEN.read_text())
    assert golden_digests(imagefs, tmp_path) == expected
