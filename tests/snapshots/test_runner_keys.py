"""What makes another snapshot, and what does not; and snapshots that do not fit, each with the reason in the answer."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from imagefs.store.base import manifest_key
from imagefs.store.images import get_manifest, put_manifest
from imagefs.store.refs import Ref, publish, read
from snapshotstore import manifest, repository
from snapshotstore.listing import Snapshot
from snapshotstore.manifest import Economics, Record
from snapshotstore.runner.runner import COLD, RESTORED
from tests.snapshots.services import IMAGE, Place

SERVICE = """
import os
from snapshotstore import App, enter, method

app = App("keys")

@app.cls(image="python:1", enable_memory_snapshot=True, environment=("ONE",))
class Service:
    @enter(snap=True)
    def load(self): self.version = 1
    @method()
    def ask(self): return [self.version, os.environ["ONE"], os.environ.get("TWO")]

@app.cls(image="python:1", enable_memory_snapshot=True, environment=("ONE",))
class Other:
    @method()
    def ask(self): return "other"

@app.cls(image="python:1", environment=("ONE",))
class Without:
    @method()
    def ask(self): return "without"
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE", "1")
    monkeypatch.setenv("TWO", "2")


@pytest.fixture
def frozen(service_place: Place) -> Place:
    """Where the service has been frozen."""
    service_place.frozen(service_place.entry(SERVICE), "ask")
    return service_place


@pytest.mark.parametrize("engine_name", ["criu"], indirect=True)
def test_a_change_of_the_program_is_never_a_stale_restore(frozen: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = frozen.runner()

    def ask(text: str, name: str = "source", target: str = "service:Service") -> tuple[Any, str]:
        answer = runner.call(frozen.entry(text, name, target), "ask", [], {})
        assert answer.reason == ("" if answer.started == RESTORED else "there is no snapshot of it yet")
        assert runner.publish() == []
        return answer.result, answer.started

    assert ask(SERVICE) == ([1, "1", None], RESTORED)
    monkeypatch.setenv("ONE", "one")
    assert ask(SERVICE) == ([1, "one", None], RESTORED), "values are no part of the key"
    # The same source in another directory is the same source.
    assert ask(SERVICE, "elsewhere") == ([1, "one", None], RESTORED)
    changed = SERVICE.replace("version = 1", "version = 2")
    assert ask(changed, "changed") == ([2, "one", None], COLD)
    assert ask(SERVICE) == ([1, "one", None], RESTORED)
    assert ask(SERVICE.replace('("ONE",)', '("ONE", "TWO")'), "named") == ([1, "one", "2"], COLD)
    assert ask(SERVICE, target="service:Other") == ("other", COLD)
    assert len(frozen.refs()) == 4


@pytest.mark.parametrize("engine_name", ["criu"], indirect=True)
def test_a_source_that_changes_under_a_runner(frozen: Place) -> None:
    runner = frozen.runner()
    assert runner.call(frozen.entry(SERVICE), "ask", [], {}).started == RESTORED
    answer = runner.call(frozen.entry(SERVICE.replace("version = 1", "version = 2")), "ask", [], {})
    assert (answer.result[0], answer.started) == (2, COLD)


@pytest.mark.parametrize("engine_name", ["criu"], indirect=True)
def test_another_image_is_another_snapshot(frozen: Place) -> None:
    old = read(frozen.store, Ref.parse(IMAGE)).manifest
    new, _ = put_manifest(frozen.store, structs.replace(get_manifest(frozen.store, old), annotations={"note": "another"}))
    publish(frozen.store, Ref.parse(IMAGE), new)
    runner = frozen.runner()
    answer = runner.call(frozen.entry(SERVICE), "ask", [], {})
    assert (answer.started, answer.reason) == (COLD, "there is no snapshot of it yet")
    publish(frozen.store, Ref.parse("python:old"), old)
    assert frozen.runner(image="python:old").call(frozen.entry(SERVICE), "ask", [], {}).started == RESTORED


@pytest.mark.parametrize("engine_name", ["criu"], indirect=True)
def test_who_asks_for_no_snapshot_gets_none(frozen: Place) -> None:
    answer = frozen.runner(snapshots=False).call(frozen.entry(SERVICE), "ask", [], {})
    assert (answer.started, answer.reason) == (COLD, "snapshots are turned off")
    assert "freeze" not in answer.timeline
    answer = frozen.call(frozen.entry(SERVICE, target="service:Without"), "ask")
    assert (answer.result, answer.started) == ("without", COLD)
    assert answer.reason == "the service does not ask for snapshots (enable_memory_snapshot)"
    assert len(frozen.refs()) == 1


# -- what does not fit ---------------------------------------------------------------------------------------------------------------------


def _published(place: Place) -> Snapshot:
    (key,) = place.refs()
    _, name, tag = key.split("/", 1)[1].rsplit("/", 2)
    found = repository.inspect(place.store, f"{key.removeprefix('refs/').rpartition('/')[0]}:{tag}")
    assert name in found.ref
    return found


def _engine(record: Record, **changes: Any) -> Record:
    return structs.replace(record, runtime=structs.replace(record.runtime, **changes))


def _cpu(record: Record, **changes: Any) -> Record:
    return structs.replace(record, cpu=structs.replace(record.cpu, **changes))


RECORDS: dict[str, tuple[Callable[[Record], Record], str]] = {
    "another version": (lambda record: _engine(record, version="0.1", exact=True), "0.1, and here is .*which restores what it made itself"),
    "another format": (lambda record: _engine(record, format="older"), "format older, and the one here reads"),
    "another CPU": (lambda record: _cpu(record, features=(*record.cpu.features, "zz9")), "this CPU has no zz9, which its program may use"),
    "another architecture": (lambda record: _cpu(record, arch="pdp11"), "made on pdp11, and this is"),
    "larger registers": (lambda record: _cpu(record, xsave=1 << 30), "its registers take 1073741824 bytes"),
    "another image": (lambda record: structs.replace(record, oci=structs.replace(record.oci, image="1" * 64)), "it is of the image 1111"),
    "another sandbox": (lambda record: structs.replace(record, oci=structs.replace(record.oci, spec="1" * 64)), "its sandbox was set up"),
    "another key": (lambda record: structs.replace(record, key="1" * 64), "it was made of another source"),
    "in quarantine": (lambda record: structs.replace(record, economics=Economics(quarantined="it crashed")), "in quarantine: it crashed"),
    "slow": (
        lambda record: structs.replace(record, economics=Economics(cold_p50=1.0, restore_p50=2.0)),
        "restoring it takes 2 s, and a cold",
    ),
}


def test_a_snapshot_that_does_not_fit_is_not_restored_and_the_answer_says_why(frozen: Place) -> None:
    good = _published(frozen)
    service = frozen.entry(SERVICE)
    for what, (change, why) in RECORDS.items():
        repository.amend(frozen.store, good, change(good.record), Ref.parse(good.ref))
        known = frozen.runner().look(service)
        assert known.snapshot is None, what
        assert re.search(why, known.reason), what
    answer = frozen.call(service, "ask")
    assert (answer.result, answer.started, answer.snapshot) == ([1, "1", None], COLD, None)
    assert "restoring it takes 2 s" in answer.reason
    # The cold start has been published in its place.
    assert frozen.call(service, "ask").started == RESTORED


def test_another_kernel_is_a_warning(frozen: Place) -> None:
    good = _published(frozen)
    repository.amend(frozen.store, good, structs.replace(good.record, kernel="5.4.0-other"), Ref.parse(good.ref))
    assert frozen.call(frozen.entry(SERVICE), "ask").started == RESTORED


def test_what_is_no_snapshot_under_its_name(frozen: Place) -> None:
    good = _published(frozen)
    service = frozen.entry(SERVICE)
    ref = Ref.parse(good.ref)
    text = good.manifest.annotations[manifest.ANNOTATION]

    def forged(annotation: str | None) -> str:
        changed = {} if annotation is None else {manifest.ANNOTATION: annotation}
        return put_manifest(frozen.store, structs.replace(good.manifest, annotations=changed))[0]

    cases = {
        forged(None): "has no annotation",
        forged(text[:-1]): "not a snapshot's record",
        forged(text.replace('"format":1', '"format":7')): "format 7 of a snapshot's record is not known",
        forged(text.replace('"key":', '"key" :')): "not in canonical form",
        forged(text.replace('"lineage":', '"linkage":')): "not a snapshot's record",
        read(frozen.store, Ref.parse(IMAGE)).manifest: "there is no snapshot of it yet",
    }
    for name, why in cases.items():
        publish(frozen.store, ref, name)
        known = frozen.runner().look(service)
        assert known.snapshot is None, why
        assert why in known.reason
    for damage in (lambda data: data[: len(data) // 2], lambda data: data.replace(b"lineage", b"linkage"), lambda _: b""):
        publish(frozen.store, ref, good.name)
        original = _replaced(frozen.store_folder / manifest_key(good.name), damage)
        known = frozen.runner().look(service)
        assert known.snapshot is None
        assert good.ref in known.reason
        (frozen.store_folder / manifest_key(good.name)).write_bytes(original)
    answer = frozen.call(service, "ask")
    assert (answer.result, answer.started) == ([1, "1", None], RESTORED)


def _replaced(path: Path, change: Callable[[bytes], bytes]) -> bytes:
    """Give a file another content, as a new file: others may be links to it. Return what it was."""
    was = path.read_bytes()
    path.unlink()
    path.write_bytes(change(was))
    return was
