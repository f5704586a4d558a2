"""``python -m bench.unverified daemon run``: the ``imagefs`` command with a daemon that does not verify what the store sends.

For one bench, which tells what verification costs. Nobody must serve anything with it.
"""

import zstandard

from imagefs.cache import pieces
from imagefs.cache.decode import Work
from imagefs.format.objectmap import FrameRow
from imagefs.format.pack import CODEC_ZSTD
from imagefs_cli.main import main


def _decode_into(
    target: memoryview, stored: memoryview, frame: FrameRow, decompressor: zstandard.ZstdDecompressor, work: Work | None = None
) -> None:
    """What ``imagefs.cache.decode`` does, without the digest."""
    del work
    if frame.codec == CODEC_ZSTD:
        with decompressor.stream_reader(stored) as reader:
            reader.readinto(target)
    else:
        target[:] = stored


if __name__ == "__main__":
    pieces.decode_into = _decode_into  # type: ignore[attr-defined] # an import there
    main()
