"""An optimized image has the content of the one it was made from, needs fewer GETs to start, and depends on image and profile alone."""

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagefs.convert import repack
from imagefs.convert.needed import ALWAYS, SHARE_MIN
from imagefs.convert.optimize import OptimizeReport, optimize
from imagefs.digest import digest_of
from imagefs.errors import (
    AccessError,
    ConflictError,
    ImageFSError,
    IntegrityError,
    NotFoundError,
    StoreError,
    StoreFullError,
    UsageError,
)
from imagefs.format import optimized
from imagefs.format.accesses import GRAIN
from imagefs.format.manifest import BlobName, Manifest
from imagefs.format.objectmap import ObjectMap
from imagefs.format.profile import Access, Profile, encode
from imagefs.store import refs
from imagefs.store.base import ObjectStore, pack_key
from imagefs.store.images import get_blob, get_manifest, put_blob, put_manifest
from imagefs.store.opening import open_store
from imagefs.store.refs import Ref, resolve
from tests.convert.optimizing import FRAME, OTHER, Made, images, make, map_of, profile, profiles, read_object, spots, whole
from tests.store.faulty import Fault, FaultyStore, flipped

REF = Ref.parse("test")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    opened = open_store(str(tmp_path / "store"), create=True)
    yield opened
    opened.close()


@pytest.fixture
def made(store: ObjectStore) -> Made:
    """An image of twelve small files in three frames and two large ones."""
    return make(store, [[20_000] * 4, [20_000] * 4, [20_000] * 4], [(6 * FRAME, False), (5 * FRAME + 99, True)])


@pytest.fixture
def some(made: Made) -> Profile:
    """A profile of a file of each group, a half of the first large one, and all of the second."""
    contents = list(made.contents.values())
    accesses = whole([contents[5], contents[0], contents[9], contents[1]])
    accesses.append(Access(digest_of(contents[12]), 2 * FRAME, 5 * FRAME, 7, ALWAYS))
    return profile([*accesses, *whole([contents[13]], share=SHARE_MIN)])


def run(store: ObjectStore, found: Profile | None, image: str = "test", **options: Any) -> OptimizeReport:
    """Optimize with a profile that the image ``test`` has, whatever it is called, and no other."""
    origin = (
        resolve(store, "origin:latest") if "origin:latest" in {str(ref) for ref, _ in refs.list_refs(store)} else resolve(store, "test")
    )
    return optimize(store, image, lambda name: found if name == origin else None, **options)


def stored(store: ObjectStore) -> dict[str, int]:
    return {info.key: info.size for info in store.list("") if not info.key.startswith("refs/")}


def check_content(store: ObjectStore, made: Made, ref: str = "test") -> ObjectMap:
    objects = map_of(store, ref)
    objects.validate()
    assert {row.digest for row in objects} == made.contents.keys()
    for digest, data in made.contents.items():
        assert read_object(store, objects, digest) == data
    return objects


# -- what it makes ------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow])
@given(images(), st.data())
def test_every_object_reads_back_and_nothing_moves_that_no_profile_names(
    sizes: tuple[list[list[int]], list[tuple[int, bool]]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"{folder}/store", create=True)
        made = make(store, *sizes)
        found = data.draw(profiles(list(made.contents.values())))
        before = spots(map_of(store, "test"))
        try:
            report = run(store, found)
        except NotFoundError:
            assert spots(map_of(store, "test")) == before
            store.close()
            return
        objects = check_content(store, made)
        after = spots(objects)
        # Not necessarily new ones: a pack that was in the order of need already is the same pack again.
        packs = {objects.pack(number).digest for number in range(report.packs)}
        moved = {place for place, spot in after.items() if spot != before[place]}
        counting = [access for access in found.accesses if access.share >= SHARE_MIN]
        for name, offset in moved:
            own = [access for access in counting if access.object == name and access.start < len(made.contents[name])]
            assert any(access.start < offset + FRAME and offset < access.end for access in own)
        for access in counting:
            size = len(made.contents.get(access.object, b""))
            for name, offset in before:
                spot = after[name, offset]
                if name == access.object and access.start < min(size, offset + FRAME) and offset < access.end and spot:
                    assert spot[0] in packs
        # On another machine, with other threads, the same.
        again = open_store(f"{folder}/again", create=True)
        make(again, *sizes)
        assert run(again, found, threads=1).manifest == report.manifest
        assert run(store, found).changed is False
        store.close()
        again.close()


def test_tree_configuration_and_content_stay_and_the_manifest_says_how_it_came_to_be(made: Made, some: Profile) -> None:
    store = made.store
    base = get_manifest(store, made.name)
    report = run(store, some)
    assert report.changed
    assert report.manifest == resolve(store, "test") != made.name == report.origin
    new = get_manifest(store, report.manifest)
    assert msgspec.structs.replace(new, objects=base.objects, annotations={}) == base
    said = optimized.read(new.annotations)
    assert said is not None
    assert (said.origin, said.profile) == (made.name, digest_of(encode(replace(some, manifest=made.name))).hex())
    assert (said.before, said.after) == (report.before, report.after)
    check_content(store, made)
    assert spots(map_of(store, made.name)) == spots(map_of(store, report.origin))


def test_a_start_takes_fewer_gets_and_no_more_bytes_than_it_says(made: Made, some: Profile) -> None:
    before = stored(made.store)
    report = run(made.store, some)
    new = {key: size for key, size in stored(made.store).items() if key not in before}
    assert report.new_bytes == sum(new.values())
    assert report.packs_new == report.packs == 1
    assert (report.before.gets, report.after.gets) == (5, 1)
    assert report.after.stored < report.before.stored
    (pack,) = (size for key, size in new.items() if key.startswith("packs/"))
    assert report.after.stored < pack < report.after.stored + 2000


def test_what_starts_need_lies_in_the_order_in_which_they_need_it(made: Made) -> None:
    contents = list(made.contents.values())
    order = [contents[12], contents[8], contents[4], contents[13]]
    run(made.store, profile(whole(order)))
    places = spots(map_of(made.store, "test"))
    found = [place for data in order for offset in range(0, len(data), FRAME) if (place := places[digest_of(data), offset]) is not None]
    assert found == sorted(found)
    assert len({place[0] for place in found}) == 1


def test_packs_end_before_they_are_too_large(made: Made, some: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repack, "PACK_MAX", 2 * FRAME)
    before = stored(made.store)
    report = run(made.store, some)
    sizes = [size for key, size in stored(made.store).items() if key not in before and key.startswith("packs/")]
    assert len(sizes) == report.packs > 3
    assert max(sizes) <= 2 * FRAME
    check_content(made.store, made)


def test_a_pack_ends_with_a_whole_get(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three frames each here: cut by its size alone, it would have a seventh frame, and a third GET for it."""
    everything = profile(whole(list(made.contents.values())[12:]))
    stored = max(map_of(made.store, "test").frame(number).stored for number in range(3, 14))
    monkeypatch.setattr(repack, "GET_MAX", 3 * stored + stored // 2)
    monkeypatch.setattr(repack, "PACK_MAX", 2 * (3 * stored + stored // 2) + 5000)
    report = run(made.store, everything)
    objects = map_of(made.store, "test")
    assert [objects.pack(number).frame_count for number in range(report.packs)] == [6, 5]


def test_packs_that_nobody_needs_are_not_named(made: Made) -> None:
    contents = list(made.contents.values())
    run(made.store, profile(whole(contents)))
    packs = map_of(made.store, "test").pack_count
    assert packs == 1


# -- again --------------------------------------------------------------------------------------------------------------------------------


def test_with_an_unchanged_profile_it_changes_nothing(made: Made, some: Profile) -> None:
    store = made.store
    first = run(store, some)
    refs.publish(store, Ref.parse("origin"), made.name)
    before, ref = stored(store), store.get(REF.key)
    again = run(store, some)
    assert (again.changed, again.manifest, again.new_bytes) == (False, first.manifest, 0)
    assert again.before == again.after == first.after
    assert (stored(store), store.get(REF.key)) == (before, ref)


def test_another_profile_starts_from_the_origin_again(made: Made, some: Profile) -> None:
    store = made.store
    other = profile(whole(list(made.contents.values())[3:8]))
    refs.publish(store, Ref.parse("origin"), made.name)
    direct = run(store, other, "origin:latest", to=Ref.parse("direct"))
    first = run(store, some)
    second = run(store, other)
    assert second.manifest == direct.manifest != first.manifest
    assert second.origin == made.name
    assert second.before != direct.before  # of what the ref named, which was the first optimization
    check_content(store, made)


def test_a_profile_that_says_the_same_of_what_matters_changes_nothing(made: Made, some: Profile) -> None:
    store = made.store
    first = run(store, some)
    refs.publish(store, Ref.parse("origin"), made.name)
    same = profile(some.accesses, starts=9)
    again = run(store, same)
    assert again.profile != first.profile
    assert (again.changed, again.manifest, again.new_bytes) == (False, first.manifest, 0)


def test_starts_of_the_optimized_image_count_too(made: Made, some: Profile) -> None:
    store = made.store
    first = run(store, some)
    contents = list(made.contents.values())
    newer = profile(whole([contents[11]]), manifest=first.manifest)
    found = {made.name: some, first.manifest: newer}
    second = optimize(store, "test", found.get)
    assert second.changed
    assert second.starts == newer.starts
    moved = spots(map_of(store, "test"))[digest_of(contents[11]), 0]
    assert moved is not None
    assert moved[0] not in {map_of(store, made.name).pack(number).digest for number in range(map_of(store, made.name).pack_count)}


def test_the_result_has_a_profile_before_its_ref_names_it_and_with_that_it_changes_nothing(made: Made, some: Profile) -> None:
    store = made.store
    kept: dict[str, Profile] = {}

    def keep(found: Profile) -> None:
        assert resolve(store, "test") == made.name
        kept[found.manifest] = found

    first = optimize(store, "test", lambda name: some if name == made.name else None, keep=keep)
    assert kept == {first.manifest: replace(some, manifest=first.manifest)}
    again = optimize(store, "test", kept.get, keep=keep)
    assert (again.changed, again.manifest, again.profile) == (False, first.manifest, first.profile)


def test_without_its_origin_an_image_is_optimized_as_it_is(made: Made, some: Profile) -> None:
    store = made.store
    first = run(store, some)
    store.delete(f"manifests/{made.name}")
    assert optimize(store, "test", lambda _: some).changed is False
    other = profile(whole(list(made.contents.values())[3:8]))
    second = optimize(store, "test", lambda _: other)
    assert second.changed
    assert second.origin == first.manifest
    check_content(store, made)


def test_annotations_that_came_with_the_source_are_not_believed(made: Made, some: Profile) -> None:
    store = made.store
    other = make(store, [[70, 80]], [], ref="other", seed=9)
    good = optimized.read(get_manifest(store, run(store, some, to=Ref.parse("good")).manifest).annotations)
    assert good is not None
    base = get_manifest(store, made.name)
    for origin in (other.name, made.name, "0" * 64):
        lie = replace(good, origin=origin)
        name, _ = put_manifest(store, msgspec.structs.replace(base, annotations=optimized.annotated({"kept": "x"}, lie)))
        refs.publish(store, REF, name)
        report = optimize(store, "test", lambda _: some)
        assert report.changed, origin
        check_content(store, made)


# -- which ref --------------------------------------------------------------------------------------------------------------------------


def test_another_ref_may_name_the_result(made: Made, some: Profile) -> None:
    store = made.store
    report = run(store, some, to=Ref.parse("fast"))
    assert (report.ref, resolve(store, "fast"), resolve(store, "test")) == ("fast:latest", report.manifest, made.name)
    before, ref = stored(store), store.get(Ref.parse("fast").key)
    again = run(store, some, to=Ref.parse("fast"))
    assert (again.changed, again.manifest) == (False, report.manifest)
    assert (stored(store), store.get(Ref.parse("fast").key)) == (before, ref)
    moved = run(store, some, made.name, to=REF)
    assert (moved.changed, resolve(store, "test")) == (True, report.manifest)
    assert stored(store) == before


def test_a_damaged_ref_may_be_written_over(made: Made, some: Profile) -> None:
    made.store.replace(Ref.parse("fast").key, b"damaged", version=None)
    report = run(made.store, some, to=Ref.parse("fast"))
    assert resolve(made.store, "fast") == report.manifest


@pytest.mark.parametrize("image", ["test@{}", "{}"])
def test_a_digest_names_one_image_for_ever(image: str, made: Made, some: Profile) -> None:
    with pytest.raises(UsageError, match="digest"):
        run(made.store, some, image.format(made.name))


@pytest.mark.parametrize("there", [True, False])
def test_who_changed_the_ref_meanwhile_wins(there: bool, made: Made, some: Profile) -> None:
    store = made.store
    other = make(store, [[70, 80]], [], ref="other", seed=9)
    target = REF if there else Ref.parse("new")

    def interfere() -> None:
        refs.publish(store, target, other.name)

    faulty = FaultyStore(store, [Fault("replace", "refs/*", times=1, before=interfere)])
    with pytest.raises(ConflictError, match=f"{target} was changed") as caught:
        run(faulty, some, to=None if there else target)
    assert caught.value.hint
    assert resolve(store, str(target)) == other.name


def test_an_image_that_somebody_removes_meanwhile_does_not_come_back(made: Made, some: Profile) -> None:
    store = made.store
    faulty = FaultyStore(store, [Fault("replace", "refs/*", times=1, before=lambda: refs.remove(store, REF))])
    with pytest.raises(ConflictError, match="changed"):
        run(faulty, some)
    assert [str(ref) for ref, _ in refs.list_refs(store)] == []


@pytest.mark.parametrize("folder", ["packs", "blobs", "manifests"])
def test_content_that_somebody_removes_meanwhile_is_named_and_the_ref_is_as_it_was(folder: str, made: Made, some: Profile) -> None:
    """As by a host that collects garbage although the image is in use."""
    store = made.store
    before = resolve(store, "test")

    def collect() -> None:
        for info in list(store.list(f"{folder}/")):
            store.delete(info.key)

    faulty = FaultyStore(store, [Fault("get", f"{folder}/*", times=1, before=collect)])
    with pytest.raises(NotFoundError):
        run(faulty, some)
    assert resolve(store, "test") == before


def test_two_that_do_the_same_both_succeed(made: Made, some: Profile) -> None:
    store = made.store
    done: list[OptimizeReport] = []
    faulty = FaultyStore(store, [Fault("replace", "refs/*", times=1, before=lambda: done.append(optimize(store, "test", lambda _: some)))])
    report = run(faulty, some)
    assert report.manifest == done[0].manifest == resolve(store, "test")


# -- what is refused ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "found, said",
    [
        (None, "no profile of test"),
        (profile([]), "it is empty"),
        (profile([Access(OTHER, 0, GRAIN, 0, ALWAYS)]), "1 of its accesses are of other content"),
    ],
)
def test_without_a_profile_of_this_image_there_is_nothing_to_do(found: Profile | None, said: str, made: Made) -> None:
    before = stored(made.store)
    with pytest.raises(NotFoundError, match=said) as caught:
        run(made.store, found)
    assert caught.value.hint
    assert stored(made.store) == before


def test_what_only_few_starts_touch_is_nothing_to_do_either(made: Made) -> None:
    few = profile(whole(made.contents.values(), share=SHARE_MIN - 1))
    with pytest.raises(NotFoundError, match="14 are of fewer than a quarter of the starts"):
        run(made.store, few)


def test_an_image_that_is_not_there(made: Made, some: Profile) -> None:
    with pytest.raises(NotFoundError, match="no image test2"):
        run(made.store, some, "test2")
    made.store.delete(f"manifests/{made.name}")
    with pytest.raises(NotFoundError, match="no manifest"):
        optimize(made.store, "test", lambda _: some)


def packs_of(made: Made) -> list[str]:
    objects = map_of(made.store, made.name)
    return [objects.pack(number).digest.hex() for number in range(objects.pack_count)]


@pytest.mark.parametrize("number", [0, 3])
def test_damaged_content_is_not_copied(number: int, made: Made, some: Profile) -> None:
    """A frame of small objects, and one that is copied as it is."""
    pack = packs_of(made)[number]
    faulty = FaultyStore(made.store, [Fault("get", pack_key(pack), change=flipped)])
    before = stored(made.store)
    with pytest.raises(IntegrityError, match=pack):
        run(faulty, some)
    assert resolve(made.store, "test") == made.name
    assert {key for key in stored(made.store) if key not in before} == set()


def test_a_pack_that_is_gone_is_named(made: Made, some: Profile) -> None:
    pack = packs_of(made)[4]
    made.store.delete(pack_key(pack))
    with pytest.raises(NotFoundError, match=pack) as caught:
        run(made.store, some)
    assert caught.value.hint == "convert the image again"


def test_a_map_that_lies_about_an_object_is_found_out(made: Made) -> None:
    """Two small objects of one length change places in the map: each frame is right, and each object is not."""
    store = made.store
    base = get_manifest(store, made.name)
    raw = bytearray(store_map(store, made.name))
    objects = ObjectMap(bytes(raw))
    rows = [row for row in objects if row.size == 20_000][:2]
    for row, other in (rows, rows[::-1]):
        index = next(number for number, each in enumerate(objects) if each == row)
        raw[80 + 48 * index : 80 + 48 * index + 32] = other.digest
    # In order again.
    order = sorted(range(objects.object_count), key=lambda index: bytes(raw[80 + 48 * index : 80 + 48 * index + 32]))
    if order != list(range(objects.object_count)):
        first, second = (next(n for n, each in enumerate(objects) if each == row) for row in rows)
        a, b = (80 + 48 * number for number in (first, second))
        raw[a : a + 32], raw[b : b + 32] = raw[b : b + 32], raw[a : a + 32]
        extents = 80 + 48 * objects.object_count
        c, d = (extents + 24 * row.first_extent for row in rows)
        raw[c : c + 24], raw[d : d + 24] = raw[d : d + 24], raw[c : c + 24]
    publish_map(store, base, bytes(raw))
    with pytest.raises(IntegrityError, match="where the map has it"):
        optimize(store, "test", lambda _: profile(whole([made.contents[row.digest] for row in rows])))


def store_map(store: ObjectStore, name: str) -> bytes:
    manifest = get_manifest(store, name)
    return get_blob(store, manifest.objects.digest, manifest.objects.size)


def publish_map(store: ObjectStore, base: Manifest, raw: bytes) -> None:
    name, _ = put_manifest(store, msgspec.structs.replace(base, objects=BlobName(put_blob(store, raw)[0], len(raw))))
    refs.publish(store, REF, name)


# -- a store that fails -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        *[Fault("put_if_absent", "packs/*", first=n, error=StoreFullError("no room")) for n in (1, 2, 4)],
        Fault("put_if_absent", "packs/*", first=3, error=AccessError("this store is read-only")),
        Fault("put_if_absent", "blobs/*", error=StoreFullError("no room")),
        Fault("put_if_absent", "manifests/*", error=StoreError("it stumbles")),
        *[Fault("replace", keys, error=StoreError("it stumbles")) for keys in ("refs/*", "leases/*")],
        *[Fault("get", "packs/*", first=n, error=StoreError("it stumbles")) for n in (1, 3)],
        Fault("get", "blobs/*", error=StoreError("it stumbles")),
    ],
    ids=lambda fault: f"{fault.op}-{fault.keys.partition('/')[0]}-{fault.first}",
)
def test_whatever_the_store_refuses_the_image_stays_and_the_next_run_finishes(
    fault: Fault, made: Made, some: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repack, "PACK_MAX", 2 * FRAME)
    assert fault.error is not None
    with pytest.raises(type(fault.error), match=str(fault.error)):
        run(FaultyStore(made.store, [fault]), some)
    assert resolve(made.store, "test") == made.name
    check_content(made.store, made)
    report = run(made.store, some)
    check_content(made.store, made)
    assert report.changed


def test_what_names_is_written_after_what_is_named(made: Made, some: Profile) -> None:
    faulty = FaultyStore(made.store)
    run(faulty, some)
    wrote = [key.partition("/")[0] for op, key in faulty.calls if op in {"put_if_absent", "replace"}]
    assert wrote == ["leases", "packs", "blobs", "manifests", "refs"]


def test_no_scratch_space_is_said(made: Made, some: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(StoreFullError, match="scratch"):
        run(made.store, some)


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_few_bytes_are_held_however_many_there_are(threads: int, made: Made, some: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that are read and not yet written: no more than the threads, and one that goes on."""
    monkeypatch.setattr(repack, "_BATCH", FRAME)
    held: list[int] = []
    original: Callable[..., Any] = repack.Repacker._make
    made_count = 0

    def counted(self: repack.Repacker, items: Any) -> Any:
        nonlocal made_count
        made_count += 1
        held.append(made_count)
        return original(self, items)

    taken = 0

    def told(_: object) -> None:
        nonlocal taken
        taken += 1
        assert made_count - taken <= threads + 1

    monkeypatch.setattr(repack.Repacker, "_make", counted)
    run(made.store, some, threads=threads, progress=told)
    assert taken == len(held) > 4


def test_errors_are_of_the_tree_whatever_the_map_says(store: ObjectStore) -> None:
    made = make(store, [[100, 200], [300, 400]], [(3 * FRAME, False)])
    base = get_manifest(store, made.name)
    raw = store_map(store, made.name)
    everything = profile(whole(made.contents.values()))
    for position in range(80, len(raw), 7):
        touched = bytearray(raw)
        touched[position] ^= 0x81
        publish_map(store, base, bytes(touched))
        try:
            optimize(store, "test", lambda _: everything)
        except ImageFSError:
            continue
