"""A checkpoint goes into a store and comes out of a mount as it was; what a lineage has is not stored again; nothing is left half."""

import errno
import fnmatch
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from imagefs.convert.convert import convert
from imagefs.convert.known import KnownPacks
from imagefs.daemon import client
from imagefs.digest import digest_of
from imagefs.errors import IntegrityError, NotFoundError, SourceError, StoreError, StoreFullError, UnsupportedError, UsageError
from imagefs.store.base import ObjectStore
from imagefs.store.opening import open_store
from imagefs.store.refs import Ref, read
from snapshotstore import lineage, manifest
from snapshotstore.contents import open_index
from snapshotstore.fingerprints import PAGE
from snapshotstore.listing import listing
from snapshotstore.manifest import Economics
from snapshotstore.repository import amend, inspect, push
from snapshotstore.verifying import Verifier
from tests.daemon.place import Place
from tests.snapshots.checkpoints import changed, checkpoint, map_of, memory, objects_of, record, stored
from tests.store.faulty import Fault, FaultyStore, flipped
from tests.system.compare import differences, snapshot
from tests.system.world import require as require_feature
from tests.system.world import wait_until

REF = Ref("service", "criu")
PAGES = 3000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    opened = open_store(f"file://{tmp_path}/store", create=True)
    yield opened
    opened.close()


def put(store: ObjectStore, folder: Path, data: bytes, ref: Ref = REF) -> str:
    """Push a program with this memory; return the manifest."""
    return push(store, checkpoint(folder, data), record(), ref).manifest


def total(store: ObjectStore, start: str = "") -> int:
    return sum(size for key, size in stored(store).items() if key.startswith(start))


# -- what comes out is what went in -------------------------------------------------------------------------------------------------------


def test_a_mount_of_it_is_what_was_pushed(tmp_path: Path) -> None:
    require_feature("root", "mounts through /dev/fuse as root, and makes whiteouts")
    place = Place(tmp_path / "place")
    first, second = memory(PAGES, zero=0.2), changed(memory(PAGES, zero=0.2), 0.05, seed=9)
    try:
        for number, data in enumerate((first, bytes(5 * PAGE) + second + b"not a page")):
            folder = checkpoint(tmp_path / f"checkpoint-{number}", data, root=True)
            folder.chmod(0o700)
            report = push(place.store, folder, record(), REF)
            path = place.mountpoint(f"mnt-{number}")
            client.mount(place.config, mountpoint=path, manifest=report.manifest, mode="fuse")
            assert differences(snapshot(folder), snapshot(path)) == []
            assert (path / "engine/pages-1.img").read_bytes() == data
            client.umount(place.config, path)
    finally:
        assert place.close() == []


def test_an_object_has_the_digest_of_its_file(store: ObjectStore, tmp_path: Path) -> None:
    data = memory(PAGES, zero=0.3) + b"end"
    folder = checkpoint(tmp_path / "c", data)
    found = objects_of(store, push(store, folder, record(), REF).manifest)
    for path in ("engine/pages-1.img", "engine/core-1.img", "layer/usr/lib/compiled.so"):
        content = (folder / path).read_bytes()
        assert found[digest_of(content)] == content
    assert len(found) == 5


def test_only_the_owner_may_enter_the_root(store: ObjectStore, tmp_path: Path) -> None:
    require_feature("root", "mounts through /dev/fuse as root")
    place = Place(tmp_path / "place")
    folder = checkpoint(tmp_path / "c", memory(10))
    folder.chmod(0o755)
    try:
        name = push(place.store, folder, record(), REF).manifest
        path = place.mountpoint()
        client.mount(place.config, mountpoint=path, manifest=name, mode="fuse")
        assert path.stat().st_mode & 0o777 == 0o700
    finally:
        assert place.close() == []


def test_the_kernel_never_reads_a_snapshot_past_the_daemon(tmp_path: Path) -> None:
    require_feature("root", "mounts through /dev/fuse as root")
    place = Place(tmp_path / "place")
    try:
        name = push(place.store, checkpoint(tmp_path / "c", memory(10)), record(), REF).manifest
        result = client.mount(place.config, mountpoint=place.mountpoint(), manifest=name, mode="auto")
        assert (result["mode"], "verifies" in result["reason"]) == ("fuse", True)
        with pytest.raises(UnsupportedError, match="through the daemon"):
            client.mount(place.config, mountpoint=place.mountpoint("kernel"), manifest=name, mode="kernel")
        with pytest.raises(UnsupportedError, match="through the daemon"):
            client.mount(place.config, mountpoint=place.mountpoint("upper"), manifest=name, mode="auto", upper=str(tmp_path / "up"))
    finally:
        assert place.close() == []


def test_a_warm_host_has_the_pages_that_it_shares_on_its_disk(tmp_path: Path) -> None:
    require_feature("root", "mounts through /dev/fuse as root")
    place = Place(tmp_path / "place")
    data = memory(PAGES, zero=0.3)
    try:
        first = push(place.store, checkpoint(tmp_path / "one", data), record(), REF).manifest
        other = changed(data, 0.02, seed=4)
        second = push(place.store, checkpoint(tmp_path / "two", other), record(), REF).manifest
        point = place.mountpoint()
        client.mount(place.config, mountpoint=point, manifest=second, mode="fuse", prefetch=False)
        assert (point / "engine/pages-1.img").read_bytes() == other
        client.call(place.config, "cache", action="verify")  # which waits until what was read has landed
        client.stop(place.config)
        client.mount(place.config, mountpoint=point, manifest=second, mode="fuse", prefetch=False)
        assert (point / "engine/pages-1.img").read_bytes() == other
        stats = client.stats(place.config)
        assert stats["bytes_read"]["store"] == 0
        assert stats["bytes_read"]["ssd"] > 0
        assert first
    finally:
        assert place.close() == []


def test_files_that_are_not_memory_are_cut_as_in_images(store: ObjectStore, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", memory(100))
    report = push(store, folder, record(), REF, memory=())
    assert report.memory_bytes == 0
    assert len(objects_of(store, report.manifest)) == 5


def test_a_sparse_file_is_read_where_it_has_data(store: ObjectStore, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", b"")
    with (folder / "engine/pages-1.img").open("wb") as file:
        file.truncate(64 << 20)
        file.seek(20 << 20)
        file.write(memory(3))
    report = push(store, folder, record(), REF)
    assert (report.memory_bytes, report.zero_bytes, report.stored_bytes) == (64 << 20, (64 << 20) - 3 * PAGE, 3 * PAGE)
    assert objects_of(store, report.manifest)[digest_of((folder / "engine/pages-1.img").read_bytes())]


# -- what it costs ------------------------------------------------------------------------------------------------------------------------


def test_zero_pages_cost_nothing(store: ObjectStore, tmp_path: Path) -> None:
    data = memory(500)
    plain = push(store, checkpoint(tmp_path / "a", data), record("a"), REF)
    before = total(store, "packs/")
    spread = b"".join(data[at : at + PAGE] + bytes(3 * PAGE) for at in range(0, len(data), PAGE))
    report = push(store, checkpoint(tmp_path / "b", spread), record("b"), REF)
    assert report.zero_bytes == 3 * len(data)
    assert report.stored_bytes == plain.stored_bytes
    # The frames are the same, and so the packs are.
    assert total(store, "packs/") == before


def test_memory_of_zeros_alone_has_no_frame(store: ObjectStore, tmp_path: Path) -> None:
    report = push(store, checkpoint(tmp_path / "a", bytes(1000 * PAGE)), record(), REF)
    assert (report.zero_bytes, report.stored_bytes) == (1000 * PAGE, 0)
    assert bytes(1000 * PAGE) in objects_of(store, report.manifest).values()


def test_the_next_snapshot_adds_what_changed(store: ObjectStore, tmp_path: Path) -> None:
    data = memory(PAGES)
    put(store, tmp_path / "a", data)
    before = total(store)
    later = changed(data, 0.01, seed=1)
    folder = checkpoint(tmp_path / "b", later)
    report = push(store, folder, record(), REF)
    assert total(store) - before == report.new_bytes + len(store.get(lineage.prefix("service") + report.manifest))
    assert total(store) - before <= 0.02 * report.bytes_logical
    assert report.known_bytes == len(data) - report.stored_bytes
    assert report.stored_bytes == 30 * PAGE
    objects_of(store, report.manifest)


def test_the_same_again_adds_next_to_nothing(store: ObjectStore, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", memory(PAGES))
    push(store, folder, record(), REF)
    report = push(store, folder, record(), REF)
    assert (report.stored_bytes, report.packs_new) == (0, 0)
    assert report.new_bytes < 5000


def test_pages_that_moved_are_known(store: ObjectStore, tmp_path: Path) -> None:
    data = memory(PAGES)
    put(store, tmp_path / "a", data)
    half = PAGES // 2 * PAGE
    moved = memory(7, seed=5) + data[half:] + bytes(PAGE) + data[:half]
    report = push(store, checkpoint(tmp_path / "b", moved), record(), REF)
    assert report.stored_bytes == 7 * PAGE
    objects_of(store, report.manifest)


def test_twenty_members_take_half_as_much_again_as_one(store: ObjectStore, tmp_path: Path) -> None:
    data = memory(PAGES)
    put(store, tmp_path / "0", data)
    one = total(store)
    for number in range(1, 20):
        put(store, tmp_path / str(number), changed(data, 0.01, seed=number), Ref("service", f"v{number}"))
    assert total(store) <= 1.5 * one
    objects_of(store, read(store, Ref("service", "v19")).manifest)


def test_another_lineage_shares_nothing(store: ObjectStore, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", memory(100))
    push(store, folder, record("one"), REF)
    assert push(store, folder, record("other"), REF).known_bytes == 0


def test_members_keep_the_pages_of_one_that_was_removed(store: ObjectStore, tmp_path: Path) -> None:
    data = memory(PAGES)
    first = put(store, tmp_path / "a", data)
    put(store, tmp_path / "b", changed(data, 0.01, seed=1))
    store.delete(f"manifests/{first}")
    assert lineage.forget(store, "service", first)
    report = push(store, checkpoint(tmp_path / "c", data), record(), REF)
    assert report.stored_bytes == 0


def test_what_it_read_from_a_lineage_is_bounded(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = memory(60, seed=1), memory(60, seed=2)
    put(store, tmp_path / "a", old)
    put(store, tmp_path / "b", new)
    for number, key in enumerate(sorted(info.key for info in store.list("lineages/"))):
        os.utime(tmp_path / "store" / key, (number, number))
    monkeypatch.setattr(lineage, "PAGES_MAX", 100)
    assert len(lineage.load(store, "service").index) == 60
    monkeypatch.setattr(lineage, "TABLES_MAX", 1)
    monkeypatch.setattr(lineage, "PAGES_MAX", 1000)
    assert len(lineage.load(store, "service").index) == 60
    monkeypatch.setattr(lineage, "TABLES_MAX", 2)
    assert len(lineage.load(store, "service").index) == 120


# -- what goes wrong ----------------------------------------------------------------------------------------------------------------------

_PUSH = """
import sys
from pathlib import Path
from imagefs.store.opening import open_store
from imagefs.store.refs import Ref
from snapshotstore.repository import push
from tests.snapshots.checkpoints import record
push(open_store(sys.argv[1]), Path(sys.argv[2]), record(), Ref("service", "criu"), level=12)
"""


def test_a_push_that_was_killed_is_used_by_the_next(store: ObjectStore, tmp_path: Path) -> None:
    put(store, tmp_path / "a", memory(50))
    there = dict(stored(store))
    named = read(store, REF).manifest
    folder = checkpoint(tmp_path / "b", memory(20_000, seed=3))
    process = subprocess.Popen([sys.executable, "-c", _PUSH, store.url, str(folder)], cwd=Path(__file__).parents[2])
    try:
        wait_until(lambda: process.poll() is not None or len(stored(store)) >= len(there) + 2, "packs", 60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    left = stored(store)
    assert process.returncode == -signal.SIGKILL
    assert read(store, REF).manifest == named
    # But its lease, which ends by itself.
    assert {key for key in left if not key.startswith(("packs/", "blobs/", "leases/"))} == {
        key for key in there if not key.startswith(("packs/", "blobs/"))
    }
    objects_of(store, named)
    report = push(store, folder, record(), REF, level=12)
    objects_of(store, report.manifest)
    # Nothing is there that the finished one does not have.
    named_packs = {f"packs/{pack.hex()}" for pack in _packs(store, report.manifest)}
    assert {key for key in left if key.startswith("packs/")} - there.keys() <= named_packs


def _packs(store: ObjectStore, name: str) -> list[bytes]:
    objects = map_of(store, inspect(store, name).manifest)
    return [objects.pack(number).digest for number in range(objects.pack_count)]


@pytest.mark.parametrize("keys", ["packs/*", "blobs/*", "manifests/*", "lineages/*", "refs/*"])
@pytest.mark.parametrize("error", [StoreFullError("no room"), StoreError("away")])
def test_a_store_that_fails_at_any_step(store: ObjectStore, tmp_path: Path, keys: str, error: Exception) -> None:
    named = put(store, tmp_path / "a", memory(50))
    folder = checkpoint(tmp_path / "b", memory(PAGES, seed=3))
    threads = set(threading.enumerate())
    for op in ("put_if_absent", "replace"):
        faulty = FaultyStore(store, [Fault(op, keys, error=error)])
        if any(one == op and fnmatch.fnmatch(key, keys) for one, key in _calls(store, tmp_path, folder)):
            with pytest.raises(type(error)):
                push(faulty, folder, record(), Ref("service", "other"))
            with pytest.raises(NotFoundError):
                read(store, Ref("service", "other"))
    assert read(store, REF).manifest == named
    assert set(threading.enumerate()) <= threads
    objects_of(store, push(store, folder, record(), REF).manifest)


def _calls(store: ObjectStore, tmp_path: Path, folder: Path) -> list[tuple[str, str]]:
    """Return what a push asks a store for."""
    empty = open_store(f"file://{tmp_path}/empty", create=True)
    watched = FaultyStore(empty)
    push(watched, folder, record(), REF)
    empty.close()
    return watched.calls


@pytest.mark.parametrize("kind", ["lineages/*", "blobs/*"])
def test_a_damaged_index_costs_what_it_would_have_saved(store: ObjectStore, tmp_path: Path, kind: str) -> None:
    put(store, tmp_path / "a", memory(PAGES))
    faulty = FaultyStore(store, [Fault("get", kind, change=flipped)])
    folder = checkpoint(tmp_path / "b", memory(PAGES))
    report = push(faulty, folder, record(), REF)
    assert report.known_bytes == 0
    objects_of(store, report.manifest)
    assert push(store, folder, record(), REF).stored_bytes == 0


def test_what_is_gone_from_the_store_is_not_referred_to(store: ObjectStore, tmp_path: Path) -> None:
    put(store, tmp_path / "a", memory(5000))
    packs = [key for key, size in stored(store).items() if key.startswith("packs/") and size > 2_000_000]
    store.delete(packs[0])
    report = push(store, checkpoint(tmp_path / "b", memory(5000)), record(), REF)
    assert 0 < report.stored_bytes < report.memory_bytes
    objects_of(store, report.manifest)


def test_a_store_that_is_away_is_no_empty_lineage(store: ObjectStore, tmp_path: Path) -> None:
    put(store, tmp_path / "a", memory(50))
    folder = checkpoint(tmp_path / "b", memory(50))
    for op, keys in (("list", "lineages/*"), ("get", "lineages/*"), ("get", "blobs/*"), ("head", "packs/*")):
        with pytest.raises(StoreError, match="away"):
            push(FaultyStore(store, [Fault(op, keys, error=StoreError("away"))]), folder, record(), REF)


def test_a_flipped_byte_is_never_read(tmp_path: Path) -> None:
    require_feature("root", "mounts through /dev/fuse as root")
    place = Place(tmp_path / "place")
    data = memory(PAGES)
    try:
        name = put(place.store, tmp_path / "c", data)
        largest = max(stored(place.store).items(), key=lambda item: item[1])[0]
        pack = tmp_path / "place/store" / largest
        pack.chmod(0o600)
        content = bytearray(pack.read_bytes())
        content[len(content) // 2] ^= 1
        pack.write_bytes(content)
        path = place.mountpoint()
        client.mount(place.config, mountpoint=path, manifest=name, mode="fuse")
        read_ok, failed = 0, 0
        with (path / "engine/pages-1.img").open("rb", buffering=0) as file:
            for at in range(0, len(data), PAGE):
                try:
                    assert os.pread(file.fileno(), PAGE, at) == data[at : at + PAGE]
                    read_ok += 1
                except OSError as error:
                    failed += error.errno == errno.EIO
        assert 0 < failed <= 1024
        assert read_ok + failed == PAGES
    finally:
        assert place.close() == []


def damage(store: ObjectStore, key: str) -> None:
    data = store.get(key)
    store.delete(key)
    store.put_if_absent(key, flipped(data))


def refers_to(store: ObjectStore, name: str) -> set[str]:
    """Return the keys of all packs and blobs of a snapshot, and its manifest's."""
    found = inspect(store, name).manifest
    blobs = [found.tree, found.objects, *manifest.pages_of(found.annotations)]
    packs = {f"packs/{pack.hex()}" for pack in _packs(store, name)}
    return {*packs, *(f"blobs/{blob.digest}" for blob in blobs), f"manifests/{name}"}


def is_whole(store: ObjectStore, name: str) -> bool:
    """Whether all of a snapshot can be read, and is what it should be."""
    with Verifier(store, jobs=2) as verifier:
        return verifier.verify(open_index(store, inspect(store, name))).damage == []


@pytest.mark.parametrize("kind", ["packs", "blobs", "manifests"])
def test_what_is_damaged_is_written_again_by_a_push_that_looks(tmp_path: Path, kind: str) -> None:
    data = memory(PAGES, zero=0.1)
    folder, other = checkpoint(tmp_path / "a", data), checkpoint(tmp_path / "b", changed(data, 0.01, seed=3))
    number, keys = 0, ["the first of them"]
    while number < len(keys):
        with closing(open_store(f"file://{tmp_path}/store-{number}", create=True)) as store:
            name = push(store, folder, record(), REF).manifest
            keys = sorted(key for key in refers_to(store, name) if key.startswith(f"{kind}/"))
            damage(store, keys[number])
            report = push(store, folder, record(), REF, recheck=True)
            assert is_whole(store, report.manifest)
            assert report.healed == (keys[number] in refers_to(store, report.manifest))
            # Nor does what is pushed from now on refer to anything that is damaged, though it does not look.
            later = push(store, other, record(), Ref("service", "later"))
            assert is_whole(store, later.manifest)
            assert later.known_bytes > later.stored_bytes
        number += 1
    assert number >= {"packs": 3, "blobs": 3, "manifests": 1}[kind]


def test_pages_that_another_member_lost_are_stored_anew_and_no_member_to_come_refers_to_them(store: ObjectStore, tmp_path: Path) -> None:
    data = memory(PAGES)
    first = put(store, tmp_path / "a", data)
    # It has them all, and some of its own.
    put(store, tmp_path / "b", changed(data, 0.01, seed=1), Ref("service", "b"))
    (large,) = [key for key in refers_to(store, first) if key.startswith("packs/") and stored(store)[key] > PAGES * PAGE // 2]
    damage(store, large)
    folder = checkpoint(tmp_path / "c", changed(data, 0.01, seed=2))
    assert not is_whole(store, push(store, folder, record(), REF).manifest)
    report = push(store, folder, record(), REF, recheck=True)
    assert is_whole(store, report.manifest)
    assert (report.healed, report.stored_bytes > PAGES * PAGE // 2) == (0, True)
    later = push(store, checkpoint(tmp_path / "d", changed(data, 0.01, seed=3)), record(), REF)
    assert is_whole(store, later.manifest)
    assert later.stored_bytes < PAGES * PAGE // 20


def test_a_push_that_looks_shares_what_is_right(store: ObjectStore, tmp_path: Path) -> None:
    data = memory(PAGES)
    put(store, tmp_path / "a", data)
    pointers = [info.key for info in store.list("lineages/")]
    watched = FaultyStore(store)
    report = push(watched, checkpoint(tmp_path / "b", changed(data, 0.01, seed=1)), record(), REF, recheck=True)
    assert (report.healed, report.stored_bytes) == (0, PAGES // 100 * PAGE)
    # All that it relies on was read; nothing of it was written, nor is any of it forgotten.
    new = {key for op, key in watched.calls if op == "put_if_absent"}
    relied = {key for key in refers_to(store, report.manifest) if key.startswith("packs/")} - new
    assert relied
    assert relied <= {key for op, key in watched.calls if op == "get"}
    written_over = {key for op, key in watched.calls if op in {"replace", "delete"}}
    assert not [key for key in written_over if key.startswith(("packs/", "blobs/", "manifests/", "lineages/"))]
    assert set(pointers) < {info.key for info in store.list("lineages/")}


def test_a_directory_that_changes_is_refused(store: ObjectStore, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", memory(2000))
    file = folder / "engine/pages-1.img"

    def touch(_: object) -> None:
        with file.open("r+b") as handle:
            handle.write(b"x")

    with pytest.raises(SourceError, match="changed while it was read"):
        push(store, folder, record(), REF, progress=touch)
    with pytest.raises(NotFoundError):
        read(store, REF)


def test_two_that_publish_the_same_at_once(store: ObjectStore, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", memory(PAGES))
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(lambda _: push(store, folder, record(), REF), range(2)))
    assert read(store, REF).manifest in {report.manifest for report in reports}
    for report in reports:
        objects_of(store, report.manifest)


# -- finding ------------------------------------------------------------------------------------------------------------------------------


def test_it_is_found_with_its_record(store: ObjectStore, tmp_path: Path) -> None:
    report = push(store, checkpoint(tmp_path / "a", memory(100)), record(), REF)
    found = inspect(store, "service:criu")
    assert (found.name, found.manifest.kind, found.manifest.files) == (report.manifest, "snapshot", report.files)
    assert found.record.economics.logical == report.bytes_logical == found.manifest.bytes
    assert found.record.lineage == "service"
    assert manifest.pages_of(found.manifest.annotations)


def test_an_image_is_no_snapshot_and_a_snapshot_no_source_of_packs(store: ObjectStore, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", memory(100))
    put(store, tmp_path / "b", memory(100))
    assert not KnownPacks.load(store, tmp_path)._rows
    convert(f"dir:{folder}", Ref("image"), store, jobs=1)
    assert KnownPacks.load(store, tmp_path)._rows
    with pytest.raises(UnsupportedError, match="no snapshot"):
        inspect(store, "image")


def test_variants_stand_under_one_name(store: ObjectStore, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", memory(100))
    for tag in ("criu", "runsc"):
        push(store, folder, record(), Ref("service", tag))
    push(store, folder, record(), Ref("service/other", "criu"))
    convert(f"dir:{folder}", Ref("service", "image"), store, jobs=1)
    (tmp_path / "store/refs/service/damaged").write_bytes(b"{}")
    found = listing(store, "service")
    assert [str(one.ref) for one in found.snapshots] == ["service:criu", "service:runsc"]
    assert [str(one.ref) for one in found.images] == ["service:image"]
    assert {str(ref): type(error) for ref, error in found.unreadable} == {"service:damaged": IntegrityError}
    assert listing(store, "nothing") == ([], [], [])
    with pytest.raises(UsageError):
        listing(store, "../x")


def test_a_record_can_be_amended(store: ObjectStore, tmp_path: Path) -> None:
    put(store, tmp_path / "a", memory(100))
    found = inspect(store, str(REF))
    worse = record(economics=Economics(failures=2, quarantined="two crashes"))
    name = amend(store, found, worse, REF)
    again = inspect(store, str(REF))
    assert (again.name, again.record) == (name, worse)
    assert again.manifest.objects == found.manifest.objects
    with pytest.raises(UsageError):
        amend(store, found, record("other"), REF)
