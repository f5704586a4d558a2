"""The documents of Starts on disk, the paths in them, and the directories that are known: real trees, and a damaged one."""

import json
import stat
from pathlib import Path

import pytest
import zstandard

from imagefs.cache.starts import Facts, Start
from imagefs.daemon import folders as known_folders
from imagefs.daemon import start_files
from imagefs.daemon.folders import KnownFolders, folders
from imagefs.daemon.start_files import OF_ALL, OF_IMAGE, StartFiles, paths_of
from imagefs.errors import ImageFSError
from imagefs.format.erofs_reader import Tree
from imagefs.format.erofs_writer import write_tree
from imagefs.format.tree import Inode

_DIGEST = bytes(range(32))


def _start(manifest: str = "ab" * 32, began: float = 1000.0) -> Start:
    start = Start(Facts(manifest))
    start.began = began
    return start


def _tree() -> Tree:
    large = Inode(stat.S_IFREG | 0o644, size=1000, object=_DIGEST)
    small = Inode(stat.S_IFREG | 0o644, size=2, inline=b"hi")
    deep = Inode(stat.S_IFDIR | 0o755, children={b"\xff\xfe": large, b"small": small})
    middle = Inode(stat.S_IFDIR | 0o755, children={b"deep": deep, b"link": Inode(stat.S_IFLNK | 0o777, target=b"deep/small")})
    return Tree(write_tree(Inode(stat.S_IFDIR | 0o755, children={b"a": middle, b"empty": Inode(stat.S_IFDIR | 0o755, children={})})))


def _read(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(zstandard.ZstdDecompressor().decompress(path.read_bytes(), max_output_size=1 << 20))
    return found


def test_a_document_is_kept_and_found(tmp_path: Path) -> None:
    files = StartFiles(tmp_path)
    assert files.newest("ab" * 32) is None
    start = _start()
    path = files.keep(start, {"n": 1})
    assert files.keep(start, {"n": 2}) == path, "one that is running is replaced by what it becomes"
    assert _read(path) == {"n": 2}
    assert files.newest("ab" * 32) == path
    assert files.newest("ab" * 32, since=1000.0) == path
    assert files.newest("ab" * 32, since=1001.0) is None
    assert files.newest("cd" * 32) is None
    assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name]


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    files = StartFiles(tmp_path)
    for number in range(10):
        files.keep(_start(began=1000.0 + number), {})
    assert sorted(path.name.rpartition("-")[2] for path in (tmp_path / "starts").iterdir()) == [
        f"{1000 + number}000.json.zst" for number in range(10 - OF_IMAGE, 10)
    ]
    for number in range(OF_ALL + 3):
        files.keep(_start(f"{number:064x}", began=2000.0 + number), {})
    assert len(list((tmp_path / "starts").iterdir())) == OF_ALL
    assert files.newest("ab" * 32) is None


def test_paths_are_found_by_inode_or_by_object() -> None:
    tree = _tree()
    nids = {path: nid for path, nid, _ in start_files.walk(tree)}
    start = _start()
    by_object = start.file(_DIGEST, 1000)
    inline = start.file(nids[b"a/deep/small"], 2)
    gone = start.file(b"x" * 32, 5)
    assert paths_of(tree, start) == {by_object: b"a/deep/\xff\xfe", inline: b"a/deep/small"}
    start.file(_DIGEST, 1000, nids[b"a/deep/\xff\xfe"])
    assert paths_of(tree, start)[by_object] == b"a/deep/\xff\xfe"
    assert gone not in paths_of(tree, start)


def test_a_damaged_tree_has_no_names_and_no_end_in_view_neither() -> None:
    good = write_tree(
        Inode(stat.S_IFDIR | 0o755, children={b"a": Inode(stat.S_IFDIR | 0o755, children={b"b": Inode(stat.S_IFIFO | 0o644)})})
    )
    for at in range(1100, min(len(good), 9000), 7):
        data = bytearray(good)
        data[at] ^= 0xFF
        try:
            tree = Tree(bytes(data))
        except ImageFSError:
            continue
        start = _start()
        start.file(_DIGEST, 5)
        assert len(list(start_files.walk(tree))) < 1000
        assert paths_of(tree, start) == {}


def test_directories_come_in_the_order_of_use(tmp_path: Path) -> None:
    known, tree = KnownFolders(tmp_path), _tree()
    assert list(folders(tree)) == [b"a", b"empty", b"a/deep"]
    assert known.read("ab" * 32) is None
    known.note("ab" * 32, tree, [b"a/deep"])
    assert known.read("ab" * 32) == ([b"a/deep"], [b"a", b"empty"])
    known.note("ab" * 32, tree, [b"empty"])
    assert known.read("ab" * 32) == ([b"empty", b"a/deep"], [b"a"])
    known.note("ab" * 32, tree, [b"a/deep"])
    assert known.read("ab" * 32) == ([b"empty", b"a/deep"], [b"a"])


def test_of_very_many_directories_the_first_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_folders, "FOLDERS_MAX", 2)
    known = KnownFolders(tmp_path)
    known.note("ab" * 32, _tree(), [b"a/deep"])
    assert known.read("ab" * 32) == ([b"a/deep"], [b"a"])


@pytest.mark.parametrize("data", [b"", b"x", zstandard.compress(b"x\0a\0"), zstandard.compress(b"")])
def test_what_is_damaged_is_not_there(tmp_path: Path, data: bytes) -> None:
    known = KnownFolders(tmp_path)
    known.note("ab" * 32, _tree(), [])
    (tmp_path / "starts" / f"{'ab' * 32}.folders").write_bytes(data)
    assert known.read("ab" * 32) is None
    known.note("ab" * 32, _tree(), [b"a"])
    assert known.read("ab" * 32) == ([b"a"], [b"empty", b"a/deep"])
