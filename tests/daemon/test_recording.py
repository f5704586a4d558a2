"""Recording, through the daemon and real mounts: what a program opens and reads becomes a document and a profile."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from imagefs.daemon import client
from imagefs.daemon.recording import OF_IMAGE_MAX
from imagefs.digest import digest_of
from imagefs.errors import NotFoundError, UsageError
from imagefs.format.accesses import GRAIN
from imagefs.format.profile import Profile
from imagefs.store.profiles import fetch, listing
from tests.daemon.place import Place
from tests.fuse.images import noise
from tests.system.world import require as require_feature
from tests.system.world import wait_until

BIG = noise(4_000_000, 1)
OTHER = noise(3_000_000, 2)
SMALL = {f"small/{number}": noise(200 + 41 * number, number) for number in range(40)}
MODES = ("kernel", "fuse")

_READ = "import sys\nfor name in sys.argv[1:]: open(name, 'rb').read()"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    require_feature("root", "mounts as root")
    found = Place(tmp_path / "place")
    yield found
    assert found.close() == []


@pytest.fixture
def manifest(place: Place) -> str:
    maker = place.maker()
    maker.file("big", BIG)
    maker.file("lib/other", OTHER)
    maker.file("inline", b"in the tree\n")
    maker.shared(SMALL)
    return maker.publish("test:latest")


def _mount(place: Place, manifest: str, mode: str, name: str = "mnt", **options: Any) -> Path:
    path = place.mountpoint(name)
    result = client.mount(place.config, mountpoint=path, manifest=manifest, mode=mode, **options)
    assert result["mode"] == mode
    return path


def _read(path: Path, *names: str) -> None:
    subprocess.run([sys.executable, "-c", _READ, *(path / name for name in names)], check=True)


def _umount(place: Place, path: Path) -> None:
    client.umount(place.config, str(path))


def _documents(place: Place) -> list[dict[str, Any]]:
    folder = place.config.cache / "starts"
    files = sorted(folder.glob("*.json.zst"), key=lambda path: path.stat().st_mtime_ns) if folder.exists() else []
    return [json.loads(zstandard.ZstdDecompressor().decompress(path.read_bytes(), max_output_size=1 << 28)) for path in files]


def _document(place: Place, count: int = 1) -> dict[str, Any]:
    """Return the document of the last Start, as soon as there are so many."""
    wait_until(lambda: len([found for found in _documents(place) if found["ended"] != "running"]) >= count, "the document")
    return _documents(place)[-1]


def _profile(place: Place, manifest: str) -> Profile:
    wait_until(lambda: fetch(place.store, manifest, None) is not None, "the profile")
    found = fetch(place.store, manifest, None)
    assert found is not None
    return found


def _objects(profile: Profile) -> set[bytes]:
    return {access.object for access in profile.accesses}


def _keep_daemon(place: Place, manifest: str, mode: str = "fuse") -> None:
    """Have the daemon outlive the mounts of a test."""
    _mount(place, manifest, mode, "keep", record=False)


def _become_local(place: Place, manifest: str) -> None:
    """Bring all content to SSD, and have nothing of it in the page cache."""
    path = _mount(place, manifest, "kernel", "warm", record=False)
    for data, name in ((BIG, "big"), (OTHER, "lib/other"), *((data, name) for name, data in SMALL.items())):
        assert (path / name).read_bytes() == data
    folder = place.config.cache / "objects"
    names = [digest_of(data).hex() for data in (BIG, OTHER, *SMALL.values())]
    wait_until(lambda: all((folder / name[:2] / name[2:]).exists() for name in names), "all objects to be on SSD")
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def _requests(place: Place) -> int:
    counts: dict[str, int] = client.stats(place.config)["fuse_requests"]
    return sum(counts.values())


def _state(place: Place, path: Path) -> dict[str, Any]:
    (found,) = (mount for mount in client.status(place.config)["mounts"] if mount["mountpoint"] == str(path))
    return {name: found[name] for name in ("recording", "watched", "recording_reason")}


@pytest.mark.parametrize("mode", MODES)
def test_a_cold_start_is_recorded(place: Place, manifest: str, mode: str) -> None:
    _keep_daemon(place, manifest)
    path = _mount(place, manifest, mode, label="training")
    assert _state(place, path)["recording"]
    wanted = ["lib/other", "small/7", "small/3", "inline"]
    _read(path, *wanted)
    _umount(place, path)
    document = _document(place)
    assert (document["ended"], document["mode"], document["label"], document["manifest"]) == ("unmounted", mode, "training", manifest)
    assert document["entry"][:3] == [sys.executable, "-c", _READ]
    files = [file["path"] for file in document["files"]]
    assert files == [f"/{name}" for name in wanted] or sorted(files) == sorted(f"/{name}" for name in wanted)
    opened = [files[row[1]] for row in document["opens"]]
    assert [name for name in opened if name != "/inline"] == ["/lib/other", "/small/7", "/small/3"]
    assert {document["processes"][row[2]]["command"] for row in document["opens"]} == {" ".join(document["entry"])}
    assert {row[5] for row in document["reads"]} <= {1, 2, 3}
    assert document["gets"], "content came from the store"
    waited = [row for row in document["reads"] if row[7] >= 0]
    assert waited
    assert all(row[1] > 0 and document["gets"][row[7]][3] > 0 for row in waited)
    assert document["lost"] == {"opens": 0, "reads": 0, "gets": 0}
    assert (document["image"]["files"], document["stats"]["store_bytes"] > 0) == (43, True)
    profile = _profile(place, manifest)
    assert _objects(profile) == {digest_of(data) for data in (OTHER, SMALL["small/7"], SMALL["small/3"])}
    assert profile.key.label == "training"
    assert [access for access in profile.accesses if access.object == digest_of(OTHER)][-1].end >= len(OTHER)


@pytest.mark.parametrize("mode", MODES)
def test_it_ends_when_it_has_gone_quiet(place: Place, manifest: str, mode: str) -> None:
    path = _mount(place, manifest, mode)
    _read(path, "small/1")
    document = _document(place)
    assert document["ended"] == "quiet"
    assert 5 <= document["seconds"] < 12
    assert _state(place, path) == {"recording": False, "watched": False, "recording_reason": "its start is over"}
    _read(path, "small/2")
    assert _objects(_profile(place, manifest)) == {digest_of(SMALL["small/1"])}


def test_what_is_local_is_recorded_and_nothing_is_asked(place: Place, manifest: str) -> None:
    _become_local(place, manifest)
    path = _mount(place, manifest, "kernel")
    if not _state(place, path)["watched"]:
        pytest.skip("opens cannot be watched here")
    before = _requests(place)
    with (path / "big").open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for grain in (3, 4, 40):
            os.pread(file.fileno(), 1, grain * GRAIN)
    _read(path, "small/9", "inline")
    assert _requests(place) == before
    _umount(place, path)
    document = _document(place)
    assert document["watched"]
    assert document["reads"] == []
    assert [row[3] for row in document["opens"]] == [1, 1, 1]
    profile = _profile(place, manifest)
    assert _objects(profile) == {digest_of(BIG), digest_of(SMALL["small/9"])}
    ranges = [(access.start // GRAIN, access.end // GRAIN) for access in profile.accesses if access.object == digest_of(BIG)]
    touched = {grain for first, last in ranges for grain in range(first, last)}
    assert {3, 4, 40} <= touched
    assert len(touched) < 20, "by ranges, not the whole"


def test_directories_that_are_not_known_yet_are_watched_soon(place: Place, manifest: str) -> None:
    """The first mount of an image that was brought here by other means: all of its directories are looked for meanwhile."""
    _become_local(place, manifest)
    path = _mount(place, manifest, "kernel")
    if not _state(place, path)["watched"]:
        pytest.skip("opens cannot be watched here")
    seen = f"{place.config.cache}/starts/{manifest}"
    for number in range(40):
        _read(path, f"small/{number}")
    _umount(place, path)
    document = _document(place)
    assert "/small/39" in {file["path"] for file in document["files"]}
    assert Path(f"{seen}.folders").exists(), "the next mount knows them from the beginning"
    again = _mount(place, manifest, "kernel", "again")
    _read(again, "small/0", "lib/other")
    _umount(place, again)
    assert [file["path"] for file in _document(place, 2)["files"]] == ["/small/0", "/lib/other"]


def test_opens_go_to_the_mount_that_they_came_through(place: Place, manifest: str) -> None:
    _become_local(place, manifest)
    one, two = (_mount(place, manifest, "kernel", name, label=name) for name in ("one", "two"))
    if not _state(place, one)["watched"]:
        pytest.skip("opens cannot be watched here")
    _read(one, "small/1")
    _read(two, "small/2")
    for path in (one, two):
        _umount(place, path)
    wait_until(lambda: len(list(listing(place.store, manifest))) == 4, "two recordings and a merge of each")
    found = {document["label"]: {file["path"] for file in document["files"]} for document in _documents(place)}
    assert found == {"one": {"/small/1"}, "two": {"/small/2"}}


def test_the_program_of_a_mount_is_who_opens_through_it_and_not_who_reads_the_same_through_another(place: Place, manifest: str) -> None:
    one, two = (_mount(place, manifest, "kernel", name, label=name) for name in ("one", "two"))
    if not _state(place, two)["watched"]:
        pytest.skip("opens cannot be watched here")
    # The content comes from the store, and the daemon is not told through which mount it is read.
    _read(one, "big", "lib/other")
    _read(two, "small/2", "small/3")
    for path in (one, two):
        _umount(place, path)
    _document(place, 2)
    entries = {document["label"]: document["entry"][-1] for document in _documents(place)}
    assert entries == {"one": f"{one}/lib/other", "two": f"{two}/small/3"}


def test_two_labels_in_fuse_mode_are_recorded_apart(place: Place, manifest: str) -> None:
    _keep_daemon(place, manifest)
    one = _mount(place, manifest, "fuse", "one", label="one")
    _read(one, "small/1")
    _umount(place, one)
    two = _mount(place, manifest, "fuse", "two", label="two")
    _read(two, "small/2")
    _umount(place, two)
    wait_until(lambda: len(list(listing(place.store, manifest))) == 4, "two recordings and a merge of each")
    labels = {row.pointer.key.label: row for row in listing(place.store, manifest) if row.pointer is not None}
    assert set(labels) == {"one", "two"}


@pytest.mark.parametrize("mode", ["kernel", "fuse"])
def test_of_many_mounts_of_one_image_a_few_are_recorded(place: Place, manifest: str, mode: str) -> None:
    points = [_mount(place, manifest, mode, f"m{number}") for number in range(OF_IMAGE_MAX + 2)]
    states = [_state(place, point) for point in points]
    assert [state["recording"] for state in states] == [True] * OF_IMAGE_MAX + [False] * 2
    assert "enough other starts" in states[-1]["recording_reason"]
    _umount(place, points[0])
    wait_until(lambda: client.stats(place.config)["starts_recorded"] == 1, "the first start to be over")
    assert _state(place, _mount(place, manifest, mode, "next"))["recording"]


def test_without_recording_there_is_none(place: Place, manifest: str) -> None:
    path = place.mountpoint()
    result = client.mount(place.config, mountpoint=path, manifest=manifest, record=False)
    assert (result["recording"], result["watched"], result["recording_reason"]) == (False, False, "asked for")
    assert _state(place, path) == {"recording": False, "watched": False, "recording_reason": "asked for"}
    _read(path, "small/1")
    with pytest.raises(NotFoundError, match="asked for"):
        client.call(place.config, "explain", mountpoint=str(path))
    _umount(place, path)
    wait_until(lambda: not client.instances(place.config), "the daemon to end")
    assert _documents(place) == []
    assert list(listing(place.store, manifest)) == []


@pytest.mark.parametrize("label", ["x" * 129, "two\nlines", "\x1b[0m"])
def test_what_is_no_label_is_refused(place: Place, manifest: str, label: str) -> None:
    with pytest.raises(UsageError, match="label"):
        _mount(place, manifest, "fuse", label=label)


@pytest.mark.parametrize("mode", MODES)
def test_a_worker_that_is_killed_takes_its_starts_along(place: Place, manifest: str, mode: str) -> None:
    path = _mount(place, manifest, mode)
    _read(path, "small/1")
    worker = int(client.status(place.config)["worker_pid"])
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: client.status(place.config)["worker_pid"] != worker, "another worker")
    _read(path, "small/2")
    assert _state(place, path) == {
        "recording": False,
        "watched": False,
        "recording_reason": "the process that recorded it was replaced",
    }
    again = _mount(place, manifest, mode, "again")
    _read(again, "small/3", "small/2")
    _umount(place, again)
    assert {file["path"] for file in _document(place)["files"]} == {"/small/3", "/small/2"}
    assert _objects(_profile(place, manifest)) == {digest_of(SMALL["small/3"]), digest_of(SMALL["small/2"])}


def test_a_worker_that_is_replaced_drops_them_too(place: Place, manifest: str) -> None:
    path = _mount(place, manifest, "fuse")
    _read(path, "small/1")
    client.call(place.config, "reload", timeout=60)
    assert not _state(place, path)["recording"]
    _umount(place, path)
    assert _documents(place) == []


def test_what_could_not_be_published_is_by_the_next_daemon(place: Place, manifest: str) -> None:
    _keep_daemon(place, manifest)
    hidden = place.root / "hidden"
    path = _mount(place, manifest, "fuse")
    _read(path, "small/1")
    (place.root / "store").rename(hidden)
    _umount(place, path)
    spool = place.config.cache / "profiles" / "spool"
    wait_until(lambda: spool.exists() and len(list(spool.iterdir())) == 1, "the profile to wait")
    client.stop(place.config)
    hidden.rename(place.root / "store")
    _mount(place, manifest, "fuse", "later", record=False)
    assert _objects(_profile(place, manifest)) == {digest_of(SMALL["small/1"])}
    wait_until(lambda: not list(spool.iterdir()), "the spool to be empty")


def test_a_store_that_may_only_be_read_is_told_of_once(place: Place, manifest: str) -> None:
    _keep_daemon(place, manifest)
    store = place.root / "store"
    subprocess.run(["mount", "--bind", store, store], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", store], check=True)
        for number in range(2):
            path = _mount(place, manifest, "fuse", f"mnt{number}")
            _read(path, f"small/{number}")
            _umount(place, path)
            _document(place, number + 1)
        wait_until(lambda: "profile_not_published" in place.log(), "the log to say so")
    finally:
        client.stop(place.config)
        subprocess.run(["umount", store], check=True)
    assert place.log().count('"profile_not_published"') == 1
    assert list(listing(place.store, manifest)) == []


def test_who_reads_all_at_random_or_nothing_is_recorded_in_bounds(place: Place, manifest: str) -> None:
    _keep_daemon(place, manifest)
    path = _mount(place, manifest, "fuse", "all")
    _read(path, "big", "lib/other", *SMALL)
    _umount(place, path)
    assert len(_document(place)["files"]) == 2 + len(SMALL)
    assert len(_objects(_profile(place, manifest))) == 2 + len(SMALL)
    nothing = _mount(place, manifest, "fuse", "nothing")
    list(nothing.rglob("*"))
    _umount(place, nothing)
    assert _document(place, 2)["files"] == []
    chance = random.Random(5)
    at_random = _mount(place, manifest, "fuse", "random")
    with (at_random / "big").open("rb") as file:
        for _ in range(500):
            os.pread(file.fileno(), 1 + chance.randrange(9000), chance.randrange(len(BIG)))
    _umount(place, at_random)
    document = _document(place, 3)
    assert len(document["files"]) == 1
    wait_until(lambda: len(list(listing(place.store, manifest))) >= 2, "what was recorded to be in the store")


def test_the_document_of_a_start_that_is_running_is_written_when_asked_for(place: Place, manifest: str) -> None:
    path = _mount(place, manifest, "kernel")
    _read(path, "small/1")
    answer = client.call(place.config, "explain", mountpoint=str(path))
    assert answer["running"]
    (document,) = _documents(place)
    assert document["ended"] == "running"
    assert [file["path"] for file in document["files"]] == ["/small/1"]
    _document(place)
    again = client.call(place.config, "explain", mountpoint=str(path))
    assert (again["path"], again["running"]) == (answer["path"], False), "what was written meanwhile is replaced"
    assert len(_documents(place)) == 1
    with pytest.raises(NotFoundError):
        client.call(place.config, "explain", mountpoint=str(place.root))


def test_stopping_the_daemon_keeps_what_was_recorded(place: Place, manifest: str) -> None:
    path = _mount(place, manifest, "kernel")
    _read(path, "small/1")
    client.stop(place.config)
    assert _document(place)["ended"] == "unmounted"
    assert _objects(_profile(place, manifest)) == {digest_of(SMALL["small/1"])}


def test_a_full_disk_costs_the_document_and_no_mount(place: Place, manifest: str) -> None:
    _keep_daemon(place, manifest)
    (place.config.cache / "starts").write_text("in the way")
    path = _mount(place, manifest, "fuse")
    _read(path, "small/1")
    _umount(place, path)
    wait_until(lambda: "start_not_kept" in place.log(), "the log to say so")
    assert _objects(_profile(place, manifest)) == {digest_of(SMALL["small/1"])}
