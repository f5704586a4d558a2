"""``imagefs snapshot diff`` and ``verify``: what differs and what is damaged is told as it is, and reading no more than it takes."""

import shutil
from typing import Any

import pytest

from imagefs.errors import IntegrityError, NotFoundError
from imagefs.store.base import pack_key
from imagefs.store.images import get_manifest
from imagefs.store.refs import Ref
from snapshotstore import manifest
from snapshotstore.fingerprints import PAGE
from snapshotstore.repository import push
from tests.fuse.images import noise
from tests.snapshots.checkpoints import changed, checkpoint, map_of, memory, record
from tests.snapshots.commands import MEMORY_FILE, Commands, commands, newer, packs_of
from tests.store.faulty import flipped, truncated

__all__ = ["commands"]

PAGES = 3000


# -- diff ---------------------------------------------------------------------------------------------------------------------------------


def counted(before: bytes, after: bytes) -> dict[str, int]:
    """Compare memory by looking at every page."""
    old, new = ([data[at : at + PAGE] for at in range(0, len(data), PAGE)] for data in (before, after))
    known = set(old)
    same = [one == other for one, other in zip(old, new, strict=False)]
    zero = sum(one == other == bytes(PAGE) for one, other in zip(old, new, strict=False))
    differing = [page for number, page in enumerate(new) if number >= len(old) or page != old[number]]
    return {
        "pages": len(new),
        "zero": zero,
        "equal": sum(same) - zero,
        "changed": len(same) - sum(same),
        "added": max(0, len(new) - len(old)),
        "removed": max(0, len(old) - len(new)),
        "moved": sum(page in known for page in differing if page != bytes(PAGE)),
    }


def shifted(data: bytes) -> bytes:
    """Return memory into which five pages came in the middle, and of which some were zeroed."""
    middle = len(data) // PAGE // 2 * PAGE
    return data[: middle - 20 * PAGE] + bytes(20 * PAGE) + noise(5 * PAGE, 91) + data[middle:]


@pytest.mark.parametrize("is_one_lineage", [True, False])
@pytest.mark.parametrize("change", ["some", "shifted", "shorter", "none"])
def test_diff_counts_pages_as_they_are(commands: Commands, change: str, is_one_lineage: bool) -> None:
    data = memory(PAGES, zero=0.2)
    after = {
        "some": lambda: changed(data, 0.05, seed=9),
        "shifted": lambda: shifted(data),
        "shorter": lambda: data[: 900 * PAGE],
        "none": lambda: data,
    }[change]()
    commands.push("one", data, "service:1", lineage="one")
    commands.push("two", after, "service:2", lineage="one" if is_one_lineage else "two")
    found = commands.run("diff", "service:1", "service:2", code=int(change != "none"))
    assert found["memory"] == [{"path": MEMORY_FILE} | counted(data, after)]
    assert found["different"] == (change != "none")
    assert ("lineage" in found["record"]) != is_one_lineage
    assert [row["path"] for row in found["changes"]] == ([] if change == "none" else [f"/{MEMORY_FILE}"])


def test_diff_reads_no_memory_where_page_tables_tell(commands: Commands) -> None:
    data = memory(PAGES)
    digests = [commands.push("one", data, "a:1", lineage="one"), commands.push("two", changed(data, 0.05, seed=9), "a:2", lineage="two")]
    for digest in digests:
        for pack in packs_of(commands.store, digest):
            commands.store.delete(pack_key(pack))
    assert commands.run("diff", "a:1", "a:2", code=1)["memory"][0]["changed"] == PAGES // 20


def test_diff_reads_nothing_at_all_of_what_lies_in_the_same_place(commands: Commands) -> None:
    data = memory(PAGES, zero=0.1)
    commands.push("one", data, "a:1")
    digest = commands.push("two", data, "a:2")
    for blob in manifest.pages_of(get_manifest(commands.store, digest).annotations):
        commands.store.delete(f"blobs/{blob.digest}")
    shutil.rmtree(commands.root / "store/packs")
    assert commands.run("diff", "a:1", "a:2")["memory"] == [{"path": MEMORY_FILE} | counted(data, data)]


def test_diff_reads_memory_where_page_tables_are_gone(commands: Commands) -> None:
    data = memory(PAGES) + b"the end"
    after = changed(data, 0.05, seed=9)
    digest = commands.push("one", data, "a:1", lineage="one")
    commands.push("two", after, "a:2", lineage="two")
    for blob in manifest.pages_of(get_manifest(commands.store, digest).annotations):
        commands.store.delete(f"blobs/{blob.digest}")
    expected = counted(data, after) | {"moved": 0}
    (found,) = commands.run("diff", "a:1", "a:2", code=1)["memory"]
    assert found == {"path": MEMORY_FILE} | expected
    shutil.rmtree(commands.root / "store/packs")
    commands.fails(NotFoundError.exit_code, "pack", "diff", "a:1", "a:2")


def test_diff_tells_records_and_files(commands: Commands) -> None:
    commands.push("one", memory(5), "a:1")
    folder = checkpoint(commands.root / "two", memory(5))
    (folder / "source/app.py").write_text("print('another')\n" * 20)
    push(commands.store, folder, record(kernel="6.99"), Ref.parse("a:2"))
    found = commands.run("diff", "a:1", "a:2", code=1)
    assert found["record"]["kernel"] == ["6.18.1", "6.99"]
    assert [(row["path"], sorted(row["fields"])) for row in found["changes"]] == [("/source/app.py", ["content", "size"])]
    code, out, _ = commands.attempt("diff", "a:1", "a:2")
    assert (code, "record   kernel: 6.18.1 -> 6.99" in out, "/source/app.py" in out) == (1, True, True)


# -- verify -------------------------------------------------------------------------------------------------------------------------------


def test_what_is_whole_is_verified(commands: Commands) -> None:
    data = memory(PAGES, zero=0.2)
    commands.push("one", data, "a:1")
    commands.push("two", changed(data, 0.02, seed=3), "a:2")
    one = commands.run("verify", "a:1")
    assert one["ok"]
    assert one["snapshots"][0]["frames"] > 3
    both = commands.run("verify", "--all")
    assert [(row["ref"], row["damage"]) for row in both["snapshots"]] == [("a:1", []), ("a:2", [])]
    code, out, _ = commands.attempt("verify", "a:1")
    assert (code, "as it should be" in out) == (0, True)


@pytest.mark.parametrize("change", [flipped, truncated, None])
def test_every_pack_that_is_damaged_is_told_with_frames_and_files(commands: Commands, change: Any) -> None:
    digest = commands.push("one", memory(PAGES), "a:1")
    objects = map_of(commands.store, get_manifest(commands.store, digest))
    packs = packs_of(commands.store, digest)
    assert len(packs) > 1
    in_files = set()
    for number, pack in enumerate(packs):
        path = commands.root / "store" / pack_key(pack)
        held = path.read_bytes()
        path.unlink()
        if change is not None:
            # Of frames, and not of what lists them: a reader has no need of that.
            last = objects.frame(objects.pack(number).first_frame + objects.pack(number).frame_count - 1)
            end = last.offset + last.stored
            path.write_bytes(change(held[:end]) + (held[end:] if change is flipped else b""))
        found = commands.run("verify", "a:1", code=IntegrityError.exit_code)
        assert not found["ok"]
        damage = found["snapshots"][0]["damage"]
        assert damage
        for one in damage:
            assert pack in one["what"]
            in_files |= set(one["files"])
        if change is None:
            assert len(damage) == objects.pack(number).frame_count
        code, out, _ = commands.attempt("verify", "a:1")
        assert (code, damage[0]["what"] in out, "DAMAGED" in out) == (IntegrityError.exit_code, True, True)
        path.unlink(missing_ok=True)
        path.write_bytes(held)
    assert {MEMORY_FILE, "layer/usr/lib/compiled.so", "layer/usr/lib/compiled.so.1"} <= in_files
    assert commands.run("verify", "a:1")["ok"]


def test_a_damaged_index_is_damage_and_others_are_looked_at(commands: Commands) -> None:
    digest = commands.push("one", memory(20), "a:1", lineage="one")
    found = get_manifest(commands.store, digest)
    commands.push("two", memory(20, seed=5), "a:2", lineage="two")
    newer(commands.store, digest, "a:3")
    (commands.root / "store/refs/a/4").write_text("{")
    table = manifest.pages_of(found.annotations)[0]
    for blob, what in ((table, "page table"), (found.objects, "index")):
        path = commands.root / "store/blobs" / blob.digest
        held = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(flipped(held))
        rows = {row["ref"]: row for row in commands.run("verify", "--all", code=IntegrityError.exit_code)["snapshots"]}
        assert what in rows["a:1"]["damage"][0]["what"]
        assert rows["a:2"]["damage"] == []
        assert (rows["a:3"]["damage"], "format 2" in rows["a:3"]["problem"]) == ([], True)
        assert rows["a:4"]["damage"]
        path.write_bytes(held)


def test_verify_is_told_what(commands: Commands) -> None:
    assert commands.attempt("verify")[0] == 2
    assert commands.attempt("verify", "a:1", "--all")[0] == 2
