"""Images made by other tools, and every form in which a source may come."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.corpus import rawtar as t
from tests.corpus.features import ROOT, noise, text
from tests.corpus.oci import (
    DOCKER_LIST,
    INDEX,
    Image,
    docker_archive,
    layout,
    pack_directory,
    platform_index,
    simple,
    this_machine,
)
from tests.system.both import seen_in_both_modes
from tests.system.compare import Snapshot, differences, snapshot
from tests.system.erofs_check import check_tree
from tests.system.trees import Umoci, full_tree, gnu_tar, is_sparse, skopeo, sparse_file
from tests.system.world import World, require

_COUNT = iter(range(10_000))


def look(world: World, source: str | Path, scratch: Path, *options: str) -> tuple[Snapshot, dict[str, Any]]:
    """Convert, mount, look, unmount, and have the kernel and ``fsck.erofs`` look too."""
    require("fuse")
    name = f"archive/{next(_COUNT)}"
    figures = world.convert(source, name, *options)
    seen = seen_in_both_modes(world, name, name.replace("/", "-"))
    check_tree(world, figures["manifest"], seen, scratch)
    return seen, figures


@pytest.fixture(scope="module")
def umoci_image(tmp_path_factory: pytest.TempPathFactory) -> tuple[Umoci, Snapshot]:
    """A real tree in layers that umoci made of it, by inserting, hiding and repacking; and what umoci unpacks."""
    root = tmp_path_factory.mktemp("umoci")
    tree = full_tree(root / "tree")
    image = Umoci(root / "layout")
    image.insert(tree, "/")
    (root / "more").mkdir()
    (root / "more/new").write_bytes(text(10_000))
    image.insert(root / "more", "/var/more", "--opaque")
    image.whiteout("/bin/noise")
    rootfs = image.bundle(root / "bundle")
    (rootfs / "bin/tiny").unlink()
    (rootfs / "bin/small").write_bytes(b"rewritten in place, through both of its names")
    (rootfs / "var/fifo").unlink()
    (rootfs / "var/fifo").mkdir()
    (rootfs / "var/fifo/inside").write_bytes(b"1")
    shutil.rmtree(rootfs / "tmp")
    image.repack(root / "bundle")
    return image, snapshot(image.unpack(root / "unpacked"))


def test_umoci_layout(umoci_image: tuple[Umoci, Snapshot], shared_world: World, tmp_path: Path) -> None:
    image, expected = umoci_image
    seen, figures = look(shared_world, f"oci:{image.layout}:latest", tmp_path)
    assert differences(expected, seen) == []
    assert figures["layers"] == 4


def test_umoci_bundle_is_the_same(umoci_image: tuple[Umoci, Snapshot], shared_world: World, tmp_path: Path) -> None:
    """The way that people use umoci, by its bundles, against the raw unpack that the other tests use."""
    image, expected = umoci_image
    assert differences(expected, snapshot(image.bundle(tmp_path / "bundle"))) == []


@pytest.mark.parametrize(
    "form", ["bare", "oci-archive", "oci-archive-tag", "docker-archive", "docker-archive-name", "zstd", "uncompressed"]
)
def test_skopeo(form: str, umoci_image: tuple[Umoci, Snapshot], shared_world: World, tmp_path: Path) -> None:
    image, expected = umoci_image
    source, file = f"oci:{image.layout}:latest", tmp_path / "image.tar"
    if form.startswith("docker-archive"):
        skopeo(source, f"docker-archive:{file}:example.org/team/app:v1")
        spec = f"docker-archive:{file}" + (":example.org/team/app:v1" if form.endswith("name") else "")
    elif form == "zstd":
        # skopeo compresses again only what is not compressed.
        skopeo(source, f"docker-archive:{tmp_path / 'plain.tar'}:app:v1")
        skopeo(f"docker-archive:{tmp_path / 'plain.tar'}", f"oci:{tmp_path / 'zstd'}:latest", "--dest-compress-format", "zstd")
        assert b"tar+zstd" in b"".join(
            path.read_bytes() for path in (tmp_path / "zstd/blobs/sha256").iterdir() if path.stat().st_size < 4000
        )
        spec = f"oci:{tmp_path / 'zstd'}"
    elif form == "uncompressed":
        skopeo(source, f"docker-archive:{tmp_path / 'plain.tar'}:app:v1")
        skopeo(f"docker-archive:{tmp_path / 'plain.tar'}", f"oci:{tmp_path / 'plain'}:latest", "--dest-oci-accept-uncompressed-layers")
        spec = f"oci:{tmp_path / 'plain'}"
    else:
        skopeo(source, f"oci-archive:{file}:latest")
        spec = {"bare": str(file), "oci-archive": f"oci-archive:{file}", "oci-archive-tag": f"oci-archive:{file}:latest"}[form]
    seen, _ = look(shared_world, spec, tmp_path)
    assert differences(expected, seen) == []


def test_directory(shared_world: World, tmp_path: Path) -> None:
    tree = full_tree(tmp_path / "tree")
    seen, _ = look(shared_world, f"dir:{tree}", tmp_path)
    assert differences(snapshot(tree), seen) == []


def test_directory_bare(shared_world: World, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a").write_bytes(b"1")
    seen, _ = look(shared_world, tmp_path / "tree", tmp_path)
    assert differences(snapshot(tmp_path / "tree"), seen) == []


@pytest.mark.parametrize("form", ["gnu", "gnu -S", "posix", "posix -S 0.0", "posix -S 0.1", "posix -S 1.0", "ustar", "oldgnu -S"])
def test_gnu_tar(form: str, shared_world: World, tmp_path: Path) -> None:
    kind, _, sparse = form.partition(" ")
    tree = tmp_path / "tree"
    tree.mkdir()
    # More holes than one header holds, so that the maps go on in further blocks.
    sparse_file(tree / "big", 64 << 20)
    with (tree / "many-holes").open("wb") as file:
        for number in range(100):
            file.seek(number * 65_536)
            file.write(noise(4096, b"%d" % number))
    with (tree / "only-a-hole").open("wb") as file:
        file.truncate(10_000_000)
    (tree / "plain").write_bytes(text(5000))
    assert is_sparse(tree / "big")
    options = [f"--format={kind}"]
    if sparse:
        options += ["--sparse"] + ([f"--sparse-version={sparse.split()[1]}"] if " " in sparse else [])
    image = Umoci(tmp_path / "layout")
    image.add_tar(gnu_tar(tree, tmp_path / "layer.tar", *options))
    seen, figures = look(shared_world, f"oci:{image.layout}", tmp_path)
    # The tree itself is the first witness, and umoci the second, where it knows the format.
    assert differences(snapshot(tree), seen, ignore=() if kind == "posix" else {"mtime_ns"}) == []
    if form not in {"gnu -S", "oldgnu -S"}:
        assert differences(snapshot(image.unpack(tmp_path / "unpacked")), seen) == []
    assert figures["new_bytes"] < 2_000_000


def test_sparse_file_of_4_gigabytes(shared_world: World, tmp_path: Path) -> None:
    """Holes cost nothing in the store, nor when they are read."""
    require("fuse")
    size = 4 << 30
    tree = tmp_path / "tree"
    tree.mkdir()
    sparse_file(tree / "huge", size)
    layer = gnu_tar(tree, tmp_path / "layer.tar", "--format=posix", "--sparse")
    source = simple(tmp_path / "layout", layer.read_bytes())
    figures = shared_world.convert(f"oci:{source}", "holes")
    assert figures["new_bytes"] < 1_000_000
    point = shared_world.mount("holes", "holes")
    with (point / "huge").open("rb") as file, (tree / "huge").open("rb") as original:
        for place in (0, 4096, size // 4 - 100, size // 2, size * 3 // 4 + 4000, size - 5000):
            file.seek(place)
            original.seek(place)
            assert file.read(10_000) == original.read(10_000)
    shared_world.umount(point)


def one_file(content: bytes) -> bytes:
    return t.archive(ROOT, t.file(b"which", content))


@pytest.mark.parametrize("media_type", [INDEX, DOCKER_LIST])
def test_platforms(media_type: str, shared_world: World, tmp_path: Path) -> None:
    here = this_machine()
    other = {"os": "linux", "architecture": "riscv64"}
    arm = [{"os": "linux", "architecture": "arm", "variant": variant} for variant in ("v6", "v7")]
    images = [Image([one_file(str(place).encode())], platform=place) for place in (*arm, other, here)]
    source = f"oci:{platform_index(tmp_path / 'layout', images, media_type=media_type)}"
    for options, expected in (([], here), (["--platform", "linux/riscv64"], other), (["--platform", "linux/arm/v7"], arm[1])):
        seen, _ = look(shared_world, source, tmp_path, *options)
        assert seen[b"which"].size == len(str(expected))
        name = f"platform/{'-'.join(options[1:]).replace('/', '-') or 'here'}"
        said = shared_world.run("convert", source, name, *options)
        assert expected["architecture"] in said.out + said.err


def test_docker_media_types(shared_world: World, tmp_path: Path) -> None:
    tar = t.archive(ROOT, t.file(b"a", b"1"), t.directory(b"d"))
    docker, _ = look(shared_world, f"oci:{layout(tmp_path / 'docker', Image([tar], docker=True))}", tmp_path)
    assert differences(look(shared_world, f"oci:{simple(tmp_path / 'oci', tar)}", tmp_path)[0], docker) == []


def test_docker_archive_by_hand(shared_world: World, tmp_path: Path) -> None:
    lower, upper = t.archive(ROOT, t.file(b"a", b"1"), t.file(b"b", b"2")), t.archive(t.whiteout(b"a"), t.file(b"c", b"3"))
    seen, _ = look(shared_world, f"docker-archive:{docker_archive(tmp_path / 'image.tar', [lower, upper])}", tmp_path)
    assert sorted(seen) == [b"", b"b", b"c"]


def test_tags(shared_world: World, tmp_path: Path) -> None:
    source = layout(tmp_path / "layout", *[Image([one_file(tag.encode())], tag=tag) for tag in ("one", "three")])
    archive = pack_directory(source, tmp_path / "image.tar")
    for spec in (f"oci:{source}", f"oci-archive:{archive}"):
        for tag in ("one", "three"):
            seen, _ = look(shared_world, f"{spec}:{tag}", tmp_path)
            assert seen[b"which"].size == len(tag)


def test_archive_order_does_not_matter(make_world: Any, tmp_path: Path) -> None:
    """The index may come last in an archive, after the blobs that it names, or first."""
    import tarfile  # noqa: PLC0415 # beside its only use

    source = simple(tmp_path / "layout", one_file(noise(50_000)))
    files = sorted(path for path in source.rglob("*") if path.is_file())
    digests = set()
    for number, order in enumerate((files, files[::-1])):
        archive = tmp_path / f"{number}.tar"
        with tarfile.open(archive, "w") as tar:
            for path in order:
                tar.add(path, f"./{path.relative_to(source)}")
        digests.add(make_world(f"world{number}").convert(f"oci-archive:{archive}")["manifest"])
    assert len(digests) == 1
