"""Profiles on a real S3 server: hosts publish at once, by the command and by the library; and on a server that refuses."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from imagefs.digest import digest_of
from imagefs.errors import AccessError, StoreError
from imagefs.format.profile import EVERY_START, GRAIN, Access, Key, Profile, decode, encode
from imagefs.store.opening import open_store
from imagefs.store.profiles import fetch, listing, publish, read_one, remove
from imagefs.store.s3 import S3Store
from tests.format.profiles import MANIFEST, program
from tests.store.fake_s3 import FakeS3, error, never
from tests.store.starts import SERVE, TRAIN, id_of, ids, merges, own, recordings, start
from tests.store.test_s3_errors import on
from tests.system.world import World, require, wait_until
from tests.weed import Weed

HOSTS = 6


def test_what_hosts_publish_is_listed_read_merged_and_removed(s3: S3Store) -> None:
    large = program(1, 10_000, 3_000)
    assert publish(s3, large) == id_of(large)
    assert fetch(s3, MANIFEST, None) == large
    for number in range(3):
        publish(s3, start(number), always=True)
        publish(s3, start(100 + number, key=SERVE), always=True)
    assert own(fetch(s3, MANIFEST, TRAIN)) == {0, 1, 2}
    assert own(fetch(s3, MANIFEST, SERVE)) == {100, 101, 102}
    found = list(listing(s3, MANIFEST))
    assert [info.problem for info in found] == [""] * 10, "seven recordings, and a merge of each key"
    assert read_one(s3, MANIFEST, id_of(start(1))) == start(1)
    assert remove(s3, MANIFEST, [id_of(start(1))]) == [id_of(start(1))]
    assert own(fetch(s3, MANIFEST, TRAIN)) == {0, 2}
    remove(s3, MANIFEST)
    assert ids(s3) == set()
    assert list(s3.list("blobs/")) == []


def test_hosts_that_publish_at_once_lose_nothing(s3: S3Store) -> None:
    """Each write is conditional: who comes second for a key leaves what is there, and is told nothing bad."""
    together = threading.Barrier(HOSTS)
    errors: list[BaseException] = []

    def host(number: int) -> None:
        store = open_store(s3.url)
        try:
            together.wait(30)
            # The first is the same for all of them.
            for profile in (start(0), start(1 + number), start(100 + number)):
                publish(store, profile, always=True)
        except BaseException as error:  # noqa: BLE001 # of a thread
            errors.append(error)
        finally:
            store.close()

    threads = [threading.Thread(target=host, args=(number,)) for number in range(HOSTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert errors == []
    published = {0, *range(1, 1 + HOSTS), *range(100, 100 + HOSTS)}
    assert recordings(s3) == {id_of(start(number)) for number in published}
    # Who merged last has perhaps not seen all, and readers take those too; the next one makes one merge of all.
    found = fetch(s3, MANIFEST, TRAIN)
    assert found is not None
    assert found.starts == len(published)
    publish(s3, start(200), always=True)
    merged = [info.pointer for info in listing(s3, MANIFEST) if info.pointer is not None and info.pointer.is_merge]
    assert [pointer.inputs for pointer in merged] == [recordings(s3)]


def test_the_command_publishes_lists_merges_moves_and_removes(weed: Weed, make_world: Callable[[str], World], tmp_path: Path) -> None:
    worlds, manifest = [], ""
    for name in ("one", "two"):
        world = make_world(name)
        world.environment |= weed.environment | {"IMAGEFS_STORE": f"s3://world/{tmp_path.name}-{name}"}
        worlds.append(world)
        source = world.root / "source"
        source.mkdir()
        for number in range(3):
            (source / f"file{number}").write_bytes(bytes([number]) * 100_000)
        manifest = world.convert(f"dir:{source}", "app:1")["manifest"]
    one, two = worlds
    files = []
    for number in range(3):
        touched = [Access(digest_of(bytes([index]) * 100_000), 0, 2 * GRAIN, index, EVERY_START) for index in range(number + 1)]
        path = tmp_path / f"start{number}"
        path.write_bytes(encode(Profile(manifest, Key("python train.py"), 1, touched)))
        files.append(path)
    for path in files:
        one.run("profile", "import", "app:1", path)
    listed = one.run("profile", "ls", "app:1", "--json").json["profiles"]
    assert sorted(row["kind"] for row in listed) == ["merge", "start", "start", "start"]
    shown = one.run("profile", "show", "app:1", "--key", "python train.py", "--json").json["profile"]
    assert (shown["starts"], [row["path"] for row in shown["accesses"]]) == (3, ["/file0", "/file1", "/file2"])
    one.run("profile", "export", "app:1", tmp_path / "exported")
    one.run("profile", "merge", tmp_path / "merged", *files)
    assert decode((tmp_path / "exported").read_bytes()).starts == decode((tmp_path / "merged").read_bytes()).starts == 3
    two.run("profile", "import", "app:1", tmp_path / "exported")
    there = two.run("profile", "show", "app:1", "--json").json["profile"]
    assert there == shown
    one.run("profile", "rm", "app:1", listed[-1]["id"])
    assert len(one.run("profile", "ls", "app:1", "--json").json["profiles"]) == 3
    one.run("profile", "rm", "app:1")
    assert one.run("profile", "ls", "app:1", "--json").json["profiles"] == []
    assert one.attempt("profile", "show", "app:1").status != 0


# -- a server that refuses -------------------------------------------------------------------------------------------------------------


def test_who_may_only_read_is_told_so_and_reads_all_the_same(s3: S3Store, weed: Weed, aws: Callable[[Mapping[str, str]], None]) -> None:
    publish(s3, start(1), always=True)
    before = ids(s3)
    aws(weed.reading)
    reader = open_store(s3.url)
    with pytest.raises(AccessError):
        publish(reader, start(2), always=True)
    assert fetch(reader, MANIFEST, None) == start(1)
    with pytest.raises(AccessError):
        remove(reader, MANIFEST)
    reader.close()
    aws(weed.environment)
    assert ids(s3) == before
    assert publish(s3, start(2), always=True) == id_of(start(2))


def test_a_host_that_may_only_read_records_for_itself_and_says_so_once(
    weed: Weed, make_world: Callable[[str], World], tmp_path: Path
) -> None:
    require("root", "mounts through /dev/fuse as root")
    writer, reader = make_world("writer"), make_world("reader")
    store = {"IMAGEFS_STORE": f"s3://world/{tmp_path.name}", "IMAGEFS_LOG_LEVEL": "info"}
    writer.environment |= weed.environment | store
    reader.environment |= weed.reading | store
    source = tmp_path / "source"
    source.mkdir()
    for number in range(4):
        (source / f"file{number}").write_bytes(bytes([number]) * 200_000)
    writer.convert(f"dir:{source}")
    keep = reader.mount("test", "keep", "--no-record", "--no-prefetch")
    for number in range(2):
        point = reader.mount("test", f"mnt{number}")
        (point / f"file{number}").read_bytes()
        reader.umount(point)
        wait_until(lambda number=number: len(list((reader.cache / "starts").glob("*.zst"))) > number, "the start to be kept")  # type: ignore[misc]
    local = reader.cache / "profiles"
    wait_until(lambda: bool([path for path in local.glob("*.local") if path.stat().st_size > 0]), "it to be kept on this host")
    wait_until(lambda: not list((local / "spool").iterdir()), "nothing to wait for a store that takes nothing")
    assert reader.logs().count("profile_not_published") == 1
    assert writer.run("profile", "ls", "test", "--json").json["profiles"] == []
    point = reader.mount("test", "again", "--wait-prefetch")
    assert reader.stats()["profile_bytes"] == 0, "it is here"
    reader.run("cache", "clear")
    reader.umount(point)
    reader.umount(keep)
    wait_until(lambda: not reader.pids(), "the daemon to end with its last mount")
    reader.mount("test", "again", "--wait-prefetch")
    assert reader.stats()["profile_bytes"] >= 2 * 200_000, "what the host itself has recorded is prefetched"


def test_who_may_not_delete_leaves_what_is_superfluous_and_publishes(fake: FakeS3, faked: S3Store) -> None:
    publish(faked, start(1), always=True)
    fake.before = on("DELETE", error(403, "AccessDenied"))
    publish(faked, start(2), always=True)
    assert len(merges(faked)) == 2
    fake.before = never
    assert own(fetch(faked, MANIFEST, None)) == {1, 2}
    publish(faked, start(3), always=True)
    assert len(merges(faked)) == 1


def test_a_conflict_is_no_error_of_who_comes_second(fake: FakeS3, faked: S3Store) -> None:
    """A server says of two that write the same key at once that one is to try again, or that it is there."""
    fake.before = on("PUT", error(409, "ConditionalRequestConflict"), times=2)
    assert publish(faked, start(1), always=True) == id_of(start(1))
    other = open_store(faked.url)
    assert publish(other, start(1), always=True) == id_of(start(1))
    other.close()
    assert recordings(faked) == {id_of(start(1))}
    fake.before = on("PUT", error(409, "ConditionalRequestConflict"))
    with pytest.raises(StoreError):
        publish(faked, start(2), always=True)
    fake.before = never
    assert fetch(faked, MANIFEST, None) == start(1)
