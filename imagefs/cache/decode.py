"""Stored frames become content, in place: straight into the buffer that readers are answered from.

Invariant: when :func:`decode_into` returns, ``target`` holds the frame's content, verified by its digest. When it raises, ``target`` holds
garbage that nobody must be shown. What does not live here: the frame format (``imagefs.format.pack``), whose ``decode_frame`` makes a new
``bytes`` instead and is what everything uses that is not on the way of a read.
"""

import ctypes
import time
from typing import Final

import zstandard
from blake3 import blake3

from imagefs.errors import IntegrityError, UnsupportedError
from imagefs.format.objectmap import FrameRow
from imagefs.format.pack import CODEC_RAW, CODEC_ZSTD, decode_frame

_POPULATE_WRITE: Final = 23  # MADV_POPULATE_WRITE, from Linux 5.14 on
_POPULATE_FROM: Final = 64 * 1024
_PAGE: Final = 4096
_libc: Final = ctypes.CDLL(None)


def _populate(target: memoryview) -> None:
    """Have the memory behind a buffer made, without the interpreter's lock: a plain copy would hold that while pages are zeroed."""
    if len(target) >= _POPULATE_FROM:
        start = ctypes.addressof(ctypes.c_char.from_buffer(target))
        first = start & -_PAGE
        # Where the kernel does not know this, the copy makes the pages.
        _libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(start + len(target) - first), _POPULATE_WRITE)


class Work:
    """CPU time of a thread, in nanoseconds: for content from what is stored, and to compare it with its digest."""

    __slots__ = ("_at", "decode_ns", "verify_ns")

    def __init__(self) -> None:
        """Nothing was done yet."""
        self.decode_ns = self.verify_ns = self._at = 0

    def begins(self) -> None:
        """A frame is looked at from now on."""
        self._at = time.thread_time_ns()

    def is_decoded(self) -> None:
        """What was done since is decoding."""
        now = time.thread_time_ns()
        self.decode_ns += now - self._at
        self._at = now

    def is_verified(self) -> None:
        """What was done since is verifying."""
        self.verify_ns += time.thread_time_ns() - self._at


def decode_into(
    target: memoryview, stored: memoryview, frame: FrameRow, decompressor: zstandard.ZstdDecompressor, work: Work | None = None
) -> None:
    """Decode ``stored`` into ``target``, which has exactly ``frame.length`` bytes.

    ``IntegrityError`` if that does not give the frame, ``UnsupportedError`` for an unknown codec. ``decompressor`` belongs to the calling
    thread; what it takes is added to ``work``. The heavy work releases the GIL.
    """
    if work is not None:
        work.begins()
    if frame.codec == CODEC_ZSTD:
        try:
            # With the size stated and room for all of it, zstd decodes straight into the target, without a window of its own.
            if zstandard.frame_content_size(stored) != frame.length:
                raise IntegrityError(f"frame {frame.digest.hex()}: states another length than {frame.length}")
            with decompressor.stream_reader(stored) as reader:
                count = reader.readinto(target)
        except zstandard.ZstdError as error:
            raise IntegrityError(f"frame {frame.digest.hex()}: does not decompress: {error}") from None
    elif frame.codec == CODEC_RAW:
        count = len(stored)
        if count == frame.length:
            _populate(target)
            target[:] = stored
    else:
        raise UnsupportedError(f"frame {frame.digest.hex()}: codec {frame.codec} is not known", hint="a newer version of ImageFS wrote it")
    if work is not None:
        work.is_decoded()
    if count != frame.length or blake3(target).digest() != frame.digest:
        raise IntegrityError(f"frame {frame.digest.hex()}: its bytes have another digest")
    if work is not None:
        work.is_verified()


def decode_slice(
    target: memoryview, stored: memoryview, frame: FrameRow, place: tuple[int, bytes], decompressor: zstandard.ZstdDecompressor
) -> None:
    """Decode an object of a frame into ``target``; ``place`` is where in it that begins, and its digest. Errors are as above."""
    start, digest = place
    content = memoryview(decode_frame(stored, frame.codec, frame.length, frame.digest, decompressor))[start : start + len(target)]
    if len(content) != len(target) or blake3(content).digest() != digest:
        raise IntegrityError(f"frame {frame.digest.hex()}: does not hold object {digest.hex()} at {start}")
    target[:] = content
