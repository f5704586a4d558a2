"""An image source: which layers an image has, in which order, and what they must hash to.

Takes OCI layouts and archives, and what ``docker save`` writes. Invariants: every document is read through a bound, checked for depth
before it is parsed, and verified against the digest and size of whoever named it; a digest is checked to be one before it becomes a path.
What was chosen where there was a choice is said in ``described``.

What does not live here: the layers' bytes (:mod:`imagefs.convert.stream`), and what is in them.
"""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Self, TypeVar

import msgspec

from imagefs.convert.archive import ArchiveFiles, DirectoryFiles, Files
from imagefs.convert.directory import DirSource
from imagefs.convert.platforms import Target, best, parse, this_machine
from imagefs.convert.stream import PLAIN, LayerBlob, compression_of
from imagefs.errors import AccessError, ImageFSError, LimitError, NotFoundError, SourceError, UnsupportedError, UsageError
from imagefs.format.manifest import check_depth

_DOCUMENT_MAX: Final = 4 * 1024 * 1024
_CONFIG_MAX: Final = 16 * 1024 * 1024
_DEPTH_MAX: Final = 60
_NESTED_MAX: Final = 4
_LAYERS_MAX: Final = 4096
_UNKNOWN: Final = "unknown"
"""The architecture of an image that names none. Not this machine's: an image is the same wherever it is converted."""

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")

_INDEX_TYPES: Final = {"application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"}
_MANIFEST_TYPES: Final = {"application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"}
_CONFIG_TYPES: Final = {"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"}
_LAYER: Final = re.compile(
    r"application/vnd\.(?:oci\.image\.layer(?:\.nondistributable)?\.v1\.tar|docker\.image\.rootfs(?:\.foreign)?\.diff\.tar)(?:[+.](gzip|zstd))?"
)


class _Platform(msgspec.Struct):
    os: str = ""
    architecture: str = ""
    variant: str = ""


class _Descriptor(msgspec.Struct, rename="camel"):
    digest: str
    size: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    media_type: str = ""
    annotations: dict[str, str] | None = None
    platform: _Platform | None = None
    artifact_type: str = ""


class _LayoutFile(msgspec.Struct, rename="camel"):
    image_layout_version: str


class _Index(msgspec.Struct, rename="camel"):
    manifests: list[_Descriptor]
    schema_version: int = 2


class _Manifest(msgspec.Struct, rename="camel"):
    config: _Descriptor
    layers: list[_Descriptor]
    annotations: dict[str, str] | None = None
    artifact_type: str = ""
    media_type: str = ""
    manifests: Any = None
    schema_version: int = 2


class _RootFS(msgspec.Struct):
    type: str = "layers"
    diff_ids: list[str] = []


class _Config(msgspec.Struct):
    os: str = "linux"
    architecture: str = ""
    variant: str = ""
    rootfs: _RootFS = msgspec.field(default_factory=_RootFS)


class _DockerImage(msgspec.Struct, rename="pascal"):
    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


_T = TypeVar("_T")


@dataclass(slots=True)
class Source:
    """An image ready to be read. ``layers`` has the bottom one first; ``described`` says what was chosen. A context manager."""

    files: Files
    layers: list[LayerBlob]
    config: dict[str, Any]
    annotations: dict[str, str]
    platform: Target
    described: str
    notes: list[str] = field(default_factory=list)

    @property
    def layer_count(self) -> int:
        """How many layers."""
        return len(self.layers)

    def layer_name(self, index: int) -> str:
        """What people are told of a layer, by its index in ``layers``: they count from one."""
        return f"layer {index + 1} of {len(self.layers)}, {self.layers[index].name}"

    @property
    def total_bytes(self) -> int:
        """Bytes of all layers as they lie there."""
        return sum(layer.size for layer in self.layers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.files.close()


def open_source(spec: str, platform: str | None = None) -> "Source | DirSource":
    """Open ``oci:DIR[:TAG]``, ``oci-archive:FILE[:TAG]``, ``docker-archive:FILE[:NAME]``, ``dir:DIR`` or a bare path, which is looked into.

    ``platform`` (``os/architecture[/variant]``) is for images that have several; None takes this machine's. ``SourceError`` for what is
    malformed or missing, ``UnsupportedError`` for what is not an image that this version reads, ``NotFoundError`` if no platform fits.
    """
    target = parse(platform) if platform else this_machine()
    kind, _, rest = spec.partition(":")
    if kind not in ("oci", "oci-archive", "docker-archive", "dir"):
        kind, rest = _sniff(spec)
    if not rest:
        raise UsageError(
            f"{spec!r} names no file", hint="oci-archive:FILE[:TAG], oci:DIR[:TAG], docker-archive:FILE[:NAME], dir:DIR or a path"
        )
    if kind == "dir":
        return DirSource(Path(rest), target)
    path, tag = _split(rest)
    if not _exists(path):
        raise SourceError(
            f"there is no {str(path)[:200]}", hint="check the path; what follows its last colon was taken as a tag" if tag else None
        )
    files: Files = DirectoryFiles(path) if kind == "oci" else ArchiveFiles(path)
    try:
        if kind == "docker-archive":
            return _open_docker(files, tag, str(path), target if platform else None)
        return _Reader(files, target, platform is not None).open(tag, str(path))
    except BaseException:
        files.close()
        raise


def _split(rest: str) -> tuple[Path, str | None]:
    """Split ``PATH[:TAG]``. A tag may itself hold colons (``host:5000/name:tag``), a path too: the longest path that exists wins."""
    path = Path(rest)
    if _exists(path):
        return path, None
    at = len(rest)
    while (at := rest.rfind(":", 0, at)) > 0:
        if _exists(Path(rest[:at])):
            return Path(rest[:at]), rest[at + 1 :]
    head, colon, tag = rest.rpartition(":")
    return (Path(head), tag) if colon else (path, None)


def _exists(path: Path) -> bool:
    """Like ``Path.exists``, which raises for a path that is too long to be one. ``AccessError`` if this user cannot know."""
    try:
        return path.exists()
    except PermissionError:
        raise AccessError(f"this user may not look for {str(path)[:200]}") from None
    except OSError:
        return False


def _sniff(spec: str) -> tuple[str, str]:
    """Look into a bare path: an OCI layout, another directory, an OCI archive, or what ``docker save`` writes."""
    path, _ = _split(spec)
    if _exists(path) and path.is_dir():
        return ("oci", spec) if _exists(path / "oci-layout") or _exists(path / "index.json") else ("dir", spec)
    if not _exists(path):
        raise SourceError(
            f"there is no {str(path)[:200]}",
            hint="SOURCE is oci-archive:FILE[:TAG], oci:DIR[:TAG], docker-archive:FILE[:NAME], dir:DIR or a path",
        )
    if not path.is_file():
        raise SourceError(f"{path} is neither a file nor a directory")
    files = ArchiveFiles(path)
    try:
        for name, kind in (("index.json", "oci-archive"), ("manifest.json", "docker-archive")):
            if files.size(name) is not None:
                return kind, spec
    finally:
        files.close()
    raise SourceError(
        f"{path} is no image archive: it has neither index.json nor manifest.json", hint="`skopeo copy` and `docker save` write them"
    )


def _read(files: Files, name: str, limit: int) -> bytes:
    size = files.size(name)
    if size is None:
        raise SourceError(f"the image has no {name}", hint="it is incomplete: make or fetch it again")
    if size > limit:
        raise LimitError(f"{name} has {size} bytes: a document of its kind has at most {limit}")
    blob = files.open(name)
    try:
        data = b""
        while len(data) < size and (more := blob.read(size - len(data))):
            data += more
    finally:
        blob.close()
    return data


def _parse(data: bytes, kind: type[_T], name: str) -> _T:
    try:
        check_depth(data, _DEPTH_MAX, name)
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ImageFSError) as error:
        raise SourceError(f"{name} is not the document that it should be: {error}") from error


def _blob_name(descriptor: _Descriptor) -> str:
    if not _DIGEST.fullmatch(descriptor.digest):
        raise SourceError(f"not a digest: {descriptor.digest[:100]!r}", hint="sha256 and sha512 are known")
    algorithm, _, value = descriptor.digest.partition(":")
    return f"blobs/{algorithm}/{value}"


class _Reader:
    """Follows an OCI layout from its index to one image."""

    def __init__(self, files: Files, target: Target, asked: bool) -> None:
        self._files = files
        self._target = target
        self._asked = asked
        self._said: list[str] = []

    def open(self, tag: str | None, where: str) -> Source:
        # Some writers leave the marker out; one that is there says how to read the rest.
        if self._files.size("oci-layout") is not None:
            layout = _parse(_read(self._files, "oci-layout", _DOCUMENT_MAX), _LayoutFile, "oci-layout")
            if not layout.image_layout_version.startswith("1."):
                raise UnsupportedError(f"{where} is an OCI layout of version {layout.image_layout_version[:40]!r}", hint="1.x is known")
        index = _parse(_read(self._files, "index.json", _DOCUMENT_MAX), _Index, "index.json")
        descriptor = self._tagged(index, tag, where)
        for _ in range(_NESTED_MAX):
            if descriptor.media_type not in _INDEX_TYPES:
                break
            inner = _parse(self._document(descriptor, _DOCUMENT_MAX), _Index, f"index {descriptor.digest}")
            descriptor = self._fitting(inner.manifests)
        if descriptor.media_type not in _MANIFEST_TYPES:
            raise UnsupportedError(f"{descriptor.digest} has the media type {descriptor.media_type[:100]!r}: not an image manifest")
        return self._image(descriptor, where)

    def _document(self, descriptor: _Descriptor, limit: int) -> bytes:
        data = _read(self._files, _blob_name(descriptor), limit)
        algorithm, _, value = descriptor.digest.partition(":")
        if len(data) != descriptor.size:
            raise SourceError(f"{descriptor.digest} has {len(data)} bytes, not the {descriptor.size} that its descriptor says")
        if hashlib.new(algorithm, data).hexdigest() != value:
            raise SourceError(f"{descriptor.digest} is damaged: its bytes do not have that digest", hint="make or fetch the archive again")
        return data

    def _tagged(self, index: _Index, tag: str | None, where: str) -> _Descriptor:
        named = [(_name_of(d), d) for d in index.manifests]
        if not named:
            raise SourceError(f"{where} holds no image")
        if tag is not None:
            found = [(name, d) for name, d in named if name == tag] or [(name, d) for name, d in named if _tag_of(name) == tag]
            if not found and _DIGEST.fullmatch(tag):
                found = [("", d) for _, d in named if d.digest == tag]
            if not found:
                raise NotFoundError(f"{where} has no image {tag!r}", hint=f"it has {_listed(named)}")
        else:
            # Where there are names, what has none is no image that anybody meant.
            found = [(name, d) for name, d in named if name] or named
        if len({name for name, _ in found}) > 1 and len({d.digest for _, d in found}) > 1:
            what = "none was named" if tag is None else f"{tag!r} names more than one"
            raise SourceError(f"{where} holds several images and {what}", hint=f"add one of {_listed(found)} after a colon")
        # Several entries of one name are one image for several platforms.
        return found[0][1] if len({d.digest for _, d in found}) == 1 else self._fitting([d for _, d in found])

    def _fitting(self, descriptors: list[_Descriptor]) -> _Descriptor:
        """Choose by platform, the variants that this machine also runs after the exact one."""
        offered: list[tuple[Target, _Descriptor]] = []
        for descriptor in descriptors:
            platform = descriptor.platform or _Platform()
            if platform.os != "unknown" and not descriptor.artifact_type:
                offered.append((Target(platform.os or "linux", platform.architecture, platform.variant).normal, descriptor))
        fits = best(self._target, [target for target, _ in offered])
        if fits is None and len(offered) == 1 and not offered[0][0].architecture:
            fits = 0
        if fits is not None:
            if len(offered) > 1 or self._asked:
                self._said.append(f"{offered[fits][0]} of {', '.join(sorted({str(target) for target, _ in offered}))}")
            return offered[fits][1]
        names = ", ".join(sorted({str(target) for target, _ in offered})) or "none"
        raise NotFoundError(f"the image has nothing for {self._target}", hint=f"it has {names}: choose with --platform")

    def _image(self, descriptor: _Descriptor, where: str) -> Source:
        manifest = _parse(self._document(descriptor, _DOCUMENT_MAX), _Manifest, f"manifest {descriptor.digest}")
        if manifest.manifests is not None or manifest.media_type not in ("", descriptor.media_type):
            # One document, two readings: tools that differ would run different images of one digest (CVE-2021-41190).
            raise SourceError(f"manifest {descriptor.digest} says that it is something else as well")
        if manifest.config.media_type not in _CONFIG_TYPES:
            what = manifest.artifact_type or manifest.config.media_type
            raise UnsupportedError(f"{descriptor.digest} is an artifact of type {what[:100]!r}, not a container image")
        raw = self._document(manifest.config, _CONFIG_MAX)
        config = _parse(raw, _Config, "the image's config")
        diff_ids = config.rootfs.diff_ids
        if len(diff_ids) != len(manifest.layers):
            raise SourceError(f"the image has {len(manifest.layers)} layers and its config {len(diff_ids)} diff-ids")
        if len(diff_ids) > _LAYERS_MAX:
            raise LimitError(f"the image has {len(diff_ids)} layers: at most {_LAYERS_MAX} are read")
        platform = Target(config.os, config.architecture or _UNKNOWN, config.variant).normal
        if self._asked and platform.architecture != _UNKNOWN and best(self._target, [platform]) is None:
            raise NotFoundError(f"the image has nothing for {self._target}", hint=f"it is for {platform} only")
        layers = [self._layer(layer, diff_id) for layer, diff_id in zip(manifest.layers, diff_ids, strict=True)]
        described = "; ".join([f"{where}: {len(layers)} layers, {platform}", *self._said])
        return Source(
            self._files, layers, _parse(raw, dict[str, Any], "the image's config"), manifest.annotations or {}, platform, described
        )

    def _layer(self, layer: _Descriptor, diff_id: str) -> LayerBlob:
        if not _DIGEST.fullmatch(diff_id):
            raise SourceError(f"not a diff-id: {diff_id[:100]!r}")
        if "encrypted" in layer.media_type:
            raise UnsupportedError(f"layer {layer.digest} is encrypted", hint="decrypt the image first: `skopeo copy --decryption-key`")
        match = _LAYER.fullmatch(layer.media_type)
        if match is None:
            raise UnsupportedError(f"layer {layer.digest} has the media type {layer.media_type[:100]!r}, which this version does not read")
        name = _blob_name(layer)
        size = self._files.size(name)
        if size is None:
            raise SourceError(f"the image has no layer {layer.digest}", hint="it is incomplete: make or fetch it again")
        if size != layer.size:
            raise SourceError(f"layer {layer.digest} has {size} bytes, not the {layer.size} that the image says")
        files = self._files
        return LayerBlob(layer.media_type, layer.digest, diff_id, size, match[1] or PLAIN, lambda: files.open(name))


def _name_of(descriptor: _Descriptor) -> str:
    """Return what an index calls an image, ``""`` if nothing.

    Docker writes a bare tag there, which may be that of many images, and the whole name beside it.
    """
    annotations = descriptor.annotations or {}
    name = annotations.get("org.opencontainers.image.ref.name", "")
    whole = annotations.get("io.containerd.image.name", "")
    return whole if whole and (not name or _tag_of(whole) == name) else name


def _tag_of(name: str) -> str:
    return name.rpartition("/")[2].partition(":")[2]


def _listed(named: list[tuple[str, _Descriptor]]) -> str:
    names = sorted({name or descriptor.digest for name, descriptor in named})
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


# -- docker save --------------------------------------------------------------------------------------------------------------------------


def _open_docker(files: Files, name: str | None, where: str, target: Target | None) -> Source:
    images = _parse(_read(files, "manifest.json", _DOCUMENT_MAX), list[_DockerImage], "manifest.json")
    image = _docker_image(images, name, where)
    raw = _read(files, image.config, _CONFIG_MAX)
    named = re.search(r"(?:^|/)([0-9a-f]{64})(?:\.json)?$", image.config)
    if named and hashlib.sha256(raw).hexdigest() != named[1]:
        raise SourceError(f"{image.config} is damaged: its bytes do not have the digest that is its name")
    config = _parse(raw, _Config, image.config)
    diff_ids = config.rootfs.diff_ids
    if len(diff_ids) != len(image.layers):
        raise SourceError(f"the image has {len(image.layers)} layers and its config {len(diff_ids)} diff-ids")
    layers = [_docker_layer(files, layer, diff_id) for layer, diff_id in zip(image.layers, diff_ids, strict=True)]
    platform = Target(config.os, config.architecture or _UNKNOWN, config.variant).normal
    if target is not None and platform.architecture != _UNKNOWN and best(target, [platform]) is None:
        raise NotFoundError(f"the image has nothing for {target}", hint=f"it is for {platform} only")
    described = f"{where}: {len(layers)} layers, {platform}" + (f", {image.repo_tags[0]}" if image.repo_tags else "")
    return Source(files, layers, _parse(raw, dict[str, Any], image.config), {}, platform, described)


def _docker_image(images: list[_DockerImage], name: str | None, where: str) -> _DockerImage:
    if not images:
        raise SourceError(f"{where} holds no image")
    names = [tag for image in images for tag in image.repo_tags or ()]
    if name is None:
        if len(images) > 1:
            raise SourceError(f"{where} holds several images and none was named", hint=f"add one of {', '.join(names[:10])} after a colon")
        return images[0]
    for image in images:
        tags = image.repo_tags or []
        if name in tags or any(name in (tag.removesuffix(":latest"), tag.rpartition("/")[2]) for tag in tags):
            return image
    raise NotFoundError(f"{where} has no image {name!r}", hint=f"it has {', '.join(names[:10]) or 'images without names'}")


def _docker_layer(files: Files, name: str, diff_id: str) -> LayerBlob:
    if not _DIGEST.fullmatch(diff_id):
        raise SourceError(f"not a diff-id: {diff_id[:100]!r}")
    size = files.size(name)
    if size is None:
        raise SourceError(f"the archive has no layer {name[:200]!r}", hint="it is incomplete: make or fetch it again")
    blob = files.open(name)
    head = blob.read(4)
    blob.close()
    compression = compression_of(head)
    # The archive names no digest of a layer as it lies there: what counts is the diff-id.
    return LayerBlob("application/vnd.docker.image.rootfs.diff.tar", "", diff_id, size, compression, lambda: files.open(name))
