"""What a source names is one image, or an error that says why not."""

import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from imagefs.convert.directory import DirSource
from imagefs.convert.oci import Source, open_source
from imagefs.errors import ImageFSError, LimitError, NotFoundError, SourceError, UnsupportedError
from tests.convert.archives import archive, member, one_file_tar
from tests.corpus.oci import Image, Layout, docker_archive, layout, pack_directory, platform_index, simple

pytestmark = pytest.mark.timeout(60)

A, B = one_file_tar("a"), one_file_tar("b")
ARM = {"os": "linux", "architecture": "arm64"}


def opened(spec: str, platform: str | None = None) -> Source:
    source = open_source(spec, platform)
    assert isinstance(source, Source)
    source.__exit__()
    return source


def saved_by_docker(path: Path) -> Path:
    """Write two images as Docker 25 does: the ref name is the bare tag, the whole name another annotation."""
    made = Layout(path)
    descriptors = []
    for name, tar in (("a", A), ("b", B)):
        descriptor = made.image(Image([tar]))
        descriptor["annotations"]["io.containerd.image.name"] = f"docker.io/library/{name}:latest"
        descriptors.append(descriptor)
    made.index(descriptors)
    return path


def test_every_kind_opens_by_name_and_by_sniffing(tmp_path: Path) -> None:
    where = simple(tmp_path / "layout", A, B)
    packed = pack_directory(where, tmp_path / "oci.tar")
    saved = docker_archive(tmp_path / "docker.tar", [A, B])
    for spec in (f"oci:{where}", f"oci:{where}:latest", where, f"oci-archive:{packed}:latest", packed, f"docker-archive:{saved}", saved):
        source = opened(str(spec))
        assert source.layer_count == 2
        assert source.total_bytes == sum(layer.size for layer in source.layers)
    assert isinstance(open_source(f"dir:{tmp_path}", None), DirSource)


def test_two_images_with_one_tag_are_told_apart_by_the_whole_name(tmp_path: Path) -> None:
    where = saved_by_docker(tmp_path / "two")
    with pytest.raises(SourceError, match="several") as caught:
        opened(f"oci:{where}")
    assert "docker.io/library/a:latest" in str(caught.value.hint)
    first = opened(f"oci:{where}:docker.io/library/a:latest")
    second = opened(f"oci:{where}:docker.io/library/b:latest")
    assert first.layers[0].digest != second.layers[0].digest


def test_a_tag_that_means_two_images_is_refused(tmp_path: Path) -> None:
    where = layout(tmp_path / "two", Image([A], tag="x/a:v1"), Image([B], tag="x/b:v1"))
    with pytest.raises(SourceError, match="several"):
        opened(f"oci:{where}:v1")
    assert opened(f"oci:{where}:x/b:v1").layer_count == 1


def test_an_unknown_tag_lists_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        opened(f"oci:{simple(tmp_path / 'layout', A, tag='v7')}:nope")
    assert "v7" in str(caught.value.hint)


def test_platform_is_chosen_and_said(tmp_path: Path) -> None:
    where = platform_index(tmp_path / "many", [Image([A], platform=ARM), Image([B], platform={"os": "linux", "architecture": "amd64"})])
    source = opened(f"oci:{where}", "linux/aarch64")
    assert str(source.platform) == "linux/arm64"
    assert "linux/amd64" in source.described
    with pytest.raises(NotFoundError) as caught:
        opened(f"oci:{where}", "linux/s390x")
    assert "linux/arm64" in str(caught.value.hint)


def test_an_older_variant_fits(tmp_path: Path) -> None:
    arms = [Image([A], platform={"os": "linux", "architecture": "arm", "variant": f"v{number}"}) for number in (5, 6)]
    where = platform_index(tmp_path / "arms", [*arms, Image([B], platform=ARM)])
    assert str(opened(f"oci:{where}", "linux/arm/v7").platform) == "linux/arm/v6"
    assert str(opened(f"oci:{where}", "linux/arm/v5").platform) == "linux/arm/v5"


@pytest.mark.parametrize("kind", ["oci", "docker"])
def test_the_machine_is_not_in_an_image_that_names_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    where = f"oci:{simple(tmp_path / 'layout', A, platform={})}"
    if kind == "docker":
        monkeypatch.setattr("tests.corpus.oci.this_machine", dict)
        where = f"docker-archive:{docker_archive(tmp_path / 'docker.tar', [A])}"
    found = set()
    for machine in ("x86_64", "aarch64"):
        monkeypatch.setattr("imagefs.convert.platforms._machine.machine", lambda machine=machine: machine)
        found.add(opened(where).platform)
    assert len(found) == 1


def test_docker_archives_are_for_one_platform(tmp_path: Path) -> None:
    saved = docker_archive(tmp_path / "docker.tar", [A])
    with pytest.raises(NotFoundError, match="linux/s390x"):
        opened(f"docker-archive:{saved}", "linux/s390x")


def test_links_of_a_docker_archive_stay_in_it(tmp_path: Path) -> None:
    for link in ("../../../../etc/passwd", "/etc/passwd", "self/layer.tar"):
        path = archive(
            tmp_path / "docker.tar",
            member("self/layer.tar", kind=tarfile.SYMTYPE, link="../self/layer.tar"),
            member("x/layer.tar", kind=tarfile.SYMTYPE, link=link),
            member("c.json", b'{"os":"linux","architecture":"amd64","rootfs":{"diff_ids":["sha256:%s"]}}' % (b"0" * 64)),
            member("manifest.json", b'[{"Config":"c.json","Layers":["x/layer.tar"]}]'),
        )
        with pytest.raises(SourceError):
            opened(f"docker-archive:{path}")


@pytest.mark.parametrize(
    "fields, error",
    [
        ({"manifests": []}, SourceError),
        ({"config": {"digest": "sha256:" + "0" * 64, "size": 2, "mediaType": "application/vnd.oci.empty.v1+json"}}, UnsupportedError),
        ({"layers": []}, SourceError),
    ],
)
def test_manifests_with_two_meanings_or_none(tmp_path: Path, fields: dict[str, object], error: type[ImageFSError]) -> None:
    with pytest.raises(error):
        opened(f"oci:{simple(tmp_path / 'layout', A, manifest=fields)}")


@pytest.mark.parametrize("digest", ["sha256:../../secret", "sha256:" + "A" * 64, "md5:" + "0" * 32])
def test_what_is_no_digest_never_becomes_a_path(tmp_path: Path, digest: str) -> None:
    made = Layout(tmp_path / "layout")
    (made.path / "secret").write_bytes(b"{}")
    made.index([made.image(Image([A])) | {"digest": digest}])
    with pytest.raises(SourceError, match="not a digest"):
        opened(f"oci:{made.path}")


def test_a_missing_blob_is_named(tmp_path: Path) -> None:
    made = Layout(tmp_path / "layout")
    made.index([made.image(Image([A])) | {"digest": "sha256:" + "0" * 64}])
    with pytest.raises(SourceError, match="0" * 64):
        opened(f"oci:{made.path}")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
@pytest.mark.parametrize("size", [1 << 33, 1 << 40, 1 << 62])
def test_a_header_that_claims_more_than_there_is(tmp_path: Path, kind: bytes, size: int) -> None:
    path = archive(tmp_path / "x.tar", member("p", kind=kind, size=size))
    with pytest.raises((SourceError, LimitError)):
        open_source(f"oci-archive:{path}", None)


def test_a_long_header_is_not_read_whole(tmp_path: Path) -> None:
    """A sparse file: a terabyte that costs nothing, unless someone reads it into memory."""
    path = archive(tmp_path / "x.tar", member("p", kind=tarfile.XHDTYPE, size=1 << 40))
    os.truncate(path, (1 << 40) + 4096)
    with pytest.raises((SourceError, LimitError)):
        open_source(f"oci-archive:{path}", None)


def within(seconds: float, call: Callable[[], object]) -> BaseException | None:
    """Return what a call raised; fails if it takes longer."""
    raised: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 # it is handed to the test
            raised.append(error)
        else:
            raised.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert raised, "it hangs"
    return raised[0]


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_a_fifo_is_no_archive(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert isinstance(within(5, lambda: open_source(f"{kind}:{tmp_path}/fifo", None)), SourceError)


@pytest.mark.parametrize(
    "spec", ["x" * 5000, "oci:" + "x" * 5000, "oci:a\0b", "docker://alpine", "oci:", "dir:/nonexistent", "oci-archive:/dev/null"]
)
def test_specs_that_name_nothing(spec: str) -> None:
    with pytest.raises(ImageFSError):
        open_source(spec, None)
