"""Layers that the store has a listing of: not read again, and the image is the same as if they were.

Each test converts a second image into a store that has a first one, and compares with a conversion into a store that has nothing.
"""

import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from imagefs.convert import reading
from imagefs.convert.convert import convert
from imagefs.convert.entry import Entry
from imagefs.convert.stream import LayerBlob, LayerStream, Limits
from imagefs.errors import ImageFSError, LimitError, SourceError
from imagefs.store.listings import layer_key
from imagefs.store.opening import open_store
from imagefs.store.refs import Ref
from tests.convert import model
from tests.convert.archives import as_tar
from tests.convert.places import BASE, MIDDLE, TOP, Layers, Place, as_layer, files, made
from tests.corpus import rawtar as t
from tests.corpus.features import FEATURES, ROOT, noise
from tests.corpus.oci import Image, docker_archive, layout, sha256
from tests.store.faulty import flipped


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    store = open_store(str(tmp_path / "store"), create=True)
    yield Place(tmp_path, store)
    store.close()


# -- what is not read again ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 4])
@pytest.mark.parametrize(
    "second, known",
    [
        ((BASE, MIDDLE, TOP), 2),
        ((BASE, TOP), 1),
        ((BASE, MIDDLE), 2),
        ((t.archive(ROOT, t.file(b"new", noise(5_000, b"new"))), BASE, MIDDLE), 2),
        ((BASE, t.archive(*files(b"own", 5)), MIDDLE), 2),
        ((BASE, MIDDLE, t.archive(t.whiteout(b"usr"))), 2),
        ((BASE, MIDDLE, t.archive(t.opaque(b"usr"), t.file(b"usr/0003", b"x" * 500))), 2),
        ((BASE, MIDDLE, t.archive(t.directory(b"opt"), t.hardlink(b"h", b"usr/0001"), t.whiteout(b"usr/0001"))), 2),
        ((BASE, MIDDLE, BASE), 3),
    ],
)
def test_what_an_earlier_image_had_is_not_unpacked_again(
    place: Place, second: Layers, known: int, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = place.alone(*second)
    # What the middle layer hides of the base layer has to be somewhere, or the base layer would be read where it can be seen.
    place.convert(BASE)
    place.convert(BASE, MIDDLE)
    source = place.source(*second)
    unpacked = []

    def unpack(layer: LayerBlob, limits: Limits) -> LayerStream:
        unpacked.append(layer.digest)
        return LayerStream(layer, limits)

    monkeypatch.setattr(reading, "LayerStream", unpack)
    report = convert(source, Ref("x", "y"), place.store, jobs=jobs)
    assert report.manifest == wanted
    assert (report.layers, report.layers_known) == (len(second), known)
    assert sorted(unpacked) == sorted(sha256(as_layer(layer).blob) for layer in second if layer not in (BASE, MIDDLE))
    assert report.bytes_in == sum(len(as_layer(layer).blob) for layer in second)
    place.check_whole(report.manifest)


def test_content_is_fetched_where_a_frame_mixes_old_and_new(place: Place) -> None:
    place.convert(BASE)
    changed = t.archive(*files(b"usr", 90)[3:80:7], t.whiteout(b"usr/0050"))
    second = (BASE, t.archive(t.file(b"usr/0011", b"changed" * 100), t.whiteout(b"usr/0050"), t.file(b"other", noise(3_000, b"o"))))
    report = place.convert(*second)
    assert report.layers_known == 1
    assert report.seconds["pack.fetch"] > 0
    assert report.manifest == place.alone(*second)
    place.check_whole(report.manifest)
    assert place.convert(BASE, changed).manifest == place.alone(BASE, changed)


def test_the_same_image_again_unpacks_nothing_and_writes_nothing(place: Place) -> None:
    first = place.convert(BASE, MIDDLE, TOP)
    before = {info.key: info.size for prefix in ("packs/", "blobs/", "manifests/", "layers/") for info in place.store.list(prefix)}
    again = place.convert(BASE, MIDDLE, TOP)
    assert (again.manifest, again.layers_known, again.bytes_in, again.new_bytes) == (first.manifest, 3, first.bytes_in, 0)
    assert before == {info.key: info.size for prefix in ("packs/", "blobs/", "manifests/", "layers/") for info in place.store.list(prefix)}


def test_content_that_was_hidden_is_read_once(place: Place) -> None:
    """It was never stored: so the layer is read, and the next time it is known."""
    assert place.convert(BASE, MIDDLE).layers_known == 0
    second = place.convert(BASE)
    assert (second.layers_known, second.manifest) == (0, place.alone(BASE))
    third = place.convert(BASE, TOP)
    assert (third.layers_known, third.manifest) == (1, place.alone(BASE, TOP))


def test_content_that_was_hidden_and_is_in_the_tree_is_known(place: Place) -> None:
    hides = t.archive(t.whiteout(b"etc/tiny"))
    place.convert(BASE, hides)
    report = place.convert(BASE, TOP)
    assert (report.layers_known, report.manifest) == (1, place.alone(BASE, TOP))


def test_a_listing_is_the_same_whatever_hides_its_layer(place: Place) -> None:
    place.convert(BASE, MIDDLE)
    first = place.pointer(BASE).read_bytes()
    other = open_store(str(place.root / "other"), create=True)
    place.convert(BASE, TOP, t.archive(t.opaque(b"")), store=other)
    assert other.get(layer_key(sha256(BASE.blob))) == first
    other.close()


def test_holes_that_nobody_sees_are_not_hashed(place: Place) -> None:
    """A hidden sparse file of terabytes: its layer has no listing, and is read each time."""
    records = {
        b"GNU.sparse.major": b"0",
        b"GNU.sparse.minor": b"1",
        b"GNU.sparse.size": b"%d" % (300 << 30),
        b"GNU.sparse.numblocks": b"1",
        b"GNU.sparse.map": b"0,4096",
    }
    lower = made(ROOT, t.file(b"log", noise(4096), records=records), t.file(b"keep", noise(500)))
    upper = made(t.whiteout(b"log"))
    assert [place.convert(lower, upper).layers_known for _ in range(2)] == [0, 1]
    assert [info.key for info in place.store.list("layers/")] == [layer_key(sha256(upper.blob))]


_LINK = made(ROOT, t.directory(b"d"), t.symlink(b"l", b"d"), t.file(b"l/f", noise(500)), t.file(b"keep", noise(300)))
_UNLINK = made(t.whiteout(b"l"), t.file(b"l", noise(99)))


def test_what_only_flattening_finds_is_found_in_a_listing(place: Place) -> None:
    place.convert(_LINK)
    report = place.convert(_LINK, _UNLINK)
    assert (report.layers_known, report.manifest) == (1, place.alone(_LINK, _UNLINK))
    assert "reread" in report.seconds


def test_what_only_flattening_finds_and_no_image_has_is_read(place: Place) -> None:
    place.convert(_LINK, t.archive(t.whiteout(b"l"), t.whiteout(b"d")))
    report = place.convert(_LINK, _UNLINK)
    assert (report.layers_known, report.manifest) == (0, place.alone(_LINK, _UNLINK))


def test_every_feature(tmp_path: Path) -> None:
    """Whatever an image holds: after the same image, and below one more layer."""
    top = t.archive(t.file(b"one more", noise(777)))
    for name, feature in FEATURES.items():
        root = tmp_path / name
        place = Place(root, open_store(str(root / "store"), create=True))
        wanted = place.alone(*feature.layers), place.alone(*feature.layers, top)
        first = place.convert(*feature.layers)
        again = place.convert(*feature.layers)
        assert (again.layers_known, again.manifest) == (again.layers, first.manifest), name
        more = place.convert(*feature.layers, top)
        assert (first.manifest, more.manifest) == wanted, name
        assert more.layers_known == first.layers, name
        place.store.close()


def test_what_has_no_digest_is_read(place: Place) -> None:
    source = f"docker-archive:{docker_archive(place.root / 'docker.tar', [BASE.tar, TOP.tar])}"
    for _ in range(2):
        report = convert(source, Ref("x", "y"), place.store, jobs=1)
        assert (report.layers, report.layers_known) == (2, 0)
    folder = place.root / "folder"
    folder.mkdir()
    (folder / "a").write_bytes(b"a" * 100)
    assert [convert(f"dir:{folder}", Ref("x", "y"), place.store, jobs=1).layers_known for _ in range(2)] == [0, 0]
    assert list(place.store.list("layers/")) == []


_POOL = st.lists(st.lists(model.entries(), max_size=8), min_size=1, max_size=3).flatmap(
    lambda pool: st.sampled_from([pool, model.accepted(pool)])
)


def _data(entry: Entry) -> bytes:
    serial = entry.uid
    return noise(serial, b"%d" % serial) if serial % 3 else noise(300_000 + serial, b"m")


@given(_POOL, st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_layers_in_any_stacks(pool: list[list[Entry]], data: st.DataObject) -> None:
    stacks = st.lists(st.integers(0, len(pool) - 1), min_size=1, max_size=4)
    earlier, last = data.draw(st.lists(stacks, max_size=3)), data.draw(stacks)
    tars = [as_tar(layer, _data) for layer in pool]
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), open_store(f"{folder}/store", create=True))

        def outcome(stack: list[int], make: Callable[..., str]) -> str:
            try:
                return make(*[tars[number] for number in stack])
            except ImageFSError as error:
                return f"{type(error).__name__}: {error.message}"

        for stack in earlier:
            outcome(stack, lambda *layers: place.convert(*layers).manifest)
        known = 0

        def again(*layers: bytes) -> str:
            nonlocal known
            report = place.convert(*layers)
            known = report.layers_known
            place.check_whole(report.manifest)
            return report.manifest

        found = outcome(last, again)
        event(f"{known} known" if re.fullmatch("[0-9a-f]{64}", found) else "refused")
        assert found == outcome(last, place.alone)
        place.store.close()


# -- what is said of a layer that is known ------------------------------------------------------------------------------------------------


def test_a_wrong_diff_id_is_refused_all_the_same(place: Place) -> None:
    place.convert(BASE)
    with pytest.raises(SourceError, match="diff-id"):
        place.convert(replace(BASE, diff_id=sha256(b"something else")))


def test_a_wrong_size_is_refused_all_the_same(place: Place) -> None:
    place.convert(BASE)
    with pytest.raises(SourceError, match="bytes"):
        place.convert(replace(BASE, size=7))
    path = Path(place.source(BASE).partition(":")[2])
    blob = path / "blobs" / sha256(BASE.blob).replace(":", "/")
    blob.write_bytes(blob.read_bytes()[:-1])
    with pytest.raises(SourceError, match="bytes"):
        convert(f"oci:{path}", Ref("x", "y"), place.store, jobs=1)


def test_a_layer_beyond_the_limits_is_refused_all_the_same(place: Place) -> None:
    place.convert(BASE)
    with pytest.raises(LimitError):
        place.convert(BASE, limits=Limits(max_layer_bytes=len(BASE.tar) - 1))
    assert place.convert(BASE, limits=Limits(max_layer_bytes=len(BASE.tar))).layers_known == 1


def test_an_image_of_another_tag_in_one_layout(place: Place) -> None:
    path = layout(place.root / "both", Image([BASE], tag="one"), Image([BASE, TOP], tag="two"))
    convert(f"oci:{path}:one", Ref("one"), place.store, jobs=1)
    assert convert(f"oci:{path}:two", Ref("two"), place.store, jobs=1).layers_known == 1


@pytest.mark.parametrize("damage", [flipped, lambda blob: blob[:-1], lambda _: b""])
def test_damage_in_a_layer_that_is_known_is_refused(place: Place, damage: Callable[[bytes], bytes]) -> None:
    place.convert(BASE)
    path = Path(place.source(BASE).partition(":")[2])
    blob = path / "blobs" / sha256(BASE.blob).replace(":", "/")
    blob.write_bytes(damage(BASE.blob))
    with pytest.raises(SourceError, match=r"damaged|bytes, not the"):
        convert(f"oci:{path}", Ref("again"), place.store, jobs=1)
    assert not list(place.store.list("refs/again"))
