"""Runs of bytes, cut and joined without copying: what lies between a source's buffers and frames. Pure."""

from collections.abc import Iterable, Iterator
from typing import Final

from imagefs.digest import Buffer

FRAME_SIZE: Final = 256 * 1024
"""Bytes of content in a frame, at most."""

OWN_PACKS_FROM: Final = 1024 * 1024
"""An object of this size or more has packs of its own, and holes where its frames are zero."""

_ZERO_FRAME: Final = bytes(FRAME_SIZE)


def is_zero(part: Buffer) -> bool:
    """Say whether a buffer of at most a frame holds zeros alone."""
    # The two end bytes settle nearly every frame that is not zero, without a look at the rest. Of that a copy is compared: bytes are by
    # memcmp, views an item at a time, which takes a millisecond a frame in place of 16 microseconds.
    return not part[0] and not part[-1] and bytes(part) == (_ZERO_FRAME if len(part) == FRAME_SIZE else bytes(len(part)))


def cut(pieces: Iterable[Buffer], size: int) -> Iterator[list[Buffer]]:
    """Regroup buffers into frames of exactly ``size`` bytes (the last may be shorter), without copying."""
    parts: list[Buffer] = []
    missing = size
    for piece in pieces:
        view = memoryview(piece)
        while len(view) >= missing:
            parts.append(view[:missing])
            yield parts
            view = view[missing:]
            parts = []
            missing = size
        if view:
            parts.append(view)
            missing -= len(view)
    if parts:
        yield parts


def with_holes(pieces: Iterable[Buffer], segments: list[tuple[int, int]], size: int) -> Iterator[Buffer]:
    """Yield a sparse file's bytes with its holes as zeros; the zeros are one shared buffer."""
    source = iter(pieces)
    view = memoryview(b"")
    position = 0
    for offset, length in segments:
        yield from _zeros(offset - position)
        position = offset + length
        missing = length
        while missing:
            if not view:
                view = memoryview(next(source))
            yield view[:missing]
            taken = min(missing, len(view))
            view = view[taken:]
            missing -= taken
    yield from _zeros(size - position)


def _zeros(count: int) -> Iterator[Buffer]:
    while count >= FRAME_SIZE:
        yield _ZERO_FRAME
        count -= FRAME_SIZE
    if count > 0:
        yield memoryview(_ZERO_FRAME)[:count]
