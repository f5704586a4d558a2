"""Leases: what is written, for how long it counts, what a writer does with it, and what those do who cannot have one."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from imagefs.convert.convert import convert
from imagefs.digest import Buffer
from imagefs.errors import AccessError, ConflictError, ImageFSError, StoreError, StoreFullError
from imagefs.store import leases as module
from imagefs.store.base import ObjectStore
from imagefs.store.leases import COLLECTOR, LIFE_MAX, MARGIN, WRITER_LIFE, Lease, LeaseDocument, Writing, collecting, lease_key, leases
from imagefs.store.opening import open_store
from imagefs.store.refs import Ref
from snapshotstore.repository import push
from tests.snapshots.checkpoints import checkpoint, memory, record
from tests.store.faulty import Fault, FaultyStore

MANIFESTS = ["cd" * 32, "ab" * 32]


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    if request.param == "s3":
        yield request.getfixturevalue("s3")
        return
    opened = open_store(f"file://{tmp_path}/store", create=True)
    yield opened
    opened.close()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[ObjectStore]:
    opened = open_store(f"file://{tmp_path}/local", create=True)
    yield opened
    opened.close()


@dataclass
class Clock:
    """This machine's clock, and so many seconds: what a store says of times is of this machine's clock too."""

    ahead: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def names(store: ObjectStore) -> list[str]:
    return [info.key for info in store.list("leases/")]


# -- the document -------------------------------------------------------------------------------------------------------------------------


def test_the_bytes_of_a_lease(local: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/format/store.md has them."""
    monkeypatch.setattr("socket.gethostname", lambda: "node-7")
    now = [1_800_000_000.9]
    lease = Lease(local, "mount", life=86400, name="0" * 32, clock=lambda: now[0])
    now[0] += 60
    lease.write(MANIFESTS)
    assert local.get("leases/" + "0" * 32) == (
        b'{"expires":"2027-01-16T08:01:00Z","format":1,"host":"node-7","kind":"mount","manifests":["'
        + b"ab" * 32
        + b'","'
        + b"cd" * 32
        + b'"],"renewed":"2027-01-15T08:01:00Z","started":"2027-01-15T08:00:00Z","writing":false}\n'
    )


def test_a_lease_has_one_key_for_all_its_life(store: ObjectStore) -> None:
    lease = Lease(store, "mount", life=3600)
    assert names(store) == []
    lease.write(MANIFESTS[:1])
    assert names(store) == [lease_key(lease.name)]
    lease.write(MANIFESTS)
    assert names(store) == [lease_key(lease.name)]
    (found,) = leases(store)
    assert found.document is not None
    assert (found.document.kind, found.document.manifests, found.uses_all) == ("mount", sorted(MANIFESTS), False)
    lease.drop()
    assert (names(store), leases(store)) == ([], [])
    lease.drop()


def test_another_process_goes_on_with_a_lease(store: ObjectStore) -> None:
    first = Lease(store, "mount", life=3600)
    first.write(MANIFESTS[:1])
    second = Lease(store, "mount", life=3600, name=first.name)
    second.write(MANIFESTS[1:])
    (found,) = leases(store)
    assert found.document is not None
    assert found.document.manifests == MANIFESTS[1:]


def test_one_that_somebody_deleted_is_written_anew(store: ObjectStore) -> None:
    lease = Lease(store, "mount", life=3600)
    lease.write()
    store.delete(lease_key(lease.name))
    lease.write()
    assert names(store) == [lease_key(lease.name)]


def test_a_write_of_which_the_answer_was_lost_is_gone_on_from(local: ObjectStore) -> None:
    class Deaf(FaultyStore):
        """Writes, and does not say so."""

        def replace(self, key: str, data: Buffer, *, version: str | None) -> str:
            written = self.inner.replace(key, data, version=version)
            if self.faults:
                raise StoreError("no answer")
            return written

    deaf = Deaf(local, [Fault("replace")])
    lease = Lease(deaf, "mount", life=3600)
    with pytest.raises(StoreError):
        lease.write(MANIFESTS[:1])
    deaf.faults = ()
    lease.write(MANIFESTS)
    (found,) = leases(local)
    assert found.document is not None
    assert found.document.manifests == sorted(MANIFESTS)


# -- for how long it counts ---------------------------------------------------------------------------------------------------------------


def test_one_that_is_not_renewed_ends_by_itself(store: ObjectStore) -> None:
    Lease(store, "convert", life=600, writing=True).write()
    assert len(leases(store, clock=Clock(600 + MARGIN - 30))) == 1
    assert leases(store, clock=Clock(600 + MARGIN + 30)) == []


@pytest.mark.parametrize(("off", "until"), [(-20_000, 600), (20_000, 20_600)], ids=["slow", "fast"])
def test_the_clock_of_who_wrote_it_may_be_wrong(off: float, until: float, store: ObjectStore) -> None:
    """Slow, it counts as long as by the store's clock; fast, it counts too long, which harms nobody."""
    Lease(store, "convert", life=600, clock=Clock(off)).write()
    assert len(leases(store, clock=Clock(until + MARGIN - 30))) == 1
    assert leases(store, clock=Clock(until + MARGIN + 30)) == []


def sound(**changes: object) -> bytes:
    fields = {
        "kind": "mount",
        "host": "h",
        "started": "2026-01-01T00:00:00Z",
        "renewed": "2026-01-01T00:00:00Z",
        "expires": "2026-01-02T00:00:00Z",
        "manifests": [],
        "writing": False,
        "format": 1,
    }
    return json.dumps(fields | changes).encode()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "damaged"),
        (b"\xff\x00", "damaged"),
        (b"[" * 100_000, "damaged"),
        (b" " * (1 << 20) + b"{}", "longer than"),
        (sound(format=2, whatever=1), "format 2"),
        (sound(unknown=1), "damaged"),
        (sound(kind="A B"), "damaged"),
        (sound(manifests=["ab"]), "damaged"),
        (sound(renewed="2026-01-01T00:00:00"), "damaged"),
        (sound(expires="2026-01-01T00:00:00Z"), "for how long"),
        (sound(expires="2026-01-08T00:00:01Z"), "for how long"),
    ],
)
def test_what_cannot_be_read_uses_everything_until_any_lease_would_have_ended(data: bytes, said: str, local: ObjectStore) -> None:
    local.put_if_absent("leases/x", data)
    (found,) = leases(local, clock=Clock(LIFE_MAX + MARGIN - 30))
    assert (found.document, found.uses_all) == (None, True)
    assert said in found.problem
    assert leases(local, clock=Clock(LIFE_MAX + MARGIN + 30)) == []


def test_a_sound_one_of_another_writer_is_read(local: ObjectStore) -> None:
    """It ends a day after the store got it, by its own word; whatever its kind is."""
    local.put_if_absent("leases/x", sound(kind="somethingelse"))
    (found,) = leases(local, clock=Clock(86400 + MARGIN - 30))
    assert found.document == msgspec.json.decode(sound(kind="somethingelse"), type=LeaseDocument)
    assert leases(local, clock=Clock(86400 + MARGIN + 30)) == []


def test_one_that_goes_while_it_is_looked_at_does_not_count(local: ObjectStore) -> None:
    lease = Lease(local, "mount", life=600)
    lease.write()
    assert leases(FaultyStore(local, [Fault("get", before=lease.drop)])) == []


# -- a writer -----------------------------------------------------------------------------------------------------------------------------


def test_a_writer_has_one_while_it_writes(store: ObjectStore) -> None:
    before = set(threading.enumerate())
    with Writing(store, "convert") as lease:
        (found,) = leases(store)
        assert found.document is not None
        assert (found.document.kind, found.uses_all) == ("convert", True)
        lease.publishing()
    assert names(store) == []
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("error", [KeyboardInterrupt, StoreError("gone")])
def test_a_writer_that_fails_gives_it_up_too(error: BaseException, local: ObjectStore) -> None:
    before = set(threading.enumerate())
    with pytest.raises(BaseException, match=r"gone|^$") as caught, Writing(local, "convert"):  # noqa: PT012 # what is raised is the point
        assert names(local)
        raise error
    assert caught.type in {KeyboardInterrupt, StoreError}
    assert names(local) == []
    assert set(threading.enumerate()) <= before


def test_a_writer_that_is_interrupted_while_it_begins_gives_it_up_too(local: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def interrupted(self: threading.Thread) -> None:
        start(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), Writing(local, "convert"):
        pass
    assert names(local) == []


def test_it_is_renewed_by_a_thread(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEWALS", WRITER_LIFE / 0.02)
    renewed = threading.Event()
    with Writing(FaultyStore(store, [Fault("replace", "leases/*", first=3, before=renewed.set)]), "convert") as lease:
        assert renewed.wait(20)
        lease.publishing()
    assert names(store) == []


def test_a_renewal_that_is_under_way_at_the_end_leaves_nothing(local: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEWALS", WRITER_LIFE / 0.02)
    before = set(threading.enumerate())
    renewing, deleting = threading.Event(), threading.Event()

    def until_the_end() -> None:
        renewing.set()
        assert lease._over.wait(20)
        # Were it not waited for, what it writes now would come after the end.
        if deleting.wait(0.3):
            while names(local):
                pass

    faults = [Fault("replace", "leases/*", first=2, before=until_the_end), Fault("delete", before=deleting.set)]
    with Writing(FaultyStore(local, faults), "convert") as lease:
        assert renewing.wait(20)
    assert set(threading.enumerate()) <= before
    assert names(local) == []


def test_a_renewal_that_fails_is_tried_again_soon(local: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEWALS", WRITER_LIFE / 0.5)
    renewed = threading.Event()
    faults = [
        Fault("replace", "leases/*", first=2, times=3, error=StoreError("away")),
        Fault("replace", "leases/*", first=2, before=renewed.set),
    ]
    with Writing(FaultyStore(local, faults), "convert") as lease:
        assert renewed.wait(20)
        lease.publishing()


def test_who_lost_its_lease_does_not_publish(local: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    with Writing(local, "convert", clock=clock) as lease:
        lease.publishing()
        clock.ahead = WRITER_LIFE + 2
        with pytest.raises(StoreError, match="30 minutes") as caught:
            lease.publishing()
        assert caught.value.hint
    monkeypatch.setattr(module, "RENEWALS", WRITER_LIFE / 0.02)
    renewed = threading.Event()
    # Late is too late: meanwhile it did not count.
    clock = Clock()
    faulty = FaultyStore(local, [Fault("replace", "leases/*", first=3, before=renewed.set)])
    with Writing(faulty, "convert", clock=clock) as lease:
        clock.ahead = WRITER_LIFE + 2
        assert renewed.wait(20)
        with pytest.raises(StoreError):
            lease.publishing()


@pytest.mark.parametrize("published", [True, False])
def test_a_store_that_takes_no_leases_is_written_to_without(published: bool, local: ObjectStore, caplog: pytest.LogCaptureFixture) -> None:
    faulty = FaultyStore(local, [Fault("replace", "leases/*", error=AccessError("denied by policy"))])
    with Writing(faulty, "convert") as lease:
        if published:
            lease.publishing()
        assert caplog.records == []
    said = [found.getMessage() for found in caplog.records if found.levelno == logging.WARNING]
    assert ["denied by policy" in line for line in said] == [True] * published
    assert names(local) == []


@pytest.mark.parametrize("error", [StoreError("away"), StoreFullError("full")])
def test_a_store_that_fails_says_so_at_once(error: ImageFSError, local: ObjectStore) -> None:
    before = set(threading.enumerate())
    with pytest.raises(type(error)), Writing(FaultyStore(local, [Fault("replace", error=error)]), "push"):
        pytest.fail("it goes on")
    with pytest.raises(type(error)), Writing(FaultyStore(local, [Fault("head", error=error)]), "push"):
        pytest.fail("it goes on")
    assert names(local) == []
    assert set(threading.enumerate()) <= before


def test_one_that_cannot_be_deleted_is_no_error(local: ObjectStore) -> None:
    with Writing(FaultyStore(local, [Fault("delete", error=AccessError("denied"))]), "convert"):
        pass
    assert len(leases(local)) == 1


# -- beside a collector -------------------------------------------------------------------------------------------------------------------


def collector(store: ObjectStore, life: float = 300) -> Lease:
    lease = Lease(store, COLLECTOR, life=life, name=COLLECTOR)
    lease.write()
    return lease


def test_nothing_is_written_while_somebody_deletes(store: ObjectStore) -> None:
    running = collector(store)
    assert collecting(store) is not None
    with pytest.raises(ConflictError, match="is deleting") as caught, Writing(store, "convert", patience=0):
        pytest.fail("it goes on")
    assert "leases/gc" in str(caught.value.hint)
    # It does not keep the other one waiting.
    assert names(store) == ["leases/gc"]
    running.drop()
    with Writing(store, "convert", patience=0):
        assert len(names(store)) == 1


def test_a_writer_waits_for_the_end_of_it(local: ObjectStore) -> None:
    running = collector(local)
    faulty = FaultyStore(local, [Fault("head", "leases/gc", first=3, before=running.drop)])
    with Writing(faulty, "convert", look=0.01):
        # It is written before it is looked for the other, and not there while that is waited for.
        assert [call[0] for call in faulty.calls] == ["replace", "head", "get", "delete", "head", "get", "head", "replace", "head"]
        assert len(names(local)) == 1


def test_a_collector_that_was_killed_is_not_waited_for_for_ever(local: ObjectStore) -> None:
    collector(local)
    with Writing(local, "convert", patience=0, clock=Clock(300 + MARGIN + 30)):
        pass


def test_a_damaged_word_of_a_collector_counts(local: ObjectStore) -> None:
    local.put_if_absent("leases/gc", b"nonsense")
    with pytest.raises(ConflictError), Writing(local, "convert", patience=0):
        pytest.fail("it goes on")


# -- what writes --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> str:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "file").write_bytes(bytes(range(256)) * 1000)
    return f"dir:{folder}"


def watched(store: ObjectStore, found: list[str]) -> FaultyStore:
    """Return a store that notes at each pack and manifest whose leases there are."""

    def look() -> None:
        found.extend(lease.document.kind for lease in leases(store) if lease.document is not None)

    return FaultyStore(store, [Fault("put_if_absent", keys, before=look) for keys in ("packs/*", "manifests/*")])


def test_a_conversion_has_one_and_it_costs_three_small_requests(local: ObjectStore, source: str) -> None:
    found: list[str] = []
    store = watched(local, found)
    convert(source, Ref("test"), store, jobs=1)
    assert found == ["convert"] * 2
    assert [op for op, key in store.calls if key.startswith("leases/")] == ["replace", "head", "delete"]
    assert store.calls[0][1].startswith("leases/")
    assert names(local) == []


def test_a_push_has_one(local: ObjectStore, tmp_path: Path) -> None:
    found: list[str] = []
    store = watched(local, found)
    push(store, checkpoint(tmp_path / "c", memory(20)), record(), Ref("service"))
    assert set(found) == {"push"}
    assert [op for op, key in store.calls if key.startswith("leases/")] == ["replace", "head", "delete"]
    assert store.calls[0][1].startswith("leases/")
    assert names(local) == []


@pytest.mark.parametrize("keys", ["packs/*", "blobs/*", "manifests/*", "refs/*"])
def test_a_conversion_and_a_push_that_fail_leave_none(keys: str, local: ObjectStore, source: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", memory(20))
    for op in ("put_if_absent", "replace"):
        if (op == "replace") is (keys == "refs/*"):
            with pytest.raises(StoreError, match="away"):
                convert(source, Ref("test"), FaultyStore(local, [Fault(op, keys, error=StoreError("away"))]), jobs=1)
            with pytest.raises(StoreError, match="away"):
                push(FaultyStore(local, [Fault(op, keys, error=StoreError("away"))]), folder, record(), Ref("service"))
    assert names(local) == []


def test_neither_publishes_without_its_lease(local: ObjectStore, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an hour in which the store was away, or this machine was asleep."""
    monkeypatch.setattr(Lease, "has_expired", lambda _: True)
    with pytest.raises(StoreError, match="30 minutes"):
        convert(source, Ref("test"), local, jobs=1)
    with pytest.raises(StoreError, match="30 minutes"):
        push(local, checkpoint(tmp_path / "c", memory(20)), record(), Ref("service"))
    assert [info.key for info in local.list("") if info.key.startswith(("manifests/", "refs/"))] == []


def test_a_policy_that_knows_packs_and_refs_alone_is_enough(local: ObjectStore, source: str, caplog: pytest.LogCaptureFixture) -> None:
    denied = [Fault(op, "leases/*", error=AccessError("denied")) for op in ("replace", "head", "delete", "get", "get_versioned")]
    convert(source, Ref("test"), FaultyStore(local, denied), jobs=1)
    assert len([line for line in caplog.records if line.levelno == logging.WARNING]) == 1
