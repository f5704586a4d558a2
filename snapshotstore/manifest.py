"""A snapshot's record: what it is, and what a host must be for it. One JSON document, kept in an annotation of the manifest.

So it is fixed by the manifest's digest, comes with it in the same read, and says why a snapshot cannot be restored before a byte of memory
has moved. ``docs/format/manifest.md`` specifies it.

Invariants: there is one way to write a record (sorted keys, no spaces), and anything else is refused, as is a field that is not known; it
is bounded in size and depth before it is parsed. What it says is a claim of who published it: it names nothing that is used as a path, and
nothing in it is trusted beyond what the manifest is.

What does not live here: which host a record fits (``snapshotstore.compat``), and how it gets into a store (``snapshotstore.repository``).
"""

from collections.abc import Mapping
from typing import Annotated, Final

import msgspec

from imagefs.digest import digest_of
from imagefs.errors import IntegrityError, LimitError, UnsupportedError
from imagefs.format.manifest import BlobName, Count, HexDigest, check_depth

RECORD_FORMAT: Final = 1
MAX_RECORD: Final = 1024 * 1024
"""Bytes of a record, at most."""

MAX_RECORD_DEPTH: Final = 8

ANNOTATION: Final = "imagefs.snapshot"
"""The manifest's annotation that is the record."""

PAGES_ANNOTATION: Final = "imagefs.snapshot.pages"
"""The manifest's annotation that lists the page tables that it was cut by, its own first: ``[{"digest", "size"}]``."""

UNTOLD: Final = "0" * 64
"""In place of a digest that nobody told: of a checkpoint that was made by hand. Nothing has it, so it is taken for nothing else."""

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
GpuMode = Annotated[str, msgspec.Meta(pattern=r"\A(none|host|custom)\Z")]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every part of a record is."""


class Runtime(_Part, frozen=True):
    """The engine that froze the program.

    ``format`` is what its files are readable by; ``exact``: by no other ``version`` than this one. ``flags`` are to be given to it again.
    """

    engine: str
    version: str
    format: str
    exact: bool = True
    flags: tuple[str, ...] = ()


class Cpu(_Part, frozen=True):
    """What the program ran on, and may have looked at: libraries choose their code once, by what the processor has.

    ``features`` are named as ``/proc/cpuinfo`` names them; ``xsave`` is the size in bytes of a signal's frame, which is that of the
    registers and little more (0: not known); ``page_size`` is in bytes.
    """

    arch: str
    vendor: str = ""
    features: tuple[str, ...] = ()
    xsave: Count = 0
    page_size: Positive = 4096


class Oci(_Part, frozen=True):
    """Where the program ran.

    ``image`` is the manifest of its root, ``spec`` the digest of the sandbox's specification but for the sources of its mounts, and
    ``mounts`` has the targets of those.
    """

    image: HexDigest
    spec: HexDigest
    mounts: tuple[str, ...] = ()


class Gpu(_Part, frozen=True):
    """The GPUs that the program held.

    ``memory`` is in bytes of each; ``mode`` says whether, and by which way, what it had there is in the snapshot.
    """

    count: Positive
    model: str
    memory: Count
    uuids: tuple[str, ...]
    driver: str
    cuda: str
    mode: GpuMode = "none"


class Program(_Part, frozen=True):
    """The Python program, where it is one. ``environment`` has the names of the variables that it was started with, never their values."""

    version: str
    argv: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    torch: str = ""
    entry: str = ""
    source: HexDigest | None = None
    agent: str = ""


class Weights(_Part, frozen=True):
    """Weights that are not in the snapshot, and come back from the object tree ``manifest``."""

    manifest: HexDigest
    size: Count


class Economics(_Part, frozen=True):
    """Whether it is worth it, in seconds and bytes, as measured by who published the record. None: not measured.

    ``quarantined`` says why it is not to be restored any more; it is empty as long as it may be.
    """

    cold_p50: Seconds | None = None
    restore_p50: Seconds | None = None
    logical: Count | None = None
    unique: Count | None = None
    failures: Count = 0
    quarantined: str = ""


class Record(_Part, frozen=True):
    """See the module.

    ``lineage`` names those that share pages; ``key`` is what makes another member of it (:func:`key_of`), ``parent`` the manifest of the
    member that this one was restored from. ``profile`` is the digest of a blob: in which order a restore reads. ``created`` is in seconds
    since the epoch.
    """

    runtime: Runtime
    cpu: Cpu
    kernel: str
    oci: Oci
    lineage: str
    key: HexDigest
    created: Seconds
    gpu: Gpu | None = None
    python: Program | None = None
    weights: Weights | None = None
    parent: HexDigest | None = None
    profile: HexDigest | None = None
    economics: Economics = Economics()
    format: int = RECORD_FORMAT


class _Head(msgspec.Struct):
    format: int


_encoder: Final = msgspec.json.Encoder(order="sorted")
_decoder: Final = msgspec.json.Decoder(Record)
_head: Final = msgspec.json.Decoder(_Head)
_blobs: Final = msgspec.json.Decoder(list[BlobName])


def key_of(**parts: object) -> str:
    """Return the key of what a snapshot was made from: the digest of all ``parts``, by name. Any change of one makes another key.

    Parts are what JSON has: the image's manifest, the source tree, the agent's version, arguments, names of the environment.
    """
    return digest_of(_encoder.encode(parts)).hex()


def encode(record: Record) -> str:
    """Return the one spelling of ``record``. ``LimitError`` if it is too large, ``UnsupportedError`` if JSON cannot hold it."""
    try:
        text = _encoder.encode(record)
        # Types and bounds are looked at by the decoder alone; and what is not a number is written as null.
        _decoder.decode(text)
    except (TypeError, ValueError, OverflowError) as error:
        raise UnsupportedError(f"this cannot be kept in a snapshot's record: {error}") from None
    if len(text) > MAX_RECORD:
        raise LimitError(f"a snapshot's record of {len(text)} bytes: at most {MAX_RECORD} are allowed")
    return text.decode()


def decode(text: str) -> Record:
    """Read a record.

    ``LimitError`` past its bounds, ``UnsupportedError`` for another format, ``IntegrityError`` for what is no record in its one spelling.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise IntegrityError(f"not a snapshot's record: {error}") from None
    if len(data) > MAX_RECORD:
        raise LimitError(f"a snapshot's record of {len(data)} bytes: at most {MAX_RECORD} are allowed")
    check_depth(data, MAX_RECORD_DEPTH, "a snapshot's record")
    try:
        found = _head.decode(data).format
        if found != RECORD_FORMAT:
            raise UnsupportedError(
                f"format {found} of a snapshot's record is not known: this version reads {RECORD_FORMAT}",
                hint="another version of ImageFS wrote it: make the snapshot again",
            )
        record = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"not a snapshot's record: {error}") from None
    if _encoder.encode(record) != data:
        raise IntegrityError("not a snapshot's record: it is not in canonical form")
    return record


def annotations(record: Record, pages: list[BlobName]) -> dict[str, str]:
    """Return the annotations of a snapshot's manifest."""
    made = {ANNOTATION: encode(record)}
    if pages:
        made[PAGES_ANNOTATION] = _encoder.encode(pages).decode()
    return made


def read(found: Mapping[str, str]) -> Record:
    """Return the record among a manifest's annotations. ``IntegrityError`` if there is none; what :func:`decode` raises."""
    text = found.get(ANNOTATION)
    if text is None:
        raise IntegrityError(f"not a snapshot: its manifest has no annotation {ANNOTATION}")
    return decode(text)


def pages_of(found: Mapping[str, str]) -> list[BlobName]:
    """Return the page tables that a manifest's annotations name, its own first. ``IntegrityError`` for what is no such list."""
    text = found.get(PAGES_ANNOTATION)
    if text is None:
        return []
    try:
        return _blobs.decode(text)
    except (msgspec.MsgspecError, UnicodeEncodeError) as error:
        raise IntegrityError(f"not a list of page tables: {error}") from None
