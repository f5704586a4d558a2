"""Pieces of slabs, and what threads do with them: read them from SSD or decode them out of a GET, in place, and verify them.

Invariant: what a thread here does not return as failed holds verified bytes. The threads write to pieces that are ``IN_FLIGHT`` and touch
nothing else: what becomes of a piece is decided on the trio thread (``imagefs.cache.fetcher``).
"""

from typing import Final

from blake3 import blake3

from imagefs.cache.decode import Work, decode_into, decode_slice
from imagefs.cache.disk_files import OpenFile
from imagefs.cache.layout import Part
from imagefs.cache.slab import Slab
from imagefs.decompressors import Decompressors
from imagefs.errors import ImageFSError
from imagefs.format.objectmap import FrameRow

FIRST: Final = 1024 * 1024
"""Bytes of content that a thread reads from SSD or decodes first, if a reader waits: it should not wait for more."""

REST: Final = 4 * 1024 * 1024
"""Bytes of content that a thread reads or decodes at once otherwise: each hand-over costs as much as decoding a fifth of a megabyte."""

Tag = tuple[Part, int]
"""A piece of a part's slab."""

Frames = list[tuple[Tag, FrameRow]]
Failures = list[tuple[Tag, FrameRow, ImageFSError]]
"""Pieces that could not be had, and why."""


def key_of(part: Part, piece: int) -> tuple[Slab, int]:
    """Return what names a piece, whichever part it was asked for through: not its slab's name, which a later slab may have too."""
    assert part.slab is not None
    return part.slab, piece


def chunked(frames: Frames, *, demand: bool) -> list[Frames]:
    """Split frames, in their order, into runs of about ``REST`` bytes of content, or if a reader waits, the first of about ``FIRST``."""
    chunks: list[Frames] = []
    size, full = 0, 0
    for item in frames:
        if size >= full:
            full = FIRST if demand and not chunks else REST
            chunks.append([])
            size = 0
        chunks[-1].append(item)
        size += item[1].length
    return chunks


def side_by_side(frames: Frames) -> list[Frames]:
    """Split pieces, in their order, into runs of those that follow each other in one part."""
    runs: list[Frames] = []
    last: tuple[Part | None, int] = (None, 0)
    for item in frames:
        part, piece = item[0]
        if part is not last[0] or piece != last[1] + 1:
            runs.append([])
        runs[-1].append(item)
        last = (part, piece)
    return runs


def read_pieces(part: Part, file: OpenFile, frames: Frames) -> Frames:
    """Read pieces of one slab from its file; return those that are not there as they should be. Neighbours are read at once."""
    slab = part.slab
    assert slab is not None
    view, bounds = slab.view, slab.bounds
    failed: Frames = []
    for run in side_by_side(frames):
        start, end = bounds[run[0][0][1]], bounds[run[-1][0][1] + 1]
        try:
            there = file.read_into(view[start:end], part.base + start)
        except OSError:
            there = False
        if not there and len(run) > 1:
            failed += (item for single in run for item in read_pieces(part, file, [single]))
        else:
            failed += (item for item in run if not there or blake3(_target(item[0])).digest() != part.digest(item[1]))
    return failed


class Decoder:
    """Decodes frames, with a zstd context a thread."""

    def __init__(self) -> None:
        """Any number of threads may use it at once."""
        self._decompressors = Decompressors()

    def decode(self, data: memoryview, start: int, frames: Frames, work: Work | None = None) -> Failures:
        """Decode frames that lie in ``data``, which begins at byte ``start`` of the pack, into their pieces; return those that failed.

        What whole frames take is added to ``work``, which is the calling thread's alone until then.
        """
        failed: Failures = []
        decompressor = self._decompressors.own
        for tag, frame in frames:
            at = frame.offset - start
            try:
                stored, part = data[at : at + frame.stored], tag[0]
                if part.within is None:
                    decode_into(_target(tag), stored, frame, decompressor, work)
                else:
                    decode_slice(_target(tag), stored, frame, (part.within, part.record.digest), decompressor)
            except ImageFSError as error:
                failed.append((tag, frame, error))
        return failed


def _target(tag: Tag) -> memoryview:
    part, piece = tag
    slab = part.slab
    assert slab is not None
    return slab.view[slab.bounds[piece] : slab.bounds[piece + 1]]
