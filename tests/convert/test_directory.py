"""A directory as a source."""

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from imagefs.convert.directory import DirSource
from imagefs.convert.entry import Entry, Kind
from imagefs.convert.platforms import this_machine
from imagefs.errors import SourceError

pytestmark = pytest.mark.timeout(60)


def walk(root: Path) -> tuple[list[Entry], dict[bytes, bytes]]:
    with DirSource(root, this_machine()) as source:
        data = {}
        entries = []
        for entry, pieces in source.entries():
            data[entry.path] = b"".join(pieces)
            entries.append(entry)
    return entries, data


def test_order_kinds_links_and_times(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "b").mkdir(parents=True)
    (root / "b/file").write_bytes(b"data")
    (root / "b-").write_bytes(b"")
    (root / os.fsdecode(b"\xff")).write_bytes(b"raw")
    os.link(root / "b/file", root / "c")
    (root / "a").symlink_to("/etc/passwd")
    os.link(root / "a", root / "z", follow_symlinks=False)
    os.mkfifo(root / "fifo")
    os.utime(root / "b/file", ns=(0, 1_000_000_001))
    entries, data = walk(root)
    assert [(e.path, e.kind) for e in entries] == [
        (b"", Kind.DIR),
        (b"a", Kind.SYMLINK),
        (b"b", Kind.DIR),
        (b"b/file", Kind.FILE),
        (b"b-", Kind.FILE),
        (b"c", Kind.HARDLINK),
        (b"fifo", Kind.FIFO),
        (b"z", Kind.HARDLINK),
        (b"\xff", Kind.FILE),
    ]
    found = {e.path: e for e in entries}
    assert (found[b"a"].link, found[b"c"].link, found[b"z"].link) == (b"/etc/passwd", b"b/file", b"a")
    assert found[b"b/file"].mtime_ns == 1_000_000_001
    assert data[b"b/file"] == b"data"


def test_twice_gives_the_same_whatever_the_times_of_access(tmp_path: Path) -> None:
    for name in ("x", "y/z"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    first = [repr(entry) for entry in walk(tmp_path)[0]]
    os.utime(tmp_path / "x", ns=(7, (tmp_path / "x").stat().st_mtime_ns))
    assert first == [repr(entry) for entry in walk(tmp_path)[0]]


def test_holes_are_kept(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(64 << 20)
        os.pwrite(file.fileno(), b"x" * 4096, 32 << 20)
    entries, data = walk(tmp_path)
    entry = entries[1]
    assert entry.sparse is not None
    assert sum(length for _, length in entry.sparse) == len(data[b"sparse"]) < 1 << 20
    assert entry.size == 64 << 20


def test_sockets_are_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
    source = DirSource(tmp_path, this_machine())
    assert [entry.path for entry, _ in source.entries()] == [b""]
    assert "1 socket" in source.notes[0]


@pytest.mark.parametrize("change", ["grow", "shrink", "replace", "remove", "symlink", "fifo"])
def test_a_file_that_changes_is_named(tmp_path: Path, change: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3_000_000)
    source = DirSource(tmp_path, this_machine())
    raised: list[BaseException] = []

    def run() -> None:
        walking = source.entries()
        next(walking)
        _, pieces = next(walking)
        if change not in ("grow", "shrink"):
            path.unlink()
        if change == "replace":
            path.write_bytes(b"y" * 3_000_000)
        elif change == "symlink":
            path.symlink_to("/etc/passwd")
        elif change == "fifo":
            os.mkfifo(path)
        elif change in ("grow", "shrink"):
            os.truncate(path, 4_000_000 if change == "grow" else 10)
        try:
            list(pieces)
        except SourceError as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "it hangs"
    assert raised, "it is not seen"
    assert "file" in str(raised[0])


def test_xattrs_of_the_root_are_those_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    try:
        os.setxattr(tmp_path / "real", "user.x", b"1")
    except OSError:
        pytest.skip("the file system of tmp_path has no user xattrs")
    (tmp_path / "link").symlink_to("real")
    assert walk(tmp_path / "link")[0][0].xattrs == {b"user.x": b"1"}


def test_what_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert stat.S_ISREG((tmp_path / "file").stat().st_mode)
    for name in ("file", "missing"):
        with pytest.raises(SourceError):
            DirSource(tmp_path / name, this_machine())
