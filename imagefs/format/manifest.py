"""The manifest: the JSON document whose digest is an image's identity. It is specified in ``docs/format/manifest.md``.

Invariants: there is one way to write a manifest (sorted keys, no spaces, one newline at the end), and anything else is refused, so equal
images have equal digests. Parsing is bounded in size and depth before the parser sees a byte.

What does not live here: reading manifests from a store and verifying their digest (``imagefs.store.images``).
"""

import re
from typing import Annotated, Any, Final

import msgspec

from imagefs.digest import Buffer
from imagefs.errors import IntegrityError, LimitError, UnsupportedError

MANIFEST_FORMAT: Final = 1
MAX_MANIFEST: Final = 16 * 1024 * 1024
"""Bytes of a manifest, at most."""

MAX_DEPTH: Final = 64
"""Levels of arrays and objects in a manifest, at most."""

IMAGE: Final = "image"
"""The kind of what is made from a container image or a directory."""

SNAPSHOT: Final = "snapshot"
"""The kind of what holds the files of a checkpoint. It is read like any image."""

KINDS: Final = frozenset({IMAGE, SNAPSHOT})

HexDigest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
SourceDigest = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[0-9A-Za-z=_-]{1,200}\Z")]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]

# A string, whole or cut off, or a bracket: each byte is looked at once, also in a document made to prevent that.
_TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[][{}]', re.DOTALL)


class BlobName(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A blob: the hex digest of its uncompressed bytes and how many those are."""

    digest: HexDigest
    size: Count


class Platform(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the image runs on, in the words of OCI. ``variant`` is left out where there is none."""

    os: str
    architecture: str
    variant: str | None = None


class Layer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A layer of the source: a record of where the image came from. ``digest`` and ``diff_id`` are spelled ``algorithm:hex``."""

    media_type: str
    digest: SourceDigest
    diff_id: SourceDigest | None = None


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An image: its tree, its object map and what it came with.

    ``files`` counts what is no directory and ``bytes`` adds up the files' logical sizes, a hard link once; ``frame_size`` is the bytes of
    content in a frame, at most. ``layers`` has the bottom one first. ``kind`` is one of ``KINDS``: who needs an image proper asks it.
    """

    tree: BlobName
    objects: BlobName
    platform: Platform
    config: dict[str, Any]
    annotations: dict[str, str]
    layers: list[Layer]
    files: Count
    bytes: Count
    frame_size: Count
    kind: str = IMAGE
    format: int = MANIFEST_FORMAT


class _Head(msgspec.Struct):
    """What every version of a manifest has."""

    format: int
    kind: str


_encoder: Final = msgspec.json.Encoder(order="sorted")
_decoder: Final = msgspec.json.Decoder(Manifest)
_head_decoder: Final = msgspec.json.Decoder(_Head)


def encode(manifest: Manifest) -> bytes:
    """Return the one spelling of ``manifest``.

    ``LimitError`` if it is too large or too deep, ``UnsupportedError`` if JSON cannot hold it.
    """
    try:
        data = _encoder.encode(manifest) + b"\n"
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UnsupportedError(f"the image's configuration cannot be kept in a manifest: {error}") from None
    _check_bounds(data)
    return data


def decode(data: Buffer) -> Manifest:
    """Read a manifest.

    ``LimitError`` past ``MAX_MANIFEST`` or ``MAX_DEPTH``, ``UnsupportedError`` for another format or kind, ``IntegrityError`` for
    anything that is not a manifest in its one spelling.
    """
    _check_bounds(data)
    try:
        head = _head_decoder.decode(data)
        if head.format != MANIFEST_FORMAT:
            raise UnsupportedError(f"manifest format {head.format} is not known", hint="a newer version of ImageFS wrote it")
        if head.kind not in KINDS:
            raise UnsupportedError(
                f"a manifest of kind {head.kind[:80]!r} cannot be used here",
                hint=f"this version knows the kinds {', '.join(sorted(KINDS))}",
            )
        manifest = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise IntegrityError(f"not a manifest: {error}") from None
    if encode(manifest) != data:
        raise IntegrityError("not a manifest: it is not in canonical form")
    return manifest


def _check_bounds(data: Buffer) -> None:
    """Raise ``LimitError`` for a document that is too large or too deep to be handed to a parser."""
    if len(data) > MAX_MANIFEST:
        raise LimitError(f"a manifest of {len(data)} bytes: at most {MAX_MANIFEST} are allowed")
    check_depth(data, MAX_DEPTH, "a manifest")


def check_depth(data: Buffer, limit: int, what: str) -> None:
    """Raise ``LimitError`` for a JSON text of more than ``limit`` levels, without parsing it. ``what`` names it in the message."""
    depth = 0
    for token in _TOKEN.finditer(data):
        first = data[token.start()]
        if first in b"[{":
            depth += 1
            if depth > limit:
                raise LimitError(f"{what} of more than {limit} levels")
        elif first in b"]}":
            depth -= 1
