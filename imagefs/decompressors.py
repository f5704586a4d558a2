"""zstd for many threads: a context belongs to one thread at a time."""

import threading

import zstandard


class Decompressors(threading.local):
    """``own`` is a context of the thread that asks."""

    def __init__(self) -> None:
        """It is called in each thread, when that asks first."""
        self.own = zstandard.ZstdDecompressor()
