"""OCI layouts and Docker archives from layers given as bytes; any part of them can lie.

Everything is a pure function of the arguments: the same call gives the same bytes on every machine.
"""

import gzip
import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import zstandard

INDEX: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_REF_NAME: Final = "org.opencontainers.image.ref.name"

COMPRESS: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "": lambda data: data,
    "+gzip": lambda data: gzip.compress(data, 6, mtime=0),
    "+zstd": lambda data: zstandard.ZstdCompressor(level=3).compress(data),
}
"""By the ending of the media type."""


def sha256(data: bytes) -> str:
    """Return a digest as OCI writes it."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def this_machine() -> dict[str, str]:
    """Return the platform of the machine, as OCI names it."""
    import platform  # noqa: PLC0415 # beside its only use

    machine = platform.machine()
    return {"os": "linux", "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)}


@dataclass(frozen=True)
class Layer:
    """One layer: the tar's bytes, and what is said of it where that is not the truth."""

    tar: bytes
    suffix: str = "+gzip"
    media_type: str | None = None
    stored: bytes | None = None
    digest: str | None = None
    diff_id: str | None = None
    size: int | None = None

    @property
    def blob(self) -> bytes:
        """The bytes as they lie in the layout."""
        return COMPRESS[self.suffix](self.tar) if self.stored is None else self.stored


@dataclass
class Image:
    """One image of a layout. ``config`` and ``manifest`` are merged over what would be written."""

    layers: Sequence[Layer | bytes]
    tag: str | None = "latest"
    platform: Mapping[str, str] = field(default_factory=this_machine)
    config: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    docker: bool = False

    @property
    def as_layers(self) -> list[Layer]:
        """The layers, those given as bytes wrapped."""
        return [Layer(layer) if isinstance(layer, bytes) else layer for layer in self.layers]


def as_json(document: object) -> bytes:
    """Return a document as bytes, always the same ones."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


class Layout:
    """An OCI layout in a directory, written blob by blob."""

    def __init__(self, path: Path) -> None:
        """Make the directory."""
        self.path = path
        (path / "blobs/sha256").mkdir(parents=True)
        (path / "oci-layout").write_bytes(b'{"imageLayoutVersion":"1.0.0"}')

    def blob(self, data: bytes, *, digest: str | None = None) -> dict[str, Any]:
        """Store a blob, under ``digest`` if given; return its descriptor, without a media type."""
        digest = digest or sha256(data)
        (self.path / "blobs" / digest.replace(":", "/")).write_bytes(data)
        return {"digest": digest, "size": len(data)}

    def image(self, image: Image) -> dict[str, Any]:
        """Store config, layers and manifest; return the manifest's descriptor for an index."""
        layers = []
        for layer in image.as_layers:
            described = self.blob(layer.blob, digest=layer.digest)
            default = DOCKER_LAYER if image.docker else LAYER + layer.suffix
            layers.append(described | {"mediaType": layer.media_type or default} | ({} if layer.size is None else {"size": layer.size}))
        config = {
            **image.platform,
            "config": {"Cmd": ["/bin/true"]},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id or sha256(layer.tar) for layer in image.as_layers]},
            "history": [{"created_by": "test"} for _ in layers],
        } | dict(image.config)
        manifest = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST if image.docker else MANIFEST,
            "config": self.blob(as_json(config)) | {"mediaType": DOCKER_CONFIG if image.docker else CONFIG},
            "layers": layers,
        } | dict(image.manifest)
        described = self.blob(as_json(manifest)) | {"mediaType": manifest["mediaType"]}
        if image.tag is not None:
            described["annotations"] = {_REF_NAME: image.tag}
        return described

    def index(self, descriptors: Sequence[Mapping[str, Any]]) -> None:
        """Write index.json."""
        (self.path / "index.json").write_bytes(as_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": list(descriptors)}))


def layout(path: Path, *images: Image) -> Path:
    """Write an OCI layout with these images, each under its tag."""
    made = Layout(path)
    made.index([made.image(image) for image in images])
    return path


def platform_index(path: Path, images: Sequence[Image], *, tag: str = "latest", media_type: str = INDEX) -> Path:
    """Write a layout whose one tag is an index of ``images`` by platform."""
    made = Layout(path)
    inner = []
    for image in images:
        described = made.image(image)
        described.pop("annotations", None)
        inner.append(described | {"platform": dict(image.platform)})
    nested = made.blob(as_json({"schemaVersion": 2, "mediaType": media_type, "manifests": inner}))
    made.index([nested | {"mediaType": media_type, "annotations": {_REF_NAME: tag}}])
    return path


def simple(path: Path, *layers: Layer | bytes, **fields: Any) -> Path:
    """Write a layout with one image, ``latest``, of these layers, the bottom one first."""
    return layout(path, Image(layers, **fields))


def pack_directory(source: Path, target: Path) -> Path:
    """Write a directory's files as a plain tar, in bytewise order and without anything of this machine: an ``oci-archive``."""
    with target.open("wb") as out, tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(item for item in source.rglob("*") if item.is_file()):
            info = tarfile.TarInfo(str(path.relative_to(source)))
            info.size = path.stat().st_size
            with path.open("rb") as data:
                tar.addfile(info, data)
    return target


def docker_archive(path: Path, layers: Sequence[bytes], *, tag: str | None = "test:latest", manifest: object = None) -> Path:
    """Write what ``docker save`` writes: uncompressed layers, a config, and manifest.json."""
    config = this_machine() | {
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
        "history": [],
    }
    config_bytes = as_json(config)
    config_name = sha256(config_bytes)[7:] + ".json"
    names = [f"{sha256(layer)[7:]}/layer.tar" for layer in layers]
    listed = manifest or [{"Config": config_name, "RepoTags": [tag] if tag else None, "Layers": names}]
    with path.open("wb") as out, tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in [*zip(names, layers, strict=True), (config_name, config_bytes), ("manifest.json", as_json(listed))]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def gzip_bomb(size: int) -> bytes:
    """Return ``size`` zeros, gzipped as far as it goes (about 1:1000)."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    chunk = bytes(1 << 20)
    return b"".join(squeeze.compress(chunk) for _ in range(size >> 20)) + squeeze.flush()


def zstd_bomb(size: int) -> bytes:
    """Return ``size`` zeros as zstd (about 1:30000)."""
    squeeze = zstandard.ZstdCompressor(level=3).compressobj()
    chunk = bytes(1 << 20)
    return b"".join(squeeze.compress(chunk) for _ in range(size >> 20)) + squeeze.flush()
