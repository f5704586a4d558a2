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


def test_an_image_lingers_until_it_is_settled_also_for_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "mounts.json"
    table = MountTable(path)
    slot = table.slot_for("a")
    table.add(_record("/mnt", "a", slot))
    table.remove("/mnt", lingers=True)
    assert list(table) == []
    again = MountTable(path)
    assert again.images() == {slot: "a"}
    assert again.lingers("a")
    assert again.slot_for("a") == slot
    assert again.slot_for("b") != slot
    again.settle("a")
    assert MountTable(path).images() == {}
    assert MountTable(path).slot_for("a") != slot


def test_a_slot_of_an_image_that_lingers_is_not_given_to_another(tmp_path: Path) -> None:
    path = tmp_path / "mounts.json"
    table = MountTable(path)
    table.add(_record("/mnt", "a", 1))
    table.remove("/mnt", lingers=True)
    # As after all slots were given once.
    path.write_bytes(path.read_bytes().replace(b'"last_slot":0', b'"last_slot":8388607'))
    assert MountTable(path).slot_for("b") == 2


def test_open_files_are_told_to_the_next_process_and_to_no_other(tmp_path: Path) -> None:
    path = tmp_path / "mounts.json"
    table = MountTable(path)
    assert table.handed_on(-1) == {}
    table.hand_on({1: 2, 3: 0}, 4)
    assert MountTable(path).handed_on(4) == {1: 2, 3: 0}
    assert MountTable(path).handed_on(5) == {}
    table.clear()
    assert MountTable(path).handed_on(4) == {}


def test_a_table_of_an_older_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mounts.json"
    path.write_bytes(b'{"format": 1, "last_slot": 7, "mounts": []}')
    assert MountTable(path).slot_for("a") == 8
