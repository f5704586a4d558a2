"""The manifest: the JSON document whose digest is an image's identity. ``docs/format/manifest.md`` is the specification.

Invariants: one manifest has one spelling (sorted keys, no spaces, UTF-8, one newline at the end), so equal manifests have equal digests; it holds
nothing of the machine, the store or the moment; a document with an unknown field, version or kind is refused, and one that is too long or
nested too deeply is refused before it is parsed.
"""

import re
from typing import Any, Final

import msgspec

from imagefs.digest import is_hex_digest
from imagefs.errors import IntegrityError, UnsupportedError

MANIFEST_FORMAT: Final = 1
MANIFEST_MAX: Final = 16 * 1024 * 1024
"""Bytes in a manifest, at most."""
DEPTH_MAX: Final = 64
"""Levels of nesting in a manifest, at most."""


class _Strict(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """A document part that refuses what it does not know."""


class BlobName(_Strict):
    """A tree or an object map: hex digest and size in bytes of its uncompressed form."""

    digest: str
    size: int


class Platform(_Strict):
    """What the image runs on, in OCI's words."""

    os: str
    architecture: str
    variant: str = ""


class Layer(_Strict):
    """A layer of the source, for the record: the source's own digests (``sha256:…``)."""

    media_type: str
    digest: str
    diff_id: str


class Manifest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """An image: one tree, one object map, and what the source said of itself.

    ``files`` counts inodes that are not directories; ``bytes`` is the sum of the regular files' sizes, a hard link counted once;
    ``frame_size`` is the most bytes of content in a frame; ``config`` is the OCI image configuration as the source has it.
    """

    tree: BlobName
    objects: BlobName
    platform: Platform
    config: dict[str, Any]
    annotations: dict[str, str]
    layers: list[Layer]
    files: int
    bytes: int
    frame_size: int
    kind: str = "image"
    format: int = MANIFEST_FORMAT


class _Version(msgspec.Struct):
    format: int
    kind: str


def encode(manifest: Manifest) -> bytes:
    """Return the manifest's one spelling."""
    return msgspec.json.encode(manifest, order="sorted") + b"\n"


def decode(data: bytes) -> Manifest:
    """Parse a manifest. ``UnsupportedError`` for another version or kind, ``IntegrityError`` for anything that is none."""
    if len(data) > MANIFEST_MAX:
        raise IntegrityError(f"a manifest of {len(data)} bytes: at most {MANIFEST_MAX} are allowed")
    check_depth(data, DEPTH_MAX)
    try:
        version = msgspec.json.decode(data, type=_Version)
        if version.format != MANIFEST_FORMAT or version.kind != "image":
            raise UnsupportedError(
                f"manifest of format {version.format}, kind {version.kind[:40]!r}: this version reads format {MANIFEST_FORMAT}, kind 'image'",
                hint="update imagefs",
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise IntegrityError(f"not a manifest: {error}") from error
    for blob in (manifest.tree, manifest.objects):
        if not is_hex_digest(blob.digest) or blob.size <= 0:
            raise IntegrityError(f"not a manifest: {blob.digest[:80]!r} of {blob.size} bytes names no blob")
    return manifest


_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{\]}]', re.DOTALL)


def check_depth(data: bytes, limit: int) -> None:
    """Refuse a JSON text that nests deeper than ``limit``, without parsing it (strings are skipped, so brackets in them do not count)."""
    depth = 0
    for match in _TOKEN.finditer(data):
        token = data[match.start()]
        if token in b"[{":
            depth += 1
            if depth > limit:
                raise IntegrityError(f"a JSON document that is nested deeper than {limit} levels")
        elif token in b"]}":
            depth -= 1
