"""The mount table: slots, and what survives the process."""

from pathlib import Path

import pytest

from imagefs.errors import StoreFullError
from imagefs.mount.table import MountRecord, MountTable


def _record(mountpoint: str, manifest: str, slot: int) -> MountRecord:
    return MountRecord(mountpoint, manifest, "ref", slot, "fuse", 1.5)


def test_the_next_process_finds_it(tmp_path: Path) -> None:
    table = MountTable(tmp_path / "mounts.json")
    slot = table.slot_for("a")
    table.add(_record("/mnt", "a", slot))
    again = MountTable(tmp_path / "mounts.json")
    assert list(again) == [_record("/mnt", "a", slot)]
    assert again.slot_for("a") == slot
    assert again.slot_for("b") != slot
    assert [path.name for path in tmp_path.iterdir()] == ["mounts.json"]


def test_images_share_a_slot_only_with_themselves_and_slots_are_not_reused(tmp_path: Path) -> None:
    table = MountTable(tmp_path / "mounts.json")
    seen = set()
    for number in range(5):
        slot = table.slot_for(f"image{number}")
        assert slot not in seen
        seen.add(slot)
        table.add(_record("/one", f"image{number}", slot))
        table.add(_record("/two", f"image{number}", table.slot_for(f"image{number}")))
        assert len({record.slot for record in table}) == 1
        assert len(table.of_image(f"image{number}")) == 2
        table.remove("/one")
        table.remove("/two")
    assert len(table) == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 2, "last_slot": 0, "mounts": []}', b"\xff" * 100])
def test_a_file_that_cannot_be_read_counts_as_empty(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mounts.json").write_bytes(content)
    assert list(MountTable(tmp_path / "mounts.json")) == []


def test_a_mount_that_cannot_be_kept_is_not_kept(tmp_path: Path) -> None:
    table = MountTable(tmp_path / "gone" / "mounts.json")
    with pytest.raises(StoreFullError):
        table.add(_record("/mnt", "a", 1))
    assert len(table) == 0
