"""The root of a bundle in the store, and what is asked of its program before it is frozen."""

import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imagefs.convert.convert import convert
from imagefs.errors import SourceError, UsageError
from imagefs.store.base import ObjectStore
from imagefs.store.opening import open_store
from imagefs.store.refs import Ref, read
from snapshotstore.checkpoint import runsc_reader
from snapshotstore.runner import bundles_root
from snapshotstore.runner.bundles_ready import Ready, Written
from tests.store.faulty import flipped
from tests.system.world import missing, require, wait_until

Readings = list[str]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    made = open_store(f"file://{tmp_path}/store", create=True)
    yield made
    made.close()


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> Readings:
    """Which directories were read."""
    found: Readings = []

    def counted(source: str, *arguments: Any, **options: Any) -> Any:
        found.append(source)
        return convert(source, *arguments, **options)

    monkeypatch.setattr(bundles_root, "convert", counted)
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "rootfs"
    (folder / "usr" / "bin").mkdir(parents=True)
    (folder / "usr" / "bin" / "program").write_bytes(b"program" * 1000)
    (folder / "link").symlink_to("usr/bin/program")
    return folder


def settle(root: Path) -> None:
    """Wait until nothing in a directory has changed for more than a second."""
    newest = max(path.lstat().st_ctime for path in (root, *root.rglob("*")))
    wait_until(lambda: time.time() > newest + 1.1, "the directory to be older")


def published(store: ObjectStore, root: Path) -> bundles_root.Root:
    return bundles_root.publish(store, root, "app", jobs=1)


def test_a_root_is_read_once(store: ObjectStore, root: Path, readings: Readings) -> None:
    settle(root)
    first = published(store, root)
    assert first.new_bytes > 0
    assert published(store, root) == (first.ref, first.manifest, 0, 0)
    assert len(readings) == 1
    assert read(store, Ref.parse(first.ref)).manifest == first.manifest


CHANGES = {
    "content": lambda root: (root / "usr/bin/program").write_bytes(b"changed" * 1000),
    "content that keeps its time": lambda root: rewrite(root / "usr/bin/program"),
    "mode": lambda root: (root / "usr/bin/program").chmod(0o755),
    "link": lambda root: ((root / "link").unlink(), (root / "link").symlink_to("usr/bin/other!!")),
    "new": lambda root: (root / "new").touch(),
    "gone": lambda root: (root / "link").unlink(),
    "moved": lambda root: (root / "link").rename(root / "usr" / "link"),
}


def rewrite(path: Path) -> None:
    """Change a file to another of the same size, and give it the times that it had."""
    found = path.stat()
    path.write_bytes(b"PROGRAM" * 1000)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_root_that_has_changed_is_read_again(store: ObjectStore, root: Path, readings: Readings, change: Any) -> None:
    settle(root)
    first = published(store, root)
    change(root)
    settle(root)
    other = published(store, root)
    assert len(readings) == 2
    assert other.ref != first.ref
    assert other.manifest != first.manifest


def test_a_root_that_has_just_changed_is_not_trusted(store: ObjectStore, root: Path, readings: Readings) -> None:
    (root / "new").touch()
    assert published(store, root).manifest == published(store, root).manifest
    assert len(readings) == 2


def test_a_root_whose_manifest_is_gone_is_read_again(store: ObjectStore, root: Path, readings: Readings) -> None:
    settle(root)
    first = published(store, root)
    store.delete(f"manifests/{first.manifest}")
    assert published(store, root)[:2] == first[:2]
    assert len(readings) == 2


def test_a_root_that_is_damaged_in_the_store_is_written_again_where_that_is_asked(
    store: ObjectStore, root: Path, readings: Readings
) -> None:
    settle(root)
    first = published(store, root)
    for kind in ("packs/", "blobs/", "manifests/"):
        for info in list(store.list(kind)):
            whole = store.get(info.key)
            store.delete(info.key)
            store.put_if_absent(info.key, flipped(whole))
            if kind == "packs/":
                assert published(store, root) == (first.ref, first.manifest, 0, 0)
            again = bundles_root.publish(store, root, "app", jobs=1, recheck=True)
            assert again[:2] == first[:2]
            assert again.healed == 1
            assert store.get(info.key) == whole
    assert len(readings) > 4


def test_a_root_that_is_not_there(store: ObjectStore, root: Path) -> None:
    with pytest.raises(SourceError):
        published(store, root / "none")


# -- what is asked of a program -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"listening": 0},
        {"listening": 65536},
        {"output": ""},
        {"output": "a\nb"},
        {"after": -1.0},
        {"after": float("nan")},
        {"after": float("inf")},
    ],
)
def test_what_never_comes(asked: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Ready(**asked)


def test_a_text_is_found_wherever_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "output"
    seen = Written(path, "now ready")
    assert not seen()
    for part, found in ((b"now re", False), (b"", False), (b"d\nnow r", False), (b"eady", True), (b" and more", True)):
        with path.open("ab") as file:
            file.write(part)
        assert seen() is found
    path.unlink()
    assert seen()


def test_the_program_that_reads_in_a_sandbox(tmp_path: Path) -> None:
    machine = runsc_reader.MACHINES.get(platform.machine())
    if machine is None:
        missing(f"there is none for {platform.machine()}")
    program, first, second = tmp_path / "program", tmp_path / "first", tmp_path / "second"
    program.write_bytes(runsc_reader.program(machine))
    program.chmod(0o755)
    first.write_bytes(bytes(range(256)) * 100)
    second.write_bytes(b"second")
    command = [program, first, tmp_path / "none", second]
    done = subprocess.run(command, capture_output=True, check=True, timeout=10)
    assert done.stdout == first.read_bytes() + b"second"
    assert subprocess.run([program], capture_output=True, check=True, timeout=10).stdout == b""


@pytest.mark.parametrize("machine", sorted(runsc_reader.MACHINES))
def test_a_program_is_a_file_that_its_machine_runs(machine: str, tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(runsc_reader.program(runsc_reader.MACHINES[machine]))
    require("readelf")
    said = subprocess.run(["readelf", "-hlW", tmp_path / "program"], capture_output=True, text=True, check=True, timeout=10)
    assert said.stderr == ""
    assert {"x86_64": "X86-64", "aarch64": "AArch64"}[machine] in said.stdout
    assert "Entry point address:               0x400078" in said.stdout
    # For pages of 64 KiB too.
    assert re.search(r"LOAD +0x0+ 0x0+400000 0x0+400000 (0x\w+) \1 R E 0x10000\n", said.stdout)


def test_a_machine_without_a_program_asks_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with runsc_reader.ways() as ways:
        assert [way.descriptors for way in ways] == [()]
