"""Listings that are damaged, forged, of another version or gone, and stores that lost something: the image is the same, only slower."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import zstandard

from imagefs.convert.convert import ConvertReport, convert
from imagefs.digest import digest_of
from imagefs.errors import IntegrityError, SourceError, StoreError
from imagefs.format.listing import FILE, KINDS, LISTING_MAGIC, Row, build_listing, read_listing
from imagefs.store.images import get_blob, get_manifest
from imagefs.store.listings import LayerPointer, get_pointer, put_listing
from imagefs.store.opening import open_store
from imagefs.store.refs import Ref
from tests.convert.places import BASE, MIDDLE, TOP, Place, made
from tests.corpus import rawtar as t
from tests.corpus.features import noise
from tests.corpus.oci import Layer, sha256
from tests.store.faulty import Fault, FaultyStore, flipped, truncated


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    store = open_store(str(tmp_path / "store"), create=True)
    yield Place(tmp_path, store)
    store.close()


# -- listings that are wrong --------------------------------------------------------------------------------------------------------------


def _version_99(data: bytes) -> bytes:
    return msgspec.json.encode(json.loads(data) | {"format": 99})


_DAMAGE: list[Callable[[bytes], bytes]] = [flipped, truncated, lambda _: b"", lambda _: b"[]", lambda data: data + bytes(9000)]


@pytest.mark.parametrize(
    "where, change", [("pointer", _version_99), *[(where, one) for where in ("pointer", "listing") for one in _DAMAGE]]
)
def test_a_damaged_listing_costs_its_savings_alone(place: Place, where: str, change: Callable[[bytes], bytes]) -> None:
    wanted = place.alone(BASE, TOP)
    place.convert(BASE)
    place.spoil(place.pointer(BASE) if where == "pointer" else place.listing(BASE), change)
    report = place.convert(BASE, TOP)
    assert (report.manifest, report.layers_known) == (wanted, 0)


def test_a_listing_that_is_gone_is_written_again(place: Place) -> None:
    place.convert(BASE)
    place.listing(BASE).unlink()
    assert place.convert(BASE, TOP).layers_known == 0
    assert place.convert(BASE, MIDDLE).layers_known == 1


def _pointer_to(place: Place, listing: bytes) -> None:
    """Let the store say that this is the listing of the base layer."""
    place.pointer(BASE).unlink()
    put_listing(place.store, sha256(BASE.blob), sha256(BASE.tar), (len(BASE.blob), len(BASE.tar)), listing)


_FORGED: dict[str, Callable[[list[Row]], bytes]] = {
    "version_99": lambda _: LISTING_MAGIC + (99).to_bytes(4, "little") + bytes(4),
    "cut_off": lambda rows: build_listing(rows)[:-1],
    "dotdot": lambda rows: build_listing([*rows, Row(b"../out", FILE)]),
    "not_clean": lambda rows: build_listing([*rows, Row(b"a//b", KINDS.index("dir"))]),
    "absolute": lambda rows: build_listing([*rows, Row(b"/a", KINDS.index("dir"))]),
    "root_is_a_file": lambda rows: build_listing([*rows, Row(b"", FILE)]),
    "nul": lambda rows: build_listing([*rows, Row(b"a\0b", FILE)]),
    "link_to_nothing": lambda rows: build_listing([*rows, Row(b"a", KINDS.index("hardlink"), link=b"nowhere")]),
    "link_out": lambda rows: build_listing([*rows, Row(b"a", KINDS.index("hardlink"), link=b"../etc/passwd")]),
    "empty_target": lambda rows: build_listing([*rows, Row(b"a", KINDS.index("symlink"))]),
    "below_a_file": lambda rows: build_listing([*rows, Row(b"large/a", FILE)]),
    "unknown_object": lambda rows: build_listing([*rows, Row(b"a", FILE, size=1000, content=b"d" * 32)]),
    "object_of_another_size": lambda rows: build_listing([replace_size(row) for row in rows]),
    "odd_xattr": lambda rows: build_listing([*rows, Row(b"a", FILE, xattrs={b"odd": b"x"})]),
    "huge_xattr": lambda rows: build_listing([*rows, Row(b"a", FILE, xattrs={b"user.%d" % number: bytes(65_000) for number in range(9)})]),
    "a_name_that_is_too_long": lambda rows: build_listing([*rows, Row(b"n" * 300, FILE)]),
}


def replace_size(row: Row) -> Row:
    return msgspec.structs.replace(row, size=row.size + 1) if len(row.content) == 32 and row.size > 64 else row


@pytest.mark.parametrize("name", _FORGED)
def test_a_listing_that_no_layer_has_costs_its_savings_alone(place: Place, name: str) -> None:
    wanted = place.alone(BASE, TOP)
    place.convert(BASE)
    pointer = get_pointer(place.store, sha256(BASE.blob))
    rows = list(read_listing(get_blob(place.store, pointer.listing.digest, pointer.listing.size)))
    _pointer_to(place, _FORGED[name](rows))
    report = place.convert(BASE, TOP)
    assert (report.manifest, report.layers_known) == (wanted, 0)
    place.check_whole(report.manifest)


def test_a_pointer_in_anothers_place_is_passed_over(place: Place) -> None:
    place.convert(BASE, MIDDLE)
    data = place.pointer(MIDDLE).read_bytes()
    place.spoil(place.pointer(BASE), lambda _: data)
    with pytest.raises(IntegrityError):
        get_pointer(place.store, sha256(BASE.blob))
    report = place.convert(BASE, MIDDLE, TOP)
    assert (report.manifest, report.layers_known) == (place.alone(BASE, MIDDLE, TOP), 1)


def test_the_pointer_is_what_its_page_says(place: Place) -> None:
    place.convert(BASE)
    found = msgspec.json.decode(place.pointer(BASE).read_bytes(), type=LayerPointer)
    assert (found.layer, found.diff_id, found.size, found.unpacked) == (sha256(BASE.blob), sha256(BASE.tar), len(BASE.blob), len(BASE.tar))
    stored = zstandard.ZstdDecompressor().decompressobj().decompress(place.listing(BASE).read_bytes())
    assert (digest_of(stored).hex(), len(stored)) == (found.listing.digest, found.listing.size)


# -- a store that has lost something, or stumbles -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(4))
def test_a_lost_pack_is_made_again(place: Place, number: int) -> None:
    adds = made(t.file(b"new", noise(5_000, b"new")))
    wanted = place.alone(BASE, adds)
    first = place.convert(BASE)
    lost = sorted(place.store.list("packs/"), key=lambda info: info.key)[number::4]
    for info in lost:
        place.store.delete(info.key)
    before = {info.key for info in place.store.list("packs/")}
    report = place.convert(BASE, adds)
    assert report.manifest == wanted
    place.check_whole(report.manifest)
    added = [info for info in place.store.list("packs/") if info.key not in before]
    assert report.packs_new == len(added)
    assert report.new_bytes == sum(info.size for info in added) + blobs_added(place, adds, first, report)
    # What was lost is back, so it is known again.
    assert place.convert(BASE, MIDDLE).layers_known == 1


def blobs_added(place: Place, top: Layer, first: ConvertReport, second: ConvertReport) -> int:
    """Return the bytes that the second image added besides packs."""
    old, new = get_manifest(place.store, first.manifest), get_manifest(place.store, second.manifest)
    blobs = {new.tree.digest, new.objects.digest, json.loads(place.pointer(top).read_bytes())["listing"]["digest"]}
    blobs -= {old.tree.digest, old.objects.digest}
    return sum(place.path(f"blobs/{name}").stat().st_size for name in blobs) + place.path(f"manifests/{second.manifest}").stat().st_size


@pytest.mark.parametrize(
    "fault",
    [
        Fault("get", "packs/*", error=StoreError("busy")),
        Fault("get", "packs/*", change=flipped),
        Fault("get", "layers/*", error=StoreError("busy")),
        Fault("head", "layers/*", error=StoreError("busy")),
        Fault("get", "blobs/*", first=3, error=StoreError("busy")),
        Fault("head", "packs/*", error=StoreError("busy")),
    ],
    ids=lambda fault: f"{fault.op} {fault.keys}",
)
def test_a_store_that_cannot_be_read_changes_nothing(place: Place, fault: Fault) -> None:
    second = (BASE, t.archive(t.whiteout(b"usr/0050"), t.file(b"other", noise(3_000, b"o"))))
    place.convert(BASE)
    report = place.convert(*second, store=FaultyStore(place.store, [replace(fault, seen=0)]))
    assert report.manifest == place.alone(*second)
    place.check_whole(report.manifest)


def test_ended_at_any_write_it_finishes_the_same(place: Place) -> None:
    """A second image, ended at its first write, its second, and so on: what is there is used or passed over."""
    second = (BASE, MIDDLE, TOP)
    wanted = place.alone(*second)
    place.convert(BASE)
    keys: list[str] = []
    for number in range(1, 100):
        copy = place.root / f"copy{number}"
        shutil.copytree(place.root / "store", copy)
        store = open_store(str(copy))
        faulty = FaultyStore(store, [Fault("put_if_absent", first=number, error=StoreError("ended"))])
        try:
            convert(place.source(*second), Ref("x", "y"), faulty, jobs=1)
        except StoreError:
            done = False
        else:
            done = True
            keys = [key for op, key in faulty.calls if op in {"put_if_absent", "replace"}]
        report = convert(place.source(*second), Ref("x", "y"), store, jobs=1)
        assert report.manifest == wanted
        store.close()
        shutil.rmtree(copy)
        if done:
            break
    kinds = [key.partition("/")[0] for key in keys]
    # After the lease bottom-up: all packs, then blobs, with each pointer behind its listing, then the manifest, then the ref.
    assert [kind for place, kind in enumerate(kinds) if kinds[place - 1 : place] != [kind]] == [
        "leases",
        "packs",
        *["blobs", "layers"] * 2,
        "manifests",
        "refs",
    ]


def test_what_a_failed_source_has_is_not_listed(place: Place) -> None:
    """Neither of the layers: one was not read whole, and the other's image is not one."""
    with pytest.raises(SourceError):
        place.convert(replace(BASE, diff_id=sha256(b"something else")), MIDDLE)
    assert list(place.store.list("layers/")) == []
