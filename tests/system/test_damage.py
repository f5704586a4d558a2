"""A store with a bad byte in it: what is hit is an error, the rest is served, and somebody is told."""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from imagefs.digest import digest_of
from tests.corpus import rawtar as t
from tests.corpus.features import ROOT, noise, text
from tests.corpus.hostile import flip
from tests.corpus.oci import simple
from tests.system.test_bad_input import clear_message
from tests.system.world import World, require, wait_until

HIT: Final = noise(2_000_000, b"hit")
FILES: Final = {"hit": HIT, "other": noise(1_500_000, b"other"), "text": text(1_200_000), "small": b"s" * 5000, "inlined": b"i" * 10}
FRAME: Final = 256 << 10
INTEGRITY, NOT_FOUND = 5, 6


@dataclass(frozen=True)
class Damaged:
    """A world with one image, not mounted yet; its manifest; and the pack that holds the file ``hit`` alone."""

    world: World
    manifest: dict[str, Any]
    digest: str
    pack: Path


@pytest.fixture
def image(imagefs: World, tmp_path: Path) -> Damaged:
    require("fuse")
    members = [t.file(name.encode(), data) for name, data in FILES.items()]
    figures = imagefs.convert(f"oci:{simple(tmp_path / 'layout', t.archive(ROOT, *members))}", "test")
    imagefs.convert(f"oci:{simple(tmp_path / 'fine', t.archive(ROOT, t.file(b'fine', noise(100_000, b'fine'))))}", "fine")
    # Noise is stored as it is, so its pack can be told by its bytes.
    (pack,) = [path for path in (imagefs.store / "packs").iterdir() if HIT[:1000] in path.read_bytes()]
    return Damaged(imagefs, json.loads(imagefs.published()[f"manifests/{figures['manifest']}"]), figures["manifest"], pack)


@pytest.fixture(params=["fuse", "kernel"])
def served(request: pytest.FixtureRequest, image: Damaged) -> Damaged:
    """The same, to be mounted in either mode."""
    image.world.mode = request.param
    if image.world.mode == "kernel":
        require("root", "for kernel mode")
        require("erofs", "for kernel mode")
    return image


def unprotected(path: Path) -> Path:
    path.chmod(0o644)
    return path


def check_rest(image: Damaged, point: Path, *hit: str) -> None:
    """Check that everything but the files ``hit`` can be read."""
    for name, data in FILES.items():
        if name not in hit:
            assert (point / name).read_bytes() == data, name
    assert sorted(path.name for path in point.iterdir()) == sorted(FILES)
    assert (image.world.mount("fine", "fine") / "fine").read_bytes() == noise(100_000, b"fine")


def check_told(image: Damaged, *, verified: bool) -> None:
    """Check that log and figures tell of what was hit, and of nothing else; ``verified``: its bytes were looked at, and were others."""
    logs = image.world.logs()
    assert "Traceback" not in logs
    assert '"exception"' not in logs
    events = [json.loads(line) for line in logs.splitlines() if line.startswith("{")]
    failed = [event for event in events if event["event"] == "frame_failed"]
    hit = {name: digest_of(data).hex() for name, data in FILES.items()}["hit"]
    assert {(event["pack"], event["object"], event["manifest"], event["tier"]) for event in failed} == {
        (image.pack.name, hit, image.digest, "store")
    }
    assert any(event["event"] == "request_failed" for event in events)
    stats = image.world.stats()
    assert stats["failed_requests"] >= 1
    assert stats["internal_errors"] == 0
    # Bad bytes are asked for again, but not for ever.
    assert 1 <= stats["verify_failures"] < 20 if verified else stats["verify_failures"] == 0
    assert "failed_requests" in image.world.run("stats").out


def test_flipped_bit_in_a_pack(served: Damaged) -> None:
    """One frame is lost; the file's other frames are not."""
    place = served.pack.read_bytes().index(HIT[3 * FRAME : 3 * FRAME + 100])
    flip(unprotected(served.pack), place + 50)
    point = served.world.mount()
    with (point / "hit").open("rb", buffering=0) as file:
        assert os.pread(file.fileno(), FRAME, 0) == HIT[:FRAME]
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.pread(file.fileno(), 4096, 3 * FRAME + 8192)
        assert os.pread(file.fileno(), FRAME, 6 * FRAME) == HIT[6 * FRAME : 7 * FRAME]
    check_rest(served, point, "hit")
    check_told(served, verified=True)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("spoil", [_cut, _empty, Path.unlink], ids=["truncated", "emptied", "missing"])
def test_pack_that_is_not_whole(spoil: Callable[[Path], None], served: Damaged) -> None:
    spoil(unprotected(served.pack))
    point = served.world.mount()
    with (point / "hit").open("rb", buffering=0) as file, pytest.raises(OSError, match=os.strerror(errno.EIO)):
        os.pread(file.fileno(), 4096, len(HIT) - 5000)
    check_rest(served, point, "hit")
    check_told(served, verified=False)


def test_pack_that_heals(served: Damaged) -> None:
    """A frame that failed is asked for again after a while: the store may have been mended."""
    whole = served.pack.read_bytes()
    served.pack.unlink()
    point = served.world.mount()
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        (point / "hit").read_bytes()
    served.pack.write_bytes(whole)

    def readable() -> bool:
        try:
            return (point / "hit").read_bytes() == HIT
        except OSError:
            return False

    wait_until(readable, "the mended pack to be asked for")


def test_another_packs_bytes(served: Damaged) -> None:
    """Intact, and not what was asked for."""
    (other,) = [path for path in (served.world.store / "packs").iterdir() if FILES["other"][:1000] in path.read_bytes()]
    data = other.read_bytes()
    unprotected(served.pack).write_bytes(data + bytes(max(0, served.pack.stat().st_size - len(data))))
    point = served.world.mount()
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        (point / "hit").read_bytes()
    check_rest(served, point, "hit")
    check_told(served, verified=True)


SPOIL: Final[dict[str, Callable[[Path], None]]] = {
    "flipped": lambda path: flip(path, path.stat().st_size // 2),
    "flipped_at_the_end": lambda path: flip(path, -1),
    "truncated": _cut,
    "emptied": _empty,
    "missing": Path.unlink,
}


@pytest.mark.parametrize("how", SPOIL)
@pytest.mark.parametrize("kind", ["tree", "objects", "manifest"])
def test_damaged_index(kind: str, how: str, image: Damaged) -> None:
    """Without its index nothing is mounted, and the user is told which part is bad; the other image works."""
    world = image.world
    digest = image.digest if kind == "manifest" else image.manifest[kind]["digest"]
    SPOIL[how](unprotected(world.store / ("manifests" if kind == "manifest" else "blobs") / digest))
    (world.root / "mnt").mkdir()
    done = world.attempt("mount", "test", world.root / "mnt", "--mode", world.mode, seconds=30)
    assert done.status in ({NOT_FOUND, INTEGRITY} if how == "missing" else {INTEGRITY}), done.err
    clear_message(done.err)
    assert digest[:12] in done.err
    assert list((world.root / "mnt").iterdir()) == []
    point = world.mount("fine", "fine")
    assert (point / "fine").read_bytes() == noise(100_000, b"fine")
    if kind == "manifest":
        done = world.attempt("inspect", "test")
        assert done.status in {NOT_FOUND, INTEGRITY}
        clear_message(done.err)
        listed = world.attempt("images")
        assert "fine" in listed.out
        assert "Traceback" not in listed.err


@pytest.mark.parametrize("text_of", [b"", b"{}", b"not json", b'{"manifest":"../../etc/passwd"}', b"[" * 20_000])
def test_damaged_ref(text_of: bytes, image: Damaged) -> None:
    world = image.world
    unprotected(world.store / "refs/test/latest").write_bytes(text_of)
    (world.root / "mnt").mkdir()
    done = world.attempt("mount", "test", world.root / "mnt", "--mode", world.mode, seconds=30)
    assert done.status == INTEGRITY, done.err
    clear_message(done.err)
    listed = world.attempt("images")
    assert "fine" in listed.out
    assert "Traceback" not in listed.err


def test_converting_again_mends(image: Damaged, tmp_path: Path) -> None:
    """Into a store whose pack is gone: the conversion must not believe that it is there."""
    image.pack.unlink()
    members = [t.file(name.encode(), data) for name, data in FILES.items()]
    figures = image.world.convert(f"oci:{simple(tmp_path / 'again', t.archive(ROOT, *members))}", "test")
    assert figures["manifest"] == image.digest
    assert (image.world.mount() / "hit").read_bytes() == HIT
