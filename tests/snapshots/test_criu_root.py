"""Roots that are overlays: mounts of images, and others. CRIU has to find out where mapped files are from: through two it cannot."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotstore.checkpoint.base import LAYER, Bind
from snapshotstore.checkpoint.criu import Criu
from snapshotstore.checkpoint.criu_root import Layers, layers_of, parse
from tests.snapshots.engines import engine as find
from tests.snapshots.place import Place
from tests.snapshots.programs import MAPPED
from tests.system.world import World, detach, require, tool


@pytest.fixture
def engine() -> Criu:
    require("root", "CRIU takes it")
    return Criu(find("criu", "check"))


@pytest.fixture
def source(sandbox_root: tuple[Path, tuple[Bind, ...]], tmp_path: Path) -> Path:
    """A root file system with files to map."""
    folder = tmp_path / "source"
    shutil.copytree(sandbox_root[0], folder, symlinks=True)
    (folder / "data").mkdir()
    (folder / "data" / "file").write_bytes(b"content" * 3000)
    (folder / "data" / "other").write_bytes(b"other" * 3000)
    return folder


@pytest.fixture
def overlay(source: Path, tmp_path: Path) -> Iterator[Path]:
    require("root", "to mount an overlay")
    over, mount = tmp_path / "o:v,er", tmp_path / "mount"
    (over / "data").mkdir(parents=True)
    (over / "data" / "new").touch()
    mount.mkdir()
    escaped = str(over).replace(":", "\\:").replace(",", "\\,")
    tool("mount", "-t", "overlay", "-o", f"lowerdir={escaped}:{source}", "overlay", mount)
    yield mount
    detach(mount)


def _freeze_and_restore(place: Place, root: Path) -> None:
    made = place.start("one", MAPPED, until="ready", root=root, uid=0, gid=0)
    images = place.checkpoint(made)
    assert (images / LAYER / "data" / "other").read_bytes() == b"other" * 3000
    clone = place.restore(made, "two", images)
    for sandbox in (made, clone):
        (sandbox.binds[-1].source / "go").touch()
        assert place.end(sandbox) == 0, place.lines(sandbox)
        assert place.lines(sandbox)[-1] == "content content other 0o100640"


def test_a_directory(place: Place, source: Path) -> None:
    assert layers_of(source) == Layers((source,))
    _freeze_and_restore(place, source)


def test_an_overlay(place: Place, overlay: Path, source: Path, tmp_path: Path) -> None:
    assert layers_of(overlay) == Layers((tmp_path / "o:v,er", source))
    assert layers_of(overlay / "data") == Layers((overlay / "data",))
    _freeze_and_restore(place, overlay)


@pytest.mark.parametrize("mode", ["kernel", "fuse"])
def test_an_image(place: Place, source: Path, imagefs: World, mode: str) -> None:
    require("fuse")
    if mode == "kernel":
        require("erofs")
    imagefs.convert(f"dir:{source}")
    root = imagefs.mount(mode=mode)
    assert bool(layers_of(root).data) == (mode == "kernel")
    _freeze_and_restore(place, root)


def test_what_mountinfo_says() -> None:
    line = b"56 27 0:43 / /m\\040nt ro - overlay imagefs ro,lowerdir+=/t\\054ree,datadir+=/a:b,datadir+=/c,metacopy=on"
    assert parse(line, b"/m nt") == Layers((Path("/t,ree"),), (Path("/a:b"), Path("/c")))
    assert parse(line, b"/m") is None
    assert parse(line + b"\n57 56 0:44 / /m\\040nt rw - tmpfs tmpfs rw", b"/m nt") is None
    assert parse(b"56 27 0:43 / /m rw - overlay o rw,lowerdir=/l,upperdir=/u,workdir=/w", b"/m") is None
    assert parse(b"56 27 0:43 / /m rw - overlay o ro,lowerdir=/l:/k::/d::/e", b"/m") == Layers(
        (Path("/l"), Path("/k")), (Path("/d"), Path("/e"))
    )
