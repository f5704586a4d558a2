"""What tests take for ordinary content is like it."""

import pytest
import zstandard

from imagefs.format.pack import CODEC_ZSTD, compress_frame
from tests.fuse.images import FRAME, noise


@pytest.mark.parametrize("size", [5_000, FRAME, 20 * FRAME + 777])
def test_noise_compresses_to_about_three_quarters(size: int) -> None:
    data = noise(size, 7)
    codec, stored = compress_frame(data, zstandard.ZstdCompressor(write_checksum=False))
    assert len(data) == size
    assert codec == CODEC_ZSTD
    assert 0.74 < len(stored) / size < 0.78


def test_noise_is_another_for_each_seed_and_the_same_each_time() -> None:
    assert noise(FRAME, 1) == noise(FRAME, 1)
    assert len({noise(100, seed) for seed in range(300)}) == 300
