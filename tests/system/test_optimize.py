"""An optimized image beside the one that it was made from: mounted, read, and made by a process that is killed at any point."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from imagefs import errors
from imagefs.format.profile import Key, Profile, encode
from imagefs.store.opening import open_store
from imagefs.store.profiles import publish
from tests.corpus.features import noise, text
from tests.golden.optimized import GOLDEN, feature_contents, optimized, optimized_digests, touching
from tests.mount.kernel_place import kernel_or_skip
from tests.system.both import seen_in_both_modes
from tests.system.compare import differences, snapshot
from tests.system.readers import FILES, content, load, write_tree
from tests.system.test_crash import check_published
from tests.system.trees import full_tree
from tests.system.world import World, detach, end, require, tool

RUNS: Final = 12


def test_every_path_is_the_same_in_both_modes(imagefs: World, tmp_path: Path) -> None:
    kernel_or_skip()
    source = full_tree(tmp_path / "source")
    contents = feature_contents()
    for number, data in enumerate([*contents, *(noise(2000, b"beside%d" % number) for number in range(50))]):
        (source / f"bin/{number * 37 % 101:03}").write_bytes(data)
    imagefs.convert(f"dir:{source}")
    report = optimized(imagefs, touching([text(700_000), *contents[::-1], text(3000)]))
    assert report.objects == len(contents) + 2
    assert report.after.gets < report.before.gets
    assert differences(seen_in_both_modes(imagefs, "test", "old"), seen_in_both_modes(imagefs, "fast", "new")) == []
    assert imagefs.run("diff", "test", "fast", "--json").json["different"] is False


@pytest.mark.parametrize("mode", ["fuse", "kernel"])
def test_both_are_mounted_and_read_at_once(mode: str, imagefs: World) -> None:
    if mode == "kernel":
        kernel_or_skip()
    require("root", "mounts")
    write_tree(imagefs.root / "source")
    imagefs.convert(f"dir:{imagefs.root}/source")
    old = imagefs.mount("test", "old", mode=mode)
    with load(old, ("pread", "whole", "mmap")) as readers:
        names = sorted(FILES)
        report = optimized(imagefs, touching([content(name) for name in names[::3]], parts=2), to="test")
        new = imagefs.mount("test", "new", mode=mode)
        assert report.changed
        for name in names:
            assert (new / name).read_bytes() == content(name)
        seen = readers.stop()
    assert sum(reader["failed"] + reader["wrong"] for reader in seen) == 0, seen
    assert differences(snapshot(old), snapshot(new)) == []
    stats = imagefs.stats()
    assert stats["verify_failures"] == stats["internal_errors"] == 0


def test_what_a_host_has_of_the_one_it_need_not_fetch_for_the_other(imagefs: World) -> None:
    """Large objects stay cut as they were, so what one image's reader brought to RAM and SSD is the other one's too."""
    require("fuse")
    data = [noise(9_000_000 + number, b"%d" % number) for number in range(2)]
    (imagefs.root / "source").mkdir()
    for number, each in enumerate(data):
        (imagefs.root / f"source/{number}").write_bytes(each)
    imagefs.convert(f"dir:{imagefs.root}/source")
    optimized(imagefs, touching(data, parts=2))
    old, new = imagefs.mount("test", "old"), imagefs.mount("fast", "new")
    assert (old / "0").read_bytes() == data[0]
    before = imagefs.stats()["store_bytes"]
    assert (new / "0").read_bytes() == data[0]
    assert imagefs.stats()["store_bytes"] == before
    assert (new / "1").read_bytes() == data[1]
    assert imagefs.stats()["store_bytes"] > before


# -- the command ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def profiled(imagefs: World) -> World:
    """A world with an image ``test`` of which starts were recorded, under two labels."""
    (imagefs.root / "source").mkdir()
    data = {f"{number:02}": noise(40_000 + number, b"%d" % number) for number in range(40)}
    for name, each in data.items():
        (imagefs.root / "source" / name).write_bytes(each)
    manifest = imagefs.convert(f"dir:{imagefs.root}/source")["manifest"]
    store = open_store(f"file://{imagefs.store}")
    for label, last in (("web", "0"), ("batch", "7")):
        found = touching([each for name, each in data.items() if name.endswith(last)])
        publish(store, Profile(manifest, Key.of(["program"], label), 1, found.accesses))
    store.close()
    return imagefs


def test_the_command_says_what_a_start_is_and_changes_nothing_the_second_time(profiled: World) -> None:
    first = profiled.run("optimize", "test", "--json").json
    assert first["changed"] is True
    assert first["after"]["gets"] < first["before"]["gets"]
    assert (first["objects"], first["packs"], first["accesses"]) == (8, 1, 8)
    assert first["new_bytes"] > 0
    published = profiled.published()
    again = profiled.run("optimize", "test", "--json").json
    assert (again["changed"], again["manifest"], again["new_bytes"]) == (False, first["manifest"], 0)
    assert profiled.published() == published
    assert profiled.run("diff", "test", first["origin"]).err == "no difference\n"
    said = profiled.run("optimize", "test")
    assert "nothing was changed" in said.err
    assert "a start is" in said.out
    assert profiled.leftovers() == []


def test_by_the_starts_of_one_label(profiled: World) -> None:
    figures = profiled.run("optimize", "test", "--label", "web", "--to", "web", "--json").json
    assert (figures["ref"], figures["objects"]) == ("web:latest", 4)
    assert json.loads(profiled.published()["refs/test/latest"])["manifest"] == figures["origin"]
    missing = profiled.attempt("optimize", "test", "--label", "none", "--json")
    assert missing.status == errors.NotFoundError.exit_code
    assert "no profile" in missing.json["error"]["message"]


def test_a_start_of_the_optimized_image_is_taken_into_account(profiled: World) -> None:
    first = profiled.run("optimize", "test", "--json").json
    store = open_store(f"file://{profiled.store}")
    publish(store, Profile(first["manifest"], Key(), 1, touching([noise(40_001, b"1")]).accesses))
    store.close()
    second = profiled.run("optimize", "test", "--json").json
    assert (second["changed"], second["objects"], second["origin"]) == (True, 9, first["origin"])


@pytest.mark.parametrize(
    "arguments, status, said",
    [
        (["none"], errors.NotFoundError.exit_code, "no image none"),
        (["unprofiled"], errors.NotFoundError.exit_code, "no profile"),
        (["test@" + "0" * 64], errors.UsageError.exit_code, "--to REF"),
        (["test", "--to", "NOT A REF"], errors.UsageError.exit_code, "not a name"),
    ],
)
def test_what_cannot_be_is_said(arguments: list[str], status: int, said: str, profiled: World) -> None:
    (profiled.root / "empty").mkdir()
    profiled.convert(f"dir:{profiled.root}/empty", "unprofiled")
    done = profiled.attempt("optimize", *arguments)
    assert done.status == status
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_store_that_may_only_be_read_is_left_as_it_is(profiled: World) -> None:
    require("root", "mounts")
    tool("mount", "--bind", profiled.store, profiled.store)
    tool("mount", "-o", "remount,bind,ro", profiled.store)
    try:
        done = profiled.attempt("optimize", "test", "--json")
    finally:
        detach(profiled.store)
    assert done.status == errors.AccessError.exit_code
    assert "the store's file system is read-only" in done.json["error"]["message"]
    assert profiled.leftovers() == []


# -- killed -----------------------------------------------------------------------------------------------------------------------------

PROGRAM: Final = """
import sys
from imagefs.convert import repack
from imagefs.convert.optimize import optimize
from imagefs.format.profile import decode
from imagefs.store.opening import open_store
repack.PACK_MAX = 2 << 20
store = open_store(sys.argv[1])
with open(sys.argv[2], "rb") as file:
    profile = decode(file.read())
print(optimize(store, "test", lambda name: profile).manifest)
"""


@pytest.fixture(scope="module")
def large_source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Profile]:
    """An image whose starts need about fifteen packs of 2 MiB."""
    source = tmp_path_factory.mktemp("optimize") / "source"
    data = {f"large{number}": noise(2_500_000, b"%d" % number) for number in range(10)}
    data |= {f"small{number:03}": noise(9000, b"s%d" % number) for number in range(600)}
    source.mkdir()
    for name, each in data.items():
        (source / name).write_bytes(each)
    return source, touching([each for name, each in reversed(data.items()) if not name.endswith("7")])


def seen(world: World) -> set[str]:
    """Return the files of the store, half-written ones included."""
    return {os.path.join(folder, name) for folder, _, names in os.walk(world.store) for name in names}  # noqa: PTH118 # polled: has to be quick


def start(world: World, profile: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, f"file://{world.store}", profile],
        env=world.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def killed_when(world: World, profile: Path, condition: Callable[[], bool]) -> bool:
    """Optimize, and kill it as soon as ``condition`` holds; False if it was done before that."""
    process = start(world, profile)
    deadline = time.monotonic() + 60
    try:
        while not condition() and process.poll() is None:
            assert time.monotonic() < deadline, "neither done nor killed"
        return process.poll() is None
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        out, err = process.communicate(timeout=30)
        assert process.returncode in {0, -signal.SIGKILL}, out + err


def test_killed_at_any_point(large_source: tuple[Path, Profile], make_world: Callable[[str], World], tmp_path: Path) -> None:
    """The ref names the one or the other, all that is named is there, and who comes after finishes the same."""
    source, profile = large_source
    (tmp_path / "profile").write_bytes(encode(profile))
    undisturbed = make_world("undisturbed")
    undisturbed.convert(f"dir:{source}")
    process = start(undisturbed, tmp_path / "profile")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    expected = out.strip()

    world = make_world("disturbed")
    world.convert(f"dir:{source}")
    old = world.published()
    kills = 0
    for run in range(RUNS):
        before = len(seen(world))
        kills += killed_when(world, tmp_path / "profile", lambda: len(seen(world)) >= before + 1 + run % 3)  # noqa: B023 # called in this turn
        check_published(world)
        now = world.published()
        assert {key: raw for key, raw in old.items() if key.startswith("manifests/")}.items() <= now.items()
        assert json.loads(now["refs/test/latest"])["manifest"] in {json.loads(old["refs/test/latest"])["manifest"], expected}
        if now["refs/test/latest"] != old["refs/test/latest"]:
            break
    assert kills >= 3
    process = start(world, tmp_path / "profile")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out.strip()) == (0, expected), err
    check_published(world)
    assert {key for key in undisturbed.published() if key.startswith("manifests/")} <= world.published().keys()
    require("fuse")
    point = world.mount("test")
    assert differences(snapshot(point), snapshot(source), ignore=("links", "nlink"), root=False) == []
    world.umount(point)


@pytest.mark.parametrize("folder", ["packs", "blobs", "manifests"])
def test_killed_at_the_first_sign_of(folder: str, large_source: tuple[Path, Profile], imagefs: World, tmp_path: Path) -> None:
    """What is named is written before what names it."""
    source, profile = large_source
    (tmp_path / "profile").write_bytes(encode(profile))
    imagefs.convert(f"dir:{source}")
    place = imagefs.store / folder
    before = set(os.listdir(place))  # noqa: PTH208 # polled: has to be quick
    killed_when(imagefs, tmp_path / "profile", lambda: bool(set(os.listdir(place)) - before))  # noqa: PTH208 # likewise
    check_published(imagefs)
    named = json.loads(imagefs.published()["refs/test/latest"])["manifest"]
    assert f"manifests/{named}" in imagefs.published()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop(number: signal.Signals, large_source: tuple[Path, Profile], imagefs: World) -> None:
    """Told politely, it ends soon, says so in a line, leaves the ref as it was, and cleans up at once."""
    source, profile = large_source
    manifest = imagefs.convert(f"dir:{source}")["manifest"]
    store = open_store(f"file://{imagefs.store}")
    publish(store, Profile(manifest, Key(), 1, profile.accesses))
    store.close()
    published, before = imagefs.published(), len(seen(imagefs))
    process = imagefs.start("optimize", "test")
    deadline = time.monotonic() + 60
    while len(seen(imagefs)) == before:
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
    assert imagefs.published() == published
    assert imagefs.leftovers() == []


# -- on every machine the same ----------------------------------------------------------------------------------------------------------


def test_a_conversion_does_not_notice_that_the_store_has_optimized_images(imagefs: World) -> None:
    """Here both come to the same frames, and compress them at different levels."""
    data = [text(20_000), text(30_000)]
    (imagefs.root / "source").mkdir()
    for number, each in enumerate(data):
        (imagefs.root / f"source/{number}").write_bytes(each)
    first = imagefs.convert(f"dir:{imagefs.root}/source", "test", "--level", "12")
    optimized(imagefs, touching(data))
    assert imagefs.convert(f"dir:{imagefs.root}/source", "again", "--level", "12")["manifest"] == first["manifest"]


def test_golden_optimized_image(imagefs: World, tmp_path: Path) -> None:
    """A change here is a change of the layout, whose number in ``imagefs.format.optimized`` has to change with it."""
    assert sys.byteorder == "little" or pytest.skip("written for every byte order, recorded on one")
    assert optimized_digests(imagefs, tmp_path) == json.loads(GOLDEN.read_text())
