"""Which files go when room is needed, and the index that they are chosen from."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from imagefs.cache.disk_index import DiskIndex, Figures, Row
from imagefs.cache.eviction import Evictor
from imagefs.digest import digest_of
from imagefs.errors import ImageFSError


@dataclass
class Protected:
    pins: set[bytes] = field(default_factory=set)
    mounts: set[bytes] = field(default_factory=set)

    def pinned(self, name: bytes) -> bool:
        return name in self.pins

    def mounted(self, name: bytes) -> bool:
        return name in self.mounts


def _fill(path: Path, count: int, used_at: Callable[[int], int]) -> tuple[DiskIndex, list[bytes]]:
    index = DiskIndex(path)
    names = sorted(digest_of(b"%d" % n) for n in range(count))
    rows = [(name, Row(complete=True, size=100, held=100, used_at=used_at(n))) for n, name in enumerate(names)]
    index.commit(rows, [], Figures(held=100 * count))
    return index, names


def test_the_old_go_first_then_the_mounted_and_never_the_pinned(tmp_path: Path) -> None:
    index, names = _fill(tmp_path / "db", 1000, lambda n: 1000 if n % 2 else 5000)
    protected = Protected(pins=set(names[:100]), mounts=set(names[100:200]))
    evictor = Evictor(index, protected)
    old = {name for n, name in enumerate(names) if n % 2}
    chosen, hand = evictor.choose(100 * 300, 4000, bytes(32))
    assert len(chosen) == 300
    assert set(chosen) <= old - protected.pins - protected.mounts
    rest, _ = evictor.choose(100 * 2000, 4000, hand)
    assert set(rest) == set(names) - protected.pins
    everything, _ = evictor.choose(100 * 2000, 4000, hand, pinned=True)
    assert set(everything) == set(names)
    index.close()


def test_the_hand_goes_on_where_it_was(tmp_path: Path) -> None:
    index, names = _fill(tmp_path / "db", 600, lambda n: 0)
    evictor = Evictor(index, Protected())
    seen: list[bytes] = []
    hand = names[300]
    for _ in range(6):
        chosen, hand = evictor.choose(100 * 100, 4000, hand)
        seen += chosen
    assert sorted(seen) == names
    index.close()


def test_only_what_is_wanted_goes(tmp_path: Path) -> None:
    index, names = _fill(tmp_path / "db", 100, lambda n: 0)
    chosen, _ = Evictor(index, Protected()).choose(1 << 40, 10, bytes(32), wanted=lambda name: name in names[40:45])
    assert sorted(chosen) == names[40:45]
    index.close()


def test_rows_survive_and_pins_are_kept(tmp_path: Path) -> None:
    index, names = _fill(tmp_path / "db", 10, lambda n: n)
    assert index.pin("m" * 64, "py:slim")
    assert not index.pin("m" * 64, "py:slim")
    index.close()
    index = DiskIndex(tmp_path / "db")
    assert len(index) == 10
    assert index.pins() == {"m" * 64: "py:slim"}
    assert index.figures.held == 1000
    assert [name for name, _ in index.after(names[3], 3)] == names[4:7]
    assert index.unpin("m" * 64)
    assert not index.unpin("m" * 64)
    index.close()


def test_an_error_has_a_class(tmp_path: Path) -> None:
    (tmp_path / "db").write_text("a file")
    with pytest.raises(ImageFSError):
        DiskIndex(tmp_path / "db")
